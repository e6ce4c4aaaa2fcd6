"""Calls about people: signing in and out, devices, one's profile, contacts, blocks, privacy, and one's account.

One method is one call; each raises Refused or Unreachable, and says which refusals it has besides the usual ones. It
knows nothing of sockets.
"""

from collections.abc import Iterable

from config.limits import HASHES_PER_CALL_MAX
from gearlink import calls
from gearlink.sdk.exchange import Exchange, segment
from gearlink.sdk.failures import Refused
from gearlink.sdk.paging import Items
from gearlink.sdk.translate import phone_hash
from gearlink.views import (
    BlockView,
    ClaimedKeys,
    ContactView,
    ConversationDevices,
    Device,
    DeviceBundle,
    DeviceIdentities,
    DeviceIdentity,
    DeviceType,
    KeyStatus,
    Page,
    PrivacyView,
    User,
)


class People(Exchange):
    """The calls about people."""

    # --- signing in ---------------------------------------------------------------------------------------------------

    async def request_code(self, phone_number: str) -> calls.VerifyRequested:
        """Asks the server to send a code to `phone_number` (E.164)."""
        body = calls.VerifyRequest(phone_number=phone_number)
        return await self._open("POST", "/auth/verify/request", calls.VerifyRequested, body)

    async def confirm(
        self,
        verification_id: str,
        code: str,
        device_name: str,
        device_type: DeviceType,
        device_id: str | None = None,
        invite_code: str | None = None,
        *,
        restore_account: bool = False,
    ) -> calls.SignedIn:
        """Signs this device in; the tokens are kept in the state, and saved. `device_id` names a device of this user
        that signs in again. `restore_account` takes the deletion of one's account back. Raises Refused: `wrong-code`,
        `invite-required`, `registration-closed`, `too-many-devices`, `account-suspended`, `account-deleted`."""
        device = calls.DeviceForm(name=device_name, type=device_type, device_id=device_id)
        body = calls.VerifyConfirm(
            verification_id=verification_id,
            code=code,
            device=device,
            invite_code=invite_code,
            restore_account=restore_account,
        )
        signed = await self._open("POST", "/auth/verify/confirm", calls.SignedIn, body)
        state = self.state
        if (state.user_id, state.device_id) != (signed.user.id, signed.device.id):
            state.epoch, state.cursors = None, {}
        state.user_id, state.device_id = signed.user.id, signed.device.id
        await self._keep_tokens(signed)
        return signed

    async def logout(self) -> None:
        """Ends this device's session on the server and forgets the tokens, also if the session had ended before."""
        try:
            await self.call("POST", "/auth/logout", None)
        except Refused as refused:
            if refused.status != 401:
                raise
        await self._forget_tokens()

    async def devices(self) -> list[Device]:
        """The caller's devices."""
        return [device async for device in self.items("/devices", Device)]

    async def remove_device(self, device_id: str) -> None:
        """Signs a device out for good."""
        await self.call("DELETE", f"/devices/{segment(device_id)}", None)

    # --- keys ---------------------------------------------------------------------------------------------------------

    async def upload_keys(self, keys: calls.KeysForm) -> KeyStatus:
        """Publishes this device's public keys: one-time pre-keys are added, the others replaced. Raises Refused
        `invalid-request`, `too-many`."""
        return await self.call("PUT", "/keys", KeyStatus, keys)

    async def key_status(self) -> KeyStatus:
        """How many one-time pre-keys of this device are left, and a digest of what the server holds of it."""
        return await self.call("GET", "/keys/status", KeyStatus)

    async def claim_keys(self, user_id: str) -> list[DeviceBundle]:
        """What it takes to open a session with each device of a user. Raises Refused `not-found`."""
        answer = await self.call("POST", "/keys/claim", ClaimedKeys, calls.ClaimForm(user_id=user_id))
        return answer.devices

    async def devices_of(self, user_id: str) -> list[DeviceIdentity]:
        """The identity keys of a user's devices. Raises Refused `not-found`."""
        return (await self.identities_of(user_id)).devices

    async def identities_of(self, user_id: str) -> DeviceIdentities:
        """`devices_of` a user, and the account key that certifies them. Raises Refused `not-found`."""
        return await self.call("GET", f"/users/{segment(user_id)}/devices", DeviceIdentities)

    async def certify_device(self, device_id: str, account_key: str, signature: str) -> None:
        """Says that a device of the caller is theirs: `signature` is by the account key. Another account key than before
        voids the certificates of all other devices. Raises Refused `not-found`, `invalid-request`."""
        form = calls.CertificateForm(account_key=account_key, signature=signature)
        await self.call("PUT", f"/devices/{segment(device_id)}/certificate", None, form)

    async def conversation_devices(self, conversation_id: str) -> ConversationDevices:
        """The devices for which messages in an encrypted conversation are, this one among them. Raises Refused
        `not-found`."""
        path = f"/conversations/{segment(conversation_id)}/devices"
        return await self.call("GET", path, ConversationDevices)

    # --- oneself ------------------------------------------------------------------------------------------------------

    async def me(self) -> User:
        """One's own profile."""
        return await self.call("GET", "/users/me", User)

    async def change_profile(self, form: calls.ProfileForm) -> User:
        """Changes the fields of `form` that are set. Raises Refused: `username-taken`, `invalid-request`."""
        return await self.call("PATCH", "/users/me", User, form)

    async def set_avatar(self, picture: bytes, media_type: str) -> str:
        """Makes this PNG, JPEG or WebP one's own picture; the path where it can be fetched. Raises Refused `too-large`,
        `unsupported-media-type`, `invalid-request`."""
        answer = await self.call("PUT", "/users/me/avatar", calls.AvatarSet, picture, media_type=media_type)
        return answer.avatar_url

    async def remove_avatar(self) -> None:
        """Takes one's own picture away."""
        await self.call("DELETE", "/users/me/avatar", None)

    async def avatar(self, avatar_url: str) -> bytes:
        """The picture of which a profile or a conversation says that it is at `avatar_url`. Raises Refused `not-found`."""
        avatar_id = avatar_url.rpartition("/")[2]
        return await self.call("GET", f"/avatars/{segment(avatar_id)}", bytes)

    async def privacy(self) -> PrivacyView:
        """What one lets others see and do."""
        return await self.call("GET", "/users/me/privacy", PrivacyView)

    async def change_privacy(self, form: calls.PrivacyForm) -> PrivacyView:
        """Changes the fields of `form` that are set."""
        return await self.call("PATCH", "/users/me/privacy", PrivacyView, form)

    async def delete_account(self) -> None:
        """Deletes one's own account: gone at once, erased for good later; until then a sign-in with `restore_account`
        takes it back. The tokens are forgotten. Raises Refused `last-owner`."""
        await self.call("DELETE", "/users/me", None)
        await self._forget_tokens()

    # --- others -------------------------------------------------------------------------------------------------------

    async def user(self, user_id: str) -> User:
        """Somebody's profile."""
        return await self.call("GET", f"/users/{segment(user_id)}", User)

    async def user_named(self, username: str) -> User | None:
        """Who has this username, if anybody has."""
        page = await self.call("GET", "/users", Page[User], params={"username": username})
        return page.items[0] if page.items else None

    async def discover(self, phone_numbers: Iterable[str]) -> dict[str, User]:
        """Which of these numbers (E.164) have an account here. The server is told hashes only."""
        by_hash = {phone_hash(number): number for number in phone_numbers}
        hashes, found = list(by_hash), dict[str, User]()
        for start in range(0, len(hashes), HASHES_PER_CALL_MAX):
            form = calls.DiscoverForm(hashes=hashes[start : start + HASHES_PER_CALL_MAX])
            page = await self.call("POST", "/contacts/discover", Page[calls.Discovery], form)
            found.update({by_hash[hit.hash]: hit.user for hit in page.items if hit.hash in by_hash})
        return found

    def contacts(self) -> Items[ContactView]:
        """One's contacts."""
        return self.items("/contacts", ContactView)

    async def put_contact(self, user_id: str, nickname: str = "") -> ContactView:
        """Takes somebody into one's contacts, or changes their nickname. Raises Refused `not-found`, `too-many`."""
        form = calls.ContactForm(nickname=nickname)
        return await self.call("PUT", f"/contacts/{segment(user_id)}", ContactView, form)

    async def remove_contact(self, user_id: str) -> None:
        """Takes somebody out of one's contacts, if they are there."""
        await self.call("DELETE", f"/contacts/{segment(user_id)}", None)

    def blocks(self) -> Items[BlockView]:
        """Whom one has blocked."""
        return self.items("/blocks", BlockView)

    async def block(self, user_id: str) -> None:
        """Blocks somebody; they are not told."""
        await self.call("PUT", f"/blocks/{segment(user_id)}", None)

    async def unblock(self, user_id: str) -> None:
        """Lifts a block, if there is one."""
        await self.call("DELETE", f"/blocks/{segment(user_id)}", None)

    # --- for an admin of the server -----------------------------------------------------------------------------------

    async def suspend(self, user_id: str) -> None:
        """Signs an account out and keeps it as it is, until that is lifted. Raises Refused `forbidden` to all but
        admins of the server, and about one of them."""
        await self.call("PUT", f"/users/{segment(user_id)}/suspension", None)

    async def lift_suspension(self, user_id: str) -> None:
        """Lifts a suspension, if there is one. Raises Refused `forbidden` to all but admins of the server."""
        await self.call("DELETE", f"/users/{segment(user_id)}/suspension", None)
