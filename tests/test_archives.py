"""Archives and reports: what is kept of whom and for how long, how much of it, and that nothing is left behind."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from msgspec import structs

from config import limits
from config.settings import Settings, with_values
from gearlink.accounts import Actor
from gearlink.archives import END_ARCHIVES, Archives
from gearlink.calls import ArchiveForm, DecryptionReport
from gearlink.clock import DAY, new_id, rfc3339
from gearlink.journal import Metrics
from gearlink.reports import Reports
from gearlink.timers import Timers
from storage.records import Archive, ArchiveChunk, Due
from storage.store import StoreFull
from tests.changes import putting
from tests.fakes import FakeClock, FakeStore
from tests.people import ALICE, House, refused

MIB = 1 << 20
BACKUP, TRANSFER = ArchiveForm(kind="backup"), ArchiveForm(kind="transfer")


def somebody() -> Actor:
    return Actor(new_id(), new_id(), new_id(), 1 << 60, False)


class Shelf:
    """Archives over a fake store, with the timer that ends them."""

    def __init__(self, archive_mib: int = 256) -> None:
        self.store, self.clock = FakeStore(), FakeClock()
        self.archives = Archives(self.store, self.clock, with_values(Settings(), {"limits.archive_mib": archive_mib}))
        self.ann, self.bob = somebody(), somebody()
        self.id = new_id()

        async def end(user_id: str, _owner_id: str, _numbers: Any) -> None:
            await self.archives.expire(user_id)

        self.timers = Timers(self.store, self.clock, {END_ARCHIVES: end})

    def set(self, archive_mib: int) -> None:
        self.archives.reload(with_values(Settings(), {"limits.archive_mib": archive_mib}))

    async def fill(
        self, *chunks: bytes, kind: ArchiveForm = BACKUP, archive_id: str = "", by: Actor | None = None
    ) -> None:
        """An archive with these chunks."""
        actor, named = by or self.ann, archive_id or self.id
        await self.archives.make(actor, named, kind)
        for number, data in enumerate(chunks):
            await self.archives.put(actor, named, number, data)

    async def seen(self, actor: Actor | None = None) -> dict[str, tuple[str, int, int]]:
        """By id: kind, chunks and size."""
        page = await self.archives.list(actor or self.ann, 50, None)
        return {each.archive_id: (each.kind, each.chunk_count, each.size_bytes) for each in page.items}

    async def read(self, number: int, actor: Actor | None = None) -> bytes:
        return await self.archives.read(actor or self.ann, self.id, number)

    def left(self) -> tuple[int, int]:
        """Archives and chunks in the store, whoever may see them."""
        return len(self.store.all(Archive)), len(self.store.all(ArchiveChunk))


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


# --- writing and reading ----------------------------------------------------------------------------------------------


async def test_chunks_come_back_as_they_were_and_the_list_says_what_is_there(shelf: Shelf) -> None:
    await shelf.fill(b"manifest", bytes(range(256)))
    shelf.clock.advance(minutes=5)
    await shelf.archives.put(shelf.ann, shelf.id, 0, b"another manifest")
    assert [await shelf.read(number) for number in (0, 1)] == [b"another manifest", bytes(range(256))]
    [view] = (await shelf.archives.list(shelf.ann, 50, None)).items
    assert (view.archive_id, view.device_id, view.chunk_count, view.size_bytes) == (
        shelf.id, shelf.ann.device_id, 2, 16 + 256,
    )  # fmt: skip
    assert (view.created_at, view.updated_at) == (
        rfc3339(shelf.clock.now() - 5 * 60_000), rfc3339(shelf.clock.now()),
    )  # fmt: skip
    assert not view.expires_at


async def test_no_hole_is_ever_left_and_a_broken_upload_goes_on_where_it_was(shelf: Shelf) -> None:
    await shelf.archives.make(shelf.ann, shelf.id, BACKUP)
    for number in (1, 2, limits.ARCHIVE_CHUNKS_MAX):
        with refused("invalid-request") as refusal:
            await shelf.archives.put(shelf.ann, shelf.id, number, b"x")
        assert refusal.value.errors and refusal.value.errors[0]["path"] == "number"
    await shelf.fill(b"a", b"b")
    with refused("invalid-request"):
        await shelf.archives.put(shelf.ann, shelf.id, 3, b"d")
    at = (await shelf.seen())[shelf.id][1]
    for number, data in ((at - 1, b"b"), (at, b"c"), (at + 1, b"d")):  # what was under way is said again
        await shelf.archives.put(shelf.ann, shelf.id, number, data)
    assert [await shelf.read(number) for number in range(4)] == [b"a", b"b", b"c", b"d"]
    with refused("not-found"):
        await shelf.read(4)


async def test_the_same_chunk_again_writes_nothing(shelf: Shelf) -> None:
    await shelf.fill(b"a", b"b")
    before = shelf.store.all(Archive)
    shelf.clock.advance(minutes=1)
    await shelf.archives.put(shelf.ann, shelf.id, 1, b"b")
    assert shelf.store.all(Archive) == before


async def test_making_it_again_changes_nothing_and_another_kind_is_another_archive(shelf: Shelf) -> None:
    await shelf.fill(b"a")
    view, is_new = await shelf.archives.make(shelf.ann, shelf.id, BACKUP)
    assert not is_new and view.chunk_count == 1
    with refused("invalid-request") as refusal:
        await shelf.archives.make(shelf.ann, shelf.id, TRANSFER)
    assert refusal.value.errors and refusal.value.errors[0]["path"] == "kind"
    assert await shelf.seen() == {shelf.id: ("backup", 1, 1)}


async def test_an_empty_chunk_is_none(shelf: Shelf) -> None:
    await shelf.fill(b"a")
    for number in (0, 1):
        with refused("invalid-request"):
            await shelf.archives.put(shelf.ann, shelf.id, number, b"")
    assert await shelf.read(0) == b"a"


async def test_an_archive_is_its_owners_alone(shelf: Shelf) -> None:
    await shelf.fill(b"ann's")
    for number in (0, 1):
        with refused("not-found"):
            await shelf.archives.put(shelf.bob, shelf.id, number, b"bob's")
        with refused("not-found"):
            await shelf.read(number, shelf.bob)
    await shelf.archives.delete(shelf.bob, shelf.id)
    assert await shelf.seen(shelf.bob) == {}
    await shelf.fill(b"bob's own", by=shelf.bob)  # the same id is another archive
    await shelf.archives.delete(shelf.bob, shelf.id)
    assert await shelf.read(0) == b"ann's" and shelf.left() == (1, 1)


async def test_what_the_disk_did_not_take_is_not_counted(shelf: Shelf) -> None:
    await shelf.fill(b"a")
    shelf.store.fail_next = StoreFull("no room")
    with pytest.raises(StoreFull):
        await shelf.archives.put(shelf.ann, shelf.id, 1, b"b")
    assert await shelf.seen() == {shelf.id: ("backup", 1, 1)} and shelf.left() == (1, 1)


# --- how much ---------------------------------------------------------------------------------------------------------


async def test_all_archives_of_a_user_share_one_quota(shelf: Shelf) -> None:
    shelf.set(1)
    other, half = new_id(), bytes(MIB // 2)
    await shelf.fill(half)
    await shelf.fill(half, archive_id=other)
    for archive_id, number, data in ((shelf.id, 1, b"x"), (other, 0, half + b"x")):
        with refused("quota-exceeded"):
            await shelf.archives.put(shelf.ann, archive_id, number, data)
    await shelf.fill(half, by=shelf.bob)
    await shelf.archives.put(shelf.ann, other, 0, bytes(MIB // 2 - 1))
    await shelf.archives.put(shelf.ann, shelf.id, 1, b"x")
    await shelf.archives.delete(shelf.ann, other)
    await shelf.archives.put(shelf.ann, shelf.id, 2, half[1:])
    assert await shelf.seen() == {shelf.id: ("backup", 3, MIB)}


async def test_a_smaller_quota_takes_nothing_away_and_lets_nothing_grow(shelf: Shelf) -> None:
    await shelf.fill(bytes(MIB), b"last")
    shelf.set(1)
    with refused("quota-exceeded"):
        await shelf.archives.put(shelf.ann, shelf.id, 1, b"longer")
    await shelf.archives.put(shelf.ann, shelf.id, 1, b"less")
    shelf.set(0)
    with refused("quota-exceeded"):
        await shelf.archives.make(shelf.ann, new_id(), BACKUP)
    await shelf.archives.make(shelf.ann, shelf.id, BACKUP)
    assert await shelf.read(1) == b"less"
    await shelf.archives.delete(shelf.ann, shelf.id)
    assert shelf.left() == (0, 0)


async def test_a_user_has_a_bounded_number_of_archives_of_a_bounded_length(shelf: Shelf) -> None:
    ids = [new_id() for _ in range(limits.ARCHIVES_PER_USER_MAX)]
    for each in ids:
        await shelf.archives.make(shelf.ann, each, BACKUP)
    with refused("too-many"):
        await shelf.archives.make(shelf.ann, new_id(), BACKUP)
    await shelf.archives.delete(shelf.ann, ids[0])
    await shelf.fill(b"a")
    [archive] = [each for each in shelf.store.all(Archive) if each.archive_id == shelf.id]
    await shelf.store.write(putting(structs.replace(archive, chunk_count=limits.ARCHIVE_CHUNKS_MAX)))
    with refused("too-many"):
        await shelf.archives.put(shelf.ann, shelf.id, limits.ARCHIVE_CHUNKS_MAX, b"x")


async def test_whoever_writes_without_an_end_has_to_wait(shelf: Shelf, autojump_clock: object) -> None:
    await shelf.fill(b"a")
    for _ in range(limits.ARCHIVE_WRITES_PER_MINUTE - 2):
        await shelf.archives.put(shelf.ann, shelf.id, 0, b"a")
    for write in (
        shelf.archives.put(shelf.ann, shelf.id, 0, b"a"),
        shelf.archives.make(shelf.ann, new_id(), BACKUP),
        shelf.archives.delete(shelf.ann, shelf.id),
    ):
        with refused("rate-limited"):
            await write
    await trio.sleep(60 / limits.ARCHIVE_WRITES_PER_MINUTE + 0.01)
    await shelf.archives.delete(shelf.ann, shelf.id)


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_a_transfer_is_gone_after_its_time_and_a_backup_stays(shelf: Shelf) -> None:
    backup = new_id()
    await shelf.fill(b"a", b"b", kind=TRANSFER)
    await shelf.fill(b"c", archive_id=backup)
    [expires_at] = [
        each.expires_at for each in (await shelf.archives.list(shelf.ann, 50, None)).items if each.expires_at
    ]
    assert expires_at == rfc3339(shelf.clock.now() + limits.TRANSFER_DAYS * DAY)
    shelf.clock.advance(seconds=limits.TRANSFER_DAYS * 86_400 - 1)
    await shelf.timers.tick()
    assert await shelf.read(1) == b"b"
    shelf.clock.advance(seconds=1)
    for gone in (shelf.read(1), shelf.archives.put(shelf.ann, shelf.id, 2, b"x")):  # before anything has cleaned up
        with refused("not-found"):
            await gone
    assert await shelf.seen() == {backup: ("backup", 1, 1)} and shelf.left() == (2, 3)
    await shelf.timers.tick()
    assert shelf.left() == (1, 1) and shelf.store.all(Due) == []


async def test_an_id_whose_archive_is_over_can_be_taken_again_at_once(shelf: Shelf) -> None:
    await shelf.fill(b"a", b"b", kind=TRANSFER)
    shelf.clock.advance(days=limits.TRANSFER_DAYS)
    view, is_new = await shelf.archives.make(shelf.ann, shelf.id, BACKUP)
    assert is_new and view.chunk_count == 0 and shelf.left() == (1, 0)
    await shelf.archives.put(shelf.ann, shelf.id, 0, b"new")
    while await shelf.timers.tick():
        pass
    assert await shelf.read(0) == b"new"


async def test_a_deletion_goes_in_small_steps_and_may_be_interrupted_anywhere(shelf: Shelf) -> None:
    count = 2 * limits.ARCHIVE_CHUNKS_PER_STEP + 1
    await shelf.fill(b"a")
    [archive] = shelf.store.all(Archive)
    rows = [ArchiveChunk(shelf.ann.user_id, shelf.id, number, b"x") for number in range(count)]
    await shelf.store.write(putting(*rows, structs.replace(archive, chunk_count=count, size_bytes=count)))
    for step in range(3):  # each dies behind the first of its changes that is more than its own mark
        await _interrupted(shelf, lambda: shelf.archives.delete(shelf.ann, shelf.id), after=2)
        with refused("not-found"):
            await shelf.read(0)
        expected = count - (step + 1) * limits.ARCHIVE_CHUNKS_PER_STEP
        assert shelf.left() == ((1, expected) if expected > 0 else (0, 0))
    await shelf.archives.delete(shelf.ann, shelf.id)


async def test_what_an_interrupted_deletion_left_is_erased_by_itself(shelf: Shelf) -> None:
    await shelf.fill(b"a", b"b")
    await _interrupted(shelf, lambda: shelf.archives.delete(shelf.ann, shelf.id), after=1)
    assert shelf.left() == (1, 2) and await shelf.seen() == {}
    await shelf.timers.tick()
    assert shelf.left() == (0, 0) and shelf.store.all(Due) == []


async def test_everything_goes_with_its_account_and_nothing_else_does() -> None:
    house = House()
    ann = await house.newcomer(ALICE)
    bob = somebody()
    archives = Archives(house.store, house.clock, house.settings)
    for actor, kind in ((ann, BACKUP), (ann, TRANSFER), (bob, BACKUP)):
        archive_id = new_id()
        await archives.make(actor, archive_id, kind)
        await archives.put(actor, archive_id, 0, b"sealed")
    await house.standing.delete(ALICE)
    await house.standing.erase(ann.user_id)
    assert len(house.store.all(ArchiveChunk)) == 3, "its owner may still come back"
    house.clock.advance(days=limits.ACCOUNT_ERASURE_DAYS)
    await house.standing.erase(ann.user_id)
    assert {each.user_id for each in (*house.store.all(Archive), *house.store.all(ArchiveChunk))} == {bob.user_id}


async def _interrupted(shelf: Shelf, call: Callable[[], Awaitable[None]], *, after: int) -> None:
    """The call, in which the disk fails behind so many changes."""

    class Enough(Exception):
        pass

    real, done = shelf.store.write, 0

    async def write(change: Any) -> Any:
        nonlocal done
        if done == after:
            raise Enough
        done += 1
        return await real(change)

    shelf.store.write = write  # type: ignore[method-assign]
    try:
        await call()
    except Enough:
        pass
    finally:
        shelf.store.write = real  # type: ignore[method-assign]


# --- reports ----------------------------------------------------------------------------------------------------------


async def test_reports_add_up_by_reason_and_keep_nothing_else() -> None:
    metrics, ann, bob = Metrics(), somebody(), somebody()
    reports = Reports(metrics)
    await reports.decryption(ann, DecryptionReport(counts={"no-session": 3, "expired": 1}))
    await reports.decryption(bob, DecryptionReport(counts={"no-session": limits.DECRYPTION_COUNT_MAX}))

    def told(reason: str) -> float | None:
        return metrics.registry.get_sample_value("gearlink_undecryptable_total", {"reason": reason})

    assert (told("no-session"), told("expired"), told("misdirected")) == (limits.DECRYPTION_COUNT_MAX + 3, 1, None)


async def test_a_device_reports_so_often_in_an_hour(autojump_clock: object) -> None:
    reports, ann, report = Reports(Metrics()), somebody(), DecryptionReport(counts={"expired": 1})
    laptop = Actor(ann.user_id, new_id(), new_id(), 1 << 60, False)
    for _ in range(limits.DECRYPTION_REPORTS_PER_HOUR):
        await reports.decryption(ann, report)
    with refused("rate-limited"):
        await reports.decryption(ann, report)
    await reports.decryption(laptop, report)
    await trio.sleep(3600 / limits.DECRYPTION_REPORTS_PER_HOUR + 1)
    await reports.decryption(ann, report)
