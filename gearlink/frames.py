"""A guest's WebSocket: trio-websocket's connection, with the two parts replaced that cost most for every message.

A chat client sends whole, masked, final text frames (RFC 6455 §5.2): those are parsed here, in a quarter of the time;
everything else is wsproto's to judge. The promise is wsproto's own events for any bytes in any pieces. And a message
goes from the reading task to the session's without a pause where there is room. What messages say is no matter here.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Final, cast

import trio
from trio_websocket import CloseReason as ClosedFor
from trio_websocket import ConnectionClosed, WebSocketConnection
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection, ConnectionState
from wsproto.events import AcceptConnection, CloseConnection, Event, Message, TextMessage
from wsproto.frame_protocol import CloseReason

_FINAL_TEXT: Final = 0x81
# FIN, no reserved bit, and an opcode that there is: continuation, text, binary; close, ping, pong, which are never cut.
_WELL_FORMED: Final = frozenset((0x00, 0x80, 0x01, _FINAL_TEXT, 0x02, 0x82, 0x88, 0x89, 0x8A))
_MASKED: Final = 0x80
_CONTROL: Final = 0x08
_CONTROL_BYTES_MAX: Final = 125
_INCOMPLETE: Final = (0, -1)
_NOT_OURS: Final = (0, 0)
_RECEIVE_BYTES: Final = 16 * 1024
_MESSAGES_READ_AHEAD_MAX: Final = 4  # each of `frame_bytes_max` at most: what a socket may make us keep


class FrameReader:
    """Stands where trio-websocket has its server's `WSConnection`, of which it has all that is used.

    Frames of more than `frame_bytes_max` are left to wsproto, which hands them out in pieces as they come:
    trio-websocket counts those and refuses what is too large. So no more than one frame and one read wait here.
    """

    __slots__ = ("_at", "_data", "_frame_bytes_max", "_in_message", "_ours", "_wsproto")

    client: Final = False

    def __init__(self, frame_bytes_max: int) -> None:
        self._wsproto: WSConnection | Connection = WSConnection(ConnectionType.SERVER)
        self._frame_bytes_max = frame_bytes_max
        self._data: bytes | bytearray = b""
        self._at = 0  # where in `_data` the next frame begins
        self._in_message = False  # the end of a fragmented message has not come yet
        self._ours = False  # frames are told apart here; not in the handshake, and not after an error

    @property
    def state(self) -> ConnectionState:
        return self._wsproto.state

    def send(self, event: Event) -> bytes:
        """The bytes that say `event`. Raises LocalProtocolError where it cannot be said."""
        data = self._wsproto.send(event)
        if type(event) is AcceptConnection and isinstance(self._wsproto, WSConnection):
            assert self._wsproto.connection is not None
            # Lets go of the handshake, which nobody reads again: a fifth of an idle socket's memory.
            self._wsproto = self._wsproto.connection
            self._ours = True
        return data

    def receive_data(self, data: bytes | bytearray) -> None:
        """Takes bytes of the peer; `events` says what they mean. Raises RemoteProtocolError in the handshake."""
        if self._ours:
            self._data = self._data + data if self._data else data
        else:
            self._wsproto.receive_data(bytes(data))

    def events(self) -> Iterator[Event]:
        """What the bytes up to here mean. They are parsed while the iteration goes on, not ahead of it."""
        while self._ours:
            data, start = self._data, self._at
            payload, end = self._span(data, start)
            if payload == 0:
                if end == 0:
                    self._give_up(data[start:])
                    break
                self._data, self._at = data[start:], 0
                return
            self._at = end
            if data[start] == _FINAL_TEXT and not self._in_message:
                try:
                    yield TextMessage(_unmasked(data, payload, end).decode())
                    continue
                except UnicodeDecodeError:
                    pass  # wsproto finds it again, and says what a peer is told then
            yield from self._events_of(data[start:end])
        yield from self._wsproto.events()

    def _span(self, data: bytes | bytearray, start: int) -> tuple[int, int]:
        """Where the payload of the frame at `start` begins and ends; `_INCOMPLETE`, or `_NOT_OURS` to measure."""
        have = len(data) - start
        if have < 2:
            return _INCOMPLETE
        size = data[start + 1] - _MASKED
        if size < 0 or data[start] not in _WELL_FORMED:
            return _NOT_OURS
        payload = start + 6
        if size > _CONTROL_BYTES_MAX:
            width = 2 if size == 126 else 8
            if have < 2 + width:
                return _INCOMPLETE
            size = int.from_bytes(data[start + 2 : start + 2 + width], "big")
            payload += width
            # RFC 6455 §5.2: the shortest form has to be used. §5.5: control frames have no other.
            if size < (126 if width == 2 else 65536) or data[start] & _CONTROL:
                return _NOT_OURS
        if size > self._frame_bytes_max:
            return _NOT_OURS
        return (payload, payload + size) if payload + size <= start + have else _INCOMPLETE

    def _events_of(self, frame: bytes | bytearray) -> Iterator[Event]:
        self._wsproto.receive_data(bytes(frame))
        for event in self._wsproto.events():
            if isinstance(event, Message):
                self._in_message = not event.message_finished
            elif type(event) is CloseConnection:  # the peer's, or wsproto's verdict: nothing counts after it
                self._give_up(b"")
            yield event

    def _give_up(self, rest: bytes | bytearray) -> None:
        """From now on every byte is wsproto's to judge, beginning with `rest`."""
        self._ours, self._data, self._at = False, b"", 0
        if rest:
            self._wsproto.receive_data(bytes(rest))


