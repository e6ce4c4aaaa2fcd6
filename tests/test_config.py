"""Settings from file, environment and flags: which wins, what is refused, and in which words."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import forms
from config.forms import BadValue
from config.knob import Knob
from config.load import SettingsError, find_file, load, load_with_origins
from config.settings import KNOBS, Settings

SECRET = "hunter2-hunter2-hunter2"

Load = Callable[[str], Settings]


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    def load_(text: str) -> Settings:
        file = tmp_path / "gearlink.toml"
        file.write_text(text, encoding="utf-8")
        return load(file, {}, {})

    return load_


def complaints_of(call: Callable[[], object]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        call()
    return [str(complaint) for complaint in caught.value.complaints]


# --- sources ---------------------------------------------------------------------------------------------------------


def test_no_source_at_all_gives_the_defaults() -> None:
    assert load(None, {}, {}) == Settings()


def test_flags_win_over_environment_over_file_and_each_origin_is_known(tmp_path: Path) -> None:
    file = tmp_path / "g.toml"
    file.write_text('[server]\nlisten = "1.1.1.1:1"\ndrain_seconds = 1\n[storage]\ndata = "from-file"\n')
    environment = {"GEARLINK_SERVER__LISTEN": "2.2.2.2:2", "GEARLINK_SERVER__DRAIN_SECONDS": "2.5"}
    loaded = load_with_origins(file, environment, {"server.listen": "3.3.3.3:3"})
    assert loaded.settings.server.listen == "3.3.3.3:3"
    assert loaded.settings.server.drain_seconds == 2.5
    assert loaded.settings.storage.data == "from-file"
    where = {key: (origin.kind, origin.where) for key, origin in loaded.origins.items()}
    assert where["server.listen"] == ("flag", "flag --listen")
    assert where["server.drain_seconds"] == ("environment", "environment GEARLINK_SERVER__DRAIN_SECONDS")
    assert where["storage.data"] == ("file", f"{file}:5")
    assert where["auth.registration"] == ("default", "")
    assert set(where) == set(KNOBS)


def test_variables_of_others_are_left_alone() -> None:
    others = {"GEARLINK_CONFIG": "x.toml", "GEARLINK_PORT_8080_TCP": "tcp://10.0.0.1:8080", "XGEARLINK_A__B": "1"}
    assert load(None, others, {}) == Settings()


def test_explicit_file_wins_over_the_variable_over_the_working_directory(tmp_path: Path) -> None:
    named = {"GEARLINK_CONFIG": "/etc/gearlink.toml"}
    assert find_file(None, {}, tmp_path) is None
    here = tmp_path / "gearlink.toml"
    here.touch()
    assert find_file(None, {}, tmp_path) == here
    assert find_file(None, {"GEARLINK_CONFIG": ""}, tmp_path) == here
    assert find_file(None, named, tmp_path) == Path("/etc/gearlink.toml")
    assert find_file(Path("a.toml"), named, tmp_path) == Path("a.toml")


# --- complaints ------------------------------------------------------------------------------------------------------


def test_all_complaints_of_all_sources_come_at_once(tmp_path: Path) -> None:
    file = tmp_path / "g.toml"
    file.write_text('[server]\nlisten = 8080\ndrain_second = 3\n\n[auth]\nregistration = "opne"\n[limit]\nx = 1\n')
    environment = {"GEARLINK_LIMITS__BODY_KIB": "1", "GEARLINK_LIMITS__BODY_KB": "64"}
    told = complaints_of(lambda: load(file, environment, {"storage.data": "~/chat"}))
    assert told == [
        f"{file}:2: server.listen = 8080 is not a text in quotes; write a text in quotes",
        f'{file}:3: there is no setting "drain_second" in [server]; did you mean server.drain_seconds?',
        f'{file}:6: auth.registration = "opne" is no choice that there is; choose one of open, invite, closed',
        f'{file}:7: there is no section "limit"; did you mean [limits]?',
        'environment: there is no setting for "GEARLINK_LIMITS__BODY_KB"; did you mean GEARLINK_LIMITS__BODY_KIB?',
        'environment GEARLINK_LIMITS__BODY_KIB: limits.body_kib = "1" is out of range; '
        "write a whole number from 32 to 65536 KiB",
        'flag --data: storage.data = "~/chat" begins with ~, which is only known to the shell; write the whole path',
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[server]\ndata = "x"', "did you mean storage.data, in section [storage]?"),
        ('listen = "1.2.3.4:5"', "did you mean server.listen, in section [server]?"),
        ("server = 3", "server is a section, not a setting"),
        ("[server]\nqqqqqq = 1", "take it out"),
        ("[zzzzzz]", "the sections are server, storage"),
        ("[limits]\nbody_kib = 64.0", "is not a whole number"),
        ("[limits]\nbody_kib = true", "is not a whole number"),
        ("[limits]\nbody_kib = '64'", "is not a whole number"),
        (f"[limits]\nbody_kib = {'9' * 400}", "is out of range"),
        (f"[limits]\nbody_kib = {'9' * 5000}", "is not valid TOML"),
        ("[limits]\nmessages_per_second = nan", "is out of range"),
        ("[limits]\nmessages_per_second = inf", "is out of range"),
        ("[limits]\nmessages_per_second = true", "is not a number"),
        ("[limits]\nmessages_per_second = -1", "is out of range"),
        ("[limits]\noutbox_kib = 64\nframe_kib = 65", "limits.outbox_kib is below limits.frame_kib"),
        ('[server]\ncors_origins = "https://a.example"', "is not a list of texts"),
        ("[server]\ncors_origins = [1]", "is not a list of texts"),
        ("[server]\ncors_origins = [" + "'https://a.example'," * 257 + "]", "has more than 256 entries"),
        ('[server]\ntls_key = "k.pem"', "server.tls_certificate and server.tls_key go together; set both or neither"),
        ('[storage]\ndata = ""', "is empty; name a path"),
        ('[storage]\ndata = "a\\nb"', "holds a control character"),
        ('[verification]\nprovider = "webhook"', "needs verification.webhook_url"),
        ('[verification]\nprovider = "webhook"', "needs verification.webhook_secret"),
        ('[verification]\nprovider = "twilio"', "needs verification.twilio_from"),
        ('[verification]\nprovider = "twilio"', "needs verification.twilio_account_sid"),
        ('[verification]\nprovider = "twilio"', "needs verification.twilio_auth_token"),
        ("[server\n", "is not valid TOML"),
        ("[server]\nlisten = a\n", "(at line 2"),
        (f"[server]\nlisten = {'[' * 5000}", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_a_remedy(load_text: Load, text: str, words: str) -> None:
    assert words in "\n".join(complaints_of(lambda: load_text(text)))


def test_a_wrong_value_is_not_blamed_twice(load_text: Load) -> None:
    told = complaints_of(lambda: load_text("[limits]\nmessages_burst = -1\nmessages_per_second = 1000"))
    assert len(told) == 1 and "messages_burst = -1 is out of range" in told[0]


def test_files_that_cannot_be_read_are_complaints(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in complaints_of(lambda: load(tmp_path / "none.toml", {}, {}))[0]
    assert "cannot be read: Is a directory" in complaints_of(lambda: load(tmp_path, {}, {}))[0]
    (tmp_path / "latin.toml").write_bytes(b'[storage]\ndata = "\xe4"')
    assert "is not valid UTF-8" in complaints_of(lambda: load(tmp_path / "latin.toml", {}, {}))[0]


@pytest.mark.parametrize("text", ["", "1e3", "1_000", "0x10", "\u0661", "nan", "9" * 5000])
def test_numbers_in_the_environment_are_plain_decimals(text: str) -> None:
    assert "is not a whole number" in complaints_of(lambda: load(None, {"GEARLINK_LIMITS__BODY_KIB": text}, {}))[0]


def test_broken_bytes_of_the_environment_are_refused_in_printable_words() -> None:
    told = complaints_of(lambda: load(None, {"GEARLINK_STORAGE__DATA": "a\udcff", "GEARLINK_\udcff__X": "1"}, {}))
    assert len(told) == 2 and any("is not valid UTF-8" in line for line in told)
    assert all(line.isascii() for line in told)


def test_no_complaint_repeats_a_secret(load_text: Load) -> None:
    secrets = [knob for knob in KNOBS.values() if knob.secret]
    assert {knob.key for knob in secrets} >= {"verification.webhook_secret", "metrics.token"}
    for knob in secrets:
        for text in (f'"{SECRET}\\u0000"', f'["{SECRET}"]', f'{{ a = "{SECRET}" }}'):
            told = complaints_of(partial(load_text, f"[{knob.section}]\n{knob.name} = {text}"))
            assert told and SECRET not in "".join(told)
    for url in (f"https://me:{SECRET}@a.example", f"ftp://a.example/{SECRET}", f"http://a.example/?key={SECRET}"):
        assert SECRET not in "".join(complaints_of(partial(load, None, {}, {"verification.webhook_url": url})))
    short = complaints_of(lambda: load(None, {}, {"verification.provider": "webhook",
                                                  "verification.webhook_url": "https://a.example",
                                                  "verification.webhook_secret": SECRET[:15]}))  # fmt: skip
    assert "shorter than 16 characters" in short[0] and SECRET[:15] not in short[0]


def test_a_secret_is_in_no_repr() -> None:
    settings = load(None, {"GEARLINK_METRICS__TOKEN": SECRET, "GEARLINK_VERIFICATION__TWILIO_AUTH_TOKEN": "tok3n"}, {})
    assert SECRET not in repr(settings) and "tok3n" not in repr(settings)


# --- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "text", "clean"),
    [
        (forms.listen_address, "[::1]:0", "[::1]:0"),
        (forms.listen_address, "localhost:65535", "localhost:65535"),
        (forms.base_url, "HTTPS://Chat.Example.org:443/", "https://chat.example.org"),
        (forms.base_url, "http://[::1]:8080", "http://[::1]:8080"),
        (forms.web_origin, "https://App.Example.org", "https://app.example.org"),
        (forms.web_origin, "http://localhost:5173", "http://localhost:5173"),
        (forms.network, "10.1.2.3/8", "10.0.0.0/8"),
        (forms.network, "::1", "::1"),
        (forms.webhook_url, "https://sms.example.org/send?to=1", "https://sms.example.org/send?to=1"),
        (forms.webhook_url, "http://127.0.0.1:9/send", "http://127.0.0.1:9/send"),
        (forms.bearer_token, "abc.DEF-1~_+/==", "abc.DEF-1~_+/=="),
    ],
)
def test_a_good_text_is_cleaned(form: Callable[[str], str], text: str, clean: str) -> None:
    assert form(text) == clean
    assert form(clean) == clean


@pytest.mark.parametrize(
    ("form", "text"),
    [(forms.listen_address, text) for text in ("", ":8080", "8080", "::1:8080", "[::1]", "a:65536", "a:", "a:-1",
                                               "a:\u0663", "[127.0.0.1]:1", "10.0.0.300:1", "a b:1", "-a:1",
                                               f"{'a' * 64}:1")]
    + [(forms.base_url, text) for text in ("chat.example.org", "ftp://a.example", "https://", "https://a.example/x",
                                           "https://a.example?x", "https://u@a.example", "https://a.example:0",
                                           "https://a.example:99999", "https://[::1", "https://büro.example")]
    + [(forms.web_origin, text) for text in ("*", "null", "https://*.example.org", "https://a.example/x", "a.example")]
    + [(forms.webhook_url, text) for text in ("http://sms.example.org/", "https://a.example/#x", "file:///etc/passwd")]
    + [(forms.network, text) for text in ("10.0.0.0/33", "example.org", "", "1.2.3.4/a")]
    + [(forms.identifier, "AC12/../x"), (forms.bearer_token, "a b"), (forms.directory, " "), (forms.file_path, "~/k")],
)  # fmt: skip
def test_a_bad_text_is_refused(form: Callable[[str], str], text: str) -> None:
    with pytest.raises(BadValue):
        form(text)


@given(st.text(max_size=60), st.sampled_from([knob for knob in KNOBS.values() if knob.form]))
def test_any_text_is_cleaned_for_good_or_refused(text: str, knob: Knob) -> None:
    try:
        value = knob.from_text(text)
    except BadValue:
        return
    assert knob.checked(value) == value
