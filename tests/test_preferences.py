"""Stories of what a member sets for themselves: mute, archive, pin, drafts, and that nobody else hears of it."""

import pytest

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import ConversationChange, PreferencesForm, SettingsForm
from gearlink.clock import rfc3339
from storage.events import Plain
from storage.records import Draft, Member
from tests.gatherings import Town
from tests.people import refused

# --- mute, archive, pin -----------------------------------------------------------------------------------------------


async def test_what_somebody_sets_is_theirs_alone_and_told_to_their_other_devices() -> None:
    town = Town()
    ann, bob = await town.people(2)
    there = await town.open(ann, bob)
    until = rfc3339(town.clock.now() + 3_600_000)
    form = PreferencesForm(muted_until=until, archived=True, pinned=True)
    view = await town.preferences.change(ann, there, form)
    assert (view.muted_until, view.archived, view.pinned_at) == (until, True, rfc3339(town.clock.now()))
    others = await town.conversations.view(bob, there)
    assert (others.muted_until, others.archived, others.pinned_at) == (None, False, None)
    [told] = town.personal()
    assert (told.user_ids, told.but_device_id) == ((ann.user_id,), ann.device_id)
    assert isinstance(told.subject, Member) and told.subject.preferences_at == town.clock.now()
    assert town.log(there) == []


async def test_only_the_keys_that_are_present_change_and_nothing_is_told_of_no_change() -> None:
    town = Town()
    ann = await town.person()
    there = await town.open(ann)
    await town.preferences.change(ann, there, PreferencesForm(archived=True))
    pinned = await town.preferences.change(ann, there, PreferencesForm(pinned=True))
    town.clock.advance(seconds=5)
    again = await town.preferences.change(ann, there, PreferencesForm(pinned=True, archived=True))
    assert (again.pinned_at, again.archived) == (pinned.pinned_at, True)
    await town.preferences.change(ann, there, PreferencesForm())
    await town.preferences.change(ann, there, PreferencesForm(muted_until=None))
    assert len(town.personal()) == 2
    member = await town.member(there, ann)
    assert member is not None and member.preferences_at == town.clock.now() - 5000
    freed = await town.preferences.change(ann, there, PreferencesForm(pinned=False, archived=False))
    assert (freed.pinned_at, freed.archived) == (None, False)


@pytest.mark.parametrize(
    "text",
    ["2026-01-01T00:00:00Z", "2025-12-31T23:59:59.999Z", "2026-02-30T12:00:00Z", "2026-13-01T00:00:00Z",
     "9999-12-31T23:59:59-23:59", "0000-01-01T00:00:00Z", "2027-01-01T00:00:00+99:99", "2027-01-01T24:00:00Z"],
)  # fmt: skip
async def test_a_mute_ends_at_a_time_to_come_or_not_at_all(text: str) -> None:
    town = Town()  # whose clock stands at 2026-01-01T00:00:00Z
    ann = await town.person()
    there = await town.open(ann)
    with refused("invalid-request") as refusal:
        await town.preferences.change(ann, there, PreferencesForm(muted_until=text))
    assert refusal.value.errors is not None and refusal.value.errors[0]["path"] == "mutedUntil"
    member = await town.member(there, ann)
    assert member is not None and member.muted_until == 0


async def test_a_mute_may_be_said_in_any_time_zone_and_taken_back() -> None:
    town = Town()
    ann = await town.person()
    there = await town.open(ann)
    form = PreferencesForm(muted_until="2026-01-01T05:30:01.5+05:30")
    assert (await town.preferences.change(ann, there, form)).muted_until == "2026-01-01T00:00:01.500Z"
    assert (await town.preferences.change(ann, there, PreferencesForm(muted_until=None))).muted_until is None


async def test_strangers_set_nothing() -> None:
    town = Town()
    ann, eve = await town.people(2)
    there = await town.open(ann)
    with refused("not-found"):
        await town.preferences.change(eve, there, PreferencesForm(archived=True))
    with refused("not-found"):
        await town.preferences.set_draft(eve, there, "x")
    assert town.personal() == []


# --- drafts -----------------------------------------------------------------------------------------------------------


