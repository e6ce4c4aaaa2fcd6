"""Wall time and fresh ids, in the one module that may ask for them.

Wall time is for showing and for expiry, never for order: order is the sequence number that the store gives. Tests hand
the house another `Clock`, so that a virtual day passes in no time. It knows nothing of tokens, messages or storage.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

import uuid_utils

Milliseconds = int
DAY: Milliseconds = 86_400_000


class Clock:
    """Milliseconds since the Unix epoch, from `wall` (seconds; the system's clock unless a test brings its own)."""

    __slots__ = ("_wall",)

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall

    def now(self) -> Milliseconds:
        return int(self._wall() * 1000)


def new_id() -> str:
    """A fresh UUIDv7 (RFC 9562 §5.7) as lowercase text. Unique; its time part is never used for order."""
    return str(uuid_utils.uuid7())


_second = -1
_second_text = ""


def rfc3339(at: Milliseconds) -> str:
    """`at` as RFC 3339 UTC text with milliseconds, e.g. `2026-01-31T12:00:00.000Z`."""
    global _second, _second_text
    second, milliseconds = divmod(at, 1000)
    if second != _second:  # the costly part, and neighbours share their second
        _second, _second_text = second, datetime.fromtimestamp(second, UTC).isoformat()[:19]
    return f"{_second_text}.{milliseconds:03d}Z"
