"""What fuzzing and its like found: each input that once broke a parser, and what is said of it now."""

from __future__ import annotations

import asyncio
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import orjson
import pytest
import xxhash

from storage.backends.sqlite.archive import MANIFEST, BackupManifest, KeptFile, pack_manifest, unpack_manifest
from storage.backends.sqlite.restoring import unpack
from storage.batch import unpack_ids, unpack_json, unpack_namespaces, unpack_vectors
from storage.errors import BackupRefused, BatchDamaged, SegmentDamaged
from storage.segment.format import unpack_document
from tests.service.conftest import V2, Service

HEAD = struct.Struct("<4sHHI")
ENTRY = struct.Struct("<16sQQ")


def sealed(content: bytes) -> bytes:
    return content + xxhash.xxh3_128_digest(content)


def section(name: bytes, content: bytes, rows: int = 0) -> bytes:
    head = HEAD.pack(b"HRBT", 1, 1, rows) + ENTRY.pack(name, HEAD.size + ENTRY.size, len(content))
    return sealed(head + content)


BODIES = {
    "a table that is cut off": sealed(HEAD.pack(b"HRBT", 1, 65_535, 0)),
    "a section whose name is no text": section(b"\xff\xfe", b""),
    "dimensions beyond any number": section(b"slots", orjson.dumps([{"dimensions": 1e308}])),
    "dimensions that are no number": section(b"slots", orjson.dumps([{"dimensions": None}])),
    "slots that are none": section(b"slots", b"1"),
}


@pytest.mark.parametrize("case", BODIES)
@pytest.mark.parametrize("read", [unpack_vectors, unpack_ids, unpack_namespaces, unpack_json])
def test_a_packed_body_that_contradicts_itself_is_damaged(case: str, read):
    with pytest.raises(BatchDamaged):
        read(BODIES[case])


@pytest.mark.parametrize("files", [[], "x", 1])
def test_the_document_of_a_segment_whose_parts_are_of_other_kinds_is_damaged(files: object):
    with pytest.raises(SegmentDamaged):
        unpack_document(orjson.dumps({"format": 1, "files": files}))


CONTROL = f"control-{'0' * 32}.db"
GOOD = {"path": CONTROL, "bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
INDEX = dict.fromkeys(("id", "account", "name", "head_id", "applied_id"), "x")
NUMBERS = dict.fromkeys(("head", "applied", "vectors"), 0)
MANIFESTS = {
    "a path that is a number": {"files": [GOOD | {"path": 1}]},
    "a path that is a list": {"files": [GOOD | {"path": []}]},
    "a size that is text": {"files": [GOOD | {"bytes": "3"}]},
    "a checksum that is none": {"files": [GOOD | {"sha256": None}]},
    "an index without a name": {"files": [GOOD], "indexes": [INDEX | NUMBERS | {"id": 7}]},
    "an index with half a head": {"files": [GOOD], "indexes": [INDEX | NUMBERS | {"head": "1"}]},
    "files that are text": {"files": "abc"},
    "a time that is text": {"files": [GOOD], "created_ms": "9" * 5_000},
    "a time beyond 64 bits": {"files": [GOOD], "created_ms": 1e33},
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_with_values_of_another_kind_is_refused(case: str):
    fields = {"format": 1, "created_ms": 1, "program": "x", "files": [], "indexes": [], "left_out": []}
    line = orjson.dumps(fields | MANIFESTS[case])

    with pytest.raises(BackupRefused):
        unpack_manifest(line + b"\n" + hashlib.sha256(line).hexdigest().encode())


def member(name: str, content: bytes, **fields: object) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        found = tarfile.TarInfo(name)
        found.size = len(content)
        for key, value in fields.items():
            setattr(found, key, value)
        archive.addfile(found, io.BytesIO(content))
    return packed.getvalue().rstrip(b"\0").ljust(512 * 3, b"\0")


def manifest() -> bytes:
    return pack_manifest(BackupManifest(created_ms=1, program="x", files=(KeptFile(**GOOD),), indexes=()))


def long_names(count: int) -> bytes:
    """Headers that each say that the next has a long name."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
    return (header.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")) * count


ARCHIVES = {
    "a sparse map that is no numbers": member(MANIFEST, b"abc", pax_headers={"GNU.sparse.map": "x,y"}),
    "a sparse file of a gigabyte": member(
        MANIFEST, b"abc", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 30)}
    ),
    "a sparse file that is nothing else": member(
        MANIFEST, b"0\n", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    ),
    "names without end": long_names(3_000),
    "nothing": b"",
    "a header of a negative size": b"\0" * 124 + b"\xff" * 12 + b"\0" * 376,
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_is_made_to_break_its_reader_is_refused(case: str, tmp_path: Path):
    (tmp_path / "backup.tar").write_bytes(ARCHIVES[case])

    with pytest.raises(BackupRefused):
        unpack(tmp_path / "backup.tar", tmp_path / "draft")


REQUESTS = {
    "a parameter": f"{V2}/docs/list?prefix=\udcff",
    "a mutation": f"{V2}/docs/mutations/\udcff",
    "an account": "/client/v4/accounts/\udcff/vectorize/v2/indexes",
    "a binding": "/_binding?\udcff=docs",
}


async def asked(service: Service, head: str) -> bytes:
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{head}\r\nHost: x\r\nConnection: close\r\n\r\n".encode("utf-8", "surrogateescape"))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("case", REQUESTS)
async def test_a_byte_that_is_no_text_is_no_failure_of_the_service(service: Service, case: str):
    await service.create()

    answer = await asked(service, f"GET {REQUESTS[case]} HTTP/1.1")

    assert int(answer[9:12]) == 400, answer


@pytest.mark.parametrize("url", ["http://[", "http://[::1", "http://x:99999/query", "//["])
async def test_an_address_in_a_header_that_is_none_is_no_failure_of_the_service(service: Service, url: str):
    await service.create()

    answer = await service.post("/_binding/docs", {}, headers={"MF-URL": url})

    assert answer.status == 400, answer.text
