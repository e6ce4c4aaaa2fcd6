"""What random histories found (`tests/sim/test_secure_histories.py`), each told as a plain story."""

import trio
from msgspec.structs import replace

from gearlink.sdk.e2ee.agreement import own_of
from gearlink.sdk.e2ee.letters import ResendRequest
from gearlink.sdk.e2ee.records import Since
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.secure.repairs import ANSWERS_MAX
from gearlink.sdk.secure.told import IdentityChanged, NotLinked
from tests.house import House
from tests.messengers import Phone, phones, refusal, switched_on

ANN, BOB = "+15551230001", "+15551230002"


async def test_a_program_that_is_closed_while_it_opens_a_letter_opens_it_the_next_time(house: House) -> None:
    anns, bobs = await phones(house, ANN, BOB)
    async with anns.on() as ann:
        async with bobs.on() as bob:
            room = await ann.direct(bob)
            await bob.until(lambda: bob.client.online)
            asked, close = trio.Event(), trio.Event()

            async def wait(_conversation_id: str) -> bool:
                asked.set()
                await close.wait()
                return True

            bob.secure.receiving._ask_for = wait  # type: ignore[method-assign,assignment]
            await ann.say(room, "are you leaving?")
            await asked.wait()
        async with bobs.on() as bob:
            await bob.hears("are you leaving?")
            assert not await bob.unreadable()


async def test_a_letter_that_comes_while_a_device_is_being_linked_is_read_and_older_ones_are_no_trouble(
    house: House,
) -> None:
    anns, bobs = await phones(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        await ann.say(room, "before")
        await bob.hears("before")
        tablets = Phone(house, BOB)
        await tablets.sign_in()
        async with tablets.on() as tablet:
            code = (await tablet.until(lambda: [each for each in tablet.noticed if isinstance(each, NotLinked)]))[
                0
            ].code
            await bob.secure.link(code, history=False)
            await ann.say(room, "while it is linked")  # the server counts it already, and it does not know that yet
            await tablet.hears("while it is linked")
            assert await tablet.kept(room) == ["while it is linked"]
            assert not await tablet.unreadable()


async def test_a_device_that_does_not_know_yet_that_it_is_certified_says_nothing(house: House) -> None:
    anns, bobs = await phones(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        tablets = Phone(house, BOB)
        await tablets.sign_in()
        async with tablets.on() as tablet:
            code = (await tablet.until(lambda: [each for each in tablet.noticed if isinstance(each, NotLinked)]))[
                0
            ].code
            async with tablet.secure.linking._lock:  # it cannot look for the letter of the old device
                await bob.secure.link(code, history=False)
                await refusal("not-linked", tablet.secure.send, room, "whose device is this?")
        assert not ann.suspicions


async def test_what_could_not_be_sent_for_want_of_a_network_goes_as_soon_as_there_is_one(house: House) -> None:
    anns, bobs = await phones(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        with trio.move_on_after(0) as gave_up:
            await ann.secure.send(room, "never mind")
        assert gave_up.cancelled_caught
        sealed = trio.Event()
        submit = ann.client.submit

        async def hang(_form: object) -> None:
            sealed.set()
            await trio.sleep_forever()

        ann.client.submit = hang  # type: ignore[method-assign,assignment]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ann.secure.send, room, "and this?")
            await sealed.wait()
            ann.client.submit = submit  # type: ignore[method-assign]
            nursery.cancel_scope.cancel()
        await bob.hears("and this?")
        await ann.until(lambda: True)
        assert bob.texts == ["and this?"]


async def test_a_crash_before_it_was_noted_what_was_said_before_is_made_up_for(house: House) -> None:
    (anns,) = await phones(house, ANN)
    async with anns.on() as ann:
        room = (await ann.secure.groups.create("group", [], name="alone", description=None)).id
    assert (await anns.vault.read(own_of)).since_noted
    await anns.vault.write(_forget_since)
    async with anns.on() as ann:
        assert ann.secure.device.own.since_noted
        assert [each.conversation_id for each in await ann.secure.device.read(lambda tx: tx.scan(Since))] == [room]


async def test_who_asks_for_letters_all_the_time_is_answered_so_often_and_no_more(house: House) -> None:
    anns, bobs = await phones(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        [message_id] = await ann.say(room, "once")
        view = (await bob.hears("once"))[0]
        request = ResendRequest(conversation_id=room, message_id=message_id, reason="bad-message")
        repairs = ann.secure.repairs
        for _each in range(2 * ANSWERS_MAX):
            repairs.requested(replace(view, sender_id=bob.user_id, sender_device_id=bob.device_id), request)
        assert len(repairs._requests) == ANSWERS_MAX
        repairs._requests.clear()
        repairs.requested(replace(view, sender_id=bob.user_id, sender_device_id="another"), request)
        assert len(repairs._requests) == 1


def _forget_since(tx: Tx) -> None:
    for each in tx.scan(Since):
        tx.delete(Since, each.conversation_id, each.epoch)
    tx.put(replace(own_of(tx), since_noted=False))


async def test_what_somebody_said_after_they_began_anew_is_read_once_they_were_accepted(house: House) -> None:
    async with switched_on(await phones(house, ANN, BOB)) as (ann, bob):
        room = await ann.direct(bob)
        await ann.say(room, "hello")
        await bob.hears("hello")
        again = Phone(house, BOB)
        await again.sign_in()
        async with again.on() as new:
            await new.secure.keeping.start_over()
            new.secure.companies.forget()
            await new.say(room, "it is me, really")
            changed = await ann.until(lambda: [each for each in ann.noticed if isinstance(each, IdentityChanged)])
            assert changed[0].user_id == bob.user_id
            await ann.until(lambda: [each for each in ann.messages if isinstance(each.trouble, str)])
            await ann.secure.accept_identity(bob.user_id)
            await ann.hears("it is me, really")
            await ann.say(room, "welcome back")
            await new.hears("welcome back")
        assert not ann.suspicions
