"""Commands about the conversation itself: who is in it, how they come and go, its settings, and what one sets for oneself.

Each is one function of the desk and the words behind its name, as in `commands`.
"""

from typing import Any, Final, get_args

from gearlink import calls
from gearlink.chat.commands import ABOUT_MESSAGES, Command, needed
from gearlink.chat.desk import Desk
from gearlink.chat.finding import Complaint
from gearlink.chat.trust import ABOUT_TRUST
from gearlink.chat.words import local_time, seconds_of, settings_text, time_of
from gearlink.errors import ExitStatus
from gearlink.sdk import Refused
from gearlink.terminal import harmless
from gearlink.views import Reach, Role, SettingsView

ROLES: Final[dict[str, Role]] = {role: role for role in get_args(Role)}
REACHES: Final = get_args(Reach)
YES: Final = {"yes": True, "no": False}
WHO_SHOWN_MAX: Final = 200


# --- members ---------------------------------------------------------------------------------------------------------


async def _who(desk: Desk, words: str) -> None:
    shown = 0
    async for member in desk.client.members(desk.conversation_id):
        status = desk.presence.get(member.user_id, "")
        desk.tell(f"{await desk.names.of(member.user_id)}  {member.role}{'  ' + status if status else ''}")
        shown += 1
        if shown == WHO_SHOWN_MAX:
            desk.tell("and more")
            return


async def _add(desk: Desk, words: str) -> None:
    people = await desk.people(words)
    if not desk.is_signed:
        await desk.client.add_members(desk.conversation_id, people)
        return
    try:
        await desk.secure.groups.add(desk.conversation_id, people)
    except Refused as refused:
        if refused.code != "already-member":
            raise
        desk.tell("they were in already, and are signed in now")


async def _remove(desk: Desk, words: str) -> None:
    for user_id in await desk.people(words):
        if desk.is_signed:
            await desk.secure.groups.remove(desk.conversation_id, user_id)
        else:
            await desk.client.remove_member(desk.conversation_id, user_id)


async def _ban(desk: Desk, words: str) -> None:
    if words:
        for user_id in await desk.people(words):
            if desk.is_signed:
                await desk.secure.groups.remove(desk.conversation_id, user_id, ban=True)
            else:
                await desk.client.ban(desk.conversation_id, user_id)
        return
    shown = 0
    async for each in desk.client.bans(desk.conversation_id):
        shown += 1
        desk.tell(f"{await desk.names.of(each.user_id)}, banned by {await desk.names.of(each.banned_by)}")
    if not shown:
        desk.tell("nobody is banned")


async def _unban(desk: Desk, words: str) -> None:
    for user_id in await desk.people(words):
        await desk.client.unban(desk.conversation_id, user_id)
        desk.tell(f"{await desk.names.of(user_id)} may come in again")


async def _role(desk: Desk, words: str) -> None:
    who, _, role = words.partition(" ")
    if role not in ROLES:
        raise Complaint("/role WHO owner|admin|member", ExitStatus.USAGE)
    user_id = await desk.person(who)
    if desk.is_signed:
        await desk.secure.groups.appoint(desk.conversation_id, user_id, ROLES[role])
    else:
        await desk.client.change_member(desk.conversation_id, user_id, ROLES[role])


async def _leave(desk: Desk, words: str) -> None:
    desk.is_left = True
    try:
        await desk.client.remove_member(desk.conversation_id, desk.me)
    except BaseException:
        desk.is_left = False
        raise
    desk.tell("you left")


async def _block(desk: Desk, words: str) -> None:
    for user_id in await (desk.people(words) if words else _other(desk)):
        await desk.client.block(user_id)
        desk.tell(f"{await desk.names.of(user_id)} is blocked; they are not told")


async def _unblock(desk: Desk, words: str) -> None:
    for user_id in await (desk.blocked(words) if words else _other(desk)):
        await desk.client.unblock(user_id)
        desk.tell(f"{await desk.names.of(user_id)} is not blocked")


async def _other(desk: Desk) -> list[str]:
    """The other one of a conversation between two. Raises Complaint elsewhere."""
    return [await desk.other("")]


# --- coming in -------------------------------------------------------------------------------------------------------


async def _invite(desk: Desk, words: str) -> None:
    form: dict[str, Any] = {"needs_approval": True} if desk.is_signed else {}
    for word in words.split():
        if word == "approval":
            form["needs_approval"] = True
        elif word.isascii() and word.isdigit():
            form["uses_max"] = int(word)
        else:
            form["expires_in_seconds"] = seconds_of(word) or None
    link = await desk.client.create_link(desk.conversation_id, **form)
    asks = "; then somebody here has to /approve them" if link.needs_approval else ""
    desk.tell(f"others come in with: gearlink chat join {harmless(link.code)}{asks}")


async def _links(desk: Desk, words: str) -> None:
    verb, _, code = words.partition(" ")
    shown = 0
    async for link in desk.client.links(desk.conversation_id):
        if verb == "revoke":
            if link.code == code:
                await desk.client.revoke_link(desk.conversation_id, link.id)
                desk.tell("it leads nowhere now")
                return
            continue
        shown += 1
        uses = f"{link.uses} of {link.uses_max}" if link.uses_max is not None else f"{link.uses}"
        until = f", until {local_time(link.expires_at)}" if link.expires_at else ""
        asks = ", with approval" if link.needs_approval else ""
        desk.tell(f"{harmless(link.code)}  used {uses}{until}{asks}, by {await desk.names.of(link.created_by)}")
    if verb == "revoke":
        raise Complaint("there is no such link here")
    if not shown:
        desk.tell("there are no links: /invite makes one")


