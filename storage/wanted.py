"""The indexes an operator wants to find at start, as `create_indexes` spells them."""

from __future__ import annotations

from dataclasses import dataclass

from storage.records import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedIndex:
    """One index to make at start: by dimensions and metric, or by preset with the other two empty."""

    name: str
    dimensions: int = 0
    metric: str = ""
    preset: str = ""


def wanted_indexes(text: str) -> tuple[WantedIndex, ...]:
    """Read `docs:768:cosine,notes:@cf/baai/bge-base-en-v1.5`. Raises ValueError that says how to write it.

    Only the form is checked here; which names, dimensions and presets are allowed is the service's to say.
    """
    return tuple(_wanted_index(part.strip()) for part in text.split(",") if part.strip())


def _wanted_index(part: str) -> WantedIndex:
    match part.split(":"):
        case [name, dimensions, metric] if name and dimensions.isdecimal() and metric in set(Metric):
            return WantedIndex(name=name, dimensions=int(dimensions), metric=metric)
        case [name, preset] if name and preset and not preset.isdecimal():
            return WantedIndex(name=name, preset=preset)
        case _:
            metrics = ", ".join(Metric)
            raise ValueError(
                f"{part!r} is no index to create; write name:dimensions:metric (docs:768:cosine; the "
                f"metrics are {metrics}) or name:preset (docs:@cf/baai/bge-base-en-v1.5)"
            )
