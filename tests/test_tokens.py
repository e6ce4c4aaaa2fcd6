"""Access tokens: what is in them, what is refused, and that rolling keys signs nobody out."""

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from config.settings import Settings
from gearlink import tokens as tokens_module
from gearlink.clock import new_id
from gearlink.errors import Refusal
from gearlink.tokens import Tokens
from storage.records import SigningKey
from storage.store import StoreFull
from tests.fakes import FakeClock, FakeStore

USER, DEVICE, SESSION = new_id(), new_id(), new_id()


async def opened(store: FakeStore, clock: FakeClock, settings: Settings | None = None) -> Tokens:
    tokens = Tokens(store, clock, settings or Settings())
    await tokens.ready()
    return tokens


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
async def tokens(store: FakeStore, clock: FakeClock) -> Tokens:
    return await opened(store, clock)


def refused(tokens: Tokens, token: str) -> bool:
    try:
        tokens.verify(token)
    except Refusal as refusal:
        assert refusal.code == "not-authenticated"
        assert token not in refusal.detail or not token
        return True
    return False


def signing_key(store: FakeStore) -> tuple[str, Ed25519PrivateKey]:
    newest = max(store.all(SigningKey), key=lambda key: key.created_at)
    return newest.kid, Ed25519PrivateKey.from_private_bytes(newest.private_key)


