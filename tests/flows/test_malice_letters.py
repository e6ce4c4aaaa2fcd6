"""What an operator who lies does to letters, and what comes of it: the table in docs/encryption.md.

What they do about devices, people and groups is in `test_malice.py`. People are shown what the table says, nothing is
shown as said by somebody who did not say it there, and where the table says so they go on talking.
"""

from collections.abc import Callable
from typing import Any

import pytest

from gearlink import protocol
from gearlink.sdk.e2ee.records import Count, Kept, Repair
from gearlink.sdk.secure import history
from gearlink.sdk.secure.told import Recovered
from storage.events import Plain
from tests.house import House
from tests.malice import Operator, suspects, suspicious, talk, victims
from tests.messengers import Messenger, refusal, switched_on

ANN, BOB, CID = "+15551230001", "+15551230002", "+15551230003"


@pytest.mark.parametrize("kind", ["direct", "group"])
async def test_a_letter_that_comes_again_as_another_message_is_a_replay(house: House, kind: str) -> None:
    operator, people = Operator(house), await victims(house, ANN, BOB)
    async with switched_on(people) as (ann, bob):
        room = await (ann.direct(bob) if kind == "direct" else ann.group(bob))
        await talk(room, ann, bob)
        message_id = (await ann.say(room, "yes"))[0]
        await bob.hears("yes")
        await operator.say_again(message_id)
        assert (await suspicious(bob, "replayed")).user_id == ann.user_id
        await talk(room, ann, bob)
        assert bob.texts.count("yes") == (await bob.kept(room)).count("yes") == 1


async def test_an_edit_that_comes_again_undoes_nothing(house: House) -> None:
    operator, people = Operator(house), await victims(house, ANN, BOB)
    async with switched_on(people) as (ann, bob):
        room = await ann.direct(bob)
        message_id = (await ann.say(room, "first"))[0]
        await bob.hears("first")
        for text in ("second", "third"):
            await ann.secure.edit(message_id, text)
        await bob.until(lambda: len([e for e in bob.heard if isinstance(e, protocol.MessageEdited)]) == 2)
        await operator.say_again(operator.silent[0])
        await suspicious(bob, "replayed")
        assert await bob.kept(room) == ["third"]


async def test_old_ciphertext_in_another_conversation_is_not_shown_there(house: House) -> None:
    operator, people = Operator(house), await victims(house, ANN, BOB)
    async with switched_on(people) as (ann, bob):
        room, group, other = await ann.direct(bob), await ann.group(bob), await bob.group(ann)
        await talk(room, ann, bob)
        await talk(group, ann, bob)
        for place in (room, group):
            message_id = (await ann.say(place, f"yes in {place}"))[0]
            await bob.hears(f"yes in {place}")
            await operator.say_again(message_id, conversation_id=other)
        await suspicious(bob, "replayed")
        await bob.until(lambda: any(each.trouble == "no-sender-key" for each in bob.messages))
        await talk(other, ann, bob)
        assert not any("yes" in str(text) for text in await bob.kept(other))


async def test_a_letter_that_is_moved_before_it_was_read_is_tampering_and_can_still_be_read(house: House) -> None:
    operator, (anns, bobs) = Operator(house), await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room, other = await ann.direct(bob), await ann.group(bob)
        await talk(room, ann, bob)
        bobs.line.withhold(lambda message: message["conversationId"] == room)
        message_id = (await ann.say(room, "yes"))[0]
        await operator.say_again(message_id, conversation_id=other)
        assert (await suspicious(bob, "misdirected")).conversation_id == other
        assert "yes" not in bob.texts
        bobs.line.be_honest()
        await operator.say_again(message_id)
        await bob.hears("yes")
        assert "yes" in await bob.kept(room) and "yes" not in await bob.kept(other)


@pytest.mark.parametrize("kind", ["direct", "group"])
async def test_what_one_said_is_not_shown_as_said_by_another(house: House, kind: str) -> None:
    operator, people = Operator(house), await victims(house, ANN, BOB, CID)
    async with switched_on(people) as (ann, bob, cid):
        room = await (ann.direct(bob) if kind == "direct" else ann.group(bob, cid))
        group = await cid.group(ann, bob)
        await talk(group, ann, bob, cid)
        await talk(room, ann, bob)
        message_id = (await ann.say(room, "i owe you money"))[0]
        await bob.hears("i owe you money")
        for sender in ((cid.user_id, cid.device_id), (cid.user_id, ann.device_id), (bob.user_id, ann.device_id)):
            copy_id = await operator.say_again(message_id, sender=sender)
            await bob.until(lambda copy_id=copy_id: _is_shown(bob, copy_id))
        await talk(room, ann, bob)
        said = [each for each in await bob.secure.history(room, limit=1000) if each.content == "i owe you money"]
        assert [each.sender_id for each in said] == [ann.user_id]
        assert bob.texts.count("i owe you money") == 1


