"""Looking for damage in one index: its log, its state, its segments, and each against the others.

Everything is read and nothing is written. Databases are read through SQLite only, in one transaction each, the state
before the log, so an index may be in use meanwhile.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from storage.apply import row_digest, signed
from storage.backends.sqlite.database import Reader, Row
from storage.backends.sqlite.folder import IndexFolder
from storage.backends.sqlite.state import Manifest, SegmentRow, StateReader
from storage.batch import unpack_vectors
from storage.chain import NO_CHAIN, Witness, hash_body, link, read_witness
from storage.errors import BatchDamaged, SegmentDamaged, StateDamaged, StorageError, Unavailable
from storage.files import sum_file
from storage.records import Action
from storage.segment import format as layout
from storage.segment.damage import Damage, difference, find_damage, refuse
from storage.segment.format import SegmentDocument, read_document
from storage.segment.texts import TextColumn, mapped

MUTATIONS_SQL = (
    "SELECT sequence, mutation_id, action, created_ms, rows, bytes_through, body_hash, chain, metadata_index "
    "FROM mutations WHERE sequence > ? ORDER BY sequence LIMIT 1000"
)
HEAD_SQL = "SELECT sequence, mutation_id, created_ms, chain, bytes_through, pruned_through FROM head"
READ_TRIES_MAX = 5
DAMAGE_WORDS = ("is damaged", "never written")
"""Of our own: what was read is not what was written."""
PAGE_WORDS = ("malformed", "not a database", "cannot be read as a database")
"""Of SQLite, where it has read a page that cannot be, or could not read one: it says the same of both."""


class Part(StrEnum):
    """Which part of an index a finding is about, and so what it takes to mend it."""

    LOG = "log"
    WITNESS = "witness"
    STATE = "state"
    SEGMENT = "segment"
    DERIVED = "derived"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be. `sequences` are mutations that are lost or in doubt by it."""

    part: Part
    message: str
    sequences: tuple[int, ...] = ()
    segment: str = ""
    is_certain: bool = True
    """Whether it can be nothing but damage: what cannot be read now may be read another time."""
    is_unbuilt: bool = False
    """Whether it is a derived file that is not there, as a restore leaves it: a worker will build it."""

    def shortened(self) -> Finding:
        """As it goes into a log: not every one of a million mutations."""
        return replace(self, message=self.message[:2000], sequences=self.sequences[:100])


@dataclass(frozen=True, slots=True)
class LoggedHead:
    """The head row of a log."""

    sequence: int
    mutation_id: str
    created_ms: int
    chain: bytes
    bytes_through: int
    pruned_through: int


def inspect_index(folder: IndexFolder, *, deep: bool = True, bytes_per_second: int = 0) -> tuple[Finding, ...]:
    """Everything that is wrong with an index. Without `deep` the structure of the files of SQLite is not walked.

    What was found while the manifest moved may be of an older one, and is looked for again.
    """
    for _ in range(READ_TRIES_MAX):
        before = _layout(folder)
        found = _inspect_once(folder, deep=deep, pace=Pace(bytes_per_second))
        if not found or before is None or before == _layout(folder):
            break
    return found


def _layout(folder: IndexFolder) -> int | None:
    try:
        with closing(Reader(folder.state)) as reader:
            return int(reader.rows("SELECT layout FROM progress")[0][0])
    except (StorageError, IndexError, TypeError, ValueError):
        return None


def is_certain(error: Exception) -> bool:
    """Whether an error says that what was read is wrong, and not that it could not be read this time."""
    return not isinstance(error, StorageError) or any(words in str(error) for words in DAMAGE_WORDS)


def is_certain_of(path: Path, error: Exception) -> bool:
    """The same of a database, closed by now, all of which may be read to be certain.

    Not in a process that has it open: closing the file would take the locks of SQLite away.
    """
    if is_certain(error) or not any(words in str(error) for words in PAGE_WORDS):
        return is_certain(error)
    try:
        for file in (path, path.with_name(f"{path.name}-wal")):
            if file.exists():
                sum_file(file)
    except OSError:
        return False
    return True


@dataclass(slots=True)
class Pace:
    """Sleeps so that no more is read than so many bytes a second; 0 never sleeps."""

    bytes_per_second: int

    def read(self, count: int) -> None:
        """Tell that so much was read."""
        if self.bytes_per_second:
            time.sleep(count / self.bytes_per_second)


