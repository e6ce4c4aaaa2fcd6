"""Devices and sessions: what a sign-in, a refresh, a logout and a theft do, and the check of every request."""

import re
from base64 import urlsafe_b64encode
from collections.abc import Iterator

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from config import limits
from gearlink.calls import DeviceForm, RefreshForm, TokenPair
from gearlink.clock import new_id
from gearlink.errors import Refusal
from storage.notices import DeviceAdded, DeviceRemoved, SessionEnded
from storage.records import Account, Device, Invite, RefreshToken
from storage.records import Verification as VerificationRecord
from storage.store import StoreFull
from tests.people import ADDRESS, ALICE, BOB, CAROL, House, LogLines, log_captured, refused


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def log() -> Iterator[LogLines]:
    with log_captured() as lines:
        yield lines


# --- devices ---------------------------------------------------------------------------------------------------------


async def test_a_new_sign_in_on_a_device_ends_its_older_session(house: House) -> None:
    old = await house.sign_in(ALICE)
    mark = len(house.store.notices)
    house.clock.advance(minutes=1)
    again = DeviceForm(name="Renamed", type="ios", device_id=old.device.id)
    new = await house.sign_in(ALICE, again)
    assert new.device.id == old.device.id and new.device.name == "Renamed"
    assert new.device.created_at == old.device.created_at != new.device.last_seen_at
    assert not await house.is_signed_in(old)
    actor = await house.actor(new)
    assert house.notices_since(mark) == [SessionEnded(new.user.id, new.device.id, actor.session_id)]
    with refused("invalid-refresh-token"):
        await house.accounts.refresh(RefreshForm(refresh_token=old.refresh_token))
    assert await house.is_signed_in(new), "a dead session's token cannot touch the new session"


async def test_a_used_token_of_an_older_session_cannot_end_the_new_one(house: House) -> None:
    old = await house.sign_in(ALICE)
    await house.accounts.refresh(RefreshForm(refresh_token=old.refresh_token))
    new = await house.sign_in(ALICE, DeviceForm(name="x", type="ios", device_id=old.device.id))
    with refused("invalid-refresh-token"):
        await house.accounts.refresh(RefreshForm(refresh_token=old.refresh_token))
    assert await house.is_signed_in(new)
    assert house.audited("refresh-token-reuse") == 1


async def test_a_device_id_of_somebody_else_is_refused_also_after_that_device_was_removed(house: House) -> None:
    alice, tablet = await house.sign_in(ALICE), await house.sign_in(ALICE)
    await house.sign_in(BOB)
    await house.accounts.remove_device(await house.actor(alice), tablet.device.id)
    for number in (BOB, CAROL):
        for device_id in (alice.device.id, tablet.device.id):
            with refused("not-found"):
                await house.sign_in(number, DeviceForm(name="x", type="web", device_id=device_id))
    assert await house.is_signed_in(alice)
    assert len(house.store.all(Account)) == 2, "Carol has no account"


async def test_a_client_may_name_its_device_and_a_removed_one_comes_back_under_its_id(house: House) -> None:
    alice, chosen = await house.sign_in(ALICE), new_id()
    form = DeviceForm(name="x", type="web", device_id=chosen)
    assert (await house.sign_in(ALICE, form)).device.id == chosen
    await house.accounts.remove_device(await house.actor(alice), chosen)
    again = await house.sign_in(ALICE, form)
    assert again.device.id == chosen and await house.is_signed_in(again)


async def test_one_device_too_many_is_refused_and_a_removed_one_makes_room(house: House) -> None:
    first = await house.sign_in(ALICE)
    for _ in range(limits.DEVICES_PER_USER_MAX - 1):
        last = await house.sign_in(ALICE)
    with refused("too-many-devices"):
        await house.sign_in(ALICE)
    await house.sign_in(ALICE, DeviceForm(name="known", type="ios", device_id=last.device.id))
    await house.sign_in(BOB)
    await house.accounts.remove_device(await house.actor(first), last.device.id)
    await house.sign_in(ALICE)
    mine = [device for device in house.store.all(Device) if device.user_id == first.user.id]
    assert len(mine) == limits.DEVICES_PER_USER_MAX


async def test_at_the_limit_a_signed_out_device_gives_way(house: House) -> None:
    signed_in = []
    for _ in range(limits.DEVICES_PER_USER_MAX):
        house.clock.advance(minutes=1)
        signed_in.append(await house.sign_in(ALICE))
    await house.accounts.logout(await house.actor(signed_in[-2]))
    mark = len(house.store.notices)
    new = await house.sign_in(ALICE)
    gone = signed_in[-2].device.id
    assert house.notices_since(mark) == [
        SessionEnded(new.user.id, gone), DeviceRemoved(new.user.id, gone), DeviceAdded(new.user.id, new.device.id)
    ]  # fmt: skip
    with refused("too-many-devices"):
        await house.sign_in(ALICE)


