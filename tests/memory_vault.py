"""A vault that is a dictionary: the `KeyStore` of tests. A change that raises leaves nothing, as in the real one.

Functions run at once and on the spot, without a thread. Like the file it holds bytes, not objects: what goes in is encoded
and what comes out is decoded, so a record that cannot be written fails here, too.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from gearlink.sdk.e2ee.records import Record
from gearlink.sdk.e2ee.store import KeyPart

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Key = tuple[KeyPart, ...]


def _order(part: KeyPart) -> tuple[int, int, bytes]:
    """How parts of keys compare: numbers by size, texts and bytes by their bytes."""
    if isinstance(part, int):
        return 0, part, b""
    return 1, 0, part.encode() if isinstance(part, str) else bytes(part)


def key_of(record: Record) -> Key:
    return tuple(getattr(record, name) for name in record.KEY)


class MemoryTx:
    """A transaction: writes go to `changes` (None for what was deleted) and are seen by its own reads."""

    def __init__(self, held: dict[tuple[int, Key], bytes], *, may_write: bool = True) -> None:
        self._held, self._may_write = held, may_write
        self.changes: dict[tuple[int, Key], bytes | None] = {}

    def get(self, kind: type[R], *key: KeyPart) -> R | None:
        assert len(key) == len(kind.KEY), f"{kind.__name__} has the key {kind.KEY}"
        raw = self._raw((kind.TABLE, key))
        return msgspec.msgpack.decode(raw, type=kind) if raw is not None else None

    def put(self, record: Record) -> None:
        self._write((record.TABLE, key_of(record)), msgspec.msgpack.encode(record))

    def delete(self, kind: type[Record], *key: KeyPart) -> None:
        assert len(key) == len(kind.KEY), f"{kind.__name__} has the key {kind.KEY}"
        self._write((kind.TABLE, key), None)

    def scan(
        self,
        kind: type[R],
        *prefix: KeyPart,
        after: KeyPart | None = None,
        before: KeyPart | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[R]:
        at = len(prefix)
        assert at < len(kind.KEY) or (after is None and before is None), "no part of the key is left to bound"
        found = []
        for table, key in {**self._held, **self.changes}:
            if table != kind.TABLE or key[:at] != prefix or self._raw((table, key)) is None:
                continue
            if after is not None and _order(key[at]) <= _order(after):
                continue
            if before is not None and _order(key[at]) >= _order(before):
                continue
            found.append(key)
        found.sort(key=lambda key: [_order(part) for part in key], reverse=reverse)
        records = [self.get(kind, *key) for key in found[:limit]]
        return [record for record in records if record is not None]

    def _raw(self, name: tuple[int, Key]) -> bytes | None:
        return self.changes[name] if name in self.changes else self._held.get(name)

    def _write(self, name: tuple[int, Key], raw: bytes | None) -> None:
        assert self._may_write, "a read must not write"
        self.changes[name] = raw


class MemoryVault:
    """The records of one device. `do` is `write` for tests that are not asynchronous; `copy` what a backup of the file
    would be, and `everything` all that it holds, to compare two moments."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, Key], bytes] = {}

    def do(self, change: Callable[[Any], T]) -> T:
        tx = MemoryTx(self._held)
        answer = change(tx)  # what raises leaves nothing
        for name, raw in tx.changes.items():
            if raw is None:
                self._held.pop(name, None)
            else:
                self._held[name] = raw
        return answer

    def look(self, look: Callable[[Any], T]) -> T:
        return look(MemoryTx(self._held, may_write=False))

    async def write(self, change: Callable[[Any], T]) -> T:
        return self.do(change)

    async def read(self, look: Callable[[Any], T]) -> T:
        return self.look(look)

    def everything(self) -> dict[tuple[int, Key], bytes]:
        return dict(self._held)

    def copy(self) -> "MemoryVault":
        other = MemoryVault()
        other._held = dict(self._held)
        return other
