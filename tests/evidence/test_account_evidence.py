"""What an error answer says of the account, of one model, or of neither: K1, K4, K11 and K12 of the field cases."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_runtime.claude.run_answer import Result
from agent_runtime.evidence.api_errors import read_body
from agent_runtime.evidence.verdict import Ending, verdict
from agent_runtime.model.state import TokenTrouble
from agent_runtime.tokens.probe import ProbeVerdict, judge
from tests.support.told import answered, failed_result, frame, init, retry, spoken, synthetic, tell

MODEL = "claude-sonnet-5-5"
LITELLM_TRAILER = f". Received Model Group={MODEL}\nAvailable Model Group Fallbacks=None"


def own(kind: str, message: str, **details: str) -> dict[str, Any]:
    """Put an error as the API itself does."""
    return {"type": "error", "error": {"type": kind, "message": message} | ({"details": details} if details else {})}


def gateway(
    message: str, kind: str | None = None, code: str | int | None = None, param: str | None = None
) -> dict[str, Any]:
    """Put an error as OpenAI does, and LiteLLM, OpenRouter, one-api and new-api."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


EXTRA_USAGE = "You're out of extra usage. Add more at claude.ai/settings/usage and keep going."
TERMS = (
    "We've updated our Consumer Terms and Privacy Policy. You'll need to accept them in claude.ai with the email in "
    "/status to continue."
)
BUDGET = "Budget has been exceeded! Current cost: 111.29, Max budget: 100.0"


# -- K1: the account is blocked, or cannot pay


BLOCKED = [
    (400, own("invalid_request_error", TERMS)),  # cc#65609
    (403, own("permission_error", "Your account is on hold. Please contact support.")),
    (400, own("invalid_request_error", "This organization has been disabled.")),  # cc#19028
    (403, own("permission_error", "Your account has been suspended for violating our usage policy.")),
    (403, own("permission_error", "Your organization has been temporarily disabled.")),
    (401, own("authentication_error", "Your account has been locked. Please contact support.")),
    (429, own("rate_limit_error", "Your account is currently on hold.")),
    (400, own("invalid_request_error", "You must accept the updated Terms of Service before you can use the API.")),
    (403, own("permission_error", "You must accept the updated Usage Policy before continuing.")),
    (403, own("permission_error", "Please verify your phone number to continue using the API.")),
    (403, own("permission_error", "Identity verification is required to continue.")),
    (403, own("permission_error", "See the web site.", error_code="verification_required")),
    (403, own("permission_error", "See the web site.", error_code="account_on_hold")),
    (500, own("api_error", "Your account has been deactivated.")),
    (401, gateway("Your OpenAI account has been deactivated.", "invalid_request_error", "account_deactivated")),
    (403, gateway("用户已被封禁", "one_api_error")),
    (403, gateway("User has been banned", "new_api_error")),
]


@pytest.mark.parametrize(("status", "body"), BLOCKED)
def test_k1_an_account_that_is_blocked_is_auth_whatever_the_status__cc_65609(status: int, body: dict[str, Any]) -> None:
    story = tell(init(), answered(status, body))

    assert story.evidence is not None
    assert (story.error_class, story.evidence.rule.trouble) == ("auth", TokenTrouble.BLOCKED)
    assert story.evidence.condemns
    assert not story.evidence.is_final


