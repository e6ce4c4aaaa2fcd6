"""Sessions with other devices (Double Ratchet, several for each device as in Sesame), and the envelopes that they make.

One session is sent on, the one on which something was opened last; the others still open what comes late. Nothing is
written before an envelope was opened whole, so a forged one changes nothing, and a caller may go on after an error. The
ratchet is the doubleratchet library's. What is kept beside its state is what it cannot say: whether a message of an
earlier chain was opened already, or its key was dropped unused. Who a device belongs to is said by the caller.
"""

import hmac
import json
import struct
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Final, Literal

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from doubleratchet import DoubleRatchet, EncryptedMessage, Header
from doubleratchet.aead import AuthenticationFailedException, DecryptionFailedException
from doubleratchet.diffie_hellman_ratchet import DoSProtectionException, DuplicateMessageException
from doubleratchet.migrations import parse_double_ratchet_model
from doubleratchet.models import DoubleRatchetModel, SkippedMessageKeyModel
from doubleratchet.recommended import aead_aes_hmac, diffie_hellman_ratchet_curve25519, kdf_hkdf, kdf_separate_hmacs
from doubleratchet.recommended.crypto_provider import HashFunction
from msgspec.structs import replace

from gearlink.sdk.e2ee import agreement
from gearlink.sdk.e2ee.agreement import KEY_BYTES, USED_KEPT_MAX, Bundle, run_now
from gearlink.sdk.e2ee.letters import Duplicate, Undecryptable
from gearlink.sdk.e2ee.records import Own, PreKey, Session
from gearlink.sdk.e2ee.store import Tx

SESSIONS_MAX: Final = 5
SKIP_MAX: Final = 1000
SKIPPED_KEPT_MAX: Final = 2000
CHAINS_KEPT_MAX: Final = 64
TAG_BYTES: Final = 32

