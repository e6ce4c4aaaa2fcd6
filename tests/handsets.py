"""Keys as a device makes them, and what a claim brings as a caller reads it: the client's half of the key exchange.

It is written from `docs/protocol.md` alone and shares no code with the server, so the two can only agree on what is
documented. Seeds make it the same in each run.
"""

import hashlib
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any
from uuid import UUID

from nacl.bindings import crypto_scalarmult_base
from nacl.signing import SigningKey, VerifyKey


def text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


class Handset:
    """A device with an identity and a counter for key ids. `uploaded` are its one-time pre-keys, oldest first."""

    def __init__(self, seed: str = "ann's phone") -> None:
        self.seed, self.last_id = seed, 0
        self.identity = SigningKey(self._secret("identity"))
        self.identity_key = text(bytes(self.identity.verify_key))
        self.uploaded: list[dict[str, Any]] = []
        self.rotate()

    def _secret(self, name: str) -> bytes:
        return hashlib.sha256(f"{self.seed} {name}".encode()).digest()

    def next_key(self) -> tuple[int, bytes]:
        self.last_id += 1
        return self.last_id, crypto_scalarmult_base(self._secret(f"key {self.last_id}"))

    def signed_key(self) -> dict[str, Any]:
        key_id, key = self.next_key()
        signature = self.identity.sign(b"\x05" + key).signature
        return {"keyId": key_id, "publicKey": text(key), "signature": text(signature)}

    def rotate(self) -> None:
        """Another signed and last-resort pre-key."""
        self.signed, self.last_resort = self.signed_key(), self.signed_key()

    def upload(self, one_time: int = 0) -> dict[str, Any]:
        """The body of `PUT /keys` with so many further one-time pre-keys."""
        fresh = [self.next_key() for _ in range(one_time)]
        forms = [{"keyId": key_id, "publicKey": text(key)} for key_id, key in fresh]
        self.uploaded += forms
        return {
            "identityKey": self.identity_key,
            "signedPreKey": self.signed,
            "lastResortPreKey": self.last_resort,
            "oneTimePreKeys": forms,
        }

    def digest(self, remaining: int) -> str:
        """What the server has to answer if it holds so many one-time pre-keys."""
        data = b"GearLink keys v1" + bytes(self.identity.verify_key)
        for form in (self.signed, self.last_resort):
            data += struct.pack(">Q", form["keyId"]) + _raw(form["publicKey"]) + _raw(form["signature"])
        for form in self.uploaded[len(self.uploaded) - remaining :]:
            data += struct.pack(">Q", form["keyId"]) + _raw(form["publicKey"])
        return text(hashlib.sha256(data).digest())

    def status(self, remaining: int) -> dict[str, Any]:
        """The answer to `GET /keys/status` if the server holds so many one-time pre-keys."""
        return {"oneTimeRemaining": remaining, "digest": self.digest(remaining)}


class Owner:
    """A user's account key, which says of devices that they are theirs."""

    def __init__(self, seed: str = "ann") -> None:
        self.key = SigningKey(hashlib.sha256(f"{seed} account".encode()).digest())
        self.account_key = text(bytes(self.key.verify_key))

    def certify(self, user_id: str, device_id: str, handset: Handset) -> dict[str, str]:
        """The body of `PUT /devices/{deviceId}/certificate`."""
        signed = b"GearLink device certificate v1" + UUID(user_id).bytes + UUID(device_id).bytes
        signature = self.key.sign(signed + bytes(handset.identity.verify_key)).signature
        return {"accountKey": self.account_key, "signature": text(signature)}

    def verify(self, user_id: str, shown: dict[str, Any]) -> None:
        """What a caller does with the certificate of a claimed bundle, or a listed device. Raises BadSignatureError."""
        signed = b"GearLink device certificate v1" + UUID(user_id).bytes + UUID(shown["deviceId"]).bytes
        self.key.verify_key.verify(signed + _raw(shown["identityKey"]), _raw(shown["certificate"]))


def devices_digest(devices: list[tuple[str, str, Handset]]) -> str:
    """SHA-256 over these devices, by the ids of user and device, as a sender computes it of those it knows."""
    parts = [
        UUID(user_id).bytes + UUID(device_id).bytes + bytes(handset.identity.verify_key)
        for user_id, device_id, handset in devices
    ]
    return text(hashlib.sha256(b"".join(sorted(parts))).digest())


def _raw(shown: str) -> bytes:
    return urlsafe_b64decode(shown + "=" * (-len(shown) % 4))


def verify(bundle: dict[str, Any]) -> None:
    """What a caller does first with a claimed bundle. Raises BadSignatureError."""
    identity = VerifyKey(_raw(bundle["identityKey"]))
    for name in ("signedPreKey", "lastResortPreKey"):
        if name in bundle:
            identity.verify(b"\x05" + _raw(bundle[name]["publicKey"]), _raw(bundle[name]["signature"]))
