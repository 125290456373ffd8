"""What a process allows itself."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from storage.process import raise_open_files_limit


@pytest.fixture
def hard_limit() -> Iterator[int]:
    """The limit that this process cannot raise; its own is put back at the end."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_process_may_open_more_files_than_it_was_started_for(hard_limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard_limit))

    raise_open_files_limit()

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == hard_limit
    assert soft == min(hard_limit, 65_536) or hard_limit == resource.RLIM_INFINITY
