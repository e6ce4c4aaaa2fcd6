"""Between two people: contacts, blocks, and what somebody lets others see and do."""

import pytest

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import ContactForm, PrivacyForm, ProfileForm
from gearlink.clock import new_id
from gearlink.cursors import encode_cursor
from gearlink.people import may_add, may_see_presence, may_talk, privacy_of
from storage.notices import Personal
from storage.records import Account, Block, Contact, Conversation, DirectPair, Privacy
from storage.store import Transaction
from tests.people import ALICE, BOB, CAROL, House, refused
from tests.test_profiles import hashes_of


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
async def seats(house: House) -> list[Actor]:
    return [await house.newcomer(number) for number in (ALICE, BOB, CAROL)]


@pytest.fixture
def alice(seats: list[Actor]) -> Actor:
    return seats[0]


@pytest.fixture
def bob(seats: list[Actor]) -> Actor:
    return seats[1]


@pytest.fixture
def carol(seats: list[Actor]) -> Actor:
    return seats[2]


async def direct_conversation(house: House, *pair: Actor) -> str:
    """As `Conversations.create` leaves it behind."""
    conversation_id = new_id()

    async def change(tx: Transaction) -> None:
        tx.put(DirectPair(*sorted(actor.user_id for actor in pair), conversation_id))
        tx.put(Conversation(conversation_id, "direct", "server", "", "", pair[0].user_id, 0, 0, 2, 0))

    await house.store.write(change)
    return conversation_id


async def is_silent(house: House, conversation_id: str) -> bool:
    conversation = await house.store.get(Conversation, conversation_id)
    assert conversation is not None
    return conversation.is_blocked


# --- contacts --------------------------------------------------------------------------------------------------------


async def test_a_contact_has_the_nickname_that_its_owner_gave_it_and_the_owners_devices_hear(
    house: House, alice: Actor, bob: Actor
) -> None:
    await house.profiles.change_profile(bob, ProfileForm(display_name="Robert"))
    mark = len(house.store.notices)
    added = await house.people.put_contact(alice, bob.user_id, ContactForm())
    assert (added.user.display_name, added.nickname) == ("Robert", None)
    house.clock.advance(days=1)
    renamed = await house.people.put_contact(alice, bob.user_id, ContactForm(nickname=" Bobby "))
    assert (renamed.nickname, renamed.added_at) == ("Bobby", added.added_at)
    await house.people.put_contact(alice, bob.user_id, ContactForm(nickname="Bobby"))
    assert (await house.people.contacts(alice, 50, None)).items == [renamed]
    await house.people.remove_contact(alice, bob.user_id)
    await house.people.remove_contact(alice, bob.user_id)
    told = house.notices_since(mark)
    assert [(each.subject.nickname, each.gone) for each in told if isinstance(each, Personal)] == [
        ("", False), ("Bobby", False), ("Bobby", True)
    ]  # fmt: skip
    assert all(isinstance(each, Personal) and each.user_ids == (alice.user_id,) for each in told)
    assert all(isinstance(each, Personal) and each.but_device_id == alice.device_id for each in told)
    assert (await house.people.contacts(alice, 50, None)).items == []


async def test_oneself_and_who_is_not_there_are_no_contacts(house: House, alice: Actor, bob: Actor) -> None:
    await house.standing.delete(BOB)
    with refused("invalid-request"):
        await house.people.put_contact(alice, alice.user_id, ContactForm())
    for nobody in (new_id(), bob.user_id):
        with refused("not-found"):
            await house.people.put_contact(alice, nobody, ContactForm())
    with refused("invalid-request"):
        await house.people.put_contact(alice, bob.user_id, ContactForm(nickname="\x1b[31mred"))
    assert house.store.all(Contact) == []


