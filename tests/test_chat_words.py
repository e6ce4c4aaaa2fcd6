"""The words of the terminal client: times, durations, and events that others made, who may be hostile."""

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from gearlink import protocol, views
from gearlink.chat.finding import Complaint
from gearlink.chat.rooms import settings_form
from gearlink.chat.words import Names, duration, local_time, seconds_of, time_of
from gearlink.sdk import Refused
from gearlink.sdk.state import State

AT = "2026-01-31T12:00:00.000Z"
NOON = 1769860800.0  # AT
EVIL = "x\x1b[2J\x07\n    ~ Ann left\u202e"
ABOUT = {"conversation_id": "c", "sequence_number": 7, "message_id": "m", "user_id": "mallory", "at": AT}
POLL = views.PollView(
    options=[views.PollOption(EVIL, 1), views.PollOption("no", 0)],
    multiple=False, anonymous=False, voters=1, closes_at=None, closed_at=AT, my_options=[0],
)  # fmt: skip
SETTINGS = views.SettingsView("everyone", "admins", "admins", "admins", "admins", 604_800, False)


class Client:
    """What names are asked of: everybody is called the same, and no message is there any more."""

    state = State(user_id="me")

    async def user(self, user_id: str) -> views.User:
        return views.User(id=user_id, username=None, display_name=EVIL, bio="", created_at=AT)

    async def message(self, message_id: str) -> views.MessageView:
        raise Refused("not-found", 404)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def names() -> Names:
    return Names(Client())  # type: ignore[arg-type]


def message(**more: Any) -> views.MessageView:
    form = {
        "id": "m", "conversation_id": "c", "sender_id": "mallory", "sender_device_id": None, "kind": "text",
        "content": EVIL, "sequence_number": 3, "created_at": AT, **more,
    }  # fmt: skip
    return views.MessageView(**form)


def test_times_are_those_of_the_clock_on_the_wall(berlin: None) -> None:
    assert local_time(AT) == "2026-01-31 13:00"
    assert local_time("yesterday\x1b[2J, or so") == "yesterday\ufffd[2J, o"


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("+90m", "2026-01-31T13:30:00Z"),
        ("13:30", "2026-01-31T12:30:00Z"),
        ("12:30", "2026-02-01T11:30:00Z"),
        ("2026-07-01T08:00", "2026-07-01T06:00:00Z"),
        ("2026-07-01T08:00:00Z", "2026-07-01T08:00:00Z"),
    ],
)
def test_a_time_is_said_from_now_by_the_clock_or_in_full(berlin: None, text: str, at: str) -> None:
    assert datetime.fromisoformat(time_of(text, NOON)) == datetime.fromisoformat(at)


@pytest.mark.parametrize("text", ["", "soon", "25:00", "+", "+5", "12:61", "2026-13-01T00:00", "9999999w", "+999999w"])
def test_what_is_no_time_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(Complaint):
        time_of(text, NOON)


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("90m", 5400), ("7d", 604_800), ("2w", 1_209_600), ("off", 0)]
)
def test_durations_have_a_unit(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds
    assert not seconds or seconds_of(duration(seconds)) == seconds


@pytest.mark.parametrize("word", ["write=nobody", "write", "colour=red", "timer=long", "history_visible=maybe"])
def test_settings_that_there_are_not_are_refused(word: str) -> None:
    with pytest.raises(Complaint):
        settings_form([word])


@pytest.mark.parametrize(
    "event",
    [
        protocol.MessageEdited(content=EVIL, edited_at=AT, message=message(), **ABOUT),
        protocol.MessageDeleted(
            conversation_id="c", message_id="m", user_id="mallory", for_everyone=True, deleted_at=AT, sequence_number=7
        ),
        protocol.MessagePinned(**ABOUT),
        protocol.ReactionAdded(emoji=EVIL, reactions=[views.ReactionView(EVIL, 1, ["mallory"])], **ABOUT),
        protocol.ReactionRemoved(emoji=EVIL, reactions=[], **ABOUT),
        protocol.PollChanged(conversation_id="c", sequence_number=7, message_id="m", poll=POLL),
        protocol.MessageExpired(conversation_id="c", sequence_number=7, message_ids=["m", "n"]),
        protocol.ConversationUpdated(
            conversation_id="c", sequence_number=7, actor_id="mallory", at=AT, name=EVIL, description=EVIL,
            avatar_url=None, settings=SETTINGS,
        ),
        protocol.MemberJoined(
            conversation_id="c", sequence_number=7, actor_id="mallory", user_id="other", at=AT, role="member", by="added"
        ),
        protocol.JoinRequested(
            request=views.JoinRequestView(conversation_id="c", user_id="mallory", requested_at=AT)
        ),
    ],
)  # fmt: skip
async def test_what_happened_is_told_in_words_that_control_nothing(event: Any) -> None:
    words = await names().event(event)
    assert words is not None
    _first, *rest = words.split("\n")
    assert all(line.startswith("    | ") for line in rest)
    assert not set("\x1b\x07\u202e") & set(words)


async def test_a_message_with_everything_hangs_together_and_cannot_be_mistaken_for_another() -> None:
    quote = views.QuoteView(id="q", sender_id="me", kind="text", content=EVIL, sequence_number=1)
    shown = await names().line(
        message(
            kind="poll",
            poll=POLL,
            reply_to_id="q",
            reply_to=quote,
            mentions=["me"],
            edited_at=AT,
            pinned_at=AT,
            forwarded=2,
            reactions=[views.ReactionView(EVIL, 2, [])],
        )
    )
    lines = shown.split("\n")
    assert [line[:6] for line in lines[1:]] == [
        "    | ",
        "    > ",
        "    1.",
        "    2.",
        "    (c",
        "    (@",
        "    x\ufffd",
    ]
    assert not set("\x1b\x07\u202e") & set(shown)


async def test_what_is_deleted_or_unknown_is_said_to_be() -> None:
    assert (await names().line(message(content=None, deleted_at=AT, deleted_by="me"))).endswith("(deleted by you)")
    assert "(a message that is gone)" in await names().line(message(reply_to_id="q", reply_to=None))
    for content in ('{"type": "member:sung"}', '{"type": "member:left"}', "[", "", None):
        shown = await names().line(message(kind="system", content=content))
        assert shown.endswith("~ (something that this program does not know)")
