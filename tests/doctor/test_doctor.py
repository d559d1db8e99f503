"""The doctor: one line a check, what to do beside each problem, and an exit code that says whether there is one."""

from __future__ import annotations

import io
import itertools
import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.delivery.credentials_file import FILE_NAME
from agent_runtime.delivery.reload_results import FILE_NAME as RELOAD_RESULTS_FILE
from agent_runtime.doctor import examine, places, run_doctor
from agent_runtime.doctor.finding import Finding, Machine
from agent_runtime.doctor.program import open_files
from agent_runtime.doctor.secret import mount, watch
from agent_runtime.process.linux import cgroup_setup as cgroups
from agent_runtime.process.linux import landlock, syscalls
from agent_runtime.secret.mount import SourceKind
from agent_runtime.secret.writer import put
from agent_runtime.settings import Settings
from tests.support.another_user import NOBODY, another_user, public_directory
from tests.support.supervised import OLD, SCRIPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ON_DISK = "30 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
IN_A_CONTAINER = "30 1 0:30 / / rw - overlay overlay rw\n31 30 0:31 / /dev/shm rw - tmpfs shm rw\n"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


class Patient:
    """A place where everything is as it should be, until a test changes something."""

    def __init__(self, home: Path, api_url: str) -> None:
        self.home = home
        for name in ("secret", "workspace", "data", "config", "managed", "proc"):
            (home / name).mkdir()
        self.token_file = home / "secret" / "token"
        put(self.token_file, OLD.encode())
        self.machine = Machine(mountinfo=home / "proc" / "mountinfo", managed_settings=home / "managed")
        self.machine.mountinfo.write_text(ON_DISK)
        self.environ = {
            "PATH": os.environ["PATH"],
            "SCRIPTED_CLI_PAUSE_FACTOR": "0.02",
            "ANTHROPIC_BASE_URL": api_url,
            "AGENT_RUNTIME_TOKEN_FILE": str(self.token_file),
            "AGENT_RUNTIME_DATA_DIR": str(home / "data"),
            "AGENT_RUNTIME_CONFIG_DIR": str(home / "config"),
            "AGENT_RUNTIME_WORKSPACE": str(home / "workspace"),
            "AGENT_RUNTIME_CLAUDE": SCRIPTED,
        }

    def set(self, name: str, value: object) -> None:
        self.environ[f"AGENT_RUNTIME_{name}"] = str(value)

    def write(self, name: str, text: str, mode: int = 0o600) -> Path:
        path = self.home / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def findings(self, expect: int) -> dict[str, dict[str, Any]]:
        """Run it and return what it says, by check."""
        out = io.StringIO()
        code = run_doctor(self.environ, as_json=True, out=out, machine=self.machine)
        assert code == expect, out.getvalue()
        assert OLD not in out.getvalue()
        findings = json.loads(out.getvalue())
        for finding in findings:
            assert finding["verdict"] == "ok" or finding["advice"], "what is to be done?"
        return {finding["check"]: finding for finding in findings}

    def find(self, check: str) -> Finding:
        """Make the checks up to this one, and return the first thing it says."""
        found = next(finding for finding in examine(self.environ, self.machine) if finding.check == check)
        assert OLD not in found.line()
        return found

    def without_cli(self) -> None:
        """Leave the reload check out, where a test is about another check."""
        self.set("CLAUDE", self.home / "no-claude")


@pytest.fixture(scope="module")
def listening() -> Iterator[str]:
    """Yield the address of something that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def closed() -> Iterator[str]:
    """Yield an address where nobody listens: the port is taken, so that nobody else can."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def patient(tmp_path: Path, listening: str) -> Patient:
    return Patient(tmp_path, listening)


@pytest.fixture
def public() -> Iterator[Path]:
    """Yield a directory that every user can reach."""
    with public_directory() as path:
        yield path


def test_a_healthy_place_is_one_line_a_check_and_exit_code_0(patient: Patient) -> None:
    out = io.StringIO()
    assert run_doctor(patient.environ, out=out, machine=patient.machine) == 0

    lines = out.getvalue().splitlines()
    [said] = [line for line in lines if not line.startswith("ok ")]
    assert said.startswith("warning  access"), "without a key the agent's tools may call"
    assert [line[9:21].strip() for line in lines] == [
        "settings",
        "access",
        "token",
        "token watch",
        "environment",
        "cli settings",
        "workspace",
        "data_dir",
        "config_dir",
        "login",
        "containment",
        "confinement",
        "open files",
        "stop",
        "api",
        "cli",
        "reload check",
        "delivery",
    ]
    assert OLD not in out.getvalue()


