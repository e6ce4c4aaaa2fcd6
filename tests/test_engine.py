"""The data directory and the database in it: whose it is, who may open it, and how it moves to a newer format.

What damage, crashes and full disks do is asked in `test_disk_trouble`.
"""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from gearlink.clock import new_id
from storage import engine as engine_module
from storage import migrations
from storage.embedded import open_store
from storage.engine import Engine, Put, Stamp, open_engine, read_stamp, write_stamp
from storage.keys import TABLES
from storage.migrations import FORMAT_NOW, META, STEPS, Step, format_of, migrate
from storage.store import StoreBroken, StoreDenied, StoreError, StoreForeign, StoreFull, StoreLocked
from tests.changes import ROOM, appending

ROOT = Path(__file__).parents[1]
SECONDS_MAX = 60
NAMES = [META, *(table.name for table in TABLES.values())]


def opened(path: Path, *, format_now: int = FORMAT_NOW, free_bytes_min: int = 1 << 20) -> Engine:
    return open_engine(path, NAMES, free_bytes_min=free_bytes_min, format_now=format_now, now=77)


def everything_in(path: Path) -> dict[str, bytes | None]:
    return {str(each.relative_to(path)): each.read_bytes() if each.is_file() else None for each in path.rglob("*")}


# --- the stamp -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_over", [[], ["lock"], ["lock", "GEARLINK.new"], ["lost+found"]])
async def test_an_empty_place_becomes_a_data_directory(tmp_path: Path, left_over: list[str]) -> None:
    """Also one where an earlier start died at once, and the root of a fresh disk."""
    for name in left_over:
        (tmp_path / name).touch()
    engine = opened(tmp_path)
    assert read_stamp(tmp_path) == Stamp("gearlink", 0, 0, 77)
    await engine.close()


async def test_a_missing_place_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"
    await opened(path).close()
    assert path.stat().st_mode & 0o777 == 0o700
    assert (path / "GEARLINK").is_file()


async def test_the_stamp_of_a_store_tells_its_format_and_stays_on_the_next_open(tmp_path: Path) -> None:
    path = tmp_path / "data"
    epochs = []
    for now in (1, 2):
        async with open_store(path, now=now, fresh_id=new_id()) as store:
            epochs.append(store.epoch)
            assert read_stamp(path) == Stamp("gearlink", FORMAT_NOW, STEPS[-1].compatible, 1)
    assert epochs[0] == epochs[1]


def test_a_directory_with_other_files_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    (tmp_path / "db").mkdir()
    before = everything_in(tmp_path)
    with pytest.raises(StoreForeign, match="holds other files") as caught:
        opened(tmp_path)
    assert "--data" in caught.value.line
    assert everything_in(tmp_path) == before


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("important")
    with pytest.raises(StoreForeign, match="is not a directory"):
        opened(path)
    assert path.read_text() == "important"


@pytest.mark.parametrize(
    ("stamp", "line"),
    [
        (b'{"product":"other","format":1,"compatible":1,"created_at":1}', "belongs to another program"),
        (
            b'{"product":"gearlink","format":9,"compatible":7,"created_at":1}',
            f"newer gearlink .format 9.*up to {FORMAT_NOW}.: upgrade",
        ),
        (b"", "cannot be read"),
        (b'{"product":"gearlink"}', "cannot be read"),
        (b'{"product":"gear\xff\xfe","format":1,"compatible":1,"created_at":1}', "cannot be read"),
        (b"\0" * 64, "cannot be read"),
    ],
    ids=["foreign", "newer", "empty", "cut", "no text", "zeros"],
)
def test_data_that_is_not_for_this_program_is_refused_and_not_touched(tmp_path: Path, stamp: bytes, line: str) -> None:
    (tmp_path / "GEARLINK").write_bytes(stamp)
    before = everything_in(tmp_path)
    with pytest.raises(StoreForeign, match=line):
        opened(tmp_path)
    assert everything_in(tmp_path) == before


async def test_data_of_a_newer_program_that_says_so_may_be_used(tmp_path: Path) -> None:
    """A step back after an upgrade: the stamp of the newer program stays as it is."""
    path = tmp_path / "data"
    async with open_store(path, now=1, fresh_id=new_id()) as store:
        await store.write(appending(ROOM))
    engine = opened(path, format_now=FORMAT_NOW)
    await engine.commit([(META, b"format", b"9")])
    await engine.close()
    write_stamp(path, Stamp("gearlink", 9, STEPS[-1].compatible, 1))
    async with open_store(path, now=1, fresh_id=new_id()) as store:
        assert await store.write(appending(ROOM)) == [2]
    assert read_stamp(path) == Stamp("gearlink", 9, STEPS[-1].compatible, 1)


