"""What goes over the wire in tests, held against what the server says of itself in its OpenAPI and AsyncAPI documents.

Every REST exchange of a house and every frame of a `Wire` is looked at: a status or code that is not declared, a key that
is not described, a body or frame that was taken though its form does not allow it. `seen` is what went by in this
process; at the end of a whole run nothing may be missing from it (`tests/conftest.py`).
"""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any, get_args

import jsonschema_rs

from gearlink import errors, protocol
from gearlink.http_api import asyncapi, openapi
from gearlink.http_api.routes import ROUTES
from gearlink.http_api.table import TEXT_PARAMETERS, Blob, Route
from gearlink.views import UUID
from gearlink.ws_frames import FRAMES, GENERAL_REFUSALS, UNTYPED_REFUSALS

Validator = Callable[[Any], str]
SYNC = "/sync"
seen: set[str] = set()


def expected() -> set[str]:
    """The names in `seen` once everything that is declared went by."""
    forms = get_args(protocol.AnyServerFrame)
    said, told = (f"said {route.type}" for route in FRAMES), (f"told {form.__struct_config__.tag}" for form in forms)
    return {*map(name_of, ROUTES), *said, *told}


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


# --- the documents ---------------------------------------------------------------------------------------------------


@cache
def rest() -> dict[str, Any]:
    return openapi.document(ROUTES, "test")


@cache
def socket() -> dict[str, Any]:
    return asyncapi.document(FRAMES, "test")


def closed(components: dict[str, Any]) -> dict[str, Any]:
    """The same schemas, where nothing may stand that they do not name: what the server says is all described."""
    schemas = components["schemas"].items()
    return {"schemas": {name: {"additionalProperties": False, **schema} for name, schema in schemas}}


def validator(schema: dict[str, Any], components: dict[str, Any]) -> Validator:
    compiled = jsonschema_rs.validator_for({**schema, "components": components})

    def complaint(value: Any) -> str:
        if compiled.is_valid(value):
            return ""
        return "; ".join(f"{list(each.instance_path)}: {each.message}" for each in compiled.iter_errors(value))[:600]

    return complaint


@cache
def body_taken(template: str, method: str) -> Validator:
    operation = rest()["paths"][template][method]
    return validator(operation["requestBody"]["content"]["application/json"]["schema"], rest()["components"])


@cache
def body_answered(template: str, method: str, status: int, media: str) -> Validator:
    content = rest()["paths"][template][method]["responses"][str(status)]["content"]
    return validator(content[media]["schema"], closed(rest()["components"]))


@cache
def frames(way: str) -> dict[str, Validator]:
    """A validator for each type that clients say (`receive`) or the server tells (`send`)."""
    components = socket()["components"]
    said = {route.form.__name__ for route in FRAMES}
    wanted = {name: each for name, each in components["messages"].items() if (name in said) == (way == "receive")}
    known = components if way == "receive" else closed(components)
    return {each["name"]: validator(each["payload"], known) for each in wanted.values()}


# --- REST ------------------------------------------------------------------------------------------------------------


@cache
def patterns() -> list[tuple[re.Pattern[str], Route]]:
    def shape(route: Route) -> re.Pattern[str]:
        pieces = re.split(r"\{(\w+)\}", route.template)
        for index, piece in enumerate(pieces):
            pieces[index] = re.escape(piece) if index % 2 == 0 else "[^/]+" if piece in TEXT_PARAMETERS else UUID
        return re.compile("".join(pieces))

    return [(shape(route), route) for route in ROUTES]


def route_of(method: str, path: str) -> Route | None:
    method = "GET" if method == "HEAD" else method
    return next((route for shape, route in patterns() if route.method == method and shape.fullmatch(path)), None)


def exchanged(method: str, path: str, asked: bytes, status: int, media: str, answered: bytes) -> str:
    """What is wrong with this exchange, or nothing. `path` is as it was sent, without a query."""
    route = route_of(method, path)
    if route is None:
        return ""
    where = route.template, route.method.lower()
    if status not in route.answers:
        allowed = {entry.code for entry in route.all_refusals if entry.status == status}
        problem = json.loads(answered) if answered and method != "HEAD" else None
        if not allowed or (problem is not None and problem["code"] not in allowed):
            return f"{name_of(route)}: {status} {answered!r} is not declared"
        return "" if problem is None else body_answered(*where, status, media)(problem)
    seen.add(name_of(route))
    complaint = body_taken(*where)(json.loads(asked or b"{}")) if route.body is not None else ""
    kind = route.answers[status]
    if kind is None:
        complaint += f" {answered!r} though nothing is declared" if answered else ""
    elif kind is not Blob and method != "HEAD":
        answer = json.loads(answered)
        complaint += body_answered(*where, status, media)(answer)
        if route.path == SYNC:
            complaint += "; ".join(filter(None, map(told, answer["events"])))
    return f"{name_of(route)} {status}: {complaint}" if complaint else ""


class Pipeline:
    """Stands before the pipeline of a house and looks at what goes by."""

    def __init__(self, serve: Callable[..., Any], complaints: list[str]) -> None:
        self._serve, self._complaints = serve, complaints

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked, answered, head = bytearray(), bytearray(), {}

        async def receive_and_note() -> Any:
            message = await receive()
            asked.extend(message.get("body", b""))
            return message

        async def send_and_note(message: Any) -> None:
            head.update(message)
            answered.extend(message.get("body", b""))
            await send(message)

        await self._serve(scope, receive_and_note, send_and_note)
        if "status" in head:
            path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
            media = dict(head["headers"]).get(b"content-type", b"").decode()
            found = exchanged(scope["method"], path, bytes(asked), head["status"], media, bytes(answered))
            self._complaints += filter(None, [found])


# --- frames ----------------------------------------------------------------------------------------------------------


def told(frame: dict[str, Any]) -> str:
    """What is wrong with a frame of the server, or nothing."""
    check = frames("send").get(frame["type"])
    if check is None:
        return f"{frame['type']}: not declared"
    seen.add(f"told {frame['type']}")
    complaint = check(frame)
    return f"{frame['type']}: {complaint}" if complaint else ""


class Talk:
    """What one socket said and heard."""

    def __init__(self) -> None:
        self._refusals = {entry.code for entry in (*UNTYPED_REFUSALS, *GENERAL_REFUSALS)}
        self._open: dict[str, dict[str, Any]] = {}  # by the `ref` that its answer brings back

    def said(self, frame: dict[str, Any]) -> None:
        route = next((route for route in FRAMES if route.type == frame["type"]), None)
        if route is not None:
            seen.add(f"said {route.type}")
            self._refusals |= {entry.code for entry in route.all_refusals}
            if isinstance(frame.get("ref"), str):
                self._open[frame["ref"]] = frame

    def heard(self, frame: dict[str, Any]) -> None:
        complaint = told(frame)
        assert not complaint, complaint
        if frame["type"] == "error":
            assert frame["code"] in self._refusals, f"{frame} is not declared for what was said"
        elif frame["type"] == "session:goodbye":
            assert frame["reason"] in errors.CATALOGUE, frame
        elif (asked := self._open.pop(frame.get("ref", ""), None)) is not None:
            complaint = frames("receive")[asked["type"]](asked)
            assert not complaint, f"taken, though {complaint}: {asked}"
