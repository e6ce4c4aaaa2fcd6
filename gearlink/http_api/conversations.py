"""Conversations, their members, messages and receipts. Each handler is one call of the domain."""

from typing import Final

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import (
    AvatarSet,
    ConversationChange,
    ConversationForm,
    MemberChange,
    MembersForm,
    MessageForm,
    ReadForm,
)
from gearlink.domain import Domain
from gearlink.errors import (
    ALREADY_MEMBER,
    BANNED,
    FORBIDDEN,
    GROUP_FULL,
    LAST_OWNER,
    NOT_FOUND,
    REFUSED_BY_PRIVACY,
    TOO_MANY,
)
from gearlink.http_api.table import LogQuery, PageQuery, Reply, Route
from gearlink.images import IMAGE_TYPES
from gearlink.rights import Right
from gearlink.views import ConversationView, MemberView, Page


class ConversationsQuery(PageQuery, kw_only=True):
    """`archived`: only those that the caller has archived, or only the others; without it all of them."""

    archived: bool | None = None


async def create_conversation(domain: Domain, actor: Actor, form: ConversationForm) -> Reply:
    conversation, created = await domain.conversations.create(actor, form)
    return (201 if created else 200), conversation


async def list_conversations(domain: Domain, actor: Actor, query: ConversationsQuery) -> Reply:
    return 200, await domain.conversations.list(actor, query.limit, query.cursor, archived=query.archived)


async def read_conversation(domain: Domain, actor: Actor, conversation_id: str) -> Reply:
    return 200, await domain.conversations.view(actor, conversation_id)


async def change_conversation(domain: Domain, actor: Actor, conversation_id: str, form: ConversationChange) -> Reply:
    return 200, await domain.conversations.change(actor, conversation_id, form)


async def delete_conversation(domain: Domain, actor: Actor, conversation_id: str) -> Reply:
    await domain.conversations.delete(actor, conversation_id)
    return 204, None


async def set_avatar(domain: Domain, actor: Actor, conversation_id: str, data: bytes) -> Reply:
    return 200, await domain.avatars.set_for_conversation(actor, conversation_id, data)


async def remove_avatar(domain: Domain, actor: Actor, conversation_id: str) -> Reply:
    await domain.avatars.remove_for_conversation(actor, conversation_id)
    return 204, None


async def list_members(domain: Domain, actor: Actor, conversation_id: str, query: PageQuery) -> Reply:
    return 200, await domain.members.list(actor, conversation_id, query.limit, query.cursor)


async def add_members(domain: Domain, actor: Actor, conversation_id: str, form: MembersForm) -> Reply:
    return 201, await domain.members.add(actor, conversation_id, form)


async def change_member(domain: Domain, actor: Actor, conversation_id: str, user_id: str, form: MemberChange) -> Reply:
    return 200, await domain.members.change(actor, conversation_id, user_id, form)


async def remove_member(domain: Domain, actor: Actor, conversation_id: str, user_id: str) -> Reply:
    await domain.members.remove(actor, conversation_id, user_id)
    return 204, None


async def list_messages(domain: Domain, actor: Actor, conversation_id: str, query: LogQuery) -> Reply:
    return 200, await domain.messages.page(actor, conversation_id, query.before, query.after, query.limit)


async def send_message(domain: Domain, actor: Actor, conversation_id: str, form: MessageForm) -> Reply:
    return 201, await domain.messages.send(actor, conversation_id, form)


async def mark_read(domain: Domain, actor: Actor, conversation_id: str, form: ReadForm) -> Reply:
    await domain.receipts.mark_read(actor, conversation_id, form.sequence_number)
    return 204, None


async def read_message(domain: Domain, actor: Actor, message_id: str) -> Reply:
    return 200, await domain.messages.view(actor, message_id)


async def list_deliveries(domain: Domain, actor: Actor, message_id: str, query: PageQuery) -> Reply:
    return 200, await domain.receipts.deliveries(actor, message_id, query.limit, query.cursor)


_CONVERSATION: Final = "/conversations/{conversationId}"

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST", "/conversations", create_conversation,
        "Open a conversation; a second direct one with the same person answers 200 with the first",
        body=ConversationForm, answers={200: ConversationView, 201: ConversationView},
        refusals=(REFUSED_BY_PRIVACY, GROUP_FULL, TOO_MANY),
    ),
    Route(
        "GET", "/conversations", list_conversations, "The caller's conversations, newest activity first",
        query=ConversationsQuery, answers={200: Page[ConversationView]},
    ),
    Route(
        "GET", _CONVERSATION, read_conversation, "One conversation",
        answers={200: ConversationView}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "PATCH", _CONVERSATION, change_conversation,
        "Change name, description and settings; each part needs the right to it",
        body=ConversationChange, answers={200: ConversationView}, refusals=(NOT_FOUND, FORBIDDEN, REFUSED_BY_PRIVACY),
        right=Right.CHANGE,
    ),
    Route(
        "DELETE", _CONVERSATION, delete_conversation, "Delete a conversation for everybody",
        answers={204: None}, refusals=(NOT_FOUND, FORBIDDEN), right=Right.DELETE,
    ),
    Route(
        "PUT", _CONVERSATION + "/avatar", set_avatar,
        "Make this the picture of a group or channel; its metadata is taken out",
        takes=IMAGE_TYPES, body_bytes_max=limits.AVATAR_BYTES_MAX, answers={200: AvatarSet},
        refusals=(NOT_FOUND, FORBIDDEN), right=Right.CHANGE,
    ),
    Route(
        "DELETE", _CONVERSATION + "/avatar", remove_avatar, "Take the picture of a group or channel away",
        answers={204: None}, refusals=(NOT_FOUND, FORBIDDEN), right=Right.CHANGE,
    ),
    Route(
        "GET", _CONVERSATION + "/members", list_members, "Who is in it",
        query=PageQuery, answers={200: Page[MemberView]}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "POST", _CONVERSATION + "/members", add_members, "Add members, all or none; answers those added",
        body=MembersForm, answers={201: Page[MemberView]},
        refusals=(NOT_FOUND, FORBIDDEN, ALREADY_MEMBER, BANNED, REFUSED_BY_PRIVACY, GROUP_FULL, TOO_MANY), right=Right.ADD,
    ),
    Route(
        "PATCH", _CONVERSATION + "/members/{userId}", change_member, "Give a member another role",
        body=MemberChange, answers={200: MemberView}, refusals=(NOT_FOUND, FORBIDDEN, LAST_OWNER),
        right=Right.APPOINT,
    ),
    Route(
        "DELETE", _CONVERSATION + "/members/{userId}", remove_member,
        "Remove a member, or leave, for which one needs no right",
        answers={204: None}, refusals=(NOT_FOUND, FORBIDDEN, LAST_OWNER), right=Right.REMOVE,
    ),
)  # fmt: skip
