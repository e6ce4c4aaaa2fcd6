"""What every command of `gearlink chat` needs: a complaint in one line, and whom or what a word of the user means.

It asks the server and shows nothing.
"""

import os
import re
import signal
from pathlib import Path
from typing import Final

from gearlink import views
from gearlink.errors import ExitStatus
from gearlink.sdk import Client
from gearlink.views import ConversationView, Encryption, User

REFUSED: Final = 1
INTERRUPTED: Final = 128 + signal.SIGINT
_PROFILE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CONVERSATION: Final = re.compile(views.UUID_PATTERN)


class Complaint(Exception):
    """One line for the user, and the status to end with."""

    def __init__(self, line: str, status: int = REFUSED) -> None:
        super().__init__(line)
        self.status = status


def profile_path(name: str) -> Path:
    """Where a local profile is kept. Raises Complaint for a name that is no plain file name."""
    if not _PROFILE.fullmatch(name):
        raise Complaint("a profile's name has 1 to 64 letters, digits, `-` and `_`", ExitStatus.USAGE)
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "gearlink" / f"{name}.json"


async def find_user(client: Client, who: str) -> User:
    """Whom `who` means: +15551230002, @username or a user's id. Raises Complaint."""
    user: User | None
    if _CONVERSATION.fullmatch(who):
        return await client.user(who)
    if who.startswith("@") and len(who) > 1:
        user = await client.user_named(who[1:])
    elif who.startswith("+"):
        number = phone_number(who)
        user = (await client.discover([number])).get(number)
    else:
        raise Complaint("WHO is +15551230002 or @username", ExitStatus.USAGE)
    if user is None:
        raise Complaint(f"nobody here is {who}")
    return user


async def find_blocked(client: Client, who: str) -> User:
    """Whom of those that one has blocked `who` means, by id or @username: they are not found otherwise, and not by
    their numbers. Raises Complaint."""
    async for each in client.blocks():
        handle = f"@{each.user.username}" if each.user.username else None
        if who.lower() in (each.user.id, handle):
            return each.user
    raise Complaint(f"you have not blocked {who}, as far as can be told: take the id from `gearlink chat block`")


async def find_conversation(
    client: Client, target: str, encryption: Encryption = "e2ee", *, private: bool = False
) -> ConversationView:
    """The conversation that `target` means; the direct one is opened if there is none, encrypted unless it is to be
    otherwise. A `private` one with a person is not one that the server can read. Raises Complaint."""
    if _CONVERSATION.fullmatch(target):
        return await client.conversation(target)
    if not target.startswith(("@", "+")):
        raise Complaint("WHO is +15551230002, @username or the id of a conversation", ExitStatus.USAGE)
    user = await find_user(client, target)
    if user.id == client.state.user_id:
        raise Complaint("that is you")
    view = await client.create_conversation("direct", [user.id], encryption=encryption)
    if private and view.encryption != "e2ee":
        raise Complaint(
            "what you say to each other there can be read by the server: to go on all the same, say --plain"
        )
    members = {each.user_id for each in view.members} if isinstance(view.members, list) else set()
    if not members <= {user.id, client.state.user_id}:
        raise Complaint(f"the server answers with a conversation in which others than you and {target} are")
    return view


def phone_number(text: str) -> str:
    """A number as people write it, in the form of E.164."""
    return "+" + re.sub(r"[^0-9]", "", text)
