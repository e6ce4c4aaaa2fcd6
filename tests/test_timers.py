"""What is due is done at its time, once it is due and not before, again after a crash, and never holds up the rest."""

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from gearlink.timers import Timers
from storage.records import Due
from storage.store import StoreBroken, StoreFull
from tests.changes import ANN, BOB, putting
from tests.fakes import FakeClock, FakeStore

Done = list[tuple[str, str, list[int]]]


def timers(store: FakeStore, clock: FakeClock, done: Done, trouble: dict[str, Exception] | None = None) -> Timers:
    async def ring(subject_id: str, owner_id: str, numbers: Sequence[int]) -> None:
        await trio.lowlevel.checkpoint()
        if trouble and (raised := trouble.pop(subject_id, None)):
            raise raised
        done.append((subject_id, owner_id, list(numbers)))

    return Timers(store, clock, {"ring": ring})


async def test_what_is_due_is_done_once_and_what_is_not_waits() -> None:
    store, clock, done = FakeStore(), FakeClock(), Done()
    now = clock.now()
    await store.write(putting(Due(now, "ring", ANN, 1), Due(now + 1000, "ring", ANN, 2)))
    ringing = timers(store, clock, done)
    assert not await ringing.tick()
    assert done == [(ANN, "", [1])]
    clock.advance(seconds=1)
    assert not await ringing.tick()
    assert not await ringing.tick()
    assert done == [(ANN, "", [1]), (ANN, "", [2])]
    assert store.all(Due) == []


async def test_what_is_due_together_for_one_subject_is_one_step() -> None:
    store, clock, done = FakeStore(), FakeClock(), Done()
    now = clock.now()
    await store.write(putting(*(Due(now - at, "ring", ANN, at, BOB) for at in range(3)), Due(now, "ring", BOB, 7)))
    await timers(store, clock, done).tick()
    assert sorted(done) == sorted([(ANN, BOB, [0, 1, 2]), (BOB, "", [7])])


async def test_a_crash_after_the_step_makes_it_run_again_and_nothing_is_forgotten() -> None:
    store, clock, done = FakeStore(), FakeClock(), Done()
    await store.write(putting(Due(clock.now(), "ring", ANN, 1)))
    store.fail_next = StoreFull("no room")
    with pytest.raises(StoreFull):
        await timers(store, clock, done).tick()
    await timers(store, clock, done).tick()
    assert done == [(ANN, "", [1])] * 2
    assert store.all(Due) == []


async def test_a_bug_with_one_thing_is_put_off_and_the_others_are_done() -> None:
    store, clock, done = FakeStore(), FakeClock(), Done()
    await store.write(putting(Due(clock.now(), "ring", ANN, 1), Due(clock.now(), "ring", BOB, 2)))
    ringing = timers(store, clock, done, {ANN: ValueError()})
    await ringing.tick()
    assert done == [(BOB, "", [2])]
    await ringing.tick()
    assert done == [(BOB, "", [2])], "not at once again"
    clock.advance(minutes=1)
    await ringing.tick()
    assert done == [(BOB, "", [2]), (ANN, "", [1])]


async def test_what_cannot_be_read_is_tried_again_and_the_others_are_done() -> None:
    store, clock, done = FakeStore(), FakeClock(), Done()
    await store.write(putting(Due(clock.now(), "ring", ANN, 1), Due(clock.now(), "ring", BOB, 2)))
    ringing = timers(store, clock, done, {ANN: StoreBroken("a record is damaged")})
    with pytest.raises(StoreBroken):
        await ringing.tick()
    assert done == [(BOB, "", [2])]
    await ringing.tick()
    assert done == [(BOB, "", [2]), (ANN, "", [1])]


async def test_a_full_disk_holds_nothing_up_for_good(autojump_clock: trio.testing.MockClock) -> None:
    store, clock, done = FakeStore(), FakeClock(), Done()
    await store.write(putting(Due(clock.now(), "ring", ANN, 1)))
    ringing = timers(store, clock, done, {ANN: StoreFull("no room")})
    async with trio.open_nursery() as nursery:
        await nursery.start(ringing.run)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert done == [(ANN, "", [1])]
