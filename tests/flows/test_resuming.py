"""Resuming: whoever was away gets all that was missed, once, in order, and then hears what happens."""

import random
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed

from config import limits
from gearlink.accounts import Actor
from gearlink.clock import new_id
from gearlink.listen import Listener
from gearlink.outbox import Outbox
from storage.embedded import EmbeddedStore
from tests.fakes import FakeClock
from tests.house import House, Person, Wire, open_house


def numbers(frames: list[dict[str, Any]], conversation: str) -> list[int]:
    """The sequence numbers of this conversation's events among `frames`."""
    marks = ("message:delivered", "message:read")
    events = [frame.get("message", frame) for frame in frames if frame["type"] not in marks]
    return [
        event["sequenceNumber"]
        for event in events
        if event.get("conversationId") == conversation and "sequenceNumber" in event
    ]


async def say(person: Person, conversation: str, count: int) -> None:
    for _ in range(count):
        (await person.post(conversation, "canary", new_id())).raise_for_status()


async def take(house: House, wire: Wire, conversation: str, sequence: int) -> None:
    """The device says how far it has come, and that is stored."""
    await wire.say("message:ack", conversationId=conversation, sequenceNumber=sequence, ref="take")
    await wire.hear("ok")
    await house.app.domain.receipts.flush()


# --- positions -------------------------------------------------------------------------------------------------------


