"""The terminal client against the scripted server: what a person sees, and what a script may count on."""

import io
import json
import os
import stat
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
import trio

from gearlink import chat, protocol
from gearlink.chat import desk
from gearlink.chat.commands import Command
from gearlink.chat.rooms import COMMANDS
from gearlink.errors import ExitStatus
from gearlink.terminal import LINE_BYTES_MAX, LineTooLong, Terminal, harmless, read_lines
from tests.fake_server import ADDRESS, CODE, FakeServer, problem

ANN, BOB = "+15551230001", "+15551230002"


class Screen:
    """A terminal in memory: `type` gives it lines, `out` and `errors` hold what it showed."""

    def __init__(self, *lines: str, interactive: bool = False) -> None:
        self.type, given = trio.open_memory_channel[str](100)
        for line in lines:
            self.type.send_nowait(line)
        if not interactive:
            self.type.close()
        self.out, self.errors = io.StringIO(), io.StringIO()
        self.log = io.StringIO()  # both, as they came
        self.terminal = Terminal(self._read(given), self.out, self.errors, interactive=interactive)
        self._changed = trio.lowlevel.ParkingLot()
        self.terminal._write = self._write  # type: ignore[method-assign]

    def _write(self, where: io.StringIO, line: str) -> None:
        where.write(line + "\n")
        self.log.write(line + "\n")
        self._changed.unpark_all()

    async def _read(self, given: trio.MemoryReceiveChannel[str]) -> AsyncIterator[str]:
        async for line in given:
            yield line

    async def until(self, text: str) -> None:
        while text not in self.out.getvalue() + self.errors.getvalue():
            await self._changed.park()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")  # not that of who runs the tests
    time.tzset()
    return tmp_path / "gearlink"


@pytest.fixture
async def server(nursery: trio.Nursery, home: Path) -> FakeServer:
    return FakeServer(nursery)


async def run(server: FakeServer, screen: Screen, *arguments: str) -> int:
    options = chat.parser().parse_args(arguments)
    with trio.fail_after(30):
        return await chat.run(options, screen.terminal, server.options())


async def sign_up(server: FakeServer, phone_number: str = ANN, profile: str = "default") -> str:
    arguments = ("--as", profile, "signup", "--server", ADDRESS, "--phone", phone_number, "--code", CODE)
    assert await run(server, Screen(), *arguments) == 0
    return server.user(phone_number)


async def signed_up_with_bob(server: FakeServer) -> tuple[str, str]:
    """`(conversation, Bob)` after Ann signed up."""
    ann, bob = await sign_up(server), server.user(BOB, "Bob", "bob")
    return server.conversation(ann, bob), bob


# --- signing up ------------------------------------------------------------------------------------------------------


async def test_signup_reads_the_code_from_a_pipe_and_keeps_the_profile_private(server: FakeServer, home: Path) -> None:
    screen = Screen(CODE)
    status = await run(server, screen, "signup", "--server", ADDRESS, "--phone", ANN, "--name", "Ann")
    assert (status, screen.out.getvalue()) == (0, f"signed up as Ann on {ADDRESS}\n")
    assert stat.S_IMODE((home / "default.json").stat().st_mode) == 0o600


async def test_person_may_mistype_the_code(server: FakeServer) -> None:
    screen = Screen("000000", CODE, "", interactive=True)
    assert await run(server, screen, "signup", "--server", ADDRESS, "--phone", ANN) == 0
    assert screen.errors.getvalue().startswith("that was not the code\n")


async def test_wrong_code_of_a_script_is_refused_in_one_line(server: FakeServer) -> None:
    screen = Screen()
    assert await run(server, screen, "signup", "--server", ADDRESS, "--phone", ANN, "--code", "1") == chat.REFUSED
    assert screen.errors.getvalue() == "gearlink chat: The code is wrong, used or expired\n"


async def test_second_signup_in_a_profile_is_refused(server: FakeServer) -> None:
    await sign_up(server)
    screen = Screen()
    status = await run(server, screen, "signup", "--server", ADDRESS, "--phone", BOB, "--code", CODE)
    assert status == ExitStatus.USAGE
    assert "--as NAME" in screen.errors.getvalue()


