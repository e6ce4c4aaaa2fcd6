"""X3DH and Double Ratchet sessions between devices: what they promise, whatever the network and others do."""

import hmac
import warnings
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from nacl.bindings import (
    crypto_scalarmult,
    crypto_sign_ed25519_pk_to_curve25519,
    crypto_sign_ed25519_sk_to_curve25519,
    crypto_sign_seed_keypair,
)

from gearlink.sdk.e2ee import agreement
from gearlink.sdk.e2ee.letters import Duplicate, Undecryptable
from gearlink.sdk.e2ee.records import Own
from gearlink.sdk.e2ee.sessions import SESSIONS_MAX, Envelope
from tests.phones import DAY, Phone

PRIME = 2**255 - 19
IK, EK, SPK_ID, KIND, OPK_ID = slice(1, 33), slice(33, 65), slice(65, 69), slice(69, 70), slice(70, 74)
HEAD = slice(74, 114)


def with_bytes(envelope: Envelope, at: slice, new: bytes) -> Envelope:
    body = bytearray(envelope.body)
    body[at] = new
    return Envelope(envelope.type, bytes(body))


def refused(phone: Phone, other: Phone, envelope: Envelope, reason: str, now: int = 0) -> None:
    """It cannot be read for this reason, and that changes nothing."""
    before = phone.vault.everything()
    with pytest.raises(Undecryptable) as caught:
        phone.open(other, envelope, now)
    assert caught.value.reason == reason
    assert phone.vault.everything() == before


def duplicate(phone: Phone, other: Phone, envelope: Envelope) -> None:
    before = phone.vault.everything()
    with pytest.raises(Duplicate):
        phone.open(other, envelope)
    assert phone.vault.everything() == before


def pair() -> tuple[Phone, Phone]:
    """Ann has begun a session with Bob's phone."""
    ann, bob = Phone(1), Phone(2)
    ann.begin(bob)
    return ann, bob


def talk(ann: Phone, bob: Phone, turns: int = 1) -> None:
    for _ in range(turns):
        assert bob.open(ann, ann.seal(bob, b"to Bob")) == b"to Bob"
        assert ann.open(bob, bob.seal(ann, b"to Ann")) == b"to Ann"


# --- one session -----------------------------------------------------------------------------------------------------


def kdf(salt: bytes, ikm: bytes, info: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt, info).derive(ikm)


def test_the_first_envelope_is_what_the_document_says_byte_by_byte() -> None:
    """Bob reads it with nothing but the primitives, from his private keys and docs/encryption.md."""
    ann, bob = pair()
    body = ann.seal(bob, b"a letter").body
    signed, used = bob.pre_keys("signed")[0], bob.pre_keys("one-time")[0]
    assert body[:1] == b"\x01"
    assert body[IK] == ann.identity_key
    assert body[SPK_ID] == signed.key_id.to_bytes(4, "big")
    assert body[KIND] == b"\x01"
    assert body[OPK_ID] == used.key_id.to_bytes(4, "big")

    public, secret = crypto_sign_seed_keypair(bob.own.identity_seed)
    identity = crypto_sign_ed25519_sk_to_curve25519(secret)
    ikm = b"\xff" * 32 + crypto_scalarmult(signed.private_key, crypto_sign_ed25519_pk_to_curve25519(body[IK]))
    ikm += b"".join(crypto_scalarmult(key, body[EK]) for key in (identity, signed.private_key, used.private_key))
    root = kdf(bytes(32), ikm, b"GearLink X3DH", 32)
    ids = "".join((ann.user_id, ann.device_id, bob.user_id, bob.device_id)).replace("-", "")
    ad = b"\x06" + ann.identity_key + b"\x06" + public + bytes.fromhex(ids) + body[EK]

    ratchet_key = body[HEAD][:32]
    assert body[HEAD][32:] == bytes(8), "the first of the first chain"
    chain = kdf(root, crypto_scalarmult(signed.private_key, ratchet_key), b"GearLink root chain", 64)[32:]
    keys = kdf(bytes(32), hmac.digest(chain, b"\x01", "sha256"), b"GearLink message", 80)
    ciphertext, tag = body[114:-32], body[-32:]
    assert hmac.digest(keys[32:64], ad + body[HEAD] + ciphertext, "sha256") == tag
    opened = Cipher(algorithms.AES(keys[:32]), modes.CBC(keys[64:])).decryptor().update(ciphertext)
    assert opened == b"a letter" + b"\x08" * 8


