"""One attempt in this process, with the scripted CLI: what it may do to us, and what must not wait for the loop."""

from __future__ import annotations

import asyncio
import base64
import itertools
import math
import os
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import pytest

from agent_runtime.claude.invocation import Session
from agent_runtime.delivery.credentials_file import CredentialsFile
from agent_runtime.delivery.delivery import Deliveries
from agent_runtime.delivery.reload_results import BackgroundReloadChecker
from agent_runtime.execution.attempt import PROGRESS_SECONDS, Attempt
from agent_runtime.execution.attempt_data import AttemptContext, AttemptSpec, Progress
from agent_runtime.model.state import StopReason
from agent_runtime.model.task import Task
from agent_runtime.model.tokens import Token
from agent_runtime.process.containment import registry
from agent_runtime.process.containment_choice import Containment
from agent_runtime.process.unkillable import Unkillable
from agent_runtime.secret.file import SecretFile
from agent_runtime.secret.generations import GenerationLedger
from agent_runtime.settings import load
from agent_runtime.store.transcripts import TranscriptStore, TranscriptWriter
from agent_runtime.store.workspaces import Workspaces
from agent_runtime.telemetry.redaction import Redactor
from tests.support.families import spawner
from tests.support.supervised import OLD, SCRIPTED, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent_runtime.execution.attempt_data import AttemptEvent, AttemptReport

FAILING_LINE = (
    b'2026-11-22T00:00:00.000Z [ERROR] API error (attempt 1/11): 401 401 {"type":"error","error":'
    b'{"type":"authentication_error","message":"OAuth token has expired."},"request_id":"req_1"}'
)
FAILING_FRAME = (
    b'{"type":"system","subtype":"api_retry","attempt":1,"max_retries":10,"retry_delay_ms":500,'
    b'"error_status":401,"error":"authentication_failed"}'
)


class Unproven(BackgroundReloadChecker):
    """Know nothing of the CLI, and never find out."""

    def __init__(self) -> None:
        pass

    def reload_behaviour(self) -> None:
        return None

    def begin(self) -> None:
        return None

    def close(self) -> None:
        return None


@dataclass
class Bench:
    """Everything an attempt needs, in a directory of its own."""

    home: Path
    notes: list[AttemptEvent] = field(default_factory=list)
    writers: list[TranscriptWriter] = field(default_factory=list)
    doubted: list[int] = field(default_factory=list)

    def attempt(
        self, steps: list[dict[str, Any]], tell: Callable[[AttemptEvent], object] | None = None, **env: str
    ) -> Attempt:
        (self.home / "token").write_text(OLD + "\n")
        for name in ("config", "run"):
            (self.home / name).mkdir(exist_ok=True)
        settings = load(
            {
                "AGENT_RUNTIME_TOKEN_FILE": str(self.home / "token"),
                "AGENT_RUNTIME_CONFIG_DIR": str(self.home / "config"),
                "AGENT_RUNTIME_WORKSPACE": str(self.home),
                "AGENT_RUNTIME_CLAUDE": SCRIPTED,
                "AGENT_RUNTIME_STOP_GRACE": "0.5",
                **env,
            }
        )
        ledger = GenerationLedger(self.home)
        around = AttemptContext(
            settings=settings,
            secret=SecretFile(settings.token_file, ledger=ledger),
            deliveries=Deliveries("env", CredentialsFile(self.home / "config"), Unproven()),
            redactor=Redactor(),
            environ={"PATH": os.environ["PATH"], "HOME": str(self.home)},
            workspaces=Workspaces(settings, self.home / "marks"),
            run_dir=self.home / "run",
            containment=Containment(spawner),
            unkillable=Unkillable(),
            require_for_spawn=lambda _generation, _model, _by: None,
            mark_suspect=lambda generation, _by: self.doubted.append(generation.number),
            is_known_by_others=lambda generation, _by: generation.number in self.doubted,
        )
        spec = AttemptSpec(
            execution_id=f"execution-{uuid.uuid4()}",
            task=Task(message=msgspec.json.encode({"script": steps}).decode()),
            session=Session(uuid.uuid4()),
            mark=registry.new_mark(self.home),
            total_at=time.monotonic() + 60,
        )
        self.writers.append(TranscriptStore(self.home / "transcripts").writer(spec.execution_id))
        return Attempt(spec, around, self.writers[-1], tell or self.notes.append)

    def run(self, steps: list[dict[str, Any]], **env: str) -> AttemptReport:
        attempt = self.attempt(steps, None, **env)
        try:
            return attempt.run()
        finally:
            self.writers.pop().close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    registry.become_subreaper()
    return Bench(tmp_path)


