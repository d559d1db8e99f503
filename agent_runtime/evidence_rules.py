"""
What the CLI's reports of API errors mean: an ordered table of rules, each with where it was seen.

The first rule that fits decides. Structure comes first: the HTTP status and the API's own error type, where they are
known; then the CLI's word for the failure; and only where nothing else is known, the sentence the CLI prints. Sentences
are matched by how they begin, because the CLI's own begin that way and quoted ones do not.

Source, where a rule names no other: frames and lines of Claude Code 1.0.128, 2.0.76, 2.1.30, 2.1.114 and 2.1.330,
recorded under ``tests/recorded/``; the CLI's own sentences as those versions carry them.
"""

from __future__ import annotations

import msgspec

from agent_runtime.errors import ErrorClass
from agent_runtime.evidence_phrases import (
    INVALID_SENTENCES,
    LIMIT_SENTENCES,
    NAMES_A_MODEL,
    NETWORK,
    OF_A_MODEL,
    REFUSAL_SENTENCES,
    REFUSED_CREDENTIAL,
    SOCKET,
    THROTTLE_SENTENCES,
    UNSUPPORTED_MODEL,
    Phrases,
)

ALL = "1.0.128 to 2.1.330"


class ApiError(msgspec.Struct, frozen=True):
    """
    One API error as the CLI reported it.

    Attributes:
        status: The HTTP status; None: there was no answer, or the report does not say.
        type: The error type in the API's own body.
        word: The CLI's word for it (``error`` of a frame).
        detail: The CLI's finer word (``api_error`` of a frame).
        text: What the API or the CLI says about it.
    """

    status: int | None = None
    type: str | None = None
    word: str | None = None
    detail: str | None = None
    text: str = ""


class Rule(msgspec.Struct, frozen=True):
    """
    One way to recognise what happened; everything it names must hold, an empty criterion always does.

    Attributes:
        statuses: HTTP statuses; an empty range stands for none in particular.
        without_status: Only where no status is known.
        types: The API's error types; ``None`` in it stands for an unknown one.
        words: The CLI's words; ``None`` in it stands for a report without one.
        details: The CLI's finer words.
        phrases: One of these; each is a set of words that must all be in the text (lower case).
        begins: One of the text's sentences begins with one of these (lower case).
        is_evidence: The API refused the token: the attempt is to be stopped now.
        condemns: It may count against the generation: it is the API's own word, not only the CLI's.
    """

    id: str
    error_class: ErrorClass
    statuses: range | frozenset[int] = range(0)
    without_status: bool = False
    types: frozenset[str | None] = frozenset()
    words: frozenset[str | None] = frozenset()
    details: frozenset[str] = frozenset()
    phrases: Phrases = ()
    begins: tuple[str, ...] = ()
    is_evidence: bool = False
    condemns: bool = False
    seen_on: str = ALL
    source: str = "tests/recorded"

    def fits(self, error: ApiError, lowered: str, sentences: tuple[str, ...]) -> bool:
        """Tell whether everything this rule names holds; *lowered* and *sentences* are the error's text."""
        return (
            (not self.statuses or error.status in self.statuses)
            and (not self.without_status or error.status is None)
            and (not self.types or error.type in self.types)
            and (not self.words or error.word in self.words)
            and (not self.details or error.detail in self.details)
            and (not self.phrases or any(all(word in lowered for word in words) for words in self.phrases))
            and (not self.begins or any(sentence.startswith(self.begins) for sentence in sentences))
        )


_PERMISSION: frozenset[str | None] = frozenset({"permission_error"})
_NO_WORD: frozenset[str | None] = frozenset({None, "unknown"})

