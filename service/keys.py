"""What a request finds in its application and carries with it, by typed keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from service.admission import Admission
from service.audit import Asked, Audit
from service.bodies import BodyBudget
from service.callers import CallerNames
from service.gate import Gate
from service.needs import Need
from storage.interfaces import Store
from storage.settings import Settings
from storage.tokens import Token

STORE = web.AppKey("store", Store)
SETTINGS = web.AppKey("settings", Settings)
ADMISSION = web.AppKey("admission", Admission)
BODY_BUDGET = web.AppKey("body_budget", BodyBudget)
CALLER_NAMES = web.AppKey("caller_names", CallerNames)
GATE = web.AppKey("gate", Gate)
NEEDS = web.AppKey("needs", Mapping[Any, Need])
"""What each handler needs of a token."""
AUDIT = web.AppKey("audit", Audit)

REQUEST_ID = web.RequestKey("request_id", str)
INDEX_NAME = web.RequestKey("index_name", str)
"""The index a request is about, where its path does not say: the body of a creation does."""
TOKEN = web.RequestKey("token", Token)
"""Who asks; not there on the routes that are open to everybody."""
ASKED = web.RequestKey("asked", Asked)
"""What the request wants to change; not there when it only reads."""
