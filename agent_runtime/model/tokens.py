"""The credential as a value: its kind, its fingerprint, and no way to print it by accident."""

from __future__ import annotations

import hashlib
from enum import StrEnum

import msgspec

API_KEY_PREFIX = "sk-ant-api"
OAUTH_PREFIX = "sk-ant-oat"
OAUTH_VARIABLE = "CLAUDE_CODE_OAUTH_TOKEN"
API_KEY_VARIABLE = "ANTHROPIC_API_KEY"
AUTH_TOKEN_VARIABLE = "ANTHROPIC_AUTH_TOKEN"  # noqa: S105 - the name of a variable


OAUTH_BETA = "oauth-2025-04-20"
"""
The ``anthropic-beta`` value without which the API refuses even a good OAuth token; every CLI version sends it.

Source: Claude Code 1.0.128 to 2.1.332; reports of OAuth tokens that look bad behind proxies which drop the header.
"""


class TokenKind(StrEnum):
    """Which of the API's two kinds of credential a token is; it decides how the CLI must be given it."""

    OAUTH = "oauth"
    API_KEY = "api_key"


class Token(msgspec.Struct, frozen=True):
    """A credential that cannot be printed by accident: only its fingerprint shows."""

    secret: str

    @property
    def fingerprint(self) -> str:
        """First 12 hex digits of the token's SHA-256."""
        return hashlib.sha256(self.secret.encode()).hexdigest()[:12]

    @property
    def kind(self) -> TokenKind:
        """
        The kind by the token's prefix; a token with neither known prefix counts as an OAuth token.

        Source: Claude Code distinguishes the same prefixes, measured on 2.1.30 and 2.1.330.
        """
        return TokenKind.API_KEY if self.secret.startswith(API_KEY_PREFIX) else TokenKind.OAUTH

    def __repr__(self) -> str:
        return f"<Token {self.fingerprint}>"

    __str__ = __repr__
