"""What devices could not decrypt, as counts by reason: all that the server is told of it, and all that it keeps.

A report names no message, conversation or person, and nothing of it is logged or stored; whose device it came from is
known for as long as its budget is. It knows neither HTTP nor sockets.
"""

from typing import Final

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import DecryptionReport
from gearlink.journal import Metrics
from gearlink.throttle import Throttle

_HOUR_SECONDS: Final = 3600


class Reports:
    """Takes reports and counts them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        per_hour = limits.DECRYPTION_REPORTS_PER_HOUR
        self._budget = Throttle("reports", per_hour / _HOUR_SECONDS, per_hour)

    async def decryption(self, actor: Actor, report: DecryptionReport) -> None:
        """Adds these counts. Raises Refusal `rate-limited`, for the device."""
        self._budget.check(actor.device_id)
        for reason, count in report.counts.items():
            self._metrics.undecryptable.labels(reason).inc(count)
