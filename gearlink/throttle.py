"""Token buckets: how often somebody may do something, whatever door they come through.

One `Throttle` is one rule; its buckets are made when they are first used and forgotten once they are full again, so an
attacker who changes keys costs a bounded number of small entries. A `Budget` is the rules for everything that is sent
into conversations, taken together. Time is the run's monotonic clock, so a jumping wall clock changes nothing. Nothing
here waits: the caller refuses.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Protocol

import trio

from config import limits, settings
from gearlink.errors import RATE_LIMITED, Refusal

_KEYS_MAX = 100_000
_BURST_SECONDS: Final = 2.0  # what the budgets without a burst of their own allow at once


class Throttle:
    """`burst` at once, then `rate` a second, for each key. A `rate` of 0 means no limit. `unit` is of what, if not calls.

    `unit` is a quota unit as in `RateLimit-Policy`.
    """

    __slots__ = ("_buckets", "_now", "burst", "keys_max", "name", "rate", "unit")

    def __init__(
        self,
        name: str,
        rate: float,
        burst: float,
        *,
        unit: str = "",
        keys_max: int = _KEYS_MAX,
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self.name, self.unit, self.keys_max, self._now = name, unit, keys_max, now
        self.rate, self.burst = rate, max(burst, 1.0)
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # key: (tokens, at), oldest use first

    def wait(self, key: Hashable, cost: float = 1.0) -> float:
        """The seconds until `take` would allow it; 0.0 if it would now. Takes nothing."""
        if not self.rate:
            return 0.0
        needed, tokens = min(cost, self.burst), self._tokens(key, self._now())
        return (needed - tokens) / self.rate if tokens < needed else 0.0

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
            raise self.refusal(key, wait)

    def refusal(self, key: Hashable, wait: float) -> Refusal:
        """`rate-limited`, for somebody who has to wait so many seconds."""
        headers = {"RateLimit-Policy": self.policy(), "RateLimit": self.standing(key)}
        return Refusal(RATE_LIMITED, retry_after_seconds=wait, headers=headers)

    def policy(self) -> str:
        """The `RateLimit-Policy` field (draft-ietf-httpapi-ratelimit-headers §3)."""
        window = max(1, math.ceil(self.burst / self.rate)) if self.rate else 1
        unit = f';qu="{self.unit}"' if self.unit else ""
        return f'"{self.name}";q={math.floor(self.burst)}{unit};w={window}'

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


class Sender(Protocol):
    """Whom a `Budget` counts. An empty `address` (what the server sends on somebody's behalf) is counted nowhere."""

    @property
    def user_id(self) -> str: ...

    @property
    def device_id(self) -> str: ...

    @property
    def address(self) -> str: ...


class Budget:
    """What one user, one device and one address may send into conversations: so many and so many bytes a second."""

    def __init__(self, chosen: settings.Limits, *, now: Callable[[], float] = trio.current_time) -> None:
        def pair(name: str) -> tuple[Throttle, Throttle]:
            counted = Throttle(f"{name}messages", 0, 1, now=now)
            return counted, Throttle(f"{name}message-bytes", 0, 1, unit="content-bytes", now=now)

        self._user, self._device, self._address = pair(""), pair("device-"), pair("address-")
        self._changes = Throttle("changes", limits.CHANGES_PER_SECOND, limits.CHANGES_BURST, now=now)
        self._people = Throttle(
            "people-added", limits.PEOPLE_ADDED_PER_SECOND, limits.PEOPLE_ADDED_BURST, unit="people", now=now
        )
        self.reload(chosen)

    def reload(self, chosen: settings.Limits) -> None:
        """Takes over the rates. Who was over a limit still is."""
        per_second, burst = chosen.messages_per_second, chosen.messages_burst
        self._is_on = bool(per_second and burst)
        self._user[0].rate, self._user[0].burst = per_second, max(float(burst), per_second, 1.0)
        for throttle, rate in (
            (self._user[1], chosen.message_kib_per_second * 1024),
            (self._device[0], chosen.device_messages_per_second),
            (self._device[1], chosen.device_message_kib_per_second * 1024),
            (self._address[0], chosen.address_messages_per_second),
            (self._address[1], chosen.address_message_kib_per_second * 1024),
        ):
            throttle.rate, throttle.burst = float(rate), max(rate * _BURST_SECONDS, 1.0)

    def check(self, sender: Sender, size_bytes: int) -> None:
        """Takes one message of so many bytes from every budget of the sender, or from none.

        Raises Refusal `rate-limited`, which tells of the budget that needs longest.
        """
        if not self._is_on:
            return
        bills = (
            (self._user, sender.user_id), (self._device, sender.device_id), (self._address, sender.address)
        )  # fmt: skip
        costs = [
            (throttle, key, cost)
            for throttles, key in bills
            if key
            for throttle, cost in zip(throttles, (1, size_bytes), strict=True)
            if throttle.rate
        ]
        wait, slowest, whose = max(
            ((throttle.wait(key, cost), throttle, key) for throttle, key, cost in costs), key=lambda found: found[0]
        )
        if wait:
            raise slowest.refusal(whose, wait)
        for throttle, key, cost in costs:
            throttle.take(key, cost)

    def check_change(self, sender: Sender, *, people: int = 0) -> None:
        """Takes one change to a conversation, and the `people` that it lets in. Off where the messages' budgets are.

        Raises Refusal `rate-limited`.
        """
        if not self._is_on:
            return
        if people and (wait := self._people.wait(sender.user_id, people)):
            raise self._people.refusal(sender.user_id, wait)
        self._changes.check(sender.user_id)
        if people:
            self._people.take(sender.user_id, people)
