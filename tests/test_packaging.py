"""What the project promises to those who install it: pinned and hashed dependencies, one version, no name taken twice.

It reads pyproject.toml, the two requirements files and the metadata of what is installed; it builds and downloads
nothing. It knows no module of GearLink except the one line that states the version.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gearlink

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]
LOCKS = ("requirements.txt", "requirements-dev.txt")
OUR_PACKAGES = {"admin", "config", "gearlink", "storage", "tests", "transcoder"}
AGPL_3_SHA256 = "0d96a4ff68ad6d4b6f1f30f713b18d5184912ba8dd389f86aa7710db079abcb0"


def locked(lock: str) -> list[tuple[Requirement, list[str]]]:
    """The pins of a requirements file, each with its hashes."""
    entries = []
    for line in (ROOT / lock).read_text().replace("\\\n", " ").splitlines():
        pin, *hashes = re.split(r"\s+--hash=", line.strip())
        entries.append((Requirement(pin), hashes))
    return entries


def pins_here(lock: str) -> dict[str, str]:
    """Name to version of the pins that hold for this interpreter and system."""
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin, _ in locked(lock)
        if pin.marker is None or pin.marker.evaluate()
    }


def declared(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for; a reference to one of its own extras is replaced by what stands there."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [req for req in map(Requirement, lines) if req.name != PROJECT["name"]]


def installed_closure(roots: list[Requirement]) -> set[str]:
    """The distributions that `roots` bring into this environment, followed through their own metadata."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = list(roots)
    while waiting:
        req = waiting.pop()
        key = (canonicalize_name(req.name), frozenset(req.extras))
        if key in seen:
            continue
        seen.add(key)
        for line in metadata.requires(req.name) or ():
            child = Requirement(line)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in ("", *req.extras)):
                waiting.append(child)
    return {name for name, _ in seen}


def import_names(distribution: str) -> Iterator[str]:
    """The top-level names that a distribution puts on the import path."""
    files = metadata.files(distribution)
    assert files, f"{distribution} does not list its files"
    for file in files:
        first = file.parts[0]
        if first not in ("..", "/", "__pycache__") and not first.endswith((".dist-info", ".data")):
            yield first.split(".")[0]


def test_no_dependency_ships_an_import_package_with_one_of_our_names() -> None:
    closure = installed_closure(declared("test", "dev"))
    assert {"trio", "hypercorn", "quart", "h11", "pytest"} <= closure
    assert "trio" in import_names("trio") and "_pytest" in import_names("pytest")
    taken = {(name, ours) for name in closure for ours in OUR_PACKAGES.intersection(import_names(name))}
    assert not taken


@pytest.mark.parametrize(("lock", "extras"), [(LOCKS[0], ()), (LOCKS[1], ("test", "dev"))])
def test_the_lock_is_exactly_what_the_declared_dependencies_bring(lock: str, extras: tuple[str, ...]) -> None:
    assert set(pins_here(lock)) == installed_closure(declared(*extras))


@pytest.mark.parametrize(("lock", "extras"), [(LOCKS[0], ()), (LOCKS[1], ("test", "dev"))])
def test_every_locked_version_is_in_the_declared_range(lock: str, extras: tuple[str, ...]) -> None:
    pins = pins_here(lock)
    for req in declared(*extras):
        assert req.specifier.contains(pins[canonicalize_name(req.name)]), req


def test_what_runs_is_what_is_tested() -> None:
    run_time, tested = ({(pin.name, str(pin.specifier)) for pin, _ in locked(lock)} for lock in LOCKS)
    assert run_time <= tested
    pins = pins_here("requirements-dev.txt")
    assert {name: metadata.version(name) for name in pins} == pins


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_is_exact_and_hashed(lock: str) -> None:
    entries = locked(lock)
    assert len(entries) > 20
    for pin, hashes in entries:
        assert [spec.operator for spec in pin.specifier] == ["=="], pin
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), pin


@pytest.mark.parametrize("lock", LOCKS)
def test_a_requirements_file_names_no_host_no_path_and_no_option(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert not re.search(r"://|@|/|\w+\.(com|org|net|io)\b", text)
    assert set(re.findall(r"(?<!\S)-[\w-]*", text)) == {"--hash"}


def test_the_version_is_stated_once() -> None:
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    source = (ROOT / PYPROJECT["tool"]["hatch"]["version"]["path"]).read_text()
    assert re.findall(r'^__version__ = "([^"]+)"$', source, re.MULTILINE) == [gearlink.__version__]


def test_the_wheel_holds_every_package_of_ours_except_the_tests() -> None:
    wheel = set(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert wheel == OUR_PACKAGES - {"tests"}
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} <= OUR_PACKAGES


def test_the_license_is_the_unaltered_agpl() -> None:
    assert PROJECT["license"] == "AGPL-3.0-or-later"
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == AGPL_3_SHA256
