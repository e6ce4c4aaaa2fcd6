"""Saying something in an encrypted conversation: for whom, sealed how, and sent until the server has it.

A letter is sealed and put aside in one transaction, so that a message key is used for one text only; what is sent after a
crash is what was put aside. Between two, each device gets its own envelope; in a group the letter is sealed once with the
sender key, which is given first to every device that lacks it. One letter of a conversation goes after the other, because
letters are numbered. If the server says that the devices are others, everything is looked at anew, sealed anew, and sent
under the same tempId.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Literal

import msgspec
import trio
from msgspec import UNSET
from msgspec.structs import replace

from gearlink import calls
from gearlink.protocol import DoubleRatchetForm, EncryptedForm, EnvelopeForm, Send, SenderKeyForm
from gearlink.sdk.e2ee import letters, sender_keys
from gearlink.sdk.e2ee.agreement import BadBundle
from gearlink.sdk.e2ee.encoding import to_base64url
from gearlink.sdk.e2ee.letters import Edit, Letter, Message, Reaction, Undecryptable
from gearlink.sdk.e2ee.records import Count, Kept, KeptIndex, Outgoing, OwnCount, OwnSenderKey, Peer, PeerDevice
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.failures import Refused
from gearlink.sdk.outbox import Sent
from gearlink.sdk.secure.company import Address, Companies, Company
from gearlink.sdk.secure.history import amend, note_expiry
from gearlink.sdk.secure.own_device import Device, era_of, milliseconds
from gearlink.views import DeviceBundle, DeviceRef

Numbered = Message | Edit | Reaction
Scheme = Literal["double-ratchet", "sender-key"]
DEVICES_AT_ONCE: Final = 80  # given a sender key in one message
TRIES_MAX: Final = 6  # of one letter, each after the devices were looked at anew
ENVELOPES_BYTES_MAX: Final = 64 * 1024  # in one message: a frame takes 128 KiB
SPARE_BYTES: Final = 1024  # of a letter: certificate, roster, number, padding
ENVELOPE_OVERHEAD: Final = 420  # of JSON, head and base64url, at most


class Posting:
    """What this device says. `unsent` is set when something was put aside and may wait for `finish`."""

    def __init__(self, device: Device, companies: Companies) -> None:
        self._device, self._companies = device, companies
        self._locks: dict[str, trio.Lock] = {}
        self.unsent = trio.Event()
        self._clear: set[str] = set()  # conversations in which nothing waits to be sent

    # --- letters that people wrote -----------------------------------------------------------------------------------

    async def say(
        self, conversation_id: str, letter: Numbered, temp_id: str, expires_in_seconds: int | None = None
    ) -> Sent:
        """Sends a letter to every device of the conversation, and keeps it. Its `count` is given here. Raises Refused:
        what the server says; and of our own `identity-changed` while a change waits to be accepted, `not-linked`,
        `no-roster`, `invalid-request`, `too-large`."""
        text = _checked(letter)
        async with self._turn(conversation_id):
            await self._finish(conversation_id)
            outgoing = Outgoing(conversation_id, temp_id, text, b"", (), self._device.now(), expires_in_seconds or 0)
            return await self._deliver(outgoing)

    async def finish(self) -> None:
        """Sends what was put aside before a crash. Raises Unreachable, and Refused for what another try may change."""
        self.unsent = trio.Event()
        waiting = await self._device.read(lambda tx: tx.scan(Outgoing))
        for conversation_id in dict.fromkeys(each.conversation_id for each in waiting):
            async with self._turn(conversation_id):
                await self._finish(conversation_id)

    async def _finish(self, conversation_id: str) -> None:
        if conversation_id in self._clear:
            return
        waiting = await self._device.read(lambda tx: tx.scan(Outgoing, conversation_id))
        for outgoing in sorted(waiting, key=lambda each: each.made_at):
            try:
                await self._deliver(outgoing)
            except Refused as refused:  # for good: nothing else has to wait for it
                if refused.retryable:
                    raise
        self._clear.add(conversation_id)

    def _turn(self, conversation_id: str) -> trio.Lock:
        return self._locks.setdefault(conversation_id, trio.Lock())

    async def _deliver(self, outgoing: Outgoing) -> Sent:
        is_clear = outgoing.conversation_id in self._clear
        self._clear.discard(outgoing.conversation_id)
        try:
            sent = await self._sent(outgoing)
        except BaseException:
            self.unsent.set()  # it may still be there, and nobody else may come by
            raise
        if is_clear:  # whatever else comes of it is looked for before the next letter
            self._clear.add(outgoing.conversation_id)
        return sent

    async def _sent(self, outgoing: Outgoing) -> Sent:
        conversation_id = outgoing.conversation_id
        for _try in range(TRIES_MAX):
            if not outgoing.form:
                try:
                    outgoing = await self._sealed(outgoing)
                except Refused as refused:
                    if not refused.retryable:
                        await self._take_back(outgoing)  # who is told that it was not sent may say it again
                    raise
            try:
                sent = await self._submit(msgspec.json.decode(outgoing.form, type=Send))
            except Refused as refused:
                if refused.code != "stale-devices":
                    await self._take_back(outgoing)
                    raise
                await self._renew(conversation_id, refused)
                outgoing = replace(outgoing, form=b"")
            else:
                await self.settle(conversation_id, outgoing.temp_id, sent)
                return sent
        await self._take_back(outgoing)
        raise Refused("stale-devices", 409, "The devices of this conversation change faster than one can write")

    async def _sealed(self, outgoing: Outgoing) -> Outgoing:
        room = await self._companies.conversation(outgoing.conversation_id)
        if room.type == "direct" and not isinstance(letters.from_json(outgoing.letter), Message):
            # What devices say may be for one of them, so the server does not say that an edit is for too few.
            self._companies.forget(outgoing.conversation_id)
        company = await self._company(outgoing.conversation_id)
        scheme = _scheme(company, len(outgoing.letter))

        def seal_if_ready(tx: Tx) -> Outgoing | None:
            is_ready = self._is_ready(tx, company, scheme)
            return self._seal(tx, company=company, scheme=scheme, outgoing=outgoing) if is_ready else None

        sealed = await self._device.write(seal_if_ready)
        if sealed is None:
            await self._prepare(company, scheme)
            sealed = await self._device.write(partial(self._seal, company=company, scheme=scheme, outgoing=outgoing))
        return sealed

    async def _company(self, conversation_id: str) -> Company:
        company = await self._companies.of(conversation_id)
        if not company.counts or not self._device.own.certificate:  # it may be certified, and not know it yet
            raise Refused("not-linked", detail="This device is not linked yet, so nobody could read what it says")
        if company.waiting:
            raise Refused("identity-changed", detail="Somebody's identity has changed: look at it, and accept it first")
        if company.conversation.type != "direct" and company.roster is None:
            raise Refused("no-roster", detail="Nobody has signed who is in this group")
        return company

    async def _submit(self, form: Send) -> Sent:
        """Over the socket, or where none is kept in one call."""
        client = self._device.client
        if client.connected:
            return await client.submit(form)
        message = calls.MessageForm(
            temp_id=form.temp_id, kind=form.kind, encrypted=form.encrypted, expires_in_seconds=form.expires_in_seconds
        )
        sent = await client.post_form(form.conversation_id, message)
        return Sent(sent.message_id, sent.sequence_number, sent.created_at, form.temp_id)

    async def _renew(self, conversation_id: str, refused: Refused) -> None:
        """The server has other devices than we thought. Sessions with those of which the keys changed are over."""
        changed = [each.device_id for each in refused.changed]

        def forget(tx: Tx) -> None:
            for device_id in changed:
                self._device.cipher.forget(tx, device_id)

        await self._device.write(forget)
        self._companies.forget(conversation_id)

    # --- sealing -----------------------------------------------------------------------------------------------------

    def _is_ready(self, tx: Tx, company: Company, scheme: Scheme) -> bool:
        """Whether there is all that `_prepare` would see to."""
        if scheme == "double-ratchet":
            return all(self._device.cipher.has_session(tx, device_id) for _user_id, device_id in company.devices)
        key = tx.get(OwnSenderKey, company.conversation.id)
        if key is None or sender_keys.is_due(key, self._device.now(), self._device.epoch):
            return False
        return set(key.holders) == set(company.devices)

    async def _prepare(self, company: Company, scheme: Scheme) -> None:
        """What a letter needs before it can be sealed: sessions, or a sender key that all devices have."""
        if scheme == "double-ratchet":
            await self.open_sessions(company.devices)
            return
        key = await self._device.write(partial(self._sender_key, company=company))
        lacking = [address for address in company.devices if address not in key.holders]
        for start in range(0, len(lacking), DEVICES_AT_ONCE):
            await self._give_key(company, key, lacking[start : start + DEVICES_AT_ONCE])

    def _sender_key(self, tx: Tx, *, company: Company) -> OwnSenderKey:
        """This device's sender key there: another one if somebody who has it is not to read any more."""
        cipher, conversation_id = self._device.cipher, company.conversation.id
        key = cipher.sender_key_for(tx, conversation_id, self._device.now(), self._device.epoch)
        if set(key.holders) <= set(company.devices):
            return key
        cipher.drop_sender_key(tx, conversation_id)
        return cipher.sender_key_for(tx, conversation_id, self._device.now(), self._device.epoch)

    async def _give_key(self, company: Company, key: OwnSenderKey, devices: Sequence[Address]) -> None:
        conversation_id = company.conversation.id
        await self.open_sessions(devices)
        letter = sender_keys.distribution(key, company.roster)
        given = await self.whisper(conversation_id, letter, devices)
        await self._device.write(lambda tx: self._device.cipher.give(tx, conversation_id, key.key_id, given))

    async def give_key(self, conversation_id: str, address: Address) -> None:
        """Gives one device the sender key as it is now, if there is one and the device is to have it."""
        async with self._turn(conversation_id):
            company = await self._companies.of(conversation_id)
            key = await self._device.read(lambda tx: tx.get(OwnSenderKey, conversation_id))
            if key is not None and address in company.devices and address not in key.holders:
                await self._give_key(company, key, [address])

    async def open_sessions(self, devices: Sequence[Address], *, anew: bool = False) -> None:
        """Begins sessions with those of `devices` with which there is none; `anew` with each, whatever there is."""
        device = self._device

        def look(tx: Tx) -> list[Address]:
            return [each for each in devices if anew or not device.cipher.has_session(tx, each[1])]

        lacking = await device.read(look)
        for user_id in dict.fromkeys(user_id for user_id, _device_id in lacking):
            wanted = {device_id for each, device_id in lacking if each == user_id}
            bundles = await device.client.claim_keys(user_id)
            await device.write(partial(self._begin, user_id=user_id, bundles=bundles, wanted=wanted))

    def _begin(self, tx: Tx, *, user_id: str, bundles: Sequence[DeviceBundle], wanted: set[str]) -> None:
        peer = tx.get(Peer, user_id)
        for bundle in bundles:
            known = tx.get(PeerDevice, user_id, bundle.device_id)
            if bundle.device_id not in wanted or peer is None or known is None:
                continue
            if to_base64url(known.identity_key) != bundle.identity_key:
                continue  # not the device that was found sound: the server will call it stale, or it lies
            with suppress(BadBundle):
                self._device.cipher.begin(tx, user_id, bundle, peer.account_key, self._device.now())

    def _seal(self, tx: Tx, *, company: Company, scheme: Scheme, outgoing: Outgoing) -> Outgoing:
        """Seals a letter and puts it aside. Its number is the next one, or the one that it has already."""
        cipher, now, conversation_id = self._device.cipher, self._device.now(), company.conversation.id
        letter = letters.from_json(outgoing.letter)
        assert isinstance(letter, Numbered)
        if not letter.count:
            counted = tx.get(Count, conversation_id, self._device.own.device_id)
            letter = replace(letter, count=(counted.count if counted is not None else 0) + 1)
            tx.put(Count(conversation_id, self._device.own.device_id, letter.count))
        if isinstance(letter, Message):
            letter = replace(letter, roster=company.roster or UNSET)
        encrypted: EncryptedForm
        if scheme == "double-ratchet":
            envelopes = self._envelopes(tx, letter=letter, devices=company.devices, now=now)
            if not envelopes:
                raise Refused("no-devices", detail="There is no device of anybody here that could read this")
            encrypted = DoubleRatchetForm(envelopes=envelopes)
        else:
            key_id, body = cipher.seal_group(tx, conversation_id, letters.encode(letter), now)
            encrypted = SenderKeyForm(
                key_id=to_base64url(key_id), body=to_base64url(body), devices_digest=company.digest
            )
        form = Send(
            temp_id=outgoing.temp_id,
            conversation_id=conversation_id,
            kind=letters.wire_kind(letter),
            encrypted=encrypted,
            expires_in_seconds=outgoing.expires_in_seconds or None,
        )
        sealed = replace(
            outgoing, letter=letters.to_json(letter), form=msgspec.json.encode(form), audience=company.devices
        )
        tx.put(sealed)
        return sealed

    def _envelopes(self, tx: Tx, *, letter: Letter, devices: Sequence[Address], now: int) -> list[EnvelopeForm]:
        cipher, certificate = self._device.cipher, to_base64url(self._device.own.certificate) or UNSET
        plain = letters.encode(letter)
        introduced = letters.encode(replace(letter, certificate=certificate))
        found = []
        for user_id, device_id in devices:
            if not cipher.has_session(tx, device_id):
                continue  # it published no keys that hold: the server will say whether it is needed
            text = plain if cipher.is_confirmed(tx, device_id) else introduced
            sealed = cipher.seal(tx, device_id, text, now)
            found.append(
                EnvelopeForm(user_id=user_id, device_id=device_id, type=sealed.type, body=to_base64url(sealed.body))
            )
        return found

    # --- letters that devices write ----------------------------------------------------------------------------------

    async def whisper(self, conversation_id: str, letter: Letter, devices: Sequence[Address]) -> tuple[Address, ...]:
        """Sends a letter to these devices alone, with which there are sessions, and keeps nothing of it. Returns who was
        told; those whom the server does not know any more are not. Raises Refused for any other no."""
        for _try in range(TRIES_MAX):
            now = self._device.now()
            envelopes = await self._device.write(partial(self._envelopes, letter=letter, devices=devices, now=now))
            told = tuple((each.user_id, each.device_id) for each in envelopes)
            if not told:
                return ()
            form = Send(
                temp_id=self._device.client.options.new_temp_id(),
                conversation_id=conversation_id,
                kind=letters.wire_kind(letter),
                encrypted=DoubleRatchetForm(envelopes=envelopes),
            )
            try:
                await self._submit(form)
            except Refused as refused:
                if refused.code != "stale-devices":
                    raise
                await self._renew(conversation_id, refused)
                gone = _addresses((*refused.extra, *refused.changed))
                devices = [address for address in told if address not in gone]
            else:
                return told
        return ()

    async def _take_back(self, outgoing: Outgoing) -> None:
        """The server said a final no: nobody is to wait for a letter of this number."""
        await self._device.write(partial(_forget, outgoing=outgoing, device_id=self._device.own.device_id))

    # --- afterwards --------------------------------------------------------------------------------------------------

    async def settle(self, conversation_id: str, temp_id: str, sent: Sent) -> None:
        """The server has a letter that was put aside: from now on it is history."""
        epoch, now = self._device.epoch, self._device.now()
        await self._device.write(
            partial(_keep, own=self._device.address, conversation_id=conversation_id, temp_id=temp_id, sent=sent,
                    epoch=epoch, now=now)
        )  # fmt: skip


