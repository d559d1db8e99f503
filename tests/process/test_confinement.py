"""A confined child reaches neither the secret nor the supervisor, and everything that an agent works with."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_runtime.errors import CannotStart, SpawnFailed
from agent_runtime.process.confinement_choice import ITEMS, choose, try_to_reach
from agent_runtime.process.containment.registry import new_mark
from agent_runtime.process.linux import landlock, syscalls
from agent_runtime.process.linux.landlock import Confinement, Mode, beside
from agent_runtime.process.spawn import Command
from agent_runtime.settings import Settings
from agent_runtime.standins.messages_api import MessagesApi, serve
from tests.support.another_user import NOBODY
from tests.support.families import data_dir, descriptors, ended_at_last, exit_of, spawner
from tests.support.hunted import assert_kept, hunted
from tests.support.supervised import OLD, SCRIPTED, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_landlock = pytest.mark.skipif(landlock.version() < landlock.LEAST_ABI, reason="this kernel has no Landlock")
needs_root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
AS_NOBODY = (
    *("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),  # to find a Python in root's home
)
WITHOUT_KEY = [item for item in ITEMS if item != "access key"]


@pytest.fixture(autouse=True)
def _readable_again() -> Iterator[None]:
    yield
    syscalls._prctl(syscalls.PR_SET_DUMPABLE, 1)


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    spawner.fork_server.start()
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("secret", "data/run/own", "workspace", "data/config"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "secret/token").write_text(OLD)
    (tmp_path / "data/lock").touch(0o600)
    (tmp_path / "data/run/own/settings.json").write_text("{}")
    return tmp_path


def settings_of(home: Path, **more: object) -> Settings:
    own = {"token_file": home / "secret/token", "workspace": home / "workspace", "config_dir": home / "data/config"}
    return Settings(**(own | more))  # type: ignore[arg-type]


def mark() -> str:
    return new_mark(data_dir())


def chosen(home: Path, confine: str = "landlock", **more: object) -> Confinement:
    return choose(spawner, settings_of(home, confine=confine, **more), home / "data", mark)


def said_by(script: str, home: Path, confinement: Confinement, user: str | None = None) -> list[str]:
    """Run a shell script in the workspace, and return its lines."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home / "workspace"), "SUPERVISOR": str(os.getpid())}
    command = Command(
        argv=("/bin/sh", "-c", f"exec >said 2>&1; {script}"),
        env=env,
        cwd=home / "workspace",
        mark=mark(),
        user=user,
        confinement=confinement,
        needs=(home / "data/run/own",),
    )
    with ended_at_last(spawner.spawn(command)) as child:
        exit_of(child)
    return (home / "workspace/said").read_text().splitlines()


@needs_landlock
def test_a_child_under_landlock_reaches_nothing_of_what_it_reaches_without(home: Path) -> None:
    confinement = chosen(home)

    assert confinement.mode is Mode.LANDLOCK
    assert confinement.reached == dict.fromkeys(WITHOUT_KEY, False)
    free = try_to_reach(spawner, Confinement(), settings_of(home), home / "data", mark)
    assert [item for item, is_open in free.items() if not is_open] in ([], ["supervisor's memory", ITEMS[5]])  # Yama


ATTACKS = {
    "read": "cat ../secret/token",
    "read by a link": "ln -s ../secret/token link; cat link",
    "read by the root of a process": "cat /proc/self/root$PWD/../secret/token",
    "take it by a hard link": "ln ../secret/token taken && cat taken",
    "take it by a rename": "mv ../secret/token taken && cat taken",
    "write": "echo bad >../secret/token",
    "empty": f"{sys.executable} -c 'import os; os.truncate(\"../secret/token\", 0)'",
    "put another beside it": "touch ../secret/other",
    "remove": "rm -f ../secret/token",
    "move its directory": "mv ../secret ../gone",
    "read what is kept": "cat ../data/lock",
    "plant a link": "ln -s /etc/passwd ../data/link",
    "write what it was given": "echo bad >../data/run/own/settings.json",
    "add to what it was given": "touch ../data/run/own/other",
    "signal": "kill -0 $SUPERVISOR",
    "read memory": "true </proc/$SUPERVISOR/mem",
    "read an environment": "cat /proc/$SUPERVISOR/environ",
    "go through a descriptor": "ls /proc/$SUPERVISOR/fd/ && cat /proc/$SUPERVISOR/cwd/pyproject.toml",
}


@needs_landlock
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_way_leads_to_what_is_closed(home: Path, attack: str) -> None:
    before = sorted(path.relative_to(home) for path in home.rglob("*") if "workspace" not in path.parts)

    said = said_by(f"{ATTACKS[attack]} && echo done", home, chosen(home))

    assert said
    assert "done" not in said
    assert OLD not in "".join(said)
    assert (home / "secret/token").read_text() == OLD
    assert sorted(path.relative_to(home) for path in home.rglob("*") if "workspace" not in path.parts) == before


