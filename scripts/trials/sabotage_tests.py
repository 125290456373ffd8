"""`python -m scripts.trials.sabotage_tests ...`: pytest, which ends when its tests have ended.

A test that fails may leave a database open, and with it a thread that would be waited for without end.
"""

from __future__ import annotations

import os
import sys

import pytest

if __name__ == "__main__":
    code = pytest.main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
