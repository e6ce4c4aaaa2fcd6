"""The house: builds it from the settings, nests its lifetimes, and takes it down in order.

Lifetime is indentation. The store is opened first and closed last; inside it live the tasks backstage; inside those the
sessions; the doors are opened when everything stands. The end goes the other way: the doors shut, guests are told and get
`drain_seconds`, backstage stops, the store makes durable what waits and closes. This module and `gearlink.cli` are the
only ones that name an implementation.
"""

import gc
import ssl
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import trio
from trio_websocket import WebSocketConnection

from config.forms import split_address
from config.load import SettingsError, reload_difference
from config.settings import Settings, value_of, with_values
from gearlink import control, journal, upkeep, ws_session
from gearlink.accounts import Accounts
from gearlink.amendments import Amendments
from gearlink.archives import END_ARCHIVES, Archives
from gearlink.avatars import Avatars
from gearlink.broker import Broker
from gearlink.ciphertexts import FORGET_DEVICE, FORGET_ENVELOPES, Ciphertexts
from gearlink.clock import Clock, new_id
from gearlink.conversations import Conversations
from gearlink.device_lists import DeviceLists
from gearlink.domain import Domain
from gearlink.doorway import Doorway
from gearlink.errors import ExitStatus, Fatal
from gearlink.expiry import expire
from gearlink.http_api import app as http_app
from gearlink.hub import Hub
from gearlink.invitations import Invitations
from gearlink.journal import Metrics, correlation_id, logger
from gearlink.keyring import Keyring
from gearlink.listen import GuestStream, ListenConfig, Listener, Peer, open_tcp_listeners, tls_context
from gearlink.members import Members
from gearlink.messages import Messages
from gearlink.peers import network_of
from gearlink.people import People
from gearlink.polls import Polls
from gearlink.preferences import Preferences
from gearlink.presence import Presence
from gearlink.pressure import Pressure
from gearlink.profiles import Profiles
from gearlink.reactions import Reactions
from gearlink.receipts import Receipts
from gearlink.reports import Reports
from gearlink.rosters import Rosters
from gearlink.schedule import Schedule
from gearlink.sms import Provider
from gearlink.standing import Standing
from gearlink.storms import Storms
from gearlink.sync import Sync
from gearlink.threads import Threads
from gearlink.throttle import Budget
from gearlink.timers import Step, Timers
from gearlink.tokens import Tokens
from gearlink.verification import Verification
from storage.embedded import EmbeddedStore, open_store
from storage.store import StoreBroken, StoreDenied, StoreError, StoreForeign, StoreFull, StoreLocked

_log = logger("app")
_STATUS = {
    StoreLocked: ExitStatus.DATA_LOCKED,
    StoreForeign: ExitStatus.DATA_FOREIGN,
    StoreDenied: ExitStatus.NO_RIGHTS,
    StoreFull: ExitStatus.DISK_FULL,
    StoreBroken: ExitStatus.STORAGE_FAILED,
}
_ANSWERS_SECONDS_MAX = 5.0  # how long a drain waits for the disk to answer what was accepted


@dataclass(slots=True)
class House:
    """A server that runs. `closing` ends it in order; `url` is where it listens."""

    settings: Settings
    store: EmbeddedStore
    clock: Clock
    metrics: Metrics
    tokens: Tokens
    domain: Domain
    budget: Budget
    pressure: Pressure
    storms: Storms
    timers: Timers
    ciphertexts: Ciphertexts
    broker: Broker
    hub: Hub
    closing: trio.Event
    tls: ssl.SSLContext | None = None
    http: http_app.App | None = None
    listener: Listener | None = None
    is_ready: bool = False
    url: str = ""

    def operator(self) -> control.Operator:
        """What the operator's commands call."""
        return control.Operator(
            self.domain.accounts,
            self.domain.standing,
            self.tokens,
            lambda: self.settings.server.public_url or self.url or _url(self.settings),
        )

    def reload(self, fresh: Settings) -> list[str]:
        """Takes over the settings that may change while the server runs; returns the keys that wait for a restart.

        Raises Fatal, and changes nothing, if a new certificate cannot be used.
        """
        now, later = reload_difference(self.settings, fresh)
        settings = with_values(self.settings, {key: value_of(fresh, key) for key in now})
        self.tls = _tls(settings)
        self.settings = settings
        self.domain.reload(settings)
        self.ciphertexts.reload(settings)
        if self.http is not None:
            self.http.reload(settings)
        if self.listener is not None:
            self.listener.reload(_listen_config(settings))
        self.budget.reload(settings.limits)
        self.hub.connections_per_user = settings.limits.connections_per_user
        journal.set_level(settings.logging.level)
        return list(later)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    server = settings.server
    if not server.tls_certificate:
        return None
    try:
        return tls_context(server.tls_certificate, server.tls_key)
    except OSError as trouble:
        reason = trouble.strerror or "not a certificate and key that belong together"
        raise Fatal(
            ExitStatus.TLS, f"TLS cannot start: {server.tls_certificate}, {server.tls_key}: {reason}"
        ) from trouble


