"""The promises of `storage.store`, asked of every store there is: the one on the disk, and the one that tests use.

A new implementation gets a line in `STORES` and nothing else. What only a disk can promise (syncs, full disks, crashes)
is asked in `test_embedded` and `test_engine`.
"""

import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from config import limits
from gearlink.clock import new_id
from storage.embedded import open_store
from storage.events import (
    Letter,
    MemberLeft,
    Message,
    MessageEdited,
    MessagesExpired,
    Plain,
    Sealed,
    SilentMessage,
)
from storage.keys import TABLES
from storage.notices import Appended, DeviceRemoved, Notice
from storage.records import Account, Amendment, Delivery, Envelope, Head, Invite, LogEntry, Member, Username
from storage.store import Outcome, Store, Transaction
from tests.changes import ANN, BOB, ROOM, Refused, appending, message, putting
from tests.fakes import FakeStore

STORES = ("embedded", "memory")


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield FakeStore()
    else:
        async with open_store(tmp_path / "data", now=0, fresh_id=new_id()) as opened:
            yield opened


# --- changes ---------------------------------------------------------------------------------------------------------


async def test_a_change_gives_its_value_and_its_records_are_there(store: Store) -> None:
    async def change(tx: Transaction) -> str:
        tx.put(Account(ANN, "+15550001", 1, 1, display_name="Ann Ωλ 🐚"))
        return "done"

    assert await store.write(change) == "done"
    assert await store.get(Account, ANN) == Account(ANN, "+15550001", 1, 1, display_name="Ann Ωλ 🐚")
    assert await store.get(Account, BOB) is None


async def test_of_many_who_claim_one_name_at_once_exactly_one_gets_it(store: Store) -> None:
    winners: list[str] = []

    async def claim(user_id: str) -> None:
        async def change(tx: Transaction) -> None:
            if await tx.get(Username, "ann") is not None:
                raise Refused
            tx.put(Username("ann", user_id))

        try:
            await store.write(change)
        except Refused:
            return
        winners.append(user_id)

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(claim, new_id())
    assert len(winners) == 1
    assert await store.get(Username, "ann") == Username("ann", winners[0])


async def test_a_change_sees_all_that_was_queued_before_it(store: Store) -> None:
    counts: list[int] = []

    async def change(tx: Transaction) -> int:
        found = await tx.scan(Username, limit=100)
        tx.put(Username(f"name{len(found)}", ANN))
        return len(found)

    for _ in range(20):
        await store.submit(change, lambda ended: counts.append(ended.unwrap()))
    await store.write(putting())
    assert counts == list(range(20))


async def test_a_change_that_raises_leaves_and_tells_nothing(store: Store) -> None:
    heard: list[Notice] = []
    store.listen(heard.extend)
    await store.write(putting(Account(ANN, "+1", 1, 1)))

    async def change(tx: Transaction) -> None:
        tx.put(Account(BOB, "+2", 1, 1))
        tx.delete(Account, ANN)
        await tx.append(ROOM, message())
        tx.announce(DeviceRemoved(ANN, BOB))
        raise Refused("no")

    with pytest.raises(Refused, match="no"):
        await store.write(change)
    assert await store.get(Account, BOB) is None
    assert await store.get(Account, ANN) is not None
    assert await store.scan(LogEntry, ROOM, limit=10) == []
    assert heard == []
    assert await store.write(appending(ROOM)) == [1]


async def test_a_refusal_touches_nobody_who_was_queued_beside_it(store: Store) -> None:
    ended: list[Outcome[list[int]]] = []

    async def refused(tx: Transaction) -> list[int]:
        await tx.append(ROOM, message())
        raise Refused

    for change in (appending(ROOM), refused, appending(ROOM)):
        await store.submit(change, ended.append)
    await store.write(putting())
    assert ended[0].unwrap() == [1]
    assert ended[2].unwrap() == [2]
    with pytest.raises(Refused):
        ended[1].unwrap()


async def test_what_no_disk_could_hold_is_refused_to_its_change_alone(store: Store) -> None:
    for hopeless in (Account(ANN, "+1", 1, 1, display_name="\ud800"), Account(ANN, "+1", 2**70, 1)):
        with pytest.raises((UnicodeEncodeError, OverflowError)):
            await store.write(putting(hopeless))
    assert await store.get(Account, ANN) is None
    await store.write(putting(Account(ANN, "+1", 1, 1)))
    assert await store.get(Account, ANN) is not None