def test_envelopes_are_of_type_prekey_until_an_answer_was_read() -> None:
    ann, bob = pair()
    first, second = ann.seal(bob, b"1"), ann.seal(bob, b"2")
    assert (first.type, second.type) == ("prekey", "prekey")
    assert first.body[IK.start : OPK_ID.stop] == second.body[IK.start : OPK_ID.stop]
    assert bob.open(ann, second) == b"2", "the later one may come first"
    assert bob.open(ann, first) == b"1"
    assert len(bob.sessions(ann)) == 1
    answer = bob.seal(ann, b"3")
    assert answer.type == "message"
    assert ann.seal(bob, b"4").type == "prekey"
    assert ann.open(bob, answer) == b"3"
    assert ann.seal(bob, b"5").type == "message"


def test_a_one_time_private_key_is_gone_with_the_first_message_that_was_read_and_not_before() -> None:
    ann, bob = pair()
    envelope = ann.seal(bob, b"1")
    refused(bob, ann, with_bytes(envelope, slice(-1, None), b"?"), "bad-message")
    assert len(bob.pre_keys("one-time")) == 100
    bob.open(ann, envelope)
    assert len(bob.pre_keys("one-time")) == 99


def test_a_duplicate_is_told_as_one_in_this_chain_and_in_those_before() -> None:
    ann, bob = pair()
    seen = []
    for _ in range(5):
        for _ in range(3):
            seen.append(ann.seal(bob, b"x"))
            bob.open(ann, seen[-1])
        for envelope in seen:
            duplicate(bob, ann, envelope)
        ann.open(bob, bob.seal(ann, b"y"))


def test_what_comes_late_from_earlier_chains_is_read_once() -> None:
    ann, bob = pair()
    late = []
    for turn in range(5):
        late += [ann.seal(bob, b"late %d" % turn), ann.seal(bob, b"late too %d" % turn)]
        talk(ann, bob)
    for envelope in reversed(late):
        assert bob.open(ann, envelope).startswith(b"late")
        duplicate(bob, ann, envelope)


