"""Profiles, usernames, and finding people by username or by phone number.

A username belongs to one account, and when it is given up it is kept for its last holder for a while, so that nobody
poses as them. Whoever is suspended, deleted, or blocked by the other in either direction is not found, as if they had
never been. Discovery takes SHA-256 of phone numbers, which hides nothing: there are so few numbers that whoever sees the
hashes can try them all. What keeps people from asking for every number is the budget, which counts every hash, known or
not, for each user and for each address, before anything is looked up. It knows nothing of HTTP.
"""

from base64 import urlsafe_b64decode
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from config import limits
from config.settings import Settings
from gearlink.accounts import Actor, clean_text, own_user_view, require_id, user_view
from gearlink.calls import DiscoverForm, Discovery, ProfileForm
from gearlink.clock import DAY, Clock, Milliseconds
from gearlink.errors import INVALID_REQUEST, NOT_AUTHENTICATED, NOT_FOUND, USERNAME_TAKEN, Refusal
from gearlink.people import may_find_by_number, may_talk, seen_by
from gearlink.throttle import Throttle
from gearlink.views import Page, User
from storage.records import Account, PhoneNumber, Username, UsernameHold
from storage.store import Store, Transaction

_RESERVED: Final = frozenset(  # names that would speak for the house, or that programs mistake for something else
    {"abuse", "admin", "administrator", "all", "everyone", "gearlink", "help", "here", "info", "me", "moderator"}
    | {"noreply", "null", "official", "operator", "owner", "postmaster", "root", "security", "server", "staff"}
    | {"support", "system", "undefined", "unknown"}
)


class Profiles:
    """The rules of profiles over a store."""

    def __init__(self, store: Store, clock: Clock, settings: Settings) -> None:
        self._store, self._clock = store, clock
        per_day = limits.USERNAME_CHANGES_PER_DAY
        self._renames = Throttle("username-changes", per_day / 86_400, per_day)
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Takes over what a reload may change; who was over a limit starts anew."""
        per_hour = settings.limits.discoveries_per_hour
        self._discoveries = Throttle("discoveries", per_hour / 3600, per_hour, unit="hashes")
        per_hour *= limits.DISCOVERERS_PER_ADDRESS
        self._discoveries_by_address = Throttle("discoveries-by-address", per_hour / 3600, per_hour, unit="hashes")

    # --- one's own ---------------------------------------------------------------------------------------------------

    async def me(self, actor: Actor) -> User:
        """The caller's own profile, with what nobody else sees."""
        account = await self._store.get(Account, actor.user_id)
        if account is None:
            raise Refusal(NOT_AUTHENTICATED)
        return own_user_view(account)

    async def change_profile(self, actor: Actor, form: ProfileForm) -> User:
        """Changes what is in `form`.

        Raises Refusal: `username-taken` (also for reserved names, and for those that are kept for their last holder),
        `invalid-request`, `rate-limited` for another username too soon: each one given up is kept for a while;
        `not-authenticated` if the account is gone.
        """
        changes: dict[str, str] = {}
        if form.display_name is not UNSET:
            changes["display_name"] = clean_text(form.display_name, "displayName")
        if form.bio is not UNSET:
            changes["bio"] = clean_text(form.bio, "bio", also="\n\t", may_be_empty=True)
        if form.username is not UNSET:
            changes["username"] = form.username or ""
        now = self._clock.now()

        async def change(tx: Transaction) -> Account:
            account = await tx.get(Account, actor.user_id)
            if account is None:
                raise Refusal(NOT_AUTHENTICATED)
            username = changes.get("username", account.username)
            if username != account.username:
                await _take_username(tx, account.user_id, username, now)
                if account.username:
                    self._renames.check(account.user_id)
                    _give_up_username(tx, account, now)
            account = replace(account, updated_at=now, **changes)
            tx.put(account)
            return account

        return own_user_view(await self._store.write(change))

    # --- others ------------------------------------------------------------------------------------------------------

    async def user(self, actor: Actor, user_id: str) -> User:
        """Somebody's profile as `actor` may see it; of a deleted user that they are deleted. Raises Refusal `not-found`."""
        require_id(user_id)
        account = await self._store.get(Account, user_id)
        if account is None:
            raise Refusal(NOT_FOUND)
        return await seen_by(self._store, actor.user_id, account)

    async def by_username(self, actor: Actor, name: str) -> Page[User]:
        """The user of this name, in any case: a page of one or none."""
        found = await self._store.get(Username, name.lower())
        account = await self._store.get(Account, found.user_id) if found is not None else None
        if account is None or not account.is_active or not await may_talk(self._store, actor.user_id, account.user_id):
            return Page(items=[])
        return Page(items=[user_view(account)])

    async def discover(self, actor: Actor, form: DiscoverForm) -> Page[Discovery]:
        """Who has the numbers of these hashes and lets the caller know; any other hash is not in the answer. The
        caller's own number always is.

        Raises Refusal, before anything is looked up: `rate-limited`, by user and by address, where each hash counts,
        known or not; `invalid-request` for more than ever pass.
        """
        hashes = list(dict.fromkeys(form.hashes))
        if self._discoveries.rate and len(hashes) > self._discoveries.burst:
            message = f"at most {int(self._discoveries.burst)} in an hour"
            raise Refusal(INVALID_REQUEST, errors=[{"path": "hashes", "message": message}])
        self._discoveries.check(actor.user_id, len(hashes))
        if actor.address:
            self._discoveries_by_address.check(actor.address, len(hashes))
        found = []
        for text in hashes:
            known = await self._store.get(PhoneNumber, urlsafe_b64decode(text + "="))
            account = await self._store.get(Account, known.user_id) if known is not None else None
            if account is None or not account.is_active:
                continue
            if await may_find_by_number(self._store, actor.user_id, account.user_id):
                found.append(Discovery(hash=text, user=user_view(account)))
        return Page(items=found)


async def _take_username(tx: Transaction, user_id: str, username: str, now: Milliseconds) -> None:
    """Takes `username` ("" for none) for the user. Raises Refusal `username-taken`."""
    if not username:
        return
    if username in _RESERVED or await tx.get(Username, username) is not None:
        raise Refusal(USERNAME_TAKEN)
    hold = await tx.get(UsernameHold, username)
    if hold is not None:
        if hold.user_id != user_id and hold.expires_at > now:
            raise Refusal(USERNAME_TAKEN)
        tx.delete(UsernameHold, username)
    tx.put(Username(username, user_id))


def _give_up_username(tx: Transaction, account: Account, now: Milliseconds) -> None:
    """The account's username is nobody's from now on, and kept for its holder."""
    tx.delete(Username, account.username)
    tx.put(UsernameHold(account.username, account.user_id, now + limits.USERNAME_HOLD_DAYS * DAY))
