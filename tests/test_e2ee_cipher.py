"""The cipher: what an engine can rely on, for two devices and for groups, in transactions that keep all or nothing."""

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gearlink.sdk.e2ee import sender_keys
from gearlink.sdk.e2ee.agreement import BadBundle
from gearlink.sdk.e2ee.cipher import SENDER_KEYS_KEPT
from gearlink.sdk.e2ee.letters import Duplicate, Undecryptable
from gearlink.sdk.e2ee.records import OwnSenderKey, PeerDevice, SenderKey
from gearlink.sdk.e2ee.sessions import Envelope
from tests.phones import DAY, EPOCH, Phone, identifier

ROOM, OTHER_ROOM = identifier(7000), identifier(7001)
SEED = hashlib.sha256(b"Bob's account").digest()


def refused(reason: str, phone: Phone, change: Any) -> None:
    """It cannot be read for this reason, also if the caller goes on and keeps what else it wrote."""
    before = phone.vault.everything()

    def and_go_on(tx: Any) -> str:
        try:
            change(tx)
        except Undecryptable as error:
            return error.reason
        return "it was read"

    assert phone.vault.do(and_go_on) == reason
    assert phone.vault.everything() == before


def opened(phone: Phone, other: Phone, envelope: Envelope) -> bytes:
    return phone.vault.do(lambda tx: phone.cipher.open(tx, *other.address, envelope, 0))


# --- between two devices ---------------------------------------------------------------------------------------------


def test_a_session_begins_with_a_bundle_and_is_confirmed_by_an_answer() -> None:
    ann, bob = Phone(1), Phone(2, account_seed=SEED)
    has = lambda: ann.vault.look(lambda tx: ann.cipher.has_session(tx, bob.device_id))  # noqa: E731
    is_confirmed = lambda: ann.vault.look(lambda tx: ann.cipher.is_confirmed(tx, bob.device_id))  # noqa: E731
    assert not has()
    ann.begin(bob)
    bob.meet(ann)
    assert (has(), is_confirmed()) == (True, False)
    assert opened(bob, ann, ann.seal(bob, b"hello")) == b"hello"
    assert opened(ann, bob, bob.seal(ann, b"good day")) == b"good day"
    assert is_confirmed()
    ann.forget(bob)
    assert not has()


def test_what_comes_from_a_device_that_its_user_did_not_show_is_not_read() -> None:
    ann, bob = Phone(1), Phone(2)
    ann.begin(bob)
    envelope = ann.seal(bob, b"hello")
    refused("unknown-device", bob, lambda tx: bob.cipher.open(tx, *ann.address, envelope, 0))
    assert bob.cipher.identity_in(envelope) == ann.identity_key
    bob.meet(ann)
    assert opened(bob, ann, envelope) == b"hello"
    with pytest.raises(Undecryptable, match="unknown-device"):
        ann.cipher.identity_in(bob.seal(ann, b"a message envelope says nothing of that"))


def test_a_device_that_claims_an_identity_that_is_none_is_not_read() -> None:
    """It introduces itself in its first envelope; what stands there may be anything."""
    ann, bob = Phone(1), Phone(2)
    ann.begin(bob)
    envelope = ann.seal(bob, b"hello")
    for claimed in (bytes(32), b"\x01" + bytes(31), b"\xff" * 32):
        bob.vault.do(lambda tx, key=claimed: tx.put(PeerDevice(*ann.address, key, b"", 0)))
        forged = Envelope("prekey", envelope.body[:1] + claimed + envelope.body[33:])
        refused("bad-message", bob, lambda tx, sealed=forged: bob.cipher.open(tx, *ann.address, sealed, 0))


def test_nothing_begins_with_a_device_without_the_certificate_of_its_user() -> None:
    ann, bob, ghost = Phone(1), Phone(2, account_seed=SEED), Phone(3)
    view = ghost.bundle()
    with pytest.raises(BadBundle, match="uncertified"):
        ann.vault.do(lambda tx: ann.cipher.begin(tx, bob.user_id, view, bob.account_key, 0))
    assert ann.sessions(ghost) == []


