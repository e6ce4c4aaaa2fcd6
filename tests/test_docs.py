"""The documents say what is there, all of it, and nothing that is not.

Settings, errors, frames, calls, commands, metrics, exit statuses and figures are compared with the code, both ways:
what exists is documented, and what is documented exists. It judges names and figures, not sentences.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from config.settings import KNOBS, SECTIONS
from gearlink import chat, cli, errors, protocol, views
from gearlink.chat import bot
from gearlink.http_api.routes import ROUTES
from gearlink.journal import Metrics
from gearlink.rights import Right
from gearlink.ws_frames import FRAMES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
ENCRYPTION = (ROOT / "docs" / "encryption.md").read_text(encoding="utf-8")
WEBSOCKET = (ROOT / "docs" / "websocket.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FILES = (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
PAGES = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in FILES}

RESERVED = PROTOCOL.partition("## Reserved for later releases")[2]
SERVED = PROTOCOL.partition("## Reserved for later releases")[0] + WEBSOCKET


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The first table below a heading: the cells of each row by its first one, without backticks."""
    section = re.split(r"(?m)^#+ ", page.partition(f"\n{heading}\n")[2])[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    assert len(table) > 2, f"no table below {heading!r}"
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[2:]]
    return {row[0].strip("`"): row for row in cells}


def commands(parser: argparse.ArgumentParser, name: str = "gearlink") -> Iterator[str]:
    """`name` and every command below it."""
    yield name
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from commands(below, f"{name} {word}")


def all_commands() -> set[str]:
    return {*commands(cli._parser()), *commands(chat.parser(), "gearlink chat")}


def code(page: str) -> Iterator[str]:
    """What stands in backticks, and the lines of shell blocks."""
    blocks = re.findall(r"(?ms)^```(\w*)\n(.*?)^```", page)
    yield from (line for language, block in blocks if language in ("", "sh") for line in block.splitlines())
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", page))


# --- for operators ----------------------------------------------------------------------------------------------------


def test_the_table_of_settings_is_the_declarations() -> None:
    found = rows(OPERATIONS, "## Settings")
    assert list(found) == list(KNOBS)
    for key, knob in KNOBS.items():
        default = list(knob.default) if isinstance(knob.default, tuple) else knob.default
        shown = f"{default:g}" if isinstance(default, float) else json.dumps(default)
        bounds = knob.bounds().replace(" | ", ", ").replace('"', "`") + (f" {knob.unit}" if knob.unit else "")
        assert [cell.strip("`") for cell in found[key][1:2]] == [shown], key
        assert found[key][2] == bounds and found[key][3] == ("yes" if knob.reloadable else ""), key


def test_no_document_names_a_setting_that_does_not_exist() -> None:
    sections = "|".join(SECTIONS)
    for path, page in PAGES.items():
        for text in code(page):
            for key in re.findall(rf"(?<![\w./-])(?:{sections})\.[a-z_]+\b(?!\()", text):
                ours = key in KNOBS or key.endswith((".py", ".md", ".toml", ".example"))
                assert ours or key.partition(".")[2] in ("store", "limits", "settings"), f"{path}: {key}"
            for name in re.findall(r"GEARLINK_[A-Z]+__[A-Z_]+", text):
                assert name in {knob.environment_name for knob in KNOBS.values()}, f"{path}: {name}"


def test_every_command_is_documented() -> None:
    told = " ".join((README, OPERATIONS))
    for command in all_commands() - {"gearlink"}:
        words = command.removeprefix("gearlink ")
        assert words in told or words.startswith("chat "), f"{command} is nowhere in README.md and docs/operations.md"


def test_no_document_names_a_command_that_does_not_exist() -> None:
    known = all_commands()
    for path, page in PAGES.items():
        for text in code(page):
            for found in re.findall(r"(?:^|[\s/])gearlink(?! is ready)((?: [a-z]+)+)", text):
                words = found.split()
                while words and f"gearlink {' '.join(words)}" not in known:
                    words.pop()  # what follows a command is its arguments
                assert words, f"{path}: gearlink{found}"


def test_every_flag_in_a_document_is_one_of_some_command() -> None:
    known = {"--help", "--version"}
    for parser in (cli._parser(), chat.parser(), bot.parser()):
        waiting = [parser]
        while waiting:
            for action in waiting.pop()._actions:
                known |= set(action.option_strings)
                if isinstance(action, argparse._SubParsersAction):
                    waiting += action.choices.values()
    for path in (Path("README.md"), Path("docs/operations.md")):
        for text in code(PAGES[path]):
            if re.search(r"(?:^|/)gearlink ", text) or text.startswith("--"):
                assert set(re.findall(r"--[a-z][a-z-]*", text)) <= known, f"{path}: {text}"


