"""The promises of `gearlink.sdk.e2ee.store`, asked of the encrypted file and of the dictionary that tests use.

Records of its own, so that no change of the real ones changes what is asked. What only a file can promise (locks, crashes,
damage, a full disk) is asked in `test_e2ee_vault`.
"""

import itertools
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from gearlink.sdk.e2ee.records import Record
from gearlink.sdk.e2ee.store import KeyStore, Tx
from gearlink.sdk.e2ee.vault import open_vault
from tests.memory_vault import MemoryVault

STORES = ("vault", "memory")


class Note(Record, frozen=True):
    TABLE = 901
    KEY = ("room", "number")

    room: str
    number: int
    text: str = ""


class Ticket(Record, frozen=True):
    TABLE = 902
    KEY = ("room", "device", "secret")

    room: str
    device: str
    secret: bytes
    uses: int = 0


class NotedLater(Record, frozen=True):
    """`Note` as a later version of the program has it."""

    TABLE = 901
    KEY = ("room", "number")

    room: str
    number: int
    text: str = ""
    stars: int = 3


class Stop(Exception):
    pass


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KeyStore]:
    if request.param == "memory":
        yield MemoryVault()
    else:
        async with open_vault(tmp_path / "vault.db", bytes(range(32))) as vault:
            yield vault


async def put(store: KeyStore, *records: Record) -> None:
    def change(tx: Tx) -> None:
        for record in records:
            tx.put(record)

    await store.write(change)


async def numbers(store: KeyStore, room: str, **bounds: int | bool | None) -> list[int]:
    def look(tx: Tx) -> list[int]:
        return [note.number for note in tx.scan(Note, room, **bounds)]  # type: ignore[arg-type]

    return await store.read(look)


# --- one record ------------------------------------------------------------------------------------------------------


async def test_what_was_put_is_got_and_what_was_deleted_is_gone(store: KeyStore) -> None:
    note = Note("home", 7, "Ωλ 🐚")
    await put(store, note)
    assert await store.read(lambda tx: tx.get(Note, "home", 7)) == note
    assert await store.read(lambda tx: tx.get(Note, "home", 8)) is None
    await store.write(lambda tx: tx.delete(Note, "home", 7))
    assert await store.read(lambda tx: tx.get(Note, "home", 7)) is None


async def test_a_record_replaces_the_one_with_its_key_and_no_other(store: KeyStore) -> None:
    await put(store, Note("home", 1, "old"), Note("home", 2, "other"), Note("home", 1, "new"))
    assert await store.read(lambda tx: tx.scan(Note, "home")) == [Note("home", 1, "new"), Note("home", 2, "other")]


async def test_deleting_what_is_not_there_is_no_trouble(store: KeyStore) -> None:
    await store.write(lambda tx: tx.delete(Note, "home", 1))
    assert await numbers(store, "home") == []


async def test_kinds_with_equal_keys_do_not_meet(store: KeyStore) -> None:
    await put(store, Note("home", 1), Ticket("home", "1", b"1"))
    assert await store.read(lambda tx: tx.scan(Note)) == [Note("home", 1)]
    assert await store.read(lambda tx: tx.scan(Ticket)) == [Ticket("home", "1", b"1")]


async def test_half_a_key_names_no_record(store: KeyStore) -> None:
    await put(store, Note("home", 1))
    with pytest.raises((ValueError, AssertionError)):
        await store.read(lambda tx: tx.get(Note, "home"))
    with pytest.raises((ValueError, AssertionError)):
        await store.write(lambda tx: tx.delete(Note, "home"))


async def test_a_field_that_came_later_has_its_default_in_old_records(store: KeyStore) -> None:
    await put(store, Note("home", 1, "old"))
    assert await store.read(lambda tx: tx.get(NotedLater, "home", 1)) == NotedLater("home", 1, "old", 3)


# --- ranges ----------------------------------------------------------------------------------------------------------


async def test_numbers_come_by_size_also_negative_and_huge_ones(store: KeyStore) -> None:
    sizes = [0, 1, -1, 255, 256, 65_535, 65_536, 2**32, 2**53, 2**63 - 1, -(2**63), 9, 10]
    await put(store, *(Note("home", size) for size in sizes))
    assert await numbers(store, "home") == sorted(sizes)
    assert await numbers(store, "home", reverse=True) == sorted(sizes, reverse=True)


async def test_a_prefix_is_whole_parts_and_not_the_beginning_of_a_text(store: KeyStore) -> None:
    rooms = ["", "a", "a\x00", "a\x00\x01", "a\x01", "ab", "b", "\xff", "🐚"]
    await put(store, *(Note(room, 1) for room in rooms))
    for room in rooms:
        assert await store.read(lambda tx, room=room: tx.scan(Note, room)) == [Note(room, 1)]
    found = await store.read(lambda tx: tx.scan(Note))
    assert [note.room for note in found] == sorted(rooms, key=str.encode)


async def test_bounds_are_exclusive_and_need_not_exist(store: KeyStore) -> None:
    await put(store, *(Note("home", number) for number in (1, 3, 5, 7)), Note("garden", 4), Note("house", 4))
    assert await numbers(store, "home", after=3) == [5, 7]
    assert await numbers(store, "home", after=2) == [3, 5, 7]
    assert await numbers(store, "home", before=5) == [1, 3]
    assert await numbers(store, "home", before=6) == [1, 3, 5]
    assert await numbers(store, "home", after=1, before=7) == [3, 5]
    assert await numbers(store, "home", after=3, before=3) == []
    assert await numbers(store, "home", after=7, before=1) == []
    assert await numbers(store, "home", after=7) == []
    assert await numbers(store, "home", before=1) == []
    assert await numbers(store, "home", after=-(2**63), before=2**63 - 1) == [1, 3, 5, 7]
    assert await numbers(store, "home", after=2**63 - 1) == []


