"""`gearlink chat`: a small terminal client on the SDK, for a person at a keyboard and for a script behind a pipe.

Promises: every line that was sent is on the server's disk when the program ends with 0; what other people wrote or named
themselves cannot control the terminal; each local profile is one device, kept in a file of its owner; errors are one
line. It does nothing that the SDK does not offer.
"""

import argparse
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import msgspec
import trio

from config.limits import DEVICE_NAME_CHARS_MAX, PAGE_MAX
from gearlink import calls, protocol
from gearlink.errors import ExitStatus
from gearlink.protocol import ConversationView, MessageView, User
from gearlink.sdk import Client, FileState, Options, Refused, Unreachable, open_client
from gearlink.terminal import Terminal, harmless

SERVER: Final = "http://127.0.0.1:8080"
CODE_TRIES: Final = 3
REFUSED: Final = 1
INTERRUPTED: Final = 128 + signal.SIGINT
NAMES_REMEMBERED_MAX: Final = 1000
OWN_REMEMBERED_MAX: Final = 1000
_PROFILE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CONVERSATION = re.compile(protocol.UUID_PATTERN)

Command = Callable[[argparse.Namespace, Client, Terminal], Awaitable[int]]


class Complaint(Exception):
    """One line for the user, and the status to end with."""

    def __init__(self, line: str, status: int = REFUSED) -> None:
        super().__init__(line)
        self.status = status


def main(arguments: Sequence[str]) -> int:
    """Runs one command and gives its exit status."""
    options = parser().parse_args(arguments)
    terminal = Terminal()
    try:
        return trio.run(run, options, terminal)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:
            return INTERRUPTED
        raise


async def run(options: argparse.Namespace, terminal: Terminal, network: Options | None = None) -> int:
    """`main` inside of the loop; `network` lets tests bring their own."""
    status: int = ExitStatus.OK
    try:
        async with _client(options, network) as client:
            command: Command = options.command
            status = await command(options, client, terminal)
    except* Unreachable as group:
        terminal.complain(f"gearlink chat: {harmless(_first(group))}")
        status = ExitStatus.UNREACHABLE
    except* Refused as group:
        terminal.complain(f"gearlink chat: {harmless(_refusal_line(group))}")
        status = REFUSED
    except* Complaint as group:
        terminal.complain(f"gearlink chat: {harmless(_first(group))}")
        status = next((each.status for each in group.exceptions if isinstance(each, Complaint)), REFUSED)
    except* ValueError as group:
        terminal.complain(f"gearlink chat: {harmless(_first(group))}")
        status = ExitStatus.USAGE
    except* BrokenPipeError:  # whoever read our output has had enough
        _discard_output()
        status = REFUSED
    except* OSError as group:
        terminal.complain(f"gearlink chat: {harmless(_first(group))}")
        status = REFUSED
    return status


