"""Encrypted content as it comes in: what its form may be, and what is stored of it.

Nothing in here can be read, so all that is asked is that bodies are bytes, that a device is named once, and that what
programs say silently to one another carries nothing that belongs to a message of the history. Which devices it has to be
for is settled elsewhere. It is pure.
"""

import binascii
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from typing import Final, get_args

from gearlink.calls import MessageForm
from gearlink.errors import invalid
from gearlink.prekeys import encoded
from gearlink.protocol import DoubleRatchetForm, Send
from gearlink.views import SilentKind
from storage.events import Letter, Sealed

SILENT: Final = frozenset(get_args(SilentKind))
"""The kinds that are no items of the history."""

_IN_THE_CLEAR: Final = (
    ("reply_to_id", "replyToId"), ("mentions", "mentions"), ("media_ids", "mediaIds"),
    ("forwarded_from_id", "forwardedFromId"), ("expires_in_seconds", "expiresInSeconds"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sealing:
    """`letters` are what goes into the envelopes, one a device; or else there is one body in `content`.

    `devices_digest` is that of the devices which have the sender key, as far as the sender knows; "" if it does not say.
    """

    content: Sealed
    letters: tuple[Letter, ...] = ()
    devices_digest: str = ""


def size_bytes(form: Send | MessageForm) -> int:
    """What the ciphertext of the form counts for in a budget of bytes."""
    encrypted = form.encrypted
    if encrypted is None:
        return 0
    if isinstance(encrypted, DoubleRatchetForm):
        return sum(_size(each.body) for each in encrypted.envelopes)
    return _size(encrypted.body)


def check(form: Send | MessageForm) -> None:
    """Raises Refusal `invalid-request` for a form that is neither plain nor encrypted, or both, or that is encrypted and
    has what cannot be there then."""
    if form.encrypted is None:
        if form.kind in SILENT:
            raise invalid("encrypted", "required for this kind")
        if form.content is None:
            raise invalid("content", "required, or `encrypted` in its place")
        return
    if form.content is not None:
        raise invalid("content", "none beside `encrypted`")
    if form.poll is not None or form.kind == "poll":
        raise invalid("poll", "no poll is encrypted: the server has to count the votes")
    if form.kind == "key-distribution" and not isinstance(form.encrypted, DoubleRatchetForm):
        raise invalid("encrypted.scheme", "of this kind it is double-ratchet")
    if form.kind in SILENT:
        for name, path in _IN_THE_CLEAR:
            if getattr(form, name):
                raise invalid(path, "a message of this kind has none")


def sealed(form: Send | MessageForm) -> Sealing | None:
    """What is stored of the form; None if it is not encrypted.

    Raises Refusal `invalid-request` for a body that is no canonical base64url, or a device that is there twice.
    """
    encrypted = form.encrypted
    if encrypted is None:
        return None
    if not isinstance(encrypted, DoubleRatchetForm):
        body = _decoded(encrypted.body, "encrypted.body")
        return Sealing(Sealed("sender-key", body, encrypted.key_id), devices_digest=encrypted.devices_digest or "")
    letters: dict[str, Letter] = {}
    for position, each in enumerate(encrypted.envelopes):
        path = f"encrypted.envelopes[{position}]"
        if each.device_id in letters:
            raise invalid(f"{path}.deviceId", "each device once")
        body = _decoded(each.body, f"{path}.body")
        letters[each.device_id] = Letter(each.user_id, each.device_id, each.type, body)
    return Sealing(Sealed("double-ratchet", b"", devices=tuple(letters)), tuple(letters.values()))


def _size(text: str) -> int:
    return len(text) * 3 // 4


def _decoded(text: str, path: str) -> bytes:
    """The bytes of canonical base64url without padding (RFC 4648 §5, §3.5)."""
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raw = b""
    if encoded(raw) != text:
        raise invalid(path, "not canonical base64url without padding")
    return raw
