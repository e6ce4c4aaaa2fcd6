"""What the house says to its operator: structured log lines and metrics.

Log lines are JSON on standard error, written by a thread behind a bounded queue, so that a log pipe that nobody reads
costs lines (counted) and never holds the loop. Every line carries the correlation id of the request or socket that caused
it. No line, label or metric holds message content, a token, a code or a phone number: values under such names are masked,
and an exception is told by its types and places, never by its text. `Metrics` belongs to one server and is made with it.
"""

import logging
import queue
import sys
import threading
import traceback
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, BinaryIO, Final

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

correlation_id: ContextVar[str] = ContextVar("correlation_id", default="")

_MASKED = frozenset(
    {
        "access_token",
        "refresh_token",
        "token",
        "authorization",
        "cookie",
        "code",
        "invite_code",
        "secret",
        "private_key",
    }
    | {"phone", "phone_number", "number", "content", "text", "body", "password", "temp_id"}
)
_QUEUE_LINES_MAX = 10_000
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class LineWriter:
    """Writes lines to `sink` from a thread of its own. A full queue drops the line and counts it in `dropped`."""

    def __init__(self, sink: BinaryIO) -> None:
        self.dropped = 0
        self._sink = sink
        self._lines: queue.Queue[bytes | None] = queue.Queue(_QUEUE_LINES_MAX)
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def close(self, seconds_max: float = 2.0) -> None:
        """Writes what waits, for `seconds_max` at most."""
        try:
            self._lines.put(None, timeout=seconds_max)
        except queue.Full:
            return
        self._thread.join(seconds_max)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._sink.write(line)
                if self._lines.empty():
                    self._sink.flush()
            except (OSError, ValueError):  # nobody is there to tell: the sink is what is broken
                self.dropped += 1


class _Sink:
    """What structlog calls; the writer behind it changes when the server starts and in tests."""

    writer: LineWriter | None = None

    def msg(self, line: bytes) -> None:
        if self.writer is not None:
            self.writer.write(line + b"\n")

    debug = info = warning = error = critical = msg


_sink = _Sink()


def _finish(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in line:
        if key in _MASKED:
            line[key] = "[masked]"
    if (trouble := line.pop("trouble", None)) is not None:
        line["exception"] = describe_exception(trouble)
    if identifier := correlation_id.get():
        line.setdefault("correlation_id", identifier)
    return line


def _render(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> bytes:
    return msgspec.json.encode(line, enc_hook=lambda value: type(value).__name__)


def configure(level: str = "info", sink: BinaryIO | None = None) -> LineWriter:
    """Sends all log lines from `level` up (`debug`, `info`, `warning`, `error`) to `sink`, by default standard error."""
    writer = LineWriter(sink if sink is not None else sys.stderr.buffer)
    _sink.writer = writer
    set_level(level)
    return writer


def set_level(level: str) -> None:
    """From now on log lines from `level` up."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _finish,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_names: _sink,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge()], level=max(_LEVELS[level], logging.WARNING), force=True)


def _dropped() -> int:
    return _sink.writer.dropped if _sink.writer is not None else 0


class _Bridge(logging.Handler):
    """Lines of libraries. Only their origin and the place of an exception: their texts may quote what a peer sent."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(component=record.name)
        trouble = record.exc_info[1] if record.exc_info else None
        fields = {"trouble": trouble} if trouble is not None else {}
        log.log(record.levelno, "library.log", place=f"{record.module}:{record.lineno}", **fields)


def logger(name: str) -> Any:
    """A logger whose lines carry `component: name`."""
    return structlog.get_logger(component=name)


def describe_exception(trouble: BaseException) -> list[str]:
    """Types and places of `trouble`, its causes and its group members, innermost call last; never their texts."""
    lines = []
    for link in _chain(trouble):
        frames = traceback.extract_tb(link.__traceback__)[-12:]
        places = " > ".join(f"{frame.filename.rsplit('/', 2)[-1]}:{frame.lineno} {frame.name}" for frame in frames)
        lines.append(f"{type(link).__name__} at {places}")
    return lines


def _chain(trouble: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    todo = [trouble]
    while todo and len(links) < 16:
        link = todo.pop(0)
        links.append(link)
        if isinstance(link, BaseExceptionGroup):
            todo.extend(link.exceptions)
        follow = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
        if follow is not None and follow not in links:
            todo.append(follow)
    return links


_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Every metric of one server. Label values come from code alone, never from what a peer sent."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=_FAST)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self.message_send = counter("message_send_total", "Sends by how they ended.", "status")
        self.message_send_latency = histogram("message_send_latency_seconds", "From a send's arrival to its ack.")
        self.message_delivery_latency = histogram(
            "message_delivery_latency_seconds", "From a send's arrival to its last hand-over to a socket's outbox."
        )
        self.messages_lost = counter(
            "messages_lost_total", "Acknowledged messages found missing. Anything but 0 is a bug."
        )
        self.websocket_connections = gauge("websocket_connections", "Authenticated sockets.")
        self.websocket_sent = counter("websocket_messages_sent_total", "Frames put into outboxes.")
        self.websocket_received = counter("websocket_messages_received_total", "Frames read from clients.")
        self.websocket_errors = counter(
            "websocket_errors_total", "Refused frames and sockets closed for cause.", "code"
        )
        self.http_duration = histogram("http_request_duration_seconds", "REST calls.", "method", "route")
        self.http_requests = counter("http_requests_total", "REST calls.", "method", "route", "status")
        self.db_duration = histogram("db_query_duration_seconds", "Store operations.", "operation")
        self.verification_sent = counter("verification_sent_total", "Codes handed to the provider.", "outcome")
        self.audit_events = counter("audit_events_total", "Security events that the log tells in full.", "event")
        self.connections_refused = counter(
            "connections_refused_total", "Connections turned away at the door.", "reason"
        )
        self.connection_crashes = counter("connection_crashes_total", "Connections ended by an unexpected exception.")
        self.load_level = gauge("load_level", "How much is shed: 0 nothing, 1 typing, and so on up to 5, messages.")
        self.load_shed = counter("load_shed_total", "What was left undone or put off because of the load.", "what")
        self.undecryptable = counter(
            "gearlink_undecryptable_total", "Messages that devices say they could not decrypt.", "reason"
        )
        gauge("log_lines_dropped", "Log lines lost because nobody read the log.").set_function(_dropped)


OPERATOR: Final = "operator"
SERVER: Final = "server"
"""Who did it (`by` of an audit line) where no user did: the server does by itself what was due."""


def audit(metrics: Metrics, event: str, *, level: str = "info", **fields: str | bool) -> None:
    """Tells of a security event, in the log and as a count. `by` is who did it: a user's id, `OPERATOR` or `SERVER`."""
    metrics.audit_events.labels(event).inc()
    getattr(_audit_log, level)(event, **fields)


_audit_log = logger("audit")
