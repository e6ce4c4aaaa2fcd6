"""One conversation at the terminal, as commands see it: who is asked, what is shown, and what `#12` means there.

It neither listens nor reads lines; the talk does, and tells it what it saw.
"""

import re
from typing import Final

import trio

from gearlink.chat.finding import Complaint, find_blocked, find_user
from gearlink.chat.words import Names
from gearlink.errors import ExitStatus
from gearlink.sdk import Client, Unreachable
from gearlink.terminal import Terminal
from gearlink.views import ALL, MessageView

_NUMBER: Final = re.compile(r"#?(\d{1,16})")
_MENTION: Final = re.compile(r"(?<![\w@/.])@([a-z][a-z0-9_.]{2,31})")
ASK_AGAIN_SECONDS: Final = 1.0
OWN_LOOKED_AT: Final = 200  # messages among which one's own last one is looked for


class Desk:
    """`is_quiet` keeps what commands say off the output, which is for JSON then. `presence` is who is known to be here.
    `is_direct`: it is a conversation between two."""

    def __init__(
        self, client: Client, terminal: Terminal, conversation_id: str, *, is_quiet: bool, is_direct: bool
    ) -> None:
        self.client, self.terminal, self.conversation_id = client, terminal, conversation_id
        self.names = Names(client)
        self.presence: dict[str, str] = {}
        self.is_left = False
        self.is_direct = is_direct
        self._is_quiet = is_quiet

    @property
    def me(self) -> str:
        """One's own id."""
        return self.client.state.user_id or ""

    def tell(self, line: str) -> None:
        """A line of ours, about what happened or was asked for."""
        (self.terminal.complain if self._is_quiet else self.terminal.say)(f"    ~ {line}")

    async def show(self, message: MessageView) -> None:
        """A message that was asked for."""
        line = await self.names.line(message)
        (self.terminal.complain if self._is_quiet else self.terminal.say)(line)

    async def message(self, word: str) -> MessageView:
        """The message that `#12` means. Raises Complaint."""
        if not (found := _NUMBER.fullmatch(word)):
            raise Complaint("say which message, such as #12", ExitStatus.USAGE)
        number = int(found[1])
        page: list[MessageView] = await anext(
            self.client.history(self.conversation_id, after=max(number - 1, 0), limit=1), []
        )
        if not page or page[0].sequence_number != number or page[0].kind == "system":
            raise Complaint(f"there is no message #{number}")
        self.names.note(page[0])
        return page[0]

    async def own_last(self) -> MessageView:
        """What one wrote last, if it is not long ago. Raises Complaint."""
        for message in await anext(self.client.history(self.conversation_id, limit=OWN_LOOKED_AT), []):
            if message.sender_id == self.me and message.kind != "system" and not isinstance(message.deleted_at, str):
                return message
        raise Complaint("you wrote nothing here lately: say which message, such as #12")

    async def named_or_last(self, words: str) -> tuple[MessageView, str]:
        """The message that the first word names, or one's own last one; and the words behind."""
        first, _, rest = words.partition(" ")
        if first.startswith("#"):
            return await self.message(first), rest.strip()
        return await self.own_last(), words

    async def mentions(self, text: str) -> list[str]:
        """Whom `@names` in a text mean: `all`, and members by their usernames. Others are just words. As long as nobody
        can be asked it waits, as sending does."""
        names = list(dict.fromkeys(name.rstrip(".") for name in _MENTION.findall(text.lower())))
        while names:
            try:
                return await self._members_called(names)
            except Unreachable:
                await trio.sleep(ASK_AGAIN_SECONDS)
        return []

    async def _members_called(self, names: list[str]) -> list[str]:
        view = await self.client.conversation(self.conversation_id)
        members = {each.user_id for each in view.members} if isinstance(view.members, list) else None
        found = [ALL] if ALL in names and view.type != "direct" else []
        for name in names:
            user = await self.client.user_named(name) if name != ALL else None
            if user is not None and (members is None or user.id in members):
                found.append(user.id)
        return found

    async def person(self, word: str) -> str:
        """The id of whom a word means. Raises Complaint."""
        return (await find_user(self.client, word)).id

    async def blocked(self, words: str) -> list[str]:
        """The ids of those whom one has blocked and the words mean. Raises Complaint."""
        return [(await find_blocked(self.client, word)).id for word in words.split()]

    async def people(self, words: str) -> list[str]:
        """The ids of one or more. Raises Complaint."""
        if not words:
            raise Complaint("say who: +15551230002 or @username", ExitStatus.USAGE)
        return [await self.person(word) for word in words.split()]
