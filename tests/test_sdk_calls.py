"""That the SDK has a method for every route, a way for every frame, and a form for everything that the server says."""

import inspect
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import httpx
import msgspec
import pytest

import gearlink.sdk
from gearlink import calls, protocol
from gearlink.http_api.routes import ROUTES
from gearlink.http_api.table import PREFIX
from gearlink.sdk import MemoryState, Refused, State, inbox, open_client
from gearlink.sdk.options import Options
from gearlink.sdk.rest import Rest
from gearlink.ws_frames import FRAMES
from tests.handsets import Handset

ID = "019a0000-0000-7000-8000-000000000000"
GIVEN = {
    "role": "member",
    "kind": "direct",
    "device_type": "desktop",
    "picture": b"x",
    "data": b"x",
    "counts": {"no-session": 1},
    "phone_numbers": ["+15551230001"],
    "sequence_number": 1,
    "options": [0],
    "user_ids": [ID],
    "send_at": "2030-01-01T00:00:00Z",
    "keys": msgspec.convert(Handset().upload(), calls.KeysForm),
}
FORMS = {calls.MessageForm: calls.MessageForm(temp_id="t1", content="hello")}
OVER_HTTP = {
    protocol.Edit: "edit",
    protocol.Delete: "delete",
    protocol.Pin: "pin",
    protocol.Unpin: "unpin",
    protocol.AddReaction: "react",
    protocol.RemoveReaction: "unreact",
    protocol.Vote: "vote",
    protocol.ReadThread: "mark_thread_read",
    protocol.SetDraft: "set_draft",
}
"""Frames that the SDK says with a call instead."""
ANSWERS = {protocol.AuthOk, protocol.SendAck, protocol.Pong, protocol.Ok, protocol.Error, protocol.Goodbye}
WATERMARKS = {protocol.MessageDelivered, protocol.MessageRead, protocol.ThreadWasRead, protocol.SendAck}


def methods() -> list[str]:
    """The public calls of the SDK."""
    own = [name for name, _value in inspect.getmembers(Rest, inspect.isfunction) if not name.startswith("_")]
    return [name for name in own if name not in ("call", "items", "access_token")]


async def ask(client: Rest, name: str) -> None:
    """Calls the method with something for each argument that it needs."""
    method = getattr(client, name)
    arguments: list[Any] = []
    for parameter in inspect.signature(method).parameters.values():
        if parameter.default is inspect.Parameter.empty:
            form = parameter.annotation
            given = FORMS.get(form) or form() if parameter.name == "form" else GIVEN.get(parameter.name, ID)
            arguments.append(given)
    answer = method(*arguments)
    if isinstance(answer, AsyncIterator) or hasattr(answer, "__anext__"):
        await anext(answer)
    else:
        await answer


async def requests_of(names: list[str]) -> set[tuple[str, str]]:
    """What these methods ask of a server that knows nothing."""
    asked: set[tuple[str, str]] = set()

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.add((request.method, request.url.raw_path.decode().partition("?")[0]))
        return httpx.Response(404, json={})

    options = Options(transport=httpx.MockTransport(answer), wall=lambda: 0.0)
    for name in names:
        state = State(server="http://chat.test", refresh_token="r", access_token="a", access_expires_at=10**12)
        async with open_client("http://chat.test", MemoryState(state), options) as client:
            with pytest.raises(Refused):
                await ask(client, name)
    return asked


def matches(route: Any, asked: tuple[str, str]) -> bool:
    pattern = re.sub(r"\{\w+\}", "[^/]+", route.path)
    return asked[0] == route.method and re.fullmatch(PREFIX + pattern, asked[1]) is not None


async def test_every_route_has_a_method() -> None:
    asked = await requests_of(methods())
    renewal = ("POST", f"{PREFIX}/auth/refresh")  # by the SDK itself: see the tests of its tokens
    missing = [
        f"{route.method} {route.path}"
        for route in ROUTES
        if not any(matches(route, each) for each in asked | {renewal})
    ]
    assert missing == []


async def test_every_method_asks_for_a_route_that_there_is() -> None:
    asked = await requests_of(methods())
    assert [each for each in asked if not any(matches(route, each) for route in ROUTES)] == []


def test_every_frame_that_a_client_may_say_is_said_or_has_a_call() -> None:
    sources = "".join(path.read_text() for path in Path(gearlink.sdk.__file__).parent.glob("*.py"))
    said = {route.form for route in FRAMES if re.search(rf"\b{route.form.__name__}\(", sources)}
    said |= {protocol.TypingStart, protocol.TypingStop}  # one of both is chosen where they are said
    assert {route.form for route in FRAMES} - said - set(OVER_HTTP) == set()
    assert all(hasattr(Rest, name) for name in OVER_HTTP.values())


def test_everything_that_the_server_says_is_an_answer_or_an_event() -> None:
    assert set(get_args(protocol.AnyServerFrame)) == set(get_args(inbox.Event)) | ANSWERS


def test_every_event_with_a_number_in_a_log_counts() -> None:
    numbered = {
        form
        for form in get_args(protocol.AnyServerFrame)
        if {"conversation_id", "sequence_number"} <= set(form.__struct_fields__)
    }
    assert numbered - WATERMARKS == set(get_args(inbox.Numbered)) - {protocol.MessageNew, inbox.UnknownEvent}


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (calls.ProfileForm(username=None), {"username": None}),
        (calls.PreferencesForm(muted_until=None, archived=True), {"mutedUntil": None, "archived": True}),
        (calls.ConversationChange(description=None), {"description": None}),
        (calls.ConversationForm(type="group"), {"type": "group", "memberIds": []}),
        (calls.EditForm(content="x"), {"content": "x"}),
    ],
)
def test_null_is_told_only_where_it_means_something(form: Any, expected: dict[str, Any]) -> None:
    import json

    from gearlink.sdk.translate import encoded

    assert json.loads(encoded(form)) == expected
