"""Stories of membership: who gets in, who is put out and kept out, who comes after the last owner, and what it costs."""

from itertools import product
from typing import Any, get_args

import pytest
from msgspec import structs

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import ConversationChange, JoinLinkForm, MembersForm, SettingsForm
from gearlink.clock import new_id
from gearlink.members import let_in, withdraw
from gearlink.purge import purge
from storage.events import MemberChanged, MemberJoined, MemberLeft, MessageDeleted, Plain, Role
from storage.keys import TABLES
from storage.notices import Admitted, ConversationDeleted
from storage.records import (
    Account,
    Amendment,
    Avatar,
    Ban,
    Conversation,
    Delivery,
    Departure,
    DirectPair,
    Draft,
    Head,
    Hidden,
    JoinRequest,
    LogEntry,
    Member,
    Membership,
    Mention,
    Pin,
    Privacy,
    Purge,
    Reaction,
    Revision,
    Thread,
    ThreadRead,
    ThreadReply,
    Vote,
)
from storage.store import Transaction
from tests.changes import putting
from tests.gatherings import Town
from tests.people import refused

ROLES: tuple[Role, ...] = get_args(Role)


# --- coming in --------------------------------------------------------------------------------------------------------


async def test_newcomers_see_what_was_said_before_only_where_the_conversation_shows_it() -> None:
    town = Town()
    ann, bob = await town.people(2)
    for shows, kind in ((False, "group"), (True, "channel")):
        there = await town.open(ann, kind=kind)
        await town.say(ann, there)
        await town.add(ann, there, bob)
        newcomer = await town.member(there, bob)
        assert newcomer is not None
        assert (newcomer.sees_history, newcomer.horizon) == (shows, 0 if shows else 1)
        assert newcomer.read_sequence == newcomer.joined_sequence == 1  # what was before is not unread for them
        view = await town.conversations.view(bob, there)
        assert (view.unread_count, view.last_message is not None) == (0, shows)


async def test_whether_somebody_sees_history_is_settled_when_they_come_and_stays_so() -> None:
    town = Town()
    ann, bob, eve = await town.people(3)
    there = await town.open(ann)
    await town.say(ann, there)
    await town.add(ann, there, bob)
    form = SettingsForm(history_visible=True)
    await town.conversations.change(ann, there, ConversationChange(settings=form))
    await town.add(ann, there, eve)
    assert [(await town.member(there, each)).sees_history for each in (bob, eve)] == [False, True]  # type: ignore[union-attr]


async def test_who_does_not_want_to_be_added_is_not_and_nobody_learns_why() -> None:
    town = Town()
    ann, bob, eve, joe, kim = await town.people(5)
    there = await town.open(ann, kim)
    await town.store.write(putting(Privacy(bob.user_id, add_to_groups="nobody")))
    await town.block(eve, ann)
    await town.block(ann, joe)
    refusals = []
    for unwilling in (bob, eve, joe):
        with refused("refused-by-privacy") as refusal:
            await town.add(ann, there, unwilling)
        refusals.append(refusal.value.detail)
        with refused("refused-by-privacy"):
            await town.open(ann, unwilling)
        with refused("refused-by-privacy"):  # all or none
            await town.add(ann, there, await town.person(), unwilling)
    assert len(set(refusals)) == 1
    assert len(await town.roles(there)) == 2
    await town.open(ann, bob, kind="direct")  # that is no group
    for blocked in (eve, joe):
        with refused("refused-by-privacy"):
            await town.open(ann, blocked, kind="direct")
        with refused("refused-by-privacy"):
            await town.open(blocked, ann, kind="direct")


async def test_a_direct_conversation_is_found_again_also_when_one_has_blocked_the_other() -> None:
    town = Town()
    ann, bob = await town.people(2)
    first = await town.open(ann, bob, kind="direct")
    await town.block(bob, ann)
    assert await town.open(ann, bob, kind="direct") == first == await town.open(bob, ann, kind="direct")


