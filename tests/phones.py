"""Devices that encrypt for each other, without a server: each has a vault in memory and hands out its bundles as a server
would, oldest one-time pre-key first, each once.
"""

from typing import Any

from msgspec import UNSET

from gearlink import views
from gearlink.calls import KeysForm
from gearlink.sdk.e2ee import agreement, certificates, sessions
from gearlink.sdk.e2ee.cipher import Cipher
from gearlink.sdk.e2ee.encoding import to_base64url
from gearlink.sdk.e2ee.records import PeerDevice, PreKey, PreKeyUse, Session
from gearlink.sdk.e2ee.sessions import Envelope
from tests.memory_vault import MemoryVault

DAY = 24 * 3600 * 1000
EPOCH = "epoch one"


def identifier(number: int) -> str:
    return f"01900000-0000-7000-8000-{number:012x}"


class Phone:
    """The device `number` of a user of its own, unless `user` says another one. `held` are the one-time pre-keys that the
    server has. With an `account_seed` its bundles show a certificate."""

    def __init__(self, number: int, *, user: int | None = None, account_seed: bytes = b"", one_time: int = 100) -> None:
        self.device_id, self.user_id = identifier(number), identifier(1000 + (number if user is None else user))
        self.vault, self.account_seed = MemoryVault(), account_seed
        self.own = agreement.new_own(self.user_id, self.device_id, 0)
        self.identity_key = agreement.identity_of(self.own)
        self.cipher = Cipher(self.own)
        self.vault.do(lambda tx: tx.put(self.own))
        self.held: list[Any] = []
        self.form = self.publish()
        del self.held[one_time:]

    @property
    def address(self) -> tuple[str, str]:
        return self.user_id, self.device_id

    @property
    def account_key(self) -> bytes:
        return certificates.account_public(self.account_seed) if self.account_seed else b""

    def publish(self, now: int = 0, epoch: str = EPOCH, *, anew: bool = False) -> KeysForm:
        """Uploads, and the server takes it."""

        def change(tx: Any) -> KeysForm:
            form = agreement.upload(tx, now, one_time_held=len(self.held), epoch=epoch, anew=anew)
            agreement.uploaded(tx, now, form, epoch)
            return form

        self.form = self.vault.do(change)
        self.held += self.form.one_time_pre_keys
        return self.form

    def bundle(self) -> views.DeviceBundle:
        """What a claim brings."""
        signed, last_resort = (
            views.SignedPreKeyView(key_id=key.key_id, public_key=key.public_key, signature=key.signature)
            for key in (self.form.signed_pre_key, self.form.last_resort_pre_key)
        )
        bundle = views.DeviceBundle(
            device_id=self.device_id, identity_key=self.form.identity_key, signed_pre_key=signed
        )
        if self.account_seed:
            certificate = certificates.certify(self.account_seed, self.user_id, self.device_id, self.identity_key)
            bundle.certificate = to_base64url(certificate)
        if self.held:
            key = self.held.pop(0)
            bundle.one_time_pre_key = views.OneTimePreKeyView(key_id=key.key_id, public_key=key.public_key)
        else:
            bundle.one_time_pre_key, bundle.last_resort_pre_key = UNSET, last_resort
        return bundle

    # --- with another phone --------------------------------------------------------------------------------------------

    def meet(self, other: "Phone", now: int = 0) -> None:
        """From now on this phone knows that device."""
        self.vault.do(lambda tx: tx.put(PeerDevice(*other.address, other.identity_key, b"", now)))

    def begin(self, other: "Phone", now: int = 0) -> None:
        self.meet(other)
        self.vault.do(lambda tx: self.cipher.begin(tx, other.user_id, other.bundle(), other.account_key, now))

    def seal(self, other: "Phone", text: bytes, now: int = 0) -> Envelope:
        return self.vault.do(lambda tx: self.cipher.seal(tx, other.device_id, text, now))

    def open(self, other: "Phone", envelope: Envelope, now: int = 0) -> bytes:
        """Knows who the other one is, as if it had been looked up."""
        return self.vault.do(
            lambda tx: sessions.open_envelope(
                tx, self.own, other.user_id, other.device_id, other.identity_key, envelope, now
            )
        )

    def forget(self, other: "Phone") -> None:
        self.vault.do(lambda tx: self.cipher.forget(tx, other.device_id))

    def sessions(self, other: "Phone") -> list[Session]:
        """What is sent goes on the first."""
        return self.vault.look(lambda tx: sessions.sessions_with(tx, other.device_id))

    def pre_keys(self, use: PreKeyUse) -> list[PreKey]:
        return self.vault.look(lambda tx: tx.scan(PreKey, use))
