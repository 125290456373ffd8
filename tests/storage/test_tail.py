"""The tail: rows that only grow, and parts of it that never change."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from storage.batch import Batch
from storage.filters import Compare, Comparison, FilterRules
from storage.indexes import flat
from storage.records import Label, MetadataIndex, MetadataType, Record, Sequence
from storage.snapshot import Part
from storage.tail import COLUMNS_MAX, ROWS_MIN, Tail, TailPart

RULES = FilterRules()
COLOUR_IS_RED = Compare(("colour",), Comparison.EQ, "red")


def batch(*ids: str, namespace: str = "", metadata: bytes = b"", dimensions: int = 3) -> Batch:
    """Vectors with values that follow from their ids."""
    values = [np.random.default_rng(list(text.encode())).standard_normal(dimensions) for text in ids]
    return Batch(
        ids=ids,
        namespaces=(namespace,) * len(ids),
        metadata=(metadata,) * len(ids),
        values=np.array(values, dtype=np.float32).reshape(len(ids), dimensions),
    )


def append(tail: Tail, sequence: int, first_label: int, added: Batch) -> None:
    tail.append(Sequence(sequence), Label(first_label), added)


def contents(part: TailPart) -> list[tuple[int, Record, float]]:
    """Everything a part shows, row by row."""
    return [(int(part.labels[row]), part.record(row), float(part.norms[row])) for row in range(part.rows)]


def test_a_new_tail_has_a_part_without_rows() -> None:
    tail = Tail(3)

    part: Part = tail.part()

    assert (part.rows, part.name, part.graph) == (0, "tail", None)
    assert part.vectors.shape == (0, 3)
    assert part.namespace_mask("any").tolist() == []
    assert part.property_column(("colour",)).mask(COLOUR_IS_RED, RULES).tolist() == []
    assert (tail.rows, tail.bytes, tail.mutations, tail.last_sequence) == (0, 0, 0, 0)


def test_rows_come_back_as_they_went_in() -> None:
    # given
    tail = Tail(3)
    first = batch("a", "b", namespace="ns", metadata=b'{"colour":"red"}')
    second = batch("c")

    # when
    append(tail, 4, 10, first)
    append(tail, 7, 20, second)

    # then
    part = tail.part()
    assert part.labels.tolist() == [10, 11, 20]
    assert part.record(1) == Record("b", "ns", first.values[1].tobytes(), b'{"colour":"red"}')
    assert part.record(2) == Record("c", "", second.values[0].tobytes(), b"")
    assert [part.id_of(row) for row in range(3)] == ["a", "b", "c"]
    assert part.norms.tobytes() == flat.norms(part.vectors).tobytes()
    assert (tail.rows, tail.bytes, tail.mutations, tail.last_sequence) == (3, 36, 2, 7)


def test_a_namespace_is_the_rows_in_it() -> None:
    tail = Tail(3)
    append(tail, 1, 1, batch("a", namespace="x"))
    append(tail, 2, 2, batch("b"))
    append(tail, 3, 3, batch("c", namespace="x"))

    part = tail.part()

    assert part.namespace_mask("x").tolist() == [True, False, True]
    assert part.namespace_mask("unheard of").tolist() == [False, False, False]


def test_the_tail_keeps_its_own_copy_of_the_values() -> None:
    # given
    tail = Tail(3)
    added = batch("a")
    append(tail, 1, 1, added)
    before = contents(tail.part())

    # when the body's memory is used for something else
    added.values[:] = 0

    # then
    assert contents(tail.part()) == before


def test_a_part_never_changes_however_the_tail_grows() -> None:
    # given
    tail = Tail(3)
    append(tail, 1, 1, batch("a", "b", namespace="x", metadata=b'{"colour":"red"}'))
    part = tail.part()
    before = contents(part)
    column = part.property_column(("colour",))

    # when rows are added, within the room there is and beyond it
    append(tail, 2, 3, batch("c", namespace="x", metadata=b'{"colour":"red"}'))
    tail.part().property_column(("colour",))
    for step in range(5):
        ids = [f"{step}-{number}" for number in range(ROWS_MIN)]
        append(tail, 3 + step, 10 + step * ROWS_MIN, batch(*ids, metadata=b'{"colour":"blue"}'))

    # then
    assert contents(part) == before
    assert part.namespace_mask("x").tolist() == [True, True]
    assert part.property_column(("colour",)).mask(COLOUR_IS_RED, RULES).tolist() == [True, True]
    assert column.mask(COLOUR_IS_RED, RULES).tolist() == [True, True]
    grown = tail.part()
    assert contents(grown)[:2] == before
    assert grown.rows == 3 + 5 * ROWS_MIN
    assert grown.property_column(("colour",)).mask(COLOUR_IS_RED, RULES).sum() == 3


def test_nobody_can_write_into_a_part() -> None:
    tail = Tail(3)
    append(tail, 1, 1, batch("a"))

    with pytest.raises(ValueError, match="read-only"):
        tail.part().vectors[0] = 0


def test_the_column_of_a_metadata_index_sees_values_of_its_type_only() -> None:
    # given a property that is a number in one row and text in the other
    tail = Tail(3)
    append(tail, 1, 1, batch("a", metadata=b'{"size":5}'))
    append(tail, 2, 2, batch("b", metadata=b'{"size":"5"}'))
    is_five = Compare(("size",), Comparison.EQ, 5.0)

    # when
    part = tail.part()
    number = part.column(MetadataIndex(id=1, property="size", type=MetadataType.NUMBER))
    text = part.column(MetadataIndex(id=2, property="size", type=MetadataType.STRING))

    # then
    assert number.mask(is_five, RULES).tolist() == [True, False]
    assert text.mask(is_five, RULES).tolist() == [False, False]
    assert part.property_column(("size",)).mask(is_five, RULES).tolist() == [True, False]


def test_a_nested_property_is_found_by_its_dots() -> None:
    tail = Tail(3)
    append(tail, 1, 1, batch("a", metadata=b'{"pandas":{"nice":true}}'))
    index = MetadataIndex(id=1, property="pandas.nice", type=MetadataType.BOOLEAN)

    mask = tail.part().column(index).mask(Compare(("pandas", "nice"), Comparison.EQ, True), RULES)

    assert mask.tolist() == [True]


def test_more_properties_than_are_kept_are_still_answered() -> None:
    tail = Tail(3)
    append(tail, 1, 1, batch("a", metadata=b'{"p7":1}'))
    part = tail.part()

    answers = [
        part.property_column((f"p{number % (COLUMNS_MAX + 9)}",))
        .mask(Compare((f"p{number % (COLUMNS_MAX + 9)}",), Comparison.EQ, 1.0), RULES)
        .tolist()
        for number in range(2 * COLUMNS_MAX + 18)
    ]

    assert [number for number, answer in enumerate(answers) if answer == [True]] == [7, 7 + COLUMNS_MAX + 9]


@pytest.mark.parametrize(
    ("sequence", "ids"),
    [
        pytest.param(0, ["a", "b", "c", "d"], id="before the first mutation keeps all"),
        pytest.param(2, ["c", "d"], id="at a mutation drops it"),
        pytest.param(4, ["c", "d"], id="between two mutations drops the earlier"),
        pytest.param(9, [], id="at the last drops all"),
    ],
)
def test_after_keeps_the_mutations_behind_a_sequence(sequence: int, ids: list[str]) -> None:
    # given
    tail = Tail(3)
    append(tail, 2, 10, batch("a", "b", namespace="x", metadata=b'{"n":1}'))
    append(tail, 5, 30, batch("c", namespace="y"))
    append(tail, 8, 40, batch())
    append(tail, 9, 40, batch("d", metadata=b'{"n":2}'))

    # when
    rest = tail.after(Sequence(sequence))

    # then
    shown = contents(tail.part())
    assert [rest.part().id_of(row) for row in range(rest.rows)] == ids
    assert contents(rest.part()) == shown[len(shown) - len(ids) :]
    assert rest.last_sequence == 9


def test_after_gives_a_tail_of_its_own() -> None:
    # given
    tail = Tail(3)
    append(tail, 1, 1, batch("a"))
    append(tail, 2, 2, batch("b"))
    before = contents(tail.part())

    # when
    rest = tail.after(Sequence(1))
    append(rest, 3, 3, batch("c"))

    # then
    assert contents(tail.part()) == before
    assert [rest.part().id_of(row) for row in range(2)] == ["b", "c"]


def test_threads_may_read_parts_while_the_tail_grows() -> None:
    # given a reader for every part that is ever taken, and what the part must go on showing
    tail = Tail(3)
    wrong: list[int] = []
    parts: list[TailPart] = []
    grown = threading.Event()

    def read() -> None:
        while True:
            finished = grown.is_set()
            for rows, part in enumerate(list(parts), start=1):
                red = part.property_column(("colour",)).mask(COLOUR_IS_RED, RULES)
                if part.rows != rows or red.sum() != (rows + 1) // 2 or part.id_of(rows - 1) != f"{rows}":
                    wrong.append(rows)
            if finished:
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()

    # when
    for number in range(1, 2 * ROWS_MIN):
        colour = b'{"colour":"red"}' if number % 2 else b'{"colour":"blue"}'
        append(tail, number, number, batch(f"{number}", metadata=colour))
        if number <= 40:
            parts.append(tail.part())
    grown.set()
    for reader in readers:
        reader.join()

    # then
    assert wrong == []
