"""
What must hold of the image, run for real; ``tests/image/run`` builds it and calls this.

All networks are the host's or none, so that it works where an engine cannot make one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml

from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOCKER = os.environ["AGENT_RUNTIME_TEST_DOCKER"]
IMAGE = os.environ["AGENT_RUNTIME_TEST_IMAGE"]
RUNTIME, OWN = f"{IMAGE}-runtime", f"{IMAGE}-own"
ROOT = Path(__file__).parents[2]
USER = 1000
OLD, NEW = "sk-ant-oat01-the-old-one-of-the-image-checks", "sk-ant-oat01-the-new-one-of-the-image-checks"
HARDENED = (
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--pids-limit=200",
    "--memory=2g",
    "--stop-timeout=40",
)
DEADLINE_SECONDS = 60


def docker(*arguments: str, check: bool = True) -> str:
    """Run one command of the engine and return what it prints."""
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, timeout=120, check=False)
    if check and done.returncode != 0:
        pytest.fail(f"docker {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


@dataclass(frozen=True, slots=True)
class Container:
    """A running container; ``started_seconds`` is the time from ``docker run`` to the line ``listening on``."""

    name: str
    started_seconds: float = 0.0

    def inside(self, command: str, *, check: bool = True) -> str:
        """Run a shell command in it."""
        return docker("exec", self.name, "sh", "-c", command, check=check)

    def inspect(self, template: str) -> str:
        """Ask the engine about it."""
        return docker("inspect", "-f", template, self.name)

    def zombies(self) -> list[str]:
        """List ended processes that nobody has reaped, seen from its own process namespace."""
        stats = self.inside("cat /proc/[0-9]*/stat 2>/dev/null", check=False)
        return [line for line in stats.splitlines() if line.rpartition(")")[2].split()[:1] == ["Z"]]


@contextlib.contextmanager
def container(
    *options: str, image: str = IMAGE, command: tuple[str, ...] = (), listens: bool = True
) -> Iterator[Container]:
    """Run a container, wait for its printed line, and remove it with its volumes."""
    begun = time.monotonic()
    name = docker("run", "--detach", *options, image, *command)
    try:
        if listens:
            with subprocess.Popen(
                [DOCKER, "logs", "--follow", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ) as logs:
                assert logs.stdout is not None
                line = logs.stdout.readline()
                logs.kill()
            if not line.startswith("listening on "):
                pytest.fail(f"did not start: {line}{docker('logs', name)}")
        yield Container(name, time.monotonic() - begun)
    finally:
        docker("rm", "--force", "--volumes", name)


def eventually(what: str, holds: Callable[[], bool]) -> None:
    """Ask until it holds; fail by the name of what was awaited after a generous deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {DEADLINE_SECONDS} s: {what}")
        time.sleep(0.1)


def tell(figure: str, seconds: float) -> None:
    """Print a figure of this run; ``tests/image/run`` lets it through."""
    sys.stdout.write(f"\n--- {figure}: {seconds:.2f} s\n")


