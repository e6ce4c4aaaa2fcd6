# ruff: noqa: ASYNC240 - files of a test are small and nobody waits
"""The key of the vault: each way to keep it gives it back, gives it to nobody else, and says what is wrong without telling it.

Argon2id runs with the least that it allows, except where its cost is what is asked about.
"""

import base64
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import keyring
import keyring.backend
import keyring.backends.fail
import keyring.backends.null
import keyring.errors
import msgspec
import pytest
import trio
import trio.testing
from nacl import pwhash

from gearlink.sdk.e2ee import unlocking
from gearlink.sdk.e2ee.unlocking import (
    HeaderDamaged,
    KeyLost,
    KeyringUnusable,
    NoVault,
    UnlockError,
    VaultExists,
    WrongPassphrase,
    change_passphrase,
    create,
    is_keyring_usable,
    unlock,
    ways,
)
from gearlink.sdk.e2ee.vault import WrongKey, open_vault

WORDS = "correct horse battery"
NEW_WORDS = "staple staple staple"


class FakeKeyring(keyring.backend.KeyringBackend):
    """A key ring of the system, as far as the library shows it."""

    priority = 5.0  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.before: Callable[[], None] = lambda: None
        self.threads: set[int] = set()

    def get_password(self, service: str, username: str) -> str | None:
        self.threads.add(threading.get_ident())
        self.before()
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.before()
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


class Forgetful(FakeKeyring):
    def set_password(self, service: str, username: str, password: str) -> None:
        pass


class InTheClear(FakeKeyring):
    priority = 0.5  # type: ignore[assignment]


class Chain:
    priority = 10

    def __init__(self, *backends: Any) -> None:
        self.backends = backends


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlocking, "OPERATIONS", pwhash.argon2id.OPSLIMIT_MIN)
    monkeypatch.setattr(unlocking, "MEMORY_BYTES", pwhash.argon2id.MEMLIMIT_MIN)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> FakeKeyring:
    ring = FakeKeyring()
    monkeypatch.setattr(keyring, "get_keyring", lambda: ring)
    return ring


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "device"


def header(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode((place / "vault.json").read_bytes())
    return found


def tamper(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    changed = header(place)
    change(changed)
    (place / "vault.json").write_bytes(msgspec.json.encode(changed))


# --- passphrases -----------------------------------------------------------------------------------------------------


async def test_a_passphrase_gives_the_key_back_and_no_other_does(place: Path) -> None:
    key = await create(place, "passphrase", WORDS)
    assert len(key) == 32
    assert await unlock(place, WORDS) == key
    for wrong in ("", WORDS + " ", WORDS.upper(), "x" * 5000):
        with pytest.raises(WrongPassphrase, match="not the passphrase"):
            await unlock(place, wrong)


async def test_a_person_is_asked_only_where_a_passphrase_is_needed(place: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    async def ask() -> str:
        asked.append("?")
        return WORDS

    key = await create(place, "passphrase", WORDS)
    assert await unlock(place, ask) == key
    file_key = await create(tmp_path / "other", "file")
    assert await unlock(tmp_path / "other", ask) == file_key
    assert asked == ["?"]
    with pytest.raises(UnlockError, match="locked with a passphrase"):
        await unlock(place)


async def test_one_passphrase_in_two_spellings_of_unicode_is_one(place: Path) -> None:
    key = await create(place, "passphrase", "Café au lait")
    assert await unlock(place, "Cafe\u0301 au lait") == key


async def test_two_vaults_with_one_passphrase_share_nothing(tmp_path: Path) -> None:
    keys = [await create(tmp_path / name, "passphrase", WORDS) for name in "ab"]
    one, other = (header(tmp_path / name) for name in "ab")
    assert keys[0] != keys[1]
    assert one["vaultId"] != other["vaultId"]
    assert one["unlock"]["salt"] != other["unlock"]["salt"]
    tamper(tmp_path / "b", lambda changed: changed.update(unlock=one["unlock"]))
    with pytest.raises(WrongPassphrase):  # the sealed key is bound to its vault
        await unlock(tmp_path / "b", WORDS)


async def test_a_short_or_endless_passphrase_makes_no_vault(place: Path) -> None:
    for bad in ("", "1234567", "x" * 1025):
        with pytest.raises(UnlockError, match="8 to 1024 characters"):
            await create(place, "passphrase", bad)
    with pytest.raises(ValueError, match="needed"):
        await create(place, "passphrase")
    with pytest.raises(ValueError, match="takes no passphrase"):
        await create(place, "file", WORDS)
    assert not place.exists()


async def test_a_changed_passphrase_opens_the_same_key_and_the_old_one_nothing(place: Path) -> None:
    key = await create(place, "passphrase", WORDS)
    before = header(place)
    await change_passphrase(place, WORDS, NEW_WORDS)
    assert await unlock(place, NEW_WORDS) == key
    with pytest.raises(WrongPassphrase):
        await unlock(place, WORDS)
    assert header(place)["vaultId"] == before["vaultId"]
    assert header(place)["unlock"]["salt"] != before["unlock"]["salt"]


async def test_a_passphrase_is_changed_only_by_who_knows_it(place: Path) -> None:
    await create(place, "passphrase", WORDS)
    before = (place / "vault.json").read_bytes()
    with pytest.raises(WrongPassphrase):
        await change_passphrase(place, "wrong wrong wrong", NEW_WORDS)
    with pytest.raises(UnlockError, match="8 to 1024"):
        await change_passphrase(place, WORDS, "short")
    assert (place / "vault.json").read_bytes() == before


async def test_a_change_that_the_disk_refuses_leaves_the_old_passphrase(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await create(place, "passphrase", WORDS)

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UnlockError, match="No space left"):
            await change_passphrase(place, WORDS, NEW_WORDS)
    assert await unlock(place, WORDS) == key
    assert [file.name for file in place.iterdir()] == ["vault.json"]


async def test_a_new_passphrase_costs_what_argon2id_recommends(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    key = await create(place, "passphrase", WORDS)
    found = header(place)["unlock"]
    assert (found["operations"], found["memoryBytes"]) == (3, 256 * 1024 * 1024)
    assert await unlock(place, WORDS) == key


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memoryBytes", 1024 * 1024 * 1024 + 1),
        ("memoryBytes", 2**63),
        ("memoryBytes", 0),
        ("operations", 17),
        ("operations", 0),
        ("operations", -1),
        ("salt", "AAAA"),
        ("sealed", base64.b64encode(bytes(30)).decode()),
        ("sealed", base64.b64encode(bytes(3000)).decode()),
        ("way", "magic"),
    ],
)
async def test_a_header_that_asks_for_too_much_is_refused_before_anything_is_computed(
    place: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: object
) -> None:
    await create(place, "passphrase", WORDS)
    tamper(place, lambda changed: changed["unlock"].update({field: value}))
    monkeypatch.setattr(pwhash.argon2id, "kdf", None)
    with pytest.raises(HeaderDamaged):
        await unlock(place, WORDS)


@pytest.mark.parametrize("vault_id", ["", "../../../../../../etc/passwd0000", "A" * 32, "0" * 31 + "\n", "0" * 33])
async def test_a_header_names_no_file_outside_of_its_folder(place: Path, vault_id: str) -> None:
    await create(place, "file")
    tamper(place, lambda changed: changed.update(vaultId=vault_id))
    with pytest.raises(HeaderDamaged):
        await unlock(place)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b"x" * 100_000, b'{"format":1}', b'{"format":"1"}']
)
async def test_what_is_no_header_is_damage(place: Path, data: bytes) -> None:
    await create(place, "file")
    (place / "vault.json").write_bytes(data)
    for call in (unlock(place), ways(place), change_passphrase(place, WORDS, NEW_WORDS)):
        with pytest.raises(HeaderDamaged, match="damaged"):
            await call


