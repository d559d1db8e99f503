"""Write an execution's events for a person, or as JSON lines for a script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

import msgspec

from agent_runtime.client import Answer, ClientError, StreamEvent

SUMMARY_LENGTH = 160
IDENTIFYING_FIELDS = ("command", "file_path", "path", "pattern", "url", "query", "description", "prompt", "skill")
"""Inputs of the CLI's tools that identify a call best. Source: ``tests/recorded``, Claude Code 2.1.330."""

_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160), *_BIDI), "�")
_TEXT = _CONTROLS | {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}
_LINE = _CONTROLS | {ord("\n"): " ", ord("\t"): " ", ord("\r"): ""}


def safe_text(value: object) -> str:
    """Return text that is harmless for a terminal: control characters of a model's or tool's text are replaced."""
    return str(value).translate(_TEXT)


def safe_line(value: object) -> str:
    """Return any value as one line of at most :data:`SUMMARY_LENGTH` characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    head = text[: SUMMARY_LENGTH * 4].translate(_LINE).strip()
    return head if len(head) <= SUMMARY_LENGTH else head[: SUMMARY_LENGTH - 1] + "\N{HORIZONTAL ELLIPSIS}"


class TextOutput:
    """Write events for a person: text as it is, each tool call and each state on a line of its own."""

    def __init__(self, sink: TextIO) -> None:
        self._sink = sink
        self._state: str | None = None
        self._last_text: str | None = None
        self._begun = ""

    def event(self, event: StreamEvent) -> None:
        """Show one event."""
        if event.name == "partial":
            self._partial(event.data)
        for line in self._lines(event):
            self._sink.write(self._rest(line))
        self._sink.flush()

    def answer(self, answer: Answer) -> None:
        """Show how the execution ended, in one line."""
        counts = answer.metadata
        parts = [answer.status]
        if counts.num_turns:
            parts.append(f"{counts.num_turns} turn{'' if counts.num_turns == 1 else 's'}")
        if counts.duration_ms:
            parts.append(f"{counts.duration_ms / 1000:.1f} s")
        if counts.cost_usd:
            parts.append(f"${counts.cost_usd:.4f}")
        parts.append(f"execution {answer.execution_id}")
        self._sink.write(self._rest(f"[{safe_line(', '.join(parts))}]"))
        self._sink.flush()

    def failed(self, error: ClientError) -> None:
        """Show nothing: the caller prints the error on stderr."""

    def _partial(self, piece: dict[str, Any]) -> None:
        """Write text while the model writes it; not that of sub-agents, whose texts would mix with it."""
        if piece.get("parent_tool_use_id") is None:
            text = safe_text(piece.get("text", ""))
            text = text if self._begun else text.lstrip()
            self._begun += text
            self._sink.write(text)

    def _rest(self, line: str) -> str:
        """Return the part of *line* that is not yet written, if partial text has begun it; else all of it."""
        begun, self._begun = self._begun, ""
        if line.startswith(begun):
            return line.removeprefix(begun) + "\n"
        end = "" if begun.endswith("\n") else "\n"
        return end if line == begun.rstrip() else f"{end}{line}\n"

    def _lines(self, event: StreamEvent) -> Iterator[str]:
        if event.name == "message":
            yield from self._frame(event.data)
        elif event.name == "state":
            state = "held" if event.data.get("held") else str(event.data.get("state"))
            if state not in (self._state, "finished"):
                self._state = state
                yield f"[{safe_line(state)}]"
        elif event.name == "gap":
            yield f"[lines {event.data.get('first')} to {event.data.get('last')} are missing]"

    def _frame(self, frame: dict[str, Any]) -> Iterator[str]:
        kind = frame.get("type"), frame.get("subtype")
        if kind[0] == "assistant":
            indent = "  " if frame.get("parent_tool_use_id") else ""
            for block in _blocks(frame):
                if block.get("type") == "tool_use":
                    yield f"{indent}> {safe_line(_call(block))}"
                elif block.get("type") == "text" and isinstance(block.get("text"), str):
                    self._last_text = block["text"].strip()
                    mark = "! " if frame.get("error") else ""
                    yield "\n".join(indent + mark + line for line in safe_text(self._last_text).splitlines())
        elif kind == ("system", "init"):
            yield f"[model {safe_line(frame.get('model'))}, session {safe_line(frame.get('session_id'))}]"
        elif kind == ("system", "api_retry"):
            status = frame.get("error_status") or "nothing"
            of = f", try {safe_line(frame.get('attempt'))} of {safe_line(frame.get('max_retries'))}"
            yield f"! the API answered {safe_line(status)} ({safe_line(frame.get('error'))}){of}"
        elif kind[0] == "result" and isinstance(frame.get("result"), str):
            text = frame["result"].strip()
            if text and text != self._last_text:
                yield safe_text(text)


class JsonLines:
    """Write one JSON object a line: ``{"event", "id", "data"}``, and last ``answer`` or ``problem``."""

    def __init__(self, sink: TextIO) -> None:
        self._sink = sink

    def event(self, event: StreamEvent) -> None:
        """Write one event."""
        self._write(event.name, event.data, event.id)

    def answer(self, answer: Answer) -> None:
        """Write the answer, without the frames, which were written as events."""
        fields = msgspec.to_builtins(answer)
        del fields["execution_log"], fields["truncated_log"]
        self._write("answer", fields)

    def failed(self, error: ClientError) -> None:
        """Write the problem document of an error."""
        fields = msgspec.to_builtins(error.problem)
        self._write("problem", {name: value for name, value in fields.items() if value is not None})

    def _write(self, name: str, data: dict[str, Any], number: int | None = None) -> None:
        line = {"event": name, **({} if number is None else {"id": number}), "data": data}
        self._sink.write(json.dumps(line) + "\n")
        self._sink.flush()


def _blocks(frame: dict[str, Any]) -> list[dict[str, Any]]:
    message = frame.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _call(block: dict[str, Any]) -> str:
    """Return a tool call in one line: its name, and the input that identifies it best."""
    given = block.get("input")
    fields = given if isinstance(given, dict) else {}
    identifying = next((fields[name] for name in IDENTIFYING_FIELDS if isinstance(fields.get(name), str)), None)
    about = safe_line(identifying if identifying is not None else fields) if fields else ""
    return f"{block.get('name')}: {about}" if about else str(block.get("name"))
