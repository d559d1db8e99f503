"""
A program, run as a tool of an agent, that looks for tokens; it imports nothing of this package.

``python -I token_search.py RESULT`` looks at the processes of its own execution (environment and arguments), at the
files below the CLI's configuration directory and beside its ``--settings`` file. It asks the CLI's API for an API key,
with the CLI's own credential. It writes a JSON object to RESULT: ``found`` (fingerprints of all that looks like a
token), ``processes`` and ``files`` (how many were searched), ``minted`` (the HTTP status of the answer to the request
for a key; null: no answer).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import sys
import urllib.request
from pathlib import Path

EXECUTION_ID = "AGENT_RUNTIME_EXECUTION_ID"
MINTING_PATH = "/api/oauth/claude_cli/create_api_key"
"""The API's path that makes an API key for an OAuth token. Source: Claude Code 2.1.332 has this path."""

MOST_BYTES = 8 * 1024 * 1024
TIMEOUT_SECONDS = 10.0
_TOKEN = re.compile(rb"sk-ant-[A-Za-z0-9_-]{8,}")


def _read(path: Path) -> bytes:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(MOST_BYTES)
    return b""


def _own_processes() -> list[tuple[list[str], list[str]]]:
    """Return environment and arguments of each process that carries this execution's id."""
    mark = f"{EXECUTION_ID}={os.environ[EXECUTION_ID]}"
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        environ = os.fsdecode(_read(process / "environ")).split("\0")
        if mark in environ:
            found.append((environ, os.fsdecode(_read(process / "cmdline")).split("\0")))
    return found


def _ask_for_a_key(environ: dict[str, str]) -> int | None:
    base_url = environ.get("ANTHROPIC_BASE_URL", "")
    credential = environ.get("CLAUDE_CODE_OAUTH_TOKEN") or environ.get("ANTHROPIC_API_KEY") or ""
    headers = {"Authorization": f"Bearer {credential}", "x-api-key": credential}
    asked = urllib.request.Request(f"{base_url}{MINTING_PATH}", b"{}", headers, method="POST")  # noqa: S310 - loopback
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=TIMEOUT_SECONDS) as got:
            return int(got.status)
    except OSError as error:
        return getattr(error, "code", None)  # the status, if the error is an HTTP answer


def main(result: Path) -> None:
    """Search everything, and write the result to the file *result*."""
    texts: list[bytes] = []
    directories: set[Path] = set()
    variables: dict[str, str] = {}
    for environ, arguments in _own_processes():
        texts.append(os.fsencode("\0".join([*environ, *arguments])))
        variables |= dict(entry.split("=", 1) for entry in environ if "=" in entry)
        directories |= {Path(value).parent for flag, value in itertools.pairwise(arguments) if flag == "--settings"}
    processes = len(texts)
    directories.add(Path(variables.get("CLAUDE_CONFIG_DIR", "~/.claude")).expanduser())
    texts += [_read(path) for directory in directories for path in directory.rglob("*") if path.is_file()]
    secrets = {secret for text in texts for secret in _TOKEN.findall(text)}
    found = {
        "found": sorted(hashlib.sha256(secret).hexdigest()[:12] for secret in secrets),
        "processes": processes,
        "files": len(texts) - processes,
        "minted": _ask_for_a_key(variables),
    }
    result.write_text(json.dumps(found))
    sys.stdout.write(f"looked at {len(texts)} processes and files, found {len(secrets)} tokens\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
