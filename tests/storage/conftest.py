"""What several tests of storage need."""

from __future__ import annotations

import pytest

from storage import plan as planning


@pytest.fixture
def dear_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make graphs worth their while on the few rows of a test."""
    monkeypatch.setattr(planning, "SCAN_BYTES_FREE", 0)
    monkeypatch.setattr(planning, "EXPANSION_BYTES", 1)
