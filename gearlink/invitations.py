"""Ways into a conversation for those whom nobody adds: links, and requests to be let in.

A link is a code that whoever has it may use, so it is as long as a key, is kept beside its hash for those who may invite,
and tries are counted for each user. Every joining is one change in the store's writer: a link with one use left lets in
one person, however many come at once. A code that is unknown, revoked, expired or used up leads nowhere, and nobody is
told which it was. Somebody who is banned comes in by none of these ways.
"""

import hashlib
import secrets

from msgspec import structs

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import JoinLinkForm
from gearlink.clock import Clock, Milliseconds, new_id, rfc3339
from gearlink.cursors import page_of
from gearlink.errors import BANNED, FORBIDDEN, NOT_FOUND, TOO_MANY, Refusal, invalid
from gearlink.members import Members, let_in, settle, staff_of
from gearlink.overview import member_view, overview
from gearlink.personal import join_request_view, optional_time
from gearlink.rights import Right, enter, has_roster
from gearlink.throttle import Budget, Throttle
from gearlink.timeline import avatar_url
from gearlink.views import JoinAnswer, JoinLinkView, JoinRequestView, LinkPreview, MemberView, Page
from storage.notices import Personal
from storage.records import Account, Ban, Conversation, JoinCode, JoinLink, JoinRequest, Member
from storage.store import Reads, Store, Transaction

_CODE_BYTES = 18  # 24 characters


def link_view(link: JoinLink) -> JoinLinkView:
    """The link with its code, for those who may invite."""
    return JoinLinkView(
        id=link.link_id,
        code=link.code,
        created_by=link.created_by,
        created_at=rfc3339(link.created_at),
        expires_at=optional_time(link.expires_at),
        uses_max=link.uses_max or None,
        uses=link.uses,
        needs_approval=link.needs_approval,
    )


