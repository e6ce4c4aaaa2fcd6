"""What the content of a message may be, by its kind: a text, a caption, a place, a contact card, a poll.

The wire forms have bounded every field before; here is what they cannot say. Content that is JSON is checked and stored
as it was written, so a client's own keys survive; what no JSON reader in a browser could take is refused. It is pure: who
may send, and to whom, is settled elsewhere. No refusal repeats what somebody wrote.
"""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from config import limits
from gearlink import sealing
from gearlink.calls import MessageForm
from gearlink.errors import invalid
from gearlink.protocol import PollForm, Send

EDITABLE: Final = frozenset({"text", "image", "video", "audio", "voice", "file"})
"""The kinds whose content is prose: a text or a caption."""

_read_json: Final = msgspec.json.Decoder(dict[str, Any]).decode


class _Location(msgspec.Struct):
    latitude: Annotated[float, Meta(ge=-90, le=90)]
    longitude: Annotated[float, Meta(ge=-180, le=180)]


def size_bytes(form: Send | MessageForm) -> int:
    """What the message counts for in a budget of bytes: its content and the options of its poll, in UTF-8; or its
    ciphertext."""
    if form.content is None:
        return sealing.size_bytes(form)
    size = len(form.content.encode())
    return size if form.poll is None else size + sum(len(option.encode()) for option in form.poll.options)


def check(form: Send | MessageForm, size: int) -> None:
    """Raises Refusal `invalid-request` for content that a message of this kind cannot have; `size` is `size_bytes`."""
    if form.content is None or form.encrypted is not None or form.kind in sealing.SILENT:
        sealing.check(form)
        _check_media(form.media_ids or ())
        return
    if size > limits.CONTENT_BYTES_MAX:
        check_size(form.content)
    if form.kind == "text" and form.poll is None and not form.media_ids:
        return
    if form.kind == "location":
        _check_location(form.content)
    elif form.kind == "contact":
        _check_contact(form.content)
    _check_poll(form.kind, form.poll)
    _check_media(form.media_ids or ())


def check_size(content: str) -> None:
    """Raises Refusal `invalid-request` for a content with too many bytes: the form counted characters."""
    if len(content.encode()) > limits.CONTENT_BYTES_MAX:
        raise invalid("content", f"at most {limits.CONTENT_BYTES_MAX} bytes in UTF-8")


def _check_location(content: str) -> None:
    found = _json_object(content)
    try:
        msgspec.convert(found, _Location)
    except msgspec.ValidationError:
        raise invalid(
            "content",
            "a location is a JSON object with the numbers `latitude` (-90 to 90) and `longitude` (-180 to 180)",
        ) from None


def _check_contact(content: str) -> None:
    found = _json_object(content)
    names = (found.get("displayName"), found.get("name"))
    if not any(isinstance(name, str) and name.strip() for name in names):
        raise invalid("content", "a contact is a JSON object with a text `displayName` or `name`")


def _json_object(content: str) -> dict[str, Any]:
    """RFC 8259 as it stands, without NaN and Infinity, and not nested deeply."""
    try:
        found = _read_json(content)
    except (msgspec.MsgspecError, RecursionError):
        raise invalid("content", "of this kind it is a JSON object") from None
    layer: list[Any] = [found]
    for _depth in range(limits.CONTENT_DEPTH_MAX):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not layer:
            return found
    raise invalid("content", f"JSON nested at most {limits.CONTENT_DEPTH_MAX} levels deep")


def _check_poll(kind: str, poll: PollForm | None) -> None:
    if (poll is not None) != (kind == "poll"):
        raise invalid("poll", "required for this kind" if poll is None else "only a message of kind `poll` has one")
    if poll is None:
        return
    texts = [option.strip() for option in poll.options]
    if not all(texts):
        raise invalid("poll.options", "an option has a text")
    if len(set(texts)) != len(texts):
        raise invalid("poll.options", "each option is there once")


def _check_media(media_ids: list[str] | tuple[()]) -> None:
    """No message has attachments before there is anything to attach."""
    if media_ids:
        raise invalid("mediaIds", "there is no such media, or it is not yours")
