"""Proof that somebody holds a phone number: six digits sent to it, and a few tries to say them back.

Asking for a code takes the same steps whether the number is known or not, and never looks at accounts; whether the code
is sent is decided in the background. A code is stored as a salted hash, works once, for a while, and for a few tries,
which are counted durably before the answer. How often codes may be asked for is limited by address and by number.
What a proven number is good for, it does not know: `accounts` does.
"""

import hashlib
import hmac
import re
import secrets
from typing import Final

import msgspec
import phonenumbers
import trio

from config import limits
from config.settings import Settings
from gearlink import journal
from gearlink.calls import VerifyRequested
from gearlink.clock import Clock, new_id
from gearlink.errors import INVALID_REQUEST, Refusal
from gearlink.peers import network_of
from gearlink.pressure import Load, Pressure
from gearlink.sms import Code, Provider, SmsQueue, provider_of
from gearlink.throttle import Throttle
from storage import records
from storage.store import Store, Transaction

_E164: Final = re.compile(r"\+[1-9][0-9]{4,14}")  # ITU-T E.164: 15 digits at most
_SALT_BYTES: Final = 16
_NOBODYS_SALT: Final = secrets.token_bytes(_SALT_BYTES)  # for the work that an unknown verification takes as well
_NOBODYS_HASH: Final = secrets.token_bytes(32)


def parse_phone_number(text: str) -> str:
    """`text` as E.164. Only blanks around it are forgiven. Raises Refusal `invalid-request` for anything else."""
    number = text.strip()
    try:
        if _E164.fullmatch(number):
            parsed = phonenumbers.parse(number, None)
            canonical = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
            # Two spellings of one number (a trunk zero, say) must not become two accounts.
            if canonical == number and phonenumbers.is_possible_number(parsed):
                return number
    except phonenumbers.NumberParseException:
        pass
    message = "not a phone number in international form: a plus sign, the country code and the number, only digits"
    raise Refusal(INVALID_REQUEST, errors=[{"path": "phoneNumber", "message": message}])


def phone_hash(phone_number: str) -> bytes:
    """The key of `PhoneNumber` records, and what contact discovery asks for."""
    return hashlib.sha256(phone_number.encode()).digest()


class Verification:
    """Sends codes and checks them. `run` has to be running for codes to leave."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: Settings,
        metrics: journal.Metrics,
        pressure: Pressure,
        provider: Provider | None = None,
    ) -> None:
        self._store, self._clock, self._pressure = store, clock, pressure
        self._queue = SmsQueue(provider or provider_of(settings.verification, clock), metrics, self._may_have_code)
        self._seconds = settings.verification.code_minutes * 60
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Takes over what a reload may change; who was over a limit starts anew."""
        self._is_closed = settings.auth.registration == "closed"
        per_hour = settings.limits.verifications_per_hour
        tries = per_hour * limits.VERIFICATION_TRIES_MAX  # every code that an address may ask for, tried to its end
        self._by_address = Throttle("verifications-by-address", per_hour / 3600, per_hour)
        self._by_number = Throttle("verifications-by-number", per_hour / 3600, per_hour)
        self._tries_by_address = Throttle("sign-ins-by-address", tries / 3600, tries)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sends the codes that were asked for, until it is cancelled."""
        await self._queue.run(task_status=task_status)

    async def request(self, phone_number: str, address: str) -> VerifyRequested:
        """Starts a verification of `phone_number` for somebody at the IP `address`.

        Raises Refusal: `overloaded` while sign-ups are shed, known or new, since it cannot be told which; `invalid-request`
        if that is no number, `rate-limited` by address or by number.
        """
        self._pressure.check(Load.SIGN_UPS)
        number = parse_phone_number(phone_number)
        self._by_address.check(network_of(address))
        self._by_number.check(number)
        code = f"{secrets.randbelow(10**limits.VERIFICATION_CODE_DIGITS):0{limits.VERIFICATION_CODE_DIGITS}}"
        salt = secrets.token_bytes(_SALT_BYTES)
        record = records.Verification(
            verification_id=new_id(),
            phone_number=number,
            salt=salt,
            code_hash=_code_hash(salt, code),
            expires_at=self._clock.now() + self._seconds * 1000,
            tries_left=limits.VERIFICATION_TRIES_MAX,
        )

        async def change(tx: Transaction) -> None:
            tx.put(record)

        await self._store.write(change)
        self._queue.post(Code(number, code, self._seconds, record.verification_id))
        return VerifyRequested(
            verification_id=record.verification_id,
            expires_in_seconds=self._seconds,
            resend_after_seconds=limits.VERIFICATION_RESEND_SECONDS,
        )

    def check_address(self, address: str) -> None:
        """Counts an attempt to confirm. Raises Refusal `rate-limited`; tries are limited per verification besides."""
        self._tries_by_address.check(network_of(address))

    async def prove(self, tx: Transaction, verification_id: str, code: str) -> str | None:
        """The number that `code` proves, inside a change: the verification is used up if that change is written.

        None, and one try less, if the code is wrong; None as well if the verification is unknown, used up or expired.
        So a caller that gets None has to let its change be written, and refuse after that.
        """
        record = await tx.get(records.Verification, verification_id)
        salt, expected = (record.salt, record.code_hash) if record else (_NOBODYS_SALT, _NOBODYS_HASH)
        is_right = hmac.compare_digest(_code_hash(salt, code), expected)
        if record is None or record.tries_left <= 0 or record.expires_at <= self._clock.now():
            return None
        if is_right:
            tx.delete(records.Verification, verification_id)
            return record.phone_number
        tx.put(msgspec.structs.replace(record, tries_left=record.tries_left - 1))
        return None

    async def _may_have_code(self, phone_number: str) -> bool:
        """A closed server sends codes to people who have an account, and to nobody else."""
        return not self._is_closed or await self._store.get(records.PhoneNumber, phone_hash(phone_number)) is not None


def _code_hash(salt: bytes, code: str) -> bytes:
    return hmac.digest(salt, code.encode(), hashlib.sha256)
