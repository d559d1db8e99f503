"""
The forms that the CLI accepts as ``--mcp-config``.

Source: measured on 1.0.128, 2.0.76, 2.1.30, 2.1.197 and 2.1.332. All of them exit with "Invalid MCP configuration" if
there is no object ``mcpServers``; 2.1.30 does so silently and with exit code 0. At a wrong entry, versions up to 2.1.30
exit; later ones leave that server out and go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SERVERS = "mcpServers"

_NEEDED = {
    "stdio": "command",
    "sse": "url",
    "http": "url",
    "ws": "url",
    "sse-ide": "url",
    "ws-ide": "url",
    "sdk": "name",
}
"""The field that a server of each type must have, a non-empty string; without a type a server is ``stdio``."""


def refused_by_all(config: Mapping[str, Any]) -> str | None:
    """Return why no version of the CLI accepts *config*; None: versions after 2.1.30 accept it."""
    if SERVERS not in config:
        return f"must hold the servers by their names under the key {SERVERS}"
    if not isinstance(config[SERVERS], dict):
        return f"{SERVERS} must be an object, with the servers by their names"
    return None


def refused_by_some(config: Mapping[str, Any]) -> str | None:
    """Return why versions up to 2.1.30 end at once with *config*, which has ``mcpServers``; None: they do not."""
    for server in config[SERVERS].values():
        if not isinstance(server, dict):
            return "a server is no object"
        kind = server.get("type", "stdio")
        needed = _NEEDED.get(kind) if isinstance(kind, str) else None
        if needed is None:
            return f"a server's type is none of {', '.join(_NEEDED)}"
        if not isinstance(server.get(needed), str) or not server[needed]:
            return f"a server of type {kind} has no {needed}"
        if not _are_texts(server.get("args", []), list):
            return "a server's args are no list of texts"
        if not all(_are_texts(server.get(name, {}), dict) for name in ("env", "headers")):
            return "a server's env or headers are no object of texts"
    return None


def _are_texts(value: Any, kind: type[list[Any] | dict[str, Any]]) -> bool:
    if not isinstance(value, kind):
        return False
    return all(isinstance(text, str) for text in (value.values() if isinstance(value, dict) else value))
