"""The pre-keys of this device, and the agreement on a secret with another one (X3DH).

It makes pre-keys when they are due, keeps the private parts for as long as messages may come that were begun with them,
says what the server has to hold, and believes no bundle before it has checked it. The arithmetic is the x3dh library's,
over exactly the keys that one agreement needs: which keys there are is said by our records alone. What becomes of the
secret is in `sessions`, whose account key is the right one is not known here. It knows no socket.
"""

import hashlib
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import nacl.bindings
import nacl.exceptions
import x3dh
from msgspec.structs import replace
from x3dh.crypto_provider import HashFunction
from x3dh.identity_key_pair import IdentityKeyPairSeed
from x3dh.models import BaseStateModel, SignedPreKeyPairModel

from config import limits
from gearlink.calls import KeysForm, OneTimePreKeyForm, SignedPreKeyForm
from gearlink.sdk.e2ee.certificates import (
    account_public,
    is_public_key,
    is_signed,
    new_link_secret,
    sign,
    verify_certificate,
)
from gearlink.sdk.e2ee.encoding import from_base64url, id_bytes, to_base64url
from gearlink.sdk.e2ee.records import Own, PreKey, PreKeyUse
from gearlink.sdk.e2ee.store import Tx
from gearlink.views import DeviceBundle, OneTimePreKeyView, SignedPreKeyView

T = TypeVar("T")
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
DAY: Final = 24 * 3600 * 1000
RENEW_AFTER: Final = 7 * DAY
KEEP_REPLACED: Final = 60 * DAY
KEEP_ONE_TIME: Final = KEEP_REPLACED + RENEW_AFTER  # no signed pre-key that was handed out with it is kept for longer
ONE_TIME_KEYS: Final = 100  # that the server is to hold
ONE_TIME_KEYS_LOW: Final = 50  # with fewer there it is worth an upload
USED_KEPT_MAX: Final = 1000

X25519: Final = b"\x05"
ED25519: Final = b"\x06"
_INFO: Final = b"GearLink X3DH"
_DIGEST_TITLE: Final = b"GearLink keys v1"
_FIELD: Final = 2**255 - 19  # RFC 7748 §4.1
_PROBE: Final = bytes(range(1, 33))  # any scalar: X25519 clamps it to a multiple of 8 (RFC 7748 §5)

assert 0 < ONE_TIME_KEYS_LOW < ONE_TIME_KEYS <= limits.ONE_TIME_KEYS_MAX

Flaw = Literal["malformed", "bad-identity-key", "bad-pre-key", "bad-signature", "uncertified", "identity-changed"]


class BadBundle(Exception):
    """What was claimed for a device is not sound, and nothing is encrypted for it. `reason` says what is wrong."""

    def __init__(self, reason: Flaw) -> None:
        super().__init__(reason)
        self.reason: Flaw = reason


@dataclass(frozen=True, slots=True)
class Bundle:
    """What it takes to begin a session with a device, checked. `use` says what the second pre-key is."""

    device_id: str
    identity_key: bytes
    certificate: bytes
    signed_id: int
    signed_key: bytes
    signature: bytes
    use: Literal["one-time", "last-resort"]
    other_id: int
    other_key: bytes


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two devices agreed on: the secret, the associated data of all that is said with it, and the key EK_A (32
    bytes) that names it."""

    secret: bytes = field(repr=False)
    ad: bytes
    ephemeral_key: bytes


class _X3dh(x3dh.BaseState):
    @staticmethod
    def _encode_public_key(key_format: x3dh.IdentityKeyFormat, pub: bytes) -> bytes:
        return (ED25519 if key_format is x3dh.IdentityKeyFormat.ED_25519 else X25519) + pub


_SETTINGS: Final = (x3dh.IdentityKeyFormat.ED_25519, HashFunction.SHA_256, _INFO)


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of an asynchronous function that waits for nothing, as are all of x3dh and doubleratchet."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("it waits for something")


# --- this device -----------------------------------------------------------------------------------------------------


def new_own(user_id: str, device_id: str, now: int) -> Own:
    """A device with a fresh identity key, and no pre-keys yet."""
    return Own("own", user_id, device_id, secrets.token_bytes(KEY_BYTES), now, link_secret=new_link_secret())


def own_of(tx: Tx) -> Own:
    """This device. Raises LookupError if the vault is empty."""
    own = tx.get(Own, "own")
    if own is None:
        raise LookupError("this vault has no device")
    return own


def identity_of(own: Own) -> bytes:
    """The public identity key, 32 bytes."""
    return account_public(own.identity_seed)


def pre_key(tx: Tx, use: PreKeyUse, key_id: int, now: int) -> PreKey | None:
    """A pre-key of this device with which messages may still begin."""
    key = tx.get(PreKey, use, key_id)
    return None if key is None or _is_over(key, now) else key


def is_due(tx: Tx, now: int, *, one_time_held: int, digest: str | None, epoch: str) -> bool:
    """Whether there is something to upload, by what `GET /keys/status` says and the server's `epoch`."""
    if own_of(tx).epoch != epoch or one_time_held < ONE_TIME_KEYS_LOW:
        return True
    current = (_current(tx, "signed"), _current(tx, "last-resort"))
    return any(key is None or _is_old(key, now) for key in current) or digest != expected_digest(tx, one_time_held)


