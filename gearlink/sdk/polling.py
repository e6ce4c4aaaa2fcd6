"""Events for a program without a socket: the sync call, asked again and again from where its caller has come.

An answer's cursors are kept, and told to the server, once its last event was taken, so whatever was not comes again. They
are the same that a socket resumes from: a program may poll today and connect tomorrow. Unlike over a socket, the messages
of this device are among the events.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from config.limits import CURSORS_MAX
from gearlink import calls, protocol
from gearlink.sdk.failures import Unreachable
from gearlink.sdk.inbox import Event
from gearlink.sdk.state import State


class Caller(Protocol):
    """What is needed of a client."""

    state: State

    async def sync(
        self, epoch: str | None = None, cursors: Mapping[str, int] | None = None, *, wait_seconds: float = 0
    ) -> calls.SyncAnswer: ...


class Polled:
    """An endless async iterator of `gearlink.protocol` structs; it may be left, and asked again after it raised Refused
    or Unreachable. Where something cannot be replayed, a `SyncDone` names what to read again with `history`. A
    conversation that is new here begins with `ConversationCreated`."""

    __slots__ = ("_answer", "_caller", "_events", "_on_change", "_wait_seconds", "complete")

    def __init__(self, caller: Caller, on_change: Callable[[], None], wait_seconds: float) -> None:
        self._caller, self._on_change, self._wait_seconds = caller, on_change, wait_seconds
        self._events: deque[Event] = deque()
        self._answer: calls.SyncAnswer | None = None
        self.complete = False

    def __aiter__(self) -> "Polled":
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            self._events.extend(await self.page())
        return self._events.popleft()

    async def page(self) -> list[Event]:
        """What there is, up to a server's answer, perhaps nothing; what this gave before counts as taken. `complete` says
        whether that was all."""
        self.settle()
        state = self._caller.state
        cursors = dict(list(state.cursors.items())[-CURSORS_MAX:])
        answer = await self._caller.sync(state.epoch, cursors, wait_seconds=self._wait_seconds)
        events = self._events_of(answer)
        self._answer, self.complete = answer, answer.complete
        return events

    def _events_of(self, answer: calls.SyncAnswer) -> list[Event]:
        events: list[Event] = []
        known = self._caller.state.cursors
        for view in answer.conversations:
            if view.id not in known:
                events.append(protocol.ConversationCreated(conversation=view))
        for raw in answer.events:
            try:
                frame = protocol.decode_server(bytes(raw))
            except (msgspec.DecodeError, UnicodeError):
                raise Unreachable("the server told an event that cannot be read") from None
            if isinstance(frame, Event):
                events.append(frame)
        if isinstance(answer.reload, list):
            events.append(protocol.SyncDone(complete=False, reload=answer.reload))
        return events

    def settle(self) -> None:
        """The caller has all of the last answer. What moved goes to the end: if there are too many cursors for a call,
        those go that the server was told of before."""
        if self._answer is None:
            return
        answer, self._answer = self._answer, None
        state = self._caller.state
        kept = {key: at for key, at in state.cursors.items() if answer.cursors.get(key) == at}
        moved = {key: at for key, at in answer.cursors.items() if key not in kept}
        if (state.epoch, state.cursors) != (answer.epoch, answer.cursors):
            state.epoch, state.cursors = answer.epoch, {**kept, **moved}
            self._on_change()
