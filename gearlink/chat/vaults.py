"""The vault of a profile: where it lies, how it is unlocked, and each trouble with it in one line.

It lies in a folder beside the profile's file. A person is asked for a passphrase unless the system has a key ring; a script
gives one, or the key lies in a file, and it is said what that means. What makes encryption is loaded here and not
before: a command that needs none of it starts without.
"""

import argparse
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from gearlink.chat.finding import Complaint, profile_path
from gearlink.errors import ExitStatus
from gearlink.sdk import Client, Refused
from gearlink.terminal import Terminal
from gearlink.views import MessageView

if TYPE_CHECKING:
    from gearlink.sdk.secure.client import SecureClient

Look = Callable[[str], Awaitable[MessageView | None]]
PASSPHRASE: Final = "GEARLINK_PASSPHRASE"
VAULT: Final = "vault.db"
TRIES: Final = 3
PASSPHRASE_BYTES_MAX: Final = 16 * 1024


def vault_folder(profile: str) -> Path:
    """Where the vault of a profile lies. Raises Complaint for a name that is no plain file name."""
    return profile_path(profile).with_suffix(".vault")


@asynccontextmanager
async def open_safely(options: argparse.Namespace, client: Client, terminal: Terminal) -> AsyncIterator["SecureClient"]:
    """The secure client of the profile; its vault is made if there is none. Raises Complaint, Refused, Unreachable."""
    from gearlink.sdk.e2ee.unlocking import UnlockError
    from gearlink.sdk.e2ee.vault import VaultError, open_vault
    from gearlink.sdk.secure.client import open_secure

    if not client.signed_in:
        raise Refused("not-authenticated", 401, "Sign in first")
    folder = vault_folder(options.profile)
    try:
        key = await _key(folder, options, terminal)
    except UnlockError as trouble:
        raise Complaint(str(trouble)) from None
    try:
        async with AsyncExitStack() as stack:
            vault = await stack.enter_async_context(open_vault(folder / VAULT, key))
            try:
                secure = await stack.enter_async_context(open_secure(client, vault))
            except ValueError:
                raise Complaint(
                    f"{folder} holds the keys of an earlier sign-in of this profile, and this is a new device: move that"
                    " folder away and start again (what was said before stays in it), or sign in with --as NAME"
                ) from None
            yield secure
    except* VaultError as group:
        raise Complaint(str(_leaf(group))) from None


@asynccontextmanager
async def open_history(options: argparse.Namespace, client: Client) -> AsyncIterator[Look]:
    """What the vault holds of messages, by their ids, for a command that only shows: where nobody has to be asked for a
    passphrase and no other program has it open. Elsewhere it knows nothing."""
    from gearlink.sdk.e2ee import unlocking
    from gearlink.sdk.e2ee.store import Tx
    from gearlink.sdk.e2ee.vault import VaultError, open_vault
    from gearlink.sdk.secure import history

    folder, vault = vault_folder(options.profile), None
    async with AsyncExitStack() as stack:
        with suppress(unlocking.UnlockError, VaultError):
            key = await unlocking.unlock(folder, await trio.to_thread.run_sync(_given, options))
            if (folder / VAULT).exists():
                vault = await stack.enter_async_context(open_vault(folder / VAULT, key))

        async def look(message_id: str) -> MessageView | None:
            def find(tx: Tx) -> MessageView | None:
                kept = history.find(tx, message_id)
                return history.view(tx, kept, client.state.user_id or "") if kept is not None else None

            return None if vault is None else await vault.read(find)

        yield look


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, BaseExceptionGroup) else first


# --- the key ---------------------------------------------------------------------------------------------------------


async def _key(folder: Path, options: argparse.Namespace, terminal: Terminal) -> bytes:
    from gearlink.sdk.e2ee import unlocking

    given = await trio.to_thread.run_sync(_given, options)
    if not await unlocking.ways(folder):
        if (folder / VAULT).exists():
            raise Complaint(f"{folder / unlocking.HEADER_NAME} is gone, and without it the vault beside it is locked")
        return await _first_key(folder, given, terminal)
    if given is not None or not terminal.interactive:
        try:
            return await unlocking.unlock(folder, given)
        except unlocking.WrongPassphrase:
            raise
        except unlocking.UnlockError as trouble:
            if given is None and await unlocking.ways(folder) == ("passphrase",):
                line = f"{trouble}: give it with --passphrase-file FILE or in {PASSPHRASE}"
                raise Complaint(line, ExitStatus.USAGE) from None
            raise
    for tries in reversed(range(TRIES)):
        try:
            return await unlocking.unlock(folder, lambda: terminal.ask_secret("passphrase: "))
        except unlocking.WrongPassphrase as trouble:
            if not tries:
                raise
            terminal.complain(str(trouble))
    raise AssertionError("the last try raises")


async def _first_key(folder: Path, given: str | None, terminal: Terminal) -> bytes:
    from gearlink.sdk.e2ee import unlocking

    if given is not None:
        return await unlocking.create(folder, "passphrase", given)
    if terminal.interactive and await unlocking.is_keyring_usable():
        try:
            key = await unlocking.create(folder, "keyring")
        except unlocking.KeyringUnusable as trouble:
            terminal.complain(str(trouble))
        else:
            terminal.complain("-- the keys of this device are locked; what opens them lies in your system's key ring")
            return key
    if terminal.interactive:
        terminal.complain("-- messages and keys are kept encrypted on this machine, under a passphrase of yours")
        while passphrase := await terminal.ask_secret("new passphrase (nothing: do without): "):
            if await terminal.ask_secret("the same again: ") != passphrase:
                terminal.complain("those were two different ones")
                continue
            try:
                return await unlocking.create(folder, "passphrase", passphrase)
            except unlocking.VaultExists:
                raise
            except unlocking.UnlockError as trouble:
                terminal.complain(str(trouble))
    key = await unlocking.create(folder, "file")
    terminal.complain(
        f"-- no passphrase: the key lies in a file in {folder}, so whoever can read your files can read your messages"
    )
    return key


def _given(options: argparse.Namespace) -> str | None:
    """The passphrase that a script gives, by a file or the environment. Raises Complaint, OSError."""
    if options.passphrase_file is not None:
        with open(options.passphrase_file, "rb") as file:
            text = file.read(PASSPHRASE_BYTES_MAX)
        lines = text.decode("utf-8", "surrogateescape").splitlines()
        if not lines or not lines[0].strip():
            raise Complaint("the passphrase file has no first line", ExitStatus.USAGE)
        return lines[0].strip()
    return os.environ.get(PASSPHRASE, "").strip() or None
