"""
What the secret file may hold, decided from its bytes alone.

Reasons never repeat any of the content: whoever mounted the wrong file must not find it in a log.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec

from agent_runtime.tokens import Token

LIMIT_BYTES = 64 * 1024
"""A longer content is never accepted, and no more than this and one byte is ever read."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLANKS = b" \t\r\n"
FIRST_MILLISECONDS = 1e11
"""
An ``expires_at`` from here on counts milliseconds: in seconds it would lie beyond the year 5000.

Writers mix the two up because the CLI's own ``expiresAt`` is in milliseconds.
"""

SHORTEST_SECRET = 16
"""What is shorter may stand in a name by chance."""

Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class SecretContent(msgspec.Struct, frozen=True):
    """
    A content that can be used.

    Attributes:
        expires_at: Epoch seconds.
        complete: No part of a longer content can look like this: it is a JSON object, or ends with a newline.
    """

    token: Token
    expires_at: float | None = None
    subscription: str | None = None
    complete: bool = False


class Unusable(msgspec.Struct, frozen=True):
    """
    Why there is no token.

    Attributes:
        reason: Goes after "the secret file"; free of the content and of :data:`agent_runtime.errors.RESERVED_WORDS`.
        absent: There is nothing at all, as against something that is wrong.
    """

    reason: str
    absent: bool = False


class Trouble(StrEnum):
    """What is wrong with a secret file, in few words, for counting."""

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


_TROUBLES = (
    ("is missing", Trouble.MISSING),
    ("is empty", Trouble.EMPTY),
    ("cannot be read", Trouble.UNREADABLE),
    ("is longer than", Trouble.TOO_LONG),
    ("is a JSON object", Trouble.BAD_JSON),
    ("begins like JSON", Trouble.BAD_JSON),
    ("holds ", Trouble.WRONG_CONTENT),
    ("is a directory", Trouble.NO_FILE),
    ("is a FIFO", Trouble.NO_FILE),
    ("is not a regular file", Trouble.NO_FILE),
    ("has only just been written", Trouble.UNSETTLED),
    ("was replaced outside", Trouble.DETACHED),
)


def trouble_in(error: str) -> Trouble:
    """Tell the kind of a reason, whether or not it stands after "the secret file"."""
    reason = error.removeprefix("the secret file ")
    return next((trouble for begins, trouble in _TROUBLES if reason.startswith(begins)), Trouble.OTHER)


class _CliSecret(msgspec.Struct, frozen=True, rename="camel"):
    access_token: str | None = None
    expires_at: float | None = None
    subscription_type: str | None = None


class _Document(msgspec.Struct, frozen=True):
    token: str | None = None
    expires_at: Instant | float | None = None
    subscription: str | None = None
    cli: _CliSecret | None = msgspec.field(default=None, name="claudeAiOauth")


_NAMED_FIELDS = ("token", "expires_at", "subscription", "accessToken", "expiresAt", "subscriptionType")


def parse(raw: bytes) -> SecretContent | Unusable:
    """
    Read a content: a bare token, ``{"token": …}``, or the CLI's own ``{"claudeAiOauth": …}``.

    Args:
        raw: The whole file, or at least its first ``LIMIT_BYTES + 1`` bytes.
    """
    if len(raw) > LIMIT_BYTES:
        return Unusable("is longer than 64 KiB")
    text = raw.removeprefix(BYTE_ORDER_MARK).strip(BLANKS)
    if not text:
        return Unusable("is empty", absent=True)
    if text.startswith(b"{"):
        return _parse_json(text)
    fault = _fault_of_bare(text)
    if fault is not None:
        return Unusable(fault)
    return SecretContent(Token(text.decode("ascii")), complete=raw.endswith(b"\n"))


def _fault_of_bare(text: bytes) -> str | None:
    if b"\0" in text:
        return "holds NUL characters"
    if b"\n" in text or b"\r" in text:
        return "holds several lines"
    if text.startswith(b"<"):
        return "holds markup, not a token"
    if b" " in text:
        return "holds blanks inside its line"
    if any(byte < 0x20 or byte == 0x7F for byte in text):
        return "holds control characters"
    if not text.isascii():
        return "holds characters that no token has"
    return None


def _parse_json(text: bytes) -> SecretContent | Unusable:
    try:
        document = msgspec.json.decode(text, type=_Document)
    except msgspec.ValidationError as problem:
        return Unusable(_wrong_field(problem))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Unusable("begins like JSON but is not valid JSON")
    if document.token is not None:
        return _from_fields(document.token, document.expires_at, document.subscription)
    cli = document.cli
    if cli is not None and cli.access_token is not None:
        expires_at = None if cli.expires_at is None else cli.expires_at / 1000
        return _from_fields(cli.access_token, expires_at, cli.subscription_type)
    return Unusable("is a JSON object without a token")


def _from_fields(value: str, expires_at: datetime | float | None, subscription: str | None) -> SecretContent | Unusable:
    value = value.strip(BLANKS.decode())
    if not value:
        return Unusable("is a JSON object with an empty token")
    fault = _fault_of_bare(value.encode())
    if fault is not None:
        return Unusable(f"is a JSON object whose token {fault}")
    if subscription is not None and not (subscription.isprintable() and len(subscription) <= 200):
        return Unusable("is a JSON object whose field subscription is not a name")
    if subscription is not None and len(value) >= SHORTEST_SECRET and value in subscription:
        return Unusable("is a JSON object whose field subscription holds the token")
    seconds = expires_at.timestamp() if isinstance(expires_at, datetime) else expires_at
    if seconds is not None and seconds >= FIRST_MILLISECONDS:
        seconds /= 1000
    if seconds is not None and not 0 <= seconds < FIRST_MILLISECONDS:
        return Unusable("is a JSON object whose field expires_at is not a time of these centuries")
    return SecretContent(Token(value), seconds, subscription or None, complete=True)


def _wrong_field(problem: msgspec.ValidationError) -> str:
    # The message ends with the field's path; only names that we know are repeated, since others are content.
    name = str(problem).rpartition(".")[2].rstrip("`")
    return f"is a JSON object whose field {name if name in _NAMED_FIELDS else 'names or types'} cannot be read"
