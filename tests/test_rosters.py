"""Rosters: which statements the server puts behind which, from whom, and what it never lets into the chain."""

import json
from typing import Any

import pytest
from msgspec import structs

from config import limits
from config.settings import Settings, with_values
from gearlink import views
from gearlink.accounts import Actor
from gearlink.calls import ConversationChange, ConversationForm, JoinLinkForm, RosterForm, SettingsForm
from gearlink.clock import new_id
from gearlink.purge import purge
from gearlink.rosters import Rosters
from gearlink.throttle import Budget
from storage.notices import RosterChanged
from storage.records import Conversation, RosterStatement
from tests.changes import putting
from tests.fakes import FakeStore
from tests.gatherings import Town
from tests.handsets import text
from tests.people import refused
from tests.signers import Signer


class Group:
    """An encrypted group of an owner, an admin and a member, and somebody outside; all have keys."""

    def __init__(self, town: Town, people: list[Actor]) -> None:
        self.town, self.store = town, town.store
        self.owner, self.admin, self.member, self.stranger = people
        self.signers = {each.user_id: Signer.of(each) for each in people}
        self.rosters = Rosters(town.store, town.clock, Budget(_unlimited(), now=lambda: 0.0))
        self.id = ""

    def signer(self, actor: Actor) -> Signer:
        return self.signers[actor.user_id]

    async def publish(
        self, statement: str, signer: Actor, *, by: Actor | None = None, signature: str | None = None
    ) -> tuple[int, bool]:
        form = RosterForm(statement=statement, signature=signature or self.signer(signer).sign(statement))
        return await self.rosters.publish(by or signer, self.id, form)

    def first(self, **more: Any) -> str:
        return self.signer(self.owner).statement(self.id, None, **more)

    async def chain(self, length: int) -> list[str]:
        """So many statements of the owner's, the first one included."""
        texts: list[str] = []
        for _ in range(length):
            after = texts[-1] if texts else None
            texts.append(self.signer(self.owner).statement(self.id, after))
            await self.publish(texts[-1], self.owner)
        return texts

    def kept(self) -> list[str]:
        return [each.statement for each in self.store.all(RosterStatement)]

    def told(self) -> list[RosterChanged]:
        return [each for each in self.store.notices if isinstance(each, RosterChanged)]


def _unlimited() -> Any:
    return with_values(Settings(), {"limits.messages_per_second": 0}).limits


async def found(kind: str = "group") -> Group:
    town = Town()
    group = Group(town, await town.people(4))
    group.id = await town.open(group.owner, group.admin, group.member, kind=kind, encryption="e2ee")
    await town.appoint(group.owner, group.id, group.admin, "admin")
    for signer in group.signers.values():
        await town.store.write(putting(*signer.records()))
    return group


@pytest.fixture
async def group() -> Group:
    return await found()


# --- the chain --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["group", "channel"])
async def test_a_statement_is_kept_as_it_was_sent_and_the_members_hear_its_version(kind: str) -> None:
    group = await found(kind)
    odd = group.first().replace('"at":', '  "at"  :').replace("owner", "\\u006fwner")
    assert await group.publish(odd, group.owner) == (1, True)
    page = await group.rosters.statements(group.member, group.id, 0, 50)
    assert page.items == [
        views.RosterStatement(version=1, statement=odd, signature=group.signer(group.owner).sign(odd))
    ]
    assert page.next is None and group.told() == [RosterChanged(group.id, 1)]


async def test_the_same_statement_again_changes_nothing_wherever_it_stands(group: Group) -> None:
    texts = await group.chain(3)
    for number, again in enumerate(texts, start=1):
        assert await group.publish(again, group.owner, by=group.member) == (number, False)
    assert group.kept() == texts and [each.version for each in group.told()] == [1, 2, 3]


async def test_a_statement_that_does_not_follow_is_told_the_newest_version(group: Group) -> None:
    texts = await group.chain(2)
    owner = group.signer(group.owner)
    for wrong in (
        owner.statement(group.id, texts[0]),  # the second one, which is there already with another time
        owner.statement(group.id, texts[1], version=4),
        owner.statement(group.id, texts[1], previous=None),
        owner.statement(group.id, texts[1], previous=text(b"x" * 32)),
        owner.statement(group.id, None),
    ):
        changed = wrong.replace("12:00", "13:00")
        with refused("roster-conflict") as refusal:
            await group.publish(changed, group.owner)
        assert refusal.value.version == 2
    assert group.kept() == texts


