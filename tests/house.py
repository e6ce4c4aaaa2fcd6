"""A running server as a fixture, and the people who use it.

`open_house` runs the real server in this process, on a loopback port and a data directory of its own, with an SMS
provider that hands the codes to the test. `Person` is somebody who signed up; `Wire` is a bare socket for tests that look
at frames; stories are told through the SDK instead.
"""

import io
import json
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from prometheus_client.exposition import generate_latest
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

from config.load import load
from gearlink import app, journal
from gearlink.clock import Clock
from gearlink.device_lists import counting, joined
from gearlink.sms import Code
from storage.records import Conversation, Member
from storage.store import Transaction
from tests import traffic

SECRETS = re.compile(r"[+]1555|eyJ[\w-]{10}|canary", re.IGNORECASE)  # what no log line and no metric may hold
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # made once: httpx would load every root certificate for each client
SECONDS_MAX = 20.0  # how long a test waits for what has to happen: only a hang takes so long
NO_LIMITS = {
    "server.notice_seconds": "0",
    "limits.messages_per_second": "0",
    "limits.verifications_per_hour": "0",
    "limits.requests_per_second": "0",
    "limits.connections_per_user": "0",
    "limits.discoveries_per_hour": "0",
    "limits.key_claims_per_hour": "0",
}


class House:
    """What a test sees of the server: its parts (`app`), its address, and the codes that it sent."""

    def __init__(self) -> None:
        self.app: app.House
        self._codes: dict[str, str] = {}
        self._sent = trio.Event()
        self._numbers = 0
        self.at_end = AsyncExitStack()

    @property
    def url(self) -> str:
        return self.app.url

    @asynccontextmanager
    async def sms(self) -> AsyncIterator[Any]:
        async def send(code: Code) -> None:
            self._codes[code.delivery_id] = code.code
            self._sent.set()
            self._sent = trio.Event()

        yield send

    async def code(self, verification_id: str) -> str:
        """The code that was sent for this verification, once it was."""
        with trio.fail_after(SECONDS_MAX):
            while verification_id not in self._codes:
                await self._sent.wait()
        return self._codes[verification_id]

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url + "/api/v1", timeout=SECONDS_MAX, verify=_NO_TLS)

    async def people(self, count: int) -> "list[Person]":
        """So many newcomers; the first of a fresh server is its admin."""
        return [await self.sign_up() for _ in range(count)]

    async def back(self, person: "Person") -> "Person":
        """Somebody of a server that has ended, on this one, which has its data: with the same session."""
        client = await self.at_end.enter_async_context(self.http())
        client.headers["Authorization"] = f"Bearer {person.access_token}"
        return Person(self, client, person.phone_number, person.entered)

    async def sign_up(self, phone_number: str | None = None, **device: str) -> "Person":
        """Somebody new, or a new device of the one who has this number."""
        self._numbers += 1
        number = phone_number or f"+1555123{self._numbers:04}"
        client = await self.at_end.enter_async_context(self.http())
        asked = await client.post("/auth/verify/request", json={"phoneNumber": number})
        verification_id = asked.raise_for_status().json()["verificationId"]
        form = {
            "verificationId": verification_id,
            "code": await self.code(verification_id),
            "device": {"name": "test", "type": "desktop", **device},
        }
        entered = (await client.post("/auth/verify/confirm", json=form)).raise_for_status().json()
        client.headers["Authorization"] = f"Bearer {entered['accessToken']}"
        return Person(self, client, number, entered)


