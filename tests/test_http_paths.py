"""Paths with texts in them, bodies and answers that are no JSON: what goes through the HTTP door, byte by byte."""

from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from config import limits
from config.settings import Limits, Settings
from gearlink.accounts import Actor
from gearlink.domain import Domain
from gearlink.http_api import openapi
from gearlink.http_api.table import Blob, Reply, Route
from gearlink.views import Device
from tests.test_http_api import ME, OTHER, PLACE, READ, Got, House, log_lines

FAMILY, SCOTLAND = "👨‍👩‍👧‍👦", "🏴󠁧󠁢󠁳󠁣󠁴󠁿"
REACTIONS = f"/api/v1/messages/{ME}/reactions"
CODE = "abcDEF012_-abcdef"
PICTURE = "/api/v1/pictures"
TYPES = ("image/png", "image/webp")
ETAG = '"one-of-its-own"'

heard: list[tuple[Any, ...]] = []


async def react(_domain: Domain, _actor: Actor, message_id: str, emoji: str) -> Reply:
    heard.append((message_id, emoji))
    return 204, None


async def list_reactions(_domain: Domain, _actor: Actor, message_id: str) -> Reply:
    heard.append((message_id,))
    return 204, None


async def preview_link(_domain: Domain, _actor: Actor, code: str) -> Reply:
    heard.append((code,))
    return 204, None


async def put_picture(_domain: Domain, _actor: Actor, data: bytes) -> Reply:
    heard.append((data,))
    return 204, None


async def read_picture(_domain: Domain, _actor: Actor, _picture_id: str) -> Reply:
    return 200, Blob(b"pixels", "image/png", ETAG.strip('"'))


ROUTES = (
    Route("PUT", "/messages/{messageId}/reactions/{emoji}", react, "React", answers={204: None}),
    Route(READ, "/messages/{messageId}/reactions", list_reactions, "List", answers={204: None}),
    Route(READ, "/join/{code}", preview_link, "Look", answers={204: None}),
    Route("PUT", "/pictures", put_picture, "Put", answers={204: None}, takes=TYPES, body_bytes_max=100_000),
    Route(READ, "/pictures/{pictureId}", read_picture, "Show", answers={200: Blob, 304: None}, gives=TYPES),
)


@pytest.fixture
def house() -> House:
    heard.clear()
    return House(Settings(limits=Limits(body_kib=32)), routes=ROUTES)


async def react_with(house: House, raw: str) -> Got:
    """A reaction with what stands in the path as it is sent. The server also tells the path decoded, as hypercorn does."""
    target = f"{REACTIONS}/{raw}"
    return await house.ask("PUT", unquote(target), raw_path=target.encode("latin-1"))


# --- texts in paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "emoji", ["👍", FAMILY, SCOTLAND, "❤️", "1️⃣", "a", "+", "+1", "a b", "?", "#", "%", "..", "{}", "\0"]
)
async def test_an_emoji_in_a_path_is_decoded_once(house: House, emoji: str) -> None:
    got = await react_with(house, quote(emoji, safe=""))
    assert got.status == 204, got.body
    assert heard == [(ME, emoji)]


async def test_a_percent_sign_that_was_encoded_stays_one(house: House) -> None:
    assert (await react_with(house, "%25F0%2541")).status == 204
    assert heard == [(ME, "%F0%41")]


async def test_an_encoded_slash_is_a_letter_and_no_border(house: House) -> None:
    assert (await react_with(house, "a%2Fb")).status == 204
    assert heard == [(ME, "a/b")]
    assert (await react_with(house, "a/b")).status == 404


@pytest.mark.parametrize(
    "raw",
    ["", "/", "%", "%F", "%G0", "%F0%9F%91", "%FF", "%C0%AF", "%ED%A0%80", "%F4%90%80%80", "%80", "👍", "\xe9", "a b", "a\n",
     "x" * (limits.EMOJI_CHARS_MAX + 1), "%F0%9F%91%8D" * (limits.EMOJI_CHARS_MAX + 1), "x" * 5000, "%41" * 5000,
     OTHER, "[", "|", '"'],
)  # fmt: skip
async def test_what_no_emoji_can_be_is_not_found(house: House, raw: str) -> None:
    target = f"{REACTIONS}/{raw}"
    got = await house.ask("PUT", unquote(target), raw_path=target.encode())
    assert (got.status, got.code) == (404, "not-found")
    assert heard == []


async def test_the_longest_emoji_fits(house: House) -> None:
    assert (await react_with(house, "%F0%9F%91%8D" * limits.EMOJI_CHARS_MAX)).status == 204


