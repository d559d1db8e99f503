"""Find out why it does not work here: one line a check, with what to do about it."""

from __future__ import annotations

import os
import pwd
import secrets
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import msgspec

from agent_runtime import cgroups, containment_choice
from agent_runtime.binary import Binary
from agent_runtime.cgroup_group import Limits
from agent_runtime.credentials_file import CredentialsFile
from agent_runtime.delivery import FileDelivery, choose
from agent_runtime.errors import AgentRuntimeError
from agent_runtime.proof import prove
from agent_runtime.proofs import FILE_NAME as PROOFS_FILE
from agent_runtime.proofs import Proofs
from agent_runtime.secret_mount import SourceKind
from agent_runtime.secret_writer import describe
from agent_runtime.settings import PREFIX
from agent_runtime.tokens import TokenKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent_runtime.proof import Proof
    from agent_runtime.settings import Settings

DATA_DIR = Path("/var/lib/agent-runtime")
"""Where ``serve`` keeps its records unless it is told otherwise."""

LOCKS = Path("/proc/locks")
LOCK_NAMES = {"data_dir": "lock", "config_dir": ".agent-runtime.lock"}


class Verdict(StrEnum):
    """How a check came out; only a problem keeps an agent from working."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(msgspec.Struct, frozen=True):
    """
    What one check found.

    Attributes:
        advice: What to do; None where there is nothing to do.
    """

    check: str
    verdict: Verdict
    text: str
    advice: str | None = None

    def line(self) -> str:
        """Put it on one line."""
        return f"{self.verdict:<8} {self.check:<11} {self.text}" + (f" -> {self.advice}" if self.advice else "")


def run_doctor(
    settings: Settings, environ: Mapping[str, str], *, as_json: bool = False, out: TextIO | None = None
) -> int:
    """
    Make all checks and print each as soon as it is made, or all as one JSON array.

    Nothing is changed but this: the proof about the CLI is kept where the data directory exists.

    Returns:
        The exit code: 1 where there is a problem.
    """
    out = out or sys.stdout
    findings = []
    for finding in examine(settings, environ):
        findings.append(finding)
        if not as_json:
            out.write(finding.line() + "\n")
            out.flush()
    if as_json:
        out.write(msgspec.json.encode(findings).decode() + "\n")
    return int(any(finding.verdict is Verdict.PROBLEM for finding in findings))


def examine(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Make the checks, the quick ones first."""
    token = describe(settings.token_file)
    yield _token(settings, token)
    if source := _source(token):
        yield source
    yield _workspace(settings)
    if settings.child_user is not None:
        yield _child_user(settings.child_user)
    data_dir = settings.data_dir or DATA_DIR
    yield _directory("data_dir", data_dir, f"mount a volume there, or set {PREFIX}DATA_DIR")
    yield _directory("config_dir", settings.config_dir, f"set {PREFIX}CONFIG_DIR to a directory of the agent's own")
    yield _containment(settings)
    obstacle = _obstacle(settings)
    if settings.config_dir.is_dir():
        yield _login(settings, obstacle)
    proof = None
    try:
        binary = Binary.of(settings.claude, environ.get("PATH"))
    except AgentRuntimeError as error:
        yield Finding("cli", Verdict.PROBLEM, str(error), "install Claude Code, or set that variable")
    else:
        yield Finding("cli", Verdict.OK, f"found: {binary.files[0]}")
        try:
            proof, text = _proof(settings, environ, binary, data_dir)
        except AgentRuntimeError as error:
            advice = "run the CLI by hand in this container and look at what it says"
            yield Finding("proof", Verdict.PROBLEM, str(error), advice)
        else:
            yield Finding("proof", Verdict.OK, text)
    yield _delivery(settings, str(token["kind"] or TokenKind.OAUTH), proof, obstacle)


def _token(settings: Settings, token: Mapping[str, str | float | None]) -> Finding:
    if token["error"] is not None:
        advice = f"write it with: agent-runtime token put {settings.token_file}"
        return Finding("token", Verdict.PROBLEM, f"{token['error']} ({settings.token_file})", advice)
    text = f"{token['kind']} {token['fingerprint']} in {settings.token_file}"
    expires_at = token["expires_at"]
    if isinstance(expires_at, float | int) and expires_at <= time.time():
        return Finding("token", Verdict.PROBLEM, f"{text} has expired", "write a new one")
    return Finding("token", Verdict.OK, text)


def _source(token: Mapping[str, str | float | None]) -> Finding | None:
    advice = "mount the directory that the file is in"
    if token["source"] == SourceKind.DETACHED:
        text = "the file was replaced outside, which is not seen in here"
        return Finding("token mount", Verdict.PROBLEM, text, f"{advice}, and start the container anew")
    if token["source"] == SourceKind.FILE_MOUNT:
        text = "the file is mounted by itself: one that replaces it outside will not be seen"
        return Finding("token mount", Verdict.WARNING, text, advice)
    return None


