"""A signal while the supervisor starts: it ends at once, with exit code 0, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_runtime.files import UNFINISHED
from tests.serve.test_ending import started
from tests.store.test_durability import interrupted_then_done, kill
from tests.support.supervised import DEADLINE_SECONDS, OLD, SCRIPTED, eventually, marked_processes, supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def starting(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Begin to start a supervisor in *home*."""
    for name in ("secret", "workspace", "data", "config", "home"):
        (home / name).mkdir(parents=True, exist_ok=True)
    (home / "secret/token").write_text(OLD + "\n")
    variables = {
        "TOKEN_FILE": home / "secret/token",
        "DATA_DIR": home / "data",
        "CONFIG_DIR": home / "config",
        "WORKSPACE": home / "workspace",
        "CLAUDE": SCRIPTED,
        "PORT": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "agent_runtime", "serve"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home / "home"),
            **{f"AGENT_RUNTIME_{name}": str(value) for name, value in variables.items()},
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def catches_signals(process: subprocess.Popen[str]) -> bool:
    """Whether the start catches signals: SIGTERM is caught after SIGINT, which Python itself catches before."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


def holds(name: str) -> Callable[[subprocess.Popen[str]], bool]:
    def look(process: subprocess.Popen[str]) -> bool:
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()).endswith(name):
                        return True
        return False

    return look


def ends_well(process: subprocess.Popen[str]) -> str:
    """Wait for the end, and return what it said."""
    out, said = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, "Traceback" in said, "Exception" in said) == (0, False, False), said
    return out + said


@pytest.mark.parametrize(
    ("point", "number"),
    [
        (catches_signals, signal.SIGTERM),
        (catches_signals, signal.SIGINT),
        (holds("data/lock"), signal.SIGTERM),
        (holds("data/records.sqlite"), signal.SIGINT),
    ],
    ids=["as soon as it can", "as soon as it can, by hand", "locked", "records open"],
)
def test_a_start_that_is_called_off_ends_at_once(
    tmp_path: Path, point: Callable[[subprocess.Popen[str]], bool], number: signal.Signals
) -> None:
    with starting(tmp_path) as process:
        while not point(process):
            assert process.poll() is None
        process.send_signal(number)
        signalled = time.monotonic()

        said = ends_well(process)

    assert time.monotonic() - signalled < DEADLINE_SECONDS / 2
    if point is catches_signals:
        assert "listening" not in said
        assert f"called off by {number.name}" in said
    assert not (tmp_path / "config/.credentials.json").exists()


@pytest.mark.slow
def test_what_an_earlier_supervisor_left_is_gone_also_after_a_start_that_was_called_off(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with supervised(tmp_path, expect_exit=None) as running:
        running.post(interrupted_then_done(begun), execution_id="left", async_result=True)
        eventually(begun.exists)
        assert marked_processes("left")
        kill(running)
    left = [tmp_path / name / f".{'0' * 16}{UNFINISHED}" for name in ("config", "data", "data/workspaces")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half of a file, with a token")

    with starting(tmp_path) as process:
        while not catches_signals(process):
            assert process.poll() is None
        process.terminate()
        said = ends_well(process)

    assert "called off" in said
    assert marked_processes("left") == []
    assert not any(path.exists() for path in left)
    with supervised(tmp_path) as running:
        assert running.record("left")["error_class"] == "interrupted"


@pytest.mark.slow
def test_a_signal_at_any_moment_of_the_start_ends_it_well(tmp_path: Path) -> None:
    rng = random.Random(20261122)
    for _ in range(12):
        with starting(tmp_path) as process:
            eventually(lambda: catches_signals(process))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, 0.8))
            for _ in range(rng.choice([1, 1, 2, 3])):
                process.send_signal(rng.choice(SIGNALS))
            ends_well(process)
        assert not (tmp_path / "config/.credentials.json").exists()


def test_garbage_is_collected_again_once_the_start_is_over() -> None:
    gc.disable()

    async def start() -> None:
        server, listener, _ = await started()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
        await server.shutdown([listener])

    try:
        asyncio.run(start())
    finally:
        gc.enable()
        gc.unfreeze()
