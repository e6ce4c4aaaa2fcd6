"""Rosters: who may say what about the members of a group, and that nobody else can, nor bend what was said.

People here hold real keys; a forger is somebody who holds other keys, or changes what was signed.
"""

import hashlib
import json
import tracemalloc
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from config.limits import E2EE_MEMBERS_MAX, ROSTER_STATEMENT_BYTES_MAX
from gearlink.sdk.e2ee.certificates import account_public, certify, sign
from gearlink.sdk.e2ee.encoding import to_base64url
from gearlink.sdk.e2ee.records import Own, RosterState
from gearlink.sdk.e2ee.rosters import BadStatement, Change, follow, make_statement

GROUP = "0198cccc-0000-7000-8000-000000000001"
OTHER_GROUP = "0198cccc-0000-7000-8000-000000000002"
AT = "2026-01-31T12:00:00.000Z"


def person(number: int) -> Own:
    user_id = f"0198aaaa-0000-7000-8000-{number:012x}"
    device_id = f"0198bbbb-0000-7000-8000-{number:012x}"
    account = hashlib.sha256(b"account %d" % number).digest()
    identity = hashlib.sha256(b"identity %d" % number).digest()
    certificate = certify(account, user_id, device_id, account_public(identity))
    return Own("own", user_id, device_id, identity, 0, account_seed=account, certificate=certificate)


ANNA, BERT, CLEO, DORA, EMIL = (person(number) for number in range(1, 6))


def key_of(own: Own) -> bytes:
    return account_public(own.account_seed)


def put(own: Own, role: Any = "member") -> Change:
    return Change(own.user_id, role, key_of(own))


def out(own: Own) -> Change:
    return Change(own.user_id, None)


@dataclass
class Chain:
    """A roster as somebody follows it who believes only what `follow` believes."""

    state: RosterState | None = None

    def says(self, own: Own, *changes: Change) -> RosterState:
        text, signature = make_statement(self.state, GROUP, AT, own, changes)
        self.state = follow(self.state, GROUP, ANNA.user_id, text, signature)
        return self.state

    def roles(self) -> dict[str, str]:
        assert self.state is not None
        return {user_id: role for user_id, role, _ in self.state.members}


def group() -> Chain:
    """Anna owns it, Bert is its admin, Cleo and Dora are members."""
    chain = Chain()
    chain.says(ANNA, put(ANNA, "owner"), put(BERT, "admin"), put(CLEO), put(DORA))
    return chain


def reason_of(state: RosterState | None, text: str, signature: bytes, creator: Own = ANNA) -> str:
    with pytest.raises(BadStatement) as caught:
        follow(state, GROUP, creator.user_id, text, signature)
    return caught.value.reason


def spoken(own: Own, state: RosterState | None, changes: list[dict[str, Any]], **instead: Any) -> tuple[str, bytes]:
    """A statement that no rule was asked about, as a forger writes it; `instead` replaces keys of it."""
    signer = {
        "userId": own.user_id,
        "deviceId": own.device_id,
        "identityKey": to_base64url(account_public(own.identity_seed)),
        "accountKey": to_base64url(key_of(own)),
        "certificate": to_base64url(own.certificate),
    }
    statement = {
        "conversationId": GROUP,
        "version": state.version + 1 if state else 1,
        "previous": to_base64url(state.hash) if state else None,
        "at": AT,
        "signer": signer | instead.pop("signer", {}),
        "changes": changes,
    }
    return signed(own, json.dumps(statement | instead))


def signed(own: Own, text: str) -> tuple[str, bytes]:
    return text, sign(own.identity_seed, b"GearLink roster v1" + text.encode())


def form(own: Own, role: str | None = "member") -> dict[str, Any]:
    key = {"accountKey": to_base64url(key_of(own))} if role else {}
    return {"userId": own.user_id, "role": role} | key


# --- what counts ------------------------------------------------------------------------------------------------------


def test_a_roster_is_what_its_statements_say_one_after_another() -> None:
    chain = group()
    chain.says(BERT, out(CLEO), put(EMIL))
    chain.says(ANNA, put(DORA, "admin"), Change(CLEO.user_id, "member"))
    state = chain.says(DORA, out(EMIL))
    assert state.version == 4
    assert state.members == (
        (ANNA.user_id, "owner", key_of(ANNA)),
        (BERT.user_id, "admin", key_of(BERT)),
        (CLEO.user_id, "member", b""),
        (DORA.user_id, "admin", key_of(DORA)),
    )


