"""What is shed when there is too much to do: in which order, how soon, for how long, and what goes on all the same."""

from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from config import limits
from config.limits import PRESSURE_BACKLOG_SHARES, PRESSURE_CALM_SECONDS, PRESSURE_LAG_MS, WRITE_QUEUE_MAX
from gearlink.accounts import Actor
from gearlink.clock import new_id
from gearlink.errors import Refusal
from gearlink.journal import Metrics
from gearlink.pressure import Load, Pressure
from gearlink.receipts import Receipts
from storage.embedded import EmbeddedStore
from storage.records import Conversation, Delivery, Head, Member
from storage.store import Transaction
from tests.fakes import FakeClock, FakeStore
from tests.house import SECONDS_MAX, House, open_house

LEVELS = range(len(Load) + 1)


class Server:
    """A pressure without a server: `backlog` and time are what the test says."""

    def __init__(self) -> None:
        self.metrics, self.seconds, self.backlog = Metrics(), 0.0, 0
        self.pressure = Pressure(self.metrics, lambda: self.backlog, now=lambda: self.seconds)

    def lags(self, seconds: float, times: int = 3) -> int:
        """So many measurements of this lag; the level after them."""
        for _ in range(times):
            self.pressure.feel(seconds, 0)
        return self.pressure.level

    def waits(self, changes: float) -> int:
        self.pressure.feel(0.0, int(changes))
        return self.pressure.level

    def figure(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def server() -> Server:
    return Server()


# --- levels -----------------------------------------------------------------------------------------------------------


def test_typing_goes_first_then_presence_receipts_sign_ups_and_messages_last(server: Server) -> None:
    gone: list[list[Load]] = []
    for share in (0.0, *PRESSURE_BACKLOG_SHARES):
        server.waits(share * WRITE_QUEUE_MAX)
        gone.append([load for load in Load if server.pressure.sheds(load)])
    order = [Load.TYPING, Load.PRESENCE, Load.RECEIPTS, Load.SIGN_UPS, Load.MESSAGES]
    assert gone == [order[:level] for level in LEVELS]


@pytest.mark.parametrize("level", LEVELS)
def test_each_threshold_of_lag_and_of_backlog_begins_a_level(server: Server, level: int) -> None:
    share = (0.0, *PRESSURE_BACKLOG_SHARES)[level]
    beyond = (*PRESSURE_BACKLOG_SHARES, 99)[level]
    assert server.waits(share * WRITE_QUEUE_MAX) == level
    assert server.waits(beyond * WRITE_QUEUE_MAX - 1) == level
    lag, more = (0, *PRESSURE_LAG_MS)[level], (*PRESSURE_LAG_MS, 10**6)[level]
    late = Server()
    assert late.lags(lag / 1000) == level
    assert late.lags((more - 1) / 1000) == level


def test_the_worse_of_lag_and_backlog_counts(server: Server) -> None:
    assert server.lags(PRESSURE_LAG_MS[1] / 1000) == 2
    server.pressure.feel(PRESSURE_LAG_MS[1] / 1000, WRITE_QUEUE_MAX)
    assert server.pressure.level == 4


def test_one_hiccup_is_no_load_and_a_lag_that_stays_is(server: Server) -> None:
    assert server.lags(60.0, times=1) == 0
    assert server.lags(0.0, times=3) == 0
    assert server.lags(60.0, times=2) == len(Load)


def test_it_comes_up_at_once_and_goes_down_one_step_for_each_calm_second(server: Server) -> None:
    assert server.waits(2 * WRITE_QUEUE_MAX) == 5
    seen = []
    for _ in range(6):
        server.waits(0)
        server.seconds += PRESSURE_CALM_SECONDS * 0.99
        seen.append(server.waits(0))
        server.seconds += PRESSURE_CALM_SECONDS * 0.01
        seen.append(server.waits(0))
    assert seen == [5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0, 0]


def test_a_second_that_was_not_calm_throughout_does_not_count(server: Server) -> None:
    server.waits(WRITE_QUEUE_MAX)
    for _ in range(20):
        assert server.waits(0) == 4
        server.seconds += PRESSURE_CALM_SECONDS / 2
        assert server.waits(WRITE_QUEUE_MAX) == 4
        server.seconds += PRESSURE_CALM_SECONDS / 2


def test_who_is_refused_hears_when_to_come_back_and_not_all_at_the_same_moment(server: Server) -> None:
    server.pressure.check(Load.MESSAGES)
    server.waits(2 * WRITE_QUEUE_MAX)
    waits = set()
    for _ in range(20):
        with pytest.raises(Refusal) as caught:
            server.pressure.check(Load.MESSAGES)
        assert caught.value.code == "overloaded" and caught.value.entry.retryable
        waits.add(caught.value.retry_after_seconds)
    assert len(waits) > 1 and all(wait is not None and 1 <= wait <= 2 for wait in waits)
    assert server.figure("load_shed_total", what="messages") == 20


def test_the_level_and_what_was_shed_are_seen_in_the_metrics(server: Server) -> None:
    assert server.figure("load_level") == 0
    assert {load: server.figure("load_shed_total", what=load.label) for load in Load} == dict.fromkeys(Load, 0)
    server.waits(WRITE_QUEUE_MAX)
    for load in Load:
        for _ in range(load):
            server.pressure.shed(load)
    assert server.figure("load_level") == 4
    assert server.figure("load_shed_total", what="typing") == 1
    assert server.figure("load_shed_total", what="sign-ups") == 4


# --- measuring and acting ---------------------------------------------------------------------------------------------


async def test_the_loop_that_comes_late_is_felt_and_so_is_its_recovery(
    mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    pressure = Pressure(Metrics(), lambda: 0)
    await nursery.start(pressure.run)

    async def probe(late_seconds: float) -> int:
        """The level after the next measurement, for which the loop comes so much too late."""
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(limits.PRESSURE_PROBE_SECONDS + late_seconds)
        await trio.testing.wait_all_tasks_blocked()
        return pressure.level

    assert [await probe(0.0) for _ in range(3)] == [0, 0, 0]
    assert [await probe(0.7) for _ in range(3)] == [0, 3, 3]
    calm = [await probe(0.0) for _ in range(40)]
    assert calm == sorted(calm, reverse=True) and set(calm) == {3, 2, 1, 0}


async def test_what_waits_for_the_writer_is_looked_at_several_times_a_second(autojump_clock: MockClock) -> None:
    waiting = 0
    pressure = Pressure(Metrics(), lambda: waiting)
    async with trio.open_nursery() as nursery:
        await nursery.start(pressure.run)
        waiting = 2 * WRITE_QUEUE_MAX
        await trio.sleep(limits.PRESSURE_PROBE_SECONDS + 0.01)
        assert pressure.level == 5
        waiting = 0
        await trio.sleep(5 * PRESSURE_CALM_SECONDS + 1)
        assert pressure.level == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("level", "writes"), [(2, 20), (3, 1)], ids=["usually", "under pressure"])
async def test_receipts_gather_longer_under_pressure_and_none_is_lost(
    server: Server, level: int, writes: int, autojump_clock: MockClock
) -> None:
    room, device = new_id(), new_id()
    store = FakeStore()
    receipts = Receipts(store, FakeClock(), Mock(), server.pressure, lambda: 0.0)
    ann = Actor(new_id(), device, new_id(), 2**50, False)

    async def move_in(tx: Transaction) -> None:
        tx.put(Conversation(room, "group", "server", "", "", ann.user_id, 1, 1, member_count=1, owner_count=0))
        tx.put(Member(room, ann.user_id, "member", joined_at=1, joined_sequence=0))
        tx.put(Head(room, sequence=100, message_sequence=100, active_at=1))

    await store.write(move_in)
    server.waits(PRESSURE_BACKLOG_SHARES[level - 1] * WRITE_QUEUE_MAX)
    async with trio.open_nursery() as nursery:
        await nursery.start(receipts.run)
        before = store.writes
        for sequence in range(1, 21):
            receipts.note(ann, room, delivered=sequence)
            await trio.sleep(0.09)
        await trio.sleep(limits.RECEIPTS_SHED_SECONDS - 20 * 0.09 + 0.01)
        assert store.writes - before == writes
        nursery.cancel_scope.cancel()
    delivery = await store.get(Delivery, room, ann.user_id, device)
    assert delivery is not None and delivery.sequence == 20
    assert (server.figure("load_shed_total", what="receipts") or 0) == (writes == 1)


# --- over both doors --------------------------------------------------------------------------------------------------


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path / "data") as opened:
        yield opened


