"""The order of things inside the server: for each acknowledgement, the sync of its message came before.

Where `strace` is there and permitted, the system calls of a real server are traced while clients send: a message's
`tempId` is seen in the write to the write-ahead log, then the end of an fdatasync of that file that began after the write,
and only then the ack in a write to a socket. Elsewhere a server runs in this process with a storage engine that records
its writes and syncs. Either way the result is one list of steps, and `check_order` judges it.
"""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from os import kill
from pathlib import Path
from typing import Literal

import trio

from tests.process import ServerProcess, running
from tests.proof.client import CodeOf, Device, World, body_of, codes_of, sign_in

MESSAGES = 400
TEMP_ID = re.compile(r"[0-9a-f]{6}-[0-9]{7}")
_ACK = re.compile(r'\\"type\\":\\"message:ack\\",\\"tempId\\":\\"([0-9a-f]{6}-[0-9]{7})')
_REST_ACK = re.compile(r'\\"tempId\\":\\"([0-9a-f]{6}-[0-9]{7})')
_CALL = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(?:\((\d+)<([^>]*)>)?")
_STRACE = ("strace", "-f", "-y", "-s", "4000000", "-e", "trace=write,writev,sendto,sendmsg,fdatasync,fsync")


class NotSynced(Exception):
    """A message was acknowledged before it was durable, or the trace does not show what it has to."""


@dataclass(frozen=True)
class Step:
    """One step of the server. `temp_ids` are the messages that it writes or tells; syncs have none."""

    kind: Literal["written", "sync began", "sync ended", "told"]
    file: str = ""
    temp_ids: tuple[str, ...] = ()


def check_order(steps: list[Step]) -> tuple[int, int]:
    """How many messages were acknowledged, and how many syncs there were. Raises NotSynced at the first early ack."""
    written: dict[str, tuple[str, int]] = {}  # tempId: file, and the place of its last write
    began: dict[str, int] = {}  # file: the place where the running sync began
    synced: dict[str, int] = {}  # file: all that was written before this place is durable
    told: set[str] = set()
    syncs = 0
    for place, step in enumerate(steps):
        if step.kind == "written":
            written.update(dict.fromkeys(step.temp_ids, (step.file, place)))
        elif step.kind == "sync began":
            began[step.file] = place
        elif step.kind == "sync ended":
            synced[step.file] = began.pop(step.file)
            syncs += 1
        else:
            for temp_id in step.temp_ids:
                told.add(temp_id)
                if temp_id not in written:
                    raise NotSynced(f"message {temp_id} was acknowledged before it was written to the log")
                file, at = written[temp_id]
                if synced.get(file, -1) < at:
                    raise NotSynced(f"message {temp_id} was acknowledged before {Path(file).name} was synced")
    return len(told), syncs


# --- strace ----------------------------------------------------------------------------------------------------------


def can_strace() -> bool:
    """Whether strace is installed and may trace."""
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return tried.returncode == 0


def steps_of(lines: Iterator[str]) -> Iterator[Step]:
    """The steps in an strace log. A line stands where its call began; one that took long has a second line at its end."""
    syncing: dict[str, str] = {}  # thread: file
    for line in lines:
        if (call := _CALL.match(line)) is None:
            continue
        thread, name, _number, target = call.groups()
        if name in ("fdatasync", "fsync"):
            if target is not None:
                syncing[thread] = target
                yield Step("sync began", target)
            if (
                "unfinished" not in line
                and (file := syncing.pop(thread, None)) is not None
                and line.rstrip().endswith("= 0")
            ):
                yield Step("sync ended", file)
        elif target is not None and target.endswith(".log"):
            yield Step("written", target, tuple(TEMP_ID.findall(line)))
        elif target is not None and target.startswith(("socket:", "TCP:")) and (temp_ids := acknowledged_in(line)):
            yield Step("told", target, temp_ids)


def acknowledged_in(text: str) -> tuple[str, ...]:
    """The messages that are acknowledged in what goes to a socket, written as strace does: frames, or a REST answer."""
    return tuple(_ACK.findall(text) or (_REST_ACK.findall(text) if "message:new" not in text else ()))


def _strace(directory: Path) -> list[Step]:
    log = directory / "strace"
    server = ServerProcess(directory / "data", directory / "server.err", prefix=(*_STRACE, "-o", str(log)))
    with running(server):
        trio.run(send_some, World(server.url(), 0), codes_of(server))
        traced = int(Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()[0])
        kill(traced, signal.SIGTERM)  # the tracer ends with what it traces
        server.wait()
    with log.open(errors="replace") as lines:
        return list(steps_of(lines))


async def send_some(world: World, code_of: CodeOf) -> None:
    """Two people who send over sockets and REST, until enough is acknowledged."""
    one, two = [await sign_in(world, code_of, f"+1555123900{number}") for number in range(2)]
    async with world.http(one.access_token) as http:
        form = {"type": "direct", "memberIds": [two.user_id], "encryption": "server"}
        conversation = body_of(await http.post("/conversations", json=form))["id"]
    enough = trio.Event()

    def count() -> None:
        if len(world.ledger.acks) >= MESSAGES:
            enough.set()

    world.on_ack = count
    world.open.set()
    async with trio.open_nursery() as nursery:
        for identity in (one, two):
            device = Device(world, identity, [conversation], sends=True)
            nursery.start_soon(device.live)
            nursery.start_soon(device.rest)
        with trio.fail_after(60):
            await enough.wait()
        nursery.cancel_scope.cancel()


# --- the proof --------------------------------------------------------------------------------------------------------


def prove(directory: Path) -> str:
    """Runs the trace; a line with its figures. Raises NotSynced."""
    directory.mkdir()
    if can_strace():
        method, steps = "strace of a server's system calls", _strace(directory)
    else:
        from tests.proof.recording import recorded  # the whole server comes with it: only where it is needed

        method, steps = "a recording engine, because strace is missing or not permitted", trio.run(recorded, directory)
    told, syncs = check_order(steps)
    if told < MESSAGES:
        raise NotSynced(f"the trace shows only {told} acknowledgements of {MESSAGES}: it proves nothing")
    return f"trace ({method}): {told:,} acknowledgements, each after the sync of its message; {syncs:,} syncs"