def forged(store: FakeStore, clock: FakeClock, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token signed with the right key whose claims differ; a claim of None is left out."""
    kid, private = signing_key(store)
    now = clock.now() // 1000
    whole = {
        "iss": "gearlink", "aud": "gearlink-app", "sub": USER, "deviceId": DEVICE, "sid": SESSION, "jti": new_id(),
        "iat": now, "exp": now + 900,
    } | claims  # fmt: skip
    kept = {name: value for name, value in whole.items() if value is not None}
    return jwt.encode(kept, private, algorithm="EdDSA", headers={"kid": kid} | (headers or {}))


def part(value: bytes | dict[str, Any]) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def test_a_token_says_exactly_what_the_contract_lists(tokens: Tokens, clock: FakeClock) -> None:
    token = tokens.issue(USER, DEVICE, SESSION)
    claims = jwt.decode(token, options={"verify_signature": False})
    now = clock.now() // 1000
    jti = claims.pop("jti")
    assert claims == {
        "sub": USER, "deviceId": DEVICE, "sid": SESSION, "iat": now, "exp": now + 900,
        "iss": "gearlink", "aud": "gearlink-app",
    }  # fmt: skip
    assert jti != jwt.decode(tokens.issue(USER, DEVICE, SESSION), options={"verify_signature": False})["jti"]
    header = jwt.get_unverified_header(token)
    assert header == {"alg": "EdDSA", "typ": "JWT", "kid": tokens.jwks().keys[0].kid}


async def test_a_fresh_token_is_accepted_and_tells_who_it_is(tokens: Tokens, clock: FakeClock) -> None:
    for _ in range(2):  # from its signature, then from memory
        claims = tokens.verify(tokens.issue(USER, DEVICE, SESSION))
        assert (claims.user_id, claims.device_id, claims.session_id) == (USER, DEVICE, SESSION)
        assert claims.expires_at == clock.now() + 900_000


async def test_a_token_ends_with_its_minutes_even_when_it_was_accepted_before(tokens: Tokens, clock: FakeClock) -> None:
    token = tokens.issue(USER, DEVICE, SESSION)
    tokens.verify(token)
    clock.advance(seconds=899)
    tokens.verify(token)
    clock.advance(seconds=1)
    assert refused(tokens, token)
    assert refused(tokens, token)


async def test_a_clock_set_back_a_little_refuses_nobody_and_set_back_far_does(tokens: Tokens, clock: FakeClock) -> None:
    token = tokens.issue(USER, DEVICE, SESSION)
    clock.advance(seconds=-60)
    tokens.verify(token)
    clock.advance(seconds=-2)
    assert refused(tokens, token)


async def test_a_clock_set_back_far_refuses_a_token_seen_for_the_first_time(tokens: Tokens, clock: FakeClock) -> None:
    token = tokens.issue(USER, DEVICE, SESSION)
    clock.advance(minutes=-30)
    assert refused(tokens, token)


async def test_a_token_without_a_signature_is_refused(tokens: Tokens) -> None:
    _head, payload, _signature = tokens.issue(USER, DEVICE, SESSION).split(".")
    kid = tokens.jwks().keys[0].kid
    for algorithm in ("none", "None", "NONE"):
        head = part({"alg": algorithm, "typ": "JWT", "kid": kid})
        assert refused(tokens, f"{head}.{payload}.")
        assert refused(tokens, f"{head}.{payload}.{_signature}")


async def test_the_public_key_is_no_hmac_secret(tokens: Tokens) -> None:
    """The classic confusion: HS256 'signed' with what everybody can read from the JWKS."""
    _head, payload, _signature = tokens.issue(USER, DEVICE, SESSION).split(".")
    key = tokens.jwks().keys[0]
    raw = base64.urlsafe_b64decode(key.x + "=")
    for secret in (raw, key.x.encode(), key.kid.encode()):
        head = part({"alg": "HS256", "typ": "JWT", "kid": key.kid})
        mac = hmac.digest(secret, f"{head}.{payload}".encode(), hashlib.sha256)
        assert refused(tokens, f"{head}.{payload}.{part(mac)}")


async def test_a_foreign_key_with_our_kid_and_our_key_with_a_foreign_kid_are_refused(
    tokens: Tokens, store: FakeStore, clock: FakeClock
) -> None:
    token = tokens.issue(USER, DEVICE, SESSION)
    payload = jwt.decode(token, options={"verify_signature": False})
    kid = tokens.jwks().keys[0].kid
    foreign = Ed25519PrivateKey.generate()
    assert refused(tokens, jwt.encode(payload, foreign, algorithm="EdDSA", headers={"kid": kid}))
    assert refused(tokens, forged(store, clock, headers={"kid": "somebody-elses"}))
    _kid, private = signing_key(store)
    assert refused(tokens, jwt.encode(payload, private, algorithm="EdDSA"))
    assert not refused(tokens, forged(store, clock))


@pytest.mark.parametrize(
    "claims",
    [
        *({name: None} for name in ("sub", "deviceId", "sid", "jti", "iat", "exp", "iss", "aud")),
        {"iss": "other"},
        {"aud": "other"},
        {"aud": ["gearlink-app", "other"]},
        {"sub": "not-an-id"},
        {"sub": 7},
        {"exp": "soon"},
        {"iat": 1.5},
        {"sid": ""},
    ],
    ids=str,
)
async def test_claims_that_are_missing_or_other_are_refused(
    claims: dict[str, Any], tokens: Tokens, store: FakeStore, clock: FakeClock
) -> None:
    assert refused(tokens, forged(store, clock, **claims))


async def test_an_oversized_token_is_refused_unread(tokens: Tokens, store: FakeStore, clock: FakeClock) -> None:
    assert refused(tokens, forged(store, clock, padding="x" * 4096))


@pytest.mark.parametrize(
    "token", ["", ".", "..", "...", "a.b.c", "é.é.é", "\ud800", "eyJhbGciOiJFZERTQSJ9..", part(b"[" * 2900) + ".e30."]
)
async def test_garbage_is_refused_like_everything_else(token: str, tokens: Tokens) -> None:
    assert refused(tokens, token)


@given(data=st.data())
async def test_a_token_changed_in_any_place_is_refused(data: st.DataObject) -> None:
    tokens = await opened(FakeStore(), FakeClock())
    token = tokens.issue(USER, DEVICE, SESSION)
    at = data.draw(st.integers(0, len(token) - 2))  # the last letter of base64 has bits that mean nothing
    letter = data.draw(st.characters(max_codepoint=0x17F).filter(lambda letter: letter != token[at]))
    assert refused(tokens, token[:at] + letter + token[at + 1 :])


async def test_what_is_remembered_is_bounded(
    tokens: Tokens, store: FakeStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "_VERIFIED_MAX", 3)
    many = [tokens.issue(USER, DEVICE, SESSION) for _ in range(6)]
    for token in many:
        tokens.verify(many[0])
        tokens.verify(token)
    assert len(tokens._verified) == 3
    for token in many[1:4]:
        tokens.verify(token)
    with monkeypatch.context() as patch:
        patch.setattr(jwt, "decode", None)
        for token in many[1:4]:  # the last three that were used
            tokens.verify(token)
        with pytest.raises(TypeError):
            tokens.verify(many[5])


async def test_a_token_in_use_is_not_the_one_that_is_forgotten(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "_VERIFIED_MAX", 3)
    busy = tokens.issue(USER, DEVICE, SESSION)
    for _ in range(6):
        tokens.verify(busy)
        tokens.verify(tokens.issue(USER, DEVICE, SESSION))
    monkeypatch.setattr(jwt, "decode", None)
    tokens.verify(busy)


async def test_a_second_look_at_a_token_costs_no_signature(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tokens.issue(USER, DEVICE, SESSION)
    tokens.verify(token)
    monkeypatch.setattr(jwt, "decode", None)
    tokens.verify(token)


async def test_only_one_key_is_made_and_a_restart_keeps_it(store: FakeStore, clock: FakeClock) -> None:
    before = await opened(store, clock)
    token = before.issue(USER, DEVICE, SESSION)
    after = await opened(store, clock)
    assert after.verify(token) == before.verify(token)
    assert after.jwks() == before.jwks()
    assert len(store.all(SigningKey)) == 1


async def test_the_jwks_verifies_tokens_without_us(tokens: Tokens, clock: FakeClock) -> None:
    (key,) = tokens.jwks().keys
    assert (key.kty, key.crv, key.alg, key.use) == ("OKP", "Ed25519", "EdDSA", "sig")
    public = jwt.PyJWK({"kty": key.kty, "crv": key.crv, "x": key.x, "alg": key.alg}).key
    assert isinstance(public, Ed25519PublicKey)
    token = tokens.issue(USER, DEVICE, SESSION)
    assert jwt.decode(token, public, algorithms=["EdDSA"], audience="gearlink-app", options={"verify_exp": False})


async def test_private_keys_are_not_in_the_jwks(tokens: Tokens, store: FakeStore) -> None:
    private = store.all(SigningKey)[0].private_key
    assert part(private) not in str(tokens.jwks())


async def test_a_key_is_replaced_after_its_days_and_nobody_is_signed_out(store: FakeStore, clock: FakeClock) -> None:
    tokens = await opened(store, clock)
    first = tokens.jwks().keys[0].kid
    clock.advance(days=90, seconds=-1)
    await tokens.ready()
    assert [key.kid for key in tokens.jwks().keys] == [first]
    old = tokens.issue(USER, DEVICE, SESSION)
    clock.advance(seconds=2)
    await tokens.ready()
    new = tokens.issue(USER, DEVICE, SESSION)
    assert jwt.get_unverified_header(old)["kid"] == first != jwt.get_unverified_header(new)["kid"]
    assert len(tokens.jwks().keys) == 2
    clock.advance(seconds=890)
    tokens.verify(old)
    tokens.verify(new)


async def test_a_replaced_key_leaves_the_ring_once_its_last_token_ran_out(store: FakeStore, clock: FakeClock) -> None:
    tokens = await opened(store, clock)
    first = tokens.jwks().keys[0].kid
    await tokens.roll()
    assert first in {key.kid for key in tokens.jwks().keys}
    clock.advance(minutes=15 + 60)
    assert first not in {key.kid for key in tokens.jwks().keys}
    stored = {key.kid: key for key in store.all(SigningKey)}
    assert stored[first].expires_at == clock.now(), "upkeep may delete it now"


async def test_a_key_that_ran_out_signs_nothing_that_is_taken(store: FakeStore, clock: FakeClock) -> None:
    tokens = await opened(store, clock)
    far = forged(store, clock, exp=clock.now() // 1000 + 400 * 86_400)
    await tokens.roll()
    clock.advance(minutes=15 + 60)
    assert refused(tokens, far)


async def test_swept_keys_are_those_that_ran_out(store: FakeStore, clock: FakeClock) -> None:
    tokens = await opened(store, clock)
    await tokens.roll()
    assert await store.sweep(SigningKey, clock.now()) == 0
    clock.advance(minutes=15 + 60)
    assert await store.sweep(SigningKey, clock.now()) == 1
    assert [key.kid for key in store.all(SigningKey)] == [key.kid for key in tokens.jwks().keys]


async def test_an_operator_can_roll_at_any_time(store: FakeStore, clock: FakeClock) -> None:
    tokens = await opened(store, clock)
    old = tokens.issue(USER, DEVICE, SESSION)
    for _ in range(3):
        await tokens.roll()
    assert len(tokens.jwks().keys) == 4
    assert jwt.get_unverified_header(tokens.issue(USER, DEVICE, SESSION))["kid"] == tokens.jwks().keys[-1].kid
    tokens.verify(old)
    (await opened(store, clock)).verify(old)


async def test_after_a_roll_with_the_clock_set_back_the_newest_key_signs(store: FakeStore, clock: FakeClock) -> None:
    tokens = await opened(store, clock)
    clock.advance(minutes=-30)
    await tokens.roll()
    again = await opened(store, clock)
    signers = {jwt.get_unverified_header(ring.issue(USER, DEVICE, SESSION))["kid"] for ring in (tokens, again)}
    assert signers == {tokens.jwks().keys[-1].kid}


async def test_a_key_made_under_a_clock_far_ahead_does_not_live_for_years(store: FakeStore, clock: FakeClock) -> None:
    clock.advance(days=3650)
    await opened(store, clock)
    clock.advance(days=-3650)
    tokens = await opened(store, clock)
    tokens.verify(tokens.issue(USER, DEVICE, SESSION))
    assert max(key.expires_at for key in store.all(SigningKey)) < clock.now() + 92 * 86_400_000


async def test_longer_tokens_get_a_key_that_outlives_them(store: FakeStore, clock: FakeClock) -> None:
    await opened(store, clock)
    clock.advance(days=89, minutes=1430)
    settings = replace(Settings(), auth=replace(Settings().auth, access_token_minutes=1440))
    tokens = await opened(store, clock, settings)
    token = tokens.issue(USER, DEVICE, SESSION)
    clock.advance(minutes=1439)
    await tokens.ready()
    tokens.verify(token)


async def test_a_roll_that_could_not_be_stored_changes_nothing(store: FakeStore, clock: FakeClock) -> None:
    tokens = await opened(store, clock)
    ring = tokens.jwks()
    store.fail_next = StoreFull("the disk is full")
    with pytest.raises(StoreFull):
        await tokens.roll()
    assert tokens.jwks() == ring
    tokens.verify(tokens.issue(USER, DEVICE, SESSION))
