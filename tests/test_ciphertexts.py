"""Dropping ciphertext, against a model: after any acknowledgements and any crash, what everybody has is gone and what
somebody lacks is there."""

import random
from typing import Any

import pytest

from config import limits
from config.settings import Settings
from gearlink.accounts import Actor
from gearlink.ciphertexts import FORGET_ENVELOPES, Ciphertexts, forget_acknowledged, forget_message
from gearlink.clock import new_id
from gearlink.device_lists import DeviceLists
from storage.events import Letter, Message, MessageEdited, Sealed, SilentMessage
from storage.records import (
    Amendment,
    Conversation,
    Delivery,
    Device,
    DeviceKeys,
    Due,
    Envelope,
    LogEntry,
    Member,
    Membership,
    SignedPreKey,
    Undropped,
)
from storage.store import StoreFull, Transaction
from tests.changes import putting
from tests.fakes import FakeClock, FakeStore
from tests.rooms import somebody

KEY = SignedPreKey(1, bytes(32), bytes(64))


class Place:
    """An encrypted group of devices that have keys, with its log."""

    def __init__(self) -> None:
        self.store, self.clock, self.id = FakeStore(), FakeClock(), new_id()
        self.devices: list[Actor] = []
        self.restart()

    def restart(self) -> None:
        self.ciphertexts = Ciphertexts(self.store, self.clock, DeviceLists(), Settings())

    async def open(self, *devices: Actor) -> None:
        people = {device.user_id for device in devices}
        group = Conversation(self.id, "group", "e2ee", "g", "", devices[0].user_id, 1, 1, len(people), 1)
        await self.store.write(putting(group))
        for device in devices:
            await self.join(device)

    async def join(self, device: Actor, *, joined_sequence: int = 0) -> None:
        user_id, device_id = device.user_id, device.device_id
        keys = DeviceKeys(user_id, device_id, bytes(32), KEY, KEY, 1, self.store.epoch, 0, 0)
        signed_in = Device(user_id, device_id, "d", "ios", 1, 1, new_id())
        member = Member(self.id, user_id, "member", 1, joined_sequence)
        await self.store.write(putting(keys, signed_in, member))
        self.devices.append(device)

    async def say(self, sender: Actor, what: str = "text") -> int:
        """`all`, `each` (envelopes) or `edit` (no ciphertext) or `text`: one body for all, in the history."""
        now, common = self.clock.now(), (new_id(), sender.user_id)
        body = Sealed("sender-key", b"body", "key")
        letters = [
            Letter(each.user_id, each.device_id, "message", b"letter") for each in self.devices if each is not sender
        ]

        async def change(tx: Transaction) -> int:
            event: Any
            match what:
                case "text":
                    event = Message(*common, now, sender.device_id, "text", body, new_id())
                case "all":
                    event = SilentMessage(*common, now, sender.device_id, "control", body, new_id())
                case "edit":
                    event = MessageEdited(*common, now, new_id(), 1)
                case _:
                    content = Sealed("double-ratchet", b"", devices=tuple(each.device_id for each in letters))
                    event = Message(*common, now, sender.device_id, "text", content, new_id())
            sequence = await tx.append(self.id, event, None, tuple(letters) if what == "each" else ())
            if await tx.get(Undropped, self.id) is None:
                tx.put(Undropped(self.id, sequence))
            return sequence

        return await self.store.write(change)

    async def acknowledge(self, device: Actor, sequence: int) -> None:
        await self.store.write(putting(Delivery(self.id, device.user_id, device.device_id, sequence, 1)))

    def bodies(self) -> dict[int, bytes]:
        """What is left of each message for all, by its number."""
        entries: list[LogEntry] = [*self.store.all(LogEntry), *self.store.all(Amendment)]
        found = {}
        for entry in entries:
            content = getattr(entry.event, "content", None)
            if isinstance(content, Sealed) and content.scheme == "sender-key":
                found[entry.sequence] = content.body
        return dict(sorted(found.items()))

    def undropped(self) -> tuple[int, int] | None:
        found = self.store.all(Undropped)
        return (found[0].sequence, found[0].ahead) if found else None


@pytest.fixture(params=range(12))
def chance(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.param)