async def drafts_of(town: Town, actor: Actor, limit: int = 50) -> list[tuple[str, str | None]]:
    found, cursor = [], None
    while True:
        page = await town.preferences.drafts(actor, limit, cursor)
        assert len(page.items) <= limit
        found += [(each.conversation_id, each.content) for each in page.items]
        if (cursor := page.next) is None:
            return found


async def test_a_draft_is_kept_replaced_given_up_and_told_to_the_other_devices() -> None:
    town = Town()
    ann, bob = await town.people(2)
    there = await town.open(ann, bob)
    quoted = await town.say(bob, there)
    draft = await town.preferences.set_draft(ann, there, "beg", quoted)
    assert (draft.content, draft.reply_to_id) == ("beg", quoted)
    await town.preferences.set_draft(ann, there, "begun")
    assert await drafts_of(town, ann) == [(there, "begun")] and await drafts_of(town, bob) == []
    gone = await town.preferences.set_draft(ann, there, None, quoted)
    assert (gone.content, gone.reply_to_id) == (None, None)
    await town.preferences.set_draft(ann, there, None)  # nothing is left to give up
    assert await drafts_of(town, ann) == []
    [kept] = town.store.all(Draft)  # for a device that was away
    assert kept.content is None
    told = [each.subject for each in town.personal() if isinstance(each.subject, Draft)]
    assert [each.content for each in told] == [Plain("beg"), Plain("begun"), None]
    assert {(each.user_ids, each.but_device_id) for each in town.personal()} == {((ann.user_id,), ann.device_id)}


async def test_drafts_are_paged_and_the_empty_ones_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAGE_MAX", 2)
    town = Town()
    ann = await town.person()
    opened = sorted([await town.open(ann) for _ in range(7)])
    for there in opened:
        await town.preferences.set_draft(ann, there, there)
    for there in opened[1:4]:
        await town.preferences.set_draft(ann, there, None)
    expected = [(there, there) for there in (opened[0], *opened[4:])]
    for limit in (1, 2, 3, 4, 50):
        assert await drafts_of(town, ann, limit) == expected
    with refused("invalid-request"):
        await town.preferences.drafts(ann, 5, "foreign")


async def test_what_could_not_be_sent_is_no_draft_either() -> None:
    town = Town()
    ann, bob, eve = await town.people(3)
    channel = await town.open(ann, bob, kind="channel")
    sealed = await town.open(ann, bob, kind="group", encryption="e2ee")
    group, elsewhere = await town.open(ann, bob), await town.open(bob, eve)
    with refused("forbidden"):
        await town.preferences.set_draft(bob, channel, "x")
    with refused("must-be-encrypted"):
        await town.preferences.set_draft(ann, sealed, "x")
    with refused("invalid-request"):
        await town.preferences.set_draft(ann, group, "é" * limits.CONTENT_BYTES_MAX)
    expired = await town.say(bob, group, expires_at=town.clock.now())
    early = await town.say(bob, group)
    await town.add(ann, group, eve)
    for actor, quoted in ((ann, expired), (eve, early), (bob, await town.say(bob, elsewhere)), (ann, "x" * 36)):
        with refused("invalid-request"):
            await town.preferences.set_draft(actor, group, "x", quoted if quoted != "x" * 36 else bob.user_id)
    assert town.store.all(Draft) == []


async def test_who_may_not_write_any_more_can_still_give_up_their_draft() -> None:
    town = Town()
    ann, bob, eve = await town.people(3)
    there = await town.open(ann, bob)
    await town.preferences.set_draft(bob, there, "begun")
    only_staff = ConversationChange(settings=SettingsForm(write="admins"))
    await town.conversations.change(ann, there, only_staff)
    with refused("forbidden"):
        await town.preferences.set_draft(bob, there, "more")
    with refused("not-found"):
        await town.preferences.set_draft(eve, there, None)
    await town.preferences.set_draft(bob, there, None)
    assert await drafts_of(town, bob) == []


async def test_drafts_that_come_too_fast_have_to_wait() -> None:
    town = Town()
    ann, bob = await town.people(2)
    there = await town.open(ann, bob)
    for _ in range(limits.DRAFTS_BURST):
        await town.preferences.set_draft(ann, there, "x")
    with refused("rate-limited"):
        await town.preferences.set_draft(ann, there, "x")
    await town.preferences.set_draft(bob, there, "x")
