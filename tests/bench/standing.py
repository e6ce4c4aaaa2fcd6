"""The figures of a server that has little to do or much to hold: its start, its memory, idle sockets, old history."""

import random
import resource
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, perf_counter, sleep

import msgspec

from tests.bench.report import Figure
from tests.bench.stage import Served, Stage, cpu_seconds, memory_kib
from tests.bench.talking import Room
from tests.bench.wire import RECEIVE_BYTES, TIMEOUT_SECONDS, BenchFailed, Http, Socket, open_sockets, send_frame

_SETTLE_SECONDS = 1.0
_OPEN_AT_ONCE = 200
_PORTS_PER_ADDRESS = 20_000  # of some 28,000 that Linux gives out for one address


# --- start and rest --------------------------------------------------------------------------------------------------


def start(stage: Stage) -> list[Figure]:
    """From the start of the process on an empty disk to the ack of the first message, signing up included."""
    samples, raws = [], []
    for _ in range(stage.scale.repetitions):
        with stage.server() as served:
            person = served.sign_up(1)
            conversation_id = served.group(person)
            (socket,) = open_sockets(served.port, [person[0].access_token])
            socket.send(send_frame(b"1", conversation_id, b"hello"))
            socket.hear_until("message:ack")
            samples.append(monotonic() - served.process.started_at)
            socket.close()
        with stage.on_server_core():
            started = monotonic()
            subprocess.run([sys.executable, "-c", "import trio"], check=True)
            raws.append(monotonic() - started)
    name = "a Python that imports trio"
    return [Figure("start to the first ack", "s", tuple(samples), name, tuple(raws), 1.5, less_is_better=True)]


def rest(stage: Stage) -> list[Figure]:
    """Resident memory of a server that has just started, and of a bare trio process."""
    samples, raws = [], []
    for _ in range(stage.scale.repetitions):
        with stage.server() as served, stage.reference("idle") as (_port, pid):
            sleep(_SETTLE_SECONDS)
            samples.append(memory_kib(served.process.pid) / 1024)
            raws.append(memory_kib(pid) / 1024)
    name = "a bare trio process"
    return [Figure("memory at rest", "MiB", tuple(samples), name, tuple(raws), 120, less_is_better=True)]


# --- idle sockets ----------------------------------------------------------------------------------------------------


def idle(stage: Stage) -> list[Figure]:
    """Many authenticated sockets that say nothing: what each costs, and all of them. Measured once: it is a sum."""
    count = _affordable_sockets(stage.scale.sockets)
    with stage.server() as served:
        people = served.sign_up(100)
        before = _settled_memory(served.process.pid)
        tokens = [people[number % len(people)].access_token for number in range(count)]
        sockets: list[Socket] = []
        for first in range(0, count, _OPEN_AT_ONCE):
            batch = tokens[first : first + _OPEN_AT_ONCE]
            sources = [f"127.0.0.{1 + (first + each) // _PORTS_PER_ADDRESS}" for each in range(len(batch))]
            sockets += open_sockets(served.port, batch, sources)
        after = _settled_memory(served.process.pid)
        for each in sockets:
            each.close()
    with stage.reference("idle") as (port, pid):
        raw_before = memory_kib(pid)
        raw = [Socket(port, f"127.0.0.{1 + number // _PORTS_PER_ADDRESS}") for number in range(count)]
        raw_after = _settled_memory(pid)
        for each in raw:
            each.close()
    name = "bare trio streams"
    each_kib, raw_kib = (after - before) / count, (raw_after - raw_before) / count
    return [
        Figure(f"one of {count:,} idle sockets", "KiB", (each_kib,), name, (raw_kib,), 34, less_is_better=True),
        Figure(
            f"server with {count:,} idle sockets",
            "MiB",
            (after / 1024,),
            name,
            (raw_after / 1024,),
            512,
            less_is_better=True,
        ),
    ]


def _settled_memory(pid: int) -> int:
    sleep(_SETTLE_SECONDS)
    return memory_kib(pid)


