"""Attachments: a file in chunks of 64 KiB, each sealed under the file's own key (STREAM)."""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.second.primitives import Unreadable, u64

CHUNK = 64 * 1024
TAG = 16


def nonce(number: int, is_last: bool) -> bytes:
    return u64(number) + bytes(3) + bytes([is_last])


def seal(key: bytes, data: bytes) -> bytes:
    """The encrypted file; `sha256` in the letter is over this."""
    chunks = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)] or [b""]
    last = len(chunks) - 1
    sealer = AESGCM(key)
    return b"".join(sealer.encrypt(nonce(i, i == last), chunk, None) for i, chunk in enumerate(chunks))


def unseal(key: bytes, sealed: bytes) -> bytes:
    """The file, if it is whole. Raises Unreadable."""
    size = CHUNK + TAG
    chunks = [sealed[at : at + size] for at in range(0, len(sealed), size)]
    last = len(chunks) - 1
    if not chunks or (last > 0 and len(chunks[last]) <= TAG):  # only an empty file ends with an empty chunk
        raise Unreadable("bad-file")
    opener = AESGCM(key)
    try:
        return b"".join(opener.decrypt(nonce(i, i == last), chunk, None) for i, chunk in enumerate(chunks))
    except (InvalidTag, ValueError):
        raise Unreadable("bad-file") from None