UNPAID = [
    (400, own("invalid_request_error", EXTRA_USAGE)),  # cc#45033
    (429, gateway(BUDGET, "budget_exceeded", "429")),  # litellm#40050
    (400, own("invalid_request_error", "Third-party apps now draw from your extra usage, not your plan limits.")),
    (400, own("invalid_request_error", "Your credit balance is too low to access the Anthropic API.")),
    (402, own("billing_error", "Pay first")),
    (403, own("permission_error", "Your subscription has expired. Please renew.")),
    (429, own("rate_limit_error", "No.", error_code="extra_usage_out_of_credits")),
    (402, gateway("Insufficient credits. Add more using https://openrouter.ai/credits", code=402)),
    (402, "Payment Required"),
    (402, {"detail": "Payment Required"}),
    (400, gateway("ExceededBudget: User=x over budget. Spend=12.3, Budget=10", "budget_exceeded", "400")),
    (401, gateway("Authentication Error, ExceededBudget: Crossed spend within team", "auth_error", "401")),
    (
        429,
        gateway("You exceeded your current quota, please check your plan.", "insufficient_quota", "insufficient_quota"),
    ),
    (429, gateway("No.", None, "billing_hard_limit_reached")),
    (403, gateway("user quota is not enough", "one_api_error", "insufficient_user_quota")),
    (
        403,
        gateway(
            "token quota is not enough, token remain quota: $0.1", "new_api_error", "pre_consume_token_quota_failed"
        ),
    ),
    (403, {"type": "error", "error": {"type": "new_api_error", "message": "用户额度不足, 剩余额度: 0.00"}}),
    (401, gateway("该令牌额度已用尽 TokenStatusExhausted[sk-abc***xyz]", "new_api_error")),
    (429, gateway("余额不足或无可用资源包,请充值。", code="1113")),
    (402, gateway("Insufficient Balance", "unknown_error", "invalid_request_error")),
    (429, {"error": "insufficient_quota"}),
    (503, gateway("No.", None, "insufficient_quota")),
    (
        400,
        gateway(
            f"litellm.BadRequestError: AnthropicException - "
            f"{json.dumps(own('invalid_request_error', 'Your credit balance is too low.'))}{LITELLM_TRAILER}",
            None,
            "400",
        ),
    ),
]


@pytest.mark.parametrize(("status", "body"), UNPAID)
def test_k1_an_account_that_cannot_pay_is_billing_whatever_the_status__cc_45033__litellm_40050(
    status: int, body: object
) -> None:
    for story in (
        tell(init(), answered(status, body)),
        tell(init(), spoken(), answered(status, body)),  # a sub-agent's is the account's as well
    ):
        assert story.evidence is not None
        assert (story.error_class, story.evidence.rule.trouble) == ("billing", TokenTrouble.BILLING)
        assert story.evidence.condemns


@pytest.mark.parametrize(
    ("text", "fields", "wanted"),
    [
        ("Credit balance is too low", {"error": "billing_error"}, "billing"),
        (f"API Error: 400 {EXTRA_USAGE}", {"error": "unknown", "api_error_status": 400}, "billing"),
        (f"API Error: 400 {json.dumps(own('invalid_request_error', EXTRA_USAGE))}", {"error": "unknown"}, "billing"),
        ("You're out of usage credits", {"error": "rate_limit"}, "billing"),
        ("Your org is out of usage · contact your admin", {"error": "rate_limit", "api_error_status": 429}, "billing"),
        ("API Error: Usage credits ran out before the response was finished.", {"error": "unknown"}, "billing"),
        (
            "Your account is on hold and can't use Claude Code. View details or appeal: …",
            {"error": "account_on_hold"},
            "auth",
        ),
        ("API Error: See the web site.", {"error": "verification_required", "api_error_status": 403}, "auth"),
        (f"API Error: 400 {TERMS}", {"error": "unknown", "api_error_status": 400}, "auth"),
        ("This service is disabled for your org", {"error": "rate_limit", "api_error_status": 429}, "auth"),
        (
            "You're out of extra usage · resets 6pm (UTC)",
            {"error": "rate_limit", "api_error_status": 429},
            "rate_limit",
        ),
    ],
)
def test_k1_what_the_cli_makes_of_it_alone_is_enough_to_know(text: str, fields: dict[str, Any], wanted: str) -> None:
    final = failed_result(text, api_error_status=fields.get("api_error_status"))
    for story in (tell(synthetic(text, **fields)), tell(synthetic(text, **fields), final)):
        assert story.error_class == wanted
        assert (story.evidence is not None) == (wanted != "rate_limit")


@pytest.mark.parametrize("text", ["Credit balance is too low", "Your account is on hold and can't use Claude Code."])
def test_k1_a_sentence_alone_condemns_nothing(text: str) -> None:
    story = tell(failed_result(text))
    assert story.evidence is not None
    assert not story.evidence.condemns


