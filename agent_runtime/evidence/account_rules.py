"""
The rules about the token and its account: refused, blocked, unpaid, limited, and errors that only look like these.

They are part of :mod:`agent_runtime.evidence.rules`, and their order counts. Rules about one model come first, because
the token can do everything else then; then rules about the account, whatever the HTTP status; then the credential
itself; then limits that end by themselves.
"""

from __future__ import annotations

from functools import partial

from agent_runtime.errors import ErrorClass
from agent_runtime.evidence import error_codes, phrases
from agent_runtime.evidence.error_bodies import STATUS_BY_TYPE
from agent_runtime.evidence.matching import Rule

_PERMISSION = frozenset({"permission_error"})
_API_TYPES = frozenset(STATUS_BY_TYPE)
_SERVER = range(500, 600)
_refused = partial(Rule, error_class=ErrorClass.AUTH, condemns=True)
_unpaid = partial(Rule, error_class=ErrorClass.BILLING, condemns=True)
_limited = partial(Rule, error_class=ErrorClass.RATE_LIMIT)
_blocked = partial(
    Rule, error_class=ErrorClass.AUTH, own_words=phrases.BLOCKED_ACCOUNT, unless=phrases.NOT_OF_AN_ACCOUNT, blocks=True
)

ACCOUNT_RULES: tuple[Rule, ...] = (
    # -- an address or one model is refused, not the credential
    Rule(
        "address-403",
        ErrorClass.UPSTREAM,
        statuses={403},
        types={"permission_error", None},
        phrases=phrases.OF_AN_ADDRESS,
    ),
    Rule(
        "address-detail",
        ErrorClass.UPSTREAM,
        words=error_codes.FIREWALL_WORDS,
        source="2.1.330 describes it as a firewall",
    ),
    Rule("model-code", ErrorClass.MODEL, codes=error_codes.MODEL_CODES),
    Rule("model-budget", ErrorClass.MODEL, statuses={400, 401, 402, 403, 429}, from_api=phrases.MODEL_BUDGET),
    Rule(
        "model-refused-by-name",
        ErrorClass.MODEL,
        statuses={401, 403},
        from_api=phrases.NAMES_A_MODEL,
        unless=phrases.BAD_CREDENTIAL,
    ),
    # -- the account is blocked
    Rule("blocked-code", ErrorClass.AUTH, codes=error_codes.BLOCKED_CODES, condemns=True, blocks=True),
    # -- the account cannot pay, unless a limit ends by itself
    _unpaid("billing-code", codes=error_codes.BILLING_CODES),
    _limited("limit-then-credits", phrases=phrases.OUT_OF_CREDITS_UNTIL, source="anthropics/claude-code#42654, #84141"),
    _limited("limit-400", statuses={400, 403, 429}, phrases=phrases.API_LIMIT, source="anthropics/claude-code#38035"),
    Rule(
        "limit-needs-credits",
        ErrorClass.INVALID_REQUEST,
        statuses={400, 429},
        words=error_codes.LONG_CONTEXT_WORDS,
        source="2.1.330",
    ),
    Rule(
        "limit-needs-credits-by-name",
        ErrorClass.INVALID_REQUEST,
        statuses={400, 429},
        own_words=phrases.LONG_CONTEXT,
        source="2.1.332",
    ),
    _limited("limit-detail", words={"usage_limit_reached"}, source="2.1.330"),
    _limited("limit-of-a-model", words={"model_requires_usage_credits"}, phrases=(("resets",),), source="2.1.330"),
    Rule("model-needs-credits", ErrorClass.MODEL, words=error_codes.MODEL_CREDITS_WORDS, source="2.1.330"),
    Rule(
        "model-needs-credits-by-name",
        ErrorClass.MODEL,
        words={"rate_limit"},
        phrases=phrases.MODEL_CREDITS,
        source="2.1.197 to 2.1.332",
    ),
    _blocked(
        "blocked-account",
        statuses={400, 401, 402, 429},
        condemns=True,
        source="anthropics/claude-code#65609, #19028, #60648, #72457; tests/recorded",
    ),
    _blocked(
        "blocked-account-403",
        statuses={403},
        types=_API_TYPES | error_codes.GATEWAY_TYPES,
        condemns=True,
        source="field case K1",
    ),
    _blocked("blocked-account-untyped", statuses={403}, types={None}, source="2.0.76 to 2.1.197"),
    _blocked("blocked-account-5xx", statuses=_SERVER, types=_API_TYPES, condemns=True),
    Rule("blocked-word", ErrorClass.AUTH, words=error_codes.BLOCKED_WORDS, blocks=True, source="2.1.330"),
    _unpaid("billing-402", statuses={402}, source="the API's list of errors"),
    _unpaid("billing-said", statuses={400, 401, 403, 429}, own_words=phrases.UNPAID),
    _unpaid("billing-budget", statuses={401, 403, 429}, own_words=phrases.OVER_BUDGET),
    _unpaid("billing-5xx", statuses=_SERVER, types=_API_TYPES, own_words=phrases.UNPAID),
    Rule("billing-word", ErrorClass.BILLING, words={"billing_error"}, source="2.0.76 to 2.1.330"),
    # -- the token is refused
    _refused("api-401", statuses={401}),
    _refused("api-403-authentication-type", statuses={403}, types={"authentication_error"}, source="API list"),
    _refused("api-403-credential", statuses={403}, types=_PERMISSION, phrases=phrases.REFUSED_CREDENTIAL),
    _refused(
        "api-403-organization-word",
        statuses={403},
        types=_PERMISSION,
        words={"oauth_org_not_allowed"},
        source="2.1.330",
    ),
    Rule(
        "cli-403-sentence",
        ErrorClass.AUTH,
        statuses={403},
        types={None},
        phrases=phrases.REFUSED_CREDENTIAL,
        source="2.0.76 to 2.1.330",
    ),
    Rule("cli-credential-detail", ErrorClass.AUTH, words={"api_key_auth_disabled"}, source="2.1.330"),
    # -- usage limits, and throttles that only look like them
    Rule(
        "throttle-without-time",
        ErrorClass.OVERLOADED,
        phrases=(("usage limit reached|0",),),
        source="1.0.128; a real limit has its end there",
    ),
    Rule("throttle-by-name", ErrorClass.OVERLOADED, statuses={429}, phrases=(("not your usage limit",),)),
    _limited("limit-sentence", statuses={400, 403, 429}, begins=phrases.LIMIT_SENTENCES),
    _limited("limit-429-by-name", statuses={429}, phrases=phrases.NAMED_LIMIT, source="2.1.330"),
    Rule("throttle-429", ErrorClass.OVERLOADED, statuses={429}),
)
