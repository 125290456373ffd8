"""Hostile clients, inside requests: documents, names, cursors and encodings that are meant to hurt.

Each has its exact answer, never a 500, and never more memory than a few times what was sent.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import orjson
import pytest
from yarl import URL

from service.dialects.vectorize.errors import Refusal
from service.dialects.vectorize.marks import Marks
from service.dialects.vectorize.models import Ids, validate
from service.dialects.vectorize.reading import document_bytes_max
from service.keys import BODY_BUDGET
from storage.limits import CLOUDFLARE
from storage.settings import Settings
from tests.service.conftest import JSON, NDJSON, V2, Answer, Service, axis, limited, serving, vector

MIB = 1024 * 1024


@pytest.fixture
async def docs(service: Service) -> Service:
    """A service with one index and one vector in it."""
    await service.create()
    await service.upsert([vector("a", metadata={"k": 1})])
    return service


@contextmanager
def bounded(mib: float) -> Iterator[None]:
    """Fail if the process, client included, holds more than so much at any time in the block."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (peak - before) / MIB <= mib


async def sent(service: Service, path: str, body: bytes) -> Answer:
    """The answer to a body of any size; as a file, because the client warns of large bytes."""
    return await service.ask("POST", path, data=io.BytesIO(body), headers=JSON)


def refused(answer: Answer) -> tuple[int, int]:
    """Status and code of a refusal that gives nothing of the inside away."""
    assert b"Traceback" not in answer.text
    assert b".py" not in answer.text
    assert len(answer.text) < 4_096
    return answer.status, answer.code


