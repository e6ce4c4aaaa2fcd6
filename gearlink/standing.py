"""Whether an account may be used: suspension, deletion, and the way back from both.

A suspended account is kept as it is and nothing is done with it (GDPR Art. 18). A deleted one is gone for everybody at
once and erased `limits.ACCOUNT_ERASURE_DAYS` later; until then who proves the number at a sign-in may take that back
(`admission.readmit`). Either way every session ends, so no request has to ask. What an erased user wrote stays with those
whom they wrote to, under an id that leads nowhere. Erasure goes in small durable steps: it may be killed at any moment
and begun again. This module knows neither HTTP nor timers.
"""

from typing import Final

import trio
from msgspec.structs import replace

from config import limits
from gearlink import journal
from gearlink.accounts import Actor, own_user_view
from gearlink.admission import ERASE_ACCOUNT, end_all_sessions, find_account, remove_device, undelete
from gearlink.archives import erase_all
from gearlink.avatars import drop
from gearlink.clock import DAY, Clock, Milliseconds
from gearlink.device_lists import DeviceLists, Turn
from gearlink.device_news import tell
from gearlink.errors import FORBIDDEN, LAST_OWNER, NOT_AUTHENTICATED, TOO_LATE, Refusal
from gearlink.journal import Metrics
from gearlink.members import withdraw
from gearlink.verification import phone_hash
from gearlink.views import User
from storage.records import (
    Account,
    AccountKey,
    Block,
    Contact,
    Departure,
    Device,
    Draft,
    Due,
    LastSeen,
    PhoneNumber,
    Privacy,
    Record,
    Scheduled,
    Username,
)
from storage.store import Store, Transaction

_PAGE: Final = 500
_BY_USER: Final[
    tuple[tuple[type[Record], str], ...]
] = (  # tables below a user's id, and what comes after it in the key
    (Contact, "contact_id"),
    (Block, "blocked_id"),
    (Draft, "conversation_id"),
    (Scheduled, "scheduled_id"),
    (Departure, "conversation_id"),
)


