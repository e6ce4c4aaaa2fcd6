"""Whatever comes from others, at every decoder of the encryption: it is read, or refused as its document says, and what a
device keeps stays as it was. Bytes are made up, or are right ones that were damaged; some of them are signed or sealed all
the same, by somebody who may do so and means harm. What hangs is told by the time limit of the run.
"""

import io
import json
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from nacl.signing import SigningKey

from gearlink.sdk.e2ee import (
    agreement,
    attachments,
    certificates,
    encoding,
    letters,
    recovery,
    rosters,
    safety,
    sender_keys,
    sessions,
)
from gearlink.sdk.e2ee.agreement import BadBundle
from gearlink.sdk.e2ee.letters import Duplicate, Reason, Undecryptable
from gearlink.sdk.e2ee.recovery import BadRecoveryKey, DamagedChunk
from gearlink.sdk.e2ee.rosters import BadStatement
from gearlink.sdk.e2ee.sessions import Envelope
from gearlink.views import DeviceBundle
from tests.memory_vault import MemoryTx, MemoryVault
from tests.phones import Phone, identifier
from tests.test_e2ee_letters import FORMS
from tests.test_e2ee_rosters import ANNA, BERT, CLEO, DORA, GROUP, group, out, put

KEY = bytes(range(32))
USER, ARCHIVE = identifier(1), identifier(2)

# --- what comes -------------------------------------------------------------------------------------------------------

EXTREMES = [
    bytes(4),
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    bytes(32),
    b"\xff" * 32,
    b"\x01" + bytes(31),
]
ODD_TEXTS = [
    "",
    "\ud800",
    "\x00",
    "a\n",
    "🦊" * 50,
    "x" * 20_000,
    "A" * 43,
    "-" * 86,
    "__proto__",
    "1e999",
    "=",
    "😀\ud83d",
]
ODD_NUMBERS = [0, -1, 1, 2**31, 2**32 - 1, 2**53, 2**64, 10**400, -0.0, 1.5, 1e308, float("inf"), float("nan")]
ODD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([*ODD_TEXTS, *ODD_NUMBERS])
    | st.text(max_size=50)
    | st.recursive(
        st.just([]), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    )
)


@st.composite
def damaged(draw: st.DrawFn, valid: Sequence[bytes]) -> bytes:
    """Bytes that were right, with up to four damages; or any."""
    data = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.sampled_from([0, 1, 2, 4, 16, 32, 1000])))
        match draw(st.integers(0, 6)):
            case 0 if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del data[at:]
            case 2:
                del data[at:end]
            case 3:
                data[at:end] = draw(st.binary(max_size=40))
            case 4:
                data[at:at] = data[at:end]
            case 5:
                data[at:] = draw(st.sampled_from(valid))[at:]
            case _:
                extreme = draw(st.sampled_from(EXTREMES))
                data[at : at + len(extreme)] = extreme
    return bytes(data)


def bytes_like(valid: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    return damaged(valid) | st.binary(max_size=400)


@st.composite
def bent(draw: st.DrawFn, forms: Sequence[Any]) -> Any:
    """JSON that was right, with up to three odd things in it."""
    form = json.loads(json.dumps(draw(st.sampled_from(forms))))
    for _ in range(draw(st.integers(0, 3))):
        inner = form
        while True:
            keys: list[Any] = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inner[key], dict | list) and draw(st.booleans()):
                inner = inner[key]
                continue
            match draw(st.integers(0, 3)):
                case 0:
                    del inner[key]
                case 1 if isinstance(inner, dict):
                    inner[draw(st.sampled_from(["later", "type", "count", "certificate", "\ud800"]))] = draw(ODD)
                case 2 if isinstance(inner, list):
                    inner.extend([inner[key]] * draw(st.sampled_from([1, 20, 1200])))
                case _:
                    inner[key] = draw(ODD)
            break
    return form


def texts_like(valid: Sequence[str]) -> st.SearchStrategy[str]:
    by_bytes = damaged([text.encode() for text in valid]).map(lambda raw: raw.decode(errors="surrogateescape"))
    return by_bytes | st.text(max_size=200)


# --- what may come of it ----------------------------------------------------------------------------------------------


def read(decode: Callable[[], Any], *reasons: Reason) -> Any:
    """What was read, or None if it is refused for one of these reasons, and says nothing else."""
    try:
        return decode()
    except Undecryptable as trouble:
        assert trouble.reason in reasons and trouble.args == (trouble.reason,)
    except Duplicate as trouble:
        assert trouble.args == ()
    return None


