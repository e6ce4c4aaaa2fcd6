"""Access tokens, and the ring of Ed25519 keys that sign them.

Tokens are JWTs (RFC 7519) signed with EdDSA (RFC 8037). The newest key signs; a key that was replaced verifies until
the last token that it signed has run out, so rolling keys signs nobody out. A token is refused unless everything about
it is as this module writes it. What was verified once is remembered, by a hash, because checking a signature costs more
than the rest of a request; its times are looked at on each use. Whether the session has ended since, it does not know.
"""

import hashlib
from base64 import urlsafe_b64encode
from collections import OrderedDict
from dataclasses import dataclass
from secrets import token_hex
from typing import Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from config import limits
from config.settings import Settings
from gearlink import journal
from gearlink.calls import Jwk, Jwks
from gearlink.clock import DAY, Clock, Milliseconds, new_id
from gearlink.errors import NOT_AUTHENTICATED, Refusal
from gearlink.protocol import AUDIENCE, ISSUER
from gearlink.views import Id
from storage.records import SigningKey
from storage.store import Store, Transaction

ALGORITHM: Final = "EdDSA"
_MINUTE: Final = 60_000
_LEEWAY: Final = _MINUTE  # how far in the future a token may have been issued: the wall clock may be set back
_SPARE: Final = 60 * _MINUTE  # a key outlives its last token by this much, so that no check falls between the two
_VERIFIED_MAX: Final = 16_384
_KEYS_MAX: Final = 1000
_log = journal.logger("tokens")


class _Payload(msgspec.Struct, rename="camel"):
    """The claims that must be there, and their types; `iss` and `aud` are checked before."""

    sub: Id
    device_id: Id
    sid: Id
    jti: str
    iat: int
    exp: int


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid token says."""

    user_id: str
    device_id: str
    session_id: str
    issued_at: Milliseconds
    expires_at: Milliseconds


@dataclass(frozen=True, slots=True)
class _Key:
    kid: str
    private: Ed25519PrivateKey
    public: Ed25519PublicKey
    expires_at: Milliseconds


class Tokens:
    """Issues and verifies access tokens. `ready` has to be awaited once before anything else."""

    def __init__(self, store: Store, clock: Clock, settings: Settings) -> None:
        self._store, self._clock = store, clock
        self._ttl = settings.auth.access_token_minutes * _MINUTE
        self._key_life = settings.auth.signing_key_days * DAY + self._ttl + _SPARE
        self._ring: dict[str, _Key] = {}
        self._signer: _Key | None = None
        self._verified: OrderedDict[bytes, Claims] = OrderedDict()  # by SHA-256 of the token, longest unused first

    @property
    def ttl_seconds(self) -> int:
        return self._ttl // 1000

    async def ready(self) -> None:
        """Loads the ring, and makes a key if there is none or the newest is due; cheap when neither is the case."""
        if self._signer is None or self._is_due(self._signer.expires_at):
            await self._renew(force=False)

    async def roll(self) -> None:
        """Replaces the signing key now. The older ones verify for as long as tokens live that they signed."""
        await self._renew(force=True)

    def issue(self, user_id: str, device_id: str, session_id: str) -> str:
        """A token for this session. `ready` has to have been awaited a moment ago."""
        assert self._signer is not None
        now = self._clock.now()
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user_id,
            "deviceId": device_id,
            "sid": session_id,
            "jti": new_id(),
            "iat": now // 1000,
            "exp": (now + self._ttl) // 1000,
        }
        return jwt.encode(claims, self._signer.private, algorithm=ALGORITHM, headers={"kid": self._signer.kid})

    def verify(self, token: str) -> Claims:
        """What `token` says. Raises Refusal `not-authenticated`, which never says what was wrong with it."""
        if len(token) > limits.TOKEN_CHARS_MAX or not token.isascii():
            raise Refusal(NOT_AUTHENTICATED)
        key = hashlib.sha256(token.encode()).digest()
        claims = self._verified.get(key)
        if claims is not None:
            self._verified.move_to_end(key)
        else:
            claims = self._decode(token)
            self._verified[key] = claims
            if len(self._verified) > _VERIFIED_MAX:
                self._verified.popitem(last=False)
        if not claims.issued_at - _LEEWAY <= self._clock.now() < claims.expires_at:
            del self._verified[key]
            raise Refusal(NOT_AUTHENTICATED)
        return claims

    def jwks(self) -> Jwks:
        """The public keys that verify tokens now (RFC 7517 §5)."""
        now = self._clock.now()
        return Jwks(
            keys=[
                # RFC 8037 §2
                Jwk(kty="OKP", crv="Ed25519", x=_base64url(key.public), kid=key.kid, alg=ALGORITHM, use="sig")
                for key in self._ring.values()
                if now < key.expires_at
            ]
        )

    def _decode(self, token: str) -> Claims:
        try:
            key = self._ring.get(str(jwt.get_unverified_header(token).get("kid")))
            if key is None or self._clock.now() >= key.expires_at:
                raise Refusal(NOT_AUTHENTICATED)
            # Only EdDSA, whatever the header says (RFC 8725 §3.1). The times are ours to judge, by our clock.
            decoded = jwt.decode(
                token,
                key.public,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                options={"strict_aud": True, "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
            payload = msgspec.convert(decoded, _Payload)
        except (jwt.PyJWTError, msgspec.ValidationError, ValueError, RecursionError):
            raise Refusal(NOT_AUTHENTICATED) from None
        return Claims(payload.sub, payload.device_id, payload.sid, payload.iat * 1000, payload.exp * 1000)

    def _is_due(self, expires_at: Milliseconds) -> bool:
        """Whether a key should sign no more: a token signed now could outlive it, or it would live longer than the
        settings say (they were changed, or the wall clock was far ahead when it was made)."""
        left = expires_at - self._clock.now()
        return not self._ttl + _SPARE <= left <= self._key_life + DAY

    async def _renew(self, *, force: bool) -> None:
        now = self._clock.now()
        private = Ed25519PrivateKey.generate()
        kid = token_hex(16)

        async def change(tx: Transaction) -> tuple[list[SigningKey], bool]:
            stored = await tx.scan(SigningKey, limit=_KEYS_MAX)
            keys = sorted((key for key in stored if key.expires_at > now), key=lambda key: key.created_at)
            if keys and not force and not self._is_due(keys[-1].expires_at):
                return keys, False
            last_token_at = now + self._ttl + _SPARE
            keys = [msgspec.structs.replace(key, expires_at=min(key.expires_at, last_token_at)) for key in keys]
            # The newest key is the one with the latest time, also after the wall clock was set back.
            created_at = max(now, keys[-1].created_at + 1) if keys else now
            keys.append(SigningKey(kid, private.private_bytes_raw(), created_at, now + self._key_life))
            for key in keys:
                tx.put(key)
            return keys, True

        keys, is_new = await self._store.write(change)
        ring = [_loaded(key) for key in keys]
        self._ring, self._signer = {key.kid: key for key in ring}, ring[-1]
        if is_new:
            _log.info("signing-key-made", kid=kid, keys=len(keys))


def _loaded(stored: SigningKey) -> _Key:
    private = Ed25519PrivateKey.from_private_bytes(stored.private_key)
    return _Key(stored.kid, private, private.public_key(), stored.expires_at)


def _base64url(key: Ed25519PublicKey) -> str:
    return urlsafe_b64encode(key.public_bytes_raw()).rstrip(b"=").decode()