def test_a_statement_is_signed_text_that_names_the_hash_of_the_one_before() -> None:
    first, _ = make_statement(None, GROUP, AT, ANNA, [put(ANNA, "owner")])
    state = follow(None, GROUP, ANNA.user_id, *signed(ANNA, first))
    text, signature = make_statement(state, GROUP, AT, ANNA, [Change(CLEO.user_id, "member"), out(DORA)])
    assert signature == Ed25519PrivateKey.from_private_bytes(ANNA.identity_seed).sign(
        b"GearLink roster v1" + text.encode()
    )
    assert json.loads(text) == {
        "conversationId": GROUP,
        "version": 2,
        "previous": to_base64url(hashlib.sha256(first.encode()).digest()),
        "at": AT,
        "signer": {
            "userId": ANNA.user_id,
            "deviceId": ANNA.device_id,
            "identityKey": to_base64url(account_public(ANNA.identity_seed)),
            "accountKey": to_base64url(key_of(ANNA)),
            "certificate": to_base64url(ANNA.certificate),
        },
        "changes": [{"userId": CLEO.user_id, "role": "member"}, {"userId": DORA.user_id, "role": None}],
    }


def test_another_layout_of_the_same_statement_is_another_statement() -> None:
    # What an implementation sends that indents, or orders keys differently: its own text is signed and hashed.
    text, signature = spoken(ANNA, None, [form(ANNA, "owner")])
    indented = json.dumps(json.loads(text), indent=2, sort_keys=True)
    assert reason_of(None, indented, signature) == "bad-signature"
    state = follow(None, GROUP, ANNA.user_id, *signed(ANNA, indented))
    assert state.hash == hashlib.sha256(indented.encode()).digest()


def test_the_largest_group_fits_into_one_statement_and_nobody_beyond() -> None:
    others = [Change(f"0198aaaa-0000-7000-8001-{n:012x}", "member", key_of(BERT)) for n in range(E2EE_MEMBERS_MAX)]
    chain = Chain()
    state = chain.says(ANNA, put(ANNA, "owner"), *others[1:])
    assert len(state.members) == E2EE_MEMBERS_MAX
    with pytest.raises(BadStatement, match="too-many"):
        chain.says(ANNA, others[0])
    chain.says(ANNA, Change(others[1].user_id, None), others[0])


# --- who may say what -------------------------------------------------------------------------------------------------

ROLES: tuple[str | None, ...] = ("owner", "admin", "member", None)


@pytest.mark.parametrize("signer", [ANNA, BERT, CLEO, EMIL], ids=["owner", "admin", "member", "stranger"])
@pytest.mark.parametrize("before", ROLES)
@pytest.mark.parametrize("after", ROLES)
def test_admins_change_members_and_owners_everybody(signer: Own, before: str | None, after: str | None) -> None:
    chain = group()
    target = person(9)
    if before:
        chain.says(ANNA, put(target, before))
    may = signer is ANNA or (signer is BERT and {before, after} <= {"member", None})
    text, signature = spoken(signer, chain.state, [form(target, after)])
    if may:
        chain.state = follow(chain.state, GROUP, ANNA.user_id, text, signature)
        assert chain.roles().get(target.user_id) == after
    else:
        assert reason_of(chain.state, text, signature) == "not-allowed"


def test_one_change_that_is_not_allowed_undoes_those_beside_it() -> None:
    chain = group()
    assert reason_of(chain.state, *spoken(BERT, chain.state, [form(EMIL), form(ANNA, None)])) == "not-allowed"


def test_nobody_makes_themselves_more_in_the_statement_that_they_sign() -> None:
    chain = group()
    for own in (BERT, CLEO, EMIL):
        assert reason_of(chain.state, *spoken(own, chain.state, [form(own, "owner")])) == "not-allowed"


def test_the_first_statement_is_the_creators_and_names_them_owner_with_their_key() -> None:
    for own, changes in (
        (BERT, [form(BERT, "owner")]),
        (BERT, [form(ANNA, "owner"), form(BERT, "admin")]),
        (ANNA, [form(BERT, "owner")]),
        (ANNA, [form(ANNA, "admin"), form(BERT, "owner")]),
        (ANNA, [{"userId": ANNA.user_id, "role": "owner"}]),
        (ANNA, [form(ANNA, "owner") | {"accountKey": to_base64url(key_of(BERT))}]),
    ):
        assert reason_of(None, *spoken(own, None, changes)) == "not-allowed"


def test_a_group_is_handed_over_but_never_left_without_an_owner_who_can_sign() -> None:
    chain = group()
    for last in (
        [form(ANNA, None)],
        [form(ANNA, "member")],
        [form(ANNA, None), {"userId": CLEO.user_id, "role": "owner"}],
    ):
        assert reason_of(chain.state, *spoken(ANNA, chain.state, last)) == "no-owner"
    chain.says(ANNA, out(ANNA), put(BERT, "owner"))
    assert reason_of(chain.state, *spoken(ANNA, chain.state, [form(EMIL)])) == "not-allowed"
    chain.says(BERT, put(EMIL, "admin"))


