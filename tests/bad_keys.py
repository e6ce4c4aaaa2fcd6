"""Uploads of keys that have to be refused, and the field for which: what the rules and the running server are tried with."""

import copy
from base64 import urlsafe_b64decode
from collections.abc import Callable
from typing import Any

from nacl.bindings import crypto_core_ed25519_add
from nacl.signing import SigningKey

from tests.handsets import Handset, text

Upload = dict[str, Any]
P = 2**255 - 19
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
ORDER_8 = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")  # of Ed25519
LOW_X = 325606250916557431795983626356110631294008115727848805560023387167927233504
LOW_Y = 39382357235489614581723060781553021112529911719440698176882885853963445705823
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def little(number: int) -> bytes:
    return number.to_bytes(32, "little")


def raw(shown: str) -> bytes:
    return urlsafe_b64decode(shown + "=" * (-len(shown) % 4))


def misspelt(shown: str) -> dict[str, str]:
    """The same bytes in other words, or nearly."""
    return {
        "too short": text(raw(shown)[:-1]),
        "too long": text(raw(shown) + b"x"),
        "empty": "",
        "padded": shown + "=" * (-len(shown) % 4),
        "with bits that mean nothing": shown[:-1] + ALPHABET[ALPHABET.index(shown[-1]) + 1],
        "with a line break": shown + "\n",
        "of the other alphabet": "+" + shown[1:],
        "not of ASCII": "\u00e9" + shown[1:],
        "with a hole": shown[:20] + " " + shown[21:],
    }


HANDSET = Handset()
GOOD = HANDSET.upload(3)
IDENTITY_POINTS = {
    "zero": little(0),
    "the neutral point": little(1),
    "of order 2": little(P - 1),
    "of order 8": ORDER_8,
    "of order 8, negated": ORDER_8[:31] + bytes([ORDER_8[31] | 0x80]),
    "the neutral point, not reduced": little(P + 1),
    "on no curve": little(2),
    "with a part of small order": crypto_core_ed25519_add(raw(GOOD["identityKey"]), ORDER_8),
    "all ones": b"\xff" * 32,
}
PRE_KEY_POINTS = {
    **{f"of small order ({number % 101})": little(number) for number in (0, 1, P - 1, LOW_X, LOW_Y)},
    **{f"of small order, not reduced ({number % 101})": little(number) for number in (P, P + 1)},
    "not reduced": little(P + 9),
    "with the top bit": little(9 | 1 << 255),
    "of small order with the top bit": little(1 << 255),
}


def _with(path: str, value: Any) -> Upload:
    upload: Any = copy.deepcopy(GOOD)
    *way, last = path.replace("[", ".").replace("]", "").split(".")
    place = upload
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    return upload


def _signed(signing: Callable[[bytes], bytes], key: bytes) -> Upload:
    return {"keyId": 1, "publicKey": text(key), "signature": text(signing(key))}


def _by(identity: SigningKey) -> Callable[[bytes], bytes]:
    return lambda key: identity.sign(b"\x05" + key).signature


def _with_larger_s(key: bytes) -> bytes:
    """The same signature, in the other way in which some verifiers take it (RFC 8032 \u00a75.1.7)."""
    signature = _by(HANDSET.identity)(key)
    return signature[:32] + little(int.from_bytes(signature[32:], "little") + GROUP_ORDER)


def _bad() -> dict[str, tuple[str, Upload]]:
    found = {}
    for path in ("identityKey", "signedPreKey.publicKey", "lastResortPreKey.signature", "oneTimePreKeys[1].publicKey"):
        shown: Any = GOOD
        for step in path.replace("[", ".").replace("]", "").split("."):
            shown = shown[int(step) if step.isdigit() else step]
        found |= {f"{path} {how}": (path, _with(path, other)) for how, other in misspelt(shown).items()}
    for how, point in IDENTITY_POINTS.items():
        found[f"an identity {how}"] = ("identityKey", _with("identityKey", text(point)))
    for how, point in PRE_KEY_POINTS.items():
        signed = _signed(_by(HANDSET.identity), point)
        for name in ("signedPreKey", "lastResortPreKey"):
            form = {**signed, "keyId": GOOD[name]["keyId"]}
            found[f"{name} {how}"] = (f"{name}.publicKey", _with(name, form))
        one_time = "oneTimePreKeys[2].publicKey"
        found[f"a one-time key {how}"] = (one_time, _with(one_time, text(point)))
    key = raw(GOOD["signedPreKey"]["publicKey"])
    good = raw(GOOD["signedPreKey"]["signature"])
    for how, signature in {
        "by somebody else": _by(Handset("eve").identity)(key),
        "over the bare key": HANDSET.identity.sign(key).signature,
        "over another key": raw(GOOD["lastResortPreKey"]["signature"]),
        "with a flipped bit": bytes([good[0] ^ 1]) + good[1:],
        "of zeros": bytes(64),
        "with a larger S": _with_larger_s(key),
    }.items():
        path = "signedPreKey.signature"
        found[f"a signature {how}"] = (path, _with(path, text(signature)))
    one_time = [each["publicKey"] for each in GOOD["oneTimePreKeys"]]
    ids = [each["keyId"] for each in GOOD["oneTimePreKeys"]]
    return found | {
        "an id twice": ("oneTimePreKeys[2].keyId", _with("oneTimePreKeys[2].keyId", ids[1])),
        "ids that fall": ("oneTimePreKeys[1].keyId", _with("oneTimePreKeys[0].keyId", ids[2] + 1)),
        "a key twice": ("oneTimePreKeys[2].publicKey", _with("oneTimePreKeys[2].publicKey", one_time[0])),
        "one key as both": (
            "lastResortPreKey.publicKey",
            _with("lastResortPreKey", {**GOOD["signedPreKey"], "keyId": 2}),
        ),
        "the identity of somebody else": ("signedPreKey.signature", _with("identityKey", Handset("eve").identity_key)),
    }


BAD = _bad()
"""By what is wrong with it: the field that the refusal names, and the upload."""
