"""Hostile guests: whatever one of them does ends, at the most, that guest's connection, and tells it nothing."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from config import limits
from gearlink import app
from gearlink.accounts import Actor
from gearlink.broker import Typing
from gearlink.clock import new_id
from gearlink.hub import Hub, Session
from gearlink.journal import Metrics
from gearlink.outbox import Outbox
from gearlink.presence import Presence
from gearlink.pressure import Pressure
from tests.fakes import FakeClock, FakeStore
from tests.house import SECONDS_MAX, House, Person, RawSocket, Wire, open_house, open_raw_socket, open_wire

UNREADABLE = {
    "nothing": "",
    "a word": "canary",
    "a list": "[]",
    "no type": "{}",
    "null": "null",
    "a number": "1e400",
    "a type that is no text": '{"type":{}}',
    "two objects": '{"type":"ping"}{"type":"ping"}',
    "a control character": '{"type":"ping","ref":"\x00"}',
    "deep lists": "[" * 60_000,
    "deep objects": '{"a":' * 10_000,
    "deep below a known key": '{"type":"ping","ref":' + "[" * 60_000,
    "bytes": b'{"type":"ping"}',
    "other bytes": b"\xff\xfe\x00",
}
INVALID = {
    "an unknown key": '{"type":"ping","canary":1}',
    "deep below an unknown key": '{"type":"ping","x":' + "[" * 500 + "]" * 500 + "}",
    "a wrong type": '{"type":"message:ack","conversationId":"x","sequenceNumber":"1"}',
    "a huge number": '{"type":"message:ack","conversationId":"' + new_id() + '","sequenceNumber":1' + "0" * 30 + "}",
    "a ref that is no text": '{"type":"ping","ref":9}',
    "a long ref": '{"type":"ping","ref":"%s"}' % ("x" * 129),
    "an id with a line break": '{"type":"typing:start","conversationId":"' + new_id() + '\\n"}',
}  # fmt: skip


async def assert_the_room_goes_on(ann: Person, bob: Person, conversation: str) -> None:
    async with bob.wire() as listener:
        sent = (await ann.post(conversation, "canary", new_id())).json()
        assert (await listener.hear("message:new"))["message"]["id"] == sent["id"]


# --- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNREADABLE)
async def test_unreadable_frames_are_refused_and_close_the_socket_when_they_repeat(house: House, name: str) -> None:
    [ann] = await house.people(1)
    async with ann.wire() as wire:
        for _ in range(limits.MALFORMED_FRAMES_MAX - 1):
            await wire.say_raw(UNREADABLE[name])
            await wire.refused("unreadable-frame")
        assert await wire.fence() == []  # a good frame: the count begins again
        for _ in range(limits.MALFORMED_FRAMES_MAX):
            await wire.say_raw(UNREADABLE[name])
            await wire.refused("unreadable-frame")
        assert (await wire.hear("session:goodbye"))["reason"] == "unreadable-frame"
        assert await wire.closed() == 4400


async def test_a_frame_of_an_unknown_type_is_refused_as_such_and_never_closes_the_socket(house: House) -> None:
    [ann] = await house.people(1)
    async with ann.wire() as wire:
        for _ in range(limits.MALFORMED_FRAMES_MAX + 1):
            await wire.say("call:start", userIds=[], ref="r-1")
            refused = await wire.hear("error")
            assert (refused["code"], refused["ref"]) == ("unknown-type", "r-1")
        assert await wire.fence() == []


async def test_frames_with_wrong_fields_are_refused_and_never_close_the_socket(house: House) -> None:
    [ann] = await house.people(1)
    async with ann.wire() as wire:
        for name, frame in INVALID.items():
            for _ in range(limits.MALFORMED_FRAMES_MAX + 1):
                await wire.say_raw(frame)
                assert (await wire.hear("error"))["code"] == "invalid-request", name
        assert await wire.fence() == []


async def test_a_frame_over_the_limit_ends_its_connection(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with ann.wire() as wire:
        await wire.say_raw("x" * (128 * 1024 + 1))
        assert await wire.closed() == 1009
    await assert_the_room_goes_on(ann, bob, conversation)


async def authenticated(raw: RawSocket, person: Person, **auth: Any) -> None:
    await raw.say("auth", accessToken=person.access_token, **auth)
    while b"sync:done" not in (await raw.take())[1]:
        pass


async def test_fragments_are_one_frame_and_count_together(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with open_raw_socket(house) as raw:
        await authenticated(raw, ann)
        for opcode, part, final in ((1, b'{"type":', False), (0, b'"pi', False), (9, b"", True), (0, b'ng"}', True)):
            await raw.put(opcode, part, final=final)
        assert [(await raw.take())[0], b"pong" in (await raw.take())[1]] == [10, True]
        await raw.put(1, b"x" * 1000, final=False)
        for _ in range(140):
            await raw.put(0, b"x" * 1000, final=False)
        assert (await raw.read_to_the_close())[1] == 1009
    await assert_the_room_goes_on(ann, bob, conversation)


@pytest.mark.parametrize(
    ("opcode", "payload"),
    [(1, b"\xff\xff"), (3, b""), (0, b"x"), (9, b"x" * 126), (8, b"\x00")],
    ids=["no UTF-8", "reserved opcode", "nothing to continue", "long ping", "short close"],
)
async def test_what_is_not_websocket_ends_its_connection(house: House, opcode: int, payload: bytes) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with open_raw_socket(house) as raw:
        await authenticated(raw, ann)
        await raw.put(opcode, payload)
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            while True:
                await raw.take()
    await assert_the_room_goes_on(ann, bob, conversation)


# --- who is there ----------------------------------------------------------------------------------------------------


async def test_the_first_frame_has_to_be_a_good_auth(house: House) -> None:
    ann, bob = await house.people(2)
    wrong = [
        ('{"type":"ping"}', "not-authenticated", 4401),
        ('{"type":"auth","accessToken":"canary"}', "not-authenticated", 4401),
        (json.dumps({"type": "auth", "accessToken": ann.access_token[:-2]}), "not-authenticated", 4401),
        (json.dumps({"type": "auth", "accessToken": ann.refresh_token}), "not-authenticated", 4401),
        ('{"type":"auth","accessToken":""}', "invalid-request", 4400),
        ('{"type":"auth","accessToken":"x","cursors":{"x":1}}', "invalid-request", 4400),
        ("canary", "unreadable-frame", 4400),
    ]  # fmt: skip
    for frame, code, close in wrong:
        async with open_wire(house) as wire:
            await wire.say_raw(frame)
            await wire.refused(code)
            assert await wire.closed() == close
    assert house.app.hub.session_count == 0 and bob.id


async def test_who_says_nothing_is_closed_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "Doorway", partial(app.Doorway, auth_seconds=0.05))
    async with open_house(tmp_path / "data") as house, open_wire(house) as wire:
        await wire.refused("not-authenticated")
        assert await wire.closed() == 4401


async def test_an_expired_token_opens_nothing(tmp_path: Path) -> None:
    clock = FakeClock()
    async with open_house(tmp_path / "data", clock=clock) as house:
        [ann] = await house.people(1)
        clock.advance(minutes=16)
        async with open_wire(house) as wire:
            await wire.say("auth", accessToken=ann.access_token)
            await wire.refused("not-authenticated")
            assert await wire.closed() == 4401
        assert (await ann.http.get("/users/me")).status_code == 401


async def test_a_socket_ends_with_its_token_unless_the_token_is_renewed_on_it(tmp_path: Path) -> None:
    clock = FakeClock()
    async with open_house(tmp_path / "data", clock=clock) as house:
        ann, bob = await house.people(2)
        async with ann.wire() as forgetful, bob.wire() as careful:
            clock.advance(minutes=10)
            pair = (await bob.http.post("/auth/refresh", json={"refreshToken": bob.refresh_token})).json()
            await careful.say("auth", accessToken=pair["accessToken"], ref="r")
            assert (await careful.hear("auth:ok"))["ref"] == "r"
            clock.advance(minutes=6)
            assert (await forgetful.hear("session:goodbye"))["reason"] == "not-authenticated"
            assert await forgetful.closed() == 4401
            assert await careful.fence() == []
            clock.advance(minutes=10)
            assert await careful.closed() == 4401


async def test_an_open_socket_takes_no_token_of_somebody_else(house: House) -> None:
    ann, bob = await house.people(2)
    tablet = await ann.another_device()
    async with ann.wire() as wire:
        for other in (bob, tablet):
            await wire.say("auth", accessToken=other.access_token, ref="r")
            assert (await wire.refused("invalid-request"))["ref"] == "r"
        await wire.say("auth", accessToken="canary")
        await wire.refused("not-authenticated")
        assert [frame["type"] for frame in await wire.fence()] == []


async def end_by_logout(person: Person) -> None:
    await person.http.post("/auth/logout")


async def end_by_removal(person: Person) -> None:
    other = await person.another_device()
    await other.http.delete(f"/devices/{person.device_id}")


async def end_by_reuse(person: Person) -> None:
    for expected in (200, 401):  # the second time it is a stolen one
        answer = await person.http.post("/auth/refresh", json={"refreshToken": person.refresh_token})
        assert answer.status_code == expected


async def end_by_new_session(person: Person) -> None:
    await person.house.sign_up(person.phone_number, deviceId=person.device_id)


@pytest.mark.parametrize("end", [end_by_logout, end_by_removal, end_by_reuse, end_by_new_session])
async def test_the_end_of_a_session_closes_its_sockets_and_no_others(house: House, end: Any) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    tablet = await ann.another_device()
    async with ann.wire() as lost, tablet.wire() as kept:
        await end(ann)
        assert (await lost.hear_until("session:goodbye"))[-1]["reason"] == "not-authenticated"
        assert await lost.closed() == 4401
        async with open_wire(house) as wire:
            await wire.say("auth", accessToken=ann.access_token)
            assert await wire.closed() == 4401
        assert (await ann.http.get("/users/me")).status_code == 401
        await kept.fence()
        await bob.post(conversation, "x", "t-1")
        assert (await kept.hear("message:new"))["message"]["content"] == "x"


async def test_the_server_waits_for_the_other_half_of_a_close(house: House) -> None:
    """A socket that is closed while its peer still sends is reset, and a reset may overtake the close code."""
    ann, bob = await house.people(2)
    async with bob.wire() as other, open_raw_socket(house) as raw:
        await authenticated(raw, ann)
        await ann.http.post("/auth/logout")
        assert (await raw.read_to_the_close())[1] == 4401
        await raw.put(1, b"still talking")
        assert await other.fence() == []
        assert house.app.hub.session_count == 2
        await raw.put(8, (4401).to_bytes(2, "big"))
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await raw.take()


async def test_a_user_has_only_so_many_sockets(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data", limits__connections_per_user="2") as house:
        ann, bob = await house.people(2)
        async with ann.wire() as first, ann.wire(), bob.wire():
            async with open_wire(house) as third:
                await third.say("auth", accessToken=ann.access_token)
                await third.refused("too-many-connections")
                assert await third.closed() == 4429
            await first.socket.aclose()
            with trio.fail_after(5):
                while house.app.hub.session_count > 2:
                    await trio.lowlevel.checkpoint()
            async with ann.wire() as again:
                assert await again.fence() == []


# --- too much, too slow ----------------------------------------------------------------------------------------------


async def test_a_reader_that_never_reads_is_cut_and_the_room_goes_on(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data", limits__outbox_kib="64", limits__frame_kib="64") as house:
        ann, bob, eve = await house.people(3)
        conversation = await ann.open("group", bob, eve)
        text = "a" * limits.CONTENT_BYTES_MAX
        async with ann.wire() as sender, bob.wire() as good, open_raw_socket(house, receive_bytes=4096) as slow:
            await authenticated(slow, eve)
            [session] = house.app.hub._users[eve.id]
            count = 0
            while not session.outbox.overflowed:
                count += 1
                assert count < 2000, "the kernel takes it all"
                await sender.send(conversation, text, f"t-{count}")
                assert (await good.hear("message:new"))["message"]["sequenceNumber"] == count
            for more in range(count + 1, count + 4):  # nobody waits for it
                await sender.send(conversation, text, f"t-{more}")
                assert (await good.hear("message:new"))["message"]["sequenceNumber"] == more
            frames, code = await slow.read_to_the_close()
            assert code == 4408
        seen = [frame["message"]["sequenceNumber"] for frame in frames if frame["type"] == "message:new"]
        assert seen == list(range(1, len(seen) + 1)) and len(seen) < count
        async with eve.wire(cursors={conversation: seen[-1] if seen else 0}) as again:
            missed = [frame["message"]["sequenceNumber"] for frame in again.missed if frame["type"] == "message:new"]
        assert seen + missed == list(range(1, count + 4))


async def test_a_flood_is_refused_with_when_to_come_back_and_then_cut(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data", limits__messages_per_second="1", limits__messages_burst="5") as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        heard: list[dict[str, Any]] = []

        async def flood(wire: Wire) -> None:
            for number in range(limits.REFUSED_FLOOD_MAX + 100):
                await wire.say("message:send", conversationId=conversation, content="canary", tempId=f"t-{number}")

        async with open_raw_socket(house) as wire, trio.open_nursery() as nursery:
            await authenticated(wire, ann)
            nursery.start_soon(flood, wire)
            heard, code = await wire.read_to_the_close()
            nursery.cancel_scope.cancel()
        assert code == 4429
        acks = [frame for frame in heard if frame["type"] == "message:ack"]
        errors = [frame for frame in heard if frame["type"] == "error"]
        assert len(acks) >= 5 and heard[-1]["reason"] == "flood"
        assert {(error["code"], error["retryable"]) for error in errors} == {("rate-limited", True)}
        assert all(0 < error["retryAfterMs"] <= 1001 for error in errors) and all("tempId" in each for each in errors)
        assert len(errors) > limits.REFUSED_FLOOD_MAX
        await assert_the_room_goes_on(bob, ann, conversation)


async def test_the_budget_is_the_users_on_all_transports(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data", limits__messages_per_second="0.001", limits__messages_burst="3") as house:
        ann, bob = await house.people(2)
        tablet = await ann.another_device()
        conversation = await ann.open("direct", bob)
        async with ann.wire() as wire:
            await wire.send(conversation, "1", "1")
            assert (await ann.post(conversation, "2", "2")).status_code == 201
            assert (await tablet.post(conversation, "3", "3")).status_code == 201
            answer = await tablet.post(conversation, "4", "4")
            assert (answer.status_code, answer.json()["code"]) == (429, "rate-limited")
            assert int(answer.headers["Retry-After"]) > 0 and answer.headers["RateLimit"].startswith('"messages"')
            assert [frame["type"] for frame in await wire.fence()] == ["message:new"]
            await wire.say("message:send", conversationId=conversation, content="5", tempId="5")
            await wire.refused("rate-limited")
        assert (await bob.post(conversation, "other", "1")).status_code == 201


async def test_half_open_sockets_are_dropped_and_living_ones_stay(house: House) -> None:
    house.app.hub.heartbeat_seconds = 1.2  # above the second between two sweeps
    ann, bob = await house.people(2)
    async with bob.wire() as alive, open_raw_socket(house) as dead:
        await authenticated(dead, ann)
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            while True:
                await dead.take()
        assert await alive.fence() == []
        assert house.app.hub.session_count == 1


async def test_hundreds_that_say_nothing_disturb_nobody(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    host, port = house.url.removeprefix("http://").split(":")
    silent: list[trio.SocketStream] = []
    for _ in range(200):
        silent.append(await trio.open_tcp_stream(host, int(port)))
    for stream in silent[::2]:
        await stream.send_all(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                              b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")  # fmt: skip
    await assert_the_room_goes_on(ann, bob, conversation)
    for stream in silent:
        await stream.aclose()


# --- typing ----------------------------------------------------------------------------------------------------------


async def test_typing_is_told_to_the_others_once_and_ends_with_its_socket(house: House) -> None:
    ann, bob, eve = await house.people(3)
    conversation = await ann.open("group", bob, eve)
    begun = {"type": "typing", "conversationId": conversation, "userId": bob.id, "active": True}
    async with ann.wire() as listener, eve.wire() as other:
        async with bob.wire() as typist:
            for _ in range(3):
                await typist.say("typing:start", conversationId=conversation)
            assert await typist.fence() == []
            assert await listener.fence() == [begun] and await other.fence() == [begun]
            await typist.say("typing:stop", conversationId=conversation)
            assert await listener.hear("typing") == {**begun, "active": False}
            await typist.say("typing:start", conversationId=conversation)
            assert await listener.hear("typing") == begun
        assert await listener.hear("typing") == {**begun, "active": False}
        for person in (ann, bob, eve):
            assert await person.history(conversation) == []


async def test_too_much_typing_is_refused(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with ann.wire() as wire:
        for _ in range(30):
            await wire.say("typing:start", conversationId=conversation)
        refused = await wire.fence()
        assert 15 <= len(refused) <= 20 and {frame["code"] for frame in refused} == {"rate-limited"}


class _Ear:
    """The stream of a session that keeps what it is sent."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.received_at = trio.current_time()
        self.aborted = False

    def send_nowait(self, data: bytes) -> int:
        self.heard.append(data)
        return len(data)

    def abort(self) -> None:
        self.aborted = True