# -- mistakes: what the check says where all is well, and what of the one that was made


def expired(patient: Patient) -> None:
    put(patient.token_file, json.dumps({"token": OLD, "expires_at": time.time() - 1}).encode())


def no_directory(patient: Patient) -> None:
    patient.set("TOKEN_FILE", patient.home / "nowhere" / "token")


def another_name(patient: Patient) -> None:
    patient.token_file.rename(patient.token_file.with_name("claude-token"))


def a_directory_for_a_file(patient: Patient) -> None:
    patient.set("TOKEN_FILE", patient.home / "secret")


def key_file(text: str, mode: int = 0o600) -> Callable[[Patient], None]:
    return lambda patient: patient.set("ACCESS_KEY_FILE", patient.write("key", text, mode))


def variable(name: str, value: str) -> Callable[[Patient], None]:
    return lambda patient: patient.environ.update({name: value})


def written(name: str, text: str) -> Callable[[Patient], None]:
    def write(patient: Patient) -> None:
        patient.write(name, text)

    return write


def container_layer(patient: Patient) -> None:
    patient.machine.mountinfo.write_text(IN_A_CONTAINER)


def file_for_a_directory(name: str) -> Callable[[Patient], None]:
    return lambda patient: patient.set(name, patient.write("a-file", ""))


def cli_without_permission(patient: Patient) -> None:
    patient.set("CLAUDE", patient.write("claude", "#!/bin/sh\n", 0o644))


def file_for_own_directories(patient: Patient) -> None:
    patient.set("WORKSPACES", "per_execution")
    (patient.home / "workspace" / "executions").touch()


MISTAKES: list[tuple[str, str, str, str, Callable[[Patient], None]]] = [
    ("a bad value", "settings", "problem", "serve exits with 2", variable("AGENT_RUNTIME_SLOTS", "many")),
    ("service links", "settings", "problem", "enableServiceLinks", variable("AGENT_RUNTIME_PORT", "tcp://10.0.0.1:80")),
    ("a typo", "settings", "warning", "mean AGENT_RUNTIME_TOKEN_FILE?", variable("AGENT_RUNTIME_TOKENFILE", "/x")),
    ("a stranger", "settings", "warning", "lists all settings", variable("AGENT_RUNTIME_GREMLINS", "7")),
    ("no key", "access", "problem", "refuses to start", variable("AGENT_RUNTIME_HOST", "0.0.0.0")),
    ("missing key", "access", "problem", "no caller is admitted", variable("AGENT_RUNTIME_ACCESS_KEY_FILE", "/no/key")),
    ("empty key", "access", "problem", "holds no key", key_file("\n")),
    ("long key", "access", "problem", "several lines", key_file("one\ntwo\n")),
    ("a key in UTF-8", "access", "problem", "no header can carry", key_file("schl\u00fcssel\n")),
    ("a book", "access", "problem", "longer than", key_file("x" * 5000)),
    ("the agent's key", "access", "warning", "runs as the same user", key_file("a-key\n")),
    ("open key", "access", "warning", "0440", key_file("a-key\n", 0o644)),
    ("no mount", "token", "problem", "mount the directory", no_directory),
    ("another name", "token", "problem", "holds claude-token: name the right one", another_name),
    ("not written", "token", "problem", "is empty: is it the directory", lambda patient: patient.token_file.unlink()),
    ("empty", "token", "problem", "token put", written("secret/token", "")),
    ("two lines", "token", "problem", "one line with the token", written("secret/token", "two\nlines")),
    ("html", "token", "problem", "one line with the token", written("secret/token", "<html>")),
    ("a template", "token", "problem", "a template that nobody", written("secret/token", "${CLAUDE_TOKEN}")),
    ("quotes", "token", "warning", "write it again with: agent-runtime token put", written("secret/token", f"'{OLD}'")),
    ("a directory", "token", "problem", "name the file itself", a_directory_for_a_file),
    ("expired", "token", "problem", "has expired", expired),
    ("open token", "token", "warning", "0440", lambda patient: patient.token_file.chmod(0o644)),
    (
        "baked in",
        "environment",
        "warning",
        "ANTHROPIC_API_KEY: removed",
        variable("ANTHROPIC_API_KEY", "sk-ant-api03-x"),
    ),
    ("provider", "environment", "warning", "USE_BEDROCK: removed", variable("CLAUDE_CODE_USE_BEDROCK", "1")),
    (
        "managed",
        "cli settings",
        "problem",
        "apiKeyHelper",
        written("managed/managed-settings.json", '\ufeff{"apiKeyHelper":"x","n":1e999}'),
    ),
    (
        "a socket",
        "cli settings",
        "warning",
        "2.1.114",
        written("config/settings.json", '{"env":{"ANTHROPIC_UNIX_SOCKET":"/s"}}'),
    ),
    ("no workspace", "workspace", "problem", "WORKSPACE", variable("AGENT_RUNTIME_WORKSPACE", "/no/workspace")),
    ("a file for own directories", "workspace", "problem", "set AGENT_RUNTIME_WORKSPACES", file_for_own_directories),
    ("unknown user", "child user", "problem", "add it", variable("AGENT_RUNTIME_CHILD_USER", "nobody-of-that-name")),
    ("no volume", "data_dir", "warning", "gone with the container", container_layer),
    ("no volume for sessions", "config_dir", "warning", "gone with the container", container_layer),
    ("a file for data", "data_dir", "problem", "mount a volume", file_for_a_directory("DATA_DIR")),
    ("a file for config", "config_dir", "problem", "mount a volume", file_for_a_directory("CONFIG_DIR")),
    (
        "too long a drain",
        "stop",
        "warning",
        "terminationGracePeriodSeconds",
        variable("AGENT_RUNTIME_DRAIN_TIMEOUT", "60"),
    ),
    ("no address", "api", "problem", "correct it", variable("ANTHROPIC_BASE_URL", "api.example")),
    ("bad proxy", "api", "problem", "correct HTTPS_PROXY", variable("HTTP_PROXY", "socks5://127.0.0.1")),
    ("no CLI", "cli", "problem", "is not on PATH", variable("AGENT_RUNTIME_CLAUDE", "claude-of-nobody")),
    ("no CLI there", "cli", "problem", "there is no /no/claude", variable("AGENT_RUNTIME_CLAUDE", "/no/claude")),
    ("no permission", "cli", "problem", "chmod 755", cli_without_permission),
]


