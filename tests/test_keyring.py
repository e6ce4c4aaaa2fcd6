"""The exchange of keys: what is taken from a device, what is handed out of it, to whom and how often."""

from typing import Any

import msgspec
import pytest
import trio

from config import limits
from gearlink import prekeys
from gearlink.accounts import Actor
from gearlink.calls import ClaimForm, KeysForm, OneTimePreKeyForm, SignedPreKeyForm
from gearlink.clock import DAY, new_id
from gearlink.errors import Refusal
from gearlink.views import DeviceBundle
from storage.notices import IdentityChanged, KeysLow
from storage.records import Conversation, DeviceKeys, Membership, OneTimePreKey
from storage.store import StoreFull, Transaction
from tests.bad_keys import BAD
from tests.handsets import Handset, verify
from tests.people import ALICE, BOB, CAROL, House, refused

HOUR = 3600


@pytest.fixture
def house() -> House:
    return House(limits__key_claims_per_hour=0)


def form_of(upload: dict[str, Any]) -> KeysForm:
    """As it is, without what the door refuses by itself."""

    def signed(fields: dict[str, Any]) -> SignedPreKeyForm:
        return SignedPreKeyForm(key_id=fields["keyId"], public_key=fields["publicKey"], signature=fields["signature"])

    one_time = [OneTimePreKeyForm(key_id=one["keyId"], public_key=one["publicKey"]) for one in upload["oneTimePreKeys"]]
    return KeysForm(
        identity_key=upload["identityKey"],
        signed_pre_key=signed(upload["signedPreKey"]),
        last_resort_pre_key=signed(upload["lastResortPreKey"]),
        one_time_pre_keys=one_time,
    )


async def publish(house: House, actor: Actor, upload: dict[str, Any]) -> dict[str, Any]:
    status: dict[str, Any] = msgspec.to_builtins(await house.keyring.publish(actor, form_of(upload)))
    return status


async def status_of(house: House, actor: Actor) -> dict[str, Any]:
    status: dict[str, Any] = msgspec.to_builtins(await house.keyring.status(actor))
    return status


async def claim(house: House, actor: Actor, user_id: str) -> list[DeviceBundle]:
    return (await house.keyring.claim(actor, ClaimForm(user_id=user_id))).devices


async def claimed_id(house: House, actor: Actor, user_id: str) -> int | None:
    """The id of the one-time key that a claim of a user with one device brings; None for the last resort."""
    (bundle,) = await claim(house, actor, user_id)
    assert (bundle.one_time_pre_key is msgspec.UNSET) != (bundle.last_resort_pre_key is msgspec.UNSET)
    return bundle.one_time_pre_key.key_id if bundle.one_time_pre_key else None


async def ann_and_bob(house: House, one_time: int) -> tuple[Actor, Actor, Handset]:
    """Ann with so many one-time keys, Bob with none at all, and Ann's handset."""
    ann, bob, handset = await house.newcomer(ALICE), await house.newcomer(BOB), Handset()
    await publish(house, ann, handset.upload(one_time))
    return ann, bob, handset


# --- publishing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", BAD)
async def test_an_unsound_upload_is_refused_for_what_is_wrong_and_nothing_of_it_is_stored(
    house: House, why: str
) -> None:
    ann = await house.newcomer(ALICE)
    path, upload = BAD[why]
    with refused("invalid-request") as refusal:
        await publish(house, ann, upload)
    assert refusal.value.errors is not None
    assert [each["path"] for each in refusal.value.errors] == [path]
    assert house.store.all(DeviceKeys) == [] and house.store.all(OneTimePreKey) == []
    handset = Handset()
    await publish(house, ann, handset.upload(3))
    with refused("invalid-request"):
        await publish(house, ann, upload)
    assert await status_of(house, ann) == handset.status(3)


