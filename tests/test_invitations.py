"""Stories of links and requests: who they let in, how often, and what those learn whom they do not."""

import pytest
from msgspec import structs

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import ConversationChange, JoinLinkForm, SettingsForm
from gearlink.clock import new_id
from storage.events import MemberJoined
from storage.notices import Admitted
from storage.records import Account, JoinCode, JoinLink, JoinRequest
from tests.changes import putting
from tests.gatherings import Town
from tests.people import refused

ASKING = JoinLinkForm(needs_approval=True)


# --- links ------------------------------------------------------------------------------------------------------------


async def test_whoever_has_the_code_sees_where_it_leads_and_may_join() -> None:
    town = Town()
    ann, bob = await town.people(2)
    there = await town.open(ann, name="readers", description="we read")
    link = await town.invitations.create(ann, there, JoinLinkForm())
    assert limits.JOIN_CODE_CHARS_MIN <= len(link.code) <= limits.JOIN_CODE_CHARS_MAX
    preview = await town.invitations.preview(bob, link.code)
    assert (preview.conversation_id, preview.name, preview.description) == (there, "readers", "we read")
    assert (preview.member_count, preview.is_member, preview.needs_approval) == (1, False, False)
    answer = await town.invitations.join(bob, link.code)
    assert answer.status == "joined" and answer.conversation is not None
    assert (answer.conversation.id, answer.conversation.role, answer.conversation.member_count) == (there, "member", 2)
    [joined] = town.log(there)
    assert isinstance(joined, MemberJoined)
    assert (joined.actor_id, joined.user_id, joined.role, joined.by) == (bob.user_id, bob.user_id, "member", "link")
    [admitted] = [each for each in town.store.notices[-2:] if isinstance(each, Admitted)]
    assert [each.user_id for each in admitted.newcomers] == [bob.user_id]


async def test_a_use_is_counted_once_for_each_who_joined_and_repeating_is_safe() -> None:
    town = Town()
    ann, bob, eve, joe = await town.people(4)
    there = await town.open(ann)
    link = await town.invitations.create(ann, there, JoinLinkForm(uses_max=2))
    for person in (bob, bob, ann, eve, bob, eve):  # members, too, also when the link is used up
        answer = await town.invitations.join(person, link.code)
        assert answer.status == "joined" and answer.conversation is not None
    for ask in (town.invitations.join, town.invitations.preview):
        with refused("not-found"):
            await ask(joe, link.code)
    assert (await town.invitations.preview(bob, link.code)).is_member
    [shown] = (await town.invitations.links(ann, there, 10, None)).items
    assert (shown.uses, shown.uses_max) == (2, 2)
    assert len(town.log(there)) == 2


async def test_codes_that_lead_nowhere_are_told_apart_by_nobody() -> None:
    town = Town()
    ann, bob, eve = await town.people(3)
    there, ended = await town.open(ann, eve), await town.open(ann)
    expiring = await town.invitations.create(ann, there, JoinLinkForm(expires_in_seconds=60))
    revoked = await town.invitations.create(ann, there, JoinLinkForm())
    spent = await town.invitations.create(ann, there, JoinLinkForm(uses_max=1))
    of_ended = await town.invitations.create(ann, ended, JoinLinkForm())
    await town.invitations.join(await town.person(), spent.code)
    await town.invitations.revoke(ann, there, revoked.id)
    await town.conversations.delete(ann, ended)
    assert (await town.invitations.preview(bob, expiring.code)).member_count == 3
    town.clock.advance(seconds=60)
    told = set()
    for code in (expiring.code, revoked.code, spent.code, of_ended.code, "x" * limits.JOIN_CODE_CHARS_MIN):
        for ask in (town.invitations.preview, town.invitations.join):
            with refused("not-found") as refusal:
                await ask(bob, code)
            told.add(refusal.value.detail)
    assert len(told) == 1
    with refused("not-found"):  # revoked it is for members, too
        await town.invitations.join(eve, revoked.code)


async def test_who_tries_many_codes_has_to_wait() -> None:
    town = Town()
    ann, bob, eve = await town.people(3)
    there = await town.open(ann)
    link = await town.invitations.create(ann, there, JoinLinkForm())
    for attempt in range(limits.JOIN_TRIES_PER_MINUTE):
        with refused("not-found"):
            await (town.invitations.preview if attempt % 2 else town.invitations.join)(eve, new_id())
    for ask in (town.invitations.preview, town.invitations.join):
        with refused("rate-limited"):
            await ask(eve, link.code)
    await town.invitations.join(bob, link.code)


