"""The JSON bodies of requests, and how a wrong one is refused.

Unknown keys are ignored, as on the live service. Where clients are known to be sloppy the model is generous:
`null` is the same as absent, `returnMetadata` may be a boolean, `topK` may be 3.0. A refusal reads like the
live one's: `Failed to parse the request body as JSON: <path>: <reason>`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError
from pydantic_core import ErrorDetails

from service.dialects.vectorize.errors import Code, Refusal
from service.dialects.vectorize.values import kind_of
from storage.records import MetadataType, Metric

Model = TypeVar("Model", bound="Body")


class ReturnMetadata(StrEnum):
    """Which metadata a query answers."""

    NONE = "none"
    INDEXED = "indexed"
    ALL = "all"


def _return_metadata(value: object) -> object:
    match value:
        case None | False:
            return ReturnMetadata.NONE
        case True:
            return ReturnMetadata.ALL
        case str() if value in set(ReturnMetadata):
            return ReturnMetadata(value)
        case _:
            return value


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _metric(value: object) -> object:
    return Metric(value) if isinstance(value, str) and value in set(Metric) else value


def _metadata_type(value: object) -> object:
    return MetadataType(value.lower()) if isinstance(value, str) and value.lower() in set(MetadataType) else value


def _false_if_null(value: object) -> object:
    return False if value is None else value


def _empty_if_null(value: object) -> object:
    return "" if value is None else value


Whole = Annotated[int, BeforeValidator(_whole)]
Flag = Annotated[bool, BeforeValidator(_false_if_null)]
Text = Annotated[str, BeforeValidator(_empty_if_null)]


class Body(BaseModel):
    """A JSON object whose values have the types they should: "3" is no number and 1 no boolean."""

    model_config = ConfigDict(extra="ignore", strict=True)


class ConfigBody(Body):
    """What is fixed at creation: dimensions and metric, or a preset that stands for both."""

    dimensions: Whole | None = None
    metric: Annotated[Metric | None, BeforeValidator(_metric)] = None
    preset: Text = ""


class CreateIndex(Body):
    """Body of `POST /indexes`."""

    name: str
    description: Text = ""
    config: ConfigBody | None = None


class Ids(Body):
    """Body of `get_by_ids` and `delete_by_ids`."""

    # Only the first error is told; a list of each takes four hundred times the memory of the body.
    ids: Annotated[list[str], FailFast()]


class Select(Body):
    """Body of `count` and, with `dry_run`, of `delete_by_filter`."""

    filter: Any = None
    namespace: Any = None
    dry_run: Flag = Field(default=False, validation_alias=AliasChoices("dry_run", "dryRun"))


class QueryBody(Body):
    """Body of `query`, without `vector`: that is parsed apart, because it is most of the bytes.

    `topK` stays what it was sent as: a number that is too small or not whole has a refusal of its own.
    """

    vector_id: str | None = Field(default=None, validation_alias="vectorId")
    top_k: int | float | None = Field(default=None, validation_alias="topK")
    return_values: Flag = Field(default=False, validation_alias="returnValues")
    return_metadata: Annotated[ReturnMetadata, BeforeValidator(_return_metadata)] = Field(
        default=ReturnMetadata.NONE, validation_alias="returnMetadata"
    )
    filter: Any = None
    namespace: Any = None
    offset: Whole | None = None
    recall: float | None = None
    include_timing: Flag = Field(default=False, validation_alias=AliasChoices("include_timing", "includeTiming"))
    explain: Flag = False


class CreateMetadataIndex(Body):
    """Body of `metadata_index/create`. Types are accepted in any case: the live service answers "String"."""

    property_name: str = Field(validation_alias="propertyName")
    index_type: Annotated[MetadataType, BeforeValidator(_metadata_type)] = Field(validation_alias="indexType")


class DeleteMetadataIndex(Body):
    """Body of `metadata_index/delete`. langchain-cloudflare calls the property `property`."""

    property_name: str = Field(validation_alias=AliasChoices("propertyName", "property"))


def read_model(model: type[Model], body: bytes) -> Model:
    """Parse a body. Raises Refusal in the live service's words."""
    return validate(model, parse_json(body))


def parse_json(body: bytes) -> object:
    """Any JSON document. Raises Refusal in the live service's words."""
    if not body.strip():
        raise unreadable("EOF while parsing a value at line 1 column 0")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise unreadable(str(error)) from error


def validate(model: type[Model], document: object) -> Model:
    """A parsed document as a model. Raises Refusal in the live service's words."""
    if not isinstance(document, dict):
        raise unreadable(f"invalid type: {kind_of(document)}, expected an object")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise unreadable(_reason(error.errors()[0])) from error


def unreadable(reason: str) -> Refusal:
    """The refusal of a JSON body, with the path and what is wrong there."""
    return Refusal(Code.BODY_INVALID, f"Failed to parse the request body as JSON: {reason}")


_VARIANTS: dict[str, str] = {kind.__name__: ", ".join(kind) for kind in (Metric, MetadataType, ReturnMetadata)}
_EXPECTED: dict[str, str] = {
    "string_type": "a string",
    "bool_type": "a boolean",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "list_type": "an array",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def _reason(error: ErrorDetails) -> str:
    path = ".".join(str(part) for part in error["loc"] if part not in _UNION_BRANCHES)
    found = error["input"]
    match error["type"]:
        case "missing":
            *parents, field = path.split(".")
            return ": ".join([*(".".join(parents),) * bool(parents), f"missing field `{field}`"])
        case "is_instance_of":
            return f"{path}: unknown variant {_shown(found)}, expected one of {_VARIANTS[error['ctx']['class']]}"
        case kind:
            expected = _EXPECTED.get(kind)
            return (
                f"{path}: invalid type: {_shown(found)}, expected {expected}" if expected else f"{path}: {error['msg']}"
            )


_UNION_BRANCHES: frozenset[Literal["int", "float"]] = frozenset({"int", "float"})
"""What pydantic adds to the path of a union; no field of ours has such a name."""


def _shown(value: object) -> str:
    match value:
        case str():
            return f"string {value!r:.60}"
        case bool() | int() | float():
            return f"{value!r:.60}".lower()
        case _:
            return kind_of(value)
