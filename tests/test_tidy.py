"""The rules of the house for its code, as a test: floors, sizes, docstrings, calls that are banned, words that are.

Every list of sinners is a ratchet: nobody may join, and whoever has mended their ways has to be struck off. What the
documents say is checked in `test_docs.py`. It reads source text and syntax trees; it imports nothing of GearLink.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("config", "storage", "transcoder", "admin", "gearlink")

CODE_LINES_MAX = 400  # neither blank, comment nor docstring
TEST_LINES_MAX = 500  # the same for a file of tests: it is read one test at a time
FUNCTION_LINES_MAX = 70
UNDOCUMENTED_LINES_MAX = 10  # a public function longer than this says what it does
TEST_NAME_WORDS_MIN = 3

# --- the tables -------------------------------------------------------------------------------------------------------

FLOORS = {
    "config": 0,
    "storage": 1,
    "transcoder": 1,
    **dict.fromkeys(("gearlink", "gearlink.errors", "gearlink.protocol", "gearlink.calls", "gearlink.statements"), 1),
    **dict.fromkeys(("gearlink.views", "gearlink.complaints"), 1),
    **dict.fromkeys(("gearlink.clock", "gearlink.journal"), 1),
    **dict.fromkeys(("gearlink.throttle", "gearlink.broker", "gearlink.tokens", "gearlink.sms"), 2),
    **dict.fromkeys(("gearlink.personal", "gearlink.pressure", "gearlink.images", "gearlink.contents"), 2),
    **dict.fromkeys(("gearlink.timeline", "gearlink.streams", "gearlink.frames", "gearlink.upgrade"), 2),
    **dict.fromkeys(("gearlink.peers", "gearlink.ports", "gearlink.problems", "gearlink.http_server"), 2),
    **dict.fromkeys(("gearlink.prekeys", "gearlink.device_lists"), 2),
    **dict.fromkeys(("gearlink.accounts", "gearlink.admission", "gearlink.verification"), 3),
    **dict.fromkeys(("gearlink.conversations", "gearlink.messages", "gearlink.receipts", "gearlink.avatars"), 3),
    **dict.fromkeys(("gearlink.rights", "gearlink.reading", "gearlink.counting", "gearlink.expiry"), 3),
    **dict.fromkeys(("gearlink.members", "gearlink.invitations", "gearlink.preferences"), 3),
    **dict.fromkeys(("gearlink.amendments", "gearlink.reactions", "gearlink.polls", "gearlink.threads"), 3),
    **dict.fromkeys(("gearlink.storms", "gearlink.schedule", "gearlink.people", "gearlink.standing"), 3),
    **dict.fromkeys(("gearlink.visibility", "gearlink.presence", "gearlink.profiles", "gearlink.overview"), 3),
    **dict.fromkeys(("gearlink.keyring", "gearlink.cursors", "gearlink.device_news"), 3),
    **dict.fromkeys(("gearlink.rosters", "gearlink.archives", "gearlink.reports"), 3),
    **dict.fromkeys(("gearlink.domain", "gearlink.timers", "gearlink.purge", "gearlink.ws_frames"), 4),
    **dict.fromkeys(("gearlink.hub", "gearlink.outbox", "gearlink.upkeep"), 4),
    **dict.fromkeys(
        ("gearlink.listen", "gearlink.doorway", "gearlink.ws_session", "gearlink.catchup", "gearlink.control"), 5
    ),
    "gearlink.sealing": 2,
    "gearlink.ciphertexts": 3,
    "gearlink.sync": 5,
    **dict.fromkeys(("gearlink.http_api", "admin"), 5),
    **dict.fromkeys(("gearlink.app", "gearlink.cli", "gearlink.__main__"), 6),
    # The garden: what the client is made of. It may be put on its own shelf one day.
    "gearlink.sdk.e2ee": 2,
    "gearlink.sdk": 2,
    "gearlink.sdk.secure": 3,
    "gearlink.terminal": 2,
    "gearlink.chat": 4,
}
"""The floor of each module; a package stands for all that is in it."""

NOT_YET = {"transcoder", "admin"}  # their floors are known, their modules come with a later release

_WIRE = {f"gearlink.{name}" for name in ("views", "complaints", "protocol", "calls", "errors", "statements")}
NARROW_DOORS = {
    "gearlink.sdk": {"config.limits", *_WIRE, "gearlink.sdk"},
    "gearlink.sdk.e2ee": {"config.limits", *_WIRE, "gearlink.sdk.e2ee"},
    "gearlink.terminal": {"config.limits"},
    "gearlink.chat": {"config.limits", *_WIRE, "gearlink.sdk", "gearlink.terminal", "gearlink.chat"},
    "storage": {"config", "storage"},
    "transcoder": {"config", "transcoder"},
}  # fmt: skip
"""Who may import nothing of ours but this."""

ONLY_FOR: dict[str, set[str]] = {
    "storage.embedded": {"gearlink.app", "gearlink.cli", "storage"},
    **{inner: {"storage"} for inner in ("storage.engine", "storage.keys", "storage.migrations", "storage.transaction")},
    "gearlink.sdk": {"gearlink.sdk", "gearlink.chat"},
    "gearlink.cli": {"gearlink.__main__"},
    "rocksdict": {"storage.engine"},
    "hypercorn": {"gearlink.listen", "gearlink.http_server"},
    "quart_trio": {"gearlink.http_api.app"},
    "trio_websocket": {
        *("gearlink.listen", "gearlink.frames", "gearlink.upgrade", "gearlink.ws_session", "gearlink.app"),
        "gearlink.sdk",
    },
    "wsproto": {"gearlink.frames", "gearlink.upgrade", "gearlink.sdk"},
    "structlog": {"gearlink.journal"},
    "logging": {"gearlink.journal"},
    "prometheus_client": {"gearlink.journal", "gearlink.http_api.system"},
    "jwt": {"gearlink.tokens"},
    "emoji": {"gearlink.reactions"},
    "nacl": {"gearlink.prekeys", "gearlink.sdk"},
    "httpx": {"gearlink.sms", "gearlink.sdk"},
    "keyring": {"gearlink.sdk.e2ee.unlocking"},
    "sqlcipher3": {"gearlink.sdk.e2ee.vault"},
    "phonenumbers": {"gearlink.verification"},
    "uuid_utils": {"gearlink.clock"},
    "threading": {"gearlink.journal", "gearlink.terminal"},
    **{nobodys: set() for nobodys in ("asyncio", "pickle", "subprocess", "multiprocessing", "sqlite3", "uuid")},
}  # fmt: skip
"""Modules that only some may import: implementations, libraries with one keeper, and what nobody may."""

STORE_OF_THE_DOORS = {
    "storage.store",
    "storage.records",
    "storage.events",
    "storage.notices",
}  # what floors 3 to 5 may see of the store

DISTRIBUTIONS = {
    "jwt": "pyjwt",
    "nacl": "pynacl",
    "phonenumbers": "phonenumberslite",
    "prometheus_client": "prometheus-client",
    "quart_trio": "quart-trio",
    "trio_websocket": "trio-websocket",
    "uuid_utils": "uuid-utils",
}

# --- the ratchets -----------------------------------------------------------------------------------------------------

LARGE_FILES = {
    "tests/test_http_api.py": 650,
    "tests/test_sdk.py": 620,
}
"""Sinners and the most code lines that they may have; a bound may stand at most 20 over the file."""

LONG_FUNCTIONS: set[str] = set()
UNDOCUMENTED = {
    "gearlink/http_server.py:HttpConnection.protocol_send",
    "gearlink/http_server.py:HttpConnection.run",
}
UNDECLARED = {"h11", "outcome"}  # they come through hypercorn and trio
BANNED = {
    # The stream below bounds each write, ours and those ahead of ours.
    "gearlink/http_server.py: a shield without a deadline",
    # The garden may not import gearlink.clock; it takes its clock as an option.
    "gearlink/sdk/options.py: wall time, outside of gearlink/clock.py",
}

# --- reading ----------------------------------------------------------------------------------------------------------

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    path: str
    name: str
    text: str
    tree: ast.Module = field(repr=False)

    @property
    def folder(self) -> str:
        """The package that it is a part of."""
        return self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]

    def imports(self) -> Iterator[tuple[str, bool]]:
        """Every imported module, lazy ones and those for types included; and whether it is needed at import time."""
        top = {id(node) for node in self.tree.body}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, id(node) in top) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}:{node.lineno}: say the whole name"
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield (whole if whole in names() else str(node.module)), id(node) in top


@cache
def read(folder: str) -> tuple[Module, ...]:
    found = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        path = file.relative_to(ROOT)
        parts = path.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = file.read_text(encoding="utf-8")
        found.append(Module(str(path), name, text, ast.parse(text)))
    return tuple(found)


def modules() -> list[Module]:
    """Everything that is delivered."""
    return [module for package in PACKAGES for module in read(package)]


@cache
def names() -> frozenset[str]:
    return frozenset(module.name for module in modules())


def is_part(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES


def floor(name: str) -> int | None:
    """The floor of the longest entry that names the module or a package around it, but `gearlink` is only itself."""
    entry = name
    while entry and entry not in FLOORS:
        entry = entry.rpartition(".")[0]
    return None if entry == "gearlink" != name else FLOORS.get(entry)


def docstring_lines(node: ast.AST) -> range:
    body = getattr(node, "body", [])
    if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False) is not None:
        return range(body[0].lineno, body[0].end_lineno + 1)
    return range(0)


def code_lines(module: Module) -> int:
    prose = {line for node in ast.walk(module.tree) for line in docstring_lines(node)}
    lines = enumerate(module.text.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for at, line in lines if at not in prose)


def functions(module: Module) -> Iterator[tuple[str, Function]]:
    """Every function with its name behind those of the classes around it."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield prefix + child.name, child
                yield from walk(child, f"{prefix}{child.name}.<locals>.")
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            else:
                yield from walk(child, prefix)

    return walk(module.tree, "")


