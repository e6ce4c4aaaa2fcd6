"""Commands about one's own account from the shell: signing up, in and out, profile, picture, privacy, devices, deletion.

Each is one function of the options, a client and the terminal, and gives the exit status.
"""

import argparse
import socket
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import trio

from config.limits import AVATAR_BYTES_MAX, DEVICE_NAME_CHARS_MAX
from gearlink import calls
from gearlink.chat.finding import Complaint, find_conversation
from gearlink.chat.notices import not_linked
from gearlink.chat.vaults import open_safely
from gearlink.chat.words import local_time, name_of
from gearlink.errors import ExitStatus
from gearlink.sdk import Client, Refused
from gearlink.sdk.secure.told import NotLinked
from gearlink.terminal import Terminal, harmless
from gearlink.views import Audience

CODE_TRIES: Final = 3
PICTURES: Final = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"RIFF": "image/webp"}
_YES: Final = {"yes": True, "no": False}
_WHO: Final = {each: each for each in get_args(Audience)}
_PRIVACY: Final[dict[str, dict[str, Any]]] = {
    "read_receipts": _YES,
    "receipts_to_strangers": _YES,
    "last_seen": _WHO,
    "add_to_groups": _WHO,
    "find_by_number": _WHO,
}


async def sign_up(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`signup --phone NUMBER`."""
    if client.signed_in:
        raise Complaint("this profile is signed in; `gearlink chat logout` first, or choose another with --as NAME", 2)
    verification_id = options.verification or (await client.request_code(options.phone)).verification_id
    signed = await _confirm(options, client, terminal, verification_id)
    user = signed.user
    if options.name is not None:
        user = await client.change_profile(calls.ProfileForm(display_name=options.name))
    terminal.say(f"signed {'up' if signed.is_new_user else 'in'} as {name_of(user)} on {client.server}")
    async with open_safely(options, client, terminal) as secure:  # from now on others can write to this device
        while (told := secure.device.take_told()) is not None:
            if isinstance(told, NotLinked):
                terminal.complain(f"!! {not_linked(told.code)}")
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
                restore_account=options.restore,
            )
        except Refused as refused:
            if refused.code == "account-deleted":
                raise Complaint("this account was deleted: --restore takes that back, with a new code") from None
            if refused.code == "not-found" and client.state.device_id is not None:
                line = "this profile was a device of another account, or of one that was removed: take a new one, --as NAME"
                raise Complaint(line) from None
            if refused.code != "wrong-code" or not tries:
                raise
            terminal.complain("that was not the code")


async def edit_profile(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`profile [--name …] [--username …] [--bio …]`."""
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


async def set_avatar(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`avatar FILE [--of WHO]`, or `avatar --remove`."""
    if bool(options.file) == options.remove:
        raise Complaint("give a FILE, or --remove", ExitStatus.USAGE)
    room = (await find_conversation(client, options.of)).id if options.of else None
    if options.remove:
        await (client.remove_conversation_avatar(room) if room else client.remove_avatar())
        terminal.say("the picture is gone")
        return ExitStatus.OK
    picture = await trio.to_thread.run_sync(_read, Path(options.file))
    media_type = next((kind for start, kind in PICTURES.items() if picture.startswith(start)), None)
    if media_type is None:
        raise Complaint("a picture is JPEG, PNG or WebP")
    if len(picture) > AVATAR_BYTES_MAX:
        raise Complaint(f"a picture has at most {AVATAR_BYTES_MAX // 1024} KiB")
    put = client.set_conversation_avatar(room, picture, media_type) if room else client.set_avatar(picture, media_type)
    terminal.say(client.server + await put)
    return ExitStatus.OK


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(AVATAR_BYTES_MAX + 1)


async def privacy(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`privacy [KEY=VALUE…]`."""
    form = calls.PrivacyForm()
    for word in options.settings:
        key, _, value = word.partition("=")
        values = _PRIVACY.get(key, {})
        if value not in values:
            can = f"{key} is {' or '.join(values)}" if values else f"there is {', '.join(_PRIVACY)}"
            raise Complaint(can, ExitStatus.USAGE)
        setattr(form, key, values[value])
    view = await (client.change_privacy(form) if options.settings else client.privacy())
    for key, values in _PRIVACY.items():
        found = getattr(view, key)
        terminal.say(f"{key}={next((text for text, value in values.items() if value == found), found)}")
    return ExitStatus.OK


async def show_devices(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`devices`."""
    for device in await client.devices():
        mark = "*" if device.current else " "
        state = "" if device.signed_in else "  (signed out)"
        seen = f"seen {local_time(device.last_seen_at)}"
        terminal.say(f"{mark} {device.id}  {harmless(device.name)} ({device.type})  {seen}{state}")
    return ExitStatus.OK


async def log_out(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`logout`."""
    if client.signed_in:
        await client.logout()
    terminal.say("signed out")
    return ExitStatus.OK


async def delete_account(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`delete-account [--yes]`."""
    if not options.yes:
        question = "delete this account, with everything that is only yours? type yes: "
        if not terminal.interactive or await terminal.ask(question) != "yes":
            raise Complaint("nothing was deleted; without a question: --yes", ExitStatus.USAGE)
    await client.delete_account()
    terminal.say("deleted; for 30 days `gearlink chat signup --restore` with this number takes it back")
    return ExitStatus.OK
