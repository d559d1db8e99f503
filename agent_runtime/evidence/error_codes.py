"""
The types and codes by which an API or a gateway says what is wrong with an account, whatever the HTTP status.

A gateway has them in ``error.type``, ``error.code`` or both; one table serves for either.
"""

from __future__ import annotations

BLOCKED_CODES = frozenset(
    {
        # The API itself, ``error.details.error_code`` and its OAuth server; source: Claude Code 2.1.332.
        "account_on_hold",
        "verification_required",
        # OpenAI's codes, which gateways pass on; source: OpenAI's list of error codes.
        "account_deactivated",
        "organization_deactivated",
        # Kimi Code, "Access terminated"; source: its error reference.
        "access_terminated_error",
    }
)
"""The account is on hold, disabled, or must do something before it may be used."""

BILLING_CODES = frozenset(
    {
        # The API itself; source: its documentation of errors, and Claude Code 2.1.332 for the code.
        "billing_error",
        "extra_usage_out_of_credits",
        # LiteLLM, with 400 and 429, older versions with 401; source: ``ProxyErrorTypes`` in litellm/proxy/_types.py.
        "budget_exceeded",
        # OpenAI's, with 429; source: its list of error codes and Microsoft's Dev Proxy documentation of them.
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        # one-api and new-api, with 403 and 402; source: types/error.go of QuantumNous/new-api.
        "insufficient_user_quota",
        "pre_consume_token_quota_failed",
        # OpenRouter, beside 402; source: its documentation of errors.
        "payment_required",
        "insufficient_credits",
        # DeepSeek and others with an endpoint in the API's form.
        "insufficient_balance",
        # Moonshot, with 429 and 403; source: its error reference.
        "exceeded_current_quota_error",
    }
)
"""The account, team or key cannot pay: no credit, or a budget that is spent."""

MODEL_CODES = frozenset(
    {
        # LiteLLM, with 401 and 403; source: ``ProxyErrorTypes`` in litellm/proxy/_types.py.
        "key_model_access_denied",
        "team_model_access_denied",
        "user_model_access_denied",
        "org_model_access_denied",
        "project_model_access_denied",
        # OpenAI's, with 403 and 404, and new-api's, with 503; source: OpenAI's list, types/error.go of new-api.
        "model_not_found",
        # The API itself; source: Claude Code 2.1.332.
        "model_access_suspended",
    }
)
"""It is this one model that is not to be had, by this key or at all."""

GATEWAY_TYPES = frozenset(
    {"one_api_error", "new_api_error", "upstream_error", "openai_error", "claude_error", "auth_error"}
)
"""What gateways put in ``error.type`` of whatever happened; source: as for their codes above."""
