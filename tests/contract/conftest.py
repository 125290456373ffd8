"""A real server for real clients: one for the whole session, and an index of its own for every test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from cloudflare import Cloudflare

from tests.contract.program import TOKEN, Program, running
from tests.contract.sdk import Index

collect_ignore = ["examples"]
"""They are run as their readers run them: `test_pytest_plugin.py`."""
NUMBERS = itertools.count(1)
CLOUDFLARE_TWICE = ("--profile", "cloudflare", "--processes", "2")
"""The limits of the live service, and two processes: what one answers must hold in the other."""


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A server with the live service's limits that nothing may make complain and that stops cleanly."""
    with running(tmp_path_factory.mktemp("headrace"), *CLOUDFLARE_TWICE) as one:
        yield one
        assert one.stop() == 0
        assert one.complaints() == []


@pytest.fixture
def index_name() -> str:
    """A name that no other test uses."""
    return f"index-{next(NUMBERS)}"


@pytest.fixture
def client(program: Program) -> Iterator[Cloudflare]:
    """The SDK as the documentation sets it up."""
    with Cloudflare(api_token=TOKEN, base_url=program.base_url) as one:
        yield one


@pytest.fixture
def index(client: Cloudflare, index_name: str) -> Index:
    """An empty index of 32 dimensions under cosine."""
    one = Index(client, index_name)
    one.create()
    return one
