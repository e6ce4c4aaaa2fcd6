"""The commands. Each parses its flags, does one thing and ends with a status of `gearlink.errors.ExitStatus`.

What goes wrong in the environment is one clear line on standard error, never a traceback. Heavy imports happen inside the
command that needs them, so that `gearlink --help` and a client start at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gearlink import __version__
from gearlink.errors import ExitStatus, Fatal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from config.load import Loaded
    from gearlink.control import Command, Operator, Reply


def main(arguments: Sequence[str] | None = None) -> int:
    """The `gearlink` command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["chat"]:  # has a parser of its own
        return _chat(given[1:])
    if given[:1] == ["bot"]:
        return _bot(given[1:])
    options = _parser().parse_args(given)
    try:
        status = options.run(options)
    except Fatal as trouble:
        print(f"gearlink: {trouble.line}", file=sys.stderr)
        return int(trouble.status)
    except BrokenPipeError:  # `gearlink config show | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitStatus.OK)
    except KeyboardInterrupt:
        return 130
    return int(status or ExitStatus.OK)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gearlink",
        description="GearLink, a chat server that you run yourself. `gearlink serve` is all it takes to start.",
        epilog="Exit statuses: "
        + ", ".join(f"{each.value} {each.name.lower().replace('_', ' ')}" for each in ExitStatus),
    )
    parser.add_argument("--version", action="version", version=f"gearlink {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], int | None], help: str, **more: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help, **more)
        added.set_defaults(run=run)
        return added

    serve = command("serve", _serve, "run the server")
    _settings_flags(serve)
    serve.add_argument("--listen", metavar="HOST:PORT", help="where to listen (server.listen)")
    _init_command(command("init", _init, "write a gearlink.toml, asking at most three questions"))
    _config_commands(command("config", _no_command, "check or show the settings"))
    invite = command("invite", _invite, "make an invite that admits one newcomer")
    _settings_flags(invite)
    invite.add_argument("--days", type=int, default=7, help="how long it can be used (1 to 365, default 7)")
    _user_commands(command("user", _no_command, "list users; make admins; suspend, restore, delete"))
    keys = command("keys", _no_command, "the keys that sign access tokens").add_subparsers(
        required=True, metavar="ACTION"
    )
    roll = keys.add_parser("roll", help="sign with a new key from now on; nobody is logged out")
    _settings_flags(roll)
    roll.set_defaults(run=_roll_keys)
    commands.add_parser("chat", help="talk, in the terminal (see gearlink chat --help)")
    commands.add_parser("bot", help="run an example bot that answers (see gearlink bot --help)")
    return parser


def _settings_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the settings file (default: ./gearlink.toml if it is there)"
    )
    parser.add_argument("--data", metavar="DIR", help="where everything is kept (storage.data)")


def _no_command(_options: argparse.Namespace) -> int:
    raise AssertionError("argparse asks for an action first")


# --- settings --------------------------------------------------------------------------------------------------------


def _load(options: argparse.Namespace) -> "Loaded":
    """Settings from flags over environment over file. Raises Fatal with every complaint."""
    from config.load import SettingsError, find_file, load_with_origins

    flags = {"storage.data": getattr(options, "data", None), "server.listen": getattr(options, "listen", None)}
    overrides = {key: value for key, value in flags.items() if value is not None}
    try:
        return load_with_origins(find_file(options.config, os.environ, Path.cwd()), os.environ, overrides)
    except SettingsError as trouble:
        complaints = [str(complaint) for complaint in trouble.complaints]
        if len(complaints) == 1:
            raise Fatal(ExitStatus.SETTINGS, f"the settings cannot be used: {complaints[0]}") from None
        raise Fatal(ExitStatus.SETTINGS, "\n  ".join(["the settings cannot be used:", *complaints])) from None