NOT_THIS_KIND = [
    (400, own("invalid_request_error", "Output blocked by content filtering policy"), "invalid_request"),
    (400, own("invalid_request_error", "This request appears to violate our Usage Policy."), "invalid_request"),
    (400, own("invalid_request_error", "prompt is too long: 250000 tokens > 200000 maximum"), "invalid_request"),
    (
        400,
        own("invalid_request_error", 'messages.4.content.0.text: "Your account is on hold", credit balance is too low'),
        "invalid_request",
    ),
    (400, own("invalid_request_error", "messages.0.content: your account has been disabled"), "invalid_request"),
    (400, own("invalid_request_error", "metadata.user_id: account disabled by admin"), "invalid_request"),
    (400, own("invalid_request_error", "tools.3.custom.name: got billing_error"), "invalid_request"),
    (400, own("invalid_request_error", 'Could not process PDF "credit balance is too low.pdf"'), "invalid_request"),
    (400, own("invalid_request_error", "Could not read 'your account is on hold.pdf'"), "invalid_request"),
    (
        400,
        own("invalid_request_error", "Blocked by guardrail: Your account is on hold, please accept our terms"),
        "invalid_request",
    ),
    (
        400,
        own("invalid_request_error", "`max_tokens` must be greater than `thinking.budget_tokens`."),
        "invalid_request",
    ),
    (400, own("invalid_request_error", "Your organization has disabled web search."), "invalid_request"),
    (400, own("invalid_request_error", "Usage credits are required for long context requests."), "invalid_request"),
    (400, own("invalid_request_error", "Request over budget: lower max_tokens"), "invalid_request"),
    (429, own("rate_limit_error", "Extra usage is required for long context requests."), "invalid_request"),
    (422, {"detail": [{"loc": ["body", "messages"], "msg": "your account is on hold"}]}, "invalid_request"),
    (403, gateway("Quota exceeded for this gateway", "forbidden"), "upstream"),
    (403, gateway("Access to this resource is disabled", "forbidden"), "upstream"),
    (500, gateway("Your account is on hold", "server_error"), "upstream"),
    (429, own("rate_limit_error", "Your account is temporarily blocked: too many requests"), "overloaded"),
    (429, own("rate_limit_error", "You are over your per-minute rate limit; see the billing page"), "overloaded"),
    (
        429,
        gateway("Rate limit exceeded for api_key. Limit resets at: 2026-09-30 10:15:18 UTC", "throttling_error"),
        "overloaded",
    ),
]


@pytest.mark.parametrize(("status", "body", "wanted"), NOT_THIS_KIND)
def test_k1_what_only_sounds_like_it_stops_nothing(status: int, body: dict[str, Any], wanted: str) -> None:
    story = tell(init(), answered(status, body))

    assert story.error_class == wanted
    assert story.evidence is None
    assert judge(status, json.dumps(body).encode()) not in {ProbeVerdict.BLOCKED, ProbeVerdict.BILLING}


def test_k1_a_request_that_quotes_it_is_not_believed_when_the_cli_does() -> None:
    # 2.1.30 to 2.1.332 call it billing_error when these words are anywhere in the message.
    told = answered(400, own("invalid_request_error", "messages.0.content: credit balance is too low is not allowed"))
    text = "Credit balance is too low"
    newer = {"api_error_status": 400, "api_error_type": "invalid_request_error"}

    for fields in (newer, {}):
        story = tell(told, synthetic(text, "billing_error", **fields), failed_result(text, **fields))
        assert story.error_class == "invalid_request"
        assert story.evidence is None


