"""What this device still has to say: messages until they are answered, and marks until a socket has carried them.

Messages leave in the order in which they were given, and all of them again on every new socket, with the tempId that
they had; whoever waits for one drives nothing and may go at any time. Delivered and read marks are watermarks: only the
highest of each conversation is kept, sent together after a short while, and repeated on the next socket because nothing
answers them. It does no I/O: `next` says what goes now, `wake_at` when to ask again.
"""

from dataclasses import dataclass, field

import msgspec
import trio

from config.limits import CONTENT_BYTES_MAX, TEMP_ID_CHARS_MAX
from gearlink.complaints import split_validation_error
from gearlink.protocol import Ack, ClientFrame, Error, MarkRead, Send, SendAck
from gearlink.sdk.failures import Refused
from gearlink.sdk.options import Backoff, Options
from gearlink.views import MessageView


@dataclass(frozen=True, slots=True)
class Sent:
    """The server has the message on disk, as number `sequence_number` of its conversation."""

    message_id: str
    sequence_number: int
    created_at: str
    temp_id: str


@dataclass(slots=True, eq=False)
class Pending:
    """One message that is not answered yet."""

    frame: Send = field(repr=False)
    done: trio.Event = field(default_factory=trio.Event)
    written: bool = False
    sent: Sent | None = None
    refused: Refused | None = None

    async def outcome(self) -> Sent:
        """Waits for the answer. Raises Refused if it is a final no."""
        await self.done.wait()
        if self.refused is not None:
            raise self.refused
        assert self.sent is not None
        return self.sent


class Outbox:
    """The pending messages, oldest first."""

    def __init__(self, options: Options) -> None:
        self._pending: dict[str, Pending] = {}
        self._backoff = Backoff(options)
        self._paused_until = 0.0

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, frame: Send) -> Pending:
        """Raises ValueError if a message with this tempId is on its way already."""
        if frame.temp_id in self._pending:
            raise ValueError("a message with this temp_id is on its way already")
        self._pending[frame.temp_id] = entry = Pending(frame)
        return entry

    def remove(self, entry: Pending) -> None:
        self._pending.pop(entry.frame.temp_id, None)

    def waits_in(self, conversation_id: str) -> bool:
        """Whether a message to this conversation is on its way: its number is taken, but not known yet."""
        return any(entry.frame.conversation_id == conversation_id for entry in self._pending.values())

    def begin(self) -> None:
        """A new socket: everything goes again."""
        self._paused_until = 0.0
        for entry in self._pending.values():
            entry.written = False

    def next(self, now: float) -> Send | None:
        """The oldest message that this socket has not carried yet."""
        if now >= self._paused_until:
            for entry in self._pending.values():
                if not entry.written and not entry.done.is_set():
                    entry.written = True
                    return entry.frame
        return None

    @property
    def wake_at(self) -> float:
        return self._paused_until

    def acked(self, ack: SendAck) -> None:
        self._answer(ack.temp_id, Sent(ack.message_id, ack.sequence_number, ack.created_at, ack.temp_id))

    def seen(self, message: MessageView) -> bool:
        """A message of this device came back in a replay: its ack was lost, and this stands for it."""
        temp_id = message.temp_id
        if not isinstance(temp_id, str) or temp_id not in self._pending:
            return False
        self._answer(temp_id, Sent(message.id, message.sequence_number, message.created_at, temp_id))
        return True

    def refuse(self, error: Error, now: float) -> None:
        """A refusal that another try can change pauses all sending for as long as the server says; else it is final."""
        entry = self._pending.get(error.temp_id) if isinstance(error.temp_id, str) else None
        told = told_seconds(error)
        if error.retryable:
            if entry is not None:
                entry.written = False
            self._paused_until = max(self._paused_until, now + self._backoff.next(told))
        elif entry is not None:
            entry.refused = Refused(
                error.code,
                0,
                error.detail,
                retry_after_seconds=told,
                missing=error.missing or (),
                extra=error.extra or (),
                changed=error.changed or (),
            )
            entry.done.set()

    def refuse_written(self, code: str, detail: str) -> None:
        """The socket ended because of the size of a frame: no message that it carried is tried again."""
        for entry in self._pending.values():
            if entry.written and not entry.done.is_set():
                entry.refused = Refused(code, 413, detail)
                entry.done.set()

    def fail(self, refused: Refused) -> None:
        """There will be no socket any more."""
        for entry in self._pending.values():
            if not entry.done.is_set():
                entry.refused = refused
                entry.done.set()

    def _answer(self, temp_id: str, sent: Sent) -> None:
        if (entry := self._pending.get(temp_id)) is not None and not entry.done.is_set():
            self._backoff.reset()
            entry.sent = sent
            entry.done.set()


