"""
The types, codes and words by which an API, a gateway or the CLI names an error, whatever the HTTP status.

A gateway has its code in ``error.type``, ``error.code`` or both; one table serves for either.
"""

from __future__ import annotations

from itertools import chain


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _union(words_by_source: dict[str, str]) -> frozenset[str]:
    return frozenset(chain.from_iterable(words.split() for words in words_by_source.values()))


BLOCKED = _union(
    {
        "the API's ``error.details.error_code`` and OAuth server (2.1.332)": "account_on_hold verification_required",
        "OpenAI's list, which gateways pass on": "account_deactivated organization_deactivated",
        "Kimi Code's error reference": "access_terminated_error",
    }
)
"""The account is on hold, disabled, or must do something before it may be used."""

BILLING = _union(
    {
        "the API's documentation of errors, and 2.1.332": "billing_error extra_usage_out_of_credits",
        "LiteLLM's ProxyErrorTypes, with 400 and 429, older versions with 401": "budget_exceeded",
        "OpenAI's list and Microsoft's Dev Proxy, with 429": "insufficient_quota billing_hard_limit_reached"
        " billing_not_active credit_balance_exhausted organization_spend_limit_exceeded project_spend_limit_exceeded",
        "types/error.go of new-api, with 402 and 403": "insufficient_user_quota pre_consume_token_quota_failed",
        "OpenRouter's documentation of errors, with 402": "payment_required insufficient_credits",
        "DeepSeek and others with an endpoint in the API's form": "insufficient_balance",
        "Moonshot's error reference, with 403 and 429": "exceeded_current_quota_error",
    }
)
"""The account, team or key cannot pay: it has no credit, or its budget is spent."""

MODEL = _union(
    {
        "LiteLLM's ProxyErrorTypes, with 401 and 403": "key_model_access_denied team_model_access_denied"
        " user_model_access_denied org_model_access_denied project_model_access_denied",
        "OpenAI's list, with 403 and 404; types/error.go of new-api, with 503": "model_not_found",
        "the API (2.1.332)": "model_access_suspended",
    }
)
"""One model is not available, to this key or to anybody."""

GATEWAY_TYPES = _words("one_api_error new_api_error upstream_error openai_error claude_error auth_error")
"""The ``error.type`` that gateways give to any error; sources as for their codes above."""

# The CLI's own words (``error`` and ``api_error`` of a frame). Source: Claude Code 2.1.330.
NETWORK_WORDS = _words(
    "connection_failed tls_untrusted_ca tls_cert_signature_failure no_response stream_idle_timeout computer_slept"
)
FIREWALL_WORDS = _words("network_edge_blocked gateway_content_type")
NO_ANSWER_WORDS = _words("empty_completion malformed_tool_use_exhausted")
LONG_CONTEXT_WORDS = _words("long_context_credits_required")
MODEL_CREDITS_WORDS = _words(
    "model_requires_usage_credits consent_unanswered no_allowed_fallback model_substitution_disabled"
)
LOGIN_WORDS = _words(
    "cloud_credential_error stored_login_refused oauth_refresh_store_refused named_profile_unusable"
    " gateway_signin_required gateway_session_expired unattended_start_limit unattended_start_unconfirmed"
)
"""Failures of credentials and logins other than the delivered token, which no child is given."""
BLOCKED_WORDS = _words("account_on_hold verification_required org_disabled_credential")
