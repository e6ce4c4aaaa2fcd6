"""The SDK against a scripted server that drops, repeats, delays and refuses: what its caller may count on."""

import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from gearlink import protocol
from gearlink.sdk import Client, FileState, MemoryState, Options, Refused, Unreachable, open_client
from gearlink.sdk.options import Backoff
from gearlink.sdk.state import State
from tests.fake_server import ADDRESS, CODE, FakeServer, problem

ANN, BOB = "+15551230001", "+15551230002"


@pytest.fixture
async def server(nursery: trio.Nursery, autojump_clock: MockClock) -> FakeServer:
    fake = FakeServer(nursery)
    nursery.start_soon(fake.watch)
    return fake


async def sign_in(client: Client, phone_number: str = ANN) -> str:
    asked = await client.request_code(phone_number)
    signed = await client.confirm(asked.verification_id, CODE, "test", "desktop")
    return signed.user.id


@asynccontextmanager
async def signed_in(server: FakeServer, store: Any = None, **options: Any) -> AsyncIterator[Client]:
    async with open_client(ADDRESS, store, server.options(**options)) as client:
        if not client.signed_in:
            await sign_in(client)
        yield client


async def chat_of(server: FakeServer, client: Client) -> tuple[str, str]:
    """A direct conversation with Bob, and Bob."""
    bob = server.user(BOB, "Bob")
    view = await client.create_conversation("direct", [bob], encryption="server")
    return view.id, bob


async def seated(server: FakeServer, client: Client) -> None:
    """Waits until live events reach this client."""
    await client.wait_online()
    await server.until(lambda: server.sockets)


async def texts(client: Client, count: int) -> list[str]:
    """The next `count` messages; other events are passed over."""
    found: list[str] = []
    async for event in client.events():
        if isinstance(event, protocol.MessageNew):
            found.append(event.message.content or "")
            if len(found) == count:
                return found
    raise AssertionError("events are endless")


# --- sending ---------------------------------------------------------------------------------------------------------


