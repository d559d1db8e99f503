"""Read a task from the body of a request, and check it."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import msgspec

from agent_runtime.errors import InvalidRequest, is_reserved
from agent_runtime.model import mcp_config
from agent_runtime.model.task import (
    LABEL_VALUE_LENGTH,
    TITLE_LENGTH,
    Effort,
    ImageType,
    PermissionMode,
    SettingSource,
    Task,
)
from agent_runtime.setting_slips import did_you_mean

ARGUMENT_LIMIT_BYTES = 120_000
"""
The longest value of a field of ``_ARGUMENTS``: each is one argument of the CLI, and Linux takes 128 KiB an argument.

Source: MAX_ARG_STRLEN in https://man7.org/linux/man-pages/man2/execve.2.html
"""

PATH_LIMITS = "at most 100 parts of 255 bytes each, and 3000 bytes altogether"
"""The limits of a path below the workspace, for messages; Linux takes 4096 bytes, with the workspace's own path."""

ENV_LIMIT_BYTES = 512 * 1024
"""The limit for all variables of a task; Linux takes 2 MiB for variables and arguments, as a rule."""

_CONTROL = r"[\x00-\x1f\x7f]"
_VARIABLE = "[A-Za-z_][A-Za-z0-9_]{0,255}"
_ARGUMENTS = (
    *("system_prompt", "append_system_prompt", "replace_system_prompt", "allowed_tools", "disallowed_tools", "tools"),
    *("json_schema", "agents"),
)

RESERVED_IDS = {"running"}
"""Ids that would collide with a path of the HTTP interface."""

_FIELD_IN_MESSAGE = r".*`\$\.([A-Za-z_]{1,40})|.*required field `([A-Za-z_]{1,40})`"
"""The first part of the path in a message of msgspec; without a path, the field that is missing."""

_IN_WORDS = {
    "execution_id": "must be letters, digits and . _ : -, at most 128, and not begin with . or :",
    "model": "must begin with a letter or digit and hold no blanks",
    **dict.fromkeys(("system_prompt", "append_system_prompt", "replace_system_prompt"), "must hold no NUL"),
    "fallback_model": "each name must begin with a letter or digit and hold no blanks",
    "tools": "must be names of built-in tools: letters, digits, _ and -",
    "agents": "names must begin with a letter, a digit or _, and hold no blanks and no commas",
    "agent": "must begin with a letter, a digit or _, and hold no blanks and no commas",
    "effort": f"must be one of {', '.join(get_args(Effort))}",
    "permission_mode": f"must be one of {', '.join(get_args(PermissionMode))}",
    "setting_sources": f"must be some of {', '.join(get_args(SettingSource))}",
    **dict.fromkeys(("allowed_tools", "disallowed_tools"), "must hold no control characters"),
    "title": "must hold more than blanks, and no control characters",
    "images": f"media_type must be one of {', '.join(get_args(ImageType))}",
    "labels": "names must be 1 to 63 of a-z, 0-9, _ . and -",
}
"""The patterns and choices in words, for error texts."""

_TYPES = {"`str": "`string", "`int": "`integer", "`float": "`number", "`bool": "`boolean", " | null`": "` or null"}
"""msgspec's names of types in messages, and those of JSON."""

_INTEGERS = ("max_turns",)
"""Fields of whole numbers, which may be written with a fraction of zero: 3.0 is an integer in JSON Schema."""


def parse(body: bytes, *, strict: bool, redact: Callable[[str], str] = str) -> tuple[Task, list[str]]:
    """
    Read a task from a request's body.

    Args:
        strict: Refuse fields that are not known.
        redact: Takes tokens out of names of unknown fields, title and labels.

    Returns:
        The task, and the names of the fields that nothing reads.

    Raises:
        InvalidRequest: The body is no JSON object or a field cannot be used; the message names the field, and never
            repeats what was sent.
    """
    try:
        raw = msgspec.json.decode(body)
    except msgspec.ValidationError:
        raise InvalidRequest(_number_out_of_range(body)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the body is not JSON in UTF-8; send an object with a message") from None
    if not isinstance(raw, dict):
        raise InvalidRequest("the body must be a JSON object with a message")
    ignored = unknown_names(raw, Task.__struct_fields__, strict=strict, redact=redact)
    _check_lengths(raw)
    _check_places(raw, redact)
    for name in _INTEGERS:
        if isinstance(number := raw.get(name), float) and number.is_integer():
            raw[name] = int(number)
    try:
        task = msgspec.convert(raw, Task)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_plain(str(error))) from None
    _check(task)
    if task.append_system_prompt is not None:  # one name inside, so that both names give the same digest
        text = task.append_system_prompt or task.system_prompt
        task = msgspec.structs.replace(task, system_prompt=text, append_system_prompt=None)
    return _without_tokens(task, redact), ignored


