"""What a member sets for themselves in a conversation: mute, archive, pin, and drafts.

Nobody else sees any of it. Each change is told to the user's other devices as the state from now on, and noted with its
time, so that a device that was away is told when it comes back. A draft that was given up stays as an empty record for
the same reason. It knows neither HTTP nor sockets.
"""

import trio
from msgspec import UNSET, structs

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import PreferencesForm
from gearlink.clock import Clock, Milliseconds
from gearlink.cursors import encode_cursor, page_of
from gearlink.errors import MUST_BE_ENCRYPTED, Refusal, invalid
from gearlink.overview import overview
from gearlink.personal import draft_view
from gearlink.reading import message_entry
from gearlink.rights import Right, enter
from gearlink.schedule import parse_time
from gearlink.throttle import Throttle
from gearlink.views import ConversationView, DraftView, Page
from gearlink.visibility import is_visible
from storage.events import Plain
from storage.notices import Personal
from storage.records import Conversation, Draft, Member
from storage.store import Reads, Store, Transaction


class Preferences:
    """The rules of one's own settings over a store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._drafts = Throttle("drafts", limits.DRAFTS_PER_SECOND, limits.DRAFTS_BURST)

    async def change(self, actor: Actor, conversation_id: str, form: PreferencesForm) -> ConversationView:
        """Sets the parts that are present; answers the conversation with them.

        Raises Refusal `not-found`, `invalid-request` for a `mutedUntil` that is no time to come.
        """
        now = self._clock.now()
        changes = _changes(form, now)

        async def change(tx: Transaction) -> tuple[Conversation, Member]:
            conversation, member = await enter(tx, actor.user_id, conversation_id, Right.READ)
            changed = structs.replace(member, **changes)
            if form.pinned is True and member.pinned_at:  # it keeps its place among the pinned
                changed = structs.replace(changed, pinned_at=member.pinned_at)
            if changed != member:
                changed = structs.replace(changed, preferences_at=now)
                tx.put(changed)
                tx.announce(Personal((actor.user_id,), changed, but_device_id=actor.device_id))
            return conversation, changed

        conversation, member = await self._store.write(change)
        return await overview(self._store, conversation, member, now, with_members=True, device_id=actor.device_id)

    # --- drafts ------------------------------------------------------------------------------------------------------

    async def set_draft(
        self, actor: Actor, conversation_id: str, content: str | None, reply_to_id: str | None = None
    ) -> DraftView:
        """Keeps what the caller has begun to write there, in place of what was kept before; None gives it up, for which
        being a member is enough.

        Raises Refusal `not-found`, `forbidden`, `refused-by-privacy`, `must-be-encrypted`, `rate-limited`,
        `invalid-request` (too long, a message that is not there to reply to).
        """
        self._drafts.check(actor.user_id)
        if content is not None and len(content.encode()) > limits.CONTENT_BYTES_MAX:
            raise invalid("content", f"at most {limits.CONTENT_BYTES_MAX} bytes in UTF-8")
        now = self._clock.now()

        async def change(tx: Transaction) -> Draft:
            right = Right.READ if content is None else Right.SEND  # what is theirs they may always take away
            conversation, member = await enter(tx, actor.user_id, conversation_id, right)
            if content is not None and conversation.encryption == "e2ee":
                raise Refusal(MUST_BE_ENCRYPTED)
            if content is not None and reply_to_id is not None:
                await _require_visible(tx, member, reply_to_id, now)
            earlier = await tx.get(Draft, actor.user_id, conversation_id)
            kept = None if content is None else Plain(content)
            draft = Draft(actor.user_id, conversation_id, kept, reply_to_id or "" if kept else "", now)
            if kept is not None or (earlier is not None and earlier.content is not None):
                tx.put(draft)
                tx.announce(Personal((actor.user_id,), draft, but_device_id=actor.device_id))
            return draft

        return draft_view(await self._store.write(change))

    async def drafts(self, actor: Actor, limit: int, cursor: str | None) -> Page[DraftView]:
        """What the caller has begun to write, by conversation. Raises Refusal `invalid-request`."""
        items: list[DraftView] = []
        while True:
            found, cursor = await page_of(
                self._store,
                Draft,
                actor.user_id,
                cursor=cursor,
                limit=limits.PAGE_MAX,
                key=lambda draft: draft.conversation_id,
            )
            for draft in found:
                if draft.content is None or await self._store.get(Conversation, draft.conversation_id) is None:
                    continue
                if len(items) == limit:
                    return Page(items=items, next=encode_cursor(items[-1].conversation_id))
                items.append(draft_view(draft))
            if cursor is None:
                return Page(items=items)
            await trio.lowlevel.checkpoint()


def _changes(form: PreferencesForm, now: Milliseconds) -> dict[str, object]:
    """The fields of `Member` that the form sets. Raises Refusal `invalid-request`."""
    changes: dict[str, object] = {}
    if form.muted_until is None:
        changes["muted_until"] = 0
    elif form.muted_until is not UNSET:
        muted_until = parse_time(form.muted_until, "mutedUntil")
        if muted_until <= now:
            raise invalid("mutedUntil", "this time has passed")
        changes["muted_until"] = muted_until
    if form.archived is not UNSET:
        changes["archived"] = form.archived
    if form.pinned is not UNSET:
        changes["pinned_at"] = now if form.pinned else 0
    return changes


async def _require_visible(reads: Reads, member: Member, message_id: str, now: Milliseconds) -> None:
    entry = await message_entry(reads, message_id)
    is_here = entry is not None and entry.conversation_id == member.conversation_id
    if entry is None or not is_here or not await is_visible(reads, entry, member, now):
        raise invalid("replyToId", "there is no such message in this conversation")
