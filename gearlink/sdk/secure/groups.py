"""Who is in an encrypted group: every change is signed by the device that makes it, and then told to the server.

Somebody is signed in before the server adds them, and signed out after it has removed them, so that a crash in between
leaves nobody in the group whom nobody signed. If another admin was faster, the newer roster is read and the change is signed
behind it.
"""

from collections.abc import Callable, Sequence
from typing import Final

from gearlink.sdk.e2ee import rosters
from gearlink.sdk.e2ee.encoding import from_base64url, to_base64url
from gearlink.sdk.e2ee.records import Peer, Room, RosterState
from gearlink.sdk.e2ee.rosters import Change
from gearlink.sdk.failures import Refused
from gearlink.sdk.secure.company import Companies
from gearlink.sdk.secure.own_device import Device, timestamp
from gearlink.views import ConversationType, ConversationView, Role

TRIES_MAX: Final = 10
Members = dict[str, Role]
Changes = dict[str, Role | None]


class Groups:
    """Changes of who is in encrypted groups and channels."""

    def __init__(self, device: Device, companies: Companies) -> None:
        self._device, self._companies = device, companies

    async def create(
        self,
        kind: ConversationType,
        member_ids: Sequence[str],
        *,
        name: str | None = None,
        description: str | None = None,
    ) -> ConversationView:
        """A new encrypted conversation, or the one with this person; of a group or channel the roster is signed.

        Raises Unreachable, and Refused: `not-as-asked` if it is not encrypted, or with somebody else.
        """
        client, own_id = self._device.client, self._device.own.user_id
        view = await client.create_conversation(kind, member_ids, name=name, description=description, encryption="e2ee")
        await self._companies.note(view)
        room = await self._device.read(lambda tx: tx.get(Room, view.id))
        asked = (kind, member_ids[0] if kind == "direct" else own_id)
        if room is None or asked != (room.type, room.peer_id if kind == "direct" else room.created_by):
            raise Refused(
                "not-as-asked", detail="The server answers with another conversation, or with one that it can read"
            )
        if kind != "direct":
            roles: Changes = {own_id: "owner", **{each: "member" for each in member_ids if each != own_id}}
            await self.sign(view.id, lambda _known: roles)
        return view

    async def add(self, conversation_id: str, user_ids: Sequence[str], role: Role = "member") -> None:
        """Signs people in, then adds them. Raises Refused, Unreachable."""
        await self.sign(conversation_id, lambda known: {each: role for each in user_ids if known.get(each) != role})
        await self._device.client.add_members(conversation_id, user_ids, role)

    async def remove(self, conversation_id: str, user_id: str, *, ban: bool = False) -> None:
        """Removes somebody, then signs them out. Raises Refused, Unreachable."""
        client = self._device.client
        if ban:
            await client.ban(conversation_id, user_id)
        else:
            await client.remove_member(conversation_id, user_id)
        await self.sign_out(conversation_id, user_id)

    async def sign_out(self, conversation_id: str, user_id: str) -> None:
        """Who is not in the group any more is not to come back unsigned."""
        await self.sign(conversation_id, lambda known: {user_id: None} if user_id in known else {})

    async def appoint(self, conversation_id: str, user_id: str, role: Role) -> None:
        """Another role, signed and then told to the server. Raises Refused, Unreachable."""
        await self.sign(conversation_id, lambda known: {user_id: role} if known.get(user_id) != role else {})
        await self._device.client.change_member(conversation_id, user_id, role)

    async def approve(self, conversation_id: str, user_id: str) -> None:
        """Signs in somebody who asks to be let in, and lets them in. Raises Refused, Unreachable."""
        await self.sign(conversation_id, lambda known: {user_id: "member"} if user_id not in known else {})
        await self._device.client.approve_request(conversation_id, user_id)

    async def may_sign_out(self, conversation_id: str, user_id: str) -> bool:
        """Whether the roster lets this device's user take that one out: an owner everybody, an admin members."""
        roles = _roles(await self._state(conversation_id))
        own, theirs = roles.get(self._device.own.user_id), roles.get(user_id)
        return theirs is not None and (own == "owner" or (own == "admin" and theirs == "member"))

    async def _state(self, conversation_id: str) -> RosterState | None:
        return await self._device.read(lambda tx: tx.get(RosterState, conversation_id))

    async def sign(self, conversation_id: str, change: Callable[[Members], Changes]) -> None:
        """Signs what `change` makes of the roles as they are, if it is anything, and publishes it. Raises Refused
        `roster-forbidden` where nobody would follow, and what the server says."""
        device = self._device
        for _try in range(TRIES_MAX):
            state = await self._companies.roster(conversation_id)
            wanted = change(_roles(state))
            if not wanted:
                return
            keys = {user_id: await self._account_key(user_id) for user_id, role in wanted.items() if role is not None}
            changes = [Change(user_id, role, keys.get(user_id, b"")) for user_id, role in wanted.items()]
            try:
                text, signature = rosters.make_statement(
                    state, conversation_id, timestamp(device.now()), device.own, changes
                )
            except rosters.BadStatement as trouble:
                raise Refused("roster-forbidden", 403, f"This cannot be signed here: {trouble.reason}") from None
            try:
                await device.client.publish_roster(conversation_id, text, to_base64url(signature))
            except Refused as refused:
                if refused.code != "roster-conflict":
                    raise
                continue
            await self._companies.roster(conversation_id)
            self._companies.forget(conversation_id)
            return
        raise Refused("roster-conflict", 409, "Others change this group all the time")

    async def _account_key(self, user_id: str) -> bytes:
        """As it was pinned; of somebody who is met now, what the server says."""
        device = self._device
        known = await device.read(lambda tx: tx.get(Peer, user_id))
        if known is not None:
            return known.account_key
        shown = await device.client.identities_of(user_id)
        return from_base64url(shown.account_key) if isinstance(shown.account_key, str) else b""


def _roles(state: RosterState | None) -> Members:
    return {user_id: role for user_id, role, _key in state.members} if state is not None else {}  # type: ignore[misc]
