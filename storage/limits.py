"""Limits are data: two profiles, and every limit a setting of its own.

`cloudflare` copies the live service (vectors that pass here pass there); `relaxed` lifts what is only a quota and
stays finite. Units and bounds are in the names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every bound a request is held to. Each field can be set as `HEADRACE_LIMIT_<FIELD>`."""

    strict: bool
    """Whether refusals follow the live service where it is narrower than needs be: filters see indexed properties
    only, arrays cannot be filtered on, and only the documented operators are known."""

    index_name_bytes_max: int
    indexes_per_account_max: int
    dimensions_min: int
    dimensions_max: int
    description_bytes_max: int

    id_bytes_max: int
    namespace_bytes_max: int
    namespaces_per_index_max: int
    vectors_per_index_max: int
    metadata_bytes_max: int

    upload_bytes_max: int
    upload_vectors_max: int
    binding_vectors_max: int
    """The most vectors in one insert or upsert of a Worker."""
    get_ids_max: int
    delete_ids_max: int

    top_k_default: int
    top_k_max: int
    top_k_with_payload_max: int
    """The largest topK when values or whole metadata are asked for."""
    offset_max: int

    list_count_default: int
    list_count_max: int

    metadata_indexes_max: int
    metadata_index_bytes_max: int
    """How many bytes of a string a filter compares; 0 compares the whole string."""
    filter_bytes_max: int
    filter_key_chars_max: int
    filter_depth_max: int


CLOUDFLARE = Limits(
    strict=True,
    index_name_bytes_max=64,
    indexes_per_account_max=50_000,
    dimensions_min=32,
    dimensions_max=1536,
    description_bytes_max=1024,
    id_bytes_max=64,
    namespace_bytes_max=64,
    namespaces_per_index_max=50_000,
    vectors_per_index_max=20_000_000,
    metadata_bytes_max=10 * 1024,
    upload_bytes_max=100_000_000,
    upload_vectors_max=5_000,
    binding_vectors_max=1_000,
    get_ids_max=20,
    delete_ids_max=100,
    top_k_default=5,
    top_k_max=100,
    top_k_with_payload_max=50,
    offset_max=10_000,
    list_count_default=100,
    list_count_max=1_000,
    metadata_indexes_max=10,
    metadata_index_bytes_max=64,
    filter_bytes_max=2048,
    filter_key_chars_max=512,
    filter_depth_max=16,
)

RELAXED = Limits(
    strict=False,
    index_name_bytes_max=64,
    indexes_per_account_max=1_000_000,
    dimensions_min=1,
    dimensions_max=8192,
    description_bytes_max=16 * 1024,
    id_bytes_max=512,
    namespace_bytes_max=512,
    namespaces_per_index_max=1_000_000,
    vectors_per_index_max=100_000_000,
    metadata_bytes_max=64 * 1024,
    upload_bytes_max=256_000_000,
    upload_vectors_max=50_000,
    binding_vectors_max=50_000,
    get_ids_max=10_000,
    delete_ids_max=50_000,
    top_k_default=5,
    top_k_max=10_000,
    top_k_with_payload_max=10_000,
    offset_max=100_000,
    list_count_default=100,
    list_count_max=10_000,
    metadata_indexes_max=64,
    metadata_index_bytes_max=0,
    filter_bytes_max=64 * 1024,
    filter_key_chars_max=2048,
    filter_depth_max=32,
)

PROFILES = {"cloudflare": CLOUDFLARE, "relaxed": RELAXED}
