"""The types of requests and answers as JSON schemas, with the types that callers see instead of the internal ones."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import msgspec

from agent_runtime.model.mcp_config import SERVERS
from agent_runtime.model.problem import Problem
from agent_runtime.model.records import ExecutionRecord
from agent_runtime.model.task import IMAGE_TYPES
from agent_runtime.supervisor.answers import Success
from agent_runtime.telemetry.events import TYPES, Event

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_runtime.api.schema.operations import Operation

_TEMPLATE = "#/components/schemas/{name}"
_MARKUP = re.compile(r":[a-z]{1,10}:(?=`)")
_NOT_BLANK = r"[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
"""A character that :meth:`str.strip` does not remove; what ``\\s`` is differs between regular expressions."""

_BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_NEEDS = {"fork_session": "resume_session_id", "create_cwd": "cwd"}
"""Fields of a task that are true only together with another one."""

_REQUESTS = {"Task", "Image", "NewToken"}
"""Types that callers send."""

_SPARSE = {"Problem", "ErrorDetail"}
"""Types that leave out fields without a value; of all other answers every field is always there."""


def pointer(kind: type) -> dict[str, Any]:
    """Return a reference to a type's schema; a plain dictionary has none."""
    return {"type": "object"} if kind is dict else {"$ref": _TEMPLATE.format(name=kind.__name__)}


def schemas(rows: Iterable[Operation], *, strict: bool) -> dict[str, Any]:
    """Build the schema of every type that a route takes or gives."""
    kinds: dict[type, None] = {Problem: None, Success: None, Event: None}
    for operation in rows:
        named = [kind for answer in operation.answers.values() for kind in answer]
        named += [kind for kind in (operation.body, *operation.events.values()) if kind is not None]
        kinds.update(dict.fromkeys(kind for kind in named if kind is not dict))
    _, found = msgspec.json.schema_components(list(kinds), ref_template=_TEMPLATE)
    for name, schema in found.items():
        _finish(name, schema)
    _say_more(found, strict=strict)
    return dict(sorted(found.items()))


def _finish(name: str, schema: dict[str, Any]) -> None:
    """Move the text under ``Attributes:`` of a type's description, which is its docstring, to its fields."""
    schema.pop("title", None)
    if "enum" in schema:
        schema["type"] = "string"
        return
    schema["description"], attributes = _described(schema["description"])
    properties = schema["properties"]
    for field in properties:
        if field in attributes:
            properties[field]["description"] = attributes[field]
        _as_callers_see_it(properties[field])
    if name not in _REQUESTS:
        for shown in properties.values():
            shown.pop("default", None)
        if name not in _SPARSE:
            schema["required"] = list(properties)


def _as_callers_see_it(value: Any) -> None:
    """Make instants text, and take out of patterns the part that only Python's ``$`` needs."""
    if isinstance(value, dict):
        if isinstance(value.get("pattern"), str):
            value["pattern"] = value["pattern"].removesuffix(r"(?!\n)")
        if value.get("format") == "date-time":
            value["type"] = "string"
        for item in value.values():
            _as_callers_see_it(item)
    elif isinstance(value, list):
        for item in value:
            _as_callers_see_it(item)


def _described(docstring: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text and the descriptions of its attributes."""
    text, _, listed = docstring.partition("\n\nAttributes:\n")
    attributes: dict[str, str] = {}
    name = ""
    for line in listed.splitlines():
        head, colon, description = line.strip().partition(": ")
        if line.startswith("    ") and not line.startswith("     ") and colon:
            name, attributes[head] = head, description
        elif name:
            attributes[name] += " " + line.strip()
    return _prose(text), {field: _prose(text) for field, text in attributes.items()}


def _prose(text: str) -> str:
    return _MARKUP.sub("", text).replace("``", "`").replace("None:", "null:")


def _say_more(found: dict[str, Any], *, strict: bool) -> None:
    """Add the facts that the types do not hold: hidden fields, and text that stands for other types."""
    record = found[ExecutionRecord.__name__]
    for name in ("request_digest", "cost_before_usd"):
        del record["properties"][name]
        record["required"].remove(name)
    found["Image"]["properties"]["media_type"]["enum"] = list(IMAGE_TYPES)
    found["Image"]["properties"]["data"] |= {"contentEncoding": "base64", "pattern": _BASE64}
    task = found["Task"]["properties"]
    task["message"]["pattern"] = _NOT_BLANK
    task["mcp_config"]["anyOf"][0] |= {"properties": {SERVERS: {"type": "object"}}, "required": [SERVERS]}
    agent = task["agents"]["anyOf"][0]["additionalProperties"]
    agent["properties"] = {name: {"type": "string", "pattern": _NOT_BLANK} for name in ("description", "prompt")}
    agent["required"] = ["description", "prompt"]
    task["json_schema"]["anyOf"][0]["properties"] = {"type": {"const": "object"}}
    # Every combination of what is not asked for, and what it needs: the plainest first, which generators like.
    without = {name: {"enum": [False, None]} for name in _NEEDS}
    found["Task"]["anyOf"] = [
        {
            "properties": {_NEEDS[name]: {"type": "string"} for name in asked}
            | {name: schema for name, schema in without.items() if name not in asked},
            "required": [_NEEDS[name] for name in asked],
        }
        for count in range(len(_NEEDS) + 1)
        for asked in itertools.combinations(_NEEDS, count)
    ]
    found["Task"]["not"] = {
        "properties": {"fresh_session": {"const": True}, "resume_session_id": {"type": "string"}},
        "required": ["fresh_session", "resume_session_id"],
    }
    if strict:
        for body in ("Task", "NewToken"):
            found[body]["additionalProperties"] = False
    else:  # a misspelt name of the token is an error all the same
        known = list(found["NewToken"]["properties"])
        found["NewToken"]["anyOf"] = [{"required": ["token"]}, {"propertyNames": {"enum": known}}]
    found["Event"]["properties"]["type"]["enum"] = sorted(TYPES)
    found["Success"]["properties"]["status"]["enum"] = ["success", "cancelled"]
    for name in ("Success", "KeptResult", "ErrorDetail"):
        found[name]["properties"]["execution_log"]["items"] = {"type": "object"}
    for name in ("Success", "KeptResult"):
        found[name]["properties"]["structured_output"]["type"] = ["object", "null"]
    answer = found["KeptResult"]["properties"]["answer"]
    found["KeptResult"]["properties"]["answer"] = {**answer, "anyOf": [pointer(Success), pointer(Problem)]}
