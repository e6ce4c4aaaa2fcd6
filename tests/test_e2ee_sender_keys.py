"""Sender keys: one encryption for a group, messages in any order, each once, and nobody else's."""

import hashlib
import hmac
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gearlink.sdk.e2ee import sender_keys
from gearlink.sdk.e2ee.encoding import id_bytes, to_base64url
from gearlink.sdk.e2ee.letters import Duplicate, Reason, RosterMark, SenderKeyGiven, Undecryptable
from gearlink.sdk.e2ee.records import OwnSenderKey, SenderKey
from gearlink.sdk.e2ee.sender_keys import KEPT_MAX, SKIP_MAX

GROUP = "01890000-0000-7000-8000-00000000000a"
ALICE = "01890000-0000-7000-8000-0000000000a1"
PHONE = "01890000-0000-7000-8000-0000000000a2"
OTHER = "01890000-0000-7000-8000-0000000000ff"
NOON = 1_700_000_000_000
DAY = 86_400_000


def new() -> OwnSenderKey:
    return sender_keys.make(GROUP, NOON, "epoch")


def given_to(own: OwnSenderKey, known: SenderKey | None = None) -> SenderKey:
    """What another device makes of the key as it is now."""
    return sender_keys.from_distribution(sender_keys.distribution(own), GROUP, ALICE, PHONE, NOON, known)


def say(own: OwnSenderKey, count: int) -> tuple[OwnSenderKey, list[bytes]]:
    """`count` messages: the first says 0."""
    bodies = []
    for number in range(count):
        own, body = sender_keys.seal(own, ALICE, PHONE, b"%d" % number)
        bodies.append(body)
    return own, bodies


def signed(own: OwnSenderKey, body: bytes) -> bytes:
    """The body with the signature that the owner would give it, whatever is in it."""
    head = b"GearLink sender key v1" + own.key_id + id_bytes(GROUP) + id_bytes(ALICE) + id_bytes(PHONE)
    return body[:-64] + Ed25519PrivateKey.from_private_bytes(own.signing_seed).sign(head + body[:-64])


def assert_unread(record: SenderKey, body: bytes, reason: Reason) -> None:
    with pytest.raises(Undecryptable) as caught:
        sender_keys.open_body(record, body)
    assert caught.value.reason == reason
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def refused(letter: SenderKeyGiven, known: SenderKey | None = None, **other: str) -> Reason:
    where = {"conversation_id": GROUP, "user_id": ALICE, "device_id": PHONE, **other}
    with pytest.raises(Undecryptable) as caught:
        sender_keys.from_distribution(letter, **where, now=NOON, known=known)
    return caught.value.reason


# --- the bytes --------------------------------------------------------------------------------------------------------


def test_the_bytes_are_those_of_the_document() -> None:
    """By hand, with nothing of ours but the key."""
    own, bodies = say(new(), 3)
    first, chain = replace(own, chain_key=b"c" * 32, iteration=0), b"c" * 32
    for iteration in range(3):
        first, body = sender_keys.seal(first, ALICE, PHONE, b"a letter")
        message_key = hmac.new(chain, b"\x01", hashlib.sha256).digest()
        chain = hmac.new(chain, b"\x02", hashlib.sha256).digest()
        salt = body[5:21]
        extracted = hmac.new(salt, message_key, hashlib.sha256).digest()
        one = hmac.new(extracted, b"GearLink sender key\x01", hashlib.sha256).digest()
        two = hmac.new(extracted, one + b"GearLink sender key\x02", hashlib.sha256).digest()
        header = b"\x01" + iteration.to_bytes(4, "big") + salt
        ids = bytes.fromhex((GROUP + ALICE + PHONE).replace("-", ""))
        ad = b"GearLink sender key v1" + own.key_id + ids + header
        ciphertext = AESGCM(one).encrypt(two[:12], b"a letter", ad)
        signature = Ed25519PrivateKey.from_private_bytes(own.signing_seed).sign(ad + ciphertext)
        assert body == header + ciphertext + signature
    assert first.chain_key == chain
    assert len(bodies[0]) == 1 + sender_keys._HEADER_BYTES + 16 + 64


