"""Suspended, deleted, taken back, erased: what becomes of an account, of its sessions and of what hangs on it."""

import json
from collections.abc import Iterator

import msgspec
import pytest
import trio

from config import limits
from gearlink.accounts import Actor
from gearlink.admission import ERASE_ACCOUNT
from gearlink.calls import ContactForm, PrivacyForm, ProfileForm, RefreshForm, SignedIn
from gearlink.clock import DAY, new_id
from gearlink.errors import Refusal
from gearlink.upkeep import sweep
from storage.notices import AccountEnded
from storage.records import (
    Account,
    Avatar,
    Block,
    Contact,
    Device,
    DeviceOwner,
    Draft,
    Due,
    LastSeen,
    PhoneNumber,
    Privacy,
    Scheduled,
    Username,
    UsernameHold,
)
from storage.store import StoreFull, Transaction
from tests.people import ADDRESS, ALICE, BOB, CAROL, House, LogLines, log_captured, refused, with_wrong_code
from tests.test_profiles import hashes_of


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def log() -> Iterator[LogLines]:
    with log_captured() as lines:
        yield lines


async def come_back(house: House, number: str, *, restore: bool = True) -> SignedIn:
    form = msgspec.structs.replace(await house.proof(number), restore_account=restore)
    return await house.accounts.confirm(form, ADDRESS)


async def account_of(house: House, user_id: str) -> Account:
    account = await house.store.get(Account, user_id)
    assert account is not None
    return account


# --- suspension ------------------------------------------------------------------------------------------------------


async def test_a_suspension_ends_every_session_at_once_and_keeps_everything(house: House) -> None:
    await house.newcomer(ALICE)
    phone, laptop = await house.sign_in(BOB), await house.sign_in(BOB)
    before = house.store.all(Device)
    await house.standing.suspend(BOB)
    await house.standing.suspend(BOB)
    assert house.store.notices.count(AccountEnded(phone.user.id)) == 1
    for pair in (phone, laptop):
        assert not await house.is_signed_in(pair)
        with refused("invalid-refresh-token"):
            await house.accounts.refresh(RefreshForm(refresh_token=pair.refresh_token))
    assert [device.device_id for device in house.store.all(Device)] == [device.device_id for device in before]
    assert house.audited("account-suspended") == 1 and house.audited("refresh-token-reuse") == 0


async def test_only_who_holds_the_right_code_learns_of_a_suspension_and_the_code_stays_good(house: House) -> None:
    await house.newcomer(ALICE)
    bob = await house.newcomer(BOB)
    await house.standing.suspend(bob.user_id)
    form = await house.proof(BOB)
    with refused("wrong-code"):
        await house.accounts.confirm(with_wrong_code(form), ADDRESS)
    with refused("account-suspended"):
        await house.accounts.confirm(form, ADDRESS)
    assert [user.is_suspended for user in (await house.accounts.list_users(50)).items] == [msgspec.UNSET, True]
    await house.standing.restore(bob.user_id)
    assert (await house.accounts.confirm(form, ADDRESS)).user.id == bob.user_id
    assert house.audited("suspension-lifted") == 1


async def test_who_is_suspended_is_a_name_to_others_and_is_not_found(house: House) -> None:
    alice, bob = await house.newcomer(ALICE), await house.newcomer(BOB)
    await house.profiles.change_profile(bob, ProfileForm(display_name="Bob", username="bob", bio="builder"))
    await house.standing.suspend("Bob")
    seen = await house.profiles.user(alice, bob.user_id)
    assert (seen.display_name, seen.username, seen.bio, seen.is_deleted) == ("Bob", None, "", msgspec.UNSET)
    assert (await house.profiles.by_username(alice, "bob")).items == []
    assert (await house.profiles.discover(alice, hashes_of(BOB))).items == []
    with refused("not-found"):
        await house.people.put_contact(alice, bob.user_id, ContactForm())
    await house.standing.restore("bob")
    assert (await house.profiles.user(alice, bob.user_id)).bio == "builder"


