"""The second implementation and the vectors in tests/vectors: made from it, up to date, and read by its other half.

The code under test meets the same vectors in `test_interop.py`.
"""

import hashlib
import itertools
import json
from typing import Any

import pytest

from tests.second import agreement, archives, attachments, letters, rosters, safety, sender_keys
from tests.second.agreement import Bundle, Device
from tests.second.make_vectors import FOLDER, MAKERS, text_of
from tests.second.primitives import (
    Unreadable,
    agreement_public,
    identity_to_agreement_private,
    identity_to_agreement_public,
    signing_public,
    unb64,
    uncrockford,
)
from tests.second.ratchet import KEPT_MAX, SKIP_MAX, Duplicate, Session
from tests.second.vectors_contents import broken_files, pattern

Vector = dict[str, Any]
raw = bytes.fromhex


def vector(name: str) -> Vector:
    found: Vector = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_the_file_is_what_the_second_implementation_makes_today(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == text_of(name), "python -m tests.second.make_vectors"


def test_every_file_of_vectors_has_a_maker_and_a_line_in_the_readme() -> None:
    files = {file.name for file in FOLDER.glob("*.json")}
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert files == set(MAKERS)
    assert [name for name in files if f"| `{name}` |" not in readme] == []


# --- X3DH -------------------------------------------------------------------------------------------------------------


def device(said: Vector) -> Device:
    return Device(said["userId"], said["deviceId"], raw(said["identityKey"]))


def bundle(case: Vector) -> Bundle:
    signed, other = case["signedPreKey"], case["otherPreKey"]
    signature, other_signature = raw(signed["signature"]), raw(other.get("signature", ""))
    signed_key, other_key = raw(signed["public"]), raw(other["public"])
    ids = signed["keyId"], other["keyId"]
    return Bundle(device(case["b"]), ids[0], signed_key, signature, case["kind"], ids[1], other_key, other_signature)


@pytest.fixture(params=[0, 1], ids=["one-time", "last-resort"])
def agreed(request: pytest.FixtureRequest) -> Vector:
    case: Vector = vector("x3dh.json")["cases"][request.param]
    return case


def test_both_sides_of_an_agreement_have_the_same_key(agreed: Vector) -> None:
    a, b = agreed["a"], agreed["b"]
    assert agreement.begin(raw(a["identitySeed"]), raw(agreed["ephemeralPrivate"]), bundle(agreed)) == raw(agreed["sk"])
    signed, other = raw(agreed["signedPreKey"]["private"]), raw(agreed["otherPreKey"]["private"])
    theirs = raw(a["identityKey"]), raw(agreed["ephemeralPublic"])
    assert agreement.answer(raw(b["identitySeed"]), signed, other, *theirs) == raw(agreed["sk"])
    assert agreement.associated_data(device(a), device(b), theirs[1]) == raw(agreed["ad"])


def test_the_converted_identity_keys_belong_together(agreed: Vector) -> None:
    for side in (agreed["a"], agreed["b"]):
        seed, public = raw(side["identitySeed"]), raw(side["identityKey"])
        assert signing_public(seed) == public
        private = identity_to_agreement_private(seed)
        assert private == raw(side["identityX25519Private"])
        assert agreement_public(private) == identity_to_agreement_public(public) == raw(side["identityX25519Public"])


def test_a_bundle_that_is_not_sound_is_refused_before_anything_is_agreed() -> None:
    said = vector("x3dh.json")
    for each in said["badBundles"]:
        case = dict(said["cases"][1])
        for part, change in each["change"].items():
            case[part] = case[part] | change
        with pytest.raises(ValueError):
            agreement.begin(raw(case["a"]["identitySeed"]), raw(case["ephemeralPrivate"]), bundle(case))


def test_an_ephemeral_key_of_small_order_or_in_another_spelling_is_no_message() -> None:
    """X25519 ignores the top bit and reduces: the same secret under another name would be a second session."""
    said = vector("x3dh.json")
    case = said["cases"][0]
    signed, other = (raw(case[name]["private"]) for name in ("signedPreKey", "otherPreKey"))
    for each in said["badEphemeralKeys"]:
        theirs = raw(case["a"]["identityKey"]), raw(each["ephemeralPublic"])
        with pytest.raises(Unreadable, match="bad-message"):
            agreement.answer(raw(case["b"]["identitySeed"]), signed, other, *theirs)


# --- Double Ratchet ---------------------------------------------------------------------------------------------------


def talkers(talk: Vector) -> dict[str, Session]:
    ann, ben = (iter([raw(key) for key in talk["freshKeys"][name]]) for name in ("ann", "ben"))
    sk, ad = raw(talk["sk"]), raw(talk["ad"])
    return {
        "ann": Session.begin(sk, ad, raw(talk["signedPreKey"]), lambda: next(ann)),
        "ben": Session.answer(sk, ad, raw(talk["signedPreKeyPrivate"]), lambda: next(ben)),
    }


def message_of(kind: str, body: bytes) -> bytes:
    return agreement.read_prekey(body)[1] if kind == "prekey" else agreement.read_message(body)


def test_ben_reads_the_talk_as_it_arrives_and_refuses_what_is_wrong() -> None:
    talk = vector("double_ratchet.json")
    sessions = talkers(talk)
    for heard in talk["heard"]:
        said = talk["said"][heard["said"]]
        message = message_of(said["type"], raw(heard.get("body", said["body"])))
        before = dict(sessions[heard["by"]].__dict__)
        if "fails" in heard:
            with pytest.raises((Unreadable, Duplicate)) as caught:
                sessions[heard["by"]].decrypt(message)
            assert getattr(caught.value, "reason", "duplicate") == heard["fails"]
            assert sessions[heard["by"]].__dict__ == before
        else:
            assert sessions[heard["by"]].decrypt(message).decode() == heard["plaintext"] == said["plaintext"]


def test_a_prekey_envelope_names_the_keys_of_the_agreement() -> None:
    talk, case = vector("double_ratchet.json"), vector("x3dh.json")["cases"][0]
    start, _message = agreement.read_prekey(raw(talk["said"][0]["body"]))
    assert start.identity_key == raw(case["a"]["identityKey"]) and start.ephemeral_key == raw(case["ephemeralPublic"])
    ids = case["signedPreKey"]["keyId"], case["kind"], case["otherPreKey"]["keyId"]
    assert (start.signed_id, start.kind, start.other_id) == ids
    assert [each["type"] for each in talk["said"]].count("prekey") == 3


def test_a_session_skips_so_many_messages_and_not_one_more() -> None:
    for missed, is_read in ((SKIP_MAX, True), (SKIP_MAX + 1, False)):
        ends = talkers(vector("double_ratchet.json"))
        messages = [ends["ann"].encrypt(b"x") for _ in range(missed + 1)]
        if is_read:
            assert ends["ben"].decrypt(messages[-1]) == b"x" and ends["ben"].decrypt(messages[0]) == b"x"
        else:
            with pytest.raises(Unreadable, match="bad-message"):
                ends["ben"].decrypt(messages[-1])


def test_the_oldest_kept_keys_go_first() -> None:
    ends = talkers(vector("double_ratchet.json"))
    messages = [ends["ann"].encrypt(b"x") for _ in range(KEPT_MAX + 4)]
    for number in (900, 1_800, KEPT_MAX + 3):
        ends["ben"].decrypt(messages[number])
    assert len(ends["ben"].skipped) == KEPT_MAX
    with pytest.raises(Unreadable, match="bad-message"):
        ends["ben"].decrypt(messages[0])
    with pytest.raises(Duplicate):
        ends["ben"].decrypt(messages[900])
    assert ends["ben"].decrypt(messages[1]) == b"x"


def test_a_chain_of_which_too_much_is_missing_is_left_behind() -> None:
    ends = talkers(vector("double_ratchet.json"))
    ann, ben = ends["ann"], ends["ben"]
    messages = [ann.encrypt(b"x") for _ in range(SKIP_MAX + 3)]
    ben.decrypt(messages[0])
    ann.decrypt(ben.encrypt(b"reply"))
    assert ben.decrypt(ann.encrypt(b"of the next chain")) == b"of the next chain"
    with pytest.raises(Unreadable, match="bad-message"):
        ben.decrypt(messages[1])
    with pytest.raises(Duplicate):
        ben.decrypt(messages[0])


def test_nobody_forges_an_answer_where_there_is_no_chain_yet() -> None:
    """The signed pre-key is public. A reader that takes it for a ratchet key has a chain key of which all is known."""
    talk = vector("double_ratchet.json")
    for each in talk["forged"]:
        with pytest.raises(Unreadable, match=each["fails"]):
            talkers(talk)[each["to"]].decrypt(agreement.read_message(raw(each["body"])))
    with pytest.raises(ValueError):
        talkers(talk)["ben"].encrypt(b"too early")


# --- sender keys ------------------------------------------------------------------------------------------------------


def received(said: Vector, letter: str = "letter") -> sender_keys.ReceivedKey:
    given = said[letter]
    key_id, chain_key, signature_key = (unb64(given[name]) for name in ("keyId", "chainKey", "signatureKey"))
    ids = said["conversationId"], said["senderId"], said["senderDeviceId"]
    return sender_keys.ReceivedKey(*ids, key_id, chain_key, signature_key, given["iteration"], given["iteration"])


def test_group_messages_are_read_in_every_order_and_each_once() -> None:
    said = vector("sender_key.json")
    for order in itertools.permutations(said["messages"]):
        key = received(said)
        for each in order:
            assert key.decrypt(raw(each["body"])).decode() == each["plaintext"]
        for each in order:
            with pytest.raises(Duplicate):
                key.decrypt(raw(each["body"]))


def test_group_messages_that_are_forged_or_misplaced_are_refused() -> None:
    said = vector("sender_key.json")
    key = received(said)
    for each in said["refused"]:
        with pytest.raises(Unreadable):
            key.decrypt(raw(each["body"]))
    assert key == received(said)


def test_a_newcomer_reads_nothing_from_before() -> None:
    said = vector("sender_key.json")
    newcomer = received(said, "later")
    for each in said["messages"]:
        with pytest.raises(Unreadable, match="bad-message"):
            newcomer.decrypt(raw(each["body"]))


def test_the_digest_of_devices_does_not_mind_their_order() -> None:
    said = vector("sender_key.json")
    for order in itertools.permutations(device(each) for each in said["devices"]):
        assert sender_keys.devices_digest(order) == said["devicesDigest"]


# --- letters and attachments ------------------------------------------------------------------------------------------


def test_letters_are_padded_to_blocks_and_come_out_again() -> None:
    said = vector("letters.json")
    for each in said["letters"]:
        padded = raw(each["padded"])
        assert letters.pad(each["text"].encode()) == padded and len(padded) % 160 == 0
        assert letters.unpad(padded).decode() == each["text"]
        assert letters.read(padded, said["conversationId"]) == json.loads(each["text"])
        assert letters.write(json.loads(each["text"])) == padded


def test_what_is_no_letter_is_refused_with_its_reason() -> None:
    said = vector("letters.json")
    for each in said["refused"]:
        with pytest.raises(Unreadable) as caught:
            letters.read(raw(each["padded"]), said["conversationId"])
        assert caught.value.reason == each["reason"], each["why"]


def test_files_of_every_length_are_encrypted_and_decrypted() -> None:
    for each in vector("attachment.json")["files"]:
        data, key = pattern(each["size"]), raw(each["key"])
        sealed = attachments.seal(key, data)
        assert (len(sealed), hashlib.sha256(sealed).hexdigest()) == (each["encryptedSize"], each["sha256"])
        assert attachments.unseal(key, sealed) == data


def test_a_file_that_is_not_whole_is_refused() -> None:
    said = vector("attachment.json")
    key, broken = raw(said["files"][-1]["key"]), broken_files()
    assert {each["why"]: each["sha256"] for each in said["broken"]} == {
        why: hashlib.sha256(data).hexdigest() for why, data in broken.items()
    }
    for data in broken.values():
        with pytest.raises(Unreadable):
            attachments.unseal(key, data)


# --- who is who -------------------------------------------------------------------------------------------------------


def test_certificates_are_by_the_account_for_that_device_and_that_key() -> None:
    said = vector("certificate.json")

    def is_good(each: Vector) -> bool:
        ids, key = (each["userId"], each["deviceId"]), raw(each["identityKey"])
        return rosters.is_certified(raw(each["accountKey"]), raw(each["certificate"]), *ids, key)

    assert all(is_good(each) for each in said["certificates"])
    assert [each["why"] for each in said["refused"] if is_good(each)] == []


def test_a_roster_follows_its_statements_and_refuses_the_others() -> None:
    said = vector("roster.json")
    roster = rosters.Roster(said["conversationId"], said["creatorId"])
    for each in said["chain"]:
        roster = roster.follow(each["statement"], unb64(each["signature"]))
        members = {user: {"role": one.role, "accountKey": one.account_key} for user, one in roster.members.items()}
        assert each["after"] == {"version": roster.version, "hash": roster.hash, "members": members}
    for each in said["refused"]:
        with pytest.raises(rosters.Refused) as caught:
            roster.follow(each["statement"], unb64(each["signature"]))
        assert caught.value.reason == each["reason"], each["why"]


def test_a_roster_begins_with_its_creator_as_owner() -> None:
    said = vector("roster.json")
    first = said["chain"][0]["statement"], unb64(said["chain"][0]["signature"])
    ben = next(user for user in said["chain"][0]["after"]["members"] if user != said["creatorId"])
    with pytest.raises(rosters.Refused, match="not-allowed"):
        rosters.Roster(said["conversationId"], ben).follow(*first)
    with pytest.raises(rosters.Refused, match="foreign"):
        rosters.Roster(said["creatorId"], said["creatorId"]).follow(*first)


def test_safety_numbers_are_the_same_on_both_sides_and_codes_are_scanned() -> None:
    said = vector("safety_number.json")
    for case in said["cases"]:
        ann, ben = (safety.hash_of_user(case[who]["userId"], raw(case[who]["key"])) for who in ("ann", "ben"))
        assert safety.safety_number(ann, ben) == safety.safety_number(ben, ann) == case["number"]
        ids = case["ann"]["userId"], case["ben"]["userId"]
        assert safety.is_turned_around(case["qrOfBen"], ids[0], ann, ids[1], ben)
        assert safety.is_turned_around(case["qrOfAnn"], ids[1], ben, ids[0], ann)
        assert not safety.is_turned_around(case["qrOfAnn"], ids[0], ann, ids[1], ben)
    assert not safety.is_turned_around(
        said["cases"][1]["qrOfBen"], ids[0], ann, ids[1], safety.hash_of_user(*bens_key())
    )
    assert safety.key_of_devices(map(raw, said["identityKeys"])).hex() == said["cases"][1]["ben"]["key"]


def bens_key() -> tuple[str, bytes]:
    ben = vector("safety_number.json")["cases"][0]["ben"]
    return ben["userId"], raw(ben["key"])


def test_a_linking_code_is_that_of_the_device() -> None:
    for each in vector("safety_number.json")["linkingCodes"]:
        ids, chosen = (each["userId"], each["deviceId"]), raw(each["secret"])
        assert safety.linking_code(*ids, raw(each["identityKey"]), chosen) == each["code"]
        assert safety.is_code_of(each["code"].lower(), *ids, raw(each["identityKey"]))
        assert not safety.is_code_of(each["code"], *ids, raw(each["accountKey"]))
        assert uncrockford(each["code"])[:5] == chosen
        assert safety.link_proof(chosen, *ids, raw(each["accountKey"])) == raw(each["proof"])


# --- archives ---------------------------------------------------------------------------------------------------------


def test_a_recovery_key_is_read_as_people_type_it_and_mistakes_are_seen() -> None:
    said = vector("archive.json")
    assert archives.recovery_key(raw(said["entropy"])) == said["recoveryKey"]
    for typed in (said["recoveryKey"], *said["alsoTyped"]):
        assert archives.backup_key(archives.entropy_of(typed), said["userId"]) == raw(said["backupKey"])
    for typed in said["mistyped"]:
        with pytest.raises(ValueError):
            archives.entropy_of(typed)


def test_chunks_of_an_archive_open_in_their_place_alone() -> None:
    said = vector("archive.json")
    key, user_id, archive_id = raw(said["backupKey"]), said["userId"], said["archiveId"]
    for each in said["chunks"]:
        packed = archives.unseal(key, raw(each["chunk"]), archives.chunk_ad(user_id, archive_id, each["number"]))
        assert archives.unpack(packed) == [json.loads(line) for line in each["text"].splitlines()]
        for place in ((user_id, archive_id, each["number"] + 1), (archive_id, user_id, each["number"])):
            with pytest.raises(Unreadable):
                archives.unseal(key, raw(each["chunk"]), archives.chunk_ad(*place))
    chunks = [raw(each["chunk"]) for each in said["chunks"]]
    assert [archives.running(chunks[1 : count + 1]).hex() for count in range(3)] == said["digests"]
    assert unb64(json.loads(said["chunks"][0]["text"])["digest"]) == archives.running(chunks[1:])
    assert archives.running(reversed(chunks[1:])) != archives.running(chunks[1:])
    rows = [{"text": "ahoj"}, {"text": "a\nb"}]
    assert archives.unpack(archives.pack(rows)) == rows
    with pytest.raises(Unreadable):
        archives.unpack(archives.pack(rows)[:-1])