def _number_out_of_range(body: bytes) -> str:
    """Name the field of a body whose number no double can hold."""
    with contextlib.suppress(msgspec.ValidationError):  # the body may be no object
        for name, value in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items():
            try:
                msgspec.json.decode(value)
            except msgspec.DecodeError:
                if name in Task.__struct_fields__:
                    return f"{name}: holds a number that is out of range"
    return "the body holds a number that is out of range"


def unknown_names(
    sent: Iterable[str], known: Sequence[str], *, strict: bool, redact: Callable[[str], str], what: str = "fields"
) -> list[str]:
    """
    Return the names in a request that are not among the known ones.

    Args:
        strict: Refuse such names.
        what: What the names are, for the message.

    Raises:
        InvalidRequest: There are such names, and *strict* is set.
    """
    ignored = [_shown(redact(name)) for name in sorted(name for name in sent if name not in known)[:20]]
    if ignored and strict:
        names = ", ".join(name + did_you_mean(name, known) for name in ignored[:10])
        raise InvalidRequest(f"unknown {what}: {names}; correct them, or leave them out")
    return ignored


def _check_lengths(raw: dict[str, Any]) -> None:
    """Check the length of arguments of the CLI, before the decoder applies patterns while it holds the interpreter."""
    for name in _ARGUMENTS:
        given = raw.get(name)
        if isinstance(given, dict):
            size = len(json.dumps(given, separators=(",", ":"), ensure_ascii=False).encode(errors="replace"))
        else:
            words = given if isinstance(given, list) else [given]
            size = len(",".join(word for word in words if isinstance(word, str)).encode(errors="replace"))
        if size > ARGUMENT_LIMIT_BYTES:
            raise InvalidRequest(f"{name}: must not be longer than {ARGUMENT_LIMIT_BYTES} bytes altogether")


def _check(task: Task) -> None:
    if task.execution_id in RESERVED_IDS:
        raise InvalidRequest(f"execution_id: must not be one of {', '.join(sorted(RESERVED_IDS))}")
    if task.fresh_session and task.resume_session_id is not None:
        raise InvalidRequest("fresh_session: must not be true where resume_session_id names a session")
    if not task.message.strip():
        raise InvalidRequest("message: must hold more than blanks")  # the CLI refuses it, too
    if task.title is not None and not task.title.strip():
        raise InvalidRequest(f"title: {_IN_WORDS['title']}")
    _check_together(task)
    if task.json_schema is not None and (reason := _schema_fault(task.json_schema)) is not None:
        raise InvalidRequest(f"json_schema: {reason}")
    for agent in (task.agents or {}).values():
        if not all(isinstance(agent.get(name), str) and agent[name].strip() for name in ("description", "prompt")):
            raise InvalidRequest("agents: each must have a description and a prompt, which are texts")
    if task.mcp_config is not None and (reason := mcp_config.refused_by_all(task.mcp_config)) is not None:
        raise InvalidRequest(f"mcp_config: {reason}")
    for image in task.images or ():
        try:
            base64.b64decode(image.data, validate=True)
        except ValueError:
            raise InvalidRequest("images: data must be base64") from None


def _check_together(task: Task) -> None:
    """Check the fields that depend on one another."""
    appended = {task.system_prompt, task.append_system_prompt} - {None, ""}
    if len(appended) > 1:
        raise InvalidRequest("append_system_prompt: must be the same as system_prompt, its earlier name; send one")
    if task.fork_session and task.resume_session_id is None:
        raise InvalidRequest("fork_session: needs resume_session_id, the session to copy")
    if task.create_cwd and task.cwd is None:
        raise InvalidRequest("create_cwd: needs cwd, the directory to make")
    if task.fallback_model is not None and task.fallback_model == task.model:
        raise InvalidRequest("fallback_model: must be another than model")


_TypeName = Literal["array", "boolean", "integer", "null", "number", "object", "string"]


class _Schema(msgspec.Struct, rename="camel"):
    """The keywords of a JSON Schema whose form is checked; all others may have any value."""

    type: _TypeName | list[_TypeName] = "object"
    required: list[str] = []
    enum: list[Any] = []
    properties: dict[str, _Schema | bool] = {}
    pattern_properties: dict[str, _Schema | bool] = {}
    dependent_schemas: dict[str, _Schema | bool] = {}
    definitions: dict[str, _Schema | bool] = {}
    defs: dict[str, _Schema | bool] = msgspec.field(name="$defs", default_factory=dict)
    all_of: list[_Schema | bool] = []
    any_of: list[_Schema | bool] = []
    one_of: list[_Schema | bool] = []
    prefix_items: list[_Schema | bool] = []
    items: _Schema | bool | list[_Schema | bool] = True
    additional_properties: _Schema | bool = True
    property_names: _Schema | bool = True
    contains: _Schema | bool = True
    not_: _Schema | bool = True
    if_: _Schema | bool = True
    then: _Schema | bool = True
    else_: _Schema | bool = True


