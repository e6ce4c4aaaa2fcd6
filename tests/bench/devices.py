"""The figures of encrypted conversations with the server: the first message to many devices, what was missed while a device
was off, and what a ciphertext costs the server beside a plain message.

The devices are whole ones, each with the program's own client; the one that is measured has a vault on the disk. For the
server's own costs nothing is encrypted: it cannot read the bytes, so random ones of the right size are sent ready-made.
"""

import json
import os
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter, process_time
from typing import Any, Final

import trio

from gearlink import protocol
from gearlink.sdk import MemoryState, Options, open_client
from gearlink.sdk.e2ee.store import KeyStore
from gearlink.sdk.e2ee.vault import open_vault
from gearlink.sdk.secure.client import SecureClient, open_secure
from gearlink.sdk.state import State
from tests.bench.report import Figure, percentile
from tests.bench.sealing import LETTER
from tests.bench.stage import Person, Served, Stage, cpu_seconds
from tests.bench.talking import Framing, Room
from tests.bench.wire import BenchFailed, Http, Socket, masked, open_sockets, send_frame
from tests.handsets import Handset, devices_digest, text
from tests.memory_vault import MemoryVault

_SIZE: Final = 200
_TEXT: Final = "x" * _SIZE
_NO_TLS: Final = ssl.SSLContext(
    ssl.PROTOCOL_TLS_CLIENT
)  # everything is on loopback: no roots are loaded for each device
_VAULT_KEY: Final = bytes(range(32))


class _Devices:
    """Whole devices on one server."""

    def __init__(self, stage: Stage, served: Served) -> None:
        self._stage, self._served = stage, served
        self._states: dict[str, MemoryState] = {}

    @asynccontextmanager
    async def on(self, person: Person, vault: KeyStore) -> AsyncIterator[SecureClient]:
        """The device of this person, not connected yet. It goes on from where it was."""
        url = self._served.process.url()
        if person.device_id not in self._states:
            self._states[person.device_id] = MemoryState(self._first_state(url, person))
        async with (
            open_client(url, self._states[person.device_id], Options(ssl_context=_NO_TLS)) as client,
            open_secure(client, vault) as secure,
        ):
            yield secure

    @staticmethod
    def _first_state(url: str, person: Person) -> State:
        return State(
            server=url,
            user_id=person.user_id,
            device_id=person.device_id,
            access_token=person.access_token,
            refresh_token=person.refresh_token,
            access_expires_at=2**53,
        )

    @asynccontextmanager
    async def on_disk(self, person: Person) -> AsyncIterator[SecureClient]:
        """The same with a fresh vault on the disk, connected and up to date."""
        path = self._stage.directory / f"vault-{person.device_id}"
        async with open_vault(path, _VAULT_KEY) as vault, self.on(person, vault) as secure, secure.client.connect():
            await _until(secure, protocol.SyncDone)
            yield secure

    async def publish(self, people: Sequence[Person]) -> list[KeyStore]:
        """Each is on once, and has published its keys. Their vaults."""
        vaults: list[KeyStore] = [MemoryVault() for _ in people]
        for person, vault in zip(people, vaults, strict=True):
            async with self.on(person, vault) as secure:
                await secure.keeping.linked.wait()
        return vaults


async def _until(secure: SecureClient, kind: type[Any], count: int = 1) -> list[Any]:
    """The next events of this kind."""
    found: list[Any] = []
    with trio.fail_after(120):
        async for event in secure.events():
            if isinstance(event, kind):
                found.append(event)
                if len(found) == count:
                    break
    return found


# --- the first message to many devices -------------------------------------------------------------------------------

_DEVICES = 50
_FURTHER = 20


def first(stage: Stage) -> list[Figure]:
    """The first message to a group of 50 devices, none of which was met: claims, sessions, sender key, message, its ack."""
    samples: dict[str, list[float]] = {
        name: [] for name in ("first", "work", "second", "plain", "health", "healthwork")
    }

    async def main(served: Served) -> None:
        others = served.sign_up(_DEVICES - 1)
        senders = served.sign_up(stage.scale.repetitions)
        devices = _Devices(stage, served)
        vaults = await devices.publish(others)
        for sender in senders:
            await _say_first(served, devices, sender, others, samples)
            async with devices.on(others[-1], vaults[-1]) as reader, reader.client.connect():
                (told,) = await _until(reader, protocol.MessageNew)
                if told.message.content != _TEXT:
                    raise BenchFailed("the first message cannot be read")

    with stage.server() as served:
        trio.run(main, served)
    figure = partial(Figure, less_is_better=True)
    name = f"{_DEVICES - 1} calls of /healthz"
    return [
        figure(f"first message to {_DEVICES} devices", "s", tuple(samples["first"]), name, tuple(samples["health"])),
        figure("the device's processor time", "s", tuple(samples["work"]), name, tuple(samples["healthwork"])),
        figure("each further one, p50", "ms", tuple(samples["second"]), "a plain one", tuple(samples["plain"])),
    ]


