"""The command line of `gearlink chat`: what can be asked for, in which profile, and how each trouble becomes one line."""

import argparse
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import trio

from config.limits import PAGE_MAX
from gearlink.chat import account, people
from gearlink.chat.finding import INTERRUPTED, REFUSED, Complaint, profile_path
from gearlink.chat.refusals import refusal_line, system_line
from gearlink.chat.talk import talk
from gearlink.errors import ExitStatus
from gearlink.sdk import Client, FileState, Options, Refused, Unreachable, open_client
from gearlink.terminal import LineTooLong, Terminal, harmless

SERVER: Final = "http://127.0.0.1:8080"
PATHS: Final = ("file", "passphrase_file")  # they may be any bytes

Command = Callable[[argparse.Namespace, Client, Terminal], Awaitable[int]]
Act = Callable[[], Awaitable[int]]
E = TypeVar("E", bound=BaseException)
Add = Callable[[str, Command, str], argparse.ArgumentParser]


def main(arguments: Sequence[str]) -> int:
    """Runs one command and gives its exit status."""
    options = _parsed(arguments)
    return run_until_interrupted(partial(run, options, Terminal()))


def run_until_interrupted(act: Act) -> int:
    """Runs `act` in a loop of its own; its exit status, or that of a program that Ctrl-C ended."""
    try:
        return trio.run(act)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:
            return INTERRUPTED
        raise


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Ends the process with the status of wrong usage, as argparse does, if they are none."""
    top = parser()
    options = top.parse_args(arguments)
    values = {name: value for name, value in vars(options).items() if name not in PATHS}
    words = [word for value in values.values() for word in (value if isinstance(value, list) else [value])]
    if any(isinstance(word, str) and word != word.encode(errors="replace").decode() for word in words):
        top.error("an argument is not UTF-8")
    return options


async def run(options: argparse.Namespace, terminal: Terminal, network: Options | None = None) -> int:
    """`main` inside of the loop; `network` lets tests bring their own."""

    async def act() -> int:
        command: Command = options.command
        server = options.server if command is account.sign_up else None
        async with open_profile(options.profile, server, network) as client:
            return await command(options, client, terminal)

    return await run_to_status(act, terminal, "gearlink chat")


async def run_to_status(act: Act, terminal: Terminal, program: str) -> int:
    """Runs `act`. What goes wrong becomes one line of `program` and its exit status."""
    status: int = ExitStatus.OK
    try:
        status = await act()
    except* Unreachable as group:
        terminal.complain(f"{program}: {harmless(_first(group))}")
        status = ExitStatus.UNREACHABLE
    except* Refused as group:
        terminal.complain(f"{program}: {harmless(refusal_line(_leaf(group)))}")
        status = REFUSED
    except* Complaint as group:
        terminal.complain(f"{program}: {harmless(_first(group))}")
        status = next((each.status for each in group.exceptions if isinstance(each, Complaint)), REFUSED)
    except* LineTooLong as group:
        terminal.complain(f"{program}: {harmless(_first(group))}")
        status = ExitStatus.USAGE
    except* BrokenPipeError:  # whoever read our output has had enough
        _discard_output()
        status = REFUSED
    except* OSError as group:
        terminal.complain(f"{program}: {harmless(system_line(_leaf(group)))}")
        status = REFUSED
    return status


def _discard_output() -> None:
    """So that the interpreter's last flush of standard output does not complain, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@asynccontextmanager
async def open_profile(profile: str, server: str | None, network: Options | None) -> AsyncIterator[Client]:
    """The client of a profile; of one that is to be made, with the address of the server. Raises Complaint for a name, an
    address or a file that is none: only here a ValueError is about what the user wrote."""
    store = FileState(profile_path(profile))
    if server is None and not store.path.exists():
        raise Complaint(f"there is no profile {profile!r} here: try `gearlink chat signup --phone NUMBER`")
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(open_client(server, store, network))
        except ValueError as error:
            raise Complaint(str(error), ExitStatus.USAGE) from None
        yield client


def _leaf(group: BaseExceptionGroup[E]) -> E:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, BaseExceptionGroup) else first


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    return str(_leaf(group))


# --- the commands ----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line of `gearlink chat`."""
    top = argparse.ArgumentParser(
        prog="gearlink chat",
        description="Talk to people on a GearLink server, from a terminal or from a script.",
        epilog="WHO is +15551230002, @username or the id of a conversation. In `to`, /help lists what can be done there. "
        "What is said to people and in groups is encrypted from device to device; the keys are kept beside the profile, "
        "under a passphrase, which GEARLINK_PASSPHRASE may hold. "
        "Exit status: 0 done, 1 refused, 2 wrong usage, 11 the server cannot be reached.",
    )
    _add_profile(top, "default")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        made.set_defaults(command=command)
        _add_profile(made, argparse.SUPPRESS)  # allowed behind the command, too; absent there, the first one counts
        return made

    _add_talking(add)
    _add_account(add)
    _add_people(add)
    return top