_VERSION: Final = 1
_HEAD: Final = struct.Struct(f">{KEY_BYTES}sII")  # ratchet key, previous chain length, number
_OPENING: Final = struct.Struct(f">{KEY_BYTES}s{KEY_BYTES}sIBI")  # IK_A, EK_A, signed pre-key, kind, the other pre-key
_KINDS: Final[dict[int, Literal["one-time", "last-resort"]]] = {1: "one-time", 2: "last-resort"}
_KIND_BYTES: Final = {use: kind for kind, use in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What one device gets. `prekey` also says how the session begins."""

    type: Literal["message", "prekey"]
    body: bytes


# --- the ratchet as the spec has it ----------------------------------------------------------------------------------


class _RootChain(kdf_hkdf.KDF):
    @staticmethod
    def _get_hash_function() -> HashFunction:
        return HashFunction.SHA_256

    @staticmethod
    def _get_info() -> bytes:
        return b"GearLink root chain"


class _MessageChain(kdf_separate_hmacs.KDF):
    @staticmethod
    def _get_hash_function() -> HashFunction:
        return HashFunction.SHA_256


class _Aead(aead_aes_hmac.AEAD):
    @staticmethod
    def _get_hash_function() -> HashFunction:
        return HashFunction.SHA_256

    @staticmethod
    def _get_info() -> bytes:
        return b"GearLink message"

    @classmethod
    async def decrypt(cls, ciphertext: bytes, key: bytes, associated_data: bytes) -> bytes:
        # The library compares tags with `!=`. It sees only those that were found right here, in constant time.
        keys = HKDF(SHA256(), 80, bytes(32), cls._get_info()).derive(key)
        tag = hmac.digest(keys[32:64], associated_data + ciphertext[:-TAG_BYTES], "sha256")
        if not hmac.compare_digest(tag, ciphertext[-TAG_BYTES:]):
            raise AuthenticationFailedException
        plaintext: bytes = await super().decrypt(ciphertext, key, associated_data)
        return plaintext


class _Sealing(DoubleRatchet):
    """The ratchet says with which header it encrypts."""

    @staticmethod
    def _build_associated_data(associated_data: bytes, header: Header) -> bytes:
        return associated_data + _HEAD.pack(*header)


class _Opening(DoubleRatchet):
    """Who opens has the header that came, and gives it behind the associated data."""

    @staticmethod
    def _build_associated_data(associated_data: bytes, header: Header) -> bytes:
        return associated_data


_X25519: Final = diffie_hellman_ratchet_curve25519.DiffieHellmanRatchet
_CHAINS: Final[dict[str, Any]] = {
    "root_chain_kdf": _RootChain,
    "message_chain_kdf": _MessageChain,
    "message_chain_constant": b"\x02\x01",  # the library takes the next chain key first, then the message key
    "dos_protection_threshold": SKIP_MAX,
}
_RATCHET: Final[dict[str, Any]] = {
    **_CHAINS,
    "diffie_hellman_ratchet_class": _X25519,
    "max_num_skipped_message_keys": SKIPPED_KEPT_MAX,
    "aead": _Aead,
}
_TROUBLE: Final = (
    AuthenticationFailedException,
    DecryptionFailedException,
    DoSProtectionException,
    DuplicateMessageException,
    ValueError,  # a ratchet key of small order
)


def _state(model: DoubleRatchetModel) -> bytes:
    """The ratchet without the keys that were skipped. They are kept beside it: in it every message would cost what all of
    them cost to read and to write, for ever after a long absence."""
    return model.model_copy(update={"skipped_message_keys": []}).model_dump_json().encode()


def _model(session: Session) -> DoubleRatchetModel:
    return parse_double_ratchet_model(json.loads(session.state))


# --- sending ---------------------------------------------------------------------------------------------------------


def begin(tx: Tx, own: Own, bundle: Bundle, user_id: str, now: int) -> None:
    """Begins a session with a device of this user, on which is sent from now on."""
    agreed = agreement.initiate(own, user_id, bundle)
    ratchet = run_now(_X25519.create(None, bundle.signed_key, root_chain_key=agreed.secret, **_CHAINS))
    opening = _OPENING.pack(
        agreement.identity_of(own), agreed.ephemeral_key, bundle.signed_id, _KIND_BYTES[bundle.use], bundle.other_id
    )
    state = _state(DoubleRatchetModel(diffie_hellman_ratchet=ratchet.model, skipped_message_keys=[]))
    _keep(
        tx,
        Session(
            bundle.device_id, agreed.ephemeral_key, user_id, bundle.identity_key, state, agreed.ad, opening, used_at=now
        ),
    )


def sessions_with(tx: Tx, device_id: str) -> list[Session]:
    """The sessions with a device; what is sent goes on the first."""
    return sorted(tx.scan(Session, device_id), key=lambda session: session.used_at, reverse=True)


def seal(tx: Tx, device_id: str, plaintext: bytes, now: int) -> Envelope:
    """Encrypts for a device. Raises LookupError if there is no session with it."""
    found = sessions_with(tx, device_id)
    if not found:
        raise LookupError("no session with this device")
    session = found[0]
    ratchet = _Sealing.from_model(_model(session), **_RATCHET)
    header, ciphertext = run_now(ratchet.encrypt_message(plaintext, session.ad))
    tx.put(replace(session, state=_state(ratchet.model), used_at=max(session.used_at, now)))
    head = bytes([_VERSION]) + session.opening + _HEAD.pack(*header)
    return Envelope("prekey" if session.opening else "message", head + ciphertext)


def forget(tx: Tx, device_id: str) -> None:
    """Deletes all sessions with a device."""
    for session in tx.scan(Session, device_id):
        tx.delete(Session, device_id, session.session_id)


def _keep(tx: Tx, session: Session) -> None:
    """Writes a session that is sent on from now on, also if the clock went back; the least recently used one too many goes."""
    others = [other for other in sessions_with(tx, session.device_id) if other.session_id != session.session_id]
    newest = max((other.used_at + 1 for other in others), default=0)
    tx.put(replace(session, used_at=max(session.used_at, newest)))
    for other in others[SESSIONS_MAX - 1 :]:
        tx.delete(Session, other.device_id, other.session_id)


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Message:
    """The part of an envelope that the ratchet reads. `head` is the header as it came."""

    head: bytes
    ciphertext: bytes

    @property
    def header(self) -> Header:
        return Header(*_HEAD.unpack(self.head))


def open_envelope(
    tx: Tx, own: Own, user_id: str, device_id: str, identity_key: bytes, envelope: Envelope, now: int
) -> bytes:
    """Decrypts what came from a device with this identity key, on the session that it belongs to or on a new one.

    Raises Undecryptable; Duplicate for what was decrypted before. Then nothing was written.
    """
    opening, message = _parsed(envelope)
    known = [
        session
        for session in sessions_with(tx, device_id)
        if session.user_id == user_id and session.identity_key == identity_key
    ]
    if opening is None:
        if not known:
            raise Undecryptable("no-session")
        return _opened(tx, known, message, now)
    began_with, session_id, signed_id, kind, other_id = _OPENING.unpack(opening)
    if began_with != identity_key:
        raise Undecryptable("unknown-device")
    for session in known:
        if session.session_id == session_id:
            return _opened(tx, [session], message, now)
    use = _KINDS.get(kind)
    if use is None:
        raise Undecryptable("bad-message")
    signed = agreement.pre_key(tx, "signed", signed_id, now)
    other = agreement.pre_key(tx, use, other_id, now)
    if signed is None or other is None or session_id in other.used:
        raise Undecryptable("unknown-pre-key")
    return _begun(tx, own, (user_id, device_id, identity_key), session_id, (signed, other), message, now)


def identity_in(envelope: Envelope) -> bytes:
    """The identity key (IK_A) that a `prekey` envelope says it is from. It is a claim: opening it proves it.

    Raises Undecryptable `unknown-device` for a `message`, which says nothing, and `bad-message` for what is none.
    """
    opening, _message = _parsed(envelope)
    if opening is None:
        raise Undecryptable("unknown-device")
    return opening[:KEY_BYTES]


def _parsed(envelope: Envelope) -> tuple[bytes | None, _Message]:
    body, at = envelope.body, 1
    opening = None
    if envelope.type == "prekey":
        opening, at = body[1 : 1 + _OPENING.size], 1 + _OPENING.size
    head, ciphertext = body[at : at + _HEAD.size], body[at + _HEAD.size :]
    if body[:1] != bytes([_VERSION]) or not ciphertext:
        raise Undecryptable("bad-message")
    return opening, _Message(head, ciphertext)


def _begun(
    tx: Tx,
    own: Own,
    sender: tuple[str, str, bytes],
    session_id: bytes,
    keys: tuple[PreKey, PreKey],
    message: _Message,
    now: int,
) -> bytes:
    """Opens the first message of a session that the sender began. Its one-time pre-key is never used again."""
    user_id, device_id, identity_key = sender
    signed, other = keys
    try:
        agreed = agreement.respond(own, user_id, device_id, identity_key, session_id, signed, other)
        ratchet, plaintext = run_now(
            _Opening.decrypt_initial_message(
                shared_secret=agreed.secret,
                own_ratchet_priv=signed.private_key,
                message=EncryptedMessage(message.header, message.ciphertext),
                associated_data=agreed.ad + message.head,
                **_RATCHET,
            )
        )
    except _TROUBLE:
        ratchet = None
    if ratchet is None:
        raise Undecryptable("bad-message")
    if other.use == "one-time":
        tx.delete(PreKey, other.use, other.key_id)
    else:
        tx.put(replace(other, used=(*other.used, session_id)[-USED_KEPT_MAX:]))
    model = ratchet.model
    session = Session(device_id, session_id, user_id, identity_key, _state(model), agreed.ad, b"", used_at=now)
    _keep(tx, replace(session, skipped=_skipped(model)))
    return plaintext


def _opened(tx: Tx, sessions: list[Session], message: _Message, now: int) -> bytes:
    """Opens a message on the session that knows its ratchet key; a new key can be the next one of any of them."""
    ratchets = []
    for session in sessions:
        ratchet = _Ratchet(session)
        if ratchet.knows(message.header.ratchet_pub):
            ratchets = [ratchet]
            break
        ratchets.append(ratchet)
    for ratchet in ratchets:
        opened = ratchet.open(message)
        if opened is not None:
            changed, plaintext = opened
            _keep(tx, replace(changed, opening=b"", used_at=now))
            return plaintext
    raise Undecryptable("bad-message")


class _Ratchet:
    """A session about to open something, and which message keys it has had."""

    def __init__(self, session: Session) -> None:
        self._session, self._model = session, _model(session)
        ratchet = self._model.diffie_hellman_ratchet
        chain = ratchet.symmetric_key_ratchet.receiving_chain
        self._their_key, self._has_chain = ratchet.other_ratchet_pub, chain is not None
        self._received = chain.length if chain is not None else 0
        self._skipped = {(ratchet_key, number): key for ratchet_key, number, key in session.skipped}
        self._chains = {key: (first, end) for key, first, end in session.chains}

    def knows(self, key: bytes) -> bool:
        """Whether messages of this chain were opened on this session."""
        is_current = self._has_chain and key == self._their_key
        return is_current or key in self._chains or any(key == known for known, _number in self._skipped)

    def open(self, message: _Message) -> tuple[Session, bytes] | None:
        """The session after this message and its plaintext, or None if it does not belong here. Raises Duplicate."""
        key, previous, number = header = message.header
        if (key, number) not in self._skipped and not self._may_come(key, number):
            return None
        if previous - self._received > SKIP_MAX:  # the library would do the same, but also print a warning
            header = header._replace(previous_sending_chain_length=self._received)
        ratchet = _Opening.from_model(self._model_for(key, number), **_RATCHET)
        sealed = EncryptedMessage(header, message.ciphertext)
        try:
            plaintext = run_now(ratchet.decrypt_message(sealed, self._session.ad + message.head))
        except _TROUBLE:
            return None
        model = ratchet.model
        kept = {each: key for each, key in self._skipped.items() if each != (message.header.ratchet_pub, number)}
        kept |= {(ratchet_key, each): key for ratchet_key, each, key in _skipped(model)}
        kept = dict(list(kept.items())[-SKIPPED_KEPT_MAX:])
        chains = tuple((each, *bounds) for each, bounds in self._chains_after(model, header, kept.keys()).items())
        changed = replace(
            self._session,
            state=_state(model),
            chains=chains[-CHAINS_KEPT_MAX:],
            skipped=tuple((*each, key) for each, key in kept.items()),
        )
        return changed, plaintext

    def _model_for(self, key: bytes, number: int) -> DoubleRatchetModel:
        """The ratchet with the one skipped key that this message may need."""
        message_key = self._skipped.get((key, number))
        if message_key is None:
            return self._model
        needed = SkippedMessageKeyModel(ratchet_pub=key, index=number, message_key=message_key)
        return self._model.model_copy(update={"skipped_message_keys": [needed]})

    def _may_come(self, key: bytes, number: int) -> bool:
        """Whether the key of this message can still be made. Raises Duplicate if it was there, and was used."""
        if key == self._their_key:
            first, _end = self._chains.get(key, (0, 0))
            if first <= number < self._received:
                raise Duplicate
            return self._has_chain and number >= self._received
        first, end = self._chains.get(key, (0, 0))
        if first <= number < end:
            raise Duplicate
        return key not in self._chains

    def _chains_after(
        self, model: DoubleRatchetModel, header: Header, kept: Set[tuple[bytes, int]]
    ) -> dict[bytes, tuple[int, int]]:
        chains = dict(self._chains)
        if self._has_chain and model.diffie_hellman_ratchet.other_ratchet_pub != self._their_key:  # that chain is over
            first, _end = chains.get(self._their_key, (0, 0))
            chains[self._their_key] = first, max(self._received, header.previous_sending_chain_length)
        if len(kept) == SKIPPED_KEPT_MAX:  # some may have been dropped
            for key, number in self._skipped.keys() - kept - {(header.ratchet_pub, header.sending_chain_length)}:
                first, end = chains.get(key, (0, 0))
                chains[key] = max(first, number + 1), end
        return chains


def _skipped(model: DoubleRatchetModel) -> tuple[tuple[bytes, int, bytes], ...]:
    return tuple((each.ratchet_pub, each.index, each.message_key) for each in model.skipped_message_keys)
