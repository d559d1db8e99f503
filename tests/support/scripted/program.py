"""The program: it looks for a script in each prompt, and in the session that is resumed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agent_runtime.standins.scripted_cli.main import converse, main
from tests.support.scripted.hostile import HostileSteps
from tests.support.scripted.printing import BadScript
from tests.support.scripted.steps import check, play

if TYPE_CHECKING:
    from agent_runtime.standins.scripted_cli.api import Api
    from agent_runtime.standins.scripted_cli.frames import Frame
    from agent_runtime.standins.scripted_cli.main import Prompt
    from agent_runtime.standins.scripted_cli.runtime import Run

NOTHING_LEFT: Frame = {"script": [{"do": "init"}, {"do": "result", "text": "Nothing left to play."}]}


def answer(run: Run, api: Api, message: Prompt) -> int:
    """Play the script the message holds, or go on with the session's, or behave as the real CLI does."""
    resumed = run.options.resume
    script = script_in(message.text)
    stored, begun = stored_script(run.session_file) if resumed else (None, 0)
    is_new = script is not None and script != stored
    if is_new:
        begun = 0
    elif script is None:
        script = stored
        if script is not None and begun >= len(script["script"]):
            script, begun = NOTHING_LEFT, 0
    if script is None:
        return converse(run, api, message)
    check(script, HostileSteps)
    run.options = run.options._replace(
        permission_mode=script.get("permission_mode", run.options.permission_mode),
        keep_session=run.options.keep_session and script.get("keep_session", True),
    )
    if is_new:
        run.append_to_session(script)
    return play(HostileSteps(run, api, message), script, begun=begun, resumed=resumed)


def script_in(text: str) -> Frame | None:
    """Return the script a prompt holds, if it holds one."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "script" in value else None


def stored_script(session_file: Path) -> tuple[Frame | None, int]:
    """Return the script of a session, and how many of its steps have begun."""
    script, begun = None, 0
    for line in session_file.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the last line of a process that was killed while it wrote
        if "script" in entry:
            script, begun = entry, 0
        elif "played" in entry:
            begun = entry["played"]
    return script, begun


def run() -> None:
    """Run the program."""
    file = os.environ.get("SCRIPTED_CLI_SCRIPT")
    prompt = [Path(file).read_text()] if file else []
    try:
        code = main([*prompt, *sys.argv[1:]], answer)
    except BadScript as wrong:
        sys.stderr.write(f"scripted CLI: {wrong}\n")
        code = 2
    sys.stdout.flush()
    os._exit(code)  # without waiting for processes that a script has left running
