"""The doctor: one line a check, what to do beside each problem, and an exit code that says whether there is one."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shlex
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime import cgroups
from agent_runtime.credentials_file import FILE_NAME
from agent_runtime.doctor import _source, run_doctor
from agent_runtime.proofs import FILE_NAME as PROOFS_FILE
from agent_runtime.secret_mount import SourceKind
from agent_runtime.secret_writer import put
from agent_runtime.settings import Settings, load
from tests.supervised import OLD, SCRIPTED

if TYPE_CHECKING:
    from pathlib import Path


class Patient:
    """A place where everything is as it should be, until a test changes something."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for name in ("secret", "workspace", "data", "config"):
            (home / name).mkdir()
        put(home / "secret" / "token", OLD.encode())
        self.variables = {
            "AGENT_RUNTIME_TOKEN_FILE": str(home / "secret" / "token"),
            "AGENT_RUNTIME_DATA_DIR": str(home / "data"),
            "AGENT_RUNTIME_CONFIG_DIR": str(home / "config"),
            "AGENT_RUNTIME_WORKSPACE": str(home / "workspace"),
            "AGENT_RUNTIME_CLAUDE": SCRIPTED,
        }
        self.environ = {"PATH": os.environ["PATH"], "SCRIPTED_CLI_PAUSE_FACTOR": "0.02"}

    @property
    def settings(self) -> Settings:
        return load(self.variables)

    def findings(self, expect: int) -> dict[str, dict[str, Any]]:
        """Run it and return what it says, by check."""
        out = io.StringIO()
        assert run_doctor(self.settings, self.environ, as_json=True, out=out) == expect, out.getvalue()
        assert OLD not in out.getvalue()
        findings = json.loads(out.getvalue())
        for finding in findings:
            assert finding["verdict"] == "ok" or finding["advice"], "what is to be done?"
        return {finding["check"]: finding for finding in findings}

    def without_cli(self) -> None:
        """Leave the proof out, where it is not what is looked at."""
        self.variables["AGENT_RUNTIME_CLAUDE"] = str(self.home / "no-claude")


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path)


def test_a_healthy_place_is_one_line_a_check_and_exit_code_0(patient: Patient) -> None:
    out = io.StringIO()
    assert run_doctor(patient.settings, patient.environ, out=out) == 0

    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * len(lines)
    checks = ["token", "workspace", "data_dir", "config_dir", "containment", "login", "cli", "proof", "delivery"]
    assert [line.split()[1] for line in lines] == checks
    assert OLD not in out.getvalue()