def test_every_make_target_in_a_document_exists() -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", MAKEFILE))
    for path, page in PAGES.items():
        for text in code(page):
            for target in re.findall(r"^make ([a-z]+)", text):
                assert target in targets, f"{path}: make {target}"
    assert {"run", "test", "lint", "proof", "bench"} <= {found for found in targets if f"make {found}" in README}


def test_the_table_of_metrics_is_the_registry() -> None:
    found = rows(OPERATIONS, "## Health and metrics")
    ours = {}
    for metric in Metrics().registry.collect():
        if not metric.name.startswith(("process_", "python_")):
            ours[metric.name + ("_total" if metric.type == "counter" else "")] = metric
    assert set(found) == set(ours)


def test_the_labels_of_metrics_are_documented() -> None:
    metrics, found = Metrics(), rows(OPERATIONS, "## Health and metrics")
    for metric in vars(metrics).values():
        for label in getattr(metric, "_labelnames", ()):
            name = next(name for name in found if name.removesuffix("_total") == metric._name)
            assert f"`{label}`" in found[name][1], f"{name}: {label}"


def test_the_table_of_exit_statuses_is_the_enumeration() -> None:
    found = rows(OPERATIONS, "## Exit statuses")
    assert {number: row[1].strip("`") for number, row in found.items()} == {
        str(each.value): each.name for each in errors.ExitStatus
    }


def test_the_changelog_says_what_a_release_means_for_settings_and_data() -> None:
    releases = re.split(r"(?m)^## ", CHANGELOG)[1:]
    assert releases and all(re.search(r"(?m)^config: .+ data: .+", release) for release in releases)


def test_the_limits_that_clients_are_told_are_the_defaults() -> None:
    table = PROTOCOL.partition("\n## Limits\n")[2].partition("\n## ")[0]
    told = [(line, key) for line in table.splitlines() for key in re.findall(r"`(limits\.[a-z_]+)`", line)]
    assert len(told) > 8
    for line, key in told:
        assert re.search(rf"(?<![\d,]){KNOBS[key].default:,g}(?![\d,])", line), key


# --- for authors of clients -------------------------------------------------------------------------------------------


def test_the_table_of_errors_is_the_catalogue() -> None:
    found = rows(PROTOCOL, "## Errors")
    assert set(found) == set(errors.CATALOGUE)
    for entry in errors.CATALOGUE.values():
        close = str(entry.close) if entry.close else ""
        assert found[entry.code][1:4] == [str(entry.status), "yes" if entry.retryable else "", close], entry.code


def test_every_close_code_of_the_catalogue_is_explained() -> None:
    found = rows(WEBSOCKET, "## Close codes")
    for entry in errors.CATALOGUE.values():
        if entry.close:
            assert f"`{entry.code}`" in found[str(entry.close)][1], entry.code


@pytest.mark.parametrize("kind", [protocol.AnyClientFrame, protocol.AnyServerFrame])
def test_every_frame_is_documented_with_all_its_fields(kind: object) -> None:
    section = WEBSOCKET.partition("\n## WebSocket\n")[2].partition("\n## Catching up")[0]
    for form in get_args(kind):
        lines = [line for line in section.splitlines() if f"`{form.__struct_config__.tag}`" in line]
        assert lines, form.__struct_config__.tag
        for each in msgspec.structs.fields(form):
            told = each.encode_name == "ref" or any(f"`{each.encode_name}" in line for line in lines)
            assert told, f"{form.__struct_config__.tag}: {each.encode_name}"


def test_every_frame_that_needs_more_than_to_read_is_named_with_its_right() -> None:
    told = re.findall(r"((?:`[a-z:]+`(?:, | and )?)+)\sneed\sthe\s+right\sto\s(\w+)", WEBSOCKET)
    told += re.findall(r"((?:`[a-z:]+`(?:,\s|\sand\s)?)+)\sto\s(pin|react)", WEBSOCKET)
    found = {frame: right.upper() for frames, right in told for frame in re.findall("`([^`]+)`", frames)}
    assert found == {each.type: each.right.name for each in FRAMES if each.right not in (None, Right.READ)}


def test_the_reasons_that_a_report_may_give_are_those_of_the_specification() -> None:
    assert list(rows(ENCRYPTION, "## When something cannot be read")) == list(get_args(views.DecryptionReason))


OBJECTS = [
    form
    for form in vars(views).values()
    if isinstance(form, type) and issubclass(form, views.Answer) and form not in (views.Answer, views.Page, views.Problem)
    and form not in (views.JoinAnswer, views.ThreadPage)  # told in the rows of their calls, like those of `calls`
]  # fmt: skip
NAMES: dict[type, str] = {
    views.JoinLinkView: "Link", views.JoinRequestView: "Request", views.LinkPreview: "Preview", views.PollOption: "Poll",
}  # fmt: skip
"""Objects that the documents call by a shorter name."""


