"""The counters that service and worker share: named once, so that the two never disagree.

With PROMETHEUS_MULTIPROC_DIR in the environment (the supervisor sets it) every process writes its figures to
files there and any service process adds them up; without it they live in this process alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import Counter, Histogram, values

FILES = {"counter": 1024 * 1024, "histogram": 4 * 1024 * 1024}
"""The files of a process and their sizes: more than all of our labels take, so that none ever has to grow."""


def _take_room(folder: Path, pid: int) -> bool:
    """Make the files before they are mapped, with all of their blocks; False where there is no room for them.

    The library makes files with holes, and who writes to a hole of a mapped file on a full disk is killed.
    """
    for name, size in FILES.items():
        file = folder / f"{name}_{pid}.db"
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        except OSError:
            for one in FILES:
                (folder / f"{one}_{pid}.db").unlink(missing_ok=True)
            return False
    return True


if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    # By default every count asks the system for the process id, in case of a fork; this program never forks. That
    # was a thirtieth of a query.
    PID = os.getpid()
    if _take_room(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), PID):
        values.ValueClass = values.MultiProcessValue(process_identifier=lambda: PID)  # type: ignore[no-untyped-call]
    else:
        # Figures of this process alone are better than none, and than an end by SIGBUS.
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        values.ValueClass = values.MutexValue

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

MUTATIONS = Counter("headrace_mutations_total", "Mutations accepted into a log.", ("action",))
WRITE_TO_VISIBLE = Histogram(
    "headrace_write_to_visible_seconds",
    "From the acknowledgement of a mutation to the publish that made it visible.",
    buckets=SECONDS_BUCKETS,
)
SEALS = Counter("headrace_seals_total", "Tails that became a segment.")
SCRUBS = Counter("headrace_scrubs_total", "Indexes that were read again from end to end.")
SCRUB_FINDINGS = Counter("headrace_scrub_findings_total", "What scrubs found damaged.", ("part",))
BUILDS_FAILED = Counter("headrace_builds_failed_total", "Seals, merges and back-fills that ended without a result.")
MERGES = Counter("headrace_merges_total", "Merges of segments into one.")