async def test_two_profiles_are_two_devices(server: FakeServer, home: Path) -> None:
    await sign_up(server, ANN, "ann")
    await sign_up(server, BOB, "bob")
    assert len(server.devices) == 2
    assert {name for name in os.listdir(home) if name.endswith(".json")} == {"ann.json", "bob.json"}


@pytest.mark.parametrize("order", [("--as", "ann", "profile"), ("profile", "--as", "ann")])
def test_profile_may_stand_before_or_behind_the_command(order: tuple[str, ...]) -> None:
    assert chat.parser().parse_args(order).profile == "ann"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "a b", "x" * 65])
async def test_profile_name_cannot_leave_its_folder(server: FakeServer, name: str) -> None:
    assert await run(server, Screen(), "--as", name, "list") == ExitStatus.USAGE


# --- trouble ---------------------------------------------------------------------------------------------------------


async def test_unreachable_server_is_one_line_and_its_own_status(server: FakeServer) -> None:
    await sign_up(server)
    server.faults.unreachable = True
    screen = Screen()
    assert await run(server, screen, "list") == ExitStatus.UNREACHABLE
    assert screen.errors.getvalue() == f"gearlink chat: cannot reach {ADDRESS}: Connection refused\n"


async def test_missing_profile_says_what_to_do(server: FakeServer) -> None:
    screen = Screen()
    assert await run(server, screen, "list") == chat.REFUSED
    assert "gearlink chat signup" in screen.errors.getvalue()


async def test_logged_out_profile_says_what_to_do(server: FakeServer) -> None:
    await sign_up(server)
    assert await run(server, Screen(), "logout") == 0
    screen = Screen()
    assert await run(server, screen, "list") == chat.REFUSED
    assert screen.errors.getvalue().startswith("gearlink chat: not signed in")


async def test_refusal_of_the_server_cannot_control_the_terminal(server: FakeServer) -> None:
    await sign_up(server)
    server.faults.answers.append(problem(403, "forbidden", "no\x1b[2J\x9b31m\n never"))
    screen = Screen()
    assert await run(server, screen, "list") == chat.REFUSED
    assert screen.errors.getvalue() == "gearlink chat: no\ufffd[2J\ufffd31m\ufffd never\n"


@pytest.mark.parametrize(
    ("target", "status"), [("@nobody", 1), ("+15550000000", 1), (ANN, 1), ("somebody", 2), ("0" * 8, 2)]
)
async def test_nobody_to_talk_to_is_one_line(server: FakeServer, target: str, status: int) -> None:
    await sign_up(server)
    screen = Screen("hello")
    assert await run(server, screen, "to", target) == status
    assert screen.errors.getvalue().count("\n") == 1


async def test_a_bug_is_not_shown_as_wrong_usage(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(desk: object, words: str) -> None:
        _first, _second = [words]

    conversation, _bob = await signed_up_with_bob(server)
    monkeypatch.setitem(COMMANDS, "pins", Command("pins", "", "", fail))
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="unpack"), flatten_subgroups=True, allow_unwrapped=True):
        await run(server, Screen("/pins"), "to", conversation, "--commands")


async def test_wrong_address_file_or_endless_line_is_one_line_of_usage(server: FakeServer, home: Path) -> None:
    screen = Screen()
    assert await run(server, screen, "signup", "--server", "nowhere", "--phone", ANN) == ExitStatus.USAGE
    assert screen.errors.getvalue().startswith("gearlink chat: the server's address has the form")
    os.makedirs(home, exist_ok=True)
    (home / "default.json").write_text("no")
    screen = Screen()
    assert await run(server, screen, "list") == ExitStatus.USAGE
    assert screen.errors.getvalue().endswith("is not a file of this program\n")

    async def endless() -> AsyncGenerator[str, None]:
        raise LineTooLong
        yield ""

    (home / "default.json").unlink()
    conversation, _bob = await signed_up_with_bob(server)
    screen = Screen()
    screen.terminal.lines = endless()
    assert await run(server, screen, "to", conversation) == ExitStatus.USAGE
    assert "a line has more than" in screen.errors.getvalue()


@pytest.mark.parametrize(
    "arguments", [[], ["sing"], ["to"], ["to", "@bob", "--last", "-1"], ["signup"], ["to", "\udcff"]]
)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        chat.main(arguments)
    assert ended.value.code == ExitStatus.USAGE


