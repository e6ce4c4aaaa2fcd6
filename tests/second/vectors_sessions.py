"""The vectors of what two devices, and a group, make of their keys: X3DH, Double Ratchet, sender keys."""

from collections.abc import Iterator
from typing import Any

from tests.second import ratchet, sender_keys
from tests.second.agreement import LAST_RESORT, ONE_TIME, Start, associated_data, begin, begin_steps
from tests.second.cast import ANN, BEN, BENS_TABLET, CONVERSATION, CY, OTHER_CONVERSATION, Actor
from tests.second.primitives import (
    Unreadable,
    agreement_public,
    identity_to_agreement_private,
    identity_to_agreement_public,
    sign,
    u32,
)
from tests.second.ratchet import Duplicate, Session

Vector = dict[str, Any]


def party(actor: Actor) -> Vector:
    """A device with its identity in both forms."""
    device = actor.public
    return {
        "userId": device.user_id,
        "deviceId": device.device_id,
        "identitySeed": actor.identity_seed.hex(),
        "identityKey": device.identity_key.hex(),
        "identityX25519Private": identity_to_agreement_private(actor.identity_seed).hex(),
        "identityX25519Public": identity_to_agreement_public(device.identity_key).hex(),
    }


def _agreement(kind: int) -> Vector:
    bundle, ephemeral = BEN.bundle(kind), ANN.private(f"ephemeral {kind}")
    steps = begin_steps(ANN.identity_seed, ephemeral, bundle)
    other: Vector = {
        "keyId": bundle.other_id,
        "private": BEN.other_private(kind).hex(),
        "public": bundle.other_key.hex(),
    }
    if kind == LAST_RESORT:
        other["signature"] = bundle.other_signature.hex()
    return {
        "name": "with a one-time pre-key" if kind == ONE_TIME else "with the last-resort pre-key",
        "a": party(ANN),
        "b": party(BEN),
        "signedPreKey": {
            "keyId": bundle.signed_id,
            "private": BEN.private("signed pre-key").hex(),
            "public": bundle.signed_key.hex(),
            "signature": bundle.signed_signature.hex(),
        },
        "kind": kind,
        "otherPreKey": other,
        "ephemeralPrivate": ephemeral.hex(),
        "ephemeralPublic": agreement_public(ephemeral).hex(),
        **{f"dh{number}": secret.hex() for number, secret in enumerate(steps, start=1)},
        "ad": associated_data(ANN.public, BEN.public, agreement_public(ephemeral)).hex(),
        "sk": begin(ANN.identity_seed, ephemeral, bundle).hex(),
    }


def x3dh() -> Vector:
    """x3dh.json: the shared key and the associated data of two agreements."""
    return {
        "description": (
            "X3DH between a device of A and a device of B. Everything in hex. `badBundles` are the second case with other "
            "values: A begins no session with any. `badEphemeralKeys` are EK_A that B takes in no envelope, although "
            "X25519 gives the secrets of the first case for some."
        ),
        "cases": [_agreement(ONE_TIME), _agreement(LAST_RESORT)],
        "badBundles": _bad_bundles(),
        "badEphemeralKeys": [
            {"why": why, "ephemeralPublic": other_name.hex()} for why, other_name in _bad_ephemerals().items()
        ],
    }


def _bad_bundles() -> list[Vector]:
    bundle = BEN.bundle(LAST_RESORT)
    top_bit = bundle.signed_key[:31] + bytes([bundle.signed_key[31] | 0x80])
    flipped = bundle.signed_signature[:-1] + bytes([bundle.signed_signature[-1] ^ 1])
    wrong: dict[str, dict[str, dict[str, bytes]]] = {
        "a flipped bit in a signature": {"signedPreKey": {"signature": flipped}},
        "the signature of another key": {"otherPreKey": {"signature": bundle.signed_signature}},
        "signed by another device": {"otherPreKey": {"signature": ANN.signature(bundle.other_key)}},
        "signed without 0x05": {"signedPreKey": {"signature": sign(BEN.identity_seed, bundle.signed_key)}},
        "of small order, signed": {"signedPreKey": {"public": bytes(32), "signature": BEN.signature(bytes(32))}},
        "not reduced, signed": {"signedPreKey": {"public": top_bit, "signature": BEN.signature(top_bit)}},
        "an identity key of small order": {"b": {"identityKey": b"\x01" + bytes(31)}},
    }
    return [
        {"why": why, "change": {part: {name: raw.hex() for name, raw in each.items()} for part, each in parts.items()}}
        for why, parts in wrong.items()
    ]


def _bad_ephemerals() -> dict[str, bytes]:
    public = agreement_public(ANN.private(f"ephemeral {ONE_TIME}"))
    return {
        "with the top bit": public[:31] + bytes([public[31] | 0x80]),
        "not reduced": (2**255 - 19 + 9).to_bytes(32, "little"),
        "zero": bytes(32),
        "one": b"\x01" + bytes(31),
        "of order 8": bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    }


