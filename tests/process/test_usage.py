"""What running executions take of the machine: in the record, among the running, in health, status and metrics."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agent_runtime.cli.status import HEADINGS, page
from agent_runtime.client import Execution, Health, TokenReport
from agent_runtime.client.answers import read
from agent_runtime.model.records import Usage
from agent_runtime.process.usage import sample
from tests.support.supervised import PROGRAMS, Supervised, eventually, supervised
from tests.telemetry.test_metrics import scrape

if TYPE_CHECKING:
    from pathlib import Path

MEGABYTES = 64


def burning(path: Path) -> dict[str, Any]:
    """Return a task whose tool keeps memory and a processor busy until the file is there."""
    command = shlex.join([sys.executable, "-S", str(PROGRAMS / "burner.py"), str(path), str(MEGABYTES)])
    return {"script": [{"do": "init"}, {"do": "tool", "command": command}, {"do": "result"}]}


def running(supervisor: Supervised) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = supervisor.get("/api/executions/running")["executions"]
    return found


def test_what_an_execution_takes_is_told_while_it_runs_and_kept_when_it_has_ended(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with supervised(tmp_path, flags=("--slots", "2")) as supervisor:
        pending = supervisor.start(burning(go), execution_id="burns")
        eventually(lambda: [one for one in running(supervisor) if one["usage"]["cpu_seconds"] > 0.5])
        [one] = running(supervisor)
        health, told = supervisor.get("/health")["usage"], scrape(supervisor)
        go.touch()
        assert pending.answer().status_code == 200
        idle, record = scrape(supervisor), supervisor.record("burns")
        assert supervisor.get("/health")["usage"]["processes"] == 0

    assert one["slot"] == 1
    assert one["usage"]["memory_bytes"] > MEGABYTES << 20
    assert one["usage"]["pss_bytes"] > MEGABYTES << 20
    assert one["usage"]["processes"] >= 2, "the CLI and its tool"
    assert one["usage"]["open_files"] >= 6
    assert health["memory_bytes"] > MEGABYTES << 20
    assert told("executions_memory_bytes") > MEGABYTES << 20
    assert [told("slot_memory_bytes", slot=slot) > 0 for slot in ("1", "2")] == [True, False]
    assert told("executions_processes") == told("slot_processes", slot="1") >= 2
    assert [idle("executions_memory_bytes"), idle("slot_processes", slot="1")] == [0, 0]

    usage = record["usage"]
    assert usage["cpu_seconds"] >= one["usage"]["cpu_seconds"] > 0.5, "of the dead, too"
    assert usage["memory_bytes"] >= MEGABYTES << 20
    assert usage["processes"] >= 2
    assert idle("executions_cpu_seconds_total") >= usage["cpu_seconds"] - 0.01


def test_an_execution_of_less_than_a_second_has_processor_time_and_no_peaks(tmp_path: Path) -> None:
    with supervised(tmp_path) as supervisor:
        assert supervisor.post({"script": [{"do": "init"}, {"do": "result"}]}, execution_id="short").status_code == 200
        usage = supervisor.record("short")["usage"]

    assert usage["cpu_seconds"] > 0


def test_without_a_free_descriptor_nothing_is_measured_and_nothing_raised() -> None:
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        found = sample({"gone": os.getpid()})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

    assert found == {}
    assert sample({"found": os.getpid()}).keys() == {"found"}


def test_what_is_gone_is_left_out_and_the_time_of_the_dead_is_not_counted_twice() -> None:
    shell = subprocess.Popen(
        ["sh", "-c", f'{sys.executable} -S -c "sum(range(10**7))"; echo done; read end'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert shell.stdin is not None
    assert shell.stdout is not None
    with shell:
        assert shell.stdout.readline() == b"done\n"
        found = sample({"shell": shell.pid, "us": os.getpid(), "nobody": 2**22 - 1})
        shell.stdin.write(b"\n")

    assert set(found) == {"shell", "us"}
    assert found["shell"].processes == 0, "the shim itself does not count"
    assert 0.05 < found["shell"].cpu_seconds <= found["us"].cpu_seconds
    assert found["us"].processes >= 1


def test_peaks_are_kept_and_sums_are_made_of_each_field() -> None:
    low = Usage(cpu_seconds=1, memory_bytes=10, pss_bytes=5, processes=2, open_files=7)
    high = Usage(cpu_seconds=3, memory_bytes=8, pss_bytes=6, processes=3, open_files=1)

    assert low.with_peaks_of(high) == Usage(cpu_seconds=3, memory_bytes=10, pss_bytes=6, processes=3, open_files=7)
    assert low.plus(high) == Usage(cpu_seconds=4, memory_bytes=18, pss_bytes=11, processes=5, open_files=8)


def test_status_shows_it() -> None:
    now, health, token = datetime.now(UTC), read(Health, {"status": "ok"}), read(TokenReport, {"state": "ready"})
    assert health is not None
    assert token is not None
    used = Usage(cpu_seconds=12.3, memory_bytes=412_000_000)
    records = [Execution(execution_id="a", usage=used), Execution(execution_id="b")]
    lines = list(page("http://x", health, token, records, now))

    assert {"CPU", "MEMORY"} <= set(HEADINGS)
    assert "12 s" in lines[-2]
    assert "412 MB" in lines[-2]
