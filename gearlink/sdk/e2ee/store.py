"""How keys and history are reached: typed records by key, in transactions. `vault` keeps them in an encrypted file.

A transaction is a plain function over `Tx` and runs at once, beside the event loop: all that it read and wrote becomes
durable together, or nothing of it. So a message key is gone in the same moment in which what it opened is kept.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from gearlink.sdk.e2ee.records import Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")
KeyPart = str | int | bytes


class Tx(Protocol):
    """One transaction. A key is the values of the fields that the record's class names in `KEY`, in their order."""

    def get(self, kind: type[R], *key: KeyPart) -> R | None:
        """The record of this whole key."""

    def put(self, record: Record) -> None:
        """Writes the record in place of the one with its key."""

    def delete(self, kind: type[Record], *key: KeyPart) -> None:
        """Deletes the record of this whole key, if there is one."""

    def scan(
        self,
        kind: type[R],
        *prefix: KeyPart,
        after: KeyPart | None = None,
        before: KeyPart | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[R]:
        """The records whose key begins with `prefix`, in the order of their keys (texts and bytes by bytes, numbers by
        size); `after` and `before` bound the next part of the key and are exclusive."""


class KeyStore(Protocol):
    """What holds the records: the vault, or in tests a dictionary."""

    async def read(self, look: Callable[[Tx], T]) -> T:
        """Runs `look` over one state; it must not write."""

    async def write(self, change: Callable[[Tx], T]) -> T:
        """Runs `change`; durable once this returns. If it raises, nothing of it was written. Changes run one by one."""
