"""
A scripted stand-in of the ``claude`` binary, for what the real one cannot be made to do and where speed matters.

    AGENT_RUNTIME_CLAUDE="python -m agent_runtime.standins.scripted_cli" agent-runtime serve

It takes the real CLI's arguments. A plain prompt is treated as the real CLI treats it: ``system/init``, a request to
``ANTHROPIC_BASE_URL``, the Bash commands the answer asks for, ``result``. A prompt that is a JSON object with a key
``script`` is played instead: ``{"script": [{"do": "init"}, {"do": "assistant", "text": "Hello."}, {"do": "result"}]}``.
Further keys: ``permission_mode`` (what init says), ``keep_session`` (false: a resume finds no conversation),
``exit_code``.

==============  ==================================================================  ====================================
step            fields (with their defaults)                                        does
==============  ==================================================================  ====================================
``init``        ``fields`` {}                                                       prints ``system/init``
``frame``       ``frame``                                                           prints it, with session id and UUID
``assistant``   ``text``, ``usage`` {}                                              prints a model's text
``partial``     ``text``                                                            prints a ``stream_event``
``tool_use``    ``command``, ``name`` Bash, ``id``                                  prints it, runs nothing
``tool_result`` ``content``, ``is_error`` false, ``id``                             prints it, ran nothing
``result``      ``text`` Done., ``is_error`` false, ``fields`` {}                   prints ``result``, goes on
``retry``       ``status``, ``error``, ``attempt`` 1, ``delay_seconds`` 0.5         prints ``api_retry``
``give_up``     ``text``, ``error``, ``status``, ``kind``                           prints synthetic assistant + result
``rate_limit``  ``status``, ``limit_type``, ``resets_at``                           prints ``rate_limit_event``
``background``  ``tasks`` (names of the pending ones)                               prints ``background_tasks_changed``
``write``       ``text`` or ``base64``, ``stream`` stdout, ``newline`` true,        prints bytes, in one write or cut at
                ``cuts`` [], ``byte_by_byte`` false, ``pause_seconds`` 0            offsets, with a pause after each
``api_error``   ``status`` 401, ``kind``, ``message``, ``attempt`` 1, ``error``,    prints the CLI's exact line on
                ``frame`` true                                                      stderr, and ``api_retry``
``request``     ``prompt`` "Go on.", ``result`` false                               one turn with the API, tools too
``tool``        ``command``, ``timeout_seconds`` 120, ``frames`` true               runs it as the Bash tool does
``sleep``       ``seconds``                                                         waits
``hang``        ``seconds`` 120                                                     waits
``wait_file``   ``path``, ``timeout_seconds`` 120                                   waits until it exists
``exit``        ``code`` 0                                                          leaves at once
``kill``        ``signal`` SIGKILL                                                  dies of it
``touch``       ``path``, ``text`` "ready {pid}"                                    appends a line
``report``      ``path``                                                            writes what it was given: argv,
                                                                                    environment, token's fingerprint, …
==============  ==================================================================  ====================================

Any step may have ``when`` (``first``: not in a resumed process, ``resumed``: only there) and ``times``.

On SIGINT it ends its tools and exits 0, on SIGTERM 143. ``--resume`` goes on with the session's first step that has not
begun (a ``request`` is repeated unless it was answered), or, with a new script as prompt, with that. A script that is
wrong is told on stderr and exits 2.

Environment: ``SCRIPTED_CLI_VERSION`` (which version to play, 2.1.330), ``SCRIPTED_CLI_SCRIPT`` (a file with the script;
stdin is then never read), ``SCRIPTED_CLI_PAUSE_FACTOR`` (of the pauses between attempts, 1).
"""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_runtime.standins.scripted_cli import frames
from agent_runtime.standins.scripted_cli.api import Api, GaveUp, load_settings
from agent_runtime.standins.scripted_cli.printing import BadScript, Message
from agent_runtime.standins.scripted_cli.runtime import Options, Run
from agent_runtime.standins.scripted_cli.steps import Steps, check, play

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent_runtime.standins.scripted_cli.frames import Frame

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
    """Arguments or input the real CLI does not take either; the message is what it says on stderr."""


