"""
The secret file behind mounts, without inotify, in a stopped process, of another user (faults S8, S10 to S13, S15).

The watching process lives in a mount namespace of its own, as in a container; the test writes from outside. Nothing is
mounted in the namespace of the tests themselves, and limits are lowered only in a user namespace of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.errors import NotWritable
from agent_runtime.model.tokens import Token
from agent_runtime.secret.content import SecretFault, Unusable
from agent_runtime.secret.file import SOURCE_SECONDS
from agent_runtime.secret.mount import SourceKind, source_of
from agent_runtime.secret.reader import Reading, read_secret
from tests.support.secret_mount import SecretMount, token

SEEN = 11.0
"""Ten times the 1.1 s for what has no event."""

PROBE = Path(__file__).parents[1] / "support/secret_probe.py"


def fingerprint(number: int) -> str:
    return Token(token(number)).fingerprint


class Probe:
    """The watching process; its lines are read by a thread, so that a wait can have a deadline."""

    def __init__(self, command: list[str], path: Path, data: Path) -> None:
        self.process = subprocess.Popen(
            [*command, sys.executable, str(PROBE), str(path), str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.lines: list[dict[str, Any]] = []
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def until(self, *, within_seconds: float = SEEN, **expected: object) -> dict[str, Any]:
        """Return the first line not yet looked at that has these values."""
        deadline = time.monotonic() + within_seconds
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {expected} within {within_seconds} s: {self.lines[-3:]}") from None
            if expected.items() <= line.items():
                return line

    def seen(self, number: int, *, since: float, what: str) -> None:
        """Wait until the token is in use, by the watcher and by a spawn, and print how long the watcher took."""
        at = self.until(event="status", fingerprint=fingerprint(number))["at"]
        print(f"{what}: seen after {(at - since) * 1000:.0f} ms")  # noqa: T201 shown by -s
        assert self.spawned() == fingerprint(number)

    def spawned(self) -> str | None:
        """Return the fingerprint that a spawn would carry now."""
        assert self.process.stdin is not None
        self.process.stdin.write("read\n")
        carried: str | None = self.until(event="spawn")["fingerprint"]
        return carried

    def warnings(self) -> list[str]:
        return [line["text"] for line in self.lines if line["event"] == "warning"]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))
            self._queue.put(self.lines[-1])


class MountNamespace:
    """A private mount namespace, held open by a sleeping process."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.write(b"up\n")
        self._holder.stdout.readline()
        self.enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]

    def run(self, *command: str | Path, stdin: str = "") -> None:
        subprocess.run([*self.enter, *map(str, command)], check=True, input=stdin, text=True, capture_output=True)

    def close(self) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait(10)
        self._holder.stdout.close()


@pytest.fixture
def namespace() -> Iterator[MountNamespace]:
    if os.geteuid() != 0 or shutil.which("nsenter") is None:
        pytest.skip("needs root and nsenter to mount in a namespace of its own")
    if (
        subprocess.run(
            ["unshare", "-m", "--propagation", "private", "true"], check=False, capture_output=True
        ).returncode
        != 0
    ):
        pytest.skip("this machine does not allow a mount namespace of one's own")
    made = MountNamespace()
    yield made
    made.close()


