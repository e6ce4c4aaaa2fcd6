"""The terminal client against the real server: what its commands do, and what everybody in the conversation sees of it."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from gearlink.chat.rooms import COMMANDS
from gearlink.errors import ExitStatus
from tests.house import SECONDS_MAX
from tests.pictures import jpeg
from tests.town import Town, open_town, opened


@pytest.fixture
async def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> AsyncIterator[Town]:
    async with open_town(tmp_path, monkeypatch, nursery) as opened:
        yield opened


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "encrypted"])
async def test_what_becomes_of_a_message_is_shown_to_all_as_it_happens_and_in_the_history(
    town: Town, plain: bool
) -> None:
    group = await opened(town, "ann", "bob", plain=plain)
    ann, bob = await town.talk("ann", group), await town.talk("bob", group)
    await ann.types("tomatos @all")
    number = (await ann.sees(r"sent #(\d+)"))[1]
    await bob.sees(rf"#{number} .* Ann \(@ann\): tomatos @all\n    \(@ everybody\)")
    await ann.types("/edit tomatoes")
    await bob.sees(rf"~ Ann \(@ann\) edited #{number}: tomatoes")
    await bob.types(f"/react #{number} 👍")
    await ann.sees(rf"~ Bob \(@bob\) reacted 👍 to #{number} \(👍 1\)")
    await bob.types(f"/react #{number} 👍")
    await ann.sees(rf"~ Bob \(@bob\) took 👍 back from #{number}")
    await ann.types("@bob come")
    await bob.sees(r"@bob come\n    \(@ you\)")
    await ann.types(f"/pin #{number}")
    await bob.sees(rf"~ Ann \(@ann\) pinned #{number}")
    await bob.types("/pins")
    await bob.sees(rf"#{number} .*: tomatoes\n    \(edited, pinned\)")
    await bob.types(f"/reply #{number} how many?")
    reply = (await ann.sees(rf"#(\d+) .* Bob \(@bob\): how many\?\n    > #{number} you: tomatoes"))[1]
    await ann.types(f"/thread #{reply}")
    await ann.sees("~ 1 reply\n" if plain else "-- /thread: not in an encrypted conversation")
    await ann.types(f"/edits #{number}")
    await ann.sees("until edit 1, written .*: tomatos @all" if plain else "-- /edits: not in an encrypted conversation")
    await bob.types("/delete everyone")
    await ann.sees(rf"~ Bob \(@bob\) deleted #{reply}")
    await ann.leaves()
    shown = await town.run("ann", "to", group, "--last", "5")
    quote = rf"\n    > #{number} you: tomatoes" if plain else ""  # of a letter that is deleted nothing stays
    assert re.search(rf"#{reply} .* Bob \(@bob\): \(deleted by Bob \(@bob\)\){quote}", shown)
    assert re.search(r"#\d+ .* ~ you pinned #", shown)
    await bob.leaves()


async def test_a_poll_is_asked_answered_and_closed(town: Town) -> None:
    group = await opened(town, "ann", "bob", plain=True)
    ann, bob = await town.talk("ann", group), await town.talk("bob", group)
    await ann.types("/poll Peas? | yes | no | maybe")
    number = (await ann.sees(r"others answer with /vote #(\d+) 1"))[1]
    await bob.sees(r"Peas\?\n    1\. yes  0\n    2\. no  0\n    3\. maybe  0")
    await bob.types(f"/vote #{number} 2")
    await ann.sees(rf"~ votes on #{number}: yes 0 · no 1 · maybe 0")
    await ann.types(f"/votes #{number}")
    await ann.sees(r"~ Bob \(@bob\): 2")
    for wrong in ("4", "0", "1 9"):
        await bob.types(f"/vote #{number} {wrong}")
        await bob.sees(rf"-- the options of #{number} are 1 to 3\n")
    await ann.types(f"/close #{number}")
    await bob.sees(r"maybe 0 \(closed\)")
    await bob.types(f"/vote #{number} 1")
    await bob.sees("-- This poll takes no more votes")
    await ann.leaves()
    await bob.leaves()


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "encrypted"])
async def test_people_come_go_and_get_roles(town: Town, plain: bool) -> None:
    group = await opened(town, "ann", "bob", plain=plain)
    await town.settle("cat", "dan")
    ann, bob = await town.talk("ann", group), await town.talk("bob", group)
    await ann.types("/add @cat")
    await bob.sees(r"~ Cat \(@cat\) was added by Ann \(@ann\)")
    await ann.types("/role @bob admin")
    await bob.sees(r"~ Ann \(@ann\) made you admin")
    await bob.types("/remove @cat")
    await ann.sees(r"~ Cat \(@cat\) was removed by Bob \(@bob\)")
    await ann.types("/invite 1d 5 approval")
    code = (await ann.sees(r"gearlink chat join ([\w-]+)"))[1]
    assert "garden, 2 members" in await town.run("dan", "join", code, "--look")
    assert "you asked to be let in" in await town.run("dan", "join", code)
    await ann.sees(r"~ Dan \(@dan\) asks to be let in: /requests")
    await ann.types("/requests")
    await ann.sees(r"~ Dan \(@dan\)  ")
    await ann.types("/approve @dan")
    await bob.sees(r"~ Dan \(@dan\) was let in by Ann \(@ann\)")
    await ann.types("/links")
    await ann.sees(rf"~ {code}  used 1 of 5, until .*, with approval")
    await ann.types(f"/links revoke {code}")
    await ann.sees("leads nowhere")
    await ann.types("/ban @dan")
    await bob.sees(r"~ Dan \(@dan\) was banned by Ann")
    await ann.types("/who")
    await ann.sees(r"~ you  owner\n    ~ Bob \(@bob\)  admin  online")
    await bob.types("/leave")
    with trio.fail_after(SECONDS_MAX):
        await bob.ended.wait()
    await ann.sees(r"~ Bob \(@bob\) left")
    await ann.leaves()
    assert "Bob" not in await town.run("ann", "members", group)


async def test_settings_are_shown_changed_and_told(town: Town) -> None:
    group = await opened(town, "ann", "bob")
    ann, bob = await town.talk("ann", group), await town.talk("bob", group)
    await ann.types("/settings")
    await ann.sees("~ write=everyone .*timer=off")
    await ann.types("/settings write=admins history_visible=yes")
    await bob.sees(r"~ Ann \(@ann\) changed the conversation: name garden · write=admins .*history_visible=yes")
    await bob.types("may I?")
    await bob.sees("-- not sent: Your role does not allow this")
    await ann.types("/timer 7d")
    await bob.sees("timer=1w")
    await ann.types("/name orchard")
    await bob.sees("name orchard")
    await ann.types("/timer 99999d")
    await ann.sees(r"-- .*settings\.disappearingSeconds: at most 31622400")
    await ann.types("/settings write=nobody")
    await ann.sees("-- settings are write")
    await ann.types("/sing")
    await ann.sees("-- there is no /sing; /help lists what there is")
    await ann.leaves()
    await bob.leaves()


async def test_what_a_person_sets_for_themselves(town: Town) -> None:
    group = await opened(town, "ann", "bob", plain=True)
    await town.run("ann", "to", "@bob", "--plain")
    said = await town.run(
        "ann",
        "to",
        group,
        "--commands",
        lines=("/mute 8h", "/archive", "/draft half a", "/later +2h good night", "/scheduled", "/scheduled cancel 1"),
    )
    for pattern in ("muted until 20", "~ archived", "kept, on all", "goes out 20", r"1\. 20.* good night", "cancelled"):
        assert re.search(pattern, said), pattern
    assert "garden (muted until" in await town.run("ann", "list", "--archived")
    ann = await town.talk("ann", group)
    await ann.sees("~ draft: half a")
    await ann.types("note to self")
    number = (await ann.sees(r"sent #(\d+)"))[1]
    await ann.types(f"/forward #{number} @bob")
    await ann.sees("~ forwarded")
    await ann.types(f"/delete #{number}")
    await ann.sees("gone from your own sight")
    await ann.leaves()
    bob = await town.talk("bob", "@ann", "--plain")
    await bob.sees(r"note to self\n    \(forwarded 1 times\)")
    await bob.types("/block")
    await bob.sees("is blocked; they are not told")
    await bob.types("psst")
    await bob.sees("-- not sent: ")
    await bob.types("/unblock")
    await bob.sees("is not blocked")
    await bob.leaves()


async def test_a_pipe_says_text_unless_it_holds_commands(town: Town) -> None:
    group = await opened(town, "ann", "bob")
    await town.run("ann", "to", group, lines=("/name orchard",))
    assert "/name orchard" in await town.run("bob", "to", group)
    await town.run("ann", "to", group, "--commands", lines=("/name orchard", "//name is a command"))
    shown = await town.run("bob", "to", group)
    assert "Ann (@ann): /name is a command" in shown and "name orchard" in shown
    said = await town.run("ann", "to", group, "--commands", lines=("/pin", "never"), status=ExitStatus.USAGE)
    assert "gearlink chat: say which message, such as #12" in said
    assert "never" not in await town.run("bob", "to", group)


ENDS_THE_CHAT, ASKS = "leave", "recover"  # the second takes the next line as its answer


@pytest.mark.parametrize("kind", ["group", "direct"])
async def test_every_command_without_arguments_is_answered_and_the_chat_goes_on(town: Town, kind: str) -> None:
    group = await opened(town, "ann", "bob")
    ann = await town.talk("ann", group if kind == "group" else "@bob")
    silent = []
    for number, name in enumerate(each for each in COMMANDS if each not in (ENDS_THE_CHAT, ASKS)):
        before = len(ann.shown())
        await ann.types(f"/{name}")
        await ann.types(f"/x{number}")
        end = await ann.sees(rf"-- there is no /x{number};")
        if not re.search(r"^(-- |    ~ )", ann.shown()[before : end.start()], re.MULTILINE):
            silent.append(name)
    assert silent == []
    await ann.leaves()


@pytest.mark.parametrize(
    "line", ["/ban", "/invite", "/links", "/requests", "/about", "/name x", "/add @cat", "/unban @cat"]
)
async def test_what_a_conversation_between_two_does_not_have_is_said(town: Town, line: str) -> None:
    await town.settle("ann", "bob")
    name = line.split()[0]
    said = await town.run("ann", "to", "@bob", "--commands", lines=(line,), status=ExitStatus.USAGE)
    assert said == f"gearlink chat: {name}: not in a conversation between two\n"


async def test_what_stands_in_the_history_is_not_told_once_more(town: Town) -> None:
    group = await opened(town, "ann", "bob")
    ann, bob = await town.talk("ann", group), await town.talk("bob", group)
    await bob.types("tomatos")
    number = (await ann.sees(r"#(\d+) .*: tomatos"))[1]
    await bob.leaves()
    await ann.types(f"/pin #{number}")
    await ann.sees("you pinned")
    await ann.types(f"/react #{number} 👍")
    await ann.sees("you reacted")
    await ann.types("/timer 7d")
    await ann.sees("timer=1w")
    await ann.types("/edit peas")
    await ann.sees("-- you wrote nothing here lately")
    await ann.types("beans")
    beans = (await ann.sees(r"sent #(\d+)"))[1]
    await ann.types("/edit peas")
    await ann.sees("you edited")
    bob = await town.talk("bob", group)
    await bob.types("/who")
    await bob.sees("Bob|you")
    await ann.types("now")
    await bob.sees(": now")  # all that was missed came before it
    shown = bob.shown()
    for once in (f"pinned #{number}", "timer=1w", "tomatos", "peas"):
        assert shown.count(once) == 1, (once, shown)
    assert "reacted" not in shown and f"edited #{beans}" not in shown
    await ann.types(f"/edit #{beans} plums")
    await bob.sees(rf"edited #{beans}: plums")  # and what happens from now on is told
    await ann.leaves()
    await bob.leaves()


async def test_what_was_deleted_from_ones_own_sight_elsewhere_is_not_told_at_the_start(town: Town) -> None:
    group = await opened(town, "ann", "bob", plain=True)
    await town.run("bob", "to", group, lines=("tomatos",))
    said = await town.run("ann", "to", group)
    number = re.findall(r"#(\d+) .*: tomatos", said)[0]
    await town.run("ann", "signup", "--as", "laptop", *await town.code("+15551250000"))
    await town.run("laptop", "to", group)
    await town.run("ann", "to", group, "--commands", lines=(f"/delete #{number}",))
    ann, laptop = await town.talk("ann", group), await town.talk("laptop", group)
    await ann.types("here")
    await laptop.sees(": here")
    assert "own sight" not in laptop.shown()
    number = (await ann.sees(r"sent #(\d+)"))[1]
    await ann.types(f"/delete #{number}")
    await laptop.sees(rf"you deleted #{number} from your own sight")
    await ann.leaves()
    await laptop.leaves()


async def test_every_command_is_in_the_help(town: Town) -> None:
    group = await opened(town, "ann")
    shown = await town.run("ann", "to", group, "--commands", lines=("/help",))
    assert [name for name in COMMANDS if f"~ /{name} " not in shown] == []


async def test_contacts_privacy_and_blocks_from_the_shell(town: Town) -> None:
    await town.settle("ann", "bob")
    assert "added Bob (@bob)" in await town.run("ann", "contacts", "add", "@bob", "--nickname", "Bobby")
    assert "Bob (@bob) = Bobby" in await town.run("ann", "contacts")
    found = await town.run("ann", "contacts", "find", "+15551250001", "+15550000000")
    assert "Bob (@bob)" in found and "+15550000000  not here" in found
    await town.run("ann", "contacts", "remove", "@bob")
    assert await town.run("ann", "contacts") == ""
    assert "last_seen=nobody" in await town.run("ann", "privacy", "last_seen=nobody", "read_receipts=no")
    assert "read_receipts=no" in await town.run("ann", "privacy")
    assert "last_seen is everyone or" in await town.run("ann", "privacy", "last_seen=me", status=ExitStatus.USAGE)
    await town.run("ann", "block", "@bob")
    assert "Bob (@bob)  since" in await town.run("ann", "block")
    await town.run("ann", "unblock", town.ids["bob"])
    assert await town.run("ann", "block") == ""
    await town.run("ann", "block", "@bob")
    told = await town.run("ann", "unblock", "+15551250001", status=1)
    assert "you have not blocked +15551250001, as far as can be told: take the id from `gearlink chat block`" in told
    assert "Bob (@bob) is not blocked" in await town.run("ann", "unblock", "@bob")
    assert await town.run("ann", "block") == ""


async def test_picture_deletion_and_restoring_of_an_account_from_the_shell(town: Town, tmp_path: Path) -> None:
    await town.settle("ann")
    (tmp_path / "me.jpg").write_bytes(jpeg())
    assert f"{town.house.url}/api/v1/avatars/" in await town.run("ann", "avatar", str(tmp_path / "me.jpg"))
    await town.run("ann", "avatar", "--remove")
    (tmp_path / "me.txt").write_text("me")
    assert "JPEG" in await town.run("ann", "avatar", str(tmp_path / "me.txt"), status=1)
    missing = await town.run("ann", "avatar", str(tmp_path / "nothing"), status=1)
    assert missing == f"gearlink chat: {tmp_path / 'nothing'}: No such file or directory\n"
    assert "nothing was deleted" in await town.run("ann", "delete-account", status=ExitStatus.USAGE)
    assert "--restore" in await town.run("ann", "delete-account", "--yes")
    assert "not signed in" in await town.run("ann", "list", status=1)
    assert "--restore takes that back" in await town.run("ann", "signup", *await town.code("+15551250000"), status=1)
    said = await town.run("ann", "signup", "--restore", *await town.code("+15551250000"))
    assert said.startswith("signed in as Ann (@ann) on ")


async def test_sync_tells_each_message_once_as_json(town: Town) -> None:
    group = await opened(town, "ann", "bob")

    async def synced() -> list[dict[str, Any]]:
        events = [json.loads(line) for line in (await town.run("bob", "sync")).splitlines()]
        return [event for event in events if event["type"] not in ("message:delivered", "message:read")]  # marks tarry

    await town.run("ann", "to", group, lines=("one", "two"))
    created, *messages = await synced()
    assert (created["type"], created["conversation"]["id"]) == ("conversation:created", group)
    assert [each["message"]["content"] for each in messages] == ["one", "two"]
    assert await synced() == []
    await town.run("ann", "to", group, lines=("three",))
    assert [each["message"]["content"] for each in await synced()] == ["three"]
