"""The vault: one encrypted file (SQLCipher) with the keys and the history of a device. It is the `KeyStore` of real life.

It promises that an acknowledged transaction survives a power cut, that one that failed left nothing, that the file is of no
use without its key, and that one process has it open at a time. Transactions run in a worker thread, one by one, and one
that has begun is finished whatever is cancelled. Where the key comes from is known to `unlocking` only.

Keys are encoded so that their bytes sort as they do: numbers in 8 bytes, moved up by 2^63; texts (UTF-8) and bytes with
`00` written as `00 FF` and `00 01` at the end. So no encoded part begins another one, and a prefix is a range.
"""

import errno
import fcntl
import hashlib
import hmac
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec
import trio
from sqlcipher3 import dbapi2  # type: ignore[import-untyped]

from gearlink.sdk.e2ee.records import Record
from gearlink.sdk.e2ee.store import KeyPart, R, T, Tx

FORMAT: Final = 1
KEY_BYTES: Final = 32
CLOSE_SECONDS_MAX: Final = 10.0

_T = TypeVar("_T")
_VALUE_VERSION: Final = b"\x01"
_SALT_BYTES: Final = 16
_INT_OFFSET: Final = 1 << 63
_CHECKPOINT_PAGES: Final = 250  # 1 MB: how much is written before old pages, deleted keys in them, are written over

_SCHEMA: Final = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE records (kind INTEGER, key BLOB, value BLOB, PRIMARY KEY (kind, key)) WITHOUT ROWID",
    f"INSERT INTO meta VALUES ('format', {FORMAT})",
)
_PRAGMAS: Final = (
    "locking_mode = EXCLUSIVE",  # before the first access: the index of the log then stays in memory, not in a file
    "journal_mode = WAL",
    "synchronous = FULL",  # each commit is synced, not only each checkpoint
    "fullfsync = ON",  # macOS: past the cache of the disk; elsewhere it means nothing
    "checkpoint_fullfsync = ON",
    "secure_delete = ON",  # a message key that was used may not stay in a free page
    f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
    "journal_size_limit = 0",  # nor in what is left of a long log
)
_GET: Final = "SELECT value FROM records WHERE kind = ? AND key = ?"
_PUT: Final = "INSERT INTO records VALUES (?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value"
_DELETE: Final = "DELETE FROM records WHERE kind = ? AND key = ?"
_SCAN: Final = "SELECT value FROM records WHERE kind = ? AND key >= ?{bound} ORDER BY key{order} LIMIT ?"
_SCANS: Final = {
    (bound, reverse): _SCAN.format(bound=" AND key < ?" if bound else "", order=" DESC" if reverse else "")
    for bound in (False, True)
    for reverse in (False, True)
}


class VaultError(Exception):
    """The vault cannot be used. The text says what a person can do about it, and never what is in the vault."""


class WrongKey(VaultError):
    """The file is a vault, but not one of this key."""


class VaultDamaged(VaultError):
    """Something in the file is not as it was written."""


class VaultInUse(VaultError):
    """Another process, or another part of this one, has the vault open."""


class VaultFull(VaultError):
    """The disk has no room. Nothing of the transaction was kept; with more room the next one succeeds."""


class VaultNewer(VaultError):
    """The file was written by a newer version of this program."""


class RunSync(Protocol):
    """Runs a function to its end, beside the loop or in place; it may not return while the function still runs."""

    async def __call__(self, function: Callable[[], _T], /) -> _T: ...


# --- keys and values -------------------------------------------------------------------------------------------------


def encode_part(part: KeyPart) -> bytes:
    """One part of a key, in bytes that sort like it. Raises OverflowError for a number of more than 64 bits."""
    if isinstance(part, int):
        return (part + _INT_OFFSET).to_bytes(8, "big")
    raw = part.encode() if isinstance(part, str) else part
    return raw.replace(b"\x00", b"\x00\xff") + b"\x00\x01"


def encode_key(parts: Iterable[KeyPart]) -> bytes:
    """A key, or the beginning of one, in bytes that sort like it."""
    return b"".join(map(encode_part, parts))


