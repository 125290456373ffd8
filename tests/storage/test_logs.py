"""Lines of the log: one form for every event, and nothing secret in them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from storage.logs import LineStream, configure_logs
from storage.settings import Settings


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], root.level = before
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_an_event_is_one_line_of_json_with_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings(log_format="json"), process="worker")

    structlog.get_logger().info("batch.applied", mutations=3)

    (line,) = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {"event": "batch.applied", "mutations": 3, "process": "worker", "level": "info"}


def test_what_a_library_says_comes_out_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings(log_format="json"), process="worker")

    logging.getLogger("some.library").warning("careful with %s", "that")

    event = json.loads(capsys.readouterr().err)
    assert event["event"] == "python.logged"
    assert event["message"] == "careful with that"
    assert event["logger"] == "some.library"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_local_variable(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings(log_format=form), process="service-1")

    def fail(token: str) -> None:
        raise RuntimeError("it broke")

    for log in (structlog.get_logger().exception, logging.getLogger("aiohttp").exception):
        try:
            fail("".join(["hun", "ter2"]))
        except RuntimeError:
            log("request.failed")

    said = capsys.readouterr().err
    assert said.count("it broke") >= 2
    assert "hunter2" not in said


def test_events_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(Settings(log_format="json", log_level="error"), process="worker")

    structlog.get_logger().warning("segment.sealed")

    assert capsys.readouterr().err == ""


def test_a_log_on_a_full_disk_disturbs_nobody() -> None:
    with Path("/dev/full").open("w") as full:
        lines = LineStream(full)
        for _ in range(10_000):
            assert lines.write("a line\n") == len("a line\n")
        lines.flush()


def test_a_line_that_was_cut_off_by_a_full_disk_ends_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(descriptor: int, content: bytes) -> int:
        if len(content) < 6:
            raise OSError(28, "No space left on device")
        return real(descriptor, content[:4])

    real = os.write
    with (tmp_path / "log").open("w") as file:
        lines = LineStream(file)
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", short)
            lines.write("a line\n")
            lines.write("lost\n")
        lines.write("another\n")
    assert (tmp_path / "log").read_text() == "a li\nlos\nanother\n"
