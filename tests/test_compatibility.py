"""COMPATIBILITY.md is complete: what it names exists, and what exists it names."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import AliasChoices

from service.dialects.account import routes as account_routes
from service.dialects.binding import routes as binding_routes
from service.dialects.vectorize import models
from service.dialects.vectorize import routes as vectorize_routes
from service.dialects.vectorize.errors import ANSWERS, FRAMEWORK, Code

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "COMPATIBILITY.md").read_text(encoding="utf-8")
COMMON = "/accounts/{account}/vectorize/v2"
READERS_OF_PARAMETERS = {"flag_parameter", "whole_parameter", "choice_parameter", "words_parameter"}


def cells() -> Iterator[list[str]]:
    """The cells of every row of every table of the page."""
    for line in PAGE.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def endpoint(method: str, path: str) -> str:
    """A route as the page writes it: without what all have in common, and without the patterns in its path."""
    plain = re.sub(r"\{operation:(\w+)\}", r"\1", path)
    plain = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", plain)
    return f"{method} {plain.removeprefix('/client/v4').removeprefix(COMMON)}"


def test_every_route_is_in_the_table_and_every_route_of_the_table_exists() -> None:
    served = {
        endpoint(route.method, route.path)
        for dialect in (account_routes, binding_routes, vectorize_routes)
        for route in dialect.routes()
    }
    named = {found for row in cells() for cell in row[:2] for found in re.findall(r"`((?:[A-Z]+|\*) /\S*)`", cell)}

    assert named == served


def body_keys() -> set[str]:
    """The keys of all JSON bodies, in every spelling that is taken."""
    found = set()
    for _, model in inspect.getmembers(models, inspect.isclass):
        if not issubclass(model, models.Body):
            continue
        for name, field in model.model_fields.items():
            match field.validation_alias:
                case AliasChoices(choices=choices):
                    found |= {str(choice) for choice in choices}
                case None:
                    found.add(name)
                case alias:
                    found.add(str(alias))
    return found


def query_parameters() -> set[str]:
    """The parameters that the handlers read from the query string."""
    found = set()
    for path in (ROOT / "service" / "dialects" / "vectorize").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=reader), args=[_, ast.Constant(value=str(name)), *_]) if (
                    reader in READERS_OF_PARAMETERS
                ):
                    found.add(name)
                case ast.Call(
                    func=ast.Attribute(value=ast.Attribute(attr="query"), attr="get"),
                    args=[ast.Constant(value=str(name)), *_],
                ):
                    found.add(name)
                case _:
                    pass
    return found


@pytest.mark.parametrize("name", sorted((body_keys() | query_parameters()) - {"config"}))
def test_every_option_is_named(name: str) -> None:
    assert re.search(rf"`(?:config\.)?{name}`", PAGE)


def test_every_error_number_is_explained_with_the_status_it_comes_with() -> None:
    rows = {int(row[0]): row[1] for row in cells() if row[0].isdecimal()}

    assert set(rows) == set(Code)
    for answer in ANSWERS.values():
        assert str(answer.status) in rows[answer.code]
    for status, code in FRAMEWORK.items():
        assert str(status) in rows[code]


def test_the_pages_that_send_readers_here_do() -> None:
    assert all(
        "](COMPATIBILITY.md)" in (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "WORKERS.md")
    )
