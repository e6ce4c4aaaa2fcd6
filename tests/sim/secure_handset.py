"""A device of the history: what stays of it, and one run of its program after the other.

A run may be killed at any moment, and at a chosen write of the vault: before it, so that nothing of it stays, or right after
it, so that nobody heard that it was written. Whatever the dying program still does reaches neither the vault nor the state nor
the network. What a run was told is kept for the end.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import trio

from gearlink import protocol
from gearlink.sdk import MemoryState, Options, Refused, State, Unreachable, open_client
from gearlink.sdk.connection import Connection
from gearlink.sdk.secure.client import SecureClient, open_secure
from gearlink.sdk.secure.told import NotLinked, OpenedMessage, Recovered, SecurityEvent, Suspicious
from tests.memory_vault import MemoryVault
from tests.sim.secure_net import ADDRESS, Network, Server

T = TypeVar("T")
When = Literal["before", "after"]


@dataclass(eq=False)
class Fuse:
    """The program dies at this write of the vault from now on, before or after it is durable."""

    writes: int
    when: When


@dataclass(eq=False)
class Run:
    """One run of the program, and what it was told."""

    network: Network
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    leaving: trio.Event = field(default_factory=trio.Event)
    secure: SecureClient | None = None
    nursery: trio.Nursery | None = None
    told: list[Any] = field(default_factory=list)
    alive: bool = True
    killed: bool = False

    @property
    def messages(self) -> list[OpenedMessage]:
        """The readable messages that it was told as new, in order."""
        told = [each.message for each in self.told if isinstance(each, protocol.MessageNew | Recovered)]
        return [each for each in told if isinstance(each, OpenedMessage) and each.content is not None]


class _State:
    """The state file of one run."""

    def __init__(self, state: MemoryState, run: Run) -> None:
        self._state, self._run = state, run
        self.load, self.exclusive = state.load, state.exclusive

    async def save(self, state: State) -> None:
        if self._run.alive:
            await self._state.save(state)
            self._run.network.renewing = False


class _Vault:
    """The vault as one run sees it."""

    def __init__(self, handset: "Handset", run: Run) -> None:
        self._handset, self._run = handset, run

    async def read(self, look: Callable[[Any], T]) -> T:
        await self._pause()
        return self._handset.vault.look(look)

    async def write(self, change: Callable[[Any], T]) -> T:
        await self._pause()
        if self._handset.burns("before"):
            await self._handset.die()
        answer = self._handset.vault.do(change)
        if self._handset.burns("after"):
            await self._handset.die()
        with trio.CancelScope(shield=True):  # like a thread that is waited for
            await trio.lowlevel.checkpoint()
        return answer

    async def _pause(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self._run.alive:
            await trio.sleep_forever()


class Handset:
    """One device. `removed_at` is where in the ledger it was when the device was removed."""

    def __init__(self, name: str, server: Server, chance: random.Random, wall: Callable[[], float]) -> None:
        self.name, self._server, self._chance, self._wall = name, server, chance, wall
        self.state, self.vault = MemoryState(), MemoryVault()
        self.user_id = self.device_id = ""
        self.runs: list[Run] = []
        self.fuse: Fuse | None = None
        self.is_removed = self.is_off = False
        self.trouble = 0.0
        self._temp_ids = 0

    def __repr__(self) -> str:
        return self.name

    # --- life --------------------------------------------------------------------------------------------------------

    @property
    def run(self) -> Run | None:
        """The run that goes on, if it is on."""
        return self.runs[-1] if self.runs and not self.runs[-1].ended.is_set() else None

    @property
    def secure(self) -> SecureClient | None:
        """The client to use, if the program is ready."""
        return self.run.secure if self.run is not None and self.run.alive else None

    def options(self, network: Network) -> Options:
        return Options(
            transport=network,
            open_stream=network.open_stream,
            wall=self._wall,
            chance=self._chance.random,
            new_temp_id=self.new_temp_id,
        )

    def new_temp_id(self) -> str:
        self._temp_ids += 1
        return f"{self.name}-{self._temp_ids}"

    async def sign_in(self, phone_number: str) -> None:
        network = Network(self._server, self._chance)
        async with open_client(ADDRESS, self.state, self.options(network)) as client:
            asked = await client.request_code(phone_number)
            while asked.verification_id not in self._server.codes:  # noqa: ASYNC110
                await trio.sleep(0.1)
            entered = await client.confirm(
                asked.verification_id, self._server.codes[asked.verification_id], self.name, "desktop"
            )
            self.user_id, self.device_id = entered.user.id, entered.device.id

    async def live(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One run of the program, until it is switched off or killed."""
        run = Run(Network(self._server, self._chance))
        run.network.trouble = self.trouble
        self.runs.append(run)
        task_status.started()
        try:
            with run.scope:
                while not run.leaving.is_set():
                    try:
                        await self._session(run)
                    except Unreachable:
                        await trio.sleep(1.0)
                    except Refused as refused:
                        if not refused.retryable:
                            raise
                        await trio.sleep(1.0)
        finally:
            run.alive = run.network.alive = False
            run.secure = None
            run.network.drop()
            run.ended.set()

    async def _session(self, run: Run) -> None:
        store, vault = _State(self.state, run), _Vault(self, run)
        async with (
            open_client(ADDRESS, store, self.options(run.network)) as client,
            open_secure(client, vault) as secure,
            client.connect(),
            trio.open_nursery() as nursery,
        ):
            run.secure, run.nursery = secure, nursery
            nursery.start_soon(self._listen, run, secure)
            try:
                await run.leaving.wait()
            finally:
                run.secure = None
            nursery.cancel_scope.cancel()

    async def _listen(self, run: Run, secure: SecureClient) -> None:
        async for event in secure.events():
            run.told.append(event)

    async def die(self) -> None:
        """The program that calls this is killed in this moment."""
        self.kill()
        await trio.sleep_forever()

    def kill(self) -> None:
        """Ends the program at once: nothing that it does from here on leaves it. Not while it renews its tokens."""
        run = self.run
        if run is None or run.network.renewing:
            return
        run.alive, run.killed, self.fuse = False, True, None
        run.network.alive = False
        run.network.drop()
        run.scope.cancel()

    def burns(self, when: When) -> bool:
        """Whether the program dies at this write."""
        fuse = self.fuse
        if fuse is None or fuse.when != when:
            return False
        fuse.writes -= 1
        return fuse.writes <= 0 and self.run is not None and not self.run.network.renewing

    # --- what it noticed ---------------------------------------------------------------------------------------------

    @property
    def told(self) -> list[Any]:
        return [each for run in self.runs for each in run.told]

    @property
    def noticed(self) -> list[SecurityEvent]:
        return [each for each in self.told if isinstance(each, SecurityEvent)]

    @property
    def suspicions(self) -> list[Suspicious]:
        return [each for each in self.noticed if isinstance(each, Suspicious)]

    @property
    def code(self) -> str | None:
        """The code that it shows, if it waits to be linked."""
        return next((each.code for each in reversed(self.noticed) if isinstance(each, NotLinked)), None)


def unruly(chance: random.Random, share: Callable[[], float]) -> Callable[[Connection], Any]:
    """A `Connection.hear` for which some frames get lost or come twice: the numbers of the log make up for that, from the
    first one on that this socket has brought of a conversation."""
    hear = Connection.hear

    async def heard(connection: Connection) -> Any:
        again = connection.__dict__.pop("again", None)
        if again is not None:
            await trio.lowlevel.checkpoint()
            return again
        begun = connection.__dict__.setdefault("begun", set())
        while True:
            frame = await hear(connection)
            if not isinstance(frame, protocol.MessageNew):
                return frame
            if frame.message.conversation_id in begun and chance.random() < share():
                if chance.random() < 0.5:
                    continue
                connection.__dict__["again"] = frame
            begun.add(frame.message.conversation_id)
            return frame

    return heard