async def test_the_first_statement_has_nothing_before_it_and_is_the_creators(group: Group) -> None:
    for wrong in (group.first(previous=text(b"x" * 32)), group.first(version=2)):
        with refused("roster-conflict") as refusal:
            await group.publish(wrong, group.owner)
        assert refusal.value.version == 0
    with refused("forbidden"):
        await group.publish(group.signer(group.admin).statement(group.id, None), group.admin)
    assert group.kept() == [] and group.told() == []


async def test_pages_go_on_where_they_end_and_end_early_when_they_are_large(group: Group) -> None:
    texts = await group.chain(4)
    first = await group.rosters.statements(group.member, group.id, 0, 3)
    assert ([each.version for each in first.items], first.next) == ([1, 2, 3], "3")
    rest = await group.rosters.statements(group.member, group.id, 3, 3)
    assert ([each.statement for each in rest.items], rest.next) == (texts[3:], None)
    for after in (4, 9, limits.SEQUENCE_MAX):
        past = await group.rosters.statements(group.member, group.id, after, 3)
        assert (past.items, past.next) == ([], None)
    large = limits.ROSTER_PAGE_BYTES_MAX // 3
    for version in range(1, 6):
        record = RosterStatement(group.id, version, "x" * large, bytes(64), 0, 0)
        await group.store.write(putting(record))
    page = await group.rosters.statements(group.member, group.id, 0, 50)
    assert ([each.version for each in page.items], page.next) == ([1, 2, 3], "3")


# --- who may say it ---------------------------------------------------------------------------------------------------


async def test_outside_there_is_no_roster_and_no_word_about_what_was_sent(group: Group) -> None:
    await group.chain(1)
    for text_ in (group.first(), "{}"):
        with refused("not-found"):
            await group.publish(text_, group.stranger)
    with refused("not-found"):
        await group.rosters.statements(group.stranger, group.id, 0, 50)


async def test_only_what_an_owner_or_admin_stands_for_comes_into_the_chain(group: Group) -> None:
    [first] = await group.chain(1)
    by_member = group.signer(group.member).statement(group.id, first)
    with refused("forbidden"):
        await group.publish(by_member, group.member)
    by_admin = group.signer(group.admin).statement(group.id, first, (group.stranger.user_id, "member"))
    assert await group.publish(by_admin, group.admin, by=group.member) == (2, True)
    by_stranger = group.signer(group.stranger).statement(group.id, by_admin)
    with refused("forbidden"):
        await group.publish(by_stranger, group.stranger, by=group.member)


async def test_an_admin_brings_back_what_somebody_signed_who_is_none_any_more(group: Group) -> None:
    """A server that was restored has an old roster; its members have the rest."""
    [first] = await group.chain(1)
    second = group.signer(group.admin).statement(group.id, first)
    await group.town.appoint(group.owner, group.id, group.admin, "member")
    with refused("forbidden"):
        await group.publish(second, group.admin, by=group.member)
    assert await group.publish(second, group.admin, by=group.owner) == (2, True)


async def test_a_statement_is_by_the_device_that_it_names_as_the_server_knows_it(group: Group) -> None:
    owner, admin = group.signer(group.owner), group.signer(group.admin)
    own = json.loads(group.first())["signer"]
    for field, value, path in (
        ("userId", group.admin.user_id, "identityKey"),
        ("deviceId", group.admin.device_id, "identityKey"),
        ("accountKey", admin.account_key, "accountKey"),
        ("certificate", admin.certificate, "certificate"),
    ):
        with refused("invalid-request") as refusal:
            await group.publish(group.first(signer=own | {field: value}), group.owner)
        assert refusal.value.errors and refusal.value.errors[0]["path"] == f"statement.signer.{path}"
    forged = group.first(signer=own | {"identityKey": admin.handset.identity_key})
    with refused("invalid-request") as refusal:  # signed well, by a key that is not the owner's
        await group.publish(forged, group.owner, signature=admin.sign(forged))
    assert refusal.value.errors and refusal.value.errors[0]["path"] == "statement.signer.identityKey"
    for signature in (admin.sign(group.first()), owner.sign(group.first() + " "), text(bytes(64))):
        with refused("invalid-request") as refusal:
            await group.publish(group.first(), group.owner, signature=signature)
        assert refusal.value.errors and refusal.value.errors[0]["path"] == "signature"
    keys, _account = owner.records()
    await group.store.write(putting(structs.replace(keys, identity_key=bytes(32))))
    with refused("invalid-request"):  # the device has another identity by now
        await group.publish(group.first(), group.owner)
    assert group.kept() == []


