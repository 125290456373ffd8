"""What schemathesis is told beside the document. It runs in an environment of its own, which has nothing of ours."""

import itertools
import json
import re
import time

import schemathesis

CREATABLE = re.compile(r"[a-z]+[a-z0-9_-]*[a-z0-9]+")
_names = itertools.count()
_began = f"{time.time_ns():x}"


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):  # noqa: ARG001 (schemathesis looks at the names)
    """A vector on each line."""
    documents = value if isinstance(value, list) else [value]
    return b"\n".join(json.dumps(document).encode() for document in documents)


@schemathesis.hook
def before_call(ctx, case, kwargs):  # noqa: ARG001 (schemathesis looks at the names)
    """What a document cannot say: which names are taken, and the order of keys."""
    if case.operation.method.upper() != "POST" or not isinstance(case.body, dict):
        return
    if case.operation.path.endswith("/indexes"):
        name = case.body.get("name")
        if isinstance(name, str) and len(name) <= 64 and CREATABLE.fullmatch(name):
            case.body["name"] = f"{name[:20]}-{_began}-{next(_names)}"
    if "vectors" in case.body:
        case.body = {"vectors": case.body["vectors"], **case.body}