@pytest.mark.parametrize("gone", [{"suspended_at": 5}, {"deleted_at": 5, "erase_at": 9}])
async def test_suspended_and_deleted_people_are_as_unknown_as_nobody(gone: dict[str, int]) -> None:
    town = Town()
    ann = await town.person()
    away = await town.person(**gone)
    there = await town.open(ann)
    nobody = Actor(new_id(), new_id(), new_id(), 0, False)
    told = set()
    for absent in (away, nobody):
        with refused("invalid-request") as refusal:
            await town.add(ann, there, absent)
        told.add(str(refusal.value.errors))
        with refused("invalid-request"):
            await town.open(ann, absent)
        with refused("invalid-request"):
            await town.open(ann, absent, kind="direct")
    assert len(told) == 1


async def test_of_many_who_come_at_once_no_more_get_in_than_there_is_room() -> None:
    town = Town(members_max=3)
    ann, bob, eve, joe = await town.people(4)
    there = await town.open(ann)
    with refused("group-full"):
        await town.add(ann, there, bob, eve, joe)
    await town.add(ann, there, bob, eve)
    with refused("group-full"):
        await town.add(ann, there, joe)
    assert (await town.conversation(there)).member_count == len(await town.roles(there)) == 3


class Counting:
    """A transaction that counts the records which scans gave."""

    def __init__(self, tx: Transaction) -> None:
        self._tx, self.scanned = tx, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)

    async def scan(self, *args: Any, **more: Any) -> list[Any]:
        found: list[Any] = await self._tx.scan(*args, **more)
        self.scanned += len(found)
        return found


async def test_letting_somebody_into_a_large_group_reads_none_of_those_who_are_there() -> None:
    town = Town(members_max=10_000)
    ann, bob = await town.people(2)
    there = await town.open(ann)
    crowd = [Member(there, new_id(), "member", 1, 0) for _ in range(2 * limits.MEMBERS_SHOWN_MAX)]
    conversation = structs.replace(await town.conversation(there), member_count=len(crowd) + 1)
    await town.store.write(putting(*crowd, conversation))

    async def change(tx: Transaction) -> int:
        counting: Any = Counting(tx)
        await let_in(counting, conversation, [bob.user_id], "member", "link", bob.user_id, 1, members_max=10_000)
        return int(counting.scanned)

    assert await town.store.write(change) == 0
    [admitted] = [each for each in town.store.notices[-2:] if isinstance(each, Admitted)]
    assert (admitted.members, [each.user_id for each in admitted.newcomers]) == ((), [bob.user_id])


# --- roles ------------------------------------------------------------------------------------------------------------


async def test_an_owner_hands_over_by_making_an_heir_and_stepping_down() -> None:
    town = Town()
    ann, bob = await town.people(2)
    there = await town.open(ann, bob)
    with refused("last-owner"):
        await town.appoint(ann, there, ann, "member")
    await town.appoint(ann, there, bob, "owner")
    await town.appoint(ann, there, ann, "member")
    assert await town.roles(there) == {ann.user_id: "member", bob.user_id: "owner"}
    assert (await town.conversation(there)).owner_count == 1
    with refused("forbidden"):
        await town.appoint(ann, there, ann, "owner")
    with refused("last-owner"):
        await town.members.remove(bob, there, bob.user_id)
    changes = [event for event in town.log(there) if isinstance(event, MemberChanged)]
    assert [(each.actor_id, each.user_id, each.role) for each in changes] == [
        (ann.user_id, bob.user_id, "owner"),
        (ann.user_id, ann.user_id, "member"),
    ]


@pytest.mark.parametrize(("role", "target_role"), list(product(ROLES, ROLES)))
@pytest.mark.parametrize("way", ["remove", "ban"])
async def test_owners_put_anybody_out_and_admins_only_members(way: str, role: Role, target_role: Role) -> None:
    town = Town()
    founder, actor, target = await town.people(3)
    there = await town.open(founder, actor, target)
    for person, their_role in ((actor, role), (target, target_role)):
        if their_role != "member":
            await town.appoint(founder, there, person, their_role)
    put_out = getattr(town.members, way)
    if role == "owner" or (role == "admin" and target_role == "member"):
        await put_out(actor, there, target.user_id)
        assert await town.member(there, target) is None
        left = town.log(there)[-1]
        assert isinstance(left, MemberLeft)
        assert (left.user_id, left.how) == (target.user_id, "removed" if way == "remove" else "banned")
        conversation = await town.conversation(there)
        roles = await town.roles(there)
        assert conversation.member_count == len(roles) == 2
        assert conversation.owner_count == list(roles.values()).count("owner")
    else:
        with refused("forbidden"):
            await put_out(actor, there, target.user_id)
        assert await town.member(there, target) is not None


