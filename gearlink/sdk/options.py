"""What a caller may choose about the SDK, and what tests replace: bounds, deadlines, clock, chance and network.

Every queue and every wait of the SDK has its number here. The defaults suit a person's device and a bot alike.
"""

import random
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    import httpx

OpenStream = Callable[[str, int], Awaitable[trio.abc.Stream]]
TEMP_ID_BYTES = 16


def new_temp_id() -> str:
    """A fresh name for a message: 128 random bits, so that no two messages of a device ever share one."""
    return secrets.token_urlsafe(TEMP_ID_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`ssl_context`: what to trust when the address is https (the system's authorities if None). `transport` and
    `open_stream` replace the network. `wall` gives seconds since the epoch, `chance` a number in [0, 1)."""

    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    transport: "httpx.AsyncBaseTransport | None" = field(default=None, repr=False)
    open_stream: OpenStream | None = field(default=None, repr=False)
    wall: Callable[[], float] = field(default=time.time, repr=False)
    chance: Callable[[], float] = field(default=random.random, repr=False)
    new_temp_id: Callable[[], str] = field(default=new_temp_id, repr=False)

    request_seconds_max: float = 30.0
    answer_bytes_max: int = 8 * 1024 * 1024
    connect_seconds_max: float = 15.0
    write_seconds_max: float = 30.0
    close_seconds_max: float = 2.0
    frame_bytes_max: int = 1024 * 1024

    backoff_first_seconds: float = 0.5
    backoff_seconds_max: float = 30.0
    retry_after_seconds_max: float = 300.0
    renew_before_seconds: float = 60.0

    sends_in_flight_max: int = 64
    events_buffered_max: int = 256
    held_events_max: int = 256
    gap_seconds_max: float = 2.0
    ack_every_seconds: float = 0.2
    ack_every_events: int = 50
    save_every_seconds: float = 1.0
    save_seconds_max: float = 5.0


class Backoff:
    """How long to wait before the next try: doubling, bounded, and with jitter so that a thousand clients of a server
    that came back do not arrive in one moment."""

    __slots__ = ("_options", "_tries")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._tries = 0

    def reset(self) -> None:
        self._tries = 0

    def next(self, retry_after_seconds: float | None = None) -> float:
        """Seconds to wait now. Never shorter than `retry_after_seconds`, which is itself bounded."""
        options = self._options
        ceiling = min(options.backoff_seconds_max, options.backoff_first_seconds * 2.0 ** min(self._tries, 16))
        self._tries += 1
        wait = ceiling * (0.5 + options.chance() / 2)
        if retry_after_seconds is None:
            return wait
        told = min(max(retry_after_seconds, 0.0), options.retry_after_seconds_max)
        return max(wait, told * (1 + options.chance() / 4))
