"""What a message of each kind may say, tried with what people and their programs send, and with what nobody should."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import limits
from gearlink import contents
from gearlink.calls import MessageForm
from gearlink.clock import new_id
from gearlink.errors import Refusal
from gearlink.protocol import PollForm, Send
from tests.people import refused

PROSE = ["text", "image", "video", "audio", "voice", "file"]
numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
free = st.dictionaries(
    st.text(max_size=8), st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8)), max_size=4
)


def form(content: str, kind: str = "text", **more: Any) -> MessageForm:
    return MessageForm(temp_id="t-1", content=content, kind=kind, **more)  # type: ignore[arg-type]


def check(content: str, kind: str = "text", **more: Any) -> None:
    asked = form(content, kind, **more)
    contents.check(asked, contents.size_bytes(asked))


def complaint(content: str, kind: str = "text", **more: Any) -> str:
    """What is wrong with it: the path."""
    with refused("invalid-request") as refusal:
        check(content, kind, **more)
    assert refusal.value.errors is not None
    return refusal.value.errors[0]["path"]


# --- prose -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROSE)
def test_a_text_and_a_caption_may_say_anything(kind: str) -> None:
    for content in ("x", " ", "\0", "{", "ʘ‿ʘ", "a" * limits.CONTENT_BYTES_MAX):
        check(content, kind)


@given(st.integers(limits.CONTENT_BYTES_MAX // 4 - 2, limits.CONTENT_BYTES_MAX // 4 + 2), st.sampled_from("aé€😀"))
def test_content_is_bounded_in_bytes_and_not_in_characters(count: int, character: str) -> None:
    content = character * count
    if len(content.encode()) <= limits.CONTENT_BYTES_MAX:
        check(content)
        contents.check_size(content)
    else:
        assert complaint(content) == "content"
        with refused("invalid-request"):
            contents.check_size(content)


def test_the_options_of_a_poll_are_counted_but_are_no_content() -> None:
    options = ["é" * limits.POLL_OPTION_CHARS_MAX + str(number) for number in range(limits.POLL_OPTIONS_MAX)]
    asked = form("a" * limits.CONTENT_BYTES_MAX, "poll", poll=PollForm(options=options))
    size = contents.size_bytes(asked)
    assert size == limits.CONTENT_BYTES_MAX + sum(len(option.encode()) for option in options)
    contents.check(asked, size)


# --- a place ---------------------------------------------------------------------------------------------------------


@given(st.floats(-90, 90), st.floats(-180, 180), free)
def test_a_place_on_earth_is_a_location_whatever_else_is_told_of_it(
    latitude: float, longitude: float, more: dict[str, Any]
) -> None:
    check(json.dumps({**more, "latitude": latitude, "longitude": longitude}), "location")


@given(numbers, numbers)
def test_a_place_is_refused_exactly_where_it_is_not_on_earth(latitude: float, longitude: float) -> None:
    content = json.dumps({"latitude": latitude, "longitude": longitude})
    if abs(latitude) <= 90 and abs(longitude) <= 180:
        check(content, "location")
    else:
        assert complaint(content, "location") == "content"


@pytest.mark.parametrize(
    "content",
    [
        "here",
        "{}",
        "[]",
        "null",
        "[52.5, 13.4]",
        '{"latitude": 52.5}',
        '{"latitude": 52.5, "longitude": null}',
        '{"latitude": "52.5", "longitude": "13.4"}',
        '{"latitude": true, "longitude": false}',
        '{"Latitude": 52.5, "longitude": 13.4}',
        '{"latitude": NaN, "longitude": 13.4}',
        '{"latitude": 52.5, "longitude": Infinity}',
        '{"latitude": 52.5, "longitude": -1e999}',
        '{"latitude": 52.5, "longitude": 13.4, "accuracy": NaN}',
        '{"latitude": 52.5, "longitude": 13.4, "accuracy": 1e999}',
        '{"latitude": 052.5, "longitude": 13.4}',
        "{'latitude': 52.5, 'longitude': 13.4}",
        '{"latitude": 52.5, "longitude": 13.4,}',
        r'{"latitude": 52.5, "longitude": 13.4, "name": "\ud83d"}',
    ],
)
def test_what_is_no_place_is_refused(content: str) -> None:
    assert complaint(content, "location") == "content"


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}")])
def test_json_is_taken_up_to_its_depth_and_no_deeper(opened: str, closed: str) -> None:
    def nested(depth: int) -> str:
        inner = opened * (depth - 1) + "1" + closed * (depth - 1)
        return '{"latitude": 1, "longitude": 1, "more": ' + inner + "}"

    check(nested(limits.CONTENT_DEPTH_MAX), "location")
    for depth in (limits.CONTENT_DEPTH_MAX + 1, 100, 2500):
        assert complaint(nested(depth), "location") == "content"


# --- a person --------------------------------------------------------------------------------------------------------


@given(st.sampled_from(["displayName", "name"]), st.text(min_size=1, max_size=20).filter(str.strip), free)
def test_a_contact_has_a_name_and_whatever_else(key: str, name: str, more: dict[str, Any]) -> None:
    check(json.dumps({**more, key: name}), "contact")


@pytest.mark.parametrize(
    "content",
    ["Ann", "{}", '"Ann"', '["Ann"]', '{"name": ""}', '{"name": "  "}', '{"name": 5}', '{"displayName": null}',
     '{"phone": "+1"}', '{"name": ["Ann"]}', '{"name": {"first": "Ann"}}', "BEGIN:VCARD"],
)  # fmt: skip
def test_a_contact_without_a_name_is_refused(content: str) -> None:
    assert complaint(content, "contact") == "content"


@given(st.text(max_size=40), st.sampled_from(["location", "contact"]))
def test_no_text_is_more_than_refused_and_no_refusal_repeats_it(content: str, kind: str) -> None:
    try:
        check("canary" + content, kind)
    except Refusal as refusal:
        assert refusal.code == "invalid-request" and "canary" not in repr((refusal.detail, refusal.errors))


# --- polls, media ----------------------------------------------------------------------------------------------------


def test_a_poll_is_what_a_message_of_that_kind_has_and_no_other() -> None:
    poll = PollForm(options=["yes", "no"])
    check("Tea?", "poll", poll=poll)
    assert complaint("Tea?", "poll") == "poll"
    for kind, content in [*((kind, "Tea?") for kind in PROSE), ("contact", '{"name": "Ann"}')]:
        assert complaint(content, kind, poll=poll) == "poll"


@pytest.mark.parametrize("options", [["yes", "yes"], ["yes", " yes "], ["yes", " "], ["a", "b", "a"], ["\n", "b"]])
def test_the_options_of_a_poll_are_texts_that_differ(options: list[str]) -> None:
    assert complaint("Tea?", "poll", poll=PollForm(options=options)) == "poll.options"


@pytest.mark.parametrize("kind", [*PROSE, "poll"])
def test_no_message_has_attachments_yet(kind: str) -> None:
    poll = PollForm(options=["yes", "no"]) if kind == "poll" else None
    check("look", kind, media_ids=[], poll=poll)
    assert complaint("look", kind, media_ids=[new_id()], poll=poll) == "mediaIds"


def test_both_doors_have_the_same_form() -> None:
    sent = {field.name: (field.type, field.default) for field in msgspec.structs.fields(Send)}
    posted = {field.name: (field.type, field.default) for field in msgspec.structs.fields(MessageForm)}
    assert {name for name in sent if name not in posted} == {"ref", "conversation_id"}
    assert {name: sent[name] for name in posted} == posted
