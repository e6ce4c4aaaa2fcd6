"""The AsyncAPI 3.0 document of the WebSocket, made from the table of frames and the wire structs.

It is written from the server's side, as AsyncAPI asks: what a client says is an operation that the server receives, with
its answers; what the server says by itself is an operation that it sends. Right, refusals and close codes stand in
extensions (`x-right`, `x-refusals`, `x-close-codes`), since AsyncAPI has no word for them. Pure: the same table gives the
same document.
"""

import re
from collections.abc import Iterable
from typing import Any, Final, get_args

import msgspec

from gearlink import errors, protocol
from gearlink.http_api.openapi import Json, camel, schema_components
from gearlink.ws_frames import UNTYPED_REFUSALS, FrameRoute

_CHANNEL: Final = {"$ref": "#/channels/socket"}
_ANSWERS: Final = (protocol.AuthOk, protocol.SendAck, protocol.Pong, protocol.Ok, protocol.Error)
"""What the server says only when it was spoken to."""
_ABOUT: Final = """\
The live side of a GearLink server: one WebSocket (RFC 6455, version 13) at `/ws`, subprotocol `gearlink.v1`. The REST \
side is described by OpenAPI at `/api/openapi.json`.

Every frame is one JSON object in a text frame, told apart by `type`. The first frame is `auth`, within 10 seconds; a \
token never goes into a URL. The answer is `auth:ok`, then what was missed, then `sync:done`, then live events. A frame \
may carry `ref`, which its answer brings back; what is only noted (receipts, typing) is answered to frames with one \
alone. A refusal is a frame `error`: switch \
on `code`. Unknown keys in what a client says are refused; ignore keys and types that you do not know."""
_CLOSE_CODES: Final = {
    1000: "the session ended; reconnect with backoff",
    1002: "a frame that breaks RFC 6455",
    1007: "a text frame that is not UTF-8",
    1009: "a frame that is too large",
    1011: "the server could not go on: `internal-error`, `storage-failed`",
}
_ID: Final = "019a0f3e-7c00-7000-8000-000000000001"
_TIME: Final = "2026-01-31T12:00:00.000Z"
# What stands in examples, by the name of the field; else its type decides.
_SAMPLES: Final[dict[str, Any]] = {
    "accessToken": "eyJhbGciOiJFZERTQSJ9.e30.c2lnbmF0dXJl",
    "content": "Are the tomatoes up?",
    "emoji": "\N{THUMBS UP SIGN}",
    "epoch": "5f1c9a376",
    "tempId": "t-1",
    "heartbeatSeconds": 30,
    "sequenceNumber": 42,
    "code": "not-found",
    "detail": errors.NOT_FOUND.title,
    "reason": "restarting",
    "retryAfterMs": 523,
    "kind": "text",
    "displayName": "Ann",
    "name": "Garden",
    "avatarUrl": None,
}


def document(frames: Iterable[FrameRoute], version: str) -> Json:
    """The whole document as JSON values."""
    table = list(frames)
    said = [route.form for route in table]
    told = [form for form in get_args(protocol.AnyServerFrame) if form not in said]
    schemas = schema_components([*said, *told])[1]
    messages = {form.__name__: _message(form, schemas) for form in (*said, *told)}
    operations = {f"say{route.form.__name__}": _said(route) for route in table}
    operations |= {f"tell{form.__name__}": _told(form, schemas) for form in told if form not in _ANSWERS}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "GearLink",
            "version": version,
            "description": _ABOUT,
            "license": {"name": "AGPL-3.0-or-later", "url": "https://www.gnu.org/licenses/agpl-3.0.html"},
        },
        "defaultContentType": "application/json",
        "servers": {
            scheme: {
                "host": "{host}",
                "protocol": scheme,
                "description": about,
                "variables": {"host": {"default": "127.0.0.1:8080", "description": "host and port of the server"}},
                "security": [{"$ref": "#/components/securitySchemes/accessToken"}],
            }
            for scheme, about in (("wss", "with TLS"), ("ws", "without TLS, or behind a proxy that ends it"))
        },
        "channels": {"socket": _channel(messages)},
        "operations": operations,
        "components": {
            "schemas": schemas,
            "messages": messages,
            "securitySchemes": {
                "accessToken": {
                    "type": "apiKey",
                    "in": "password",
                    "description": "The access token, as `accessToken` of the first frame, `auth`; never in the upgrade.",
                }
            },
        },
    }