def _affordable_sockets(wanted: int) -> int:
    """As many as are wanted, or as the system lets this process open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    spare = 200
    if soft == resource.RLIM_INFINITY or wanted + spare <= soft:
        return wanted
    print(f"  only {soft - spare:,} sockets: this system allows {soft:,} open files a process (ulimit -n)", flush=True)
    return soft - spare


# --- history ---------------------------------------------------------------------------------------------------------


class _Message(msgspec.Struct, rename="camel"):
    sequence_number: int


class _Page(msgspec.Struct):
    items: list[_Message]


_decode_page = msgspec.json.Decoder(_Page).decode
_PAGE = 50
_CONNECTIONS = 8
_CHECK_EVERY = 20  # one of so many pages is read through


def history(stage: Stage) -> list[Figure]:
    """Pages of 50, anywhere in a long conversation, over REST on several keep-alive connections."""
    length = stage.scale.history
    with stage.server() as served:
        people = served.sign_up(4)
        conversation_id = served.group(people)
        _fill(served, [each.access_token for each in people], conversation_id, length)
        path = f"/api/v1/conversations/{conversation_id}/messages?limit={_PAGE}&before="
        places = random.Random(1)
        pages, healths, costs, raw_costs = [], [], [], []
        calls = _Calls(served.port, people[0].access_token)
        for _ in range(stage.scale.repetitions):
            before = cpu_seconds(served.process.pid)
            pages.append(calls.run(stage.scale.seconds, lambda: places.randint(_PAGE + 1, length), path))
            between = cpu_seconds(served.process.pid)
            costs.append((between - before) / pages[-1] / stage.scale.seconds * 1e6)
            healths.append(calls.run(stage.scale.seconds / 2, lambda: 0, "/healthz"))
            raw_costs.append((cpu_seconds(served.process.pid) - between) / healths[-1] / stage.scale.seconds * 2e6)
        calls.close()
    name = "/healthz on the same connections"
    label = f"pages of {_PAGE} of {length:,}"
    return [
        Figure(label, "a second", tuple(pages), name, tuple(healths), 1_500),
        Figure("processor time of one page", "µs", tuple(costs), name, tuple(raw_costs), less_is_better=True),
    ]


def _fill(served: Served, access_tokens: list[str], conversation_id: str, length: int) -> None:
    """Sends until the conversation is so long."""
    sockets = open_sockets(served.port, access_tokens)
    room = Room(sockets, len(sockets) - 1, 64, conversation_id)
    while room.acked < length:
        room.run(0.5)
    for each in sockets:
        each.close()


class _Calls:
    """GETs on several connections side by side, one after the other on each."""

    def __init__(self, port: int, access_token: str) -> None:
        self._port, self._access_token = port, access_token
        self._connections: dict[int, Http] = {}
        self._asked: dict[int, int] = {}
        self._poll = select.epoll()
        for _ in range(_CONNECTIONS):
            self._open()

    def _open(self) -> int:
        http = Http(self._port, self._access_token)
        number = http.raw.fileno()
        self._connections[number] = http
        self._poll.register(number, select.EPOLLIN)
        return number

    def _reopen(self, number: int) -> int:
        """Servers may close a connection after so many requests; between two of them that is no failure."""
        self._poll.unregister(number)
        self._connections.pop(number).close()
        return self._open()

    def run(self, seconds: float, before: Callable[[], int], path: str) -> float:
        """Answers a second. `before` gives what is added to `path` (0: nothing), and what a page is checked against."""
        answered = 0
        started = perf_counter()
        for number in list(self._connections):
            self._ask(number, before(), path)
        while self._asked:
            ready = self._poll.poll(TIMEOUT_SECONDS)
            if not ready:
                raise BenchFailed("no answers come any more")
            for number, _event in ready:
                if (body := self._hear(number, path)) is None:
                    continue
                asked = self._asked.pop(number)
                if asked and answered % _CHECK_EVERY == 0:
                    _check_page(body, asked)
                answered += 1
                if perf_counter() < started + seconds:
                    self._ask(number, before(), path)
        return answered / (perf_counter() - started)

    def _ask(self, number: int, before: int, path: str) -> None:
        http = self._connections[number]
        self._asked[number] = before
        http.raw.sendall(http.get(f"{path}{before}" if before else path))

    def _hear(self, number: int, path: str) -> bytes | None:
        """The body of an answer once it is complete; a connection that was closed asks again on another one."""
        if number not in self._asked:
            self._reopen(number)
            return None
        try:
            data = self._connections[number].raw.recv(RECEIVE_BYTES)
        except ConnectionResetError:
            data = b""
        if data:
            return self._connections[number].feed(data)
        before = self._asked.pop(number)
        self._ask(self._reopen(number), before, path)
        return None

    def close(self) -> None:
        self._poll.close()
        for each in self._connections.values():
            each.close()


def _check_page(body: bytes, before: int) -> None:
    numbers = [each.sequence_number for each in _decode_page(body).items]
    if numbers != list(range(before - 1, before - 1 - _PAGE, -1)):
        raise BenchFailed(f"the page before {before} holds {numbers}")
