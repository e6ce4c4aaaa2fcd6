"""Presence: who is here now, and since when the others are not, told to those who asked for it.

A watcher names whom it wants to hear of and is answered at once; after that it hears changes only, at most one a second
of each user. Several sockets of a user are one presence, and one that comes back within `PRESENCE_GRACE_SECONDS` was
never gone. Who may know is asked again each time that something is told. To everybody else a user looks like one who
does not exist: offline, nobody knows since when. Nothing of this is stored but when a user's last socket was closed.

Memory is bounded by the sockets, times `WATCHED_MAX`. It knows no hub: a watcher is whatever has an actor and can be told.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Protocol

import trio
from msgspec import UNSET

from config import limits
from gearlink import protocol
from gearlink.accounts import Actor
from gearlink.clock import Clock, Milliseconds, rfc3339
from gearlink.journal import logger
from gearlink.people import may_see_presence
from gearlink.pressure import Load, Pressure
from gearlink.throttle import Throttle
from storage.records import Account, LastSeen
from storage.store import Store, StoreError, Transaction

_log = logger("presence")
_WATCHERS_PER_STEP = 50  # at some 50 microseconds each, before others have their turn
_LAST_SEEN_PER_CHANGE = 200
_UNKNOWN: Milliseconds = 0  # offline, and that is all that this watcher may know
_ONLINE: Milliseconds = -1
_UNTOLD: Milliseconds = -2  # `watch` has not answered yet


class Watcher(Protocol):
    """Somebody's session."""

    @property
    def actor(self) -> Actor: ...

    def say(self, message: protocol.AnyServerFrame) -> None: ...


