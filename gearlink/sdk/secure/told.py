"""What a secure client tells besides the events of the server: what it noticed, and what became readable.

Each is a fact for the caller to show; none holds a key, and only `Recovered` and `Opened` hold what somebody wrote.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from gearlink.sdk.e2ee.letters import Attachment
from gearlink.views import MessageView

Suspicion = Literal[
    "ghost-device",  # the server lists a device that its user did not certify
    "ghost-member",  # the server lists a member whom no owner or admin signed in
    "new-device",  # a user without an account key has another device
    "plain",  # something in an encrypted conversation that is not encrypted: nobody in it can have said that
    "downgraded",  # the server says that an encrypted conversation is none, or another one than it was
    "roster-forged",  # a statement of the roster that nobody who may has signed
    "roster-rollback",  # the server shows an older roster than was seen before
    "roster-fork",  # others were shown another roster
    "no-roster",  # a group in which nobody was signed in: nothing is sent there
    "missing",  # a letter that its sender numbered never came
    "replayed",  # a letter came again as another message
    "misdirected",  # a letter of another conversation, or from somebody else than the server says
    "unknown-device",  # a letter from a device that its user did not certify
]


class OpenedMessage(MessageView, kw_only=True):
    """A message with what was in its letter. `trouble` is why it cannot be read: then `content` is null."""

    attachments: list[Attachment] | UnsetType = UNSET
    trouble: str | UnsetType = UNSET


class SecurityEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what a secure client noticed by itself."""


class IdentityChanged(SecurityEvent, frozen=True):
    """The user has another account key than before (or, without one, a device has another identity key). Nothing is
    encrypted for them until `accept_identity`. `was_verified`: a person had compared safety numbers."""

    user_id: str
    was_verified: bool


class Suspicious(SecurityEvent, frozen=True):
    """Something that an honest server would not do, or a broken client did."""

    code: Suspicion
    conversation_id: str = ""
    user_id: str = ""
    device_id: str = ""


class Recovered(SecurityEvent, frozen=True):
    """A message that could not be read before, or never came, is here."""

    message: OpenedMessage


class NotLinked(SecurityEvent, frozen=True):
    """This device has no certificate: it can neither send nor read until another device links it with this code, or the
    recovery key is given."""

    code: str


class Linked(SecurityEvent, frozen=True):
    """This device was linked. `history`: an archive with what was said before is there to be fetched."""

    history: bool


class HistoryFetched(SecurityEvent, frozen=True):
    """What was said before this device is here: `messages`, but for what was in `damaged` chunks of the archive."""

    messages: int
    damaged: int
