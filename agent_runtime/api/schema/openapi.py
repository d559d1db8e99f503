"""Build the OpenAPI 3.1 document from the routes' table, the types of requests and answers, and the errors."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Collection
from http import HTTPStatus
from pathlib import Path
from typing import Any, get_args

import msgspec

from agent_runtime import __version__
from agent_runtime.api.schema.bodies import HealthInBrief
from agent_runtime.api.schema.operations import Operation
from agent_runtime.api.schema.operations import document as fixed_parts
from agent_runtime.errors import UNREADABLE_STATUS, ErrorClass
from agent_runtime.model.problem import MEDIA_TYPE, Problem, problem
from agent_runtime.model.records import to_json
from agent_runtime.supervisor.answers import Success
from agent_runtime.telemetry.events import POSTED, Event
from agent_runtime.telemetry.webhook import SIGNATURE_HEADER

JSON = "application/json"
EVENT_STREAM = "text/event-stream"

_ALWAYS = (ErrorClass.INVALID_REQUEST, ErrorClass.TOO_LARGE, ErrorClass.ERROR)
"""
Errors of every route: a request that is not HTTP, or is a web page's and no key is needed; a long header; a bug.
"""

_WITH_KEY = (ErrorClass.ACCESS, ErrorClass.BUSY)
"""Errors of every route that needs the access key; ``busy``: all connections are taken."""

_OF_A_RECORD = (ErrorClass.NOT_FOUND, ErrorClass.STORAGE)
"""Errors of every route about an execution."""

_RETRYABLE = {409, 429, 502, 503}
"""Statuses of answers that may have ``Retry-After``."""

_KEYS: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}]
"""The two ways to send the access key."""

_SCHEMA = "#/components/schemas/{name}"

_REQUESTS = {"Task", "Image", "NewToken"}
"""Types that callers send."""

_SPARSE = {"Problem", "ErrorDetail", "Reloaded", "StreamState"}
"""Types that leave out fields without a value; all other answers always have every field."""

_INTERNAL = ("request_digest", "cost_before_usd")
"""Fields of a stored record that callers do not see."""

EXAMPLES: dict[str, Any] = json.loads(Path(__file__).with_name("examples.json").read_bytes())
"""Examples: a task, an event, and by operation answers (by status and name) and streams; a test checks them."""


def build(
    rows: Collection[Operation], *, access_header: str, key_required: bool, strict: bool = True
) -> dict[str, Any]:
    """
    Build the document.

    Args:
        rows: The routes.
        access_header: The header of the access key.
        key_required: False: the access key may be sent and is ignored.
        strict: Requests with unknown fields are refused.
    """
    document = copy.deepcopy(fixed_parts())
    document["info"]["version"] = __version__
    document["security"] = _KEYS if key_required else [{}, *_KEYS]
    components, hook = document["components"], document["webhooks"]["event"]["post"]
    components["schemas"] = _schemas(rows, components["schemas"], strict=strict)
    components["securitySchemes"]["header"]["name"] = access_header
    names = ", ".join(f"`{name}`" for name in sorted(POSTED))
    hook["description"] = f"Of {names}; again until it is taken or given up."
    hook["parameters"][0]["name"] = SIGNATURE_HEADER
    hook["requestBody"]["content"][JSON]["examples"] = {"refused": {"value": EXAMPLES["webhook"]}}
    document["paths"] = paths = dict[str, dict[str, Any]]()
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row)
    return document


# -- operations


def _operation(operation: Operation) -> dict[str, Any]:
    summary, _, more = inspect.cleandoc(operation.handler.__doc__ or "").partition("\n\n")
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": summary.rstrip("."),
    }
    if more:
        described["description"] = " ".join(more.split())
    if operation.open:  # the key may be sent where it shows more
        described["security"] = [{}, *_KEYS] if HealthInBrief in operation.answers.get(200, ()) else []
    of_path = ("id",) if "{id}" in operation.path else ()
    if names := (*of_path, *operation.parameters):
        described["parameters"] = [{"$ref": f"#/components/parameters/{name}"} for name in names]
    if operation.body is not None:
        kind, *others = get_args(operation.body) or (operation.body,)
        content: dict[str, Any] = {"schema": _pointer(kind)}
        if operation.id == "postTask":
            content["examples"] = {"task": {"value": EXAMPLES["task"]}}
        described["requestBody"] = {"required": not others, "content": {JSON: content}}
    errors = dict.fromkeys((*(_OF_A_RECORD if of_path else ()), *operation.errors, *_ALWAYS))
    described["responses"] = _answers(operation) | _errors(
        [*errors, *(() if operation.open else _WITH_KEY)],
        storage_status=ErrorClass.STORAGE.status if operation.id == "postTask" else UNREADABLE_STATUS,
    )
    return described


def _answers(operation: Operation) -> dict[str, Any]:
    """Describe the answers that are no errors, by status."""
    found: dict[str, Any] = {}
    for status, kinds in operation.answers.items():
        content: dict[str, Any] = {"schema": _pointer(*kinds)}
        if examples := EXAMPLES["answers"].get(operation.id, {}).get(str(status)):
            content["examples"] = {name: {"value": value} for name, value in examples.items()}
        found[str(status)] = answer = {"description": HTTPStatus(status).phrase, "content": {JSON: content}}
        if operation.id == "postTask":
            names = ["Preference-Applied", *(["Location"] if status == HTTPStatus.ACCEPTED else [])]
            answer["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    if operation.events:
        content = {
            "schema": {"$ref": _SCHEMA.format(name="StreamedEvent")},
            "x-server-sent-events": {name: _pointer(kind) for name, kind in operation.events.items()},
            "example": EXAMPLES["streams"][operation.id],
        }
        found["200"] = {
            "description": "Server-sent events, up to one named `end`.",
            "content": {EVENT_STREAM: content},
        }
    if operation.text:
        texts = {kind: {"schema": {"type": "string"}} for kind in operation.text}
        found["200"] = {"description": "The text.", "content": texts}
    return found


def _errors(errors: list[ErrorClass], storage_status: int) -> dict[str, Any]:
    """Describe the errors by status: for each the error classes it may have, and an example of each of them."""
    statuses = {error: error.status for error in errors} | {
        error: storage_status for error in errors if error is ErrorClass.STORAGE
    }
    found: dict[str, Any] = {}
    for status in sorted(set(statuses.values())):
        classes = [error for error in errors if statuses[error] == status]
        narrowed = {
            "type": "object",
            "properties": {"status": {"const": status}, "error_class": {"enum": [str(error) for error in classes]}},
        }
        examples = {str(error): {"summary": error.heading, "value": _example(error, status)} for error in classes}
        found[str(status)] = described = {
            "description": "; ".join(error.heading for error in classes) + ".",
            "content": {MEDIA_TYPE: {"schema": {"allOf": [_pointer(Problem), narrowed]}, "examples": examples}},
        }
        if status in _RETRYABLE:
            described["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return found


def _example(error: ErrorClass, status: int) -> Any:
    more: dict[str, Any] = {}
    if error in (ErrorClass.AUTH, ErrorClass.RATE_LIMIT):
        more = {"execution_id": "fix-1", "token_generation": 1, "token_stale": False}
    if error is ErrorClass.RATE_LIMIT:
        more["resets_at"] = 1_795_000_000.0
    return msgspec.json.decode(to_json(problem(error, error.sentence, status=status, **more)))


# -- schemas


def _pointer(*kinds: type) -> dict[str, Any]:
    """Return a reference to a type's schema, or to those of alternatives; ``dict`` has none, and is any object."""
    pointers = [{"type": "object"} if kind is dict else {"$ref": _SCHEMA.format(name=kind.__name__)} for kind in kinds]
    return pointers[0] if len(pointers) == 1 else {"anyOf": pointers}