async def _say_first(
    served: Served, devices: _Devices, sender: Person, others: Sequence[Person], samples: dict[str, list[float]]
) -> None:
    ids = [each.user_id for each in others]
    http = Http(served.port)
    async with devices.on_disk(sender) as secure:
        room = (await secure.groups.create("group", ids, name="bench", description=None)).id
        plain = served.group([sender, *others])
        started, worked = perf_counter(), process_time()
        await secure.send(room, _TEXT)
        samples["first"].append(perf_counter() - started)
        samples["work"].append(process_time() - worked)
        for name, conversation_id in (("second", room), ("plain", plain)):
            times = []
            for _ in range(_FURTHER):
                started = perf_counter()
                await secure.send(conversation_id, _TEXT)
                times.append((perf_counter() - started) * 1e3)
            samples[name].append(percentile(times, 0.5))
    started, worked = perf_counter(), process_time()
    for _ in others:
        http.call(http.get("/healthz"))
    samples["health"].append(perf_counter() - started)
    samples["healthwork"].append(process_time() - worked)
    http.close()


# --- what was missed -------------------------------------------------------------------------------------------------


def missed(stage: Stage) -> list[Figure]:
    """A device with a vault on the disk comes back to so many messages: until the last is opened, kept and told.
    Measured once: it is a sum."""
    kinds: dict[str, tuple[str, str]] = {
        "direct": ("direct", "e2ee"),
        "group": ("group", "e2ee"),
        "plain": ("group", "server"),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    works: dict[str, list[float]] = {name: [] for name in kinds}
    says: dict[str, list[float]] = {name: [] for name in kinds}

    async def main(served: Served) -> None:
        devices = _Devices(stage, served)
        for name, (kind, encryption) in kinds.items():
            sender, reader = served.sign_up(2)
            path = stage.directory / f"vault-{reader.device_id}"
            async with open_vault(path, _VAULT_KEY) as vault:
                async with devices.on(reader, vault):
                    pass  # its keys are published
                async with devices.on_disk(sender) as secure:
                    conversation_id = await _open(secure, kind, encryption, reader.user_id)
                    await secure.send(conversation_id, _TEXT)
                    async with devices.on(reader, vault) as other, other.client.connect():
                        await _until(other, protocol.MessageNew)
                    says[name].append(await _say_all(secure, conversation_id, stage.scale.missed))
                async with devices.on(reader, vault) as secure:
                    started, worked = perf_counter(), process_time()
                    async with secure.client.connect():
                        told = await _until(secure, protocol.MessageNew, stage.scale.missed)
                    times[name].append(perf_counter() - started)
                    works[name].append(process_time() - worked)
                    if [each.message.content for each in told] != [_TEXT] * stage.scale.missed:
                        raise BenchFailed("not all that was missed can be read")

    with stage.server() as served:
        trio.run(main, served)
    figures = []
    for name in ("direct", "group"):
        figure = partial(Figure, reference_name="plain ones", less_is_better=True)
        count = f"{stage.scale.missed:,}"
        figures += [
            figure(
                f"{count} missed, {name}", "s", samples=tuple(times[name]), reference_samples=tuple(times["plain"])
            ),
            figure(
                "processor time of it", "s", samples=tuple(works[name]), reference_samples=tuple(works["plain"])
            ),
            figure(
                f"{count} sent one by one, {name}", "s", samples=tuple(says[name]),
                reference_samples=tuple(says["plain"]),
            ),
        ]  # fmt: skip
    return figures


async def _open(secure: SecureClient, kind: Any, encryption: str, other_id: str) -> str:
    """A conversation with somebody: its id."""
    name = None if kind == "direct" else "bench"
    if encryption == "e2ee":
        return (await secure.groups.create(kind, [other_id], name=name, description=None)).id
    return (await secure.client.create_conversation(kind, [other_id], name=name, encryption="server")).id


async def _say_all(secure: SecureClient, conversation_id: str, count: int) -> float:
    """The seconds for so many messages, each sent when the one before is acknowledged."""
    started = perf_counter()
    for _ in range(count):
        await secure.send(conversation_id, _TEXT)
    return perf_counter() - started


# --- what it costs the server ----------------------------------------------------------------------------------------

_IN_FLIGHT = 8
_MEMBERS = 10
_ACK_EVERY = 50  # as clients do


class _Listened(Room):
    """A room whose listeners acknowledge what they were sent now and then, as devices do: with that envelopes go."""

    def __init__(self, sockets: list[Socket], conversation_id: str, frame: Framing) -> None:
        super().__init__(sockets, 1, _IN_FLIGHT, conversation_id, frame)
        self._acknowledged = [0] * len(sockets)

    def _step(self, *, sending: bool) -> None:
        super()._step(sending=sending)
        for place in range(self._senders, len(self._sockets)):
            count = self._readers[place].messages.count
            if count - self._acknowledged[place] >= _ACK_EVERY and self._audit.first:
                self._acknowledged[place] = count
                form = b'{"type":"message:ack","conversationId":"%b","sequenceNumber":%d}'
                self._sockets[place].send(
                    masked(form % (self._conversation_id.encode(), self._audit.first + count - 1))
                )


def ciphertext(stage: Stage) -> list[Figure]:
    """What a message of 200 bytes costs the server, encrypted and plain: from one device to two, and in a group of ten."""
    costs: dict[tuple[str, str], list[float]] = {}
    with stage.server() as served:
        rooms = {
            (kind, encryption): _room(served, kind, encryption)
            for kind in ("direct", "group")
            for encryption in ("e2ee", "server")
        }
        for room in rooms.values():
            room.run(stage.scale.seconds / 4)
        for _ in range(stage.scale.repetitions):
            for name, room in rooms.items():
                before, acked = cpu_seconds(served.process.pid), room.acked
                room.run(stage.scale.seconds / 2)
                spent = cpu_seconds(served.process.pid) - before
                costs.setdefault(name, []).append(spent / (room.acked - acked) * 1e6)
    return [
        Figure(
            f"processor time, {label}", "µs", tuple(costs[kind, "e2ee"]), "a plain one",
            tuple(costs[kind, "server"]), less_is_better=True,
        )
        for kind, label in (("direct", "direct to 2 devices"), ("group", f"group of {_MEMBERS}"))
    ]  # fmt: skip


def _room(served: Served, kind: str, encryption: str) -> _Listened:
    """One sends; in a direct conversation the two devices of the other one listen, in a group all others."""
    people = served.sign_up(2 if kind == "direct" else _MEMBERS)
    devices = [*people, served.another_device(people[1])] if kind == "direct" else people
    keys = [Handset(each.device_id) for each in devices]
    for each, handset in zip(devices, keys, strict=True):
        http = Http(served.port, each.access_token)
        http.call(http.request("PUT", "/api/v1/keys", handset.upload()))
        http.close()
    http = Http(served.port, people[0].access_token)
    form = {"type": kind, "memberIds": [each.user_id for each in people[1:]], "encryption": encryption}
    conversation_id = str(
        http.post("/api/v1/conversations", form if kind == "direct" else {**form, "name": "bench"})["id"]
    )
    http.close()
    sockets = open_sockets(served.port, [each.access_token for each in devices])
    if encryption == "server":
        return _Listened(sockets, conversation_id, partial(send_frame, content=_TEXT.encode()))
    if kind == "direct":
        sealed = _envelopes(devices[1:])
    else:
        places = [(each.user_id, each.device_id, handset) for each, handset in zip(devices, keys, strict=True)]
        sealed = _body(devices_digest(places))
    return _Listened(sockets, conversation_id, partial(_sealed_frame, sealed=json.dumps(sealed).encode()))


def _envelopes(devices: Sequence[Person]) -> dict[str, Any]:
    """As large as those of a letter of 200 bytes."""
    size = 41 + len(LETTER) + 16 + 32
    return {
        "scheme": "double-ratchet",
        "envelopes": [
            {"userId": each.user_id, "deviceId": each.device_id, "type": "message", "body": text(os.urandom(size))}
            for each in devices
        ],
    }


def _body(digest: str) -> dict[str, Any]:
    size = 21 + len(LETTER) + 16 + 64
    body, key_id = text(os.urandom(size)), text(os.urandom(16))
    return {"scheme": "sender-key", "keyId": key_id, "body": body, "devicesDigest": digest}


def _sealed_frame(temp_id: bytes, conversation_id: str, sealed: bytes) -> bytes:
    return masked(
        b'{"type":"message:send","tempId":"%b","conversationId":"%b","encrypted":%b}'
        % (temp_id, conversation_id.encode(), sealed)
    )
