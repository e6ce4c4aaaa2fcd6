"""For which devices messages are: what counts, what a send is told, and that memory never says what is not stored."""

import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
import trio
from msgspec.structs import replace

from config import limits
from gearlink import device_lists
from gearlink.accounts import Actor
from gearlink.clock import new_id
from gearlink.device_lists import DeviceList, DeviceLists, Stale, Turn, counting, joined
from gearlink.prekeys import encoded
from storage.embedded import EmbeddedStore, open_store
from storage.records import (
    AccountKey,
    Conversation,
    Device,
    DeviceKeys,
    Introduced,
    Member,
    SignedPreKey,
)
from storage.store import StoreFull, Transaction

T = TypeVar("T")
ROOM, OTHER_ROOM = new_id(), new_id()
ANN, BOB, CAROL = sorted(new_id() for _ in range(3))
PRE_KEY = SignedPreKey(1, bytes(32), bytes(64))


class Change(Exception):
    """What a change of a test fails with."""


class Town:
    """A store and the lists over it. What its methods do, they do in a change that they are given."""

    def __init__(self, store: EmbeddedStore) -> None:
        self.store, self.lists = store, DeviceLists()
        self._keys = 0

    def key(self) -> bytes:
        self._keys += 1
        return hashlib.sha256(str(self._keys).encode()).digest()

    async def found(self, room: str, *user_ids: str) -> None:
        async def change(tx: Transaction) -> None:
            tx.put(Conversation(room, "group", "e2ee", "", "", ANN, 0, 0, len(user_ids), 1))
            for user_id in user_ids:
                tx.put(Member(room, user_id, "member", 0, 0))

        await self.store.write(change)

    async def admit(self, tx: Transaction, room: str, user_id: str) -> None:
        tx.put(Member(room, user_id, "member", 0, 0))
        await self._count(tx, room, 1)

    async def dismiss(self, tx: Transaction, room: str, user_id: str) -> None:
        tx.delete(Member, room, user_id)
        await self._count(tx, room, -1)

    async def _count(self, tx: Transaction, room: str, step: int) -> None:
        conversation = await tx.get(Conversation, room)
        assert conversation is not None
        tx.put(replace(conversation, member_count=conversation.member_count + step))

    async def equip(self, tx: Transaction, user_id: str, device_id: str, **more: Any) -> Turn:
        """A device that is signed in, with keys; `more` are fields of these."""
        async with self.lists.altering(tx, user_id) as turn:
            tx.put(Device(user_id, device_id, "phone", "ios", 0, 0, session_id=new_id()))
            keys = DeviceKeys(user_id, device_id, self.key(), PRE_KEY, PRE_KEY, 0, "", 0, 0)
            tx.put(replace(keys, **more))
        return turn

    async def sign_out(self, tx: Transaction, user_id: str, device_id: str) -> Turn:
        async with self.lists.altering(tx, user_id) as turn:
            device = await tx.get(Device, user_id, device_id)
            assert device is not None
            tx.put(replace(device, session_id=""))
        return turn

    async def device(self, user_id: str, **more: Any) -> str:
        device_id = new_id()
        await self.store.write(lambda tx: self.equip(tx, user_id, device_id, **more))
        return device_id

    async def of(self, room: str = ROOM) -> DeviceList:
        return await self.store.write(lambda tx: self.lists.of(tx, room))

    async def ids(self, room: str = ROOM) -> list[str]:
        return [device.device_id for device in (await self.of(room)).devices]

    async def stored(self, room: str = ROOM) -> DeviceList:
        """The same without any memory."""
        members = await self.store.scan(Member, room, limit=100)
        return joined([await counting(self.store, member.user_id) for member in members])

    async def check(
        self, sender: tuple[str, str], addressed: list[tuple[str, str]], *, complete: bool = True
    ) -> Stale | None:
        actor = Actor(*sender, new_id(), 2**50, is_admin=False)
        return await self.store.write(lambda tx: self.lists.check(tx, ROOM, actor, addressed, complete=complete))


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with open_store(tmp_path / "data", now=0, fresh_id=new_id()) as store:
        town = Town(store)
        await town.found(ROOM, ANN, BOB)
        yield town