def test_a_device_that_comes_back_after_a_month_reads_everything() -> None:
    ann, bob = pair()
    held = [ann.seal(bob, b"%d" % number, number * DAY) for number in range(31)]
    bob.publish(30 * DAY)
    assert [bob.open(ann, envelope, 31 * DAY) for envelope in held] == [b"%d" % number for number in range(31)]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_is_changed_in_an_envelope_it_is_not_read_and_nothing_changes(data: st.DataObject) -> None:
    ann, bob = pair()
    if data.draw(st.booleans(), label="confirmed"):
        talk(ann, bob)
    envelope = ann.seal(bob, b"the text")
    at = data.draw(st.integers(0, len(envelope.body) * 8 - 1), label="bit")
    body = bytearray(envelope.body)
    body[at // 8] ^= 1 << at % 8
    before = bob.vault.everything()
    with pytest.raises((Undecryptable, Duplicate)):
        bob.open(ann, Envelope(envelope.type, bytes(body)))
    assert bob.vault.everything() == before
    assert bob.open(ann, envelope) == b"the text"


@given(st.binary(max_size=300), st.sampled_from(["message", "prekey"]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_bytes_of_others_raise_nothing_but_that_they_cannot_be_read(raw: bytes, type_: Any, is_headed: bool) -> None:
    ann, bob = pair()
    talk(ann, bob)
    sample = ann.seal(bob, b"")
    head = sample.body[: data_start(sample)] if is_headed else b"\x01"
    for body in (raw, head + raw):
        with pytest.raises((Undecryptable, Duplicate)):
            bob.open(ann, Envelope(type_, body))


def data_start(envelope: Envelope) -> int:
    return 114 if envelope.type == "prekey" else 41


def test_every_truncated_envelope_is_refused() -> None:
    ann, bob = pair()
    envelope = ann.seal(bob, b"x")
    for size in range(len(envelope.body)):
        refused(bob, ann, Envelope("prekey", envelope.body[:size]), "bad-message")


# --- keys that do not fit --------------------------------------------------------------------------------------------


def test_an_envelope_with_another_identity_key_is_from_an_unknown_device() -> None:
    ann, bob = pair()
    envelope = ann.seal(bob, b"x")
    refused(bob, ann, with_bytes(envelope, IK, Phone(3).identity_key), "unknown-device")
    eve = Phone(3)
    refused(bob, eve, envelope, "unknown-device")


def test_somebody_elses_session_does_not_open_what_the_server_says_is_theirs() -> None:
    ann, bob = pair()
    talk(ann, bob)
    envelope = ann.seal(bob, b"x")
    eve = Phone(3)
    refused(bob, eve, envelope, "no-session")
    eve.own = replace(eve.own, device_id=ann.device_id)
    eve.device_id = ann.device_id
    refused(bob, eve, envelope, "no-session")


def test_a_key_of_small_order_opens_nothing() -> None:
    ann, bob = pair()
    refused(bob, ann, with_bytes(ann.seal(bob, b"x"), EK, bytes(32)), "bad-message")
    refused(bob, ann, with_bytes(ann.seal(bob, b"x"), slice(74, 106), bytes(32)), "bad-message")
    talk(ann, bob)
    refused(bob, ann, with_bytes(ann.seal(bob, b"x"), slice(1, 33), bytes(32)), "bad-message")


def test_the_signed_pre_key_as_a_ratchet_key_is_refused_before_anything_was_read() -> None:
    """The library would stumble over it: there is no chain for it yet."""
    ann, bob = pair()
    forged = b"\x01" + bob.pre_keys("signed")[0].public_key + bytes(8) + bytes(64)
    refused(ann, bob, Envelope("message", forged), "bad-message")


def test_a_pre_key_that_was_used_begins_no_second_session() -> None:
    ann, bob = pair()
    envelope = ann.seal(bob, b"x")
    bob.open(ann, envelope)
    bob.forget(ann)
    refused(bob, ann, envelope, "unknown-pre-key")


def test_a_replaced_signed_pre_key_is_good_for_sixty_days() -> None:
    ann, bob, eve = Phone(1), Phone(2), Phone(3)
    ann.begin(bob)
    eve.begin(bob)
    bob.publish(7 * DAY)
    assert bob.open(ann, ann.seal(bob, b"x"), 67 * DAY - 1) == b"x"
    refused(bob, eve, eve.seal(bob, b"x"), "unknown-pre-key", 67 * DAY)


def test_many_may_begin_with_the_last_resort_key() -> None:
    bob = Phone(2, one_time=0)
    for number in range(3, 6):
        other = Phone(number)
        other.begin(bob)
        talk(other, bob, 2)


def test_what_began_with_the_last_resort_key_cannot_be_replayed_into_a_new_session() -> None:
    ann, bob = Phone(1), Phone(2, one_time=0)
    ann.begin(bob)
    envelope = ann.seal(bob, b"x")
    bob.open(ann, envelope)
    bob.forget(ann)
    refused(bob, ann, envelope, "unknown-pre-key")


def test_nor_under_another_name_that_gives_the_same_secrets() -> None:
    """X25519 passes over the top bit, takes numbers that are not reduced, and does not tell points that differ by one of
    small order: (0, 0) added to (u, v) is (1/u, ...)."""
    ann, bob = Phone(1), Phone(2, one_time=0)
    ann.begin(bob)
    envelope = ann.seal(bob, b"x")
    u = int.from_bytes(envelope.body[EK], "little")
    scalar = bytes(range(32))
    for other in (u | 1 << 255, pow(u, -1, PRIME)):
        alias = other.to_bytes(32, "little")
        assert crypto_scalarmult(scalar, alias) == crypto_scalarmult(scalar, envelope.body[EK])
        refused(bob, ann, with_bytes(envelope, EK, alias), "bad-message")


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_a_thousand_messages_may_be_skipped_at_once_and_no_more() -> None:
    ann, bob = pair()
    talk(ann, bob)
    sent = [ann.seal(bob, b"%d" % number) for number in range(1002)]
    refused(bob, ann, sent[1001], "bad-message")
    assert bob.open(ann, sent[1000]) == b"1000"
    assert bob.open(ann, sent[0]) == b"0"
    assert bob.open(ann, sent[1001]) == b"1001"


def test_two_thousand_skipped_keys_are_kept_and_one_that_was_dropped_is_lost_not_a_duplicate() -> None:
    ann, bob = pair()
    sent = [ann.seal(bob, b"%d" % number) for number in range(2006)]
    assert bob.open(ann, sent[1]) == b"1"
    for last in (1001, 2001, 2003, 2005):  # 0; 2 to 1000; 1002 to 2000; 2002; 2004: one more than are kept
        bob.open(ann, sent[last])
    refused(bob, ann, sent[0], "bad-message")
    duplicate(bob, ann, sent[1001])
    assert bob.open(ann, sent[2]) == b"2"
    duplicate(bob, ann, sent[2])
    ann.open(bob, bob.seal(ann, b"turn"))
    bob.open(ann, ann.seal(bob, b"another chain"))
    refused(bob, ann, sent[0], "bad-message")
    assert bob.open(ann, sent[3]) == b"3"


def test_a_session_goes_on_after_more_was_lost_at_the_end_of_a_chain_than_may_be_skipped() -> None:
    ann, bob = pair()
    bob.open(ann, ann.seal(bob, b"0"))
    lost = [ann.seal(bob, b"lost") for _ in range(1001)]
    ann.open(bob, bob.seal(ann, b"turn"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        talk(ann, bob, 2)
    refused(bob, ann, lost[0], "bad-message")
    refused(bob, ann, lost[-1], "bad-message")


def test_a_chain_that_never_was_so_long_has_no_message_of_that_number() -> None:
    ann, bob = pair()
    talk(ann, bob)
    old = ann.seal(bob, b"x")
    talk(ann, bob, 2)
    refused(bob, ann, with_bytes(old, slice(37, 41), (7).to_bytes(4, "big")), "bad-message")


# --- several sessions ------------------------------------------------------------------------------------------------


def test_two_that_begin_at_once_end_on_one_session() -> None:
    ann, bob = Phone(1), Phone(2)
    ann.begin(bob)
    bob.begin(ann)
    to_bob, to_ann = ann.seal(bob, b"1"), bob.seal(ann, b"2")
    assert (bob.open(ann, to_bob), ann.open(bob, to_ann)) == (b"1", b"2")
    talk(ann, bob, 2)
    assert ann.sessions(bob)[0].session_id == bob.sessions(ann)[0].session_id
    assert (ann.seal(bob, b"").type, bob.seal(ann, b"").type) == ("message", "message")


def test_five_sessions_are_kept_and_the_least_recently_used_goes() -> None:
    ann, bob = Phone(1), Phone(2)
    held, ids = [], []
    for _ in range(SESSIONS_MAX):
        ann.begin(bob)
        ids.append(ann.sessions(bob)[0].session_id)
        held.append(ann.seal(bob, b"x"))
        held.append(ann.seal(bob, b"y"))
    for envelope in held[::2]:
        bob.open(ann, envelope)
    assert bob.open(ann, held[1]) == b"y"  # the first one is used again
    ann.begin(bob)
    bob.open(ann, ann.seal(bob, b"z"))
    assert {session.session_id for session in bob.sessions(ann)} >= {ids[0], *ids[2:]}
    assert len(bob.sessions(ann)) == SESSIONS_MAX
    refused(bob, ann, held[3], "unknown-pre-key")


def test_it_is_sent_on_the_session_that_was_read_on_last_also_when_the_clock_went_back() -> None:
    ann, bob = Phone(1), Phone(2)
    ann.begin(bob, now=9000)
    first = ann.seal(bob, b"1")
    ann.begin(bob, now=5)
    second = ann.seal(bob, b"2", now=5)
    assert first.body[EK] != second.body[EK]
    bob.open(ann, second, 9000)
    bob.open(ann, first, 3)
    assert bob.sessions(ann)[0].session_id == first.body[EK]
    assert ann.open(bob, bob.seal(ann, b"3"), 1) == b"3"
    assert ann.sessions(bob)[0].session_id == first.body[EK]


def test_who_has_forgotten_says_so_and_a_new_session_mends_it() -> None:
    ann, bob = pair()
    talk(ann, bob)
    bob.forget(ann)
    refused(bob, ann, ann.seal(bob, b"x"), "no-session")
    bob.begin(ann)
    assert ann.open(bob, bob.seal(ann, b"again, please")) == b"again, please"
    talk(ann, bob, 2)


def test_nothing_is_sealed_without_a_session() -> None:
    with pytest.raises(LookupError):
        Phone(1).seal(Phone(2), b"x")


def test_secrets_do_not_show() -> None:
    ann, bob = Phone(1), Phone(2)
    agreed = agreement.initiate(ann.own, bob.user_id, agreement.checked_bundle(bob.user_id, b"", bob.bundle()))
    assert "secret" not in repr(agreed)
    with pytest.raises(LookupError):
        Phone(1).vault.do(lambda tx: (tx.delete(Own, "own"), agreement.own_of(tx)))


# --- any schedule ----------------------------------------------------------------------------------------------------

Step = tuple[str, int, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "deliver", "deliver", "deliver", "again", "drop", "begin", "late", "reload"]),
        st.integers(0, 2),
        st.integers(0, 1),
        st.integers(0, 2**16),
    ),
    max_size=70,
)


@given(STEPS)
@settings(max_examples=80, deadline=None)
def test_three_devices_read_every_message_exactly_once_in_any_order_with_losses_and_repetitions(
    steps: list[Step],
) -> None:
    phones = [Phone(1), Phone(2), Phone(3, one_time=2)]
    begun: dict[frozenset[int], int] = {}
    flying: list[tuple[int, int, bytes, Envelope]] = []
    arrived: list[tuple[int, int, bytes, Envelope]] = []

    def begin(sender: int, receiver: int) -> None:
        between = frozenset((sender, receiver))
        if begun.get(between, 0) < SESSIONS_MAX:  # else one would go, and what is under way on it with it
            begun[between] = begun.get(between, 0) + 1
            phones[sender].begin(phones[receiver])

    def deliver(number: int) -> None:
        flight = flying.pop(number % len(flying))
        sender, receiver, text, envelope = flight
        assert phones[receiver].open(phones[sender], envelope) == text
        arrived.append(flight)

    for number, (what, sender, other, chance) in enumerate(steps):
        receiver = (sender + 1 + other) % 3
        if what == "begin":
            begin(sender, receiver)
        elif what == "send":
            if not phones[sender].sessions(phones[receiver]):
                begin(sender, receiver)
            if phones[sender].sessions(phones[receiver]):
                text = b"%d" % number
                flying.append((sender, receiver, text, phones[sender].seal(phones[receiver], text)))
        elif what == "deliver" and flying:
            deliver(0)
        elif what == "late" and flying:
            deliver(chance)
        elif what == "drop" and flying:
            flying.pop(chance % len(flying))
        elif what == "again" and arrived:
            at, to, _text, envelope = arrived[chance % len(arrived)]
            duplicate(phones[to], phones[at], envelope)
        elif what == "reload":
            phones[sender].vault = phones[sender].vault.copy()
    while flying:
        deliver(len(flying) - 1)
    for at, to, _text, envelope in arrived:
        duplicate(phones[to], phones[at], envelope)
