"""What the model test may draw: small worlds, in which everything happens to everything.

Vectors have few distinct values, so equal vectors, equal scores and zero vectors are common; ids are prefixes of each
other and of other scripts; metadata has every type under every name.
"""

from __future__ import annotations

import numpy as np
import orjson
from hypothesis import strategies as st

from storage.batch import Batch
from storage.filters import And, Compare, Comparison, Filter, FilterRules, Not, Or
from storage.search import Query

DIMENSIONS = 4
NUMBERS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0)
"""Few, and small: so vectors are equal and scores tie all the time, and float64 makes no error that order shows."""
BULK_IDS = 400
STRICT = FilterRules(string_bytes_max=4, arrays=False, unindexed=False)
RELAXED_RULES = FilterRules()

ids = st.sampled_from(["a", "A", "aa", "a\x00b", "z", "ä", "e\u0301", "漢", "\U0001f30a", "v001", "v0011", "v002"])
namespaces = st.sampled_from(["", "", "n", "m"])
vectors = st.lists(st.sampled_from(NUMBERS), min_size=DIMENSIONS, max_size=DIMENSIONS).map(
    lambda numbers: np.array(numbers, dtype=np.float32)
)
scalars = st.sampled_from([None, True, False, 1, 1.5, -3, "1", "alpha", "alphabet", "ämä", ""])
properties = st.sampled_from(["text", "year", "flag", "tags", "deep.x"])
documents = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "text": scalars,
        "year": scalars,
        "flag": scalars,
        "tags": st.lists(scalars, max_size=3),
        "deep": st.fixed_dictionaries({"x": scalars}) | scalars,
    },
)
rules_of_filters = st.sampled_from([STRICT, RELAXED_RULES])
row_seeds = st.integers(min_value=0, max_value=2**32 - 1)


@st.composite
def comparisons(draw: st.DrawFn) -> Filter:
    """One property against an operand that suits the operator."""
    path = tuple(draw(properties | st.just("never")).split("."))
    comparison = draw(st.sampled_from(Comparison))
    match comparison:
        case Comparison.EXISTS:
            return Compare(path, comparison, draw(st.booleans()))
        case Comparison.IN | Comparison.NIN:
            return Compare(path, comparison, tuple(draw(st.lists(scalars, max_size=3))))
        case Comparison.EQ | Comparison.NE:
            return Compare(path, comparison, draw(scalars))
        case _:
            ordered = scalars.filter(lambda one: one is not None and not isinstance(one, bool))
            return Compare(path, comparison, draw(ordered))


filters = st.none() | st.recursive(
    comparisons(),
    lambda tree: st.one_of(
        st.lists(tree, max_size=3).map(lambda children: And(tuple(children))),
        st.lists(tree, max_size=3).map(lambda children: Or(tuple(children))),
        tree.map(Not),
    ),
    max_leaves=4,
)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """A few rows; ids come twice now and then."""
    named = draw(st.lists(ids, min_size=1, max_size=6))
    count = len(named)
    return Batch(
        ids=tuple(named),
        namespaces=tuple(draw(st.lists(namespaces, min_size=count, max_size=count))),
        metadata=tuple(
            b"" if document is None else orjson.dumps(document)
            for document in draw(st.lists(documents, min_size=count, max_size=count))
        ),
        values=np.array(draw(st.lists(vectors, min_size=count, max_size=count)), dtype=np.float32),
    )


def bulk(seed: int, count: int) -> Batch:
    """Many rows from one number: most are on a small grid, where vectors are often equal or zero."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 2, size=(count, DIMENSIONS))
    fine = random.choice(NUMBERS, size=(count, DIMENSIONS))
    metadata = [
        orjson.dumps(
            {
                "text": f"alpha{number % 3}",
                "year": number if number % 2 else str(number),
                "flag": number % 2 == 0,
                "tags": ["1", number],
                "deep": {"x": [None, 1, "1", True, 1.5, "alpha"][number]},
            }
        )
        for number in random.integers(0, 6, size=count).tolist()
    ]
    return Batch(
        ids=tuple(f"v{number:03}" for number in random.integers(0, BULK_IDS, size=count)),
        namespaces=tuple(random.choice(["", "n", "m"], size=count).tolist()),
        metadata=tuple(metadata),
        values=np.where(random.random((count, 1)) < 0.3, coarse, fine).astype(np.float32),
    )


@st.composite
def queries(draw: st.DrawFn) -> Query:
    """Any question, most often an exact one."""
    return Query(
        vector=draw(vectors),
        count=draw(st.sampled_from([1, 3, 20, 1000])),
        offset=draw(st.sampled_from([0, 0, 2, 50])),
        namespace=draw(namespaces),
        filter=draw(st.none() | filters),
        rules=draw(rules_of_filters),
        recall=draw(st.sampled_from([1.0, 0.98])),
    )