def length(function: Function) -> int:
    """Lines without the docstring."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1 - len(docstring_lines(function))


# --- floors -----------------------------------------------------------------------------------------------------------


def test_every_module_has_a_floor() -> None:
    assert [module.name for module in modules() if floor(module.name) is None] == []
    assert [entry for entry in FLOORS if entry not in names() and entry not in NOT_YET] == []


def test_imports_go_down_and_never_to_another_folder_of_the_same_floor() -> None:
    folders = {module.name: module.folder for module in modules()}
    wrong = []
    for module in modules():
        mine = floor(module.name)
        for name, _needed in module.imports():
            if is_ours(name) and name != module.name:
                theirs = floor(name)
                assert theirs is not None and mine is not None, f"{module.path} imports {name}, which has no floor"
                if theirs > mine or (theirs == mine and folders[name] != module.folder):
                    wrong.append(f"{module.path} (floor {mine}) imports {name} (floor {theirs})")
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    needs = {
        module.name: {name for name, needed in module.imports() if needed and is_ours(name)} for module in modules()
    }
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " imports ".join((*way, name))
        if name not in done:
            for other in needs.get(name, ()):
                if other != name:
                    follow(other, (*way, name))
            done.add(name)

    for name in needs:
        follow(name, ())


def test_the_garden_and_the_cellar_import_only_what_their_doors_let_through() -> None:
    wrong = [
        f"{module.path} imports {name}"
        for package, allowed in NARROW_DOORS.items()
        for module in modules()
        if is_part(module.name, package)
        for name, _needed in module.imports()
        if is_ours(name) and not any(is_part(name, entry) for entry in allowed)
    ]
    assert wrong == []


def test_what_has_one_keeper_is_imported_by_nobody_else() -> None:
    wrong = [
        f"{module.path} imports {name}"
        for module in modules()
        for name, _needed in module.imports()
        for guarded, keepers in ONLY_FOR.items()
        if is_part(name, guarded) and not any(is_part(module.name, keeper) for keeper in keepers)
    ]
    assert wrong == []


def test_rules_and_doors_know_the_seam_of_the_store_and_nothing_behind_it() -> None:
    wrong = [
        f"{module.path} imports {name}"
        for module in modules()
        if module.name.startswith("gearlink.") and (floor(module.name) or 0) < FLOORS["gearlink.app"]
        for name, _needed in module.imports()
        if is_part(name, "storage") and name not in STORE_OF_THE_DOORS
    ]
    assert wrong == []


def test_the_console_never_touches_the_store() -> None:
    names_in = {module.path: {name for name, _needed in module.imports()} for module in read("admin")}
    assert [path for path, found in names_in.items() if any(is_part(name, "storage") for name in found)] == []


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[\[<>=~! ]", line)[0].lower() for line in project["dependencies"]}
    roots = {name.partition(".")[0] for module in modules() for name, _needed in module.imports()}
    foreign = {root for root in roots if root not in sys.stdlib_module_names and not is_ours(root)}
    assert {root for root in foreign if DISTRIBUTIONS.get(root, root) not in declared} == UNDECLARED


# --- sizes and words --------------------------------------------------------------------------------------------------


def test_files_stay_small_enough_to_be_read_in_one_sitting() -> None:
    sizes = {module.path: code_lines(module) for module in (*modules(), *read("tests"))}
    usual = {path: TEST_LINES_MAX if path.startswith("tests/") else CODE_LINES_MAX for path in sizes}
    too_large = {path: size for path, size in sizes.items() if size > LARGE_FILES.get(path, usual[path])}
    assert too_large == {}
    loose = {
        path: sizes.get(path)
        for path, bound in LARGE_FILES.items()
        if path not in sizes or sizes[path] <= usual[path] or bound > sizes[path] + 20
    }
    assert loose == {}, "tighten the ratchet"


def test_functions_stay_short_enough_to_be_seen_at_once() -> None:
    found = {
        f"{module.path}:{name}"
        for module in (*modules(), *read("tests"))
        for name, function in functions(module)
        if length(function) > FUNCTION_LINES_MAX
    }
    assert found == LONG_FUNCTIONS


def test_every_file_opens_with_what_it_owns() -> None:
    short = [
        module.path
        for module in (*modules(), *read("tests"))
        if module.text.strip() and len((ast.get_docstring(module.tree) or "").split()) < 5
    ]
    assert short == []


def test_public_functions_say_what_they_do() -> None:
    every = [(module, name, function) for module in modules() for name, function in functions(module)]
    # A method that keeps the promise of a protocol of ours is documented there.
    promised = {
        name.rpartition(".")[2]
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
        for name, function in functions(Module(module.path, module.name, "", ast.Module([node], [])))
        if ast.get_docstring(function)
    }
    silent = {
        f"{module.path}:{name}"
        for module, name, function in every
        if not any(part.startswith("_") for part in name.split("."))
        and "<locals>" not in name
        and length(function) > UNDOCUMENTED_LINES_MAX
        and not ast.get_docstring(function)
        and name not in promised
        and name.rpartition(".")[2] not in promised
    }
    assert silent == UNDOCUMENTED


def test_public_classes_with_methods_say_what_they_are() -> None:
    silent = [
        f"{module.path}:{node.name}"
        for module in modules()
        for node in module.tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
        if any(isinstance(child, Function) for child in node.body)
    ]
    assert silent == []


def test_the_name_of_every_test_is_a_claim() -> None:
    vague = [
        f"{module.path}:{name}"
        for module in read("tests")
        for name, _function in functions(module)
        if name.startswith("test_") and len(name.split("_")) - 1 < TEST_NAME_WORDS_MIN
    ]
    assert vague == []


# --- what is not done here --------------------------------------------------------------------------------------------

WALL_TIME = {
    *("time.time", "time.time_ns", "time.localtime", "time.gmtime"),
    *("datetime.now", "datetime.utcnow", "date.today"),
}
PRINTERS = {"gearlink/cli.py", "gearlink/chat.py", "gearlink/terminal.py"}


def banned(module: Module) -> Iterator[str]:
    """What this module does that no module may, one line each."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            if whole == "time.sleep":
                yield "time.sleep, which holds the loop"
            if whole in WALL_TIME and module.name != "gearlink.clock":
                yield "wall time, outside of gearlink/clock.py"
            if whole.endswith("spawn_system_task"):
                yield "a task without a nursery"
        if isinstance(node, ast.Call):
            yield from banned_calls(module, node)


