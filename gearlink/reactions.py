"""Reactions to messages: one each for a user and an emoji.

Each is a row of its own, and the message carries the tally, rewritten in the same change, so the two agree after any
crash. What counts as an emoji is Unicode's own list (UTS #51, "RGI"), and each is kept in its fully-qualified form: the
red heart of one keyboard is that of another. Text is refused. Reactions of somebody who left stay. It knows no socket.
"""

from typing import Final

from emoji import EMOJI_DATA, STATUS
from msgspec import structs

from config import limits
from gearlink.accounts import Actor
from gearlink.clock import Clock, new_id, rfc3339
from gearlink.cursors import decode_cursor, encode_cursor, foreign_cursor
from gearlink.errors import MESSAGE_DELETED, TOO_MANY, Refusal, invalid
from gearlink.rights import Right
from gearlink.storms import Storms
from gearlink.throttle import Budget
from gearlink.views import Page, ReactorView
from gearlink.visibility import visible_message
from storage.events import Message, ReactionChanged, Tally
from storage.records import Reaction
from storage.store import Reads, Store, Transaction

_EMOJI_PRESENTATION: Final = "\ufe0f"  # UTS #51 §1.4.1: asks for the picture; keyboards differ in leaving it out
_EMOJIS: Final = {
    emoji.replace(_EMOJI_PRESENTATION, ""): emoji
    for emoji, facts in EMOJI_DATA.items()
    if facts["status"] == STATUS["fully_qualified"]
}
_ROWS_PER_SCAN: Final = 200
_ROWS_PER_CALL_MAX: Final = 1000  # looked at for the reactions with one emoji among those with others

assert max(map(len, _EMOJIS.values())) <= limits.EMOJI_CHARS_MAX


def normal_emoji(text: str) -> str | None:
    """The one emoji that `text` is, in its fully-qualified form; None if it is anything else."""
    return _EMOJIS.get(text.replace(_EMOJI_PRESENTATION, ""))


def _require_emoji(path: str, text: str) -> str:
    emoji = normal_emoji(text)
    if emoji is None:
        raise invalid(path, "one emoji and nothing else")
    return emoji


class Reactions:
    """The rules of reactions over a store."""

    def __init__(self, store: Store, clock: Clock, budget: Budget, storms: Storms) -> None:
        self._store = store
        self._clock = clock
        self._budget = budget
        self._storms = storms

    async def react(self, actor: Actor, message_id: str, emoji: str, *, added: bool) -> None:
        """Adds the caller's reaction, or takes it back; nothing happens if that is how it is already.

        Who may see the message may take back. Raises Refusal `rate-limited`; `invalid-request` for what is not one
        emoji; `not-found`, and to add also `forbidden`, `refused-by-privacy`, `message-deleted`; `too-many` for more
        different emojis than a message, or one user on it, may have.
        """
        self._budget.check(actor, len(emoji.encode()))
        emoji, now = _require_emoji("emoji", emoji), self._clock.now()
        right = Right.REACT if added else Right.READ

        async def change(tx: Transaction) -> None:
            sight = await visible_message(tx, actor.user_id, message_id, right, now)
            if sight.message.deleted_at:  # what others did to it goes with it
                if added:
                    raise Refusal(MESSAGE_DELETED)
                return
            known = await tx.get(Reaction, message_id, actor.user_id, emoji)
            if added == (known is not None):
                return
            change_tally = _add if added else _remove
            tallies = await change_tally(tx, sight.message, Reaction(message_id, actor.user_id, emoji, now))
            subject = structs.replace(sight.entry, event=structs.replace(sight.message, reactions=tallies))
            event = ReactionChanged(new_id(), actor.user_id, now, message_id, subject.sequence, emoji, added)
            await self._storms.tell(tx, event, subject)

        await self._store.write(change)

    async def reactions(
        self, actor: Actor, message_id: str, emoji: str | None, limit: int, cursor: str | None
    ) -> Page[ReactorView]:
        """Who reacted, in the order of their ids; with `emoji` those who did with that one.

        With `emoji` a page may hold fewer than `limit` where there is a next one. Raises Refusal `not-found`,
        `invalid-request`.
        """
        wanted = _require_emoji("emoji", emoji) if emoji is not None else None
        sight = await visible_message(self._store, actor.user_id, message_id, Right.READ, self._clock.now())
        last = decode_cursor(cursor, 2) if cursor else None
        tallied = sight.message.reactions  # none of a deleted message, whose last rows may still be there
        if not tallied or (wanted is not None and _tally_of(sight.message, wanted) is None):
            return Page(items=[])
        found: list[Reaction] = []
        looked_at = 0
        while looked_at < _ROWS_PER_CALL_MAX:
            size = limit + 1 - len(found) if wanted is None else _ROWS_PER_SCAN
            rows = await self._rows_behind(message_id, last, size)
            looked_at += len(rows)
            for row in rows:
                if wanted is not None and row.emoji != wanted:
                    continue
                if len(found) == limit:
                    return _page(found, [found[-1].user_id, found[-1].emoji])
                found.append(row)
            if len(rows) < size:
                return _page(found, None)
            last = [rows[-1].user_id, rows[-1].emoji]
        return _page(found, last)

    async def _rows_behind(self, message_id: str, last: list[str] | None, size: int) -> list[Reaction]:
        if last is None:
            return await self._store.scan(Reaction, message_id, limit=size)
        user_id, emoji = last
        try:
            rows = await self._store.scan(Reaction, message_id, user_id, after=emoji, limit=size)
        except ValueError:
            raise foreign_cursor() from None
        if len(rows) < size:
            rows += await self._store.scan(Reaction, message_id, after=user_id, limit=size - len(rows))
        return rows