def fatal_of(trouble: StoreError) -> Fatal:
    """The line and exit status for a store that cannot be used."""
    return Fatal(_STATUS.get(type(trouble), ExitStatus.STORAGE_FAILED), trouble.line)


def furnish(settings: Settings, store: EmbeddedStore, clock: Clock, metrics: Metrics, sms: Provider | None) -> House:
    """Everything but the doors, wired together. Nothing runs yet."""
    tokens = Tokens(store, clock, settings)
    pressure = Pressure(metrics, lambda: store.backlog)
    budget, storms = Budget(settings.limits), Storms(store, clock)
    device_lists = DeviceLists()
    ciphertexts = Ciphertexts(store, clock, device_lists, settings)
    domain = _rules(settings, store, clock, metrics, sms, tokens, pressure, budget, storms, device_lists, ciphertexts)
    broker = Broker()
    hub = Hub(
        clock,
        metrics,
        domain.presence,
        heartbeat_seconds=settings.websocket.heartbeat_seconds,
        connections_per_user=settings.limits.connections_per_user,
    )
    broker.subscribe(hub.hear)
    store.listen(broker.publish)
    return House(
        settings=settings,
        store=store,
        clock=clock,
        metrics=metrics,
        tokens=tokens,
        domain=domain,
        budget=budget,
        pressure=pressure,
        storms=storms,
        timers=Timers(store, clock, _steps(store, clock, domain, ciphertexts)),
        ciphertexts=ciphertexts,
        broker=broker,
        hub=hub,
        closing=trio.Event(),
        tls=_tls(settings),
    )


def _rules(
    settings: Settings,
    store: EmbeddedStore,
    clock: Clock,
    metrics: Metrics,
    sms: Provider | None,
    tokens: Tokens,
    pressure: Pressure,
    budget: Budget,
    storms: Storms,
    device_lists: DeviceLists,
    ciphertexts: Ciphertexts,
) -> Domain:
    verification = Verification(store, clock, settings, metrics, pressure, sms)
    messages = Messages(store, clock, budget, pressure, metrics, device_lists)
    members = Members(store, clock, budget, settings.limits.group_members_max)
    return Domain(
        accounts=Accounts(store, clock, settings, metrics, tokens, verification, device_lists),
        verification=verification,
        standing=Standing(store, clock, metrics, device_lists),
        people=People(store, clock),
        profiles=Profiles(store, clock, settings),
        avatars=Avatars(store, clock),
        keyring=Keyring(store, clock, settings, device_lists),
        device_lists=device_lists,
        conversations=Conversations(store, clock, budget, members_max=settings.limits.group_members_max),
        members=members,
        invitations=Invitations(store, clock, members, budget),
        preferences=Preferences(store, clock),
        messages=messages,
        amendments=Amendments(store, clock, budget, settings, pressure),
        reactions=Reactions(store, clock, budget, storms),
        polls=Polls(store, clock, budget, storms),
        threads=Threads(store, clock),
        schedule=Schedule(store, clock, messages),
        receipts=Receipts(store, clock, messages, pressure, acknowledged=ciphertexts.note),
        presence=Presence(store, clock, pressure),
        rosters=Rosters(store, clock, budget),
        archives=Archives(store, clock, settings),
        reports=Reports(metrics),
    )


