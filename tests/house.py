"""A running server as a fixture, and the people who use it.

`open_house` runs the real server in this process, on a loopback port and a data directory of its own, with an SMS
provider that hands the codes to the test. `Person` is somebody who signed up; `Wire` is a bare socket for tests that look
at frames; stories are told through the SDK instead.
"""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

from config.load import load
from gearlink import app
from gearlink.clock import Clock
from gearlink.sms import Code

SECONDS_MAX = 20.0  # how long a test waits for what has to happen: only a hang takes so long
NO_LIMITS = {
    "limits.messages_per_second": "0",
    "limits.verifications_per_hour": "0",
    "limits.requests_per_second": "0",
    "limits.connections_per_user": "0",
    "limits.discoveries_per_hour": "0",
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
        return httpx.AsyncClient(base_url=self.url + "/api/v1", timeout=SECONDS_MAX)

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
        self.id: str = entered["user"]["id"]
        self.device_id: str = entered["device"]["id"]
        self.access_token: str = entered["accessToken"]
        self.refresh_token: str = entered["refreshToken"]

    async def open(self, kind: str, *others: "Person", **more: Any) -> str:
        """A conversation with others; returns its id."""
        form = {"type": kind, "memberIds": [other.id for other in others], **more}
        answer = await self.http.post("/conversations", json=form)
        return str(answer.raise_for_status().json()["id"])

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

    async def say(self, type: str, **fields: Any) -> None:
        await self.socket.send_message(json.dumps({"type": type, **fields}))

    async def say_raw(self, data: str | bytes) -> None:
        await self.socket.send_message(data)

    async def hear_any(self) -> dict[str, Any]:
        with trio.fail_after(SECONDS_MAX):
            frame: dict[str, Any] = json.loads(await self.socket.get_message())
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
        yield Wire(socket)


@asynccontextmanager
async def open_house(data: Path, *, clock: Clock | None = None, **overrides: str) -> AsyncIterator[House]:
    """The server in this process; `overrides` are settings as `section__key="text"`. It is closed in order at the end."""
    house = House()
    given = {key.replace("__", "."): text for key, text in overrides.items()}
    settings = load(None, {}, {**NO_LIMITS, "storage.data": str(data), "server.listen": "127.0.0.1:0", **given})

    async def serve(task_status: trio.TaskStatus[app.House]) -> None:
        await app.serve(settings, clock=clock, sms=house.sms, task_status=task_status)

    async with trio.open_nursery() as nursery:
        house.app = await nursery.start(serve)
        try:
            async with house.at_end:
                yield house
        finally:
            house.app.closing.set()