def answered(kind: object) -> list[str]:
    """The fields of an answer that is no object by itself; those that it has from one are told there."""
    if not isinstance(kind, type) or not issubclass(kind, msgspec.Struct) or kind in OBJECTS:
        return []
    inherited = {each.name for base in kind.__mro__ if base in OBJECTS for each in msgspec.structs.fields(base)}
    return [each.encode_name for each in msgspec.structs.fields(kind) if each.name not in inherited]


def test_every_call_is_documented_with_all_its_fields() -> None:
    tables = [line for line in SERVED.splitlines() if line.startswith("|")]
    for route in ROUTES:
        path = re.sub(r"\{\w+\}", "{}", route.path)
        mine = [line for line in tables if f"| `{route.method} {path}`" in re.sub(r"\{\w+\}", "{}", line)]
        assert len(mine) == 1, f"{route.method} {route.path}"
        row = mine[0]
        for form in (route.body, route.query):
            for each in msgspec.structs.fields(form) if form is not None else ():
                assert re.search(rf"\b{each.encode_name}\b", row), f"{route.method} {route.path}: {each.encode_name}"
        for status, kind in route.answers.items():
            assert str(status) in row, f"{route.method} {route.path}: {status}"
            for name in answered(kind):
                assert re.search(rf"\b{name}\b", row), f"{route.method} {route.path}: {name}"


def test_no_call_is_documented_that_is_not_served() -> None:
    known = {f"{route.method} {re.sub(r'{[^}]+}', '{}', route.path)}" for route in ROUTES}
    for line in SERVED.splitlines():
        if found := re.match(r"\| `((?:GET|POST|PUT|PATCH|DELETE) /[^`]*)`", line):
            assert re.sub(r"\{\w+\}", "{}", found[1]) in known, line


def test_every_frame_of_clients_is_documented_with_its_answer() -> None:
    for route in FRAMES:
        [row] = [
            line for line in WEBSOCKET.splitlines() if re.match(rf"\| (`[^|]+, )?`{route.type}`.*\|.*\|.*\|.*\|", line)
        ]
        assert f"`{route.answer.__struct_config__.tag}`" in row.split("|")[3], route.type


@pytest.mark.parametrize("form", OBJECTS)
def test_every_object_is_documented_with_all_its_fields(form: type[msgspec.Struct]) -> None:
    name = NAMES.get(form) or form.__name__.removesuffix("View")
    text = SERVED.partition(f"**{name}**:")[2].partition("\n\n")[0]
    for each in msgspec.structs.fields(form):
        assert re.search(rf"`{each.encode_name}\??`", text), f"{name}: {each.encode_name}"


def test_nothing_is_reserved_that_is_served_already() -> None:
    forms = (*get_args(protocol.AnyClientFrame), *get_args(protocol.AnyServerFrame))
    tags = {form.__struct_config__.tag for form in forms}
    assert not tags & set(re.findall(r"`([^`]+)`", RESERVED))


# --- all pages --------------------------------------------------------------------------------------------------------


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_link_inside_of_the_project_leads_somewhere() -> None:
    for path, page in PAGES.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", page):
            if "://" not in target:
                file, _, anchor = target.partition("#")
                there = (ROOT / path).parent / file if file else ROOT / path
                assert there.exists(), f"{path}: {target}"
                assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), f"{path}: {target}"


def test_every_name_of_a_module_that_a_document_points_at_exists() -> None:
    homes: dict[str, str] = {}
    for top in ("config", "storage", "gearlink"):
        for file in (ROOT / top).rglob("*.py"):
            homes[file.stem] = homes.get(file.stem, "") + file.read_text(encoding="utf-8")
    for path, page in PAGES.items():
        for text in code(page):
            for module, name in re.findall(r"(?<![\w.])([a-z_]+)\.([A-Za-z_]{3,})(?:\(|`|$)", text):
                if module in homes and f"{module}.{name}" not in KNOBS and name not in ("toml", "md", "py"):
                    assert re.search(rf"\b{name}\b", homes[module]), f"{path}: {module}.{name}"


def test_every_module_that_a_document_names_exists() -> None:
    tops = ("config", "storage", "gearlink", "tests")
    sources = {str(file.relative_to(ROOT)) for top in tops for file in (ROOT / top).rglob("*.py")}
    for path, page in PAGES.items():
        for text in code(page):
            for name in re.findall(r"(?<![\w./])([a-z_]+(?:/[a-z_]+)*\.py)\b", text):
                assert name in sources or any(source.endswith("/" + name) for source in sources), f"{path}: {name}"