async def test_the_digest_is_what_the_device_computes_of_its_own(house: House) -> None:
    ann = await house.newcomer(ALICE)
    handset = Handset()
    assert await status_of(house, ann) == {"oneTimeRemaining": 0, "digest": None}
    assert await publish(house, ann, handset.upload()) == handset.status(0) == await status_of(house, ann)
    assert await publish(house, ann, handset.upload(5)) == handset.status(5) == await status_of(house, ann)
    handset.rotate()
    assert await status_of(house, ann) != handset.status(5)
    assert await publish(house, ann, handset.upload(2)) == handset.status(7) == await status_of(house, ann)


async def test_the_same_upload_again_changes_nothing_and_brings_nothing_back(house: House) -> None:
    ann, bob, handset = await ann_and_bob(house, 0)
    upload = handset.upload(4)
    await publish(house, ann, upload)
    before = house.store.all(DeviceKeys), house.store.all(OneTimePreKey)
    house.clock.advance(seconds=5)
    assert await publish(house, ann, upload) == handset.status(4)
    assert (house.store.all(DeviceKeys), house.store.all(OneTimePreKey)) == before
    handed_out = await claimed_id(house, bob, ann.user_id)
    assert await publish(house, ann, upload) == handset.status(3)
    assert handed_out not in [each.key_id for each in house.store.all(OneTimePreKey)]
    for _ in range(3):
        await claim(house, bob, ann.user_id)
    for _ in range(2):  # also when nothing is left to compare with
        assert await publish(house, ann, upload) == handset.status(0)


async def test_an_id_that_was_used_never_names_another_key(house: House) -> None:
    ann, bob, handset = await ann_and_bob(house, 3)
    handed_out = await claimed_id(house, bob, ann.user_id)
    assert handed_out is not None
    other = Handset("other keys of the same device")
    other.identity, other.identity_key = handset.identity, handset.identity_key
    other.rotate()
    clash = other.upload(3)
    for form, key_id in zip(clash["oneTimePreKeys"], range(handed_out, handed_out + 3), strict=True):
        form["keyId"] = key_id
    clash |= {"signedPreKey": handset.signed, "lastResortPreKey": handset.last_resort}
    with refused("invalid-request") as refusal:
        await publish(house, ann, clash)
    assert refusal.value.errors and refusal.value.errors[0]["path"] == "oneTimePreKeys[1].keyId"
    clash["oneTimePreKeys"] = clash["oneTimePreKeys"][:1]  # the one that was handed out: as if it were said again
    assert await publish(house, ann, clash) == handset.status(2)


async def test_ids_are_of_their_kind_so_each_may_begin_at_1(house: House) -> None:
    ann, bob, handset = await ann_and_bob(house, 0)
    other = Handset("counts each kind")
    other.identity, other.identity_key = handset.identity, handset.identity_key
    other.rotate()
    form = other.upload(2)
    for name in ("signedPreKey", "lastResortPreKey"):
        form[name]["keyId"] = 1
    for number, each in enumerate(form["oneTimePreKeys"], 1):
        each["keyId"] = number
    assert (await publish(house, ann, form))["oneTimeRemaining"] == 2
    (bundle,) = await claim(house, bob, ann.user_id)
    assert (bundle.signed_pre_key.key_id, bundle.one_time_pre_key.key_id) == (1, 1)  # type: ignore[union-attr]


async def test_an_identity_key_that_was_replaced_does_not_come_back(house: House) -> None:
    ann, bob, handset = await ann_and_bob(house, 2)
    upload = {**handset.upload(), "oneTimePreKeys": handset.uploaded}
    assert await claimed_id(house, bob, ann.user_id) is not None
    await publish(house, ann, Handset("another").upload(1))
    with refused("invalid-request") as refusal:  # or its one-time keys could be handed out a second time
        await publish(house, ann, upload)
    assert refusal.value.errors and refusal.value.errors[0]["path"] == "identityKey"


async def test_a_one_time_key_cannot_come_again_under_another_id(house: House) -> None:
    ann, _bob, handset = await ann_and_bob(house, 2)
    again = handset.upload(1)
    again["oneTimePreKeys"][0]["publicKey"] = handset.uploaded[0]["publicKey"]
    with refused("invalid-request") as refusal:
        await publish(house, ann, again)
    assert refusal.value.errors and refusal.value.errors[0]["path"] == "oneTimePreKeys[0].publicKey"


