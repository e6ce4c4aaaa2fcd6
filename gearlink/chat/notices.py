"""What is wrong, in words: why a message cannot be read, what a secure client noticed, and what a person can do about it.

Nothing here is content of others but names, which are harmless already. A line about trust begins with `!!`.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from gearlink.sdk.secure.told import (
    HistoryFetched,
    IdentityChanged,
    Linked,
    NotLinked,
    Recovered,
    SecurityEvent,
    Suspicious,
)

Name = Callable[[str], Awaitable[str]]

_ASKED: Final = "it is asked for again"
TROUBLES: Final[dict[str, str]] = {
    "no-session": f"sealed with keys that this device does not have; {_ASKED}",
    "unknown-pre-key": f"sealed with a key of this device that is gone; {_ASKED}",
    "bad-message": f"damaged or forged; {_ASKED}",
    "no-sender-key": f"its key has not come yet; {_ASKED}",
    "bad-signature": f"not signed by the device that it is said to be from; {_ASKED}",
    "no-envelope": f"it was not encrypted for this device; {_ASKED}",
    "expired": f"the server has dropped it; {_ASKED}",
    "unreadable-letter": "written by a program that does it differently",
    "misdirected": "NOT SHOWN: it was written for another conversation, or by somebody else than the server says",
    "unknown-device": "NOT SHOWN: from a device that its owner has not confirmed",
}
_SUSPICIONS: Final[dict[str, str]] = {
    "ghost-device": "the server lists a device of {who} that {who} has not confirmed. Nothing is encrypted for it",
    "ghost-member": "the server says that {who} is in this group, but no admin let them in. Nothing is encrypted for them;"
    " if it is right, an admin says /add",
    "new-device": "{who} has a new device. They have no account key, so nobody can tell whether it is really theirs",
    "plain": "the server shows something here that is not encrypted, though everything here is. It is not shown",
    "downgraded": "the server says that this encrypted conversation is none, or another one. It is not believed",
    "roster-fork": "others were shown another list of who is in this group. Ask them who is, outside of this server",
    "roster-forged": "the server showed a list of members that nobody who may has signed. It is not believed",
    "roster-rollback": "the server hides changes of who is in this group. Ask the others who is",
    "no-roster": "nobody has signed who is in this group, so nothing is sent here. Open a new one",
    "missing": "something that {who} wrote has not come. It is asked for",
    "replayed": "a message of {who} came a second time and was dropped: somebody repeats what they said",
    "misdirected": "something came as if from {who}, but was written for another conversation or by somebody else",
    "unknown-device": "something came from a device that {who} has not confirmed. It is not shown",
}


async def notice(event: SecurityEvent, name: Name) -> str | None:
    """One line about what was noticed; None for what is told elsewhere."""
    match event:
        case IdentityChanged():
            return changed_identity(await name(event.user_id), was_verified=event.was_verified)
        case Suspicious():
            return _SUSPICIONS[event.code].format(who=await name(event.user_id) if event.user_id else "somebody")
        case NotLinked():
            return not_linked(event.code)
        case Linked():
            more = "; what was said before is being fetched" if event.history else ""
            return f"this device is linked: it can read and write{more}"
        case HistoryFetched():
            lost = f"; {event.damaged} pieces of it could not be read" if event.damaged else ""
            return f"{event.messages} messages from before this device are here: /older shows them{lost}"
    return None


def changed_identity(who: str, *, was_verified: bool = False) -> str:
    """What it means that somebody has other keys, and what to do."""
    if who == "you":
        return (
            "another device has started your account over: this one is not linked any more. If that was not you, somebody"
            " can sign in with your number: tell the people you talk to"
        )
    before = " You had verified them." if was_verified else ""
    return (
        f"{who} has other keys than before: a new installation, or somebody who reads along.{before} Nothing is sent"
        f" where they are until you compare (/safety {_handle(who)}) and say /accept {_handle(who)}"
    )


def not_linked(code: str) -> str:
    """What to do with a device that nobody confirmed yet."""
    return (
        f"this device is not linked yet: it can read and write nothing that is encrypted. Its linking code is {code}."
        f" On a device that is, say /link {code}; without one, say /recover here and type your recovery key"
    )


def _handle(name: str) -> str:
    """The @username of a name, if it has one, as a command takes it."""
    found = name[name.rfind("(@") + 1 : -1] if name.endswith(")") and "(@" in name else name
    return found if found.startswith("@") else "WHO"


_TYPES: Final[dict[type[SecurityEvent], str]] = {
    IdentityChanged: "security:identity-changed",
    Suspicious: "security:suspicious",
    NotLinked: "security:not-linked",
    Linked: "security:linked",
    Recovered: "message:recovered",
    HistoryFetched: "security:history-fetched",
}


def as_json(event: SecurityEvent) -> dict[str, Any]:
    """For `--json`, in the form that events of the server have."""
    fields = {_camel(key): value for key, value in msgspec.to_builtins(event).items()}
    return {"type": _TYPES.get(type(event), "security:notice"), **fields}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(each.capitalize() for each in rest)