def _unmasked(data: bytes | bytearray, start: int, end: int) -> bytes:
    """RFC 6455 §5.3: XOR with the four bytes before `start`, over and over; as one operation on large integers."""
    size = end - start
    key = (data[start - 4 : start] * (size // 4 + 1))[:size]
    return (int.from_bytes(data[start:end], "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


class _Sender:
    """trio-websocket's way into its queue of messages. Sending is a checkpoint only where it has to wait."""

    __slots__ = ("_channel",)

    def __init__(self, channel: trio.MemorySendChannel[str | bytes]) -> None:
        self._channel = channel

    async def send(self, message: str | bytes) -> None:
        try:
            self._channel.send_nowait(message)
        except trio.WouldBlock:
            await self._channel.send(message)

    async def aclose(self) -> None:
        await self._channel.aclose()

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, kind: type[BaseException] | None, trouble: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.aclose()


class GuestSocket(WebSocketConnection):
    """The server's end of a WebSocket over `stream`. No message has more than `frame_bytes_max` characters."""

    def __init__(self, stream: trio.abc.Stream, frame_bytes_max: int) -> None:
        super().__init__(
            stream,
            cast(WSConnection, FrameReader(frame_bytes_max)),
            message_queue_size=_MESSAGES_READ_AHEAD_MAX,
            max_message_size=frame_bytes_max,
            receive_buffer_size=_RECEIVE_BYTES,
        )
        self._send_channel = cast("trio.MemorySendChannel[str | bytes]", _Sender(self._send_channel))

    async def _handle_close_connection_event(self, event: CloseConnection) -> None:
        """RFC 6455 §7.1.7: who breaks the protocol is told so by a close frame, where the library only hangs up.

        The stream stays open for whoever owns it to finish: closed on bytes that nobody has read it would be reset,
        which may overtake the frame. What was said before can still be read.
        """
        if self._wsproto.state is not ConnectionState.OPEN:  # a close frame of the peer, or the answer to ours
            await super()._handle_close_connection_event(event)
            return
        # wsproto's words name the rule, but of bad UTF-8 they repeat a byte that was sent.
        reason = event.reason if event.code == CloseReason.PROTOCOL_ERROR else None
        self._close_reason = ClosedFor(event.code, reason)
        self._reader_running = False
        await self._send(CloseConnection(event.code, reason))
        self._close_handshake.set()
        await self._send_channel.aclose()

    async def get_message(self) -> str | bytes:
        """The next message. A checkpoint only where it has to wait, which is at every fifth message at the latest.

        Raises ConnectionClosed.
        """
        try:
            return self._recv_channel.receive_nowait()
        except trio.WouldBlock:
            return await super().get_message()
        except (trio.ClosedResourceError, trio.EndOfChannel):
            raise ConnectionClosed(self.closed) from None


async def accept_websocket(
    nursery: trio.Nursery, stream: trio.abc.Stream, frame_bytes_max: int, subprotocol: str | None
) -> GuestSocket:
    """Answers the upgrade that comes next on `stream`, which has to be a good one. Its reader runs in `nursery`.

    Raises ConnectionClosed. It waits for the peer: the caller bounds the time.
    """
    socket = GuestSocket(stream, frame_bytes_max)
    nursery.start_soon(socket._reader_task)
    await (await socket._get_request()).accept(subprotocol=subprotocol)
    return socket
