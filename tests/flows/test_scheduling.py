"""Scheduled messages: they wait durably, may be changed or cancelled, go out once at their time, or come back with a reason."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gearlink.clock import rfc3339
from storage.records import Scheduled
from tests.fakes import FakeClock
from tests.house import House, Person, open_house

HOUR = 3_600_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def house(tmp_path: Path, clock: FakeClock) -> AsyncIterator[House]:
    async with open_house(tmp_path / "data", clock=clock, auth__access_token_minutes="1440") as opened:
        yield opened


async def later(
    person: Person, clock: FakeClock, conversation_id: str, content: str, temp_id: str, ms: int = HOUR, **more: Any
) -> dict[str, Any]:
    """Schedules a message; its view."""
    form = {"content": content, "tempId": temp_id, "sendAt": rfc3339(clock.now() + ms), **more}
    answer = await person.http.post(f"/conversations/{conversation_id}/scheduled", json=form)
    assert answer.status_code == 201, answer.text
    view: dict[str, Any] = answer.json()
    return view


async def waiting(person: Person, conversation_id: str) -> list[dict[str, Any]]:
    answer = await person.http.get(f"/conversations/{conversation_id}/scheduled")
    items: list[dict[str, Any]] = answer.raise_for_status().json()["items"]
    return items


async def test_it_goes_out_at_its_time_once_and_all_devices_of_its_writer_are_told(
    house: House, clock: FakeClock
) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("group", bob)
    tablet = await ann.another_device()
    async with ann.wire() as phone, tablet.wire() as other, bob.wire() as theirs:
        view = await later(ann, clock, room, "good morning", "t-1", mentions=[bob.id])
        assert (view["content"], view["mentions"], view["tempId"]) == ("good morning", [bob.id], "t-1")
        assert (await other.hear("scheduled:changed"))["scheduled"]["id"] == view["id"]
        assert await phone.fence() == []
        assert await waiting(ann, room) == [view]
        await house.app.timers.tick()
        assert await theirs.fence() == []
        clock.advance(minutes=61)
        await house.app.timers.tick()
        for wire in (phone, other):
            new = await wire.hear("message:new")
            assert new["message"]["tempId"] == "t-1"
            assert new["message"]["senderDeviceId"] is None
            gone = await wire.hear("scheduled:removed")
            assert (gone["scheduledId"], gone["conversationId"]) == (view["id"], room)
        heard = await theirs.hear("message:new")
        assert (heard["message"]["content"], heard["message"]["senderId"]) == ("good morning", ann.id)
        await house.app.timers.tick()
        assert await theirs.fence() == []
    assert [message["content"] for message in await bob.history(room)] == ["good morning"]
    assert await waiting(ann, room) == []


async def test_the_same_temp_id_is_one_message_before_and_after_it_went_out(house: House, clock: FakeClock) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("direct", bob)
    first = await later(ann, clock, room, "once", "t-1")
    assert await later(ann, clock, room, "once", "t-1") == first
    clock.advance(minutes=61)
    await house.app.timers.tick()
    form = {"content": "once", "tempId": "t-1", "sendAt": rfc3339(clock.now() + HOUR)}
    refused = await ann.http.post(f"/conversations/{room}/scheduled", json=form)
    assert (refused.status_code, refused.json()["code"]) == (409, "already-sent")
    sent = (await ann.post(room, "once", "t-1")).raise_for_status().json()
    assert [message["id"] for message in await bob.history(room)] == [sent["messageId"]]


async def test_until_it_goes_out_it_can_be_changed_or_cancelled_by_its_writer_alone(
    house: House, clock: FakeClock
) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("group", bob)
    kept = await later(ann, clock, room, "first thought", "t-1")
    dropped = await later(ann, clock, room, "never mind", "t-2")
    for method, form in (("PATCH", {"content": "hm"}), ("DELETE", None)):
        other = await bob.http.request(method, f"/scheduled/{kept['id']}", json=form)
        assert other.status_code == 404
    assert await waiting(bob, room) == []
    change = {"content": "second thought", "sendAt": rfc3339(clock.now() + 2 * HOUR)}
    changed = (await ann.http.patch(f"/scheduled/{kept['id']}", json=change)).raise_for_status().json()
    assert (changed["content"], changed["sendAt"]) == ("second thought", change["sendAt"])
    assert (await ann.http.delete(f"/scheduled/{dropped['id']}")).status_code == 204
    assert (await ann.http.delete(f"/scheduled/{dropped['id']}")).status_code == 404
    clock.advance(minutes=61)
    await house.app.timers.tick()
    assert await bob.history(room) == []
    clock.advance(minutes=60)
    await house.app.timers.tick()
    assert [message["content"] for message in await bob.history(room)] == ["second thought"]


async def test_who_may_not_write_any_more_gets_it_back_with_the_reason_and_may_try_again(
    house: House, clock: FakeClock
) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("group", bob)
    view = await later(bob, clock, room, "too late", "t-1")
    only_staff = {"settings": {"write": "admins"}}
    (await ann.http.patch(f"/conversations/{room}", json=only_staff)).raise_for_status()
    async with bob.wire() as wire:
        clock.advance(minutes=61)
        await house.app.timers.tick()
        assert (await wire.hear("scheduled:changed"))["scheduled"]["trouble"] == "forbidden"
    [returned] = await waiting(bob, room)
    assert (returned["id"], returned["trouble"]) == (view["id"], "forbidden")
    await house.app.timers.tick()
    assert [message for message in await ann.history(room) if message["kind"] == "text"] == []
    (await ann.http.patch(f"/conversations/{room}", json={"settings": {"write": "everyone"}})).raise_for_status()
    again = await bob.http.patch(f"/scheduled/{view['id']}", json={"sendAt": rfc3339(clock.now() + 1000)})
    assert "trouble" not in again.raise_for_status().json()
    clock.advance(seconds=2)
    await house.app.timers.tick()
    assert [message["content"] for message in await ann.history(room) if message["kind"] == "text"] == ["too late"]


async def test_what_was_to_be_sent_goes_with_its_writer_or_with_the_conversation(
    house: House, clock: FakeClock
) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("group", bob)
    view = await later(bob, clock, room, "from outside", "t-1")
    async with bob.wire() as wire:
        (await bob.http.delete(f"/conversations/{room}/members/{bob.id}")).raise_for_status()
        assert (await wire.hear_until("scheduled:removed"))[-1]["scheduledId"] == view["id"]
    assert await house.app.store.scan(Scheduled, bob.id, limit=9) == []
    await later(ann, clock, room, "to nobody", "t-2")
    (await ann.http.delete(f"/conversations/{room}")).raise_for_status()
    clock.advance(minutes=61)
    await house.app.timers.tick()
    assert await house.app.store.scan(Scheduled, ann.id, limit=9) == []


async def test_who_sets_another_time_while_it_is_being_refused_has_the_last_word(
    house: House, clock: FakeClock
) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("group", bob)
    view = await later(bob, clock, room, "in the end", "t-1")
    (await ann.http.patch(f"/conversations/{room}", json={"settings": {"write": "admins"}})).raise_for_status()
    clock.advance(minutes=61)
    store = house.app.store
    write = store.write

    async def interrupted(change: Any) -> Any:
        """The next change is refused; before anything else is done with that, the writer may write and says when."""
        store.write = write  # type: ignore[method-assign]
        try:
            return await write(change)
        finally:
            (
                await ann.http.patch(f"/conversations/{room}", json={"settings": {"write": "everyone"}})
            ).raise_for_status()
            form = {"sendAt": rfc3339(clock.now() + 1000)}
            (await bob.http.patch(f"/scheduled/{view['id']}", json=form)).raise_for_status()

    store.write = interrupted  # type: ignore[method-assign]
    await house.app.domain.schedule.send_due(view["id"], bob.id)
    clock.advance(seconds=2)
    await house.app.timers.tick()
    assert [message["content"] for message in await ann.history(room) if message["kind"] == "text"] == ["in the end"]


async def test_what_waits_survives_a_restart_and_what_was_missed_goes_out_then(
    tmp_path: Path, clock: FakeClock
) -> None:
    async with open_house(tmp_path / "kept", clock=clock, auth__access_token_minutes="1440") as house:
        ann, bob = await house.people(2)
        room = await ann.open("direct", bob)
        await later(ann, clock, room, "from before", "t-1")
    clock.advance(minutes=90)
    async with open_house(tmp_path / "kept", clock=clock, auth__access_token_minutes="1440") as house:
        await house.app.timers.tick()
        again = await house.back(bob)
        assert [message["content"] for message in await again.history(room)] == ["from before"]


@pytest.mark.parametrize(
    ("form", "path"),
    [
        ({"sendAt": "2020-01-01T00:00:00Z"}, "sendAt"),
        ({"sendAt": "2040-01-01T00:00:00Z"}, "sendAt"),
        ({"sendAt": "2026-13-01T00:00:00Z"}, "sendAt"),
        ({"sendAt": "tomorrow"}, "sendAt"),
        ({"content": ""}, "content"),
        ({"kind": "location", "content": "here"}, "content"),
        ({"replyToId": "00000000-0000-7000-8000-000000000000"}, "replyToId"),
    ],
)
async def test_what_could_never_go_out_is_refused_at_once(
    house: House, clock: FakeClock, form: dict[str, Any], path: str
) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("direct", bob)
    whole = {"content": "x", "tempId": "t-1", "sendAt": rfc3339(clock.now() + HOUR), **form}
    refused = await ann.http.post(f"/conversations/{room}/scheduled", json=whole)
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, path)


async def test_nobody_schedules_where_they_are_not(house: House, clock: FakeClock) -> None:
    ann, bob, cid = await house.people(3)
    room = await ann.open("direct", bob)
    form = {"content": "x", "tempId": "t-1", "sendAt": rfc3339(clock.now() + HOUR)}
    assert (await cid.http.post(f"/conversations/{room}/scheduled", json=form)).status_code == 404
    assert (await cid.http.get(f"/conversations/{room}/scheduled")).status_code == 404


async def test_a_scheduled_message_whose_temp_id_was_used_meanwhile_comes_back_and_does_not_vanish(
    house: House, clock: FakeClock
) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("direct", bob)
    view = await later(ann, clock, room, "later", "t-1")
    (await ann.post(room, "now", "t-1")).raise_for_status()
    clock.advance(minutes=61)
    await house.app.timers.tick()
    [returned] = await waiting(ann, room)
    assert (returned["id"], returned["trouble"]) == (view["id"], "already-sent")
    assert [message["content"] for message in await bob.history(room)] == ["now"]
