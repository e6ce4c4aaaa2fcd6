"""The examples of docs/sdk.md run against the scripted server, as a reader would run them."""

import re
from pathlib import Path
from typing import Any

import pytest
import trio

import gearlink.sdk
from tests.fake_server import ADDRESS, CODE, FakeServer

PAGE = Path(__file__).parent.parent / "docs" / "sdk.md"
ANN, BOB = "+15551230001", "+15551230002"


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


def test_every_name_that_the_page_lists_is_there() -> None:
    text = PAGE.read_text()
    listed = re.findall(r"`([a-z_]+)`", text[text.index("need no `connect()`") : text.index("For a route")])
    missing = [name for name in listed if not hasattr(gearlink.sdk.Client, name)]
    assert listed
    assert not missing
