"""
The words by which the rules know what happened, where a status and a type leave it open; all in lower case.

A *phrase* is a set of words that must all be in the text. A *sentence* is what one of the CLI's remarks begins with.

Source: frames and lines under ``tests/recorded/``; the sentences Claude Code 1.0.128, 2.0.76, 2.1.30, 2.1.114 and
2.1.330 carry.
"""

from __future__ import annotations

from typing import TypeAlias

Phrases: TypeAlias = tuple[tuple[str, ...], ...]

SOCKET: Phrases = (
    ("connection was closed",),
    ("connection closed",),
    ("request timed out",),
    ("unable to connect",),
    ("network error",),
    ("getaddrinfo",),
    ("enotfound",),
    ("socket hang up",),
    ("econnreset",),
    ("econnrefused",),
    ("etimedout",),
    ("epipe",),
    ("fetch failed",),
    ("connection error",),
    ("connection reset",),
    ("other side closed",),
)
NETWORK: Phrases = (
    *SOCKET,
    ("eai_again",),
    ("ehostunreach",),
    ("enetunreach",),
    ("failedtoopensocket",),
    ("connectionrefused",),
    ("connection refused",),
    ("connection to the api was lost",),
    ("connection dropped",),
    ("can't reach the api",),
    ("no response from api",),
    ("timed out",),
    ("api error: terminated",),
    ("certificate",),
    ("unable_to_get_issuer_cert",),
    ("ssl",),
    ("network",),
    ("failed to refresh oauth token",),
    ("could not refresh your login",),
)

REFUSED_CREDENTIAL: Phrases = (
    ("token", "revoked"),
    ("credential", "revoked"),
    ("api key", "revoked"),
    ("token has expired",),
    ("credential is invalid",),
    ("not allowed for this organization",),
    ("not permitted for this organization",),
    ("disabled for this organization",),
    ("disabled claude subscription access",),
    ("api key authentication is disabled",),
    ("disabled api key authentication",),
    ("organization has been disabled",),
    ("account has been disabled",),
    ("account has been suspended",),
    ("no longer a member",),
    ("not a member of the organization",),
    ("token application has been deactivated",),
    ("token lacks associated",),
    ("access to claude code",),
    ("access to claude.",),
    ("does not meet scope requirement", "user:inference"),
)
"""What the API says when it is the credential that is refused; 2.1.330 keeps much the same list."""

NAMES_A_MODEL: Phrases = (
    ("the model ",),
    ("model:",),
    ("model claude",),
    ("claude-opus",),
    ("claude-sonnet",),
    ("claude-haiku",),
    ("claude-fable",),
)
"""What is refused to an organization is this one model, then, and no credential."""

OF_A_MODEL: Phrases = (
    ("specified resource",),
    ("model:",),
    ("access to", "model"),
    ("permission", "model"),
    ("not allowed", "model"),
    ("not authorized", "model"),
    ("access to claude-",),
    ("access to claude opus",),
    ("access to claude sonnet",),
    ("access to claude haiku",),
)
UNSUPPORTED_MODEL: Phrases = (
    ("does not support this model",),
    ("model is not supported",),
    ("model not supported",),
    ("model is not available",),
    ("model does not exist",),
    ("model not found",),
    ("not a supported model",),
    ("not a valid model",),
    ("invalid model",),
    ("unknown model",),
    ("is not available with the claude",),
)

REFUSAL_SENTENCES = (
    "please run /login",
    "not logged in",
    "failed to authenticate",
    "authentication required",
    "login expired",
    "invalid api key",
    "invalid auth token",
    "invalid bearer token",
    "invalid x-api-key",
    "invalid authentication credentials",
    "oauth token revoked",
    "oauth token has expired",
    "oauth token has been revoked",
    "oauth access token has expired",
    "oauth access token has been revoked",
    "oauth access token is invalid",
    "oauth authentication is currently not",
    "your account does not have access to claude",
    "your organization has disabled",
    "your anthropic_api_key belongs to a disabled organization",
    "this organization has been disabled",
    "account is no longer a member of the organization",
    "credential is invalid",
)
LIMIT_SENTENCES = (
    "you've hit your",
    "you\u2019ve hit your",
    "you've reached your",
    "you\u2019ve reached your",
    "you have reached your",
    "you've used",
    "you're out of usage credits",
    "you're out of extra usage",
    "your org is out of usage",
    "your usage allocation has been disabled",
    "your group's usage limit",
    "usage limit reached",
    "claude usage limit reached",
    "claude ai usage limit reached",
    "5-hour limit reached",
    "session limit reached",
    "weekly limit reached",
    "opus limit reached",
    "opus weekly limit reached",
    "sonnet limit reached",
    "sonnet weekly limit reached",
    "limit reached",
    "spending cap reached",
    "spend limit reached",
)
THROTTLE_SENTENCES = (
    "server is temporarily limiting requests",
    "request rejected (429)",
    "rate limit reached",
    "repeated 529",
    "overloaded",
    "opus is experiencing high load",
    "fable is experiencing high load",
)
INVALID_SENTENCES = (
    "prompt is too long",
    "request too large",
    "an image in the conversation",
    "image was too large",
    "input is too long",
    "pdf ",
)

MODEL_BY_LIMIT: dict[str, str] = {
    "seven_day_opus": "opus",
    "seven_day_sonnet": "sonnet",
    "seven_day_overage_included": "fable",
}
"""Which model a usage limit is of; all other limits are the account's. Source: Claude Code 2.1.330."""

LIMIT_BY_WORDS: tuple[tuple[str, str], ...] = (
    ("opus", "seven_day_opus"),
    ("sonnet", "seven_day_sonnet"),
    ("fable", "seven_day_overage_included"),
    ("5-hour", "five_hour"),
    ("session limit", "five_hour"),
    ("weekly", "seven_day"),
)
"""Which limit a sentence speaks of, where no frame names it. Source: Claude Code 2.0.76 to 2.1.330."""
