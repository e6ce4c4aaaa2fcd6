"""The table of who may do what, cell by cell: every right for every role in every type under every setting."""

from itertools import product
from typing import get_args

import pytest
from msgspec import structs

from gearlink.clock import new_id
from gearlink.rights import DEFAULT_SETTINGS, RIGHTS, SETTLED, Right, enter, holders, settings_of
from storage.events import ConversationSettings, ConversationType, Reach, Role
from storage.records import Conversation, Member
from tests.changes import putting
from tests.fakes import FakeStore
from tests.people import refused

ROLES: tuple[Role, ...] = get_args(Role)
REACHES: tuple[Reach, ...] = get_args(Reach)
GROUPS: tuple[ConversationType, ...] = ("group", "channel")

# Written down once more and not derived, so that a slip in the table shows.
OF_EVERY_MEMBER = {Right.READ, Right.REACT, Right.LEAVE}
OF_STAFF = {Right.MODERATE, Right.SET_TIMER, Right.REMOVE}
OF_OWNERS = {Right.SETTLE, Right.APPOINT, Right.DELETE}
OF_TWO = {Right.READ, Right.SEND, Right.REACT, Right.PIN, Right.SET_TIMER}
BY_SETTING = {
    Right.SEND: "write",
    Right.PIN: "pin",
    Right.ADD: "invite",
    Right.CHANGE: "info",
    Right.MENTION_ALL: "mention_all",
}
REACHED: dict[Reach, set[Role]] = {
    "everyone": {"owner", "admin", "member"},
    "admins": {"owner", "admin"},
    "owners": {"owner"},
}


def conversation(kind: ConversationType, settings: ConversationSettings | None = None) -> Conversation:
    return Conversation(new_id(), kind, "server", "", "", new_id(), 1, 1, 3, 1, settings)


def test_every_right_is_settled_by_exactly_one_place() -> None:
    assert OF_EVERY_MEMBER | OF_STAFF | OF_OWNERS | set(BY_SETTING) == set(Right)
    assert BY_SETTING == SETTLED
    for kind in GROUPS:
        assert not RIGHTS[kind].keys() & SETTLED.keys()


@pytest.mark.parametrize(("kind", "role"), list(product(GROUPS, ROLES)))
def test_what_no_setting_decides_follows_from_the_role(kind: ConversationType, role: Role) -> None:
    owner, staff = role == "owner", role in ("owner", "admin")
    expected = OF_EVERY_MEMBER | (OF_STAFF if staff else set()) | (OF_OWNERS if owner else set())
    every = [  # whatever the settings say
        ConversationSettings(*(reach,) * 5) for reach in REACHES
    ]
    for settings in every:
        there = conversation(kind, settings)
        assert {right for right in set(Right) - set(BY_SETTING) if role in holders(there, right)} == expected


@pytest.mark.parametrize(
    ("kind", "right", "reach", "role"), list(product(GROUPS, BY_SETTING, REACHES, ROLES))
)  # fmt: skip
def test_what_a_setting_decides_reaches_as_far_as_it_says(
    kind: ConversationType, right: Right, reach: Reach, role: Role
) -> None:
    others: Reach = "owners" if reach == "everyone" else "everyone"
    settings = structs.replace(ConversationSettings(*(others,) * 5), **{BY_SETTING[right]: reach})
    assert (role in holders(conversation(kind, settings), right)) == (role in REACHED[reach])


def test_two_people_have_the_same_rights_and_no_setting_takes_them() -> None:
    for settings in (None, ConversationSettings("owners", "owners", "owners", "owners", "owners")):
        there = conversation("direct", settings)
        assert {right for right in Right if "member" in holders(there, right)} == OF_TWO


def test_each_type_begins_with_settings_of_its_own() -> None:
    expected = {
        "group": {"owner": set(Right), "admin": set(Right) - OF_OWNERS, "member": OF_EVERY_MEMBER | {Right.SEND}},
        "channel": {"owner": set(Right), "admin": set(Right) - OF_OWNERS, "member": OF_EVERY_MEMBER},
    }
    for kind in GROUPS:
        there = conversation(kind)
        found = {role: {right for right in Right if role in holders(there, right)} for role in ROLES}
        assert found == expected[kind]
    assert [DEFAULT_SETTINGS[kind].history_visible for kind in get_args(ConversationType)] == [False, False, True]
    assert all(settings_of(conversation(kind)) == DEFAULT_SETTINGS[kind] for kind in get_args(ConversationType))


async def test_strangers_are_told_nothing_and_members_that_it_is_not_theirs() -> None:
    store, there, user_id = FakeStore(), conversation("group"), new_id()
    await store.write(putting(there))
    for right in Right:
        with refused("not-found"):
            await enter(store, user_id, there.conversation_id, right)
        with refused("not-found"):
            await enter(store, user_id, new_id(), right)
    await store.write(putting(Member(there.conversation_id, user_id, "member", 1, 0)))
    for right in Right:
        if "member" in holders(there, right):
            assert (await enter(store, user_id, there.conversation_id, right))[0] == there
        else:
            with refused("forbidden"):
                await enter(store, user_id, there.conversation_id, right)


async def test_between_two_who_blocked_each_other_nothing_new_is_said() -> None:
    store, user_id = FakeStore(), new_id()
    there = structs.replace(conversation("direct"), is_blocked=True)
    await store.write(putting(there, Member(there.conversation_id, user_id, "member", 1, 0)))
    await enter(store, user_id, there.conversation_id, Right.READ)
    for right in OF_TWO - {Right.READ}:
        with refused("refused-by-privacy"):
            await enter(store, user_id, there.conversation_id, right)
