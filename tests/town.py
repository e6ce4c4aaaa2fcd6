"""A server, people who have a profile of `gearlink chat` on this machine, and what they type and see.

A `Town` runs commands of somebody to their end, or lets somebody sit down at a conversation; then a `Seated` types lines
and waits for what has to appear. All of it runs in this process, with the real client, the real vault and the real server.
"""

import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from gearlink import calls, chat
from gearlink.chat.finding import profile_path
from gearlink.chat.vaults import open_safely
from gearlink.sdk import FileState, Options, open_client
from tests.house import SECONDS_MAX, House, open_house
from tests.test_chat import Screen

OPTIONS = Options(ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # none is used, and the usual one loads slowly


class Town:
    """A server, people with a profile here, and their screens."""

    def __init__(self, house: House, nursery: trio.Nursery) -> None:
        self.house, self._nursery = house, nursery
        self.ids: dict[str, str] = {}

    async def settle(self, *names: str) -> None:
        """Signs each of them up; their usernames are their names."""
        for name in names:
            async with open_client(self.house.url, FileState(profile_path(name)), OPTIONS) as client:
                asked = await client.request_code(f"+1555125{len(self.ids):04}")
                code = await self.house.code(asked.verification_id)
                await client.confirm(asked.verification_id, code, "test", "desktop")
                user = await client.change_profile(calls.ProfileForm(display_name=name.title(), username=name))
                self.ids[name] = user.id
                given = chat.parser().parse_args(["--as", name, "profile"])
                async with open_safely(given, client, Screen().terminal):
                    pass  # its keys are published: others can write to it

    async def code(self, phone_number: str) -> tuple[str, ...]:
        """What `signup` is given of a code that was sent to this number."""
        async with open_client(self.house.url, None, OPTIONS) as client:
            asked = await client.request_code(phone_number)
        code = await self.house.code(asked.verification_id)
        return (
            "--server",
            self.house.url,
            "--phone",
            phone_number,
            "--verification",
            asked.verification_id,
            "--code",
            code,
        )

    async def run(self, name: str, *arguments: str, lines: tuple[str, ...] = (), status: int = 0) -> str:
        """What one command of somebody said, which has to end with this status."""
        screen = Screen(*lines)
        options = chat.parser().parse_args(["--as", name, *arguments])
        with trio.fail_after(SECONDS_MAX):
            ended = await chat.run(options, screen.terminal, OPTIONS)
        said = screen.out.getvalue() + screen.errors.getvalue()
        assert ended == status, said
        return said

    async def talk(self, name: str, *arguments: str) -> "Seated":
        """Somebody sits down at a conversation."""
        screen = Screen(interactive=True)
        options = chat.parser().parse_args(["--as", name, "to", *arguments])
        ended = trio.Event()

        async def sit() -> None:
            assert await chat.run(options, screen.terminal, OPTIONS) == 0, screen.errors.getvalue()
            ended.set()

        self._nursery.start_soon(sit)
        return Seated(screen, ended)


class Seated:
    """Somebody at a terminal."""

    def __init__(self, screen: Screen, ended: trio.Event) -> None:
        self.screen, self.ended = screen, ended
        self._seen = 0

    async def types(self, line: str) -> None:
        await self.screen.type.send(line)

    async def sees(self, pattern: str) -> "re.Match[str]":
        """Waits until something behind what was seen last matches; what was in between is passed over."""
        with trio.move_on_after(SECONDS_MAX):
            while True:
                shown = self.shown()
                if found := re.compile(pattern).search(shown, self._seen):
                    self._seen = found.end()
                    return found
                await self.screen._changed.park()
        raise AssertionError(f"{pattern!r} did not come; all that was shown is\n{self.shown()}")

    def shown(self) -> str:
        return self.screen.log.getvalue()

    async def leaves(self) -> None:
        self.screen.type.close()
        with trio.fail_after(SECONDS_MAX):
            await self.ended.wait()


@asynccontextmanager
async def open_town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> AsyncIterator[Town]:
    """An empty town, with a server of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")  # not that of who runs the tests
    time.tzset()
    async with open_house(tmp_path / "data") as opened:
        yield Town(opened, nursery)


async def opened(town: Town, *names: str, plain: bool = False) -> str:
    """Settles people and opens a group of them; its id."""
    await town.settle(*names)
    founder, *others = names
    words = ("new", "group", "garden", *(f"@{each}" for each in others), *(["--plain"] if plain else []))
    return (await town.run(founder, *words)).strip()
