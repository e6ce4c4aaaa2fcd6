"""Who is in a conversation, and with which devices: what the server says, held against what it cannot forge.

A device is encrypted for if its user's account key, which was pinned when they were first met, certifies it, and in groups if
the roster has its user. What does not fit is left out and told. What was found is kept in memory until something says that
it may have changed, or the server refuses a message as stale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from msgspec.structs import replace

from gearlink.sdk.e2ee import rosters, sessions
from gearlink.sdk.e2ee.certificates import verify_certificate
from gearlink.sdk.e2ee.encoding import from_base64url, to_base64url
from gearlink.sdk.e2ee.letters import RosterMark
from gearlink.sdk.e2ee.records import OwnSenderKey, Peer, PeerDevice, Room, RosterState, Statement
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.failures import Refused
from gearlink.sdk.secure.own_device import Device
from gearlink.sdk.secure.told import IdentityChanged, SecurityEvent, Suspicion, Suspicious
from gearlink.views import ConversationDevices, ConversationView, RosterStatement

Address = tuple[str, str]
COMPANIES_MAX: Final = 1000
SUSPECTED_MAX: Final = 1000
LEFT_MAX: Final = 10  # account keys of somebody that are not theirs any more, in rosters perhaps still
VOID: Final[frozenset[str]] = frozenset({"not-allowed", "no-owner", "too-many", "changed-identity"})


@dataclass(frozen=True, slots=True)
class Company:
    """`devices` are those to encrypt for, without this one. `waiting` are users whose changed identity was not accepted.
    `counts`: this device is one of the conversation's. `digest` is the server's, of all that it lists."""

    conversation: ConversationView
    devices: tuple[Address, ...]
    waiting: tuple[str, ...]
    counts: bool
    digest: str
    roster: RosterMark | None


class Companies:
    """The companies of all conversations, as far as they are known."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._known: dict[str, Company] = {}
        self._views: dict[str, ConversationView] = {}
        self._encrypted: dict[str, bool] = {}
        self._hashes: dict[str, tuple[int, bytes]] = {}
        self._suspected: set[SecurityEvent] = set()
        self._changes = 0  # an answer that was on its way when something changed is used once, and not kept

    # --- asking ------------------------------------------------------------------------------------------------------

    async def conversation(self, conversation_id: str) -> ConversationView:
        """What it is; asked once. Raises Refused, Unreachable."""
        view = self._views.get(conversation_id)
        return view or await self.note(await self._device.client.conversation(conversation_id))

    async def is_encrypted(self, conversation_id: str) -> bool:
        """Of a conversation that was found to be encrypted once this is known without asking. Raises Refused, Unreachable."""
        if conversation_id in self._encrypted:
            return True
        is_known = conversation_id in self._views
        if not is_known and await self._device.read(lambda tx: tx.get(Room, conversation_id)) is not None:
            is_encrypted = True
        else:
            is_encrypted = (await self.conversation(conversation_id)).encryption == "e2ee"
        if is_encrypted:
            self._encrypted[conversation_id] = True
            self._bound(self._encrypted)
        return is_encrypted

    async def note(self, view: ConversationView) -> ConversationView:
        """The server says what a conversation is. Of an encrypted one it is believed once, and never again."""
        room = await self._device.read(lambda tx: tx.get(Room, view.id))
        if room is None and view.encryption == "e2ee":
            room = _room(view, self._device.own.user_id)
            await self._device.write(lambda tx, room=room: tx.put(room))  # type: ignore[misc]
        elif room is not None and ("e2ee", room.type, room.created_by) != (view.encryption, view.type, view.created_by):
            self._tell(view.id, [Suspicious(code="downgraded", conversation_id=view.id)])
        if room is not None:
            view = replace(view, encryption="e2ee", type=room.type, created_by=room.created_by)
        self._views[view.id] = view
        self._bound(self._views)
        return view

    async def of(self, conversation_id: str) -> Company:
        """The company of an encrypted conversation. Raises Refused, Unreachable."""
        known = self._known.get(conversation_id)
        if known is None:
            asked_at = self._changes
            known = await self._look(conversation_id)
            if known.counts and self._changes == asked_at:
                self._known[conversation_id] = known
                self._bound(self._known)
        return known

    def forget(self, conversation_id: str | None = None) -> None:
        """It may have changed: this one, or all."""
        self._changes += 1
        if conversation_id is None:
            self._known.clear()
        else:
            self._known.pop(conversation_id, None)

    async def meet(self, conversation_id: str, user_id: str) -> None:
        """Pins somebody who was never met, and whom the conversation has no more: as its roster had them, else as the
        server says. Raises Unreachable."""

        def known_key(tx: Tx) -> bytes | None:
            peer = tx.get(Peer, user_id)
            if peer is not None:
                return peer.account_key
            statements = [each.statement for each in tx.scan(Statement, conversation_id, reverse=True)]
            return next((key for key in (rosters.key_in(each, user_id) for each in statements) if key), None)

        key = await self._device.read(known_key)
        if key is None:
            try:
                shown = await self._device.client.identities_of(user_id)
            except Refused:
                return
            key = from_base64url(shown.account_key) if isinstance(shown.account_key, str) else b""
        met = Peer(user_id, key, self._device.now())
        await self._device.write(lambda tx: None if tx.get(Peer, user_id) is not None else tx.put(met))

    @staticmethod
    def _bound(known: dict[str, Any]) -> None:
        while len(known) > COMPANIES_MAX:
            del known[next(iter(known))]

    async def _look(self, conversation_id: str) -> Company:
        device = self._device
        view = await self.conversation(conversation_id)
        shown = await device.client.conversation_devices(conversation_id)
        if view.type != "direct":
            state = await self.roster(conversation_id)
            signed_in = {user_id for user_id, _role, _key in state.members} if state is not None else set()
            if not {each.user_id for each in shown.devices} <= signed_in:  # or the two are of different moments
                shown = await device.client.conversation_devices(conversation_id)
                await self.roster(conversation_id)
        now = device.now()

        def take(tx: Tx) -> tuple[Company, list[SecurityEvent]]:
            events: list[SecurityEvent] = []
            return _settle(tx, device.address, view, shown, events, now), events

        company, events = await device.write(take)
        self._tell(conversation_id, events)
        return company

    async def roster(self, conversation_id: str) -> RosterState | None:
        """The roster of a group, followed as far as the server has it. Raises Refused, Unreachable."""
        device = self._device
        view = await self.conversation(conversation_id)
        state = await device.read(lambda tx: tx.get(RosterState, conversation_id))
        statements = await self._statements(conversation_id, state)
        events: list[SecurityEvent] = []
        state = await device.write(lambda tx: _follow(tx, view, statements, events))
        self._tell(conversation_id, events)
        return state

    async def _statements(self, conversation_id: str, state: RosterState | None) -> list[RosterStatement]:
        """What the server has behind the version that is known here. A server that has less is given it back."""
        client = self._device.client
        if state is None:
            return [each async for each in client.roster(conversation_id)]
        shown = [each async for each in client.roster(conversation_id, state.version - 1)]
        if not shown:
            await self._give_back(conversation_id)
            return []
        return shown[1:] if sha256(shown[0].statement.encode()).digest() == state.hash else shown

    async def _give_back(self, conversation_id: str) -> None:
        """The server was restored, or hides what it had: every member has the statements and may publish them."""
        client = self._device.client
        known = await self._device.read(lambda tx: tx.scan(Statement, conversation_id))
        try:
            for statement in known[await self._newest(conversation_id) :]:
                await client.publish_roster(conversation_id, statement.statement, to_base64url(statement.signature))
        except Refused as refused:
            if refused.retryable:
                raise
        if await self._newest(conversation_id) < len(known):
            self._tell(conversation_id, [Suspicious(code="roster-rollback", conversation_id=conversation_id)])

    async def _newest(self, conversation_id: str) -> int:
        """Up to which statement the server shows the roster."""
        newest = 0
        async for each in self._device.client.roster(conversation_id):
            newest = each.version
        return newest

    async def roster_hash(self, conversation_id: str, version: int) -> bytes | None:
        """The hash of a group's statement of this version; None if it is not known here."""
        last_version, last_hash = self._hashes.get(conversation_id, (0, b""))
        if last_version == version:  # letters name the newest one, and a statement that was followed never changes
            return last_hash
        known = await self._device.read(lambda tx: tx.get(Statement, conversation_id, version))
        if known is None:
            return None
        found = sha256(known.statement.encode()).digest()
        self._hashes[conversation_id] = version, found
        self._bound(self._hashes)
        return found

    def _tell(self, conversation_id: str, events: list[SecurityEvent]) -> None:
        """What is suspicious is told once."""
        fresh = [each for each in events if each not in self._suspected]
        self._suspected |= {each for each in fresh if isinstance(each, Suspicious)}
        if len(self._suspected) > SUSPECTED_MAX:
            self._suspected.clear()
        self._device.tell(*fresh)

    # --- what a person decides ---------------------------------------------------------------------------------------

    async def accept(self, user_id: str) -> None:
        """The person has seen that this user's identity changed: from now on the new one is theirs."""
        await self._device.write(lambda tx: _accept(tx, user_id))
        self.forget()


