"""Sync: what a client without a socket is told, call by call, and how long a call waits for something to tell."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from config import limits
from gearlink.clock import new_id
from tests.flows.test_resuming import numbers, say
from tests.house import SECONDS_MAX, House, Person


class Caller:
    """A client without a socket: it keeps what the answers say, and goes on from there."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.epoch: str | None = None
        self.cursors: dict[str, int] = {}

    async def sync(self, **form: Any) -> dict[str, Any]:
        given = {"epoch": self.epoch, "cursors": self.cursors, **form}
        answer = await self.person.http.post("/sync", json={key: value for key, value in given.items() if value})
        found: dict[str, Any] = answer.raise_for_status().json()
        self.epoch, self.cursors = found["epoch"], found["cursors"]
        return found

    async def drained(self, **form: Any) -> list[dict[str, Any]]:
        """Everything that there is, over as many calls as that takes."""
        events: list[dict[str, Any]] = []
        while True:
            answer = await self.sync(**form)
            events += answer["events"]
            if answer["complete"]:
                return events


async def test_the_first_sync_is_state_and_past_and_the_next_one_only_what_is_new(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("group", bob, name="Garden")
    await say(ann, conversation, 3)
    caller = Caller(bob)
    first = await caller.sync()
    assert [view["name"] for view in first["conversations"]] == ["Garden"]
    assert numbers(first["events"], conversation) == [1, 2, 3] and first["complete"]
    assert caller.cursors == {conversation: 3} and "reload" not in first
    await say(ann, conversation, 1)
    second = await caller.sync()
    assert numbers(second["events"], conversation) == [4]
    assert [view["sequenceNumber"] for view in second["conversations"]] == [4]
    third = await caller.sync()
    assert (third["events"], third["conversations"], third["complete"]) == ([], [], True)
    assert caller.cursors == {conversation: 4}


async def test_a_long_past_comes_in_pieces_without_gap_or_repetition(house: House) -> None:
    ann, bob = await house.people(2)
    rooms = [await ann.open("group", bob) for _ in range(3)]
    for room in rooms:
        await say(ann, room, 7)
    caller, events = Caller(bob), []
    for _call in range(100):
        answer = await caller.sync(limit=4)
        logged = [event for event in answer["events"] if event["type"] == "message:new"]
        assert len(logged) <= 4
        events += logged
        if answer["complete"]:
            break
    assert answer["complete"]
    for room in rooms:
        assert numbers(events, room) == list(range(1, 8))


async def test_an_answer_is_bounded_in_bytes_and_in_conversations(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SYNC_VIEWS_MAX", 2)
    monkeypatch.setattr(limits, "SYNC_ANSWER_BYTES_MAX", 100_000)
    ann, bob = await house.people(2)
    rooms = [await ann.open("group", bob) for _ in range(5)]
    caller, seen = Caller(bob), []
    first = await caller.sync()
    seen += first["conversations"]
    assert len(seen) == len(caller.cursors) == 2 and not first["complete"]
    while not (answer := await caller.sync())["complete"]:
        seen += answer["conversations"]
    seen += answer["conversations"]
    assert sorted(view["id"] for view in seen) == sorted(rooms) == sorted(caller.cursors)
    for _ in range(100):
        await ann.post(rooms[0], "a" * 4000, new_id())
    answer = await caller.sync()
    assert 25 <= len(answer["events"]) < 100 and not answer["complete"]
    assert len(answer["events"]) + len(await caller.drained()) >= 100


async def test_a_waiting_call_is_answered_by_the_next_message(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    caller = Caller(bob)
    await caller.drained()
    async with waiting(house, caller) as answers:
        await say(ann, conversation, 1)
    assert numbers(answers[0]["events"], conversation) == [1]
    assert caller.cursors == {conversation: 1}


@asynccontextmanager
async def waiting(house: House, caller: Caller, seconds: float = 60) -> AsyncIterator[list[dict[str, Any]]]:
    """A call of `caller` waits while the block begins, and is answered by its end; the answer is put into the list."""
    answers: list[dict[str, Any]] = []

    async def call() -> None:
        answers.append(await caller.sync(waitSeconds=seconds))

    before = waiters(house)
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await until(lambda: waiters(house) > before)
            yield answers


def waiters(house: House) -> int:
    """How many calls wait at this moment."""
    return len(house.app.hub._waiting)


async def until(holds: Any) -> None:
    with trio.fail_after(SECONDS_MAX):
        while not holds():
            await trio.lowlevel.checkpoint()


async def test_a_waiting_call_ends_when_its_time_is_over(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    caller = Caller(bob)
    await caller.drained()
    async with waiting(house, caller, seconds=0.05) as answers:
        pass
    assert answers[0] == {
        "epoch": caller.epoch, "cursors": {conversation: 0}, "conversations": [], "events": [], "complete": True
    }  # fmt: skip
    assert waiters(house) == 0


async def test_a_waiting_call_hears_of_a_new_conversation_and_of_the_end_of_an_old_one(house: House) -> None:
    ann, bob = await house.people(2)
    old = await ann.open("group", bob)
    caller = Caller(bob)
    await caller.drained()
    async with waiting(house, caller) as answers:
        new = await ann.open("group", bob, name="New")
    assert [view["name"] for view in answers[0]["conversations"]] == ["New"]
    assert caller.cursors == {old: 0, new: 0}
    async with waiting(house, caller) as answers:
        await ann.http.delete(f"/conversations/{old}/members/{bob.id}")
    assert answers[0]["events"] == [{"type": "conversation:deleted", "conversationId": old}]
    async with waiting(house, caller) as answers:
        await ann.http.delete(f"/conversations/{new}")
    assert answers[0]["events"] == [{"type": "conversation:deleted", "conversationId": new}]
    assert caller.cursors == {}
    async with waiting(house, caller, seconds=0.05) as answers:  # what was told is not told again
        pass
    assert answers[0]["events"] == []


async def test_marks_wake_a_waiting_call_once(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    await say(ann, conversation, 2)
    caller = Caller(ann)
    await caller.drained()
    async with waiting(house, caller) as answers:
        await bob.http.put(f"/conversations/{conversation}/read", json={"sequenceNumber": 2})
    assert {(event["type"], event["userId"], event["sequenceNumber"]) for event in answers[0]["events"]} == {
        ("message:read", bob.id, 2),
        ("message:delivered", bob.id, 2),
    }
    async with waiting(house, caller, seconds=0.05) as answers:
        pass
    assert answers[0]["events"] == []


async def test_what_the_cursors_name_counts_as_delivered(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    message = (await ann.post(conversation, "x", "t-1")).json()["id"]
    caller = Caller(bob)
    await caller.sync()
    await caller.sync()
    await house.app.domain.receipts.flush()
    [delivery] = (await ann.http.get(f"/messages/{message}/deliveries")).json()["items"]
    assert delivery["status"] == "DELIVERED"


async def test_a_call_that_waits_is_neither_presence_nor_a_socket(house: House) -> None:
    ann, bob = await house.people(2)
    await ann.open("direct", bob)
    house.app.hub.connections_per_user = 1
    caller = Caller(bob)
    await caller.drained()
    async with bob.wire() as wire, waiting(house, caller, seconds=0.05):
        assert house.app.hub.session_count == 1
        await wire.fence()


async def test_only_so_many_calls_of_a_user_wait_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SYNC_WAITING_PER_USER_MAX", 1)
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    one, other = Caller(bob), Caller(await bob.another_device())
    await one.drained()
    await other.drained()
    async with waiting(house, one):
        form = {"epoch": other.epoch, "cursors": other.cursors, "waitSeconds": 60}
        refused = await other.person.http.post("/sync", json=form)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate-limited")
        assert refused.headers["retry-after"] == "1"
        await say(ann, conversation, 1)
    assert numbers((await other.sync(waitSeconds=60))["events"], conversation) == [1]  # it has not to wait


async def test_a_caller_that_goes_away_waits_no_longer(house: House) -> None:
    ann, bob = await house.people(2)
    await ann.open("direct", bob)
    caller = Caller(bob)
    await caller.drained()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: caller.sync(waitSeconds=60))
        await until(lambda: waiters(house) == 1)
        nursery.cancel_scope.cancel()
    await until(lambda: waiters(house) == 0)


async def test_a_waiting_call_ends_with_its_session(house: House) -> None:
    ann, bob = await house.people(2)
    await ann.open("direct", bob)
    phone = await bob.another_device()
    caller = Caller(phone)
    await caller.drained()
    codes: list[int] = []

    async def call() -> None:
        form = {"epoch": caller.epoch, "cursors": caller.cursors, "waitSeconds": 60}
        codes.append((await phone.http.post("/sync", json=form)).status_code)

    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await until(lambda: waiters(house) == 1)
            await bob.http.delete(f"/devices/{phone.device_id}")
    assert codes == [401]


async def test_a_server_that_drains_answers_those_who_wait(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    caller = Caller(bob)
    await caller.drained()
    async with waiting(house, caller) as answers:
        house.app.closing.set()
    assert answers[0]["complete"] and caller.cursors == {conversation: 0}


async def test_another_epoch_is_told_and_everything_named_for_reload(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    await say(ann, conversation, 3)
    caller = Caller(bob)
    caller.epoch, caller.cursors = new_id(), {conversation: 1}
    answer = await caller.sync(waitSeconds=60)
    assert answer["reload"] == [conversation] and not answer["complete"] and answer["events"] == []
    assert caller.epoch == house.app.store.epoch and caller.cursors == {conversation: 3}
    assert (await caller.sync())["complete"]
    stranger = Caller((await house.people(1))[0])
    stranger.epoch = new_id()
    assert (await stranger.sync(waitSeconds=60))["epoch"] == house.app.store.epoch


async def test_a_cursor_ahead_of_the_log_is_named_for_reload(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    await say(ann, conversation, 2)
    caller = Caller(bob)
    caller.cursors = {conversation: 5}
    answer = await caller.sync()
    assert answer["reload"] == [conversation] and caller.cursors == {conversation: 2}


async def test_a_past_longer_than_a_new_device_gets_is_named_for_reload(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SYNC_FIRST_EVENTS_MAX", 3)
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    await say(ann, conversation, 4)
    caller = Caller(bob)
    answer = await caller.sync()
    assert answer["reload"] == [conversation] and answer["events"] == []
    assert [view["lastMessage"]["sequenceNumber"] for view in answer["conversations"]] == [4]
    assert (await caller.sync())["complete"]


async def test_a_stranger_learns_nothing_of_a_conversation_that_they_name(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation = await ann.open("direct", bob)
    await say(ann, conversation, 2)
    caller = Caller(eve)
    named = {conversation: 0, new_id(): 0}
    caller.cursors = named
    answer = await caller.sync()
    assert {(event["type"], event["conversationId"]) for event in answer["events"]} == {
        ("conversation:deleted", each) for each in named
    }
    assert (answer["conversations"], answer["cursors"]) == ([], {})


async def test_who_was_removed_hears_that_and_who_comes_back_begins_anew(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("group", bob)
    await say(ann, conversation, 2)
    caller = Caller(bob)
    await caller.drained()
    await ann.http.delete(f"/conversations/{conversation}/members/{bob.id}")
    await say(ann, conversation, 2)
    cursors = caller.cursors
    assert (await caller.sync())["events"] == [{"type": "conversation:deleted", "conversationId": conversation}]
    await ann.http.post(f"/conversations/{conversation}/members", json={"userIds": [bob.id]})
    caller.cursors = cursors  # as if that answer had been lost
    answer = await caller.sync()
    assert [view["id"] for view in answer["conversations"]] == [conversation]
    told = [(event["type"], event.get("sequenceNumber")) for event in answer["events"]]
    assert told == [("conversation:deleted", None), ("conversation:created", None), ("member:joined", 6)]


async def test_a_device_that_has_a_socket_now_and_then_misses_nothing(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    caller, heard = Caller(bob), []
    for turn in range(4):
        await say(ann, conversation, 3)
        if turn % 2:
            heard += numbers((await caller.sync())["events"], conversation)
        else:
            async with bob.wire(epoch=caller.epoch, cursors=caller.cursors) as wire:
                await say(ann, conversation, 1)
                heard += numbers(wire.missed + await wire.fence(), conversation)
            caller.cursors = {conversation: heard[-1]}
    assert heard == list(range(1, 15))


async def test_what_the_user_did_for_themselves_on_another_device_is_told_to_those_that_were_away(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("group", bob)
    await say(ann, conversation, 1)
    caller, phone = Caller(bob), await bob.another_device()
    await caller.drained()
    async with bob.wire():
        pass
    await say(ann, conversation, 4)
    hidden = [message["id"] for message in await phone.history(conversation)][::4]  # the first and the last
    for message_id in hidden:
        answer = await phone.http.delete(f"/messages/{message_id}", params={"forEveryone": "false"})
        assert answer.status_code == 204
    await phone.http.patch(f"/conversations/{conversation}/preferences", json={"archived": True})
    await phone.http.put(f"/conversations/{conversation}/draft", json={"content": "begun"})
    before = caller.cursors
    events = await caller.drained(limit=2)
    caller.cursors = before  # as if the answers had been lost
    again = await caller.drained(limit=2)
    async with bob.wire(cursors=before) as wire:
        missed = wire.missed
    assert hidden[1] in [frame.get("messageId") for frame in again]
    for told in (events, missed):
        gone = [frame["messageId"] for frame in told if frame["type"] == "message:deleted"]
        assert set(gone) == set(hidden)
        new = [frame.get("message", frame).get("id", frame.get("messageId")) for frame in told]
        assert new.index(hidden[1]) < len(new) - 1 - new[::-1].index(hidden[1])  # hidden after it was told
        assert [frame["archived"] for frame in told if frame["type"] == "conversation:preferences"] == [True]
        assert [frame["draft"]["content"] for frame in told if frame["type"] == "draft:changed"] == ["begun"]
    assert numbers(events, conversation) == [2, 3, 4, 5]
    assert (await caller.sync())["events"] == []


@pytest.mark.parametrize(
    "form",
    [
        {"limit": 0},
        {"limit": 100_000},
        {"waitSeconds": -1},
        {"waitSeconds": 3600},
        {"cursors": {"x": 1}},
        {"cursor": {}},
    ],
)
async def test_a_form_that_is_none_is_refused(house: House, form: dict[str, Any]) -> None:
    [ann] = await house.people(1)
    assert (await ann.http.post("/sync", json=form)).status_code == 422


async def test_who_was_out_and_came_back_is_told_to_forget_what_was_before(house: House) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("group", bob)
    await ann.post(room, "canary", "t-1")
    first = (await bob.http.post("/sync", json={})).json()
    await ann.http.delete(f"/conversations/{room}/members/{bob.id}")
    await ann.http.post(f"/conversations/{room}/members", json={"userIds": [bob.id]})
    again = (await bob.http.post("/sync", json={"epoch": first["epoch"], "cursors": first["cursors"]})).json()
    told = [event["type"] for event in again["events"] if event["type"] != "message:read"]
    assert told == ["conversation:deleted", "conversation:created", "member:joined"]
    assert [view["id"] for view in again["conversations"]] == [room]
    async with bob.wire(epoch=first["epoch"], cursors=first["cursors"]) as wire:
        types = [frame["type"] for frame in wire.missed if frame["type"] != "message:read"]
    assert types == ["conversation:deleted", "conversation:created", "member:joined", "sync:done"]


async def test_after_another_epoch_the_conversations_come_along(house: House) -> None:
    ann, bob = await house.people(2)
    room = await ann.open("group", bob)
    answer = (await bob.http.post("/sync", json={"epoch": ann.id, "cursors": {room: 0}})).json()
    assert (answer["reload"], answer["complete"]) == ([room], False)
    assert [view["id"] for view in answer["conversations"]] == [room]
