"""The names and ids that requests bring: what is allowed, and what is said when one is not."""

from __future__ import annotations

import re
from collections.abc import Sequence

from service.dialects.vectorize.errors import Code, Refusal
from storage.limits import Limits

INDEX_NAME = re.compile(r"[a-z]+[a-z0-9_-]*[a-z0-9]+")
ACCOUNT_BYTES_MAX = 128


def check_index_name(name: str, limits: Limits) -> None:
    """Raise Refusal for a name that no index may have."""
    if not INDEX_NAME.fullmatch(name) or len(name) > limits.index_name_bytes_max:
        raise Refusal(
            Code.INDEX_NAME_INVALID,
            f'vectorize.index.invalid_name - Index name "{name:.80}" must match ^{INDEX_NAME.pattern}$ '
            f"and have at most {limits.index_name_bytes_max} characters",
        )


def is_account(text: str) -> bool:
    """Whether a path segment can name an account: any visible text, ids of other systems included."""
    return len(text) <= ACCOUNT_BYTES_MAX and text.isprintable() and "/" not in text and text not in (".", "..")


def check_id(vector_id: str, limits: Limits) -> None:
    """Raise Refusal for an id that no vector may have."""
    length = _utf8_length(vector_id, "id")
    if length > limits.id_bytes_max:
        raise Refusal(Code.ID_TOO_LONG, f"id too long; max is {limits.id_bytes_max} bytes, got {length} bytes")
    if not vector_id:
        raise Refusal(Code.BODY_INVALID, "an id is empty; it must have at least one character")


def check_ids(ids: Sequence[str], limits: Limits, *, count_max: int) -> None:
    """Raise Refusal when there are no ids, too many, or one that no vector may have."""
    if not ids:
        raise Refusal(Code.BODY_INVALID, "ids: expected at least one id, and got none")
    if len(ids) > count_max:
        message = f"too many ids in payload; max id count is {count_max}, got {len(ids)}"
        raise Refusal(Code.TOO_MANY, message)
    for vector_id in ids:
        check_id(vector_id, limits)


def checked_namespace(namespace: object, limits: Limits) -> str:
    """The namespace of a vector or a question; null and "" mean none. Raises Refusal."""
    if namespace is None:
        return ""
    if not isinstance(namespace, str):
        raise Refusal(Code.BODY_INVALID, f"namespace: expected a string, and got {namespace!r:.40}")
    length = _utf8_length(namespace, "namespace")
    if length > limits.namespace_bytes_max:
        message = f"namespace too long; max is {limits.namespace_bytes_max} bytes, got {length} bytes"
        raise Refusal(Code.NAMESPACE_TOO_LONG, message)
    return namespace


def check_property_name(name: str, limits: Limits) -> None:
    """Raise Refusal for a name that no metadata property can have. A dot looks into nested objects."""
    parts = name.split(".")
    if len(name) > limits.filter_key_chars_max or '"' in name or any(not p or p.startswith("$") for p in parts):
        raise Refusal(
            Code.PROPERTY_NAME_INVALID,
            f"invalid propertyName {name!r:.80}; it has at most {limits.filter_key_chars_max} characters, "
            "no double quote, and between its dots there is always a key that does not start with $",
        )


def _utf8_length(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise Refusal(
            Code.BODY_INVALID, f"{what}: {text!r:.40} has half of a surrogate pair, which is no text"
        ) from error
