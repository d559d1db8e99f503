"""One look at the secret file."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from agent_runtime.secret.content import SecretFault, Unusable
from agent_runtime.secret.reader import came_by_rename, read_secret
from tests.support.secret_mount import KubernetesVolume, SecretMount, token

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def mount(tmp_path: Path) -> SecretMount:
    (tmp_path / "mount").mkdir()
    return SecretMount(tmp_path / "mount")


def test_a_fifo_is_not_even_opened(mount: SecretMount) -> None:
    """S15; opening it would let a writer believe that it is read."""
    os.mkfifo(mount.path)
    opened = threading.Event()

    def write() -> None:
        descriptor = os.open(mount.path, os.O_WRONLY)
        opened.set()
        os.close(descriptor)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        deadline = time.monotonic() + 0.1
        while time.monotonic() < deadline:
            assert read_secret(mount.path).found == Unusable("is a FIFO", SecretFault.NO_FILE)
        assert not opened.is_set()
    finally:
        reader = os.open(mount.path, os.O_RDONLY | os.O_NONBLOCK)
        writer.join()
        os.close(reader)


def test_a_file_where_a_directory_should_be_means_missing(mount: SecretMount) -> None:
    mount.path.touch()
    assert read_secret(mount.path / "token").found == Unusable("is missing", SecretFault.MISSING)


def test_the_mark_tells_every_write_and_nothing_else(mount: SecretMount) -> None:
    mount.publish(token(1))
    first = read_secret(mount.path)
    mount.path.chmod(0o640)
    assert read_secret(mount.path).mark == first.mark
    mount.copy_preserving(token(1))
    rewritten = read_secret(mount.path)
    assert rewritten.mark != first.mark
    mount.copy_preserving(token(2))
    changed = read_secret(mount.path)
    assert changed.mark != rewritten.mark
    assert token(2) not in repr(changed)


def test_only_the_kubelets_layout_is_known_to_be_whole(mount: SecretMount, tmp_path: Path) -> None:
    mount.publish(token(1))
    assert not came_by_rename(mount.path)
    link = tmp_path / "link"
    link.symlink_to(mount.path)
    assert not came_by_rename(link)
    (tmp_path / "volume").mkdir()
    volume = KubernetesVolume(tmp_path / "volume")
    volume.publish(token(1))
    assert came_by_rename(volume.path)
    assert came_by_rename(volume.directory / "..data" / "token")
    link.unlink()
    link.symlink_to(volume.path)
    assert came_by_rename(link)
