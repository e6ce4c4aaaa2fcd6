"""The raw references, run as `python -m tests.bench.reference KIND`: servers that do the same work without the promises.

`room` takes and sends the same frames as a GearLink conversation, but stores nothing, checks nobody, builds each frame
once and joins what waits for a socket; `echo` sends back what it gets; `idle` holds sockets open. Each prints its port and
runs until it is killed. They are trio programs, like the server, so that a ratio tells what GearLink adds.
"""

import sys
from functools import partial

import msgspec
import trio

_RECEIVE_BYTES = 1 << 16
_ID = "00000000-0000-7000-8000-000000000000"


class _Sent(msgspec.Struct, rename="camel"):
    type: str = ""
    temp_id: str = ""
    content: str = ""


_decode = msgspec.json.Decoder(_Sent).decode


class _Member:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.waiting: list[bytes] = []
        self.wanted = trio.Event()

    def put(self, frame: bytes) -> None:
        self.waiting.append(frame)
        self.wanted.set()

    async def pump(self) -> None:
        while True:
            await self.wanted.wait()
            self.wanted = trio.Event()
            waiting, self.waiting = self.waiting, []
            await self.stream.send_all(b"".join(waiting))


def _frame(payload: bytes) -> bytes:
    size = len(payload)
    return (b"\x81" + bytes([size]) if size < 126 else b"\x81\x7e" + size.to_bytes(2, "big")) + payload


def _unmasked(data: bytes) -> tuple[list[bytes], bytes]:
    """The payloads of all complete frames of a client, and what is left."""
    payloads = []
    while len(data) >= 8:
        size, start = data[1] & 0x7F, 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        if len(data) < start + 4 + size:
            break
        mask, body = data[start : start + 4], data[start + 4 : start + 4 + size]
        key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        payloads.append((int.from_bytes(body, "big") ^ key).to_bytes(size, "big"))
        data = data[start + 4 + size :]
    return payloads, data


class _Room:
    """One conversation that everybody who says `auth` is in."""

    def __init__(self) -> None:
        self._members: set[_Member] = set()
        self._sequence = 0

    async def host(self, stream: trio.SocketStream) -> None:
        member = _Member(stream)
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(_RECEIVE_BYTES)
        await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(member.pump)
            left = b""
            try:
                while data := await stream.receive_some(_RECEIVE_BYTES):
                    payloads, left = _unmasked(left + data)
                    for payload in payloads:
                        self._hear(member, _decode(payload))
            except trio.BrokenResourceError:
                pass
            finally:
                self._members.discard(member)
            nursery.cancel_scope.cancel()

    def _hear(self, member: _Member, sent: _Sent) -> None:
        if sent.type == "auth":
            self._members.add(member)
            member.put(_frame(b'{"type":"auth:ok"}') + _frame(b'{"type":"sync:done"}'))
            return
        self._sequence += 1
        common = f'"sequenceNumber":{self._sequence},"createdAt":"2026-01-01T00:00:00.000Z"'
        ack = (
            f'{{"type":"message:ack","tempId":"{sent.temp_id}","messageId":"{_ID}","conversationId":"{_ID}",{common}}}'
        )
        member.put(_frame(ack.encode()))
        told = _frame(
            f'{{"type":"message:new","message":{{"id":"{_ID}","conversationId":"{_ID}","senderId":"{_ID}",'
            f'"senderDeviceId":"{_ID}","kind":"text","content":"{sent.content}",{common},"reactions":[]}}}}'.encode()
        )
        for other in self._members:
            if other is not member:
                other.put(told)


async def _echo(stream: trio.SocketStream) -> None:
    while data := await stream.receive_some(_RECEIVE_BYTES):
        await stream.send_all(data)


async def _idle(stream: trio.SocketStream) -> None:
    while await stream.receive_some(_RECEIVE_BYTES):
        pass


async def _serve(kind: str) -> None:
    handler = {"room": _Room().host, "echo": _echo, "idle": _idle}[kind]
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, handler, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        print(listeners[0].socket.getsockname()[1], flush=True)


if __name__ == "__main__":
    trio.run(_serve, sys.argv[1])
