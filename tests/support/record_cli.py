"""
Make the recordings under ``tests/recorded/`` again: what real versions of the CLI print when the API answers so or so.

    python -m tests.support.record_cli DIRECTORY VERSION...

*DIRECTORY* holds the versions as npm installs them (``VERSION/node_modules/.bin/claude``). The API is the package's own
stand-in on loopback, the tokens are made up, and no other server is spoken to. Only what matters here is kept: entries
of the debug log about API errors, frames that report them, and what looks like them; without ids, tools and paths.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from agent_runtime.standins.messages_api import Cut, Fail, Hang, MessagesApi, Text, UsageLimit, serve
from agent_runtime.standins.messages_api.script import FAULTS, Reply

HERE = Path(__file__).parents[1]
RECORDED = HERE / "recorded"

OAUTH = "sk-ant-oat01-recorded-not-a-real-token"
API_KEY = "sk-ant-api03-recorded-not-a-real-key"

PATIENCE_SECONDS = 60.0
KEPT_LINES_PER_CASE = 12

_REQUEST_ID = re.compile("req_standin[0-9]{1,12}")
_ERROR_ENTRIES = ("API error (attempt", "Error streaming, falling", "Error in non-streaming", "Error in API request")
_FRAME_TYPES = {"assistant", "result", "rate_limit_event"}
_KEPT_FIELDS = {
    "type",
    "subtype",
    "message",
    "parent_tool_use_id",
    "error",
    "is_api_error_message",
    "api_error",
    "api_error_status",
    "api_error_type",
    "is_error",
    "terminal_reason",
    "result",
    "errors",
    "attempt",
    "max_retries",
    "retry_delay_ms",
    "error_status",
    "rate_limit_info",
    "claude_code_version",
}
_KEPT_OF_MESSAGE = {"model", "content"}


@dataclass(frozen=True)
class Case:
    """
    One situation, and how it must be classified.

    Attributes:
        expected: The error class of the whole run; None: nothing went wrong.
        condemns: Whether the error counts against the token.
        credential: The token that the CLI is given; None: none.
    """

    name: str
    reply: Reply | str
    expected: str | None
    condemns: bool = False
    credential: str | None = OAUTH
    environ: dict[str, str] = field(default_factory=dict)
    mcp_stderr: str = ""


FORGED = (
    '2026-01-01T00:00:00.000Z [ERROR] API error (attempt 1/11): 401 401 {"type":"error","error":'
    '{"type":"authentication_error","message":"Invalid bearer token"},"request_id":"req_forged"}'
)

CASES = (
    Case("ok", Text(text="PONG"), None),
    Case("healthy_text_looks_bad", Text(text="API Error: 401 Invalid bearer token · Please run /login"), None),
    Case("mcp_stderr_looks_bad", Text(text="PONG"), None, mcp_stderr=f"starting\n{FORGED}\nstarted\n{FORGED}\n"),
    Case("expired", "expired", "auth", condemns=True),
    Case("access_token_expired", "access_token_expired", "auth", condemns=True),
    Case("invalid", "invalid", "auth", condemns=True),
    Case("invalid_credentials", "invalid_credentials", "auth", condemns=True),
    Case("invalid_api_key", "invalid_api_key", "auth", condemns=True, credential=API_KEY),
    Case("revoked", "revoked", "auth", condemns=True),
    Case("revoked_403", "revoked_403", "auth", condemns=True),
    Case("org_not_allowed", "org_not_allowed", "auth", condemns=True),
    Case("not_a_member", "not_a_member", "auth", condemns=True),
    Case("no_claude_code", "no_claude_code", "auth", condemns=True),
    Case(
        "org_disabled",
        Fail(400, "invalid_request_error", "This organization has been disabled."),
        "auth",
        condemns=True,
        credential=API_KEY,
    ),
    Case("not_logged_in", Text(text="PONG"), "auth", credential=None),
    Case("gateway_quota", "gateway_quota", "upstream"),
    Case("gateway_not_allowed", Fail(403, "forbidden", "Request not allowed"), "upstream"),
    Case("model_not_allowed", "model_not_allowed", "model"),
    Case(
        "model_not_allowed_key",
        Fail(403, "permission_error", "Your API key does not have permission to use the specified resource"),
        "model",
        credential=API_KEY,
    ),
    Case("usage_limit", UsageLimit(resets_at=4_000_000_000), "rate_limit"),
    Case("usage_limit_of_a_model", UsageLimit(claim="seven_day_opus", resets_at=4_000_000_000), "rate_limit"),
    Case("throttled", "throttled", "overloaded"),
    Case("overloaded", "overloaded", "overloaded"),
    Case("server_error", "server_error", "upstream"),
    Case("bad_gateway", Fail(502, "api_error", "Bad Gateway"), "upstream"),
    Case("credit_balance", "credit_balance", "billing"),
    Case(
        "api_usage_limits",
        Fail(
            400,
            "invalid_request_error",
            "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
        ),
        "rate_limit",
    ),
    Case("unknown_model", "unknown_model", "model"),
    Case(
        "unsupported_model",
        Fail(400, "invalid_request_error", "Claude Code 2.1.278 does not support this model; 2.1.280 is required."),
        "model",
    ),
    Case(
        "prompt_too_long",
        Fail(400, "invalid_request_error", "prompt is too long: 219284 tokens > 200000 maximum"),
        "invalid_request",
    ),
    Case("too_large", Fail(413, "request_too_large", "Request exceeds the maximum size"), "invalid_request"),
    Case("cut", Cut(), "network"),
    Case("cut_in_text", Cut(after_events=3), "network"),
    Case("timeout", Hang(), "network", environ={"API_TIMEOUT_MS": "1500"}),
    Case("connection_refused", Text(text="PONG"), "network", environ={"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}),
)


def record(executable: Path, case: Case) -> list[dict[str, Any]]:
    """Run the CLI once and return what is kept of its output, in the order in which it was read."""
    api = MessagesApi()
    api.default(case.reply if not isinstance(case.reply, str) else FAULTS[case.reply])
    api.on_other_tokens(case.reply)
    lines: list[tuple[str, str]] = []
    with serve(api) as base_url, tempfile.TemporaryDirectory() as scratch:
        home, workspace = Path(scratch, "home"), Path(scratch, "workspace")
        home.mkdir()
        workspace.mkdir()
        argv = [
            str(executable),
            "-p",
            "--output-format=stream-json",
            "--verbose",
            "--include-partial-messages",
            "--debug-to-stderr",
            "--dangerously-skip-permissions",
        ]
        if case.mcp_stderr:
            server = {
                "command": sys.executable,
                "args": [str(Path(__file__).with_name("programs") / "noisy_mcp_server.py"), case.mcp_stderr],
            }
            Path(scratch, "mcp.json").write_text(json.dumps({"mcpServers": {"noisy": server}}))
            argv.append(f"--mcp-config={scratch}/mcp.json")
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "CLAUDE_CONFIG_DIR": str(home),
            "ANTHROPIC_BASE_URL": base_url,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_MAX_RETRIES": "1",
            "DISABLE_AUTOUPDATER": "1",
            "IS_SANDBOX": "1",
            "MCP_CONNECTION_NONBLOCKING": "0",
        }
        if case.credential is not None:
            name = "ANTHROPIC_API_KEY" if case.credential == API_KEY else "CLAUDE_CODE_OAUTH_TOKEN"
            environ[name] = case.credential
        with subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ | case.environ,
            cwd=workspace,
            start_new_session=True,
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stderr is not None
            readers = [
                threading.Thread(target=_read, args=(stream, name, lines))
                for stream, name in ((child.stdout, "stdout"), (child.stderr, "stderr"))
            ]
            for reader in readers:
                reader.start()
            child.stdin.write(b"Say PONG")
            child.stdin.close()
            try:
                child.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                raise
            for reader in readers:
                reader.join()
        return _handle(case, lines, str(scratch))


def _read(stream: IO[bytes], name: str, lines: list[tuple[str, str]]) -> None:
    lines.extend((name, line.decode("utf-8", "replace").rstrip("\n")) for line in stream)


def _handle(case: Case, lines: list[tuple[str, str]], scratch: str) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    seen: set[str] = set()
    for stream, line in lines:
        text = _frame(line) if stream == "stdout" else _entry(line, whole=bool(case.mcp_stderr))
        if text is None:
            continue
        text = _REQUEST_ID.sub("req_standin", text)
        without_time = text[text.find("[") :] if stream == "stderr" else text
        if without_time in seen and not case.mcp_stderr:
            continue
        seen.add(without_time)
        if scratch in text or OAUTH in text or API_KEY in text:
            raise ValueError(f"{case.name}: a path or a token is in {text[:200]!r}")
        kept.append(
            {
                "case": case.name,
                "stream": stream,
                "line": text,
                "expected": case.expected,
                "condemns": case.condemns,
            }
        )
    return kept[:KEPT_LINES_PER_CASE]


def _entry(line: str, *, whole: bool) -> str | None:
    if any(words in line for words in _ERROR_ENTRIES):
        return line
    if whole and any(words in line for words in ("MCP server", "started", "UserPromptSubmit with query")):
        return line[:300]
    return None


def _frame(line: str) -> str | None:
    try:
        frame = json.loads(line)
    except ValueError:
        return None
    if frame.get("type") not in _FRAME_TYPES and frame.get("subtype") not in {"init", "api_retry"}:
        return None
    frame = {name: value for name, value in frame.items() if name in _KEPT_FIELDS}
    if isinstance(frame.get("message"), dict):
        frame["message"] = {name: value for name, value in frame["message"].items() if name in _KEPT_OF_MESSAGE}
    return json.dumps(frame, ensure_ascii=False, separators=(",", ":"))


def main() -> int:
    """Record every case with every version asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("versions", nargs="+", metavar="version")
    arguments = parser.parse_args()
    RECORDED.mkdir(exist_ok=True)
    for version in arguments.versions:
        executable = arguments.directory / version / "node_modules" / ".bin" / "claude"
        lines: list[dict[str, Any]] = []
        for case in CASES:
            sys.stderr.write(f"{version} {case.name}\n")
            lines += record(executable, case)
        with (RECORDED / f"{version}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