def press(house: House, level: int) -> None:
    """So many changes wait for the writer that this is the level."""
    share = (0.0, *PRESSURE_BACKLOG_SHARES)[level]
    house.app.pressure.feel(0.0, int(share * WRITE_QUEUE_MAX))
    assert house.app.pressure.level == level


def shed(house: House, what: str) -> float | None:
    return house.app.metrics.registry.get_sample_value("load_shed_total", {"what": what})


async def test_at_the_first_level_typing_is_dropped_without_a_word_and_messages_pass(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    async with ann.wire() as typist, bob.wire() as listener:
        await typist.say("typing:start", conversationId=conversation)
        await typist.fence()
        assert (await listener.hear("typing"))["active"]
        press(house, 1)
        await typist.say("typing:stop", conversationId=conversation)
        await typist.say("typing:start", conversationId=conversation, ref="r-1")
        assert (await typist.hear("ok"))["ref"] == "r-1"
        await typist.send(conversation, "hello", "t-1")
        assert (await listener.hear("message:new"))["message"]["content"] == "hello"  # and nothing before it
    assert shed(house, "typing") == 2 and shed(house, "messages") == 0


async def test_at_the_fourth_level_nobody_can_sign_up_and_messages_pass(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    press(house, 4)
    async with ann.wire() as sender, bob.wire() as listener:
        for number in (ann.phone_number, "+15551239999"):  # known or not: the answer does not tell
            answer = await ann.http.post("/auth/verify/request", json={"phoneNumber": number})
            assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
            assert int(answer.headers["Retry-After"]) in (1, 2)
        await sender.send(conversation, "1", "t-1")
        assert (await bob.post(conversation, "2", "t-2")).status_code == 201
        assert [(await listener.hear("message:new"))["message"]["content"] for _ in range(1)] == ["1"]
        assert (await ann.http.post("/auth/refresh", json={"refreshToken": ann.refresh_token})).status_code == 200
    assert shed(house, "sign-ups") == 2 and shed(house, "messages") == 0


async def test_at_the_last_level_messages_are_refused_at_both_doors_and_reading_goes_on(house: House) -> None:
    ann, bob = await house.people(2)
    conversation = await ann.open("direct", bob)
    await ann.post(conversation, "before", "t-1")
    press(house, 5)
    async with ann.wire() as wire:
        await wire.say("message:send", conversationId=conversation, content="x", tempId="t-2", ref="r-1")
        refused = await wire.refused("overloaded")
        assert refused["retryable"] and 1000 <= refused["retryAfterMs"] <= 2001
        assert (refused["tempId"], refused["ref"]) == ("t-2", "r-1")
        answer = await bob.post(conversation, "x", "t-2")
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        assert int(answer.headers["Retry-After"]) in (1, 2)
        assert [message["content"] for message in await bob.history(conversation)] == ["before"]
        assert house.app.metrics.registry.get_sample_value("message_send_total", {"status": "refused"}) == 2
        assert shed(house, "messages") == 2
        house.app.pressure.level = 0
        assert (await wire.send(conversation, "x", "t-2"))["sequenceNumber"] == 2  # the same one again


async def test_a_running_server_feels_what_piles_up_before_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(tmp_path / "data", measures_load=True) as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        monkeypatch.setattr(EmbeddedStore, "backlog", 2 * WRITE_QUEUE_MAX)
        with trio.fail_after(SECONDS_MAX):
            while (answer := await ann.post(conversation, "x", new_id())).status_code == 201:
                pass
        assert answer.json()["code"] == "overloaded"
        page = await ann.http.get(house.url + "/metrics")
        assert "\nload_level 5.0\n" in page.text and 'load_shed_total{what="messages"} 1.0' in page.text


# --- budgets, over both doors -----------------------------------------------------------------------------------------


async def test_an_address_has_one_budget_for_all_its_people_and_both_doors(tmp_path: Path) -> None:
    chosen = {"limits__messages_per_second": "1000", "limits__address_messages_per_second": "0.001"}
    async with open_house(tmp_path / "data", server__trusted_proxies="127.0.0.1", **chosen) as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        async with ann.wire() as wire:  # from 127.0.0.1, as the proxy said nothing
            await wire.send(conversation, "1", "t-1")
            assert (await bob.post(conversation, "2", "t-2")).status_code == 429
            await wire.say("message:send", conversationId=conversation, content="3", tempId="t-3")
            await wire.hear_until("error")
        for address, status in (("2001:db8::1", 201), ("2001:db8::2", 429), ("2001:db8:0:1::1", 201)):
            bob.http.headers["X-Forwarded-For"] = address
            answer = await bob.post(conversation, "4", f"t-{address}")
            assert answer.status_code == status, address
            if status == 429:
                assert answer.headers["RateLimit-Policy"].startswith('"address-messages"')


async def test_a_users_bytes_are_counted_as_utf_8_at_both_doors(tmp_path: Path) -> None:
    chosen = {"limits__messages_per_second": "1000", "limits__message_kib_per_second": "4"}
    async with open_house(tmp_path / "data", **chosen) as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        async with ann.wire() as wire:
            await wire.send(
                conversation, "\N{SNOWMAN}" * 5000, "t-1"
            )  # 15,000 bytes, 7 KiB more than there are at once
            answer = await ann.post(conversation, "x", "t-2")
            assert (answer.status_code, answer.json()["code"]) == (429, "rate-limited")
            assert answer.headers["RateLimit-Policy"] == '"message-bytes";q=8192;qu="content-bytes";w=2'
            await wire.say("message:send", conversationId=conversation, content="x", tempId="t-2")
            await wire.refused("rate-limited")
        assert (await bob.post(conversation, "x", "t-3")).status_code == 201