def _workspace(settings: Settings) -> Finding:
    path = settings.workspace
    if not path.is_dir():
        return Finding("workspace", Verdict.PROBLEM, f"{path} is no directory", f"set {PREFIX}WORKSPACE")
    if not os.access(path, os.W_OK | os.X_OK):
        return Finding("workspace", Verdict.WARNING, f"{path} cannot be written", "the agent can change no file there")
    return Finding("workspace", Verdict.OK, str(path))


def _child_user(user: str) -> Finding:
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        return Finding("child user", Verdict.PROBLEM, f"{user} is unknown here", f"set {PREFIX}CHILD_USER")
    if os.geteuid() not in {0, entry.pw_uid}:
        text = f"only root can run children as {user}"
        return Finding("child user", Verdict.PROBLEM, text, f"run as root, or leave {PREFIX}CHILD_USER out")
    return Finding("child user", Verdict.OK, user)


def _directory(check: str, path: Path, advice: str) -> Finding:
    if not path.exists():
        parent = next(parent for parent in path.absolute().parents if parent.exists())
        if os.access(parent, os.W_OK | os.X_OK) and parent.is_dir():
            return Finding(check, Verdict.OK, f"{path} does not exist yet: serve will create it")
        return Finding(check, Verdict.PROBLEM, f"{path} cannot be created", advice)
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        return Finding(check, Verdict.PROBLEM, f"{path} cannot be written", advice)
    in_use = ", in use by a supervisor that runs now" if _is_locked(path / LOCK_NAMES[check]) else ""
    return Finding(check, Verdict.OK, f"{path}{in_use}")


def _is_locked(path: Path) -> bool:
    """Tell by the kernel's list; to try the lock would turn away a supervisor that starts at this moment."""
    try:
        inode = path.stat().st_ino
        locks = LOCKS.read_text()
    except OSError:
        return False
    return any(
        len(fields) > 5 and fields[1] == "FLOCK" and fields[5].endswith(f":{inode}")
        for fields in map(str.split, locks.splitlines())
    )


def _containment(settings: Settings) -> Finding:
    limits = Limits(settings.execution_memory, settings.execution_pids, settings.execution_cpus)
    try:
        cgroups.check(cgroups.find(), limits)
        containment = containment_choice.choose(settings.containment, lambda: f"doctor.{secrets.token_hex(6)}")
    except AgentRuntimeError as error:
        return Finding("containment", Verdict.PROBLEM, str(error), "leave that variable out, or give it what it needs")
    lacking = "; ".join(f"no {name}: {reason}" for name, reason in containment.lacking.items())
    more = f" ({lacking})" if lacking else ""
    return Finding("containment", Verdict.OK, containment.kind.value + more)


def _obstacle(settings: Settings) -> str | None:
    if not settings.config_dir.is_dir():
        return None  # it will be created, and is empty then
    return CredentialsFile(settings.config_dir, settings.child_user).obstacle


def _login(settings: Settings, obstacle: str | None) -> Finding:
    if obstacle is None:
        return Finding("login", Verdict.OK, "the config directory holds no login but our own")
    advice = f"remove its .credentials.json if nobody needs it, or set {PREFIX}CONFIG_DIR to another directory"
    verdict = Verdict.PROBLEM if settings.token_delivery == FileDelivery.name else Verdict.WARNING
    return Finding("login", verdict, obstacle, advice)


def _proof(settings: Settings, environ: Mapping[str, str], binary: Binary, data_dir: Path) -> tuple[Proof, str]:
    """Look the proof up or make it, and say which."""
    keeps = data_dir.is_dir() and os.access(data_dir, os.W_OK | os.X_OK)
    proofs = Proofs(data_dir if keeps else None)
    proof = proofs.known(settings.claude, environ.get("PATH"))
    said = "known already"
    if proof is None:
        proof = prove(settings.claude, environ, user=settings.child_user)
        proofs.keep(binary, proof)
        said = f"made now, kept in {data_dir / PROOFS_FILE}" if keeps else "made now, not kept: no data directory yet"
    return proof, f"version {proof.version}, a running one takes a newer token: {proof.reach} ({said})"


def _delivery(settings: Settings, kind: str, proof: Proof | None, obstacle: str | None) -> Finding:
    reach = None if proof is None else proof.reach
    choice = choose(settings.token_delivery, TokenKind(kind), reach, obstacle)
    return Finding("delivery", Verdict.OK, f"{choice.name}: {choice.reason}")
