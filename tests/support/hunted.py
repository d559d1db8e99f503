"""Have a tool of an execution hunt for a token, beside an attempt that runs and after one that has ended."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_runtime.standins.messages_api import MessagesApi, Text, Tool
from tests.support.another_user import NOBODY
from tests.support.supervised import PROGRAMS, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

HUNT = Path(__file__).with_name("hunt.py")
PYTHON = "/usr/bin/python3"
"""A Python that every user may run."""

IDENTITY = (
    r"p=$PPID; while [ $p -gt 1 ]; do tr '\0' '\n' </proc/$p/environ | sed -n 's/.*=\(relay-[0-9a-f]*\)$/\1/p'; "
    r"p=$(sed 's/.*) . \([0-9]*\) .*/\1/' /proc/$p/stat); done 2>errors"
)
"""Shell command that prints the relay identity in the environment of the CLI above the shell."""


@dataclass
class Hunted:
    """
    The result of a hunt.

    Attributes:
        places: The places where the token was found.
        before, after: The token as the supervisor shows it before and after the hunt.
    """

    supervisor: int
    report: dict[str, Any]
    places: set[str]
    before: dict[str, Any]
    after: dict[str, Any]
    confinement: dict[str, Any]
    way: str
    minted: list[str]
    other_processes: bool


def hunted(
    home: Path,
    mode: str,
    api: MessagesApi,
    *,
    claude: str = "",
    environment: Mapping[str, str] | None = None,
    more: str = "",
) -> Hunted:
    """
    Run the hunt in an execution of a supervisor in *home*, whose workspace may have files already.

    Args:
        mode: The mode of confinement, with delivery by the relay; ``env``: delivery by ``env``, no confinement.
        claude: The CLI to use; "": a shell script in its place, which any user may run.
        more: Shell commands that the tool runs besides.
    """
    token, key = f"sk-ant-oat01-{secrets.token_hex(24)}", secrets.token_hex(16)
    home.chmod(0o755)
    workspace = home / "workspace"
    for name in ("secret", "workspace", "data", "config", "home"):
        (home / name).mkdir(exist_ok=True)
    (home / "key").write_text(key)
    (home / "key").chmod(0o600)
    (home / "data").chmod(0o711)
    (home / "secret").chmod(0o700)
    package = next((parent for parent in Path(claude).parents if parent.name == "node_modules"), None)
    if package is not None:
        # Links to the CLI's package beside the secret, where another user can reach it.
        shutil.copytree(package, home / "node_modules", symlinks=True, copy_function=_link)
        claude = str(home / "node_modules" / Path(claude).relative_to(package))
    elif not claude:
        shutil.copyfile(PROGRAMS / "hunting_cli.sh", home / "cli")
        (home / "cli").chmod(0o755)
        claude = str(home / "cli")
    shutil.copy(HUNT, workspace)
    wait = "touch runs; for i in $(seq 1200); do test -e go && break; sleep 0.05; done"
    scripts = {
        "old": f"({IDENTITY}) >old",
        "other": f"({IDENTITY}) >living; {wait}",
        "hunt": f"{PYTHON} -I hunt.py config.json result.json 2>errors\n{more}",
    }
    for name, script in scripts.items():
        (workspace / f"{name}.sh").write_text(f"{script}\n")
        api.script(name, Tool(command=f"sh ./{name}.sh"), Text(text="done"))
    if mode == "user":
        for path in (workspace, home / "config", home / "home"):
            os.chown(path, NOBODY, NOBODY)
    own = {
        "AGENT_RUNTIME_TOKEN_DELIVERY": "env" if mode == "env" else "relay",
        "AGENT_RUNTIME_CONFINE": "off" if mode == "env" else mode,
        "AGENT_RUNTIME_ACCESS_KEY_FILE": str(home / "key"),
        **({"AGENT_RUNTIME_CHILD_USER": str(NOBODY)} if mode == "user" else {}),
        **(environment or {}),
    }
    api.accept(token)
    with supervised(home, claude=claude, token=token, environment=own) as run:
        run.client.headers["Authorization"] = f"Bearer {key}"
        way = eventually(lambda: _way_in(run.get("/health")["delivery"]["reason"]), 90)
        config = {
            "supervisor": run.process.pid,
            "url": run.url,
            "key": str(home / "key"),
            "old": str(workspace / "old"),
            "living": str(workspace / "living"),
            "places": [str(home / name) for name in ("secret", "data", "key", "config", "supervisor.log", "home")],
        }
        (workspace / "config.json").write_text(json.dumps(config))
        other = run.start("[[script:other]] Do it.")
        assert run.post("[[script:old]] Do it.").json()["response"] == "done"
        eventually((workspace / "runs").exists)
        before = run.get("/api/token") | {"held_by": None}
        answer = run.post("[[script:hunt]] Do it.").json()
        (workspace / "go").touch()
        assert other.answer().json()["response"] == "done"
        after = run.get("/api/token") | {"held_by": None}
        confinement = run.get("/health")["confinement"]
        counted = run.client.get("/metrics").text
    assert answer.get("response") == "done", answer
    log = (home / "supervisor.log").read_text()
    assert token not in log
    assert "agents can call" not in log
    assert ("agents can make no file in /var/tmp, because" in log) is (mode == "landlock")
    assert (workspace / "errors").read_text() == ""
    report = json.loads((workspace / "result.json").read_text())
    fingerprint = hashlib.sha256(token.encode()).hexdigest()[:12]
    return Hunted(
        run.process.pid,
        report,
        {where for where, tokens in report["found"].items() if fingerprint in tokens},
        before,
        after,
        confinement,
        way,
        [request.path for request in api.requests if "create_api_key" in request.path],
        'relay_requests_total{outcome="other_process"} 0.0' not in counted,
    )


def assert_kept(hunt: Hunted, mode: str) -> None:
    """Check that a hunt found and changed nothing; under ``env``, that it found the token in every place it is in."""
    report = hunt.report
    if mode == "env":
        assert {"environ", "places"} <= hunt.places
        if not Path("/proc/sys/kernel/yama").exists():
            assert {"mem", "process_vm_readv"} <= hunt.places
            assert {f"pidfd_getfd of {hunt.supervisor}", f"ptrace of {hunt.supervisor}"} <= set(report["reached"])
        assert 200 in report["api"].values()
        return
    assert hunt.before == hunt.after
    assert hunt.minted == []
    assert hunt.places == set()
    assert {what for what in report["reached"] if str(hunt.supervisor) in what.split()} == set()
    assert hunt.confinement["mode"] == mode
    assert not any(hunt.confinement["reached"].values())
    assert {status for what, status in report["api"].items() if "/health" not in what} - {None} == {401}
    passed = {what for what, status in report["relay"].items() if status not in {404, None}}
    # Among the living are the attempts of other supervisors of this user on the machine.
    assert len(passed) == 2, report["relay"]
    assert all(what.startswith("living") and what.endswith("POST /v1/messages") for what in passed), passed
    assert hunt.other_processes


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _way_in(reason: str) -> str | None:
    return None if "yet" in reason else reason
