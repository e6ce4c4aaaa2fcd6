"""What is said in an encrypted conversation is nowhere outside of its devices: words are let loose in it and looked for.

They are looked for in every file of the server's data, in every record as it is stored, in the log, the metrics, all that
went over the wire, and in the files of a vault; as they are, in UTF-16, in hexadecimal, in base64 of all three alignments, and
escaped. The same people say the same in a conversation that the server can read: there the same look finds them.
"""

import base64
import binascii
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from prometheus_client.exposition import generate_latest

from gearlink import protocol
from gearlink.clock import new_id
from gearlink.sdk.e2ee.encoding import to_base64url
from gearlink.sdk.e2ee.letters import Attachment
from gearlink.sdk.e2ee.records import OwnSenderKey, PreKey, SenderKey
from gearlink.sdk.e2ee.vault import open_vault
from gearlink.sdk.secure.told import Linked, NotLinked
from storage.keys import TABLES
from tests import house as houses
from tests.house import House, Person, open_house
from tests.malice import Victim, victims
from tests.memory_vault import MemoryVault
from tests.messengers import Messenger, switched_on

ANN, BOB, CID = "+15551230001", "+15551230002", "+15551230003"
WORDS = {
    "message": "Zilpzalp-Quittengelee-81",
    "message of letters beyond ASCII": "Grünspecht-Königskerze-82",
    "reply": "Wendehals-Mirabellenbaum-83",
    "edited": "Neuntoeter-Hagebutte-84",
    "edit": "Pirol-Schlehenhecke-85",
    "reaction": "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f",  # the flag of Wales
    "group": "Kiebitz-Sauerampfer-86",
    "group reply": "Rohrdommel-Wollgras-87",
    "new device": "Steinschmaetzer-Ginster-88",
    "after the old one": "Bachstelze-Sumpfdotter-89",
}
FILE_NAME = "Wiedehopf-Steuererklaerung-90.pdf"
Needles = Mapping[str, bytes]
Places = Mapping[str, bytes]


# --- looking ---------------------------------------------------------------------------------------------------------


