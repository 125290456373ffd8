"""What fuzzing begins with: a few good inputs for each target, and what was found before."""

from __future__ import annotations

import hashlib
import io
import tarfile

import numpy as np
import orjson

from storage.backends.sqlite.archive import MANIFEST, BackupManifest, KeptFile, pack_manifest
from storage.batch import Batch, pack_ids, pack_json, pack_vectors
from storage.cursors import Cursor, seal
from storage.records import IndexId, MetadataType, Sequence
from storage.segment.columns import pack_column

_VECTOR = b'{"id":"a","values":[1,2.5,-3e2],"namespace":"n","metadata":{"k":1,"a":{"b":"x"},"l":[1,null,true]}}'
_LINES = _VECTOR + b'\n{"id":"b","values":[0,0,1]}\n'
_FORM = b'--xyz\r\nContent-Disposition: form-data; name="v"; filename="f"\r\n\r\n' + _LINES + b"\r\n--xyz--\r\n"
_FILTER = {"k": {"$gte": 1, "$lt": 5}, "a.b": {"$in": ["x", 1, None]}, "t": True}


def seeds(target: str) -> list[bytes]:
    """The inputs of one target."""
    return _SEEDS[target]


def _batches() -> list[bytes]:
    batch = Batch(
        ids=("a", "b"),
        namespaces=("", "n"),
        metadata=(b"", b'{"k":1}'),
        values=np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32),
    )
    return [pack_vectors(batch), pack_ids(["a", "b", "c"]), pack_json({"filter": {}, "namespace": "n"})]


def _segment() -> bytes:
    known = {"bytes": 1, "xxh3_128": "0" * 32, "blocks": "0" * 32}
    graph = {
        "connectivity": 16,
        "precision": "f16",
        "scale": 1.0,
        "side": "side.u32",
        "side_rows": 0,
        "expansion_min": 1,
        "expansions": {"10": {"0.9": 64}},
    }
    document = {
        "format": 1,
        "name": "1-" + "0" * 32,
        "rows": 2,
        "first_label": 1,
        "last_label": 2,
        "first_sequence": 1,
        "last_sequence": 2,
        "as_of": 2,
        "metric": "cosine",
        "dimensions": 3,
        "slots": [{"name": "", "graph": graph}],
        "ranges": [[1, 2]],
        "tombstones": [[1, 2]],
        "metadata_indexes": [{"id": 1, "property": "k", "type": "string", "file": "c.col"}],
        "files": {"c.col": known},
    }
    return orjson.dumps(document)


def _manifest() -> BackupManifest:
    kept = KeptFile(path=f"control-{'0' * 32}.db", bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())
    return BackupManifest(created_ms=1, program="0.1.0", files=(kept,), indexes=())


def _archive() -> bytes:
    packed, manifest = io.BytesIO(), _manifest()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in ((MANIFEST, pack_manifest(manifest)), (manifest.files[0].path, b"abc")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _cursor() -> bytes:
    cursor = Cursor(index=IndexId("i"), at=Sequence(1), last_id="a", total=3, expires_ms=1, about="x")
    return seal(cursor, b"another secret").encode()


_SEEDS: dict[str, list[bytes]] = {
    "body": [
        b"\x01\x10" + _LINES,
        b"\x22\x05" + _LINES + b"junk\n",
        b"\x42\xff[" + _VECTOR + b"]",
        b"\x02\xff" + b'{"vectors":[' + _VECTOR + b"]}",
        b"\x03\x20" + _FORM,
        b"\x02\x20" + orjson.dumps(_LINES.decode()),
    ],
    "query": [
        b'\0{"vector":[1,2,3],"topK":5,"returnValues":true,"returnMetadata":"all"}',
        b'\1{"vectorId":"a","filter":' + orjson.dumps(_FILTER) + b',"namespace":"n","offset":1,"recall":0.9}',
        b'\1{"topK":3.0,"vector":[1e38,-0.0,1e-320]}',
    ],
    "ids": [b'\x03{"ids":["a","b,[{","c\\"\\\\"]}', b'\x10{"a":{"ids":[]},"ids":["\\u00e9"]}'],
    "filters": [
        orjson.dumps(_FILTER),
        orjson.dumps({"$or": [{"a": 1}, {"$not": {"b": {"$exists": True}}}], "c": {"$nin": [1.5, "x", False]}}),
        orjson.dumps({"and": [{"path": ["k"], "comparison": "eq", "operand": 1}, {"not": {"or": []}}]}),
    ],
    "cursor": [_cursor(), b"", b"AAAA"],
    "batch": _batches(),
    "segment": [_segment()],
    "column": [
        pack_column(MetadataType.STRING, ["x", None, "y", ["x", "z"]]),
        pack_column(MetadataType.NUMBER, [1, 2.5, None]),
        pack_column(MetadataType.BOOLEAN, [True, None, False]),
    ],
    "archive": [_archive()],
    "manifest": [pack_manifest(_manifest())],
    "token": [b"hr_abcdefghijkl_" + b"s" * 43, b"write:acme/docs-*", b"metrics:*", b"admin:*"],
    "imported": [_LINES],
    "address": [b"docs", b"wait=true&timeout=1e3&count=5&include=values", b"a=b\n/query", b"idx=docs\nhttp://x/query"],
}