def _discard_output() -> None:
    """So that the interpreter's last flush of standard output does not complain, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _client(options: argparse.Namespace, network: Options | None) -> AbstractAsyncContextManager[Client]:
    store = FileState(profile_path(options.profile))
    if options.command is sign_up:
        return open_client(options.server, store, network)
    if not store.path.exists():
        raise Complaint(f"there is no profile {options.profile!r} here: try `gearlink chat signup --phone NUMBER`")
    return open_client(None, store, network)


def _leaf(error: BaseException) -> BaseException:
    return _leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    return str(_leaf(group))


def _refusal_line(group: BaseExceptionGroup[Refused]) -> str:
    refused = _leaf(group)
    assert isinstance(refused, Refused)
    if refused.code in ("not-authenticated", "invalid-refresh-token"):
        return "not signed in: try `gearlink chat signup --phone NUMBER`"
    fields = "; ".join(f"{error.get('path', '')}: {error.get('message', '')}" for error in refused.errors)
    wait = "" if refused.retry_after_seconds is None else f" (again in {refused.retry_after_seconds:.0f} s)"
    return f"{refused.detail}{' - ' + fields if fields else ''}{wait}"


def profile_path(name: str) -> Path:
    """Where a local profile is kept. Raises ValueError for a name that is no plain file name."""
    if not _PROFILE.fullmatch(name):
        raise ValueError("a profile's name has 1 to 64 letters, digits, `-` and `_`")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "gearlink" / f"{name}.json"


# --- the commands ----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line of `gearlink chat`."""
    top = argparse.ArgumentParser(
        prog="gearlink chat",
        description="Talk to people on a GearLink server, from a terminal or from a script.",
        epilog="Exit status: 0 done, 1 refused, 2 wrong usage, 11 the server cannot be reached.",
    )
    _add_profile(top, "default")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        made.set_defaults(command=command)
        _add_profile(made, argparse.SUPPRESS)  # allowed behind the command, too; absent there, the first one counts
        return made

    signup = add("signup", sign_up, "create an account with a phone number, or sign in to it")
    signup.add_argument("--server", default=SERVER, metavar="URL", help=f"the server's address (default: {SERVER})")
    signup.add_argument("--phone", required=True, metavar="NUMBER", help="with country code, e.g. +15551230001")
    signup.add_argument("--name", help="the name that others see")
    signup.add_argument("--invite", metavar="CODE", help="an invite code, where the server asks newcomers for one")
    signup.add_argument("--code", metavar="DIGITS", help="the code that was sent; asked for, or read from a pipe")
    signup.add_argument("--verification", metavar="ID", help="what --code belongs to, as the run that sent it said")
    add("list", show_list, "list your conversations, newest activity first")
    to = add("to", talk, "talk to somebody: type lines, or pipe them in")
    to.add_argument("target", metavar="WHO", help="+15551230002, @username or the id of a conversation")
    to.add_argument("--last", type=_count, default=20, metavar="N", help="show the last N messages first (default: 20)")
    to.add_argument("--follow", action="store_true", help="stay when the input ends, and show what comes in")
    to.add_argument("--json", action="store_true", help="one JSON object a line, for scripts")
    profile = add("profile", edit_profile, "show your profile, or change it")
    profile.add_argument("--name", help="the name that others see")
    profile.add_argument("--username", help="others find you by @username; an empty one gives it up")
    profile.add_argument("--bio", help="a few words about you")
    add("devices", show_devices, "list the devices of your account")
    add("logout", log_out, "end this device's session")
    return top


def _add_profile(to: argparse.ArgumentParser, default: str) -> None:
    to.add_argument("--as", dest="profile", metavar="NAME", default=default, help="a local profile (default: default)")


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= PAGE_MAX:
        raise argparse.ArgumentTypeError(f"0 to {PAGE_MAX}")
    return number


