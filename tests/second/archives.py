"""Backups and transfers: the recovery key, the key that it gives, and the chunks of an archive."""

import hashlib
import json
import zlib
from collections.abc import Iterable
from typing import Any

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from tests.second.primitives import Unreadable, crockford, ident, kdf, u64, uncrockford

NONCE_BYTES = 24
UNPACKED_MAX = 64 * 1024 * 1024  # a chunk that unpacks to more is not ours

Row = dict[str, Any]


def recovery_key(entropy: bytes) -> str:
    """What the person writes down: 140 bits (18 bytes, the last four bits zero) and 20 bits of their SHA-256."""
    if len(entropy) != 18 or entropy[17] & 0x0F:
        raise ValueError("140 bits, left-aligned in 18 bytes")
    check = int.from_bytes(hashlib.sha256(entropy).digest()[:3], "big") >> 4
    both = int.from_bytes(entropy, "big") >> 4 << 20 | check
    return crockford(both.to_bytes(20, "big"))


def entropy_of(typed: str) -> bytes:
    """The 140 bits of a recovery key as it was typed. Raises ValueError if a character of it is wrong."""
    raw = uncrockford(typed)
    if len(raw) != 20:
        raise ValueError("a recovery key has 32 characters")
    entropy = (int.from_bytes(raw, "big") >> 20 << 4).to_bytes(18, "big")
    if uncrockford(recovery_key(entropy)) != raw:
        raise ValueError("mistyped")
    return entropy


def backup_key(entropy: bytes, user_id: str) -> bytes:
    return kdf(ident(user_id), entropy, "GearLink backup v1", 32)


def pack(rows: list[Row]) -> bytes:
    """JSON lines, each ended by a line feed, in the format of RFC 1950."""
    return zlib.compress("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def unpack(packed: bytes) -> list[Row]:
    """The rows again. Raises Unreadable."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, UNPACKED_MAX)
        if not unpacker.eof or unpacker.unused_data:
            raise Unreadable("bad-archive")
        return [json.loads(line) for line in text.decode().split("\n") if line]
    except (zlib.error, ValueError, RecursionError):
        raise Unreadable("bad-archive") from None


def chunk_ad(user_id: str, archive_id: str, number: int) -> bytes:
    return b"GearLink archive v1" + ident(user_id) + ident(archive_id) + u64(number)


def running(chunks: Iterable[bytes]) -> bytes:
    """`digest` of a manifest: these sealed chunks, in this order, and no others."""
    h = bytes(32)
    for chunk in chunks:
        h = hashlib.sha256(h + hashlib.sha256(chunk).digest()).digest()
    return h


def seal(key: bytes, nonce: bytes, packed: bytes, ad: bytes) -> bytes:
    """A chunk as the server keeps it."""
    return nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(packed, ad, nonce, key)


def unseal(key: bytes, chunk: bytes, ad: bytes) -> bytes:
    """What was packed. Raises Unreadable."""
    if len(chunk) < NONCE_BYTES + 16:
        raise Unreadable("bad-archive")
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(chunk[NONCE_BYTES:], ad, chunk[:NONCE_BYTES], key)
    except CryptoError:
        raise Unreadable("bad-archive") from None
