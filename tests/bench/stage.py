"""What figures are measured on: the server as a process on its own core, people who signed up, and their conversations.

The generator keeps to its own core for the whole run; whatever it starts to be measured is pinned to the other one. On a
machine with one core both share it, and the report says so. Everything is on loopback and in a temporary directory.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench.seeding import Sowing, phone_number, sow
from tests.bench.wire import BenchFailed, Http
from tests.process import REPOSITORY, ServerProcess, running


@dataclass(frozen=True)
class Scale:
    """How much is measured: how often each figure is taken, for how long, and how large the large things are."""

    repetitions: int
    seconds: float
    sockets: int
    history: int
    amended: tuple[int, ...]  # the messages of conversations that are opened
    calls: int  # of each kind that are timed one by one, in each repetition
    missed: int  # messages that come while a device is off


FULL = Scale(
    repetitions=5, seconds=4.0, sockets=10_000, history=100_000, amended=(100, 10_000, 200_000), calls=200, missed=1_000
)
SHORT = Scale(repetitions=3, seconds=1.5, sockets=1_000, history=20_000, amended=(100, 10_000), calls=50, missed=200)


@dataclass(frozen=True)
class Person:
    """Somebody who signed up, on one device."""

    user_id: str
    access_token: str
    device_id: str
    refresh_token: str
    phone_number: str


class Stage:
    """Where things are measured: the two cores, and a directory on the disk that is measured too."""

    def __init__(self, directory: Path, scale: Scale) -> None:
        self.directory, self.scale = directory, scale
        cores = sorted(os.sched_getaffinity(0))
        self.load_core, self.server_core = cores[0], cores[-1]
        self._runs = 0
        os.sched_setaffinity(0, {self.load_core})

    @contextmanager
    def on_server_core(self) -> Iterator[None]:
        """Processes that are started inside inherit the server's core."""
        os.sched_setaffinity(0, {self.server_core})
        try:
            yield
        finally:
            os.sched_setaffinity(0, {self.load_core})

    @contextmanager
    def server(
        self,
        prefix: tuple[str, ...] = (),
        *,
        sowing: Sowing | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Iterator["Served"]:
        """A fresh server that can be used, with nothing in its store but what `sowing` has put there."""
        self._runs += 1
        home = self.directory / f"run-{self._runs}"
        home.mkdir()
        if sowing is not None:
            sow(home / "data", sowing)
        with self.on_server_core():
            process = ServerProcess(home / "data", home / "log", prefix=prefix, settings=settings)
        with running(process):
            yield Served(process)

    @contextmanager
    def reference(self, kind: str) -> Iterator[tuple[int, int]]:
        """A raw reference of `tests.bench.reference` on the server's core: its port and its process id."""
        with self.on_server_core():
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.reference", kind], stdout=subprocess.PIPE, cwd=REPOSITORY
            )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise BenchFailed(f"the reference {kind} did not start")
            yield int(line), process.pid
        finally:
            process.kill()
            process.wait()


class Served:
    """A running server and the people on it."""

    def __init__(self, process: ServerProcess) -> None:
        self.process = process
        self.port = urlsplit(process.url()).port or 0
        self._numbers = 0

    def sign_up(self, count: int) -> list[Person]:
        """So many people, each on one device; those who were sown come first."""
        http = Http(self.port)
        people = []
        for _ in range(count):
            self._numbers += 1
            people.append(self._enter(http, phone_number(self._numbers)))
        http.close()
        return people

    def another_device(self, person: Person) -> Person:
        """The same user on a further device."""
        http = Http(self.port)
        entered = self._enter(http, person.phone_number)
        http.close()
        return entered

    def _enter(self, http: Http, number: str) -> Person:
        asked = http.post("/api/v1/auth/verify/request", {"phoneNumber": number})
        form = {
            "verificationId": asked["verificationId"],
            "code": self.process.code(number),
            "device": {"name": "bench", "type": "bot"},
        }
        entered = http.post("/api/v1/auth/verify/confirm", form)
        user_id, device_id = entered["user"]["id"], entered["device"]["id"]
        return Person(user_id, entered["accessToken"], device_id, entered["refreshToken"], number)

    def group(self, people: list[Person]) -> str:
        """A conversation of them all, readable to the server; the first one is its owner."""
        http = Http(self.port, people[0].access_token)
        members = [each.user_id for each in people[1:]]
        form = {"type": "group", "name": "bench", "memberIds": members, "encryption": "server"}
        created = http.post("/api/v1/conversations", form)
        http.close()
        return str(created["id"])


def memory_kib(pid: int) -> int:
    """Resident memory of a process, its share of what it shares counted in."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise BenchFailed("the kernel tells no Rss")


def cpu_seconds(pid: int) -> float:
    """What a process has used of its core, all threads, in and out of the kernel. Unlike time it suffers from no other
    program on the machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def open_stage(scale: Scale, parent: Path | None) -> Iterator[Stage]:
    """A stage in a directory that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="gearlink-bench-", dir=parent) as directory:
        yield Stage(Path(directory), scale)
