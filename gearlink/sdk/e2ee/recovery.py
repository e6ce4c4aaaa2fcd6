"""The recovery key, the chunks of an archive (backup or transfer), and what is in them: manifest and rows of history.

A chunk is sealed for one user, one archive and one place in it, so none can be swapped, moved or changed without notice. What
comes back from the server may be anything: it raises DamagedChunk. Not known here: where archives lie, and when.
"""

import hashlib
import hmac
import secrets
import zlib
from collections.abc import Iterable, Iterator
from typing import Annotated, Final, Literal

import msgspec
import nacl.bindings
import nacl.exceptions
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Meta

from config import limits
from gearlink.sdk.e2ee.certificates import KEY_BYTES
from gearlink.sdk.e2ee.encoding import from_base64url, from_code, id_bytes, symbols_of, to_code
from gearlink.sdk.e2ee.records import Kept
from gearlink.views import Emoji, Id, Sequence

SECRET_BYTES: Final = 18  # 140 bits, left-aligned
CHUNK_BYTES_MAX: Final = 192 * 1024  # sealed
PLAIN_BYTES: Final = 190 * 1024  # of rows in one chunk: even if nothing of it can be compressed, it fits
PLAIN_BYTES_MAX: Final = 8 * 1024 * 1024  # that a chunk of others may grow to
VERSION: Final = 1

_KEY_SYMBOLS: Final = 32
_KEY_BITS: Final = 140
_CHECK_BITS: Final = 20
_BACKUP: Final = b"GearLink backup v1"
_ARCHIVE: Final = b"GearLink archive v1"
_NONCE_BYTES: Final = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
_TAG_BYTES: Final = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_ABYTES
_NUMBER_MAX: Final = 2**63 - 1

assert PLAIN_BYTES + PLAIN_BYTES // 1000 + 64 + _NONCE_BYTES + _TAG_BYTES <= CHUNK_BYTES_MAX, "zlib's worst case fits"
assert CHUNK_BYTES_MAX <= limits.ARCHIVE_CHUNK_BYTES_MAX


class BadRecoveryKey(ValueError):
    """What was typed is not a recovery key. The message is for people, and never quotes what they typed."""


DamageReason = Literal["not-opened", "too-large", "unreadable", "newer"]


class DamagedChunk(Exception):
    """A chunk that is not what was sealed for this place: `not-opened` (another key, or changed since), `too-large`,
    `unreadable` (opened, and no manifest or rows), `newer` (made by a later version of this)."""

    def __init__(self, reason: DamageReason) -> None:
        super().__init__(reason)
        self.reason: DamageReason = reason


# --- the recovery key -------------------------------------------------------------------------------------------------


def new_recovery_key() -> str:
    """A new recovery key as it is shown: 140 random bits and 20 that check them, in 8 groups of 4."""
    secret = (secrets.randbits(_KEY_BITS) << 4).to_bytes(SECRET_BYTES, "big")
    return recovery_key_text(secret)