def test_of_a_vault_that_was_put_back_two_texts_under_one_message_key_have_nothing_in_common() -> None:
    own = new()
    _own, one = sender_keys.seal(own, ALICE, PHONE, bytes(64))
    _own, two = sender_keys.seal(own, ALICE, PHONE, bytes(64))
    assert one[:5] == two[:5] and one[5:21] != two[5:21]
    assert not any(a == b for a, b in zip(_blocks(one[21:85]), _blocks(two[21:85]), strict=True))


def _blocks(data: bytes) -> list[bytes]:
    return [data[start : start + 16] for start in range(0, len(data), 16)]


def test_no_key_is_like_another() -> None:
    one, two = new(), new()
    assert len({one.key_id, two.key_id}) == len({one.chain_key, two.chain_key, one.signing_seed, two.signing_seed}) / 2
    assert (one.iteration, one.holders, one.made_at, one.epoch) == (0, (), NOON, "epoch")


def test_a_distribution_says_the_key_as_it_is_now_and_what_roster_it_was_made_for() -> None:
    own, _bodies = say(new(), 4)
    mark = RosterMark(version=2, hash=to_base64url(bytes(32)))
    letter = sender_keys.distribution(own, mark)
    assert (letter.iteration, letter.chain_key, letter.roster) == (4, to_base64url(own.chain_key), mark)
    assert to_base64url(own.signing_seed) not in {letter.signature_key, letter.chain_key, letter.key_id}


# --- order ------------------------------------------------------------------------------------------------------------


@given(st.permutations(range(12)), st.lists(st.booleans(), min_size=12, max_size=12))
@settings(max_examples=60)
def test_messages_are_read_in_any_order_and_each_only_once(order: list[int], again: list[bool]) -> None:
    own = new()
    record = given_to(own)
    _own, bodies = say(own, 12)
    for number in order:
        record, letter = sender_keys.open_body(record, bodies[number])
        assert letter == b"%d" % number
        if again[number]:
            with pytest.raises(Duplicate):
                sender_keys.open_body(record, bodies[number])
    assert record.skipped == {}, "a key that was used is kept"
    for body in bodies:
        with pytest.raises(Duplicate):
            sender_keys.open_body(record, body)


@given(st.integers(0, 20), st.binary(max_size=3000))
@settings(max_examples=60)
def test_any_letter_comes_out_for_who_was_given_the_key_at_any_time(before: int, letter: bytes) -> None:
    own, _bodies = say(new(), before)
    record = given_to(own)
    own, body = sender_keys.seal(own, ALICE, PHONE, letter)
    record, found = sender_keys.open_body(record, body)
    assert found == letter and len(body) == len(letter) + 101
    assert (record.chain_key, record.iteration) == (own.chain_key, own.iteration)


def test_a_newcomer_reads_nothing_from_before_and_is_told_that_it_is_not_there() -> None:
    own, bodies = say(new(), 3)
    record = given_to(own)
    for body in bodies:
        assert_unread(record, body, "bad-message")
    _own, (body,) = say(own, 1)
    assert sender_keys.open_body(record, body)[1] == b"0"


def test_what_may_be_skipped_at_once_is_bounded() -> None:
    own = new()
    record = given_to(own)
    own, bodies = say(own, SKIP_MAX + 2)
    assert_unread(record, bodies[SKIP_MAX + 1], "bad-message")
    moved, letter = sender_keys.open_body(record, bodies[SKIP_MAX])
    assert letter == b"%d" % SKIP_MAX and len(moved.skipped) == SKIP_MAX
    assert sender_keys.open_body(moved, bodies[0])[1] == b"0"


