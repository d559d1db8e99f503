"""
Find the parts of a repository's configuration that would send out a token from the child's environment.

The CLI replaces ``${NAME}`` in the ``.mcp.json`` entry of a server and in the headers of an HTTP hook; see
:func:`restrictions_for`. This does not protect from code: a server or a hook that is a command has the variable anyway.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection
from pathlib import Path

from agent_runtime.files import read_file

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 20

_NESTED = r"\$\{[^}]*[${]"
"""``${A:-$}{B}`` is another name after one replacement, and 2.1.197 makes two (measured)."""


def restrictions_for(cwd: Path, names: Collection[str]) -> tuple[dict[str, object], tuple[str, ...]]:
    """
    Find servers and hooks that use one of the variables *names*; return CLI settings and arguments that turn them off.

    Servers are turned off one by one. If a file cannot be judged (no regular file, too large, nested too deep), every
    server is turned off except the task's own. A file that is not JSON is skipped, because the CLI ignores it too. If
    one hook uses a variable, all hooks are turned off: a list of allowed variables in our settings would be merged with
    the repository's own list.

    Source: measured on 2.0.76, 2.1.30, 2.1.114, 2.1.197 and 2.1.332, which read ``.mcp.json`` of every parent, too;
    2.1.114 alone gives the token to hooks. 2.1.330 and 2.1.332 also read ``settings.local.json`` of the git repository
    that *cwd* is in. No version reads either file of a directory that is given with ``--add-dir``.
    """
    if not names:
        return {}, ()
    settings: dict[str, object] = {}
    arguments: tuple[str, ...] = ()
    directory = cwd.resolve()
    servers: set[str] = set()
    for file in _server_files(directory):
        try:
            servers |= _servers(_section(file, "mcpServers"), names)
        except (OSError, ValueError, RecursionError) as error:
            log.warning("%s cannot be judged (%s): no MCP server but the task's is started", file, type(error).__name__)
            arguments = ("--strict-mcp-config",)
    if servers:
        log.warning("MCP servers %r are left out: .mcp.json gives them the token's variable", sorted(servers))
        settings["disabledMcpjsonServers"] = sorted(servers)
    for file in _settings_files(directory):
        try:
            hooks = json.dumps(_section(file, "hooks"))
        except (OSError, ValueError, RecursionError) as error:
            log.warning("%s cannot be judged (%s): hooks are turned off", file, type(error).__name__)
        else:
            if not any(f'"{name}"' in hooks for name in names):
                continue
            log.warning("hooks are turned off: %s gives one the token's variable", file)
        settings["disableAllHooks"] = True
    return settings, arguments


def starts_without_shell(cwd: Path, config_dir: Path) -> bool:
    """
    Whether a configuration file makes the CLI start a program directly, not by the prefix for shell commands.

    Such a program gets the CLI's whole environment. Hooks with ``args`` are started directly, and so is the program
    that makes the headers for an MCP server. A file that cannot be judged counts as well.

    Source: measured on 2.1.114, 2.1.197 and 2.1.332.
    """
    directory = cwd.resolve()
    try:
        hooks = [_section(file, "hooks") for file in (*_settings_files(directory), config_dir / "settings.json")]
        servers = [_section(file, "mcpServers") for file in (*_server_files(directory), config_dir / ".claude.json")]
        return '"args":' in json.dumps(hooks) or '"headersHelper":' in json.dumps(servers)
    except (OSError, ValueError, RecursionError):
        return True


def _server_files(directory: Path) -> list[Path]:
    return [Path(file) for place in _upwards(directory) if _may_exist(file := f"{place}/.mcp.json")]


def _settings_files(directory: Path) -> list[Path]:
    local = (f"{place}/.claude/settings.local.json" for place in _upwards(directory))
    return [Path(file) for file in (f"{directory}/.claude/settings.json", *local) if _may_exist(file)]


def _upwards(directory: Path) -> list[str]:
    """Return the paths of a directory and its parents, without the last slash; text, because no file is the rule."""
    parts = str(directory).rstrip("/").split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _may_exist(file: str) -> bool:
    try:
        os.lstat(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # :func:`_section` judges that
    return True


def _servers(section: dict[str, object], names: Collection[str]) -> set[str]:
    found = set()
    for server, config in section.items():
        text = json.dumps(config)
        if re.search(_NESTED, text) or any(name in text for name in names):
            server.encode()  # raises for a lone surrogate, which cannot be passed to the CLI
            found.add(server)
    return found


def read_settings(file: Path) -> dict[str, object]:
    """
    Read a JSON object from a file of the CLI's configuration as the CLI does; empty: there is none.

    Raises:
        OSError, ValueError, RecursionError: We cannot read the file, but the CLI may be able to.
    """
    try:
        content = read_file(file, limit_bytes=_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        # Numbers stay text, because int() refuses those of many digits, which the CLI takes.
        whole = json.loads(content.decode("utf-8-sig", "replace"), parse_int=str, parse_float=str)
    except json.JSONDecodeError:
        return {}
    return whole if isinstance(whole, dict) else {}


def _section(file: Path, key: str) -> dict[str, object]:
    """Read the object *key* of a file as :func:`read_settings` does, with the same errors; empty: there is none."""
    section = read_settings(file).get(key)
    return section if isinstance(section, dict) else {}
