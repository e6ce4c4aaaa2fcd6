"""Joining over the real server: links, requests, bans, and what one sets for oneself, as their people live it."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import trio

from gearlink.clock import new_id
from tests.house import House, Person


async def make_link(person: Person, conversation: str, **form: Any) -> str:
    answer = await person.http.post(f"/conversations/{conversation}/links", json=form)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["code"])


async def join(person: Person, code: str) -> httpx.Response:
    return await person.http.post(f"/join/{code}")


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def test_somebody_with_a_link_looks_joins_and_hears_the_rest(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation = await ann.open("group", bob, name="readers")
    await ann.post(conversation, "before", "t-1")
    code = await make_link(ann, conversation, expiresInSeconds=60)
    preview = (await eve.http.get(f"/join/{code}")).json()
    assert preview == {
        "conversationId": conversation, "type": "group", "name": "readers", "description": None, "avatarUrl": None,
        "memberCount": 2, "needsApproval": False, "isMember": False,
    }  # fmt: skip
    async with ann.wire() as owner, eve.wire() as newcomer:
        answer = (await join(eve, code)).json()
        assert (answer["status"], answer["conversation"]["id"]) == ("joined", conversation)
        assert (answer["conversation"]["lastMessage"], answer["conversation"]["unreadCount"]) == (None, 0)
        joined = await owner.hear("member:joined")
        assert (joined["userId"], joined["actorId"], joined["by"]) == (eve.id, eve.id, "link")
        created = await newcomer.hear("conversation:created")
        assert created["conversation"]["memberCount"] == 3
        assert (await newcomer.hear("member:joined"))["sequenceNumber"] == joined["sequenceNumber"] == 2
        await ann.post(conversation, "welcome", "t-2")
        assert (await newcomer.hear("message:new"))["message"]["content"] == "welcome"
    assert [each["sequenceNumber"] for each in await eve.history(conversation)] == [2, 3]


async def test_a_link_with_one_use_left_lets_in_one_of_many_who_come_at_once(house: House) -> None:
    ann, *others = await house.people(9)
    conversation = await ann.open("group")
    code = await make_link(ann, conversation, usesMax=1)
    answers: list[httpx.Response] = []

    async def come(person: Person) -> None:
        answers.append(await join(person, code))

    async with trio.open_nursery() as nursery:
        for person in others:
            nursery.start_soon(come, person)
    assert sorted(answer.status_code for answer in answers) == [200] + [404] * 7
    assert (await ann.view(conversation))["memberCount"] == 2
    [link] = (await ann.http.get(f"/conversations/{conversation}/links")).json()["items"]
    assert (link["uses"], link["usesMax"], link["expiresAt"]) == (1, 1, None)
    assert (await ann.http.delete(f"/conversations/{conversation}/links/{link['id']}")).status_code == 204
    assert refusal(await join(others[0], code)) == (404, "not-found")


async def test_who_asks_to_be_let_in_is_told_when_it_happens(house: House) -> None:
    ann, bob, eve, joe = await house.people(4)
    conversation = await ann.open("group", bob)
    code = await make_link(ann, conversation, needsApproval=True)
    async with ann.wire() as owner, bob.wire() as member, eve.wire() as asker:
        assert (await join(eve, code)).json() == {"status": "requested", "conversation": None}
        assert (await join(eve, code)).json()["status"] == "requested"
        asked = (await owner.hear("join:requested"))["request"]
        assert (asked["conversationId"], asked["userId"]) == (conversation, eve.id)
        assert (await ann.view(conversation))["joinRequestCount"] == 1
        assert "joinRequestCount" not in await bob.view(conversation)
        path = f"/conversations/{conversation}/requests"
        assert refusal(await bob.http.get(path)) == (403, "forbidden")
        assert refusal(await eve.http.get(path)) == (404, "not-found")
        assert [each["userId"] for each in (await ann.http.get(path)).json()["items"]] == [eve.id]
        assert (await ann.http.put(f"{path}/{eve.id}")).json()["role"] == "member"
        assert [frame["type"] for frame in await owner.fence()] == ["join:settled", "member:joined"]
        assert [frame["type"] for frame in await asker.fence()] == [
            "join:settled", "conversation:created", "member:joined"
        ]  # fmt: skip
        assert [frame["by"] for frame in await member.fence()] == ["request"]
        await join(joe, code)
        assert (await ann.http.delete(f"{path}/{joe.id}")).status_code == 204
        await join(joe, code)
        assert (await joe.http.delete(path)).status_code == 204
        assert refusal(await joe.http.delete(path)) == (404, "not-found")
        assert [frame["type"] for frame in await owner.fence()] == ["join:requested", "join:settled"] * 2
    assert (await ann.view(conversation))["joinRequestCount"] == 0


async def test_the_banned_are_out_at_once_and_stay_out(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation = await ann.open("group", bob)
    code = await make_link(ann, conversation)
    path = f"/conversations/{conversation}/bans"
    async with bob.wire() as wire:
        assert (await ann.http.put(f"{path}/{bob.id}")).status_code == 204
        left = await wire.hear("member:left")
        assert (left["userId"], left["how"]) == (bob.id, "banned")
        await ann.post(conversation, "canary", "t-1")
        assert await wire.fence() == []
    assert refusal(await bob.http.get(f"/conversations/{conversation}")) == (404, "not-found")
    assert refusal(await join(bob, code)) == (403, "banned")
    added = await ann.http.post(f"/conversations/{conversation}/members", json={"userIds": [bob.id]})
    assert refusal(added) == (403, "banned")
    assert [each["userId"] for each in (await ann.http.get(path)).json()["items"]] == [bob.id]
    for stranger in (bob, eve):
        assert refusal(await stranger.http.get(path)) == (404, "not-found")
        assert refusal(await stranger.http.delete(f"{path}/{bob.id}")) == (404, "not-found")
    assert (await ann.http.delete(f"{path}/{bob.id}")).status_code == 204
    assert (await join(bob, code)).status_code == 200


async def test_settings_are_told_to_all_and_hold_at_once(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("group", bob)
    async with bob.wire() as wire:
        change = {"name": "news", "settings": {"write": "admins", "disappearingSeconds": 3600}}
        view = (await ann.http.patch(f"/conversations/{conversation}", json=change)).json()
        told = await wire.hear("conversation:updated")
        assert told["settings"] == view["settings"] and told["name"] == "news"
        assert (told["settings"]["write"], told["settings"]["disappearingSeconds"]) == ("admins", 3600)
        assert refusal(await bob.post(conversation, "x", "t-1")) == (403, "forbidden")
    assert [each["kind"] for each in await bob.history(conversation)] == ["system"]
    for wrong in ({"write": "nobody"}, {"disappearingSeconds": -1}, {"typo": 1}):
        answer = await ann.http.patch(f"/conversations/{conversation}", json={"settings": wrong})
        assert refusal(answer) == (422, "invalid-request")


async def test_newcomers_page_through_history_where_it_is_visible_but_are_not_sent_it(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("group", settings={"historyVisible": True})
    await ann.post(conversation, "before", "t-1")
    code = await make_link(ann, conversation)
    await join(bob, code)
    assert [each["content"] for each in await bob.history(conversation)][:1] == ["before"]
    view = await bob.view(conversation)
    assert (view["unreadCount"], view["lastMessage"]["content"]) == (0, "before")
    async with bob.wire() as wire:
        assert [frame["type"] for frame in wire.missed if "sequenceNumber" in frame] == ["member:joined"]


async def test_what_one_sets_for_oneself_reaches_the_other_devices_and_nobody_else(house: House) -> None:
    ann, bob = await house.people(2)
    phone = await ann.another_device()
    conversation = await ann.open("group", bob)
    other = await ann.open("group")
    path = f"/conversations/{conversation}"
    async with phone.wire() as second, ann.wire() as first, bob.wire() as foreign:
        view = (await ann.http.patch(path + "/preferences", json={"archived": True, "pinned": True})).json()
        told = await second.hear("conversation:preferences")
        assert (told["archived"], told["pinnedAt"], told["mutedUntil"]) == (True, view["pinnedAt"], None)
        draft = (await ann.http.put(path + "/draft", json={"content": "beg"})).json()
        assert (await second.hear("draft:changed"))["draft"] == draft
        await first.say("draft:set", conversationId=conversation, content="begun", ref="1")
        assert (await first.hear("ok"))["ref"] == "1"
        assert (await second.hear("draft:changed"))["draft"]["content"] == "begun"
        assert [each["content"] for each in (await phone.http.get("/drafts")).json()["items"]] == ["begun"]
        assert (await phone.http.delete(path + "/draft")).status_code == 204
        assert (await first.hear("draft:changed"))["draft"]["content"] is None
        assert await second.fence() == await foreign.fence() == []
    for archived, expected in (("true", [conversation]), ("false", [other])):
        listed = (await ann.http.get("/conversations", params={"archived": archived})).json()["items"]
        assert [each["id"] for each in listed] == expected
    assert refusal(await ann.http.get("/conversations", params={"archived": "perhaps"})) == (422, "invalid-request")
    assert refusal(await ann.http.patch(path + "/preferences", json={"mutedUntil": "soon"})) == (422, "invalid-request")


CALLS: list[tuple[str, Callable[[Person, str], Awaitable[httpx.Response]]]] = [
    ("preview", lambda person, code: person.http.get(f"/join/{code}")),
    ("join", join),
]


@pytest.mark.parametrize("call", [call for _name, call in CALLS], ids=[name for name, _call in CALLS])
async def test_a_code_that_nobody_made_leads_nowhere(
    house: House, call: Callable[[Person, str], Awaitable[httpx.Response]]
) -> None:
    [ann] = await house.people(1)
    for code in ("x" * 15, "x" * 16, "x" * 64, "x" * 65, new_id(), "%00" * 20, "..%2F" * 5, "é" * 20):
        assert refusal(await call(ann, code)) == (404, "not-found"), code
