"""Recovery keys and sealed archives: what a person may type, what a server may do to chunks, and what comes back.

Key derivation and the cipher are done a second time here: HKDF by hand, and XChaCha20 as its draft builds it (an HChaCha20
in a few lines, then the ChaCha20-Poly1305 of another library).
"""

import hashlib
import hmac
import json
import secrets
import struct
import tracemalloc
import zlib
from itertools import pairwise

import msgspec
import nacl.bindings
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gearlink.sdk.e2ee import recovery
from gearlink.sdk.e2ee.encoding import to_base64url
from gearlink.sdk.e2ee.records import Kept
from gearlink.sdk.e2ee.recovery import BadRecoveryKey, DamagedChunk, Manifest, Row, Verified

USER = "0198aaaa-0000-7000-8000-000000000001"
OTHER = "0198aaaa-0000-7000-8000-000000000002"
DEVICE = "0198bbbb-0000-7000-8000-000000000001"
ARCHIVE = "0198dddd-0000-7000-8000-000000000001"
GROUP = "0198cccc-0000-7000-8000-000000000001"
MESSAGE = "0198eeee-0000-7000-8000-000000000001"
SYMBOLS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
KEY = bytes(range(32))
PLAIN = b'{"a":1}\n{"a":2}\n'
CHUNK = recovery.seal_chunk(KEY, USER, ARCHIVE, 3, PLAIN)


def raw_id(identifier: str) -> bytes:
    return bytes.fromhex(identifier.replace("-", ""))


# --- the recovery key -------------------------------------------------------------------------------------------------


def test_a_recovery_key_is_140_bits_and_20_of_their_hash_in_eight_groups() -> None:
    shown = recovery.new_recovery_key()
    assert [len(group) for group in shown.split("-")] == [4] * 8
    bits = 0
    for symbol in shown.replace("-", ""):
        bits = bits << 5 | SYMBOLS.index(symbol)
    secret = (bits >> 20 << 4).to_bytes(18, "big")
    assert recovery.parse_recovery_key(shown) == secret
    assert bits & 0xFFFFF == int.from_bytes(hashlib.sha256(secret).digest(), "big") >> 236


def test_recovery_keys_are_made_afresh_and_written_as_they_were_read() -> None:
    shown = {recovery.new_recovery_key() for _ in range(50)}
    assert len(shown) == 50
    assert {recovery.recovery_key_text(recovery.parse_recovery_key(key)) for key in shown} == shown


def test_a_recovery_key_is_understood_however_it_was_typed() -> None:
    shown = next(key for key in iter(recovery.new_recovery_key, "") if {"0", "1"} <= set(key))
    secret = recovery.parse_recovery_key(shown)
    for typed in (
        shown.lower(),
        shown.replace("-", " "),
        shown.replace("-", ""),
        shown.replace("-", "\u2014"),
        shown.replace("0", "o").replace("1", "l"),
        shown.replace("0", "O").replace("1", "i"),
        f"\n {shown} \n",
    ):
        assert recovery.parse_recovery_key(typed) == secret, typed


@given(st.integers(0, 31), st.integers(1, 31))
def test_a_mistake_in_one_symbol_is_noticed(at: int, by: int) -> None:
    symbols = recovery.recovery_key_text(bytes(range(16, 33)) + b"\x50").replace("-", "")
    wrong = SYMBOLS[(SYMBOLS.index(symbols[at]) + by) % 32]
    with pytest.raises(BadRecoveryKey, match="character is wrong"):
        recovery.parse_recovery_key(symbols[:at] + wrong + symbols[at + 1 :])


@pytest.mark.parametrize(
    ("typed", "help_text"),
    [
        ("", "too short"),
        ("7KQW-3ZTN", "8 characters of 32"),
        ("7KQW" * 9, "too long"),
        ("7KQU" * 8, "no letter U"),
        ("7KQW!" * 8, "only digits and letters"),
        ("7KQW" * 1000, "too long"),
        ("7KQß" * 8, "only digits and letters"),
    ],
)
def test_who_mistypes_is_told_what_is_wrong_and_nothing_of_what_they_typed(typed: str, help_text: str) -> None:
    with pytest.raises(BadRecoveryKey, match=help_text) as caught:
        recovery.parse_recovery_key(typed)
    assert "7KQ" not in str(caught.value) and caught.value.__cause__ is None


def test_a_backup_key_is_hkdf_of_the_secret_with_the_user_as_salt() -> None:
    secret = recovery.parse_recovery_key(recovery.new_recovery_key())
    extracted = hmac.digest(raw_id(USER), secret, "sha256")
    assert recovery.backup_key(USER, secret) == hmac.digest(extracted, b"GearLink backup v1\x01", "sha256")
    assert recovery.backup_key(OTHER, secret) != recovery.backup_key(USER, secret)
    with pytest.raises(ValueError):
        recovery.backup_key(USER, secret[:-1])


