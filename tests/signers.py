"""Devices that sign who is in an encrypted group: the client's half of rosters, written from `docs/encryption.md` alone.

It shares no code with the server or the SDK, so they can only agree on what is documented.
"""

import hashlib
import json
from typing import Any

from nacl.signing import SigningKey

from gearlink.accounts import Actor
from storage.records import AccountKey, DeviceKeys, SignedPreKey
from tests.handsets import Handset, text

AT = "2026-01-31T12:00:00.000Z"


class Signer:
    """A device of a user, certified by the user's account key."""

    def __init__(self, user_id: str, device_id: str) -> None:
        self.user_id, self.device_id = user_id, device_id
        self.handset = Handset(f"{user_id} {device_id}")
        self.account = SigningKey(hashlib.sha256(f"account {user_id}".encode()).digest())
        self.account_key = text(bytes(self.account.verify_key))
        ids = bytes.fromhex((user_id + device_id).replace("-", ""))
        signed = b"GearLink device certificate v1" + ids + bytes(self.handset.identity.verify_key)
        self._certificate = self.account.sign(signed).signature
        self.certificate = text(self._certificate)

    @classmethod
    def of(cls, actor: Actor) -> "Signer":
        return cls(actor.user_id, actor.device_id)

    def records(self) -> tuple[DeviceKeys, AccountKey]:
        """What the server has of this device once its keys, account key and certificate were published."""
        key = SignedPreKey(1, bytes(32), bytes(64))
        keys = DeviceKeys(
            self.user_id, self.device_id, bytes(self.handset.identity.verify_key), key, key, 0, "", 0, 0,
            certificate=self._certificate,
        )  # fmt: skip
        return keys, AccountKey(self.user_id, bytes(self.account.verify_key))

    def statement(self, conversation_id: str, after: str | None, *changes: tuple[str, str | None], **more: Any) -> str:
        """The next one after the text `after`; without changes it says that the signer is an owner."""
        version = 1 if after is None else json.loads(after)["version"] + 1
        previous = None if after is None else text(hashlib.sha256(after.encode()).digest())
        said = changes or ((self.user_id, "owner"),)
        form = {
            "conversationId": conversation_id,
            "version": version,
            "previous": previous,
            "at": AT,
            "signer": {
                "userId": self.user_id,
                "deviceId": self.device_id,
                "identityKey": self.handset.identity_key,
                "accountKey": self.account_key,
                "certificate": self.certificate,
            },
            "changes": [{"userId": user_id, "role": role} for user_id, role in said],
        }
        return json.dumps(form | more)

    def form(self, statement: str) -> dict[str, str]:
        """The body of `POST …/roster`."""
        return {"statement": statement, "signature": self.sign(statement)}

    def sign(self, statement: str) -> str:
        return text(self.handset.identity.sign(b"GearLink roster v1" + statement.encode()).signature)
