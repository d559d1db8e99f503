"""The agents of the example: supervisors as processes of their own on loopback, with files that all go again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
import signal
import sys
from typing import TYPE_CHECKING

from examples.fleet.backend import Agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

START_TIMEOUT_SECONDS = 60.0
END_TIMEOUT_SECONDS = 20.0
SLOTS = 2
SCRIPTED_CLI = shlex.join([sys.executable, "-m", "agent_runtime.standins.scripted_cli"])


@contextlib.asynccontextmanager
async def fleet(home: Path, api_url: str, clis: list[str]) -> AsyncIterator[list[Agent]]:
    """
    Run one supervisor for each CLI until the block ends.

    Raises:
        RuntimeError: One does not start, or does not end on SIGTERM with exit code 0.
    """
    access_key = secrets.token_hex(16)
    names = [f"agent-{number:02}" for number in range(1, len(clis) + 1)]
    processes: dict[str, asyncio.subprocess.Process] = {}
    try:
        for name, cli in zip(names, clis, strict=True):
            processes[name] = await _started(home / name, api_url, cli, access_key)
        urls = await asyncio.gather(*(_address(home / name, processes[name]) for name in names))
        yield [
            Agent(name, url, home / name / "secret" / "token", access_key=access_key)
            for name, url in zip(names, urls, strict=True)
        ]
    finally:
        codes = await asyncio.gather(*(_ended(process) for process in processes.values()))
    if any(codes):
        raise RuntimeError(f"the supervisors ended with {codes}")


async def _started(home: Path, api_url: str, cli: str, access_key: str) -> asyncio.subprocess.Process:
    for name in ("secret", "data", "config", "workspace", "home"):
        (home / name).mkdir(parents=True, mode=0o700)
    (home / "key").write_text(access_key)
    environ = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home / "home"),
        "LANG": "C.UTF-8",
        "ANTHROPIC_BASE_URL": api_url,
        "AGENT_RUNTIME_ACCESS_KEY_FILE": str(home / "key"),
        "AGENT_RUNTIME_TOKEN_FILE": str(home / "secret" / "token"),
        "AGENT_RUNTIME_DATA_DIR": str(home / "data"),
        "AGENT_RUNTIME_CONFIG_DIR": str(home / "config"),
        "AGENT_RUNTIME_WORKSPACE": str(home / "workspace"),
        "AGENT_RUNTIME_CLAUDE": cli,
        "AGENT_RUNTIME_SLOTS": str(SLOTS),
        "AGENT_RUNTIME_TOKEN_DELIVERY": "env",  # the harder way: a limit stops what runs, and it is resumed
    }
    with (home / "supervisor.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent_runtime", "serve", "--port", "0"),
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # so that Ctrl-C in a terminal is ours to answer
        )


async def _address(home: Path, process: asyncio.subprocess.Process) -> str:
    line = b""
    if process.stdout is not None:
        with contextlib.suppress(TimeoutError):
            line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_SECONDS)
    if not line.startswith(b"listening on http://"):
        raise RuntimeError(f"{home.name} does not start: {(home / 'supervisor.log').read_text()[-500:]}")
    return line.decode().split()[-1]


async def _ended(process: asyncio.subprocess.Process) -> int | None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        if process.returncode is None:
            process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END_TIMEOUT_SECONDS)
    return process.returncode
