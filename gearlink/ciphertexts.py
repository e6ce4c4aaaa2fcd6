"""What the server cannot read goes as soon as nobody needs it any more.

An envelope goes with the mark of its device, in the change that stores the mark. The one body of a sender-key message
goes once every device that counts has acknowledged it, but for the one that sent it; `Ciphertexts` looks after that, a
moment after somebody did. A record for each conversation says where its log may still hold ciphertext, so this may be
killed at any moment and goes on where it was. After `retention.ciphertext_days` all of it goes, acknowledged or not. The
messages stay, with nothing in them. It knows neither sockets nor what a message is about.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import trio
from msgspec import structs

from config import limits
from config.settings import Settings
from gearlink.clock import DAY, Clock
from gearlink.device_lists import DeviceList, DeviceLists
from gearlink.journal import logger
from gearlink.reading import read_log
from storage.events import Message, Said, Sealed
from storage.records import (
    Conversation,
    Delivery,
    Device,
    Due,
    Envelope,
    Head,
    LogEntry,
    Member,
    Membership,
    Undropped,
)
from storage.store import Store, StoreError, Transaction

_log = logger("ciphertexts")
FORGET_ENVELOPES, FORGET_DEVICE = "forget-envelopes", "forget-device"  # of `Due.what`
_PAGE = 200
_MARKS_PER_STEP = 100  # that are looked up between two checkpoints
_AT_ONCE = 0  # of `Due.at`


@dataclass(frozen=True, slots=True)
class _Reach:
    """How far a conversation is acknowledged: by all its devices up to `all`; by all but `laggard` up to `others`."""

    all: int
    others: int
    laggard: str

    def covers(self, entry: LogEntry) -> bool:
        """True if every device has it but for the one that sent it."""
        if entry.sequence <= self.all:
            return True
        return entry.sequence <= self.others and _sender_of(entry) == self.laggard


class Ciphertexts:
    """Drops what has been acknowledged, or is too old. Owned by one task: `run`. `note` only takes a note."""

    def __init__(self, store: Store, clock: Clock, device_lists: DeviceLists, settings: Settings) -> None:
        self._store, self._clock, self._device_lists = store, clock, device_lists
        self._noted: set[str] = set()
        self._wanted = trio.Event()
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Takes over how long ciphertext is kept at most."""
        self._days = settings.retention.ciphertext_days

    def note(self, conversation_id: str) -> None:
        """Somebody has acknowledged something in this encrypted conversation."""
        self._noted.add(conversation_id)
        self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Looks at every conversation now and then, and a moment after an acknowledgement at those that it was in."""
        task_status.started()
        while True:
            try:
                await self.sweep()
            except StoreError as trouble:  # no room, or failing: it is tried again, and the store tells the rest
                _log.warning("ciphertexts.postponed", trouble=trouble)
            with trio.move_on_after(limits.SWEEP_SECONDS):
                while True:
                    await self._wanted.wait()
                    await trio.sleep(limits.CIPHERTEXT_SECONDS)
                    await self._drop_noted()

    async def _drop_noted(self) -> None:
        self._wanted = trio.Event()
        noted, self._noted = self._noted, set()
        for conversation_id in noted:
            try:
                await self.drop(conversation_id)
            except StoreError as trouble:  # the next sweep comes by here
                _log.warning("ciphertexts.postponed", trouble=trouble)

    async def sweep(self) -> None:
        """Every conversation that may hold ciphertext, to the end: what everybody has, what is too old, and envelopes
        that were left behind."""
        after: str | None = None
        while page := await self._store.scan(Undropped, after=after, limit=_PAGE):
            for each in page:
                position = await self.drop(each.conversation_id, to_the_end=True)
                await self._forget_left(each.conversation_id, position)
                await self._store.write(_closing(each.conversation_id, position))
            after = page[-1].conversation_id

    async def drop(self, conversation_id: str, *, to_the_end: bool = False) -> int:
        """Drops the ciphertext of a conversation that everybody has, or that is too old. Returns the sequence number from
        which on there may be more. That one is not always noted down, unless it goes `to_the_end`."""
        undropped = await self._store.get(Undropped, conversation_id)
        if undropped is None:
            return 0
        reach = await self._reach(conversation_id, undropped.sequence)
        too_old = self._clock.now() - self._days * DAY
        position, ahead = undropped.sequence - 1, undropped.ahead
        while True:
            entries = await read_log(
                self._store, conversation_id, after=position, limit=limits.CIPHERTEXT_ENTRIES_PER_STEP
            )
            some = list(takewhile(lambda each: each.sequence <= reach.all or each.event.at <= too_old, entries))
            if some:
                position = some[-1].sequence
                is_noted = to_the_end or len(some) == limits.CIPHERTEXT_ENTRIES_PER_STEP
                await self._drop(conversation_id, some, position + 1, ahead, is_noted=is_noted)
            if len(some) < limits.CIPHERTEXT_ENTRIES_PER_STEP:
                break
        is_clear = ahead <= position  # nothing that has to stay was seen behind `position`
        ahead = max(position, ahead)
        while ahead < reach.others:
            entries = await read_log(
                self._store, conversation_id, after=ahead, limit=limits.CIPHERTEXT_ENTRIES_PER_STEP
            )
            some = [entry for entry in entries if entry.sequence <= reach.others]
            if not some:
                break
            ahead = some[-1].sequence
            is_noted = to_the_end or len(some) == limits.CIPHERTEXT_ENTRIES_PER_STEP
            covered = [entry for entry in some if reach.covers(entry)]
            is_clear = is_clear and all(reach.covers(entry) or _sealed_of(entry) is None for entry in some)
            position = ahead if is_clear else position
            await self._drop(conversation_id, covered, position + 1, ahead, is_noted=is_noted)
        return position + 1

    async def _drop(
        self, conversation_id: str, entries: Sequence[LogEntry], position: int, ahead: int, *, is_noted: bool
    ) -> None:
        """Drops the bodies of these entries and notes down how far it came; where there is none, only if that is worth a
        write: else a few entries are looked at again."""
        full = [entry for entry in entries if (content := _sealed_of(entry)) is not None and content.body]
        if full or is_noted:
            await self._store.write(_dropping(conversation_id, full, position, ahead))
        await trio.lowlevel.checkpoint()

    async def _reach(self, conversation_id: str, first: int) -> _Reach:
        """How far the devices of the conversation have acknowledged it; not looked for where that is short of `first`."""
        head = await self._store.get(Head, conversation_id)
        end = 0 if head is None else head.sequence
        await self._device_lists.prepare(self._store, conversation_id)

        async def change(tx: Transaction) -> DeviceList:
            return await self._device_lists.of(tx, conversation_id)

        lowest, second, laggard, joined = end, end, "", dict[str, int]()
        for number, device in enumerate((await self._store.write(change)).devices):
            if number % _MARKS_PER_STEP == _MARKS_PER_STEP - 1:
                await trio.lowlevel.checkpoint()
            if (user_id := device.user_id) not in joined:
                member = await self._store.get(Member, conversation_id, user_id)
                joined[user_id] = end if member is None else member.joined_sequence
            delivery = await self._store.get(Delivery, conversation_id, user_id, device.device_id)
            mark = max(joined[user_id], 0 if delivery is None else delivery.sequence)
            if mark < lowest:
                lowest, second, laggard = mark, lowest, device.device_id
            else:
                second = min(second, mark)
            if second < first:
                break
        return _Reach(lowest, second, laggard)

    # --- envelopes ---------------------------------------------------------------------------------------------------

    async def forget_envelopes(self, conversation_id: str, sequences: Sequence[int]) -> None:
        """What a `Due` "forget-envelopes" asks for: those of messages that are gone, whomever they were for."""
        device_id: str | None = None
        while found := await self._store.scan(Envelope, conversation_id, after=device_id, limit=1):
            device_id = found[0].device_id
            await self._store.write(_forgetting(conversation_id, device_id, sequences))

    async def forget_device(self, user_id: str, device_id: str) -> None:
        """What a `Due` "forget-device" asks for: all that waits for a device that was removed, and is not back."""
        if await self._store.get(Device, user_id, device_id) is not None:
            return
        after: str | None = None
        while page := await self._store.scan(Membership, user_id, after=after, limit=_PAGE):
            for each in page:
                await self._forget_before(each.conversation_id, device_id, limits.SEQUENCE_MAX)
                await trio.lowlevel.checkpoint()
            after = page[-1].conversation_id

    async def _forget_left(self, conversation_id: str, position: int) -> None:
        """Envelopes before `position`: their devices have them, do not count any more, or had them for too long."""
        device_id: str | None = None
        while found := await self._store.scan(Envelope, conversation_id, after=device_id, limit=1):
            device_id = found[0].device_id
            await self._forget_before(conversation_id, device_id, position)

    async def _forget_before(self, conversation_id: str, device_id: str, position: int) -> None:
        while rows := await self._store.scan(
            Envelope, conversation_id, device_id, before=position, limit=limits.LARGE_ROWS_PER_STEP
        ):
            await self._store.write(_forgetting(conversation_id, device_id, [row.sequence for row in rows]))


# --- parts of changes ------------------------------------------------------------------------------------------------


async def forget_acknowledged(
    tx: Transaction, conversation_id: str, device_id: str, sequence: int, limit: int = limits.ENVELOPES_ERASED_MAX
) -> int:
    """Deletes at most `limit` envelopes of a device up to `sequence`; returns how many. What is left goes with the next
    mark of the device, or in a sweep."""
    found = await tx.scan(Envelope, conversation_id, device_id, before=sequence + 1, limit=limit) if limit > 0 else []
    for envelope in found:
        tx.delete(Envelope, conversation_id, device_id, envelope.sequence)
    return len(found)


async def forget_member(tx: Transaction, conversation: Conversation, user_id: str) -> None:
    """Deletes what waits for the devices of somebody who is no member any more."""
    if conversation.encryption != "e2ee":
        return
    room = limits.ENVELOPES_ERASED_MAX
    for device in await tx.scan(Device, user_id, limit=limits.DEVICES_PER_USER_MAX):
        room -= await forget_acknowledged(
            tx, conversation.conversation_id, device.device_id, limits.SEQUENCE_MAX, limit=room
        )


def forget_message(tx: Transaction, entry: LogEntry, message: Message) -> None:
    """Deletes the envelopes of a message that is on its way out: a few at once, more of them a moment later."""
    if not isinstance(message.content, Sealed):
        return
    devices = message.content.devices
    for device_id in devices[: limits.ERASED_ROWS_MAX]:
        tx.delete(Envelope, entry.conversation_id, device_id, entry.sequence)
    if len(devices) > limits.ERASED_ROWS_MAX:
        tx.put(Due(_AT_ONCE, FORGET_ENVELOPES, entry.conversation_id, entry.sequence))


def note_removed(tx: Transaction, device: Device) -> None:
    """What waits for a device that was removed is deleted a moment later."""
    tx.put(Due(_AT_ONCE, FORGET_DEVICE, device.device_id, 0, device.user_id))


def _sealed_of(entry: LogEntry) -> Sealed | None:
    event = entry.event
    content = event.content if isinstance(event, Said) else None
    return content if isinstance(content, Sealed) else None


def _sender_of(entry: LogEntry) -> str:
    return entry.event.device_id if isinstance(entry.event, Said) else ""


def _dropping(
    conversation_id: str, entries: Sequence[LogEntry], position: int, ahead: int
) -> Callable[[Transaction], Awaitable[None]]:
    """The change that takes the bodies out of these entries, as they are by then, and says from where on there is more."""

    async def change(tx: Transaction) -> None:
        for each in entries:
            entry = await tx.get(type(each), conversation_id, each.sequence)
            content = None if entry is None else _sealed_of(entry)
            if entry is not None and content is not None and content.body:
                emptied = structs.replace(entry.event, content=structs.replace(content, body=b""))
                tx.put(structs.replace(entry, event=emptied))
        if await tx.get(Undropped, conversation_id) is not None:
            tx.put(Undropped(conversation_id, position, ahead))

    return change


def _closing(conversation_id: str, position: int) -> Callable[[Transaction], Awaitable[None]]:
    """The change that forgets a conversation if there is nothing from `position` on: the next message says it again."""

    async def change(tx: Transaction) -> None:
        head = await tx.get(Head, conversation_id)
        if head is None or head.sequence < position:
            tx.delete(Undropped, conversation_id)

    return change


def _forgetting(
    conversation_id: str, device_id: str, sequences: Sequence[int]
) -> Callable[[Transaction], Awaitable[None]]:
    async def change(tx: Transaction) -> None:
        for sequence in sequences:
            tx.delete(Envelope, conversation_id, device_id, sequence)

    return change