# --- talking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [BOB, "@bob", "+1 (555) 123-0002"])
async def test_piped_lines_are_all_stored_before_the_end(server: FakeServer, target: str) -> None:
    conversation, _bob = await signed_up_with_bob(server)
    server.faults.drop_before_ack = 1
    assert await run(server, Screen("one", "", "two", "three"), "to", target, "--plain") == 0
    assert [message.content for message in server.logs[conversation]] == ["one", "two", "three"]


async def test_refused_line_of_a_script_ends_it_with_1(server: FakeServer) -> None:
    conversation, _bob = await signed_up_with_bob(server)
    screen = Screen("fine", "x" * 20000, "never")
    assert await run(server, screen, "to", conversation, "--plain") == chat.REFUSED
    assert [message.content for message in server.logs[conversation]] == ["fine"]
    assert screen.errors.getvalue().startswith("gearlink chat: A text has")


async def test_refused_line_of_a_person_is_told_and_the_next_one_goes(server: FakeServer) -> None:
    conversation, _bob = await signed_up_with_bob(server)
    screen = Screen("x" * 20000, "short", interactive=True)
    screen.type.close()
    assert await run(server, screen, "to", conversation) == 0
    assert [message.content for message in server.logs[conversation]] == ["short"]
    assert screen.errors.getvalue().startswith("-- not sent: ")


async def test_person_whose_command_finds_no_server_is_told_and_goes_on(server: FakeServer) -> None:
    conversation, _bob = await signed_up_with_bob(server)
    screen = Screen(interactive=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, server, screen, "to", conversation)
        await server.until(lambda: server.sockets)
        server.faults.answers.append(httpx.ConnectError("gone"))
        await screen.type.send("/pins")
        await screen.until("-- cannot reach")
        await screen.type.send("still here")
        await screen.until("✓ sent #1")
        screen.type.close()


async def test_a_mention_waits_for_a_server_that_is_away(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "ASK_AGAIN_SECONDS", 0)
    conversation, bob = await signed_up_with_bob(server)
    screen = Screen(interactive=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, server, screen, "to", conversation)
        await screen.type.send("hi")
        await screen.until("✓ sent #1")
        server.faults.answers.append(httpx.ConnectError("gone"))
        await screen.type.send("@bob come, or mail bob@bob.test")
        await screen.type.send("mail bob@bob.test")
        screen.type.close()
    assert not server.faults.answers
    assert [frame.mentions for frame in server.heard_of(protocol.Send)] == [None, [bob], None]


async def test_past_is_shown_once_and_live_messages_and_marks_follow(server: FakeServer, nursery: trio.Nursery) -> None:
    conversation, bob = await signed_up_with_bob(server)
    for text in ("first", "second", "third"):
        server.append(conversation, bob, text)
    screen = Screen(interactive=True)
    nursery.start_soon(run, server, screen, "to", "@bob", "--plain", "--last", "2")
    await server.until(lambda: server.sockets)
    await screen.type.send("hi")
    await screen.until("✓ sent #4")
    mark = {"conversation_id": conversation, "user_id": bob, "sequence_number": 4}
    await server.broadcast(protocol.MessageDelivered(delivered_at="x", **mark))
    await screen.until("delivered")
    await server.broadcast(protocol.MessageRead(read_at="x", **mark))
    await screen.until("read")
    await server.post(conversation, bob, "hello")
    await screen.until("hello")
    await server.until(lambda: 5 in [frame.sequence_number for frame in server.heard_of(protocol.MarkRead)])
    screen.type.close()
    assert screen.out.getvalue().splitlines() == [
        "#2 2026-01-31 12:00 Bob (@bob): second",
        "#3 2026-01-31 12:00 Bob (@bob): third",
        "    ~ not encrypted: the server can read what is said here",
        "    ✓ sent #4",
        "    ✓✓ delivered to Bob (@bob) #4",
        "    ✓✓ read by Bob (@bob) #4",
        "#5 2026-01-31 12:00 Bob (@bob): hello",
    ]


async def test_hostile_name_and_text_do_not_control_the_terminal(server: FakeServer) -> None:
    ann = await sign_up(server)
    mallory = server.user(BOB, "\x1b]0;owned\x07\u202eMallory\n✓ sent", "mallory")
    conversation = server.conversation(ann, mallory)
    server.append(conversation, mallory, "\x1b[2J\x9b1mgone\rfake\n    ✓ sent #9")
    for arguments in (("to", conversation), ("list",)):
        screen = Screen()
        assert await run(server, screen, *arguments) == 0
        shown = screen.out.getvalue()
        assert not [each for each in shown if each in "\x1b\x07\x9b\r\u202e"]
        assert not [line for line in shown.splitlines() if line.startswith("    ✓")]