@pytest.mark.parametrize(
    ("status", "body", "wanted"),
    [
        *((status, body, ProbeVerdict.BLOCKED) for status, body in BLOCKED if body.get("type") == "error"),
        *(
            (status, body, ProbeVerdict.BILLING)
            for status, body in UNPAID
            if isinstance(body, dict) and body.get("type") == "error"
        ),
        (429, gateway(BUDGET, "budget_exceeded", "429"), ProbeVerdict.BILLING),
        (403, gateway("No.", "one_api_error", "insufficient_user_quota"), ProbeVerdict.BILLING),
        (402, {"detail": "Payment Required"}, ProbeVerdict.BILLING),
        (401, gateway("Gone.", "invalid_request_error", "account_deactivated"), ProbeVerdict.BLOCKED),
        (400, gateway("This organization has been disabled."), ProbeVerdict.UNKNOWN),
        (429, own("rate_limit_error", "This request would exceed your account's rate limit."), ProbeVerdict.VALID),
        (400, own("invalid_request_error", "max_tokens: field required"), ProbeVerdict.VALID),
    ],
)
def test_n4_the_probe_calls_no_answer_valid_that_blocks_the_account_or_its_purse(
    status: int, body: dict[str, Any], wanted: ProbeVerdict
) -> None:
    if body.get("error", {}) and isinstance(body.get("error"), dict) and body["error"].get("type") == "new_api_error":
        wanted = ProbeVerdict.UNKNOWN  # a gateway's form, and no known code in it
    assert judge(status, json.dumps(body).encode()) is wanted


# -- K4: a 401 or 403 about one model


def refused(model: str, kind: str = "key_model_access_denied", status: int = 401) -> tuple[str, str]:
    message = f"key not allowed to access model. This key can only access models=['{MODEL}']. Tried to access {model}"
    return answered(status, gateway(message, kind, str(status), "model"))


OF_A_MODEL = [
    (401, gateway(f"key not allowed to access model. Tried to access {MODEL}", "key_model_access_denied", "401")),
    (403, gateway(f"team not allowed to access model. Tried to access {MODEL}", "team_model_access_denied", "403")),
    (401, gateway(f"Not allowed to access model due to tags configuration. Passed model={MODEL} and tags=['x']")),
    (401, gateway(f"Virtual key is not permitted to use {MODEL}")),
    (403, gateway(f"This token has no access to model {MODEL}")),
    (403, gateway(f"该令牌无权访问模型 {MODEL}", "new_api_error")),
    (403, gateway(f"Project `p` does not have access to model `{MODEL}`", "invalid_request_error", "model_not_found")),
    (403, own("permission_error", f"The model {MODEL} is not allowed for this organization.")),
    (403, own("permission_error", "Your account does not have access to Claude Sonnet 5.5")),
    (403, own("permission_error", "No.", error_code="model_access_suspended")),
    (
        429,
        gateway(
            f"LiteLLM Virtual Key: 97, key_alias: None, exceeded budget for model={MODEL}", "budget_exceeded", "400"
        ),
    ),
]


@pytest.mark.parametrize(("status", "body"), OF_A_MODEL)
def test_k4_what_is_refused_of_one_model_is_no_refusal_of_the_token(status: int, body: dict[str, Any]) -> None:
    message = body["error"]["message"]
    word = {401: "authentication_failed", 403: "authentication_failed", 429: "rate_limit"}[status]
    story = tell(
        init(),
        answered(status, body),
        retry(status, word),
        synthetic(f"Failed to authenticate. API Error: {status} {message}", word, api_error_status=status),
        failed_result(f"Failed to authenticate. API Error: {status} {message}", api_error_status=status),
    )
    assert story.error_class == "model"
    assert story.evidence is None
    assert story.last is not None
    assert story.last.rule.trouble is None


@pytest.mark.parametrize("model", ["claude-haiku-4-5-20251001", "glm-4.5-air", "anthropic/claude-haiku-4.5"])
@pytest.mark.parametrize("before", [[], [spoken(MODEL)]])
def test_k4_a_side_request_for_another_model_is_nothing_of_the_runs(model: str, before: list[tuple[str, str]]) -> None:
    story = tell(init(MODEL), *before, refused(model), refused(model, "team_model_access_denied", 403))
    assert story.last is None


@pytest.mark.parametrize(
    "model", [MODEL, f"{MODEL}-20260801", f"anthropic/{MODEL}", f"us.anthropic.{MODEL}-20260801-v1:0"]
)
def test_k4_the_runs_own_model_is_known_by_any_of_its_names(model: str) -> None:
    assert tell(init(f"{MODEL}[1m]"), refused(model)).error_class == "model"