class Invitations:
    """The rules of links and requests over a store."""

    def __init__(self, store: Store, clock: Clock, members: Members, budget: Budget) -> None:
        self._store, self._clock = store, clock
        self._members, self._budget = members, budget
        per_minute = limits.JOIN_TRIES_PER_MINUTE
        self._tries = Throttle("join-links", per_minute / 60, per_minute)

    # --- links -------------------------------------------------------------------------------------------------------

    async def create(self, actor: Actor, conversation_id: str, form: JoinLinkForm) -> JoinLinkView:
        """A new link. Those that lead nowhere any more make room for it.

        Raises Refusal `not-found`, `forbidden`, `too-many`, `invalid-request` for one that an encrypted group does not
        have, `rate-limited`.
        """
        self._budget.check(actor, 0)
        now, code = self._clock.now(), secrets.token_urlsafe(_CODE_BYTES)
        link = JoinLink(
            conversation_id=conversation_id,
            link_id=new_id(),
            code=code,
            created_by=actor.user_id,
            created_at=now,
            expires_at=now + 1000 * form.expires_in_seconds if form.expires_in_seconds else 0,
            uses_max=form.uses_max or 0,
            uses=0,
            needs_approval=form.needs_approval,
        )

        async def change(tx: Transaction) -> None:
            conversation, _member = await enter(tx, actor.user_id, conversation_id, Right.ADD)
            if has_roster(conversation) and not form.needs_approval:
                raise invalid(
                    "needsApproval", "in an end-to-end encrypted group whoever lets somebody in signs for them"
                )
            links = await tx.scan(JoinLink, conversation_id, limit=limits.JOIN_LINKS_MAX)
            if len(links) == limits.JOIN_LINKS_MAX:
                spent = [each for each in links if _is_spent(each, now)]
                if not spent:
                    raise Refusal(TOO_MANY)
                for each in spent:
                    revoke(tx, each)
            tx.put(link)
            tx.put(JoinCode(_hash(code), conversation_id, link.link_id))

        await self._store.write(change)
        return link_view(link)

    async def links(self, actor: Actor, conversation_id: str, limit: int, cursor: str | None) -> Page[JoinLinkView]:
        """Every link that was not revoked, oldest first. Raises Refusal `not-found`, `forbidden`, `invalid-request`."""
        await enter(self._store, actor.user_id, conversation_id, Right.ADD)
        found, more = await page_of(
            self._store, JoinLink, conversation_id, cursor=cursor, limit=limit, key=lambda each: each.link_id
        )
        return Page(items=[link_view(each) for each in found], next=more)

    async def revoke(self, actor: Actor, conversation_id: str, link_id: str) -> None:
        """The link leads nowhere from now on; requests that came over it stay.

        Raises Refusal `not-found`, `forbidden` (a member revokes only their own).
        """

        async def change(tx: Transaction) -> None:
            _conversation, member = await enter(tx, actor.user_id, conversation_id, Right.ADD)
            link = await tx.get(JoinLink, conversation_id, link_id)
            if link is None:
                raise Refusal(NOT_FOUND)
            if member.role == "member" and link.created_by != actor.user_id:
                raise Refusal(FORBIDDEN)
            revoke(tx, link)

        await self._store.write(change)

    async def preview(self, actor: Actor, code: str) -> LinkPreview:
        """What a link leads to, for somebody who thinks about following it.

        Raises Refusal `not-found`, `banned`, `rate-limited`.
        """
        self._tries.check(actor.user_id)
        link, conversation = await _find(self._store, code)
        member = await self._store.get(Member, link.conversation_id, actor.user_id)
        if member is None:
            await _require_open(self._store, link, actor.user_id, self._clock.now())
        return LinkPreview(
            conversation_id=conversation.conversation_id,
            type=conversation.type,
            name=conversation.name or None,
            description=conversation.description or None,
            avatar_url=avatar_url(conversation.avatar_id),
            member_count=conversation.member_count,
            needs_approval=link.needs_approval,
            is_member=member is not None,
        )

    async def join(self, actor: Actor, code: str) -> JoinAnswer:
        """Comes in over a link, or asks to be let in where the link says so; again changes nothing.

        Who is a member already is answered the conversation, so a repeated call is safe with a link that is used up by
        then. Raises Refusal `not-found`, `banned`, `group-full`, `too-many` (requests), `rate-limited`.
        """
        self._tries.check(actor.user_id)
        self._budget.check(actor, 0)
        now = self._clock.now()

        async def change(tx: Transaction) -> tuple[Conversation, Member] | None:
            link, conversation = await _find(tx, code)
            member = await tx.get(Member, link.conversation_id, actor.user_id)
            if member is not None:
                return conversation, member
            await _require_open(tx, link, actor.user_id, now)
            if link.needs_approval or has_roster(conversation):
                await _ask(tx, conversation, JoinRequest(link.conversation_id, actor.user_id, link.link_id, now))
                return None
            [member] = await let_in(
                tx, conversation, [actor.user_id], "member", "link", actor.user_id, now,
                members_max=self._members.members_max,
            )  # fmt: skip
            tx.put(structs.replace(link, uses=link.uses + 1))
            return await tx.get(Conversation, link.conversation_id) or conversation, member

        joined = await self._store.write(change)
        if joined is None:
            return JoinAnswer(status="requested", conversation=None)
        view = await overview(self._store, *joined, now, with_members=True, device_id=actor.device_id)
        return JoinAnswer(status="joined", conversation=view)

    # --- requests ----------------------------------------------------------------------------------------------------

    async def requests(
        self, actor: Actor, conversation_id: str, limit: int, cursor: str | None
    ) -> Page[JoinRequestView]:
        """Who asks to be let in, by their ids. Raises Refusal `not-found`, `forbidden`, `invalid-request`."""
        await enter(self._store, actor.user_id, conversation_id, Right.ADD)
        found, more = await page_of(
            self._store, JoinRequest, conversation_id, cursor=cursor, limit=limit, key=lambda each: each.user_id
        )
        return Page(items=[join_request_view(each) for each in found], next=more)

    async def approve(self, actor: Actor, conversation_id: str, user_id: str) -> MemberView:
        """Lets in who asked. Raises Refusal `not-found` (also if they do not ask any more), `forbidden`, `group-full`,
        `too-many`."""
        now = self._clock.now()

        async def change(tx: Transaction) -> Member | None:
            conversation, _member = await enter(tx, actor.user_id, conversation_id, Right.ADD)
            request = await _require_request(tx, conversation_id, user_id)
            account = await tx.get(Account, user_id)
            if account is None or not account.is_active:
                tx.put(await settle(tx, conversation, request))
                return None
            [member] = await let_in(
                tx, conversation, [user_id], "member", "request", actor.user_id, now,
                members_max=self._members.members_max,
            )  # fmt: skip
            if link := await tx.get(JoinLink, conversation_id, request.link_id):
                tx.put(structs.replace(link, uses=link.uses + 1))
            return member

        member = await self._store.write(change)
        if member is None:
            raise Refusal(NOT_FOUND)
        return member_view(member)

    async def decline(self, actor: Actor, conversation_id: str, user_id: str) -> None:
        """Ends the request without letting in. Raises Refusal `not-found`, `forbidden`."""

        async def change(tx: Transaction) -> None:
            conversation, _member = await enter(tx, actor.user_id, conversation_id, Right.ADD)
            tx.put(await settle(tx, conversation, await _require_request(tx, conversation_id, user_id)))

        await self._store.write(change)

    async def withdraw(self, actor: Actor, conversation_id: str) -> None:
        """The caller, who is no member, does not ask any more. Raises Refusal `not-found` if they did not."""

        async def change(tx: Transaction) -> None:
            request = await _require_request(tx, conversation_id, actor.user_id)
            conversation = await tx.get(Conversation, conversation_id)
            if conversation is None:
                raise Refusal(NOT_FOUND)
            tx.put(await settle(tx, conversation, request))

        await self._store.write(change)


