"""Hearing what is said in an encrypted conversation: opened, kept, and told, each letter once.

A letter is opened and kept in one transaction, so what was opened is never lost and never opened twice; what comes again
after a crash is told from what is kept. What cannot be opened is kept as such, counted, and asked for again. A letter is
believed to be from the device whose session or sender key opened it, and from no other.
"""

from collections.abc import Callable
from typing import Final, TypeVar

import trio
from msgspec import UNSET, structs

from gearlink import protocol
from gearlink.sdk.e2ee import letters
from gearlink.sdk.e2ee.certificates import verify_certificate
from gearlink.sdk.e2ee.encoding import from_base64url, to_base64url
from gearlink.sdk.e2ee.letters import (
    AnyLetter,
    Duplicate,
    Edit,
    Letter,
    Message,
    Reaction,
    Reason,
    Resend,
    ResendRequest,
    SenderKeyGiven,
    Undecryptable,
    UnknownLetter,
)
from gearlink.sdk.e2ee.records import Kept, KeptIndex, Peer, PeerDevice, Since, Tally
from gearlink.sdk.e2ee.sessions import Envelope
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.failures import Refused, Unreachable
from gearlink.sdk.inbox import Event
from gearlink.sdk.options import Backoff
from gearlink.sdk.outbox import Sent
from gearlink.sdk.secure import counting, history, repairs
from gearlink.sdk.secure.company import Companies, may_speak
from gearlink.sdk.secure.own_device import Device, era_of, free_era, milliseconds, timestamp
from gearlink.sdk.secure.posting import Posting
from gearlink.sdk.secure.told import OpenedMessage, Recovered, Suspicion, Suspicious
from gearlink.views import DoubleRatchetView, MessageView, SenderKeyView

Numbered = Message | Edit | Reaction
Told = Event | Recovered
T = TypeVar("T")
OnRequest = Callable[[MessageView, ResendRequest], None]
"""Told of what other devices ask for: they are answered elsewhere, and not while events wait."""
SILENT: Final = frozenset({"key-distribution", "control"})

_REPEATED: Final = -1  # in place of an era: it is kept as another message


class _Known(Exception):
    """This came before. `message` is what of it is to be shown."""

    def __init__(self, message: OpenedMessage | None) -> None:
        self.message = message


