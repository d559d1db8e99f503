"""Make lines as the CLI prints them, and read them as an attempt does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agent_runtime.claude.frame_repair import read_frame
from agent_runtime.claude.log_entries import LogEntry
from agent_runtime.evidence.detector import Channel, Detection, Detector

TIME = "2026-01-01T00:00:10.000Z"
NOW = datetime(2026, 9, 30, 10, 0, 30, tzinfo=UTC).timestamp()
STOPPED = {"auth", "billing"}
"""The classes for which an attempt is stopped at the first line."""


@dataclass
class Story:
    """The errors that a detector has found in some lines."""

    last: Detection | None = None
    evidence: Detection | None = None

    @property
    def error_class(self) -> str | None:
        return self.last.rule.error_class.value if self.last else None


def tell(*lines: tuple[str, str | bytes], detector: Detector | None = None) -> Story:
    detector = detector or Detector(lambda: NOW)
    story = Story()
    for stream, line in lines:
        data = line.encode() if isinstance(line, str) else line
        if stream.startswith("stderr"):
            detection = detector.stderr(LogEntry.of(data), finished=stream != "stderr, unfinished")
        else:
            frame = read_frame(data)
            detection = detector.stdout(frame) if frame is not None else None
        if detection is not None:
            assert detection.channel is Channel(stream.partition(",")[0])
            story.last = detection.merged_with(story.last)
            if detection.rule.is_evidence and story.evidence is None:
                story.evidence = detection
    return story


def frame(**fields: Any) -> tuple[str, str]:
    return "stdout", json.dumps(fields)


def synthetic(text: str, error: str | None, **fields: Any) -> tuple[str, str]:
    content = [{"type": "text", "text": text}]
    return frame(type="assistant", message={"model": "<synthetic>", "content": content}, error=error, **fields)


def failed_result(text: str, **fields: Any) -> tuple[str, str]:
    return frame(type="result", subtype="success", is_error=True, result=text, **fields)


def entry(status: int, kind: str, message: str) -> tuple[str, str]:
    """Return stream and line by which the CLI reports an error answer in the API's own form."""
    return answered(status, {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req"})


def answered(status: int, body: object) -> tuple[str, str]:
    """Return stream and line by which every version reports an answer; a body that is no text is written as JSON."""
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    return "stderr", f"{TIME} [ERROR] API error (attempt 1/11): {status} {status} {text}"


def init(model: str = "claude-sonnet-5-5") -> tuple[str, str]:
    return frame(type="system", subtype="init", model=model, claude_code_version="2.1.332")


def spoken(model: str = "claude-sonnet-5-5") -> tuple[str, str]:
    """Return stream and line of a message of the run's model."""
    return frame(type="assistant", message={"model": model, "content": []})


def retry(status: int | None, word: str, **fields: Any) -> tuple[str, str]:
    return frame(type="system", subtype="api_retry", attempt=1, error_status=status, error=word, **fields)