async def test_a_device_keeps_a_bounded_number_of_one_time_keys(house: House) -> None:
    ann, bob, handset = await ann_and_bob(house, limits.ONE_TIME_KEYS_MAX)
    with refused("too-many"):
        await publish(house, ann, Handset().upload() | {"oneTimePreKeys": handset.upload(1)["oneTimePreKeys"]})
    handset.uploaded.pop()
    assert await status_of(house, ann) == handset.status(limits.ONE_TIME_KEYS_MAX)
    await claim(house, bob, ann.user_id)
    assert await publish(house, ann, handset.upload(1)) == handset.status(limits.ONE_TIME_KEYS_MAX)


async def test_a_device_may_upload_so_often_in_an_hour(house: House, autojump_clock: object) -> None:
    ann, _bob, handset = await ann_and_bob(house, 0)
    for _ in range(limits.KEY_UPLOADS_PER_HOUR - 1):
        await publish(house, ann, handset.upload())
    with refused("rate-limited"):
        await publish(house, ann, handset.upload())
    await trio.sleep(HOUR / limits.KEY_UPLOADS_PER_HOUR + 1)
    await publish(house, ann, handset.upload())


async def test_a_full_disk_takes_no_keys_and_hands_none_out(house: House) -> None:
    ann, bob, handset = await ann_and_bob(house, 3)
    house.store.fail_next = StoreFull("no room")
    with pytest.raises(StoreFull):
        await claim(house, bob, ann.user_id)
    house.store.fail_next = StoreFull("no room")
    with pytest.raises(StoreFull):
        await publish(house, ann, Handset("another").upload(9))
    assert await status_of(house, ann) == handset.status(3)
    assert await claimed_id(house, bob, ann.user_id) == handset.uploaded[0]["keyId"]


async def test_a_device_that_was_removed_while_it_uploads_leaves_no_keys(house: House) -> None:
    ann = await house.newcomer(ALICE)
    await house.accounts.remove_device(ann, ann.device_id)
    with refused("not-authenticated"):
        await publish(house, ann, Handset().upload(3))
    assert house.store.all(DeviceKeys) == []


# --- another identity ------------------------------------------------------------------------------------------------


async def test_under_another_identity_key_all_begins_anew_and_others_see_since_when(house: House) -> None:
    ann, bob, first = await ann_and_bob(house, 5)
    await claim(house, bob, ann.user_id)
    (shown,) = (await house.keyring.devices(bob, ann.user_id)).devices
    assert (shown.identity_key, shown.identity_changed_at) == (first.identity_key, msgspec.UNSET)
    house.clock.advance(seconds=60)
    second, mark = Handset("a fresh phone with the same id"), len(house.store.notices)
    assert await publish(house, ann, second.upload(2)) == second.status(2)
    assert house.notices_since(mark) == [IdentityChanged(ann.user_id, ann.device_id, ())]
    (shown,) = (await house.keyring.devices(bob, ann.user_id)).devices
    assert (shown.identity_key, shown.identity_changed_at) == (second.identity_key, "2026-01-01T00:01:00.000Z")
    assert await claimed_id(house, bob, ann.user_id) == second.uploaded[0]["keyId"]
    house.clock.advance(seconds=60)
    await publish(house, ann, second.upload(1))
    assert (await house.keyring.devices(bob, ann.user_id)).devices == [shown]
    assert len(house.notices_since(mark)) == 1


async def test_another_identity_is_told_in_conversations_that_are_small_enough_and_alive(house: House) -> None:
    ann, _bob, _first = await ann_and_bob(house, 0)
    small, large, blocked, gone = sorted(new_id() for _ in range(4))

    async def change(tx: Transaction) -> None:
        for room, members, is_blocked in (
            (small, limits.IDENTITY_TOLD_MEMBERS_MAX, False),
            (large, limits.IDENTITY_TOLD_MEMBERS_MAX + 1, False),
            (blocked, 2, True),
        ):
            tx.put(Conversation(room, "group", "e2ee", "", "", ann.user_id, 0, 0, members, 1, is_blocked=is_blocked))
        for room in (small, large, blocked, gone):
            tx.put(Membership(ann.user_id, room))

    await house.store.write(change)
    mark = len(house.store.notices)
    await publish(house, ann, Handset("another").upload())
    assert house.notices_since(mark) == [IdentityChanged(ann.user_id, ann.device_id, (small,))]