def banned_calls(module: Module, call: ast.Call) -> Iterator[str]:
    called = ast.unparse(call.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if called == "print" and module.path not in PRINTERS:
        yield "print, outside of the commands"
    if called in ("eval", "exec", "compile", "breakpoint", "input"):
        yield called
    if "open_memory_channel" in called and any("inf" in ast.unparse(argument) for argument in call.args):
        yield "a queue without a bound"
    if keywords.get("shield") == "True" and "deadline" not in keywords and "CancelScope" in called:
        yield "a shield without a deadline"
    if called.endswith("sleep") and call.args and ast.unparse(call.args[0]) == "0":
        yield "sleep(0), which is a checkpoint"


def test_nobody_does_what_is_banned() -> None:
    found = {f"{module.path}: {deed}" for module in modules() for deed in banned(module)}
    assert found == BANNED


@pytest.mark.parametrize(
    ("text", "deed"),
    [
        ("import time\ntime.sleep(1)", "time.sleep"),
        ("print('x')", "print"),
        ("trio.open_memory_channel[int](math.inf)", "a queue"),
        ("with trio.CancelScope(shield=True): pass", "a shield"),
        ("at = datetime.now(UTC)", "wall time"),
        ("wall = time.time", "wall time"),
    ],
)
def test_each_banned_deed_would_be_seen(text: str, deed: str) -> None:
    seen = list(banned(Module("gearlink/x.py", "gearlink.x", text, ast.parse(text))))
    assert len(seen) == 1 and seen[0].startswith(deed)


def test_tests_wait_for_events_and_never_for_the_clock_of_the_wall() -> None:
    sleepers = [
        module.path
        for module in read("tests")
        if not module.path.startswith(("tests/bench", "tests/proof"))
        if any(isinstance(node, ast.Attribute) and ast.unparse(node) == "time.sleep" for node in ast.walk(module.tree))
    ]
    assert sleepers == []


def texts() -> Iterator[tuple[str, str]]:
    """Every text file that belongs to the project, with its path."""
    suffixes = {".py", ".md", ".toml", ".yml", ".txt", ".css", ".html", ".js", ""}
    for top in (*PACKAGES, "tests", "docs", ".ci", ".github", "."):
        for file in sorted((ROOT / top).glob("*" if top == "." else "**/*")):
            if file.is_file() and file.suffix in suffixes and "__pycache__" not in file.parts:
                yield str(file.relative_to(ROOT)), file.read_text(encoding="utf-8", errors="replace")


# Written in two pieces, or this file would be the first to be found.
FORBIDDEN = (
    *("pypi" + r"\.", "python" + r"hosted\.", "npm" + r"js\.", "registry" + r"\."),
    *("(?<![a-z.])/wor" + "k/", "/ro" + "ot/", "/ho" + "me/"),
    *("TO" + "DO", "FIX" + "ME", "XX" + "X", "Not" + "ImplementedError"),
)


def test_no_file_names_a_registry_a_foreign_machine_or_work_undone() -> None:
    pattern = re.compile("|".join(FORBIDDEN))
    found = [
        f"{path}: {match[0]}"
        for path, text in texts()
        if path != "LICENSE"
        for match in pattern.finditer(text)
        if match[0] != "registry." or not path.endswith(".py")  # the metrics have one
    ]
    assert found == []
