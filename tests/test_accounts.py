"""Signing up and in: who gets an account, what a code and an invite are good for, and every refusal."""

import re

import msgspec
import pytest
import trio
import trio.testing

from config import limits
from gearlink import admission
from gearlink.calls import DeviceForm, VerifyConfirm
from gearlink.clock import new_id
from gearlink.errors import Refusal
from gearlink.verification import phone_hash
from storage.notices import DeviceAdded
from storage.records import Account, Device, Invite, PhoneNumber
from storage.store import StoreFull
from tests.people import ADDRESS, ALICE, BOB, CAROL, House, refused, with_wrong_code


@pytest.fixture
def house() -> House:
    return House()


# --- signing in ------------------------------------------------------------------------------------------------------


async def test_a_new_number_gets_an_account_a_device_and_a_session(house: House) -> None:
    signed_in = await house.sign_in(ALICE)
    assert signed_in.is_new_user and signed_in.expires_in_seconds == 900
    user, device = signed_in.user, signed_in.device
    assert (user.phone_number, user.username, user.display_name, user.bio) == (ALICE, None, "", "")
    assert (device.name, device.type, device.current, device.signed_in) == ("Alice's phone", "ios", True, True)
    actor = await house.actor(signed_in)
    assert (actor.user_id, actor.device_id) == (user.id, device.id)
    assert actor.expires_at == house.clock.now() + 900_000
    assert house.store.notices == [DeviceAdded(user.id, device.id)]
    assert house.store.all(PhoneNumber) == [PhoneNumber(phone_hash(ALICE), user.id)]


async def test_a_known_number_signs_in_to_its_account_on_another_device(house: House) -> None:
    first, second = await house.sign_in(ALICE), await house.sign_in(ALICE, DeviceForm(name="Laptop", type="desktop"))
    assert first.user == second.user and not second.is_new_user
    assert first.device.id != second.device.id
    assert await house.is_signed_in(first) and await house.is_signed_in(second)


async def test_the_first_account_of_a_fresh_server_is_its_admin_and_no_other(house: House) -> None:
    first, second = await house.sign_in(ALICE), await house.sign_in(BOB)
    assert (first.user.is_admin, second.user.is_admin) == (True, False)
    assert (await house.actor(first)).is_admin and not (await house.actor(second)).is_admin
    assert (await house.actor(await house.sign_in(ALICE))).is_admin


async def test_two_first_sign_ups_at_once_make_one_admin(house: House) -> None:
    forms = [await house.proof(number) for number in (ALICE, BOB, CAROL)]
    async with trio.open_nursery() as nursery:
        for form in forms:
            nursery.start_soon(house.accounts.confirm, form, ADDRESS)
    assert [account.is_admin for account in house.store.all(Account)].count(True) == 1


async def test_two_confirms_of_one_new_number_at_once_make_one_account(house: House) -> None:
    forms = [await house.proof(ALICE), await house.proof(ALICE)]
    async with trio.open_nursery() as nursery:
        for form in forms:
            nursery.start_soon(house.accounts.confirm, form, ADDRESS)
    assert len(house.store.all(Account)) == 1 and len(house.store.all(Device)) == 2


