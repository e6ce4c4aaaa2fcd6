"""What becomes of messages on a running server: edited, deleted, pinned, replied to, handed on, gone by themselves.

Each is done through one door and heard, or looked up, through the other; every refusal is tried at both.
"""

from pathlib import Path
from typing import Any

import httpx
import pytest

from gearlink.clock import new_id, rfc3339
from tests.fakes import FakeClock
from tests.house import House, Person, Wire, open_house


async def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def read(person: Person, message_id: str) -> dict[str, Any]:
    answer = await person.http.get(f"/messages/{message_id}")
    message: dict[str, Any] = answer.raise_for_status().json()
    return message


async def items(person: Person, path: str) -> list[dict[str, Any]]:
    answer = await person.http.get(path)
    found: list[dict[str, Any]] = answer.raise_for_status().json()["items"]
    return found


async def posted(person: Person, conversation: str, content: str, **more: Any) -> str:
    answer = await person.post(conversation, content, new_id(), **more)
    return str(answer.raise_for_status().json()["id"])


async def done(wire: Wire, type: str, **fields: Any) -> None:
    """Says it and waits until it is confirmed."""
    await wire.say(type, ref="r", **fields)
    assert (await wire.hear_until("ok"))[-1] == {"type": "ok", "ref": "r"}


# --- edits -----------------------------------------------------------------------------------------------------------


async def test_an_edit_reaches_every_device_that_looks_and_those_that_come_later(house: House) -> None:
    ann, bob = await house.people(2)
    tablet = await ann.another_device()
    conversation = await ann.open("direct", bob)
    message_id = await posted(ann, conversation, "one")
    async with ann.wire() as own, tablet.wire() as other_own, bob.wire() as other:
        answer = await ann.http.patch(f"/messages/{message_id}", json={"content": "two"})
        assert answer.raise_for_status().json() == await read(ann, message_id)
        for wire in (own, other_own, other):
            frame = await wire.hear("message:edited")
            assert (frame["messageId"], frame["userId"], frame["content"]) == (message_id, ann.id, "two")
            assert (frame["sequenceNumber"], frame["message"]["sequenceNumber"]) == (2, 1)
            assert frame["editedAt"] == frame["message"]["editedAt"] == answer.json()["editedAt"]
        await done(own, "message:edit", messageId=message_id, content="three")
        assert (await other.hear("message:edited"))["content"] == "three"
        await done(own, "message:edit", messageId=message_id, content="three")
        assert await other.fence() == []
    for person in (ann, bob):
        found = await items(person, f"/messages/{message_id}/revisions")
        assert [(each["number"], each["content"]) for each in found] == [(1, "one"), (2, "two")]
    async with bob.wire(cursors={conversation: 0}) as late:
        told = [(frame["type"], (frame.get("message") or {}).get("content")) for frame in late.missed]
    assert told == [
        ("message:new", "three"),
        ("message:edited", "three"),
        ("message:edited", "three"),
        ("sync:done", None),
    ]
    assert [(each["sequenceNumber"], each["content"]) for each in await bob.history(conversation)] == [(1, "three")]


async def test_an_edit_that_is_not_allowed_is_refused_at_both_doors(tmp_path: Path) -> None:
    clock = FakeClock()
    async with open_house(tmp_path / "data", clock=clock, limits__edit_hours="1") as house:
        ann, bob, eve = await house.people(3)
        conversation = await ann.open("group", bob)
        message_id, deleted = [await posted(ann, conversation, each) for each in ("one", "two")]
        place = await posted(ann, conversation, '{"latitude": 1, "longitude": 2}', kind="location")
        await ann.http.delete(f"/messages/{deleted}?forEveryone=true")
        clock.advance(minutes=10)
        young = await posted(ann, conversation, "young")
        clock.advance(minutes=50)
        ann, bob, eve = [await house.sign_up(each.phone_number) for each in (ann, bob, eve)]  # the tokens are old
        for person, target, status, code in [
            (eve, young, 404, "not-found"),
            (bob, young, 403, "forbidden"),
            (ann, message_id, 409, "too-late"),
            (ann, deleted, 409, "message-deleted"),
            (ann, place, 422, "invalid-request"),
            (ann, new_id(), 404, "not-found"),
        ]:
            await refused(await person.http.patch(f"/messages/{target}", json={"content": "x"}), status, code)
            async with person.wire() as wire:
                await wire.say("message:edit", messageId=target, content="x", ref="r")
                assert (await wire.refused(code))["ref"] == "r"
        big = {"content": "😀" * 5000}
        await refused(await ann.http.patch(f"/messages/{young}", json=big), 422, "invalid-request")
        await refused(await ann.http.patch(f"/messages/{young}", json={"text": "x"}), 422, "invalid-request")
        await refused(await ann.http.patch(f"/messages/{young}", json={"content": ""}), 422, "invalid-request")
        assert [each["content"] for each in await bob.history(conversation)][-1] == "young"