def _page(found: list[Reaction], last: list[str] | None) -> Page[ReactorView]:
    items = [ReactorView(user_id=each.user_id, emoji=each.emoji, at=rfc3339(each.at)) for each in found]
    return Page(items=items, next=None if last is None else encode_cursor(*last))


def _tally_of(message: Message, emoji: str) -> Tally | None:
    return next((tally for tally in message.reactions if tally.emoji == emoji), None)


def _with_tally(message: Message, tally: Tally) -> tuple[Tally, ...]:
    return tuple(tally if each.emoji == tally.emoji else each for each in message.reactions)


async def _add(tx: Transaction, message: Message, reaction: Reaction) -> tuple[Tally, ...]:
    """Puts the row; returns the tallies with it. Raises Refusal `too-many`."""
    tally = _tally_of(message, reaction.emoji)
    if tally is None and len(message.reactions) >= limits.REACTIONS_PER_MESSAGE_MAX:
        raise Refusal(TOO_MANY)
    own = await tx.scan(Reaction, reaction.message_id, reaction.user_id, limit=limits.REACTIONS_PER_USER_MAX)
    if len(own) >= limits.REACTIONS_PER_USER_MAX:
        raise Refusal(TOO_MANY)
    tx.put(reaction)
    if tally is None:
        return (*message.reactions, Tally(reaction.emoji, 1, (reaction.user_id,)))
    shown = tally.user_ids
    if len(shown) < limits.REACTORS_SHOWN_MAX:
        shown = (*shown, reaction.user_id)
    return _with_tally(message, Tally(tally.emoji, tally.count + 1, shown))


async def _remove(tx: Transaction, message: Message, reaction: Reaction) -> tuple[Tally, ...]:
    """Deletes the row; returns the tallies without it."""
    tx.delete(Reaction, reaction.message_id, reaction.user_id, reaction.emoji)
    tally = _tally_of(message, reaction.emoji)
    assert tally is not None  # rewritten together with the rows
    if tally.count == 1:
        return tuple(each for each in message.reactions if each is not tally)
    shown = tuple(user_id for user_id in tally.user_ids if user_id != reaction.user_id)
    if len(shown) < min(tally.count - 1, limits.REACTORS_SHOWN_MAX) and len(shown) < len(tally.user_ids):
        shown = await _refilled(tx, reaction.message_id, reaction.emoji, shown)
    return _with_tally(message, Tally(tally.emoji, tally.count - 1, shown))


async def _refilled(reads: Reads, message_id: str, emoji: str, shown: tuple[str, ...]) -> tuple[str, ...]:
    """`shown` with others who reacted so, as far as they are found among the first rows: a change has to be short."""
    rows = await reads.scan(Reaction, message_id, limit=_ROWS_PER_CALL_MAX)
    others = [row.user_id for row in rows if row.emoji == emoji and row.user_id not in shown]
    return (*shown, *others[: limits.REACTORS_SHOWN_MAX - len(shown)])
