"""Stories of a second device: linked with a code, given the history, after crashes, and past a server that cheats."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gearlink.sdk import Refused
from gearlink.sdk.e2ee import certificates, recovery
from gearlink.sdk.e2ee.encoding import to_base64url
from gearlink.sdk.e2ee.records import Archive, Epoch, Kept
from gearlink.sdk.e2ee.store import KeyStore
from gearlink.sdk.e2ee.vault import open_vault
from gearlink.sdk.secure import archiving, linking
from gearlink.sdk.secure.archiving import HistoryFetched
from gearlink.sdk.secure.client import SecureClient
from gearlink.sdk.secure.told import Linked, NotLinked
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


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for seconds."""
    monkeypatch.setattr(linking, "LOOK_SECONDS", 0.05)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as house:
        yield house


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two messages fill a chunk."""
    monkeypatch.setattr(recovery, "PLAIN_BYTES", 1400)


def code_of(secure: SecureClient) -> str:
    """What the new device shows; what was told until now is taken."""
    return next(each.code for each in told(secure) if isinstance(each, NotLinked))


# --- the way it is meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory", "vault"])
async def test_a_second_device_is_linked_with_its_code_reads_what_was_said_and_talks(
    house: House, store: str, tmp_path: Path
) -> None:
    ann, bob = await house.people(2)
    laptop = await ann.another_device()
    async with contextlib.AsyncExitStack() as stack:
        vaults: list[KeyStore] = [MemoryVault() for _ in range(3)]
        if store == "vault":
            places = [tmp_path / f"vault-{number}" for number in range(3)]
            vaults = [await stack.enter_async_context(open_vault(place, bytes(32))) for place in places]
        phone = await stack.enter_async_context(open_device(ann, vaults[0]))
        his = await stack.enter_async_context(open_device(bob, vaults[1]))
        room = await talked(phone, bob, ["one", "two", "three"])
        assert await heard_texts(his, 3) == ["one", "two", "three"]
        new = await stack.enter_async_context(open_device(laptop, vaults[2]))
        (code,) = {each.code for each in await heard(new, NotLinked)}
        assert await phone.link(code.lower()) == laptop.device_id
        assert (await heard(new, Linked))[0].history
        assert (await heard(new, HistoryFetched))[0] == HistoryFetched(messages=3, damaged=0)
        assert await shown(new, room) == ["one", "two", "three"]
        await new.send(room, "from the laptop")
        assert await heard_texts(his) == ["from the laptop"]
        await his.send(room, "to both")
        assert await heard_texts(new) == ["to both"]
        assert [each async for each in new.client.archives()] == []


async def test_a_device_is_linked_without_the_history_and_without_any_conversation(house: House) -> None:
    (ann,) = await house.people(1)
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        await phone.link(code_of(new), history=False)
        assert await phone.linking.step() is False
        assert await new.linking.step() is False
        assert told(new) == [Linked(history=False)]
        assert new.device.own.account_seed == phone.device.own.account_seed and new.keeping.linked.is_set()
        assert [each async for each in new.client.archives()] == []


async def test_progress_is_told_on_both_sides(house: House, small_chunks: None) -> None:
    ann, bob = await house.people(2)
    sent: list[tuple[int, int]] = []
    fetched: list[tuple[int, int]] = []
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        async with open_still(bob, MemoryVault()):
            await talked(phone, bob)
        phone.linking.on_progress = lambda done, total: sent.append((done, total))
        await phone.link(code_of(new))
        await phone.linking.step()
        await new.linking.step()
        assert sent[-1] == (6, 6) and len(sent) == 3
    async with open_still(ann, MemoryVault()) as phone:
        assert await phone.fetch_history(lambda done, total: fetched.append((done, total))) and not fetched


async def test_progress_of_fetching_counts_chunks(house: House, small_chunks: None) -> None:
    ann, bob = await house.people(2)
    fetched: list[tuple[int, int]] = []
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        async with open_still(bob, MemoryVault()):
            await talked(phone, bob)
        await phone.link(code_of(new))
        await new.linking.step()  # the letter is there, and nothing behind it yet
        assert not await new.fetch_history(lambda done, total: fetched.append((done, total))) and not fetched
        await phone.linking.step()
        assert await new.fetch_history()
        assert fetched[0][0] == 1 and fetched[-1] == (3, 3) and len(fetched) == 3


async def test_a_backup_key_goes_along_so_that_the_new_device_backs_up_too(house: House) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        async with open_still(bob, MemoryVault()):
            await talked(phone, bob)
        await phone.backup.confirm(await phone.backup.begin())
        await phone.link(code_of(new))
        await phone.linking.step()
        await new.linking.step()
        await new.backup.flush()
        status = await new.backup.status()
        assert status.enabled and status.complete and status.others == 1


# --- what must not happen --------------------------------------------------------------------------------------------


async def test_a_wrong_code_links_nothing(house: House) -> None:
    (ann,) = await house.people(1)
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        for code in ("AAAA-BBBB-CCCC-DDDD", "", "a word", "🔑"):
            with pytest.raises(Refused, match="compare the code") as refused:
                await phone.link(code)
            assert refused.value.code == "not-found"
        assert await new.linking.step() is True
        assert [each async for each in phone.client.archives()] == [] and not new.device.own.account_seed


async def test_the_code_of_a_device_of_somebody_else_links_nothing(house: House) -> None:
    ann, bob = await house.people(2)
    tablet = await bob.another_device()
    async with (
        open_still(ann, MemoryVault()) as phone,
        open_still(bob, MemoryVault()),
        open_still(tablet, MemoryVault()) as his,
    ):
        with pytest.raises(Refused, match="compare the code"):
            await phone.link(code_of(his))


async def test_a_server_that_swaps_the_key_of_the_new_device_is_found_out_by_the_code(house: House) -> None:
    (ann,) = await house.people(1)
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        code, truly = code_of(new), phone.client.identities_of

        async def lying(user_id: str) -> Any:
            shown = await truly(user_id)
            own = phone.device.own.device_id
            mallory = to_base64url(certificates.account_public(bytes(32)))
            shown.devices = [
                each if each.device_id == own else replace(each, identity_key=mallory) for each in shown.devices
            ]
            return shown

        phone.client.identities_of = lying  # type: ignore[method-assign]
        with pytest.raises(Refused, match="do not trust this server"):
            await phone.link(code)
        certified = [each.device_id for each in (await truly(ann.id)).devices if isinstance(each.certificate, str)]
        assert certified == [ann.device_id]


async def test_a_device_that_is_not_linked_links_none(house: House) -> None:
    (ann,) = await house.people(1)
    tablet, laptop = [await ann.another_device() for _ in range(2)]
    async with (
        open_still(ann, MemoryVault()),
        open_still(tablet, MemoryVault()) as second,
        open_still(laptop, MemoryVault()) as third,
    ):
        with pytest.raises(Refused, match="linked itself"):
            await second.link(code_of(third))


async def test_nothing_is_linked_while_the_server_shows_another_account_key(house: House) -> None:
    (ann,) = await house.people(1)
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        code, other = code_of(new), certificates.new_account_seed()
        certificate = certificates.certify(other, *new.device.address, certificates.account_public(
            new.device.own.identity_seed))  # fmt: skip
        key = to_base64url(certificates.account_public(other))
        await new.client.certify_device(new.device.own.device_id, key, to_base64url(certificate))
        with pytest.raises(Refused, match="another key for this account"):
            await phone.link(code)


async def test_a_letter_that_is_not_from_a_device_of_the_account_is_not_believed(house: House) -> None:
    (ann,) = await house.people(1)
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        code, own, seal, lie = code_of(new), phone.device.own, phone.linking._letter, ""

        def forged(tx: Any, *, record: Archive) -> bytes:
            if lie == "another account key":
                seed = certificates.new_account_seed()
                identity_key = certificates.account_public(own.identity_seed)
                certificate = certificates.certify(seed, own.user_id, own.device_id, identity_key)
                phone.device.own = replace(own, account_seed=seed, certificate=certificate)
            elif lie == "no certificate":
                phone.device.own = replace(own, certificate=bytes(64))
            elif lie == "another archive":
                record = replace(record, archive_id=ann.id)
            elif lie == "another code":
                record = replace(record, link_secret=bytes(5))
            chunk = seal(tx, record=record)
            phone.device.own = own
            return chunk if lie != "no letter" else b"\x01" + bytes(len(chunk))

        phone.linking._letter = forged  # type: ignore[method-assign]
        vault = new.device.vault
        assert isinstance(vault, MemoryVault)
        held = vault.everything()
        for lie in ("another account key", "no certificate", "another archive", "no letter", "another code"):
            await phone.link(code)
            assert await new.linking.step() is True, lie
            assert new.device.own.link_failures == (lie == "another code")
            await new.device.change_own(lambda known: replace(known, link_failures=0))
            assert not new.device.own.account_seed and vault.everything() == held, lie
        phone.linking._letter = seal  # type: ignore[method-assign]
        await phone.link(code)  # the person tries again
        await new.linking.step()
        assert new.device.own.account_seed == own.account_seed


@dataclass
class Operator:
    """Whoever runs the server: an account key of their own making, and a device that it certifies."""

    phone: SecureClient
    victim: SecureClient

    async def take_over(self) -> None:
        """Shows the new device an account of the operator's making, with the operator's device in it."""
        own, seed = self.phone.device.own, certificates.new_account_seed()
        identity_key = certificates.account_public(own.identity_seed)
        certificate = certificates.certify(seed, own.user_id, own.device_id, identity_key)
        await self.phone.device.change_own(lambda own: replace(own, account_seed=seed, certificate=certificate))
        truly, shown_key = self.victim.client.identities_of, to_base64url(certificates.account_public(seed))

        async def lying(user_id: str) -> Any:
            shown = await truly(user_id)
            shown.account_key = shown_key
            return shown

        self.victim.client.identities_of = lying  # type: ignore[method-assign]

    async def guess(self, secret: bytes) -> None:
        """A letter for the victim, as the device that they link would write it."""
        phone, new = self.phone, self.victim.device.own
        await phone.posting.open_sessions([(new.user_id, new.device_id)], anew=True)
        archive_id = archiving.new_archive_id(phone.device.now())
        record = Archive("sending", archive_id, b"", 0, 0, 0, {}, 0, new.device_id, 1, link_secret=secret)
        chunk = await phone.device.write(lambda tx: phone.linking._letter(tx, record=record))
        await phone.client.make_archive(archive_id, "transfer")
        await phone.client.put_chunk(archive_id, 0, chunk)

    async def clear(self) -> None:
        for each in [each async for each in self.phone.client.archives()]:
            await self.phone.client.delete_archive(each.archive_id)


async def test_a_server_cannot_bring_a_new_device_into_an_account_of_its_own_making(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ann,) = await house.people(1)
    monkeypatch.setattr(linking, "FAILURES_MAX", 3)
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        code = code_of(new)
        await phone.link(code, history=False)  # the operator begins where the person has typed the code
        operator, secret = Operator(phone, new), certificates.code_secret(code)
        await operator.clear()
        await operator.take_over()
        for guess in (b"guess", bytes(5), bytes(5)):
            await operator.guess(guess)
            assert await new.linking.step() is True and not new.device.own.account_seed
        again = code_of(new)
        assert again != code and certificates.code_secret(again) != secret
        assert new.device.own.link_failures == 0
        await operator.guess(secret)  # which was right until now
        assert await new.linking.step() is True and not new.device.own.account_seed
        assert await new.linking.step() is True and new.device.own.link_failures == 1, "the same letter counts once"
        await operator.guess(certificates.code_secret(again))
        await new.linking.step()
        assert new.device.own.account_seed == phone.device.own.account_seed, "else the guesses were no test"
        assert not new.device.own.link_secret and not new.device.own.link_failures


async def test_the_code_stays_the_same_over_a_restart_and_a_vault_without_secret_gets_one(house: House) -> None:
    (ann,) = await house.people(1)
    laptop, vault = await ann.another_device(), MemoryVault()
    async with open_still(ann, MemoryVault()):
        async with open_still(laptop, vault) as new:
            code = code_of(new)
        async with open_still(laptop, vault) as new:
            assert code_of(new) == code
            await new.device.change_own(lambda own: replace(own, link_secret=b""))
            await new.keeping.renew()
            assert code_of(new) != code and len(new.device.own.link_secret) == 5


async def test_a_new_code_that_is_typed_goes_into_the_letter_that_is_on_its_way(house: House) -> None:
    (ann,) = await house.people(1)
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        await phone.link(code_of(new))
        await new.keeping.show_code(anew=True)
        assert await new.linking.step() is True and not new.device.own.account_seed
        await phone.link(code_of(new))
        await new.linking.step()
        assert new.device.own.account_seed == phone.device.own.account_seed


async def test_a_linked_device_takes_no_other_account_key(house: House) -> None:
    (ann,) = await house.people(1)
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        code = code_of(new)
        await phone.link(code, history=False)
        await new.linking.step()
        seed = new.device.own.account_seed
        await phone.link(code, history=False)
        assert await new.linking.step() is False and new.device.own.account_seed == seed
        (left,) = [each async for each in new.client.archives()]
        chunk = await new.client.get_chunk(left.archive_id, 0)
        shown_key = certificates.account_public(seed)
        with pytest.raises(archiving.Undecryptable, match="misdirected"):
            await new.device.write(lambda tx: new.linking._take(tx, archive=left, chunk=chunk, shown=shown_key))


async def test_a_device_whose_user_started_over_on_another_one_is_linked_anew(house: House) -> None:
    (ann,) = await house.people(1)
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        await phone.link(code_of(new), history=False)
        await new.linking.step()
        await new.keeping.start_over()
        assert not told(phone) and phone.keeping.linked.is_set()
        await phone.keeping.renew()
        assert not phone.keeping.linked.is_set()
        await new.link(code_of(phone), history=False)
        await phone.linking.step()
        assert phone.device.own.account_seed == new.device.own.account_seed and phone.keeping.linked.is_set()


async def test_a_damaged_chunk_costs_what_is_in_it_and_is_told(house: House, small_chunks: None) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        async with open_still(bob, MemoryVault()):
            room = await talked(phone, bob)
        await phone.link(code_of(new))
        await phone.linking.step()
        (archive,) = [each async for each in new.client.archives()]
        chunk = await new.client.get_chunk(archive.archive_id, 3)
        await new.client.put_chunk(archive.archive_id, 3, chunk[:-1] + bytes([chunk[-1] ^ 1]))
        await new.linking.step()
        (end,) = [each for each in told(new) if isinstance(each, HistoryFetched)]
        found = await shown(new, room)
        assert end.damaged == 1 and end.messages == len(found)
        assert 0 < len(found) < len(TEXTS) and set(found) < set(TEXTS) and found[-1] == TEXTS[-1]


async def test_a_transfer_of_chunks_that_were_never_together_is_told_as_damaged(
    house: House, small_chunks: None
) -> None:
    ann, bob = await house.people(2)
    vault = MemoryVault()
    async with open_still(ann, vault) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)
    async with open_still(await ann.another_device(), MemoryVault()) as new:
        async with open_still(ann, vault) as phone:
            await phone.link(code_of(new))
            older = vault.copy()
            await phone.linking.step()
            (archive,) = [each async for each in new.client.archives()]
            manifest = await new.client.get_chunk(archive.archive_id, 1)
        async with open_still(ann, older) as phone:  # writes the same once more
            await phone.linking.step()
        await new.client.put_chunk(archive.archive_id, 1, manifest)
        await new.linking.step()
        assert await shown(new, room) == TEXTS, "each opened by itself"
        assert [each.damaged for each in told(new) if isinstance(each, HistoryFetched)] == [1]


async def test_a_transfer_that_is_gone_is_not_waited_for(house: House) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        async with open_still(bob, MemoryVault()):
            await talked(phone, bob)
        await phone.link(code_of(new))
        assert await new.linking.step() is True
        for each in [each async for each in new.client.archives()]:
            await new.client.delete_archive(each.archive_id)
        assert await phone.linking.step() is False and await new.linking.step() is False
        assert await phone.device.read(lambda tx: tx.scan(Archive, "sending")) == []
        assert await new.device.read(lambda tx: tx.scan(Archive, "fetching")) == []


async def test_a_code_that_is_typed_twice_does_not_stop_what_is_on_its_way(house: House) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(await ann.another_device(), MemoryVault()) as new:
        async with open_still(bob, MemoryVault()):
            room = await talked(phone, bob)
        code = code_of(new)
        await phone.link(code)
        await new.linking.step()
        await phone.link(code)
        await phone.linking.step()
        await new.linking.step()
        assert await shown(new, room) == TEXTS and [each async for each in new.client.archives()] == []


async def test_a_device_that_began_anew_is_given_another_letter(house: House) -> None:
    ann, bob = await house.people(2)
    laptop = await ann.another_device()
    async with open_still(ann, MemoryVault()) as phone:
        async with open_still(bob, MemoryVault()):
            room = await talked(phone, bob)
        async with open_still(laptop, MemoryVault()) as new:
            await phone.link(code_of(new))
        async with open_still(laptop, MemoryVault()) as new:  # its vault was lost
            await phone.link(code_of(new))
            await phone.linking.step()
            await new.linking.step()
            assert await shown(new, room) == TEXTS and [each async for each in new.client.archives()] == []


async def test_without_room_for_all_of_the_history_a_part_of_it_comes(tmp_path: Path) -> None:
    async with open_house(tmp_path, limits__archive_mib="1") as house:
        (ann,) = await house.people(1)
        async with (
            open_still(ann, MemoryVault()) as phone,
            open_still(await ann.another_device(), MemoryVault()) as new,
        ):
            room = await keep_much(phone, 140)
            await phone.link(code_of(new))
            assert await phone.linking.step() is False and await new.linking.step() is False
            (end,) = [each for each in told(new) if isinstance(each, HistoryFetched)]
            assert end.damaged == 0 and 50 < end.messages < 140 and len(await shown(new, room)) == end.messages


# --- crashes ---------------------------------------------------------------------------------------------------------


async def test_the_old_device_goes_on_wherever_it_crashed(house: House, small_chunks: None) -> None:
    ann, bob = await house.people(2)
    vault = MemoryVault()
    async with open_still(ann, vault) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)

    async def link(number: int, before: bool = True) -> int:
        """Ends at this call, and goes on. How many calls it takes; with 0 it ends nowhere."""
        held = vault.copy()
        async with open_still(await ann.another_device(), MemoryVault()) as new:
            code, made = code_of(new), [""]
            with contextlib.suppress(Crash):
                async with open_still(ann, held) as phone:
                    made = count_calls(phone.client)
                    crash_at(phone.client, number, before=before)
                    await phone.link(code)
                    await phone.linking.step()
            if number:
                await new.linking.step()  # reads what is there
                async with open_still(ann, held) as phone:
                    if not await phone.device.read(lambda tx: tx.scan(Archive, "sending")):
                        await phone.link(code)  # it had not begun, or was done
                    await phone.linking.step()
            await new.linking.step()
            assert await shown(new, room) == TEXTS
            assert [each.damaged for each in told(new) if isinstance(each, HistoryFetched)] == [0]
            assert held.look(lambda tx: tx.scan(Archive, "sending")) == []
            for each in [each async for each in new.client.archives()]:
                await new.client.delete_archive(each.archive_id)
            await new.client.logout()
        return len(made)

    calls = await link(0)
    assert calls > 8
    for point in crash_points("old device", calls):
        await link(*point)


async def test_the_new_device_goes_on_wherever_it_crashed(house: House, small_chunks: None) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)

        async def link(number: int, before: bool = True) -> int:
            laptop, vault, made = await ann.another_device(), MemoryVault(), [""]
            with contextlib.suppress(Crash):
                async with open_still(laptop, vault) as new:
                    await phone.link(code_of(new))
                    await phone.linking.step()
                    made = count_calls(new.client)
                    crash_at(new.client, number, before=before)
                    await new.linking.step()
            async with open_still(laptop, vault) as new:
                await new.linking.step()
                assert await shown(new, room) == TEXTS and new.keeping.linked.is_set()
                assert {each.damaged for each in told(new) if isinstance(each, HistoryFetched)} <= {0}
                assert await new.device.read(lambda tx: tx.scan(Archive, "fetching")) == []
                assert [each async for each in new.client.archives()] == []
                # What came before it counted was not for it, and it does not ask for it.
                assert len(await new.device.read(lambda tx: tx.scan(Kept))) == len(TEXTS)
            await phone.client.remove_device(laptop.device_id)
            return len(made)

        calls = await link(0)
        assert calls > 8
        for point in crash_points("new device", calls):
            await link(*point)


# --- what is in it ---------------------------------------------------------------------------------------------------


async def test_edits_reactions_and_deletions_come_along_and_what_happens_meanwhile_is_not_lost(
    house: House, small_chunks: None
) -> None:
    ann, bob = await house.people(2)
    clock = Clock()
    async with open_still(ann, MemoryVault(), wall=clock) as phone, open_still(bob, MemoryVault()):
        room = await talked(phone, bob)
        ids = [each.id for each in reversed(await phone.history(room))]
        await phone.edit(ids[0], "edited before")
        await phone.react(ids[1], "👍")
        async with open_device(await ann.another_device(), MemoryVault(), wall=clock) as new:
            await phone.link((await heard(new, NotLinked))[0].code)
            await heard(new, Linked)  # from now on it hears by itself, and has nothing of what was before
            await phone.edit(ids[2], "edited meanwhile")
            await phone.react(ids[3], "🎉")
            await phone.client.delete(ids[4], for_everyone=True)
            await phone.send(room, "said meanwhile")
            assert await heard_texts(new) == ["said meanwhile"]
            await phone.linking.step()
            await heard(new, HistoryFetched)
            texts = await shown(new, room)
            assert texts[:5] == ["edited before", TEXTS[1], "edited meanwhile", TEXTS[3], TEXTS[5]]
            assert texts[-1] == "said meanwhile" and len(texts) == 6
            reactions = [[each.emoji for each in view.reactions] for view in reversed(await new.history(room))]
            assert reactions[1] == ["👍"] and reactions[3] == ["🎉"]


async def test_without_a_socket_letters_are_kept_under_the_epoch_of_the_published_keys(house: House) -> None:
    ann, bob = await house.people(2)
    async with open_still(ann, MemoryVault()) as phone, open_still(bob, MemoryVault()):
        phone.client.state.epoch = None
        assert phone.client.epoch == "" and phone.device.epoch == house.app.store.epoch
        await talked(phone, bob, ["said without a socket"])
        epochs = await phone.device.read(lambda tx: [each.epoch for each in tx.scan(Epoch)])
        assert epochs == [house.app.store.epoch]
