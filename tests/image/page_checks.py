"""
What the pages tell a person to copy, typed as it stands there; ``tests/image/run`` calls this on its own engine.

Only three things are not as on the page: builds use the host's network, the host's port is a free one, and the API is a
stand-in inside the container.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest

from agent_runtime.model.tokens import Token
from tests.image.checks import DOCKER, IMAGE, NEW, OLD, docker, eventually, free_port
from tests.support.pages import BACKEND, FLEET, OPERATIONS, README, ROOT, blocks, section

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOREIGN = os.environ["AGENT_RUNTIME_TEST_FOREIGN"]
SHIM = """#!/bin/sh
case "$1 $2" in
    "build "*) shift; exec "$DOCKER" build --network host "$@" ;;
    "compose build") exec "$DOCKER" compose -f compose.yaml -f "$HOST_NETWORK" build ;;
    "run -d")
        shift 2
        name=$("$DOCKER" run -d -e ANTHROPIC_BASE_URL=http://127.0.0.1:9999 "$@") || exit
        "$DOCKER" exec -d "$name" /opt/agent-runtime/bin/python -m agent_runtime.standins.messages_api --port 9999
        exec "$DOCKER" exec "$name" /opt/agent-runtime/bin/python -c '
import socket, time
for _ in range(300):
    if not socket.socket().connect_ex(("127.0.0.1", 9999)):
        break
    time.sleep(0.1)' ;;
    *) exec "$DOCKER" "$@" ;;
esac
"""
SOURCES = (
    ".dockerignore",
    "Dockerfile.agent",
    "README.md",
    "agent_runtime",
    "build.lock",
    "deploy",
    "pyproject.toml",
    "requirements.lock",
    "sbom.cdx.json",
)
"""What a build needs of a checkout."""


class Desk:
    """A directory in which somebody types what a page says, with ``token.txt`` in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        (directory / "token.txt").write_text(f"{OLD}\n")
        (directory / "bin").mkdir()
        shim = directory / "bin" / "docker"
        shim.write_text(SHIM)
        shim.chmod(0o755)
        host_network = directory / "bin" / "host-network.yaml"
        host_network.write_text("services: {agent: {build: {network: host}}}\n")
        self.environ = {
            **os.environ,
            "PATH": f"{shim.parent}:{os.environ['PATH']}",
            "DOCKER": DOCKER,
            "HOST_NETWORK": str(host_network),
            "AGENT_PORT": str(self.port),
        }
        self.environ.pop("DOCKER_BUILDKIT", None)  # a person has not set it

    def type(self, commands: str, directory: Path | None = None) -> str:
        """Run the commands of a page, each of which must succeed; return what they print."""
        text = commands.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=directory or self.directory,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def token(self, key: Path) -> dict[str, str]:
        """Ask the agent about its token, from the host."""
        headers = {"Authorization": f"Bearer {key.read_text().strip()}"}
        answer = httpx.get(f"http://127.0.0.1:{self.port}/api/token", headers=headers, timeout=10, trust_env=False)
        return dict(answer.json())


def clean() -> None:
    for name in ("agent", "own-agent"):
        docker("rm", "--force", "--volumes", name, check=False)
        docker("volume", "rm", f"{name}-data", check=False)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    clean()
    yield Desk(tmp_path)
    clean()


@pytest.fixture
def checkout(desk: Desk) -> Iterator[Desk]:
    """Have what a build needs of the checkout in the directory."""
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, desk.directory / name)
    yield desk
    files = [f"--file={desk.directory}/deploy/{name}" for name in ("compose.yaml", "compose.volume.yaml")]
    docker("compose", *files, "down", "--volumes", check=False)


