"""Commands about trust: who is really who, which devices are one's own, and the backup that only a recovery key opens.

Each is one function of the desk and the words behind its name, as in `commands`. What makes the codes is loaded when it is
asked for.
"""

import re
from typing import TYPE_CHECKING, Final

import trio

from gearlink.chat.commands import Command
from gearlink.chat.desk import Desk
from gearlink.chat.finding import Complaint
from gearlink.chat.words import local_time
from gearlink.errors import ExitStatus
from gearlink.sdk import Refused, Unreachable
from gearlink.terminal import harmless

if TYPE_CHECKING:
    from gearlink.sdk.e2ee.store import Tx

TRIES: Final = 3
CONVERSATIONS_SHOWN_MAX: Final = 20
_LINKING_CODE: Final = re.compile(r"[0-9A-Za-z]{16,64}")


# --- others ----------------------------------------------------------------------------------------------------------


async def how_safe(desk: Desk) -> str:
    """How well what is said here is protected, in one line. Raises Refused, Unreachable."""
    if not desk.is_direct:
        return "end-to-end encrypted: nobody but the members can read this"
    user_id = await desk.other("")
    if await desk.secure.is_verified(user_id):
        return f"end-to-end encrypted, and you have verified {await desk.names.of(user_id)}"
    return "end-to-end encrypted; /safety shows how to make sure that nobody stands between you"


async def _safety(desk: Desk, words: str) -> None:
    from gearlink.sdk.e2ee.safety import qr_terminal

    user_id = await desk.other(words)
    await _meet(desk, user_id)
    number, code = await desk.secure.safety_number(user_id), await desk.secure.safety_code(user_id)
    who = await desk.names.of(user_id)
    groups = number.split()
    desk.tell(f"the safety number of you and {who}:")
    for start in range(0, len(groups), 4):
        desk.tell(f"    {' '.join(groups[start : start + 4])}")
    for row in (await trio.to_thread.run_sync(qr_terminal, code)).splitlines():
        desk.tell(row)
    desk.tell(f"for /verify, as text: {code}")
    verified = "you have verified them" if await desk.secure.is_verified(user_id) else "you have not verified them"
    desk.tell(f"{who} sees the same number: compare it face to face or on the phone, then /verify. {verified}")


async def _verify(desk: Desk, words: str) -> None:
    first, _, rest = words.partition(" ")
    if first.startswith("GEARLINK:"):
        first, rest = "", first
    user_id = await desk.other(first)
    await _meet(desk, user_id)
    await desk.secure.safety_number(user_id)  # refuses whoever was never met
    found = await desk.secure.verify(user_id, rest.strip() or None)
    who = await desk.names.of(user_id)
    if found == "match":
        if not await desk.secure.is_verified(user_id):
            raise Complaint(f"{who} has other keys than before: compare with /safety, then say /accept, then /verify")
        desk.tell(f"{who} is verified: you will be told if their keys ever change")
        return
    wrong = {
        "mismatch": f"THIS IS NOT THEIR KEY: somebody may stand between you and {who}. Do not go on; compare in person",
        "other-person": f"this code is not about you and {who}: they have to show you the one with you (/safety)",
    }
    raise Complaint(wrong.get(found, "this is no safety code: it begins with GEARLINK:1:"))


async def _accept(desk: Desk, words: str) -> None:
    from gearlink.sdk.e2ee.records import Peer, PeerDevice

    user_id = await desk.other(words)
    await _meet(desk, user_id)

    def has_changed(tx: "Tx") -> bool:
        peer = tx.get(Peer, user_id)
        return (peer is not None and bool(peer.changed_at)) or any(
            each.offered_key for each in tx.scan(PeerDevice, user_id)
        )

    who = await desk.names.of(user_id)
    if not await desk.secure.device.read(has_changed):
        raise Complaint(f"the keys of {who} have not changed: there is nothing to accept")
    await desk.secure.accept_identity(user_id)
    desk.tell(f"the keys that {who} has now count as theirs; to make sure that they are: /safety")


async def _meet(desk: Desk, user_id: str) -> None:
    """Learns the keys of who is here, if nothing was said yet."""
    if desk.is_encrypted and user_id != desk.me:
        await desk.secure.companies.of(desk.conversation_id)


# --- one's own devices -----------------------------------------------------------------------------------------------


async def _link(desk: Desk, words: str) -> None:
    code = re.sub(r"[\s-]", "", words)
    if not _LINKING_CODE.fullmatch(code):
        raise Complaint(
            "/link takes the code that a new device of yours shows, such as 0123-4567-89AB-CDEF; a link for others to"
            " come in is made with /invite",
            ExitStatus.USAGE,
        )
    device_id = await desk.secure.link(words)
    name = next((harmless(each.name) for each in await desk.client.devices() if each.id == device_id), device_id)
    desk.tell(f"{name} is yours from now on; what was said so far goes there while this stays open")
    await desk.secure.linking.step()


async def _recover(desk: Desk, words: str) -> None:
    from gearlink.sdk.e2ee.recovery import BadRecoveryKey
    from gearlink.sdk.secure.own_device import timestamp

    for _try in range(TRIES):  # whoever mistyped types again: never as a line of the conversation
        typed, words = words or await desk.ask("type your recovery key:"), ""
        if not typed:
            raise Complaint("nothing was recovered")
        desk.tell("this may take a while")
        try:
            restored = await desk.secure.backup.restore(typed)
            break
        except BadRecoveryKey as trouble:
            desk.warn(str(trouble))
    else:
        raise Complaint("nothing was recovered: say /recover to try again")
    lost = f"; {restored.damaged} pieces of the backup were damaged" if restored.damaged else ""
    made_at = local_time(timestamp(restored.made_at))
    desk.tell(f"this device is yours, and {restored.messages} messages are here: /older shows them{lost}")
    desk.tell(f"the backup was added to last at {made_at}: if you used it later, the server gave an older one")


