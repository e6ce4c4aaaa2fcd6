# ruff: noqa: ASYNC240 - files of a test are small and nobody waits
"""What only the file can promise: it is nobody else's, it survives kills, it notices damage, and a full disk costs nothing.

The promises of every key store are asked in `contracts/test_key_store`.
"""

import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from sqlcipher3 import dbapi2

from gearlink.sdk.e2ee import vault as vault_module
from gearlink.sdk.e2ee.records import Record
from gearlink.sdk.e2ee.store import KeyPart, Tx
from gearlink.sdk.e2ee.vault import (
    Vault,
    VaultDamaged,
    VaultError,
    VaultFull,
    VaultInUse,
    VaultNewer,
    WrongKey,
    encode_key,
    open_vault,
)

T = TypeVar("T")
KEY = bytes(range(100, 132))
OTHER_KEY = bytes(32)
REPOSITORY = Path(__file__).resolve().parent.parent


class Row(Record, frozen=True):
    TABLE = 901
    KEY = ("room", "number")

    room: str
    number: int
    text: str = ""


class RowOfBytes(Record, frozen=True):
    TABLE = 901
    KEY = ("room", "number")

    room: str
    number: int
    text: bytes = b""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device" / "vault.db"


async def in_place(function: Callable[[], T], /) -> T:
    return function()


async def fill(path: Path, count: int = 100, text: str = "x" * 500) -> None:
    def change(tx: Tx) -> None:
        for number in range(count):
            tx.put(Row("home", number, text))

    async with open_vault(path, KEY) as vault:
        await vault.write(change)


async def read_all(path: Path, key: bytes = KEY) -> list[Row]:
    async with open_vault(path, key) as vault:
        return await vault.read(lambda tx: tx.scan(Row))


# --- keys ------------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from("\x00\x01ab\x7f\x80\xff🐚"), max_size=5)
BYTES = st.binary(max_size=4) | st.lists(st.sampled_from([0, 1, 254, 255]), max_size=4).map(bytes)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300)
KEYS = st.tuples(TEXTS, NUMBERS, BYTES, TEXTS)


def plain(key: tuple[KeyPart, ...]) -> tuple[KeyPart, ...]:
    return tuple(part.encode() if isinstance(part, str) else part for part in key)


@given(KEYS, KEYS)
def test_encoded_keys_sort_as_their_parts_do(one: tuple[KeyPart, ...], other: tuple[KeyPart, ...]) -> None:
    mine, theirs = plain(one), plain(other)
    assert (encode_key(one) < encode_key(other)) == (mine < theirs)  # type: ignore[operator]
    assert (encode_key(one) == encode_key(other)) == (one == other)


@given(KEYS, KEYS, st.integers(0, 4))
def test_an_encoded_prefix_begins_exactly_the_keys_that_begin_with_it(
    one: tuple[KeyPart, ...], other: tuple[KeyPart, ...], parts: int
) -> None:
    assert encode_key(one).startswith(encode_key(other[:parts])) == (one[:parts] == other[:parts])


def test_a_number_that_does_not_fit_is_refused_and_not_cut() -> None:
    with pytest.raises(OverflowError):
        encode_key((2**63,))
    with pytest.raises(OverflowError):
        encode_key((-(2**63) - 1,))


# --- whose it is -----------------------------------------------------------------------------------------------------


async def test_a_vault_is_there_when_it_is_opened_again(path: Path) -> None:
    await fill(path, 3)
    assert [row.number for row in await read_all(path)] == [0, 1, 2]


async def test_another_key_is_told_apart_from_damage_and_changes_nothing(path: Path) -> None:
    await fill(path)
    before = path.read_bytes()
    with pytest.raises(WrongKey):
        await read_all(path, OTHER_KEY)
    assert path.read_bytes() == before
    assert len(await read_all(path)) == 100


