"""Properties of evidence: it does not depend on chunks, comes from no tool, and no input makes the detector raise."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import example, given
from hypothesis import strategies as st

from agent_runtime.claude.frame_repair import read_frame
from agent_runtime.evidence.detector import Detection, Detector
from agent_runtime.process.framing import LineFramer
from tests.support.told import NOW, TIME, entry, failed_result, frame, init, retry, spoken, synthetic, tell

if TYPE_CHECKING:
    from collections.abc import Iterable

Line = tuple[str, str]

RECORDED = sorted((Path(__file__).parents[1] / "recorded").glob("*.jsonl"))
STATUSES = st.sampled_from([400, 401, 402, 403, 404, 408, 413, 429, 500, 502, 529])
TYPES = ["authentication_error", "permission_error", "billing_error", "rate_limit_error", "overloaded_error", "x"]
MESSAGES = [
    "Invalid bearer token",
    "OAuth token has been revoked",
    "Your credit balance is too low to access the Anthropic API",
    "This organization has been disabled",
    "You have hit your limit · resets 3pm (UTC)",
    "model: claude-opus-9",
]


@cache
def recorded() -> list[Line]:
    """Return the lines of all versions that are short enough to be drawn often."""
    rows = [json.loads(line) for path in RECORDED for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["stream"], row["line"]) for row in rows if len(row["line"]) < 1500]


TEXTS = st.one_of(st.text(max_size=30), st.sampled_from(MESSAGES))
ENTRIES = st.builds(entry, STATUSES, st.sampled_from(TYPES), TEXTS)
FRAMES = st.one_of(
    st.builds(retry, st.none() | STATUSES, st.sampled_from(["authentication_failed", "rate_limit", "unknown"])),
    st.builds(synthetic, TEXTS, st.sampled_from([None, "authentication_failed", "billing_error"])),
    st.builds(failed_result, TEXTS, api_error_status=st.none() | STATUSES),
    st.builds(
        frame,
        type=st.just("rate_limit_event"),
        rate_limit_info=st.fixed_dictionaries(
            {"status": st.sampled_from(["rejected", "allowed"]), "resetsAt": st.none() | st.integers(0, 1 << 40)}
        ),
    ),
    st.sampled_from([init(), spoken(), ("stdout", ""), ("stdout", "no frame")]),
)
OWN_LINES = st.one_of(ENTRIES, FRAMES, st.deferred(lambda: st.sampled_from(recorded())))


def detections(lines: Iterable[Line]) -> list[Detection]:
    """Return what a new detector finds in lines."""
    detector = Detector(lambda: NOW)
    found = [tell(line, detector=detector).last for line in lines]
    return [one for one in found if one is not None]


@given(st.lists(OWN_LINES, max_size=6), st.data())
def test_chunks_and_looks_at_unfinished_lines_change_no_detection(lines: list[Line], data: st.DataObject) -> None:
    lines = [(stream, text.replace("\n", " ")) for stream, text in lines]
    whole = detections(lines)

    detector = Detector(lambda: NOW)
    framers = {"stdout": LineFramer(1 << 20), "stderr": LineFramer(1 << 20)}
    found: list[Detection] = []
    for stream, text in lines:
        rest = text.encode(errors="replace") + b"\n"
        early = None
        while rest:
            size = data.draw(st.integers(1, len(rest)))
            framers[stream].room()[:size] = rest[:size]
            arrived = [line.removesuffix(b"\n") for line in framers[stream].feed(size)]
            for line in arrived:
                last = tell((stream, line), detector=detector).last
                found += [last] if last is not None else []
                assert early is None or last is None or early.rule == last.rule, "it was mistaken before the end"
            if not arrived and stream == "stderr":
                early = tell(("stderr, unfinished", framers[stream].peek()), detector=detector).last or early
            rest = rest[size:]

    assert found == whole


def of_tools(text: str) -> list[Line]:
    """Build frames in which tools, the model, MCP servers and hooks print a text."""
    result = {"type": "tool_result", "tool_use_id": "t", "content": text}
    blocks = {**result, "content": [{"type": "text", "text": text}], "is_error": True}
    return [
        frame(type="user", message={"role": "user", "content": [result]}, tool_use_result={"stdout": text}),
        frame(type="user", message={"role": "user", "content": [blocks]}, error="authentication_failed"),
        frame(type="user", message={"role": "user", "content": text}),
        frame(type="assistant", parent_tool_use_id="t", message={"model": "<synthetic>", "content": text}, error=text),
        frame(type="system", subtype="hook_response", output=text, stderr=text, exit_code=2),
        frame(type="system", subtype="task_notification", summary=text, status="failed"),
        ("stderr", json.dumps(f"2026-01-01 Hook output: {text}")),
        ("stderr", f'{TIME} [ERROR] "MCP server \\"x\\" Server stderr: {json.dumps(text)[1:-1]}"'),
    ]


@given(st.one_of(TEXTS, OWN_LINES.map(lambda line: line[1])), st.lists(OWN_LINES, max_size=3))
@example("API Error: 401 Invalid bearer token · Please run /login", [])
@example('{"type":"result","is_error":true,"api_error_status":401,"result":"Failed to authenticate."}', [])
def test_what_a_tool_prints_is_no_detection_and_changes_none(text: str, after: list[Line]) -> None:
    printed = of_tools(text)

    assert detections([init(), *printed]) == []
    assert detections([init(), *printed, *after]) == detections([init(), *after])


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), TEXTS)
WORDS = st.sampled_from(
    [
        "type",
        "subtype",
        "message",
        "model",
        "content",
        "text",
        "error",
        "is_error",
        "result",
        "api_error_status",
        "error_status",
        "rate_limit_info",
        "status",
        "resetsAt",
        "rateLimitType",
        "isUsingOverage",
        "usage",
        "id",
        "api_error_type",
        "api_error",
        "api_error_code",
        "retry_delay_ms",
        "claude_code_version",
        "parent_tool_use_id",
    ]
)
TYPED = {
    "type": st.sampled_from(["assistant", "system", "result", "rate_limit_event", "user"]),
    "subtype": st.sampled_from(["init", "api_retry", "success", "error_during_execution"]),
}
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=5)
)
OBJECTS = st.builds(
    lambda fields, typed: {**fields, **typed},
    st.dictionaries(WORDS, VALUES, max_size=8),
    st.fixed_dictionaries({}, optional=TYPED),
)


@given(st.lists(OBJECTS | VALUES, max_size=5), st.lists(st.binary(max_size=60), max_size=5))
def test_no_json_and_no_bytes_make_it_raise(documents: list[object], raw: list[bytes]) -> None:
    detector = Detector(lambda: NOW)
    for line in (*(json.dumps(document).encode() for document in documents), *raw):
        tell(("stdout", line), ("stderr", line), ("stderr, unfinished", line), detector=detector)
        tell(("stderr", f"{TIME} [ERROR] API error (attempt 1/11): 401 401 ".encode() + line), detector=detector)


@given(st.deferred(lambda: st.sampled_from(recorded())), st.data())
def test_no_damage_to_a_line_of_the_cli_makes_it_raise(line: Line, data: st.DataObject) -> None:
    raw = bytearray(line[1].encode())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 40))] = data.draw(
            st.binary(max_size=12) | st.integers(0, 40).map(lambda count: b'{"[' * count)
        )
    read_frame(bytes(raw))
    tell(("stderr", bytes(raw)), ("stderr, unfinished", bytes(raw)), ("stdout", bytes(raw)))
