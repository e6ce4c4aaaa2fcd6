"""A server without doors, on a store and a clock of the test's, and the devices that hear of what people do there.

A `Deed` is one thing that somebody tries to do; what the rules refuse has simply not happened. `World.do` does it, and
`World.truth` is what the server shows a user at this moment: what every client of that user has to have come to. The
readers come to it in different ways: over a socket that is always open, over one that comes and goes, over sync calls.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from config.load import load
from gearlink import app
from gearlink.accounts import Actor
from gearlink.calls import (
    ConversationChange,
    ConversationForm,
    EditForm,
    MemberChange,
    MembersForm,
    MessageForm,
    PreferencesForm,
    SettingsForm,
    SyncForm,
)
from gearlink.catchup import resume
from gearlink.clock import new_id, rfc3339
from gearlink.doorway import Doorway
from gearlink.errors import Refusal
from gearlink.hub import Session
from gearlink.journal import Metrics
from gearlink.protocol import PollForm, encode
from gearlink.sync import Sync
from storage.records import Account, Conversation, Device, Draft, Member, Membership, Record, Untold
from storage.store import Store, Transaction
from tests.fakes import FakeClock
from tests.house import NO_LIMITS
from tests.sim.client import Client, plain

EMOJIS = ("\N{THUMBS UP SIGN}", "\N{PARTY POPPER}", "\N{ONION}")
_TTL_MS = 10**12


@dataclass(frozen=True)
class Deed:
    """`kind` names a method of `World`; who, where and about what are taken from the numbers, modulo what there is."""

    kind: str
    who: int = 0
    where: int = 0
    what: int = 0


class Outbox:
    """In place of a socket's: what is put is heard at once. It takes the RFC 6455 §5.2 frames apart again."""

    size, overflowed = 0, False

    def __init__(self, client: Client) -> None:
        self._client, self.closing = client, False
        self.reload: list[str] = []

    def put(self, data: bytes) -> None:
        while data and not self.closing:
            size, start = data[1], 2
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            elif size == 127:
                size, start = int.from_bytes(data[2:10], "big"), 10
            frame = json.loads(data[start : start + size])
            self.reload += frame.get("reload", [])
            self._client.hear(frame)
            data = data[start + size :]

    def close(self) -> None:
        self.closing = True

    async def drained(self) -> None:
        await trio.lowlevel.checkpoint()


