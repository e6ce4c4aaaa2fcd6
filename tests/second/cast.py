"""The people and devices of the vectors: everything follows from a name, so that the files come out the same each time."""

import hashlib
from dataclasses import dataclass

from tests.second.agreement import LAST_RESORT, ONE_TIME, Bundle, Device, pre_key_to_sign
from tests.second.primitives import agreement_public, sign, signing_public

CONVERSATION = "0190a7c0-0000-7000-8000-0000000000c0"
OTHER_CONVERSATION = "0190a7c0-0000-7000-8000-0000000000c1"
ARCHIVE = "0190a7c0-0000-7000-8000-0000000000a0"


def secret(name: str, length: int = 32) -> bytes:
    """Bytes that look drawn by lot."""
    return hashlib.shake_256(f"GearLink test vector: {name}".encode()).digest(length)


def uuid(name: str) -> str:
    """An id in the form of a UUIDv7."""
    raw = secret(f"id of {name}", 16).hex()
    return f"0190a7c0-{raw[:4]}-7{raw[4:7]}-8{raw[7:10]}-{raw[10:22]}"


@dataclass(frozen=True)
class Actor:
    """A device with its private keys and those of its user."""

    user: str
    device: str = "phone"

    @property
    def user_id(self) -> str:
        return uuid(self.user)

    @property
    def account_seed(self) -> bytes:
        return secret(f"account of {self.user}")

    @property
    def account_key(self) -> bytes:
        return signing_public(self.account_seed)

    @property
    def identity_seed(self) -> bytes:
        return self.private("identity")

    @property
    def public(self) -> Device:
        device_id = uuid(f"{self.user}'s {self.device}")
        return Device(self.user_id, device_id, signing_public(self.identity_seed))

    def private(self, name: str) -> bytes:
        return secret(f"{name} of {self.user}'s {self.device}")

    def signature(self, pre_key: bytes) -> bytes:
        return sign(self.identity_seed, pre_key_to_sign(pre_key))

    def bundle(self, kind: int = ONE_TIME) -> Bundle:
        """As `POST /keys/claim` would hand it out."""
        signed = agreement_public(self.private("signed pre-key"))
        if kind == ONE_TIME:
            other = agreement_public(self.private("one-time pre-key"))
            return Bundle(self.public, 7, signed, self.signature(signed), ONE_TIME, 21, other)
        other = agreement_public(self.private("last-resort pre-key"))
        return Bundle(self.public, 7, signed, self.signature(signed), LAST_RESORT, 8, other, self.signature(other))

    def other_private(self, kind: int) -> bytes:
        return self.private("one-time pre-key" if kind == ONE_TIME else "last-resort pre-key")


ANN, BEN, CY = Actor("ann"), Actor("ben"), Actor("cy", "laptop")
BENS_TABLET = Actor("ben", "tablet")
