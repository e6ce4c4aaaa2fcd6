"""Messages that go out later. Each handler is one call of the domain."""

from typing import Final

from gearlink.accounts import Actor
from gearlink.calls import ScheduleChange, ScheduleForm
from gearlink.domain import Domain
from gearlink.errors import (
    ALREADY_SENT,
    FORBIDDEN,
    MUST_BE_ENCRYPTED,
    NOT_FOUND,
    OVERLOADED,
    REFUSED_BY_PRIVACY,
    TOO_MANY,
)
from gearlink.http_api.table import PageQuery, Reply, Route
from gearlink.rights import Right
from gearlink.views import Page, ScheduledView


async def schedule_message(domain: Domain, actor: Actor, conversation_id: str, form: ScheduleForm) -> Reply:
    return 201, await domain.schedule.add(actor, conversation_id, form)


async def list_scheduled(domain: Domain, actor: Actor, conversation_id: str, query: PageQuery) -> Reply:
    return 200, await domain.schedule.list(actor, conversation_id, query.limit, query.cursor)


async def change_scheduled(domain: Domain, actor: Actor, scheduled_id: str, form: ScheduleChange) -> Reply:
    return 200, await domain.schedule.change(actor, scheduled_id, form)


async def cancel_scheduled(domain: Domain, actor: Actor, scheduled_id: str) -> Reply:
    await domain.schedule.cancel(actor, scheduled_id)
    return 204, None


_SEND = (NOT_FOUND, FORBIDDEN, REFUSED_BY_PRIVACY, MUST_BE_ENCRYPTED, OVERLOADED)

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST", "/conversations/{conversationId}/scheduled", schedule_message,
        "Send a message at a later time; the same `tempId` again answers the same",
        body=ScheduleForm, answers={201: ScheduledView}, refusals=(*_SEND, ALREADY_SENT, TOO_MANY), right=Right.SEND,
    ),
    Route(
        "GET", "/conversations/{conversationId}/scheduled", list_scheduled,
        "The caller's messages that wait for their time, or could not go out",
        query=PageQuery, answers={200: Page[ScheduledView]}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "PATCH", "/scheduled/{scheduledId}", change_scheduled, "Change the time or the text of a message that waits",
        body=ScheduleChange, answers={200: ScheduledView}, refusals=_SEND,
    ),
    Route(
        "DELETE", "/scheduled/{scheduledId}", cancel_scheduled, "Cancel a message that waits",
        answers={204: None}, refusals=(NOT_FOUND,),
    ),
)  # fmt: skip
