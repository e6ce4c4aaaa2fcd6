"""Certificates and linking codes: what counts for a device and what does not, against an implementation of its own.

Ed25519 is checked with another library than the one under test, base 32 by arithmetic over one large number.
"""

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from gearlink.sdk.e2ee import certificates, encoding

USER = "0198aaaa-0000-7000-8000-000000000001"
OTHER = "0198aaaa-0000-7000-8000-000000000002"
DEVICE = "0198bbbb-0000-7000-8000-000000000001"
SEED = bytes(range(32))
ACCOUNT = certificates.account_public(SEED)
IDENTITY = certificates.account_public(bytes(range(32, 64)))
CERTIFICATE = certificates.certify(SEED, USER, DEVICE, IDENTITY)
CHOSEN = b"\x00\x01sec"
SYMBOLS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
IDENTITY_POINT = (1).to_bytes(32, "little")  # small order: y = 1, the neutral element
ORDER_TWO = (2**255 - 20).to_bytes(32, "little")  # y = -1


def device_bytes(user_id: str = USER, device_id: str = DEVICE, identity_key: bytes = IDENTITY) -> bytes:
    return bytes.fromhex((user_id + device_id).replace("-", "")) + identity_key


def base32(raw: bytes) -> str:
    number = int.from_bytes(raw, "big")
    count = len(raw) * 8 // 5
    return "".join(SYMBOLS[number >> 5 * (count - 1 - at) & 31] for at in range(count))


def test_a_certificate_is_a_plain_ed25519_signature_over_title_and_device() -> None:
    theirs = Ed25519PrivateKey.from_private_bytes(SEED)
    assert theirs.public_key().public_bytes_raw() == ACCOUNT
    assert theirs.sign(b"GearLink device certificate v1" + device_bytes()) == CERTIFICATE
    Ed25519PublicKey.from_public_bytes(ACCOUNT).verify(CERTIFICATE, b"GearLink device certificate v1" + device_bytes())


def test_a_certificate_counts_for_exactly_what_it_names() -> None:
    assert certificates.verify_certificate(ACCOUNT, USER, DEVICE, IDENTITY, CERTIFICATE)
    for account_key, user_id, device_id, identity_key in (
        (IDENTITY, USER, DEVICE, IDENTITY),
        (ACCOUNT, OTHER, DEVICE, IDENTITY),
        (ACCOUNT, DEVICE, USER, IDENTITY),
        (ACCOUNT, USER, OTHER, IDENTITY),
        (ACCOUNT, USER, DEVICE, ACCOUNT),
    ):
        assert not certificates.verify_certificate(account_key, user_id, device_id, identity_key, CERTIFICATE)