# --- what is no statement ---------------------------------------------------------------------------------------------


HOSTILE = {
    "": "",
    "no JSON": "{",
    "a list": "[]",
    "a number": "1",
    "deep": "[" * 100_000,
    "nothing": "{}",
    "not a number": '{"version": NaN}',
    "a NUL": "\0",
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_is_no_statement_is_refused(group: Group, name: str) -> None:
    with refused("invalid-request") as refusal:
        await group.publish(HOSTILE[name], group.owner)
    assert refusal.value.errors and refusal.value.errors[0]["path"].startswith("statement")
    assert group.kept() == []


async def test_what_readers_could_take_in_two_ways_is_refused(group: Group) -> None:
    whole = json.loads(group.first())
    me, other = group.owner.user_id, group.member.user_id
    one = {"userId": me, "role": "owner"}
    bad: list[Any] = [
        {key: value for key, value in whole.items() if key != "previous"},
        whole | {"tpyo": 1},
        whole | {"at": "yesterday"},
        whole | {"version": 0},
        whole | {"version": 1.5},
        whole | {"version": 2**53},
        whole | {"signer": {key: value for key, value in whole["signer"].items() if key != "certificate"}},
        whole | {"signer": whole["signer"] | {"userId": me.upper()}},
        whole | {"changes": []},
        whole | {"changes": [one, one]},
        whole | {"changes": [one] * (limits.ROSTER_CHANGES_MAX + 1)},
        whole | {"changes": [one, {"userId": other}]},
        whole | {"changes": [one, {"userId": other, "role": "king"}]},
        whole | {"changes": [one, {"userId": other, "role": None, "accountKey": group.signer(group.member).account_key}]},
        whole | {"changes": [one, {"userId": other, "role": "member", "accountKey": text(bytes(32))}]},
        whole | {"conversationId": new_id()},
    ]  # fmt: skip
    twice = group.first()[:-1] + ', "version": 1}'
    for statement in [*map(json.dumps, bad), twice]:
        with refused("invalid-request"):
            await group.publish(statement, group.owner)
    assert group.kept() == []


async def test_a_statement_names_as_many_as_may_be_in_and_is_no_larger(group: Group) -> None:
    ids = sorted({new_id() for _ in range(limits.ROSTER_CHANGES_MAX)})
    keys = {"accountKey": group.signer(group.member).account_key}
    changes = [{"userId": each, "role": "member", **keys} for each in ids]
    largest = json.dumps(json.loads(group.first(changes=changes)), separators=(",", ":"))
    assert await group.publish(largest, group.owner) == (1, True)
    padded = group.first() + " " * limits.ROSTER_STATEMENT_BYTES_MAX
    wide = group.first() + "\u2003" * (limits.ROSTER_STATEMENT_BYTES_MAX // 2)  # fewer characters, and more bytes
    for large in (padded, wide):
        with refused("invalid-request"):
            await group.publish(large, group.owner)


async def test_a_roster_does_not_grow_without_an_end(group: Group) -> None:
    first = group.first()
    full = RosterStatement(group.id, 1, first, bytes(64), limits.ROSTER_BYTES_MAX, 0)
    await group.store.write(putting(full))
    with refused("too-many"):
        await group.publish(group.signer(group.owner).statement(group.id, first), group.owner)


@pytest.mark.parametrize(("kind", "encryption"), [("direct", "e2ee"), ("group", "server"), ("channel", "server")])
async def test_other_conversations_have_no_roster(kind: str, encryption: str) -> None:
    group = await found()
    group.id = await group.town.open(group.owner, group.member, kind=kind, encryption=encryption)
    with refused("invalid-request"):
        await group.publish(group.first(), group.owner)
    with refused("invalid-request"):
        await group.rosters.statements(group.owner, group.id, 0, 50)


async def test_statements_count_as_changes_of_who_brings_them(group: Group, autojump_clock: object) -> None:
    group.rosters = Rosters(group.store, group.town.clock, Budget(Settings().limits))
    first = group.first()
    for _ in range(limits.CHANGES_BURST):
        await group.publish(first, group.owner)
    with refused("rate-limited"):
        await group.publish(first, group.owner)


async def test_a_roster_goes_with_its_conversation_step_by_step(group: Group) -> None:
    count = 3 * limits.LARGE_ROWS_PER_STEP
    for version in range(1, count + 1):
        await group.store.write(putting(RosterStatement(group.id, version, "x", bytes(64), version, 0)))
    other = RosterStatement(new_id(), 1, "x", bytes(64), 1, 0)
    await group.store.write(putting(other))
    await group.town.conversations.delete(group.owner, group.id)
    writes = group.store.writes
    await purge(group.store, group.town.clock)
    assert group.store.all(RosterStatement) == [other]
    assert group.store.writes >= writes + 3


# --- letting people in ------------------------------------------------------------------------------------------------


async def test_in_an_encrypted_group_nobody_lets_people_in_who_cannot_sign_for_them(group: Group) -> None:
    town, everyone = group.town, SettingsForm(invite="everyone")
    with refused("invalid-request") as refusal:
        await town.conversations.change(group.owner, group.id, ConversationChange(settings=everyone))
    assert refusal.value.errors and refusal.value.errors[0]["path"] == "settings.invite"
    with refused("invalid-request"):
        await town.open(group.owner, encryption="e2ee", settings=everyone)
    await town.conversations.change(group.owner, group.id, ConversationChange(settings=SettingsForm(invite="owners")))
    with refused("invalid-request") as refusal:
        await town.invitations.create(group.owner, group.id, JoinLinkForm())
    assert refusal.value.errors and refusal.value.errors[0]["path"] == "needsApproval"
    link = await town.invitations.create(group.owner, group.id, JoinLinkForm(needs_approval=True))
    assert (await town.invitations.join(group.stranger, link.code)).status == "requested"


async def test_what_others_are_free_to_do_does_not_change(group: Group) -> None:
    town = group.town
    plain = await town.open(group.owner, group.member, settings=SettingsForm(invite="everyone"))
    link = await town.invitations.create(group.member, plain, JoinLinkForm())
    assert (await town.invitations.join(group.stranger, link.code)).status == "joined"


async def test_an_encrypted_group_has_a_bounded_number_of_members(group: Group) -> None:
    town, most = Town(members_max=10_000), limits.E2EE_MEMBERS_MAX
    founder, newcomer = await town.people(2)
    ids = [new_id() for _ in range(most)]
    for encryption, code in (("e2ee", "too-many"), ("server", "invalid-request")):  # who does not exist comes later
        form = ConversationForm(type="group", member_ids=ids, encryption=encryption)  # type: ignore[arg-type]
        with refused(code):
            await town.conversations.create(founder, form)
    place = await town.open(founder, encryption="e2ee")
    link = await town.invitations.create(founder, place, JoinLinkForm(needs_approval=True))
    await town.invitations.join(newcomer, link.code)
    await _crowd(town.store, place, most)
    with refused("too-many"):
        await town.add(founder, place, newcomer)
    with refused("too-many"):
        await town.invitations.approve(founder, place, newcomer.user_id)
    await _crowd(town.store, place, most - 1)
    await town.invitations.approve(founder, place, newcomer.user_id)


async def _crowd(store: FakeStore, conversation_id: str, count: int) -> None:
    conversation = await store.get(Conversation, conversation_id)
    assert conversation is not None
    await store.write(putting(structs.replace(conversation, member_count=count)))
