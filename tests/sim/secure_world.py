"""People with devices on a server that crashes, and what they try to do: one history of encrypted conversations.

A `Deed` is one thing that is tried; what cannot be done at that moment has simply not happened. Deeds begin one after the
other, a moment apart, and do not wait for one another. The choices come from one seed; keys do not, so the same seed tells
nearly the same history again, not always to the letter.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from gearlink.sdk import Refused, Unreachable
from gearlink.sdk.e2ee.records import Kept, Outgoing, Repair
from gearlink.sdk.secure.client import SecureClient
from storage.records import Device, Member
from tests.sim.secure_handset import Fuse, Handset
from tests.sim.secure_net import Server

BEGIN: Final = 1_767_225_600.0  # 2026-01-01T00:00:00Z
DAY: Final = 86_400.0
DAYS_MAX: Final = 50.0  # of all jumps together: the server keeps ciphertext for 60
DEVICES_MAX: Final = 3
EMOJIS: Final = ("\N{THUMBS UP SIGN}", "\N{ONION}")
SETTLE_SECONDS: Final = 20.0
SETTLES_MAX: Final = 60


@dataclass(frozen=True)
class Deed:
    """`kind` names a method of `World`; who does it, where and to what are taken from the numbers, modulo what there is."""

    kind: str
    who: int = 0
    where: int = 0
    what: int = 0


@dataclass
class World:
    """Made by `open_world`. `people` are the devices of each person, in the order in which they came."""

    nursery: trio.Nursery
    chance: random.Random
    seed: int
    people: list[list[Handset]] = field(default_factory=list)
    rooms: list[str] = field(default_factory=list)
    skew: float = 0.0
    trouble: float = 0.0
    restores: int = 0
    troubles: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = Server(self.nursery, self.chance, self.wall)
        self._texts = 0
        self.said: dict[str, str] = {}  # tempId: text
        self.edits: set[str] = set()

    def wall(self) -> float:
        return BEGIN + trio.current_time() + self.skew

    @property
    def handsets(self) -> list[Handset]:
        return [handset for devices in self.people for handset in devices]

    # --- beginning and end -------------------------------------------------------------------------------------------

    async def settle_in(self, people: int, devices: Sequence[int]) -> None:
        """So many people with so many devices each, all on, a group of all and a conversation of two."""
        await self.server.start()
        for number in range(people):
            self.people.append([])
            for _device in range(devices[number]):
                await self._enter(number)
        await self.calm()
        for _try in range(3):
            await self._as(self.people[0][0], self._found, [each[0].user_id for each in self.people[1:]])
        await self._as(self.people[0][0], self._found, [self.people[1][0].user_id], "direct")
        self.server.keep()

    async def _enter(self, number: int) -> Handset:
        devices = self.people[number]
        handset = Handset(f"{'abcd'[number]}{len(devices) + 1}", self.server, self.chance, self.wall)
        await handset.sign_in(f"+1555123000{number}")
        devices.append(handset)
        await self.nursery.start(handset.live)
        await self._linked(handset, devices)  # two first devices at once would each make an account key
        return handset

    async def _linked(self, handset: Handset, devices: Sequence[Handset]) -> None:
        """One of the person's other devices links it, as soon as one can. Whatever dies meanwhile does it again."""
        for _try in range(60):
            await trio.sleep(1.0)
            secure = handset.secure
            if secure is not None and secure.keeping.linked.is_set():
                return
            code = handset.code
            for other in devices:
                if _try % 20 == 3 and code and other is not handset and other.secure is not None:
                    with suppress(Refused, Unreachable):
                        await self._as(other, _link, code)
                        break

    async def calm(self) -> None:
        """Everything that has a reason to happen happens: all is on, nothing gets lost, nothing waits any more."""
        self.trouble = 0.0
        if not self.server.up:
            await self.server.start()
        for handset in self.handsets:
            handset.fuse, handset.trouble = None, 0.0
            if handset.is_removed:
                continue
            if handset.run is not None and (handset.run.leaving.is_set() or not handset.run.alive):
                await handset.run.ended.wait()
            if handset.run is None:
                await self.nursery.start(handset.live)
            else:
                handset.run.network.trouble = 0.0
        await trio.sleep(5.0)
        for handset in self.handsets:
            if handset.run is not None:
                handset.run.network.drop()  # what got lost on a socket comes with the next one
        quiet = 0
        for _look in range(SETTLES_MAX):
            await trio.sleep(SETTLE_SECONDS)
            quiet = 0 if await self._busy() else quiet + 1
            if quiet == 2:
                return
            if self.restores:
                self.skew += 600.0  # what is asked for again is asked ever more seldom
        busy = await self._busy()
        self.troubles.append(f"it never ends: {busy}")

    async def _busy(self) -> str:
        for handset in self.handsets:
            if handset.is_removed:
                continue
            vault = handset.vault
            for kind in (Outgoing, Repair):
                left = vault.look(lambda tx, kind=kind: tx.scan(kind))  # type: ignore[misc]
                left = [each for each in left if isinstance(each, Outgoing) or self._is_answered(each, handset)]
                if left:
                    each = left[0]
                    more = f"{each.reason}/{each.tries}" if isinstance(each, Repair) else f"{each.temp_id}"
                    return f"{handset} has {kind.__name__} {more}"
            if handset.secure is None or not handset.secure.client.online:
                return f"{handset} is not there"
        return ""

    def _is_answered(self, repair: Repair, handset: Handset) -> bool:
        """Whether what is asked for will come: after a restore the server may take somebody for a member to whom nobody
        has spoken."""
        if not self.restores:
            return True
        sender = next(each for each in self.handsets if each.device_id == repair.device_id)
        kept = sender.vault.look(lambda tx: [
            each for each in tx.scan(Kept, repair.conversation_id)
            if repair.subject == each.message_id or (
                repair.count == each.count > 0 and each.sender_device_id == sender.device_id)
        ])  # fmt: skip
        return any((handset.user_id, handset.device_id) in each.audience for each in kept) and not sender.is_removed

    # --- doing -------------------------------------------------------------------------------------------------------

    async def do(self, deed: Deed) -> None:
        """Begins it, and lets a moment go by."""
        await getattr(self, deed.kind)(deed)
        await trio.sleep(self.chance.choice((0.0, 0.0, 0.01, 0.1, 1.0, 5.0)))
        for handset in self.handsets:  # what was killed is started again by its person, sooner or later
            if handset.run is None and not handset.is_removed and not handset.is_off and self.chance.random() < 0.3:
                await self.nursery.start(handset.live)

    def note(self, *words: object) -> None:
        self.log.append(f"{trio.current_time():8.2f} " + " ".join(map(str, words)))

    def name_of(self, message_id: str) -> str:
        """What a message is called in what is said about it."""
        for each in self.server.ledger.written:
            if each.message.event_id == message_id:
                return f"{self.said.get(each.message.temp_id, each.message.kind)!r}"
        return "a message that the server never had"

    def device_name(self, device_id: str) -> str:
        return next((each.name for each in self.handsets if each.device_id == device_id), "")

    def _some(self, deed: Deed) -> Handset:
        """A device that is not removed: the one who does it."""
        there = [each for each in self.handsets if not each.is_removed]
        return there[deed.who % len(there)]

    def _room(self, deed: Deed) -> str | None:
        return self.rooms[deed.where % len(self.rooms)] if self.rooms else None

    async def _as(self, handset: Handset, act: Callable[..., Any], *given: Any) -> None:
        """Does it within a run of this device, and waits for the end of it or of the run."""
        run = handset.run
        if run is None or run.secure is None or run.nursery is None:
            return
        done = trio.Event()

        async def within(secure: SecureClient) -> None:
            try:
                await act(secure, *given)
            except Unreachable:
                pass
            except Refused as refused:
                self.note(handset, act.__name__, "was refused:", refused.code)
            finally:
                done.set()

        run.nursery.start_soon(within, run.secure)
        await done.wait()

    def _begin(self, handset: Handset, act: Callable[..., Any], *given: Any) -> None:
        self.nursery.start_soon(self._as, handset, act, *given)

    def _text(self, word: str) -> str:
        self._texts += 1
        return f"{word} {self._texts}"

    # --- talking -----------------------------------------------------------------------------------------------------

    async def say(self, deed: Deed) -> None:
        handset, room = self._some(deed), self._room(deed)
        if room is None:
            return
        for _each in range(1 + deed.what % 3):
            text, temp_id = self._text("text"), handset.new_temp_id()
            self.said[temp_id] = text
            self.note(handset, "says", text, "in", self.rooms.index(room))
            self._begin(handset, _say, room, text, temp_id)

    def _message(self, handset: Handset, room: str, back: int, *, own: bool) -> str | None:
        """The id of a message of this conversation that this device keeps."""
        ids = [
            each.entry.event.event_id for each in self.server.ledger.written
            if each.message.kind == "text" and each.entry.conversation_id == room
            and (not own or each.message.actor_id == handset.user_id)
        ]  # fmt: skip
        return ids[-1 - back % len(ids)] if ids else None

    async def edit(self, deed: Deed) -> None:
        handset, room = self._some(deed), self._room(deed)
        message_id = self._message(handset, room, deed.what % 3, own=True) if room else None
        if message_id is not None:
            text = self._text("edit")
            self.edits.add(text)
            self.note(handset, "edits", text)
            self._begin(handset, _edit, message_id, text)

    async def react(self, deed: Deed) -> None:
        handset, room = self._some(deed), self._room(deed)
        message_id = self._message(handset, room, deed.what % 2, own=False) if room else None
        if message_id is not None:
            self.note(handset, "reacts", deed.what % 5 < 3)
            self._begin(handset, _react, message_id, EMOJIS[deed.what % 4 // 3], deed.what % 5 < 3)

    # --- groups ------------------------------------------------------------------------------------------------------

    async def found(self, deed: Deed) -> None:
        """A new conversation."""
        handset = self._some(deed)
        others = [each[0].user_id for i, each in enumerate(self.people) if deed.what >> i & 1]
        others = [each for each in others if each != handset.user_id]
        if others and len(self.rooms) < 4:
            self.note(handset, "founds")
            self._begin(
                handset, self._found, others[:1] if deed.where % 2 else others, ("group", "direct")[deed.where % 2]
            )

    async def _found(self, secure: SecureClient, others: Sequence[str], kind: str = "group") -> None:
        view = await secure.groups.create(kind, others, name="G" if kind == "group" else None, description=None)  # type: ignore[arg-type]
        if view.id not in self.rooms:
            self.rooms.append(view.id)

    def _person(self, deed: Deed) -> str:
        return self.people[deed.what % len(self.people)][0].user_id

    async def add(self, deed: Deed) -> None:
        handset, room = self._some(deed), self._room(deed)
        self.note(handset, "adds", deed.what % len(self.people))
        self._begin(handset, _add, room, self._person(deed))

    async def remove(self, deed: Deed) -> None:
        handset, room = self._some(deed), self._room(deed)
        if self._person(deed) != handset.user_id:
            self.note(handset, "removes", deed.what % len(self.people))
            self._begin(handset, _remove, room, self._person(deed))

    async def leave(self, deed: Deed) -> None:
        handset, room = self._some(deed), self._room(deed)
        self.note(handset, "leaves")
        self._begin(handset, _leave, room)

    async def appoint(self, deed: Deed) -> None:
        handset, room = self._some(deed), self._room(deed)
        role = ("admin", "member")[deed.where // 4 % 2]
        self.note(handset, "appoints", deed.what % len(self.people), role)
        self._begin(handset, _appoint, room, self._person(deed), role)

    # --- devices -----------------------------------------------------------------------------------------------------

    async def arrive(self, deed: Deed) -> None:
        """A new device of somebody."""
        number = deed.who % len(self.people)
        devices = [each for each in self.people[number] if not each.is_removed]
        if len(devices) < DEVICES_MAX and self.server.up:
            handset = Handset(f"{'abcd'[number]}{len(self.people[number]) + 1}", self.server, self.chance, self.wall)
            with suppress(Unreachable, Refused):
                await handset.sign_in(f"+1555123000{number}")
                self.people[number].append(handset)
                self.note(handset, "arrives")
                await self.nursery.start(handset.live)
                if deed.what % 2:
                    handset.fuse = Fuse(1 + deed.what % 9, ("before", "after")[deed.what // 2 % 2])
                self.nursery.start_soon(self._linked, handset, self.people[number])

    async def depart(self, deed: Deed) -> None:
        """A device is removed, by another one of its user."""
        handset = self._some(deed)
        others = [
            each for each in self.people[[handset in each for each in self.people].index(True)]
            if each is not handset and not each.is_removed and each.secure is not None and each.secure.keeping.linked.is_set()
        ]  # fmt: skip
        if others and self.server.up:
            handset.is_removed = True
            self.note(handset, "is removed")
            handset.kill()
            self._begin(others[0], self._removed, handset.device_id)

    async def _removed(self, secure: SecureClient, device_id: str) -> None:
        for _try in range(20):
            with suppress(Unreachable):
                await secure.client.remove_device(device_id)
                return
            await trio.sleep(1.0)

    # --- trouble -----------------------------------------------------------------------------------------------------

    async def drop(self, deed: Deed) -> None:
        run = self._some(deed).run
        if run is not None:
            run.network.drop()

    async def kill(self, deed: Deed) -> None:
        handset = self._some(deed)
        self.note(handset, "is killed")
        handset.kill()

    async def fuse(self, deed: Deed) -> None:
        handset = self._some(deed)
        if handset.run is not None:
            handset.fuse = Fuse(1 + deed.what // 2 % 6, ("before", "after")[deed.what % 2])
            self.note(handset, "has a fuse", handset.fuse.writes, handset.fuse.when)

    async def off(self, deed: Deed) -> None:
        handset = self._some(deed)
        if handset.run is not None:
            self.note(handset, "goes off")
            handset.is_off = True
            handset.run.leaving.set()

    async def on(self, deed: Deed) -> None:
        handset = self._some(deed)
        if handset.run is None:
            self.note(handset, "goes on")
            handset.is_off = False
            await self.nursery.start(handset.live)

    async def ons(self, _deed: Deed) -> None:
        """Everything is on again."""
        for handset in self.handsets:
            handset.is_off = False
            if handset.run is None and not handset.is_removed:
                await self.nursery.start(handset.live)
        if not self.server.up:
            await self.server.start()
        self.note("all are on")

    async def storm(self, deed: Deed) -> None:
        """The network gets bad, or good again."""
        self.trouble = (0.0, 0.05, 0.3)[deed.what % 3]
        for handset in self.handsets:
            handset.trouble = self.trouble
            if handset.run is not None:
                handset.run.network.trouble = self.trouble
        self.note("trouble", self.trouble)

    async def crash(self, deed: Deed) -> None:
        """The server ends, and begins again soon."""
        if any(each.run is not None and each.run.network.renewing for each in self.handsets) or not self.server.up:
            return
        await self.server.crash()
        self.note("the server crashes")
        if deed.what % 2:
            await trio.sleep(deed.what)
        await self.server.start()

    async def jump(self, deed: Deed) -> None:
        """Time goes by; who is on looks at the clock."""
        days = (0.04, 1.0, 8.0, 30.0)[deed.what % 4]
        if self.skew / DAY + days <= DAYS_MAX:
            self.skew += days * DAY
            self.note("jumps", days, "days")
            for handset in self.handsets:
                if handset.secure is not None:
                    handset.secure.keeping.look()
                    handset.secure.repairs.look()

    async def rest(self, deed: Deed) -> None:
        await trio.sleep(1.0 + deed.what * 2)

    async def restore(self, deed: Deed) -> None:
        """The server is put back to its backup. Devices that came since then are unknown to it."""
        if any(each.run is not None and each.run.network.renewing for each in self.handsets) or not self.server.up:
            return
        await self.server.crash()
        self.server.restore()
        self.restores += 1
        self.note("the server is restored")
        there = {each.device_id for each in self.server.store.all(Device)}
        for handset in self.handsets:
            if handset.device_id not in there:
                handset.is_removed = True
                handset.kill()
        await trio.sleep(deed.what % 4)
        await self.server.start()

    async def keep(self, _deed: Deed) -> None:
        """A backup is made of the server."""
        self.server.keep()
        self.note("backup")

    async def members(self, room: str) -> set[str]:
        return {each.user_id for each in await self.server.store.scan(Member, room, limit=1000)}


# --- what is done within a run ---------------------------------------------------------------------------------------


async def _say(secure: SecureClient, room: str, text: str, temp_id: str) -> None:
    await secure.send(room, text, temp_id)


async def _edit(secure: SecureClient, message_id: str, text: str) -> None:
    if await secure.message(message_id) is not None:
        await secure.edit(message_id, text)


async def _react(secure: SecureClient, message_id: str, emoji: str, added: bool) -> None:
    if await secure.message(message_id) is not None:
        await secure.react(message_id, emoji, added=added)


async def _add(secure: SecureClient, room: str, user_id: str) -> None:
    if (await secure.companies.conversation(room)).type != "direct":
        await secure.groups.add(room, [user_id])


async def _remove(secure: SecureClient, room: str, user_id: str) -> None:
    if (await secure.companies.conversation(room)).type != "direct":
        await secure.groups.remove(room, user_id)


async def _leave(secure: SecureClient, room: str) -> None:
    if (await secure.companies.conversation(room)).type != "direct":
        await secure.client.remove_member(room, secure.device.own.user_id)


async def _appoint(secure: SecureClient, room: str, user_id: str, role: Any) -> None:
    if (await secure.companies.conversation(room)).type != "direct":
        await secure.groups.appoint(room, user_id, role)


async def _link(secure: SecureClient, code: str) -> None:
    await secure.link(code, history=False)
