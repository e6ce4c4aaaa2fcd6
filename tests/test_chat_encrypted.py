"""The terminal client in encrypted conversations: who may read, what is not right in words, and one's own devices."""

import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import trio

from gearlink.chat.notices import TROUBLES, as_json, notice
from gearlink.chat.vaults import VAULT, vault_folder
from gearlink.errors import ExitStatus
from gearlink.sdk.e2ee import unlocking
from gearlink.sdk.e2ee.records import SenderKey, Session
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.e2ee.vault import open_vault
from gearlink.sdk.secure.told import IdentityChanged, NotLinked, Suspicion, Suspicious
from gearlink.views import DecryptionReason
from tests.town import Seated, Town, open_town, opened

CODE = r"[0-9A-Z]{4}(?:-[0-9A-Z]{4}){3}"


@pytest.fixture
async def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> AsyncIterator[Town]:
    async with open_town(tmp_path, monkeypatch, nursery) as opened:
        yield opened


async def another_device(town: Town, name: str, profile: str) -> str:
    """Signs somebody in once more, as another local profile; what it said."""
    number = f"+1555125{list(town.ids).index(name):04}"
    return await town.run(name, "signup", "--as", profile, *await town.code(number))


async def in_vault(profile: str, change: Callable[[Tx], Any]) -> Any:
    """Does something to the vault of a profile that is not open."""
    folder = vault_folder(profile)
    async with open_vault(folder / VAULT, await unlocking.unlock(folder)) as vault:
        return await vault.write(change)


async def leave(*seated: Seated) -> None:
    for each in seated:
        await each.leaves()


# --- who may read ----------------------------------------------------------------------------------------------------


async def test_what_two_people_say_is_encrypted_unless_they_want_it_otherwise(town: Town) -> None:
    await town.settle("ann", "bob", "cat")
    await town.run("ann", "to", "@bob", lines=("tomatoes",))
    await town.run("ann", "to", "@cat", "--plain", lines=("peas",))
    listed = await town.run("ann", "list")
    assert re.search(r"Bob \(@bob\) \(encrypted\)\n    #\d+ .* you: tomatoes", listed)
    assert re.search(r"Ann \(@ann\) \(encrypted, 1 new\)\n    #\d+ .*: \(encrypted\)", await town.run("bob", "list"))
    assert re.search(r"Cat \(@cat\)\n    #\d+ .* you: peas", listed)
    assert "Ann (@ann): tomatoes" in await town.run("bob", "to", "@ann")
    said = await town.run("cat", "to", "@ann", lines=("not for the server",), status=1)
    assert "can be read by the server: to go on all the same, say --plain" in said
    await town.run("cat", "to", "@ann", "--plain", lines=("thanks",))
    assert "not for the server" not in await town.run("ann", "to", "@cat", "--plain")
    refused = await town.run("bob", "to", "@ann", "--plain", status=1)
    assert "encrypted already, and stays so" in refused
    bob = await town.talk("bob", "@ann")
    await bob.sees("~ end-to-end encrypted; /safety shows how")
    await leave(bob)


async def test_what_was_said_while_one_was_away_is_shown_once_and_in_order(town: Town) -> None:
    group = await opened(town, "ann", "bob")
    await town.run("ann", "to", group, lines=("one", "two"))
    await town.run("bob", "to", group, lines=("three",))
    await town.run("ann", "to", group, "--commands", lines=("four", "/edit five", "/name orchard"))
    shown = await town.run("bob", "to", group)
    texts = re.findall(r"^#\d+ \S+ \S+ (?:\S+(?: \(@\w+\))?: |~ )(.*)$", shown, re.MULTILINE)
    assert texts[:4] == ["one", "two", "three", "five"] and "name orchard" in texts[4]
    assert await town.run("bob", "to", group) == shown
    assert [line.rpartition(": ")[2] for line in (await town.run("bob", "to", group, "--last", "2")).splitlines()][
        :1
    ] == ["five"]


async def test_older_pages_come_from_this_device_until_there_are_no_more(town: Town) -> None:
    await town.settle("ann", "bob")
    await town.run("ann", "to", "@bob", lines=tuple(f"line {number}" for number in range(7)))
    bob = await town.talk("bob", "@ann", "--last", "2")
    await bob.sees(r"line 5\n.*: line 6\n")
    await bob.types("/older 4")
    await bob.sees(r"line 1\n.*: line 2\n.*: line 3\n.*: line 4\n")
    await bob.types("/older 4")
    await bob.sees(r"line 0\n    ~ that is all")
    await leave(bob)


