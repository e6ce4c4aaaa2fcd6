"""Operating: the program as its operator meets it, from the first line to the exit status."""

import argparse
import datetime
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from trio_websocket import open_websocket_url

from config.load import load
from config.settings import with_values
from gearlink import app, cli
from gearlink.errors import ExitStatus, Fatal
from storage.engine import Engine
from tests.fakes import FakeClock
from tests.house import SECONDS_MAX, SECRETS, House, Wire, open_house

ROOT = Path(__file__).resolve().parents[2]
ANN, BOB, EVE = "+15551230001", "+15551230002", "+15551230003"


def environment(**settings: str) -> dict[str, str]:
    clean = {key: text for key, text in os.environ.items() if not key.startswith("GEARLINK_")}
    given = {f"GEARLINK_{key.upper()}": text for key, text in settings.items()}
    return {**clean, "PYTHONPATH": str(ROOT), **given}


class Server:
    """`gearlink serve` as a process."""

    def __init__(self, process: trio.Process, log: Path) -> None:
        self.process, self._log = process, log
        self._data = b""
        self.url = ""

    async def line(self) -> str:
        """The next line on standard output; empty at its end."""
        assert self.process.stdout is not None
        with trio.fail_after(SECONDS_MAX):
            while b"\n" not in self._data:
                received = await self.process.stdout.receive_some()
                if not received:
                    return ""
                self._data += received
        line, _, self._data = self._data.partition(b"\n")
        return line.decode()

    async def log(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """The log's lines, once `count` of them tell of `event`. Every line has to be JSON."""
        with trio.fail_after(SECONDS_MAX):
            while True:
                lines = [json.loads(line) for line in self._log.read_text().split("\n")[:-1]]
                if sum(line["event"] == event for line in lines) >= count:
                    return lines
                await trio.sleep(0.01)  # the log is a file: nothing tells when it grows

    async def end(self) -> int:
        """The exit status."""
        with trio.fail_after(SECONDS_MAX):
            return await self.process.wait()

    async def sign_up(self, number: str, invite: str = "") -> tuple[httpx.Response, httpx.AsyncClient]:
        client = httpx.AsyncClient(base_url=self.url + "/api/v1", timeout=SECONDS_MAX)
        asked = (await client.post("/auth/verify/request", json={"phoneNumber": number})).json()
        words = (await self.line()).split()
        assert words[:2] == ["verification", "code"] and words[3:] == ["for", number]
        form = {"verificationId": asked["verificationId"], "code": words[2], "device": {"name": "x", "type": "bot"}}
        answer = await client.post("/auth/verify/confirm", json=form | ({"inviteCode": invite} if invite else {}))
        client.headers["Authorization"] = f"Bearer {answer.json().get('accessToken')}"
        return answer, client


@asynccontextmanager
async def serving(data: Path, *flags: str, prefix: tuple[str, ...] = (), **settings: str) -> AsyncIterator[Server]:
    """The server as a process, ready; killed at the end if it still runs."""
    log = data.with_suffix(".log")
    command = [
        *prefix,
        sys.executable,
        "-m",
        "gearlink",
        "serve",
        "--data",
        str(data),
        "--listen",
        "127.0.0.1:0",
        *flags,
    ]
    with log.open("wb") as errors:
        process = await trio.lowlevel.open_process(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment(**settings), cwd=data.parent
        )
    assert process.stdout is not None
    async with process.stdout:
        try:
            server = Server(process, log)
            ready = await server.line()
            assert ready.startswith("gearlink is ready at http://127.0.0.1:"), log.read_text()
            server.url = ready.split()[-1]
            yield server
        finally:
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                    await process.wait()
    assert not SECRETS.search(log.read_text())


async def command(data: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[bytes]:
    """Another `gearlink` command on this data."""
    return await trio.run_process(
        [sys.executable, "-m", "gearlink", *arguments, "--data", str(data)],
        capture_stdout=True, capture_stderr=True, check=False, env=environment(**settings), cwd=data.parent,
    )  # fmt: skip


# --- start and end ---------------------------------------------------------------------------------------------------


async def test_it_says_when_it_is_ready_logs_json_and_ends_in_order(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with serving(data) as server:
        _answer, client = await server.sign_up(ANN)
        async with aclosing(client):
            assert (await client.get("/users/me")).json()["isAdmin"] is True
        taken = server.url.rpartition("/")[2]
        for other, flags, status, words in (
            (tmp_path / "other", ("--listen", taken), ExitStatus.ADDRESS, "in use"),
            (data, ("--listen", "127.0.0.1:0"), ExitStatus.DATA_LOCKED, "in use"),
        ):
            ended = await command(other, "serve", *flags)
            assert_one_clear_line(ended, status, words)
        assert server.process.returncode is None
        server.process.send_signal(signal.SIGTERM)
        assert await server.end() == ExitStatus.OK
        assert await server.line() == ""  # it said nothing else
        assert [line["level"] for line in await server.log("app.drain")].count("error") == 0
        assert not (data / "control.sock").exists()


def everything(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*"))


def assert_one_clear_line(ended: subprocess.CompletedProcess[bytes], status: ExitStatus, words: str) -> None:
    assert ended.returncode == status, ended.stderr
    told = [line for line in ended.stderr.decode().splitlines() if not line.startswith("{")]
    assert len(told) == 1 and told[0].startswith("gearlink: ") and words in told[0], ended.stderr
    assert b"Traceback" not in ended.stderr and ended.stdout == b""


def foreign(data: Path) -> dict[str, str]:
    data.mkdir()
    (data / "thesis.txt").write_text("mine")
    return {}


def a_file(data: Path) -> dict[str, str]:
    data.write_text("mine")
    return {}


def newer(data: Path) -> dict[str, str]:
    data.mkdir()
    stamp = {"product": "gearlink", "format": 99, "compatible": 99, "created_at": 0}
    (data / "GEARLINK").write_text(json.dumps(stamp))
    return {}


def wrong_setting(_data: Path) -> dict[str, str]:
    return {"limits__outbox_kib": "canary"}


def unknown_setting(_data: Path) -> dict[str, str]:
    return {"limits__outbox_kip": "64"}


def no_certificate(data: Path) -> dict[str, str]:
    return {"server__tls_certificate": str(data / "none.pem"), "server__tls_key": str(data / "none.pem")}


def bad_certificate(data: Path) -> dict[str, str]:
    bad = data.with_name("bad.pem")
    bad.write_text("no certificate")
    return {"server__tls_certificate": str(bad), "server__tls_key": str(bad)}


def no_such_address(_data: Path) -> dict[str, str]:
    return {"server__listen": "192.0.2.77:8080"}


@pytest.mark.parametrize(
    ("make", "status", "words"),
    [
        (foreign, ExitStatus.DATA_FOREIGN, "thesis.txt"),
        (a_file, ExitStatus.DATA_FOREIGN, "not a directory"),
        (newer, ExitStatus.DATA_FOREIGN, "newer"),
        (wrong_setting, ExitStatus.SETTINGS, "limits.outbox_kib"),
        (unknown_setting, ExitStatus.SETTINGS, "did you mean"),
        (no_certificate, ExitStatus.TLS, "TLS cannot start"),
        (bad_certificate, ExitStatus.TLS, "TLS cannot start"),
        (no_such_address, ExitStatus.ADDRESS, "no address of this machine"),
    ],
)
async def test_what_keeps_it_from_starting_is_one_clear_line(
    tmp_path: Path, make: Any, status: ExitStatus, words: str
) -> None:
    data = tmp_path / "data"
    settings = make(data)
    before = everything(tmp_path)
    assert_one_clear_line(await command(data, "serve", **{"server__listen": "127.0.0.1:0", **settings}), status, words)
    if status is not ExitStatus.ADDRESS and status is not ExitStatus.TLS:
        assert everything(tmp_path) == before, "it left something behind"


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", server__drain_seconds="600") as server:
        host, port = server.url.removeprefix("http://").split(":")
        async with await trio.open_tcp_stream(host, int(port)) as guest:
            await guest.send_all(b"POST /api/v1/auth/refresh HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            async with httpx.AsyncClient() as client:  # so the first request is being served by now
                assert (await client.get(server.url + "/healthz")).status_code == 200
            server.process.send_signal(signal.SIGTERM)
            await server.log("app.drain")
            with trio.move_on_after(0.2):
                await server.process.wait()
            assert server.process.returncode is None
            server.process.send_signal(signal.SIGTERM)
            assert await server.end() == ExitStatus.OK


async def test_sighup_takes_over_what_it_can_and_refuses_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "gearlink.toml"
    file.write_text('[logging]\nlevel = "warning"\n')
    async with serving(tmp_path / "data", "--config", str(file)) as server, httpx.AsyncClient() as client:

        async def hang_up(text: str, event: str, count: int = 1) -> list[dict[str, Any]]:
            file.write_text(text)
            server.process.send_signal(signal.SIGHUP)
            return await server.log(event, count)

        [refused] = await hang_up('[logging]\nlevel = "loud"\n', "settings.refused")
        assert refused["level"] == "error" and "logging.level" in json.dumps(refused)
        file.write_text('[logging]\nlevel = "debug"\n[limits]\nframe_kib = 65\n')
        server.process.send_signal(signal.SIGHUP)
        reloaded = [line for line in await server.log("settings.reloaded") if line["event"] == "settings.reloaded"]
        assert reloaded[0]["wait_for_restart"] == ["limits.frame_kib"]
        await client.get(server.url + "/healthz")
        assert (await server.log("http.request"))[-1]["level"] == "debug"
        server.process.send_signal(signal.SIGINT)
        assert await server.end() == ExitStatus.OK


async def test_a_reload_reaches_those_who_are_there(house: House) -> None:
    ann, bob = await house.people(2)
    group = await ann.open("group", bob)

    def reload(**changes: Any) -> None:
        values = {key.replace("__", "."): value for key, value in changes.items()}
        assert house.app.reload(with_values(house.app.settings, values)) == []

    reload(limits__messages_per_second=0.001, limits__messages_burst=1, limits__group_members_max=2)
    assert (await ann.post(group, "1", "1")).status_code == 201
    assert (await ann.post(group, "2", "2")).status_code == 429
    eve = await house.sign_up()
    answer = await ann.http.post(f"/conversations/{group}/members", json={"userIds": [eve.id]})
    assert answer.json()["code"] == "group-full"
    reload(limits__messages_per_second=0.0, limits__connections_per_user=1)
    assert (await ann.post(group, "2", "2")).status_code == 201
    async with ann.wire(), ann.wire(synced=False) as second:
        await second.refused("too-many-connections")
    reload(server__trusted_proxies=("127.0.0.1",), metrics__token="canary-token-of-the-operator")
    answer = await ann.http.get(house.url + "/metrics", headers={"X-Forwarded-For": "192.0.2.1"})
    assert answer.status_code == 404  # not direct any more
    given = {"Authorization": "Bearer canary-token-of-the-operator", "X-Forwarded-For": "192.0.2.1"}
    assert (await ann.http.get(house.url + "/metrics", headers=given)).status_code == 200


# --- the operator's commands -----------------------------------------------------------------------------------------


async def invite_code(data: Path) -> str:
    told = (await command(data, "invite", "--days", "3")).stdout.decode().splitlines()
    code = told[0].removeprefix("invite code: ")
    assert told[1].endswith(f"/?invite={code}") and "3 days" in told[2]
    return code


async def administer(data: Path, action: str, role: str) -> None:
    """The commands about users, whoever answers them."""
    assert (await command(data, "user", action, ANN)).returncode == 0
    lines = [line.split() for line in (await command(data, "user", "list")).stdout.decode().splitlines()]
    assert {line[2]: line[1] for line in lines} == {ANN: role, BOB: "user"}
    ended = await command(data, "user", "promote", "+15550009999")
    assert ended.returncode != 0 and ended.stderr.startswith(b"gearlink: ") and ended.stderr.count(b"\n") == 1


async def test_the_commands_work_with_a_server_and_without_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    ended = await command(data, "invite")
    assert ended.returncode == ExitStatus.UNREACHABLE and not data.exists()  # a mistyped place is not made
    async with serving(data):
        pass
    offline = await invite_code(data)
    async with serving(data, auth__registration="invite") as server:
        answer, client = await server.sign_up(ANN)
        await client.aclose()
        assert answer.json()["code"] == "invite-required"
        answer, ann = await server.sign_up(ANN, offline)
        online = await invite_code(data)
        for code, status in ((offline, 403), (online, 200)):
            answer, client = await server.sign_up(BOB, code)
            await client.aclose()
            assert answer.status_code == status
        async with aclosing(ann):
            await administer(data, "demote", "user")
            assert (await command(data, "keys", "roll")).returncode == 0
            keys = (await ann.get(server.url + "/.well-known/jwks.json")).json()["keys"]
            assert len(keys) == 2 and (await ann.get("/users/me")).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert await server.end() == 0
    await administer(data, "promote", "admin")
    assert (await command(data, "keys", "roll")).returncode == 0
    async with serving(data) as server, httpx.AsyncClient(headers=ann.headers) as client:
        assert len((await client.get(server.url + "/.well-known/jwks.json")).json()["keys"]) == 3
        assert (await client.get(server.url + "/api/v1/users/me")).status_code == 200
        server.process.kill()
        await server.end()
    assert (data / "control.sock").exists()  # left by the killed one, and no obstacle
    assert (await command(data, "user", "list")).returncode == 0


def commands(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from commands(child, (*path, name))


@pytest.mark.parametrize("path", list(commands(cli._parser())), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*path, "--help"])
    assert ended.value.code in (0, None)
    assert f"usage: gearlink{''.join(' ' + word for word in path)}" in " ".join(capsys.readouterr().out.split())


def test_the_settings_can_be_made_checked_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GEARLINK_")]:
        monkeypatch.delenv(name)
    assert cli.main(["config", "describe"]) == 0
    described = capsys.readouterr().out
    assert cli.main(["init", "--yes"]) == 0
    assert (tmp_path / "gearlink.toml").stat().st_mode & 0o077 == 0
    with (tmp_path / "gearlink.toml").open("a") as file:
        file.write("# mine\n")
    assert cli.main(["init", "--yes"]) == ExitStatus.SETTINGS  # it would be overwritten
    assert cli.main(["config", "check"]) == 0
    capsys.readouterr()
    monkeypatch.setenv("GEARLINK_LIMITS__MESSAGES_BURST", "77")
    assert cli.main(["config", "show", "--data", "elsewhere"]) == 0
    shown = capsys.readouterr().out
    assert "77" in shown and "elsewhere" in shown and "messages_burst" in described
    (tmp_path / "gearlink.toml").write_text('[limits]\nmessages_burst = "many"\n[sever]\n')
    assert cli.main(["config", "check"]) == ExitStatus.SETTINGS
    told = capsys.readouterr().err
    assert "gearlink.toml:2" in told and "did you mean [server]" in told and "Traceback" not in told


# --- TLS -------------------------------------------------------------------------------------------------------------


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for this machine, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = directory / "certificate.pem", directory / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


async def test_tls_from_end_to_end_and_a_renewed_certificate(tmp_path: Path) -> None:
    file, key = certificate(tmp_path, "first")
    first = ssl.create_default_context(cafile=str(file))
    tls = {"server__tls_certificate": str(file), "server__tls_key": str(key)}
    async with open_house(tmp_path / "data", **tls) as house:
        url = house.url.replace("127.0.0.1", "localhost")
        assert url.startswith("https://")
        async with httpx.AsyncClient(verify=first) as client:
            answer = await client.get(url + "/healthz")
            assert answer.status_code == 200 and "max-age" in answer.headers["Strict-Transport-Security"]
        async with open_websocket_url(
            url.replace("http", "ws", 1) + "/ws", ssl_context=first, subprotocols=["gearlink.v1"]
        ) as socket:
            wire = Wire(socket)
            await wire.say("ping")
            await wire.refused("not-authenticated")
            assert await wire.closed() == 4401
            await socket._stream.aclose()  # the library leaves it to the garbage collector
        old = ssl.create_default_context(cafile=str(file))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        async with httpx.AsyncClient(verify=old) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(url + "/healthz")
        certificate(tmp_path, "second")
        second = ssl.create_default_context(cafile=str(file))
        assert house.app.reload(house.app.settings) == []
        async with httpx.AsyncClient(verify=second) as client:
            assert (await client.get(url + "/healthz")).status_code == 200
        async with httpx.AsyncClient(verify=first) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(url + "/healthz")
        key.write_text("no key")
        with pytest.raises(Fatal) as refused:
            house.app.reload(house.app.settings)
        assert refused.value.status == ExitStatus.TLS
        async with httpx.AsyncClient(verify=second) as client:
            assert (await client.get(url + "/healthz")).status_code == 200


# --- a full disk -----------------------------------------------------------------------------------------------------


async def test_without_room_sends_are_refused_and_everything_else_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    async with open_house(tmp_path / "data", clock=clock, errors=True) as house:
        ann, bob = await house.people(2)
        conversation = await ann.open("direct", bob)
        await ann.post(conversation, "before", "t-1")
        clock.advance(minutes=14)  # so long that the socket's beginning would be noted
        monkeypatch.setattr(Engine, "has_room", lambda _engine: False)
        async with ann.wire() as wire:
            await wire.say("message:send", conversationId=conversation, content="canary", tempId="t-2")
            refused = await wire.refused("storage-full")
            assert refused["retryable"] and refused["retryAfterMs"] > 0 and refused["tempId"] == "t-2"
            answer = await ann.post(conversation, "canary", "t-2")
            assert (answer.status_code, answer.json()["code"]) == (507, "storage-full")
            assert (await ann.post(conversation, "before", "t-1")).status_code == 201  # that one is stored
            await wire.say("message:read", conversationId=conversation, sequenceNumber=1)
            assert await wire.fence() == []
            assert [message["content"] for message in await bob.history(conversation)] == ["before"]
            monkeypatch.undo()
            assert (await wire.send(conversation, "after", "t-2"))["sequenceNumber"] == 2


async def test_without_room_for_its_first_key_it_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "has_room", lambda _engine: False)
    settings = load(None, {}, {"storage.data": str(tmp_path / "data"), "server.listen": "127.0.0.1:0"})
    with pytest.RaisesGroup(Fatal, flatten_subgroups=True) as raised:
        await app.serve(settings)
    [fatal] = raised.value.exceptions
    while isinstance(fatal, BaseExceptionGroup):
        [fatal] = fatal.exceptions
    assert isinstance(fatal, Fatal) and fatal.status == ExitStatus.DISK_FULL


def can_mount() -> bool:
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def fill(file: Path) -> None:
    """Leaves 2 MiB of room."""
    room = os.statvfs(file.parent)
    file.write_bytes(bytes(room.f_bavail * room.f_frsize - (2 << 20)))


@pytest.mark.skipif(not can_mount(), reason="mounting a small file system takes root and a mount namespace")
async def test_a_disk_that_really_fills_up_damages_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=80m none {disk} && exec "$@"', "sh")
    async with serving(disk / "data", prefix=mount) as server:
        _answer, client = await server.sign_up(ANN)
        async with aclosing(client):
            conversation = (await client.post("/conversations", json={"type": "group", "encryption": "server"})).json()[
                "id"
            ]
            path = f"/conversations/{conversation}/messages"

            async def send(temp_id: str) -> httpx.Response:
                return await client.post(path, json={"content": "x", "tempId": temp_id})

            assert (await send("t-1")).status_code == 201
            filler = Path(f"/proc/{server.process.pid}/root{disk}/filler")
            fill(filler)
            refused = await send("t-2")
            assert (refused.status_code, refused.json()["code"]) == (507, "storage-full")
            assert len((await client.get(path)).json()["items"]) == 1
            os.unlink(filler)
            assert (await send("t-2")).json()["sequenceNumber"] == 2
        server.process.send_signal(signal.SIGTERM)
        assert await server.end() == ExitStatus.OK
