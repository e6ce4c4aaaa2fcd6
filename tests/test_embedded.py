"""The writer of `storage.embedded`: nothing is told before the sync, a failed sync fails everybody, a full disk refuses.

`Disk` stands between the store and its engine: it holds the sync, fails it, and writes down when it happened. What every
store promises is asked in `contracts.test_store`; crashes, locks and real full disks in `test_engine`.
"""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import trio
import trio.testing
from outcome import Error

from config import limits
from gearlink.clock import new_id
from storage import transaction
from storage.embedded import EmbeddedStore, open_store
from storage.engine import Engine
from storage.events import MemberLeft, Message, MessageEdited, Plain
from storage.keys import TABLES
from storage.notices import Appended, Notice
from storage.records import Account, Amendment, Head, Invite, LogEntry, Member
from storage.store import Outcome, StoreBroken, StoreFull, Transaction
from tests.changes import ANN, BOB, ROOM, appending, putting

ROOT = Path(__file__).parents[1]
HANG_SECONDS = 20  # nothing here takes so long unless somebody waits for ever


class Disk:
    """What a test does to the disk, and sees of it. `events` is what happened, in order."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.trouble: Exception | None = None  # raised by the next sync
        self.held: trio.Event | None = None
        self.reported: list[BaseException] = []
        self.free_bytes: int | None = None  # None: as it is

    def hold(self) -> None:
        """Syncs wait from now on, until `let_go`."""
        self.held = trio.Event()

    def let_go(self) -> None:
        if self.held is not None:
            self.held.set()
            self.held = None


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk, real_sync, real_statvfs = Disk(), Engine.sync, os.statvfs

    async def sync(engine: Engine) -> None:
        disk.events.append("written")
        if disk.held is not None:
            await disk.held.wait()
        if disk.trouble is not None:
            raise disk.trouble
        await real_sync(engine)
        disk.events.append("synced")

    def statvfs(path: Any) -> Any:
        real = real_statvfs(path)
        if disk.free_bytes is None:
            return real
        free = disk.free_bytes // real.f_frsize
        return os.statvfs_result((real.f_bsize, real.f_frsize, real.f_blocks, free, free, *tuple(real)[5:10]))

    monkeypatch.setattr(Engine, "sync", sync)
    monkeypatch.setattr(os, "statvfs", statvfs)
    yield disk


@asynccontextmanager
async def opened(path: Path, disk: Disk) -> AsyncIterator[EmbeddedStore]:
    async with open_store(path / "data", now=0, fresh_id=new_id(), report=disk.reported.append) as store:
        disk.events.clear()
        try:
            yield store
        finally:
            disk.let_go()


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch takes what it is given, however busy the machine is."""
    monkeypatch.setattr(limits, "BATCH_SECONDS_MAX", HANG_SECONDS)


@pytest.fixture
async def store(tmp_path: Path, disk: Disk) -> AsyncIterator[EmbeddedStore]:
    async with opened(tmp_path, disk) as store:
        yield store


# --- durable, then told ----------------------------------------------------------------------------------------------


async def test_the_sync_comes_before_the_callers_and_they_before_the_listeners(
    store: EmbeddedStore, disk: Disk
) -> None:
    store.listen(lambda notices: disk.events.extend("notice" for _ in notices))
    for _ in range(2):
        await store.submit(appending(ROOM), lambda ended: disk.events.append(f"done {ended.unwrap()[0]}"))
    await store.write(putting())
    await store.write(appending(ROOM))
    disk.events.append("returned")
    first = ["written", "synced", "done 1", "done 2", "notice", "notice"]
    assert disk.events == [*first, "written", "synced", "notice", "returned"]


async def test_nobody_is_told_while_the_sync_is_held(store: EmbeddedStore, disk: Disk) -> None:
    told: list[Any] = []
    store.listen(told.extend)
    disk.hold()
    await store.submit(appending(ROOM), told.append)
    await trio.testing.wait_all_tasks_blocked()
    assert disk.events == ["written"]
    assert told == []
    disk.let_go()
    await store.write(putting())
    assert [type(each).__name__ for each in told] == ["Value", "Appended"]


