"""Whole devices for stories about encryption: a client of the real server, a vault, and what the person sees.

A `Messenger` is open for as long as its block lasts, and collects everything that it is told. Closing and opening it again is
a restart of the program: what was in memory is gone, the vault and the state stay.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import trio

from gearlink import protocol
from gearlink.sdk import MemoryState, Options, Refused, open_client
from gearlink.sdk.e2ee.records import Tally
from gearlink.sdk.e2ee.store import KeyStore
from gearlink.sdk.secure.client import SecureClient, open_secure
from gearlink.sdk.secure.told import OpenedMessage, Recovered, SecurityEvent, Suspicious
from tests.house import SECONDS_MAX, House
from tests.memory_vault import MemoryVault

T = TypeVar("T")


class Phone:
    """What stays of a device when its program ends: its state and its vault."""

    def __init__(self, house: House, phone_number: str, vault: KeyStore | None = None) -> None:
        self.house, self.phone_number = house, phone_number
        self.state, self.vault = MemoryState(), vault or MemoryVault()

    async def sign_in(self) -> None:
        """The first time: a new device of whoever has this number."""
        async with open_client(self.house.url, self.state) as client:
            asked = await client.request_code(self.phone_number)
            code = await self.house.code(asked.verification_id)
            await client.confirm(asked.verification_id, code, "a phone", "desktop")

    @asynccontextmanager
    async def on(self, options: Options | None = None) -> AsyncIterator["Messenger"]:
        """Starts the program and connects."""
        async with (
            open_client(self.house.url, self.state, options) as client,
            open_secure(client, self.vault) as secure,
            client.connect(),
            trio.open_nursery() as nursery,
        ):
            messenger = Messenger(secure)
            nursery.start_soon(messenger.listen)
            await messenger.until(lambda: any(isinstance(each, protocol.SyncDone) for each in messenger.heard))
            trouble: Exception | None = None
            try:
                yield messenger
            except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery's group
                trouble = error
            nursery.cancel_scope.cancel()
        if trouble is not None:
            raise trouble


class Messenger:
    """A device that is on. `heard` is all that it was told, in order."""

    def __init__(self, secure: SecureClient) -> None:
        self.secure, self.client = secure, secure.client
        self.heard: list[Any] = []
        self._lot = trio.lowlevel.ParkingLot()

    @property
    def user_id(self) -> str:
        return self.secure.device.own.user_id

    @property
    def device_id(self) -> str:
        return self.secure.device.own.device_id

    async def listen(self) -> None:
        async for event in self.secure.events():
            self.heard.append(event)
            self._lot.unpark_all()

    async def until(self, condition: Callable[[], T]) -> T:
        """Waits until `condition` is true of what was heard."""
        with trio.fail_after(SECONDS_MAX):
            while not (found := condition()):
                await self._lot.park()
        return found

    # --- talking -----------------------------------------------------------------------------------------------------

    async def direct(self, other: "Messenger") -> str:
        return (await self.secure.groups.create("direct", [other.user_id], name=None, description=None)).id

    async def group(self, *others: "Messenger", name: str = "a group") -> str:
        ids = [each.user_id for each in others]
        return (await self.secure.groups.create("group", ids, name=name, description=None)).id

    async def say(self, conversation_id: str, *texts: str) -> list[str]:
        """Sends texts, one after the other; returns the messages' ids."""
        return [(await self.secure.send(conversation_id, text)).message_id for text in texts]

    async def hears(self, *texts: str) -> list[OpenedMessage]:
        """Waits until all of these texts were told as messages."""
        await self.until(lambda: set(texts) <= set(self.texts))
        return [each for each in self.messages if each.content in texts]

    @property
    def messages(self) -> list[OpenedMessage]:
        """The messages that it was told, those that could not be read among them."""
        told = [each for each in self.heard if isinstance(each, protocol.MessageNew | Recovered)]
        return [each.message for each in told if isinstance(each.message, OpenedMessage)]

    @property
    def texts(self) -> list[str]:
        """What it could read, in the order in which it could."""
        return [each.content for each in self.messages if each.content is not None]

    @property
    def noticed(self) -> list[SecurityEvent]:
        return [each for each in self.heard if isinstance(each, SecurityEvent)]

    @property
    def suspicions(self) -> list[str]:
        return [each.code for each in self.noticed if isinstance(each, Suspicious)]

    async def unreadable(self) -> dict[str, int]:
        """How often something could not be read, by reason."""
        tallies = await self.secure.device.read(lambda tx: tx.scan(Tally))
        return {each.reason: each.count for each in tallies}

    async def kept(self, conversation_id: str) -> list[str | None]:
        """The texts of the history on this device, oldest first."""
        return [each.content for each in reversed(await self.secure.history(conversation_id, limit=1000))]


async def phones(house: House, *phone_numbers: str) -> list[Phone]:
    """A signed-in device for each number; the same number twice is a second device of one person."""
    found = [Phone(house, number) for number in phone_numbers]
    for phone in found:
        await phone.sign_in()
    return found


@asynccontextmanager
async def switched_on(phones: Sequence[Phone]) -> AsyncIterator[list[Messenger]]:
    """All of them on at once."""
    async with trio.open_nursery() as nursery:
        messengers: list[Messenger] = []

        async def keep_on(phone: Phone, task_status: trio.TaskStatus[Messenger] = trio.TASK_STATUS_IGNORED) -> None:
            async with phone.on() as messenger:
                task_status.started(messenger)
                await trio.sleep_forever()

        for phone in phones:
            messengers.append(await nursery.start(keep_on, phone))
        trouble: Exception | None = None
        try:
            yield messengers
        except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery's group
            trouble = error
        nursery.cancel_scope.cancel()
    if trouble is not None:
        raise trouble


async def refusal(code: str, call: Callable[..., Any], *given: Any, **more: Any) -> Refused:
    """The refusal with this code that the call has to be met with."""
    with suppress(Refused):
        try:
            await call(*given, **more)
        except Refused as refused:
            assert refused.code == code, refused
            return refused
    raise AssertionError(f"{code} was not refused")
