"""The form of encrypted content: sizes and what is kept of it, without a server."""

import json
from typing import Any

import msgspec
import pytest

from config import limits
from config.settings import Settings
from gearlink import contents, protocol
from gearlink.calls import MessageForm
from gearlink.clock import new_id
from gearlink.errors import Refusal
from gearlink.sealing import sealed
from storage.events import Sealed
from tests.envelopes import KEY_ID, text


def form(encrypted: dict[str, Any], **more: Any) -> MessageForm:
    return msgspec.convert({"tempId": "t", "encrypted": encrypted, **more}, MessageForm)


def to_devices(count: int, body: bytes = b"letter") -> dict[str, Any]:
    envelopes = [{"userId": new_id(), "deviceId": new_id(), "type": "prekey", "body": text(body)} for _ in range(count)]
    return {"scheme": "double-ratchet", "envelopes": envelopes}


def test_as_many_devices_as_there_may_be_and_no_more() -> None:
    found = sealed(form(to_devices(limits.ENVELOPES_MAX)))
    assert found is not None and len(found.letters) == len(set(found.content.devices)) == limits.ENVELOPES_MAX
    frame = {"type": "message:send", "conversationId": new_id(), "tempId": "t"}
    with pytest.raises(Refusal) as refused:
        protocol.decode_client(json.dumps({**frame, "encrypted": to_devices(limits.ENVELOPES_MAX + 1)}))
    assert refused.value.errors == [{"path": "encrypted.envelopes", "message": "length at most 2000"}]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 159, 160, 161, limits.CIPHERTEXT_BYTES_MAX])
def test_a_body_of_any_length_is_kept_as_it_is(size: int) -> None:
    body = bytes(number % 251 for number in range(size))
    found = sealed(form({"scheme": "sender-key", "keyId": KEY_ID, "body": text(body)}))
    assert found is not None and found.content == Sealed("sender-key", body, KEY_ID)
    found = sealed(form(to_devices(2, body)))
    assert found is not None and [letter.body for letter in found.letters] == [body, body]


def test_the_budget_counts_the_bytes_of_the_ciphertext() -> None:
    for size in (1, 100, 1000):
        assert contents.size_bytes(form({"scheme": "sender-key", "keyId": "k", "body": text(bytes(size))})) == size
        assert contents.size_bytes(form(to_devices(3, bytes(size)))) == 3 * size


def test_the_largest_ciphertext_with_everything_beside_it_fits_a_frame_and_a_body_of_the_default_size() -> None:
    largest = {"scheme": "sender-key", "keyId": "k" * limits.KEY_ID_CHARS_MAX, "devicesDigest": "d" * 43}
    frame = {
        "type": "message:send",
        "conversationId": new_id(),
        "tempId": "\u0001" * limits.TEMP_ID_CHARS_MAX,
        "ref": "\u0001" * limits.REF_CHARS_MAX,
        "mentions": [new_id()] * limits.MENTIONS_MAX,
        "replyToId": new_id(),
        "forwardedFromId": new_id(),
        "encrypted": {**largest, "body": text(bytes(limits.CIPHERTEXT_BYTES_MAX))},
    }
    chosen = Settings().limits
    assert len(json.dumps(frame)) < min(chosen.frame_kib, chosen.body_kib, chosen.outbox_kib) * 1024


def test_a_letter_with_the_largest_content_fits_however_its_text_is_escaped() -> None:
    """What a JSON encoder makes of it: at most three bytes for each, of characters that people write."""
    for character in ("\u00e9", "\u4e2d", "\N{GRINNING FACE}", '"', "\n"):
        content = character * (limits.CONTENT_BYTES_MAX // len(character.encode()))
        letter = json.dumps({"type": "message", "content": content, "mentions": [new_id()] * limits.MENTIONS_MAX})
        assert len(letter) + 1024 < limits.CIPHERTEXT_BYTES_MAX
