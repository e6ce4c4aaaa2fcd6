"""Receipts: watermarks that are told to the others, never go back, and survive whatever happens."""

import random
from pathlib import Path
from typing import Any

import pytest

from config import limits
from gearlink.clock import new_id, rfc3339
from tests.fakes import FakeClock
from tests.house import House, Person, Wire, open_house


async def mark(house: House, wire: Wire, kind: str, conversation: str, sequence: int) -> None:
    """Says `kind`, and returns when it has been stored and told."""
    await wire.say(kind, conversationId=conversation, sequenceNumber=sequence)
    assert await wire.fence() == []
    await house.app.domain.receipts.flush()


async def states(person: Person, message: str) -> dict[str, dict[str, Any]]:
    answer = await person.http.get(f"/messages/{message}/deliveries")
    return {item.pop("userId"): item for item in answer.raise_for_status().json()["items"]}


async def test_marks_are_told_to_the_others_and_not_to_who_moved_them(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation = await ann.open("group", bob, eve)
    await ann.post(conversation, "x", "t-1")
    async with ann.wire() as sender, bob.wire() as mover, eve.wire() as third:
        await mark(house, mover, "message:ack", conversation, 1)
        for wire in (sender, third):
            frame = await wire.hear("message:delivered")
            assert (frame["userId"], frame["sequenceNumber"]) == (bob.id, 1)
        await mark(house, mover, "message:read", conversation, 1)
        for wire in (sender, third):
            frame = await wire.hear("message:read")
            assert (frame["userId"], frame["sequenceNumber"]) == (bob.id, 1)
        assert await mover.fence() == [] and await sender.fence() == []


async def test_marks_never_go_back_and_repeated_ones_are_no_news(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    last = [(await ann.post(conversation, "x", str(number))).json()["id"] for number in range(5)][-1]
    async with ann.wire() as sender, bob.wire() as mover:
        for kind in ("message:ack", "message:read"):
            for sequence in (4, 2, 4, 0, 5):
                await mark(house, mover, kind, conversation, sequence)
        heard = [(frame["type"], frame["sequenceNumber"]) for frame in await sender.fence()]
        assert heard == [
            ("message:delivered", 4), ("message:delivered", 5), ("message:read", 4), ("message:read", 5),
        ]  # fmt: skip
        await bob.http.put(f"/conversations/{conversation}/read", json={"sequenceNumber": 1})
        assert await sender.fence() == []
    assert (await states(ann, last))[bob.id]["status"] == "READ"
    assert (await bob.view(conversation))["readSequenceNumber"] == 5


async def test_the_state_of_a_message_is_computed_from_the_marks_with_their_times(tmp_path: Path) -> None:
    clock = FakeClock()
    async with open_house(tmp_path / "data", clock=clock) as house:
        ann, bob, eve = await house.people(3)
        conversation = await ann.open("group", bob, eve)
        first, second = [(await ann.post(conversation, "x", each)).json()["id"] for each in ("t-1", "t-2")]
        assert await states(ann, first) == {bob.id: {"status": "SENT"}, eve.id: {"status": "SENT"}}
        async with bob.wire(cursors={conversation: 0}) as wire:
            await wire.fence()
            clock.advance(seconds=1)
            await mark(house, wire, "message:ack", conversation, 1)
            delivered = {"status": "DELIVERED", "deliveredAt": rfc3339(clock.now())}
            assert (await states(eve, first))[bob.id] == delivered
            assert (await states(ann, second))[bob.id] == {"status": "SENT"}
            clock.advance(seconds=1)
            await mark(house, wire, "message:read", conversation, 1)
            assert (await states(ann, first))[bob.id] == {**delivered, "status": "READ", "readAt": rfc3339(clock.now())}
        assert (await states(ann, first))[eve.id] == {"status": "SENT"}


async def test_the_deliveries_page_over_all_members(house: House) -> None:
    ann, *others = await house.people(5)
    conversation = await ann.open("group", *others)
    message = (await ann.post(conversation, "x", "t-1")).json()["id"]
    found: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        answer = (await ann.http.get(f"/messages/{message}/deliveries", params=query)).json()
        found += [item["userId"] for item in answer["items"]]
        if (cursor := answer["next"]) is None:
            break
        query["cursor"] = cursor
    assert sorted(found) == sorted(other.id for other in others)
    for wrong in ("x", "!!", "AAAA"):
        answer = await ann.http.get(f"/messages/{message}/deliveries", params={"cursor": wrong})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")


async def test_two_devices_of_a_reader_are_one_reader_and_two_positions(house: House) -> None:
    ann, bob = await house.people(2)
    tablet = await bob.another_device()
    conversation = await ann.open("direct", bob)
    message = (await ann.post(conversation, "x", "t-1")).json()["id"]
    async with ann.wire() as sender, bob.wire() as phone:
        await mark(house, phone, "message:ack", conversation, 1)
        await sender.hear("message:delivered")
        async with tablet.wire() as wire:
            assert "message:new" in {frame["type"] for frame in wire.missed}  # it is another device's mark
            await mark(house, wire, "message:ack", conversation, 1)
            assert await sender.fence() == []  # Bob had it already
            await mark(house, wire, "message:read", conversation, 1)
            await sender.hear("message:read")
            await phone.hear("message:read")  # its badge goes, too
            await mark(house, phone, "message:read", conversation, 1)
            assert await sender.fence() == []
    assert (await states(ann, message))[bob.id]["status"] == "READ"
    assert (await bob.view(conversation))["unreadCount"] == 0


async def test_a_mark_ahead_of_the_log_is_taken_for_its_end(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    await ann.post(conversation, "x", "t-1")
    async with ann.wire() as sender, bob.wire() as mover:
        await mark(house, mover, "message:read", conversation, limits.SEQUENCE_MAX)
        assert [frame["sequenceNumber"] for frame in await sender.fence()] == [1, 1]
        second = (await ann.post(conversation, "y", "t-2")).json()["id"]
        await mover.hear("message:new")
    assert (await states(ann, second))[bob.id] == {"status": "SENT"}
    assert (await bob.view(conversation))["unreadCount"] == 1


async def test_unread_counts_the_messages_of_others_behind_the_mark(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation = await ann.open("group", bob)
    for sender, each in ((ann, "1"), (bob, "2"), (ann, "3"), (ann, "4")):
        await sender.post(conversation, "x", each)
    await ann.http.patch(f"/conversations/{conversation}", json={"name": "no message"})
    expected = {0: 3, 1: 2, 2: 2, 3: 1, 4: 0, 5: 0}
    for sequence, count in expected.items():
        await bob.http.put(f"/conversations/{conversation}/read", json={"sequenceNumber": sequence})
        view = await bob.view(conversation)
        assert (view["readSequenceNumber"], view["unreadCount"]) == (sequence, count)
    assert (await ann.view(conversation))["unreadCount"] == 1
    [listed] = (await ann.http.get("/conversations")).json()["items"]
    assert listed["unreadCount"] == 1 and eve.id not in {member["userId"] for member in view["members"]}


async def test_strangers_can_mark_nothing(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation = await ann.open("direct", bob)
    await ann.post(conversation, "x", "t-1")
    async with eve.wire() as wire, ann.wire() as sender:
        for kind in ("message:ack", "message:read"):
            for place in (conversation, new_id()):
                await wire.say(kind, conversationId=place, sequenceNumber=1)
                await wire.refused("not-found")
        await house.app.domain.receipts.flush()
        assert await sender.fence() == []
    assert (await eve.http.put(f"/conversations/{conversation}/read", json={"sequenceNumber": 1})).status_code == 404


async def test_marks_of_one_moment_are_stored_and_told_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECEIPTS_FLUSH_SECONDS", 600.0)
    async with open_house(tmp_path / "data") as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        for number in range(50):
            await ann.post(conversation, "x", str(number))
        async with ann.wire() as sender, bob.wire() as mover:
            acks = list(range(1, 51))
            random.Random(1).shuffle(acks)
            for sequence in acks:
                await mover.say("message:ack", conversationId=conversation, sequenceNumber=sequence)
            assert await mover.fence() == [] and await sender.fence() == []
            await house.app.domain.receipts.flush()
            [frame] = await sender.fence()
            assert (frame["type"], frame["sequenceNumber"]) == ("message:delivered", 50)


async def test_marks_are_there_after_a_restart(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data") as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        message = (await ann.post(conversation, "x", "t-1")).json()["id"]
        await bob.http.put(f"/conversations/{conversation}/read", json={"sequenceNumber": 1})
        before = await states(ann, message)
    async with open_house(tmp_path / "data") as house:
        assert await states(await house.back(ann), message) == before
        assert before[bob.id]["status"] == "READ"
        async with (await house.back(bob)).wire() as wire:
            assert [frame["type"] for frame in wire.missed] == ["message:read", "sync:done"]  # and no message again


async def test_a_mark_that_was_on_its_way_when_its_device_left_is_forgotten(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("group", bob)
    await ann.post(conversation, "x", "t-1")
    async with bob.wire() as wire, ann.wire() as sender:
        await wire.say("message:read", conversationId=conversation, sequenceNumber=1)
        await wire.fence()
        await bob.http.delete(f"/conversations/{conversation}/members/{bob.id}")
        await house.app.domain.receipts.flush()
        assert "member:left" in [frame["type"] for frame in await sender.fence()]
    assert [member["userId"] for member in (await ann.view(conversation))["members"]] == [ann.id]


async def test_a_read_that_is_kept_reaches_the_readers_other_devices_and_nobody_else(house: House) -> None:
    ann, bob = await house.people(2)
    tablet = await bob.another_device()
    conversation = await ann.open("direct", bob)
    message = (await ann.post(conversation, "x", "t-1")).json()["id"]
    await bob.http.patch("/users/me/privacy", json={"readReceipts": False})
    async with ann.wire() as sender, bob.wire() as phone, tablet.wire() as wire:
        await mark(house, phone, "message:read", conversation, 1)
        assert [frame["type"] for frame in await sender.fence()] == ["message:delivered"]
        assert (await wire.hear("message:read"))["userId"] == bob.id
        assert await phone.fence() == []
    assert (await states(ann, message))[bob.id]["status"] == "DELIVERED"
    assert (await bob.view(conversation))["unreadCount"] == 0
    async with ann.wire(cursors={conversation: 1}) as sender:
        assert "message:read" not in [frame["type"] for frame in sender.missed]


async def test_a_stranger_hears_of_no_receipt_before_there_is_an_answer(house: House) -> None:
    ann, bob = await house.people(2)
    await bob.http.patch("/users/me/privacy", json={"receiptsToStrangers": False})
    conversation = await ann.open("direct", bob)
    first = (await ann.post(conversation, "x", "t-1")).json()["id"]
    async with ann.wire() as sender, bob.wire() as reader:
        await mark(house, reader, "message:read", conversation, 1)
        assert await sender.fence() == []
        assert (await states(ann, first))[bob.id] == {"status": "SENT"}
        await reader.send(conversation, "hello", "t-2")
        await sender.hear("message:new")
        assert (await states(ann, first))[bob.id]["status"] == "READ"
        await mark(house, reader, "message:read", conversation, 2)
        assert [frame["type"] for frame in await sender.fence()] == ["message:delivered", "message:read"]


async def test_after_a_block_nothing_is_told_of_marks_in_the_direct_conversation(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    message = (await ann.post(conversation, "x", "t-1")).json()["id"]
    await bob.http.put(f"/blocks/{ann.id}")
    async with ann.wire() as sender, bob.wire() as reader:
        await mark(house, reader, "message:read", conversation, 1)
        assert await sender.fence() == []
    assert (await states(ann, message))[bob.id] == {"status": "SENT"}
    assert (await bob.view(conversation))["unreadCount"] == 0