WORK = """
set -e
echo a >file; mkdir one two; echo b >one/b; mv one/b two/c; ln two/c two/d; rm two/d; chmod 600 two/c
echo kept >../data/config/session.json; cat ../data/run/own/settings.json; echo
cat /dev/null /etc/passwd >/dev/null; echo piped | cat /dev/stdin
sleep 60 & kill $!
ls / ../data >/dev/null
git init -q repo; cd repo; echo x >x; git add x
git -c user.name=a -c user.email=a@b commit -qm first; git log --format=%s
"""


@needs_landlock
def test_a_child_under_landlock_works_as_ever(home: Path) -> None:
    said = said_by(WORK, home, chosen(home))

    assert said[-1] == "first", said
    assert said[:2] == ["{}", "piped"]
    assert (home / "data/config/session.json").read_text() == "kept\n"


@needs_landlock
def test_a_socket_in_a_closed_directory_can_be_connected_to(home: Path) -> None:
    program = f"import socket; socket.socket(socket.AF_UNIX).connect('{home}/data/run/own/s')"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{home}/data/run/own/s")
        listener.listen()
        said = said_by(f'{sys.executable} -I -S -c "{program}" && echo connected', home, chosen(home))

    assert said == ["connected"]


@pytest.mark.parametrize(
    ("confinement", "expected"),
    [(Confinement(), "0"), (Confinement(mode=Mode.USER), "1"), (Confinement(mode=Mode.LANDLOCK), "1")],
)
def test_what_a_child_gives_up_besides(home: Path, confinement: Confinement, expected: str) -> None:
    if confinement.mode is Mode.LANDLOCK and landlock.version() < landlock.LEAST_ABI:
        pytest.skip("this kernel has no Landlock")
    said = said_by("ulimit -c; grep -E 'NoNewPrivs|CapBnd' /proc/self/status", home, confinement)

    found = dict(line.split(":\t") for line in said[1:])
    assert found["NoNewPrivs"] == expected
    if confinement.mode is not Mode.OFF:
        assert said[0] == "0"
    if os.geteuid() == 0:
        assert bool(int(found["CapBnd"], 16) >> 19 & 1) is (confinement.mode is Mode.OFF)


LAYOUTS = {
    "kubernetes": "cd secret; mkdir ..1; mv token ..1; ln -s ..1 ..data; ln -s ..data/token token",
    "a directory by a link": "mv secret real; ln -s real secret",
    "a file by a link": "mkdir real; mv secret/token real/t; ln -s ../real/t secret/token",
    "workspace below the data directory": "mv workspace data/; ln -s data/workspace workspace",
    "config directory by a link": "mv data/config elsewhere; ln -s ../elsewhere data/config",
    "no secret yet": "rm -r secret",
}


@needs_landlock
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_closed_is_found_however_it_lies(home: Path, layout: str) -> None:
    subprocess.run(["/bin/sh", "-ec", LAYOUTS[layout]], cwd=home, check=True)
    (home / "key").write_text("the access key")

    confinement = chosen(home, access_key_file=home / "key")
    if layout == "no secret yet":
        subprocess.run(["/bin/sh", "-ec", f"mkdir secret; echo {OLD} >secret/token"], cwd=home, check=True)
    elif layout == "kubernetes":
        (home / "secret/..2").mkdir()
        (home / "secret/..2/token").write_text(OLD)
    said = said_by(
        f"cd {home}; cat key secret/token secret/..*/token real/*; echo x >data/config/y && echo wrote",
        home,
        confinement,
    )

    assert not any(confinement.reached.values())
    assert confinement.reached["access key"] is False
    assert OLD not in "".join(said)
    assert "the access key" not in "".join(said)
    assert said[-1] == "wrote"


def test_what_stands_beside_the_ways_is_listed_and_no_link(home: Path) -> None:
    (home / "data/records").touch()
    (home / "link").symlink_to("secret")
    closed = (home / "secret", home / "data/run", home / "gone/far")

    found = {path.removeprefix(f"{home}/") for path in beside(closed, str(home))}

    assert found == {"workspace", "data/config", "data/lock", "data/records"}


@needs_landlock
def test_too_much_beside_the_ways_is_an_error_that_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    confinement = chosen(home)
    monkeypatch.setattr(landlock, "MOST_RULES", 3)

    with pytest.raises(SpawnFailed, match="too much stands beside"):
        said_by("true", home, confinement)


@needs_landlock
def test_what_agents_lose_where_they_work_is_warned_of(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))

    assert f"agents can make no file in {home}, because {home}/secret lies in it: move that" in chosen(home).warnings


