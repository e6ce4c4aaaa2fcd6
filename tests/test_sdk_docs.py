"""The examples of docs/sdk.md run as a reader would run them, and the page names every call and every event."""

import inspect
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import pytest
import trio

import gearlink.sdk
from gearlink.sdk.rest import Rest
from tests.fake_server import ADDRESS, CODE, FakeServer
from tests.house import SECONDS_MAX, House, open_house
from tests.messengers import phones

PAGE = Path(__file__).parent.parent / "docs" / "sdk.md"
ANN, BOB, CAT = "+15551230001", "+15551230002", "+15551239999"


def examples() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
    return names


@pytest.fixture
async def server(nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake, real = FakeServer(nursery), gearlink.sdk.open_client
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gearlink.sdk, "open_client", lambda server, store: real(server, store, fake.options()))
    return fake


async def test_examples_sign_up_talk_answer_and_read(
    server: FakeServer, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = examples()
    bob = server.user(BOB)
    monkeypatch.setattr("builtins.input", lambda question: CODE)
    with trio.fail_after(30):
        await run["sign_up"](ADDRESS, ANN)
        assert await run["say"](BOB, "hello") == 1
        conversation = next(iter(server.conversations))
        nursery.start_soon(run["echo"])
        await server.until(lambda: server.sockets)
        await server.post(conversation, bob, "anybody?")
        await server.until(lambda: len(server.logs[conversation]) == 3)
        assert await run["last_texts"](conversation, 2) == ["you said: anybody?", "anybody?"]
        nursery.cancel_scope.cancel()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path / "data") as opened:
        yield opened


async def test_examples_decide_open_a_group_and_wait_without_a_socket(
    house: House, nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = examples()
    bob = await house.sign_up()
    async with gearlink.sdk.open_client(house.url, gearlink.sdk.FileState("ann.json")) as ann:
        asked = await ann.request_code(CAT)
        await ann.confirm(asked.verification_id, await house.code(asked.verification_id), "laptop", "desktop")
        direct = (await ann.create_conversation("direct", [bob.id], encryption="server")).id
    decided: list[str] = []

    async def decide() -> None:
        decided.append(await run["decide"](direct, "When?", ["now", "later"], 1))
        answered.set()

    answered = trio.Event()
    with trio.fail_after(SECONDS_MAX):
        async with bob.wire() as wire:
            nursery.start_soon(decide)
            asked_frame = (await wire.hear_until("message:new"))[-1]
            await bob.http.put(f"/messages/{asked_frame['message']['id']}/vote", json={"options": [1]})
            await answered.wait()
        assert decided == ["later"]
        code = await run["open_group"]("garden")
        assert (await bob.http.post(f"/join/{code}")).json()["status"] == "requested"
        sent = (await bob.post(direct, "a word: melon", "t")).json()
        assert await run["wait_for"]("melon") == sent["id"]


async def test_examples_talk_in_an_encrypted_conversation(
    house: House, nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = examples()
    async with gearlink.sdk.open_client(house.url, gearlink.sdk.FileState("ann.json")) as ann:
        asked = await ann.request_code(ANN)
        await ann.confirm(asked.verification_id, await house.code(asked.verification_id), "laptop", "desktop")
    (phone,) = await phones(house, BOB)
    with trio.fail_after(SECONDS_MAX):
        async with phone.on() as bob:
            conversation = await run["say_encrypted"](BOB, "hello")
            assert [each.content for each in await bob.hears("hello")] == ["hello"]
            nursery.start_soon(run["echo_encrypted"])
            await bob.say(conversation, "anybody?")
            await bob.hears("you said: anybody?")
    nursery.cancel_scope.cancel()


def test_every_name_that_the_page_lists_is_there_and_no_call_is_left_out() -> None:
    text = PAGE.read_text()
    table = text[text.index("## Every call") : text.index("For a route without")]
    listed = set(re.findall(r"`([a-z_]+)`", table)) - {"restore_account"}
    calls = {name for name, _value in inspect.getmembers(Rest, inspect.isfunction) if not name.startswith("_")}
    assert listed == calls - {"call", "items", "access_token"}


def test_every_event_is_on_the_page() -> None:
    text = PAGE.read_text()
    assert [form.__name__ for form in get_args(gearlink.sdk.Event) if form.__name__ not in text] == []
