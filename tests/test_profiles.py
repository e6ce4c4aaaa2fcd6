"""Profiles, finding people, and what operators do; and that nothing of it gets into the log."""

import re
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import DiscoverForm, ProfileForm, RefreshForm
from gearlink.clock import new_id
from gearlink.complaints import decode_body
from gearlink.errors import Refusal
from gearlink.verification import phone_hash
from storage.records import PhoneNumber, Username, UsernameHold
from tests.people import ADDRESS, ALICE, BOB, CAROL, PHONE, House, LogLines, log_captured, refused, with_wrong_code


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def log() -> Iterator[LogLines]:
    with log_captured() as lines:
        yield lines


# --- profiles --------------------------------------------------------------------------------------------------------


def others_view(user: Any) -> None:
    assert user.phone_number is msgspec.UNSET and user.is_admin is msgspec.UNSET
    assert "phone" not in msgspec.json.encode(user).decode() and "+1555" not in msgspec.json.encode(user).decode()


async def test_only_ones_own_profile_shows_number_and_rights(house: House) -> None:
    alice, bob = await house.newcomer(ALICE), await house.newcomer(BOB)
    me = await house.profiles.me(alice)
    assert (me.phone_number, me.is_admin) == (ALICE, True)
    await house.profiles.change_profile(alice, ProfileForm(username="alice"))
    hashed = urlsafe_b64encode(phone_hash(ALICE)).rstrip(b"=").decode()
    others_view(await house.profiles.user(bob, alice.user_id))
    others_view(await house.profiles.user(alice, alice.user_id))
    others_view((await house.profiles.by_username(bob, "alice")).items[0])
    others_view((await house.profiles.discover(bob, DiscoverForm(hashes=[hashed]))).items[0].user)


async def test_a_profile_changes_in_what_is_named_and_in_nothing_else(house: House) -> None:
    alice = await house.newcomer(ALICE)
    await house.profiles.change_profile(alice, ProfileForm(display_name=" Alice ", username="alice"))
    me = await house.profiles.change_profile(alice, ProfileForm(bio="line\nline"))
    assert (me.display_name, me.username, me.bio) == ("Alice", "alice", "line\nline")
    assert me == await house.profiles.me(alice)
    assert (await house.profiles.change_profile(alice, ProfileForm(bio=""))).bio == ""
    assert (await house.profiles.change_profile(alice, ProfileForm())).username == "alice"


async def test_a_username_belongs_to_one_user_and_is_kept_for_them_a_while_after_they_give_it_up(house: House) -> None:
    alice, bob = await house.newcomer(ALICE), await house.newcomer(BOB)
    await house.profiles.change_profile(alice, ProfileForm(username="wonder"))
    await house.profiles.change_profile(alice, ProfileForm(username="wonder"))
    with refused("username-taken"):
        await house.profiles.change_profile(bob, ProfileForm(username="wonder", bio="not written either"))
    assert (await house.profiles.me(bob)).bio == ""
    await house.profiles.change_profile(alice, ProfileForm(username="alice"))
    with refused("username-taken"):
        await house.profiles.change_profile(bob, ProfileForm(username="wonder"))
    assert (await house.profiles.by_username(bob, "wonder")).items == []
    await house.profiles.change_profile(alice, ProfileForm(username="wonder"))
    await house.profiles.change_profile(alice, ProfileForm(username=None))
    house.clock.advance(days=limits.USERNAME_HOLD_DAYS)
    await house.profiles.change_profile(bob, ProfileForm(username="wonder"))
    assert (await house.profiles.me(alice)).username is None
    assert house.store.all(Username) == [Username("wonder", bob.user_id)]
    assert "wonder" not in {hold.username for hold in house.store.all(UsernameHold)}


async def test_nobody_hoards_names_by_giving_up_one_after_the_other(autojump_clock: trio.testing.MockClock) -> None:
    house = House()
    alice = await house.newcomer(ALICE)
    for number in range(limits.USERNAME_CHANGES_PER_DAY + 1):
        await house.profiles.change_profile(alice, ProfileForm(username=f"alice{number}"))
    with refused("rate-limited") as refusal:
        await house.profiles.change_profile(alice, ProfileForm(username="one.more"))
    assert (await house.profiles.change_profile(alice, ProfileForm(bio="still possible"))).bio == "still possible"
    assert refusal.value.retry_after_seconds
    await trio.sleep(refusal.value.retry_after_seconds)
    assert (await house.profiles.change_profile(alice, ProfileForm(username="one.more"))).username == "one.more"