def _config_commands(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, run, text in (
        ("check", _config_check, "say what is wrong with the settings, all at once"),
        ("show", _config_show, "print the settings in force and where each comes from"),
        ("describe", _config_describe, "print the annotated settings file with every default"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        _settings_flags(action)
        action.set_defaults(run=run)


def _config_check(options: argparse.Namespace) -> None:
    _load(options)
    print("the settings are good")


def _config_show(options: argparse.Namespace) -> None:
    from config.describe import show

    loaded = _load(options)
    print(show(loaded.settings, loaded.origins), end="")


def _config_describe(_options: argparse.Namespace) -> None:
    from config.describe import describe

    print(describe(), end="")


def _init_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=Path("gearlink.toml"), metavar="FILE", help="the file to write")
    parser.add_argument("--yes", action="store_true", help="ask nothing, take the defaults")
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")


def _init(options: argparse.Namespace) -> int:
    from config.setup import SetupError, set_up

    try:
        set_up(options.config, input, print, yes=options.yes, force=options.force)
    except SetupError as trouble:
        raise Fatal(ExitStatus.SETTINGS, str(trouble)) from None
    return ExitStatus.OK


# --- the server ------------------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    import trio

    from gearlink import app, journal

    settings = _load(options).settings
    writer = journal.configure(settings.logging.level)
    _raise_file_limit()
    try:
        trio.run(partial(app.run, settings, lambda: _load(options).settings, partial(print, flush=True)))
    except* Fatal as troubles:
        raise _first_fatal(troubles) from None
    finally:
        writer.close()
    return ExitStatus.OK


def _first_fatal(troubles: BaseExceptionGroup[Fatal]) -> Fatal:
    found: BaseException = troubles
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Fatal)
    return found


def _raise_file_limit() -> None:
    """Every socket is a file: take as many as the system lets this process have."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # some systems have a lower limit than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --- operators -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _operator(options: argparse.Namespace) -> "AsyncIterator[Operator]":
    """The operator's hand on the store itself, for when no server runs."""
    from gearlink import app, clock, journal
    from storage.embedded import open_store
    from storage.store import StoreError

    settings, time, metrics = _load(options).settings, clock.Clock(), journal.Metrics()
    writer = journal.configure("warning")  # the command itself says what it did
    try:
        async with open_store(Path(settings.storage.data), now=time.now(), fresh_id=clock.new_id()) as store:
            house = app.furnish(settings, store, time, metrics, None)
            await house.tokens.ready()
            yield house.operator()
    except* StoreError as troubles:
        found: BaseException = troubles
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        assert isinstance(found, StoreError)
        raise app.fatal_of(found) from None
    finally:
        writer.close()


def _ask(options: argparse.Namespace, command: "Command") -> "Reply":
    """Through the running server if there is one, else on the store itself. Raises Fatal."""
    import trio

    from gearlink import control

    data = Path(_load(options).settings.storage.data)
    if not (data / "GEARLINK").exists():  # the stamp of a store
        raise Fatal(
            ExitStatus.UNREACHABLE, f"there is no GearLink data in {data}: give the server's --data or --config"
        )

    async def asked() -> "Reply":
        if control.is_served(data):
            try:
                return await control.ask(data, command)
            except (ConnectionRefusedError, FileNotFoundError):  # left by a server that was killed
                pass
            except OSError as trouble:
                line = f"the server on {data} does not answer: {trouble.strerror or 'no answer'}"
                raise Fatal(ExitStatus.UNREACHABLE, line) from None
        async with _operator(options) as operator:
            return await operator.run(command)

    try:
        reply = trio.run(asked)
    except* Fatal as troubles:
        raise _first_fatal(troubles) from None
    if reply.error:
        raise Fatal(ExitStatus.BUG, reply.error)
    return reply


def _invite(options: argparse.Namespace) -> None:
    from gearlink.control import Invite

    if not 1 <= options.days <= 365:
        raise Fatal(ExitStatus.USAGE, "--days takes 1 to 365")
    reply = _ask(options, Invite(options.days))
    where = reply.url
    print(f"invite code: {reply.invite_code}")
    print(f"invite link: {where}/?invite={reply.invite_code}")
    print(
        f"It admits one person, for {options.days} days: gearlink chat signup --server {where} --invite {reply.invite_code} …"
    )


def _user_commands(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, run, text in (
        ("list", _user_list, "print every user"),
        ("promote", partial(_set_admin, True), "make a user an admin"),
        ("demote", partial(_set_admin, False), "make an admin a plain user"),
        ("suspend", partial(_set_standing, "suspended"), "sign a user out and keep them out; everything is kept"),
        ("restore", partial(_set_standing, "active"), "lift a suspension, or take a deletion back within its 30 days"),
        ("delete", partial(_set_standing, "deleted"), "delete an account: gone at once, erased after 30 days"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        _settings_flags(action)
        if name != "list":
            action.add_argument("who", help="phone number (+15551230001), username or id")
        action.set_defaults(run=run)


def _user_list(options: argparse.Namespace) -> None:
    from gearlink.control import ListUsers

    cursor: str | None = None
    while True:
        reply = _ask(options, ListUsers(cursor))
        for user in reply.users:
            role = "admin" if user.is_admin is True else "user"
            state = "  deleted" if user.is_deleted is True else "  suspended" if user.is_suspended is True else ""
            named = f"{user.username or '-'}  {user.display_name or '-'}"
            print(f"{user.id}  {role:5}  {user.phone_number}  {named}{state}")
        if (cursor := reply.next) is None:
            return


def _set_admin(is_admin: bool, options: argparse.Namespace) -> None:
    from gearlink.control import SetAdmin

    _ask(options, SetAdmin(options.who, is_admin))
    print(f"{options.who} is {'an admin' if is_admin else 'a plain user'} now")


def _set_standing(standing: Literal["active", "suspended", "deleted"], options: argparse.Namespace) -> None:
    from gearlink.control import SetStanding

    _ask(options, SetStanding(options.who, standing))
    print(f"{options.who} is {standing} now")


def _roll_keys(options: argparse.Namespace) -> None:
    from gearlink.control import RollKeys

    _ask(options, RollKeys())
    print("a new key signs from now on; tokens of the old ones stay valid until they run out")


# --- the client ------------------------------------------------------------------------------------------------------


def _chat(arguments: Sequence[str]) -> int:
    from gearlink import chat

    return int(chat.main(arguments))


def _bot(arguments: Sequence[str]) -> int:
    from gearlink.chat import bot

    return int(bot.main(arguments))
