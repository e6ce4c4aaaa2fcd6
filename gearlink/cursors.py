"""Pages of lists and their opaque cursors: the place where the next page begins, as text that only we make and read.

A cursor holds parts of keys and no secret: whoever forges one sees no more than the list itself would show them.
"""

import base64
import binascii
from collections.abc import Callable
from typing import TypeVar

from config import limits
from gearlink.errors import Refusal, invalid
from storage.records import Record
from storage.store import KeyPart, Reads

R = TypeVar("R", bound=Record)


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


async def page_of(
    reads: Reads, kind: type[R], *prefix: KeyPart, cursor: str | None, limit: int, key: Callable[[R], str]
) -> tuple[list[R], str | None]:
    """At most `limit` records below `prefix`, in key order from where `cursor` points; and the next cursor, if any.

    `key` is the part of a record's key that follows the prefix. Raises Refusal `invalid-request` for a foreign cursor.
    """
    after = decode_cursor(cursor, 1)[0] if cursor is not None else None
    try:
        found = await reads.scan(kind, *prefix, after=after, limit=limit + 1)
    except ValueError:  # no key part of this kind
        raise foreign_cursor() from None
    page = found[:limit]
    return page, encode_cursor(key(page[-1])) if len(found) > limit else None
