"""What was said before, page by page: from the server, or of an encrypted conversation from what this device keeps.

The server has nothing to read there, but it knows what else happened: who came and went stands between what was said.
"""

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from config.limits import PAGE_MAX
from gearlink.views import ConversationView, MessageView

if TYPE_CHECKING:
    from gearlink.sdk.secure.client import SecureClient

PAGES_LOOKED_AT: Final = 5  # of the server's, for what happened between messages: many of its numbers are of devices
SILENT: Final = frozenset({"control", "key-distribution"})  # what devices say to each other


class Past:
    """The past of one conversation, from the newest message back. `is_over`: there is no more. `head` bounds what the server
    says besides the messages: what is above it is not the past yet, but comes as an event."""

    def __init__(self, secure: "SecureClient", view: ConversationView) -> None:
        self._secure, self._conversation_id = secure, view.id
        self._is_encrypted = view.encryption == "e2ee"
        self._said_before: str | None = None  # the oldest message that was given
        self._before: int | None = None  # the lowest number that was given
        self.is_over = False
        self.head: int | None = None

    async def older(self, count: int) -> list[MessageView]:
        """The next ones back, oldest first. Raises Refused, Unreachable."""
        found = await (self._kept(count) if self._is_encrypted else self._of_server(count))
        if found:
            self._before = min(each.sequence_number for each in found)
        self.is_over = len(found) < count
        return found

    async def _of_server(self, count: int) -> list[MessageView]:
        pages = self._secure.client.history(self._conversation_id, before=self._before, limit=max(count, 1))
        page: list[MessageView] = await anext(pages, [])
        return page[:count][::-1]

    async def _kept(self, count: int) -> list[MessageView]:
        if not count:
            return []
        kept = await self._secure.history(self._conversation_id, self._said_before, count)
        is_whole = len(kept) < count
        happened = await self._happened(0 if is_whole else min(each.sequence_number for each in kept), count)
        found = sorted([*kept, *happened], key=lambda each: (each.created_at, each.sequence_number))[-count:]
        ids = {each.id for each in found}
        self._said_before = next((each.id for each in reversed(kept) if each.id in ids), self._said_before)
        return found

    async def _happened(self, down_to: int, count: int) -> list[MessageView]:
        """Lines of the server about the conversation itself, the newest `count` of them."""
        found: list[MessageView] = []
        before = self._before
        if before is None and self.head is not None:
            before = self.head + 1
        pages = self._secure.client.history(self._conversation_id, before=before, limit=PAGE_MAX)
        for _page in range(PAGES_LOOKED_AT):
            page: list[MessageView] = await anext(pages, [])
            found += [each for each in page if each.kind == "system" and each.sequence_number > down_to]
            if not page or page[-1].sequence_number <= down_to or len(found) >= count:
                break
        return found[:count]


async def message_numbered(secure: "SecureClient", view: ConversationView, number: int) -> MessageView | None:
    """The message that `#12` means. Raises Refused, Unreachable."""
    pages = secure.client.history(view.id, after=max(number - 1, 0), limit=1)
    page: list[MessageView] = await anext(pages, [])
    if not page or page[0].sequence_number != number or page[0].kind == "system" or page[0].kind in SILENT:
        return None
    return await opened(secure, page[0])


async def opened(secure: "SecureClient", message: MessageView) -> MessageView:
    """A message of the server as this device can read it."""
    kept = await secure.message(message.id)
    return message if kept is None else replace(kept, pinned_at=message.pinned_at)