async def test_one_code_confirmed_twice_at_once_signs_in_once(house: House) -> None:
    form, outcomes = await house.proof(ALICE), []

    async def confirm() -> None:
        try:
            outcomes.append((await house.accounts.confirm(form, ADDRESS)).user.id)
        except Refusal as refusal:
            outcomes.append(refusal.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(confirm)
        nursery.start_soon(confirm)
    assert outcomes.count("wrong-code") == 1 and len(house.store.all(Device)) == 1


async def test_wrong_codes_are_refused_and_counted_although_a_refusal_writes_nothing(house: House) -> None:
    form = await house.proof(ALICE)
    for _ in range(limits.VERIFICATION_TRIES_MAX):
        with refused("wrong-code"):
            await house.accounts.confirm(with_wrong_code(form), ADDRESS)
    with refused("wrong-code"):
        await house.accounts.confirm(form, ADDRESS)
    assert not house.store.all(Account) and not house.store.notices


async def test_unknown_used_and_expired_verifications_are_refused_alike(house: House) -> None:
    form = await house.proof(ALICE)
    unknown = msgspec.structs.replace(form, verification_id=new_id())
    used = await house.proof(BOB)
    await house.accounts.confirm(used, ADDRESS)
    house.clock.advance(minutes=10)
    details = set()
    for bad in (form, unknown, used):
        with refused("wrong-code") as refusal:
            await house.accounts.confirm(bad, ADDRESS)
        details.add(refusal.value.detail)
    assert len(details) == 1


@pytest.mark.parametrize("registration", ["open", "invite", "closed"])
async def test_without_the_right_code_nobody_learns_whether_a_number_is_known(registration: str, house: House) -> None:
    await house.sign_in(ALICE)
    house.set(auth__registration=registration)
    traces = []
    for number in (ALICE, BOB):
        form = await house.proof(number, DeviceForm(name="x", type="web", device_id=new_id()), invite="nonsense")
        house.store.reads.clear()
        with refused("wrong-code") as refusal:
            await house.accounts.confirm(with_wrong_code(form), ADDRESS)
        traces.append((refusal.value.detail, house.store.reads.copy()))
    assert traces[0] == traces[1]


async def test_confirming_is_limited_by_address(autojump_clock: trio.testing.MockClock) -> None:
    house = House(limits__verifications_per_hour=1)
    form = await house.proof(ALICE)
    for _ in range(limits.VERIFICATION_TRIES_MAX):
        with refused("wrong-code"):
            await house.accounts.confirm(msgspec.structs.replace(form, verification_id=new_id()), ADDRESS)
    with refused("rate-limited") as refusal:
        await house.accounts.confirm(form, ADDRESS)
    assert refusal.value.retry_after_seconds
    await house.accounts.confirm(form, "192.0.2.2")


async def test_a_sign_in_that_could_not_be_stored_can_be_tried_again(house: House) -> None:
    form = await house.proof(ALICE)
    await house.tokens.ready()
    house.store.fail_next = StoreFull("the disk is full")
    with pytest.raises(StoreFull):
        await house.accounts.confirm(form, ADDRESS)
    assert (await house.accounts.confirm(form, ADDRESS)).is_new_user


@pytest.mark.parametrize("name", [" ", "\n", "bell\x07", "\x1b[31mred", "nul\x00"])
async def test_a_device_name_cannot_play_with_a_terminal(name: str, house: House) -> None:
    with refused("invalid-request") as refusal:
        await house.sign_in(ALICE, DeviceForm(name=name, type="web"))
    assert refusal.value.errors and refusal.value.errors[0]["path"] == "device.name"


# --- who may have an account -----------------------------------------------------------------------------------------


async def test_a_closed_server_takes_no_newcomer_and_lets_its_people_in(house: House) -> None:
    await house.sign_in(ALICE)
    house.set(auth__registration="closed")
    assert not (await house.sign_in(ALICE)).is_new_user
    with refused("registration-closed"):
        await house.sign_in(BOB)
    assert len(house.store.all(Account)) == 1


async def test_an_invite_admits_one_newcomer(house: House) -> None:
    house.set(auth__registration="invite")
    code = await house.accounts.create_invite()
    signed_in = await house.sign_in(ALICE, invite=code)
    assert house.store.all(Invite)[0].used_by == signed_in.user.id
    with refused("invite-required"):
        await house.sign_in(BOB, invite=code)
    assert not (await house.sign_in(ALICE)).is_new_user, "who has an account needs no invite"


async def test_people_who_have_an_account_do_not_use_up_an_invite(house: House) -> None:
    await house.sign_in(ALICE)
    house.set(auth__registration="invite")
    code = await house.accounts.create_invite()
    await house.sign_in(ALICE, invite=code)
    assert (await house.sign_in(BOB, invite=code)).is_new_user


async def test_one_invite_and_two_newcomers_at_once_admits_one(house: House) -> None:
    house.set(auth__registration="invite")
    code, outcomes = await house.accounts.create_invite(), []
    forms = [await house.proof(number, invite=code) for number in (ALICE, BOB)]

    async def confirm(form: VerifyConfirm) -> None:
        try:
            await house.accounts.confirm(form, ADDRESS)
            outcomes.append("in")
        except Refusal as refusal:
            outcomes.append(refusal.code)

    async with trio.open_nursery() as nursery:
        for form in forms:
            nursery.start_soon(confirm, form)
    assert sorted(outcomes) == ["in", "invite-required"]
    assert len(house.store.all(Account)) == len(house.store.all(PhoneNumber)) == len(house.store.all(Device)) == 1


async def test_a_newcomer_without_an_invite_may_come_again_with_the_same_code(house: House) -> None:
    house.set(auth__registration="invite")
    form = await house.proof(ALICE)
    for invite in (None, "", "WRONG-WRONG-WRONG-WRONG"):
        with refused("invite-required"):
            await house.accounts.confirm(msgspec.structs.replace(form, invite_code=invite), ADDRESS)
    invite = await house.accounts.create_invite()
    assert (await house.accounts.confirm(msgspec.structs.replace(form, invite_code=invite), ADDRESS)).is_new_user


async def test_a_refused_sign_in_leaves_the_invite_unused(house: House) -> None:
    house.set(auth__registration="invite")
    code = await house.accounts.create_invite()
    bob = await house.sign_in(BOB, invite=await house.accounts.create_invite())
    with refused("not-found"):
        await house.sign_in(ALICE, DeviceForm(name="x", type="web", device_id=bob.device.id), invite=code)
    assert sorted(bool(invite.used_by) for invite in house.store.all(Invite)) == [False, True]
    await house.sign_in(ALICE, invite=code)


async def test_an_invite_ends_with_its_days(house: House) -> None:
    house.set(auth__registration="invite")
    code = await house.accounts.create_invite(days=2)
    house.clock.advance(days=2)
    with refused("invite-required"):
        await house.sign_in(ALICE, invite=code)


async def test_an_invite_may_be_typed_as_people_type(house: House) -> None:
    house.set(auth__registration="invite")
    code = await house.accounts.create_invite()
    typed = code.lower().replace("-", " ").replace("0", "o").replace("1", "l")
    assert (await house.sign_in(ALICE, invite=typed)).is_new_user


async def test_invites_are_readable_unlike_each_other_and_stored_hashed(house: House) -> None:
    codes = {await house.accounts.create_invite("operator") for _ in range(50)}
    assert len(codes) == 50
    assert all(re.fullmatch("([0-9A-HJKMNP-TV-Z]{5}-){3}[0-9A-HJKMNP-TV-Z]{5}", code) for code in codes)
    stored = house.store.all(Invite)
    assert {invite.code_hash for invite in stored} == {admission.invite_hash(code) for code in codes}
    assert {invite.created_by for invite in stored} == {"operator"}
    assert not any(code in repr(stored) or code.replace("-", "") in repr(stored) for code in codes)
