"""Files that go with a letter: encrypted on the client, chunk by chunk, under a key that stands in the letter.

The construction is STREAM, as in age: a chunk cannot be changed, moved, left out or put at the end without being noticed.
It holds two chunks in memory, whatever the file's size. Where a file lies on a server is not known here. The bytes are those
of `docs/encryption.md`.
"""

import hashlib
import hmac
import os
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK_BYTES: Final = 64 * 1024  # of the file
TAG_BYTES: Final = 16  # behind each chunk
KEY_BYTES: Final = 32

DamageReason = Literal["truncated", "too-long", "bad-chunk", "wrong-hash"]


class DamagedFile(Exception):
    """An encrypted file is not the one that the letter speaks of: nothing of what was made of it may be kept. `reason`
    says how: it ends too early, goes on after its end, has a chunk that is not the one of this key and place, or
    another hash."""

    def __init__(self, reason: DamageReason) -> None:
        super().__init__(reason)
        self.reason: Final = reason


@dataclass(frozen=True, slots=True)
class Sealed:
    """What the letter says of a file: `sha256` of the encrypted one, `size` in bytes of the file itself."""

    key: bytes = field(repr=False)
    sha256: bytes
    size: int


def sealed_size(size: int) -> int:
    """The bytes that a file of `size` bytes is encrypted to."""
    return size + TAG_BYTES * _chunks(size)


def seal_file(source: BinaryIO, target: BinaryIO) -> Sealed:
    """Encrypts all of `source` into `target` under a new key."""
    key = secrets.token_bytes(KEY_BYTES)
    cipher, digest, size, number = AESGCM(key), hashlib.sha256(), 0, 0
    chunk, is_last = _read(source, CHUNK_BYTES), False
    while not is_last:
        # Only a look at what follows tells the last chunk: a file may end where a chunk does.
        following = _read(source, CHUNK_BYTES) if len(chunk) == CHUNK_BYTES else b""
        is_last = not following
        sealed = cipher.encrypt(_nonce(number, is_last), chunk, None)
        digest.update(sealed)
        _write(target, sealed)
        size += len(chunk)
        chunk, number = following, number + 1
    return Sealed(key, digest.digest(), size)


def open_file(source: BinaryIO, target: BinaryIO, key: bytes, sha256: bytes, size: int) -> None:
    """Decrypts `source` into `target`; the rest is what the letter says of the file. Reads no more than it has to.

    Raises DamagedFile; what stands in `target` has then to be thrown away: only the last byte says that all is well. See
    `open_file_to`. Raises ValueError for a key that is none.
    """
    cipher, digest, chunks = _cipher(key), hashlib.sha256(), _chunks(size)
    for number in range(chunks):
        is_last = number == chunks - 1
        expected = (size - number * CHUNK_BYTES if is_last else CHUNK_BYTES) + TAG_BYTES
        sealed = _read(source, expected)
        if len(sealed) < expected:
            raise DamagedFile("truncated")
        digest.update(sealed)
        _write(target, _open(cipher, number, is_last, sealed))
    if source.read(1):
        raise DamagedFile("too-long")
    if not hmac.compare_digest(digest.digest(), sha256):
        raise DamagedFile("wrong-hash")


def open_file_to(source: BinaryIO, path: Path, key: bytes, sha256: bytes, size: int) -> None:
    """Decrypts `source` into a file of this name, readable by its owner alone, which is there only if all of it was right;
    it takes the place of one that was there before. Raises DamagedFile, ValueError as `open_file` does, and OSError."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    aside = Path(name)
    try:
        with open(handle, "wb") as target:
            open_file(source, target, key, sha256, size)
            target.flush()
            os.fsync(target.fileno())
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


def open_chunk(key: bytes, number: int, is_last: bool, data: bytes) -> bytes:
    """One chunk of an encrypted file, counted from 0, for who wants a part of it; `data` has its tag. That the file is the
    one of the letter's hash is then not checked, but no other key, place or end passes.

    Raises DamagedFile `bad-chunk`, ValueError for a key that is none.
    """
    return _open(_cipher(key), number, is_last, data)


# --- inside ----------------------------------------------------------------------------------------------------------


def _chunks(size: int) -> int:
    return max(1, -(-size // CHUNK_BYTES))


def _nonce(number: int, is_last: bool) -> bytes:
    return number.to_bytes(8, "big") + bytes(3) + (b"\x01" if is_last else b"\x00")


def _cipher(key: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise ValueError("not a key of a file")
    return AESGCM(key)


def _open(cipher: AESGCM, number: int, is_last: bool, data: bytes) -> bytes:
    size = len(data) - TAG_BYTES
    least = (1 if number else 0) if is_last else CHUNK_BYTES  # only the chunk of an empty file is empty
    if not least <= size <= CHUNK_BYTES:
        raise DamagedFile("bad-chunk")
    try:
        return cipher.decrypt(_nonce(number, is_last), data, None)
    except InvalidTag:
        pass
    raise DamagedFile("bad-chunk")


def _read(source: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes, fewer only at the end: one `read` of a pipe or a socket may bring less."""
    found = bytearray()
    while len(found) < size and (more := source.read(size - len(found))):
        found += more
    return bytes(found)


def _write(target: BinaryIO, data: bytes) -> None:
    """All of it: an unbuffered file may take a part only."""
    rest = memoryview(data)
    while rest:
        written = target.write(rest)
        if not written:
            raise OSError("the target takes nothing more")
        rest = rest[written:]
