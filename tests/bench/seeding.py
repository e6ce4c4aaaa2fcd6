"""What lies in the store before a server starts: people, large groups and long histories.

They are written by the store's own writer, many appends in a change, so a history of hundreds of thousands of events takes
seconds, and what a server finds is what it would have written. The people are those who sign up later (`phone_number`).
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import trio
from msgspec import structs

from gearlink.clock import Clock, new_id
from gearlink.verification import phone_hash
from storage.embedded import EmbeddedStore, open_store
from storage.events import Message, MessageEdited, Plain, ReactionChanged, Tally
from storage.records import (
    Account,
    Conversation,
    Head,
    LogEntry,
    Member,
    Membership,
    MessageIndex,
    PhoneNumber,
    Reaction,
    Record,
    Revision,
)
from storage.store import Transaction

_PEOPLE_PER_CHANGE = 2_000
_MESSAGES_PER_CHANGE = 500
_TEXT = "x" * 200
_EMOJI = "👍"


def phone_number(number: int) -> str:
    """The phone number of the person of this number, from 1."""
    return f"+1555{1230000 + number:07}"


class Ground:
    """A store that no server has yet."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self._now = Clock().now()
        self._numbers = 0

    async def people(self, count: int) -> list[str]:
        """The ids of so many people, in the order in which they will sign up."""
        found = []
        for _ in range(count):
            self._numbers += 1
            found.append((new_id(), phone_number(self._numbers)))
        records: list[Record] = [Account(user_id, number, self._now, self._now) for user_id, number in found]
        records += [PhoneNumber(phone_hash(number), user_id) for user_id, number in found]
        await self._put(records)
        return [user_id for user_id, _number in found]

    async def group(
        self, members: Sequence[str], *, messages: int = 0, amended: bool = False, unread: int | None = None
    ) -> str:
        """A group of these people, the first of them its owner, with so many messages of the owner.

        With `amended` every message was edited or reacted to. The others have not read the last `unread`; None: any.
        """
        conversation_id, owner = new_id(), members[0]
        read = 0 if unread is None else (messages - unread) * (1 + amended)
        await self._put(
            [
                Conversation(
                    conversation_id, "group", "server", "bench", "", owner, self._now, self._now, len(members), 1
                ),
                Head(conversation_id, 0, 0, self._now),
                *(
                    Member(conversation_id, each, "owner" if each == owner else "member", self._now, 0, read)
                    for each in members
                ),
                *(Membership(each, conversation_id) for each in members),
            ]
        )
        for first in range(0, messages, _MESSAGES_PER_CHANGE):
            count = min(_MESSAGES_PER_CHANGE, messages - first)
            await self._store.write(partial(self._append, conversation_id, members, count, amended))
        return conversation_id

    async def _put(self, records: Sequence[Record]) -> None:
        for first in range(0, len(records), _PEOPLE_PER_CHANGE):

            async def change(
                tx: Transaction, some: Sequence[Record] = records[first : first + _PEOPLE_PER_CHANGE]
            ) -> None:
                for record in some:
                    tx.put(record)

            await self._store.write(change)

    async def _append(
        self, conversation_id: str, members: Sequence[str], count: int, amended: bool, tx: Transaction
    ) -> None:
        owner, device_id = members[0], members[0]
        for number in range(count):
            message = Message(new_id(), owner, self._now, device_id, "text", Plain(_TEXT), f"{number}")
            sequence = await tx.append(conversation_id, message)
            tx.put(MessageIndex(message.event_id, conversation_id, sequence))
            if amended:
                amend = self._react if number % 2 else self._edit
                await amend(tx, LogEntry(conversation_id, sequence, message), message, members[-1])

    async def _react(self, tx: Transaction, entry: LogEntry, message: Message, user_id: str) -> None:
        tx.put(Reaction(message.event_id, user_id, _EMOJI, self._now))
        changed = structs.replace(message, reactions=(Tally(_EMOJI, 1, (user_id,)),))
        event = ReactionChanged(new_id(), user_id, self._now, message.event_id, entry.sequence, _EMOJI, True)
        await tx.append(entry.conversation_id, event, structs.replace(entry, event=changed))

    async def _edit(self, tx: Transaction, entry: LogEntry, message: Message, _user_id: str) -> None:
        tx.put(Revision(message.event_id, 1, Plain(_TEXT), self._now))
        changed = structs.replace(message, edited_at=self._now)
        event = MessageEdited(new_id(), message.actor_id, self._now, message.event_id, entry.sequence)
        await tx.append(entry.conversation_id, event, structs.replace(entry, event=changed))


Sowing = Callable[[Ground], Awaitable[None]]


def sow(directory: Path, sowing: Sowing) -> None:
    """Makes a data directory and writes into it what `sowing` wants there."""

    async def main() -> None:
        async with open_store(directory, now=Clock().now(), fresh_id=new_id()) as store:
            await sowing(Ground(store))

    trio.run(main)