async def sign_up(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    if client.signed_in:
        raise Complaint("this profile is signed in; `gearlink chat logout` first, or choose another with --as NAME", 2)
    verification_id = options.verification or (await client.request_code(options.phone)).verification_id
    signed = await _confirm(options, client, terminal, verification_id)
    user = signed.user
    if options.name is not None:
        user = await client.change_profile(calls.ProfileForm(display_name=options.name))
    terminal.say(f"signed {'up' if signed.is_new_user else 'in'} as {_name(user)} on {client.server}")
    return ExitStatus.OK


async def _confirm(
    options: argparse.Namespace, client: Client, terminal: Terminal, verification_id: str
) -> calls.SignedIn:
    tries = CODE_TRIES if options.code is None and terminal.interactive else 1
    while True:
        tries -= 1
        code = options.code or await terminal.ask("code (the server sent it to you): ")
        if not code:
            again = f"run this again with --verification {verification_id} --code DIGITS"
            raise Complaint(f"no code: type it, or {again}", ExitStatus.USAGE)
        try:
            return await client.confirm(
                verification_id,
                code,
                socket.gethostname()[:DEVICE_NAME_CHARS_MAX] or "terminal",
                "desktop",
                client.state.device_id,
                options.invite,
            )
        except Refused as refused:
            if refused.code != "wrong-code" or not tries:
                raise
            terminal.complain("that was not the code")


async def show_list(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    names = Names(client)
    async for view in client.conversations():
        unread = f" ({view.unread_count} new)" if view.unread_count else ""
        terminal.say(f"{view.id}  {await names.title(view)}{unread}")
        if view.last_message is not None:
            terminal.say(f"    {await names.line(view.last_message)}")
    return ExitStatus.OK


async def edit_profile(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    form = calls.ProfileForm()
    if options.name is not None:
        form.display_name = options.name
    if options.username is not None:
        form.username = options.username.removeprefix("@") or None
    if options.bio is not None:
        form.bio = options.bio
    user = await (client.change_profile(form) if msgspec.to_builtins(form) else client.me())
    terminal.say(f"name:     {harmless(user.display_name)}")
    terminal.say(f"username: {'@' + harmless(user.username) if user.username else ''}")
    terminal.say(f"bio:      {harmless(user.bio)}")
    terminal.say(f"phone:    {harmless(user.phone_number) if isinstance(user.phone_number, str) else ''}")
    return ExitStatus.OK


async def show_devices(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    for device in await client.devices():
        mark = "*" if device.current else " "
        state = "" if device.signed_in else "  (signed out)"
        seen = f"seen {harmless(device.last_seen_at)}"
        terminal.say(f"{mark} {device.id}  {harmless(device.name)} ({device.type})  {seen}{state}")
    return ExitStatus.OK


async def log_out(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    if client.signed_in:
        await client.logout()
    terminal.say("signed out")
    return ExitStatus.OK


# --- talking ---------------------------------------------------------------------------------------------------------


async def talk(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    conversation_id = await find(client, options.target)
    table = Talk(options, client, terminal, conversation_id)
    await table.show_past(options.last)
    status: int = ExitStatus.OK

    async def watch_signals() -> None:
        nonlocal status
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _number in signals:
                # For a person this is the usual way out; a script must see that lines may be missing.
                status = ExitStatus.OK if terminal.interactive else INTERRUPTED
                nursery.cancel_scope.cancel()

    async with client.connect(table.tell_connection), trio.open_nursery() as nursery:
        nursery.start_soon(watch_signals)
        nursery.start_soon(table.show_events)
        await table.send_lines()
        if options.follow:
            await trio.sleep_forever()
        nursery.cancel_scope.cancel()
    return status


async def find(client: Client, target: str) -> str:
    """The conversation that `target` means; the direct one is opened if there is none. Raises Complaint."""
    if _CONVERSATION.fullmatch(target):
        return (await client.conversation(target)).id
    if target.startswith("@"):
        user = await client.user_named(target[1:])
    elif target.startswith("+"):
        number = "+" + re.sub(r"[^0-9]", "", target)
        user = (await client.discover([number])).get(number)
    else:
        raise Complaint("WHO is +15551230002, @username or the id of a conversation", ExitStatus.USAGE)
    if user is None:
        raise Complaint(f"nobody here is {target}")
    if user.id == client.state.user_id:
        raise Complaint("that is you")
    return (await client.create_conversation("direct", [user.id])).id


class Names:
    """What users and conversations are called, asked for once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, str] = {}

    async def of(self, user_id: str) -> str:
        if user_id == self._client.state.user_id:
            return "you"
        if user_id not in self._known:
            if len(self._known) >= NAMES_REMEMBERED_MAX:
                self._known.clear()
            try:
                self._known[user_id] = _name(await self._client.user(user_id))
            except (Refused, Unreachable):
                return user_id[:8]
        return self._known[user_id]

    async def title(self, view: ConversationView) -> str:
        if view.name:
            return harmless(view.name)
        members = view.members if isinstance(view.members, list) else []
        others = [member.user_id for member in members if member.user_id != self._client.state.user_id]
        return ", ".join([await self.of(each) for each in others[:5]]) or f"{view.type} of {view.member_count}"

    async def line(self, message: MessageView) -> str:
        text = _system_text(message) if message.kind == "system" else message.content or f"({message.kind})"
        return f"{_time(message.created_at)} {await self.of(message.sender_id)}: {harmless(text, lines=True)}"


class Talk:
    """One conversation on the screen."""

    def __init__(self, options: argparse.Namespace, client: Client, terminal: Terminal, conversation_id: str) -> None:
        self._json: bool = options.json
        self._client, self._terminal, self._conversation_id = client, terminal, conversation_id
        self._names = Names(client)
        self._was_offline = False
        self._marks_read = terminal.interactive or options.follow  # else nobody is there who reads
        self._shown = 0  # up to this number everything is on the screen
        self._own: dict[int, None] = {}  # numbers of messages from here whose marks are still of interest
        self._marks = {"delivered": 0, "read": 0}

    async def show_past(self, count: int) -> None:
        pages = self._client.history(self._conversation_id, limit=max(count, 1))
        newest: list[MessageView] = await anext(pages, [])
        for message in reversed(newest[:count]):
            await self._show(message)
        if newest:
            self._shown = newest[0].sequence_number

    async def show_events(self) -> None:
        self._seen(self._shown)
        async for event in self._client.events():
            if isinstance(event, protocol.MessageNew):
                await self._show_new(event.message)
            elif self._json:
                if getattr(event, "conversation_id", self._conversation_id) == self._conversation_id:
                    self._print_json(event)
            elif isinstance(event, protocol.MessageDelivered):
                await self._mark("delivered", event.conversation_id, event.user_id, event.sequence_number)
            elif isinstance(event, protocol.MessageRead):
                await self._mark("read", event.conversation_id, event.user_id, event.sequence_number)
            elif isinstance(event, protocol.SyncDone) and not event.complete:
                self._terminal.complain("-- older messages are left out here: start again to see them")
            elif isinstance(event, protocol.ConversationDeleted) and event.conversation_id == self._conversation_id:
                raise Complaint("the conversation was deleted")

    async def send_lines(self) -> None:
        """Sends each line of the input, one after the other, until it ends."""
        async for line in self._terminal.lines:
            if not line.strip():
                continue
            try:
                sent = await self._client.send(self._conversation_id, line)
            except Refused as refused:
                if not self._terminal.interactive or refused.status == 401:
                    raise
                self._terminal.complain(f"-- not sent: {harmless(refused.detail)}")
                continue
            self._own[sent.sequence_number] = None
            if len(self._own) > OWN_REMEMBERED_MAX:
                del self._own[next(iter(self._own))]
            if self._json:
                self._print_json(
                    protocol.SendAck(
                        temp_id=sent.temp_id,
                        message_id=sent.message_id,
                        conversation_id=self._conversation_id,
                        sequence_number=sent.sequence_number,
                        created_at=sent.created_at,
                    )
                )
            else:
                self._terminal.say(f"    ✓ sent #{sent.sequence_number}")

    def tell_connection(self, online: bool, reason: str) -> None:
        if not online:
            self._terminal.complain(f"-- offline: {harmless(reason)}; trying again")
        elif self._was_offline:
            self._terminal.complain("-- online again")
        self._was_offline = not online

    async def _show_new(self, message: MessageView) -> None:
        if message.conversation_id == self._conversation_id and message.sequence_number > self._shown:
            await self._show(message)
            self._seen(message.sequence_number)

    async def _show(self, message: MessageView) -> None:
        if self._json:
            self._print_json(protocol.MessageNew(message=message))
        else:
            self._terminal.say(await self._names.line(message))

    def _seen(self, sequence: int) -> None:
        self._shown = max(self._shown, sequence)
        if self._marks_read and self._shown:
            self._client.mark_read(self._conversation_id, self._shown)

    async def _mark(self, kind: str, conversation_id: str, user_id: str, sequence: int) -> None:
        """A watermark of somebody else passed messages that were sent from here."""
        if conversation_id != self._conversation_id or user_id == self._client.state.user_id:
            return
        passed = [number for number in self._own if self._marks[kind] < number <= sequence]
        self._marks[kind] = max(self._marks[kind], sequence)
        if passed:
            sign = "✓✓ delivered to" if kind == "delivered" else "✓✓ read by"
            self._terminal.say(f"    {sign} {await self._names.of(user_id)} #{max(passed)}")

    def _print_json(self, event: msgspec.Struct) -> None:
        # Through json, because it escapes everything beyond ASCII: some terminals obey characters above it.
        self._terminal.say(json.dumps(msgspec.to_builtins(event)))


def _name(user: User) -> str:
    name = harmless(user.display_name).strip()
    handle = f"@{harmless(user.username)}" if user.username else ""
    return f"{name} ({handle})" if name and handle else name or handle or user.id[:8]


def _time(created_at: str) -> str:
    return harmless(created_at[:16].replace("T", " "))


def _system_text(message: MessageView) -> str:
    try:
        kind = json.loads(message.content or "").get("type", "")
    except (ValueError, AttributeError):
        kind = ""
    return f"({kind or 'system'})"
