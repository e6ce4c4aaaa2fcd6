"""How the no of the server, and that of the operating system, becomes one line for the user. It shows nothing itself."""

from typing import Final

from gearlink.sdk import Refused

_HERE: Final = {
    "no-roster": "nobody has signed who is in this group, so it cannot be used: open a new one",
    "must-be-encrypted": "this conversation is encrypted, and here the server would have to read what you say",
}
"""What is refused in encrypted conversations, and what is to be done about it."""


def refusal_line(refused: Refused) -> str:
    """What was refused, with the fields that were wrong, and when to try again."""
    if refused.code in ("not-authenticated", "invalid-refresh-token"):
        return "not signed in: try `gearlink chat signup --phone NUMBER`"
    if refused.code in _HERE:
        return _HERE[refused.code]
    fields = "; ".join(f"{error.get('path', '')}: {error.get('message', '')}" for error in refused.errors)
    fields = "" if fields == refused.detail else fields
    wait = "" if refused.retry_after_seconds is None else f" (again in {refused.retry_after_seconds:.0f} s)"
    return f"{refused.detail}{' - ' + fields if fields else ''}{wait}"


def system_line(error: OSError) -> str:
    """What the operating system would not do, without its number."""
    if not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if isinstance(error.filename, str) else error.strerror