def main(arguments: Sequence[str], steps: type[Steps] = Steps) -> int:
    """Run the scripted CLI, which knows the steps of *steps*, and return its exit code."""
    version = os.environ.get("SCRIPTED_CLI_VERSION", frames.DEFAULT_VERSION)
    if arguments and arguments[0] in {"-v", "--version"}:
        sys.stdout.write(f"{version} (Claude Code)\n")
        return 0
    try:
        options, prompt = parse_arguments(arguments, version)
        run = Run(options, dict(os.environ))
        run.install_signals()
        return serve_prompts(run, prompt, steps)
    except Refusal as refusal:
        sys.stderr.write(f"{refusal}\n")
        return 1
    except BadScript as wrong:
        sys.stderr.write(f"scripted CLI: {wrong}\n")
        return 2


def serve_prompts(run: Run, prompt: str | None, steps: type[Steps]) -> int:
    """Answer the prompt, or with ``--input-format stream-json`` each that comes on stdin."""
    key_helper = load_settings(run.options, run.environment)
    api = Api(run, key_helper)
    if run.options.resume and not run.load_session():
        text = f"No conversation found with session ID: {run.options.session_id}"
        if run.options.version >= frames.SINCE_API_ERROR_STATUS:
            sys.stderr.write(f"{text}\n")
        run.emit(
            frames.result(
                run.options.version, None, is_error=True, subtype="error_during_execution", errors=[text], num_turns=0
            )
        )
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
    for message in read_messages(run, prompt):
        code = answer(run, api, message, steps)
    return code


def answer(run: Run, api: Api, message: Message, steps: type[Steps]) -> int:
    """Play the script the message holds, or go on with the session's, or behave as the real CLI does."""
    script = script_in(message.text)
    if script is not None:
        check(script, steps)
        if script != run.script:
            run.played = 0
            if script.get("keep_session", True):
                run.keep(script)
        return play(steps(run, api, message), run, script, resumed=run.options.resume)
    if run.script is not None:
        rest = run.played < len(run.script["script"])
        script = run.script if rest else {"script": [{"do": "init"}, {"do": "result", "text": "Nothing left to play."}]}
        run.played = run.played if rest else 0
        return play(steps(run, api, message), run, script, resumed=True)
    run.init(key_source=api.key_source)
    try:
        text = api.turn(message.content)
    except GaveUp:
        return 1
    run.result(text)
    return 0


def script_in(text: str) -> Frame | None:
    """Return the script a prompt holds, if it holds one."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "script" in value else None


def read_messages(run: Run, prompt: str | None) -> Iterator[Message]:
    """
    Yield what the caller asks, from the arguments, from ``SCRIPTED_CLI_SCRIPT`` or from stdin.

    Source: 2.1.330 waits 3 s for the first byte and then goes on without any input.
    """
    script_file = run.environment.get("SCRIPTED_CLI_SCRIPT")
    if script_file:
        text = Path(script_file).read_text()
        yield Message(text, text)
    elif run.options.stream_input:
        for line in sys.stdin.buffer:
            frame = json.loads(line)
            if frame.get("type") == "user":
                content = frame["message"]["content"]
                yield Message(_text_of(content), content)
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
        yield Message(prompt, prompt)


def _text_of(content: str | list[Frame]) -> str:
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content if block["type"] == "text")


def parse_arguments(arguments: Sequence[str], version: str) -> tuple[Options, str | None]:
    """
    Read the real CLI's arguments.

    Raises:
        Refusal: The real CLI exits with 1 and the same words.
    """
    given: dict[str, Any] = {}
    settings: list[str] = []
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
            if name == "--settings":
                settings.append(value)
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
    session_id = resume or given.get("--session-id") or frames.new_uuid()
    if len(session_id) != UUID_LENGTH or session_id.count("-") != 4 or session_id != Path(session_id).name:
        raise Refusal("Error: Invalid session ID. Must be a valid UUID.")
    options = Options(
        version_text=version,
        session_id=session_id,
        resume=resume is not None,
        model=given.get("--model"),
        permission_mode="bypassPermissions" if bypass else given.get("--permission-mode", "default"),
        max_turns=int(given["--max-turns"]) if "--max-turns" in given else None,
        system_prompt=given.get("--append-system-prompt") or given.get("--system-prompt"),
        settings=tuple(settings),
        stream_input=given.get("--input-format") == "stream-json",
        partial_messages="--include-partial-messages" in given,
        debug_stderr="--debug-to-stderr" in given,
        keep_session="--no-session-persistence" not in given,
    )
    return options, prompt


def run(steps: type[Steps] = Steps) -> None:
    """Be the program."""
    code = main(sys.argv[1:], steps)
    sys.stdout.flush()
    os._exit(code)  # what a script has left running is not waited for


if __name__ == "__main__":
    run()
