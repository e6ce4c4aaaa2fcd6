"""One HTTP connection, served by hypercorn's protocol code with the parts repaired that a guest could break.

It owns the translation from a `GuestStream` to ASGI for HTTP/1.1 and HTTP/2, and promises that no connection waits for
ever: not for an app that reads no more, not for a peer that opens no window, not for a body that nobody wants.
hypercorn's own WebSocket and its upgrades to cleartext HTTP/2 are never reached. It knows nothing of routes.
"""

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import h2.events
import h2.exceptions
import msgspec
import trio
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from h11 import Request as Http1Request
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Trailers
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from gearlink.errors import UPGRADE_REQUIRED
from gearlink.streams import LINGER_SECONDS, WRITE_BYTES_STEP, GuestStream


class HttpConfig(Config):
    """hypercorn's settings as we use them: it writes no log of its own, and names no server."""

    def __init__(self, *, head_bytes_max: int, keep_alive_seconds: float, write_seconds: float) -> None:
        super().__init__()
        self.accesslog = None
        self.errorlog = None
        self.include_server_header = False
        self.h11_max_incomplete_size = head_bytes_max
        self.h2_max_header_list_size = head_bytes_max
        self.keep_alive_timeout = keep_alive_seconds
        self.write_seconds = write_seconds


def _head_bytes(request: Http1Request) -> int:
    return len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)


class _Http1(H11Protocol):
    async def _check_protocol(self, event: Http1Request) -> None:
        """No upgrade to cleartext HTTP/2: RFC 9113 §3.1 has given it up, and a bad one ended hypercorn."""

    async def _create_stream(self, request: Http1Request) -> None:
        refused = 0
        if request.http_version not in (b"1.0", b"1.1"):  # such as the preface of HTTP/2: `PRI * HTTP/2.0`
            refused = 505
        elif _head_bytes(request) > self.config.h11_max_incomplete_size:  # h11 minds it only while the end is missing
            refused = 431
        if refused:
            await self._send_error_response(refused)
            await self.send(Closed())
            return
        if any(name == b"upgrade" for name, _ in request.headers):
            # RFC 9110 §7.8: a server may ignore the field. With it, hypercorn's own WebSocket would take over.
            kept = [(name, value) for name, value in request.headers if name != b"upgrade"]
            request = Http1Request(
                method=request.method, headers=kept, target=request.target, http_version=request.http_version
            )
        await super()._create_stream(request)


class _Http2(H2Protocol):
    config: HttpConfig

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # RFC 8441 §3: without this setting no client may open a WebSocket inside HTTP/2, past our WebSocket door.
        del self.connection.local_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]

    async def handle(self, event: Event) -> None:
        try:
            await super().handle(event)
        except h2.exceptions.ProtocolError:  # such as an answer on a connection that the peer has just ended
            await self.send(Closed())

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                # The answer went out before the body came in. Its bytes still count against the connection's window.
                with suppress(h2.exceptions.ProtocolError):
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                await self._flush()
            else:
                await super()._handle_events([event])

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        pseudo = {name: value for name, value in request.headers if name.startswith(b":")}
        method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
        sane = path.startswith((b"/", b"*")) and all(value.isascii() for value in pseudo.values())
        if method.upper() == b"CONNECT" or not sane:  # RFC 9113 §8.1.1: malformed is a stream error
            self.connection.reset_stream(request.stream_id, ErrorCodes.PROTOCOL_ERROR)
            await self._flush()
            if self.idle:  # hypercorn now takes the connection for a busy one, and nothing would end it
                await self.send(Closed())
            return
        await super()._create_stream(request)

    async def stream_send(self, event: StreamEvent) -> None:
        """Bounds the wait for the peer's flow-control window: a step of a body, or its rest, within `write_seconds`."""
        if isinstance(event, Body) and len(event.data) > WRITE_BYTES_STEP:
            for start in range(0, len(event.data), WRITE_BYTES_STEP):
                await self.stream_send(replace(event, data=event.data[start : start + WRITE_BYTES_STEP]))
        elif isinstance(event, Body | EndBody | Trailers):
            with trio.move_on_after(self.config.write_seconds) as scope:
                await super().stream_send(event)
            if scope.cancelled_caught:
                with suppress(h2.exceptions.ProtocolError):
                    self.connection.reset_stream(event.stream_id, ErrorCodes.CANCEL)
                if (buffer := self.stream_buffers.get(event.stream_id)) is not None:
                    await buffer.close()
                await self._close_stream(event.stream_id)
                await self._flush()
        else:
            await super().stream_send(event)


