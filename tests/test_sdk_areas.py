"""The SDK against the real server, area by area: what people do, and what the others' clients hear of it."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import trio

from gearlink import calls, protocol, views
from gearlink.sdk import Client, MemoryState, Options, Refused, open_client
from tests.handsets import Handset, verify
from tests.house import SECONDS_MAX, House, open_house
from tests.pictures import CANARY, exif, jpeg

E = TypeVar("E")
OPTIONS = Options(ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # none is used, and the usual one loads slowly


class Party:
    """A server, and clients of people who signed up on it."""

    def __init__(self, house: House, nursery: trio.Nursery) -> None:
        self.house = house
        self._nursery = nursery
        self._numbers = 0
        self._phones: dict[str, str] = {}

    async def newcomer(self, name: str, phone_number: str | None = None, **more: Any) -> Client:
        """Somebody's client, signed in for as long as the server runs."""
        self._numbers += 1
        number = phone_number or f"+1555124{self._numbers:04}"
        client: Client = await self._nursery.start(self._stay)
        await self.sign_in(client, number, **more)
        await client.change_profile(calls.ProfileForm(display_name=name))
        self._phones[name] = number
        return client

    async def _stay(self, task_status: trio.TaskStatus[Client]) -> None:
        async with open_client(self.house.url, MemoryState(), OPTIONS) as client:
            task_status.started(client)
            await trio.sleep_forever()

    async def sign_in(self, client: Client, phone_number: str, **more: Any) -> calls.SignedIn:
        asked = await client.request_code(phone_number)
        code = await self.house.code(asked.verification_id)
        return await client.confirm(asked.verification_id, code, "test", "desktop", **more)

    def phone(self, name: str) -> str:
        return self._phones[name]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        yield opened


@pytest.fixture
def party(house: House, nursery: trio.Nursery) -> Party:
    return Party(house, nursery)


def me(client: Client) -> str:
    assert client.state.user_id is not None
    return client.state.user_id


async def heard(client: Client, form: type[E]) -> E:
    """The next event of this form; others are passed over."""
    with trio.fail_after(SECONDS_MAX):
        async for event in client.events():
            if isinstance(event, form):
                return event
    raise AssertionError("events are endless")


async def all_of(items: Any) -> list[Any]:
    return [item async for item in items]


@asynccontextmanager
async def together(*clients: Client) -> AsyncIterator[None]:
    """All of them connected, and told of the past."""
    async with trio.open_nursery() as nursery:
        leaving = trio.Event()

        async def stay(client: Client, task_status: trio.TaskStatus[None]) -> None:
            async with client.connect():
                await heard(client, protocol.SyncDone)
                task_status.started()
                await leaving.wait()

        for client in clients:
            await nursery.start(stay, client)
        try:
            yield
        finally:
            leaving.set()


async def refused(code: str, awaitable: Any) -> None:
    with pytest.raises(Refused) as told:
        await awaitable
    assert told.value.code == code


async def test_contacts_blocks_and_privacy_are_kept_and_told_to_ones_other_device(party: Party) -> None:
    ann, bob = await party.newcomer("Ann"), await party.newcomer("Bob")
    again = await party.newcomer("Ann", party.phone("Ann"))
    async with together(again):
        assert (await ann.put_contact(me(bob), "Bobby")).nickname == "Bobby"
        assert (await heard(again, protocol.ContactChanged)).nickname == "Bobby"
        assert [each.user.id for each in await all_of(ann.contacts())] == [me(bob)]
        await ann.remove_contact(me(bob))
        assert (await heard(again, protocol.ContactRemoved)).user_id == me(bob)
        await ann.block(me(bob))
        assert (await heard(again, protocol.BlockAdded)).user_id == me(bob)
        assert [each.user.id for each in await all_of(ann.blocks())] == [me(bob)]
        assert await bob.discover([party.phone("Ann")]) == {}
        await ann.unblock(me(bob))
        assert (await heard(again, protocol.BlockRemoved)).user_id == me(bob)
        changed = await ann.change_privacy(calls.PrivacyForm(last_seen="nobody"))
        assert (changed.last_seen, await ann.privacy()) == ("nobody", changed)
        assert (await heard(again, protocol.PrivacyChanged)).privacy == changed


