"""
The words by which the rules recognise an error where its status and type leave the meaning open; all in lower case.

A *phrase* is a set of words that must all occur in the text, in any order, or a pattern that must match. A *sentence*
is how one of the CLI's remarks begins. In the tables below a line break or ``|`` separates two entries, ``&`` the words
of one phrase, and ``␣`` is a blank at the beginning or the end of a word.

Source: frames and lines under ``tests/recorded/``; the sentences in Claude Code 1.0.128, 2.0.76, 2.1.30, 2.1.114 and
2.1.330.
"""

from __future__ import annotations

from typing import TypeAlias

Phrases: TypeAlias = tuple[tuple[str, ...] | str, ...]


def _sentences(table: str) -> tuple[str, ...]:
    entries = (entry for line in table.strip().splitlines() for entry in line.strip().split(" | "))
    return tuple(entry.replace("␣", " ") for entry in entries)


def _phrases(table: str) -> Phrases:
    return tuple(tuple(entry.split(" & ")) for entry in _sentences(table))


_SOCKET = """
    connection was closed | connection closed | request timed out | unable to connect | network error
    getaddrinfo | enotfound | socket hang up | econnreset | econnrefused | etimedout | epipe | fetch failed
    connection error | connection reset | other side closed
"""
SOCKET = _phrases(_SOCKET)
NETWORK = SOCKET + _phrases("""
    eai_again | ehostunreach | enetunreach | failedtoopensocket | connectionrefused | connection refused
    connection to the api was lost | connection dropped | can't reach the api | no response from api | timed out
    api error: terminated | certificate | unable_to_get_issuer_cert | ssl | network | failed to refresh oauth token
    could not refresh your login | connection lost | stream idle timeout | stopped arriving | never arrived
    stalled | went to sleep | closed before the response | stream ended | stream was closed
    ended without sending | response ended early | response could not be read | no data arrived | premature close
""")
NETWORK_SENTENCES = _sentences("""
    api error | request timed out | failed to refresh | failed to authenticate | could not refresh
    please run /login | connection␣ | unable to␣
""") + _sentences(_SOCKET)
CUT_OFF_SENTENCES = _sentences("terminated | stream ended | stream idle timeout | request ended without sending")

REFUSED_CREDENTIAL = _phrases("""
    token & revoked | credential & revoked | api key & revoked | token has expired | credential is invalid
    not allowed for this organization | not permitted for this organization | disabled for this organization
    disabled claude subscription access | api key authentication is disabled | disabled api key authentication
    no longer a member | not a member of the organization | token application has been deactivated
    token lacks associated | access to claude code | access to claude.
    does not meet scope requirement & user:inference
""")
"""The API's words for a refused credential; 2.1.330 has much the same list."""

_STATE_OF_AN_ACCOUNT = (
    r"\b(?:accounts?(?: is| are| was| has been| have been)?"
    r"|(?:organi[sz]ation|org|workspace|subscription|user|your access)(?: is| was| has been)) "
    r"(?:(?:put |placed )?on hold|suspended|disabled|deactivated|banned|blocked|locked|frozen|restricted|terminated"
    r"|closed|archived|under review|flagged|paused|inactive|not active|not verified|pending verification|pending review"
    r"|not in good standing)\b"
)
BLOCKED_ACCOUNT: Phrases = (
    _STATE_OF_AN_ACCOUNT,
    *_phrases("""
    belongs to a disabled organization | service is disabled for your org | account has irregular activities
    account has not been verified | account requires & verification | account needs to be verified
    account must be verified | organization must be verified | organization has not been verified
    verify your & identity | verify your & account | verify your & email | verify your & phone
    verify your & organization | verify your & age | identity verification | age verification
    account verification | organization verification | phone verification | email verification
    verification is required | verification required | consumer terms & accept
    accept␣ & ␣terms | accepted & ␣terms | accepting & ␣terms | agree to & ␣terms
    accept␣ & privacy policy | accepted & privacy policy | accepting & privacy policy | agree to & privacy policy
    must accept & policy | need to accept & policy | have to accept & policy | please accept & policy
    agree to & usage policy
    用户已被封禁 | 账号已被封禁
    """),
)
"""
The API's and gateways' words for an account that is blocked, or must do something before it may be used.

Source: anthropics/claude-code#65609 (terms), #19028, #60648, #72457 (disabled); Claude Code 2.1.332 (on hold, and
``verification_required``); OpenAI and Z.AI (deactivated, locked); one-api and new-api, in Chinese too.
"""
NOT_OF_AN_ACCOUNT = _phrases("""
    the model | this model | model: | model= | claude- | rate limit | too many requests | signature | certificate
""")
"""If one of these occurs, something other than the account is blocked or has to be verified."""

