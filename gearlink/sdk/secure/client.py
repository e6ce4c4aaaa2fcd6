"""The secure client: what a program uses to talk in encrypted conversations, and in others just the same.

    async with open_client(server, state) as client, open_vault(path, key) as vault:
        async with open_secure(client, vault) as secure, client.connect():
            await secure.send(conversation_id, "hello")
            async for event in secure.events(): ...

Promises: what is sent in an encrypted conversation leaves this process encrypted, or not at all; each event comes once, opened
if it was sealed; what the server should not have done is told (`gearlink.sdk.secure.told`). Calls that carry no content go
to `client` as ever. Its tasks live inside of `open_secure`.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Final

import trio
from msgspec import UNSET, structs

from config.limits import PAGE_DEFAULT
from gearlink import protocol
from gearlink.sdk.client import Client, Events
from gearlink.sdk.e2ee import agreement, safety
from gearlink.sdk.e2ee.certificates import account_public
from gearlink.sdk.e2ee.letters import Attachment, Edit, LetterKind, Message, Reaction
from gearlink.sdk.e2ee.records import Kept, Own, Peer, PeerDevice
from gearlink.sdk.e2ee.store import KeyStore, Tx
from gearlink.sdk.failures import Refused, Unreachable
from gearlink.sdk.inbox import Event, reloads
from gearlink.sdk.options import Backoff
from gearlink.sdk.outbox import Sent
from gearlink.sdk.secure import counting, history, repairs
from gearlink.sdk.secure.archiving import Fetching, OnProgress
from gearlink.sdk.secure.backup import Backup
from gearlink.sdk.secure.company import Companies
from gearlink.sdk.secure.groups import Groups
from gearlink.sdk.secure.keeping import Keeping
from gearlink.sdk.secure.linking import Linking
from gearlink.sdk.secure.own_device import Device, milliseconds
from gearlink.sdk.secure.posting import Posting
from gearlink.sdk.secure.receiving import Receiving
from gearlink.sdk.secure.repairs import Repairs
from gearlink.sdk.secure.told import OpenedMessage, SecurityEvent, Suspicious
from gearlink.views import MessageView

RELOADED_MAX: Final = 1000  # messages of one conversation that are read again
_CONTENT = (protocol.MessageEdited, protocol.ReactionAdded, protocol.ReactionRemoved, protocol.PollChanged)
"""What members say through the server: in an encrypted conversation they say it in letters."""
_DEVICES_CHANGED = (protocol.DeviceAdded, protocol.DeviceRemoved, protocol.IdentityChanged)


class SecureClient:
    """Made by `open_secure`. `client` is the one below; `groups` changes who is in encrypted groups; `backup` keeps the
    history on the server, `linking` hands it to new devices."""

    def __init__(self, client: Client, vault: KeyStore, own: Own) -> None:
        self.client = client
        self.device = Device(client, vault, own)
        self.companies = Companies(self.device)
        self.posting = Posting(self.device, self.companies)
        self.groups = Groups(self.device, self.companies)
        self.repairs = Repairs(self.device, self.companies, self.posting, self.groups)
        self.receiving = Receiving(self.device, self.companies, self.posting, self.repairs.requested)
        self.keeping = Keeping(self.device)
        fetching = Fetching(self.device)
        self.linking = Linking(self.device, self.keeping, self.posting, fetching)
        self.backup = Backup(self.device, self.keeping, fetching)
        self._epoch = client.epoch

    # --- talking -----------------------------------------------------------------------------------------------------

    async def send(
        self,
        conversation_id: str,
        content: str,
        temp_id: str | None = None,
        reply_to_id: str | None = None,
        mentions: Sequence[str] = (),
        *,
        kind: LetterKind = "text",
        attachments: Sequence[Attachment] = (),
        expires_in_seconds: int | None = None,
    ) -> Sent:
        """As `Client.send`; in an encrypted conversation sealed for each device. Raises Refused also for what this side
        does not do: `identity-changed`, `not-linked`, `no-roster`, `no-devices`, `stale-devices`."""
        temp_id = temp_id or self.client.options.new_temp_id()
        if not await self.is_encrypted(conversation_id):
            return await self.client.send(
                conversation_id,
                content,
                temp_id,
                reply_to_id,
                mentions,
                kind=kind,
                expires_in_seconds=expires_in_seconds,
            )
        quoted = await self._kept(reply_to_id) if reply_to_id else None
        letter = Message(
            conversation_id=conversation_id,
            count=0,
            temp_id=temp_id,
            kind=kind,
            content=content,
            reply_to_id=reply_to_id or UNSET,
            reply_to=history.target_of(quoted) if quoted is not None else UNSET,
            mentions=list(mentions) or UNSET,
            attachments=list(attachments) or UNSET,
            expires_in_seconds=expires_in_seconds or UNSET,
        )
        return await self.posting.say(conversation_id, letter, temp_id, expires_in_seconds)

    async def edit(self, message_id: str, content: str, mentions: Sequence[str] | None = None) -> None:
        """Another text for an own message, wherever it is."""
        kept = await self._kept(message_id)
        if kept is None:
            await self._require_plain(message_id)
            await self.client.edit(message_id, content, mentions)
            return
        if (kept.sender_id, bool(kept.letter)) != (self.device.own.user_id, True):
            raise Refused("forbidden", 403, "Only one's own messages can be edited")
        letter = Edit(
            conversation_id=kept.conversation_id,
            count=0,
            message_id=message_id,
            target=history.target_of(kept),
            content=content,
            mentions=list(mentions) if mentions else UNSET,
        )
        await self.posting.say(kept.conversation_id, letter, self.client.options.new_temp_id())

    async def react(self, message_id: str, emoji: str, *, added: bool = True) -> None:
        """Reacts to a message, or takes that back, wherever it is."""
        kept = await self._kept(message_id)
        if kept is None:
            await self._require_plain(message_id)
            await (self.client.react if added else self.client.unreact)(message_id, emoji)
            return
        letter = Reaction(
            conversation_id=kept.conversation_id,
            count=0,
            message_id=message_id,
            target=history.target_of(kept),
            emoji=emoji,
            added=added,
        )
        await self.posting.say(kept.conversation_id, letter, self.client.options.new_temp_id())

    async def delete(self, message_id: str, *, for_everyone: bool = False) -> None:
        """As `Client.delete`; from one's own sight it goes here, too."""
        await self.client.delete(message_id, for_everyone=for_everyone)
        if not for_everyone:  # which is told to one's other devices alone
            await self.device.write(lambda tx: history.expire(tx, [message_id]))

    async def history(
        self, conversation_id: str, before: str | None = None, limit: int = PAGE_DEFAULT
    ) -> list[OpenedMessage]:
        """What this device keeps of an encrypted conversation, newest first, older than the message `before`."""

        def look(tx: Tx) -> list[OpenedMessage]:
            mark = history.find(tx, before) if before is not None else None
            position = (mark.era, mark.sequence) if mark is not None else None
            found = history.page(tx, conversation_id, self.device.now(), position, limit)
            return [history.view(tx, kept, self.device.own.user_id) for kept in found]

        return await self.device.read(look)

    async def message(self, message_id: str) -> OpenedMessage | None:
        """One message of an encrypted conversation as this device keeps it; None if it does not."""

        def look(tx: Tx) -> OpenedMessage | None:
            kept = history.find(tx, message_id)
            is_shown = kept is not None and kept.kind == "text"
            return history.view(tx, kept, self.device.own.user_id) if kept is not None and is_shown else None

        return await self.device.read(look)

    async def is_encrypted(self, conversation_id: str) -> bool:
        return await self.companies.is_encrypted(conversation_id)

    async def _require_plain(self, message_id: str) -> None:
        """Raises Refused `not-found` for a message of an encrypted conversation that is not in this device's history."""
        message = await self.client.message(message_id)
        if await self.is_encrypted(message.conversation_id):
            raise Refused("not-found", 404, "This device does not have that message")

    async def _kept(self, message_id: str) -> Kept | None:
        return await self.device.read(lambda tx: history.find(tx, message_id))

    # --- hearing -----------------------------------------------------------------------------------------------------

    def events(self) -> "SecureEvents":
        """As `Client.events`: what happens, opened, and between that what was noticed. One caller at a time."""
        return SecureEvents(self, self.client.events())

    async def opened(self, event: Event) -> Event | SecurityEvent | None:
        """What a caller is to see of an event of the client below; None for nothing. Programs that poll give each event
        to this one, in order."""
        await self._look_at(event)
        if isinstance(event, protocol.MessageNew):
            if not await self.is_encrypted(event.message.conversation_id):
                return event
            told = await self.receiving.message(event.message)
            if self.receiving.take_wanting():
                self.repairs.look()
            return told
        if isinstance(event, _CONTENT) and await self.is_encrypted(event.conversation_id):
            return Suspicious(code="plain", conversation_id=event.conversation_id)
        if isinstance(event, protocol.MessageDeleted) and event.for_everyone:
            await self.device.write(
                lambda tx: history.delete(tx, event.message_id, milliseconds(event.deleted_at or ""))
            )
        elif isinstance(event, protocol.MessageDeleted):
            await self.device.write(lambda tx: history.expire(tx, [event.message_id]))
        elif isinstance(event, protocol.MessageExpired):
            await self.device.write(partial(_expire, event=event))
        return event

    async def _look_at(self, event: Event) -> None:
        """What an event says about devices, members and the server itself."""
        if self.client.epoch != self._epoch:
            self._epoch = self.client.epoch
            self.companies.forget()
            self.keeping.look()
        if isinstance(event, protocol.SyncDone | protocol.KeysLow):
            self.companies.forget()
            self.keeping.look()
            self.linking.look()
            self.repairs.look()
            for conversation_id in reloads(event):
                await self._reload(conversation_id)
        elif isinstance(event, _DEVICES_CHANGED):
            self.companies.forget()
        elif isinstance(event, protocol.RosterChanged | protocol.MemberJoined | protocol.MemberChanged):
            self.companies.forget(event.conversation_id)
        elif isinstance(event, protocol.ConversationCreated):
            await self.companies.note(event.conversation)
        elif isinstance(event, protocol.ConversationDeleted):
            await self._out_of(event.conversation_id)
        elif isinstance(event, protocol.MemberLeft):
            self.companies.forget(event.conversation_id)
            self.repairs.left(event.conversation_id, event.user_id)
            if event.user_id == self.device.own.user_id:
                await self._out_of(event.conversation_id)

    async def _out_of(self, conversation_id: str) -> None:
        """What is said there from now on is not missing if this user comes back."""
        await self.device.write(lambda tx: counting.begin_anew(tx, conversation_id, self.device.own.device_id))

    async def _reload(self, conversation_id: str) -> None:
        """What could not be replayed is read from the server's history, as far back as something is new. Raises Unreachable
        and Refused for what another try may change: nobody says again that it has to be read."""
        try:
            if not await self.is_encrypted(conversation_id):
                return
            fresh: list[MessageView] = []
            async for page in self.client.history(conversation_id):
                known = [await self.receiving.is_known(each) for each in page]
                fresh += [each for each, is_known in zip(page, known, strict=True) if not is_known]
                if any(known) or len(fresh) >= RELOADED_MAX:
                    break
        except Refused as refused:
            if refused.retryable:
                raise
            return  # it is not ours any more
        for message in reversed(fresh):
            if message.kind != "system" and (told := await self.receiving.message(message)) is not None:
                self.device.tell(told)

    # --- further devices ---------------------------------------------------------------------------------------------

    async def link(self, code: str, *, history: bool = True) -> str:
        """Makes the device that shows this code one of one's own: see `Linking.link`."""
        return await self.linking.link(code, history=history)

    async def fetch_history(self, on_progress: OnProgress | None = None) -> bool:
        """Fetches what an old device hands over now, instead of bit by bit: see `Linking.fetch_history`."""
        return await self.linking.fetch_history(on_progress)

    # --- trust -------------------------------------------------------------------------------------------------------

    async def accept_identity(self, user_id: str) -> None:
        """The person has seen that this user's identity changed, and goes on with the new one."""
        await self.companies.accept(user_id)
        await self.device.write(lambda tx: repairs.accepted(tx, user_id, self.device.now()))
        self.repairs.look()

    async def safety_number(self, user_id: str) -> str:
        """The 60 digits to compare with this user. Raises Refused `not-found` for somebody who was never met."""
        return await self._compare(user_id, safety.safety_number)

    async def safety_code(self, user_id: str) -> str:
        """The text of the QR code that the other one scans."""
        return await self._compare(user_id, safety.qr_text)

    async def verify(self, user_id: str, scanned: str | None = None) -> str:
        """The person has compared: this user is verified from now on. With the text of a `scanned` QR code only if it
        matches. Answers "match", or what was wrong with the code: "mismatch", "other-person", "unreadable"."""
        if scanned is not None:
            found = await self._compare(user_id, partial(safety.check_qr, scanned))
            if found != "match":
                return found

        def mark(tx: Tx) -> None:
            peer = tx.get(Peer, user_id)
            if peer is not None and not peer.changed_at:
                tx.put(structs.replace(peer, verified_at=self.device.now()))

        await self.device.write(mark)
        return "match"

    async def is_verified(self, user_id: str) -> bool:
        peer = await self.device.read(lambda tx: tx.get(Peer, user_id))
        return peer is not None and bool(peer.verified_at) and not peer.changed_at

    async def _compare(self, user_id: str, compare: Callable[[str, bytes, str, bytes], str]) -> str:
        own = self.device.own

        def look(tx: Tx) -> str | None:
            peer = tx.get(Peer, user_id)
            if peer is None or not own.account_seed:
                return None
            key = peer.offered_key if peer.changed_at else peer.account_key
            theirs = [each.identity_key for each in tx.scan(PeerDevice, user_id) if not each.gone_at]
            return compare(own.user_id, account_public(own.account_seed), user_id, safety.key_for(key, theirs))

        found = await self.device.read(look)  # beside the loop: it takes some thousand hashes
        if found is None:
            raise Refused("not-found", 404, "There is no key of this user yet: write to them first")
        return found

    # --- living ------------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Sends what a crash or a lost network left behind, once this device can."""
        await self.keeping.linked.wait()
        backoff = Backoff(self.client.options)
        while True:
            try:
                await self.posting.finish()
            except (Refused, Unreachable) as trouble:
                await trio.sleep(backoff.next(trouble.retry_after_seconds))
            else:
                backoff.reset()
                await self.posting.unsent.wait()


