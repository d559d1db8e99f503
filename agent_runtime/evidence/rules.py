"""
The meaning of each API error that the CLI reports: an ordered table of rules, each with its source.

The first rule that fits decides. Structure comes first: the HTTP status and the API's own error type, where they are
known; then the CLI's word for the failure; and only where nothing else is known, the sentence the CLI prints. Sentences
are matched by their beginning, because the CLI's own begin that way and quoted ones do not.

A rule's source is a version of Claude Code, a public report or a document. Frames and lines that seven versions of
Claude Code printed are recorded in ``tests/recorded``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from agent_runtime.errors import ErrorClass
from agent_runtime.evidence import error_codes, phrases
from agent_runtime.evidence.account_rules import ACCOUNT_RULES
from agent_runtime.evidence.matching import ErrorTexts, Rule

if TYPE_CHECKING:
    from agent_runtime.evidence.error_bodies import ApiError

_NO_WORD = frozenset({None, "unknown"})
_LIMIT_WORD = _NO_WORD | {"rate_limit"}
_NETWORK_WORD = _NO_WORD | {"server_error", "authentication_failed"}

_OTHER_PATH = "the server does not know the path it was asked for; look at ANTHROPIC_BASE_URL"

_without_status = partial(Rule, statuses={None})
_sentence_alone = partial(_without_status, words=_NO_WORD)

RULES: tuple[Rule, ...] = (
    # -- no answer of the API, whatever the sentence looks like
    Rule("network-detail", ErrorClass.NETWORK, words=error_codes.NETWORK_WORDS, source="2.1.330"),
    Rule(
        "network-dressed-as-refusal",
        ErrorClass.NETWORK,
        statuses={401, 403},
        types={None},
        phrases=phrases.SOCKET,
        source="gitmoot/gitmoot#509, #486",
    ),
    Rule("proxy-407", ErrorClass.NETWORK, statuses={407}, source="RFC 9110, section 15.5.8"),
    # -- the request's form or content: such a message may quote anything
    Rule(
        "request-field",
        ErrorClass.INVALID_REQUEST,
        statuses={400, 413, 422},
        of_a_field=True,
        source="such a message begins with a path",
    ),
    Rule("request-content", ErrorClass.INVALID_REQUEST, statuses={400, 413, 422}, begins=phrases.INVALID_SENTENCES),
    *ACCOUNT_RULES,
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
    Rule("no-whole-answer", ErrorClass.LOST_RESULT, words=error_codes.NO_ANSWER_WORDS, source="2.1.330"),
    Rule("not-the-task", ErrorClass.ERROR, words=error_codes.LOGIN_WORDS, source="2.1.330"),
    Rule(
        "model-403",
        ErrorClass.MODEL,
        statuses={403},
        phrases=phrases.OF_A_MODEL,
        source="tests/recorded; API documentation",
    ),
    Rule("gateway-403", ErrorClass.UPSTREAM, statuses={403}),
    Rule(
        "model-unsupported",
        ErrorClass.MODEL,
        statuses={400, 404, 422},
        from_api=phrases.UNSUPPORTED_MODEL,
        source="Abilityai/trinity; OpenRouter",
    ),
    Rule(
        "path-404-by-name",
        ErrorClass.UPSTREAM,
        statuses={404},
        types={"not_found_error"},
        with_message=True,
        begins=phrases.UNKNOWN_PATH_SENTENCES,
        advice=_OTHER_PATH,
        source="the API's answer to a path it does not know",
    ),
    Rule("model-404", ErrorClass.MODEL, statuses={404}, types={"not_found_error"}),
    Rule(
        "path-404",
        ErrorClass.UPSTREAM,
        statuses={404},
        with_message=True,
        advice=_OTHER_PATH,
        source="field case K12; 2.1.114 calls any 404 an issue with the model",
    ),
    Rule("model-word", ErrorClass.MODEL, words={"model_not_found"}, source="2.1.114 to 2.1.330"),
    Rule("model-404-sentence", ErrorClass.MODEL, statuses={404}, begins=phrases.MODEL_404_SENTENCES, source="2.1.114"),
    Rule("request-refused", ErrorClass.INVALID_REQUEST, statuses={400, 413, 414, 422, 431}),
    # -- the API's own troubles
    Rule("overloaded-type", ErrorClass.OVERLOADED, types={"overloaded_error"}),
    Rule("overloaded-529", ErrorClass.OVERLOADED, statuses={529}, source="the API's list of errors"),
    Rule("server-error", ErrorClass.UPSTREAM, statuses=range(500, 600)),
    Rule("other-status", ErrorClass.UPSTREAM, statuses=range(300, 500), source="RFC 9110, sections 15.4 and 15.5"),
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
