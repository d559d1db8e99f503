"""Whether a variable in its environment makes the real CLI use another token or server than the one it is given."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent_runtime.standins.messages_api import MessagesApi, serve

if TYPE_CHECKING:
    from collections.abc import Sequence

PATIENCE_SECONDS = 60.0
LOOK_SECONDS = 0.1

_DELIVERED = "sk-ant-oat01-delivered-0000000000000000"
_ROGUE = "sk-ant-oat01-of-a-variable-00000000000"
_ADDRESS = re.compile(r"_(?:URL|URI|PROXY|ENDPOINT|GATEWAY)(?:_|$)")
_HOST = re.compile(r"_(?:HOST|SERVER)$")
_FILE = re.compile(r"_(?:FILE|PATH|DIR)(?:_|$)")
_SECRET = re.compile(r"_(?:TOKEN|SECRET|KEY|AUTH|BEARER|PASSWORD|PASSPHRASE)$")


def that_change_the_request(executable: Path, names: Sequence[str]) -> list[str]:
    """
    Return the variables that make the CLI use another token or server, or not end its run well.

    Each is tried with a foreign token or server, whichever its name speaks of, and with ``1``. All are tried at once,
    and, if that changes anything, each half of them.
    """
    if not names or all(_goes_out_as_delivered(executable, names, switched=switched) for switched in (False, True)):
        return []
    if len(names) == 1:
        return list(names)
    middle = len(names) // 2
    return that_change_the_request(executable, names[:middle]) + that_change_the_request(executable, names[middle:])


def _goes_out_as_delivered(executable: Path, names: Sequence[str], *, switched: bool) -> bool:
    api, rogue = MessagesApi(), MessagesApi()
    with serve(api) as base_url, serve(rogue) as rogue_url, tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "rogue").write_text(_ROGUE)
        values = {name: "1" if switched else _value(name, rogue_url, f"{scratch}/rogue") for name in names}
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": scratch,
            "CLAUDE_CONFIG_DIR": f"{scratch}/config",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "IS_SANDBOX": "1",
        }
        delivered = {"ANTHROPIC_BASE_URL": base_url, "CLAUDE_CODE_OAUTH_TOKEN": _DELIVERED}
        command = [str(executable), "-p", "--output-format", "stream-json", "--verbose", "Say hello."]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environ | values | delivered,
            cwd=scratch,
            start_new_session=True,
        ) as child:
            ends_at = time.monotonic() + PATIENCE_SECONDS
            while child.poll() is None and time.monotonic() < ends_at and not _goes_elsewhere(api, rogue):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(LOOK_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    return child.returncode == 0 and bool(api.requests) and not _goes_elsewhere(api, rogue)


def _goes_elsewhere(api: MessagesApi, rogue: MessagesApi) -> bool:
    asked = [request for request in api.requests if request.path.startswith("/v1/")]
    return bool(rogue.requests) or not all(request.carries(_DELIVERED) for request in asked)


def _value(name: str, rogue_url: str, path: str) -> str:
    if _ADDRESS.search(name):
        return rogue_url
    if _HOST.search(name):
        return rogue_url.removeprefix("http://")
    if _FILE.search(name) or "SOCKET" in name:
        return path
    return _ROGUE if _SECRET.search(name) else "1"
