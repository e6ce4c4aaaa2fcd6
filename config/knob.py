"""One setting: what its declaration says, and the way from a raw value to a checked one.

A declaration is `name: type = knob(default, "documentation", ...)` in a section of `config.settings`; everything else
(the loader, the annotated file, the environment twin, the range check) is read from it. A raw value is a TOML value or
the text of a flag or variable; both give the same result or the same BadValue. This module does not know which
settings there are.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from config.forms import BadValue, plain_text

Value = str | int | float | tuple[str, ...]
V = TypeVar("V", bound=Value)

LIST_ITEMS_MAX = 256

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")
_IN_WORDS = {str: "a text in quotes", int: "a whole number", float: "a number", tuple: "a list of texts"}


@dataclass(frozen=True, slots=True)
class Knob:
    """The declaration of one setting. `key` is `section.name`; `low` and `high` are inclusive."""

    default: Value
    documentation: str
    key: str = ""
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    form: Callable[[str], str] | None = None
    flag: str = ""
    reloadable: bool = False
    secret: bool = False

    @property
    def section(self) -> str:
        """The table of the file that the setting stands in."""
        return self.key.partition(".")[0]

    @property
    def name(self) -> str:
        """The setting's name inside its section."""
        return self.key.partition(".")[2]

    @property
    def environment_name(self) -> str:
        """The variable that sets the same thing."""
        return f"GEARLINK_{self.section.upper()}__{self.name.upper()}"

    def from_text(self, text: str) -> Value:
        """The value that a flag or a variable spells; lists are comma separated. Raises BadValue."""
        if isinstance(self.default, tuple):
            return self.checked(tuple(item.strip() for item in text.split(",") if item.strip()))
        if isinstance(self.default, str):
            return self.checked(text)
        shape, read = (_INTEGER, int) if isinstance(self.default, int) else (_NUMBER, float)
        if not shape.fullmatch(text.strip()):
            raise BadValue(f"is not {_IN_WORDS[type(self.default)]}", self._remedy())
        return self.checked(read(text))

    def from_toml(self, raw: object) -> Value:
        """The value that a parsed TOML value stands for. Raises BadValue."""
        kind = type(self.default)
        if kind is tuple:
            if isinstance(raw, list) and all(isinstance(item, str) for item in raw):
                return self.checked(tuple(raw))
        elif kind is float and type(raw) in (int, float):  # not isinstance: a bool is an int to Python
            return self.checked(cast(float, raw))
        elif type(raw) is kind:
            return self.checked(raw)
        raise BadValue(f"is not {_IN_WORDS[kind]}", self._remedy())

    def checked(self, value: Value) -> Value:
        """The value, cleaned, if it has the right type and is in range. Raises BadValue."""
        if isinstance(value, tuple):
            if len(value) > LIST_ITEMS_MAX:
                raise BadValue(f"has more than {LIST_ITEMS_MAX} entries", "shorten the list")
            return tuple(dict.fromkeys(self._checked_text(item) for item in value))  # each once, in the given order
        if isinstance(value, str):
            return value if value == "" == self.default else self._checked_text(value)
        if not cast(float, self.low) <= value <= cast(float, self.high):  # false for nan, too
            raise BadValue("is out of range", self._remedy())
        return float(value) if isinstance(self.default, float) else value

    def bounds(self) -> str:
        """The range or the choices in words; empty for a free text."""
        if self.choices:
            return " | ".join(f'"{choice}"' for choice in self.choices)
        return "" if self.low is None else f"{self.low:g} to {self.high:.12g}"

    def _checked_text(self, text: str) -> str:
        if self.choices:
            if text not in self.choices:
                raise BadValue("is no choice that there is", self._remedy())
            return text
        return self.form(plain_text(text)) if self.form else plain_text(text)

    def _remedy(self) -> str:
        kind = type(self.default)
        if self.choices:
            return f"choose one of {', '.join(self.choices)}"
        bounds = f" from {self.bounds()}{f' {self.unit}' if self.unit else ''}" if self.low is not None else ""
        return f"write {_IN_WORDS[kind]}{bounds}"


def knob(
    default: V,
    documentation: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    form: Callable[[str], str] | None = None,
    flag: str = "",
    reloadable: bool = False,
    secret: bool = False,
) -> V:
    """Declares a setting as a field of a section. A number needs both bounds; a secret stays out of every repr."""
    assert isinstance(default, str | tuple) or (low is not None and high is not None), "a number needs bounds"
    words = " ".join(documentation.split())
    made = Knob(default, words, "", unit, low, high, tuple(choices), form, flag, reloadable, secret)
    declared: Any = field(default=default, repr=not secret, metadata={"knob": made})
    return cast(V, declared)
