"""An unchanged Worker whose `env.VECTORIZE` is served here, under Cloudflare's own tools."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from tests.contract.clients.installing import has_npm
from tests.contract.clients.matrix import WAYS
from tests.contract.clients.ways import Way
from tests.contract.program import Program, running

NUMBERS = itertools.count(1)
LIKE_DEV = ("--profile", "cloudflare", "--processes", "2", "--binding-creates-indexes")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_npm(), reason="needs npm")]


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A server that makes the indexes that Workers write to, with nothing to complain about at the end."""
    with running(tmp_path_factory.mktemp("headrace"), *LIKE_DEV) as one:
        yield one
        assert one.stop() == 0
        assert one.complaints() == []


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.project.name}, {way.name}")
def test_the_sample_worker_passes_every_case(dev: Program, way: Way) -> None:
    found = way.try_on(dev, f"worker-{os.getpid()}-{next(NUMBERS)}")

    assert [case for case in found if case[1]] == []
    assert len(found) >= 3
