"""Changes for tests of the store: small ones, of the forms that the tests need again and again."""

from collections.abc import Awaitable, Callable

from gearlink.clock import new_id
from storage.events import Message, Plain
from storage.records import Record
from storage.store import Transaction

# The same in every process: a child may write what its parent reads.
ROOM, ANN, BOB = (f"00000000-0000-7000-8000-00000000000{number}" for number in (1, 2, 3))


class Refused(Exception):
    """What a change raises that wants nothing to happen."""


def message(text: str = "hello", at: int = 5) -> Message:
    return Message(new_id(), ANN, at, BOB, "text", Plain(text), new_id())


def putting(*records: Record) -> Callable[[Transaction], Awaitable[None]]:
    async def change(tx: Transaction) -> None:
        for record in records:
            tx.put(record)

    return change


def appending(*conversation_ids: str) -> Callable[[Transaction], Awaitable[list[int]]]:
    """A message to each log, in this order; the value is the sequence numbers that they got."""

    async def change(tx: Transaction) -> list[int]:
        return [await tx.append(conversation_id, message()) for conversation_id in conversation_ids]

    return change
