"""The live side: who is connected, in which rooms, and what each socket still has to be sent.

A room is a conversation as far as somebody is connected to it. What the store commits arrives here in order; each event's
frame is built once and the same bytes go to every outbox, those of one commit joined. An outbox over its cap is cut with
4408, never the room held up: the device resumes from its cursor. A socket is in a room from the moment it has caught up
with the log (`Seat.go_live`), so it gets no event twice and misses none. The hub knows no store, no rights and no HTTP.
"""

import random
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from config import limits
from gearlink import protocol
from gearlink.accounts import Actor
from gearlink.broker import Signal, Typing
from gearlink.clock import Clock
from gearlink.errors import NOT_AUTHENTICATED, RESTARTING, SLOW_READER, TOO_MANY_CONNECTIONS, Entry, Refusal
from gearlink.journal import Metrics
from gearlink.outbox import Flusher, Outbox
from gearlink.overview import fresh_view
from gearlink.personal import personal_frame
from gearlink.presence import Presence
from gearlink.streams import GuestStream
from gearlink.timeline import delivered_frame, event_frame, read_frame
from storage.events import Letter, MemberLeft, Message, Said
from storage.notices import (
    AccountEnded,
    Admitted,
    Appended,
    ConversationDeleted,
    Delivered,
    DeviceAdded,
    DeviceCounts,
    DeviceRemoved,
    IdentityChanged,
    KeysLow,
    Mark,
    Personal,
    Read,
    RosterChanged,
    SessionEnded,
)
from storage.records import LogEntry

_RETURN_SPREAD_MS_MAX = 10_000  # after a restart, the sign-ins of many come this far apart
_NEVER = sys.maxsize  # a sequence number that no event has
_SWEEP_SECONDS = 1.0
_CROWDED_SECONDS = 10.0  # until somebody with too many sockets may look whether one has gone
_WEBSOCKET_PING = b"\x89\x00"  # RFC 6455 §5.5.2, without payload


@dataclass(slots=True, eq=False)
class Session:
    """One authenticated socket. `ending` is why it closes, once that is decided."""

    actor: Actor
    outbox: Outbox
    stream: GuestStream
    seats: "dict[str, Seat]" = field(default_factory=dict)
    ending: Entry | None = None
    pinged_at: float = 0.0

    def say(self, message: protocol.AnyServerFrame) -> None:
        self.outbox.put(protocol.frame(message))

    @property
    def farewell(self) -> Entry | None:
        """Why the outbox was closed: `slow-reader`, or what `end` was told; None if the peer left by itself."""
        return SLOW_READER if self.outbox.overflowed else self.ending

    def end(self, entry: Entry, *, retry_after_ms: int = 0, linger: bool = False) -> None:
        """Says goodbye and closes with the entry's close code once what waits is sent.

        No more frames are read. With `linger` the outbox stays open for the answers to those that were.
        """
        if self.ending is None:
            self.ending = entry
            self.say(protocol.Goodbye(reason=entry.code, retry_after_ms=retry_after_ms))
        if not linger:
            self.outbox.close()


@dataclass(slots=True, eq=False)
class Seat:
    """A session's place in a room. Not live, it gets nothing: it is still reading the log."""

    session: Session
    room: "Room"
    live: bool = False
    horizon: int = 0  # messages up to this one were before the member's time

    def go_live(self, position: int) -> bool:
        """The session has all events up to `position`. True if that is all there is: from now on it hears the rest.

        No checkpoint lies between this question and the next event, so there is neither a gap nor a repetition.
        """
        self.live = self.room.position <= position
        return self.live


@dataclass(slots=True)
class Room:
    """A conversation with at least one connected member. `position` is the newest event told here, 0 if none yet."""

    conversation_id: str
    seats: set[Seat] = field(default_factory=set)
    position: int = 0
    typing: dict[str, float] = field(default_factory=dict)  # user: until when

    def tell(self, data: bytes, *, but_user_id: str = "") -> int:
        """`data` to every live seat; returns to how many."""
        told = 0
        for seat in self.seats:
            if seat.live and seat.session.actor.user_id != but_user_id:
                seat.session.outbox.put(data)
                told += 1
        return told


