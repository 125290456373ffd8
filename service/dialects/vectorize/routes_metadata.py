"""Metadata indexes: which properties filters find fast."""

from __future__ import annotations

from aiohttp import web

from service.dialects.vectorize.answers import metadata_index_answer
from service.dialects.vectorize.envelope import success
from service.dialects.vectorize.models import CreateMetadataIndex, DeleteMetadataIndex
from service.dialects.vectorize.names import check_property_name
from service.dialects.vectorize.parameters import index_of
from service.dialects.vectorize.reading import json_model
from service.dialects.vectorize.writes import append, write_options
from service.keys import SETTINGS, STORE
from storage.batch import pack_json
from storage.records import Action, Change, MetadataIndex, MetadataType


async def create_metadata_index(request: web.Request) -> web.Response:
    """Log the creation of one. The same again changes nothing; another type for the property is refused."""
    spec = index_of(request)
    options = write_options(request)
    body = await json_model(request, CreateMetadataIndex)
    check_property_name(body.property_name, request.app[SETTINGS].limits)
    change = _change(Action.CREATE_METADATA_INDEX, body.property_name, body.index_type)
    return await append(request, spec, change, options)


async def delete_metadata_index(request: web.Request) -> web.Response:
    """Log the removal of one."""
    spec = index_of(request)
    options = write_options(request)
    body = await json_model(request, DeleteMetadataIndex)
    check_property_name(body.property_name, request.app[SETTINGS].limits)
    # The log finds it by its property; the type is not looked at.
    change = _change(Action.DELETE_METADATA_INDEX, body.property_name, MetadataType.STRING)
    return await append(request, spec, change, options)


async def list_metadata_indexes(request: web.Request) -> web.Response:
    """Those whose creation is processed."""
    indexes = request.app[STORE].metadata_indexes(index_of(request))
    return success({"metadataIndexes": [metadata_index_answer(index) for index in indexes]})


def _change(action: Action, name: str, json_type: MetadataType) -> Change:
    return Change(
        action=action,
        body=pack_json({"property": name, "type": json_type.value}),
        rows=0,
        metadata_index=MetadataIndex(id=0, property=name, type=json_type),
    )
