from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent_runtime.claude import invocation
from agent_runtime.claude.credential_env import (
    BASE_URL_VARIABLE,
    CREDENTIALS,
    HEADERS_VARIABLE,
    MODES,
    PROVIDERS,
    PROXIES,
    SERVERS,
    check_task_names,
    is_rival,
    neutral_settings,
    without_credentials,
    without_rivals,
)
from agent_runtime.errors import InvalidRequest
from agent_runtime.model.tokens import API_KEY_VARIABLE, AUTH_TOKEN_VARIABLE, OAUTH_VARIABLE

OAUTH = {OAUTH_VARIABLE: "sk-ant-oat01-delivered"}
API_KEY = {API_KEY_VARIABLE: "sk-ant-api03-delivered"}


def pinned(delivered: dict[str, str], **inherited: str) -> dict[str, str]:
    env = neutral_settings("http://127.0.0.1:1", delivered=delivered, inherited=inherited)["env"]
    assert isinstance(env, dict)
    return env


@pytest.mark.parametrize("name", [*CREDENTIALS, *SERVERS, *PROVIDERS, *MODES])
def test_every_rival_name_is_removed_from_the_childs_environment(name: str) -> None:
    assert is_rival(name)
    assert without_rivals({name: "x", "PATH": "/bin"}) == {"PATH": "/bin"}


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
    assert without_rivals({name: "1"}) == {}


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
    assert without_rivals({name: "x"}) == {name: "x"}


def test_of_the_custom_headers_only_those_that_carry_a_credential_are_removed() -> None:
    headers = "X-Team: blue\nauthorization: Bearer evil\n X-API-Key : evil\nX-Trace: 1"
    assert without_credentials(headers) == "X-Team: blue\nX-Trace: 1"
    assert without_rivals({HEADERS_VARIABLE: headers}) == {HEADERS_VARIABLE: "X-Team: blue\nX-Trace: 1"}


def test_settings_say_again_what_was_delivered_and_blank_its_rivals() -> None:
    env = pinned(OAUTH)

    assert env[OAUTH_VARIABLE] == OAUTH[OAUTH_VARIABLE]
    assert env[BASE_URL_VARIABLE] == "http://127.0.0.1:1"
    assert all(env[name] == "" for name in (API_KEY_VARIABLE, HEADERS_VARIABLE, *SERVERS, *PROVIDERS, *MODES))


def test_an_api_key_is_read_from_its_file_and_stands_in_no_variable(tmp_path: Path) -> None:
    file = tmp_path / "it's $HOME `x`"
    file.write_text("sk-ant-api03-delivered\n")
    settings = neutral_settings(None, delivered=API_KEY, inherited={}, key_file=file)
    env, helper = settings["env"], settings["apiKeyHelper"]

    assert isinstance(env, dict)
    assert env[API_KEY_VARIABLE] == env[AUTH_TOKEN_VARIABLE] == env[OAUTH_VARIABLE] == ""
    assert "sk-ant" not in str(settings)
    # With no PATH at all: nothing that the PATH of a settings file names takes part.
    printed = subprocess.run(["/bin/sh", "-c", str(helper)], env={"PATH": ""}, capture_output=True, check=True)
    assert printed.stdout == b"sk-ant-api03-delivered"


def test_a_token_in_the_credentials_file_must_not_be_beaten_by_a_variable() -> None:
    env = pinned({})
    assert (env[OAUTH_VARIABLE], env[API_KEY_VARIABLE], env[AUTH_TOKEN_VARIABLE]) == ("", "", "")


def test_proxies_and_headers_come_from_the_supervisor_only() -> None:
    env = pinned(OAUTH, HTTPS_PROXY="http://proxy:1", ANTHROPIC_CUSTOM_HEADERS="X-Team: blue")
    assert env["HTTPS_PROXY"] == "http://proxy:1"
    assert env["HTTP_PROXY"] == env["npm_config_https_proxy"] == env["NPM_CONFIG_PROXY"] == ""
    assert env[HEADERS_VARIABLE] == "X-Team: blue"


def test_a_name_that_is_removed_from_the_environment_does_not_come_back_by_the_settings() -> None:
    named = dict.fromkeys((*CREDENTIALS, *SERVERS, *PROVIDERS, *MODES), "inherited")
    assert "inherited" not in pinned(OAUTH, **named).values()


def test_what_is_pinned_leaves_the_agents_tools_their_certificates() -> None:
    count = [sys.executable, "-c", "import ssl; print(ssl.create_default_context().cert_store_stats())"]
    environs = [{"PATH": os.environ["PATH"]} | more for more in ({}, pinned(OAUTH))]
    before, after = (subprocess.run(count, env=environ, capture_output=True, check=True).stdout for environ in environs)
    assert after == before


@pytest.mark.parametrize("name", ["CLAUDE_CONFIG_DIR", "CLAUDE_SECURESTORAGE_CONFIG_DIR"])
def test_the_credentials_file_is_where_the_child_was_told_and_nowhere_else(name: str) -> None:
    assert pinned({}, CLAUDE_CONFIG_DIR="/config")[name] == "/config"
    assert name not in pinned({}), "an empty one is a place of its own"


def test_no_task_sets_a_name_that_the_supervisor_decides_on() -> None:
    judged = json.loads((Path(__file__).parents[1] / "data" / "judged_cli.json").read_text())["variables"]
    settings = pinned(OAUTH, CLAUDE_CONFIG_DIR="/c")
    fixed = invocation.environment({}, execution_id="x", config_dir=Path("/c"), delivered={}, as_root=True)
    for name in {*judged, *settings, *fixed}:
        with pytest.raises(InvalidRequest, match=r"^env: a task may not set "):
            check_task_names([name])


@pytest.mark.parametrize(
    "name",
    [
        *("ld_library_path", "LD_AUDIT", "NODE_PATH", "BUN_JSC_useJIT", "claude_code_use_bedrock", "Agent_Runtime_X"),
        *("CLAUDE_CODE_SKIP_VERTEX_AUTH", "npm_config_https_proxy", "ALL_PROXY", "SSLKEYLOGFILE", "OPENSSL_CONF"),
        *("GLIBC_TUNABLES", "HOSTALIASES", "XDG_CONFIG_HOME", "DEBUG", "SESSION_INGRESS_URL", "TRACEPARENT", "SHELL"),
    ],
)
def test_names_of_the_same_kind_are_refused_too(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        check_task_names(["FINE", name])


def test_names_that_only_tools_read_may_be_set() -> None:
    fine = "GIT_SSH_COMMAND PYTHONPATH AWS_ACCESS_KEY_ID GITHUB_TOKEN DATABASE_URL TMPDIR TZ LANG path env home NODEJS"
    check_task_names([*fine.split(), "BUNDLE", "PGPASSWORD", "CI", "LDAP_URL", "_"])
