"""In-memory links that behave like TCP where it matters: a bounded window, half-close, abrupt close, addresses.

`trio.testing.memory_stream_pair` has no back-pressure, so a peer that does not read cannot be told from one that does.
A `MemoryListener` stands where a socket listener would; `connect` gives the client's end.
"""

import socket
from typing import Any

import trio


class _Pipe:
    """One direction. `limit` bytes may lie in it unread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.data = bytearray()
        self.ended = False  # the writer will write no more
        self.broken = False  # one of the ends was closed
        self.changed = trio.lowlevel.ParkingLot()

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        while data:
            while len(self.data) >= self.limit and not self.broken:
                await self.changed.park()
            if self.broken:
                raise trio.BrokenResourceError("the other end is closed")
            room = self.limit - len(self.data)
            self.data += data[:room]
            data = data[room:]
            self.changed.unpark_all()

    async def receive(self, bytes_max: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while not (self.data or self.ended or self.broken):
            await self.changed.park()
        data = bytes(self.data[:bytes_max])
        del self.data[:bytes_max]
        self.changed.unpark_all()
        return data

    def shut(self, *, broken: bool) -> None:
        self.ended = True
        self.broken = self.broken or broken
        self.changed.unpark_all()


class _Address:
    """What hypercorn and the listener ask a stream's socket."""

    family = socket.AF_INET

    def __init__(self, here: str, there: str, link: "Link") -> None:
        self._here, self._there, self._link = (here, 8080), (there, 40000), link

    def getsockname(self) -> tuple[str, int]:
        return self._here

    def getpeername(self) -> tuple[str, int]:
        return self._there

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self._link.abort()


class Link(trio.abc.HalfCloseableStream):
    """One end of a connection."""

    def __init__(self, inward: _Pipe, outward: _Pipe, here: str, there: str) -> None:
        self._in, self._out = inward, outward
        self._closed = False
        self.socket: Any = _Address(here, there, self)

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError

    async def send_all(self, data: Any) -> None:
        self._check()
        try:
            await self._out.send(bytes(data))
        except trio.BrokenResourceError:
            self._check()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._out.shut(broken=False)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self._check()
        data = await self._in.receive(max_bytes or 65536)
        self._check()
        return data

    def abort(self) -> None:
        self._closed = True
        self._in.shut(broken=True)
        self._out.shut(broken=True)

    async def aclose(self) -> None:
        self.abort()
        await trio.lowlevel.checkpoint()

    @property
    def cut(self) -> bool:
        """Whether either end was closed."""
        return self._in.broken


def link_pair(window: int = 65536, client: str = "192.0.2.1", server: str = "192.0.2.100") -> tuple[Link, Link]:
    """The client's end and the server's."""
    up, down = _Pipe(window), _Pipe(window)
    return Link(down, up, client, server), Link(up, down, server, client)


class MemoryListener(trio.abc.Listener[Any]):
    """`accept` gives what `connect` made. `troubles` are raised by the next accepts, one each."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Link](1000)
        self.troubles: list[OSError] = []

    async def accept(self) -> Any:
        if self.troubles:
            await trio.lowlevel.checkpoint()
            raise self.troubles.pop()
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        self._receive.close()
        await trio.lowlevel.checkpoint()

    def connect(self, address: str = "192.0.2.1", window: int = 65536) -> Link:
        """Raises BrokenResourceError when nobody accepts any more."""
        client, server = link_pair(window, address)
        self._send.send_nowait(server)
        return client