BOMB = zlib.compress(bytes(200 * MIB), 9)
ENCODINGS = ["gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "compress", "gzip, gzip", "identity, gzip", "no-such"]


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_body_in_any_encoding_is_refused_before_it_is_unpacked(docs: Service, encoding: str):
    body = gzip.compress(orjson.dumps(vector("a")))

    answer = await docs.ask("POST", "docs/upsert", data=body, headers=NDJSON | {"Content-Encoding": encoding})

    assert refused(answer) == (415, 49034)


@pytest.mark.parametrize("headers", [{"Content-Encoding": "deflate"}, {}], ids=["told", "not told"])
async def test_a_bomb_is_not_unpacked(docs: Service, headers: dict[str, str]):
    with bounded(4):
        answer = await docs.ask("POST", "docs/upsert", data=BOMB, headers=NDJSON | headers)

    assert refused(answer) == ((415, 49034) if headers else (400, 40023))
    assert docs.app[BODY_BUDGET].held == 0


DEEP = b"[" * 200_000
LINES: dict[str, tuple[bytes, int]] = {
    "arrays without end": (b'{"id":"a","values":' + DEEP, 40023),
    "a value of nested arrays": (b'{"id":"a","values":' + DEEP + b"1" + b"]" * len(DEEP) + b"}", 40023),
    "metadata of objects without end": (
        b'{"id":"a","values":[' + b"1," * 31 + b'1],"metadata":' + b'{"a":' * 200_000,
        40023,
    ),
    "NaN": (b'{"id":"a","values":[' + b"NaN," * 31 + b"1]}", 40012),
    "Infinity": (b'{"id":"a","values":[' + b"1," * 31 + b"Infinity]}", 40012),
    "minus Infinity": (b'{"id":"a","values":[' + b"1," * 31 + b"-Infinity]}", 40012),
    "a number beyond float64": (b'{"id":"a","values":[' + b"1," * 31 + b"1e400]}", 40012),
    "a number beyond float32": (b'{"id":"a","values":[' + b"1," * 31 + b"1e39]}", 40012),
    "a number of 100,000 digits": (b'{"id":"a","values":[' + b"1," * 31 + b"9" * 100_000 + b"]}", 40023),
    "half a surrogate pair": (b'{"id":"\\ud800","values":[' + b"1," * 31 + b"1]}", 40026),
    "bytes that are not UTF-8": (b'{"id":"\xff\xfe","values":[' + b"1," * 31 + b"1]}", 40023),
    "a boolean": (b'{"id":"a","values":[' + b"1," * 31 + b"true]}", 40012),
    "a number in quotes": (b'{"id":"a","values":[' + b"1," * 31 + b'"1"]}', 40012),
    "nothing as a value": (b'{"id":"a","values":[' + b"1," * 31 + b"null]}", 40012),
    "no values": (b'{"id":"a","values":[]}', 40012),
    "an id that is a number": (b'{"id":1,"values":[' + b"1," * 31 + b"1]}", 40023),
    "an id of nothing": (b'{"id":"","values":[' + b"1," * 31 + b"1]}", 40026),
    "300,000 empty objects": (b"{}\n" * 300_000, 40023),
}


@pytest.mark.parametrize("case", LINES)
async def test_a_batch_that_is_meant_to_hurt_is_refused_whole(docs: Service, case: str):
    body, code = LINES[case]
    with bounded(40):
        answer = await docs.ask("POST", "docs/upsert", data=body, headers=NDJSON)

    assert refused(answer) == (400, code), answer.text
    assert len((await docs.get("docs/mutations?count=10")).result["mutations"]) == 1


QUERIES: dict[str, tuple[bytes, int]] = {
    "a document without end": (b'{"vector":' + DEEP, 40026),
    "a filter without end": (b'{"filter":' + b'{"a":' * 100_000, 40026),
    "NaN": (b'{"vector":[' + b"NaN," * 31 + b"1]}", 40026),
    "a number beyond float64": (b'{"vector":[' + b"1," * 31 + b"1e400]}", 40026),
    "a number beyond float32": (b'{"vector":[' + b"1," * 31 + b"1e39]}", 40006),
    "half a surrogate pair": (b'{"namespace":"\\udfff","vector":[' + b"1," * 31 + b"1]}", 40026),
    "not UTF-8": (b'{"namespace":"\xff","vector":[' + b"1," * 31 + b"1]}", 40026),
    "a vector of 500,000 numbers": (b'{"vector":[' + b"1," * 499_999 + b"1]}", 40006),
    "a list": (b"[]", 40026),
    "nothing": (b"null", 40026),
}


@pytest.mark.parametrize("case", QUERIES)
async def test_a_query_that_is_meant_to_hurt_is_refused(docs: Service, case: str):
    body, code = QUERIES[case]
    with bounded(60):
        answer = await sent(docs, "docs/query", body)

    assert refused(answer) == (400, code), answer.text


OTHER_TOP_KS = [b"true", b'"5"', b"[1]"]
TOP_KS = [b"0", b"-1", b"101", b"1000000000000", b"9223372036854775808", b"1e308", b"1.5", *OTHER_TOP_KS]


@pytest.mark.parametrize("top_k", TOP_KS)
async def test_a_topk_nobody_can_answer_is_refused_before_memory_is_taken_for_it(docs: Service, top_k: bytes):
    with bounded(2):
        answer = await docs.post("docs/query", b'{"vector":' + orjson.dumps(axis(0)) + b',"topK":' + top_k + b"}")

    assert refused(answer) == (400, 40026 if top_k in OTHER_TOP_KS else 40025), answer.text


FILTERS: dict[str, Any] = {
    "a list of 100,000": {"k": {"$in": list(range(100_000))}},
    "50,000 keys": {f"k{number}": 1 for number in range(50_000)},
    "a key of a million": {"k" * MIB: 1},
    "a value of a million": {"k": "x" * MIB},
    "an operator that is none": {"k": {"$where": "1"}},
    "a key that begins with a dollar": {"$or": [{"k": 1}]},
    "SQL": {"k\"' OR 1=1 --": {"$ne": {"a": 1}}},
    "a number beyond 64 bits": {"k": {"$gt": 2**64 - 1}, "$x": 1},
    "a list for a filter": [1],
    "a list in a list": {"k": {"$in": [[[[[[1]]]]]]}},
}


@pytest.mark.parametrize("case", FILTERS)
async def test_a_filter_that_is_meant_to_hurt_is_refused(docs: Service, case: str):
    with bounded(60):
        answer = await sent(docs, "docs/query", orjson.dumps({"vector": axis(0), "filter": FILTERS[case]}))

    assert refused(answer) == (400, 49009), answer.text


IDS: dict[str, tuple[object, int]] = {
    "100,000": ([str(n) for n in range(100_000)], 40007),
    "one of a million": (["x" * MIB], 40008),
    "none": ([], 40026),
    "a number": ([1], 40026),
    "nothing": ([None], 40026),
    "a list": ([["a"]], 40026),
    "text": ("a", 40026),
    "an object": ({"a": 1}, 40026),
}


@pytest.mark.parametrize("operation", ["get_by_ids", "delete_by_ids"])
@pytest.mark.parametrize("case", IDS)
async def test_ids_that_are_too_many_or_none_are_refused(docs: Service, operation: str, case: str):
    ids, code = IDS[case]
    with bounded(60):
        answer = await sent(docs, f"docs/{operation}", orjson.dumps({"ids": ids}))

    assert refused(answer) == (400, code), answer.text


@pytest.mark.parametrize(
    ("path", "ids_max"), [("docs/query", 0), ("docs/get_by_ids", 20), ("docs/delete_by_ids", 100), (V2, 0)]
)
async def test_a_document_that_no_limit_allows_is_not_read_into_objects(docs: Service, path: str, ids_max: int):
    most = document_bytes_max(CLOUDFLARE, ids_max=ids_max)
    fits, too_large = (b'{"ids":[' + b'"1",' * ((size - 13) // 4) + b'"1"]}' for size in (most, 3 * most))

    with bounded(60):
        answer = await sent(docs, path, fits)
    assert refused(answer) == (400, 40007 if ids_max else 40026)

    # The client holds it once more.
    with bounded(6 * most / MIB):
        answer = await sent(docs, path, too_large)
    assert refused(answer) == (413, 49033)


VALUES = {
    "numbers": b"123456,",
    "texts": b'"123456",',
    "texts with marks in them": b'"[,{\\",",',
    "objects": b"{},",
    "lists": b"[1],",
    "objects with a key": b'{"a":1},',
}


@pytest.mark.parametrize("operation", ["get_by_ids", "delete_by_ids"])
@pytest.mark.parametrize("value", VALUES)
async def test_500_000_ids_are_counted_before_they_become_objects(relaxed: Service, operation: str, value: str):
    await relaxed.create()
    body = b'{"ids":[' + VALUES[value] * 500_000 + b'"1"]}'

    # Of which the client takes as much as the body has.
    with bounded(60):
        answer = await sent(relaxed, f"docs/{operation}", body)

    assert refused(answer) == (400, 40007), answer.text


@pytest.mark.parametrize("length", [1, 2, 3, 7, 4096])
def test_marks_in_strings_are_none_however_the_text_is_cut(length: int):
    text = rb'{"a,[{\\":["\\","\\\",[{",{"b":"}"},1, 2]}'
    marks = Marks(7)
    exactly = Marks(6)

    chunks = [text[start : start + length] for start in range(0, len(text), length)]

    assert all(marks.feed(chunk) for chunk in chunks)
    assert not all(exactly.feed(chunk) for chunk in chunks)


def test_a_list_of_wrong_ids_is_refused_at_the_first():
    document = {"ids": [1] * 500_000}

    with bounded(8), pytest.raises(Refusal, match=r"ids\.0"):
        validate(Ids, document)


NAMES = [
    "..",
    "../../etc",
    "a/b",
    "a\0b",
    "a\n",
    "-a",
    "a-",
    "Ä",
    "\u0430bc",
    "a b",
    "A" * 65,
    "",
    ".",
    "%2e%2e",
    "con:",
]


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_that_is_a_path_or_looks_like_another_makes_no_index(service: Service, name: str):
    answer = await service.create(name)

    assert refused(answer) == (400, 3001), answer.text


PATHS = [
    "..%2f..%2fetc%2fpasswd",
    "..%5c..%5c",
    "%00",
    "docs%00",
    "%ff%fe",
    "%2e%2e",
    "%c0%ae%c0%ae",
    "docs%0a",
    "DOCS",
    "docs%2f_binding%2fdocs",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("DELETE", ""), ("GET", "/info"), ("GET", "/list")])
async def test_a_path_that_leads_elsewhere_leads_nowhere(docs: Service, path: str, method: str, rest: str):
    async with docs.session.request(method, URL(f"{docs.url}{V2}/{path}{rest}", encoded=True)) as response:
        text = await response.read()

    answer = orjson.loads(text)
    assert (response.status, answer["errors"][0]["code"]) == (404, 3000), text
    assert ("result_info" in answer) == bool(rest), "an encoded slash is part of the name"
    assert b"Traceback" not in text
    assert (await docs.get("docs/info")).result["vectorCount"] == 1


async def test_a_cursor_with_any_character_changed_is_refused(docs: Service):
    await docs.upsert([vector(f"v{number}") for number in range(5)])
    cursor = (await docs.get("docs/list?count=2")).result["nextCursor"]
    changed = [
        cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :] for place in range(len(cursor))
    ]
    changed += [cursor[:-1], cursor + "A", "x", "\u00e9", "A" * 7_000, "../../etc/passwd", "\0"]

    answers = [await docs.get("docs/list", params={"count": "2", "cursor": one}) for one in changed]

    assert {refused(answer) for answer in answers} == {(400, 49002)}
    assert (await docs.get("docs/list", params={"count": "2", "cursor": cursor})).status == 200


@pytest.mark.parametrize(
    "credential",
    ["Bearer \u00e9", "Bearer \udcff", "Bearer " + "x" * 7_000, "Bearer", "Bearer  ", "Basic eDp5", "\u2603"],
)
async def test_a_credential_of_odd_bytes_is_wrong_and_nothing_worse(settings: Settings, credential: str):
    async with serving(replace(limited(settings, "cloudflare"), token="right")) as service:
        host, port = service.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"GET {V2} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {credential}\r\n\r\n"
        writer.write(head.encode("utf-8", "surrogateescape"))
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()

    assert answer.startswith(b"HTTP/1.1 401")
    assert b"Traceback" not in answer


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=" + "x" * 300,
        "text/plain; charset=utf-7",
        "a",
        "\u00e9/\u00e9",
    ],
)
async def test_a_content_type_of_any_kind_is_no_failure_of_the_service(docs: Service, content_type: str):
    for operation, code in (("upsert", 40023), ("query", 40026)):
        answer = await docs.ask(
            "POST", f"docs/{operation}", data=b"--x\r\n" * 1000, headers=JSON | {"Content-Type": content_type}
        )

        assert refused(answer) == (400, code), answer.text
