"""A server whose operator lies, for stories about what its users' devices make of that.

The server is the real one, and the operator holds what its operator would: the store (`Operator`), into which records are
written past all rules; and the wire of each `Victim` (`Line`), on which answers and frames are rewritten for that victim
alone, and everything that goes by is overheard. `Attacker` are the operator's own keys: they pose as a device or a user, and
try to open all that was overheard. So a test can tell what a lie was good for.
"""

import json
import re
import ssl
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import msgspec
import trio
from msgspec.structs import replace

from gearlink.clock import new_id
from gearlink.sdk import Options
from gearlink.sdk.e2ee import agreement, letters, rosters
from gearlink.sdk.e2ee.certificates import account_public, certify, new_account_seed
from gearlink.sdk.e2ee.cipher import Cipher
from gearlink.sdk.e2ee.encoding import from_base64url, to_base64url
from gearlink.sdk.e2ee.letters import Duplicate, Message, SenderKeyGiven, Undecryptable
from gearlink.sdk.e2ee.records import PeerDevice, RosterState
from gearlink.sdk.e2ee.rosters import Change
from gearlink.sdk.e2ee.sessions import Envelope
from gearlink.sdk.e2ee.store import KeyStore
from gearlink.sdk.secure.told import Suspicious
from storage.events import Letter, Sealed, SilentMessage
from storage.events import Message as MessageEvent
from storage.notices import Appended, Notice, RosterChanged
from storage.records import LogEntry, MessageIndex, RosterStatement
from storage.store import Transaction
from tests.house import House
from tests.memory_vault import MemoryVault
from tests.messengers import Messenger, Phone

NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # made once: httpx would load every root certificate
API: Final = "/api/v1"
TEXT: Final = 1  # the opcode of a frame (RFC 6455 §5.2)
Answer = Callable[[Any], Any]
"""Makes another answer of the JSON of an honest one."""
Hearing = Callable[[dict[str, Any]], list[dict[str, Any]]]
"""Makes of one frame to the victim those that it is told instead."""


# --- the wire --------------------------------------------------------------------------------------------------------


