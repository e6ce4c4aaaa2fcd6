"""The RocksDB handle: opens and closes it, reads rows, and makes batches durable. It owns the data directory.

A data directory holds `GEARLINK` (the stamp: whose data this is and in which format), `lock` (held while a process uses
it) and `db/` (RocksDB, a column family a table). What is measured or provoked about RocksDB stands at the line that it
explains. The engine knows bytes and column families, nothing of records; blocking calls run in its own one-thread limiter.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import msgspec
import trio
from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, RdictIter, ReadOptions, WriteBatch

from storage.store import StoreBroken, StoreDenied, StoreError, StoreForeign, StoreFull, StoreLocked

PRODUCT = "gearlink"
_BLOCK_CACHE_BYTES = 64 << 20
_MEMTABLES_BYTES_MAX = 48 << 20  # all tables together; a flush needs as much room on the disk
_WAL_BYTES_MAX = 192 << 20  # bounds what a start after `kill -9` has to replay
_OPEN_BYTES_MIN = 4 << 20  # opening writes a manifest, a log and an options file

Put = tuple[str, bytes, bytes | None]  # table, key, value; None deletes


class Stamp(msgspec.Struct):
    """What the `GEARLINK` file says. `compatible` is the oldest format whose programs may still open this data."""

    product: str
    format: int
    compatible: int
    created_at: int


class Engine:
    """One open database. Made by `open_engine`; `close` gives the directory back."""

    def __init__(self, path: Path, lock: int, db: Rdict, tables: Iterable[str], free_bytes_min: int) -> None:
        self.path = path
        self.free_bytes_min = free_bytes_min
        self.broken = False
        self._lock = lock
        self._db = db
        self._families = {name: db.get_column_family(name) for name in tables}
        self._handles = {name: db.get_column_family_handle(name) for name in tables}
        self._limiter = trio.CapacityLimiter(1)

    # --- reads: microseconds from memory, and they hold the GIL wherever they run, so a thread would win nothing -----

    def get(self, table: str, key: bytes) -> bytes | None:
        """Raises StoreBroken on a damaged block."""
        try:
            return self._families[table].get(key)
        except Exception as trouble:  # rocksdict raises bare Exception
            raise self._damaged(trouble) from trouble

    def rows(
        self, table: str, low: bytes, high: bytes | None, limit: int, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """At most `limit` rows with `low` <= key < `high` in key order (from the end with `reverse`).

        Raises StoreBroken on a damaged block: an iterator alone would just end early.
        """
        options = ReadOptions()
        if high is not None and not reverse:
            options.set_iterate_upper_bound(high)  # never the lower bound: rocksdict 0.3.29 sets the upper one instead
        begin, family = high if reverse else low, self._families[table]
        try:
            rows = family.items(backwards=reverse, from_key=begin, read_opt=options)
            found: list[tuple[bytes, bytes]] = list(
                islice(cast(Iterator[Any], rows), limit + 1)
            )  # one more: `high` itself may be the first
            if len(found) <= limit:
                self._assert_the_end(family.iter(options), found[-1][0] if found else begin, reverse=reverse)
        except Exception as trouble:  # rocksdict raises bare Exception
            raise self._damaged(trouble) from trouble
        if reverse:
            if found and found[0][0] == high:
                del found[0]
            while found and found[-1][0] < low:
                found.pop()
        return found[:limit]

    @staticmethod
    def _assert_the_end(cursor: RdictIter, last_key: bytes | None, *, reverse: bool) -> None:
        """Nothing follows `last_key`, or raises why it cannot be read: `items` would just have ended."""
        if last_key is not None:
            (cursor.seek_for_prev if reverse else cursor.seek)(last_key)
            if cursor.valid():
                (cursor.prev if reverse else cursor.next)()
        elif reverse:
            cursor.seek_to_last()
        else:
            cursor.seek_to_first()
        cursor.status()

    def _damaged(self, trouble: Exception) -> StoreBroken:
        return StoreBroken(f"{self.path}/db is damaged and cannot be read: {_kind(trouble)}")

    # --- writes ------------------------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """False when the file system is so full that a write could fail half-way. RocksDB cannot resume after that."""
        try:
            status = os.statvfs(self.path)  # a microsecond; asked before every batch, so no sudden fill is missed
        except OSError:  # the disk is gone; the write that follows tells what is wrong
            return True
        size = status.f_frsize * status.f_blocks
        return status.f_bavail * status.f_frsize >= min(self.free_bytes_min, size // 10)

    async def commit(self, puts: Iterable[Put]) -> None:
        """Writes all of `puts` or none, and returns when they are on the disk. Raises StoreBroken, and then for ever."""
        if self.broken:
            raise StoreBroken("an earlier write failed")
        batch = WriteBatch(raw_mode=True)
        for table, key, value in puts:
            if value is None:
                batch.delete(key, self._handles[table])  # the handle in every call: the default one is not always used
            else:
                batch.put(key, value, self._handles[table])
        try:
            self._db.write(batch)  # into the page cache: fast, though it holds the GIL
            await self.sync()
        except trio.Cancelled:  # the write may or may not be durable: nobody may rely on it
            self.broken = True
            raise
        except Exception as trouble:
            self.broken = True
            raise StoreBroken(f"a write to {self.path}/db failed: {_kind(trouble)}") from trouble

    async def sync(self) -> None:
        """One fdatasync for all that was written, in a thread: `flush_wal` frees the GIL, a synced write would not."""
        await trio.to_thread.run_sync(self._db.flush_wal, True, limiter=self._limiter)

    async def close(self) -> None:
        """Flushes, closes and unlocks. A broken database is closed without a flush: what was durable stays so."""
        with trio.CancelScope(deadline=trio.current_time() + 30, shield=True):
            await trio.to_thread.run_sync(self._close, limiter=self._limiter)

    def _close(self) -> None:
        try:
            if not self.broken:
                self._db.flush_wal(True)
        finally:
            # RocksDB keeps its own lock while any family or handle lives: drop them all, then close.
            self._families.clear()
            self._handles.clear()
            try:
                self._db.close()
            except Exception as trouble:
                if not self.broken:
                    raise StoreBroken(f"closing {self.path}/db failed: {_kind(trouble)}") from trouble
            finally:
                del self._db
                os.close(self._lock)


def open_engine(path: Path, tables: Iterable[str], *, free_bytes_min: int, format_now: int, now: int) -> Engine:
    """Opens or makes the data directory at `path`; blocking, so call it in a thread.

    Raises StoreLocked, StoreForeign (not ours, or from a program whose data this one cannot read), StoreDenied, StoreFull
    or StoreBroken, each with a line for the operator. Changes nothing in a directory that is not ours.
    """
    names = list(tables)
    try:
        if not _is_fresh(path):
            _check_stamp(path, format_now)  # before the lock, which would be a new file in somebody else's directory
        if not path.exists():
            path.mkdir(parents=True, mode=0o700)
            _sync_directory(path.parent)
        lock = _take_lock(path)
        try:
            if _is_fresh(path):  # asked again: another process may have been here before we had the lock
                write_stamp(path, Stamp(PRODUCT, 0, 0, now))
            if shutil.disk_usage(path).free < min(_OPEN_BYTES_MIN, free_bytes_min):
                raise StoreFull(f"{path} has no room left: free some space, then start again")
            return Engine(path, lock, _open_database(path / "db", names), names, free_bytes_min)
        except BaseException:
            os.close(lock)
            raise
    except OSError as trouble:
        raise _told(path, trouble) from trouble


def _is_fresh(path: Path) -> bool:
    """True if there is nothing yet (or only what a start that died at once left). Raises StoreForeign for others' files."""
    if not path.exists():
        return True
    if not path.is_dir():
        raise StoreForeign(f"{path} is not a directory: give another place with --data")
    if (path / "GEARLINK").exists():
        return False
    expected = ("lock", "GEARLINK.new", "lost+found")  # the last one is in the root of every fresh disk
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in expected)
    if others:
        raise StoreForeign(
            f"{path} holds other files ({others[0]}, …) and no GearLink data: give an empty place with --data"
        )
    return True