def _behind(prefix: bytes) -> bytes | None:
    """The least key that is greater than all that begin with `prefix`; None if there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes((trimmed[-1] + 1,)) if trimmed else None


@cache
def _decoder(kind: type[R]) -> msgspec.msgpack.Decoder[R]:
    return msgspec.msgpack.Decoder(kind)


# --- transactions ----------------------------------------------------------------------------------------------------


class _Transaction:
    """A `Tx`. `trouble` is why nothing more can be done in it: something failed, or it is over."""

    __slots__ = ("_connection", "_path", "_writes", "trouble")

    def __init__(self, connection: Any, path: Path, *, writes: bool) -> None:
        self._connection = connection
        self._path = path
        self._writes = writes
        self.trouble: Exception | None = None

    def get(self, kind: type[R], *key: KeyPart) -> R | None:
        rows = self._run(_GET, kind.TABLE, _whole(kind, key))
        return self._decode(kind, rows[0][0]) if rows else None

    def put(self, record: Record) -> None:
        key = encode_key([getattr(record, name) for name in record.KEY])
        self._change(_PUT, record.TABLE, key, _VALUE_VERSION + msgspec.msgpack.encode(record))

    def delete(self, kind: type[Record], *key: KeyPart) -> None:
        self._change(_DELETE, kind.TABLE, _whole(kind, key))

    def scan(
        self,
        kind: type[R],
        *prefix: KeyPart,
        after: KeyPart | None = None,
        before: KeyPart | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[R]:
        if len(prefix) + (after is not None or before is not None) > len(kind.KEY) or (limit or 0) < 0:
            raise ValueError(f"no such range of {kind.__name__}")
        start = encode_key(prefix)
        low: bytes | None = start
        if after is not None:
            low = _behind(start + encode_part(after))
        high = _behind(start) if before is None else start + encode_part(before)
        if low is None:
            return []
        bounds = (low,) if high is None else (low, high)
        statement = _SCANS[high is not None, reverse]
        rows = self._run(statement, kind.TABLE, *bounds, -1 if limit is None else limit)
        return [self._decode(kind, value) for (value,) in rows]

    def _change(self, statement: str, *values: int | bytes) -> None:
        if not self._writes:
            raise RuntimeError("what is read may not write")
        self._run(statement, *values)

    def _run(self, statement: str, *values: int | bytes) -> list[tuple[bytes]]:
        # SQLite ends the transaction itself on some errors: whatever came after one would be kept without the rest.
        if self.trouble is not None:
            raise self.trouble
        try:
            rows: list[tuple[bytes]] = self._connection.execute(statement, values).fetchall()
        except dbapi2.Error as error:
            self.trouble = _told(self._path, error)
            raise self.trouble from error
        return rows

    def _decode(self, kind: type[R], value: bytes) -> R:
        try:
            if value[:1] == _VALUE_VERSION:
                record: R = _decoder(kind).decode(memoryview(value)[1:])
                return record
        except msgspec.MsgspecError:
            pass  # its text would quote what is in there
        self.trouble = _damaged(self._path)
        raise self.trouble


def _whole(kind: type[Record], key: tuple[KeyPart, ...]) -> bytes:
    if len(key) != len(kind.KEY):
        raise ValueError(f"the key of {kind.__name__} has {len(kind.KEY)} parts")
    return encode_key(key)


class Vault:
    """An open vault, made by `open_vault`. Any number of tasks may use it; they take turns in the order in which they came.

    A call that is cancelled before its turn did nothing; afterwards it runs to its end and returns.
    """

    __slots__ = ("_connection", "_over", "_path", "_run_sync", "_turn")

    def __init__(self, path: Path, connection: Any, run_sync: RunSync) -> None:
        self._path = path
        self._connection = connection
        self._run_sync = run_sync
        self._turn = trio.Lock()
        self._over: VaultError | None = None

    def __repr__(self) -> str:
        return f"Vault({str(self._path)!r})"

    async def read(self, look: Callable[[Tx], T]) -> T:
        """Runs `look` over one state; it must not write. Raises VaultDamaged, or VaultError once the vault is closed."""
        async with self._turn:
            return await self._run_sync(partial(self._transact, look, writes=False))

    async def write(self, change: Callable[[Tx], T]) -> T:
        """Runs `change`; durable once this returns. If it raises, nothing of it was written. Changes run one by one.
        Raises VaultFull or VaultDamaged, or VaultError, after which the vault has to be opened anew."""
        async with self._turn:
            return await self._run_sync(partial(self._transact, change, writes=True))

    def _transact(self, function: Callable[[Tx], T], *, writes: bool) -> T:
        if self._over is not None:
            raise self._over
        tx = _Transaction(self._connection, self._path, writes=writes)
        try:
            self._execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            result = function(tx)
            if tx.trouble is not None:
                raise tx.trouble  # which `function` had caught
            try:
                self._execute("COMMIT")
            except VaultFull:
                raise
            except VaultError as trouble:
                self._over = trouble  # after a failed sync nobody knows what the disk has
                raise
            return result
        finally:
            tx.trouble = tx.trouble or RuntimeError("the transaction is over")
            if self._connection.in_transaction:
                self._roll_back()

    def _roll_back(self) -> None:
        try:
            self._execute("ROLLBACK")
        except VaultError as trouble:
            self._over = trouble

    def _execute(self, statement: str) -> None:
        try:
            self._connection.execute(statement)
        except dbapi2.Error as error:
            raise _told(self._path, error) from error

    async def _close(self) -> None:
        self._over = self._over or VaultError(f"{self._path} was closed")
        async with self._turn:
            await self._run_sync(self._connection.close)


# --- the file --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_vault(
    path: str | os.PathLike[str], key: bytes, *, run_sync: RunSync = trio.to_thread.run_sync
) -> AsyncIterator[Vault]:
    """The vault in the file `path`, made if there is none; `path` with `.lock` behind it is its lock. `key` are 32 random
    bytes. Raises WrongKey, VaultDamaged, VaultInUse, VaultFull, VaultNewer or VaultError."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a vault's key has {KEY_BYTES} bytes")
    place = Path(path)
    lock, connection = await run_sync(partial(_open, place, key))
    vault = Vault(place, connection, run_sync)
    try:
        yield vault
    finally:
        # What was begun is finished, so all there is to wait for is one transaction and a checkpoint.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS_MAX):
            await vault._close()
            os.close(lock)


