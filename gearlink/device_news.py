"""Who hears of a device that begins or ceases to count, or of another identity: those who share a conversation with it.

They are looked for outside of changes, in the newest conversations only, and not in large ones: the look is bounded, and
so is the telling. It is live news, and nothing relies on it: who sends for devices that are not right is refused. It
decides nothing and knows no socket.
"""

from typing import Final

import trio

from config import limits
from gearlink.device_lists import Turn, counting
from storage.notices import DeviceCounts
from storage.records import Conversation, Membership
from storage.store import Store, Transaction

_READS_PER_STEP: Final = 100


async def told_of(store: Store, user_id: str, *, only_encrypted: bool = False) -> tuple[str, ...]:
    """The conversations whose members hear of what happens to a user's devices."""
    found = []
    bound = limits.IDENTITY_TOLD_CONVERSATIONS_MAX
    for number, each in enumerate(await store.scan(Membership, user_id, limit=bound, reverse=True)):
        conversation = await store.get(Conversation, each.conversation_id)
        if conversation is None or conversation.is_blocked or (only_encrypted and conversation.encryption != "e2ee"):
            continue
        if conversation.member_count <= limits.IDENTITY_TOLD_MEMBERS_MAX:
            found.append(each.conversation_id)
        if number % _READS_PER_STEP == _READS_PER_STEP - 1:
            await trio.lowlevel.checkpoint()
    return tuple(found)


async def tell(store: Store, turn: Turn) -> None:
    """Tells the members of encrypted conversations what a change did, as far as it still is so."""
    if not turn:
        return
    conversation_ids = await told_of(store, turn.user_id, only_encrypted=True)
    if not conversation_ids:
        return

    async def change(tx: Transaction) -> None:
        present = {device.device_id for device in (await counting(tx, turn.user_id)).devices}
        for device_id in turn.began:
            if device_id in present:
                tx.announce(DeviceCounts(turn.user_id, device_id, True, conversation_ids))
        for device_id in turn.ceased:
            if device_id not in present:
                tx.announce(DeviceCounts(turn.user_id, device_id, False, conversation_ids))

    await store.write(change)
