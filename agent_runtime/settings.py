"""
Every setting: its variable, its flag, its default and what it means, in one table.

A setting is an environment variable ``AGENT_RUNTIME_X_Y`` and a flag ``--x-y`` of ``serve``; the flag wins. Durations
are in seconds. The table of docs/configuration.md is compared with :data:`SETTINGS` by a test.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from agent_runtime.errors import SettingsInvalid
from agent_runtime.setting_slips import is_service_link, masked, not_this

PREFIX = "AGENT_RUNTIME_"
MEBIBYTE = 1024 * 1024

FEWEST_PLACES = 16
"""The limit on open files must leave room for so many connections; else the supervisor does not start."""
PLACES_BEYOND = 64
"""Connections accepted beyond the limit: probes are answered, all others get 409 ``busy``."""
_FILES_KEPT = 96
_FILES_PER_SLOT = 24
"""Open files that are reserved: for the supervisor itself, and for each execution while it starts."""

N = TypeVar("N", int, float)


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    if masked(value) != value:
        raise ValueError("must hold no token: that belongs into the secret file")
    return value.strip()


def _path(value: str) -> Path:
    # Made absolute at once: children have another working directory.
    try:
        return Path(_text(value)).expanduser().absolute()
    except FileNotFoundError:
        raise ValueError("must begin with /, because the current directory was deleted") from None
    except RuntimeError:
        raise ValueError("must not begin with a ~ that names no home directory") from None


def _header(value: str) -> str:
    name = _text(value)
    if not (name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
        raise ValueError("must be the name of a header")
    return name


_MOST_SECONDS = 30 * 86400


def _number(kind: type[N], low: float, high: float, must_be: str, unit: str = "") -> Callable[[str], N]:
    def parse(value: str) -> N:
        try:
            number = kind(value)
        except ValueError:
            raise ValueError(f"must be {must_be}") from None
        if not low <= number <= high:
            raise ValueError(f"must be from {low} to {high}{unit}")
        return number

    return parse


def _integer(low: int, high: int) -> Callable[[str], int]:
    return _number(int, low, high, "a whole number")


_seconds = _number(float, 0, _MOST_SECONDS, "a number of seconds", " seconds")
_cpus = _number(float, 0.01, 4096, "a number of CPUs", " CPUs")


def _some_seconds(value: str) -> float:
    if (number := _seconds(value)) == 0:
        raise ValueError(f"must be more than 0 seconds, and at most {_MOST_SECONDS}")
    return number


def _seconds_or_auto(value: str) -> float | None:
    if value.strip().lower() == "auto":
        return None
    try:
        return _seconds(value)
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from None


def _url(value: str) -> str:
    url = urlsplit(_text(value))
    if not is_http(value) or url.username or url.password:
        raise ValueError("must be an http or https address without a user name")
    return value.strip()


def _boolean(value: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return known[value.strip().lower()]
    except KeyError:
        raise ValueError("must be true or false") from None


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        value = value.lower()
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return value

    return parse


def _command(value: str) -> tuple[str, ...]:
    """Return the path of an existing file as one word, anything else split like a shell command."""
    text = _text(value)
    if os.path.isfile(text):  # noqa: PTH113 - Path.is_file() raises where a directory on the way is closed
        return (text,)
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"cannot be split into words: {error}") from None


_described: list[tuple[Callable[[str], Any], str, str | None, str | None]] = []
"""The arguments of :func:`_setting` for each field of :class:`Settings`, in their order."""


def _setting(
    parse: Callable[[str], Any],
    text: str,
    default: str | None = None,
    *,
    factory: Callable[[], Any] | None = None,
    default_in_words: str | None = None,
) -> Any:
    """
    Declare a field of :class:`Settings`.

    Args:
        parse: Reads the text of the variable or flag.
        text: The line in ``--help`` and docs.
        default: The default as text of the variable; None: there is none, or it depends on the machine.
        factory: Returns a default that depends on the machine.
        default_in_words: Describes such a default.
    """
    _described.append((parse, text, default, default_in_words))
    if factory is not None:
        return msgspec.field(default_factory=factory)
    return msgspec.field(default=None if default is None else parse(default))


def _inherited_config_dir() -> Path:
    try:
        return _path(os.environ.get("CLAUDE_CONFIG_DIR") or "~/.claude")
    except ValueError as error:
        raise SettingsInvalid(f"CLAUDE_CONFIG_DIR: {error}") from None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of the supervisor; :data:`SETTINGS` describes each field."""

    host: str = _setting(_text, "address to listen on; another than loopback needs an access key file", "127.0.0.1")
    port: int = _setting(_integer(0, 65535), "port to listen on; 0 picks a free one", "8000")
    access_key_file: Path | None = _setting(_path, "file with the key callers must send; re-read when it changes")
    access_header: str = _setting(
        _header, "header that may carry the access key instead of Authorization", "X-Agent-Token"
    )
    insecure_no_access_key: bool = _setting(_boolean, "listen beyond loopback without an access key", "false")
    max_connections: int = _setting(
        _integer(1, 100_000),
        "open connections; fewer where the limit on open files leaves no room for executions",
        "1024",
    )
    request_timeout: float = _setting(
        _some_seconds, "how long a request's header may take to arrive; its body gets 1 s more for each 16 KiB", "20"
    )
    peer_timeout: float = _setting(
        _some_seconds, "a connection is closed when its caller has vanished, or has read nothing, for this long", "60"
    )
    body_limit: int = _setting(_integer(4096, 1024 * MEBIBYTE), "longest request body, in bytes", str(16 * MEBIBYTE))
    response_buffer_bytes: int = _setting(
        _integer(MEBIBYTE, 1 << 40),
        "how much may be buffered for the readers of all answers and streams together, in bytes",
        str(64 * MEBIBYTE),
    )
    token_file: Path = _setting(_path, "the secret file; mount its directory", "/run/secrets/claude/token")
    token_withdraw_after: float = _setting(
        _seconds, "a secret file that is gone or bad for this long withdraws the token", "10"
    )
    token_from_env: bool = _setting(
        _boolean,
        "at start, write the environment's token (CLAUDE_CODE_OAUTH_TOKEN, else ANTHROPIC_API_KEY) into the secret "
        "file where there is none",
        "false",
    )
    token_delivery: str = _setting(
        _one_of("auto", "env", "file", "relay"), "how a token reaches a child: auto, env, file or relay", "auto"
    )
    relay_timeout: float = _setting(
        _some_seconds, "how long the API may take to begin an answer, where requests go through the relay", "180"
    )
    config_dir: Path = _setting(
        _path,
        "the children's CLAUDE_CONFIG_DIR; one supervisor at a time",
        factory=_inherited_config_dir,
        default_in_words="the inherited CLAUDE_CONFIG_DIR, else ~/.claude",
    )
    probe: str = _setting(
        _one_of("off", "on_refusal", "on_load", "before_dispatch"),
        "when the API is asked whether the token is good: off, on_refusal, on_load or before_dispatch",
        "on_refusal",
    )
    claude: tuple[str, ...] = _setting(_command, "the CLI's command", "claude")
    workspace: Path = _setting(
        _path, "working directory of the children", factory=Path.cwd, default_in_words="current directory"
    )
    workspaces: str = _setting(
        _one_of("shared", "per_execution"),
        "where a task without cwd works: shared: in the workspace; per_execution: in executions/ID below it",
        "shared",
    )
    retain_workspaces: bool = _setting(
        _boolean, "keep the directories of executions for ever; else they are deleted with their records", "true"
    )
    data_dir: Path | None = _setting(
        _path,
        "records and transcripts; put it on a volume",
        default_in_words="/var/lib/agent-runtime, else the user's state directory",
    )
    slots: int = _setting(_integer(1, 1024), "how many executions run at once", "4")
    queue: int = _setting(_integer(0, 100_000), "how many executions may wait for a slot", "16")
    timeout: float = _setting(_some_seconds, "from admission to the answer: queued, running and parked", "900")
    init_timeout: float = _setting(_seconds, "from spawn to the CLI's init frame; 0 turns it off", "60")
    first_message_timeout: float = _setting(_seconds, "from init to the model's first sign; 0 turns it off", "300")
    idle_timeout: float = _setting(_seconds, "longest silence while no tool call is open; 0 turns it off", "600")
    tool_timeout: float = _setting(_seconds, "longest silence while a tool call is open; 0 turns it off", "1800")
    background_timeout: float = _setting(
        _seconds, "how long work in the background may go on after a result; 0 turns it off", "600"
    )
    stop_grace: float = _setting(_seconds, "from the polite signal to SIGKILL", "3")
    drain_timeout: float = _setting(_seconds, "how long running executions may finish at shutdown", "25")
    park: float | None = _setting(
        _seconds_or_auto,
        "how long an execution may wait for a newer token; auto: the first is answered, the others wait 60 s",
        "auto",
    )
    wait_for_reset: float = _setting(
        _seconds, "how long an execution may wait for the known end of a usage limit that it met", "0"
    )
    max_resumes: int = _setting(_integer(0, 100), "how often an execution may be resumed without a newer token", "3")
    events_url: str | None = _setting(_url, "where events are posted, signed with the access key")
    containment: str = _setting(
        _one_of("auto", "cgroup", "scan"),
        "how the processes of an attempt are ended: cgroup, scan, or auto (the first that works here)",
        "auto",
    )
    child_user: str | None = _setting(_text, "run children as this user")
    confine: str = _setting(
        _one_of("off", "user", "landlock", "auto"),
        "what keeps the secret and the supervisor out of the agent's reach: off, user, landlock or auto",
        "off",
    )
    execution_memory: int | None = _setting(
        _integer(16 * MEBIBYTE, 1 << 50), "how much memory an execution may use, in bytes; needs a cgroup"
    )
    execution_pids: int | None = _setting(
        _integer(8, 1 << 22), "how many processes and threads an execution may have; needs a cgroup"
    )
    execution_cpus: float | None = _setting(_cpus, "how many CPUs' time an execution may use; needs a cgroup")
    frame_limit: int = _setting(_integer(4096, 1024 * MEBIBYTE), "longest frame kept, in bytes", str(16 * MEBIBYTE))
    answer_log_limit: int = _setting(
        _integer(0, 1024 * MEBIBYTE), "how much of the transcript an answer carries, in bytes", str(4 * MEBIBYTE)
    )
    retain_age: float = _setting(_some_seconds, "how long finished executions are kept", str(7 * 86400))
    retain_bytes: int = _setting(
        _integer(1, 1 << 50), "how much finished executions may take on disk, in bytes", str(2048 * MEBIBYTE)
    )
    resume_interrupted: bool = _setting(_boolean, "at start, resume the executions that were interrupted", "false")
    keep_partial: bool = _setting(_boolean, "keep partial messages in the transcript", "false")
    strict: bool = _setting(
        _boolean,
        "unknown fields and parameters of a request are an error; else they are ignored and named",
        "true",
    )
    error_detail: str = _setting(
        _one_of("text", "object"),
        "detail of an error: text, or an object with message, error_code, error_class, metadata and execution_log",
        "text",
    )
    page: bool = _setting(_boolean, "show a page for people at /", "true")
    show_prompts: bool = _setting(
        _boolean, "show the first 200 characters of a message in records and on the page", "true"
    )
    log_format: str = _setting(_one_of("text", "json"), "text or json", "text")
    log_level: str = _setting(_one_of("debug", "info", "warning", "error"), "debug, info, warning or error", "info")
    access_log: bool = _setting(_boolean, "a log line for each request; probes at level debug", "true")

    def __post_init__(self) -> None:
        if not self.is_loopback and self.access_key_file is None and not self.insecure_no_access_key:
            raise SettingsInvalid(
                f"{PREFIX}HOST: {self.host} can be reached from outside, so {PREFIX}ACCESS_KEY_FILE is needed "
                "(--insecure-no-access-key overrides)"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine (or container) can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def places_within(self, open_files: int) -> int:
        """Return how many connections a limit on open files leaves room for beside the executions; may be negative."""
        return open_files - _FILES_KEPT - _FILES_PER_SLOT * self.slots - PLACES_BEYOND


GROUPS = {
    "host": "server",
    "token_file": "token",
    "claude": "tasks",
    "timeout": "time limits",
    "park": "waiting for another token",
    "events_url": "events",
    "containment": "containment",
    "frame_limit": "storage",
    "strict": "answers and page",
    "log_format": "logs",
}
"""The headings of ``serve --help``, each by the first setting under it."""


class Setting(msgspec.Struct, frozen=True):
    """
    One row of the settings table.

    Attributes:
        default: The default as text of the variable; None: there is none, or it depends on the machine.
        shown_default: The default for a person, in words where it depends on the machine; None: there is none.
    """

    name: str
    text: str
    default: str | None
    shown_default: str | None
    parse: Callable[[str], Any]
    is_switch: bool

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """Name of the flag of ``serve``."""
        return "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        """The placeholder of the value in ``--help``: its unit, if it has one."""
        if self.parse in (_seconds, _some_seconds, _seconds_or_auto):
            return "SECONDS"
        if self.parse is _path:
            return "PATH"
        return "BYTES" if "in bytes" in self.text else "VALUE"


_SERVICE_LINK = (
    "; Kubernetes has set it, for a Service of this name: "
    "set enableServiceLinks: false in the pod, or the variable itself"
)

SETTINGS: tuple[Setting, ...] = tuple(
    Setting(name, text, default, default or in_words, parse, is_switch=parse is _boolean)
    for name, (parse, text, default, in_words) in zip(Settings.__struct_fields__, _described, strict=True)
)


def load(environ: Mapping[str, str], flags: Mapping[str, str | None] | None = None) -> Settings:
    """
    Read the settings from the environment and from flags, which win.

    Args:
        environ: Variables; an empty one counts as not set.
        flags: By field name of :class:`Settings`; None counts as not given.

    Raises:
        SettingsInvalid: A value cannot be used; names the variable, or the flag it came from.
    """
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        given = (flags or {}).get(setting.name)
        source, text = (setting.flag, given) if given is not None else (setting.variable, environ.get(setting.variable))
        if not text and given is None:
            continue
        try:
            values[setting.name] = setting.parse(text or "")
        except ValueError as error:
            cause = _SERVICE_LINK if source == setting.variable and is_service_link(source, text or "") else ""
            raise SettingsInvalid(f"{source}: {error}{not_this(text or '')}{cause}") from None
    try:
        return Settings(**values)
    except FileNotFoundError:
        raise SettingsInvalid(f"{PREFIX}WORKSPACE: its default, the current directory, was deleted") from None


def is_http(text: str) -> bool:
    """Whether *text* is an http or https address."""
    try:
        url = urlsplit(text.strip())
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """List variables with our prefix that no setting reads, as a rule misspelt ones."""
    known = {setting.variable for setting in SETTINGS} | OWN_VARIABLES
    return sorted(
        name
        for name, value in environ.items()
        if name.startswith(PREFIX) and name not in known and not is_service_link(name, value)
    )


OWN_VARIABLES = {
    *(PREFIX + name for name in ("EXECUTION_ID", "ATTEMPT_MARK", "URL", "TEST_CLAUDE", "TEST_REQUIRE_CLAUDE")),
    *(PREFIX + name for name in ("TEST_REQUIRE_BROWSER", "TEST_AXE", "TEST_SCREENSHOTS")),
}
"""Variables with our prefix that are no settings: set for children, or read by commands or tests."""
