"""Checks of the directories: whether they can be written, by which user, and whether they outlive the container."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from agent_runtime.doctor.finding import Finding, Machine, Severity, exists, is_dir, may, ok, problem, warning
from agent_runtime.files import mount_of
from agent_runtime.process.users import UnknownUser, User, look_up
from agent_runtime.serve.bootstrap import DEFAULT_DATA_DIR
from agent_runtime.settings import PREFIX, Settings
from agent_runtime.store.workspaces import OWN, PER_EXECUTION

LITTLE_BYTES = 256 * 1024 * 1024
LOST_WITH_THE_CONTAINER = {
    "overlay": "the container's own layer",
    "aufs": "the container's own layer",
    "tmpfs": "memory",
}
"""File systems that end with the container: their names for a person, by type."""


def examine_places(settings: Settings, machine: Machine) -> Iterator[Finding]:
    """Check the workspace, the user of the children, and the directories that must outlive the container."""
    yield _workspace(settings)
    if settings.child_user is not None:
        yield _child_user(settings)
    yield _data_dir(settings, machine)
    config_dir_advice = f"mount a volume there, or set {PREFIX}CONFIG_DIR to a directory of the agent's own"
    yield _directory("config_dir", settings.config_dir, config_dir_advice, machine)


def _data_dir(settings: Settings, machine: Machine) -> Finding:
    advice = f"mount a volume that uid {os.geteuid()} can write, and set {PREFIX}DATA_DIR to it"
    found = _directory("data_dir", settings.data_dir or DEFAULT_DATA_DIR, advice, machine)
    if settings.data_dir is None and found.verdict is Severity.PROBLEM:
        return warning("data_dir", f"{found.text}: serve takes the user's state directory instead", advice)
    return found


def _workspace(settings: Settings) -> Finding:
    path = settings.workspace
    if not is_dir(path):
        return problem("workspace", f"{path} is no directory", f"create it, or set {PREFIX}WORKSPACE to another")
    own = path / OWN
    if settings.workspaces == PER_EXECUTION and not may(own if exists(own) else path, os.W_OK | os.X_OK):
        advice = f"let uid {os.geteuid()} write there, or set {PREFIX}WORKSPACES to shared"
        return problem("workspace", f"no directories can be made in {own}", advice)
    if not may(path, os.W_OK | os.X_OK):
        advice = f"let uid {os.geteuid()} write there, if the agent is to change files"
        return warning("workspace", f"{path} cannot be written", advice)
    return ok("workspace", str(path))


def _child_user(settings: Settings) -> Finding:
    user = settings.child_user or ""
    try:
        found = look_up(user)
    except UnknownUser:
        advice = f"add it to the image, or set {PREFIX}CHILD_USER to a name or number that is there"
        return problem("child user", f"{user} is unknown here", advice)
    if os.geteuid() not in {0, found.uid}:
        text = f"only root can run children as {user}"
        return problem("child user", text, f"run as root, or leave {PREFIX}CHILD_USER out")
    needs = [
        ("write the workspace", settings.workspace, stat.S_IWOTH | stat.S_IXOTH),
        ("write the config directory", settings.config_dir, stat.S_IWOTH | stat.S_IXOTH),
    ]
    if (cli := shutil.which(settings.claude[0])) is not None:
        needs.append(("run", Path(os.path.realpath(cli)), stat.S_IXOTH))
    reasons = [
        f"cannot {need} {path}: {reason}"
        for need, path, wanted in needs
        if exists(path) and (reason := _lack_of_access(path, found, wanted))
    ]
    if reasons:
        advice = f"give uid {found.uid} both directories, and let it pass through those above them and the CLI"
        return problem("child user", f"{user} {'; '.join(reasons)}", advice)
    return ok("child user", f"{user} can run the CLI and write workspace and config directory")


def _lack_of_access(path: Path, user: User, wanted: int) -> str | None:
    """
    Return why a user may not use a file or directory, according to the permission bits; None: the user may.

    Args:
        wanted: As in :meth:`User.may`.
    """
    if user.uid == 0:
        return None
    for parent in reversed(path.parents):
        if not user.may(parent.stat(), stat.S_IXOTH):
            return f"{parent} is closed to it"
    return None if user.may(path.stat(), wanted) else "its owner and mode do not allow it"


def _directory(check: str, path: Path, advice: str, machine: Machine) -> Finding:
    if not exists(path):
        parent = next(parent for parent in path.absolute().parents if exists(parent))
        if not (may(parent, os.W_OK | os.X_OK) and is_dir(parent)):
            return problem(check, f"{path} cannot be created", advice)
        return _lasting(check, path, f"{path} does not exist yet: serve will create it", machine)
    if not is_dir(path) or not may(path, os.W_OK | os.X_OK):
        return problem(check, f"{path} cannot be written by uid {os.geteuid()}", advice)
    free_bytes = shutil.disk_usage(path).free
    if free_bytes < LITTLE_BYTES:
        text = f"{path} has only {free_bytes >> 20} MiB left"
        return warning(check, text, f"make room, or lower {PREFIX}RETAIN_BYTES: answers on a full disk are not kept")
    return _lasting(check, path, str(path), machine)


def _lasting(check: str, path: Path, text: str, machine: Machine) -> Finding:
    """Return a finding with *text*, and a warning if files at *path* do not outlive the container."""
    try:
        mount = mount_of(os.path.realpath(path), machine.mountinfo.read_text(errors="surrogateescape"))
    except OSError:
        mount = None
    if mount is None or mount.kind not in LOST_WITH_THE_CONTAINER:
        return ok(check, text)
    lost = "records and answers" if check == "data_dir" else "the sessions that are resumed"
    text = f"{text}, in {LOST_WITH_THE_CONTAINER[mount.kind]}: {lost} are gone with the container"
    return warning(check, text, f"mount a volume at {path}")