class Presence:
    """Owned by one task, `run`, which tells changes. `came`, `left` and `forget` are called by who knows the sockets."""

    def __init__(self, store: Store, clock: Clock, pressure: Pressure) -> None:
        self._store, self._clock, self._pressure = store, clock, pressure
        self._here: set[str] = set()  # users with a socket
        self._leaving: dict[str, tuple[float, Milliseconds]] = {}  # without one since: the run's time, wall time
        self._watchers: dict[str, dict[Watcher, Milliseconds]] = {}  # of each user, and what each was told last
        self._watched: dict[Watcher, tuple[str, ...]] = {}
        self._changed: dict[str, None] = {}  # in the order in which they changed
        self._wanted = trio.Event()
        self._calls = Throttle("presence-watch", limits.WATCHES_PER_SECOND, limits.WATCHES_BURST)
        self._asked = Throttle("presence-users", limits.WATCHED_PER_SECOND, 2 * limits.WATCHED_MAX)

    # --- who is here -------------------------------------------------------------------------------------------------

    def came(self, user_id: str) -> None:
        """The user has a socket, and had none."""
        self._here.add(user_id)
        if self._leaving.pop(user_id, None) is None:
            self._note_change(user_id)

    def left(self, user_id: str) -> None:
        """The user has no socket any more."""
        if user_id in self._here:
            self._here.discard(user_id)
            self._leaving[user_id] = trio.current_time(), self._clock.now()
            self._wanted.set()

    def is_online(self, user_id: str) -> bool:
        """As others are told: whoever has just left still counts."""
        return user_id in self._here or user_id in self._leaving

    def _note_change(self, user_id: str) -> None:
        if user_id in self._watchers:
            self._changed[user_id] = None
            self._wanted.set()

    # --- who wants to know -------------------------------------------------------------------------------------------

    async def watch(self, watcher: Watcher, user_ids: Iterable[str]) -> None:
        """From now on `watcher` hears of these users, at most `WATCHED_MAX`, and of no others; one frame for each, now.

        Raises Refusal `rate-limited`: calls and users count, for each device; then the old ones stay.
        """
        wanted = tuple(dict.fromkeys(user_ids))
        self._calls.check(watcher.actor.device_id)
        if wanted:
            self._asked.check(watcher.actor.device_id, len(wanted))
        self.forget(watcher)
        if wanted:
            self._watched[watcher] = wanted
        for user_id in wanted:
            self._watchers.setdefault(user_id, {})[watcher] = _UNTOLD
        try:
            for number, user_id in enumerate(wanted, 1):
                await self._answer(watcher, user_id)
                if number % _WATCHERS_PER_STEP == 0:
                    await trio.lowlevel.checkpoint()
        except StoreError:
            self.forget(watcher)  # who was not answered hears no changes either
            raise

    def forget(self, watcher: Watcher) -> None:
        """`watcher` hears nothing more."""
        for user_id in self._watched.pop(watcher, ()):
            watchers = self._watchers[user_id]
            del watchers[watcher]
            if not watchers:
                del self._watchers[user_id]

    async def _answer(self, watcher: Watcher, user_id: str) -> None:
        may_see = await may_see_presence(self._store, watcher.actor.user_id, user_id)
        self._tell(watcher, user_id, await self._standing(user_id) if may_see else _UNKNOWN)

    # --- telling -----------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tells what changed, at most every `PRESENCE_TOLD_SECONDS`. Under pressure it waits, and tells where that led."""
        task_status.started()
        while True:
            await self._wanted.wait()
            if self._pressure.sheds(Load.PRESENCE):
                self._pressure.shed(Load.PRESENCE)
            else:
                try:
                    await self._let_go(trio.current_time() - limits.PRESENCE_GRACE_SECONDS)
                    await self._tell_changes()
                except StoreError as trouble:  # whoever watches hears the next change
                    _log.warning("presence.not-told", trouble=trouble)
                if not self._changed and not self._leaving:
                    self._wanted = trio.Event()
            await trio.sleep(limits.PRESENCE_TOLD_SECONDS)

    async def flush(self) -> None:
        """Stores when those who have left were last seen, also those who might still come back. For the very end."""
        await self._let_go(trio.current_time())

    async def _let_go(self, left_by: float) -> None:
        """Whoever left by then, in the run's time, is offline: stores since when."""
        over = [(user_id, left) for user_id, left in self._leaving.items() if left[0] <= left_by]
        for start in range(0, len(over), _LAST_SEEN_PER_CHANGE):
            step = over[start : start + _LAST_SEEN_PER_CHANGE]
            try:
                await self._store_last_seen([LastSeen(user_id, at) for user_id, (_since, at) in step])
            except StoreError as trouble:  # nothing is lost but a time, and they are gone all the same
                _log.warning("presence.not-stored", users=len(step), trouble=trouble)
            for user_id, left in step:
                if self._leaving.get(user_id) is left:  # else they are back
                    del self._leaving[user_id]
                    self._note_change(user_id)

    async def _store_last_seen(self, records: list[LastSeen]) -> None:
        async def change(tx: Transaction) -> None:
            for record in records:
                if await tx.get(Account, record.user_id) is not None:  # else it was erased meanwhile
                    tx.put(record)

        await self._store.write(change)

    async def _tell_changes(self) -> None:
        for user_id in list(self._changed):
            del self._changed[user_id]
            await self._tell_change(user_id)

    async def _tell_change(self, user_id: str) -> None:
        """Tells those who watch the user and may know. Ends early when the user changes again, which comes next."""
        account = await self._store.get(Account, user_id)
        exists = account is not None and account.is_active
        standing = await self._standing(user_id) if exists else _UNKNOWN
        watchers = iter(list(self._watchers.get(user_id, ())))
        while step := list(islice(watchers, _WATCHERS_PER_STEP)):
            for watcher in step:
                # Whoever may not know any more hears nothing: what they were told last was true then.
                if exists and not await may_see_presence(self._store, watcher.actor.user_id, user_id):
                    continue
                if user_id in self._changed:
                    return
                if self._watchers.get(user_id, {}).get(watcher, _UNTOLD) != _UNTOLD:
                    self._tell(watcher, user_id, standing)
            await trio.lowlevel.checkpoint()

    async def _standing(self, user_id: str) -> Milliseconds:
        # Nobody is offline before it is stored since when, so the order of these two questions matters.
        seen = None if self.is_online(user_id) else await self._store.get(LastSeen, user_id)
        if self.is_online(user_id):
            return _ONLINE
        return seen.at if seen is not None else _UNKNOWN

    def _tell(self, watcher: Watcher, user_id: str, standing: Milliseconds) -> None:
        """Unless that is what the watcher was told last, or it does not watch this user any more."""
        watchers = self._watchers.get(user_id, {})
        if watchers.get(watcher, standing) != standing:
            watchers[watcher] = standing
            watcher.say(_frame(user_id, standing))


def _frame(user_id: str, standing: Milliseconds) -> protocol.Presence:
    if standing == _ONLINE:
        return protocol.Presence(user_id=user_id, status="online")
    return protocol.Presence(user_id=user_id, status="offline", last_seen_at=rfc3339(standing) if standing else UNSET)
