"""The terminal as `gearlink chat` sees it: lines in, lines out, and nothing in between that other people could control.

Reading happens in a thread on the bare descriptor, so that the event loop never waits for a keyboard and a thread that
still does cannot hold up the end of the process. Writing is direct: a terminal that takes no more text stops the chat,
which then resumes. It knows nothing of messages.
"""

import codecs
import os
import sys
from collections.abc import AsyncIterator
from typing import TextIO

import trio

LINE_BYTES_MAX = 64 * 1024
READ_BYTES = 16 * 1024
JOINER = "\u200d"  # holds one emoji together; it moves nothing


def harmless(text: str, *, lines: bool = False) -> str:
    """`text` without what a terminal would obey or hide: control and format characters, other line ends, lone
    surrogates. With `lines` its lines stay, each after the first behind a bar, so that none can pass for one of ours."""
    if lines:
        return "\n    | ".join(harmless(line) for line in text.split("\n"))
    return "".join(each if each.isprintable() or each == JOINER else "\N{REPLACEMENT CHARACTER}" for each in text)


async def read_lines(descriptor: int) -> AsyncIterator[str]:
    """The lines of a file, pipe or terminal, without their ends, until it ends. Bytes that are not UTF-8 become U+FFFD.
    Raises ValueError for a line longer than `LINE_BYTES_MAX`."""
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
            raise ValueError(f"a line has more than {LINE_BYTES_MAX} characters")


class Terminal:
    """Standard input, output and errors, or what a test puts there. `interactive`: a person types and reads."""

    def __init__(
        self,
        lines: AsyncIterator[str] | None = None,
        out: TextIO | None = None,
        errors: TextIO | None = None,
        *,
        interactive: bool | None = None,
    ) -> None:
        self.lines = lines if lines is not None else read_lines(0)
        self._out = out if out is not None else sys.stdout
        self._errors = errors if errors is not None else sys.stderr
        self.interactive = sys.stdin is not None and sys.stdin.isatty() if interactive is None else interactive

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

    def _write(self, where: TextIO, line: str) -> None:
        encoding = getattr(where, "encoding", None) or "utf-8"  # a terminal without UTF-8 gets `?`, not an error
        where.write(line.encode(encoding, "replace").decode(encoding) + "\n")
        where.flush()