async def test_lost_phones_do_not_lock_their_owner_out_for_good(house: House) -> None:
    for _ in range(limits.DEVICES_PER_USER_MAX):
        house.clock.advance(seconds=1)
        last = await house.sign_in(ALICE)
    house.clock.advance(days=6)
    kept = await house.accounts.refresh(RefreshForm(refresh_token=last.refresh_token))
    house.clock.advance(days=2)
    for _ in range(limits.DEVICES_PER_USER_MAX - 1):
        house.clock.advance(seconds=1)
        await house.sign_in(ALICE)
    with refused("too-many-devices"):
        await house.sign_in(ALICE)
    await house.accounts.refresh(RefreshForm(refresh_token=kept.refresh_token))


async def test_the_device_list_is_the_callers_own(house: House) -> None:
    first = await house.sign_in(ALICE)
    second = await house.sign_in(ALICE, DeviceForm(name="Laptop", type="desktop"))
    await house.sign_in(BOB)
    await house.accounts.logout(await house.actor(first))
    page = await house.accounts.devices(await house.actor(second))
    assert [(device.id, device.current, device.signed_in) for device in page.items] == [
        (first.device.id, False, False), (second.device.id, True, True)
    ]  # fmt: skip
    assert page.next is None


async def test_a_removed_device_is_gone_with_its_session(house: House) -> None:
    first, second = await house.sign_in(ALICE), await house.sign_in(ALICE)
    mark = len(house.store.notices)
    await house.accounts.remove_device(await house.actor(first), second.device.id)
    assert house.notices_since(mark) == [
        SessionEnded(first.user.id, second.device.id), DeviceRemoved(first.user.id, second.device.id)
    ]  # fmt: skip
    assert not await house.is_signed_in(second)
    with refused("invalid-refresh-token"):
        await house.accounts.refresh(RefreshForm(refresh_token=second.refresh_token))
    with refused("not-found"):
        await house.accounts.remove_device(await house.actor(first), second.device.id)
    assert await house.is_signed_in(first)


@pytest.mark.parametrize("device_id", ["", "nonsense", "../x", "0" * 32])
async def test_removing_what_is_no_device_of_yours_is_not_found(device_id: str, house: House) -> None:
    alice, bob = await house.sign_in(ALICE), await house.sign_in(BOB)
    for target in (device_id, bob.device.id, new_id(), bob.device.id + "\n"):
        with refused("not-found"):
            await house.accounts.remove_device(await house.actor(alice), target)
    assert await house.is_signed_in(bob)


async def test_logout_ends_this_devices_session_alone(house: House) -> None:
    first, second = await house.sign_in(ALICE), await house.sign_in(ALICE)
    mark, actor = len(house.store.notices), await house.actor(first)
    await house.accounts.logout(actor)
    assert house.notices_since(mark) == [SessionEnded(first.user.id, first.device.id)]
    assert not await house.is_signed_in(first) and await house.is_signed_in(second)
    with refused("invalid-refresh-token"):
        await house.accounts.refresh(RefreshForm(refresh_token=first.refresh_token))
    again = await house.sign_in(ALICE, DeviceForm(name="x", type="ios", device_id=first.device.id))
    await house.accounts.logout(actor)
    assert await house.is_signed_in(again), "a request of the old session that comes late ends nothing"


async def test_last_seen_moves_every_few_minutes_and_not_with_each_request(house: House) -> None:
    signed_in = await house.sign_in(ALICE)
    actor = await house.actor(signed_in)
    assert await house.accounts.connected_at(actor) == 0
    await house.accounts.seen(actor)
    writes, began = house.store.writes, house.clock.now()
    await house.accounts.refresh(RefreshForm(refresh_token=signed_in.refresh_token))
    writes += 1
    house.clock.advance(minutes=4)
    await house.accounts.seen(actor)
    assert house.store.writes == writes and await house.accounts.connected_at(actor) == began
    house.clock.advance(minutes=1)
    await house.accounts.seen(actor)
    await house.accounts.seen(actor)
    assert house.store.writes == writes + 1
    assert house.store.all(Device)[0].last_seen_at == house.clock.now()
    await house.accounts.remove_device(actor, actor.device_id)
    await house.accounts.seen(actor)
    assert not house.store.all(Device), "a removed device does not come back"


# --- refreshing ------------------------------------------------------------------------------------------------------


async def test_a_refresh_gives_a_new_pair_and_goes_on_for_as_long_as_it_is_used(house: House) -> None:
    pair: TokenPair = await house.sign_in(ALICE)
    for _ in range(5):
        house.clock.advance(days=6)
        assert not await house.is_signed_in(pair)
        fresh = await house.accounts.refresh(RefreshForm(refresh_token=pair.refresh_token))
        assert fresh.refresh_token != pair.refresh_token and fresh.expires_in_seconds == 900
        pair = fresh
        assert await house.is_signed_in(pair)
    assert house.store.all(Device)[0].last_seen_at == house.clock.now()