def test_a_stamp_is_json_that_people_can_read(tmp_path: Path) -> None:
    write_stamp(tmp_path, Stamp("gearlink", 2, 1, 5))
    text = (tmp_path / "GEARLINK").read_bytes()
    assert msgspec.json.decode(text) == {"product": "gearlink", "format": 2, "compatible": 1, "created_at": 5}
    assert text.endswith(b"\n")
    assert not (tmp_path / "GEARLINK.new").exists()


# --- the lock --------------------------------------------------------------------------------------------------------


async def test_data_in_use_cannot_be_opened_again_in_the_same_process(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    with pytest.raises(StoreLocked, match="in use by another gearlink process: stop it") as caught:
        opened(tmp_path)
    assert "--data" in caught.value.line
    await engine.close()
    await opened(tmp_path).close()


_SECOND = """
import sys
from tests.test_engine import Path, StoreLocked, opened
try:
    opened(Path(sys.argv[1]))
except StoreLocked as locked:
    print(locked.line)
"""


def _second_process(path: Path) -> str:
    command = [sys.executable, "-c", _SECOND, str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX, check=True).stdout


async def test_data_in_use_cannot_be_opened_by_another_process(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    said = await trio.to_thread.run_sync(_second_process, tmp_path)
    assert "in use by another gearlink process" in said
    await engine.close()


async def test_a_failed_open_lets_go_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_database(*_arguments: Any) -> None:
        raise StoreBroken("no")

    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "_open_database", no_database)
        with pytest.raises(StoreBroken):
            opened(tmp_path)
    await opened(tmp_path).close()


async def test_the_stamp_of_one_who_was_faster_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, path = fcntl.flock, tmp_path / "data"

    def slow(lock: int, how: int) -> None:
        write_stamp(path, Stamp("gearlink", 1, 1, 5))  # another process had the lock, made its stamp and left
        real(lock, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    engine = opened(path)
    assert read_stamp(path) == Stamp("gearlink", 1, 1, 5)
    await engine.close()


# --- not allowed, no room --------------------------------------------------------------------------------------------

_CODES = [
    (errno.EACCES, StoreDenied, "may not write"),
    (errno.EPERM, StoreDenied, "may not write"),
    (errno.EROFS, StoreDenied, "may not write"),
    (errno.ENOSPC, StoreFull, "no room left"),
    (errno.EDQUOT, StoreFull, "no room left"),
    (errno.EIO, StoreBroken, "cannot be opened: Input/output error"),
]


@pytest.mark.parametrize("call", ["mkdir", "open", "fsync"])
@pytest.mark.parametrize(("code", "expected", "line"), _CODES, ids=[errno.errorcode[code] for code, *_rest in _CODES])
def test_what_the_system_refuses_is_told_in_words_that_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, expected: type[StoreError], line: str
) -> None:
    def refuse(*_arguments: Any, **_more: Any) -> None:
        raise OSError(code, os.strerror(code), str(tmp_path))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(expected, match=line) as caught:
        opened(tmp_path / "data")
    assert str(tmp_path) in caught.value.line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IO error: No space left on device: While appending to file: /x/db/000004.log", StoreFull),
        ("IO error: While mkdir if missing: /x/db: Permission denied", StoreDenied),
        ("IO error: While open a file for random read: /x/db/CURRENT: Read-only file system", StoreDenied),
        ("IO error: While lock file: /x/db/LOCK: Resource temporarily unavailable", StoreLocked),
        ("Corruption: checksum mismatch in file /x/db/000009.sst: key secret", StoreBroken),
    ],
)
async def test_what_the_database_refuses_is_told_in_words_that_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: type[StoreError]
) -> None:
    def refuse(*_arguments: Any, **_more: Any) -> None:
        raise Exception(text)

    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "Rdict", refuse)
        with pytest.raises(expected) as caught:
            opened(tmp_path)
    assert "secret" not in caught.value.line
    await opened(tmp_path).close()


def test_a_full_disk_is_told_before_anything_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(StoreFull, match="free some space"):
        opened(tmp_path, free_bytes_min=64 << 20)
    assert not (tmp_path / "db").exists()


# --- migrations ------------------------------------------------------------------------------------------------------


