"""From a file, the environment and flags to settings: everything is checked, and every complaint is made at once.

Flags win over the environment, the environment over the file, the file over the defaults. A value that a stronger
source overrides is checked all the same. Complaints name the place, the problem and the remedy, and never a secret.
This module knows the declarations but no default of its own; it opens the settings file and nothing else.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar

from config.forms import BadValue
from config.knob import Knob, Value
from config.settings import KNOBS, SECTIONS, Settings, value_of, with_values

FILE_NAME: Final = "gearlink.toml"
FILE_VARIABLE: Final = "GEARLINK_CONFIG"
WEBHOOK_SECRET_CHARS_MIN: Final = 16

_VARIABLE = re.compile(r"GEARLINK_.*?__.*", re.DOTALL)
_HEADER_LINE = re.compile(r"\s*\[\s*([A-Za-z0-9_.-]+)\s*\]")
_KEY_LINE = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*=")
_BY_VARIABLE: Final = {knob.environment_name: knob for knob in KNOBS.values()}
_TLS_PATHS: Final = ("server.tls_certificate", "server.tls_key")

Raw = TypeVar("Raw")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from; `where` says it to people, and is empty for a default."""

    kind: Literal["default", "file", "environment", "flag"]
    where: str


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is wrong with the configuration: the place, the problem, and what to do."""

    where: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}; {self.remedy}"


class SettingsError(Exception):
    """The configuration cannot be used; `complaints` holds every reason, one line each in the text."""

    def __init__(self, complaints: list[Complaint]) -> None:
        super().__init__("\n".join(map(str, complaints)))
        self.complaints = complaints


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and the origin of each by its key."""

    settings: Settings
    origins: Mapping[str, Origin]


@dataclass(slots=True)
class _Gathering:
    """What the sources gave so far: later ones overwrite."""

    values: dict[str, Value] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=lambda: dict.fromkeys(KNOBS, Origin("default", "")))
    complaints: list[Complaint] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    def take(self, knob: Knob, read: Callable[[Raw], Value], raw: Raw, origin: Origin) -> None:
        """Keeps the value that `read` makes of `raw`, or its complaint."""
        try:
            self.values[knob.key] = read(raw)
            self.origins[knob.key] = origin
        except BadValue as bad:
            self.refused.add(knob.key)
            self.complain(origin.where, f"{_shown(knob, raw)} {bad.problem}", bad.remedy)

    def complain(self, where: str, problem: str, remedy: str) -> None:
        self.complaints.append(Complaint(where, problem, remedy))


def find_file(explicit: Path | None, environment: Mapping[str, str], directory: Path) -> Path | None:
    """The settings file to use: the flag's, else $GEARLINK_CONFIG, else `gearlink.toml` in `directory` if it is there.

    A file that somebody named is returned even if it does not exist, so that loading it complains."""
    if explicit is not None:
        return explicit
    if named := environment.get(FILE_VARIABLE):
        return Path(named)
    return found if (found := directory / FILE_NAME).is_file() else None


def load(file: Path | None, environment: Mapping[str, str], overrides: Mapping[str, str]) -> Settings:
    """The settings from all sources. `overrides` maps `section.name` to a flag's text. Raises SettingsError."""
    return load_with_origins(file, environment, overrides).settings


def load_with_origins(file: Path | None, environment: Mapping[str, str], overrides: Mapping[str, str]) -> Loaded:
    """Like `load`, with where each value came from."""
    gathering = _Gathering()
    if file is not None:
        _take_file(gathering, file)
    for name, text in sorted(environment.items()):
        # Only names with a double underscore are ours: Kubernetes sets GEARLINK_PORT and the like for a service.
        if _VARIABLE.fullmatch(name):
            _take_variable(gathering, name, text)
    for key, text in overrides.items():
        knob = KNOBS[key]  # a flag that names no setting is a bug of the command line, not of its user
        gathering.take(knob, knob.from_text, text, Origin("flag", f"flag {knob.flag or key}"))
    settings = with_values(Settings(), gathering.values)
    for keys, problem, remedy in _contradictions(settings):
        if gathering.refused.isdisjoint(keys):
            where = next((gathering.origins[key].where for key in keys if gathering.origins[key].where), keys[0])
            gathering.complain(where, problem, remedy)
    if gathering.complaints:
        raise SettingsError(gathering.complaints)
    return Loaded(settings, gathering.origins)


