"""State at a cursor, and the events from there on, are the state at the end: for random histories and every kind of reader.

The default run is short. `GEARLINK_SIM_EXAMPLES=2000` makes it as long as you have time for.
"""

import os
import random
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config import limits
from gearlink.clock import new_id
from storage.embedded import open_store
from tests.fakes import FakeClock, FakeStore
from tests.sim.world import Caller, Deed, Reader, Resident, Visitor, World, differences

EXAMPLES = int(os.environ.get("GEARLINK_SIM_EXAMPLES", "120"))
STEPS = 80
KINDS = (
    *("send",) * 8, *("edit", "delete", "react", "pin", "vote") * 2, *("add", "remove", "listen") * 4,
    *("appoint", "rename", "prefer", "draft", "read", "wait") * 2, *("found", "dissolve", "crash", "restore"),
)  # fmt: skip
DEEDS = st.builds(
    Deed, st.sampled_from(KINDS), st.integers(0, 2), st.integers(0, 2), st.integers(0, 15)
)  # fmt: skip


def copy_of(store: FakeStore, *, epoch: str | None = None) -> FakeStore:
    """The same data in a store that nobody listens to; of another epoch if it was restored."""
    copy = FakeStore()
    copy.epoch = epoch or copy.epoch
    copy._rows = {kind: dict(rows) for kind, rows in store._rows.items()}
    return copy


class History:
    """One history on a store in memory: `world` and the copies of it that were kept."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.world = World(self.store, FakeClock())
        self.kept: FakeStore | None = None

    async def run(self, deeds: list[Deed]) -> None:
        world = self.world
        await world.settle_in()
        for who in range(3):
            await world.reader(Resident, who)
            await world.reader(Visitor, who)
            await world.reader(Caller, who)
        for reader in world.readers:
            await reader.look()
        await world.do(Deed("found", 0, 0, 7))
        self.kept = copy_of(self.store)
        async with trio.open_nursery() as nursery:
            for deed in deeds:
                if deed.kind in ("crash", "restore"):
                    await self._strike(deed)
                else:
                    await world.do(deed)
            await nursery.start(world.house.storms.run)
            await world.calm()
            await compare(world)
            nursery.cancel_scope.cancel()

    async def _strike(self, deed: Deed) -> None:
        """The server ends without a word and begins again; or, now and then, with an older copy of its data."""
        is_restored = deed.kind == "restore" and deed.what % 4 == 0
        if deed.kind == "restore" and not is_restored:
            self.kept = copy_of(self.store)
            return
        assert self.kept is not None
        self.store = copy_of(self.kept) if is_restored else copy_of(self.store, epoch=self.store.epoch)
        self.world.open(self.store)
        for reader in self.world.readers:
            await reader.restarted()


async def compare(world: World) -> None:
    """Every reader, and new devices as well, against what the server shows."""
    for who in range(3):
        for kind in (Visitor, Caller):
            await world.reader(kind, who)
    for reader in world.readers:
        await reader.catch_up()
        wrong = list(differences(await world.seen(reader.client), await world.truth(reader.actor.user_id)))
        assert not wrong, (describe(reader), *wrong)
        if not isinstance(reader, Resident):  # who hears only of what moves
            await compare_marks(reader)


async def compare_marks(reader: Reader) -> None:
    """Whoever catches up knows how far the others have read."""
    for room_id, room in reader.client.rooms.items():
        _delivered, read = await reader.world.domain.receipts.moved_since(room_id, reader.actor.user_id, 0)
        expected = {mark.user_id: mark.sequence for mark in read.marks}
        known = {user_id: mark for (kind, user_id), mark in room.marks.items() if kind == "message:read"}
        if room.knows_marks:
            assert {user: known.get(user, 0) for user in expected} == expected, describe(reader)


def describe(reader: Reader) -> str:
    return f"{type(reader).__name__} of user {reader.world.users.index(reader.actor.user_id)}"


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short history reaches them."""
    monkeypatch.setattr(limits, "SYNC_FIRST_EVENTS_MAX", 12)
    monkeypatch.setattr(limits, "SYNC_PAGE_EVENTS", 4)
    monkeypatch.setattr(limits, "SYNC_VIEWS_MAX", 2)
    monkeypatch.setattr(limits, "CHANGES_TOLD_PER_SECOND", 2)


# A conversation in which nothing has happened is introduced again, and its draft with it, however old that is.
_BEGUN_AGAIN = [
    *[Deed("send", 0, 0, 1)] * 3, Deed("draft", 0, 0, 1), Deed("found", 0, 0, 0), *[Deed("send", 0, 0, 0)] * 13,
    Deed("wait", 0, 0, 10), Deed("listen", 0, 0, 1),
]  # fmt: skip


@settings(max_examples=EXAMPLES)
@example(deeds=_BEGUN_AGAIN)
@given(deeds=st.lists(DEEDS, min_size=STEPS // 4, max_size=STEPS))
def run_histories(deeds: list[Deed]) -> None:
    trio.run(History().run, deeds, clock=trio.testing.MockClock(autojump_threshold=0))


def test_every_reader_of_a_history_comes_to_what_the_server_shows(small_bounds: None) -> None:
    run_histories()


@pytest.mark.parametrize("seed", range(2))
async def test_the_same_holds_over_crashes_of_a_store_on_disk(tmp_path: Path, seed: int, small_bounds: None) -> None:
    chance = random.Random(seed)
    clock, world = FakeClock(), None
    for _life in range(3):
        async with open_store(tmp_path, now=clock.now(), fresh_id=new_id()) as store, trio.open_nursery() as nursery:
            if world is None:
                world = World(store, clock)
                await world.settle_in()
                for kind in (Resident, Visitor, Caller):
                    await world.reader(kind, 1)
                await world.do(Deed("found", 0, 0, 7))
            else:
                world.open(store)
            for reader in world.readers:
                await reader.restarted()
            for _step in range(60):
                kind = chance.choice([kind for kind in KINDS if kind not in ("crash", "restore")])
                await world.do(Deed(kind, chance.randrange(3), chance.randrange(3), chance.randrange(16)))
            await nursery.start(world.house.storms.run)
            await world.calm()
            await compare(world)
            nursery.cancel_scope.cancel()