async def test_picture_is_put_fetched_and_taken_away(party: Party) -> None:
    ann = await party.newcomer("Ann")
    url = await ann.set_avatar(jpeg(exif()), "image/jpeg")
    assert (await ann.me()).avatar_url == url
    picture = await ann.avatar(url)
    assert picture.startswith(b"\xff\xd8") and CANARY not in picture
    await ann.remove_avatar()
    assert (await ann.me()).avatar_url is None
    group = await ann.create_conversation("group", encryption="server", name="us")
    url = await ann.set_conversation_avatar(group.id, jpeg(), "image/jpeg")
    assert (await ann.conversation(group.id)).avatar_url == url
    await ann.remove_conversation_avatar(group.id)
    await refused("unsupported-media-type", ann.set_avatar(b"GIF89a", "image/gif"))


async def test_deleted_account_comes_back_with_a_sign_in_that_says_so(party: Party) -> None:
    ann = await party.newcomer("Ann")
    await ann.delete_account()
    assert not ann.signed_in
    await refused("account-deleted", party.sign_in(ann, party.phone("Ann")))
    signed = await party.sign_in(ann, party.phone("Ann"), restore_account=True)
    assert (signed.is_new_user, signed.user.display_name) == (False, "Ann")


async def test_keys_are_published_counted_and_claimed_by_somebody_else(party: Party) -> None:
    ann, bob = await party.newcomer("Ann"), await party.newcomer("Bob")
    assert await bob.key_status() == views.KeyStatus(one_time_remaining=0, digest=None)
    assert await ann.claim_keys(me(bob)) == []
    phone = Handset("bob's phone")
    status = await bob.upload_keys(msgspec.convert(phone.upload(1), calls.KeysForm))
    assert msgspec.to_builtins(status) == phone.status(1)
    for one_time in (True, False):
        [bundle] = await ann.claim_keys(me(bob))
        assert (bundle.device_id, bundle.identity_key) == (bob.state.device_id, phone.identity_key)
        verify(msgspec.to_builtins(bundle))
        assert (bundle.one_time_pre_key is not msgspec.UNSET) == one_time
        assert (bundle.last_resort_pre_key is msgspec.UNSET) == one_time
    assert msgspec.to_builtins(await bob.key_status()) == phone.status(0)
    [device] = await ann.devices_of(me(bob))
    assert (device.device_id, device.identity_key) == (bob.state.device_id, phone.identity_key)
    nobody = "019a0000-0000-7000-8000-000000000000"
    await refused("not-found", ann.claim_keys(nobody))
    await refused("not-found", ann.devices_of(nobody))


async def test_settings_links_requests_and_bans_of_a_group(party: Party) -> None:
    ann, bob, cat = [await party.newcomer(name) for name in ("Ann", "Bob", "Cat")]
    group = (
        await ann.create_conversation(
            "group", encryption="server", name="us", settings=calls.SettingsForm(write="admins")
        )
    ).id
    changed = await ann.change_settings(group, calls.SettingsForm(write="everyone", disappearing_seconds=3600))
    assert isinstance(changed.settings, views.SettingsView)
    assert (changed.settings.write, changed.settings.disappearing_seconds) == ("everyone", 3600)
    link = await ann.create_link(group, uses_max=2, needs_approval=True)
    assert (await bob.preview_link(link.code)).name == "us"
    async with together(ann, bob):
        assert (await bob.join(link.code)).status == "requested"
        assert (await heard(ann, protocol.JoinRequested)).request.user_id == me(bob)
        await cat.join(link.code)
        assert {each.user_id for each in await all_of(ann.join_requests(group))} == {me(bob), me(cat)}
        await ann.approve_request(group, me(bob))
        assert (await heard(bob, protocol.ConversationCreated)).conversation.id == group
        joined = await heard(ann, protocol.MemberJoined)
        assert (joined.user_id, joined.by) == (me(bob), "request")
        await cat.withdraw_request(group)
        await heard(ann, protocol.JoinSettled)
        await ann.change_member(group, me(bob), "admin")
        assert (await heard(bob, protocol.MemberChanged)).role == "admin"
        await ann.ban(group, me(bob))
        assert (await heard(bob, protocol.MemberLeft)).how == "banned"
    await refused("banned", bob.join(link.code))
    assert [each.user_id for each in await all_of(ann.bans(group))] == [me(bob)]
    await ann.unban(group, me(bob))
    await ann.revoke_link(group, link.id)
    assert await all_of(ann.links(group)) == []
    await refused("not-found", bob.preview_link(link.code))


