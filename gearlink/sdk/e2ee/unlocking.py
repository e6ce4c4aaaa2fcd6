"""Where the key of the vault comes from: a passphrase, the system's key ring, or a file beside it.

The vault is encrypted with a random data key, and `vault.json` beside it says how that is had. With `passphrase` it lies
there sealed (XChaCha20-Poly1305) under a key that Argon2id makes of the passphrase; with `keyring` it lies in the key ring of
the system; with `file` it lies in a file in the same folder, which protects a stray copy of the vault and nothing else.
A header may have been tampered with: what it asks for is bounded. This module does not open the vault.
"""

import base64
import binascii
import errno
import hmac
import os
import secrets
import unicodedata
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import trio
from msgspec import Meta
from nacl import pwhash
from nacl.exceptions import CryptoError
from nacl.secret import Aead

FORMAT: Final = 1
HEADER_NAME: Final = "vault.json"
SERVICE: Final = "gearlink"  # under which key rings show it
KEY_BYTES: Final = 32
PASSPHRASE_CHARS_MIN: Final = 8
PASSPHRASE_CHARS_MAX: Final = 1024
KEYRING_SECONDS_MAX: Final = 120.0  # a person may have to find the window in which the system asks

# What a new passphrase costs, and what a header may ask for at most: as much again and some, as machines grow.
OPERATIONS: Final = pwhash.argon2id.OPSLIMIT_MODERATE
MEMORY_BYTES: Final = pwhash.argon2id.MEMLIMIT_MODERATE
OPERATIONS_MAX: Final = 16
MEMORY_BYTES_MAX: Final = 1024 * 1024 * 1024

_HEADER_BYTES_MAX: Final = 4096
_NONCE_BYTES: Final = Aead.NONCE_SIZE

Way = Literal["passphrase", "keyring", "file"]
Ask = Callable[[], Awaitable[str]]
_T = TypeVar("_T")


class UnlockError(Exception):
    """The data key cannot be had. The text says what a person can do about it, and never a secret."""


class NoVault(UnlockError):
    """There is no header in this folder."""


class VaultExists(UnlockError):
    """There is a header in this folder, and what it leads to would be lost."""


class HeaderDamaged(UnlockError):
    """The header is not one that this program wrote, or asks for what it may not."""


class WrongPassphrase(UnlockError):
    """It is not this one. (Or the header was tampered with, which looks the same.)"""


class KeyringUnusable(UnlockError):
    """The system has no key ring that keeps secrets, or it said no."""


class KeyLost(UnlockError):
    """The key ring or the folder does not have the key any more."""


# --- the header ------------------------------------------------------------------------------------------------------


class _Passphrase(msgspec.Struct, frozen=True, tag_field="way", tag="passphrase", rename="camel"):
    salt: Annotated[bytes, Meta(min_length=pwhash.argon2id.SALTBYTES, max_length=pwhash.argon2id.SALTBYTES)]
    operations: Annotated[int, Meta(ge=pwhash.argon2id.OPSLIMIT_MIN, le=OPERATIONS_MAX)]
    memory_bytes: Annotated[int, Meta(ge=pwhash.argon2id.MEMLIMIT_MIN, le=MEMORY_BYTES_MAX)]
    sealed: Annotated[bytes, Meta(min_length=_NONCE_BYTES + KEY_BYTES, max_length=_NONCE_BYTES + 2 * KEY_BYTES)]


class _Keyring(msgspec.Struct, frozen=True, tag_field="way", tag="keyring"):
    pass


class _File(msgspec.Struct, frozen=True, tag_field="way", tag="file"):
    pass


class _Header(msgspec.Struct, frozen=True, rename="camel"):
    format: int
    vault_id: Annotated[str, Meta(min_length=32, max_length=32, pattern=r"\A[0-9a-f]+\Z")]  # it names files
    unlock: _Passphrase | _Keyring | _File


class _Format(msgspec.Struct):
    format: int


