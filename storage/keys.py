"""Codecs, pure: from a record's key fields to bytes whose order is the order we scan in, and from records to values.

Every part of a key has a fixed width (ids 16 bytes, sequences 8 bytes big-endian, hashes 32, free text a 16-byte
digest), so there are no separators and no escaping, and a prefix of parts is a prefix of bytes. A value is a version
byte and the record as a MessagePack array. `TABLES` is the one catalogue of what is on disk. It knows nothing of engines
or of what the records mean.
"""

import hashlib
import struct
from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter, call
from typing import Any

import msgspec

from storage import records
from storage.records import Record
from storage.store import KeyPart, StoreBroken

_SEQUENCE = struct.Struct(">Q")
_VERSION = 1  # of the values' encoding; a program that meets another one lacks a migration
_VERSION_BYTE = bytes([_VERSION])
_BEHIND_ALL = b"\xff" * 64  # no key is as long as this
_encode = msgspec.msgpack.Encoder().encode


@lru_cache(maxsize=1 << 15)  # the same few conversations, people and devices come again and again
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


class Table:
    """Where a kind of record lives: its column family, and the fields that make up its key, in order."""

    def __init__(self, name: str, kind: type[Record], **parts: Callable[[KeyPart], bytes]) -> None:
        self.name = name
        self.kind = kind
        self.fields = tuple(parts)
        self._encoders = tuple(parts.values())
        only = self.fields[0]
        self._parts: Callable[[Record], tuple[KeyPart, ...]] = (
            attrgetter(*self.fields) if len(parts) > 1 else lambda record: (getattr(record, only),)
        )
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def prefix(self, *parts: KeyPart) -> bytes:
        """The bytes that all keys with these first parts begin with."""
        if len(parts) > len(self._encoders):
            raise TypeError(f"{self.name} has {len(self._encoders)} key parts")
        return b"".join(map(call, self._encoders, parts))

    def key(self, *parts: KeyPart) -> bytes:
        """The bytes of a whole key."""
        if len(parts) != len(self._encoders):
            raise TypeError(f"{self.name} has {len(self._encoders)} key parts")
        return b"".join(map(call, self._encoders, parts))

    def parts_of(self, record: Record) -> tuple[KeyPart, ...]:
        return self._parts(record)

    def key_of(self, record: Record) -> bytes:
        return b"".join(map(call, self._encoders, self._parts(record)))

    def bounds(
        self, prefix: tuple[KeyPart, ...], after: KeyPart | None, before: KeyPart | None
    ) -> tuple[bytes, bytes | None]:
        """First key and first key behind, of what starts with `prefix` and goes on between `after` and `before`."""
        low = self.prefix(*prefix)
        high = after_prefix(low) if before is None else self.prefix(*prefix, before)
        if after is not None:
            low = after_prefix(self.prefix(*prefix, after)) or _BEHIND_ALL
        return low, high

    def unpack(self, value: bytes) -> Any:
        """The record in `value`. Raises StoreBroken if it is none that this program can have written."""
        if not value or value[0] != _VERSION:
            raise StoreBroken(f"a record in {self.name} has an unknown version: use the gearlink that wrote it")
        try:
            return self._decode(memoryview(value)[1:])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise StoreBroken(f"a record in {self.name} is damaged") from None  # the cause may quote what people wrote


def pack(record: Record) -> bytes:
    """The value to store. Raises what MessagePack cannot hold: UnicodeEncodeError, OverflowError, TypeError."""
    return _VERSION_BYTE + _encode(record)


_ID, _SEQ, _HASH, _TEXT = encode_id, encode_sequence, encode_hash, encode_text

