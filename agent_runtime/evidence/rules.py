"""
What the CLI's reports of API errors mean: an ordered table of rules, each with where it was seen.

The first rule that fits decides. Structure comes first: the HTTP status and the API's own error type, where they are
known; then the CLI's word for the failure; and only where nothing else is known, the sentence the CLI prints. Sentences
are matched by how they begin, because the CLI's own begin that way and quoted ones do not.

Source, where a rule names no other: frames and lines of Claude Code 1.0.128, 2.0.76, 2.1.30, 2.1.114 and 2.1.330,
recorded under ``tests/recorded/``; the CLI's own sentences as those versions carry them.
"""

from __future__ import annotations

from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.account_rules import ACCOUNT_RULES
from agent_runtime.evidence.matching import ApiError, Reading, Rule
from agent_runtime.evidence.phrases import (
    BLOCKED_ACCOUNT,
    BLOCKED_SENTENCES,
    INVALID_SENTENCES,
    LIMIT_SENTENCES,
    NETWORK,
    OF_A_MODEL,
    REFUSAL_SENTENCES,
    SOCKET,
    THROTTLE_SENTENCES,
    UNPAID_SENTENCES,
    UNSUPPORTED_MODEL,
)

__all__ = ["RULES", "UNEXPLAINED", "ApiError", "Rule", "rule_for"]

_NO_WORD: frozenset[str | None] = frozenset({None, "unknown"})

_OTHER_PATH = "the server does not know the path it was asked for; look at ANTHROPIC_BASE_URL"

