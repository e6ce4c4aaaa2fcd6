"""What a change reads and puts: its own puts, on those of its batch, on what the writer knows, on the database.

The writer runs one change at a time and is the only one that writes, so nothing here needs a lock, and what it has read
or written stays true until it writes again. This module knows records and tables; it neither queues nor syncs.
"""

from bisect import bisect_left, insort
from collections.abc import Coroutine
from typing import Any, TypeVar

from storage.engine import Engine
from storage.events import AboutMessage, Letter, LogEvent
from storage.keys import TABLES, Table
from storage.notices import Appended, Notice
from storage.records import Conversation, Head, LogEntry, Member, Record, enveloped, following
from storage.store import KeyPart

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Place = tuple[str, bytes]  # table, key
_REMEMBERED = frozenset(TABLES[kind].name for kind in (Conversation, Member, Head))  # what every send reads
_REMEMBERED_RECORDS_MAX = 16_384


class Puts:
    """Records that are put and not in the database yet; None is a deletion. In key order for those who scan."""

    __slots__ = ("_keys", "records")

    def __init__(self) -> None:
        self.records: dict[Place, Record | None] = {}
        self._keys: dict[str, list[bytes]] = {}  # sorted, of the tables that somebody has scanned

    def put(self, place: Place, record: Record | None) -> None:
        if self._keys and place not in self.records and (keys := self._keys.get(place[0])) is not None:
            insort(keys, place[1])
        self.records[place] = record

    def take(self, later: "Puts") -> None:
        """Everything of `later`, on top of what is here."""
        if not self._keys:
            self.records.update(later.records)
            return
        for place, record in later.records.items():
            self.put(place, record)

    def between(self, name: str, low: bytes, high: bytes | None) -> dict[bytes, Record | None]:
        if not self.records:
            return {}
        keys = self._keys.get(name)
        if keys is None:  # sorted once and kept so: a change may scan a thousand times between its puts
            keys = self._keys[name] = sorted(key for table, key in self.records if table == name)
        start, end = bisect_left(keys, low), len(keys) if high is None else bisect_left(keys, high)
        return {key: self.records[name, key] for key in keys[start:end]}


class Settled:
    """The database as the writer knows it, with the records that it meets most kept decoded."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._remembered: dict[Place, Record] = {}

    def get(self, table: Table, place: Place) -> Any:
        record = self._remembered.get(place)
        if record is None:
            value = self.engine.get(*place)
            if value is None:
                return None
            record = table.unpack(value)
            self._remember(place, record)
        return record

    def find(self, kind: type[R], *key: KeyPart) -> R | None:
        """The record with this whole key as it is in the database, or None."""
        table = TABLES[kind]
        return self.get(table, (table.name, table.key(*key)))  # type: ignore[no-any-return]

    def wrote(self, puts: Puts) -> None:
        """`puts` are in the database from now on."""
        for place, record in puts.records.items():
            self._remember(place, record)

    def _remember(self, place: Place, record: Record | None) -> None:
        if place[0] not in _REMEMBERED:
            return
        if record is None:
            self._remembered.pop(place, None)
            return
        if len(self._remembered) >= _REMEMBERED_RECORDS_MAX:
            del self._remembered[next(iter(self._remembered))]  # the oldest: no bookkeeping for a read
        self._remembered[place] = record


class WriteTransaction:
    """`storage.store.Transaction` for one change of a batch."""

    __slots__ = ("_batch", "_settled", "notices", "puts")

    def __init__(self, settled: Settled, batch: Puts) -> None:
        self._settled, self._batch = settled, batch
        self.puts = Puts()
        self.notices: list[Notice] = []

    async def get(self, kind: type[R], *key: KeyPart) -> R | None:
        table = TABLES[kind]
        place = (table.name, table.key(*key))
        for layer in (self.puts.records, self._batch.records):
            if place in layer:
                return layer[place]  # type: ignore[return-value]
        return self._settled.get(table, place)  # type: ignore[no-any-return]

    async def scan(
        self,
        kind: type[R],
        *prefix: KeyPart,
        after: KeyPart | None = None,
        before: KeyPart | None = None,
        limit: int,
        reverse: bool = False,
    ) -> list[R]:
        table = TABLES[kind]
        low, high = table.bounds(prefix, after, before)
        changed = self._batch.between(table.name, low, high) | self.puts.between(table.name, low, high)
        rows = self._settled.engine.rows(table.name, low, high, limit + len(changed), reverse=reverse)
        if not changed:
            return [table.unpack(value) for _key, value in rows]
        found = {key: table.unpack(value) for key, value in rows if key not in changed} | changed
        present = [found[key] for key in sorted(found, reverse=reverse) if found[key] is not None]
        return present[:limit]

    def put(self, record: Record) -> None:
        table = TABLES[type(record)]
        self.puts.put((table.name, table.key_of(record)), record)

    def delete(self, kind: type[Record], *key: KeyPart) -> None:
        table = TABLES[kind]
        self.puts.put((table.name, table.key(*key)), None)

    async def append(
        self,
        conversation_id: str,
        event: LogEvent,
        subject: LogEntry | None = None,
        letters: tuple[Letter, ...] = (),
    ) -> int:
        entry, head = following(await self.get(Head, conversation_id), conversation_id, event)
        self.put(entry)
        self.put(head)
        if subject is not None and isinstance(event, AboutMessage):
            self.put(subject)
        for letter in letters:
            self.put(enveloped(entry, letter))
        self.announce(Appended(entry, subject, letters))
        return entry.sequence

    def announce(self, notice: Notice) -> None:
        self.notices.append(notice)


def drive(change: object) -> Any:
    """Runs a change to its end without ever giving the loop back: that is what makes changes happen one by one.

    Raises RuntimeError if it awaits anything but its transaction, TypeError if it is no coroutine.
    """
    if not isinstance(change, Coroutine):
        raise TypeError("a change is an async function")
    try:
        change.send(None)
    except StopIteration as stop:
        return stop.value
    change.close()
    raise RuntimeError("a change may await its transaction and nothing else")