def _is_shown(messenger: Messenger, message_id: str) -> bool:
    return any(each.id == message_id and each.content is None and each.trouble for each in messenger.messages)


async def test_words_that_nobody_encrypted_are_put_into_no_mouth(house: House) -> None:
    operator, people = Operator(house), await victims(house, ANN, BOB)
    async with switched_on(people) as (ann, bob):
        room = await ann.direct(bob)
        await talk(room, ann, bob)
        await operator.say(room, (ann.user_id, ann.device_id), Plain("i never said that"))
        assert (await suspicious(bob, "plain")).conversation_id == room
        message_id = (await ann.say(room, "i did"))[0]
        await bob.hears("i did")
        people[1].line.tell(_edited(message_id, "i did not"))
        await ann.secure.react(message_id, "👍")
        await bob.until(lambda: len(suspects(bob, "plain")) == 2)
        await talk(room, bob, ann)
        assert not any("not" in str(text) or "never" in str(text) for text in [*bob.texts, *await bob.kept(room)])
        assert not [each for each in bob.heard if isinstance(each, protocol.MessageEdited)]


def _edited(message_id: str, content: str) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """In place of a silent message the server tells of an edit."""

    def lie(frame: dict[str, Any]) -> list[dict[str, Any]]:
        message = frame.get("message", {})
        if frame["type"] != "message:new" or message["kind"] != "control":
            return [frame]
        of = {key: message[key] for key in ("conversationId", "sequenceNumber")}
        at = message["createdAt"]
        edited = {**message, "id": message_id, "kind": "text", "content": content, "editedAt": at}
        del edited["encrypted"]
        head = {"type": "message:edited", **of, "messageId": message_id, "userId": message["senderId"], "at": at}
        return [{**head, "content": content, "editedAt": at, "message": edited}]

    return lie


async def test_an_encrypted_conversation_stays_one_whatever_the_server_says_later(house: House) -> None:
    anns, bobs = await victims(house, ANN, BOB)
    async with bobs.on() as bob:
        async with anns.on() as ann:
            room = await ann.direct(bob)
            await talk(room, ann, bob)
        anns.line.answer("GET /conversations/[^/]*", lambda view: {**view, "encryption": "server"})
        async with anns.on() as ann:
            await ann.say(room, "for bob alone")
            await bob.hears("for bob alone")
            assert (await suspicious(ann, "downgraded")).conversation_id == room
    assert not any("for bob alone" in str(each) for each in anns.line.said)


async def test_a_new_conversation_is_encrypted_and_with_whom_it_was_asked_for(house: House) -> None:
    anns, bobs, cids = await victims(house, ANN, BOB, CID)
    async with switched_on([anns, bobs, cids]) as (ann, bob, cid):
        await cid.direct(ann)
        anns.line.answer("POST /conversations", lambda view: {**view, "encryption": "server"})
        await refusal("not-as-asked", ann.group, bob)
        anns.line.be_honest()
        anns.line.tell(lambda frame: [] if frame["type"] == "conversation:created" else [frame])
        anns.line.answer(
            "POST /conversations", lambda view: {**view, "members": _instead_of(bob, cid, view["members"])}
        )
        await refusal("not-as-asked", ann.direct, bob)


def _instead_of(one: Messenger, other: Messenger, members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**each, "userId": other.user_id} if each["userId"] == one.user_id else each for each in members]


async def test_a_letter_with_a_made_up_number_does_no_harm(house: House) -> None:
    anns, bobs = await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        await talk(room, ann, bob)
        await ann.secure.device.write(lambda tx: tx.put(Count(room, ann.device_id, 2**52)))
        await ann.say(room, "far out")
        await bob.hears("far out")
        await suspicious(bob, "missing")


async def test_a_withheld_letter_is_missed_with_the_next_one_and_comes_after_all(house: House) -> None:
    anns, bobs = await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        await talk(room, ann, bob)
        bobs.line.withhold(_next_text())
        await ann.say(room, "do not come")
        await ann.say(room, "bye")
        await bob.hears("bye")
        assert (await suspicious(bob, "missing")).device_id == ann.device_id
        await bob.until(lambda: [each for each in bob.heard if isinstance(each, Recovered)])
        assert (await bob.kept(room))[-2:] == ["do not come", "bye"]


def _next_text() -> Callable[[dict[str, Any]], bool]:
    hidden: list[str] = []

    def is_hidden(message: dict[str, Any]) -> bool:
        if message["kind"] == "text" and not hidden:
            hidden.append(message["id"])
        return message["id"] in hidden

    return is_hidden


async def test_rubbish_in_somebodys_name_does_not_hide_that_a_letter_is_missing(house: House) -> None:
    operator, (anns, bobs) = Operator(house), await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        await talk(room, ann, bob)
        await operator.say_rubbish(room, anns.address, bobs.address)
        bobs.line.withhold(_next_text())
        await ann.say(room, "do not come", "bye")
        await bob.hears("bye")
        await bob.until(lambda: [each for each in bob.heard if isinstance(each, Recovered)])
        assert (await bob.kept(room))[-2:] == ["do not come", "bye"]
        assert await bob.unreadable() == {"bad-message": 1}


