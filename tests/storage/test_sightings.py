"""How old a folder is, whatever the clocks say."""

from __future__ import annotations

import os
import time

import pytest

from storage.backends.sqlite.sightings import SEEN_S, Sightings

TEN_YEARS_S = 315_576_000


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sightings(tmp_path, clock):
    (tmp_path / "one").mkdir()
    return Sightings(tmp_path, clock)


def set_time(sightings_folder, ahead_s: float) -> None:
    then = time.time() + ahead_s
    os.utime(sightings_folder / "one", (then, then))


def test_a_folder_of_the_future_is_old_when_it_was_seen_for_long_enough(tmp_path, clock, sightings):
    set_time(tmp_path, TEN_YEARS_S)
    assert sightings.older(600) == []
    clock.now += 599
    assert sightings.older(600) == []
    clock.now += 2
    assert sightings.older(600) == [tmp_path / "one"]


def test_a_folder_that_looks_old_is_not_before_it_was_seen_for_a_while(tmp_path, clock, sightings):
    set_time(tmp_path, -TEN_YEARS_S)
    assert sightings.older(600) == []
    clock.now += SEEN_S
    assert sightings.older(600) == [tmp_path / "one"]


def test_a_folder_that_came_again_is_a_new_one(tmp_path, clock, sightings):
    sightings.older(600)
    (tmp_path / "one").rmdir()
    clock.now += 700
    assert sightings.older(600) == []
    (tmp_path / "one").mkdir()
    assert sightings.older(600) == []
