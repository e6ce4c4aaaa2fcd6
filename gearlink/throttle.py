"""Token buckets: how often somebody may do something, whatever door they come through.

One `Throttle` is one rule; its buckets are made when they are first used and forgotten once they are full again, so an
attacker who changes keys costs a bounded number of small entries. Time is the run's monotonic clock, so a jumping wall
clock changes nothing. Nothing here waits: the caller refuses.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable

import trio

from gearlink.errors import RATE_LIMITED, Refusal

_KEYS_MAX = 100_000


class Throttle:
    """`burst` at once, then `rate` a second, for each key. A `rate` of 0 means no limit."""

    __slots__ = ("_buckets", "_now", "burst", "keys_max", "name", "rate")

    def __init__(
        self,
        name: str,
        rate: float,
        burst: float,
        *,
        keys_max: int = _KEYS_MAX,
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self.name, self.rate, self.burst, self.keys_max, self._now = name, rate, max(burst, 1.0), keys_max, now
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # key: (tokens, at), oldest use first

    def take(self, key: Hashable, cost: float = 1.0) -> float:
        """Takes `cost` tokens and returns 0.0, or takes nothing and returns the seconds until it would be allowed.

        A cost above the burst is allowed from a full bucket, and paid back before anything else is.
        """
        if not self.rate:
            return 0.0
        now = self._now()
        tokens = self._tokens(key, now)
        needed = min(cost, self.burst)
        if tokens < needed:
            return (needed - tokens) / self.rate
        self._buckets[key] = (tokens - cost, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self.keys_max:
            self._forget(now)
        return 0.0

    def check(self, key: Hashable, cost: float = 1.0) -> None:
        """Raises Refusal `rate-limited`, with when to come back, if `take` would not allow it."""
        if wait := self.take(key, cost):
            headers = {"RateLimit-Policy": self.policy(), "RateLimit": self.standing(key)}
            raise Refusal(RATE_LIMITED, retry_after_seconds=wait, headers=headers)

    def policy(self) -> str:
        """The `RateLimit-Policy` field (draft-ietf-httpapi-ratelimit-headers §3)."""
        window = max(1, math.ceil(self.burst / self.rate)) if self.rate else 1
        return f'"{self.name}";q={math.floor(self.burst)};w={window}'

    def standing(self, key: Hashable) -> str:
        """The `RateLimit` field (draft-ietf-httpapi-ratelimit-headers §4): what is left, and seconds until it is full.

        Where nothing is left, `t` is when the next one is allowed, as in Retry-After.
        """
        tokens = self._tokens(key, self._now()) if self.rate else self.burst
        goal = self.burst if tokens >= 1.0 else 1.0
        wait = math.ceil((goal - tokens) / self.rate) if self.rate else 0
        return f'"{self.name}";r={max(0, math.floor(tokens))};t={wait}'

    def _tokens(self, key: Hashable, now: float) -> float:
        tokens, at = self._buckets.get(key, (self.burst, now))
        return min(self.burst, tokens + (now - at) * self.rate)

    def _forget(self, now: float) -> None:
        """Drops the longest unused entries: full ones lose nothing, and a flood of keys loses the flood's oldest."""
        seconds_to_full = self.burst / self.rate
        while self._buckets:
            _key, (_tokens, at) = next(iter(self._buckets.items()))
            if now - at < seconds_to_full and len(self._buckets) <= self.keys_max:
                return
            self._buckets.popitem(last=False)