class Frames:
    """Bytes of one direction of a WebSocket, cut into frames: (first byte, payload without its mask)."""

    def __init__(self) -> None:
        self._data, self._is_open = b"", False

    def feed(self, data: bytes) -> Iterator[bytes | tuple[int, bytes]]:
        """What is whole now. The head of the handshake comes first, as bytes."""
        self._data += data
        if not self._is_open:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            self._data, self._is_open = rest, True
            yield head + end
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> tuple[int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        size, at = data[1] & 127, 2
        if size > 125:
            at = 4 if size == 126 else 10
            size = int.from_bytes(data[2:at], "big")
        masked = bool(data[1] & 128)
        end = at + 4 * masked + size
        if len(data) < end or len(data) < at:
            return None
        payload = data[end - size : end]
        if masked:
            mask = data[at : at + 4]
            payload = bytes(byte ^ mask[number % 4] for number, byte in enumerate(payload))
        self._data = data[end:]
        return data[0], payload


def framed(first: int, payload: bytes) -> bytes:
    """A frame as a server sends it, without a mask (RFC 6455 §5.2)."""
    size = len(payload)
    if size < 126:
        return bytes([first, size]) + payload
    if size < 65536:
        return bytes([first, 126]) + size.to_bytes(2, "big") + payload
    return bytes([first, 127]) + size.to_bytes(8, "big") + payload


class Line:
    """The wire of one victim. `overheard` is all that went over it, without masks; `said` the frames and bodies that the
    victim sent, as JSON. Lies are told until `be_honest`."""

    def __init__(self) -> None:
        self.overheard: list[bytes] = []
        self.said: list[dict[str, Any]] = []
        self._answers: list[tuple[re.Pattern[str], Answer]] = []
        self._hearings: list[Hearing] = []

    def answer(self, route: str, lie: Answer) -> None:
        """From now on answers of routes like `GET /conversations/.*/devices` are what `lie` makes of them."""
        self._answers.append((re.compile(route), lie))

    def tell(self, lie: Hearing) -> None:
        """From now on the victim is told what `lie` makes of each frame."""
        self._hearings.append(lie)

    def withhold(self, is_hidden: Callable[[dict[str, Any]], bool]) -> None:
        """Messages of this kind are nowhere: not in frames, and not in lists."""

        def without(answer: Any) -> Any:
            return {**answer, "items": [each for each in answer["items"] if not is_hidden(each)]}

        self.tell(lambda frame: [] if frame["type"] == "message:new" and is_hidden(frame["message"]) else [frame])
        self.answer(r"GET /conversations/[^/]+/messages", without)

    def be_honest(self) -> None:
        self._answers.clear()
        self._hearings.clear()

    def options(self) -> Options:
        return Options(transport=_Transport(self), open_stream=self._open_stream)

    async def _open_stream(self, host: str, port: int) -> trio.abc.Stream:
        return _Stream(self, await trio.open_tcp_stream(host, port))

    def answered(self, method: str, path: str, body: bytes) -> bytes:
        fitting = [lie for route, lie in self._answers if route.fullmatch(f"{method} {path}")]
        if not fitting or not body:
            return body
        answer = json.loads(body)
        for lie in fitting:
            answer = lie(answer)
        return json.dumps(answer).encode()

    def told(self, frame: dict[str, Any]) -> list[dict[str, Any]]:
        frames = [frame]
        for lie in self._hearings:
            frames = [changed for each in frames for changed in lie(each)]
        return frames


class _Transport(httpx.AsyncBaseTransport):
    def __init__(self, line: Line) -> None:
        self._line, self._below = line, httpx.AsyncHTTPTransport(verify=NO_TLS)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        line = self._line
        sent = await request.aread()
        head = [f"{request.method} {request.url}".encode(), *(b": ".join(each) for each in request.headers.raw)]
        line.overheard += [*head, sent]
        if sent and request.headers.get("content-type") == "application/json":
            line.said.append(json.loads(sent))
        response = await self._below.handle_async_request(request)
        body = await response.aread()
        await response.aclose()
        line.overheard += [*(b": ".join(each) for each in response.headers.raw), body]
        if "json" in response.headers.get("content-type", "") and response.status_code < 300:
            body = line.answered(request.method, request.url.path.removeprefix(API), body)
        headers = [
            each for each in response.headers.raw if each[0].lower() not in (b"content-length", b"content-encoding")
        ]
        return httpx.Response(response.status_code, headers=headers, content=body)

    async def aclose(self) -> None:
        await self._below.aclose()


class _Stream(trio.abc.Stream):
    def __init__(self, line: Line, below: trio.SocketStream) -> None:
        self._line, self._below = line, below
        self._up, self._down = Frames(), Frames()

    async def send_all(self, data: Any) -> None:
        for part in self._up.feed(bytes(data)):
            head, payload = (0, part) if isinstance(part, bytes) else part
            self._line.overheard.append(payload)
            if head & 15 == TEXT:
                self._line.said.append(json.loads(payload))
        await self._below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._below.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while data := await self._below.receive_some(max_bytes):
            told = b"".join(self._told(part) for part in self._down.feed(bytes(data)))
            if told:
                return told
        return b""

    def _told(self, part: bytes | tuple[int, bytes]) -> bytes:
        if isinstance(part, bytes):
            self._line.overheard.append(part)
            return part
        first, payload = part
        self._line.overheard.append(payload)
        if first & 15 != TEXT:
            return framed(first, payload)
        return b"".join(framed(first, json.dumps(each).encode()) for each in self._line.told(json.loads(payload)))

    async def aclose(self) -> None:
        await self._below.aclose()


class Victim(Phone):
    """A device with a `line` that the operator holds."""

    def __init__(self, house: House, phone_number: str, vault: KeyStore | None = None) -> None:
        super().__init__(house, phone_number, vault)
        self.line = Line()

    def on(self, options: Options | None = None) -> Any:
        return super().on(options or self.line.options())

    @property
    def address(self) -> tuple[str, str]:
        """(user, device)."""
        assert isinstance(self.vault, MemoryVault)
        own = self.vault.look(agreement.own_of)
        return own.user_id, own.device_id


async def victims(house: House, *phone_numbers: str) -> list[Victim]:
    """A signed-in device for each number."""
    found = [Victim(house, number) for number in phone_numbers]
    for victim in found:
        await victim.sign_in()
    return found


# --- the operator's own keys -----------------------------------------------------------------------------------------


class Attacker:
    """Keys that the operator made, for a device that is one of this user if their own account key says so."""

    def __init__(self, user_id: str, device_id: str) -> None:
        self.user_id, self.device_id = user_id, device_id
        self.vault = MemoryVault()
        self.account_seed = new_account_seed()
        own = agreement.new_own(user_id, device_id, 0)
        certificate = certify(self.account_seed, user_id, device_id, agreement.identity_of(own))
        self.own = replace(own, account_seed=self.account_seed, certificate=certificate)
        self.vault.do(lambda tx: tx.put(self.own))
        self.keys = self.vault.do(lambda tx: agreement.upload(tx, 0, one_time_held=0, epoch=""))
        self.cipher = Cipher(self.own)

    @property
    def identity_key(self) -> str:
        return to_base64url(agreement.identity_of(self.own))

    @property
    def account_key(self) -> str:
        return to_base64url(account_public(self.account_seed))

    def listed(self, *, certified: bool) -> dict[str, Any]:
        """As it stands in the list of a conversation's devices."""
        certificate = {"certificate": to_base64url(self.own.certificate)} if certified else {}
        return {"userId": self.user_id, "deviceId": self.device_id, "identityKey": self.identity_key, **certificate}

    def bundle(self) -> dict[str, Any]:
        """As it is claimed: valid signatures, all by the attacker's own key."""
        keys = msgspec.to_builtins(self.keys)
        one_time = keys["oneTimePreKeys"][0]
        listed = {key: value for key, value in self.listed(certified=True).items() if key != "userId"}
        return {**listed, "signedPreKey": keys["signedPreKey"], "oneTimePreKey": one_time}

    def opens(self, victim: Victim) -> list[str]:
        """What the attacker can read of all that this victim ever sent."""
        user_id, device_id = victim.address
        found: list[str] = []
        for frame in victim.line.said:
            encrypted = frame.get("encrypted") or {}
            for each in encrypted.get("envelopes", ()):
                found += self._opened_envelope(user_id, device_id, Envelope(each["type"], from_base64url(each["body"])))
            if "keyId" in encrypted:
                found += self._opened_body(user_id, device_id, frame)
        return found

    def _opened_envelope(self, user_id: str, device_id: str, envelope: Envelope) -> list[str]:
        def look(tx: Any) -> letters.AnyLetter:
            if envelope.type == "prekey":
                tx.put(PeerDevice(user_id, device_id, self.cipher.identity_in(envelope), b"", 0))
            letter = letters.decode(self.cipher.open(tx, user_id, device_id, envelope, 0))
            if isinstance(letter, SenderKeyGiven):
                self.cipher.take_sender_key(tx, letter.conversation_id, user_id, device_id, letter, 0)
            return letter

        return self._read(look)

    def _opened_body(self, user_id: str, device_id: str, frame: dict[str, Any]) -> list[str]:
        key_id, body = (from_base64url(frame["encrypted"][key]) for key in ("keyId", "body"))
        place = frame.get("conversationId", "")
        return self._read(
            lambda tx: letters.decode(self.cipher.open_group(tx, place, user_id, device_id, key_id, body, 0))
        )

    def _read(self, look: Callable[[Any], letters.AnyLetter]) -> list[str]:
        try:
            letter = self.vault.do(look)
        except (Undecryptable, Duplicate):
            return []
        return [letter.content] if isinstance(letter, Message) else [type(letter).__name__]

    def statement(self, state: RosterState | None, conversation_id: str, *changes: Change) -> tuple[str, bytes]:
        """A statement of a roster that is right in all but the right to make it."""
        boss = (self.user_id, "owner", account_public(self.account_seed))
        members = tuple(each for each in state.members if each[0] != self.user_id) if state is not None else ()
        pretended = replace(state, members=(*members, boss)) if state is not None else None
        return rosters.make_statement(pretended, conversation_id, "2026-01-31T12:00:00.000Z", self.own, changes)


def as_attacker(messenger: Messenger) -> Attacker:
    """A real device whose owner is on the operator's side: with its own keys."""
    own = messenger.secure.device.own
    attacker = Attacker(own.user_id, own.device_id)
    attacker.own, attacker.account_seed = own, own.account_seed
    return attacker


# --- the store -------------------------------------------------------------------------------------------------------


class Operator:
    """Writes into the store of the real server, past all rules; and keeps a copy of every message with its envelopes, for
    later."""

    def __init__(self, house: House) -> None:
        self.house, self.store = house, house.app.store
        self._copies: dict[str, tuple[LogEntry, tuple[Letter, ...]]] = {}
        self.store.listen(self._copy)

    def _copy(self, notices: Any) -> None:
        for notice in notices:
            if isinstance(notice, Appended) and isinstance(notice.entry.event, MessageEvent | SilentMessage):
                self._copies[notice.entry.event.event_id] = (notice.entry, notice.letters)

    @property
    def silent(self) -> list[str]:
        """The ids of what programs said to one another, oldest first."""
        return [key for key, (entry, _letters) in self._copies.items() if isinstance(entry.event, SilentMessage)]

    async def put(self, *records: Any, announce: tuple[Notice, ...] = ()) -> None:
        async def change(tx: Transaction) -> None:
            for record in records:
                tx.put(record)
            for notice in announce:
                tx.announce(notice)

        await self.store.write(change)

    async def change_devices(self, user_id: str, change: Callable[[Transaction], Any]) -> None:
        """Runs a change of somebody's devices, keys or account key; the server's list in memory is one of them."""

        async def altering(tx: Transaction) -> None:
            async with self.house.app.domain.device_lists.altering(tx, user_id):
                await change(tx)

        await self.store.write(altering)

    async def say_again(
        self, message_id: str, *, conversation_id: str | None = None, sender: tuple[str, str] | None = None
    ) -> str:
        """The same ciphertext as another message: behind the newest one, or in another conversation, or as if another
        device had sent it. Returns its id."""
        entry, given = self._copies[message_id]
        event = entry.event
        assert isinstance(event, MessageEvent | SilentMessage)
        user_id, device_id = sender or (event.actor_id, event.device_id)
        copy = replace(event, event_id=new_id(), actor_id=user_id, device_id=device_id, temp_id=new_id())
        return await self._append(conversation_id or entry.conversation_id, copy, given)

    async def say(self, conversation_id: str, sender: tuple[str, str], content: Any) -> str:
        """What nobody said."""
        user_id, device_id = sender
        event = MessageEvent(new_id(), user_id, self.house.app.clock.now(), device_id, "text", content, new_id())
        return await self._append(conversation_id, event, ())

    async def say_rubbish(self, conversation_id: str, sender: tuple[str, str], receiver: tuple[str, str]) -> str:
        """A silent message for one device, which nobody can open."""
        user_id, device_id = sender
        content = Sealed("double-ratchet", b"", devices=(receiver[1],))
        now = self.house.app.clock.now()
        event = SilentMessage(new_id(), user_id, now, device_id, "control", content, new_id())
        return await self._append(conversation_id, event, (Letter(*receiver, "message", b"\x01" + bytes(199)),))

    async def _append(
        self, conversation_id: str, event: MessageEvent | SilentMessage, given: tuple[Letter, ...]
    ) -> str:
        async def change(tx: Transaction) -> None:
            sequence = await tx.append(conversation_id, event, letters=given)
            tx.put(MessageIndex(event.event_id, conversation_id, sequence))

        await self.store.write(change)
        return event.event_id

    async def forge_roster(self, conversation_id: str, version: int, statement: str, signature: bytes) -> None:
        """A statement of a roster that no rule was asked about."""
        record = RosterStatement(conversation_id, version, statement, signature, 1000, 0)
        await self.put(record, announce=(RosterChanged(conversation_id, version),))


# --- what is told of it ----------------------------------------------------------------------------------------------


def suspects(messenger: Messenger, code: str) -> list[Suspicious]:
    return [each for each in messenger.noticed if isinstance(each, Suspicious) and each.code == code]


async def suspicious(messenger: Messenger, code: str) -> Suspicious:
    """Waits until this was told."""
    await messenger.until(lambda: suspects(messenger, code))
    return suspects(messenger, code)[0]


async def talk(room: str, *people: Messenger) -> None:
    """Everybody says something that all others can read."""
    for number, each in enumerate(people):
        text = f"still here {number} {new_id()}"
        await each.say(room, text)
        for other in people:
            if other is not each:
                await other.hears(text)
