"""Erasing deleted conversations, down to the last record that hangs on them, step by step.

A conversation that was deleted cannot be entered from that moment on; what is left of it goes here. Each step is one
small durable change and looks for what is still there, so this may be stopped at any moment and goes on where it was:
what finds other records goes after them. It holds neither the loop nor the writer for long.
"""

from collections.abc import Iterable
from typing import Final

from config import limits
from gearlink.clock import Clock, Milliseconds
from gearlink.invitations import revoke
from gearlink.journal import logger
from gearlink.members import dismiss
from storage.events import Message
from storage.records import (
    Amendment,
    Ban,
    Delivery,
    Envelope,
    Head,
    Hidden,
    JoinLink,
    JoinRequest,
    LogEntry,
    Member,
    Mention,
    MessageIndex,
    Pin,
    Purge,
    Reaction,
    Record,
    Revision,
    RosterStatement,
    Thread,
    ThreadRead,
    ThreadReply,
    Undropped,
    Untold,
    Vote,
)
from storage.store import KeyPart, Store, Transaction

_log = logger("purge")
_MEMBERS_PER_STEP: Final = limits.SWEEP_ROWS_PER_STEP // 5  # each has a handful of records
_ENTRIES_PER_STEP: Final = limits.SWEEP_ROWS_PER_STEP // 5  # each may hold `limits.CIPHERTEXT_BYTES_MAX`
# What hangs on a conversation and finds nothing else, and on a message: the kind, and the rest of its key.
_OF_CONVERSATION: Final[tuple[tuple[type[Record], tuple[str, ...]], ...]] = (
    (JoinRequest, ("user_id",)),
    (Ban, ("user_id",)),
    (Pin, ("sequence",)),
    (Mention, ("user_id", "sequence")),
    (Hidden, ("user_id", "sequence")),
    (Delivery, ("user_id", "device_id")),
    (Thread, ("root_sequence",)),
    (Amendment, ("sequence",)),
)
_LARGE: Final[tuple[tuple[type[Record], tuple[str, ...]], ...]] = (
    (RosterStatement, ("version",)),
    (Envelope, ("device_id", "sequence")),
)
_OF_MESSAGE: Final[tuple[tuple[type[Record], tuple[str, ...]], ...]] = (
    (Revision, ("number",)),
    (Reaction, ("user_id", "emoji")),
    (Vote, ("user_id",)),
    (ThreadReply, ("sequence",)),
    (ThreadRead, ("user_id",)),
)


async def purge(store: Store, clock: Clock) -> None:
    """Erases what is left of every conversation that was deleted before this began."""
    for waiting in await store.scan(Purge, limit=limits.SWEEP_ROWS_PER_STEP):
        step = _Step(waiting.conversation_id, clock.now())
        while not await store.write(step):
            pass
        _log.info("conversation.purged")


class _Step:
    """One change: erases some of what is left of a conversation."""

    def __init__(self, conversation_id: str, now: Milliseconds) -> None:
        self._conversation_id, self._now = conversation_id, now

    async def __call__(self, tx: Transaction) -> bool:
        """True once nothing is left."""
        if await self._members(tx) or await self._links(tx):
            return False
        for kind, fields in _LARGE:
            if await _erase(tx, kind, fields, self._conversation_id, limits.LARGE_ROWS_PER_STEP):
                return False
        for kind, fields in _OF_CONVERSATION:
            if await _erase(tx, kind, fields, self._conversation_id, limits.SWEEP_ROWS_PER_STEP):
                return False
        if await self._entries(tx):
            return False
        tx.delete(Undropped, self._conversation_id)
        tx.delete(Head, self._conversation_id)
        tx.delete(Purge, self._conversation_id)
        return True

    async def _members(self, tx: Transaction) -> int:
        members = await tx.scan(Member, self._conversation_id, limit=_MEMBERS_PER_STEP)
        for member in members:
            await dismiss(tx, self._conversation_id, member.user_id, self._now)
        return len(members)

    async def _links(self, tx: Transaction) -> int:
        links = await tx.scan(JoinLink, self._conversation_id, limit=limits.SWEEP_ROWS_PER_STEP)
        for link in links:
            revoke(tx, link)
        return len(links)

    async def _entries(self, tx: Transaction) -> bool:
        """A message goes after what hangs on it; one on which very much does takes steps of its own."""
        if await _erase(tx, Amendment, ("sequence",), self._conversation_id, _ENTRIES_PER_STEP):
            return True
        room = limits.SWEEP_ROWS_PER_STEP
        entries = await tx.scan(LogEntry, self._conversation_id, limit=_ENTRIES_PER_STEP)
        for entry in entries:
            if isinstance(entry.event, Message):
                message_id = entry.event.event_id
                for kind, fields in _OF_MESSAGE:
                    room -= await _erase(tx, kind, fields, message_id, room)
                if room <= 0:
                    break
                if (thread_id := entry.event.thread_id) != "":  # the message that it began with may have expired
                    tx.delete(ThreadReply, thread_id, entry.sequence)
                    room -= await _erase(tx, ThreadRead, ("user_id",), thread_id, room)
                    if room <= 0:
                        break
                tx.delete(Untold, message_id)
                tx.delete(MessageIndex, message_id)
            tx.delete(LogEntry, self._conversation_id, entry.sequence)
            room -= 1
            if room <= 0:
                break
        return bool(entries)


async def _erase(tx: Transaction, kind: type[Record], fields: Iterable[str], owner_id: str, limit: int) -> int:
    """Deletes at most `limit` records of `kind` that belong to `owner_id`; returns how many."""
    if limit <= 0:
        return 0
    found = await tx.scan(kind, owner_id, limit=limit)
    for record in found:
        rest: list[KeyPart] = [getattr(record, field) for field in fields]
        tx.delete(kind, owner_id, *rest)
    return len(found)