async def test_what_one_keeps_for_oneself_reaches_ones_other_device_alone(party: Party) -> None:
    ann, bob = await party.newcomer("Ann"), await party.newcomer("Bob")
    again = await party.newcomer("Ann", party.phone("Ann"))
    direct = (await ann.create_conversation("direct", [me(bob)], encryption="server")).id
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    async with together(again, bob):
        view = await ann.change_preferences(
            direct, calls.PreferencesForm(muted_until=until, archived=True, pinned=True)
        )
        assert view.archived and view.muted_until and view.pinned_at
        assert (await heard(again, protocol.ConversationPreferences)).archived
        assert [each.id for each in await all_of(ann.conversations(archived=True))] == [direct]
        assert await all_of(ann.conversations(archived=False)) == []
        view = await ann.change_preferences(direct, calls.PreferencesForm(muted_until=None, archived=False))
        assert (view.muted_until, view.archived) == (None, False)
        await ann.set_draft(direct, "I wanted to say")
        assert (await heard(again, protocol.DraftChanged)).draft.content == "I wanted to say"
        assert [each.content for each in await all_of(ann.drafts())] == ["I wanted to say"]
        await ann.remove_draft(direct)
        assert (await heard(again, protocol.DraftChanged)).draft.content is None
        bob.typing(direct)
        assert (await heard(again, protocol.Typing)).user_id == me(bob)


async def test_what_becomes_of_a_message_is_told_in_order_without_a_hole(party: Party) -> None:
    ann, bob = await party.newcomer("Ann"), await party.newcomer("Bob")
    group = (await ann.create_conversation("group", [me(bob)], encryption="server", name="us")).id
    losses: list[str] = []
    async with together(bob), ann.connect(lambda online, detail: None if online else losses.append(detail)):
        sent = await ann.send(group, "helo @all", mentions=["all"])
        assert (await heard(bob, protocol.MessageNew)).message.mentions == ["all"]
        await ann.edit(sent.message_id, "hello")
        assert (await heard(bob, protocol.MessageEdited)).content == "hello"
        assert [each.content for each in await all_of(ann.revisions(sent.message_id))] == ["helo @all"]
        await bob.react(sent.message_id, "👍")
        assert (await heard(ann, protocol.ReactionAdded)).reactions[0].count == 1
        assert [each.user_id for each in await all_of(ann.reactions(sent.message_id, "👍"))] == [me(bob)]
        await bob.unreact(sent.message_id, "👍")
        await heard(ann, protocol.ReactionRemoved)
        await ann.pin(sent.message_id)
        await heard(bob, protocol.MessagePinned)
        assert [each.id for each in await all_of(bob.pins(group))] == [sent.message_id]
        await ann.unpin(sent.message_id)
        await heard(bob, protocol.MessageUnpinned)
        reply = await bob.send(group, "hi", reply_to_id=sent.message_id)
        assert (await heard(ann, protocol.MessageNew)).message.thread_id == sent.message_id
        thread = await ann.thread(sent.message_id)
        assert (thread.reply_count, [each.id for each in thread.items]) == (1, [reply.message_id])
        await ann.mark_thread_read(sent.message_id, reply.sequence_number)
        assert [each.reply_count for each in await all_of(ann.threads(group))] == [1]
        await bob.delete(sent.message_id)
        await ann.delete(reply.message_id, for_everyone=True)
        assert (await heard(bob, protocol.MessageDeleted)).message_id == reply.message_id
        last = await ann.send(group, "still here")
        assert last.sequence_number == 9
        assert (await heard(bob, protocol.MessageNew)).message.sequence_number == 9
    assert losses == []


