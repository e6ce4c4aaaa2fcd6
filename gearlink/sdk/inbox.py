"""What the server says, put in order for one caller: no event twice, no number left out, never more than fits.

Two positions of each conversation matter: `received`, up to which events are here or were sent by this device, and
`taken`, up to which the caller has them: from there a reconnect and a new process resume. An event counts as taken when
the caller asks for the next one. A hole is never passed on: it is filled by a resume, and if the server cannot fill it,
the caller is told to reload that conversation. It does no I/O.

While the buffer is full the socket is not read, except if messages wait for their answers, which come on the same socket:
then events are put aside, to be resumed when there is room, and short-lived ones (typing, receipts) are dropped. An event
of a type that is newer than this SDK takes its number and is shown to nobody.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import trio

from config.limits import CURSORS_MAX
from gearlink import protocol
from gearlink.protocol import AnyServerFrame
from gearlink.sdk.connection import UnknownEvent
from gearlink.sdk.failures import Refused
from gearlink.sdk.options import Options
from gearlink.sdk.outbox import Marks, Outbox
from gearlink.sdk.state import State
from gearlink.views import MessageView

Event = (
    protocol.MessageNew | protocol.MessageEdited | protocol.MessageDeleted | protocol.MessageExpired
    | protocol.MessagePinned | protocol.MessageUnpinned | protocol.ReactionAdded | protocol.ReactionRemoved
    | protocol.PollChanged | protocol.MessageDelivered | protocol.MessageRead | protocol.Typing | protocol.Presence
    | protocol.ConversationCreated | protocol.ConversationUpdated | protocol.ConversationPreferences
    | protocol.ConversationDeleted | protocol.MemberJoined | protocol.MemberChanged | protocol.MemberLeft
    | protocol.JoinRequested | protocol.JoinSettled | protocol.ThreadWasRead | protocol.DraftChanged
    | protocol.ScheduledChanged | protocol.ScheduledRemoved | protocol.ContactChanged | protocol.ContactRemoved
    | protocol.BlockAdded | protocol.BlockRemoved | protocol.PrivacyChanged | protocol.DeviceAdded
    | protocol.DeviceRemoved | protocol.KeysLow | protocol.IdentityChanged | protocol.RosterChanged
    | protocol.SyncDone
)  # fmt: skip
Numbered = (
    protocol.MessageNew | protocol.MessageEdited | protocol.MessageDeleted | protocol.MessageExpired
    | protocol.MessagePinned | protocol.MessageUnpinned | protocol.ReactionAdded | protocol.ReactionRemoved
    | protocol.PollChanged | protocol.ConversationUpdated | protocol.MemberJoined | protocol.MemberChanged
    | protocol.MemberLeft | UnknownEvent
)  # fmt: skip
"""What has a number in a log. A deletion has one only if it is for everyone: see `number_of`."""
RECEIPTS_REMEMBERED_MAX = 10_000
OWN_REMEMBERED_MAX = 10_000  # of a conversation; one that was forgotten may come back as an event


@dataclass(slots=True)
class Position:
    """`own`: numbers above `taken` that this device's messages have. `held`: events above a hole. `resumed_at`: where a
    hole was when a resume was asked for."""

    received: int | None = None
    taken: int | None = None
    own: dict[int, None] = field(default_factory=dict)
    held: dict[int, Numbered] = field(default_factory=dict)
    resumed_at: int | None = None
    announced: bool = False

    @property
    def has_hole(self) -> bool:
        """Whether something above `received` is known. Of an unknown beginning nobody can say, so it counts as one."""
        if self.received is None:
            return bool(self.own)
        return bool(self.held) or (bool(self.own) and next(reversed(self.own)) > self.received)


@dataclass(frozen=True, slots=True)
class Item:
    """An event on its way to the caller. `heads`: where conversations begin anew once it is taken."""

    event: Event | UnknownEvent
    epoch: str
    conversation_id: str | None = None
    sequence: int | None = None
    heads: dict[str, int] | None = None


class Inbox:
    """The buffer between one socket after the other and one caller."""

    def __init__(
        self, state: State, options: Options, outbox: Outbox, marks: Marks, on_change: Callable[[], None]
    ) -> None:
        self._state = state
        self._options = options
        self._outbox = outbox
        self._marks = marks
        self._on_change = on_change
        self._items: deque[Item] = deque()
        self._handed: Item | None = None
        self._positions: dict[str, Position] = {}
        self._gaps: dict[str, float] = {}  # conversations with a hole, and since when on this socket
        self._identity: tuple[str | None, str | None] = (None, None)
        self._receipts: OrderedDict[tuple[str, str, str], int] = OrderedDict()
        self._lot = trio.lowlevel.ParkingLot()
        self._asking = False
        self.epoch = ""
        self.open = False
        self.failure: Refused | None = None
        self.lagging = False
        self.is_held = False  # what was handed over last is not to be settled by leaving

    # --- towards the socket -------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Starts from the saved state, unless what is here is of the same device and newer."""
        state = self._state
        if self._identity != (state.user_id, state.device_id):
            self._identity = (state.user_id, state.device_id)
            self._positions = {key: Position(at, at) for key, at in state.cursors.items()}
            self._items.clear()
            self._handed = None
            self._receipts.clear()
            self._marks.forget()
            self.epoch = state.epoch or ""

    @property
    def full(self) -> bool:
        return len(self._items) >= self._options.events_buffered_max

    @property
    def _crammed(self) -> bool:
        """Twice full, with what has no number and is not told again: there is an end to that, too."""
        return len(self._items) >= 2 * self._options.events_buffered_max

    @property
    def resume_due(self) -> bool:
        """Events were put aside, and there is room for them again."""
        return self.lagging and len(self._items) <= self._options.events_buffered_max // 2

    def cursors(self) -> dict[str, int]:
        """Where a resume starts: behind what the caller has taken, because the server counts a cursor as delivered. What
        is still in the buffer comes again, and is dropped. The protocol takes so many cursors and no more: those of
        the conversations that something happened in last; the others resume from what this device acknowledged."""
        known = {key: at.taken for key, at in self._positions.items() if at.taken is not None}
        return dict(list(known.items())[-CURSORS_MAX:])

    def begin(self, epoch: str) -> None:
        """A new socket was greeted in `epoch`. Positions of another epoch mean nothing in this one."""
        self.lagging = False
        self._gaps.clear()
        if epoch != self.epoch:
            if not self.epoch:
                self._state.epoch = epoch
                self._on_change()
            self.epoch = epoch
            self._positions.clear()
            self._receipts.clear()
            self._marks.forget()
        for position in self._positions.values():
            position.held.clear()

    def accept(self, frame: Event | UnknownEvent) -> None:
        """One event of the socket, except the end of a replay."""
        if isinstance(frame, Numbered) and (number := number_of(frame)) is not None:
            self._accept_numbered(frame, *number)
        elif isinstance(frame, protocol.Typing):
            if not self.full:
                self._put(Item(frame, self.epoch))
        elif isinstance(frame, protocol.MessageDelivered | protocol.MessageRead):
            self._accept_receipt(frame)
        elif isinstance(frame, protocol.ConversationCreated):
            position = self._position(frame.conversation.id)
            if self.full or self.lagging:
                self.lagging = True  # a resume introduces what this device never took anything of
            elif not position.announced:
                position.announced = True
                self._put(Item(frame, self.epoch))
        elif isinstance(frame, protocol.ConversationDeleted):
            self._forget(frame.conversation_id)
            self._put(Item(frame, self.epoch, frame.conversation_id))
        elif self.full and (isinstance(frame, protocol.Presence) or self._crammed):
            self.lagging = True  # the next socket is told how things are then
        elif not isinstance(frame, UnknownEvent):
            self._put(Item(frame, self.epoch))

    def synced(self, frame: protocol.SyncDone, heads: dict[str, int]) -> None:
        """The replay is over; `heads` are the conversations that the caller has to reload, and up to where."""
        for conversation_id, head in heads.items():
            self._jump(conversation_id, self._position(conversation_id), head)
        self._put(Item(frame, self.epoch, heads=heads))

    def received(self, conversation_id: str) -> int | None:
        """Up to where events of it are here; None if there was none yet."""
        position = self._positions.get(conversation_id)
        return None if position is None else position.received

    def own(self, conversation_id: str, sequence: int) -> None:
        """A message of this device has this number: it is not an event for the caller, and it is no hole."""
        position = self._position(conversation_id)
        if position.received is None and sequence == 1:  # nothing can have come before it
            self._found(conversation_id, position, 0)
        if sequence > (position.taken or 0):
            position.own[sequence] = None
            if len(position.own) > OWN_REMEMBERED_MAX:
                del position.own[next(iter(position.own))]
        self._advance(conversation_id, position)
        self._settle_own(conversation_id, position)

    def gap_deadline(self) -> float | None:
        """When a resume is due because a hole stays open; None if there is none. A message of this device that is not
        answered yet may be the hole, or the event may be on its way behind the answer, so there a while is waited."""
        if self.lagging or not self._gaps:
            return None
        patience = self._options.gap_seconds_max
        return min(
            since + (patience if self._positions[key].own or self._outbox.waits_in(key) else 0.0)
            for key, since in self._gaps.items()
        )

    def give_up_gaps(self) -> None:
        """A resume is about to start: remembers where the holes were, so that one which it does not fill is known."""
        if not self.lagging:
            for conversation_id in self._gaps:
                position = self._positions[conversation_id]
                position.resumed_at = position.received

    async def changed(self) -> None:
        """Waits until something in here, or in the outbox, is different."""
        await self._lot.park()

    def notify(self) -> None:
        self._lot.unpark_all()

    # --- towards the caller -------------------------------------------------------------------------------------------

    async def next(self) -> Event:
        """The next event; the one before counts as taken now. One task at a time may ask. Raises Refused once this
        device is signed out, RuntimeError outside of a connection."""
        if self._asking:
            raise trio.BusyResourceError("another task is waiting for events")
        self.settle()
        self._asking = True
        try:
            while True:
                while not self._items:
                    if self.failure is not None:
                        raise self.failure
                    if not self.open:
                        raise RuntimeError("events come inside of `async with client.connect()`")
                    await self._lot.park()
                self._handed = self._items.popleft()
                self.notify()
                if not isinstance(event := self._handed.event, UnknownEvent):
                    return event
                self.settle()  # nobody but us can take it
        finally:
            self._asking = False

    def settle(self) -> None:
        """What the caller was handed last counts as taken: it is saved, and the server may be told."""
        item, self._handed = self._handed, None
        if item is None or item.epoch != self.epoch:
            return
        if isinstance(item.event, protocol.SyncDone):
            self._settle_sync(item)
        elif item.conversation_id is None:
            return
        elif item.sequence is not None:
            position = self._positions.get(item.conversation_id)
            if position is not None:
                position.taken = item.sequence
                self._settled(item.conversation_id, item.sequence)
                self._settle_own(item.conversation_id, position)
        if self._ends(item.event) and item.conversation_id not in self._positions:
            self._state.cursors.pop(item.conversation_id or "", None)
            self._on_change()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _accept_numbered(self, frame: Numbered, conversation_id: str, sequence: int) -> None:
        mine = isinstance(frame, protocol.MessageNew) and self._is_own(frame.message)
        position = self._position(conversation_id)
        if mine:
            self.own(conversation_id, sequence)
            return
        if self.full or self.lagging:
            self.lagging = True  # not recorded: the resume brings it again
            return
        if position.received is None:
            self._found(conversation_id, position, sequence - 1)
        assert position.received is not None
        if sequence in position.own:
            self._advance(conversation_id, position)
            self._settle_own(conversation_id, position)
            return
        if sequence <= position.received or sequence in position.held:
            return
        if sequence > position.received + 1:
            if position.resumed_at != position.received:
                if len(position.held) < self._options.held_events_max:
                    position.held[sequence] = frame
                    self._gaps.setdefault(conversation_id, trio.current_time())
                return
            self._tell_reload(conversation_id, position, sequence - 1)
        self._deliver(conversation_id, position, sequence, frame)
        self._advance(conversation_id, position)

    def _found(self, conversation_id: str, position: Position, base: int) -> None:
        """The first of a conversation that was unknown here: its numbers begin after `base`."""
        position.received = position.taken = base
        if self._state.epoch == self.epoch:
            self._state.cursors[conversation_id] = base
            self._on_change()

    def _deliver(self, conversation_id: str, position: Position, sequence: int, frame: Numbered) -> None:
        position.received = sequence
        self._put(Item(frame, self.epoch, conversation_id, sequence))
        if self._ends(frame):
            self._forget(conversation_id)  # its numbers end here, for us

    def _advance(self, conversation_id: str, position: Position) -> None:
        """Goes on over own numbers and held events for as long as there is no hole."""
        while position.received is not None:
            following = position.received + 1
            if (frame := position.held.pop(following, None)) is not None:
                self._deliver(conversation_id, position, following, frame)
            elif following in position.own:
                position.received = following
            else:
                break
        if not position.has_hole:
            self._gaps.pop(conversation_id, None)
        elif not self.lagging and self._positions.get(conversation_id) is position:
            self._gaps.setdefault(conversation_id, trio.current_time())

    def _settle_own(self, conversation_id: str, position: Position) -> None:
        """Own messages right behind what the caller has taken are taken, too."""
        before = position.taken
        while position.taken is not None and position.taken + 1 in position.own:
            position.taken += 1
            del position.own[position.taken]
        if position.taken is not None and position.taken != before:
            self._settled(conversation_id, position.taken)

    def _settled(self, conversation_id: str, sequence: int) -> None:
        if self._state.epoch == self.epoch:
            self._state.cursors.pop(conversation_id, None)  # to the end: what is saved is in order of activity, too
            self._state.cursors[conversation_id] = sequence
            self._on_change()
        self._marks.delivered(conversation_id, sequence, trio.current_time())
        self.notify()

    def _settle_sync(self, item: Item) -> None:
        for conversation_id, head in (item.heads or {}).items():
            position = self._position(conversation_id)
            position.taken = max(position.taken or 0, head)
            position.own = {number: None for number in position.own if number > position.taken}
            self._settled(conversation_id, position.taken)
        if self._state.epoch != item.epoch:  # only now: a process that ended before this must be told again
            self._state.epoch = item.epoch
            self._state.cursors = {key: at.taken for key, at in self._positions.items() if at.taken is not None}
            self._on_change()

    def _tell_reload(self, conversation_id: str, position: Position, head: int) -> None:
        self._jump(conversation_id, position, head)
        notice = protocol.SyncDone(complete=False, reload=[conversation_id])
        self._put(Item(notice, self.epoch, heads={conversation_id: head}))

    def _jump(self, conversation_id: str, position: Position, head: int) -> None:
        position.received = max(position.received or 0, head)
        position.held = {number: frame for number, frame in position.held.items() if number > position.received}
        position.resumed_at = None
        self._advance(conversation_id, position)

    def _forget(self, conversation_id: str) -> None:
        self._positions.pop(conversation_id, None)
        self._gaps.pop(conversation_id, None)

    def _accept_receipt(self, frame: protocol.MessageDelivered | protocol.MessageRead) -> None:
        key = (type(frame).__name__, frame.conversation_id, frame.user_id)
        if frame.sequence_number <= self._receipts.get(key, -1) or self.full:
            return
        self._receipts[key] = frame.sequence_number
        self._receipts.move_to_end(key)
        if len(self._receipts) > RECEIPTS_REMEMBERED_MAX:
            self._receipts.popitem(last=False)
        self._put(Item(frame, self.epoch))

    def _is_own(self, message: MessageView) -> bool:
        """A message of this device whose ack was lost. One that nobody here waits for (its sender was cancelled, or ran
        in another process) is an event like any other."""
        return message.sender_device_id == self._state.device_id and self._outbox.seen(message)

    def _ends(self, event: Event | UnknownEvent) -> bool:
        """Whether this device sees no more of the conversation after it."""
        if isinstance(event, protocol.ConversationDeleted):
            return True
        return isinstance(event, protocol.MemberLeft) and event.user_id == self._state.user_id

    def _position(self, conversation_id: str) -> Position:
        """Of one that something happens in: the last in the order of `_positions`, which is that of their activity."""
        position = self._positions.pop(conversation_id, None) or Position()
        self._positions[conversation_id] = position
        return position

    def _put(self, item: Item) -> None:
        self._items.append(item)
        self.notify()


def number_of(frame: Numbered) -> tuple[str, int] | None:
    """`(conversation_id, sequence)` of an event of the log; None for a deletion from one's own sight alone."""
    if isinstance(frame, protocol.MessageNew):
        return frame.message.conversation_id, frame.message.sequence_number
    if not isinstance(frame.sequence_number, int):
        return None
    return frame.conversation_id, frame.sequence_number


def reloads(frame: AnyServerFrame) -> Iterable[str]:
    """The conversations that `sync:done` could not replay."""
    if isinstance(frame, protocol.SyncDone) and not frame.complete and isinstance(frame.reload, list):
        return frame.reload
    return ()
