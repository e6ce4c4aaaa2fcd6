"""The one port: accepts connections, and hands each to HTTP (hypercorn) or to WebSocket (trio-websocket).

It owns the sockets, the choice by the request's head, the limits on connections that nobody vouches for yet, and the
`try` around each connection: whatever a guest makes our libraries raise ends that one connection, counted and reported,
and no other. The choice cannot be led astray: a head that is not exactly a WebSocket upgrade of `websocket_path` goes
to the HTTP server, which has no WebSocket. It knows nothing of frames, tokens or routes.

The phases of an end, each started by the app, which tells the guests in between:

    listener.shut()                        doors: nobody new; idle keep-alive connections close; the rest goes on
    with trio.move_on_after(drain_seconds):
        await listener.drained()           guests leave by themselves
    listener.evict("drain is over")        the rest is cancelled, and its sockets closed under it

`serve` returns when the last connection is gone and the ASGI app has shut down. Cancelling `serve` means now: sockets
are closed at once, so that no write to a peer that does not read can hold the end, and the ASGI shutdown is skipped.
"""

import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import h11
import trio
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import wrap_app
from trio_websocket import ConnectionClosed, WebSocketConnection

from config import limits
from gearlink.errors import HEADER_TOO_LARGE, OVERLOADED, Refusal
from gearlink.frames import accept_websocket
from gearlink.http_server import HttpConfig, HttpConnection
from gearlink.peers import PEER_EXTENSION, Peer, Proxies, canonical
from gearlink.ports import open_tcp_listeners, tls_context
from gearlink.problems import correlation_id, last_answer, sent_id
from gearlink.protocol import SUBPROTOCOL
from gearlink.streams import CLOSE_SECONDS, GuestStream, HeadTooLarge, Inner, read_head
from gearlink.upgrade import read_upgrade, upgrade_trouble

__all__ = [
    "PEER_EXTENSION",
    "GuestStream",
    "ListenConfig",
    "Listener",
    "Peer",
    "Refused",
    "open_tcp_listeners",
    "tls_context",
]

Refused = Literal["full", "address-full", "handshake", "head-slow", "head-large", "upgrade"]
OnWebSocket = Callable[[WebSocketConnection, GuestStream, Peer, str | None], Awaitable[None]]

_TURNED_AWAY_MAX = 64  # connections over the limit that are being told so; further ones are closed without a word
_BUSY_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ListenConfig:
    """`head_seconds` bounds TLS handshake and head together. A limit of 0 on connections is none."""

    head_seconds: float = limits.HEAD_SECONDS_MAX
    head_bytes_max: int = limits.HEAD_BYTES_MAX
    write_seconds: float = limits.WRITE_SECONDS_MAX
    keep_alive_seconds: float = 30.0
    connections_max: int = 0
    pending_connections_per_address: int = 0
    trusted_proxies: Sequence[str] = ()
    websocket_path: str = "/ws"
    websocket_subprotocol: str = SUBPROTOCOL
    frame_bytes_max: int = 128 * 1024


