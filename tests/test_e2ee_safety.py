"""Safety numbers and their QR codes: both people see the same, and whoever stands between them cannot make them equal.

The numbers are computed a second time here, straight from the words of docs/encryption.md.
"""

import base64
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearlink.sdk.e2ee import safety

ANNA = "0198aaaa-0000-7000-8000-000000000001"
BERT = "0198aaaa-0000-7000-8000-000000000002"
CLEO = "0198aaaa-0000-7000-8000-000000000003"
KEY_A, KEY_B, KEY_M = (hashlib.sha256(name).digest() for name in (b"anna", b"bert", b"somebody between"))


def hashed(user_id: str, key: bytes) -> bytes:
    h = b"GearLink safety number v1" + bytes.fromhex(user_id.replace("-", "")) + key
    for _ in range(5200):
        h = hashlib.sha512(h + key).digest()
    return h


def digits(user_id: str, key: bytes) -> str:
    h = hashed(user_id, key)
    return "".join(str(int.from_bytes(h[at : at + 5], "big") % 100_000).zfill(5) for at in range(0, 30, 5))


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_the_hash_repeated_5200_times() -> None:
    assert safety.fingerprint(ANNA, KEY_A) == hashed(ANNA, KEY_A)[:32]


@settings(max_examples=20)
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_number_is_60_digits_in_twelve_groups_the_smaller_half_first(one: bytes, two: bytes) -> None:
    number = safety.safety_number(ANNA, one, BERT, two)
    assert [len(group) for group in number.split(" ")] == [5] * 12
    halves = (digits(ANNA, one), digits(BERT, two))
    assert number.replace(" ", "") == min(halves) + max(halves)
    assert number == safety.safety_number(BERT, two, ANNA, one)


def test_another_key_or_another_user_is_another_number() -> None:
    numbers = {
        safety.safety_number(ANNA, KEY_A, BERT, KEY_B),
        safety.safety_number(ANNA, KEY_A, BERT, KEY_M),
        safety.safety_number(ANNA, KEY_M, BERT, KEY_B),
        safety.safety_number(ANNA, KEY_A, CLEO, KEY_B),
        safety.safety_number(ANNA, KEY_B, BERT, KEY_A),
    }
    assert len(numbers) == 5


def test_an_account_key_stands_for_a_user_whatever_their_devices_are() -> None:
    assert safety.key_for(KEY_A, [KEY_B, KEY_M]) == safety.key_for(KEY_A, []) == KEY_A


def test_without_an_account_key_all_devices_together_stand_for_a_user() -> None:
    low, high = sorted((KEY_A, KEY_B))
    assert safety.key_for(b"", [KEY_A, KEY_B]) == hashlib.sha256(low + high).digest()
    assert safety.key_for(b"", iter([KEY_B, KEY_A])) == safety.key_for(b"", [KEY_A, KEY_B])
    assert safety.key_for(b"", [KEY_A]) != KEY_A
    with pytest.raises(ValueError):
        safety.key_for(b"", [])


# --- QR codes ---------------------------------------------------------------------------------------------------------

SHOWN = safety.qr_text(BERT, KEY_B, ANNA, KEY_A)  # on Bert's screen


def scanned(text: str, own_key: bytes = KEY_A, other_key: bytes = KEY_B) -> str:
    """What Anna's device says of a code that it scanned from Bert's."""
    return safety.check_qr(text, ANNA, own_key, BERT, other_key)


def test_a_qr_code_holds_both_users_with_their_fingerprints() -> None:
    prefix, version, body = SHOWN.split(":")
    assert (prefix, version) == ("GEARLINK", "1")
    sides = [
        bytes.fromhex(user.replace("-", "")) + hashed(user, key)[:32] for user, key in ((BERT, KEY_B), (ANNA, KEY_A))
    ]
    assert base64.urlsafe_b64decode(body) == b"".join(sides)


def test_two_people_who_see_the_same_keys_match() -> None:
    assert scanned(SHOWN) == "match"
    assert safety.check_qr(safety.qr_text(ANNA, KEY_A, BERT, KEY_B), BERT, KEY_B, ANNA, KEY_A) == "match"
    assert scanned(f" {SHOWN}\n") == "match"


def test_somebody_between_is_a_mismatch_whichever_key_they_changed() -> None:
    assert scanned(SHOWN, other_key=KEY_M) == "mismatch"
    assert scanned(SHOWN, own_key=KEY_M) == "mismatch"
    assert scanned(safety.qr_text(BERT, KEY_B, ANNA, KEY_M)) == "mismatch"


def test_the_code_of_others_says_nothing_about_these_two() -> None:
    assert scanned(safety.qr_text(CLEO, KEY_B, ANNA, KEY_A)) == "other-person"
    assert scanned(safety.qr_text(BERT, KEY_B, CLEO, KEY_A)) == "other-person"
    assert scanned(safety.qr_text(ANNA, KEY_A, BERT, KEY_B)) == "other-person"  # one's own screen, or it sent back


@given(st.integers(0, 96 * 8 - 1))
def test_no_bit_of_a_code_can_be_another(at: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(SHOWN.removeprefix("GEARLINK:1:")))
    raw[at // 8] ^= 1 << at % 8
    changed = "GEARLINK:1:" + base64.urlsafe_b64encode(raw).decode()
    in_an_id = at // 8 % 48 < 16
    assert scanned(changed) == ("other-person" if in_an_id else "mismatch")


@given(st.one_of(st.text(max_size=200), st.text(max_size=200).map("GEARLINK:1:".__add__)))
def test_any_other_text_is_unreadable(text: str) -> None:
    assert scanned(text) == "unreadable"


@pytest.mark.parametrize("text", [SHOWN[:-1], SHOWN + "A", SHOWN + "==", SHOWN.lower(), SHOWN.replace(":1:", ":2:")])
def test_a_code_in_any_other_form_is_unreadable(text: str) -> None:
    assert scanned(text) == "unreadable"


def test_a_terminal_shows_light_modules_as_blocks_with_the_quiet_zone_around() -> None:
    lines = safety.qr_terminal(SHOWN).splitlines()
    light = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), " ": (0, 0)}
    rows = [[light[symbol][half] for symbol in line] for line in lines for half in (0, 1)]
    rows = rows[: len(rows[0])]  # of the last line only the upper half belongs to it
    assert len({len(row) for row in rows}) == 1 and len(rows[0]) <= 80
    width = len(rows[0])
    size = width - 8
    assert all(all(row) for row in rows[:4]) and all(all(row[:4]) and all(row[-4:]) for row in rows)
    assert all(all(row) for row in rows[size + 4 : size + 8])
    finder = [[0] * 7, [0] + [1] * 5 + [0], *[[0, 1, 0, 0, 0, 1, 0]] * 3, [0] + [1] * 5 + [0], [0] * 7]
    for top, left in ((4, 4), (4, 4 + size - 7), (4 + size - 7, 4)):
        assert [row[left : left + 7] for row in rows[top : top + 7]] == finder