@given(st.text(max_size=20).filter(lambda text: text not in (".", "..")))
@example("/")
@example("\ud7ff")
def test_every_text_arrives_whole_or_not_at_all(text: str) -> None:
    house, found = House(routes=ROUTES), []
    for raw in (quote(text, safe=""), quote(text, safe="").lower(), quote(text, safe="!$&'()*+,;=:@~")):
        target = f"{REACTIONS}/{raw}"
        scope = {"path": unquote(target), "raw_path": target.encode()}
        found.append(house.app.pipeline._find(scope["path"], scope))
    first = found[0]
    if 1 <= len(text) <= limits.EMOJI_CHARS_MAX:
        assert first[1] == (ME, text)
        assert text != text.lower() or found[1] == first == found[2]
    elif text:
        assert first == (house.app.pipeline._unmatched, ())
    else:
        assert first[1] == ()


async def test_the_path_around_a_text_has_to_be_right(house: House) -> None:
    for path in (f"/api/v1/messages/{ME.upper()}/reactions/a", "/api/v1/messages/1/reactions/a", f"{REACTIONS}/a/",
                 f"//api/v1/messages/{ME}/reactions/a", f"/api/v2/messages/{ME}/reactions/a", f"{REACTIONS}%2Fa"):  # fmt: skip
        got = await house.ask("PUT", path, raw_path=path.encode())
        assert got.status == 404, path
    assert heard == []


async def test_the_list_above_a_text_is_a_place_of_its_own(house: House) -> None:
    assert (await house.ask(READ, REACTIONS, raw_path=REACTIONS.encode())).status == 204
    assert heard == [(ME,)]
    assert (await house.ask(READ, f"{REACTIONS}/a")).headers["allow"] == "OPTIONS, PUT"


async def test_a_server_that_tells_no_raw_path_still_finds_the_place(house: House) -> None:
    assert (await house.ask("PUT", f"{REACTIONS}/{FAMILY}")).status == 204
    assert (await house.ask("PUT", f"{REACTIONS}/\ud800")).status == 204, "a question mark in its place"
    assert heard == [(ME, FAMILY), (ME, "?")]


async def test_a_target_that_is_a_whole_url_may_hold_a_text(house: House) -> None:
    target = f"http://chat.example.org{REACTIONS}/%F0%9F%91%8D"
    assert (await house.ask("PUT", unquote(target), raw_path=target.encode())).status == 204
    assert heard == [(ME, "👍")]


@pytest.mark.parametrize(
    "code", ["a" * 15, "a" * 65, "a" * 20 + ".", "%61" * 20, "a" * 20 + "/", "é" * 20, "a" * 20 + "\n"]
)
async def test_what_no_code_can_be_is_not_found(house: House, code: str) -> None:
    target = f"/api/v1/join/{code}"
    assert (await house.ask(READ, unquote(target), raw_path=target.encode())).status == 404
    assert heard == []


async def test_a_code_arrives_as_it_is(house: House) -> None:
    for code in (CODE, "a" * 16, "_" * 64):
        assert (await house.ask(READ, f"/api/v1/join/{code}")).status == 204
        assert heard.pop() == (code,)


async def test_figures_and_log_hold_the_template_and_no_text(house: House) -> None:
    with log_lines() as lines:
        await react_with(house, "hunter2")
        await react_with(house, "hunter2%FF")
        await house.ask(READ, f"/api/v1/join/{CODE}")
    template = "/api/v1/messages/{messageId}/reactions/{emoji}"
    assert [line["route"] for line in lines] == [template, "unmatched", "/api/v1/join/{code}"]
    assert "hunter2" not in str(lines) and CODE not in str(lines)
    assert house.count(method="PUT", route=template, status="204") == 1


# --- bodies that are no JSON -----------------------------------------------------------------------------------------


async def put(house: House, body: bytes, kind: str = TYPES[0], **options: Any) -> Got:
    return await house.ask(
        "PUT", PICTURE, body=body, headers={"Content-Type": kind, **options.pop("headers", {})}, **options
    )


async def test_a_raw_body_arrives_byte_by_byte(house: House) -> None:
    data = bytes(range(256)) * 200  # more than JSON may have here
    for kind in (*TYPES, "IMAGE/PNG", "image/webp; q=1"):
        assert (await put(house, data, kind)).status == 204
        assert heard.pop() == (data,)


