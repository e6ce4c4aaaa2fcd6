"""The real server on a store in memory, and a network in memory that loses what a test wants lost.

A request is served by a task of the server, so it goes on when its caller has died; its answer may get lost. A socket may
break with all that was under way in both directions. The server may end without a word and begin again on what was written,
or on an older copy of it. `Ledger` notes of each message whom the server took it for at the moment when it was written.
"""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import trio
from trio_websocket import ConnectionClosed

from config.load import load
from gearlink import app, ws_session
from gearlink.clock import Clock, new_id
from gearlink.device_lists import counting
from gearlink.doorway import Doorway
from gearlink.frames import accept_websocket
from gearlink.http_api.pipeline import Pipeline
from gearlink.http_api.routes import ROUTES
from gearlink.journal import Metrics
from gearlink.peers import PEER_EXTENSION, Peer
from gearlink.protocol import SUBPROTOCOL
from gearlink.sms import Code
from gearlink.streams import GuestStream
from gearlink.sync import Sync
from storage.events import Letter, MemberLeft, Said, Sealed
from storage.keys import TABLES
from storage.notices import Appended
from storage.records import Device, LogEntry, Member, RefreshToken
from storage.transaction import drive
from tests.fakes import FakeStore, FakeTransaction
from tests.house import NO_LIMITS
from tests.streams import Link, link_pair

ADDRESS = "http://chat.test"
REFRESH = "/auth/refresh"
Place = tuple[str, str]


@dataclass(frozen=True)
class Written:
    """A message as it was when the server wrote it. `places` are the (user, device) that it had to be for, without the
    sender's own; `letters` the envelopes."""

    epoch: str
    entry: LogEntry
    places: frozenset[Place]
    members: frozenset[str]
    letters: tuple[Letter, ...]

    @property
    def message(self) -> Said:
        assert isinstance(self.entry.event, Said)
        return self.entry.event

    @property
    def sealed(self) -> Sealed:
        assert isinstance(self.message.content, Sealed)
        return self.message.content


class Ledger:
    """All messages that any store of this history ever took, in the order in which it did; and who left, as (user,
    conversation, how many were written before)."""

    def __init__(self) -> None:
        self.written: list[Written] = []
        self.left: list[tuple[str, str, int]] = []

    def note(self, epoch: str, tx: FakeTransaction) -> None:
        for notice in tx.notices:
            if not isinstance(notice, Appended):
                continue
            entry = notice.entry
            if isinstance(entry.event, Said):
                self.written.append(drive(_written(epoch, tx, entry, notice.letters)))
            elif isinstance(entry.event, MemberLeft):
                self.left.append((entry.event.user_id, entry.conversation_id, len(self.written)))


async def _written(epoch: str, tx: FakeTransaction, entry: LogEntry, letters: tuple[Letter, ...]) -> Written:
    message = entry.event
    assert isinstance(message, Said)
    members = [each.user_id for each in await tx.scan(Member, entry.conversation_id, limit=1000)]
    devices = [device for user_id in members for device in (await counting(tx, user_id)).devices]
    places = frozenset(each.place for each in devices) - {(message.actor_id, message.device_id)}
    return Written(epoch, entry, places, frozenset(members), letters)


class Store(FakeStore):
    """A store whose messages are noted. `backlog` and `failed` are what the house asks of a store on disk."""

    backlog = 0.0

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.failed = trio.Event()

    def _run(self, change: Callable[[Any], Any], tx: FakeTransaction) -> Any:
        value = super()._run(change, tx)
        self.ledger.note(self.epoch, tx)
        return value

    def copy(self, epoch: str) -> "Store":
        """The same data in a store that nobody listens to."""
        other = Store(self.ledger)
        other.epoch = epoch
        other._rows = {kind: dict(rows) for kind, rows in self._rows.items()}
        return other

    def restored(self, newer: "Store") -> "Store":
        """What was kept, as another epoch. Who is signed in stays so, to tell apart what a restore does to keys from what
        it does to sessions: tokens are those of now."""
        other = self.copy(new_id())
        there = {each.device_id for each in self.all(Device)}
        table = TABLES[RefreshToken]
        tokens = [each for each in newer.all(RefreshToken) if each.device_id in there]
        other._rows[RefreshToken] = {table.key_of(each): msgspec.msgpack.encode(each) for each in tokens}
        return other