def test_who_got_another_account_key_signs_again_after_somebody_vouched_for_it() -> None:
    chain = group()
    fresh = structs.replace(person(77), user_id=BERT.user_id, device_id=BERT.device_id)
    identity_key = account_public(fresh.identity_seed)
    fresh = structs.replace(
        fresh, certificate=certify(fresh.account_seed, fresh.user_id, fresh.device_id, identity_key)
    )
    assert reason_of(chain.state, *spoken(fresh, chain.state, [form(EMIL)])) == "changed-identity"
    chain.says(ANNA, put(fresh, "admin"))
    assert reason_of(chain.state, *spoken(BERT, chain.state, [form(EMIL)])) == "changed-identity"
    chain.says(fresh, put(EMIL))


def test_whom_the_roster_has_without_an_account_key_signs_nothing() -> None:
    # Nothing would tie the signature to them: the server could make up a device and sign.
    chain = group()
    chain.says(ANNA, Change(EMIL.user_id, "admin"))
    assert reason_of(chain.state, *spoken(EMIL, chain.state, [form(CLEO, None)])) == "changed-identity"
    bare = json.loads(spoken(EMIL, chain.state, [form(CLEO, None)])[0])
    del bare["signer"]["accountKey"], bare["signer"]["certificate"]
    assert reason_of(chain.state, *signed(EMIL, json.dumps(bare))) == "unreadable"


# --- forgers ----------------------------------------------------------------------------------------------------------


def test_a_device_that_the_account_key_did_not_certify_signs_nothing() -> None:
    chain = group()
    ghost = structs.replace(ANNA, identity_seed=EMIL.identity_seed)  # Anna's certificate, another key
    assert reason_of(chain.state, *spoken(ghost, chain.state, [form(EMIL)])) == "bad-certificate"
    stranger = structs.replace(EMIL, user_id=ANNA.user_id)  # certified, as somebody else's
    assert reason_of(chain.state, *spoken(stranger, chain.state, [form(EMIL)])) == "bad-certificate"


def test_a_signature_is_of_the_device_that_the_statement_names() -> None:
    chain = group()
    text, _ = spoken(ANNA, chain.state, [form(EMIL)])
    assert reason_of(chain.state, *signed(EMIL, text)) == "bad-signature"
    untitled = sign(ANNA.identity_seed, text.encode())
    assert reason_of(chain.state, text, untitled) == "bad-signature"


def test_a_statement_stands_in_one_place_of_one_group() -> None:
    chain = group()
    first = chain.state
    assert first is not None
    text, signature = make_statement(first, GROUP, AT, ANNA, [put(EMIL)])
    with pytest.raises(BadStatement, match="foreign"):
        follow(structs.replace(first, conversation_id=OTHER_GROUP), OTHER_GROUP, ANNA.user_id, text, signature)
    second = follow(first, GROUP, ANNA.user_id, text, signature)
    assert reason_of(second, text, signature) == "not-next"  # a replay
    assert reason_of(None, text, signature) == "not-next"  # the beginning withheld
    chain.state = second
    chain.says(ANNA, out(EMIL))
    assert reason_of(chain.state, text, signature) == "not-next"  # let in again by an old signature
    aside = spoken(ANNA, second, [form(EMIL)], previous=to_base64url(first.hash))
    assert reason_of(second, *aside) == "not-next"
    again = spoken(ANNA, second, [form(EMIL)], version=1, previous=None)
    assert reason_of(second, *again) == "not-next"


TEXT, SIGNATURE = make_statement(group().state, GROUP, AT, ANNA, [put(EMIL), out(CLEO)])
STATE = group().state


