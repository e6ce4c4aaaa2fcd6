"""One HTTP connection, served by hypercorn's protocol code with the parts repaired that a guest could break.

It owns the translation from a `GuestStream` to ASGI for HTTP/1.1 and HTTP/2, and promises that no connection waits for
ever: not for an app that reads no more, not for a peer that opens no window, not for a body that nobody wants.
hypercorn's own WebSocket and its upgrades to cleartext HTTP/2 are never reached. It knows nothing of routes.
"""

import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import h2.events
import h2.exceptions
import trio
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from h11 import ERROR, EndOfMessage, LocalProtocolError
from h11 import Data as Http1Data
from h11 import Request as Http1Request
from h11 import Response as Http1Response
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request, StreamClosed, Trailers
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, H11SendableEvent
from hypercorn.utils import parse_socket_addr

from gearlink import problems
from gearlink.errors import Refusal
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
        self.keep_alive_max_requests = 1_000_000  # a connection is bounded by its idle time and its limits, not by its use
        self._date, self._date_until = b"", 0.0

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """`Date` (RFC 9110 §6.6.1), made anew once a second."""
        now = trio.current_time()
        if now >= self._date_until:
            self._date, self._date_until = dict(super().response_headers(protocol))[b"date"], now + 1
        return [(b"date", self._date)]


def _head_bytes(request: Http1Request) -> int:
    return len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)


class _Http1Stream(HTTPStream):
    """One request and its answer. It tells the protocol which part of the answer is the last, ahead of the part."""

    def __init__(self, protocol: "_Http1") -> None:
        house = (protocol.app, protocol.config, protocol.context, protocol.task_group, protocol.ssl)
        super().__init__(*house, protocol.client, protocol.server, protocol.stream_send, STREAM_ID)
        self._protocol = protocol

    async def app_send(self, message: Any) -> None:
        if message is not None:
            self._protocol.is_ending = not message.get("more_body", False)
        await super().app_send(message)


class _Http1(H11Protocol):
    """Writes an answer at once where the app gives it at once, and each part as it comes where it does not."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.is_ending = True  # the end of the answer follows without a pause
        self._held = b""  # what waits for more of the same answer: a head, or with it a body that is not large

    async def _check_protocol(self, event: Http1Request) -> None:
        """No upgrade to cleartext HTTP/2: RFC 9113 §3.1 has given it up, and a bad one ended hypercorn."""

    async def _create_stream(self, request: Http1Request) -> None:
        """No WebSocket either: RFC 9110 §7.8 lets a server ignore `Upgrade`."""
        refused = 0
        if request.http_version not in (b"1.0", b"1.1"):  # such as the preface of HTTP/2: `PRI * HTTP/2.0`
            refused = 505
        elif _head_bytes(request) > self.config.h11_max_incomplete_size:  # h11 minds it only while the end is missing
            refused = 431
        if refused:
            await self._send_error_response(refused, request)
            await self.send(Closed())
            return
        self.stream = _Http1Stream(self)
        self.keep_alive_requests += 1
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )

    async def _send_error_response(self, status_code: int, request: Http1Request | None = None) -> None:
        """A problem document, where hypercorn and h11 have neither a body nor a reason phrase."""
        refusal = Refusal(problems.entry_of(status_code))
        status = refusal.entry.status
        identifier = problems.correlation_id({} if request is None else dict(request.headers))
        body = problems.document(refusal, identifier)
        fields = problems.last_fields(refusal, identifier, body)
        await self._send_h11_event(Http1Response(status_code=status, headers=fields, reason=problems.phrase(status)))
        if request is None or request.method.upper() != b"HEAD":
            await self._send_h11_event(Http1Data(data=body))
        await self._send_h11_event(EndOfMessage())
        await self._write(b"")  # of a HEAD whose body cannot be read h11 takes no more than the head of an answer

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, StreamClosed):
            await self._write(b"")  # of an app that has ended in the middle of its answer
        await super().stream_send(event)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        try:
            data = self.connection.send(event) or b""
        except LocalProtocolError:
            if self.connection.their_state is not ERROR:
                raise
            return
        # The app may not begin an answer before it has some of its body (ASGI), so a head never waits for long.
        more_follows = isinstance(event, Http1Response) or (isinstance(event, Http1Data) and self.is_ending)
        if more_follows and len(self._held) + len(data) <= WRITE_BYTES_STEP:
            self._held += data
        else:
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        """What was held, and `data`: as one write unless `data` is large, which is not copied."""
        held, self._held = self._held, b""
        if held and len(data) > WRITE_BYTES_STEP:
            await self.send(RawData(data=held))
            held = b""
        if held or data:
            await self.send(RawData(data=held + data))


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


class _Inbox:
    """What an app can receive of its request, `count_max` messages ahead of it. Made for each request, so it is lean.

    Putting never waits for an app that reads no more: once the request is over, what still comes is dropped.
    """

    __slots__ = ("_changed", "_count_max", "_messages", "_over")

    def __init__(self, count_max: int) -> None:
        self._messages: deque[Any] = deque()
        self._count_max = count_max
        self._over = False
        self._changed: trio.Event | None = None  # whoever waits, the app or the connection, is told by it

    async def put(self, message: Any) -> None:
        while len(self._messages) >= self._count_max and not self._over and message["type"] != "http.disconnect":
            await self._change()
        if message["type"] == "http.disconnect":
            self._over = True
        elif not self._over:
            self._messages.append(message)
        self._tell()

    async def receive(self) -> Any:
        while not self._messages:
            if self._over:
                return {"type": "http.disconnect"}
            await self._change()
        await trio.lowlevel.checkpoint()
        self._tell()
        return self._messages.popleft()

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()


class _AppTasks(TaskGroup):
    """Gives each request an inbox of ours: hypercorn's waits for an app that reads no more, and so for ever."""

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        inbox = _Inbox(config.max_app_queue_size)
        # hypercorn's own runner of an app, which ends the answer whatever becomes of the app.
        threads = (trio.to_thread.run_sync, trio.from_thread.run)
        assert self._nursery is not None
        self._nursery.start_soon(_handle, app, config, scope, inbox.receive, send, *threads)
        return inbox.put


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
