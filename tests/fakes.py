"""Stand-ins for what a test cannot wait for: a store in memory, a wall clock set by hand, a phone that shows its codes.

`FakeStore` keeps the promises of `storage.store` as far as memory can (the contract suite runs against it too): changes
run one at a time, are written whole or not at all, are told in order after they are written. Records go through
MessagePack, so that what the disk could not hold fails here as well. Its knobs: `fail_next`, `reads`, `writes`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import outcome
import trio

from gearlink.clock import Clock, new_id
from gearlink.sms import Code, NotSent, Send
from storage.events import AboutMessage, Letter, LogEvent
from storage.keys import TABLES
from storage.notices import Appended, Notice
from storage.records import Head, LogEntry, Record, enveloped, following
from storage.store import KeyPart, Listener, Outcome
from storage.transaction import drive

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Rows = dict[bytes, bytes | None]  # None: deleted by a change that is not yet written


class FakeClock(Clock):
    """A wall clock that stands still until a test moves it, backwards too."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float = 1_767_225_600.0) -> None:  # 2026-01-01T00:00:00Z
        self.seconds = seconds
        super().__init__(lambda: self.seconds)

    def advance(self, *, seconds: float = 0, minutes: float = 0, days: float = 0) -> None:
        self.seconds += seconds + 60 * minutes + 86_400 * days


class FakeSms:
    """A provider that keeps what it was given in `codes`. `trouble` is raised in place of the next send."""

    def __init__(self) -> None:
        self.codes: list[Code] = []
        self.trouble: Exception | None = None
        self.hold: trio.Event | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Send]:
        yield self._send

    async def _send(self, code: Code) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            raise trouble
        self.codes.append(code)

    def refuse_next(self, reason: str = "status 500") -> None:
        self.trouble = NotSent(reason)

    def code_for(self, phone_number: str) -> str:
        """The newest code sent to `phone_number`."""
        return next(code.code for code in reversed(self.codes) if code.phone_number == phone_number)


class FakeStore:
    """A store in memory."""

    def __init__(self) -> None:
        self.epoch = new_id()
        self.fail_next: Exception | None = None  # raised by the next write, which then writes nothing
        self.reads: list[type[Record]] = []  # the kind of every read outside of changes
        self.writes = 0
        self.notices: list[Notice] = []
        self._rows: dict[type[Record], Rows] = {}
        self._listeners: list[Listener] = []

    async def get(self, kind: type[R], *key: KeyPart) -> R | None:
        await trio.lowlevel.checkpoint()
        self.reads.append(kind)
        return _get(self._rows.get(kind, {}), kind, key)

    async def scan(
        self,
        kind: type[R],
        *prefix: KeyPart,
        after: KeyPart | None = None,
        before: KeyPart | None = None,
        limit: int,
        reverse: bool = False,
    ) -> list[R]:
        await trio.lowlevel.checkpoint()
        self.reads.append(kind)
        return _scan(self._rows.get(kind, {}), kind, prefix, after, before, limit, reverse)

    async def write(self, change: Callable[["FakeTransaction"], Awaitable[T]]) -> T:
        await trio.lowlevel.checkpoint()
        ended: list[Outcome[T]] = []
        await self.submit(change, ended.append)
        return ended[0].unwrap()

    async def submit(
        self, change: Callable[["FakeTransaction"], Awaitable[T]], done: Callable[[Outcome[T]], None]
    ) -> None:
        tx = FakeTransaction(self._rows)
        result = outcome.capture(self._run, change, tx)
        done(result)
        if isinstance(result, outcome.Value) and tx.notices:
            self.notices.extend(tx.notices)
            for listener in self._listeners:
                listener(tx.notices)

    def _run(self, change: Callable[["FakeTransaction"], Awaitable[T]], tx: "FakeTransaction") -> T:
        value: T = drive(change(tx))
        trouble, self.fail_next = self.fail_next, None
        if trouble is not None:
            raise trouble
        for kind, changed in tx.changed.items():
            rows = self._rows.setdefault(kind, {})
            for key, packed in changed.items():
                if packed is None:
                    rows.pop(key, None)
                else:
                    rows[key] = packed
        self.writes += 1
        return value

    async def sweep(self, kind: type[Record], now: int) -> int:
        table = TABLES[kind]

        async def change(tx: FakeTransaction) -> int:
            rows = await tx.scan(kind, limit=1_000_000)
            expired = [record for record in rows if record.expires_at <= now]  # type: ignore[attr-defined]
            for record in expired:
                tx.delete(kind, *table.parts_of(record))
            return len(expired)

        return await self.write(change)

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def all(self, kind: type[R]) -> list[R]:
        """Every record of `kind` in key order, without counting as a read."""
        return _scan(self._rows.get(kind, {}), kind, (), None, None, 1_000_000, False)


class FakeTransaction:
    def __init__(self, rows: dict[type[Record], Rows]) -> None:
        self._rows = rows
        self.changed: dict[type[Record], Rows] = {}
        self.notices: list[Notice] = []

    def _seen(self, kind: type[Record]) -> Rows:
        merged = self._rows.get(kind, {}) | self.changed.get(kind, {})
        return {key: value for key, value in merged.items() if value is not None}

    async def get(self, kind: type[R], *key: KeyPart) -> R | None:
        return _get(self._seen(kind), kind, key)

    async def scan(
        self,
        kind: type[R],
        *prefix: KeyPart,
        after: KeyPart | None = None,
        before: KeyPart | None = None,
        limit: int,
        reverse: bool = False,
    ) -> list[R]:
        return _scan(self._seen(kind), kind, prefix, after, before, limit, reverse)

    def put(self, record: Record) -> None:
        table = TABLES[type(record)]
        self.changed.setdefault(type(record), {})[table.key_of(record)] = msgspec.msgpack.encode(record)

    def delete(self, kind: type[Record], *key: KeyPart) -> None:
        self.changed.setdefault(kind, {})[TABLES[kind].key(*key)] = None

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


def _get(rows: Rows, kind: type[R], key: tuple[KeyPart, ...]) -> R | None:
    value = rows.get(TABLES[kind].key(*key))
    return None if value is None else msgspec.msgpack.decode(value, type=kind)


def _scan(
    rows: Rows, kind: type[R], prefix: tuple[KeyPart, ...], after: Any, before: Any, limit: int, reverse: bool
) -> list[R]:
    table = TABLES[kind]
    start = table.prefix(*prefix)
    low = table.prefix(*prefix, after) if after is not None else None
    high = table.prefix(*prefix, before) if before is not None else None
    keys = [key for key in sorted(rows, reverse=reverse) if key.startswith(start)]
    if low is not None:
        keys = [key for key in keys if key[: len(low)] > low]
    if high is not None:
        keys = [key for key in keys if key[: len(high)] < high]
    return [msgspec.msgpack.decode(rows[key] or b"", type=kind) for key in keys[:limit]]
