"""How the tests hold the official Python SDK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cloudflare import APIStatusError, Cloudflare

from tests.contract.program import ACCOUNT, eventually

SMALL = {"dimensions": 32, "metric": "cosine"}


class Index:
    """The SDK's methods for one index, without saying every time whose and which."""

    def __init__(self, client: Cloudflare, name: str) -> None:
        self.client = client
        self.name = name
        self._indexes = client.vectorize.indexes

    def __getattr__(self, method: str) -> Callable[..., Any]:
        resource = self._indexes
        if method.startswith("metadata_index_"):
            return self._bound(getattr(resource.metadata_index, method.removeprefix("metadata_index_")))
        return self._bound(getattr(resource, method))

    def _bound(self, method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda **named: method(self.name, account_id=ACCOUNT, **named)

    def create(self, config: Any = SMALL, **named: Any) -> Any:
        return self._indexes.create(account_id=ACCOUNT, name=self.name, config=config, **named)

    def settle(self, mutation: Any) -> None:
        """Wait for a mutation as the documentation of the API says: until `/info` has got there."""
        eventually(
            f"{mutation.mutation_id} is processed",
            lambda: (self.info().processed_up_to_mutation or "") >= mutation.mutation_id,
        )

    def mutations(self) -> list[dict[str, Any]]:
        """The log, oldest first: one of our extensions, which the SDK reaches by path."""
        path = f"/accounts/{ACCOUNT}/vectorize/v2/indexes/{self.name}/mutations"
        envelope: Any = self.client.get(path, cast_to=object)
        return list(reversed(envelope["result"]["mutations"]))


def ids(answer: Any) -> list[str]:
    """The ids of a query's answer, best first."""
    assert answer.count == len(answer.matches)
    return [match.id for match in answer.matches]


def refusal(caught: pytest.ExceptionInfo[APIStatusError]) -> tuple[int, int | None, str | None]:
    """Status, code and message, from where the SDK keeps them for its users."""
    [error] = caught.value.errors
    return caught.value.status_code, error.code, error.message
