"""Keys and values: byte order is value order, a prefix of parts is a prefix of bytes, widths never change."""

import struct
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import keys, records
from storage.keys import TABLES, after_prefix
from storage.store import StoreBroken

ids = st.uuids().map(str)
sequences = st.integers(0, 2**64 - 1)
hashes = st.binary(min_size=32, max_size=32)
texts = st.text(max_size=300)
near = st.sampled_from(["00", "01", "7f", "80", "fe", "ff"])
edge_ids = st.lists(near, min_size=16, max_size=16).map(lambda parts: str(UUID("".join(parts))))
_PARTS: dict[Any, tuple[int, st.SearchStrategy[Any]]] = {
    keys.encode_id: (16, ids | edge_ids),
    keys.encode_sequence: (8, sequences),
    keys.encode_hash: (32, hashes),
    keys.encode_text: (16, texts),
}

# What is on disks out there: table, key fields, and the width of a whole key. Only ever append.
_ON_DISK = {
    "accounts": (records.Account, ("user_id",), 16),
    "phone_numbers": (records.PhoneNumber, ("phone_hash",), 32),
    "usernames": (records.Username, ("username",), 16),
    "devices": (records.Device, ("user_id", "device_id"), 32),
    "device_owners": (records.DeviceOwner, ("device_id",), 16),
    "refresh_tokens": (records.RefreshToken, ("token_hash",), 32),
    "verifications": (records.Verification, ("verification_id",), 16),
    "invites": (records.Invite, ("code_hash",), 32),
    "signing_keys": (records.SigningKey, ("kid",), 16),
    "conversations": (records.Conversation, ("conversation_id",), 16),
    "direct_pairs": (records.DirectPair, ("low_id", "high_id"), 32),
    "members": (records.Member, ("conversation_id", "user_id"), 32),
    "memberships": (records.Membership, ("user_id", "conversation_id"), 32),
    "departures": (records.Departure, ("user_id", "conversation_id"), 32),
    "deliveries": (records.Delivery, ("conversation_id", "user_id", "device_id"), 48),
    "log": (records.LogEntry, ("conversation_id", "sequence"), 24),
    "heads": (records.Head, ("conversation_id",), 16),
    "messages": (records.MessageIndex, ("message_id",), 16),
    "purges": (records.Purge, ("conversation_id",), 16),
    "sent": (records.Sent, ("device_id", "conversation_id", "temp_id"), 48),
    "username_holds": (records.UsernameHold, ("username",), 16),
    "privacy": (records.Privacy, ("user_id",), 16),
    "last_seen": (records.LastSeen, ("user_id",), 16),
    "contacts": (records.Contact, ("user_id", "contact_id"), 32),
    "blocks": (records.Block, ("user_id", "blocked_id"), 32),
    "avatars": (records.Avatar, ("avatar_id",), 16),
    "bans": (records.Ban, ("conversation_id", "user_id"), 32),
    "join_links": (records.JoinLink, ("conversation_id", "link_id"), 32),
    "join_codes": (records.JoinCode, ("code_hash",), 32),
    "join_requests": (records.JoinRequest, ("conversation_id", "user_id"), 32),
    "drafts": (records.Draft, ("user_id", "conversation_id"), 32),
    "amendments": (records.Amendment, ("conversation_id", "sequence"), 24),
    "revisions": (records.Revision, ("message_id", "number"), 24),
    "reactions": (records.Reaction, ("message_id", "user_id", "emoji"), 48),
    "votes": (records.Vote, ("message_id", "user_id"), 32),
    "untold": (records.Untold, ("message_id",), 16),
    "pins": (records.Pin, ("conversation_id", "sequence"), 24),
    "threads": (records.Thread, ("conversation_id", "root_sequence"), 24),
    "thread_replies": (records.ThreadReply, ("thread_id", "sequence"), 24),
    "thread_reads": (records.ThreadRead, ("thread_id", "user_id"), 32),
    "mentions": (records.Mention, ("conversation_id", "user_id", "sequence"), 40),
    "hidden": (records.Hidden, ("conversation_id", "user_id", "sequence"), 40),
    "scheduled": (records.Scheduled, ("user_id", "scheduled_id"), 32),
    "due": (records.Due, ("at", "what", "subject_id", "number"), 48),
    "device_keys": (records.DeviceKeys, ("user_id", "device_id"), 32),
    "one_time_pre_keys": (records.OneTimePreKey, ("user_id", "device_id", "key_id"), 40),
    "account_keys": (records.AccountKey, ("user_id",), 16),
    "introduced": (records.Introduced, ("device_id", "by_device_id"), 32),
    "roster_statements": (records.RosterStatement, ("conversation_id", "version"), 24),
    "archives": (records.Archive, ("user_id", "archive_id"), 32),
    "envelopes": (records.Envelope, ("conversation_id", "device_id", "sequence"), 40),
    "undropped": (records.Undropped, ("conversation_id",), 16),
    "archive_chunks": (records.ArchiveChunk, ("user_id", "archive_id", "number"), 40),
}


def _whole_keys(table: keys.Table) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(*(_PARTS[encoder][1] for encoder in table._encoders))


tables_and_keys = st.sampled_from(list(TABLES.values())).flatmap(
    lambda table: st.tuples(st.just(table), _whole_keys(table))
)


def test_the_tables_are_those_that_are_on_disks() -> None:
    found = {
        table.name: (kind, table.fields, sum(_PARTS[encoder][0] for encoder in table._encoders))
        for kind, table in TABLES.items()
    }
    assert found == _ON_DISK


