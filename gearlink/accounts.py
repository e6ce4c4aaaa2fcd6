"""Who somebody is: signing in, sessions and devices, the check of every access token, and what operators do with both.

A proven phone number (`verification`) opens an account and a device in one change. Each sign-in on a device starts a
session; access tokens and refresh tokens belong to one session and die with it, and its sockets hear of that end by a
notice. A refresh token is used once: seeing it again means that two hold it, so the session ends for both. Who does not
hold the right code never learns whether a number is known. An account that was suspended or deleted has no session, so
its tokens are as dead as any other: what became of it is told at the next sign-in, to who holds the right code. It knows
nothing of HTTP, sockets or conversations.
"""

import secrets
import unicodedata
from dataclasses import dataclass
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from config import limits
from config.settings import Settings
from gearlink import admission, journal, views
from gearlink.calls import RefreshForm, SignedIn, TokenPair, VerifyConfirm
from gearlink.clock import DAY, Clock, Milliseconds, new_id, rfc3339
from gearlink.device_lists import DeviceLists, Turn
from gearlink.device_news import tell
from gearlink.errors import (
    INVALID_REFRESH_TOKEN,
    INVALID_REQUEST,
    NOT_AUTHENTICATED,
    NOT_FOUND,
    WRONG_CODE,
    Refusal,
)
from gearlink.timeline import avatar_url
from gearlink.tokens import Tokens
from gearlink.verification import Verification
from gearlink.views import Page, User
from storage.records import Account, Device, Invite, RefreshToken
from storage.store import Store, Transaction