def test_an_uncertified_device_with_another_identity_than_before_is_refused_until_that_was_accepted() -> None:
    ann, bob = Phone(1), Phone(2)
    ann.begin(bob)
    again = Phone(2)
    assert again.address == bob.address
    begin = lambda tx: ann.cipher.begin(tx, bob.user_id, again.bundle(), b"", 0)  # noqa: E731
    with pytest.raises(BadBundle, match="identity-changed"):
        ann.vault.do(begin)
    ann.meet(again)
    ann.vault.do(begin)
    again.meet(ann)
    assert opened(again, ann, ann.seal(again, b"hello")) == b"hello"
    refused("unknown-device", again, lambda tx: again.cipher.open(tx, *bob.address, ann.seal(again, b""), 0))


def test_a_device_begins_nothing_with_itself() -> None:
    ann = Phone(1)
    with pytest.raises(BadBundle):
        ann.vault.do(lambda tx: ann.cipher.begin(tx, ann.user_id, ann.bundle(), b"", 0))


def test_two_devices_of_one_user_write_to_each_other() -> None:
    phone, laptop = Phone(1, user=1), Phone(2, user=1)
    phone.begin(laptop)
    laptop.meet(phone)
    assert opened(laptop, phone, phone.seal(laptop, b"a note")) == b"a note"


def test_a_change_that_fails_later_leaves_the_letter_to_be_read_again() -> None:
    ann, bob = Phone(1), Phone(2)
    ann.begin(bob)
    bob.meet(ann)
    envelope, before = ann.seal(bob, b"hello"), bob.vault.everything()

    def read_and_fail(tx: Any) -> None:
        assert bob.cipher.open(tx, *ann.address, envelope, 0) == b"hello"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        bob.vault.do(read_and_fail)
    assert bob.vault.everything() == before
    assert opened(bob, ann, envelope) == b"hello"


# --- in groups -------------------------------------------------------------------------------------------------------


def own_key(phone: Phone, now: int = 0, epoch: str = EPOCH) -> OwnSenderKey:
    return phone.vault.do(lambda tx: phone.cipher.sender_key_for(tx, ROOM, now, epoch))


def give(phone: Phone, other: Phone, now: int = 0) -> None:
    key = own_key(phone)
    letter = sender_keys.distribution(key)
    phone.vault.do(lambda tx: phone.cipher.give(tx, ROOM, key.key_id, [other.address]))
    other.vault.do(lambda tx: other.cipher.take_sender_key(tx, ROOM, *phone.address, letter, now))


def say(phone: Phone, text: bytes) -> tuple[bytes, bytes]:
    return phone.vault.do(lambda tx: phone.cipher.seal_group(tx, ROOM, text, 0))


def hear(phone: Phone, other: Phone, sealed: tuple[bytes, bytes], room: str = ROOM) -> bytes:
    return phone.vault.do(lambda tx: phone.cipher.open_group(tx, room, *other.address, *sealed, 0))


def test_a_group_reads_what_was_sealed_once_and_newcomers_nothing_from_before() -> None:
    ann, bob, late = Phone(1), Phone(2), Phone(3)
    give(ann, bob)
    first = say(ann, b"1")
    give(ann, late)
    second = say(ann, b"2")
    assert (hear(bob, ann, first), hear(bob, ann, second), hear(late, ann, second)) == (b"1", b"2", b"2")
    refused("bad-message", late, lambda tx: late.cipher.open_group(tx, ROOM, *ann.address, *first, 0))
    assert own_key(ann).holders == (bob.address, late.address)


