"""Messages that disappear: for a late device, in the history, in counts and in quotes nothing is left of them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.records import Amendment, LogEntry, MessageIndex
from tests.fakes import FakeClock
from tests.house import House, open_house


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def house(tmp_path: Path, clock: FakeClock) -> AsyncIterator[House]:
    async with open_house(tmp_path / "data", clock=clock, auth__access_token_minutes="1440") as opened:
        yield opened


async def test_it_is_gone_from_the_history_at_its_time_and_from_the_disk_a_moment_later(
    house: House, clock: FakeClock
) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("direct", bob)
    await ann.post(room, "stays", "t-1")
    sent = (await ann.post(room, "canary-goes", "t-2", expiresInSeconds=60)).raise_for_status().json()
    assert "expiresAt" in sent
    clock.advance(seconds=59)
    assert [message["content"] for message in await bob.history(room)] == ["stays", "canary-goes"]
    assert (await bob.view(room))["unreadCount"] == 2
    clock.advance(seconds=1)
    for swept in (False, True):
        if swept:
            await house.app.timers.tick()
        assert [message["content"] for message in await bob.history(room)] == ["stays"]
        assert (await bob.http.get(f"/messages/{sent['id']}")).status_code == 404
        view = await bob.view(room)
        assert (view["unreadCount"], view["lastMessage"]["content"]) == (1, "stays")
    store = house.app.store
    assert await store.get(LogEntry, room, 2) is None
    assert await store.get(MessageIndex, sent["id"]) is None
    assert b"canary" not in repr(await store.scan(Amendment, room, limit=9)).encode()


async def test_a_late_device_never_gets_it_and_misses_no_number(house: House, clock: FakeClock) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("direct", bob)
    await ann.post(room, "one", "t-1")
    gone = (await ann.post(room, "canary-two", "t-2", expiresInSeconds=5)).json()
    await ann.post(room, "three", "t-3")
    clock.advance(seconds=5)
    for swept in (False, True):
        if swept:
            await house.app.timers.tick()
        async with bob.wire(cursors={room: 0}) as wire:
            told = [frame for frame in wire.missed if frame["type"] in ("message:new", "message:expired")]
            numbers = [frame.get("sequenceNumber") or frame["message"]["sequenceNumber"] for frame in told]
            assert numbers == ([1, 2, 3, 4] if swept else [1, 2, 3])
            assert told[1]["type"] == "message:expired"
            assert told[1]["messageIds"] == [gone["id"]]
            assert "canary" not in repr(wire.missed)


async def test_who_is_there_is_told_when_it_disappears(house: House, clock: FakeClock) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("direct", bob)
    async with bob.wire() as wire:
        sent = (await ann.post(room, "soon gone", "t-1", expiresInSeconds=5)).json()
        assert (await wire.hear("message:new"))["message"]["expiresAt"] == sent["expiresAt"]
        clock.advance(seconds=6)
        await house.app.timers.tick()
        expired = await wire.hear("message:expired")
        assert (expired["messageIds"], expired["sequenceNumber"]) == ([sent["id"]], 2)
        assert await wire.fence() == []


async def test_the_timer_of_a_conversation_is_for_what_is_sent_from_then_on(house: House, clock: FakeClock) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("direct", bob)
    await ann.post(room, "before", "t-1")
    change = {"settings": {"disappearingSeconds": 3600}}
    view = (await bob.http.patch(f"/conversations/{room}", json=change)).raise_for_status().json()
    assert view["settings"]["disappearingSeconds"] == 3600
    await ann.post(room, "after", "t-2")
    await ann.post(room, "sooner", "t-3", expiresInSeconds=10)
    clock.advance(seconds=10)
    await house.app.timers.tick()
    said = [message["content"] for message in await bob.history(room) if message["kind"] == "text"]
    assert said == ["before", "after"]
    clock.advance(minutes=60)
    await house.app.timers.tick()
    said = [message["content"] for message in await bob.history(room) if message["kind"] == "text"]
    assert said == ["before"]


async def test_nothing_of_it_is_left_in_replies_edits_reactions_or_pins(house: House, clock: FakeClock) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("direct", bob)
    gone = (await ann.post(room, "canary", "t-1", expiresInSeconds=30)).json()["id"]
    (await ann.http.patch(f"/messages/{gone}", json={"content": "canary again"})).raise_for_status()
    (await bob.http.put(f"/messages/{gone}/reactions/%F0%9F%91%8D")).raise_for_status()
    (await bob.http.put(f"/messages/{gone}/pin")).raise_for_status()
    reply = (await bob.post(room, "so they say", "t-1", replyToId=gone)).raise_for_status().json()
    assert reply["replyTo"]["content"] == "canary again"
    clock.advance(seconds=30)
    await house.app.timers.tick()
    assert (await ann.http.get(f"/messages/{reply['id']}")).json()["replyTo"] is None
    assert (await ann.http.get(f"/conversations/{room}/pins")).json()["items"] == []
    for path in ("revisions", "reactions"):
        assert (await ann.http.get(f"/messages/{gone}/{path}")).status_code == 404
    newcomer = await bob.another_device()
    async with newcomer.wire() as wire:
        assert "canary" not in repr(wire.missed)