def _open(path: Path, key: bytes) -> tuple[int, Any]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _take_lock(path)
        try:
            if not path.exists():
                _create(path, key)
            return lock, _open_existing(path, key)
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        raise _unusable(path, error.errno) from error
    except dbapi2.Error as error:
        raise _told(path, error) from error


def _take_lock(path: Path) -> int:
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise _in_use(path) from None
        raise
    return lock


def _create(path: Path, key: bytes) -> None:
    """Made aside and moved into place, so that a file of this name is whole: an empty one was cut, not begun."""
    scratch = path.with_name(f"{path.name}.new")
    for stale in (scratch, f"{scratch}-journal", f"{path}-wal", f"{path}-journal"):
        Path(stale).unlink(missing_ok=True)
    os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    with closing(_connect(scratch, key)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("COMMIT")
    scratch.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _open_existing(path: Path, key: bytes) -> Any:
    with path.open("rb") as file:
        salt = file.read(_SALT_BYTES)
    if len(salt) < _SALT_BYTES:
        raise _damaged(path)
    if not hmac.compare_digest(salt, _salt(key)):
        raise WrongKey(f"this key does not open {path}: it belongs to another vault, or this file is none")
    path.chmod(0o600)
    connection = _connect(path, key)
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        found = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
        if found is None:
            raise _damaged(path)
        if found[0] > FORMAT:
            raise VaultNewer(
                f"{path} was written by a newer version of this program (format {found[0]}, this one reads {FORMAT}):"
                " upgrade it"
            )
        connection.execute("BEGIN IMMEDIATE")  # here rather than at the first message: may it be written?
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path, key: bytes) -> Any:
    connection = dbapi2.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA cipher_log_level = NONE")  # it would write to the terminal
        connection.execute(f"PRAGMA key = \"x'{key.hex()}{_salt(key).hex()}'\"")
        connection.execute("PRAGMA cipher_compatibility = 4")  # whatever the default of a later SQLCipher is
    except BaseException:
        connection.close()
        raise
    return connection


def _salt(key: bytes) -> bytes:
    """The first bytes of the file. SQLCipher would take random ones; these tell a wrong key from a damaged file. The key
    is random and belongs to one vault, so they say nothing about it and are nobody else's."""
    return hmac.digest(key, b"GearLink vault salt v1", hashlib.sha256)[:_SALT_BYTES]


# --- what went wrong -------------------------------------------------------------------------------------------------


def _told(path: Path, error: dbapi2.Error) -> VaultError:
    """The trouble in words that help. SQLite's own texts are told nobody: they may quote a statement."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == dbapi2.SQLITE_FULL:
        return _unusable(path, errno.ENOSPC)
    if code in (dbapi2.SQLITE_BUSY, dbapi2.SQLITE_LOCKED):
        return _in_use(path)
    if code in (dbapi2.SQLITE_READONLY, dbapi2.SQLITE_PERM, dbapi2.SQLITE_CANTOPEN):
        return _unusable(path, errno.EACCES)
    # SQLITE_ERROR: no such table, or a page that is not what its checksum says.
    if code in (dbapi2.SQLITE_CORRUPT, dbapi2.SQLITE_NOTADB, dbapi2.SQLITE_ERROR):
        return _damaged(path)
    return _unusable(path, errno.EIO)


def _unusable(path: Path, number: int | None) -> VaultError:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return VaultFull(f"there is no room left for {path}: free some space, nothing is lost")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return VaultError(f"this user may not write to {path}: see whose it is, and whether the disk is read-only")
    return VaultError(f"{path} cannot be read or written ({os.strerror(number or errno.EIO)}): look at the disk")


def _damaged(path: Path) -> VaultDamaged:
    return VaultDamaged(f"{path} is damaged: move it away, and restore this account with its recovery key")


def _in_use(path: Path) -> VaultInUse:
    return VaultInUse(f"{path} is in use by another program: end that one first")