Start = Callable[..., Probe]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a probe by a command in front of it, and wait until it watches."""
    probes: list[Probe] = []

    def make(path: Path, *command: str) -> Probe:
        probe = Probe(list(command), path, tmp_path / "data")
        probes.append(probe)
        probe.until(event="started", within_seconds=30.0)
        return probe

    yield make
    for probe in probes:
        probe.close()


@pytest.fixture
def mount(tmp_path: Path) -> SecretMount:
    (tmp_path / "mount").mkdir()
    return SecretMount(tmp_path / "mount")


def test_a_file_system_mounted_over_the_directory_and_unmounted_again_is_followed(
    namespace: MountNamespace, start: Start, mount: SecretMount
) -> None:
    """S8; the umount also shows that the watcher does not keep the file system busy."""
    mount.publish(f"{token(1)}\n")
    probe = start(mount.path, *namespace.enter)
    namespace.run("mount", "-t", "tmpfs", "none", mount.directory)
    since = time.monotonic()
    namespace.run("tee", mount.path, stdin=f"{token(2)}\n")
    probe.seen(2, since=since, what="tmpfs over it")
    namespace.run("tee", mount.path, stdin=f"{token(3)}\n")
    probe.seen(3, since=time.monotonic(), what="tmpfs over it, next")
    namespace.run("umount", mount.directory)
    probe.seen(1, since=time.monotonic(), what="umount")
    mount.publish(f"{token(4)}\n")
    probe.seen(4, since=time.monotonic(), what="after umount")


@pytest.mark.parametrize("kept_by_another_name", [False, True])
def test_a_single_file_mount_is_warned_of_and_a_rename_outside_is_reported(
    namespace: MountNamespace, start: Start, mount: SecretMount, tmp_path: Path, kept_by_another_name: bool
) -> None:
    """S10; where the old file has another name its link count tells nothing, the mount table does."""
    inside = tmp_path / "inside"
    inside.touch()
    mount.publish(f"{token(1)}\n")
    if kept_by_another_name:
        (mount.directory / "another").hardlink_to(mount.path)
    namespace.run("mount", "--bind", mount.path, inside)
    probe = start(inside, *namespace.enter)
    assert probe.lines[-1]["source"] == SourceKind.FILE_MOUNT
    assert "mounted as a single file" in probe.warnings()[0]

    mount.overwrite(f"{token(2)}\n")
    probe.seen(2, since=time.monotonic(), what="file mount, in place")

    mount.publish(f"{token(3)}\n")
    since = time.monotonic()
    assert probe.process.stdin is not None
    probe.process.stdin.write("read\n")  # a spawn reads before the watcher does
    detached = probe.until(event="status", source=SourceKind.DETACHED)
    print(f"detached: seen after {(detached['at'] - since) * 1000:.0f} ms")  # noqa: T201 shown by -s
    assert detached["at"] - since < SOURCE_SECONDS / 2  # not only when the mount is looked up anyway
    assert detached["state"] == "ready"
    assert "cannot be seen from here" in detached["error"]
    assert probe.spawned() == fingerprint(2)
    assert len([text for text in probe.warnings() if "replaced outside" in text]) == 1


def test_a_mounted_directory_that_was_made_anew_outside_is_reported(
    namespace: MountNamespace, start: Start, mount: SecretMount, tmp_path: Path
) -> None:
    """S10 for directories: the mount follows the inode there too."""
    inside = tmp_path / "inside"
    inside.mkdir()
    mount.publish(f"{token(1)}\n")
    namespace.run("mount", "--bind", mount.directory, inside)
    probe = start(inside / "token", *namespace.enter)
    assert probe.lines[-1]["source"] == SourceKind.DIRECTORY
    mount.made_anew()
    mount.publish(f"{token(2)}\n")
    probe.until(event="status", source=SourceKind.DETACHED)
    assert probe.spawned() == fingerprint(1)


@pytest.mark.parametrize("limit", ["max_inotify_instances", "max_inotify_watches"])
def test_without_inotify_the_file_is_re_read_and_one_warning_says_so(
    start: Start, mount: SecretMount, limit: str
) -> None:
    """S11; these are the limits of a user namespace, so nobody else's are lowered."""
    script = f'echo 0 >/proc/sys/user/{limit} && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine does not allow a user namespace of one's own")
    mount.publish(f"{token(0)}\n")
    probe = start(mount.path, *command)
    mount.publish(f"{token(1)}\n")
    assert probe.spawned() == fingerprint(1)
    mount.publish(f"{token(2)}\n")
    probe.seen(2, since=time.monotonic(), what=f"{limit} = 0")
    mount.publish(f"{token(3)}\n")
    assert probe.spawned() == fingerprint(3)
    assert len([text for text in probe.warnings() if "cannot watch" in text]) == 1


