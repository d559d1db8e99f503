"""What the watch of a directory tells, and that it is never deaf for good."""

from __future__ import annotations

import logging
import resource
import threading
import time
from typing import TYPE_CHECKING

import pytest

from agent_runtime.secret.watcher import DirectoryWatch
from tests.support.secret_mount import SecretMount, token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SOON = 11.0
"""Longer than any event takes; only a deaf watch waits for so long."""

TICK = 0.1


@pytest.fixture
def mount(tmp_path: Path) -> SecretMount:
    (tmp_path / "mount").mkdir()
    return SecretMount(tmp_path / "mount")


@pytest.fixture
def watch(mount: SecretMount) -> Iterator[DirectoryWatch]:
    """A watch that has begun."""
    made = DirectoryWatch(mount.directory)
    # The first wait returns at once: what happened before the watch began had no event.
    assert made.wait(SOON)
    yield made
    made.close()


def drain(watch: DirectoryWatch) -> None:
    while watch.wait(TICK):
        pass


@pytest.mark.parametrize("writer", ["publish", "overwrite", "patch", "copy_preserving", "unlink_and_create"])
def test_every_way_of_writing_is_an_event(mount: SecretMount, watch: DirectoryWatch, writer: str) -> None:
    mount.publish(f"{token(1)}\n")
    drain(watch)
    getattr(mount, writer)(f"{token(2)}\n")
    assert watch.wait(SOON)


def test_a_storm_of_events_is_told_in_groups(mount: SecretMount, watch: DirectoryWatch) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            mount.publish(f"{token(1)}\n")

    writing = threading.Thread(target=write)
    writing.start()
    began = time.monotonic()
    told = sum(watch.wait(SOON) for _ in range(5))
    took = time.monotonic() - began
    stop.set()
    writing.join()

    assert told == 5, "a directory that is never still is told of all the same"
    assert took > 5 * 0.02, "each event was told by itself"


def test_nothing_is_not_an_event(watch: DirectoryWatch) -> None:
    assert not watch.wait(TICK)


@pytest.mark.parametrize("replaced", [SecretMount.renamed_away, SecretMount.made_anew])
def test_a_renewed_watch_hears_the_successor_of_its_directory(
    mount: SecretMount, watch: DirectoryWatch, replaced: Callable[[SecretMount], None]
) -> None:
    """S6, and S7, where the successor has the same inode number."""
    replaced(mount)
    drain(watch)
    watch.renew()
    assert watch.wait(SOON)
    drain(watch)
    mount.publish(f"{token(1)}\n")
    assert watch.wait(SOON)


def test_a_directory_that_is_gone_is_no_event_and_one_that_comes_back_is_watched(
    mount: SecretMount, watch: DirectoryWatch
) -> None:
    mount.directory.rmdir()
    drain(watch)
    watch.renew()
    assert not watch.wait(TICK)
    mount.directory.mkdir()
    assert watch.wait(SOON)
    drain(watch)
    mount.publish(f"{token(1)}\n")
    assert watch.wait(SOON)


def test_a_stop_ends_a_wait(mount: SecretMount) -> None:
    watch = DirectoryWatch(mount.directory)
    assert watch.wait(SOON)
    threading.Timer(0.02, watch.stop).start()
    assert not watch.wait(100)
    assert watch.stopped
    watch.close()


def test_a_watch_that_cannot_begin_is_warned_of_once_and_taken_up_later(
    mount: SecretMount, caplog: pytest.LogCaptureFixture
) -> None:
    """S11 in this process: no descriptor is left for inotify."""
    caplog.set_level(logging.INFO)
    watch = DirectoryWatch(mount.directory)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert not watch.wait(TICK)
        assert not watch.wait(TICK)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert watch.wait(SOON)
    watch.close()
    assert [caplog.text.count(said) for said in ("cannot watch", "is watched again")] == [1, 1]