def _read_header(directory: Path) -> _Header:
    path = directory / HEADER_NAME
    try:
        with path.open("rb") as file:
            data = file.read(_HEADER_BYTES_MAX + 1)
    except FileNotFoundError:
        raise NoVault(f"there is no {path}: this folder has no vault") from None
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found > FORMAT:
            raise UnlockError(f"{path} was written by a newer version of this program (format {found}): upgrade it")
        return msgspec.json.decode(data, type=_Header)
    except (msgspec.MsgspecError, UnicodeError):
        raise HeaderDamaged(f"{path} is damaged, or asks for too much: bring it back from a copy") from None


def _write_header(directory: Path, header: _Header, *, fresh: bool) -> None:
    _write_file(directory / HEADER_NAME, msgspec.json.format(msgspec.json.encode(header)) + b"\n", fresh=fresh)


def _write_file(path: Path, data: bytes, *, fresh: bool) -> None:
    """In one step that survives a power cut, for this user's eyes only. Raises FileExistsError if it should be fresh."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "wb") as writer:
            writer.write(data)
            writer.flush()
            os.fsync(writer.fileno())
        if fresh:
            os.link(scratch, path)  # unlike a rename it replaces nothing
        else:
            scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _unusable(path: Path, error: OSError) -> UnlockError:
    return UnlockError(f"{path} cannot be read or written ({os.strerror(error.errno or errno.EIO)})")


# --- passphrases -----------------------------------------------------------------------------------------------------


def _new_passphrase(passphrase: str | None) -> str:
    if passphrase is None:
        raise ValueError("a passphrase is needed")
    if not PASSPHRASE_CHARS_MIN <= len(passphrase) <= PASSPHRASE_CHARS_MAX:
        raise UnlockError(
            f"a passphrase has {PASSPHRASE_CHARS_MIN} to {PASSPHRASE_CHARS_MAX} characters: several words are best"
        )
    return passphrase


def _seal(passphrase: str, vault_id: str, key: bytes) -> _Passphrase:
    salt = secrets.token_bytes(pwhash.argon2id.SALTBYTES)
    box = Aead(_stretch(passphrase, salt, OPERATIONS, MEMORY_BYTES))
    return _Passphrase(salt, OPERATIONS, MEMORY_BYTES, bytes(box.encrypt(key, _bound_to(vault_id))))


def _open_sealed(passphrase: str, vault_id: str, unlock: _Passphrase) -> bytes:
    if len(passphrase) > PASSPHRASE_CHARS_MAX:
        raise WrongPassphrase("this is not the passphrase")
    box = Aead(_stretch(passphrase, unlock.salt, unlock.operations, unlock.memory_bytes))
    try:
        key = bytes(box.decrypt(unlock.sealed, _bound_to(vault_id)))
    except CryptoError:
        raise WrongPassphrase("this is not the passphrase") from None
    if len(key) != KEY_BYTES:
        raise HeaderDamaged(f"{HEADER_NAME} holds something else than a key: bring it back from a copy")
    return key


def _stretch(passphrase: str, salt: bytes, operations: int, memory_bytes: int) -> bytes:
    # RFC 8265 §4.2: one spelling, whichever keyboard or system it was typed on.
    text = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogatepass")
    try:
        return bytes(pwhash.argon2id.kdf(Aead.KEY_SIZE, text, salt, operations, memory_bytes))
    except (CryptoError, MemoryError, RuntimeError):
        raise UnlockError(
            f"this takes {memory_bytes >> 20} MB of memory, which are not free: end other programs"
        ) from None


def _bound_to(vault_id: str) -> bytes:
    return b"GearLink vault v1" + bytes.fromhex(vault_id)


# --- key rings -------------------------------------------------------------------------------------------------------


def _usable_keyring() -> Any:
    """The system's key ring. Raises KeyringUnusable for those that keep nothing, or keep it for everybody to read."""
    import keyring

    chosen = keyring.get_keyring()
    if not _is_safe(chosen):
        raise KeyringUnusable("this system has no key ring that can be used: take a passphrase")
    return chosen