_SEEN_EVERY: Final = 300_000  # "last seen" is not written more often than this
_REFRESH_PREFIX: Final = "glr_"  # by which people and secret scanners recognise one that leaked


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who is signed in. `expires_at` is when the access token that says so runs out.

    `address` is where they call from, as limits count it (`peers.network_of`); empty where nobody calls.
    """

    user_id: str
    device_id: str
    session_id: str
    expires_at: Milliseconds
    is_admin: bool
    address: str = ""


class Accounts:
    """The rules of accounts and sessions. Calls without an `Actor` are for operators or for signing in."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: Settings,
        metrics: journal.Metrics,
        tokens: Tokens,
        verification: Verification,
        lists: DeviceLists,
    ) -> None:
        self._store, self._clock, self._metrics, self._lists = store, clock, metrics, lists
        self._tokens, self._verification = tokens, verification
        self._refresh_ttl = settings.auth.refresh_token_days * DAY
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Takes over what a reload may change."""
        self._registration = settings.auth.registration

    # --- signing in and out -------------------------------------------------------------------------------------------

    async def confirm(self, form: VerifyConfirm, address: str) -> SignedIn:
        """Signs in whoever has the right code, and makes the account if the number is new and may have one.

        Raises Refusal: `wrong-code`, and only to holders of the right code `registration-closed`, `invite-required`,
        `not-found` for a device id that is not theirs (whether it is somebody else's is not told), `too-many-devices`,
        `account-suspended`, `account-deleted` unless the form takes the deletion back; these leave the code usable, for
        another attempt. `rate-limited` by `address`.
        """
        self._verification.check_address(address)
        name = clean_text(form.device.name, "device.name")
        await self._tokens.ready()
        now, session_id, refresh_token = self._clock.now(), new_id(), _fresh_refresh_token()

        async def change(tx: Transaction) -> tuple[Account, Device, Turn, bool, bool] | None:
            number = await self._verification.prove(tx, form.verification_id, form.code)
            if number is None:
                return None  # not raised: the try that it took has to be written
            account, is_new = await admission.admit(tx, number, self._registration, form.invite_code or "", now)
            was_deleted = bool(account.deleted_at)
            account = admission.readmit(tx, account, form.restore_account, now)
            named = replace(form.device, name=name)
            async with self._lists.altering(tx, account.user_id) as turn:
                device = await admission.open_session(tx, account, named, session_id, now, self._refresh_ttl)
            admission.put_refresh_token(tx, refresh_token, device, now, self._refresh_ttl)
            return account, device, turn, is_new, was_deleted

        entered = await self._store.write(change)
        if entered is None:
            raise Refusal(WRONG_CODE)
        account, device, turn, is_new, was_deleted = entered
        await tell(self._store, turn)
        if was_deleted:
            self._audit("account-restored", user_id=account.user_id, by=account.user_id)
        if is_new:
            self._audit("account-created", user_id=account.user_id, is_admin=account.is_admin, by=account.user_id)
        return SignedIn(
            access_token=self._tokens.issue(account.user_id, device.device_id, session_id),
            refresh_token=refresh_token,
            expires_in_seconds=self._tokens.ttl_seconds,
            user=own_user_view(account),
            device=_device(device, device.device_id),
            is_new_user=is_new,
        )

    async def refresh(self, form: RefreshForm) -> TokenPair:
        """A new pair for a refresh token, which dies. One that was used before ends its session, on all its holders.

        Raises Refusal `invalid-refresh-token`.
        """
        await self._tokens.ready()
        now, fresh = self._clock.now(), _fresh_refresh_token()

        async def change(tx: Transaction) -> tuple[Device | RefreshToken | None, Turn | None]:
            shown = await admission.rotate_refresh_token(tx, form.refresh_token, fresh, now, self._refresh_ttl)
            if not isinstance(shown, RefreshToken):
                return shown, None
            async with self._lists.altering(tx, shown.user_id) as turn:
                await admission.end_session_of(tx, shown)
            return shown, turn

        found, turn = await self._store.write(change)
        if turn is not None:
            await tell(self._store, turn)
        if isinstance(found, RefreshToken):
            self._audit("refresh-token-reuse", level="warning", user_id=found.user_id, device_id=found.device_id)
        if not isinstance(found, Device):
            raise Refusal(INVALID_REFRESH_TOKEN)
        access_token = self._tokens.issue(found.user_id, found.device_id, found.session_id)
        return TokenPair(access_token=access_token, refresh_token=fresh, expires_in_seconds=self._tokens.ttl_seconds)

    async def authenticate(self, access_token: str, address: str = "") -> Actor:
        """Who holds this token, calling from `address`.

        Raises Refusal `not-authenticated`, also when its session or device is gone.
        """
        claims = self._tokens.verify(access_token)
        device = await self._store.get(Device, claims.user_id, claims.device_id)
        if device is None or device.session_id != claims.session_id:
            raise Refusal(NOT_AUTHENTICATED)
        return Actor(claims.user_id, claims.device_id, claims.session_id, claims.expires_at, device.is_admin, address)

    async def connected_at(self, actor: Actor) -> Milliseconds:
        """When a socket of the device was last noted: it was there then, and perhaps for a while after; 0 for never."""
        device = await self._store.get(Device, actor.user_id, actor.device_id)
        return device.connected_at if device is not None else 0

    async def seen(self, actor: Actor) -> None:
        """Notes that a socket of the device begins, every few minutes at most."""
        now = self._clock.now()

        async def change(tx: Transaction) -> None:
            device = await tx.get(Device, actor.user_id, actor.device_id)
            if device is not None:
                tx.put(replace(device, last_seen_at=max(now, device.last_seen_at), connected_at=now))

        device = await self._store.get(Device, actor.user_id, actor.device_id)
        if device is not None and device.connected_at + _SEEN_EVERY <= now:
            await self._store.write(change)

    async def logout(self, actor: Actor) -> None:
        """Ends the session: its tokens and sockets. The device stays, signed out."""

        async def change(tx: Transaction) -> Turn:
            device = await tx.get(Device, actor.user_id, actor.device_id)
            if device is None or device.session_id != actor.session_id:
                return Turn(actor.user_id)
            async with self._lists.altering(tx, actor.user_id) as turn:
                admission.end_session(tx, device)
            return turn

        await tell(self._store, await self._store.write(change))

    async def devices(self, actor: Actor) -> Page[views.Device]:
        """The caller's devices, oldest first, all on one page."""
        devices = await self._store.scan(Device, actor.user_id, limit=limits.DEVICES_PER_USER_MAX)
        return Page(items=[_device(device, actor.device_id) for device in devices])

    async def remove_device(self, actor: Actor, device_id: str) -> None:
        """Forgets a device of the caller and ends its session. Raises Refusal `not-found`, also if it is not theirs."""
        require_id(device_id)

        async def change(tx: Transaction) -> Turn:
            device = await tx.get(Device, actor.user_id, device_id)
            if device is None:
                raise Refusal(NOT_FOUND)
            async with self._lists.altering(tx, actor.user_id) as turn:
                await admission.remove_device(tx, device)
            return turn

        turn = await self._store.write(change)
        self._audit("device-removed", user_id=actor.user_id, device_id=device_id, by=actor.user_id)
        await tell(self._store, turn)

    # --- operators ----------------------------------------------------------------------------------------------------

    async def create_invite(self, created_by: str = "", days: float = 7) -> str:
        """A code that lets one newcomer in within `days`. It is told here and never again."""
        code, now = admission.fresh_invite_code(), self._clock.now()
        invite = Invite(admission.invite_hash(code), now, now + int(days * DAY), created_by)

        async def change(tx: Transaction) -> None:
            tx.put(invite)

        await self._store.write(change)
        self._audit("invite-created", by=created_by or journal.OPERATOR)
        return code

    async def promote(self, who: str) -> User:
        """Makes the account with this number (`+…`), username or id an admin. Raises Refusal `not-found`."""
        return await self._set_admin(who, True)

    async def demote(self, who: str) -> User:
        """The opposite of `promote`."""
        return await self._set_admin(who, False)

    async def list_users(self, limit: int, cursor: str | None = None) -> Page[User]:
        """All accounts, oldest first, with their numbers. Raises Refusal `invalid-request` for a foreign cursor."""
        if cursor is not None and not admission.is_id(cursor):
            raise Refusal(INVALID_REQUEST, errors=[{"path": "cursor", "message": "not a cursor of this list"}])
        accounts = await self._store.scan(Account, after=cursor, limit=limit + 1)
        more = accounts[limit - 1].user_id if len(accounts) > limit else None
        return Page(items=[own_user_view(account) for account in accounts[:limit]], next=more)

    async def _set_admin(self, who: str, is_admin: bool) -> User:
        async def change(tx: Transaction) -> Account:
            account = await admission.find_account(tx, who)
            account = replace(account, is_admin=is_admin)
            tx.put(account)
            for device in await tx.scan(Device, account.user_id, limit=limits.DEVICES_PER_USER_MAX):
                tx.put(replace(device, is_admin=is_admin))
            return account

        account = await self._store.write(change)
        self._audit("admin-granted" if is_admin else "admin-revoked", user_id=account.user_id, by=journal.OPERATOR)
        return own_user_view(account)

    def _audit(self, event: str, *, level: str = "info", **fields: str | bool) -> None:
        journal.audit(self._metrics, event, level=level, **fields)


# --- what is stored, as it is told -----------------------------------------------------------------------------------


def user_view(account: Account) -> User:
    """An active user, as everybody may see them."""
    return User(
        id=account.user_id,
        username=account.username or None,
        display_name=account.display_name,
        bio=account.bio,
        created_at=rfc3339(account.created_at),
        avatar_url=avatar_url(account.avatar_id),
    )


def own_user_view(account: Account) -> User:
    """A user as they see themselves, and as operators see everybody."""
    return replace(
        user_view(account),
        phone_number=account.phone_number,
        is_admin=account.is_admin,
        is_suspended=bool(account.suspended_at) or UNSET,
        is_deleted=bool(account.deleted_at) or UNSET,
    )


def _device(device: Device, current_id: str) -> views.Device:
    return views.Device(
        id=device.device_id,
        name=device.name,
        type=device.type,
        created_at=rfc3339(device.created_at),
        last_seen_at=rfc3339(device.last_seen_at),
        current=device.device_id == current_id,
        signed_in=bool(device.session_id),
    )


# --- what comes in ---------------------------------------------------------------------------------------------------


def clean_text(text: str, path: str, *, also: str = "", may_be_empty: bool = False) -> str:
    """`text` without blanks around it. Raises Refusal `invalid-request` for control characters, which could play tricks
    on somebody's terminal, except those in `also`; and if nothing is left."""
    text = text.strip()
    if any(unicodedata.category(letter) == "Cc" and letter not in also for letter in text):
        raise Refusal(INVALID_REQUEST, errors=[{"path": path, "message": "control characters are not allowed"}])
    if not text and not may_be_empty:
        raise Refusal(INVALID_REQUEST, errors=[{"path": path, "message": "must not be blank"}])
    return text


def require_id(text: str) -> None:
    """Raises Refusal `not-found` for what can be nobody's id."""
    if not admission.is_id(text):
        raise Refusal(NOT_FOUND)


def _fresh_refresh_token() -> str:
    return _REFRESH_PREFIX + secrets.token_urlsafe(32)