async def test_who_leaves_is_told_apart_from_who_is_removed_and_keeps_nothing() -> None:
    town = Town()
    ann, bob = await town.people(2)
    there = await town.open(ann, bob)
    await town.preferences.set_draft(bob, there, "begun")
    await town.store.write(putting(Delivery(there, bob.user_id, bob.device_id, 1, 1)))
    await town.members.remove(bob, there, bob.user_id)
    [left] = town.log(there)
    assert isinstance(left, MemberLeft) and (left.actor_id, left.how) == (bob.user_id, "left")
    for kind in (Draft, Delivery):
        assert town.store.all(kind) == []
    assert [each.user_id for each in town.store.all(Departure)] == [bob.user_id]


# --- bans -------------------------------------------------------------------------------------------------------------


async def test_the_banned_come_in_by_no_way_until_the_ban_is_lifted() -> None:
    town = Town()
    ann, bob, eve = await town.people(3)
    there = await town.open(ann, bob)
    link = await town.invitations.create(ann, there, JoinLinkForm())
    for unwanted in (bob, eve):  # a member, and somebody who never was one
        await town.members.ban(ann, there, unwanted.user_id)
        await town.members.ban(ann, there, unwanted.user_id)  # again changes nothing
        with refused("banned"):
            await town.add(ann, there, unwanted)
        with refused("banned"):
            await town.invitations.join(unwanted, link.code)
        with refused("banned"):
            await town.invitations.preview(unwanted, link.code)
    assert [type(event) for event in town.log(there)] == [MemberLeft]
    page = await town.members.bans(ann, there, 1, None)
    second = await town.members.bans(ann, there, 1, page.next)
    assert {each.user_id for each in (*page.items, *second.items)} == {bob.user_id, eve.user_id}
    assert {each.banned_by for each in page.items} == {ann.user_id} and second.next is None
    with refused("invalid-request"):
        await town.members.bans(ann, there, 1, "foreign")
    await town.members.unban(ann, there, bob.user_id)
    await town.members.unban(ann, there, bob.user_id)  # again changes nothing
    await town.add(ann, there, bob)
    assert (await town.invitations.preview(bob, link.code)).is_member


async def test_nobody_bans_themselves_or_somebody_who_does_not_exist() -> None:
    town = Town()
    ann, bob = await town.people(2)
    there = await town.open(ann, bob)
    with refused("forbidden"):
        await town.members.ban(ann, there, ann.user_id)
    with refused("not-found"):
        await town.members.ban(ann, there, new_id())
    assert town.store.all(Ban) == [] and len(await town.roles(there)) == 2


# --- the end of an account --------------------------------------------------------------------------------------------


async def test_who_is_erased_leaves_everything_and_the_longest_serving_admin_follows() -> None:
    town = Town()
    ann, bob, eve, joe = await town.people(4)
    ordinary = await town.open(bob, ann)
    led = await town.open(ann, eve)
    town.clock.advance(seconds=1)
    await town.add(ann, led, bob)
    town.clock.advance(seconds=1)
    await town.add(ann, led, joe)
    for late in (joe, bob):
        await town.appoint(ann, led, late, "admin")
    without_admins = await town.open(ann)
    town.clock.advance(seconds=1)
    await town.add(ann, without_admins, joe)
    town.clock.advance(seconds=1)
    await town.add(ann, without_admins, eve)
    alone = await town.open(ann)
    mark = len(town.store.notices)

    await withdraw(town.store, town.clock, ann.user_id)

    assert town.store.all(Membership) and not [
        each for each in town.store.all(Membership) if each.user_id == ann.user_id and each.conversation_id != alone
    ]
    assert await town.roles(led) == {eve.user_id: "member", bob.user_id: "owner", joe.user_id: "admin"}
    assert await town.roles(without_admins) == {joe.user_id: "owner", eve.user_id: "member"}
    assert await town.roles(ordinary) == {bob.user_id: "owner"}
    heir, left = town.log(led)[-2:]
    assert isinstance(heir, MemberChanged) and (heir.actor_id, heir.user_id) == (ann.user_id, bob.user_id)
    assert isinstance(left, MemberLeft) and left.how == "erased"
    for there in (led, without_admins, ordinary):
        conversation = await town.conversation(there)
        assert (conversation.owner_count, conversation.member_count) == (1, len(await town.roles(there)))
    ended = [each for each in town.store.notices[mark:] if isinstance(each, ConversationDeleted)]
    assert [each.conversation_id for each in ended] == [alone]


