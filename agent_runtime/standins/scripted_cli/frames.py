"""
The frames and lines the scripted CLI prints, in the shape of Claude Code 2.1.330.

Pure: no I/O but the clock.

Source: Claude Code 2.1.330 run against a stand-in of the Messages API; fields without a reader here (slash commands,
skills, sub-agent statistics and the like) are left out.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, TypeAlias

Frame: TypeAlias = dict[str, Any]
Version: TypeAlias = tuple[int, int, int]

DEFAULT_VERSION = "2.1.330"
SINCE_FILE_IS_READ_AGAIN: Version = (2, 1, 30)
REPEATS_REFUSALS_UP_TO: Version = (2, 1, 114)
SINCE_STDERR_TELLS_OF_SESSIONS: Version = (2, 1, 110)

INTERRUPTED = "[Request interrupted by user for tool use]"
CONTEXT_WINDOWS = {"claude-haiku-4-5-20251001": 200_000, "claude-sonnet-4-5-20250929": 200_000}
NO_USAGE: Frame = {
    "input_tokens": 0,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 0,
}
USAGE_KEYS = tuple(NO_USAGE)


def parse_version(text: str) -> Version:
    """Read the three numbers of a version; raise ValueError if it has another form."""
    major, minor, patch = text.split(".")
    return int(major), int(minor), int(patch)


def new_uuid() -> str:
    """Make a random UUID."""
    return str(uuid.uuid4())


def timestamp() -> str:
    """The time as the CLI prints it, in UTC with milliseconds."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"


def init(version: str, *, cwd: str, model: str, permission_mode: str, key_source: str) -> Frame:
    """The first frame of every run."""
    return {
        "type": "system",
        "subtype": "init",
        "cwd": cwd,
        "tools": ["Task", "Bash", "Edit", "Read", "WebFetch", "WebSearch", "Write"],
        "mcp_servers": [],
        "model": model,
        "permissionMode": permission_mode,
        "apiKeySource": key_source,
        "claude_code_version": version,
        "agents": ["general-purpose"],
    }


def assistant(block: Frame, *, model: str, message_id: str, usage: Frame | None = None) -> Frame:
    """One block of a model's message; a message of several blocks is several frames with one message id."""
    return {
        "type": "assistant",
        "message": {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [block],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage or {**NO_USAGE, "input_tokens": 10, "output_tokens": 1},
        },
        "parent_tool_use_id": None,
    }


def tool_result(tool_use_id: str, content: str, *, is_error: bool) -> Frame:
    """The result of a tool."""
    return {
        "type": "user",
        "message": {"role": "user", "content": [tool_result_block(tool_use_id, content, is_error=is_error)]},
        "parent_tool_use_id": None,
        "tool_use_result": f"Error: {content}"
        if is_error
        else {"stdout": content, "stderr": "", "interrupted": False, "isImage": False},
    }


def tool_result_block(tool_use_id: str, content: str, *, is_error: bool) -> Frame:
    """The block of a tool result; it is the same in the frame and in the next request."""
    return {"tool_use_id": tool_use_id, "type": "tool_result", "content": content, "is_error": is_error}


def api_retry(attempt: int, *, delay_seconds: float, status: int | None, error: str) -> Frame:
    """The frame before the API is asked again."""
    return {
        "type": "system",
        "subtype": "api_retry",
        "attempt": attempt,
        "max_retries": 10,
        "retry_delay_ms": int(delay_seconds * 1000),
        "error_status": status,
        "error": error,
    }


def rate_limit_event(status: str, *, limit_type: str | None = None, resets_at: float | None = None) -> Frame:
    """The state of the account's limit; ``allowed`` comes on healthy runs too."""
    info: Frame = {"status": status, "isUsingOverage": False}
    if resets_at is not None:
        info["resetsAt"] = resets_at
    if limit_type is not None:
        info["rateLimitType"] = limit_type
    return {"type": "rate_limit_event", "rate_limit_info": info}


def synthetic(text: str, *, error: str, status: int | None = None, kind: str | None = None) -> Frame:
    """
    The assistant frame that the CLI itself makes up when it gives up.

    *kind* is the API's own type of the error, such as ``authentication_error``.
    """
    frame = assistant({"type": "text", "text": text}, model="<synthetic>", message_id=new_uuid(), usage=dict(NO_USAGE))
    frame["message"]["stop_reason"] = "stop_sequence"
    frame["message"]["stop_sequence"] = ""
    frame |= {"error": error, "is_api_error_message": True, "api_error_status": status, "api_error_type": kind}
    return frame


def result(
    text: str | None,
    *,
    is_error: bool = False,
    subtype: str = "success",
    status: int | None = None,
    num_turns: int = 1,
    duration_ms: int = 0,
    usage: Frame | None = None,
    model: str | None = None,
    errors: Sequence[str] = (),
) -> Frame:
    """
    The frame that ends a run.

    *subtype* is ``success`` also on API errors; other values come without *text* and with *errors*. *model* is None
    where none was used.
    """
    usage = usage or NO_USAGE
    cost = (
        usage["input_tokens"] * 3
        + usage["output_tokens"] * 15
        + usage["cache_read_input_tokens"] * 0.3
        + usage["cache_creation_input_tokens"] * 3.75
    ) / 1e6
    frame: Frame = {
        "type": "result",
        "subtype": subtype,
        "is_error": is_error,
        "duration_ms": duration_ms,
        "duration_api_ms": duration_ms // 2,
        "num_turns": num_turns,
        "total_cost_usd": cost,
        "usage": usage,
        "modelUsage": {},
    }
    if model is not None:
        frame["modelUsage"][model] = {
            "inputTokens": usage["input_tokens"],
            "outputTokens": usage["output_tokens"],
            "cacheReadInputTokens": usage["cache_read_input_tokens"],
            "cacheCreationInputTokens": usage["cache_creation_input_tokens"],
            "costUSD": cost,
            "contextWindow": CONTEXT_WINDOWS.get(model, 1_000_000),
        }
    if text is not None:
        frame["result"] = text
    if errors:
        frame["errors"] = list(errors)
    if subtype == "success":
        frame["api_error_status"] = status
        frame["terminal_reason"] = "api_error" if is_error else "completed"
    return frame


def api_error_line(status: int | None, body: str, *, attempt: int) -> str:
    """The CLI's own line on stderr about one refused request, without its newline."""
    code = "undefined" if status is None else f"{status} {status}"
    return f"{timestamp()} [ERROR] API error (attempt {attempt}/11): {code} {body}"
