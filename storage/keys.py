"""Key codecs, pure: from a record's key fields to bytes whose order is the order we scan in.

Every part of a key has a fixed width (ids 16 bytes, sequences 8 bytes big-endian, hashes 32, free text a 16-byte
digest), so there are no separators and no escaping, and a prefix of parts is a prefix of bytes. `TABLES` is the one
catalogue of what is on disk. It knows nothing of engines or of what the values mean.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from storage import records
from storage.records import Record
from storage.store import KeyPart

_SEQUENCE = struct.Struct(">Q")


def encode_id(value: KeyPart) -> bytes:
    """A UUID's 16 bytes. Raises ValueError if `value` is no UUID text."""
    raw = bytes.fromhex(value.replace("-", ""))  # type: ignore[union-attr, arg-type]
    if len(raw) != 16:
        raise ValueError("an id is 16 bytes")
    return raw


def encode_sequence(value: KeyPart) -> bytes:
    """8 bytes, big-endian, so that byte order is number order. Raises struct.error outside 0..2**64-1."""
    return _SEQUENCE.pack(value)


def encode_hash(value: KeyPart) -> bytes:
    """32 bytes as they are."""
    assert isinstance(value, bytes)
    if len(value) != 32:
        raise ValueError("a hash is 32 bytes")
    return value


def encode_text(value: KeyPart) -> bytes:
    """A 16-byte BLAKE2b digest: fixed width for text of any length. The record itself keeps the text."""
    assert isinstance(value, str)
    return hashlib.blake2b(value.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Table:
    """Where a kind of record lives: its column family, and the fields that make up its key, in order."""

    name: str
    kind: type[Record]
    fields: tuple[str, ...]
    encoders: tuple[Callable[[KeyPart], bytes], ...]

    def key(self, *parts: KeyPart) -> bytes:
        """The bytes of a whole key, or of a prefix if there are fewer parts than fields."""
        if len(parts) > len(self.encoders):
            raise TypeError(f"{self.name} has {len(self.encoders)} key parts")
        return b"".join([encode(part) for encode, part in zip(self.encoders, parts, strict=False)])

    def key_of(self, record: Record) -> bytes:
        return b"".join(
            [encode(getattr(record, field)) for encode, field in zip(self.encoders, self.fields, strict=True)]
        )


_ID, _SEQ, _HASH, _TEXT = encode_id, encode_sequence, encode_hash, encode_text


def _table(name: str, kind: type[Record], **parts: Callable[[KeyPart], bytes]) -> Table:
    return Table(name, kind, tuple(parts), tuple(parts.values()))


# Persisted: never rename a table, never change the order or the width of its key. A table that is no longer used stays
# here as a comment, so that its name is not taken again.
_CATALOGUE = (
    _table("accounts", records.Account, user_id=_ID),
    _table("phone_numbers", records.PhoneNumber, phone_hash=_HASH),
    _table("usernames", records.Username, username=_TEXT),
    _table("devices", records.Device, user_id=_ID, device_id=_ID),
    _table("device_owners", records.DeviceOwner, device_id=_ID),
    _table("refresh_tokens", records.RefreshToken, token_hash=_HASH),
    _table("verifications", records.Verification, verification_id=_ID),
    _table("invites", records.Invite, code_hash=_HASH),
    _table("signing_keys", records.SigningKey, kid=_TEXT),
    _table("conversations", records.Conversation, conversation_id=_ID),
    _table("direct_pairs", records.DirectPair, low_id=_ID, high_id=_ID),
    _table("members", records.Member, conversation_id=_ID, user_id=_ID),
    _table("memberships", records.Membership, user_id=_ID, conversation_id=_ID),
    _table("deliveries", records.Delivery, conversation_id=_ID, user_id=_ID, device_id=_ID),
    _table("log", records.LogEntry, conversation_id=_ID, sequence=_SEQ),
    _table("heads", records.Head, conversation_id=_ID),
    _table("messages", records.MessageIndex, message_id=_ID),
    _table("purges", records.Purge, conversation_id=_ID),
    _table("sent", records.Sent, device_id=_ID, conversation_id=_ID, temp_id=_TEXT),
)
TABLES: dict[type[Any], Table] = {table.kind: table for table in _CATALOGUE}
assert len({table.name for table in _CATALOGUE}) == len(_CATALOGUE)


def after_prefix(prefix: bytes) -> bytes | None:
    """The first key behind all keys that start with `prefix`; None if there is none (all bytes 0xFF or no prefix)."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None
