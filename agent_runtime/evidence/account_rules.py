"""
The rules about the token and its account: refused, blocked, unpaid, limited, and what only looks like it.

Their order is that of :mod:`agent_runtime.evidence.rules`, which they are a part of: first what is said of one model,
because the token can do everything else then; then what is said of the account, whatever the HTTP status; then the
credential itself; then the limits that end by themselves.
"""

from __future__ import annotations

from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.error_bodies import STATUS_BY_TYPE
from agent_runtime.evidence.error_codes import BILLING_CODES, BLOCKED_CODES, GATEWAY_TYPES, MODEL_CODES
from agent_runtime.evidence.matching import Rule
from agent_runtime.evidence.phrases import (
    BAD_CREDENTIAL,
    BLOCKED_ACCOUNT,
    LIMIT_SENTENCES,
    LONG_CONTEXT,
    MODEL_BUDGET,
    NAMES_A_MODEL,
    NOT_OF_AN_ACCOUNT,
    OVER_BUDGET,
    REFUSED_CREDENTIAL,
    UNPAID,
)

_PERMISSION: frozenset[str | None] = frozenset({"permission_error"})
_NO_TYPE: frozenset[str | None] = frozenset({None})
_API_TYPES: frozenset[str | None] = frozenset(STATUS_BY_TYPE)
_SERVER = range(500, 600)

