"""A server as a process of its own, as an operator starts it: for the proof that kills it and the bench that measures it.

It is started with the interpreter that runs, on loopback only, without rate limits; its standard output is read by a
thread that picks out the verification codes and the line that says that the server can be used. It knows no protocol.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

REPOSITORY = Path(__file__).resolve().parent.parent
START_SECONDS_MAX = 60.0
END_SECONDS_MAX = 60.0
UNLIMITED = {
    "GEARLINK_LIMITS__MESSAGES_PER_SECOND": "0",
    "GEARLINK_LIMITS__VERIFICATIONS_PER_HOUR": "0",
    "GEARLINK_LIMITS__REQUESTS_PER_SECOND": "0",
    "GEARLINK_LIMITS__CONNECTIONS_PER_USER": "0",
    "GEARLINK_LIMITS__PENDING_CONNECTIONS_PER_ADDRESS": "1000000",
    "GEARLINK_LIMITS__KEY_CLAIMS_PER_HOUR": "0",
    "GEARLINK_WEBSOCKET__HEARTBEAT_SECONDS": "600",
}


class ServerFailed(Exception):
    """The server did not start, did not say what it should, or did not end as it should."""


class ServerProcess:
    """One run of `gearlink serve` on a data directory. `prefix` is a command that runs it, such as a tracer."""

    def __init__(
        self,
        data: Path,
        log: Path,
        *,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        inherited = {key: text for key, text in os.environ.items() if not key.startswith("GEARLINK_")}
        environment = {**inherited, **UNLIMITED, **(settings or {}), "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-P", "-m", "gearlink", "serve", "--data", str(data)]
        self.started_at = monotonic()
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [*prefix, *command, "--listen", f"127.0.0.1:{port}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=data.parent,
                start_new_session=True,  # a Ctrl-C ends the program that started this, and that ends the server
            )
        self._codes: dict[str, str] = {}
        self._url = ""
        self._ended = False
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            words = line.decode(errors="replace").split()
            with self._heard:
                if words[:4] == ["gearlink", "is", "ready", "at"]:
                    self._url = words[4]
                elif words[:2] == ["verification", "code"]:
                    self._codes[words[4]] = words[2]
                self._heard.notify_all()
        with self._heard:
            self._ended = True
            self._heard.notify_all()

    def _failed(self, what: str, seconds: float) -> ServerFailed:
        what = f"ended before it {what}" if self._ended else f"has not {what} within {seconds:g} s"
        return ServerFailed(f"the server {what}; the end of its log:\n{self.log_tail()}")

    def url(self, seconds: float = START_SECONDS_MAX) -> str:
        """Where it listens, once it can be used. Raises ServerFailed."""
        with self._heard:
            self._heard.wait_for(lambda: self._url or self._ended, seconds)
            if not self._url:
                raise self._failed("became ready", seconds)
            return self._url

    def code(self, phone_number: str, seconds: float = 30.0) -> str:
        """The newest verification code for this number that was not taken yet. Raises ServerFailed."""
        with self._heard:
            self._heard.wait_for(lambda: phone_number in self._codes or self._ended, seconds)
            if phone_number not in self._codes:
                raise self._failed("sent a verification code", seconds)
            return self._codes.pop(phone_number)

    def kill(self) -> None:
        """`kill -9`, and the process is gone when this returns."""
        if self.alive:
            self.strike()
        self._process.wait(END_SECONDS_MAX)
        self._reader.join(END_SECONDS_MAX)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def strike(self) -> None:
        """`kill -9` at this very moment, without waiting for the end."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def ask_to_end(self) -> None:
        """SIGTERM, to the server alone."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = END_SECONDS_MAX) -> int:
        """The exit status. Raises ServerFailed if it does not end."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"the server did not end within {seconds:g} s") from None

    def log_tail(self, lines_max: int = 20) -> str:
        """The last lines that it wrote on standard error."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines_max:])


@contextmanager
def running(server: ServerProcess) -> Iterator[ServerProcess]:
    """The server, killed at the end whatever happens."""
    try:
        yield server
    finally:
        server.kill()
