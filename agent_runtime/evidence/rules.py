"""
The meaning of each API error that the CLI reports: an ordered table of rules, each with its source.

The first rule that fits decides. Structure comes first: the HTTP status and the API's own error type, where they are
known; then the CLI's word for the failure; and only where nothing else is known, the sentence the CLI prints. Sentences
are matched by their beginning, because the CLI's own begin that way and quoted ones do not.

Of the rules about the token and its account those about one model come first, because the token can do everything else
then; then rules about the account, whatever the HTTP status; then the credential itself; then limits that end by
themselves.

A rule's source is a version of Claude Code, a public report or a document. Frames and lines that seven versions of
Claude Code printed are recorded in ``tests/recorded``.
"""

from __future__ import annotations

from functools import partial

from agent_runtime.errors import ErrorClass
from agent_runtime.evidence import codes, phrases
from agent_runtime.evidence.api_errors import STATUS_BY_TYPE, ApiError
from agent_runtime.evidence.matching import ErrorTexts, Rule

_NO_WORD = frozenset({None, "unknown"})
_LIMIT_WORD = _NO_WORD | {"rate_limit"}
_NETWORK_WORD = _NO_WORD | {"server_error", "authentication_failed"}

_OTHER_PATH = "the server does not know the path it was asked for; look at ANTHROPIC_BASE_URL"

_API_TYPES = frozenset(STATUS_BY_TYPE)
_PERMISSION = frozenset({"permission_error"})
_SERVER = range(500, 600)

_network = partial(Rule, error_class=ErrorClass.NETWORK)
_invalid = partial(Rule, error_class=ErrorClass.INVALID_REQUEST)
_model = partial(Rule, error_class=ErrorClass.MODEL)
_upstream = partial(Rule, error_class=ErrorClass.UPSTREAM)
_overloaded = partial(Rule, error_class=ErrorClass.OVERLOADED)
_limited = partial(Rule, error_class=ErrorClass.RATE_LIMIT)
_refused = partial(Rule, error_class=ErrorClass.AUTH, condemns=True)
_unpaid = partial(Rule, error_class=ErrorClass.BILLING, condemns=True)
_blocked = partial(
    Rule, error_class=ErrorClass.AUTH, own_words=phrases.BLOCKED_ACCOUNT, unless=phrases.NOT_OF_AN_ACCOUNT, blocks=True
)
_without_status = partial(Rule, statuses={None})
_sentence_alone = partial(_without_status, words=_NO_WORD)

