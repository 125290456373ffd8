"""The quick way to read a query must read what the plain way reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from multidict import MultiDict

from service.dialects.vectorize import questions
from service.dialects.vectorize.errors import Refusal
from service.dialects.vectorize.questions import read_question
from storage.errors import StorageError
from storage.settings import Settings


def read(body: bytes) -> object:
    request: Any = SimpleNamespace(query=MultiDict(), query_string="")
    try:
        question = read_question(request, body, Settings().limits, recall=0.9)
    except (Refusal, StorageError) as error:
        return str(error)
    return (None if question.vector is None else question.vector.tolist(), question.shape)


ORDINARY = b'{"vector":[1,2.5,-3e2],"topK":3}'


@pytest.mark.parametrize(
    "body",
    [
        ORDINARY,
        b'{ "topK" : 3, "filter": {"a": {"$ne": "}"}}, "vector" : [ 1 , 2 ] , "namespace": "n" }',
        b'{"filter":{"a":"}","vector":[1]}}',
        b'{"filter":{"vector":[1]}}',
        b'{"filter":{"vector":[1]},"vectorId":"a"}',
        b'{"filter":{"vector":[1]},"\\u0076ector":true}',
        b'{"filter":{"a":"\\"vector\\":[1]"},"vector":null}',
        b'{"filter":{"a":{"$in":[1,2]}},"vector":[1]}',
        b'{"vector":[1],"vector":[2]}',
        b'{"vector":[1],"vectorId":"a"}',
        b'{"vector":[1],"topK":2,"topK":7}',
        b'{"vector":[1],"recall":0.5,"offset":2,"explain":true}',
        b'{"vector":[]}',
        b'{"vector":[1,"2"]}',
        b'{"vector":[1,true]}',
        b'{"vector":[[1]]}',
        b'{"vector":[1e999]}',
        b'{"vector":[123456789012345678901234567890]}',
        b'{"vector":[01]}',
        b'{"vector":[1,]}',
        b'{"vector":[1]',
        b'{"vector":[1],}',
        b'[{"vector":[1]}]',
        b'{"vector":[1]}]',
        b'"vector":[1]',
        b"",
    ],
)
def test_both_ways_read_the_same(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = [read(body), read(body)]  # The second time its shape is known.

    monkeypatch.setattr(questions, "_split_quickly", lambda _: None)

    assert quick == [read(body)] * 2


def test_the_quick_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: bytes) -> object:
        raise AssertionError("the plain way was taken")

    monkeypatch.setattr(questions, "_split", never)

    assert read(ORDINARY) is not None
