"""The README does what it says, character by character: its commands are run and its answers compared.

Only two things are changed on the way: the server listens on a free port and keeps its data in a folder of the test's
own, and the port in the commands is changed to match.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from service.commands.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(path.name for path in ROOT.glob("*.md"))
USUAL_URL = "http://127.0.0.1:8787"
FIRST_SCREEN = "Five minutes"
EXTENSIONS = "What Headrace adds"
CLIENTS = "Your own clients"
EXAMPLE_OF_A_NAME = "test_a_delete_that_arrives_twice_counts_once"
PATIENCE_S = 120.0
"""Not a speed limit: how long a test waits before it calls a thing that should happen stuck."""
DIFFERS_EVERY_TIME = {"processedUpToDatetime", "processedUpToMutation"}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, and the language that its fence names."""

    language: str
    text: str


def section(heading: str) -> str:
    """The text below a heading of the second level."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", README, flags=re.MULTILINE | re.DOTALL)
    assert found is not None, f"README.md has no section {heading!r}"
    return found[1]


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)]


class Terminal:
    """The second terminal of a reader: one shell in the folder of the repository, in which variables stay."""

    MARK = "-- the command has ended with"

    def __init__(self, url: str, errors: Path) -> None:
        self._url = url
        self._errors = errors
        with errors.open("ab") as stderr:
            self._shell = subprocess.Popen(
                ["bash"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                bufsize=1,
            )

    def run(self, block: Block) -> str:
        """What the commands of a block print. Fails when the last of them does."""
        assert block.language == "sh"
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f'{here(block.text, self._url)}\necho "{self.MARK} $?"\n')
        printed = []
        for line in self._shell.stdout:
            if line.startswith(self.MARK):
                assert line == f"{self.MARK} 0\n", f"{block.text}{''.join(printed)}{self._errors.read_text()}"
                return "".join(printed)
            printed.append(line)
        raise AssertionError(f"the shell ended in the middle of {block.text}")

    def answers(self, block: Block) -> list[object]:
        """The answers to the requests of a block. Fails unless every one of them is a success."""
        printed = [json.loads(line) for line in self.run(block).splitlines()]
        assert all(answer["success"] for answer in printed), (block.text, printed)
        return printed

    def python(self, block: Block) -> str:
        """What a block of Python prints."""
        assert block.language == "python"
        done = subprocess.run(
            [sys.executable, "-c", here(block.text, self._url)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, f"{block.text}\n{done.stderr}"
        return done.stdout

    def close(self) -> None:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.close()
        self._shell.wait(PATIENCE_S)
        self._shell.stdout.close()


def here(text: str, url: str) -> str:
    """The text with the port of the server under test."""
    return text.replace(USUAL_URL, url)


def comparable(answer: object) -> object:
    """An answer without what differs every time."""
    if isinstance(answer, dict):
        return {key: comparable(value) for key, value in answer.items() if key not in DIFFERS_EVERY_TIME}
    return [comparable(one) for one in answer] if isinstance(answer, list) else answer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`./scripts/run`, on a free port and with data of its own; yields where it listens."""
    folder = tmp_path_factory.mktemp("readme")
    [first, *_] = blocks(section(FIRST_SCREEN))
    log = folder / "log"
    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch, log.open("wb") as errors:
        process = subprocess.Popen(
            [*shlex.split(first.text), "--port", "0", "--data", str(folder / "data")],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
            | {"TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        with process:
            assert process.stdout is not None
            try:
                found = re.search(r"listens on (http://\S+)", process.stdout.readline())
                assert found is not None, log.read_text()
                yield found[1]
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE_S) == 0


@pytest.fixture
def terminal(server: str, tmp_path: Path) -> Iterator[Terminal]:
    second = Terminal(server, tmp_path / "errors")
    yield second
    second.close()


def until_it_says(terminal: Terminal, block: Block, shown: object) -> None:
    """Ask again and again, as the reader is told to, until the answer is the one that is shown."""
    deadline = time.monotonic() + PATIENCE_S
    while comparable(terminal.answers(block)[-1]) != comparable(shown):
        assert time.monotonic() < deadline, f"never answered as shown: {block.text}"


@pytest.mark.slow
@pytest.mark.xdist_group("readme")
def test_the_first_screen_does_what_it_says(terminal: Terminal) -> None:
    steps = blocks(section(FIRST_SCREEN))[1:]
    compared = 0

    for step, following in pairwise([*steps, Block("", "")]):
        match step.language, following.language:
            case "sh", "json" if "/info" in step.text:
                until_it_says(terminal, step, json.loads(following.text))
            case "sh", "json":
                assert comparable(terminal.answers(step)[-1]) == json.loads(following.text)
            case "sh", _:
                terminal.answers(step) if "curl" in step.text else terminal.run(step)
            case "python", "text":
                assert terminal.python(step) == following.text
            case _:
                compared += 1
                assert step.language in {"json", "text"}, f"nobody runs this: {step.text}"

    assert compared >= 5


def test_the_first_screen_finds_what_it_promises() -> None:
    shown = [json.loads(block.text) for block in blocks(section(FIRST_SCREEN)) if block.language == "json"]
    found = {match["id"] for answer in shown for match in answer["result"].get("matches", [])}

    assert {"sea", "coast", "atlantic"} <= found


@pytest.mark.slow
@pytest.mark.xdist_group("readme")
def test_every_extension_works_as_it_is_shown(terminal: Terminal) -> None:
    first, *others = blocks(section(FIRST_SCREEN))[1:]
    terminal.answers(first)
    load = next(block for block in others if "upsert" in block.text)
    terminal.answers(Block("sh", load.text.replace("/upsert", "/upsert?wait=true")))

    shown = [block for block in blocks(section(EXTENSIONS)) if block.language == "sh"]
    answers = [terminal.answers(block) for block in shown]
    terminal.answers(others[-1])

    assert shown
    assert all(answers)


@pytest.mark.slow
@pytest.mark.xdist_group("readme")
def test_the_example_for_langchain_works(terminal: Terminal) -> None:
    example, shown = blocks(section(CLIENTS))[-2:]

    assert terminal.python(example) == shown.text


def test_every_command_in_the_pages_is_one_that_headrace_understands() -> None:
    commands = [
        command
        for page in PAGES
        for block in blocks((ROOT / page).read_text(encoding="utf-8"))
        if block.language == "sh"
        for command in re.findall(r"(?:^|(?<!npx)\s)(?:\.venv/bin/)?headrace ([^|>#\n]+)", block.text)
    ]
    for command in commands:
        build_parser().parse_args(shlex.split(command))

    assert commands


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]

    assert [target for target in targets if not leads_somewhere(page, target)] == []


def leads_somewhere(page: str, target: str) -> bool:
    name, _, anchor = target.partition("#")
    path = ROOT / (name or page)
    if not path.exists():
        return False
    return not anchor or anchor in anchors(path.read_text(encoding="utf-8"))


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings get: lower case, spaces as hyphens, most punctuation gone."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_relies_on_exists(page: str) -> None:
    relied_on = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text(encoding="utf-8")))
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in (
            path.stem,
            *re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE),
        )
    }

    assert relied_on - written - {EXAMPLE_OF_A_NAME} == set()