def _checked(letter: Numbered) -> bytes:
    """The JSON of a letter that others can read. Raises Refused before anything is put aside."""
    text = letters.to_json(letter)
    try:
        letters.from_json(text)
    except Undecryptable:
        raise Refused("invalid-request", 422, "A letter does not take that: see docs/encryption.md") from None
    if len(text) > letters.LETTER_BYTES_MAX - SPARE_BYTES:
        raise Refused("too-large", 413, "This is more than one message holds")
    return text


def _keep(tx: Tx, *, own: Address, conversation_id: str, temp_id: str, sent: Sent, epoch: str, now: int) -> None:
    outgoing = tx.get(Outgoing, conversation_id, temp_id)
    if outgoing is None:
        return
    if tx.get(KeptIndex, sent.message_id) is not None:  # this tempId was said before: nobody was told this one
        _forget(tx, outgoing=outgoing, device_id=own[1])
        return
    letter, at = letters.from_json(outgoing.letter), milliseconds(sent.created_at)
    assert isinstance(letter, Numbered)
    kept = Kept(
        conversation_id, era_of(tx, epoch, now), sent.sequence_number, sent.message_id, *own, at,
        letters.wire_kind(letter), outgoing.letter,
        count=letter.count, temp_id=temp_id, audience=outgoing.audience,
        expires_at=at + outgoing.expires_in_seconds * 1000 if outgoing.expires_in_seconds else 0,
    )  # fmt: skip
    tx.put(kept)
    tx.put(KeptIndex(kept.message_id, conversation_id, kept.era, kept.sequence))
    tx.put(OwnCount(conversation_id, kept.count, kept.message_id))
    tx.delete(Outgoing, conversation_id, temp_id)
    note_expiry(tx, kept)
    amend(tx, kept, letter)


def _forget(tx: Tx, *, outgoing: Outgoing, device_id: str) -> None:
    """A letter that was put aside is no more: the next one has its number."""
    tx.delete(Outgoing, outgoing.conversation_id, outgoing.temp_id)
    counted, letter = tx.get(Count, outgoing.conversation_id, device_id), letters.from_json(outgoing.letter)
    if counted is not None and isinstance(letter, Numbered) and 0 < letter.count == counted.count:
        tx.put(replace(counted, count=counted.count - 1))


def _scheme(company: Company, size: int) -> Scheme:
    """How a letter of `size` bytes goes: sealed for each device where that fits into one message of a direct conversation."""
    each_bytes = size * 4 // 3 + ENVELOPE_OVERHEAD
    fits = each_bytes * len(company.devices) <= ENVELOPES_BYTES_MAX
    return "double-ratchet" if company.conversation.type == "direct" and fits else "sender-key"


def _addresses(devices: Sequence[DeviceRef]) -> set[Address]:
    return {(each.user_id, each.device_id) for each in devices}
