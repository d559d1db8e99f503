"""
How the real CLI reaches the stand-in API: under the name of the real API, or by a base URL.

From 2.1.114 on the CLI uses fewer features with any server that is not the real API. Therefore a supervisor and its CLI
are given no base URL: they believe that they talk to ``https://api.anthropic.com``, but go through a proxy whose
tunnels end at the stand-in, with a CA of its own. The CLI sends the same there as on a Unix socket, which the relay
uses; ``tests/real_cli/test_relay.py`` compares the two on each version.

The other mode is ``AGENT_RUNTIME_TEST_API_MODE=base_url`` (the default is ``first_party``): the CLI is given the
stand-in's own address, like that of a gateway.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_runtime.standins.messages_api import MessagesApi, serve
from tests.support.tls_api import tls_api

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CLAUDES = "AGENT_RUNTIME_TEST_CLAUDE"
OLDER = "AGENT_RUNTIME_TEST_OLDER_CLAUDE"
SHARED = "AGENT_RUNTIME_TEST_SHARED"
MODE = "AGENT_RUNTIME_TEST_API_MODE"
MODES = ("first_party", "base_url")
NOBODY = "http://127.0.0.1:9"
"""An address at which nothing listens."""

NOWHERE_BY_NAME = "first-party-proof.invalid"
PROOF_TOKEN = "sk-ant-oat01-of-the-proof-that-a-cli-takes-the-tunnel"
PROOF_SECONDS = 90

shared_directory = Path(os.environ.get(SHARED) or tempfile.gettempdir())
"""
Directory with the facts about each CLI that one worker of a test run finds out for all; ``conftest.py`` sets it to the
test run's own unless the variable names one, for several test runs.
"""


def claudes(environ: Mapping[str, str], *, and_older: bool = False) -> list[str]:
    """
    Return the executables of the CLI to test with; the variables list them separated by colons, like ``PATH``.

    Args:
        and_older: Begin with those that only tests marked ``every_cli`` use.
    """
    listed = f"{environ.get(OLDER, '') if and_older else ''}:{environ.get(CLAUDES, '')}"
    return [entry for entry in listed.split(":") if entry]


@contextlib.contextmanager
def leading_to(api_url: str, claude: str, directory: Path) -> Iterator[dict[str, str]]:
    """
    Yield the variables that lead *claude*, and a supervisor, to the stand-in at *api_url* while the block lasts.

    They set a base URL for the scripted CLI, for a real CLI that takes no socket (it asks every server alike), and
    where *api_url* is no stand-in on loopback, or has TLS of its own.
    """
    is_standin = api_url.startswith("http://127.0.0.1:") and api_url != NOBODY
    mode = os.environ.get(MODE, MODES[0])
    if mode not in MODES:
        pytest.fail(f"{MODE} must be one of {', '.join(MODES)}")
    is_base_url = not is_standin or claude not in claudes(os.environ, and_older=True) or mode != MODES[0]
    if is_base_url or not asks_otherwise(claude):
        yield {"ANTHROPIC_BASE_URL": api_url}
        return
    if not takes_a_tunnel(claude):
        pytest.fail(f"this CLI ignores HTTPS_PROXY, so it would ask the real API: set {MODE}=base_url")
    with tls_api(directory, api_url) as tls:
        yield {**tls.environ, "NO_PROXY": "127.0.0.1,localhost"}


@functools.cache
def takes_a_tunnel(claude: str) -> bool:
    """Whether *claude* asks through the proxy; the host's name does not exist, so without it no request arrives."""
    with _made_once(claude, "tunnel") as (result, is_made):
        if not is_made:
            result.write_text(str(_asks_through_a_tunnel(claude)))
        return result.read_text() == str(True)


@functools.cache
def proofs_of(claude: str) -> Path:
    """Return a file with the results of the reload check for *claude*; tests copy it to their data directories."""
    with _made_once(claude, "proofs.json") as (result, is_made):
        if not is_made:
            command = [sys.executable, "-m", "agent_runtime.delivery.reload_results", str(result.parent), claude]
            subprocess.run(command, check=True, capture_output=True, timeout=PROOF_SECONDS)
        return result


def asks_otherwise(claude: str) -> bool:
    """Whether *claude* asks the real API in another way than other servers; then it can use a Unix socket, too."""
    return any(result["takes_socket"] for result in json.loads(proofs_of(claude).read_bytes())["proofs"].values())


@contextlib.contextmanager
def _made_once(claude: str, name: str) -> Iterator[tuple[Path, bool]]:
    """Yield the path of a file that all workers of a test run share, and whether it exists; other workers wait."""
    place = shared_directory / f"claude-{hashlib.sha256(claude.encode()).hexdigest()[:12]}"
    place.mkdir(exist_ok=True)
    with (place / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield place / name, (place / name).exists()


def _asks_through_a_tunnel(claude: str) -> bool:
    api = MessagesApi()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home,
        serve(api) as url,
        tls_api(Path(home), url, host=NOWHERE_BY_NAME) as tls,
    ):
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": home,
            "CLAUDE_CONFIG_DIR": f"{home}/config",
            "ANTHROPIC_BASE_URL": f"https://{NOWHERE_BY_NAME}",
            "CLAUDE_CODE_OAUTH_TOKEN": PROOF_TOKEN,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
        }
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [claude, "-p", "Say hello."],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=environ | tls.environ,
                cwd=home,
                timeout=PROOF_SECONDS,
                check=False,
            )
    return any(request.carries(PROOF_TOKEN) and request.path == "/v1/messages" for request in api.requests)