async def test_a_bound_in_the_middle_of_a_key_takes_all_that_is_under_it(store: KeyStore) -> None:
    tickets = [Ticket("home", device, secret) for device in ("a", "ab", "b") for secret in (b"", b"\x00", b"\xff\xff")]
    await put(store, *tickets)

    async def devices(**bounds: str) -> list[str]:
        found: list[Ticket] = await store.read(lambda tx: tx.scan(Ticket, "home", **bounds))  # type: ignore[arg-type]
        return [ticket.device for ticket in found]

    assert await devices(after="a") == ["ab"] * 3 + ["b"] * 3
    assert await devices(before="ab") == ["a"] * 3
    assert await devices(after="a", before="b") == ["ab"] * 3
    last = await store.read(lambda tx: tx.scan(Ticket, "home", "b", after=b"\x00"))
    assert last == [Ticket("home", "b", b"\xff\xff")]


async def test_a_limit_counts_from_the_end_at_which_the_scan_begins(store: KeyStore) -> None:
    await put(store, *(Note("home", number) for number in range(10)))
    assert await numbers(store, "home", limit=3) == [0, 1, 2]
    assert await numbers(store, "home", limit=3, reverse=True) == [9, 8, 7]
    assert await numbers(store, "home", before=5, limit=2, reverse=True) == [4, 3]
    assert await numbers(store, "home", after=5, limit=2) == [6, 7]
    assert await numbers(store, "home", limit=0) == []


async def test_a_bound_behind_the_last_part_of_a_key_is_a_mistake(store: KeyStore) -> None:
    with pytest.raises((ValueError, AssertionError)):
        await store.read(lambda tx: tx.scan(Note, "home", 1, after=2))


async def test_random_ranges_are_what_a_sorted_list_says(store: KeyStore) -> None:
    chance = random.Random(4)
    parts = ["", "a", "a\x00", "a\xff", "b", "ba"]
    keys = list(itertools.product(parts, parts, [b"", b"\x00", b"\x00\x01", b"\xff", b"\xff\xff"]))
    kept = sorted(chance.sample(keys, 90), key=lambda key: (key[0].encode(), key[1].encode(), key[2]))
    await put(store, *(Ticket(*key) for key in kept))
    for _ in range(200):
        room = chance.choice(parts)
        after, before = (chance.choice([None, *parts]) for _ in range(2))
        limit, reverse = chance.choice([None, 1, 5]), chance.random() < 0.5
        expected = [
            key
            for key in (kept[::-1] if reverse else kept)
            if key[0] == room
            and (after is None or key[1].encode() > after.encode())
            and (before is None or key[1].encode() < before.encode())
        ][:limit]

        def look(
            tx: Tx,
            room: str = room,
            after: str | None = after,
            before: str | None = before,
            limit: int | None = limit,
            reverse: bool = reverse,
        ) -> list[Ticket]:
            return tx.scan(Ticket, room, after=after, before=before, limit=limit, reverse=reverse)

        assert [(got.room, got.device, got.secret) for got in await store.read(look)] == expected


# --- transactions ----------------------------------------------------------------------------------------------------


async def test_a_change_sees_what_it_wrote_and_gives_its_value(store: KeyStore) -> None:
    await put(store, Note("home", 1), Note("home", 2))

    def change(tx: Tx) -> list[int]:
        tx.put(Note("home", 3))
        tx.delete(Note, "home", 1)
        assert tx.get(Note, "home", 1) is None and tx.get(Note, "home", 3) is not None
        return [note.number for note in tx.scan(Note, "home")]

    assert await store.write(change) == [2, 3]
    assert await numbers(store, "home") == [2, 3]


async def test_a_change_that_raises_leaves_nothing(store: KeyStore) -> None:
    await put(store, Note("home", 1, "old"))

    def change(tx: Tx) -> None:
        tx.put(Note("home", 1, "new"))
        tx.put(Note("home", 2))
        tx.delete(Note, "home", 1)
        raise Stop("no")

    with pytest.raises(Stop, match="no"):
        await store.write(change)
    assert await store.read(lambda tx: tx.scan(Note)) == [Note("home", 1, "old")]
    await put(store, Note("home", 3))
    assert await numbers(store, "home") == [1, 3]


async def test_a_read_must_not_write(store: KeyStore) -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        await store.read(lambda tx: tx.put(Note("home", 1)))
    with pytest.raises((RuntimeError, AssertionError)):
        await store.read(lambda tx: tx.delete(Note, "home", 1))
    assert await numbers(store, "home") == []


async def test_many_who_add_to_one_record_at_once_lose_nothing(store: KeyStore) -> None:
    await put(store, Ticket("home", "a", b"s"))

    def use(tx: Tx) -> None:
        ticket = tx.get(Ticket, "home", "a", b"s")
        assert ticket is not None
        tx.put(Ticket("home", "a", b"s", ticket.uses + 1))

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(store.write, use)
    assert await store.read(lambda tx: tx.get(Ticket, "home", "a", b"s")) == Ticket("home", "a", b"s", 40)