def _schema_fault(schema: dict[str, Any]) -> str | None:
    """
    Return a fault of a JSON Schema that is found without checking its whole grammar; None: there is none.

    2.1.332 checks all of the schema, and refuses one with a fault; 2.1.30 silently ignores one. The CLI takes the
    answer as a tool's input, so it is an object: with another type both ask the model again and again (measured).
    """
    if schema.get("type", "object") != "object":
        return "its type must be object"
    try:
        msgspec.convert(schema, _Schema)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).rpartition(" - at ")
        if "enum value" in reason:  # the reason quotes the value
            reason = f"must be one of {', '.join(get_args(_TypeName))}, or a list of them"
        return f"{place}: {_plain(reason)}"
    return None


def _without_tokens(task: Task, redact: Callable[[str], str]) -> Task:
    """Remove tokens from title and labels, which are shown as they are; both stay within their longest lengths."""
    if any(redact(name) != name for name in task.labels or ()):
        raise InvalidRequest("labels: names must hold no token")
    title = redact(task.title)[:TITLE_LENGTH] if task.title else None
    labels = task.labels and {name: redact(value)[:LABEL_VALUE_LENGTH] for name, value in task.labels.items()}
    is_clean = (title, labels) == (task.title, task.labels)
    return task if is_clean else msgspec.structs.replace(task, title=title, labels=labels)


def _check_places(raw: dict[str, Any], redact: Callable[[str], str]) -> None:
    """Check paths and variables, with clearer messages than a pattern gives."""
    added = raw.get("add_dirs")
    named = [("cwd", raw.get("cwd")), *(("add_dirs", path) for path in (added if isinstance(added, list) else ()))]
    for field, path in named:
        if not isinstance(path, str):
            continue  # the decoder reports its type
        if (reason := _unfit_path(path)) is not None:
            raise InvalidRequest(f"{field}: {reason}")
        if redact(path) != path:  # it would get into the record, or into an argument
            raise InvalidRequest(f"{field}: must hold no token")
    env = raw.get("env")
    size_bytes = 0
    for name, value in env.items() if isinstance(env, dict) else ():
        if re.fullmatch(_VARIABLE, name) is None:
            raise InvalidRequest("env: a name must be letters, digits and _, at most 256, and not begin with a digit")
        if not isinstance(value, str):
            raise InvalidRequest(f"env: the value of {_shown(name)} must be a string")
        length = len(value.encode())
        if "\0" in value or length > ARGUMENT_LIMIT_BYTES:
            reason = f"must hold no NUL, and at most {ARGUMENT_LIMIT_BYTES} bytes"
            raise InvalidRequest(f"env: the value of {_shown(name)} {reason}")
        size_bytes += len(name) + length
    if size_bytes > ENV_LIMIT_BYTES:
        raise InvalidRequest(f"env: must not be longer than {ENV_LIMIT_BYTES} bytes altogether")


def _unfit_path(path: str) -> str | None:
    """Return why a path cannot name a directory below the workspace; None: it can."""
    parts = path.encode().split(b"/")
    if path.startswith("/"):
        return "must be relative to the workspace, and not begin with /"
    if b"" in parts:
        return "must not be empty, hold // or end with /"
    if b"." in parts or b".." in parts:
        return "must have no part that is . or .."
    if re.search(_CONTROL, path):
        return "must hold no control characters"
    if len(parts) > 100 or max(map(len, parts)) > 255 or sum(map(len, parts)) + len(parts) > 3001:
        return f"must have {PATH_LIMITS}"
    return None


def _plain(message: str) -> str:
    """Put the field's name in front of msgspec's message, which names types and rules but never values."""
    found = re.match(_FIELD_IN_MESSAGE, message)
    name = found[1] or found[2] if found else None
    reason = message.split(" - at ", 1)[0]
    if "matching regex" in reason or "enum value" in reason:  # the reason quotes the value
        reason = _IN_WORDS.get(name or "", "is not one of those that there are")
    if "unknown field" in reason:
        reason = "holds a field that is not known"  # its name is the caller's, and not for an error text
    if found and found[2]:
        reason = "is missing"
    for python, words in _TYPES.items():
        reason = reason.replace(python, words)
    return f"{name}: {reason[:1].lower()}{reason[1:]}" if name else reason


def _shown(name: str) -> str:
    """Quote a caller's field name, unless it holds a reserved word."""
    is_fit = name.isprintable() and not is_reserved(name)
    return name[:64] if is_fit else "(not shown)"