def _add_talking(add: Add) -> None:
    add("list", people.show_list, "list your conversations, newest activity first").add_argument(
        "--archived", action="store_true", default=None, help="those that you have put away"
    )
    to = add("to", talk, "talk to somebody: type lines, or pipe them in")
    to.add_argument("target", metavar="WHO", help="+15551230002, @username or the id of a conversation")
    to.add_argument("--last", type=_count, default=20, metavar="N", help="show the last N messages first (default: 20)")
    to.add_argument("--follow", action="store_true", help="stay when the input ends, and show what comes in")
    to.add_argument("--json", action="store_true", help="one JSON object a line, for scripts")
    to.add_argument("--commands", action="store_true", help="piped lines may be commands, too: /help lists them")
    to.add_argument("--plain", action="store_true", help="begin it unencrypted: the server can read what is said")
    new = add("new", people.new, "open a group, or a channel in which few write and many read")
    new.add_argument("kind", choices=("group", "channel"))
    new.add_argument("name", metavar="NAME")
    new.add_argument("who", nargs="*", metavar="WHO")
    new.add_argument("--about", metavar="TEXT", help="what it is about")
    new.add_argument(
        "--plain", action="store_true", help="a group that the server can read (it can in a channel anyway)"
    )
    join = add("join", people.join, "join over a link, or ask to be let in")
    join.add_argument("code", metavar="CODE")
    join.add_argument("--look", action="store_true", help="only show what it leads to")
    add("members", people.members, "list who is in a conversation").add_argument("target", metavar="WHO")
    sync = add("sync", people.sync, "print what this profile has not seen yet, as JSON, without a socket")
    sync.add_argument("--follow", action="store_true", help="go on with what happens")


def _add_account(add: Add) -> None:
    signup = add("signup", account.sign_up, "create an account with a phone number, or sign in to it")
    signup.add_argument("--server", default=SERVER, metavar="URL", help=f"the server's address (default: {SERVER})")
    signup.add_argument("--phone", required=True, metavar="NUMBER", help="with country code, e.g. +15551230001")
    signup.add_argument("--name", help="the name that others see")
    signup.add_argument("--invite", metavar="CODE", help="an invite code, where the server asks newcomers for one")
    signup.add_argument("--code", metavar="DIGITS", help="the code that was sent; asked for, or read from a pipe")
    signup.add_argument("--verification", metavar="ID", help="what --code belongs to, as the run that sent it said")
    signup.add_argument("--restore", action="store_true", help="take the deletion of this account back")
    profile = add("profile", account.edit_profile, "show your profile, or change it")
    profile.add_argument("--name", help="the name that others see")
    profile.add_argument("--username", help="others find you by @username; an empty one gives it up")
    profile.add_argument("--bio", help="a few words about you")
    avatar = add("avatar", account.set_avatar, "put up a picture of yourself, or of a group or channel")
    avatar.add_argument("file", nargs="?", metavar="FILE", help="JPEG, PNG or WebP")
    avatar.add_argument("--of", metavar="ID", help="the id of a group or channel")
    avatar.add_argument("--remove", action="store_true", help="take the picture away")
    privacy = add("privacy", account.privacy, "show what others may see and do, or change it: last_seen=nobody")
    privacy.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    add("devices", account.show_devices, "list the devices of your account")
    add("logout", account.log_out, "end this device's session")
    gone = add("delete-account", account.delete_account, "delete your account; for 30 days that can be taken back")
    gone.add_argument("--yes", action="store_true", help="do not ask")


def _add_people(add: Add) -> None:
    contacts = add("contacts", people.contacts, "list your contacts, add or remove some, or find out who is here")
    contacts.add_argument("action", nargs="?", choices=("list", "add", "remove", "find"), default="list")
    contacts.add_argument("who", nargs="*", metavar="WHO", help="+15551230002 or @username; for find, numbers")
    contacts.add_argument("--nickname", default="", help="what you call them")
    add(
        "block", people.block, "block somebody, who is not told; without a name, list whom you have blocked"
    ).add_argument("who", nargs="*", metavar="WHO")
    add("unblock", people.unblock, "lift a block").add_argument(
        "who", nargs="+", metavar="WHO", help="an id from `gearlink chat block`, or @username as it stands there"
    )


def _add_profile(to: argparse.ArgumentParser, default: str) -> None:
    to.add_argument("--as", dest="profile", metavar="NAME", default=default, help="a local profile (default: default)")
    to.add_argument(
        "--passphrase-file",
        metavar="FILE",
        default=None if default != argparse.SUPPRESS else default,
        help="its first line opens the keys of the profile",
    )


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= PAGE_MAX:
        raise argparse.ArgumentTypeError(f"0 to {PAGE_MAX}")
    return number
