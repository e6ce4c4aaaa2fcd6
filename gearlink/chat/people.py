"""Commands about people and conversations from the shell: contacts, blocks, `list`, `new`, `join`, `members`, `sync`.

Each is one function of the options, a client and the terminal, and gives the exit status.
"""

import argparse
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec

from gearlink.chat.finding import Complaint, find_blocked, find_conversation, find_user, phone_number
from gearlink.chat.notices import as_json
from gearlink.chat.vaults import Look, open_history, open_safely
from gearlink.chat.words import Names, local_time, name_of
from gearlink.errors import ExitStatus
from gearlink.sdk import Client
from gearlink.sdk.secure.told import SecurityEvent
from gearlink.terminal import Terminal, harmless
from gearlink.views import ConversationView, User

if TYPE_CHECKING:
    from gearlink.sdk.secure.client import SecureClient


def _line(user: User, more: str = "") -> str:
    return f"{user.id}  {name_of(user)}{more}"


async def contacts(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`contacts [add WHO… | remove WHO… | find NUMBER…]`."""
    if options.action == "list":
        async for each in client.contacts():
            terminal.say(_line(each.user, f" = {harmless(each.nickname)}" if each.nickname else ""))
        return ExitStatus.OK
    if not options.who:
        raise Complaint("say who: +15551230002 or @username", ExitStatus.USAGE)
    if options.action == "find":
        numbers = [phone_number(each) for each in options.who]
        found = await client.discover(numbers)
        for number in numbers:
            terminal.say(f"{number}  {_line(found[number]) if number in found else 'not here'}")
        return ExitStatus.OK
    for who in options.who:
        user = await find_user(client, who)
        if options.action == "remove":
            await client.remove_contact(user.id)
        else:
            await client.put_contact(user.id, options.nickname)
        terminal.say(f"{'removed' if options.action == 'remove' else 'added'} {name_of(user)}")
    return ExitStatus.OK


async def block(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`block [WHO…]`: without a name, who is."""
    if not options.who:
        async for each in client.blocks():
            terminal.say(_line(each.user, f"  since {local_time(each.blocked_at)}"))
    for who in options.who:
        user = await find_user(client, who)
        await client.block(user.id)
        terminal.say(f"{name_of(user)} is blocked; they are not told")
    return ExitStatus.OK


async def unblock(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`unblock WHO…`. Whom one has blocked is found in the list of them alone."""
    for who in options.who:
        user = await find_blocked(client, who)
        await client.unblock(user.id)
        terminal.say(f"{name_of(user)} is not blocked")
    return ExitStatus.OK


async def show_list(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`list [--archived]`."""
    names = Names(client)
    look: Look | None = None
    async with AsyncExitStack() as stack:
        async for view in client.conversations(archived=options.archived):
            terminal.say(f"{view.id}  {await names.title(view)}{_state(view)}")
            last = view.last_message
            if last is not None and view.encryption == "e2ee":
                if look is None:
                    look = await stack.enter_async_context(open_history(options, client))
                last = await look(last.id) or last
            if last is not None:
                line = await names.line(last)
                terminal.say("    " + line.replace("\n", "\n    "))
    return ExitStatus.OK


def _state(view: ConversationView) -> str:
    parts = ["encrypted"] if view.encryption == "e2ee" else []
    parts += [f"{view.unread_count} new"] if view.unread_count else []
    parts += [f"{view.mention_count} for you"] if view.mention_count else []
    parts += ["on top"] if view.pinned_at else []
    parts += [f"muted until {local_time(view.muted_until)}"] if view.muted_until else []
    parts += [f"{view.join_request_count} ask to be let in"] if view.join_request_count else []
    return f" ({', '.join(parts)})" if parts else ""


async def new(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`new group|channel NAME [WHO…]`."""
    member_ids = [(await find_user(client, who)).id for who in options.who]
    about = options.about or None
    if options.kind == "channel" or options.plain:
        view = await client.create_conversation(
            options.kind, member_ids, name=options.name, description=about, encryption="server"
        )
    else:
        async with open_safely(options, client, terminal) as secure:
            view = await secure.groups.create(options.kind, member_ids, name=options.name, description=about)
    terminal.say(view.id)
    return ExitStatus.OK


async def join(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`join CODE [--look]`."""
    preview = await client.preview_link(options.code)
    terminal.say(f"{preview.type} {harmless(preview.name or '')}, {preview.member_count} members".replace(" ,", ","))
    if preview.description:
        terminal.say(f"    {harmless(preview.description, lines=True)}")
    if options.look:
        return ExitStatus.OK
    answer = await client.join(options.code)
    asked = "you asked to be let in: somebody there has to say yes"
    terminal.say(f"you are in: {preview.conversation_id}" if answer.status == "joined" else asked)
    return ExitStatus.OK


async def members(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`members WHO`."""
    names = Names(client)
    async for member in client.members((await find_conversation(client, options.target)).id):
        terminal.say(f"{member.user_id}  {await names.of(member.user_id)}  {member.role}")
    return ExitStatus.OK


async def sync(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`sync [--follow]`: what this profile has not seen yet, one JSON object a line, and then no more of it."""
    async with open_safely(options, client, terminal) as secure:
        return await _sync(options, secure, terminal)


async def _sync(options: argparse.Namespace, secure: "SecureClient", terminal: Terminal) -> int:
    polled = secure.client.poll() if options.follow else secure.client.poll(wait_seconds=0)
    while True:
        events = await polled.page()
        for event in events:
            opened = await secure.opened(event)
            if opened is not None:
                _print(terminal, opened)
            while (told := secure.device.take_told()) is not None:
                _print(terminal, told)
        if polled.complete and not options.follow:
            polled.settle()
            return ExitStatus.OK


def _print(terminal: Terminal, event: msgspec.Struct) -> None:
    built = as_json(event) if isinstance(event, SecurityEvent) else msgspec.to_builtins(event)
    terminal.say(json.dumps(built))