# --- rosters ---------------------------------------------------------------------------------------------------------


def _follow(
    tx: Tx, view: ConversationView, statements: Sequence[RosterStatement], events: list[SecurityEvent]
) -> RosterState | None:
    state = tx.get(RosterState, view.id)
    for each in statements:
        if state is not None and each.version <= state.version:
            known = tx.get(Statement, view.id, each.version)
            if known is not None and known.statement == each.statement:
                continue  # followed meanwhile
        following = _followed(view, state, each)
        if following is None or following.members == (state.members if state is not None else ()):
            events.append(Suspicious(code="roster-forged", conversation_id=view.id))
        if following is None:
            break
        state = following
        tx.put(Statement(view.id, state.version, each.statement, from_base64url(each.signature)))
    if state is not None:
        tx.put(state)
    return state


def _followed(view: ConversationView, state: RosterState | None, shown: RosterStatement) -> RosterState | None:
    """The roster after a statement. One of somebody who may not say that has its place in the chain, and changes nothing, or
    one such would stop a group for ever. None for what is no statement of this chain."""
    try:
        signature = from_base64url(shown.signature)
        following = rosters.follow(state, view.id, view.created_by, shown.statement, signature)
    except ValueError:
        return None
    except rosters.BadStatement as bad:
        if state is None or bad.reason not in VOID:
            return None
        return replace(state, version=shown.version, hash=sha256(shown.statement.encode()).digest())
    before = {user_id for user_id, _role, _key in state.members} if state is not None else set()
    now = {user_id for user_id, _role, _key in following.members}
    past = (set(state.past) if state is not None else set()) | before
    return replace(following, past=tuple(sorted(past - now)))