def _inspect_once(folder: IndexFolder, *, deep: bool, pace: Pace) -> tuple[Finding, ...]:
    witness = read_witness(folder.witness)
    findings: list[Finding] = []
    manifest: Manifest | None = None
    segments: list[tuple[SegmentRow, SegmentDocument]] = []
    try:
        manifest, found = inspect_state(folder.state, deep=deep)
        findings += found
        segments, found = _inspect_segments(folder, manifest, pace)
        findings += found
    except Unavailable:
        raise
    except (StorageError, TypeError, ValueError, OverflowError) as error:
        findings.append(_unreadable_state(folder, error))
    try:
        findings += inspect_log(folder.log, manifest, witness, deep=deep)
        if manifest is not None and not any(one.part is not Part.DERIVED for one in findings):
            findings += _compare_rows(folder, manifest, segments)
    except Unavailable:
        raise
    except (StorageError, TypeError, ValueError, OverflowError) as error:
        message = f"log.db cannot be read: {error}"
        findings.append(Finding(Part.LOG, message, is_certain=is_certain_of(folder.log, error)))
    return tuple(findings)


def inspect_state_alone(folder: IndexFolder) -> tuple[Finding, ...]:
    """What is wrong with all of a state, whatever the log and segments are like. Raises Unavailable."""
    try:
        _, found = inspect_state(folder.state, deep=True)
    except Unavailable:
        raise
    except (StorageError, TypeError, ValueError, OverflowError) as error:
        return (_unreadable_state(folder, error),)
    return tuple(one for one in found if one.part is Part.STATE)


def _unreadable_state(folder: IndexFolder, error: Exception) -> Finding:
    message = f"state.db cannot be read: {error}"
    return Finding(Part.STATE, message, is_certain=is_certain_of(folder.state, error))


def inspect_state(path: Path, *, deep: bool) -> tuple[Manifest, list[Finding]]:
    """The manifest, and what is wrong with the database of it. Raises StorageError where it cannot be read at all."""
    findings = []
    with closing(Reader(path)) as reader:
        if deep:
            findings += _of_structure(Part.STATE, reader)
        state_reader = StateReader(reader)
        with reader.transaction():
            manifest = state_reader.manifest_within()
            try:
                state_reader.compare_rows(manifest.state)
            except StateDamaged as error:
                findings.append(Finding(Part.STATE, str(error)))
    if manifest.state.log_damage:
        findings.append(
            Finding(Part.LOG, f"a worker found, and lets nothing be written since: {manifest.state.log_damage}")
        )
    return manifest, findings


def structure(reader: Reader) -> list[str]:
    """What SQLite itself finds wrong with a file; it misses most of what a flipped bit does."""
    return [str(line) for (line,) in reader.rows("PRAGMA integrity_check") if line != "ok"]


def _of_structure(part: Part, reader: Reader) -> list[Finding]:
    lines = structure(reader)
    is_certain = was_read("\n".join(lines))
    return [Finding(part, f"{reader.path.name}: {line}", is_certain=is_certain) for line in lines]


def was_read(report: str) -> bool:
    """Whether SQLite could read every page it wanted for a report of damage.

    A page that the disk did not give this time is reported like a wrong one, with the code of the error, and so is all
    that is missing because of it.
    """
    return not any(int(code) & 0xFF in _NOT_READ for code in re.findall(r"error code=(\d+)", report))


_NOT_READ = (7, 10)
"""SQLITE_NOMEM, SQLITE_IOERR: the primary code is the low byte of an extended one."""


def inspect_log(path: Path, manifest: Manifest | None, witness: Witness | None, *, deep: bool) -> Iterator[Finding]:
    """What is wrong with a log: by itself, by its witness, and by what the state has applied of it."""
    with closing(Reader(path)) as reader:
        if deep:
            yield from _of_structure(Part.LOG, reader)
        with reader.transaction():
            [row] = reader.rows(HEAD_SQL)
            head = LoggedHead(*row)
            yield from _follow_chain(reader, head)
            yield from _compare_witness(reader, head, witness)
            if manifest is not None:
                yield from _compare_state(reader, head, manifest)


