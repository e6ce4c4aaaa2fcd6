"""Stories of conversations: what is set there and by whom, and what each member sees of them in a list."""

import pytest

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import ConversationChange, JoinLinkForm, SettingsForm
from gearlink.views import ConversationView
from storage.events import ConversationSettings, ConversationUpdated, Role
from storage.records import Hidden
from tests.changes import putting
from tests.gatherings import Town
from tests.people import refused


async def change(town: Town, actor: Actor, there: str, **form: object) -> ConversationView:
    return await town.conversations.change(actor, there, ConversationChange(**form))  # type: ignore[arg-type]


# --- settings ---------------------------------------------------------------------------------------------------------


async def test_what_is_chosen_at_the_beginning_holds_and_the_rest_is_that_of_its_type() -> None:
    town = Town()
    ann = await town.person()
    for kind, write in (("group", "everyone"), ("channel", "admins")):
        plain = await town.conversation(await town.open(ann, kind=kind))
        assert plain.settings is None
        there = await town.open(ann, kind=kind, settings=SettingsForm(pin="owners", disappearing_seconds=60))
        settings = (await town.conversations.view(ann, there)).settings
        assert (settings.write, settings.pin, settings.disappearing_seconds) == (write, "owners", 60)  # type: ignore[union-attr]


async def test_each_part_of_a_change_needs_its_own_right() -> None:
    town = Town()
    ann, bob, eve = await town.people(3)
    there = await town.open(ann, bob, eve)
    await town.appoint(ann, there, bob, "admin")
    name, timer, settle = {"name": "new"}, SettingsForm(disappearing_seconds=5), SettingsForm(write="admins")
    allowed: dict[Role, list[bool]] = {
        "owner": [True, True, True],
        "admin": [True, True, False],
        "member": [False, False, False],
    }
    for actor, role in ((ann, "owner"), (bob, "admin"), (eve, "member")):
        forms = [name, {"settings": timer}, {"settings": settle}]
        for form, is_allowed in zip(forms, allowed[role], strict=True):  # type: ignore[index]
            if is_allowed:
                await change(town, actor, there, **form)
            else:
                with refused("forbidden"):
                    await change(town, actor, there, **form)
    with refused("forbidden"):  # all or nothing
        await change(town, bob, there, name="newer", settings=SettingsForm(write="owners"))
    assert (await town.conversation(there)).name == "new"
    await change(town, ann, there, settings=SettingsForm(info="everyone"))
    await change(town, eve, there, description="by a member")


async def test_a_change_of_many_parts_is_one_event_with_the_state_after_it() -> None:
    town = Town()
    ann = await town.person()
    there = await town.open(ann, name="before")
    await change(town, ann, there, name="after", settings=SettingsForm(write="admins", history_visible=True))
    await change(town, ann, there, name="after", settings=SettingsForm(write="admins"))  # changes nothing
    await change(town, ann, there, settings=SettingsForm())
    await change(town, ann, there)
    [event] = town.log(there)
    assert isinstance(event, ConversationUpdated)
    expected = ConversationSettings(write="admins", history_visible=True)
    assert (event.name, event.settings) == ("after", expected)
    await change(town, ann, there, description="now described")
    assert town.log(there)[-1].settings == expected  # type: ignore[union-attr]


async def test_two_people_can_set_the_timer_and_nothing_else() -> None:
    town = Town()
    ann, bob = await town.people(2)
    with refused("invalid-request"):
        await town.open(ann, bob, kind="direct", settings=SettingsForm(write="admins"))
    there = await town.open(ann, bob, kind="direct", settings=SettingsForm(disappearing_seconds=9))
    view = await change(town, bob, there, settings=SettingsForm(disappearing_seconds=0))
    assert view.settings.disappearing_seconds == 0  # type: ignore[union-attr]
    for form in ({"write": "owners"}, {"history_visible": True}, {"pin": "admins", "disappearing_seconds": 3}):
        with refused("invalid-request"):
            await change(town, bob, there, settings=SettingsForm(**form))  # type: ignore[arg-type]
    with refused("forbidden"):
        await change(town, bob, there, name="ours")
    with refused("not-found"):  # a stranger learns nothing from the form either
        await change(town, await town.person(), there, settings=SettingsForm(write="owners"))


