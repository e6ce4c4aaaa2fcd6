"""The figures of messages on their way: how many a busy room carries, and how long one takes.

Everything here is sent and received by one thread that asks the kernel which sockets are ready. In the open loop and with
one message in flight it asks without pause: it has a core to itself, and to fall asleep would be measured as well.
"""

import os
import re
import select
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, perf_counter_ns

from tests.bench.report import Figure, percentile
from tests.bench.stage import Stage, cpu_seconds
from tests.bench.wire import (
    RECEIVE_BYTES,
    TIMEOUT_SECONDS,
    Audit,
    BenchFailed,
    Counter,
    Reader,
    Socket,
    open_sockets,
    send_frame,
)

_TEXT = b"x" * 200
_RECORD_BYTES = 300
Framing = Callable[[bytes, str], bytes]
"""The frame that sends a message, from its `tempId` and the conversation."""


# --- a busy room -----------------------------------------------------------------------------------------------------


class Room:
    """Members of one conversation, some of whom send with a number of messages in flight. Every byte is accounted for; with
    a `frame` of the caller's, every message."""

    def __init__(
        self, sockets: list[Socket], senders: int, in_flight: int, conversation_id: str, frame: Framing | None = None
    ) -> None:
        self._sockets, self._senders, self._in_flight = sockets, senders, in_flight
        self._conversation_id = conversation_id
        self._frame, self._is_same = frame or partial(send_frame, content=_TEXT), frame is None
        self._acks = [Counter(b'"type":"message:ack"') for _ in range(senders)]
        self._readers = [Reader() for _ in sockets]
        self._audit = Audit()
        self._sent = 0
        self._poll = select.epoll()
        self._places = {each.raw.fileno(): place for place, each in enumerate(sockets)}
        for each in sockets:
            each.set_loose()
            self._poll.register(each.raw.fileno(), select.EPOLLIN)

    @property
    def acked(self) -> int:
        return sum(each.count for each in self._acks)

    @property
    def delivered(self) -> int:
        return sum(each.messages.count for each in self._readers)

    def run(self, seconds: float) -> tuple[float, float]:
        """Sends for so long and waits for the last delivery; accepted messages and deliveries a second."""
        acked, delivered = self.acked, self.delivered
        started = perf_counter()
        for place in range(self._senders):
            self._send(place, self._in_flight)
        while perf_counter() < started + seconds:
            self._step(sending=True)
        while self.acked < self._sent or self.delivered < self._sent * (len(self._sockets) - 1):
            self._step(sending=False)
        took = perf_counter() - started
        self._check()
        return (self.acked - acked) / took, (self.delivered - delivered) / took

    def _send(self, place: int, count: int) -> None:
        frames = []
        for _ in range(count):
            self._sent += 1
            frames.append(self._frame(b"%d" % self._sent, self._conversation_id))
        self._sockets[place].send(b"".join(frames))

    def _step(self, *, sending: bool) -> None:
        ready = self._poll.poll(TIMEOUT_SECONDS)
        if not ready:
            raise BenchFailed(
                f"nothing comes any more: {self._sent:,} sent, {self.acked:,} acknowledged, {self.delivered:,} delivered"
            )
        for number, _event in ready:
            place = self._places[number]
            data = self._sockets[place].raw.recv(RECEIVE_BYTES)
            if not data:
                raise BenchFailed("the server closed a socket")
            self._readers[place].feed(data)
            if place < self._senders:
                acked = self._acks[place].feed(data)
                if acked and sending:
                    self._send(place, acked)
            elif place == len(self._sockets) - 1:
                self._audit.feed(data)

    def _check(self) -> None:
        """All is there: each sender heard of everything, in acks or deliveries, and all listeners the same bytes."""
        if self._audit.last - self._audit.first + 1 != self._sent:
            raise BenchFailed(f"{self._sent:,} sent, numbers {self._audit.first} to {self._audit.last} delivered")
        for place, reader in enumerate(self._readers):
            acks = self._acks[place].count if place < self._senders else 0
            if reader.messages.count + acks != self._sent:
                raise BenchFailed(f"member {place} got {reader.messages.count:,} and {acks:,} acks of {self._sent:,}")
        if self._is_same and len({reader.checksum for reader in self._readers[self._senders :]}) != 1:
            raise BenchFailed("two members who only listened were sent different bytes")


