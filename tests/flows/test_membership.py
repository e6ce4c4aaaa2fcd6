"""Membership: what each role may do, and what members hear of each other."""

from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import trio

from gearlink.clock import new_id
from gearlink.purge import purge
from gearlink.rights import RIGHTS, Right, holders
from storage.events import ConversationType, Role
from storage.records import Conversation, Head, LogEntry, MessageIndex, Purge
from tests.house import House, Person, open_house


class Cast:
    """Who is in the tests' conversations: one person for each role, one more of each to act on, and one outside."""

    def __init__(self, people: list[Person]) -> None:
        self.owner, self.admin, self.member, self.victim, self.second, self.stranger = people

    def of(self, role: Role) -> Person:
        return {"owner": self.owner, "admin": self.admin, "member": self.member}[role]

    async def gather(self, kind: ConversationType) -> str:
        """A fresh conversation of this type with all but the stranger in it."""
        if kind == "direct":
            [listed] = [each for each in (await self.member.http.get("/conversations")).json()["items"]
                        if each["type"] == "direct"] or [None]  # fmt: skip
            return str(listed["id"]) if listed else await self.member.open("direct", self.victim)
        conversation = await self.owner.open(kind, self.admin, self.member, self.victim, self.second)
        for person, role in ((self.admin, "admin"), (self.second, "owner")):
            await set_role(self.owner, conversation, person, role)
        return conversation


async def set_role(actor: Person, conversation: str, target: Person, role: str) -> httpx.Response:
    return await actor.http.patch(f"/conversations/{conversation}/members/{target.id}", json={"role": role})


async def add(actor: Person, conversation: str, *others: Person, **more: Any) -> httpx.Response:
    form = {"userIds": [other.id for other in others], **more}
    return await actor.http.post(f"/conversations/{conversation}/members", json=form)


async def remove(actor: Person, conversation: str, target: Person) -> httpx.Response:
    return await actor.http.delete(f"/conversations/{conversation}/members/{target.id}")


async def exercise(right: Right, actor: Person, conversation: str, cast: Cast) -> httpx.Response | None:
    """Does what needs `right`; None for what is done with a message."""
    path = f"/conversations/{conversation}"
    match right:
        case Right.READ:
            return await actor.http.get(path + "/messages")
        case Right.SEND:
            return await actor.post(conversation, "canary", new_id())
        case Right.CHANGE:
            return await actor.http.patch(path, json={"description": "canary"})
        case Right.SET_TIMER:
            return await actor.http.patch(path, json={"settings": {"disappearingSeconds": 60}})
        case Right.SETTLE:
            return await actor.http.patch(path, json={"settings": {"pin": "everyone"}})
        case Right.ADD:
            return await add(actor, conversation, cast.stranger)
        case Right.REMOVE:
            return await remove(actor, conversation, cast.victim)
        case Right.APPOINT:
            return await set_role(actor, conversation, cast.victim, "admin")
        case Right.LEAVE:
            return await remove(actor, conversation, actor)
        case Right.DELETE:
            return await actor.http.delete(path)
    return None


@pytest.mark.parametrize("kind", RIGHTS)
async def test_each_role_may_do_what_the_table_says_and_nothing_else(house: House, kind: ConversationType) -> None:
    """By the settings that a conversation begins with; every setting is tried in `tests/test_rights.py`."""
    cast = Cast(await house.people(6))
    roles: tuple[Role, ...] = ("member",) if kind == "direct" else get_args(Role)
    exercised = set()
    for role in roles:
        for right in Right:
            conversation = await cast.gather(kind)
            stored = await house.app.store.get(Conversation, conversation)
            assert stored is not None
            answer = await exercise(right, cast.of(role), conversation, cast)
            if answer is None:
                continue
            exercised.add(right)
            if role in holders(stored, right):
                assert answer.is_success, (role, right, answer.text)
            elif kind == "direct" and right is Right.SETTLE:  # there is nothing to settle, for nobody
                assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
            else:
                assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), (role, right)
    assert set(Right) - exercised == {Right.REACT, Right.MENTION_ALL, Right.PIN, Right.MODERATE}


