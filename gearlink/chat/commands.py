"""Commands on a line of their own: `/edit`, `/react`, `/poll` … and which there are.

A command is a name, what it takes, what it does in a few words, and one function of the desk and the words behind the
name. What changes the log says nothing itself: everybody's client hears of it, this one, too. What concerns the
conversation and its members is in `rooms`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from gearlink.chat.desk import Desk
from gearlink.chat.finding import Complaint, find_conversation
from gearlink.chat.words import local_time, reactions, time_of
from gearlink.errors import ExitStatus
from gearlink.terminal import harmless
from gearlink.views import PollView


@dataclass(frozen=True, slots=True)
class Command:
    """`takes` and `does` are its line in /help. `in_direct`: there is such a thing in a conversation between two."""

    name: str
    takes: str
    does: str
    run: Callable[[Desk, str], Awaitable[None]]
    in_direct: bool = True


async def run_command(desk: Desk, commands: dict[str, Command], line: str) -> None:
    """Runs `/name words`. Raises Complaint for one that there is not, Refused, Unreachable."""
    name, _, words = line.removeprefix("/").partition(" ")
    if name == "help":
        for each in commands.values():
            desk.tell(f"{f'/{each.name} {each.takes}'.rstrip():<34} {each.does}")
        desk.tell(f"{'//text':<34} send a line that begins with /")
        return
    if name not in commands:
        raise Complaint(f"there is no /{harmless(name[:32])}; /help lists what there is", ExitStatus.USAGE)
    if desk.is_direct and not commands[name].in_direct:
        raise Complaint(f"/{name}: not in a conversation between two", ExitStatus.USAGE)
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
    mentions = await desk.mentions(text)
    sent = await desk.client.send(desk.conversation_id, text, reply_to_id=message.id, mentions=mentions)
    desk.tell(f"sent #{sent.sequence_number}")


async def _edit(desk: Desk, words: str) -> None:
    message, text = await desk.named_or_last(words)
    await desk.client.edit(message.id, needed(text, "the new text"), await desk.mentions(text))


async def _delete(desk: Desk, words: str) -> None:
    message, way = await desk.named_or_last(words)
    if way not in ("", "everyone"):
        raise Complaint("/delete [#12] [everyone]", ExitStatus.USAGE)
    await desk.client.delete(message.id, for_everyone=way == "everyone")
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
        async for each in desk.client.reactions(message.id):
            desk.tell(f"{harmless(each.emoji)} {await desk.names.of(each.user_id)}")
        return
    if any(each.emoji == emoji and each.mine is True for each in message.reactions):
        await desk.client.unreact(message.id, emoji)
    else:
        await desk.client.react(message.id, emoji)


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
    target_view = await find_conversation(desk.client, needed(target.strip(), "to whom"))
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
    Command("reply", "#N TEXT", "answer a message", _reply),
    Command("edit", "[#N] TEXT", "change a message of yours; the last one if none is named", _edit),
    Command("edits", "#N", "what it said before its edits", _history),
    Command("delete", "[#N] [everyone]", "delete it for yourself, or for all; your last one if none is named", _delete),
    Command("react", "#N [EMOJI]", "react, or take it back; without an emoji: who did", _react),
    Command("pin", "#N", "pin it", _pin),
    Command("unpin", "#N", "take it down", _unpin),
    Command("pins", "", "what is pinned", _pins),
    Command("thread", "[#N]", "the replies that belong to it; without a number: all threads", _thread),
    Command("poll", "QUESTION | OPTION | OPTION", "ask everybody", _poll),
    Command("vote", "#N [1 2]", "choose; without a number take the vote back", _vote),
    Command("votes", "#N", "who voted for what", _votes),
    Command("close", "#N", "end a poll", _close),
    Command("later", "TIME TEXT", "send it at +2h, 18:30 or 2030-01-31T18:30", _later),
    Command("scheduled", "[cancel NUMBER]", "what waits for its time", _scheduled),
    Command("forward", "#N WHO", "hand it on", _forward),
    Command("draft", "[TEXT | -]", "keep what you have begun to write", _draft),
)