RULES: tuple[Rule, ...] = (
    # -- no answer of the API, whatever the sentence looks like
    Rule(
        "network-detail",
        ErrorClass.NETWORK,
        details=frozenset(
            {
                "connection_failed",
                "tls_untrusted_ca",
                "tls_cert_signature_failure",
                "no_response",
                "stream_idle_timeout",
                "computer_slept",
            }
        ),
        seen_on="2.1.330",
    ),
    Rule(
        "network-dressed-as-refusal",
        ErrorClass.NETWORK,
        statuses=frozenset({401, 403}),
        types=frozenset({None}),
        phrases=SOCKET,
        seen_on="2.1.x",
        source="gitmoot/gitmoot#509, #486",
    ),
    Rule("proxy-407", ErrorClass.NETWORK, statuses=frozenset({407})),
    # -- the request's form or content: what such a message quotes is nobody's word
    Rule(
        "request-field",
        ErrorClass.INVALID_REQUEST,
        statuses=frozenset({400, 413, 422}),
        of_a_field=True,
        source="the API's messages about a request begin with the path of the field",
    ),
    Rule("request-content", ErrorClass.INVALID_REQUEST, statuses=frozenset({400, 413, 422}), begins=INVALID_SENTENCES),
    *ACCOUNT_RULES,
    # -- the request
    Rule("output-limit-word", ErrorClass.MAX_OUTPUT, words=frozenset({"max_output_tokens"}), seen_on="2.1.330"),
    Rule(
        "output-limit-detail",
        ErrorClass.MAX_OUTPUT,
        details=frozenset({"max_output_tokens"}),
        seen_on="2.1.330: result frames, which have no word",
    ),
    Rule(
        "output-limit-sentence",
        ErrorClass.MAX_OUTPUT,
        without_status=True,
        phrases=(("exceeded the", "output token maximum"), ("reached", "output token limit")),
        begins=("api error", "claude's response exceeded"),
        seen_on="2.1.30 to 2.1.332",
    ),
    Rule(
        "model-declines",
        ErrorClass.INVALID_REQUEST,
        without_status=True,
        phrases=(
            ("unable to respond to this request", "usage policy"),
            ("safeguards flagged",),
            ("can't help with this",),
            ("can't respond to",),
        ),
        begins=("api error",),
        seen_on="2.1.30 to 2.1.332: stop_reason refusal",
    ),
    Rule(
        "no-whole-answer",
        ErrorClass.LOST_RESULT,
        details=frozenset({"empty_completion", "malformed_tool_use_exhausted"}),
        seen_on="2.1.330",
    ),
    Rule(
        "not-the-task",
        ErrorClass.ERROR,
        words=frozenset({"cloud_credential_error"}),
        seen_on="2.1.330: another provider's credentials, which no child is given",
    ),
    Rule(
        "not-the-task-detail",
        ErrorClass.ERROR,
        details=frozenset(
            {
                "stored_login_refused",
                "oauth_refresh_store_refused",
                "named_profile_unusable",
                "gateway_signin_required",
                "gateway_session_expired",
                "unattended_start_limit",
                "unattended_start_unconfirmed",
            }
        ),
        seen_on="2.1.330: logins that no child is given",
    ),
    Rule(
        "model-403",
        ErrorClass.MODEL,
        statuses=frozenset({403}),
        phrases=OF_A_MODEL,
        source="tests/recorded; the API's documentation of permission_error",
    ),
    Rule("gateway-403", ErrorClass.UPSTREAM, statuses=frozenset({403})),
    Rule(
        "model-unsupported",
        ErrorClass.MODEL,
        statuses=frozenset({400, 404, 422}),
        api_said=UNSUPPORTED_MODEL,
        source="Abilityai/trinity error_classifier.py; OpenRouter",
    ),
    Rule(
        "path-404-by-name",
        ErrorClass.UPSTREAM,
        statuses=frozenset({404}),
        types=frozenset({"not_found_error"}),
        with_message=True,
        begins=("not found", "the requested resource", "resource not found", "page not found", "no such route"),
        advice=_OTHER_PATH,
        source="the API's answer to a path it does not know",
    ),
    Rule("model-404", ErrorClass.MODEL, statuses=frozenset({404}), types=frozenset({"not_found_error"})),
    Rule(
        "path-404",
        ErrorClass.UPSTREAM,
        statuses=frozenset({404}),
        with_message=True,
        advice=_OTHER_PATH,
        source="field case K12; 2.1.114 and later call any 404 an issue with the selected model",
    ),
    Rule("model-word", ErrorClass.MODEL, words=frozenset({"model_not_found"}), seen_on="2.1.114 to 2.1.330"),
    Rule(
        "model-404-sentence",
        ErrorClass.MODEL,
        statuses=frozenset({404}),
        begins=("there's an issue with the selected model", "the model "),
        seen_on="2.1.114",
    ),
    Rule("request-refused", ErrorClass.INVALID_REQUEST, statuses=frozenset({400, 413, 414, 422, 431})),
    # -- the API's own troubles
    Rule("overloaded-type", ErrorClass.OVERLOADED, types=frozenset({"overloaded_error"})),
    Rule("overloaded-529", ErrorClass.OVERLOADED, statuses=frozenset({529})),
    Rule("server-error", ErrorClass.UPSTREAM, statuses=range(500, 600)),
    Rule("other-status", ErrorClass.UPSTREAM, statuses=range(300, 500)),
    # -- no status: the CLI's word, and its sentence where the word leaves it open
    Rule(
        "network-sentence",
        ErrorClass.NETWORK,
        without_status=True,
        words=frozenset({None, "unknown", "server_error", "authentication_failed"}),
        phrases=NETWORK,
        begins=(
            "api error",
            "request timed out",
            "failed to refresh",
            "failed to authenticate",
            "could not refresh",
            "please run /login",
            "connection ",
            "unable to ",
            *(words for (words,) in SOCKET),
        ),
        source="tests/recorded; gitmoot/gitmoot#509",
    ),
    Rule(
        "network-cut-off",
        ErrorClass.NETWORK,
        without_status=True,
        begins=("terminated", "stream ended", "stream idle timeout", "request ended without sending"),
    ),
    Rule(
        "cli-no-credential",
        ErrorClass.AUTH,
        without_status=True,
        begins=("could not resolve authentication method",),
        is_evidence=True,
    ),
    Rule(
        "billing-sentence",
        ErrorClass.BILLING,
        without_status=True,
        words=_NO_WORD | {"rate_limit"},
        begins=UNPAID_SENTENCES,
        is_evidence=True,
        source="anthropics/claude-code#55469, #46277; the CLI's sentences of 2.0.76 to 2.1.332",
    ),
    Rule(
        "blocked-sentence",
        ErrorClass.AUTH,
        without_status=True,
        begins=BLOCKED_SENTENCES,
        said=BLOCKED_ACCOUNT,
        is_evidence=True,
        blocks=True,
        source="the CLI's sentences of 2.1.30 to 2.1.332",
    ),
    Rule(
        "cli-refusal-word",
        ErrorClass.AUTH,
        without_status=True,
        words=frozenset({"authentication_failed", "oauth_org_not_allowed"}),
        is_evidence=True,
    ),
    Rule("throttle-sentence", ErrorClass.OVERLOADED, without_status=True, begins=THROTTLE_SENTENCES),
    Rule(
        "limit-sentence-alone",
        ErrorClass.RATE_LIMIT,
        without_status=True,
        words=frozenset({None, "unknown", "rate_limit"}),
        begins=LIMIT_SENTENCES,
    ),
    Rule("throttle-word", ErrorClass.OVERLOADED, without_status=True, words=frozenset({"rate_limit", "overloaded"})),
    Rule("server-word", ErrorClass.UPSTREAM, without_status=True, words=frozenset({"server_error"})),
    Rule(
        "model-sentence",
        ErrorClass.MODEL,
        without_status=True,
        words=frozenset({None, "unknown", "invalid_request"}),
        phrases=(*UNSUPPORTED_MODEL, ("issue with the selected model",)),
        begins=("there's an issue", "the model ", "claude code ", "claude opus ", "model "),
    ),
    Rule("request-word", ErrorClass.INVALID_REQUEST, without_status=True, words=frozenset({"invalid_request"})),
    # -- nothing but a sentence
    Rule(
        "cli-refusal-sentence",
        ErrorClass.AUTH,
        without_status=True,
        words=_NO_WORD,
        begins=REFUSAL_SENTENCES,
        is_evidence=True,
        source="anthropics/claude-code#9635, #63685; claude-code docs, errors",
    ),
    Rule("request-sentence", ErrorClass.INVALID_REQUEST, without_status=True, words=_NO_WORD, begins=INVALID_SENTENCES),
    Rule(
        "server-sentence",
        ErrorClass.UPSTREAM,
        without_status=True,
        words=_NO_WORD,
        begins=(
            "internal server error",
            "bad gateway",
            "service unavailable",
            "gateway timeout",
            "api returned an empty or malformed response",
            "server error mid-response",
            "the response stream was malformed",
            "the api is temporarily unavailable",
            "unexpected event order",
            "unexpected token",
            "unexpected end of json",
            "unterminated string in json",
            "json parse error",
            "could not parse message into json",
            "failed to parse",
        ),
    ),
)

UNEXPLAINED = Rule("unexplained", ErrorClass.ERROR)
"""An error of which neither status nor words say what it was."""


def rule_for(error: ApiError) -> Rule:
    """Find the first rule that fits."""
    reading = Reading(error)
    return next((rule for rule in RULES if rule.fits(error, reading)), UNEXPLAINED)
