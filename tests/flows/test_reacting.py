"""Reactions, polls and threads over the real server: both transports do the same, and devices that were away catch up."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trio

from config import limits
from tests.house import House, Person, Wire, open_house

HEART = "❤️"
EMOJIS = [
    "👍",
    "🎉",
    "😀",
    "😂",
    "😍",
    "😎",
    "😢",
    "😡",
    "👏",
    "🙏",
    "🔥",
    "💯",
    "🚀",
    "👀",
    "✅",
    "❌",
    "🤔",
]  # more than a second takes


async def react(who: Person, message: str, emoji: str, *, method: str = "PUT") -> httpx.Response:
    return await who.http.request(method, f"/messages/{message}/reactions/{quote(emoji, safe='')}")


async def read(who: Person, message: str) -> dict[str, Any]:
    found: dict[str, Any] = (await who.http.get(f"/messages/{message}")).raise_for_status().json()
    return found


async def ask(who: Person, conversation: str, *options: str, **more: Any) -> str:
    poll = {"options": list(options), **more}
    answer = await who.post(conversation, "which?", "-".join(options), kind="poll", poll=poll)
    return str(answer.raise_for_status().json()["id"])


async def say_and_hear_ok(wire: Wire, type: str, **fields: Any) -> list[dict[str, Any]]:
    """What came before the confirmation."""
    await wire.say(type, ref=type, **fields)
    frames = await wire.hear_until("ok")
    assert frames[-1]["ref"] == type
    return frames[:-1]


# --- reactions --------------------------------------------------------------------------------------------------------


async def test_a_reaction_over_either_transport_is_one_reaction(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("group", bob)
    message = (await ann.post(conversation, "news", "t-1")).json()["id"]
    async with ann.wire() as listener, bob.wire() as wire:
        assert (await react(bob, message, "❤")).status_code == 204
        told = await listener.hear("reaction:added")
        assert (told["emoji"], told["userId"], told["messageId"]) == (HEART, bob.id, message)
        assert told["reactions"] == [{"emoji": HEART, "count": 1, "userIds": [bob.id]}]
        await say_and_hear_ok(wire, "reaction:add", messageId=message, emoji=HEART)
        assert await listener.fence() == [], "he had reacted so already"
        await say_and_hear_ok(wire, "reaction:remove", messageId=message, emoji="❤")
        assert (await listener.hear("reaction:removed"))["reactions"] == []
        assert (await react(bob, message, HEART, method="DELETE")).status_code == 204
        assert await listener.fence() == []
    assert (await read(ann, message))["reactions"] == []


async def test_the_history_shows_reactions_and_which_are_ones_own(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    message = (await ann.post(conversation, "news", "t-1")).json()["id"]
    await react(bob, message, "👍")
    await react(bob, message, "🎉")
    await react(ann, message, "🎉")
    [shown] = await ann.history(conversation)
    assert shown["reactions"] == [
        {"emoji": "👍", "count": 1, "userIds": [bob.id], "mine": False},
        {"emoji": "🎉", "count": 2, "userIds": [bob.id, ann.id], "mine": True},
    ]
    listed = (await ann.http.get(f"/messages/{message}/reactions")).json()["items"]
    assert sorted((each["userId"], each["emoji"]) for each in listed) == sorted(
        [(bob.id, "👍"), (bob.id, "🎉"), (ann.id, "🎉")]
    )
    only = (await ann.http.get(f"/messages/{message}/reactions", params={"emoji": "👍", "limit": 1})).json()
    assert [each["userId"] for each in only["items"]] == [bob.id] and only["next"] is None


async def test_a_device_that_was_away_hears_what_the_reactions_are_by_now(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    message = (await ann.post(conversation, "news", "t-1")).json()["id"]
    await react(bob, message, "👍")
    await react(bob, message, "🎉")
    await react(bob, message, "👍", method="DELETE")
    async with ann.wire(cursors={conversation: 1}) as wire:
        told = [frame for frame in wire.missed if frame["type"].startswith("reaction:")]
        assert [frame["sequenceNumber"] for frame in told] == [2, 3, 4]
        for frame in told:
            assert frame["reactions"] == [{"emoji": "🎉", "count": 1, "userIds": [bob.id], "mine": False}]


async def test_a_storm_of_reactions_is_told_in_part_and_its_end_in_full(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    message = (await ann.post(conversation, "news", "t-1")).json()["id"]
    async with ann.wire() as listener, bob.wire() as wire:
        for emoji in EMOJIS:
            await wire.say("reaction:add", messageId=message, emoji=emoji)
        heard: list[dict[str, Any]] = []
        while not heard or len(heard[-1]["reactions"]) < len(EMOJIS):
            heard.append(await listener.hear("reaction:added"))
        assert limits.CHANGES_TOLD_PER_SECOND <= len(heard) <= len(EMOJIS)
        assert [frame["sequenceNumber"] for frame in heard] == list(range(2, 2 + len(heard)))
    assert len((await read(ann, message))["reactions"]) == len(EMOJIS)


@pytest.mark.parametrize(
    ("emoji", "status", "code"),
    [
        ("no", 422, "invalid-request"),
        ("👍👍", 422, "invalid-request"),
        ("👍" * 17, 404, "not-found"),
        ("a/b", 422, "invalid-request"),
    ],
)
async def test_what_is_no_emoji_is_refused_over_both_transports(
    house: House, emoji: str, status: int, code: str
) -> None:
    [ann] = await house.people(1)
    conversation = await ann.open("group")
    message = (await ann.post(conversation, "news", "t-1")).json()["id"]
    for method in ("PUT", "DELETE"):
        answer = await react(ann, message, emoji, method=method)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    async with ann.wire() as wire:
        for kind in ("reaction:add", "reaction:remove"):
            await wire.say(kind, messageId=message, emoji=emoji)
            await wire.refused("invalid-request")


async def test_reactions_of_the_same_moment_are_all_counted(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    message = (await ann.post(conversation, "news", "t-1")).json()["id"]
    async with trio.open_nursery() as nursery:
        for emoji in ("👍", "🎉", HEART):
            for who in (ann, bob):
                nursery.start_soon(react, who, message, emoji)
    shown = await read(bob, message)
    assert {(each["emoji"], each["count"], each["mine"]) for each in shown["reactions"]} == {
        ("👍", 2, True),
        ("🎉", 2, True),
        (HEART, 2, True),
    }


async def test_a_storm_that_the_end_of_the_server_cut_off_is_told_by_the_next_one(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data") as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        message = (await ann.post(conversation, "news", "t-1")).json()["id"]
        async with bob.wire() as wire:
            for emoji in EMOJIS:
                await wire.say("reaction:add", messageId=message, emoji=emoji)
            await wire.fence()
            told = (await ann.view(conversation))["sequenceNumber"]
    async with open_house(tmp_path / "data") as house:
        back = await house.back(ann)
        async with back.wire(cursors={conversation: told}) as wire:
            frames = [frame for frame in wire.missed if frame["type"] == "reaction:added"]
            assert [frame["sequenceNumber"] for frame in frames] == [told + 1]
            assert [each["emoji"] for each in frames[0]["reactions"]] == EMOJIS


# --- polls ------------------------------------------------------------------------------------------------------------


async def test_a_poll_is_asked_answered_and_closed(house: House) -> None:
    ann, bob, carol = await house.people(3)
    conversation = await ann.open("group", bob, carol)
    poll = await ask(bob, conversation, "tea", "coffee")
    async with ann.wire() as listener, carol.wire() as wire:
        answer = await ann.http.put(f"/messages/{poll}/vote", json={"options": [1]})
        assert answer.json()["options"] == [{"text": "tea", "count": 0}, {"text": "coffee", "count": 1}]
        assert (answer.json()["myOptions"], answer.json()["voters"]) == ([1], 1)
        await listener.hear("poll:changed")
        await wire.hear("poll:changed")
        await wire.say("poll:vote", messageId=poll, options=[0], ref="v")
        told = await listener.hear("poll:changed")
        assert [option["count"] for option in told["poll"]["options"]] == [1, 1]
        assert "myOptions" not in told["poll"]
        assert (await carol.http.post(f"/messages/{poll}/poll/close")).status_code == 403
        closed = (await bob.http.post(f"/messages/{poll}/poll/close")).json()
        assert closed["closedAt"] is not None and closed["myOptions"] == []
        assert (await listener.hear("poll:changed"))["poll"]["closedAt"] == closed["closedAt"]
    refusal = await carol.http.put(f"/messages/{poll}/vote", json={"options": []})
    assert (refusal.status_code, refusal.json()["code"]) == (409, "poll-closed")
    votes = (await carol.http.get(f"/messages/{poll}/votes")).json()["items"]
    assert {vote["userId"]: vote["options"] for vote in votes} == {ann.id: [1], carol.id: [0]}
    assert (await read(carol, poll))["poll"]["myOptions"] == [0]


async def test_an_anonymous_poll_names_nobody(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    poll = await ask(ann, conversation, "yes", "no", anonymous=True)
    async with ann.wire() as listener:
        assert (await bob.http.put(f"/messages/{poll}/vote", json={"options": [0]})).status_code == 200
        told = await listener.hear("poll:changed")
        assert bob.id not in str(told) and told["poll"]["voters"] == 1
    for who in (ann, bob):
        answer = await who.http.get(f"/messages/{poll}/votes")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


# --- threads ----------------------------------------------------------------------------------------------------------


async def test_replies_make_a_thread_with_an_unread_count_of_its_own(house: House) -> None:
    ann, bob = await house.people(2)
    tablet = await bob.another_device()
    conversation = await ann.open("direct", bob)
    root = (await ann.post(conversation, "root", "t-1")).json()["id"]
    first = (await ann.post(conversation, "one", "t-2", replyToId=root)).json()
    second = (await ann.post(conversation, "two", "t-3", replyToId=first["id"])).json()
    assert first["threadId"] == second["threadId"] == root
    page = (await bob.http.get(f"/messages/{second['id']}/thread")).json()
    assert (page["root"]["id"], page["replyCount"], page["unreadCount"]) == (root, 2, 2)
    assert [item["content"] for item in page["items"]] == ["two", "one"]
    async with tablet.wire() as other, bob.wire() as wire:
        await say_and_hear_ok(wire, "thread:read", messageId=root, sequenceNumber=2)
        told = await other.hear("thread:read")
        assert (told["messageId"], told["sequenceNumber"]) == (root, 2)
        answer = await bob.http.put(f"/messages/{root}/thread/read", json={"sequenceNumber": 1})
        assert answer.status_code == 204 and await other.fence() == []
    [line] = (await bob.http.get(f"/conversations/{conversation}/threads")).json()["items"]
    assert (line["root"]["id"], line["replyCount"], line["unreadCount"]) == (root, 2, 1)
    assert line["lastReply"]["id"] == second["id"]
    newer = (await bob.http.get(f"/messages/{root}/thread", params={"after": 2, "limit": 1})).json()
    assert [item["id"] for item in newer["items"]] == [second["id"]] and newer["next"] is None