@pytest.mark.parametrize("pause", [trio.lowlevel.checkpoint, lambda: trio.Event().wait()])
async def test_a_change_that_waits_for_anything_else_is_refused(
    store: Store, pause: Callable[[], Awaitable[None]]
) -> None:
    async def change(tx: Transaction) -> None:
        tx.put(Account(ANN, "+1", 1, 1))
        await pause()

    with pytest.raises(RuntimeError, match="nothing else"):
        await store.write(change)
    assert await store.get(Account, ANN) is None
    assert await store.write(appending(ROOM)) == [1]


async def test_a_change_that_is_no_async_function_is_refused(store: Store) -> None:
    with pytest.raises(TypeError, match="async"):
        await store.write(lambda tx: None)  # type: ignore[arg-type, return-value]
    assert await store.write(appending(ROOM)) == [1]


async def test_a_cancelled_caller_leaves_a_whole_change_or_none_and_a_store_that_works(store: Store) -> None:
    for _ in range(20):
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.write(appending(ROOM, ROOM))
    last = (await store.write(appending(ROOM)))[0]
    assert last % 2 == 1
    entries = await store.scan(LogEntry, ROOM, limit=100)
    assert [entry.sequence for entry in entries] == list(range(1, last + 1))


# --- told ------------------------------------------------------------------------------------------------------------


async def test_notices_are_told_in_the_order_of_the_changes_and_after_the_caller(store: Store) -> None:
    told: list[Any] = []

    def listener(notices: Sequence[Notice]) -> None:
        told.extend(notice.entry.sequence for notice in notices if isinstance(notice, Appended))

    store.listen(listener)
    for _ in range(30):
        await store.submit(appending(ROOM), lambda ended: told.append(("done", *ended.unwrap())))
    await store.write(putting())
    assert [each for each in told if isinstance(each, int)] == list(range(1, 31))
    assert [each[1] for each in told if isinstance(each, tuple)] == list(range(1, 31))
    assert all(told.index(("done", number)) < told.index(number) for number in range(1, 31))


async def test_what_is_told_can_be_read(store: Store) -> None:
    seen: list[LogEntry | None] = []
    told: list[LogEntry] = []
    store.listen(lambda notices: told.extend(each.entry for each in notices if isinstance(each, Appended)))
    for _ in range(5):
        await store.write(appending(ROOM))
        seen.append(await store.get(LogEntry, ROOM, told[-1].sequence))
    assert seen == told
    assert len(told) == 5


async def test_every_listener_hears_everything_also_what_puts_nothing(store: Store) -> None:
    first: list[Notice] = []
    second: list[Notice] = []
    store.listen(first.extend)
    store.listen(second.extend)

    async def change(tx: Transaction) -> None:
        tx.announce(DeviceRemoved(ANN, BOB))

    await store.write(change)
    assert first == second == [DeviceRemoved(ANN, BOB)]


async def test_the_outcome_of_a_submitted_change_is_told_once(store: Store) -> None:
    ended: list[Outcome[None]] = []

    async def refused(_tx: Transaction) -> None:
        raise Refused

    await store.submit(putting(Account(ANN, "+1", 1, 1)), ended.append)
    await store.submit(refused, ended.append)
    await store.write(putting())
    assert len(ended) == 2
    ended[0].unwrap()
    with pytest.raises(Refused):
        ended[1].unwrap()


# --- the log ---------------------------------------------------------------------------------------------------------


async def test_each_log_counts_from_one_without_a_gap_under_many_writers(store: Store) -> None:
    rooms = [new_id() for _ in range(3)]
    given: dict[str, list[int]] = {room: [] for room in rooms}
    told: dict[str, list[int]] = {room: [] for room in rooms}

    def listener(notices: Sequence[Notice]) -> None:
        for notice in notices:
            assert isinstance(notice, Appended)
            told[notice.entry.conversation_id].append(notice.entry.sequence)

    store.listen(listener)

    async def writer(number: int) -> None:
        for turn in range(12):
            room = rooms[(number + turn) % 3]
            given[room] += await store.write(appending(room))

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(writer, number)
    for room in rooms:
        assert sorted(given[room]) == told[room] == list(range(1, 121))
        assert [entry.sequence for entry in await store.scan(LogEntry, room, limit=500)] == list(range(1, 121))
        head = await store.get(Head, room)
        assert head is not None
        assert head.sequence == 120


async def test_one_change_may_append_many_times_and_to_many_logs(store: Store) -> None:
    other = new_id()
    assert await store.write(appending(ROOM, other, ROOM, ROOM)) == [1, 1, 2, 3]
    assert await store.write(appending(other, ROOM)) == [2, 4]