class Receiving:
    """What this device hears. `on_request` hears of resend-request letters; a link letter comes in an archive alone."""

    def __init__(self, device: Device, companies: Companies, posting: Posting, on_request: OnRequest) -> None:
        self._device, self._companies, self._posting, self._on_request = device, companies, posting, on_request
        self._is_wanting = False
        self._noticed: list[Suspicious] = []  # what is told once it is certain, and from the loop

    def take_wanting(self) -> bool:
        """Whether there is something to ask others for since this was asked last."""
        was_wanting, self._is_wanting = self._is_wanting, False
        return was_wanting

    async def message(self, view: MessageView) -> Told | None:
        """What is to be told of a message of an encrypted conversation; None if nobody needs to know."""
        try:
            return await self._message(view)
        except (Duplicate, counting.Replayed):
            self._suspect("replayed", view)
            await self._write(lambda tx: _pass_over(tx, view.id))
            return None
        finally:
            noticed, self._noticed = self._noticed, []
            self._device.tell(*noticed)

    async def _write(self, change: Callable[[Tx], T]) -> T:
        """A transaction in which something may be noticed: if it does not happen, nothing was."""
        before = len(self._noticed)
        try:
            return await self._device.write(change)
        except BaseException:
            del self._noticed[before:]
            raise

    async def _message(self, view: MessageView) -> Told | None:
        device = self._device
        if view.sender_device_id == device.own.device_id:
            await self._own(view)
            _is_known, known = await device.read(lambda tx: self._known(tx, view.id))
            return self._again(view, known)
        if _is_for_others(view):
            return None
        if isinstance(view.deleted_at, str) or view.encrypted is UNSET:
            return await self._without_letter(view)
        try:
            told, letter = await self._opened(view)
        except _Known as before:
            return self._again(view, before.message)
        except Undecryptable as trouble:
            return await self._failed(view, trouble.reason)
        await self._look_at_roster(view, letter)
        if isinstance(letter, ResendRequest):
            self._on_request(view, letter)
        return told

    async def _without_letter(self, view: MessageView) -> Told | None:
        """What the server shows without a ciphertext: it was deleted, or the server says what nobody has said."""
        is_known, known = await self._device.read(lambda tx: self._known(tx, view.id))
        if is_known:
            return self._again(view, known)
        if isinstance(view.deleted_at, str):
            return await self._write(lambda tx: self._tombstone(tx, view))
        self._suspect("plain", view)
        return None

    async def is_known(self, view: MessageView) -> bool:
        """Whether this message came before."""
        return await self._device.read(lambda tx: tx.get(KeptIndex, view.id) is not None)

    # --- opening -----------------------------------------------------------------------------------------------------

    async def _opened(self, view: MessageView) -> tuple[Told | None, Letter | None]:
        """Tries with what is known of the sender, then with what the server says now, and at last with what the letter
        itself shows: the device may be gone by now."""
        try:
            return await self._write(lambda tx: self._open(tx, view))
        except Undecryptable as trouble:
            if trouble.reason != "unknown-device":
                raise
        is_ours = await self._ask_for(view.conversation_id)
        try:
            return await self._write(lambda tx: self._open(tx, view))
        except Undecryptable as trouble:
            if trouble.reason != "unknown-device":
                raise
        await self._meet(view)
        try:
            return await self._write(lambda tx: self._open(tx, view, introduced=True))
        except Undecryptable as trouble:
            if is_ours or trouble.reason != "unknown-device":
                raise
        return None, None  # the user was put out meanwhile: nobody says any more whose device it is

    async def _ask_for(self, conversation_id: str) -> bool:
        """Learns who the devices are now; whether the server tells. The letter waits for as long as it cannot be reached."""
        self._companies.forget(conversation_id)
        backoff = Backoff(self._device.client.options)
        while True:
            try:
                await self._companies.of(conversation_id)
            except Unreachable as trouble:
                await trio.sleep(backoff.next(trouble.retry_after_seconds))
            except Refused as refused:
                if not refused.retryable:
                    return False
                await trio.sleep(backoff.next(refused.retry_after_seconds))
            else:
                return True

    async def _meet(self, view: MessageView) -> None:
        backoff = Backoff(self._device.client.options)
        while True:
            try:
                await self._companies.meet(view.conversation_id, view.sender_id)
            except Unreachable as trouble:
                await trio.sleep(backoff.next(trouble.retry_after_seconds))
            else:
                return

    def _open(self, tx: Tx, view: MessageView, *, introduced: bool = False) -> tuple[Told | None, Letter | None]:
        is_known, known = self._known(tx, view.id)  # here, so that a message takes one transaction
        if is_known:
            try:
                return self._open_again(tx, view)
            except (Undecryptable, Duplicate, counting.Replayed):
                raise _Known(known) from None
        letter = self._decrypt(tx, view, introduced=introduced)
        if letter.conversation_id != view.conversation_id:
            raise Undecryptable("misdirected")
        kept = self._note(tx, view)
        if isinstance(letter, UnknownLetter):
            return None, None  # of a later release
        if letters.wire_kind(letter) != view.kind:
            raise Undecryptable("misdirected")  # what is shown to people is no message between devices, nor the reverse
        return self._apply(tx, kept, letter), letter

    def _open_again(self, tx: Tx, view: MessageView) -> tuple[Told | None, Letter | None]:
        """What could not be read comes again, perhaps behind its key. Raises Undecryptable, Duplicate, Replayed."""
        kept = history.find(tx, view.id)
        if kept is None or not kept.trouble or kept.letter or kept.deleted_at:
            raise Duplicate
        if (kept.sender_id, kept.sender_device_id) != (view.sender_id, view.sender_device_id):
            raise Duplicate
        letter = self._decrypt(tx, view, introduced=False)
        if letter.conversation_id != view.conversation_id or not isinstance(letter, Numbered):
            raise Duplicate
        return _recovered(self._apply(tx, structs.replace(kept, trouble=""), letter)), letter

    def _decrypt(self, tx: Tx, view: MessageView, *, introduced: bool) -> AnyLetter:
        user_id, device_id, now = view.sender_id, view.sender_device_id or "", self._device.now()
        cipher, encrypted = self._device.cipher, view.encrypted
        if not may_speak(tx, view.conversation_id, user_id, self._device.own.user_id):
            raise Undecryptable("unknown-device")
        if isinstance(encrypted, SenderKeyView):
            if encrypted.body is None:
                raise Undecryptable("expired")
            key_id, body = _bytes(encrypted.key_id), _bytes(encrypted.body)
            return letters.decode(cipher.open_group(tx, view.conversation_id, user_id, device_id, key_id, body, now))
        assert isinstance(encrypted, DoubleRatchetView)
        if not encrypted.envelopes:
            raise Undecryptable("no-envelope")
        first = encrypted.envelopes[0]
        envelope = Envelope(first.type, _bytes(first.body))
        if not introduced:
            return letters.decode(cipher.open(tx, user_id, device_id, envelope, now))
        identity_key = cipher.identity_in(envelope)
        tx.put(PeerDevice(user_id, device_id, identity_key, b"", now, gone_at=now))
        letter = letters.decode(cipher.open(tx, user_id, device_id, envelope, now))
        _check_introduction(tx, user_id, device_id, identity_key, letter)
        return letter

    def _note(self, tx: Tx, view: MessageView, trouble: str = "") -> Kept:
        """The message as a record without a letter; that it came is remembered."""
        era = free_era(
            tx, view.conversation_id, era_of(tx, self._device.epoch, self._device.now()), view.sequence_number
        )
        if era is None:
            raise counting.Replayed  # the server gives one number to one message after the other
        kept = Kept(
            view.conversation_id, era, view.sequence_number, view.id, view.sender_id, view.sender_device_id or "",
            milliseconds(view.created_at), "control" if view.kind in SILENT else "text", b"", trouble=trouble,
            expires_at=milliseconds(view.expires_at) if isinstance(view.expires_at, str) else 0,
        )  # fmt: skip
        tx.put(KeptIndex(view.id, view.conversation_id, era, view.sequence_number))
        return kept

    # --- what a letter says ------------------------------------------------------------------------------------------

    def _apply(self, tx: Tx, kept: Kept, letter: Letter) -> Told | None:
        if isinstance(letter, Numbered):
            missing, is_strange = counting.opened(tx, kept.conversation_id, kept.sender_device_id, letter.count)
            repairs.settled(tx, kept, letter)
            if missing:
                repairs.wanted_numbers(tx, kept, missing, self._device.now())
                self._is_wanting = True
            if is_strange:
                self._suspect_missing(kept)
        if isinstance(letter, Message):
            if isinstance(letter.expires_in_seconds, int):
                own_time = kept.created_at + letter.expires_in_seconds * 1000
                kept = structs.replace(kept, expires_at=min(kept.expires_at or own_time, own_time))
            history.note_expiry(tx, kept)
            kept = structs.replace(kept, letter=letters.to_json(letter), trouble="", count=letter.count)
            kept = history.catch_up(tx, kept)
            return protocol.MessageNew(message=history.view(tx, kept, self._device.own.user_id))
        if isinstance(letter, Edit | Reaction):
            return self._amended(tx, kept, letter)
        if isinstance(letter, SenderKeyGiven):
            self._device.cipher.take_sender_key(
                tx, kept.conversation_id, kept.sender_id, kept.sender_device_id, letter, self._device.now()
            )
            self._is_wanting = True
            repairs.hurry(tx, kept.conversation_id, kept.sender_device_id, self._device.now())
        if isinstance(letter, Resend):
            return self._resent(tx, kept, letter)
        return None

    def _amended(self, tx: Tx, event: Kept, letter: Edit | Reaction) -> Told | None:
        target = history.amend(tx, event, letter)
        if target is None:
            return None
        message = history.view(tx, target, self._device.own.user_id)
        conversation_id, sequence, at = event.conversation_id, event.sequence, timestamp(event.created_at)
        if isinstance(letter, Edit):
            return protocol.MessageEdited(
                conversation_id=conversation_id, sequence_number=sequence, message_id=message.id, user_id=event.sender_id,
                at=at, content=message.content, edited_at=at, message=message,
            )  # fmt: skip
        form = protocol.ReactionAdded if letter.added else protocol.ReactionRemoved
        return form(
            conversation_id=conversation_id, sequence_number=sequence, message_id=message.id, user_id=event.sender_id,
            at=at, emoji=letter.emoji, reactions=message.reactions,
        )  # fmt: skip

    def _resent(self, tx: Tx, event: Kept, resend: Resend) -> Told | None:
        """A letter that could not be read before, or never came, from the device that sent it first."""
        letter = letters.from_json(resend.letter)
        if not isinstance(letter, Numbered) or letter.conversation_id != event.conversation_id:
            return None
        target = history.find(tx, resend.message_id)
        if target is None:
            index = tx.get(KeptIndex, resend.message_id)
            if index is not None and index.era != _REPEATED:
                return None  # it has disappeared meanwhile
            target = repairs.missing(tx, event, resend, letter)
        if target is None or target.letter or target.deleted_at:
            return None
        if (target.sender_id, target.sender_device_id) != (event.sender_id, event.sender_device_id):
            return None
        return _recovered(self._apply(tx, structs.replace(target, trouble=""), letter))

    # --- what is wrong -----------------------------------------------------------------------------------------------

    async def _failed(self, view: MessageView, reason: Reason) -> Told | None:
        if not self._device.own.since_noted:
            return None  # it is being linked: what can be read already was for it, what cannot was from before
        if not self._device.is_linked:
            return None  # it was not for this device, and nobody would believe what it asks for
        return await self._write(lambda tx: self._fail(tx, view, reason))

    def _fail(self, tx: Tx, view: MessageView, reason: Reason) -> Told | None:
        if self._was_before(tx, view):
            return None  # it was not for this device
        kept = self._note(tx, view, reason)
        tx.put(kept)
        counting.unopened(tx, kept.conversation_id, kept.sender_device_id, failed=True)
        tally = tx.get(Tally, reason) or Tally(reason, 0)
        tx.put(structs.replace(tally, count=tally.count + 1))
        peer = tx.get(Peer, view.sender_id)
        waits = reason == "unknown-device" and peer is not None and bool(peer.changed_at)
        if reason in ("misdirected", "unknown-device") and not waits:  # that somebody changed was told already
            self._suspect(reason, view)
        repairs.wanted(tx, kept, view, reason, self._device.now(), waits=waits)
        self._is_wanting = True
        if kept.kind != "text":
            return None
        return protocol.MessageNew(message=history.view(tx, kept, self._device.own.user_id))

    def _was_before(self, tx: Tx, view: MessageView) -> bool:
        """Whether it was said before this device counted. A server that was restored has the old messages under their old
        numbers, and new ones under the same, which are younger."""
        return any(
            view.sequence_number <= since.sequence
            and (since.epoch == self._device.epoch or milliseconds(view.created_at) <= since.at)
            for since in tx.scan(Since, view.conversation_id)
        )

    def _tombstone(self, tx: Tx, view: MessageView) -> Told | None:
        """A message that was deleted before this device saw it."""
        kept = self._note(tx, view)
        at = milliseconds(view.deleted_at) if isinstance(view.deleted_at, str) else kept.created_at
        tx.put(structs.replace(kept, deleted_at=at))
        counting.unopened(tx, kept.conversation_id, kept.sender_device_id)
        return protocol.MessageNew(message=view) if kept.kind == "text" else None

    def _suspect(self, code: Suspicion, view: MessageView) -> None:
        self._noticed.append(
            Suspicious(
                code=code,
                conversation_id=view.conversation_id,
                user_id=view.sender_id,
                device_id=view.sender_device_id or "",
            )
        )

    def _suspect_missing(self, kept: Kept) -> None:
        self._noticed.append(
            Suspicious(
                code="missing",
                conversation_id=kept.conversation_id,
                user_id=kept.sender_id,
                device_id=kept.sender_device_id,
            )
        )

    async def _look_at_roster(self, view: MessageView, letter: Letter | None) -> None:
        """Somebody knows a newer roster than this device: the server has it too, or it hides it."""
        mark = getattr(letter, "roster", UNSET)
        if mark is UNSET or mark is None:
            return
        for _look in range(2):
            known = await self._companies.roster_hash(view.conversation_id, mark.version)
            if known is not None:
                if to_base64url(known) != mark.hash:
                    self._suspect("roster-fork", view)
                return
            if not await self._ask_for(view.conversation_id):
                return  # it is not ours any more
        self._suspect("roster-rollback", view)

    # --- one's own ---------------------------------------------------------------------------------------------------

    async def _own(self, view: MessageView) -> None:
        """A message of this device whose answer was lost."""
        if isinstance(view.temp_id, str):
            sent = Sent(view.id, view.sequence_number, view.created_at, view.temp_id)
            await self._posting.settle(view.conversation_id, view.temp_id, sent)

    def _known(self, tx: Tx, message_id: str) -> tuple[bool, OpenedMessage | None]:
        """Whether this message came before, and what of it is to be shown."""
        if tx.get(KeptIndex, message_id) is None:
            return False, None
        kept = history.find(tx, message_id)
        is_shown = kept is not None and kept.kind == "text"
        return True, history.view(tx, kept, self._device.own.user_id) if kept is not None and is_shown else None

    def _again(self, view: MessageView, known: OpenedMessage | None) -> Told | None:
        """What came before comes again after a crash, in its old place."""
        if known is None:
            return None
        if known.sequence_number != view.sequence_number:
            self._suspect("replayed", view)
            return None
        return protocol.MessageNew(message=known)