async def test_a_key_of_another_length_is_a_mistake_of_the_caller(path: Path) -> None:
    for key in (b"", KEY[:31], KEY + b"x"):
        with pytest.raises(ValueError, match="32 bytes"):
            await read_all(path, key)
    assert not path.exists()


async def test_no_word_and_no_key_stands_in_any_file_open_or_closed(path: Path) -> None:
    words = "canary-marzipan-0815"

    def seen() -> bytes:
        return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()))

    async with open_vault(path, KEY) as vault:
        await vault.write(lambda tx: tx.put(Row(words, 1, words * 50)))
        assert Path(f"{path}-wal").stat().st_size > 4096
        while_open = seen()
    for data in (while_open, seen()):
        assert len(data) > 4096
        for secret in (words.encode(), KEY, KEY.hex().encode(), b"CREATE TABLE", b"SQLite format"):
            assert secret not in data


async def test_files_are_for_this_user_only_whatever_the_mask_says(path: Path) -> None:
    old = os.umask(0)
    try:
        async with open_vault(path, KEY) as vault:
            await vault.write(lambda tx: tx.put(Row("home", 1)))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(old)
    assert modes == {"vault.db": 0o600, "vault.db-wal": 0o600, "vault.db.lock": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_vault_is_open_once_at_a_time(path: Path) -> None:
    async with open_vault(path, KEY) as vault:
        with pytest.raises(VaultInUse, match="in use"):
            await read_all(path)
        with pytest.raises(VaultInUse):  # before anything is told about the key
            await read_all(path, OTHER_KEY)
        await vault.write(lambda tx: tx.put(Row("home", 1)))
    assert len(await read_all(path)) == 1


async def test_a_tool_that_knows_no_lock_file_is_kept_out_by_the_file_itself(path: Path) -> None:
    async with open_vault(path, KEY):
        connection = vault_module._connect(path, KEY)
        with pytest.raises(dbapi2.OperationalError, match="locked"):
            connection.execute("SELECT * FROM records").fetchall()
        connection.close()


async def test_nothing_but_the_path_is_shown_of_a_vault(path: Path) -> None:
    async with open_vault(path, KEY) as vault:
        assert repr(vault) == f"Vault({str(path)!r})"


# --- kills -----------------------------------------------------------------------------------------------------------

WRITER = """
import sys, trio
from gearlink.sdk.e2ee.vault import open_vault
from tests.test_e2ee_vault import KEY, Row

async def main():
    async with open_vault(sys.argv[1], KEY) as vault:
        first = len(await vault.read(lambda tx: tx.scan(Row, "left")))
        for number in range(first, 100_000):
            def change(tx):
                tx.put(Row("left", number, "x" * 700))
                tx.delete(Row, "last", number - 1)
                tx.put(Row("last", number))
                tx.put(Row("right", number, "y" * 700))
            await vault.write(change)
            print(number, flush=True)

trio.run(main)
"""


async def test_what_was_acknowledged_survives_kill_9_and_nothing_is_half_there(path: Path) -> None:
    for lines_wanted in (1, 40, 333):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=REPOSITORY
        )
        assert process.stdout is not None
        told = b""
        while told.count(b"\n") < lines_wanted:
            told += (piece := await process.stdout.receive_some())
            assert piece, "the writer ended"
        with pytest.raises(VaultInUse):
            await read_all(path)
        process.kill()
        async for piece in process.stdout:
            told += piece
        await process.wait()
        acknowledged = int(told[: told.rindex(b"\n")].split()[-1])
        async with open_vault(path, KEY) as vault:
            rows = await vault.read(lambda tx: {room: tx.scan(Row, room) for room in ("left", "right", "last")})
        numbers = {room: [row.number for row in found] for room, found in rows.items()}
        assert numbers["left"] == list(range(len(numbers["left"]))) == numbers["right"]
        assert numbers["left"][-1] in (acknowledged, acknowledged + 1)
        assert numbers["last"] == numbers["left"][-1:]