async def test_an_heir_is_somebody_who_can_act_if_there_is_one() -> None:
    town = Town()
    ann, eve = await town.people(2)
    away = await town.person()
    there = await town.open(ann, away)
    town.clock.advance(seconds=1)
    await town.add(ann, there, eve)
    account = await town.store.get(Account, away.user_id)
    assert account is not None
    await town.store.write(putting(structs.replace(account, suspended_at=7)))
    await withdraw(town.store, town.clock, ann.user_id)
    assert (await town.roles(there))[eve.user_id] == "owner"


async def test_of_a_direct_conversation_the_other_keeps_what_was_said_until_they_go_as_well() -> None:
    town = Town()
    ann, bob = await town.people(2)
    there = await town.open(ann, bob, kind="direct")
    await town.say(ann, there)
    await withdraw(town.store, town.clock, ann.user_id)
    assert town.store.all(DirectPair) == []
    view = await town.conversations.view(bob, there)
    assert (view.member_count, view.unread_count) == (1, 1)
    await withdraw(town.store, town.clock, bob.user_id)
    assert town.store.all(Conversation) == []
    await purge(town.store, town.clock)
    assert town.store.all(LogEntry) == []


async def test_what_somebody_hid_stays_hidden_when_they_come_back() -> None:
    town = Town()
    ann, bob = await town.people(2)
    there = await town.open(ann, bob, settings=SettingsForm(history_visible=True))
    message = await town.say(ann, there)
    await town.store.write(putting(Hidden(there, bob.user_id, 1, message, 5)))
    await town.change_member(there, bob, hidden_at=5)
    await town.members.remove(bob, there, bob.user_id)
    await town.add(ann, there, bob)
    assert (await town.conversations.view(bob, there)).last_message is None
    assert (await town.conversations.view(ann, there)).last_message is not None


async def test_nobody_becomes_an_owner_whose_account_nobody_can_use() -> None:
    town = Town()
    ann, bob = await town.people(2)
    there = await town.open(ann, bob)
    account = await town.store.get(Account, bob.user_id)
    assert account is not None
    await town.store.write(putting(structs.replace(account, deleted_at=1)))
    with refused("invalid-request"):
        await town.appoint(ann, there, bob, "owner")
    with refused("last-owner"):
        await town.members.remove(ann, there, ann.user_id)


async def test_of_somebody_who_is_erased_nothing_is_left_that_only_they_could_see() -> None:
    town = Town()
    ann, bob = await town.people(2)
    there, elsewhere = await town.open(ann, bob), await town.open(ann)
    root = await town.say(ann, there)
    rows = (Hidden(there, bob.user_id, 1, root, 1), Thread(there, 1, root, 1, 2), ThreadRead(root, bob.user_id, 2))
    await town.store.write(putting(*rows, ThreadRead(root, ann.user_id, 2)))
    asking = await town.invitations.create(ann, elsewhere, JoinLinkForm(needs_approval=True))
    await town.invitations.join(bob, asking.code)
    await withdraw(town.store, town.clock, bob.user_id)
    assert town.store.all(Hidden) == town.store.all(JoinRequest) == []
    assert [each.user_id for each in town.store.all(ThreadRead)] == [ann.user_id]
    assert (await town.conversation(elsewhere)).request_count == 0


# --- the end of a conversation ----------------------------------------------------------------------------------------