async def test_there_are_only_so_many_contacts_and_blocks_and_one_that_goes_makes_room(
    house: House, alice: Actor, bob: Actor, carol: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONTACTS_MAX", 1)
    monkeypatch.setattr(limits, "BLOCKS_MAX", 1)
    await house.people.put_contact(alice, bob.user_id, ContactForm())
    await house.people.block(alice, bob.user_id)
    for _ in range(2):
        with refused("too-many"):
            await house.people.put_contact(alice, carol.user_id, ContactForm())
        with refused("too-many"):
            await house.people.block(alice, carol.user_id)
    await house.people.put_contact(alice, bob.user_id, ContactForm(nickname="no new one"))
    await house.people.block(alice, bob.user_id)
    await house.people.remove_contact(alice, bob.user_id)
    await house.people.unblock(alice, bob.user_id)
    await house.people.put_contact(alice, carol.user_id, ContactForm())
    await house.people.block(alice, carol.user_id)


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_the_pages_of_contacts_and_blocks_are_complete_whatever_their_size(
    limit: int, house: House, alice: Actor, bob: Actor, carol: Actor
) -> None:
    for other in (carol, bob):
        await house.people.put_contact(alice, other.user_id, ContactForm())
        await house.people.block(alice, other.user_id)
    for ask in (house.people.contacts, house.people.blocks):
        seen, cursor = [], None
        while True:
            page = await ask(alice, limit, cursor)
            seen += [each.user.id for each in page.items]
            if (cursor := page.next) is None:
                break
        assert seen == sorted([bob.user_id, carol.user_id])
        for foreign in ("nonsense", "AAAA", encode_cursor("x")):
            with refused("invalid-request"):
                await ask(alice, limit, foreign)


async def test_a_contact_whose_account_is_gone_stays_under_its_nickname(house: House, alice: Actor, bob: Actor) -> None:
    await house.people.put_contact(alice, bob.user_id, ContactForm(nickname="Bobby"))
    await house.people.block(alice, bob.user_id)
    await house.standing.delete(BOB)
    for _ in range(2):  # deleted, then erased
        (found,) = (await house.people.contacts(alice, 50, None)).items
        assert (found.nickname, found.user.is_deleted, found.user.display_name) == ("Bobby", True, "")
        assert (await house.people.blocks(alice, 50, None)).items[0].user.is_deleted
        house.clock.advance(days=limits.ACCOUNT_ERASURE_DAYS)
        await house.standing.erase(bob.user_id)
    assert await house.store.get(Account, bob.user_id) is None
    await house.people.remove_contact(alice, bob.user_id)


# --- blocks ----------------------------------------------------------------------------------------------------------


async def test_a_block_holds_in_both_directions_and_ends_with_the_last_of_them(
    house: House, alice: Actor, bob: Actor
) -> None:
    conversation_id = await direct_conversation(house, bob, alice)
    pairs = [(alice.user_id, bob.user_id), (bob.user_id, alice.user_id)]

    async def talk() -> set[bool]:
        assert await is_silent(house, conversation_id) is not await may_talk(house.store, *pairs[0])
        found = {await may_talk(house.store, *pair) for pair in pairs}
        found |= {await may_add(house.store, *pair) for pair in pairs}
        return found | {await may_see_presence(house.store, *pair) for pair in pairs}

    assert await talk() == {True}
    await house.people.block(alice, bob.user_id)
    assert await talk() == {False}
    await house.people.block(bob, alice.user_id)
    await house.people.unblock(alice, bob.user_id)
    assert await talk() == {False}, "what the other one has blocked stays blocked"
    await house.people.unblock(bob, alice.user_id)
    assert await talk() == {True}


async def test_nobody_is_told_who_blocked_them(house: House, alice: Actor, bob: Actor) -> None:
    await direct_conversation(house, alice, bob)
    mark = len(house.store.notices)
    for _ in range(2):  # the second time changes nothing
        await house.people.block(alice, bob.user_id)
    for _ in range(2):
        await house.people.unblock(alice, bob.user_id)
    told = house.notices_since(mark)
    assert [(each.user_ids, each.gone) for each in told if isinstance(each, Personal)] == [
        ((alice.user_id,), False), ((alice.user_id,), True)
    ]  # fmt: skip
    assert len(told) == 2


async def test_a_block_leaves_contacts_alone_and_can_name_a_contact_that_is_gone(
    house: House, alice: Actor, bob: Actor
) -> None:
    await house.people.put_contact(alice, bob.user_id, ContactForm())
    await house.standing.suspend(BOB)
    await house.people.block(alice, bob.user_id)
    assert len((await house.people.contacts(alice, 50, None)).items) == 1
    with refused("invalid-request"):
        await house.people.block(alice, alice.user_id)
    with refused("not-found"):
        await house.people.block(alice, new_id())
    await house.people.unblock(alice, new_id())
    assert [(each.user_id, each.blocked_id) for each in house.store.all(Block)] == [(alice.user_id, bob.user_id)]


async def test_who_was_blocked_sees_a_name_and_nothing_else_and_finds_nobody(
    house: House, alice: Actor, bob: Actor
) -> None:
    await house.profiles.change_profile(alice, ProfileForm(display_name="Alice", username="alice", bio="in Wonderland"))
    await house.profiles.change_profile(bob, ProfileForm(display_name="Bob", username="bob", bio="builder"))
    await house.people.block(alice, bob.user_id)
    seen = await house.profiles.user(bob, alice.user_id)
    assert (seen.display_name, seen.username, seen.bio, seen.avatar_url) == ("Alice", None, "", None)
    assert (await house.profiles.user(alice, bob.user_id)).bio == "builder", "who blocks knows whom"
    for asker, name, number in ((alice, "bob", BOB), (bob, "alice", ALICE)):
        assert (await house.profiles.by_username(asker, name)).items == []
        assert (await house.profiles.discover(asker, hashes_of(number))).items == []
    await house.people.unblock(alice, bob.user_id)
    assert (await house.profiles.user(bob, alice.user_id)).bio == "in Wonderland"
    assert len((await house.profiles.discover(bob, hashes_of(ALICE))).items) == 1


# --- privacy ---------------------------------------------------------------------------------------------------------


async def test_privacy_changes_in_what_is_named_and_the_other_devices_hear_once(house: House, alice: Actor) -> None:
    mark = len(house.store.notices)
    first = await house.people.privacy(alice)
    assert (first.read_receipts, first.last_seen, first.find_by_number) == (True, "everyone", "everyone")
    assert await house.people.change_privacy(alice, PrivacyForm()) == first
    assert house.store.all(Privacy) == []
    for _ in range(2):
        changed = await house.people.change_privacy(alice, PrivacyForm(read_receipts=False, last_seen="nobody"))
    assert (changed.read_receipts, changed.last_seen, changed.add_to_groups) == (False, "nobody", "everyone")
    assert changed == await house.people.privacy(alice)
    told = house.notices_since(mark)
    assert told == [Personal((alice.user_id,), await privacy_of(house.store, alice.user_id), False, alice.device_id)]


@pytest.mark.parametrize("audience", ["everyone", "contacts", "nobody"])
async def test_an_audience_of_contacts_is_those_whom_the_user_has_in_their_own(
    audience: str, house: House, alice: Actor, bob: Actor, carol: Actor
) -> None:
    form = PrivacyForm(last_seen=audience, add_to_groups=audience, find_by_number=audience)  # type: ignore[arg-type]
    await house.people.change_privacy(alice, form)
    await house.people.put_contact(alice, bob.user_id, ContactForm())
    await house.people.put_contact(carol, alice.user_id, ContactForm())  # which says what Carol wants, not Alice
    for other, allowed in ((bob, audience != "nobody"), (carol, audience == "everyone")):
        assert await may_see_presence(house.store, other.user_id, alice.user_id) is allowed
        assert await may_add(house.store, other.user_id, alice.user_id) is allowed
        assert bool((await house.profiles.discover(other, hashes_of(ALICE))).items) is allowed
    assert await may_see_presence(house.store, alice.user_id, alice.user_id)
    assert (await house.profiles.discover(alice, hashes_of(ALICE))).items, "one's own number is no secret"


async def test_nobody_sees_the_presence_of_who_is_suspended_deleted_or_was_never_there(
    house: House, alice: Actor, bob: Actor, carol: Actor
) -> None:
    await house.standing.suspend(BOB)
    await house.standing.delete(CAROL)
    for gone in (bob.user_id, carol.user_id, new_id()):
        assert not await may_see_presence(house.store, alice.user_id, gone)
