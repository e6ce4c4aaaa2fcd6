"""A client of the proof's own, written from the protocol page and sharing nothing with GearLink's SDK.

A `Device` sends hard over its socket and over REST, into all conversations of its user, and writes everything down. When
the server dies under it, it comes back with its cursors and sends again what was not acknowledged, under the same
`tempId`s: on the socket, over REST, or (some of it) never again.
"""

import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, connect_websocket_url

from tests.process import ServerProcess
from tests.proof.records import Ack, Connection, Event, Ledger, Mark, Sent

_IN_FLIGHT = 24
_ABANDONED = 0.1  # share of what was not acknowledged that is never sent again
_OTHER_TRANSPORT = 0.3  # share of what is sent again that goes over REST
_WAIT_SECONDS = 20.0
_NUMBERED = frozenset(
    ("message:new", "member:joined", "member:left", "member:changed", "conversation:updated")
)  # the types of frames that are events of a conversation's log


class Unexpected(Exception):
    """The server answered something that no server should have."""


class World:
    """What all devices share: where the server is, whether it may be used, and the ledger."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.random = random.Random(seed)
        self.ledger = Ledger()
        self.open = trio.Event()  # the server may be used
        self.sending = True
        self.ending_in_order = False
        self.unanswered: list[Sent] = []  # at the end of a socket of a server that ended in order
        self.on_ack: Callable[[], None] = lambda: None
        self._order = 0
        self._sockets = 0

    def next_order(self) -> int:
        self._order += 1
        return self._order

    def next_socket(self) -> int:
        self._sockets += 1
        return self._sockets

    def acknowledged(self, ack: Ack) -> None:
        self.ledger.acks.append(ack)
        self.on_ack()

    def http(self, access_token: str = "") -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {access_token}"} if access_token else {}
        return httpx.AsyncClient(base_url=self.url + "/api/v1", headers=headers, timeout=_WAIT_SECONDS, trust_env=False)


@dataclass(frozen=True)
class Identity:
    """A signed-in device."""

    user_id: str
    device_id: str
    access_token: str


def body_of(answer: httpx.Response) -> Any:
    """The JSON of an answer that has to be one of success. Raises Unexpected."""
    if not answer.is_success:
        request = answer.request
        raise Unexpected(f"{request.method} {request.url.path} is answered {answer.status_code}: {answer.text[:300]}")
    return answer.json()


def now_ms() -> int:
    """Wall time, of the clock that the server goes by."""
    return int(time.time() * 1000)


def time_of(text: str) -> int:
    """RFC 3339 text as wall time in ms."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def rfc3339(at: int) -> str:
    """Wall time in ms as RFC 3339 text."""
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")


CodeOf = Callable[[str, str], Awaitable[str]]
"""Gives the code that was sent, by phone number and verification id."""


def codes_of(server: ServerProcess) -> CodeOf:
    """The codes that a server process prints."""

    async def code_of(phone_number: str, _verification_id: str) -> str:
        return await trio.to_thread.run_sync(server.code, phone_number)

    return code_of


async def sign_in(world: World, code_of: CodeOf, phone_number: str) -> Identity:
    """A new device of the user with this number, who is made if there is none."""
    async with world.http() as http:
        asked = body_of(await http.post("/auth/verify/request", json={"phoneNumber": phone_number}))
        verification_id = asked["verificationId"]
        form = {
            "verificationId": verification_id,
            "code": await code_of(phone_number, verification_id),
            "device": {"name": "proof", "type": "bot"},
        }
        entered = body_of(await http.post("/auth/verify/confirm", json=form))
    return Identity(entered["user"]["id"], entered["device"]["id"], entered["accessToken"])


def event_of(message: dict[str, Any]) -> Event:
    """A message as the history or `message:new` tells it. What is no message has no device and no text here."""
    device_id = message.get("senderDeviceId") or ""
    if not device_id:
        return Event(message["sequenceNumber"], "", "", "")
    return Event(message["sequenceNumber"], message["id"], device_id, message["content"])


