"""How a CLI's process ends, and places where nothing can run: kinds K7 and K12 of what people report."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.errors import RESERVED_WORDS
from agent_runtime.process.linux.oom_kills import OomKills
from agent_runtime.standins.messages_api import MessagesApi, serve
from tests.claude import test_last_words as words
from tests.support.supervised import DEADLINE_SECONDS, OLD, Supervised, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

# -- K7: what a process says and dies of


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("scripted")) as running:
        yield running


@pytest.fixture(scope="module")
def replaced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    """A supervisor whose CLI each test puts there; no token by file, so that nobody but the tests starts it."""
    home = tmp_path_factory.mktemp("replaced")
    flags = ("--token-delivery", "env")
    with supervised(home, claude=str(home / "claude"), flags=flags) as running:
        yield running


def put_program(running: Supervised, content: str | bytes, mode: int = 0o755) -> None:
    """Put another CLI in place by rename, as a package manager does."""
    new = running.home / "claude.new"
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    new.chmod(mode)
    new.replace(running.home / "claude")


def told(response: httpx.Response) -> tuple[int, str, str]:
    problem = response.json()
    detail: str = problem["detail"]
    assert not any(word in detail.lower() for word in RESERVED_WORDS)
    return response.status_code, problem["error_class"], detail


def stderr(text: str) -> dict[str, Any]:
    return {"do": "write", "stream": "stderr", "text": text}


HEAP = words.V8_HEAP.format("Reached heap limit")
ILLEGAL = "panic(main thread): Illegal instruction at address 0x4F6A0D"
CRASHES: dict[str, tuple[list[dict[str, Any]], int, str, str]] = {
    "heap": ([{"do": "init"}, stderr(HEAP), {"do": "kill", "signal": "SIGABRT"}], 500, "oom", "heap out of memory"),
    "heap-by-code": ([{"do": "init"}, stderr(HEAP), {"do": "exit", "code": 134}], 500, "oom", "--max-old-space-size"),
    "illegal-before": (
        [stderr(words.BUN_PANIC.format("Illegal instruction at address 0x4F6A0D")), {"do": "kill", "signal": "SIGILL"}],
        500,
        "spawn",
        ILLEGAL,
    ),
    "illegal-after": (
        [
            {"do": "init"},
            stderr(words.BUN_PANIC.format("Illegal instruction at address 0x4F6A0D")),
            {"do": "kill", "signal": "SIGILL"},
        ],
        500,
        "signal",
        ILLEGAL,
    ),
    "system-call": ([{"do": "kill", "signal": "SIGSYS"}], 500, "spawn", "SIGSYS"),
    "node": ([{"do": "init"}, stderr(words.NODE), {"do": "exit", "code": 1}], 502, "lost_result", "EACCES: permission"),
    "mcp": (
        [stderr("Error: Invalid MCP configuration:\nmcpServers: no"), {"do": "exit", "code": 1}],
        400,
        "invalid_request",
        "Invalid MCP configuration: mcpServers: no",
    ),
}


@pytest.mark.parametrize("name", CRASHES)
def test_k7_a_process_that_dies_is_told_by_its_own_words(scripted: Supervised, name: str) -> None:
    script, status, error_class, shows = CRASHES[name]

    response = scripted.post({"script": script}, execution_id=f"dies-{name}")

    assert told(response)[:2] == (status, error_class)
    assert shows in told(response)[2]
    assert scripted.record(f"dies-{name}")["detail"] == told(response)[2]
    assert scripted.get("/api/token")["state"] == "ready"


def test_k7_a_full_disk_is_named_out_of_the_errors_of_a_result(scripted: Supervised) -> None:
    errors = ["ENOENT: no such file or directory, open '/x'", "Error: ENOSPC: no space left on device, write"]
    frame = {"type": "result", "subtype": "error_during_execution", "is_error": True, "errors": errors}

    response = scripted.post({"script": [{"do": "init"}, {"do": "frame", "frame": frame}]})

    assert told(response)[:2] == (500, "error")
    assert "the disk is full" in told(response)[2]
    assert "ENOSPC: no space left on device, write" in told(response)[2]


def test_k7_what_ends_twice_in_the_same_way_is_not_advised_to_go_on(scripted: Supervised) -> None:
    # A resumed script goes on behind the step at which it ended.
    ends = [stderr("Error: no."), {"do": "exit", "code": 1}]
    script = {"script": [{"do": "init"}, {"do": "tool", "command": "true"}, *ends, *ends, *ends]}

    details = [told(scripted.post(script, execution_id="twice"))[2] for _ in range(3)]

    advice = "send the same execution_id again to go on"
    assert [advice in detail for detail in details] == [True, False, False]
    assert all("Error: no." in detail for detail in details)


SHELL = "#!/bin/sh\ncat >/dev/null\n"
PROGRAMS: dict[str, tuple[str, int, str, str]] = {
    "a wrapper that was aborted": (
        f"{SHELL}cat >&2 <<'END'\n{HEAP}\nAborted\nEND\nexit 134\n",
        500,
        "oom",
        "heap is full",
    ),
    "a wrapper of what crashed": (f"{SHELL}sh -c 'kill -SEGV $$'\nexit $?\n", 500, "spawn", "exit code 139 (SIGSEGV)"),
    "a wrapper of what was killed": (
        f"{SHELL}sh -c 'kill -KILL $$'\nexit $?\n",
        500,
        "signal",
        "exit code 137 (SIGKILL)",
    ),
    "a wrapper of nothing": (f"{SHELL}exec claude-of-nobody\n", 500, "spawn", "claude-of-nobody"),
    "npm's placeholder": (
        f"{SHELL}cat >&2 <<'END'\n{words.STUB}END\nexit 1\n",
        500,
        "spawn",
        "native binary not installed",
    ),
    "no interpreter": ("#!/usr/bin/env node-of-nobody\n", 500, "spawn", "node-of-nobody"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_k7_a_program_that_cannot_run_is_told_by_its_own_words(replaced: Supervised, name: str) -> None:
    program, status, error_class, shows = PROGRAMS[name]
    put_program(replaced, program)

    response = replaced.post("Say hello.")

    assert told(response)[:2] == (status, error_class)
    assert shows in told(response)[2]


NODE_PROGRAMS = {
    "require('fs').openSync('/dev/null/x')": (
        502,
        "lost_result",
        "Error: ENOTDIR: not a directory, open '/dev/null/x'",
    ),
    "const all = []; for (;;) all.push(new Array(1000).fill({}))": (500, "oom", "JavaScript heap out of memory"),
    "process.abort()": (500, "spawn", "SIGABRT"),
    "Promise.reject('the reason')": (502, "lost_result", 'the reason "the reason"'),
}


@pytest.mark.parametrize("program", NODE_PROGRAMS)
def test_k7_a_real_node_tells_what_it_died_of(replaced: Supervised, program: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    put_program(replaced, f'#!/bin/sh\nulimit -c 0\nexec {node} --max-old-space-size=16 -e "{program}"\n')

    response = replaced.post("Say hello.")

    status, error_class, shows = NODE_PROGRAMS[program]
    assert told(response)[:2] == (status, error_class)
    assert shows in told(response)[2]
    assert "Node.js v" not in told(response)[2]


def test_k7_a_real_illegal_instruction_before_init_is_no_start(replaced: Supervised, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source = tmp_path / "illegal.c"
    source.write_text('#include <stdio.h>\nint main(void) { fputs("panic: no AVX\\n", stderr); __builtin_trap(); }\n')
    subprocess.run([compiler, "-o", str(source.with_suffix("")), str(source)], check=True, timeout=60)
    put_program(replaced, source.with_suffix("").read_bytes())

    status, error_class, detail = told(replaced.post("Say hello."))

    assert (status, error_class) == (500, "spawn")
    assert "SIGILL: panic: no AVX" in detail


# -- K7: the kernel's counter of a container

MEMORY = 256 << 20
GREEDY = "python3 -S -c 'b = bytearray(3 << 30)'"


@pytest.fixture
def limited_cgroup(tmp_path: Path) -> Iterator[Path]:
    """Make what a container with a memory limit is to the kernel, below our own memory cgroup, where that can be."""
    file = OomKills.of_this_container()._file
    if file is None:
        pytest.skip("no counter of memory can be seen here")
    group = file.parent / f"agent-runtime-test-{tmp_path.name}"
    is_version_1 = file.name == "memory.oom_control"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if is_version_1 else "memory.max")).write_text(str(MEMORY))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no cgroup with a memory limit can be made here: {error.strerror}")
    yield group
    eventually(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def in_cgroup(group: Path) -> tuple[str, ...]:
    return ("sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh")


@pytest.mark.slow
def test_k7_a_tool_that_the_kernel_takes_for_want_of_memory_and_what_follows(
    tmp_path: Path, limited_cgroup: Path
) -> None:
    """In one container: alone, and beside another execution whose failure has nothing to do with it."""
    took = [{"do": "init"}, {"do": "tool", "command": GREEDY}]
    go = tmp_path / "go"
    with supervised(tmp_path, prefix=in_cgroup(limited_cgroup), flags=("--containment", "scan")) as running:
        gave_up = running.post({"script": [*took, {"do": "exit", "code": 1}]})
        went_on = running.post({"script": [*took, {"do": "result"}]})

        waits = [{"do": "init"}, {"do": "wait_file", "path": str(go)}, {"do": "exit", "code": 1}]
        beside = running.start({"script": waits}, execution_id="beside")
        eventually(lambda: running.client.get("/api/executions/beside").json().get("state") == "running")
        gave_up_too = running.post({"script": [*took, {"do": "exit", "code": 1}]})
        go.touch()

        assert told(gave_up)[:2] == (500, "oom")
        assert went_on.status_code == 200
        assert told(gave_up_too)[:2] == (500, "oom")
        assert told(beside.answer())[:2] == (502, "lost_result")


@pytest.mark.slow
def test_k7_a_cli_that_the_kernel_takes_for_want_of_memory(tmp_path: Path, limited_cgroup: Path) -> None:
    with supervised(
        tmp_path,
        claude=str(tmp_path / "claude"),
        prefix=in_cgroup(limited_cgroup),
        flags=("--containment", "scan", "--token-delivery", "env"),
    ) as running:
        put_program(running, f"#!/bin/sh\nexec {GREEDY}\n")
        itself = running.post("Say hello.")
        put_program(running, f"#!/bin/sh\n{GREEDY}\nexit $?\n")
        by_a_wrapper = running.post("Say hello.")
        put_program(running, "#!/bin/sh\nkill -KILL $$\n")
        by_somebody = running.post("Say hello.")

        assert [told(answer)[:2] for answer in (itself, by_a_wrapper)] == [(500, "oom")] * 2
        assert told(by_somebody)[:2] == (500, "signal")


# -- K7: mcp_config

REFUSED_BY_ALL: list[dict[str, Any]] = [
    {},
    {"servers": {"x": {"command": "true"}}},
    {"x": {"command": "true"}},
    {"mcpServers": []},
]
REFUSED_BY_ALL += [{"mcpServers": None}, {"mcpServers": "x"}, {"mcpServers": 1}, {"mcpservers": {}}]


@pytest.mark.parametrize("config", REFUSED_BY_ALL, ids=str)
def test_k7_what_no_cli_takes_as_mcp_config_is_refused_here(scripted: Supervised, config: dict[str, Any]) -> None:
    status, error_class, detail = told(scripted.post("Say hello.", mcp_config=config))

    assert (status, error_class) == (400, "invalid_request")
    assert detail.startswith("mcp_config: ")


def test_k7_an_mcp_config_without_servers_is_none(scripted: Supervised) -> None:
    script = {"script": [{"do": "init"}, {"do": "result"}]}
    configs: list[object] = [{"mcpServers": {}}, {"mcpServers": {"x": {"command": "true"}}, "more": 1}, None]
    for config in configs:
        assert scripted.post(script, mcp_config=config).status_code == 200


REFUSED_BY_SOME = [
    {},
    None,
    "true",
    {"type": "unheard-of", "command": "true"},
    {"type": None, "command": "true"},
    {"type": "stdio"},
    {"command": ""},
    {"command": ["true"]},
    {"command": "true", "args": "a"},
    {"command": "true", "args": [1]},
    {"command": "true", "env": {"A": 1}},
    {"command": "true", "env": []},
    {"url": "http://127.0.0.1:9/"},
    {"type": "http"},
    {"type": "http", "url": 5},
    {"type": "http", "url": "http://127.0.0.1:9/", "headers": {"A": 1}},
    {"type": "streamable-http", "url": "http://127.0.0.1:9/"},
    {"type": "sdk"},
]
"""Servers that end 2.1.30 without a word; later versions leave them out."""


@pytest.mark.parametrize("server", REFUSED_BY_SOME, ids=str)
def test_k7_a_cli_that_ends_at_a_server_without_a_word_makes_it_the_requests_fault(
    scripted: Supervised, server: object
) -> None:
    config = {"mcpServers": {"good": {"command": "true"}, "bad": server}}

    ended = scripted.post({"script": [{"do": "exit"}]}, mcp_config=config)
    went_on = scripted.post({"script": [{"do": "init"}, {"do": "result"}]}, mcp_config=config)

    assert told(ended)[:2] == (400, "invalid_request")
    assert "a server" in told(ended)[2]
    assert went_on.status_code == 200


def test_k7_a_cli_that_ends_without_a_word_and_without_a_doubtful_server_lost_its_result(scripted: Supervised) -> None:
    for server in ({"command": "true", "x": 1}, {"type": "ws", "url": "x"}, {"type": "sdk", "name": "x"}):
        ended = scripted.post({"script": [{"do": "exit"}]}, mcp_config={"mcpServers": {"x": server}})
        assert told(ended)[:2] == (502, "lost_result")


@pytest.mark.slow
@pytest.mark.real_cli
def test_k7_a_real_cli_that_does_not_take_an_mcp_server_blames_the_request_or_goes_on(
    tmp_path: Path, claude: str
) -> None:
    api = MessagesApi()
    api.accept(OLD)
    with serve(api) as url, supervised(tmp_path, api_url=url, claude=claude) as running:
        for server in ({}, {"type": "unheard-of", "command": "true"}, {"type": "http"}):
            response = running.post("Say hello.", mcp_config={"mcpServers": {"x": server}})
            assert response.status_code in (200, 400)
            assert response.json().get("error_class", "invalid_request") == "invalid_request"


# -- K12: no locks

NO_LOCKS = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

int flock(int descriptor, int operation) {
    char link[64], path[4096] = {0};
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    if (readlink(link, path, sizeof path - 1) > 0 && strstr(path, getenv("NO_LOCKS_BELOW"))) {
        errno = atoi(getenv("NO_LOCKS_ERRNO"));
        return -1;
    }
    return syscall(SYS_flock, descriptor, operation);
}
"""
"""Stands for a file system without locks, below one directory: the call fails as it does there."""


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile what is loaded before the C library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here, and flock must really fail")
    source = tmp_path_factory.mktemp("no-locks") / "no_locks.c"
    source.write_text(NO_LOCKS)
    library = source.with_suffix(".so")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True, timeout=60)
    return library


