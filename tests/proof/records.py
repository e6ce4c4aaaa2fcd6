"""What the proof writes down while it runs: what was sent, what was answered, what was heard, and what the history holds.

Nothing here judges: `tests.proof.checker` does, and works on these records alone, so that records that somebody
tampered with show whether it can see anything.
"""

from dataclasses import dataclass, field


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


@dataclass
class Ledger:
    """All records of one run."""

    sent: dict[tuple[str, str], Sent] = field(default_factory=dict)  # by device and tempId
    acks: list[Ack] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)  # in the order in which they were heard
    unanswered: list[Sent] = field(default_factory=list)  # stored by a server that ended in order, and never answered
    histories: dict[tuple[str, str], list[Event]] = field(default_factory=dict)  # by conversation and reader
    kills: int = 0
    orderly_ends: int = 0

    @property
    def acknowledged(self) -> int:
        """Distinct messages that somebody was promised."""
        return len({(ack.device_id, ack.temp_id) for ack in self.acks})
