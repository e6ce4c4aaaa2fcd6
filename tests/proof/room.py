"""The lively room: people who edit, delete, react, vote, pin, schedule and let things disappear while the server dies.

Like the flood's `Device` a `Guest` is written from the protocol page alone, and does its deeds over a socket and over
REST at once. One side of a message (its text, one's own vote, ...) has one deed under way at a time, so what it may be
after a crash is known: as it was acknowledged last, or as a later deed would have it. What was under way is not repeated.
"""

import json
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx
import trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection

from tests.proof.client import Identity, World, now_ms, rfc3339, socket_to, time_of
from tests.proof.records import Deed, Mark, Replay, RoomRecords, Saying, Shown, Told

_MARK = re.compile(r"\bmark\d{7}\b")
_EMOJIS = ("👍", "🎉", "😂", "🚀")
_IN_FLIGHT = 8
_SOCKET_SECONDS, _REST_SECONDS = 0.02, 0.06  # the mean pause between two deeds
_LATER_SECONDS = (0.5, 4.0)
_PINS_MAX = 50
_RECENT = 40
_TRIES = 10
_UNNUMBERED = frozenset(("message:ack", "message:delivered", "message:read", "thread:read"))
_ENDS = (ConnectionClosed, HandshakeError, OSError, trio.BrokenResourceError, trio.TooSlowError)


def shown_of(message: dict[str, Any]) -> Shown | None:
    """A message in the form of the records; None for what is no message."""
    if message["kind"] == "system":
        return None
    poll = message.get("poll")
    return Shown(
        message["id"],
        message["sequenceNumber"],
        message["senderId"],
        message["content"],
        tuple(message.get("mentions", ())),
        time_of(message["createdAt"]),
        time_of(message["expiresAt"]) if "expiresAt" in message else 0,
        "deletedAt" in message,
        "pinnedAt" in message,
        tuple((each["emoji"], tuple(each["userIds"])) for each in message["reactions"]),
        (*(option["count"] for option in poll["options"]), poll["voters"]) if poll else (),
    )


class Room:
    """What all guests share."""

    def __init__(self, world: World, conversation_id: str) -> None:
        self.world, self.id = world, conversation_id
        self.known: list[Saying] = []  # what can be edited, reacted to, ...
        self.leaving: set[str] = set()  # message ids: somebody has begun to delete them
        self.pinned: set[str] = set()

    @property
    def records(self) -> RoomRecords:
        return self.world.ledger.room

    def new_saying(self, user_id: str, chance: random.Random, others: list[str], **extra: int) -> Saying:
        """A message that nobody else says; the records have it."""
        mark = f"mark{len(self.records.sayings):07}"
        mentions = chance.choice(((), (), (), (chance.choice(others),), ("all",)))
        saying = Saying(
            mark, user_id, f"{mark}.0", mentions, self.world.next_order(), extra.get("send_at", 0),
            extra.get("expires_in", 0), extra.get("options", 0),
        )  # fmt: skip
        self.records.sayings[mark] = saying
        return saying

    def told(self, name: str) -> Told:
        """A record of what is told from now on."""
        told = Told(name, self.world.next_order(), now_ms())
        self.records.told.append(told)
        return told

    def saw(self, message: dict[str, Any]) -> None:
        """Somebody was shown a message of the room."""
        if not (found := _MARK.match(message["content"] or "")):
            return
        mark = found.group()
        self.records.places.setdefault(mark, set()).add((message["id"], message["sequenceNumber"]))
        if message["senderDeviceId"]:
            self.records.own.setdefault(message["senderDeviceId"], set()).add(message["sequenceNumber"])
        if (saying := self.records.sayings.get(mark)) is not None:
            self.stands(saying, message["id"], message["sequenceNumber"], message["createdAt"])

    def stands(self, saying: Saying, message_id: str, sequence: int, created_at: str) -> None:
        """This is where the message came to stand."""
        if saying.message_id:
            return
        saying.message_id, saying.sequence = message_id, sequence
        if saying.expires_in:
            saying.expires_at = time_of(created_at) + saying.expires_in * 1000
        self.known.append(saying)

    def heard(self, frame: dict[str, Any], text: str | bytes, told: Told, replay: Replay | None) -> None:
        """Notes one frame: what it tells, what it says is gone, and its number."""
        if frame["type"] == "message:deleted":
            told.said.append(("gone", frame["messageId"]))
        elif frame["type"] == "message:expired":
            told.said += [("gone", message_id) for message_id in frame["messageIds"]]
        told.said += [("text", mark) for mark in sorted(set(_MARK.findall(str(text))))]
        if frame["type"] == "message:new":
            self.saw(frame["message"])
        if replay is not None and (number := number_of(frame)):
            replay.numbers.append(number)

    async def ask(self, http: httpx.AsyncClient, method: str, path: str, **more: Any) -> httpx.Response:
        """One call of REST, with what it tells noted."""
        told = self.told(f"{method} {path}")
        answer = await http.request(method, path, **more)
        told.said += [("text", mark) for mark in sorted(set(_MARK.findall(answer.text)))]
        return answer