RULES: tuple[Rule, ...] = (
    # -- no answer of the API, whatever the sentence looks like
    _network("network-detail", words=codes.NETWORK_WORDS, source="2.1.330"),
    _network(
        "network-dressed-as-refusal",
        statuses={401, 403},
        types={None},
        phrases=phrases.SOCKET,
        source="gitmoot/gitmoot#509, #486",
    ),
    _network("proxy-407", statuses={407}, source="RFC 9110, section 15.5.8"),
    # -- the request's form or content: such a message may quote anything
    _invalid("request-field", statuses={400, 413, 422}, of_a_field=True, source="such a message begins with a path"),
    _invalid("request-content", statuses={400, 413, 422}, begins=phrases.INVALID_SENTENCES),
    # -- an address or one model is refused, not the credential
    _upstream("address-403", statuses={403}, types={"permission_error", None}, phrases=phrases.OF_AN_ADDRESS),
    _upstream("address-detail", words=codes.FIREWALL_WORDS, source="2.1.330 describes it as a firewall"),
    _model("model-code", codes=codes.MODEL),
    _model("model-budget", statuses={400, 401, 402, 403, 429}, from_api=phrases.MODEL_BUDGET),
    _model("model-refused-by-name", statuses={401, 403}, from_api=phrases.NAMES_A_MODEL, unless=phrases.BAD_CREDENTIAL),
    # -- the account is blocked
    _refused("blocked-code", codes=codes.BLOCKED, blocks=True),
    # -- the account cannot pay, unless a limit ends by itself
    _unpaid("billing-code", codes=codes.BILLING),
    _limited("limit-then-credits", phrases=phrases.OUT_OF_CREDITS_UNTIL, source="anthropics/claude-code#42654, #84141"),
    _limited("limit-400", statuses={400, 403, 429}, phrases=phrases.API_LIMIT, source="anthropics/claude-code#38035"),
    _invalid("limit-needs-credits", statuses={400, 429}, words=codes.LONG_CONTEXT_WORDS, source="2.1.330"),
    _invalid("limit-needs-credits-by-name", statuses={400, 429}, own_words=phrases.LONG_CONTEXT, source="2.1.332"),
    _limited("limit-detail", words={"usage_limit_reached"}, source="2.1.330"),
    _limited("limit-of-a-model", words={"model_requires_usage_credits"}, phrases=(("resets",),), source="2.1.330"),
    _model("model-needs-credits", words=codes.MODEL_CREDITS_WORDS, source="2.1.330"),
    _model(
        "model-needs-credits-by-name", words={"rate_limit"}, phrases=phrases.MODEL_CREDITS, source="2.1.197 to 2.1.332"
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
        types=_API_TYPES | codes.GATEWAY_TYPES,
        condemns=True,
        source="field case K1",
    ),
    _blocked("blocked-account-untyped", statuses={403}, types={None}, source="2.0.76 to 2.1.197"),
    _blocked("blocked-account-5xx", statuses=_SERVER, types=_API_TYPES, condemns=True),
    Rule("blocked-word", ErrorClass.AUTH, words=codes.BLOCKED_WORDS, blocks=True, source="2.1.330"),
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
    _overloaded(
        "throttle-without-time", phrases=(("usage limit reached|0",),), source="1.0.128; a real limit has its end there"
    ),
    _overloaded("throttle-by-name", statuses={429}, phrases=(("not your usage limit",),)),
    _limited("limit-sentence", statuses={400, 403, 429}, begins=phrases.LIMIT_SENTENCES),
    _limited("limit-429-by-name", statuses={429}, phrases=phrases.NAMED_LIMIT, source="2.1.330"),
    _overloaded("throttle-429", statuses={429}),
    # -- the request
    Rule("output-limit-word", ErrorClass.MAX_OUTPUT, words={"max_output_tokens"}, source="2.1.330"),
    _without_status(
        "output-limit-sentence",
        ErrorClass.MAX_OUTPUT,
        phrases=phrases.OUTPUT_LIMIT,
        begins=phrases.OUTPUT_LIMIT_SENTENCES,
        source="2.1.30 to 2.1.332",
    ),
    _without_status(
        "model-declines",
        ErrorClass.INVALID_REQUEST,
        phrases=phrases.DECLINED,
        begins=("api error",),
        source="2.1.30 to 2.1.332",
    ),
    Rule("no-whole-answer", ErrorClass.LOST_RESULT, words=codes.NO_ANSWER_WORDS, source="2.1.330"),
    Rule("not-the-task", ErrorClass.ERROR, words=codes.LOGIN_WORDS, source="2.1.330"),
    _model("model-403", statuses={403}, phrases=phrases.OF_A_MODEL, source="tests/recorded; API documentation"),
    _upstream("gateway-403", statuses={403}),
    _model(
        "model-unsupported",
        statuses={400, 404, 422},
        from_api=phrases.UNSUPPORTED_MODEL,
        source="Abilityai/trinity; OpenRouter",
    ),
    _upstream(
        "path-404-by-name",
        statuses={404},
        types={"not_found_error"},
        with_message=True,
        begins=phrases.UNKNOWN_PATH_SENTENCES,
        advice=_OTHER_PATH,
        source="the API's answer to a path it does not know",
    ),
    _model("model-404", statuses={404}, types={"not_found_error"}),
    _upstream(
        "path-404",
        statuses={404},
        with_message=True,
        advice=_OTHER_PATH,
        source="field case K12; 2.1.114 calls any 404 an issue with the model",
    ),
    _model("model-word", words={"model_not_found"}, source="2.1.114 to 2.1.330"),
    _model("model-404-sentence", statuses={404}, begins=phrases.MODEL_404_SENTENCES, source="2.1.114"),
    _invalid("request-refused", statuses={400, 413, 414, 422, 431}),
    # -- the API's own troubles
    _overloaded("overloaded-type", types={"overloaded_error"}),
    _overloaded("overloaded-529", statuses={529}, source="the API's list of errors"),
    _upstream("server-error", statuses=_SERVER),
    _upstream("other-status", statuses=range(300, 500), source="RFC 9110, sections 15.4 and 15.5"),
    # -- no status: the CLI's word, and its sentence where the word leaves it open
    _without_status(
        "network-sentence",
        ErrorClass.NETWORK,
        words=_NETWORK_WORD,
        phrases=phrases.NETWORK,
        begins=phrases.NETWORK_SENTENCES,
        source="tests/recorded; gitmoot/gitmoot#509",
    ),
    _without_status("network-cut-off", ErrorClass.NETWORK, begins=phrases.CUT_OFF_SENTENCES),
    _without_status("cli-no-credential", ErrorClass.AUTH, begins=("could not resolve authentication method",)),
    _without_status(
        "billing-sentence",
        ErrorClass.BILLING,
        words=_LIMIT_WORD,
        begins=phrases.UNPAID_SENTENCES,
        source="anthropics/claude-code#55469, #46277; 2.0.76 to 2.1.332",
    ),
    _without_status(
        "blocked-sentence",
        ErrorClass.AUTH,
        begins=phrases.BLOCKED_SENTENCES,
        own_words=phrases.BLOCKED_ACCOUNT,
        blocks=True,
        source="2.1.30 to 2.1.332",
    ),
    _without_status("cli-refusal-word", ErrorClass.AUTH, words={"authentication_failed", "oauth_org_not_allowed"}),
    _without_status("throttle-sentence", ErrorClass.OVERLOADED, begins=phrases.THROTTLE_SENTENCES),
    _without_status("limit-sentence-alone", ErrorClass.RATE_LIMIT, words=_LIMIT_WORD, begins=phrases.LIMIT_SENTENCES),
    _without_status("throttle-word", ErrorClass.OVERLOADED, words={"rate_limit", "overloaded"}, source="2.1.330"),
    _without_status("server-word", ErrorClass.UPSTREAM, words={"server_error"}, source="2.1.330"),
    _without_status(
        "model-sentence",
        ErrorClass.MODEL,
        words=_NO_WORD | {"invalid_request"},
        phrases=phrases.MODEL_UNAVAILABLE,
        begins=phrases.MODEL_SENTENCES,
    ),
    _without_status("request-word", ErrorClass.INVALID_REQUEST, words={"invalid_request"}),
    # -- nothing but a sentence
    _sentence_alone(
        "cli-refusal-sentence",
        ErrorClass.AUTH,
        begins=phrases.REFUSAL_SENTENCES,
        source="anthropics/claude-code#9635, #63685",
    ),
    _sentence_alone("request-sentence", ErrorClass.INVALID_REQUEST, begins=phrases.INVALID_SENTENCES),
    _sentence_alone("server-sentence", ErrorClass.UPSTREAM, begins=phrases.SERVER_SENTENCES),
)

UNEXPLAINED = Rule("unexplained", ErrorClass.ERROR)
"""Neither the status nor the words explain the error."""


def rule_for(error: ApiError) -> Rule:
    """Return the first rule that fits; :data:`UNEXPLAINED` if none does."""
    texts = ErrorTexts(error)
    return next((rule for rule in RULES if rule.matches(error, texts)), UNEXPLAINED)