async def test_a_letter_of_which_the_server_says_that_it_disappeared_is_not_missed(house: House) -> None:
    anns, bobs = await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        await talk(room, ann, bob)
        bobs.line.tell(_gone_at_once(_next_text()))
        await ann.say(room, "do not come", "bye")
        await bob.hears("bye")
        assert "do not come" not in bob.texts
        assert not bob.suspicions  # nobody can tell: docs/encryption.md says so


def _gone_at_once(is_hidden: Callable[[dict[str, Any]], bool]) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    def lie(frame: dict[str, Any]) -> list[dict[str, Any]]:
        if frame["type"] != "message:new" or not is_hidden(frame["message"]):
            return [frame]
        message = frame["message"]
        place = {key: message[key] for key in ("conversationId", "sequenceNumber")}
        return [{"type": "message:expired", **place, "messageIds": [message["id"]]}]

    return lie


async def test_a_withheld_envelope_is_asked_for_again(house: House) -> None:
    anns, bobs = await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        await talk(room, ann, bob)
        bobs.line.tell(_without_envelope)
        await ann.say(room, "do not come")
        await bob.until(lambda: any(each.trouble == "no-envelope" for each in bob.messages))
        bobs.line.be_honest()
        await bob.hears("do not come")
        assert await bob.unreadable() == {"no-envelope": 1}
        await talk(room, ann, bob)


def _without_envelope(frame: dict[str, Any]) -> list[dict[str, Any]]:
    message = frame.get("message", {})
    if frame["type"] == "message:new" and message["kind"] == "text":
        frame = {**frame, "message": {**message, "encrypted": {"scheme": "double-ratchet", "envelopes": []}}}
    return [frame]


@pytest.mark.parametrize("greeted", [True, False])
async def test_letters_in_another_order_are_each_read_once(house: House, greeted: bool) -> None:
    anns, bobs = await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        if greeted:
            await talk(room, ann, bob)
        bobs.line.tell(_swapping_two())
        await ann.say(room, "one", "two")
        await bob.hears("one", "two")
        bobs.line.be_honest()
        await talk(room, ann, bob)
        assert [text for text in bob.texts if text in ("one", "two")] == ["two", "one"]
        kept = await bob.secure.device.read(lambda tx: tx.scan(Kept, room))
        numbers = [each.count for each in kept if each.sender_id == ann.user_id and each.kind == "text"]
        assert sorted(numbers) != numbers  # the numbers of the sender tell the true order
        assert not await bob.secure.device.read(lambda tx: tx.scan(Repair))
        assert not await bob.unreadable()


def _swapping_two() -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """Holds a text back until the next one, and gives each the number of the other."""
    held: list[dict[str, Any]] = []

    def lie(frame: dict[str, Any]) -> list[dict[str, Any]]:
        if frame["type"] != "message:new" or frame["message"]["kind"] != "text":
            return [frame]
        held.append(frame["message"])
        if len(held) != 2:
            return [] if len(held) < 2 else [frame]
        numbers = [each["sequenceNumber"] for each in held]
        told = [{**each, "sequenceNumber": number} for each, number in zip(reversed(held), numbers, strict=True)]
        return [{**frame, "message": each} for each in told]

    return lie


async def test_a_letter_that_is_delivered_twice_is_read_once(house: House) -> None:
    anns, bobs = await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        bobs.line.tell(lambda frame: [frame, frame] if frame["type"] == "message:new" else [frame])
        await ann.say(room, "yes", "no")
        await bob.hears("yes", "no")
        bobs.line.be_honest()
        await talk(room, ann, bob)
        assert bob.texts[:2] == (await bob.kept(room))[:2] == ["yes", "no"]
        assert not bob.noticed and not await bob.unreadable()


async def test_hiding_that_messages_disappear_does_not_keep_them(house: House) -> None:
    anns, bobs = await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        bobs.line.tell(_without_expiry)
        await ann.secure.send(room, "burn this", expires_in_seconds=30)
        heard = (await bob.hears("burn this"))[0]
        assert isinstance(heard.expires_at, str)
        kept = await bob.secure.device.read(lambda tx: tx.scan(Kept, room))
        now = kept[-1].expires_at
        assert now - kept[-1].created_at == 30_000
        await bob.secure.device.write(lambda tx: history.expire_due(tx, now))
        assert await bob.kept(room) == []


def _without_expiry(frame: dict[str, Any]) -> list[dict[str, Any]]:
    if frame["type"] == "message:expired":
        return []
    if frame["type"] == "message:new":
        return [{**frame, "message": {key: each for key, each in frame["message"].items() if key != "expiresAt"}}]
    return [frame]