class _AppTasks(TaskGroup):
    """Hands the app its messages, and never waits for one that reads no more: its queue would stay full for ever."""

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        sender, receiver = trio.open_memory_channel[Any](config.max_app_queue_size)

        async def receive() -> Any:
            try:
                return await receiver.receive()
            except trio.EndOfChannel:
                return {"type": "http.disconnect"}

        async def put(message: Any) -> None:
            if message["type"] == "http.disconnect":
                sender.close()
                return
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                await sender.send(message)

        async def speak(scope: Any, _receive: Any, send: Any, *threads: Any) -> None:
            with receiver:  # an app that has returned reads no more: what still comes is dropped
                await app(scope, receive, send, *threads)

        await super().spawn_app(cast(AppWrapper, speak), config, scope, send)
        return put


class HttpConnection(TCPServer):
    """Serves one connection until it ends. `http2`: what ALPN chose; there is no other way to HTTP/2."""

    stream: GuestStream  # type: ignore[assignment]  # hypercorn names the class that it makes itself

    def __init__(
        self,
        app: AppWrapper,
        config: HttpConfig,
        context: WorkerContext,
        state: ConnectionState,
        stream: GuestStream,
        *,
        tls: bool,
        http2: bool,
    ) -> None:
        super().__init__(app, config, context, state, stream)  # type: ignore[arg-type]
        self._tls = tls
        self._protocol_class: type[_Http1 | _Http2] = _Http2 if http2 else _Http1
        self._reading = trio.CancelScope()
        self._ended = False
        self._idle = True

    async def run(self) -> None:
        socket = self.stream.socket
        client = parse_socket_addr(socket.family, socket.getpeername())
        server = parse_socket_addr(socket.family, socket.getsockname())
        try:
            async with _AppTasks() as tasks:
                self._task_group = tasks
                house = (self.app, self.config, self.context, tasks, ConnectionState(self.state), self._tls)
                self.protocol = cast(Any, self._protocol_class(*house, client, server, self.protocol_send))
                await self.protocol.initiate()
                self._reading.deadline = self._idle_deadline()
                await self._read_data()
        finally:
            await self.stream.aclose()

    def wind_down(self) -> None:
        """Ends the connection if no request is running on it; else the protocol ends it after the last answer."""
        if self._idle:
            self._reading.cancel(reason="the server shuts")

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            # In place of hypercorn's idle task, which an app that ends at the wrong moment can leave unstarted.
            if not self._ended:
                self._idle = event.idle
                self._reading.deadline = self._idle_deadline() if event.idle else math.inf
                if self.context.terminated.is_set():
                    self.wind_down()
            return
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        try:
            # Bytes that HTTP/2 has handed out must not be lost, or both ends disagree on header compression. The stream
            # bounds the shield: each of its writes, ours and those ahead of ours, ends within write_seconds.
            with trio.CancelScope(shield=True):
                await self.stream.send_all(event.data)
                await trio.lowlevel.checkpoint()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self.protocol.handle(Closed())

    def _idle_deadline(self) -> float:
        return trio.current_time() + self.config.keep_alive_timeout

    async def _read_data(self) -> None:
        with self._reading, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await self.stream.receive_some(MAX_RECV):
                if not self._ended:
                    await self.protocol.handle(RawData(bytes(data)))
            if not self._ended:
                await self.protocol.handle(RawData(b""))
        self._ended = True
        await self.protocol.handle(Closed())

    async def _close(self) -> None:
        """The protocol has said its last word: what still comes is read away for a moment, then the reader ends."""
        if not self._ended:
            self._ended = True
            self._reading.deadline = trio.current_time() + LINGER_SECONDS
            await self.stream.send_eof()


async def answer_upgrade_required(scope: Any, send: Any) -> None:
    """What a plain request of the WebSocket's path gets, as ASGI messages."""
    entry = UPGRADE_REQUIRED
    problem = {"type": f"/problems/{entry.code}", "title": entry.title, "status": entry.status, "code": entry.code}
    body = msgspec.json.encode(problem)
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
    if scope["http_version"] != "2":  # RFC 9110 §15.5.22 wants the fields, RFC 9113 §8.2.2 forbids them in HTTP/2
        headers += [(b"upgrade", b"websocket"), (b"connection", b"upgrade")]
    await send({"type": "http.response.start", "status": entry.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
