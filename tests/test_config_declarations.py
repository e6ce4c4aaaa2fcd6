"""The declarations of settings, the annotated file that is printed from them, and what a reload may change."""

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import forms
from config.describe import FIRST, HIDDEN, describe, show, toml_value
from config.knob import Knob, Value
from config.limits import CONTENT_BYTES_MAX
from config.load import load, load_with_origins, reload_difference
from config.settings import KNOBS, SECTIONS, Settings, value_of, with_values

SHIPPED = Path(__file__).parent.parent / "gearlink.toml"
SECRET = "hunter2-hunter2-hunter2"

TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=30)
HOST = st.sampled_from(["127.0.0.1", "[::1]", "chat.example.org", "0.0.0.0"])
PORT = st.integers(1, 65535)
URL = st.builds("{}://{}:{}".format, st.sampled_from(["http", "https"]), HOST, PORT).map(forms.base_url)
FORMS: dict[Any, st.SearchStrategy[str]] = {
    None: TEXT,
    forms.listen_address: st.builds("{}:{}".format, HOST, PORT),
    forms.base_url: URL,
    forms.web_origin: URL,
    forms.webhook_url: st.builds("https://a.example/{}".format, st.text("abc/?=&%20", max_size=20)),
    forms.network: st.ip_addresses().map(str),
    forms.directory: TEXT.filter(lambda text: text.strip() and text[0] != "~"),
    forms.file_path: TEXT.filter(lambda text: text[:1] != "~"),
    forms.identifier: st.text("abcXYZ019", min_size=1, max_size=34),
    forms.bearer_token: st.text("abcXYZ019._~+/-", min_size=1, max_size=40),
}


def values_for(knob: Knob) -> st.SearchStrategy[Any]:
    """Values that the declaration allows."""
    if knob.choices:
        return st.sampled_from(knob.choices)
    if isinstance(knob.default, tuple):
        return st.lists(FORMS[knob.form], max_size=4, unique=True).map(tuple)
    if isinstance(knob.default, str):
        return FORMS[knob.form]
    if isinstance(knob.default, float):
        return st.floats(knob.low, knob.high, allow_nan=False)
    return st.integers(math.ceil(knob.low or 0), math.floor(knob.high or 0))


def other_value(knob: Knob) -> Value:
    """One allowed value that is not the default and contradicts no other default."""
    if knob.choices:
        return next(choice for choice in knob.choices if choice != knob.default)
    samples: dict[Any, str] = {
        None: SECRET, forms.listen_address: "[::1]:1", forms.base_url: "https://a.example",
        forms.web_origin: "https://a.example", forms.webhook_url: "https://a.example/x", forms.network: "10.0.0.0/8",
        forms.directory: "d", forms.file_path: "f", forms.identifier: "AC1", forms.bearer_token: "t",
    }  # fmt: skip
    if isinstance(knob.default, tuple):
        return (samples[knob.form],)
    if isinstance(knob.default, str):
        return samples[knob.form]
    return knob.default + 1


@st.composite
def settings_strategy(draw: st.DrawFn) -> Settings:
    """Valid settings: any values that the declarations allow, made to fit together."""
    chosen = draw(st.sets(st.sampled_from(sorted(KNOBS))))
    values: dict[str, Value] = {key: draw(values_for(KNOBS[key])) for key in sorted(chosen)}
    settings = with_values(Settings(), values)
    fitted: dict[str, Value] = {}
    fitted["limits.outbox_kib"] = max(settings.limits.outbox_kib, settings.limits.frame_kib)
    if not (settings.server.tls_certificate and settings.server.tls_key):
        fitted |= {"server.tls_certificate": "", "server.tls_key": ""}
    if settings.verification.provider != "console":
        fitted |= {"verification.webhook_url": "https://a.example/", "verification.webhook_secret": SECRET,
                   "verification.twilio_account_sid": "AC1", "verification.twilio_auth_token": "t",
                   "verification.twilio_from": "+15551230001"}  # fmt: skip
    return with_values(settings, fitted)


# --- declarations ----------------------------------------------------------------------------------------------------


def test_every_setting_can_be_set_by_its_environment_twin() -> None:
    for knob in KNOBS.values():
        value = other_value(knob)
        text = ", ".join(value) if isinstance(value, tuple) else str(value)
        companions = {"server.tls_certificate": {"GEARLINK_SERVER__TLS_KEY": "k"},
                      "server.tls_key": {"GEARLINK_SERVER__TLS_CERTIFICATE": "c"},
                      "verification.provider": {"GEARLINK_VERIFICATION__WEBHOOK_URL": "https://sms.example.org/",
                                                "GEARLINK_VERIFICATION__WEBHOOK_SECRET": SECRET}}  # fmt: skip
        environment = {knob.environment_name: text, **companions.get(knob.key, {})}
        assert value_of(load(None, environment, {}), knob.key) == value, knob.key


