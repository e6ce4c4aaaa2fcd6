"""What the REST calls take and answer, by example: one body for each form, one result for each call of the domain.

A new form wants an example in `BODIES`, a new call of the domain one in `RESULTS`. The door is tried with both behind
stubs (`tests/test_http_api.py`), a running server with the bodies (`tests/flows/test_access.py`).
"""

from typing import Any

import msgspec

from gearlink import calls, views
from gearlink.accounts import Actor
from gearlink.clock import DAY, Clock, rfc3339
from storage.records import Avatar
from tests.handsets import Handset, Owner

ME, OTHER, PLACE = (f"019a0f3e-7c00-7000-8000-00000000000{digit}" for digit in "123")
AT = "2026-01-31T12:00:00.000Z"
ACTOR = Actor(ME, OTHER, PLACE, 2**50, is_admin=True)

USER = views.User(id=ME, username=None, display_name="Ann", bio="", created_at=AT)
DEVICE = views.Device(id=OTHER, name="Phone", type="ios", created_at=AT, last_seen_at=AT, current=True, signed_in=True)
MESSAGE = views.MessageView(
    id=ME, conversation_id=PLACE, sender_id=ME, sender_device_id=OTHER, kind="text", content="hello", sequence_number=7,
    created_at=AT,
)  # fmt: skip
CONVERSATION = views.ConversationView(
    id=PLACE, type="group", encryption="server", name="Room", description=None, created_by=ME, created_at=AT,
    updated_at=AT, role="owner", member_count=1, sequence_number=7, read_sequence_number=7, unread_count=0,
    last_message=MESSAGE,
)  # fmt: skip
MEMBER = views.MemberView(user_id=ME, role="owner", joined_at=AT)
CONTACT = views.ContactView(user=USER, nickname=None, added_at=AT)
PRIVACY = views.PrivacyView(
    read_receipts=True, last_seen="everyone", add_to_groups="everyone", find_by_number="everyone",
    receipts_to_strangers=True,
)  # fmt: skip
LINK = views.JoinLinkView(
    id=OTHER, code="a-code-of-a-link_", created_by=ME, created_at=AT, expires_at=None, uses_max=1, uses=0,
    needs_approval=False,
)  # fmt: skip
DRAFT = views.DraftView(conversation_id=PLACE, content="begun", reply_to_id=None, updated_at=AT)
POLL = views.PollView(
    options=[views.PollOption(text="yes", count=1)], multiple=False, anonymous=False, voters=1, closes_at=None,
    closed_at=None, my_options=[0],
)  # fmt: skip
SCHEDULED = views.ScheduledView(
    id=OTHER, conversation_id=PLACE, send_at=AT, created_at=AT, temp_id="t2", kind="text", content="good morning"
)
KEY_STATUS = views.KeyStatus(one_time_remaining=3, digest="A" * 43)
BUNDLE = views.DeviceBundle(
    device_id=OTHER, identity_key="A" * 43, one_time_pre_key=views.OneTimePreKeyView(key_id=3, public_key="A" * 43),
    signed_pre_key=views.SignedPreKeyView(key_id=1, public_key="A" * 43, signature="A" * 86),
)  # fmt: skip
ARCHIVE = views.ArchiveView(
    archive_id=OTHER, kind="backup", device_id=ME, chunk_count=1, size_bytes=9, created_at=AT, updated_at=AT
)
PAIR = calls.TokenPair(access_token="a", refresh_token="r", expires_in_seconds=900)

