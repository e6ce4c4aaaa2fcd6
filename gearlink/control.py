"""The operator's door: a Unix socket in the data directory, for `gearlink invite`, `user` and `keys roll`.

Who may open the socket may open the data, so its file mode (0600, in a 0700 directory) is the whole access check. One
connection carries one request and one answer, each one line of JSON. While no server runs there is no socket, and the
commands open the store themselves and call the same `Operator`.
"""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import trio

from config import limits
from gearlink.accounts import Accounts
from gearlink.complaints import decode_body
from gearlink.errors import Refusal
from gearlink.journal import logger
from gearlink.protocol import encode
from gearlink.standing import Standing
from gearlink.tokens import Tokens
from gearlink.views import Page, User

SOCKET_NAME = "control.sock"
_LINE_BYTES_MAX = 64 * 1024
_SECONDS_MAX = 30.0
_log = logger("control")


class _Command(msgspec.Struct, tag_field="command", forbid_unknown_fields=True):
    pass


class Invite(_Command, tag="invite"):
    days: Annotated[int, msgspec.Meta(ge=1, le=365)] = 7


class SetAdmin(_Command, tag="set-admin"):
    who: str
    is_admin: bool


class SetStanding(_Command, tag="set-standing"):
    who: str
    standing: Literal["active", "suspended", "deleted"]


class ListUsers(_Command, tag="list-users"):
    cursor: str | None = None


class RollKeys(_Command, tag="roll-keys"):
    pass


Command = Invite | SetAdmin | SetStanding | ListUsers | RollKeys


class Reply(msgspec.Struct, omit_defaults=True):
    """`error` is a line for the operator; otherwise what was asked for is there."""

    error: str = ""
    invite_code: str = ""
    url: str = ""
    users: list[User] = []
    next: str | None = None


class Operator:
    """What the person who runs the server may do without an account. `url` is where people reach it."""

    def __init__(self, accounts: Accounts, standing: Standing, tokens: Tokens, url: Callable[[], str]) -> None:
        self._accounts, self._standing, self._tokens, self._url = accounts, standing, tokens, url

    async def run(self, command: Command) -> Reply:
        """Does it. A refusal comes back as `error`."""
        try:
            match command:
                case Invite(days):
                    return Reply(invite_code=await self._accounts.create_invite(days=days), url=self._url())
                case SetAdmin(who, is_admin):
                    change = self._accounts.promote if is_admin else self._accounts.demote
                    return Reply(users=[await change(who)])
                case SetStanding(who, standing):
                    act = {"active": self._standing.restore, "suspended": self._standing.suspend}.get(
                        standing, self._standing.delete
                    )
                    return Reply(users=[await act(who)])
                case ListUsers(cursor):
                    page: Page[User] = await self._accounts.list_users(limits.PAGE_MAX, cursor)
                    return Reply(users=page.items, next=page.next)
                case RollKeys():
                    await self._tokens.roll()
                    return Reply()
        except Refusal as refusal:
            return Reply(error=refusal.detail)


@contextmanager
def _short_path(data: Path) -> Iterator[str]:
    """A name for the socket that fits into the 108 bytes of a socket address, however deep `data` lies."""
    whole = os.path.join(os.path.abspath(data), SOCKET_NAME)
    if len(whole.encode()) < 100 or not os.path.isdir("/proc/self/fd"):
        yield whole
        return
    directory = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET_NAME}"
    finally:
        os.close(directory)


async def serve(
    data: Path, operator: Operator, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answers operators until it is cancelled. Without a socket (a file system that has none) the server runs on."""
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short_path(data) as path:
        with suppress(OSError):  # the store's lock is ours, so an old socket is nobody's
            os.unlink(path)
        mask = os.umask(0o177)
        try:
            await sock.bind(path)
        except OSError as trouble:
            _log.warning("control.no-socket", trouble=trouble)
            sock.close()
            task_status.started()
            return
        finally:
            os.umask(mask)
    sock.listen(8)
    try:
        task_status.started()
        await trio.serve_listeners(partial(_answer, operator), [trio.SocketListener(sock)])
    finally:
        with suppress(OSError):
            os.unlink(data / SOCKET_NAME)


async def _answer(operator: Operator, stream: trio.SocketStream) -> None:
    try:
        with trio.move_on_after(_SECONDS_MAX):
            line = await _read_line(stream)
            try:
                reply = await operator.run(decode_body(line, Command))  # type: ignore[arg-type]
            except Refusal as refusal:
                reply = Reply(error=refusal.detail)
            await stream.send_all(encode(reply) + b"\n")
        await stream.aclose()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    except* Exception as trouble:  # noqa: BLE001 - one command's bug is not the server's end
        _log.error("control.bug", trouble=trouble)


async def _read_line(stream: trio.abc.ReceiveStream) -> bytes:
    data = bytearray()
    while b"\n" not in data and len(data) <= _LINE_BYTES_MAX:
        received = await stream.receive_some()
        if not received:
            break
        data += received
    return bytes(data.partition(b"\n")[0])


def is_served(data: Path) -> bool:
    """Whether a server may be running on this data: there is a socket."""
    try:
        return stat.S_ISSOCK((data / SOCKET_NAME).stat().st_mode)
    except OSError:
        return False


async def ask(data: Path, command: Command) -> Reply:
    """Sends `command` to the server that runs on this data. Raises OSError if none answers."""
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short_path(data) as path:
        await sock.connect(path)
    async with trio.SocketStream(sock) as stream:
        with trio.fail_after(_SECONDS_MAX):
            await stream.send_all(encode(command) + b"\n")
            return msgspec.json.decode(await _read_line(stream), type=Reply)