def written(data: bytes, **fields: Any) -> list[dict[str, Any]]:
    """Print exact bytes once the run has begun, and hang."""
    step = {"do": "write", "base64": base64.b64encode(data).decode(), "stream": "stderr", "newline": False, **fields}
    return [{"do": "init"}, step, {"do": "hang", "seconds": 30}]


@pytest.mark.parametrize(
    ("used_tool", "probe", "doubted"),
    [(False, "off", [1]), (False, "on_refusal", [1]), (True, "off", []), (True, "on_refusal", [1])],
)
def test_what_a_tool_may_have_forged_holds_up_nobody_where_no_probe_can_tell(
    bench: Bench, used_tool: bool, probe: str, doubted: list[int]
) -> None:
    init, *steps = written(FAILING_FRAME + b"\n", stream="stdout")
    tool = [{"do": "tool", "command": "true"}] if used_tool else []

    assert_refused(bench.run([init, *tool, *steps], AGENT_RUNTIME_PROBE=probe))

    assert bench.doubted == doubted


def test_a_frame_that_is_too_long_to_be_read_may_have_called_a_tool(bench: Bench) -> None:
    init, *steps = written(FAILING_LINE + b"\n")
    long = [{"do": "assistant", "text": "x" * 10_000}]

    assert not bench.run([init, *long, *steps]).used_tool
    assert bench.run([init, *long, *steps], AGENT_RUNTIME_FRAME_LIMIT="4096").used_tool


def assert_refused(report: AttemptReport) -> None:
    assert report.ending is not None
    assert report.ending.stop_reason is StopReason.REFUSED
    assert report.evidence is not None
    assert report.evidence.seconds_to_signal is not None


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (FAILING_LINE + b"\n", {"byte_by_byte": True}),
        (FAILING_LINE + b"\n", {"cuts": [1, 40, 90, len(FAILING_LINE) - 1], "pause_seconds": 0.02}),
        (b"x" * 65530 + b"\n" + FAILING_LINE + b"\n", {}),
        (b"\xff\xfe\x80 broken\r\n" + FAILING_LINE + b"\r\n", {}),
        (b"\x1b[31m" + FAILING_LINE + b"\x1b[0m\n", {}),
        (FAILING_LINE, {}),
        (b"y" * 400_000 + b"\n" + FAILING_LINE + b"\n", {}),
        (FAILING_FRAME + b"\n", {"stream": "stdout"}),
        (FAILING_FRAME, {"stream": "stdout"}),
        (FAILING_FRAME[:-1] + b',"padding":"' + b"z" * 1_000_000 + b'"}\n', {"stream": "stdout"}),
    ],
    ids=[
        "byte by byte",
        "cut at offsets",
        "across 64 KiB",
        "invalid UTF-8 and CR",
        "ANSI codes",
        "without a newline",
        "behind a 400 KB line",
        "a frame",
        "a frame without a newline",
        "a frame of a megabyte",
    ],
)
def test_a_refusal_is_recognised_however_it_is_written(bench: Bench, data: bytes, fields: dict[str, Any]) -> None:
    assert_refused(bench.run(written(data, **fields)))


def test_a_refusal_and_the_childs_own_end_make_one_verdict(bench: Bench) -> None:
    report = bench.run([{"do": "init"}, {"do": "api_error"}, {"do": "exit", "code": 1}])

    assert_refused(report)
    assert report.ending is not None
    assert report.ending.exit_code in (0, 1)


def test_match_and_signal_do_not_wait_for_a_blocked_event_loop(bench: Bench, tmp_path: Path) -> None:
    """The loop is held until the child is gone, which only the signal can bring about."""
    ready = tmp_path / "ready"
    steps = [{"do": "init"}, {"do": "touch", "path": str(ready), "text": "{pid}"}, {"do": "api_error"}, {"do": "hang"}]

    def has_ended() -> bool:
        text = ready.read_text().strip() if ready.exists() else ""
        return bool(text) and not psutil.pid_exists(int(text))

    async def main() -> AttemptReport:
        loop = asyncio.get_running_loop()
        attempt = bench.attempt(steps, lambda note: loop.call_soon_threadsafe(bench.notes.append, note))
        reports: list[AttemptReport] = []
        thread = threading.Thread(target=lambda: reports.append(attempt.run()))
        thread.start()
        eventually(has_ended)  # blocks the loop on purpose
        assert bench.notes == [], "the loop did run"
        await asyncio.to_thread(thread.join)
        return reports[0]

    assert_refused(asyncio.run(main()))