# --- what counts -----------------------------------------------------------------------------------------------------


async def test_a_device_counts_with_a_session_keys_and_a_certificate_where_its_user_has_an_account_key(
    town: Town,
) -> None:
    phone, laptop = await town.device(ANN), await town.device(ANN)
    bobs, uncertified = await town.device(BOB, certificate=b"c" * 64), await town.device(BOB)
    assert set(await town.ids()) == {phone, laptop, bobs, uncertified}

    async def change(tx: Transaction) -> None:
        async with town.lists.altering(tx, BOB):
            tx.put(AccountKey(BOB, b"k" * 32))
        async with town.lists.altering(tx, ANN):
            tx.put(Device(ANN, new_id(), "no keys", "ios", 0, 0, session_id=new_id()))
        await town.sign_out(tx, ANN, laptop)

    await town.store.write(change)
    found = await town.of()
    assert [device.place for device in found.devices] == [(ANN, phone), (BOB, bobs)]
    assert found.devices[1].certificate == b"c" * 64 and found.account_keys == {BOB: b"k" * 32}


async def test_the_digest_is_over_ids_and_identity_keys_in_the_order_of_these_bytes(town: Town) -> None:
    for user_id in (BOB, ANN, BOB, ANN, ANN):
        await town.device(user_id)
    found = await town.of()
    parts = [UUID(each.user_id).bytes + UUID(each.device_id).bytes + each.identity_key for each in found.devices]
    assert len(parts) == 5 and parts == sorted(parts)
    assert found.digest == encoded(hashlib.sha256(b"".join(parts)).digest())


async def test_of_a_conversation_that_is_gone_there_are_no_devices(town: Town) -> None:
    await town.device(ANN)
    assert (await town.of()).devices

    async def change(tx: Transaction) -> None:
        tx.delete(Conversation, ROOM)

    await town.store.write(change)
    assert (await town.of()).devices == () == (await town.of(OTHER_ROOM)).devices


async def test_a_change_says_which_devices_began_and_ceased_to_count_by_it(town: Town) -> None:
    phone = new_id()
    turn = await town.store.write(lambda tx: town.equip(tx, ANN, phone))
    assert (turn.began, turn.ceased, bool(turn)) == ((phone,), (), True)
    turn = await town.store.write(lambda tx: town.equip(tx, ANN, phone))  # it counts as before, under another key
    assert (turn.began, turn.ceased, bool(turn)) == ((), (), False)
    turn = await town.store.write(lambda tx: town.sign_out(tx, ANN, phone))
    assert (turn.began, turn.ceased) == ((), (phone,))


# --- what is kept ----------------------------------------------------------------------------------------------------


async def test_a_list_is_kept_until_somebody_in_it_alters_something(town: Town) -> None:
    await town.found(OTHER_ROOM, BOB, CAROL)
    await town.device(ANN)
    ours, theirs = await town.of(), await town.of(OTHER_ROOM)
    assert await town.of() is ours
    phone = await town.device(ANN)
    assert phone in await town.ids() and await town.of() is not ours
    assert await town.of(OTHER_ROOM) is theirs
    bobs = await town.device(BOB)
    assert bobs in await town.ids() and bobs in await town.ids(OTHER_ROOM)


async def test_who_comes_or_goes_is_seen_without_a_word(town: Town) -> None:
    phone, carols = await town.device(ANN), await town.device(CAROL)
    assert await town.ids() == [phone]
    await town.store.write(lambda tx: town.admit(tx, ROOM, CAROL))
    assert await town.ids() == [phone, carols]
    await town.store.write(lambda tx: town.dismiss(tx, ROOM, CAROL))
    assert await town.ids() == [phone]

    async def swap(tx: Transaction) -> None:  # the conversation's record says the same as before
        await town.dismiss(tx, ROOM, ANN)
        await town.admit(tx, ROOM, CAROL)

    await town.store.write(swap)
    assert await town.ids() == [carols]


async def test_somebody_in_a_dropped_list_alters_something(town: Town) -> None:
    """The list was built anew for others; who has gone from it does not trouble it, who has come does."""
    carols = await town.device(CAROL)
    await town.store.write(lambda tx: town.admit(tx, ROOM, CAROL))
    assert await town.ids() == [carols]
    await town.store.write(lambda tx: town.dismiss(tx, ROOM, CAROL))
    kept = await town.of()
    await town.device(CAROL)
    assert await town.of() is kept