class Standing:
    """The rules of suspension and deletion over a store. `who` is a phone number (`+…`), a username or an id."""

    def __init__(self, store: Store, clock: Clock, metrics: Metrics, lists: DeviceLists) -> None:
        self._store, self._clock, self._metrics, self._lists = store, clock, metrics, lists

    # --- suspension --------------------------------------------------------------------------------------------------

    async def suspend(self, who: str) -> User:
        """For operators: ends all sessions of the account and lets nobody sign in. Raises Refusal `not-found`."""
        return await self._suspend(who, None)

    async def suspend_by(self, actor: Actor, user_id: str) -> None:
        """The same for an admin. Raises Refusal `not-found`; `forbidden` for oneself, so that an admin always remains."""
        await self._suspend(user_id, actor)

    async def _suspend(self, who: str, actor: Actor | None) -> User:
        now = self._clock.now()

        async def change(tx: Transaction) -> tuple[Account, Turn | None]:
            account = await find_account(tx, who)
            if actor is not None:
                await _require_admin(tx, actor)
                if account.user_id == actor.user_id:
                    raise Refusal(FORBIDDEN, "Admins cannot suspend themselves: another admin or the operator can")
            if account.suspended_at:
                return account, None
            account = replace(account, suspended_at=now, updated_at=now)
            tx.put(account)
            async with self._lists.altering(tx, account.user_id) as turn:
                await end_all_sessions(tx, account.user_id)
            return account, turn

        account, turn = await self._store.write(change)
        if turn is not None:
            self._audit("account-suspended", account, actor)
            await tell(self._store, turn)
        return own_user_view(account)

    async def lift_by(self, actor: Actor, user_id: str) -> None:
        """For admins: the account may be used again, after a sign-in.

        Raises Refusal `not-found`; `forbidden` for who is no admin any more.
        """
        now = self._clock.now()

        async def change(tx: Transaction) -> tuple[Account, bool]:
            account = await find_account(tx, user_id)
            await _require_admin(tx, actor)
            return _lift(tx, account, now), bool(account.suspended_at)

        account, was_suspended = await self._store.write(change)
        if was_suspended:
            self._audit("suspension-lifted", account, actor)

    async def restore(self, who: str) -> User:
        """For operators: lifts a suspension and takes back a deletion, whichever there is.

        Raises Refusal `not-found`; `too-late` if the time to come back from a deletion is over.
        """
        now = self._clock.now()

        async def change(tx: Transaction) -> tuple[Account, Account]:
            old = await find_account(tx, who)
            account = _lift(tx, old, now)
            if account.deleted_at:
                if account.erase_at <= now:
                    raise Refusal(TOO_LATE, "This account is being erased")
                account = undelete(tx, account, now)
            return old, account

        old, account = await self._store.write(change)
        if old.suspended_at:
            self._audit("suspension-lifted", account, None)
        if old.deleted_at:
            self._audit("account-restored", account, None)
        return own_user_view(account)

    # --- deletion ----------------------------------------------------------------------------------------------------

    async def delete_own(self, actor: Actor) -> None:
        """Deletes the caller's account: gone at once, erased later.

        Raises Refusal `last-owner` for the last admin, as long as anybody else is there; `not-authenticated` if the
        account is deleted already.
        """
        heir_id = await self._admin_but(actor)
        now = self._clock.now()

        async def change(tx: Transaction) -> tuple[Account, Turn] | None:
            account = await tx.get(Account, actor.user_id)
            if account is None or account.deleted_at:
                raise Refusal(NOT_AUTHENTICATED)
            if heir_id:
                heir = await tx.get(Account, heir_id)
                if heir is None or not (heir.is_admin and heir.is_active):
                    return None
            return await self._delete(tx, account, now)

        while (deleted := await self._store.write(change)) is None:  # the other admin has gone meanwhile
            heir_id = await self._admin_but(actor)
        account, turn = deleted
        self._audit("account-deleted", account, actor)
        await tell(self._store, turn)

    async def delete(self, who: str) -> User:
        """For operators: the same, for any account. Raises Refusal `not-found`."""
        now = self._clock.now()

        async def change(tx: Transaction) -> tuple[Account, Turn | None]:
            account = await find_account(tx, who)
            if account.deleted_at:
                return account, None
            return await self._delete(tx, account, now)

        account, turn = await self._store.write(change)
        if turn is not None:
            self._audit("account-deleted", account, None)
            await tell(self._store, turn)
        return own_user_view(account)

    async def _delete(self, tx: Transaction, account: Account, now: Milliseconds) -> tuple[Account, Turn]:
        """The account is gone for everybody. Its number and username stay its own until it is erased."""
        erase_at = now + limits.ACCOUNT_ERASURE_DAYS * DAY
        account = replace(account, deleted_at=now, erase_at=erase_at, updated_at=now)
        tx.put(account)
        tx.put(Due(erase_at, ERASE_ACCOUNT, account.user_id, 0))
        async with self._lists.altering(tx, account.user_id) as turn:
            await end_all_sessions(tx, account.user_id)
        return account, turn

    async def _admin_but(self, actor: Actor) -> str:
        """An admin who remains when `actor` goes; "" if none has to. Raises Refusal `last-owner`."""
        if not actor.is_admin:
            return ""
        somebody, after = False, None
        while page := await self._store.scan(Account, after=after, limit=_PAGE):
            for account in page:
                if account.user_id != actor.user_id and account.is_active:
                    somebody = True
                    if account.is_admin:
                        return account.user_id
            after = page[-1].user_id
            await trio.lowlevel.checkpoint()
        if somebody:
            detail = "You are the last admin: ask the operator to make somebody else one first"
            raise Refusal(LAST_OWNER, detail)
        return ""

    async def erase(self, user_id: str) -> None:
        """Erases a deleted account whose time has come, and does nothing for any other. It may be begun again after it
        was interrupted anywhere: the account's record goes last."""
        if not await self._strip(user_id):
            return
        await withdraw(self._store, self._clock, user_id)
        await erase_all(self._store, self._clock, user_id)
        for kind, field in _BY_USER:
            while await self._erase_rows(kind, field, user_id):
                pass

        while await self._erase_device(user_id):
            pass

        async def change(tx: Transaction) -> None:
            async with self._lists.altering(tx, user_id):
                for kind in (Privacy, LastSeen, AccountKey, Account):
                    tx.delete(kind, user_id)

        await self._store.write(change)
        journal.audit(self._metrics, "account-erased", user_id=user_id, by=journal.SERVER)

    async def _strip(self, user_id: str) -> bool:
        """Takes number, name and picture away, by which nobody finds the account from now on, nor takes it back."""
        now = self._clock.now()

        async def change(tx: Transaction) -> bool:
            account = await tx.get(Account, user_id)
            if account is None or not account.deleted_at or account.erase_at > now:
                return False
            if account.phone_number:
                tx.delete(PhoneNumber, phone_hash(account.phone_number))
            if account.username:
                tx.delete(Username, account.username)
            drop(tx, account.avatar_id)
            tx.put(replace(account, phone_number="", username="", display_name="", bio="", avatar_id=""))
            return True

        return await self._store.write(change)

    async def _erase_rows(self, kind: type[Record], field: str, user_id: str) -> bool:
        """Deletes some rows of the user; True if there may be more."""

        async def change(tx: Transaction) -> bool:
            rows = await tx.scan(kind, user_id, limit=limits.SWEEP_ROWS_PER_STEP)
            for row in rows:
                tx.delete(kind, user_id, getattr(row, field))
            return len(rows) == limits.SWEEP_ROWS_PER_STEP

        return await self._store.write(change)

    async def _erase_device(self, user_id: str) -> bool:
        """Removes one device of the user with all that hangs on it; False if there is none left."""

        async def change(tx: Transaction) -> bool:
            devices = await tx.scan(Device, user_id, limit=1)
            async with self._lists.altering(tx, user_id):
                for device in devices:
                    await remove_device(tx, device)
            return bool(devices)

        return await self._store.write(change)

    def _audit(self, event: str, account: Account, actor: Actor | None) -> None:
        by = actor.user_id if actor is not None else journal.OPERATOR
        journal.audit(self._metrics, event, user_id=account.user_id, by=by)


def _lift(tx: Transaction, account: Account, now: Milliseconds) -> Account:
    if not account.suspended_at:
        return account
    account = replace(account, suspended_at=0, updated_at=now)
    tx.put(account)
    return account


async def _require_admin(tx: Transaction, actor: Actor) -> None:
    """Two admins who suspend each other at once: the second one is none any more."""
    account = await tx.get(Account, actor.user_id)
    if account is None or not (account.is_admin and account.is_active):
        raise Refusal(FORBIDDEN)
