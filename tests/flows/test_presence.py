"""Presence as clients meet it: who is told of whom, on which devices, and who is told nothing."""

from pathlib import Path
from typing import Any

import pytest
import trio

from config import limits
from gearlink.clock import new_id, rfc3339
from tests.fakes import FakeClock
from tests.house import SECONDS_MAX, House, Person, Wire, open_house


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """No grace, and changes are told as they come: what has to happen is waited for, not its time."""
    monkeypatch.setattr(limits, "PRESENCE_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(limits, "PRESENCE_TOLD_SECONDS", 0.01)


async def watch(wire: Wire, *people: Person) -> list[dict[str, Any]]:
    """What is answered, in the order of the people."""
    await wire.say("presence:watch", userIds=[person.id for person in people], ref="w")
    *answers, done = await wire.hear_until("ok")
    assert done["ref"] == "w" and [each.pop("userId") for each in answers] == [person.id for person in people]
    assert all(each.pop("type") == "presence" for each in answers)
    return answers


async def heard(wire: Wire, person: Person) -> dict[str, Any]:
    """The next frame, which has to be this person's presence."""
    frame = await wire.hear("presence")
    assert frame["userId"] == person.id, frame
    return {key: value for key, value in frame.items() if key in ("status", "lastSeenAt")}


async def gone(house: House, person: Person) -> None:
    """Returns once the server has seen that the person has no socket any more, and has stored it."""
    with trio.fail_after(SECONDS_MAX):
        while house.app.domain.presence.is_online(person.id):
            await trio.lowlevel.checkpoint()


async def test_several_devices_make_one_presence(tmp_path: Path) -> None:
    clock = FakeClock()
    async with open_house(tmp_path / "data", clock=clock) as house:
        ann, bob, eve = await house.people(3)
        tablet = await ann.another_device()
        async with bob.wire() as watcher:
            assert await watch(watcher, ann, eve) == [{"status": "offline"}, {"status": "offline"}]
            async with tablet.wire():
                async with ann.wire():
                    assert await heard(watcher, ann) == {"status": "online"}
                async with ann.wire(), eve.wire():
                    assert await heard(watcher, eve) == {"status": "online"}  # and nothing of Ann before it
                await gone(house, eve)
                assert (await heard(watcher, eve))["status"] == "offline"
                clock.advance(seconds=5)
            assert await heard(watcher, ann) == {"status": "offline", "lastSeenAt": rfc3339(clock.now())}
            assert (await watch(watcher, ann))[0]["lastSeenAt"] == rfc3339(clock.now())


async def test_a_reconnect_within_the_grace_is_not_told(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PRESENCE_GRACE_SECONDS", 600.0)
    ann, bob, eve = await house.people(3)
    async with bob.wire() as watcher:
        await watch(watcher, ann, eve)
        for _ in range(3):
            async with ann.wire():
                pass
        async with eve.wire():
            assert (await heard(watcher, ann))["status"] == "online"
            assert (await heard(watcher, eve))["status"] == "online"
        assert await watch(watcher, ann, eve) == [{"status": "online"}] * 2
        assert await watcher.fence() == []


async def test_who_only_calls_over_rest_is_not_here(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with bob.wire() as watcher:
        await watch(watcher, ann)
        assert (await ann.post(conversation, "hello", "t-1")).status_code == 201
        await watcher.hear("message:new")
        assert await watch(watcher, ann) == [{"status": "offline"}]


@pytest.mark.parametrize("blocker", ["the watched", "the watcher"])
async def test_a_block_ends_what_is_heard_and_looks_like_somebody_unknown(house: House, blocker: str) -> None:
    ann, bob, eve = await house.people(3)
    one, other = (ann, bob) if blocker == "the watched" else (bob, ann)
    async with bob.wire() as watcher:
        async with eve.wire():
            async with ann.wire():
                assert await watch(watcher, ann, eve) == [{"status": "online"}] * 2
                await one.http.put(f"/blocks/{other.id}")
            await gone(house, ann)
        assert (await heard(watcher, eve))["status"] == "offline"  # and nothing of Ann before it
        async with ann.wire():
            assert await watch(watcher, ann) == [{"status": "offline"}]
            await watcher.say("presence:watch", userIds=[unknown := new_id()])
            assert await watcher.hear("presence") == {"type": "presence", "userId": unknown, "status": "offline"}
            await one.http.delete(f"/blocks/{other.id}")
            assert await watch(watcher, ann) == [{"status": "online"}]


async def test_who_shows_it_to_nobody_or_to_contacts_is_offline_for_the_others(house: House) -> None:
    ann, bob, eve = await house.people(3)
    async with bob.wire() as stranger, eve.wire() as contact, ann.wire() as own:
        await ann.http.put(f"/contacts/{eve.id}", json={})
        for audience, seen in (("everyone", 2), ("contacts", 1), ("nobody", 0)):
            await ann.http.patch("/users/me/privacy", json={"lastSeen": audience})
            answers = [await watch(wire, ann) for wire in (contact, stranger)]
            statuses = [answer["status"] for [answer] in answers]
            assert statuses == ["online"] * seen + ["offline"] * (2 - seen), audience
            assert await watch(own, ann) == [{"status": "online"}]
        assert [await watch(wire, ann) for wire in (contact, stranger)] == [[{"status": "offline"}]] * 2


async def test_another_set_replaces_the_one_before_and_an_empty_one_ends_it(house: House) -> None:
    ann, bob, eve = await house.people(3)
    async with bob.wire() as watcher:
        await watch(watcher, ann)
        await watch(watcher, eve)
        async with ann.wire(), eve.wire():
            assert (await heard(watcher, eve))["status"] == "online"
            assert await watch(watcher) == []
        await gone(house, ann)
        await gone(house, eve)
        assert await watcher.fence() == []


async def test_nothing_is_kept_of_who_watched_and_left(house: House) -> None:
    ann, bob = await house.people(2)
    async with bob.wire() as watcher:
        await watch(watcher, ann)
    await gone(house, bob)
    assert not house.app.domain.presence._watched


async def test_when_somebody_was_last_seen_is_there_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PRESENCE_GRACE_SECONDS", 600.0)  # the end does not wait for it
    clock = FakeClock()
    async with open_house(tmp_path / "data", clock=clock) as house:
        ann, bob = await house.people(2)
        await house.at_end.enter_async_context(ann.wire())  # until the server is about to end
        clock.advance(seconds=7)
    async with open_house(tmp_path / "data", clock=clock) as house, (await house.back(bob)).wire() as watcher:
        assert await watch(watcher, ann) == [{"status": "offline", "lastSeenAt": rfc3339(clock.now())}]


async def test_too_many_users_or_calls_are_refused_and_the_socket_stays(house: House) -> None:
    ann, bob = await house.people(2)
    async with bob.wire() as watcher:
        await watcher.say("presence:watch", userIds=[ann.id] * (limits.WATCHED_MAX + 1), ref="r")
        assert (await watcher.refused("invalid-request"))["ref"] == "r"
        await watcher.say("presence:watch", userIds=["nobody"])
        await watcher.refused("invalid-request")
        for _ in range(100):
            await watcher.say("presence:watch", userIds=[])
        refusals = await watcher.fence()
        assert refusals and {frame["code"] for frame in refusals} == {"rate-limited"}
        assert all(0 < frame["retryAfterMs"] <= 1000 for frame in refusals)