def upload(tx: Tx, now: int, *, one_time_held: int, epoch: str, anew: bool = False) -> KeysForm:
    """The body of `PUT /keys`: what is there, renewed where it is due, and one-time pre-keys up to those that the server
    is to hold, which are told to hold `one_time_held`. At another epoch, or `anew` because its digest is not ours, those
    do not count. What was made and not acknowledged (`uploaded`) is sent again. It also forgets what is too old."""
    own = own_of(tx)
    counted = 0 if anew or epoch != own.epoch else one_time_held
    _forget(tx, own, counted, now)
    signed, last_resort = _renewed(tx, "signed", now), _renewed(tx, "last-resort", now)
    pending = tx.scan(PreKey, "one-time", after=own.uploaded_key_id)
    room = limits.ONE_TIME_KEYS_MAX - (one_time_held if epoch == own.epoch else 0)
    for _ in range(min(ONE_TIME_KEYS - counted, room) - len(pending)):
        pending.append(_make(tx, "one-time", now))
    return KeysForm(
        identity_key=to_base64url(identity_of(own)),
        signed_pre_key=_signed_form(signed),
        last_resort_pre_key=_signed_form(last_resort),
        one_time_pre_keys=[
            OneTimePreKeyForm(key_id=key.key_id, public_key=to_base64url(key.public_key)) for key in pending[:room]
        ],
    )


def uploaded(tx: Tx, now: int, form: KeysForm, epoch: str) -> None:
    """The server has taken `form`."""
    own = own_of(tx)
    newest = max((key.key_id for key in form.one_time_pre_keys), default=0)
    tx.put(replace(own, epoch=epoch, uploaded_at=now, uploaded_key_id=max(own.uploaded_key_id, newest)))


def expected_digest(tx: Tx, one_time_remaining: int) -> str:
    """What the server has to answer if it holds so many one-time pre-keys ("The digest" in docs/protocol.md): because it
    hands out the oldest first, they are the last that were made. Empty as long as there are no keys."""
    parts = [_DIGEST_TITLE, identity_of(own_of(tx))]
    for key in (_current(tx, "signed"), _current(tx, "last-resort")):
        if key is None:
            return ""
        parts += [key.key_id.to_bytes(8, "big"), key.public_key, key.signature]
    held = tx.scan(PreKey, "one-time", reverse=True, limit=one_time_remaining) if one_time_remaining else []
    for key in reversed(held):
        parts += [key.key_id.to_bytes(8, "big"), key.public_key]
    return to_base64url(hashlib.sha256(b"".join(parts)).digest())


def _is_old(key: PreKey, now: int) -> bool:
    return now - key.made_at >= RENEW_AFTER


def _is_over(key: PreKey, now: int) -> bool:
    keep = KEEP_ONE_TIME if key.use == "one-time" else KEEP_REPLACED
    return bool(key.replaced_at) and now - key.replaced_at >= keep


def _current(tx: Tx, use: PreKeyUse) -> PreKey | None:
    newest = tx.scan(PreKey, use, reverse=True, limit=1)
    return newest[0] if newest else None


def _renewed(tx: Tx, use: PreKeyUse, now: int) -> PreKey:
    current = _current(tx, use)
    if current is not None and not _is_old(current, now):
        return current
    if current is not None:
        tx.put(replace(current, replaced_at=now))
    return _make(tx, use, now)


def _make(tx: Tx, use: PreKeyUse, now: int) -> PreKey:
    own = own_of(tx)
    tx.put(replace(own, next_key_id=own.next_key_id + 1))
    private_key = secrets.token_bytes(KEY_BYTES)
    public_key = nacl.bindings.crypto_scalarmult_base(private_key)
    signature = sign(own.identity_seed, X25519 + public_key) if use != "one-time" else b""
    key = PreKey(use, own.next_key_id, private_key, public_key, signature, now)
    tx.put(key)
    return key


def _forget(tx: Tx, own: Own, one_time_held: int, now: int) -> None:
    """Deletes private keys with which nothing can begin any more. A one-time key that the server does not hold was handed
    out, nobody knows when: its time runs from now."""
    for key in (*tx.scan(PreKey, "signed"), *tx.scan(PreKey, "last-resort"), *tx.scan(PreKey, "one-time")):
        if _is_over(key, now):
            tx.delete(PreKey, key.use, key.key_id)
    acknowledged = tx.scan(PreKey, "one-time", before=own.uploaded_key_id + 1)
    for key in acknowledged[: max(len(acknowledged) - one_time_held, 0)]:
        if not key.replaced_at:
            tx.put(replace(key, replaced_at=now))


def _signed_form(key: PreKey) -> SignedPreKeyForm:
    return SignedPreKeyForm(
        key_id=key.key_id, public_key=to_base64url(key.public_key), signature=to_base64url(key.signature)
    )


# --- others ----------------------------------------------------------------------------------------------------------


