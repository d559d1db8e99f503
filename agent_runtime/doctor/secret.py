"""Checks of the secret file, of its mount, and of other places that could decide on the token."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent_runtime.claude.credential_env import BASE_URL_VARIABLE, is_rival
from agent_runtime.delivery.credentials_file import CredentialsFile
from agent_runtime.delivery.delivery import FILE
from agent_runtime.delivery.workspace_config import read_settings
from agent_runtime.doctor.finding import Finding, Machine, is_dir, may, ok, problem, warning
from agent_runtime.secret.mount import SourceKind
from agent_runtime.secret.watcher import watch_of
from agent_runtime.settings import PREFIX, Settings

NAMES_SHOWN = 5

_MOUNT_ADVICE = "mount the directory that the backend writes it in"


def token(settings: Settings, described: Mapping[str, str | float | None]) -> Finding:
    """Check the content of the secret file."""
    path = settings.token_file
    if described["error"] is not None:
        return problem("token", f"{described['error']} ({path})", _remedy(path))
    text = f"{described['kind']} {described['fingerprint']} in {path}"
    if "warning" in described:
        text = f"{text}: {described['warning']}"
    expires_at = described["expires_at"]
    if isinstance(expires_at, float | int) and expires_at <= time.time():
        return problem("token", f"{text} has expired", "write a new one, or correct expires_at and the clock here")
    mode = path.stat().st_mode
    if mode & stat.S_IROTH:
        advice = "give it mode 0440 and a group for the supervisor (in Kubernetes defaultMode: 0440 with fsGroup)"
        return warning("token", f"{text} can be read by every user of this container", advice)
    if "warning" in described:
        return warning("token", text, f"write it again with: agent-runtime token put {path}")
    return ok("token", text)


def _remedy(path: Path) -> str:
    """Return advice for a secret file that cannot be used."""
    directory = path.parent
    put = f"write it with: agent-runtime token put {path}"
    try:
        info = path.stat()
    except PermissionError:
        return f"let uid {os.geteuid()} or one of its groups into {directory}: mode 0750 and that group"
    except (FileNotFoundError, NotADirectoryError):
        return _remedy_for_missing(path, put)
    except OSError:
        return put
    if not stat.S_ISREG(info.st_mode):
        return f"put a file there: {_MOUNT_ADVICE}, and name the file itself in {PREFIX}TOKEN_FILE"
    if not may(path, os.R_OK):
        owner = f"it belongs to uid {info.st_uid}, gid {info.st_gid}, mode {stat.S_IMODE(info.st_mode):04o}"
        write = f"agent-runtime token put --mode 0440 --group {os.getegid()} FILE"
        return f"{owner}; this runs as uid {os.geteuid()}: write it, where its directory is mounted from, by {write}"
    return f"one line with the token alone, or JSON with it (docs/configuration.md, The secret file); {put}"


def _remedy_for_missing(path: Path, put: str) -> str:
    if not is_dir(path.parent):
        return f"there is no directory {path.parent}: {_MOUNT_ADVICE}, or set {PREFIX}TOKEN_FILE"
    try:
        others = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        others = []
    if not others:
        return f"{path.parent} is empty: is it the directory the backend writes to? If so, {put}"
    more = ", ..." if len(others) > NAMES_SHOWN else ""
    return f"the directory holds {', '.join(others[:NAMES_SHOWN])}{more}: name the right one in {PREFIX}TOKEN_FILE"


def mount(described: Mapping[str, str | float | None]) -> Finding | None:
    """Check whether this container sees it when the secret file is replaced outside; None: nothing to report."""
    if described["source"] == SourceKind.DETACHED:
        text = "the file was replaced outside, which is not seen in here"
        return problem("token mount", text, "mount the directory that the file is in, and start the container anew")
    if described["source"] == SourceKind.FILE_MOUNT:
        text = "the file is mounted by itself: one that replaces it outside will not be seen"
        return warning("token mount", text, "mount the directory that the file is in (no subPath, no file:file)")
    return None


def watch(directory: Path) -> Finding | None:
    """Check whether the kernel grants an inotify watch, whose number is limited; None: there is no directory."""
    if not is_dir(directory):
        return None
    try:
        watch_of(directory).close()
    except PermissionError:
        return None  # the check of the token reports this
    except (OSError, RuntimeError) as error:
        text = f"changes of {directory} are seen up to 1 s late, by looking: the kernel gives no watch ({error})"
        return warning("token watch", text, "raise fs.inotify.max_user_instances on the host")
    return ok("token watch", "a change is seen at once where the file system tells of it, else within 1 s")


def other_credentials(environ: Mapping[str, str]) -> Finding:
    """Check for variables that choose a credential or server, in the environment."""
    names = sorted(name for name, value in environ.items() if value and is_rival(name))
    if not names:
        return ok("environment", "no other credential in it")
    text = f"{', '.join(names)}: removed from every child, the secret file decides"
    advice = "take them out of the image and the pod: what is baked in can be read by all who have the image"
    return warning("environment", text, advice)


def settings_files(settings: Settings, machine: Machine) -> Iterator[Finding]:
    """Check for settings that choose a credential or server, in the CLI's settings files."""
    workspace, managed = settings.workspace / ".claude", machine.managed_settings
    outranked = _decided(
        workspace / "settings.json", workspace / "settings.local.json", settings.config_dir / "settings.json"
    )
    try:
        parts = sorted((managed / "managed-settings.d").glob("*.json"))
    except OSError:
        parts = []
    if winning := _decided(managed / "managed-settings.json", *parts):
        text = f"{winning}: managed settings beat the secret file"
        yield problem("cli settings", text, "take these keys out of the managed settings of the image")
    elif "ANTHROPIC_UNIX_SOCKET" in _deciding(settings.config_dir / "settings.json"):
        text = f"{settings.config_dir / 'settings.json'}: ANTHROPIC_UNIX_SOCKET, which makes CLI 2.1.114 fail"
        yield warning("cli settings", text, "take it out")
    else:
        yield ok("cli settings", f"{outranked}: outranked, the secret file decides" if outranked else "decide nothing")


def _decided(*paths: Path) -> str:
    """Return a text of the settings files that choose a credential or server, with their names; empty: none does."""
    return "; ".join(f"{path}: {', '.join(names)}" for path in paths if (names := _deciding(path)))


def _deciding(path: Path) -> list[str]:
    """Return the names in a settings file that choose a credential or server, without their values."""
    try:
        content = read_settings(path)
    except (OSError, ValueError, RecursionError):
        return []
    env = content.get("env")
    given = [name for name, value in env.items() if value] if isinstance(env, dict) else []
    names = [name for name in given if is_rival(name) or name == BASE_URL_VARIABLE]
    return [*(["apiKeyHelper"] if content.get("apiKeyHelper") else []), *sorted(names)]


def obstacle(settings: Settings) -> str | None:
    """Return why a token cannot be delivered by file; None: it can."""
    if not is_dir(settings.config_dir):
        return None  # it will be created, and is empty then
    return CredentialsFile(settings.config_dir, settings.child_user).obstacle


def login(settings: Settings, in_the_way: str | None) -> Finding:
    """Check for another login in the config directory."""
    if in_the_way is None:
        return ok("login", "the config directory holds no login but our own")
    advice = f"remove its .credentials.json if nobody needs it, or set {PREFIX}CONFIG_DIR to another directory"
    finding = problem if settings.token_delivery == FILE else warning
    return finding("login", in_the_way, advice)