@given(st.integers(0, len(TEXT) * 8 - 1))
def test_no_bit_of_a_statement_can_be_another(at: int) -> None:
    raw = bytearray(TEXT.encode())
    raw[at // 8] ^= 1 << at % 8
    text = raw.decode(errors="surrogateescape")
    assert reason_of(STATE, text, SIGNATURE) in ("unreadable", "foreign", "not-next", "bad-signature")


@given(st.integers(0, 511))
def test_no_bit_of_a_signature_can_be_another(at: int) -> None:
    raw = bytearray(SIGNATURE)
    raw[at // 8] ^= 1 << at % 8
    assert reason_of(STATE, TEXT, bytes(raw)) == "bad-signature"


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_of_another_length_is_none(length: int) -> None:
    assert reason_of(STATE, TEXT, bytes(length)) == "bad-signature"


@given(st.text(max_size=200))
def test_any_text_is_refused_in_the_one_way(text: str) -> None:
    assert reason_of(STATE, text, SIGNATURE) == "unreadable"


def unreadable_texts() -> dict[str, str]:
    """What Anna's device might sign by a fault of its own, or to split readers from one another."""

    def with_changes(*changes: dict[str, Any]) -> str:
        return spoken(ANNA, STATE, list(changes))[0]

    text = TEXT
    return {
        "nothing": "",
        "nested": "[" * 100_000,
        "nested inside": text.replace('"changes":[', '"changes":[' + "[" * 5000),
        "a surrogate": text[:-1] + "\ud800",
        "too large": text + " " * ROSTER_STATEMENT_BYTES_MAX,
        "an unknown key": text[:-1] + ',"kind":1}',
        "a key twice": text[:-1] + ',"version":2}',
        "a role twice": text.replace('"role":"member"', '"role":"member","role":"admin"'),
        "a user twice": with_changes(form(EMIL), form(EMIL, None)),
        "no changes": with_changes(),
        "another role": with_changes(form(EMIL, "moderator")),
        "out with a key": with_changes(form(EMIL) | {"role": None}),
        "a key of small order": with_changes(form(EMIL) | {"accountKey": to_base64url((1).to_bytes(32, "little"))}),
        "a key too short": with_changes(form(EMIL) | {"accountKey": to_base64url(bytes(31))}),
        "a key that is not canonical": with_changes(form(EMIL) | {"accountKey": "_" * 43}),
        "an id in capitals": with_changes(form(EMIL) | {"userId": EMIL.user_id.upper()}),
        "a version of none": text.replace('"version":2', '"version":2.0'),
        "another time": text.replace(AT, "yesterday"),
        "a hash in another form": text.replace('"previous":"', '"previous":"='),
    }


@pytest.mark.parametrize("what", unreadable_texts())
def test_what_readers_could_understand_differently_is_unreadable_however_well_signed(what: str) -> None:
    text = unreadable_texts()[what]
    signature = SIGNATURE if "surrogate" in what else signed(ANNA, text)[1]
    assert reason_of(STATE, text, signature) == "unreadable"


def test_a_text_of_any_size_costs_no_more_than_one_that_is_allowed() -> None:
    text = '{"changes":[' + '{"userId":"x"},' * 2_000_000
    tracemalloc.start()
    assert reason_of(STATE, text, SIGNATURE) == "unreadable"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < ROSTER_STATEMENT_BYTES_MAX


def test_a_refusal_tells_nothing_but_its_reason() -> None:
    with pytest.raises(BadStatement) as caught:
        follow(STATE, GROUP, ANNA.user_id, '{"changes": "secret-word"}', SIGNATURE)
    assert str(caught.value) == "unreadable" and caught.value.__cause__ is None


# --- making them ------------------------------------------------------------------------------------------------------


def test_a_device_makes_no_statement_that_it_would_not_follow_itself() -> None:
    chain = group()
    for own, change, reason in (
        (BERT, put(EMIL, "admin"), "not-allowed"),
        (ANNA, out(ANNA), "no-owner"),
        (structs.replace(ANNA, account_seed=b""), put(EMIL), "bad-certificate"),
        (structs.replace(ANNA, certificate=b""), put(EMIL), "bad-certificate"),
        (structs.replace(ANNA, certificate=BERT.certificate), put(EMIL), "bad-certificate"),
        (ANNA, replace(put(EMIL), account_key=bytes(32)), "unreadable"),
    ):
        with pytest.raises(BadStatement, match=reason):
            make_statement(chain.state, GROUP, AT, own, [change])


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(range(5)), st.sampled_from(range(5)), st.sampled_from(ROLES)), max_size=12))
def test_every_reader_ends_with_the_same_roster_and_it_always_has_an_owner(steps: list[tuple[int, int, Any]]) -> None:
    people = (ANNA, BERT, CLEO, DORA, EMIL)
    chain = group()
    said = [make_statement(None, GROUP, AT, ANNA, [put(ANNA, "owner"), put(BERT, "admin"), put(CLEO), put(DORA)])]
    for signer, target, role in steps:
        change = put(people[target], role) if role else out(people[target])
        try:
            statement = make_statement(chain.state, GROUP, AT, people[signer], [change])
        except BadStatement:
            continue
        said.append(statement)
        chain.state = follow(chain.state, GROUP, ANNA.user_id, *statement)
        assert "owner" in chain.roles().values()
    read: RosterState | None = None
    for text, signature in said:
        read = follow(read, GROUP, ANNA.user_id, text, signature)
    assert read == chain.state
