"""Logs: one event a line, the same fields in both forms, each with its execution's id, and nobody waits for it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.model.tokens import Token
from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve
from agent_runtime.telemetry.logs import (
    FLUSH_SECONDS,
    LINES_LIMIT,
    BoundFields,
    JsonFormatter,
    LogQueue,
    TextFormatter,
    log_fields,
)
from agent_runtime.telemetry.redaction import Redactor
from tests.support.supervised import NEW, OLD, eventually, marked_processes, supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MARKS = {secret: f"[token:{Token(secret).fingerprint}]" for secret in (OLD, NEW)}
KEY = "the-access-key-of-the-log-tests-0123456789abcdef"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACE = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
PIPE_BYTES = 4096
SIGNALLED_WITHIN_SECONDS = 0.2
"""Ten times what is asked of the way from the line to the signal."""


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def a_record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("agent_runtime.test", logging.WARNING, __file__, 1, message, arguments, None)
    for name, value in extra.items():
        setattr(record, name, value)
    BoundFields().filter(record)
    return record


# -- one line


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
@pytest.mark.parametrize("text", ["two\nlines", "cr\r\n", "\x1b[2J", "\u2028", "half \udcff", "\x85next"])
def test_an_event_is_one_line_whatever_it_says(formatter: logging.Formatter, text: str) -> None:
    line = formatter.format(a_record("it said %s", text, execution_id="one"))

    assert len(line.splitlines() if isinstance(formatter, TextFormatter) else line.split("\n")) == 1
    assert "\x1b" not in line
    line.encode()


def test_both_forms_have_the_same_fields() -> None:
    with log_fields(execution_id="one", trace_id=TRACE_ID, generation=None):
        record = a_record("it is %s", "so", generation=3, seconds=0.5, status=200)
    event = json.loads(JsonFormatter().format(record))
    text = TextFormatter().format(record)

    assert list(event) == [
        *("time", "level", "logger", "message"),
        *("execution_id", "trace_id", "generation", "status", "seconds"),
    ]
    assert event["time"].endswith("Z"), "with its zone"
    assert (event["generation"], event["seconds"]) == (3, 0.5)
    assert text == (
        f"{event['time']} WARNING agent_runtime.test: it is so"
        f" execution_id=one trace_id={TRACE_ID} generation=3 status=200 seconds=0.5"
    )


def test_what_a_line_is_about_follows_into_threads_that_are_told_and_ends() -> None:
    with log_fields(execution_id="outer"):
        with log_fields(execution_id="inner"):
            assert vars(a_record("x"))["execution_id"] == "inner"
        assert vars(a_record("x"))["execution_id"] == "outer"
        assert vars(a_record("x", execution_id="said"))["execution_id"] == "said", "what a call says wins"
    assert "execution_id" not in vars(a_record("x"))


# -- a whole execution


@pytest.mark.slow
def test_every_line_of_an_execution_carries_its_id_and_trace(tmp_path: Path) -> None:
    api = MessagesApi()
    api.accept(OLD)
    go = tmp_path / "go"
    wait = f"touch {go}.began; until test -e {go}; do sleep 0.02; done"
    api.script("work", Tool(command=wait), Text(text="finished"))
    (tmp_path / "key").write_text(KEY)
    flags = (
        *("--log-format", "json", "--token-delivery", "env", "--access-key-file", str(tmp_path / "key")),
        *("--probe", "off", "--strict", "false"),
    )
    with serve(api) as url, supervised(tmp_path, api_url=url, flags=flags) as running:
        running.client.headers["X-Agent-Token"] = KEY
        body = {
            "message": f"[[script:work]] Do it. {OLD}",
            "execution_id": "one",
            "park_seconds": 60,
            "async_result": True,
            "odd": 1,
        }
        assert running.client.post("/api/task", json=body, headers=TRACE).status_code == 202
        eventually((tmp_path / "go.began").exists)
        api.on(OLD, "expired")
        go.touch()
        eventually(lambda: running.record("one")["state"] == "parked")
        api.accept(NEW)
        running.write_token(NEW)
        eventually(lambda: running.record("one")["outcome"] == "success")
        assert running.client.get(f"/api/executions/{OLD}?key={KEY}").status_code == 404
        running.client.request("ODD", f"/{OLD}")
    found = events(running.log)

    mine = [event for event in found if "execution" in event["message"] or "attempt" in event["message"]]
    assert {event.get("execution_id") for event in mine} == {"one"}
    course = [event["message"].partition(":")[0] for event in found if event.get("trace_id") == TRACE_ID]
    assert set(course) >= {
        *("execution admitted", "attempt spawned", "attempt stopping", "execution parked for 60 s"),
        *("execution finished", "request answered", "token refused"),
    }
    threads = {event["logger"] for event in found if event.get("execution_id") == "one"}
    assert "agent_runtime.tokens.verifier" in threads, "also where the execution only gave the occasion"
    assert {event["generation"] for event in found if event["message"].startswith("attempt spawned")} == {1, 2}
    [ignored] = [event for event in found if event["message"].startswith("unknown fields")]
    assert ignored["execution_id"] == "one"
    assert not any(secret in running.log.read_text() for secret in (OLD, NEW, KEY, "Do it."))


def test_an_attempts_own_thread_logs_with_the_id(tmp_path: Path) -> None:
    script = {"permission_mode": "default", "script": [{"do": "init"}, {"do": "hang"}]}
    with supervised(tmp_path, flags=("--log-format", "json")) as running:
        assert running.post(script, execution_id="one").status_code == 500
    [event] = [event for event in events(running.log) if event["message"].startswith("permission mode")]

    assert (event["logger"], event["execution_id"]) == ("agent_runtime.execution.attempt", "one")


# -- the access log


def test_requests_are_logged_with_what_the_table_of_routes_knows_and_probes_only_for_debugging(tmp_path: Path) -> None:
    with supervised(tmp_path, flags=("--log-format", "json")) as running:
        script = {"script": [{"do": "init"}, {"do": "result"}]}
        running.post(script, execution_id="one")
        running.client.get("/api/executions/one")
        running.client.get("/api/executions?label.secret=query")
        running.client.get("/api/executions/unknown-id")
        running.client.get("/no/such/path")
        running.client.post("/api/task", content=b"{")
        for path in ("/livez", "/readyz", "/metrics"):
            running.client.get(path)
    found = [event for event in events(running.log) if event["message"] == "request answered"]

    assert [
        (event["level"], event["method"], event["path"], event["status"], event.get("execution_id")) for event in found
    ] == [
        ("info", "POST", "/api/task", 200, "one"),
        ("info", "GET", "/api/executions/{id}", 200, "one"),
        ("info", "GET", "/api/executions", 200, None),
        ("info", "GET", "/api/executions/{id}", 404, None),
        ("info", "GET", "unknown", 404, None),
        ("info", "POST", "/api/task", 400, None),
        ("debug", "GET", "/livez", 200, None),
        ("debug", "GET", "/readyz", 200, None),
        ("debug", "GET", "/metrics", 200, None),
    ]
    assert all(0 < event["seconds"] < 60 for event in found)
    assert "secret=query" not in running.log.read_text()
    assert "unknown-id" not in running.log.read_text()


@pytest.mark.slow
def test_the_access_log_can_be_turned_off(tmp_path: Path) -> None:
    with supervised(tmp_path, environment={"AGENT_RUNTIME_ACCESS_LOG": "false"}) as running:
        running.client.get("/api/token")
        metrics = running.client.get("/metrics").text

    assert "request answered" not in running.log.read_text()
    assert 'http_requests_total{method="GET",path="/api/token",status="200"} 1.0' in metrics


# -- nobody waits for whoever reads it


def full_pipe() -> tuple[int, int]:
    """Make a pipe that takes nothing more, and blocks who writes."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * PIPE_BYTES)
    os.set_blocking(writer, True)
    return reader, writer


