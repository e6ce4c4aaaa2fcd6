"""Letters: the JSON object that is encrypted, with the padding around it."""

import json
from typing import Any

from tests.second.primitives import Unreadable

BLOCK = 160

Letter = dict[str, Any]


def pad(text: bytes) -> bytes:
    """ISO/IEC 7816-4 to the next multiple of 160; there is always at least the byte 0x80."""
    marked = text + b"\x80"
    return marked + bytes(-len(marked) % BLOCK)


def unpad(padded: bytes) -> bytes:
    """What stands before the last 0x80, if it is padded as `pad` does it. Raises Unreadable."""
    text = padded.rstrip(b"\x00")[:-1]
    if pad(text) != padded:
        raise Unreadable("unreadable-letter")
    return text


def write(letter: Letter) -> bytes:
    """The plaintext for a ratchet or a sender key."""
    return pad(json.dumps(letter, ensure_ascii=False, separators=(",", ":")).encode())


def read(padded: bytes, conversation_id: str) -> Letter:
    """The letter that came in this conversation. Raises Unreadable."""
    try:
        letter = json.loads(unpad(padded).decode("utf-8"))
    except (ValueError, RecursionError):
        raise Unreadable("unreadable-letter") from None
    if not isinstance(letter, dict) or not isinstance(letter.get("type"), str):
        raise Unreadable("unreadable-letter")
    if letter.get("conversationId") != conversation_id:
        raise Unreadable("misdirected")
    return letter
