"""What root writes where a child of another user lives: nothing that the child plants is followed or given away."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import stat
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_runtime.delivery import private_files
from agent_runtime.delivery.credentials_file import CredentialsFile, DeliveryImpossible
from agent_runtime.delivery.private_files import PrivateFiles, make_directory, remove_leftovers, write_new
from agent_runtime.files import UNFINISHED
from agent_runtime.model.tokens import Token
from agent_runtime.process.containment.registry import new_mark, tag_of
from tests.support.supervised import NEW, OLD, eventually, hanging_task, supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def shared() -> Iterator[Path]:
    """Yield a directory that every user can reach, with a file of root's in it."""
    with tempfile.TemporaryDirectory(prefix="agent-runtime-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "roots").write_text("root's own")
        (path / "roots").chmod(0o600)
        yield path


def owner(path: Path) -> int:
    return path.lstat().st_uid


@as_root
@pytest.mark.parametrize("is_early", [True, False], ids=["before the start", "after it"])
def test_a_link_in_place_of_the_config_directory_makes_no_file_where_only_root_may(
    shared: Path, is_early: bool
) -> None:
    home, roots_own = shared / "home", shared / "roots-own"
    config_dir = home / ".claude"
    for directory in (home, config_dir):
        directory.mkdir()
        os.chown(directory, NOBODY, NOBODY)
    roots_own.mkdir()
    if not is_early:
        CredentialsFile(config_dir, str(NOBODY)).write(Token(OLD))
    file = CredentialsFile(config_dir, str(NOBODY))
    config_dir.rename(home / "aside")
    config_dir.symlink_to(roots_own)

    with pytest.raises(DeliveryImpossible, match="the children's"):
        (CredentialsFile(config_dir, str(NOBODY)) if is_early else file).write(Token(NEW))
    with contextlib.suppress(OSError):
        file.remove_token()
    assert list(roots_own.iterdir()) == []


@as_root
def test_a_config_directory_that_only_root_may_write_to_is_fine_where_no_child_can_replace_it(shared: Path) -> None:
    config_dir = shared / "config"
    config_dir.mkdir()
    CredentialsFile(config_dir, str(NOBODY)).write(Token(OLD))
    assert owner(config_dir / ".credentials.json") == NOBODY


@as_root
@pytest.mark.parametrize("plant", ["link", "dangling link", "hard link", "file", "directory", "fifo"])
def test_what_was_planted_is_neither_followed_nor_given_away(shared: Path, plant: str) -> None:
    home = make_directory(shared, "home", (NOBODY, NOBODY))
    planted = home / "mcp.json"
    ways: dict[str, Callable[[], object]] = {
        "link": lambda: planted.symlink_to(shared / "roots"),
        "dangling link": lambda: planted.symlink_to(shared / "made-by-root"),
        "hard link": lambda: planted.hardlink_to(shared / "roots"),
        "file": lambda: planted.write_text("planted"),
        "directory": planted.mkdir,
        "fifo": lambda: os.mkfifo(planted),
    }
    ways[plant]()

    with pytest.raises(OSError, match="exists"):
        write_new(home, "mcp.json", b"secret", (NOBODY, NOBODY))

    assert (owner(shared / "roots"), (shared / "roots").read_text()) == (0, "root's own")
    assert not (shared / "made-by-root").exists()


@as_root
def test_a_link_in_place_of_the_directory_is_not_followed(shared: Path) -> None:
    (shared / "elsewhere").mkdir()
    (shared / "home").symlink_to(shared / "elsewhere")

    with pytest.raises(NotADirectoryError):
        write_new(shared / "home", "x", b"secret", None)
    with pytest.raises(NotADirectoryError):
        make_directory(shared / "home", "x", None)
    assert list((shared / "elsewhere").iterdir()) == []


@as_root
def test_a_child_can_plant_nothing_beside_its_private_files_and_can_read_them(shared: Path) -> None:
    files = PrivateFiles(shared, new_mark(shared), str(NOBODY))
    settings = files.write("settings.json", b"{}")

    assert (owner(settings.parent), stat.S_IMODE(settings.parent.stat().st_mode)) == (0, 0o711)
    assert (owner(settings), stat.S_IMODE(settings.stat().st_mode)) == (NOBODY, 0o600)
    assert as_nobody(settings.read_bytes) == b"{}"
    for attempt in (
        lambda: (settings.parent / "mcp.json").symlink_to(shared / "roots"),
        lambda: settings.rename(settings.with_name("away")),
        settings.unlink,
    ):
        with pytest.raises(PermissionError):
            as_nobody(attempt)
    mcp = files.write("mcp.json", b"{}")
    assert mcp.parent == settings.parent
    files.remove()
    assert not settings.parent.exists()


def as_nobody(act: Callable[[], object]) -> object:
    """Do something as another user, in a thread of its own: a thread has its own file-system ids."""
    result: list[object] = []
    errors: list[BaseException] = []
    libc = ctypes.CDLL(None)

    def run() -> None:
        libc.setfsgid(NOBODY)
        libc.setfsuid(NOBODY)
        try:
            result.append(act())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return result[0]


def test_two_attempts_never_share_a_name_and_it_cannot_be_foreseen(tmp_path: Path) -> None:
    mark = new_mark(tmp_path)
    places = {PrivateFiles(tmp_path, mark, None).write("settings.json", b"{}").parent.name for _ in range(2)}

    assert len(places) == 2
    assert all(mark in place and len(place) > len(mark) + 16 for place in places)


@as_root
@pytest.mark.parametrize("planted", ["link", "directory", "fifo"])
def test_nothing_in_the_config_directory_keeps_a_supervisor_from_starting(shared: Path, planted: str) -> None:
    """What was its lock once may be anything a child has put there: root made a file through it, or could not start."""
    config = make_directory(shared, "config", (NOBODY, NOBODY))
    lock = config / ".agent-runtime.lock"
    ways: dict[str, Callable[[], object]] = {
        "link": lambda: lock.symlink_to("/etc/made-by-root"),
        "directory": lock.mkdir,
        "fifo": lambda: os.mkfifo(lock),
    }
    ways[planted]()
    with supervised(shared) as running:
        assert running.client.get("/livez").status_code == 200
        taken = os.open(config, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(taken, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(taken)
    assert not Path("/etc/made-by-root").exists()


@as_root
def test_a_child_that_swaps_names_in_the_config_directory_gets_no_file_of_roots(shared: Path) -> None:
    """The race of a child against each write of the credentials file, as fast as it can."""
    config = make_directory(shared, "config", (NOBODY, NOBODY))
    file = CredentialsFile(config, str(NOBODY))
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            for entry in os.scandir(config):
                if entry.name.endswith(UNFINISHED):
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)  # noqa: PTH108 - the entry has a path
                        os.symlink(shared / "roots", entry.path)  # noqa: PTH211 - likewise

    thread = threading.Thread(target=swap)
    thread.start()
    for number in range(200):
        with contextlib.suppress(Exception):
            file.write(Token(f"sk-ant-oat01-number-{number:06}"))
    over.set()
    thread.join()

    assert (owner(shared / "roots"), (shared / "roots").read_text()) == (0, "root's own")
    assert stat.S_IMODE((shared / "roots").stat().st_mode) == 0o600


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_no_file_with_a_token_outlives_its_use_in_memory_or_among_temporary_files(tmp_path: Path, end: int) -> None:
    """The data directory takes no writes, so the files are elsewhere; after a kill, the next start takes them away."""
    environment = {"TMPDIR": str(tmp_path / "tmp")}
    flags = ("--token-delivery", "env")  # no reload check, which uses the directory of the runs, too
    (tmp_path / "tmp").mkdir()
    with supervised(tmp_path, environment=environment, flags=flags, expect_exit=None) as running:
        tag = tag_of(running.data_dir)
        shutil.rmtree(running.data_dir / "run")
        (running.data_dir / "run").write_text("in the way")
        running.client.post("/api/task", json={"message": hanging_task(), "async_result": True})
        eventually(lambda: any(OLD in path.read_text() for path in leftovers(tag, tmp_path)))
        running.process.send_signal(end)
        running.process.wait(30)
    if end == signal.SIGKILL:
        (tmp_path / "data" / "run").unlink()
        with supervised(tmp_path, environment=environment):
            pass
    assert leftovers(tag, tmp_path) == []


def leftovers(tag: str, tmp_path: Path) -> list[Path]:
    places = (private_files.IN_MEMORY, tmp_path / "tmp", Path(tempfile.gettempdir()))
    return [file for place in places for file in place.glob(f"agent-runtime-{tag}.*/*") if file.is_file()]


def test_a_pipe_in_place_of_private_files_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_files, "fallbacks", lambda: (tmp_path,))
    files = PrivateFiles(tmp_path, "1-2.x", None)
    directory = files.write("settings.json", b"{}").parent
    (tmp_path / "agent-runtime-1-2.y").mkdir()
    directory.rename(tmp_path / "moved")
    os.mkfifo(directory)
    os.mkfifo(tmp_path / "agent-runtime-1-2.z")

    files.remove()
    remove_leftovers("1-2")

    assert [entry.name for entry in tmp_path.iterdir()] == ["moved"]


def test_what_another_data_directory_or_user_has_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_files, "fallbacks", lambda: (tmp_path, tmp_path / "missing"))
    for name in ("agent-runtime-1-2.start.1.x", "agent-runtime-1-22.start.1.x", "somebody-elses"):
        (tmp_path / name).mkdir()
    (tmp_path / "agent-runtime-1-2.link").symlink_to(tmp_path / "somebody-elses")

    remove_leftovers("1-2")

    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == ["agent-runtime-1-2.link", "agent-runtime-1-22.start.1.x", "somebody-elses"]