def within(vault: MemoryVault, act: Callable[[MemoryTx], Any]) -> Any:
    """Runs it in a transaction; if it is refused it wrote nothing, not even something that is then taken back."""

    def change(tx: MemoryTx) -> Any:
        try:
            return act(tx)
        except Exception:
            assert tx.changes == {}
            raise

    return vault.do(change)


# --- letters ----------------------------------------------------------------------------------------------------------

PLAINTEXTS = [letters.pad(json.dumps(form).encode()) for form in FORMS.values()]


def assert_letter_or_nothing(plaintext: bytes) -> None:
    found = read(lambda: letters.decode(plaintext), "unreadable-letter")
    if found is not None and not isinstance(found, letters.UnknownLetter):
        assert letters.decode(letters.encode(found)) == found
        assert found.conversation_id in repr(json.loads(letters.unpad(plaintext)))


@given(bytes_like(PLAINTEXTS))
def test_a_plaintext_is_a_letter_or_unreadable(plaintext: bytes) -> None:
    assert_letter_or_nothing(plaintext)
    assert_letter_or_nothing(letters.pad(plaintext.rstrip(b"\x00")[:-1]))


@given(bent(list(FORMS.values())), st.booleans())
def test_an_odd_letter_is_one_or_unreadable(form: Any, ascii_only: bool) -> None:
    text = json.dumps(form, ensure_ascii=ascii_only)
    read(lambda: letters.from_json(text), "unreadable-letter")
    assert_letter_or_nothing(letters.pad(text.encode(errors="surrogatepass")))


# --- sender keys ------------------------------------------------------------------------------------------------------


@cache
def said() -> tuple[Any, Any, tuple[bytes, ...]]:
    """A key as its owner has it and as somebody has it who read the third message, and five messages."""
    own = sender_keys.make(GROUP, 0, "epoch")
    record = sender_keys.from_distribution(sender_keys.distribution(own), GROUP, USER, ARCHIVE, 0, None)
    bodies = []
    for number in range(5):
        own, body = sender_keys.seal(own, USER, ARCHIVE, b"letter %d" % number)
        bodies.append(body)
    return own, sender_keys.open_body(record, bodies[2])[0], tuple(bodies)


@given(st.data(), st.booleans())
def test_a_group_message_is_opened_whole_or_not_at_all(data: st.DataObject, is_signed: bool) -> None:
    """Signed by its owner, or as it came."""
    own, record, bodies = said()
    body, before = data.draw(bytes_like(bodies)), msgspec.msgpack.encode(record)
    if is_signed:
        head = b"GearLink sender key v1" + own.key_id + b"".join(map(encoding.id_bytes, (GROUP, USER, ARCHIVE)))
        body = body[:-64] + SigningKey(own.signing_seed).sign(head + body[:-64]).signature
    opened = read(lambda: sender_keys.open_body(record, body), "bad-signature", "bad-message")
    assert opened is None or opened[1] == b"letter %d" % bodies.index(body)
    assert msgspec.msgpack.encode(record) == before


KEYS = st.sampled_from(EXTREMES[4:]) | st.binary(min_size=32, max_size=32)


@given(
    st.sampled_from([0, 1, 3, 5, 2002, 2004, 2**31, 2**32 - 1]),
    st.none() | KEYS,
    st.none() | KEYS,
    st.sampled_from([GROUP, USER]),
)
def test_a_sender_key_that_was_given_is_sound_or_refused(
    iteration: int, chain_key: bytes | None, signature_key: bytes | None, conversation_id: str
) -> None:
    own, record, bodies = said()
    letter = replace(sender_keys.distribution(own), iteration=iteration, conversation_id=conversation_id)
    if chain_key is not None:
        letter = replace(letter, chain_key=encoding.to_base64url(chain_key))
    if signature_key is not None:
        letter = replace(letter, signature_key=encoding.to_base64url(signature_key))
    assert letters.decode(letters.encode(letter)) == letter
    for known in (None, record):
        args = (letter, GROUP, USER, ARCHIVE, 5, known)
        taken = read(
            lambda args=args: sender_keys.from_distribution(*args), "misdirected", "bad-signature", "bad-message"
        )
        if taken is not None:
            assert taken.signature_key == record.signature_key or known is None
            read(lambda key=taken: sender_keys.open_body(key, bodies[4]), "bad-signature", "bad-message")


