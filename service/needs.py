"""What each route needs of a token, and who is let through.

Every route of the router has an entry; one that was forgotten needs everything there is to have, so that forgetting
opens nothing. Pure: the request is read in `service.auth`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from storage.tokens import Scope, Token


class Reach(Enum):
    """On what the scope of a route is needed."""

    NOTHING = auto()
    """Open to everybody, token or not."""
    TOKEN = auto()
    """Any token that is valid."""
    ACCOUNT = auto()
    """Some index of the account in the path; the handler looks closer."""
    INDEX = auto()
    """The index in the path."""
    SERVICE = auto()
    """Everything the service has."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a route needs."""

    reach: Reach
    scope: Scope = Scope.READ


OPEN = Need(Reach.NOTHING)
ANY_TOKEN = Need(Reach.TOKEN)
FORGOTTEN = Need(Reach.SERVICE, Scope.ADMIN)


def is_enough(token: Token, need: Need, *, account: str, index: str) -> bool:
    """Whether a valid token has what a route needs. Names that the path does not have are empty."""
    match need.reach:
        case Reach.NOTHING | Reach.TOKEN:
            return True
        case Reach.ACCOUNT:
            return token.may_somewhere(need.scope, account)
        case Reach.INDEX:
            return token.may(need.scope, account, index)
        case Reach.SERVICE:
            return token.may_everywhere(need.scope)