class _Talk:
    """Two sessions and a record of what each said, with the intermediate values of every message."""

    def __init__(self) -> None:
        bundle, self.ephemeral = BEN.bundle(), ANN.private(f"ephemeral {ONE_TIME}")
        self.sk = begin(ANN.identity_seed, self.ephemeral, bundle)
        self.ad = associated_data(ANN.public, BEN.public, agreement_public(self.ephemeral))
        self.start = Start(
            ANN.public.identity_key, agreement_public(self.ephemeral), bundle.signed_id, ONE_TIME, bundle.other_id
        )
        self.fresh = {actor.user: self._fresh(actor) for actor in (ANN, BEN)}
        self.used: dict[str, list[str]] = {"ann": [], "ben": []}
        self.ann = Session.begin(self.sk, self.ad, bundle.signed_key, lambda: self._next("ann"))
        self.ben = Session.answer(self.sk, self.ad, BEN.private("signed pre-key"), lambda: self._next("ben"))
        self.said: list[Vector] = []
        self.heard: list[Vector] = []

    @staticmethod
    def _fresh(actor: Actor) -> Iterator[bytes]:
        number = 0
        while True:
            yield actor.private(f"ratchet key {number}")
            number += 1

    def _next(self, name: str) -> bytes:
        private = next(self.fresh[name])
        self.used[name].append(private.hex())
        return private

    def say(self, by: str, plaintext: str) -> int:
        session: Session = getattr(self, by)
        is_unconfirmed = by == "ann" and not session.receiving
        chain_key = session.sending
        message_key, _next_chain_key = ratchet.kdf_ck(chain_key)
        encryption, authentication, iv = ratchet.message_secrets(message_key)
        number, previous = session.sent, session.previous
        message = session.encrypt(plaintext.encode())
        self.said.append(
            {
                "by": by,
                "afterHeard": len(self.heard),
                "plaintext": plaintext,
                "ratchetPrivate": session.own.hex(),
                "ratchetPublic": message[:32].hex(),
                "previousChainLength": previous,
                "number": number,
                "rootKey": session.root_key.hex(),
                "chainKey": chain_key.hex(),
                "messageKey": message_key.hex(),
                "encryptionKey": encryption.hex(),
                "authenticationKey": authentication.hex(),
                "iv": iv.hex(),
                "type": "prekey" if is_unconfirmed else "message",
                "body": (self.start.envelope(message) if is_unconfirmed else b"\x01" + message).hex(),
            }
        )
        return len(self.said) - 1

    def hear(self, number: int, change: str = "") -> None:
        """The other side reads what was said, perhaps with a change to it: XORed over the end, or another header."""
        said = self.said[number]
        reader = "ben" if said["by"] == "ann" else "ann"
        body = bytes.fromhex(said["body"])
        prefix, message = (74, body[74:]) if said["type"] == "prekey" else (1, body[1:])
        if change == "last bit":
            message = message[:-1] + bytes([message[-1] ^ 1])
        elif change == "number":
            message = message[:36] + u32(said["number"] + 1_001 + 1_000) + message[40:]
        entry: Vector = {"by": reader, "said": number}
        if change:
            entry |= {"changed": change, "body": (body[:prefix] + message).hex()}
        try:
            entry["plaintext"] = getattr(self, reader).decrypt(message).decode()
        except Duplicate:
            entry["fails"] = "duplicate"
        except Unreadable as trouble:
            entry["fails"] = trouble.reason
        self.heard.append(entry)


def _forged(talk: _Talk) -> list[Vector]:
    """What the server could make of public keys, if a reader took the lack of a chain for a chain key of its own."""
    forged = []
    for why, chain_key in (("an empty chain key", b""), ("a chain key of zeros", bytes(32))):
        header = BEN.bundle().signed_key + u32(0) + u32(0)
        sealed = ratchet.encrypt(ratchet.kdf_ck(chain_key)[0], b"forged", talk.ad + header)
        forged.append({"to": "ann", "why": why, "fails": "bad-message", "body": (b"\x01" + header + sealed).hex()})
    return forged