async def test_a_user_may_change_identities_so_often_in_a_day(house: House, autojump_clock: object) -> None:
    ann, _bob, _first = await ann_and_bob(house, 0)
    for number in range(limits.IDENTITY_CHANGES_PER_DAY):
        await publish(house, ann, Handset(f"number {number}").upload())
    with refused("rate-limited"):
        await publish(house, ann, Handset("one more").upload())
    await trio.sleep(DAY / 1000 / limits.IDENTITY_CHANGES_PER_DAY + 1)
    await publish(house, ann, Handset("one more").upload())


# --- claiming --------------------------------------------------------------------------------------------------------


async def test_a_claim_brings_for_each_signed_in_device_what_opens_a_session(house: House) -> None:
    ann, bob, phone = await ann_and_bob(house, 1)
    laptop, tablet, keyless = [await house.actor(await house.sign_in(ALICE)) for _ in range(3)]
    for actor, handset in ((laptop, Handset("laptop")), (tablet, Handset("tablet"))):
        await publish(house, actor, handset.upload(2))
    await house.accounts.logout(tablet)
    bundles = {bundle.device_id: bundle for bundle in await claim(house, bob, ann.user_id)}
    assert set(bundles) == {ann.device_id, laptop.device_id}
    for bundle in bundles.values():
        verify(msgspec.to_builtins(bundle))
    mine = bundles[ann.device_id]
    assert msgspec.to_builtins(mine) == {
        "deviceId": ann.device_id,
        "identityKey": phone.identity_key,
        "signedPreKey": phone.signed,
        "oneTimePreKey": phone.uploaded[0],
    }
    (again,) = [each for each in await claim(house, bob, ann.user_id) if each.device_id == ann.device_id]
    assert msgspec.to_builtins(again.last_resort_pre_key) == phone.last_resort
    shown = (await house.keyring.devices(bob, ann.user_id)).devices
    assert [each.device_id for each in shown] == sorted(bundles)
    assert keyless.device_id not in bundles


async def test_who_claims_their_own_keys_gets_those_of_their_other_devices(house: House) -> None:
    ann, _bob, _phone = await ann_and_bob(house, 3)
    laptop = await house.actor(await house.sign_in(ALICE))
    await publish(house, laptop, Handset("laptop").upload(3))
    assert [bundle.device_id for bundle in await claim(house, ann, ann.user_id)] == [laptop.device_id]
    assert [bundle.device_id for bundle in await claim(house, laptop, ann.user_id)] == [ann.device_id]
    shown = (await house.keyring.devices(ann, ann.user_id)).devices
    assert {each.device_id for each in shown} == {ann.device_id, laptop.device_id}


async def test_somebody_without_keys_is_there_and_has_none(house: House) -> None:
    ann, bob, _phone = await ann_and_bob(house, 1)
    assert await claim(house, ann, bob.user_id) == []
    assert (await house.keyring.devices(ann, bob.user_id)).devices == []


async def test_a_hundred_claims_at_once_hand_out_each_key_once_and_the_oldest_first(house: House) -> None:
    ann, bob, phone = await ann_and_bob(house, 60)
    got: list[int | None] = []

    async def one_claim() -> None:
        got.append(await claimed_id(house, bob, ann.user_id))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(one_claim)
    assert got == [each["keyId"] for each in phone.uploaded] + [None] * 40
    assert await status_of(house, ann) == phone.status(0)
    assert house.store.all(OneTimePreKey) == []
    (keys,) = house.store.all(DeviceKeys)
    assert keys.handed_out_key_id == phone.last_id  # where the next claim begins to look