@contextlib.contextmanager
def queue_to_full_pipe(limit: int = LINES_LIMIT) -> Iterator[tuple[int, LogQueue]]:
    """
    Log into a full pipe, and yield its reading end and the queue.

    No line is left when the pipe is closed: it would be written to a file that is opened later and gets its number.
    """
    reader, writer = full_pipe()
    lines_out = queue_to(writer, limit)
    try:
        yield reader, lines_out
    finally:
        os.close(reader)
        eventually(lambda: not lines_out._lines.unfinished_tasks)
        os.close(writer)


def queue_to(descriptor: int, limit: int = LINES_LIMIT) -> LogQueue:
    lines_out = LogQueue(descriptor, Redactor([Token(OLD), Token(NEW)]), limit)
    lines_out.setFormatter(TextFormatter())
    return lines_out


def read_until(reader: int, end: bytes) -> bytes:
    found = b""
    while end not in found:
        chunk = os.read(reader, 65536)
        assert chunk, found[-200:]
        found += chunk
    return found


def test_lines_come_out_in_order_and_the_end_waits_for_them() -> None:
    reader, writer = os.pipe()
    lines_out = queue_to(writer)
    for number in range(100):
        lines_out.handle(a_record("line %d", number))
    lines_out.flush()
    os.close(writer)
    with os.fdopen(reader) as lines:
        assert [line.split(": ")[1].strip() for line in lines] == [f"line {number}" for number in range(100)]
    assert lines_out.lost == 0


def test_the_end_waits_for_a_reader_that_takes_its_time() -> None:
    with queue_to_full_pipe() as (reader, lines_out):
        for number in range(2000):
            lines_out.handle(a_record("line %d %s", number, "x" * 100))
        reading = threading.Thread(target=read_until, args=(reader, b"line 1999 "))
        reading.start()
        lines_out.flush()
        reading.join(30)
        assert not reading.is_alive()


