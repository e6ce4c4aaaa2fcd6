"""Pressure: how loaded the server is, and what it leaves undone so that the rest goes on.

Two things say that there is too much to do: the loop comes late to what is due, and changes pile up before the writer. The
worse of the two makes the level. From each level on one more kind of work is shed, always in the order of `Load`: what
people miss least goes first, messages go last. The level rises at once and falls one step for each calm second. What
shedding means is up to whoever asks: this module knows no frames, no calls and no store.
"""

import random
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from statistics import median

import trio

from config import limits
from gearlink.errors import OVERLOADED, Refusal
from gearlink.journal import Metrics, logger

_log = logger("pressure")
_LAGS_KEPT = 3  # their median counts: one hiccup of the machine, or a laptop that slept, is no load


class Load(IntEnum):
    """What can be shed, each from the level of its number on."""

    TYPING = 1
    PRESENCE = 2
    RECEIPTS = 3
    SIGN_UPS = 4
    MESSAGES = 5

    @property
    def label(self) -> str:
        """Its name in metrics."""
        return self.name.lower().replace("_", "-")


assert len(Load) == len(limits.PRESSURE_LAG_MS)


class Pressure:
    """`level` is 0 when nothing is shed. `backlog` tells how many changes wait for the writer. `run` measures."""

    def __init__(
        self, metrics: Metrics, backlog: Callable[[], int], *, now: Callable[[], float] = trio.current_time
    ) -> None:
        self.level = 0
        self._backlog, self._now = backlog, now
        self._lags: deque[float] = deque([0.0] * _LAGS_KEPT, maxlen=_LAGS_KEPT)
        self._calm_since: float | None = None
        self._gauge = metrics.load_level
        self._shed = {load: metrics.load_shed.labels(load.label).inc for load in Load}

    def sheds(self, load: Load) -> bool:
        """Whether this kind of work is to be left undone now. Whoever does so says it with `shed`."""
        return self.level >= load

    def shed(self, load: Load) -> None:
        """Counts one that was left undone."""
        self._shed[load]()

    def check(self, load: Load) -> None:
        """Raises Refusal `overloaded`, with when to come back, and counts it, if this kind of work is shed now."""
        if self.sheds(load):
            self.shed(load)
            # Not all at the same moment, or the next second is as bad.
            wait = limits.SHED_RETRY_SECONDS * random.uniform(1, 2)
            raise Refusal(OVERLOADED, retry_after_seconds=wait)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Measures until it is cancelled: how much later than asked for a sleeper is woken is how late the loop is."""
        task_status.started()
        while True:
            due = trio.current_time() + limits.PRESSURE_PROBE_SECONDS
            await trio.sleep_until(due)
            self.feel(trio.current_time() - due, self._backlog())

    def feel(self, lag_seconds: float, backlog: int) -> None:
        """Takes one measurement over into `level`."""
        self._lags.append(lag_seconds)
        felt = _level(median(self._lags), backlog)
        if felt >= self.level:
            self._calm_since = None
            if felt > self.level:
                self._go_to(felt, backlog)
        elif self._calm_since is None:
            self._calm_since = self._now()
        elif self._now() - self._calm_since >= limits.PRESSURE_CALM_SECONDS:
            self._calm_since = self._now()
            self._go_to(self.level - 1, backlog)

    def _go_to(self, level: int, backlog: int) -> None:
        self.level = level
        self._gauge.set(level)
        _log.warning("pressure.level", load_level=level, lag_ms=round(median(self._lags) * 1000), backlog=backlog)


def _level(lag_seconds: float, backlog: int) -> int:
    """The number of thresholds that have been reached."""
    by_lag = sum(lag_seconds * 1000 >= threshold for threshold in limits.PRESSURE_LAG_MS)
    by_backlog = sum(backlog >= share * limits.WRITE_QUEUE_MAX for share in limits.PRESSURE_BACKLOG_SHARES)
    return max(by_lag, by_backlog)