async def test_a_device_that_was_away_gets_what_it_has_not_acknowledged_and_then_live_events(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with bob.wire() as wire:
        await say(ann, conversation, 3)
        assert numbers(await wire.fence(), conversation) == [1, 2, 3]
        await take(house, wire, conversation, 2)
    await say(ann, conversation, 2)
    async with bob.wire() as wire:
        assert numbers(wire.missed, conversation) == [3, 4, 5]
        assert wire.missed[-1] == {"type": "sync:done", "complete": True}
        await say(ann, conversation, 1)
        assert numbers(await wire.fence(), conversation) == [6]


async def test_a_cursor_counts_for_more_than_the_watermark(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    await say(ann, conversation, 5)
    async with bob.wire(cursors={conversation: 2}) as wire:
        assert numbers(wire.missed, conversation) == [3, 4, 5]
        await take(house, wire, conversation, 4)
    for cursor, expected in ((1, [2, 3, 4, 5]), (4, [5]), (5, [])):
        async with bob.wire(cursors={conversation: cursor}) as wire:
            assert [frame["type"] for frame in wire.missed] == ["message:new"] * len(expected) + ["sync:done"]
            assert numbers(wire.missed, conversation) == expected


async def test_a_device_learns_that_a_conversation_ended_for_it_while_it_was_away(house: House) -> None:
    ann, bob = await house.people(2)
    left, deleted, kept = [await ann.open("group", bob) for _ in range(3)]
    for room in (left, deleted, kept):
        await say(ann, room, 1)
    async with bob.wire():
        pass
    await ann.http.delete(f"/conversations/{left}/members/{bob.id}")
    await ann.http.delete(f"/conversations/{deleted}")
    async with bob.wire(cursors={left: 1, deleted: 1, kept: 1}) as wire:
        gone = [frame["conversationId"] for frame in wire.missed if frame["type"] == "conversation:deleted"]
        assert sorted(gone) == sorted([left, deleted]) and len(wire.missed) == 3


async def test_a_cursor_is_also_an_acknowledgement(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    message = (await ann.post(conversation, "x", "t-1")).json()["id"]
    async with ann.wire(cursors={conversation: 1}) as wire, bob.wire(cursors={conversation: 1}):
        assert (await wire.hear("message:delivered"))["userId"] == bob.id
    [delivery] = (await ann.http.get(f"/messages/{message}/deliveries")).json()["items"]
    assert delivery["status"] == "DELIVERED"


async def test_a_device_without_a_position_is_introduced_to_each_conversation(house: House) -> None:
    ann, bob = await house.people(2)
    rooms = [await ann.open("direct", bob), await ann.open("group", bob, name="canary")]
    for room in rooms:
        await say(ann, room, 2)
    async with (await bob.another_device()).wire() as wire:
        kinds = [frame["type"] for frame in wire.missed]
        assert kinds == ["conversation:created", "message:new", "message:new"] * 2 + ["sync:done"]
        created = [frame["conversation"] for frame in wire.missed if frame["type"] == "conversation:created"]
        assert {each["id"] for each in created} == set(rooms)
        assert {member["userId"] for each in created for member in each["members"]} == {ann.id, bob.id}


async def test_a_long_history_is_named_for_reload_to_a_new_device(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SYNC_FIRST_EVENTS_MAX", 3)
    ann, bob = await house.people(2)
    short, long = await ann.open("group", bob), await ann.open("group", bob)
    await say(ann, short, 3)
    await say(ann, long, 4)
    async with bob.wire() as wire:
        assert (numbers(wire.missed, short), numbers(wire.missed, long)) == ([1, 2, 3], [])
        assert wire.missed[-1] == {"type": "sync:done", "complete": False, "reload": [long]}
        await say(ann, long, 1)
        assert numbers(await wire.fence(), long) == [5]
    async with bob.wire(cursors={long: 1, short: 3}) as wire:  # it knows the conversation: then all is replayed
        assert numbers(wire.missed, long) == [2, 3, 4, 5]


async def test_positions_of_another_epoch_are_not_compared_but_named_for_reload(house: House) -> None:
    ann, bob = await house.people(2)
    rooms = sorted([await ann.open("direct", bob), await ann.open("group", bob)])
    for room in rooms:
        await say(ann, room, 2)
    async with bob.wire(epoch=new_id(), cursors=dict.fromkeys(rooms, 1)) as wire:
        assert wire.missed == [{"type": "sync:done", "complete": False, "reload": rooms}]
        await say(ann, rooms[0], 1)
        assert numbers(await wire.fence(), rooms[0]) == [3]
    async with bob.wire(epoch=house.app.store.epoch, cursors=dict.fromkeys(rooms, 1)) as wire:
        assert wire.missed[-1]["complete"] is True


async def test_a_cursor_ahead_of_the_log_is_named_for_reload(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    await say(ann, conversation, 2)
    async with bob.wire(cursors={conversation: 3}) as wire:
        assert wire.missed == [{"type": "sync:done", "complete": False, "reload": [conversation]}]
        await say(ann, conversation, 1)
        assert numbers(await wire.fence(), conversation) == [3]


# --- in the middle of things -----------------------------------------------------------------------------------------


class Reader:
    """A device that comes and goes, and keeps the events of each conversation in the order in which it got them."""

    def __init__(self, person: Person, rooms: list[str]) -> None:
        self.person = person
        self.seen: dict[str, list[int]] = {room: [] for room in rooms}

    async def read(self, patience: int, enough: int, *, from_the_start: bool) -> None:
        """One connection, given up after `patience` frames or with `enough` events in each conversation."""
        if from_the_start:
            self.seen = {room: [] for room in self.seen}
        cursors = {room: events[-1] if events else 0 for room, events in self.seen.items()}
        async with self.person.wire(synced=False, cursors=cursors) as wire:
            while patience and any(len(events) < enough for events in self.seen.values()):
                frame = await wire.hear_any()
                patience -= 1
                for room, events in self.seen.items():
                    events += numbers([frame], room)


def let_reads_wait(monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> None:
    """Things happen between a read and what is made of it, as with any store that is not in this process."""
    scan = EmbeddedStore.scan

    async def waiting_scan(*given: Any, **more: Any) -> Any:
        found = await scan(*given, **more)
        for _ in range(chance.randrange(6)):
            await trio.lowlevel.checkpoint()
        return found

    monkeypatch.setattr(EmbeddedStore, "scan", waiting_scan)


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_is_lost_or_repeated_while_others_send_hard(
    house: House, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    if seed % 2:
        let_reads_wait(monkeypatch, chance)
    ann, bob, eve = await house.people(3)
    rooms = [await ann.open("group", bob, eve) for _ in range(3)]
    each, senders = 40, [ann, bob]
    readers = [Reader(eve, rooms), Reader(await eve.another_device(), rooms), Reader(await ann.another_device(), rooms)]
    patiences = [[chance.randrange(1, 60) for _ in range(30)] for _ in readers]

    async def send(person: Person) -> None:
        async with person.wire() as wire, trio.open_nursery() as nursery:
            nursery.start_soon(self_acks, wire)
            for turn in range(each):
                for room in rooms:
                    await wire.say("message:send", conversationId=room, content="x", tempId=f"t-{turn}")

    async def self_acks(wire: Wire) -> None:
        missing = each * len(rooms)
        while missing:
            missing -= (await wire.hear_any())["type"] == "message:ack"

    async def come_and_go(reader: Reader, patience: list[int]) -> None:
        for frames in patience:
            await reader.read(frames, each * len(senders), from_the_start=False)
        await reader.read(10_000, each * len(senders), from_the_start=reader is readers[1])

    async with trio.open_nursery() as nursery:
        for person in senders:
            nursery.start_soon(send, person)
        for reader, patience in zip(readers, patiences, strict=True):
            nursery.start_soon(come_and_go, reader, patience)
    for reader in readers:
        for events in reader.seen.values():
            assert events == list(range(1, each * len(senders) + 1))


async def test_a_conversation_that_is_joined_during_the_resume_is_told_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob = await house.people(2)
    old, new = await ann.open("group", bob), await ann.open("group")
    await say(ann, old, 2)
    await say(ann, new, 1)
    begun, go_on = hold_resume(monkeypatch)
    async with bob.wire(synced=False, cursors={old: 0, new: 0}) as wire:  # in the new one Bob was once before
        await begun.wait()
        await ann.http.post(f"/conversations/{new}/members", json={"userIds": [bob.id]})
        await say(ann, new, 1)
        await say(ann, old, 1)
        go_on.set()
        frames = await wire.hear_until("sync:done")
        frames += await wire.fence()
        assert numbers(frames, old) == [1, 2, 3] and numbers(frames, new) == [2, 3]
        kinds = [frame["type"] for frame in frames]
        assert (kinds.count("conversation:created"), kinds.count("conversation:deleted")) == (1, 0)
        await say(ann, new, 1)
        assert numbers(await wire.fence(), new) == [4]


async def test_who_is_removed_during_the_resume_hears_that_and_no_more_of_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SYNC_PAGE_EVENTS", 2)
    ann, bob = await house.people(2)
    conversation = await ann.open("group", bob)
    await say(ann, conversation, 5)
    begun, go_on = hold_resume(monkeypatch)
    async with bob.wire(synced=False) as wire:
        await begun.wait()
        await ann.http.delete(f"/conversations/{conversation}/members/{bob.id}")
        await say(ann, conversation, 1)
        go_on.set()
        heard = await wire.hear_until("sync:done")
        assert numbers(heard, conversation) == [1, 2]
        assert heard[-2] == {"type": "conversation:deleted", "conversationId": conversation}
        assert await wire.fence() == []


def hold_resume(monkeypatch: pytest.MonkeyPatch) -> tuple[trio.Event, trio.Event]:
    """Events: the resume has sent its first piece, and it may go on."""
    begun, go_on = trio.Event(), trio.Event()
    drained = Outbox.drained

    async def held(outbox: Outbox) -> None:
        begun.set()
        await go_on.wait()
        await drained(outbox)

    monkeypatch.setattr(Outbox, "drained", held)
    return begun, go_on


async def test_missed_events_that_are_many_times_the_outbox_arrive(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data", limits__outbox_kib="64", limits__frame_kib="64") as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        text = "a" * limits.CONTENT_BYTES_MAX
        async with ann.wire() as wire:
            for number in range(60):
                await wire.send(conversation, text, str(number))
        async with bob.wire() as wire:
            assert numbers(wire.missed, conversation) == list(range(1, 61))


async def test_a_message_larger_than_the_outbox_does_not_cut_those_who_read(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data", limits__outbox_kib="64", limits__frame_kib="64") as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        async with bob.wire() as live:
            assert (await ann.post(conversation, "\x01" * limits.CONTENT_BYTES_MAX, "t-1")).status_code == 201
            assert numbers([await live.hear("message:new")], conversation) == [1]
        async with bob.wire() as late:
            assert numbers(late.missed, conversation) == [1]


# --- restarts --------------------------------------------------------------------------------------------------------


async def test_a_restart_in_between_changes_nothing(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data") as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        await say(ann, conversation, 3)
        async with bob.wire() as wire:
            await take(house, wire, conversation, 1)
        epoch = house.app.store.epoch
    async with open_house(tmp_path / "data") as house:
        ann, bob = await house.back(ann), await house.back(bob)
        assert house.app.store.epoch == epoch
        await say(ann, conversation, 1)
        async with bob.wire(epoch=epoch) as wire:
            assert numbers(wire.missed, conversation) == [2, 3, 4]
        async with bob.wire(epoch=epoch, cursors={conversation: 3}) as wire:
            assert numbers(wire.missed, conversation) == [4]


async def test_at_the_end_guests_are_told_and_closed_with_1012(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data") as house:
        ann, bob = await house.people(2)
        async with ann.wire() as one, bob.wire() as other:
            house.app.closing.set()
            for wire in (one, other):
                goodbye = await wire.hear("session:goodbye")
                assert goodbye["reason"] == "restarting" and goodbye["retryAfterMs"] >= 500
                assert await wire.closed() == 1012


async def test_it_is_not_ready_before_the_doors_shut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[int] = []
    shut = Listener.shut
    async with open_house(tmp_path / "data") as house:
        address = house.url + "/readyz"

        def noted(listener: Listener) -> None:
            answers.append(200 if house.app.is_ready else 503)
            shut(listener)

        monkeypatch.setattr(Listener, "shut", noted)
        async with house.http() as client:
            assert (await client.get(address)).status_code == 200
            house.app.is_ready = False
            assert (await client.get(address)).status_code == 503
            house.app.is_ready = True
    assert answers == [503]


async def test_what_was_accepted_before_the_end_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = trio.Event(), trio.Event()
    async with open_house(tmp_path / "data") as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        engine = house.app.store._engine
        sync = engine.sync

        async def held_sync() -> None:
            begun.set()
            await go_on.wait()
            await sync()

        async with ann.wire() as wire, bob.wire() as other:
            monkeypatch.setattr(engine, "sync", held_sync)
            await wire.say("message:send", conversationId=conversation, content="canary", tempId="t-1")
            await begun.wait()
            house.app.closing.set()
            await wire.hear("session:goodbye")
            await wire.say("message:send", conversationId=conversation, content="too late", tempId="t-2")
            go_on.set()
            assert (await wire.hear("message:ack"))["tempId"] == "t-1"
            assert await wire.closed() == 1012
            assert [frame["type"] for frame in await other.hear_until("message:new")] == [
                "session:goodbye",
                "message:new",
            ]
    async with open_house(tmp_path / "data") as house:
        assert [message["content"] for message in await (await house.back(bob)).history(conversation)] == ["canary"]


async def test_marks_of_the_last_moment_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECEIPTS_FLUSH_SECONDS", 600.0)
    async with open_house(tmp_path / "data") as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        await say(ann, conversation, 2)
        async with bob.wire() as wire:
            await wire.say("message:read", conversationId=conversation, sequenceNumber=2)
            await wire.fence()
    async with open_house(tmp_path / "data") as house:
        bob = await house.back(bob)
        assert (await bob.view(conversation))["unreadCount"] == 0
        async with bob.wire() as wire:
            assert numbers(wire.missed, conversation) == []


async def test_a_peer_that_leaves_in_the_middle_of_its_resume_harms_nobody(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    for _ in range(60):
        await ann.post(conversation, "a" * limits.CONTENT_BYTES_MAX, new_id())
    for _ in range(3):
        with pytest.raises(ConnectionClosed):
            async with bob.wire(synced=False) as wire:
                await wire.hear_until("message:new")
                await wire.socket._stream.aclose()
                while True:
                    await wire.socket.get_message()
    async with bob.wire() as wire:
        assert len(numbers(wire.missed, conversation)) == 60


@pytest.mark.parametrize("with_cursor", [True, False])
async def test_a_device_hears_what_it_is_no_longer_part_of(house: House, with_cursor: bool) -> None:
    ann, bob = await house.people(2)
    removed, deleted = [await ann.open("group", bob, name=name) for name in ("a", "b")]
    async with bob.wire():
        pass
    assert (await ann.http.delete(f"/conversations/{removed}/members/{bob.id}")).status_code == 204
    assert (await ann.http.delete(f"/conversations/{deleted}")).status_code == 204
    cursors = {"cursors": {removed: 0, deleted: 0}} if with_cursor else {}
    async with bob.wire(**cursors) as wire:
        gone = {frame["conversationId"] for frame in wire.missed if frame["type"] == "conversation:deleted"}
        assert gone == {removed, deleted}
    form = {"userIds": [bob.id]}
    assert (await ann.http.post(f"/conversations/{removed}/members", json=form)).status_code == 201
    async with bob.wire() as wire:
        assert removed not in [frame.get("conversationId") for frame in wire.missed if "deleted" in frame["type"]]


async def test_marks_that_moved_meanwhile_are_told_at_the_next_connect(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with ann.wire() as wire:
        await wire.send(conversation, "x", "t-1")
        await wire.say("message:ack", conversationId=conversation, sequenceNumber=1)
    async with bob.wire() as reader:
        await reader.say("message:read", conversationId=conversation, sequenceNumber=1, ref="r-1")
        await reader.hear_until("ok")
        await house.app.domain.receipts.flush()
    form = {"refreshToken": ann.refresh_token}  # as after any longer absence
    ann.access_token = (await ann.http.post("/auth/refresh", json=form)).json()["accessToken"]
    async with ann.wire() as wire:
        told = {frame["type"]: frame for frame in wire.missed}
        assert told["message:delivered"]["userId"] == told["message:read"]["userId"] == bob.id
        assert told["message:read"]["sequenceNumber"] == 1


async def test_a_clock_that_was_put_back_hides_nothing_from_a_device_that_comes_back(tmp_path: Path) -> None:
    clock = FakeClock()
    async with open_house(tmp_path / "data", clock=clock) as house:
        (ann,) = await house.people(1)
        room = await ann.open("group")
        phone = await ann.another_device()
        clock.advance(minutes=10)
        async with phone.wire():
            pass
        before = (await phone.http.post("/sync", json={})).raise_for_status().json()
        clock.advance(minutes=-8)
        (await ann.http.put(f"/conversations/{room}/draft", json={"content": "begun"})).raise_for_status()
        answer = await phone.http.post("/sync", json={"epoch": before["epoch"], "cursors": before["cursors"]})
        assert "draft:changed" in [event["type"] for event in answer.raise_for_status().json()["events"]]
        async with phone.wire() as wire:
            assert "draft:changed" in [frame["type"] for frame in wire.missed]


async def test_a_conversation_is_introduced_as_it_stands(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    for number in range(3):
        await ann.post(conversation, f"x{number}", f"t-{number}")
    async with bob.wire() as wire:
        [created] = [frame for frame in wire.missed if frame["type"] == "conversation:created"]
    assert created["conversation"]["unreadCount"] == 3
    assert created["conversation"]["lastMessage"]["content"] == "x2"


async def test_nothing_is_told_before_the_answer_to_auth(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, bob = await house.people(2)

    async def busy(_actor: Actor) -> int:
        await ann.open("direct", bob)  # while Bob's socket is on its way in
        return 0

    monkeypatch.setattr(house.app.domain.accounts, "connected_at", busy)
    async with bob.wire(synced=False) as wire:
        await wire.hear("auth:ok")
        assert [frame["type"] for frame in await wire.hear_until("sync:done")] == ["conversation:created", "sync:done"]