def _steps(store: EmbeddedStore, clock: Clock, domain: Domain, ciphertexts: Ciphertexts) -> dict[str, Step]:
    """What to do when something is due, by `Due.what`."""

    async def expire_messages(conversation_id: str, _owner_id: str, sequences: Sequence[int]) -> None:
        await expire(store, clock, conversation_id, sequences)

    async def send(scheduled_id: str, user_id: str, _numbers: Sequence[int]) -> None:
        await domain.schedule.send_due(scheduled_id, user_id)

    async def close_poll(message_id: str, _owner_id: str, _numbers: Sequence[int]) -> None:
        await domain.polls.close_due(message_id)

    async def forget(message_id: str, _owner_id: str, _numbers: Sequence[int]) -> None:
        await domain.amendments.forget(message_id)

    async def erase_account(user_id: str, _owner_id: str, _numbers: Sequence[int]) -> None:
        await domain.standing.erase(user_id)

    async def forget_envelopes(conversation_id: str, _owner_id: str, sequences: Sequence[int]) -> None:
        await ciphertexts.forget_envelopes(conversation_id, sequences)

    async def forget_device(device_id: str, user_id: str, _numbers: Sequence[int]) -> None:
        await ciphertexts.forget_device(user_id, device_id)

    async def end_archives(user_id: str, _owner_id: str, _numbers: Sequence[int]) -> None:
        await domain.archives.expire(user_id)

    return {
        "expire": expire_messages,
        "send": send,
        "close-poll": close_poll,
        "forget": forget,
        "erase-account": erase_account,
        FORGET_ENVELOPES: forget_envelopes,
        FORGET_DEVICE: forget_device,
        END_ARCHIVES: end_archives,
    }


