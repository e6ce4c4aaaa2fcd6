"""What random histories found (`tests/sim/test_secure_histories.py`), each told as a plain story."""

import trio
from msgspec.structs import replace

from gearlink.sdk.e2ee.agreement import own_of
from gearlink.sdk.e2ee.records import Since
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.secure.told import NotLinked
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


def _forget_since(tx: Tx) -> None:
    for each in tx.scan(Since):
        tx.delete(Since, each.conversation_id, each.epoch)
    tx.put(replace(own_of(tx), since_noted=False))
