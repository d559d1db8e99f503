"""Errors say what to do next: at start, at the commands, and over HTTP."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_runtime.cli.main import main
from agent_runtime.errors import CannotStart, ErrorClass, SettingsInvalid
from agent_runtime.serve import bootstrap
from agent_runtime.settings import Settings, load
from tests.support.supervised import DEADLINE_SECONDS, OLD, Supervised, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

SETTINGS_IN_NEED: list[tuple[dict[str, str], str]] = [
    ({"SLOTS": "many"}, "AGENT_RUNTIME_SLOTS: must be a whole number"),
    ({"PARK": "soon"}, "AGENT_RUNTIME_PARK: must be a number of seconds, or auto"),
    ({"PROBE": "sometimes"}, "AGENT_RUNTIME_PROBE: must be one of off, on_refusal"),
    ({"PORT": "tcp://10.0.0.1:80"}, "AGENT_RUNTIME_PORT: .*enableServiceLinks: false"),
    ({"HOST": "0.0.0.0"}, "AGENT_RUNTIME_HOST: .*AGENT_RUNTIME_ACCESS_KEY_FILE is needed"),
    ({"TOKEN_DELIVERY": "proxy"}, "AGENT_RUNTIME_TOKEN_DELIVERY: must be one of auto, env, file, relay"),
    ({"CHILD_USER": "nobody-of-that-name"}, "AGENT_RUNTIME_CHILD_USER: .*add it to the image"),
]


@pytest.mark.parametrize(("variables", "says"), SETTINGS_IN_NEED, ids=[next(iter(row[0])) for row in SETTINGS_IN_NEED])
def test_a_bad_setting_is_named_with_what_it_needs(variables: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsInvalid, match=says):
        bootstrap._check_child_user(load({f"AGENT_RUNTIME_{name}": value for name, value in variables.items()}))


def test_a_directory_that_cannot_be_made_is_named_with_its_variable() -> None:
    with pytest.raises(CannotStart, match=r"AGENT_RUNTIME_DATA_DIR: .*/dev/null/data: .*mount a volume"):
        bootstrap._directory(Path("/dev/null/data"), "AGENT_RUNTIME_DATA_DIR")


def test_a_directory_that_another_supervisor_uses_is_told() -> None:
    with tempfile.TemporaryDirectory() as name, bootstrap._locked(Path(name) / "lock", "AGENT_RUNTIME_DATA_DIR"):
        again = bootstrap._locked(Path(name) / "lock", "AGENT_RUNTIME_DATA_DIR")
        with pytest.raises(CannotStart, match=r"another supervisor uses .*stop it, or name another"), again:
            pass


def test_an_address_that_is_taken_or_not_ours_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(CannotStart, match=f":{port}: .*set AGENT_RUNTIME_PORT"),
            bootstrap._listen(Settings(port=port)),
        ):
            pass
    for host in ("203.0.113.7", "no..name", "\udcff"):
        elsewhere = Settings(host=host, insecure_no_access_key=True)
        with pytest.raises(CannotStart, match=f"{host}:.*set AGENT_RUNTIME_HOST"), bootstrap._listen(elsewhere):
            pass


def test_a_start_that_fails_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "agent_runtime", "serve", "--workspace", "none", "--data-dir", "data"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )

    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith("agent-runtime: AGENT_RUNTIME_WORKSPACE: ")
    assert line.endswith("create it or name another")


@dataclass(frozen=True)
class WithKey:
    """A supervisor whose key file was empty at first, and what it answered then."""

    running: Supervised
    refused: httpx.Response


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WithKey]:
    home = tmp_path_factory.mktemp("http")
    key = home / "key"
    key.touch()
    flags = ("--strict", "--access-key-file", str(key))
    with supervised(home, token=None, flags=flags) as running:
        refused = running.client.get("/api/token", headers={"X-Agent-Token": ""})
        key.write_text("the-key\n")
        running.client.headers["X-Agent-Token"] = "the-key"
        yield WithKey(running, refused)


REQUESTS: dict[str, tuple[str, str, object, str, str]] = {
    "no token": ("POST", "/api/task", {"message": "x"}, "no_token", "write one"),
    "no JSON": ("POST", "/api/task", b"{", "invalid_request", "send an object with a message"),
    "no object": ("POST", "/api/task", [], "invalid_request", "object with a message"),
    "no message": ("POST", "/api/task", {}, "invalid_request", "message"),
    "a wrong type": ("POST", "/api/task", {"message": 1}, "invalid_request", "message: "),
    "an unknown field": ("POST", "/api/task", {"message": "x", "mesage": 1}, "invalid_request", "leave them out"),
    "an unknown path": ("GET", "/api/tasks", None, "not_found", "/openapi.json"),
    "an unknown id": ("GET", "/api/executions/none", None, "not_found", "GET /api/executions"),
    "a wrong method": ("GET", "/api/task", None, "method", "Allow"),
    "a wrong state": ("GET", "/api/executions?state=sleeping", None, "invalid_request", "must be one of queued"),
    "a wrong limit": ("GET", "/api/executions?limit=0", None, "invalid_request", "from 1 to"),
    "a wrong cursor": ("GET", "/api/executions?cursor=x", None, "invalid_request", "next_cursor"),
    "another name": (
        "POST",
        "/api/credentials/reload-token",
        {"t": "x"},
        "invalid_request",
        "send it, or an empty body",
    ),
    "a blank message": (
        "POST",
        "/api/task",
        {"message": " \n"},
        "invalid_request",
        "message: must hold more than blanks",
    ),
    "a number": ("POST", "/api/task", {"message": "x", "model": 1}, "invalid_request", "expected `string` or null"),
    "too much": ("POST", "/api/task", b"x" * (16 * 1024 * 1024 + 1), "too_large", "AGENT_RUNTIME_BODY_LIMIT"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_refusal_over_http_says_what_to_do(shared: WithKey, name: str) -> None:
    method, path, body, error_class, advice = REQUESTS[name]
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = shared.running.client.request(method, path, **({} if body is None else content))

    problem = answer.json()
    assert (problem["error_class"], answer.status_code) == (error_class, ErrorClass(error_class).status)
    assert advice in problem["detail"]


@pytest.mark.parametrize("error_class", sorted(set(ErrorClass) - {ErrorClass.CANCELLED}))
def test_the_sentence_of_a_failed_execution_says_what_to_do(error_class: ErrorClass) -> None:
    fact, _, advice = error_class.sentence.partition("; ")

    assert fact
    assert advice


def test_a_key_file_without_a_key_is_told_at_start_and_to_callers(shared: WithKey) -> None:
    assert (shared.refused.status_code, "bearer token" in shared.refused.json()["detail"]) == (401, True)
    assert "no caller is admitted until there is one" in shared.running.log.read_text()


@pytest.mark.parametrize(
    ("words", "given", "expected"),
    [
        (("token", "put", "none/token"), OLD, (1, "make its directory first")),
        (("token", "put", "token"), "", (2, "give one token on a line")),
        (("token", "put", "token"), "hunter2-and-sixteen-more", (2, "--force")),
        (("token", "show", "token"), "", (1, "is missing")),
    ],
)
def test_the_token_commands_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], given: str, expected: tuple[int, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        assert main(words) == expected[0]
    assert expected[1] in out.getvalue()
    assert not given or given not in out.getvalue()
    assert not Path("token").exists()
