"""A CLI that sends the first token it was ever given, and writes the present one down in the data directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from agent_runtime.standins.scripted_cli.main import main

NAME = "CLAUDE_CODE_OAUTH_TOKEN"

if NAME in os.environ:  # not so for --version
    kept = Path(os.environ["HOME"], "first")
    if not kept.exists():
        kept.write_text(os.environ[NAME])
    os.environ[NAME] = kept.read_text()
    given = Path(sys.argv[sys.argv.index("--settings") + 1])
    given.parents[2].joinpath("note").write_text(f"I was given {os.environ[NAME]}")
sys.exit(main(sys.argv[1:]))
