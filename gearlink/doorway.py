"""What a live session needs of the house, handed to each of them as one thing."""

from dataclasses import dataclass

from config import limits
from gearlink.broker import Broker
from gearlink.clock import Clock
from gearlink.domain import Domain
from gearlink.hub import Hub
from gearlink.journal import Metrics
from gearlink.pressure import Pressure
from storage.store import Store


@dataclass(slots=True)
class Doorway:
    """The parts of the house that sessions call, and two limits."""

    store: Store
    domain: Domain
    hub: Hub
    broker: Broker
    pressure: Pressure
    clock: Clock
    metrics: Metrics
    outbox_bytes_max: int
    auth_seconds: float = limits.AUTH_SECONDS_MAX