def _room(view: ConversationView, own_user_id: str) -> Room:
    members = view.members if isinstance(view.members, list) else []
    others = [each.user_id for each in members if each.user_id != own_user_id]
    return Room(view.id, view.type, view.created_by, others[0] if view.type == "direct" and len(others) == 1 else "")


def may_speak(tx: Tx, conversation_id: str, user_id: str, own_user_id: str) -> bool:
    """Whether somebody is, or was, one of those who talk there, as far as it is known here."""
    room = tx.get(Room, conversation_id)
    if room is None or user_id == own_user_id:
        return room is not None
    if room.type == "direct":
        return user_id == room.peer_id
    state = tx.get(RosterState, conversation_id)
    return state is not None and (user_id in state.past or any(user_id == each for each, _role, _key in state.members))


def _mark(state: RosterState) -> RosterMark:
    return RosterMark(version=state.version, hash=to_base64url(state.hash))


# --- devices ---------------------------------------------------------------------------------------------------------


def _settle(
    tx: Tx,
    own: Address,
    view: ConversationView,
    shown: ConversationDevices,
    events: list[SecurityEvent],
    now: int,
) -> Company:
    room, state = tx.get(Room, view.id), tx.get(RosterState, view.id) if view.type != "direct" else None
    if view.type == "direct":
        signed_in = {own[0]: b"", room.peer_id if room is not None else "": b""}
    else:
        signed_in = {user_id: key for user_id, _role, key in state.members} if state is not None else {}
    waiting: list[str] = []
    devices: list[Address] = []
    counts = False
    by_user: dict[str, list[tuple[str, bytes, bytes]]] = {}
    for each in shown.devices:
        certificate = from_base64url(each.certificate) if isinstance(each.certificate, str) else b""
        by_user.setdefault(each.user_id, []).append((each.device_id, from_base64url(each.identity_key), certificate))
    for user_id, theirs in by_user.items():
        if user_id not in signed_in:
            code: Suspicion = "no-roster" if view.type != "direct" and state is None else "ghost-member"
            events.append(Suspicious(code=code, conversation_id=view.id, user_id=user_id))
            continue
        account_key = from_base64url(shown.account_keys[user_id]) if user_id in shown.account_keys else b""
        named = signed_in[user_id] if user_id != own[0] else b""  # of oneself nobody else knows better
        peer = _pin(tx, user_id, account_key, named, events, now)
        sound = _sound(tx, peer, theirs, events, now)
        if sound is None or peer.changed_at:
            waiting.append(user_id)
            continue
        counts = counts or own in sound
        devices += [address for address in sound if address != own]
    return Company(
        conversation=view,
        devices=tuple(sorted(devices)),
        waiting=tuple(waiting),
        counts=counts,
        digest=shown.digest,
        roster=_mark(state) if state is not None else None,
    )