class SecureEvents:
    """What `SecureClient.events()` gives: an endless async iterator. An event that was not taken to its end, because its
    caller was cancelled, is taken up again."""

    __slots__ = ("_current", "_events", "_secure")

    def __init__(self, secure: SecureClient, events: Events) -> None:
        self._secure, self._events = secure, events
        self._current: Event | None = None

    def __aiter__(self) -> "SecureEvents":
        return self

    async def __anext__(self) -> Event | SecurityEvent:
        while True:
            if (told := self._secure.device.take_told()) is not None:
                return told
            self._events.hold()  # who leaves in the middle of this has not taken it
            if self._current is None:
                await self._next()
                if self._current is None:
                    continue
            opened = await self._opened(self._current)
            self._events.release()
            self._current = None
            if opened is not None:
                return opened

    async def _opened(self, event: Event) -> Event | SecurityEvent | None:
        """An event waits for as long as the server cannot be asked what belongs to it. One of a conversation that is not
        ours any more is passed on as it is, unless it is sealed."""
        backoff = Backoff(self._secure.client.options)
        while True:
            try:
                return await self._secure.opened(event)
            except Unreachable as trouble:
                await trio.sleep(backoff.next(trouble.retry_after_seconds))
            except Refused as refused:
                if refused.code == "not-found":
                    is_sealed = isinstance(event, protocol.MessageNew) and event.message.encrypted is not UNSET
                    return None if is_sealed else event
                if not refused.retryable:
                    raise
                await trio.sleep(backoff.next(refused.retry_after_seconds))

    async def _next(self) -> None:
        """Waits for the next event, or until something was noticed."""
        trouble: Exception | None = None

        async def watch() -> None:
            await self._secure.device.told()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                self._current = await self._events.__anext__()
            except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery's group
                trouble = error
            nursery.cancel_scope.cancel()
        if trouble is not None:
            raise trouble


