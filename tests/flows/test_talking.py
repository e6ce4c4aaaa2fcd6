"""Talking: what is sent arrives once, under one number, at everybody whom it is for, and at nobody else."""

from pathlib import Path
from typing import Any

import pytest
import trio

from config import limits
from gearlink.clock import new_id
from tests.house import House, Person, open_house


def told(frames: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """The messages among `frames`: number and text."""
    news = [frame["message"] for frame in frames if frame["type"] == "message:new"]
    return [(message["sequenceNumber"], message["content"]) for message in news]


def same(ack: dict[str, Any], posted: dict[str, Any]) -> bool:
    """Whether an acknowledgement and a REST answer speak of the same message."""
    names = ("tempId", "messageId", "conversationId", "sequenceNumber", "createdAt")
    return all(ack[name] == posted[name] for name in names)


# --- who hears what --------------------------------------------------------------------------------------------------


async def test_a_message_reaches_every_other_device_and_its_sender_gets_the_ack_alone(house: House) -> None:
    ann, bob = await house.people(2)
    tablet = await ann.another_device()
    conversation = await ann.open("direct", bob)
    async with ann.wire() as sender, tablet.wire() as own, bob.wire() as other:
        ack = await sender.send(conversation, "canary", "t-1")
        assert (await other.hear("message:new"))["message"]["content"] == "canary"
        assert (await own.hear("message:new"))["message"]["id"] == ack["messageId"]
        assert await sender.fence() == []


async def test_the_temp_id_is_told_to_the_senders_devices_alone(house: House) -> None:
    ann, bob = await house.people(2)
    tablet = await ann.another_device()
    conversation = await ann.open("direct", bob)
    async with tablet.wire() as own, bob.wire() as other:
        sent = (await ann.post(conversation, "hello", "t-1")).json()
        assert (await own.hear("message:new"))["message"]["tempId"] == "t-1"
        assert "tempId" not in (await other.hear("message:new"))["message"]
    for person, expected in ((ann, "t-1"), (tablet, "t-1"), (bob, None)):
        [listed] = await person.history(conversation)
        read = (await person.http.get(f"/messages/{sent['messageId']}")).json()
        assert (listed.get("tempId"), read.get("tempId")) == (expected, expected)
        assert (await person.view(conversation))["lastMessage"].get("tempId") == expected


async def test_what_is_sent_over_rest_is_heard_on_sockets_but_not_on_that_devices_own(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with ann.wire() as own, bob.wire() as other:
        posted = await ann.post(conversation, "hello", "t-1")
        assert posted.status_code == 201
        assert told([await other.hear("message:new")]) == [(1, "hello")]
        assert await own.fence() == []


async def test_numbers_have_no_gap_when_many_send_in_two_conversations_at_once(house: House) -> None:
    people = await house.people(3)
    rooms = [await people[0].open("group", *people[1:]), await people[0].open("group", *people[1:])]
    acks: dict[str, list[int]] = {room: [] for room in rooms}
    heard: dict[str, list[int]] = {room: [] for room in rooms}

    async def talk(person: Person, each: int) -> None:
        async with person.wire() as wire:
            for turn in range(each):
                for room in rooms:
                    await wire.say("message:send", conversationId=room, content=f"{turn}", tempId=f"t-{turn}")
            missing = 2 * each
            while missing:
                frame = await wire.hear_any()
                if frame["type"] == "message:ack":
                    acks[frame["conversationId"]].append(frame["sequenceNumber"])
                    missing -= 1

    async with (await people[0].another_device()).wire() as listener:
        async with trio.open_nursery() as nursery:
            for person in people:
                nursery.start_soon(talk, person, 20)
        for message in (frame["message"] for frame in await listener.fence()):
            heard[message["conversationId"]].append(message["sequenceNumber"])
    for room in rooms:
        assert sorted(acks[room]) == list(range(1, 61))
        assert heard[room] == list(range(1, 61))


# --- idempotency -----------------------------------------------------------------------------------------------------


async def test_the_same_temp_id_answers_the_same_on_every_transport_and_stores_nothing(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with ann.wire() as wire, bob.wire() as other:
        first = await wire.send(conversation, "once", "t-1")
        again = await wire.send(conversation, "another text", "t-1")
        posted = await ann.post(conversation, "once", "t-1")
        assert again == first and posted.status_code == 201 and same(first, posted.json())
        assert posted.json()["content"] == "once"
        posted = await ann.post(conversation, "over rest", "t-2")
        assert same(await wire.send(conversation, "over rest", "t-2"), posted.json())
        await wire.fence()
        assert told(await other.fence()) == [(1, "once"), (2, "over rest")]


async def test_the_same_temp_id_names_other_messages_elsewhere(house: House) -> None:
    ann, bob = await house.people(2)
    tablet = await ann.another_device()
    rooms = [await ann.open("direct", bob), await ann.open("group", bob)]
    ids = {(await person.post(room, "x", "t-1")).json()["messageId"] for person in (ann, tablet, bob) for room in rooms}
    assert len(ids) == 6


async def test_two_sends_in_flight_with_one_temp_id_are_one_message(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    answers: list[dict[str, Any]] = []

    async def post() -> None:
        answers.append((await ann.post(conversation, "once", "t-1")).json())

    async with ann.wire() as wire:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(post)
                await wire.say("message:send", conversationId=conversation, content="once", tempId="t-1")
        acks = [await wire.hear("message:ack") for _ in range(4)]
    assert all(ack == acks[0] for ack in acks) and all(same(acks[0], answer) for answer in answers)
    assert [message["content"] for message in await bob.history(conversation)] == ["once"]


async def test_a_repeated_send_is_answered_after_its_sender_has_left(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("group", bob)
    first = (await bob.post(conversation, "bye", "t-1")).json()
    assert (await bob.http.delete(f"/conversations/{conversation}/members/{bob.id}")).status_code == 204
    async with bob.wire() as wire:
        assert same(await wire.send(conversation, "bye", "t-1"), first)
        await wire.say("message:send", conversationId=conversation, content="still here?", tempId="t-2")
        assert (await wire.refused("not-found"))["tempId"] == "t-2"
    assert same((await bob.post(conversation, "bye", "t-1")).json(), first)
    assert (await bob.post(conversation, "still here?", "t-2")).status_code == 404


async def test_a_repeated_send_is_answered_the_same_after_a_restart(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data") as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        first = (await ann.post(conversation, "once", "t-1")).json()
    async with open_house(tmp_path / "data") as house:
        ann = await house.back(ann)
        async with ann.wire() as wire:
            assert same(await wire.send(conversation, "once", "t-1"), first)
        assert len(await ann.history(conversation)) == 1


# --- what may be said ------------------------------------------------------------------------------------------------


TEXTS = {
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈",
    "right to left": "مرحبا \u202eabc\u202c עולם",
    "nul": "a\0b",
    "separators": "\u2028\u2029\x7f",
    "markup": '"\\/</script>',
    "byte order mark": "\ufeff",
    "blank": " ",
    "four bytes each": "\U00010348" * 4096,
    "six bytes each in JSON": "\x01" * limits.CONTENT_BYTES_MAX,
}


async def test_every_text_comes_out_as_it_went_in(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data") as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        async with ann.wire() as wire, bob.wire() as other:
            for name, text in TEXTS.items():
                await wire.send(conversation, text, text[:20])
                assert (await other.hear("message:new"))["message"]["content"] == text, name
        stored = [(message["content"], message["tempId"]) for message in await ann.history(conversation)]
        assert stored == [(text, text[:20]) for text in TEXTS.values()]


@pytest.mark.parametrize("letter", ["a", "é", "€", "😀"])
async def test_the_limit_of_a_text_is_counted_in_utf8_bytes(house: House, letter: str) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    size = len(letter.encode())
    fits = letter * (limits.CONTENT_BYTES_MAX // size) + "a" * (limits.CONTENT_BYTES_MAX % size)
    assert len(fits.encode()) == limits.CONTENT_BYTES_MAX
    async with ann.wire() as wire, bob.wire() as other:
        await wire.send(conversation, fits, "fits")
        assert (await other.hear("message:new"))["message"]["content"] == fits
        await wire.say("message:send", conversationId=conversation, content=fits + "a", tempId="more", ref="r")
        refused = await wire.refused("invalid-request")
        assert (refused["tempId"], refused["ref"], refused["retryable"]) == ("more", "r", False)
    assert (await ann.post(conversation, fits + "a", "more")).status_code == 422
    assert len(await ann.history(conversation)) == 1


async def test_a_lone_surrogate_is_no_text(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with ann.wire() as wire:
        frame = '{"type":"message:send","conversationId":"%s","content":"%s","tempId":"%s"}'
        for content, temp_id in (("\\ud800", "t"), ("x", "\\udfff")):
            await wire.say_raw(frame % (conversation, content, temp_id))
            await wire.hear("error")
        assert (await wire.send(conversation, "fine", "t"))["sequenceNumber"] == 1


MALFORMED: tuple[dict[str, Any], ...] = (
    {"content": ""},
    {"content": None},
    {"tempId": ""},
    {"tempId": "t" * (limits.TEMP_ID_CHARS_MAX + 1)},
    {"kind": "system"},
    {"replyToId": "nobody"},
    {"mentions": ["nobody"]},
    {"mentions": [new_id()] * (limits.MENTIONS_MAX + 1)},
    {"priority": "high"},
)


async def test_a_malformed_send_is_refused_on_both_transports(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with ann.wire() as wire:
        for fields in MALFORMED:
            form = {"content": "x", "tempId": "t-1", **fields}
            await wire.say("message:send", conversationId=conversation, **form)
            await wire.refused("invalid-request")
            answer = await ann.http.post(f"/conversations/{conversation}/messages", json=form)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), fields
    assert await ann.history(conversation) == []


async def test_replies_and_mentions_have_to_be_of_this_conversation(house: House) -> None:
    ann, bob, eve = await house.people(3)
    here, elsewhere = await ann.open("direct", bob), await ann.open("group", bob, eve)
    first = (await ann.post(here, "first", "t-1")).json()["messageId"]
    foreign = (await ann.post(elsewhere, "foreign", "t-1")).json()["messageId"]
    answer = (await bob.post(here, "yes", "t-2", replyToId=first, mentions=[ann.id])).json()
    assert (answer["replyToId"], answer["mentions"]) == (first, [ann.id])
    for wrong in ({"replyToId": foreign}, {"replyToId": new_id()}, {"mentions": [ann.id, eve.id]}):
        refused = await bob.post(here, "no", "t-3", **wrong)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid-request")
        [error] = refused.json()["errors"]
        assert error["path"] in ("replyToId", "mentions[1]")


async def test_plain_content_is_refused_where_everything_is_encrypted(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob, encryption="e2ee")
    assert (await ann.view(conversation))["encryption"] == "e2ee"
    answer = await ann.post(conversation, "canary", "t-1")
    assert (answer.status_code, answer.json()["code"]) == (422, "must-be-encrypted")
    async with ann.wire() as wire:
        await wire.say("message:send", conversationId=conversation, content="canary", tempId="t-1")
        assert (await wire.refused("must-be-encrypted"))["tempId"] == "t-1"
    assert await bob.history(conversation) == []


# --- reading back ----------------------------------------------------------------------------------------------------


async def page(person: Person, conversation: str, **query: int) -> tuple[list[int], str | None]:
    answer = (await person.http.get(f"/conversations/{conversation}/messages", params=query)).json()
    return [item["sequenceNumber"] for item in answer["items"]], answer["next"]


async def test_the_history_pages_both_ways_to_its_end(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    for number in range(1, 8):
        await ann.post(conversation, str(number), f"t-{number}")
    assert await page(bob, conversation, limit=3) == ([7, 6, 5], "5")
    assert await page(bob, conversation, limit=3, before=5) == ([4, 3, 2], "2")
    assert await page(bob, conversation, limit=3, before=2) == ([1], None)
    assert await page(bob, conversation, limit=3, after=0) == ([1, 2, 3], "3")
    assert await page(bob, conversation, limit=4, after=3) == ([4, 5, 6, 7], None)
    assert await page(bob, conversation, limit=9, after=2, before=5) == ([3, 4], None)
    for empty in (
        {"before": 1},
        {"before": 0},
        {"after": 7},
        {"after": limits.SEQUENCE_MAX},
        {"after": 5, "before": 3},
    ):
        assert await page(bob, conversation, **empty) == ([], None)
    for wrong in ({"limit": 0}, {"limit": 201}, {"before": -1}, {"after": limits.SEQUENCE_MAX + 1}):
        answer = await bob.http.get(f"/conversations/{conversation}/messages", params=wrong)
        assert answer.status_code == 422


async def test_what_happens_to_the_members_is_in_the_history_as_system_messages(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation = await ann.open("group", bob, name="before")
    await ann.http.patch(f"/conversations/{conversation}", json={"name": "after"})
    await ann.http.post(f"/conversations/{conversation}/members", json={"userIds": [eve.id]})
    await ann.http.patch(f"/conversations/{conversation}/members/{eve.id}", json={"role": "admin"})
    await ann.http.delete(f"/conversations/{conversation}/members/{eve.id}")
    history = await bob.history(conversation)
    assert [message["sequenceNumber"] for message in history] == [1, 2, 3, 4]
    assert {(message["kind"], message["senderId"], message["senderDeviceId"]) for message in history} == {
        ("system", ann.id, None)
    }
    for message, kind in zip(
        history, ("conversation:updated", "member:joined", "member:changed", "member:left"), strict=True
    ):
        assert f'"type":"{kind}"' in message["content"]
    conversation_view = await bob.view(conversation)
    assert (conversation_view["lastMessage"], conversation_view["unreadCount"]) == (None, 0)


async def test_a_newcomer_sees_nothing_of_what_was_before(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation = await ann.open("group", bob)
    before = (await ann.post(conversation, "canary before", "t-1")).json()["messageId"]
    async with eve.wire() as wire:
        await ann.http.post(f"/conversations/{conversation}/members", json={"userIds": [eve.id]})
        created = await wire.hear("conversation:created")
        assert created["conversation"]["lastMessage"] is None
        assert (await wire.hear("member:joined"))["sequenceNumber"] == 2
    assert [message["sequenceNumber"] for message in await eve.history(conversation)] == [2]
    assert await page(eve, conversation, after=0) == ([2], None)
    for call in (f"/messages/{before}", f"/messages/{before}/deliveries"):
        assert (await eve.http.get(call)).status_code == 404
    view = await eve.view(conversation)
    assert (view["unreadCount"], view["lastMessage"], view["sequenceNumber"]) == (0, None, 2)
    [listed] = (await eve.http.get("/conversations")).json()["items"]
    assert listed["lastMessage"] is None
    for person in (ann, bob):  # and she does not count for it
        deliveries = (await person.http.get(f"/messages/{before}/deliveries")).json()["items"]
        assert [each["userId"] for each in deliveries] == [bob.id]
    reply = await eve.post(conversation, "to what?", "t-1", replyToId=before)
    assert reply.status_code == 422
    async with (await eve.another_device()).wire(cursors={conversation: 0}) as wire:
        # It says that it knows the conversation up to 0, where there is nothing of hers: there it begins anew.
        begun = ["conversation:deleted", "conversation:created", "member:joined", "sync:done"]
        assert [frame["type"] for frame in wire.missed] == begun
    await ann.post(conversation, "after", "t-2")
    assert (await eve.view(conversation))["unreadCount"] == 1


async def test_a_message_is_nobodys_before_it_is_on_the_disk(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    engine, begun, go_on = house.app.store._engine, trio.Event(), trio.Event()
    sync = engine.sync

    async def held_sync() -> None:
        begun.set()
        await go_on.wait()
        await sync()

    async with ann.wire() as wire, bob.wire() as other:
        await wire.fence()
        monkeypatch.setattr(engine, "sync", held_sync)
        await wire.say("message:send", conversationId=conversation, content="canary", tempId="t-1")
        await begun.wait()
        assert await wire.fence() == [] and await other.fence() == []
        assert await bob.history(conversation) == [] and (await bob.view(conversation))["lastMessage"] is None
        assert [each["id"] for each in (await bob.http.get("/conversations")).json()["items"]] == [conversation]
        async with bob.wire() as late:  # comes in just now, and must not miss it
            assert late.missed[-1] == {"type": "sync:done", "complete": True}
            go_on.set()
            await wire.hear("message:ack")
            for listener in (other, late):
                assert told([await listener.hear("message:new")]) == [(1, "canary")]


async def test_refusals_bring_back_what_they_refer_to(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with ann.wire() as wire:
        await wire.say("message:send", conversationId=new_id(), content="x", tempId="t-9", ref="r-9")
        refused = await wire.refused("not-found")
        assert (refused["tempId"], refused["ref"], refused["retryable"]) == ("t-9", "r-9", False)
        ack = await wire.send(conversation, "x", "t-1", ref="r-1")
        assert ack["ref"] == "r-1"
        for kind in ("message:read", "message:ack"):
            await wire.say(kind, conversationId=conversation, sequenceNumber=1, ref=kind)
            assert await wire.hear("ok") == {"type": "ok", "ref": kind}
        assert await wire.fence() == []