@pytest.mark.slow
def test_an_overflow_of_the_event_queue_while_stopped_loses_nothing(start: Start, mount: SecretMount) -> None:
    """S12."""
    mount.publish(f"{token(1)}\n")
    probe = start(mount.path)
    probe.process.send_signal(signal.SIGSTOP)
    try:
        limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        for number in range(max(20_000, limit) // 3 + 1):
            # Created, closed and removed: three events.
            other = mount.directory / f"other-{number}"
            os.close(os.open(other, os.O_CREAT | os.O_WRONLY))
            other.unlink()
        mount.publish(f"{token(2)}\n")
    finally:
        probe.process.send_signal(signal.SIGCONT)
    probe.seen(2, since=time.monotonic(), what="SIGCONT after an overflow")
    mount.publish(f"{token(3)}\n")
    probe.seen(3, since=time.monotonic(), what="the next one")


def test_a_write_behind_an_overlay_is_seen_although_it_has_no_event(
    namespace: MountNamespace, start: Start, tmp_path: Path
) -> None:
    """S13."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    lower = SecretMount(tmp_path / "lower")
    lower.publish(f"{token(1)}\n")
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    try:
        namespace.run("mount", "-t", "overlay", "overlay", "-o", options, tmp_path / "merged")
    except subprocess.CalledProcessError:
        pytest.skip("the temporary directory's file system cannot be the base of an overlay")
    probe = start(tmp_path / "merged" / "token", *namespace.enter)
    for number in (2, 3):
        lower.overwrite(f"{token(number)}\n")
        probe.seen(number, since=time.monotonic(), what="behind an overlay")


def test_another_users_file_is_a_reason_and_no_crash(tmp_path: Path, mount: SecretMount) -> None:
    """S15."""
    if os.geteuid() != 0:
        pytest.skip("needs root to be another user for a moment")
    mount.publish(f"{token(1)}\n")
    mount.path.chmod(0o600)
    found: list[Reading] = []

    def look_as_nobody() -> None:
        # Of this thread only, which ends thereafter; it takes root's right to read everything away too.
        ctypes.CDLL(None).setfsuid(65534)
        found.append(read_secret(mount.path))

    thread = threading.Thread(target=look_as_nobody)
    thread.start()
    thread.join()
    assert found[0].found == Unusable("cannot be read: Permission denied", SecretFault.UNREADABLE)


def test_put_overwrites_a_single_file_mount_in_place_and_says_so(
    namespace: MountNamespace, start: Start, mount: SecretMount, tmp_path: Path
) -> None:
    inside = tmp_path / "inside"
    inside.touch()
    mount.publish('{"token": "' + token(1) + '", "subscription": "a longer content than the one that follows"}\n')
    namespace.run("mount", "--bind", mount.path, inside)
    program = "import sys, pathlib; from agent_runtime.secret.writer import put; print(put(pathlib.Path(sys.argv[1]), "
    program += "sys.stdin.buffer.read()))"
    command = [*namespace.enter, sys.executable, "-c", program, str(inside)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, input=token(2), text=True, capture_output=True, check=True, cwd=root)
    assert "overwritten in place" in done.stdout
    assert mount.path.read_text() == f"{token(2)}\n"
    assert os.listdir(mount.directory) == ["token"]  # noqa: PTH208 names are what is compared

    mount.publish(f"{token(3)}\n")
    refused = subprocess.run(command, input=token(4), text=True, capture_output=True, check=False, cwd=root)
    assert f"{NotWritable.__name__}: the secret file was replaced outside this container" in refused.stderr
    assert mount.path.read_text() == f"{token(3)}\n"


def test_without_a_mount_table_the_source_is_a_directory(mount: SecretMount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_runtime.secret.mount.MOUNTINFO", mount.directory / "missing")
    mount.publish(f"{token(1)}\n")
    assert source_of(mount.path) is SourceKind.DIRECTORY