async def test_json_is_one_ascii_object_a_line(server: FakeServer) -> None:
    conversation, bob = await signed_up_with_bob(server)
    server.append(conversation, bob, "caf\xe9 \x9b31m \u202e")
    screen = Screen("reply")
    assert await run(server, screen, "to", conversation, "--json") == 0
    lines = screen.out.getvalue().splitlines()
    assert all(line.isascii() and line.isprintable() for line in lines)
    events = [json.loads(line) for line in lines]
    messages = [event["message"]["content"] for event in events if event["type"] == "message:new"]
    assert messages == ["caf\xe9 \x9b31m \u202e"]
    assert [event["sequenceNumber"] for event in events if event["type"] == "message:ack"] == [2]


async def test_follow_stays_when_the_input_ends(server: FakeServer, nursery: trio.Nursery) -> None:
    conversation, bob = await signed_up_with_bob(server)
    screen = Screen("hi")
    nursery.start_soon(run, server, screen, "to", conversation, "--follow")
    await screen.until("✓ sent #1")
    await server.until(lambda: server.sockets)
    await server.post(conversation, bob, "still there?")
    await screen.until("still there?")
    nursery.cancel_scope.cancel()


async def test_lost_connection_is_told_and_so_is_the_next(server: FakeServer, nursery: trio.Nursery) -> None:
    conversation, _bob = await signed_up_with_bob(server)
    screen = Screen(interactive=True)
    nursery.start_soon(run, server, screen, "to", conversation)
    await server.until(lambda: server.sockets)
    await server.sockets[0].drop()
    await screen.until("-- online again")
    assert "-- offline: the connection broke; trying again" in screen.errors.getvalue()
    screen.type.close()


async def test_list_profile_and_devices_show_what_there_is(server: FakeServer) -> None:
    conversation, bob = await signed_up_with_bob(server)
    server.append(conversation, bob, "hello")
    expected: dict[str, Callable[[str], bool]] = {
        "list": lambda shown: f"{conversation}  Bob (@bob)\n    #1 2026-01-31 12:00 Bob (@bob): hello\n" == shown,
        "profile": lambda shown: f"phone:    {ANN}" in shown,
        "devices": lambda shown: shown.startswith("* "),
    }
    for command, right in expected.items():
        screen = Screen()
        assert await run(server, screen, command) == 0
        assert right(screen.out.getvalue()), command


async def test_profile_changes_only_what_is_named(server: FakeServer) -> None:
    ann = await sign_up(server)
    assert await run(server, Screen(), "profile", "--name", "Ann", "--username", "@ann") == 0
    assert (server.users[ann]["displayName"], server.users[ann]["username"]) == ("Ann", "ann")
    assert await run(server, Screen(), "profile", "--username", "") == 0
    assert (server.users[ann]["displayName"], server.users[ann]["username"]) == ("Ann", None)


# --- the terminal ----------------------------------------------------------------------------------------------------


async def test_lines_come_whole_from_pieces_of_bytes() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as writer:
        writer.write(b"one\r\ntw" + "\xe9".encode()[:1])
        lines = read_lines(reading)
        assert await anext(lines) == "one"
        writer.write("\xe9".encode()[1:] + b"\nbad \xff\nlast")
    assert [line async for line in lines] == ["tw\xe9", "bad \ufffd", "last"]
    os.close(reading)


async def test_endless_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "endless"
    path.write_bytes(b"x" * (LINE_BYTES_MAX * 2))
    with path.open("rb") as file, pytest.raises(ValueError, match="a line has more than"):
        async for _line in read_lines(file.fileno()):
            pass


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("caf\xe9 日本 🙂", "caf\xe9 日本 🙂"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("\x1b[31m", "\ufffd[31m"),
        ("a\u202eb\u2028c\x85d\x00", "a\ufffdb\ufffdc\ufffdd\ufffd"),
        ("\udcff", "\ufffd"),
    ],
)
def test_only_what_moves_or_hides_is_taken_out(text: str, shown: str) -> None:
    assert harmless(text) == shown