def _seated(hub: Hub, conversation: str) -> tuple[Session, Any]:
    ear: Any = _Ear()
    session = Session(Actor(new_id(), new_id(), new_id(), 2**60, False), Outbox(ear, hub.flusher, 10_000), ear)
    hub.enter(session)
    hub.take_seat(session, conversation).go_live(0)
    return session, ear


@pytest.fixture
async def hub(nursery: trio.Nursery) -> Hub:
    clock, metrics = FakeClock(), Metrics()
    presence = Presence(FakeStore(), clock, Pressure(metrics, lambda: 0))
    made = Hub(clock, metrics, presence, heartbeat_seconds=30, connections_per_user=0)
    nursery.start_soon(made.flusher.run)
    nursery.start_soon(made.sweep)
    return made


async def test_typing_ends_by_itself_after_six_seconds(hub: Hub, autojump_clock: trio.testing.MockClock) -> None:
    conversation = new_id()
    (typist, _deaf), (_listener, ear) = _seated(hub, conversation), _seated(hub, conversation)
    start = Typing(conversation, typist.actor.user_id, True)
    hub.hear([start])
    await trio.sleep(4)
    hub.hear([start])  # still typing: counted from here
    await trio.sleep(5)
    assert len(ear.heard) == 1 and b'"active":true' in ear.heard[0]
    await trio.sleep(2)
    assert len(ear.heard) == 2 and b'"active":false' in ear.heard[1]
    await trio.sleep(10)
    assert len(ear.heard) == 2


