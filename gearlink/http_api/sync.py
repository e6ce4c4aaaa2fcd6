"""What a socket would have been told, over REST. The handler is one call of the domain."""

from typing import Final

from gearlink import calls
from gearlink.accounts import Actor
from gearlink.domain import Domain
from gearlink.http_api.table import Reply, Route


async def sync(domain: Domain, actor: Actor, form: calls.SyncForm) -> Reply:
    return 200, await domain.sync(actor, form)


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST", "/sync", sync, "What a socket would have been told since these cursors; may wait for something to tell",
        body=calls.SyncForm, answers={200: calls.SyncAnswer}, waits=True,
    ),
)  # fmt: skip
