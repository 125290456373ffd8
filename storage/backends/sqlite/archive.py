"""What a backup is: a folder or one tar archive of plain files, and a manifest that says what each must be.

    headrace-backup.json                 two lines: the manifest as JSON, and the sha256 of that line
    control-<generation>.db
    indexes/<index>/log-<generation>.db
    indexes/<index>/state-<generation>.db
    indexes/<index>/segments/<segment>/  segment.json and the primary files

Databases are copied anew by every backup into the folder, under names of their own, and the manifest is replaced
last: until then the backup before it is whole. Segments never change, so what is there already stays. Graphs, columns
and whatever else can be made from primary files are not in a backup: they are built, never believed.

A backup that is read may come from anybody. Only names of these forms are known; everything else is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

import orjson

from storage.errors import BackupRefused
from storage.segment import format as layout

VERSION = 1
MANIFEST = "headrace-backup.json"
MANIFEST_BYTES_MAX = 1024 * 1024 * 1024
INDEX_ID = r"[0-9a-f]{32}"
GENERATION = r"[0-9a-f]{32}"
SEGMENT_NAME = r"[0-9]{1,19}-[0-9a-f]{32}"
SEGMENT_FILES = (layout.DOCUMENT, *layout.PRIMARY)
"""What a backup has of a segment."""
_SEGMENT_FILE = "|".join(map(re.escape, SEGMENT_FILES))
_FORMS = (
    (re.compile(rf"control-{GENERATION}\.db"), "control.db"),
    (re.compile(rf"indexes/({INDEX_ID})/log-{GENERATION}\.db"), r"indexes/\1/log.db"),
    (re.compile(rf"indexes/({INDEX_ID})/state-{GENERATION}\.db"), r"indexes/\1/state.db"),
    (
        re.compile(rf"indexes/({INDEX_ID})/segments/({SEGMENT_NAME})/({_SEGMENT_FILE})"),
        r"indexes/\1/segments/\2/\3",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """One file of a backup. `path` is where it lies in it."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptIndex:
    """One index of a backup, and how far it was: `head` is the newest mutation, `applied` the newest applied."""

    id: str
    account: str
    name: str
    head: int
    head_id: str
    applied: int
    applied_id: str
    vectors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An index that could not be backed up, and why."""

    id: str
    account: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupManifest:
    """Everything that a backup holds."""

    created_ms: int
    program: str
    files: tuple[KeptFile, ...]
    indexes: tuple[KeptIndex, ...]
    left_out: tuple[LeftOut, ...] = ()
    by_path: Mapping[str, KeptFile] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_path", {file.path: file for file in self.files})


Kept = TypeVar("Kept", KeptFile, KeptIndex, LeftOut)


def place_of(path: str) -> str:
    """Where a file of a backup belongs in a data folder. Raises BackupRefused for one that no backup has."""
    for form, place in _FORMS:
        found = form.fullmatch(path)
        if found is not None:
            return found.expand(place)
    raise BackupRefused(f"the backup has a file {path!r}, which no backup has; it was changed, or is none")


def pack_manifest(manifest: BackupManifest) -> bytes:
    """Spell a manifest."""
    spelled = asdict(manifest)
    del spelled["by_path"]
    line = orjson.dumps({"format": VERSION, **spelled})
    return line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n"


def unpack_manifest(content: bytes) -> BackupManifest:
    """Read what `pack_manifest` wrote. Raises BackupRefused."""
    line, _, checksum = content.partition(b"\n")
    if hashlib.sha256(line).hexdigest().encode() != checksum.strip():
        raise BackupRefused(f"{MANIFEST} is not what was written: its checksum differs")
    try:
        found = orjson.loads(line)
        version = found.pop("format")
        if version != VERSION:
            raise BackupRefused(f"the backup has format {version}; this program reads {VERSION}")
        if type(found["created_ms"]) is not int:  # Of a number beyond 64 bits the parser makes a float.
            raise BackupRefused(f"{MANIFEST} says that it was made at {found['created_ms']!r:.80}")
        manifest = BackupManifest(
            created_ms=found["created_ms"],
            program=str(found["program"]),
            files=tuple(_typed(KeptFile, file) for file in found["files"]),
            indexes=tuple(_typed(KeptIndex, index) for index in found["indexes"]),
            left_out=tuple(_typed(LeftOut, index) for index in found["left_out"]),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise BackupRefused(f"{MANIFEST} lacks or contradicts a key: {error!r}") from error
    _check(manifest)
    return manifest


def _typed(kind: type[Kept], given: dict[str, Any]) -> Kept:
    """One entry of a manifest, whose every value is of the kind it should be. Raises TypeError."""
    kept = kind(**given)
    wrong = [field.name for field in fields(kept) if type(getattr(kept, field.name)).__name__ != field.type]
    if wrong:
        raise TypeError(f"{wrong[0]} of {kind.__name__} is {given[wrong[0]]!r:.80}")
    return kept


def _check(manifest: BackupManifest) -> None:
    """Refuse a manifest that names a place twice, an index that is none, or an index without its databases."""
    places = [place_of(file.path) for file in manifest.files]
    if len(set(places)) != len(places):
        raise BackupRefused("the backup has two files for one place")
    needed = {"control.db"}
    for index in manifest.indexes:
        if not re.fullmatch(INDEX_ID, index.id):
            raise BackupRefused(f"the backup names an index {index.id!r}, which cannot be one")
        needed |= {f"indexes/{index.id}/log.db", f"indexes/{index.id}/state.db"}
    missing = sorted(needed - set(places))
    if missing:
        raise BackupRefused(f"the backup lacks {', '.join(missing[:3])}")
    if any(file.bytes < 0 for file in manifest.files):
        raise BackupRefused("the backup has a file of no possible size")