class Server:
    """`up` is whether it runs. It is never ended while somebody renews a token: who loses that answer is signed out."""

    def __init__(self, nursery: trio.Nursery, chance: random.Random, wall: Callable[[], float]) -> None:
        self._nursery, self._chance = nursery, chance
        self.clock = Clock(wall)
        self.ledger = Ledger()
        self.store = Store(self.ledger)
        self.kept: Store | None = None
        self.up = False
        self.codes: dict[str, str] = {}
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._tasks: trio.Nursery
        self._settings = load(
            None,
            {},
            {
                **NO_LIMITS,
                "storage.data": "nowhere",
                "server.listen": "127.0.0.1:0",
                "auth.refresh_token_days": "365",
                "auth.access_token_minutes": "1440",
                "websocket.heartbeat_seconds": "600",
            },
        )

    async def start(self) -> None:
        await self._nursery.start(self._live)

    async def crash(self) -> None:
        """Ends at once. What was not written is lost."""
        self.up = False
        self._scope.cancel()
        await self._ended.wait()
        self.store = self.store.copy(self.store.epoch)

    def keep(self) -> None:
        """Makes a backup."""
        self.kept = self.store.copy(self.store.epoch)

    def restore(self) -> None:
        """Puts the backup in place, while the server is down."""
        assert self.kept is not None
        assert not self.up
        self.store = self.kept.restored(self.store)

    async def _live(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._ended = trio.Event()
        try:
            with trio.CancelScope() as self._scope:
                await self._serve(task_status)
        finally:
            self.up = False
            self._ended.set()

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        metrics = Metrics()
        house = app.furnish(self._settings, self.store, self.clock, metrics, self.sms)  # type: ignore[arg-type]
        await house.tokens.ready()
        self._doorway = Doorway(
            store=self.store, domain=house.domain, hub=house.hub, broker=house.broker,
            pressure=house.pressure, clock=self.clock, metrics=metrics, outbox_bytes_max=1 << 20,
        )  # fmt: skip
        house.domain.sync = Sync(self._doorway).answer
        self.house = house
        self.pipeline = Pipeline(house.domain, ROUTES, (), self._settings, metrics)
        async with trio.open_nursery() as self._tasks:
            for run in (
                *(house.domain.verification.run, house.domain.receipts.run, house.domain.presence.run),
                *(house.storms.run, house.timers.run, house.ciphertexts.run, house.hub.flusher.run),
            ):
                await self._tasks.start(run)
            self.up = True
            task_status.started()
            await trio.sleep_forever()

    @asynccontextmanager
    async def sms(self) -> AsyncIterator[Any]:
        async def send(code: Code) -> None:
            self.codes[code.delivery_id] = code.code

        yield send

    # --- doors -------------------------------------------------------------------------------------------------------

    async def request(self, request: httpx.Request) -> httpx.Response:
        """Serves a request in a task of the server. Raises httpx.ReadError if the server ends meanwhile."""
        if not self.up:
            raise httpx.ConnectError("refused")
        answer: list[httpx.Response] = []
        done = trio.Event()

        async def serve() -> None:
            try:
                answer.append(await _asked(self.pipeline, request))
            finally:
                done.set()

        self._tasks.start_soon(serve)
        await done.wait()
        if not answer:
            raise httpx.ReadError("the server is gone")
        return answer[0]

    def connect(self) -> Link:
        """The client's end of a new socket. Raises OSError while the server is down."""
        if not self.up:
            raise ConnectionRefusedError(111, "Connection refused")
        near, far = link_pair()
        self._tasks.start_soon(self._host, far)
        return near

    async def _host(self, far: Link) -> None:
        guest = GuestStream(far, far, 30.0)  # type: ignore[arg-type]
        try:
            async with trio.open_nursery() as nursery:
                with suppress(ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
                    websocket = await accept_websocket(nursery, guest, 128 * 1024, SUBPROTOCOL)
                    await ws_session.host(websocket, guest, self._doorway, "192.0.2.1")
                nursery.cancel_scope.cancel()
        finally:
            cut(far)


async def _asked(pipeline: Pipeline, request: httpx.Request) -> httpx.Response:
    scope = {
        "type": "http", "method": request.method, "path": request.url.path, "raw_path": request.url.raw_path,
        "query_string": request.url.query, "scheme": "http", "http_version": "1.1", "client": ("192.0.2.1", 40000),
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "extensions": {PEER_EXTENSION: Peer("192.0.2.1", direct=True)},
    }  # fmt: skip
    said: list[dict[str, Any]] = []
    bodies = [await request.aread()]

    async def receive() -> dict[str, Any]:
        if not bodies:
            await trio.sleep_forever()
        return {"type": "http.request", "body": bodies.pop(), "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    await pipeline.serve(scope, receive, send)
    return httpx.Response(said[0]["status"], headers=said[0]["headers"], content=said[1]["body"])


def cut(link: Link) -> None:
    """Breaks a connection: what was under way is lost, in both directions."""
    for pipe in (link._in, link._out):
        pipe.data.clear()
        pipe.shut(broken=True)


class Network(httpx.AsyncBaseTransport):
    """What one run of a device reaches the server through. `trouble` is how much of what it asks gets lost, 0 to 1."""

    def __init__(self, server: Server, chance: random.Random) -> None:
        self._server, self._chance = server, chance
        self.trouble = 0.0
        self.alive = True
        self.renewing = False
        self._links: list[Link] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(REFRESH):
            return await self._renew(request)
        await self._wait()
        if not self.alive or self._chance.random() < self.trouble:
            raise httpx.ConnectError("no network")
        answer = await self._server.request(request)
        await self._wait()
        if not self.alive or self._chance.random() < self.trouble:
            raise httpx.ReadError("the answer got lost")
        return answer

    async def _renew(self, request: httpx.Request) -> httpx.Response:
        """Whoever loses this answer is signed out, so it is never lost; `renewing` until the tokens are saved."""
        if not self._server.up or not self.alive:
            raise httpx.ConnectError("refused")
        self.renewing = True
        return await _asked(self._server.pipeline, request)

    async def open_stream(self, _host: str, _port: int) -> trio.abc.Stream:
        await self._wait()
        if not self.alive or self._chance.random() < self.trouble:
            raise OSError(101, "Network is unreachable")
        link = self._server.connect()
        self._links = [each for each in self._links if not each.cut] + [link]
        return link

    def drop(self) -> None:
        """Its sockets break."""
        for link in self._links:
            cut(link)

    async def _wait(self) -> None:
        await trio.sleep(self._chance.choice((0.0, 0.0, 0.0, 0.005, 0.05, 0.3)))
