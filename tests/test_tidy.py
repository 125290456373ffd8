"""The rules of the house that a machine can check (ruff, mypy and import-linter check the others)."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from service.dialects.vectorize.errors import ANSWERS
from storage import errors
from storage.configuration import all_settings
from storage.errors import StorageError

ROOT = Path(__file__).parent.parent
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "managers", "misc"}
LOG_LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
TEXT = {".py", ".md", ".toml", ".sql", ".sh", ""}


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that is or would be committed."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    names = listing.decode().split("\0")
    return tuple(ROOT / name for name in names if name and (ROOT / name).is_file())


def python_files(*folders: str) -> tuple[Path, ...]:
    return tuple(
        path
        for path in tracked()
        if path.suffix == ".py" and (not folders or path.relative_to(ROOT).parts[0] in folders)
    )


def text_files() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        if path.suffix in TEXT and path != Path(__file__):
            yield path, path.read_text(encoding="utf-8")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def leaves(kind: type[StorageError]) -> Iterator[type[StorageError]]:
    below = kind.__subclasses__()
    if not below:
        yield kind
    for one in below:
        yield from leaves(one)


def named(text: str, pattern: str) -> set[str]:
    """The names in the first column of the tables of a page."""
    return set(re.findall(rf"^\| `({pattern})` \|", text, flags=re.MULTILINE))


def test_no_file_is_longer_than_a_reader_has_patience() -> None:
    long = {path.name: len(path.read_text().splitlines()) for path in python_files()}

    assert {name: lines for name, lines in long.items() if lines > FILE_LINES_MAX} == {}


def test_every_function_fits_on_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in python_files()
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]

    assert long == []


def test_no_line_of_sql_or_shell_is_wider_than_ruff_makes_python() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    widest = settings["tool"]["ruff"]["line-length"]
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path, text in text_files()
        if path.suffix in {".sql", ".sh", ""} and path.name != "LICENSE"
        for number, line in enumerate(text.splitlines(), start=1)
        if len(line) > widest
    ]

    assert wide == []


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert [str(path) for path in tracked() if path.stem in BANNED_NAMES] == []


def test_every_module_of_the_product_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in python_files("service", "storage", "worker")
        if not ast.get_docstring(tree(path))
    ]

    assert silent == []


def test_every_storage_error_has_an_answer_in_the_vectorize_dialect() -> None:
    assert set(ANSWERS) == set(leaves(StorageError))


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    assert errors.__doc__ is not None
    drawn = set(re.findall(r"\b[A-Z][A-Za-z]+\b", errors.__doc__.split("StorageError", 1)[1].split("Storage knows")[0]))

    defined = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, StorageError)}

    assert defined - {"StorageError"} == drawn


def test_every_setting_is_documented_and_every_documented_setting_exists() -> None:
    page = (ROOT / "CONFIGURATION.md").read_text(encoding="utf-8")

    assert named(page, "[a-z_]+") == {setting.name for setting in all_settings()}


def test_every_setting_is_read_somewhere() -> None:
    read = {
        node.attr
        for path in python_files("service", "storage", "worker")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
    }
    unread = [setting.name for setting in all_settings() if setting.name.removeprefix("limit_") not in read]

    assert unread == []


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    page = (ROOT / "OPERATIONS.md").read_text(encoding="utf-8")
    made = {
        node.value
        for path in python_files("service", "storage", "worker")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"headrace_[a-z_]+", node.value)
    }

    assert named(page, "headrace_[a-z_]+") == made


def test_every_log_event_is_documented_and_every_documented_event_exists() -> None:
    page = (ROOT / "OPERATIONS.md").read_text(encoding="utf-8")

    assert named(page, r"[a-z_]+\.[a-z_]+") == set(_events()) | {"python.logged"}


def test_log_events_have_a_noun_and_what_happened_to_it() -> None:
    assert [event for event in _events() if not re.fullmatch(r"[a-z_]+\.[a-z_]+", event)] == []


def _events() -> Iterator[str]:
    """The first argument of every call on a module's `log`."""
    for path in python_files("service", "storage", "worker"):
        for node in ast.walk(tree(path)):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=level), args=[first, *_]):
                    if level in LOG_LEVELS:
                        assert isinstance(first, ast.Constant), f"{path}:{node.lineno} has an event that is computed"
                        yield str(first.value)
                case _:
                    pass


def test_what_is_left_to_do_has_an_issue() -> None:
    loose = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path, text in text_files()
        for line in text.splitlines()
        if re.search(r"\b(TODO|FIXME|XXX)\b", line) and not re.search(r"\b(TODO|FIXME|XXX)\(?\s?#\d+", line)
        if path.name not in {"STYLE.md", "CONTRIBUTING.md"}
    ]

    assert loose == []


def test_nothing_names_a_folder_of_one_machine() -> None:
    machine = re.compile(r"(?<![\w.$/{}-])/(home|Users|root|work|mnt|opt)/\w")
    named_folders = [
        f"{path.relative_to(ROOT)}:{number}"
        for path, text in text_files()
        for number, line in enumerate(text.splitlines(), start=1)
        if machine.search(line)
    ]

    assert named_folders == []


@pytest.mark.parametrize("kind", ["control", "log", "state", "workers"])
def test_migrations_are_numbered_without_gaps(kind: str) -> None:
    files = sorted((ROOT / "migrations" / "sqlite" / kind).glob("[0-9]*.sql"))

    assert [int(file.name[:4]) for file in files] == list(range(1, len(files) + 1))
    assert files


def test_committed_files_are_small() -> None:
    large = {path.name: path.stat().st_size for path in tracked() if path.stat().st_size > 2_500_000}

    assert large == {}


@pytest.mark.parametrize("script", ["scripts/setup", "scripts/run", "scripts/test", "scripts/check", ".ci/run"])
def test_every_script_can_be_run(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o111