RULES: tuple[Rule, ...] = (
    # -- no answer of the API, whatever the sentence looks like
    Rule(
        "network-detail",
        ErrorClass.NETWORK,
        details=frozenset(
            {"connection_failed", "tls_untrusted_ca", "tls_cert_signature_failure", "no_response", "computer_slept"}
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
    # -- something is not permitted to the organization or the account, but it is not the credential
    Rule(
        "address-403",
        ErrorClass.UPSTREAM,
        statuses=frozenset({403}),
        types=_PERMISSION | {None},
        phrases=(("ip address",), ("ip allowlist",)),
        source="the API's documentation of IP allowlists: any token of the organization would meet the same",
    ),
    Rule(
        "model-403-by-name",
        ErrorClass.MODEL,
        statuses=frozenset({403}),
        types=_PERMISSION | {None},
        phrases=NAMES_A_MODEL,
        source="the API's documentation of permission_error",
    ),
    # -- the token is refused
    Rule("api-401", ErrorClass.AUTH, statuses=frozenset({401}), is_evidence=True, condemns=True),
    Rule(
        "api-403-authentication-type",
        ErrorClass.AUTH,
        statuses=frozenset({403}),
        types=frozenset({"authentication_error"}),
        is_evidence=True,
        condemns=True,
        source="the API's list of error types",
    ),
    Rule(
        "api-403-credential",
        ErrorClass.AUTH,
        statuses=frozenset({403}),
        types=_PERMISSION,
        phrases=REFUSED_CREDENTIAL,
        is_evidence=True,
        condemns=True,
    ),
    Rule(
        "api-403-organization-word",
        ErrorClass.AUTH,
        statuses=frozenset({403}),
        types=_PERMISSION,
        words=frozenset({"oauth_org_not_allowed"}),
        is_evidence=True,
        condemns=True,
        seen_on="2.1.330",
    ),
    Rule(
        "cli-403-sentence",
        ErrorClass.AUTH,
        statuses=frozenset({403}),
        types=frozenset({None}),
        phrases=REFUSED_CREDENTIAL,
        is_evidence=True,
        seen_on="2.0.76 to 2.1.330: result frames, which carry no type",
    ),
    Rule(
        "api-400-organization-disabled",
        ErrorClass.AUTH,
        statuses=frozenset({400}),
        phrases=(("organization has been disabled",), ("account has been disabled",), ("disabled organization",)),
        is_evidence=True,
        condemns=True,
        source="anthropics/claude-code#19028, #60648, #72457",
    ),
    Rule(
        "cli-credential-detail",
        ErrorClass.AUTH,
        details=frozenset({"org_disabled_credential", "api_key_auth_disabled"}),
        is_evidence=True,
        seen_on="2.1.330",
    ),
    # -- the account cannot pay
    Rule("billing-type", ErrorClass.BILLING, types=frozenset({"billing_error"})),
    Rule("billing-402", ErrorClass.BILLING, statuses=frozenset({402})),
    Rule(
        "billing-credit",
        ErrorClass.BILLING,
        statuses=frozenset({400, 429}),
        phrases=(("credit balance",), ("insufficient credit",), ("insufficient balance",)),
    ),
    Rule("billing-word", ErrorClass.BILLING, words=frozenset({"billing_error"}), seen_on="2.0.76 to 2.1.330"),
    # -- usage limits, and throttles that only look like them
    Rule(
        "limit-400",
        ErrorClass.RATE_LIMIT,
        statuses=frozenset({400, 403, 429}),
        phrases=(("usage limits", "regain access"), ("reached your specified api usage limit",)),
        source="anthropics/claude-code#38035",
    ),
    Rule(
        "limit-needs-credits",
        ErrorClass.INVALID_REQUEST,
        statuses=frozenset({429}),
        details=frozenset({"long_context_credits_required"}),
        seen_on="2.1.330",
        source="a long context needs usage credits: no wait helps",
    ),
    Rule(
        "limit-detail",
        ErrorClass.RATE_LIMIT,
        details=frozenset({"usage_limit_reached", "model_requires_usage_credits"}),
        seen_on="2.1.330",
    ),
    Rule(
        "throttle-without-time",
        ErrorClass.OVERLOADED,
        phrases=(("usage limit reached|0",),),
        seen_on="1.0.128: any 429 with an OAuth token; a real limit has its end there",
    ),
    Rule("throttle-by-name", ErrorClass.OVERLOADED, statuses=frozenset({429}), phrases=(("not your usage limit",),)),
    Rule("limit-sentence", ErrorClass.RATE_LIMIT, statuses=frozenset({429}), begins=LIMIT_SENTENCES),
    Rule(
        "limit-429-by-name",
        ErrorClass.RATE_LIMIT,
        statuses=frozenset({429}),
        phrases=(("usage limit",), ("weekly limit",), ("5-hour limit",), ("session limit",), ("spend limit",)),
        source="the names 2.1.330 has for limits",
    ),
    Rule("throttle-429", ErrorClass.OVERLOADED, statuses=frozenset({429})),
    # -- the request
    Rule("output-limit-word", ErrorClass.MAX_OUTPUT, words=frozenset({"max_output_tokens"}), seen_on="2.1.330"),
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
        phrases=UNSUPPORTED_MODEL,
        source="Abilityai/trinity error_classifier.py",
    ),
    Rule("model-word", ErrorClass.MODEL, words=frozenset({"model_not_found"}), seen_on="2.1.114 to 2.1.330"),
    Rule("model-404", ErrorClass.MODEL, statuses=frozenset({404}), types=frozenset({"not_found_error"})),
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
            "connection ",
            "unable to ",
            *(words for (words,) in SOCKET),
        ),
        source="tests/recorded; gitmoot/gitmoot#509",
    ),
    Rule("network-cut-off", ErrorClass.NETWORK, without_status=True, begins=("terminated", "stream ended")),
    Rule(
        "cli-no-credential",
        ErrorClass.AUTH,
        without_status=True,
        begins=("could not resolve authentication method",),
        is_evidence=True,
    ),
    Rule(
        "cli-refusal-word",
        ErrorClass.AUTH,
        without_status=True,
        words=frozenset({"authentication_failed", "oauth_org_not_allowed", "account_on_hold"}),
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
        "billing-sentence",
        ErrorClass.BILLING,
        without_status=True,
        words=_NO_WORD,
        begins=("credit balance", "your credit balance"),
        source="anthropics/claude-code#55469, #46277",
    ),
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
        ),
    ),
)

STATUS_BY_TYPE: dict[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""
The status an error type stands for, for errors in the middle of a stream, which have none of their own.

Source: the API's documentation of errors, 2026.
"""

UNEXPLAINED = Rule("unexplained", ErrorClass.ERROR)
"""An error of which neither status nor words say what it was."""


def rule_for(error: ApiError) -> Rule:
    """Find the first rule that fits."""
    lowered = error.text.lower()
    sentences = _sentences(lowered)
    return next((rule for rule in RULES if rule.fits(error, lowered, sentences)), UNEXPLAINED)


def _sentences(lowered: str) -> tuple[str, ...]:
    """Split the CLI's text where it puts a dot between two remarks; its own lead-in is no part of a sentence."""
    found = [piece.strip() for piece in lowered.split(" \u00b7 ")]
    found += [piece.removeprefix("failed to authenticate.").strip() for piece in found if piece.startswith("failed")]
    found += [piece.removeprefix("api error:").strip() for piece in found if piece.startswith("api error:")]
    return tuple(found)