def test_the_least_frame_and_body_hold_the_largest_message() -> None:
    for key in ("limits.frame_kib", "limits.body_kib"):
        least = KNOBS[key].low
        assert least is not None and least * 1024 >= 2 * CONTENT_BYTES_MAX, "a JSON text may need two bytes for one"


# --- the annotated file ----------------------------------------------------------------------------------------------


def test_the_shipped_file_is_the_one_printed_from_the_declarations() -> None:
    assert SHIPPED.read_text(encoding="utf-8") == describe()


def test_the_shipped_file_changes_nothing() -> None:
    assert load(SHIPPED, {}, {}) == Settings()


def test_the_annotated_file_with_every_line_taken_live_is_the_defaults(tmp_path: Path) -> None:
    live = re.sub(r"(?m)^#(?=\w+ = )", "", describe())
    assert {f"{section}.{name}" for section, table in tomllib.loads(live).items() for name in table} == set(KNOBS)
    (tmp_path / "live.toml").write_text(live, encoding="utf-8")
    assert load(tmp_path / "live.toml", {}, {}) == Settings()


def test_the_annotated_file_names_every_twin_and_flag_and_fits_a_screen() -> None:
    text = describe()
    assert all(knob.environment_name in text and knob.flag in text for knob in KNOBS.values())
    assert set(FIRST) <= set(KNOBS) and len(FIRST) == 4
    assert max(map(len, text.splitlines())) <= 100


def test_every_setting_and_section_is_documented_and_bounded() -> None:
    for key, knob in KNOBS.items():
        assert knob.documentation.endswith((".", "AC.")) and len(knob.documentation) > 40, key
        assert knob.checked(knob.default) == knob.default, key
        if isinstance(knob.default, int | float):
            assert knob.low is not None and knob.high is not None and knob.low <= knob.default <= knob.high, key
    assert all(about.endswith(".") for about in SECTIONS.values())


def test_zero_means_no_limit_wherever_zero_is_allowed_among_the_limits() -> None:
    for knob in KNOBS.values():
        if knob.key == "limits.archive_mib":  # a server that keeps nothing of the kind has to be possible
            assert "0 means that no archives are kept" in knob.documentation.replace("\n", " ")
        elif knob.section == "limits":
            assert (knob.low == 0) == ("0 means no limit" in knob.documentation.replace("\n", " ")), knob.key


def test_show_hides_secrets_and_names_origins(tmp_path: Path) -> None:
    loaded = load_with_origins(None, {"GEARLINK_METRICS__TOKEN": SECRET}, {"server.listen": "[::1]:0"})
    text = show(loaded.settings, loaded.origins)
    assert SECRET not in text
    assert f'token = "{HIDDEN}"  # environment GEARLINK_METRICS__TOKEN' in text
    assert 'listen = "[::1]:0"  # flag --listen' in text
    assert 'webhook_secret = ""  # default' in text
    assert set(tomllib.loads(text)) == set(SECTIONS)


@given(st.text())
def test_any_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"x = {toml_value(text)}")["x"] == text


@given(settings_strategy())
def test_described_settings_load_again_unchanged(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> None:
    file = tmp_path_factory.getbasetemp() / "round-trip.toml"
    file.write_text(describe(settings), encoding="utf-8", newline="\n")
    assert load(file, {}, {}) == settings


# --- reload ----------------------------------------------------------------------------------------------------------


@given(settings_strategy(), settings_strategy())
def test_a_reload_names_each_changed_setting_once(old: Settings, new: Settings) -> None:
    now, later = reload_difference(old, new)
    assert sorted(now + later) == sorted(key for key in KNOBS if value_of(old, key) != value_of(new, key))
    assert all(KNOBS[key].reloadable for key in now)
    assert with_values(old, {key: value_of(new, key) for key in now + later}) == new


def test_tls_is_renewed_by_a_reload_but_switched_by_a_restart() -> None:
    paths = ("server.tls_certificate", "server.tls_key")
    off, one = Settings(), with_values(Settings(), dict.fromkeys(paths, "a.pem"))
    two = with_values(one, dict.fromkeys(paths, "b.pem"))
    assert reload_difference(one, two) == (paths, ())
    assert reload_difference(off, one) == ((), paths) == reload_difference(one, off)
