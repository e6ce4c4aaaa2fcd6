"""Two implementations of docs/encryption.md that share no code talk to each other, and the code under test meets the vectors.

The other one is `tests/second`, written from the document alone. Where both could be wrong in the same way the vectors stay
as they are: they are for a third.
"""

import io
import json
import random
from typing import Any

import pytest

from gearlink import device_lists
from gearlink.sdk.e2ee import (
    agreement,
    attachments,
    certificates,
    letters,
    recovery,
    rosters,
    safety,
    sender_keys,
)
from gearlink.sdk.e2ee.encoding import from_base64url, to_base64url
from gearlink.sdk.e2ee.records import Own, OwnSenderKey, RosterState, SenderKey
from gearlink.sdk.e2ee.sessions import Envelope
from tests.interop import CodeUnderTest, draw, draw_ratchet_keys, verdict, view_of
from tests.second import archives as second_archives
from tests.second import attachments as second_attachments
from tests.second import letters as second_letters
from tests.second import rosters as second_rosters
from tests.second import safety as second_safety
from tests.second import sender_keys as second_sender_keys
from tests.second.agreement import (
    LAST_RESORT,
    ONE_TIME,
    Start,
    answer,
    associated_data,
    begin,
    read_message,
    read_prekey,
)
from tests.second.cast import ANN, ARCHIVE, BEN, CONVERSATION, CY, OTHER_CONVERSATION, Actor, secret
from tests.second.primitives import Unreadable, agreement_public, b64, sign, unb64
from tests.second.ratchet import Session
from tests.second.vectors_contents import broken_files, pattern
from tests.test_vectors import bundle, raw, vector

Vector = dict[str, Any]
AT = "2026-01-31T12:00:00.000Z"