async def test_the_silent_are_asked_after_one_heartbeat_and_dropped_after_two(
    hub: Hub, autojump_clock: trio.testing.MockClock
) -> None:
    (_one, silent), (_other, living) = _seated(hub, new_id()), _seated(hub, new_id())
    for second in range(60):
        assert not silent.aborted, second
        await trio.sleep(1)
        if b"\x89\x00" in living.heard:
            living.received_at = trio.current_time()  # it answers
            living.heard.clear()
    await trio.sleep(1)
    assert silent.aborted and not living.aborted
    assert silent.heard == [b"\x89\x00"]


async def test_who_has_said_nothing_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS_MAX):
        async with open_house(tmp_path / "data", server__drain_seconds="600") as house:
            port = int(house.url.rpartition(":")[2])
            async with await trio.open_tcp_stream("127.0.0.1", port) as silent, open_wire(house) as wire:
                house.app.closing.set()
                assert await wire.closed() == 1012
                assert await silent.receive_some() == b""


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x83" + bytes(4) + b"\xed\xa0\x80", 1007),
        (b"\x81\x02{}", 1002),
        (b"\xc1\x82" + bytes(4) + b"{}", 1002),
    ],
    ids=["bad UTF-8", "not masked", "a reserved bit"],
)
async def test_broken_frames_are_answered_with_a_close_frame_that_arrives(house: House, data: bytes, code: int) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with open_raw_socket(house) as raw:
        await authenticated(raw, ann)
        await raw.stream.send_all(data + bytes(300_000))  # bytes that nobody reads would reset the connection
        assert await raw.read_to_the_close() == ([], code)
        with pytest.raises(EOFError):
            await raw.take()
    await assert_the_room_goes_on(ann, bob, conversation)


