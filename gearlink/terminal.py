"""The terminal as `gearlink chat` sees it: lines in, lines out, and nothing in between that other people could control.

Reading happens in a thread on the bare descriptor, so that the event loop never waits for a keyboard and a thread that
still does cannot hold up the end of the process. Writing is direct: a terminal that takes no more text stops the chat,
which then resumes. While a person types, the line is ours to draw, so what comes in goes above it and never through it.
It knows nothing of messages.
"""

import codecs
import contextlib
import os
import re
import shutil
import sys
import termios
import unicodedata
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TextIO

import trio

LINE_BYTES_MAX = 64 * 1024
READ_BYTES = 16 * 1024
TYPING_TOLD_SECONDS = 3.0
JOINER = "\u200d"  # holds one emoji together; it moves nothing
_ERASE = "\r\x1b[K"  # ECMA-48: to the start of the line, and what is behind goes
_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|[^\[O])")  # a key that is no character


class LineTooLong(ValueError):
    """A line has more than `LINE_BYTES_MAX` characters."""

    def __init__(self) -> None:
        super().__init__(f"a line has more than {LINE_BYTES_MAX} characters")


def harmless(text: str, *, lines: bool = False) -> str:
    """`text` without what a terminal would obey or hide: control and format characters, other line ends, lone
    surrogates. With `lines` its lines stay, each after the first behind a bar, so that none can pass for one of ours."""
    if lines:
        return "\n    | ".join(harmless(line) for line in text.split("\n"))
    return "".join(each if each.isprintable() or each == JOINER else "\N{REPLACEMENT CHARACTER}" for each in text)