# --- chunks -----------------------------------------------------------------------------------------------------------


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """draft-irtf-cfrg-xchacha-03, section 2.2."""
    state = list(struct.unpack("<16L", b"expand 32-byte k" + key + nonce))

    def mix(a: int, b: int, c: int, d: int) -> None:
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            mixed = state[z] ^ state[x]
            state[z] = (mixed << turn | mixed >> 32 - turn) & 0xFFFFFFFF

    for _ in range(10):
        for at in range(4):
            mix(at, at + 4, at + 8, at + 12)
        for at in range(4):
            mix(at, 4 + (at + 1) % 4, 8 + (at + 2) % 4, 12 + (at + 3) % 4)
    return struct.pack("<8L", *state[:4], *state[12:])


def sealed_elsewhere(packed: bytes, number: int = 3) -> bytes:
    """A chunk with these bytes inside, made without the code under test."""
    nonce = secrets.token_bytes(24)
    about = b"GearLink archive v1" + raw_id(USER) + raw_id(ARCHIVE) + number.to_bytes(8, "big")
    inner = ChaCha20Poly1305(hchacha20(KEY, nonce[:16]))
    return nonce + inner.encrypt(bytes(4) + nonce[16:], packed, about)


def test_a_chunk_is_nonce_and_xchacha20_poly1305_of_zlib() -> None:
    about = b"GearLink archive v1" + raw_id(USER) + raw_id(ARCHIVE) + (3).to_bytes(8, "big")
    inner = ChaCha20Poly1305(hchacha20(KEY, CHUNK[:16]))
    assert zlib.decompress(inner.decrypt(bytes(4) + CHUNK[16:24], CHUNK[24:], about)) == PLAIN
    assert recovery.open_chunk(KEY, USER, ARCHIVE, 3, sealed_elsewhere(zlib.compress(PLAIN, 9))) == PLAIN


def test_sealing_twice_never_gives_the_same_bytes() -> None:
    assert recovery.seal_chunk(KEY, USER, ARCHIVE, 3, PLAIN) != CHUNK


@pytest.mark.parametrize(
    ("key", "user_id", "archive_id", "number"),
    [(bytes(32), USER, ARCHIVE, 3), (KEY, OTHER, ARCHIVE, 3), (KEY, USER, OTHER, 3), (KEY, USER, ARCHIVE, 4)],
    ids=["key", "user", "archive", "number"],
)
def test_a_chunk_opens_in_its_own_place_only(key: bytes, user_id: str, archive_id: str, number: int) -> None:
    with pytest.raises(DamagedChunk, match="not-opened"):
        recovery.open_chunk(key, user_id, archive_id, number, CHUNK)


