"""The seam between the rules and the disk: what every store promises, whatever it is built on.

A change is an `async` function that is given a `Transaction` and awaits nothing else. Changes run one after another, so
each sees the whole effect of those before it and needs no locks: a username is taken once, an invite works once, a
sequence number is given once. What a change puts is written whole or not at all, and:

- *durable, then told*: `write` returns, and `done` is called, only when the change survives `kill -9` and a power cut;
- *in order*: listeners hear the notices of all changes in the order in which the changes ran;
- *a refusal leaves nothing*: a change that raises writes nothing and announces nothing;
- *a cancelled caller learns nothing*: its change may still happen; the idempotency key settles what did;
- *reads do not wait for the writer*, and of a log they never show an entry that could still be lost.

Log sequence numbers start at 1 and have no gaps. The seam knows nothing of users' rights, sockets or JSON.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from storage.events import Letter, LogEvent
from storage.notices import Notice
from storage.records import LogEntry, Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
KeyPart = str | int | bytes
Listener = Callable[[Sequence[Notice]], None]


class StoreError(Exception):
    """The store cannot do this. `line` is for the operator: what happened and what helps."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line


class StoreLocked(StoreError):
    """Another process uses this data."""


class StoreForeign(StoreError):
    """This data is not ours, or a newer program wrote it."""


class StoreDenied(StoreError):
    """The operating system does not let us at the data."""


class StoreFull(StoreError):
    """There is no room to write. Reading works; writing works again once there is room."""


class StoreBroken(StoreError):
    """A write failed on its way to the disk. This store takes no more writes; a restart recovers what was durable."""


class Outcome(Protocol[T_co]):
    """How a change ended. `unwrap` gives its value or raises what it raised."""

    def unwrap(self) -> T_co: ...


class Reads(Protocol):
    """What can be asked, of the store itself and inside a change."""

    async def get(self, kind: type[R], *key: KeyPart) -> R | None:
        """The record with this whole key, or None."""

    async def scan(
        self,
        kind: type[R],
        *prefix: KeyPart,
        after: KeyPart | None = None,
        before: KeyPart | None = None,
        limit: int,
        reverse: bool = False,
    ) -> list[R]:
        """At most `limit` records whose key starts with `prefix`, in key order.

        `after` and `before` bound the key part that follows the prefix, both exclusive. `reverse` starts at the end.
        """


class Transaction(Reads, Protocol):
    """Reads see what this change and all earlier ones put."""

    def put(self, record: Record) -> None: ...

    def delete(self, kind: type[Record], *key: KeyPart) -> None: ...

    async def append(
        self,
        conversation_id: str,
        event: LogEvent,
        subject: LogEntry | None = None,
        letters: tuple[Letter, ...] = (),
    ) -> int:
        """Puts `event` at the end of the conversation's log, announces it, and returns its sequence number.

        `subject` is the message that it is about, announced along with it: for an `AboutMessage` as it is from now on,
        and then written as well; for a message the one that it replies to. `letters` are written as `Envelope`s.
        """

    def announce(self, notice: Notice) -> None:
        """Tells every listener once this change is durable."""


class Store(Reads, Protocol):
    """The promises of this module, kept. Made by an implementation, which also runs its writer."""

    @property
    def epoch(self) -> str:
        """Another one after every restore: positions of different epochs cannot be compared."""

    async def write(self, change: Callable[[Transaction], Awaitable[T]]) -> T:
        """Runs `change` and returns its value once that is durable.

        Raises what `change` raised, `StoreFull` without room, `StoreBroken` after a failed write.
        """

    async def submit(self, change: Callable[[Transaction], Awaitable[T]], done: Callable[[Outcome[T]], None]) -> None:
        """Like `write`, but returns once the change is queued; `done` hears the outcome. Waits only for queue room."""

    async def sweep(self, kind: type[Record], now: int) -> int:
        """Deletes the records of `kind` whose `expires_at` is not after `now`, step by step; returns how many."""

    def listen(self, listener: Listener) -> None:
        """`listener` hears of every commit from now on, on the loop, without a checkpoint between commit and call."""
