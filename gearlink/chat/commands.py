"""Commands on a line of their own: `/edit`, `/react`, `/poll` … and which there are.

A command is a name, what it takes, what it does in a few words, and one function of the desk and the words behind the
name. What changes the log says nothing itself: everybody's client hears of it, this one, too. What concerns the
conversation and its members is in `rooms`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from config.limits import PAGE_MAX
from gearlink.chat.desk import Desk
from gearlink.chat.finding import Complaint, find_conversation
from gearlink.chat.words import local_time, reactions, time_of
from gearlink.errors import ExitStatus
from gearlink.terminal import harmless
from gearlink.views import PollView

OLDER: Final = 20


@dataclass(frozen=True, slots=True)
class Command:
    """`takes` and `does` are its line in /help. `in_direct`: there is such a thing in a conversation between two.
    `only_plain`: why there is not in an encrypted one."""

    name: str
    takes: str
    does: str
    run: Callable[[Desk, str], Awaitable[None]]
    in_direct: bool = True
    only_plain: str = ""


_COUNTS: Final = "the server counts the votes, and here it cannot read them"
_WAITS: Final = "it would go out while your devices are away, and only they can encrypt it"
_ANSWERS: Final = "the server does not see here what answers what"
_BEFORE: Final = "what a message said before is not kept here"
_DRAFTS: Final = "the server keeps drafts, and it could read them"


async def run_command(desk: Desk, commands: dict[str, Command], line: str) -> None:
    """Runs `/name words`. Raises Complaint for one that there is not, Refused, Unreachable."""
    name, _, words = line.removeprefix("/").partition(" ")
    if name == "help":
        for each in commands.values():
            is_here = each.in_direct or not desk.is_direct
            is_here = is_here and not (desk.is_encrypted and each.only_plain)
            desk.tell(f"{f'/{each.name} {each.takes}'.rstrip():<34} {each.does}{'' if is_here else ' (not here)'}")
        desk.tell(f"{'//text':<34} send a line that begins with /")
        return
    if name not in commands:
        raise Complaint(f"there is no /{harmless(name[:32])}; /help lists what there is", ExitStatus.USAGE)
    if desk.is_direct and not commands[name].in_direct:
        raise Complaint(f"/{name}: not in a conversation between two", ExitStatus.USAGE)
    if desk.is_encrypted and (reason := commands[name].only_plain):
        raise Complaint(f"/{name}: not in an encrypted conversation: {reason}", ExitStatus.USAGE)
    await commands[name].run(desk, words.strip())


def needed(words: str, what: str) -> str:
    """The words, of which there have to be some. Raises Complaint."""
    if not words:
        raise Complaint(f"say {what}", ExitStatus.USAGE)
    return words


async def _reply(desk: Desk, words: str) -> None:
    first, _, text = words.partition(" ")
    message = await desk.message(first)
    text = needed(text.strip(), "what")
    sent = await desk.send(text, reply_to_id=message.id)
    desk.tell(f"sent #{sent.sequence_number}")


async def _edit(desk: Desk, words: str) -> None:
    message, text = await desk.named_or_last(words)
    await desk.secure.edit(message.id, needed(text, "the new text"), await desk.mentions(text))
    if desk.is_encrypted:  # what this device said is not told to it
        desk.tell(f"you edited #{message.sequence_number}: {harmless(text, lines=True)}")


async def _delete(desk: Desk, words: str) -> None:
    message, way = await desk.named_or_last(words)
    if way not in ("", "everyone"):
        raise Complaint("/delete [#12] [everyone]", ExitStatus.USAGE)
    await desk.secure.delete(message.id, for_everyone=way == "everyone")
    if not way:
        desk.tell(f"#{message.sequence_number} is gone from your own sight; `everyone` takes it from all")


async def _history(desk: Desk, words: str) -> None:
    message = await desk.message(words)
    async for revision in desk.client.revisions(message.id):
        text = harmless(revision.content, lines=True)
        desk.tell(f"until edit {revision.number}, written {local_time(revision.written_at)}: {text}")
    await desk.show(message)


async def _react(desk: Desk, words: str) -> None:
    first, _, emoji = words.partition(" ")
    message, emoji = await desk.message(first), emoji.strip()
    if not emoji:
        desk.tell(reactions(message.reactions) or "nobody reacted")
        if desk.is_encrypted:
            for reaction in message.reactions:
                for user_id in reaction.user_ids:
                    desk.tell(f"{harmless(reaction.emoji)} {await desk.names.of(user_id)}")
            return
        async for each in desk.client.reactions(message.id):
            desk.tell(f"{harmless(each.emoji)} {await desk.names.of(each.user_id)}")
        return
    is_there = any(each.emoji == emoji and each.mine is True for each in message.reactions)
    await desk.secure.react(message.id, emoji, added=not is_there)
    if desk.is_encrypted:
        did = f"took {emoji} back from" if is_there else f"reacted {emoji} to"
        desk.tell(harmless(f"you {did} #{message.sequence_number}"))


async def _older(desk: Desk, words: str) -> None:
    count = int(words) if words.isascii() and words.isdigit() and len(words) < 6 else OLDER
    if words and not words.isdigit():
        raise Complaint("/older [HOW MANY]", ExitStatus.USAGE)
    for message in await desk.past.older(min(count, PAGE_MAX)):
        await desk.show(message)
    if desk.past.is_over:
        desk.tell("that is all")


async def _pin(desk: Desk, words: str) -> None:
    await desk.client.pin((await desk.message(words)).id)


async def _unpin(desk: Desk, words: str) -> None:
    await desk.client.unpin((await desk.message(words)).id)


async def _pins(desk: Desk, words: str) -> None:
    shown = 0
    async for message in desk.client.pins(desk.conversation_id):
        await desk.show(message)
        shown += 1
    if not shown:
        desk.tell("nothing is pinned")


async def _thread(desk: Desk, words: str) -> None:
    if not words:
        shown = 0
        async for each in desk.client.threads(desk.conversation_id):
            shown += 1
            unread = f", {each.unread_count} new" if each.unread_count else ""
            await desk.show(each.root)
            desk.tell(f"{_replies(each.reply_count)}{unread}: /thread #{each.root.sequence_number}")
        if not shown:
            desk.tell("there are no threads")
        return
    message = await desk.message(words)
    root_id = message.thread_id if isinstance(message.thread_id, str) else message.id
    thread = await desk.client.thread(root_id)
    if thread.root is not None:
        await desk.show(thread.root)
    replies = sorted(thread.items, key=lambda each: each.sequence_number)
    for reply in replies:
        await desk.show(reply)
    if replies:
        await desk.client.mark_thread_read(root_id, replies[-1].sequence_number)
    left = thread.reply_count - len(replies)
    desk.tell(_replies(thread.reply_count) + (f", {left} earlier ones not shown" if left > 0 else ""))


def _replies(count: int) -> str:
    return "1 reply" if count == 1 else f"{count} replies"


async def _poll(desk: Desk, words: str) -> None:
    question, *options = [part.strip() for part in words.split("|")]
    if not question or len(options) < 2:
        raise Complaint("/poll QUESTION | option | option", ExitStatus.USAGE)
    sent = await desk.client.send_poll(desk.conversation_id, question, options)
    desk.tell(f"sent #{sent.sequence_number}: others answer with /vote #{sent.sequence_number} 1")


async def _vote(desk: Desk, words: str) -> None:
    first, _, rest = words.partition(" ")
    message, chosen = await desk.message(first), rest.split()
    if not all(each.isascii() and each.isdigit() and len(each) < 10 for each in chosen):
        raise Complaint("/vote #12 1 2: the numbers of the options; none takes the vote back", ExitStatus.USAGE)
    numbers = [int(each) for each in chosen]
    if isinstance(message.poll, PollView) and not all(0 < each <= len(message.poll.options) for each in numbers):
        raise Complaint(f"the options of {first} are 1 to {len(message.poll.options)}", ExitStatus.USAGE)
    await desk.client.vote(message.id, [each - 1 for each in numbers])


async def _votes(desk: Desk, words: str) -> None:
    message = await desk.message(words)
    await desk.show(message)
    async for vote in desk.client.votes(message.id):
        chosen = ", ".join(str(option + 1) for option in vote.options)
        desk.tell(f"{await desk.names.of(vote.user_id)}: {chosen}")


async def _close(desk: Desk, words: str) -> None:
    await desk.client.close_poll((await desk.message(words)).id)


async def _later(desk: Desk, words: str) -> None:
    when, _, text = words.partition(" ")
    at = time_of(when, desk.client.now)
    text = needed(text.strip(), "what, and when")
    mentions = await desk.mentions(text)
    waiting = await desk.client.schedule(desk.conversation_id, text, at, mentions=mentions)
    desk.tell(f"goes out {local_time(waiting.send_at)}; /scheduled lists what waits")


async def _scheduled(desk: Desk, words: str) -> None:
    waiting = [each async for each in desk.client.scheduled(desk.conversation_id)]
    verb, _, number = words.partition(" ")
    if verb == "cancel" and number.isascii() and number.isdigit() and 0 < int(number) <= len(waiting):
        await desk.client.cancel_scheduled(waiting[int(number) - 1].id)
        desk.tell("cancelled")
        return
    if words:
        raise Complaint("/scheduled [cancel NUMBER]", ExitStatus.USAGE)
    for position, each in enumerate(waiting, 1):
        trouble = f" (did not go out: {harmless(each.trouble)})" if isinstance(each.trouble, str) else ""
        desk.tell(f"{position}. {local_time(each.send_at)} {harmless(each.content, lines=True)}{trouble}")
    if not waiting:
        desk.tell("nothing waits")


async def _forward(desk: Desk, words: str) -> None:
    first, _, target = words.partition(" ")
    message = await desk.message(first)
    target_view = await find_conversation(desk.client, needed(target.strip(), "to whom"), private=desk.is_encrypted)
    if desk.is_encrypted or target_view.encryption == "e2ee":  # nobody but this device can carry it over
        text = needed(message.content or "", "which message: in this one there is no text")
        await desk.secure.send(target_view.id, text)
        seen = "" if target_view.encryption == "e2ee" else ", and there the server can read it"
        desk.tell(f"its text was handed on{seen}")
        return
    await desk.client.forward(target_view.id, message)
    desk.tell("forwarded")


async def _draft(desk: Desk, words: str) -> None:
    if words == "-":
        await desk.client.remove_draft(desk.conversation_id)
        desk.tell("the draft is gone")
    elif words:
        await desk.client.set_draft(desk.conversation_id, words)
        desk.tell("kept, on all your devices; `/draft -` gives it up")
    else:
        await show_draft(desk, or_nothing="no draft here")


async def show_draft(desk: Desk, *, or_nothing: str = "") -> None:
    """What one has begun to write here, on any device."""
    async for draft in desk.client.drafts():
        if draft.conversation_id == desk.conversation_id and draft.content is not None:
            desk.tell(f"draft: {harmless(draft.content, lines=True)}")
            return
    if or_nothing:
        desk.tell(or_nothing)


ABOUT_MESSAGES: Final = (
    Command("older", "[HOW MANY]", "what was said before that", _older),
    Command("reply", "#N TEXT", "answer a message", _reply),
    Command("edit", "[#N] TEXT", "change a message of yours; the last one if none is named", _edit),
    Command("edits", "#N", "what it said before its edits", _history, only_plain=_BEFORE),
    Command("delete", "[#N] [everyone]", "delete it for yourself, or for all; your last one if none is named", _delete),
    Command("react", "#N [EMOJI]", "react, or take it back; without an emoji: who did", _react),
    Command("pin", "#N", "pin it", _pin),
    Command("unpin", "#N", "take it down", _unpin),
    Command("pins", "", "what is pinned", _pins),
    Command(
        "thread", "[#N]", "the replies that belong to it; without a number: all threads", _thread, only_plain=_ANSWERS
    ),
    Command("poll", "QUESTION | OPTION | OPTION", "ask everybody", _poll, only_plain=_COUNTS),
    Command("vote", "#N [1 2]", "choose; without a number take the vote back", _vote, only_plain=_COUNTS),
    Command("votes", "#N", "who voted for what", _votes, only_plain=_COUNTS),
    Command("close", "#N", "end a poll", _close, only_plain=_COUNTS),
    Command("later", "TIME TEXT", "send it at +2h, 18:30 or 2030-01-31T18:30", _later, only_plain=_WAITS),
    Command("scheduled", "[cancel NUMBER]", "what waits for its time", _scheduled, only_plain=_WAITS),
    Command("forward", "#N WHO", "hand it on", _forward),
    Command("draft", "[TEXT | -]", "keep what you have begun to write", _draft, only_plain=_DRAFTS),
)