def test_without_the_key_or_from_somebody_else_or_elsewhere_nothing_is_read() -> None:
    ann, bob, eve = Phone(1), Phone(2), Phone(3)
    give(ann, bob)
    sealed = say(ann, b"x")
    user_id, device_id = ann.address
    for room, user, device in (
        (OTHER_ROOM, user_id, device_id),
        (ROOM, eve.user_id, device_id),
        (ROOM, user_id, eve.device_id),
    ):
        refused("no-sender-key", bob, lambda tx, at=(room, user, device): bob.cipher.open_group(tx, *at, *sealed, 0))
    refused("no-sender-key", eve, lambda tx: eve.cipher.open_group(tx, ROOM, *ann.address, *sealed, 0))
    forged = sealed[0], sealed[1][:-1] + bytes([sealed[1][-1] ^ 1])
    refused("bad-signature", bob, lambda tx: bob.cipher.open_group(tx, ROOM, *ann.address, *forged, 0))
    assert hear(bob, ann, sealed) == b"x"
    with pytest.raises(Duplicate):
        hear(bob, ann, sealed)


def test_a_key_that_is_due_is_replaced_by_one_that_nobody_holds() -> None:
    ann, bob = Phone(1), Phone(2)
    give(ann, bob)
    key = own_key(ann, 7 * DAY - 1)
    assert key.holders == (bob.address,)
    for fresh in (own_key(ann, 7 * DAY), own_key(ann, 7 * DAY, "restored")):
        assert fresh.key_id != key.key_id
        assert fresh.holders == ()
        key = fresh
    ann.vault.do(lambda tx: tx.put(replace(key, iteration=sender_keys.MESSAGES_MAX)))
    assert own_key(ann, 7 * DAY, "restored").key_id != key.key_id


def test_a_dropped_key_seals_nothing_more_and_a_new_one_takes_its_place() -> None:
    ann, bob = Phone(1), Phone(2)
    give(ann, bob)
    old = own_key(ann)
    ann.vault.do(lambda tx: ann.cipher.drop_sender_key(tx, ROOM))
    with pytest.raises(LookupError):
        say(ann, b"x")
    fresh = own_key(ann)
    assert (fresh.key_id != old.key_id, fresh.holders) == (True, ())
    ann.vault.do(lambda tx: ann.cipher.give(tx, ROOM, old.key_id, [bob.address]))
    assert own_key(ann).holders == (), "who was given the old one does not hold the new one"
    sealed = say(ann, b"x")
    refused("no-sender-key", bob, lambda tx: bob.cipher.open_group(tx, ROOM, *ann.address, *sealed, 0))


def test_a_key_that_is_given_again_is_not_turned_back() -> None:
    ann, bob = Phone(1), Phone(2)
    letter = sender_keys.distribution(own_key(ann))
    give(ann, bob)
    sealed = say(ann, b"x")
    assert hear(bob, ann, sealed) == b"x"
    bob.vault.do(lambda tx: bob.cipher.take_sender_key(tx, ROOM, *ann.address, letter, 5))
    with pytest.raises(Duplicate):
        hear(bob, ann, sealed)


def test_of_many_sender_keys_of_a_device_the_newest_are_kept() -> None:
    ann, bob = Phone(1), Phone(2)
    made = []
    for now in range(SENDER_KEYS_KEPT + 3):
        ann.vault.do(lambda tx: ann.cipher.drop_sender_key(tx, ROOM))
        give(ann, bob, now)
        made.append(own_key(ann).key_id)
    held = bob.vault.look(lambda tx: tx.scan(SenderKey, ROOM, ann.device_id))
    assert {key.key_id for key in held} == set(made[-SENDER_KEYS_KEPT:])


@given(st.permutations(range(12)), st.lists(st.integers(0, 11), max_size=6), st.sets(st.integers(0, 11)))
@settings(max_examples=40, deadline=None)
def test_in_a_group_every_letter_is_read_once_in_any_order(order: list[int], again: list[int], lost: set[int]) -> None:
    ann, bob = Phone(1), Phone(2)
    give(ann, bob)
    sealed = []
    for number in range(12):
        if number == 6:  # half of them under another key
            ann.vault.do(lambda tx: ann.cipher.drop_sender_key(tx, ROOM))
            give(ann, bob)
        sealed.append(say(ann, b"%d" % number))
    for number in order:
        if number not in lost:
            assert hear(bob, ann, sealed[number]) == b"%d" % number
    for number in again:
        if number not in lost:
            with pytest.raises(Duplicate):
                hear(bob, ann, sealed[number])