def test_k4_a_refused_model_that_is_not_named_is_the_runs_own_until_its_model_has_spoken() -> None:
    unnamed = answered(403, gateway("You have no access to this model", "forbidden"))
    assert tell(init(), unnamed).error_class == "model"
    assert tell(init(), spoken(), unnamed).last is None


def test_k4_a_later_failure_is_not_classed_by_a_model_that_a_side_request_was_refused() -> None:
    aside = (init(MODEL), spoken(MODEL), refused("claude-haiku-4-5"))
    not_logged_in = "Not logged in · Please run /login"

    assert tell(*aside, failed_result("something new")).error_class == "error"
    assert tell(*aside, answered(529, own("overloaded_error", "Overloaded"))).error_class == "overloaded"
    assert (
        tell(*aside, synthetic(not_logged_in, "authentication_failed"), failed_result(not_logged_in)).error_class
        == "auth"
    )
    assert tell(*aside, synthetic("API Error: Rate limit reached", "rate_limit")).error_class == "overloaded"


def test_k4_a_sub_agents_frames_are_not_the_runs__2_1_332() -> None:
    text = "Failed to authenticate. API Error: 401 key not allowed to access model. Tried to access claude-haiku-5-5"
    fields = {"parent_tool_use_id": "toolu_1", "agent_id": "ac19", "api_error_type": "key_model_access_denied"}
    story = tell(
        init(MODEL), spoken(MODEL), refused("claude-haiku-5-5"), synthetic(text, "authentication_failed", **fields)
    )
    assert story.last is None


def test_k4_a_gateways_own_name_for_the_runs_model_is_understood_at_the_end() -> None:
    text = "Failed to authenticate. API Error: 401 key not allowed to access model. Tried to access internal-5"
    fields = {"api_error_status": 401, "api_error_type": "key_model_access_denied"}
    story = tell(
        init(MODEL),
        refused("internal-5"),
        retry(401, "authentication_failed"),
        synthetic(text, "authentication_failed", **fields),
    )
    assert story.error_class == "model"
    assert story.evidence is None


def test_k4_a_budget_of_one_model_is_known_by_a_frame_that_says_only_that_there_was_a_limit__2_1_30() -> None:
    text = "API Error: Rate limit reached"
    for model in (MODEL, "internal-5"):
        told = answered(429, gateway(f"Virtual Key: 97, exceeded budget for model={model}", "budget_exceeded", "400"))
        story = tell(init(MODEL), told, synthetic(text, "rate_limit"), failed_result(text))
        assert story.error_class == "model"
        assert story.evidence is None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            401,
            gateway("Authentication Error, Invalid proxy server token passed. key=abc, not found in db.", "auth_error"),
        ),
        (401, gateway("Authentication Error - Expired Key. Key Expiry time 2026-09-01", "expired_key", "401")),
        (401, gateway(f"Invalid API key for model {MODEL}", None, "invalid_api_key")),
        (401, gateway("Key is blocked. Update via `/key/unblock` if you're an admin.", "auth_error", "401")),
        (
            401,
            gateway(
                f"litellm.AuthenticationError: AnthropicException - "
                f"{json.dumps(own('authentication_error', 'invalid x-api-key'))}{LITELLM_TRAILER}",
                None,
                "401",
            ),
        ),
        (403, own("permission_error", "OAuth token has been revoked. Please obtain a new token." + LITELLM_TRAILER)),
    ],
)
def test_k4_a_refused_token_stays_one_whatever_model_is_named_beside_it(status: int, body: dict[str, Any]) -> None:
    story = tell(init(), answered(status, body))
    assert story.evidence is not None
    assert (story.error_class, story.evidence.rule.trouble) == ("auth", TokenTrouble.REFUSED)