async def test_a_log_never_shows_what_could_still_be_lost(store: EmbeddedStore, disk: Disk) -> None:
    quiet, fresh = new_id(), new_id()

    async def system(tx: Transaction) -> None:
        await tx.append(ROOM, MemberLeft(new_id(), ANN, 7, BOB))

    await store.write(appending(ROOM, ROOM, quiet))
    await store.write(system)
    head = await store.get(Head, ROOM)
    disk.hold()
    for _ in range(2):
        await store.submit(appending(ROOM, fresh), lambda ended: None)
    await trio.testing.wait_all_tasks_blocked()
    assert disk.events[-1] == "written"

    assert head == Head(ROOM, 3, 2, 7)
    assert await store.get(Head, ROOM) == head
    assert await store.get(LogEntry, ROOM, 3) is not None
    assert await store.get(LogEntry, ROOM, 4) is None
    assert [each.sequence for each in await store.scan(LogEntry, ROOM, limit=10)] == [1, 2, 3]
    assert [each.sequence for each in await store.scan(LogEntry, ROOM, limit=2, reverse=True)] == [3, 2]
    assert [each.sequence for each in await store.scan(LogEntry, ROOM, before=5, limit=9, reverse=True)] == [3, 2, 1]
    assert [each.sequence for each in await store.scan(LogEntry, ROOM, before=3, after=1, limit=9)] == [2]
    assert await store.scan(LogEntry, ROOM, after=3, limit=9) == []
    assert await store.get(Head, fresh) is None
    assert await store.get(LogEntry, fresh, 1) is None
    assert await store.scan(LogEntry, fresh, limit=9) == []
    assert len(await store.scan(LogEntry, quiet, limit=9)) == 1
    assert len(await store.scan(LogEntry, limit=99)) == 4
    assert {each.conversation_id for each in await store.scan(Head, limit=99)} == {ROOM, quiet}

    disk.let_go()
    await store.write(putting())
    assert [each.sequence for each in await store.scan(LogEntry, ROOM, limit=10)] == [1, 2, 3, 4, 5]
    assert await store.get(Head, ROOM) == Head(ROOM, 5, 5, 5)
    assert await store.get(Head, fresh) == Head(fresh, 2, 2, 5)


async def test_what_was_said_before_an_edit_is_shown_until_the_edit_cannot_be_lost(
    store: EmbeddedStore, disk: Disk
) -> None:
    await store.write(appending(ROOM, ROOM))
    original = await store.get(LogEntry, ROOM, 1)
    assert original is not None and isinstance(original.event, Message)
    edited = LogEntry(ROOM, 1, msgspec.structs.replace(original.event, content=Plain("better")))

    async def edit(tx: Transaction) -> None:
        await tx.append(ROOM, MessageEdited(new_id(), ANN, 9, edited.event.event_id, 1), edited)

    disk.hold()
    await store.submit(edit, lambda ended: None)
    await trio.testing.wait_all_tasks_blocked()
    assert disk.events[-1] == "written"
    assert await store.get(LogEntry, ROOM, 1) == original
    assert (await store.scan(LogEntry, ROOM, limit=9))[0] == original
    assert await store.scan(Amendment, ROOM, limit=9) == []
    disk.let_go()
    await store.write(putting())
    assert await store.get(LogEntry, ROOM, 1) == edited
    assert [entry.sequence for entry in await store.scan(Amendment, ROOM, limit=9)] == [3]


async def test_those_who_come_during_a_sync_share_the_next_one(store: EmbeddedStore, disk: Disk) -> None:
    disk.hold()
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(store.write, appending(ROOM))
        await trio.testing.wait_all_tasks_blocked()
        assert disk.events == ["written"]
        for _ in range(50):
            nursery.start_soon(store.write, appending(ROOM))
        await trio.testing.wait_all_tasks_blocked()
        disk.let_go()
    assert disk.events == ["written", "synced"] * 2
    assert len(await store.scan(LogEntry, ROOM, limit=1000)) == 100


