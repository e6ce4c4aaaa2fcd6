"""A scripted server for tests of the SDK and the terminal client: it speaks the protocol in memory and misbehaves on demand.

HTTP is an httpx transport, a WebSocket a pair of memory streams with trio-websocket at the far end, so a virtual clock
decides about every deadline. The log of each conversation is a list; tokens are counters. It has none of the rules of
the real server: it believes everybody.
"""

import base64
import contextlib
import hashlib
import itertools
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from gearlink import protocol, views
from gearlink.clock import new_id
from gearlink.sdk import Options

AT = "2026-01-31T12:00:00.000Z"
CODE = "123456"
ADDRESS = "http://chat.test"


@dataclass
class Faults:
    """What goes wrong. Counters count down; a trigger is used up by the first that meets it."""

    drop_before_store: int = 0  # the socket breaks when a send arrives
    drop_before_ack: int = 0  # it is stored, then the socket breaks
    hold_acks: trio.Event | None = None  # acks wait for it
    skip_live: set[int] = field(default_factory=set)  # numbers that are not told live
    skip_replay: set[int] = field(default_factory=set)  # numbers that are not replayed either
    repeat_live: bool = False  # everything live is told twice
    refuse_sends: deque[protocol.Error] = field(default_factory=deque)
    reject_auth: int = 0  # sockets whose `auth` is refused with 4401
    answers: deque[httpx.Response | Exception] = field(default_factory=deque)  # instead of the next REST answers
    mute: bool = False  # hears everything, answers nothing
    unreachable: bool = False
    tell_reload: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Socket:
    """One connected device."""

    server: "FakeServer"
    websocket: WebSocketConnection
    stream: trio.abc.Stream
    user_id: str = ""
    device_id: str = ""
    auth: protocol.Auth | None = None
    closed: trio.Event | None = None

    async def say(self, frame: protocol.AnyServerFrame | dict[str, Any]) -> None:
        if not self.server.faults.mute:
            with contextlib.suppress(ConnectionClosed):
                await self.websocket.send_message(msgspec.json.encode(frame).decode())

    async def close(self, code: int, reason: str) -> None:
        """The server ends it, with a close frame."""
        self.closed = trio.Event()
        with trio.move_on_after(1):
            await self.websocket.aclose(code, reason)
        self.closed.set()

    async def drop(self) -> None:
        """The connection breaks: no close frame."""
        await trio.aclose_forcefully(self.stream)