class World:
    """`people` users, each with a device that does everything and never listens; `readers` are their other devices."""

    def __init__(self, store: Store, clock: FakeClock, people: int = 3) -> None:
        self.clock = clock
        self.users = [new_id() for _ in range(people)]
        self.hands = [_actor(user_id) for user_id in self.users]
        self.rooms: list[str] = []
        self.messages: dict[str, list[str]] = {}  # by room
        self.polls: dict[str, list[str]] = {}
        self.readers: list[Reader] = []
        self.open(store)

    def open(self, store: Store) -> None:
        """The server begins: with nothing in its memory."""
        self.store = store
        settings = load(None, {}, {**NO_LIMITS, "storage.data": "nowhere", "server.listen": "127.0.0.1:0"})
        metrics = Metrics()
        self.house = app.furnish(settings, store, self.clock, metrics, None)  # type: ignore[arg-type]
        self.domain = self.house.domain
        self.doorway = Doorway(
            store=store, domain=self.domain, hub=self.house.hub, broker=self.house.broker,
            pressure=self.house.pressure, clock=self.clock, metrics=metrics, outbox_bytes_max=1 << 20,
        )  # fmt: skip
        self.domain.sync = Sync(self.doorway).answer

    async def settle_in(self) -> None:
        """Accounts and devices for everybody."""
        now = self.clock.now()
        records: list[Record] = [Account(user, f"+1555{i:07}", now, now) for i, user in enumerate(self.users)]
        records += [_device(actor, now) for actor in self.hands]
        await self.put(*records)

    async def put(self, *records: Record) -> None:
        async def change(tx: Transaction) -> None:
            for record in records:
                tx.put(record)

        await self.store.write(change)

    async def reader(self, kind: "type[Reader]", who: int) -> "Reader":
        """A device of this user that listens from now on."""
        actor = _actor(self.users[who])
        await self.put(_device(actor, self.clock.now()))
        reader = kind(self, actor)
        self.readers.append(reader)
        return reader

    # --- what people do ----------------------------------------------------------------------------------------------

    async def do(self, deed: Deed) -> None:
        """Tries it."""
        actor = self.hands[deed.who % len(self.hands)]
        room_id = _newest(self.rooms, deed.where % 2)
        said = self.polls if deed.kind == "vote" else self.messages
        message_id = _newest(said.get(room_id, []), deed.what % 4)
        with suppress(Refusal):
            await getattr(self, deed.kind)(actor, room_id, message_id, deed.what)

    async def found(self, actor: Actor, _room: str, _message: str, what: int) -> None:
        others = [user for i, user in enumerate(self.users) if what >> i & 1 and user != actor.user_id]
        settings = SettingsForm(history_visible=bool(what & 8), pin="everyone", invite="everyone")
        form = ConversationForm(type="group", encryption="server", member_ids=others, name="G", settings=settings)
        view, _created = await self.domain.conversations.create(actor, form)
        self.rooms.append(view.id)

    async def send(self, actor: Actor, room: str, message: str, what: int) -> None:
        more: dict[str, Any] = {}
        if what % 4 == 1:
            more = {"reply_to_id": message}
        elif what % 4 == 2:
            more = {"expires_in_seconds": 30 * what}
        elif what % 4 == 3:
            more = {"poll": PollForm(options=["a", "b"]), "kind": "poll"}
        sent = await self.domain.messages.send(actor, room, MessageForm(temp_id=new_id(), content=f"m{what}", **more))
        self.messages.setdefault(room, []).append(sent.message_id)
        if "poll" in more:
            self.polls.setdefault(room, []).append(sent.message_id)

    async def edit(self, actor: Actor, _room: str, message: str, what: int) -> None:
        await self.domain.amendments.edit(actor, message, EditForm(content=f"e{what}"))

    async def delete(self, actor: Actor, _room: str, message: str, what: int) -> None:
        await self.domain.amendments.delete(actor, message, for_everyone=what % 3 > 0)

    async def react(self, actor: Actor, _room: str, message: str, what: int) -> None:
        await self.domain.reactions.react(actor, message, EMOJIS[what % 3], added=what % 5 > 0)

    async def pin(self, actor: Actor, _room: str, message: str, what: int) -> None:
        await self.domain.amendments.pin(actor, message, pinned=what % 3 > 0)

    async def vote(self, actor: Actor, _room: str, message: str, what: int) -> None:
        if what % 7:
            await self.domain.polls.vote(actor, message, [what % 2])
        else:
            await self.domain.polls.close(actor, message)

    async def rename(self, actor: Actor, room: str, _message: str, what: int) -> None:
        timer = SettingsForm(disappearing_seconds=60 * (what % 3))
        form = ConversationChange(name=f"G{what}") if what % 2 else ConversationChange(settings=timer)
        await self.domain.conversations.change(actor, room, form)

    async def add(self, actor: Actor, room: str, _message: str, what: int) -> None:
        await self.domain.members.add(actor, room, MembersForm(user_ids=[self.users[what % len(self.users)]]))

    async def remove(self, actor: Actor, room: str, _message: str, what: int) -> None:
        await self.domain.members.remove(actor, room, self.users[what % len(self.users)])

    async def appoint(self, actor: Actor, room: str, _message: str, what: int) -> None:
        form = MemberChange(role=("owner", "admin", "member")[what // 3 % 3])
        await self.domain.members.change(actor, room, self.users[what % len(self.users)], form)

    async def dissolve(self, actor: Actor, room: str, _message: str, what: int) -> None:
        if what % 4 == 0:
            await self.domain.conversations.delete(actor, room)

    async def prefer(self, actor: Actor, room: str, _message: str, what: int) -> None:
        await self.domain.preferences.change(
            actor, room, PreferencesForm(archived=bool(what % 2), pinned=what % 3 == 0)
        )

    async def draft(self, actor: Actor, room: str, _message: str, what: int) -> None:
        await self.domain.preferences.set_draft(actor, room, f"d{what}" if what % 3 else None)

    async def read(self, actor: Actor, room: str, _message: str, what: int) -> None:
        await self.domain.receipts.mark_read(actor, room, what)

    async def wait(self, _actor: Actor, _room: str, _message: str, what: int) -> None:
        self.clock.advance(seconds=30 * what)
        if what % 2:
            await self.run_timers()

    async def listen(self, _actor: Actor, _room: str, _message: str, what: int) -> None:
        """One of the readers that come and go looks what there is."""
        await self.readers[what % len(self.readers)].look()

    async def run_timers(self) -> None:
        while await self.house.timers.tick():
            pass

    # --- what has to have come of it ---------------------------------------------------------------------------------

    async def calm(self) -> None:
        """Until everything that was stored has been told."""
        await self.run_timers()
        while await self.store.scan(Untold, limit=1):  # noqa: ASYNC110  # whose time comes by itself
            await trio.sleep(0.05)

    async def truth(self, user_id: str) -> dict[str, Any]:
        """What the server shows this user now."""
        actor, shown = _actor(user_id), {}
        for each in await self.store.scan(Membership, user_id, limit=1000):
            member = await self.store.get(Member, each.conversation_id, user_id)
            if member is None or await self.store.get(Conversation, each.conversation_id) is None:
                continue  # it was deleted, and this is on its way out
            view = await self.view(actor, each.conversation_id)
            draft = await self.store.get(Draft, user_id, each.conversation_id)
            room = Client(user_id).room(view["id"])
            room.show(view)
            room.items = await self.history(actor, view["id"])
            shown[view["id"]] = snapshot(room, member.joined_sequence) | {
                "draft": draft.content.text if draft is not None and draft.content is not None else None  # type: ignore[union-attr]
            }
        return shown

    async def view(self, actor: Actor, room_id: str) -> dict[str, Any]:
        view: dict[str, Any] = json.loads(encode(await self.domain.conversations.view(actor, room_id)))
        return view

    async def history(self, actor: Actor, room_id: str) -> dict[int, dict[str, Any]]:
        """All items that are shown, by number."""
        items: dict[int, dict[str, Any]] = {}
        after: int | None = 0
        while after is not None:
            page = json.loads(encode(await self.domain.messages.page(actor, room_id, None, after, 7)))
            items |= {item["sequenceNumber"]: item for item in page["items"]}
            after = None if page["next"] is None else int(page["next"])
        return items

    async def seen(self, client: Client) -> dict[str, Any]:
        """What this client shows now: like every client it hides what has expired by its own clock."""
        now = self.clock.now()
        shown = {}
        for room_id, room in client.rooms.items():
            member = await self.store.get(Member, room_id, client.user_id)
            alive = Client(client.user_id).room(room_id)
            alive.info, alive.members = room.info, room.members
            alive.items = {number: item for number, item in room.items.items() if not _is_over(item, now)}
            joined = member.joined_sequence if member is not None else 0
            shown[room_id] = snapshot(alive, joined) | {"draft": client.drafts.get(room_id)}
        return shown


def _newest(ids: Sequence[str], back: int) -> str:
    """The newest of these, or one a little older; where there is none, one that nothing has."""
    return ids[-1 - back % len(ids)] if ids else new_id()


def snapshot(room: Any, joined: int) -> dict[str, Any]:
    """What is compared: what came before the user did is not."""
    items = {number: plain(item) for number, item in room.items.items() if number > joined}
    return {"info": room.info, "members": room.members, "items": items}


def differences(seen: Any, truth: Any, path: str = "") -> Iterator[str]:
    """Where the two are not the same, one line each."""
    if isinstance(seen, dict) and isinstance(truth, dict):
        for key in seen.keys() | truth.keys():
            yield from differences(seen.get(key, "nothing"), truth.get(key, "nothing"), f"{path}/{key}")
    elif seen != truth:
        yield f"{path}: the client has {seen!r}, the server shows {truth!r}"


def _is_over(item: dict[str, Any], now: int) -> bool:
    return bool(item.get("expiresAt")) and item["expiresAt"] <= rfc3339(now)


def _actor(user_id: str) -> Actor:
    return Actor(user_id, new_id(), new_id(), _TTL_MS * 10, False)


def _device(actor: Actor, now: int) -> Device:
    return Device(actor.user_id, actor.device_id, "x", "bot", now, now, actor.session_id)


# --- those who listen ------------------------------------------------------------------------------------------------


class Reader:
    """A device that hears of everything in its own way."""

    def __init__(self, world: World, actor: Actor) -> None:
        self.world, self.actor = world, actor
        self.client = Client(actor.user_id)

    async def look(self) -> None:
        """Hears of what there is now."""

    async def catch_up(self) -> None:
        """Hears of all that there is."""
        await self.look()

    async def restarted(self) -> None:
        """The server has begun anew."""

    async def load(self, room_ids: Sequence[str]) -> None:
        """Reads the history over REST, where the server says that it cannot tell it."""
        for room_id in room_ids:
            view = await self.world.view(self.actor, room_id)
            room = self.client.room(room_id)
            room.show(view)
            room.items = await self.world.history(self.actor, room_id)
            room.cursor, room.knows_marks = view["sequenceNumber"], False


class Visitor(Reader):
    """A socket that is open for as long as it takes to catch up."""

    async def look(self) -> None:
        await self.close(await self.connect())

    async def connect(self) -> Session:
        world, outbox = self.world, Outbox(self.client)
        epoch, cursors = self.client.epoch, self.client.cursors
        if epoch != world.store.epoch:
            self.client.forget()
        self.client.epoch = world.store.epoch
        session = Session(self.actor, outbox, None)  # type: ignore[arg-type]
        world.house.hub.enter(session)
        since = await world.domain.accounts.connected_at(self.actor)
        await world.domain.accounts.seen(self.actor)
        await resume(world.doorway, session, since, epoch, cursors)
        await self.load(outbox.reload)
        return session

    async def close(self, session: Session) -> None:
        session.outbox.close()
        self.world.house.hub.leave(session)


class Resident(Visitor):
    """A socket that is always open."""

    session: Session | None = None

    async def look(self) -> None:
        if self.session is None:
            self.session = await self.connect()

    async def restarted(self) -> None:
        self.session = await self.connect()


class Caller(Reader):
    """Sync calls with a small limit; one call each time it looks."""

    limit = 3

    async def look(self) -> None:
        await self.call()

    async def call(self) -> bool:
        """One call. True if that was all."""
        form = SyncForm(epoch=self.client.epoch, cursors=self.client.cursors, limit=self.limit)
        answer: dict[str, Any] = msgspec.json.decode(encode(await self.world.domain.sync(self.actor, form)))
        if answer["epoch"] != self.client.epoch:
            self.client.forget()
        self.client.epoch = answer["epoch"]
        for view in answer["conversations"]:
            self.client.introduce(view)
        for event in answer["events"]:
            self.client.hear(event)
        for room_id in answer["cursors"].keys() - set(answer.get("reload", ())):
            assert self.client.room(room_id).cursor in (None, answer["cursors"][room_id])
            self.client.room(room_id).cursor = answer["cursors"][room_id]
        await self.load(answer.get("reload", ()))
        assert all(self.client.cursors[room_id] == answer["cursors"][room_id] for room_id in answer.get("reload", ()))
        return bool(answer["complete"])

    async def catch_up(self) -> None:
        for _call in range(300):
            if await self.call():
                return
        raise AssertionError("sync never ends")