async def test_changes_of_one_batch_see_what_those_before_them_did(town: Town) -> None:
    phone, laptop, ended = await town.device(ANN), new_id(), list[Any]()

    async def asking(tx: Transaction) -> list[str]:
        return [device.device_id for device in (await town.lists.of(tx, ROOM)).devices]

    # Without a checkpoint in between, all of them are in one batch.
    await town.store.submit(asking, ended.append)
    await town.store.submit(lambda tx: town.equip(tx, ANN, laptop), ended.append)
    await town.store.submit(asking, ended.append)
    await town.store.submit(lambda tx: town.dismiss(tx, ROOM, ANN), ended.append)
    await town.store.submit(asking, ended.append)
    with trio.fail_after(20):
        while len(ended) < 5:
            await trio.lowlevel.checkpoint()
    assert [ended[number].unwrap() for number in (0, 2, 4)] == [[phone], sorted([phone, laptop]), []]


ALTERING: dict[str, Callable[[Town, Transaction, str], Awaitable[object]]] = {
    "another device": lambda town, tx, _phone: town.equip(tx, ANN, new_id()),
    "one device less": lambda town, tx, phone: town.sign_out(tx, ANN, phone),
    "somebody comes": lambda town, tx, _phone: town.admit(tx, ROOM, CAROL),
    "somebody goes": lambda town, tx, _phone: town.dismiss(tx, ROOM, ANN),
}


