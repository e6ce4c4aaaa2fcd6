"""The pre-keys of a device and the bundles of others: what is uploaded when, what is kept how long, what is believed."""

import hashlib
from typing import Any

import pytest

from gearlink import prekeys
from gearlink.sdk.e2ee import agreement, certificates
from gearlink.sdk.e2ee.agreement import BadBundle
from gearlink.sdk.e2ee.encoding import from_base64url, to_base64url
from gearlink.views import SignedPreKeyView
from storage.records import DeviceKeys, OneTimePreKey
from tests.phones import DAY, EPOCH, Phone, identifier

PRIME = 2**255 - 19


# --- the keys of a device --------------------------------------------------------------------------------------------


async def the_servers_digest(phone: Phone) -> str:
    """What the server makes of all that this phone uploaded; it checks the keys as it does with everybody's."""
    upload = await prekeys.checked(phone.form)
    keys = DeviceKeys(
        phone.user_id, phone.device_id, upload.identity_key, upload.signed, upload.last_resort, 0, EPOCH, 0, 0
    )
    held = [
        OneTimePreKey(phone.user_id, phone.device_id, key.key_id, from_base64url(key.public_key)) for key in phone.held
    ]
    return prekeys.digest(keys, held)


def expected(phone: Phone) -> str:
    return phone.vault.look(lambda tx: agreement.expected_digest(tx, len(phone.held)))


def is_due(phone: Phone, now: int = 0, *, digest: str | None = None, epoch: str = EPOCH) -> bool:
    shown = digest or expected(phone)
    return phone.vault.look(
        lambda tx: agreement.is_due(tx, now, one_time_held=len(phone.held), digest=shown, epoch=epoch)
    )


async def test_the_server_takes_what_a_device_uploads_and_both_have_the_same_digest_of_what_is_left() -> None:
    phone = Phone(1)
    assert len(phone.held) == 100
    for _ in range(30):
        assert expected(phone) == await the_servers_digest(phone)
        phone.bundle()
    phone.publish()
    assert len(phone.held) == 100
    assert expected(phone) == await the_servers_digest(phone)
    del phone.held[:]
    assert expected(phone) == await the_servers_digest(phone)


async def test_signed_pre_keys_are_renewed_after_a_week_and_ids_only_grow() -> None:
    phone = Phone(1)
    first = phone.form
    assert not is_due(phone, 7 * DAY - 1)
    assert phone.publish(7 * DAY - 1).signed_pre_key == first.signed_pre_key
    assert is_due(phone, 7 * DAY)
    second = phone.publish(7 * DAY)
    ids = [first.signed_pre_key.key_id, first.last_resort_pre_key.key_id]
    ids += [key.key_id for key in first.one_time_pre_keys]
    ids += [second.signed_pre_key.key_id, second.last_resort_pre_key.key_id]
    assert ids == sorted(set(ids))
    assert expected(phone) == await the_servers_digest(phone)


def test_an_upload_is_due_when_keys_run_low_and_when_the_server_holds_something_else() -> None:
    phone = Phone(1)
    assert not is_due(phone)
    assert is_due(phone, digest="somebody else's")
    assert is_due(phone, epoch="restored")
    del phone.held[:51]
    assert is_due(phone)


def test_an_upload_of_which_nobody_knows_whether_it_arrived_is_sent_again_as_it_was() -> None:
    phone = Phone(1)
    del phone.held[:60]
    lost = phone.vault.do(lambda tx: agreement.upload(tx, 5, one_time_held=40, epoch=EPOCH))
    again = phone.vault.do(lambda tx: agreement.upload(tx, 6, one_time_held=40, epoch=EPOCH))
    assert len(lost.one_time_pre_keys) == 60
    assert again == lost
    phone.vault.do(lambda tx: agreement.uploaded(tx, 7, again, EPOCH))
    assert phone.vault.do(lambda tx: agreement.upload(tx, 8, one_time_held=100, epoch=EPOCH)).one_time_pre_keys == []


@pytest.mark.parametrize("how", [{"epoch": "restored"}, {"epoch": EPOCH, "anew": True}])
def test_after_a_restore_or_with_another_digest_a_hundred_fresh_one_time_keys_go_up(how: dict[str, Any]) -> None:
    phone = Phone(1)
    old = {key.key_id for key in phone.form.one_time_pre_keys}
    fresh = phone.vault.do(lambda tx: agreement.upload(tx, 5, one_time_held=100, **how)).one_time_pre_keys
    assert len(fresh) == 100
    assert min(key.key_id for key in fresh) > max(old)


def test_no_upload_makes_the_server_hold_more_than_it_takes() -> None:
    phone = Phone(1)
    form = phone.vault.do(lambda tx: agreement.upload(tx, 5, one_time_held=170, epoch=EPOCH, anew=True))
    assert len(form.one_time_pre_keys) == 30
    assert len(phone.pre_keys("one-time")) == 130, "one that is not sent would count in the digest"


