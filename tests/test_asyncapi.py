"""The AsyncAPI document: whole, consistent with itself, and the same story that the table of frames tells."""

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import jsonschema_rs
import msgspec
import pytest

from gearlink import errors, protocol
from gearlink.http_api import asyncapi, docs_page, openapi
from gearlink.http_api.routes import ROUTES
from gearlink.ws_frames import FRAMES, FrameRoute

DOCUMENT = asyncapi.document(FRAMES, "1.2.3")
CHANNEL = DOCUMENT["channels"]["socket"]
COMPONENTS = DOCUMENT["components"]
OPERATIONS: dict[str, dict[str, Any]] = DOCUMENT["operations"]
TOLD = get_args(protocol.AnyServerFrame)
ANSWERS = {"auth:ok", "message:ack", "pong", "ok", "error"}


def values(node: Any) -> Iterator[Any]:
    yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from values(child)


def resolve(node: dict[str, Any]) -> Any:
    """What a reference leads to in the end."""
    while set(node) == {"$ref"}:
        found: Any = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def types_of(messages: list[dict[str, Any]]) -> list[str]:
    return [resolve(message)["name"] for message in messages]


def type_of(route: FrameRoute) -> str:
    return route.type


def test_the_document_is_json_of_version_3_0_and_the_same_every_time() -> None:
    assert json.loads(msgspec.json.encode(DOCUMENT)) == DOCUMENT
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert DOCUMENT["info"]["version"] == "1.2.3"
    assert asyncapi.document(FRAMES, "1.2.3") == DOCUMENT


def test_its_parts_are_those_that_the_specification_asks_for() -> None:
    """The keys that AsyncAPI 3.0 requires or allows in each object that is used; all others would be extensions."""
    objects: list[tuple[Any, set[str], set[str]]] = [
        (DOCUMENT, {"asyncapi", "info"}, {"servers", "defaultContentType", "channels", "operations", "components"}),
        (DOCUMENT["info"], {"title", "version"}, {"description", "license"}),
        (COMPONENTS, set(), {"schemas", "messages", "securitySchemes"}),
        (CHANNEL, set(), {"address", "title", "messages", "bindings"}),
        (CHANNEL["bindings"]["ws"], set(), {"method", "headers", "bindingVersion"}),
        *(
            (each, {"host", "protocol"}, {"description", "variables", "security"})
            for each in DOCUMENT["servers"].values()
        ),
        *((each, {"action", "channel"}, {"title", "summary", "messages", "reply"}) for each in OPERATIONS.values()),
        *((each["reply"], set(), {"channel", "messages"}) for each in OPERATIONS.values() if "reply" in each),
        *((each, set(), {"name", "payload", "examples"}) for each in COMPONENTS["messages"].values()),
    ]
    for found, required, allowed in objects:
        assert required <= set(found), found
        assert all(key in required | allowed or key.startswith("x-") for key in found), found
    for keyed in (DOCUMENT["servers"], OPERATIONS, COMPONENTS["messages"], COMPONENTS["schemas"]):
        assert all(re.fullmatch(r"[\w.-]+", name) for name in keyed)


def test_every_reference_resolves_and_every_component_is_used() -> None:
    references = {node["$ref"] for node in values(DOCUMENT) if isinstance(node, dict) and "$ref" in node}
    assert references
    for reference in references:
        resolve({"$ref": reference})
    for section in ("schemas", "messages", "securitySchemes"):
        for name in COMPONENTS[section]:
            assert f"#/components/{section}/{name}" in references, f"{section}/{name} is not used"


def test_operations_name_messages_of_their_channel_and_no_others() -> None:
    """AsyncAPI 3.0, Operation Object: a message reference leads to the channel, not past it to the components."""
    for operation in OPERATIONS.values():
        messages = [*operation["messages"], *operation.get("reply", {}).get("messages", ())]
        assert all(message["$ref"].startswith("#/channels/socket/messages/") for message in messages)
        assert resolve(operation["channel"]) is CHANNEL
    assert set(CHANNEL["messages"]) == set(COMPONENTS["messages"])