class SecretDirectory:
    """A directory that a backend mounts: readable for the container's group, written by rename."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._open_to_the_group(path, 0o750)

    def publish(self, token: str) -> Path:
        """Put a token in place as a backend does."""
        fresh, target = self.path / "token.new", self.path / "token"
        fresh.write_text(token + "\n")
        self._open_to_the_group(fresh, 0o440)
        fresh.rename(target)
        return target

    def _open_to_the_group(self, path: Path, mode: int) -> None:
        os.chown(path, -1, USER)
        path.chmod(mode)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def api() -> MessagesApi:
    api = MessagesApi()
    api.accept(OLD)
    api.accept(NEW)
    api.script("orphan", Tool(command="(setsid sleep 0.2 &) ; git --version; id -u"), Text(text="done"))
    return api


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> SecretDirectory:
    directory = SecretDirectory(tmp_path_factory.mktemp("mount") / "claude")
    directory.publish(OLD)
    return directory


@dataclass(frozen=True, slots=True)
class Agent:
    """A supervisor in a hardened container, with the stand-in API outside of it."""

    container: Container
    url: str

    def get(self, path: str) -> dict[str, object]:
        """Ask it something."""
        answer = httpx.get(self.url + path, timeout=10, trust_env=False)
        return dict(answer.json())

    def task(self, message: str) -> dict[str, object]:
        """Have it do something, and fail unless that went well."""
        answer = httpx.post(
            f"{self.url}/api/task", json={"message": message}, timeout=DEADLINE_SECONDS, trust_env=False
        )
        assert answer.status_code == httpx.codes.OK, answer.text
        return dict(answer.json())


@contextlib.contextmanager
def agent(api: MessagesApi, *options: str, image: str = IMAGE) -> Iterator[Agent]:
    """Run a hardened container against the stand-in API; *options*: its mounts and what else it needs."""
    port = free_port()
    environment = [f"--env=AGENT_RUNTIME_PORT={port}"]
    with serve(api) as api_url:
        everything = [*HARDENED, "--network=host", *environment, f"--env=ANTHROPIC_BASE_URL={api_url}", *options]
        with container(*everything, image=image) as running:
            yield Agent(running, f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def running(api: MessagesApi, secret: SecretDirectory) -> Iterator[Agent]:
    with agent(api, f"--volume={secret.path}:/run/secrets/claude:ro") as started:
        yield started


@pytest.fixture(scope="module")
def untold() -> Iterator[Container]:
    """A container that was given nothing at all, not even a network."""
    with container("--network=none") as started:
        yield started


def test_it_starts_without_any_setting_and_answers_inside(untold: Container) -> None:
    tell("docker run to listening", untold.started_seconds)
    assert untold.inside("agent-runtime healthcheck") == "healthy"


def test_it_is_neither_root_nor_capable_and_cannot_write_its_own_files(running: Agent) -> None:
    inside = running.container.inside
    status = dict(line.split(":\t", 1) for line in inside("cat /proc/1/status").splitlines() if ":\t" in line)
    touch = "for d in {}; do touch $d/x 2>/dev/null && echo $d; done; true"

    assert inside("id -u; id -g").split() == [str(USER), str(USER)]
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert inside(touch.format("/ /usr/local/bin /opt/agent-runtime/bin /run/secrets/claude")) == ""
    writable = ["/tmp", "/workspace", "/home/agent", "/var/lib/agent-runtime"]
    assert inside(touch.format(" ".join(writable))).split() == writable


def test_tini_is_in_front(running: Agent) -> None:
    assert running.container.inside("cat /proc/1/comm") == "tini"


def test_it_answers_and_is_ready(running: Agent) -> None:
    assert httpx.get(f"{running.url}/livez", timeout=10, trust_env=False).status_code == httpx.codes.OK
    assert httpx.get(f"{running.url}/readyz", timeout=10, trust_env=False).status_code == httpx.codes.OK
    assert running.get("/api/token")["source"] == "directory"


def test_the_real_cli_does_a_task_with_a_tool_and_leaves_nothing_behind(running: Agent, api: MessagesApi) -> None:
    answer = running.task("[[script:orphan]] Do it.")

    assert answer["response"] == "done"
    assert api.seen(OLD).requests > 0
    metadata = answer["metadata"]
    assert isinstance(metadata, dict)
    assert running.container.inside("claude --version") == f"{metadata['cli_version']} (Claude Code)"
    left = set(running.container.inside("cat /proc/[0-9]*/comm 2>/dev/null; true").split())
    assert left - {"sh", "cat"} == {"tini", "agent-runtime", "agent-forks"}
    assert running.container.zombies() == []


def test_a_rename_on_the_host_is_used_by_the_next_execution(
    running: Agent, api: MessagesApi, secret: SecretDirectory
) -> None:
    secret.publish(NEW)
    eventually("the new token is known", lambda: running.get("/api/token")["generation"] == 2)
    running.task("Say hello.")

    assert api.seen(NEW).requests > 0


def test_any_user_of_its_group_can_run_it(api: MessagesApi, secret: SecretDirectory) -> None:
    with agent(api, "--user=1500:1000", f"--volume={secret.path}:/run/secrets/claude:ro") as started:
        assert started.container.inside("id -u") == "1500"
        assert started.task("[[script:orphan]] Do it.")["response"] == "done"


def test_a_single_file_mount_is_told_as_such(api: MessagesApi, tmp_path: Path) -> None:
    secret = SecretDirectory(tmp_path / "claude")
    token = secret.publish(OLD)
    with agent(api, f"--volume={token}:/run/secrets/claude/token:ro") as started:
        assert started.get("/api/token")["source"] == "file_mount"

        secret.publish(NEW)
        eventually("it says so", lambda: started.get("/api/token")["source"] == "detached")
        assert started.get("/api/token")["generation"] == 1


def test_an_orphan_is_reaped_here_and_not_without_tini(running: Agent) -> None:
    orphan = "(sh -c 'exit 0' &) ; (sleep 0.1 &) ; sleep 0.3"
    running.container.inside(orphan)
    assert running.container.zombies() == []

    with container("--network=none", "--entrypoint=sleep", command=("infinity",), listens=False) as without_tini:
        without_tini.inside(orphan)
        assert without_tini.zombies() != []


def test_the_healthcheck_fails_where_nothing_answers() -> None:
    with container("--network=none", "--entrypoint=sleep", command=("infinity",), listens=False) as idle:
        assert idle.inside("agent-runtime healthcheck; echo $?", check=False) == "1"


def test_nothing_secret_is_in_environment_history_or_files() -> None:
    config = json.loads(docker("image", "inspect", "-f", "{{json .Config}}", IMAGE))
    names = {entry.partition("=")[0] for entry in config["Env"]}
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", IMAGE)
    look = "ls -A /root /home/agent /run/secrets/claude /var/lib/agent-runtime /workspace; ls -d /etc/pip.conf"
    files = docker(
        "run", "--rm", "--network=none", "--user=0", "--entrypoint=sh", IMAGE, "-c", f"({look}) 2>/dev/null; true"
    )

    assert names == {"PATH", "LANG", "HOME", "AGENT_RUNTIME_DATA_DIR", "CLAUDE_CONFIG_DIR"}
    assert "sk-ant" not in history
    assert "://" not in history
    listed = {line for line in files.splitlines() if line and not line.endswith(":")}
    assert listed <= {".bashrc", ".profile"}  # Debian's own, of root


@pytest.mark.parametrize(
    ("image", "cli"),
    [(OWN, "claude"), (RUNTIME, "/opt/agent-runtime/bin/python -m agent_runtime.standins.scripted_cli")],
    ids=["in an image of another release", "in an empty image"],
)
def test_the_runtime_needs_nothing_of_the_image_it_is_put_into(
    api: MessagesApi, tmp_path: Path, image: str, cli: str
) -> None:
    """The empty image has no C library at all, as one of musl has none of ours."""
    secret = SecretDirectory(tmp_path / "claude")
    secret.publish(OLD)
    options = (
        f"--user={USER}:{USER}",
        "--env=HOME=/tmp",
        "--env=AGENT_RUNTIME_DATA_DIR=/tmp/data",
        f"--env=AGENT_RUNTIME_CLAUDE={cli}",
        f"--volume={secret.path}:/run/secrets/claude:ro",
    )
    with agent(api, *options, image=image) as started:
        tell(f"docker run to listening, {image}", started.container.started_seconds)
        assert started.task("Say hello.")["response"] == "done"
        before = api.seen(NEW).requests
        secret.publish(NEW)
        eventually("the new token is known", lambda: started.get("/api/token")["generation"] == 2)
        started.task("Say hello.")
        assert api.seen(NEW).requests > before
        docker("stop", started.container.name)
        assert started.container.inspect("{{.State.ExitCode}}") == "0"


def test_in_ones_own_image_the_real_cli_uses_a_tool_and_the_supervisor_its_own_python(
    api: MessagesApi, tmp_path: Path
) -> None:
    secret = SecretDirectory(tmp_path / "claude")
    secret.publish(OLD)
    mount = f"--volume={secret.path}:/run/secrets/claude:ro"
    with agent(api, f"--user={USER}:{USER}", "--env=HOME=/tmp", mount, image=OWN) as started:
        inside = started.container.inside
        assert started.task("[[script:orphan]] Do it.")["response"] == "done"
        assert inside("command -v python3", check=False) == ""
        ours = "for p in /proc/[0-9]*; do grep -qx agent-runtime $p/comm && cat $p/maps; done 2>/dev/null; true"
        loaded = {line.split()[-1] for line in inside(ours).splitlines() if ".so" in line}
        assert "/opt/agent-runtime/python/lib/libc.so.6" in loaded
        assert {path for path in loaded if not path.startswith("/opt/agent-runtime/")} == set()
        reload_result = inside(
            "mkdir /tmp/reload_result && "
            "/opt/agent-runtime/bin/python -m agent_runtime.delivery.reload_results /tmp/reload_result claude"
        )
        assert "takes a newer token: on_request" in reload_result


def test_what_the_kubernetes_manifest_sets_and_calls_works_in_the_image(tmp_path: Path) -> None:
    pod = yaml.safe_load((ROOT / "deploy/kubernetes/statefulset.yaml").read_text())["spec"]["template"]["spec"]
    [manifest] = pod["containers"]
    token, key = SecretDirectory(tmp_path / "claude"), SecretDirectory(tmp_path / "key")
    token.publish(OLD)
    key.publish("the-access-key-of-the-image-checks").rename(key.path / "key")
    with container(
        *HARDENED,
        "--network=none",
        f"--volume={token.path}:/run/secrets/claude:ro",
        f"--volume={key.path}:/run/secrets/agent-runtime:ro",
        *(f"--env={variable['name']}={variable['value']}" for variable in manifest["env"]),
    ) as pod_like:
        assert pod_like.inside("agent-runtime healthcheck") == "healthy"
        assert "drained" in pod_like.inside(" ".join(manifest["lifecycle"]["preStop"]["exec"]["command"]))
        docker("stop", pod_like.name)
        assert pod_like.inspect("{{.State.ExitCode}}") == "0"


def test_a_stop_ends_it_with_0_within_the_drain_time(running: Agent) -> None:
    begun = time.monotonic()
    docker("stop", running.container.name)
    took_seconds = time.monotonic() - begun

    tell("stop", took_seconds)
    assert running.container.inspect("{{.State.ExitCode}}") == "0"
    assert took_seconds < 25


def test_the_engine_finds_it_healthy_by_itself(untold: Container) -> None:
    eventually("healthy", lambda: untold.inspect("{{.State.Health.Status}}") == "healthy")
