"""A directory below another one is opened in spite of links, other files and names that change."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from agent_runtime.process.directories import open_below, path_of
from agent_runtime.process.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


LIBC = ctypes.CDLL(None)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for name in ("top/a/b", "top/shut", "outside/b"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path / "top"


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not used
    yield
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def opened(top: Path, path: str, *, make: bool = False, owner: User | None = None) -> str:
    descriptor = open_below(top, path, make=make, owner=owner)
    try:
        return path_of(descriptor)
    finally:
        os.close(descriptor)


def refused(top: Path, path: str, *, make: bool = False) -> int | None:
    with pytest.raises(OSError) as raised:  # noqa: PT011 - its number is what is asked
        opened(top, path, make=make)
    return raised.value.errno


def test_a_directory_below_is_opened_and_made_where_that_is_asked(top: Path) -> None:
    assert opened(top, "a/b") == str(top / "a/b")
    assert opened(top, ".") == str(top)
    assert refused(top, "a/new/deep") == errno.ENOENT
    assert opened(top, "a/new/deep", make=True) == str(top / "a/new/deep")
    assert opened(top, "-n/~/ü", make=True) == str(top / "-n/~/ü")


def test_links_are_followed_below_and_never_out(top: Path) -> None:
    links = {
        "inner": "a/b",
        "back": "a/../a/./b/",
        "out": "../outside",
        "far": "a/../../outside",
        "absolute": str(top / "a"),
        "magic": "/proc/self/cwd",
        "self": "self",
        "ping": "pong",
        "pong": "ping",
        "dangling": "a/later",
        "a/out": "../../outside",
    }
    for name, target in links.items():
        (top / name).symlink_to(target)
    for number in range(30):
        (top / f"chain{number + 1}").symlink_to(f"chain{number}" if number else "a")

    assert opened(top, "inner") == opened(top, "back") == str(top / "a/b")
    assert opened(top, "chain30/b") == str(top / "a/b")
    for name in ("out", "out/b", "far", "absolute", "magic", "a/out", "a/out/b"):
        assert refused(top, name) == refused(top, name, make=True) == errno.EXDEV
    for name in ("self", "ping/x"):
        assert refused(top, name) == refused(top, name, make=True) == errno.ELOOP
    assert refused(top, "dangling") == errno.ENOENT
    assert opened(top, "dangling/x", make=True) == str(top / "a/later/x")


def test_what_is_no_directory_is_refused_at_once(top: Path) -> None:
    (top / "file").touch()
    os.mkfifo(top / "fifo")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(os.path.relpath(top / "socket"))
    for name in ("file", "fifo", "socket"):
        for path in (name, f"{name}/x", f"a/../{name}"):
            assert refused(top, path, make=True) == errno.ENOTDIR


def test_a_path_as_deep_as_a_task_may_ask_for_is_made_and_a_deeper_one_refused(top: Path) -> None:
    deep = "/".join("d" * 5 for _ in range(100))
    assert opened(top, deep, make=True) == str(top / deep)
    (top / "twice").symlink_to(deep)
    assert refused(top, f"twice/{deep}", make=True) == errno.ENAMETOOLONG
    assert refused(top, "n" * 256) == errno.ENAMETOOLONG


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_only_what_is_made_is_given_away(top: Path) -> None:
    opened(top, "a/given/too", make=True, owner=User(54321, 54322, []))

    owners = {
        path: ((top / path).stat().st_uid, (top / path).stat().st_gid) for path in ("a", "a/given", "a/given/too")
    }
    assert owners == {"a": (0, 0), "a/given": (54321, 54322), "a/given/too": (54321, 54322)}


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step, so that neither is ever missing."""
    current, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    assert LIBC.renameat2(current, os.fsencode(one), current, os.fsencode(other), both) == 0


@pytest.mark.parametrize("make", [False, True])
def test_no_swap_of_a_directory_for_a_link_leads_out(top: Path, make: bool) -> None:
    outside = top.parent / "outside"
    (top / "swap").mkdir()
    (top / "swap" / "b").mkdir()
    (top / "evil").symlink_to("../outside")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            exchange(top / "swap", top / "evil")

    thread = threading.Thread(target=swap)
    thread.start()
    seen: dict[object, int] = {}
    try:
        for _ in range(4000):
            try:
                found: object = opened(top, "swap/b", make=make).removeprefix(str(top.parent))
            except OSError as error:
                found = error.errno
            seen[found] = seen.get(found, 0) + 1
    finally:
        stop.set()
        thread.join()
    assert {str(found).rpartition("/")[2] for found in seen if isinstance(found, str)} == {"b"}
    assert all(found.startswith("/top/") for found in seen if isinstance(found, str)), seen
    assert seen.get(errno.EXDEV, 0) > 0, "the swap was never met"
    assert sorted(path.name for path in outside.rglob("*")) == ["b"]
