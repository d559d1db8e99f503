"""Build JSON schemas for the types of requests and answers, as callers see them."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import msgspec

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
_REQUESTS = {"Task", "Image", "NewToken"}
"""Types that callers send."""

_SPARSE = {"Problem", "ErrorDetail", "Reloaded"}
"""Types that leave out fields without a value; all other answers always have every field."""


def pointer(kind: type) -> dict[str, Any]:
    """Return a reference to a type's schema; for ``dict``, which has none, the schema of any object."""
    return {"type": "object"} if kind is dict else {"$ref": _TEMPLATE.format(name=kind.__name__)}


def schemas(rows: Iterable[Operation], more: dict[str, Any], *, strict: bool) -> dict[str, Any]:
    """Build the schemas of all types in requests and answers, by name; *more*: parts of schemas to add, by name."""
    kinds: dict[type, None] = {Problem: None, Success: None, Event: None}
    for operation in rows:
        named = [kind for answer in operation.answers.values() for kind in answer]
        named += [kind for kind in (operation.body, *operation.events.values()) if kind is not None]
        kinds.update(dict.fromkeys(kind for kind in named if kind is not dict))
    _, found = msgspec.json.schema_components(list(kinds), ref_template=_TEMPLATE)
    for name, schema in found.items():
        _complete(name, schema)
    _add_constraints(found, copy.deepcopy(more), strict=strict)
    return dict(sorted(found.items()))


def _complete(name: str, schema: dict[str, Any]) -> None:
    """Split a type's description, which is its docstring, among the type and its fields, and mark required fields."""
    schema.pop("title", None)
    if "enum" in schema:
        schema["type"] = "string"
        return
    schema["description"], attributes = _split_docstring(schema["description"])
    properties = schema["properties"]
    for field in properties:
        if field in attributes:
            properties[field]["description"] = attributes[field]
        _to_json_types(properties[field])
    if name not in _REQUESTS:
        for shown in properties.values():
            shown.pop("default", None)
        if name not in _SPARSE:
            schema["required"] = list(properties)


def _to_json_types(value: Any) -> None:
    """Give instants the type string, and remove from patterns the part that only Python's ``$`` needs."""
    if isinstance(value, dict):
        if isinstance(value.get("pattern"), str):
            value["pattern"] = value["pattern"].removesuffix(r"(?!\n)")
        if value.get("format") == "date-time":
            value["type"] = "string"
        for item in value.values():
            _to_json_types(item)
    elif isinstance(value, list):
        for item in value:
            _to_json_types(item)


def _split_docstring(docstring: str) -> tuple[str, dict[str, str]]:
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
    return _to_markdown(text), {field: _to_markdown(text) for field, text in attributes.items()}


def _to_markdown(text: str) -> str:
    return _MARKUP.sub("", text).replace("``", "`").replace("None:", "null:")


def _add_constraints(found: dict[str, Any], more: dict[str, Any], *, strict: bool) -> None:
    """Remove internal fields, and add the constraints that the Python types do not express."""
    record = found[ExecutionRecord.__name__]
    for name in ("request_digest", "cost_before_usd"):
        del record["properties"][name]
        record["required"].remove(name)
    _merge(found, more)
    found["Image"]["properties"]["media_type"]["enum"] = list(IMAGE_TYPES)
    found["Event"]["properties"]["type"]["enum"] = sorted(TYPES)
    # Two fields each need another one; all combinations, the simplest first for generators. TOML has no null.
    none, text = {"enum": [False, None]}, {"type": "string"}
    found["Task"]["anyOf"] = [
        {"required": [], "properties": {"fork_session": none, "create_cwd": none}},
        {"required": ["resume_session_id"], "properties": {"resume_session_id": text, "create_cwd": none}},
        {"required": ["cwd"], "properties": {"fork_session": none, "cwd": text}},
        {"required": ["resume_session_id", "cwd"], "properties": {"resume_session_id": text, "cwd": text}},
    ]
    if strict:
        for body in ("Task", "NewToken"):
            found[body]["additionalProperties"] = False
    else:  # without ``token``, an unknown field is an error all the same
        known = list(found["NewToken"]["properties"])
        found["NewToken"]["anyOf"] = [{"required": ["token"]}, {"propertyNames": {"enum": known}}]


def _merge(into: Any, more: dict[str, Any]) -> None:
    """Add the values of *more* at the same places of *into*; in a list a key is an index."""
    for key, value in more.items():
        place: Any = int(key) if isinstance(into, list) else key
        if isinstance(value, dict) and (isinstance(into, list) or key in into):
            _merge(into[place], value)
        else:
            into[place] = value