def _with_cpu(room: Room, seconds: float, pid: int) -> tuple[float, float, float]:
    """What `Room.run` tells, and the microseconds of its core that the server needed for each message."""
    before, acked = cpu_seconds(pid), room.acked
    accepted, deliveries = room.run(seconds)
    return accepted, deliveries, (cpu_seconds(pid) - before) / (room.acked - acked) * 1e6


def throughput(stage: Stage) -> list[Figure]:
    """50 members online in one conversation, 10 of them sending with 4 in flight, 200 bytes each."""
    scale = stage.scale
    with stage.server() as served, stage.reference("room") as (port, pid):
        people = served.sign_up(50)
        conversation_id = served.group(people)
        sockets = open_sockets(served.port, [each.access_token for each in people])
        room = Room(sockets, 10, 4, conversation_id)
        room.run(scale.seconds / 2)
        raw = Room(open_sockets(port, [""] * 50), 10, 4, "")
        raw.run(scale.seconds / 4)
        samples, raws = [], []
        for _ in range(scale.repetitions):
            samples.append(_with_cpu(room, scale.seconds, served.process.pid))
            raws.append(_with_cpu(raw, scale.seconds / 2, pid))
    name = "a bare server that stores nothing"
    accepted, deliveries, costs = zip(*samples, strict=True)
    raw_accepted, raw_deliveries, raw_costs = zip(*raws, strict=True)
    return [
        Figure("accepted messages", "a second", accepted, name, raw_accepted, 8_000),
        Figure("deliveries", "a second", deliveries, name, raw_deliveries, 400_000),
        Figure("processor time of one message", "µs", costs, name, raw_costs, less_is_better=True),
    ]


# --- how long one takes ----------------------------------------------------------------------------------------------


@dataclass
class _Echo:
    """A raw TCP connection to a process that sends back what it gets."""

    socket: Socket

    def times_ms(self, count: int) -> list[float]:
        payload, times = b"x" * _RECORD_BYTES, []
        for _ in range(count):
            started = perf_counter_ns()
            self.socket.send(payload)
            _receive_spinning(self.socket, lambda data, got=[0]: _enough(got, data))  # type: ignore[misc]
            times.append((perf_counter_ns() - started) / 1e6)
        return times


def _enough(got: list[int], data: bytes) -> bool:
    got[0] += len(data)
    return got[0] >= _RECORD_BYTES


def _receive_spinning(socket: Socket, complete: Callable[[bytes], bool]) -> None:
    """Reads, without ever falling asleep, until what came is complete."""
    until = perf_counter() + TIMEOUT_SECONDS
    while perf_counter() < until:
        try:
            data = socket.raw.recv(RECEIVE_BYTES)
        except BlockingIOError:
            continue
        if not data:
            raise BenchFailed("the server closed a socket")
        if complete(data):
            return
    raise BenchFailed("no answer came")


