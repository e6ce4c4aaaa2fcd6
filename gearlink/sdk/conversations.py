"""Calls about conversations: their settings and members, bans, links, requests, and what one keeps there for oneself.

One method is one call; each raises Refused or Unreachable, and says which refusals it has besides `not-found` and
`forbidden`. It knows nothing of sockets.
"""

from collections.abc import Sequence

from gearlink import calls
from gearlink.sdk.exchange import Exchange, segment
from gearlink.sdk.paging import Items
from gearlink.views import (
    BanView,
    ConversationType,
    ConversationView,
    DraftView,
    Encryption,
    JoinAnswer,
    JoinLinkView,
    JoinRequestView,
    LinkPreview,
    MemberView,
    Page,
    Role,
    RosterStatement,
)


class Conversations(Exchange):
    """The calls about conversations."""

    async def create_conversation(
        self,
        kind: ConversationType,
        member_ids: Sequence[str] = (),
        *,
        name: str | None = None,
        description: str | None = None,
        encryption: Encryption | None = None,
        settings: calls.SettingsForm | None = None,
    ) -> ConversationView:
        """A new conversation; a second `direct` with the same person answers the first one. Raises Refused
        `refused-by-privacy`, `group-full`."""
        form = calls.ConversationForm(
            type=kind,
            member_ids=list(member_ids),
            name=name,
            description=description,
            encryption=encryption,
            settings=settings,
        )
        return await self.call("POST", "/conversations", ConversationView, form)

    def conversations(self, *, archived: bool | None = None) -> Items[ConversationView]:
        """The caller's, newest activity first: all, or only those that they have archived, or only the others."""
        given = None if archived is None else str(archived).lower()
        return self.items("/conversations", ConversationView, archived=given)

    async def conversation(self, conversation_id: str) -> ConversationView:
        """One conversation."""
        return await self.call("GET", _path(conversation_id), ConversationView)

    async def change_conversation(self, conversation_id: str, form: calls.ConversationChange) -> ConversationView:
        """Changes the fields of `form` that are set: name, description, settings. Each needs the right to it."""
        return await self.call("PATCH", _path(conversation_id), ConversationView, form)

    async def change_settings(self, conversation_id: str, settings: calls.SettingsForm) -> ConversationView:
        """Changes the settings that are set: who may do what, how long messages stay, what newcomers see."""
        return await self.change_conversation(conversation_id, calls.ConversationChange(settings=settings))

    async def delete_conversation(self, conversation_id: str) -> None:
        """Deletes it for everybody."""
        await self.call("DELETE", _path(conversation_id), None)

    async def set_conversation_avatar(self, conversation_id: str, picture: bytes, media_type: str) -> str:
        """Makes this PNG, JPEG or WebP the picture of a group or channel; the path where it can be fetched."""
        path = _path(conversation_id, "avatar")
        return (await self.call("PUT", path, calls.AvatarSet, picture, media_type=media_type)).avatar_url

    async def remove_conversation_avatar(self, conversation_id: str) -> None:
        """Takes the picture of a group or channel away."""
        await self.call("DELETE", _path(conversation_id, "avatar"), None)

    # --- members ------------------------------------------------------------------------------------------------------

    def members(self, conversation_id: str) -> Items[MemberView]:
        """Who is in it."""
        return self.items(_path(conversation_id, "members"), MemberView)

    async def add_members(self, conversation_id: str, user_ids: Sequence[str], role: Role = "member") -> None:
        """Adds all of them or nobody. Raises Refused `already-member`, `banned`, `refused-by-privacy`, `group-full`."""
        form = calls.MembersForm(user_ids=list(user_ids), role=role)
        await self.call("POST", _path(conversation_id, "members"), Page[MemberView], form)

    async def change_member(self, conversation_id: str, user_id: str, role: Role) -> MemberView:
        """Gives a member another role; `owner` names an heir. Raises Refused `last-owner`."""
        path = _path(conversation_id, "members", user_id)
        return await self.call("PATCH", path, MemberView, calls.MemberChange(role=role))

    async def remove_member(self, conversation_id: str, user_id: str) -> None:
        """Takes a member out; oneself to leave. Raises Refused `last-owner`."""
        await self.call("DELETE", _path(conversation_id, "members", user_id), None)

    def bans(self, conversation_id: str) -> Items[BanView]:
        """Who may not come back."""
        return self.items(_path(conversation_id, "bans"), BanView)

    async def ban(self, conversation_id: str, user_id: str) -> None:
        """Takes somebody out, if they are in, and keeps them out."""
        await self.call("PUT", _path(conversation_id, "bans", user_id), None)

    async def unban(self, conversation_id: str, user_id: str) -> None:
        """Lets somebody come in again by the usual ways."""
        await self.call("DELETE", _path(conversation_id, "bans", user_id), None)

    def roster(self, conversation_id: str, after: int = 0) -> Items[RosterStatement]:
        """Who is in an encrypted group, as its admins signed it: the statements above version `after`, in order."""
        return self.items(_path(conversation_id, "roster"), RosterStatement, position="after", after=after)

    async def publish_roster(self, conversation_id: str, statement: str, signature: str) -> int:
        """Puts a statement behind the newest one; the same one again changes nothing. Answers its version. Raises
        Refused `roster-conflict`, which has the newest `version`, and `too-many`."""
        form = calls.RosterForm(statement=statement, signature=signature)
        path = _path(conversation_id, "roster")
        return (await self.call("POST", path, calls.RosterPublished, form)).version

    # --- coming in ----------------------------------------------------------------------------------------------------

    def links(self, conversation_id: str) -> Items[JoinLinkView]:
        """The links that lead here."""
        return self.items(_path(conversation_id, "links"), JoinLinkView)

    async def create_link(
        self,
        conversation_id: str,
        *,
        expires_in_seconds: int | None = None,
        uses_max: int | None = None,
        needs_approval: bool = False,
    ) -> JoinLinkView:
        """A link over which people may join, or ask to. Without a time or a number it has no end. Raises Refused
        `too-many`."""
        form = calls.JoinLinkForm(
            expires_in_seconds=expires_in_seconds, uses_max=uses_max, needs_approval=needs_approval
        )
        return await self.call("POST", _path(conversation_id, "links"), JoinLinkView, form)

    async def revoke_link(self, conversation_id: str, link_id: str) -> None:
        """Makes a link lead nowhere."""
        await self.call("DELETE", _path(conversation_id, "links", link_id), None)

    async def preview_link(self, code: str) -> LinkPreview:
        """What a link leads to. Raises Refused `banned`."""
        return await self.call("GET", f"/join/{segment(code)}", LinkPreview)

    async def join(self, code: str) -> JoinAnswer:
        """Joins over a link, or asks to be let in. Raises Refused `banned`, `group-full`, `too-many`."""
        return await self.call("POST", f"/join/{segment(code)}", JoinAnswer)

    def join_requests(self, conversation_id: str) -> Items[JoinRequestView]:
        """Who asks to be let in."""
        return self.items(_path(conversation_id, "requests"), JoinRequestView)

    async def approve_request(self, conversation_id: str, user_id: str) -> MemberView:
        """Lets in somebody who asks. Raises Refused `group-full`."""
        return await self.call("PUT", _path(conversation_id, "requests", user_id), MemberView)

    async def decline_request(self, conversation_id: str, user_id: str) -> None:
        """Does not let in somebody who asks."""
        await self.call("DELETE", _path(conversation_id, "requests", user_id), None)

    async def withdraw_request(self, conversation_id: str) -> None:
        """Does not ask any more to be let in."""
        await self.call("DELETE", _path(conversation_id, "requests"), None)

    # --- for oneself --------------------------------------------------------------------------------------------------

    async def change_preferences(self, conversation_id: str, form: calls.PreferencesForm) -> ConversationView:
        """Mutes, archives or pins it, for oneself alone: the fields of `form` that are set."""
        return await self.call("PATCH", _path(conversation_id, "preferences"), ConversationView, form)

    async def set_draft(self, conversation_id: str, content: str, reply_to_id: str | None = None) -> DraftView:
        """Keeps what one has begun to write, for one's other devices. Raises Refused `refused-by-privacy`,
        `must-be-encrypted`."""
        form = calls.DraftForm(content=content, reply_to_id=reply_to_id)
        return await self.call("PUT", _path(conversation_id, "draft"), DraftView, form)

    async def remove_draft(self, conversation_id: str) -> None:
        """Gives up what one has begun to write."""
        await self.call("DELETE", _path(conversation_id, "draft"), None)

    def drafts(self) -> Items[DraftView]:
        """What one has begun to write, by conversation."""
        return self.items("/drafts", DraftView)


def _path(conversation_id: str, *parts: str) -> str:
    return "/".join(("/conversations", segment(conversation_id), *map(segment, parts)))
