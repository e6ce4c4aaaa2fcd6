"""What a device keeps for itself: its keys, its sessions, what it knows of others, and the history it has read.

One frozen struct for each kind; `KEY` names the fields of its key. They are written as MessagePack arrays, so fields are
only ever appended, with a default. Times are milliseconds since the epoch. It knows no cryptography.
"""

from typing import ClassVar, Literal

import msgspec

from gearlink.views import ConversationType
from gearlink.views import DecryptionReason as Reason

PreKeyUse = Literal["signed", "last-resort", "one-time"]


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Base of what the vault holds. `TABLE` never changes once it was released, nor does the order of `KEY`."""

    TABLE: ClassVar[int]
    KEY: ClassVar[tuple[str, ...]]

    def __repr__(self) -> str:
        """Most of them hold secrets, so none shows itself in a log or an error."""
        return f"<{type(self).__name__}>"


# --- this device -----------------------------------------------------------------------------------------------------


class Own(Record, frozen=True):
    """Who this device is; there is one record, under the name "own". `account_seed` is the private account key, empty
    until this device was linked; `certificate` what it signed for this device. `next_key_id` is the counter of all
    pre-key ids. `epoch` is that of the server when keys were uploaded last. `backup_key` is empty without a backup.
    `uploaded_key_id` is the newest one-time pre-key that the server acknowledged. `since_noted`: what was said before this
    device counted is noted (`Since`). `link_secret` is in the linking code that
    this device shows, empty once it was used; `link_failures` are letters that did not know it."""

    TABLE = 1
    KEY = ("name",)

    name: str
    user_id: str
    device_id: str
    identity_seed: bytes
    made_at: int
    account_seed: bytes = b""
    certificate: bytes = b""
    next_key_id: int = 1
    epoch: str = ""
    uploaded_at: int = 0
    backup_key: bytes = b""
    uploaded_key_id: int = 0
    link_secret: bytes = b""
    link_failures: int = 0
    since_noted: bool = False


class PreKey(Record, frozen=True):
    """A pre-key pair (X25519) of this device. `replaced_at` is when a newer one took its place, 0 for the current; of
    a one-time one when it was found to be handed out. `used` are the EK_A that a last-resort one was used with."""

    TABLE = 2
    KEY = ("use", "key_id")

    use: PreKeyUse
    key_id: int
    private_key: bytes
    public_key: bytes
    signature: bytes
    made_at: int
    replaced_at: int = 0
    used: tuple[bytes, ...] = ()


# --- others ----------------------------------------------------------------------------------------------------------


class Peer(Record, frozen=True):
    """A user as this device knows them. `account_key` is the pin, empty where they had none. `offered_key` is another one
    that was shown since, at `changed_at`: nothing is encrypted for them until it is accepted. `verified_at` is when a
    person compared safety numbers, 0 for never. `roster_key` is an offered one that a roster names, in spite of what the
    server shows; `left` are those that the person did not go on with, the newest last."""

    TABLE = 3
    KEY = ("user_id",)

    user_id: str
    account_key: bytes
    met_at: int
    verified_at: int = 0
    offered_key: bytes = b""
    changed_at: int = 0
    roster_key: bytes = b""
    left: tuple[bytes, ...] = ()


class PeerDevice(Record, frozen=True):
    """A device of a user (also of one's own), as it was last found sound. `gone_at` is when it was not listed any more;
    `offered_key` another identity key that was shown since, of a user without an account key: see `Peer`."""

    TABLE = 4
    KEY = ("user_id", "device_id")

    user_id: str
    device_id: str
    identity_key: bytes
    certificate: bytes
    met_at: int
    gone_at: int = 0
    offered_key: bytes = b""


class Session(Record, frozen=True):
    """One Double Ratchet session with a device. `session_id` is the ephemeral key (EK_A) that it began with; `state` the
    ratchet's own JSON; `ad` the associated data of the agreement. An unconfirmed one that this device began goes on to send
    `opening`, the head of its prekey envelopes. The one with the newest `used_at` is sent on. `chains` are the other
    side's earlier ratchet keys, each with the numbers of which the keys were there once: from (older ones were dropped
    unused) and up to (exclusive; 0 for the chain that still runs). `skipped` are the message keys that have not come yet,
    as (ratchet key, number, message key), oldest first."""

    TABLE = 5
    KEY = ("device_id", "session_id")

    device_id: str
    session_id: bytes
    user_id: str
    identity_key: bytes
    state: bytes
    ad: bytes
    opening: bytes
    used_at: int
    chains: tuple[tuple[bytes, int, int], ...] = ()
    skipped: tuple[tuple[bytes, int, bytes], ...] = ()


class OwnSenderKey(Record, frozen=True):
    """This device's sender key in a conversation. `holders` are the devices that were given it, as (user, device)."""

    TABLE = 6
    KEY = ("conversation_id",)

    conversation_id: str
    key_id: bytes
    chain_key: bytes
    iteration: int
    signing_seed: bytes
    made_at: int
    epoch: str
    holders: tuple[tuple[str, str], ...] = ()


