"""The code under test as a device that can be fed with fixed keys, for `test_interop.py`, and the ways to feed it.

Its libraries draw keys by lot, so tests put a list in place of the lot. What is said with it is bytes: no letters.
"""

import secrets
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import UNSET

from gearlink import views
from gearlink.sdk.e2ee import agreement, sessions
from gearlink.sdk.e2ee.encoding import to_base64url
from gearlink.sdk.e2ee.letters import Duplicate, Undecryptable
from gearlink.sdk.e2ee.records import Own, PreKey
from gearlink.sdk.e2ee.sessions import Envelope
from tests.memory_vault import MemoryVault
from tests.second import ratchet
from tests.second.agreement import LAST_RESORT, ONE_TIME, Bundle, Device
from tests.second.cast import Actor
from tests.second.primitives import Unreadable, agreement_public

RATCHET_KEYS = "doubleratchet.recommended.diffie_hellman_ratchet_curve25519.DiffieHellmanRatchet._generate_priv"


def draw(monkeypatch: pytest.MonkeyPatch, module: str, drawn: bytes) -> None:
    """This module of the code under test, or of its libraries, draws these random bytes from now on."""
    lot = SimpleNamespace(token_bytes=lambda _size: drawn, choice=secrets.choice)
    monkeypatch.setattr(f"{module}.secrets", lot)


def draw_ratchet_keys(monkeypatch: pytest.MonkeyPatch, keys: Iterator[bytes]) -> None:
    """The ratchets of the code under test draw these private keys."""
    monkeypatch.setattr(RATCHET_KEYS, staticmethod(lambda: next(keys)))


def verdict(trouble: Exception) -> str:
    """What either implementation says about something that it did not read."""
    if isinstance(trouble, Duplicate | ratchet.Duplicate):
        return "duplicate"
    assert isinstance(trouble, Undecryptable | Unreadable)
    return str(trouble.reason)


def view_of(bundle: Bundle) -> views.DeviceBundle:
    """The bundle as the SDK reads it from the answer to `POST /keys/claim`."""
    signed = views.SignedPreKeyView(
        bundle.signed_id, to_base64url(bundle.signed_key), to_base64url(bundle.signed_signature)
    )
    key, signature = to_base64url(bundle.other_key), to_base64url(bundle.other_signature)
    return views.DeviceBundle(
        device_id=bundle.device.device_id,
        identity_key=to_base64url(bundle.device.identity_key),
        signed_pre_key=signed,
        one_time_pre_key=views.OneTimePreKeyView(bundle.other_id, key) if bundle.kind == ONE_TIME else UNSET,
        last_resort_pre_key=(
            views.SignedPreKeyView(bundle.other_id, key, signature) if bundle.kind == LAST_RESORT else UNSET
        ),
    )


class CodeUnderTest:
    """The device of an actor, run by `gearlink.sdk.e2ee`, with its pre-keys of `Actor.bundle`."""

    def __init__(self, actor: Actor) -> None:
        device = actor.public
        self.vault, self.now = MemoryVault(), 1
        self.own = Own("own", device.user_id, device.device_id, actor.identity_seed, 0)
        self.signed = self._pre_key(actor, "signed", 7)
        self.others = {
            ONE_TIME: self._pre_key(actor, "one-time", 21),
            LAST_RESORT: self._pre_key(actor, "last-resort", 8),
        }
        for record in (self.own, self.signed, *self.others.values()):
            self._put(record)

    @staticmethod
    def _pre_key(actor: Actor, use: Any, key_id: int) -> PreKey:
        private = actor.private(f"{use} pre-key")
        public = agreement_public(private)
        signature = actor.signature(public) if use != "one-time" else b""
        return PreKey(use, key_id, private, public, signature, 0)

    def _put(self, record: Any) -> None:
        self.vault.do(lambda tx: tx.put(record))

    def begin(self, bundle: Bundle) -> None:
        checked = agreement.checked_bundle(bundle.device.user_id, b"", view_of(bundle))
        self.vault.do(lambda tx: sessions.begin(tx, self.own, checked, bundle.device.user_id, self.now))

    def say(self, to: Device, plaintext: bytes) -> Envelope:
        self.now += 1
        return self.vault.do(lambda tx: sessions.seal(tx, to.device_id, plaintext, self.now))

    def hear(self, sender: Device, envelope: Envelope) -> bytes:
        self.now += 1
        ids = sender.user_id, sender.device_id, sender.identity_key
        return self.vault.do(lambda tx: sessions.open_envelope(tx, self.own, *ids, envelope, self.now))
