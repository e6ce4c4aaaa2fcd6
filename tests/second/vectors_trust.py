"""The vectors of who is who: certificates of devices, rosters of groups, safety numbers, linking codes."""

import json
from typing import Any

from tests.second import rosters, safety
from tests.second.cast import ANN, BEN, BENS_TABLET, CONVERSATION, CY, OTHER_CONVERSATION, Actor, secret, uuid
from tests.second.primitives import b64, sign
from tests.second.rosters import Roster

Vector = dict[str, Any]
AT = "2026-01-31T12:00:00.000Z"


def _certificate(actor: Actor, account: Actor | None = None) -> bytes:
    return rosters.certify((account or actor).account_seed, *_ids(actor), actor.public.identity_key)


def _ids(actor: Actor) -> tuple[str, str]:
    return actor.public.user_id, actor.public.device_id


def certificate() -> Vector:
    """certificate.json: three certificates, and what is none."""
    good, ids = _certificate(BEN), _ids(BEN)
    wrong = {
        "by another account": (_certificate(BEN, ANN), *ids, BEN.public.identity_key),
        "of another device": (good, *_ids(BENS_TABLET), BEN.public.identity_key),
        "of another user": (good, ANN.user_id, ids[1], BEN.public.identity_key),
        "of another identity key": (good, *ids, BENS_TABLET.public.identity_key),
        "a flipped bit": (good[:-1] + bytes([good[-1] ^ 1]), *ids, BEN.public.identity_key),
        "by the identity key": (
            sign(BEN.identity_seed, rosters.certificate_text(*ids, BEN.public.identity_key)),
            *(*ids, BEN.public.identity_key),
        ),
    }
    return {
        "description": "Certificates of devices by the account keys of their users, and what is none. Bytes in hex.",
        "certificates": [
            {
                **{"accountSeed": actor.account_seed.hex(), "accountKey": actor.account_key.hex()},
                **{"userId": actor.user_id, "deviceId": actor.public.device_id},
                "identityKey": actor.public.identity_key.hex(),
                "signed": rosters.certificate_text(*_ids(actor), actor.public.identity_key).hex(),
                "certificate": _certificate(actor).hex(),
            }
            for actor in (ANN, BEN, BENS_TABLET)
        ],
        "refused": [
            {
                **{"why": why, "accountKey": BEN.account_key.hex(), "userId": user_id, "deviceId": device_id},
                **{"identityKey": key.hex(), "certificate": signature.hex()},
            }
            for why, (signature, user_id, device_id, key) in wrong.items()
        ],
    }


def _signer(actor: Actor) -> Vector:
    return {
        **{"userId": actor.user_id, "deviceId": actor.public.device_id, "identityKey": b64(actor.public.identity_key)},
        **{"accountKey": b64(actor.account_key), "certificate": b64(_certificate(actor))},
    }


def _put(actor: Actor, role: str | None) -> Vector:
    change: Vector = {"userId": actor.user_id, "role": role}
    return change if role is None else change | {"accountKey": b64(actor.account_key)}


def _bare(actor: Actor, role: str, account_key: str = "") -> Vector:
    """A change with another account key than the user's, or none."""
    return {"userId": actor.user_id, "role": role} | ({"accountKey": account_key} if account_key else {})


def _statement(roster: Roster, by: Actor, changes: list[Vector], **other: Any) -> str:
    said = {"conversationId": CONVERSATION, "version": roster.version + 1, "previous": roster.hash, "at": AT}
    return json.dumps(said | {"signer": _signer(by), "changes": changes} | other, separators=(",", ":"))


def _signature(by: Actor, statement: str) -> bytes:
    return sign(by.identity_seed, rosters.statement_to_sign(statement))


def _shown(roster: Roster) -> Vector:
    return {
        "version": roster.version,
        "hash": roster.hash,
        "members": {
            user_id: {"role": entry.role, "accountKey": entry.account_key} for user_id, entry in roster.members.items()
        },
    }