def _base64_of(word: bytes) -> Iterator[bytes]:
    """What of its base64 does not depend on what stands before and behind, for each place in a group of three bytes."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + word)
        kept = text[-(-before * 8 // 6) : (before + len(word)) * 8 // 6]
        yield kept
        yield kept.translate(bytes.maketrans(b"+/", b"-_"))


def forms(word: bytes) -> set[bytes]:
    """How a word may be written down."""
    found = {word, binascii.hexlify(word), binascii.hexlify(word).upper(), *_base64_of(word)}
    try:
        text = word.decode()
    except UnicodeDecodeError:
        return found
    found |= {text.encode("utf-16-le"), text.encode("utf-16-be"), quote(text).encode(), json.dumps(text)[1:-1].encode()}
    return found | set(_base64_of(text.encode("utf-16-le")))


def look(places: Places, needles: Needles) -> set[tuple[str, str]]:
    """Which word is in which place."""
    written = {name: forms(word) for name, word in needles.items()}
    return {
        (place, name)
        for place, data in places.items()
        for name, each in written.items()
        if any(form in data for form in each)
    }


def words() -> Needles:
    return {name: word.encode() for name, word in {**WORDS, "file name": FILE_NAME}.items()}


def files(folder: Path) -> bytes:
    """All that is in the files of a folder, and what they are called."""
    return b"\n".join(
        each for path in sorted(folder.rglob("*")) if path.is_file() for each in (path.name.encode(), path.read_bytes())
    )


def records(house: House) -> bytes:
    """Every record of the store, as it is before it is compressed."""
    engine = house.app.store._engine
    rows = [row for table in TABLES.values() for row in engine.rows(table.name, b"", None, 1_000_000)]
    assert len(rows) > 50
    return b"\n".join(each for row in rows for each in row)


class Watched:
    """A server, and all places where the words of its people must not be."""

    def __init__(self, house: House, data: Path, log: list[io.BytesIO]) -> None:
        self.house, self.data, self._log = house, data, log
        self.people: list[Victim] = []

    def places(self) -> dict[str, bytes]:
        lines = b"".join(each.getvalue() for each in self._log)
        assert b'"level"' in lines
        return {
            "files": files(self.data),
            "records": records(self.house),
            "log": lines,
            "metrics": generate_latest(self.house.app.metrics.registry),
            "traffic": b"\n".join(each for person in self.people for each in person.line.overheard),
        }


@pytest.fixture
async def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    log: list[io.BytesIO] = []
    honest = houses.journal_lines

    @contextmanager
    def kept_lines() -> Iterator[io.BytesIO]:
        with honest() as lines:
            log.append(lines)
            yield lines

    monkeypatch.setattr(houses, "journal_lines", kept_lines)
    data = tmp_path / "data"
    async with open_house(data) as house:
        watched = Watched(house, data, log)
        watched.people = await victims(house, ANN, BOB, CID)
        yield watched


# --- what is said ----------------------------------------------------------------------------------------------------


async def heard(messenger: Messenger, word: str) -> str:
    """The id of the message with this text, once it was told."""

    def find() -> str:
        told = (getattr(each, "message", None) for each in messenger.heard)
        return next((each.id for each in told if each is not None and each.content == word), "")

    return await messenger.until(find)


async def converse(room: str, group: str, ann: Messenger, bob: Messenger, cid: Messenger) -> None:
    """Everything that people do, in a conversation of two and in a group."""
    message_id = (await ann.say(room, WORDS["message"]))[0]
    await heard(bob, WORDS["message"])
    await bob.secure.send(room, WORDS["reply"], reply_to_id=message_id)
    await heard(ann, WORDS["reply"])
    await ann.say(room, WORDS["message of letters beyond ASCII"])
    edited_id = (await ann.say(room, WORDS["edited"]))[0]
    await heard(bob, WORDS["edited"])
    await ann.secure.edit(edited_id, WORDS["edit"])
    await bob.until(lambda: [each for each in bob.heard if isinstance(each, protocol.MessageEdited)])
    await bob.secure.react(message_id, WORDS["reaction"])
    await ann.until(lambda: [each for each in ann.heard if isinstance(each, protocol.ReactionAdded)])
    group_id = (await cid.say(group, WORDS["group"]))[0]
    for each in (ann, bob):
        await heard(each, WORDS["group"])
    await ann.secure.send(group, WORDS["group reply"], reply_to_id=group_id, mentions=[bob.user_id])
    await heard(cid, WORDS["group reply"])


async def send_file(room: str, ann: Messenger, bob: Messenger) -> Needles:
    """Tells of a file; its key is one more word."""
    key = bytes(range(100, 132))
    sha256 = to_base64url(bytes(32))
    file = Attachment(
        media_id=new_id(), key=to_base64url(key), sha256=sha256, size=1, mime_type="application/pdf", name=FILE_NAME
    )
    await ann.secure.send(room, "", attachments=[file], kind="file")
    await bob.until(lambda: [each for each in bob.messages if each.attachments])
    return {"key of the file": key}


@asynccontextmanager
async def another_device(watched: Watched, old: Messenger) -> AsyncIterator[Messenger]:
    """A further device of somebody, linked, and with the history."""
    phone = Victim(watched.house, BOB)
    await phone.sign_in()
    watched.people.append(phone)
    async with phone.on() as new:
        await new.until(lambda: [each for each in new.heard if isinstance(each, NotLinked)])
        code = next(each.code for each in new.heard if isinstance(each, NotLinked))
        await old.secure.link(code)
        await new.until(lambda: [each for each in new.heard if isinstance(each, Linked)])
        yield new


async def secrets_of(*messengers: Messenger) -> Needles:
    """The private keys of these devices."""
    found: dict[str, bytes] = {}
    for number, each in enumerate(messengers):
        own = each.secure.device.own
        found |= {f"identity {number}": own.identity_seed, f"account {number}": own.account_seed}
        for kind, name in ((PreKey, "private_key"), (OwnSenderKey, "chain_key"), (SenderKey, "chain_key")):
            kept = await each.secure.device.read(lambda tx, kind=kind: tx.scan(kind))
            found |= {f"{kind.__name__} {number}.{at}": getattr(record, name) for at, record in enumerate(kept[:20])}
    assert len(found) > 40
    return found


# --- the tests -------------------------------------------------------------------------------------------------------


async def test_what_is_said_encrypted_is_nowhere_but_on_its_devices(watched: Watched, tmp_path: Path) -> None:
    vault_key, folder = bytes(range(32)), tmp_path / "vault"
    async with AsyncExitStack() as stack:
        vault = await stack.enter_async_context(open_vault(folder / "vault.db", vault_key))
        watched.people[0].vault = vault
        async with switched_on(watched.people) as (ann, bob, cid):
            room, group = await ann.direct(bob), await ann.group(bob, cid)
            await converse(room, group, ann, bob, cid)
            needles = {**words(), **await send_file(room, ann, bob)}
            recovery_key = await ann.secure.backup.begin()
            await ann.secure.backup.confirm(recovery_key)
            await ann.secure.backup.flush()
            async with another_device(watched, bob) as tablet:
                await tablet.say(room, WORDS["new device"])
                await heard(ann, WORDS["new device"])
                await tablet.client.remove_device(bob.device_id)
                await ann.say(group, WORDS["after the old one"])
                await heard(tablet, WORDS["after the old one"])
                needles |= {
                    "recovery key": recovery_key.replace("-", "").encode(),
                    "with dashes": recovery_key.encode(),
                }
                needles |= await secrets_of(ann, tablet)
                assert look(watched.places(), needles) == set()
                assert look({"vault": files(folder)}, {**needles, "vault key": vault_key}) == set()
    assert len(list(folder.iterdir())) >= 1
    assert look({"vault": files(folder), "files": files(watched.data)}, {**needles, "vault key": vault_key}) == set()
    kept = watched.people[1].vault
    assert isinstance(kept, MemoryVault)
    inside = b"\n".join(kept.everything().values())  # the same history, in a vault that is not encrypted
    missing = {"new device", "after the old one"}
    assert {name for _place, name in look({"vault": inside}, words())} >= set(WORDS) - missing - {"edited"}


async def test_what_is_said_to_the_server_is_found_by_the_same_look(watched: Watched) -> None:
    async with switched_on(watched.people) as (ann, bob, cid):
        room = (await ann.client.create_conversation("direct", [bob.user_id], encryption="server")).id
        group = (
            await ann.client.create_conversation(
                "group", [bob.user_id, cid.user_id], name="a group", encryption="server"
            )
        ).id
        await converse(room, group, ann, bob, cid)
        found = look(watched.places(), words())
    said = set(WORDS) - {"new device", "after the old one"}
    assert found == {(place, name) for place in ("files", "records", "traffic") for name in said}


async def test_words_that_a_careless_program_sends_in_the_clear_are_refused_and_kept_nowhere(watched: Watched) -> None:
    async with switched_on(watched.people) as (ann, bob, cid):
        room = await ann.direct(bob)
        assert not await cid.unreadable()
        naive = await careless(watched.house, watched.people[0])
        message_id = (await ann.say(room, "something"))[0]
        word = WORDS["message"]
        refused = [
            await naive.post(room, word, "careless"),
            await naive.http.put(f"/conversations/{room}/draft", json={"content": word}),
            await naive.http.patch(f"/messages/{message_id}", json={"content": word}),
            await naive.http.post(
                f"/conversations/{room}/scheduled", json={"content": word, "sendAt": "2036-01-31T12:00:00.000Z"}
            ),
            await naive.post(room, word, "careless-2", encrypted={"scheme": "double-ratchet", "envelopes": word}),
            await naive.http.post(f"/conversations/{room}/roster", json={"statement": word, "signature": word}),
        ]
        assert [each.status_code // 100 for each in refused] == [4] * len(refused), [each.text for each in refused]
        answers = b"\n".join(each.content for each in refused)
        places = {**watched.places(), "answers": answers}
    assert look(places, words()) == set()


async def careless(house: House, phone: Victim) -> Person:
    """The session of a device, in the hands of a program that knows no encryption."""
    state = await phone.state.load()
    assert state is not None
    client = await house.at_end.enter_async_context(house.http())
    client.headers["Authorization"] = f"Bearer {state.access_token}"
    entered = {"user": {"id": state.user_id}, "device": {"id": state.device_id}}
    return Person(house, client, phone.phone_number, {**entered, "accessToken": state.access_token, "refreshToken": ""})


@pytest.mark.parametrize("name", sorted(words()))
@pytest.mark.parametrize(
    "written",
    [
        lambda word: word,
        lambda word: word.decode().encode("utf-16-le"),
        lambda word: word.decode().encode("utf-16-be"),
        lambda word: word.hex().encode(),
        lambda word: word.hex().upper().encode(),
        lambda word: json.dumps(word.decode()).encode(),
        lambda word: quote(word.decode()).encode(),
        *(lambda word, at=at: base64.b64encode(b"." * at + word + b"??") for at in range(3)),
        *(lambda word, at=at: base64.urlsafe_b64encode(b"\xff" * at + word + b"\xff") for at in range(3)),
    ],
)
def test_a_word_is_found_however_it_is_written(name: str, written: Callable[[bytes], bytes]) -> None:
    place = {"place": b"\x00before " + written(words()[name]) + b" behind\xff"}
    assert look(place, words()) == {("place", name)}
    assert look({"place": place["place"].swapcase()[::-1]}, words()) == set()