def _follow_chain(reader: Reader, head: LoggedHead) -> Iterator[Finding]:
    """Every row from the anchor to the head: nothing missing, nothing changed."""
    last: Row | None = None
    after = 0
    while rows := reader.rows(MUTATIONS_SQL, (after,)):
        for row in rows:
            yield from _check_mutation(reader, head, last, row)
            last = row
        after = int(rows[-1][0])
    found = (last[0], last[1], last[3], bytes(last[7]), last[5]) if last is not None else (0, "", 0, NO_CHAIN, 0)
    known = (head.sequence, head.mutation_id, head.created_ms, bytes(head.chain), head.bytes_through)
    if found[0] < head.sequence:
        lost = tuple(range(int(found[0]) + 1, head.sequence + 1))
        yield Finding(Part.LOG, f"the rows of mutations {span(lost)} are missing at the end", lost)
    elif found != known:
        yield Finding(Part.LOG, f"the head says mutation {head.sequence} is {head.mutation_id}; its row differs")


def _check_mutation(reader: Reader, head: LoggedHead, last: Row | None, row: Row) -> Iterator[Finding]:
    sequence, id, action, created_ms, rows, bytes_through, body_hash, chain, _ = row
    expected = last[0] + 1 if last is not None else sequence
    if sequence != expected:
        lost = tuple(range(expected, sequence))
        yield Finding(Part.LOG, f"the rows of mutations {span(lost)} are missing", lost)
    previous = bytes(last[7]) if last is not None else NO_CHAIN
    # The oldest row that is left is the anchor: what it followed from is gone.
    if sequence == 1 or (last is not None and sequence == expected):
        linked = link(
            previous,
            sequence=sequence,
            mutation_id=id,
            action=Action(action),
            created_ms=created_ms,
            rows=rows,
            body_hash=bytes(body_hash),
        )
        if linked != bytes(chain):
            yield Finding(
                Part.LOG, f"the row of mutation {sequence} ({id}) or the one before it was changed", (sequence,)
            )
    yield from _check_body(reader, head, last, row, bytes_through)


def _check_body(reader: Reader, head: LoggedHead, last: Row | None, row: Row, bytes_through: int) -> Iterator[Finding]:
    sequence, id, body_hash = row[0], row[1], bytes(row[6])
    bodies = reader.rows("SELECT body FROM bodies WHERE sequence = ?", (sequence,))
    if not bodies:
        if sequence > head.pruned_through:
            yield Finding(Part.LOG, f"the body of mutation {sequence} ({id}, {row[2]}) is missing", (sequence,))
        return
    body = bodies[0][0]
    if not isinstance(body, bytes) or hash_body(body) != body_hash:
        yield Finding(
            Part.LOG, f"the body of mutation {sequence} ({id}, {row[2]} of {row[4]} rows) was changed", (sequence,)
        )
    elif bytes_through != len(body) + (last[5] if last is not None else bytes_through - len(body)):
        yield Finding(Part.LOG, f"the count of bytes at mutation {sequence} ({id}) was changed")


def _compare_witness(reader: Reader, head: LoggedHead, witness: Witness | None) -> Iterator[Finding]:
    if witness is None or not witness.sequence:
        if head.sequence:
            yield Finding(Part.WITNESS, "HEAD is missing or cannot be read; the loss of the log's end would be missed")
        return
    if witness.sequence > head.sequence:
        lost = tuple(range(head.sequence + 1, witness.sequence + 1))
        yield Finding(Part.LOG, f"mutations {span(lost)} were acknowledged, and the log ends before them", lost)
        return
    rows = reader.rows("SELECT chain FROM mutations WHERE sequence = ?", (witness.sequence,))
    if rows and bytes(rows[0][0]) != witness.chain:
        yield Finding(Part.WITNESS, f"HEAD saw another mutation {witness.sequence} than the log has")


