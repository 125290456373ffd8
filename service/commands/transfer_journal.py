"""How far an import or export has come, in a small file, so that the same command goes on after a break.

The file is written after what it tells of is durable on the other side. A break in between costs a batch that is sent
again, and an upsert that is repeated changes nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from service.commands.failure import CommandFailed

VERSION = 1
UNKNOWN = -1


@dataclass(slots=True, kw_only=True)
class Progress:
    """What is done of one transfer. The spellings reach the file."""

    version: int = VERSION
    source: str
    target: str
    total: int = UNKNOWN
    """Vectors in the source, as of the listing."""
    cursor: str = ""
    """Where the listing goes on; empty before its first page and after its last."""
    listed: int = 0
    listed_bytes: int = 0
    """How much of the file of ids is good."""
    is_listed: bool = False
    position: int = 0
    """The byte of the file of ids, or of vectors, at which the next batch begins."""
    moved: int = 0
    gone: int = 0
    """Ids that were listed and had no vector when they were read."""
    before: int = UNKNOWN
    """Vectors in the target when the transfer began."""
    mark: str = ""
    """Where the target is: its last mutation, or the bytes of its file."""

    def list_anew(self) -> None:
        """Begin with the listing."""
        self.cursor, self.listed, self.listed_bytes, self.is_listed = "", 0, 0, False
        self.write_anew()

    def write_anew(self) -> None:
        """Begin with the first vector. What an index has already is written again, with the same values."""
        self.position = self.moved = self.gone = 0
        self.mark = ""


class Journal:
    """The file of one transfer, and the file of ids beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids = path.with_name(path.name + ".ids")

    def load(self, source: str, target: str) -> Progress:
        """What was done before; nothing, when there is no file. Raises CommandFailed for one of another transfer."""
        try:
            kept = orjson.loads(self.path.read_bytes())
            progress = Progress(**kept)
        except FileNotFoundError:
            return Progress(source=source, target=target)
        except (ValueError, TypeError) as error:
            raise CommandFailed(f"{self.path} is no file to go on from; remove it to start anew") from error
        if (progress.version, progress.source, progress.target) != (VERSION, source, target):
            raise CommandFailed(
                f"{self.path} is of another transfer, from {progress.source} to {progress.target}; "
                "remove it to start anew, or name another file with --resume"
            )
        return progress

    def save(self, progress: Progress) -> None:
        """Replace what was kept. A crash leaves the old or the new."""
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_bytes(orjson.dumps(asdict(progress)) + b"\n")
        fresh.replace(self.path)

    def remove(self) -> None:
        """Forget a transfer that is done."""
        self.path.unlink(missing_ok=True)
        self.ids.unlink(missing_ok=True)