@dataclass(slots=True)
class _Mark:
    delivered: int = 0
    read: int = 0
    delivered_told: int = 0
    read_told: int = 0


class Marks:
    """Delivered and read watermarks. Bounded by the number of conversations that were marked on this socket."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._marks: dict[str, _Mark] = {}
        self._changed: set[str] = set()
        self._due: float | None = None
        self._waiting_events = 0

    def delivered(self, conversation_id: str, sequence: int, now: float) -> None:
        mark = self._marks.setdefault(conversation_id, _Mark())
        if sequence > mark.delivered:
            mark.delivered = sequence
            self._changed.add(conversation_id)
            self._waiting_events += 1
            urgent = self._waiting_events >= self._options.ack_every_events
            self._wait(now, 0.0 if urgent else self._options.ack_every_seconds)

    def read(self, conversation_id: str, sequence: int, now: float) -> None:
        mark = self._marks.setdefault(conversation_id, _Mark())
        if sequence > mark.read:
            mark.read = sequence
            self._changed.add(conversation_id)
            self._wait(now, self._options.ack_every_seconds)

    def begin(self, now: float) -> None:
        """A new socket: what the last one carried may not have arrived."""
        for mark in self._marks.values():
            mark.delivered_told = mark.read_told = 0
        self._changed.update(self._marks)
        if self._marks:
            self._wait(now, 0.0)

    def again(self, now: float, seconds: float) -> None:
        """Some mark was refused for now; which one is not told, and repeating all is harmless."""
        self.begin(now)
        self._due = now + seconds if self._marks else None

    def forget(self) -> None:
        self._marks.clear()
        self._changed.clear()
        self._due = None

    @property
    def wake_at(self) -> float | None:
        return self._due

    def take(self, now: float, *, all_now: bool = False) -> list[ClientFrame]:
        """The marks that go now, or none while they gather."""
        if self._due is None or (now < self._due and not all_now):
            return []
        self._due = None
        self._waiting_events = 0
        frames: list[ClientFrame] = []
        for conversation_id in self._changed:
            mark = self._marks[conversation_id]
            if mark.delivered > mark.delivered_told:
                frames.append(Ack(conversation_id=conversation_id, sequence_number=mark.delivered))
                mark.delivered_told = mark.delivered
            if mark.read > mark.read_told:
                frames.append(MarkRead(conversation_id=conversation_id, sequence_number=mark.read))
                mark.read_told = mark.read
        self._changed.clear()
        return frames

    def _wait(self, now: float, seconds: float) -> None:
        due = now + seconds
        self._due = due if self._due is None else min(self._due, due)


def told_seconds(error: Error) -> float | None:
    """How long the server asks to wait."""
    return error.retry_after_ms / 1000 if isinstance(error.retry_after_ms, int) else None


def checked_send(frame: Send) -> Send:
    """The frame, checked here: one over the server's limits would end the socket, and be tried again for ever. Raises
    Refused `invalid-request`."""
    if (frame.content is None) == (frame.encrypted is None):
        raise Refused("invalid-request", 422, "A message has either a content or an encrypted one")
    try:
        size = len(frame.content.encode()) if frame.content is not None else 1
    except UnicodeEncodeError:
        raise Refused("invalid-request", 422, "The text is not valid Unicode") from None
    if not 0 < size <= CONTENT_BYTES_MAX:
        raise Refused("invalid-request", 422, f"A text has 1 to {CONTENT_BYTES_MAX} bytes in UTF-8")
    if not 0 < len(frame.temp_id) <= TEMP_ID_CHARS_MAX:
        raise Refused("invalid-request", 422, f"tempId has 1 to {TEMP_ID_CHARS_MAX} characters")
    try:
        return msgspec.convert(msgspec.to_builtins(frame), Send)
    except msgspec.ValidationError as error:
        path, message = split_validation_error(error, Send)
        detail = f"{path}: {message}"
        raise Refused("invalid-request", 422, detail, errors=[{"path": path, "message": message}]) from None