# --- X3DH -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1])
def test_both_sides_agree_on_the_key_of_the_vectors(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = vector("x3dh.json")["cases"][number]
    expected = raw(case["sk"]), raw(case["ad"]), raw(case["ephemeralPublic"])
    draw(monkeypatch, "x3dh.base_state", raw(case["ephemeralPrivate"]))
    ann, ben, begun = CodeUnderTest(ANN), CodeUnderTest(BEN), bundle(case)
    checked = agreement.checked_bundle(begun.device.user_id, b"", view_of(begun))
    active = agreement.initiate(ann.own, begun.device.user_id, checked)
    assert (active.secret, active.ad, active.ephemeral_key) == expected
    a, other = case["a"], ben.others[case["kind"]]
    theirs = a["userId"], a["deviceId"], raw(a["identityKey"]), raw(case["ephemeralPublic"])
    passive = agreement.respond(ben.own, *theirs, ben.signed, other)
    assert (passive.secret, passive.ad, passive.ephemeral_key) == expected


def test_bundles_and_ephemeral_keys_that_are_not_sound_are_refused() -> None:
    said = vector("x3dh.json")
    for each in said["badBundles"]:
        case = said["cases"][1] | {part: said["cases"][1][part] | change for part, change in each["change"].items()}
        with pytest.raises(agreement.BadBundle):
            agreement.checked_bundle(BEN.user_id, b"", view_of(bundle(case)))
    ben = CodeUnderTest(BEN)
    for each in said["badEphemeralKeys"]:
        theirs = ANN.user_id, ANN.public.device_id, ANN.public.identity_key, raw(each["ephemeralPublic"])
        with pytest.raises(ValueError):
            agreement.respond(ben.own, *theirs, ben.signed, ben.others[ONE_TIME])


# --- Double Ratchet ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ann", "ben"])
def test_a_side_of_the_talk_in_the_vectors_says_and_hears_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    talk, case = vector("double_ratchet.json"), vector("x3dh.json")["cases"][0]
    own, other = (ANN, BEN) if name == "ann" else (BEN, ANN)
    draw(monkeypatch, "x3dh.base_state", raw(case["ephemeralPrivate"]))
    draw_ratchet_keys(monkeypatch, iter([raw(key) for key in talk["freshKeys"][name]]))
    device = CodeUnderTest(own)
    if name == "ann":
        device.begin(BEN.bundle())
    for forged in talk["forged"] if name == "ann" else ():
        assert heard(device, other, Envelope("message", raw(forged["body"]))) == forged["fails"]
    for at in range(len(talk["heard"]) + 1):
        for said in talk["said"]:
            if said["by"] == name and said["afterHeard"] == at:
                envelope = device.say(other.public, said["plaintext"].encode())
                assert (envelope.type, envelope.body.hex()) == (said["type"], said["body"])
        if at < len(talk["heard"]) and (each := talk["heard"][at])["by"] == name:
            said = talk["said"][each["said"]]
            envelope = Envelope(said["type"], raw(each.get("body", said["body"])))
            assert heard(device, other, envelope) == each.get("fails", each.get("plaintext")), at


def heard(device: CodeUnderTest, sender: Actor, envelope: Envelope) -> str:
    try:
        return device.hear(sender.public, envelope).decode()
    except (letters.Undecryptable, letters.Duplicate) as trouble:
        return verdict(trouble)


class Other:
    """The same device, run by the second implementation, in one session with the code under test."""

    def __init__(self, own: Actor, to: Actor, lot: random.Random) -> None:
        self.own, self.to, self.lot = own, to, lot
        self.session: Session | None = None
        self.start: Start | None = None

    def fresh(self) -> bytes:
        return self.lot.randbytes(32)

    def begin(self, kind: int) -> None:
        bundle, ephemeral = self.to.bundle(kind), self.fresh()
        public = agreement_public(ephemeral)
        ad = associated_data(self.own.public, self.to.public, public)
        sk = begin(self.own.identity_seed, ephemeral, bundle)
        self.session = Session.begin(sk, ad, bundle.signed_key, self.fresh)
        ids = bundle.signed_id, bundle.kind, bundle.other_id
        self.start = Start(self.own.public.identity_key, public, *ids)

    def say(self, plaintext: bytes) -> Envelope:
        assert self.session is not None
        message = self.session.encrypt(plaintext)
        if self.start is not None and not self.session.receiving:
            return Envelope("prekey", self.start.envelope(message))
        return Envelope("message", b"\x01" + message)

    def hear(self, envelope: Envelope) -> bytes:
        if envelope.type == "message":
            assert self.session is not None
            return self.session.decrypt(envelope.body[1:])
        start, message = read_prekey(envelope.body)
        if self.session is None:
            signed, other = self.own.private("signed pre-key"), self.own.other_private(start.kind)
            sk = answer(self.own.identity_seed, signed, other, start.identity_key, start.ephemeral_key)
            ad = associated_data(self.to.public, self.own.public, start.ephemeral_key)
            self.session = Session.answer(sk, ad, signed, self.fresh)
        return self.session.decrypt(message)


@pytest.mark.parametrize("seed", range(6))
def test_both_implementations_talk_with_messages_late_and_twice(seed: int) -> None:
    lot = random.Random(seed)
    code, other = CodeUnderTest(ANN), Other(BEN, ANN, lot)
    code_begins, kind = bool(seed % 2), (ONE_TIME, LAST_RESORT)[seed // 2 % 2]
    if code_begins:
        code.begin(BEN.bundle(kind))
    else:
        other.begin(kind)
    ways: dict[bool, list[tuple[bytes, Envelope]]] = {True: [], False: []}  # by whether it is to the code under test
    read: dict[bool, list[bytes]] = {True: [], False: []}
    may_say = {True: not code_begins, False: code_begins}
    for number in range(150):
        to_code, plaintext = lot.random() < 0.5, f"{number}".encode() * lot.randrange(1, 80)
        if may_say[to_code] and lot.random() < 0.6:
            ways[to_code].append((plaintext, other.say(plaintext) if to_code else code.say(BEN.public, plaintext)))
        elif ways[to_code]:
            expected, envelope = ways[to_code].pop(lot.randrange(len(ways[to_code])))
            assert deliver(code, other, to_code, envelope) == expected
            assert deliver(code, other, to_code, envelope) == b"duplicate"
            read[to_code].append(expected)
            may_say[not to_code] = True
    for to_code, way in ways.items():
        for expected, envelope in way:
            assert deliver(code, other, to_code, envelope) == expected
    assert min(len(found) for found in read.values()) > 10


def deliver(code: CodeUnderTest, other: Other, to_code: bool, envelope: Envelope) -> bytes:
    try:
        return code.hear(BEN.public, envelope) if to_code else other.hear(envelope)
    except Exception as trouble:  # noqa: BLE001 - `verdict` lets through what is none
        return verdict(trouble).encode()


def test_whoever_changes_a_message_gets_the_same_answer_from_both() -> None:
    lot = random.Random(4)
    code, other, author = CodeUnderTest(BEN), Other(BEN, ANN, lot), Other(ANN, BEN, lot)
    author.begin(ONE_TIME)
    first = author.say(b"first")
    assert code.hear(ANN.public, first) == other.hear(first) == b"first"
    code_answer = code.say(ANN.public, b"read")
    assert author.hear(code_answer) == b"read"
    bodies = [author.say(b"x" * 200).body for _ in range(5)]
    answers = set()
    for _ in range(400):
        body = bytearray(lot.choice(bodies))
        for _change in range(lot.randrange(1, 3)):
            body[lot.randrange(len(body))] ^= 1 << lot.randrange(8)
        changed = Envelope("message", bytes(body[: lot.randrange(len(body)) if lot.random() < 0.2 else len(body)]))
        answers.add(heard(code, ANN, changed))
        with pytest.raises(Unreadable):
            other.hear(changed) if changed.body[:1] == b"\x01" else read_message(changed.body)
    assert answers == {"bad-message"}
    assert [code.hear(ANN.public, Envelope("message", body)) for body in bodies] == [b"x" * 200] * 5


@pytest.mark.parametrize(("missed", "answer_"), [(1_000, "read"), (1_001, "bad-message")])
def test_both_skip_equally_far(missed: int, answer_: str) -> None:
    code, other = CodeUnderTest(BEN), Other(ANN, BEN, random.Random(1))
    other.begin(ONE_TIME)
    envelopes = [other.say(b"read") for _ in range(missed + 1)]
    assert heard(code, ANN, envelopes[-1]) == answer_


# --- sender keys ------------------------------------------------------------------------------------------------------


def given(said: Vector, name: str = "letter") -> SenderKey:
    letter = letters.from_json(json.dumps(said[name]))
    assert isinstance(letter, letters.SenderKeyGiven)
    return sender_keys.from_distribution(letter, CONVERSATION, said["senderId"], said["senderDeviceId"], 0, None)


def test_the_sender_key_of_the_vectors_is_read_in_every_order_and_used_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = vector("sender_key.json")
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        key = given(said)
        for number in order:
            key, plaintext = sender_keys.open_body(key, raw(said["messages"][number]["body"]))
            assert plaintext.decode() == said["messages"][number]["plaintext"]
            with pytest.raises(letters.Duplicate):
                sender_keys.open_body(key, raw(said["messages"][number]["body"]))
    own = OwnSenderKey(
        *(CONVERSATION, raw(said["keyId"]), raw(said["chainKey"]), 0, raw(said["signatureSeed"])), made_at=0, epoch=""
    )
    for each in said["messages"]:
        draw(monkeypatch, "gearlink.sdk.e2ee.sender_keys", raw(each["salt"]))
        own, body = sender_keys.seal(own, said["senderId"], said["senderDeviceId"], each["plaintext"].encode())
        assert body.hex() == each["body"]
    assert json.loads(letters.to_json(sender_keys.distribution(own))) == said["later"]


def test_bodies_that_are_forged_or_too_old_get_the_same_answer_from_both() -> None:
    said = vector("sender_key.json")
    bodies = [(each["body"], "letter") for each in said["refused"]] + [
        (each["body"], "later") for each in said["messages"]
    ]
    for body, name in bodies:
        with pytest.raises(letters.Undecryptable) as caught:
            sender_keys.open_body(given(said, name), raw(body))
        with pytest.raises(Unreadable) as also:
            received(said[name]).decrypt(raw(body))
        assert caught.value.reason == also.value.reason


def received(letter: Vector) -> second_sender_keys.ReceivedKey:
    key_id, chain, public = (unb64(letter[name]) for name in ("keyId", "chainKey", "signatureKey"))
    ids = CONVERSATION, ANN.user_id, ANN.public.device_id
    return second_sender_keys.ReceivedKey(*ids, key_id, chain, public, letter["iteration"], letter["iteration"])


def test_a_group_of_both_implementations_reads_itself() -> None:
    lot, own = random.Random(3), sender_keys.make(CONVERSATION, 0, "")
    device = ANN.public
    reader = received(json.loads(letters.to_json(sender_keys.distribution(own))))
    theirs = second_sender_keys.SenderKey(
        *(CONVERSATION, device.user_id, device.device_id, lot.randbytes(16), lot.randbytes(32), lot.randbytes(32))
    )
    held = given({"letter": theirs.letter(), "senderId": device.user_id, "senderDeviceId": device.device_id})
    bodies, their_bodies = [], []
    for _ in range(30):
        own, body = sender_keys.seal(own, device.user_id, device.device_id, b"ours")
        bodies.append(body)
        their_bodies.append(theirs.encrypt(b"theirs", lot.randbytes(16)))
    lot.shuffle(bodies)
    lot.shuffle(their_bodies)
    for body, their_body in zip(bodies, their_bodies, strict=True):
        assert reader.decrypt(body) == b"ours"
        held, plaintext = sender_keys.open_body(held, their_body)
        assert plaintext == b"theirs"


def test_the_server_has_the_same_digest_of_devices() -> None:
    said = vector("sender_key.json")
    by_user: dict[str, bytes] = {}
    for each in sorted(said["devices"], key=lambda one: (one["userId"], one["deviceId"])):
        ids = bytes.fromhex((each["userId"] + each["deviceId"]).replace("-", ""))
        by_user[each["userId"]] = by_user.get(each["userId"], b"") + ids + raw(each["identityKey"])
    users = [device_lists.UserDevices(user_id, b"", (), encoding) for user_id, encoding in by_user.items()]
    assert device_lists.joined(users).digest == said["devicesDigest"]


# --- letters and attachments ------------------------------------------------------------------------------------------


def test_letters_of_the_vectors_are_padded_read_and_refused_the_same() -> None:
    said = vector("letters.json")
    for each in said["letters"]:
        padded = raw(each["padded"])
        assert letters.pad(each["text"].encode()) == padded and letters.unpad(padded).decode() == each["text"]
        letter, text = letters.decode(padded), json.loads(each["text"])
        assert letter.conversation_id == text["conversationId"]
        if text["type"] == "of-tomorrow":
            assert isinstance(letter, letters.UnknownLetter)
        else:
            assert not isinstance(letter, letters.UnknownLetter)
            assert second_letters.read(letters.encode(letter), CONVERSATION) == text
    for each in said["refused"]:
        if each["reason"] == "misdirected":  # which is for the caller to see
            assert letters.decode(raw(each["padded"])).conversation_id == OTHER_CONVERSATION
            continue
        with pytest.raises(letters.Undecryptable) as caught:
            letters.decode(raw(each["padded"]))
        assert caught.value.reason == each["reason"], each["why"]


def test_files_are_encrypted_and_decrypted_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    said = vector("attachment.json")
    for each in said["files"]:
        draw(monkeypatch, "gearlink.sdk.e2ee.attachments", raw(each["key"]))
        data, target, opened = pattern(each["size"]), io.BytesIO(), io.BytesIO()
        sealed = attachments.seal_file(io.BytesIO(data), target)
        assert (sealed.sha256.hex(), sealed.size) == (each["sha256"], each["size"])
        assert second_attachments.unseal(raw(each["key"]), target.getvalue()) == data
        target.seek(0)
        attachments.open_file(target, opened, raw(each["key"]), raw(each["sha256"]), each["size"])
        assert opened.getvalue() == data
    key = raw(said["files"][-1]["key"])
    end = broken_files()["a full chunk and an empty final one"][-attachments.TAG_BYTES :]
    with pytest.raises(attachments.DamagedFile):
        attachments.open_chunk(key, 1, True, end)
    for why, broken in broken_files().items():
        digest = raw(next(each["sha256"] for each in said["broken"] if each["why"] == why))
        for size in (200_000, 65_536, len(broken)):
            with pytest.raises(attachments.DamagedFile):
                attachments.open_file(io.BytesIO(broken), io.BytesIO(), key, digest, size)


# --- who is who -------------------------------------------------------------------------------------------------------


def test_certificates_of_the_vectors_are_verified_made_and_refused_the_same() -> None:
    said = vector("certificate.json")
    for each in said["certificates"]:
        ids, key = (each["userId"], each["deviceId"]), raw(each["identityKey"])
        assert certificates.certify(raw(each["accountSeed"]), *ids, key).hex() == each["certificate"]
    for each in (*said["certificates"], *said["refused"]):
        device = each["userId"], each["deviceId"], raw(each["identityKey"]), raw(each["certificate"])
        assert certificates.verify_certificate(raw(each["accountKey"]), *device) is ("why" not in each)


def follow(state: RosterState | None, creator: str, statement: str, signature: str) -> RosterState | str:
    try:
        return rosters.follow(state, CONVERSATION, creator, statement, from_base64url(signature))
    except rosters.BadStatement as trouble:
        return trouble.reason


def test_the_roster_of_the_vectors_is_followed_and_forgeries_are_refused_for_the_same_reason() -> None:
    said, state = vector("roster.json"), None
    for each in said["chain"]:
        found = follow(state, said["creatorId"], each["statement"], each["signature"])
        assert isinstance(found, RosterState), found
        state, after = found, each["after"]
        assert (state.version, to_base64url(state.hash)) == (after["version"], after["hash"])
        members = {user: {"role": role, "accountKey": b64(key) if key else None} for user, role, key in state.members}
        assert members == after["members"]
    for each in said["refused"]:
        assert follow(state, said["creatorId"], each["statement"], each["signature"]) == each["reason"], each["why"]


def owner_of(actor: Actor) -> Own:
    device = actor.public
    certificate = second_rosters.certify(actor.account_seed, device.user_id, device.device_id, device.identity_key)
    return Own("own", device.user_id, device.device_id, actor.identity_seed, 0, actor.account_seed, certificate)


def put(actor: Actor, role: Any) -> rosters.Change:
    return rosters.Change(actor.user_id, role, actor.account_key if role else b"")


@pytest.mark.parametrize("signer", ["owner", "admin", "member", "nobody"])
@pytest.mark.parametrize("before", ["owner", "admin", "member", "nobody", "themselves"])
def test_both_have_the_same_rules_for_who_may_change_whom(signer: str, before: str) -> None:
    by, founder = CY, ANN
    changes = [put(founder, "owner")]
    changes += [put(by, signer)] if signer != "nobody" else []
    changes += [put(BEN, before)] if before not in ("nobody", "themselves") else []
    text, signature = rosters.make_statement(None, CONVERSATION, AT, owner_of(founder), changes)
    state = rosters.follow(None, CONVERSATION, founder.user_id, text, signature)
    roster = second_rosters.Roster(CONVERSATION, founder.user_id).follow(text, signature)
    whom = by if before == "themselves" else BEN
    for role in ("owner", "admin", "member", None):
        change = {"userId": whom.user_id, "role": role} | ({"accountKey": b64(whom.account_key)} if role else {})
        own = owner_of(by)
        signer_ = {"userId": own.user_id, "deviceId": own.device_id, "identityKey": b64(by.public.identity_key)}
        signer_ |= {"accountKey": b64(by.account_key), "certificate": b64(own.certificate)}
        said = {"conversationId": CONVERSATION, "version": 2, "previous": roster.hash, "at": AT}
        statement = json.dumps(said | {"signer": signer_, "changes": [change]})
        by_hand = sign(by.identity_seed, second_rosters.statement_to_sign(statement))
        found = follow(state, founder.user_id, statement, b64(by_hand))
        try:
            after = roster.follow(statement, by_hand)
        except second_rosters.Refused as refused:
            assert found == refused.reason, (signer, before, role)
        else:
            assert isinstance(found, RosterState), (signer, before, role)
            members = {user: (each.role, unb64(each.account_key or "")) for user, each in after.members.items()}
            assert members == {user: (one, key) for user, one, key in found.members}


def test_safety_numbers_qr_codes_and_linking_codes_are_the_same() -> None:
    said = vector("safety_number.json")
    for case in said["cases"]:
        sides = [(case[who]["userId"], raw(case[who]["key"])) for who in ("ann", "ben")]
        assert safety.safety_number(*sides[0], *sides[1]) == safety.safety_number(*sides[1], *sides[0])
        assert safety.safety_number(*sides[0], *sides[1]) == case["number"]
        assert safety.qr_text(*sides[0], *sides[1]) == case["qrOfAnn"]
        assert safety.check_qr(case["qrOfBen"], *sides[0], *sides[1]) == "match"
        hashes = [second_safety.hash_of_user(*side) for side in sides]
        scanned = safety.qr_text(*sides[1], *sides[0])
        assert second_safety.is_turned_around(scanned, sides[0][0], hashes[0], sides[1][0], hashes[1])
    assert safety.key_for(b"", map(raw, said["identityKeys"])).hex() == said["cases"][1]["ben"]["key"]
    for each in said["linkingCodes"]:
        device, chosen = (each["userId"], each["deviceId"], raw(each["identityKey"])), raw(each["secret"])
        assert certificates.linking_code(*device, chosen) == each["code"]
        assert certificates.matches_code(each["code"], *device) and certificates.code_secret(each["code"]) == chosen
        assert certificates.link_proof(chosen, *device[:2], raw(each["accountKey"])) == raw(each["proof"])


# --- archives ---------------------------------------------------------------------------------------------------------


def test_a_backup_of_either_is_opened_by_the_other_with_the_typed_recovery_key() -> None:
    said = vector("archive.json")
    for typed in (said["recoveryKey"], *said["alsoTyped"]):
        assert recovery.backup_key(said["userId"], recovery.parse_recovery_key(typed)).hex() == said["backupKey"]
    for typed in said["mistyped"]:
        with pytest.raises(recovery.BadRecoveryKey):
            recovery.parse_recovery_key(typed)
    fresh = recovery.new_recovery_key()
    assert second_archives.entropy_of(fresh) == recovery.parse_recovery_key(fresh)
    key, ids = raw(said["backupKey"]), (said["userId"], said["archiveId"])
    for each in said["chunks"]:
        assert recovery.open_chunk(key, *ids, each["number"], raw(each["chunk"])).decode() == each["text"]
        with pytest.raises(recovery.DamagedChunk):
            recovery.open_chunk(key, *ids, each["number"] + 1, raw(each["chunk"]))


def test_the_history_and_the_manifest_of_either_are_read_by_the_other() -> None:
    key, ids = secret("archive key"), (ANN.user_id, ARCHIVE)
    row = recovery.Row(
        conversation_id=CONVERSATION,
        sequence=7,
        message_id=ARCHIVE,
        sender_id=ANN.user_id,
        sender_device_id=ANN.public.device_id,
        created_at=1_769_860_800_000,
        kind="text",
        letter='{"content":"Ahoj"}',
    )
    plain, count = next(recovery.pack_rows([row, row]))
    ad = second_archives.chunk_ad(*ids, 1)
    rows = second_archives.unpack(second_archives.unseal(key, recovery.seal_chunk(key, *ids, 1, plain), ad))
    assert count == len(rows) == 2 and rows[0]["letter"] == row.letter and "era" not in rows[0]
    theirs = second_archives.seal(key, secret("nonce", 24), second_archives.pack(rows), ad)
    assert recovery.unpack_rows(recovery.open_chunk(key, *ids, 1, theirs)) == [row, row]
    manifest = {"version": 1, "userId": ANN.user_id, "deviceId": ANN.public.device_id, "chunks": 1, "madeAt": 5}
    manifest |= {"accountKey": b64(ANN.account_seed), "cursors": {CONVERSATION: 7}, "verified": []}
    manifest |= {"digest": b64(second_archives.running([theirs]))}
    read = recovery.decode_manifest(json.dumps(manifest).encode())
    assert (read.account_seed, read.chunks, read.cursors) == (ANN.account_seed, 1, {CONVERSATION: 7})
    assert read.is_of(1, recovery.chained(bytes(32), recovery.chunk_hash(theirs)))
    assert manifest.items() <= json.loads(recovery.encode_manifest(read)).items()
