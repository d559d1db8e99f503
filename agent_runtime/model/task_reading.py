"""Read a task from the body of a request, and check it."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Any

import msgspec

from agent_runtime.errors import InvalidRequest, is_reserved
from agent_runtime.model import mcp_config
from agent_runtime.model.task import IMAGE_TYPES, LABEL_VALUE_LENGTH, TITLE_LENGTH, Task
from agent_runtime.setting_slips import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ARGUMENT_LIMIT_BYTES = 120_000
"""
The system prompt, and each list of tools, is one argument of the CLI, and Linux takes 128 KiB an argument.

Source: MAX_ARG_STRLEN in https://man7.org/linux/man-pages/man2/execve.2.html
"""

PATH_LIMITS = "at most 100 parts of 255 bytes each, and 3000 bytes altogether"
"""Of a path below the workspace; Linux takes 4096 bytes with the workspace's own."""

ENV_LIMIT_BYTES = 512 * 1024
"""All variables of a task; Linux takes 2 MiB for them and the arguments, as a rule."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]{0,255}")

RESERVED_IDS = {"running"}
"""Ids that would stand in the way of a path of the HTTP interface."""

_FIELD_IN_MESSAGE = re.compile(r"`\$\.([A-Za-z_]{1,40})|required field `([A-Za-z_]{1,40})`")

_IN_WORDS = {
    "execution_id": "must be letters, digits and . _ : -, at most 128, and not begin with . or :",
    "model": "must begin with a letter or digit and hold no blanks",
    "system_prompt": "must hold no NUL",
    "allowed_tools": "must hold no control characters",
    "disallowed_tools": "must hold no control characters",
    "title": "must hold more than blanks, and no control characters",
    "labels": "names must be 1 to 63 of a-z, 0-9, _ . and -",
}
"""The patterns in words, for error texts."""

_TYPES = {"`str": "`string", "`int": "`integer", "`float": "`number", "`bool": "`boolean", " | null`": "` or null"}
"""msgspec's words for types, and those of JSON."""

_INTEGERS = ("max_turns",)
"""Fields of whole numbers, which may be written with a fraction of zero: 3.0 is an integer in JSON Schema."""


def parse(body: bytes, *, strict: bool, redact: Callable[[str], str] = str) -> tuple[Task, list[str]]:
    """
    Read a task from a request's body.

    Args:
        redact: Takes tokens out of names of unknown fields, title and labels.

    Returns:
        The task, and the names of the fields that nothing reads.

    Raises:
        InvalidRequest: The body is no JSON object or a field cannot be used; the message names the field, and never
            repeats what was sent.
    """
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the body is not JSON; send an object with a message") from None
    if not isinstance(raw, dict):
        raise InvalidRequest("the body must be a JSON object with a message")
    ignored = unread(raw, Task.__struct_fields__, strict=strict, redact=redact)
    _check_lengths(raw)
    _check_places(raw)
    for name in _INTEGERS:
        if isinstance(number := raw.get(name), float) and number.is_integer():
            raw[name] = int(number)
    try:
        task = msgspec.convert(raw, Task)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_plain(str(error))) from None
    _check(task)
    return _without_tokens(task, redact), ignored


def unread(
    sent: Iterable[str], known: Sequence[str], *, strict: bool, redact: Callable[[str], str], what: str = "fields"
) -> list[str]:
    """
    Return the names in a request that are not among the known ones.

    Args:
        what: Is named so.

    Raises:
        InvalidRequest: There are some, and requests are read strictly.
    """
    ignored = [_shown(redact(name)) for name in sorted(name for name in sent if name not in known)[:20]]
    if ignored and strict:
        names = ", ".join(name + did_you_mean(name, known) for name in ignored[:10])
        raise InvalidRequest(f"unknown {what}: {names}; leave them out")
    return ignored


def _check_lengths(raw: dict[str, Any]) -> None:
    """Check what becomes one argument of the CLI, before patterns are applied in a call that holds the interpreter."""
    for name in ("system_prompt", "allowed_tools", "disallowed_tools"):
        given = raw.get(name)
        words = given if isinstance(given, list) else [given]
        text = ",".join(word for word in words if isinstance(word, str))
        if len(text.encode(errors="replace")) > ARGUMENT_LIMIT_BYTES:
            raise InvalidRequest(f"{name}: must not be longer than {ARGUMENT_LIMIT_BYTES} bytes altogether")