# --- what a member sees -----------------------------------------------------------------------------------------------


async def test_the_last_message_is_the_newest_that_the_member_may_still_see() -> None:
    town = Town()
    ann, bob = await town.people(2)
    there = await town.open(ann, bob)
    first = await town.say(ann, there, "first")
    second = await town.say(ann, there, "second")
    await town.say(ann, there, "third", expires_at=town.clock.now() + 1000)

    async def last(person: Actor) -> str | None:
        view = await town.conversations.view(person, there)
        return view.last_message.content if view.last_message else None

    assert [await last(ann), await last(bob)] == ["third", "third"]
    town.clock.advance(seconds=1)
    assert [await last(ann), await last(bob)] == ["second", "second"]
    await town.store.write(putting(Hidden(there, bob.user_id, 2, second, 1)))
    await town.change_member(there, bob, hidden_at=1)
    assert [await last(ann), await last(bob)] == ["second", "first"]
    await town.store.write(putting(Hidden(there, bob.user_id, 1, first, 1)))
    assert [await last(ann), await last(bob)] == ["second", None]


async def test_opening_a_conversation_reads_the_same_whatever_its_history() -> None:
    reads = []
    for length in (limits.LAST_MESSAGE_SCAN_EVENTS_MAX, 10 * limits.LAST_MESSAGE_SCAN_EVENTS_MAX):
        town = Town()
        ann, bob = await town.people(2)
        there = await town.open(ann, bob)
        for _ in range(length):
            await town.say(ann, there)
        await town.change_member(there, bob, read_sequence=length)
        town.store.reads.clear()
        assert (await town.conversations.view(bob, there)).sequence_number == length
        reads.append(list(town.store.reads))
    assert reads[0] == reads[1]


async def test_the_list_is_by_activity_and_can_be_asked_for_the_archived_alone() -> None:
    town = Town()
    ann = await town.person()
    opened = []
    for _ in range(5):
        opened.append(await town.open(ann))
        town.clock.advance(seconds=1)
    await town.say(ann, opened[0])
    newest_first = [opened[0], *reversed(opened[1:])]
    archived = {opened[0], opened[3]}
    for there in archived:
        await town.change_member(there, ann, archived=True)
    await town.change_member(opened[1], ann, pinned_at=7)  # where pinned ones stand is the client's to say

    async def listed(limit: int, archived: bool | None) -> list[str]:
        found, cursor = [], None
        while True:
            page = await town.conversations.list(ann, limit, cursor, archived=archived)
            found += [each.id for each in page.items]
            assert len(page.items) <= limit
            if (cursor := page.next) is None:
                return found

    for limit in (1, 2, 5, 50):
        assert await listed(limit, None) == newest_first
        assert await listed(limit, True) == [each for each in newest_first if each in archived]
        assert await listed(limit, False) == [each for each in newest_first if each not in archived]
    with refused("invalid-request"):
        await town.conversations.list(ann, 5, "foreign")


@pytest.mark.parametrize("invite", ["everyone", "admins"])
async def test_how_many_ask_to_be_let_in_is_told_to_those_who_can_answer(invite: str) -> None:
    town = Town()
    ann, bob, eve = await town.people(3)
    there = await town.open(ann, bob, settings=SettingsForm(invite=invite))  # type: ignore[arg-type]
    link = await town.invitations.create(ann, there, JoinLinkForm(needs_approval=True))
    await town.invitations.join(eve, link.code)
    assert (await town.conversations.view(ann, there)).join_request_count == 1
    seen = (await town.conversations.view(bob, there)).join_request_count
    assert (seen == 1) == (invite == "everyone")
