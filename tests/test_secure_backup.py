"""Stories of backups: set up with a key that was really written down, kept up, and restored on a new device."""

import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from gearlink.sdk import Refused
from gearlink.sdk.e2ee import certificates, recovery
from gearlink.sdk.e2ee.records import Archive, Epoch, Kept, Peer
from gearlink.sdk.e2ee.recovery import BadRecoveryKey
from gearlink.sdk.e2ee.vault import open_vault
from gearlink.sdk.secure import backup as backups
from gearlink.sdk.secure.archiving import HistoryFetched, new_archive_id
from gearlink.sdk.secure.backup import BackupStatus, Covered, Restored
from gearlink.sdk.secure.client import SecureClient
from gearlink.sdk.secure.told import IdentityChanged, NotLinked, SecurityEvent
from gearlink.views import ArchiveView
from tests.house import House, open_house
from tests.memory_vault import MemoryVault
from tests.secure_devices import (
    TEXTS,
    Clock,
    Crash,
    count_calls,
    crash_at,
    crash_points,
    heard,
    heard_texts,
    keep_much,
    open_device,
    open_still,
    shown,
    talked,
    told,
)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as house:
        yield house


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two messages fill a chunk."""
    monkeypatch.setattr(recovery, "PLAIN_BYTES", 1400)


async def set_up(phone: SecureClient) -> str:
    """A backup that is complete; its recovery key."""
    key = await phone.backup.begin()
    await phone.backup.confirm(key)
    await phone.backup.flush()
    return key


async def kept_on_server(secure: SecureClient) -> list[ArchiveView]:
    return [each async for each in secure.client.archives()]


async def heard_text(secure: SecureClient, text: str) -> bool:
    """Waits for it: a device that is new hears of what it restored as well."""
    while (await heard_texts(secure))[0] != text:
        pass
    return True


def other_key(shown: str) -> str:
    """A recovery key that somebody else wrote down."""
    secret = bytearray(recovery.parse_recovery_key(shown))
    secret[0] ^= 1
    return recovery.recovery_key_text(bytes(secret))


# --- setting up ------------------------------------------------------------------------------------------------------


async def test_a_backup_counts_only_once_the_typed_key_has_opened_it(house: House) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()):
        await talked(phone, bob)
        key = await phone.backup.begin()
        assert not (await phone.backup.status()).enabled
        for typed, why in ((key[:-1], "too short"), (key[:-1] + "!", "digits"), (other_key(key), "compare it")):
            with pytest.raises(BadRecoveryKey, match=why) as wrong:
                await phone.backup.confirm(typed)
            assert typed not in str(wrong.value)
        await phone.backup.flush()
        assert not (await phone.backup.status()).enabled and not phone.device.own.backup_key
        await phone.backup.confirm(key.lower().replace("-", " "))
        assert (await phone.backup.status()).enabled
        assert key not in repr(phone.backup.__dict__)


async def test_a_server_that_gives_back_something_else_fails_the_set_up(house: House) -> None:
    (ann,) = await house.people(1)
    async with open_still(ann, MemoryVault()) as phone:
        key = await phone.backup.begin()
        (archive,) = await kept_on_server(phone)
        await phone.client.put_chunk(archive.archive_id, 0, b"something else")
        with pytest.raises(Refused, match="does not give back"):
            await phone.backup.confirm(key)
        assert not phone.device.own.backup_key


async def test_what_was_begun_and_not_confirmed_is_cleared_away(house: House) -> None:
    (ann,) = await house.people(1)
    vault = MemoryVault()
    async with open_still(ann, vault) as phone:
        await phone.backup.begin()
    async with open_still(ann, vault) as phone:
        with pytest.raises(RuntimeError, match="begin"):
            await phone.backup.confirm("x")
        await set_up(phone)
        assert len(await kept_on_server(phone)) == 1


async def test_a_device_that_is_not_linked_has_nothing_to_back_up(house: House) -> None:
    (ann,) = await house.people(1)
    async with open_still(ann, MemoryVault()), open_still(await ann.another_device(), MemoryVault()) as new:
        with pytest.raises(Refused, match="Link this device"):
            await new.backup.begin()


async def test_another_recovery_key_makes_another_backup_and_the_old_one_goes_when_it_is_complete(house: House) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)
        old_key = await set_up(phone)
        (old,) = await kept_on_server(phone)
        key = await phone.backup.begin()
        await phone.backup.confirm(key)
        assert len(await kept_on_server(phone)) == 2
        await phone.backup.flush()
        (new,) = await kept_on_server(phone)
        assert new.archive_id != old.archive_id and (await phone.backup.status()).complete
    async with open_still(await ann.another_device(), MemoryVault()) as fresh:
        with pytest.raises(BadRecoveryKey, match="not of this backup"):
            await fresh.backup.restore(old_key)
        await fresh.backup.restore(key)
        assert await shown(fresh, room) == TEXTS


async def test_disabling_deletes_it_and_forgets_the_key(house: House) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()):
        await talked(phone, bob)
        await set_up(phone)
        await phone.backup.disable()
        await phone.backup.flush()
        assert await kept_on_server(phone) == [] and not phone.device.own.backup_key
        assert await phone.backup.status() == BackupStatus(False, False, {}, 0, 0, 0, 0)


# --- keeping it ------------------------------------------------------------------------------------------------------


async def test_status_says_up_to_which_message_the_backup_is_complete(house: House, small_chunks: None) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)
        await phone.backup.confirm(await phone.backup.begin())
        first = await phone.backup.status()
        assert (first.enabled, first.complete, first.conversations, first.chunks) == (True, False, {}, 1)
        await phone.backup.flush()
        newest = (await phone.device.read(lambda tx: tx.scan(Kept)))[-1]
        full = await phone.backup.status()
        assert full.complete and full.conversations == {room: Covered(newest.sequence, newest.created_at)}
        (archive,) = await kept_on_server(phone)
        assert (full.chunks, full.size_bytes) == (archive.chunk_count, archive.size_bytes)
        assert full.chunks > 3 and 0 < phone.device.now() - full.made_at < 60_000
        sent = await phone.send(room, "one more")
        behind = await phone.backup.status()
        assert not behind.complete and behind.conversations == full.conversations
        await phone.backup.flush()
        again = await phone.backup.status()
        assert again.complete and again.conversations[room].sequence == sent.sequence_number
        assert again.chunks == full.chunks + 1


async def test_additions_wait_for_time_or_number_and_verifying_somebody_is_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob = await house.people(2)
    clock = Clock()
    async with open_still(ann, MemoryVault(), wall=clock) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)
        await set_up(phone)
        assert not await phone.backup._is_due()
        await phone.send(room, "one more")
        assert not await phone.backup._is_due()
        clock.added = backups.ADD_AFTER_MS / 1000
        assert await phone.backup._is_due()
        await phone.backup.flush()
        clock.added *= 2
        assert not await phone.backup._is_due()
        await phone.verify(bob.id)
        assert await phone.backup._is_due()
        await phone.backup.flush()
        monkeypatch.setattr(backups, "ADD_AFTER_MESSAGES", 2)
        await phone.send(room, "and one")
        assert not await phone.backup._is_due()
        await phone.send(room, "and another")
        assert await phone.backup._is_due()


async def test_what_is_set_up_is_kept_by_itself(house: House) -> None:
    ann, bob = await house.people(2)
    async with open_device(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()):
        await talked(phone, bob)
        await phone.backup.confirm(await phone.backup.begin())
        while not (await phone.backup.status()).complete:
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("before", [True, False])
async def test_a_backup_goes_on_wherever_it_was_interrupted(house: House, small_chunks: None, before: bool) -> None:
    ann, bob = await house.people(2)
    vault = MemoryVault()
    async with open_still(ann, vault) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)
        ids = [each.id for each in reversed(await phone.history(room))]
        key = await phone.backup.begin()
        await phone.backup.confirm(key)
        (begun,) = await kept_on_server(phone)
    crashes = 0
    for number in range(1, 100):  # few: each begins where the last one ended
        async with open_still(ann, vault) as phone:
            crash_at(phone.client, number, before=before)
            try:
                await phone.backup.flush()
            except Crash:
                crashes += 1
            else:
                break
        async with open_still(ann, vault) as phone:  # it has changed when it goes on
            await phone.edit(ids[0], f"edited {number}")
    async with open_still(ann, vault) as phone:
        assert (await phone.backup.status()).complete and 2 < crashes < 99
        assert [each.archive_id for each in await kept_on_server(phone)] == [begun.archive_id], "it was not begun anew"
    async with open_still(await ann.another_device(), MemoryVault()) as fresh:
        restored = await fresh.backup.restore(key)
        assert (restored.messages, restored.damaged) == (len(TEXTS), 0)
        assert await shown(fresh, room) == [f"edited {crashes}", *TEXTS[1:]]


@pytest.mark.parametrize("lost", ["all of it", "a part"])
async def test_a_restored_server_that_lost_the_backup_gets_another(house: House, small_chunks: None, lost: str) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)
        key = await set_up(phone)
        (archive,) = await kept_on_server(phone)
        chunks = [await phone.client.get_chunk(archive.archive_id, number) for number in range(archive.chunk_count)]
        await phone.client.delete_archive(archive.archive_id)
        if lost == "a part":  # the older state that the server was restored to
            await phone.client.make_archive(archive.archive_id, "backup")
            for number, chunk in enumerate(chunks[:-1]):
                await phone.client.put_chunk(archive.archive_id, number, chunk)
        assert not (await phone.backup.status()).complete
        await phone.backup.flush()
        assert (await phone.backup.status()).complete
        (again,) = await kept_on_server(phone)
        assert again.archive_id != archive.archive_id
    async with open_still(await ann.another_device(), MemoryVault()) as fresh:
        await fresh.backup.restore(key)
        assert await shown(fresh, room) == TEXTS


async def test_an_older_copy_of_the_vault_begins_another_backup(house: House, small_chunks: None) -> None:
    ann, bob = await house.people(2)
    vault = MemoryVault()
    async with open_still(ann, vault) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)
        key = await set_up(phone)
        older = vault.copy()
        await phone.edit((await phone.history(room))[0].id, "edited")
        await phone.backup.flush()
        (archive,) = await kept_on_server(phone)
    async with open_still(ann, older) as phone:
        await phone.backup.flush()
        (again,) = await kept_on_server(phone)
        assert again.archive_id != archive.archive_id and (await phone.backup.status()).complete
    async with open_still(await ann.another_device(), MemoryVault()) as fresh:
        assert (await fresh.backup.restore(key)).damaged == 0


async def test_many_small_additions_are_packed_anew(
    house: House, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)
        await set_up(phone)
        monkeypatch.setattr(backups, "SMALL_CHUNKS_MAX", 2)
        (archive,) = await kept_on_server(phone)
        for text in ("a", "b", "c"):
            await phone.send(room, text)
            await phone.backup.flush()
        assert [each.archive_id for each in await kept_on_server(phone)] == [archive.archive_id]
        monkeypatch.setattr(recovery, "PLAIN_BYTES", 100_000)
        await phone.send(room, "d")
        await phone.backup.flush()
        (again,) = await kept_on_server(phone)
        assert again.archive_id != archive.archive_id and again.chunk_count == 2


async def test_without_room_for_two_the_old_one_makes_room_for_the_new(tmp_path: Path) -> None:
    async with open_house(tmp_path, limits__archive_mib="1") as house:
        ann, bob = await house.people(2)
        async with open_still(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()):
            await talked(phone, bob, [])
            await keep_much(phone, 60)
            await set_up(phone)
            (archive,) = await kept_on_server(phone)
            assert archive.size_bytes > 400_000
            await phone.client.put_chunk(archive.archive_id, archive.chunk_count, secrets.token_bytes(190_000))
            key = await phone.backup.begin()
            await phone.backup.confirm(key)
            await phone.backup.flush()
            assert (await phone.backup.status()).complete and len(await kept_on_server(phone)) == 1


# --- restoring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory", "vault"])
async def test_a_device_restored_with_the_recovery_key_goes_on_with_the_same_people(
    house: House, store: str, tmp_path: Path
) -> None:
    ann, bob = await house.people(2)
    async with open_device(bob, MemoryVault()) as his:
        async with open_device(ann, MemoryVault()) as phone:
            room = await talked(phone, bob, ["one", "two"])
            assert await heard_texts(his, 2) == ["one", "two"]
            await his.send(room, "three")
            assert await heard_texts(phone) == ["three"]
            await phone.verify(bob.id)
            await his.verify(ann.id)
            number = await phone.safety_number(bob.id)
            key = await set_up(phone)
            made_at = (await phone.backup.status()).made_at
        progress: list[tuple[int, int]] = []
        async with open_vault(tmp_path / "vault", bytes(32)) as vault:
            held = vault if store == "vault" else MemoryVault()
            async with open_device(await ann.another_device(), held) as fresh:
                await fresh.client.remove_device(ann.device_id)  # the phone is lost
                await heard(fresh, NotLinked)
                restored = await fresh.backup.restore(key, lambda done, total: progress.append((done, total)))
                assert restored == Restored(3, verified=1, damaged=0, made_at=restored.made_at)
                assert restored.made_at >= made_at > 0 and progress == [(1, 1)]
                assert await shown(fresh, room) == ["one", "two", "three"]
                assert await fresh.is_verified(bob.id) and await fresh.safety_number(bob.id) == number
                await fresh.send(room, "back again")
                await his.send(room, "welcome")
                assert await heard_texts(his) == ["back again"]
                assert await heard_text(fresh, "welcome")
                assert await his.is_verified(ann.id)
                assert not [each for each in told(his) if isinstance(each, IdentityChanged)]
                await fresh.backup.flush()
                status = await fresh.backup.status()
                assert status.complete and status.conversations[room].sequence >= 5


async def test_a_key_that_is_none_or_another_says_so(house: House) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone:
        key = await set_up(phone)
    async with open_still(await ann.another_device(), MemoryVault()) as fresh:
        with pytest.raises(BadRecoveryKey, match="too short"):
            await fresh.backup.restore("ABCD")
        with pytest.raises(BadRecoveryKey, match="not of this backup"):
            await fresh.backup.restore(other_key(key))
        assert not fresh.device.own.account_seed
    async with open_still(bob, MemoryVault()) as his:
        with pytest.raises(Refused, match="no backup"):
            await his.backup.restore(key)


async def test_a_backup_of_an_account_that_has_another_key_now_is_not_restored(house: House) -> None:
    (ann,) = await house.people(1)
    async with open_still(ann, MemoryVault()) as phone:
        key = await set_up(phone)
        seed = certificates.new_account_seed()
        await phone.keeping.adopt(seed)  # a person began anew
    async with open_still(await ann.another_device(), MemoryVault()) as fresh:
        with pytest.raises(Refused, match="another key now"):
            await fresh.backup.restore(key)
        assert not fresh.device.own.account_seed


async def test_damaged_chunks_are_counted_and_the_rest_is_restored(house: House, small_chunks: None) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)
        key = await set_up(phone)
        (archive,) = await kept_on_server(phone)
        assert archive.chunk_count == 4
        first = await phone.client.get_chunk(archive.archive_id, 1)
        await phone.client.put_chunk(archive.archive_id, 2, first)  # moved to another place
    async with open_still(await ann.another_device(), MemoryVault()) as fresh:
        restored = await fresh.backup.restore(key)
        assert restored.damaged == 1 and restored.messages == 4
        assert await shown(fresh, room) == [*TEXTS[:2], *TEXTS[4:]]
        ends = [each for each in told(fresh) if isinstance(each, HistoryFetched)]
        assert ends == [HistoryFetched(messages=4, damaged=1)]


async def test_a_restore_goes_on_wherever_it_was_interrupted(house: House, small_chunks: None) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)
        key = await set_up(phone)

        async def restore(number: int, before: bool = True) -> int:
            """Ends at this call, and goes on. How many calls it takes; with 0 it ends nowhere."""
            laptop, held, made = await ann.another_device(), MemoryVault(), [""]
            with contextlib.suppress(Crash):
                async with open_still(laptop, held) as fresh:
                    made = count_calls(fresh.client)
                    crash_at(fresh.client, number, before=before)
                    await fresh.backup.restore(key)
            async with open_still(laptop, held) as fresh:
                if not fresh.device.own.account_seed:
                    await fresh.backup.restore(key)  # nothing had happened yet
                await fresh.linking.step()
                assert await shown(fresh, room) == TEXTS and fresh.keeping.linked.is_set()
                ends = await fresh.device.read(lambda tx: tx.scan(Archive, "fetching"))
                assert [(each.over, each.damaged) for each in ends] == [(True, 0)]
                await fresh.client.logout()
            return len(made)

        calls = await restore(0)
        assert calls > 5
        for point in crash_points("restore", calls):
            await restore(*point)


async def test_chunks_that_were_never_together_are_told_as_damaged_and_what_they_say_stays(
    house: House, small_chunks: None
) -> None:
    ann, bob = await house.people(2)
    vault = MemoryVault()
    async with open_still(ann, vault) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob, TEXTS[:2])
        key = await set_up(phone)
        (archive,) = await kept_on_server(phone)
        older, old = vault.copy(), await phone.client.get_chunk(archive.archive_id, 0)
        await phone.send(room, TEXTS[2])
        await phone.backup.flush()
        manifest = await phone.client.get_chunk(archive.archive_id, 0)
        other = await phone.client.get_chunk(archive.archive_id, 2)
        chunks = [old, await phone.client.get_chunk(archive.archive_id, 1)]
        await phone.client.delete_archive(archive.archive_id)  # a server that shows what was before
        await phone.client.make_archive(archive.archive_id, "backup")
        for number, chunk in enumerate(chunks):
            await phone.client.put_chunk(archive.archive_id, number, chunk)
    async with open_still(ann, older) as phone:
        await phone.backup.flush()
        await phone.edit((await phone.history(room))[0].id, "edited")
        await phone.backup.flush()
        assert (await phone.client.get_chunk(archive.archive_id, 2)) != other
        await phone.client.put_chunk(archive.archive_id, 0, manifest)  # of the other chunk 2
    async with open_still(await ann.another_device(), MemoryVault()) as fresh:
        restored = await fresh.backup.restore(key)
        assert restored.damaged == 1
        assert await shown(fresh, room) == [TEXTS[0], "edited"]
        assert [each for each in told(fresh) if isinstance(each, HistoryFetched)] == [
            HistoryFetched(messages=2, damaged=1)
        ]


async def test_the_backup_of_a_device_that_is_gone_goes_when_what_restored_it_has_its_own(house: House) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)
        key = await set_up(phone)
    laptop = await ann.another_device()
    async with open_still(laptop, MemoryVault()) as fresh:
        await fresh.backup.restore(key)
        await fresh.backup.flush()
        assert (await fresh.backup.status()).others == 1, "the phone may come back"
        await fresh.client.remove_device(ann.device_id)
        await fresh.send(room, "one more")
        await fresh.backup.flush()
        status = await fresh.backup.status()
        assert status.others == 0 and status.complete
    async with open_still(await ann.another_device(), MemoryVault()) as next_one:
        await next_one.backup.restore(key)
        assert await shown(next_one, room) == [*TEXTS, "one more"]


@pytest.mark.parametrize("met", [False, True])
async def test_who_was_verified_is_not_replaced_by_whom_the_server_shows_since(house: House, met: bool) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()) as his:
        room = await talked(phone, bob)
        await phone.verify(bob.id)
        key = await set_up(phone)
        real = await phone.device.read(lambda tx: tx.get(Peer, bob.id))
        assert real is not None
        await his.keeping.adopt(certificates.new_account_seed())  # or the server says so
    async with open_still(await ann.another_device(), MemoryVault()) as fresh:
        if met:
            await fresh.companies.of(room)
        await fresh.backup.restore(key)
        with pytest.raises(Refused) as refused:
            await fresh.send(room, "to whom?")
        assert refused.value.code == "identity-changed"
        changed: list[SecurityEvent] = [each for each in told(fresh) if isinstance(each, IdentityChanged)]
        assert changed == [IdentityChanged(user_id=bob.id, was_verified=True)]
        pinned: Any = await fresh.device.read(lambda tx: tx.get(Peer, bob.id))
        assert pinned.account_key == real.account_key and not await fresh.is_verified(bob.id)


async def test_the_manifest_never_outgrows_its_chunk(house: House, tmp_path: Path) -> None:
    (ann,) = await house.people(1)
    async with open_vault(tmp_path / "vault", bytes(32)) as vault, open_still(ann, vault) as phone:

        def crowd(tx: Any) -> None:
            tx.put(Epoch("e", 1))
            for number in range(1600):
                tx.put(Peer(new_archive_id(number), secrets.token_bytes(32), 1, secrets.randbelow(2**40) + 1))
                room = new_archive_id(secrets.randbelow(2**40))
                tx.put(Kept(room, 1, 2**40 + number, ann.id, ann.id, "d", number, "text", b""))

        await phone.device.vault.write(crowd)
        key = await set_up(phone)
        (archive,) = await kept_on_server(phone)
        chunk = await phone.client.get_chunk(archive.archive_id, 0)
        secret = recovery.backup_key(ann.id, recovery.parse_recovery_key(key))
        manifest = recovery.decode_manifest(recovery.open_chunk(secret, ann.id, archive.archive_id, 0, chunk))
        assert (len(manifest.cursors), len(manifest.verified)) == (1000, 1500)
