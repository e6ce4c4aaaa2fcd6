"""Messages that go out later: held durably, changed or cancelled until then, sent once.

A scheduled message is the form that its writer filled in, and a time. When that comes it is sent by the rules of that
moment, in the same change that takes it off the list, so a crash neither loses nor doubles it. Who may not write there
any more gets it back with the code of the refusal. It names no device as its sender, so all of the writer's devices are
told like everybody else. Where they are no member any more it goes to nobody, and is forgotten.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec
from msgspec import UNSET, structs

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import MessageForm, ScheduleChange, ScheduleForm
from gearlink.clock import DAY, Clock, Milliseconds, new_id
from gearlink.cursors import decode_cursor, encode_cursor
from gearlink.errors import ACCOUNT_SUSPENDED, ALREADY_SENT, NOT_FOUND, TOO_MANY, Refusal, invalid
from gearlink.messages import Messages
from gearlink.personal import scheduled_view
from gearlink.rights import Right, enter
from gearlink.views import Page, ScheduledView
from storage.notices import Personal
from storage.records import Account, Conversation, Due, Scheduled, Sent
from storage.store import Store, Transaction

SEND = "send"  # of `Due.what`
_FIELDS = tuple(field.name for field in structs.fields(ScheduleForm) if field.name != "send_at")


def parse_time(text: str, path: str) -> Milliseconds:
    """RFC 3339 text as a time. Raises Refusal `invalid-request`, naming `path`."""
    try:
        return int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)  # year 10000 has no text
    except (ValueError, OverflowError, OSError):
        raise invalid(path, "not a time in the form of RFC 3339") from None


class Schedule:
    """The rules of scheduled messages over a store."""

    def __init__(self, store: Store, clock: Clock, messages: Messages) -> None:
        self._store, self._clock, self._messages = store, clock, messages

    async def add(self, actor: Actor, conversation_id: str, form: ScheduleForm) -> ScheduledView:
        """Holds the message until its time; the same again for a `tempId` that waits already.

        Raises Refusal `not-found`, `forbidden`, `refused-by-privacy`, `must-be-encrypted`, `too-many`, `rate-limited`,
        `already-sent` for a `tempId` whose message went out, `invalid-request` also for a time that has passed.
        """
        message = MessageForm(**{name: getattr(form, name) for name in _FIELDS})
        self._messages.admit(actor, message)
        now, send_at = self._clock.now(), self._future(form.send_at)
        scheduled = Scheduled(
            user_id=actor.user_id,
            scheduled_id=new_id(),
            conversation_id=conversation_id,
            device_id=actor.device_id,
            send_at=send_at,
            created_at=now,
            form=msgspec.json.encode(message),
        )

        async def change(tx: Transaction) -> Scheduled:
            await self._messages.check(tx, actor.user_id, conversation_id, message)
            waiting = await tx.scan(Scheduled, actor.user_id, limit=limits.SCHEDULED_PER_USER_MAX)
            for each in waiting:
                named = (each.device_id, each.conversation_id, _form(each).temp_id)
                if named == (actor.device_id, conversation_id, message.temp_id):
                    return each
            if await tx.get(Sent, actor.device_id, conversation_id, message.temp_id):
                raise Refusal(ALREADY_SENT)
            if len(waiting) >= limits.SCHEDULED_PER_USER_MAX:
                raise Refusal(TOO_MANY)
            self._put(tx, scheduled, actor.device_id)
            return scheduled

        return scheduled_view(await self._store.write(change))

    async def list(self, actor: Actor, conversation_id: str, limit: int, cursor: str | None) -> Page[ScheduledView]:
        """What the caller has scheduled there, in the order in which it was. Raises Refusal `not-found`."""
        await enter(self._store, actor.user_id, conversation_id, Right.READ)
        after = decode_cursor(cursor, 1)[0] if cursor else ""
        waiting = await self._store.scan(Scheduled, actor.user_id, limit=limits.SCHEDULED_PER_USER_MAX)
        found = [each for each in waiting if each.conversation_id == conversation_id and each.scheduled_id > after]
        more = encode_cursor(found[limit - 1].scheduled_id) if len(found) > limit else None
        return Page(items=[scheduled_view(each) for each in found[:limit]], next=more)

    async def change(self, actor: Actor, scheduled_id: str, form: ScheduleChange) -> ScheduledView:
        """Another time, another text; what could not go out is tried again. Raises Refusal `not-found`, and as `add`."""
        send_at = None if form.send_at is UNSET else self._future(form.send_at)

        async def change(tx: Transaction) -> Scheduled:
            scheduled = await _require(tx, actor.user_id, scheduled_id)
            message = _form(scheduled)
            if form.content is not UNSET:
                message = structs.replace(message, content=form.content)
            if form.mentions is not UNSET:
                message = structs.replace(message, mentions=form.mentions)
            self._messages.admit(actor, message)
            await self._messages.check(tx, actor.user_id, scheduled.conversation_id, message)
            if send_at is None and scheduled.trouble:
                raise invalid("sendAt", "say when it is to be tried again")
            tx.delete(Due, scheduled.send_at, SEND, scheduled_id, 0)
            changed = structs.replace(
                scheduled, send_at=send_at or scheduled.send_at, form=msgspec.json.encode(message), trouble=""
            )
            self._put(tx, changed, actor.device_id)
            return changed

        return scheduled_view(await self._store.write(change))

    async def cancel(self, actor: Actor, scheduled_id: str) -> None:
        """It does not go out. Raises Refusal `not-found`, also if it has gone out."""

        async def change(tx: Transaction) -> None:
            scheduled = await _require(tx, actor.user_id, scheduled_id)
            _remove(tx, scheduled)
            tx.announce(Personal((actor.user_id,), scheduled, gone=True, but_device_id=actor.device_id))

        await self._store.write(change)

    async def send_due(self, scheduled_id: str, user_id: str) -> None:
        """Sends it, if it still waits and its time has come; or notes why that cannot be."""
        now, message_id = self._clock.now(), new_id()
        tried: list[Scheduled] = []

        async def change(tx: Transaction) -> None:
            scheduled = await tx.get(Scheduled, user_id, scheduled_id)
            if scheduled is None or scheduled.trouble or scheduled.send_at > now:
                return
            tried.append(scheduled)
            account = await tx.get(Account, user_id)
            if account is None or not account.is_active:
                raise Refusal(ACCOUNT_SUSPENDED)
            if await tx.get(Conversation, scheduled.conversation_id) is not None:  # else it was deleted meanwhile
                accepted = await self._messages.compose(
                    tx, user_id, scheduled.device_id, scheduled.conversation_id, _form(scheduled), message_id, now,
                    by_server=True,
                )  # fmt: skip
                if accepted.repeated:  # by that name its writer has said something else meanwhile
                    raise Refusal(ALREADY_SENT)
            _remove(tx, scheduled)
            tx.announce(Personal((user_id,), scheduled, gone=True))

        try:
            await self._store.write(change)
        except Refusal as refusal:
            await self._store.write(_noting(tried[0], refusal.code))

    def _future(self, text: str) -> Milliseconds:
        at, now = parse_time(text, "sendAt"), self._clock.now()
        if at <= now:
            raise invalid("sendAt", "this time has passed")
        if at > now + limits.SCHEDULED_DAYS_MAX * DAY:
            raise invalid("sendAt", f"at most {limits.SCHEDULED_DAYS_MAX} days ahead")
        return at

    def _put(self, tx: Transaction, scheduled: Scheduled, device_id: str) -> None:
        tx.put(scheduled)
        tx.put(Due(scheduled.send_at, SEND, scheduled.scheduled_id, 0, scheduled.user_id))
        tx.announce(Personal((scheduled.user_id,), scheduled, but_device_id=device_id))


def _form(scheduled: Scheduled) -> MessageForm:
    return msgspec.json.decode(scheduled.form, type=MessageForm)


def _remove(tx: Transaction, scheduled: Scheduled) -> None:
    tx.delete(Scheduled, scheduled.user_id, scheduled.scheduled_id)
    tx.delete(Due, scheduled.send_at, SEND, scheduled.scheduled_id, 0)


def _noting(tried: Scheduled, code: str) -> Callable[[Transaction], Awaitable[None]]:
    """The change that gives `tried` back to its writer, with the code of the refusal."""

    async def change(tx: Transaction) -> None:
        user_id = tried.user_id
        if await tx.get(Scheduled, user_id, tried.scheduled_id) == tried:  # else its writer has changed it meanwhile
            returned = structs.replace(tried, trouble=code)
            tx.put(returned)
            tx.announce(Personal((user_id,), returned))

    return change


async def _require(tx: Transaction, user_id: str, scheduled_id: str) -> Scheduled:
    scheduled = await tx.get(Scheduled, user_id, scheduled_id)
    if scheduled is None:
        raise Refusal(NOT_FOUND)
    return scheduled
