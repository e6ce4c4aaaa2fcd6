"""Bans, links, requests to be let in, one's own settings and drafts. Each handler is one call of the domain."""

from typing import Final

from gearlink.accounts import Actor
from gearlink.calls import DraftForm, JoinLinkForm, PreferencesForm
from gearlink.domain import Domain
from gearlink.errors import (
    BANNED,
    FORBIDDEN,
    GROUP_FULL,
    MUST_BE_ENCRYPTED,
    NOT_FOUND,
    REFUSED_BY_PRIVACY,
    TOO_MANY,
)
from gearlink.http_api.table import PageQuery, Reply, Route
from gearlink.rights import Right
from gearlink.views import (
    BanView,
    ConversationView,
    DraftView,
    JoinAnswer,
    JoinLinkView,
    JoinRequestView,
    LinkPreview,
    MemberView,
    Page,
)

# --- bans ------------------------------------------------------------------------------------------------------------


async def list_bans(domain: Domain, actor: Actor, conversation_id: str, query: PageQuery) -> Reply:
    return 200, await domain.members.bans(actor, conversation_id, query.limit, query.cursor)


async def ban(domain: Domain, actor: Actor, conversation_id: str, user_id: str) -> Reply:
    await domain.members.ban(actor, conversation_id, user_id)
    return 204, None


async def unban(domain: Domain, actor: Actor, conversation_id: str, user_id: str) -> Reply:
    await domain.members.unban(actor, conversation_id, user_id)
    return 204, None


# --- links and requests ----------------------------------------------------------------------------------------------


async def list_links(domain: Domain, actor: Actor, conversation_id: str, query: PageQuery) -> Reply:
    return 200, await domain.invitations.links(actor, conversation_id, query.limit, query.cursor)


async def create_link(domain: Domain, actor: Actor, conversation_id: str, form: JoinLinkForm) -> Reply:
    return 201, await domain.invitations.create(actor, conversation_id, form)


async def revoke_link(domain: Domain, actor: Actor, conversation_id: str, link_id: str) -> Reply:
    await domain.invitations.revoke(actor, conversation_id, link_id)
    return 204, None


async def preview_link(domain: Domain, actor: Actor, code: str) -> Reply:
    return 200, await domain.invitations.preview(actor, code)


async def join(domain: Domain, actor: Actor, code: str) -> Reply:
    return 200, await domain.invitations.join(actor, code)


async def list_requests(domain: Domain, actor: Actor, conversation_id: str, query: PageQuery) -> Reply:
    return 200, await domain.invitations.requests(actor, conversation_id, query.limit, query.cursor)


async def approve_request(domain: Domain, actor: Actor, conversation_id: str, user_id: str) -> Reply:
    return 200, await domain.invitations.approve(actor, conversation_id, user_id)


async def decline_request(domain: Domain, actor: Actor, conversation_id: str, user_id: str) -> Reply:
    await domain.invitations.decline(actor, conversation_id, user_id)
    return 204, None


async def withdraw_request(domain: Domain, actor: Actor, conversation_id: str) -> Reply:
    await domain.invitations.withdraw(actor, conversation_id)
    return 204, None


# --- one's own -------------------------------------------------------------------------------------------------------


async def change_preferences(domain: Domain, actor: Actor, conversation_id: str, form: PreferencesForm) -> Reply:
    return 200, await domain.preferences.change(actor, conversation_id, form)


async def set_draft(domain: Domain, actor: Actor, conversation_id: str, form: DraftForm) -> Reply:
    return 200, await domain.preferences.set_draft(actor, conversation_id, form.content, form.reply_to_id)


async def remove_draft(domain: Domain, actor: Actor, conversation_id: str) -> Reply:
    await domain.preferences.set_draft(actor, conversation_id, None)
    return 204, None


async def list_drafts(domain: Domain, actor: Actor, query: PageQuery) -> Reply:
    return 200, await domain.preferences.drafts(actor, query.limit, query.cursor)


_CONVERSATION: Final = "/conversations/{conversationId}"
_STAFF_ONLY: Final = (NOT_FOUND, FORBIDDEN)

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET", _CONVERSATION + "/bans", list_bans, "Who may not come back",
        query=PageQuery, answers={200: Page[BanView]}, refusals=_STAFF_ONLY, right=Right.REMOVE,
    ),
    Route(
        "PUT", _CONVERSATION + "/bans/{userId}", ban, "Take somebody out, if they are in, and keep them out",
        answers={204: None}, refusals=_STAFF_ONLY, right=Right.REMOVE,
    ),
    Route(
        "DELETE", _CONVERSATION + "/bans/{userId}", unban, "Let somebody come in again by the usual ways",
        answers={204: None}, refusals=_STAFF_ONLY, right=Right.REMOVE,
    ),
    Route(
        "GET", _CONVERSATION + "/links", list_links, "The links that lead here, oldest first",
        query=PageQuery, answers={200: Page[JoinLinkView]}, refusals=_STAFF_ONLY, right=Right.ADD,
    ),
    Route(
        "POST", _CONVERSATION + "/links", create_link, "Make a link over which people may join, or ask to",
        body=JoinLinkForm, answers={201: JoinLinkView}, refusals=(*_STAFF_ONLY, TOO_MANY), right=Right.ADD,
    ),
    Route(
        "DELETE", _CONVERSATION + "/links/{linkId}", revoke_link, "Make a link lead nowhere; members only their own",
        answers={204: None}, refusals=_STAFF_ONLY, right=Right.ADD,
    ),
    Route(
        "GET", "/join/{code}", preview_link, "What a link leads to",
        answers={200: LinkPreview}, refusals=(NOT_FOUND, BANNED),
    ),
    Route(
        "POST", "/join/{code}", join, "Join over a link, or ask to be let in; again changes nothing",
        answers={200: JoinAnswer}, refusals=(NOT_FOUND, BANNED, GROUP_FULL, TOO_MANY),
    ),
    Route(
        "GET", _CONVERSATION + "/requests", list_requests, "Who asks to be let in",
        query=PageQuery, answers={200: Page[JoinRequestView]}, refusals=_STAFF_ONLY, right=Right.ADD,
    ),
    Route(
        "PUT", _CONVERSATION + "/requests/{userId}", approve_request, "Let in somebody who asks",
        answers={200: MemberView}, refusals=(*_STAFF_ONLY, GROUP_FULL, TOO_MANY), right=Right.ADD,
    ),
    Route(
        "DELETE", _CONVERSATION + "/requests/{userId}", decline_request, "Do not let in somebody who asks",
        answers={204: None}, refusals=_STAFF_ONLY, right=Right.ADD,
    ),
    Route(
        "DELETE", _CONVERSATION + "/requests", withdraw_request, "Do not ask any more to be let in",
        answers={204: None}, refusals=(NOT_FOUND,),
    ),
    Route(
        "PATCH", _CONVERSATION + "/preferences", change_preferences, "Mute, archive or pin it for oneself",
        body=PreferencesForm, answers={200: ConversationView}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "PUT", _CONVERSATION + "/draft", set_draft, "Keep what one has begun to write",
        body=DraftForm, answers={200: DraftView},
        refusals=(NOT_FOUND, FORBIDDEN, REFUSED_BY_PRIVACY, MUST_BE_ENCRYPTED), right=Right.SEND,
    ),
    Route(
        "DELETE", _CONVERSATION + "/draft", remove_draft, "Give up what one has begun to write",
        answers={204: None}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "GET", "/drafts", list_drafts, "What one has begun to write, by conversation",
        query=PageQuery, answers={200: Page[DraftView]},
    ),
)  # fmt: skip