async def test_the_head_knows_the_newest_event_and_the_newest_message(store: Store) -> None:
    async def change(tx: Transaction) -> None:
        await tx.append(ROOM, MemberLeft(new_id(), ANN, 10, BOB))
        assert await tx.get(Head, ROOM) == Head(ROOM, 1, 0, 10)
        await tx.append(ROOM, message(at=20))
        await tx.append(ROOM, MemberLeft(new_id(), ANN, 30, BOB))

    await store.write(change)
    assert await store.get(Head, ROOM) == Head(ROOM, 3, 2, 30)


async def test_an_amendment_takes_its_number_in_the_log_and_rewrites_what_it_is_about(store: Store) -> None:
    told: list[Appended] = []
    store.listen(lambda notices: told.extend(each for each in notices if isinstance(each, Appended)))
    await store.write(appending(ROOM, ROOM))
    original = await store.get(LogEntry, ROOM, 1)
    assert original is not None and isinstance(original.event, Message)
    edited = LogEntry(ROOM, 1, msgspec.structs.replace(original.event, content=Plain("better"), edited_at=9))

    async def change(tx: Transaction) -> None:
        edit = MessageEdited(new_id(), ANN, 9, original.event.event_id, 1)
        assert await tx.append(ROOM, edit, edited) == 3
        assert await tx.append(ROOM, message(at=12)) == 4

    await store.write(change)
    assert await store.get(LogEntry, ROOM, 1) == edited
    assert [entry.sequence for entry in await store.scan(LogEntry, ROOM, limit=9)] == [1, 2, 4]
    assert [entry.sequence for entry in await store.scan(Amendment, ROOM, limit=9)] == [3]
    assert [(each.entry.sequence, each.subject) for each in told[2:]] == [(3, edited), (4, None)]
    assert await store.get(Head, ROOM) == Head(ROOM, 4, 4, 12)


async def test_an_amendment_is_no_activity_and_what_a_message_replies_to_is_told_but_not_written(store: Store) -> None:
    told: list[Appended] = []
    store.listen(lambda notices: told.extend(each for each in notices if isinstance(each, Appended)))
    await store.write(appending(ROOM))
    quoted = told[0].entry
    lie = LogEntry(ROOM, 1, msgspec.structs.replace(quoted.event, content=Plain("never said")))

    async def change(tx: Transaction) -> None:
        await tx.append(ROOM, message(at=20), lie)
        await tx.append(ROOM, MessagesExpired(new_id(), ANN, 90, ("x",)))

    await store.write(change)
    assert await store.get(LogEntry, ROOM, 1) == quoted
    assert told[1].subject == lie
    assert await store.get(Head, ROOM) == Head(ROOM, 3, 2, 20)


async def test_what_is_silent_has_a_number_beside_the_history_and_letters_are_kept_for_their_devices(
    store: Store,
) -> None:
    told: list[Appended] = []
    store.listen(lambda notices: told.extend(each for each in notices if isinstance(each, Appended)))
    phone, laptop = sorted((new_id(), new_id()))
    letters = (Letter(ANN, phone, "prekey", b"one"), Letter(ANN, laptop, "message", b"two"))
    sealed = Sealed("double-ratchet", b"", devices=(phone, laptop))

    async def change(tx: Transaction) -> None:
        await tx.append(ROOM, message(at=20))
        silent = SilentMessage(new_id(), BOB, 90, new_id(), "control", sealed, "t")
        assert await tx.append(ROOM, silent, None, letters) == 2

    await store.write(change)
    assert await store.get(Head, ROOM) == Head(ROOM, 2, 1, 20)
    assert [entry.sequence for entry in await store.scan(LogEntry, ROOM, limit=9)] == [1]
    [kept] = await store.scan(Amendment, ROOM, limit=9)
    assert (kept.sequence, told[1].entry.event, told[1].letters) == (2, kept.event, letters)
    assert await store.scan(Envelope, ROOM, limit=9) == [
        Envelope(ROOM, phone, 2, ANN, "prekey", b"one"),
        Envelope(ROOM, laptop, 2, ANN, "message", b"two"),
    ]


# --- reads inside a change -------------------------------------------------------------------------------------------


