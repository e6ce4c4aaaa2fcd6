"""Reactions, polls and threads. Each handler is one call of the domain."""

from typing import Final

from gearlink.accounts import Actor
from gearlink.calls import ReadForm, VoteForm
from gearlink.domain import Domain
from gearlink.errors import (
    FORBIDDEN,
    MESSAGE_DELETED,
    NOT_FOUND,
    POLL_CLOSED,
    REFUSED_BY_PRIVACY,
    TOO_MANY,
)
from gearlink.http_api.table import LogQuery, PageQuery, Reply, Route
from gearlink.rights import Right
from gearlink.views import Emoji, Page, PollView, ReactorView, ThreadPage, ThreadView, VoteView


class ReactionsQuery(PageQuery, kw_only=True):
    """`emoji`: only the reactions with this one."""

    emoji: Emoji | None = None


async def add_reaction(domain: Domain, actor: Actor, message_id: str, emoji: str) -> Reply:
    await domain.reactions.react(actor, message_id, emoji, added=True)
    return 204, None


async def remove_reaction(domain: Domain, actor: Actor, message_id: str, emoji: str) -> Reply:
    await domain.reactions.react(actor, message_id, emoji, added=False)
    return 204, None


async def list_reactions(domain: Domain, actor: Actor, message_id: str, query: ReactionsQuery) -> Reply:
    return 200, await domain.reactions.reactions(actor, message_id, query.emoji, query.limit, query.cursor)


async def vote(domain: Domain, actor: Actor, message_id: str, form: VoteForm) -> Reply:
    return 200, await domain.polls.vote(actor, message_id, form.options)


async def list_votes(domain: Domain, actor: Actor, message_id: str, query: PageQuery) -> Reply:
    return 200, await domain.polls.votes(actor, message_id, query.limit, query.cursor)


async def close_poll(domain: Domain, actor: Actor, message_id: str) -> Reply:
    return 200, await domain.polls.close(actor, message_id)


async def read_thread(domain: Domain, actor: Actor, message_id: str, query: LogQuery) -> Reply:
    return 200, await domain.threads.view(actor, message_id, query.before, query.after, query.limit)


async def mark_thread_read(domain: Domain, actor: Actor, message_id: str, form: ReadForm) -> Reply:
    await domain.threads.mark_read(actor, message_id, form.sequence_number)
    return 204, None


async def list_threads(domain: Domain, actor: Actor, conversation_id: str, query: PageQuery) -> Reply:
    return 200, await domain.threads.threads(actor, conversation_id, query.limit, query.cursor)


_MESSAGE: Final = "/messages/{messageId}"
_REFUSED: Final = (NOT_FOUND, FORBIDDEN, REFUSED_BY_PRIVACY)

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "PUT", _MESSAGE + "/reactions/{emoji}", add_reaction, "React with an emoji; a second time changes nothing",
        answers={204: None}, refusals=(*_REFUSED, MESSAGE_DELETED, TOO_MANY), right=Right.REACT,
    ),
    Route(
        "DELETE", _MESSAGE + "/reactions/{emoji}", remove_reaction, "Take one's own reaction back",
        answers={204: None}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "GET", _MESSAGE + "/reactions", list_reactions, "Who reacted, with every emoji or with one",
        query=ReactionsQuery, answers={200: Page[ReactorView]}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "PUT", _MESSAGE + "/vote", vote, "Vote in a poll, in place of one's vote before; for no option: take it back",
        body=VoteForm, answers={200: PollView}, refusals=(*_REFUSED, MESSAGE_DELETED, POLL_CLOSED), right=Right.REACT,
    ),
    Route(
        "GET", _MESSAGE + "/votes", list_votes, "Who voted for what; forbidden for an anonymous poll",
        query=PageQuery, answers={200: Page[VoteView]}, refusals=(NOT_FOUND, FORBIDDEN, MESSAGE_DELETED),
        right=Right.READ,
    ),
    Route(
        "POST", _MESSAGE + "/poll/close", close_poll, "Take no more votes: for the poll's author and who may moderate",
        answers={200: PollView}, refusals=(*_REFUSED, MESSAGE_DELETED), right=Right.REACT,
    ),
    Route(
        "GET", _MESSAGE + "/thread", read_thread,
        "The message that a thread began with, and a page of the replies: the newest, or those before or after one",
        query=LogQuery, answers={200: ThreadPage}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "PUT", _MESSAGE + "/thread/read", mark_thread_read, "The thread has been read up to this number",
        body=ReadForm, answers={204: None}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "GET", "/conversations/{conversationId}/threads", list_threads,
        "The threads of a conversation; those that began last come first",
        query=PageQuery, answers={200: Page[ThreadView]}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
)  # fmt: skip
