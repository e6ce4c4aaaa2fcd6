"""The Double Ratchet, as §3 of its specification has it: one session of two devices. It keeps its state or changes all of it.

A message is here `ratchet key || u32 previous chain length || u32 number || ciphertext`; the first byte of an envelope
and what a `prekey` envelope says besides are in `agreement`.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7

from tests.second.primitives import ZEROS, Unreadable, agreement_public, dh, kdf, mac, u32

SKIP_MAX = 1_000  # in one chain, for one message
KEPT_MAX = 2_000  # for one session
CHAINS_MAX = 64  # that are over and whose duplicates are known as such
HEADER_BYTES = 32 + 4 + 4


class Duplicate(Exception):
    """The key of this message was used: it was read before."""


def kdf_rk(root_key: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """The next root key and a new chain key."""
    both = kdf(root_key, secret, "GearLink root chain", 64)
    return both[:32], both[32:]


def kdf_ck(chain_key: bytes) -> tuple[bytes, bytes]:
    """The message key and the next chain key."""
    return mac(chain_key, b"\x01"), mac(chain_key, b"\x02")


def message_secrets(message_key: bytes) -> tuple[bytes, bytes, bytes]:
    """Encryption key, authentication key and IV of one message."""
    secrets = kdf(ZEROS, message_key, "GearLink message", 80)
    return secrets[:32], secrets[32:64], secrets[64:]


def encrypt(message_key: bytes, plaintext: bytes, ad: bytes) -> bytes:
    """ENCRYPT of §3.1 with the functions of §5.2: AES-256-CBC, then HMAC."""
    encryption, authentication, iv = message_secrets(message_key)
    padder, encryptor = PKCS7(128).padder(), Cipher(AES(encryption), CBC(iv)).encryptor()
    padded = padder.update(plaintext) + padder.finalize()
    ciphertext = encryptor.update(padded) + encryptor.finalize()
    return ciphertext + mac(authentication, ad + ciphertext)


def decrypt(message_key: bytes, sealed: bytes, ad: bytes) -> bytes:
    """DECRYPT of §3.1: the tag is checked before anything else is looked at. Raises Unreadable."""
    encryption, authentication, iv = message_secrets(message_key)
    ciphertext, tag = sealed[:-32], sealed[-32:]
    if not hmac.compare_digest(mac(authentication, ad + ciphertext), tag):
        raise Unreadable("bad-message")
    try:
        unpadder, decryptor = PKCS7(128).unpadder(), Cipher(AES(encryption), CBC(iv)).decryptor()
        padded = decryptor.update(ciphertext) + decryptor.finalize()
        return unpadder.update(padded) + unpadder.finalize()
    except ValueError:
        raise Unreadable("bad-message") from None


@dataclass
class Session:
    """The state variables of §3.2, and more to tell a duplicate from a forgery: how long chains were that are `over`, and
    the number from which on no message key of a chain was dropped (`kept_from`). `fresh` makes private ratchet keys."""

    ad: bytes
    root_key: bytes
    own: bytes
    theirs: bytes
    fresh: Callable[[], bytes]
    sending: bytes = b""
    receiving: bytes = b""
    sent: int = 0
    received: int = 0
    previous: int = 0
    skipped: dict[tuple[bytes, int], bytes] = field(default_factory=dict)
    over: dict[bytes, int] = field(default_factory=dict)
    kept_from: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def begin(cls, sk: bytes, ad: bytes, their_signed_key: bytes, fresh: Callable[[], bytes]) -> Self:
        """RatchetInitAlice: B's first ratchet key is the signed pre-key of the agreement."""
        own = fresh()
        root_key, sending = kdf_rk(sk, dh(own, their_signed_key))
        return cls(ad, root_key, own, their_signed_key, fresh, sending)

    @classmethod
    def answer(cls, sk: bytes, ad: bytes, own_signed_private: bytes, fresh: Callable[[], bytes]) -> Self:
        """RatchetInitBob. It can send when it has read a message."""
        return cls(ad, sk, own_signed_private, b"", fresh)

    def encrypt(self, plaintext: bytes) -> bytes:
        """RatchetEncrypt of §3.4."""
        if not self.sending:
            raise ValueError("B begins to send when it has read a message")
        message_key, self.sending = kdf_ck(self.sending)
        header = agreement_public(self.own) + u32(self.previous) + u32(self.sent)
        self.sent += 1
        return header + encrypt(message_key, plaintext, self.ad + header)

    def decrypt(self, message: bytes) -> bytes:
        """RatchetDecrypt of §3.5. Raises Unreadable or Duplicate, and then nothing has changed."""
        if len(message) < HEADER_BYTES:
            raise Unreadable("bad-message")
        header, sealed = message[:HEADER_BYTES], message[HEADER_BYTES:]
        key = header[:32]
        previous, number = int.from_bytes(header[32:36], "big"), int.from_bytes(header[36:], "big")
        if (key, number) in self.skipped:
            plaintext = decrypt(self.skipped[key, number], sealed, self.ad + header)
            del self.skipped[key, number]
            return plaintext
        trial = replace(self, skipped=dict(self.skipped), over=dict(self.over), kept_from=dict(self.kept_from))
        if key == self.theirs or key in self.over:
            self._check_new(key, number)
        else:
            trial._finish(previous)
            trial._step(key)
        if number - trial.received > SKIP_MAX:
            raise Unreadable("bad-message")
        trial._skip(number)
        message_key, trial.receiving = kdf_ck(trial.receiving)
        trial.received += 1
        plaintext = decrypt(message_key, sealed, trial.ad + header)
        self.__dict__.update(trial.__dict__)
        return plaintext

    def _check_new(self, key: bytes, number: int) -> None:
        """A message of a chain that we know has to be one whose key was not made yet.

        Before its first answer A knows B's signed pre-key and has no receiving chain: nothing was ever encrypted there.
        """
        is_current = key == self.theirs
        length = self.received if is_current else self.over[key]
        if self.kept_from.get(key, 0) <= number < length:
            raise Duplicate
        if not is_current or not self.receiving or number < length:
            raise Unreadable("bad-message")

    def _finish(self, length: int) -> None:
        """The end of the receiving chain. Where too many messages of it are missing none of their keys is kept."""
        if not self.receiving:
            return
        if length - self.received <= SKIP_MAX:
            self._skip(length)
        self.over[self.theirs] = self.received
        for key in list(self.over)[:-CHAINS_MAX]:
            del self.over[key]

    def _skip(self, until: int) -> None:
        """SkipMessageKeys: keeps the keys of the messages of this chain that have not come."""
        while self.received < until:
            self.skipped[self.theirs, self.received], self.receiving = kdf_ck(self.receiving)
            self.received += 1
        while len(self.skipped) > KEPT_MAX:
            key, number = next(iter(self.skipped))
            del self.skipped[key, number]
            self.kept_from[key] = number + 1

    def _step(self, their_key: bytes) -> None:
        """DHRatchet: a receiving chain with the key that we had, and a sending chain with a new one."""
        self.previous, self.sent, self.received, self.theirs = self.sent, 0, 0, their_key
        try:
            self.root_key, self.receiving = kdf_rk(self.root_key, dh(self.own, their_key))
            self.own = self.fresh()
            self.root_key, self.sending = kdf_rk(self.root_key, dh(self.own, their_key))
        except ValueError:
            raise Unreadable("bad-message") from None
