"""The seam on RocksDB: one writer, group commit, and reads that never wait for it.

Changes queue up; the writer takes all that wait, runs them one after another on top of each other's puts, writes the
result as one batch, makes it durable with one sync in a thread, and only then tells everybody: first each caller, then
the listeners. The next batch gathers meanwhile. So the cost of a sync is shared by everyone who waited for it, and a lone
message waits for nothing but its own. What is on disk is `storage.records` behind `storage.keys`.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import outcome
import trio

from config import limits
from storage import migrations
from storage.engine import Engine, open_engine
from storage.keys import TABLES, Table, pack
from storage.notices import Appended, Notice
from storage.records import Head, LogEntry, Record
from storage.store import KeyPart, Listener, Outcome, StoreBroken, StoreFull, Transaction
from storage.transaction import Place, Puts, Settled, WriteTransaction, drive

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Observe = Callable[[str, float], None]
Report = Callable[[BaseException], None]
Change = Callable[[Transaction], Awaitable[Any]]
Done = Callable[[Outcome[Any]], None]
_GATHER_STEPS = (
    5  # passes of the loop: socket to reader, reader to session, session to here, and some to spare. Measured:
)
# with forty sends in flight, batches of 33 instead of 17, and a tenth less work for each message


async def _delete_unchanged(table: Table, expired: Sequence[Record], tx: Transaction) -> int:
    """Between the look and this change somebody may have renewed one of them: that one stays."""
    swept = 0
    for record in expired:
        key = table.parts_of(record)
        if await tx.get(table.kind, *key) == record:
            tx.delete(table.kind, *key)
            swept += 1
    return swept


class _Batch:
    """What the changes that are written together came to."""

    def __init__(self) -> None:
        self.rows: dict[Place, bytes | None] = {}  # as the engine gets them
        self.puts = Puts()  # the same, as the next change reads them
        self.notices: list[Notice] = []
        self.ended: list[Outcome[Any]] = []


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
        self._settled = Settled(engine)
        self._unsynced: dict[str, Head | None] = {}  # logs with entries that could still be lost: the head before them
        self._rewritten: dict[tuple[str, int], LogEntry] = {}  # earlier entries as they were before the same batch

    # --- reads -------------------------------------------------------------------------------------------------------

    async def get(self, kind: type[R], *key: KeyPart) -> R | None:
        table = TABLES[kind]
        value = self._engine.get(table.name, table.key(*key))
        return None if value is None else self._synced(table.unpack(value))

    def _synced(self, record: Any) -> Any:
        """`record`, unless it is of a log and could still be lost: while a batch is on its way, its entries are not there."""
        if not self._unsynced or not isinstance(record, Head | LogEntry):
            return record
        if record.conversation_id not in self._unsynced:
            return record
        if isinstance(record, LogEntry) and (before := self._rewritten.get((record.conversation_id, record.sequence))):
            return before
        head = self._unsynced[record.conversation_id]
        if isinstance(record, Head):
            return head
        return record if head is not None and record.sequence <= head.sequence else None

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
        if issubclass(kind, LogEntry) and prefix and str(prefix[0]) in self._unsynced:
            head = self._unsynced[str(prefix[0])]
            hidden_from = 1 if head is None else head.sequence + 1
            before = hidden_from if before is None else min(int(before), hidden_from)
        table = TABLES[kind]
        rows = self._engine.rows(table.name, *table.bounds(prefix, after, before), limit, reverse=reverse)
        found = [table.unpack(value) for _key, value in rows]
        if self._unsynced:
            found = [record for record in map(self._synced, found) if record is not None]
        self._observe("scan", perf_counter() - started)
        return found

    # --- writes ------------------------------------------------------------------------------------------------------

    @property
    def backlog(self) -> int:
        """The changes that wait for the writer, and the callers who wait for room to queue theirs."""
        return len(self._queue) + len(self._room)

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
            found = [table.unpack(value) for _key, value in rows]
            expired = [record for record in found if record.expires_at <= now]
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
        is_busy = False
        while True:
            while not self._queue:
                if self._closing:
                    return
                self._wanted = trio.Event()
                await self._wanted.wait()
            if is_busy:  # the answers to the last batch make its senders send again: let them come along
                for _ in range(_GATHER_STEPS):
                    await trio.lowlevel.checkpoint()
            taken = [self._queue.popleft() for _ in range(min(len(self._queue), limits.BATCH_CHANGES_MAX))]
            is_busy = len(taken) > 1
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

    async def _commit(self, taken: list[tuple[Change, Done]]) -> None:
        """Those of `taken` for which there was no time go back to the head of the queue."""
        started = perf_counter()
        batch = self._run_changes([change for change, _done in taken])
        self._queue.extendleft(reversed(taken[len(batch.ended) :]))
        del taken[len(batch.ended) :]
        if batch.rows:
            self._hide(batch.notices)
            await self._engine.commit([(*place, value) for place, value in batch.rows.items()])
            self._unsynced, self._rewritten = {}, {}
            self._settled.wrote(batch.puts)
            self._observe("commit", perf_counter() - started)
        for (_change, done), result in zip(taken, batch.ended, strict=True):
            self._tell(done, result)
        if batch.notices:
            for listener in self._listeners:
                try:
                    listener(batch.notices)
                except Exception as trouble:  # noqa: BLE001 - a listener's bug must not stop the writer
                    self._report(trouble)

    def _run_changes(self, changes: Sequence[Change]) -> "_Batch":
        """Runs as many of them, and one at least, as the loop can wait for."""
        batch, enough_at = _Batch(), perf_counter() + limits.BATCH_SECONDS_MAX
        has_room = self._engine.has_room()
        for change in changes:
            transaction = WriteTransaction(self._settled, batch.puts)
            try:
                value = drive(change(transaction))
                if transaction.puts.records and not has_room:
                    raise StoreFull("the disk is full")
                rows = [
                    (place, None if record is None else pack(record))
                    for place, record in transaction.puts.records.items()
                ]
            except Exception as refused:  # noqa: BLE001 - a refusal or a bug of this change alone; its caller gets it
                batch.ended.append(outcome.Error(refused))
                if isinstance(refused, StoreBroken):  # it met damaged data: the others need not suffer for it
                    self._report(refused)
            else:
                batch.ended.append(outcome.Value(value))
                batch.rows.update(rows)
                batch.puts.take(transaction.puts)
                batch.notices.extend(transaction.notices)
            if perf_counter() >= enough_at:
                break
        return batch

    def _hide(self, notices: Sequence[Notice]) -> None:
        """Before the batch is written: from now on reads show the logs that it appends to as they are now."""
        for notice in notices:
            if not isinstance(notice, Appended):
                continue
            if (conversation_id := notice.entry.conversation_id) not in self._unsynced:
                self._unsynced[conversation_id] = self._settled.find(Head, conversation_id)
            if notice.subject is not None:
                place = conversation_id, notice.subject.sequence
                if place not in self._rewritten and (entry := self._settled.find(LogEntry, *place)) is not None:
                    self._rewritten[place] = entry

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
