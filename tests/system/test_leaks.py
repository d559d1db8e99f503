"""Every sink is searched for every token in use, while a child does its best to spill them (L9)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.supervised import NEW, OLD, Supervised, eventually, marked_processes, supervised

KEY = "the-access-key-of-the-leak-tests-0123456789"


def write(data: bytes, stream: str, **fields: Any) -> dict[str, Any]:
    return {"do": "write", "base64": base64.b64encode(data).decode(), "stream": stream, **fields}


def spills(secret: str) -> list[dict[str, Any]]:
    """Print *secret* in every way whose exact value redaction has to cover."""
    escaped = "".join(f"\\u{ord(character):04x}" for character in secret)
    text = json.dumps({"type": "user", "message": {"content": [{"type": "tool_result", "content": secret}]}})
    nested = json.dumps({"type": "user", "message": {"content": json.dumps({"inner": secret})}})
    refusal = (
        "2026-11-22T00:00:00.000Z [ERROR] API error (attempt 1/11): 529 529 "
        f'{{"type":"error","error":{{"type":"overloaded_error","message":"for {secret}"}}}}'
    )
    return [
        write(text.encode(), "stdout"),
        write(text.encode(), "stdout", byte_by_byte=True),
        write(text.encode(), "stdout", cuts=[20, 80, 100], pause_seconds=0.02),
        write(text.replace(secret, escaped).encode(), "stdout"),
        write(nested.replace(secret, escaped.replace("\\", "\\\\\\\\")).encode(), "stdout"),
        write(f"no frame at all: {secret}".encode(), "stdout"),
        write(b"x" * 900 + secret.encode() * 3000, "stdout"),
        write(secret.encode(), "stderr"),
        write(refusal.encode(), "stderr"),
        write(f"Error: {secret} is no option".encode(), "stderr"),
    ]


def everything_of(running: Supervised, execution_ids: list[str]) -> str:
    """Put together all that anybody can see."""
    paths = ["/health", "/api/token", "/api/executions", "/api/executions/running", "/readyz", "/metrics"]
    paths += [f"/api/executions/{name}{part}" for name in execution_ids for part in ("", "/status", "/result")]
    headers = {"X-Agent-Token": KEY}
    seen = [running.client.get(path, headers=headers).text for path in paths]
    for name in execution_ids:
        with running.client.stream("GET", f"/api/executions/{name}/stream", headers=headers) as response:
            seen.append(response.read().decode())
    return "\n".join(seen)


@pytest.mark.parametrize("end", ["result", "refusal", "lost"])
def test_no_token_and_no_key_is_in_any_sink(tmp_path: Path, end: str) -> None:
    (tmp_path / "key").write_text(KEY)
    last = {
        "result": {"do": "result", "text": f"It is {OLD}, the key is {KEY}."},
        "refusal": {"do": "api_error", "status": 401, "message": f"bad token {OLD}"},
        "lost": {"do": "exit", "code": 1},
    }[end]
    go = tmp_path / "go"
    steps = [{"do": "init"}, *spills(OLD), *spills(KEY), {"do": "wait_file", "path": str(go)}, last]
    flags = (
        *("--access-key-file", str(tmp_path / "key"), "--frame-limit", "65536"),
        *("--token-delivery", "env", "--park", "0", "--probe", "off"),
    )
    with supervised(tmp_path, flags=flags) as running:
        headers = {"X-Agent-Token": KEY}
        body = {"message": json.dumps({"script": steps}), "execution_id": "spill"}
        running.client.post("/api/task", json={**body, "async_result": True}, headers=headers)
        processes = eventually(lambda: marked_processes("spill"))
        argv = [word for process in processes for word in process.cmdline()]
        written = running.client.post("/api/credentials/reload-token", json={"token": NEW}, headers=headers)
        go.touch()
        eventually(lambda: running.client.get("/api/executions/spill/result", headers=headers).status_code == 200)
        seen = everything_of(running, ["spill"]) + written.text
        environment_of_the_supervisor = Path(f"/proc/{running.process.pid}/environ").read_text()

    kept = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    log = (tmp_path / "supervisor.log").read_text()
    for secret in (OLD, NEW, KEY):
        for sink, content in {
            "answers": seen,
            "argv": " ".join(argv),
            "log": log,
            "environment": environment_of_the_supervisor,
        }.items():
            assert secret not in content, sink
        assert secret.encode() not in kept
        assert secret.encode().hex().encode() not in kept
    assert "[token:" in seen, "it was printed, and replaced"


REFRESH = "a-refresh-token-of-another-form-0123456789"
NEVER_LOADED = "sk-ant-oat01-of-somebody-else-000000000000000004"
REFUSED = "sk-ant-ort01-a-refused-content-000000000000000005"
NEAR_MISS = "gateway,key-0123456789abcdef"


@pytest.mark.slow
def test_what_the_secret_file_held_beside_a_token_and_what_was_never_loaded_is_in_no_sink(tmp_path: Path) -> None:
    """A refresh token, a content that was refused, a token of somebody else's that the agent has found."""
    go = tmp_path / "go"
    document = {"claudeAiOauth": {"accessToken": OLD, "refreshToken": REFRESH}, "subscription": "team-blue"}
    steps = [
        {"do": "init"},
        {"do": "wait_file", "path": str(go)},
        *(
            write(json.dumps({"type": "user", "message": {"content": f"it is {secret}"}}).encode(), "stdout")
            for secret in (REFRESH, NEVER_LOADED, REFUSED, NEAR_MISS.partition(",")[2])
        ),
        write(f"Error: {REFRESH} and {NEVER_LOADED}".encode(), "stderr"),
        {"do": "result", "text": f"{REFRESH} {NEVER_LOADED} {REFUSED} team-blue"},
    ]
    with supervised(tmp_path, token=json.dumps(document)) as running:
        pending = running.start({"script": steps}, execution_id="spill")
        eventually(lambda: running.get("/api/executions/running")["executions"])
        for content, reason in ((REFUSED, "refresh token"), (NEAR_MISS, "commas")):
            running.write_secret(content + "\n")
            eventually(lambda: reason in (running.get("/api/token")["error"] or ""))  # noqa: B023 - it is asked at once
        go.touch()
        answer = pending.answer()
        seen = answer.text + everything_of(running, ["spill"])

    kept = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    log = (tmp_path / "supervisor.log").read_text()
    for secret in (REFRESH, NEVER_LOADED, REFUSED, NEAR_MISS.partition(",")[2]):
        assert secret not in seen
        assert secret not in log
        assert secret.encode() not in kept
    assert answer.json()["response"].count("[token:") == 3
    assert answer.json()["response"].endswith("team-blue"), "a subscription's name is no secret"


@pytest.mark.slow
def test_a_malformed_token_in_a_body_is_not_repeated(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        for body in (b'{"token": "sk-ant-oat01-\\u0000-odd-value-1"}', b'{"token": 12345678901234567890}', b'{"token'):
            response = running.client.post("/api/credentials/reload-token", content=body)

            assert response.status_code == 400
            assert "odd-value" not in response.text
            assert "1234567890" not in response.text
        assert running.get("/api/token")["generation"] == 1


def test_a_secret_file_that_cannot_be_written_is_said_to_be_so(tmp_path: Path) -> None:
    environment = {"AGENT_RUNTIME_TOKEN_FILE": "/proc/version"}  # where not even root can write
    with supervised(tmp_path, environment=environment) as running:
        response = running.client.post("/api/credentials/reload-token", json={"token": NEW})

        assert (response.status_code, response.json()["error_class"]) == (409, "not_writable")
        assert NEW not in response.text
