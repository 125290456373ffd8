"""Walks of the state machine, in a process of their own: `model_walks COUNT STEPS SEED`. Fails as a test does."""

from __future__ import annotations

import sys
import zlib

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.stateful import run_state_machine_as_test

from storage import plan
from tests.storage.test_model import IndexMachine

if __name__ == "__main__":
    count, steps, seed = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # Graphs are walked wherever there are any, as in the test.
    plan.SCAN_BYTES_FREE, plan.EXPANSION_BYTES = 0, 1
    run_state_machine_as_test(
        hypothesis.seed(zlib.crc32(seed.encode()))(IndexMachine),
        settings=hypothesis.settings(
            max_examples=count,
            stateful_step_count=steps,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