async def test_a_post_of_ones_own_is_no_hole_in_ones_events(party: Party) -> None:
    ann, bob = await party.newcomer("Ann"), await party.newcomer("Bob")
    direct = (await ann.create_conversation("direct", [me(bob)], encryption="server")).id
    losses: list[str] = []
    async with ann.connect(lambda online, detail: None if online else losses.append(detail)):
        await heard(ann, protocol.SyncDone)
        await ann.post(direct, "over HTTP")
        await bob.post(direct, "so I do")
        assert (await heard(ann, protocol.MessageNew)).message.content == "so I do"
    assert losses == []
    await bob.set_read(direct, 2)
    sent = (await anext(ann.history(direct, after=0)))[0]
    assert [each.status for each in await all_of(ann.deliveries(sent.id))] == ["READ"]


async def test_encrypted_message_goes_by_either_way_and_a_refusal_names_the_devices(party: Party) -> None:
    ann, bob = await party.newcomer("Ann"), await party.newcomer("Bob")
    again = await party.newcomer("Bob", party.phone("Bob"))
    for client in (ann, bob, again):
        await client.upload_keys(msgspec.convert(Handset(client.state.device_id or "").upload(), calls.KeysForm))
    room = await ann.create_conversation("direct", [me(bob)], encryption="e2ee")

    def to(*clients: Client) -> protocol.DoubleRatchetForm:
        return protocol.DoubleRatchetForm(
            envelopes=[
                protocol.EnvelopeForm(
                    user_id=me(each), device_id=str(each.state.device_id), type="prekey", body="Ym9keQ"
                )
                for each in clients
            ]
        )

    async with together(ann, bob):
        frame = protocol.Send(temp_id="t-1", conversation_id=room.id, encrypted=to(bob, ann))
        form = calls.MessageForm(temp_id="t-1", encrypted=to(bob, ann))
        for sending in (ann.submit(frame), ann.post_form(room.id, form)):
            with pytest.raises(Refused) as told:
                await sending
            no = told.value
            assert no.code == "stale-devices" and not no.retryable and no.changed == ()
            assert [each.device_id for each in no.missing] == [again.state.device_id]
            assert [(each.user_id, each.device_id) for each in no.extra] == [(me(ann), ann.state.device_id)]
        sent = await ann.submit(msgspec.structs.replace(frame, encrypted=to(bob, again)))
        silent = await ann.submit(
            protocol.Send(temp_id="t-2", conversation_id=room.id, kind="control", encrypted=to(again))
        )
        posted = await ann.post_form(room.id, calls.MessageForm(temp_id="t-3", encrypted=to(bob, again)))
        assert (sent.sequence_number, silent.sequence_number, posted.sequence_number) == (1, 2, 3)
        for number, (kind, has_one) in enumerate((("text", True), ("control", False), ("text", True)), start=1):
            message = (await heard(bob, protocol.MessageNew)).message
            assert (message.sequence_number, message.kind, message.content) == (number, kind, None)
            assert isinstance(message.encrypted, views.DoubleRatchetView)
            assert [each.device_id for each in message.encrypted.envelopes] == [bob.state.device_id] * has_one
        with pytest.raises(Refused, match="either a content or an encrypted one"):
            await ann.submit(protocol.Send(temp_id="t-4", conversation_id=room.id))