def recovery_key_text(secret: bytes) -> str:
    """How the recovery key with this secret is written."""
    bits = int.from_bytes(secret, "big") >> 4
    return to_code((bits << _CHECK_BITS | _check_bits(secret)).to_bytes((_KEY_BITS + _CHECK_BITS) // 8, "big"))


def parse_recovery_key(text: str) -> bytes:
    """The secret, 18 bytes, of a recovery key as a person typed it: case, spaces and dashes do not matter, nor O for 0, or I
    and L for 1. Raises BadRecoveryKey."""
    try:
        symbols = symbols_of(text)
    except ValueError:
        raise BadRecoveryKey("a recovery key has only digits and letters, and no letter U") from None
    if len(symbols) != _KEY_SYMBOLS:
        wrong = "too short" if len(symbols) < _KEY_SYMBOLS else "too long"
        raise BadRecoveryKey(f"{wrong}: a recovery key has 8 groups of 4, and this has {len(symbols)} characters of 32")
    bits = int.from_bytes(from_code(symbols, _KEY_SYMBOLS * 5 // 8), "big")
    secret = (bits >> _CHECK_BITS << 4).to_bytes(SECRET_BYTES, "big")
    check = bits & ((1 << _CHECK_BITS) - 1)
    if not hmac.compare_digest(check.to_bytes(3, "big"), _check_bits(secret).to_bytes(3, "big")):
        raise BadRecoveryKey("a character is wrong, or two are swapped: compare it with what was written down")
    return secret


def _check_bits(secret: bytes) -> int:
    return int.from_bytes(hashlib.sha256(secret).digest()[:3], "big") >> 4


def backup_key(user_id: str, secret: bytes) -> bytes:
    """The key, 32 bytes, under which this user's backup is sealed. Raises ValueError for an id or a secret that is none."""
    if len(secret) != SECRET_BYTES:
        raise ValueError("not the secret of a recovery key")
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=id_bytes(user_id), info=_BACKUP).derive(secret)


# --- chunks -----------------------------------------------------------------------------------------------------------


def seal_chunk(key: bytes, user_id: str, archive_id: str, number: int, plain: bytes) -> bytes:
    """`plain` sealed as chunk `number` of this archive.

    Raises ValueError if that is more than a chunk may have; `PLAIN_BYTES` or less always fit.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    data = _about(user_id, archive_id, number)
    sealed = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(zlib.compress(plain), data, nonce, key)
    if len(plain) > PLAIN_BYTES_MAX or len(nonce) + len(sealed) > CHUNK_BYTES_MAX:
        raise ValueError("too large for one chunk")
    return nonce + sealed


def open_chunk(key: bytes, user_id: str, archive_id: str, number: int, chunk: bytes) -> bytes:
    """What was sealed as chunk `number` of this archive. Raises DamagedChunk."""
    if len(chunk) > CHUNK_BYTES_MAX:
        raise DamagedChunk("too-large")
    nonce, sealed = chunk[:_NONCE_BYTES], chunk[_NONCE_BYTES:]
    if len(sealed) < _TAG_BYTES:
        raise DamagedChunk("not-opened")
    data = _about(user_id, archive_id, number)
    try:
        packed = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, data, nonce, key)
    except nacl.exceptions.CryptoError:
        raise DamagedChunk("not-opened") from None
    return _inflated(packed)


def _inflated(packed: bytes) -> bytes:
    """What zlib packed, which may say that it is thousands of times as large."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(packed, PLAIN_BYTES_MAX + 1)
    except zlib.error:
        raise DamagedChunk("unreadable") from None
    if len(plain) > PLAIN_BYTES_MAX:
        raise DamagedChunk("too-large")
    if not inflater.eof or inflater.unused_data:
        raise DamagedChunk("unreadable")
    return plain


def chained(digest: bytes, chunk_hash: bytes) -> bytes:
    """The running hash over the chunks of an archive, with one more of which this is the SHA-256."""
    return hashlib.sha256(digest + chunk_hash).digest()


def chunk_hash(chunk: bytes) -> bytes:
    """The SHA-256 of a sealed chunk."""
    return hashlib.sha256(chunk).digest()


def _about(user_id: str, archive_id: str, number: int) -> bytes:
    return _ARCHIVE + id_bytes(user_id) + id_bytes(archive_id) + number.to_bytes(8, "big")


# --- rows of the history ----------------------------------------------------------------------------------------------

_Word = Annotated[str, Meta(max_length=64)]
_Millis = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class Row(msgspec.Struct, rename="camel", kw_only=True, frozen=True, omit_defaults=True):
    """A letter of the history as it is in an archive: `Kept` by names, without whom it was for, as only the device that sent
    it can send it again. Unknown keys are ignored."""

    conversation_id: Id
    era: _Millis = 0
    sequence: Sequence
    message_id: Id
    sender_id: Id
    sender_device_id: _Word
    created_at: _Millis
    kind: _Word
    letter: Annotated[str, Meta(max_length=PLAIN_BYTES_MAX)] = ""
    count: _Millis = 0
    temp_id: Annotated[str, Meta(max_length=limits.TEMP_ID_CHARS_MAX)] = ""
    edited_at: _Millis = 0
    deleted_at: _Millis = 0
    expires_at: _Millis = 0
    trouble: _Word = ""
    reactions: tuple[tuple[Id, Emoji], ...] = ()

    @classmethod
    def of(cls, kept: Kept) -> "Row":
        """The row of a letter that is kept."""
        fields = {name: getattr(kept, name) for name in cls.__struct_fields__}
        return cls(**{**fields, "letter": kept.letter.decode()})

    def kept(self) -> Kept:
        """The letter as a device keeps it that was not there when it was sent."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return Kept(**{**fields, "letter": self.letter.encode()})


def pack_rows(rows: Iterable[Row]) -> Iterator[tuple[bytes, int]]:
    """The rows as JSON lines for one chunk after another, each with how many rows are in it. A row that is larger than
    `PLAIN_BYTES` has a chunk to itself."""
    lines: list[bytes] = []
    size = 0
    for row in rows:
        line = msgspec.json.encode(row) + b"\n"
        if lines and size + len(line) > PLAIN_BYTES:
            yield b"".join(lines), len(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield b"".join(lines), len(lines)


def unpack_rows(plain: bytes) -> list[Row]:
    """The rows of a chunk that was opened. Raises DamagedChunk."""
    try:
        return msgspec.json.Decoder(Row).decode_lines(plain)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DamagedChunk("unreadable") from None


# --- the manifest -----------------------------------------------------------------------------------------------------


class Verified(msgspec.Struct, rename="camel", kw_only=True, frozen=True):
    """A user whose account key (32 bytes in base64url) a person compared, and when."""

    user_id: Id
    account_key: Annotated[str, Meta(min_length=43, max_length=43)]
    verified_at: _Millis


class _Versioned(msgspec.Struct):
    version: int


class Manifest(msgspec.Struct, rename="camel", kw_only=True, frozen=True):
    """Who made an archive and when, and that the chunks behind this one, up to `chunks`, hold the history, which is complete
    up to `cursors`, a number for each conversation. `eras` says by which number the rows name each epoch. `account_key` is
    the private one, in base64url; empty in a transfer, since the letter brings it. `digest` ties the chunks to it: the running
    hash over them, in base64url. Unknown keys are ignored."""

    version: Annotated[int, Meta(ge=1)] = VERSION
    user_id: Id
    device_id: Id
    account_key: Annotated[str, Meta(max_length=43)] = ""
    chunks: Annotated[int, Meta(ge=0, le=limits.ARCHIVE_CHUNKS_MAX)]
    digest: Annotated[str, Meta(min_length=43, max_length=43)]
    cursors: dict[Id, Sequence] = {}
    eras: dict[Annotated[str, Meta(min_length=1, max_length=64)], _Millis] = {}
    verified: tuple[Verified, ...] = ()
    made_at: _Millis

    def __repr__(self) -> str:
        return f"Manifest(chunks={self.chunks}, made_at={self.made_at})"  # and never the account key

    @property
    def account_seed(self) -> bytes:
        """The private account key, empty if there is none in it."""
        return from_base64url(self.account_key)

    def is_of(self, chunks: int, digest: bytes) -> bool:
        """Whether it is that of so many chunks, and of exactly these."""
        return chunks == self.chunks and hmac.compare_digest(digest, from_base64url(self.digest))


def encode_manifest(manifest: Manifest) -> bytes:
    """What is sealed as the manifest."""
    return msgspec.json.encode(manifest)


def decode_manifest(plain: bytes) -> Manifest:
    """The manifest in a chunk that was opened. Raises DamagedChunk."""
    try:
        if msgspec.json.decode(plain, type=_Versioned).version > VERSION:
            raise DamagedChunk("newer")
        manifest = msgspec.json.decode(plain, type=Manifest)
        for key in (manifest.account_key, manifest.digest, *(user.account_key for user in manifest.verified)):
            if key:
                from_base64url(key, KEY_BYTES)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise DamagedChunk("unreadable") from None
    return manifest