def _pass_over(tx: Tx, message_id: str) -> None:
    """What was said before, perhaps by a device that a restored server did not answer, is not asked for when its ciphertext
    has gone."""
    if tx.get(KeptIndex, message_id) is None:
        tx.put(KeptIndex(message_id, "", _REPEATED, 0))


def _recovered(told: Told | None) -> Told | None:
    """A message that could not be read when it came."""
    if isinstance(told, protocol.MessageNew):
        assert isinstance(told.message, OpenedMessage)
        return Recovered(message=told.message)
    return told


def _is_for_others(view: MessageView) -> bool:
    """What devices say to one another is not for all; a letter of people that has no envelope for this one is trouble."""
    return view.kind in SILENT and isinstance(view.encrypted, DoubleRatchetView) and not view.encrypted.envelopes


def _bytes(text: str) -> bytes:
    try:
        return from_base64url(text)
    except ValueError:
        raise Undecryptable("bad-message") from None


def _check_introduction(tx: Tx, user_id: str, device_id: str, identity_key: bytes, letter: AnyLetter) -> None:
    """The letter shows who its device is: as its user certified it, while there was somebody to ask."""
    peer = tx.get(Peer, user_id)
    shown = getattr(letter, "certificate", UNSET)
    certificate = _bytes(shown) if isinstance(shown, str) else b""
    if peer is None or not peer.account_key or peer.changed_at:
        raise Undecryptable("unknown-device")
    if not verify_certificate(peer.account_key, user_id, device_id, identity_key, certificate):
        raise Undecryptable("unknown-device")
