"""Every parser of bytes that others send, each with what must hold of it whatever the bytes are.

A target takes bytes and returns, or raises `Wrong` or whatever the parser should not have raised. `SEEDS` has, for
each, what the mutations begin with.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import parse_qsl

import numpy as np
import orjson
import xxhash
from aiohttp import web
from multidict import CIMultiDict, MultiDict

from service.commands.failure import CommandFailed
from service.commands.transfer_file import FileSource
from service.commands.transfer_journal import Progress
from service.dialects.binding import addressing
from service.dialects.vectorize import names, parameters
from service.dialects.vectorize.errors import Refusal
from service.dialects.vectorize.filters import parse_filter, rules_for
from service.dialects.vectorize.marks import Marks
from service.dialects.vectorize.models import Ids, read_model
from service.dialects.vectorize.questions import read_question
from service.dialects.vectorize.vectors import ArrivingBatch, BatchRules, ReadBatch, read_batch
from service.gate import Gate
from storage.backends.sqlite.archive import pack_manifest, unpack_manifest
from storage.backends.sqlite.restoring import unpack
from storage.batch import CHECKSUM_BYTES, unpack_ids, unpack_json, unpack_namespaces, unpack_vectors
from storage.batch import pack_vectors as packed
from storage.cursors import unseal
from storage.errors import (
    BackupRefused,
    BatchDamaged,
    CursorExpired,
    CursorInvalid,
    FilterInvalid,
    SchemaTooNew,
    SegmentDamaged,
)
from storage.filters import FilterRules, from_json, holds, to_json
from storage.limits import CLOUDFLARE, RELAXED
from storage.records import Action, IndexId, Sequence
from storage.segment.columns import StoredColumn
from storage.segment.format import unpack_document
from storage.settings import Settings
from storage.tokens import grant_text, judge, parse_grant, token_hash, token_id

DIMENSIONS = 3
LABELS = ("", "application/x-ndjson", "application/json", "multipart/form-data; boundary=xyz", "text/plain")
LIMITS = (CLOUDFLARE, RELAXED)
METADATA = {"k": 1, "a": {"b": "text"}, "l": [1, "x", None, True], "t": True, "n": None, "f": 1.5}


class Wrong(AssertionError):
    """A parser contradicts itself."""


def body(data: bytes) -> None:
    """A batch: read whole and as it arrives, with the same result; what is taken can be kept."""
    options, data = data[:2].ljust(2, b"\0"), data[2:]
    label = LABELS[options[0] % len(LABELS)]
    rules = BatchRules(
        action=(Action.INSERT, Action.UPSERT)[options[0] >> 7],
        dimensions=DIMENSIONS,
        limits=LIMITS[options[0] >> 6 & 1],
        discard=bool(options[0] >> 5 & 1),
    )
    whole = _outcome(lambda: read_batch(data, label, rules))
    size = options[1] + 1
    if ArrivingBatch.fits(data[:size], label):
        arriving = ArrivingBatch(rules, len(data))
        for start in range(0, len(data), size):
            arriving.feed(data[start : start + size])
        found = _outcome(arriving.end)
        if found != whole:
            raise Wrong(f"arriving in pieces of {size}: {found}; whole: {whole}")
    if not isinstance(whole, Refusal) and whole[0] != "refused":
        batch = read_batch(data, label, rules).batch
        if _told(ReadBatch(unpack_vectors(packed(batch)), 0)) != _told(ReadBatch(batch, 0)):
            raise Wrong("packed and unpacked it is another")


def _outcome(read: Callable[[], ReadBatch]) -> tuple[object, ...]:
    try:
        return _told(read())
    except Refusal as refusal:
        return "refused", refusal.status, refusal.code, refusal.message


def _told(read: ReadBatch) -> tuple[object, ...]:
    batch = read.batch
    return batch.ids, batch.namespaces, batch.metadata, batch.values.tobytes(), batch.values.shape, read.dropped


def query(data: bytes) -> None:
    """A question: whatever the quick way takes is what the document says."""
    options, data = data[:1] or b"\0", data[1:]
    limits = LIMITS[options[0] & 1]
    request = _request("")
    try:
        question = read_question(request, data, limits, recall=0.9)
    except (Refusal, FilterInvalid):
        return
    document = orjson.loads(data)
    vector = document.get("vector")
    if (question.vector is None) != (vector is None):
        raise Wrong(f"the vector is {question.vector}")
    if question.vector is not None and not np.array_equal(question.vector, np.array(vector, dtype=np.float64)):
        raise Wrong(f"the vector is {question.vector}")
    again = read_question(request, data, limits, recall=0.9)
    plain = read_question(request, b" " + orjson.dumps(document), limits, recall=0.9)
    if again.shape != question.shape or plain.shape != question.shape:
        raise Wrong(f"read again it is {again.shape}, from the document {plain.shape}, and was {question.shape}")


def ids(data: bytes) -> None:
    """A list of ids; and its values are counted alike, however it is cut."""
    size, data = (data[:1] or b"\0")[0] + 1, data[1:]
    # More than fewer than none are too many at once, so that every mark is told from those in strings.
    whole, cut = Marks(-1), Marks(-1)
    for marks, step in ((whole, max(1, len(data))), (cut, size)):
        for start in range(0, len(data), step):
            marks.feed(data[start : start + step])
    if vars(whole) != vars(cut):
        raise Wrong(f"in pieces of {size}: {vars(cut)}; whole: {vars(whole)}")
    with suppress(Refusal):
        found = read_model(Ids, data)
        names.check_ids(found.ids, RELAXED, count_max=1_000)
        if found.ids != orjson.loads(data)["ids"]:
            raise Wrong(f"the ids are {found.ids}")
        # A mark before every value but the first, and one for the document.
        if len(found.ids) > vars(whole)["_exact"]:
            raise Wrong(f"{len(found.ids)} ids, {vars(whole)} marks")


def filters(data: bytes) -> None:
    """A filter: what is taken is kept, comes back as it was, and can be asked of any metadata."""
    with suppress(orjson.JSONDecodeError):
        document = orjson.loads(data)
        for limits in LIMITS:
            with suppress(FilterInvalid):
                tree = parse_filter(document, limits)
                if tree is not None:
                    kept = from_json(orjson.loads(orjson.dumps(to_json(tree))))
                    if kept != tree:
                        raise Wrong(f"kept as {kept}, and was {tree}")
                    holds(tree, METADATA, rules_for(limits), {})
        with suppress(FilterInvalid):
            holds(from_json(document), METADATA, FilterRules(), {})


def cursor(data: bytes) -> None:
    """A cursor that nobody here made is refused."""
    text = data.decode("utf-8", "surrogateescape")
    with suppress(CursorInvalid, CursorExpired):
        unseal(text, b"secret", index=IndexId("i"), about="x", now_ms=0, horizon=Sequence(0))
        raise Wrong("it was taken")


def batch(data: bytes) -> None:
    """The packed body of a mutation, with a checksum that fits and without."""
    sealed = data[:-CHECKSUM_BYTES] + xxhash.xxh3_128_digest(data[:-CHECKSUM_BYTES])
    for content in (data, sealed):
        for read in (unpack_vectors, unpack_ids, unpack_namespaces, unpack_json):
            with suppress(BatchDamaged):
                cast("Callable[[bytes], object]", read)(content)


def segment(data: bytes) -> None:
    """The document of a segment."""
    with suppress(SegmentDamaged, SchemaTooNew):
        unpack_document(data)


def column(data: bytes) -> None:
    """A column file whose checksum fits."""
    with _scratch() as folder, suppress(SegmentDamaged):
        content = data[: -CHECKSUM_BYTES or None]
        (folder / "c").write_bytes(content + xxhash.xxh3_128_digest(content))
        StoredColumn.open(folder / "c")


def archive(data: bytes) -> None:
    """A backup in one file; and nothing is written beside where it is unpacked."""
    with _scratch() as folder:
        (folder / "backup.tar").write_bytes(data)
        with suppress(BackupRefused):
            unpack(folder / "backup.tar", folder / "draft")
        beside = {path.name for path in folder.iterdir()} - {"backup.tar", "draft"}
        if beside or any(path.is_symlink() for path in folder.rglob("*")):
            raise Wrong(f"there is {beside} now")


def manifest(data: bytes) -> None:
    """The manifest of a backup whose checksum fits."""
    line = data.partition(b"\n")[0]
    with suppress(BackupRefused):
        found = unpack_manifest(line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n")
        if unpack_manifest(pack_manifest(found)) != found:
            raise Wrong("packed and unpacked it is another")


def token(data: bytes) -> None:
    """The text of a token, of a grant, and the headers a token may come in."""
    text = data.decode("utf-8", "surrogateescape")
    for one in (text, data.decode("utf-16-le", "surrogatepass") if len(data) % 2 == 0 and _is_utf16(data) else text):
        judge(None, token_hash(one), 0)
        token_id(one)
        Gate(cast("Any", SimpleNamespace(find=lambda _: None, is_locked=lambda: True)), "x").look(one)
    with suppress(ValueError):
        grant = parse_grant(text)
        if parse_grant(grant_text(grant)) != grant:
            raise Wrong(f"{grant} is spelled {grant_text(grant)}")


def _is_utf16(data: bytes) -> bool:
    try:
        data.decode("utf-16-le", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def imported(data: bytes) -> None:
    """A file of vectors to import."""
    with _scratch() as folder, suppress(CommandFailed):
        (folder / "vectors.ndjson").write_bytes(data)
        source = FileSource(folder / "vectors.ndjson", metric="cosine", metadata_indexes=())
        asyncio.run(_read_all(source))


async def _read_all(source: FileSource) -> None:
    await source.describe()
    progress = cast("Progress", SimpleNamespace(total=-1, position=0))
    await source.count(progress, cast("Any", None), lambda *_: None)
    async for _ in source.pieces(progress, cast("Any", None)):
        pass


def address(data: bytes) -> None:
    """Names, query strings and headers."""
    text = data.decode("utf-8", "surrogateescape")
    head, _, rest = text.partition("\n")
    request = _request(head, rest)
    for read in (
        lambda: names.check_index_name(text, CLOUDFLARE),
        lambda: names.check_id(text, RELAXED),
        lambda: names.checked_namespace(text, RELAXED),
        lambda: names.check_property_name(text, RELAXED),
        lambda: names.is_account(text),
        lambda: parameters.flag_parameter(request, "wait"),
        lambda: parameters.whole_parameter(request, "count", default=1, least=0, most=9),
        lambda: parameters.timeout_s(request, Settings()),
        lambda: parameters.words_parameter(request, "include", frozenset({"values"})),
        lambda: parameters.idempotency_key(request),
        lambda: addressing.call_of(request),
        lambda: addressing.told_vectors(request),
    ):
        with suppress(Refusal, web.HTTPException):
            read()


def _request(query_string: str, header: str = "") -> web.Request:
    """As much of a request as parsers look at."""
    found = SimpleNamespace(
        query_string=query_string,
        query=MultiDict(parse_qsl(query_string, keep_blank_values=True)),
        headers=CIMultiDict(
            {
                name: header
                for name in ("Idempotency-Key", "MF-URL", "MF-Binding", "CF-Vector-Search-Dim-Height")
                if header
            }
        ),
        match_info={},
    )
    return cast("web.Request", found)


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="headrace-fuzz-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        body,
        query,
        ids,
        filters,
        cursor,
        batch,
        segment,
        column,
        archive,
        manifest,
        token,
        imported,
        address,
    )
}
