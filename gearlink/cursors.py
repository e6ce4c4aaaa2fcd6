"""The opaque cursors of lists: the place where the next page begins, as text that only we make and read.

A cursor holds parts of keys and no secret: whoever forges one sees no more than the list itself would show them.
"""

import base64
import binascii

from config import limits
from gearlink.errors import Refusal, invalid


def encode_cursor(*parts: str) -> str:
    return base64.urlsafe_b64encode("\0".join(parts).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, parts: int) -> list[str]:
    """Raises Refusal `invalid-request` for a cursor that we did not make."""
    try:
        if len(cursor) > limits.CURSOR_CHARS_MAX:
            raise ValueError
        found = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().split("\0")
        if len(found) != parts:
            raise ValueError
    except (ValueError, binascii.Error):
        raise foreign_cursor() from None
    return found


def decode_sequence(cursor: str) -> int:
    """The one number of a cursor. Raises Refusal `invalid-request` for a cursor that we did not make."""
    [text] = decode_cursor(cursor, 1)
    if not (text.isascii() and text.isdecimal()) or int(text) > limits.SEQUENCE_MAX:
        raise foreign_cursor()
    return int(text)


def foreign_cursor() -> Refusal:
    """For a cursor that the list which is asked for never gave."""
    return invalid("cursor", "not a cursor of this list")
