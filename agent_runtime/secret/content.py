"""
Parser of the secret file's content, from its bytes alone.

Reasons never repeat any of the content: if the wrong file was mounted, none of it may get into a log.
"""

from __future__ import annotations

import contextlib
import json
import re
from datetime import datetime
from enum import StrEnum

import msgspec

from agent_runtime.model.tokens import Token
from agent_runtime.secret.token_forms import BLANKS, FAMILY, NotAToken, token_in

LIMIT_BYTES = 64 * 1024
"""A longer content is never accepted; at most one byte more is ever read."""

FIRST_MILLISECONDS = 1e12
LAST_SECONDS = 1e11
"""
A number from ``FIRST_MILLISECONDS`` on counts milliseconds, one below ``LAST_SECONDS`` counts seconds. A number in
between is no plausible time in either unit.

Writers mix the units up because the CLI's own ``expiresAt`` is in milliseconds.
"""

FIRST_SECONDS_FOR_CLI = 1e9
"""In ``expiresAt`` a lower number counts milliseconds: as seconds it would lie before the CLI existed."""

LONGEST_NAME = 200


class SecretContent(msgspec.Struct, frozen=True):
    """
    The content of a secret file with a token that can be used.

    Attributes:
        expires_at: Epoch seconds.
        warnings: Sentences on what was unusual and could be corrected; they repeat nothing of the content.
        complete: It cannot be the first part of a longer content: it is a JSON object, or ends with a newline.
    """

    token: Token
    expires_at: float | None = None
    subscription: str | None = None
    warnings: tuple[str, ...] = ()
    complete: bool = False


class SecretFault(StrEnum):
    """What is wrong with a secret file, as the label of a metric."""

    MISSING = "missing"
    EMPTY = "empty"
    UNREADABLE = "unreadable"
    NO_FILE = "no_file"
    TOO_LONG = "too_long"
    WRONG_CONTENT = "wrong_content"
    BAD_JSON = "bad_json"
    UNSETTLED = "unsettled"
    DETACHED = "detached"
    OTHER = "other"


class Unusable(msgspec.Struct, frozen=True):
    """
    Why the content of a secret file cannot be used.

    Attributes:
        reason: What follows "the secret file" in a sentence; repeats nothing of the content and has none of
            :data:`agent_runtime.errors.RESERVED_WORDS`.
    """

    reason: str
    fault: SecretFault

    @property
    def sentence(self) -> str:
        """The reason as a sentence, safe to show."""
        return f"the secret file {self.reason}"


_TOKENS = ("token", "accessToken", "access_token")
_EXPIRIES = ("expires_at", "expiresAt")
_SUBSCRIPTIONS = ("subscription", "subscriptionType")


def text_of(raw: bytes) -> str:
    """Decode the content of a secret file, without byte order mark and surrounding blanks."""
    return raw.decode("utf-8", "replace").removeprefix("\ufeff").strip(BLANKS)


_WORD = re.compile(r"[A-Za-z0-9._~+/=-]{16,4096}")
_MOST_WORDS = 64


def secrets_in(raw: bytes, found: SecretContent | Unusable) -> tuple[Token, ...]:
    """
    Return the words of a content that may be secrets, so that they can be redacted; the content may be unusable.

    Examples are a refresh token beside the token, the wrapped form of a token, a word in a content that was refused. A
    word without a digit or without a letter, a path, and the name of the subscription are no secrets.
    """
    shown = (isinstance(found, SecretContent) and found.subscription) or ""
    words = (word[0] for word in _WORD.finditer(raw[:LIMIT_BYTES].decode("utf-8", "replace")))
    secrets = dict.fromkeys(
        word
        for word in words
        if any(map(str.isdigit, word)) and any(map(str.isalpha, word)) and word[0] not in "./" and word not in shown
    )
    return tuple(Token(word) for word in list(secrets)[:_MOST_WORDS])