def _is_safe(backend: Any) -> bool:
    """`keyring` gives priority 1 and more to what it holds for secure; keyrings.alt has files in the clear, some of them
    with a priority that a person's settings can pass over."""
    parts = getattr(backend, "backends", None)
    if parts is not None:  # a chain: it may give the secret to any of them
        return bool(parts) and all(_is_safe(part) for part in parts)
    module = type(backend).__module__
    if module.startswith(("keyring.backends.fail", "keyring.backends.null", "keyrings.alt")):
        return False
    try:
        return bool(backend.priority >= 1)
    except Exception:  # noqa: BLE001 - foreign code that looks at the system; what it cannot find it cannot use
        return False


def _keyring_put(vault_id: str, key: bytes) -> None:
    backend = _usable_keyring()
    text = base64.b64encode(key).decode()
    try:
        backend.set_password(SERVICE, vault_id, text)
        kept = backend.get_password(SERVICE, vault_id)
    except Exception as error:  # noqa: BLE001 - each system's key ring has errors of its own
        raise _keyring_said_no(error) from None
    if not isinstance(kept, str) or not hmac.compare_digest(kept.encode(), text.encode()):
        raise KeyringUnusable("the key ring did not keep what it was given: take a passphrase")


def _keyring_get(vault_id: str) -> bytes:
    backend = _usable_keyring()
    try:
        kept = backend.get_password(SERVICE, vault_id)
    except Exception as error:  # noqa: BLE001 - as above
        raise _keyring_said_no(error) from None
    if kept is None:
        raise KeyLost(
            f"the key ring has no entry {SERVICE} / {vault_id}: is it the same user and the same key ring? Without it only"
            " the recovery key helps"
        )
    return _decoded(kept)


def _keyring_said_no(error: Exception) -> KeyringUnusable:
    # The name of the error only: what a foreign text quotes is not known.
    return KeyringUnusable(f"the key ring said no ({type(error).__name__}): unlock it, and try again")


def _decoded(text: str | bytes) -> bytes:
    with suppress(binascii.Error, ValueError):
        key = base64.b64decode(text, validate=True)
        if len(key) == KEY_BYTES:
            return key
    raise KeyLost("what is kept in the key's place is not a key: only the recovery key helps")


# --- key files -------------------------------------------------------------------------------------------------------


def _key_file(directory: Path, vault_id: str) -> Path:
    return directory / f"vault-{vault_id[:8]}.key"


def _file_get(directory: Path, vault_id: str) -> bytes:
    path = _key_file(directory, vault_id)
    try:
        with path.open("rb") as file:
            return _decoded(file.read(_HEADER_BYTES_MAX).strip())
    except FileNotFoundError:
        raise KeyLost(f"there is no {path}: bring it back, or use the recovery key") from None
    except OSError as error:
        raise _unusable(path, error) from error


# --- what is called --------------------------------------------------------------------------------------------------


async def create(directory: str | os.PathLike[str], way: Way, passphrase: str | None = None) -> bytes:
    """Makes the header of a new vault in `directory`, and its data key, which is returned. Raises VaultExists,
    KeyringUnusable, or UnlockError for a passphrase that is too short or a folder that cannot be written."""
    if way == "passphrase":
        passphrase = _new_passphrase(passphrase)
    elif passphrase is not None:
        raise ValueError(f"{way} takes no passphrase")
    place, vault_id, key = Path(directory), secrets.token_hex(16), secrets.token_bytes(KEY_BYTES)
    await trio.to_thread.run_sync(_prepare, place)
    if way == "keyring":
        await _with_keyring(partial(_keyring_put, vault_id, key))
    await trio.to_thread.run_sync(_create, place, vault_id, way, passphrase, key)
    return key


