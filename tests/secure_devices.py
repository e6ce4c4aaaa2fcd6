"""Devices with a secure client against the real server: with its tasks (`open_device`), or by hand (`open_still`), where
nothing happens unless the test does it. A vault outlives its device, as a file outlives a process.
"""

import contextlib
import os
import random
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import trio

from gearlink import protocol
from gearlink.sdk import MemoryState, Options, open_client
from gearlink.sdk.client import Client
from gearlink.sdk.e2ee import agreement, letters
from gearlink.sdk.e2ee.letters import Message
from gearlink.sdk.e2ee.records import Kept, KeptIndex, Own
from gearlink.sdk.e2ee.store import KeyStore, Tx
from gearlink.sdk.secure.archiving import new_archive_id
from gearlink.sdk.secure.client import SecureClient, open_secure
from gearlink.sdk.secure.told import OpenedMessage, SecurityEvent
from gearlink.sdk.state import State
from tests.house import SECONDS_MAX, Person

TEXTS = [f"message {number}" for number in range(6)]
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Clock:
    """Wall time that a test moves on: seconds that are added."""

    def __init__(self) -> None:
        self.added = 0.0

    def __call__(self) -> float:
        return time.time() + self.added


@contextlib.asynccontextmanager
async def open_signed_in(person: Person, **options: Any) -> AsyncIterator[Client]:
    """The plain client of this person's device."""
    state = State(
        server=person.house.url,
        user_id=person.id,
        device_id=person.device_id,
        access_token=person.access_token,
        refresh_token=person.refresh_token,
        access_expires_at=2**53,
    )
    chosen = Options(ssl_context=_NO_TLS, backoff_first_seconds=0.01, backoff_seconds_max=0.05, **options)
    async with open_client(person.house.url, MemoryState(state), chosen) as client:
        yield client


@contextlib.asynccontextmanager
async def open_device(person: Person, vault: KeyStore, **options: Any) -> AsyncIterator[SecureClient]:
    """This person's device, connected, with everything that it does by itself."""
    with trio.fail_after(2 * SECONDS_MAX):
        async with open_signed_in(person, **options) as client, open_secure(client, vault) as secure, client.connect():
            yield secure


@contextlib.asynccontextmanager
async def open_still(person: Person, vault: KeyStore, **options: Any) -> AsyncIterator[SecureClient]:
    """This person's device without a socket, which does nothing by itself."""
    with trio.fail_after(2 * SECONDS_MAX):
        async with open_signed_in(person, **options) as client:
            client.state.epoch = person.house.app.store.epoch  # as after a socket

            def prepare(tx: Any) -> Own:
                own: Own = tx.get(Own, "own") or agreement.new_own(person.id, person.device_id, 0)
                tx.put(own)
                return own

            secure = SecureClient(client, vault, await vault.write(prepare))
            await secure.keeping.renew()
            yield secure


async def heard(secure: SecureClient, kind: type[Any], count: int = 1) -> list[Any]:
    """The next events of this kind, others are passed over."""
    found: list[Any] = []
    with trio.fail_after(SECONDS_MAX):
        async for event in secure.events():
            if isinstance(event, kind):
                found.append(event)
                if len(found) == count:
                    return found
    raise AssertionError("events are endless")


async def heard_texts(secure: SecureClient, count: int = 1) -> list[str | None]:
    return [event.message.content for event in await heard(secure, protocol.MessageNew, count)]


def told(secure: SecureClient) -> list[SecurityEvent]:
    """What was noticed and not taken yet."""
    found = []
    while (event := secure.device.take_told()) is not None:
        found.append(event)
    return found


async def shown(secure: SecureClient, conversation_id: str) -> list[str | None]:
    """What this device keeps of a conversation, oldest first."""
    return [message.content for message in reversed(await kept(secure, conversation_id))]


async def kept(secure: SecureClient, conversation_id: str) -> list[OpenedMessage]:
    return await secure.history(conversation_id, limit=200)


CRASHES = int(os.environ.get("GEARLINK_CRASH_POINTS", "4"))  # of each test; 100 are all of them
SEED = os.environ.get("GEARLINK_SIM_SEED", "0")


async def keep_much(secure: SecureClient, count: int) -> str:
    """A conversation with so many messages that each take 8,000 bytes, however they are compressed."""
    address, room = secure.device.address, new_archive_id(0)

    def keep(tx: Tx) -> None:
        for number in range(1, count + 1):
            letter = Message(
                conversation_id=room, count=number, temp_id="t", kind="text", content=secrets.token_hex(8000)
            )
            kept = Kept(room, 1, number, new_archive_id(number), *address, number, "text", letters.to_json(letter))
            tx.put(KeptIndex(kept.message_id, room, 1, number))
            tx.put(kept)

    await secure.device.write(keep)
    return room


class Crash(Exception):
    """The process ends here."""


def crash_points(name: str, calls: int) -> list[tuple[int, bool]]:
    """Where the process ends, one run after the other: at which of the `calls` of an undisturbed one, and whether before the
    server has done it. As many as there is time for, and always the last call. `name` says which they are."""
    lot, every = (
        random.Random(f"{SEED} {name}"),
        [(number, before) for number in range(1, calls) for before in (True, False)],
    )
    return [*lot.sample(every, min(CRASHES, len(every))), (calls, True), (calls, False)]


def count_calls(client: Client) -> list[str]:
    """The calls that this client makes from now on."""
    call, made = client.call, []

    async def noted(method: str, path: str, *rest: Any, **more: Any) -> Any:
        made.append(f"{method} {path}")
        return await call(method, path, *rest, **more)

    client.call = noted  # type: ignore[method-assign]
    return made


def crash_at(client: Client, number: int, *, before: bool) -> None:
    """This client's process ends at its call of this number, before or after the server has done it."""
    call, count = client.call, 0

    async def counted(method: str, path: str, *rest: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == number and before:
            raise Crash
        answer = await call(method, path, *rest, **more)
        if count == number:
            raise Crash
        return answer

    client.call = counted  # type: ignore[method-assign]


async def talked(phone: SecureClient, other: Person, texts: Sequence[str] = TEXTS) -> str:
    """A conversation in which this was said."""
    room = (await phone.groups.create("direct", [other.id])).id
    for text in texts:
        await phone.send(room, text)
    return room
