"""One connection's byte stream, as the listener hands it on: every write whole and bounded in time, the head replayed.

A `GuestStream` may be written by several tasks (trio-websocket's pongs and closes, the hub's prebuilt frames): each
`send_all` is one atomic write. A write that cannot be finished ruins what follows it, so then the connection is cut.
It knows nothing of HTTP, WebSocket or accounts; it is the hot path of every delivery, so it is plain and flat.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress

import trio

LINGER_SECONDS = 1.0  # how long a peer may take to read our last words
CLOSE_SECONDS = 2.0  # how long TLS may take to say goodbye
WRITE_BYTES_STEP = 64 * 1024  # `write_seconds` is for each of these: a large answer may take long
_HEAD_READ_BYTES = 4096
_READ_BYTES_MAX = 64 * 1024
BLANK_LINE = re.compile(rb"\n\r?\n")  # RFC 9112 §2.2: a bare LF ends a line too

Inner = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class HeadTooLarge(Exception):
    """The request head does not end within the bytes that it may have."""


class GuestStream(trio.abc.Stream):
    """`inner` (the transport itself, or TLS over it) behind one atomic, bounded `send_all`.

    `transport` has trio's `SocketStream` interface. `write_seconds` bounds each write of `WRITE_BYTES_STEP` bytes.
    `on_settled` is called once, by `settled()`. `head` was read ahead: the next reads begin with it. `socket` is the
    transport's, for whoever asks for addresses.
    """

    __slots__ = (
        "_busy",
        "_fileno",
        "_inner",
        "_line",
        "_transport",
        "_write_seconds",
        "head",
        "on_settled",
        "received_at",
        "socket",
    )

    def __init__(
        self,
        inner: Inner,
        transport: trio.SocketStream,
        write_seconds: float,
        on_settled: Callable[[], None] | None = None,
    ) -> None:
        self._inner = inner
        self._transport = transport
        self._write_seconds = write_seconds
        self.on_settled = on_settled
        self.head = b""
        self.received_at = trio.current_time()  # when the peer last gave a sign of life
        self._busy = False  # a write is not finished: others have to stand in line
        self._line: trio.lowlevel.ParkingLot | None = None  # made by the first that has to: most streams never need it
        self.socket = transport.socket
        # Only a real, plain socket may be written directly; TLS and in-memory links go through their own send_all.
        self._fileno = transport.socket.fileno if type(inner) is trio.SocketStream else None

    def settled(self) -> None:
        """The guest has shown who it is: it no longer counts as pending. More calls change nothing."""
        on_settled, self.on_settled = self.on_settled, None
        if on_settled is not None:
            on_settled()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Waits for bytes; empty when the peer has ended its half. Raises Broken-, Closed- and BusyResourceError."""
        if self.head:
            await trio.lowlevel.checkpoint()
            data, self.head = self.head[:max_bytes], self.head[max_bytes:] if max_bytes else b""
            return data
        received = await (self._inner.receive_some(max_bytes) if self._fileno is None else self._read(max_bytes))
        self.received_at = trio.current_time()
        return received

    async def _read(self, max_bytes: int | None) -> bytes:
        """As trio's SocketStream, but that tries first, in vain nearly always: the last read has drained the socket."""
        assert self._fileno is not None
        try:
            while (number := self._fileno()) >= 0:
                await trio.lowlevel.wait_readable(number)
                with suppress(BlockingIOError):  # select(2): what was told to be readable may not be so any more
                    return os.read(self._fileno(), max_bytes or _READ_BYTES_MAX)
        except OSError as trouble:
            raise self._ended(trouble) from trouble
        raise trio.ClosedResourceError("this stream was closed")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Writes all of `data`, or cuts the connection: never a part. First come, first served between tasks.

        It is a checkpoint only where it has to wait: a loop that does nothing but send needs a checkpoint of its own.
        Raises BrokenResourceError when the peer is gone or does not read, ClosedResourceError after a close.
        A cancellation in the middle of the write cuts the connection too.
        """
        sent = self.send_nowait(data)
        if sent == len(data):
            return
        if sent == 0:
            await self._stand_in_line()
        await self.send_rest(memoryview(data)[sent:])

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Writes what the socket takes at once, and returns how many bytes that were.

        0 where nothing could be begun: the socket is full, another write is not finished, or this stream cannot be
        written directly. A part that is neither 0 nor all is a debt: nobody else can write until the caller has awaited
        `send_rest` with what is left. Raises BrokenResourceError, ClosedResourceError.
        """
        if self._fileno is None or self._busy:
            return 0
        try:
            sent = os.write(self._fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as trouble:
            raise self._ended(trouble) from trouble
        self._busy = sent != len(data)
        return sent

    def _ended(self, trouble: OSError) -> trio.ClosedResourceError | trio.BrokenResourceError:
        """What a failed system call on the socket means: a closed one has no descriptor any more."""
        if self.socket.fileno() == -1:
            return trio.ClosedResourceError("this stream was closed")
        return trio.BrokenResourceError("the peer is gone")

    async def _stand_in_line(self) -> None:
        if not self._busy:
            self._busy = True
            return
        if self._line is None:
            self._line = trio.lowlevel.ParkingLot()
        await self._line.park()  # whoever finishes hands its turn on: still busy, now for us

    async def send_rest(self, data: memoryview) -> None:
        """Finishes a write that `send_nowait` began, and hands the turn on. Raises and cuts like `send_all`."""
        try:
            for start in range(0, len(data), WRITE_BYTES_STEP):
                with trio.move_on_after(self._write_seconds) as scope:
                    await self._inner.send_all(data[start : start + WRITE_BYTES_STEP])
                if scope.cancelled_caught:
                    raise trio.BrokenResourceError("the peer does not read")
        except BaseException:
            self.abort()  # part of a frame may be out, so nothing can follow it
            raise
        finally:
            if self._line:
                self._line.unpark()
            else:
                self._busy = False

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Says that nothing more will come, where the transport can say that without closing (TLS cannot)."""
        if self._inner is self._transport:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                await self._transport.send_eof()

    async def finish(self) -> None:
        """Ends our half, reads away what still comes for `LINGER_SECONDS` at most, and closes.

        Bytes that nobody reads make the kernel answer with a reset, which may overtake our last words (RFC 9112 §9.6).
        """
        with (
            trio.move_on_after(LINGER_SECONDS),
            suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError),
        ):
            await self.send_eof()
            while await self._inner.receive_some(WRITE_BYTES_STEP):
                pass
        await self.aclose()

    async def aclose(self) -> None:
        """Closes, with TLS's goodbye if it can be said within `CLOSE_SECONDS`."""
        try:
            with trio.move_on_after(CLOSE_SECONDS), suppress(trio.BrokenResourceError, trio.BusyResourceError):
                await self._inner.aclose()
        finally:
            self.abort()

    def abort(self) -> None:
        """Closes at once. Whoever reads or writes gets ClosedResourceError."""
        self.socket.close()


async def read_head(stream: trio.abc.ReceiveStream, bytes_max: int) -> bytes:
    """Reads up to the end of an HTTP/1 request head and perhaps beyond; empty when the peer left before that.

    Raises HeadTooLarge when the head does not end within `bytes_max`. The caller bounds the time.
    """
    head = bytearray()
    while True:
        data = await stream.receive_some(_HEAD_READ_BYTES)
        if not data:
            return b""
        seen = len(head)
        head += data
        end = BLANK_LINE.search(head, max(0, seen - 2))
        if end is not None and end.end() <= bytes_max:
            return bytes(head)
        if head[0] <= 0x20:  # no request line begins so: the HTTP server refuses it without waiting for more
            return bytes(head)
        if len(head) >= bytes_max:
            raise HeadTooLarge
