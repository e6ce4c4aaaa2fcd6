"""What a user's own devices are told of what the user did on another one: settings, drafts, contacts, requests.

Each is a record as it is now, so hearing it twice, or late, does no harm. It is pure: no store, no socket.
"""

from typing import Any

import msgspec
from msgspec import UNSET

from gearlink import protocol
from gearlink.clock import Milliseconds, rfc3339
from gearlink.views import DraftView, JoinRequestView, PrivacyView, ScheduledView
from storage.events import Plain
from storage.records import (
    Block,
    Contact,
    Draft,
    Hidden,
    JoinRequest,
    Member,
    Privacy,
    Record,
    Scheduled,
    ThreadRead,
)


def optional_time(at: Milliseconds) -> str | None:
    """`at` as text; None for 0, which is how records say never."""
    return rfc3339(at) if at else None


def draft_view(draft: Draft) -> DraftView:
    return DraftView(
        conversation_id=draft.conversation_id,
        content=draft.content.text if isinstance(draft.content, Plain) else None,
        reply_to_id=draft.reply_to_id or None,
        updated_at=rfc3339(draft.updated_at),
    )


def privacy_view(privacy: Privacy) -> PrivacyView:
    return PrivacyView(
        read_receipts=privacy.read_receipts,
        last_seen=privacy.last_seen,
        add_to_groups=privacy.add_to_groups,
        find_by_number=privacy.find_by_number,
        receipts_to_strangers=privacy.receipts_to_strangers,
    )


def join_request_view(request: JoinRequest) -> JoinRequestView:
    return JoinRequestView(
        conversation_id=request.conversation_id, user_id=request.user_id, requested_at=rfc3339(request.requested_at)
    )


def scheduled_view(scheduled: Scheduled) -> ScheduledView:
    """A message that waits, as its writer sees it."""
    form: dict[str, Any] = msgspec.json.decode(scheduled.form)
    return ScheduledView(
        id=scheduled.scheduled_id,
        conversation_id=scheduled.conversation_id,
        send_at=rfc3339(scheduled.send_at),
        created_at=rfc3339(scheduled.created_at),
        temp_id=form["tempId"],
        kind=form["kind"],
        content=form["content"],
        reply_to_id=form.get("replyToId") or UNSET,
        mentions=form.get("mentions") or UNSET,
        trouble=scheduled.trouble or UNSET,
    )


def personal_frame(subject: Record, *, gone: bool) -> protocol.AnyServerFrame:
    """The frame that tells of `subject`. Raises TypeError for a record that is nobody's own."""
    match subject:
        case Member():
            return protocol.ConversationPreferences(
                conversation_id=subject.conversation_id,
                muted_until=optional_time(subject.muted_until),
                archived=subject.archived,
                pinned_at=optional_time(subject.pinned_at),
            )
        case Draft():
            return protocol.DraftChanged(draft=draft_view(subject))
        case Hidden():
            return protocol.MessageDeleted(
                conversation_id=subject.conversation_id,
                message_id=subject.message_id,
                user_id=subject.user_id,
                for_everyone=False,
                deleted_at=rfc3339(subject.hidden_at),
            )
        case ThreadRead():
            return protocol.ThreadWasRead(message_id=subject.thread_id, sequence_number=subject.sequence)
        case Contact():
            if gone:
                return protocol.ContactRemoved(user_id=subject.contact_id)
            return protocol.ContactChanged(user_id=subject.contact_id, nickname=subject.nickname or None)
        case Block():
            return (protocol.BlockRemoved if gone else protocol.BlockAdded)(user_id=subject.blocked_id)
        case Privacy():
            return protocol.PrivacyChanged(privacy=privacy_view(subject))
        case Scheduled():
            if gone:
                return protocol.ScheduledRemoved(
                    scheduled_id=subject.scheduled_id, conversation_id=subject.conversation_id
                )
            return protocol.ScheduledChanged(scheduled=scheduled_view(subject))
        case JoinRequest():
            if gone:
                return protocol.JoinSettled(conversation_id=subject.conversation_id, user_id=subject.user_id)
            return protocol.JoinRequested(request=join_request_view(subject))
    raise TypeError(f"nobody is told of a {type(subject).__name__}")
