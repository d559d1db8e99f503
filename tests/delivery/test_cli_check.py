"""``/readyz`` says ``no_cli``, with its words, for a CLI that cannot be started here; and takes it back."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_runtime.claude.executable import launch_fault
from agent_runtime.claude.run_answer import Result
from agent_runtime.delivery.check_run import DoesNotRun, ReloadCheckFailed
from agent_runtime.delivery.cli_check import FORGET_SECONDS, STARTS, CliCheck
from agent_runtime.delivery.reload_check import RELOAD, CheckedCli
from agent_runtime.errors import ErrorClass, SpawnFailed
from agent_runtime.evidence.detector import Channel, Detection
from agent_runtime.evidence.matching import Rule
from agent_runtime.evidence.verdict import Ending, Verdict, verdict
from agent_runtime.model.state import Outcome, StopReason
from agent_runtime.process.spawn import NotSpawned, SpawnReason
from tests.claude.test_last_words import BUN_PANIC, STUB
from tests.support.families import spawner
from tests.support.supervised import SCRIPTED, Supervised, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = os.environ["PATH"]
PLACEHOLDER = "".join(f'echo "{line}" >&2\n' for line in STUB.splitlines()) + "exit 1\n"
"""As npm's package has it: a shell script without its first line (2.1.332)."""

ELF = Path(sys.executable).resolve().read_bytes()[:4096]