def _temp_id(saying: Saying) -> str:
    """Not the mark itself: it is told also of a message whose text is gone."""
    return saying.mark.replace("mark", "temp")


def number_of(frame: dict[str, Any]) -> int:
    """The number of an event of a log; 0 for what is none."""
    if frame["type"] == "message:new":
        return int(frame["message"]["sequenceNumber"])
    return 0 if frame["type"] in _UNNUMBERED else int(frame.get("sequenceNumber", 0))


class Guest:
    """One person in the room, with one device."""

    def __init__(self, room: Room, identity: Identity, others: list[str], is_owner: bool) -> None:
        self.room, self.world, self.identity = room, room.world, identity
        self._others, self._is_owner = others, is_owner
        self._random = random.Random(room.world.random.random())
        self._busy: set[tuple[str, str]] = set()  # sides of messages with a deed under way
        self._waiting: dict[str, Deed | Saying] = {}  # by ref: what the socket has not answered
        self._cursor, self._ahead, self._ref = 0, set[int](), 0

    # --- the socket ---------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Connects again and again, until cancelled."""
        while True:
            await self.world.open.wait()
            try:
                async with socket_to(self.world.url) as socket:
                    await self._converse(socket)
            except* _ENDS:
                pass
            for each in self._waiting.values():
                if isinstance(each, Deed):
                    self._busy.discard((each.message_id, each.what))
            self._waiting.clear()
            await trio.sleep(self._random.uniform(0.005, 0.05))

    async def _converse(self, socket: WebSocketConnection) -> None:
        name = f"socket {self.world.next_socket()} of device {self.identity.device_id}"
        told = self.room.told(name)
        replay = Replay(name, self.room.id, self.identity.device_id, self._cursor)
        self.room.records.replays.append(replay)
        auth = {"accessToken": self.identity.access_token, "cursors": {self.room.id: self._cursor}}
        await socket.send_message(json.dumps({"type": "auth", **auth}))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._talk, socket)
            while True:
                text = await socket.get_message()
                frame = json.loads(text)
                self.room.heard(frame, text, told, replay)
                if number := number_of(frame):
                    self._reached(number)
                self._hear(frame)

    def _hear(self, frame: dict[str, Any]) -> None:
        kind = frame["type"]
        if kind in ("message:delivered", "message:read"):
            mark = (frame["conversationId"], frame["userId"], kind.removeprefix("message:"), frame["sequenceNumber"])
            self.world.ledger.marks.append(Mark(self.identity.device_id, *mark))
        elif kind in ("ok", "message:ack", "error") and (done := self._waiting.pop(frame.get("ref", ""), None)):
            if isinstance(done, Saying):
                if kind == "message:ack":
                    self._was_said(done, frame)
            else:
                self._was_done(done, frame["code"] if kind == "error" else "")

    def _was_said(self, saying: Saying, answer: dict[str, Any]) -> None:
        number = answer["sequenceNumber"]
        self.room.records.own.setdefault(self.identity.device_id, set()).add(number)
        self.room.records.places.setdefault(saying.mark, set()).add((answer["messageId"], number))
        self.room.stands(saying, answer["messageId"], number, answer["createdAt"])
        saying.answered = self.world.next_order()
        self._reached(number)
        self.world.on_ack()

    def _was_done(self, deed: Deed, refused: str) -> None:
        self._busy.discard((deed.message_id, deed.what))
        deed.refused = refused
        if not refused:
            deed.answered = self.world.next_order()
            self.world.on_ack()

    def _reached(self, sequence: int) -> None:
        if sequence > self._cursor:
            self._ahead.add(sequence)
        while self._cursor + 1 in self._ahead:
            self._cursor += 1
            self._ahead.discard(self._cursor)

    async def _talk(self, socket: WebSocketConnection) -> None:
        with suppress(ConnectionClosed):  # what came before the end is still to be heard: the listening side ends this
            while True:
                await self._pause(_SOCKET_SECONDS)
                if len(self._waiting) >= _IN_FLIGHT:
                    continue
                choice = self._random.random()
                if choice < 0.3:
                    await self._say(socket)
                elif choice < 0.35:
                    await self._mark(socket)
                elif (deed := self._new_deed()) is not None:
                    await self._send(socket, _frame_of(deed), deed)

    async def _pause(self, seconds: float) -> None:
        await trio.sleep(self._random.expovariate(1 / seconds))
        if not self.world.sending:
            await trio.sleep_forever()

    async def _say(self, socket: WebSocketConnection) -> None:
        saying, form = self._new_message()
        await self._send(socket, {"type": "message:send", "conversationId": self.room.id, **form}, saying)

    async def _mark(self, socket: WebSocketConnection) -> None:
        number = self._random.randrange(max(0, self._cursor - 100), self._cursor + 1)
        kind = self._random.choice(("message:ack", "message:read", "message:read"))
        frame = {"type": kind, "conversationId": self.room.id, "sequenceNumber": number}
        await socket.send_message(json.dumps(frame))

    async def _send(self, socket: WebSocketConnection, frame: dict[str, Any], what: Deed | Saying) -> None:
        self._ref += 1
        self._waiting[str(self._ref)] = what
        await socket.send_message(json.dumps({**frame, "ref": str(self._ref)}))

    # --- what is done -------------------------------------------------------------------------------------------------

    def _new_message(self) -> tuple[Saying, dict[str, Any]]:
        """A text, a poll, a reply, or what disappears soon."""
        choice, extra, form = self._random.random(), {}, dict[str, Any]()
        if choice < 0.1:
            extra["options"] = 3
            form = {"kind": "poll", "poll": {"options": ["one", "two", "three"]}}
        elif choice < 0.35:
            extra["expires_in"] = form["expiresInSeconds"] = self._random.randrange(1, 4)
        elif choice < 0.5 and (quoted := self._target(lambda each: not each.expires_in)) is not None:
            form["replyToId"] = quoted.message_id
        saying = self.room.new_saying(self.identity.user_id, self._random, self._others, **extra)
        return saying, {**form, "tempId": _temp_id(saying), "content": saying.text, "mentions": list(saying.mentions)}

    def _target(self, wanted: Callable[[Saying], bool]) -> Saying | None:
        """A message that is there, as far as one knows; mostly a new one. None if the first that was drawn is not."""
        if not (known := self.room.known[-_RECENT:] if self._random.random() < 0.7 else self.room.known):
            return None
        saying = self._random.choice(known)
        is_there = saying.message_id not in self.room.leaving and not 0 < saying.expires_at <= now_ms()
        return saying if is_there and wanted(saying) else None

    def _new_deed(self) -> Deed | None:
        """Something to do to a message whose side is free; None if nothing came to mind."""
        me, chance = self.identity.user_id, self._random
        what = chance.choice(("text", "text", "text", "deleted", "pinned", "vote", "emoji", "emoji", "emoji"))
        if what == "pinned" and not self._is_owner:
            what = "emoji"
        for _try in range(_TRIES):
            if (saying := self._target(partial(self._suits, what))) is not None:
                break
        else:
            return None
        if what == "emoji":
            what = chance.choice(_EMOJIS)
        if (saying.message_id, what) in self._busy:
            return None
        deed = Deed(self.world.next_order(), me, saying.message_id, what, self._value(saying, what))
        self.room.records.deeds.append(deed)
        self._busy.add((deed.message_id, what))
        return deed

    def _suits(self, what: str, saying: Saying) -> bool:
        """Whether one may try to do this to a message. What was scheduled, and polls, are left as they are written."""
        if what in ("text", "deleted"):
            is_own = saying.user_id == self.identity.user_id and saying.answered > 0
            return is_own and not saying.send_at and not saying.options
        return what != "vote" or saying.options > 0

    def _value(self, saying: Saying, what: str) -> Any:
        if what == "text":
            mentions = self._random.choice((saying.mentions, saying.mentions, (), (self._others[0],)))
            return f"{saying.mark}.{self._random.randrange(1, 1_000_000)}", mentions
        if what == "vote":
            return self._random.choice(((0,), (1,), (2,), ()))
        if what == "deleted":
            self.room.leaving.add(saying.message_id)
            return True
        if what == "pinned":
            pins = self.room.pinned
            is_pinned = saying.message_id not in pins and len(pins) < _PINS_MAX
            (pins.add if is_pinned else pins.discard)(saying.message_id)
            return is_pinned
        return self._random.random() < 0.65

    # --- REST ---------------------------------------------------------------------------------------------------------

    async def rest(self) -> None:
        """Does the same over REST, one thing after the other, and schedules messages. Until cancelled."""
        while True:
            await self.world.open.wait()
            with suppress(httpx.TransportError):
                async with self.world.http(self.identity.access_token) as http:
                    while True:
                        await self._pause(_REST_SECONDS)
                        await self._rest_one(http)
            await trio.sleep(self._random.uniform(0.01, 0.05))

    async def _rest_one(self, http: httpx.AsyncClient) -> None:
        choice = self._random.random()
        if choice < 0.3:
            await self._schedule(http)
        elif choice < 0.5:
            saying, form = self._new_message()
            answer = await self.room.ask(http, "POST", f"/conversations/{self.room.id}/messages", json=form)
            if answer.is_success:
                self._was_said(saying, answer.json())
        elif (deed := self._new_deed()) is not None:
            try:
                answer = await _ask_for(self.room, http, deed)
            finally:
                self._busy.discard((deed.message_id, deed.what))
            self._was_done(deed, "" if answer.is_success else answer.json()["code"])

    async def _schedule(self, http: httpx.AsyncClient) -> None:
        send_at = now_ms() + int(self._random.uniform(*_LATER_SECONDS) * 1000)
        saying = self.room.new_saying(self.identity.user_id, self._random, self._others, send_at=send_at)
        form = {"tempId": _temp_id(saying), "content": saying.text, "mentions": list(saying.mentions)}
        form["sendAt"] = rfc3339(send_at)
        answer = await self.room.ask(http, "POST", f"/conversations/{self.room.id}/scheduled", json=form)
        if answer.is_success:
            saying.answered = self.world.next_order()
            self.world.on_ack()