class Device:
    """One device: its cursors, what it has in flight, and its socket while it has one."""

    def __init__(self, world: World, identity: Identity, conversations: list[str], sends: bool) -> None:
        self.world, self.identity, self.conversations, self.sends = world, identity, conversations, sends
        self.unacked: dict[str, Sent] = {}
        self.cursors = dict.fromkeys(conversations, 0)
        self.at_rest = trio.Event()
        self._ahead: dict[str, set[int]] = {conversation_id: set() for conversation_id in conversations}
        self._again: deque[Sent] = deque()
        self._room, self._answered = trio.Event(), trio.Event()
        self._temp = 0
        self._random = random.Random(world.random.random())
        self._last = False

    # --- the socket --------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Connects again and again, until cancelled."""
        while True:
            await self.world.open.wait()
            me, number = self.identity, self.world.next_socket()
            connection = Connection(number, me.user_id, me.device_id, dict(self.cursors), last=self._last)
            try:
                async with socket_to(self.world.url) as socket:
                    self.world.ledger.connections.append(connection)
                    await self._converse(socket, connection)
            except* (ConnectionClosed, HandshakeError, OSError, trio.BrokenResourceError, trio.TooSlowError):
                pass
            if self.world.ending_in_order:
                self.world.unanswered += [sent for sent in self.unacked.values() if sent.attempts == 1]
            self._give_up_some()
            await trio.sleep(self._random.uniform(0.005, 0.05))

    async def _converse(self, socket: WebSocketConnection, connection: Connection) -> None:
        epochs = [each.epoch for each in self.world.ledger.connections if each.epoch]
        auth = {"type": "auth", "accessToken": self.identity.access_token, "cursors": connection.cursors}
        await socket.send_message(json.dumps({**auth, **({"epoch": epochs[0]} if epochs else {})}))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._talk_until_closed, socket, connection)
            while True:
                self._hear(json.loads(await socket.get_message()), connection)

    async def _talk_until_closed(self, socket: WebSocketConnection, connection: Connection) -> None:
        with suppress(ConnectionClosed):  # what came before the end is still to be heard: the listening side ends this
            await self._talk(socket, connection)

    async def _talk(self, socket: WebSocketConnection, connection: Connection) -> None:
        """First what was not acknowledged, then new messages, with a window of unanswered ones; marks now and then."""
        for sent in list(self.unacked.values()):
            if self._random.random() < _OTHER_TRANSPORT:
                self._again.append(sent)
            else:
                await self._send(socket, sent)
        while True:
            while not self.sends or not self.world.sending or len(self.unacked) >= _IN_FLIGHT:
                self._room = trio.Event()
                await self._room.wait()
            await self._send(socket, self._new(connection.number))
            if self._random.random() < 0.05:
                await self._mark(socket)

    async def _send(self, socket: WebSocketConnection, sent: Sent) -> None:
        sent.attempts += 1
        frame = {"conversationId": sent.conversation_id, "tempId": sent.temp_id, "content": sent.content}
        await socket.send_message(json.dumps({"type": "message:send", **frame}))

    async def _mark(self, socket: WebSocketConnection) -> None:
        conversation_id = self._random.choice(self.conversations)
        kind = self._random.choice(("message:ack", "message:read"))
        frame = {"type": kind, "conversationId": conversation_id, "sequenceNumber": self.cursors[conversation_id]}
        await socket.send_message(json.dumps(frame))

    def _new(self, socket: int) -> Sent:
        self._temp += 1
        temp_id = f"{self.identity.device_id[-6:]}-{self._temp:07}"
        conversation_id = self._random.choice(self.conversations)
        content = temp_id + " " + "x" * self._random.randrange(400)
        sent = Sent(self.identity.device_id, conversation_id, temp_id, content, self.world.next_order(), socket)
        self.world.ledger.sent[sent.device_id, temp_id] = sent
        self.unacked[temp_id] = sent
        return sent

    def _give_up_some(self) -> None:
        """The socket is gone. Some people never send again what was not answered."""
        for temp_id in list(self.unacked):
            if self.world.sending and self._random.random() < _ABANDONED:
                del self.unacked[temp_id]

    # --- what is heard -----------------------------------------------------------------------------------------------

    def _hear(self, frame: dict[str, Any], connection: Connection) -> None:
        kind = frame["type"]
        if kind == "message:ack":
            self._acknowledged(frame["tempId"], frame, "socket")
        elif kind in _NUMBERED:
            message = frame["message"] if kind == "message:new" else frame
            conversation_id = message["conversationId"]
            event = event_of(message) if kind == "message:new" else Event(message["sequenceNumber"], "", "", "")
            connection.heard.setdefault(conversation_id, []).append(event)
            self._reached(conversation_id, event.sequence)
        elif kind in ("message:delivered", "message:read"):
            mark = (frame["conversationId"], frame["userId"], kind.removeprefix("message:"), frame["sequenceNumber"])
            self.world.ledger.marks.append(Mark(self.identity.device_id, *mark))
        elif kind == "auth:ok":
            connection.epoch = frame["epoch"]
        elif kind == "sync:done":
            connection.complete = frame["complete"]
            if connection.last:
                self.at_rest.set()
        elif kind == "error":
            if not frame["retryable"]:
                raise Unexpected(f"the server refuses a correct frame: {frame}")
            if (sent := self.unacked.get(frame.get("tempId", ""))) is not None:
                self._again.append(sent)

    def _acknowledged(self, temp_id: str, answer: dict[str, Any], transport: str) -> None:
        sequence, conversation_id = answer["sequenceNumber"], answer["conversationId"]
        self.unacked.pop(temp_id, None)
        self._reached(conversation_id, sequence)
        self._room.set()
        if not self.unacked:
            self._answered.set()
        self.world.acknowledged(
            Ack(
                self.identity.device_id,
                conversation_id,
                temp_id,
                answer["messageId"],
                sequence,
                answer["createdAt"],
                transport,
            )
        )

    def _reached(self, conversation_id: str, sequence: int) -> None:
        """The cursor is the highest number up to which everything is known."""
        ahead = self._ahead[conversation_id]
        if sequence > self.cursors[conversation_id]:
            ahead.add(sequence)
        while self.cursors[conversation_id] + 1 in ahead:
            self.cursors[conversation_id] += 1
            ahead.discard(self.cursors[conversation_id])

    # --- REST --------------------------------------------------------------------------------------------------------

    async def rest(self) -> None:
        """Sends over REST, one after the other: what was handed over by the socket, else new messages. Until cancelled."""
        while True:
            await self.world.open.wait()
            try:
                async with self.world.http(self.identity.access_token) as http:
                    while True:
                        await self._rest_one(http)
            except httpx.TransportError:
                await trio.sleep(self._random.uniform(0.01, 0.05))

    async def _rest_one(self, http: httpx.AsyncClient) -> None:
        if not self._again and (not self.sends or not self.world.sending):
            await trio.sleep(0.02)
            return
        sent = self._again.popleft() if self._again else self._new(0)
        if sent.temp_id not in self.unacked:
            return
        while True:
            try:
                answered = await self.post(http, sent)
            except httpx.TransportError:
                self._again.appendleft(sent)
                raise
            if answered:
                return
            await trio.sleep(0.05)

    async def post(self, http: httpx.AsyncClient, sent: Sent) -> bool:
        """Sends one message, again or for the first time; False if the server asks to come back later."""
        sent.attempts += 1
        form = {"tempId": sent.temp_id, "content": sent.content}
        answer = await http.post(f"/conversations/{sent.conversation_id}/messages", json=form)
        if answer.status_code in (429, 503):
            return False
        self._acknowledged(sent.temp_id, body_of(answer), "rest")
        return True

    async def ask_again(self, sent: Sent) -> None:
        """Repeats an acknowledged message on a socket of its own, and records the answer."""
        async with socket_to(self.world.url) as socket:
            head = {"type": "auth", "accessToken": self.identity.access_token, "cursors": dict(self.cursors)}
            await socket.send_message(json.dumps(head))
            await self._send(socket, sent)
            types: list[str] = []
            with trio.move_on_after(_WAIT_SECONDS):
                while True:
                    frame = json.loads(await socket.get_message())
                    types.append(frame["type"])
                    if frame["type"] == "error":
                        raise Unexpected(f"the repetition of an acknowledged message is answered {frame}")
                    if frame["type"] == "message:ack" and frame["tempId"] == sent.temp_id:
                        self._acknowledged(sent.temp_id, frame, "socket")
                        return
            raise Unexpected(f"the repetition of an acknowledged message is not answered; there came {types}")

    async def all_answered(self) -> None:
        """Waits until nothing is in flight. Nothing new may be sent meanwhile."""
        while self.unacked:
            self._answered = trio.Event()
            await self._answered.wait()

    def finish(self) -> None:
        """The next connection is the last: it has to bring everything."""
        self._last = True


@asynccontextmanager
async def socket_to(url: str) -> AsyncIterator[WebSocketConnection]:
    """A WebSocket, closed without ceremony. What becomes of it is raised in a group."""
    async with trio.open_nursery() as nursery:
        with trio.fail_after(_WAIT_SECONDS):
            socket = await connect_websocket_url(
                nursery, url.replace("http", "ws", 1) + "/ws", subprotocols=["gearlink.v1"], max_message_size=1 << 24
            )
        try:
            yield socket
        finally:
            with trio.move_on_after(0.5, shield=True):
                await socket.aclose()
            nursery.cancel_scope.cancel()
