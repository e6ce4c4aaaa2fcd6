"""The history of encrypted conversations, as this device keeps it: reading it back, and what changes it.

The server forgets ciphertext once every device has it, so this is the only place where it can be read again. A message is
shown as the server shows one, with what was in its letter. An edit counts if it is from the message's own sender; edits and
reactions to what cannot be read yet wait until it can.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from config.limits import PAGE_DEFAULT, QUOTE_CHARS_MAX, REACTORS_SHOWN_MAX
from gearlink.sdk.e2ee import letters
from gearlink.sdk.e2ee.letters import Edit, Letter, Message, Reaction, Target
from gearlink.sdk.e2ee.records import Archive, Epoch, Expiring, Kept, KeptIndex, Waiting
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.secure.own_device import timestamp
from gearlink.sdk.secure.told import OpenedMessage
from gearlink.views import QuoteView, ReactionView

WAITING_MAX: Final = 100  # changes of one message that cannot be read yet
REACTIONS_MAX: Final = 1000  # on one message
EXPIRED_AT_ONCE: Final = 500


def find(tx: Tx, message_id: str) -> Kept | None:
    """The letter that came as this message, if it is kept."""
    index = tx.get(KeptIndex, message_id)
    return None if index is None else tx.get(Kept, index.conversation_id, index.era, index.sequence)


def page(
    tx: Tx, conversation_id: str, now: int, before: tuple[int, int] | None = None, limit: int = PAGE_DEFAULT
) -> list[Kept]:
    """What people wrote there, newest first, older than the position `before`: (era, sequence)."""
    found: list[Kept] = []
    eras = sorted({each.era for each in tx.scan(Epoch)}, reverse=True)
    for era in eras:
        if before is not None and era > before[0]:
            continue
        below = before[1] if before is not None and era == before[0] else None
        while len(found) < limit:
            part = tx.scan(Kept, conversation_id, era, before=below, limit=limit, reverse=True)
            found += [each for each in part if each.kind == "text" and not _is_gone(each, now)]
            if len(part) < limit:
                break
            below = part[-1].sequence
    return found[:limit]


def _is_gone(kept: Kept, now: int) -> bool:
    is_empty = not kept.letter and not kept.trouble and not kept.deleted_at
    return is_empty or 0 < kept.expires_at <= now


def target_of(kept: Kept) -> Target | UnsetType:
    """How a letter names this message, so that the server cannot make it mean another one."""
    return Target(device_id=kept.sender_device_id, count=kept.count) if kept.count else UNSET


def is_meant(kept: Kept, target: Target | UnsetType) -> bool:
    """Whether this is the message that a letter is about."""
    return target is UNSET or (target.device_id, target.count) == (kept.sender_device_id, kept.count)


def amend(tx: Tx, event: Kept, letter: Letter) -> Kept | None:
    """Applies an edit or a reaction that came as `event`. The message as it is now; None if nothing changed, or waits."""
    if not isinstance(letter, Edit | Reaction):
        return None
    target = find(tx, letter.message_id)
    if target is None and _may_come(tx, letter.message_id):
        _wait(tx, event, letter)
    if target is None or target.conversation_id != event.conversation_id or target.kind != "text":
        return None
    if not target.letter and target.trouble:
        _wait(tx, event, letter)
        return None
    changed = _changed(target, event, letter)
    if changed is not None:
        tx.put(changed)
    return changed


def _wait(tx: Tx, event: Kept, letter: Edit | Reaction) -> None:
    if len(tx.scan(Waiting, letter.message_id, limit=WAITING_MAX)) < WAITING_MAX:
        text = letters.to_json(letter)
        tx.put(Waiting(letter.message_id, event.message_id, event.sender_id, event.created_at, text))


def _may_come(tx: Tx, message_id: str) -> bool:
    """Whether a message that is not here may be among what is still fetched from an archive."""
    fetched = tx.scan(Archive, "fetching")
    return any(not each.over for each in fetched) and tx.get(KeptIndex, message_id) is None


def catch_up(tx: Tx, target: Kept) -> Kept:
    """Applies what waited for a message that can be read now."""
    for waiting in tx.scan(Waiting, target.message_id):
        event = replace(target, sender_id=waiting.sender_id, created_at=waiting.created_at)
        letter = letters.from_json(waiting.letter)
        changed = _changed(target, event, letter) if isinstance(letter, Edit | Reaction) else None
        target = changed or target
        tx.delete(Waiting, waiting.message_id, waiting.event_id)
    tx.put(target)
    return target


def _changed(target: Kept, event: Kept, letter: Edit | Reaction) -> Kept | None:
    return _edited(target, event, letter) if isinstance(letter, Edit) else _reacted(target, event, letter)


def _edited(target: Kept, event: Kept, edit: Edit) -> Kept | None:
    letter = letters.from_json(target.letter) if target.letter else None
    if event.sender_id != target.sender_id or not isinstance(letter, Message) or target.deleted_at:
        return None
    device_id, count = target.edit
    if not is_meant(target, edit.target) or (device_id == event.sender_device_id and edit.count <= count):
        return None  # of another message, or older than what it says by now
    if event.created_at < target.edited_at:
        return None  # it was late: there is a newer one
    changed = replace(letter, content=edit.content, mentions=edit.mentions)
    by = (event.sender_device_id, edit.count)
    return replace(target, letter=letters.to_json(changed), edited_at=event.created_at, edit=by)


def _reacted(target: Kept, event: Kept, reaction: Reaction) -> Kept | None:
    mine = (event.sender_id, reaction.emoji)
    if not is_meant(target, reaction.target) or target.deleted_at or (mine in target.reactions) == reaction.added:
        return None
    if not reaction.added:
        return replace(target, reactions=tuple(each for each in target.reactions if each != mine))
    if len(target.reactions) >= REACTIONS_MAX:
        return None
    return replace(target, reactions=(*target.reactions, mine))


def delete(tx: Tx, message_id: str, at: int) -> None:
    """The message was deleted for everyone: nothing of its content stays."""
    kept = find(tx, message_id)
    if kept is not None:
        tx.put(replace(kept, letter=b"", trouble="", deleted_at=at, reactions=(), audience=()))
    elif _may_come(tx, message_id):
        tx.put(KeptIndex(message_id, "", 0, 0))  # and so it does not come any more
    for waiting in tx.scan(Waiting, message_id):
        tx.delete(Waiting, waiting.message_id, waiting.event_id)


def note_expiry(tx: Tx, kept: Kept) -> None:
    """Remembers when a message has to go, if it does not stay."""
    if kept.expires_at:
        tx.put(Expiring(kept.expires_at, kept.message_id))


def expire_due(tx: Tx, now: int) -> None:
    """Messages whose time has run out go, whether or not the server says so."""
    due = tx.scan(Expiring, before=now + 1, limit=EXPIRED_AT_ONCE)
    expire(tx, [each.message_id for each in due])
    for each in due:
        tx.delete(Expiring, each.expires_at, each.message_id)


def expire(tx: Tx, message_ids: Sequence[str]) -> None:
    """These messages have disappeared; that they were here is remembered, so that they do not come again."""
    for message_id in message_ids:
        kept = find(tx, message_id)
        if kept is not None:
            tx.delete(Kept, kept.conversation_id, kept.era, kept.sequence)


def view(tx: Tx, kept: Kept, own_user_id: str) -> OpenedMessage:
    """A kept message as it is shown."""
    letter = letters.from_json(kept.letter) if kept.letter else None
    message = letter if isinstance(letter, Message) else None
    opened = OpenedMessage(
        id=kept.message_id,
        conversation_id=kept.conversation_id,
        sender_id=kept.sender_id,
        sender_device_id=kept.sender_device_id,
        kind=message.kind if message is not None else "text",
        content=message.content if message is not None else None,
        sequence_number=kept.sequence,
        created_at=timestamp(kept.created_at),
        reactions=_tallies(kept, own_user_id),
        temp_id=kept.temp_id or UNSET,
        edited_at=timestamp(kept.edited_at) if kept.edited_at else UNSET,
        deleted_at=timestamp(kept.deleted_at) if kept.deleted_at else UNSET,
        expires_at=timestamp(kept.expires_at) if kept.expires_at else UNSET,
        trouble=kept.trouble or UNSET,
    )
    if message is not None:
        opened.mentions = message.mentions if message.mentions else UNSET
        opened.attachments = message.attachments if message.attachments else UNSET
        if isinstance(message.reply_to_id, str):
            opened.reply_to_id = message.reply_to_id
            opened.reply_to = _quote(tx, kept, message)
    return opened


def _quote(tx: Tx, kept: Kept, reply: Message) -> QuoteView | None:
    quoted = find(tx, reply.reply_to_id) if isinstance(reply.reply_to_id, str) else None
    if (
        quoted is None
        or not is_meant(quoted, reply.reply_to)
        or quoted.conversation_id != kept.conversation_id
        or quoted.kind != "text"
    ):
        return None
    letter = letters.from_json(quoted.letter) if quoted.letter else None
    message = letter if isinstance(letter, Message) else None
    return QuoteView(
        id=quoted.message_id,
        sender_id=quoted.sender_id,
        kind=message.kind if message is not None else "text",
        content=message.content[:QUOTE_CHARS_MAX] if message is not None else None,
        sequence_number=quoted.sequence,
        deleted_at=timestamp(quoted.deleted_at) if quoted.deleted_at else UNSET,
    )


def _tallies(kept: Kept, own_user_id: str) -> list[ReactionView]:
    counts = Counter(emoji for _user_id, emoji in kept.reactions)  # in the order in which the emojis first came
    who = {emoji: [user for user, each in kept.reactions if each == emoji] for emoji in counts}
    return [
        ReactionView(emoji=emoji, count=count, user_ids=who[emoji][:REACTORS_SHOWN_MAX], mine=own_user_id in who[emoji])
        for emoji, count in counts.items()
    ]
