"""What has to happen at its time: messages disappear or go out, polls close, deleted accounts are erased.

The store keeps what is due in order of time (`Due`), so nothing is forgotten in a restart and a look costs the same
however much lies ahead. A step is given by the house for each kind; it may run twice, after a crash, and has to make
nothing of the second time. What fails is tried again, a bug after a while, and never holds up the rest.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import groupby

import trio

from config import limits
from gearlink.clock import Clock
from gearlink.journal import logger
from storage.records import Due
from storage.store import Store, StoreError, Transaction

_log = logger("timers")
Step = Callable[[str, str, Sequence[int]], Awaitable[None]]
"""Called with the id of the subject, that of its owner, and the numbers that are due together."""


class Timers:
    """`steps` says what to do for each `Due.what`."""

    def __init__(self, store: Store, clock: Clock, steps: Mapping[str, Step]) -> None:
        self._store, self._clock, self._steps = store, clock, steps

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Looks every `limits.TIMER_SECONDS`, until it is cancelled."""
        task_status.started()
        while True:
            try:
                while await self.tick():
                    await trio.lowlevel.checkpoint()
            except StoreError as trouble:  # no room, or failing: it is tried again, and the store tells the rest
                _log.warning("timers.postponed", trouble=trouble)
            await trio.sleep(limits.TIMER_SECONDS)

    async def tick(self) -> bool:
        """Does what is due now, as far as one look finds it. True if there may be more.

        Raises the last StoreError that there was, once everything else was done: the store may fail, or one damaged record.
        """
        failed: StoreError | None = None
        found = await self._store.scan(Due, before=self._clock.now() + 1, limit=limits.TIMER_ROWS_PER_STEP)
        ordered = sorted(found, key=lambda due: (due.what, due.subject_id, due.owner_id, due.number))
        for (what, subject_id, owner_id), group in groupby(
            ordered, key=lambda due: (due.what, due.subject_id, due.owner_id)
        ):
            try:
                await self._do(what, subject_id, owner_id, list(group))
            except StoreError as trouble:
                failed = trouble
        if failed is not None:
            raise failed
        return len(found) == limits.TIMER_ROWS_PER_STEP

    async def _do(self, what: str, subject_id: str, owner_id: str, rows: Sequence[Due]) -> None:
        put_off = 0
        try:
            await self._steps[what](subject_id, owner_id, [due.number for due in rows])
        except StoreError:
            raise
        except Exception as trouble:  # noqa: BLE001 - a bug with one thing must not stop the others
            _log.error("timers.bug", what=what, trouble=trouble)
            put_off = self._clock.now() + int(limits.TIMER_RETRY_SECONDS * 1000)

        async def change(tx: Transaction) -> None:
            for due in rows:
                tx.delete(Due, due.at, due.what, due.subject_id, due.number)
                if put_off:
                    tx.put(Due(put_off, due.what, due.subject_id, due.number, due.owner_id))

        await self._store.write(change)
