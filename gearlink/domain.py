"""The rules of the house as one thing: what both doors, REST and WebSocket, call. It holds parts and no logic."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from config.settings import Settings
from gearlink.accounts import Accounts, Actor
from gearlink.amendments import Amendments
from gearlink.archives import Archives
from gearlink.avatars import Avatars
from gearlink.calls import SyncAnswer, SyncForm
from gearlink.conversations import Conversations
from gearlink.device_lists import DeviceLists
from gearlink.invitations import Invitations
from gearlink.keyring import Keyring
from gearlink.members import Members
from gearlink.messages import Messages
from gearlink.people import People
from gearlink.polls import Polls
from gearlink.preferences import Preferences
from gearlink.presence import Presence
from gearlink.profiles import Profiles
from gearlink.reactions import Reactions
from gearlink.receipts import Receipts
from gearlink.reports import Reports
from gearlink.rosters import Rosters
from gearlink.schedule import Schedule
from gearlink.standing import Standing
from gearlink.threads import Threads
from gearlink.verification import Verification


@dataclass(slots=True)
class Domain:
    """One object for each part of the rules. `sync` is the door for clients without a socket."""

    accounts: Accounts
    verification: Verification
    standing: Standing
    people: People
    profiles: Profiles
    avatars: Avatars
    keyring: Keyring
    device_lists: DeviceLists
    conversations: Conversations
    members: Members
    invitations: Invitations
    preferences: Preferences
    messages: Messages
    amendments: Amendments
    reactions: Reactions
    polls: Polls
    threads: Threads
    schedule: Schedule
    receipts: Receipts
    presence: Presence
    rosters: Rosters
    archives: Archives
    reports: Reports
    # A door, put in when the doors are built.
    sync: Callable[[Actor, SyncForm], Awaitable[SyncAnswer]] = field(init=False)

    def reload(self, settings: Settings) -> None:
        """Takes over the settings that may change while the server runs."""
        self.verification.reload(settings)
        self.accounts.reload(settings)
        self.profiles.reload(settings)
        self.keyring.reload(settings)
        self.amendments.reload(settings)
        self.archives.reload(settings)
        self.conversations.members_max = self.members.members_max = settings.limits.group_members_max