def checked_bundle(user_id: str, account_key: bytes, view: DeviceBundle) -> Bundle:
    """The bundle of a device of this user. `account_key` is the one that was pinned, empty for a user who has none: then
    the device counts without a certificate. Raises BadBundle."""
    identity_key = _decoded(view.identity_key, KEY_BYTES)
    if not is_public_key(identity_key):
        raise BadBundle("bad-identity-key")
    certificate = b""
    if account_key:
        if not isinstance(view.certificate, str):
            raise BadBundle("uncertified")
        certificate = _decoded(view.certificate, SIGNATURE_BYTES)
        if not verify_certificate(account_key, user_id, view.device_id, identity_key, certificate):
            raise BadBundle("uncertified")
    _require_id(user_id)
    _require_id(view.device_id)
    one_time, last_resort = view.one_time_pre_key, view.last_resort_pre_key
    signed_key, signature = _signed(identity_key, view.signed_pre_key)
    if isinstance(one_time, OneTimePreKeyView) and not isinstance(last_resort, SignedPreKeyView):
        other_id, other_key = one_time.key_id, _public(one_time)
    elif isinstance(last_resort, SignedPreKeyView) and not isinstance(one_time, OneTimePreKeyView):
        other_id, (other_key, _signature) = last_resort.key_id, _signed(identity_key, last_resort)
    else:
        raise BadBundle("malformed")
    if signed_key == other_key or view.signed_pre_key.key_id == other_id:
        raise BadBundle("bad-pre-key")
    return Bundle(
        view.device_id,
        identity_key,
        certificate,
        view.signed_pre_key.key_id,
        signed_key,
        signature,
        "one-time" if isinstance(one_time, OneTimePreKeyView) else "last-resort",
        other_id,
        other_key,
    )


def is_pre_key(key: bytes) -> bool:
    """Whether `key` is an X25519 public key in its one encoding (RFC 7748 §5) and not of small order (§6.1)."""
    if len(key) != KEY_BYTES or int.from_bytes(key, "little") >= _FIELD:
        return False
    try:
        nacl.bindings.crypto_scalarmult(_PROBE, key)
    except nacl.exceptions.RuntimeError:
        return False
    return True


def _decoded(shown: str, size: int) -> bytes:
    try:
        return from_base64url(shown, size)
    except ValueError:
        raise BadBundle("malformed") from None


def _require_id(identifier: str) -> None:
    try:
        id_bytes(identifier)
    except ValueError:
        raise BadBundle("malformed") from None


def _public(view: OneTimePreKeyView | SignedPreKeyView) -> bytes:
    key = _decoded(view.public_key, KEY_BYTES)
    if not 1 <= view.key_id <= limits.KEY_ID_MAX or not is_pre_key(key):
        raise BadBundle("bad-pre-key")
    return key


def _signed(identity_key: bytes, view: SignedPreKeyView) -> tuple[bytes, bytes]:
    key, signature = _public(view), _decoded(view.signature, SIGNATURE_BYTES)
    if not is_signed(identity_key, X25519 + key, signature):
        raise BadBundle("bad-signature")
    return key, signature


# --- the agreement ---------------------------------------------------------------------------------------------------


def initiate(own: Own, user_id: str, bundle: Bundle) -> Agreement:
    """Agrees with a device of this user on a secret; they will do so when they read what was sent with it."""
    state = _X3dh.create(*_SETTINGS, identity_key_pair=IdentityKeyPairSeed(own.identity_seed))
    theirs = x3dh.Bundle(bundle.identity_key, bundle.signed_key, bundle.signature, frozenset({bundle.other_key}))
    ids = _ids(own.user_id, own.device_id, user_id, bundle.device_id)
    secret, ad, header = run_now(state.get_shared_secret_active(theirs, ids))
    return Agreement(secret, ad + header.ephemeral_key, header.ephemeral_key)


def respond(
    own: Own, user_id: str, device_id: str, identity_key: bytes, ephemeral_key: bytes, signed: PreKey, other: PreKey
) -> Agreement:
    """Agrees on the secret that a device with this identity key began with these pre-keys of ours.

    Raises ValueError if one of the two keys is not sound.
    """
    if not is_public_key(identity_key) or not is_pre_key(ephemeral_key):
        raise ValueError("not a public key")
    model = BaseStateModel(
        identity_key=IdentityKeyPairSeed(own.identity_seed).model,
        signed_pre_key=SignedPreKeyPairModel(priv=signed.private_key, sig=signed.signature, timestamp=0),
        old_signed_pre_key=None,
        pre_keys=frozenset({other.private_key}),
    )
    header = x3dh.Header(identity_key, ephemeral_key, signed.public_key, other.public_key)
    ids = _ids(user_id, device_id, own.user_id, own.device_id)
    state = _X3dh.from_model(model, *_SETTINGS)
    secret, ad, _key = run_now(state.get_shared_secret_passive(header, ids))
    return Agreement(secret, ad + ephemeral_key, ephemeral_key)


def _ids(*identifiers: str) -> bytes:
    return b"".join(id_bytes(each) for each in identifiers)
