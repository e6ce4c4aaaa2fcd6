"""Conversations, their members, messages and receipts. Each handler is one call of the domain."""

from gearlink.accounts import Actor
from gearlink.calls import ConversationChange, ConversationForm, MemberChange, MembersForm, MessageForm, ReadForm
from gearlink.http_api.table import Domain, LogQuery, PageQuery, Reply


async def create_conversation(domain: Domain, actor: Actor, form: ConversationForm) -> Reply:
    conversation, created = await domain.conversations.create(actor, form)
    return (201 if created else 200), conversation


async def list_conversations(domain: Domain, actor: Actor, query: PageQuery) -> Reply:
    return 200, await domain.conversations.list(actor, query.limit, query.cursor)


async def read_conversation(domain: Domain, actor: Actor, conversation_id: str) -> Reply:
    return 200, await domain.conversations.view(actor, conversation_id)


async def change_conversation(domain: Domain, actor: Actor, conversation_id: str, form: ConversationChange) -> Reply:
    return 200, await domain.conversations.change(actor, conversation_id, form)


async def delete_conversation(domain: Domain, actor: Actor, conversation_id: str) -> Reply:
    await domain.conversations.delete(actor, conversation_id)
    return 204, None


async def list_members(domain: Domain, actor: Actor, conversation_id: str, query: PageQuery) -> Reply:
    return 200, await domain.conversations.members(actor, conversation_id, query.limit, query.cursor)


async def add_members(domain: Domain, actor: Actor, conversation_id: str, form: MembersForm) -> Reply:
    return 201, await domain.conversations.add_members(actor, conversation_id, form)


async def change_member(domain: Domain, actor: Actor, conversation_id: str, user_id: str, form: MemberChange) -> Reply:
    return 200, await domain.conversations.change_member(actor, conversation_id, user_id, form)


async def remove_member(domain: Domain, actor: Actor, conversation_id: str, user_id: str) -> Reply:
    await domain.conversations.remove_member(actor, conversation_id, user_id)
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