async def test_an_upload_amid_claims_is_handed_out_after_what_was_there_before(house: House) -> None:
    ann, bob, phone = await ann_and_bob(house, 2)
    got = [await claimed_id(house, bob, ann.user_id)]
    assert await publish(house, ann, phone.upload(2)) == phone.status(3)
    got += [await claimed_id(house, bob, ann.user_id) for _ in range(4)]
    assert got == [*(each["keyId"] for each in phone.uploaded), None]


async def test_the_owner_is_told_when_keys_run_low_and_when_there_are_none(house: House) -> None:
    ann, bob, _phone = await ann_and_bob(house, limits.ONE_TIME_KEYS_LOW + 1)
    mark = len(house.store.notices)
    assert await house.keyring.low(ann) is None
    for _ in range(limits.ONE_TIME_KEYS_LOW + 5):
        await claim(house, bob, ann.user_id)
    told_of = [limits.ONE_TIME_KEYS_LOW - 1, 0]
    assert house.notices_since(mark) == [KeysLow(ann.user_id, ann.device_id, left) for left in told_of]
    assert await house.keyring.low(ann) == 0
    assert await house.keyring.low(bob) is None  # never had any, so none is missing


@pytest.mark.parametrize("who", ["blocker", "blocked", "suspended", "deleted", "nobody"])
async def test_who_is_not_there_for_the_caller_has_neither_keys_nor_devices(house: House, who: str) -> None:
    ann, bob, _phone = await ann_and_bob(house, 3)
    await publish(house, bob, Handset("bob").upload(3))
    user_id = new_id() if who == "nobody" else ann.user_id
    if who == "blocker":
        await house.people.block(ann, bob.user_id)
    elif who == "blocked":
        await house.people.block(bob, ann.user_id)
    elif who == "suspended":
        await house.standing.suspend(ALICE)
    elif who == "deleted":
        await house.standing.delete(ALICE)
    for attempt in (claim(house, bob, user_id), house.keyring.devices(bob, user_id)):
        with refused("not-found"):
            await attempt
    assert len(house.store.all(OneTimePreKey)) == 6


# --- the budget ------------------------------------------------------------------------------------------------------


async def claims_allowed(house: House, actor: Actor, user_ids: list[str]) -> int:
    """How many claims go through, of these users in turn, until one is refused."""
    for done in range(1000):
        try:
            await claim(house, actor, user_ids[done % len(user_ids)])
        except Refusal as refusal:
            assert refusal.code == "rate-limited"
            assert refusal.retry_after_seconds and "RateLimit-Policy" in refusal.headers
            return done
    raise AssertionError("none is ever refused")


async def test_one_caller_gets_a_share_of_one_persons_keys_and_no_more_than_a_budget_of_all(
    autojump_clock: object,
) -> None:
    house = House(limits__key_claims_per_hour=50)
    ann, bob, _phone = await ann_and_bob(house, 100)
    assert await claims_allowed(house, bob, [ann.user_id]) == limits.KEY_CLAIMS_OF_ONE_MIN
    carol = await house.newcomer(CAROL)
    assert await claims_allowed(house, carol, [ann.user_id]) == limits.KEY_CLAIMS_OF_ONE_MIN
    others = [(await house.newcomer(f"+155512400{number:02}")).user_id for number in range(20)]
    assert await claims_allowed(house, bob, others) == 10  # nobody there has keys: asking costs as well
    remaining = (await status_of(house, ann))["oneTimeRemaining"]
    assert remaining == 20
    await trio.sleep(HOUR)
    assert await claims_allowed(house, bob, [ann.user_id]) == 40  # of which 20 showed the last-resort key


async def test_of_a_large_budget_one_person_gets_a_twenty_fifth_and_of_a_small_one_all() -> None:
    house = House(limits__key_claims_per_hour=2000)
    ann, bob, _phone = await ann_and_bob(house, 100)
    assert await claims_allowed(house, bob, [ann.user_id]) == 2000 / limits.KEY_CLAIM_TARGETS_MIN
    house = House(limits__key_claims_per_hour=3)
    ann, bob, _phone = await ann_and_bob(house, 100)
    assert await claims_allowed(house, bob, [ann.user_id]) == 3