UNPAID = _phrases("""
    credit balance | insufficient credit | insufficient balance | insufficient fund | insufficient quota
    insufficient prepaid | not enough credit | out of credits | credits exhausted | credits are exhausted
    credits have been exhausted | no credits left | no credits remaining | ran out of credits
    out of extra usage | out of usage credits | org is out of usage | usage credits ran out
    draw from your extra usage | usage allocation has been disabled | usage limit is set to $0
    quota is not enough | quota not enough | credit limit is insufficient | budget has been exceeded
    exceededbudget | payment required | payment method | past due | unpaid invoice | unpaid balance
    payment is overdue | account is overdue | in arrears | no active subscription | subscription expired
    subscription has expired | subscription has ended | billing hard limit | check your billing
    billing is not active | add funds | purchase credits | add more credits | 额度不足 | 余额不足 | 额度已用尽
""")
"""
The API's and gateways' words for an account that cannot pay.

Source: anthropics/claude-code#45033, #45048, #55469; litellm#40050 and LiteLLM's ``BudgetExceededError``; OpenRouter;
one-api and new-api, in Chinese too; Z.AI; DeepSeek; OpenAI.
"""
OVER_BUDGET = _phrases("""
    over budget | budget exceeded | exceeded budget | exceeded their budget | exceeded your budget
    exceeded its budget | budget limit
""")
"""
The same, for statuses that do not blame the request: with others the request itself may have exceeded a budget.

Source: LiteLLM, auth_checks.py.
"""

MODEL_BUDGET = _phrases("budget for model | budget for the model | budget & model=")
"""A budget of one model: the token works for every other model. Source: LiteLLM, model_max_budget_limiter.py."""

API_LIMIT = _phrases("usage limits & regain access | reached your specified api usage limit")
OUT_OF_CREDITS_UNTIL = _phrases("out of extra usage & resets | out of usage credits & resets")
"""The plan's limit is reached, and no credits are left to go on; the limit ends by itself."""
NAMED_LIMIT = _phrases("usage limit | weekly limit | 5-hour limit | session limit | spend limit")
MODEL_CREDITS = _phrases("""
    requires usage credits | out of usage credits & switch to another model | out of usage credits & switch models
""")
LONG_CONTEXT = _phrases("""
    extra usage is required for long context | usage credits are required for long context
    usage credits required for 1m context
""")

ADVERBS = _sentences("␣currently␣ | ␣temporarily␣ | ␣permanently␣ | ␣automatically␣ | ␣now␣")
TRAILERS = _sentences(
    "received model group | available model group | no fallback model group | litellm retried | (request id:"
)
"""Words that gateways append to a message, with names of models behind them. Source: LiteLLM, one-api, new-api."""

ABOUT_CONTENT = _sentences("guardrail | content filter | content_filter | moderation")
"""Words of a message about what a person or a model wrote, which may repeat that text without quotes."""

NAMES_A_MODEL = _phrases("""
    the model␣ | model: | model claude | claude-opus | claude-sonnet | claude-haiku | claude-fable
    claude-mythos | access to model | access to this model | access to the requested model | access model
    access this model | use model | use this model | only access models | model is not | model not
    model access | 访问模型 | 使用模型
""")
"""
The request for this one model is refused, and not the credential.

Source: the API's documentation of permission_error; LiteLLM ("key not allowed to access model. This key can only access
models=[…]. Tried to access …", "Not allowed to access model due to tags configuration."); new-api ("This token has no
access to model …", in Chinese too).
"""
BAD_CREDENTIAL = _phrases("""
    invalid & key | invalid & token | invalid & credential | invalid & bearer | incorrect api key | expired
    revoked | not found in db | no api key | missing
""")
"""The credential is refused after all, even where a model is named beside it."""

