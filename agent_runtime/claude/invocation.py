"""
Build the CLI's arguments, environment, stdin and settings file.

Only the delivered token decides who pays, and only the supervisor's own environment decides where requests go. Rival
names are removed from the environment, and the file of ``--settings`` outranks the settings files of the workspace and
the config directory.

Source: Claude Code 1.0.128, 2.0.76, 2.1.30, 2.1.114 and 2.1.330, measured against the stand-in API.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import UUID

import msgspec

from agent_runtime.claude.credential_env import BASE_URL_VARIABLE, neutral_settings, without_rivals
from agent_runtime.errors import SpawnFailed
from agent_runtime.model.task import CLI_FLAGS, DEFAULT_PERMISSION_MODE, Task
from agent_runtime.model.tokens import API_KEY_VARIABLE
from agent_runtime.model.trace_context import TraceContext
from agent_runtime.settings import PREFIX

CONTINUE_PROMPT = "Continue from where you left off."

EXECUTION_ID_VARIABLE = PREFIX + "EXECUTION_ID"

_FIXED_ARGUMENTS = (
    "-p",
    "--output-format=stream-json",
    "--verbose",
    "--include-partial-messages",
    "--debug-to-stderr",
)

_OLDER_MODE_NAMES = {"manual": "default"}
"""Permission modes with an older name, which all versions accept; 2.1.332 lists ``manual`` but reports ``default``."""

_MEANINGFUL_WHEN_EMPTY = {"tools", "setting_sources", "json_schema"}
"""Fields that have a meaning when they are empty: no tools, no setting sources, or a schema that any object meets."""

BACKGROUND_CEILING_VARIABLE = "CLAUDE_CODE_PRINT_BG_WAIT_CEILING_MS"
"""Sets how long the CLI itself waits for background work after a ``result``, in milliseconds."""

_CEILING_MARGIN_SECONDS = 30.0
"""How much longer the CLI waits than the supervisor, so that the supervisor ends the work and can report that."""

_FIXED_ENVIRONMENT = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
}

_NEVER_INHERITED = {
    "CLAUDE_CODE_RETRY_WATCHDOG",  # retries 429 and 529 for ever
    "CLAUDECODE",  # a supervisor started from within Claude Code is no nested session
    "CLAUDE_CODE_ENTRYPOINT",
    "CLAUDE_CODE_SSE_PORT",
}


class Session(msgspec.Struct, frozen=True):
    """
    The conversation that an attempt belongs to.

    Attributes:
        resumes: Continue the session with *session_id* instead of beginning it.
        forks: Begin the session as a copy of this other one.
        prompt: The prompt; None: the task's message.
        as_text: The task's message begins with a slash, but is not meant as a command: a blank is put in front of it.
    """

    session_id: UUID
    resumes: bool = False
    prompt: str | None = None
    as_text: bool = False
    forks: UUID | None = None

    @property
    def has_history(self) -> bool:
        """Whether the session continues a conversation, its own or a copied one."""
        return self.resumes or self.forks is not None


def permission_mode(task: Task) -> str:
    """Return the permission mode that the CLI must report for *task*."""
    mode = task.permission_mode or DEFAULT_PERMISSION_MODE
    return _OLDER_MODE_NAMES.get(mode, mode)


_OTHER_RULES = {"permission_mode", "fork_session", "add_dirs"}
"""Fields whose options are not made by the general rule; the caller of :func:`arguments` adds those of ``add_dirs``."""


def resolve(command: tuple[str, ...], search_path: str | None) -> tuple[str, ...]:
    """
    Find the CLI's executable.

    Raises:
        SpawnFailed: There is no executable of that name.
    """
    found = shutil.which(command[0], path=search_path)
    if found is None:
        exists = shutil.which(command[0], mode=os.F_OK, path=search_path) is not None
        fault = "is not executable" if exists else "was not found"
        raise SpawnFailed(f"the CLI {command[0]} {fault}; set {PREFIX}CLAUDE to its command")
    # Absolute, because the child has another working directory.
    return (os.path.abspath(found), *command[1:])  # noqa: PTH100 - resolving links would change argv[0]


def arguments(
    task: Task, session: Session, *, settings_file: Path, mcp_file: Path | None, agents_file: Path | None = None
) -> tuple[str, ...]:
    """
    Build the CLI's arguments for *task*.

    Every value of the task is in the same word as its flag, so that none can be read as a flag.

    Args:
        agents_file: The file with the task's agents; None: they are passed in the arguments.
    """
    # In two words, because 1.0.128 ignores --settings=FILE (measured); the path is ours.
    words = [*_FIXED_ARGUMENTS, "--settings", str(settings_file)]
    words.append(f"--resume={session.session_id}" if session.resumes else f"--session-id={session.session_id}")
    if session.forks is not None:
        words += [f"--resume={session.forks}", CLI_FLAGS["fork_session"]]
    if task.images and session.prompt is None:
        words.append("--input-format=stream-json")
    mode = permission_mode(task)
    skips = mode == DEFAULT_PERMISSION_MODE
    words.append("--dangerously-skip-permissions" if skips else f"{CLI_FLAGS['permission_mode']}={mode}")
    for field, flag in CLI_FLAGS.items():
        value = getattr(task, field)
        if field in _OTHER_RULES or not (value or (field in _MEANINGFUL_WHEN_EMPTY and value is not None)):
            continue
        if field == "agents" and agents_file is not None:
            words.append(f"{flag}={agents_file}")
        elif value is True:
            words.append(flag)
        elif isinstance(value, dict):
            words.append(f"{flag}={msgspec.json.encode(value).decode()}")
        else:
            words.append(f"{flag}={','.join(value) if isinstance(value, list) else value}")
    if mcp_file is not None:
        words.append(f"--mcp-config={mcp_file}")
    return tuple(words)


def stdin_bytes(task: Task, session: Session) -> bytes:
    """Build the CLI's input: the prompt as it is, or one user frame if there are images."""
    if session.prompt is not None:
        return session.prompt.encode()
    message = f" {task.message}" if session.as_text else task.message
    if not task.images:
        return message.encode()
    content: list[dict[str, object]] = [{"type": "text", "text": message}]
    content += [
        {"type": "image", "source": {"type": "base64", "media_type": image.media_type, "data": image.data}}
        for image in task.images
    ]
    return msgspec.json.encode({"type": "user", "message": {"role": "user", "content": content}}) + b"\n"


