# ruff: noqa: RUF009 (knob() makes a dataclass field, which the linter cannot see)
"""Every setting of GearLink, each declared once: type, default, documentation, unit, range, reloadable or not, secret.

The loader, the annotated `gearlink.toml` and the environment twins are read from these declarations, and nothing else
may set a default. Sections are immutable values; a reload makes new ones. This module reads no file and no environment,
and does not check how settings fit together: `config.load` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Final, Literal, get_args

from config import forms
from config.knob import Knob, Value, knob

Registration = Literal["open", "invite", "closed"]
Provider = Literal["console", "webhook", "twilio"]
Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the server listens, how people reach it, and whom it trusts on the way."""

    listen: str = knob(
        "127.0.0.1:8080",
        """Address and port for HTTP and WebSocket. 127.0.0.1 is heard on this machine only, which is right behind a
        reverse proxy; 0.0.0.0 or [::] is heard on every network of the machine. Port 0 lets the system pick a free
        one; the line that the server prints at its start names it.""",
        form=forms.listen_address, flag="--listen",
    )
    public_url: str = knob(
        "",
        """The server's URL as people type it, for invite links and other addresses that leave the server; scheme and
        host only, such as "https://chat.example.org". Set it whenever a reverse proxy stands in front. Empty: made
        from `listen`.""",
        form=forms.base_url,
    )
    drain_seconds: float = knob(
        10.0,
        """How long an orderly stop (SIGTERM) waits for running requests and for clients to leave. Keep it below the
        time that your service manager grants before it kills. A second signal ends the wait at once.""",
        unit="seconds", low=0, high=600, reloadable=True,
    )
    notice_seconds: float = knob(
        0.5,
        """How long /readyz says 503 before the doors shut, so that a load balancer which asks it in time sends nobody to
        a server that is about to leave.""",
        unit="seconds", low=0, high=600, reloadable=True,
    )
    tls_certificate: str = knob(
        "",
        """Path of a PEM file with the certificate and its chain. With this and `tls_key` the server speaks TLS 1.3 and
        nothing else on its port. SIGHUP reads both files again, so a renewed certificate needs no restart; to switch
        TLS on or off does. Empty: no TLS, which is right behind a reverse proxy that has it.""",
        form=forms.file_path, reloadable=True,
    )
    tls_key: str = knob(
        "",
        """Path of the PEM file with the private key of `tls_certificate`, without a passphrase and readable to the
        server's user only.""",
        form=forms.file_path, reloadable=True,
    )
    trusted_proxies: tuple[str, ...] = knob(
        (),
        """IP addresses or CIDR blocks of your reverse proxies. What they say in X-Forwarded-For is believed as the
        client's address; from anybody else it is ignored. Behind a proxy this must be set, or all people share the
        proxy's rate limits. Never list networks from which clients come directly: they could pose as anyone.""",
        form=forms.network, reloadable=True,
    )
    cors_origins: tuple[str, ...] = knob(
        (),
        """Origins of other web sites whose pages may call this server from a browser, each exactly as the browser
        sends it, such as "https://app.example.org". The server's own pages and apps outside a browser need no
        entry.""",
        form=forms.web_origin, reloadable=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Where everything is kept."""

    data: str = knob(
        "gearlink-data",
        """Directory of the database and of the server's keys; it is made if it is missing, for the server's user only.
        A relative path starts at the directory in which the server was started. One server at a time can use it.""",
        form=forms.directory, flag="--data",
    )
    free_space_min_mib: int = knob(
        64,
        """When the file system of `data` has less room than this, messages and other changes are refused with a clear
        error while reading goes on; they work again by themselves once there is room. On a small file system a tenth
        of its size counts, if that is less. 0 switches the watch off, and a full disk then ends the server.""",
        unit="MiB", low=0, high=1024 * 1024,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Who may have an account, and how long a sign-in lasts."""

    registration: Registration = knob(
        "open",
        """Who may make an account: "open" is anybody with a phone number that can be verified; "invite" needs a
        one-use code or link from `gearlink invite`; "closed" is nobody. People who have an account can sign in
        whatever this says. The first account of a fresh server becomes its administrator.""",
        choices=get_args(Registration), reloadable=True,
    )
    access_token_minutes: int = knob(
        15,
        """How long an access token is good for. Clients renew it by themselves; a shorter life means more renewals.
        Logging a device out works at once, whatever this says.""",
        unit="minutes", low=1, high=1440,
    )
    refresh_token_days: int = knob(
        7,
        """How long a device that stays away remains signed in. Each renewal starts the time again; after it the phone
        number has to be verified anew.""",
        unit="days", low=1, high=365,
    )
    signing_key_days: int = knob(
        90,
        """Age at which the key that signs access tokens is replaced. Nobody is signed out by it: the old key stays
        valid for as long as tokens live that it signed.""",
        unit="days", low=1, high=3650,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How the code reaches a phone that signs up or in."""

    provider: Provider = knob(
        "console",
        """"console" prints the code on the server's standard output, for trying out and for small circles where the
        operator passes it on; "webhook" posts it, signed, to `webhook_url`, which fits any SMS gateway; "twilio" sends
        it through a Twilio account.""",
        choices=get_args(Provider),
    )
    code_minutes: int = knob(
        10,
        """How long a code can be used. It works once, and five wrong tries end it sooner.""",
        unit="minutes", low=1, high=60,
    )
    webhook_url: str = knob(
        "",
        """Where provider "webhook" posts number and code: https, or http to this machine.""",
        form=forms.webhook_url,
    )
    webhook_secret: str = knob(
        "",
        """The key with which provider "webhook" signs each post, so that the receiver can tell it from a forgery; at
        least 16 characters. The environment is a better place for it than this file.""",
        secret=True,
    )
    twilio_account_sid: str = knob(
        "",
        """The account of provider "twilio"; it begins with AC.""",
        form=forms.identifier,
    )
    twilio_auth_token: str = knob(
        "",
        """The password of the Twilio account. The environment is a better place for it than this file.""",
        form=forms.identifier, secret=True,
    )
    twilio_from: str = knob(
        "",
        """Sender of the text messages: a number of the Twilio account in international form such as "+15551230001", a
        sender name, or the SID of a messaging service.""",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one guest may ask of the server, so that there is enough for the others."""

    messages_per_second: float = knob(
        30.0,
        """Messages that one user may send a second, on average, over all devices and transports. 0 means no limit, and
        switches the limits of messages by device, by address and in KiB off as well.""",
        unit="a second", low=0, high=1_000_000, reloadable=True,
    )
    messages_burst: int = knob(
        60,
        """Messages that one user may send at once after a pause; where it is below `messages_per_second`, that counts.
        0 means no limit, for all that 0 for `messages_per_second` stands for.""",
        low=0, high=1_000_000, reloadable=True,
    )
    message_kib_per_second: int = knob(
        1024,
        """Content that one user may send a second, on average, over all devices and transports; twice as much at once.
        0 means no limit.""",
        unit="KiB a second", low=0, high=1024 * 1024, reloadable=True,
    )
    device_messages_per_second: float = knob(
        0.0,
        """Messages that one device may send a second, on average; twice as many at once. 0 means no limit besides
        that of its user.""",
        unit="a second", low=0, high=1_000_000, reloadable=True,
    )
    device_message_kib_per_second: int = knob(
        0,
        """Content that one device may send a second, on average; twice as much at once. 0 means no limit besides
        that of its user.""",
        unit="KiB a second", low=0, high=1024 * 1024, reloadable=True,
    )
    address_messages_per_second: float = knob(
        2000.0,
        """Messages that may come from one address a second, on average; twice as many at once. An address is one of
        IPv4 or a /64 network of IPv6. Many people may share one, so it should not be small. 0 means no limit.""",
        unit="a second", low=0, high=1_000_000, reloadable=True,
    )
    address_message_kib_per_second: int = knob(
        32_768,
        """Content that may come from one address a second, on average; twice as much at once. 0 means no limit.""",
        unit="KiB a second", low=0, high=1024 * 1024, reloadable=True,
    )
    edit_hours: int = knob(
        48,
        """How long after it was sent a message can be edited, by its author. 0 means no limit.""",
        unit="hours", low=0, high=1_000_000, reloadable=True,
    )
    delete_hours: int = knob(
        0,
        """How long after it was sent a message can be deleted for everyone by its author. Who may delete what others
        wrote always can, and for oneself everybody. 0 means no limit.""",
        unit="hours", low=0, high=1_000_000, reloadable=True,
    )
    verifications_per_hour: int = knob(
        10,
        """Verification codes that may be asked for, and sign-ins that may be tried, in an hour: from one address and
        for one phone number, each counted apart. Each code may cost you a text message. 0 means no limit.""",
        unit="an hour", low=0, high=1_000_000, reloadable=True,
    )
    requests_per_second: float = knob(
        2000.0,
        """REST calls that one user may make a second, on average; callers who are not signed in are counted by their
        address. 0 means no limit.""",
        unit="a second", low=0, high=1_000_000, reloadable=True,
    )
    requests_burst: int = knob(
        4000,
        """REST calls that one user or address may make at once after a pause; where it is below `requests_per_second`,
        that counts. 0 means no limit, whatever `requests_per_second` says.""",
        low=0, high=1_000_000, reloadable=True,
    )
    connections_per_user: int = knob(
        20,
        """WebSocket connections that one user may hold open, over all devices. 0 means no limit.""",
        low=0, high=1_000_000, reloadable=True,
    )
    connections_max: int = knob(
        20_000,
        """Connections that the whole server holds open; beyond it new ones are turned away. Each needs a file
        descriptor and some 35 KB of memory: raise the process's limit of open files (LimitNOFILE) along with it.""",
        low=1, high=1_000_000,
    )
    pending_connections_per_address: int = knob(
        4096,
        """Connections from one address that have not authenticated yet. It keeps one silent host from taking every
        place; many people may share an address, so it should not be small.""",
        low=1, high=1_000_000, reloadable=True,
    )
    key_claims_per_hour: int = knob(
        1000,
        """One-time pre-keys that one user may claim in an hour, to open encrypted sessions; of any one person a
        twenty-fifth of that, but 40 at least. It keeps users from using up the keys of others. 0 means no limit.""",
        unit="an hour", low=0, high=1_000_000, reloadable=True,
    )
    discoveries_per_hour: int = knob(
        500,
        """Hashed phone numbers that one user may look up in an hour to find contacts. Phone numbers are few enough to
        try them all, so this is what protects them. 0 means no limit.""",
        unit="an hour", low=0, high=1_000_000, reloadable=True,
    )
    group_members_max: int = knob(
        10_000,
        """Members that a group or channel may have. Who is already in stays when this is lowered.""",
        low=2, high=100_000, reloadable=True,
    )
    archive_mib: int = knob(
        256,
        """What one user may keep here encrypted: backups of keys and history, and history on its way to a new device. The
        server cannot read it. What is there already stays when this is lowered. 0 means that no archives are kept.""",
        unit="MiB", low=0, high=1024 * 1024, reloadable=True,
    )
    outbox_kib: int = knob(
        1024,
        """What may wait in memory for one connection that reads slowly. Beyond it the connection is closed with 4408
        and the client resumes where it was, so nothing is lost.""",
        unit="KiB", low=64, high=65536,
    )
    body_kib: int = knob(
        256,
        """The largest body of a REST call; a larger one is refused with 413.""",
        unit="KiB", low=32, high=65536,
    )
    frame_kib: int = knob(
        128,
        """The largest WebSocket frame that a client may send; a larger one closes its connection. A text of the largest
        size (16 KiB) takes up to 96 KiB when a client escapes its characters, and the first frame of a client with 2000
        conversations up to 116 KiB: below that some are refused what the protocol allows.""",
        unit="KiB", low=32, high=1024,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long the server keeps what it is not asked to keep for ever."""

    ciphertext_days: int = knob(
        60,
        """How long the ciphertext of an end-to-end encrypted message waits for devices that do not fetch it. It goes as
        soon as all of them have it; after this time it goes anyway, and a device that comes later has to ask the sender
        for it. That the message was sent remains.""",
        unit="days", low=1, high=3650, reloadable=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocket:
    """The live connections."""

    heartbeat_seconds: float = knob(
        30.0,
        """How often a quiet connection is asked for a sign of life; one that is silent for two of these is closed.
        Proxies often cut quiet connections after 60 seconds, so keep it below that.""",
        unit="seconds", low=5, high=600,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    """The log: JSON lines on standard error, without secrets, phone numbers or message texts."""

    level: Level = knob(
        "info",
        """The least urgent kind of line that is written. "debug" adds lines for every request and connection.""",
        choices=get_args(Level), reloadable=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The figures for Prometheus under /metrics."""

    token: str = knob(
        "",
        """With a token /metrics answers to whoever sends it as `Authorization: Bearer`, from anywhere, and to nobody
        else, on this machine neither. Empty: only to callers that come directly from this machine; a proxy here that
        does not pass X-Forwarded-For on counts as one, so set a token behind such a proxy. The environment is a better
        place for it than this file.""",
        form=forms.bearer_token, reloadable=True, secret=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All sections. `Settings()` is what a server without any configuration uses."""

    server: Server = field(default_factory=Server)
    storage: Storage = field(default_factory=Storage)
    auth: Auth = field(default_factory=Auth)
    verification: Verification = field(default_factory=Verification)
    limits: Limits = field(default_factory=Limits)
    retention: Retention = field(default_factory=Retention)
    websocket: WebSocket = field(default_factory=WebSocket)
    logging: Logging = field(default_factory=Logging)
    metrics: Metrics = field(default_factory=Metrics)


def _declarations() -> dict[str, Knob]:
    defaults = Settings()
    return {
        key: replace(setting.metadata["knob"], key=key)
        for section in fields(defaults)
        for setting in fields(getattr(defaults, section.name))
        for key in [f"{section.name}.{setting.name}"]
    }


KNOBS: Final[Mapping[str, Knob]] = MappingProxyType(_declarations())
"""Every declaration by its key `section.name`, in the order of the file."""

SECTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {name: type(getattr(Settings(), name)).__doc__ or "" for name in (section.name for section in fields(Settings))}
)
"""What each section is about, in the order of the file."""


def value_of(settings: Settings, key: str) -> Value:
    """The value of `section.name`. Raises KeyError for a setting that there is not."""
    knob_ = KNOBS[key]
    value: Value = getattr(getattr(settings, knob_.section), knob_.name)
    return value


def with_values(settings: Settings, values: Mapping[str, Value]) -> Settings:
    """The settings with some of them (`section.name`: value, already checked) exchanged. Raises KeyError."""
    sections = {name: getattr(settings, name) for name in SECTIONS}
    for key, value in values.items():
        knob_ = KNOBS[key]
        sections[knob_.section] = replace(sections[knob_.section], **{knob_.name: value})
    return Settings(**sections)