OF_AN_ADDRESS = _phrases("ip address | ip allowlist")
"""Any token of the organization would be refused from this address. Source: the API's documentation."""
OF_A_MODEL = _phrases("""
    specified resource | model: | access to & model | permission & model | not allowed & model
    not authorized & model | access to claude- | access to claude opus | access to claude sonnet
    access to claude haiku
""")
UNSUPPORTED_MODEL = _phrases("""
    does not support this model | model is not supported | model not supported | model is not available
    model does not exist | model not found | not a supported model | not a valid model | invalid model
    unknown model | is not available with the claude | no endpoints found | verified to use the model
    the model & does not exist
""")
MODEL_UNAVAILABLE = UNSUPPORTED_MODEL + _phrases("issue with the selected model")
MODEL_404_SENTENCES = _sentences("there's an issue with the selected model | the model␣")
MODEL_SENTENCES = _sentences("there's an issue | the model␣ | claude code␣ | claude opus␣ | model␣")
OUTPUT_LIMIT = _phrases("exceeded the & output token maximum | reached & output token limit")
OUTPUT_LIMIT_SENTENCES = _sentences("api error | claude's response exceeded")
DECLINED = _phrases("""
    unable to respond to this request & usage policy | safeguards flagged | can't help with this | can't respond to
""")
UNKNOWN_PATH_SENTENCES = _sentences(
    "not found | the requested resource | resource not found | page not found | no such route"
)

REFUSAL_SENTENCES = _sentences("""
    please run /login | not logged in | failed to authenticate | authentication required | login expired
    invalid api key | invalid auth token | invalid bearer token | invalid x-api-key
    invalid authentication credentials | oauth token revoked | oauth token has expired
    oauth token has been revoked | oauth access token has expired | oauth access token has been revoked
    oauth access token is invalid | oauth authentication is currently not
    your account does not have access to claude | your organization has disabled
    account is no longer a member of the organization | credential is invalid
""")
LIMIT_SENTENCES = _sentences("""
    you've hit your | you've reached your | you have reached your | you've used
    usage is paused for your organization | usage limit reached | claude usage limit reached
    claude ai usage limit reached | 5-hour limit reached | session limit reached | weekly limit reached
    weekly limit resets | session limit resets | opus limit resets | opus limit reached
    opus weekly limit reached | sonnet limit reached | sonnet weekly limit reached | limit reached
    spending cap reached | spend limit reached
""")
UNPAID_SENTENCES = _sentences("""
    credit balance | your credit balance | you're out of usage credits | you're out of extra usage
    third-party apps now draw from your extra usage | your org is out of usage
    your seat type doesn't include usage | your usage allocation has been disabled
    your group's usage limit is set to $0 | usage credits ran out | budget has been exceeded
    insufficient credits | insufficient balance | exceededbudget
""")
BLOCKED_SENTENCES = _sentences("""
    your account is on hold | your account has been | your organization has been disabled
    this organization has been disabled | your anthropic_api_key belongs to a disabled organization
    we've updated our consumer terms | this service is disabled for your org
""")
THROTTLE_SENTENCES = _sentences("""
    server is temporarily limiting requests | request rejected (429) | rate limit reached | repeated 529
    overloaded | opus is experiencing high load | fable is experiencing high load
""")
INVALID_SENTENCES = _sentences("""
    output blocked by content filtering | prompt is too long | request too large | an image in the conversation
    image was too large | input is too long | pdf␣
""")
SERVER_SENTENCES = _sentences("""
    internal server error | bad gateway | service unavailable | gateway timeout
    api returned an empty or malformed response | server error mid-response | the response stream was malformed
    the api is temporarily unavailable | unexpected event order | unexpected token | unexpected end of json
    unterminated string in json | json parse error | could not parse message into json | failed to parse
""")

MODEL_BY_LIMIT: dict[str, str] = {
    "seven_day_opus": "opus",
    "seven_day_sonnet": "sonnet",
    "seven_day_overage_included": "fable",
}
"""The model that a usage limit applies to; all other limits are the account's. Source: Claude Code 2.1.330."""

LIMIT_BY_WORDS: tuple[tuple[str, str], ...] = (
    ("opus", "seven_day_opus"),
    ("sonnet", "seven_day_sonnet"),
    ("fable", "seven_day_overage_included"),
    ("5-hour", "five_hour"),
    ("session limit", "five_hour"),
    ("weekly", "seven_day"),
)
"""The limit that a sentence is about, where no frame names it. Source: Claude Code 2.0.76 to 2.1.330."""