class Listener:
    """Serves `asgi_app` and `on_websocket(connection, stream, peer, correlation_id)` on the same listeners.

    `on_websocket` runs for as long as its socket lives; when it returns, the socket is closed. It calls
    `stream.settled()` once the guest has signed in, and bounds `connection.aclose` in time, which waits for the peer.
    `correlation_id` is the one that the client sent with the upgrade, if it is a sane one.

    A plain request of `websocket_path` is the app's to answer, with a 426.

    A route finds its `Peer` in `scope["extensions"][PEER_EXTENSION]`, and the peer's address in `scope["client"]`
    (Quart's `request.remote_addr`); both are read from each request's own headers.

    `tls` is asked for every connection, so a new certificate takes effect with the next one; None means plain TCP.
    `on_crash` gets what a connection died of, `on_refused` why one was turned away; neither may raise or wait.
    """

    def __init__(
        self,
        asgi_app: ASGIFramework,
        on_websocket: OnWebSocket,
        config: ListenConfig,
        *,
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        on_crash: Callable[[BaseException], None],
        on_refused: Callable[[Refused], None] = lambda _reason: None,
    ) -> None:
        self.crashes = 0
        self._asgi_app = asgi_app
        self._on_websocket = on_websocket
        self._config = config
        self._tls = tls
        self._on_crash = on_crash
        self._on_refused = on_refused
        self._http = HttpConfig(
            head_bytes_max=config.head_bytes_max,
            keep_alive_seconds=config.keep_alive_seconds,
            write_seconds=config.write_seconds,
        )
        self._app = wrap_app(self._serve_request, 0, "asgi")
        self._context = WorkerContext(None)
        self._state = ConnectionState({})
        self._proxies = Proxies(config.trusted_proxies)
        self._open: set[trio.SocketStream] = set()
        self._pending: Counter[str] = Counter()
        self._opening: set[trio.CancelScope] = set()
        self._http_connections: set[HttpConnection] = set()
        self._turned_away = 0
        self._shut, self._evicted, self._drained = trio.Event(), trio.Event(), trio.Event()
        self._reason = "the server is stopped"

    @property
    def open_connections(self) -> int:
        return len(self._open)

    @property
    def pending_connections(self) -> int:
        """Accepted, but neither a read HTTP head nor a signed-in WebSocket yet."""
        return self._pending.total()

    # --- lifetime ----------------------------------------------------------------------------------------------------

    async def serve(
        self,
        listeners: Sequence[trio.abc.Listener[trio.SocketStream]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serves until `shut` and the last connection's end; owns `listeners`. Started once guests can come in."""
        async with self._lifespan(), trio.open_nursery() as house:
            house.start_soon(self._close_sockets_at_the_end)
            async with trio.open_nursery() as guests:
                house.start_soon(self._cancel_when_evicted, guests.cancel_scope)
                async with trio.open_nursery() as doors:
                    serve = partial(trio.serve_listeners, self._welcome, list(listeners), handler_nursery=guests)
                    await doors.start(serve)  # lack of file descriptors only makes it wait
                    task_status.started()
                    await self._shut.wait()
                    doors.cancel_scope.cancel(reason="the doors are shut")
                await self._context.terminated.set()
                for opening in self._opening:
                    opening.cancel(reason="the doors are shut")
                for connection in self._http_connections:
                    connection.wind_down()
            self._drained.set()
            house.cancel_scope.cancel(reason="the last guest has left")

    def reload(self, config: ListenConfig) -> None:
        """Takes over the trusted proxies and the limits on connections, for those that come from now on."""
        self._config, self._proxies = config, Proxies(config.trusted_proxies)

    def shut(self) -> None:
        """Stops accepting, closes idle keep-alive connections, and lets everybody else finish."""
        self._shut.set()

    async def drained(self) -> None:
        """Waits until the last connection has ended."""
        await self._drained.wait()

    def evict(self, reason: str) -> None:
        """Ends every connection now. `reason` stands in the cancellation that its tasks see."""
        self._reason = reason
        self._shut.set()
        self._evicted.set()

    async def _cancel_when_evicted(self, guests: trio.CancelScope) -> None:
        await self._evicted.wait()
        guests.cancel(reason=self._reason)
        self._close_sockets()

    async def _close_sockets_at_the_end(self) -> None:
        """A shielded write to a peer that does not read ends only when its socket is closed."""
        try:
            await trio.sleep_forever()
        finally:
            self._close_sockets()

    def _close_sockets(self) -> None:
        for transport in self._open:
            transport.socket.close()

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        """ASGI startup and shutdown. A startup that fails ends `serve` with a LifespanFailureError in a group."""
        lifespan = Lifespan(self._app, self._http, self._state)
        async with trio.open_nursery() as nursery:
            await nursery.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            yield
            await lifespan.wait_for_shutdown()
            nursery.cancel_scope.cancel(reason="the ASGI app has shut down")

    # --- one connection ----------------------------------------------------------------------------------------------

    async def _welcome(self, transport: trio.SocketStream) -> None:
        """One connection from its accept to its end. Only a cancellation leaves this."""
        try:
            address = canonical(transport.socket.getpeername()[0])
        except (OSError, ValueError):
            return  # gone before we could look; trio closes what is left
        if (reason := self._full(None if self._proxies.trusts(address) else address)) is not None:
            await self._turn_away(transport, reason)
            return
        self._open.add(transport)
        try:
            await self._converse(transport, address)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, ConnectionClosed):
            pass  # the peer went away: nothing that an operator could mend
        except* Exception as crash:  # noqa: BLE001  # the catch-all of a connection
            self._crashed(crash)
        finally:
            transport.socket.close()
            self._open.discard(transport)

    def _crashed(self, crash: BaseException) -> None:
        self.crashes += 1
        self._on_crash(crash)

    def _full(self, address: str | None) -> Refused | None:
        """Whether one more connection is too many: in all, or pending from `address`."""
        if 0 < self._config.connections_max <= len(self._open):
            return "full"
        if address is not None and 0 < self._config.pending_connections_per_address <= self._pending[address]:
            return "address-full"
        return None

    async def _turn_away(self, transport: trio.SocketStream, reason: Refused) -> None:
        self._on_refused(reason)
        if self._turned_away >= _TURNED_AWAY_MAX or self._tls() is not None:  # no handshake for whom we do not serve
            return
        self._turned_away += 1
        try:
            await _refuse(GuestStream(transport, transport, CLOSE_SECONDS), _busy())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._turned_away -= 1

    def _make_pending(self, address: str) -> Callable[[], None]:
        """Counts a pending connection of `address` until what it returns is called, once or more often."""
        self._pending[address] += 1
        counted = [address]

        def settle() -> None:
            if counted:
                self._pending[counted.pop()] -= 1
                if self._pending[address] <= 0:
                    del self._pending[address]

        return settle

    async def _converse(self, transport: trio.SocketStream, address: str) -> None:
        settle = self._make_pending(address)
        try:
            opened = await self._open_stream(transport, settle)
            if opened is None:
                return
            stream, head, protocol = opened
            del opened
            stream.head = head
            request = None if protocol == "h2" else read_upgrade(head, self._config.websocket_path)
            if request is not None:
                await self._serve_websocket(stream, request, self._proxies.peer(address, request.headers))
                return
            del head
            settle()
            state = ConnectionState(self._state.copy())
            connection = HttpConnection(
                self._app, self._http, self._context, state, stream, tls=protocol != "tcp", http2=protocol == "h2"
            )
            self._http_connections.add(connection)
            try:
                await connection
            finally:
                self._http_connections.discard(connection)
        finally:
            settle()

    async def _open_stream(
        self, transport: trio.SocketStream, settle: Callable[[], None]
    ) -> tuple[GuestStream, bytes, Literal["tcp", "tls", "h2"]] | None:
        """TLS and the head of the first request, within `head_seconds`; None when the peer did not come that far."""
        inner: Inner = transport
        protocol: Literal["tcp", "tls", "h2"] = "tcp"
        missing: Refused = "head-slow"
        with trio.move_on_after(self._config.head_seconds) as opening:
            self._opening.add(opening)
            try:
                if (context := self._tls()) is not None:
                    missing = "handshake"
                    inner = trio.SSLStream(transport, context, server_side=True, https_compatible=True)
                    with suppress(trio.BrokenResourceError):
                        await inner.do_handshake()
                        missing = "head-slow"
                    if missing == "handshake":
                        self._on_refused(missing)
                        return None
                    protocol = "h2" if inner.selected_alpn_protocol() == "h2" else "tls"
                stream = GuestStream(inner, transport, self._config.write_seconds, settle)
                # HTTP/2 has no head to look at, and hypercorn closes it when it stays idle.
                head = b"" if protocol == "h2" else await read_head(stream, self._config.head_bytes_max)
            except HeadTooLarge:
                self._on_refused("head-large")
                await _refuse(stream, Refusal(HEADER_TOO_LARGE))
                return None
            finally:
                self._opening.discard(opening)
            return (stream, head, protocol) if head or protocol == "h2" else None
        if not self._shut.is_set():
            self._on_refused(missing)
        return None

    async def _serve_websocket(self, stream: GuestStream, request: h11.Request, peer: Peer) -> None:
        stream.settled()  # until here its TCP address counted, which may be a proxy's
        if (reason := self._full(peer.address)) == "address-full":
            self._on_refused(reason)
            await _refuse(stream, _busy(), request.headers)
            return
        headers = dict(request.headers)
        trouble = upgrade_trouble(request, stream.head, self._config.websocket_subprotocol)
        if trouble is not None:
            self._on_refused("upgrade")
            await _refuse(stream, trouble, request.headers)
            return
        identifier = sent_id(headers)
        subprotocol = self._config.websocket_subprotocol if b"sec-websocket-protocol" in headers else None
        del request, headers
        stream.on_settled = self._make_pending(peer.address)
        try:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(self._config.head_seconds):
                    connection = await accept_websocket(nursery, stream, self._config.frame_bytes_max, subprotocol)
                with suppress(ConnectionClosed):
                    await self._on_websocket(connection, stream, peer, identifier)
                nursery.cancel_scope.cancel(reason="the session has ended")
            await stream.finish()
        finally:
            stream.settled()

    # --- HTTP --------------------------------------------------------------------------------------------------------

    async def _serve_request(self, scope: Any, receive: Any, send: Any) -> None:
        """Around the ASGI app: tells it who asks, and keeps its accidents inside this one request."""
        if scope["type"] == "http":
            port = scope["client"][1] if scope["client"] else 0
            address = canonical(scope["client"][0]) if scope["client"] else ""
            peer = self._proxies.peer(address, scope["headers"])
            scope["client"] = (peer.address, port)
            scope["extensions"][PEER_EXTENSION] = peer
        elif scope["type"] == "lifespan":
            await self._asgi_app(scope, receive, send)
            return
        try:
            await self._asgi_app(scope, receive, send)
        except* Exception as crash:  # noqa: BLE001  # hypercorn answers 500 if nothing was sent yet
            self._crashed(crash)


def _busy() -> Refusal:
    return Refusal(OVERLOADED, retry_after_seconds=_BUSY_SECONDS)


async def _refuse(stream: GuestStream, refusal: Refusal, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Answers in place of the HTTP server, and closes. `headers` are those of the request, if they could be read."""
    await stream.send_all(last_answer(refusal, correlation_id(dict(headers))))
    await stream.finish()