async def _reset(desk: Desk, words: str) -> None:
    is_linked = desk.secure.keeping.linked.is_set()
    if words != ("stolen" if is_linked else "yes"):
        raise Complaint(
            "/reset stolen makes new keys for your account, because somebody else has a device of yours: remove that one"
            " first (/devices remove), your others have to be linked anew, and everybody is told that your keys have changed"
            if is_linked
            else "/reset yes makes new keys for your account, if no other device of yours is left and no recovery key: what"
            " was said before stays unreadable, and everybody you talk to is told that your keys have changed",
            ExitStatus.USAGE,
        )
    await desk.secure.keeping.start_over()
    desk.secure.companies.forget()
    desk.tell("your account has new keys, and this device is its first")


async def _devices(desk: Desk, words: str) -> None:
    shown = await desk.client.identities_of(desk.me)
    certified = {each.device_id for each in shown.devices if isinstance(each.certificate, str)}
    published = {each.device_id for each in shown.devices}
    is_every_linked = True
    devices = await desk.client.devices()
    verb, _, number = words.partition(" ")
    if words:
        chosen = devices[int(number) - 1] if number.isdigit() and 0 < int(number) <= len(devices) else None
        if verb != "remove" or chosen is None or chosen.id == desk.client.state.device_id:
            raise Complaint("/devices [remove NUMBER], of another device than this one", ExitStatus.USAGE)
        await desk.client.remove_device(chosen.id)
        desk.tell(f"{harmless(chosen.name)} is signed out for good; what it has read so far, it has")
        return
    for position, device in enumerate(devices, 1):
        here = device.id == desk.client.state.device_id
        is_linked = desk.secure.keeping.linked.is_set() if here else device.id in certified
        state = "linked" if is_linked else "NOT linked" if device.id in published or here else "without keys"
        seen = "" if here else f", seen {local_time(device.last_seen_at)}"
        mark = "this one" if here else device.type
        desk.tell(f"{position}. {harmless(device.name)} ({mark}): {state}{seen}")
        is_every_linked = is_every_linked and is_linked
    if not is_every_linked:
        desk.tell("a device that is not linked reads nothing that is encrypted; /link CODE links it if it is yours")


# --- the backup ------------------------------------------------------------------------------------------------------


async def _backup(desk: Desk, words: str) -> None:
    if words == "on":
        await _backup_on(desk)
    elif words == "off":
        await desk.secure.backup.disable()
        desk.tell("the backup of this device is deleted, and its recovery key opens nothing any more")
    elif words in ("", "status"):
        await _backup_status(desk)
    else:
        raise Complaint("/backup on|off|status", ExitStatus.USAGE)


async def _backup_on(desk: Desk) -> None:
    from gearlink.sdk.e2ee.recovery import BadRecoveryKey

    shown = await desk.secure.backup.begin()
    desk.tell(f"your recovery key:  {shown}")
    desk.tell("write it on paper: it is shown this once, and whoever has it can read all that you wrote and got")
    for _try in range(TRIES):
        typed = await desk.ask("type it, to show that you have it (nothing: leave it):")
        if not typed:
            break
        try:
            await desk.secure.backup.confirm(typed)
        except BadRecoveryKey as trouble:
            desk.warn(str(trouble))
            continue
        await desk.secure.backup.flush()
        desk.tell("the backup is made and was opened with your key; from now on it is kept by itself")
        return
    raise Complaint("there is no backup with that key: /backup on shows another one")


async def _backup_status(desk: Desk) -> None:
    from gearlink.sdk.secure.own_device import timestamp

    status = await desk.secure.backup.status()
    if not status.enabled:
        others = "" if not status.others else f"; {status.others} of other devices of yours"
        desk.tell(f"there is no backup of this device{others}: /backup on makes one")
        return
    state = "complete" if status.complete else "not complete yet: the rest follows by itself"
    made = f", added to {local_time(timestamp(status.made_at))}" if status.made_at else ""
    desk.tell(f"the backup is {state} ({status.size_bytes:,} bytes{made})")
    if status.trouble:
        desk.tell(f"it does not get on: {harmless(status.trouble)}")
    covered = sorted(status.conversations.items(), key=lambda each: each[1].sent_at, reverse=True)
    for conversation_id, upto in covered[:CONVERSATIONS_SHOWN_MAX]:
        try:
            title = await desk.names.title(await desk.client.conversation(conversation_id))
        except (Refused, Unreachable):
            title = "a conversation that is gone"
        desk.tell(f"    {title}: up to {local_time(timestamp(upto.sent_at))}")


ABOUT_TRUST: Final = (
    Command("safety", "[WHO]", "what to compare, to know that nobody stands between you", _safety),
    Command("verify", "[WHO] [CODE]", "you have compared; or what you scanned from their screen", _verify),
    Command("accept", "[WHO]", "go on with somebody whose keys have changed", _accept),
    Command("devices", "[remove NUMBER]", "your devices, and which can read; signs one out for good", _devices),
    Command("link", "CODE", "confirm a new device of yours: it shows the code", _link),
    Command("recover", "", "confirm this device with your recovery key, and fetch what was said", _recover),
    Command("reset", "yes | stolen", "make new keys: all devices and the recovery key are lost, or one was stolen", _reset),
    Command("backup", "[on | off | status]", "keep your messages on the server, for your recovery key alone", _backup),
)
