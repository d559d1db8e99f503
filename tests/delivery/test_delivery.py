"""How a token reaches a child: by its variable, or by the CLI's file; and how the CLI is proved to read that again."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import pytest

from agent_runtime.claude.executable import Binary
from agent_runtime.delivery.check_run import ReloadCheckFailed
from agent_runtime.delivery.credentials_file import FILE_NAME, MARKER_NAME, CredentialsFile, DeliveryImpossible
from agent_runtime.delivery.delivery import (
    Delivered,
    Deliveries,
    by_variable,
    choose,
)
from agent_runtime.delivery.reload_check import RELOAD, CheckedCli, CliFacts, ReloadBehaviour, _Stage
from agent_runtime.delivery.reload_results import FILE_NAME as RELOAD_RESULTS_FILE
from agent_runtime.delivery.reload_results import BackgroundReloadChecker, ReloadResults
from agent_runtime.errors import RESERVED_WORDS, CannotStart, SpawnFailed
from agent_runtime.model.tokens import Token, TokenKind
from agent_runtime.secret.generations import Generation
from agent_runtime.standins.messages_api import MessagesApi, Text, Tool
from tests.support.families import spawner
from tests.support.supervised import SCRIPTED_CLI, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCRIPTED = (sys.executable, str(SCRIPTED_CLI))
SOMEBODY_ELSES = (
    b'{"claudeAiOauth":{"accessToken":"sk-ant-oat01-of-a-person-who-logged-in","scopes":["user:inference"]}}'
)
NOBODY_UID = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run children as another user")


def generation(number: int, kind: TokenKind = TokenKind.OAUTH) -> Generation:
    prefix = "sk-ant-api03" if kind is TokenKind.API_KEY else "sk-ant-oat01"
    return Generation(number, Token(f"{prefix}-generation-{number}-of-these-tests"), loaded_at=0.0)


def api_key(number: int) -> Generation:
    return generation(number, TokenKind.API_KEY)


def token_in(config_dir: Path) -> str | None:
    try:
        kept = json.loads((config_dir / FILE_NAME).read_bytes())
    except FileNotFoundError:
        return None
    return str(kept["claudeAiOauth"]["accessToken"])


def scripted(version: str = "2.1.330") -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "SCRIPTED_CLI_VERSION": version, "SCRIPTED_CLI_PAUSE_FACTOR": "0.02"}


@dataclass
class KnownReach(BackgroundReloadChecker):
    """A reload checker who is told what is known, and counts how often it was asked to find out."""

    known: ReloadBehaviour | None = None
    begun: int = 0
    calls: list[str] = field(default_factory=list)

    def reload_behaviour(self) -> ReloadBehaviour | None:
        return self.known

    def begin(self) -> None:
        self.begun += 1

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.mkdir()
    return path


@pytest.fixture
def delivery(config_dir: Path) -> Deliveries:
    return by_file(config_dir)


def by_file(config_dir: Path, user: str | None = None) -> Deliveries:
    """Return the deliveries of a supervisor that delivers by file, with a CLI that reads it at each request."""
    return Deliveries("file", CredentialsFile(config_dir, user), KnownReach(ReloadBehaviour.ON_REQUEST))


# -- the file


def test_the_file_is_what_the_cli_takes_for_a_login_and_for_its_owner_alone(
    config_dir: Path, delivery: Deliveries
) -> None:
    delivered = delivery.deliver(generation(1))

    assert json.loads((config_dir / FILE_NAME).read_bytes()) == {
        "claudeAiOauth": {
            "accessToken": generation(1).token.secret,
            "refreshToken": None,
            "expiresAt": None,
            "scopes": ["user:inference"],
            "subscriptionType": None,
        }
    }
    assert stat.S_IMODE((config_dir / FILE_NAME).stat().st_mode) == 0o600
    assert (delivered.way, delivered.variables) == ("file", {})
    assert sorted(path.name for path in config_dir.iterdir()) == [MARKER_NAME, FILE_NAME]
    assert generation(1).token.secret not in (config_dir / MARKER_NAME).read_text()


def test_a_reader_never_sees_half_a_file_or_none(config_dir: Path, delivery: Deliveries) -> None:
    delivery.deliver(generation(1))
    done = threading.Event()
    seen: set[str | None] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(token_in(config_dir))

    with ThreadPoolExecutor() as pool:
        reader = pool.submit(read)
        for number in range(2, 400):
            delivery.renew(generation(number))
        done.set()
        reader.result()

    assert len(seen) > 5
    assert seen <= {generation(number).token.secret for number in range(1, 400)}


def test_every_write_changes_the_time_by_which_a_running_cli_notices(config_dir: Path, delivery: Deliveries) -> None:
    times = []
    for number in range(1, 20):
        delivery.renew(generation(number))
        times.append((config_dir / FILE_NAME).stat().st_mtime_ns // 1_000_000)

    assert times == sorted(set(times))


def test_an_unchanged_generation_writes_nothing(config_dir: Path, delivery: Deliveries) -> None:
    delivery.deliver(generation(1))
    before = (config_dir / FILE_NAME).stat()
    delivery.deliver(generation(1))

    after = (config_dir / FILE_NAME).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_older_generation_changes_nothing_and_its_child_gets_the_newer_one(
    config_dir: Path, delivery: Deliveries
) -> None:
    delivery.renew(generation(2))
    delivered = delivery.deliver(generation(1))

    assert delivered.generation.number == 2
    assert token_in(config_dir) == generation(2).token.secret
    delivery.renew(generation(1))
    assert token_in(config_dir) == generation(2).token.secret


def test_whatever_the_order_of_threads_the_newest_generation_stays(config_dir: Path, delivery: Deliveries) -> None:
    numbers = list(range(1, 200))
    random.Random(3).shuffle(numbers)

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda number: (number, delivery.deliver(generation(number)).generation.number), numbers))

    assert all(real >= asked for asked, real in got)
    assert token_in(config_dir) == generation(199).token.secret


def test_an_api_key_goes_by_its_variable_and_is_written_nowhere(config_dir: Path, delivery: Deliveries) -> None:
    delivery.renew(generation(1))
    delivery.renew(api_key(2))
    delivered = delivery.deliver(api_key(2))

    assert (delivered.way, delivered.variables) == ("env", {"ANTHROPIC_API_KEY": api_key(2).token.secret})
    assert list(config_dir.iterdir()) == []
    delivery.deliver(generation(3))
    assert token_in(config_dir) == generation(3).token.secret


def test_under_an_api_key_the_file_stays_until_the_last_child_that_lives_on_it_is_gone(
    config_dir: Path, delivery: Deliveries
) -> None:
    one, other = delivery.deliver(generation(1)), delivery.deliver(generation(1))
    delivery.renew(api_key(2))
    key = delivery.deliver(api_key(2))
    assert delivery.deliver(generation(1)).variables == key.variables
    assert token_in(config_dir) == generation(1).token.secret

    delivery.release(one)
    delivery.release(key)
    assert token_in(config_dir) == generation(1).token.secret
    delivery.release(other)
    assert list(config_dir.iterdir()) == []


@as_root
def test_the_file_belongs_to_the_childs_user(config_dir: Path) -> None:
    by_file(config_dir, str(NOBODY_UID)).deliver(generation(1))

    info = (config_dir / FILE_NAME).stat()
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (NOBODY_UID, 0o600)


# -- what somebody else wrote


def _login(path: Path) -> None:
    path.write_bytes(SOMEBODY_ELSES)


def _other_logins(path: Path) -> None:
    path.write_text('{"mcpOAuth":{"server":{"accessToken":"of-a-server"}}}')


def _half_a_file(path: Path) -> None:
    path.write_bytes(SOMEBODY_ELSES[:40])


def _link(path: Path) -> None:
    path.with_name("elsewhere").write_bytes(SOMEBODY_ELSES)
    path.symlink_to("elsewhere")


def _dead_link(path: Path) -> None:
    path.symlink_to("nowhere")


def _long(path: Path) -> None:
    path.write_bytes(b" " * (2 << 20))


@pytest.mark.parametrize(
    "put",
    [_login, _other_logins, _half_a_file, _link, _dead_link, _long, os.mkfifo, os.mkdir],
    ids=lambda f: f.__name__,
)
def test_a_file_of_another_writer_is_never_touched(
    config_dir: Path, delivery: Deliveries, put: Callable[[Path], object]
) -> None:
    path = config_dir / FILE_NAME
    put(path)
    before = path.lstat()

    obstacle = CredentialsFile(config_dir).obstacle
    assert obstacle is not None
    assert put is os.mkdir or "did not write" in obstacle
    with pytest.raises(DeliveryImpossible) as refused:
        delivery.deliver(generation(1))
    assert delivery.deliver(api_key(2)).way == "env"
    delivery.close()

    after = path.lstat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert not [word for word in RESERVED_WORDS if word in str(refused.value).lower()]
    assert delivery._readers == 0


def test_a_login_that_replaces_our_file_is_not_touched_either(config_dir: Path, delivery: Deliveries) -> None:
    delivery.deliver(generation(1))
    (config_dir / FILE_NAME).write_bytes(SOMEBODY_ELSES)

    delivery.renew(generation(2))
    assert delivery.cannot_deliver
    delivery.close()
    assert (config_dir / FILE_NAME).read_bytes() == SOMEBODY_ELSES


def test_a_login_that_comes_between_the_look_and_the_write_is_not_overwritten(config_dir: Path) -> None:
    file = CredentialsFile(config_dir)
    (config_dir / FILE_NAME).write_bytes(SOMEBODY_ELSES)

    with pytest.raises(FileExistsError):
        file._replace(b"{}", is_new=True)
    assert (config_dir / FILE_NAME).read_bytes() == SOMEBODY_ELSES
    assert [path.name for path in config_dir.iterdir()] == [FILE_NAME]


def test_what_a_running_cli_adds_to_our_file_stays_and_the_file_is_still_known_as_ours(
    config_dir: Path, delivery: Deliveries
) -> None:
    path = config_dir / FILE_NAME
    delivery.renew(generation(1))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mcpOAuth": {"server": {"accessToken": "x"}}}))
    delivery.renew(generation(2))

    assert token_in(config_dir) == generation(2).token.secret
    assert json.loads(path.read_text())["mcpOAuth"] == {"server": {"accessToken": "x"}}
    delivery.close()
    assert json.loads(path.read_text()) == {"mcpOAuth": {"server": {"accessToken": "x"}}}
    by_file(config_dir).renew(generation(3))
    assert token_in(config_dir) == generation(3).token.secret
    assert json.loads(path.read_text())["mcpOAuth"] == {"server": {"accessToken": "x"}}


def test_an_older_token_that_a_running_cli_puts_back_does_not_stay(config_dir: Path, delivery: Deliveries) -> None:
    delivery.renew(generation(1))
    older = (config_dir / FILE_NAME).read_bytes()
    delivery.renew(generation(2))
    (config_dir / FILE_NAME).write_bytes(older)

    delivery.deliver(generation(2))
    assert token_in(config_dir) == generation(2).token.secret


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    file = CredentialsFile(tmp_path / "missing")

    assert file.obstacle is not None
    with pytest.raises(DeliveryImpossible, match="config directory cannot be written"):
        file.write(generation(1).token)


# -- leftovers


def test_a_killed_supervisors_leftover_is_known_by_the_next_one(config_dir: Path, delivery: Deliveries) -> None:
    delivery.deliver(generation(1))

    Deliveries("auto", CredentialsFile(config_dir), KnownReach()).start()
    assert list(config_dir.iterdir()) == []


def test_a_marker_of_tokens_we_did_not_write_makes_no_login_ours(config_dir: Path) -> None:
    (config_dir / MARKER_NAME).write_text('{"tokens": ["000000000000"]}')
    (config_dir / FILE_NAME).write_bytes(SOMEBODY_ELSES)

    assert CredentialsFile(config_dir).obstacle is not None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"tokens": 1}', b"\xff"])
def test_a_damaged_marker_only_means_that_nothing_is_known_as_ours(config_dir: Path, content: bytes) -> None:
    (config_dir / MARKER_NAME).write_bytes(content)
    (config_dir / FILE_NAME).write_bytes(SOMEBODY_ELSES)
    assert CredentialsFile(config_dir).obstacle is not None

    (config_dir / FILE_NAME).unlink()
    by_file(config_dir).renew(generation(1))
    assert token_in(config_dir) == generation(1).token.secret


def test_an_empty_file_is_nobodys_login(config_dir: Path, delivery: Deliveries) -> None:
    (config_dir / FILE_NAME).touch()
    delivery.renew(generation(1))

    assert token_in(config_dir) == generation(1).token.secret


# -- who is reached, and which way is chosen


@pytest.mark.parametrize("reload_behaviour", list(ReloadBehaviour))
@pytest.mark.parametrize("newer", [generation(2), api_key(2)], ids=["to_oauth", "to_api_key"])
@pytest.mark.parametrize("given", [generation(1), api_key(1)], ids=["from_oauth", "from_api_key"])
def test_a_running_child_is_reached_from_oauth_to_oauth_where_its_cli_reads_again(
    config_dir: Path, given: Generation, newer: Generation, reload_behaviour: ReloadBehaviour
) -> None:
    delivery = Deliveries("file", CredentialsFile(config_dir), KnownReach(reload_behaviour))
    delivered = delivery.deliver(given)
    delivery.renew(newer)

    both_oauth = given.token.kind is TokenKind.OAUTH and newer.token.kind is TokenKind.OAUTH
    assert delivered.is_reached_by(newer) == (both_oauth and reload_behaviour is not ReloadBehaviour.NEVER)
    assert not by_variable(given).is_reached_by(newer)


def test_a_generation_that_could_not_be_written_reaches_nobody(config_dir: Path, delivery: Deliveries) -> None:
    delivered = delivery.deliver(generation(1))
    assert not delivered.is_reached_by(generation(2))

    (config_dir / FILE_NAME).write_bytes(SOMEBODY_ELSES)
    delivery.renew(generation(2))
    assert not delivered.is_reached_by(generation(2))


@pytest.mark.parametrize(
    ("setting", "kind", "reload_behaviour", "obstacle", "name"),
    [
        ("auto", TokenKind.OAUTH, ReloadBehaviour.ON_REQUEST, None, "file"),
        ("auto", TokenKind.OAUTH, ReloadBehaviour.ON_REFUSAL, None, "file"),
        ("auto", TokenKind.OAUTH, ReloadBehaviour.NEVER, None, "env"),
        ("auto", TokenKind.OAUTH, None, None, "env"),
        ("auto", TokenKind.OAUTH, ReloadBehaviour.ON_REQUEST, "in the way", "env"),
        ("auto", TokenKind.API_KEY, ReloadBehaviour.ON_REQUEST, None, "env"),
        ("env", TokenKind.OAUTH, ReloadBehaviour.ON_REQUEST, None, "env"),
        ("file", TokenKind.OAUTH, None, None, "file"),
        ("file", TokenKind.OAUTH, ReloadBehaviour.NEVER, None, "file"),
        ("file", TokenKind.API_KEY, ReloadBehaviour.ON_REQUEST, None, "env"),
    ],
)
def test_the_way_is_chosen_by_setting_kind_reload_check_and_place(
    setting: str, kind: TokenKind, reload_behaviour: ReloadBehaviour | None, obstacle: str | None, name: str
) -> None:
    choice = choose(setting, kind, reload_behaviour, obstacle)

    assert choice.name == name
    assert choice.reason
    assert obstacle is None or choice.reason == obstacle


def test_auto_begins_with_variables_and_goes_on_by_file_once_the_cli_is_proved(config_dir: Path) -> None:
    reload_checker = KnownReach()
    deliveries = Deliveries("auto", CredentialsFile(config_dir), reload_checker)
    deliveries.start()
    assert reload_checker.begun == 1
    first = deliveries.deliver(generation(1))
    assert first.way == deliveries.state["delivery"] == "env"
    assert not (config_dir / FILE_NAME).exists()

    reload_checker.known = ReloadBehaviour.ON_REQUEST
    second = deliveries.deliver(generation(1))
    assert second.way == deliveries.state["delivery"] == "file"
    deliveries.renew(generation(2))
    assert token_in(config_dir) == generation(2).token.secret
    assert (first.is_reached_by(generation(2)), second.is_reached_by(generation(2))) == (False, True)

    deliveries.close()
    assert list(config_dir.iterdir()) == []
    assert reload_checker.calls == ["close"]


def test_when_the_cli_is_replaced_those_that_run_are_still_reached(config_dir: Path) -> None:
    reload_checker = KnownReach(ReloadBehaviour.ON_REQUEST)
    deliveries = Deliveries("auto", CredentialsFile(config_dir), reload_checker)
    running = deliveries.deliver(generation(1))

    reload_checker.known = None
    assert deliveries.deliver(generation(1)).way == "env"
    deliveries.renew(generation(2))
    assert running.is_reached_by(generation(2))
    deliveries.release(running)
    deliveries.renew(generation(3))
    assert token_in(config_dir) == generation(2).token.secret


def test_auto_falls_back_to_variables_while_the_file_is_in_the_way_and_says_so(
    config_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deliveries = Deliveries("auto", CredentialsFile(config_dir), KnownReach(ReloadBehaviour.ON_REQUEST))
    (config_dir / FILE_NAME).write_bytes(SOMEBODY_ELSES)
    for _ in range(3):
        assert deliveries.deliver(generation(1)).way == "env"
    assert deliveries.state["delivery"] == "env"
    assert "did not write" in deliveries.state["reason"]
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1

    (config_dir / FILE_NAME).unlink()
    assert deliveries.deliver(generation(1)).way == "file"
    assert deliveries.state["delivery"] == "file"


def test_file_where_it_is_not_possible_does_not_start(config_dir: Path) -> None:
    (config_dir / FILE_NAME).write_bytes(SOMEBODY_ELSES)

    with pytest.raises(CannotStart, match=r"TOKEN_DELIVERY.*did not write"):
        Deliveries("file", CredentialsFile(config_dir), KnownReach())


def test_file_that_became_impossible_is_a_typed_error(config_dir: Path) -> None:
    deliveries = Deliveries("file", CredentialsFile(config_dir), KnownReach(ReloadBehaviour.ON_REQUEST))
    (config_dir / FILE_NAME).write_bytes(SOMEBODY_ELSES)

    with pytest.raises(SpawnFailed, match="did not write"):
        deliveries.deliver(generation(1))
    deliveries.renew(generation(2))


def test_a_child_that_was_started_before_the_check_had_a_result_is_reached_once_it_has(config_dir: Path) -> None:
    reload_checker = KnownReach()
    deliveries = Deliveries("file", CredentialsFile(config_dir), reload_checker)
    delivered = deliveries.deliver(generation(1))
    deliveries.renew(generation(2))
    assert not delivered.is_reached_by(generation(2))

    reload_checker.known = ReloadBehaviour.ON_REQUEST

    assert delivered.is_reached_by(generation(2))


def test_env_proves_nothing_and_writes_nothing(config_dir: Path) -> None:
    reload_checker = KnownReach(ReloadBehaviour.ON_REQUEST)
    deliveries = Deliveries("env", CredentialsFile(config_dir), reload_checker)
    deliveries.start()

    assert deliveries.deliver(generation(1)).variables == {"CLAUDE_CODE_OAUTH_TOKEN": generation(1).token.secret}
    deliveries.renew(generation(2))
    assert (reload_checker.begun, list(config_dir.iterdir())) == (0, [])


def test_what_was_delivered_does_not_show_the_token() -> None:
    for one in (generation(1), api_key(1)):
        assert one.token.secret not in repr(by_variable(one))
        assert isinstance(by_variable(one), Delivered)


# -- which executable


def test_a_binary_is_told_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    target = tmp_path / "real"
    target.write_bytes(b"#!/bin/true\n")
    target.chmod(0o755)
    copy, link = tmp_path / "copy", tmp_path / "link"
    shutil.copy2(target, copy)
    link.symlink_to(target)
    binary = Binary.of((str(link),), None)

    assert binary.files == (target,)
    assert binary.content_hash() == Binary.of((str(copy),), None).content_hash()
    assert binary.content_hash() == hashlib.sha256(b"#!/bin/true\n").hexdigest()
    assert binary.content_hash() != Binary.of((str(link), "--more"), None).content_hash()
    target.write_bytes(b"#!/bin/false\n")
    assert Binary.of((str(link),), None).key != binary.key


@pytest.mark.parametrize("line", ['exec "{}" "$@"', "exec node '{}' $*", 'exec node "$basedir/lib/cli.js"'])
def test_a_script_that_starts_the_cli_counts_with_what_it_starts(tmp_path: Path, line: str) -> None:
    program, wrapper = tmp_path / "lib" / "cli.js", tmp_path / "claude"
    program.parent.mkdir()
    program.write_text("version 1")
    wrapper.write_text("#!/bin/sh\nbasedir=.\n" + line.format(program))
    wrapper.chmod(0o755)
    before = Binary.of((str(wrapper),), None)

    assert before.files == (wrapper, program)
    content_hash = before.content_hash()
    program.write_text("version 2, longer")
    after = Binary.of((str(wrapper),), None)
    assert after.key != before.key
    assert after.content_hash() != content_hash


# -- the reload check


@pytest.mark.parametrize(
    ("version", "reload_behaviour"),
    [
        ("2.1.330", ReloadBehaviour.ON_REQUEST),
        ("2.0.76", ReloadBehaviour.NEVER),
    ],
)
def test_a_reload_check_tells_whether_the_cli_reads_its_file_again(
    version: str, reload_behaviour: ReloadBehaviour
) -> None:
    reload_result = CheckedCli(spawner, SCRIPTED, scripted(version)).find_out(RELOAD)

    assert (reload_result.version, reload_result.reload_behaviour) == (version, reload_behaviour)


def test_the_reload_check_is_made_without_the_supervisors_token_server_and_proxy(tmp_path: Path) -> None:
    told = tmp_path / "told"
    cli = tmp_path / "claude"
    cli.write_text(f"#!/bin/sh\nenv >>{told}\n")
    cli.chmod(0o755)
    environ = {
        "PATH": os.environ["PATH"],
        "CLAUDE_CODE_OAUTH_TOKEN": "rival",
        "ANTHROPIC_BASE_URL": "http://rival",
        "HTTPS_PROXY": "http://rival",
        "https_proxy": "http://rival",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://rival",
        "KEPT": "kept",
    }
    with pytest.raises(ReloadCheckFailed, match="ended before"):
        CheckedCli(spawner, (str(cli),), environ).find_out(RELOAD)

    assert "KEPT=kept" in told.read_text()
    assert "rival" not in told.read_text()


def test_a_cli_that_cannot_be_started_is_no_reload_check_of_anything(tmp_path: Path) -> None:
    with pytest.raises(SpawnFailed):
        CheckedCli(spawner, (str(tmp_path / "missing"),), scripted()).find_out(RELOAD)


def test_a_reload_check_that_is_called_off_leaves_nothing_behind(tmp_path: Path) -> None:
    begun, cli = tmp_path / "begun", tmp_path / "claude"
    cli.write_text(f"#!/bin/sh\nsetsid sleep 60 & echo $! >>{begun}\nexec sleep 60\n")
    cli.chmod(0o755)
    checked = CheckedCli(spawner, (str(cli),), scripted(), directory=tmp_path / "run")
    reload_checker = BackgroundReloadChecker(checked, ReloadResults(tmp_path))
    reload_checker.begin()
    reload_checker.begin()
    eventually(lambda: begun.exists() and begun.read_text().endswith("\n"))
    assert len(list((tmp_path / "run").iterdir())) == 1
    began = time.monotonic()
    reload_checker.close()

    assert time.monotonic() - began < 10
    pids = [int(line) for line in begun.read_text().split()]
    assert len(pids) == 1
    assert list((tmp_path / "run").iterdir()) == []
    assert not psutil.pid_exists(pids[0]) or psutil.Process(pids[0]).status() == psutil.STATUS_ZOMBIE
    assert reload_checker.reload_behaviour() is None
    reload_checker.begin()
    assert threading.active_count() == 1 or "reload-check" not in {thread.name for thread in threading.enumerate()}


def test_a_reload_check_is_kept_with_the_executables_hash_and_said_of_no_other(tmp_path: Path) -> None:
    cli = tmp_path / "claude"
    cli.write_text("version 1")
    cli.chmod(0o755)

    def binary() -> Binary:
        return Binary.of((str(cli),), None)

    facts = CliFacts(version="1", reload_behaviour=ReloadBehaviour.ON_REFUSAL)
    ReloadResults(tmp_path).store(binary(), facts)

    again = ReloadResults(tmp_path)
    assert again.known(binary(), hash_it=False) == facts
    os.utime(cli, (1, 1))
    assert again.known(binary(), hash_it=False) == CliFacts()
    assert again.known(binary()) == facts
    assert ReloadResults(tmp_path).known(binary(), hash_it=False) == facts
    ReloadResults(tmp_path).store(binary(), CliFacts(version="1", help="a help"))
    again.store(binary(), CliFacts(takes_socket=True))
    whole = CliFacts(version="1", reload_behaviour=ReloadBehaviour.ON_REFUSAL, help="a help", takes_socket=True)
    assert ReloadResults(tmp_path).known(binary()) == whole
    cli.write_text("version 2")
    assert again.known(binary()) == CliFacts()
    assert stat.S_IMODE((tmp_path / RELOAD_RESULTS_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b'{"proofs": 1}', b"\xff"])
def test_damaged_reload_results_are_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RELOAD_RESULTS_FILE).write_bytes(content)
    reload_results = ReloadResults(tmp_path)
    binary = Binary.of(SCRIPTED, None)
    assert reload_results.known(binary) == CliFacts()

    reload_results.store(binary, CliFacts(reload_behaviour=ReloadBehaviour.NEVER))
    assert ReloadResults(tmp_path).known(binary) == CliFacts(reload_behaviour=ReloadBehaviour.NEVER)


def test_reload_results_that_cannot_be_written_are_kept_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reload_results = ReloadResults(tmp_path / "missing")
    binary = Binary.of(SCRIPTED, None)
    reload_results.store(binary, CliFacts(reload_behaviour=ReloadBehaviour.NEVER))

    assert reload_results.known(binary) == CliFacts(reload_behaviour=ReloadBehaviour.NEVER)
    assert "cannot write" in caplog.text


def test_serve_without_a_reload_check_makes_it_in_the_background_and_then_delivers_by_file(
    tmp_path: Path, config_dir: Path
) -> None:
    reload_checker = BackgroundReloadChecker(CheckedCli(spawner, SCRIPTED, scripted()), ReloadResults(tmp_path))
    deliveries = Deliveries("auto", CredentialsFile(config_dir), reload_checker)
    deliveries.start()
    try:
        eventually(lambda: deliveries.state["delivery"] == "file", within_seconds=90)  # it starts five CLIs
        assert deliveries.deliver(generation(1)).way == "file"
        assert (
            BackgroundReloadChecker(
                CheckedCli(spawner, SCRIPTED, scripted()), ReloadResults(tmp_path)
            ).reload_behaviour()
            is ReloadBehaviour.ON_REQUEST
        )
    finally:
        deliveries.close()


# -- the real CLI

REACH_BY_VERSION = {
    "1.0.128": ReloadBehaviour.NEVER,
    "2.0.76": ReloadBehaviour.NEVER,
    "2.1.30": ReloadBehaviour.ON_REFUSAL,
    "2.1.114": ReloadBehaviour.ON_REQUEST,
    "2.1.197": ReloadBehaviour.ON_REQUEST,
    "2.1.330": ReloadBehaviour.ON_REQUEST,
    "2.1.332": ReloadBehaviour.ON_REQUEST,
}


@pytest.mark.slow
@pytest.mark.every_cli
@pytest.mark.real_cli
def test_the_real_cli_is_reached_as_measured(claude: str) -> None:
    reload_result = CheckedCli(spawner, (claude,), os.environ).find_out(RELOAD)

    assert reload_result.version is not None
    expected = REACH_BY_VERSION.get(reload_result.version, ReloadBehaviour.ON_REQUEST)
    assert reload_result.reload_behaviour is expected, f"{reload_result.version} has changed its ways: {reload_result}"


@pytest.mark.real_cli
def test_the_real_cli_with_an_api_key_does_not_look_at_a_file_that_others_live_on(tmp_path: Path, claude: str) -> None:
    delivery = by_file(tmp_path)
    delivery.deliver(generation(1))
    delivered = delivery.deliver(api_key(2))
    assert token_in(tmp_path) == generation(1).token.secret
    api = MessagesApi()
    api.script("check", Tool(command="true"), Text(text="done"))
    stage = _Stage(CheckedCli(spawner, (claude,), os.environ), tmp_path)

    with stage._conversation(api, tmp_path, delivered.variables) as run:
        run.require(lambda: api.seen(api_key(2).token).requests >= 2)
    assert api.seen(generation(1).token).requests == 0


def test_a_reload_check_that_came_with_the_image_counts_for_the_same_executable_only(tmp_path: Path) -> None:
    cli, other = tmp_path / "cli", tmp_path / "other"
    for path in (cli, other):
        path.write_text(f"#!/bin/sh\necho {path.name}\n")
        path.chmod(0o755)
    image, data = tmp_path / "image", tmp_path / "data"
    image.mkdir()
    data.mkdir()
    binary, another = Binary.of((str(cli),), None), Binary.of((str(other),), None)
    made = CliFacts(version="1.0", reload_behaviour=ReloadBehaviour.ON_REQUEST)
    ReloadResults(image).store(binary, made)

    reload_results = ReloadResults(data, built_in=image / "proofs.json")

    assert reload_results.known(binary) == made
    assert reload_results.known(another) == CliFacts()
    assert ReloadResults(data, built_in=tmp_path / "nothing").known(binary) == CliFacts()
