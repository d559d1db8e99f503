"""
The steps of a script that only print: frames, bytes, and the CLI's own error line.

Source: frames as in :mod:`agent_runtime.standins.scripted_cli.frames`.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from agent_runtime.standins.scripted_cli import frames
from agent_runtime.standins.scripted_cli.runtime import STDERR, STDOUT, Run

if TYPE_CHECKING:
    from agent_runtime.standins.scripted_cli.api import Api
    from agent_runtime.standins.scripted_cli.frames import Frame
    from agent_runtime.standins.scripted_cli.main import Prompt

STREAMS = {"stdout": STDOUT, "stderr": STDERR}


class BadScript(Exception):
    """A step that is not known, or a field of it that is missing, unknown or of the wrong type."""


class PrintingSteps:
    """The printing half of :class:`tests.support.scripted.steps.Steps`."""

    def __init__(self, run: Run, api: Api, message: Prompt) -> None:
        self._run = run
        self._api = api
        self._message = message
        self._tool_number = 0

    # Frames

    def init(self, *, fields: Frame = {}) -> None:  # noqa: B006 (never changed)
        """Print ``system/init``."""
        self._run.init(key_source=self._api.key_source, **fields)

    def frame(self, *, frame: Frame) -> None:
        """Print a frame as given."""
        self._run.emit(dict(frame))

    def assistant(self, *, text: str, usage: Frame = {}) -> None:  # noqa: B006 (never changed)
        """Print a model's text."""
        self._block({"type": "text", "text": text}, usage)

    def partial(self, *, text: str) -> None:
        """Print one piece of a message as ``--include-partial-messages`` does."""
        event = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        self._run.emit({"type": "stream_event", "event": event, "parent_tool_use_id": None})

    def tool_use(self, *, command: str, name: str = "Bash", id: str | None = None) -> None:  # noqa: A002 (the frame's word)
        """Print that the model wants a tool, without running it."""
        self._tool_number += 1
        tool_use_id = id or f"toolu_{self._tool_number:02d}"
        self._block({"type": "tool_use", "id": tool_use_id, "name": name, "input": {"command": command}}, {})

    def tool_result(self, *, content: str, is_error: bool = False, id: str | None = None) -> None:  # noqa: A002 (the frame's word)
        """Print what a tool gave back, without running it."""
        self._run.emit(frames.tool_result(id or f"toolu_{self._tool_number:02d}", content, is_error=is_error))

    def result(self, *, text: str = "Done.", is_error: bool = False, fields: Frame = {}) -> None:  # noqa: B006 (never changed)
        """Print the ``result`` frame."""
        self._run.result(text, is_error=is_error, **fields)

    def retry(self, *, status: int | None, error: str, attempt: int = 1, delay_seconds: float = 0.5) -> None:
        """Print an ``api_retry`` frame."""
        self._run.emit(frames.api_retry(attempt, delay_seconds=delay_seconds, status=status, error=error))

    def give_up(self, *, text: str, error: str, status: int | None = None, kind: str | None = None) -> None:
        """Print the CLI's own assistant frame and the result of a run that failed."""
        self._run.give_up(text, error=error, status=status, kind=kind)

    def rate_limit(self, *, status: str, limit_type: str | None = None, resets_at: int | None = None) -> None:
        """Print a ``rate_limit_event``."""
        self._run.emit(frames.rate_limit_event(status, limit_type=limit_type, resets_at=resets_at))

    def background(self, *, tasks: list[str]) -> None:
        """Print which background tasks are pending."""
        pending = [{"task_id": task, "task_type": "local_bash", "description": task} for task in tasks]
        self._run.emit({"type": "system", "subtype": "background_tasks_changed", "tasks": pending})

    def _block(self, block: Frame, usage: Frame) -> None:
        self._run.num_turns += 1
        usage = {**frames.NO_USAGE, "input_tokens": 10, "output_tokens": 5} | usage
        self._run.count(usage)
        model = self._run.options.model_name
        message_id = f"msg_{frames.new_uuid()[:8]}"
        self._run.emit(frames.assistant(block, model=model, message_id=message_id, usage=usage))

    # Bytes

    def write(
        self,
        *,
        text: str | None = None,
        base64: str | None = None,
        stream: str = "stdout",
        newline: bool = True,
        cuts: list[int] = [],  # noqa: B006 (never changed)
        byte_by_byte: bool = False,
        pause_seconds: float = 0.0,
    ) -> None:
        """Print bytes, whole or in pieces."""
        data = _decoded(text, base64) + (b"\n" if newline else b"")
        offsets = list(range(1, len(data))) if byte_by_byte else cuts
        for begin, end in zip([0, *offsets], [*offsets, len(data)], strict=True):
            self._run.write(stream_of(stream), data[begin:end])
            time.sleep(pause_seconds)

    def api_error(
        self,
        *,
        status: int | None = 401,
        kind: str = "authentication_error",
        message: str = "OAuth token has expired. Please obtain a new token or refresh your existing token.",
        attempt: int = 1,
        frame: bool = True,
        error: str = "authentication_failed",
    ) -> None:
        """Print the CLI's own line about a refused request, and its frame."""
        body = "Connection error." if status is None else error_body(kind, message)
        self._run.write(STDERR, frames.api_error_line(status, body, attempt=attempt).encode() + b"\n")
        if frame:
            self._run.emit(frames.api_retry(attempt, delay_seconds=0.5, status=status, error=error))


def error_body(kind: str, message: str) -> str:
    """Return the body of an API error as the CLI quotes it, on one line."""
    body = {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": "req_011" + frames.new_uuid()[:8],
    }
    return json.dumps(body, separators=(",", ":"))


def _decoded(text: str | None, encoded: str | None) -> bytes:
    if (text is None) == (encoded is None):
        raise BadScript("write: give either text or base64")
    import base64

    return text.encode() if text is not None else base64.b64decode(encoded or "")


def stream_of(name: str) -> int:
    """Return the descriptor of a stream by its name."""
    if name not in STREAMS:
        raise BadScript("stream must be 'stdout' or 'stderr'")
    return STREAMS[name]