class _Told(NamedTuple):
    """An event with the frame that most hear, and the user and device that said it: "" if nobody did."""

    appended: Appended
    frame: bytes
    user_id: str
    device_id: str


def _said_by(entry: LogEntry) -> tuple[str, str]:
    event = entry.event
    if isinstance(event, Message):  # asked first: most are, and to be one exactly is told faster
        return event.actor_id, event.device_id
    return (event.actor_id, event.device_id) if isinstance(event, Said) else ("", "")


class Hub:
    """All sessions of this process. Everything but `sweep` is synchronous: between two checkpoints nobody interferes."""

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        presence: Presence,
        *,
        heartbeat_seconds: float,
        connections_per_user: int,
    ) -> None:
        self._clock, self._metrics, self._presence = clock, metrics, presence
        self.heartbeat_seconds = heartbeat_seconds
        self.connections_per_user = connections_per_user
        self.draining = False
        self.flusher = Flusher()
        self._waiting: set[trio.CancelScope] = set()  # of sockets that have not said who they are
        self._users: dict[str, set[Session]] = {}
        self._rooms: dict[str, Room] = {}
        self._sent = metrics.websocket_sent

    # --- coming and going --------------------------------------------------------------------------------------------

    @contextmanager
    def vestibule(self, waiting: trio.CancelScope) -> Iterator[None]:
        """Where a socket stands until it has said who it is; `waiting` is cancelled when the server drains."""
        self._waiting.add(waiting)
        try:
            yield
        finally:
            self._waiting.discard(waiting)

    def enter(self, session: Session) -> None:
        """Raises Refusal `too-many-connections`, `restarting`."""
        if self.draining:
            raise Refusal(RESTARTING)
        sessions = self._users.setdefault(session.actor.user_id, set())
        if self.connections_per_user and len(sessions) >= self.connections_per_user:
            raise Refusal(TOO_MANY_CONNECTIONS, retry_after_seconds=_CROWDED_SECONDS)
        sessions.add(session)
        if len(sessions) == 1:
            self._presence.came(session.actor.user_id)
        self._metrics.websocket_connections.inc()

    def leave(self, session: Session) -> None:
        """Forgets the session: its seats are free. If it was the user's last one they are gone, and so is their typing."""
        sessions = self._users.get(session.actor.user_id, set())
        if session in sessions:
            sessions.discard(session)
            self._presence.forget(session)
            self._metrics.websocket_connections.dec()
            if not sessions:
                self._presence.left(session.actor.user_id)
        if not sessions:
            self._users.pop(session.actor.user_id, None)
        for conversation_id in list(session.seats):
            if not sessions:
                self._tell_typing(Typing(conversation_id, session.actor.user_id, False))
            self.leave_seat(session, conversation_id)

    def take_seat(self, session: Session, conversation_id: str) -> Seat:
        """A seat that is not live yet; the same one if the session has one."""
        if (seat := session.seats.get(conversation_id)) is None:
            room = self._rooms.setdefault(conversation_id, Room(conversation_id))
            seat = session.seats[conversation_id] = Seat(session, room)
            room.seats.add(seat)
        return seat

    def leave_seat(self, session: Session, conversation_id: str) -> None:
        """Gives back the session's seat there, if it has one."""
        seat = session.seats.pop(conversation_id, None)
        if seat is not None:
            seat.live = False
            seat.room.seats.discard(seat)
            if not seat.room.seats:
                self._rooms.pop(conversation_id, None)

    @property
    def session_count(self) -> int:
        return sum(len(sessions) for sessions in self._users.values())

    def say_goodbye(self) -> None:
        """Tells everybody `session:goodbye`, each with another time to come back. Nobody new comes in."""
        self.draining = True
        for waiting in self._waiting:
            waiting.cancel(reason="the server drains")
        sessions = self._everybody()
        spread_ms = min(_RETURN_SPREAD_MS_MAX, 100 + len(sessions))
        for session in sessions:
            session.end(RESTARTING, retry_after_ms=500 + random.randrange(spread_ms), linger=True)

    def close_all(self) -> None:
        """Closes every socket, with 1012 unless it ends for another reason, once what waits is sent."""
        for session in self._everybody():
            session.end(RESTARTING)

    def _everybody(self) -> list[Session]:
        return [session for sessions in self._users.values() for session in sessions]

    # --- telling -----------------------------------------------------------------------------------------------------

    def hear(self, signals: Sequence[Signal]) -> None:
        """What a commit or a socket announced, in order."""
        entries: dict[str, list[Appended]] = {}
        for signal in signals:
            if isinstance(signal, Appended):
                if signal.entry.conversation_id in self._rooms:
                    entries.setdefault(signal.entry.conversation_id, []).append(signal)
                if isinstance(signal.entry.event, MemberLeft):  # told like the others, then out
                    self._tell_entries(entries)
                    entries = {}
                    self._dismiss(signal.entry.conversation_id, [signal.entry.event.user_id])
                continue
            self._tell_entries(entries)
            entries = {}
            self._hear_other(signal)
        self._tell_entries(entries)
        self.flusher.flush()

    def _hear_other(self, signal: Signal) -> None:
        match signal:
            case Admitted():
                self._admit(signal)
            case Delivered(conversation_id, marks):
                self._tell_marks(
                    conversation_id,
                    [(mark, protocol.frame(delivered_frame(conversation_id, mark))) for mark in marks],
                    to_own_devices=False,
                )
            case Read(conversation_id, marks, kept):
                self._tell_marks(
                    conversation_id,
                    [(mark, protocol.frame(read_frame(conversation_id, mark))) for mark in marks],
                    to_own_devices=True,
                )
                for mark in kept:
                    self._tell_reader(conversation_id, mark)
            case Personal(user_ids, subject, gone, but_device_id):
                frame = protocol.frame(personal_frame(subject, gone=gone))
                self._tell_users(user_ids, frame, but_device_id=but_device_id)
            case AccountEnded(user_id):
                for session in list(self._users.get(user_id, ())):
                    session.end(NOT_AUTHENTICATED)
            case Typing():
                self._tell_typing(signal)
            case ConversationDeleted(conversation_id, member_ids):
                frame = protocol.frame(protocol.ConversationDeleted(conversation_id=conversation_id))
                self._tell_users(member_ids, frame)
                self._dismiss(conversation_id, member_ids)
            case SessionEnded(user_id, device_id, live_session_id):
                for session in list(self._users.get(user_id, ())):
                    if session.actor.device_id == device_id and session.actor.session_id != live_session_id:
                        session.end(NOT_AUTHENTICATED)
            case DeviceAdded(user_id, device_id):
                self._tell_users([user_id], protocol.frame(protocol.DeviceAdded(device_id=device_id, user_id=user_id)))
            case DeviceRemoved(user_id, device_id):
                frame = protocol.frame(protocol.DeviceRemoved(device_id=device_id, user_id=user_id))
                self._tell_users([user_id], frame)
            case KeysLow(user_id, device_id, remaining):
                for session in self._users.get(user_id, ()):
                    if session.actor.device_id == device_id:
                        session.say(protocol.KeysLow(one_time_remaining=remaining))
                        self._sent.inc()
            case IdentityChanged(user_id, device_id, conversation_ids):
                frame = protocol.frame(protocol.IdentityChanged(user_id=user_id, device_id=device_id))
                told = self._sessions_in(conversation_ids) | self._users.get(user_id, set())
                self._tell_sessions(frame, [each for each in told if each.actor.device_id != device_id])
            case DeviceCounts(user_id, device_id, counts, conversation_ids):
                kind = protocol.DeviceAdded if counts else protocol.DeviceRemoved
                others = self._sessions_in(conversation_ids) - self._users.get(user_id, set())
                self._tell_sessions(protocol.frame(kind(device_id=device_id, user_id=user_id)), others)
            case RosterChanged(conversation_id, version):
                if room := self._rooms.get(conversation_id):
                    news = protocol.RosterChanged(conversation_id=conversation_id, version=version)
                    self._sent.inc(room.tell(protocol.frame(news)))

    def _sessions_in(self, conversation_ids: Iterable[str]) -> set[Session]:
        """Each session once, however many of these conversations it is in."""
        return {
            seat.session
            for conversation_id in conversation_ids
            if (room := self._rooms.get(conversation_id))
            for seat in room.seats
        }

    def _tell_sessions(self, frame: bytes, sessions: Collection[Session]) -> None:
        for session in sessions:
            session.outbox.put(frame)
        self._sent.inc(len(sessions))

    def _tell_users(self, user_ids: Iterable[str], frame: bytes, *, but_device_id: str = "") -> None:
        told = 0
        for user_id in user_ids:
            for session in self._users.get(user_id, ()):
                if session.actor.device_id != but_device_id:
                    session.outbox.put(frame)
                    told += 1
        self._sent.inc(told)

    def _tell_entries(self, entries: dict[str, list[Appended]]) -> None:
        now = self._clock.now()
        for conversation_id, found in entries.items():
            room = self._rooms.get(conversation_id)
            if room is None:
                continue
            room.position = found[-1].entry.sequence
            self._tell_room(room, found)
            for each in found:
                self._metrics.message_delivery_latency.observe(max(0, now - each.entry.event.at) / 1000)

    def _tell_room(self, room: Room, entries: list[Appended]) -> None:
        """Everybody hears the same joined bytes; only senders and their other devices need frames picked for them, and
        devices that an envelope is for."""
        told_to_all = [
            _Told(each, protocol.frame(event_frame(each.entry, subject=each.subject)), *_said_by(each.entry))
            for each in entries
        ]
        joined = b"".join([each.frame for each in told_to_all])
        senders = {each.user_id for each in told_to_all}
        oldest = min((each.subject.sequence for each in entries if each.subject is not None), default=_NEVER)
        letters = {
            (each.entry.sequence, letter.device_id): letter
            for each in entries
            if each.letters
            for letter in each.letters
        }
        addressed = {device_id for _sequence, device_id in letters}
        told = 0
        for seat in room.seats:
            if not seat.live:
                continue
            actor = seat.session.actor
            if seat.horizon >= oldest or actor.user_id in senders or actor.device_id in addressed:
                told += self._tell_picked(seat, told_to_all, letters)
            else:
                seat.session.outbox.put(joined)
                told += len(entries)
        self._sent.inc(told)

    def _tell_picked(self, seat: Seat, told_to_all: "list[_Told]", letters: dict[tuple[int, str], Letter]) -> int:
        """To who sent some of it, with the `tempId`s; to who came too late to see what some of it is about, without that;
        to a device that some of it is for alone, with that."""
        actor = seat.session.actor
        picked = []
        for each, frame, user_id, device_id in told_to_all:
            is_own, subject = user_id == actor.user_id, each.subject
            if is_own and device_id == actor.device_id:
                continue
            letter = letters.get((each.entry.sequence, actor.device_id)) if letters else None
            too_late = subject is not None and subject.sequence <= seat.horizon
            if is_own or too_late or letter is not None:
                seen = None if too_late else subject
                picked.append(protocol.frame(event_frame(each.entry, actor.user_id, subject=seen, letter=letter)))
            else:
                picked.append(frame)
        seat.session.outbox.put(b"".join(picked))
        return len(picked)

    def _admit(self, admitted: Admitted) -> None:
        conversation_id = admitted.conversation.conversation_id
        for member in admitted.newcomers:
            sessions = self._users.get(member.user_id)
            if not sessions:
                continue
            frame = protocol.frame(protocol.ConversationCreated(conversation=fresh_view(admitted, member)))
            for session in sessions:
                seat = self.take_seat(session, conversation_id)
                if not seat.live:  # else its resume has found the conversation and introduced it already
                    session.outbox.put(frame)
                seat.room.position = max(seat.room.position, admitted.sequence)
                seat.live, seat.horizon = True, member.horizon

    def _dismiss(self, conversation_id: str, user_ids: Iterable[str]) -> None:
        for user_id in user_ids:
            for session in self._users.get(user_id, ()):
                self.leave_seat(session, conversation_id)

    def _tell_marks(self, conversation_id: str, frames: Sequence[tuple[Mark, bytes]], *, to_own_devices: bool) -> None:
        """Marks of one moment, joined, to everybody whose own they are not; or to every device but the one that moved."""
        room = self._rooms.get(conversation_id)
        if room is None:
            return
        joined = b"".join(frame for _mark, frame in frames)
        movers = {mark.user_id for mark, _frame in frames}
        told = 0
        for seat in room.seats:
            if not seat.live:
                continue
            actor = seat.session.actor
            if actor.user_id not in movers:
                seat.session.outbox.put(joined)
                told += len(frames)
                continue
            rest = [
                frame
                for mark, frame in frames
                if mark.user_id != actor.user_id or (to_own_devices and mark.device_id != actor.device_id)
            ]
            seat.session.outbox.put(b"".join(rest))
            told += len(rest)
        self._sent.inc(told)

    def _tell_reader(self, conversation_id: str, mark: Mark) -> None:
        """A read mark for nobody but the reader's other devices: those that have caught up, the rest will find it."""
        frame, told = protocol.frame(read_frame(conversation_id, mark)), 0
        for session in self._users.get(mark.user_id, ()):
            seat = session.seats.get(conversation_id)
            if seat is not None and seat.live and session.actor.device_id != mark.device_id:
                session.outbox.put(frame)
                told += 1
        self._sent.inc(told)

    # --- typing ------------------------------------------------------------------------------------------------------

    def _tell_typing(self, signal: Typing) -> None:
        room = self._rooms.get(signal.conversation_id)
        if room is None:
            return
        if signal.active:
            started = signal.user_id not in room.typing
            room.typing[signal.user_id] = trio.current_time() + limits.TYPING_SECONDS_MAX - _SWEEP_SECONDS / 2
            if not started:
                return  # they know: only the end moves
        elif room.typing.pop(signal.user_id, None) is None:
            return
        frame = protocol.frame(
            protocol.Typing(conversation_id=signal.conversation_id, user_id=signal.user_id, active=signal.active)
        )
        self._sent.inc(room.tell(frame, but_user_id=signal.user_id))

    # --- time --------------------------------------------------------------------------------------------------------

    async def sweep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Once a second: ends sockets whose token ran out, pings silent ones, drops dead ones, ends old typing."""
        task_status.started()
        while True:
            await trio.sleep(_SWEEP_SECONDS)
            now, wall = trio.current_time(), self._clock.now()
            for session in self._everybody():
                self._sweep_session(session, now, wall)
            for room in list(self._rooms.values()):
                for user_id, until in list(room.typing.items()):
                    if until <= now:
                        self._tell_typing(Typing(room.conversation_id, user_id, False))

    def _sweep_session(self, session: Session, now: float, wall: int) -> None:
        if session.actor.expires_at <= wall:
            session.end(NOT_AUTHENTICATED)
        silent = now - session.stream.received_at
        if silent >= 2 * self.heartbeat_seconds:  # half-open: nobody is there to say goodbye to
            session.stream.abort()
        elif silent >= self.heartbeat_seconds and now - session.pinged_at >= self.heartbeat_seconds:
            session.pinged_at = now
            session.outbox.put(_WEBSOCKET_PING)
