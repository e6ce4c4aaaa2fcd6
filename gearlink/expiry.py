"""Messages whose time has run out: taken out of the log for good, with all that hangs on them, and told as gone.

In the place of the message stands, among what is no item of the history, that it has disappeared: its number is never
missing. It goes in small changes, and what was done before a crash is found done. Nobody is shown such a message before
this comes by either: those who read the log see to that.
"""

from collections.abc import Sequence

from msgspec import structs

from config import limits
from gearlink.amendments import erase
from gearlink.clock import Clock, Milliseconds, new_id
from gearlink.reading import is_expired
from storage.events import Message, MessageExpired, MessagesExpired
from storage.records import Amendment, Conversation, Head, LogEntry, MessageIndex, Thread
from storage.store import Store, Transaction


async def expire(store: Store, clock: Clock, conversation_id: str, sequences: Sequence[int]) -> None:
    """Removes the messages with these numbers whose time has come; leaves alone what is not so, or not there."""
    now = clock.now()
    for start in range(0, len(sequences), limits.EXPIRED_PER_CHANGE_MAX):
        some = sequences[start : start + limits.EXPIRED_PER_CHANGE_MAX]

        async def change(tx: Transaction, some: Sequence[int] = some) -> None:
            if await tx.get(Conversation, conversation_id) is None:
                return  # it was deleted, and its log is on its way out
            gone = [
                message_id for sequence in some if (message_id := await _remove(tx, conversation_id, sequence, now))
            ]
            if gone:
                await tx.append(conversation_id, MessagesExpired(new_id(), "", now, tuple(gone)))

        await store.write(change)
    await _mend_head(store, conversation_id)


async def _remove(tx: Transaction, conversation_id: str, sequence: int, now: Milliseconds) -> str:
    """The id of the message that was there; "" if none was that has to go."""
    entry = await tx.get(LogEntry, conversation_id, sequence)
    if entry is None or not isinstance(message := entry.event, Message) or not is_expired(entry, now):
        return ""
    await erase(tx, entry, message, now)
    message_id = message.event_id
    stand_in = MessageExpired(message_id, message.actor_id, message.at, message_id, sequence)
    tx.delete(LogEntry, conversation_id, sequence)
    tx.put(Amendment(conversation_id, sequence, stand_in))
    tx.delete(MessageIndex, message_id)
    tx.delete(Thread, conversation_id, sequence)  # of the replies to it, which stay: the list of threads shows its root
    return message_id


async def _mend_head(store: Store, conversation_id: str) -> None:
    """Makes the head point to the newest message that is left, if its own has gone.

    It is looked for outside of the writer, because far back there may be none. Where a long stretch holds none, the head
    points to the stretch's first item: whatever message there is comes before that.
    """
    head = await store.get(Head, conversation_id)
    if head is None or not head.message_sequence:
        return
    newest, before = 0, head.message_sequence + 1
    for _step in range(limits.UNREAD_SCAN_EVENTS_MAX // limits.SYNC_PAGE_EVENTS):
        entries = await store.scan(
            LogEntry, conversation_id, before=before, limit=limits.SYNC_PAGE_EVENTS, reverse=True
        )
        newest = next((entry.sequence for entry in entries if isinstance(entry.event, Message)), 0)
        if newest or len(entries) < limits.SYNC_PAGE_EVENTS:
            break
        before = entries[-1].sequence
    else:
        newest = before
    if newest == head.message_sequence:
        return

    async def change(tx: Transaction) -> None:
        current = await tx.get(Head, conversation_id)
        if current is not None and current.message_sequence == head.message_sequence:
            tx.put(structs.replace(current, message_sequence=newest))

    await store.write(change)
