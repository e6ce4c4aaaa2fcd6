"""`gearlink init`: at most three questions, and the settings file that follows from the answers.

It promises to overwrite nothing that somebody wrote (unless forced), to leave either the old file or the whole new one,
and that only the file's owner can read it. Asking and telling are functions that the caller gives; this module knows no
terminal, starts nothing and makes no data directory.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from config.describe import describe
from config.forms import BadValue, is_loopback, split_address
from config.knob import Value
from config.settings import KNOBS, Settings, with_values

Ask = Callable[[str], str]
Tell = Callable[[str], None]
Answer = dict[str, Value]

TRIES_MAX: Final = 5
LOOPBACK_PROXIES: Final = ("127.0.0.1", "::1")

_BEHIND_PROXY: Final = (
    "The server will listen on {listen} without TLS: let a reverse proxy on this machine answer {url} and pass "
    "requests and WebSockets on. For TLS without a proxy set server.listen, server.tls_certificate and "
    "server.tls_key, and take server.trusted_proxies out."
)
_UNENCRYPTED: Final = (
    "Without https everybody on the way can read along and take over sign-ins: put TLS in front before people use it."
)
_CONSOLE_CODES: Final = (
    "Sign-in codes are printed by the server itself until verification.provider is set: pass them on by hand, or "
    "connect an SMS gateway."
)


class SetupError(Exception):
    """The file was not written; the text says why and what to do."""


def set_up(file: Path, ask: Ask, tell: Tell, *, yes: bool = False, force: bool = False) -> Settings:
    """Asks (with `yes` it takes every default), writes `file` and tells what comes next. Returns what was written.

    `ask` gets a prompt and returns a line; an empty one takes the default. Raises SetupError."""
    _refuse_to_overwrite(file, force)
    settings = answer_questions((lambda _prompt: "") if yes else ask, tell)
    write_file(file, settings, force=force)
    tell(f"Wrote {file}. Start the server with: gearlink serve --config {file}")
    return settings


def answer_questions(ask: Ask, tell: Tell) -> Settings:
    """The three questions; a wrong answer is explained and asked again. Raises SetupError if that does not end."""
    answer = _question(ask, tell, "1/3 Where will people reach the server: its URL, or HOST:PORT to listen on?",
                       str(KNOBS["server.listen"].default), reach)  # fmt: skip
    here_only = is_reached_from_here_only(answer)
    # Whoever finds a public server could join it, and each try may cost a text message: invite unless told otherwise.
    usual = "open" if here_only else "invite"
    answer |= _question(ask, tell, "2/3 Who may make an account: open (anybody), invite or closed?", usual,
                        lambda text: _one("auth.registration", text.lower()))  # fmt: skip
    answer |= _question(ask, tell, "3/3 In which directory shall it keep its data?",
                        str(KNOBS["storage.data"].default), lambda text: _one("storage.data", text))  # fmt: skip
    settings = with_values(Settings(), answer)
    for note in _notes(settings, here_only):
        tell(note)
    return settings


def reach(text: str) -> Answer:
    """What a URL or HOST:PORT means for the `server` section. Raises BadValue."""
    if "://" not in text:
        return _one("server.listen", text)
    url = str(KNOBS["server.public_url"].from_text(text))
    parts = urlsplit(url)
    if parts.scheme == "https":
        # The proxy's address must not pass for the client's: rate limits and /metrics go by it.
        return {"server.public_url": url, "server.trusted_proxies": LOOPBACK_PROXIES}
    port = parts.port or 80
    if is_loopback(parts.hostname or ""):
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return _one("server.listen", f"{host}:{port}")
    return {"server.public_url": url, "server.listen": f"0.0.0.0:{port}"}


def is_reached_from_here_only(answer: Answer) -> bool:
    """Whether nobody outside this machine can come in with such an answer to the first question."""
    listen = str(answer.get("server.listen", KNOBS["server.listen"].default))
    return "server.public_url" not in answer and is_loopback(split_address(listen)[0])


def write_file(file: Path, settings: Settings, *, force: bool = False) -> None:
    """Writes the annotated file, readable to its owner only, whole or not at all. Raises SetupError."""
    _refuse_to_overwrite(file, force)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # made with mode 0600
        temporary = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(describe(settings))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise SetupError(f"{file} cannot be written: {error.strerror}; name another place with --config") from error


def _refuse_to_overwrite(file: Path, force: bool) -> None:
    if force:
        return
    try:
        # The file that GearLink ships says nothing but the defaults: nobody loses anything with it.
        written = file.read_text(encoding="utf-8") != describe()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError):
        written = True
    if written:
        raise SetupError(f"{file} is there already; edit it, or write it anew with --force")


def _question(ask: Ask, tell: Tell, text: str, usual: str, read: Callable[[str], Answer]) -> Answer:
    for _ in range(TRIES_MAX):
        try:
            return read(ask(f"{text} [{usual}] ").strip() or usual)
        except EOFError:
            raise SetupError("the input ended before the last question; --yes takes the defaults") from None
        except BadValue as bad:
            tell(f"That {bad.problem}: {bad.remedy}.")
    raise SetupError(f"no usable answer in {TRIES_MAX} tries; nothing was written")


def _one(key: str, text: str) -> Answer:
    return {key: KNOBS[key].from_text(text)}


def _notes(settings: Settings, here_only: bool) -> list[str]:
    if here_only:
        return ["Only this machine can reach the server; run `gearlink init --force` again to let others in."]
    server = settings.server
    proxied = server.public_url.startswith("https:")
    reached = _BEHIND_PROXY.format(listen=server.listen, url=server.public_url) if proxied else _UNENCRYPTED
    return [reached, _CONSOLE_CODES]