def _take_lock(path: Path) -> int:
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StoreLocked(
            f"{path} is in use by another gearlink process: stop it, or give another place with --data"
        ) from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _check_stamp(path: Path, format_now: int) -> None:
    try:
        stamp = read_stamp(path)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise StoreForeign(f"{path}/GEARLINK cannot be read: restore the directory from a backup") from None
    if stamp.product != PRODUCT:
        raise StoreForeign(f"{path} belongs to another program: give another place with --data")
    if stamp.compatible > format_now:
        raise StoreForeign(
            f"{path} was written by a newer gearlink (format {stamp.format}, this one reads up to {format_now}): upgrade"
        )


def read_stamp(path: Path) -> Stamp:
    """The stamp of a directory that `open_engine` has accepted."""
    return msgspec.json.decode((path / "GEARLINK").read_bytes(), type=Stamp)


def write_stamp(path: Path, stamp: Stamp) -> None:
    """Replaces the stamp in one step that survives a power cut."""
    aside = path / "GEARLINK.new"
    with aside.open("wb") as file:
        file.write(msgspec.json.encode(stamp) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path / "GEARLINK")
    _sync_directory(path)


def _sync_directory(path: Path) -> None:
    """Until then a power cut may take back what was made or renamed in it."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _options() -> Options:
    options = Options(raw_mode=True)  # otherwise values are pickled: a stolen disk could run code
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_db_write_buffer_size(_MEMTABLES_BYTES_MAX)
    options.set_write_buffer_size(_MEMTABLES_BYTES_MAX // 3)
    options.set_arena_block_size(64 << 10)  # the default would take a megabyte for each of many small tables
    options.set_max_total_wal_size(_WAL_BYTES_MAX)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(4)
    options.set_max_log_file_size(4 << 20)
    options.set_max_open_files(256)
    options.set_level_compaction_dynamic_level_bytes(True)
    return options


def _open_database(path: Path, tables: list[str]) -> Rdict:
    blocks = BlockBasedOptions()
    blocks.set_block_cache(Cache(_BLOCK_CACHE_BYTES))
    blocks.set_bloom_filter(10, False)
    families = {}
    for name in tables:
        families[name] = _options()
        families[name].set_block_based_table_factory(blocks)
    try:
        return Rdict(str(path), _options(), column_families=families)
    except Exception as trouble:  # rocksdict raises bare Exception with RocksDB's text
        raise _told(path, trouble) from trouble


def _told(path: Path, trouble: Exception) -> StoreError:
    """The trouble in words that help. RocksDB's own texts are told apart by what they contain."""
    number, text = getattr(trouble, "errno", None), str(trouble)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "quota exceeded" in text:
        return StoreFull(f"{path} has no room left: free some space, then start again")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) or "Permission denied" in text or "Read-only" in text:
        return StoreDenied(f"this user may not write to {path}: change its owner, or give another place with --data")
    if "lock" in text.lower() and "Resource temporarily" in text:
        return StoreLocked(f"{path} is in use by another process")
    return StoreBroken(f"{path} cannot be opened: {_kind(trouble)}. Restore it from a backup if this stays")


def _kind(trouble: Exception) -> str:
    """RocksDB's status name, e.g. `Corruption` or `IO error`, or the operating system's word; never a key or a value."""
    if isinstance(trouble, OSError) and trouble.strerror:
        return trouble.strerror
    head = str(trouble).partition(":")[0]
    return (
        head if head in ("Corruption", "IO error", "Invalid argument", "Busy", "Incomplete") else type(trouble).__name__
    )