@contextlib.asynccontextmanager
async def open_secure(client: Client, vault: KeyStore) -> AsyncIterator[SecureClient]:
    """A secure client over a client that is signed in, with the keys of `vault`: an empty one becomes this device's.
    Raises ValueError for a vault of another device, Refused and Unreachable if the keys cannot be published."""
    user_id, device_id = client.state.user_id, client.state.device_id
    if user_id is None or device_id is None:
        raise ValueError("this client is not signed in")
    now = int(client.options.wall() * 1000)

    def prepare(tx: Tx) -> Own:
        own = tx.get(Own, "own")
        if own is None:
            own = agreement.new_own(user_id, device_id, now)
            tx.put(own)
        return own

    own = await vault.write(prepare)
    if (own.user_id, own.device_id) != (user_id, device_id):
        raise ValueError("this vault belongs to another device")
    secure = SecureClient(client, vault, own)
    await secure.keeping.renew()
    trouble: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(secure.keeping.run)
        await nursery.start(secure.repairs.run)
        await nursery.start(secure.linking.run)
        await nursery.start(secure.backup.run)
        nursery.start_soon(secure._finish)
        try:
            yield secure
        except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery's group
            trouble = error
        nursery.cancel_scope.cancel()
    if trouble is not None:
        raise trouble


def _expire(tx: Tx, *, event: protocol.MessageExpired) -> None:
    for message_id in event.message_ids:
        if history.find(tx, message_id) is None:
            counting.unopened(tx, event.conversation_id)
    history.expire(tx, event.message_ids)