# -- sentences that carry an answer


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"429 {json.dumps(gateway(BUDGET, 'budget_exceeded', '429'))}", "billing"),
        (f"Error: 429 {json.dumps(gateway(BUDGET, 'budget_exceeded', '429'))}", "billing"),
        ("authentication_error: OAuth token has expired. Please obtain a new token.", "auth"),
        ("API Error: 401 authentication_error: OAuth token has expired.", "auth"),
        ("not_found_error: model: claude-x", "model"),
        ("overloaded_error: Overloaded", "overloaded"),
        ("Please run /login API Error: 403 The socket connection was closed unexpectedly.", "network"),
        ("Please run /login · API Error: 403 The socket connection was closed unexpectedly.", "network"),
        ("Failed to authenticate. API Error: 401 read ECONNRESET", "network"),
        (f"Please run /login API Error: 400 {json.dumps(own('invalid_request_error', EXTRA_USAGE))}", "billing"),
        ("429 tests failed", "error"),
        ("401 of 500 files are done", "error"),
        ('500 {"a": 1}', "error"),
    ],
)
def test_an_answer_that_a_sentence_carries_is_read_first(text: str, wanted: str) -> None:
    story = tell(failed_result(text))
    assert story.error_class == wanted
    if story.evidence is not None:
        assert not story.evidence.condemns


# -- K11: the CLI's other words and sentences


INCOMPLETE = "The response above may be incomplete."
SAID: dict[str, tuple[str, dict[str, Any]]] = {
    "API Error: Stream idle timeout - partial response received": ("network", {}),
    "API Error: Stream idle timeout - no chunks received": ("network", {}),
    "API Error: Stream ended without receiving any events": ("network", {}),
    f"API Error: Response stalled mid-stream. {INCOMPLETE}": ("network", {"error": "server_error"}),
    f"API Error: Connection closed mid-response. {INCOMPLETE}": ("network", {"error": "server_error"}),
    "API Error: Connection lost before a response was produced. Try again.": ("network", {"error": "server_error"}),
    "API Error: The response stopped arriving.": (
        "network",
        {"error": "server_error", "api_error": "stream_idle_timeout"},
    ),
    "API Error: Part of the response never arrived.": ("network", {"error": "server_error"}),
    "API Error: The response could not be read (ZlibError). Try again.": ("network", {}),
    "API Error: request ended without sending any chunks": ("network", {}),
    "API Error: terminated": ("network", {}),
    f"API Error: Server error mid-response. {INCOMPLETE}": ("upstream", {"error": "server_error"}),
    "API Error: The response stream was malformed.": ("upstream", {"error": "server_error"}),
    "API Error: Unexpected token '<', \"<!DOCTYPE \"... is not valid JSON": ("upstream", {}),
    "API Error: Claude's response exceeded the 128000 output token maximum.": (
        "max_output",
        {"error": "max_output_tokens"},
    ),
    "API Error: Claude's response exceeded the 32000 output token maximum.": ("max_output", {}),
    "API Error: Claude Code is unable to respond to this request, which appears to violate our Usage Policy.": (
        "invalid_request",
        {"error": "invalid_request"},
    ),
    "API Error: Sonnet 5.5's safeguards flagged this message (\u2026).\n\nLearn more: \u2026": (
        "invalid_request",
        {"error": "invalid_request"},
    ),
    "API Error: Claude can't help with this. Start a new session to continue.": (
        "invalid_request",
        {"error": "invalid_request"},
    ),
    "API Error: Could not load AWS credentials \u00b7 x. Check or refresh them.": (
        "error",
        {"error": "cloud_credential_error"},
    ),
    "API Error: The model ended its turn without a word": ("lost_result", {"api_error": "empty_completion"}),
    "API Error: 403 Forbidden": (
        "upstream",
        {"error": "invalid_request", "api_error": "network_edge_blocked", "api_error_status": 403},
    ),
    "Fable 5 requires usage credits. Switch to another model to continue.": (
        "model",
        {"error": "rate_limit", "api_error": "model_requires_usage_credits", "api_error_status": 429},
    ),
    "API Error": ("error", {}),
}