async def test_send_returns_what_the_server_stored(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, _bob = await chat_of(server, client)
        sent = await client.send(conversation, "hello")
        assert (sent.sequence_number, sent.message_id) == (1, server.logs[conversation][0].id)
        assert server.logs[conversation][0].content == "hello"


@pytest.mark.parametrize("fault", ["drop_before_store", "drop_before_ack"])
async def test_send_survives_lost_sockets_and_stores_once(
    server: FakeServer, autojump_clock: MockClock, fault: str
) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, _bob = await chat_of(server, client)
        setattr(server.faults, fault, 3)
        sent = await client.send(conversation, "once")
        assert [message.content for message in server.logs[conversation]] == ["once"]
        assert sent.sequence_number == 1
        assert len({frame.temp_id for frame in server.heard_of(protocol.Send)}) == 1
    assert server.connects >= 2


async def test_sends_given_one_after_the_other_arrive_in_that_order_after_a_lost_socket(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, _bob = await chat_of(server, client)
        await seated(server, client)
        server.faults.drop_before_store = 1
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(client.send, conversation, str(number))
                await trio.testing.wait_all_tasks_blocked()
    assert [message.content for message in server.logs[conversation]] == [str(number) for number in range(20)]


async def test_final_refusal_reaches_the_caller(server: FakeServer, autojump_clock: MockClock) -> None:
    server.faults.refuse_sends.append(protocol.Error(code="not-found", detail="no", retryable=False))
    async with signed_in(server) as client, client.connect():
        conversation, _bob = await chat_of(server, client)
        with pytest.raises(Refused) as refused:
            await client.send(conversation, "x")
        assert refused.value.code == "not-found"
        assert (await client.send(conversation, "y")).sequence_number == 1


async def test_rate_limited_send_waits_as_told_and_goes_again(server: FakeServer, autojump_clock: MockClock) -> None:
    told = protocol.Error(code="rate-limited", detail="later", retryable=True, retry_after_ms=20_000)
    server.faults.refuse_sends.append(told)
    async with signed_in(server) as client, client.connect():
        conversation, _bob = await chat_of(server, client)
        started = trio.current_time()
        await client.send(conversation, "x")
        assert trio.current_time() - started >= 20
    assert server.connects == 1


async def test_only_so_many_sends_are_on_their_way(server: FakeServer, autojump_clock: MockClock) -> None:
    server.faults.hold_acks = trio.Event()
    async with signed_in(server, sends_in_flight_max=3) as client, client.connect():
        conversation, _bob = await chat_of(server, client)
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(client.send, conversation, str(number))
            await trio.testing.wait_all_tasks_blocked()
            assert len(server.heard_of(protocol.Send)) == 3
            server.faults.hold_acks.set()
    assert len(server.logs[conversation]) == 10


async def test_cancelled_send_leaves_nothing_behind(server: FakeServer, autojump_clock: MockClock) -> None:
    server.faults.hold_acks = trio.Event()
    async with signed_in(server, sends_in_flight_max=1) as client, client.connect():
        conversation, _bob = await chat_of(server, client)
        with trio.move_on_after(5) as scope:
            await client.send(conversation, "maybe", temp_id="t-1")
        assert scope.cancelled_caught
        server.faults.hold_acks.set()
        await client.send(conversation, "maybe", temp_id="t-1")  # the slot is free, and the server knows the tempId
    assert [message.content for message in server.logs[conversation]] == ["maybe"]


@pytest.mark.parametrize("text", ["", "x" * 16385, "é" * 8193, "\udcff"])
async def test_text_that_the_server_would_refuse_never_leaves(
    server: FakeServer, autojump_clock: MockClock, text: str
) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, _bob = await chat_of(server, client)
        with pytest.raises(Refused) as refused:
            await client.send(conversation, text)
        assert refused.value.code == "invalid-request"
    assert not server.heard_of(protocol.Send)


async def test_frame_too_big_for_the_server_is_refused_and_not_sent_for_ever(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, _bob = await chat_of(server, client)
        server.faults.hold_acks = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused_as_too_large, client, conversation)
            await server.until(lambda: server.heard_of(protocol.Send))
            await server.sockets[0].close(1009, "too big")


async def refused_as_too_large(client: Client, conversation: str) -> None:
    with pytest.raises(Refused) as refused:
        await client.send(conversation, "x")
    assert refused.value.code == "too-large"


# --- events ----------------------------------------------------------------------------------------------------------


async def test_missed_events_come_first_then_sync_done_then_live_ones(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server) as client:
        conversation, bob = await chat_of(server, client)
        for text in ("a", "b"):
            server.append(conversation, bob, text)
        async with client.connect():
            events = client.events()
            first = [await anext(events) for _ in range(3)]
            assert [type(event) for event in first] == [protocol.MessageNew, protocol.MessageNew, protocol.SyncDone]
            await server.post(conversation, bob, "c")
            live = await anext(events)
            assert isinstance(live, protocol.MessageNew)
            assert live.message.content == "c"


async def test_repeated_events_reach_the_caller_once(server: FakeServer, autojump_clock: MockClock) -> None:
    server.faults.repeat_live = True
    async with signed_in(server) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        for number in range(5):
            await server.post(conversation, bob, str(number))
        assert await texts(client, 5) == ["0", "1", "2", "3", "4"]
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            while not isinstance(await anext(client.events()), protocol.MessageNew):
                pass
        assert scope.cancelled_caught, "a repetition was passed on"


async def test_gap_in_live_events_is_filled_by_a_resume(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        await server.post(conversation, bob, "1")
        assert await texts(client, 1) == ["1"]
        server.faults.skip_live = {2, 3}
        for text in ("2", "3", "4"):
            await server.post(conversation, bob, text)
        assert await texts(client, 3) == ["2", "3", "4"]
    assert server.connects == 2


async def test_hole_that_no_resume_fills_is_told_not_passed_over(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        await server.post(conversation, bob, "1")
        assert await texts(client, 1) == ["1"]
        server.faults.skip_live = server.faults.skip_replay = {2}
        await server.post(conversation, bob, "2")
        await server.post(conversation, bob, "3")
        seen = []
        async for event in client.events():
            seen.append(event)
            if isinstance(event, protocol.MessageNew):
                break
        reloads = [event.reload for event in seen if isinstance(event, protocol.SyncDone) and not event.complete]
        assert reloads == [[conversation]]
        assert isinstance(seen[-1], protocol.MessageNew)
        assert seen[-1].message.content == "3"


async def test_own_numbers_are_no_gap(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        for number in range(3):
            await client.send(conversation, "mine")
            await server.post(conversation, bob, str(number))
        assert await texts(client, 3) == ["0", "1", "2"]
    assert server.connects == 1
    assert server.watermarks[next(iter(server.devices)), conversation] == 6


async def test_answer_that_comes_behind_a_later_event_is_no_gap(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        await server.post(conversation, bob, "first")
        assert await texts(client, 1) == ["first"]
        async with trio.open_nursery() as nursery:
            server.faults.refuse_sends.append(protocol.Error(code="x", detail="", retryable=True, retry_after_ms=1000))
            nursery.start_soon(client.send, conversation, "mine", "t-9")
            await server.until(lambda: server.heard_of(protocol.Send))
            device = next(iter(server.devices))
            mine = server.append(conversation, server.devices[device], "mine", device, "t-9")
            server.stored[device, conversation, "t-9"] = protocol.SendAck(
                temp_id="t-9", message_id=mine.id, conversation_id=conversation, sequence_number=2, created_at="x"
            )
            await server.post(conversation, bob, "later")
            assert await texts(client, 1) == ["later"]
    assert server.connects == 1


async def test_own_message_whose_answer_was_lost_is_settled_by_its_replay(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        await server.post(conversation, bob, "first")
        assert await texts(client, 1) == ["first"]
        server.faults.drop_before_ack = 1
        assert (await client.send(conversation, "mine")).sequence_number == 2
        await server.post(conversation, bob, "last")
        assert await texts(client, 1) == ["last"]


async def test_events_are_acknowledged_once_taken_and_together(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        for number in range(10):
            await server.post(conversation, bob, str(number))
        await trio.sleep(5)
        assert not server.heard_of(protocol.Ack), "nothing was taken yet"
        await texts(client, 4)
        await trio.sleep(5)
        assert [ack.sequence_number for ack in server.heard_of(protocol.Ack)] == [3]
        await texts(client, 1)
    assert [ack.sequence_number for ack in server.heard_of(protocol.Ack)] == [3, 5], "leaving in peace takes the last"


async def test_what_was_not_taken_comes_again_in_the_next_process(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    store = MemoryState()
    with pytest.raises(ZeroDivisionError):
        async with signed_in(server, store) as client, client.connect():
            conversation, bob = await chat_of(server, client)
            await seated(server, client)
            for text in ("a", "b", "c"):
                await server.post(conversation, bob, text)
            await texts(client, 2)
            await trio.sleep(5)
            raise ZeroDivisionError  # in the middle of the second event
    async with signed_in(server, store) as client, client.connect():
        assert await texts(client, 2) == ["b", "c"]


async def test_server_is_not_told_that_waiting_events_arrived(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        for text in ("a", "b", "c"):
            await server.post(conversation, bob, text)
        await trio.testing.wait_all_tasks_blocked()
        await server.sockets[0].drop()
        await server.until(lambda: len(server.heard_of(protocol.Auth)) == 2)
        assert server.heard_of(protocol.Auth)[1].cursors == {conversation: 0}
        assert await texts(client, 3) == ["a", "b", "c"]


async def test_slow_caller_stops_the_reading_and_gets_everything_later(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server, events_buffered_max=8) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        for number in range(100):
            await server.post(conversation, bob, str(number))
        await trio.testing.wait_all_tasks_blocked()
        assert len(client._inbox._items) == 8
        assert await texts(client, 100) == [str(number) for number in range(100)]


async def test_caller_that_answers_each_event_does_not_lock_itself_up(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server, events_buffered_max=8) as client:
        conversation, bob = await chat_of(server, client)
        for number in range(100):
            server.append(conversation, bob, str(number))
        async with client.connect():
            heard = []
            async for event in client.events():
                if isinstance(event, protocol.MessageNew):
                    heard.append(event.message.content)
                    await client.send(conversation, f"echo {event.message.content}")
                    if len(heard) == 100:
                        break
    assert heard == [str(number) for number in range(100)]
    assert len(server.logs[conversation]) == 200


async def test_incomplete_sync_names_what_to_reload_and_goes_on_behind_it(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server) as client:
        conversation, bob = await chat_of(server, client)
        for text in ("a", "b"):
            server.append(conversation, bob, text)
        server.faults.tell_reload = [conversation]
        async with client.connect():
            event = await anext(client.events())
            assert isinstance(event, protocol.SyncDone)
            assert (event.complete, event.reload) == (False, [conversation])
            await server.post(conversation, bob, "c")
            assert await texts(client, 1) == ["c"]
        assert client.state.cursors == {conversation: 3}


async def test_new_epoch_reloads_and_is_saved_only_when_the_caller_knows(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    store = MemoryState()
    async with signed_in(server, store) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        await server.post(conversation, bob, "old")
        await texts(client, 1)
    server.epoch = "epoch-2"
    server.logs[conversation].clear()
    for _ in range(2):  # the first process ends before its caller has taken the notice
        with pytest.raises(ZeroDivisionError):
            async with signed_in(server, store) as client, client.connect():
                event = await anext(client.events())
                assert isinstance(event, protocol.SyncDone)
                assert event.reload == [conversation]
                raise ZeroDivisionError
    async with signed_in(server, store) as client, client.connect():
        await anext(client.events())
        await server.post(conversation, bob, "new")
        assert await texts(client, 1) == ["new"]
    saved = await store.load()
    assert saved is not None
    assert (saved.epoch, saved.cursors) == ("epoch-2", {conversation: 1})


async def test_unknown_frames_and_keys_are_ignored(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        await server.broadcast({"type": "aurora", "userId": bob})
        typing = {"type": "typing", "conversationId": conversation, "userId": bob, "active": True, "mood": 1}
        await server.broadcast(typing)
        events = client.events()
        assert isinstance(await anext(events), protocol.SyncDone)
        assert isinstance(await anext(events), protocol.Typing)
    assert server.connects == 1


async def test_receipts_never_come_twice_or_backwards(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        for number in (2, 2, 1, 3):
            await server.broadcast(
                protocol.MessageRead(conversation_id=conversation, user_id=bob, sequence_number=number, read_at="x")
            )
        events = client.events()
        assert isinstance(await anext(events), protocol.SyncDone)
        marks = [await anext(events) for _ in range(2)]
        assert [mark.sequence_number for mark in marks if isinstance(mark, protocol.MessageRead)] == [2, 3]


async def test_read_marks_and_typing_are_told_and_marks_again_after_a_lost_socket(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, _bob = await chat_of(server, client)
        await seated(server, client)
        client.typing(conversation, True)
        client.mark_read(conversation, 4)
        client.mark_read(conversation, 3)
        await server.until(lambda: server.heard_of(protocol.MarkRead))
        assert [frame.sequence_number for frame in server.heard_of(protocol.MarkRead)] == [4]
        assert server.heard_of(protocol.TypingStart)
        await server.sockets[0].drop()
        await server.until(lambda: len(server.heard_of(protocol.MarkRead)) == 2)


# --- the socket ------------------------------------------------------------------------------------------------------


async def test_silent_peer_is_pinged_and_a_dead_one_given_up(server: FakeServer, autojump_clock: MockClock) -> None:
    changes: list[bool] = []
    async with signed_in(server) as client, client.connect(lambda online, why: changes.append(online)):
        await seated(server, client)
        await trio.sleep(300)
        assert server.connects == 1
        assert len(server.heard_of(protocol.Ping)) >= 5
        server.faults.mute = True
        await trio.sleep(61)
        assert changes[:2] == [True, False]
        server.faults.mute = False
        await client.wait_online()
    assert changes[-1]


async def test_leaving_closes_the_socket_in_peace_and_without_delay(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    changes: list[bool] = []
    async with signed_in(server) as client:
        async with client.connect(lambda online, why: changes.append(online)):
            await seated(server, client)
            left, websocket = trio.current_time(), server.sockets[0].websocket
        assert trio.current_time() == left
        assert changes == [True]
        await server.until(lambda: websocket.closed is not None)
        assert websocket.closed is not None
        assert websocket.closed.code == 1000


async def test_goodbye_is_obeyed(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client, client.connect():
        await seated(server, client)
        await server.broadcast(protocol.Goodbye(reason="restarting", retry_after_ms=60_000))
        await server.sockets[0].close(1012, "restarting")
        left = trio.current_time()
        await server.until(lambda: server.connects == 2)
        assert trio.current_time() - left >= 60


async def test_unreachable_server_is_tried_again_with_growing_pauses(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server) as client:
        server.faults.unreachable = True
        tries: list[float] = []
        async with client.connect(lambda online, why: tries.append(trio.current_time())):
            await trio.sleep(600)
            server.faults.unreachable = False
            await seated(server, client)
        assert tries  # told once, not at every try


def test_backoff_doubles_within_bounds_and_never_comes_early() -> None:
    low, high = (Backoff(Options(chance=lambda value=value: value)) for value in (0.0, 0.999))
    waits = [low.next() for _ in range(20)]
    assert waits[:3] == [0.25, 0.5, 1.0]
    assert max(waits) == 15.0
    assert max(high.next() for _ in range(20)) < 30
    assert low.next(60) == 60
    assert low.next(10**9) == 300
    low.reset()
    assert low.next() == 0.25


async def test_token_is_renewed_on_the_open_socket(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client, client.connect():
        await seated(server, client)
        await trio.sleep(3 * server.access_seconds)
    assert server.connects == 1
    tokens = [frame.access_token for frame in server.heard_of(protocol.Auth)]
    assert len(tokens) == len(set(tokens)) >= 3


async def test_rejected_token_is_renewed_and_the_socket_opened_again(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server) as client:
        server.faults.reject_auth = 1
        async with client.connect():
            await seated(server, client)
    assert ("POST", "/auth/refresh") in server.requests


async def test_ended_session_ends_every_wait_with_its_reason(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, _bob = await chat_of(server, client)
        await seated(server, client)
        server.faults.hold_acks = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_signed_out, client.send, conversation, "x")
            nursery.start_soon(expect_signed_out, texts, client, 1)
            await trio.testing.wait_all_tasks_blocked()
            server.access.clear()
            server.refresh.clear()
            await server.sockets[0].close(4401, "not-authenticated")
        await expect_signed_out(client.wait_online)


async def expect_signed_out(call: Any, *arguments: Any) -> None:
    with pytest.raises(Refused) as refused:
        await call(*arguments)
    assert refused.value.status == 401


async def test_errors_of_the_block_come_out_as_they_are(server: FakeServer, autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError):
        async with signed_in(server) as client, client.connect():
            raise KeyError("mine")


async def test_sending_outside_of_connect_is_a_mistake(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client:
        with pytest.raises(RuntimeError):
            await client.send("0" * 8, "x")
        with pytest.raises(RuntimeError):
            await anext(client.events())


# --- REST ------------------------------------------------------------------------------------------------------------


async def test_problem_becomes_refused(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client:
        server.faults.answers.append(problem(429, "rate-limited", "Too many requests", retry_after=7))
        with pytest.raises(Refused) as caught:
            await client.me()
        refused = caught.value
        assert (refused.code, refused.status, refused.retry_after_seconds) == ("rate-limited", 429, 7)
        assert refused.retryable
        assert refused.correlation_id == "c-1"


@pytest.mark.parametrize(
    "answer",
    [
        httpx.ConnectError("no"),
        httpx.ReadTimeout("no"),
        httpx.Response(502, text="<html>"),
        httpx.Response(200, text="not JSON"),
        httpx.Response(200, content=b" " * 2000),
    ],
)
async def test_trouble_on_the_way_becomes_unreachable(
    server: FakeServer, autojump_clock: MockClock, answer: Any
) -> None:
    async with signed_in(server, answer_bytes_max=1000) as client:
        server.faults.answers.append(answer)
        with pytest.raises(Unreachable):
            await client.me()


async def test_call_answered_401_is_tried_once_more_with_a_new_token(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server) as client:
        server.access.clear()
        assert (await client.me()).phone_number == ANN
        assert server.requests.count(("POST", "/auth/refresh")) == 1


async def test_many_calls_share_one_renewal(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client:
        server.access.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(client.me)
    assert server.requests.count(("POST", "/auth/refresh")) == 1


async def test_token_is_renewed_before_it_runs_out(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client:
        await trio.sleep(server.access_seconds - 30)
        await client.me()
    assert server.requests[-2:] == [("POST", "/auth/refresh"), ("GET", "/users/me")]


async def test_cancelled_renewal_still_saves_the_new_token(server: FakeServer, autojump_clock: MockClock) -> None:
    store = MemoryState()
    async with signed_in(server, store) as client:
        server.access.clear()
        with trio.move_on_after(0):
            await client.access_token(rejected=client.state.access_token)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.me)
            await server.until(lambda: server.requests[-1][1] == "/auth/refresh")
            nursery.cancel_scope.cancel()
    saved = await store.load()
    assert saved is not None
    assert saved.refresh_token in server.refresh


async def test_two_clients_of_one_state_do_not_use_a_refresh_token_twice(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    store = MemoryState()
    async with signed_in(server, store) as one, open_client(ADDRESS, store, server.options()) as other:
        server.access.clear()
        await one.me()
        await other.me()
    assert server.requests.count(("POST", "/auth/refresh")) == 1


async def test_history_pages_downwards_and_upwards(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client:
        conversation, bob = await chat_of(server, client)
        for number in range(1, 8):
            server.append(conversation, bob, str(number))
        down = [[m.sequence_number for m in page] async for page in client.history(conversation, limit=3)]
        assert down == [[7, 6, 5], [4, 3, 2], [1]]
        up = [[m.sequence_number for m in page] async for page in client.history(conversation, after=2, limit=3)]
        assert up == [[3, 4, 5], [6, 7]]


async def test_people_are_found_by_number_and_by_name(server: FakeServer, autojump_clock: MockClock) -> None:
    bob = server.user(BOB, "Bob", "bob")
    async with signed_in(server) as client:
        found = await client.discover([BOB, "+15550000000"])
        assert {number: user.id for number, user in found.items()} == {BOB: bob}
        named = await client.user_named("bob")
        assert named is not None
        assert named.id == bob
        assert await client.user_named("nobody") is None


async def test_logout_forgets_the_tokens_even_if_the_session_is_gone(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    store = MemoryState()
    async with signed_in(server, store) as client:
        server.access.clear()
        server.refresh.clear()
        await client.logout()
        assert not client.signed_in
        with pytest.raises(Refused):
            await client.me()
    saved = await store.load()
    assert saved is not None
    assert saved.refresh_token is None


@pytest.mark.parametrize("address", ["chat.test", "ftp://chat.test", "http://", "http://a/b", "http://u:p@host"])
async def test_bad_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        async with open_client(address):
            pass


# --- the state -------------------------------------------------------------------------------------------------------


async def test_file_is_for_its_owner_only_and_comes_back(tmp_path: Path) -> None:
    store = FileState(tmp_path / "folder" / "ann.json")
    assert await store.load() is None
    await store.save(State(server=ADDRESS, refresh_token="secret", cursors={"c": 4}))
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    saved = await FileState(store.path).load()
    assert saved is not None
    assert (saved.refresh_token, saved.cursors) == ("secret", {"c": 4})
    assert not [path for path in store.path.parent.iterdir() if path.suffix not in (".json", ".lock")]


async def test_older_tokens_never_overwrite_newer_ones(tmp_path: Path) -> None:
    store = FileState(tmp_path / "ann.json")
    await store.save(State(refresh_token="new", generation=2, cursors={"c": 9}))
    await store.save(State(refresh_token="old", generation=1, cursors={"c": 4, "d": 1}))
    saved = await store.load()
    assert saved is not None
    assert (saved.refresh_token, saved.cursors) == ("new", {"c": 9, "d": 1})


async def test_foreign_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    for text in ("not JSON", json.dumps({"version": 2})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"notes\.json"):
            await FileState(path).load()
        assert path.read_text() == text


async def test_state_of_another_server_is_refused(server: FakeServer, autojump_clock: MockClock) -> None:
    store = MemoryState()
    async with signed_in(server, store):
        pass
    with pytest.raises(ValueError, match="belongs"):
        async with open_client("http://other.test", store, server.options()):
            pass


async def test_no_secret_in_any_repr(server: FakeServer, autojump_clock: MockClock) -> None:
    store = MemoryState()
    async with signed_in(server, store) as client, client.connect():
        shown = [repr(each) for each in (client, client.state, store, server.options(), client.events())]
        assert not [text for text in shown if "access-" in text or "refresh-" in text or ANN in text]
