"""
The types, codes and words by which an API, a gateway or the CLI names an error, whatever the HTTP status.

A gateway has its code in ``error.type``, ``error.code`` or both; one table serves for either.
"""

from __future__ import annotations


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


BLOCKED = _words(
    "account_on_hold verification_required"  # the API's ``error.details.error_code`` and OAuth server (2.1.332)
    " account_deactivated organization_deactivated"  # OpenAI's list, which gateways pass on
    " access_terminated_error"  # Kimi Code's error reference
)
"""The account is on hold, disabled, or must do something before it may be used."""

BILLING = _words(
    "billing_error extra_usage_out_of_credits"  # the API's documentation of errors, and 2.1.332
    " budget_exceeded"  # LiteLLM's ProxyErrorTypes, with 400 and 429, older versions with 401
    # OpenAI's list and Microsoft's Dev Proxy, with 429
    " insufficient_quota billing_hard_limit_reached billing_not_active credit_balance_exhausted"
    " organization_spend_limit_exceeded project_spend_limit_exceeded"
    " insufficient_user_quota pre_consume_token_quota_failed"  # types/error.go of new-api, with 402 and 403
    " payment_required insufficient_credits"  # OpenRouter's documentation of errors, with 402
    " insufficient_balance"  # DeepSeek and others with an endpoint in the API's form
    " exceeded_current_quota_error"  # Moonshot's error reference, with 403 and 429
)
"""The account, team or key cannot pay: it has no credit, or its budget is spent."""

MODEL = _words(
    # LiteLLM's ProxyErrorTypes, with 401 and 403
    "key_model_access_denied team_model_access_denied user_model_access_denied org_model_access_denied"
    " project_model_access_denied"
    " model_not_found"  # OpenAI's list, with 403 and 404; types/error.go of new-api, with 503
    " model_access_suspended"  # the API (2.1.332)
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