ACCOUNT_RULES: tuple[Rule, ...] = (
    # -- something is not permitted to the organization or the account, but it is not the credential
    Rule(
        "address-403",
        ErrorClass.UPSTREAM,
        statuses=frozenset({403}),
        types=_PERMISSION | _NO_TYPE,
        phrases=(("ip address",), ("ip allowlist",)),
        source="the API's documentation of IP allowlists: any token of the organization would meet the same",
    ),
    Rule(
        "address-detail",
        ErrorClass.UPSTREAM,
        details=frozenset({"network_edge_blocked", "gateway_content_type"}),
        seen_on="2.1.330",
        source="the CLI's own description: a firewall on the way; no credential changes that",
    ),
    Rule("model-code", ErrorClass.MODEL, codes=MODEL_CODES, source="see agent_runtime/evidence/error_codes.py"),
    Rule(
        "model-budget",
        ErrorClass.MODEL,
        statuses=frozenset({400, 401, 402, 403, 429}),
        api_said=MODEL_BUDGET,
        source="LiteLLM, model_max_budget_limiter.py",
    ),
    Rule(
        "model-refused-by-name",
        ErrorClass.MODEL,
        statuses=frozenset({401, 403}),
        api_said=NAMES_A_MODEL,
        unless=BAD_CREDENTIAL,
        source="the API's documentation of permission_error; LiteLLM's key_model_access_denied; new-api",
    ),
    # -- the account is blocked
    Rule(
        "blocked-code",
        ErrorClass.AUTH,
        codes=BLOCKED_CODES,
        is_evidence=True,
        condemns=True,
        blocks=True,
        source="see agent_runtime/evidence/error_codes.py",
    ),
    # -- the account cannot pay, unless a limit ends by itself
    Rule("billing-code", ErrorClass.BILLING, codes=BILLING_CODES, is_evidence=True, condemns=True, source="see there"),
    Rule(
        "limit-then-credits",
        ErrorClass.RATE_LIMIT,
        phrases=(("out of extra usage", "resets"), ("out of usage credits", "resets")),
        seen_on="2.1.30 to 2.1.332",
        source="anthropics/claude-code#42654, #84141: the plan's limit is reached and no credits are left to go on",
    ),
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
        statuses=frozenset({400, 429}),
        details=frozenset({"long_context_credits_required"}),
        seen_on="2.1.330",
        source="a long context needs usage credits: no wait helps",
    ),
    Rule(
        "limit-needs-credits-by-name",
        ErrorClass.INVALID_REQUEST,
        statuses=frozenset({400, 429}),
        said=LONG_CONTEXT,
        source="Claude Code 2.1.332 knows the API's message by these words",
    ),
    Rule("limit-detail", ErrorClass.RATE_LIMIT, details=frozenset({"usage_limit_reached"}), seen_on="2.1.330"),
    Rule(
        "limit-of-a-model",
        ErrorClass.RATE_LIMIT,
        details=frozenset({"model_requires_usage_credits"}),
        phrases=(("resets",),),
        seen_on="2.1.330",
    ),
    Rule(
        "model-needs-credits",
        ErrorClass.MODEL,
        details=frozenset(
            {
                "model_requires_usage_credits",
                "consent_unanswered",
                "no_allowed_fallback",
                "model_substitution_disabled",
            }
        ),
        seen_on="2.1.330",
    ),
    Rule(
        "model-needs-credits-by-name",
        ErrorClass.MODEL,
        words=frozenset({"rate_limit"}),
        phrases=(
            ("requires usage credits",),
            ("out of usage credits", "switch to another model"),
            ("out of usage credits", "switch models"),
        ),
        seen_on="2.1.197 to 2.1.332",
    ),
    Rule(
        "blocked-account",
        ErrorClass.AUTH,
        statuses=frozenset({400, 401, 402, 429}),
        said=BLOCKED_ACCOUNT,
        unless=NOT_OF_AN_ACCOUNT,
        is_evidence=True,
        condemns=True,
        blocks=True,
        source="anthropics/claude-code#65609, #19028, #60648, #72457; tests/recorded",
    ),
    Rule(
        "blocked-account-403",
        ErrorClass.AUTH,
        statuses=frozenset({403}),
        types=_API_TYPES | GATEWAY_TYPES,
        said=BLOCKED_ACCOUNT,
        unless=NOT_OF_AN_ACCOUNT,
        is_evidence=True,
        condemns=True,
        blocks=True,
        source="field case K1",
    ),
    Rule(
        "blocked-account-untyped",
        ErrorClass.AUTH,
        statuses=frozenset({403}),
        types=_NO_TYPE,
        said=BLOCKED_ACCOUNT,
        unless=NOT_OF_AN_ACCOUNT,
        is_evidence=True,
        blocks=True,
        seen_on="2.0.76 to 2.1.197: frames, which carry no type",
    ),
    Rule(
        "blocked-account-5xx",
        ErrorClass.AUTH,
        statuses=_SERVER,
        types=_API_TYPES,
        said=BLOCKED_ACCOUNT,
        unless=NOT_OF_AN_ACCOUNT,
        is_evidence=True,
        condemns=True,
        blocks=True,
        source="the API's own form says it whatever the status",
    ),
    Rule(
        "blocked-word",
        ErrorClass.AUTH,
        words=frozenset({"account_on_hold", "verification_required"}),
        is_evidence=True,
        blocks=True,
        seen_on="2.1.330",
    ),
    Rule(
        "blocked-detail",
        ErrorClass.AUTH,
        details=frozenset({"org_disabled_credential"}),
        is_evidence=True,
        blocks=True,
        seen_on="2.1.330",
    ),
    Rule("billing-402", ErrorClass.BILLING, statuses=frozenset({402}), is_evidence=True, condemns=True),
    Rule(
        "billing-said",
        ErrorClass.BILLING,
        statuses=frozenset({400, 401, 403, 429}),
        said=UNPAID,
        is_evidence=True,
        condemns=True,
        source="anthropics/claude-code#45033, #45048, #55469; litellm#40050; see agent_runtime/evidence/phrases.py",
    ),
    Rule(
        "billing-budget",
        ErrorClass.BILLING,
        statuses=frozenset({401, 403, 429}),
        said=OVER_BUDGET,
        is_evidence=True,
        condemns=True,
        source="LiteLLM, litellm/proxy/auth/auth_checks.py",
    ),
    Rule(
        "billing-5xx",
        ErrorClass.BILLING,
        statuses=_SERVER,
        types=_API_TYPES,
        said=UNPAID,
        is_evidence=True,
        condemns=True,
        source="the API's own form says it whatever the status",
    ),
    Rule(
        "billing-word",
        ErrorClass.BILLING,
        words=frozenset({"billing_error"}),
        is_evidence=True,
        seen_on="2.0.76 to 2.1.330",
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
        "cli-credential-detail",
        ErrorClass.AUTH,
        details=frozenset({"api_key_auth_disabled"}),
        is_evidence=True,
        seen_on="2.1.330",
    ),
    # -- usage limits, and throttles that only look like them
    Rule(
        "throttle-without-time",
        ErrorClass.OVERLOADED,
        phrases=(("usage limit reached|0",),),
        seen_on="1.0.128: any 429 with an OAuth token; a real limit has its end there",
    ),
    Rule("throttle-by-name", ErrorClass.OVERLOADED, statuses=frozenset({429}), phrases=(("not your usage limit",),)),
    Rule("limit-sentence", ErrorClass.RATE_LIMIT, statuses=frozenset({400, 403, 429}), begins=LIMIT_SENTENCES),
    Rule(
        "limit-429-by-name",
        ErrorClass.RATE_LIMIT,
        statuses=frozenset({429}),
        phrases=(("usage limit",), ("weekly limit",), ("5-hour limit",), ("session limit",), ("spend limit",)),
        source="the names 2.1.330 has for limits",
    ),
    Rule("throttle-429", ErrorClass.OVERLOADED, statuses=frozenset({429})),
)