@given(st.integers(0, len(CHUNK) * 8 - 1))
def test_no_bit_of_a_chunk_can_be_another(at: int) -> None:
    raw = bytearray(CHUNK)
    raw[at // 8] ^= 1 << at % 8
    with pytest.raises(DamagedChunk, match="not-opened"):
        recovery.open_chunk(KEY, USER, ARCHIVE, 3, bytes(raw))


@given(st.binary(max_size=200))
def test_any_bytes_in_place_of_a_chunk_are_damage(chunk: bytes) -> None:
    with pytest.raises(DamagedChunk, match="not-opened"):
        recovery.open_chunk(KEY, USER, ARCHIVE, 3, chunk)


def test_a_chunk_that_was_cut_short_is_damage_wherever_it_was_cut() -> None:
    for end in range(len(CHUNK)):
        with pytest.raises(DamagedChunk, match="not-opened"):
            recovery.open_chunk(KEY, USER, ARCHIVE, 3, CHUNK[:end])


def test_a_bomb_is_refused_before_it_has_gone_off() -> None:
    bomb = sealed_elsewhere(zlib.compress(bytes(100 * 1024 * 1024), 9))
    tracemalloc.start()
    with pytest.raises(DamagedChunk, match="too-large"):
        recovery.open_chunk(KEY, USER, ARCHIVE, 3, bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * recovery.PLAIN_BYTES_MAX
    largest = bytes(recovery.PLAIN_BYTES_MAX)
    assert recovery.open_chunk(KEY, USER, ARCHIVE, 3, sealed_elsewhere(zlib.compress(largest))) == largest
    with pytest.raises(DamagedChunk, match="too-large"):
        recovery.open_chunk(KEY, USER, ARCHIVE, 3, sealed_elsewhere(zlib.compress(largest + b"x")))


def test_what_zlib_did_not_make_or_not_finish_is_damage() -> None:
    packed = zlib.compress(PLAIN)
    for inside in (b"", PLAIN, packed[:-1], packed + b"x", packed[:-4] + bytes(4)):
        with pytest.raises(DamagedChunk, match="unreadable"):
            recovery.open_chunk(KEY, USER, ARCHIVE, 3, sealed_elsewhere(inside))


def test_a_full_chunk_fits_even_if_nothing_can_be_compressed() -> None:
    chunk = recovery.seal_chunk(KEY, USER, ARCHIVE, 1, secrets.token_bytes(recovery.PLAIN_BYTES))
    assert len(chunk) <= recovery.CHUNK_BYTES_MAX == 192 * 1024
    for plain in (secrets.token_bytes(recovery.CHUNK_BYTES_MAX), bytes(recovery.PLAIN_BYTES_MAX + 1)):
        with pytest.raises(ValueError, match="too large"):
            recovery.seal_chunk(KEY, USER, ARCHIVE, 1, plain)


def test_a_chunk_larger_than_any_is_refused_unopened() -> None:
    with pytest.raises(DamagedChunk, match="too-large"):
        recovery.open_chunk(KEY, USER, ARCHIVE, 1, bytes(recovery.CHUNK_BYTES_MAX + 1))


# --- rows -------------------------------------------------------------------------------------------------------------

KEPT = Kept(
    GROUP,
    1_760_000_000,
    7,
    MESSAGE,
    USER,
    DEVICE,
    1_769_860_800_000,
    "text",
    '{"type":"message","content":"Grüße \\n 👋","count":4}'.encode(),
    count=4,
    temp_id="t-1",
    edited_at=1_769_860_800_001,
    deleted_at=1_769_860_800_002,
    expires_at=1_769_860_800_003,
    trouble="no-session",
    reactions=((USER, "👍"), (OTHER, "❤️")),
    audience=((USER, DEVICE),),
    change=9,
)


def test_a_letter_comes_back_from_an_archive_with_everything_but_what_is_this_devices_own() -> None:
    # Every field has a value of its own here, so a new one of the record cannot be forgotten.
    assert all(getattr(KEPT, name) for name in Kept.__struct_fields__)
    ((plain, count),) = recovery.pack_rows([Row.of(KEPT)])
    (row,) = recovery.unpack_rows(plain)
    assert count == 1 and row.kept() == structs.replace(KEPT, audience=(), change=0)


def test_a_row_is_a_line_of_json_with_names() -> None:
    plain, _ = next(recovery.pack_rows([Row.of(KEPT), Row.of(KEPT)]))
    first, second, end = plain.split(b"\n")
    assert first == second and end == b""
    assert json.loads(first) == {
        "conversationId": GROUP,
        "era": 1_760_000_000,
        "sequence": 7,
        "messageId": MESSAGE,
        "senderId": USER,
        "senderDeviceId": DEVICE,
        "createdAt": 1_769_860_800_000,
        "kind": "text",
        "letter": KEPT.letter.decode(),
        "count": 4,
        "tempId": "t-1",
        "editedAt": 1_769_860_800_001,
        "deletedAt": 1_769_860_800_002,
        "expiresAt": 1_769_860_800_003,
        "trouble": "no-session",
        "reactions": [[USER, "👍"], [OTHER, "❤️"]],
    }


@given(st.lists(st.integers(0, 150_000), max_size=12))
def test_rows_are_packed_in_their_order_into_chunks_that_fit(sizes: list[int]) -> None:
    rows = [Row.of(structs.replace(KEPT, sequence=at, letter=b"x" * size)) for at, size in enumerate(sizes)]
    chunks = list(recovery.pack_rows(rows))
    assert [row for plain, _ in chunks for row in recovery.unpack_rows(plain)] == rows
    assert sum(count for _, count in chunks) == len(rows)
    assert all(len(plain) <= recovery.PLAIN_BYTES for plain, _ in chunks)
    assert all(len(one) + len(two) > recovery.PLAIN_BYTES for (one, _), (two, _) in pairwise(chunks))


def test_a_row_that_is_larger_than_usual_has_a_chunk_to_itself() -> None:
    large = Row.of(structs.replace(KEPT, letter=b"x" * 2 * recovery.PLAIN_BYTES))
    assert [count for _, count in recovery.pack_rows([Row.of(KEPT), large, Row.of(KEPT)])] == [1, 1, 1]
    (plain, _) = next(recovery.pack_rows([large]))
    assert recovery.unpack_rows(
        recovery.open_chunk(KEY, USER, ARCHIVE, 1, recovery.seal_chunk(KEY, USER, ARCHIVE, 1, plain))
    )


def test_rows_of_a_later_version_are_read_as_far_as_they_are_known() -> None:
    line = json.dumps({**json.loads(msgspec.json.encode(Row.of(KEPT))), "mood": {"deep": [1]}})
    assert recovery.unpack_rows(line.encode()) == [Row.of(KEPT)]


@pytest.mark.parametrize(
    "plain", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"x":' + b"[" * 100_000, b"null\n", b'{"sequence":1}']
)
def test_what_is_no_row_is_damage(plain: bytes) -> None:
    with pytest.raises(DamagedChunk, match="unreadable"):
        recovery.unpack_rows(plain)
    with pytest.raises(DamagedChunk, match="unreadable"):
        recovery.decode_manifest(plain)


# --- the manifest -----------------------------------------------------------------------------------------------------

MANIFEST = Manifest(
    user_id=USER,
    device_id=DEVICE,
    account_key=to_base64url(KEY),
    chunks=12,
    digest=to_base64url(bytes(range(32))),
    cursors={GROUP: 99},
    eras={"epoch one": 1_760_000_000},
    verified=(Verified(user_id=OTHER, account_key=to_base64url(bytes(32)), verified_at=5),),
    made_at=1_769_860_800_000,
)


def test_a_manifest_comes_back_as_it_was_and_says_its_version() -> None:
    plain = recovery.encode_manifest(MANIFEST)
    assert recovery.decode_manifest(plain) == MANIFEST
    assert MANIFEST.account_seed == KEY
    assert json.loads(plain) == {
        "version": 1,
        "userId": USER,
        "deviceId": DEVICE,
        "accountKey": to_base64url(KEY),
        "chunks": 12,
        "digest": to_base64url(bytes(range(32))),
        "cursors": {GROUP: 99},
        "eras": {"epoch one": 1_760_000_000},
        "verified": [{"userId": OTHER, "accountKey": to_base64url(bytes(32)), "verifiedAt": 5}],
        "madeAt": 1_769_860_800_000,
    }


def test_a_manifest_is_of_exactly_the_chunks_that_were_written() -> None:
    one, two = (recovery.chunk_hash(chunk) for chunk in (b"one", b"two"))
    digest = recovery.chained(recovery.chained(bytes(32), one), two)
    first = hashlib.sha256(bytes(32) + hashlib.sha256(b"one").digest()).digest()
    assert digest == hashlib.sha256(first + hashlib.sha256(b"two").digest()).digest()
    written = structs.replace(MANIFEST, chunks=2, digest=to_base64url(digest))
    assert written.is_of(2, digest)
    for chunks, other in ((1, digest), (2, first), (2, recovery.chained(recovery.chained(bytes(32), two), one))):
        assert not written.is_of(chunks, other)


def test_a_manifest_never_shows_the_account_key() -> None:
    assert to_base64url(KEY) not in repr(MANIFEST) + str(MANIFEST)


def test_a_transfer_has_no_account_key_in_its_manifest() -> None:
    bare = structs.replace(MANIFEST, account_key="")
    assert recovery.decode_manifest(recovery.encode_manifest(bare)).account_seed == b""


def test_a_manifest_of_a_later_version_is_said_to_be_one() -> None:
    with pytest.raises(DamagedChunk, match="newer"):
        recovery.decode_manifest(b'{"version":2,"everything":"different"}')


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"chunks": -1},
        {"chunks": 10**9},
        {"digest": ""},
        {"digest": "_" * 43},
        {"userId": "me"},
        {"accountKey": "short"},
        {"accountKey": "_" * 43},
        {"cursors": {"everything": 1}},
        {"cursors": {GROUP: -1}},
        {"verified": [{"userId": OTHER, "accountKey": "_" * 43, "verifiedAt": 5}]},
        {"madeAt": "today"},
    ],
    ids=str,
)
def test_a_manifest_with_something_wrong_in_it_is_none(changes: dict[str, object]) -> None:
    plain = json.dumps(json.loads(recovery.encode_manifest(MANIFEST)) | changes).encode()
    with pytest.raises(DamagedChunk, match="unreadable"):
        recovery.decode_manifest(plain)


def test_the_cipher_of_this_test_is_the_one_of_libsodium() -> None:
    nonce = bytes(range(24))
    theirs = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(b"text", b"about", nonce, KEY)
    ours = ChaCha20Poly1305(hchacha20(KEY, nonce[:16])).encrypt(bytes(4) + nonce[16:], b"text", b"about")
    assert ours == theirs