async def test_links_are_seen_and_made_by_those_who_may_invite_and_revoked_by_staff_or_their_maker() -> None:
    town = Town()
    ann, bob, eve, joe = await town.people(4)
    there = await town.open(ann, bob, eve)
    for act in (
        town.invitations.links(bob, there, 10, None),
        town.invitations.create(bob, there, JoinLinkForm()),
        town.invitations.revoke(bob, there, new_id()),
    ):
        with refused("forbidden"):
            await act
    await town.conversations.change(ann, there, ConversationChange(settings=SettingsForm(invite="everyone")))
    bobs, eves = [await town.invitations.create(each, there, JoinLinkForm()) for each in (bob, eve)]
    page = await town.invitations.links(eve, there, 1, None)
    second = await town.invitations.links(eve, there, 1, page.next)
    assert [page.items[0].code, second.items[0].code, second.next] == [bobs.code, eves.code, None]
    with refused("invalid-request"):
        await town.invitations.links(eve, there, 1, "foreign")
    with refused("forbidden"):
        await town.invitations.revoke(bob, there, eves.id)
    await town.invitations.revoke(bob, there, bobs.id)
    await town.invitations.revoke(ann, there, eves.id)
    with refused("not-found"):
        await town.invitations.revoke(ann, there, eves.id)
    with refused("not-found"):
        await town.invitations.revoke(joe, there, eves.id)
    assert town.store.all(JoinLink) == [] and town.store.all(JoinCode) == []


async def test_there_are_so_many_links_and_spent_ones_make_room() -> None:
    town = Town()
    ann = await town.person()
    there = await town.open(ann)
    await town.invitations.create(ann, there, JoinLinkForm(expires_in_seconds=60))
    for _ in range(limits.JOIN_LINKS_MAX - 1):
        await town.invitations.create(ann, there, JoinLinkForm())
    with refused("too-many"):
        await town.invitations.create(ann, there, JoinLinkForm())
    town.clock.advance(seconds=60)
    await town.invitations.create(ann, there, JoinLinkForm())
    assert len(town.store.all(JoinLink)) == len(town.store.all(JoinCode)) == limits.JOIN_LINKS_MAX


async def test_a_link_lets_nobody_into_a_full_group() -> None:
    town = Town(members_max=1)
    ann, bob = await town.people(2)
    there = await town.open(ann)
    link = await town.invitations.create(ann, there, JoinLinkForm())
    with refused("group-full"):
        await town.invitations.join(bob, link.code)
    assert [each.uses for each in town.store.all(JoinLink)] == [0]


async def test_two_people_are_alone_and_no_link_leads_to_them() -> None:
    town = Town()
    ann, bob = await town.people(2)
    there = await town.open(ann, bob, kind="direct")
    with refused("forbidden"):
        await town.invitations.create(ann, there, JoinLinkForm())


# --- requests ---------------------------------------------------------------------------------------------------------


async def asked(town: Town, *people: Actor) -> tuple[Actor, Actor, str, str]:
    """An owner and a member of a conversation that these people have asked to be let into; its id and the code."""
    owner, member = await town.people(2)
    there = await town.open(owner, member)
    link = await town.invitations.create(owner, there, ASKING)
    for person in people:
        answer = await town.invitations.join(person, link.code)
        assert (answer.status, answer.conversation) == ("requested", None)
    return owner, member, there, link.code


async def count(town: Town, there: str) -> int:
    """How many ask, which is noted twice."""
    stored = len([each for each in town.store.all(JoinRequest) if each.conversation_id == there])
    assert (await town.conversation(there)).request_count == stored
    return stored


