"""Who is in an encrypted group, as its owners and admins signed it: a chain of statements that the server only keeps.

The server cannot make a statement, and what one changes is for clients to judge. It keeps the exact text and sees to it
that the chain stays a chain: each statement names the hash of the one before, two that come at once do not both follow,
nobody fills it with what no owner or admin stands for, and every reader can read it. It knows neither HTTP nor sockets.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec
import trio
from msgspec import UNSET

from config import limits
from gearlink import statements, views
from gearlink.accounts import Actor
from gearlink.calls import RosterForm
from gearlink.clock import Clock
from gearlink.complaints import split_validation_error
from gearlink.errors import FORBIDDEN, ROSTER_CONFLICT, TOO_MANY, Refusal, invalid
from gearlink.prekeys import checked_identity, checked_signature, encoded
from gearlink.rights import Right, enter, has_roster
from gearlink.statements import MemberChange, Statement
from gearlink.throttle import Budget
from gearlink.views import Page
from storage.notices import RosterChanged
from storage.records import AccountKey, Conversation, DeviceKeys, Member, RosterStatement
from storage.store import Reads, Store, Transaction

_KEYS_PER_STEP: Final = 50  # 2 ms or so


class Rosters:
    """The rules of rosters over a store."""

    def __init__(self, store: Store, clock: Clock, budget: Budget) -> None:
        self._store, self._clock, self._budget = store, clock, budget

    async def publish(self, actor: Actor, conversation_id: str, form: RosterForm) -> tuple[int, bool]:
        """Puts a statement behind the newest one. Its version, and whether it is new: the same text again is not.

        Any member may bring it, e.g. to a server that was restored from an older copy. Its signer is an owner or admin
        now, or who brings it is: of old statements it may be that their signer has gone. Raises Refusal `not-found`,
        `invalid-request` (not encrypted, no statement of this conversation, not by a device of its signer), `forbidden`,
        `roster-conflict` with the newest version, `too-many`, `rate-limited`.
        """
        self._budget.check_change(actor)
        await _enter(self._store, actor, conversation_id)  # a stranger learns nothing of the statement
        if len(form.statement.encode()) > limits.ROSTER_STATEMENT_BYTES_MAX:
            raise invalid("statement", f"at most {limits.ROSTER_STATEMENT_BYTES_MAX} bytes of UTF-8")
        data, statement = _read(form.statement)
        if statement.conversation_id != conversation_id:
            raise invalid("statement.conversationId", "a statement of another conversation")
        await _require_sound(statement.changes)
        signature = checked_signature(
            statement.signer.identity_key, statements.TITLE + data, form.signature, "signature"
        )
        now = self._clock.now()

        async def change(tx: Transaction) -> bool:
            conversation, member = await _enter(tx, actor, conversation_id)
            last = await _newest(tx, conversation_id)
            newest = last.version if last is not None else 0
            known = await tx.get(RosterStatement, conversation_id, statement.version)
            if known is not None and known.statement == form.statement:
                return False
            if statement.version != newest + 1 or statement.previous != _hash(last):
                raise Refusal(ROSTER_CONFLICT, version=newest)
            await _require_signer(tx, conversation, member, statement)
            total_bytes = len(data) + (last.total_bytes if last is not None else 0)
            if total_bytes > limits.ROSTER_BYTES_MAX:
                raise Refusal(TOO_MANY, "This roster has grown as long as the server keeps one")
            version = statement.version
            tx.put(RosterStatement(conversation_id, version, form.statement, signature, total_bytes, now))
            tx.announce(RosterChanged(conversation_id, version))
            return True

        return statement.version, await self._store.write(change)

    async def statements(
        self, actor: Actor, conversation_id: str, after: int, limit: int
    ) -> Page[views.RosterStatement]:
        """The statements above version `after`, in order; a page ends early when it is large.

        Raises Refusal `not-found`, `invalid-request` for a conversation that has no roster.
        """
        await _enter(self._store, actor, conversation_id)
        last = await _newest(self._store, conversation_id)
        newest = last.version if last is not None else 0
        items: list[views.RosterStatement] = []
        at, size = after, 0
        while at < newest and len(items) < limit and size < limits.ROSTER_PAGE_BYTES_MAX:
            step = min(limit - len(items), limits.LARGE_ROWS_PER_STEP)
            for each in await self._store.scan(RosterStatement, conversation_id, after=at, limit=step):
                size += len(each.statement)
                if items and size > limits.ROSTER_PAGE_BYTES_MAX:
                    break
                signature = encoded(each.signature)
                items.append(views.RosterStatement(version=each.version, statement=each.statement, signature=signature))
                at = each.version
        return Page(items=items, next=str(at) if items and at < newest else None)


async def _enter(reads: Reads, actor: Actor, conversation_id: str) -> tuple[Conversation, Member]:
    """Raises Refusal `not-found`; `invalid-request` for a conversation that has no roster."""
    conversation, member = await enter(reads, actor.user_id, conversation_id, Right.READ)
    if not has_roster(conversation):
        raise invalid("conversationId", "only end-to-end encrypted groups and channels have a roster")
    return conversation, member


async def _newest(reads: Reads, conversation_id: str) -> RosterStatement | None:
    found = await reads.scan(RosterStatement, conversation_id, limit=1, reverse=True)
    return found[0] if found else None


def _read(text: str) -> tuple[bytes, Statement]:
    """Raises Refusal `invalid-request`."""
    try:
        return statements.read(text)
    except msgspec.ValidationError as error:
        path, message = split_validation_error(error, Statement)
        raise invalid(f"statement.{path}".rstrip("."), message) from None
    except statements.Unreadable:
        raise invalid("statement", "not JSON that every reader reads alike") from None


async def _require_sound(changes: Sequence[MemberChange]) -> None:
    """Raises Refusal `invalid-request` for what readers could take in two ways."""
    if len({change.user_id for change in changes}) != len(changes):
        raise invalid("statement.changes", "a user stands there twice")
    for number, change in enumerate(changes):
        path = f"statement.changes[{number}].accountKey"
        if change.account_key is not UNSET:
            if change.role is None:
                raise invalid(path, "who is taken out has none")
            checked_identity(change.account_key, path)
        if number % _KEYS_PER_STEP == _KEYS_PER_STEP - 1:
            await trio.lowlevel.checkpoint()


def _hash(last: RosterStatement | None) -> str | None:
    """What the next statement has to name as `previous`."""
    return encoded(hashlib.sha256(last.statement.encode()).digest()) if last is not None else None


async def _require_signer(tx: Transaction, conversation: Conversation, bringer: Member, statement: Statement) -> None:
    """Raises Refusal `invalid-request` for keys that are not those of the signer, `forbidden`."""
    signer = statement.signer
    keys = await tx.get(DeviceKeys, signer.user_id, signer.device_id)
    if keys is None or encoded(keys.identity_key) != signer.identity_key:
        raise invalid("statement.signer.identityKey", "not the identity key of this device of the signer")
    account = await tx.get(AccountKey, signer.user_id)
    if account is None or encoded(account.account_key) != signer.account_key:
        raise invalid("statement.signer.accountKey", "not the account key of the signer")
    if encoded(keys.certificate) != signer.certificate:
        raise invalid("statement.signer.certificate", "not the certificate of this device of the signer")
    if statement.version == 1 and signer.user_id != conversation.created_by:
        raise Refusal(FORBIDDEN, "The first statement is for whoever opened the conversation to sign")
    member = await tx.get(Member, conversation.conversation_id, signer.user_id)
    if (member is None or member.role == "member") and bringer.role == "member":
        raise Refusal(FORBIDDEN, "The signer of this statement is no owner or admin here")
