"""What counts in a conversation's numbers, and which cursors a client resumes with where there are too many to name."""

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from gearlink import protocol
from gearlink.sdk import MemoryState, inbox
from tests.fake_server import AT, FakeServer
from tests.test_sdk import chat_of, seated, signed_in, texts


@pytest.fixture
async def server(nursery: trio.Nursery, autojump_clock: MockClock) -> FakeServer:
    fake = FakeServer(nursery)
    nursery.start_soon(fake.watch)
    return fake


async def test_a_resume_names_the_conversations_that_were_active_last(
    server: FakeServer, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "CURSORS_MAX", 2)
    store = MemoryState()
    async with signed_in(server, store) as client, client.connect():
        bob = server.user("+15551230002", "Bob")
        rooms = [
            (await client.create_conversation("group", [bob], encryption="server", name=name)).id
            for name in ("a", "b", "c")
        ]
        await seated(server, client)
        for number in (0, 1, 2, 0):
            await server.post(rooms[number], bob, "hello")
        assert await texts(client, 4) == ["hello"] * 4
        await server.sockets[0].drop()
        await server.until(lambda: len(server.heard_of(protocol.Auth)) == 2)
    named = server.heard_of(protocol.Auth)[1].cursors
    assert named is not None and list(named) == [rooms[2], rooms[0]]
    async with signed_in(server, store) as client, client.connect():  # and so does the next process
        await server.until(lambda: len(server.heard_of(protocol.Auth)) == 3)
    named = server.heard_of(protocol.Auth)[2].cursors
    assert named is not None and list(named) == [rooms[2], rooms[0]]


async def test_an_event_that_this_sdk_does_not_know_takes_its_number_and_is_shown_to_nobody(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    store = MemoryState()
    async with signed_in(server, store) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        await server.post(conversation, bob, "one")
        server.append(conversation, bob, "stands for the event")
        await server.broadcast({"type": "message:sung", "conversationId": conversation, "sequenceNumber": 2, "tune": 7})
        await server.post(conversation, bob, "three")
        assert await texts(client, 2) == ["one", "three"]
        assert client.state.cursors[conversation] == 2
    assert server.connects == 1


async def test_a_reaction_and_an_expiry_are_no_holes_and_a_private_deletion_has_no_number(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        message = await server.post(conversation, bob, "one")
        about = {"conversation_id": conversation, "message_id": message.id, "user_id": bob}
        server.append(conversation, bob, "the reaction")
        await server.broadcast(protocol.ReactionAdded(sequence_number=2, at=AT, emoji="👍", reactions=[], **about))
        await server.broadcast(protocol.MessageDeleted(for_everyone=False, deleted_at=AT, **about))
        server.append(conversation, bob, "the expiry")
        await server.broadcast(
            protocol.MessageExpired(conversation_id=conversation, sequence_number=3, message_ids=[message.id])
        )
        await server.post(conversation, bob, "four")
        events = client.events()
        kinds = [type(await anext(events)) for _ in range(6)]
    assert kinds == [
        protocol.SyncDone,
        protocol.MessageNew,
        protocol.ReactionAdded,
        protocol.MessageDeleted,
        protocol.MessageExpired,
        protocol.MessageNew,
    ]
    assert server.connects == 1


async def test_an_unknown_event_that_was_missed_is_a_hole_like_any_other(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        await server.post(conversation, bob, "one")
        server.faults.skip_live = {2}
        await server.post(conversation, bob, "two")
        await server.broadcast({"type": "message:sung", "conversationId": conversation, "sequenceNumber": 3})
        assert await texts(client, 2) == ["one", "two"]
    assert server.connects == 2


async def test_whom_one_watches_is_said_again_on_the_next_socket_and_after_a_refusal_for_now(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server) as client, client.connect():
        _conversation, bob = await chat_of(server, client)
        await seated(server, client)
        client.watch([bob])
        await server.until(lambda: len(server.heard_of(protocol.WatchPresence)) == 1)
        said = server.heard_of(protocol.WatchPresence)[0]
        no = protocol.Error(code="rate-limited", detail="later", retryable=True, retry_after_ms=5000, ref=said.ref)
        started = trio.current_time()
        await server.broadcast(no)
        await server.until(lambda: len(server.heard_of(protocol.WatchPresence)) == 2)
        assert trio.current_time() - started >= 5
        await server.sockets[0].drop()
        await server.until(lambda: len(server.heard_of(protocol.WatchPresence)) == 3)
        client.watch([])
        await server.until(lambda: len(server.heard_of(protocol.WatchPresence)) == 4)
    assert [frame.user_ids for frame in server.heard_of(protocol.WatchPresence)] == [[bob], [bob], [bob], []]


async def test_presence_that_found_no_room_is_told_again_after_a_resume(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with signed_in(server, events_buffered_max=2) as client, client.connect():
        conversation, bob = await chat_of(server, client)
        await seated(server, client)
        client.watch([bob])
        server.faults.hold_acks = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, conversation, "waits, so the socket is read")
            await server.until(lambda: server.heard_of(protocol.Send))
            for _ in range(5):
                await server.broadcast(protocol.Presence(user_id=bob, status="online"))
            await trio.testing.wait_all_tasks_blocked()
            server.faults.hold_acks.set()
        events = client.events()
        for _ in range(2):
            await anext(events)
        await server.until(lambda: len(server.heard_of(protocol.WatchPresence)) == 2)  # by the resume
    assert server.connects == 2


async def test_polling_beside_a_socket_is_a_mistake(server: FakeServer, autojump_clock: MockClock) -> None:
    async with signed_in(server) as client, client.connect():
        with pytest.raises(RuntimeError, match="connected"):
            client.poll()