def double_ratchet() -> Vector:
    """double_ratchet.json: a talk of two devices with four ratchet steps, messages late, twice and forged."""
    talk = _Talk()
    first, second, third = (talk.say("ann", f"ann {number}") for number in range(3))
    talk.hear(first)
    talk.hear(third)
    reply, again = talk.say("ben", "ben 0"), talk.say("ben", "ben 1")
    talk.hear(again)
    fourth, fifth = talk.say("ann", "ann 3"), talk.say("ann", "ann 4")
    talk.hear(fifth, "last bit")
    talk.hear(fifth)
    talk.hear(second)
    talk.hear(fourth)
    talk.hear(fourth)
    talk.hear(reply)
    last = talk.say("ben", "ben 2, of a new chain: žluťoučký kůň")
    talk.hear(last, "number")
    talk.hear(last)
    talk.hear(second)
    talk.hear(reply)
    return {
        "description": (
            "A Double Ratchet session, begun by ann with the agreement of the first case of x3dh.json. `said` are the "
            "messages in the order in which they were encrypted, `heard` in which order they arrive at the other side "
            "(`said` there is an index), and what becomes of them; "
            "`afterHeard` of these were heard before this was said. `freshKeys` are the private ratchet keys of each "
            "side in the order of their use; ben's first ratchet key is his signed pre-key. `rootKey` and `chainKey` "
            "are those with which the message was encrypted. `forged` are bodies that ann gets before she has heard "
            "anything. Bytes in hex, plaintexts as text (UTF-8): they are not "
            "padded letters here."
        ),
        "sk": talk.sk.hex(),
        "ad": talk.ad.hex(),
        "signedPreKeyPrivate": BEN.private("signed pre-key").hex(),
        "signedPreKey": BEN.bundle().signed_key.hex(),
        "freshKeys": talk.used,
        "forged": _forged(talk),
        "said": talk.said,
        "heard": talk.heard,
    }


def _sender() -> sender_keys.SenderKey:
    device = ANN.public
    return sender_keys.SenderKey(
        CONVERSATION,
        device.user_id,
        device.device_id,
        ANN.private("sender key id")[:16],
        ANN.private("chain key"),
        ANN.private("sender signature key"),
    )


def _salt(number: int) -> bytes:
    return ANN.private(f"salt {number}")[:16]


def _sender_messages(sender: sender_keys.SenderKey, count: int) -> list[Vector]:
    messages = []
    for number in range(count):
        chain_key = sender.chain_key
        message_key = sender_keys.message_key_of(chain_key)
        salt = _salt(number)
        key, nonce = sender_keys.key_and_nonce(message_key, salt)
        header = b"\x01" + u32(number) + salt
        ids = sender.key_id, sender.conversation_id, sender.user_id, sender.device_id
        plaintext = f"to the group, {number}"
        messages.append(
            {
                "iteration": number,
                "plaintext": plaintext,
                "chainKey": chain_key.hex(),
                "messageKey": message_key.hex(),
                "salt": salt.hex(),
                "key": key.hex(),
                "nonce": nonce.hex(),
                "ad": sender_keys.associated_data(*ids, header).hex(),
                "body": sender.encrypt(plaintext.encode(), salt).hex(),
            }
        )
    return messages


def _refused_of_sender_keys(bodies: list[str]) -> list[Vector]:
    body = bytes.fromhex(bodies[3])
    other, far = _sender(), _sender()
    other.conversation_id = OTHER_CONVERSATION
    far.iteration = 2_001
    return [
        {"why": "the last bit of the signature", "body": (body[:-1] + bytes([body[-1] ^ 1])).hex()},
        {"why": "the last bit of the tag", "body": (body[:-65] + bytes([body[-65] ^ 1]) + body[-64:]).hex()},
        {"why": "another iteration in the header", "body": (body[:4] + b"\x04" + body[5:]).hex()},
        {"why": "signed, for another conversation", "body": other.encrypt(b"elsewhere", _salt(8)).hex()},
        {"why": "another salt", "body": (body[:5] + _salt(7) + body[21:]).hex()},
        {"why": "cut short", "body": body[:84].hex()},
        {"why": "another version", "body": (b"\x02" + body[1:]).hex()},
        {"why": "signed, 2001 iterations ahead", "body": far.encrypt(b"far", _salt(9)).hex()},
    ]


def sender_key() -> Vector:
    """sender_key.json: four messages to a group, what is refused, and the digest of whom they are for."""
    sender = _sender()
    letter, messages = sender.letter(), _sender_messages(sender, 4)
    devices = [actor.public for actor in (ANN, BEN, BENS_TABLET, CY)]
    return {
        "description": (
            "A sender key of one device in one conversation, as it starts, and messages under it. `letter` is what the "
            "others are given (base64url in it, as on the wire); a reader has to read the messages in any order and each "
            "once, and has to refuse every body of `refused` when it has read none. Bytes in hex; plaintexts as text "
            "(UTF-8), not padded letters. `later` is the letter for a newcomer after all four. `devices` in any order "
            "give `devicesDigest`."
        ),
        "conversationId": CONVERSATION,
        "senderId": sender.user_id,
        "senderDeviceId": sender.device_id,
        "keyId": sender.key_id.hex(),
        "chainKey": ANN.private("chain key").hex(),
        "signatureSeed": sender.signature_seed.hex(),
        "letter": letter,
        "messages": messages,
        "later": sender.letter(),
        "refused": _refused_of_sender_keys([each["body"] for each in messages]),
        "devices": [
            {"userId": each.user_id, "deviceId": each.device_id, "identityKey": each.identity_key.hex()}
            for each in devices
        ],
        "devicesDigest": sender_keys.devices_digest(devices),
    }