BODIES: dict[type[Any], Any] = {
    calls.SyncForm: {},
    calls.VerifyRequest: {"phoneNumber": "+15551230001"},
    calls.VerifyConfirm: {"verificationId": ME, "code": "123456", "device": {"name": "Phone", "type": "ios"}},
    calls.RefreshForm: {"refreshToken": "r"},
    calls.ProfileForm: {"displayName": "Ann"},
    calls.ContactForm: {"nickname": "Bobby"},
    calls.PrivacyForm: {"lastSeen": "nobody"},
    calls.KeysForm: Handset().upload(3),
    calls.RosterForm: {"statement": "{}", "signature": "A" * 86},
    calls.ArchiveForm: {"kind": "backup"},
    calls.DecryptionReport: {"counts": {"no-session": 1}},
    calls.CertificateForm: Owner().certify(ME, OTHER, Handset()),
    calls.ClaimForm: {"userId": OTHER},
    calls.DiscoverForm: {"hashes": ["A" * 43]},
    calls.ConversationForm: {"type": "group", "name": "Room"},
    calls.ConversationChange: {"name": "Room"},
    calls.MembersForm: {"userIds": [OTHER]},
    calls.MemberChange: {"role": "admin"},
    calls.JoinLinkForm: {"usesMax": 1},
    calls.PreferencesForm: {"archived": True},
    calls.DraftForm: {"content": "begun"},
    calls.MessageForm: {"tempId": "t1", "content": "hello"},
    calls.ReadForm: {"sequenceNumber": 7},
    calls.EditForm: {"content": "hello again"},
    calls.VoteForm: {"options": [0]},
    calls.ScheduleForm: {"tempId": "t2", "content": "good morning", "sendAt": rfc3339(Clock().now() + DAY)},
    calls.ScheduleChange: {"content": "good evening"},
    calls.SyncForm: {"limit": 10},
}
RESULTS: dict[str, Any] = {
    "Verification.request": calls.VerifyRequested(verification_id=ME, expires_in_seconds=600, resend_after_seconds=30),
    "Accounts.authenticate": ACTOR,
    "Accounts.confirm": calls.SignedIn(
        access_token="a", refresh_token="r", expires_in_seconds=900, user=USER, device=DEVICE, is_new_user=True
    ),
    "Accounts.refresh": PAIR,
    "Accounts.devices": views.Page(items=[DEVICE]),
    "Profiles.me": USER,
    "Profiles.change_profile": USER,
    "Profiles.user": USER,
    "Profiles.by_username": views.Page(items=[USER]),
    "Profiles.discover": views.Page(items=[calls.Discovery(hash="A" * 43, user=USER)]),
    "People.contacts": views.Page(items=[CONTACT]),
    "People.put_contact": CONTACT,
    "People.blocks": views.Page(items=[views.BlockView(user=USER, blocked_at=AT)]),
    "People.privacy": PRIVACY,
    "People.change_privacy": PRIVACY,
    "Keyring.publish": KEY_STATUS,
    "Keyring.status": KEY_STATUS,
    "Keyring.claim": views.ClaimedKeys(devices=[BUNDLE]),
    "Keyring.certify": None,
    "Keyring.devices_in": views.ConversationDevices(
        digest="A" * 43,
        account_keys={ME: "A" * 43},
        devices=[views.ConversationDevice(user_id=ME, device_id=OTHER, identity_key="A" * 43, certificate="A" * 86)],
    ),
    "Keyring.devices": views.DeviceIdentities(devices=[views.DeviceIdentity(device_id=OTHER, identity_key="A" * 43)]),
    "Rosters.publish": (1, True),
    "Rosters.statements": views.Page(items=[views.RosterStatement(version=1, statement="{}", signature="A" * 86)]),
    "Archives.list": views.Page(items=[ARCHIVE]),
    "Archives.make": (ARCHIVE, True),
    "Archives.read": b"a picture",
    "Conversations.create": (CONVERSATION, True),
    "Conversations.list": views.Page(items=[CONVERSATION]),
    "Conversations.view": CONVERSATION,
    "Conversations.change": CONVERSATION,
    "Members.list": views.Page(items=[MEMBER]),
    "Members.add": views.Page(items=[MEMBER]),
    "Members.change": MEMBER,
    "Members.bans": views.Page(items=[views.BanView(user_id=OTHER, banned_by=ME, banned_at=AT)]),
    "Invitations.links": views.Page(items=[LINK]),
    "Invitations.create": LINK,
    "Invitations.preview": views.LinkPreview(
        conversation_id=PLACE,
        type="group",
        name="Room",
        description=None,
        avatar_url=None,
        member_count=1,
        needs_approval=False,
        is_member=False,
    ),
    "Invitations.join": views.JoinAnswer(status="joined", conversation=CONVERSATION),
    "Invitations.requests": views.Page(
        items=[views.JoinRequestView(conversation_id=PLACE, user_id=OTHER, requested_at=AT)]
    ),
    "Invitations.approve": MEMBER,
    "Preferences.change": CONVERSATION,
    "Preferences.set_draft": DRAFT,
    "Preferences.drafts": views.Page(items=[DRAFT]),
    "Messages.page": views.Page(items=[MESSAGE]),
    "Messages.send": calls.SentMessage(message_id=ME, **msgspec.structs.asdict(MESSAGE)),
    "Messages.view": MESSAGE,
    "Amendments.edit": MESSAGE,
    "Amendments.revisions": views.Page(items=[views.RevisionView(number=1, content="hullo", written_at=AT)]),
    "Amendments.pins": views.Page(items=[MESSAGE]),
    "Reactions.reactions": views.Page(items=[views.ReactorView(user_id=OTHER, emoji="👍", at=AT)]),
    "Polls.vote": POLL,
    "Polls.votes": views.Page(items=[views.VoteView(user_id=OTHER, options=[0], at=AT)]),
    "Polls.close": POLL,
    "Threads.view": views.ThreadPage(root=MESSAGE, reply_count=1, unread_count=0, items=[MESSAGE]),
    "Threads.threads": views.Page(
        items=[views.ThreadView(root=MESSAGE, reply_count=1, unread_count=0, last_reply=MESSAGE)]
    ),
    "Schedule.add": SCHEDULED,
    "Schedule.list": views.Page(items=[SCHEDULED]),
    "Schedule.change": SCHEDULED,
    "sync": calls.SyncAnswer(epoch="e", cursors={PLACE: 7}, conversations=[CONVERSATION], events=[], complete=True),
    "Avatars.set_own": calls.AvatarSet(avatar_url="/api/v1/avatars/x"),
    "Avatars.set_for_conversation": calls.AvatarSet(avatar_url="/api/v1/avatars/x"),
    "Avatars.read": Avatar(OTHER, ME, "image/png", b"a picture"),
    "Receipts.deliveries": views.Page(items=[views.DeliveryView(user_id=OTHER, status="SENT")]),
}


def example_of(form: type[Any] | None) -> Any:
    """A body that this form takes; None for a call without one."""
    assert form is None or form in BODIES, f"{form} wants an example: add one to BODIES in tests/http_examples.py"
    return BODIES[form] if form is not None else None