def test_a_layer_that_is_not_to_be_had_is_a_problem(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    patient.without_cli()
    monkeypatch.setattr(cgroups, "find", lambda: cgroups.Finding(None, "no cgroup v2 is mounted"))
    assert patient.findings(1)["containment"]["verdict"] == "ok"
    patient.variables["AGENT_RUNTIME_CONTAINMENT"] = "cgroup"
    finding = patient.findings(1)["containment"]
    assert (finding["verdict"], "cgroup cannot be used here" in finding["text"]) == ("problem", True)


def test_the_proof_is_made_once_and_kept(patient: Patient) -> None:
    first = patient.findings(0)
    assert "2.1.330" in first["proof"]["text"]
    assert "made now" in first["proof"]["text"]
    assert (patient.home / "data" / PROOFS_FILE).exists()

    assert "known already" in patient.findings(0)["proof"]["text"]
    assert first["delivery"]["text"].startswith("file:")


def test_a_cli_that_does_not_read_again_is_no_problem_but_decides_the_delivery(patient: Patient) -> None:
    patient.environ["SCRIPTED_CLI_VERSION"] = "2.0.76"

    findings = patient.findings(0)
    assert "never" in findings["proof"]["text"]
    assert findings["delivery"]["text"].startswith("env:")


def test_without_a_data_directory_the_proof_is_not_kept_and_none_is_made(patient: Patient) -> None:
    patient.variables["AGENT_RUNTIME_DATA_DIR"] = str(patient.home / "later" / "data")

    findings = patient.findings(0)
    assert "not kept" in findings["proof"]["text"]
    assert "serve will create it" in findings["data_dir"]["text"]
    assert not (patient.home / "later").exists()


def test_a_missing_cli_is_a_problem(patient: Patient) -> None:
    patient.without_cli()

    assert patient.findings(1)["cli"]["verdict"] == "problem"


def test_a_cli_that_makes_no_request_is_a_problem(patient: Patient) -> None:
    patient.variables["AGENT_RUNTIME_CLAUDE"] = shlex.join(["true"])

    findings = patient.findings(1)
    assert findings["proof"]["verdict"] == "problem"
    assert findings["delivery"]["text"].startswith("env:")


@pytest.mark.parametrize("content", [None, b"", b"two\nlines", b"<html>"], ids=["missing", "empty", "lines", "html"])
def test_a_token_that_cannot_be_used_is_a_problem(patient: Patient, content: bytes | None) -> None:
    patient.without_cli()
    token_file = patient.home / "secret" / "token"
    if content is None:
        token_file.unlink()
    else:
        token_file.write_bytes(content)

    assert patient.findings(1)["token"]["verdict"] == "problem"


def test_an_expired_token_is_a_problem(patient: Patient) -> None:
    patient.without_cli()
    put(patient.home / "secret" / "token", json.dumps({"token": OLD, "expires_at": time.time() - 1}).encode())

    assert patient.findings(1)["token"]["text"].endswith("has expired")


@pytest.mark.parametrize(
    ("source", "verdict"), [(SourceKind.FILE_MOUNT, "warning"), (SourceKind.DETACHED, "problem")], ids=str
)
def test_a_file_that_is_mounted_by_itself_is_told(source: SourceKind, verdict: str) -> None:
    finding = _source({"source": source})

    assert finding is not None
    assert finding.verdict == verdict
    assert "mount the directory" in (finding.advice or "")


@pytest.mark.parametrize(("setting", "verdict"), [("auto", "warning"), ("file", "problem")])
def test_somebody_elses_login_is_told_and_left_alone(patient: Patient, setting: str, verdict: str) -> None:
    patient.without_cli()
    patient.variables["AGENT_RUNTIME_TOKEN_DELIVERY"] = setting
    path = patient.home / "config" / FILE_NAME
    path.write_text('{"claudeAiOauth":{"accessToken":"sk-ant-oat01-of-a-person"}}')
    before = path.read_bytes()

    assert patient.findings(1)["login"]["verdict"] == verdict
    assert path.read_bytes() == before


def test_a_supervisor_that_runs_here_is_told_and_not_disturbed(patient: Patient) -> None:
    patient.without_cli()
    (patient.home / "data" / "lock").touch()
    with (patient.home / "config" / ".agent-runtime.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        findings = patient.findings(1)

    assert "in use" in findings["config_dir"]["text"]
    assert "in use" not in findings["data_dir"]["text"]


def test_a_workspace_that_is_missing_is_a_problem(patient: Patient) -> None:
    patient.without_cli()
    patient.variables["AGENT_RUNTIME_WORKSPACE"] = str(patient.home / "nowhere")

    assert patient.findings(1)["workspace"]["verdict"] == "problem"


def test_a_file_where_a_directory_should_be_is_a_problem(patient: Patient) -> None:
    patient.without_cli()
    (patient.home / "file").touch()
    patient.variables["AGENT_RUNTIME_DATA_DIR"] = str(patient.home / "file")
    patient.variables["AGENT_RUNTIME_CONFIG_DIR"] = str(patient.home / "file" / "below")

    findings = patient.findings(1)
    assert (findings["data_dir"]["verdict"], findings["config_dir"]["verdict"]) == ("problem", "problem")


def test_an_unknown_child_user_is_a_problem(patient: Patient) -> None:
    patient.without_cli()
    patient.variables["AGENT_RUNTIME_CHILD_USER"] = "nobody-of-that-name"

    assert patient.findings(1)["child user"]["verdict"] == "problem"
