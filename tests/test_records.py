"""Records on the disk: every kind survives it, older bytes are still read, and sealed content is never plain."""

import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import events, records
from storage.events import Message, Plain, Sealed
from storage.keys import TABLES, pack
from storage.records import LogEntry, Record
from storage.store import StoreBroken

EVENTS: list[Any] = list(get_args(events.LogEvent))
texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["", "Ωλ", "🐚🦑", "\0", "e\u0301\u202e"])


def values_of(type_: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may have, strings with all of Unicode included."""
    origin, inner = get_origin(type_), get_args(type_)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values_of, inner))
    if origin is tuple:
        return st.lists(values_of(inner[0]), max_size=3).map(tuple)
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        hints = get_type_hints(type_)
        return st.builds(type_, **{name: values_of(hints[name]) for name in type_.__struct_fields__})
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: texts,
        int: st.integers(0, 2**63 - 1),
        bytes: st.binary(max_size=40),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return simple[type_]


@pytest.mark.parametrize("kind", list(TABLES), ids=lambda kind: kind.__name__)
def test_every_kind_of_record_comes_back_as_it_was(kind: type[Record]) -> None:
    @given(values_of(kind))
    def round_trip(record: Record) -> None:
        assert TABLES[kind].unpack(pack(record)) == record

    round_trip()


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_every_kind_of_event_comes_back_as_it_was(kind: type[events.Event]) -> None:
    @given(values_of(kind))
    def round_trip(event: Any) -> None:
        back = TABLES[LogEntry].unpack(pack(LogEntry("room", 1, event)))
        assert type(back.event) is kind
        assert back.event == event

    round_trip()


def _defaults(kind: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(kind) if not field.required]


def _older(kind: Any, record: Any) -> list[tuple[list[Any], Any]]:
    """What programs wrote before the last fields were there, and what it has to be read as now."""
    values = msgspec.msgpack.decode(msgspec.msgpack.encode(record))
    found = []
    for count in range(1, len(_defaults(kind)) + 1):
        gone = _defaults(kind)[-count:]
        missing = {field.name: field.default for field in msgspec.structs.fields(kind) if field.name in gone}
        found.append((values[:-count], msgspec.structs.replace(record, **missing)))
    return found


_GROWN = [kind for kind in TABLES if _defaults(kind)]


@pytest.mark.parametrize("kind", _GROWN, ids=lambda kind: kind.__name__)
def test_bytes_from_before_a_field_was_appended_are_still_read(kind: type[Record]) -> None:
    @given(values_of(kind))
    def read(record: Record) -> None:
        for values, expected in _older(kind, record):
            assert TABLES[kind].unpack(b"\x01" + msgspec.msgpack.encode(values)) == expected

    read()


@given(values_of(Message))
def test_messages_from_before_a_field_was_appended_are_still_read(message: Message) -> None:
    for values, expected in _older(Message, message):
        old = b"\x01" + msgspec.msgpack.encode(["room", 1, values])
        assert TABLES[LogEntry].unpack(old) == LogEntry("room", 1, expected)


def test_bytes_with_a_field_of_a_newer_program_are_still_read() -> None:
    """So a program may be put back as long as the stamp says so."""
    newer = b"\x01" + msgspec.msgpack.encode(["room", 3, 2, 9, "a field of tomorrow"])
    assert TABLES[records.Head].unpack(newer) == records.Head("room", 3, 2, 9)


def test_the_bytes_of_a_message_are_those_that_are_on_disks() -> None:
    """If this fails, stored logs cannot be read any more: append fields with defaults, or write a migration."""
    message = Message("id", "actor", 5, "device", "text", Plain("hé"), "temp", "reply", ("ann",))
    since_replies = [[], "", 0, 0, 0, 0, "", 0, [], None]  # what came later: media, thread, forwarded and so on
    said = ["m", "id", "actor", 5, "device", "text", ["p", "hé"], "temp", "reply", ["ann"]]
    on_disk = ["room", 7, [*said, *since_replies]]
    assert pack(LogEntry("room", 7, message)) == b"\x01" + msgspec.msgpack.encode(on_disk)
    tags = {kind.__struct_config__.tag for kind in (*EVENTS, Plain, Sealed)}
    assert tags == set("mjlcunedrvgxq") | {"p", "s"}


@pytest.mark.parametrize("value", [b"", b"\x00", b"\x02\x94", b"\xff"])
def test_another_version_is_refused_and_not_guessed_at(value: bytes) -> None:
    with pytest.raises(StoreBroken, match="heads has an unknown version"):
        TABLES[records.Head].unpack(value)


def test_a_damaged_value_is_refused_without_telling_what_is_in_it() -> None:
    whole = pack(records.Account("user", "+15550001", 1, 1, bio="secret"))
    for value in (whole[:-1], whole[:1] + b"\xc1" + whole[2:], whole.replace(b"secret", b"\xff" * 6)):
        with pytest.raises(StoreBroken) as caught:
            TABLES[records.Account].unpack(value)
        assert "secret" not in str(caught.value)
        assert "+1555" not in str(caught.value)


@given(values_of(Sealed))
def test_sealed_content_never_comes_back_as_plain(sealed: Sealed) -> None:
    message = Message("id", "actor", 5, "device", "text", sealed, "temp")
    content = TABLES[LogEntry].unpack(pack(LogEntry("room", 1, message))).event.content
    assert type(content) is Sealed
    assert not isinstance(content, Plain)
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(sealed), type=Plain)


@given(texts)
def test_plain_content_never_comes_back_as_sealed(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(Plain(text)), type=Sealed)


def test_plain_and_sealed_have_nothing_in_common() -> None:
    assert set(Plain.__mro__) & set(Sealed.__mro__) == {msgspec.Struct, object, *msgspec.Struct.__mro__}
    assert not hasattr(Sealed("scheme", b""), "text")