@pytest.mark.parametrize("trouble", ["refused", "full disk"])
@pytest.mark.parametrize("why", ALTERING)
async def test_a_change_that_fails_after_it_asked_leaves_nothing_in_memory(
    town: Town, why: str, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone, _carols = await town.device(ANN), await town.device(CAROL)
    before = await town.of()
    inside: list[DeviceList] = []

    async def change(tx: Transaction) -> None:
        await ALTERING[why](town, tx, phone)
        inside.append(await town.lists.of(tx, ROOM))
        if trouble == "refused":
            raise Change

    if trouble == "full disk":
        monkeypatch.setattr(town.store._engine, "has_room", lambda: False)
    with pytest.raises((Change, StoreFull)):
        await town.store.write(change)
    assert inside[0].digest != before.digest
    assert await town.of() == before


async def test_whatever_happens_a_list_is_what_is_stored(town: Town) -> None:
    rooms, users, chance = [ROOM, OTHER_ROOM], [ANN, BOB, CAROL], random.Random(4)
    await town.found(OTHER_ROOM, *users)
    devices = {user_id: [new_id() for _ in range(3)] for user_id in users}
    for _ in range(400):
        room, user_id = chance.choice(rooms), chance.choice(users)
        device_id, kind, fails = chance.choice(devices[user_id]), chance.randrange(5), chance.random() < 0.3

        async def change(
            tx: Transaction,
            room: str = room, user_id: str = user_id, device_id: str = device_id, kind: int = kind, fails: bool = fails,
        ) -> None:  # fmt: skip
            if chance.random() < 0.5:
                await town.lists.of(tx, room)
            is_member = await tx.get(Member, room, user_id) is not None
            if kind == 0:
                await (town.dismiss if is_member else town.admit)(tx, room, user_id)
            elif kind == 1 and await tx.get(Device, user_id, device_id):
                await town.sign_out(tx, user_id, device_id)
            elif kind == 2:
                await town.equip(tx, user_id, device_id)
            elif kind == 3:
                async with town.lists.altering(tx, user_id):
                    tx.put(AccountKey(user_id, town.key()))
            if chance.random() < 0.5:
                await town.lists.of(tx, chance.choice(rooms))
            if fails:
                raise Change

        try:
            await town.store.write(change)
        except Change:
            assert fails
        asked = chance.choice(rooms)
        assert await town.of(asked) == await town.stored(asked)


async def test_memory_is_bounded_and_the_least_used_goes_first(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEVICE_LIST_USERS_MAX", 3)
    monkeypatch.setattr(limits, "DEVICE_LIST_PLACES_MAX", 4)
    rooms = sorted(new_id() for _ in range(4))
    for room in rooms:
        await town.found(room, ANN, BOB)
    first, second = await town.of(rooms[0]), await town.of(rooms[1])
    assert await town.of(rooms[0]) is first
    await town.of(rooms[2])
    assert await town.of(rooms[0]) is first
    assert await town.of(rooms[1]) is not second
    assert len(town.lists._lists) == 2 and town.lists._places == 4
    assert town.lists._where == {user_id: set(town.lists._lists) for user_id in (ANN, BOB)}
    crowd = sorted(new_id() for _ in range(9))
    await town.found(rooms[3], *crowd)  # larger than everything that may be kept: it is alone
    kept = await town.of(rooms[3])
    assert await town.of(rooms[3]) is kept and set(town.lists._lists) == {rooms[3]}
    assert len(town.lists._users) == 3
    phone = await town.device(crowd[0])  # whose devices are not kept any more
    assert await town.ids(rooms[3]) == [phone]


async def test_what_was_prepared_in_steps_is_not_read_again(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEVICE_LIST_USERS_PER_STEP", 2)
    crowd = sorted(new_id() for _ in range(5))
    await town.found(OTHER_ROOM, *crowd)
    phones = [await town.device(user_id) for user_id in crowd]
    read: list[str] = []

    async def noting(reads: Any, user_id: str) -> Any:
        read.append(user_id)
        return await counting(reads, user_id)

    monkeypatch.setattr(device_lists, "counting", noting)
    await town.lists.prepare(town.store, OTHER_ROOM)
    assert read == crowd
    assert await town.ids(OTHER_ROOM) == phones
    await town.lists.prepare(town.store, OTHER_ROOM)
    assert read == crowd


# --- what a send is told ---------------------------------------------------------------------------------------------


async def test_a_send_to_all_devices_but_the_sending_one_is_right(town: Town) -> None:
    own, laptop, bobs = await town.device(ANN), await town.device(ANN), await town.device(BOB)
    everybody = [(ANN, laptop), (BOB, bobs)]
    assert await town.check((ANN, own), everybody) is None
    assert await town.check((ANN, own), everybody[:1]) == Stale(((BOB, bobs),), (), ())
    assert await town.check((ANN, own), everybody[:1], complete=False) is None
    assert await town.check((ANN, own), [(ANN, own), *everybody]) == Stale((), ((ANN, own),), ())
    assert await town.check((ANN, own), []) == Stale(tuple(everybody), (), ())


async def test_envelopes_for_who_does_not_count_are_extra_each_once(town: Town) -> None:
    own, bobs, carols = await town.device(ANN), await town.device(BOB), await town.device(CAROL)
    gone = await town.device(BOB)
    await town.store.write(lambda tx: town.sign_out(tx, BOB, gone))
    wrong = [(CAROL, carols), (BOB, gone), (ANN, bobs), (BOB, new_id())]
    for complete in (True, False):
        stale = await town.check((ANN, own), [*wrong, (BOB, bobs), wrong[0]], complete=complete)
        assert stale == Stale((), tuple(wrong), ())


async def test_a_changed_identity_is_told_until_the_sending_device_has_claimed_it(town: Town) -> None:
    own, laptop, bobs = await town.device(ANN), await town.device(ANN), await town.device(BOB, identity_changed_at=5)
    keys = await town.store.get(DeviceKeys, BOB, bobs)
    assert keys is not None

    async def introduce(identity_key: bytes) -> None:
        async def change(tx: Transaction) -> None:
            tx.put(Introduced(bobs, own, identity_key))

        await town.store.write(change)

    changed = Stale((), (), ((BOB, bobs),))
    assert await town.check((ANN, own), [(BOB, bobs)], complete=False) == changed
    await introduce(b"the one before".ljust(32))
    assert await town.check((ANN, own), [(BOB, bobs)], complete=False) == changed
    await introduce(keys.identity_key)
    assert await town.check((ANN, own), [(BOB, bobs)], complete=False) is None
    assert await town.check((ANN, laptop), [(BOB, bobs)], complete=False) == changed
    assert await town.check((ANN, laptop), [(ANN, own)], complete=True) == Stale(((BOB, bobs),), (), ())