async def test_a_refresh_token_ends_with_its_days(house: House) -> None:
    signed_in = await house.sign_in(ALICE)
    house.clock.advance(days=7)
    with refused("invalid-refresh-token"):
        await house.accounts.refresh(RefreshForm(refresh_token=signed_in.refresh_token))


async def test_refresh_tokens_are_recognisable_and_stored_hashed(house: House) -> None:
    token = (await house.sign_in(ALICE)).refresh_token
    assert re.fullmatch("glr_[A-Za-z0-9_-]{43}", token)
    (stored,) = house.store.all(RefreshToken)
    assert token.encode() not in msgspec.msgpack.encode(stored) and len(stored.token_hash) == 32


async def test_a_used_refresh_token_seen_again_ends_the_session_for_both_holders(house: House, log: LogLines) -> None:
    stolen = await house.sign_in(ALICE)
    other_device = await house.sign_in(ALICE)
    thief = await house.accounts.refresh(RefreshForm(refresh_token=stolen.refresh_token))
    mark = len(house.store.notices)
    with refused("invalid-refresh-token"):
        await house.accounts.refresh(RefreshForm(refresh_token=stolen.refresh_token))
    assert house.notices_since(mark) == [SessionEnded(stolen.user.id, stolen.device.id)]
    assert not await house.is_signed_in(stolen) and not await house.is_signed_in(thief)
    with refused("invalid-refresh-token"):
        await house.accounts.refresh(RefreshForm(refresh_token=thief.refresh_token))
    assert await house.is_signed_in(other_device), "a family is one device's session"
    assert house.audited("refresh-token-reuse") == 1
    lines = log.read()
    assert "refresh-token-reuse" in lines and stolen.device.id in lines


async def test_one_refresh_token_used_twice_at_once_gives_one_pair_and_that_dies(house: House) -> None:
    signed_in, pairs, codes = await house.sign_in(ALICE), [], []

    async def refresh() -> None:
        try:
            pairs.append(await house.accounts.refresh(RefreshForm(refresh_token=signed_in.refresh_token)))
        except Refusal as refusal:
            codes.append(refusal.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refresh)
        nursery.start_soon(refresh)
    assert len(pairs) == 1 and codes == ["invalid-refresh-token"]
    assert not await house.is_signed_in(pairs[0])


async def test_a_refresh_that_could_not_be_stored_leaves_the_old_token_good(house: House) -> None:
    signed_in = await house.sign_in(ALICE)
    house.store.fail_next = StoreFull("the disk is full")
    with pytest.raises(StoreFull):
        await house.accounts.refresh(RefreshForm(refresh_token=signed_in.refresh_token))
    await house.accounts.refresh(RefreshForm(refresh_token=signed_in.refresh_token))


@given(token=st.text(min_size=1, max_size=80))
async def test_no_made_up_refresh_token_is_taken(token: str) -> None:
    house = House()
    await house.sign_in(ALICE)
    with refused("invalid-refresh-token"):
        await house.accounts.refresh(RefreshForm(refresh_token=token))


async def test_a_stored_hash_is_no_refresh_token(house: House) -> None:
    await house.sign_in(ALICE)
    raw = house.store.all(RefreshToken)[0].token_hash
    for token in (raw.hex(), urlsafe_b64encode(raw).rstrip(b"=").decode()):
        with refused("invalid-refresh-token"):
            await house.accounts.refresh(RefreshForm(refresh_token="glr_" + token))


# --- the check of every request --------------------------------------------------------------------------------------


async def test_authenticating_is_one_read_and_no_write(house: House) -> None:
    signed_in = await house.sign_in(ALICE)
    house.store.reads.clear()
    writes = house.store.writes
    await house.accounts.authenticate(signed_in.access_token)
    assert (house.store.reads, house.store.writes) == ([Device], writes)


async def test_a_token_that_never_was_valid_costs_no_read(house: House) -> None:
    await house.sign_in(ALICE)
    house.store.reads.clear()
    with refused("not-authenticated"):
        await house.accounts.authenticate("nonsense")
    assert not house.store.reads


async def test_rolled_keys_sign_nobody_out(house: House) -> None:
    signed_in = await house.sign_in(ALICE)
    await house.tokens.roll()
    assert await house.is_signed_in(signed_in)
    assert await house.is_signed_in(await house.accounts.refresh(RefreshForm(refresh_token=signed_in.refresh_token)))


async def test_every_record_that_upkeep_may_delete_says_when(house: House) -> None:
    house.set(auth__registration="invite")
    await house.sign_in(ALICE, invite=await house.accounts.create_invite())
    await house.verification.request(BOB, ADDRESS)
    for kind in (VerificationRecord, RefreshToken, Invite):
        found = len(house.store.all(kind))
        assert found and await house.store.sweep(kind, house.clock.now()) == 0
        assert await house.store.sweep(kind, house.clock.now() + 8 * 86_400_000) == found
