"""Where settings come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.configuration import (
    ConfigurationInvalid,
    Resolved,
    all_settings,
    from_json,
    resolve,
    shown,
    to_json,
)
from storage.limits import CLOUDFLARE, RELAXED
from storage.settings import Settings
from storage.wanted import WantedIndex, wanted_indexes


def settle(
    folder: Path,
    flags: dict[str, str] | None = None,
    environ: dict[str, str] | None = None,
    presets: dict[str, str] | None = None,
    config: Path | None = None,
) -> Resolved:
    return resolve(flags=flags or {}, environ=environ or {}, folder=folder, config=config, presets=presets)


def test_without_anything_every_setting_has_its_default(tmp_path: Path) -> None:
    resolved = settle(tmp_path)

    assert resolved.settings == Settings()
    assert set(resolved.origins.values()) == {"default", "profile relaxed"}
    assert set(resolved.origins) == {setting.name for setting in all_settings()}


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text('port = 1\nprocesses = 2\nhost = "127.0.0.3"\n')
    environ = {"HEADRACE_PORT": "4", "HEADRACE_PROCESSES": "5"}

    resolved = settle(tmp_path, flags={"port": "6"}, environ=environ)

    assert (resolved.settings.port, resolved.origins["port"]) == (6, "flag --port")
    assert (resolved.settings.processes, resolved.origins["processes"]) == (5, "variable HEADRACE_PROCESSES")
    file = tmp_path / "headrace.toml"
    assert (resolved.settings.host, resolved.origins["host"]) == ("127.0.0.3", f"file {file}")
    assert (resolved.settings.recall, resolved.origins["recall"]) == (0.98, "default")


def test_a_limit_changes_one_field_of_the_chosen_profile(tmp_path: Path) -> None:
    environ = {"HEADRACE_PROFILE": "cloudflare", "HEADRACE_LIMIT_TOP_K_MAX": "7", "HEADRACE_LIMIT_STRICT": "no"}

    resolved = settle(tmp_path, environ=environ)

    assert resolved.settings.limits.top_k_max == 7
    assert resolved.settings.limits.strict is False
    assert resolved.settings.limits.upload_vectors_max == CLOUDFLARE.upload_vectors_max
    assert resolved.origins["limit_upload_vectors_max"] == "profile cloudflare"
    assert resolved.origins["limit_top_k_max"] == "variable HEADRACE_LIMIT_TOP_K_MAX"


def test_a_command_has_its_own_defaults_which_everything_else_overrules(tmp_path: Path) -> None:
    presets = {"profile": "cloudflare"}

    assert settle(tmp_path, presets=presets).settings.limits == CLOUDFLARE
    assert settle(tmp_path, presets=presets, flags={"profile": "relaxed"}).settings.limits == RELAXED


def test_the_file_is_named_by_flag_then_variable_then_found(tmp_path: Path) -> None:
    for name, port in (("headrace.toml", 1), ("variable.toml", 2), ("flag.toml", 3)):
        (tmp_path / name).write_text(f"port = {port}\n")
    environ = {"HEADRACE_CONFIG": str(tmp_path / "variable.toml")}

    assert settle(tmp_path).settings.port == 1
    assert settle(tmp_path, environ=environ).settings.port == 2
    assert settle(tmp_path, environ=environ, config=tmp_path / "flag.toml").settings.port == 3


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        pytest.param({"HEADRACE_PROT": "1"}, "did you mean `port` (HEADRACE_PORT", id="misspelt variable"),
        pytest.param({"HEADRACE_ZZZZZZ": "1"}, "config show", id="variable like no other"),
        pytest.param({"HEADRACE_PORT": "http"}, "a whole number from 0 to 65535", id="port in words"),
        pytest.param({"HEADRACE_PORT": "65536"}, "a whole number from 0 to 65535", id="port too large"),
        pytest.param({"HEADRACE_SEAL_BYTES": "-1"}, "a whole number from 0", id="negative size"),
        pytest.param({"HEADRACE_CONNECTIONS_MAX": "0"}, "a whole number from 1", id="no connections"),
        pytest.param({"HEADRACE_RECALL": "nan"}, "a number from 0.5 to 1", id="recall that is no number"),
        pytest.param({"HEADRACE_RECALL": "1.01"}, "a number from 0.5 to 1", id="recall over one"),
        pytest.param({"HEADRACE_PROFILE": "lax"}, "cloudflare, relaxed", id="profile nobody knows"),
        pytest.param({"HEADRACE_INSECURE": "maybe"}, "true or false", id="neither true nor false"),
        pytest.param({"HEADRACE_DATA": ""}, "not empty", id="no data folder"),
        pytest.param({"HEADRACE_CREATE_INDEXES": "docs"}, "name:dimensions:metric", id="index without a form"),
        pytest.param({"HEADRACE_CONFIG": "/nowhere.toml"}, "/nowhere.toml", id="file that is not there"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_work(tmp_path: Path, environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationInvalid) as refused:
        settle(tmp_path, environ=environ)

    assert says in str(refused.value)
    assert next(iter(environ)) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("prot = 1\n", "did you mean `port` ", id="misspelt key"),
        pytest.param("port = true\n", "whole number", id="true is no number"),
        pytest.param("token = 5\n", "must be text", id="number is no text"),
        pytest.param("port = \n", "cannot be read as TOML", id="no TOML"),
    ],
)
def test_a_bad_file_is_refused_and_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text(text)

    with pytest.raises(ConfigurationInvalid, match=says) as refused:
        settle(tmp_path)

    assert str(file) in str(refused.value)


def test_the_links_that_kubernetes_makes_for_a_service_of_our_name_are_no_settings(tmp_path: Path) -> None:
    environ = {
        "HEADRACE_PORT": "tcp://10.0.0.1:8787",
        "HEADRACE_PORT_8787_TCP": "tcp://10.0.0.1:8787",
        "HEADRACE_PORT_8787_TCP_ADDR": "10.0.0.1",
        "HEADRACE_SERVICE_HOST": "10.0.0.1",
        "HEADRACE_SERVICE_PORT": "8787",
    }

    assert settle(tmp_path, environ=environ).settings == Settings()


def test_settings_survive_the_way_to_a_child(tmp_path: Path) -> None:
    flags = {"token": "sécret", "limit_top_k_max": "9", "data": "some/folder", "insecure": "true"}
    settings = settle(tmp_path, flags=flags).settings

    assert from_json(to_json(settings)) == settings


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    resolved = settle(tmp_path, environ={"HEADRACE_TOKEN": "hunter2"})

    assert resolved.settings.token == "hunter2"
    assert "hunter2" not in shown(resolved, "token")
    (tmp_path / "headrace.toml").write_text("token = 31337\n")
    with pytest.raises(ConfigurationInvalid) as refused:
        settle(tmp_path)
    assert "31337" not in str(refused.value)


def test_wanted_indexes_are_read_in_both_forms() -> None:
    wanted = wanted_indexes(" docs:768:dot-product, notes:@cf/baai/bge-base-en-v1.5 ,")

    assert wanted == (
        WantedIndex(name="docs", dimensions=768, metric="dot-product"),
        WantedIndex(name="notes", preset="@cf/baai/bge-base-en-v1.5"),
    )


@pytest.mark.parametrize(
    "text", ["docs", "docs:768", "docs:x:cosine", "docs:768:cosines", ":768:cosine", "a:1:cosine:b"]
)
def test_another_form_of_wanted_index_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="name:dimensions:metric"):
        wanted_indexes(text)


def test_every_setting_has_a_sentence() -> None:
    for setting in all_settings():
        assert setting.description.endswith("."), setting.name
