"""Encrypted conversations, as the people in them live them: two, several devices, groups, and what goes wrong on the way."""

import trio

from gearlink import protocol
from gearlink.sdk.e2ee.records import Kept, OwnSenderKey, Session
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.secure.told import Recovered, Suspicious
from tests.house import House
from tests.messengers import Messenger, Phone, phones, refusal, switched_on

ANN, BOB, CID = "+15551230001", "+15551230002", "+15551230003"


async def test_two_people_read_each_other_and_nothing_is_suspicious(house: House) -> None:
    async with switched_on(await phones(house, ANN, BOB)) as (ann, bob):
        room = await ann.direct(bob)
        await ann.say(room, "hello", "are you there?")
        await bob.hears("hello", "are you there?")
        await bob.say(room, "yes")
        await ann.hears("yes")
        assert await ann.kept(room) == await bob.kept(room) == ["hello", "are you there?", "yes"]
        assert not ann.noticed and not bob.noticed
        assert not await ann.unreadable() and not await bob.unreadable()


async def test_the_server_is_shown_no_text_and_no_kind(house: House) -> None:
    async with switched_on(await phones(house, ANN, BOB)) as (ann, bob):
        room = await ann.direct(bob)
        await ann.secure.send(room, "the canary sings", kind="voice")
        heard = (await bob.hears("the canary sings"))[0]
        assert heard.kind == "voice"
        async for page in bob.client.history(room):
            assert [(view.kind, view.content) for view in page] == [("text", None)]


async def test_both_begin_at_once_and_end_on_one_session(house: House) -> None:
    async with switched_on(await phones(house, ANN, BOB)) as (ann, bob):
        room = await ann.direct(bob)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ann.say, room, "from ann")
            nursery.start_soon(bob.say, room, "from bob")
        await ann.hears("from bob")
        await bob.hears("from ann")
        for number in range(3):
            await ann.say(room, f"a{number}")
            await bob.hears(f"a{number}")
            await bob.say(room, f"b{number}")
            await ann.hears(f"b{number}")
        last = [await _newest_session(each, other) for each, other in ((ann, bob), (bob, ann))]
        assert last[0] == last[1]


async def _newest_session(one: Messenger, other: Messenger) -> bytes:
    found = await one.secure.device.read(lambda tx: tx.scan(Session, other.device_id))
    return max(found, key=lambda each: each.used_at).session_id


async def test_in_a_group_everybody_reads_and_a_newcomer_reads_what_comes_after(house: House) -> None:
    async with switched_on(await phones(house, ANN, BOB, CID)) as (ann, bob, cid):
        room = await ann.group(bob)
        await ann.say(room, "before")
        await bob.say(room, "bob before")
        await bob.hears("before")
        await ann.secure.groups.add(room, [cid.user_id])
        await ann.say(room, "welcome")
        await cid.hears("welcome")
        await bob.say(room, "hi cid")
        await cid.hears("hi cid")
        await cid.say(room, "thanks")
        await ann.hears("thanks")
        await bob.hears("thanks")
        assert await cid.kept(room) == ["welcome", "hi cid", "thanks"]
        for each in (ann, bob, cid):
            assert not each.noticed
            assert not await each.unreadable()


async def test_who_has_left_gets_no_new_sender_key(house: House) -> None:
    async with switched_on(await phones(house, ANN, BOB, CID)) as (ann, bob, cid):
        room = await ann.group(bob, cid)
        await ann.say(room, "all of us")
        await cid.hears("all of us")
        before = await _sender_key(ann, room)
        assert (cid.user_id, cid.device_id) in before.holders
        await ann.secure.groups.remove(room, cid.user_id)
        await ann.say(room, "without cid")
        await bob.hears("without cid")
        after = await _sender_key(ann, room)
        assert after.key_id != before.key_id
        assert [user_id for user_id, _device_id in after.holders] == [bob.user_id]
        assert "without cid" not in cid.texts


async def _sender_key(messenger: Messenger, room: str) -> OwnSenderKey:
    found = await messenger.secure.device.read(lambda tx: tx.get(OwnSenderKey, room))
    assert found is not None
    return found


async def test_reactions_and_edits_are_told_and_kept_and_the_server_does_not_see_them(house: House) -> None:
    async with switched_on(await phones(house, ANN, BOB)) as (ann, bob):
        room = await ann.direct(bob)
        message_id = (await ann.say(room, "helo"))[0]
        await bob.hears("helo")
        await ann.secure.edit(message_id, "hello")
        await bob.until(lambda: [each for each in bob.heard if isinstance(each, protocol.MessageEdited)])
        await bob.secure.react(message_id, "👍")
        told = await ann.until(lambda: [each for each in ann.heard if isinstance(each, protocol.ReactionAdded)])
        assert told[0].reactions[0].count == 1
        await bob.secure.react(message_id, "👍", added=False)
        await ann.until(lambda: [each for each in ann.heard if isinstance(each, protocol.ReactionRemoved)])
        assert await ann.kept(room) == await bob.kept(room) == ["hello"]
        await refusal("forbidden", bob.secure.edit, message_id, "not mine")
        assert (await bob.client.message(message_id)).reactions == []


