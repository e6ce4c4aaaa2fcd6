"""The seam on RocksDB: one writer, group commit, and reads that never wait for it.

Changes queue up; the writer takes all that wait, runs them one after another on top of each other's puts, writes the
result as one batch, makes it durable with one sync in a thread, and only then tells everybody: first each caller, then
the listeners. The next batch gathers meanwhile. So the cost of a sync is shared by everyone who waited for it, and a lone
message waits for nothing but its own. What is on disk is `storage.records` behind `storage.keys`.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import msgspec
import outcome
import trio

from config import limits
from storage import migrations
from storage.engine import Engine, open_engine
from storage.keys import TABLES, Table, after_prefix
from storage.records import Appended, Head, LogEntry, LogEvent, Notice, Record
from storage.store import KeyPart, Listener, Outcome, StoreBroken, StoreFull, Transaction

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Observe = Callable[[str, float], None]
Report = Callable[[BaseException], None]
Change = Callable[[Transaction], Awaitable[Any]]
Done = Callable[[Outcome[Any]], None]

_VERSION = b"\x01"  # of the records' encoding; a reader that meets another one needs a migration
_encode = msgspec.msgpack.Encoder().encode
_decoders = {kind: msgspec.msgpack.Decoder(kind).decode for kind in TABLES}
_Puts = dict[tuple[str, bytes], Record | None]


def _value(record: Record) -> bytes:
    return _VERSION + _encode(record)


def _record(kind: type[R], value: bytes) -> R:
    if value[:1] != _VERSION:
        raise StoreBroken(f"a {kind.__name__} record has an unknown version")
    return _decoders[kind](memoryview(value)[1:])  # type: ignore[no-any-return]


def _bounds(
    table: Table, prefix: tuple[KeyPart, ...], after: KeyPart | None, before: KeyPart | None
) -> tuple[bytes, bytes | None]:
    low = table.key(*prefix)
    high = after_prefix(low)
    if before is not None:
        high = table.key(*prefix, before)
    if after is not None:
        low = after_prefix(table.key(*prefix, after)) or b"\xff" * 64
    return low, high


class _Transaction:
    """What one change reads and puts, on top of the batch that it will be part of."""

    def __init__(self, engine: Engine, batch: _Puts) -> None:
        self._engine, self._batch = engine, batch
        self.puts: _Puts = {}
        self.notices: list[Notice] = []

    async def get(self, kind: type[R], *key: KeyPart) -> R | None:
        table = TABLES[kind]
        place = (table.name, table.key(*key))
        for layer in (self.puts, self._batch):
            if place in layer:
                return layer[place]  # type: ignore[return-value]
        value = self._engine.get(*place)
        return None if value is None else _record(kind, value)

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
        low, high = _bounds(table, prefix, after, before)
        changed = {
            key: record
            for layer in (self._batch, self.puts)
            for (name, key), record in layer.items()
            if name == table.name and low <= key and (high is None or key < high)
        }
        found: dict[bytes, Any] = {
            key: _record(kind, value)
            for key, value in self._engine.rows(table.name, low, high, limit + len(changed), reverse=reverse)
        }
        found.update(changed)
        present = [found[key] for key in sorted(found, reverse=reverse) if found[key] is not None]
        return present[:limit]

    def put(self, record: Record) -> None:
        table = TABLES[type(record)]
        self.puts[table.name, table.key_of(record)] = record

    def delete(self, kind: type[Record], *key: KeyPart) -> None:
        table = TABLES[kind]
        self.puts[table.name, table.key(*key)] = None

    async def append(self, conversation_id: str, event: LogEvent) -> int:
        head = await self.get(Head, conversation_id) or Head(conversation_id, 0, 0, 0)
        sequence = head.sequence + 1
        entry = LogEntry(conversation_id, sequence, event)
        is_message = type(event).__name__ == "Message"
        self.put(entry)
        self.put(Head(conversation_id, sequence, sequence if is_message else head.message_sequence, event.at))
        self.notices.append(Appended(entry))
        return sequence

    def announce(self, notice: Notice) -> None:
        self.notices.append(notice)


async def _delete_unchanged(table: Table, expired: Sequence[Record], tx: Transaction) -> int:
    """Between the look and this change somebody may have renewed one of them: that one stays."""
    swept = 0
    for record in expired:
        key = [getattr(record, field) for field in table.fields]
        if await tx.get(table.kind, *key) == record:
            tx.delete(table.kind, *key)
            swept += 1
    return swept


def _drive(change: Awaitable[T]) -> T:
    """Runs a change to its end without ever giving the loop back: that is what makes changes happen one by one."""
    assert isinstance(change, Coroutine)
    try:
        change.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    change.close()
    raise RuntimeError("a change may await its transaction and nothing else")


class EmbeddedStore:
    """`storage.store.Store` on a directory. Made by `open_store`."""

    def __init__(self, engine: Engine, *, observe: Observe, report: Report) -> None:
        self.epoch = (engine.get(migrations.META, migrations.EPOCH) or b"").decode()
        self.failed = trio.Event()  # set once, when a write has failed: no more writes will be taken
        self._engine = engine
        self._observe = observe
        self._report = report
        self._queue: deque[tuple[Change, Done]] = deque()
        self._wanted = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._closing = False
        self._listeners: list[Listener] = []
        self._unsynced: dict[str, int] = {}  # conversation: first sequence of its log that could still be lost

    # --- reads -------------------------------------------------------------------------------------------------------

    async def get(self, kind: type[R], *key: KeyPart) -> R | None:
        table = TABLES[kind]
        value = self._engine.get(table.name, table.key(*key))
        if value is None:
            return None
        if self._unsynced and kind in (LogEntry, Head):
            return await self._get_synced(kind, *key)
        return _record(kind, value)

    async def _get_synced(self, kind: type[R], *key: KeyPart) -> R | None:
        """While a batch is on its way to the disk, its log entries are not there yet for anybody."""
        record = await _Transaction(self._engine, {}).get(kind, *key)
        hidden_from = self._unsynced.get(str(key[0]))
        if hidden_from is None or not isinstance(record, Head | LogEntry) or record.sequence < hidden_from:
            return record
        if isinstance(record, LogEntry):
            return None
        newest = await self.scan(LogEntry, key[0], limit=1, reverse=True)
        if not newest:
            return None
        message_sequence = min(record.message_sequence, hidden_from - 1)
        return Head(str(key[0]), newest[0].sequence, message_sequence, newest[0].event.at)  # type: ignore[return-value]

    async def scan(
        self,
        kind: type[R],
        *prefix: KeyPart,
        after: KeyPart | None = None,
        before: KeyPart | None = None,
        limit: int,
        reverse: bool = False,
    ) -> list[R]:
        started = perf_counter()
        if kind is LogEntry and prefix and (hidden_from := self._unsynced.get(str(prefix[0]))) is not None:
            before = hidden_from if before is None else min(int(before), hidden_from)
        table = TABLES[kind]
        low, high = _bounds(table, prefix, after, before)
        rows = (
            [] if high is not None and low >= high else self._engine.rows(table.name, low, high, limit, reverse=reverse)
        )
        found = [_record(kind, value) for _key, value in rows]
        self._observe("scan", perf_counter() - started)
        return found

    # --- writes ------------------------------------------------------------------------------------------------------

    async def write(self, change: Callable[[Transaction], Awaitable[T]]) -> T:
        finished = trio.Event()
        result: list[Outcome[T]] = []

        def done(ended: Outcome[T]) -> None:
            result.append(ended)
            finished.set()

        await self.submit(change, done)
        await finished.wait()
        return result[0].unwrap()

    async def submit(self, change: Callable[[Transaction], Awaitable[T]], done: Callable[[Outcome[T]], None]) -> None:
        while len(self._queue) >= limits.WRITE_QUEUE_MAX and not self.failed.is_set():
            await self._room.park()
        if self.failed.is_set() or self._closing:
            done(outcome.Error(StoreBroken("the store takes no more writes")))
            return
        self._queue.append((change, done))
        self._wanted.set()

    async def sweep(self, kind: type[Record], now: int) -> int:
        table, swept, low = TABLES[kind], 0, b""
        while rows := self._engine.rows(table.name, low, None, limits.SWEEP_ROWS_PER_STEP):
            low = rows[-1][0] + b"\0"
            found = [_record(kind, value) for _key, value in rows]
            expired = [record for record in found if record.expires_at <= now]  # type: ignore[attr-defined]
            if expired:
                swept += await self.write(partial(_delete_unchanged, table, expired))
            else:
                await trio.lowlevel.checkpoint()
        return swept

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The one writer. Ends when `close_writer` was called and the queue is empty, or after a failed write."""
        task_status.started()
        while True:
            while not self._queue:
                if self._closing:
                    return
                self._wanted = trio.Event()
                await self._wanted.wait()
            taken = [self._queue.popleft() for _ in range(min(len(self._queue), limits.BATCH_CHANGES_MAX))]
            self._room.unpark_all()
            try:
                await self._commit(taken)
            except StoreBroken as trouble:
                self._fail(taken, trouble)
                return

    def close_writer(self) -> None:
        """No new changes; the writer ends once it has made durable what waits."""
        self._closing = True
        self._wanted.set()

    def _fail(self, taken: Sequence[tuple[Change, Done]], trouble: StoreBroken) -> None:
        self.failed.set()
        self._room.unpark_all()
        waiting = [*taken, *self._queue]
        self._queue.clear()
        for _change, done in waiting:
            self._tell(done, outcome.Error(trouble))
        self._report(trouble)

    async def _commit(self, taken: Sequence[tuple[Change, Done]]) -> None:
        started = perf_counter()
        batch, notices, ended = self._run_changes([change for change, _done in taken])
        if batch:
            self._hide(notices)
            await self._engine.commit(
                [(name, key, None if record is None else _value(record)) for (name, key), record in batch.items()]
            )
            self._unsynced = {}
            self._observe("commit", perf_counter() - started)
        for (_change, done), result in zip(taken, ended, strict=True):
            self._tell(done, result)
        if notices:
            for listener in self._listeners:
                try:
                    listener(notices)
                except Exception as trouble:  # noqa: BLE001 - a listener's bug must not stop the writer
                    self._report(trouble)

    def _run_changes(self, changes: Sequence[Change]) -> tuple[_Puts, list[Notice], list[Outcome[Any]]]:
        batch: _Puts = {}
        notices: list[Notice] = []
        ended: list[Outcome[Any]] = []
        has_room = self._engine.has_room()
        for change in changes:
            transaction = _Transaction(self._engine, batch)
            try:
                result: Outcome[Any] = outcome.Value(_drive(change(transaction)))
                if transaction.puts and not has_room:
                    raise StoreFull("the disk is full")
            except StoreBroken:
                raise
            except Exception as refused:  # noqa: BLE001 - a refusal or a bug of this change alone; its caller gets it
                result = outcome.Error(refused)
            else:
                batch.update(transaction.puts)
                notices.extend(transaction.notices)
            ended.append(result)
        return batch, notices, ended

    def _hide(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            if isinstance(notice, Appended):
                self._unsynced.setdefault(notice.entry.conversation_id, notice.entry.sequence)

    def _tell(self, done: Done, result: Outcome[Any]) -> None:
        try:
            done(result)
        except Exception as trouble:  # noqa: BLE001 - a caller's bug must not stop the writer
            self._report(trouble)


@asynccontextmanager
async def open_store(
    path: Path,
    *,
    now: int,
    fresh_id: str,
    free_bytes_min: int = 64 << 20,
    observe: Observe = lambda _operation, _seconds: None,
    report: Report = lambda _trouble: None,
) -> AsyncIterator[EmbeddedStore]:
    """The store in the directory `path`, made if it is not there; `fresh_id` is the epoch if it is.

    `observe` hears of operations and their seconds, `report` of troubles that belong to no caller. On the way out the
    writer finishes what waits and the database is flushed and closed. Raises the errors of `open_engine`.
    """

    def opened() -> Engine:
        tables = [migrations.META, *(table.name for table in TABLES.values())]
        return open_engine(path, tables, free_bytes_min=free_bytes_min, format_now=migrations.FORMAT_NOW, now=now)

    engine = await trio.to_thread.run_sync(opened)
    try:
        await migrations.migrate(engine, fresh_id)
        store = EmbeddedStore(engine, observe=observe, report=report)
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            try:
                yield store
            finally:
                store.close_writer()
    finally:
        await engine.close()
