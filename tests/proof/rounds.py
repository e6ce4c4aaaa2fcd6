"""The course of the proof: the server lives, is hammered, dies in one of four ways, and has to account for itself.

After each restart, before anybody may send again, the history since the last look is read and every acknowledgement is
looked up in it, and some acknowledged `tempId`s are sent again over both transports; the lively room is read from its
start. At the end everybody comes back for all that they missed, everybody reads all histories, fresh devices replay them,
and the checker judges the whole.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import trio

from tests.process import ServerFailed, ServerProcess
from tests.proof.checker import check
from tests.proof.client import Device, Identity, World, body_of, codes_of, event_of, now_ms, sign_in
from tests.proof.records import Event, Ledger, Mark, Sent
from tests.proof.room import Guest, Room
from tests.proof.room_reading import look, replay_anew, wait_for_due

_WAYS = ("kill", "kill at an ack", "kill at the start", "orderly end")
_USERS = 5
_GUESTS = 3
_LIVE_SECONDS = (0.3, 2.5)
_START_SECONDS = (0.02, 0.9)  # when a start is killed: before, while and just after the server opens its data
_PAGE = 200
_OVERLAP = 100  # events of the last look that are read again: they may not have changed
_REST_SECONDS_MAX = 60.0
_SETTINGS = {"GEARLINK_AUTH__ACCESS_TOKEN_MINUTES": "1440", "GEARLINK_SERVER__DRAIN_SECONDS": "20"}


class Violated(Exception):
    """Promises that were broken, each described."""

    def __init__(self, violations: list[str]) -> None:
        super().__init__(f"{len(violations)} violations")
        self.violations = violations


@dataclass
class Proof:
    """One run in an empty directory. `tell` gets a line for a person now and then."""

    directory: Path
    port: int
    seed: int
    seconds: float
    rounds: int
    tell: Callable[[str], None]
    server: ServerProcess = field(init=False)
    world: World = field(init=False)
    devices: list[Device] = field(init=False, default_factory=list)
    guests: list[Guest] = field(init=False, default_factory=list)
    room: Room = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.world = World(f"http://127.0.0.1:{self.port}", self.seed)
        self._log: dict[str, dict[int, Event]] = {}
        self._looked_up = 0
        self._reader: Identity

    async def run(self) -> Ledger:
        """All rounds and the reading at the end; the records, not judged yet. Raises Violated, ServerFailed."""
        self._launch()
        try:
            await self._ready()
            await self._furnish()
            await self._furnish_room()
            async with trio.open_nursery() as nursery:
                everybody: list[Device | Guest] = [*self.devices, *self.guests]
                for each in everybody:
                    nursery.start_soon(each.live)
                    nursery.start_soon(each.rest)
                await self._all_rounds()
                await self._come_to_rest()
                nursery.cancel_scope.cancel()
            await self._read_everything()
            await self._read_room()
        finally:
            self.server.kill()
        return self.world.ledger

    def _launch(self) -> None:
        self.server = ServerProcess(
            self.directory / "data", self.directory / "server.log", port=self.port, settings=_SETTINGS
        )

    async def _ready(self) -> None:
        await trio.to_thread.run_sync(self.server.url)

    async def _furnish(self) -> None:
        """Five people, the first with two devices; a group of all, a group of three, and two who talk alone."""
        numbers = [_user_number(place) for place in range(_USERS)]
        code_of = codes_of(self.server)
        identities = [await sign_in(self.world, code_of, number) for number in [*numbers, numbers[0]]]
        self._reader = identities[0]
        users = [identity.user_id for identity in identities[:_USERS]]
        circles = [("group", users), ("group", users[:3]), ("direct", users[:2])]
        members: dict[str, list[str]] = {}
        async with self.world.http(self._reader.access_token) as http:
            for kind, circle in circles:
                form = {"type": kind, "memberIds": circle[1:], "encryption": "server"}
                form |= {"name": "proof"} if kind == "group" else {}
                created = body_of(await http.post("/conversations", json=form))
                members[created["id"]] = circle
        for identity in identities:
            mine = [conversation for conversation, circle in members.items() if identity.user_id in circle]
            self.devices.append(Device(self.world, identity, mine, sends=identity is not identities[_USERS - 1]))
        self._log = {conversation: {} for conversation in members}

    async def _furnish_room(self) -> None:
        """The lively room, and the three people in it: the first is its owner and pins."""
        code_of = codes_of(self.server)
        identities = [await sign_in(self.world, code_of, _guest_number(place)) for place in range(_GUESTS)]
        users = [identity.user_id for identity in identities]
        form: dict[str, object] = {"type": "group", "memberIds": users[1:], "encryption": "server"}
        form |= {"name": "lively", "settings": {"mentionAll": "everyone"}}
        async with self.world.http(identities[0].access_token) as http:
            created = body_of(await http.post("/conversations", json=form))
        self.room = Room(self.world, created["id"])
        for identity in identities:
            others = [user_id for user_id in users if user_id != identity.user_id]
            self.guests.append(Guest(self.room, identity, others, is_owner=identity is identities[0]))

    # --- rounds ------------------------------------------------------------------------------------------------------

    async def _all_rounds(self) -> None:
        ends_at = trio.current_time() + self.seconds
        done = 0
        while done < self.rounds and trio.current_time() < ends_at:
            ways = list(_WAYS)
            self._random.shuffle(ways)
            for way in ways[: self.rounds - done]:
                done += 1
                self.world.open.set()
                acked, kills = self.world.ledger.acknowledged, self.world.ledger.kills
                await self._end_by(way)
                self._launch()
                await self._ready()
                await self._look()
                ledger = self.world.ledger
                self.tell(
                    f"round {done}: {way}; kills {ledger.kills} (+{ledger.kills - kills}), acknowledged "
                    f"{ledger.acknowledged:,} (+{ledger.acknowledged - acked:,}), all there"
                )
                if trio.current_time() >= ends_at:
                    break

    async def _end_by(self, way: str) -> None:
        seconds = self._random.uniform(*_LIVE_SECONDS)
        if way == "kill at an ack":
            await self._kill_at_ack(self._random.randrange(1, 2000), seconds)
        else:
            await self._live_for(seconds)
        if way == "orderly end":
            await self._end_in_order()
            return
        await self._kill()
        if way == "kill at the start":
            for _ in range(self._random.randrange(1, 4)):
                self._launch()
                await trio.sleep(self._random.uniform(*_START_SECONDS))
                await self._kill()
        self.world.open = trio.Event()

    async def _live_for(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            while True:
                await trio.sleep(0.1)
                if not self.server.alive:
                    raise ServerFailed(f"the server ended by itself:\n{self.server.log_tail()}")

    async def _kill_at_ack(self, countdown: int, seconds_max: float) -> None:
        """Strikes in the very step in which that ack was read."""
        left, struck, server = countdown, trio.Event(), self.server

        def strike() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                server.strike()
                struck.set()

        self.world.on_ack = strike
        with trio.move_on_after(seconds_max):
            await struck.wait()
        self.world.on_ack = lambda: None

    async def _kill(self) -> None:
        self.world.ledger.room.kills_at.append(now_ms())
        await trio.to_thread.run_sync(self.server.kill)
        self.world.ledger.kills += 1

    async def _end_in_order(self) -> None:
        self.world.ending_in_order = True
        self.world.open = trio.Event()
        self.server.ask_to_end()
        status = await trio.to_thread.run_sync(self.server.wait)
        await trio.sleep(0.3)  # what was sent before the end is read to the end
        self.world.ending_in_order = False
        if status != 0:
            raise Violated([f"an orderly end gave exit status {status}:\n{self.server.log_tail()}"])
        self.world.ledger.orderly_ends += 1

    # --- accounting --------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Reads on in all histories and looks up what was acknowledged since the last look. Raises Violated."""
        violations: list[str] = []
        acks = self.world.ledger.acks[self._looked_up :]
        self._looked_up += len(acks)
        async with self.world.http(self._reader.access_token) as http:
            for conversation_id, known in self._log.items():
                after = max(0, len(known) - _OVERLAP)
                for event in await _read(http, conversation_id, after):
                    if known.setdefault(event.sequence, event) != event:
                        violations.append(f"number {event.sequence} of {conversation_id} changed over a restart")
        for ack in acks:
            stored = self._log[ack.conversation_id].get(ack.sequence)
            if stored is None or stored.message_id != ack.message_id:
                violations.append(f"lost: {ack} was acknowledged, and the history holds {stored} there")
        violations += [f"stored before an orderly end, never answered: {sent}" for sent in self._unanswered()]
        if violations:
            raise Violated(violations)
        await self._read_marks()
        await self._repeat_some()
        await look(self.room, self._people(), self._random)

    def _people(self) -> list[Identity]:
        return [guest.identity for guest in self.guests]

    def _unanswered(self) -> list[Sent]:
        """What is in the log though the server that ended in order never acknowledged it."""
        stored = {(event.device_id, event.content) for known in self._log.values() for event in known.values()}
        acked = {(ack.device_id, ack.temp_id) for ack in self.world.ledger.acks}
        waiting, self.world.unanswered = self.world.unanswered, []
        found = [
            sent
            for sent in waiting
            if (sent.device_id, sent.content) in stored and (sent.device_id, sent.temp_id) not in acked
        ]
        self.world.ledger.unanswered += found
        return found

    async def _read_marks(self) -> None:
        for device in self.devices:
            async with self.world.http(device.identity.access_token) as http:
                for conversation_id in device.conversations:
                    view = body_of(await http.get(f"/conversations/{conversation_id}"))
                    mark = Mark("", conversation_id, device.identity.user_id, "read", view["readSequenceNumber"])
                    self.world.ledger.marks.append(mark)

    async def _repeat_some(self) -> None:
        """Sends the newest acknowledged messages and some old ones again, over both transports."""
        acks = self.world.ledger.acks
        chosen = acks[-3:] + self._random.sample(acks, min(3, len(acks)))
        for ack in chosen:
            device = next(each for each in self.devices if each.identity.device_id == ack.device_id)
            sent = self.world.ledger.sent[ack.device_id, ack.temp_id]
            async with self.world.http(device.identity.access_token) as http:
                await device.post(http, sent)
            await device.ask_again(sent)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _come_to_rest(self) -> None:
        """Nobody sends anything new, all is answered; after one more kill everybody comes back for what they missed."""
        self.world.sending = False
        self.world.open.set()
        with trio.move_on_after(_REST_SECONDS_MAX):
            for device in self.devices:
                await device.all_answered()
        if waiting := sum(len(device.unacked) for device in self.devices):
            raise Violated(
                [f"{waiting} messages were never answered, though the server ran for {_REST_SECONDS_MAX:g} s"]
            )
        for device in self.devices:
            device.finish()
        await self._kill()
        self._launch()
        await self._ready()
        with trio.move_on_after(_REST_SECONDS_MAX) as waited:
            for device in self.devices:
                await device.at_rest.wait()
        if waited.cancelled_caught:
            raise Violated(["a device did not get to the end of its resume"])

    async def _read_everything(self) -> None:
        """Every conversation from its start, as each of its members reads it."""
        for device in self.devices:
            async with self.world.http(device.identity.access_token) as http:
                for conversation_id in device.conversations:
                    events = await _read(http, conversation_id, 0)
                    self.world.ledger.histories[conversation_id, device.identity.user_id] = events
        for conversation_id, known in self._log.items():
            now = self.world.ledger.histories[conversation_id, self._reader.user_id][: len(known)]
            if now != list(known.values()):
                raise Violated([f"the past of {conversation_id} is another one at the end than it was in between"])

    async def _read_room(self) -> None:
        """What is due is waited for; then each member reads the room, and fresh devices replay everything."""
        await wait_for_due(self.room, self._people())
        await look(self.room, self._people(), self._random, is_last=True)
        code_of = codes_of(self.server)
        for place in range(_GUESTS):
            fresh = await sign_in(self.world, code_of, _guest_number(place))
            await replay_anew(self.world, self.room, fresh, [self.room.id])
        fresh = await sign_in(self.world, code_of, _user_number(0))
        await replay_anew(self.world, self.room, fresh, list(self._log))

    def final_histories(self) -> dict[str, list[Event]]:
        """Each conversation as it was read at the end."""
        return {conversation: events for (conversation, _reader), events in self.world.ledger.histories.items()}

    def judge(self) -> None:
        """Raises Violated with all that the checker finds in the records."""
        if violations := check(self.world.ledger):
            raise Violated(violations)


def _user_number(place: int) -> str:
    return f"+1555123{place:04}"


def _guest_number(place: int) -> str:
    return f"+1555124{place:04}"


async def _read(http: httpx.AsyncClient, conversation_id: str, after: int) -> list[Event]:
    """The history from behind `after` to its end, oldest first."""
    events: list[Event] = []
    while True:
        query = {"after": after, "limit": _PAGE}
        page = body_of(await http.get(f"/conversations/{conversation_id}/messages", params=query))
        events += [event_of(message) for message in page["items"]]
        if page["next"] is None:
            return events
        after = events[-1].sequence
