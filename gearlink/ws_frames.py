"""Every frame that a client may send, one row each: its form, who handles it, and the right that it needs.

Data and one-line handlers: a handler makes one call of the domain and confirms. The session, the AsyncAPI document and
the access tests all read this table, so a frame that is added here is decoded, documented and tested.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gearlink import protocol
from gearlink.accounts import Actor
from gearlink.domain import Domain
from gearlink.errors import (
    FORBIDDEN,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    MESSAGE_DELETED,
    MUST_BE_ENCRYPTED,
    NOT_AUTHENTICATED,
    NOT_FOUND,
    OVERLOADED,
    POLL_CLOSED,
    RATE_LIMITED,
    REFUSED_BY_PRIVACY,
    RESTARTING,
    STALE_DEVICES,
    STORAGE_FAILED,
    STORAGE_FULL,
    TOO_LATE,
    TOO_MANY,
    TOO_MANY_CONNECTIONS,
    UNKNOWN_TYPE,
    UNREADABLE_FRAME,
    Entry,
)
from gearlink.rights import Right

GENERAL_REFUSALS: Final = (INVALID_REQUEST, INTERNAL_ERROR, STORAGE_FULL, STORAGE_FAILED)
"""What any frame can be refused with, besides its own `refusals`."""
UNTYPED_REFUSALS: Final = (UNREADABLE_FRAME, UNKNOWN_TYPE, NOT_AUTHENTICATED, RESTARTING)
"""What is said of frames that are none of the table, and of a first frame that is not `auth` or does not come."""


class Guest(Protocol):
    """What a handler sees of the session that a frame came from."""

    @property
    def actor(self) -> Actor: ...

    @property
    def domain(self) -> Domain: ...

    def done(self, frame: protocol.ClientFrame) -> None:
        """Answers `ok`."""

    def confirm(self, frame: protocol.ClientFrame) -> None:
        """Answers `ok` if the frame has a `ref`."""


@dataclass(frozen=True, slots=True)
class FrameRoute:
    """`right` is what the frame needs in the conversation that it names, or whose message it names; None without one.

    Without a `handler` the session itself does it, because it touches the session's state. `refusals` are those of the
    domain call; `answer` is the frame that says that it was done.
    """

    form: type[protocol.ClientFrame]
    summary: str
    handler: Callable[[Guest, Any], Awaitable[None]] | None = None
    right: Right | None = None
    answer: type[protocol.ServerFrame] = protocol.Ok
    refusals: tuple[Entry, ...] = ()

    @property
    def type(self) -> str:
        return str(self.form.__struct_config__.tag)

    @property
    def all_refusals(self) -> tuple[Entry, ...]:
        """Everything that this frame can be refused with: `refusals` and what the session says by itself."""
        return tuple(sorted({*self.refusals, *GENERAL_REFUSALS}, key=lambda entry: (entry.status, entry.code)))


async def _edit(guest: Guest, frame: protocol.Edit) -> None:
    await guest.domain.amendments.edit(guest.actor, frame.message_id, frame)
    guest.done(frame)


async def _delete(guest: Guest, frame: protocol.Delete) -> None:
    await guest.domain.amendments.delete(guest.actor, frame.message_id, for_everyone=frame.for_everyone)
    guest.done(frame)


async def _pin(guest: Guest, frame: protocol.Pin | protocol.Unpin) -> None:
    await guest.domain.amendments.pin(guest.actor, frame.message_id, pinned=isinstance(frame, protocol.Pin))
    guest.done(frame)


async def _react(guest: Guest, frame: protocol.AddReaction | protocol.RemoveReaction) -> None:
    added = isinstance(frame, protocol.AddReaction)
    await guest.domain.reactions.react(guest.actor, frame.message_id, frame.emoji, added=added)
    guest.done(frame)


async def _vote(guest: Guest, frame: protocol.Vote) -> None:
    await guest.domain.polls.vote(guest.actor, frame.message_id, frame.options)
    guest.done(frame)


async def _read_thread(guest: Guest, frame: protocol.ReadThread) -> None:
    await guest.domain.threads.mark_read(guest.actor, frame.message_id, frame.sequence_number)
    guest.done(frame)


async def _set_draft(guest: Guest, frame: protocol.SetDraft) -> None:
    await guest.domain.preferences.set_draft(guest.actor, frame.conversation_id, frame.content, frame.reply_to_id)
    guest.done(frame)


async def _acknowledge(guest: Guest, frame: protocol.Ack) -> None:
    await guest.domain.receipts.acknowledge(guest.actor, frame.conversation_id, frame.sequence_number)
    guest.confirm(frame)


async def _read(guest: Guest, frame: protocol.MarkRead) -> None:
    await guest.domain.receipts.note_read(guest.actor, frame.conversation_id, frame.sequence_number)
    guest.confirm(frame)


_MESSAGE = (NOT_FOUND, FORBIDDEN, REFUSED_BY_PRIVACY)

FRAMES: Final[tuple[FrameRoute, ...]] = (
    FrameRoute(protocol.Auth, "Say who is there: the first frame, and again with a fresh token", answer=protocol.AuthOk,
               refusals=(NOT_AUTHENTICATED, TOO_MANY_CONNECTIONS, RESTARTING)),
    FrameRoute(protocol.Send, "Send a message", right=Right.SEND, answer=protocol.SendAck,
               refusals=(*_MESSAGE, MUST_BE_ENCRYPTED, STALE_DEVICES, RATE_LIMITED, OVERLOADED)),
    FrameRoute(protocol.Ack, "Everything up to this number reached this device", _acknowledge, Right.READ,
               refusals=(NOT_FOUND,)),
    FrameRoute(protocol.MarkRead, "Everything up to this number was read", _read, Right.READ, refusals=(NOT_FOUND,)),
    FrameRoute(protocol.Edit, "Change what one's own message says", _edit, Right.SEND,
               refusals=(*_MESSAGE, TOO_LATE, MESSAGE_DELETED, MUST_BE_ENCRYPTED, RATE_LIMITED, OVERLOADED)),
    FrameRoute(protocol.Delete, "Delete a message, for everyone or for oneself", _delete, Right.READ,
               refusals=(*_MESSAGE, TOO_LATE, RATE_LIMITED)),
    FrameRoute(protocol.Pin, "Pin a message", _pin, Right.PIN, refusals=(*_MESSAGE, TOO_MANY, MESSAGE_DELETED, RATE_LIMITED)),
    FrameRoute(protocol.Unpin, "Take a pinned message down", _pin, Right.PIN, refusals=(*_MESSAGE, RATE_LIMITED)),
    FrameRoute(protocol.AddReaction, "React to a message with an emoji", _react, Right.REACT,
               refusals=(*_MESSAGE, TOO_MANY, MESSAGE_DELETED, RATE_LIMITED)),
    FrameRoute(protocol.RemoveReaction, "Take a reaction back", _react, Right.READ, refusals=(NOT_FOUND, RATE_LIMITED)),
    FrameRoute(protocol.Vote, "Vote in a poll, or take the vote back", _vote, Right.REACT,
               refusals=(*_MESSAGE, POLL_CLOSED, MESSAGE_DELETED, RATE_LIMITED)),
    FrameRoute(protocol.ReadThread, "A thread was read up to this number", _read_thread, Right.READ, refusals=(NOT_FOUND,)),
    FrameRoute(protocol.SetDraft, "Keep what was begun to write, or give it up", _set_draft, Right.SEND,
               refusals=(*_MESSAGE, MUST_BE_ENCRYPTED, RATE_LIMITED)),
    FrameRoute(protocol.TypingStart, "Somebody begins to type", right=Right.SEND, refusals=(*_MESSAGE, RATE_LIMITED)),
    FrameRoute(protocol.TypingStop, "Somebody stops to type", right=Right.SEND, refusals=(*_MESSAGE, RATE_LIMITED)),
    FrameRoute(protocol.WatchPresence, "Hear of these people's presence, in place of those before",
               answer=protocol.Presence, refusals=(RATE_LIMITED,)),
    FrameRoute(protocol.Ping, "Ask whether the server is there", answer=protocol.Pong),
)  # fmt: skip
