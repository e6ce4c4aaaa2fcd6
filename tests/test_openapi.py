"""The OpenAPI document: whole, consistent with itself, and the same story that the route table tells."""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gearlink import errors, views
from gearlink.http_api import asyncapi, docs_page, openapi
from gearlink.http_api.routes import ROUTES
from gearlink.http_api.table import Route
from gearlink.ws_frames import FRAMES

DOCUMENT = openapi.document(ROUTES, "1.2.3")
SCALARS = {"string", "integer", "number", "boolean", "null"}


def values(node: Any) -> Iterator[Any]:
    yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from values(child)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def resolve(reference: str) -> Any:
    assert reference.startswith("#/")
    node: Any = DOCUMENT
    for part in reference[2:].split("/"):
        node = node[part.replace("~1", "/").replace("~0", "~")]
    return node


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


def test_the_document_is_json_of_version_3_1_and_the_same_every_time() -> None:
    assert json.loads(msgspec.json.encode(DOCUMENT)) == DOCUMENT
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == "1.2.3"
    assert openapi.document(ROUTES, "1.2.3") == DOCUMENT


def test_every_reference_resolves_and_every_component_is_used() -> None:
    references = {node["$ref"] for node in values(DOCUMENT) if isinstance(node, dict) and "$ref" in node}
    assert references
    for reference in references:
        resolve(reference)
    for section in ("schemas", "examples", "headers"):
        for name in DOCUMENT["components"][section]:
            assert re.fullmatch(r"[a-zA-Z0-9._-]+", name)
            assert f"#/components/{section}/{name}" in references, f"{section}/{name} is not used"


def test_operation_ids_are_unique_camel_case() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(ids) == len(set(ids)) == len(ROUTES)
    assert all(re.fullmatch(r"[a-z]+([A-Z][a-z]+)*", each) for each in ids)


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_a_route_is_documented_with_all_its_answers_and_refusals(route: Route) -> None:
    operation = DOCUMENT["paths"][route.template][route.method.lower()]
    assert operation["summary"] == route.summary
    assert operation["security"] == ([] if route.needs == "nobody" else [{"bearer": []}])
    assert ("requestBody" in operation) == (route.body is not None or bool(route.takes))
    answers = operation["responses"]
    assert set(answers) == {str(status) for status in route.answers} | {str(each.status) for each in route.all_refusals}
    for entry in route.all_refusals:
        media = answers[str(entry.status)]["content"]["application/problem+json"]
        assert resolve(media["schema"]["$ref"])["title"] == "Problem"
        assert resolve(media["examples"][entry.code]["$ref"])["value"]["code"] == entry.code
    for status, kind in route.answers.items():
        assert ("content" in answers[str(status)]) == (kind is not None)


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_parameters_are_those_of_the_path_and_the_query_form(route: Route) -> None:
    parameters = DOCUMENT["paths"][route.template][route.method.lower()].get("parameters", [])
    in_path = [each["name"] for each in parameters if each["in"] == "path"]
    in_query = {each["name"] for each in parameters if each["in"] == "query"}
    assert in_path == re.findall(r"\{(\w+)\}", route.template)
    assert in_query == {each.encode_name for each in msgspec.structs.fields(route.query)}
    assert all(each["required"] for each in parameters if each["in"] == "path")
    assert all(each["schema"]["type"] in SCALARS for each in parameters)


def test_the_limit_of_a_page_is_documented_as_it_is_checked() -> None:
    parameters = DOCUMENT["paths"]["/api/v1/conversations"]["get"]["parameters"]
    limit = next(each for each in parameters if each["name"] == "limit")
    assert limit["required"] is False
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}


def test_examples_of_refusals_are_problem_documents() -> None:
    for code, example in DOCUMENT["components"]["examples"].items():
        problem = msgspec.convert(example["value"], views.Problem)
        entry = errors.CATALOGUE[code]
        assert (problem.code, problem.status, problem.title) == (code, entry.status, entry.title)
        assert problem.type == f"/problems/{code}"
        assert (problem.errors is msgspec.UNSET) == (entry is not errors.INVALID_REQUEST)


def test_request_forms_are_closed_and_answers_are_open() -> None:
    bodies = {route.body.__name__ for route in ROUTES if route.body}
    for name, schema in DOCUMENT["components"]["schemas"].items():
        if name in bodies:
            assert schema["additionalProperties"] is False
        elif name.startswith("Page_") or name in ("User", "MessageView", "Problem"):
            assert "additionalProperties" not in schema


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_every_route_that_writes_can_be_told_that_the_disk_is_full(route: Route) -> None:
    assert (errors.STORAGE_FULL in route.all_refusals) == (route.method != "GET")
    assert (errors.NOT_AUTHENTICATED in route.all_refusals) == (route.needs != "nobody")
    assert (errors.NOT_FOUND in route.all_refusals) or not route.ids


def test_the_docs_page_shows_every_operation_and_escapes_what_it_shows() -> None:
    socket = asyncapi.document(FRAMES, "1.2.3")
    page = docs_page.docs(DOCUMENT, socket)
    for path, method, operation in operations():
        assert f'id="{operation["operationId"]}"' in page
        assert f"{method.upper()}</span> {path}" in page
    for name in DOCUMENT["components"]["schemas"]:
        assert f'id="form-{name}"' in page
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= anchors
    evil = {**DOCUMENT, "info": {"title": "<b>&", "version": '"', "description": "`<i>`"}}
    assert "<b>" not in docs_page.docs(evil, socket) and "<i>" not in docs_page.docs(evil, socket)
