"""What every command of `gearlink chat` needs: a complaint in one line, and whom or what a word of the user means.

It asks the server and shows nothing.
"""

import re
import signal
from typing import Final

from gearlink import views
from gearlink.errors import ExitStatus
from gearlink.sdk import Client
from gearlink.views import ConversationView, User

REFUSED: Final = 1
INTERRUPTED: Final = 128 + signal.SIGINT
_CONVERSATION: Final = re.compile(views.UUID_PATTERN)


class Complaint(Exception):
    """One line for the user, and the status to end with."""

    def __init__(self, line: str, status: int = REFUSED) -> None:
        super().__init__(line)
        self.status = status


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


async def find_conversation(client: Client, target: str) -> ConversationView:
    """The conversation that `target` means; the direct one is opened if there is none. Raises Complaint."""
    if _CONVERSATION.fullmatch(target):
        return await client.conversation(target)
    if not target.startswith(("@", "+")):
        raise Complaint("WHO is +15551230002, @username or the id of a conversation", ExitStatus.USAGE)
    user = await find_user(client, target)
    if user.id == client.state.user_id:
        raise Complaint("that is you")
    return await client.create_conversation("direct", [user.id])


def phone_number(text: str) -> str:
    """A number as people write it, in the form of E.164."""
    return "+" + re.sub(r"[^0-9]", "", text)