async def test_two_people_compare_and_verify_each_other(town: Town) -> None:
    await town.settle("ann", "bob", "cat")
    ann, bob = await town.talk("ann", "@bob"), await town.talk("bob", "@ann")
    numbers, codes = [], []
    for person in (ann, bob):
        await person.types("/safety")
        rows = await person.sees(r"safety number of you and .*:\n((?:    ~     [\d ]+\n){3})")
        numbers.append(re.findall(r"\d{5}", rows[1]))
        codes.append((await person.sees(r"as text: (GEARLINK:1:\S+)"))[1])
    assert numbers[0] == numbers[1] and len(numbers[0]) == 12
    await ann.types(f"/verify {codes[0]}")
    await ann.sees("-- this code is not about you and Bob")
    await ann.types("/verify GEARLINK:1:nonsense")
    await ann.sees("-- this is no safety code")
    await ann.types(f"/verify @bob {codes[1]}")
    await ann.sees(r"~ Bob \(@bob\) is verified")
    await ann.types("/accept")
    await ann.sees("-- the keys of Bob .* have not changed")
    await leave(ann)
    ann = await town.talk("ann", "@bob")
    await ann.sees(r"encrypted, and you have verified Bob")
    await leave(ann, bob)


async def test_nothing_is_sent_to_somebody_whose_keys_changed_until_that_is_accepted(town: Town) -> None:
    await town.settle("ann", "bob")
    await town.run("ann", "to", "@bob", "--commands", lines=("hello", "/verify"))
    await another_device(town, "bob", "bob2")
    ann, bob = await town.talk("ann", "@bob"), await town.talk("bob2", "@ann")
    await bob.sees(f"!! this device is not linked yet.*{CODE}")
    await bob.types("can you read this?")
    await bob.sees(f"-- not sent: this device is not linked yet.*/link {CODE}")
    await bob.types("/reset")
    await bob.sees("-- /reset yes makes new keys")
    await bob.types("/reset yes")
    await bob.sees("~ your account has new keys")
    await ann.types("psst")
    await ann.sees(r"!! Bob \(@bob\) has other keys than before.* You had verified them\..*/accept @bob")
    await ann.sees(r"-- not sent: Bob \(@bob\) has other keys than before")
    await ann.types("/accept")
    await ann.sees(r"~ the keys that Bob \(@bob\) has now count as theirs")
    await ann.types("is that you?")
    await bob.sees(r"Ann \(@ann\): is that you\?")
    await leave(ann, bob)


# --- what is not right -----------------------------------------------------------------------------------------------


async def test_message_that_cannot_be_read_says_why_and_is_shown_when_it_can(town: Town) -> None:
    await town.settle("ann", "bob")
    ann, bob = await town.talk("ann", "@bob"), await town.talk("bob", "@ann")
    await ann.types("one")
    await bob.sees(": one")
    await bob.types("two")
    await ann.sees(": two")
    await leave(bob)

    def lose(tx: Tx) -> None:
        for session in tx.scan(Session):
            tx.delete(Session, session.device_id, session.session_id)
        for key in tx.scan(SenderKey):
            tx.delete(SenderKey, key.conversation_id, key.device_id, key.key_id)

    await in_vault("bob", lose)
    bob = await town.talk("bob", "@ann")
    await bob.sees(": one")
    await ann.types("three")
    number = (
        await bob.sees(r"#(\d+) .*: \(cannot be read: sealed with keys that this device does not have; it is asked")
    )[1]
    await bob.sees(rf"~ #{number} can be read now:\n#{number} .* Ann \(@ann\): three")
    await leave(ann, bob)
    assert "cannot be read" not in await town.run("bob", "to", "@ann")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/poll Peas? | yes | no", "the server counts the votes"),
        ("/later +2h good night", "only they can encrypt it"),
        ("/draft half a", "the server keeps drafts"),
        ("/thread", "does not see here what answers what"),
    ],
)
async def test_what_the_server_would_have_to_read_is_refused_with_the_reason(
    town: Town, line: str, reason: str
) -> None:
    await town.settle("ann", "bob")
    said = await town.run("ann", "to", "@bob", "--commands", lines=(line,), status=ExitStatus.USAGE)
    assert said.startswith(f"gearlink chat: {line.split()[0]}: not in an encrypted conversation: ")
    assert reason in said and said.count("\n") == 1