def _pin(tx: Tx, user_id: str, shown: bytes, signed_in: bytes, events: list[SecurityEvent], now: int) -> Peer:
    """The user as they are known. Who is met for the first time is taken at the roster's word, else at the server's."""
    peer = tx.get(Peer, user_id)
    if peer is None:
        peer = Peer(user_id, signed_in or shown, now)
        tx.put(peer)
    if signed_in and signed_in not in (peer.account_key, peer.roster_key, *peer.left):
        pin = replace(peer, offered_key=signed_in, changed_at=now, roster_key=signed_in)
    elif shown != peer.account_key:
        is_known = peer.changed_at and shown == peer.offered_key
        pin = peer if is_known else replace(peer, offered_key=shown, changed_at=now)
    elif peer.roster_key:
        pin = replace(peer, offered_key=peer.roster_key)  # the server shows the pin again, the roster does not
    else:
        pin = replace(peer, offered_key=b"", changed_at=0)  # it may have been shown another one meanwhile
    if pin != peer:
        tx.put(pin)
    if pin.changed_at and (pin.changed_at, pin.offered_key) != (peer.changed_at, peer.offered_key):
        events.append(IdentityChanged(user_id=user_id, was_verified=bool(peer.verified_at)))
    return pin


def _sound(
    tx: Tx, peer: Peer, theirs: Sequence[tuple[str, bytes, bytes]], events: list[SecurityEvent], now: int
) -> list[Address] | None:
    """The devices that are really this user's; None if one of them has another identity key than before."""
    known = {each.device_id: each for each in tx.scan(PeerDevice, peer.user_id)}
    is_met = any(not each.gone_at for each in known.values())
    found: list[Address] = []
    changed = False
    for device_id, identity_key, certificate in theirs:
        before = known.pop(device_id, None)
        if peer.account_key:
            if not verify_certificate(peer.account_key, peer.user_id, device_id, identity_key, certificate):
                if not peer.changed_at:
                    events.append(Suspicious(code="ghost-device", user_id=peer.user_id, device_id=device_id))
                continue
        elif before is not None and before.identity_key != identity_key:
            changed = True
            if before.offered_key != identity_key:
                tx.put(replace(before, offered_key=identity_key))
                events.append(IdentityChanged(user_id=peer.user_id, was_verified=bool(peer.verified_at)))
            continue
        elif before is None and is_met:
            events.append(Suspicious(code="new-device", user_id=peer.user_id, device_id=device_id))
        fresh = PeerDevice(peer.user_id, device_id, identity_key, certificate, before.met_at if before else now)
        if before is not None and before.identity_key != identity_key:
            sessions.forget(tx, device_id)
        if fresh != before:
            tx.put(fresh)
        found.append((peer.user_id, device_id))
    for gone in known.values():
        if not gone.gone_at:
            tx.put(replace(gone, gone_at=now))
    return None if changed else found


def _accept(tx: Tx, user_id: str) -> None:
    peer = tx.get(Peer, user_id)
    if peer is not None and peer.changed_at:
        left = (*peer.left, peer.account_key, peer.roster_key)[-LEFT_MAX:]
        pin = Peer(
            user_id, peer.offered_key, peer.met_at, left=tuple(each for each in left if each != peer.offered_key)
        )
        tx.put(pin)
    theirs = {each.device_id for each in tx.scan(PeerDevice, user_id)}
    for device_id in theirs:
        tx.delete(PeerDevice, user_id, device_id)
        sessions.forget(tx, device_id)
    for key in tx.scan(OwnSenderKey):
        if any(device_id in theirs for _user_id, device_id in key.holders):
            tx.delete(OwnSenderKey, key.conversation_id)  # what they are given from now on is another one