def _prepare(directory: Path) -> None:
    """Before a person is asked by the key ring. Whether there is a vault already is decided when the header is written."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(directory, error) from error
    if (directory / HEADER_NAME).exists():
        raise _exists(directory)


def _create(directory: Path, vault_id: str, way: Way, passphrase: str | None, key: bytes) -> None:
    unlock: _Passphrase | _Keyring | _File = _Keyring()
    if passphrase is not None:
        unlock = _seal(passphrase, vault_id, key)
    key_file = _key_file(directory, vault_id)
    try:
        if way == "file":
            _write_file(key_file, base64.b64encode(key) + b"\n", fresh=True)
            unlock = _File()
        _write_header(directory, _Header(FORMAT, vault_id, unlock), fresh=True)
    except OSError as error:
        key_file.unlink(missing_ok=True)
        raise (_exists(directory) if isinstance(error, FileExistsError) else _unusable(directory, error)) from error


def _exists(directory: Path) -> VaultExists:
    return VaultExists(f"there is a vault in {directory} already")


async def unlock(directory: str | os.PathLike[str], passphrase: Ask | str | None = None) -> bytes:
    """The data key. `passphrase` is that, or a function that asks for it, which is called only where one is needed.
    Raises NoVault, WrongPassphrase, KeyringUnusable, KeyLost, HeaderDamaged or UnlockError."""
    place = Path(directory)
    header = await trio.to_thread.run_sync(_read_header, place)
    if isinstance(header.unlock, _Keyring):
        return await _with_keyring(partial(_keyring_get, header.vault_id))
    if isinstance(header.unlock, _File):
        return await trio.to_thread.run_sync(_file_get, place, header.vault_id)
    if passphrase is None:
        raise UnlockError("this vault is locked with a passphrase")
    text = passphrase if isinstance(passphrase, str) else await passphrase()
    return await trio.to_thread.run_sync(_open_sealed, text, header.vault_id, header.unlock)


async def change_passphrase(directory: str | os.PathLike[str], old: str, new: str) -> None:
    """Seals the data key anew. A copy of the old header still opens with the old passphrase: the key is the same. Raises as
    `unlock` does, and UnlockError if the vault has none or `new` is too short."""
    new = _new_passphrase(new)
    await trio.to_thread.run_sync(_change, Path(directory), old, new)


def _change(directory: Path, old: str, new: str) -> None:
    header = _read_header(directory)
    if not isinstance(header.unlock, _Passphrase):
        raise UnlockError("this vault is not locked with a passphrase")
    key = _open_sealed(old, header.vault_id, header.unlock)
    changed = msgspec.structs.replace(header, unlock=_seal(new, header.vault_id, key))
    try:
        _write_header(directory, changed, fresh=False)
    except OSError as error:
        raise _unusable(directory, error) from error


async def ways(directory: str | os.PathLike[str]) -> tuple[Way, ...]:
    """How the vault in `directory` is unlocked; empty if there is none. Raises HeaderDamaged or UnlockError."""
    try:
        header = await trio.to_thread.run_sync(_read_header, Path(directory))
    except NoVault:
        return ()
    way: Way = {_Passphrase: "passphrase", _Keyring: "keyring", _File: "file"}[type(header.unlock)]  # type: ignore[assignment]
    return (way,)


async def is_keyring_usable() -> bool:
    """Whether this system has a key ring that may hold the key. It asks nobody anything: a locked one counts."""
    try:
        await _with_keyring(_usable_keyring)
    except KeyringUnusable:
        return False
    return True


async def _with_keyring(function: Callable[[], _T]) -> _T:
    # A key ring may wait for a person for ever. What it says after that is thrown away with its thread.
    with trio.move_on_after(KEYRING_SECONDS_MAX):
        return await trio.to_thread.run_sync(function, abandon_on_cancel=True)
    raise KeyringUnusable("the key ring did not answer: unlock it, and try again")
