from __future__ import annotations

import pytest

from agent_runtime.claude.credential_env import (
    BASE_URL_VARIABLE,
    CREDENTIALS,
    HEADERS_VARIABLE,
    MODES,
    PROVIDERS,
    PROXIES,
    SERVERS,
    cleaned,
    is_rival,
    neutral_settings,
    without_credentials,
)
from agent_runtime.model.tokens import API_KEY_VARIABLE, AUTH_TOKEN_VARIABLE, OAUTH_VARIABLE, TokenKind

OAUTH = {OAUTH_VARIABLE: "sk-ant-oat01-delivered"}
API_KEY = {API_KEY_VARIABLE: "sk-ant-api03-delivered"}


def pinned(kind: TokenKind, delivered: dict[str, str] | None, **inherited: str) -> dict[str, str]:
    settings = neutral_settings(kind, "http://127.0.0.1:1", delivered=delivered, inherited=inherited)
    env = settings["env"]
    assert isinstance(env, dict)
    return env


@pytest.mark.parametrize("name", [*CREDENTIALS, *SERVERS, *PROVIDERS, *MODES])
def test_every_rival_name_is_removed_from_the_childs_environment(name: str) -> None:
    assert is_rival(name)
    assert cleaned({name: "x", "PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "name",
    [
        "CLAUDE_CODE_USE_SOMETHING_NEW",
        "CLAUDE_CODE_SKIP_SOMETHING_AUTH",
        "claude_code_use_bedrock",
        "anthropic_api_key",
    ],
)
def test_switches_are_removed_by_their_prefix_and_in_any_case(name: str) -> None:
    assert cleaned({name: "1"}) == {}


@pytest.mark.parametrize(
    "name",
    [
        BASE_URL_VARIABLE,
        *PROXIES,
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_PROFILE",
        "AWS_REGION",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GITHUB_TOKEN",
        "NODE_EXTRA_CA_CERTS",
        "CLAUDE_CONFIG_DIR",
        "ANTHROPIC_MODEL",
        "CLAUDE_CODE_SKIP_PROMPT_HISTORY",
    ],
)
def test_what_tools_and_the_network_need_stays(name: str) -> None:
    assert cleaned({name: "x"}) == {name: "x"}


def test_of_the_custom_headers_only_those_that_carry_a_credential_are_removed() -> None:
    headers = "X-Team: blue\nauthorization: Bearer evil\n X-API-Key : evil\nX-Trace: 1"
    assert without_credentials(headers) == "X-Team: blue\nX-Trace: 1"
    assert cleaned({HEADERS_VARIABLE: headers}) == {HEADERS_VARIABLE: "X-Team: blue\nX-Trace: 1"}


def test_settings_say_again_what_was_delivered_and_blank_its_rivals() -> None:
    env = pinned(TokenKind.OAUTH, OAUTH)

    assert env[OAUTH_VARIABLE] == OAUTH[OAUTH_VARIABLE]
    assert env[BASE_URL_VARIABLE] == "http://127.0.0.1:1"
    assert all(env[name] == "" for name in (API_KEY_VARIABLE, AUTH_TOKEN_VARIABLE, HEADERS_VARIABLE, *PROVIDERS))


def test_with_an_api_key_both_headers_carry_it_and_an_oauth_token_is_blanked() -> None:
    env = pinned(TokenKind.API_KEY, API_KEY)
    assert env[API_KEY_VARIABLE] == env[AUTH_TOKEN_VARIABLE] == API_KEY[API_KEY_VARIABLE]
    assert env[OAUTH_VARIABLE] == ""


def test_a_token_in_the_credentials_file_must_not_be_beaten_by_a_variable() -> None:
    env = pinned(TokenKind.OAUTH, {})
    assert (env[OAUTH_VARIABLE], env[API_KEY_VARIABLE], env[AUTH_TOKEN_VARIABLE]) == ("", "", "")


def test_settings_hold_no_token_where_none_is_named() -> None:
    settings = neutral_settings(TokenKind.OAUTH, None)
    env = settings["env"]
    assert isinstance(env, dict)
    assert OAUTH_VARIABLE not in env
    assert not any(env.values())
    assert not set(PROXIES) & set(env)
    assert settings["apiKeyHelper"] == ""


def test_proxies_and_headers_come_from_the_supervisor_only() -> None:
    env = pinned(TokenKind.OAUTH, OAUTH, HTTPS_PROXY="http://proxy:1", ANTHROPIC_CUSTOM_HEADERS="X-Team: blue")
    assert env["HTTPS_PROXY"] == "http://proxy:1"
    assert env["HTTP_PROXY"] == ""
    assert env[HEADERS_VARIABLE] == "X-Team: blue"
