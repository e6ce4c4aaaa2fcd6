"""Sender keys: a group message is encrypted once, signed by the device that sent it; and the digest of whom it is for."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.second.agreement import Device
from tests.second.primitives import Unreadable, b64, ident, kdf, mac, sign, signing_public, u32, verify
from tests.second.ratchet import Duplicate

VERSION = b"\x01"
SALT_BYTES = 16
HEADER_BYTES = 1 + 4 + SALT_BYTES
SIGNATURE_BYTES = 64
SKIP_MAX = 2_000  # for one message
KEPT_MAX = 2_000  # for one sender key
TAG_BYTES = 16


def message_key_of(chain_key: bytes) -> bytes:
    return mac(chain_key, b"\x01")


def next_chain_key(chain_key: bytes) -> bytes:
    return mac(chain_key, b"\x02")


def key_and_nonce(message_key: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """Of AES-256-GCM; each is used for one message."""
    both = kdf(salt, message_key, "GearLink sender key", 44)
    return both[:32], both[32:]


def associated_data(key_id: bytes, conversation_id: str, user_id: str, device_id: str, header: bytes) -> bytes:
    """What the ciphertext and the signature are bound to: key, conversation, sender, iteration."""
    ids = ident(conversation_id) + ident(user_id) + ident(device_id)
    return b"GearLink sender key v1" + key_id + ids + header


@dataclass
class SenderKey:
    """The sending half: what a device keeps for itself in one conversation."""

    conversation_id: str
    user_id: str
    device_id: str
    key_id: bytes
    chain_key: bytes
    signature_seed: bytes
    iteration: int = 0

    def letter(self) -> dict[str, str | int]:
        """The letter of type `sender-key`: the chain as it is now, and the public half of the signature key."""
        return {
            "type": "sender-key",
            "conversationId": self.conversation_id,
            "keyId": b64(self.key_id),
            "iteration": self.iteration,
            "chainKey": b64(self.chain_key),
            "signatureKey": b64(signing_public(self.signature_seed)),
        }

    def encrypt(self, plaintext: bytes, salt: bytes) -> bytes:
        """The body of a message that everybody with the key can read."""
        header = VERSION + u32(self.iteration) + salt
        ad = associated_data(self.key_id, self.conversation_id, self.user_id, self.device_id, header)
        key, nonce = key_and_nonce(message_key_of(self.chain_key), salt)
        ciphertext = AESGCM(key).encrypt(nonce, plaintext, ad)
        self.chain_key, self.iteration = next_chain_key(self.chain_key), self.iteration + 1
        return header + ciphertext + sign(self.signature_seed, ad + ciphertext)


@dataclass
class ReceivedKey:
    """The receiving half: what the others keep of it. Keys from before `given_from` were never here, or were dropped."""

    conversation_id: str
    user_id: str
    device_id: str
    key_id: bytes
    chain_key: bytes
    signature_key: bytes
    iteration: int
    given_from: int
    skipped: dict[int, bytes] = field(default_factory=dict)

    def decrypt(self, body: bytes) -> bytes:
        """The padded letter. Raises Unreadable or Duplicate, and then nothing has changed."""
        if len(body) < HEADER_BYTES + TAG_BYTES + SIGNATURE_BYTES:
            raise Unreadable("bad-message")
        header, signature = body[:HEADER_BYTES], body[-SIGNATURE_BYTES:]
        ciphertext = body[HEADER_BYTES:-SIGNATURE_BYTES]
        ad = associated_data(self.key_id, self.conversation_id, self.user_id, self.device_id, header)
        if not verify(self.signature_key, signature, ad + ciphertext):
            raise Unreadable("bad-signature")
        iteration = int.from_bytes(header[1:5], "big")
        if header[:1] != VERSION or iteration - self.iteration > SKIP_MAX:
            raise Unreadable("bad-message")
        skipped, chain_key = dict(self.skipped), self.chain_key
        for between in range(self.iteration, iteration + 1):
            skipped[between], chain_key = message_key_of(chain_key), next_chain_key(chain_key)
        if iteration not in skipped:
            if iteration < self.given_from:
                raise Unreadable("bad-message")
            raise Duplicate
        key, nonce = key_and_nonce(skipped.pop(iteration), header[5:])
        try:
            plaintext = AESGCM(key).decrypt(nonce, ciphertext, ad)
        except InvalidTag:
            raise Unreadable("bad-message") from None
        self.skipped, self.chain_key, self.iteration = skipped, chain_key, max(self.iteration, iteration + 1)
        while len(self.skipped) > KEPT_MAX:
            oldest = min(self.skipped)
            del self.skipped[oldest]
            self.given_from = oldest + 1
        return plaintext


def devices_digest(devices: Iterable[Device]) -> str:
    """`devicesDigest`: all devices of all members that count, the sending one among them."""
    entries = sorted(ident(each.user_id) + ident(each.device_id) + each.identity_key for each in devices)
    return b64(hashlib.sha256(b"".join(entries)).digest())
