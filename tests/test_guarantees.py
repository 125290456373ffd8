"""GUARANTEES.md: no promise without a test, and no trial of promises that no promise names."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from scripts.trials.__main__ import PARTS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "GUARANTEES.md"
LINK = re.compile(r"\[(test_\w+)\]\((tests/[\w/]+\.py)\)")
PART = re.compile(r"`scripts/torture ([a-z]+)`")


def promises() -> dict[str, str]:
    """Each sentence of the page, and what is said to keep it."""
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {sentence: keepers for sentence, keepers in rows if sentence != "promise"}


def linked() -> set[str]:
    """Every test that the page links, as pytest names it."""
    return {f"{file}::{test}" for keepers in promises().values() for test, file in LINK.findall(keepers)}


@cache
def collected() -> frozenset[str]:
    """Every test that pytest finds in the linked files, without the parameters of its cases."""
    files = sorted({test.partition("::")[0] for test in linked()})
    told = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return frozenset(line.partition("[")[0] for line in told.stdout.splitlines() if "::" in line)


def test_every_promise_names_what_keeps_it() -> None:
    assert len(promises()) > 40
    for sentence, keepers in promises().items():
        left = PART.sub("", LINK.sub("", keepers)).replace(",", "").strip()

        assert left == "", f"{sentence!r} names something that is neither a test nor a part: {left!r}"
        assert LINK.search(keepers) or PART.search(keepers), f"nothing keeps {sentence!r}"
        assert sentence.endswith("."), sentence


def test_every_test_that_a_promise_names_is_one_that_runs() -> None:
    assert sorted(linked() - collected()) == []


def test_every_part_of_the_trials_keeps_a_promise_and_every_part_that_is_named_exists() -> None:
    assert set(PART.findall(PAGE.read_text(encoding="utf-8"))) == set(PARTS)


def test_no_test_that_a_promise_names_may_fail_or_is_left_out() -> None:
    """A case may be left out where the machine cannot do it; a whole test that is never run keeps nothing."""
    for test in linked():
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        before = text.partition(f"def {name}(")[0].rstrip().rpartition("\n\n")[2]

        assert not re.search(r"mark\.(xfail|skip)\b(?!if)", before), f"{test} is left out"


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md", "OPERATIONS.md"])
def test_the_page_is_linked_where_it_is_looked_for(page: str) -> None:
    assert "(GUARANTEES.md" in (ROOT / page).read_text(encoding="utf-8")


def test_the_tests_that_the_other_pages_name_exist() -> None:
    """Tables of other pages name a test alone."""
    known = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    for page in ("SECURITY.md", "OPERATIONS.md"):
        named = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text(encoding="utf-8")))

        assert sorted(named - known) == [], page