def test_private_keys_are_forgotten_when_nothing_can_begin_with_them_any_more() -> None:
    phone = Phone(1)
    replaced, handed_out = phone.form.signed_pre_key.key_id, phone.held[0].key_id
    phone.bundle()
    phone.publish(7 * DAY)
    phone.publish(67 * DAY - 1)
    assert replaced in {key.key_id for key in phone.pre_keys("signed")}
    phone.publish(67 * DAY)
    assert replaced not in {key.key_id for key in phone.pre_keys("signed")}
    assert handed_out in {key.key_id for key in phone.pre_keys("one-time")}
    phone.publish(74 * DAY)
    left = {key.key_id for key in phone.pre_keys("one-time")}
    assert handed_out not in left
    assert {key.key_id for key in phone.held} <= left


# --- bundles of others -----------------------------------------------------------------------------------------------

SEED = hashlib.sha256(b"an account").digest()
SMALL_ORDER = to_base64url(bytes(32))
NOT_REDUCED = to_base64url((PRIME + 9).to_bytes(32, "little"))  # another encoding of 9


def test_a_sound_bundle_is_taken_with_and_without_a_one_time_key() -> None:
    phone = Phone(1, account_seed=SEED, one_time=1)
    for use in ("one-time", "last-resort"):
        bundle = agreement.checked_bundle(phone.user_id, phone.account_key, phone.bundle())
        assert (bundle.use, bundle.identity_key) == (use, phone.identity_key)


def _unsigned(view: Any) -> None:
    view.signed_pre_key.signature = to_base64url(bytes(64))


def _swapped(view: Any) -> None:
    view.signed_pre_key.public_key = Phone(9).form.signed_pre_key.public_key


def _unsigned_last_resort(view: Any) -> None:
    view.last_resort_pre_key.signature = view.signed_pre_key.signature


def _same_key(view: Any) -> None:
    signed = view.signed_pre_key
    view.last_resort_pre_key = SignedPreKeyView(key_id=99, public_key=signed.public_key, signature=signed.signature)


def _same_id(view: Any) -> None:
    view.last_resort_pre_key.key_id = view.signed_pre_key.key_id


FLAWS: dict[str, tuple[str, Any]] = {
    "a signature of zeros": ("bad-signature", _unsigned),
    "another signed pre-key": ("bad-signature", _swapped),
    "a last-resort pre-key with another's signature": ("bad-signature", _unsigned_last_resort),
    "another device's identity": (
        "uncertified",
        lambda view: setattr(view, "identity_key", Phone(9).form.identity_key),
    ),
    "another device's id": ("uncertified", lambda view: setattr(view, "device_id", identifier(9))),
    "an identity of small order": ("bad-identity-key", lambda view: setattr(view, "identity_key", SMALL_ORDER)),
    "an identity that is too short": ("malformed", lambda view: setattr(view, "identity_key", "abc")),
    "a pre-key of small order": ("bad-pre-key", lambda view: setattr(view.signed_pre_key, "public_key", SMALL_ORDER)),
    "a pre-key not reduced": ("bad-pre-key", lambda view: setattr(view.signed_pre_key, "public_key", NOT_REDUCED)),
    "a key id too large": ("bad-pre-key", lambda view: setattr(view.signed_pre_key, "key_id", 2**31)),
    "the same pre-key under two ids": ("bad-pre-key", _same_key),
    "two pre-keys under one id": ("bad-pre-key", _same_id),
    "no second pre-key": ("malformed", lambda view: setattr(view, "last_resort_pre_key", None)),
    "no certificate": ("uncertified", lambda view: setattr(view, "certificate", None)),
    "another certificate": ("uncertified", lambda view: setattr(view, "certificate", to_base64url(bytes(64)))),
    "half a certificate": ("malformed", lambda view: setattr(view, "certificate", "abc")),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_bundle_is_refused_for(flaw: str) -> None:
    phone = Phone(1, account_seed=SEED, one_time=0)
    view = phone.bundle()
    reason, spoil = FLAWS[flaw]
    spoil(view)
    with pytest.raises(BadBundle) as caught:
        agreement.checked_bundle(phone.user_id, phone.account_key, view)
    assert caught.value.reason == reason


def test_without_an_account_key_a_device_counts_as_it_is_but_its_signatures_are_checked() -> None:
    view = Phone(1).bundle()
    assert agreement.checked_bundle(identifier(1001), b"", view).certificate == b""
    _unsigned(view)
    with pytest.raises(BadBundle):
        agreement.checked_bundle(identifier(1001), b"", view)


def test_a_certificate_of_another_account_key_is_none() -> None:
    phone = Phone(1, account_seed=SEED)
    other = certificates.account_public(hashlib.sha256(b"another").digest())
    with pytest.raises(BadBundle, match="uncertified"):
        agreement.checked_bundle(phone.user_id, other, phone.bundle())