def _frame_of(deed: Deed) -> dict[str, Any]:
    about, value = {"messageId": deed.message_id}, deed.value
    match deed.what:
        case "text":
            return {"type": "message:edit", **about, "content": value[0], "mentions": list(value[1])}
        case "deleted":
            return {"type": "message:delete", **about, "forEveryone": True}
        case "pinned":
            return {"type": "message:pin" if value else "message:unpin", **about}
        case "vote":
            return {"type": "poll:vote", **about, "options": list(value)}
    return {"type": "reaction:add" if value else "reaction:remove", **about, "emoji": deed.what}


def _ask_for(room: Room, http: httpx.AsyncClient, deed: Deed) -> Awaitable[httpx.Response]:
    path, value = f"/messages/{deed.message_id}", deed.value
    match deed.what:
        case "text":
            return room.ask(http, "PATCH", path, json={"content": value[0], "mentions": list(value[1])})
        case "deleted":
            return room.ask(http, "DELETE", path, params={"forEveryone": "true"})
        case "pinned":
            return room.ask(http, "PUT" if value else "DELETE", f"{path}/pin")
        case "vote":
            return room.ask(http, "PUT", f"{path}/vote", json={"options": list(value)})
    return room.ask(http, "PUT" if value else "DELETE", f"{path}/reactions/{quote(deed.what)}")
