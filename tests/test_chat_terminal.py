"""The terminal: the line that a person types stays whole while others write, and the terminal is left as it was found."""

import io
import os
import re
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from gearlink.terminal import LINE_BYTES_MAX, Terminal, Typing, read_lines
from tests.house import SECONDS_MAX


def fed(*pieces: str, columns: int = 80) -> tuple[list[str | None], str]:
    """The lines that the keys ended, and the row that is shown then."""
    typing = Typing(lambda: columns)
    lines = [line for piece in pieces for line in typing.feed(piece)]
    return lines, typing.row()


@pytest.mark.parametrize(
    ("pieces", "lines", "row"),
    [
        (("he", "llo\nwor"), ["hello"], "wor"),
        (("helllo\x7f\x7fo\n",), ["hello"], ""),
        (("one two  \x17three",), [], "one three"),
        (("\x17never mind\x15yes",), [], "yes"),
        (("a\x1b[A\x1b[1;5Cb\x1bOPc",), [], "abc"),
        (("a\x1b", "[", "Ab"), [], "ab"),
        (("a\x00\x07b\tc",), [], "ab c"),
        (("日本 🙂\n",), ["日本 🙂"], ""),
        (("text\x04",), [], "text"),
        (("\x04",), [None], ""),
    ],
)
def test_keys_make_lines(pieces: tuple[str, ...], lines: list[str | None], row: str) -> None:
    assert fed(*pieces) == (lines, row)


@pytest.mark.parametrize(("text", "row"), [("abcdefgh", "efgh"), ("日本語", "本語"), ("e\u0301" * 5, "e\u0301" * 4)])
def test_of_a_line_longer_than_the_row_the_end_is_shown(text: str, row: str) -> None:
    assert fed(text, columns=6)[1] == row


def test_endless_line_is_refused() -> None:
    with pytest.raises(ValueError, match="a line has more than"):
        fed("x" * (LINE_BYTES_MAX + 1))


@contextmanager
def person(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int, Terminal]]:
    """The person's end of a terminal, the program's, and the program's `Terminal` on it."""
    monkeypatch.setenv("TERM", "xterm")
    theirs, ours = os.openpty()
    with os.fdopen(os.dup(ours), "w", buffering=1) as out:
        yield theirs, ours, Terminal(None, out, out, interactive=True)
    os.close(ours)
    os.close(theirs)


def read(descriptor: int) -> str:
    return os.read(descriptor, 4096).decode()


async def test_what_comes_in_goes_above_the_line_that_is_being_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[int] = []
    with person(monkeypatch) as (theirs, ours, terminal):
        before = termios.tcgetattr(ours)
        with terminal.editing(lambda: keys.append(1), ours), trio.fail_after(SECONDS_MAX):
            lines: list[str] = []

            async def take() -> None:
                lines.append(await anext(terminal.lines))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                os.write(theirs, b"hel")
                shown = ""
                while "hel" not in shown:
                    shown += await trio.to_thread.run_sync(read, theirs)
                terminal.say("Bob: hi")
                shown = await trio.to_thread.run_sync(read, theirs)
                assert re.fullmatch(r"\r\x1b\[KBob: hi\r\nhel", shown)
                os.write(theirs, b"lo\n")
            assert lines == ["hello"]
        assert keys == [1]
        assert termios.tcgetattr(ours) == before


async def test_terminal_that_cannot_be_drawn_on_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with person(monkeypatch) as (_theirs, ours, terminal):
        monkeypatch.setenv("TERM", "dumb")
        before = termios.tcgetattr(ours)
        with terminal.editing(lambda: None, ours):
            assert termios.tcgetattr(ours) == before
    silent = Terminal(None, io.StringIO(), io.StringIO(), interactive=True)
    with silent.editing(lambda: None):
        silent.say("hello")
    assert silent._out.getvalue() == "hello\n"  # type: ignore[attr-defined]


async def test_a_secret_that_is_typed_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with person(monkeypatch) as (theirs, ours, terminal):
        before = termios.tcgetattr(ours)
        terminal.lines = read_lines(ours)
        told: list[str] = []

        async def ask() -> None:
            told.append(await terminal.ask_secret("passphrase: ", ours))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            with trio.fail_after(SECONDS_MAX):
                shown = await trio.to_thread.run_sync(read, theirs)
                assert shown == "passphrase: "
            os.write(theirs, b"correct horse\n")
        assert told == ["correct horse"]
        await terminal.lines.aclose()
        assert await trio.to_thread.run_sync(read, theirs) == "\r\n"
        assert termios.tcgetattr(ours) == before