async def test_polls_places_cards_and_forwarded_messages(party: Party) -> None:
    ann, bob = await party.newcomer("Ann"), await party.newcomer("Bob")
    direct = (await ann.create_conversation("direct", [me(bob)], encryption="server")).id
    notes = (await bob.create_conversation("group", encryption="server", name="notes")).id
    async with together(ann, bob):
        poll = await ann.send_poll(direct, "When?", ["now", "later"])
        assert (await bob.vote(poll.message_id, [1])).my_options == [1]
        assert (await heard(ann, protocol.PollChanged)).poll.voters == 1
        assert [each.options for each in await all_of(ann.votes(poll.message_id))] == [[1]]
        assert (await ann.close_poll(poll.message_id)).closed_at
        await refused("poll-closed", bob.vote(poll.message_id, [0]))
        await ann.send_location(direct, 48.1, 11.5, "here")
        await ann.send_contact(direct, "Cat", phoneNumber="+15551239999")
        place = (await bob.history(direct, after=poll.sequence_number).__anext__())[0]
        assert place.kind == "location"
        forwarded = await bob.forward(notes, place)
        assert (await bob.message(forwarded.message_id)).forwarded == 1
        await refused("invalid-request", bob.forward(notes, await bob.message(poll.message_id)))
        await ann.send(direct, "gone soon", expires_in_seconds=3600)
        assert isinstance((await anext(ann.history(direct)))[0].expires_at, str)


async def test_scheduled_message_is_changed_and_cancelled(party: Party) -> None:
    ann, bob = await party.newcomer("Ann"), await party.newcomer("Bob")
    direct = (await ann.create_conversation("direct", [me(bob)], encryption="server")).id
    at = datetime.now(UTC) + timedelta(days=1)
    waiting = await ann.schedule(direct, "happy birthday", at.isoformat())
    changed = await ann.change_scheduled(waiting.id, calls.ScheduleChange(content="Happy birthday!"))
    assert [each.content for each in await all_of(ann.scheduled(direct))] == [changed.content] == ["Happy birthday!"]
    await ann.cancel_scheduled(waiting.id)
    assert await all_of(ann.scheduled(direct)) == []


async def test_watched_presence_is_told_and_asked_for_again_on_the_next_socket(party: Party) -> None:
    ann, bob = await party.newcomer("Ann"), await party.newcomer("Bob")
    await ann.create_conversation("direct", [me(bob)], encryption="server")
    await ann.put_contact(me(bob))
    await bob.put_contact(me(ann))
    async with together(ann):
        ann.watch([me(bob)])
        assert (await heard(ann, protocol.Presence)).status == "offline"
        async with together(bob):
            assert (await heard(ann, protocol.Presence)).status == "online"
            party.house.app.hub.close_all()
            assert (await heard(ann, protocol.Presence)).user_id == me(bob)


async def test_a_program_without_a_socket_polls_every_event_once_and_goes_on_where_it_was(party: Party) -> None:
    ann, bob = await party.newcomer("Ann"), await party.newcomer("Bob")
    direct = (await ann.create_conversation("direct", [me(bob)], encryption="server")).id
    for text in ("one", "two"):
        await bob.post(direct, text)
    events: list[Any] = []
    async for event in ann.poll():
        events.append(event)
        if len(events) == 3:
            break
    assert isinstance(events[0], protocol.ConversationCreated)
    assert [each.message.content for each in events[1:]] == ["one", "two"]
    polled = ann.poll(wait_seconds=SECONDS_MAX)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bob.post, direct, "three")
        with trio.fail_after(SECONDS_MAX):
            texts: list[Any] = []
            while "three" not in texts:  # what was handed out and never taken comes again
                event = await anext(polled)
                texts += [event.message.content] if isinstance(event, protocol.MessageNew) else []
    assert texts == ["one", "two", "three"]
    with trio.fail_after(SECONDS_MAX):
        await bob.post(direct, "four")
        event = await anext(polled)
    assert isinstance(event, protocol.MessageNew) and event.message.content == "four"
    assert ann.state.cursors[direct] == 3