async def test_two_who_want_one_username_at_once_get_one(house: House) -> None:
    actors, outcomes = [await house.newcomer(ALICE), await house.newcomer(BOB)], []

    async def take(actor: Actor) -> None:
        try:
            await house.profiles.change_profile(actor, ProfileForm(username="wonder"))
            outcomes.append("taken")
        except Refusal as refusal:
            outcomes.append(refusal.code)

    async with trio.open_nursery() as nursery:
        for actor in actors:
            nursery.start_soon(take, actor)
    assert sorted(outcomes) == ["taken", "username-taken"]


@pytest.mark.parametrize("name", ["admin", "gearlink", "system", "support", "everyone"])
async def test_names_that_speak_for_the_house_are_taken(name: str, house: House) -> None:
    alice = await house.newcomer(ALICE)
    with refused("username-taken"):
        await house.profiles.change_profile(alice, ProfileForm(username=name))


@pytest.mark.parametrize(
    "name", ["Alice", "al", "1alice", "_alice", "alice smith", "älice", "alice\n", "a" * 33, "alice\x00", "al ice"]
)
def test_a_username_has_one_spelling(name: str) -> None:
    with refused("invalid-request"):
        decode_body(msgspec.json.encode({"username": name}), ProfileForm)


@pytest.mark.parametrize("name", ["ali", "alice_1.b", "a" * 32])
def test_usernames_that_pass(name: str) -> None:
    assert decode_body(msgspec.json.encode({"username": name}), ProfileForm).username == name


@pytest.mark.parametrize("field", ["display_name", "bio"])
@pytest.mark.parametrize("text", ["\x1b]0;title\x07", "back\x08space", "nul\x00", "\x9b31m"])
async def test_a_profile_cannot_play_with_a_terminal(field: str, text: str, house: House) -> None:
    alice = await house.newcomer(ALICE)
    with refused("invalid-request") as refusal:
        await house.profiles.change_profile(alice, ProfileForm(**{field: text}))
    assert refusal.value.errors and text not in str(refusal.value.errors)


async def test_a_display_name_of_blanks_or_lines_is_refused(house: House) -> None:
    alice = await house.newcomer(ALICE)
    for name in ("   ", "two\nlines"):
        with refused("invalid-request"):
            await house.profiles.change_profile(alice, ProfileForm(display_name=name))


@pytest.mark.parametrize("user_id", ["", "nonsense", "0" * 36])
async def test_a_user_that_is_not_there_is_not_found(user_id: str, house: House) -> None:
    alice = await house.newcomer(ALICE)
    for target in (user_id, new_id(), alice.user_id + "\n", alice.user_id.upper()):
        with refused("not-found"):
            await house.profiles.user(alice, target)


async def test_a_username_is_found_in_any_case_and_an_unknown_one_is_an_empty_page(house: House) -> None:
    alice = await house.newcomer(ALICE)
    await house.profiles.change_profile(alice, ProfileForm(username="alice"))
    for name in ("alice", "Alice", "ALICE"):
        page = await house.profiles.by_username(alice, name)
        assert [user.id for user in page.items] == [alice.user_id]
    for name in ("bob", "", "x" * 5000):
        assert (await house.profiles.by_username(alice, name)).items == []


# --- discovery -------------------------------------------------------------------------------------------------------


def hashes_of(*numbers: str) -> DiscoverForm:
    return DiscoverForm(hashes=[urlsafe_b64encode(phone_hash(number)).rstrip(b"=").decode() for number in numbers])


async def test_discovery_answers_known_numbers_alone_and_ones_own_like_any_other(house: House) -> None:
    alice, bob = await house.newcomer(ALICE), await house.newcomer(BOB)
    form = hashes_of(BOB, CAROL, ALICE, BOB)
    page = await house.profiles.discover(alice, form)
    assert [(found.hash, found.user.id) for found in page.items] == [
        (form.hashes[0], bob.user_id), (form.hashes[2], alice.user_id)
    ]  # fmt: skip
    assert (await house.profiles.discover(alice, DiscoverForm(hashes=[]))).items == []


async def test_discovery_is_limited_by_the_hash_and_by_the_user(autojump_clock: trio.testing.MockClock) -> None:
    house = House(limits__discoveries_per_hour=4)
    alice, bob = await house.newcomer(ALICE), await house.newcomer(BOB)
    await house.profiles.discover(alice, hashes_of(BOB, CAROL, BOB))  # two: the same one twice is one
    with refused("rate-limited") as refusal:
        await house.profiles.discover(alice, hashes_of(ALICE, BOB, CAROL))
    assert refusal.value.retry_after_seconds
    await house.profiles.discover(bob, hashes_of(ALICE, BOB, CAROL))
    await trio.sleep(refusal.value.retry_after_seconds)
    await house.profiles.discover(alice, hashes_of(ALICE, BOB, CAROL))