async def test_each_key_counts_and_a_claim_that_is_refused_uses_up_none() -> None:
    house = House(limits__key_claims_per_hour=100)
    ann, bob, _phone = await ann_and_bob(house, 50)
    for name in ("laptop", "tablet"):
        await publish(house, await house.actor(await house.sign_in(ALICE)), Handset(name).upload(50))
    assert await claims_allowed(house, bob, [ann.user_id]) == 13  # 3 keys each out of 40
    assert len(house.store.all(OneTimePreKey)) == 150 - 39


async def test_without_a_limit_there_is_no_budget_and_a_reload_brings_one(house: House) -> None:
    ann, bob, _phone = await ann_and_bob(house, 1)
    for _ in range(300):
        await claim(house, bob, ann.user_id)
    house.set(limits__key_claims_per_hour=5)
    assert await claims_allowed(house, bob, [ann.user_id]) == 5


# --- what becomes of them --------------------------------------------------------------------------------------------


async def test_after_a_restore_one_time_keys_are_void_until_the_device_uploads_others(house: House) -> None:
    ann, bob, phone = await ann_and_bob(house, 30)
    await claim(house, bob, ann.user_id)
    house.store.epoch = new_id()
    assert await status_of(house, ann) == phone.status(0)
    assert await house.keyring.low(ann) == 0
    assert await claimed_id(house, bob, ann.user_id) is None
    again = phone.upload() | {"oneTimePreKeys": phone.uploaded}
    assert await publish(house, ann, again) == phone.status(0), "none of them may be handed out again"
    assert house.store.all(OneTimePreKey) == []
    assert await publish(house, ann, phone.upload(4)) == phone.status(4)
    assert await claimed_id(house, bob, ann.user_id) == phone.uploaded[-4]["keyId"]


async def test_the_keys_of_a_removed_device_are_gone(house: House) -> None:
    ann, bob, _phone = await ann_and_bob(house, 3)
    laptop = await house.actor(await house.sign_in(ALICE))
    await publish(house, laptop, Handset("laptop").upload(2))
    await house.accounts.remove_device(laptop, ann.device_id)
    assert {each.device_id for each in house.store.all(DeviceKeys)} == {laptop.device_id}
    assert {each.device_id for each in house.store.all(OneTimePreKey)} == {laptop.device_id}
    assert [bundle.device_id for bundle in await claim(house, bob, ann.user_id)] == [laptop.device_id]


async def test_the_keys_of_an_erased_account_are_gone(house: House) -> None:
    ann, bob, _phone = await ann_and_bob(house, 3)
    await publish(house, await house.actor(await house.sign_in(ALICE)), Handset("laptop").upload(2))
    await publish(house, bob, Handset("bob").upload(1))
    await house.standing.delete(ALICE)
    assert len(house.store.all(OneTimePreKey)) == 6  # it may still be taken back
    house.clock.advance(days=limits.ACCOUNT_ERASURE_DAYS + 1)
    await house.standing.erase(ann.user_id)
    assert {each.user_id for each in house.store.all(DeviceKeys)} == {bob.user_id}
    assert {each.user_id for each in house.store.all(OneTimePreKey)} == {bob.user_id}


async def test_a_status_is_never_a_mixture_of_before_and_after_an_upload(house: House) -> None:
    ann, _bob, phone = await ann_and_bob(house, 0)
    uploaded, seen = [phone.status(0)], []

    async def look() -> None:
        for _ in range(60):
            seen.append(await status_of(house, ann))

    async def renew() -> None:
        for _ in range(30):
            phone.rotate()
            uploaded.append(await publish(house, ann, phone.upload(1)))
            for _ in range(4):  # in which a status can be read whole
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        nursery.start_soon(renew)
    assert len({status["digest"] for status in seen}) > 1
    assert [status for status in seen if status not in uploaded] == []


async def test_others_get_their_turn_while_the_largest_upload_is_looked_at() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    form = form_of(Handset().upload(limits.ONE_TIME_KEYS_MAX))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await prekeys.checked(form)
        nursery.cancel_scope.cancel()
    assert turns >= 2
