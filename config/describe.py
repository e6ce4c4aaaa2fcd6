"""Settings as text: the annotated `gearlink.toml`, and what `gearlink config show` prints.

`describe` promises that its text, loaded again, gives the same settings; it therefore writes secrets, and what it
returns belongs into a file that only its owner reads. `show` hides them. Neither reads or writes a file.
"""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Final

from config.knob import Knob, Value
from config.load import Origin
from config.settings import KNOBS, SECTIONS, Settings, value_of

COLUMNS_MAX: Final = 100
HIDDEN: Final = "********"
FIRST: Final = {
    "server.listen": "who can reach the server at all",
    "server.public_url": "how they reach it, for the links that it makes",
    "auth.registration": "who may make an account",
    "verification.provider": "how sign-in codes get to phones",
}
"""The settings that an operator should touch first, and what each decides."""

_HEADER: Final = """\
The settings of GearLink: all of them, as they are when nobody sets anything.

A line such as `#name = value` shows a default; take the # away and change the value. Nothing has
to be set: `gearlink serve` runs without this file, too. Four settings to touch first:
{first}

A flag wins over the environment, the environment over this file. The environment twin stands
under each setting; there a list is written with commas: a,b. After a change `gearlink config
check` says whether the server would start with it. SIGHUP makes a running server read the
settings again: those that are marked so take effect at once, the others at the next start."""

_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def describe(settings: Settings | None = None) -> str:
    """The annotated file: defaults commented out, what `settings` has otherwise as live lines."""
    chosen = settings or Settings()
    width = max(map(len, FIRST))
    first = "\n".join(f"  {key:<{width}}  {meaning}" for key, meaning in FIRST.items())
    lines = [f"# {line}".rstrip() for line in _HEADER.format(first=first).split("\n")]
    for section, about in SECTIONS.items():
        lines += ["", "", f"# {about}", f"[{section}]"]
        for knob in KNOBS.values():
            if knob.section == section:
                lines += ["", *_entry(knob, value_of(chosen, knob.key))]
    return "\n".join(lines) + "\n"


def show(settings: Settings, origins: Mapping[str, Origin]) -> str:
    """The settings in force as TOML, each with its origin; a secret that is set shows as asterisks."""
    lines: list[str] = []
    for section in SECTIONS:
        lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
        for key, knob in KNOBS.items():
            if knob.section == section:
                value = value_of(settings, key)
                text = toml_value(HIDDEN if knob.secret and value else value)
                lines.append(f"{knob.name} = {text}  # {origins[key].where or 'default'}")
    return "\n".join(lines) + "\n"


def toml_value(value: Value) -> str:
    """A value as TOML spells it (TOML 1.0, "String": control characters are escaped)."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return f'"{"".join(_escaped(character) for character in value)}"'
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return repr(value)


def _entry(knob: Knob, value: Value) -> Iterator[str]:
    for text in (knob.documentation, _facts(knob)):
        yield from textwrap.wrap(
            text, COLUMNS_MAX, initial_indent="# ", subsequent_indent="# ", break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
    assignment = f"{knob.name} = {toml_value(value)}"
    yield f"#{assignment}" if value == knob.default else assignment


def _facts(knob: Knob) -> str:
    """Unit, range, default, twin, flag and what a change takes, in one line."""
    bounds = f"{knob.bounds()} {knob.unit}".strip()
    facts = [
        f"One of {bounds}" if knob.choices else bounds,
        f"Default {toml_value(knob.default)}",
        knob.environment_name,
        f"Flag {knob.flag}" if knob.flag else "",
        "SIGHUP takes it over" if knob.reloadable else "Needs a restart",
    ]
    return f"[{'; '.join(fact for fact in facts if fact)}]"


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return f"\\u{ord(character):04X}" if ord(character) < 0x20 or ord(character) == 0x7F else character
