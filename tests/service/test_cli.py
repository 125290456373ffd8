"""The `headrace` command as a person meets it: in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service.commands.children import PACKAGES
from service.commands.cli import build_parser, main
from service.commands.config import markdown
from service.commands.failure import EXIT_PORT_TAKEN, EXIT_USAGE
from service.sample.words import COUNT, DIMENSIONS, sample_words
from service.version import VERSION
from storage.configuration import all_settings
from storage.limits import CLOUDFLARE

COMMANDS = ("up", "serve", "work", "dev", "demo", "sample", "migrate", "token", "audit", "config")


def headrace(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "service", *arguments],
        cwd=folder,
        env=environ | {"PYTHONPATH": str(PACKAGES)} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_version_is_told(tmp_path: Path) -> None:
    assert headrace("--version", folder=tmp_path).stdout == f"headrace {VERSION}\n"


def test_help_names_every_command_and_shows_examples(tmp_path: Path) -> None:
    said = headrace("--help", folder=tmp_path).stdout

    for command in COMMANDS:
        assert f"    {command} " in said
    assert "examples:" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])

    assert done.value.code == 0
    assert "example:\n  " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["up", "serve", "work", "dev", "migrate"])
def test_every_setting_is_a_flag_of_every_command_that_has_settings(command: str) -> None:
    flags = [text for setting in all_settings() for text in (setting.flag, "1")]

    given = build_parser().parse_args([command, *flags])

    assert sum(1 for name in vars(given) if name.startswith("setting:")) == len(all_settings())


def test_config_show_tells_every_value_and_its_origin_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text("processes = 3\n")

    said = headrace("config", "show", "--port", "9000", folder=tmp_path, HEADRACE_TOKEN="hunter2").stdout

    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in said.splitlines()}
    assert rows["port"] == ["9000", "flag --port"]
    assert rows["token"] == ["********", "variable HEADRACE_TOKEN"]
    assert rows["processes"] == ["3", f"file {tmp_path / 'headrace.toml'}"]
    assert rows["recall"] == ["0.98", "default"]
    assert {setting.name for setting in all_settings()} < rows.keys()
    assert "hunter2" not in said


def test_the_limits_of_a_profile_are_shown(tmp_path: Path) -> None:
    said = headrace("config", "show", "--limits", "cloudflare", folder=tmp_path).stdout

    assert f"limit_top_k_max {CLOUDFLARE.top_k_max} profile cloudflare" in " ".join(said.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("up", "--host", "0.0.0.0"), "HEADRACE_TOKEN", id="open door"),
        pytest.param(("dev", "--port", "many"), "a whole number", id="port in words"),
        pytest.param(("up", "--config", "nowhere.toml"), "nowhere.toml", id="no such file"),
        pytest.param(("up", "--host", "no.such.name.invalid"), "no address here", id="unknown host"),
    ],
)
def test_a_mistake_gets_one_sentence_and_no_trace(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = headrace(*arguments, folder=tmp_path)

    assert done.returncode == EXIT_USAGE
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_taken_port_is_said_plainly(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        done = headrace("dev", "--port", str(port), folder=tmp_path)

    assert done.returncode == EXIT_PORT_TAKEN
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_sample_is_lines_that_insert_takes_within_the_limits_of_the_live_service(tmp_path: Path) -> None:
    lines = headrace("sample", folder=tmp_path).stdout.encode().split(b"\n")

    assert lines.pop() == b""
    vectors = [json.loads(line) for line in lines]
    assert len(vectors) == COUNT <= CLOUDFLARE.upload_vectors_max
    assert len({vector["id"] for vector in vectors}) == COUNT
    assert {len(vector["values"]) for vector in vectors} == {DIMENSIONS}
    ocean = next(vector for vector in vectors if vector["id"] == "ocean")
    assert ocean["metadata"] == {"length": 5, "letter": "o", "rank": 2407}
    assert ocean["namespace"] == "wider"
    assert vectors[0]["namespace"] == "everyday"


def test_the_sample_keeps_every_float(tmp_path: Path) -> None:
    import numpy as np

    word = sample_words()[0]

    read = np.array(json.loads(word.line())["values"], dtype=np.float32)

    assert np.array_equal(read, word.values)


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    environ = os.environ | {"PYTHONPATH": str(PACKAGES)}
    command = [sys.executable, "-P", "-m", "service", "sample"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read()
        code = process.wait(timeout=60)

    assert (code, said) == (0, b"")


def test_the_demo_needs_the_server_that_was_named(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"

        done = headrace("demo", "--url", url, folder=tmp_path)

    assert done.returncode == 1
    assert (
        done.stderr == f"headrace: nothing listens at {url}; start a server with `headrace dev`, or leave --url out\n"
    )


def test_migrating_no_data_folder_is_refused(tmp_path: Path) -> None:
    done = headrace("migrate", "--data", "nowhere", folder=tmp_path)

    assert done.returncode == 1
    assert "there is no data folder nowhere" in done.stderr


def test_the_page_of_settings_is_the_settings() -> None:
    page = Path(__file__).parents[2] / "CONFIGURATION.md"

    assert page.read_text(encoding="utf-8") == markdown(), "run: headrace config markdown > CONFIGURATION.md"
