"""Find what an error answer says about the token, from status, body, headers and the rules of ``evidence``."""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent_runtime.evidence.api_errors import read_body
from agent_runtime.evidence.detector import Channel, Detection
from agent_runtime.evidence.reset_times import HORIZON
from agent_runtime.evidence.rules import rule_for

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_BODY_BYTES = 64 * 1024
_GZIP_OR_ZLIB = 47
_UNIFIED = b"anthropic-ratelimit-unified-"
_MAY_BE_ABOUT_TOKEN = frozenset({400, 401, 402, 403, 429})


def may_be_refusal(status: int) -> bool:
    """Whether an answer with this status can be about the token, so that its body must be read before it passes."""
    return status in _MAY_BE_ABOUT_TOKEN


def detection_in(status: int, headers: Mapping[bytes, list[bytes]], body: bytes) -> Detection | None:
    """
    Return what an answer says about the token or its account; None: nothing.

    A 429 counts only with the headers of a usage limit: without them the API only throttles requests.

    Args:
        headers: Values by lower-case name.
        body: The beginning of the body, without the framing of chunks.

    Source: ``anthropic-ratelimit-unified-*`` as the stand-in's :class:`UsageLimit` sends them.
    """
    if status == 429 and headers.get(_UNIFIED + b"status") == [b"rejected"]:
        return _limit(headers)
    text = _decoded(body, headers.get(b"content-encoding", [])).decode("utf-8", "replace").strip()
    error = read_body(text, status)
    if error is None or not (rule := rule_for(error)).is_evidence:
        return None
    return Detection.of(error, rule, Channel.WIRE, is_final=True)


def _limit(headers: Mapping[bytes, list[bytes]]) -> Detection:
    claim = b"".join(headers.get(_UNIFIED + b"representative-claim", [])).decode("ascii", "replace")
    reset = b"".join(headers.get(_UNIFIED + b"reset", []))
    resets_at = float(reset) if reset.isdigit() and len(reset) <= 12 else None
    if resets_at is not None and not 0 < resets_at - time.time() <= HORIZON.total_seconds():
        resets_at = None
    limit = Detection.of_limit("limit-headers", Channel.WIRE, claim or None, resets_at)
    return replace(limit, condemns=True, is_final=True)


def _decoded(body: bytes, codings: list[bytes]) -> bytes:
    """Decompress a body of a coding that the relay asks for; return any other body as it is."""
    if not codings:
        return body
    try:
        return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(body, MOST_BODY_BYTES)
    except zlib.error:
        return body
