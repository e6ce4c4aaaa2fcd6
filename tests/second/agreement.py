"""X3DH between two devices: the bundle and its checks, the shared key of either side, the start of a `prekey` envelope."""

from dataclasses import dataclass

from tests.second.primitives import (
    ZEROS,
    Unreadable,
    dh,
    ident,
    identity_to_agreement_private,
    identity_to_agreement_public,
    is_canonical,
    kdf,
    u32,
    verify,
)

VERSION = b"\x01"
ONE_TIME, LAST_RESORT = 1, 2
START_BYTES = 1 + 32 + 32 + 4 + 1 + 4


@dataclass(frozen=True)
class Device:
    """The public half of a device."""

    user_id: str
    device_id: str
    identity_key: bytes


@dataclass(frozen=True)
class Bundle:
    """What `POST /keys/claim` hands out for one device; `other` is its one-time or its last-resort pre-key."""

    device: Device
    signed_id: int
    signed_key: bytes
    signed_signature: bytes
    kind: int
    other_id: int
    other_key: bytes
    other_signature: bytes = b""  # one-time pre-keys have none

    def check(self) -> None:
        """Both signatures, and how keys are written. Raises ValueError.

        The certificate is checked in `rosters`, small order where DH is done.
        """
        if not is_canonical(self.signed_key) or not is_canonical(self.other_key):
            raise ValueError("a pre-key is not reduced")
        if not verify(self.device.identity_key, self.signed_signature, pre_key_to_sign(self.signed_key)):
            raise ValueError("the signature of the signed pre-key is wrong")
        if self.kind == LAST_RESORT:
            if not verify(self.device.identity_key, self.other_signature, pre_key_to_sign(self.other_key)):
                raise ValueError("the signature of the last-resort pre-key is wrong")
        elif self.kind != ONE_TIME:
            raise ValueError("no such kind of pre-key")


def pre_key_to_sign(public: bytes) -> bytes:
    """Encode(PK) of X3DH §2.1, over which pre-keys are signed."""
    return b"\x05" + public


def associated_data(a: Device, b: Device, ephemeral_a: bytes) -> bytes:
    """AD: both Ed25519 identity keys, whose they are, and EK_A; the one who began is A."""
    keys = b"\x06" + a.identity_key + b"\x06" + b.identity_key
    ids = ident(a.user_id) + ident(a.device_id) + ident(b.user_id) + ident(b.device_id)
    return keys + ids + ephemeral_a


def shared_key(dh1: bytes, dh2: bytes, dh3: bytes, dh4: bytes) -> bytes:
    """SK of X3DH §3.3; F are the 32 bytes of 0xFF of §2.2."""
    return kdf(ZEROS, b"\xff" * 32 + dh1 + dh2 + dh3 + dh4, "GearLink X3DH", 32)


def begin_steps(identity_seed: bytes, ephemeral: bytes, bundle: Bundle) -> list[bytes]:
    """DH1 to DH4 as A computes them, after the checks of the bundle. Raises ValueError."""
    bundle.check()
    return [
        dh(identity_to_agreement_private(identity_seed), bundle.signed_key),
        dh(ephemeral, identity_to_agreement_public(bundle.device.identity_key)),
        dh(ephemeral, bundle.signed_key),
        dh(ephemeral, bundle.other_key),
    ]


def begin(identity_seed: bytes, ephemeral: bytes, bundle: Bundle) -> bytes:
    """SK as A computes it."""
    return shared_key(*begin_steps(identity_seed, ephemeral, bundle))


def answer(identity_seed: bytes, signed: bytes, other: bytes, identity_a: bytes, ephemeral_a: bytes) -> bytes:
    """SK as B computes it, of its private keys and of A's public ones in the envelope. Raises Unreadable.

    That EK_A was not used before with this last-resort pre-key is for the caller to know.
    """
    if not is_canonical(ephemeral_a):
        raise Unreadable("bad-message")
    try:
        return shared_key(
            dh(signed, identity_to_agreement_public(identity_a)),
            dh(identity_to_agreement_private(identity_seed), ephemeral_a),
            dh(signed, ephemeral_a),
            dh(other, ephemeral_a),
        )
    except ValueError:
        raise Unreadable("bad-message") from None


@dataclass(frozen=True)
class Start:
    """What a `prekey` envelope says before the message: which keys the session was agreed with."""

    identity_key: bytes
    ephemeral_key: bytes
    signed_id: int
    kind: int
    other_id: int

    def envelope(self, message: bytes) -> bytes:
        """The body of a `prekey` envelope around a message of `ratchet.Session`."""
        ids = u32(self.signed_id) + bytes([self.kind]) + u32(self.other_id)
        return VERSION + self.identity_key + self.ephemeral_key + ids + message


def read_prekey(body: bytes) -> tuple[Start, bytes]:
    """The start and the message of a `prekey` body. Raises Unreadable."""
    if len(body) < START_BYTES or body[:1] != VERSION or body[69] not in (ONE_TIME, LAST_RESORT):
        raise Unreadable("bad-message")
    signed_id, other_id = int.from_bytes(body[65:69], "big"), int.from_bytes(body[70:74], "big")
    return Start(body[1:33], body[33:65], signed_id, body[69], other_id), body[START_BYTES:]


def read_message(body: bytes) -> bytes:
    """The message of a `message` body. Raises Unreadable."""
    if body[:1] != VERSION:
        raise Unreadable("bad-message")
    return body[1:]