def parse(raw: bytes) -> SecretContent | Unusable:
    """
    Read a content: a bare token, ``{"token": …}``, or the CLI's own ``{"claudeAiOauth": …}``.

    Args:
        raw: The whole file, or at least its first ``LIMIT_BYTES + 1`` bytes.
    """
    if len(raw) > LIMIT_BYTES:
        return Unusable("is longer than 64 KiB", SecretFault.TOO_LONG)
    text = text_of(raw)
    if not text:
        return Unusable("is empty", SecretFault.EMPTY)
    if text.startswith("{") and not text.startswith("{{"):  # two braces begin a template
        return _parse_json(text)
    try:
        found = token_in(text)
    except NotAToken as fault:
        return Unusable(str(fault), SecretFault.WRONG_CONTENT)
    # A line of base64 with its newline may be the first of several.
    complete = raw.endswith(b"\n") and not found.was_base64
    return SecretContent(Token(found.value), warnings=found.warnings, complete=complete)


def _parse_json(text: str) -> SecretContent | Unusable:
    try:
        document = json.loads(text, parse_int=float, object_pairs_hook=_without_conflicts)
        fields, written = _written_token(document)
    except NotAToken as fault:
        return Unusable(str(fault), SecretFault.BAD_JSON)
    except (ValueError, RecursionError):
        return Unusable("begins like JSON but is not valid JSON", SecretFault.BAD_JSON)
    try:
        found = token_in(written)
    except NotAToken as fault:
        return Unusable(f"is a JSON object whose token {fault}", SecretFault.BAD_JSON)
    expiry, name = _given(fields, _EXPIRIES), _given(fields, _SUBSCRIPTIONS)
    expires_at = _seconds(expiry, fields[expiry]) if expiry else None
    subscription = _subscription(fields[name], found.value) if name else None
    unusable = [field for field, value in ((expiry, expires_at), (name, subscription)) if field and value is None]
    warnings = (f"the field {field} cannot be used, and was left out" for field in unusable)
    return SecretContent(Token(found.value), expires_at, subscription, (*found.warnings, *warnings), complete=True)


def _without_conflicts(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object from its fields; raise NotAToken if a repeated field holds different tokens."""
    fields = dict(pairs)
    if any(name in _TOKENS and value != fields[name] for name, value in pairs):
        raise NotAToken("is a JSON object with two tokens")
    return fields


def _written_token(document: dict[str, object]) -> tuple[dict[str, object], str]:
    """Return the object that holds the token, and the text of the token in it."""
    cli = document.get("claudeAiOauth")
    fault = "without a token"
    for fields in (document, cli if isinstance(cli, dict) else {}):
        for name in _TOKENS:
            written = fields.get(name)
            if isinstance(written, str) and written.strip(BLANKS):
                return fields, written
            if written is not None:
                fault = "with an empty token" if isinstance(written, str) else f"whose field {name} is not text"
    raise NotAToken(f"is a JSON object {fault}")


def _given(fields: dict[str, object], names: tuple[str, ...]) -> str | None:
    """Return the first of the fields *names* that has a value."""
    return next((name for name in names if fields.get(name) not in (None, "")), None)


def _seconds(name: str, value: object) -> float | None:
    """Convert a time to epoch seconds: from seconds, milliseconds or RFC 3339, as number or text."""
    if isinstance(value, str):
        value = _number_or_instant(value)
    if not isinstance(value, float):
        return None
    # The CLI's own field counts milliseconds, but some writers put seconds there.
    if value >= FIRST_MILLISECONDS or (name == "expiresAt" and value < FIRST_SECONDS_FOR_CLI):
        value /= 1000
    return value if 0 < value < LAST_SECONDS else None


def _number_or_instant(text: str) -> float | None:
    with contextlib.suppress(ValueError):
        return float(text)
    try:
        at = datetime.fromisoformat(text.strip().upper())
        return None if at.tzinfo is None else at.timestamp()
    except (ValueError, OverflowError):
        return None


def _subscription(value: object, secret: str) -> str | None:
    """Return the subscription's name; None if it is unfit to be shown or holds a token."""
    if not isinstance(value, str) or not value.isprintable() or len(value) > LONGEST_NAME:
        return None
    return None if secret in value or FAMILY in value else value
