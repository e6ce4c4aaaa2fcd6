"""Letters: what is encrypted, how it is written, padded and read, and that nothing else is ever read as one."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import limits
from gearlink.sdk.e2ee import letters
from gearlink.sdk.e2ee.encoding import to_base64url
from gearlink.sdk.e2ee.letters import (
    Attachment,
    Edit,
    Letter,
    LetterTooLarge,
    Link,
    Message,
    Reaction,
    Resend,
    ResendRequest,
    RosterMark,
    SenderKeyGiven,
    Undecryptable,
    UnknownLetter,
)

GROUP = "01890000-0000-7000-8000-00000000000a"
OTHER = "01890000-0000-7000-8000-00000000000b"
B16, B32, B64 = (to_base64url(bytes(range(size))) for size in (16, 32, 64))
FILE: dict[str, Any] = {"mediaId": OTHER, "key": B32, "sha256": B32, "size": 3, "mimeType": "image/png"}

FORMS: dict[str, dict[str, Any]] = {
    "message": {"count": 1, "tempId": "t", "kind": "text", "content": "hello"},
    "edit": {"count": 2, "messageId": OTHER, "content": "hallo"},
    "reaction": {"count": 3, "messageId": OTHER, "emoji": "👍", "added": True},
    "sender-key": {"keyId": B16, "iteration": 7, "chainKey": B32, "signatureKey": B32},
    "resend-request": {"messageId": OTHER, "reason": "no-session"},
    "resend": {
        **{"messageId": OTHER, "sequenceNumber": 9, "createdAt": "2026-01-31T12:00:00.000Z", "epoch": "e"},
        "letter": "{}",
    },
    "link": {"accountKey": B32, "proof": B32},
}
FORMS = {type_: {"type": type_, "conversationId": GROUP, **form} for type_, form in FORMS.items()}

EVERY: list[Letter] = [
    Message(
        conversation_id=GROUP,
        certificate=B64,
        count=5,
        temp_id="abc",
        kind="image",
        content="",
        reply_to_id=OTHER,
        mentions=["all", OTHER],
        attachments=[
            Attachment(
                **{"media_id": OTHER, "key": B32, "sha256": B32, "size": 3, "mime_type": "image/svg+xml"},
                **{"name": "a b.svg", "width": 1, "height": 2, "duration_seconds": 1.5, "blur_hash": "LKO2?U%2Tw=w"},
                **{"waveform": "AAAA", "thumbnail": "AA"},
            )
        ],
        expires_in_seconds=60,
        roster=RosterMark(version=3, hash=B32),
    ),
    Edit(conversation_id=GROUP, count=1, message_id=OTHER, content="é", mentions=[OTHER]),
    Reaction(conversation_id=GROUP, count=2, message_id=OTHER, emoji="👍", added=False),
    SenderKeyGiven(
        conversation_id=GROUP,
        key_id=B16,
        iteration=2**32 - 1,
        chain_key=B32,
        signature_key=B32,
        roster=RosterMark(version=1, hash=B32),
    ),
    ResendRequest(conversation_id=GROUP, reason="no-sender-key", count=4, key_id=B16),
    Resend(
        conversation_id=GROUP,
        message_id=OTHER,
        sequence_number=1,
        created_at="2026-01-31T12:00:00.000Z",
        epoch="e",
        letter='{"type":"message"}',
    ),
    Link(conversation_id=GROUP, account_key=B32, proof=B32, archive_id=OTHER, archive_key=B32, backup_key=B32),
]


def sealed(form: object) -> bytes:
    """A plaintext as another implementation may write it."""
    return letters.pad(json.dumps(form).encode())


def assert_unreadable(plaintext: bytes) -> None:
    with pytest.raises(Undecryptable) as caught:
        letters.decode(plaintext)
    assert caught.value.reason == "unreadable-letter"
    assert caught.value.__cause__ is None and caught.value.__context__ is None, "what was in it hangs on to the error"


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", EVERY, ids=lambda letter: type(letter).__name__)
def test_a_letter_comes_out_as_it_went_in(letter: Letter) -> None:
    plaintext = letters.encode(letter)
    assert letters.decode(plaintext) == letter
    assert letters.from_json(letters.to_json(letter)) == letter
    assert len(plaintext) % 160 == 0


@pytest.mark.parametrize("type_", FORMS)
def test_every_type_of_the_document_is_read_and_its_unknown_keys_are_passed_over(type_: str) -> None:
    plain = letters.decode(sealed(FORMS[type_]))
    assert type(plain) in letters.WIRE_KIND
    assert letters.decode(sealed({**FORMS[type_], "later": {"deep": [1, 2.5, None]}})) == plain
    assert msgspec.json.decode(letters.to_json(plain)) == FORMS[type_]  # type: ignore[arg-type]


def test_every_type_goes_as_the_kind_that_the_document_says() -> None:
    kinds = {letter.__struct_config__.tag: letters.wire_kind(letter) for letter in EVERY}
    assert kinds == {
        "message": "text",
        **dict.fromkeys(("edit", "reaction", "resend-request", "resend", "link"), "control"),
        "sender-key": "key-distribution",
    }
    assert set(kinds) == set(FORMS)


def test_a_type_of_a_later_release_is_known_to_be_one() -> None:
    found = letters.decode(sealed({"type": "poll", "conversationId": GROUP, "count": "many"}))
    assert isinstance(found, UnknownLetter)
    assert (found.type, found.conversation_id) == ("poll", GROUP)
    assert_unreadable(sealed({"type": "poll"}))
    assert_unreadable(sealed({"type": "p" * 65, "conversationId": GROUP}))


def test_a_letter_without_a_number_is_one_of_our_own_and_nobody_elses() -> None:
    form = {**FORMS["message"], "count": 0}
    assert isinstance(letters.from_json(json.dumps(form)), Message)
    assert_unreadable(sealed(form))


def test_a_text_that_other_json_writers_escape_is_the_same_letter() -> None:
    form = {**FORMS["message"], "content": '\u0000 \U0001f600 \u2028 " \\'}
    assert letters.decode(letters.pad(json.dumps(form, ensure_ascii=True).encode())) == letters.decode(
        letters.pad(json.dumps(form, ensure_ascii=False, indent=3).encode())
    )


# --- what is not ------------------------------------------------------------------------------------------------------

BROKEN: list[tuple[str, dict[str, Any]]] = [
    *[(type_, {"conversationId": id_}) for type_ in FORMS for id_ in (None, 5, "", GROUP + "\n", GROUP.upper())],
    *[(type_, {"certificate": text}) for type_ in FORMS for text in (B32, B64 + "=", B64[:-1] + "_", 64)],
    *[("message", {"count": count}) for count in (-1, 1.5, "1", True, None, 2**53)],
    *[("message", {"content": content}) for content in (None, "", "x" * 16_385, "é" * 8193, ["x"])],
    *[("message", {"kind": kind}) for kind in ("poll", "system", "control", "", None)],
    *[("message", {"tempId": temp_id}) for temp_id in ("", "x" * 129, 1)],
    *[("message", {"replyToId": id_}) for id_ in ("all", None, [])],
    *[("message", {"mentions": found}) for found in ("all", ["nobody"], ["all"] * 101, [None])],
    *[("message", {"expiresInSeconds": seconds}) for seconds in (0, -1, 1.5, 367 * 86_400)],
    *[("message", {"roster": mark}) for mark in ({}, {"version": 0, "hash": B32}, {"version": 1, "hash": B16}, 1)],
    ("message", {"attachments": [FILE] * 11}),
    *[
        ("message", {"attachments": [{**FILE, **change}]})
        for change in (
            *({"key": B16}, {"key": None}, {"sha256": B32[:-1] + "_"}, {"size": -1}, {"size": 2**41}, {"mediaId": "x"}),
            *({"mimeType": "png"}, {"mimeType": "a/b\nc"}, {"mimeType": "a/" + "b" * 126}),
            *({"name": name} for name in ("", ".", "..", "../x", "a\\b", "a\x00b", "a\n", "x" * 256)),
            *({"width": 0}, {"height": 2**31}, {"durationSeconds": -1}, {"durationSeconds": 10**9}),
            *({"blurHash": ""}, {"blurHash": "a b"}, {"waveform": "A"}, {"waveform": "A" * 404}, {"thumbnail": "AB"}),
        )
    ],
    *[("edit", {"content": content}) for content in ("", "é" * 8193)],
    *[("reaction", {"emoji": ""}), ("reaction", {"emoji": "x" * 17}), ("reaction", {"added": 1})],
    *[("sender-key", {"iteration": number}) for number in (-1, 2**32, "0")],
    *[("sender-key", {"keyId": text}) for text in (B32, B16[:-1] + "B", B16 + "\n", "")],
    *[("sender-key", {"chainKey": B16}), ("sender-key", {"signatureKey": B64})],
    *[("resend-request", {"reason": text}) for text in ("", "No", "x" * 33, "no\n")],
    *[("resend-request", {"count": 0}), ("resend-request", {"messageId": None})],
    *[("resend", {"createdAt": text}) for text in ("today", "", 5)],
    *[("resend", {"epoch": ""}), ("resend", {"epoch": "e" * 65}), ("resend", {"letter": {}})],
    *[
        ("resend", {"sequenceNumber": 0}),
        ("link", {"accountKey": B64}),
        ("link", {"archiveId": "x"}),
        ("link", {"proof": ""}),
    ],
]


@pytest.mark.parametrize(
    ("type_", "change"), BROKEN, ids=lambda part: part if isinstance(part, str) else repr(part)[:40]
)
def test_a_field_that_is_wrong_or_too_large_makes_no_letter(type_: str, change: dict[str, Any]) -> None:
    assert_unreadable(sealed({**FORMS[type_], **change}))


@pytest.mark.parametrize(("type_", "key"), [(type_, key) for type_ in FORMS for key in FORMS[type_]])
def test_a_field_that_is_missing_makes_no_letter(type_: str, key: str) -> None:
    assert_unreadable(sealed({name: value for name, value in FORMS[type_].items() if name != key}))


HEAD = f'{{"type":"edit","conversationId":"{GROUP}","count":1,"messageId":"{OTHER}",'.encode()


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"null", b"1", b'"edit"', b"[]", b"{}", b"{", b"}", HEAD + b'"content":"x"'),
        *(HEAD + b'"content":"\xff"}', HEAD + b'"content":"\xed\xa0\x80"}', HEAD + b'"content":"x","later":"\xff"}'),
        *(HEAD + b'"content":"\\ud800"}', HEAD + b'"content":"\\ud83dx"}', HEAD + b'"content":"x"} 1'),
        *(HEAD + b'"content":"x","later":NaN}', HEAD + b'"content":"x","later":' + b"[" * 80_000),
        *(b"[" * 90_000, b'{"a":' * 15_000, b'{"type":' * 10_000, HEAD + b'"content":' + b'{"a":' * 15_000),
        b'{"type":{"type":"edit"},"conversationId":"' + GROUP.encode() + b'"}',
        b"\xef\xbb\xbf" + HEAD + b'"content":"x"}',
    ],
    ids=lambda text: repr(text[-20:]),
)
def test_json_that_is_broken_or_nested_beyond_reason_makes_no_letter(text: bytes) -> None:
    assert_unreadable(letters.pad(text))


# --- padding ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=1000))
def test_padding_comes_off_as_it_was_put_on(text: bytes) -> None:
    padded = letters.pad(text)
    assert letters.unpad(padded) == text
    assert len(padded) % 160 == 0 and 1 <= len(padded) - len(text) <= 160


@given(st.binary(max_size=700))
def test_no_two_paddings_stand_for_one_text(padded: bytes) -> None:
    try:
        text = letters.unpad(padded)
    except Undecryptable:
        return
    assert letters.pad(text) == padded


@pytest.mark.parametrize(
    "padded",
    [
        *(b"", b"\x80", b"\x00" * 160, b"x" * 160, b"\x80" + bytes(319), b"x" * 159 + b"\x81"),
        *(letters.pad(b"x") + bytes(160), letters.pad(b"x")[:-1], bytes(160) + letters.pad(b"x") + b"\x00"),
        b"x" * letters.LETTER_BYTES_MAX + b"\x80" + bytes(159),
    ],
    ids=lambda padded: f"{len(padded)} bytes",
)
def test_what_no_padding_makes_is_no_letter(padded: bytes) -> None:
    assert_unreadable(padded)


def test_letters_of_nearly_the_same_length_cannot_be_told_apart() -> None:
    def size(content: str) -> int:
        return len(letters.encode(letters.from_json(json.dumps({**FORMS["message"], "content": content}))))  # type: ignore[arg-type]

    assert size("no") == size("certainly")


# --- bounds and secrets -----------------------------------------------------------------------------------------------


def test_the_largest_content_fits_also_where_it_is_sent_again() -> None:
    message = Message(conversation_id=GROUP, count=1, temp_id="t", kind="text", content="\n" * limits.CONTENT_BYTES_MAX)
    again = msgspec.structs.replace(EVERY[5], letter=letters.to_json(message).decode())
    assert letters.decode(letters.encode(message)) == message
    assert letters.decode(letters.encode(again)) == again
    assert len(letters.encode(again)) + letters.SEALING_BYTES_MAX <= limits.CIPHERTEXT_BYTES_MAX


def test_what_the_server_would_not_take_is_refused_before_it_is_encrypted() -> None:
    controls = Message(conversation_id=GROUP, count=1, temp_id="t", kind="text", content="\x01" * 16_384)
    with pytest.raises(LetterTooLarge):
        letters.encode(controls)
    with pytest.raises(ValueError, match="too many bytes"):
        Message(conversation_id=GROUP, count=1, temp_id="t", kind="text", content="é" * 16_384)


@pytest.mark.parametrize("letter", EVERY, ids=lambda letter: type(letter).__name__)
def test_a_letter_shows_nothing_of_itself(letter: Letter) -> None:
    assert repr(letter) == str(letter) == f"<{type(letter).__name__}>"


def test_neither_a_file_nor_an_error_shows_what_is_in_it() -> None:
    found = EVERY[0]
    assert isinstance(found, Message) and found.attachments
    assert repr(found.attachments) == "[<Attachment>]"
    assert str(Undecryptable("bad-message")) == "bad-message"
