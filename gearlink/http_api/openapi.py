"""The OpenAPI 3.1 document, made from the route table and the wire structs: it cannot say what the code does not.

Pure: the same table gives the same document. It names every refusal of every call with an example. It knows nothing of
ASGI or HTML.
"""

import re
from collections.abc import Iterable
from itertools import groupby
from typing import Any, Final

import msgspec

from gearlink import errors
from gearlink.errors import Entry
from gearlink.http_api.table import TEXT_PARAMETERS, Blob, Route
from gearlink.views import Problem

Json = dict[str, Any]

_REF: Final = "#/components/schemas/{name}"
_ABOUT: Final = """\
The REST side of a GearLink server. Live events travel over the WebSocket at `/ws`, subprotocol \
`gearlink.v1`; AsyncAPI describes it at `/api/asyncapi.json`.

Times are RFC 3339 in UTC with milliseconds, ids are UUIDv7. Unknown keys in a request are refused; ignore unknown \
keys in an answer. Every answer carries `X-Correlation-Id`; send your own (8 to 64 of `A-Z a-z 0-9 . _ -`) to find a \
request in the server's log. Refusals are problem documents (RFC 9457): switch on `code`, never on the texts. \
`GET` also answers `HEAD`. The public keys of access tokens are at `/.well-known/jwks.json`."""
_SUCCESS: Final = {
    200: "Done",
    201: "Created",
    202: "Accepted",
    204: "Done; there is no content",
    304: "You have it already",
}
_ID_SCHEMA: Final = {"type": "string", "format": "uuid"}


def document(routes: Iterable[Route], version: str) -> Json:
    """The whole document as JSON values."""
    table = list(routes)
    references, schemas = schema_components(_types(table))
    # Their properties become parameters, so the forms themselves are not shown.
    queries = {query: schemas.pop(query.__name__) for query in dict.fromkeys(route.query for route in table)}
    paths: dict[str, Json] = {}
    used: dict[str, Entry] = {}
    for route in table:
        operation = _operation(route, references, queries[route.query])
        paths.setdefault(route.template, {})[route.method.lower()] = operation
        used |= {entry.code: entry for entry in route.all_refusals}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GearLink",
            "version": version,
            "description": _ABOUT,
            "license": {"name": "AGPL-3.0-or-later", "identifier": "AGPL-3.0-or-later"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(map(_tag, table))],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "examples": {
                code: {"summary": entry.title, "value": _example(entry)} for code, entry in sorted(used.items())
            },
            "headers": _headers(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "The access token"}
            },
        },
    }


def _types(routes: list[Route]) -> list[Any]:
    types: list[Any] = [Problem]
    for route in routes:
        types += [route.query, *([route.body] if route.body else [])]
        types += [answer for answer in route.answers.values() if answer not in (None, Blob)]
    return list(dict.fromkeys(types))


def schema_components(types: list[Any]) -> tuple[dict[Any, Json], dict[str, Json]]:
    """How to refer to each of these types, and the component schemas by name."""
    references, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    for schema in schemas.values():
        if "description" in schema:  # it is the docstring, which says `temp_id` for what the wire calls `tempId`
            schema["description"] = re.sub(r"`\w+`", lambda found: camel(found[0]), schema["description"])
    return dict(zip(types, references, strict=True)), schemas


def _tag(route: Route) -> str:
    return route.handler.__module__.rpartition(".")[2]


def camel(name: str) -> str:
    """`temp_id` as the wire has it."""
    return re.sub(r"_(\w)", lambda found: found[1].upper(), name)


