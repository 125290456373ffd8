"""The numbers of a vector: from JSON to floats and back.

They are kept as float32. On the way in, what float32 cannot hold is refused; on the way out they are written
as the float64 text of the float32, as the live service does: 58.8 comes back as 58.79999923706055.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FLOAT32_MAX = float(np.finfo(np.float32).max)
_SQUARES_MAX = FLOAT32_MAX**2
_KINDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


class ValueInvalid(Exception):
    """One value is no finite number; the message says which one and what it is instead."""


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    return "null" if value is None else _KINDS.get(type(value), "an array")


def float64_values(values: list[object]) -> NDArray[np.float64]:
    """Parsed JSON as numbers. Raises ValueInvalid."""
    for position, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueInvalid(f"{kind_of(value)} at position {position}")
        if not _is_finite(value):
            raise ValueInvalid(f"NaN at position {position}" if value != value else _beyond(position))
    return np.array(values, dtype=np.float64)


def to_float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """The numbers as they are kept. Raises ValueInvalid for one that float32 cannot hold."""
    if values @ values <= _SQUARES_MAX:  # Then each of them is small enough; not so for NaN.
        return values.astype(np.float32)
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    check_float32(narrow)
    return narrow


def check_float32(narrow: NDArray[np.float32]) -> None:
    """Raise ValueInvalid for the first number that overflowed when it was narrowed."""
    finite = np.isfinite(narrow)
    if not finite.all():
        raise ValueInvalid(_beyond(int(np.argmin(finite))))


def answer_values(values: bytes) -> NDArray[np.float64]:
    """Kept numbers as they are answered."""
    return np.frombuffer(values, dtype="<f4").astype(np.float64)


def answer_score(score: float) -> np.float32:
    """A score as it is answered: the shortest text that reads back as this float32.

    Never an infinity, of which JSON has none: scores are held to what float32 can hold.
    """
    return np.float32(score)


def _beyond(position: int) -> str:
    return f"a number beyond float32 (about {FLOAT32_MAX:.2g}) at position {position}"


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
