"""What could not be read repairs itself: it is asked for again, and others are answered, without a person.

A request goes to the device that sent the letter, on a session that is begun anew where the old one may be broken. It is
answered from the history of who sent it, and only to a device that the letter was for. Requests that nobody answers are
repeated ever more seldom and given up in the end. What is asked and answered at once is bounded.
"""

import contextlib
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from typing import Final

import trio
from msgspec import UNSET, structs

from gearlink.sdk.e2ee import letters
from gearlink.sdk.e2ee.encoding import from_base64url, to_base64url
from gearlink.sdk.e2ee.letters import Numbered, Reason, Resend, ResendRequest
from gearlink.sdk.e2ee.records import Epoch, Kept, KeptIndex, OwnCount, OwnSenderKey, Repair, Tally
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.failures import Refused, Unreachable
from gearlink.sdk.secure import history
from gearlink.sdk.secure.company import Companies
from gearlink.sdk.secure.groups import Groups
from gearlink.sdk.secure.own_device import Device, era_named, milliseconds, timestamp
from gearlink.sdk.secure.posting import Posting
from gearlink.views import MessageView, SenderKeyView

WAITS_MS: Final = (0, 10_000, 60_000, 600_000, 3_600_000, 6 * 3_600_000, 24 * 3_600_000)
"""Before each request for the same letter; after the last one it is given up."""
REPAIRABLE: Final[frozenset[Reason]] = frozenset(
    {"no-session", "unknown-pre-key", "bad-message", "no-sender-key", "bad-signature", "no-envelope", "expired"}
)
BROKEN_SESSION: Final[frozenset[str]] = frozenset({"no-session", "unknown-pre-key", "bad-message"})
NEVER: Final = 2**62  # of `Repair.next_at`: not before somebody was accepted
MISSING: Final = "missing"  # in place of a reason: it never came
ANSWERS_MAX: Final = 1000  # requests of others that wait, and of one device in an hour; who is passed over asks again
ANSWERS_AT_ONCE: Final = 50  # before this device asks itself
ANSWERS_MS: Final = 3_600_000
ANEW_MS: Final = 60_000  # between two new sessions with one device, however much of it cannot be read
REPAIRS_MAX: Final = 2000  # letters of one device that are asked for
NUMBERS_MAX: Final = 50  # missing letters of one device that are asked for at once
LOOK_SECONDS: Final = 5.0
REPORT_MS: Final = 3_600_000


# --- what is to be asked for -----------------------------------------------------------------------------------------


def wanted(tx: Tx, kept: Kept, view: MessageView, reason: Reason, now: int, *, waits: bool = False) -> None:
    """This message could not be read: it is to be asked for; if it `waits`, once its sender's identity was accepted."""
    theirs = sum(each.device_id == kept.sender_device_id for each in tx.scan(Repair))
    if (reason in REPAIRABLE or waits) and theirs < REPAIRS_MAX:
        key_id = from_base64url(view.encrypted.key_id) if isinstance(view.encrypted, SenderKeyView) else b""
        tx.put(
            Repair(
                kept.message_id, kept.conversation_id, kept.sender_id, kept.sender_device_id, reason, 0,
                NEVER if waits else now, key_id=key_id, kind=view.kind,
            )
        )  # fmt: skip


def wanted_numbers(tx: Tx, kept: Kept, missing: Sequence[int], now: int) -> None:
    """Letters of these numbers never came from the device that `kept` is from."""
    for count in missing[-NUMBERS_MAX:]:
        subject = _subject(kept.conversation_id, kept.sender_device_id, count)
        repair = Repair(
            subject, kept.conversation_id, kept.sender_id, kept.sender_device_id, MISSING, 0, now, count=count
        )
        tx.put(repair)


def accepted(tx: Tx, user_id: str, now: int) -> None:
    """A person has accepted who this user is now: what they said since is asked for."""
    for repair in tx.scan(Repair):
        if repair.user_id == user_id and repair.next_at == NEVER:
            tx.put(structs.replace(repair, next_at=now))


def hurry(tx: Tx, conversation_id: str, device_id: str, now: int) -> None:
    """A key of this device came: what waits for it is asked for now, and the key itself no more."""
    for repair in tx.scan(Repair):
        if (repair.conversation_id, repair.device_id) != (conversation_id, device_id):
            continue
        if repair.kind == "key-distribution":
            tx.delete(Repair, repair.subject)
        elif repair.reason == "no-sender-key":
            tx.put(structs.replace(repair, next_at=min(repair.next_at, now)))


