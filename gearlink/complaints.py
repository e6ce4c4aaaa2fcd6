"""What was wrong with something that a peer sent, in words for that peer and never with the value itself.

msgspec decides what is wrong; here its text becomes a path and a message that a client author can act on. The value that
was sent is never repeated: it could be a secret, and it is not ours to log.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

import msgspec

from gearlink.errors import INVALID_REQUEST, MALFORMED_JSON, Refusal
from gearlink.views import UUID

T = TypeVar("T")
_AT = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`$")
_KINDS: Final = {
    "str": "a text", "int": "a whole number", "float": "a number", "bool": "a truth value", "object": "an object",
    "array": "a list",
}  # fmt: skip
_CHOICES_TOLD_MAX: Final = 12


def split_validation_error(error: msgspec.ValidationError, form: Any = None) -> tuple[str, str]:
    """`(path, message)` of msgspec's text, in words for a peer, without the value that was sent: it could be a secret.

    With `form`, which was asked for, a value that is none of a few is told which there are.
    """
    text = str(error)
    path = ""
    if found := _AT.search(text):
        text, path = text[: found.start()], found["path"].replace("[...]", "").lstrip(".")
    complaint, _, rest = text.partition(" `")
    if complaint in ("Object contains unknown field", "Object missing required field"):
        # The key itself is the culprit; an unknown one is not content, but it is not ours: bound it.
        path = f"{path}.{rest.rstrip('`')[:64]}".lstrip(".")
        return path[:256], "unknown field" if "unknown" in complaint else "required"
    return path[:256], _in_words(text, _choices(form, path))


def _in_words(text: str, choices: list[str]) -> str:
    """msgspec's complaint as a peer can read it; one that is not known says no more than that there is one."""
    if text.startswith("Invalid enum value") and choices:
        return ("not one of " if len(choices) > 1 else "not ") + ", ".join(choices)
    if "matching regex" in text:
        return "not an id" if UUID in text else "not of the required form"
    if found := re.fullmatch(r"Expected `[\w |]+` (?P<length>of length )?(?P<sign><=|>=) (?P<bound>-?\d+)", text):
        bound = f"{'at most' if found['sign'] == '<=' else 'at least'} {found['bound']}"
        return f"length {bound}" if found["length"] else bound
    if found := re.fullmatch(r"Expected `(?P<wanted>[\w |]+)`(?:, got `(?P<got>\w+)`)?", text):
        wanted = " or ".join(_KINDS.get(kind, kind) for kind in found["wanted"].split(" | "))
        return f"expected {wanted}" + (f", got {_KINDS.get(found['got'], found['got'])}" if found["got"] else "")
    return "not of the required form"


def _choices(form: Any, path: str) -> list[str]:
    """The values that the field at `path` of a struct can have, if they are few texts."""
    kinds = [form]
    for name in re.sub(r"\[\d*\]", "", path).split("."):
        structs = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
        fields = [each for kind in structs for each in msgspec.structs.fields(kind) if each.encode_name == name]
        kinds = [part for each in fields for part in _parts(each.type)]
    found = [text for kind in kinds if get_origin(kind) is Literal for text in get_args(kind)]
    return found if len(found) <= _CHOICES_TOLD_MAX else []


def _parts(kind: Any) -> Iterator[Any]:
    """A type and what it is made of."""
    yield kind
    if get_origin(kind) is not Literal:
        for part in get_args(kind):
            yield from _parts(part)


def decode_body(data: bytes, form: type[T]) -> T:
    """A REST body. Raises Refusal: `malformed-json`, or `invalid-request` with every path that msgspec names."""
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.ValidationError as error:
        path, message = split_validation_error(error, form)
        raise Refusal(INVALID_REQUEST, errors=[{"path": path, "message": message}]) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Refusal(MALFORMED_JSON) from None