def _operation(route: Route, references: dict[Any, Json], query: Json) -> Json:
    operation: Json = {
        "operationId": camel(getattr(route.handler, "__name__", "")),
        "summary": route.summary,
        "tags": [_tag(route)],
        "security": [] if route.needs == "nobody" else [{"bearer": []}],
    }
    if route.needs == "admin":
        operation["description"] = "For administrators."
    if parameters := [*_path_parameters(route), *_query_parameters(query)]:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": not route.body_may_be_absent,
            "content": {"application/json": {"schema": references[route.body]}},
        }
    elif route.takes:
        about = f"At most {route.body_bytes_max} bytes"
        operation["requestBody"] = {
            "required": True,
            "description": about,
            "content": {kind: {} for kind in route.takes},
        }
    answers = {
        str(status): _answer(status, _content(route, kind, references)) for status, kind in route.answers.items()
    }
    by_status = groupby(route.all_refusals, key=lambda entry: entry.status)
    refusals = {str(status): _refusal(list(entries), references[Problem]) for status, entries in by_status}
    operation["responses"] = answers | refusals
    return operation


def _path_parameters(route: Route) -> list[Json]:
    parameters: list[Json] = []
    for name in route.ids:
        parameter = {"name": name, "in": "path", "required": True, "schema": _ID_SCHEMA}
        if (text := TEXT_PARAMETERS.get(name)) is not None:
            parameter["description"] = text.description
            parameter["schema"] = {"type": "string", "minLength": text.chars_min, "maxLength": text.chars_max}
        parameters.append(parameter)
    return parameters


def _query_parameters(schema: Json) -> list[Json]:
    parameters = []
    for name, field in schema["properties"].items():
        # A parameter that is not there is null for us; on the wire there is no null.
        shape = dict(next((choice for choice in field.get("anyOf", ()) if choice != {"type": "null"}), field))
        parameter: Json = {"name": name, "in": "query", "required": name in schema["required"]}
        if description := shape.pop("description", ""):
            parameter["description"] = description
        parameters.append(parameter | {"schema": shape})
    return parameters


def _content(route: Route, kind: Any, references: dict[Any, Json]) -> Json:
    """What an answer holds, by its media types: JSON, or bytes, of which OpenAPI says nothing (OpenAPI 3.1 §4.8.14.3)."""
    if kind is Blob:
        return {each: {} for each in route.gives}
    return {} if kind is None else {"application/json": {"schema": references[kind]}}


def _answer(status: int, content: Json) -> Json:
    answer: Json = {"description": _SUCCESS[status], "headers": {"X-Correlation-Id": _header("X-Correlation-Id")}}
    if content:
        answer["content"] = content
    return answer


def _refusal(entries: list[Entry], schema: Json) -> Json:
    """All refusals of one status."""
    status, names = entries[0].status, ["X-Correlation-Id"]
    names += ["Retry-After", "RateLimit", "RateLimit-Policy"] if status == 429 else []
    names += ["WWW-Authenticate"] if status == 401 else []
    return {
        "description": "; ".join(f"`{entry.code}`: {entry.title}" for entry in entries),
        "headers": {name: _header(name) for name in names},
        "content": {
            "application/problem+json": {
                "schema": schema,
                "examples": {entry.code: {"$ref": f"#/components/examples/{entry.code}"} for entry in entries},
            }
        },
    }


def _header(name: str) -> Json:
    return {"$ref": f"#/components/headers/{name}"}


def _headers() -> dict[str, Json]:
    texts = {
        "X-Correlation-Id": "Names this request in the server's log.",
        "Retry-After": "Seconds to wait.",
        "RateLimit": "What is left of the limit.",
        "RateLimit-Policy": "The limit itself.",
        "WWW-Authenticate": "How to sign in.",
    }
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}


def _example(entry: Entry) -> Json:
    example: Json = {
        "type": f"/problems/{entry.code}",
        "title": entry.title,
        "status": entry.status,
        "detail": entry.title,
        "code": entry.code,
        "correlationId": "019a0f3e-7c00-7000-8000-000000000000",
    }
    if entry is errors.INVALID_REQUEST:
        example["errors"] = [{"path": "name", "message": "length at least 1"}]
    return example