async def test_admins_suspend_others_and_never_themselves(house: House) -> None:
    alice, bob = await house.newcomer(ALICE), await house.newcomer(BOB)
    with refused("forbidden"):
        await house.standing.suspend_by(alice, alice.user_id)
    with refused("not-found"):
        await house.standing.suspend_by(alice, new_id())
    await house.standing.suspend_by(alice, bob.user_id)
    with refused("account-suspended"):
        await house.sign_in(BOB)
    for _ in range(2):
        await house.standing.lift_by(alice, bob.user_id)
    assert house.audited("suspension-lifted") == 1
    await house.sign_in(BOB)


async def test_of_two_admins_who_suspend_each_other_at_once_one_remains(house: House) -> None:
    alice = await house.newcomer(ALICE)
    pair = await house.sign_in(BOB)
    await house.accounts.promote(BOB)
    bob, outcomes = await house.actor(pair), []

    async def suspend(admin: Actor, other: Actor) -> None:
        try:
            await house.standing.suspend_by(admin, other.user_id)
            outcomes.append("suspended")
        except Refusal as refusal:
            outcomes.append(refusal.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(suspend, alice, bob)
        nursery.start_soon(suspend, bob, alice)
    assert sorted(outcomes) == ["forbidden", "suspended"]
    assert [account.is_active for account in house.store.all(Account)].count(True) == 1


# --- deletion, and the way back --------------------------------------------------------------------------------------


async def test_a_deleted_account_is_gone_for_everybody_and_its_names_stay_its_own(house: House) -> None:
    alice, pair = await house.newcomer(ALICE), await house.sign_in(BOB)
    bob = await house.actor(pair)
    await house.profiles.change_profile(bob, ProfileForm(display_name="Bob", username="bob", bio="builder"))
    await house.standing.delete_own(bob)
    assert not await house.is_signed_in(pair) and AccountEnded(bob.user_id) in house.store.notices
    seen = await house.profiles.user(alice, bob.user_id)
    assert (seen.is_deleted, seen.display_name, seen.username, seen.bio) == (True, "", None, "")
    assert (await house.profiles.by_username(alice, "bob")).items == []
    assert (await house.profiles.discover(alice, hashes_of(BOB))).items == []
    with refused("username-taken"):
        await house.profiles.change_profile(alice, ProfileForm(username="bob"))
    with refused("not-authenticated"):
        await house.standing.delete_own(bob)
    erase_at = house.clock.now() + limits.ACCOUNT_ERASURE_DAYS * DAY
    assert house.store.all(Due) == [Due(erase_at, ERASE_ACCOUNT, bob.user_id, 0)]
    assert house.audited("account-deleted") == 1


async def test_a_deletion_is_taken_back_by_a_sign_in_that_asks_for_it(house: House) -> None:
    await house.newcomer(ALICE)
    bob = await house.newcomer(BOB)
    await house.profiles.change_profile(bob, ProfileForm(display_name="Bob", username="bob"))
    await house.standing.delete_own(bob)
    house.clock.advance(days=limits.ACCOUNT_ERASURE_DAYS - 1)
    form = await house.proof(BOB)
    with refused("wrong-code"):
        await house.accounts.confirm(with_wrong_code(form), ADDRESS)
    with refused("account-deleted") as refusal:
        await house.accounts.confirm(form, ADDRESS)
    assert "2026-01-31" in refusal.value.detail, "until when"
    back = await house.accounts.confirm(msgspec.structs.replace(form, restore_account=True), ADDRESS)
    assert (back.user.id, back.user.username, back.user.display_name) == (bob.user_id, "bob", "Bob")
    assert back.user.is_deleted is msgspec.UNSET and not back.is_new_user
    assert house.store.all(Due) == [] and house.audited("account-restored") == 1
    house.clock.advance(days=limits.ACCOUNT_ERASURE_DAYS)
    await house.standing.erase(bob.user_id)
    assert (await account_of(house, bob.user_id)).username == "bob"


async def test_a_deletion_is_not_taken_back_by_who_is_suspended_or_comes_too_late(house: House) -> None:
    await house.newcomer(ALICE)
    await house.newcomer(BOB)
    await house.standing.delete(BOB)
    await house.standing.suspend(BOB)
    with refused("account-suspended"):
        await come_back(house, BOB)
    await house.standing.restore(BOB)
    assert (house.audited("suspension-lifted"), house.audited("account-restored")) == (1, 1)
    await house.sign_in(BOB)
    for _ in range(2):
        await house.standing.delete(BOB)
    house.clock.advance(days=limits.ACCOUNT_ERASURE_DAYS)
    with refused("account-deleted"):
        await come_back(house, BOB)
    with refused("too-late"):
        await house.standing.restore(BOB)


async def test_the_last_admin_cannot_go_while_anybody_else_is_there(house: House) -> None:
    alice, pair, carol = await house.newcomer(ALICE), await house.sign_in(BOB), await house.newcomer(CAROL)
    with refused("last-owner"):
        await house.standing.delete_own(alice)
    await house.accounts.promote(BOB)
    await house.standing.suspend(BOB)
    with refused("last-owner"):
        await house.standing.delete_own(alice)
    await house.standing.restore(BOB)
    await house.standing.delete_own(alice)
    bob = await house.actor(await house.sign_in(BOB))
    assert bob.is_admin and pair.user.id == bob.user_id
    with refused("last-owner"):
        await house.standing.delete_own(bob)
    await house.standing.delete_own(carol)
    await house.standing.delete_own(bob)  # nobody is left who would need an admin


async def test_of_two_last_admins_who_go_at_once_one_remains(house: House) -> None:
    alice = await house.newcomer(ALICE)
    await house.newcomer(CAROL)
    pair = await house.sign_in(BOB)
    await house.accounts.promote(BOB)
    bob, outcomes = await house.actor(pair), []

    async def leave(actor: Actor) -> None:
        try:
            await house.standing.delete_own(actor)
            outcomes.append("gone")
        except Refusal as refusal:
            outcomes.append(refusal.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave, alice)
        nursery.start_soon(leave, bob)
    assert sorted(outcomes) == ["gone", "last-owner"]


# --- erasure ---------------------------------------------------------------------------------------------------------


async def somebody_with_everything(house: House) -> str:
    """A user of whom there is a row in every table that knows users, deleted just now."""
    alice, bob = await house.newcomer(ALICE), await house.newcomer(BOB)
    await house.sign_in(BOB)
    await house.profiles.change_profile(bob, ProfileForm(display_name="Bob", username="bob"))
    await house.people.put_contact(bob, alice.user_id, ContactForm())
    await house.people.block(bob, alice.user_id)
    await house.people.change_privacy(bob, PrivacyForm(read_receipts=False))
    avatar_id, user_id = new_id(), bob.user_id

    async def change(tx: Transaction) -> None:
        account = await tx.get(Account, user_id)
        assert account is not None
        tx.put(msgspec.structs.replace(account, avatar_id=avatar_id))
        tx.put(Avatar(avatar_id, user_id, "image/png", b"x"))
        tx.put(LastSeen(user_id, 1))
        tx.put(Draft(user_id, new_id(), None, "", 1))
        for _ in range(5):
            tx.put(Scheduled(user_id, new_id(), new_id(), bob.device_id, 1, 1, b"{}"))

    await house.store.write(change)
    await house.standing.delete_own(bob)
    return user_id


def left_of(house: House, user_id: str) -> dict[str, int]:
    """How many records of each kind still name the user, or their number."""
    kinds = (Account, Avatar, Block, Contact, Device, Draft, LastSeen, PhoneNumber, Privacy, Scheduled, Username)
    counts = {kind.__name__: sum(user_id in repr(each) for each in house.store.all(kind)) for kind in kinds}
    return {name: count for name, count in counts.items() if count}


async def test_after_its_time_nothing_of_an_account_is_left_and_its_number_can_begin_anew(house: House) -> None:
    user_id = await somebody_with_everything(house)
    await house.standing.erase(user_id)
    assert len(left_of(house, user_id)) == 11, "before its time nothing is erased"
    house.clock.advance(days=limits.ACCOUNT_ERASURE_DAYS)
    await house.standing.erase(user_id)
    assert left_of(house, user_id) == {}
    assert {each.user_id for each in house.store.all(DeviceOwner)} > {user_id}, "nobody else gets its device ids"
    assert house.audited("account-erased") == 1
    alice = await house.newcomer(ALICE)
    with refused("not-found"):
        await house.profiles.user(alice, user_id)
    again = await house.sign_in(BOB)
    assert again.is_new_user and again.user.id != user_id and not again.user.is_admin
    await house.profiles.change_profile(await house.actor(again), ProfileForm(username="bob"))


async def test_an_erasure_that_was_killed_anywhere_is_finished_by_the_next_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SWEEP_ROWS_PER_STEP", 2)
    user_id = await somebody_with_everything(house)
    house.clock.advance(days=limits.ACCOUNT_ERASURE_DAYS)
    write, attempts = house.store.write, 0
    while True:
        allowed = attempts

        async def killed(change: object) -> object:
            nonlocal allowed
            if not allowed:
                raise StoreFull("the process ends here")
            allowed -= 1
            return await write(change)  # type: ignore[arg-type]

        monkeypatch.setattr(house.store, "write", killed)
        try:
            await house.standing.erase(user_id)
            break
        except StoreFull:
            attempts += 1
            with refused("account-deleted" if attempts == 1 else "too-late"):
                monkeypatch.setattr(house.store, "write", write)
                await (come_back(house, BOB) if attempts == 1 else house.standing.restore(user_id))
    assert attempts > 5 and left_of(house, user_id) == {}


async def test_upkeep_forgets_a_name_that_was_held_when_its_time_is_over(house: House) -> None:
    alice = await house.newcomer(ALICE)
    for name in ("alice", "wonder"):
        await house.profiles.change_profile(alice, ProfileForm(username=name))
    for days, held in ((0, ["alice"]), (limits.USERNAME_HOLD_DAYS, [])):
        house.clock.advance(days=days)
        await sweep(house.store, house.clock)
        assert [hold.username for hold in house.store.all(UsernameHold)] == held


# --- the audit -------------------------------------------------------------------------------------------------------


async def test_the_audit_says_who_did_it(house: House, log: LogLines) -> None:
    alice = await house.newcomer(ALICE)
    bob, carol = await house.sign_in(BOB), await house.newcomer(CAROL)
    await house.accounts.create_invite()
    await house.accounts.promote(BOB)
    await house.accounts.demote(BOB)
    await house.accounts.remove_device(await house.actor(bob), bob.device.id)
    await house.standing.suspend_by(alice, bob.user.id)
    await house.standing.lift_by(alice, bob.user.id)
    await house.standing.suspend(BOB)
    await house.standing.restore(BOB)
    await house.standing.delete(BOB)
    await come_back(house, BOB)
    await house.standing.delete_own(carol)
    house.clock.advance(days=limits.ACCOUNT_ERASURE_DAYS)
    await house.standing.erase(carol.user_id)
    lines = [json.loads(line) for line in log.read().splitlines()]
    assert [(line["event"], line.get("by")) for line in lines if line["component"] == "audit"] == [
        ("account-created", alice.user_id),
        ("account-created", bob.user.id),
        ("account-created", carol.user_id),
        ("invite-created", "operator"),
        ("admin-granted", "operator"),
        ("admin-revoked", "operator"),
        ("device-removed", bob.user.id),
        ("account-suspended", alice.user_id),
        ("suspension-lifted", alice.user_id),
        ("account-suspended", "operator"),
        ("suspension-lifted", "operator"),
        ("account-deleted", "operator"),
        ("account-restored", bob.user.id),
        ("account-deleted", carol.user_id),
        ("account-erased", "server"),
    ]