@pytest.mark.parametrize("kind", ["", "application/json", "image/gif", "text/html", "image/png, image/webp", "\xff"])
async def test_a_raw_body_of_another_type_is_refused(house: House, kind: str) -> None:
    got = await put(house, b"data", kind)
    assert (got.status, got.code) == (415, "unsupported-media-type")
    assert got.headers["accept"] == "image/png, image/webp"
    assert heard == []


async def test_a_compressed_raw_body_is_refused(house: House) -> None:
    assert (await put(house, b"data", headers={"Content-Encoding": "br"})).status == 415


async def test_a_raw_body_has_a_limit_of_its_own_and_json_keeps_its(house: House) -> None:
    assert (await put(house, bytes(100_000))).status == 204
    for options in ({"body": bytes(100_001)}, {"body": b"", "chunks": [bytes(60_000)] * 2}):
        got = await house.ask("PUT", PICTURE, headers={"Content-Type": TYPES[0]}, **options)
        assert (got.status, got.code) == (413, "too-large")
    assert (await house.ask("POST", PICTURE, body=bytes(32 * 1024 + 1))).status == 413, "only the PUT takes more"


async def test_nobody_puts_anything_without_a_token(house: House) -> None:
    assert (await put(house, b"data", token=None)).status == 401
    assert heard == []


# --- answers that are no JSON ----------------------------------------------------------------------------------------

SHOW = f"{PICTURE}/{PLACE}"


async def test_bytes_are_answered_as_what_they_are_and_can_do_nothing(house: House) -> None:
    got = await house.ask(READ, SHOW)
    assert (got.status, got.body) == (200, b"pixels")
    assert got.headers["content-type"] == "image/png" and got.headers["content-length"] == "6"
    assert got.headers["content-disposition"] == 'inline; filename="file.png"'
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'; sandbox"
    assert got.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert got.headers["etag"] == ETAG
    head = await house.ask("HEAD", SHOW)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "6")


@pytest.mark.parametrize("known", [ETAG, f"W/{ETAG}", "*", f'"other", {ETAG}', f'"a,b",W/{ETAG} , "c"'])
async def test_who_has_the_bytes_is_not_sent_them_again(house: House, known: str) -> None:
    for method in (READ, "HEAD"):
        got = await house.ask(method, SHOW, headers={"If-None-Match": known})
        assert (got.status, got.body) == (304, b"")
        assert got.headers["etag"] == ETAG and got.headers["cache-control"].startswith("private")
        assert "content-length" not in got.headers and "content-type" not in got.headers
        assert got.headers["x-correlation-id"]


@pytest.mark.parametrize("known", ["", '"other"', "one-of-its-own", ETAG[:-1], '"**"'])
async def test_who_has_something_else_is_sent_the_bytes(house: House, known: str) -> None:
    assert (await house.ask(READ, SHOW, headers={"If-None-Match": known})).status == 200


async def test_who_is_not_signed_in_learns_nothing_by_a_tag(house: House) -> None:
    assert (await house.ask(READ, SHOW, headers={"If-None-Match": "*"}, token=None)).status == 401


# --- what is declared ------------------------------------------------------------------------------------------------


def test_the_document_tells_of_texts_and_of_what_is_no_json() -> None:
    paths = openapi.document((*ROUTES, Route(READ, "/x", react, "X", answers={200: Device})), "1")["paths"]
    emoji = paths["/api/v1/messages/{messageId}/reactions/{emoji}"]["put"]["parameters"][1]
    assert emoji["schema"] == {"type": "string", "minLength": 1, "maxLength": limits.EMOJI_CHARS_MAX}
    code = paths["/api/v1/join/{code}"]["get"]["parameters"][0]
    assert code["schema"] == {"type": "string", "minLength": 16, "maxLength": 64}
    put = paths[PICTURE]["put"]
    assert set(put["requestBody"]["content"]) == set(TYPES)
    assert {"413", "415"} <= set(put["responses"]) and "400" not in put["responses"]
    show = paths[PICTURE + "/{pictureId}"]["get"]["responses"]
    assert set(show["200"]["content"]) == set(TYPES) and "content" not in show["304"]


@pytest.mark.parametrize(
    "more",
    [{"takes": TYPES}, {"body_bytes_max": 9}, {"gives": TYPES}, {"answers": {200: Blob}},
     {"takes": TYPES, "body_bytes_max": 9, "body": Device}],
)  # fmt: skip
def test_a_route_that_contradicts_itself_cannot_be_declared(more: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        Route(**{"method": "PUT", "path": "/x", "handler": react, "summary": "X", "answers": {204: None}, **more})