async def test_what_takes_the_loop_too_long_is_written_before_the_rest_runs(
    store: EmbeddedStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BATCH_SECONDS_MAX", 0.0)
    ended: list[int] = []
    for _ in range(3):
        await store.submit(appending(ROOM), lambda result: ended.extend(result.unwrap()))
    await store.write(appending(ROOM))
    assert disk.events == ["written", "synced"] * 4
    assert ended == [1, 2, 3]
    assert [entry.sequence for entry in await store.scan(LogEntry, ROOM, limit=9)] == [1, 2, 3, 4]


async def test_a_change_whose_caller_was_cancelled_during_the_sync_happens(store: EmbeddedStore, disk: Disk) -> None:
    disk.hold()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.write, appending(ROOM))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert await store.get(LogEntry, ROOM, 1) is None
    disk.let_go()
    assert await store.write(appending(ROOM)) == [2]
    assert await store.get(LogEntry, ROOM, 1) is not None


async def test_a_bug_of_a_caller_or_a_listener_is_reported_and_stops_nobody(store: EmbeddedStore, disk: Disk) -> None:
    heard: list[Notice] = []

    def broken(_any: object) -> None:
        raise ZeroDivisionError

    store.listen(broken)
    store.listen(heard.extend)
    await store.submit(appending(ROOM), broken)
    assert await store.write(appending(ROOM)) == [2]
    assert [each.entry.sequence for each in heard if isinstance(each, Appended)] == [1, 2]
    assert {type(each) for each in disk.reported} == {ZeroDivisionError}
    assert not store.failed.is_set()


# --- the queue -------------------------------------------------------------------------------------------------------


