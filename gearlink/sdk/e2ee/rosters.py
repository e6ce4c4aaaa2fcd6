"""Who is in an encrypted group, as its owners and admins signed it: making statements of a roster, and following them.

Each statement names the one before by its hash, so whoever followed a roster cannot be led back or aside. The server keeps
the statements and can make none. What comes from others raises nothing but BadStatement. Not known here: who the server
says is in the group, and whether an account key is the one that was pinned; callers compare both.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec import UNSET

from config.limits import E2EE_MEMBERS_MAX
from gearlink import statements
from gearlink.sdk.e2ee.certificates import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    account_public,
    is_public_key,
    is_signed,
    sign,
    verify_certificate,
)
from gearlink.sdk.e2ee.encoding import from_base64url, to_base64url
from gearlink.sdk.e2ee.records import Own, RosterState
from gearlink.statements import MemberChange, Signer, Statement
from gearlink.views import Role

BadStatementReason = Literal[
    "unreadable",  # no statement: its JSON, a size or a key
    "foreign",  # of another conversation
    "not-next",  # another version, or not the hash of the one before
    "bad-signature",  # not by the identity key that it names
    "bad-certificate",  # that device is not certified by the account key that it names
    "changed-identity",  # the roster has another account key for the signer
    "not-allowed",  # the signer may not say that
    "no-owner",  # nobody would be left who can sign as owner
    "too-many",  # more members than a roster has
]


class BadStatement(Exception):
    """This text is not the next statement of the roster; `reason` says why not. It holds nothing of the text."""

    def __init__(self, reason: BadStatementReason) -> None:
        super().__init__(reason)
        self.reason: BadStatementReason = reason


@dataclass(frozen=True, slots=True)
class Change:
    """What a statement says of a user: that they are in, with this role and account key (empty for a user without one), or
    that they are out: `role` None."""

    user_id: str
    role: Role | None
    account_key: bytes = b""


# --- the text ---------------------------------------------------------------------------------------------------------


def make_statement(
    state: RosterState | None, conversation_id: str, at: str, own: Own, changes: Iterable[Change]
) -> tuple[str, bytes]:
    """The next statement after `state`, signed by this device, and its signature. The first one of a roster (state None)
    has to name this device's user as owner. `at` is RFC 3339 in UTC with milliseconds.

    Raises BadStatement if nobody would follow it, and `bad-certificate` if this device was not linked yet.
    """
    if not own.account_seed or not own.certificate:
        raise BadStatement("bad-certificate")
    identity_key = account_public(own.identity_seed)
    statement = Statement(
        conversation_id=conversation_id,
        version=state.version + 1 if state else 1,
        previous=to_base64url(state.hash) if state else None,
        at=at,
        signer=Signer(
            user_id=own.user_id,
            device_id=own.device_id,
            identity_key=to_base64url(identity_key),
            account_key=to_base64url(account_public(own.account_seed)),
            certificate=to_base64url(own.certificate),
        ),
        changes=[
            MemberChange(
                user_id=change.user_id,
                role=change.role,
                account_key=to_base64url(change.account_key) if change.account_key else UNSET,
            )
            for change in changes
        ],
    )
    text = msgspec.json.encode(statement).decode()
    signature = sign(own.identity_seed, statements.TITLE + text.encode())
    follow(state, conversation_id, own.user_id, text, signature)
    return text, signature


def follow(
    state: RosterState | None, conversation_id: str, creator_id: str, text: str, signature: bytes
) -> RosterState:
    """The roster after this statement, of which `text` is exactly what was sent; `state` is the roster before it, None for
    none. `creator_id` is who made the conversation, and counts for the first statement only.

    Its account keys are what the signer says they are: callers compare them with their pins. Raises BadStatement.
    """
    raw, statement = _read(text)
    if statement.conversation_id != conversation_id:
        raise BadStatement("foreign")
    expected = (state.version + 1, to_base64url(state.hash)) if state else (1, None)
    if (statement.version, statement.previous) != expected:
        raise BadStatement("not-next")
    account_key = _checked_signer(statement.signer, raw, signature)
    changes = [_change_of(change) for change in statement.changes]
    if len({change.user_id for change in changes}) != len(changes):
        raise BadStatement("unreadable")
    if state is None:
        # The creator is owner of a roster that is empty but for what they say next, themselves among it.
        _require_founder(statement.signer.user_id, account_key, creator_id, changes)
        members = {creator_id: ("owner", account_key)}
    else:
        members = {user_id: (role, key) for user_id, role, key in state.members}
    _apply(members, statement.signer.user_id, account_key, changes)
    if len(members) > E2EE_MEMBERS_MAX:
        raise BadStatement("too-many")
    if not any(role == "owner" and key for role, key in members.values()):
        raise BadStatement("no-owner")
    listed = tuple(sorted((user_id, role, key) for user_id, (role, key) in members.items()))
    return RosterState(conversation_id, statement.version, hashlib.sha256(raw).digest(), listed)


def key_in(text: str, user_id: str) -> bytes:
    """The account key that a statement which was followed gave this user; empty if it says nothing of them."""
    _raw, statement = _read(text)
    if statement.signer.user_id == user_id:
        return from_base64url(statement.signer.account_key)
    keys = [_change_of(change).account_key for change in statement.changes if change.user_id == user_id]
    return keys[0] if keys else b""


# --- the rules --------------------------------------------------------------------------------------------------------


def _read(text: str) -> tuple[bytes, Statement]:
    try:
        return statements.read(text)
    except (msgspec.ValidationError, statements.Unreadable):
        raise BadStatement("unreadable") from None


def _key(text: str) -> bytes:
    try:
        key = from_base64url(text, KEY_BYTES)
    except ValueError:
        raise BadStatement("unreadable") from None
    if not is_public_key(key):
        raise BadStatement("unreadable")
    return key


def _change_of(change: MemberChange) -> Change:
    if change.account_key is UNSET:
        return Change(change.user_id, change.role)
    if change.role is None:
        raise BadStatement("unreadable")
    return Change(change.user_id, change.role, _key(change.account_key))


def _checked_signer(signer: Signer, raw: bytes, signature: bytes) -> bytes:
    """The account key that vouches for the device that signed these bytes."""
    identity_key, account_key = _key(signer.identity_key), _key(signer.account_key)
    try:
        certificate = from_base64url(signer.certificate, SIGNATURE_BYTES)
    except ValueError:
        raise BadStatement("unreadable") from None
    if not is_signed(identity_key, statements.TITLE + raw, signature):
        raise BadStatement("bad-signature")
    if not verify_certificate(account_key, signer.user_id, signer.device_id, identity_key, certificate):
        raise BadStatement("bad-certificate")
    return account_key


def _require_founder(user_id: str, account_key: bytes, creator_id: str, changes: list[Change]) -> None:
    if user_id != creator_id or Change(creator_id, "owner", account_key) not in changes:
        raise BadStatement("not-allowed")


def _apply(members: dict[str, tuple[str, bytes]], signer_id: str, account_key: bytes, changes: list[Change]) -> None:
    """Changes `members` as the signer said, all changes being judged by what the roster was before any of them."""
    role, key = members.get(signer_id, ("", b""))
    if role not in ("owner", "admin"):
        raise BadStatement("not-allowed")
    if key != account_key:
        raise BadStatement("changed-identity")
    if role == "admin":
        for change in changes:
            known, _ = members.get(change.user_id, ("member", b""))
            if known != "member" or change.role not in (None, "member"):
                raise BadStatement("not-allowed")
    for change in changes:
        if change.role is None:
            members.pop(change.user_id, None)
        else:
            members[change.user_id] = (change.role, change.account_key)