async def test_message_handed_on_is_encrypted_anew_and_not_to_where_the_server_can_read_it(town: Town) -> None:
    await town.settle("ann", "bob", "cat", "dan")
    await town.run("ann", "to", "@cat", "--plain")
    ann = await town.talk("ann", "@bob")
    await ann.types("tomatoes")
    number = (await ann.sees(r"sent #(\d+)"))[1]
    await ann.types(f"/forward #{number} @cat")
    await ann.sees("-- what you say to each other there can be read by the server")
    await ann.types(f"/forward #{number} @dan")
    await ann.sees("~ its text was handed on")
    await leave(ann)
    assert "tomatoes" not in await town.run("cat", "to", "@ann", "--plain")
    assert "Ann (@ann): tomatoes" in await town.run("dan", "to", "@ann")


async def test_everything_that_can_be_noticed_has_words_and_a_form_for_scripts() -> None:
    async def name(user_id: str) -> str:
        return "Bob (@bob)"

    assert set(TROUBLES) == set(get_args(DecryptionReason))
    for code in get_args(Suspicion):
        line = await notice(Suspicious(code=code, user_id="x"), name)
        assert line is not None and "{" not in line
    changed = IdentityChanged(user_id="x", was_verified=True)
    assert "/accept @bob" in str(await notice(changed, name))
    assert as_json(changed) == {"type": "security:identity-changed", "userId": "x", "wasVerified": True}
    assert "/link AAAA" in str(await notice(NotLinked(code="AAAA"), name))


async def test_json_has_what_was_said_and_what_was_noticed(town: Town) -> None:
    await town.settle("ann", "bob")
    await town.run("ann", "to", "@bob", lines=("tomatoes",))
    events = [json.loads(line) for line in (await town.run("bob", "to", "@ann", "--json")).splitlines()]
    assert [each["message"]["content"] for each in events if each["type"] == "message:new"] == ["tomatoes"]
    await another_device(town, "ann", "laptop")
    lines = (await town.run("laptop", "to", "@bob", "--json")).splitlines()
    assert [json.loads(line)["type"] for line in lines if line.startswith("{")][:1] == ["security:not-linked"]


async def test_sync_without_a_socket_opens_what_was_sealed(town: Town) -> None:
    await town.settle("ann", "bob")
    await town.run("ann", "to", "@bob", lines=("tomatoes",))
    events = [json.loads(line) for line in (await town.run("bob", "sync")).splitlines()]
    assert "tomatoes" in [each["message"]["content"] for each in events if each["type"] == "message:new"]
    assert "Ann (@ann): tomatoes" in await town.run("bob", "to", "@ann")


# --- further devices -------------------------------------------------------------------------------------------------


async def test_new_device_is_linked_by_an_old_one_and_gets_what_was_said(town: Town) -> None:
    await town.settle("ann", "bob")
    await town.run("bob", "to", "@ann", lines=("from before",))
    said = await another_device(town, "ann", "laptop")
    code = re.findall(f"Its linking code is ({CODE})", said)[0]
    ann = await town.talk("ann", "@bob")
    laptop = await town.talk("laptop", "@bob")
    await laptop.sees(f"!! this device is not linked yet.*{code}")
    await ann.types("/devices")
    await ann.sees(r"~ test \(this one\): linked\n    ~ test|~ .* \(desktop\): NOT linked")
    await ann.types("/link 7d")
    await ann.sees("-- /link takes the code that a new device")
    await ann.types("/link 0000-0000-0000-0000")
    await ann.sees("-- No device of this account shows this code")
    await ann.types(f"/link {code.lower().replace('-', ' ')}")
    await ann.sees("is yours from now on")
    await laptop.sees("!! this device is linked")
    await laptop.sees("!! [1-9] messages from before this device are here")
    await laptop.types("/older")
    await laptop.sees(r"Bob \(@bob\): from before")
    await laptop.types("now I can")
    await ann.sees(" you: now I can")
    await leave(ann, laptop)
    assert "Ann (@ann): now I can" in await town.run("bob", "to", "@ann")


async def test_backup_is_opened_with_the_recovery_key_on_a_new_device(town: Town) -> None:
    await town.settle("ann", "bob")
    await town.run("bob", "to", "@ann", lines=("from before",))
    ann = await town.talk("ann", "@bob")
    await ann.types("/backup")
    await ann.sees("~ there is no backup of this device: /backup on makes one")
    await ann.types("/backup on")
    key = (await ann.sees(r"your recovery key:  ([0-9A-Z-]+)"))[1]
    await ann.types("0" * 32)
    await ann.sees("!! ")
    await ann.types(key.lower())
    await ann.sees("~ the backup is made and was opened with your key")
    await ann.types("/backup status")
    await ann.sees(r"~ the backup is complete \([\d,]+ bytes, added to 2.*\)\n    ~     Bob \(@bob\): up to 2")
    await leave(ann)
    await another_device(town, "ann", "laptop")
    laptop = await town.talk("laptop", "@bob")
    await laptop.types("/recover")
    await laptop.sees("~ type your recovery key:")
    await laptop.types(key)
    await laptop.sees("~ this device is yours, and 1 messages are here")
    await laptop.types("/older")
    await laptop.sees(r"Bob \(@bob\): from before")
    await laptop.types("/backup off")
    await laptop.sees("~ the backup of this device is deleted")
    await leave(laptop)