async def test_each_changed_bit_of_a_sealed_key_is_noticed(place: Path) -> None:
    await create(place, "passphrase", WORDS)
    sealed = base64.b64decode(header(place)["unlock"]["sealed"])
    for at in range(0, len(sealed), 7):
        bad = bytearray(sealed)
        bad[at] ^= 1
        text = base64.b64encode(bad).decode()
        tamper(place, lambda changed, text=text: changed["unlock"].update(sealed=text))  # type: ignore[misc]
        with pytest.raises(WrongPassphrase):
            await unlock(place, WORDS)


async def test_a_header_of_a_newer_version_is_named(place: Path) -> None:
    await create(place, "file")
    (place / "vault.json").write_bytes(b'{"format":2,"unlock":{"way":"moonlight"}}')
    with pytest.raises(UnlockError, match="newer version"):
        await unlock(place)


async def test_a_vault_is_never_made_over_another(place: Path, ring: FakeKeyring) -> None:
    key = await create(place, "file")
    before = {file: file.read_bytes() for file in place.iterdir()}
    for way, words in (("file", None), ("passphrase", WORDS), ("keyring", None)):
        with pytest.raises(VaultExists, match="already"):
            await create(place, way, words)  # type: ignore[arg-type]
    assert {file: file.read_bytes() for file in place.iterdir()} == before
    assert ring.kept == {}
    assert await unlock(place) == key


async def test_of_many_who_make_a_vault_at_once_one_succeeds_with_its_own_key(place: Path) -> None:
    keys: list[bytes] = []

    async def make() -> None:
        with suppress(VaultExists):
            keys.append(await create(place, "file"))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(make)
    assert keys == [await unlock(place)]
    assert len(list(place.iterdir())) == 2


async def test_no_vault_has_no_ways_and_each_vault_its_own(tmp_path: Path, ring: FakeKeyring) -> None:
    assert await ways(tmp_path) == ()
    with pytest.raises(NoVault, match="no vault"):
        await unlock(tmp_path, WORDS)
    with pytest.raises(NoVault):
        await change_passphrase(tmp_path, WORDS, NEW_WORDS)
    for way in ("passphrase", "keyring", "file"):
        await create(tmp_path / way, way, WORDS if way == "passphrase" else None)  # type: ignore[arg-type]
        assert await ways(tmp_path / way) == (way,)


