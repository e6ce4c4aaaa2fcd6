"""Who may do what in a conversation, and the only door to one: `enter`, for every route and every frame.

To a stranger a conversation does not exist: `enter` answers not-found, never forbidden. What a role may do is read from
one table for each type of conversation, and where the members can settle it themselves, from the conversation's
settings. Between two people one of whom has blocked the other nothing new is said. It knows no message and no socket.
"""

from enum import Enum, auto

from gearlink.errors import FORBIDDEN, NOT_FOUND, REFUSED_BY_PRIVACY, Refusal
from storage.events import ConversationSettings, ConversationType, Reach, Role
from storage.records import Conversation, Member
from storage.store import Reads


class Right(Enum):
    """What somebody may do. The tests try each against each role in each type of conversation."""

    READ = auto()
    SEND = auto()
    REACT = auto()
    """React, vote."""
    MENTION_ALL = auto()
    PIN = auto()
    MODERATE = auto()
    """Delete what others wrote."""
    CHANGE = auto()
    """Name, description, avatar."""
    SET_TIMER = auto()
    """How long messages stay."""
    SETTLE = auto()
    """The other settings."""
    ADD = auto()
    """Add people, make links, answer those who ask to be let in."""
    REMOVE = auto()
    """Remove and ban, and lift a ban."""
    APPOINT = auto()
    LEAVE = auto()
    DELETE = auto()


_EVERYONE: frozenset[Role] = frozenset({"owner", "admin", "member"})
_STAFF: frozenset[Role] = frozenset({"owner", "admin"})
_OWNERS: frozenset[Role] = frozenset({"owner"})
_NOBODY: frozenset[Role] = frozenset()
_REACH: dict[Reach, frozenset[Role]] = {"everyone": _EVERYONE, "admins": _STAFF, "owners": _OWNERS}
_GROUP = {
    Right.READ: _EVERYONE,
    Right.REACT: _EVERYONE,
    Right.LEAVE: _EVERYONE,
    Right.MODERATE: _STAFF,
    Right.SET_TIMER: _STAFF,
    Right.REMOVE: _STAFF,
    Right.SETTLE: _OWNERS,
    Right.APPOINT: _OWNERS,
    Right.DELETE: _OWNERS,
}
# Who may do what, by the type of conversation. A right that is neither in a row nor in `SETTLED` is nobody's.
RIGHTS: dict[ConversationType, dict[Right, frozenset[Role]]] = {
    "direct": dict.fromkeys((Right.READ, Right.SEND, Right.REACT, Right.PIN, Right.SET_TIMER), _EVERYONE),
    "group": _GROUP,
    "channel": _GROUP,
}
# What the settings of a group or channel decide: the right, and the setting that says who has it.
SETTLED: dict[Right, str] = {
    Right.SEND: "write",
    Right.PIN: "pin",
    Right.ADD: "invite",
    Right.CHANGE: "info",
    Right.MENTION_ALL: "mention_all",
}
DEFAULT_SETTINGS: dict[ConversationType, ConversationSettings] = {
    "direct": ConversationSettings(pin="everyone", history_visible=False),
    "group": ConversationSettings(),
    "channel": ConversationSettings(write="admins", history_visible=True),
}
_SILENCED = frozenset({Right.SEND, Right.REACT, Right.PIN, Right.SET_TIMER})  # between two who do not want to talk


def settings_of(conversation: Conversation) -> ConversationSettings:
    """What holds there: what was set, or else the defaults of its type."""
    return conversation.settings or DEFAULT_SETTINGS[conversation.type]


def has_roster(conversation: Conversation) -> bool:
    """Encrypted and of many: who is in it is signed by its owners and admins (`gearlink.rosters`)."""
    return conversation.encryption == "e2ee" and conversation.type != "direct"


def holders(conversation: Conversation, right: Right) -> frozenset[Role]:
    """The roles that have `right` in this conversation."""
    if conversation.type != "direct" and (setting := SETTLED.get(right)):
        return _REACH[getattr(settings_of(conversation), setting)]
    return RIGHTS[conversation.type].get(right, _NOBODY)


async def enter(reads: Reads, user_id: str, conversation_id: str, right: Right) -> tuple[Conversation, Member]:
    """The conversation and the caller's place in it.

    Raises Refusal `not-found` for a stranger, whether or not the conversation exists; `forbidden` for a member whose role
    does not have `right`; `refused-by-privacy` where one of two has blocked the other.
    """
    member = await reads.get(Member, conversation_id, user_id)
    conversation = await reads.get(Conversation, conversation_id) if member is not None else None
    if member is None or conversation is None:
        raise Refusal(NOT_FOUND)
    if member.role not in holders(conversation, right):
        raise Refusal(FORBIDDEN)
    if conversation.is_blocked and right in _SILENCED:
        raise Refusal(REFUSED_BY_PRIVACY)
    return conversation, member