class Person:
    """Somebody who signed up, on one device: `http` is signed in."""

    def __init__(self, house: House, client: httpx.AsyncClient, phone_number: str, entered: dict[str, Any]) -> None:
        self.house, self.http, self.phone_number = house, client, phone_number
        self.entered = entered
        self.id: str = entered["user"]["id"]
        self.device_id: str = entered["device"]["id"]
        self.access_token: str = entered["accessToken"]
        self.refresh_token: str = entered["refreshToken"]

    async def open(self, kind: str, *others: "Person", **more: Any) -> str:
        """A conversation with others; returns its id."""
        form = {"type": kind, "memberIds": [other.id for other in others], "encryption": "server", **more}
        answer = await self.http.post("/conversations", json=form)
        return str(answer.raise_for_status().json()["id"])

    async def another_device(self) -> "Person":
        return await self.house.sign_up(self.phone_number)

    async def post(self, conversation_id: str, content: str, temp_id: str, **more: Any) -> httpx.Response:
        """A send over REST."""
        form = {"content": content, "tempId": temp_id, **more}
        return await self.http.post(f"/conversations/{conversation_id}/messages", json=form)

    async def history(self, conversation_id: str, **query: Any) -> list[dict[str, Any]]:
        """The messages of one page, oldest first."""
        answer = await self.http.get(f"/conversations/{conversation_id}/messages", params={"limit": 200, **query})
        items: list[dict[str, Any]] = answer.raise_for_status().json()["items"]
        return sorted(items, key=lambda message: int(message["sequenceNumber"]))

    async def view(self, conversation_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/conversations/{conversation_id}")
        conversation: dict[str, Any] = answer.raise_for_status().json()
        return conversation

    @asynccontextmanager
    async def wire(self, *, synced: bool = True, **auth: Any) -> AsyncIterator["Wire"]:
        """An authenticated socket. With `synced` what comes before and with `sync:done` is in `missed`."""
        async with open_wire(self.house) as wire:
            await wire.say("auth", accessToken=self.access_token, **auth)
            if synced:
                await wire.hear("auth:ok")
                wire.missed = await wire.hear_until("sync:done")
            yield wire


class Wire:
    """A bare socket: says and hears frames as dicts."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket
        self.missed: list[dict[str, Any]] = []
        self._talk = traffic.Talk()

    async def say(self, type: str, **fields: Any) -> None:
        frame = {"type": type, **fields}
        self._talk.said(frame)
        await self.socket.send_message(json.dumps(frame))

    async def say_raw(self, data: str | bytes) -> None:
        await self.socket.send_message(data)

    async def hear_any(self) -> dict[str, Any]:
        with trio.fail_after(SECONDS_MAX):
            frame: dict[str, Any] = json.loads(await self.socket.get_message())
        self._talk.heard(frame)
        return frame

    async def hear(self, type: str) -> dict[str, Any]:
        """The next frame, which has to be of this type."""
        frame = await self.hear_any()
        assert frame["type"] == type, frame
        return frame

    async def hear_until(self, type: str) -> list[dict[str, Any]]:
        """Frames up to and with the first of this type."""
        frames = [await self.hear_any()]
        while frames[-1]["type"] != type:
            frames.append(await self.hear_any())
        return frames

    async def send(self, conversation_id: str, content: str, temp_id: str, **more: Any) -> dict[str, Any]:
        """Sends a message and returns its ack."""
        await self.say("message:send", conversationId=conversation_id, content=content, tempId=temp_id, **more)
        return (await self.hear_until("message:ack"))[-1]

    async def fence(self) -> list[dict[str, Any]]:
        """What the server has told this socket by now: what comes before the answer to a question."""
        await self.say("ping", ref="fence")
        return (await self.hear_until("pong"))[:-1]

    async def refused(self, code: str) -> dict[str, Any]:
        """The next frame, which has to be this error."""
        frame = await self.hear("error")
        assert frame["code"] == code, frame
        return frame

    async def closed(self) -> int:
        """Reads until the server closes the socket; the close code."""
        with trio.fail_after(SECONDS_MAX):
            while True:
                try:
                    await self.socket.get_message()
                except ConnectionClosed as closed:
                    return int(closed.reason.code) if closed.reason else 1006


@asynccontextmanager
async def open_wire(house: House) -> AsyncIterator[Wire]:
    """A socket that has not said `auth` yet."""
    async with open_websocket_url(house.url.replace("http", "ws", 1) + "/ws", subprotocols=["gearlink.v1"]) as socket:
        try:
            yield Wire(socket)
        finally:
            if socket.closed:  # by the server: then the library leaves the socket to the garbage collector
                await socket._stream.aclose()


@asynccontextmanager
async def open_house(
    data: Path, *, clock: Clock | None = None, errors: bool = False, measures_load: bool = False, **overrides: str
) -> AsyncIterator[House]:
    """The server in this process; `overrides` are settings as `section__key="text"`. It is closed in order at the end.

    It sheds nothing, however busy the machine is, unless it `measures_load` or the test tells its `app.pressure`.

    The end is part of every test: no connection may have crashed, no answer may be other than OpenAPI says, no log line
    may hold a secret or, unless the test makes `errors`, tell of one.
    """
    house, complaints = House(), list[str]()
    given = {key.replace("__", "."): text for key, text in overrides.items()}
    settings = load(None, {}, {**NO_LIMITS, "storage.data": str(data), "server.listen": "127.0.0.1:0", **given})

    async def serve(task_status: trio.TaskStatus[app.House]) -> None:
        await app.serve(settings, clock=clock, sms=house.sms, measures_load=measures_load, task_status=task_status)

    with journal_lines() as lines:
        async with trio.open_nursery() as nursery:
            house.app = await nursery.start(serve)
            pipeline = house.app.http.pipeline
            pipeline.serve = traffic.Pipeline(pipeline.serve, complaints)  # type: ignore[method-assign]
            try:
                async with house.at_end:
                    yield house
                    complaints += await _stale_lists(house.app)
            finally:
                house.app.closing.set()
        crashes = house.app.metrics.registry.get_sample_value("connection_crashes_total")
        figures = generate_latest(house.app.metrics.registry).decode()
    log = lines.getvalue().decode()
    assert not complaints, "\n".join(complaints)
    assert crashes == 0 and (errors or '"level":"error"' not in log), log
    assert not SECRETS.search(log), log
    assert not SECRETS.search(figures), figures


async def _stale_lists(server: app.House) -> list[str]:
    """The conversations whose device list in memory is not what is stored: somebody altered that without a word."""
    lists = server.domain.device_lists

    async def change(tx: Transaction) -> list[str]:
        found = []
        for conversation_id in list(lists._lists):
            members = await tx.scan(Member, conversation_id, limit=100_000)
            stored = joined([await counting(tx, member.user_id) for member in members])
            if await tx.get(Conversation, conversation_id) and await lists.of(tx, conversation_id) != stored:
                found.append(f"the devices of {conversation_id} are not those in memory")
        return found

    return [] if server.closing.is_set() or server.store.failed.is_set() else await server.store.write(change)


@contextmanager
def journal_lines() -> Iterator[io.BytesIO]:
    """Every log line of the block, from debug up, as one text."""
    lines = io.BytesIO()
    writer = journal.configure("debug", lines)
    try:
        yield lines
    finally:
        writer.close()


class RawSocket:
    """A WebSocket by hand, for what no library would do. It reads only when it is asked to."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._data = b""

    async def put(self, opcode: int, payload: bytes, *, final: bool = True) -> None:
        """One masked frame (RFC 6455 §5.2), with a mask of zeros."""
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        if size >= 65536:
            length = b"\xff" + size.to_bytes(8, "big")
        await self.stream.send_all(bytes([final << 7 | opcode]) + length + bytes(4) + payload)

    async def say(self, type: str, **fields: Any) -> None:
        await self.put(1, json.dumps({"type": type, **fields}).encode())

    async def take(self) -> tuple[int, bytes]:
        """The next frame: opcode and payload. Raises EOFError at the end of the stream."""
        head = await self._read(2)
        size = head[1]
        if size == 126:
            size = int.from_bytes(await self._read(2), "big")
        elif size == 127:
            size = int.from_bytes(await self._read(8), "big")
        return head[0] & 15, await self._read(size)

    async def _read(self, size: int) -> bytes:
        with trio.fail_after(SECONDS_MAX):
            while len(self._data) < size:
                received = await self.stream.receive_some()
                if not received:
                    raise EOFError
                self._data += received
        found, self._data = self._data[:size], self._data[size:]
        return found

    async def read_to_the_close(self) -> tuple[list[dict[str, Any]], int]:
        """Every frame up to the closing one, and its code (RFC 6455 §5.5.1)."""
        frames = []
        while True:
            opcode, payload = await self.take()
            if opcode == 8:
                return frames, int.from_bytes(payload[:2], "big")
            if opcode == 1:
                frames.append(json.loads(payload))


@asynccontextmanager
async def open_raw_socket(house: House, *, receive_bytes: int = 0) -> AsyncIterator[RawSocket]:
    """Upgraded, with a receive buffer of `receive_bytes` if that is given."""
    host, port = house.url.removeprefix("http://").split(":")
    sock = trio.socket.socket()
    if receive_bytes:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_bytes)
    await sock.connect((host, int(port)))
    async with trio.SocketStream(sock) as stream:
        await stream.send_all(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        raw = RawSocket(stream)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await raw._read(1)
        assert b" 101 " in head, head
        yield raw