async def test_a_copy_from_the_moment_of_a_kill_opens_with_its_log(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    async with open_vault(path, KEY) as vault:
        await vault.write(lambda tx: tx.put(Row("home", 1)))
        shutil.copytree(path.parent, copy)
    assert await read_all(copy / path.name) == [Row("home", 1)]


async def test_what_a_kill_left_of_a_vault_that_was_being_made_is_no_hindrance(path: Path) -> None:
    path.parent.mkdir()
    for name in ("vault.db.new", "vault.db.new-journal", "vault.db-wal"):
        (path.parent / name).write_bytes(b"half" * 100)
    await fill(path, 2)
    assert len(await read_all(path)) == 2


# --- damage ----------------------------------------------------------------------------------------------------------


async def test_a_flipped_bit_on_any_page_is_noticed(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    await fill(path, 60)
    rows = await read_all(path)
    good = path.read_bytes()
    pages = len(good) // 4096
    assert pages > 10
    for page in range(pages):
        bad = bytearray(good)
        bad[page * 4096 + 2000] ^= 1
        path.write_bytes(bad)
        with pytest.raises(VaultDamaged, match="damaged"):
            await read_all(path)
    path.write_bytes(good)
    assert await read_all(path) == rows
    assert capfd.readouterr() == ("", "")  # SQLCipher would tell the terminal


@pytest.mark.parametrize("kept", [0, 10, 16, 5000, 8192, -4096, -1])
async def test_a_file_that_was_cut_is_damaged_and_not_a_new_vault(path: Path, kept: int) -> None:
    await fill(path)
    data = path.read_bytes()
    path.write_bytes(data[:kept])
    with pytest.raises(VaultDamaged):
        await read_all(path)
    assert path.read_bytes() == data[:kept]


async def test_a_file_of_something_else_is_refused_and_left_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"a letter to my aunt " * 500)
    with pytest.raises(WrongKey):
        await read_all(path)
    assert path.read_bytes() == b"a letter to my aunt " * 500


async def test_a_value_that_is_no_record_is_damage_and_is_not_quoted(path: Path) -> None:
    async with open_vault(path, KEY) as vault:
        await vault.write(lambda tx: tx.put(RowOfBytes("home", 1, b"\xffcanary")))
        with pytest.raises(VaultDamaged) as caught:
            await vault.read(lambda tx: tx.get(Row, "home", 1))
        assert "canary" not in str(caught.value) and caught.value.__context__ is None
        assert await vault.read(lambda tx: tx.get(RowOfBytes, "home", 1)) is not None


async def test_a_newer_format_is_named_and_not_touched(path: Path) -> None:
    await fill(path, 1)
    connection = vault_module._connect(path, KEY)
    connection.execute("UPDATE meta SET value = 2 WHERE name = 'format'")
    connection.close()
    with pytest.raises(VaultNewer, match="format 2, this one reads 1"):
        await read_all(path)


async def test_a_place_that_cannot_be_written_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VaultError, match="cannot be read or written"):
        await read_all(tmp_path / "file" / "vault.db")


# --- a full disk, a failing one --------------------------------------------------------------------------------------


def limit_pages(vault: Vault, more: int) -> None:
    """Lets the file grow by so many pages, as a disk with that much room does."""
    now = vault._connection.execute("PRAGMA page_count").fetchone()[0]
    vault._connection.execute(f"PRAGMA max_page_count = {now + more}")


def too_much(tx: Tx) -> None:
    tx.delete(Row, "home", 0)
    for number in range(500):
        tx.put(Row("more", number, "x" * 2000))


async def test_a_full_disk_leaves_the_old_state_and_later_writes_succeed(path: Path) -> None:
    await fill(path, 3)
    async with open_vault(path, KEY) as vault:
        limit_pages(vault, 2)
        with pytest.raises(VaultFull, match="no room"):
            await vault.write(too_much)
        assert [row.number for row in await vault.read(lambda tx: tx.scan(Row))] == [0, 1, 2]
        limit_pages(vault, 1000)
        await vault.write(too_much)
    assert len(await read_all(path)) == 502


