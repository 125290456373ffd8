"""The served document, narrowed to one service with an index of its own.

A document cannot say how many dimensions an index has or which ids there are. Where it is narrowed to what holds here
(`narrowed`), everything it forbids must be refused. What it cannot bound exactly at all, such as bytes of UTF-8, is
bounded more tightly still (`narrowed_to_acceptable`): everything it then allows must be accepted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

DIMENSIONS = 4
ACCOUNT, INDEX = "contract", "docs"
NOT_GENERATED = {"wait_for", "before", "cursor", "Idempotency-Key"}
"""Parameters whose every text is allowed and hardly any is accepted."""
EXACT_MAX = 2**53
CHARACTER_BYTES_MAX = 4


def narrowed(document: dict[str, Any], mutation: str) -> dict[str, Any]:
    """With the index that there is, its dimensions and one of its mutations."""
    found = copy.deepcopy(document)
    known = {"name": INDEX, "mutation": mutation}
    # Any text is an account.
    found["paths"] = {path.replace("{account}", ACCOUNT): methods for path, methods in found["paths"].items()}
    for methods in found["paths"].values():
        for method, operation in methods.items():
            operation["parameters"] = [one for one in operation["parameters"] if one.get("name") != "account"]
            for parameter in operation["parameters"]:
                if parameter.get("in") == "path":
                    parameter["schema"] = {"enum": [known[parameter["name"]]]}
                    if method == "delete" and parameter["name"] == "name":
                        # The others go on using theirs.
                        parameter["schema"] = {"enum": ["gone"]}
            content = operation.get("requestBody", {}).get("content", {})
            # A form is a file in bytes; fuzzing makes those.
            content.pop("multipart/form-data", None)
            if "application/x-ndjson" in content:
                content["application/x-ndjson"]["schema"] = {
                    "type": "array",
                    "items": {"$ref": "#/components/schemas/Vector"},
                    "minItems": 1,
                    "maxItems": 50,
                }
    for schema in _schemas(found):
        if schema.get("type") == "array" and schema.get("items", {}).get("type") == "number" and "minItems" in schema:
            schema["minItems"] = schema["maxItems"] = DIMENSIONS
    return found


def narrowed_to_acceptable(document: dict[str, Any], mutation: str) -> dict[str, Any]:
    """With less than what there may be, so that all of it may be."""
    found = narrowed(document, mutation)
    parameters = found["components"]["parameters"]
    parameters["timeout"]["schema"]["maximum"] = 0.01
    for methods in found["paths"].values():
        for operation in methods.values():
            operation["parameters"] = [
                one for one in operation["parameters"] if one.get("$ref", "").rpartition("/")[2] not in NOT_GENERATED
            ]
    for schema in _schemas(found):
        if "x-bytes-max" in schema:
            schema["maxLength"] = schema["x-bytes-max"] // CHARACTER_BYTES_MAX
    found["components"]["schemas"]["MetadataValue"]["anyOf"][0] |= {"minimum": -EXACT_MAX, "maximum": EXACT_MAX}
    return found


def _schemas(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            yield from _schemas(one)
