"""The client side of GearLink as a library for trio: see `docs/sdk.md`, and `open_client` for a start.

It re-exports what a caller needs; events and answers are the structs of `gearlink.protocol`,
`gearlink.calls` and `gearlink.views`.
"""

from gearlink.sdk.client import Client, Events, open_client
from gearlink.sdk.failures import Refused, Unreachable
from gearlink.sdk.inbox import Event
from gearlink.sdk.options import Options
from gearlink.sdk.outbox import Sent
from gearlink.sdk.polling import Polled
from gearlink.sdk.state import FileState, MemoryState, State, StateStore

__all__ = [
    "Client",
    "Event",
    "Events",
    "FileState",
    "MemoryState",
    "Options",
    "Polled",
    "Refused",
    "Sent",
    "State",
    "StateStore",
    "Unreachable",
    "open_client",
]
