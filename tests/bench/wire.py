"""The load generator's own wire: HTTP and WebSocket on plain sockets, with as little work a byte as can be.

Whoever measures must be cheaper than what is measured. So there is no library between the generator and its sockets:
frames that it sends are built ahead and masked with one integer operation, and of what it receives on loaded sockets it
counts a pattern and follows the sequence numbers. Only the quiet parts (signing up, catching up) read frame by frame.
"""

import base64
import json
import os
import re
import select
import socket
import zlib
from time import perf_counter, perf_counter_ns
from typing import Any

RECEIVE_BYTES = 1 << 18
TIMEOUT_SECONDS = 30.0
_MASK = (
    b"\x9a\x3c\xe1\x57"  # any will do (RFC 6455 §5.3 wants it unpredictable because of proxies; there are none here)
)
_SEQUENCE = re.compile(rb'"sequenceNumber":(\d+),"createdAt"')  # of a message: marks of who has read have none


class BenchFailed(Exception):
    """What was measured is not what was asked for: a delivery is missing, doubled or out of order, or nothing comes."""


def masked(payload: bytes) -> bytes:
    """A whole text frame as a client sends it (RFC 6455 §5.2)."""
    size = len(payload)
    key = int.from_bytes((_MASK * (size // 4 + 1))[:size], "big")
    body = (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")
    if size < 126:
        return b"\x81" + (0x80 | size).to_bytes(1, "big") + _MASK + body
    return b"\x81\xfe" + size.to_bytes(2, "big") + _MASK + body


def send_frame(temp_id: bytes, conversation_id: str, content: bytes) -> bytes:
    """A `message:send`; `temp_id` and `content` need no escaping."""
    return masked(
        b'{"type":"message:send","tempId":"%b","conversationId":"%b","content":"%b"}'
        % (temp_id, conversation_id.encode(), content)
    )


class Socket:
    """A WebSocket to the server under test. It is opened and signed in with blocking calls, and then set loose."""

    def __init__(self, port: int, source: str = "") -> None:
        self.raw = socket.socket()
        self.raw.settimeout(TIMEOUT_SECONDS)
        if source:
            self.raw.bind((source, 0))
        self.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.raw.connect(("127.0.0.1", port))
        self._buffer = b""

    def say_hello(self) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self.raw.sendall(
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: gearlink.v1\r\n\r\n".encode()
        )

    def hear_hello(self) -> None:
        """Raises BenchFailed if the upgrade is refused."""
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += self._more()
        head, _blank, self._buffer = self._buffer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise BenchFailed(f"the upgrade was refused: {head.splitlines()[0].decode(errors='replace')}")

    def say_auth(self, access_token: str) -> None:
        self.raw.sendall(masked(json.dumps({"type": "auth", "accessToken": access_token}).encode()))

    def hear_until(self, type: str) -> dict[str, Any]:
        """Reads frames up to the first of this type."""
        while True:
            frame: dict[str, Any] = json.loads(self._frame())
            if frame["type"] == type:
                return frame
            if frame["type"] in ("error", "session:goodbye"):
                raise BenchFailed(f"the server says {frame}")

    def _frame(self) -> bytes:
        while (found := _split_frame(self._buffer)) is None:
            self._buffer += self._more()
        payload, self._buffer = found
        return payload

    def _more(self) -> bytes:
        data = self.raw.recv(RECEIVE_BYTES)
        if not data:
            raise BenchFailed("the server closed a socket")
        return data

    def set_loose(self) -> None:
        """From now on the socket never blocks, and what it receives is the caller's. Nothing may be waiting."""
        if self._buffer:
            raise BenchFailed("frames came before they were expected")
        self.raw.setblocking(False)

    def send(self, frame: bytes) -> None:
        """Sends all of a frame, waiting for the peer if it has to."""
        view = memoryview(frame)
        while view:
            try:
                view = view[self.raw.send(view) :]
            except BlockingIOError:
                if not select.select([], [self.raw], [], TIMEOUT_SECONDS)[1]:
                    raise BenchFailed("the server does not read") from None

    def close(self) -> None:
        self.raw.close()


def _split_frame(data: bytes) -> tuple[bytes, bytes] | None:
    """The first frame's payload and the rest; None if it is not complete. Servers do not mask, so neither is undone."""
    if len(data) < 2:
        return None
    size, start = data[1] & 0x7F, 2
    if size == 126:
        size, start = int.from_bytes(data[2:4], "big"), 4
    elif size == 127:
        size, start = int.from_bytes(data[2:10], "big"), 10
    if len(data) < start + size:
        return None
    return data[start : start + size], data[start + size :]


def open_sockets(port: int, access_tokens: list[str], sources: list[str] | None = None) -> list[Socket]:
    """Signed-in sockets that have caught up, opened side by side: everybody speaks before anybody is listened to."""
    sources = sources or [""] * len(access_tokens)
    sockets = [Socket(port, source) for source in sources]
    for each in sockets:
        each.say_hello()
    for each in sockets:
        each.hear_hello()
    for each, access_token in zip(sockets, access_tokens, strict=True):
        each.say_auth(access_token)
    for each in sockets:
        each.hear_until("auth:ok")
        each.hear_until("sync:done")
    return sockets


class Counter:
    """Counts a pattern in a stream that arrives in pieces. The pattern cannot overlap itself."""

    def __init__(self, pattern: bytes) -> None:
        self.pattern = pattern
        self.count = 0
        self._tail = b""

    def feed(self, data: bytes) -> int:
        """Counts on; returns how many were found. What lies over the border of two pieces is found once."""
        keep = len(self.pattern) - 1
        # The joined strip is too short on either side for a whole pattern: what is found in it lies over the border.
        found = data.count(self.pattern) + (self._tail + data[:keep]).count(self.pattern)
        self._tail = (self._tail + data)[-keep:] if len(data) < keep else data[-keep:]
        self.count += found
        return found


class Audit:
    """Follows the sequence numbers of a stream that arrives in pieces: each has to be one more than the last."""

    def __init__(self) -> None:
        self.first = self.last = 0
        self._tail = b""

    def feed(self, data: bytes) -> None:
        data = self._tail + data
        end = 0
        for found in _SEQUENCE.finditer(data):
            if found.end() == len(data):
                break  # its digits may go on in the next piece
            end = found.end()
            number = int(found[1])
            if self.last and number != self.last + 1:
                raise BenchFailed(f"sequence number {number} came after {self.last}")
            self.first, self.last = self.first or number, number
        self._tail = data[max(end, len(data) - 40) :]


class Reader:
    """One member who only listens: how many messages came, and a checksum of every byte."""

    def __init__(self) -> None:
        self.messages = Counter(b'"type":"message:new"')
        self.checksum = 1

    def feed(self, data: bytes) -> int:
        self.checksum = zlib.adler32(data, self.checksum)
        return self.messages.feed(data)


class Crowd:
    """Many open sockets, of which it is counted what they hear."""

    def __init__(self, sockets: list[Socket]) -> None:
        self.sockets = sockets
        self._poll = select.epoll()
        self._places = {each.raw.fileno(): place for place, each in enumerate(sockets)}
        for each in sockets:
            each.set_loose()
            self._poll.register(each.raw.fileno(), select.EPOLLIN)

    def hear(self, pattern: bytes, count: int = 1, *, noted: bytes = b"") -> tuple[float, list[float]]:
        """Reads until each socket was sent `pattern` so often.

        The time when the last one was, and the times at which the last of the sockets was sent `noted`, of `perf_counter`.
        Raises BenchFailed if nothing comes any more.
        """
        counters = [Counter(pattern) for _ in self.sockets]
        listener, times, missing = Counter(noted or pattern), list[float](), len(self.sockets)
        while missing:
            ready = self._poll.poll(TIMEOUT_SECONDS)
            if not ready:
                raise BenchFailed(f"{missing:,} of {len(self.sockets):,} sockets did not hear {pattern.decode()}")
            for number, _event in ready:
                place = self._places[number]
                data = self.sockets[place].raw.recv(RECEIVE_BYTES)
                if not data:
                    raise BenchFailed("the server closed a socket")
                if place == len(self.sockets) - 1:
                    times += [perf_counter()] * listener.feed(data)
                before = counters[place].count
                counters[place].feed(data)
                missing -= before < count <= counters[place].count
        return perf_counter(), times

    def drain(self, quiet_seconds: float) -> None:
        """Reads until for so long nothing has come."""
        while ready := self._poll.poll(quiet_seconds):
            for number, _event in ready:
                if not self.sockets[self._places[number]].raw.recv(RECEIVE_BYTES):
                    raise BenchFailed("the server closed a socket")

    def close(self) -> None:
        self._poll.close()
        for each in self.sockets:
            each.close()


class Http:
    """One keep-alive connection, for REST calls one after the other."""

    def __init__(self, port: int, access_token: str = "") -> None:
        self.raw = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS)
        self.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._fields = "Host: 127.0.0.1\r\n" + (f"Authorization: Bearer {access_token}\r\n" if access_token else "")
        self._buffer = b""

    def get(self, path: str) -> bytes:
        """The bytes of a GET."""
        return f"GET {path} HTTP/1.1\r\n{self._fields}\r\n".encode()

    def feed(self, data: bytes) -> bytes | None:
        """The body of the answer once it is complete. Raises BenchFailed for one that is not 2xx."""
        self._buffer += data
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return None
        size = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        length = int(size[1]) if size else 0
        if len(rest) < length:
            return None
        if not head.startswith(b"HTTP/1.1 2"):
            raise BenchFailed(f"the server answers {head.splitlines()[0].decode()} {rest[:200].decode()}")
        self._buffer = rest[length:]
        return rest[:length]

    def request(self, method: str, path: str, form: dict[str, Any] | None = None) -> bytes:
        """The bytes of any call, with a form as JSON if there is one."""
        body = b"" if form is None else json.dumps(form).encode()
        kind = "" if form is None else "Content-Type: application/json\r\n"
        head = f"{method} {path} HTTP/1.1\r\n{self._fields}{kind}Content-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body

    def call(self, request: bytes) -> bytes:
        """Sends a request; the body of its answer. Raises BenchFailed."""
        self.raw.sendall(request)
        while True:
            data = self.raw.recv(RECEIVE_BYTES)
            if not data:
                raise BenchFailed("the server closed a connection")
            if (body := self.feed(data)) is not None:
                return body

    def timed_ms(self, request: bytes) -> float:
        """As `call`; the milliseconds from the first byte that is sent to the last that comes."""
        started = perf_counter_ns()
        self.call(request)
        return (perf_counter_ns() - started) / 1e6

    def post(self, path: str, form: dict[str, Any]) -> Any:
        """POST and its answer, one after the other."""
        return json.loads(self.call(self.request("POST", path, form)) or b"null")

    def close(self) -> None:
        self.raw.close()
