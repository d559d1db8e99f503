"""Examples of the OpenAPI document; a test holds each against its schema."""

from __future__ import annotations

from typing import Any

TASK = {"message": "Fix the tests.", "execution_id": "fix-1", "timeout_seconds": 1800}

WEBHOOK = {
    "id": 1795000000123,
    "type": "token.refused",
    "time": "2026-11-18T10:26:40.123Z",
    "data": {"generation": 1, "fingerprint": "5f1d0c9a3b7e", "rule": "api-401"},
}

_SESSION = "5b1f3a5e-9a4c-4a5e-8f49-0a5d7c1e2b3f"

_USAGE = {
    "cpu_seconds": 41.2,
    "memory_bytes": 412000000,
    "pss_bytes": 301000000,
    "processes": 5,
    "open_files": 62,
}

_METADATA = {
    "cost_usd": 0.0421,
    "duration_ms": 8120,
    "num_turns": 3,
    "tool_count": 2,
    "input_tokens": 1843,
    "output_tokens": 312,
    "cache_creation_tokens": 0,
    "cache_read_tokens": 15210,
    "context_window": 200000,
    "session_id": _SESSION,
    "compact_events": [{"trigger": "auto", "pre_tokens": 167412, "post_tokens": 11208, "duration_ms": 31840}],
    "background_tasks_pending_at_exit": 0,
    "stop_reason": "end_turn",
    "sent_as_text": False,
    "background_ended": False,
    "model_name": "claude-sonnet-4-5",
    "token_generation": 2,
    "token_fingerprint": "9c2e41d07ab8",
    "attempts": 2,
    "resumes": 1,
    "session_restarted": False,
    "cli_version": "2.1.330",
    "ignored_fields": [],
    "retained": True,
}

_SUCCESS = {
    "execution_id": "fix-1",
    "status": "success",
    "response": "All tests pass.",
    "session_id": _SESSION,
    "execution_log": [{"type": "result", "subtype": "success", "is_error": False, "result": "All tests pass."}],
    "truncated_log": False,
    "metadata": _METADATA,
    "timestamp": "2026-11-18T10:26:48.312Z",
}

_ACCEPTED = {"accepted": {"execution_id": "fix-1", "status": "accepted"}}

_RECORD = {
    "execution_id": "fix-1",
    "state": "finished",
    "outcome": "success",
    "error_class": None,
    "detail": None,
    "created_at": "2026-11-18T10:26:40.001Z",
    "started_at": "2026-11-18T10:26:40.020Z",
    "ended_at": "2026-11-18T10:26:48.312Z",
    "session_id": _SESSION,
    "resumable": True,
    "attempts": [
        {
            "pid": 212,
            "tokens": [{"generation": 1, "fingerprint": "5f1d0c9a3b7e", "delivered_at": "2026-11-18T10:26:40.020Z"}],
            "started_at": "2026-11-18T10:26:40.020Z",
            "ended_at": "2026-11-18T10:26:41.102Z",
            "exit_code": 0,
            "survivors": 0,
            "stop_reason": "refused",
            "evidence": {
                "rule": "api-401",
                "stream": "stderr",
                "line": "[ERROR] API error (attempt 1/11): 401 …",
                "seconds_to_signal": 0.0004,
            },
        },
        {
            "pid": 240,
            "tokens": [{"generation": 2, "fingerprint": "9c2e41d07ab8", "delivered_at": "2026-11-18T10:26:43.310Z"}],
            "started_at": "2026-11-18T10:26:43.310Z",
            "ended_at": "2026-11-18T10:26:48.300Z",
            "exit_code": 0,
            "survivors": 0,
            "stop_reason": None,
            "evidence": None,
        },
    ],
    "usage": _USAGE,
    "metadata": _METADATA,
}

_HEALTH: dict[str, Any] = {
    "status": "ok",
    "version": "0.1.0",
    "unready": None,
    "token": {"state": "ready", "generation": 2, "error": None},
    "slots": {"total": 4, "busy": 1, "unkillable": 0},
    "queue": {"limit": 16, "length": 0},
    "task_fields": ["message", "model", "execution_id"],
    "active_tasks": 1,
    "usage": _USAGE,
    "last_task_at": "2026-11-18T10:26:40.001Z",
    "consecutive_failures": 0,
    "draining": False,
    "connections": {"open": 3, "limit": 1024},
    "streams": {"open": 2, "limit": 256},
    "delivery": {"delivery": "file", "reason": "proved for this CLI", "setting": "auto"},
    "containment": {"layer": "scan", "setting": "auto", "lacking": {"cgroup": "the cgroup tree is read-only"}},
    "disk": {
        "free_bytes": 52613349376,
        "error": None,
        "damage": [],
        "set_aside": [],
        "transcripts_without_record": 0,
    },
    "loop_lag_seconds": 0.000021,
    "uptime_seconds": 3601.5,
}

