"""
The probe: one request that asks the API whether a token is good.

The verdict is unknown wherever the response is not the API's own statement about the credential or its account. A wrong
"refused" stops all executions, a wrong "unknown" costs one more attempt.

The rules of :mod:`agent_runtime.evidence.rules` decide what is a refusal, here as for the CLI's reports.
"""

from __future__ import annotations

import asyncio
import logging
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING

import msgspec

from agent_runtime import __version__
from agent_runtime.claude.credential_env import API_URL, BASE_URL_VARIABLE, HEADERS_VARIABLE, without_credentials
from agent_runtime.evidence.api_errors import read_body
from agent_runtime.evidence.rules import rule_for
from agent_runtime.model.tokens import OAUTH_BETA, Token, TokenKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

log = logging.getLogger(__name__)

PATH = "/v1/messages/count_tokens"
"""A request to this path is free, counts against no usage limit, and checks the credential as any other does."""

DEFAULT_MODEL = "claude-haiku-4-5"
TIMEOUT_SECONDS = 5.0
BODY_LIMIT_BYTES = 64 * 1024

_CERTAIN = frozenset({401, 402})
"""With these statuses any error is about the token; with others it must have the API's own form or a known code."""

_AUTHENTICATED = frozenset({400, 404, 429})
"""Statuses of errors that, in the API's own form, are not about the credential, so it has been accepted."""

_LOST_ON_THE_WAY = ("x-api-key header is required", "oauth authentication is currently not supported")
"""
How a 401 begins when the credential or the beta header did not arrive, because a gateway dropped it.

Source: the API's answers to requests without them; reports of gateways that drop headers, Claude Code 1.0.83.
"""


_OURS = frozenset({"host", "connection", "content-length", "transfer-encoding", "anthropic-beta"})
"""Headers that ``ANTHROPIC_CUSTOM_HEADERS`` cannot set for the probe's request."""


class ProbeVerdict(StrEnum):
    """The API's opinion of a token or its account: valid, in a trouble of :class:`TokenTrouble`, or not known."""

    VALID = "valid"
    REFUSED = "refused"
    BLOCKED = "blocked"
    BILLING = "billing"
    UNKNOWN = "unknown"


class _Count(msgspec.Struct, frozen=True):
    input_tokens: int | None = None


_counts = msgspec.json.Decoder(_Count)


class Probe:
    """
    Ask the API about tokens, one request each; base URL, proxy and headers come from the environment, as for the CLI.

    Args:
        environ: The supervisor's environment.
        timeout_seconds: The limit for the whole request and its response.
    """

    def __init__(self, environ: Mapping[str, str], *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._environ = environ
        self._timeout_seconds = timeout_seconds

    async def ask(self, token: Token, *, model: str | None = None) -> ProbeVerdict:
        """
        Ask about *token*; returns within the timeout and never raises for what the network or the API does.

        Args:
            model: The model to name in the request, which does not matter; None: a default one.
        """
        # Imported on first use, in a thread: it is a tenth of the start-up time and of an idle supervisor's memory.
        http_client = await asyncio.to_thread(import_module, "agent_runtime.http_client")
        try:
            async with asyncio.timeout(self._timeout_seconds):
                status, body = await self._send(token, model or DEFAULT_MODEL)
        except (http_client.HTTPError, OSError, ValueError) as error:
            # Only the type is logged: the text may quote a header, and so the token.
            log.warning("no answer about the token: fingerprint=%s reason=%s", token.fingerprint, type(error).__name__)
            return ProbeVerdict.UNKNOWN
        verdict = judge(status, body)
        log.info("answer about the token: fingerprint=%s status=%d verdict=%s", token.fingerprint, status, verdict)
        return verdict

    async def _send(self, token: Token, model: str) -> tuple[int, bytes]:
        from agent_runtime.http_client import client_for

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
        Build the probe's URL from the base URL, as the CLI does.

        Raises:
            ValueError: It is not known how the CLI would use this base URL.
        """
        from agent_runtime.http_client import checked_url

        base = checked_url(self._environ.get(BASE_URL_VARIABLE) or API_URL)
        if base.userinfo or base.query or base.fragment:
            raise ValueError("the base URL has more than a host and a path")
        return base.copy_with(path=base.path.rstrip("/") + PATH)

    def _headers(self, token: Token) -> dict[str, str]:
        """
        Build the headers of the probe's request.

        Raises:
            ValueError: The token does not fit in a header. h11 would raise an error with the token in its text.
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
    Decide what a response says about the token that was sent.

    A 401 is a refusal only as JSON: a proxy's page or an empty body says nothing about this credential. A 401 that
    calls the credential missing is no refusal, because it was sent. A 404 counts only if it names the model: a server
    that does not know the path has not checked the token. A refused model says nothing about the token. A 429 in the
    API's own form shows that the token is valid, because this request counts against no usage limit.
    """
    text = body[:BODY_LIMIT_BYTES].decode("utf-8", "ignore").strip()
    if status == 200:
        return ProbeVerdict.VALID if _is_count(body) else ProbeVerdict.UNKNOWN
    error = read_body(text, status)
    if error is None:
        return ProbeVerdict.UNKNOWN
    text = error.text.lower()
    if status == 401 and text.startswith(_LOST_ON_THE_WAY):
        return ProbeVerdict.UNKNOWN
    rule = rule_for(error)
    if rule.trouble and rule.condemns and (status in _CERTAIN or error.is_own_form or rule.codes):
        return ProbeVerdict(rule.trouble)
    if status in _AUTHENTICATED and error.is_own_form and (status != 404 or text.startswith("model:")):
        return ProbeVerdict.VALID
    return ProbeVerdict.UNKNOWN


def _is_count(body: bytes) -> bool:
    try:
        return _counts.decode(body).input_tokens is not None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _custom_headers(text: str) -> dict[str, str]:
    """Parse ``ANTHROPIC_CUSTOM_HEADERS``, which a gateway may need, without credentials and reserved names."""
    headers = {}
    for line in without_credentials(text).splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() and name.strip().lower() not in _OURS:
            headers[name.strip().lower()] = value.strip()
    return headers