def test_of_the_keys_that_are_kept_the_oldest_go_first_and_what_they_opened_is_not_passed_over() -> None:
    own = new()
    record = given_to(own)
    own, bodies = say(own, KEPT_MAX + 12)
    record, _letter = sender_keys.open_body(record, bodies[1])  # 0 waits
    record, _letter = sender_keys.open_body(record, bodies[KEPT_MAX + 2])
    assert len(record.skipped) == KEPT_MAX and 0 not in record.skipped
    record, _letter = sender_keys.open_body(record, bodies[KEPT_MAX + 11])
    assert len(record.skipped) == KEPT_MAX and min(record.skipped) == 10
    assert_unread(record, bodies[0], "bad-message")
    assert_unread(record, bodies[9], "bad-message")
    with pytest.raises(Duplicate):
        sender_keys.open_body(record, bodies[KEPT_MAX + 2])
    assert sender_keys.open_body(record, bodies[10])[1] == b"10"


# --- tampering --------------------------------------------------------------------------------------------------------

LETTER = b'{"type":"message"}'
PARTS: list[tuple[str, Callable[[bytes], range]]] = [
    ("version", lambda body: range(0, 1)),
    ("iteration", lambda body: range(1, 5)),
    ("ciphertext", lambda body: range(5, len(body) - 80)),
    ("tag", lambda body: range(len(body) - 80, len(body) - 64)),
    ("signature", lambda body: range(len(body) - 64, len(body))),
]


@pytest.mark.parametrize(("part", "where"), PARTS, ids=lambda part: part if isinstance(part, str) else "")
def test_no_bit_of_a_message_can_be_changed(part: str, where: Callable[[bytes], range]) -> None:
    own = new()
    record = given_to(own)
    _own, body = sender_keys.seal(own, ALICE, PHONE, LETTER)
    for at in where(body):
        for bit in range(8):
            assert_unread(record, body[:at] + bytes([body[at] ^ 1 << bit]) + body[at + 1 :], "bad-signature")
    assert sender_keys.open_body(record, body)[1] == LETTER


@pytest.mark.parametrize(("part", "where"), PARTS[:-1], ids=lambda part: part if isinstance(part, str) else "")
def test_nor_does_a_signature_by_its_owner_make_it_one_that_can_be_read(
    part: str, where: Callable[[bytes], range]
) -> None:
    """A member of the group may be hostile: the record is the same after it."""
    own = new()
    record = given_to(own)
    _own, body = sender_keys.seal(own, ALICE, PHONE, LETTER)
    for at in where(body):
        forged = signed(own, body[:at] + bytes([body[at] ^ 0x80]) + body[at + 1 :])
        assert_unread(record, forged, "bad-message")
    assert record == given_to(own)
    assert signed(own, body) == body, "the forger signs as the owner does"


def test_a_message_cut_short_or_lengthened_is_none() -> None:
    own = new()
    record = given_to(own)
    _own, body = sender_keys.seal(own, ALICE, PHONE, b"")
    for size in range(len(body)):
        assert_unread(record, body[:size], "bad-message")
    assert_unread(record, body + b"\x00", "bad-signature")
    assert sender_keys.open_body(record, body)[1] == b""


