"""What a person is told who typed something wrong: the word, what was probably meant, and never a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent_runtime.cli.main import main
from agent_runtime.errors import SettingsInvalid
from agent_runtime.setting_slips import did_you_mean
from agent_runtime.settings import GROUPS, SETTINGS, load
from tests.support.supervised import PROGRAMS, SCRIPTED, supervised

SECRET = "sk-ant-oat01-of-these-tests-0123456789"
NOBODY = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["srve"], "not 'srve' (did you mean serve?)"),
        (["token", "putt", "x"], "not 'putt' (did you mean put?)"),
        (["serve", "--tokn-file=x"], "unknown: --tokn-file (did you mean --token-file?)"),
        (["status", "--jsno", "--limt", "3"], "--jsno (did you mean --json?), --limt (did you mean --limit?)"),
        (["run", "x", "--quux"], "unknown: --quux\n"),
        (["run", "-fix"], "behind --"),
        (["run", "--", "-fix", "--url", NOBODY], "flags before --"),
        (["run", "fix", "the", "tests"], "words too many: 2; put what holds blanks in quotes"),
        (["run", "x", "--max-turns", "1.5"], "must be a whole number, not '1.5'"),
        (["drain", "--timeout", "nan"], "must be a number, 0 or more, not 'nan'"),
        *(
            (["run", "x", flag, value], f"{flag}: must be a number above 0, not '{value}'")
            for flag in ("--max-budget-usd", "--timeout")
            for value in ("-1", "0", "-0.0", "nan", "inf", "1e999", "x")
        ),
        (["serve", "--slot", "3"], "unknown: --slot (did you mean --slots?)"),
        (["run", "x", "--max-budget=1"], "unknown: --max-budget (did you mean --max-budget-usd?)"),
        (["token", "show", "x", "--js"], "unknown: --js"),
        (["run", "x", "--agents", '{"a": 1,}'], "double quotes (line 1, column 9)"),
        (["run", "x", "--mcp-config", "/nowhere/mcp1.json"], "/nowhere/mcp1.json: No such file or directory"),
        (["run", "x", "--json-schema", "/proc/self/cmdline"], "a file with one: /proc/self/cmdline: Expecting value"),
        (["run", "x", "--park", "-1"], "must be a number, 0 or more, not '-1'"),
    ],
)
def test_a_wrong_command_line_names_the_word_and_what_was_meant(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)

    assert ended.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["token", "put", "x", SECRET],
        [SECRET],
        ["run", "x", "--max-turns", SECRET],
        ["run", "x", "--timeout", SECRET],
        ["serve", "--port", SECRET],
        ["serve", "--token-file", SECRET],
        ["serve", "--claude", SECRET],
        ["status", "--key-file", SECRET, "--url", NOBODY],
        ["run", "x", "--agents", SECRET],
        ["token", "show", SECRET],
        [],
        ["serve", "--events-url", "http://user:pass0word@host/"],
        ["status", "--url", "ftp://user:pass0word@host/"],
        ["healthcheck", "--url", "http://user:pass0word@127.0.0.1:9"],
        ["status", "--url", "http://user:pass0word@127.0.0.1:9"],
    ],
)
def test_what_may_be_a_secret_is_not_repeated(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main(words)
    except SystemExit as ended:
        code = ended.code
    err = capsys.readouterr().err

    assert code != 0
    assert SECRET not in err
    assert "pass0word" not in err


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PORT", "80a", "AGENT_RUNTIME_PORT: must be a whole number, not '80a'"),
        ("SLOTS", "0", "AGENT_RUNTIME_SLOTS: must be from 1 to 1024, not '0'"),
        ("PROBE", "always", "before_dispatch, not 'always'"),
        ("PORT", SECRET, "must be a whole number"),
        ("PORT", "sk-ant-oat-abc", "must be a whole number"),
        ("EVENTS_URL", "http://a:pass0word@b", "without a user name"),
    ],
)
def test_a_bad_setting_says_the_value_that_was_given(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsInvalid) as raised:
        load({f"AGENT_RUNTIME_{name}": value})

    assert str(raised.value).endswith(says)
    assert not any(secret in str(raised.value) for secret in (SECRET, "pass0word"))


def test_each_setting_stands_under_a_heading() -> None:
    names = [setting.name for setting in SETTINGS]

    assert next(iter(GROUPS)) == names[0]
    assert [name for name in names if name in GROUPS] == list(GROUPS)


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert did_you_mean("colour", ["message", "model"]) == ""
    assert did_you_mean("timeout", ["timeout_seconds"]) == " (did you mean timeout_seconds?)"


@pytest.mark.parametrize(
    "words",
    [["status"], ["drain"], ["run", "x", "--patience", "0"], ["token", "wait", "--fingerprint", "0" * 12]],
    ids=lambda words: words[0],
)
def test_a_command_that_reaches_no_supervisor_names_the_address_and_what_to_do(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--url", NOBODY]) == 75
    err = capsys.readouterr().err

    assert f"the supervisor at {NOBODY} cannot be reached: nothing listens there; start it (agent-runtime serve)" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "\udcff"], "PROMPT: must be text in UTF-8"),
        (["run", "x", "--title", "a\udcff"], "--title: must be text in UTF-8"),
        (["run", "x", "--env", "A=\udc80"], "--env: must be text in UTF-8"),
        (["run", "x", "--label", "a=\udcff"], "--label: must be text in UTF-8"),
        (["run", "x", "--resume-session", "\udcff"], "--resume-session: must be text in UTF-8"),
        (["run", "x", "--agents", '{"a": {"prompt": "\\ud800"}}'], "--agents: must be text in UTF-8"),
        (["status", "--label", "a=\udcff"], "--label: must be text in UTF-8"),
        (["drain", "--url", "http://\udcff/"], "--url: must be text in UTF-8"),
    ],
)
def test_what_no_request_can_carry_is_named_and_exits_with_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert says in capsys.readouterr().err


def test_a_task_on_stdin_that_is_no_text_exits_with_2() -> None:
    command = [sys.executable, "-m", "agent_runtime", "run", "-", "--url", NOBODY]
    done = subprocess.run(command, input=b"\xff", capture_output=True, check=False, timeout=60)

    assert (done.returncode, done.stderr) == (
        2,
        b"agent-runtime: invalid_request: what came on stdin must be text in UTF-8\n",
    )


def test_a_task_of_blanks_is_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", " \n", "--url", NOBODY]) == 2
    assert "PROMPT is empty" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["serve --help", "token show /nowhere/token", "--version"])
def test_a_reader_that_goes_away_ends_a_command_quietly(words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "agent_runtime", *words.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writing)

    assert done.returncode in (0, 141)  # argparse takes no notice where it prints a help
    assert done.stderr == ""


def test_what_serve_cannot_use_is_named_in_its_log_at_the_start_and_by_readyz(tmp_path: Path) -> None:
    (tmp_path / "oauth-claude").write_text("not executable")
    environment = {"AGENT_RUNTIME_TOKN_FILE": "x", "AGENT_RUNTIME_SLOT": "3", "ANTHROPIC_BASE_URL": "nonsense"}
    with supervised(tmp_path, claude=str(tmp_path / "oauth-claude"), environment=environment) as running:
        answer = running.client.get("/readyz")
        log = running.log.read_text()

    assert (answer.status_code, answer.json()["reason"]) == (503, "no_cli")
    assert "claude is not executable; set AGENT_RUNTIME_CLAUDE" in answer.json()["detail"]
    assert "oauth" not in answer.json()["detail"]
    assert f"no execution can start: the CLI {tmp_path}/oauth-claude is not executable" in log
    assert "AGENT_RUNTIME_TOKN_FILE is no setting and does nothing (did you mean AGENT_RUNTIME_TOKEN_FILE?)" in log
    assert "AGENT_RUNTIME_SLOT is no setting and does nothing (did you mean AGENT_RUNTIME_SLOTS?)" in log
    assert "no execution can reach the API: ANTHROPIC_BASE_URL must be an http or https address" in log


def test_a_command_that_waits_for_a_supervisor_says_for_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "x", "--url", NOBODY, "--patience", "0.2"]) == 75
    assert "nothing listens there; trying for 0.2 s (--patience)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ('"$@" token show "$1" >&-', 1, ""),
        ('"$@" token show "$1" >/dev/full', 1, "agent-runtime: stdout cannot be written: its disk is full\n"),
        (
            'mkdir gone && cd gone && rmdir ../gone && "$@" doctor',
            2,
            "agent-runtime: AGENT_RUNTIME_WORKSPACE: its default, the current directory, was deleted\n",
        ),
        (
            'mkdir gone && cd gone && rmdir ../gone && CLAUDE_CONFIG_DIR=claude "$@" serve',
            2,
            "agent-runtime: CLAUDE_CONFIG_DIR: must begin with /, because the current directory was deleted\n",
        ),
        (
            'mkdir gone && cd gone && rmdir ../gone && "$@" serve --token-file token',
            2,
            "agent-runtime: --token-file: must begin with /, because the current directory was deleted, not 'token'\n",
        ),
        (
            '"$@" serve --token-file "~none/token"',
            2,
            "agent-runtime: --token-file: must not begin with a ~ that names no home directory, not '~none/token'\n",
        ),
    ],
    ids=[
        *("stdout is closed", "stdout is full", "no current directory", "nor for the CLI", "nor for a setting"),
        "no home directory",
    ],
)
def test_a_place_that_cannot_be_used_is_told_without_a_traceback(
    tmp_path: Path, shell: str, code: int, said: str
) -> None:
    command = ["sh", "-c", shell, "sh", sys.executable, "-m", "agent_runtime"]
    environ = {"PATH": os.defpath, "PYTHONPATH": str(Path(__file__).parents[2])}

    done = subprocess.run(
        command, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )

    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize("module", ["agent_runtime.settings", "httpx"], ids=["of the commands", "of one command"])
def test_ctrl_c_while_modules_are_imported_ends_a_command_without_a_traceback(module: str) -> None:
    words = [str(PROGRAMS / "interrupted_import.py"), module, "status", "--url", NOBODY]

    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(("limit", "slots"), [(72, 1), (20, 1), (256, 4)])
def test_serve_refuses_to_start_where_the_limit_on_open_files_is_too_low_for_its_slots(
    tmp_path: Path, limit: int, slots: int
) -> None:
    for name in ("data", "config", "workspace"):
        (tmp_path / name).mkdir()
    places = {f"AGENT_RUNTIME_{name.upper()}": str(tmp_path / name) for name in ("config_dir", "data_dir", "workspace")}
    command = ["sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh", sys.executable, "-m", "agent_runtime", "serve"]

    done = subprocess.run(
        [*command, "--port", "0", "--slots", str(slots)],
        env={"PATH": os.defpath, "AGENT_RUNTIME_CLAUDE": SCRIPTED, "HOME": str(tmp_path), **places},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stdout) == (3, "")
    said = f"agent-runtime: {limit} open files are too few for {slots} slot{'s' * (slots > 1)}, which need "
    assert done.stderr.splitlines()[-1].startswith(said), done.stderr