async def test_a_device_that_was_away_reads_what_it_missed(house: House) -> None:
    anns, bobs = await phones(house, ANN, BOB)
    async with anns.on() as ann:
        async with bobs.on() as bob:
            room = await ann.direct(bob)
            await ann.say(room, "one")
            await bob.hears("one")
        await ann.say(room, *(f"away {number}" for number in range(20)))
        async with bobs.on() as bob:
            await bob.hears(*(f"away {number}" for number in range(20)))
            assert (await bob.kept(room))[1:] == [f"away {number}" for number in range(20)]
            assert not bob.noticed
            assert not await bob.unreadable()


async def test_a_lost_session_repairs_itself_and_the_message_is_read_once(house: House) -> None:
    async with switched_on(await phones(house, ANN, BOB)) as (ann, bob):
        room = await ann.direct(bob)
        await ann.say(room, "one")
        await bob.hears("one")
        await bob.say(room, "two")
        await ann.hears("two")

        def lose(tx: Tx) -> None:
            bob.secure.device.cipher.forget(tx, ann.device_id)

        await bob.secure.device.write(lose)
        await ann.say(room, "three")
        await bob.until(lambda: [each for each in bob.heard if isinstance(each, Recovered)])
        assert bob.texts.count("three") == 1
        assert await bob.unreadable() == {"no-session": 1}
        await ann.say(room, "four")
        await bob.hears("four")
        assert await bob.kept(room) == ["one", "two", "three", "four"]
        assert await bob.unreadable() == {"no-session": 1}


async def test_a_reply_quotes_from_what_this_device_keeps(house: House) -> None:
    async with switched_on(await phones(house, ANN, BOB)) as (ann, bob):
        room = await ann.direct(bob)
        message_id = (await ann.say(room, "what time?"))[0]
        await bob.hears("what time?")
        await bob.secure.send(room, "at six", reply_to_id=message_id)
        reply = (await ann.hears("at six"))[0]
        assert reply.reply_to_id == message_id
        assert reply.reply_to and reply.reply_to.content == "what time?"


async def test_what_is_deleted_for_everyone_is_gone_from_every_history(house: House) -> None:
    async with switched_on(await phones(house, ANN, BOB)) as (ann, bob):
        room = await ann.direct(bob)
        message_id = (await ann.say(room, "oh no"))[0]
        await bob.hears("oh no")
        await ann.client.delete(message_id, for_everyone=True)
        for each in (ann, bob):
            await each.until(lambda each=each: [e for e in each.heard if isinstance(e, protocol.MessageDeleted)])
            kept = await each.secure.device.read(lambda tx: tx.scan(Kept, room))
            assert [one.letter for one in kept] == [b""]


async def test_somebody_whom_no_admin_signed_in_reads_nothing_and_is_shown(house: House) -> None:
    async with switched_on(await phones(house, ANN, BOB, CID)) as (ann, bob, cid):
        room = await ann.group(bob)
        await ann.client.add_members(room, [cid.user_id])  # what a server could do by itself
        await ann.say(room, "only for bob")
        await bob.hears("only for bob")
        ghost = [each for each in ann.noticed if isinstance(each, Suspicious) and each.code == "ghost-member"]
        assert [each.user_id for each in ghost] == [cid.user_id]
        key = await _sender_key(ann, room)
        assert [user_id for user_id, _device_id in key.holders] == [bob.user_id]
        assert "only for bob" not in cid.texts


async def test_a_second_device_waits_to_be_linked_and_others_encrypt_nothing_for_it(house: House) -> None:
    async with switched_on(await phones(house, ANN, BOB)) as (ann, bob):
        room = await ann.direct(bob)
        await ann.say(room, "one")
        await bob.hears("one")
        second = Phone(house, BOB)
        await second.sign_in()
        async with second.on() as tablet:
            await ann.say(room, "two")
            await bob.hears("two")
            assert "two" not in tablet.texts
            await refusal("not-linked", tablet.secure.send, room, "nobody could read this")
        assert not ann.suspicions


async def test_the_same_temp_id_again_is_the_same_message_and_leaves_no_number_out(house: House) -> None:
    async with switched_on(await phones(house, ANN, BOB)) as (ann, bob):
        room = await ann.direct(bob)
        first = await ann.secure.send(room, "once", "my-name-for-it")
        again = await ann.secure.send(room, "once", "my-name-for-it")
        assert again.message_id == first.message_id
        await ann.say(room, "next")
        await bob.hears("once", "next")
        assert await bob.kept(room) == await ann.kept(room) == ["once", "next"]
        assert not bob.noticed