async def test_what_all_but_the_sender_have_is_gone_and_the_rest_is_there_whatever_crashes(
    chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CIPHERTEXT_ENTRIES_PER_STEP", 3)
    place, marks, senders = Place(), dict[str, int](), dict[int, str]()
    people = [somebody() for _ in range(chance.randint(1, 4))]
    await place.open(*people)
    for _round in range(25):
        for _ in range(chance.randint(0, 5)):
            sender = chance.choice(people)
            what = chance.choice(["text", "text", "all", "each", "edit"])
            senders[await place.say(sender, what)] = sender.device_id
        for device in chance.sample(people, chance.randint(0, len(people))):
            if (sequence := chance.randint(0, len(senders))) > marks.get(device.device_id, 0):
                marks[device.device_id] = sequence
                await place.acknowledge(device, sequence)
        if chance.random() < 0.4:
            place.store.fail_next = StoreFull("killed")
            with pytest.raises(StoreFull):
                await place.ciphertexts.sweep()
                raise StoreFull("there was nothing to do")
            place.store.fail_next = None
            place.restart()
        if chance.random() < 0.5:
            await place.ciphertexts.drop(place.id)
            gone = {sequence for sequence, body in place.bodies().items() if not body}
            assert gone <= had_by_all(place, marks, senders), "never too early"
        await place.ciphertexts.sweep()
        gone = {sequence for sequence, body in place.bodies().items() if not body}
        assert gone == had_by_all(place, marks, senders)
    for device in people:
        await place.acknowledge(device, len(senders))
    await place.ciphertexts.sweep()
    assert not any(place.bodies().values())
    assert place.undropped() is None and place.store.all(Envelope) == []


def had_by_all(place: Place, marks: dict[str, int], senders: dict[int, str]) -> set[int]:
    """The numbers that every device but the sending one has acknowledged."""
    return {
        sequence
        for sequence in place.bodies()
        if all(
            marks.get(each.device_id, 0) >= sequence or each.device_id == senders[sequence] for each in place.devices
        )
    }


async def test_who_only_ever_sends_keeps_nothing_back_and_is_not_looked_at_again() -> None:
    place, (bot, reader) = Place(), (somebody(), somebody())
    await place.open(bot, reader)
    for _ in range(250):
        last = await place.say(bot)
    await place.acknowledge(reader, last)
    await place.ciphertexts.drop(place.id)
    assert not any(place.bodies().values())
    place.store.reads.clear()
    await place.say(bot)
    await place.ciphertexts.drop(place.id)
    assert place.store.reads.count(LogEntry) <= 2
    await place.ciphertexts.sweep()
    assert [number for number, body in place.bodies().items() if body] == [251]


async def test_a_member_who_came_later_does_not_hold_back_what_was_before_their_time() -> None:
    place, (ann, bob, late) = Place(), (somebody(), somebody(), somebody())
    await place.open(ann, bob)
    await place.say(ann)
    await place.join(late, joined_sequence=1)
    await place.say(ann)
    await place.acknowledge(bob, 2)
    await place.ciphertexts.sweep()
    assert place.bodies() == {1: b"", 2: b"body"}


async def test_a_sweep_finds_envelopes_that_were_left_behind_and_leaves_those_that_wait() -> None:
    place, (ann, bob, cem) = Place(), (somebody(), somebody(), somebody())
    await place.open(ann, bob, cem)
    for _ in range(60):
        await place.say(ann, "each")
    for device, sequence in ((ann, 60), (bob, 60), (cem, 45)):  # their marks were stored, the rest was too much for it
        await place.acknowledge(device, sequence)
    await place.ciphertexts.sweep()
    left = {(each.device_id, each.sequence) for each in place.store.all(Envelope)}
    assert left == {(device.device_id, number) for device in (bob, cem) for number in range(46, 61)}


async def test_of_a_message_for_very_many_devices_some_envelopes_go_at_once_and_the_rest_a_moment_later() -> None:
    place, many = Place(), [somebody() for _ in range(limits.ERASED_ROWS_MAX + 51)]
    await place.open(*many)
    gone, stays = await place.say(many[0], "each"), await place.say(many[1], "each")
    entry = await place.store.get(LogEntry, place.id, gone)
    assert entry is not None and isinstance(entry.event, Message)
    message = entry.event

    async def change(tx: Transaction) -> None:
        forget_message(tx, entry, message)

    await place.store.write(change)
    assert len(place.store.all(Envelope)) == 50 + len(many) - 1
    [due] = place.store.all(Due)
    assert (due.at, due.what, due.subject_id, due.number) == (0, FORGET_ENVELOPES, place.id, gone)
    await place.ciphertexts.forget_envelopes(due.subject_id, [due.number])
    assert [each.sequence for each in place.store.all(Envelope)] == [stays] * (len(many) - 1)


async def test_one_change_deletes_a_bounded_number_of_envelopes_the_oldest_first() -> None:
    place, (ann, bob) = Place(), (somebody(), somebody())
    await place.open(ann, bob)
    for _ in range(12):
        await place.say(ann, "each")

    async def change(tx: Transaction) -> int:
        return await forget_acknowledged(tx, place.id, bob.device_id, 11, limit=5)

    assert [await place.store.write(change) for _ in range(4)] == [5, 5, 1, 0]
    assert [each.sequence for each in place.store.all(Envelope)] == [12]


async def test_a_device_that_came_back_under_its_own_id_keeps_what_waits_for_it() -> None:
    place, (ann, bob) = Place(), (somebody(), somebody())
    await place.open(ann, bob)
    await place.store.write(putting(Membership(bob.user_id, place.id)))
    await place.say(ann, "each")
    await place.ciphertexts.forget_device(bob.user_id, bob.device_id)
    assert len(place.store.all(Envelope)) == 1

    async def removal(tx: Transaction) -> None:
        tx.delete(Device, bob.user_id, bob.device_id)

    await place.store.write(removal)
    await place.ciphertexts.forget_device(bob.user_id, bob.device_id)
    assert place.store.all(Envelope) == []


async def test_a_conversation_without_ciphertext_costs_nothing() -> None:
    place = Place()
    await place.open(somebody())
    await place.ciphertexts.sweep()
    assert await place.ciphertexts.drop(place.id) == 0
    assert place.store.writes == 1 + 3 - 2 and set(place.store.reads) == {Undropped}