# --- the vault -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A passphrase costs little: what it costs in life is tested elsewhere."""
    monkeypatch.setattr(unlocking, "OPERATIONS", unlocking.pwhash.argon2id.OPSLIMIT_MIN)
    monkeypatch.setattr(unlocking, "MEMORY_BYTES", unlocking.pwhash.argon2id.MEMLIMIT_MIN)


async def locked(town: Town, passphrase: str) -> None:
    """Ann's vault is made anew, with a passphrase."""
    await town.settle("ann", "bob")
    vault_folder("ann").rename(vault_folder("ann").with_suffix(".old"))
    await unlocking.create(vault_folder("ann"), "passphrase", passphrase)


async def test_person_chooses_a_passphrase_and_is_asked_for_it(
    town: Town, cheap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    await town.settle("ann", "bob")
    vault_folder("ann").rename(vault_folder("ann").with_suffix(".old"))
    ann = await town.talk("ann", "@bob")
    for line in ("correct horse", "correct hose"):
        await ann.types(line)
    await ann.sees("those were two different ones")
    for line in ("short", "short"):
        await ann.types(line)
    await ann.sees("a passphrase has 8 to 1024 characters")
    for line in ("correct horse", "correct horse"):
        await ann.types(line)
    await ann.sees("end-to-end encrypted")
    await leave(ann)
    ann = await town.talk("ann", "@bob")
    await ann.types("wrong horse")
    await ann.sees("this is not the passphrase")
    await ann.types("correct horse")
    await ann.sees("end-to-end encrypted")
    await leave(ann)
    assert "correct" not in ann.shown()
    monkeypatch.setenv("GEARLINK_PASSPHRASE", "correct horse")
    await town.run("ann", "to", "@bob")


async def test_script_gives_the_passphrase_or_is_told_how(town: Town, cheap: None, tmp_path: Path) -> None:
    await locked(town, "correct horse")
    told = await town.run("ann", "to", "@bob", status=ExitStatus.USAGE)
    assert told == (
        "gearlink chat: this vault is locked with a passphrase: give it with --passphrase-file FILE or in"
        " GEARLINK_PASSPHRASE\n"
    )
    path = tmp_path / "passphrase"
    path.write_text("correct horse\n")
    await town.run("ann", "to", "@bob", "--passphrase-file", str(path))
    path.write_text("wrong horse\n")
    told = await town.run("ann", "to", "@bob", "--passphrase-file", str(path), status=1)
    assert told == "gearlink chat: this is not the passphrase\n"
    path.write_text("\n")
    assert "no first line" in await town.run("ann", "to", "@bob", "--passphrase-file", str(path), status=2)


async def test_profile_of_another_account_is_not_signed_in_anew(town: Town) -> None:
    await town.settle("ann")
    await town.run("ann", "logout")
    told = await town.run("ann", "signup", *await town.code("+15551269999"), status=1)
    assert told.startswith("gearlink chat: this profile was a device of another account") and "--as NAME" in told


async def test_trouble_with_the_vault_is_one_line_that_says_what_to_do(town: Town) -> None:
    await town.settle("ann", "bob")
    vault_folder("ann").rename(vault_folder("ann").with_suffix(".mine"))
    vault_folder("bob").rename(vault_folder("ann"))
    told = await town.run("ann", "to", "@bob", status=1)
    assert "keys of an earlier sign-in of this profile" in told and "move that folder away" in told
    vault_folder("ann").rename(vault_folder("bob"))
    vault_folder("ann").with_suffix(".mine").rename(vault_folder("ann"))
    ann = await town.talk("ann", "@bob")
    await ann.sees("end-to-end encrypted")
    assert "is in use by another program: end that one first" in await town.run("ann", "to", "@bob", status=1)
    await leave(ann)
    (vault_folder("ann") / unlocking.HEADER_NAME).unlink()
    assert "without it the vault beside it is locked" in await town.run("ann", "to", "@bob", status=1)