async def serve(
    settings: Settings,
    *,
    clock: Clock | None = None,
    sms: Provider | None = None,
    measures_load: bool = True,
    task_status: trio.TaskStatus[House] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The whole life of a server. Started with its `House` once it can be used; ends after `House.closing` is set.

    Without `measures_load` nothing is shed but what the caller's own `House.pressure` says: a test decides on the load.
    Raises Fatal, with the exit status and one line, if the environment does not let it start or go on.
    """
    clock, metrics = clock or Clock(), Metrics()
    async with AsyncExitStack() as cellar:
        try:
            store = await cellar.enter_async_context(
                open_store(
                    Path(settings.storage.data),
                    now=clock.now(),
                    fresh_id=new_id(),
                    free_bytes_min=settings.storage.free_space_min_mib << 20,
                    observe=lambda operation, seconds: metrics.db_duration.labels(operation).observe(seconds),
                    report=lambda trouble: _log.error("storage.trouble", trouble=trouble),
                )
            )
        except StoreError as trouble:
            raise fatal_of(trouble) from trouble
        house = furnish(settings, store, clock, metrics, sms)
        try:
            await house.tokens.ready()
        except StoreError as trouble:
            raise fatal_of(trouble) from trouble
        listeners = await open_tcp_listeners(settings.server.listen)
        async with trio.open_nursery() as backstage:
            await backstage.start(house.domain.verification.run)
            await backstage.start(house.domain.receipts.run)
            await backstage.start(house.domain.presence.run)
            await backstage.start(house.storms.run)
            await backstage.start(house.timers.run)
            await backstage.start(house.ciphertexts.run)
            if measures_load:
                await backstage.start(house.pressure.run)
            await backstage.start(house.hub.flusher.run)
            await backstage.start(house.hub.sweep)
            await backstage.start(upkeep.run, store, clock, house.tokens)
            await backstage.start(control.serve, Path(settings.storage.data), house.operator())
            async with trio.open_nursery() as sessions:
                listener = _doors(house)
                await sessions.start(listener.serve, listeners)
                house.url = _url(settings, listeners[0].socket.getsockname()[1])
                house.is_ready = True
                task_status.started(house)
                await _wait_for_the_end(house)
                await _drain(house, listener)
            await house.domain.presence.flush()
            backstage.cancel_scope.cancel(reason="the doors are shut and the guests have left")
        if store.failed.is_set():
            raise Fatal(
                ExitStatus.STORAGE_FAILED, "a write to the disk failed: see the log, check the disk, start again"
            )


def _doors(house: House) -> Listener:
    settings = house.settings
    doorway = Doorway(
        store=house.store,
        domain=house.domain,
        hub=house.hub,
        broker=house.broker,
        pressure=house.pressure,
        clock=house.clock,
        metrics=house.metrics,
        outbox_bytes_max=settings.limits.outbox_kib * 1024,
    )

    async def on_websocket(
        websocket: WebSocketConnection, stream: GuestStream, peer: Peer, sent_id: str | None
    ) -> None:
        correlation_id.set(sent_id or new_id())
        await ws_session.host(websocket, stream, doorway, network_of(peer.address))

    def on_refused(reason: str) -> None:
        house.metrics.connections_refused.labels(reason).inc()

    def on_crash(crash: BaseException) -> None:
        house.metrics.connection_crashes.inc()
        _log.error("connection.crash", trouble=crash)

    house.domain.sync = Sync(doorway).answer
    house.http = http_app.build(
        house.domain, settings, house.metrics, ready=lambda: house.is_ready, jwks=house.tokens.jwks
    )
    config = _listen_config(settings)
    house.listener = Listener(
        house.http, on_websocket, config, tls=lambda: house.tls, on_crash=on_crash, on_refused=on_refused
    )
    return house.listener


def _listen_config(settings: Settings) -> ListenConfig:
    return ListenConfig(
        connections_max=settings.limits.connections_max,
        pending_connections_per_address=settings.limits.pending_connections_per_address,
        trusted_proxies=settings.server.trusted_proxies,
        frame_bytes_max=settings.limits.frame_kib * 1024,
    )


def _url(settings: Settings, port: int | None = None) -> str:
    """Where the server listens; `port` is the one that the system chose, if it did."""
    host, named_port = split_address(settings.server.listen)
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if settings.server.tls_certificate else 'http'}://{shown}:{port or named_port}"


async def _wait_for_the_end(house: House) -> None:
    """Until somebody asks for it, or the store takes no more writes."""
    async with trio.open_nursery() as nursery:

        async def watch(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel(reason="the server ends")

        nursery.start_soon(watch, house.closing)
        nursery.start_soon(watch, house.store.failed)


async def _drain(house: House, listener: Listener) -> None:
    """Not ready any more; then doors shut, guests told and answered; after `drain_seconds` who is left is put out."""
    house.is_ready = False
    await trio.sleep(house.settings.server.notice_seconds)
    _log.info("app.drain", sessions=house.hub.session_count, drain_seconds=house.settings.server.drain_seconds)
    listener.shut()
    house.hub.say_goodbye()

    async def nothing(_tx: object) -> None:
        """Behind everything that was accepted before: when this is done, all of that has been answered."""

    with trio.move_on_after(house.settings.server.drain_seconds):
        with trio.move_on_after(_ANSWERS_SECONDS_MAX):
            await house.domain.receipts.flush()
            with suppress(StoreError):
                await house.store.write(nothing)
        house.hub.close_all()
        await listener.drained()
    listener.evict("the drain is over")


async def run(settings: Settings, load: Callable[[], Settings], announce: Callable[[str], None]) -> None:
    """`serve` with the signals of a process: TERM and INT drain, a second one ends at once, HUP reloads."""
    import signal

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            house: House = await nursery.start(_served, settings, nursery.cancel_scope)
            gc.collect()
            gc.freeze()  # what is there now stays: a full collection need not look at it again, and holds the loop less long
            announce(f"gearlink is ready at {house.url}")
            async for number in signals:
                if number == signal.SIGHUP:
                    _reload(house, load)
                elif house.closing.is_set():
                    nursery.cancel_scope.cancel(reason="a second signal")
                else:
                    house.closing.set()


async def _served(
    settings: Settings, process: trio.CancelScope, *, task_status: trio.TaskStatus[House] = trio.TASK_STATUS_IGNORED
) -> None:
    await serve(settings, task_status=task_status)
    process.cancel(reason="the server has ended")


def _reload(house: House, load: Callable[[], Settings]) -> None:
    """What is wrong with the new settings is logged, and the old ones stay."""
    try:
        waiting = house.reload(load())
    except SettingsError as trouble:
        _log.error("settings.refused", complaints=[str(complaint) for complaint in trouble.complaints])
    except Fatal as trouble:
        _log.error("settings.refused", complaints=[trouble.line])
    else:
        _log.info("settings.reloaded", wait_for_restart=waiting)
