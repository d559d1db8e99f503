"""Files are written as a whole, or not at all, whatever stands in their place."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_runtime.files import read_file, remove_unfinished, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable

KILLED_WRITER = Path(__file__).with_name("support") / "programs" / "killed_writer.py"
OBSTACLES: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_text("before"),
    "fifo": os.mkfifo,
    "link": lambda path: path.symlink_to(path.parent / "elsewhere"),
    "dead link": lambda path: path.symlink_to("nowhere"),
}


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
