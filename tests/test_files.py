"""Files are written as a whole, or not at all, whatever stands in their place; mounts are read."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_runtime.files import mount_of, read_file, read_mounts, remove_unfinished, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable

KILLED_WRITER = Path(__file__).with_name("support") / "programs" / "killed_writer.py"
OBSTACLES: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_text("before"),
    "fifo": os.mkfifo,
    "link": lambda path: path.symlink_to(path.parent / "elsewhere"),
    "dead link": lambda path: path.symlink_to("nowhere"),
}

MOUNTINFO = r"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 21 0:40 / /run rw - tmpfs tmpfs rw
31 30 8:1 /srv/with\040blank /run/secrets/claude rw - ext4 /dev/root rw
32 30 8:1 /srv/token /run/secrets/single rw - ext4 /dev/root rw
33 30 8:1 /srv/gone//deleted /run/secrets/gone rw - ext4 /dev/root rw
34 21 8:1 /srv/gone//deleted /over rw - ext4 /dev/root rw
35 34 8:1 /srv/now /over rw - ext4 /dev/root rw
a line that is cut
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").write_text("not ours")
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / ("n" * 255)


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_has_the_name_is_replaced_and_no_link_is_followed(path: Path, obstacle: str, *, durable: bool) -> None:
    OBSTACLES[obstacle](path)
    replace_file(path, b"content", durable=durable)

    assert read_file(path) == b"content"
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert (path.parent.parent / "elsewhere").read_text() == "not ours"
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_new_file_replaces_nothing(path: Path, obstacle: str) -> None:
    OBSTACLES[obstacle](path)
    before = path.lstat()
    with pytest.raises(FileExistsError):
        replace_file(path, b"content", is_new=True)

    assert path.lstat().st_ino == before.st_ino
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_new_file_is_written_also_where_there_are_no_hard_links(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, has_links: bool
) -> None:
    def unknown(*_names: object, **_places: object) -> None:
        raise PermissionError

    if not has_links:
        monkeypatch.setattr(os, "link", unknown)
    replace_file(path, b"content", is_new=True)

    assert [(found.name, read_file(found)) for found in path.parent.iterdir()] == [(path.name, b"content")]


def test_a_failure_leaves_what_was_there_and_nothing_beside_it(path: Path) -> None:
    path.write_text("before")

    def refuse(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size == len(b"content"), "it is complete"
        raise PermissionError

    with pytest.raises(PermissionError):
        replace_file(path, b"content", finish=refuse)
    assert path.read_text() == "before"
    assert [*path.parent.iterdir()] == [path]


def test_a_directory_that_is_swapped_meanwhile_for_a_link_gets_nothing(path: Path) -> None:
    """An agent has our directory lead elsewhere while we write; the file and its name stay where they were begun."""

    def swap(_descriptor: int) -> None:
        path.parent.rename(path.parent.with_name("moved"))
        (path.parent.parent / "roots").mkdir()
        path.parent.symlink_to("roots")

    replace_file(path, b"content", finish=swap)

    assert [*(path.parent.parent / "roots").iterdir()] == []
    assert read_file(path.parent.with_name("moved") / path.name) == b"content"


def test_what_killed_writers_left_is_removed_and_nothing_else(path: Path) -> None:
    place = path.parent
    for _ in range(2):
        assert subprocess.run([sys.executable, KILLED_WRITER, path], check=False).returncode == -signal.SIGKILL
    others = [place / name for name in ("a.new", ".0123456789abcdef.new.json", "." + "0" * 15 + ".new", "kept")]
    for other in others:
        other.touch()
    in_the_way = place / f".{'a' * 16}.new"
    in_the_way.mkdir()
    planted = place / f".{'b' * 16}.new"
    planted.symlink_to(path.parent.parent / "elsewhere")
    assert len([*place.iterdir()]) == len(others) + 4

    remove_unfinished(place, older_than_seconds=60)
    assert len([*place.iterdir()]) == len(others) + 4, "another process may be writing them"
    remove_unfinished(place)

    assert sorted(place.iterdir()) == sorted([*others, in_the_way])
    assert (place.parent / "elsewhere").read_text() == "not ours"
    remove_unfinished(place / "missing")


@pytest.mark.parametrize(
    ("path", "point", "root"),
    [
        ("/etc/token", "/", "/"),
        ("/run/token", "/run", "/"),
        ("/run/secrets/claude/token", "/run/secrets/claude", "/srv/with blank"),
        ("/run/secrets/claudette/token", "/run", "/"),
        ("/run/secrets/single", "/run/secrets/single", "/srv/token"),
        ("/run/secrets/gone", "/run/secrets/gone", "/srv/gone//deleted"),
        ("/over", "/over", "/srv/now"),
    ],
)
def test_the_mount_that_a_path_lies_in_is_found(path: str, point: str, root: str) -> None:
    mount = mount_of(path, MOUNTINFO)

    assert mount is not None
    assert (mount.point, mount.root) == (point, root)


def test_the_type_and_the_options_of_a_mount_are_read() -> None:
    [mount] = read_mounts("30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 master:1 - cgroup cgroup rw,memory\n")

    assert mount.kind == "cgroup"
    assert mount.options == {"ro", "nosuid", "rw", "memory"}


@pytest.mark.parametrize(
    "text", ["", "\n", "a line that is cut", "21 1 8:1 / / rw", "21 1 8:1 / / rw -", "1 2 3 - ext4 a rw"]
)
def test_what_is_no_line_of_a_mount_is_none(text: str) -> None:
    assert mount_of("/run/token", text) is None