async def test_who_asks_waits_outside_until_somebody_lets_them_in() -> None:
    town = Town()
    bob = await town.person()
    owner, member, there, code = await asked(town, bob, bob)
    assert await count(town, there) == 1
    [told] = [each for each in town.personal() if isinstance(each.subject, JoinRequest)]
    assert (told.user_ids, told.gone) == ((owner.user_id,), False)
    with refused("not-found"):
        await town.conversations.view(bob, there)
    for act in (
        town.invitations.requests(member, there, 10, None),
        town.invitations.approve(member, there, bob.user_id),
        town.invitations.decline(member, there, bob.user_id),
    ):
        with refused("forbidden"):
            await act
    [request] = (await town.invitations.requests(owner, there, 10, None)).items
    assert request.user_id == bob.user_id
    mark = len(town.store.notices)
    assert (await town.invitations.approve(owner, there, bob.user_id)).role == "member"
    joined = town.log(there)[-1]
    assert isinstance(joined, MemberJoined)
    assert (joined.actor_id, joined.user_id, joined.by) == (owner.user_id, bob.user_id, "request")
    [settled] = town.personal(mark)
    assert (settled.user_ids, settled.gone) == ((owner.user_id, bob.user_id), True)
    assert any(isinstance(each, Admitted) for each in town.store.notices[mark:])
    assert await count(town, there) == 0 and [each.uses for each in town.store.all(JoinLink)] == [1]
    assert (await town.invitations.join(bob, code)).status == "joined"
    with refused("not-found"):
        await town.invitations.approve(owner, there, bob.user_id)


async def test_a_request_ends_by_refusal_or_by_being_taken_back_and_may_come_again() -> None:
    town = Town()
    bob = await town.person()
    owner, _member, there, code = await asked(town, bob)
    await town.invitations.decline(owner, there, bob.user_id)
    assert await count(town, there) == 0
    await town.invitations.join(bob, code)
    await town.invitations.withdraw(bob, there)
    assert await count(town, there) == 0
    for missing in (there, new_id()):
        with refused("not-found"):
            await town.invitations.withdraw(bob, missing)
    with refused("not-found"):
        await town.invitations.decline(owner, there, bob.user_id)
    assert [each.gone for each in town.personal()] == [False, True, False, True]


@pytest.mark.parametrize("way", ["added", "another link", "banned"])
async def test_a_request_ends_when_it_is_overtaken(way: str) -> None:
    town = Town()
    bob = await town.person()
    owner, _member, there, _code = await asked(town, bob)
    if way == "added":
        await town.add(owner, there, bob)
    elif way == "another link":
        await town.invitations.join(bob, (await town.invitations.create(owner, there, JoinLinkForm())).code)
    else:
        await town.members.ban(owner, there, bob.user_id)
    assert await count(town, there) == 0
    assert (await town.member(there, bob) is None) == (way == "banned")


async def test_nobody_is_let_in_who_has_no_account_any_more_or_no_room() -> None:
    town = Town(members_max=3)
    bob, eve, joe = await town.people(3)
    owner, _member, there, _code = await asked(town, bob, eve, joe)
    account = await town.store.get(Account, bob.user_id)
    assert account is not None
    await town.store.write(putting(structs.replace(account, deleted_at=1, erase_at=2)))
    with refused("not-found"):
        await town.invitations.approve(owner, there, bob.user_id)
    assert await count(town, there) == 2
    await town.invitations.approve(owner, there, eve.user_id)
    with refused("group-full"):
        await town.invitations.approve(owner, there, joe.user_id)
    assert await count(town, there) == 1


async def test_requests_are_paged_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOIN_REQUESTS_MAX", 3)
    town = Town()
    people = await town.people(3)
    owner, _member, there, code = await asked(town, *people)
    with refused("too-many"):
        await town.invitations.join(await town.person(), code)
    await town.invitations.join(people[0], code)  # who asked already still does
    first = await town.invitations.requests(owner, there, 2, None)
    second = await town.invitations.requests(owner, there, 2, first.next)
    found = [each.user_id for each in (*first.items, *second.items)]
    assert found == sorted(each.user_id for each in people) and second.next is None
    with refused("invalid-request"):
        await town.invitations.requests(owner, there, 2, "foreign")


async def test_of_a_very_large_conversation_some_of_the_staff_hear_and_always_its_founder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "STAFF_SCAN_MEMBERS_MAX", 3)
    monkeypatch.setattr(limits, "STAFF_TOLD_MAX", 2)
    town = Town()
    early = await town.people(4)
    founder, asker = await town.people(2)
    there = await town.open(founder, *early)
    for person in early:
        await town.appoint(founder, there, person, "admin")
    link = await town.invitations.create(founder, there, ASKING)
    await town.invitations.join(asker, link.code)
    [told] = town.personal()
    assert told.user_ids == (founder.user_id, min(each.user_id for each in early))