def missing(tx: Tx, event: Kept, resend: Resend, letter: Numbered) -> Kept | None:
    """The place in the history of a letter that never came, if it was asked for. It may be of an epoch that this device
    slept through: a server that was put back twice."""
    subject = _subject(event.conversation_id, event.sender_device_id, letter.count)
    if tx.get(Repair, subject) is None:
        return None
    at = milliseconds(resend.created_at)
    era = era_named(tx, resend.epoch, at)
    if era is None or tx.get(Kept, event.conversation_id, era, resend.sequence_number) is not None:
        return None
    kept = Kept(
        event.conversation_id, era, resend.sequence_number, resend.message_id,
        event.sender_id, event.sender_device_id, at, letters.wire_kind(letter), b"",
    )  # fmt: skip
    tx.put(KeptIndex(kept.message_id, kept.conversation_id, kept.era, kept.sequence))
    return kept


def settled(tx: Tx, target: Kept, letter: Numbered) -> None:
    """It is here now: nobody asks any more."""
    tx.delete(Repair, target.message_id)
    tx.delete(Repair, _subject(target.conversation_id, target.sender_device_id, letter.count))


def _subject(conversation_id: str, device_id: str, count: int) -> str:
    return f"{conversation_id}/{device_id}/{count}"


# --- asking and answering --------------------------------------------------------------------------------------------


