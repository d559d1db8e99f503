"""What a child prints counts the same however its lines are cut into reads: many together, or each alone."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agent_runtime.execution.output import ChildOutput
from agent_runtime.process.framing import LineFramer
from agent_runtime.store.transcripts import TranscriptStore
from agent_runtime.telemetry.live_text import LiveTexts, LiveTextWriter
from agent_runtime.telemetry.redaction import Redactor

if TYPE_CHECKING:
    from pathlib import Path

CONTENTS: tuple[object, ...] = (
    [{"type": "text", "text": "It says."}],
    [{"type": "thinking", "thinking": "…"}, {"type": "text", "text": "It says more."}],
    [{"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}}],
    "only text",
)


def lines() -> list[bytes]:
    """Return lines of every kind that matters here: messages of the model and of others, errors, and damaged lines."""
    found: list[bytes] = []
    for number in range(3):
        usage = {"input_tokens": number, "output_tokens": 2 * number}
        whole = {"id": f"msg_{number}", "model": f"model-{number}", "usage": usage}
        event = {"type": "message_start", "message": {"id": f"msg_{number}", "model": "model-1", "usage": usage}}
        found.append(line(type="stream_event", event=event))
        found.append(line(type="stream_event", event={"type": "message_delta", "usage": {"output_tokens": 9}}))
        found += [
            line(type="assistant", message=message | {"content": content}, parent_tool_use_id=parent)
            for content in CONTENTS
            for parent in (None, "toolu_2")
            for message in (whole, {"model": "model-1"}, {})
        ]
    gave_up = {"model": "<synthetic>", "content": [{"type": "text", "text": "API Error: 529 Overloaded"}]}
    return [
        *found,
        line(type="assistant", message=gave_up, error="server_error"),
        line(type="user", message={"content": [{"type": "tool_result", "tool_use_id": "toolu_1"}]}),
        line(type="system", subtype="init", model="model-2", permissionMode="default", claude_code_version="2.1.332"),
        line(type="system", subtype="api_retry", error_status=529, error="overloaded"),
        line(type="result", subtype="success", is_error=False, result="x", num_turns=2, usage={"output_tokens": 40}),
        line(type="assistant", message={"content": [], "model": "model-1"}, deep=deep(250)),
        b" " + found[3],
        found[3][:-1] + b"\r\n",
        b"and then " + found[5],
        found[4][:-1] + found[6],
        found[3].replace(b"says", b"s\xffys"),
        b"\n",
        b"{\n",
        b"no frame\n",
    ]


def line(**fields: object) -> bytes:
    return msgspec.json.encode(fields) + b"\n"


def deep(levels: int) -> object:
    return [deep(levels - 1)] if levels else 1


def outcome(path: Path, chunks: list[bytes]) -> dict[str, Any]:
    redactor, writer, errors = Redactor(), TranscriptStore(path).writer("x"), list[tuple[str, bytes]]()
    output = ChildOutput(
        writer,
        redactor,
        keep_partial=False,
        live_text=LiveTextWriter(LiveTexts(), redactor),
        brings_images=False,
        on_error=lambda detection, data, _: errors.append((detection.rule.id, data)),
        on_sign=lambda _sign, _at: None,
    )
    framer = LineFramer(1 << 20)
    for number, chunk in enumerate(chunks):
        framer.room()[: len(chunk)] = chunk
        output.stdout(framer.feed(len(chunk)), float(number))
    writer.close()
    run_stats = output.run_stats
    return {
        "transcript": (path / "x.jsonl").read_bytes().splitlines(),
        "errors": errors,
        "last error": output.last_error,
        "result line": output.result_line,
        "usage": run_stats.usage.so_far,
        "result": run_stats.result,
        "stop reason": run_stats.answer.stop_reason,
        "stage": run_stats.stage,
        "counts": (run_stats.model_frames, run_stats.tool_count, run_stats.tool_results, run_stats.open_tools),
    }


@pytest.mark.parametrize("seed", range(60))
def test_lines_that_come_together_count_like_each_alone(tmp_path: Path, seed: int) -> None:
    chosen = random.Random(seed).choices(lines(), k=40)
    alone = outcome(tmp_path / "alone", chosen)

    assert outcome(tmp_path / "together", [b"".join(chosen)]) == alone
    assert len(alone["transcript"]) > 10
