"""Which request heads are WebSocket upgrades, and which of those are refused (RFC 6455 §4.2.1).

It is stricter than the library behind it, which answers some bad upgrades by raising. Everything that is not exactly an
upgrade of our path is left to HTTP. It does no I/O and knows nothing of streams or frames.
"""

from base64 import b64decode
from collections.abc import Iterable

import h11

from gearlink.errors import BAD_REQUEST, UPGRADE_REQUIRED, Refusal
from gearlink.streams import BLANK_LINE


def _tokens(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    values = b",".join(value for key, value in headers if key == name).decode("latin-1")
    return [token.strip() for token in values.split(",") if token.strip()]


def read_upgrade(head: bytes, path: str) -> h11.Request | None:
    """The request in `head` if it is a WebSocket upgrade of `path`, good or bad; anything else is HTTP's business."""
    if b"websocket" not in head.lower():
        return None
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head))
    try:
        reader.receive_data(head)
        request = reader.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(request, h11.Request) or request.method != b"GET" or request.http_version != b"1.1":
        return None
    upgrades = (
        request.target.partition(b"?")[0] == path.encode()
        and "websocket" in (token.lower() for token in _tokens(request.headers, b"upgrade"))
        and "upgrade" in (token.lower() for token in _tokens(request.headers, b"connection"))
    )
    return request if upgrades else None


def upgrade_trouble(request: h11.Request, head: bytes, subprotocol: str) -> Refusal | None:
    """Why this upgrade is refused. What passes, trio-websocket accepts.

    `head` is what `request` was read from, with all that came with it.
    """
    headers = list(request.headers)
    if _tokens(headers, b"sec-websocket-version") != ["13"]:  # RFC 6455 §4.4
        known = {"Sec-WebSocket-Version": "13", "Upgrade": "websocket", "Connection": "Upgrade"}
        return Refusal(UPGRADE_REQUIRED, "This server speaks version 13 of WebSocket", headers=known)
    keys = [value for name, value in headers if name == b"sec-websocket-key"]
    try:
        key_bytes = [len(b64decode(key, validate=True)) for key in keys]
        next(value for name, value in headers if name == b"host").decode("ascii").encode("ascii").decode("idna")
    except ValueError:  # binascii.Error and UnicodeError are kinds of it
        key_bytes = []
    if key_bytes != [16]:
        return Refusal(BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64, and Host a name")
    relevant = (b"connection", b"upgrade", b"sec-websocket-")
    if not all(value.isascii() for name, value in headers if name.startswith(relevant)):
        return Refusal(BAD_REQUEST, "The headers of an upgrade are ASCII")
    if any(name in (b"content-length", b"transfer-encoding") for name, _ in headers):
        return Refusal(BAD_REQUEST, "An upgrade has no body")
    offered = _tokens(headers, b"sec-websocket-protocol")
    if offered and subprotocol not in offered:
        return Refusal(BAD_REQUEST, f"This server speaks the subprotocol {subprotocol}")
    end = BLANK_LINE.search(head)
    if end is None or end.end() != len(head):
        # RFC 6455 §4.1: the client waits; wsproto would lose them.
        return Refusal(BAD_REQUEST, "Frames come after the answer")
    return None