class FakeServer:
    """`options` go to `open_client`; sockets live in `nursery`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.faults = Faults()
        self.epoch = "epoch-1"
        self.heartbeat_seconds = 30.0
        self.access_seconds = 900
        self.users: dict[str, dict[str, Any]] = {}
        self.conversations: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, list[views.MessageView]] = {}
        self.watermarks: dict[tuple[str, str], int] = {}
        self.devices: dict[str, str] = {}
        self.access: dict[str, str] = {}
        self.refresh: dict[str, str] = {}
        self.stored: dict[tuple[str, str, str], protocol.SendAck] = {}
        self.sockets: list[Socket] = []
        self.connects = 0
        self.heard: list[tuple[str, protocol.AnyClientFrame]] = []
        self.requests: list[tuple[str, str]] = []
        self._arrived = trio.lowlevel.ParkingLot()
        self._verifications: dict[str, str] = {}
        self._numbers = itertools.count(1)

    def options(self, **changes: Any) -> Options:
        return Options(
            transport=httpx.MockTransport(self.answer),
            open_stream=self.open_stream,
            wall=trio.lowlevel.current_clock().current_time,  # a vault asks for it in its thread
            chance=lambda: 0.0,
            **changes,
        )

    # --- what a test does ---------------------------------------------------------------------------------------------

    def user(self, phone_number: str, name: str = "", username: str | None = None) -> str:
        for user in self.users.values():
            if user["phoneNumber"] == phone_number:
                return str(user["id"])
        user_id = new_id()
        self.users[user_id] = {
            "id": user_id, "username": username, "displayName": name, "bio": "", "createdAt": AT,
            "phoneNumber": phone_number, "isAdmin": False,
        }  # fmt: skip
        return user_id

    def conversation(self, *member_ids: str, kind: str = "direct", name: str | None = None) -> str:
        conversation_id = new_id()
        self.conversations[conversation_id] = {"type": kind, "name": name, "members": list(member_ids)}
        self.logs[conversation_id] = []
        return conversation_id

    def append(
        self, conversation_id: str, sender_id: str, text: str, device_id: str | None = None, temp_id: str | None = None
    ) -> views.MessageView:
        log = self.logs[conversation_id]
        message = views.MessageView(
            id=new_id(), conversation_id=conversation_id, sender_id=sender_id, sender_device_id=device_id, kind="text",
            content=text, sequence_number=len(log) + 1, created_at=AT, temp_id=temp_id or msgspec.UNSET,
        )  # fmt: skip
        log.append(message)
        return message

    async def post(self, conversation_id: str, sender_id: str, text: str) -> views.MessageView:
        """Somebody writes something, and every socket of the members is told."""
        message = self.append(conversation_id, sender_id, text)
        await self.tell(message, but_device=None)
        return message

    async def tell(self, message: views.MessageView, but_device: str | None) -> None:
        if message.sequence_number in self.faults.skip_live:
            return
        frame = protocol.MessageNew(message=message)
        for socket in list(self.sockets):
            if socket.device_id != but_device:
                for _ in range(2 if self.faults.repeat_live else 1):
                    await socket.say(frame)

    async def broadcast(self, frame: protocol.AnyServerFrame | dict[str, Any]) -> None:
        for socket in list(self.sockets):
            await socket.say(frame)

    async def until(self, condition: Any) -> None:
        """Waits until something that arrived made `condition()` true."""
        while not condition():
            await self._arrived.park()

    def heard_of(self, form: type[Any]) -> list[Any]:
        return [frame for _device, frame in self.heard if isinstance(frame, form)]

    # --- WebSocket ----------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """With a clock that jumps, a test in which nothing moves any more comes to this day's end at once."""
        await trio.sleep(24 * 3600)
        raise AssertionError("nothing moves any more")

    async def open_stream(self, host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if self.faults.unreachable:
            raise ConnectionRefusedError(111, "Connection refused")
        near, far = trio.testing.memory_stream_pair()
        self.connects += 1
        self._nursery.start_soon(self._serve, far)
        return near

    async def _serve(self, stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)  # type: ignore[arg-type]
            socket = Socket(self, await request.accept(subprotocol="gearlink.v1"), stream)
            try:
                while True:
                    frame = protocol.decode_client(await socket.websocket.get_message())
                    self.heard.append((socket.device_id, frame))
                    if self.faults.hold_acks is not None and isinstance(frame, protocol.Send):
                        nursery.start_soon(self._send_later, socket, frame, self.faults.hold_acks)
                    else:
                        await self._handle(socket, frame)
                    self._arrived.unpark_all()
            except ConnectionClosed:
                if socket.closed is not None:
                    await socket.closed.wait()
            finally:
                if socket in self.sockets:
                    self.sockets.remove(socket)
                self._arrived.unpark_all()
            with trio.move_on_after(1):
                await socket.websocket.aclose()
            await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()

    async def _send_later(self, socket: Socket, frame: protocol.Send, released: trio.Event) -> None:
        await released.wait()
        await self._send(socket, frame)

    async def _handle(self, socket: Socket, frame: protocol.AnyClientFrame) -> None:
        match frame:
            case protocol.Auth():
                await self._authenticate(socket, frame)
            case protocol.Send():
                await self._send(socket, frame)
            case protocol.Ack():
                key = (socket.device_id, frame.conversation_id)
                self.watermarks[key] = max(self.watermarks.get(key, 0), frame.sequence_number)
            case protocol.Ping():
                await socket.say(protocol.Pong(server_time=AT))
            case _:
                pass

    async def _authenticate(self, socket: Socket, frame: protocol.Auth) -> None:
        device_id = self.access.get(frame.access_token)
        if device_id is None or self.faults.reject_auth:
            self.faults.reject_auth = max(0, self.faults.reject_auth - 1)
            await socket.say(protocol.Error(code="not-authenticated", detail="Sign in first", retryable=False))
            self._nursery.start_soon(socket.close, 4401, "not-authenticated")
            return
        renewal = socket.auth is not None
        socket.auth, socket.device_id, socket.user_id = frame, device_id, self.devices[device_id]
        await socket.say(
            protocol.AuthOk(
                user_id=socket.user_id, device_id=device_id, epoch=self.epoch, server_time=AT,
                heartbeat_seconds=self.heartbeat_seconds,
            )
        )  # fmt: skip
        if not renewal:
            await self._replay(socket, frame)
            self.sockets.append(socket)

    async def _replay(self, socket: Socket, frame: protocol.Auth) -> None:
        reload = list(self.faults.tell_reload)
        if frame.epoch is not None and frame.epoch != self.epoch:
            reload = list(self.conversations)
        for conversation_id, log in self.logs.items():
            if socket.user_id not in self.conversations[conversation_id]["members"] or conversation_id in reload:
                continue
            behind = self.watermarks.get((socket.device_id, conversation_id), 0)
            cursor = (frame.cursors or {}).get(conversation_id, behind)
            for message in log[cursor:]:
                if message.sequence_number not in self.faults.skip_replay:
                    await socket.say(protocol.MessageNew(message=message))
        self.faults.tell_reload = []
        extra = {"reload": reload} if reload else {}
        await socket.say(protocol.SyncDone(complete=not reload, **extra))  # type: ignore[arg-type]

    async def _send(self, socket: Socket, frame: protocol.Send) -> None:
        if self.faults.drop_before_store:
            self.faults.drop_before_store -= 1
            await socket.drop()
            return
        if self.faults.refuse_sends:
            refusal = self.faults.refuse_sends.popleft()
            await socket.say(msgspec.structs.replace(refusal, temp_id=frame.temp_id))
            return
        key = (socket.device_id, frame.conversation_id, frame.temp_id)
        if (ack := self.stored.get(key)) is None:
            message = self.append(frame.conversation_id, socket.user_id, frame.content, socket.device_id, frame.temp_id)
            ack = self.stored[key] = protocol.SendAck(
                temp_id=frame.temp_id, message_id=message.id, conversation_id=frame.conversation_id,
                sequence_number=message.sequence_number, created_at=AT,
            )  # fmt: skip
            if not self.faults.drop_before_ack:
                await socket.say(ack)
            await self.tell(message, but_device=socket.device_id)
        else:
            await socket.say(ack)
        if self.faults.drop_before_ack:
            self.faults.drop_before_ack -= 1
            await socket.drop()

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    async def answer(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        answer = self._answer(request)
        for _ in range(3):  # whoever waits for this request can act before its answer arrives
            await trio.lowlevel.checkpoint()
        return answer

    def _answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/v1")
        self.requests.append((request.method, path))
        self._arrived.unpark_all()
        if self.faults.unreachable:
            raise httpx.ConnectError("refused") from ConnectionRefusedError(111, "Connection refused")
        if self.faults.answers:
            answer = self.faults.answers.popleft()
            if isinstance(answer, Exception):
                raise answer
            return answer
        body = json.loads(request.content or b"{}")
        if path.startswith("/auth/verify") or path == "/auth/refresh":
            return self._sign_in(path, body)
        device_id = self.access.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if device_id is None:
            return problem(401, "not-authenticated", "Sign in first")
        return self._authenticated(request, path.strip("/").split("/"), body, device_id)

    def _sign_in(self, path: str, body: dict[str, Any]) -> httpx.Response:
        if path == "/auth/verify/request":
            verification_id = new_id()
            self._verifications[verification_id] = body["phoneNumber"]
            answer = {"verificationId": verification_id, "expiresInSeconds": 600, "resendAfterSeconds": 30}
            return httpx.Response(202, json=answer)
        if path == "/auth/refresh":
            device_id = self.refresh.pop(body["refreshToken"], None)
            if device_id is None:
                return problem(401, "invalid-refresh-token", "This refresh token is not valid")
            return httpx.Response(200, json=self.tokens(device_id))
        if body["code"] != CODE:
            return problem(401, "wrong-code", "The code is wrong, used or expired")
        phone_number = self._verifications[body["verificationId"]]
        known = any(user["phoneNumber"] == phone_number for user in self.users.values())
        user_id = self.user(phone_number)
        device_id = body["device"].get("deviceId") or new_id()
        self.devices[device_id] = user_id
        answer = {
            **self.tokens(device_id), "user": self.users[user_id], "isNewUser": not known,
            "device": self._device(device_id, device_id),
        }  # fmt: skip
        return httpx.Response(200, json=answer)

    def tokens(self, device_id: str) -> dict[str, Any]:
        number = next(self._numbers)
        self.access[f"access-{number}"] = self.refresh[f"refresh-{number}"] = device_id
        return {
            "accessToken": f"access-{number}", "refreshToken": f"refresh-{number}",
            "expiresInSeconds": self.access_seconds,
        }  # fmt: skip

    def _authenticated(
        self, request: httpx.Request, path: list[str], body: dict[str, Any], device_id: str
    ) -> httpx.Response:
        me = self.users[self.devices[device_id]]
        match request.method, path:
            case "POST", ["auth", "logout"]:
                self.access = {token: owner for token, owner in self.access.items() if owner != device_id}
                return httpx.Response(204)
            case "GET", ["devices"]:
                own = [each for each, user_id in self.devices.items() if user_id == me["id"]]
                return page([self._device(each, device_id) for each in own])
            case ("GET", ["keys", "status"]) | ("PUT", ["keys"]):
                return httpx.Response(200, json={"oneTimeRemaining": 0, "digest": None})
            case "GET", ["users", _user_id, "devices"]:
                return httpx.Response(200, json={"devices": []})  # nobody has an account key here
            case "PUT", ["devices", _device_id, "certificate"]:
                return httpx.Response(204)
            case "POST", ["sync"]:
                answer = {"epoch": self.epoch, "events": [], "cursors": {}, "complete": True, "conversations": []}
                return httpx.Response(200, json=answer)
            case "GET", ["drafts"]:
                return page([])
            case "GET", ["users", "me"]:
                return httpx.Response(200, json=me)
            case "PATCH", ["users", "me"]:
                me.update(body)
                return httpx.Response(200, json=me)
            case "GET", ["users"]:
                name = request.url.params["username"]
                return page([user for user in self.users.values() if user["username"] == name])
            case "GET", ["users", user_id]:
                found = self.users.get(user_id)
                return httpx.Response(200, json=found) if found else problem(404, "not-found", "There is no such thing")
            case "POST", ["contacts", "discover"]:
                return page(
                    [
                        {"hash": digest(user["phoneNumber"]), "user": user}
                        for user in self.users.values()
                        if digest(user["phoneNumber"]) in body["hashes"]
                    ]
                )
            case _, ["conversations", *rest]:
                return self._conversations(request, rest, body, me["id"])
            case "GET", ["messages", message_id, "deliveries"]:
                return page([{"userId": me["id"], "status": "SENT"}] if message_id else [])
        return problem(404, "not-found", "There is no such thing")

    def _conversations(self, request: httpx.Request, rest: list[str], body: dict[str, Any], me: str) -> httpx.Response:
        mine = [key for key, each in self.conversations.items() if me in each["members"]]
        if not rest:
            if request.method == "GET":
                return page([self.view(key, me) for key in mine])
            members = [me, *body.get("memberIds", [])]
            for key in mine:
                if body["type"] == "direct" and set(self.conversations[key]["members"]) == set(members):
                    return httpx.Response(200, json=self.view(key, me))
            created = self.conversation(*members, kind=body["type"], name=body.get("name"))
            return httpx.Response(201, json=self.view(created, me))
        if rest[0] not in mine:
            return problem(404, "not-found", "There is no such thing, or it is not for you")
        if rest[1:] == ["messages"]:
            return self._messages(request, rest[0])
        if rest[1:] == ["members"]:
            members = self.conversations[rest[0]]["members"]
            return page([{"userId": each, "role": "member", "joinedAt": AT} for each in members])
        return httpx.Response(200, json=self.view(rest[0], me))

    def _messages(self, request: httpx.Request, conversation_id: str) -> httpx.Response:
        params, log = request.url.params, self.logs[conversation_id]
        limit = int(params.get("limit", 50))
        if "after" in params:
            found = log[int(params["after"]) :]
        else:
            before = int(params.get("before", len(log) + 1))
            found = log[: before - 1][::-1]
        following = str(found[limit - 1].sequence_number) if len(found) > limit else None
        return page([msgspec.to_builtins(message) for message in found[:limit]], following)

    def view(self, conversation_id: str, me: str) -> dict[str, Any]:
        each, log = self.conversations[conversation_id], self.logs[conversation_id]
        return {
            "id": conversation_id, "type": each["type"], "encryption": "server", "name": each["name"],
            "description": None, "createdBy": me, "createdAt": AT, "updatedAt": AT, "role": "member",
            "memberCount": len(each["members"]), "sequenceNumber": len(log), "readSequenceNumber": 0, "unreadCount": 0,
            "lastMessage": msgspec.to_builtins(log[-1]) if log else None,
            "members": [{"userId": user, "role": "member", "joinedAt": AT} for user in each["members"]],
        }  # fmt: skip

    def _device(self, device_id: str, current: str) -> dict[str, Any]:
        return {
            "id": device_id, "name": "test", "type": "desktop", "createdAt": AT, "lastSeenAt": AT,
            "current": device_id == current, "signedIn": True,
        }  # fmt: skip


def page(items: list[Any], following: str | None = None) -> httpx.Response:
    return httpx.Response(200, json={"items": items, "next": following})


def problem(status: int, code: str, detail: str, retry_after: int | None = None) -> httpx.Response:
    body = {
        "type": f"/problems/{code}", "title": code, "status": status, "detail": detail, "code": code,
        "correlationId": "c-1",
    }  # fmt: skip
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return httpx.Response(status, json=body, headers=headers)


def digest(phone_number: str) -> str:
    raw = hashlib.sha256(phone_number.encode()).digest()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