def _kinds(base: type[records.Record]) -> set[type[records.Record]]:
    return {kind for each in base.__subclasses__() for kind in (each, *_kinds(each))}


def test_every_kind_of_record_has_a_table() -> None:
    assert _kinds(records.Record) == set(TABLES)


@given(sequences, sequences)
def test_sequences_are_ordered_as_numbers(one: int, other: int) -> None:
    encoded = keys.encode_sequence(one), keys.encode_sequence(other)
    assert (encoded[0] < encoded[1]) == (one < other)
    assert (encoded[0] == encoded[1]) == (one == other)


@given(ids | edge_ids, ids | edge_ids)
def test_ids_are_ordered_as_text(one: str, other: str) -> None:
    assert (keys.encode_id(one) < keys.encode_id(other)) == (one < other)


@given(hashes, hashes)
def test_hashes_are_ordered_as_bytes(one: bytes, other: bytes) -> None:
    assert (keys.encode_hash(one) < keys.encode_hash(other)) == (one < other)


@given(texts, texts)
def test_texts_have_one_key_each(one: str, other: str) -> None:
    assert (keys.encode_text(one) == keys.encode_text(other)) == (one == other)


@given(tables_and_keys)
def test_a_whole_key_has_the_width_of_its_parts(case: tuple[keys.Table, tuple[Any, ...]]) -> None:
    table, parts = case
    assert len(table.key(*parts)) == _ON_DISK[table.name][2]


@given(tables_and_keys, st.data())
def test_whole_keys_are_ordered_part_by_part(case: tuple[keys.Table, tuple[Any, ...]], data: st.DataObject) -> None:
    """Also when the first parts are the same: a part never runs into the next one."""
    table, parts = case
    shared = data.draw(st.integers(0, len(parts)))
    other = (*parts[:shared], *data.draw(_whole_keys(table))[shared:])
    encoded = tuple(
        tuple(encode(part) for encode, part in zip(table._encoders, key, strict=True)) for key in (parts, other)
    )
    assert (table.key(*parts) < table.key(*other)) == (encoded[0] < encoded[1])
    if keys.encode_text not in table._encoders:
        assert (table.key(*parts) < table.key(*other)) == (parts < other)


@given(tables_and_keys, st.data())
def test_a_prefix_of_parts_is_a_prefix_of_bytes(case: tuple[keys.Table, tuple[Any, ...]], data: st.DataObject) -> None:
    table, parts = case
    first = parts[: data.draw(st.integers(0, len(parts)))]
    prefix, whole = table.prefix(*first), table.key(*parts)
    assert whole.startswith(prefix)
    low, high = table.bounds(first, None, None)
    assert low <= whole
    assert high is None or whole < high
    other = table.key(*data.draw(_whole_keys(table)))
    if not other.startswith(prefix):
        assert other < low or (high is not None and other >= high)


@given(ids | edge_ids, sequences, sequences | st.none(), sequences | st.none())
def test_bounds_are_exclusive(room: str, sequence: int, after: int | None, before: int | None) -> None:
    table = TABLES[records.LogEntry]
    low, high = table.bounds((room,), after, before)
    within = low <= table.key(room, sequence) and (high is None or table.key(room, sequence) < high)
    assert within == ((after is None or sequence > after) and (before is None or sequence < before))


@given(st.binary(max_size=20) | st.integers(0, 20).map(lambda count: b"\xff" * count), st.binary(max_size=20))
def test_after_prefix_is_the_first_key_behind_all_with_the_prefix(prefix: bytes, key: bytes) -> None:
    behind = after_prefix(prefix)
    if behind is None:
        assert prefix.strip(b"\xff") == b""
        return
    assert prefix + key < behind
    assert not behind.startswith(prefix)
    if key >= prefix and not key.startswith(prefix):
        assert key >= behind


@given(tables_and_keys)
def test_the_key_of_a_record_is_made_of_its_key_fields(case: tuple[keys.Table, tuple[Any, ...]]) -> None:
    table, parts = case
    values = dict(zip(table.fields, parts, strict=True))
    record = table.kind(**{name: values.get(name) for name in table.kind.__struct_fields__})
    assert table.parts_of(record) == parts
    assert table.key_of(record) == table.key(*parts)


@pytest.mark.parametrize("text", ["", "abc", "0" * 31, "0" * 34, "g" * 32, "00000000-0000-0000-0000-0000000000é0"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"id is 16 bytes|fromhex"):
        keys.encode_id(text)


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_sequence_beyond_8_bytes_is_refused(number: int) -> None:
    with pytest.raises(struct.error):
        keys.encode_sequence(number)


def test_a_hash_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        keys.encode_hash(b"short")


def test_a_key_of_too_few_or_too_many_parts_is_refused() -> None:
    table = TABLES[records.Member]
    room = "00000000-0000-7000-8000-000000000001"
    with pytest.raises(TypeError, match="members has 2 key parts"):
        table.key(room)
    with pytest.raises(TypeError, match="members has 2 key parts"):
        table.key(room, room, room)
    with pytest.raises(TypeError, match="members has 2 key parts"):
        table.prefix(room, room, room)


@given(st.binary(max_size=100))
def test_no_bytes_at_all_break_the_reader(value: bytes) -> None:
    """A damaged value gives a record or StoreBroken, never another error."""
    for start in (b"", b"\x01"):
        try:
            record = TABLES[records.LogEntry].unpack(start + value)
        except StoreBroken:
            continue
        assert isinstance(record, records.LogEntry)