async def test_a_body_where_none_is_taken_is_refused_unless_it_says_nothing(house: House) -> None:
    """Else somebody who puts `forEveryone` into the body would believe that the message is gone for everybody."""
    ann, bob = await house.people(2)
    room = await ann.open("direct", bob)
    sent = (await ann.post(room, "canary", "t-1")).json()["id"]
    for method, call in (("DELETE", f"/messages/{sent}"), ("PUT", f"/messages/{sent}/pin"), ("PUT", f"/blocks/{bob.id}")):
        refused = await ann.http.request(method, call, json={"forEveryone": True})
        assert (refused.status_code, refused.json()["errors"]) == (
            422, [{"path": "forEveryone", "message": "unknown field"}]
        )  # fmt: skip
        garbage = await ann.http.request(method, call, content=b"garbage", headers={"content-type": "text/plain"})
        assert garbage.status_code == 415
    assert [message["content"] for message in await ann.history(room)] == ["canary"]
    assert (await ann.http.request("PUT", f"/messages/{sent}/pin", json={})).status_code == 204
    assert (await ann.http.put(f"/contacts/{bob.id}")).status_code == 200, "a form of which nothing is required"


async def test_every_422_says_where(house: House) -> None:
    ann, bob = await house.people(2)
    sealed = await ann.open("direct", bob, encryption="e2ee")
    refused = (await ann.post(sealed, "plain", "t-1")).json()
    assert (refused["code"], refused["errors"]) == ("must-be-encrypted", [{"path": "", "message": refused["detail"]}])
