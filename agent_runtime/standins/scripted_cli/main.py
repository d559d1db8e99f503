"""
A stand-in of the ``claude`` binary, for tests on machines without it, or tests that must be fast.

    AGENT_RUNTIME_CLAUDE="python -m agent_runtime.standins.scripted_cli" agent-runtime serve

It takes the real CLI's arguments and behaves as the real one does: it prints ``system/init``, asks
``ANTHROPIC_BASE_URL``, runs the Bash commands that the answer asks for, and prints ``result``. What a run does is
therefore decided by the script of the API, for example of :mod:`agent_runtime.standins.messages_api`.

On SIGINT it ends its tools and exits 0, on SIGTERM 143. ``--resume`` continues a conversation.

Environment: ``SCRIPTED_CLI_VERSION``, the version to play (default 2.1.330; a version before 2.1.30 reads its
credentials file only once, one before 2.1.110 prints nothing on stderr about an unknown session), and
``SCRIPTED_CLI_PAUSE_FACTOR``, by which the pauses between requests are multiplied (default 1).
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agent_runtime.standins.scripted_cli import frames
from agent_runtime.standins.scripted_cli.api import Api, GaveUp
from agent_runtime.standins.scripted_cli.frames import Frame
from agent_runtime.standins.scripted_cli.runtime import Options, Run

NO_INPUT_SECONDS = 3.0
UUID_LENGTH = 36


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FLAGS = _names(
    "-p --print --verbose --debug-to-stderr --include-partial-messages --dangerously-skip-permissions "
    "--allow-dangerously-skip-permissions --strict-mcp-config --fork-session --no-session-persistence "
    "--replay-user-messages --disable-slash-commands --ide --chrome --no-chrome --bare"
)
WITH_VALUE = _names(
    "--output-format --input-format --session-id --resume -r --model --fallback-model --settings --setting-sources "
    "--append-system-prompt --system-prompt --max-turns --permission-mode --permission-prompt-tool --effort "
    "--max-budget-usd --agent --agents --json-schema --debug-file"
)
WITH_VALUES = _names(
    "--allowedTools --allowed-tools --disallowedTools --disallowed-tools --tools --add-dir --betas --mcp-config"
)


class Refusal(Exception):
    """Arguments or input that the real CLI refuses, too; the message is what the real CLI prints on stderr."""


class Prompt(NamedTuple):
    """What the caller asks: the text, and, if there are images, the whole content."""

    text: str
    content: str | list[Frame]


def converse(run: Run, api: Api, message: Prompt) -> int:
    """Answer a prompt by a conversation with the API, and return the exit code."""
    run.init(key_source=api.key_source)
    try:
        text = api.turn(message.content)
    except GaveUp:
        return 1
    run.result(text)
    return 0


def main(arguments: Sequence[str], answer: Callable[[Run, Api, Prompt], int] = converse) -> int:
    """Run the CLI, and return its exit code; *answer* answers each prompt and returns an exit code."""
    version = os.environ.get("SCRIPTED_CLI_VERSION", frames.DEFAULT_VERSION)
    if arguments and arguments[0] in {"-v", "--version"}:
        sys.stdout.write(f"{version} (Claude Code)\n")
        return 0
    if arguments and arguments[0] in {"-h", "--help"}:
        flags = [*sorted(FLAGS), *(f"{name} <value>" for name in sorted(WITH_VALUE | WITH_VALUES))]
        sys.stdout.write("Usage: claude [options] [prompt]\n\nOptions:\n" + "".join(f"  {one}\n" for one in flags))
        return 0
    try:
        options, prompt = parse_arguments(arguments, version)
        run = Run(options, dict(os.environ))
        run.install_signals()
        return serve_prompts(run, prompt, answer)
    except Refusal as refusal:
        sys.stderr.write(f"{refusal}\n")
        return 1


def serve_prompts(run: Run, prompt: str | None, answer: Callable[[Run, Api, Prompt], int]) -> int:
    """Answer the prompt; with ``--input-format stream-json`` answer each prompt that comes on stdin."""
    api = Api(run)
    if run.options.resume and not run.load_session():
        text = f"No conversation found with session ID: {run.options.forks or run.options.session_id}"
        if run.options.version >= frames.SINCE_STDERR_TELLS_OF_SESSIONS:
            sys.stderr.write(f"{text}\n")
        run.emit(frames.result(None, is_error=True, subtype="error_during_execution", errors=[text], num_turns=0))
        return 1
    if not run.options.resume and run.session_file.exists():
        raise Refusal(f"Error: Session ID {run.options.session_id} is already in use.")
    for line in (
        "[init] configureGlobalMTLS complete",
        "[API:request] Creating client",
        "[ToolSearch:optimistic] mode=tst",
    ):
        run.debug(f"{frames.timestamp()} [DEBUG] {line}")
    code = 0
    for message in read_prompts(run, prompt):
        code = answer(run, api, message)
    return code


def read_prompts(run: Run, prompt: str | None) -> Iterator[Prompt]:
    """
    Yield the caller's prompts, from the arguments or from stdin.

    Source: 2.1.330 waits 3 s for the first byte and then goes on without any input.
    """
    if run.options.stream_input:
        for line in sys.stdin.buffer:
            frame = json.loads(line)
            if frame.get("type") == "user":
                content = frame["message"]["content"]
                yield Prompt(_plain_text(content), content)
    else:
        if prompt is None:
            if not select.select([0], [], [], NO_INPUT_SECONDS)[0]:
                sys.stderr.write("Warning: no stdin data received in 3s, proceeding without it.\n")
                prompt = ""
            else:
                prompt = sys.stdin.buffer.read().decode(errors="replace").rstrip("\n")
        if not prompt:
            raise Refusal(
                "Error: Input must be provided either through stdin or as a prompt argument when using --print"
            )
        yield Prompt(prompt, prompt)


def _plain_text(content: str | list[Frame]) -> str:
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content if block["type"] == "text")


def parse_arguments(arguments: Sequence[str], version: str) -> tuple[Options, str | None]:
    """
    Read the real CLI's arguments.

    Raises:
        Refusal: The real CLI exits with 1 and the same message.
    """
    given: dict[str, Any] = {}
    prompt: str | None = None
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        name, has_value, value = name.partition("=") if name.startswith("--") else (name, "", "")
        if name in WITH_VALUE:
            if not has_value:
                if not rest:
                    raise Refusal(f"error: option '{name}' argument missing")
                value = rest.pop(0)
            given[name] = value
        elif name in WITH_VALUES:
            while rest and not rest[0].startswith("-"):
                rest.pop(0)
        elif name in FLAGS:
            given[name] = True
        elif name.startswith("-"):
            raise Refusal(f"error: unknown option '{name}'")
        else:
            prompt = name
    if given.get("--output-format") == "stream-json" and "--verbose" not in given:
        raise Refusal("Error: When using --print, --output-format=stream-json requires --verbose")
    bypass = "--dangerously-skip-permissions" in given
    if bypass and os.geteuid() == 0 and not os.environ.get("IS_SANDBOX"):
        raise Refusal("--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons")
    resume = given.get("--resume", given.get("-r"))
    forks = resume if "--fork-session" in given else None
    session_id = (None if forks else resume) or given.get("--session-id") or frames.new_uuid()
    if len(session_id) != UUID_LENGTH or session_id.count("-") != 4 or session_id != Path(session_id).name:
        raise Refusal("Error: Invalid session ID. Must be a valid UUID.")
    options = Options(
        version_text=version,
        session_id=session_id,
        resume=resume is not None,
        forks=forks,
        model=given.get("--model"),
        permission_mode="bypassPermissions" if bypass else given.get("--permission-mode", "default"),
        max_turns=int(given["--max-turns"]) if "--max-turns" in given else None,
        system_prompt=given.get("--append-system-prompt") or given.get("--system-prompt"),
        stream_input=given.get("--input-format") == "stream-json",
        partial_messages="--include-partial-messages" in given,
        debug_stderr="--debug-to-stderr" in given,
        keep_session="--no-session-persistence" not in given,
    )
    return options, prompt