def revoke(tx: Transaction, link: JoinLink) -> None:
    """Deletes a link with its code."""
    tx.delete(JoinLink, link.conversation_id, link.link_id)
    tx.delete(JoinCode, _hash(link.code))


def _hash(code: str) -> bytes:
    return hashlib.sha256(code.encode()).digest()


def _is_spent(link: JoinLink, now: Milliseconds) -> bool:
    return 0 < link.expires_at <= now or 0 < link.uses_max <= link.uses


async def _find(reads: Reads, code: str) -> tuple[JoinLink, Conversation]:
    """The link of this code and where it leads. Raises Refusal `not-found`."""
    found = await reads.get(JoinCode, _hash(code))
    link = await reads.get(JoinLink, found.conversation_id, found.link_id) if found is not None else None
    conversation = await reads.get(Conversation, link.conversation_id) if link is not None else None
    if link is None or conversation is None:
        raise Refusal(NOT_FOUND)
    return link, conversation


async def _require_open(reads: Reads, link: JoinLink, user_id: str, now: Milliseconds) -> None:
    """Raises Refusal `not-found` for a link that has come to its end, `banned`."""
    if _is_spent(link, now):
        raise Refusal(NOT_FOUND)
    if await reads.get(Ban, link.conversation_id, user_id):
        raise Refusal(BANNED)


async def _require_request(reads: Reads, conversation_id: str, user_id: str) -> JoinRequest:
    request = await reads.get(JoinRequest, conversation_id, user_id)
    if request is None:
        raise Refusal(NOT_FOUND)
    return request


async def _ask(tx: Transaction, conversation: Conversation, request: JoinRequest) -> None:
    """Puts the request and tells those who can answer it. Raises Refusal `too-many`."""
    if await tx.get(JoinRequest, request.conversation_id, request.user_id):
        return
    if conversation.request_count >= limits.JOIN_REQUESTS_MAX:
        raise Refusal(TOO_MANY)
    tx.put(request)
    tx.put(structs.replace(conversation, request_count=conversation.request_count + 1))
    tx.announce(Personal(tuple(await staff_of(tx, conversation)), request))