# --- sessions ---------------------------------------------------------------------------------------------------------


@cache
def spoken() -> tuple[Phone, Phone, dict[Envelope, bytes]]:
    """Bob has read some of what Ann said on two sessions, and none of these, with what is in them."""
    ann, bob = Phone(1), Phone(2, one_time=2)
    found = {}

    def say(text: bytes) -> Envelope:
        envelope = ann.seal(bob, text)
        found[envelope] = text
        return envelope

    for turn in range(3):  # the last one with a last-resort pre-key
        ann.begin(bob)
        say(b"waits %d" % turn)
        bob.open(ann, say(b"read %d" % turn))
    ann.open(bob, bob.seal(ann, b"answer"))
    say(b"later")
    bob.open(ann, say(b"later still"))
    ann.begin(bob)
    say(b"of a session that is not here")
    return ann, bob, found


@given(st.data())
def test_an_envelope_is_opened_whole_or_not_at_all(data: st.DataObject) -> None:
    ann, bob, found = spoken()
    kind = data.draw(st.sampled_from(["message", "prekey"]))
    envelope = Envelope(kind, data.draw(bytes_like([each.body for each in found])))
    vault, reasons = bob.vault.copy(), get_args(Reason)
    before = vault.everything()
    opened = read(lambda: within(vault, lambda tx: open_it(tx, ann, bob, envelope)), *reasons)
    if opened is not None:
        assert {sealed_part(each): text for each, text in found.items()}[sealed_part(envelope)] == opened
        assert vault.everything() != before
        return
    assert vault.everything() == before
    claimed = read(lambda: sessions.identity_in(envelope), "unknown-device", "bad-message")
    assert claimed is None or len(claimed) == 32


def sealed_part(envelope: Envelope) -> bytes:
    """All but the ids of pre-keys: of a session that is here already nobody looks at them."""
    return envelope.body if envelope.type == "message" else envelope.body[:65] + envelope.body[74:]


def open_it(tx: MemoryTx, ann: Phone, bob: Phone, envelope: Envelope) -> bytes:
    return sessions.open_envelope(tx, bob.own, ann.user_id, ann.device_id, ann.identity_key, envelope, 0)


HEADERS = st.tuples(st.sampled_from(range(3)), st.sampled_from([0, 1, 999, 1000, 1001, 2**31, 2**32 - 1]))


@given(st.data(), st.sampled_from(EXTREMES[4:]) | st.binary(min_size=32, max_size=32) | st.none(), HEADERS)
def test_no_numbers_and_no_ratchet_key_of_an_envelope_do_harm(
    data: st.DataObject, ratchet_key: bytes | None, header: tuple[int, int]
) -> None:
    ann, bob, found = spoken()
    envelope = data.draw(st.sampled_from(list(found)))
    at = 1 if envelope.type == "message" else 74
    body, (where, number) = bytearray(envelope.body), header
    if ratchet_key is not None:
        body[at : at + 32] = ratchet_key
    if where:
        body[at + 28 + 4 * where : at + 32 + 4 * where] = number.to_bytes(4, "big")
    vault, forged = bob.vault.copy(), Envelope(envelope.type, bytes(body))
    opened = read(lambda: within(vault, lambda tx: open_it(tx, ann, bob, forged)), *get_args(Reason))
    assert opened in (None, found[envelope]) and (opened is None or forged == envelope)


@cache
def shown() -> tuple[Phone, dict[str, Any], dict[str, Any]]:
    """A bundle with a one-time pre-key, and one with the last-resort pre-key."""
    bob = Phone(3, account_seed=KEY, one_time=1)
    one, other = (json.loads(msgspec.json.encode(bob.bundle())) for _ in range(2))
    return bob, one, other


@given(st.data(), st.booleans())
def test_a_bundle_is_sound_or_begins_nothing(data: st.DataObject, is_pinned: bool) -> None:
    bob, *bundles = shown()
    form = data.draw(bent(bundles))
    try:
        view = msgspec.json.decode(json.dumps(form), type=DeviceBundle)
    except msgspec.DecodeError:
        return  # the door of the client says so
    pin, ann = bob.account_key if is_pinned else b"", Phone(4)
    try:
        within(ann.vault, lambda tx: ann.cipher.begin(tx, bob.user_id, view, pin, 0))
    except BadBundle as trouble:
        assert trouble.args == (trouble.reason,)
    else:
        assert view.identity_key == bob.form.identity_key and (view.device_id == bob.device_id or not is_pinned)