ANSWERS: dict[tuple[str, int], dict[str, Any]] = {
    ("postTask", 200): {
        "success": _SUCCESS,
        "cancelled": {**_SUCCESS, "status": "cancelled", "response": None, "execution_log": []},
    },
    ("postTask", 202): _ACCEPTED,
    ("listExecutions", 200): {"page": {"executions": [_RECORD], "next_cursor": None}},
    ("listRunning", 200): {
        "running": {
            "executions": [
                {
                    "execution_id": "fix-1",
                    "pid": 240,
                    "started_at": "2026-11-18T10:26:40.020Z",
                    "metadata": _METADATA,
                    "slot": 1,
                    "usage": _USAGE,
                }
            ],
            "pending_ids": ["fix-2"],
            "recently_completed_ids": ["fix-0"],
        }
    },
    ("getExecution", 200): {"resumed": _RECORD},
    ("getExecutionStatus", 200): {
        "ended": {
            "execution_id": "fix-1",
            "running": False,
            "returncode": 0,
            "outcome": "success",
            "error_class": None,
            "started_at": "2026-11-18T10:26:40.020Z",
            "metadata": _METADATA,
        }
    },
    ("getExecutionResult", 200): {
        "success": {
            "execution_id": "fix-1",
            "status_code": 200,
            "answer": _SUCCESS,
            "retained_at": "2026-11-18T10:26:48.312Z",
            "status": "success",
            "error": None,
            "error_code": None,
            "terminal_reason": "completed",
            **{name: _SUCCESS[name] for name in ("response", "metadata", "execution_log")},
            **{name: _SUCCESS[name] for name in ("session_id", "truncated_log")},
        }
    },
    ("getExecutionResult", 202): _ACCEPTED,
    ("terminateExecution", 200): {"done": {"status": "terminated", "execution_id": "fix-1", "returncode": 0}},
    ("getToken", 200): {
        "ready": {
            "state": "ready",
            "source": "directory",
            "generation": 2,
            "fingerprint": "9c2e41d07ab8",
            "kind": "oauth",
            "loaded_at": "2026-11-18T10:26:43.290Z",
            "expires_at": None,
            "subscription": "team-b",
            "error": None,
            "last_refused_generation": 1,
            "limited_until": None,
            "limit_type": None,
            "limit_model": None,
            "held_by": {"1": 1, "2": 3},
        }
    },
    ("reloadToken", 200): {
        "another": {"status": "success", "reloaded": True, "generation": 3, "state": "ready"},
    },
    ("startDrain", 200): {"draining": {"draining": True, "unfinished": 2}},
    ("callOffDrain", 200): {"open": {"draining": False, "unfinished": 2}},
    ("isAlive", 200): {"alive": {"status": "ok"}},
    ("isReady", 200): {"ready": {"status": "ready"}},
    ("isReady", 503): {
        "draining": {"status": "unready", "reason": "draining", "detail": "draining: no new executions here"}
    },
    ("getHealth", 200): {"with the key": _HEALTH, "without it": {"status": "ok"}},
    ("getApiHealth", 200): {"with the key": _HEALTH, "without it": {"status": "ok"}},
}
"""By operation and status, and there by name."""

STREAMS = {
    "streamExecution": (
        'event: state\ndata: {"state":"running","outcome":null,"error_class":null}\n\n'
        'event: message\nid: 1\ndata: {"type":"system","subtype":"init"}\n\n'
        'event: end\ndata: {"type":"stream_end","outcome":"success","error_class":null}\n\n'
    ),
    "streamEvents": (
        "event: token.loaded\nid: 1795000000001\n"
        'data: {"id":1795000000001,"type":"token.loaded","time":"2026-11-18T10:26:40.001Z",'
        '"data":{"generation":1,"fingerprint":"5f1d0c9a3b7e","kind":"oauth","subscription":null}}\n\n'
    ),
}