def test_a_build_without_buildkit_says_at_once_what_to_set() -> None:
    done = subprocess.run(
        [DOCKER, "build", "--network=host", "--no-cache", "-f", "Dockerfile.agent", "."],
        cwd=ROOT,
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "This needs BuildKit." in done.stderr
    assert "DOCKER_BUILDKIT=1 docker build" in done.stderr
    assert "Step 5" not in done.stdout, "before anything is installed"


def test_the_image_is_reachable_from_the_host_with_its_key(desk: Desk) -> None:
    build, run = blocks(section(OPERATIONS, "The image"), "sh")
    desk.type(build, ROOT)
    answer = desk.type(run).splitlines()[-1]

    assert json.loads(answer)["state"] == "ready"
    assert json.loads(answer)["fingerprint"] == Token(OLD).fingerprint
    url = f"http://127.0.0.1:{desk.port}/api/token"
    assert httpx.get(url, timeout=10, trust_env=False).status_code == httpx.codes.UNAUTHORIZED
    assert docker("exec", "agent", "agent-runtime", "healthcheck") == "healthy"
    assert (desk.directory / "secret/token").stat().st_gid == 1000

    [put] = [block for block in blocks(section(FLEET, "Writers to copy"), "sh") if "agent-runtime token put" in block]
    (desk.directory / "token.txt").write_text(f"{NEW}\n")
    desk.type(put.partition("\n")[2])
    key = desk.directory / "access-key/key"
    eventually("the new token is in use", lambda: desk.token(key)["fingerprint"] == Token(NEW).fingerprint)


def test_a_backend_that_posts_the_token_finds_what_it_needs(desk: Desk) -> None:
    [settings] = blocks(section(BACKEND, "What the container needs"), "ini")
    [run] = blocks(section(BACKEND, "What the container needs"), "sh")
    (desk.directory / "agent.env").write_text(settings)
    desk.environ["CLAUDE_CODE_OAUTH_TOKEN"] = OLD
    desk.type(run)
    key, token = desk.directory / "access-key/key", desk.directory / "secret/token"
    eventually("the first token is written", token.exists)
    eventually("it answers", lambda: "healthy" in docker("exec", "agent", "agent-runtime", "healthcheck", check=False))
    answer = httpx.post(
        f"http://127.0.0.1:{desk.port}/api/credentials/reload-token",
        headers={"X-Trinity-Agent-Token": key.read_text().strip()},
        json={"token": NEW},
        timeout=10,
        trust_env=False,
    )

    assert answer.json()["generation"] == 2
    assert (token.read_text(), token.stat().st_mode & 0o777) == (f"{NEW}\n", 0o640)


def test_ones_own_image_with_a_user_of_its_own_runs_a_task(desk: Desk) -> None:
    operations = section(OPERATIONS, "Your own image")
    build, run = blocks(operations, "sh")
    start, health, user = blocks(operations, "dockerfile")
    theirs = f"FROM {IMAGE} AS cli\nFROM {FOREIGN}\nCOPY --from=cli /usr/local/bin/claude /usr/local/bin/claude\n"
    theirs += "RUN groupadd -g 1500 agent && useradd -m -u 1500 -g 1500 agent\n"
    (desk.directory / "Dockerfile").write_text(f"{theirs}{user}{start}{health}USER agent\n")
    desk.type(build, ROOT)
    said = desk.type(run)

    assert "success" in said or "hello" in said.lower()
    inside = ["exec", "own-agent", "sh", "-c"]
    assert docker(*inside, "command -v agent-runtime; command -v python3 || id -u").split() == [
        "/usr/local/bin/agent-runtime",
        "1500",
    ]
    eventually("healthy", lambda: docker("inspect", "-f", "{{.State.Health.Status}}", "own-agent") == "healthy")


def test_compose_is_of_the_second_version_and_starts_it(checkout: Desk) -> None:
    [commands] = blocks(section(OPERATIONS, "Compose"), "sh")
    said = checkout.type(commands)
    deploy = checkout.directory / "deploy"

    assert "version v2" in said or "version 2" in said
    assert json.loads(said.splitlines()[-1])["fingerprint"] == Token(OLD).fingerprint
    assert (deploy / "claude-secret/token").stat().st_gid == 1000

    (checkout.directory / "token.txt").write_text(f"{NEW}\n")
    [write] = [block for block in blocks(section(FLEET, "Writers to copy"), "sh") if "compose" in block]
    checkout.type(write)
    checkout.type(write.partition(" run ")[0] + " up --detach --wait")
    assert checkout.token(deploy / "access-key/key")["fingerprint"] == Token(NEW).fingerprint

    (checkout.directory / "token.txt").write_text(f"{OLD}\n")
    checkout.type(write)
    eventually(
        "the first token is in use again",
        lambda: checkout.token(deploy / "access-key/key")["fingerprint"] == Token(OLD).fingerprint,
    )


def test_the_readme_builds_what_it_copies_from() -> None:
    [build] = blocks(section(README, "In your image"), "sh")
    [lines] = blocks(section(README, "In your image"), "dockerfile")

    assert build in "".join(blocks(section(OPERATIONS, "Your own image"), "sh"))
    assert f"-t {lines.partition('--from=')[2].split()[0]} " in build