def test_the_end_does_not_wait_for_a_reader_that_never_comes() -> None:
    with queue_to_full_pipe() as (_, lines_out):
        lines_out.handle(a_record("nobody reads this"))
        begun = time.monotonic()
        for _ in range(2):
            lines_out.flush()

        assert time.monotonic() - begun < 10 * FLUSH_SECONDS


def test_what_nobody_reads_is_lost_and_counted_and_told_when_somebody_reads_again() -> None:
    with queue_to_full_pipe(100) as (reader, lines_out):
        for _ in range(300):
            lines_out.handle(a_record("%s", "y" * 1000))
        lost = lines_out.lost
        assert lost >= 198
        reading = threading.Thread(
            target=read_until, args=(reader, b"lines lost: the reader of the log was too slow\n")
        )
        reading.start()
        lines_out.flush()
        lines_out.handle(a_record("after that"))
        reading.join(30)
        assert not reading.is_alive()
        assert lines_out.lost == lost


def test_a_reader_that_has_gone_costs_lines_and_nothing_else() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    lines_out = queue_to(writer)
    lines_out.handle(a_record("nobody reads this"))
    eventually(lambda: lines_out.lost == 1)
    os.close(writer)


def test_logging_from_many_threads_into_a_full_pipe_ends(tmp_path: Path) -> None:
    with queue_to_full_pipe() as (_, lines_out):

        def log_much() -> None:
            for _ in range(5000):
                lines_out.handle(a_record("z" * 1000))

        threads = [threading.Thread(target=log_much) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        assert not any(thread.is_alive() for thread in threads)


@pytest.mark.slow
def test_a_supervisor_whose_output_nobody_reads_does_its_work(tmp_path: Path) -> None:
    """R6: stdout and stderr are one full pipe."""
    api = MessagesApi()
    api.accept(OLD)
    flags = ("--token-delivery", "env", "--park", "0", "--probe", "off")
    reader, writer = full_pipe()
    with (
        os.fdopen(reader),
        os.fdopen(writer, "wb"),
        serve(api) as url,
        supervised(tmp_path, api_url=url, flags=flags, output=writer) as running,
    ):
        assert [running.post("Say hello.").status_code for _ in range(3)] == [200] * 3
        running.write_token(NEW)
        eventually(lambda: running.get("/api/token")["generation"] == 2)
        api.on(NEW, "expired")
        assert running.post("Say hello.", execution_id="refused").status_code == 503
        [attempt] = running.record("refused")["attempts"]
        assert attempt["evidence"]["seconds_to_signal"] < SIGNALLED_WITHIN_SECONDS
        assert marked_processes("refused") == []
        assert running.stop(signal.SIGTERM) == 0


# -- nothing secret


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str]) -> Callable[[logging.LogRecord], str]:
    """Return a function that logs a record to stderr, and returns its line."""
    lines_out = queue_to(sys.stderr.fileno())

    def line_of(record: logging.LogRecord) -> str:
        lines_out.handle(record)
        lines_out.flush()
        [line] = capfd.readouterr().err.splitlines()
        return str(line)

    return line_of


def test_message_arguments_and_fields_are_redacted(logged: Callable[[logging.LogRecord], str]) -> None:
    with_arguments = logged(a_record("token %s and %r", OLD, {"key": NEW}, execution_id=OLD))

    assert with_arguments.endswith(f"token {MARKS[OLD]} and {{'key': '{MARKS[NEW]}'}} execution_id={MARKS[OLD]}")
    assert logged(a_record("in the message: " + OLD)).endswith(f"in the message: {MARKS[OLD]}")
    assert logged(a_record("healthy %d%%", 5)).endswith("healthy 5%")


def test_an_exception_is_redacted(logged: Callable[[logging.LogRecord], str]) -> None:
    record = a_record("failed")
    try:
        raise ValueError(f"cannot use {OLD}") from KeyError(NEW)
    except ValueError:
        record.exc_info = sys.exc_info()
    line = logged(record)

    assert f"ValueError: cannot use {MARKS[OLD]}" in line
    assert f"KeyError: '{MARKS[NEW]}'" in line


def test_arguments_that_do_not_fit_are_not_printed(logged: Callable[[logging.LogRecord], str]) -> None:
    assert logged(a_record("%d processes", OLD)).endswith("%d processes (its arguments do not fit)")


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError(OLD)


def test_of_a_line_that_cannot_be_made_neither_arguments_nor_error_are_printed(
    logged: Callable[[logging.LogRecord], str],
) -> None:
    line = logged(a_record("token %s and %s", OLD, Unprintable()))

    assert line.endswith("a line cannot be written: RuntimeError")
