"""What becomes of a message: edits, deletion, pins. Each handler is one call of the domain."""

from typing import Final

from gearlink.accounts import Actor
from gearlink.calls import EditForm
from gearlink.domain import Domain
from gearlink.errors import (
    FORBIDDEN,
    MESSAGE_DELETED,
    MUST_BE_ENCRYPTED,
    NOT_FOUND,
    OVERLOADED,
    REFUSED_BY_PRIVACY,
    TOO_LATE,
    TOO_MANY,
)
from gearlink.http_api.table import PageQuery, Reply, Route
from gearlink.rights import Right
from gearlink.views import MessageView, Page, Request, RevisionView


class DeleteQuery(Request):
    """Without `forEveryone` the message goes from the caller's own sight alone."""

    for_everyone: bool = False


async def edit_message(domain: Domain, actor: Actor, message_id: str, form: EditForm) -> Reply:
    return 200, await domain.amendments.edit(actor, message_id, form)


async def delete_message(domain: Domain, actor: Actor, message_id: str, query: DeleteQuery) -> Reply:
    await domain.amendments.delete(actor, message_id, for_everyone=query.for_everyone)
    return 204, None


async def list_revisions(domain: Domain, actor: Actor, message_id: str, query: PageQuery) -> Reply:
    return 200, await domain.amendments.revisions(actor, message_id, query.limit, query.cursor)


async def pin_message(domain: Domain, actor: Actor, message_id: str) -> Reply:
    await domain.amendments.pin(actor, message_id, pinned=True)
    return 204, None


async def unpin_message(domain: Domain, actor: Actor, message_id: str) -> Reply:
    await domain.amendments.pin(actor, message_id, pinned=False)
    return 204, None


async def list_pins(domain: Domain, actor: Actor, conversation_id: str, query: PageQuery) -> Reply:
    return 200, await domain.amendments.pins(actor, conversation_id, query.limit, query.cursor)


_MESSAGE: Final = "/messages/{messageId}"
_CHANGE: Final = (NOT_FOUND, FORBIDDEN, REFUSED_BY_PRIVACY)

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "PATCH", _MESSAGE, edit_message, "Change the text or caption of one's own message",
        body=EditForm, answers={200: MessageView}, right=Right.SEND,
        refusals=(*_CHANGE, MESSAGE_DELETED, TOO_LATE, MUST_BE_ENCRYPTED, OVERLOADED),
    ),
    Route(
        "DELETE", _MESSAGE, delete_message, "Delete a message, for everyone or from one's own sight",
        query=DeleteQuery, answers={204: None}, refusals=(NOT_FOUND, FORBIDDEN, TOO_LATE), right=Right.READ,
    ),
    Route(
        "GET", _MESSAGE + "/revisions", list_revisions, "What a message said before each of its edits, oldest first",
        query=PageQuery, answers={200: Page[RevisionView]}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "PUT", _MESSAGE + "/pin", pin_message, "Pin a message",
        answers={204: None}, refusals=(*_CHANGE, MESSAGE_DELETED, TOO_MANY), right=Right.PIN,
    ),
    Route(
        "DELETE", _MESSAGE + "/pin", unpin_message, "Take a pinned message down",
        answers={204: None}, refusals=_CHANGE, right=Right.PIN,
    ),
    Route(
        "GET", "/conversations/{conversationId}/pins", list_pins, "The pinned messages, the newest message first",
        query=PageQuery, answers={200: Page[MessageView]}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
)  # fmt: skip