async def test_a_full_queue_makes_callers_wait_and_then_goes_on(
    store: EmbeddedStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WRITE_QUEUE_MAX", 3)
    monkeypatch.setattr(limits, "BATCH_CHANGES_MAX", 2)
    queued: list[int] = []
    ended: list[int] = []

    async def submit(number: int) -> None:
        await store.submit(appending(ROOM), lambda result: ended.extend(result.unwrap()))
        queued.append(number)

    disk.hold()
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + HANG_SECONDS
        await submit(0)
        await trio.testing.wait_all_tasks_blocked()  # it is with the disk
        for number in range(1, 4):
            await submit(number)
        for number in range(4, 10):
            nursery.start_soon(submit, number)
        await trio.testing.wait_all_tasks_blocked()
        assert queued == [0, 1, 2, 3]
        assert ended == []
        assert store.backlog == 3 + 6  # what is queued, and who waits to queue
        disk.let_go()
    await store.write(putting())
    assert sorted(queued) == list(range(10))
    assert ended == list(range(1, 11))
    assert store.backlog == 0


async def test_who_gives_up_before_there_was_room_has_changed_nothing(
    store: EmbeddedStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WRITE_QUEUE_MAX", 1)
    disk.hold()
    await store.submit(appending(ROOM), lambda _ended: None)
    await trio.testing.wait_all_tasks_blocked()
    await store.submit(appending(ROOM), lambda _ended: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.write, putting(Account(ANN, "+1", 1, 1)))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    disk.let_go()
    assert await store.write(appending(ROOM)) == [3]
    assert await store.get(Account, ANN) is None


async def test_on_the_way_out_what_waits_becomes_durable_and_nothing_new_is_taken(tmp_path: Path, disk: Disk) -> None:
    ended: list[Outcome[list[int]]] = []
    async with opened(tmp_path, disk) as store:
        for _ in range(5):
            await store.submit(appending(ROOM), ended.append)
        assert ended == []
    assert [each.unwrap() for each in ended] == [[1], [2], [3], [4], [5]]
    with pytest.raises(StoreBroken, match="no more writes"):
        await store.write(appending(ROOM))
    async with opened(tmp_path, disk) as store:
        assert len(await store.scan(LogEntry, ROOM, limit=9)) == 5


# --- a disk that fails -----------------------------------------------------------------------------------------------


async def test_a_failed_sync_fails_all_who_wait_and_all_who_come_while_reads_go_on(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WRITE_QUEUE_MAX", 3)
    ended: list[Outcome[Any]] = []
    told: list[Notice] = []
    async with opened(tmp_path, disk) as store:
        epoch = store.epoch
        assert await store.write(appending(ROOM)) == [1]
        store.listen(told.extend)
        disk.hold()
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + HANG_SECONDS
            await store.submit(appending(ROOM), ended.append)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(6):  # three fit into the queue, three wait for room
                nursery.start_soon(store.submit, appending(ROOM), ended.append)
            await trio.testing.wait_all_tasks_blocked()
            disk.trouble = OSError(errno.EIO, "Input/output error")
            disk.let_go()
        assert store.failed.is_set()
        assert len(ended) == 7
        for each in ended:
            assert isinstance(each, Error)
            assert isinstance(each.error, StoreBroken)
        disk.trouble = None
        with pytest.raises(StoreBroken):
            await store.write(putting(Account(ANN, "+1", 1, 1)))
        assert await store.get(LogEntry, ROOM, 1) is not None
        assert [each.sequence for each in await store.scan(LogEntry, ROOM, limit=9)] == [1]
        assert await store.get(Head, ROOM) == Head(ROOM, 1, 1, 5)
        assert told == []
        assert [type(each) for each in disk.reported] == [StoreBroken]
    async with opened(tmp_path, disk) as store:
        assert store.epoch == epoch
        assert (await store.write(appending(ROOM)))[0] >= 2
        assert await store.get(LogEntry, ROOM, 1) is not None


async def test_a_store_that_is_cancelled_during_a_sync_has_what_it_acknowledged(tmp_path: Path, disk: Disk) -> None:
    ended: list[Outcome[list[int]]] = []
    with trio.CancelScope() as scope:
        async with opened(tmp_path, disk) as store:
            assert await store.write(appending(ROOM)) == [1]
            disk.hold()
            await store.submit(appending(ROOM), ended.append)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.sleep_forever()
    assert ended == []
    async with opened(tmp_path, disk) as store:
        assert (await store.write(appending(ROOM)))[0] in (2, 3)
        assert await store.get(LogEntry, ROOM, 1) is not None


async def test_free_space_that_cannot_be_asked_for_leaves_it_to_the_write(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def statvfs(_path: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert await store.write(appending(ROOM)) == [1]


async def test_a_full_disk_refuses_changes_that_write_and_nothing_else(store: EmbeddedStore, disk: Disk) -> None:
    async def idempotent(tx: Transaction) -> str:
        if await tx.get(Account, ANN) is None:
            tx.put(Account(ANN, "+1", 1, 1))
            return "new"
        return "known"

    disk.free_bytes = 1 << 20
    ended: list[Outcome[Any]] = []
    for change in (idempotent, appending(ROOM), appending(ROOM)):
        await store.submit(change, ended.append)
    with pytest.raises(StoreFull):
        await store.write(idempotent)
    for each in ended:
        assert isinstance(each, Error)
        assert isinstance(each.error, StoreFull)
    assert await store.get(Account, ANN) is None
    assert disk.events == []

    disk.free_bytes = None
    assert await store.write(idempotent) == "new"
    assert await store.write(appending(ROOM)) == [1]

    disk.free_bytes = 0
    assert await store.write(idempotent) == "known"
    assert len(await store.scan(LogEntry, ROOM, limit=9)) == 1
    with pytest.raises(StoreFull):
        await store.write(appending(ROOM))
    assert not store.failed.is_set()

    disk.free_bytes = None
    assert await store.write(appending(ROOM)) == [2]


async def test_a_small_disk_may_be_filled_to_nine_tenths(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    size, block = 100 << 20, 4096

    def statvfs(free: int) -> Callable[[Any], Any]:
        return lambda _path: os.statvfs_result(
            (block, block, size // block, free // block, free // block, 0, 0, 0, 0, 9)
        )

    monkeypatch.setattr(os, "statvfs", statvfs(size // 10 + block))
    await store.write(appending(ROOM))
    monkeypatch.setattr(os, "statvfs", statvfs(size // 10 - block))
    with pytest.raises(StoreFull):
        await store.write(appending(ROOM))


async def test_a_damaged_record_hurts_only_the_change_that_meets_it(store: EmbeddedStore, disk: Disk) -> None:
    await store.write(putting(Account(ANN, "+1", 1, 1), Account(BOB, "+2", 1, 1)))
    table = TABLES[Account]
    await store._engine.commit([(table.name, table.key(ANN), b"\x07whatever")])

    async def reading(tx: Transaction) -> None:
        await tx.get(Account, ANN)

    ended: list[Outcome[Any]] = []
    for change in (appending(ROOM), reading, appending(ROOM)):
        await store.submit(change, ended.append)
    await store.write(putting())
    assert [ended[0].unwrap(), ended[2].unwrap()] == [[1], [2]]
    with pytest.raises(StoreBroken, match="unknown version"):
        ended[1].unwrap()
    with pytest.raises(StoreBroken, match="unknown version"):
        await store.get(Account, ANN)
    assert await store.get(Account, BOB) is not None
    assert [type(each) for each in disk.reported] == [StoreBroken]


# --- what the writer remembers ---------------------------------------------------------------------------------------


async def test_the_writer_forgets_the_oldest_and_still_reads_right(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "_REMEMBERED_RECORDS_MAX", 2)
    people = [new_id() for _ in range(5)]
    await store.write(putting(*(Member(ROOM, person, "member", 1, 0) for person in people)))

    async def promote(tx: Transaction) -> None:
        for person in people:
            member = await tx.get(Member, ROOM, person)
            assert member is not None
            tx.put(msgspec.structs.replace(member, read_sequence=member.read_sequence + 1))

    for _ in range(3):
        await store.write(promote)
    assert [each.read_sequence for each in await store.scan(Member, ROOM, limit=9)] == [3] * 5
    assert len(store._settled._remembered) == 2


async def test_a_sweep_spares_what_was_renewed_since_it_looked(store: EmbeddedStore, disk: Disk) -> None:
    old, renewed = (Invite(bytes([number]) * 32, 1, expires_at=5) for number in range(2))
    await store.write(putting(old, renewed))
    swept: list[int] = []

    async def sweep() -> None:
        swept.append(await store.sweep(Invite, now=9))

    disk.hold()
    async with trio.open_nursery() as nursery:
        await store.submit(appending(ROOM), lambda _ended: None)
        await trio.testing.wait_all_tasks_blocked()  # the writer is busy
        renewal = putting(msgspec.structs.replace(renewed, expires_at=99))
        await store.submit(renewal, lambda _ended: None)
        nursery.start_soon(sweep)
        await trio.testing.wait_all_tasks_blocked()
        disk.let_go()
    assert swept == [1]
    assert [each.expires_at for each in await store.scan(Invite, limit=9)] == [99]


# --- the kernel's word -----------------------------------------------------------------------------------------------


class Call(NamedTuple):
    name: str
    line: str


_CHILD = """
import os, sys, trio
from pathlib import Path
from storage.embedded import open_store
from tests.changes import ROOM, appending

async def main():
    async with open_store(Path(sys.argv[1]), now=0, fresh_id="epoch") as store:
        for _ in range(20):
            number = (await store.write(appending(ROOM)))[0]
            os.write(1, f"acknowledged {number}\\n".encode())

trio.run(main)
"""


def _traced(log: Path, data: Path) -> Sequence[Call]:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    traced = [
        strace,
        "-f",
        "-y",
        "-qq",
        "-s",
        "64",
        "-e",
        "trace=write,pwrite64,writev,fdatasync,fsync",
        "-o",
        str(log),
    ]
    run = subprocess.run(
        [*traced, sys.executable, "-c", _CHILD, str(data)], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    if "Operation not permitted" in run.stderr or "ptrace" in run.stderr:
        pytest.skip("tracing is not permitted here")
    assert run.returncode == 0, run.stderr
    calls = []
    for line in log.read_text().splitlines():
        _pid, _space, call = line.partition(" ")
        calls.append(Call(call.strip().partition("(")[0], line))
    return calls


def test_the_kernel_sees_the_sync_of_the_log_before_each_acknowledgement(tmp_path: Path) -> None:
    """Seen from outside, with strace: written to the WAL, synced with success, and only then said."""
    stage, acknowledged = "", 0
    for call in _traced(tmp_path / "trace", tmp_path / "data"):
        is_wal = ".log>" in call.line
        if "acknowledged" in call.line and call.name == "write":
            assert stage == "synced", call.line
            stage, acknowledged = "", acknowledged + 1
        elif call.name in ("write", "pwrite64", "writev") and is_wal:
            stage = "written"
        elif call.name in ("fdatasync", "fsync") and is_wal and stage == "written":
            stage = "synced" if call.line.endswith(" = 0") else "syncing"
        elif "fdatasync resumed" in call.line and stage == "syncing":
            stage = "synced" if call.line.endswith(" = 0") else stage
    assert acknowledged == 20