@pytest.mark.parametrize(
    ("confine", "lacks", "names"),
    [("landlock", True, "no Landlock"), ("user", False, "CHILD_USER"), ("landlock", False, "where an agent works")],
)
def test_what_cannot_be_had_is_an_error_that_names_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, confine: str, lacks: bool, names: str
) -> None:
    if lacks:
        monkeypatch.setattr(landlock, "version", lambda: 0)
    elif landlock.version() < landlock.LEAST_ABI:
        pytest.skip("this kernel has no Landlock")

    with pytest.raises(CannotStart, match=f"AGENT_RUNTIME_CONFINE: {confine} .*{names}"):
        chosen(home, confine, workspace=home)


def test_auto_takes_what_there_is_else_nothing_with_a_warning(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)

    found = chosen(home, "auto")

    assert (found.mode, found.asked, sorted(found.lacking)) == (Mode.OFF, "auto", ["landlock", "user"])
    assert "agents can reach the secret" in caplog.text


@needs_root
def test_another_user_is_checked_by_trying(home: Path) -> None:
    for path in (home, *home.parents):
        with contextlib.suppress(OSError):
            path.chmod(path.stat().st_mode | 0o011)
    for path in (home / "secret", home / "secret/token"):
        path.chmod(0o755)
    with pytest.raises(CannotStart, match="could reach: secret file"):
        chosen(home, "user", child_user=str(NOBODY))

    (home / "secret/token").chmod(0o600)
    found = chosen(home, "user", child_user=str(NOBODY))
    assert (found.mode, set(found.reached.values())) == (Mode.USER, {False})
    assert found.warnings == ()
    (home / "secret").chmod(0o777)
    os.chown(home / "data", NOBODY, NOBODY)
    assert chosen(home, "user", child_user=str(NOBODY)).warnings == tuple(
        f"agents can put another {home}/{name} in its place: they may write to {home}/{name}"
        for name in ("secret", "data")
    )


# -- a supervisor


@needs_landlock
@needs_root
def test_a_supervisor_that_is_not_root_confines_its_children_and_says_so() -> None:
    home = _of_nobody()
    try:
        environment = {"AGENT_RUNTIME_CONFINE": "landlock"}
        with supervised(home, token=None, environment=environment, prefix=AS_NOBODY) as run:
            shown = run.get("/health")["confinement"]
            assert "agents can call this supervisor" in run.log.read_text()
            assert Path(f"/proc/{run.process.pid}/environ").stat().st_uid == 0, "it can be read by its own user"
        with supervised(home, token=None, prefix=AS_NOBODY) as run:
            assert run.get("/health")["confinement"]["mode"] == "off"
    finally:
        shutil.rmtree(home)

    assert (shown["mode"], shown["setting"], shown["lacking"]) == ("landlock", "landlock", {})
    assert shown["reached"] == dict.fromkeys(WITHOUT_KEY, False)


@pytest.mark.parametrize(
    "mode", [pytest.param("landlock", marks=needs_landlock), pytest.param("user", marks=needs_root), "env"]
)
def test_the_hunt_finds_no_token_and_the_same_hunt_without_confinement_and_relay_does(mode: str) -> None:
    api = MessagesApi()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as home, serve(api) as base_url:
        hunt = hunted(Path(home), mode, api, environment={"ANTHROPIC_BASE_URL": base_url})

    assert_kept(hunt, mode)


@needs_landlock
def test_a_start_that_cannot_be_confined_as_asked_ends_with_3(tmp_path: Path) -> None:
    for name in ("secret", "data", "config"):
        (tmp_path / name).mkdir()
    environ = {
        "PATH": os.environ["PATH"],
        "AGENT_RUNTIME_TOKEN_FILE": str(tmp_path / "secret/token"),
        "AGENT_RUNTIME_DATA_DIR": str(tmp_path / "data"),
        "AGENT_RUNTIME_CONFIG_DIR": str(tmp_path / "config"),
        "AGENT_RUNTIME_WORKSPACE": str(tmp_path),
        "AGENT_RUNTIME_CLAUDE": SCRIPTED,
        "AGENT_RUNTIME_CONFINE": "landlock",
    }
    command = [sys.executable, "-m", "agent_runtime", "serve", "--port", "0"]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 3
    assert "AGENT_RUNTIME_CONFINE: landlock" in ended.stderr


def _of_nobody() -> Path:
    """Make a supervisor's home that belongs to nobody, where every user passes."""
    home = Path(tempfile.mkdtemp(dir="/var/tmp"))
    for name in ("", "secret", "workspace", "data", "config", "home"):
        (home / name).mkdir(exist_ok=True)
        os.chown(home / name, NOBODY, NOBODY)
    (home / "secret/token").write_text(OLD)
    os.chown(home / "secret/token", NOBODY, NOBODY)
    return home
