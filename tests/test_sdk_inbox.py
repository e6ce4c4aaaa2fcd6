"""Which cursors a client resumes with, where it is in more conversations than the protocol lets it name."""

import pytest
import trio
from trio.testing import MockClock

from gearlink import protocol
from gearlink.sdk import MemoryState, inbox
from tests.fake_server import FakeServer
from tests.test_sdk import seated, signed_in, texts


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
        rooms = [(await client.create_conversation("group", [bob], name=name)).id for name in ("a", "b", "c")]
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