@pytest.mark.parametrize("text", SAID)
def test_k11_every_word_and_sentence_of_the_cli_has_its_class(text: str) -> None:
    wanted, fields = SAID[text]
    fields = {"error": "unknown"} | fields
    status = fields.get("api_error_status")
    result = failed_result(text, api_error_status=status, api_error=fields.get("api_error"))
    for story in (tell(synthetic(text, **fields)), tell(synthetic(text, **fields), result)):
        assert story.error_class == wanted
        assert story.evidence is None
    if wanted not in {"error", "model"} and status is None:
        assert tell(result).error_class == wanted, "the last frame alone says it, too"


WORDS = {
    "authentication_failed": "auth",
    "oauth_org_not_allowed": "auth",
    "account_on_hold": "auth",
    "verification_required": "auth",
    "billing_error": "billing",
    "rate_limit": "overloaded",
    "overloaded": "overloaded",
    "invalid_request": "invalid_request",
    "model_not_found": "model",
    "server_error": "upstream",
    "unknown": "error",
    "max_output_tokens": "max_output",
    "cloud_credential_error": "error",
}
"""Every value that Claude Code 2.1.30 to 2.1.332 has for ``error``, and its class where nothing else is known."""


@pytest.mark.parametrize("word", WORDS)
def test_k11_every_value_of_error_in_the_binaries_has_a_class(word: str) -> None:
    assert tell(synthetic("API Error", word)).error_class == WORDS[word]


DETAILS: dict[str, tuple[str, str]] = {
    "max_output_tokens": ("max_output_tokens", "max_output"),
    **dict.fromkeys(
        (
            "dlp_request_denied",
            "claude_code_version_too_old",
            "safety_monitor_blocked",
            "hook_denied",
            "effort_requires_thinking",
            "advisor_incompatible",
            "tool_history_mismatch",
            "autocompact_thrashing",
            "pdf_too_large",
            "pdf_password_protected",
            "media_removed",
            "field_not_granted",
            "message_over_context_limit",
            "invalid_credential_header",
        ),
        ("invalid_request", "invalid_request"),
    ),
    **dict.fromkeys(
        (
            "no_response",
            "tls_untrusted_ca",
            "tls_cert_signature_failure",
            "connection_failed",
            "stream_idle_timeout",
            "computer_slept",
        ),
        ("server_error", "network"),
    ),
    "gateway_content_type": ("server_error", "upstream"),
    "network_edge_blocked": ("invalid_request", "upstream"),
    "api_key_auth_disabled": ("invalid_request", "auth"),
    "org_disabled_credential": ("invalid_request", "auth"),
    "provider_credentials": ("unknown", "error"),
    **dict.fromkeys(
        ("stored_login_refused", "oauth_refresh_store_refused", "named_profile_unusable"), ("invalid_request", "error")
    ),
    **dict.fromkeys(("gateway_signin_required", "gateway_session_expired"), ("unknown", "error")),
    **dict.fromkeys(("unattended_start_limit", "unattended_start_unconfirmed"), ("unknown", "error")),
    "usage_limit_reached": ("rate_limit", "rate_limit"),
    "long_context_credits_required": ("rate_limit", "invalid_request"),
    **dict.fromkeys(
        (
            "model_requires_usage_credits",
            "consent_unanswered",
            "no_allowed_fallback",
            "model_substitution_disabled",
        ),
        ("rate_limit", "model"),
    ),
    **dict.fromkeys(("empty_completion", "malformed_tool_use_exhausted"), ("unknown", "lost_result")),
}
"""Every value that Claude Code 2.1.332 has for ``api_error``, with a word it comes with, and its class."""


@pytest.mark.parametrize("detail", DETAILS)
def test_k11_every_value_of_api_error_in_the_binaries_has_a_class(detail: str) -> None:
    word, wanted = DETAILS[detail]
    status = 429 if word == "rate_limit" else None
    assert tell(synthetic("API Error: \u2026", word, api_error=detail, api_error_status=status)).error_class == wanted


# -- K12: a 404 that is no model's