# --- coming and going ------------------------------------------------------------------------------------------------


async def test_two_people_have_one_direct_conversation(house: House) -> None:
    ann, bob, eve = await house.people(3)
    answers: list[httpx.Response] = []

    async def create(person: Person, other: Person) -> None:
        answers.append(await person.http.post("/conversations", json={"type": "direct", "memberIds": [other.id]}))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(create, ann, bob)
            nursery.start_soon(create, bob, ann)
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert await ann.open("direct", eve) != answers[0].json()["id"]
    for members in ([], [ann.id], [bob.id, eve.id], [new_id()]):
        answer = await ann.http.post("/conversations", json={"type": "direct", "memberIds": members})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")


async def test_members_hear_what_happens_to_them_in_order_and_by_number(house: House) -> None:
    ann, bob, eve = await house.people(3)
    async with ann.wire() as owner, bob.wire() as member, eve.wire() as newcomer:
        conversation = await ann.open("group", bob, name="before")
        for wire, role in ((owner, "owner"), (member, "member")):
            created = (await wire.hear("conversation:created"))["conversation"]
            assert (created["role"], created["name"], created["sequenceNumber"]) == (role, "before", 0)
        await ann.http.patch(f"/conversations/{conversation}", json={"name": "after"})
        await add(ann, conversation, eve)
        await set_role(ann, conversation, eve, "admin")
        await remove(eve, conversation, bob)
        await ann.post(conversation, "x", "t-1")
        expected = [("conversation:updated", 1), ("member:joined", 2), ("member:changed", 3), ("member:left", 4)]
        heard = {}
        for name, wire in (("owner", owner), ("member", member), ("newcomer", newcomer)):
            frames = await wire.fence()
            heard[name] = [(frame["type"], frame.get("sequenceNumber")) for frame in frames]
        assert heard["owner"] == expected
        assert heard["member"] == expected  # with the end, and nothing after it
        assert heard["newcomer"] == [("conversation:created", None), *expected[1:], ("message:new", None)]
        assert (await remove(ann, conversation, eve)).status_code == 204
        assert [frame["type"] for frame in await newcomer.fence()] == ["member:left"]
        assert await member.fence() == []