def environment(
    inherited: Mapping[str, str],
    *,
    execution_id: str,
    config_dir: Path,
    delivered: Mapping[str, str],
    as_root: bool,
    background_seconds: float | None = None,
    trace: TraceContext | None = None,
    task_variables: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """
    Build the child's environment: the supervisor's without credentials, plus the delivered variables.

    Args:
        delivered: Variables that carry the token.
        background_seconds: The limit of background work after a result; None: the CLI's own limit.
        trace: The trace context that the child continues; None: it inherits the supervisor's variables.
        task_variables: The task's own, which :func:`~agent_runtime.claude.credential_env.check_task_names` accepted.
        as_root: The CLI refuses ``--dangerously-skip-permissions`` as root unless ``IS_SANDBOX=1``.
    """
    env = {
        name: value
        for name, value in without_rivals(inherited).items()
        if not name.startswith(PREFIX) and name not in _NEVER_INHERITED
    }
    env.update(task_variables or {})
    env.update(_FIXED_ENVIRONMENT)
    if as_root:
        env["IS_SANDBOX"] = "1"
    if background_seconds is not None:
        env[BACKGROUND_CEILING_VARIABLE] = str(math.ceil((background_seconds + _CEILING_MARGIN_SECONDS) * 1000))
    env["CLAUDE_CONFIG_DIR"] = str(config_dir)
    env[EXECUTION_ID_VARIABLE] = execution_id
    if trace is not None:
        env.update(trace.variables)
    env.update(delivered)
    return env


def write_settings(
    write: Callable[[str, bytes], Path],
    delivered: Mapping[str, str],
    environ: Mapping[str, str],
    further: Mapping[str, object] | None = None,
) -> Path:
    """
    Write the settings file that prevents every other settings file from choosing the token or the server.

    Args:
        write: Writes a file (name, content) that only the child can read, and returns its path.
        delivered: Variables that carry the token; an API key gets a file of its own.
        environ: As :func:`environment` built it.
        further: Settings to add.
    """
    key = delivered.get(API_KEY_VARIABLE)
    key_file = None if key is None else write("api-key", key.encode() + b"\n")
    settings = neutral_settings(
        environ.get(BASE_URL_VARIABLE), delivered=delivered, inherited=environ, key_file=key_file
    )
    return write("settings.json", msgspec.json.encode(settings | dict(further or {})))


# -- messages that begin with a slash
#
# The CLI may read them as commands, and its own commands never reach the model. Skills and custom commands do reach the
# model, and so does any message with a blank in front.
#
# Source: 1.0.128, 2.0.76, 2.1.30, 2.1.114, 2.1.197, 2.1.330 and 2.1.332 against the stand-in API. None of them reads a
# message with images as a command. To an unknown name they answer "Unknown command", "Unknown skill" or nothing, and
# from 2.1.330 on they ask the model.

_COMMAND = r"/(\S*)(\s+\S)?"

_CHANGING = "autocompact|clear|color|compact|config|effort|fast|heapdump|logout|mcp|model|output-style|rename"
"""
The CLI's own commands that change, or may change, the session, the settings or the disk, even with text behind them.

Source: 2.1.332 run with each of its commands; ``clear`` and ``compact`` in all versions.
"""


def is_bare_command(task: Task) -> bool:
    """Whether the message is only a command word, so that the caller wants the CLI's own answer."""
    match = re.match(_COMMAND, task.message)
    return match is not None and match[2] is None and not task.images


def has_text_after_command(task: Task) -> bool:
    """Whether the message is a command word followed by text, which may be meant for the model."""
    match = re.match(_COMMAND, task.message)
    return match is not None and match[2] is not None and not task.images


def runs_state_changing_command(task: Task, workspace: Path, cwd: Path, config_dir: Path) -> bool:
    """Whether the CLI would take a message with text for the model as one of its own commands that change its state."""
    match = re.match(_COMMAND, task.message)
    if match is None or re.fullmatch(_CHANGING, match[1]) is None or not has_text_after_command(task):
        return False
    added = [workspace / path for path in task.add_dirs or ()]  # heeded since 2.1.114
    places = (config_dir, *(place / ".claude" for place in (cwd, *cwd.parents, *added)))
    # A custom command or skill of that name overrides the CLI's own.
    definitions = (f"commands/{match[1]}.md", f"skills/{match[1]}/SKILL.md")
    return not any((place / definition).exists() for place in places for definition in definitions)