def started_without_locks(library: Path, home: Path, below: Path, code: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent_runtime", "serve", "--port", "0"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "AGENT_RUNTIME_DATA_DIR": str(home / "data"),
            "AGENT_RUNTIME_CONFIG_DIR": str(home / "config"),
            "LD_PRELOAD": str(library),
            "NO_LOCKS_BELOW": str(below),
            "NO_LOCKS_ERRNO": str(code),
        },
        cwd=home,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


CODES = [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO, errno.ENOSYS, errno.EACCES, errno.EINVAL]


@pytest.mark.parametrize(("place", "code"), [*(("data", code) for code in CODES), ("config", errno.EIO)])
def test_k12_a_directory_whose_files_cannot_be_locked_is_named(
    no_locks: Path, tmp_path: Path, place: str, code: int
) -> None:
    ended = started_without_locks(no_locks, tmp_path, tmp_path / place, code)

    assert (ended.returncode, ended.stdout) == (3, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"agent-runtime: AGENT_RUNTIME_{place.upper()}_DIR: files in {tmp_path / place} cannot be")
    assert f"({errno.errorcode[code]})" in line


def test_k12_a_lock_that_only_shims_hold_is_told_like_the_others(no_locks: Path, tmp_path: Path) -> None:
    ended = started_without_locks(no_locks, tmp_path, tmp_path / "data/keepers.lock", errno.ENOLCK)

    assert (ended.returncode, ended.stderr.count("\n")) == (3, 1)
    assert str(tmp_path / "data") in ended.stderr