# --- rosters and certificates -----------------------------------------------------------------------------------------


@cache
def stated() -> tuple[Any, str, bytes]:
    state = group().state
    text, signature = rosters.make_statement(
        state, GROUP, "2026-01-31T12:00:00.000Z", ANNA, [put(BERT), put(DORA), out(CLEO)]
    )
    return state, text, signature


def follow(text: str, signature: bytes) -> Any:
    state, _text, _signature = stated()
    before = msgspec.msgpack.encode(state)
    try:
        after = rosters.follow(state, GROUP, ANNA.user_id, text, signature)
    except BadStatement as trouble:
        assert trouble.args == (trouble.reason,)
        after = None
    assert msgspec.msgpack.encode(state) == before
    return after


@given(st.data())
def test_a_statement_that_was_not_signed_is_not_followed(data: st.DataObject) -> None:
    _state, text, signature = stated()
    said = data.draw(texts_like([text])), data.draw(bytes_like([signature]))
    assert follow(*said) is None or said == (text, signature)
    assert follow(said[0], signature) is None or said[0] == text


@given(st.data())
def test_an_odd_statement_of_an_owner_is_followed_or_refused(data: st.DataObject) -> None:
    state, text, _signature = stated()
    odd = json.dumps(data.draw(bent([json.loads(text)])))
    after = follow(odd, certificates.sign(ANNA.identity_seed, b"GearLink roster v1" + odd.encode()))
    assert after is None or (after.version == state.version + 1 and len(after.hash) == 32)


@given(st.binary(max_size=80), bytes_like([ANNA.certificate]), st.text(max_size=40), st.text(max_size=300))
def test_no_bytes_are_a_certificate_or_a_linking_code_by_chance(key: bytes, sign: bytes, word: str, code: str) -> None:
    account, identity = (certificates.account_public(seed) for seed in (ANNA.account_seed, ANNA.identity_seed))
    for user_id, device_id in ((ANNA.user_id, ANNA.device_id), (word, ANNA.device_id), (ANNA.user_id, word)):
        holds = certificates.verify_certificate(account, user_id, device_id, identity, sign)
        assert holds == (sign == ANNA.certificate and (user_id, device_id) == (ANNA.user_id, ANNA.device_id))
        assert not certificates.verify_certificate(key, user_id, device_id, identity, sign)
        assert not certificates.verify_certificate(account, user_id, device_id, key, sign)
        assert not certificates.matches_code(code, user_id, device_id, identity)
    assert agreement.is_pre_key(key) in (True, False)


# --- archives ---------------------------------------------------------------------------------------------------------

ROW = {
    **{
        "conversationId": GROUP,
        "era": 1,
        "sequence": 7,
        "messageId": USER,
        "senderId": USER,
        "senderDeviceId": ARCHIVE,
    },
    **{"createdAt": 5, "kind": "text", "letter": json.dumps(FORMS["message"]), "reactions": [[USER, "👍"]]},
}
MANIFEST = {
    **{"version": 1, "userId": USER, "deviceId": ARCHIVE, "accountKey": "A" * 43, "chunks": 3, "digest": "A" * 43},
    **{"cursors": {GROUP: 7}},
    **{"verified": [{"userId": USER, "accountKey": "A" * 43, "verifiedAt": 1}], "madeAt": 9},
}
PLAIN = [(json.dumps(ROW) + "\n").encode() * 2, json.dumps(MANIFEST).encode()]
CHUNKS = [recovery.seal_chunk(KEY, USER, ARCHIVE, number, plain) for number, plain in enumerate(PLAIN)]


def chunk_read(decode: Callable[[], Any]) -> Any:
    try:
        return decode()
    except DamagedChunk as trouble:
        assert trouble.args == (trouble.reason,)
        return None


@given(bytes_like(CHUNKS), st.integers(0, 2))
def test_a_chunk_is_opened_whole_or_not_at_all(chunk: bytes, number: int) -> None:
    opened = chunk_read(lambda: recovery.open_chunk(KEY, USER, ARCHIVE, number, chunk))
    assert opened is None or (chunk == CHUNKS[number] and opened == PLAIN[number])


@given(bytes_like([zlib.compress(plain) for plain in PLAIN]))
def test_whatever_was_packed_into_a_chunk_is_unpacked_or_refused(packed: bytes) -> None:
    assert len(chunk_read(lambda: recovery._inflated(packed)) or b"") <= recovery.PLAIN_BYTES_MAX