@pytest.mark.parametrize("route", FRAMES, ids=type_of)
def test_a_frame_of_clients_is_described_with_its_answer_its_right_and_its_refusals(route: FrameRoute) -> None:
    operation = OPERATIONS[f"say{route.form.__name__}"]
    assert operation["action"] == "receive" and operation["summary"] == route.summary
    assert types_of(operation["messages"]) == [route.type]
    assert types_of(operation["reply"]["messages"]) == [route.answer.__struct_config__.tag, "error"]
    assert set(operation["x-refusals"]) == {each.code for each in route.all_refusals} <= set(errors.CATALOGUE)
    assert ("x-right" in operation) == (route.right is not None)
    assert resolve(resolve(operation["messages"][0])["payload"])["additionalProperties"] is False


def test_every_frame_of_the_server_is_told_by_itself_or_is_an_answer() -> None:
    sent = [types_of(each["messages"]) for each in OPERATIONS.values() if each["action"] == "send"]
    answers = {type for each in OPERATIONS.values() if "reply" in each for type in types_of(each["reply"]["messages"])}
    told = {type for [type] in sent}
    assert told | answers == {form.__struct_config__.tag for form in TOLD}
    # `message:ack` is also what a client says, and `presence` both the answer and the news.
    assert answers - told == ANSWERS and answers & told == {"presence"}


@pytest.mark.parametrize("name", COMPONENTS["messages"])
def test_an_example_is_what_its_schema_and_the_struct_take(name: str) -> None:
    message = COMPONENTS["messages"][name]
    for example in message["examples"]:
        jsonschema_rs.validate({**message["payload"], "components": COMPONENTS}, example["payload"])
        form = getattr(protocol, name)
        assert msgspec.convert(example["payload"], form).__struct_config__.tag == message["name"]


def test_the_socket_is_described_with_its_subprotocol_its_close_codes_and_how_to_sign_in() -> None:
    assert CHANNEL["address"] == "/ws"
    headers = CHANNEL["bindings"]["ws"]["headers"]["properties"]
    assert headers["Sec-WebSocket-Protocol"]["const"] == CHANNEL["x-subprotocol"] == protocol.SUBPROTOCOL
    for entry in errors.CATALOGUE.values():
        if entry.close:
            assert f"`{entry.code}`" in CHANNEL["x-close-codes"][str(entry.close)]
    for server in DOCUMENT["servers"].values():
        assert [resolve(each)["in"] for each in server["security"]] == ["password"]
        assert set(re.findall(r"\{(\w+)\}", server["host"])) == set(server["variables"])


def test_both_descriptions_say_the_same_of_the_forms_that_they_share() -> None:
    rest = openapi.document(ROUTES, "1.2.3")["components"]["schemas"]
    shared = set(rest) & set(COMPONENTS["schemas"])
    assert "MessageView" in shared and "ConversationView" in shared
    for name in shared:
        assert rest[name] == COMPONENTS["schemas"][name]


def test_the_docs_page_shows_every_frame() -> None:
    page = docs_page.docs(openapi.document(ROUTES, "1.2.3"), DOCUMENT)
    for name, operation in OPERATIONS.items():
        assert f'id="{name}"' in page and f"<code>{operation['title']}</code>" in page
        for code in operation.get("x-refusals", ()):
            assert f'href="/problems/{code}"' in page
    for name in COMPONENTS["schemas"]:
        assert f'id="form-{name}"' in page
    for code in CHANNEL["x-close-codes"]:
        assert f"<td>{code}</td>" in page
    anchors = re.findall(r'id="([^"]+)"', page)
    assert len(anchors) == len(set(anchors)) and set(re.findall(r'href="#([^"]+)"', page)) <= set(anchors)