async def test_a_change_reads_its_own_puts_and_deletes(store: Store) -> None:
    await store.write(putting(Account(ANN, "+1", 1, 1), Member(ROOM, ANN, "owner", 1, 0)))

    async def change(tx: Transaction) -> None:
        tx.put(Account(ANN, "+1", 1, 2))
        assert await tx.get(Account, ANN) == Account(ANN, "+1", 1, 2)
        tx.put(Account(ANN, "+1", 1, 3))
        assert await tx.get(Account, ANN) == Account(ANN, "+1", 1, 3)
        tx.delete(Account, ANN)
        assert await tx.get(Account, ANN) is None
        tx.delete(Account, BOB)
        assert await tx.scan(Account, limit=5) == []
        tx.delete(Member, ROOM, ANN)
        assert await tx.get(Member, ROOM, ANN) is None
        tx.put(Member(ROOM, ANN, "member", 2, 0))
        assert await tx.scan(Member, ROOM, limit=5) == [Member(ROOM, ANN, "member", 2, 0)]

    await store.write(change)
    assert await store.get(Account, ANN) is None
    assert await store.get(Member, ROOM, ANN) == Member(ROOM, ANN, "member", 2, 0)


async def test_changes_that_wait_together_read_their_own_puts_before_those_of_others(store: Store) -> None:
    account = Account(ANN, "+1", 1, 0)
    ended: list[Outcome[None]] = []

    async def count_twice(tx: Transaction) -> None:
        for _ in range(2):
            found = await tx.get(Account, ANN) or account
            tx.put(msgspec.structs.replace(found, updated_at=found.updated_at + 1))

    for _ in range(5):
        await store.submit(count_twice, ended.append)
    await store.write(putting())
    for each in ended:
        each.unwrap()
    assert await store.get(Account, ANN) == msgspec.structs.replace(account, updated_at=10)


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_scan_looks_behind_what_the_change_has_deleted(store: Store, reverse: bool) -> None:
    members = [Member(ROOM, person, "member", 1, 0) for person in sorted(new_id() for _ in range(6))]
    await store.write(putting(*members))
    wanted = members[::-1] if reverse else members

    async def change(tx: Transaction) -> None:
        for member in wanted[:3]:
            tx.delete(Member, ROOM, member.user_id)
        assert await tx.scan(Member, ROOM, limit=2, reverse=reverse) == wanted[3:5]

    await store.write(change)
    assert await store.scan(Member, ROOM, limit=2, reverse=reverse) == wanted[3:5]


async def test_what_a_refused_change_did_to_a_record_is_forgotten(store: Store) -> None:
    """Again and again the same record: whatever a store remembers of it has to stay true."""
    member = Member(ROOM, ANN, "member", 1, 0)
    await store.write(putting(member))

    async def refused(tx: Transaction) -> None:
        assert await tx.get(Member, ROOM, ANN) == member
        tx.put(msgspec.structs.replace(member, role="admin"))
        raise Refused

    async def removed(tx: Transaction) -> None:
        assert await tx.get(Member, ROOM, ANN) == member
        tx.delete(Member, ROOM, ANN)

    async def absent(tx: Transaction) -> None:
        assert await tx.get(Member, ROOM, ANN) is None
        assert await tx.scan(Member, ROOM, limit=1) == []

    for _ in range(2):
        with pytest.raises(Refused):
            await store.write(refused)
    assert await store.get(Member, ROOM, ANN) == member
    await store.write(removed)
    await store.write(absent)


async def test_a_key_that_is_not_whole_is_an_error(store: Store) -> None:
    async def deleting(tx: Transaction) -> None:
        tx.delete(Member, ROOM)

    with pytest.raises(TypeError, match="key parts"):
        await store.get(Member, ROOM)
    with pytest.raises(TypeError, match="key parts"):
        await store.write(deleting)


# --- scans: against a model ------------------------------------------------------------------------------------------


def _model(rows: list[Any], fields: tuple[str, ...], case: dict[str, Any]) -> list[Any]:
    """What `scan` has to give, from sorted records and their key fields."""
    prefix, after, before = case["prefix"], case["after"], case["before"]
    found = [row for row in rows if tuple(getattr(row, field) for field in fields[: len(prefix)]) == prefix]
    if after is not None:
        found = [row for row in found if getattr(row, fields[len(prefix)]) > after]
    if before is not None:
        found = [row for row in found if getattr(row, fields[len(prefix)]) < before]
    return (found[::-1] if case["reverse"] else found)[: case["limit"]]


def _cases(parts: list[list[Any]]) -> list[dict[str, Any]]:
    """All mixes of prefix lengths, bounds, directions and limits over the values that key parts take."""
    cases = []
    for length in range(len(parts) + 1):
        bounds = [None, *parts[length]] if length < len(parts) else [None]
        for prefix in itertools.product(*parts[:length]):
            for after, before, reverse, limit in itertools.product(bounds, bounds, (False, True), (1, 3, 100)):
                cases.append({"prefix": prefix, "after": after, "before": before, "reverse": reverse, "limit": limit})
    return random.Random(7).sample(cases, min(len(cases), 400))


