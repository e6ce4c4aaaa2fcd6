"""What the proof writes down while it runs: what was sent, what was answered, what was heard, and what the history holds.

Nothing here judges: `tests.proof.checker` does, and works on these records alone, so that records that somebody
tampered with show whether it can see anything.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Sent:
    """One message under one `tempId`, sent once or (after a crash) more often. `order` grows with every send."""

    device_id: str
    conversation_id: str
    temp_id: str
    content: str
    order: int
    socket: int  # the number of the connection that it was first sent on; 0 for REST
    attempts: int = 0


@dataclass(frozen=True)
class Ack:
    """One answer that says: this is on the disk."""

    device_id: str
    conversation_id: str
    temp_id: str
    message_id: str
    sequence: int
    created_at: str
    transport: str  # "socket" or "rest"


@dataclass(frozen=True)
class Event:
    """One numbered event of a conversation as a socket or the history told it. System events have no `temp_id`."""

    sequence: int
    message_id: str
    device_id: str
    content: str


@dataclass
class Connection:
    """One life of one socket: from which cursors it was to resume, and what it was told, in order."""

    number: int
    user_id: str
    device_id: str
    cursors: dict[str, int]
    epoch: str = ""
    complete: bool | None = None  # what `sync:done` said; None if it never came
    heard: dict[str, list[Event]] = field(default_factory=dict)
    last: bool = False  # the connection at the end, which has to have everything


@dataclass(frozen=True)
class Mark:
    """A watermark as it was told to somebody; `observer` is a device, or "" for what REST told after a restart."""

    observer: str
    conversation_id: str
    user_id: str
    kind: str  # "delivered" or "read"
    sequence: int


# --- the lively room --------------------------------------------------------------------------------------------------


@dataclass
class Saying:
    """One message of the lively room. Its `mark` stands in every version of its text, and in no other message."""

    mark: str
    user_id: str
    text: str
    mentions: tuple[str, ...]
    order: int
    send_at: int = 0  # wall time in ms at which it was to go out; 0 for at once
    expires_in: int = 0  # seconds
    options: int = 0  # of its poll
    answered: int = 0  # the order of the answer that promised it; 0 if none came
    message_id: str = ""
    sequence: int = 0
    expires_at: int = 0  # once it is known


@dataclass
class Deed:
    """One thing that somebody did to a message: `value` is what `what` of it is to be from then on."""

    order: int
    user_id: str
    message_id: str
    what: str  # "text", "deleted", "pinned", "vote", or an emoji
    value: Any
    answered: int = 0
    refused: str = ""  # the code of the refusal


@dataclass(frozen=True)
class Shown:
    """A message of the lively room as GET shows it. `votes`: how many chose each option, then how many voted."""

    message_id: str
    sequence: int
    user_id: str
    text: str | None
    mentions: tuple[str, ...] = ()
    created_at: int = 0
    expires_at: int = 0
    is_deleted: bool = False
    is_pinned: bool = False
    reactions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    votes: tuple[int, ...] = ()


@dataclass
class Reading:
    """What one member was shown. `order`, `began_at` and `ended_at` (wall time in ms) are those of the asking."""

    order: int
    began_at: int
    ended_at: int
    user_id: str
    shown: list[Shown]
    is_whole: bool = True  # the history from its start to its end; else single messages
    missing: list[str] = field(default_factory=list)  # ids that were asked for and not found
    is_last: bool = False


@dataclass(frozen=True)
class Count:
    """What a conversation told one member, while nothing moved: it is to fit `reading`."""

    reading: Reading
    user_id: str
    read: int
    unread: int
    mentions: int
    ended_at: int


@dataclass
class Told:
    """One life of one socket, or one answer of REST: in order, which texts it told (`("text", mark)`), and of which
    messages it said that they are gone (`("gone", message_id)`)."""

    name: str
    order: int  # of its beginning
    began_at: int
    said: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Replay:
    """The numbers of one conversation as a device was told them behind `after`, live or again; to the end if `upto`."""

    name: str
    conversation_id: str
    device_id: str  # "" for one that sent nothing there
    after: int
    numbers: list[int] = field(default_factory=list)
    upto: int = 0


@dataclass
class RoomRecords:
    """What was done in the lively room, and what was seen of it."""

    sayings: dict[str, Saying] = field(default_factory=dict)  # by mark
    deeds: list[Deed] = field(default_factory=list)  # in their order
    readings: list[Reading] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    replays: list[Replay] = field(default_factory=list)
    places: dict[str, set[tuple[str, int]]] = field(
        default_factory=dict
    )  # by mark: every id and number it was seen with
    own: dict[str, set[int]] = field(default_factory=dict)  # by device: the numbers of what it sent
    kills_at: list[int] = field(default_factory=list)  # wall time in ms

    def near_a_kill(self, at: int) -> bool:
        """Whether this moment is within a second of the server's end."""
        return any(abs(at - kill) <= 1000 for kill in self.kills_at)


@dataclass
class Ledger:
    """All records of one run."""

    sent: dict[tuple[str, str], Sent] = field(default_factory=dict)  # by device and tempId
    acks: list[Ack] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)  # in the order in which they were heard
    unanswered: list[Sent] = field(default_factory=list)  # stored by a server that ended in order, and never answered
    histories: dict[tuple[str, str], list[Event]] = field(default_factory=dict)  # by conversation and reader
    room: RoomRecords = field(default_factory=RoomRecords)
    kills: int = 0
    orderly_ends: int = 0

    @property
    def acknowledged(self) -> int:
        """Distinct messages that somebody was promised."""
        return len({(ack.device_id, ack.temp_id) for ack in self.acks})
