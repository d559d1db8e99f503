"""
How a token reaches a child.

Today by its environment only: the value is fixed for the life of the process, a newer one reaches the next attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from agent_runtime.tokens import TokenKind

if TYPE_CHECKING:
    from agent_runtime.tokens import Token

VARIABLE_BY_KIND = {TokenKind.OAUTH: "CLAUDE_CODE_OAUTH_TOKEN", TokenKind.API_KEY: "ANTHROPIC_API_KEY"}


class Delivery(Protocol):
    """
    One way to hand a token to a child.

    Attributes:
        name: As in the setting.
        reaches_running: Whether a newer generation gets to a child that runs already.
    """

    name: str
    reaches_running: bool

    def variables(self, token: Token) -> dict[str, str]:
        """Tell what the child's environment must hold for *token*."""


class EnvironmentDelivery:
    """Put the token into the variable that its kind calls for."""

    name = "env"
    reaches_running = False

    def variables(self, token: Token) -> dict[str, str]:
        """Tell the one variable, with the token in it."""
        return {VARIABLE_BY_KIND[token.kind]: token.secret}