@pytest.mark.parametrize(
    "body",
    [
        {"detail": "Not Found"},
        "<html><head><title>404 Not Found</title></head></html>",
        "404 page not found",
        "status code (no body)",
        {"error": "Not Found", "path": "/v1/messages", "status": 404},
        gateway("Invalid URL (POST /v1/v1/messages)", "invalid_request_error"),
        own("not_found_error", "Not Found"),
    ],
)
def test_k12_a_404_of_another_path_is_the_servers_and_names_the_base_url(body: object) -> None:
    text = f"There's an issue with the selected model ({MODEL}). It may not exist or you may not have access to it."
    kind = body["error"]["type"] if isinstance(body, dict) and body.get("type") == "error" else None
    older = f"API Error: 404 {body if isinstance(body, str) else json.dumps(body)}"
    for said, fields in ((text, {"api_error_status": 404, "api_error_type": kind}), (text, {}), (older, {})):
        word = "model_not_found" if said is text else "unknown"
        story = tell(init(), answered(404, body), synthetic(said, word, **fields), failed_result(said, **fields))
        assert story.error_class == "upstream"
        ended = verdict(Ending(exit_code=1, result=Result(True, "success", said), last_error=story.last))
        assert "ANTHROPIC_BASE_URL" in (ended.detail or "")


@pytest.mark.parametrize(
    "body",
    [
        own("not_found_error", f"model: {MODEL}"),
        gateway(f"The model `{MODEL}` does not exist or you do not have access to it.", None, "model_not_found"),
        gateway(f"No endpoints found for anthropic/{MODEL}.", code=404),
        {"error": f"model '{MODEL}' not found, try pulling it first"},
    ],
)
def test_k12_a_404_that_names_the_model_is_its(body: dict[str, Any]) -> None:
    assert tell(init(), answered(404, body)).error_class == "model"


# -- bodies of any form


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"error":{"message":"m","type":"t","param":null,"code":"c"}}', ("t", "c", None, "m")),
        ('{"error":{"code":402,"message":"m"}}', (None, None, 402, "m")),
        ('{"error":{"code":"429","message":"m"}}', (None, None, 429, "m")),
        ('{"error":{"code":"1113","message":"m"}}', (None, "1113", None, "m")),
        ('{"error":"a sentence"}', (None, None, None, "a sentence")),
        ('{"error":"insufficient_quota"}', (None, "insufficient_quota", None, "insufficient_quota")),
        ('{"error":"access_denied","message":"m"}', (None, "access_denied", None, "m")),
        ('{"detail":"m"}', (None, None, None, "m")),
        ('{"detail":{"error":{"message":"m","type":"t"}}}', ("t", None, None, "m")),
        ('{"error":{"type":"t"},"message":"m"}', ("t", None, None, "m")),
        ('{"message":"m","code":"c"}', (None, "c", None, "m")),
        ('{"type":"about:blank","title":"m","status":402}', (None, None, None, "m")),
        ('[{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}]', (None, None, 429, "m")),
        ('{"error":{"error":{"type":"t","message":"m"}}}', ("t", None, None, "m")),
        ('{"error":{"type":"t","message":"m","details":{"error_code":"c"}}}', ("t", "c", None, "m")),
        ('{"error":{"type":"t","message":"cut of', ("t", None, None, "cut of")),
        ('{"error":{"type":"t","message":"m"}} and more', ("t", None, None, "m")),
    ],
)
def test_an_error_body_of_any_form_is_read(text: str, wanted: tuple[object, ...]) -> None:
    body = read_body(text)
    assert body is not None
    assert (body.type, body.code, body.status, body.message) == wanted


@pytest.mark.parametrize(
    "text", ["", "nothing", "{", "[]", "[1]", "{}", '{"a":1}', "{" * 5000, '{"error":{"type":7}}', "[" * 5000]
)
def test_what_is_no_error_body_is_none(text: str) -> None:
    assert read_body(text) is None


def test_a_limit_that_is_told_by_a_frame_does_not_make_a_limit_of_an_unpaid_account() -> None:
    limit = frame(type="rate_limit_event", rate_limit_info={"status": "rejected", "resetsAt": 1_800_000_000})
    story = tell(limit, answered(429, gateway(BUDGET, "budget_exceeded", "429")))
    assert story.evidence is not None
    assert story.evidence.rule.trouble is TokenTrouble.BILLING