def program(home: Path, content: str | bytes, mode: int = 0o755, name: str = "claude") -> Path:
    path = home / name
    new = path.with_name(f"{name}.new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    new.chmod(mode)
    new.replace(path)
    return path


def loaded_by(name: bytes) -> bytes:
    """Make an ELF file that names its loader."""
    return ELF[:64] + bytes(56) + name + b"\0"


CANNOT: dict[str, tuple[str | bytes, str]] = {
    "npm's placeholder": (PLACEHOLDER, "claude native binary not installed"),
    "npm's placeholder, with an interpreter": (f"#!/bin/sh\n{PLACEHOLDER}", "claude native binary not installed"),
    "no first line": ("echo hello\n", "without a line #!"),
    "an empty file": ("", "empty"),
    "a page": ("<!doctype html>\n<title>502</title>\n", "without a line #!"),
    "no interpreter": ("#!/usr/bin/node-of-nobody\n", "its interpreter /usr/bin/node-of-nobody is missing"),
    "no interpreter on PATH": ("#!/usr/bin/env node-of-nobody\n", "node-of-nobody is not on PATH"),
    "no interpreter, with options": ("#!/usr/bin/env -S A=1 node-of-nobody -x\n", "node-of-nobody is not on PATH"),
    "an interpreter of DOS": ("#!/bin/sh\r\n", "is missing"),
    "no interpreter at all": ("#!\n", "is missing"),
    "another C library": (loaded_by(b"/lib/ld-of-nobody.so.1"), "its loader /lib/ld-of-nobody.so.1 is missing"),
}


@pytest.mark.parametrize("name", CANNOT)
def test_k7_what_the_kernel_will_not_start_is_known_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    content, says = CANNOT[name]

    path = program(tmp_path, content)

    assert says in (launch_fault((str(path),), PATH) or "")
    with pytest.raises(SpawnFailed, match="cannot start"):
        CliCheck((str(path),), PATH).require()


def test_k7_a_wrapper_of_npms_placeholder_is_no_cli_either(tmp_path: Path) -> None:
    placeholder = program(tmp_path, PLACEHOLDER, name="claude.exe")
    wrapper = program(tmp_path, f'#!/bin/sh\nexec {placeholder} "$@"\n')

    assert "native binary not installed" in (launch_fault((str(wrapper),), PATH) or "")


def test_what_can_be_started_is_let_be(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(sys.executable)
    for content in ("#!/bin/sh\n", "#! /bin/sh -e\n", "#!/usr/bin/env sh\n", "#!/usr/bin/env -S sh -e\n", b"MZ\0\0"):
        assert launch_fault((str(program(tmp_path, content)),), PATH) is None
    for word in (sys.executable, str(tmp_path / "link"), "sh", *filter(None, [shutil.which("true")])):
        assert launch_fault((word,), PATH) is None
    with pytest.raises(SpawnFailed):
        launch_fault((str(tmp_path / "none"),), PATH)


def test_k7_a_cli_that_ends_at_its_last_starts_is_none_until_one_succeeds(tmp_path: Path) -> None:
    check = CliCheck((str(program(tmp_path, "#!/bin/sh\n")),), PATH)
    crash = Ending(-4, began=False, last_words="panic(main thread): Illegal instruction at address 0x1")
    for _ in range(STARTS):
        check.require()
        check.record_end(crash, verdict(crash))

    with pytest.raises(SpawnFailed, match=r"last 3 starts ended before .* Illegal instruction at address 0x1"):
        check.require()
    check.record_start()
    check.require()


def test_k7_a_cli_that_was_replaced_or_made_executable_begins_anew(tmp_path: Path) -> None:
    path = program(tmp_path, "#!/bin/sh\n")
    check = CliCheck((str(path),), PATH)
    for change in (lambda: program(tmp_path, "#!/bin/sh\n# new\n"), lambda: path.chmod(0o700)):
        check.record_failure("it cannot", is_certain=True)
        with pytest.raises(SpawnFailed, match="it cannot"):
            check.require()
        change()
        check.require()


def test_k7_starts_of_a_cli_that_was_replaced_are_not_counted_with_those_of_the_new_one(tmp_path: Path) -> None:
    check = CliCheck((str(program(tmp_path, "#!/bin/sh\n")),), PATH)
    for _ in range(STARTS - 1):
        check.record_failure("no")
    program(tmp_path, "#!/bin/sh\n# new\n")

    check.record_failure("no")

    check.require()


def test_k7_after_a_while_the_next_start_decides(tmp_path: Path) -> None:
    now = 1000.0
    check = CliCheck((str(program(tmp_path, "#!/bin/sh\n")),), PATH, clock=lambda: now)
    for _ in range(STARTS):
        check.record_failure("no")
    with pytest.raises(SpawnFailed):
        check.require()

    now += FORGET_SECONDS
    check.require()
    check.record_failure("still not")
    with pytest.raises(SpawnFailed, match="still not"):
        check.require()


LOST = Verdict(Outcome.FAILED, ErrorClass.LOST_RESULT, "lost")
OVERLOADED = Detection(Rule("r", ErrorClass.OVERLOADED), Channel.STDOUT)
SAYS_NOTHING = [
    (Ending(1, began=False, stop_reason=StopReason.CANCELLED), LOST),
    (Ending(1, began=False), Verdict(Outcome.FAILED, ErrorClass.INVALID_REQUEST, "mcp_config")),
    (Ending(-9, began=False), Verdict(Outcome.FAILED, ErrorClass.OOM, "memory")),
    (Ending(1, began=False, last_error=OVERLOADED), Verdict(Outcome.FAILED, ErrorClass.OVERLOADED, "busy")),
    (
        Ending(1, began=False, result=Result(is_error=True, subtype="error_during_execution", text="no such session")),
        LOST,
    ),
    (Ending(1, began=True), LOST),
    (Ending(1, began=False, last_words="Error: ENOSPC: no space left on device, write"), LOST),
]


@pytest.mark.parametrize("number", range(len(SAYS_NOTHING)))
def test_an_end_that_says_nothing_of_the_cli_does_not_count(tmp_path: Path, number: int) -> None:
    check = CliCheck((str(program(tmp_path, "#!/bin/sh\n")),), PATH)
    for _ in range(STARTS + 1):
        check.record_end(*SAYS_NOTHING[number])

    check.require()


def test_a_shortage_is_no_fault_of_the_cli(tmp_path: Path) -> None:
    check = CliCheck((str(program(tmp_path, "#!/bin/sh\n")),), PATH)
    for reason in (SpawnReason.NO_PROCESSES, SpawnReason.NO_MEMORY, SpawnReason.NO_DIRECTORY):
        check.record_failed_spawn(NotSpawned(reason))
    check.record_failed_spawn(SpawnFailed("no thread"))
    check.require()

    check.record_failed_spawn(NotSpawned(SpawnReason.NOT_EXECUTABLE, "ENOEXEC"))
    with pytest.raises(SpawnFailed, match="ENOEXEC"):
        check.require()


def test_one_instance_may_be_told_by_many_threads(tmp_path: Path) -> None:
    check = CliCheck((str(program(tmp_path, "#!/bin/sh\n")),), PATH)
    threads = [threading.Thread(target=check.record_failure, args=("no",)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with pytest.raises(SpawnFailed):
        check.require()


# -- the reload check, which starts the CLI first


def test_k7_a_cli_that_dies_at_each_start_of_the_reload_check_does_not_run(tmp_path: Path) -> None:
    panic = BUN_PANIC.format("Illegal instruction at address 0x4F6A0D")
    path = program(tmp_path, f"#!/bin/sh\ncat >&2 <<'END'\n{panic}\nEND\nkill -ILL $$\n")

    with pytest.raises(DoesNotRun, match=r"SIGILL: panic\(main thread\): Illegal instruction at address 0x4F6A0D"):
        CheckedCli(spawner, (str(path),), {"PATH": PATH}, directory=tmp_path / "run").find_out(RELOAD)


@pytest.mark.parametrize("script", ["exit 0", "kill -KILL $$", 'test "$1" = --version'])
def test_a_cli_that_makes_no_request_may_run_all_the_same(tmp_path: Path, script: str) -> None:
    path = program(tmp_path, f"#!/bin/sh\n{script}\n")

    with pytest.raises(ReloadCheckFailed) as caught:
        CheckedCli(spawner, (str(path),), {"PATH": PATH}, directory=tmp_path / "run").find_out(RELOAD)

    assert not isinstance(caught.value, DoesNotRun)


# -- over HTTP


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Supervised]:
    program(tmp_path, PLACEHOLDER)
    with supervised(tmp_path, claude=str(tmp_path / "claude"), flags=("--token-delivery", "env")) as running:
        yield running


def readiness(running: Supervised) -> tuple[int, str, str]:
    response = running.client.get("/readyz")
    return response.status_code, response.json().get("reason", ""), response.json().get("detail", "")


def test_k7_npms_placeholder_is_no_cli_and_a_task_fails_with_its_words(running: Supervised) -> None:
    status, reason, detail = readiness(running)
    answer = running.post("Say hello.")

    assert (status, reason) == (503, "no_cli")
    assert "native binary not installed" in detail
    assert (answer.status_code, answer.json()["error_class"]) == (500, "spawn")
    assert "native binary not installed" in answer.json()["detail"]

    program(running.home, f'#!/bin/sh\nexec {SCRIPTED} "$@"\n')
    assert readiness(running)[0] == 200


def test_k7_a_cli_that_dies_at_every_start_is_none_until_it_is_replaced(running: Supervised) -> None:
    program(running.home, "#!/bin/sh\necho 'Error: libfoo is gone' >&2\nexit 1\n")
    assert readiness(running)[0] == 200
    for number in range(STARTS):
        assert running.post("Say hello.", execution_id=f"start-{number}").json()["error_class"] == "lost_result"

    status, reason, detail = readiness(running)
    assert (status, reason) == (503, "no_cli")
    assert "Error: libfoo is gone" in detail
    assert running.get("/health")["unready"]["reason"] == "no_cli"

    program(running.home, f'#!/bin/sh\nexec {SCRIPTED} "$@"\n')
    assert readiness(running)[0] == 200
    assert running.post({"script": [{"do": "init"}, {"do": "result"}]}).status_code == 200


def test_k7_a_start_that_succeeds_takes_it_back(running: Supervised) -> None:
    dies = running.home / "dies"
    dies.touch()
    program(running.home, f'#!/bin/sh\ntest -e {dies} && exit 1\nexec {SCRIPTED} "$@"\n')
    for _ in range(STARTS):
        running.post("Say hello.")
    assert readiness(running)[:2] == (503, "no_cli")

    dies.unlink()
    assert running.post({"script": [{"do": "init"}, {"do": "result"}]}).status_code == 200
    assert readiness(running)[0] == 200


def test_k7_a_cli_that_dies_at_every_start_is_none_before_the_first_task(tmp_path: Path) -> None:
    program(tmp_path, "#!/bin/sh\necho 'Error: libfoo is gone' >&2\nexit 1\n")
    with supervised(tmp_path, claude=str(tmp_path / "claude")) as running:
        eventually(lambda: readiness(running)[1] == "no_cli")

        assert "Error: libfoo is gone" in readiness(running)[2]