async def test_a_change_that_swallows_a_full_disk_is_not_kept_by_halves(path: Path) -> None:
    def change(tx: Tx) -> str:
        with suppress(VaultError):
            too_much(tx)
        with pytest.raises(VaultFull):
            tx.put(Row("after", 1))
        return "fine"

    await fill(path, 3)
    async with open_vault(path, KEY) as vault:
        limit_pages(vault, 2)
        with pytest.raises(VaultFull):
            await vault.write(change)
    assert [row.number for row in await read_all(path)] == [0, 1, 2]


class FailingDisk:
    """A connection whose commits fail as a disk that does not sync does."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *values: Any) -> Any:
        if statement == "COMMIT":
            error = dbapi2.OperationalError("disk I/O error")
            error.sqlite_errorcode = dbapi2.SQLITE_IOERR | 4 << 8  # SQLITE_IOERR_FSYNC
            raise error
        return self._connection.execute(statement, *values)


async def test_after_a_failed_sync_the_vault_takes_nothing_more(path: Path) -> None:
    await fill(path, 3)
    async with open_vault(path, KEY) as vault:
        whole = vault._connection
        vault._connection = FailingDisk(whole)
        with pytest.raises(VaultError, match="look at the disk"):
            await vault.write(lambda tx: tx.put(Row("home", 9)))
        vault._connection = whole
        with pytest.raises(VaultError, match="look at the disk"):
            await vault.write(lambda tx: tx.put(Row("home", 10)))
    assert [row.number for row in await read_all(path)] == [0, 1, 2]


# --- turns and cancellation ------------------------------------------------------------------------------------------


async def test_functions_run_in_a_thread_or_where_the_caller_wants(path: Path) -> None:
    loop = threading.get_ident()
    async with open_vault(path, KEY) as vault:
        assert await vault.read(lambda tx: threading.get_ident()) != loop
        assert await vault.write(lambda tx: threading.get_ident()) != loop
    async with open_vault(path, KEY, run_sync=in_place) as vault:
        assert await vault.write(lambda tx: threading.get_ident()) == loop


async def test_a_transaction_that_has_begun_is_finished_and_one_that_waits_is_not_begun(path: Path) -> None:
    begun, go_on = trio.Event(), threading.Event()
    ended: list[str] = []

    def slow(tx: Tx) -> str:
        tx.put(Row("home", 1))
        trio.from_thread.run_sync(begun.set)
        assert go_on.wait(60)
        tx.put(Row("home", 2))
        return "done"

    async def write(change: Callable[[Tx], str]) -> None:
        ended.append(await vault.write(change))

    def never(tx: Tx) -> str:
        raise AssertionError("it was cancelled before its turn")

    async with open_vault(path, KEY) as vault:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, slow)
            await begun.wait()
            nursery.start_soon(write, never)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            go_on.set()
        assert ended == ["done"]
        assert [row.number for row in await vault.read(lambda tx: tx.scan(Row))] == [1, 2]


async def test_a_cancelled_owner_still_closes_the_vault(path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_vault(path, KEY) as vault:
            await vault.write(lambda tx: tx.put(Row("home", 1)))
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert not Path(f"{path}-wal").exists()
    assert len(await read_all(path)) == 1


async def test_a_closed_vault_and_a_transaction_that_is_over_say_so(path: Path) -> None:
    async with open_vault(path, KEY) as vault:
        kept = await vault.write(lambda tx: tx)
        with pytest.raises(RuntimeError, match="over"):
            kept.put(Row("home", 1))
    with pytest.raises(VaultError, match="closed"):
        await vault.read(lambda tx: tx.scan(Row))
    assert await read_all(path) == []