# Persisted: never rename a table, never change the order or the width of its key. A table that is no longer used stays
# here as a comment, so that its name is not taken again.
_CATALOGUE = (
    Table("accounts", records.Account, user_id=_ID),
    Table("phone_numbers", records.PhoneNumber, phone_hash=_HASH),
    Table("usernames", records.Username, username=_TEXT),
    Table("devices", records.Device, user_id=_ID, device_id=_ID),
    Table("device_owners", records.DeviceOwner, device_id=_ID),
    Table("refresh_tokens", records.RefreshToken, token_hash=_HASH),
    Table("verifications", records.Verification, verification_id=_ID),
    Table("invites", records.Invite, code_hash=_HASH),
    Table("signing_keys", records.SigningKey, kid=_TEXT),
    Table("conversations", records.Conversation, conversation_id=_ID),
    Table("direct_pairs", records.DirectPair, low_id=_ID, high_id=_ID),
    Table("members", records.Member, conversation_id=_ID, user_id=_ID),
    Table("memberships", records.Membership, user_id=_ID, conversation_id=_ID),
    Table("departures", records.Departure, user_id=_ID, conversation_id=_ID),
    Table("deliveries", records.Delivery, conversation_id=_ID, user_id=_ID, device_id=_ID),
    Table("log", records.LogEntry, conversation_id=_ID, sequence=_SEQ),
    Table("heads", records.Head, conversation_id=_ID),
    Table("messages", records.MessageIndex, message_id=_ID),
    Table("purges", records.Purge, conversation_id=_ID),
    Table("sent", records.Sent, device_id=_ID, conversation_id=_ID, temp_id=_TEXT),
    Table("username_holds", records.UsernameHold, username=_TEXT),
    Table("privacy", records.Privacy, user_id=_ID),
    Table("last_seen", records.LastSeen, user_id=_ID),
    Table("contacts", records.Contact, user_id=_ID, contact_id=_ID),
    Table("blocks", records.Block, user_id=_ID, blocked_id=_ID),
    Table("avatars", records.Avatar, avatar_id=_ID),
    Table("bans", records.Ban, conversation_id=_ID, user_id=_ID),
    Table("join_links", records.JoinLink, conversation_id=_ID, link_id=_ID),
    Table("join_codes", records.JoinCode, code_hash=_HASH),
    Table("join_requests", records.JoinRequest, conversation_id=_ID, user_id=_ID),
    Table("drafts", records.Draft, user_id=_ID, conversation_id=_ID),
    Table("amendments", records.Amendment, conversation_id=_ID, sequence=_SEQ),
    Table("revisions", records.Revision, message_id=_ID, number=_SEQ),
    Table("reactions", records.Reaction, message_id=_ID, user_id=_ID, emoji=_TEXT),
    Table("votes", records.Vote, message_id=_ID, user_id=_ID),
    Table("untold", records.Untold, message_id=_ID),
    Table("pins", records.Pin, conversation_id=_ID, sequence=_SEQ),
    Table("threads", records.Thread, conversation_id=_ID, root_sequence=_SEQ),
    Table("thread_replies", records.ThreadReply, thread_id=_ID, sequence=_SEQ),
    Table("thread_reads", records.ThreadRead, thread_id=_ID, user_id=_ID),
    Table("mentions", records.Mention, conversation_id=_ID, user_id=_ID, sequence=_SEQ),
    Table("hidden", records.Hidden, conversation_id=_ID, user_id=_ID, sequence=_SEQ),
    Table("scheduled", records.Scheduled, user_id=_ID, scheduled_id=_ID),
    Table("due", records.Due, at=_SEQ, what=_TEXT, subject_id=_ID, number=_SEQ),
    Table("device_keys", records.DeviceKeys, user_id=_ID, device_id=_ID),
    Table("one_time_pre_keys", records.OneTimePreKey, user_id=_ID, device_id=_ID, key_id=_SEQ),
    Table("account_keys", records.AccountKey, user_id=_ID),
    Table("introduced", records.Introduced, device_id=_ID, by_device_id=_ID),
    Table("roster_statements", records.RosterStatement, conversation_id=_ID, version=_SEQ),
    Table("archives", records.Archive, user_id=_ID, archive_id=_ID),
    Table("envelopes", records.Envelope, conversation_id=_ID, device_id=_ID, sequence=_SEQ),
    Table("undropped", records.Undropped, conversation_id=_ID),
    Table("archive_chunks", records.ArchiveChunk, user_id=_ID, archive_id=_ID, number=_SEQ),
)
TABLES: dict[type[Any], Table] = {table.kind: table for table in _CATALOGUE}
assert len({table.name for table in _CATALOGUE}) == len(_CATALOGUE)


def after_prefix(prefix: bytes) -> bytes | None:
    """The first key behind all keys that start with `prefix`; None if there is none (all bytes 0xFF or no prefix)."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None