# --- deletion --------------------------------------------------------------------------------------------------------


async def test_what_is_deleted_for_everyone_is_gone_at_once_and_stays_gone(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data") as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        message_id = await posted(ann, conversation, "canary")
        async with ann.wire() as own, bob.wire() as other:
            await done(own, "message:delete", messageId=message_id, forEveryone=True)
            frame = await other.hear("message:deleted")
            assert frame == {
                "type": "message:deleted", "conversationId": conversation, "messageId": message_id, "userId": ann.id,
                "forEveryone": True, "deletedAt": frame["deletedAt"], "sequenceNumber": 2,
            }  # fmt: skip
            await done(own, "message:delete", messageId=message_id, forEveryone=True)
            assert (await ann.http.delete(f"/messages/{message_id}?forEveryone=true")).status_code == 204
            assert await other.fence() == []
    async with open_house(tmp_path / "data") as house:
        again = await house.back(bob)
        message = await read(again, message_id)
        assert (message["content"], message["deletedBy"], message["kind"]) == (None, ann.id, "text")
        assert [each["content"] for each in await again.history(conversation)] == [None]
        async with again.wire(cursors={conversation: 0}) as late:
            told = [(frame["type"], (frame.get("message") or {}).get("content")) for frame in late.missed]
        assert told == [("message:new", None), ("message:deleted", None), ("sync:done", None)]
        assert (await again.view(conversation))["unreadCount"] == 0


async def test_what_one_deletes_for_oneself_goes_from_ones_own_devices_alone(house: House) -> None:
    ann, bob = await house.people(2)
    tablet = await bob.another_device()
    conversation = await ann.open("direct", bob)
    first, second = [await posted(ann, conversation, each) for each in ("one", "two")]
    async with ann.wire() as other, bob.wire() as phone, tablet.wire() as wire:
        assert (await bob.http.delete(f"/messages/{first}?forEveryone=false")).status_code == 204
        assert (await bob.http.delete(f"/messages/{first}")).status_code == 204
        frame = await wire.hear("message:deleted")
        assert (frame["messageId"], frame["forEveryone"], frame["userId"]) == (first, False, bob.id)
        assert "sequenceNumber" not in frame
        await done(wire, "message:delete", messageId=second, forEveryone=False)
        assert (await phone.hear("message:deleted"))["messageId"] == second
        assert await other.fence() == []
    assert await bob.history(conversation) == [] == await tablet.history(conversation)
    await refused(await bob.http.get(f"/messages/{first}"), 404, "not-found")
    await refused(await bob.http.patch(f"/messages/{first}", json={"content": "x"}), 404, "not-found")
    assert [each["content"] for each in await ann.history(conversation)] == ["one", "two"]
    assert (await bob.view(conversation))["unreadCount"] == 0


async def test_a_deletion_that_is_not_allowed_is_refused_at_both_doors(house: House) -> None:
    ann, bob, cem, eve = await house.people(4)
    conversation = await ann.open("group", bob, cem)
    message_id = await posted(bob, conversation, "one")
    for person, status, code in [(cem, 403, "forbidden"), (eve, 404, "not-found")]:
        await refused(await person.http.delete(f"/messages/{message_id}?forEveryone=true"), status, code)
        async with person.wire() as wire:
            await wire.say("message:delete", messageId=message_id, forEveryone=True)
            await wire.refused(code)
    await refused(await eve.http.delete(f"/messages/{message_id}"), 404, "not-found")
    for query in ("forEveryone=perhaps", "everyone=true", "forEveryone=true&forEveryone=false"):
        await refused(await bob.http.delete(f"/messages/{message_id}?{query}"), 422, "invalid-request")
    assert (await read(cem, message_id))["content"] == "one"
    assert (await ann.http.delete(f"/messages/{message_id}?forEveryone=true")).status_code == 204  # she moderates
    assert (await read(cem, message_id))["deletedBy"] == ann.id


# --- pins ------------------------------------------------------------------------------------------------------------


async def test_a_pin_is_heard_listed_and_taken_down(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation = await ann.open("group", bob)
    first, second = [await posted(bob, conversation, each) for each in ("one", "two")]
    async with ann.wire() as own, bob.wire() as other:
        assert (await ann.http.put(f"/messages/{first}/pin")).status_code == 204
        frame = await other.hear("message:pinned")
        assert (frame["messageId"], frame["userId"], frame["sequenceNumber"]) == (first, ann.id, 3)
        await done(own, "message:pin", messageId=second)
        await other.hear("message:pinned")
        assert (await ann.http.put(f"/messages/{first}/pin")).status_code == 204
        assert await other.fence() == []
        path = f"/conversations/{conversation}/pins"
        assert [each["id"] for each in await items(bob, path)] == [second, first]
        assert (await bob.view(conversation))["pinCount"] == 2
        for call, code in [("/messages/{}/pin", 403), ("/messages/{}/pin", 404)]:
            person = bob if code == 403 else eve
            for method in ("PUT", "DELETE"):
                answer = await person.http.request(method, call.format(first))
                await refused(answer, code, "forbidden" if code == 403 else "not-found")
        await refused(await eve.http.get(path), 404, "not-found")
        for type in ("message:pin", "message:unpin"):
            await other.say(type, messageId=first)
            await other.refused("forbidden")
        await done(own, "message:unpin", messageId=second)
        assert (await other.hear("message:unpinned"))["messageId"] == second
        await ann.http.delete(f"/messages/{first}?forEveryone=true")
        await refused(await ann.http.put(f"/messages/{first}/pin"), 409, "message-deleted")
    assert await items(bob, path) == []
    kinds = [each["kind"] for each in await bob.history(conversation)]
    assert kinds == ["text", "text", "system", "system", "system"]


# --- replies, mentions, forwarding -----------------------------------------------------------------------------------


async def test_a_reply_shows_what_it_answers_live_and_later_and_when_that_is_gone(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    question = await posted(ann, conversation, "why?")
    async with ann.wire() as own, bob.wire() as other:
        ack = await own.send(conversation, "because", "t-1", replyToId=question)
        live = (await other.hear("message:new"))["message"]
        assert (live["replyToId"], live["threadId"]) == (question, question)
        quote = {"id": question, "senderId": ann.id, "kind": "text", "content": "why?", "sequenceNumber": 1}
        assert live["replyTo"] == quote == (await read(bob, ack["messageId"]))["replyTo"]
        await own.say("message:send", conversationId=conversation, content="x", tempId="t-2", replyToId=new_id())
        await own.refused("invalid-request")
    async with bob.wire(cursors={conversation: 0}) as late:
        assert [frame["message"].get("replyTo") for frame in late.missed[:2]] == [None, quote]
    await ann.http.delete(f"/messages/{question}?forEveryone=true")
    assert (await read(bob, ack["messageId"]))["replyTo"] | {"deletedAt": ""} == quote | {
        "content": None,
        "deletedAt": "",
    }


async def test_mentions_are_told_with_the_message_and_refused_for_strangers(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation = await ann.open("group", bob)
    async with ann.wire() as own, bob.wire() as other:
        await own.send(conversation, "hey", "t-1", mentions=[bob.id, "all"])
        assert (await other.hear("message:new"))["message"]["mentions"] == [bob.id, "all"]
        await other.say("message:send", conversationId=conversation, content="x", tempId="t-2", mentions=["all"])
        await other.refused("forbidden")
    await refused(await bob.post(conversation, "x", "t-3", mentions=["all"]), 403, "forbidden")
    await refused(await ann.post(conversation, "x", "t-3", mentions=[eve.id]), 422, "invalid-request")
    assert len(await bob.history(conversation)) == 1


async def test_a_message_that_is_handed_on_is_marked(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation, elsewhere = await ann.open("direct", bob), await ann.open("direct", eve)
    source = await posted(ann, conversation, "psst")
    async with ann.wire() as own, eve.wire() as other:
        await own.send(elsewhere, "psst", "t-1", forwardedFromId=source)
        assert (await other.hear("message:new"))["message"]["forwarded"] == 1
        await other.say("message:send", conversationId=elsewhere, content="x", tempId="t-2", forwardedFromId=source)
        await other.refused("invalid-request")
    await refused(await eve.post(elsewhere, "x", "t-3", forwardedFromId=source), 422, "invalid-request")


@pytest.mark.parametrize(
    ("form", "path"),
    [
        ({"kind": "location", "content": "here"}, "content"),
        ({"kind": "contact", "content": "{}"}, "content"),
        ({"kind": "poll"}, "poll"),
        ({"poll": {"options": ["a", "b"]}}, "poll"),
        ({"kind": "poll", "poll": {"options": ["a", "a"]}}, "poll.options"),
        ({"kind": "poll", "poll": {"options": ["a"]}}, "poll.options"),
        ({"kind": "image", "mediaIds": [new_id()]}, "mediaIds"),
        ({"kind": "system"}, "kind"),
        ({"mentions": ["everybody"]}, "mentions[0]"),
        ({"expiresInSeconds": 0}, "expiresInSeconds"),
    ],
)
async def test_what_a_message_cannot_be_is_refused_at_both_doors(house: House, form: dict[str, Any], path: str) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    answer = await ann.post(conversation, **{"content": "canary", "temp_id": "t-1", **form})
    await refused(answer, 422, "invalid-request")
    assert [each["path"] for each in answer.json()["errors"]] == [path]
    async with ann.wire() as wire:
        await wire.say("message:send", conversationId=conversation, tempId="t-1", **{"content": "canary", **form})
        assert (await wire.refused("invalid-request"))["tempId"] == "t-1"
    assert await bob.history(conversation) == []


# --- disappearing ----------------------------------------------------------------------------------------------------


async def test_a_message_disappears_at_its_time_for_those_who_are_there_and_those_who_come_late(tmp_path: Path) -> None:
    clock = FakeClock()
    async with open_house(tmp_path / "data", clock=clock) as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        async with ann.wire() as own, bob.wire() as other:
            ack = await own.send(conversation, "canary", "t-1", expiresInSeconds=5)
            message = (await other.hear("message:new"))["message"]
            assert message["expiresAt"] == rfc3339(clock.now() + 5000)
            clock.advance(seconds=5)
            await refused(await bob.http.get(f"/messages/{message['id']}"), 404, "not-found")
            assert await bob.history(conversation) == []
            await house.app.timers.tick()
            gone = await other.hear("message:expired")
            assert (gone["messageIds"], gone["sequenceNumber"]) == ([message["id"]], 2)
            assert (await own.hear("message:expired"))["messageIds"] == [message["id"]]
            again = await own.send(conversation, "canary", "t-1", expiresInSeconds=5)
            assert again == ack
        repeated = await ann.post(conversation, "canary", "t-1", expiresInSeconds=5)
        assert (repeated.status_code, repeated.json()["messageId"]) == (201, ack["messageId"])
        assert repeated.json()["content"] is None
        async with bob.wire(cursors={conversation: 0}) as late:
            told = [(frame["type"], frame.get("sequenceNumber")) for frame in late.missed]
        assert told == [("message:expired", 1), ("message:expired", 2), ("sync:done", None)]
        assert (await bob.view(conversation))["lastMessage"] is None


async def test_a_newcomer_hears_nothing_of_what_was_said_before_their_time(house: House) -> None:
    """Neither live nor later, nor in a sync: not in an edit, not in a reply, not by a reaction."""
    ann, bob, eve = await house.people(3)
    room = await ann.open("group", bob)
    early = (await ann.post(room, "canary one", "t-1")).json()["id"]
    await ann.http.post(f"/conversations/{room}/members", json={"userIds": [eve.id]})
    async with eve.wire() as live:
        (await ann.http.patch(f"/messages/{early}", json={"content": "canary two"})).raise_for_status()
        (await bob.http.put(f"/messages/{early}/reactions/%F0%9F%91%8D")).raise_for_status()
        (await ann.http.put(f"/messages/{early}/pin")).raise_for_status()
        await ann.post(room, "as I said", "t-2", replyToId=early)
        (await ann.http.delete(f"/messages/{early}?forEveryone=true")).raise_for_status()
        heard = await live.fence()
    async with (await eve.another_device()).wire() as wire:
        later = wire.missed
    synced = (await eve.http.post("/sync", json={"cursors": {room: 2}})).json()["events"]
    for frames in (heard, later, synced):
        assert "canary" not in repr(frames)
        told = [frame["type"] for frame in frames if "member" not in frame["type"] and frame["type"] in ABOUT_MESSAGES]
        assert told == ["message:expired", "message:expired", "message:pinned", "message:new", "message:expired"]
        [reply] = [frame["message"] for frame in frames if frame["type"] == "message:new"]
        assert (reply["replyToId"], reply["replyTo"]) == (early, None)
    [shown] = [message for message in await eve.history(room) if message["kind"] == "text"]
    assert shown["replyTo"] is None


ABOUT_MESSAGES = {"message:expired", "message:pinned", "message:new", "message:edited", "message:deleted"}
ABOUT_MESSAGES |= {"reaction:added", "reaction:removed"}
