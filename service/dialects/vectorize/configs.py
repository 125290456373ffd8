"""The config of a new index: dimensions and metric, or a preset that stands for an embedding model."""

from __future__ import annotations

from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.models import ConfigBody
from storage.limits import Limits
from storage.records import IndexConfig, Metric

PRESETS: dict[str, int] = {
    "@cf/baai/bge-small-en-v1.5": 384,
    "@cf/baai/bge-base-en-v1.5": 768,
    "@cf/baai/bge-large-en-v1.5": 1024,
    "openai/text-embedding-ada-002": 1536,
    "cohere/embed-multilingual-v2.0": 768,
}
"""The dimensions of each preset. The metric is cosine for all: none is documented, and it suits them all."""


def index_config(body: ConfigBody | None, limits: Limits) -> IndexConfig:
    """The config that a creation asks for. Raises Refusal."""
    if body is None:
        raise _invalid("Config must be provided")
    if body.preset:
        return preset_config(body.preset)
    if body.dimensions is None or body.metric is None:
        raise _invalid("Config must have dimensions and metric, or preset")
    if not limits.dimensions_min <= body.dimensions <= limits.dimensions_max:
        raise _invalid(f"Dimensions must be in range: [{limits.dimensions_min}, {limits.dimensions_max}]")
    return IndexConfig(dimensions=body.dimensions, metric=body.metric)


def preset_config(preset: str) -> IndexConfig:
    """What a preset stands for. Raises Refusal naming the known ones."""
    if preset not in PRESETS:
        raise _invalid(f'Preset "{preset:.80}" is not known; known are {", ".join(PRESETS)}')
    return IndexConfig(dimensions=PRESETS[preset], metric=Metric.COSINE, preset=preset)


def _invalid(reason: str) -> Refusal:
    return Refusal(Code.INDEX_CONFIG_INVALID, f"vectorize.index.invalid_config - {reason}")
