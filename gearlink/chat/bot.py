"""`gearlink bot`: a bot that answers `echo`, `help` and `time`, in encrypted conversations and in others. An example to copy.

A bot is an ordinary device of an account of its own. Everybody sees that there is one, it has keys of its own, and only
what is said where it is a member reaches it. All of it is on this page: signing in, the vault with the keys, and what it
answers. What to change first is `answer`.
"""

import argparse
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from gearlink import calls, protocol
from gearlink.chat.command_line import SERVER, open_profile, run_to_status, run_until_interrupted
from gearlink.chat.finding import Complaint, profile_path
from gearlink.chat.notices import notice
from gearlink.chat.words import Names
from gearlink.sdk import Client, Options, Refused, Unreachable
from gearlink.sdk.e2ee import unlocking
from gearlink.sdk.e2ee.vault import VaultError, open_vault
from gearlink.sdk.secure.client import SecureClient, open_secure
from gearlink.sdk.secure.told import SecurityEvent
from gearlink.terminal import Terminal, harmless

HELP: Final = "I am a bot. Say `echo` and something, `time`, or `help`."


def answer(text: str, now: datetime) -> str | None:
    """What it says to a message; None for nothing, so that two bots do not talk to each other for ever."""
    word, _, rest = text.strip().partition(" ")
    match word.lower():
        case "echo":
            return rest.strip() or "echo what?"
        case "time":
            return f"it is {now:%H:%M} UTC"
        case "help":
            return HELP
    return None


async def listen(secure: SecureClient, terminal: Terminal) -> None:
    """Takes what happens, one after the other. A message counts as read once it was answered: after a crash it comes
    again."""
    client, names = secure.client, Names(secure.client)
    async for event in secure.events():
        try:
            match event:
                case protocol.MessageNew(message=message) if message.sender_id != client.state.user_id:
                    reply = answer(message.content or "", datetime.fromtimestamp(client.now, UTC))
                    if reply is not None:
                        await secure.send(message.conversation_id, reply, reply_to_id=message.id)
                    client.mark_read(message.conversation_id, message.sequence_number)
                case protocol.ConversationCreated(conversation=conversation) if conversation.type == "direct":
                    await secure.send(conversation.id, HELP)
                case SecurityEvent() if (line := await notice(event, names.of)) is not None:
                    terminal.complain(f"!! {line}")
        except (
            Refused,
            Unreachable,
        ) as trouble:  # blocked, not let in any more, or keys have changed: the others go on
            terminal.complain(f"-- not answered: {harmless(str(trouble))}")


async def sign_in(client: Client, terminal: Terminal, phone_number: str, name: str) -> None:
    """The first time: the number is confirmed with a code, and the device is marked as a bot."""
    asked = await client.request_code(phone_number)
    code = await terminal.ask("code (the server sent it to the bot's number): ")
    if not code:
        raise Complaint("no code: type it, or write it to the standard input")
    await client.confirm(asked.verification_id, code, name, "bot", client.state.device_id)
    await client.change_profile(calls.ProfileForm(display_name=name))


async def vault_key(folder: Path) -> bytes:
    """What opens the vault: a passphrase from the environment if there is one, else a file beside it."""
    passphrase = os.environ.get("GEARLINK_PASSPHRASE") or None
    if await unlocking.ways(folder):
        return await unlocking.unlock(folder, passphrase)
    return await unlocking.create(folder, "passphrase" if passphrase else "file", passphrase)


async def run(options: argparse.Namespace, terminal: Terminal, network: Options | None = None) -> int:
    """The whole bot, until it is stopped. Raises Refused, Unreachable, Complaint, OSError."""
    path = profile_path(options.profile)
    folder = path.with_suffix(".vault")
    async with open_profile(options.profile, None if path.exists() else options.server, network) as client:
        if not client.signed_in:
            if options.number is None:
                raise Complaint("this bot has no account yet: give it --number")
            await sign_in(client, terminal, options.number, options.name)
        try:
            async with (
                open_vault(folder / "vault.db", await vault_key(folder)) as vault,
                open_secure(client, vault) as secure,
                client.connect(),
            ):
                terminal.say(f"{options.name} listens on {client.server}")
                await listen(secure, terminal)
        except* (VaultError, unlocking.UnlockError) as group:
            raise Complaint(str(group.exceptions[0])) from None
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line of `gearlink bot`."""
    top = argparse.ArgumentParser(
        prog="gearlink bot",
        description="Run a small example bot: it answers `echo`, `time` and `help`, end-to-end encrypted.",
        epilog="It runs until it is stopped, and goes on where it was. GEARLINK_PASSPHRASE locks its keys from the first "
        "start on. Its source, gearlink/chat/bot.py, is meant to be copied.",
    )
    top.add_argument("--server", default=SERVER, metavar="URL", help=f"the server's address (default: {SERVER})")
    top.add_argument("--number", metavar="NUMBER", help="its own phone number; needed once, to sign up")
    top.add_argument("--name", default="bot", help="the name that others see (default: bot)")
    top.add_argument("--as", dest="profile", default="bot", metavar="NAME", help="its local profile (default: bot)")
    return top


def main(arguments: Sequence[str]) -> int:
    """`gearlink bot`; its exit status."""
    options, terminal = parser().parse_args(arguments), Terminal()
    return run_until_interrupted(partial(run_to_status, partial(run, options, terminal), terminal, "gearlink bot"))