def _refused(roster: Roster) -> list[Vector]:
    """Statements that do not follow the last one: ann is owner, ben admin; cy was a member and is gone."""
    dee = Actor("dee")
    let_in = [_put(dee, "member")]
    good = _statement(roster, BEN, let_in)
    stripped = {key: value for key, value in _signer(ANN).items() if key not in ("accountKey", "certificate")}
    foreign = _signer(BEN) | {"certificate": b64(_certificate(BEN, ANN))}
    eve = Actor("eve")
    as_ann = _signer(eve) | {"userId": ANN.user_id}
    certificate = rosters.certify(eve.account_seed, ANN.user_id, eve.public.device_id, eve.public.identity_key)
    as_ann["certificate"] = b64(certificate)
    small = b64(bytes(31) + b"\x80")
    cases: list[tuple[str, str, Actor, str]] = [
        ("not-next", "a version is left out", BEN, _statement(roster, BEN, let_in, version=roster.version + 2)),
        ("not-next", "the same version again", BEN, _statement(roster, BEN, let_in, version=roster.version)),
        ("not-next", "another previous", BEN, _statement(roster, BEN, let_in, previous=rosters.hash_of("else"))),
        ("not-next", "a first one, once more", ANN, _statement(roster, ANN, let_in, version=1, previous=None)),
        ("foreign", "another conversation", BEN, _statement(roster, BEN, let_in, conversationId=OTHER_CONVERSATION)),
        ("bad-signature", "signed by another device", ANN, good),
        ("bad-certificate", "by another account", BEN, _statement(roster, BEN, let_in, signer=foreign)),
        ("changed-identity", "another account in ann's name", eve, _statement(roster, ANN, let_in, signer=as_ann)),
        ("not-allowed", "by one who was taken out", CY, _statement(roster, CY, let_in)),
        ("not-allowed", "an admin makes an admin", BEN, _statement(roster, BEN, [_put(dee, "admin")])),
        ("not-allowed", "an admin takes the owner out", BEN, _statement(roster, BEN, [_put(ANN, None)])),
        ("not-allowed", "an admin becomes a member", BEN, _statement(roster, BEN, [_put(BEN, "member")])),
        ("no-owner", "the only owner goes", ANN, _statement(roster, ANN, [_put(ANN, None)])),
        ("no-owner", "the owner loses the account key", ANN, _statement(roster, ANN, [_bare(ANN, "owner")])),
        ("unreadable", "a signer without account key", ANN, _statement(roster, ANN, let_in, signer=stripped)),
        ("unreadable", "no such role", ANN, _statement(roster, ANN, [_put(dee, "king")])),
        ("unreadable", "no changes", ANN, _statement(roster, ANN, [])),
        ("unreadable", "a user twice", ANN, _statement(roster, ANN, [_put(dee, "member"), _put(dee, None)])),
        ("unreadable", "an unknown key", BEN, _statement(roster, BEN, let_in, note="hello")),
        ("unreadable", "a key twice", BEN, good.replace('"at":', '"version":4,"at":', 1)),
        ("unreadable", "an account key of small order", ANN, _statement(roster, ANN, [_bare(dee, "member", small)])),
        ("unreadable", "a key for one who goes", ANN, _statement(roster, ANN, [_put(dee, "member") | {"role": None}])),
        ("unreadable", "a version that is no integer", BEN, good.replace('"version":5', '"version":5.0')),
    ]
    return [
        {"why": why, "reason": reason, "statement": statement, "signature": b64(_signature(by, statement))}
        for reason, why, by, statement in cases
    ]


def roster() -> Vector:
    """roster.json: a chain of statements with the roster after each, and statements that do not count."""
    roster, chain = Roster(CONVERSATION, ANN.user_id), []
    plain = {"userId": uuid("bot"), "role": "member"}
    for by, changes in (
        (ANN, [_put(ANN, "owner"), _put(BEN, "member")]),
        (ANN, [_put(BEN, "admin"), plain]),
        (BENS_TABLET, [_put(CY, "member")]),
        (BEN, [_put(CY, None), {"userId": uuid("bot"), "role": None}]),
    ):
        statement = _statement(roster, by, changes)
        signature = _signature(by, statement)
        roster = roster.follow(statement, signature)
        chain.append({"statement": statement, "signature": b64(signature), "after": _shown(roster)})
    return {
        "description": (
            "The roster of a conversation. `chain` are statements as they were sent, with the roster that they give. None "
            "of `refused` may follow the last one, each for its `reason`. Base64url, as on the wire; `identitySeeds` "
            "(hex, by device id) are for who wants to sign. An implementation that writes a statement may order and "
            "space its JSON otherwise."
        ),
        "conversationId": CONVERSATION,
        "creatorId": ANN.user_id,
        "identitySeeds": {actor.public.device_id: actor.identity_seed.hex() for actor in (ANN, BEN, BENS_TABLET, CY)},
        "chain": chain,
        "refused": _refused(roster),
    }


def safety_number() -> Vector:
    """safety_number.json: of two users with account keys, of one without; QR codes; linking codes."""
    of_devices = safety.key_of_devices(actor.public.identity_key for actor in (BEN, BENS_TABLET))
    cases = []
    for name, bens_key in (("both have account keys", BEN.account_key), ("ben has none", of_devices)):
        ann, ben = safety.hash_of_user(ANN.user_id, ANN.account_key), safety.hash_of_user(BEN.user_id, bens_key)
        cases.append(
            {
                "name": name,
                "ann": {
                    "userId": ANN.user_id,
                    "key": ANN.account_key.hex(),
                    "h": ann.hex(),
                    "digits": safety.digits(ann),
                },
                "ben": {"userId": BEN.user_id, "key": bens_key.hex(), "h": ben.hex(), "digits": safety.digits(ben)},
                "number": safety.safety_number(ann, ben),
                "qrOfAnn": safety.qr_text(ANN.user_id, ann, BEN.user_id, ben),
                "qrOfBen": safety.qr_text(BEN.user_id, ben, ANN.user_id, ann),
            }
        )
    return {
        "description": (
            "Safety numbers of two users. `key` is the account key; of ben without one it is the SHA-256 over the sorted "
            "identity keys of his devices (`identityKeys`, here in no order). h is after all 5,200 hashes. Also the "
            "linking codes of devices for the `secret` that is in them, with the `proof` of a letter that brings `accountKey`. "
            "Bytes in hex, QR texts as they are."
        ),
        "cases": cases,
        "identityKeys": sorted((each.public.identity_key.hex() for each in (BEN, BENS_TABLET)), reverse=True),
        "linkingCodes": [
            {
                **{"userId": actor.user_id, "deviceId": actor.public.device_id},
                "identityKey": actor.public.identity_key.hex(),
                "secret": chosen.hex(),
                "code": safety.linking_code(*_ids(actor), actor.public.identity_key, chosen),
                "accountKey": actor.account_key.hex(),
                "proof": safety.link_proof(chosen, *_ids(actor), actor.account_key).hex(),
            }
            for actor in (BEN, BENS_TABLET)
            for chosen in (secret(f"link of {actor.device}", 5), bytes(5))
        ],
    }
