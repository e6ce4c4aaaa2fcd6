"""What a peer is told of a form that was refused: where and what, in words, and nothing of what was sent."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import limits
from gearlink import calls, complaints, protocol, views
from gearlink.errors import INVALID_REQUEST, Refusal
from gearlink.http_api.pipeline import decode_query
from gearlink.http_api.table import PageQuery

ID = "01a20633-066f-7544-a276-49edef47cf9a"
DEVICE = {"name": "x", "type": "web"}
SEND = {"type": "message:send", "tempId": "1", "conversationId": ID, "content": "x"}
AUTH = {"type": "auth", "accessToken": "x"}


def told(form: Any, value: Any) -> tuple[str, str]:
    """Path and message of the one complaint; a frame where `form` is None."""
    data = msgspec.json.encode(value)
    with pytest.raises(Refusal) as caught:
        if form is None:
            protocol.decode_client(data)
        else:
            complaints.decode_body(data, form)
    assert caught.value.entry is INVALID_REQUEST and caught.value.errors is not None
    [error] = caught.value.errors
    return error["path"], error["message"]


@pytest.mark.parametrize(
    ("form", "value", "path", "message"),
    [
        (calls.ConversationForm, {}, "type", "required"),
        (calls.ConversationForm, [], "", "expected an object, got a list"),
        (calls.ConversationForm, {"type": "x"}, "type", "not one of direct, group, channel"),
        (calls.ConversationForm, {"type": "group", "encryption": "x"}, "encryption", "not one of server, e2ee"),
        (calls.ConversationForm, {"type": "group", "memberIds": ["x"]}, "memberIds[0]", "not an id"),
        (calls.ConversationForm, {"type": "group", "memberIds": [ID, None]}, "memberIds[1]", "expected a text, got null"),
        (calls.ConversationForm, {"type": "group", "memberIds": [ID] * 1001}, "memberIds", "length at most 1000"),
        (calls.ConversationForm, {"type": "group", "name": 5}, "name", "expected a text or null, got a whole number"),
        (calls.ConversationForm, {"type": "group", "nam": "x"}, "nam", "unknown field"),
        (calls.ProfileForm, {"displayName": ""}, "displayName", "length at least 1"),
        (calls.ProfileForm, {"username": "X y"}, "username", "not of the required form"),
        (calls.ReadForm, {"sequenceNumber": -1}, "sequenceNumber", "at least 0"),
        (calls.ReadForm, {"sequenceNumber": 2**53}, "sequenceNumber", "at most 9007199254740991"),
        (calls.ReadForm, {"sequenceNumber": True}, "sequenceNumber", "expected a whole number, got a truth value"),
        (calls.VerifyConfirm, {"verificationId": ID, "code": "1", "device": {"name": "x"}}, "device.type", "required"),
        (
            calls.VerifyConfirm,
            {"verificationId": ID, "code": "1", "device": DEVICE | {"type": "fax"}},
            "device.type",
            "not one of ios, android, web, desktop, bot",
        ),
        (
            calls.VerifyConfirm,
            {"verificationId": ID, "code": "1", "device": DEVICE | {"z": 1}},
            "device.z",
            "unknown field",
        ),
        (None, AUTH | {"cursors": {"x": 1}}, "cursors", "not an id"),
        (None, AUTH | {"cursors": {ID: -1}}, "cursors", "at least 0"),
        (None, AUTH | {"cursors": []}, "cursors", "expected an object or null, got a list"),
        (None, {"type": "auth"}, "accessToken", "required"),
        (
            None,
            SEND | {"kind": "system"},
            "kind",
            "not one of text, image, video, audio, voice, file, location, contact, poll, key-distribution, control",
        ),
        (None, SEND | {"replyToId": "q"}, "replyToId", "not an id"),
        (None, SEND | {"mentions": [ID, "q"]}, "mentions[1]", "not an id"),
        (None, {"type": "ping", "ref": "x" * 129}, "ref", "length at most 128"),
    ],
)
def test_a_complaint_says_where_and_what_in_words(form: Any, value: Any, path: str, message: str) -> None:
    assert told(form, value) == (path, message)


@pytest.mark.parametrize(
    ("query", "path", "message"),
    [
        (b"limit=0", "limit", "at least 1"),
        (b"limit=x", "limit", "expected a whole number, got a text"),
        (b"cursor=", "cursor", "length at least 1"),
        (b"Limit=1", "Limit", "unknown field"),
    ],
)
def test_a_query_is_complained_of_like_a_body(query: bytes, path: str, message: str) -> None:
    with pytest.raises(Refusal) as caught:
        decode_query(query, PageQuery)
    assert caught.value.errors == [{"path": path, "message": message}]


FORMS = [
    form
    for form in vars(calls).values()
    if isinstance(form, type) and issubclass(form, views.Request) and form is not views.Request
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40).map("canary{}".format)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


@given(st.sampled_from(FORMS), st.data())
def test_no_complaint_repeats_a_value_or_speaks_of_our_insides(form: type[msgspec.Struct], data: st.DataObject) -> None:
    names = [each.encode_name for each in msgspec.structs.fields(form)]
    value = data.draw(st.dictionaries(st.sampled_from(names), VALUES))
    try:
        complaints.decode_body(msgspec.json.encode(value), form)
    except Refusal as refusal:
        [error] = refusal.errors or []
        assert len(error["message"]) <= 256 and len(error["path"]) <= 256
        assert "canary" not in error["message"]
        for inside in ("`", "regex", "Expected", "str", "int ", "^", "\\", "Object", "NoneType"):
            assert inside not in error["message"], error


def test_the_most_cursors_of_the_largest_numbers_fit_into_one_frame() -> None:
    cursors = {f"01a20633-066f-7544-a276-{number:012x}": limits.SEQUENCE_MAX for number in range(limits.CURSORS_MAX)}
    token = "t" * limits.TOKEN_CHARS_MAX
    data = msgspec.json.encode(AUTH | {"accessToken": token, "epoch": ID, "cursors": cursors, "ref": "r" * 128})
    assert isinstance(protocol.decode_client(data), protocol.Auth) and len(data) <= 128 * 1024
    cursors[ID] = 1
    assert told(None, AUTH | {"cursors": cursors}) == ("cursors", "length at most 2000")
