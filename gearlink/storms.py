"""Telling of many small changes to one message without drowning its room.

A reaction or a vote is stored at once, on the message itself; what is bounded is how often its room hears of it. Up to
`limits.CHANGES_TOLD_PER_SECOND` in any second each change is an event of its own. In a storm the newest stands for those
before it: a note of it (`Untold`) is stored with the change, and a moment later it is told with the message as it is by
then. So the last thing that a room hears is always how the storm ended, also after a crash. The counting is done within
changes, which run one by one. It knows no rule of what is told and no socket.
"""

from collections import OrderedDict, deque

import trio
from msgspec import structs

from config import limits
from gearlink.clock import Clock
from gearlink.journal import logger
from gearlink.reading import is_expired, message_entry
from storage.events import Message, PollChanged, ReactionChanged
from storage.records import Conversation, LogEntry, Untold
from storage.store import Store, StoreError, Transaction

_log = logger("storms")
_SECOND = 1.0
_SPACING_SECONDS = _SECOND / limits.CHANGES_TOLD_PER_SECOND
_GATHERING_SECONDS = _SPACING_SECONDS / 5  # messages whose time comes this close together share a change
_PER_CHANGE_MAX = 50  # messages that are told of in one change
_PACES_MAX = 10_000
_WAITING_MAX = 10_000

Change = ReactionChanged | PollChanged


class _Pace:
    """When one message was told of lately. After a storm began its events come evenly, not ten at a time."""

    __slots__ = ("storm_until", "told")

    def __init__(self) -> None:
        self.told: deque[float] = deque(maxlen=limits.CHANGES_TOLD_PER_SECOND)
        self.storm_until = 0.0

    def next_at(self, now: float) -> float:
        """From when on the next event fits."""
        if not self.told:
            return now
        full_until = self.told[0] + _SECOND if len(self.told) == self.told.maxlen else now
        return max(full_until, self.told[-1] + _SPACING_SECONDS) if now < self.storm_until else full_until


async def settle(tx: Transaction, message_id: str) -> None:
    """Within the change that deletes or expires a message: of its reactions and votes nobody is told any more."""
    tx.delete(Untold, message_id)


class Storms:
    """Tells at most ten changes a second of one message. Owned by one task: `run`."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._paces: OrderedDict[str, _Pace] = OrderedDict()  # oldest use first
        self._waiting: dict[str, float] = {}  # message: from when on it may be told of
        self._wanted = trio.Event()

    async def tell(self, tx: Transaction, event: Change, subject: LogEntry) -> None:
        """Within a change: `subject` is the message as it is from now on, `event` what happened to it.

        Both are stored; the event is in the log now, or will be in a moment.
        """
        now, message_id = trio.current_time(), event.message_id
        pace = self._pace(message_id, now)
        due = pace.next_at(now)
        waits = message_id in self._waiting
        if not waits and (due <= now or len(self._waiting) >= _WAITING_MAX):
            pace.told.append(now)
            await tx.append(subject.conversation_id, event, subject)
            return
        earlier = await tx.get(Untold, message_id)
        others = () if earlier is None else tuple(each for each in earlier.events if type(each) is not type(event))
        tx.put(subject)
        tx.put(Untold(message_id, (*others, event), subject.conversation_id))
        pace.storm_until = now + _SECOND
        if not waits:
            self._waiting[message_id] = due
            self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Started once what a crash left untold is told; then tells what waits, when it may be told."""
        await self._find_leftovers()
        await self._flush()
        task_status.started()
        while True:
            await self._wanted.wait()
            while self._waiting:
                seconds = min(self._waiting.values()) - trio.current_time()
                await trio.sleep(max(seconds, _GATHERING_SECONDS))
                await self._flush()
            self._wanted = trio.Event()

    async def _find_leftovers(self) -> None:
        after: str | None = None
        while len(self._waiting) < _WAITING_MAX:
            found = await self._store.scan(Untold, after=after, limit=_PER_CHANGE_MAX)
            self._waiting.update((each.message_id, 0.0) for each in found)
            if len(found) < _PER_CHANGE_MAX:
                break
            after = found[-1].message_id
        if self._waiting:
            self._wanted.set()
            _log.info("storms.leftovers", messages=len(self._waiting))

    async def _flush(self) -> None:
        """Tells of every message whose time has come."""
        now = trio.current_time()
        due = [message_id for message_id, at in self._waiting.items() if at <= now]
        for start in range(0, len(due), _PER_CHANGE_MAX):
            some = due[start : start + _PER_CHANGE_MAX]

            async def change(tx: Transaction, some: list[str] = some) -> None:
                for message_id in some:
                    if self._waiting.pop(message_id, None) is not None:
                        await self._tell_of(tx, message_id)

            try:
                await self._store.write(change)
            except StoreError as trouble:  # no room, or failing: the notes are on the disk, and this is tried again
                _log.warning("storms.postponed", messages=len(some), trouble=trouble)
                self._waiting.update((message_id, now + _SECOND) for message_id in some)
                return

    async def _tell_of(self, tx: Transaction, message_id: str) -> None:
        untold = await tx.get(Untold, message_id)
        if untold is None:  # the change that put it was refused after all
            return
        tx.delete(Untold, message_id)
        entry = await message_entry(tx, message_id)
        if entry is None or await tx.get(Conversation, untold.conversation_id) is None:
            return
        if not isinstance(entry.event, Message) or entry.event.deleted_at or is_expired(entry, self._clock.now()):
            return
        now = trio.current_time()
        pace = self._pace(message_id, now)
        event, *others = untold.events
        pace.told.append(now)
        await tx.append(untold.conversation_id, event, entry)
        if others:
            tx.put(structs.replace(untold, events=tuple(others)))
            self._waiting[message_id] = pace.next_at(now)

    def _pace(self, message_id: str, now: float) -> _Pace:
        """The message's own; those that are longest unused, or have been calm for a second, are forgotten for it."""
        pace = self._paces.pop(message_id, None) or _Pace()
        self._paces[message_id] = pace
        while len(self._paces) > 1:
            oldest = next(iter(self._paces.values()))
            if len(self._paces) <= _PACES_MAX and (oldest.told and now - oldest.told[-1] < _SECOND):
                break
            self._paces.popitem(last=False)
        return pace