def test_output_without_end_is_bounded_and_hides_nothing(bench: Bench) -> None:
    report = bench.run(
        [
            {"do": "init"},
            {"do": "flood", "bytes": 50_000_000},
            {"do": "flood", "bytes": 20_000_000, "line_bytes": 0},
            {"do": "flood", "bytes": 20_000_000, "line_bytes": 0, "stream": "stderr"},
            {"do": "write", "text": "", "stream": "stderr"},
            {"do": "api_error"},
            {"do": "hang"},
        ],
        AGENT_RUNTIME_FRAME_LIMIT="65536",
    )

    assert_refused(report)
    transcript = next((bench.home / "transcripts").glob("*.jsonl")).read_bytes()
    assert max(map(len, transcript.splitlines())) <= 65536
    assert b"frame_too_long" in transcript


PARTIALS = (b'{"type":"stream_event","event":{}}', b'{"a":"%s","type":"stream_event"}' % (b"x" * 70))
RESULT = b'{"type":"result","subtype":"success","is_error":false,"result":"x","num_turns":1}'


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("printed", "kept"),
    [
        ([b'{"type":"user"}', b'{"type":"user","a":"\\n"}'], None),
        ([b' {"type":"user"}', b'{"type":"user"}\r'], [b'{"type":"user"}', b'{"type":"user"}']),
        ([b'{"type":', b'"user"}'], [b'{"type":', b'"user"}']),
        ([b"", b"[{}]", b"{}{}", b"it says", b"{}"], [b"", b"[{}]", b"{}{}", b"it says", b"{}"]),
        ([b'{"type":"user"}', *PARTIALS, b'{"type":"user"}'], None),
        ([PARTIALS[0] + b' {"type":"user"}'], [PARTIALS[0], b'{"type":"user"}']),
        ([b'{"type":"user","a":"%s"}' % OLD.encode(), b'{"type":"user"}'], None),
    ],
    ids=["frames", "spaces", "an object over two lines", "no frames", "partial ones", "a partial one first", "a token"],
)
def test_lines_that_come_together_are_kept_like_each_alone(
    bench: Bench, printed: list[bytes], kept: list[bytes] | None, keep: bool
) -> None:
    data = b"".join(line + b"\n" for line in [*printed, RESULT])
    step = {"do": "write", "base64": base64.b64encode(data).decode(), "newline": False}
    report = bench.run([{"do": "init"}, step], AGENT_RUNTIME_KEEP_PARTIAL=str(keep).lower())

    [path] = (bench.home / "transcripts").glob("*.jsonl")
    transcript = [line for _, line in TranscriptStore(path.parent).reader(path.stem).read(0)]
    expected = [line for line in kept or printed if keep or line not in PARTIALS]
    found = transcript[-1 - len(expected) :]
    assert report.result_line == len(transcript)
    assert found.pop() == RESULT
    for line, wanted in zip(found, expected, strict=True):
        if kept is not None and wanted in printed and wanted != b"{}":
            assert msgspec.json.decode(line) == {"type": "agent_runtime", "subtype": "text", "text": wanted.decode()}
        else:
            assert line == wanted.replace(OLD.encode(), f"[token:{Token(OLD).fingerprint}]".encode())


def test_progress_is_published_seldom_but_never_forgotten(bench: Bench) -> None:
    told: list[tuple[float, int]] = []

    def tell(event: AttemptEvent) -> None:
        if isinstance(event, Progress):
            told.append((time.monotonic(), bench.writers[-1].last_line))

    flood = {"do": "flood", "bytes": 20_000_000}
    attempt = bench.attempt([{"do": "init"}, flood, {"do": "write", "text": "the last"}, {"do": "hang"}], tell)
    thread = threading.Thread(target=attempt.run)
    thread.start()

    def is_told_of_the_last() -> bool:
        lines = bench.writers[-1].read(bench.writers[-1].last_line - 1)
        return bool(lines and told) and b"the last" in lines[-1][1] and told[-1][1] == lines[-1][0]

    eventually(is_told_of_the_last)
    attempt.request_stop(StopReason.CANCELLED, at_once=True)
    thread.join()
    bench.writers.pop().close()
    times = [at for at, _ in told]
    assert len(times) > 2
    assert min(later - earlier for earlier, later in itertools.pairwise(times[:-1])) > 0.9 * PROGRESS_SECONDS