async def _requests(desk: Desk, words: str) -> None:
    shown = 0
    async for each in desk.client.join_requests(desk.conversation_id):
        shown += 1
        desk.tell(f"{await desk.names.of(each.user_id)}  {each.user_id}  since {local_time(each.requested_at)}")
    desk.tell("/approve WHO or /decline WHO" if shown else "nobody asks to be let in")


async def _approve(desk: Desk, words: str) -> None:
    for user_id in await desk.people(words):
        if desk.is_signed:
            await desk.secure.groups.approve(desk.conversation_id, user_id)
        else:
            await desk.client.approve_request(desk.conversation_id, user_id)


async def _decline(desk: Desk, words: str) -> None:
    for user_id in await desk.people(words):
        await desk.client.decline_request(desk.conversation_id, user_id)
        desk.tell(f"{await desk.names.of(user_id)} is not let in")


# --- what it is ------------------------------------------------------------------------------------------------------


async def _settings(desk: Desk, words: str) -> None:
    if words:
        await desk.client.change_settings(desk.conversation_id, settings_form(words.split()))
        return
    view = await desk.client.conversation(desk.conversation_id)
    if isinstance(view.settings, SettingsView):
        desk.tell(settings_text(view.settings))
    else:
        desk.tell("there is nothing to set here but /timer")


def settings_form(words: list[str]) -> calls.SettingsForm:
    """What `write=admins timer=7d` asks for. Raises Complaint."""
    form = calls.SettingsForm()
    for word in words:
        key, _, value = word.partition("=")
        if key in ("write", "pin", "invite", "info", "mention_all") and value in REACHES:
            setattr(form, key, value)
        elif key == "history_visible" and value in YES:
            form.history_visible = YES[value]
        elif key == "timer":
            form.disappearing_seconds = seconds_of(value)
        else:
            raise Complaint(
                "settings are write, pin, invite, info, mention_all=everyone|admins|owners, history_visible=yes|no,"
                " timer=DURATION",
                ExitStatus.USAGE,
            )
    return form


async def _timer(desk: Desk, words: str) -> None:
    form = calls.SettingsForm(disappearing_seconds=seconds_of(needed(words, "how long messages stay: 7d, or off")))
    await desk.client.change_settings(desk.conversation_id, form)


async def _name(desk: Desk, words: str) -> None:
    form = calls.ConversationChange(name=needed(words, "the new name"))
    await desk.client.change_conversation(desk.conversation_id, form)


async def _about(desk: Desk, words: str) -> None:
    await desk.client.change_conversation(desk.conversation_id, calls.ConversationChange(description=words or None))
    if not words:
        desk.tell("it has no description")


# --- for oneself -----------------------------------------------------------------------------------------------------


async def _mute(desk: Desk, words: str) -> None:
    seconds = seconds_of(needed(words, "how long: 8h, 7d, 52w"))
    until = time_of(f"+{seconds}s", desk.client.now) if seconds else None
    await desk.client.change_preferences(desk.conversation_id, calls.PreferencesForm(muted_until=until))
    desk.tell(f"muted until {local_time(until)}" if until else "not muted")


async def _unmute(desk: Desk, words: str) -> None:
    await _mute(desk, "off")


async def _archive(desk: Desk, words: str) -> None:
    await desk.client.change_preferences(desk.conversation_id, calls.PreferencesForm(archived=True))
    desk.tell("archived")


async def _unarchive(desk: Desk, words: str) -> None:
    await desk.client.change_preferences(desk.conversation_id, calls.PreferencesForm(archived=False))
    desk.tell("not archived")


ABOUT_ROOMS: Final = (
    Command("who", "", "members, their roles, and who is here", _who),
    Command("add", "WHO…", "add people", _add, in_direct=False),
    Command("remove", "WHO…", "take people out", _remove, in_direct=False),
    Command("ban", "[WHO…]", "take people out and keep them out; without a name: who is", _ban, in_direct=False),
    Command("unban", "WHO…", "let people come in again", _unban, in_direct=False),
    Command("role", "WHO owner|admin|member", "give somebody another role", _role, in_direct=False),
    Command("invite", "[DURATION] [USES] [approval]", "a link over which others come in", _invite, in_direct=False),
    Command("links", "[revoke CODE]", "the links that there are", _links, in_direct=False),
    Command("requests", "", "who asks to be let in", _requests, in_direct=False),
    Command("approve", "WHO…", "let them in", _approve, in_direct=False),
    Command("decline", "WHO…", "do not let them in", _decline, in_direct=False),
    Command("settings", "[KEY=VALUE…]", "who may do what here", _settings),
    Command("timer", "DURATION", "how long messages stay: 7d, or off", _timer),
    Command("name", "TEXT", "call the conversation something else", _name, in_direct=False),
    Command("about", "[TEXT]", "describe it", _about, in_direct=False),
    Command("mute", "DURATION", "for yourself: no notice of it for so long", _mute),
    Command("unmute", "", "notice it again", _unmute),
    Command("archive", "", "for yourself: put it away", _archive),
    Command("unarchive", "", "take it out again", _unarchive),
    Command("leave", "", "leave the conversation", _leave),
    Command("block", "[WHO…]", "hear no more of somebody; they are not told", _block),
    Command("unblock", "[WHO…]", "lift the block; WHO is an id or @username from `gearlink chat block`", _unblock),
)
COMMANDS: Final = {command.name: command for command in (*ABOUT_MESSAGES, *ABOUT_ROOMS, *ABOUT_TRUST)}
