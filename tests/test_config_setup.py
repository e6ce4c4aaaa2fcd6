"""`gearlink init`: what it asks, what follows from the answers, and what it never overwrites."""

import stat
from collections.abc import Iterable
from pathlib import Path

import pytest

from config.describe import describe
from config.knob import Value
from config.load import load
from config.settings import Settings
from config.setup import TRIES_MAX, SetupError, reach, set_up, write_file


class Operator:
    """Answers in the given order, and remembers what was said."""

    def __init__(self, answers: Iterable[str]) -> None:
        self.answers = iter(answers)
        self.prompts: list[str] = []
        self.told: list[str] = []

    def ask(self, prompt: str) -> str:
        self.prompts.append(prompt)
        try:
            return next(self.answers)
        except StopIteration:
            raise EOFError from None


def test_three_empty_answers_give_the_defaults_in_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "gearlink.toml"
    operator = Operator(["", "", ""])
    assert set_up(file, operator.ask, operator.told.append) == Settings() == load(file, {}, {})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [prompt.split()[0] for prompt in operator.prompts] == ["1/3", "2/3", "3/3"]
    assert ["127.0.0.1:8080" in operator.prompts[0], "[open]" in operator.prompts[1]] == [True, True]
    assert list(tmp_path.iterdir()) == [file], "no temporary file stays behind"


def test_yes_asks_nothing(tmp_path: Path) -> None:
    operator = Operator([])
    set_up(tmp_path / "g.toml", operator.ask, operator.told.append, yes=True)
    assert not operator.prompts and load(tmp_path / "g.toml", {}, {}) == Settings()


def test_a_public_url_is_set_up_behind_a_proxy_and_by_invitation(tmp_path: Path) -> None:
    operator = Operator(["https://Chat.example.org/", "", "/srv/chat"])
    settings = set_up(tmp_path / "g.toml", operator.ask, operator.told.append)
    assert settings == load(tmp_path / "g.toml", {}, {})
    assert settings.server.public_url == "https://chat.example.org"
    assert settings.server.listen == "127.0.0.1:8080"
    assert settings.server.trusted_proxies == ("127.0.0.1", "::1")
    assert (settings.auth.registration, settings.storage.data) == ("invite", "/srv/chat")
    assert any("reverse proxy" in line for line in operator.told)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.0.0.0:9000", {"server.listen": "0.0.0.0:9000"}),
        ("http://localhost:9000", {"server.listen": "localhost:9000"}),
        ("http://[::1]", {"server.listen": "[::1]:80"}),
        ("http://10.0.0.7:90", {"server.listen": "0.0.0.0:90", "server.public_url": "http://10.0.0.7:90"}),
    ],
)
def test_the_first_answer_may_be_an_address_or_a_url(text: str, values: dict[str, Value]) -> None:
    assert reach(text) == values


def test_a_wrong_answer_is_explained_and_asked_again(tmp_path: Path) -> None:
    operator = Operator(["chat.example.org", "0.0.0.0:8080", "everybody", "CLOSED", "~/chat", "chat"])
    settings = set_up(tmp_path / "g.toml", operator.ask, operator.told.append)
    assert (settings.server.listen, settings.auth.registration, settings.storage.data) == (
        "0.0.0.0:8080", "closed", "chat")  # fmt: skip
    assert sum(line.startswith("That ") for line in operator.told) == 3


@pytest.mark.parametrize("answers", [[""], ["?"] * (TRIES_MAX + 1)])
def test_answers_that_end_or_never_fit_write_nothing(tmp_path: Path, answers: list[str]) -> None:
    operator = Operator(answers)
    with pytest.raises(SetupError):
        set_up(tmp_path / "g.toml", operator.ask, operator.told.append)
    assert not list(tmp_path.iterdir())


def test_what_somebody_wrote_is_overwritten_by_force_only(tmp_path: Path) -> None:
    file = tmp_path / "g.toml"
    file.write_text("# mine\n")
    operator = Operator([])
    with pytest.raises(SetupError, match="--force"):
        set_up(file, operator.ask, operator.told.append)
    assert (file.read_text(), operator.prompts) == ("# mine\n", [])
    set_up(file, operator.ask, operator.told.append, yes=True, force=True)
    assert file.read_text(encoding="utf-8") == describe()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    set_up(file, operator.ask, operator.told.append, yes=True)  # an untouched file is nobody's loss


def test_a_place_that_cannot_be_written_is_a_clear_refusal(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be written: No such file or directory"):
        write_file(tmp_path / "no" / "g.toml", Settings())
    (tmp_path / "d").mkdir()
    with pytest.raises(SetupError, match="cannot be written"):
        write_file(tmp_path / "d", Settings(), force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["d"], "no temporary file stays behind"
