"""Tells tokens apart: the configured one, those of the store, and everybody's where there are none."""

from __future__ import annotations

import hmac
import time

from storage.interfaces import Tokens
from storage.tokens import EVERYTHING, TEXT_CHARS_MAX, Standing, Token, TokenId, judge, token_hash, token_id

CONFIGURED = TokenId("configured")
"""What the token of the settings is called in logs."""


class Gate:
    """Tells tokens apart. One belongs to one application."""

    def __init__(self, tokens: Tokens, configured: str) -> None:
        self._tokens = tokens
        self._everybody = Token(id=TokenId(""), name="", hash=b"", grants=EVERYTHING)
        self._configured = Token(id=CONFIGURED, name="HEADRACE_TOKEN", hash=token_hash(configured), grants=EVERYTHING)
        self._has_configured = bool(configured)
        self._used: dict[TokenId, int] = {}

    def look(self, text: str) -> tuple[Standing, Token | None]:
        """What comes of a credential, and whose it is: nobody's when it is missing or unknown."""
        id = token_id(text)
        token = self._tokens.find(id)
        if not self._has_configured and not self._tokens.is_locked():
            return Standing.VALID, self._everybody
        if not text:
            return Standing.MISSING, None
        if len(text) > TEXT_CHARS_MAX:
            return Standing.UNKNOWN, None
        given = token_hash(text)
        if self._has_configured and hmac.compare_digest(given, self._configured.hash):
            return Standing.VALID, self._configured
        now_ms = time.time_ns() // 1_000_000
        standing = judge(token, given, now_ms)
        if standing is Standing.VALID:
            self._used[id] = now_ms
        return standing, None if standing is Standing.UNKNOWN else token

    def take_uses(self) -> dict[TokenId, int]:
        """When tokens were last let in, of those that were since this was last asked."""
        used, self._used = self._used, {}
        return used
