"""The example bot: a visible device of an account of its own, that answers what is said to it, encrypted, and goes on after
a restart. And what of the client is not loaded where nobody needs it."""

import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trio

from gearlink import chat, views
from gearlink.chat import bot
from gearlink.chat.finding import profile_path
from gearlink.errors import ExitStatus
from tests.house import SECONDS_MAX
from tests.test_chat import Screen
from tests.town import OPTIONS, Town, open_town

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
HEAVY = ("pydantic", "x3dh", "doubleratchet", "keyring", "segno", "sqlcipher3", "gearlink.sdk.secure.client")


@pytest.fixture
async def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> AsyncIterator[Town]:
    async with open_town(tmp_path, monkeypatch, nursery) as opened:
        yield opened


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo hello  world", "hello  world"),
        ("ECHO", "echo what?"),
        ("time", "it is 12:00 UTC"),
        (" help ", bot.HELP),
        ("hello", None),
        (bot.HELP, None),
        ("", None),
    ],
)
def test_bot_answers_what_it_knows_and_never_itself(text: str, said: str | None) -> None:
    assert bot.answer(text, NOON) == said


async def run_bot(screen: Screen, *arguments: str) -> int:
    options = bot.parser().parse_args(arguments)
    return await chat.command_line.run_to_status(
        partial(bot.run, options, screen.terminal, OPTIONS), screen.terminal, "gearlink bot"
    )


async def test_bot_signs_up_greets_answers_and_goes_on_after_a_restart(town: Town, nursery: trio.Nursery) -> None:
    await town.settle("ann")
    screen, known = Screen(interactive=True), set(town.house._codes)
    async with trio.open_nursery() as first:
        first.start_soon(run_bot, screen, "--server", town.house.url, "--number", "+15551260000", "--name", "Helper")
        with trio.fail_after(SECONDS_MAX):
            while not (fresh := set(town.house._codes) - known):
                await town.house._sent.wait()
            await screen.type.send(town.house._codes[fresh.pop()])
            await screen.until("Helper listens on ")
        ann = await town.talk("ann", "+15551260000")
        await ann.sees("end-to-end encrypted")
        await ann.sees(f"Helper: {bot.HELP}")
        await ann.types("echo hello")
        await ann.sees(r"Helper: hello\n    > #\d+ you: echo hello")
        first.cancel_scope.cancel()
    await screen.terminal.lines.aclose()
    await ann.types("echo are you there?")
    await ann.sees("sent")
    screen = Screen()
    nursery.start_soon(run_bot, screen, "--name", "Helper")
    await ann.sees("Helper: are you there\\?")
    await ann.leaves()
    devices = await devices_of_bot(town)
    assert [device.type for device in devices] == ["bot"]


async def devices_of_bot(town: Town) -> list[views.Device]:
    async with chat.command_line.open_profile("bot", None, OPTIONS) as client:
        return await client.devices()


async def test_trouble_of_the_bot_is_one_line(town: Town) -> None:
    screen = Screen()
    assert await run_bot(screen, "--server", town.house.url) == chat.REFUSED
    assert screen.errors.getvalue() == "gearlink bot: this bot has no account yet: give it --number\n"
    screen = Screen()
    assert await run_bot(screen, "--server", "nowhere", "--number", "+15551260000") == ExitStatus.USAGE
    assert screen.errors.getvalue().startswith("gearlink bot: the server's address has the form")
    assert not profile_path("bot").exists()


@pytest.mark.parametrize("module", ["gearlink.cli", "gearlink.app", "gearlink.chat"])
def test_what_encrypts_is_loaded_only_by_those_who_talk(module: str) -> None:
    program = f"import sys, {module}; print([each for each in {HEAVY} if each in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
