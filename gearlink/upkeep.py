"""What has to happen by itself now and then: expired records go, deleted conversations are erased, signing keys are rolled.

Each step is small and durable, so upkeep may be killed at any moment and goes on where it was. It deletes only what says
itself that it has expired, and holds neither the loop nor the writer for long.
"""

import trio

from config import limits
from gearlink.clock import Clock
from gearlink.journal import logger
from gearlink.purge import purge
from gearlink.tokens import Tokens
from storage.records import (
    Departure,
    Invite,
    Record,
    RefreshToken,
    Sent,
    SigningKey,
    UsernameHold,
    Verification,
)
from storage.store import Store, StoreError

_log = logger("upkeep")
EXPIRING: tuple[type[Record], ...] = (Verification, RefreshToken, Invite, Sent, SigningKey, Departure, UsernameHold)


async def run(
    store: Store, clock: Clock, tokens: Tokens, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Keeps the house, once now and then every `limits.SWEEP_SECONDS`, until it is cancelled."""
    task_status.started()
    while True:
        try:
            await tokens.ready()
            await sweep(store, clock)
            await purge(store, clock)
        except StoreError as trouble:  # no room, or failing: it is tried again, and the store tells the rest
            _log.warning("upkeep.postponed", trouble=trouble)
        await trio.sleep(limits.SWEEP_SECONDS)


async def sweep(store: Store, clock: Clock) -> None:
    """Deletes what has expired."""
    for kind in EXPIRING:
        if swept := await store.sweep(kind, clock.now()):
            _log.info("upkeep.swept", kind=kind.__name__, records=swept)