def sync_times_ms(directory: Path, count: int) -> list[float]:
    """How long the disk takes to make one appended record durable."""
    file = os.open(directory / "sync-reference", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    times = []
    try:
        for _ in range(count):
            started = perf_counter_ns()
            os.write(file, b"x" * _RECORD_BYTES)
            os.fdatasync(file)
            times.append((perf_counter_ns() - started) / 1e6)
    finally:
        os.close(file)
    return times


def one_in_flight(stage: Stage) -> list[Figure]:
    """Two people online, one message at a time: from the send to its ack."""
    count = int(stage.scale.seconds * 250)
    acks, syncs, echoes = [], [], []
    with stage.server() as served, stage.reference("echo") as (port, _pid):
        people = served.sign_up(2)
        conversation_id = served.group(people)
        sender, listener = open_sockets(served.port, [each.access_token for each in people])
        sender.set_loose()
        listener.set_loose()
        echo = _Echo(Socket(port))
        echo.socket.set_loose()
        sent = 0
        for _ in range(stage.scale.repetitions):
            times = []
            for _ in range(count):
                sent += 1
                frame, counter = send_frame(b"%d" % sent, conversation_id, _TEXT), Counter(b'"type":"message:ack"')
                started = perf_counter_ns()
                sender.send(frame)
                _receive_spinning(sender, lambda data, counter=counter: counter.feed(data) > 0)  # type: ignore[misc]
                times.append((perf_counter_ns() - started) / 1e6)
                _drain(listener)
            acks.append(percentile(times, 0.5))
            echoes.append(percentile(echo.times_ms(count), 0.5))
            syncs.append(percentile(sync_times_ms(stage.directory, count), 0.5))
    return [
        Figure("ack, p50", "ms", tuple(acks), "one fdatasync of 300 bytes", tuple(syncs), 2.0, less_is_better=True),
        Figure("ack, p50, beside the network", "ms", tuple(acks), "a TCP echo", tuple(echoes), less_is_better=True),
    ]


def _drain(socket: Socket) -> None:
    with suppress(BlockingIOError):
        socket.raw.recv(RECEIVE_BYTES)


_STAMP = re.compile(rb'"content":"(\d{20})')


def open_loop(stage: Stage) -> list[Figure]:
    """1,000 messages a second into a room of 20, each at its time whatever became of the last; 5 people send."""
    p50s, p99s, echoes50, echoes99 = [], [], [], []
    with stage.server() as served, stage.reference("echo") as (port, _pid):
        people = served.sign_up(20)
        conversation_id = served.group(people)
        sockets = open_sockets(served.port, [each.access_token for each in people])
        for each in sockets:
            each.set_loose()
        echo = _Echo(Socket(port))
        echo.socket.set_loose()
        _scheduled(sockets, conversation_id, 500, "warm")
        for repetition in range(stage.scale.repetitions):
            times = _scheduled(sockets, conversation_id, int(1000 * stage.scale.seconds), f"r{repetition}")
            p50s.append(percentile(times, 0.5))
            p99s.append(percentile(times, 0.99))
            raw = echo.times_ms(1000)
            echoes50.append(percentile(raw, 0.5))
            echoes99.append(percentile(raw, 0.99))
    name = "a TCP echo"
    return [
        Figure("send to receipt, p50", "ms", tuple(p50s), name, tuple(echoes50), 3.0, less_is_better=True),
        Figure("send to receipt, p99", "ms", tuple(p99s), name, tuple(echoes99), 25.0, less_is_better=True),
    ]


def _scheduled(sockets: list[Socket], conversation_id: str, count: int, name: str) -> list[float]:
    """The milliseconds from the moment when each message was due to its receipt, for every receipt."""
    tails = [b""] * len(sockets)
    times: list[float] = []
    poll = select.epoll()
    places = {each.raw.fileno(): place for place, each in enumerate(sockets)}
    for number in places:
        poll.register(number, select.EPOLLIN)
    started, sent, heard_at = perf_counter_ns() + 10_000_000, 0, perf_counter()
    expected = count * (len(sockets) - 1)
    while len(times) < expected:
        due = started + sent * 1_000_000
        if sent < count and perf_counter_ns() >= due:
            content = b"%020d" % due + _TEXT[20:]
            sockets[sent % 5].send(send_frame(f"{name}-{sent}".encode(), conversation_id, content))
            sent += 1
        for number, _event in poll.poll(0):
            place = places[number]
            data = tails[place] + sockets[place].raw.recv(RECEIVE_BYTES)
            now, end = perf_counter_ns(), 0
            for found in _STAMP.finditer(data):
                times.append((now - int(found[1])) / 1e6)
                end = found.end()
            tails[place] = data[max(end, len(data) - 40) :]
            heard_at = perf_counter()
        if perf_counter() > heard_at + TIMEOUT_SECONDS:
            raise BenchFailed(f"{len(times):,} of {expected:,} deliveries came")
    return times