def test_a_prompt_that_is_never_read_costs_nothing_but_the_deadline(bench: Bench, tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_bytes(msgspec.json.encode({"script": [{"do": "init"}, {"do": "hang"}]}))
    attempt = bench.attempt([{"do": "write", "text": "x" * 3_000_000}], AGENT_RUNTIME_FIRST_MESSAGE_TIMEOUT="0.5")
    attempt._context.environ["SCRIPTED_CLI_SCRIPT"] = str(script)  # type: ignore[index] # a dict in this test

    report = attempt.run()

    assert report.ending is not None
    assert report.ending.stop_reason is StopReason.FIRST_MESSAGE_TIMEOUT


def test_a_stop_asked_for_before_the_spawn_spawns_nothing(bench: Bench) -> None:
    attempt = bench.attempt([{"do": "init"}, {"do": "result"}])
    attempt.request_stop(StopReason.CANCELLED)

    report = attempt.run()

    assert report.pid is None
    assert report.ending is not None
    assert report.ending.stop_reason is StopReason.CANCELLED


def test_the_first_stop_reason_wins_however_many_come(bench: Bench) -> None:
    attempt = bench.attempt([{"do": "init"}, {"do": "hang"}])
    reports: list[AttemptReport] = []
    thread = threading.Thread(target=lambda: reports.append(attempt.run()))
    thread.start()
    for reason in (StopReason.CANCELLED, StopReason.SHUTDOWN, StopReason.CANCELLED):
        attempt.request_stop(reason)
    thread.join()

    assert attempt.stop_reason is StopReason.CANCELLED
    attempt.request_stop(StopReason.SHUTDOWN, at_once=True)
    assert attempt.stop_reason is StopReason.CANCELLED


def test_an_attempt_leaves_no_descriptor_no_thread_and_no_file(bench: Bench) -> None:
    bench.run([{"do": "init"}, {"do": "result"}])
    descriptors, threads = psutil.Process().num_fds(), threading.active_count()

    bench.run([{"do": "init"}, {"do": "result"}])
    bench.run([{"do": "exit", "code": 3}])
    bench.run([{"do": "api_error"}, {"do": "hang"}])
    bench.run([{"do": "init"}], AGENT_RUNTIME_CLAUDE="/nonexistent")

    assert psutil.Process().num_fds() == descriptors
    assert threading.active_count() == threads
    assert list((bench.home / "run").iterdir()) == []


def test_lines_that_end_only_after_the_child_are_told_of(bench: Bench) -> None:
    told = []

    def tell(event: AttemptEvent) -> None:
        if isinstance(event, Progress):
            told.append(bench.writers[-1].last_line)

    last = {"do": "write", "base64": base64.b64encode(b"its last words").decode(), "stream": "stdout", "newline": False}
    stays = {"do": "spawn", "kind": "setsid", "seconds": 30, "hold_pipes": True}
    bench.attempt([{"do": "init"}, {"do": "sleep", "seconds": 0.1}, stays, last, {"do": "exit", "code": 3}], tell).run()

    writer = bench.writers.pop()
    writer.close()
    assert told[-1] == writer.last_line == 2


def test_a_result_is_the_end_also_where_the_process_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_runtime.execution.deadlines.LINGER_SECONDS", 0.3)

    report = bench.run([{"do": "init"}, {"do": "result", "text": "Done."}, {"do": "hang"}])

    assert report.ending is not None
    assert report.ending.stop_reason is StopReason.LINGERED
    assert report.ending.result is not None
    assert not report.ending.result.is_error


def test_a_result_is_not_the_end_while_a_background_task_is_pending(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("agent_runtime.execution.deadlines.LINGER_SECONDS", 0.1)
    go = tmp_path / "go"
    steps: list[dict[str, Any]] = [
        {"do": "init"},
        {"do": "background", "tasks": ["b1"]},
        {"do": "result", "text": "Waiting."},
        {"do": "touch", "path": str(tmp_path / "waiting")},
        {"do": "wait_file", "path": str(go)},
        {"do": "background", "tasks": []},
        {"do": "init"},
        {"do": "result", "text": "Done."},
    ]
    attempt = bench.attempt(steps)
    reports: list[AttemptReport] = []
    thread = threading.Thread(target=lambda: reports.append(attempt.run()))
    thread.start()
    eventually((tmp_path / "waiting").exists)
    go.touch()
    thread.join()

    ending = reports[0].ending
    assert ending is not None
    assert ending.result is not None
    assert (ending.stop_reason, ending.result.text) == (None, "Done.")
    assert math.isfinite(reports[0].ended_at)
