"""
Ask the API itself whether a token is good.

Three answers: valid, refused, unknown. Unknown is the answer to everything that is no word of the API about the
credential, and refuses nobody: a wrong "refused" stops all executions, a wrong "unknown" costs one more attempt.

What counts as a refusal is said in :mod:`agent_runtime.evidence_rules`, for the CLI's reports and for this alike.
"""

from __future__ import annotations

import asyncio
import logging
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING

import msgspec

from agent_runtime import __version__
from agent_runtime.credential_names import BASE_URL_VARIABLE, HEADERS_VARIABLE, without_credentials
from agent_runtime.evidence_rules import STATUS_BY_TYPE, ApiError, rule_for
from agent_runtime.tokens import TokenKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from agent_runtime.tokens import Token

log = logging.getLogger(__name__)

DEFAULT_BASE_URL = "https://api.anthropic.com"
PATH = "/v1/messages/count_tokens"
"""Costs nothing, counts against no usage limit, and checks the credential as any request does."""

DEFAULT_MODEL = "claude-haiku-4-5"
OAUTH_BETA = "oauth-2025-04-20"
"""Without it a good OAuth token looks bad; of all the CLI sends, the only value that decides about the credential."""

TIMEOUT_SECONDS = 5.0
BODY_LIMIT_BYTES = 64 * 1024
TEXT_LIMIT = 4096

_AUTHENTICATED = frozenset({400, 402, 404, 429})
"""In the API's own form these speak of the request or the account, so the API knew whose it was."""

_LOST_ON_THE_WAY = ("x-api-key header is required", "oauth authentication is currently not supported")
"""
What a 401 says when the credential, or the beta header beside it, did not arrive: something between dropped it.

Source: the API's answers to requests without them; reports of gateways that drop headers, Claude Code 1.0.83.
"""


_OURS = frozenset({"host", "connection", "content-length", "transfer-encoding", "anthropic-beta"})
"""Headers that no setting may change here."""


class ProbeVerdict(StrEnum):
    """What the API thinks of a token, or of the account it belongs to."""

    VALID = "valid"
    REFUSED = "refused"
    BLOCKED = "blocked"
    BILLING = "billing"
    UNKNOWN = "unknown"


class _Cause(msgspec.Struct, frozen=True):
    type: str | None = None
    message: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    type: str | None = None
    error: _Cause | str | None = None
    message: str | None = None
    detail: str | None = None
    input_tokens: int | None = None

    def as_error(self, status: int) -> ApiError | None:
        """Read it as an error of an API; None: it is none."""
        cause = self.error if isinstance(self.error, _Cause) else _Cause(message=self.error)
        text = cause.message or self.message or self.detail
        if text is None and cause.type is None:
            return None
        return ApiError(status=status, type=cause.type, text=(text or "")[:TEXT_LIMIT])

    @property
    def is_own_form(self) -> bool:
        """Whether this is how the API itself puts an error, and no gateway's way."""
        return self.type == "error" and isinstance(self.error, _Cause) and self.error.type in STATUS_BY_TYPE


_answers = msgspec.json.Decoder(_Answer)


class Probe:
    """
    Ask about tokens, one request each.

    Where the request goes, and through what, is the environment's affair, as it is for the CLI.

    Args:
        environ: The supervisor's own.
        timeout_seconds: For the whole of a question and its answer.
    """

    def __init__(self, environ: Mapping[str, str], *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._environ = environ
        self._timeout_seconds = timeout_seconds

    async def ask(self, token: Token, *, model: str | None = None) -> ProbeVerdict:
        """
        Ask about *token*; answers in time, and never raises for anything that the network or the API does.

        Args:
            model: The one to name in the request; any will do.
        """
        # Loaded here, beside the event loop: a tenth of the start and of what an idle supervisor holds.
        outbound = await asyncio.to_thread(import_module, "agent_runtime.outbound")
        try:
            async with asyncio.timeout(self._timeout_seconds):
                status, body = await self._send(token, model or DEFAULT_MODEL)
        except (outbound.HTTPError, OSError, ValueError) as error:
            # No more than the type: the text may quote a header, and so the token.
            log.warning("no answer about the token: fingerprint=%s reason=%s", token.fingerprint, type(error).__name__)
            return ProbeVerdict.UNKNOWN
        verdict = judge(status, body)
        log.info("answer about the token: fingerprint=%s status=%d verdict=%s", token.fingerprint, status, verdict)
        return verdict

    async def _send(self, token: Token, model: str) -> tuple[int, bytes]:
        from agent_runtime.outbound import client_for

        url = self._url()
        question = {"model": model, "messages": [{"role": "user", "content": "."}]}
        async with (
            client_for(url, self._environ, timeout_seconds=self._timeout_seconds) as client,
            client.stream("POST", url, headers=self._headers(token), content=msgspec.json.encode(question)) as response,
        ):
            body = b""
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > BODY_LIMIT_BYTES:
                    raise ValueError("longer than any answer to this question")
            return response.status_code, body

    def _url(self) -> httpx.URL:
        """
        Put the address together as the CLI does.

        Raises:
            ValueError: The base URL is one of which it is not known what the CLI makes of it.
        """
        from agent_runtime.outbound import checked_url

        base = checked_url(self._environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL)
        if base.userinfo or base.query or base.fragment:
            raise ValueError("the base URL has more than a host and a path")
        return base.copy_with(path=base.path.rstrip("/") + PATH)

    def _headers(self, token: Token) -> dict[str, str]:
        """
        Put the headers together.

        Raises:
            ValueError: The token fits in none; h11 would raise it with the token in its text, and httpcore log that.
        """
        if not token.secret.isascii() or not token.secret.isprintable() or token.secret != token.secret.strip():
            raise ValueError("the token fits in no header")
        headers = _custom_headers(self._environ.get(HEADERS_VARIABLE, ""))
        headers |= {
            "accept": "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": f"agent-runtime/{__version__}",
            "anthropic-version": "2023-06-01",
        }
        if token.kind is TokenKind.API_KEY:
            return headers | {"x-api-key": token.secret}
        return headers | {"authorization": f"Bearer {token.secret}", "anthropic-beta": OAUTH_BETA}


def judge(status: int, body: bytes) -> ProbeVerdict:
    """
    Decide what an answer says about the token it was asked about.

    A 401 is a refusal only as JSON: a proxy's page or an empty answer says nothing about this credential. One that says
    that the credential was missing is none either, because it was sent. A 404 must speak of the model: a server that
    does not know the path has not looked at the token.
    """
    try:
        answer = _answers.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ProbeVerdict.UNKNOWN
    if status == 200:
        return ProbeVerdict.UNKNOWN if answer.input_tokens is None else ProbeVerdict.VALID
    error = answer.as_error(status)
    if error is None:
        return ProbeVerdict.UNKNOWN
    said = error.text.lower()
    if status == 401 and said.startswith(_LOST_ON_THE_WAY):
        return ProbeVerdict.UNKNOWN
    if (status == 401 or answer.is_own_form) and rule_for(error).condemns:
        return ProbeVerdict.REFUSED
    if status in _AUTHENTICATED and answer.is_own_form and (status != 404 or said.startswith("model:")):
        return ProbeVerdict.VALID
    return ProbeVerdict.UNKNOWN


def _custom_headers(text: str) -> dict[str, str]:
    """Read the headers that a gateway asks for, without any credential among them; later ones of ours win."""
    headers = {}
    for line in without_credentials(text).splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() and name.strip().lower() not in _OURS:
            headers[name.strip().lower()] = value.strip()
    return headers