def _check(task: Task) -> None:
    if task.execution_id in RESERVED_IDS:
        raise InvalidRequest(f"execution_id: must not be one of {', '.join(sorted(RESERVED_IDS))}")
    if task.fresh_session and task.resume_session_id is not None:
        raise InvalidRequest("fresh_session: must not be true where resume_session_id names a session")
    if not task.message.strip():
        raise InvalidRequest("message: must hold more than blanks")  # which the CLI refuses, too
    if task.title is not None and not task.title.strip():
        raise InvalidRequest(f"title: {_IN_WORDS['title']}")
    for text, name in ((task.message, "message"), (task.system_prompt or "", "system_prompt")):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"{name}: holds a lone surrogate, which is no Unicode text") from None
    if task.mcp_config is not None and (reason := mcp_config.refused_by_all(task.mcp_config)) is not None:
        raise InvalidRequest(f"mcp_config: {reason}")
    for image in task.images or ():
        if image.media_type not in IMAGE_TYPES:
            raise InvalidRequest(f"images: media_type must be one of {', '.join(IMAGE_TYPES)}")
        try:
            base64.b64decode(image.data, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest("images: data must be base64") from None


def _without_tokens(task: Task, redact: Callable[[str], str]) -> Task:
    """Take tokens out of title and labels, which are shown as they are; both stay short enough to be read again."""
    if any(redact(name) != name for name in task.labels or ()):
        raise InvalidRequest("labels: names must hold no token")
    title = redact(task.title)[:TITLE_LENGTH] if task.title else None
    labels = task.labels and {name: redact(value)[:LABEL_VALUE_LENGTH] for name, value in task.labels.items()}
    is_clean = (title, labels) == (task.title, task.labels)
    return task if is_clean else msgspec.structs.replace(task, title=title, labels=labels)


def _check_places(raw: dict[str, Any]) -> None:
    """Say more clearly than a pattern what is wrong with a path or a variable."""
    added = raw.get("add_dirs")
    named = [("cwd", raw.get("cwd")), *(("add_dirs", path) for path in (added if isinstance(added, list) else ()))]
    for field, path in named:
        if isinstance(path, str) and (reason := _unfit_path(path)) is not None:
            raise InvalidRequest(f"{field}: {reason}")
    env = raw.get("env")
    size_bytes = 0
    for name, value in env.items() if isinstance(env, dict) else ():
        if _VARIABLE.fullmatch(name) is None:
            raise InvalidRequest("env: a name must be letters, digits and _, at most 256, and not begin with a digit")
        if not isinstance(value, str):
            raise InvalidRequest(f"env: the value of {_shown(name)} must be a string")
        if (reason := _unfit_value(value)) is not None:
            raise InvalidRequest(f"env: the value of {_shown(name)} {reason}")
        size_bytes += len(name) + len(value.encode())
    if size_bytes > ENV_LIMIT_BYTES:
        raise InvalidRequest(f"env: must not be longer than {ENV_LIMIT_BYTES} bytes altogether")


def _unfit_path(path: str) -> str | None:
    """Return why a path cannot be one of a directory below the workspace; None: it can."""
    parts = path.encode().split(b"/")
    if path.startswith("/"):
        return "must be relative to the workspace, and not begin with /"
    if b"" in parts:
        return "must not be empty, hold // or end with /"
    if b"." in parts or b".." in parts:
        return "must have no part that is . or .."
    if _CONTROL.search(path):
        return "must hold no control characters"
    if len(parts) > 100 or max(map(len, parts)) > 255 or sum(map(len, parts)) + len(parts) > 3001:
        return f"must have {PATH_LIMITS}"
    return None


def _unfit_value(value: str) -> str | None:
    if "\0" in value:
        return "must hold no NUL"
    is_long = len(value.encode()) > ARGUMENT_LIMIT_BYTES
    return f"must not be longer than {ARGUMENT_LIMIT_BYTES} bytes" if is_long else None


def _plain(message: str) -> str:
    """Put the field's name in front of msgspec's message, which names types and rules but never values."""
    found = _FIELD_IN_MESSAGE.search(message)
    name = found[1] or found[2] if found else None
    reason = message.split(" - at ", 1)[0]
    if "matching regex" in reason and name in _IN_WORDS:
        reason = _IN_WORDS[name]
    if "unknown field" in reason:
        reason = "holds a field that is not known"  # whose name is the caller's, and not for an error text
    if "missing required field" in reason:
        reason = "is missing"
    for python, words in _TYPES.items():
        reason = reason.replace(python, words)
    return f"{name}: {reason[:1].lower()}{reason[1:]}" if name else reason


def _shown(name: str) -> str:
    """Quote a caller's field name, unless it holds a reserved word."""
    is_fit = name.isprintable() and not is_reserved(name)
    return name[:64] if is_fit else "(not shown)"
