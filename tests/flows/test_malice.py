"""What an operator who lies about devices, people and groups tries, and what comes of it: the table in docs/encryption.md.

What they do to letters is in `test_malice_letters.py`. In each story the operator tries to read with their own keys what the
victims said; people are shown what the table says; and where it says so they go on talking.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec.structs import replace

from gearlink import protocol
from gearlink.clock import new_id
from gearlink.sdk.e2ee import rosters
from gearlink.sdk.e2ee.agreement import identity_of
from gearlink.sdk.e2ee.certificates import account_public
from gearlink.sdk.e2ee.encoding import from_base64url, to_base64url
from gearlink.sdk.e2ee.records import OwnSenderKey, RosterState, Session
from gearlink.sdk.e2ee.rosters import Change
from gearlink.sdk.secure.told import IdentityChanged
from storage.records import DeviceKeys, OneTimePreKey, RosterStatement, SignedPreKey
from storage.store import Transaction
from tests.house import House
from tests.malice import Attacker, Operator, Victim, as_attacker, suspects, suspicious, talk, victims
from tests.messengers import Messenger, refusal, switched_on

ANN, BOB, CID, DAN = "+15551230001", "+15551230002", "+15551230003", "+15551230004"
DEVICES, CLAIM, ROSTER = "GET /conversations/.*/devices", "POST /keys/claim", "GET /conversations/.*/roster"


def changes_of(messenger: Messenger) -> list[tuple[str, bool]]:
    """Whose identity changed, as it was told, and whether they had been verified."""
    return [(each.user_id, each.was_verified) for each in messenger.noticed if isinstance(each, IdentityChanged)]


async def is_forged(operator: Operator, group: str, version: int, signed: tuple[str, bytes], *told: Messenger) -> None:
    """Puts a statement into the roster that no rule was asked about, and waits until these have heard of it."""
    await operator.forge_roster(group, version, *signed)
    for each in told:
        await each.until(
            lambda each=each: [e for e in each.heard if isinstance(e, protocol.RosterChanged) and e.version >= version]
        )


def lists(attacker: Attacker, *, instead: bool = False, certified: bool = False) -> Callable[[Any], Any]:
    """The lie that the attacker's device is one of the conversation's; `instead` of the real one of this id."""

    def lie(answer: Any) -> Any:
        devices = [each for each in answer["devices"] if not instead or each["deviceId"] != attacker.device_id]
        return {**answer, "devices": [*devices, attacker.listed(certified=certified)]}

    return lie


def owns(attacker: Attacker) -> Callable[[Any], Any]:
    """The lie that the user's account key is the attacker's, whose device is the only one."""

    def lie(answer: Any) -> Any:
        devices = [each for each in answer["devices"] if each["userId"] != attacker.user_id]
        keys = {**answer["accountKeys"], attacker.user_id: attacker.account_key}
        return {**answer, "devices": [*devices, attacker.listed(certified=True)], "accountKeys": keys}

    return lie


def hands_out(attacker: Attacker) -> Callable[[Any], Any]:
    return lambda answer: {"devices": [attacker.bundle()], "accountKey": attacker.account_key}


@contextmanager
def nothing_for(attacker: Attacker, *spied: Victim) -> Iterator[None]:
    """Whatever these victims say in the block, the attacker opens nothing of it."""
    yield
    for victim in spied:
        assert any("encrypted" in each for each in victim.line.said)
        assert attacker.opens(victim) == []


# --- devices and account keys ----------------------------------------------------------------------------------------


async def test_a_swapped_identity_key_is_a_ghost_device_and_its_owner_mends_it(house: House) -> None:
    operator, (anns, bobs) = Operator(house), await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        await talk(room, ann, bob)
        mallory = Attacker(bob.user_id, bob.device_id)

        async def swap(tx: Transaction) -> None:
            keys, theirs = await tx.get(DeviceKeys, bob.user_id, bob.device_id), mallory.keys
            assert keys is not None
            signed, last = (
                SignedPreKey(each.key_id, from_base64url(each.public_key), from_base64url(each.signature))
                for each in (theirs.signed_pre_key, theirs.last_resort_pre_key)
            )
            tx.put(replace(keys, identity_key=from_base64url(mallory.identity_key), signed_pre_key=signed,
                             last_resort_pre_key=last, certificate=mallory.own.certificate))  # fmt: skip
            for each in await tx.scan(OneTimePreKey, bob.user_id, bob.device_id, limit=1000):
                fake = theirs.one_time_pre_keys[each.key_id % len(theirs.one_time_pre_keys)]
                tx.put(replace(each, public_key=from_base64url(fake.public_key)))

        await operator.change_devices(bob.user_id, swap)
        ann.secure.companies.forget()
        with nothing_for(mallory, anns):
            await refusal("no-devices", ann.secure.send, room, "is it you?")
        assert (await suspicious(ann, "ghost-device")).device_id == bob.device_id
        assert "is it you?" not in bob.texts
        await bob.secure.keeping.renew()  # each device looks whether the server holds what it published
        ann.secure.companies.forget()
        await talk(room, ann, bob)
        assert not changes_of(ann)


async def test_a_device_added_unseen_is_a_ghost_and_people_go_on(house: House) -> None:
    anns, bobs = await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room, group = await ann.direct(bob), await ann.group(bob)
        mallory = Attacker(bob.user_id, new_id())
        anns.line.answer(DEVICES, lists(mallory))
        anns.line.answer(CLAIM, lambda answer: {**answer, "devices": [*answer["devices"], mallory.bundle()]})
        with nothing_for(mallory, anns):
            await talk(room, ann, bob)
            await talk(group, ann, bob)
        assert {each.device_id for each in suspects(ann, "ghost-device")} == {mallory.device_id}
        assert set(ann.suspicions) == {"ghost-device"}


async def test_a_ghost_with_another_account_key_is_a_changed_identity(house: House) -> None:
    anns, bobs = await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room = await ann.direct(bob)
        await talk(room, ann, bob)
        await ann.secure.verify(bob.user_id)
        mallory = Attacker(bob.user_id, new_id())
        anns.line.answer(DEVICES, owns(mallory))
        anns.line.answer(CLAIM, hands_out(mallory))
        ann.secure.companies.forget()
        with nothing_for(mallory, anns):
            await refusal("identity-changed", ann.secure.send, room, "for bob alone")
        await ann.until(lambda: changes_of(ann))
        assert changes_of(ann) == [(bob.user_id, True)]
        assert not await ann.secure.is_verified(bob.user_id)
        assert "for bob alone" not in bob.texts
        anns.line.be_honest()
        ann.secure.companies.forget()
        await talk(room, ann, bob)
        assert await ann.secure.is_verified(bob.user_id)


async def test_only_who_accepts_a_swapped_account_key_talks_to_it(house: House) -> None:
    anns, bobs, cids = await victims(house, ANN, BOB, CID)
    async with switched_on([anns, bobs, cids]) as (ann, bob, cid):
        group = await cid.group(ann, bob)
        await talk(group, ann, bob, cid)
        mallory = Attacker(bob.user_id, new_id())
        anns.line.answer(DEVICES, owns(mallory))
        anns.line.answer(CLAIM, hands_out(mallory))
        ann.secure.companies.forget()
        with nothing_for(mallory, anns):
            await refusal("identity-changed", ann.secure.send, group, "before the notice")
        assert await ann.secure.safety_number(bob.user_id) != await bob.secure.safety_number(ann.user_id)
        await ann.secure.accept_identity(bob.user_id)
        await ann.say(group, "after a careless yes")
        assert "after a careless yes" in mallory.opens(anns)
        await cid.hears("after a careless yes")
        assert "after a careless yes" not in bob.texts


async def test_at_the_first_contact_only_safety_numbers_tell(house: House) -> None:
    anns, bobs = await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        mallory = Attacker(bob.user_id, bob.device_id)
        anns.line.answer(DEVICES, owns(mallory))
        anns.line.answer(CLAIM, hands_out(mallory))
        room = await ann.direct(bob)
        await ann.say(room, "hello, stranger")
        assert not ann.noticed  # which is why people compare
        assert mallory.opens(anns) == ["hello, stranger"]  # and this is what the attacker's tools can do
        assert "hello, stranger" not in bob.texts
        await bob.until(lambda: bob.messages)
        await bob.say(room, "who is there?")
        assert await ann.secure.safety_number(bob.user_id) != await bob.secure.safety_number(ann.user_id)
        assert await ann.secure.verify(bob.user_id, await bob.secure.safety_code(ann.user_id)) == "mismatch"
        assert not await ann.secure.is_verified(bob.user_id)
        anns.line.be_honest()
        ann.secure.companies.forget()
        await refusal("identity-changed", ann.secure.send, room, "which of you is it?")
        await ann.secure.accept_identity(bob.user_id)
        await talk(room, ann, bob)
        assert await ann.secure.safety_number(bob.user_id) == await bob.secure.safety_number(ann.user_id)
        assert await ann.secure.verify(bob.user_id, await bob.secure.safety_code(ann.user_id)) == "match"


async def test_the_roster_tells_who_was_given_another_account_key_at_first_contact(house: House) -> None:
    anns, bobs, cids = await victims(house, ANN, BOB, CID)
    async with switched_on([anns, bobs, cids]) as (ann, bob, cid):
        mallory = Attacker(bob.user_id, bob.device_id)
        anns.line.answer(DEVICES, owns(mallory))
        anns.line.answer(CLAIM, hands_out(mallory))
        await ann.say(await ann.direct(bob), "hello, stranger")
        assert mallory.opens(anns) == ["hello, stranger"]
        group = await cid.group(ann, bob)
        await refusal("identity-changed", ann.secure.send, group, "all of you")
        await ann.until(lambda: changes_of(ann))
        assert changes_of(ann) == [(bob.user_id, False)]
        assert mallory.opens(anns) == []  # what it has opened once, and nothing more


async def test_the_bundle_of_another_device_begins_no_session(house: House) -> None:
    anns, bobs, cids = await victims(house, ANN, BOB, CID)
    async with switched_on([anns, bobs, cids]) as (ann, bob, cid):
        room = await ann.direct(bob)
        mallory = Attacker(bob.user_id, bob.device_id)
        cids_bundle = (await bob.client.claim_keys(cid.user_id))[0]
        for bundle in (mallory.bundle(), {**msgspec.to_builtins(cids_bundle), "deviceId": bob.device_id}):
            anns.line.answer(CLAIM, lambda answer, bundle=bundle: {**answer, "devices": [bundle]})
            await refusal("no-devices", ann.secure.send, room, "for bob alone")
            assert not await ann.secure.device.read(lambda tx: tx.scan(Session))
            anns.line.be_honest()
        await talk(room, ann, bob)


# --- members and rosters ---------------------------------------------------------------------------------------------


async def test_a_ghost_member_gets_no_key_and_no_envelope(house: House) -> None:
    anns, bobs = await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        room, group = await ann.direct(bob), await ann.group(bob)
        mallory = Attacker(new_id(), new_id())
        anns.line.answer(DEVICES, owns(mallory))
        anns.line.answer(CLAIM, lambda answer: {**answer, "devices": [*answer["devices"], mallory.bundle()]})
        with nothing_for(mallory, anns):
            await talk(room, ann, bob)
            await talk(group, ann, bob)
        ghosts = {(each.user_id, each.conversation_id) for each in suspects(ann, "ghost-member")}
        assert ghosts == {(mallory.user_id, room), (mallory.user_id, group)}
        key = await ann.secure.device.read(lambda tx: tx.get(OwnSenderKey, group))
        assert key is not None and key.holders == ((bob.user_id, bob.device_id),)


async def test_a_member_cannot_sign_anybody_in_even_with_the_operators_help(house: House) -> None:
    operator, people = Operator(house), await victims(house, ANN, BOB, CID, DAN)
    async with switched_on(people) as (ann, bob, cid, dan):
        group = await ann.group(bob, cid)
        await talk(group, ann, bob, cid)
        state = await cid.secure.device.read(lambda tx: tx.get(RosterState, group))
        mallory = Attacker(new_id(), new_id())
        forger = as_attacker(cid)
        changes = (
            Change(mallory.user_id, "member", from_base64url(mallory.account_key)),
            Change(cid.user_id, "owner", _key(cid)),
        )
        await is_forged(operator, group, 2, forger.statement(state, group, *changes), ann, bob)
        people[0].line.answer(DEVICES, owns(mallory))
        with nothing_for(mallory, people[0]):
            await talk(group, ann, bob, cid)
        for each in (ann, bob):
            await suspicious(each, "roster-forged")
        assert (await suspicious(ann, "ghost-member")).user_id == mallory.user_id
        people[0].line.be_honest()
        await ann.secure.groups.add(group, [dan.user_id])  # the group goes on behind it
        await talk(group, ann, bob, cid, dan)
        assert not suspects(bob, "roster-rollback") and not suspects(bob, "ghost-member")


def _key(messenger: Messenger) -> bytes:
    return account_public(messenger.secure.device.own.account_seed)


async def test_a_statement_under_a_foreign_key_lets_nobody_in(house: House) -> None:
    operator, people = Operator(house), await victims(house, ANN, BOB)
    async with switched_on(people) as (ann, bob):
        group = await ann.group(bob)
        await talk(group, ann, bob)
        state = await ann.secure.device.read(lambda tx: tx.get(RosterState, group))
        mallory, pretender = Attacker(new_id(), new_id()), Attacker(ann.user_id, ann.device_id)
        await is_forged(
            operator, group, 2, pretender.statement(state, group, Change(mallory.user_id, "member")), ann, bob
        )
        people[1].line.answer(DEVICES, owns(mallory))
        with nothing_for(mallory, people[1]):
            await talk(group, bob, ann)
        await suspicious(bob, "roster-forged")
        assert (await suspicious(bob, "ghost-member")).user_id == mallory.user_id


async def test_a_statement_with_a_broken_signature_is_forged(house: House) -> None:
    operator, people = Operator(house), await victims(house, ANN, BOB)
    async with switched_on(people) as (ann, bob):
        group = await ann.group(bob)
        await talk(group, ann, bob)
        first = await operator.store.get(RosterStatement, group, 1)
        assert first is not None
        text = first.statement.replace(bob.user_id, new_id()).replace('"version":1', '"version":2')
        await is_forged(operator, group, 2, (text, first.signature), ann, bob)
        await talk(group, ann, bob)
        await suspicious(ann, "roster-forged")
        await suspicious(bob, "roster-forged")


async def test_who_was_signed_out_is_not_brought_back_by_cutting_the_roster(house: House) -> None:
    operator, people = Operator(house), await victims(house, ANN, BOB, CID)
    async with switched_on(people) as (ann, bob, cid):
        group = await ann.group(bob, cid)
        await talk(group, ann, bob, cid)
        await ann.secure.groups.remove(group, cid.user_id)
        await talk(group, ann, bob)

        async def cut(tx: Transaction) -> None:
            tx.delete(RosterStatement, group, 2)

        people[0].line.answer(DEVICES, _with_member(cid))
        await operator.store.write(cut)
        ann.secure.companies.forget()
        await talk(group, ann, bob)
        assert (await suspicious(ann, "ghost-member")).user_id == cid.user_id
        assert await operator.store.get(RosterStatement, group, 2) is not None  # it was given back
        attacker = as_attacker(cid)
        attacker.vault, attacker.cipher = people[2].vault, cid.secure.device.cipher  # type: ignore[assignment]
        assert not [text for text in attacker.opens(people[0]) if text.startswith("still")]


def _with_member(ghost: Messenger) -> Callable[[Any], Any]:
    own = ghost.secure.device.own
    listed = {"userId": own.user_id, "deviceId": own.device_id, "identityKey": _identity(ghost),
              "certificate": to_base64url(own.certificate)}  # fmt: skip

    def lie(answer: Any) -> Any:
        keys = {**answer["accountKeys"], own.user_id: to_base64url(_key(ghost))}
        return {**answer, "devices": [*answer["devices"], listed], "accountKeys": keys}

    return lie


def _identity(messenger: Messenger) -> str:
    return to_base64url(identity_of(messenger.secure.device.own))


async def test_an_older_roster_than_was_seen_before_is_a_rollback(house: House) -> None:
    anns, bobs, cids = await victims(house, ANN, BOB, CID)
    async with switched_on([anns, bobs, cids]) as (ann, bob, cid):
        group = await ann.group(bob, cid)
        await ann.secure.groups.remove(group, cid.user_id)
        await talk(group, ann, bob)
        anns.line.answer(ROSTER, _up_to(1))
        anns.line.answer(DEVICES, _with_member(cid))
        ann.secure.companies.forget()
        await talk(group, ann, bob)
        await suspicious(ann, "roster-rollback")
        assert (await suspicious(ann, "ghost-member")).user_id == cid.user_id


async def test_a_letter_that_names_a_newer_roster_shows_a_rollback(house: House) -> None:
    anns, bobs, cids = await victims(house, ANN, BOB, CID)
    async with switched_on([anns, bobs, cids]) as (ann, bob, cid):
        group = await ann.group(bob, cid)
        await talk(group, ann, bob, cid)
        bobs.line.answer(ROSTER, _up_to(1))
        await ann.secure.groups.remove(group, cid.user_id)
        await ann.say(group, "without cid")
        await bob.hears("without cid")
        assert (await suspicious(bob, "roster-rollback")).user_id == ann.user_id


def _up_to(version: int) -> Callable[[Any], Any]:
    return lambda page: {**page, "items": [each for each in page["items"] if each["version"] <= version]}


async def test_a_made_up_roster_is_a_fork_once_a_real_letter_comes(house: House) -> None:
    anns, bobs, cids = await victims(house, ANN, BOB, CID)
    async with switched_on([anns, bobs, cids]) as (ann, bob, cid):
        group = await ann.group(bob)
        mallory = Attacker(new_id(), new_id())
        founder = Change(mallory.user_id, "owner", from_base64url(mallory.account_key))
        first = mallory.statement(
            None, group, founder, *(Change(each.user_id, "member", _key(each)) for each in (ann, cid))
        )
        state = rosters.follow(None, group, mallory.user_id, *first)
        second = mallory.statement(state, group, Change(bob.user_id, "member", _key(bob)))
        made_up = [
            {"version": version, "statement": statement, "signature": to_base64url(signature)}
            for version, (statement, signature) in enumerate((first, second), start=1)
        ]
        cids.line.answer(ROSTER, lambda page: {"items": made_up if page["items"] else [], "next": None})
        cids.line.answer("GET /conversations/[^/]*", lambda view: {**view, "createdBy": mallory.user_id})
        cids.line.tell(_made_by(mallory.user_id))
        await ann.secure.groups.add(group, [cid.user_id])
        await ann.say(group, "welcome")
        await cid.hears("welcome")
        assert (await suspicious(cid, "roster-fork")).conversation_id == group


def _made_by(user_id: str) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    def lie(frame: dict[str, Any]) -> list[dict[str, Any]]:
        if frame["type"] == "conversation:created":
            frame = {**frame, "conversation": {**frame["conversation"], "createdBy": user_id}}
        return [frame]

    return lie


# --- pre-keys and digests --------------------------------------------------------------------------------------------


async def test_a_false_digest_of_the_devices_stops_letters_and_opens_none(house: House) -> None:
    anns, bobs = await victims(house, ANN, BOB)
    async with switched_on([anns, bobs]) as (ann, bob):
        group = await ann.group(bob)
        anns.line.answer(DEVICES, lambda answer: {**answer, "digest": to_base64url(bytes(32))})
        await refusal("stale-devices", ann.secure.send, group, "hello")
        anns.line.be_honest()
        ann.secure.companies.forget()
        await talk(group, ann, bob)
        assert not ann.noticed and not bob.noticed


async def test_without_one_time_keys_people_talk_and_the_owner_brings_new_ones(house: House) -> None:
    operator, people = Operator(house), await victims(house, ANN, BOB)
    async with switched_on(people) as (ann, bob):

        async def drop(tx: Transaction) -> None:
            for each in await tx.scan(OneTimePreKey, bob.user_id, bob.device_id, limit=1000):
                tx.delete(OneTimePreKey, bob.user_id, bob.device_id, each.key_id)

        await operator.store.write(drop)
        room = await ann.direct(bob)
        await talk(room, ann, bob)
        assert not ann.noticed and not bob.noticed
        await bob.secure.keeping.renew()
        assert (await bob.client.key_status()).one_time_remaining > 90


async def test_a_one_time_key_that_is_handed_out_twice_opens_one_session_only(house: House) -> None:
    anns, _bobs, cids = people = await victims(house, ANN, BOB, CID)
    async with switched_on(people) as (ann, bob, cid):
        bundle = msgspec.to_builtins((await cid.client.claim_keys(bob.user_id))[0])
        for line in (anns.line, cids.line):
            line.answer(CLAIM, lambda answer: {**answer, "devices": [bundle]})
        rooms = [await ann.direct(bob), await cid.direct(bob)]
        await ann.say(rooms[0], "i was first")
        await bob.hears("i was first")
        await cid.say(rooms[1], "so was i")
        await bob.until(lambda: any(each.trouble == "unknown-pre-key" for each in bob.messages))
        assert "so was i" not in bob.texts
        for line in (anns.line, cids.line):
            line.be_honest()
        await bob.hears("so was i")  # it was asked for, on a session that bob began
        assert await bob.unreadable() == {"unknown-pre-key": 1}
        await talk(rooms[1], cid, bob)