class SenderKey(Record, frozen=True):
    """Another device's sender key. `skipped` are message keys of iterations that have not come yet. Below `floor` there
    are no others: they were dropped, or this device was never given them."""

    TABLE = 7
    KEY = ("conversation_id", "device_id", "key_id")

    conversation_id: str
    device_id: str
    key_id: bytes
    user_id: str
    chain_key: bytes
    iteration: int
    signature_key: bytes
    made_at: int
    skipped: dict[int, bytes] = {}
    floor: int = 0


class Count(Record, frozen=True):
    """How far the `count` of letters from one device in one conversation has come; `missing` are those below it that were
    not opened, `unread` how many came since and could not be opened, so that their numbers are not known; `failed` of these
    were ciphertext, so that nobody knows whether they were from there at all. The own device's record counts what it sent;
    the one without a device has, as `unread`, what disappeared before it was seen."""

    TABLE = 8
    KEY = ("conversation_id", "device_id")

    conversation_id: str
    device_id: str
    count: int
    missing: tuple[int, ...] = ()
    unread: int = 0
    failed: int = 0


class Room(Record, frozen=True):
    """An encrypted conversation, as it was when this device first heard of it; whatever the server says later, it stays one.
    `peer_id` is the other one of a direct conversation, empty for groups."""

    TABLE = 30
    KEY = ("conversation_id",)

    conversation_id: str
    type: ConversationType
    created_by: str
    peer_id: str = ""


class RosterState(Record, frozen=True):
    """The roster of a group as far as it was followed: `members` are (user, role, account key or empty), `past` those who
    were in it before."""

    TABLE = 9
    KEY = ("conversation_id",)

    conversation_id: str
    version: int
    hash: bytes
    members: tuple[tuple[str, str, bytes], ...]
    past: tuple[str, ...] = ()


class Statement(Record, frozen=True):
    """A statement of a roster, to give it back to a server that lost it."""

    TABLE = 10
    KEY = ("conversation_id", "version")

    conversation_id: str
    version: int
    statement: str
    signature: bytes


# --- letters ---------------------------------------------------------------------------------------------------------


class Epoch(Record, frozen=True):
    """An epoch of the server's store: after a restore numbers begin again, in another `era` (seconds since 1970 when this
    device first heard of the epoch), so that what was said before stands before what is said now."""

    TABLE = 17
    KEY = ("epoch",)

    epoch: str
    era: int


class Kept(Record, frozen=True):
    """A letter of the history, one's own among them. `letter` is its JSON, with later edits in it; empty where it could not
    be read yet, and `trouble` says why. `kind` is that of the wire: `text` for what people read, `control` for the rest.
    `audience` are the devices that an own letter was for, as (user, device); `count` its number among those of its device,
    0 where it has none; `reactions` are (user, emoji). `change` is its newest entry in the `Trail`, `edit` the letter
    that changed it last, as (device, count)."""

    TABLE = 11
    KEY = ("conversation_id", "era", "sequence")

    conversation_id: str
    era: int
    sequence: int
    message_id: str
    sender_id: str
    sender_device_id: str
    created_at: int
    kind: str
    letter: bytes
    count: int = 0
    temp_id: str = ""
    edited_at: int = 0
    deleted_at: int = 0
    expires_at: int = 0
    trouble: str = ""
    reactions: tuple[tuple[str, str], ...] = ()
    audience: tuple[tuple[str, str], ...] = ()
    change: int = 0
    edit: tuple[str, int] = ("", 0)