async def read_lines(descriptor: int) -> AsyncGenerator[str, None]:
    """The lines of a file, pipe or terminal, without their ends, until it ends. Bytes that are not UTF-8 become U+FFFD.
    Raises LineTooLong for a line longer than `LINE_BYTES_MAX`."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    while True:
        data = await trio.to_thread.run_sync(os.read, descriptor, READ_BYTES, abandon_on_cancel=True)
        rest += decoder.decode(data, final=not data)
        *whole, rest = rest.split("\n")
        for line in whole:
            yield line.removesuffix("\r")
        if not data:
            if rest:
                yield rest
            return
        if len(rest) > LINE_BYTES_MAX:
            raise LineTooLong


class Typing:
    """A line that is being typed, on one row of the screen: of a long one the end shows. Keys that move are ignored."""

    def __init__(self, columns: Callable[[], int]) -> None:
        self.text = ""
        self._columns = columns
        self._unfinished = ""  # the beginning of an escape sequence

    def feed(self, data: str) -> Iterator[str | None]:
        """What the keys did: each line that was ended, and None for the end of the input."""
        data, self._unfinished = _ESCAPE.sub("", self._unfinished + data), ""
        if (start := data.rfind("\x1b")) >= 0:
            data, self._unfinished = data[:start], data[start:][:64]
        for key in data:
            if key in "\r\n":
                line, self.text = self.text, ""
                yield line
            elif key == "\x04" and not self.text:
                yield None
            elif key in "\x7f\b":
                self.text = self.text[:-1]
            elif key == "\x15":
                self.text = ""
            elif key == "\x17":
                self.text = re.sub(r"\S+\s*$", "", self.text)
            elif key == "\t" or key.isprintable() or key == JOINER:
                self.text += " " if key == "\t" else key
                if len(self.text) > LINE_BYTES_MAX:
                    raise LineTooLong

    def row(self) -> str:
        """The text as far as it fits into one row."""
        room, shown = max(self._columns() - 2, 1), len(self.text)
        while shown and (room := room - cells(self.text[shown - 1])) >= 0:
            shown -= 1
        while shown and shown < len(self.text) and not cells(self.text[shown]):
            shown += 1  # what belongs to a character that is not shown
        return self.text[shown:]


def cells(character: str) -> int:
    """How many columns a character takes (Unicode TR 11)."""
    if unicodedata.combining(character) or character == JOINER:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


class Terminal:
    """Standard input, output and errors, or what a test puts there. `interactive`: a person types and reads."""

    def __init__(
        self,
        lines: AsyncGenerator[str, None] | None = None,
        out: TextIO | None = None,
        errors: TextIO | None = None,
        *,
        interactive: bool | None = None,
    ) -> None:
        self._is_ours = lines is None
        self.lines = lines if lines is not None else read_lines(0)
        self._out = out if out is not None else sys.stdout
        self._errors = errors if errors is not None else sys.stderr
        self.interactive = sys.stdin is not None and sys.stdin.isatty() if interactive is None else interactive
        self._typing: Typing | None = None

    def say(self, line: str) -> None:
        """One line of output."""
        self._write(self._out, line)

    def complain(self, line: str) -> None:
        """One line beside the output: errors and the state of the connection."""
        self._write(self._errors, line)

    async def ask(self, question: str) -> str:
        """The next line of input; "" at its end."""
        if self.interactive:
            self._out.write(question)
            self._out.flush()
        return (await anext(self.lines, "")).strip()

    async def ask_secret(self, question: str, descriptor: int = 0) -> str:
        """As `ask`; what a person types is not shown. Not while a line is drawn."""
        if not (self._is_ours and self.interactive and os.isatty(descriptor)):
            return await self.ask(question)
        before, silent = termios.tcgetattr(descriptor), termios.tcgetattr(descriptor)
        silent[3] &= ~termios.ECHO  # of the local flags
        termios.tcsetattr(descriptor, termios.TCSADRAIN, silent)
        try:
            return await self.ask(question)
        finally:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
            self._put(self._out, "\n")  # the one that was typed was not shown either

    @contextlib.contextmanager
    def editing(self, on_key: Callable[[], None], descriptor: int = 0) -> Iterator[None]:
        """Draws the line that a person types for as long as the block lasts, if this is a terminal that can be drawn on.
        `on_key` hears, once in a while, that they do."""
        can_draw = os.isatty(descriptor) and self._out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        if not (self._is_ours and self.interactive and can_draw):
            yield
            return
        before = termios.tcgetattr(descriptor)
        ours = termios.tcgetattr(descriptor)
        ours[3] &= ~(termios.ICANON | termios.ECHO)  # of the local flags; signals stay
        ours[6][termios.VMIN], ours[6][termios.VTIME] = 1, 0
        termios.tcsetattr(descriptor, termios.TCSADRAIN, ours)
        self._typing = Typing(lambda: shutil.get_terminal_size().columns)
        self.lines = self._typed(self._typing, descriptor, on_key)
        try:
            yield
        finally:
            self._put(self._out, _ERASE)
            self._typing = None
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

    async def _typed(self, typing: Typing, descriptor: int, on_key: Callable[[], None]) -> AsyncGenerator[str, None]:
        decoder, told_at = codecs.getincrementaldecoder("utf-8")("replace"), float("-inf")
        while data := await trio.to_thread.run_sync(os.read, descriptor, READ_BYTES, abandon_on_cancel=True):
            for line in typing.feed(decoder.decode(data)):
                if line is None:
                    return
                self._put(self._out, f"{_ERASE}{line}\n")
                yield line
            self._put(self._out, _ERASE + typing.row())
            if typing.text and not typing.text.startswith("/") and trio.current_time() >= told_at + TYPING_TOLD_SECONDS:
                told_at = trio.current_time()
                on_key()

    def _write(self, where: TextIO, line: str) -> None:
        if self._typing is None:
            self._put(where, line + "\n")
            return
        self._put(where, f"{_ERASE}{line}\n" if where.isatty() else line + "\n")
        self._put(self._out, self._typing.row())

    def _put(self, where: TextIO, text: str) -> None:
        encoding = getattr(where, "encoding", None) or "utf-8"  # a terminal without UTF-8 gets `?`, not an error
        where.write(text.encode(encoding, "replace").decode(encoding))
        where.flush()