def _compare_state(reader: Reader, head: LoggedHead, manifest: Manifest) -> Iterator[Finding]:
    state = manifest.state
    if state.applied > head.sequence:
        lost = tuple(range(head.sequence + 1, state.applied + 1))
        yield Finding(
            Part.LOG,
            f"mutations {span(lost)} were applied, the last of them {state.applied_id}, and the log ends before them",
            lost,
        )
    rows = reader.rows("SELECT chain, mutation_id FROM mutations WHERE sequence = ?", (state.applied,))
    if rows and (bytes(rows[0][0]), rows[0][1]) != (state.applied_chain, state.applied_id):
        yield Finding(
            Part.STATE,
            f"the state has applied mutation {state.applied} as {state.applied_id}; the log has {rows[0][1]}",
        )
    if head.pruned_through > state.sealed_through:
        yield Finding(
            Part.STATE,
            f"the state has sealed mutations up to {state.sealed_through}, and the log gave up those up to "
            f"{head.pruned_through}: the state is an older one",
        )


def _inspect_segments(
    folder: IndexFolder, manifest: Manifest, pace: Pace
) -> tuple[list[tuple[SegmentRow, SegmentDocument]], list[Finding]]:
    opened: list[tuple[SegmentRow, SegmentDocument]] = []
    findings = []
    for row in manifest.segments:
        try:
            document, _ = read_document(folder.segments / row.name, checksum=row.checksum)
        except (SegmentDamaged, OSError) as error:
            message = f"segment {row.name}: {error}; all of its {row.rows} rows are lost"
            findings.append(Finding(Part.SEGMENT, message, segment=row.name))
            continue
        damages = find_damage(folder.segments / row.name, document)
        pace.read(row.bytes)
        findings += [_of_damage(folder.segments / row.name, document, damage) for damage in damages]
        if not any(damage.primary for damage in damages):
            opened.append((row, document))
    for column in manifest.columns:
        path = folder.segments / column.segment / column.file
        reason = difference(path, column.checksum)
        if reason:
            message = f"segment {column.segment}: {column.file} {reason}"
            findings.append(Finding(Part.DERIVED, message, segment=column.segment, is_unbuilt=not path.exists()))
    return opened, findings


def _of_damage(path: Path, document: SegmentDocument, damage: Damage) -> Finding:
    if damage.primary:
        return Finding(Part.SEGMENT, str(refuse(path, document, (damage,))), segment=path.name)
    is_unbuilt = not (path / damage.file).exists()
    message = f"segment {path.name}: {damage.file} {damage.reason}"
    return Finding(Part.DERIVED, message, segment=path.name, is_unbuilt=is_unbuilt)


def _compare_rows(
    folder: IndexFolder, manifest: Manifest, segments: list[tuple[SegmentRow, SegmentDocument]]
) -> Iterator[Finding]:
    """The rows of segments and tail that are live, against those of the state, id by id."""
    count, total = 0, 0
    dead = np.array(manifest.tombstones, dtype=np.uint64)
    for row, document in segments:
        path = folder.segments / row.name
        labels = np.frombuffer(mapped(path / layout.LABELS), dtype="<u8")
        ids = TextColumn.open(path, layout.IDS)
        if document.rows != len(labels) or len(ids) != len(labels):
            yield Finding(Part.SEGMENT, f"segment {row.name} contradicts itself: {len(labels)} labels, {len(ids)} ids")
            return
        for place in np.flatnonzero(~np.isin(labels, dead)).tolist():
            total += row_digest(ids[place].decode(), int(labels[place]))
            count += 1
    gone = frozenset(manifest.tombstones)
    with closing(Reader(folder.log)) as reader:
        for part in manifest.parts:
            bodies = reader.rows("SELECT body FROM bodies WHERE sequence = ?", (part.sequence,))
            try:
                ids_of_part = unpack_vectors(bodies[0][0]).ids if bodies else ()
            except BatchDamaged as error:
                yield Finding(Part.LOG, f"the body of mutation {part.sequence}: {error}", (part.sequence,))
                return
            for place, id in enumerate(ids_of_part):
                if part.first_label + place not in gone:
                    total += row_digest(id, part.first_label + place)
                    count += 1
    state = manifest.state
    if (count, signed(total % (1 << 64))) != (state.vectors, state.digest):
        yield Finding(
            Part.STATE,
            f"segments and tail have {count} live rows with digest {signed(total % (1 << 64))}; the state says "
            f"{state.vectors} with {state.digest}",
        )


def span(sequences: tuple[int, ...]) -> str:
    """A run of sequences as text."""
    if len(sequences) == 1:
        return str(sequences[0])
    return f"{sequences[0]} to {sequences[-1]} ({len(sequences)})" if sequences else "none"