def reload_difference(old: Settings, new: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The changed keys: those that a running server can take over, and those that need a restart."""
    now: list[str] = []
    later: list[str] = []
    for key, knob in KNOBS.items():
        before, after = value_of(old, key), value_of(new, key)
        if before != after:
            # A listener cannot change between TLS and none, only its certificate can.
            switched = key in _TLS_PATHS and not (before and after)
            (now if knob.reloadable and not switched else later).append(key)
    return tuple(now), tuple(later)


def _take_file(gathering: _Gathering, file: Path) -> None:
    try:
        text = file.read_bytes().decode("utf-8-sig")
        document = tomllib.loads(text)
    except OSError as error:
        gathering.complain(str(file), f"cannot be read: {error.strerror}", "name a file that this user can read")
    except UnicodeDecodeError:
        gathering.complain(str(file), "is not valid UTF-8", "save it in UTF-8")
    except (ValueError, RecursionError) as error:  # tomllib lets Python's own limits on digits and depth through
        problem = str(error) if isinstance(error, ValueError) else "too deeply nested"
        gathering.complain(str(file), f"is not valid TOML: {problem}", "correct that line; texts need quotes")
    else:
        lines = _lines(text)
        for section, table in document.items():
            _take_table(gathering, file, lines, section, table)


def _take_table(gathering: _Gathering, file: Path, lines: Mapping[str, int], section: str, table: object) -> None:
    def place(key: str) -> str:
        return f"{file}:{lines[key]}" if key in lines else str(file)

    if section not in SECTIONS:
        if isinstance(table, dict):
            near = _nearest(section, SECTIONS)
            remedy = f"did you mean [{near}]?" if near else f"the sections are {', '.join(SECTIONS)}"
            gathering.complain(place(f"[{section}]"), f"there is no section {_quoted(section)}", remedy)
        else:
            problem = f"{_quoted(section)} stands before the first section, and there is no such setting there"
            gathering.complain(place(section), problem, _suggestion("", section))
    elif not isinstance(table, dict):
        gathering.complain(place(section), f"{section} is a section, not a setting", f"begin it with [{section}]")
    else:
        for name, raw in table.items():
            key = f"{section}.{name}"
            if knob := KNOBS.get(key):
                gathering.take(knob, knob.from_toml, raw, Origin("file", place(key)))
            else:
                problem = f"there is no setting {_quoted(name)} in [{section}]"
                gathering.complain(place(key), problem, _suggestion(section, name))


def _take_variable(gathering: _Gathering, name: str, text: str) -> None:
    if knob := _BY_VARIABLE.get(name):
        gathering.take(knob, knob.from_text, text, Origin("environment", f"environment {name}"))
        return
    near = _nearest(name, _BY_VARIABLE)
    gathering.complain("environment", f"there is no setting for {_quoted(name)}",
                       f"did you mean {near}?" if near else "unset it")  # fmt: skip


def _contradictions(settings: Settings) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Settings that do not fit together: their keys, the problem, the remedy."""
    server, limits, sms = settings.server, settings.limits, settings.verification
    if bool(server.tls_certificate) != bool(server.tls_key):
        yield _TLS_PATHS, "server.tls_certificate and server.tls_key go together", "set both or neither"
    if limits.outbox_kib < limits.frame_kib:
        yield ("limits.outbox_kib", "limits.frame_kib"), "limits.outbox_kib is below limits.frame_kib", "raise it"
    needed = {"webhook": ("webhook_url", "webhook_secret"),
              "twilio": ("twilio_account_sid", "twilio_auth_token", "twilio_from")}  # fmt: skip
    for name in needed.get(sms.provider, ()):
        if not getattr(sms, name):
            keys = ("verification.provider", f"verification.{name}")
            yield keys, f'verification.provider "{sms.provider}" needs {keys[1]}', "set it, or choose another provider"
    if sms.provider == "webhook" and 0 < len(sms.webhook_secret) < WEBHOOK_SECRET_CHARS_MIN:
        problem = f"verification.webhook_secret is shorter than {WEBHOOK_SECRET_CHARS_MIN} characters"
        yield ("verification.webhook_secret",), problem, "make one with `openssl rand -hex 32`"


def _suggestion(section: str, name: str) -> str:
    elsewhere = [key for key, knob in KNOBS.items() if knob.name == name]
    here = _nearest(name, [knob.name for knob in KNOBS.values() if knob.section == section])
    if elsewhere:
        return f"did you mean {elsewhere[0]}, in section [{KNOBS[elsewhere[0]].section}]?"
    if here:
        return f"did you mean {section}.{here}?"
    near = _nearest(name, [knob.name for knob in KNOBS.values()])
    found = next((key for key, knob in KNOBS.items() if knob.name == near), None)
    return f"did you mean {found}?" if found else "take it out; the annotated gearlink.toml lists every setting"


def _nearest(word: str, words: Mapping[str, object] | list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word[:80], list(words), n=1, cutoff=0.7)), None)


def _lines(text: str) -> dict[str, int]:
    """Where sections (`[name]`) and settings (`section.name`) begin. A hint for people: it reads lines, not TOML."""
    found: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER_LINE.match(line):
            section = header[1]
            found.setdefault(f"[{section}]", number)
        elif key := _KEY_LINE.match(line):
            found.setdefault(f"{section}.{key[1]}" if section else key[1], number)
    return found


def _shown(knob: Knob, raw: object) -> str:
    """The setting, with what was written if that helps and cannot be a secret (a URL may carry a password)."""
    if knob.secret or "://" in str(raw) or not isinstance(raw, str | int | float):
        return knob.key
    return f"{knob.key} = {_quoted(raw) if isinstance(raw, str) else json.dumps(raw)}"


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= 80 else text[:80] + "...")
