"""Batches of vectors: every dress they come in, and what is refused in which words."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.vectors import BatchRules, _read_element, read_batch
from storage.limits import CLOUDFLARE, RELAXED
from storage.records import Action

RULES = BatchRules(action=Action.UPSERT, dimensions=2, limits=CLOUDFLARE)
DISCARDING = BatchRules(action=Action.UPSERT, dimensions=2, limits=CLOUDFLARE, discard=True)
LINES = b'{"id":"a","values":[1,2]}\n{"id":"b","values":[3,4.5],"namespace":"n","metadata":{"k":"v"}}'


def form(*parts: tuple[str, bytes], boundary: str = "xxBOUNDARYxx") -> bytes:
    body = b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + b"\r\n" for head, content in parts)
    return body + f"--{boundary}--\r\n".encode()


FILE_HEAD = 'Content-Disposition: form-data; name="vectors"; filename="vectors.ndjson"'
WRANGLER = f"{FILE_HEAD}\r\nContent-Type: application/x-ndjson"
GO_HEAD = 'Content-Disposition: form-data; name=""; filename="anonymous_file"\r\nContent-Type: application/octet-stream'
CURL_HEAD = 'Content-Disposition: attachment; name="body"; filename="v.ndjson"\r\nContent-Type: application/x-ndjson'
FORM_DATA = 'multipart/form-data; boundary="xxBOUNDARYxx"'
DRESSES = {
    "ndjson": ("application/x-ndjson", LINES),
    "ndjson with a charset": ("application/x-ndjson; charset=utf-8", LINES),
    "ndjson with a newline at the end": ("application/x-ndjson", LINES + b"\n"),
    "ndjson with blank lines": ("application/x-ndjson", b"\n" + LINES.replace(b"\n", b"\n\n \n") + b"\n\n"),
    "ndjson with the line ends of Windows": ("application/x-ndjson", LINES.replace(b"\n", b"\r\n")),
    "ndjson with a byte order mark": ("application/x-ndjson", b"\xef\xbb\xbf" + LINES),
    "wrangler's form": (FORM_DATA, form((WRANGLER, LINES))),
    "a form without a part type, as requests sends": (FORM_DATA, form((FILE_HEAD, LINES))),
    "the form of cloudflare-go, with an empty part name": (FORM_DATA, form((GO_HEAD, LINES))),
    "a form with a field before the file": (
        FORM_DATA,
        form(('Content-Disposition: form-data; name="note"', b"hello"), (WRANGLER, LINES)),
    ),
    "a form whose only part is no file": (
        FORM_DATA,
        form(('Content-Disposition: form-data; name="body"', LINES)),
    ),
    "the documented curl example, a form labelled ndjson": (
        "application/x-ndjson; boundary=xxBOUNDARYxx",
        form((CURL_HEAD, LINES)),
    ),
    "a form whose boundary was lost from the label": ("application/x-ndjson", form((CURL_HEAD, LINES))),
    "ndjson labelled with a boundary it does not have": ("application/x-ndjson; boundary=xyz", LINES),
    "python SDK bytes, ndjson labelled json": ("application/json", LINES),
    "python SDK str, a JSON string of the ndjson": ("application/json", json.dumps(LINES.decode()).encode()),
    "ts SDK 4.5 str, a JSON string labelled ndjson": ("application/x-ndjson", orjson.dumps(LINES.decode())),
    "an array": ("application/json", b"[" + LINES.replace(b"\n", b",") + b"]"),
    "the old binding's object": ("application/json", b'{"vectors": [' + LINES.replace(b"\n", b",") + b"]}"),
    "the object over several lines": (
        "application/json",
        json.dumps({"vectors": [json.loads(line) for line in LINES.split(b"\n")]}, indent=2).encode(),
    ),
    "no label at all": ("", LINES),
    "a label that means nothing": ("text/csv", LINES),
}


@pytest.mark.parametrize("dress", DRESSES)
def test_the_same_vectors_are_read_from_every_dress(dress: str):
    label, body = DRESSES[dress]

    read = read_batch(body, label, RULES)

    assert read.batch.ids == ("a", "b")
    assert read.batch.namespaces == ("", "n")
    assert read.batch.metadata == (b"", b'{"k":"v"}')
    assert read.batch.values.dtype == np.float32
    assert read.batch.values.tolist() == [[1, 2], [3, 4.5]]
    assert read.dropped == 0


def test_separators_that_javascript_leaves_unescaped_do_not_split_a_line():
    text = "a\u2028b\u2029c\u0085d"
    line = f'{{"id":"a","values":[1,2],"metadata":{{"k":"{text}"}}}}'.encode()

    read = read_batch(line, "application/x-ndjson", RULES)

    assert orjson.loads(read.batch.metadata[0]) == {"k": text}


REFUSED = {
    "NaN": (
        b'{"id":"a","values":[1,NaN]}',
        Code.VECTOR_INVALID,
        'id="a", expected finite numbers, and got NaN at position 1',
    ),
    "infinity": (b'{"id":"a","values":[-Infinity,1]}', Code.VECTOR_INVALID, "position 0"),
    "null among the values": (b'{"id":"a","values":[1,null]}', Code.VECTOR_INVALID, "null at position 1"),
    "a boolean": (b'{"id":"a","values":[true,1]}', Code.VECTOR_INVALID, "a boolean at position 0"),
    "a string": (b'{"id":"a","values":[1,"2"]}', Code.VECTOR_INVALID, "a string at position 1"),
    "a nested array": (b'{"id":"a","values":[[1],2]}', Code.VECTOR_INVALID, "an array at position 0"),
    "only nested arrays": (b'{"id":"a","values":[[1],[2]]}', Code.VECTOR_INVALID, "an array at position 0"),
    "beyond float32": (b'{"id":"a","values":[1,1e39]}', Code.VECTOR_INVALID, "beyond float32"),
    "beyond float64": (b'{"id":"a","values":[1,1e400]}', Code.VECTOR_INVALID, "beyond float32"),
    "an integer beyond float64": (
        b'{"id":"a","values":[1,1' + b"0" * 400 + b"]}",
        Code.VECTOR_INVALID,
        "beyond float32",
    ),
    "too few dimensions": (
        b'{"id":"a","values":[1]}',
        Code.VECTOR_INVALID,
        'invalid vector for id="a", expected 2 dimensions, and got 1 dimensions',
    ),
    "no values": (b'{"id":"a"}', Code.VECTOR_INVALID, "null"),
    "no id": (
        b'{"values":[1,2]}',
        Code.BATCH_UNPARSABLE,
        "line Some(0) was not expected format: expected a string in `id`",
    ),
    "neither id nor values": (b"{}", Code.BATCH_UNPARSABLE, "expected a string in `id`, and got null"),
    "an id that is a number": (b'{"id":7,"values":[1,2]}', Code.BATCH_UNPARSABLE, "a number"),
    "an empty id": (b'{"id":"","values":[1,2]}', Code.BODY_INVALID, "empty"),
    "half a surrogate pair in the id": (b'{"id":"\\ud800","values":[1,2]}', Code.BODY_INVALID, "surrogate"),
    "half a surrogate pair in the metadata": (
        b'{"id":"a","values":[1,2],"metadata":{"k":"\\ud800"}}',
        Code.METADATA_INVALID,
        "not Unicode",
    ),
    "a namespace that is a number": (b'{"id":"a","values":[1,2],"namespace":1}', Code.BODY_INVALID, "namespace"),
    "metadata that is an array": (b'{"id":"a","values":[1,2],"metadata":[1]}', Code.METADATA_INVALID, "object"),
    "a dot in a metadata key": (
        b'{"id":"a","values":[1,2],"metadata":{"a.b":1}}',
        Code.METADATA_KEY_INVALID,
        "'a.b'",
    ),
    "a quote in a nested metadata key": (
        b'{"id":"a","values":[1,2],"metadata":{"a":[{"b\\"c":1}]}}',
        Code.METADATA_KEY_INVALID,
        "contain a dot or",
    ),
    "a metadata key that begins with a dollar": (
        b'{"id":"a","values":[1,2],"metadata":{"$a":1}}',
        Code.METADATA_KEY_INVALID,
        "'$a'",
    ),
    "an empty metadata key": (b'{"id":"a","values":[1,2],"metadata":{"":1}}', Code.METADATA_KEY_INVALID, "empty"),
    "a metadata integer of more than 64 bits": (
        b'{"id":"a","values":[1,2],"metadata":{"k":18446744073709551616}}',
        Code.METADATA_INVALID,
        "64 bits",
    ),
    "NaN in the metadata": (b'{"id":"a","values":[1,2],"metadata":{"k":NaN}}', Code.METADATA_INVALID, "nan"),
    "metadata nested too deep": (
        b'{"id":"a","values":[1,2],"metadata":' + b'{"k":' * 200 + b"1" + b"}" * 201,
        Code.METADATA_INVALID,
        "deeper than 128",
    ),
    "a body nested far too deep": (b'{"id":"a","values":' + b"[" * 100_000, Code.BATCH_UNPARSABLE, "line Some(0)"),
    "text that is no JSON": (b"hello", Code.BATCH_UNPARSABLE, "line Some(0) was not expected format"),
    "bytes that are no UTF-8": (b'{"id":"\xff","values":[1,2]}', Code.BATCH_UNPARSABLE, "line Some(0)"),
    "a line that is a number": (b"5", Code.BATCH_UNPARSABLE, "expected an object, and got a number"),
    "an empty body": (b"", Code.BATCH_UNPARSABLE, "holds no vectors"),
    "blank lines only": (b"\n \r\n\n", Code.BATCH_UNPARSABLE, "holds no vectors"),
    "an empty array": (b"[]", Code.BATCH_UNPARSABLE, "holds no vectors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_batch_with_a_fault_is_refused_whole_and_the_fault_is_named(case: str):
    line, code, words = REFUSED[case]
    body = line if not line.strip() or line == b"[]" else line + b"\n" + LINES

    with pytest.raises(Refusal) as caught:
        read_batch(body, "application/x-ndjson", RULES)

    assert caught.value.code is code
    assert caught.value.status == 400
    assert words in caught.value.message


def test_the_refusal_of_a_line_begins_as_the_live_one_and_counts_lines_from_zero():
    with pytest.raises(Refusal) as caught:
        read_batch(LINES + b"\n\nnope", "application/x-ndjson", RULES)

    assert caught.value.message.startswith(
        "vectorize.upstream_error - failed to parse upsert vectors request in ndjson format: "
        "line Some(3) was not expected format"
    )


def test_what_is_neither_labelled_nor_looks_like_vectors_is_an_unknown_content_type():
    with pytest.raises(Refusal) as caught:
        read_batch(b"id;values\na;1", "text/csv", RULES)

    assert caught.value.code is Code.UNKNOWN_CONTENT_TYPE
    assert caught.value.message == "vectorize.unknown_content_type"


def test_discarding_drops_what_is_no_object_and_counts_it():
    read = read_batch(b"oops\n5\n" + LINES + b"\n[1]\n", "application/x-ndjson", DISCARDING)

    assert read.batch.ids == ("a", "b")
    assert read.dropped == 3


def test_discarding_does_not_excuse_an_object_that_is_no_vector():
    with pytest.raises(Refusal) as caught:
        read_batch(b'oops\n{"id":"a","values":[1]}', "application/x-ndjson", DISCARDING)

    assert caught.value.code is Code.VECTOR_INVALID


def test_null_and_an_empty_object_are_no_metadata_and_null_is_no_namespace():
    lines = b'{"id":"a","values":[1,2],"namespace":null,"metadata":{}}\n{"id":"b","values":[1,2],"metadata":null}'

    read = read_batch(lines, "", RULES)

    assert read.batch.metadata == (b"", b"")
    assert read.batch.namespaces == ("", "")


def test_a_key_given_twice_keeps_its_last_value():
    line = b'{"id":"x","id":"a","values":[0,0],"values":[1,2],"metadata":{"k":1,"k":2,"n":{"m":1,"m":3}}}'

    read = read_batch(line, "", RULES)

    assert read.batch.ids == ("a",)
    assert read.batch.values.tolist() == [[1, 2]]
    assert read.batch.metadata == (b'{"k":2,"n":{"m":3}}',)


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, -(2**63), 2**53 + 1])
def test_integers_of_64_bits_in_metadata_stay_as_they_are(number: int):
    line = b'{"id":"a","values":[1,2],"metadata":{"k":%d}}' % number

    read = read_batch(line, "", RULES)

    assert read.batch.metadata == (b'{"k":%d}' % number,)


def test_arrays_in_the_metadata_do_not_disturb_the_values():
    line = b'{"id":"a","values":[1,2],"metadata":{"tags":["x","y"],"n":[[1]]}}'

    read = read_batch(line, "", RULES)

    assert read.batch.values.tolist() == [[1, 2]]
    assert read.batch.metadata == (b'{"tags":["x","y"],"n":[[1]]}',)


@pytest.mark.parametrize(
    "metadata", [b'{"k":"\\u005b"}', b'{"k":"\\u005B["}', b'{"k":"["}', b'{"[":1}', b'{"k":["["]}'], ids=repr
)
@pytest.mark.parametrize("vector_id", [b"a", b"[", b"\\u005b"], ids=repr)
def test_no_bracket_elsewhere_hides_a_nested_array(vector_id: bytes, metadata: bytes):
    line = b'{"id":"%b","values":%b,"metadata":%b}'

    flat = read_batch(line % (vector_id, b"[1,2]", metadata), "", RULES)
    with pytest.raises(Refusal) as caught:
        read_batch(line % (vector_id, b"[[1],2]", metadata), "", RULES)

    assert flat.batch.values.tolist() == [[1, 2]]
    assert orjson.loads(flat.batch.metadata[0]) == orjson.loads(metadata)
    assert caught.value.code is Code.VECTOR_INVALID


def test_no_element_that_is_dropped_hides_a_nested_array_in_another():
    with pytest.raises(Refusal) as caught:
        read_batch(b'[5,"x",{"id":"a","values":[[1],2]}]', "application/json", DISCARDING)

    assert caught.value.code is Code.VECTOR_INVALID


def test_too_many_vectors_are_counted_to_the_end_without_blank_lines_and_dropped_ones():
    few = BatchRules(action=Action.UPSERT, dimensions=2, limits=replace(CLOUDFLARE, upload_vectors_max=1), discard=True)

    with pytest.raises(Refusal) as caught:
        read_batch(b"oops\n" + LINES + b"\n\n" + LINES, "", few)

    assert caught.value.message == "too many vectors in payload; max vector count is 1, got 4"


def test_a_body_of_newlines_reserves_no_memory_for_vectors():
    rules = BatchRules(action=Action.UPSERT, dimensions=1536, limits=RELAXED)

    with pytest.raises(Refusal, match="holds no vectors"):
        read_batch(b"\n" * 1_000_000, "", rules)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcé", min_size=1), inner, max_size=3),
    max_leaves=8,
)
VECTORS = st.fixed_dictionaries(
    {
        "id": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10),
        "values": st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
    },
    optional={
        "namespace": st.none() | st.text("ab", max_size=3),
        "metadata": st.none() | st.dictionaries(st.text("abcé", min_size=1), JSON_VALUES, max_size=4),
    },
)


@given(st.lists(VECTORS, min_size=1, max_size=5), st.booleans())
def test_the_quick_reader_reads_what_the_plain_reader_reads(vectors, escaped):
    body = b"\n".join(json.dumps(one, ensure_ascii=escaped).encode() for one in vectors)

    read = read_batch(body, "application/x-ndjson", RULES)

    plain = [_read_element(one) for one in vectors]
    assert read.batch.ids == tuple(raw.vector_id for raw in plain)
    assert read.batch.values.tolist() == [raw.values.astype(np.float32).tolist() for raw in plain]
    for kept, raw in zip(read.batch.metadata, plain, strict=True):
        assert (orjson.loads(kept) if kept else None) == (raw.metadata or None)


@pytest.mark.parametrize("whole", [b"[%b]", b'{"vectors":[%b]}'], ids=["array", "object"])
@pytest.mark.parametrize("case", [case for case, (line, _, _) in REFUSED.items() if line.startswith(b'{"')])
def test_a_fault_in_a_whole_document_is_refused_as_in_a_line(case: str, whole: bytes):
    line, code, words = REFUSED[case]

    with pytest.raises(Refusal) as caught:
        read_batch(whole % line, "application/json", RULES)

    assert caught.value.code is code
    assert words in caught.value.message