@given(at=st.integers(0, 511))
def test_no_bit_of_a_certificate_can_be_another(at: int) -> None:
    changed = bytearray(CERTIFICATE)
    changed[at // 8] ^= 1 << at % 8
    assert not certificates.verify_certificate(ACCOUNT, USER, DEVICE, IDENTITY, bytes(changed))


@given(
    st.one_of(st.binary(max_size=70), st.just(ACCOUNT)),
    st.one_of(st.text(max_size=40), st.just(USER)),
    st.one_of(st.text(max_size=40), st.just(DEVICE)),
    st.one_of(st.binary(max_size=70), st.just(IDENTITY)),
    st.one_of(st.binary(max_size=70), st.just(CERTIFICATE)),
)
def test_whatever_others_send_is_answered_with_yes_or_no(
    account_key: bytes, user_id: str, device_id: str, identity_key: bytes, certificate: bytes
) -> None:
    given_things = (account_key, user_id, device_id, identity_key, certificate)
    counts = certificates.verify_certificate(*given_things)
    assert counts == (given_things == (ACCOUNT, USER, DEVICE, IDENTITY, CERTIFICATE))
    assert certificates.matches_code("0", user_id, device_id, identity_key) is False


@pytest.mark.parametrize("key", [IDENTITY_POINT, ORDER_TWO, bytes(32), b"\xff" * 32], ids=str)
def test_a_key_of_small_order_or_in_another_encoding_signs_nothing_and_is_certified_by_nobody(key: bytes) -> None:
    # Under the neutral element, R = B and S = 1 would pass for every text where small orders are let in.
    forged = bytes.fromhex("58" + "66" * 31) + (1).to_bytes(32, "little")
    assert not certificates.is_public_key(key)
    assert not certificates.is_signed(key, b"anything", forged)
    assert not certificates.verify_certificate(key, USER, DEVICE, IDENTITY, forged)
    with pytest.raises(ValueError):
        certificates.certify(SEED, USER, DEVICE, key)


def test_account_keys_are_made_afresh() -> None:
    seeds = {certificates.new_account_seed() for _ in range(20)}
    assert len(seeds) == 20 and {len(seed) for seed in seeds} == {32}


# --- linking codes ----------------------------------------------------------------------------------------------------


def test_a_linking_code_is_a_secret_and_40_bits_of_a_hash_in_four_groups() -> None:
    code = certificates.linking_code(USER, DEVICE, IDENTITY, CHOSEN)
    expected = base32(CHOSEN + hashlib.sha256(b"GearLink link v2" + device_bytes() + CHOSEN).digest()[:5])
    assert certificates.code_secret(code.lower()) == CHOSEN
    assert code.split("-") == [expected[at : at + 4] for at in range(0, 16, 4)]


def test_a_code_is_understood_however_it_was_typed() -> None:
    # A device whose code has both digits that are mistaken for letters.
    keys = (certificates.account_public(number.to_bytes(32, "big")) for number in range(1000))
    key = next(key for key in keys if {"0", "1"} <= set(certificates.linking_code(USER, DEVICE, key, CHOSEN)))
    code = certificates.linking_code(USER, DEVICE, key, CHOSEN)
    for typed in (
        code.lower(),
        code.replace("-", ""),
        f"  {code.replace('-', ' ')}\n",
        code.replace("-", "\u2013"),
        code.replace("0", "O").replace("1", "I"),
        code.replace("0", "o").replace("1", "l"),
        "-".join(code.replace("-", "")),
    ):
        assert certificates.matches_code(typed, USER, DEVICE, key), typed


@given(st.integers(0, 15), st.sampled_from(SYMBOLS))
def test_a_code_with_one_symbol_wrong_is_no_devices(at: int, symbol: str) -> None:
    code = certificates.linking_code(USER, DEVICE, IDENTITY, CHOSEN).replace("-", "")
    typed = code[:at] + symbol + code[at + 1 :]
    assert certificates.matches_code(typed, USER, DEVICE, IDENTITY) == (typed == code)


@pytest.mark.parametrize(
    "typed", ["", "-", "U" * 16, "0" * 15, "0" * 17, "0" * 10_000, "\u0131" * 16, "\uff14Q5E" * 4, "\x00" * 16]
)
def test_what_is_no_code_matches_nothing(typed: str) -> None:
    assert not certificates.matches_code(typed, USER, DEVICE, IDENTITY)
    with pytest.raises(ValueError):
        certificates.code_secret(typed)


def test_what_is_no_secret_gives_neither_code_nor_proof() -> None:
    for secret in (b"", CHOSEN[:-1], CHOSEN + b"x"):
        with pytest.raises(ValueError):
            certificates.linking_code(USER, DEVICE, IDENTITY, secret)
        with pytest.raises(ValueError):
            certificates.link_proof(secret, USER, DEVICE, ACCOUNT)
    assert len({certificates.new_link_secret() for _ in range(50)}) == 50


def test_a_proof_is_an_hmac_by_the_secret_over_the_new_device_and_the_account_key() -> None:
    proof = certificates.link_proof(CHOSEN, USER, DEVICE, ACCOUNT)
    assert proof == hmac.digest(CHOSEN, b"GearLink link proof v1" + device_bytes(identity_key=ACCOUNT), "sha256")
    others = {
        certificates.link_proof(CHOSEN[::-1], USER, DEVICE, ACCOUNT),
        certificates.link_proof(CHOSEN, OTHER, DEVICE, ACCOUNT),
        certificates.link_proof(CHOSEN, USER, OTHER, ACCOUNT),
        certificates.link_proof(CHOSEN, USER, DEVICE, IDENTITY),
    }
    assert len(others) == 4 and proof not in others


def test_a_code_is_of_one_device_of_one_user() -> None:
    code = certificates.linking_code(USER, DEVICE, IDENTITY, CHOSEN)
    assert not certificates.matches_code(code, OTHER, DEVICE, IDENTITY)
    assert not certificates.matches_code(code, USER, OTHER, IDENTITY)
    assert not certificates.matches_code(code, USER, DEVICE, ACCOUNT)


# --- encodings --------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=40).filter(lambda raw: len(raw) % 5 == 0))
def test_base_32_is_one_large_number_in_symbols(raw: bytes) -> None:
    assert encoding.to_code(raw).replace("-", "") == base32(raw)
    assert encoding.from_code(encoding.to_code(raw), len(raw)) == raw


@given(st.binary(max_size=100), st.text("AQgw_-=+/ \nä", max_size=8))
def test_base64url_has_one_text_for_each_bytes(raw: bytes, text: str) -> None:
    assert encoding.from_base64url(encoding.to_base64url(raw), len(raw)) == raw
    try:
        read = encoding.from_base64url(text)
    except ValueError:
        return
    assert encoding.to_base64url(read) == text


@pytest.mark.parametrize("text", ["AB", "AA==", "A", "AA A", "A+", "A/", "AA\n", "é", "\ud800"])
def test_base64url_that_is_not_canonical_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        encoding.from_base64url(text)


@given(st.binary(min_size=16, max_size=16))
def test_ids_and_their_bytes_are_one_to_one(raw: bytes) -> None:
    assert encoding.id_bytes(encoding.id_text(raw)) == raw


@pytest.mark.parametrize(
    "text", ["", USER.upper(), USER + "\n", USER.replace("-", ""), "{" + USER + "}", USER[:-1] + "g"]
)
def test_an_id_in_another_form_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        encoding.id_bytes(text)
