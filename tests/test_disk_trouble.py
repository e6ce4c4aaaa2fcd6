"""What survives on a disk that damages, fills, turns read-only or loses its power: every acknowledged record.

The trouble is real where it can be had: flipped bytes in a table file, `kill -9`, a full tmpfs, a read-only mount.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from gearlink.clock import new_id
from storage.embedded import open_store
from storage.records import Account, LogEntry
from storage.store import StoreBroken, StoreError, StoreFull
from tests.changes import ROOM, appending, putting

ROOT = Path(__file__).parents[1]
SECONDS_MAX = 60


# --- damage ----------------------------------------------------------------------------------------------------------


async def _flushed(path: Path, rows: int) -> None:
    """Accounts in a table file, not only in the log of the database."""
    async with open_store(path, now=1, fresh_id=new_id()) as store:
        for start in range(0, rows, 500):
            people = [Account(new_id(), "+1", 1, 1, bio=os.urandom(50).hex()) for _ in range(start, start + 500)]
            await store.write(putting(*people))
        store._engine._families["accounts"].flush()


def _flip(path: Path) -> None:
    """Bytes in the middle of the largest table file."""
    file = max(path.glob("db/*.sst"), key=lambda each: each.stat().st_size)
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(255 - byte for byte in data[middle : middle + 8])
    file.write_bytes(data)


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_damaged_block_is_an_error_and_never_a_short_list(tmp_path: Path, reverse: bool) -> None:
    path = tmp_path / "data"
    await _flushed(path, 2000)
    async with open_store(path, now=1, fresh_id="") as store:
        everybody = await store.scan(Account, limit=5000)
        assert len(everybody) == 2000
    _flip(path)
    lost = 0
    async with open_store(path, now=1, fresh_id="") as store:
        with pytest.raises(StoreBroken, match="is damaged and cannot be read: Corruption"):
            await store.scan(Account, limit=5000, reverse=reverse)
        for each in everybody:
            try:
                assert await store.get(Account, each.user_id) == each
            except StoreBroken as trouble:
                lost += 1
                assert "Corruption" in trouble.line
        assert 0 < lost < 200
        assert await store.write(appending(ROOM)) == [1]


# --- kill -9 ---------------------------------------------------------------------------------------------------------

_WRITER = """
import os, sys, trio
from tests.test_disk_trouble import Path, ROOM, appending, open_store

async def main():
    async with open_store(Path(sys.argv[1]), now=0, fresh_id="epoch") as store:
        def done(ended):
            os.write(1, f"{ended.unwrap()[0]}\\n".encode())
        while True:
            for _ in range(20):
                await store.submit(appending(ROOM), done)
            await store.write(appending(ROOM))

trio.run(main)
"""


def _killed_after(path: Path, lines: int) -> int:
    """Lets a writer run, kills it in the middle and returns the last number that it said was acknowledged."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, path], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        said += child.stdout.readlines()  # what it said before it died counts too
    return max(int(line) for line in said if line.endswith(b"\n"))


async def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    """Again and again on the same data."""
    path, before = tmp_path / "data", 0
    for lines in (150, 187, 224):
        acknowledged = await trio.to_thread.run_sync(_killed_after, path, lines)
        async with open_store(path, now=1, fresh_id="") as store:
            found = [entry.sequence for entry in await store.scan(LogEntry, ROOM, limit=1_000_000)]
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= acknowledged >= before + lines
        before = len(found)


# --- a disk that is really full --------------------------------------------------------------------------------------

_ON_A_SMALL_DISK = """
import os, subprocess, sys, trio
from pathlib import Path
from tests import test_disk_trouble

disk = Path(sys.argv[1])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], stderr=subprocess.DEVNULL).returncode:
    sys.exit(99)
trio.run(getattr(test_disk_trouble, sys.argv[2]), disk)
"""