def _step(number: int, compatible: int = 1) -> Step:
    def run(engine: Engine, _fresh_id: str) -> Iterable[Put]:
        assert format_of(engine) == number - 1
        yield (META, f"step{number}".encode(), b"whole")
        yield (META, f"step{number} again".encode(), b"whole")

    return Step(number, compatible, f"test {number}", run)


def _numbers(reached: bytes, compatible: bytes) -> list[Put]:
    return [(META, b"format", reached), (META, b"compatible", compatible)]


def _steps_in(engine: Engine) -> list[str]:
    return [key.decode() for key, _value in engine.rows(META, b"step", None, 99)]


def test_released_steps_are_numbered_one_by_one_and_never_renumbered() -> None:
    assert [step.number for step in STEPS] == list(range(1, len(STEPS) + 1))
    assert STEPS[0].name == "first layout: tables as in storage.keys, and an epoch"
    assert all(0 < step.compatible <= step.number for step in STEPS)
    assert len(STEPS) == migrations.FORMAT_NOW


async def test_each_step_is_one_batch_together_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, batches, commit = opened(tmp_path), [], Engine.commit

    async def recording(self: Engine, puts: Iterable[Put]) -> None:
        batches.append(list(puts))
        await commit(self, batches[-1])

    monkeypatch.setattr(Engine, "commit", recording)
    done = await migrate(engine, "an epoch", (STEPS[0], _step(2), _step(3, compatible=3)))
    assert [step.number for step in done] == [1, 2, 3]
    assert batches == [
        [(META, b"epoch", b"an epoch"), *_numbers(b"1", b"1")],
        [(META, b"step2", b"whole"), (META, b"step2 again", b"whole"), *_numbers(b"2", b"1")],
        [(META, b"step3", b"whole"), (META, b"step3 again", b"whole"), *_numbers(b"3", b"3")],
    ]
    assert read_stamp(tmp_path) == Stamp("gearlink", 3, 3, 77)
    assert await migrate(engine, "another", (STEPS[0], _step(2), _step(3, compatible=3))) == []
    assert engine.get(META, migrations.EPOCH) == b"an epoch"
    await engine.close()


async def test_a_migration_that_dies_half_way_goes_on_where_it_was(tmp_path: Path) -> None:
    def dies(_engine: Engine, _fresh_id: str) -> Iterator[Put]:
        yield (META, b"step3", b"half")
        raise ZeroDivisionError

    engine = opened(tmp_path)
    with pytest.raises(ZeroDivisionError):
        await migrate(engine, "epoch", (STEPS[0], _step(2), Step(3, 3, "dies", dies)))
    assert format_of(engine) == 2
    assert _steps_in(engine) == ["step2", "step2 again"]
    await engine.close()

    engine = opened(tmp_path)
    done = await migrate(engine, "epoch", (STEPS[0], _step(2), _step(3, compatible=3)))
    assert [step.number for step in done] == [3]
    assert _steps_in(engine) == ["step2", "step2 again", "step3", "step3 again"]
    assert read_stamp(tmp_path) == Stamp("gearlink", 3, 3, 77)
    await engine.close()
    with pytest.raises(StoreForeign, match="upgrade"):
        opened(tmp_path, format_now=2)


async def test_a_stamp_that_was_lost_after_the_last_step_is_made_good(tmp_path: Path) -> None:
    """The power went between the batch and the stamp."""
    engine = opened(tmp_path)
    await migrate(engine, "epoch", (STEPS[0], _step(2, compatible=2)))
    write_stamp(tmp_path, Stamp("gearlink", 1, 1, 77))
    assert await migrate(engine, "epoch", (STEPS[0], _step(2, compatible=2))) == []
    assert read_stamp(tmp_path) == Stamp("gearlink", 2, 2, 77)
    await engine.close()


async def test_a_lost_stamp_lets_no_older_program_at_the_data(tmp_path: Path) -> None:
    """As above, but then somebody steps back: the numbers in the database count."""
    engine = opened(tmp_path)
    await migrate(engine, "epoch", (STEPS[0], _step(2, compatible=2)))
    write_stamp(tmp_path, Stamp("gearlink", 1, 1, 77))
    with pytest.raises(StoreForeign, match="newer gearlink: upgrade"):
        await migrate(engine, "epoch", STEPS[:1])
    assert format_of(engine) == 2
    await engine.close()


async def test_a_failed_migration_gives_the_data_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_arguments: Any) -> None:
        raise StoreBroken("a step failed")

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "migrate", fails)
        with pytest.raises(StoreBroken, match="a step failed"):
            async with open_store(tmp_path / "data", now=1, fresh_id="epoch"):
                raise AssertionError
    await opened(tmp_path / "data").close()
