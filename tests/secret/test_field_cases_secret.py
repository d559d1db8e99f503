"""
Field cases of kind K5 on a real supervisor: near misses in the secret file, and backends that write no file.

The sources are reports of people who run Claude Code headless; what a content may be, case by case, is in
:mod:`tests.secret.test_secret_content`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from agent_runtime.delivery.credentials_file import FILE_NAME
from agent_runtime.errors import RESERVED_WORDS
from agent_runtime.model.tokens import Token
from tests.support.secret_mount import SecretMount
from tests.support.supervised import API_KEY, DEADLINE_SECONDS, NEW, OLD, Supervised, eventually, supervised
from tests.system.test_switching import PLAIN, PROMPT, Work, switching

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_runtime.standins.messages_api import MessagesApi

KEEP = ("--token-withdraw-after", "600")
RELOAD = "/api/credentials/reload-token"
LATE = (str(Path(__file__).parents[1] / "support/late_supervisor.py"),)


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def token(running: Supervised) -> dict[str, Any]:
    told: dict[str, Any] = running.get("/api/token")
    return told


def with_error(running: Supervised, says: str) -> dict[str, Any]:
    """Wait until the secret file is said to be wrong in these words, and return what is told of the token."""
    told: dict[str, Any] = eventually(lambda: (now := token(running)) and says in str(now["error"]) and now)
    return told


def of_generation(running: Supervised, number: int) -> dict[str, Any]:
    """Wait until this generation is in use, and return what is told of the token."""
    told: dict[str, Any] = eventually(lambda: (now := token(running))["generation"] == number and now)
    return told


def tokens_seen(api: MessagesApi) -> set[str | None]:
    return {request.fingerprint for request in api.requests}


NEAR_MISSES = {
    "a template": ("${CLAUDE_CODE_OAUTH_TOKEN}\n", "a template"),
    "a template behind a name": (f"CLAUDE_CODE_OAUTH_TOKEN={'{{'} token {'}}'}\n", "a template"),
    "a reference": ("op://agents/claude/token\n", "a reference"),
    "a path": ("/run/secrets/claude/token\n", "the name of a file"),
    "a refresh token": (f"sk-ant-ort01-{'r' * 95}\n", "a refresh token"),
    "base64 of an admin key": (in_base64(f"sk-ant-admin01-{'a' * 90}"), "an admin key"),
    "a placeholder": ("your-token-here\n", "a placeholder"),
    "a placeholder behind the prefix": ("sk-ant-oat01-xxxxxxxxxxxxxxxxxxxxxxxx\n", "a placeholder"),
    "half of the quotes": (f'"{NEW}\n', "characters"),
    "an unknown variable": (f"MY_TOKEN={NEW}\n", "an assignment"),
    "an env file": (f"# a comment\nCLAUDE_CODE_OAUTH_TOKEN={NEW}\n", "several lines"),
    "a header": (f"Bearer {NEW}\n", "Bearer"),
    "two tokens": (f"{OLD}{NEW}\n", "more than one token"),
    "a list": (f"{OLD},{NEW}\n", "commas"),
    "short": ("sk-ant-oat01-\n", "the beginning"),
    "JSON in JSON": (json.dumps({"token": json.dumps({"token": NEW})}), "JSON inside"),
    "JSON with two tokens": (f'{{"token": "{OLD}", "token": "{NEW}"}}', "two tokens"),
}


@pytest.mark.slow
def test_k5_a_near_miss_replaces_no_good_token_and_says_what_it_is(tmp_path: Path, api: MessagesApi, url: str) -> None:
    with supervised(tmp_path, api_url=url, flags=KEEP) as running:
        secret = SecretMount(running.token_file.parent)
        assert token(running)["generation"] == 1
        for name, (raw, says) in NEAR_MISSES.items():
            secret.publish(raw)
            told = with_error(running, says)
            assert (told["state"], told["generation"], told["fingerprint"]) == ("ready", 1, Token(OLD).fingerprint), (
                name
            )
            assert not any(word in told["error"].lower() for word in RESERVED_WORDS), name
            answer = running.post(PLAIN)
            assert (answer.status_code, answer.json()["metadata"]["token_generation"]) == (200, 1), name
            assert running.client.get("/readyz").status_code == 200

        secret.publish(f"{NEW}\n")
        told = eventually(lambda: (now := token(running)) and now["generation"] == 2 and now)
        assert (told["state"], told["error"], told["fingerprint"]) == ("ready", None, Token(NEW).fingerprint)
        assert running.post(PLAIN).json()["metadata"]["token_generation"] == 2
    assert tokens_seen(api) == {Token(OLD).fingerprint, Token(NEW).fingerprint}


def test_k5_a_near_miss_that_stays_withdraws_the_token_with_its_reason(tmp_path: Path, url: str) -> None:
    with supervised(tmp_path, api_url=url, flags=("--token-withdraw-after", "0.3")) as running:
        SecretMount(running.token_file.parent).publish("${CLAUDE_TOKEN}\n")
        eventually(lambda: token(running)["state"] == "invalid")
        refused = running.post(PLAIN)

        assert (refused.status_code, refused.json()["error_class"]) == (500, "no_token")
        assert "a template that nobody has filled in" in refused.json()["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("delivery", ["file", "env"])
def test_k5_a_running_execution_gets_no_near_miss(tmp_path: Path, api: MessagesApi, url: str, delivery: str) -> None:
    work = Work(api, tmp_path)
    with switching(tmp_path, api_url=url, delivery=delivery, flags=KEEP) as running:
        secret = SecretMount(running.token_file.parent)
        pending = running.start(PROMPT, execution_id="work")
        work.wait_until_under_way()
        for raw, says in NEAR_MISSES.values():
            secret.publish(raw)
            with_error(running, says)
            if delivery == "file":
                given = json.loads((tmp_path / "config" / FILE_NAME).read_text())
                assert given["claudeAiOauth"]["accessToken"] == OLD
        work.let_go()

        assert pending.answer().status_code == 200
        [attempt] = running.record("work")["attempts"]
        assert [given["generation"] for given in attempt["tokens"]] == [1]
    assert tokens_seen(api) == {Token(OLD).fingerprint}


WRAPPED = {
    "quotes": f'"{NEW}"\n',
    "a line of an env file": f"CLAUDE_CODE_OAUTH_TOKEN={NEW}\n",
    "a line of a shell": f"export CLAUDE_CODE_OAUTH_TOKEN='{NEW}'",
    "base64": in_base64(NEW),
    "wrapped base64": base64.encodebytes(f"{NEW}\n".encode()).decode(),
    "another name and an odd expiry": json.dumps({"access_token": NEW, "expires_at": "soon", "subscription": 7}),
    "the CLI's file with an expiry in seconds": json.dumps(
        {"claudeAiOauth": {"accessToken": NEW, "expiresAt": int(time.time()) + 86400, "subscriptionType": None}}
    ),
    "the CLI's file with an expiry in words": json.dumps(
        {"claudeAiOauth": {"accessToken": NEW, "expiresAt": "2099-01-01T00:00:00Z"}}
    ),
}


@pytest.mark.slow
def test_k5_a_token_in_a_wrapping_is_the_next_generation(tmp_path: Path, api: MessagesApi, url: str) -> None:
    with supervised(tmp_path, api_url=url) as running:
        secret = SecretMount(running.token_file.parent)
        known = len(running.log.read_text())
        for generation, (name, raw) in zip(range(2, 99, 2), WRAPPED.items(), strict=False):
            secret.publish(raw)
            told = of_generation(running, generation)

            assert (told["state"], told["error"], told["fingerprint"]) == ("ready", None, Token(NEW).fingerprint), name
            answer = running.post(PLAIN).json()["metadata"]
            assert answer["token_fingerprint"] == Token(NEW).fingerprint, name
            log = running.log.read_text()[known:]
            assert ("token was written" in log) is (not raw.startswith("{")), name
            assert ("cannot be used, and was left out" in log) is ("soon" in raw), name
            secret.publish(f"{OLD}\n")
            of_generation(running, generation + 1)
            known = len(running.log.read_text())
    assert tokens_seen(api) == {Token(NEW).fingerprint}


# -- reload-token, as a backend calls it that writes no file (Abilityai/trinity)


def reload_token(running: Supervised, **body: object) -> tuple[int, dict[str, Any]]:
    response = running.client.post(RELOAD, json=body)
    return response.status_code, response.json()


def test_a_posted_token_is_written_once_and_answered_each_time(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        success = {"status": "success", "reloaded": True, "generation": 2, "state": "ready"}
        assert reload_token(running, token=NEW, remove_api_key=True) == (200, success)
        assert running.token_file.read_text() == f"{NEW}\n"
        inode = running.token_file.stat().st_ino
        for body in ({"token": NEW}, {"token": f"{NEW}\n", "remove_api_key": False}, {"remove_api_key": None}):
            assert reload_token(running, **body) == (200, {**success, "reloaded": False})
        assert running.token_file.stat().st_ino == inode


def test_a_token_that_is_posted_before_the_first_reading_is_the_second_generation(tmp_path: Path) -> None:
    """The supervisor accepts no connection before it has read the file, however long that takes."""
    os.mkfifo(fifo := tmp_path / "first-reading")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def opened() -> int | None:
        with contextlib.suppress(OSError):  # ENXIO: the first reading has not begun
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        return None

    def posted() -> httpx.Response | None:
        with contextlib.suppress(httpx.ConnectError):
            return httpx.post(f"http://127.0.0.1:{port}{RELOAD}", json={"token": NEW}, trust_env=False)
        return None

    def post_until_answered() -> httpx.Response:
        begun = eventually(opened)
        assert posted() is None
        os.close(begun)
        answer: httpx.Response = eventually(posted)
        return answer

    with ThreadPoolExecutor(1) as pool:
        posting = pool.submit(post_until_answered)
        with supervised(
            tmp_path, environment={"FIRST_READING": str(fifo)}, flags=("--port", str(port)), program=LATE
        ) as running:
            success = {"status": "success", "reloaded": True, "generation": 2, "state": "ready"}
            assert posting.result(DEADLINE_SECONDS).json() == success
            assert running.get("/api/token")["fingerprint"] == Token(NEW).fingerprint


def test_a_reload_waits_for_a_file_that_was_just_written_in_place(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        for number, token in ((2, NEW), (3, OLD), (4, NEW)):
            running.token_file.write_text(token)  # without a newline it could be half a token
            assert reload_token(running)[1]["generation"] == number


def test_a_reload_of_a_file_that_cannot_be_used_says_why_and_a_bad_one_costs_nothing_at_once(tmp_path: Path) -> None:
    """A backend that gets no 2xx makes the container anew, so a bad content is told in the answer."""
    with supervised(tmp_path, flags=("--token-withdraw-after", "1")) as running:
        running.token_file.write_text("changeme\n")
        status, answer = reload_token(running)
        assert (status, answer["reloaded"], answer["state"]) == (200, False, "ready")
        assert "placeholder" in answer["error"]

        eventually(lambda: running.get("/api/token")["state"] == "invalid")
        status, answer = reload_token(running)
        assert (status, answer["reloaded"], answer["generation"], answer["state"]) == (200, False, None, "invalid")
        assert "placeholder" in answer["error"]

        running.write_token(OLD)
        status, answer = reload_token(running)
        assert (status, answer["generation"], answer["state"], answer.get("error")) == (200, 1, "ready", None)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"token": ""}, "token: is empty"),
        ({"token": " \n"}, "token: is empty"),
        ({"token": None}, "token: must be a string"),
        ({"token": 5}, "token: must be a string"),
        ({"token": [NEW]}, "token: must be a string"),
        ({"token": "${CLAUDE_TOKEN}"}, "token: holds a template"),
        ({"token": f"sk-ant-ort01-{'r' * 95}"}, "token: holds a refresh token"),
        ({"token": "changeme"}, "token: holds a placeholder"),
        ({"token": f"{OLD}\n{NEW}"}, "token: holds several lines"),
        ({"token": NEW, "remove_api_key": "yes"}, "remove_api_key: must be true or false"),
        ({"token": NEW, "remove_api_key": 1}, "remove_api_key: must be true or false"),
        ([], "token: must be a string in a JSON object"),
    ],
)
def test_what_is_no_token_is_never_written_over_a_good_one(shared: Supervised, body: object, says: str) -> None:
    response = shared.client.post(RELOAD, json=body)

    assert (response.status_code, response.json()["error_class"]) == (400, "invalid_request")
    assert response.json()["detail"].startswith(says)
    assert NEW not in response.text
    assert shared.token_file.read_text() == f"{OLD}\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("shared")) as running:
        yield running


@pytest.mark.parametrize("strict", ["true", "false"])
def test_unknown_fields_beside_a_posted_token_are_named(tmp_path: Path, strict: str) -> None:
    with supervised(tmp_path, environment={"AGENT_RUNTIME_STRICT": strict}) as running:
        status, answer = reload_token(running, token=NEW, tokn=1)

        if strict == "true":
            wanted = "unknown fields: tokn (did you mean token?); correct them, or leave them out"
            assert (status, answer["detail"]) == (400, wanted)
            assert running.token_file.read_text() == f"{OLD}\n"
        else:
            assert (status, answer["generation"]) == (200, 2)
            assert "unknown fields ignored: tokn" in running.log.read_text()


READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


def test_the_token_that_is_there_already_needs_no_writable_directory(tmp_path: Path) -> None:
    unshared = ("unshare", "-m", "--propagation", "private")
    if os.geteuid() != 0 or subprocess.run([*unshared, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("needs root and a mount namespace of its own")
    prefix = (*unshared, "sh", "-c", READ_ONLY, str(tmp_path / "secret"))
    with supervised(tmp_path, prefix=prefix) as running:
        status, answer = reload_token(running, token=NEW)
        assert (status, answer["error_class"]) == (409, "not_writable")
        assert reload_token(running, token=OLD, remove_api_key=True)[0] == 200

        running.write_token(NEW)  # from outside, as the backend does that writes the file and posts as well
        status, answer = reload_token(running, token=NEW, remove_api_key=True)
        assert (status, answer["status"], answer["generation"], answer["state"]) == (200, "success", 2, "ready")
        SecretMount(running.token_file.parent).publish(f'"{NEW}"')
        assert reload_token(running, token=NEW)[1]["generation"] == 2


# -- AGENT_RUNTIME_TOKEN_FROM_ENV


def baked_in(**variables: str) -> dict[str, str]:
    return {"AGENT_RUNTIME_TOKEN_FROM_ENV": "true", **variables}


@pytest.mark.slow
@pytest.mark.parametrize("delivery", ["file", "env"])
def test_a_token_that_is_baked_in_becomes_the_first_one_and_reaches_no_child_by_itself(
    tmp_path: Path, api: MessagesApi, url: str, delivery: str
) -> None:
    environment = baked_in(CLAUDE_CODE_OAUTH_TOKEN=OLD, ANTHROPIC_API_KEY=API_KEY)
    with switching(tmp_path, api_url=url, delivery=delivery, token=None, environment=environment) as running:
        assert running.token_file.read_text() == f"{OLD}\n"
        assert stat.S_IMODE(running.token_file.stat().st_mode) == 0o600
        told = token(running)
        assert (told["state"], told["generation"], told["fingerprint"]) == ("ready", 1, Token(OLD).fingerprint)
        assert f"oauth {Token(OLD).fingerprint}" in running.log.read_text()
        running.write_token(NEW)
        eventually(lambda: token(running)["generation"] == 2)
        report = tmp_path / "report"
        steps = [{"do": "init"}, {"do": "report", "path": str(report)}, {"do": "result", "text": "done"}]
        assert running.post({"script": steps}).status_code == 200
        given = json.loads(report.read_text())
        assert given["token"] == Token(NEW).fingerprint
        assert "ANTHROPIC_API_KEY" not in given["environment"]
        assert given["environment"].get("CLAUDE_CODE_OAUTH_TOKEN") in {None, Token(NEW).fingerprint}

    with supervised(tmp_path, api_url=url, token=None, environment=environment) as again:
        assert token(again)["fingerprint"] == Token(NEW).fingerprint, "a restart does not bring the old one back"
        assert again.post(PLAIN).status_code == 200
    assert tokens_seen(api) <= {Token(OLD).fingerprint, Token(NEW).fingerprint}


def test_without_the_setting_the_environments_token_is_written_nowhere(tmp_path: Path) -> None:
    with supervised(tmp_path, token=None, environment={"CLAUDE_CODE_OAUTH_TOKEN": OLD}) as running:
        assert token(running)["state"] == "missing"
        assert list(running.token_file.parent.iterdir()) == []


def test_a_token_that_is_baked_in_as_a_template_is_warned_of(tmp_path: Path) -> None:
    environment = baked_in(CLAUDE_CODE_OAUTH_TOKEN="${CLAUDE_TOKEN}")
    with supervised(tmp_path, token=None, environment=environment) as running:
        assert token(running)["state"] == "missing"
        assert "its value holds a template" in running.log.read_text()