def _schemas(rows: Collection[Operation], more: dict[str, Any], *, strict: bool) -> dict[str, Any]:
    """Build the schemas of all types in requests and answers, by name; *more*: parts of schemas to add, by name."""
    kinds: set[Any] = {Problem, Success, Event}
    for row in rows:
        kinds.update(*row.answers.values(), row.events.values(), get_args(row.body) or (row.body,))
    _, found = msgspec.json.schema_components(list(kinds - {dict, None, type(None)}), ref_template=_SCHEMA)
    # In Python $ also stands before a newline at the end, so patterns exclude it. Callers see instants as text.
    encoded = msgspec.json.encode(found).replace(rb"$(?!\\n)", b"$")
    encoded = encoded.replace(b'"date-time","type":"number"', b'"date-time","type":"string"')
    found = msgspec.json.decode(encoded)
    for name, schema in found.items():
        _complete(name, schema)
    _merge(found, more)
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
    return dict(sorted(found.items()))


def _complete(name: str, schema: dict[str, Any]) -> None:
    """Split a type's description, which is its docstring, among the type and its fields, and mark required fields."""
    schema.pop("title", None)
    text, _, attributes = schema["description"].partition("\n\nAttributes:\n")
    schema["description"] = _to_markdown(text)
    if "enum" in schema:
        schema["type"] = "string"
        return
    properties = schema["properties"]
    for field in _INTERNAL:
        properties.pop(field, None)
    for field, description in re.findall(r"^    (\w+): (.*(?:\n     .*)*)", attributes, re.MULTILINE):
        if field in properties:
            properties[field]["description"] = _to_markdown(" ".join(description.split()))
    if name not in _REQUESTS:
        for shown in properties.values():
            shown.pop("default", None)
        if name not in _SPARSE:
            schema["required"] = list(properties)


def _to_markdown(text: str) -> str:
    return re.sub(":[a-z]{1,10}:(?=`)", "", text).replace("``", "`").replace("None:", "null:")


def _merge(into: Any, more: dict[str, Any]) -> None:
    """Add the values of *more* at the same places of *into*; in a list a key is an index."""
    for key, value in more.items():
        place: Any = int(key) if isinstance(into, list) else key
        if isinstance(value, dict) and (isinstance(into, list) or key in into):
            _merge(into[place], value)
        else:
            into[place] = value