async def test_files_are_for_this_user_only_and_hold_no_secret_in_the_clear(tmp_path: Path, ring: FakeKeyring) -> None:
    for way in ("passphrase", "keyring", "file"):
        place = tmp_path / way
        key = await create(place, way, WORDS if way == "passphrase" else None)  # type: ignore[arg-type]
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        for file in place.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            if file.suffix != ".key":
                data = file.read_bytes()
                for secret in (key, base64.b64encode(key), key.hex().encode(), WORDS.encode()):
                    assert secret not in data


# --- key files -------------------------------------------------------------------------------------------------------


async def test_without_its_key_file_a_stray_copy_is_of_no_use(place: Path) -> None:
    key = await create(place, "file")
    (file,) = place.glob("*.key")
    data = file.read_bytes()
    file.unlink()
    with pytest.raises(KeyLost, match="recovery key"):
        await unlock(place)
    file.write_bytes(b"c2hvcnQ=")
    with pytest.raises(KeyLost, match="not a key"):
        await unlock(place)
    file.write_bytes(data)
    assert await unlock(place) == key


async def test_only_a_vault_with_a_passphrase_can_change_it(place: Path) -> None:
    await create(place, "file")
    with pytest.raises(UnlockError, match="not locked with a passphrase"):
        await change_passphrase(place, WORDS, NEW_WORDS)


# --- key rings -------------------------------------------------------------------------------------------------------


async def test_a_key_ring_keeps_the_key_under_the_id_of_the_vault(place: Path, ring: FakeKeyring) -> None:
    key = await create(place, "keyring")
    assert list(ring.kept) == [("gearlink", header(place)["vaultId"])]
    assert await unlock(place) == key
    assert threading.get_ident() not in ring.threads


async def test_a_key_ring_that_lost_the_key_or_holds_another_thing_is_told_apart(
    place: Path, ring: FakeKeyring
) -> None:
    await create(place, "keyring")
    (entry,) = ring.kept
    ring.kept[entry] = "canary"
    with pytest.raises(KeyLost, match="not a key") as caught:
        await unlock(place)
    assert "canary" not in str(caught.value)
    ring.kept.clear()
    with pytest.raises(KeyLost, match="no entry gearlink"):
        await unlock(place)


async def test_a_key_ring_that_says_no_is_told_without_its_own_words(place: Path, ring: FakeKeyring) -> None:
    def refuse() -> None:
        raise keyring.errors.KeyringLocked("canary")

    await create(place, "keyring")
    ring.before = refuse
    with pytest.raises(KeyringUnusable, match="KeyringLocked") as caught:
        await unlock(place)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "backend",
    [
        keyring.backends.fail.Keyring(),
        keyring.backends.null.Keyring(),
        InTheClear(),
        Chain(),
        Chain(FakeKeyring(), InTheClear()),
    ],
)
async def test_a_key_ring_that_keeps_nothing_or_keeps_it_for_all_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, backend: Any
) -> None:
    monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
    assert not await is_keyring_usable()
    with pytest.raises(KeyringUnusable, match="take a passphrase"):
        await create(place, "keyring")
    assert await ways(place) == ()


async def test_a_plain_text_ring_is_refused_also_where_its_priority_was_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    plaintext = type("PlaintextKeyring", (FakeKeyring,), {"__module__": "keyrings.alt.file"})
    monkeypatch.setattr(keyring, "get_keyring", plaintext)
    assert not await is_keyring_usable()


async def test_sound_key_rings_are_usable_also_in_a_chain(monkeypatch: pytest.MonkeyPatch, ring: FakeKeyring) -> None:
    assert await is_keyring_usable()
    monkeypatch.setattr(keyring, "get_keyring", lambda: Chain(ring, FakeKeyring()))
    assert await is_keyring_usable()


async def test_a_ring_that_does_not_keep_what_it_took_makes_no_vault(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "get_keyring", Forgetful)
    with pytest.raises(KeyringUnusable, match="did not keep"):
        await create(place, "keyring")
    assert await ways(place) == ()


async def test_a_ring_that_never_answers_is_given_up(
    place: Path, ring: FakeKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(place, "keyring")
    release = threading.Event()
    ring.before = lambda: release.wait(60) and None
    monkeypatch.setattr(unlocking, "KEYRING_SECONDS_MAX", 0.01)
    try:
        with pytest.raises(KeyringUnusable, match="did not answer"):
            await unlock(place)
    finally:
        release.set()


# --- with the vault --------------------------------------------------------------------------------------------------


async def test_the_key_of_a_header_opens_its_vault_and_not_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        async with open_vault(tmp_path / name / "vault.db", await create(tmp_path / name, "passphrase", WORDS)):
            pass
    await change_passphrase(tmp_path / "a", WORDS, NEW_WORDS)
    async with open_vault(tmp_path / "a" / "vault.db", await unlock(tmp_path / "a", NEW_WORDS)):
        pass
    with pytest.raises(WrongKey):
        async with open_vault(tmp_path / "b" / "vault.db", await unlock(tmp_path / "a", NEW_WORDS)):
            pass