async def test_discovery_is_limited_by_the_address_as_well_before_anything_is_looked_up(house: House) -> None:
    house.set(limits__discoveries_per_hour=1)
    numbers = [f"+1555123{n:04}" for n in range(limits.DISCOVERERS_PER_ADDRESS + 1)]
    crowd = [replace(await house.newcomer(number), address=ADDRESS) for number in numbers]
    for asker in crowd[:-1]:
        await house.profiles.discover(asker, hashes_of(CAROL))
    house.store.reads.clear()
    with refused("rate-limited"):
        await house.profiles.discover(crowd[-1], hashes_of(CAROL))
    assert PhoneNumber not in house.store.reads
    house.set(limits__discoveries_per_hour=1)
    await house.profiles.discover(replace(crowd[-1], address="192.0.2.2"), hashes_of(CAROL))


async def test_more_hashes_than_ever_pass_are_refused_rather_than_let_through(house: House) -> None:
    house.set(limits__discoveries_per_hour=2)
    alice = await house.newcomer(ALICE)
    for _ in range(3):
        with refused("invalid-request") as refusal:
            await house.profiles.discover(alice, hashes_of(ALICE, BOB, CAROL))
        assert refusal.value.errors and refusal.value.errors[0]["path"] == "hashes"


@pytest.mark.parametrize("text", ["", "A" * 42, "A" * 44, "A" * 43 + "\n", "+" * 43, "é" * 43])
def test_what_is_no_hash_is_refused(text: str) -> None:
    with refused("invalid-request"):
        decode_body(msgspec.json.encode({"hashes": [text]}), DiscoverForm)


# --- operators -------------------------------------------------------------------------------------------------------


async def test_promotion_and_demotion_count_from_the_next_request_on(house: House) -> None:
    await house.newcomer(ALICE)
    pair = await house.sign_in(BOB)
    bob = await house.actor(pair)
    await house.profiles.change_profile(bob, ProfileForm(username="bob"))
    assert (await house.accounts.promote(BOB)).is_admin
    assert (await house.actor(pair)).is_admin
    assert not (await house.accounts.demote("@Bob")).is_admin
    assert (await house.accounts.promote("Bob")).is_admin
    assert not (await house.accounts.demote(bob.user_id)).is_admin
    assert not (await house.actor(pair)).is_admin
    assert not (await house.actor(await house.sign_in(BOB))).is_admin
    assert (house.audited("admin-granted"), house.audited("admin-revoked")) == (2, 2)


async def test_who_is_not_there_cannot_be_promoted(house: House) -> None:
    await house.newcomer(ALICE)
    for who, code in ((BOB, "not-found"), ("bob", "not-found"), ("", "not-found"), ("+12", "invalid-request")):
        with refused(code):
            await house.accounts.promote(who)


@pytest.mark.parametrize("limit", [1, 2, 3, 50])
async def test_the_list_of_users_is_complete_and_in_order_whatever_the_page(limit: int, house: House) -> None:
    numbers = [f"+1555123{n:04}" for n in range(6)]
    for number in numbers:
        await house.sign_in(number)
    seen, cursor = [], None
    while True:
        page = await house.accounts.list_users(limit, cursor)
        assert 0 < len(page.items) <= limit
        seen += [user.phone_number for user in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert seen == numbers
    with refused("invalid-request"):
        await house.accounts.list_users(limit, "nonsense")


# --- secrets ---------------------------------------------------------------------------------------------------------


async def test_no_log_line_holds_a_token_a_number_a_code_or_a_name(house: House, log: LogLines) -> None:
    house.set(auth__registration="invite")
    invite = await house.accounts.create_invite()
    form = await house.proof(ALICE, invite=invite)
    with refused("wrong-code"):
        await house.accounts.confirm(with_wrong_code(form), ADDRESS)
    signed_in = await house.accounts.confirm(form, ADDRESS)
    fresh = await house.accounts.refresh(RefreshForm(refresh_token=signed_in.refresh_token))
    actor = await house.actor(fresh)
    await house.profiles.change_profile(actor, ProfileForm(username="wonder", display_name="In Wonderland"))
    await house.accounts.promote(ALICE)
    with refused("invalid-refresh-token"):
        await house.accounts.refresh(RefreshForm(refresh_token=signed_in.refresh_token))
    await house.accounts.remove_device(actor, actor.device_id)
    lines = re.sub(r'"timestamp":"[^"]*"', "", log.read())
    for event in ("account-created", "invite-created", "admin-granted", "refresh-token-reuse", "device-removed"):
        assert event in lines
    pairs = [(pair.access_token, pair.refresh_token, pair.refresh_token[4:]) for pair in (signed_in, fresh)]
    secrets = [invite, "5551230001", "wonder", "In Wonderland", PHONE.name, *pairs[0], *pairs[1]]
    for secret in secrets:
        assert secret not in lines
    assert not re.search(rf"(?<![0-9]){form.code}(?![0-9])", lines)