def _id(first: int, last: int) -> str:
    """Ids at the edges of the byte range, where prefixes overflow."""
    return f"{first:02x}000000-0000-0000-0000-0000000000{last:02x}"


_IDS = [_id(0, 0), _id(0, 255), _id(1, 0), _id(127, 1), "ffffffff-ffff-ffff-ffff-ffffffffffff"]
_DELIVERIES: list[Any] = [
    Delivery(*ids, 1, 1) for ids in itertools.product(_IDS, _IDS[::2], _IDS[1::2]) if sum(map(ord, "".join(ids))) % 3
]
_NUMBERS = [0, 1, 255, 256, 257, 2**32, 2**53 - 1]
_LOG: list[Any] = [LogEntry(room, number, MemberLeft("", "", 1, "")) for room in _IDS for number in _NUMBERS[1:-1]]
_TABLES: list[tuple[list[Any], list[list[Any]]]] = [
    (_DELIVERIES, [_IDS, _IDS, _IDS]),
    (_LOG, [_IDS, _NUMBERS]),
    ([Account(user_id, "+1", 1, 1) for user_id in _IDS[:-1]], [_IDS]),
]


@pytest.mark.parametrize(("rows", "parts"), _TABLES, ids=["three parts", "number", "one part"])
async def test_a_scan_gives_exactly_what_lies_in_its_bounds(
    store: Store, rows: list[Any], parts: list[list[Any]]
) -> None:
    shuffled = random.Random(3).sample(rows, len(rows))
    await store.write(putting(*shuffled))
    kind = type(rows[0])
    for case in _cases(parts):
        bounds = {name: value for name, value in case.items() if name != "prefix"}
        assert await store.scan(kind, *case["prefix"], **bounds) == _model(rows, TABLES[kind].fields, case), case


@pytest.mark.parametrize(("rows", "parts"), _TABLES, ids=["three parts", "number", "one part"])
async def test_a_scan_in_a_change_sees_what_is_on_top_of_the_disk(
    store: Store, rows: list[Any], parts: list[list[Any]]
) -> None:
    """A third of the rows is stored, a third comes from an earlier change that waits with it, a third is its own."""
    kind, dice = type(rows[0]), random.Random(11)
    fields = TABLES[kind].fields
    stored, earlier, own = (dice.sample(rows, len(rows) // 2 + 1) for _ in range(3))
    gone_earlier, gone_own = (dice.sample(rows, len(rows) // 4 + 1) for _ in range(2))
    trouble: list[Outcome[None]] = []

    def key(row: Any) -> tuple[Any, ...]:
        return tuple(getattr(row, field) for field in fields)

    async def first(tx: Transaction) -> None:
        for row in earlier:
            tx.put(row)
        for row in gone_earlier:
            tx.delete(kind, *key(row))

    async def second(tx: Transaction) -> None:
        now = {key(row): row for row in (*stored, *earlier)}
        for row in gone_earlier:
            now.pop(key(row), None)
        assert await tx.scan(kind, limit=1000) == [now[each] for each in sorted(now)]
        for row in own:  # after a scan: what is kept in order has to stay so
            tx.put(row)
            now[key(row)] = row
        for row in gone_own:
            tx.delete(kind, *key(row))
            now.pop(key(row), None)
        left = [now[each] for each in sorted(now)]
        for case in _cases(parts):
            bounds = {name: value for name, value in case.items() if name != "prefix"}
            assert await tx.scan(kind, *case["prefix"], **bounds) == _model(left, fields, case), case

    await store.write(putting(*stored))
    await store.submit(first, trouble.append)
    await store.submit(second, trouble.append)
    await store.write(putting())
    for ended in trouble:
        ended.unwrap()


# --- sweeps ----------------------------------------------------------------------------------------------------------


async def test_a_sweep_takes_what_has_expired_and_nothing_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SWEEP_ROWS_PER_STEP", 3)
    invites = [Invite(bytes([number]) * 32, 1, expires_at=number) for number in range(20)]
    await store.write(putting(*invites))
    assert await store.sweep(Invite, now=7) == 8
    assert await store.scan(Invite, limit=100) == invites[8:]
    assert await store.sweep(Invite, now=7) == 0
    assert await store.sweep(Invite, now=100) == 12
    assert await store.scan(Invite, limit=100) == []


async def test_a_store_says_its_epoch(store: Store) -> None:
    assert len(store.epoch) == 36
    assert store.epoch == store.epoch.lower()
