"""Sync: what a socket would have been told, for clients without one, in one call that may wait for something to happen.

An answer is made by the catch-up that sockets have, with a listener that gathers. A call that waits watches the
conversations from before it reads them, so nothing falls between reading and waiting; what happens then says where to read
again, and the log says what. Whatever has a number is told by the cursors that the caller gives; what has none (marks,
drafts, one's own settings) is remembered for each device for a while, so that a repetition wakes nobody. It is no socket:
it neither counts as one nor as presence. It knows nothing of HTTP.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import trio
from msgspec import UNSET

from config import limits
from gearlink import protocol
from gearlink.accounts import Actor
from gearlink.broker import Signal
from gearlink.calls import SyncAnswer, SyncForm
from gearlink.catchup import CatchUp, memberships, safely_before
from gearlink.clock import Milliseconds
from gearlink.doorway import Doorway
from gearlink.errors import NOT_AUTHENTICATED, RATE_LIMITED, Refusal
from gearlink.views import ConversationView
from storage.notices import (
    AccountEnded,
    Admitted,
    Appended,
    ConversationDeleted,
    Delivered,
    Personal,
    Read,
    SessionEnded,
)
from storage.records import Draft, Hidden, Member
from storage.store import StoreError

_PAGE_EVENTS = 50  # read at once: so many of the largest messages may come on top of SYNC_ANSWER_BYTES_MAX
_DEVICES_MAX = 1000  # of which it is remembered what they were told
_MOVED_MAX = 100_000  # conversations and users of which it is remembered when something last moved there
_REMINDERS_MAX = 2000  # that are remembered of one device; with more of them, some are told twice
_EVERYTHING = ""  # in place of the id of a conversation: what belongs to none
K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _Told:
    """What a device was told that has no number: everything up to `since`, and of what came later these."""

    since: Milliseconds
    reminders: frozenset[int] = frozenset()


@dataclass(slots=True, eq=False)
class _Watch:
    """A call that may wait. `stirred` are the conversations in which something happened since it came to them."""

    actor: Actor
    rooms: set[str] = field(default_factory=set)
    stirred: set[str] = field(default_factory=set)
    is_ended: bool = False
    changed: trio.Event = field(default_factory=trio.Event)

    def stir(self, conversation_id: str) -> None:
        self.stirred.add(conversation_id)
        self.changed.set()

    def take(self) -> set[str]:
        """What was stirred since the last time. Raises Refusal `not-authenticated` if the session has ended."""
        if self.is_ended:
            raise Refusal(NOT_AUTHENTICATED)
        stirred, self.stirred, self.changed = self.stirred, set(), trio.Event()
        return stirred


class Sync:
    """The door for clients without a socket. It remembers a bounded number of devices, conversations and users."""

    def __init__(self, doorway: Doorway) -> None:
        self._doorway = doorway
        self._told: OrderedDict[str, _Told] = OrderedDict()  # by device
        self._moved: OrderedDict[str, Milliseconds] = OrderedDict()  # by conversation or user
        self._all_moved = doorway.clock.now()  # of what is not in there
        self._users: dict[str, set[_Watch]] = {}
        self._rooms: dict[str, set[_Watch]] = {}
        self._waiting: dict[str, int] = {}  # calls by user
        doorway.broker.subscribe(self.hear)

    async def answer(self, actor: Actor, form: SyncForm) -> SyncAnswer:
        """What the device of `actor` has missed. With `wait_seconds`, if that is nothing, what happens next.

        Raises Refusal `rate-limited` if too many calls of the user wait, `not-authenticated` if the session ends meanwhile;
        StoreError where the store cannot be read.
        """
        started = self._doorway.clock.now()
        with self._watching(actor) as watch:
            told = self._told.get(actor.device_id)
            is_of_later = told is not None and told.since > started  # the clock was put back
            if is_of_later or form.epoch not in (None, self._doorway.store.epoch):
                told = _Told(0)
            if told is None:
                connected_at = await self._doorway.domain.accounts.connected_at(actor)
                told = _Told(safely_before(connected_at) if 0 < connected_at <= started else 0)
            gathering = _Gathering(self._doorway, self, watch, form, told)
            await gathering.everything()
            if form.wait_seconds and gathering.is_empty:
                with self._seat_to_wait(actor.user_id):
                    await self._wait(watch, gathering, form.wait_seconds)
        if gathering.is_whole:
            told = _Told(max(told.since, safely_before(started)), frozenset(gathering.reminders))
            with suppress(StoreError):  # reading goes on without this, also where there is no room
                await self._doorway.domain.accounts.seen(actor)
        else:
            told = _Told(told.since, told.reminders | gathering.reminders)
        if len(told.reminders) > _REMINDERS_MAX:
            told.reminders = frozenset()
        _remember(self._told, actor.device_id, told, _DEVICES_MAX)
        return gathering.answer()

    async def _wait(self, watch: _Watch, gathering: "_Gathering", seconds: float) -> None:
        """Until there is something to tell, the time is over, or the server drains."""
        hub, deadline = self._doorway.hub, trio.current_time() + seconds
        while gathering.is_empty and not hub.draining:
            with trio.CancelScope(deadline=deadline) as waiting, hub.vestibule(waiting):
                await watch.changed.wait()
            if waiting.cancelled_caught:
                return
            await gathering.stirred(watch.take())

    # --- who waits ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _watching(self, actor: Actor) -> Iterator[_Watch]:
        watch = _Watch(actor)
        _put(self._users, actor.user_id, watch)
        try:
            yield watch
        finally:
            _take_out(self._users, actor.user_id, watch)
            for conversation_id in watch.rooms:
                _take_out(self._rooms, conversation_id, watch)

    @contextmanager
    def _seat_to_wait(self, user_id: str) -> Iterator[None]:
        if self._waiting.get(user_id, 0) >= limits.SYNC_WAITING_PER_USER_MAX:
            most = limits.SYNC_WAITING_PER_USER_MAX
            headers = {"RateLimit-Policy": f'"waiting-calls";q={most};w=1', "RateLimit": '"waiting-calls";r=0;t=1'}
            detail = "too many calls of yours are waiting already"
            raise Refusal(RATE_LIMITED, detail, retry_after_seconds=1, headers=headers)
        self._waiting[user_id] = self._waiting.get(user_id, 0) + 1
        try:
            yield
        finally:
            self._waiting[user_id] -= 1
            if not self._waiting[user_id]:
                del self._waiting[user_id]

    def watch_room(self, watch: _Watch, conversation_id: str) -> None:
        """From now on `watch` is stirred by what happens there."""
        if conversation_id not in watch.rooms:
            watch.rooms.add(conversation_id)
            _put(self._rooms, conversation_id, watch)

    # --- what happens ------------------------------------------------------------------------------------------------

    def hear(self, signals: Sequence[Signal]) -> None:
        """What a commit announced: notes where something moved, and wakes those who wait for it."""
        for signal in signals:
            match signal:
                case Appended(entry):
                    self._stir_room(entry.conversation_id)
                case Delivered(conversation_id) | Read(conversation_id):
                    self._move(conversation_id)
                    self._stir_room(conversation_id)
                case Admitted(conversation, newcomers):
                    self._stir_users((each.user_id for each in newcomers), conversation.conversation_id)
                case ConversationDeleted(conversation_id, member_ids):
                    self._stir_users(member_ids, conversation_id)
                case Personal(
                    user_ids, Member(conversation_id=conversation_id) | Hidden(conversation_id=conversation_id)
                ):
                    self._stir_users(user_ids, conversation_id)
                case Personal(user_ids, Draft()):
                    for user_id in user_ids:
                        self._move(user_id)
                    self._stir_users(user_ids, _EVERYTHING)
                case AccountEnded(user_id):
                    self._end(self._users.get(user_id, ()))
                case SessionEnded(user_id, device_id, live_session_id):
                    self._end(
                        watch
                        for watch in self._users.get(user_id, ())
                        if watch.actor.device_id == device_id and watch.actor.session_id != live_session_id
                    )

    def _stir_room(self, conversation_id: str) -> None:
        for watch in self._rooms.get(conversation_id, ()):
            watch.stir(conversation_id)

    def _stir_users(self, user_ids: Iterable[str], conversation_id: str) -> None:
        for user_id in user_ids:
            for watch in self._users.get(user_id, ()):
                watch.stir(conversation_id)

    def _end(self, watches: Iterable[_Watch]) -> None:
        for watch in watches:
            watch.is_ended = True
            watch.changed.set()

    def _move(self, subject_id: str) -> None:
        forgotten = _remember(self._moved, subject_id, self._doorway.clock.now(), _MOVED_MAX)
        self._all_moved = max(self._all_moved, forgotten or 0)

    def is_quiet(self, subject_id: str, since: Milliseconds) -> bool:
        """True if nothing without a number has moved since then: of a conversation the marks, of a user the drafts."""
        return self._moved.get(subject_id, self._all_moved) < since


class _Gathering:
    """One answer in the making: the audience of its `CatchUp`. What it takes is bounded in events, bytes and views."""

    def __init__(self, doorway: Doorway, sync: Sync, watch: _Watch, form: SyncForm, told: _Told) -> None:
        self._doorway, self._sync, self._watch, self._told = doorway, sync, watch, told
        self._named = dict(form.cursors or {})
        self._epoch = form.epoch
        self._catch_up = CatchUp(
            doorway, self, told.since, form.epoch, self._named, lambda subject_id: sync.is_quiet(subject_id, told.since)
        )
        self._cursors: dict[str, int] = {}
        self._events: list[msgspec.Raw] = []
        self._views: dict[str, ConversationView] = {}
        self._room, self._bytes = form.limit, 0
        self._is_more = False
        self.reminders: set[int] = set()

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to tell."""
        return (
            not (self._events or self._views or self._is_more or self._catch_up.reload) and self._catch_up.knows_epoch
        )

    @property
    def is_whole(self) -> bool:
        """True if the device has been told everything that there was."""
        return not self._is_more

    @property
    def _is_full(self) -> bool:
        return (
            self._room <= 0
            or self._bytes >= limits.SYNC_ANSWER_BYTES_MAX
            or len(self._views) >= limits.SYNC_VIEWS_MAX
        )  # fmt: skip

    async def everything(self) -> None:
        """Each conversation of the user, as far as there is room, and what they are no longer part of."""
        store, user_id = self._doorway.store, self.actor.user_id
        departures = await self._catch_up.departures(user_id)
        found = await memberships(store, user_id)
        for conversation_id in found:
            is_named = conversation_id in self._named
            if self._is_full and (self._catch_up.knows_epoch or not is_named):  # a position of another epoch is none
                self._is_more = True
                if is_named:
                    self._cursors[conversation_id] = self._named[conversation_id]
            else:
                await self._conversation(conversation_id)
        for conversation_id in (self._named.keys() | departures) - set(found):
            self._gone(conversation_id)
        if self.is_whole:  # not before a conversation that they belong to
            await self._catch_up.drafts()

    async def stirred(self, conversation_ids: set[str]) -> None:
        """What happened in these since they were read."""
        self._catch_up.cursors.update(self._cursors)
        for conversation_id in conversation_ids - {_EVERYTHING}:
            await self._conversation(conversation_id)
        if _EVERYTHING in conversation_ids:
            await self._catch_up.drafts()

    async def _conversation(self, conversation_id: str) -> None:
        if not await self._catch_up.conversation(conversation_id):
            self._gone(conversation_id)

    def _gone(self, conversation_id: str) -> None:
        """Told for as long as the caller names it: there is no number that could say that it was heard."""
        is_named = self._cursors.pop(conversation_id, self._named.get(conversation_id)) is not None
        self._remind(protocol.ConversationDeleted(conversation_id=conversation_id), again=is_named)

    def _gather(self, data: bytes) -> None:
        self._events.append(msgspec.Raw(data))
        self._bytes += len(data)

    def answer(self) -> SyncAnswer:
        """What was gathered."""
        reload = self._catch_up.reload
        return SyncAnswer(
            epoch=self._doorway.store.epoch,
            cursors=self._cursors,
            conversations=list(self._views.values()),
            events=self._events,
            complete=not (self._is_more or reload),
            reload=reload or UNSET,
        )

    # --- as an audience ----------------------------------------------------------------------------------------------

    @property
    def actor(self) -> Actor:
        return self._watch.actor

    def come_to(self, conversation_id: str) -> bool:
        self._sync.watch_room(self._watch, conversation_id)
        return True

    def leave(self, conversation_id: str) -> None:
        """It is watched until the call ends, which is soon."""

    def stays(self, _conversation_id: str) -> bool:
        return True

    def room(self) -> int:
        return 0 if self._bytes >= limits.SYNC_ANSWER_BYTES_MAX else min(self._room, _PAGE_EVENTS)

    async def say(self, frame: protocol.AnyServerFrame) -> None:
        self._gather(protocol.encode(frame))
        self._room -= 1

    async def remind(self, frame: protocol.AnyServerFrame, *, again: bool = False) -> None:
        self._remind(frame, again=again)

    def _remind(self, frame: protocol.AnyServerFrame, *, again: bool) -> None:
        data = protocol.encode(frame)
        reminder = hash(data)
        if reminder not in self.reminders and (again or reminder not in self._told.reminders):
            self._gather(data)
        self.reminders.add(reminder)

    async def introduce(self, conversation: ConversationView, *, again: bool) -> None:
        if again:  # among the events, because it has to come behind the one that says that the old one is gone
            await self.say(protocol.ConversationCreated(conversation=conversation))
        self._views[conversation.id] = conversation
        self._bytes += len(protocol.encode(conversation))

    def wants_view(self, conversation_id: str, *, has_events: bool) -> bool:
        # Who has named as many as there may be cannot name this one: that they do not is no sign that they lack it.
        if conversation_id in self._catch_up.reload:
            return True
        return has_events or (conversation_id not in self._named and len(self._named) < limits.CURSORS_MAX)

    async def taken(self) -> None:
        """It is at once."""

    def arrive(self, member: Member, position: int, end: int) -> bool:
        self._cursors[member.conversation_id] = position
        self._is_more |= position < end
        return True


def _remember(memory: OrderedDict[K, V], key: K, value: V, entries_max: int) -> V | None:
    """Puts it in as the newest; returns what was forgotten for it, if anything had to be."""
    memory[key] = value
    memory.move_to_end(key)
    return memory.popitem(last=False)[1] if len(memory) > entries_max else None


def _put(places: dict[str, set[_Watch]], key: str, watch: _Watch) -> None:
    places.setdefault(key, set()).add(watch)


def _take_out(places: dict[str, set[_Watch]], key: str, watch: _Watch) -> None:
    watches = places[key]
    watches.discard(watch)
    if not watches:
        del places[key]