@pytest.mark.parametrize(
    ("check", "verdict", "words", "make"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES]
)
def test_a_mistake_is_named_with_what_to_do_and_what_is_right_is_not(
    patient: Patient, check: str, verdict: str, words: str, make: Callable[[Patient], None]
) -> None:
    if check not in {"child user", "access"}:  # not looked at without the setting; never right without a key
        assert patient.find(check).verdict == "ok"
    make(patient)

    found = patient.find(check)
    assert (found.verdict, words in found.line(), bool(found.advice)) == (verdict, True, True), found.line()


def test_everything_is_said_although_the_settings_cannot_be_read(patient: Patient) -> None:
    patient.without_cli()
    patient.environ |= {"AGENT_RUNTIME_SLOTS": "many", "AGENT_RUNTIME_HOST": "0.0.0.0"}

    findings = patient.findings(1)
    assert (findings["access"]["verdict"], findings["token"]["verdict"]) == ("problem", "ok")
    assert "4 slots" in findings["open files"]["text"], "what cannot be read is at its default"


def test_other_variables_that_kubernetes_sets_for_a_service_are_no_slips(patient: Patient) -> None:
    for name, value in (
        ("SERVICE_HOST", "10.0.0.1"),
        ("SERVICE_PORT_HTTP", "8000"),
        ("PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("METRICS_PORT", "tcp://10.0.0.1:80"),
    ):
        patient.set(name, value)

    assert patient.find("settings").verdict == "ok"
    patient.set("PORT_8000", "1")
    assert patient.find("settings").verdict == "warning"


def test_a_key_beyond_loopback_and_a_deliberate_lack_of_one_are_no_problem(patient: Patient) -> None:
    patient.set("HOST", "0.0.0.0")
    patient.set("INSECURE_NO_ACCESS_KEY", "true")
    assert patient.find("access").verdict == "warning"

    key_file("a-key\n")(patient)
    patient.set("CHILD_USER", "65534")
    assert patient.find("access").verdict == "ok"


@as_root
def test_a_token_of_another_user_is_told_with_whose_it_is(patient: Patient, public: Path) -> None:
    patient.set("TOKEN_FILE", public / "token")
    put(public / "token", OLD.encode())
    with another_user():
        found = patient.find("token")
    assert (found.verdict, "uid 0" in found.line(), f"runs as uid {NOBODY}" in found.line()) == ("problem", True, True)

    os.chown(public / "token", NOBODY, -1)
    with another_user():
        assert patient.find("token").verdict == "ok"


@as_root
def test_a_secret_directory_that_is_closed_is_told(patient: Patient) -> None:
    with another_user():
        found = patient.find("token")
        checks = [finding.check for finding in itertools.islice(examine(patient.environ, patient.machine), 5)]
    assert (found.verdict, "0750" in found.line()) == ("problem", True)
    assert "token watch" not in checks, "the kernel is not to blame"


@as_root
def test_places_behind_a_closed_directory_are_problems_and_no_crash(patient: Patient) -> None:
    patient.without_cli()
    patient.home.chmod(0o700)
    with another_user():
        said = {found.check: found.verdict for found in examine(patient.environ, patient.machine)}

    assert (said["workspace"], said["token"], said["cli"]) == ("problem", "problem", "problem")


@as_root
def test_a_user_that_is_not_root_is_told_what_only_root_may_do(
    patient: Patient, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "DEFAULT_DATA_DIR", public / "data")
    patient.set("WORKSPACE", public)
    patient.set("CHILD_USER", "root")
    del patient.environ["AGENT_RUNTIME_DATA_DIR"]
    patient.set("CONFIG_DIR", public / "config")
    patient.set("TOKEN_FILE", public / "token")
    with another_user():
        workspace, user, data_dir, config_dir = (
            patient.find(check) for check in ("workspace", "child user", "data_dir", "config_dir")
        )

    assert (workspace.verdict, "cannot be written" in workspace.text) == ("warning", True)
    assert (user.verdict, "only root" in user.text) == ("problem", True)
    assert (data_dir.verdict, "the user's state directory instead" in data_dir.text) == ("warning", True)
    assert (config_dir.verdict, "cannot be created" in config_dir.text) == ("problem", True)
    assert patient.find("data_dir").verdict == "ok", "root may"


@as_root
def test_a_child_user_must_be_able_to_write(patient: Patient, public: Path) -> None:
    patient.set("CHILD_USER", NOBODY)
    assert "is closed to it" in patient.find("child user").text

    for name in ("WORKSPACE", "CONFIG_DIR"):
        (public / name).mkdir(mode=0o755)
        patient.set(name, public / name)
    os.chown(public / "WORKSPACE", NOBODY, -1)
    found = patient.find("child user")
    assert (found.verdict, "config directory" in found.text) == ("problem", True)

    os.chown(public / "CONFIG_DIR", NOBODY, -1)
    cli = public / "claude"
    cli.write_text("#!/bin/sh\n")
    cli.chmod(0o700)
    patient.set("CLAUDE", cli)
    found = patient.find("child user")
    assert (found.verdict, f"cannot run {cli}" in found.text) == ("problem", True)

    cli.chmod(0o755)
    assert patient.find("child user").verdict == "ok"


def test_settings_of_the_workspace_that_are_outranked_are_told_and_no_problem(patient: Patient) -> None:
    patient.write("workspace/.claude/settings.json", '{"env": {"ANTHROPIC_AUTH_TOKEN": "sk-of-a-person", "A": "b"}}')
    patient.write("config/settings.json", "not json")

    found = patient.find("cli settings")
    assert (found.verdict, "ANTHROPIC_AUTH_TOKEN: outranked" in found.text) == ("ok", True)
    assert "sk-of-a-person" not in found.line()


def test_an_api_or_a_proxy_that_does_not_answer_is_a_problem(patient: Patient, listening: str, closed: str) -> None:
    patient.environ["ANTHROPIC_BASE_URL"] = closed
    assert "Connection refused" in patient.find("api").text

    patient.environ["http_proxy"] = listening
    assert "proxy" in patient.find("api").text
    assert patient.find("api").verdict == "ok"

    patient.environ |= {"ANTHROPIC_BASE_URL": listening, "http_proxy": closed}
    assert patient.find("api").verdict == "problem"
    patient.environ["no_proxy"] = "127.0.0.1"
    assert patient.find("api").verdict == "ok"


@pytest.mark.parametrize(("limit", "verdict"), [(256, "problem"), (1024, "warning"), (20_000, "ok")])
def test_too_few_open_files_for_slots_and_connections_are_told(limit: int, verdict: str) -> None:
    assert open_files(Settings(), limit).verdict == verdict


def test_a_directory_that_cannot_be_watched_is_a_warning(tmp_path: Path) -> None:
    import resource

    fine = watch(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        found = watch(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert fine is not None
    assert found is not None
    assert (fine.verdict, found.verdict) == ("ok", "warning")


@pytest.mark.parametrize(("setting", "value"), [("CONTAINMENT", "cgroup"), ("EXECUTION_PIDS", "100")])
def test_a_layer_or_a_limit_that_is_not_to_be_had_is_a_problem(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, setting: str, value: str
) -> None:
    monkeypatch.setattr(cgroups, "find", lambda: cgroups.CgroupSupport(None, "no cgroup v2 is mounted"))
    assert patient.find("containment").verdict == "ok"

    patient.set(setting, value)
    found = patient.find("containment")
    assert (found.verdict, "no cgroup v2 is mounted" in found.text) == ("problem", True)


@pytest.mark.skipif(landlock.version() < landlock.LEAST_ABI, reason="this kernel has no Landlock")
def test_what_an_agent_can_reach_is_told_item_by_item(patient: Patient) -> None:
    free = patient.find("confinement")
    assert (free.verdict, free.text.startswith("off: an agent can reach: secret file")) == ("ok", True)

    patient.set("CONFINE", "landlock")
    try:
        confined = patient.find("confinement")
        patient.set("WORKSPACE", patient.home)
        impossible = patient.find("confinement")
    finally:
        syscalls._prctl(syscalls.PR_SET_DUMPABLE, 1)
    assert confined.text.startswith("landlock: an agent can reach: nothing; it cannot reach: secret file, ")
    assert (impossible.verdict, "where an agent works" in impossible.text) == ("problem", True)


# -- the CLI, and what is proved about it


def test_the_reload_check_is_made_once_and_kept(patient: Patient) -> None:
    first = patient.findings(0)
    assert "2.1.330" in first["reload check"]["text"]
    assert "made now" in first["reload check"]["text"]
    assert (patient.home / "data" / RELOAD_RESULTS_FILE).exists()

    assert "known already" in patient.findings(0)["reload check"]["text"]
    assert first["delivery"]["text"].startswith("file:")


def test_a_cli_that_does_not_read_again_is_no_problem_but_decides_the_delivery(patient: Patient) -> None:
    patient.environ["SCRIPTED_CLI_VERSION"] = "2.0.76"

    findings = patient.findings(0)
    assert "never" in findings["reload check"]["text"]
    assert findings["delivery"]["text"].startswith("env:")


def test_without_a_data_directory_the_reload_check_is_not_kept_and_none_is_made(patient: Patient) -> None:
    patient.set("DATA_DIR", patient.home / "later" / "data")

    findings = patient.findings(0)
    assert "not kept" in findings["reload check"]["text"]
    assert "serve will create it" in findings["data_dir"]["text"]
    assert not (patient.home / "later").exists()


@pytest.mark.parametrize("command", ["true", "/bin/sh -c 'exit 7'"])
def test_a_cli_that_makes_no_request_is_a_problem(patient: Patient, command: str) -> None:
    patient.set("CLAUDE", command)

    findings = patient.findings(1)
    assert findings["reload check"]["verdict"] == "problem"
    assert "by hand" in findings["reload check"]["advice"]
    assert findings["delivery"]["text"].startswith("env:")


# -- what must not be touched


@pytest.mark.parametrize(
    ("source", "verdict"), [(SourceKind.FILE_MOUNT, "warning"), (SourceKind.DETACHED, "problem")], ids=str
)
def test_a_file_that_is_mounted_by_itself_is_told(source: SourceKind, verdict: str) -> None:
    finding = mount({"source": source})

    assert finding is not None
    assert finding.verdict == verdict
    assert "mount the directory" in (finding.advice or "")
    assert mount({"source": SourceKind.DIRECTORY}) is None


@pytest.mark.parametrize(("setting", "verdict"), [("auto", "warning"), ("file", "problem")])
def test_a_login_of_another_owner_is_reported_and_left_alone(patient: Patient, setting: str, verdict: str) -> None:
    patient.set("TOKEN_DELIVERY", setting)
    path = patient.write(f"config/{FILE_NAME}", '{"claudeAiOauth":{"accessToken":"sk-ant-oat01-of-a-person"}}')
    before = path.read_bytes()

    assert patient.find("login").verdict == verdict
    assert path.read_bytes() == before