@given(bytes_like(PLAIN) | bent([ROW, MANIFEST]).map(lambda form: json.dumps(form).encode()))
def test_whatever_was_sealed_is_a_manifest_or_rows_or_neither(plain: bytes) -> None:
    for row in chunk_read(lambda: recovery.unpack_rows(plain)) or ():
        assert recovery.Row.of(row.kept()) == row
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(row.kept()), type=type(row.kept())) == row.kept()
    manifest = chunk_read(lambda: recovery.decode_manifest(plain))
    assert manifest is None or len(manifest.account_seed) in (0, 32)


@given(texts_like([recovery.recovery_key_text(bytes(18)), recovery.new_recovery_key()]))
def test_what_is_typed_is_a_recovery_key_or_is_said_to_be_none(typed: str) -> None:
    try:
        assert len(recovery.parse_recovery_key(typed)) == recovery.SECRET_BYTES
    except BadRecoveryKey as trouble:
        assert len(typed) < 8 or typed not in str(trouble)


# --- files ------------------------------------------------------------------------------------------------------------


@cache
def files() -> list[tuple[attachments.Sealed, bytes, bytes]]:
    found = []
    for size in (0, 100, attachments.CHUNK_BYTES + 7):
        plain, target = bytes(range(256)) * (size // 256) + bytes(size % 256), io.BytesIO()
        found.append((attachments.seal_file(io.BytesIO(plain), target), target.getvalue(), plain))
    return found


@given(st.data())
def test_a_file_is_opened_whole_or_not_at_all(data: st.DataObject) -> None:
    made, file, plain = data.draw(st.sampled_from(files()))
    given_file = data.draw(bytes_like([file]))
    size = data.draw(st.just(made.size) | st.sampled_from([0, 1, attachments.CHUNK_BYTES, 2**40]))
    target = io.BytesIO()
    try:
        attachments.open_file(io.BytesIO(given_file), target, made.key, made.sha256, size)
    except attachments.DamagedFile as trouble:
        assert trouble.args == (trouble.reason,) and (given_file, size) != (file, made.size)
    else:
        assert (given_file, target.getvalue()) == (file, plain)


@given(st.data(), st.integers(0, 2**64 - 1), st.booleans())
def test_a_chunk_of_a_file_is_opened_in_its_place_or_not_at_all(
    data: st.DataObject, number: int, is_last: bool
) -> None:
    made, file, plain = files()[1]
    chunk = data.draw(bytes_like([file]))
    for place in (number, 0):
        try:
            assert attachments.open_chunk(made.key, place, is_last, chunk) == plain
        except attachments.DamagedFile as trouble:
            assert trouble.reason == "bad-chunk"
        else:
            assert (place, is_last, chunk) == (0, True, file)


# --- codes that are scanned -------------------------------------------------------------------------------------------

QR = safety.qr_text(USER, KEY, ARCHIVE, KEY)


@given(texts_like([QR, safety.qr_text(ARCHIVE, KEY, USER, KEY), "GEARLINK:1:"]))
def test_a_scanned_code_is_compared_and_never_believed_by_chance(text: str) -> None:
    answer = safety.check_qr(text, ARCHIVE, KEY, USER, KEY)
    assert answer in get_args(safety.Comparison)
    assert (answer == "match") == (text.strip() == QR)


@given(texts_like([encoding.to_base64url(KEY)]), st.none() | st.integers(0, 40))
def test_base64url_is_read_in_its_one_form_or_refused(text: str, size: int | None) -> None:
    try:
        raw = encoding.from_base64url(text, size)
    except ValueError as trouble:
        assert len(text) < 8 or text not in str(trouble)
    else:
        assert encoding.to_base64url(raw) == text and size in (None, len(raw))


def test_an_error_of_any_decoder_holds_nothing_of_what_it_was_given() -> None:
    secret = "hunter2"
    form = {**FORMS["message"], "kind": secret}
    with pytest.raises(Undecryptable) as unread:
        letters.decode(letters.pad(json.dumps(form).encode()))
    with pytest.raises(DamagedChunk) as unopened:
        recovery.decode_manifest(json.dumps({**MANIFEST, "accountKey": secret}).encode())
    with pytest.raises(BadStatement) as unfollowed:
        rosters.follow(None, GROUP, ANNA.user_id, secret, b"")
    for caught in (unread, unopened, unfollowed):
        assert secret not in "".join(map(repr, (caught.value, caught.value.__cause__)))