async def test_a_change_that_changes_nothing_is_no_event(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("group", bob, name="same")
    async with bob.wire() as wire:
        await ann.http.patch(f"/conversations/{conversation}", json={"name": "same"})
        await set_role(ann, conversation, bob, "member")
        assert await wire.fence() == []


async def test_the_last_owner_cannot_go_without_an_heir(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("group", bob)
    for answer in (await remove(ann, conversation, ann), await set_role(ann, conversation, ann, "member")):
        assert (answer.status_code, answer.json()["code"]) == (409, "last-owner")
    await set_role(ann, conversation, bob, "owner")
    assert (await remove(ann, conversation, ann)).status_code == 204
    assert (await bob.view(conversation))["memberCount"] == 1


async def test_of_two_owners_who_leave_at_once_one_stays(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation = await ann.open("group", bob, eve)
    await set_role(ann, conversation, bob, "owner")
    statuses: list[int] = []

    async def leave(person: Person) -> None:
        statuses.append((await remove(person, conversation, person)).status_code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave, ann)
        nursery.start_soon(leave, bob)
    assert sorted(statuses) == [204, 409]


async def test_an_admin_removes_members_but_no_admin_and_no_owner(house: House) -> None:
    ann, bob, eve, joe = await house.people(4)
    conversation = await ann.open("group", bob, eve, joe)
    await set_role(ann, conversation, bob, "admin")
    await set_role(ann, conversation, eve, "admin")
    for target in (ann, eve):
        assert (await remove(bob, conversation, target)).json()["code"] == "forbidden"
    assert (await add(bob, conversation, await house.sign_up(), role="admin")).json()["code"] == "forbidden"
    assert (await remove(bob, conversation, joe)).status_code == 204
    assert (await remove(ann, conversation, eve)).status_code == 204


async def test_the_last_one_who_leaves_ends_the_conversation(house: House) -> None:
    [ann] = await house.people(1)
    conversation = await ann.open("group")
    async with ann.wire() as wire:
        assert (await remove(ann, conversation, ann)).status_code == 204
        assert await wire.fence() == [{"type": "conversation:deleted", "conversationId": conversation}]
    assert (await ann.http.get(f"/conversations/{conversation}")).status_code == 404
    assert (await ann.http.get("/conversations")).json()["items"] == []


async def test_a_deleted_conversation_is_told_forgotten_and_erased(house: House) -> None:
    ann, bob = await house.people(2)
    conversation, other = await ann.open("group", bob), await ann.open("group", bob)
    message = (await ann.post(conversation, "canary", "t-1")).json()["id"]
    await ann.post(other, "stays", "t-1")
    async with bob.wire(cursors={conversation: 1, other: 1}) as wire:
        assert (await ann.http.delete(f"/conversations/{conversation}")).status_code == 204
        assert await wire.fence() == [{"type": "conversation:deleted", "conversationId": conversation}]
        await wire.say("message:send", conversationId=conversation, content="x", tempId="t-2")
        await wire.refused("not-found")
    for person in (ann, bob):
        assert (await person.http.get(f"/messages/{message}")).status_code == 404
    store = house.app.store
    await purge(store, house.app.clock)
    assert await store.scan(LogEntry, conversation, limit=1) == [] and await store.scan(Purge, limit=1) == []
    assert await store.get(MessageIndex, message) is None and await store.get(Head, conversation) is None
    assert [each["content"] for each in await bob.history(other)] == ["stays"]


async def test_adding_is_all_or_nothing(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data", limits__group_members_max="3") as house:
        ann, bob, eve, joe = await house.people(4)
        conversation = await ann.open("group", bob)
        refusals = [
            (await add(ann, conversation, eve, bob), 409, "already-member"),
            (await add(ann, conversation, eve, joe), 409, "group-full"),
            (await ann.http.post("/conversations", json={"type": "group", "memberIds": [bob.id, eve.id, joe.id]}),
             409, "group-full"),
            (await ann.http.post(f"/conversations/{conversation}/members", json={"userIds": [eve.id, new_id()]}),
             422, "invalid-request"),
        ]  # fmt: skip
        for answer, status, code in refusals:
            assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert (await ann.view(conversation))["memberCount"] == 2
        assert (await add(ann, conversation, eve, eve)).status_code == 201
        assert (await ann.view(conversation))["memberCount"] == 3


async def test_who_comes_back_sees_what_happens_from_then_on(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("group", bob)
    await ann.post(conversation, "1", "1")
    await remove(bob, conversation, bob)  # 2
    await ann.post(conversation, "3", "3")
    await add(ann, conversation, bob)  # 4
    await ann.post(conversation, "5", "5")
    assert [message["sequenceNumber"] for message in await bob.history(conversation)] == [4, 5]
    async with bob.wire(cursors={conversation: 1}) as wire:
        assert [frame["type"] for frame in wire.missed] == [
            "conversation:deleted", "conversation:created", "member:joined", "message:new", "sync:done"
        ]  # fmt: skip


# --- strangers -------------------------------------------------------------------------------------------------------
# Every call and every frame is tried by strangers in `tests/flows/test_access.py`.


async def test_cursors_tell_strangers_and_former_members_no_more_than_those_of_nowhere(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation = await ann.open("group", bob)
    await ann.post(conversation, "canary", "t-1")
    await remove(ann, conversation, bob)
    for person in (bob, eve):
        nowhere = new_id()
        async with person.wire(cursors={conversation: 0, nowhere: 0}) as wire:
            told = [frame.get("conversationId") for frame in wire.missed if frame["type"] == "conversation:deleted"]
            assert sorted(told) == sorted([conversation, nowhere])  # the same of both, and nothing else
            assert wire.missed[len(told) :] == [{"type": "sync:done", "complete": True}]
