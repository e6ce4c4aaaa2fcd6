"""Between the store and those who tell people: "this happened", to everyone in this process who listens.

The store announces each commit here, in order, when it is durable; typing comes straight from a socket and is never
stored. Listeners are plain functions that do not wait. A cluster puts another broker in this place, which also tells the
other nodes; pub/sub may lose, so what matters is in the log and found again by its sequence number.
"""

from collections.abc import Callable, Sequence

import msgspec

from storage.notices import Notice


class Typing(msgspec.Struct, frozen=True, tag=True):
    conversation_id: str
    user_id: str
    active: bool


Signal = Notice | Typing
Listener = Callable[[Sequence[Signal]], None]


class Broker:
    """In process. `publish` tells each subscriber in the order of subscription, before it returns."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def publish(self, signals: Sequence[Signal]) -> None:
        for listener in self._listeners:
            listener(signals)