def _with_mounts(code: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Runs `code` in a process that may mount what nobody else sees; skips where that is not permitted."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("a file system of one's own wants unshare and root")
    command = [unshare, "-m", sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX)
    if run.returncode == 99 or "unshare failed" in run.stderr:
        pytest.skip("mounting is not permitted here")
    assert run.returncode == 0, run.stdout + run.stderr
    return run


@contextmanager
def _ballast(disk: Path, leave_bytes: int) -> Iterator[None]:
    """Somebody else's file, which leaves only so much."""
    file = disk / "ballast"
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY)
    try:
        os.posix_fallocate(descriptor, 0, shutil.disk_usage(disk).free - leave_bytes)
        yield
    finally:
        os.close(descriptor)
        file.unlink()


async def _write_until(store: Any, error: type[StoreError], acknowledged: list[int]) -> None:
    text = os.urandom(8000).hex()
    while True:
        try:
            await store.write(putting(Account(new_id(), "+1", 1, 1, bio=text)))
            acknowledged += await store.write(appending(ROOM))
        except error:
            return


async def _read_all(store: Any) -> list[int]:
    return [entry.sequence for entry in await store.scan(LogEntry, ROOM, limit=1_000_000)]


async def watched_disk_story(disk: Path) -> None:
    """With the watch on the free space, the store refuses in time, and goes on by itself once there is room."""
    acknowledged: list[int] = []
    async with open_store(disk / "data", now=1, fresh_id="epoch") as store:
        with _ballast(disk, 12 << 20):
            await _write_until(store, StoreFull, acknowledged)
            assert len(acknowledged) > 50
            assert await _read_all(store) == acknowledged
        assert not store.failed.is_set()
        acknowledged += await store.write(appending(ROOM))
    async with open_store(disk / "data", now=1, fresh_id="") as store:
        assert await _read_all(store) == acknowledged


async def unwatched_disk_story(disk: Path) -> None:
    """Without it the write itself fails: no more writes, reads go on, and a restart has all that was acknowledged."""
    acknowledged: list[int] = []
    async with open_store(disk / "data", now=1, fresh_id="epoch", free_bytes_min=0) as store:
        with _ballast(disk, 4 << 20):
            await _write_until(store, StoreBroken, acknowledged)
            assert len(acknowledged) > 50
            assert store.failed.is_set()
            assert await _read_all(store) == acknowledged
    with _ballast(disk, 1 << 20):
        try:
            async with open_store(disk / "data", now=1, fresh_id=""):
                raise AssertionError("there is no room to open")
        except StoreFull as full:
            assert "free some space" in full.line
    async with open_store(disk / "data", now=1, fresh_id="") as store:
        found = await _read_all(store)
        assert found[: len(acknowledged)] == acknowledged
        assert found == list(range(1, len(found) + 1))
        assert await store.write(appending(ROOM)) == [len(found) + 1]


def test_on_a_full_disk_the_store_refuses_loses_nothing_and_goes_on_with_room(tmp_path: Path) -> None:
    _with_mounts(_ON_A_SMALL_DISK, tmp_path, watched_disk_story.__name__)


def test_a_disk_that_fills_under_a_write_stops_the_store_and_a_restart_has_everything(tmp_path: Path) -> None:
    _with_mounts(_ON_A_SMALL_DISK, tmp_path, unwatched_disk_story.__name__)


_READ_ONLY = """
import subprocess, sys
from tests.test_engine import Path, StoreDenied, opened
path = Path(sys.argv[1])
for options in (["--bind", path, path], ["-o", "remount,bind,ro", path]):
    if subprocess.run(["mount", *options], stderr=subprocess.DEVNULL).returncode:
        sys.exit(99)
try:
    opened(path / "data")
except StoreDenied as denied:
    print(denied.line)
"""


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
async def test_a_disk_that_is_really_read_only_is_told(tmp_path: Path, existing: bool) -> None:
    if existing:
        async with open_store(tmp_path / "data", now=1, fresh_id="epoch") as store:
            await store.write(appending(ROOM))
    ended = await trio.to_thread.run_sync(_with_mounts, _READ_ONLY, tmp_path)
    assert "this user may not write to" in ended.stdout
