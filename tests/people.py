"""Accounts with everything below them on fakes, for the tests that tell stories about people and their devices."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from config.settings import Settings, with_values
from gearlink import journal
from gearlink.accounts import Accounts, Actor
from gearlink.calls import DeviceForm, SignedIn, TokenPair, VerifyConfirm
from gearlink.device_lists import DeviceLists
from gearlink.errors import Refusal
from gearlink.keyring import Keyring
from gearlink.people import People
from gearlink.pressure import Pressure
from gearlink.profiles import Profiles
from gearlink.standing import Standing
from gearlink.tokens import Tokens
from gearlink.verification import Verification
from storage.notices import Notice
from storage.store import Transaction
from tests.fakes import FakeClock, FakeSms, FakeStore

ALICE, BOB, CAROL = "+15551230001", "+15551230002", "+15551230003"
ADDRESS = "192.0.2.1"
PHONE = DeviceForm(name="Alice's phone", type="ios")


class House:
    """Accounts with everything below them; codes are read from the fake phone."""

    def __init__(self, **changes: Any) -> None:
        values = {"limits.verifications_per_hour": 0} | {
            key.replace("__", "."): value for key, value in changes.items()
        }
        self.settings = with_values(Settings(), values)
        self.store, self.clock, self.sms, self.metrics = FakeStore(), FakeClock(), FakeSms(), journal.Metrics()
        self.tokens = Tokens(self.store, self.clock, self.settings)
        self.pressure = Pressure(self.metrics, lambda: 0)
        self.verification = Verification(
            self.store, self.clock, self.settings, self.metrics, self.pressure, self.sms.open
        )
        self.device_lists = DeviceLists()
        self.accounts = Accounts(
            self.store, self.clock, self.settings, self.metrics, self.tokens, self.verification, self.device_lists
        )
        self.profiles = Profiles(self.store, self.clock, self.settings)
        self.people = People(self.store, self.clock)
        self.keyring = Keyring(self.store, self.clock, self.settings, self.device_lists)
        self.standing = Standing(self.store, self.clock, self.metrics, self.device_lists)

    def set(self, **changes: Any) -> None:
        """What a reload of the settings does."""
        self.settings = with_values(self.settings, {key.replace("__", "."): value for key, value in changes.items()})
        self.verification.reload(self.settings)
        self.accounts.reload(self.settings)
        self.profiles.reload(self.settings)
        self.keyring.reload(self.settings)

    async def proof(self, number: str, device: DeviceForm = PHONE, invite: str | None = None) -> VerifyConfirm:
        """A form with the right code. The code is taken from where the provider would get it, sent or not."""
        asked = await self.verification.request(number, ADDRESS)
        code = self.verification._queue._exit.receive_nowait().code
        return VerifyConfirm(verification_id=asked.verification_id, code=code, device=device, invite_code=invite)

    async def sign_in(self, number: str, device: DeviceForm = PHONE, invite: str | None = None) -> SignedIn:
        return await self.accounts.confirm(await self.proof(number, device, invite), ADDRESS)

    async def actor(self, signed_in: TokenPair) -> Actor:
        return await self.accounts.authenticate(signed_in.access_token)

    async def newcomer(self, number: str) -> Actor:
        return await self.actor(await self.sign_in(number))

    async def is_signed_in(self, pair: TokenPair) -> bool:
        try:
            await self.accounts.authenticate(pair.access_token)
        except Refusal as refusal:
            assert refusal.code == "not-authenticated"
            return False
        return True

    def notices_since(self, mark: int) -> list[Notice]:
        return self.store.notices[mark:]

    async def prove(self, verification_id: str, code: str) -> str | None:
        async def change(tx: Transaction) -> str | None:
            return await self.verification.prove(tx, verification_id, code)

        return await self.store.write(change)

    def sent(self, outcome: str) -> float:
        return sent(self.metrics, outcome)

    def audited(self, event: str) -> float:
        return self.metrics.registry.get_sample_value("audit_events_total", {"event": event}) or 0.0


def sent(metrics: journal.Metrics, outcome: str) -> float:
    """How many codes ended so."""
    return metrics.registry.get_sample_value("verification_sent_total", {"outcome": outcome}) or 0.0


class refused:
    """`with refused("wrong-code") as refusal:`"""

    def __init__(self, code: str) -> None:
        self.code = code
        self.value: Refusal

    def __enter__(self) -> "refused":
        return self

    def __exit__(self, _kind: object, trouble: BaseException | None, _traceback: object) -> bool:
        assert trouble is not None, f"not refused, expected {self.code}"
        if not isinstance(trouble, Refusal):
            return False
        assert trouble.code == self.code
        self.value = trouble
        return True


def with_wrong_code(form: VerifyConfirm) -> VerifyConfirm:
    return msgspec.structs.replace(form, code=f"{(int(form.code) + 1) % 1_000_000:06}")


class LogLines:
    """What the journal wrote while a test ran."""

    def __init__(self) -> None:
        self._sink = io.BytesIO()
        self._writer = journal.configure("debug", self._sink)

    def read(self) -> str:
        """Every line so far; what comes later is not caught."""
        self._writer.close()
        return self._sink.getvalue().decode()


@contextmanager
def log_captured() -> Iterator[LogLines]:
    yield LogLines()
    journal.configure("error", io.BytesIO()).close()