async def test_a_conversation_that_ended_is_gone_at_once_and_erased_to_the_last_record() -> None:
    town = Town()
    ann, bob, eve, joe = await town.people(4)
    other = await town.open(ann, bob)
    message_there = await town.say(ann, other, "stays")
    before = {kind: len(town.store.all(kind)) for kind in TABLES}
    there = await town.open(ann, bob, kind="group")
    message = await town.say(ann, there)
    await town.invitations.create(ann, there, JoinLinkForm())
    asking = await town.invitations.create(ann, there, JoinLinkForm(needs_approval=True))
    await town.invitations.join(eve, asking.code)
    await town.members.ban(ann, there, joe.user_id)
    await town.preferences.set_draft(ann, there, "begun")
    avatar = Avatar(new_id(), there, "image/png", b"x")
    await town.store.write(putting(avatar, structs.replace(await town.conversation(there), avatar_id=avatar.avatar_id)))
    many = limits.SWEEP_ROWS_PER_STEP + 7
    await town.store.write(
        putting(
            *(Reaction(message, new_id(), "x", 1) for _ in range(many)),
            Revision(message, 1, Plain("before"), 1),
            Vote(message, ann.user_id, (0,), 1),
            Thread(there, 1, message, 1, 2),
            ThreadReply(message, 2, bob.user_id),
            ThreadRead(message, bob.user_id, 2),
            Pin(there, 1, message, ann.user_id, 1),
            Mention(there, bob.user_id, 1, ann.user_id),
            Hidden(there, bob.user_id, 1, message, 1),
            Delivery(there, bob.user_id, bob.device_id, 1, 1),
            Amendment(there, 77, MessageDeleted(new_id(), ann.user_id, 1, message, 1)),
        )
    )
    await town.conversations.delete(ann, there)
    for person in (ann, bob):
        with refused("not-found"):
            await town.conversations.view(person, there)
        assert [each.id for each in (await town.conversations.list(person, 10, None)).items] == [other]
        assert (await town.preferences.drafts(person, 10, None)).items == []
    with refused("not-found"):
        await town.invitations.join(eve, asking.code)
    with refused("not-found"):
        await town.invitations.withdraw(eve, there)

    await purge(town.store, town.clock)

    left = {kind: len(town.store.all(kind)) - before[kind] for kind in TABLES}
    assert {kind: count for kind, count in left.items() if count} == {Departure: 2}
    assert (await town.conversations.view(ann, other)).last_message.id == message_there  # type: ignore[union-attr]


async def test_erasing_goes_on_where_it_was_stopped() -> None:
    town = Town()
    ann = await town.person()
    there = await town.open(ann)
    for _ in range(3):
        await town.say(ann, there)
    await town.conversations.delete(ann, there)
    town.store.fail_next = RuntimeError("the power was cut")
    with pytest.raises(RuntimeError):
        await purge(town.store, town.clock)
    assert len(town.store.all(LogEntry)) == 3 and len(town.store.all(Purge)) == 1
    await purge(town.store, town.clock)
    for kind in (LogEntry, Purge, Head, Member, Membership, Avatar):
        assert town.store.all(kind) == []


async def test_members_are_listed_page_by_page() -> None:
    town = Town()
    ann, *others = await town.people(5)
    there = await town.open(ann, *others)
    found: list[str] = []
    cursor = None
    while True:
        page = await town.members.list(ann, there, 2, cursor)
        found += [each.user_id for each in page.items]
        if (cursor := page.next) is None:
            break
    assert found == sorted(each.user_id for each in (ann, *others))
    with refused("invalid-request"):
        await town.members.list(ann, there, 2, "foreign")
    with refused("not-found"):
        await town.members.list(await town.person(), there, 2, None)


async def test_people_who_are_added_are_noted_one_by_one() -> None:
    town = Town()
    ann, bob, eve = await town.people(3)
    there = await town.open(ann)
    form = MembersForm(user_ids=[bob.user_id, eve.user_id, bob.user_id], role="admin")
    added = await town.members.add(ann, there, form)
    assert [each.user_id for each in added.items] == [bob.user_id, eve.user_id]
    assert [(event.user_id, event.role, event.by) for event in town.log(there) if isinstance(event, MemberJoined)] == [
        (bob.user_id, "admin", "added"),
        (eve.user_id, "admin", "added"),
    ]