class Repairs:
    """Asks for what is wanted, answers others, and reports how often it was needed. Owned by one task: `run`."""

    def __init__(self, device: Device, companies: Companies, posting: Posting, groups: Groups) -> None:
        self._device, self._companies, self._posting, self._groups = device, companies, posting, groups
        self._requests: deque[tuple[MessageView, ResendRequest]] = deque(maxlen=ANSWERS_MAX)
        self._left: deque[tuple[str, str]] = deque(maxlen=ANSWERS_MAX)
        self._wake = trio.Event()
        self._reported_at = 0
        self._asked: Counter[str] = Counter()  # by whom, since `_asked_since`
        self._asked_since = 0
        self._anew_at: dict[str, int] = {}

    def requested(self, view: MessageView, letter: ResendRequest) -> None:
        """Somebody asks this device for a letter."""
        now, device_id = self._device.now(), view.sender_device_id or ""
        if not 0 <= now - self._asked_since < ANSWERS_MS:
            self._asked.clear()
            self._asked_since = now
        if self._asked[device_id] < ANSWERS_MAX:
            self._asked[device_id] += 1
            self._requests.append((view, letter))
            self._wake.set()

    def left(self, conversation_id: str, user_id: str) -> None:
        """Somebody left a group: if this device may, it signs them out."""
        self._left.append((conversation_id, user_id))
        self._wake.set()

    def look(self) -> None:
        """There may be something to ask for."""
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it is cancelled. What the network prevents is tried again."""
        task_status.started()
        while True:
            with contextlib.suppress(Refused, Unreachable):  # it stays in the vault, or the other side asks again
                await self.step()
            with trio.move_on_after(LOOK_SECONDS):
                await self._wake.wait()
            self._wake = trio.Event()

    async def step(self) -> None:
        """Answers what was asked, asks for what is due, and reports. Raises Refused, Unreachable."""
        if not self._device.is_linked:
            return  # nobody would know who asks
        for _number in range(min(len(self._requests), ANSWERS_AT_ONCE)):
            await self._answer(*self._requests.popleft())
        while self._left:
            await self._sign_out(*self._left.popleft())
        now = self._device.now()
        await self._device.write(lambda tx: history.expire_due(tx, now))
        due = await self._device.read(lambda tx: [each for each in tx.scan(Repair) if each.next_at <= now])
        for repair in due:
            await self._ask(repair)
        await self._report(now)
        if self._requests:
            self._wake.set()

    async def _ask(self, repair: Repair) -> None:
        address = (repair.user_id, repair.device_id)
        later = repair.tries + 1 < len(WAITS_MS)
        next_at = self._device.now() + WAITS_MS[repair.tries + 1] if later else 0
        again = structs.replace(repair, tries=repair.tries + 1, next_at=next_at)

        def note(tx: Tx) -> None:
            if tx.get(Repair, repair.subject) is None:
                return  # it came meanwhile
            if later:
                tx.put(again)
            else:
                tx.delete(Repair, repair.subject)

        await self._device.write(note)
        company = await self._companies.of(repair.conversation_id)
        if address not in company.devices:
            return  # nobody is there to answer, perhaps not for ever
        is_broken = repair.reason in BROKEN_SESSION and not repair.tries and self._may_begin_anew(repair.device_id)
        await self._posting.open_sessions([address], anew=is_broken)
        if is_broken:
            self._anew_at[repair.device_id] = self._device.now()
        letter = ResendRequest(
            conversation_id=repair.conversation_id,
            reason=repair.reason,
            message_id=UNSET if repair.count else repair.subject,
            count=repair.count or UNSET,
            key_id=to_base64url(repair.key_id) if repair.key_id else UNSET,
        )
        await self._posting.whisper(repair.conversation_id, letter, [address])

    def _may_begin_anew(self, device_id: str) -> bool:
        """Whether there was no new session just now: who sends rubbish is not to use up what may be claimed."""
        now = self._device.now()
        self._anew_at = {each: at for each, at in self._anew_at.items() if 0 <= now - at < ANEW_MS}
        return device_id not in self._anew_at

    async def _answer(self, view: MessageView, request: ResendRequest) -> None:
        device, conversation_id = self._device, view.conversation_id
        address = (view.sender_id, view.sender_device_id or "")
        kept = await device.read(
            partial(_asked_for, conversation_id=conversation_id, request=request, own=device.address)
        )
        if isinstance(request.key_id, str) or kept is None:
            await device.write(partial(_ungive, conversation_id=conversation_id, address=address))
            await self._posting.give_key(conversation_id, address)
        if kept is None or address not in kept.audience:
            return
        letter = Resend(
            conversation_id=conversation_id,
            message_id=kept.message_id,
            sequence_number=kept.sequence,
            created_at=timestamp(kept.created_at),
            epoch=await device.read(partial(_epoch_of, era=kept.era)) or device.epoch,
            letter=kept.letter.decode(),
        )
        await self._posting.open_sessions([address])
        await self._posting.whisper(conversation_id, letter, [address])

    async def _sign_out(self, conversation_id: str, user_id: str) -> None:
        """Who left a group is not to come back unless somebody signs them in again."""
        if await self._groups.may_sign_out(conversation_id, user_id):
            await self._groups.sign_out(conversation_id, user_id)

    async def _report(self, now: int) -> None:
        """Numbers without ids, now and then."""
        if now - self._reported_at < REPORT_MS:
            return
        tallies = await self._device.read(lambda tx: tx.scan(Tally))
        counts = {each.reason: each.count - each.reported for each in tallies if each.count > each.reported}
        if counts:
            await self._device.client.report_decryption(counts)
            await self._device.write(partial(_note_report, tallies=tallies))
        self._reported_at = now


def _note_report(tx: Tx, *, tallies: Sequence[Tally]) -> None:
    for reported in tallies:
        tally = tx.get(Tally, reported.reason) or reported
        tx.put(structs.replace(tally, reported=reported.count))


def _asked_for(tx: Tx, *, conversation_id: str, request: ResendRequest, own: tuple[str, str]) -> Kept | None:
    """The letter that this device sent there and that is asked for, if it is still there."""
    message_id = request.message_id
    if isinstance(request.count, int):
        numbered = tx.get(OwnCount, conversation_id, request.count)
        message_id = numbered.message_id if numbered is not None else UNSET
    kept = history.find(tx, message_id) if isinstance(message_id, str) else None
    if kept is None or kept.conversation_id != conversation_id or not kept.letter:
        return None
    return kept if (kept.sender_id, kept.sender_device_id) == own else None


def _ungive(tx: Tx, *, conversation_id: str, address: tuple[str, str]) -> None:
    """Whoever asks for a sender key does not have it."""
    key = tx.get(OwnSenderKey, conversation_id)
    if key is not None and address in key.holders:
        tx.put(structs.replace(key, holders=tuple(each for each in key.holders if each != address)))


def _epoch_of(tx: Tx, *, era: int) -> str:
    return next((each.epoch for each in tx.scan(Epoch) if each.era == era), "")