@pytest.mark.parametrize(
    "change",
    [
        *({"conversation_id": OTHER}, {"user_id": OTHER}, {"device_id": OTHER}, {"key_id": bytes(16)}),
        {"signature_key": bytes(given_to(new()).signature_key)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_message_counts_only_where_and_from_whom_it_was_said(change: dict[str, str]) -> None:
    own = new()
    _own, body = sender_keys.seal(own, ALICE, PHONE, LETTER)
    assert_unread(replace(given_to(own), **change), body, "bad-signature")


def test_who_can_read_cannot_write() -> None:
    """Everything but the signature is in the hands of each member."""
    own = new()
    record = given_to(own)
    mallory = replace(new(), key_id=record.key_id, chain_key=record.chain_key)
    _mallory, body = sender_keys.seal(mallory, ALICE, PHONE, LETTER)
    assert_unread(record, body, "bad-signature")


def test_a_forgery_of_a_message_that_was_read_is_no_duplicate() -> None:
    own = new()
    record = given_to(own)
    _own, body = sender_keys.seal(own, ALICE, PHONE, LETTER)
    record, _letter = sender_keys.open_body(record, body)
    assert_unread(record, body[:-1] + bytes([body[-1] ^ 1]), "bad-signature")


# --- given again ------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 9)), st.integers(0, 9))
@settings(max_examples=60)
def test_a_key_that_is_given_again_loses_nothing_and_goes_back_nowhere(read: set[int], at: int) -> None:
    states, bodies, own = [], [], new()
    record = given_to(own)
    for number in range(10):
        states.append(own)
        own, body = sender_keys.seal(own, ALICE, PHONE, b"%d" % number)
        bodies.append(body)
    for number in sorted(read, key=lambda number: hash((number, at))):
        record, _letter = sender_keys.open_body(record, bodies[number])
    record = given_to(states[at], record)
    for number, body in enumerate(bodies):
        if number in read:
            with pytest.raises(Duplicate):
                sender_keys.open_body(record, body)
        else:
            record, letter = sender_keys.open_body(record, body)
            assert letter == b"%d" % number


def test_a_key_that_has_gone_out_of_reach_is_caught_up_with_when_it_is_given_again() -> None:
    own = new()
    record = given_to(own)
    own, bodies = say(own, 3)
    record, _letter = sender_keys.open_body(record, bodies[2])
    own, missed = say(own, SKIP_MAX + 1)
    later, (body,) = say(own, 1)
    assert_unread(record, body, "bad-message")
    record = given_to(own, record)
    record, letter = sender_keys.open_body(record, body)
    assert letter == b"0" and sender_keys.open_body(record, bodies[0])[1] == b"0"
    assert_unread(record, missed[-1], "bad-message")
    assert record.chain_key == later.chain_key


def test_another_signature_key_or_another_chain_under_the_same_id_is_refused() -> None:
    own, _bodies = say(new(), 5)
    record, letter = given_to(own), sender_keys.distribution(own)
    stranger = sender_keys.distribution(new())
    assert refused(replace(letter, signature_key=stranger.signature_key), record) == "bad-signature"
    assert refused(replace(letter, chain_key=stranger.chain_key), record) == "bad-message"
    later = sender_keys.distribution(say(own, 3)[0])
    assert refused(replace(later, chain_key=stranger.chain_key), record) == "bad-message"
    assert sender_keys.from_distribution(later, GROUP, ALICE, PHONE, NOON, record) == record


def test_a_key_for_elsewhere_or_of_somebody_else_is_refused() -> None:
    own = new()
    letter = sender_keys.distribution(own)
    assert refused(replace(letter, conversation_id=OTHER)) == "misdirected"
    assert refused(letter, conversation_id=OTHER) == "misdirected"
    assert refused(letter, given_to(own), user_id=OTHER) == "misdirected"
    assert refused(letter, given_to(own), device_id=OTHER) == "misdirected"


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32, b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_a_signature_key_under_which_anything_may_be_signed_is_refused(point: bytes) -> None:
    assert refused(replace(sender_keys.distribution(new()), signature_key=to_base64url(point))) == "bad-signature"


# --- when it has to be another ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("iteration", "age", "epoch", "due"),
    [
        *((0, 0, "epoch", False), (999, 7 * DAY - 1, "epoch", False), (1000, 0, "epoch", True)),
        *((0, 7 * DAY, "epoch", True), (0, 0, "another", True), (0, -1, "epoch", True)),
    ],
)
def test_a_key_is_replaced_when_it_is_used_up_old_or_of_another_epoch(
    iteration: int, age: int, epoch: str, due: bool
) -> None:
    assert sender_keys.is_due(replace(new(), iteration=iteration), NOON + age, epoch) is due