class KeptIndex(Record, frozen=True):
    """Where the message of this id is kept."""

    TABLE = 12
    KEY = ("message_id",)

    message_id: str
    conversation_id: str
    era: int
    sequence: int


class Expiring(Record, frozen=True):
    """When a message that disappears has to go."""

    TABLE = 21
    KEY = ("expires_at", "message_id")

    expires_at: int
    message_id: str


class Outgoing(Record, frozen=True):
    """What was sealed and is not acknowledged: sent again as it is until the server has it. `form` is the frame as JSON,
    empty while it is not sealed; `letter` what is in it, as JSON, `audience` for whom."""

    TABLE = 13
    KEY = ("conversation_id", "temp_id")

    conversation_id: str
    temp_id: str
    letter: bytes
    form: bytes
    audience: tuple[tuple[str, str], ...]
    made_at: int
    expires_in_seconds: int = 0


class Repair(Record, frozen=True):
    """A letter that could not be read, or with a `count` one that never came, and is asked for again. `subject` is the
    message's id, or stands for the missing one; `kind` is that of the wire."""

    TABLE = 14
    KEY = ("subject",)

    subject: str
    conversation_id: str
    user_id: str
    device_id: str
    reason: str
    tries: int
    next_at: int
    count: int = 0
    key_id: bytes = b""
    kind: str = "text"


class Tally(Record, frozen=True):
    """How often something could not be read for this reason, and how much of that was reported."""

    TABLE = 15
    KEY = ("reason",)

    reason: Reason
    count: int
    reported: int = 0


class Archive(Record, frozen=True):
    """A backup that this device makes, or a transfer that it sends or fetches (or a backup that it restores): chunks up to
    `done` are through. `position` is how far the trail of the history was followed, `cursors` up to where the backup is
    complete; `chunks` and `changed_at` are of the manifest that was written last, `mark` is the hash of what else was in
    it, `base` its chunks when the backup was complete for the first time. `device_id` is the one that fetches what is sent,
    or made what is fetched. `manifest` is the number of the manifest's chunk. `rows` came with what was fetched, `damaged`
    chunks did not. What is `over` is done with, or replaced by another, and is to be deleted. `digest` is the running hash
    over the chunks that are through. `underway` is the next chunk, of which nobody knows whether it arrived: SHA-256 of it,
    the position behind it, its messages. `link_secret` is of the code that was typed."""

    TABLE = 16
    KEY = ("kind", "archive_id")

    kind: Literal["backup", "sending", "fetching"]
    archive_id: str
    key: bytes
    chunks: int
    done: int
    position: int
    cursors: dict[str, int]
    changed_at: int
    device_id: str = ""
    manifest: int = 0
    rows: int = 0
    damaged: int = 0
    mark: bytes = b""
    base: int = 0
    over: bool = False
    digest: bytes = bytes(32)
    underway: tuple[bytes, int, int] = (b"", 0, 0)
    link_secret: bytes = b""


class Trail(Record, frozen=True):
    """The history in the order in which it was last changed: every message has one entry, its newest. So whoever follows it
    from 0 comes by all that is there, and goes on from where they were when something has changed."""

    TABLE = 22
    KEY = ("number",)

    number: int
    conversation_id: str
    era: int
    sequence: int


class Since(Record, frozen=True):
    """Up to `sequence` a conversation was there before this device, at the time `at`: what it cannot read of that was not
    for it."""

    TABLE = 18
    KEY = ("conversation_id", "epoch")

    conversation_id: str
    epoch: str
    sequence: int
    at: int = 0


class Waiting(Record, frozen=True):
    """An edit or a reaction to a message that cannot be read yet: applied when it can."""

    TABLE = 19
    KEY = ("message_id", "event_id")

    message_id: str
    event_id: str
    sender_id: str
    created_at: int
    letter: bytes


class OwnCount(Record, frozen=True):
    """Where the letter with this number, which this device sent, is kept."""

    TABLE = 20
    KEY = ("conversation_id", "count")

    conversation_id: str
    count: int
    message_id: str
