"""One WebSocket from its handshake to its end: frames in, frames out, and a pulse.

Promises: every wait on the network has a deadline; one task writes, so that no frame is ever cut in half; a peer that says
nothing for two heartbeats is given up; however it ends, the caller gets one `Lost` that says why and when to come back.
It knows nothing of conversations, cursors or messages.
"""

import ssl
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import msgspec
import trio
import wsproto.utilities
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)

from gearlink.protocol import SUBPROTOCOL, AnyServerFrame, ClientFrame, Ping, decode_server, encode
from gearlink.sdk.options import Options
from gearlink.sdk.translate import reason, seconds

PATH = "/ws"
WRITES_QUEUED_MAX = 16
RECEIVE_BYTES = 64 * 1024
NOT_AUTHENTICATED_CODE = 4401
TOO_BIG_CODE = 1009
NORMAL_CODE = 1000


class Lost(Exception):
    """Why a connection ended: `code` is the close code if the peer sent one. `at_once`: come back without waiting."""

    def __init__(
        self, detail: str, *, code: int | None = None, retry_after_seconds: float | None = None, at_once: bool = False
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.retry_after_seconds = retry_after_seconds
        self.at_once = at_once


class UnknownEvent(msgspec.Struct, rename="camel"):
    """A frame of a type that is newer than this SDK, but has a number in a log: it is no hole there."""

    type: str
    conversation_id: str
    sequence_number: int


_unknown_decoder = msgspec.json.Decoder(UnknownEvent)


class Connection:
    """An open socket. `say` waits only while the queue of writes is full; `hear` gives the next frame of a known type."""

    def __init__(self, socket: WebSocketConnection, options: Options) -> None:
        self._socket = socket
        self._options = options
        self._to_writer, self._from_callers = trio.open_memory_channel[str](WRITES_QUEUED_MAX)
        self._written = trio.Event()
        self._closing = trio.Lock()
        self.heard_at = self.said_at = trio.current_time()
        self.reading = True  # False while the listener waits for its own caller: then silence is no sign of death

    async def say(self, frame: ClientFrame) -> None:
        """Queues `frame`. Raises Lost once the socket has ended."""
        self.said_at = trio.current_time()
        try:
            await self._to_writer.send(encode(frame).decode())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._ended() from None

    async def hear(self) -> AnyServerFrame | UnknownEvent:
        """The next frame; those of unknown types are skipped, as the contract asks, unless they have a number in a log.
        Raises Lost."""
        while True:
            try:
                data = await self._socket.get_message()
            except ConnectionClosed:
                raise self._ended() from None
            self.heard_at = trio.current_time()
            try:
                frame = decode_server(data) or _unknown(data)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                raise Lost("the server sent a frame that cannot be read") from None
            if frame is not None:
                return frame

    async def close(self) -> None:
        """Ends it in peace: waits until all that was said is written, then for the closing handshake."""
        self._to_writer.close()
        await self._written.wait()
        await self.shake_hands()

    async def shake_hands(self) -> None:
        """The closing handshake (RFC 6455 §7.1.2). Whoever comes second waits for the first, because a socket that is
        closing looks closed already while its reader still has the answer to read."""
        async with self._closing:
            await self._socket.aclose(NORMAL_CODE)

    async def pulse(self, heartbeat_seconds: float) -> None:
        """Pings whenever one side was silent for a heartbeat. Raises Lost if the peer stays silent for another."""
        while True:
            quiet_since = min(self.heard_at, self.said_at) if self.reading else self.said_at
            await trio.sleep_until(quiet_since + heartbeat_seconds)
            now = trio.current_time()
            if now - self.said_at >= heartbeat_seconds or (self.reading and now - self.heard_at >= heartbeat_seconds):
                await self.say(Ping())
                asked_at = trio.current_time()
                await trio.sleep(heartbeat_seconds)
                if self.reading and self.heard_at < asked_at:
                    raise Lost("the server does not answer any more")

    async def write_all(self) -> None:
        """The one writer. Raises Lost if a write does not go through in time."""
        with self._from_callers:
            async for text in self._from_callers:
                try:
                    with trio.fail_after(self._options.write_seconds_max):
                        await self._socket.send_message(text)
                except trio.TooSlowError:
                    raise Lost("the server does not read any more") from None
                except ConnectionClosed:
                    raise self._ended() from None
        self._written.set()

    def _ended(self) -> Lost:
        closed = self._socket.closed
        if closed is None or closed.code == 1006:  # RFC 6455 §7.4.1: no close frame was seen
            return Lost("the connection broke")
        return Lost(closed.reason or f"the server closed the connection ({closed.code})", code=closed.code)


def _unknown(data: bytes | str) -> UnknownEvent | None:
    try:
        return _unknown_decoder.decode(data)
    except msgspec.ValidationError:
        return None


async def hold(server: str, options: Options, life: Callable[[Connection], Awaitable[None]]) -> Lost:
    """Connects to `server`, runs `life` on the connection until either ends, and says why it ended."""
    losses: list[Lost] = []
    try:
        stream = await _open_stream(server, options)
        try:
            async with trio.open_nursery() as nursery:
                socket = await _shake_hands(nursery, stream, server, options)
                connection = Connection(socket, options)
                nursery.start_soon(connection.write_all)
                try:
                    await life(connection)
                finally:
                    # Not shielded: once this is cancelled nobody reads the peer's answer to the close frame.
                    with trio.move_on_after(options.close_seconds_max):
                        await connection.shake_hands()
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(stream)
    except* Lost as group:
        losses += [error for error in leaves(group) if isinstance(error, Lost)]
    except* (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
        losses.append(Lost("the connection broke"))
    except* ConnectionRejected as group:
        losses += [_rejected(error) for error in leaves(group) if isinstance(error, ConnectionRejected)]
    except* (HandshakeError, wsproto.utilities.ProtocolError):
        losses.append(Lost(f"{server} does not speak WebSocket as it should"))
    except* OSError as group:  # ssl.SSLError is one, too
        losses += [Lost(f"cannot reach {server}: {reason(error)}") for error in leaves(group)]
    # Several tasks may notice one end: what the peer said is the best explanation.
    return max(losses, key=lambda lost: (lost.code is not None, lost.at_once), default=Lost("closed", code=NORMAL_CODE))


async def _open_stream(server: str, options: Options) -> trio.abc.Stream:
    address = urlsplit(server)
    host, secure = address.hostname or "", address.scheme == "https"
    port = address.port or (443 if secure else 80)
    try:
        with trio.fail_after(options.connect_seconds_max):
            if options.open_stream is not None:
                return await options.open_stream(host, port)
            if not secure:
                return await trio.open_tcp_stream(host, port)
            context = options.ssl_context or ssl.create_default_context()
            secured = await trio.open_ssl_over_tcp_stream(host, port, https_compatible=True, ssl_context=context)
            try:
                await secured.do_handshake()
            except BaseException:
                await trio.aclose_forcefully(secured)
                raise
            return secured
    except trio.BrokenResourceError as error:
        raise Lost(f"cannot reach {server}: {reason(error)}") from None
    except trio.TooSlowError:
        raise Lost(f"{server} does not answer") from None


async def _shake_hands(
    nursery: trio.Nursery, stream: trio.abc.Stream, server: str, options: Options
) -> WebSocketConnection:
    """The opening handshake of RFC 6455 §4."""
    try:
        with trio.fail_after(options.connect_seconds_max):
            socket = await wrap_client_stream(
                nursery,
                stream,  # type: ignore[arg-type]  # any stream will do, as its own description says
                urlsplit(server).netloc,
                PATH,
                subprotocols=[SUBPROTOCOL],
                max_message_size=options.frame_bytes_max,
                receive_buffer_size=RECEIVE_BYTES,
            )
    except trio.TooSlowError:
        raise Lost(f"{server} does not answer") from None
    if socket.subprotocol != SUBPROTOCOL:
        raise Lost(f"{server} does not speak {SUBPROTOCOL}")
    return socket


def _rejected(error: ConnectionRejected) -> Lost:
    headers = {bytes(name).lower(): bytes(value) for name, value in error.headers or ()}
    told = seconds(headers.get(b"retry-after", b"").decode("latin-1"))
    return Lost(f"the server refused the socket ({error.status_code})", retry_after_seconds=told)


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The single exceptions of a group, however deeply they are nested."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
