"""That the watch over the tests' own traffic sees what is not as described."""

import json
from typing import Any

import msgspec
import pytest

from gearlink import errors
from gearlink.views import Problem
from tests import traffic
from tests.http_examples import MESSAGE, OTHER, PLACE, USER

JSON, PROBLEM = "application/json", "application/problem+json"
ME = "/api/v1/users/me"
READ = f"/api/v1/conversations/{PLACE}/read"


def document(entry: errors.Entry, **more: Any) -> bytes:
    problem = Problem(
        type=f"/problems/{entry.code}", title=entry.title, status=entry.status, detail="", code=entry.code,
        correlation_id=OTHER,
    )  # fmt: skip
    return json.dumps(msgspec.to_builtins(problem) | more).encode()


def user(**more: Any) -> bytes:
    return json.dumps(msgspec.to_builtins(USER) | more).encode()


def test_what_is_as_described_is_passed_and_counted() -> None:
    assert traffic.exchanged("GET", ME, b"", 200, JSON, user()) == ""
    assert traffic.exchanged("HEAD", ME, b"", 200, JSON, b"") == ""
    assert traffic.exchanged("GET", ME, b"", 401, PROBLEM, document(errors.NOT_AUTHENTICATED)) == ""
    assert traffic.exchanged("PUT", READ, b'{"sequenceNumber": 1}', 204, "", b"") == ""
    assert traffic.exchanged("GET", "/healthz", b"", 200, JSON, b"{}") == ""  # no call of ours
    assert {"GET /users/me", "PUT /conversations/{conversationId}/read"} <= traffic.seen


@pytest.mark.parametrize(
    ("method", "path", "asked", "status", "media", "answered"),
    [
        ("GET", ME, b"", 200, JSON, user(shoeSize=42)),
        ("GET", ME, b"", 200, JSON, b'{"id": "x"}'),
        ("GET", ME, b"", 201, JSON, user()),
        ("GET", ME, b"", 404, PROBLEM, document(errors.NOT_FOUND)),
        ("GET", ME, b"", 401, PROBLEM, document(errors.WRONG_CODE)),
        ("GET", ME, b"", 401, PROBLEM, document(errors.NOT_AUTHENTICATED, hint="x")),
        ("PUT", READ, b'{"sequenceNumber": 1}', 204, "", b"{}"),
        ("PUT", READ, b'{"sequenceNumber": -1}', 204, "", b""),
        ("PUT", READ, b'{"sequenceNumber": 1, "x": 1}', 204, "", b""),
        ("POST", "/api/v1/sync", b"{}", 200, JSON, b'{"epoch": "e", "cursors": {}, "conversations": [], "complete": true,'
         b' "events": [{"type": "nonsense"}]}'),
    ],
)  # fmt: skip
def test_an_exchange_that_is_not_as_described_is_a_complaint(
    method: str, path: str, asked: bytes, status: int, media: str, answered: bytes
) -> None:
    assert traffic.exchanged(method, path, asked, status, media, answered) != ""


def test_a_frame_of_the_server_is_held_against_its_schema() -> None:
    message = msgspec.to_builtins(MESSAGE)
    assert traffic.told({"type": "message:new", "message": message}) == ""
    for wrong in (
        {"type": "message:newer", "message": message},
        {"type": "message:new", "message": {**message, "mood": "good"}},
        {"type": "message:new"},
        {"type": "ping"},
    ):
        assert traffic.told(wrong) != "", wrong


def test_a_refusal_has_to_be_one_of_those_declared_for_what_was_said() -> None:
    refusal = {"type": "error", "code": "poll-closed", "detail": "x", "retryable": False}
    talk = traffic.Talk()
    talk.said({"type": "ping"})
    with pytest.raises(AssertionError, match="poll-closed"):
        talk.heard(refusal)
    talk.said({"type": "poll:vote", "messageId": OTHER, "options": [0]})
    talk.heard(refusal)


def test_a_frame_that_was_taken_has_to_be_of_the_described_form() -> None:
    for fields, is_right in (({}, True), ({"x": 1}, False)):
        talk = traffic.Talk()
        talk.said({"type": "ping", "ref": "1", **fields})
        pong = {"type": "pong", "serverTime": "2026-01-31T12:00:00.000Z", "ref": "1"}
        if is_right:
            talk.heard(pong)
        else:
            with pytest.raises(AssertionError, match="taken"):
                talk.heard(pong)
