"""What the server cannot forge: certificates of devices, and the statements that say who is in a group."""

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

from tests.second.primitives import b64, ident, identity_to_agreement_public, sign, unb64, verify

Said = dict[str, Any]  # an object of JSON

AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
ROLES = ("owner", "admin", "member", None)


class Refused(Exception):
    """A statement that does not count; `reason` is the code of "Rosters"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def certificate_text(user_id: str, device_id: str, identity_key: bytes) -> bytes:
    """What an account key signs to say that a device is its user's."""
    return b"GearLink device certificate v1" + ident(user_id) + ident(device_id) + identity_key


def certify(account_seed: bytes, user_id: str, device_id: str, identity_key: bytes) -> bytes:
    return sign(account_seed, certificate_text(user_id, device_id, identity_key))


def is_certified(account_key: bytes, certificate: bytes, user_id: str, device_id: str, identity_key: bytes) -> bool:
    return verify(account_key, certificate, certificate_text(user_id, device_id, identity_key))


def hash_of(statement: str) -> str:
    """What the next statement names as `previous`, and what letters name as `roster.hash`."""
    return b64(hashlib.sha256(statement.encode()).digest())


def statement_to_sign(statement: str) -> bytes:
    return b"GearLink roster v1" + statement.encode()


STATEMENT_BYTES_MAX = 128 * 1024
CHANGES_MAX = MEMBERS_MAX = 1_000
STATEMENT_KEYS = {"conversationId", "version", "previous", "at", "signer", "changes"}
SIGNER_KEYS = {"userId", "deviceId", "identityKey", "accountKey", "certificate"}


def read_statement(text: str) -> Said:
    """The statement that this text is, if every reader understands it in the same way. Raises Refused."""
    try:
        if len(text.encode()) > STATEMENT_BYTES_MAX:
            raise ValueError
        said = json.loads(text, object_pairs_hook=_without_repetition)
        changes = said["changes"]
        if set(said) != STATEMENT_KEYS or set(said["signer"]) != SIGNER_KEYS or not 1 <= len(changes) <= CHANGES_MAX:
            raise ValueError
        if type(said["version"]) is not int or said["version"] < 1 or not AT.fullmatch(said["at"]):
            raise ValueError
        for user in (said["signer"], *changes):
            ident(user["userId"])
        for key in ("identityKey", "accountKey"):
            _check_key(said["signer"][key])
        for change in changes:
            _check_change(change)
        if len({change["userId"] for change in changes}) != len(changes):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused("unreadable") from None
    found: Said = said
    return found


def _without_repetition(pairs: list[tuple[str, Any]]) -> Said:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _check_key(text: str) -> None:
    identity_to_agreement_public(unb64(text))  # of the group of prime order


def _check_change(change: Said) -> None:
    if change["role"] not in ROLES or not {"userId", "role"} <= set(change) <= {"userId", "role", "accountKey"}:
        raise ValueError
    if "accountKey" in change:
        _check_key(change["accountKey"])
        if change["role"] is None:
            raise ValueError


@dataclass(frozen=True)
class Entry:
    """One member as the roster has them; users without an account key have None."""

    role: str
    account_key: str | None


@dataclass(frozen=True)
class Roster:
    """Who is in a group after `version` statements; `hash` is of the last."""

    conversation_id: str
    creator_id: str
    version: int = 0
    hash: str | None = None
    members: dict[str, Entry] = field(default_factory=dict)

    def follow(self, statement: str, signature: bytes) -> "Roster":
        """The roster after one more statement. Raises Refused."""
        said = read_statement(statement)
        if said["conversationId"] != self.conversation_id:
            raise Refused("foreign")
        if said["version"] != self.version + 1 or said["previous"] != self.hash:
            raise Refused("not-next")
        self._check_signature(said["signer"], statement, signature)
        self._check_rights(said["signer"], said["changes"])
        members = dict(self.members)
        for change in said["changes"]:
            members.pop(change["userId"], None)
            if change["role"] is not None:
                members[change["userId"]] = Entry(change["role"], change.get("accountKey"))
        if len(members) > MEMBERS_MAX:
            raise Refused("too-many")
        if not any(entry.role == "owner" and entry.account_key for entry in members.values()):
            raise Refused("no-owner")
        return replace(self, version=self.version + 1, hash=hash_of(statement), members=members)

    @staticmethod
    def _check_signature(signer: Said, statement: str, signature: bytes) -> None:
        identity_key = unb64(signer["identityKey"])
        if not verify(identity_key, signature, statement_to_sign(statement)):
            raise Refused("bad-signature")
        ids = signer["userId"], signer["deviceId"]
        if not is_certified(unb64(signer["accountKey"]), unb64(signer["certificate"]), *ids, identity_key):
            raise Refused("bad-certificate")

    def _check_rights(self, signer: Said, changes: list[Said]) -> None:
        """All changes are judged by the roster before the statement."""
        if self.version == 0:
            founder = {"userId": self.creator_id, "role": "owner", "accountKey": signer["accountKey"]}
            if signer["userId"] != self.creator_id or founder not in changes:
                raise Refused("not-allowed")
            return
        entry = self.members.get(signer["userId"])
        if entry is None or entry.role not in ("owner", "admin"):
            raise Refused("not-allowed")
        if entry.account_key != signer["accountKey"]:
            raise Refused("changed-identity")
        for change in changes if entry.role == "admin" else ():
            before = self.members.get(change["userId"])
            if not {change["role"], before.role if before else None} <= {"member", None}:
                raise Refused("not-allowed")
