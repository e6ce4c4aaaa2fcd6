"""The trail of the history: in which order its messages were last changed, kept by whoever writes one.

Backups and transfers follow it: new messages, edits, reactions and deletions all turn up at its end, each message once,
so "up to here" is one number, and nobody has to remember what was handed on already.
"""

from collections.abc import Callable
from typing import TypeVar

from msgspec.structs import replace

from gearlink.sdk.e2ee.records import Kept, Record, Trail
from gearlink.sdk.e2ee.store import KeyPart, Tx

T = TypeVar("T")


def trailed(change: Callable[[Tx], T]) -> Callable[[Tx], T]:
    """The same change, which also keeps the trail."""
    return lambda tx: change(_Trailed(tx))


def head(tx: Tx) -> int:
    """The number of the newest entry, 0 if there is none."""
    newest = tx.scan(Trail, reverse=True, limit=1)
    return newest[0].number if newest else 0


class _Trailed:
    """A transaction that notes which messages it writes."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self.get, self.scan = tx.get, tx.scan

    def put(self, record: Record) -> None:
        if isinstance(record, Kept) and record.kind == "text":
            number = head(self._tx) + 1
            self._forget(record.conversation_id, record.era, record.sequence)
            self._tx.put(Trail(number, record.conversation_id, record.era, record.sequence))
            record = replace(record, change=number)
        self._tx.put(record)

    def delete(self, kind: type[Record], *key: KeyPart) -> None:
        if kind is Kept:
            self._forget(*key, but=head(self._tx))
        self._tx.delete(kind, *key)

    def _forget(self, *key: KeyPart, but: int = 0) -> None:
        """Takes a message off the trail, unless it is its end: a number is not given twice."""
        old = self._tx.get(Kept, *key)
        if old is not None and old.change and old.change != but:
            self._tx.delete(Trail, old.change)