def _channel(messages: Iterable[str]) -> Json:
    closing = [each for each in errors.CATALOGUE.values() if each.close]
    codes = {str(code): text for code, text in _CLOSE_CODES.items()}
    for close in sorted({each.close or 0 for each in closing}):
        codes[str(close)] = "; ".join(f"`{each.code}`: {each.title}" for each in closing if each.close == close)
    protocols = {"type": "string", "const": protocol.SUBPROTOCOL}
    headers = {"type": "object", "properties": {"Sec-WebSocket-Protocol": protocols}}
    return {
        "address": "/ws",
        "title": "The socket",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {"ws": {"method": "GET", "headers": headers, "bindingVersion": "0.1.0"}},
        "x-subprotocol": protocol.SUBPROTOCOL,
        "x-close-codes": codes,
        "x-refusals": [each.code for each in UNTYPED_REFUSALS],
    }


def _said(route: FrameRoute) -> Json:
    """What a client says and what it is answered."""
    operation: Json = {
        "action": "receive",
        "channel": _CHANNEL,
        "title": route.type,
        "summary": route.summary,
        "messages": [_in_channel(route.form)],
        "reply": {"channel": _CHANNEL, "messages": [_in_channel(route.answer), _in_channel(protocol.Error)]},
    }
    if route.right is not None:
        operation["x-right"] = route.right.name.lower().replace("_", "-")
    return operation | {"x-refusals": [each.code for each in route.all_refusals]}


def _told(form: type[msgspec.Struct], schemas: dict[str, Json]) -> Json:
    """What the server says by itself."""
    return {
        "action": "send",
        "channel": _CHANNEL,
        "title": _tag(form),
        "summary": schemas[form.__name__]["description"],
        "messages": [_in_channel(form)],
    }


def _message(form: type[msgspec.Struct], schemas: dict[str, Json]) -> Json:
    reference = {"$ref": f"#/components/schemas/{form.__name__}"}
    return {"name": _tag(form), "payload": reference, "examples": [{"payload": _example(reference, schemas)}]}


def _tag(form: type[msgspec.Struct]) -> str:
    return str(form.__struct_config__.tag)


def _in_channel(form: type[msgspec.Struct]) -> Json:
    return {"$ref": f"#/channels/socket/messages/{form.__name__}"}


def _example(schema: Json, schemas: dict[str, Json], name: str = "") -> Any:
    """A value that `schema` takes, with what is required and nothing else."""
    if "$ref" in schema:
        return _example(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema:
        choices = schema["anyOf"]
        is_optional = {"type": "null"} in choices
        return None if is_optional and name not in _SAMPLES else _example(choices[0], schemas, name)
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        fields = schema.get("properties", {})
        return {key: _example(fields[key], schemas, key) for key in schema.get("required", ())}
    if name in _SAMPLES:
        return _SAMPLES[name]
    if schema.get("type") == "array":
        return [_example(schema["items"], schemas)] if name.endswith(("Ids", "options")) else []
    simple = {"integer": schema.get("minimum", 0), "number": 0, "boolean": False}
    return simple[schema["type"]] if schema["type"] in simple else _text(schema, name)


def _text(schema: Json, name: str) -> str:
    if re.search(r"(At|Time)$|^at$", name):
        return _TIME
    return _ID if not name or "pattern" in schema or re.search(r"(Id|^id|By)$", name) else camel(name)
