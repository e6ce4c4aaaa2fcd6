"""A conversation as one of its members sees it: what it is, how far it goes, what waits there, what they set for it.

Everything is read from the head and from counts that are bounded, so it costs the same whatever the history. Who may ask
is settled before.
"""

from collections.abc import Sequence

from msgspec import UNSET

from config import limits
from gearlink.clock import Milliseconds, rfc3339
from gearlink.counting import mentions, unread
from gearlink.personal import optional_time
from gearlink.reading import shown
from gearlink.rights import Right, holders, settings_of
from gearlink.timeline import avatar_url, settings_view
from gearlink.views import ConversationView, MemberView, MessageView
from gearlink.visibility import is_visible
from storage.notices import Admitted
from storage.records import Conversation, Head, LogEntry, Member
from storage.store import Reads


def member_view(member: Member) -> MemberView:
    return MemberView(user_id=member.user_id, role=member.role, joined_at=rfc3339(member.joined_at))


def fresh_view(notice: Admitted, member: Member) -> ConversationView:
    """The conversation as a newcomer is told of it: nothing waits there, and what was said before is not fetched."""
    return _view(notice.conversation, member, notice.sequence, members=notice.members)


async def overview(
    reads: Reads,
    conversation: Conversation,
    member: Member,
    now: Milliseconds,
    *,
    with_members: bool,
    device_id: str,
) -> ConversationView:
    """The conversation as this member sees it now, on this device; `with_members` names them where they are few."""
    conversation_id = conversation.conversation_id
    head = await reads.get(Head, conversation_id) or Head(conversation_id, 0, 0, conversation.created_at)
    last = await last_message(reads, member, head, now)
    members: Sequence[Member] = ()
    if with_members and conversation.member_count <= limits.MEMBERS_SHOWN_MAX:
        members = await reads.scan(Member, conversation_id, limit=limits.MEMBERS_SHOWN_MAX)
    return _view(
        conversation,
        member,
        head.sequence,
        unread_count=await unread(reads, member, head, now),
        mention_count=await mentions(reads, member, now),
        last=None if last is None else await shown(reads, last, member, now, device_id=device_id),
        members=members,
    )


async def last_message(reads: Reads, member: Member, head: Head, now: Milliseconds) -> LogEntry | None:
    """The newest message that the member may see; None if there is none near the end of the log."""
    if head.message_sequence <= member.horizon:
        return None
    newest = await reads.get(LogEntry, member.conversation_id, head.message_sequence)
    if newest is not None and await is_visible(reads, newest, member, now):
        return newest
    earlier = await reads.scan(
        LogEntry,
        member.conversation_id,
        after=member.horizon,
        before=head.message_sequence,
        limit=limits.LAST_MESSAGE_SCAN_EVENTS_MAX,
        reverse=True,
    )
    for entry in earlier:
        if await is_visible(reads, entry, member, now):
            return entry
    return None


def _view(
    conversation: Conversation,
    member: Member,
    sequence: int,
    *,
    unread_count: int = 0,
    mention_count: int = 0,
    last: MessageView | None = None,
    members: Sequence[Member] = (),
) -> ConversationView:
    answers_requests = member.role in holders(conversation, Right.ADD)
    return ConversationView(
        id=conversation.conversation_id,
        type=conversation.type,
        encryption=conversation.encryption,
        name=conversation.name or None,
        description=conversation.description or None,
        avatar_url=avatar_url(conversation.avatar_id),
        created_by=conversation.created_by,
        created_at=rfc3339(conversation.created_at),
        updated_at=rfc3339(conversation.updated_at),
        settings=settings_view(settings_of(conversation)),
        role=member.role,
        member_count=conversation.member_count,
        sequence_number=sequence,
        read_sequence_number=member.read_sequence,
        unread_count=unread_count,
        mention_count=mention_count,
        last_message=last,
        members=[member_view(each) for each in members] if members else UNSET,
        pin_count=conversation.pin_count,
        muted_until=optional_time(member.muted_until),
        archived=member.archived,
        pinned_at=optional_time(member.pinned_at),
        join_request_count=conversation.request_count if answers_requests else UNSET,
    )
