"""Build the OpenAPI 3.1 document from the routes' table, the types of requests and answers, and the errors."""

from __future__ import annotations

import copy
import inspect
import json
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agent_runtime import __version__
from agent_runtime.api.schema.json_schema import pointer, schemas
from agent_runtime.api.schema.operations import document as fixed_parts
from agent_runtime.errors import UNREADABLE_STATUS, ErrorClass
from agent_runtime.model.problem import MEDIA_TYPE, Problem, problem
from agent_runtime.model.records import to_json
from agent_runtime.telemetry.events import POSTED
from agent_runtime.telemetry.webhook import SIGNATURE_HEADER

if TYPE_CHECKING:
    from collections.abc import Collection

    from agent_runtime.api.schema.operations import Operation

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

KEY_SHOWS_MORE = {"getHealth", "getApiHealth"}
"""Operations that need no access key, but answer with more if it is sent."""

_RETRYABLE = {409, 429, 502, 503}
"""Statuses of answers that may have ``Retry-After``."""


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
    keys: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}]
    document["security"] = keys if key_required else [{}, *keys]
    components, hook = document["components"], document["webhooks"]["event"]["post"]
    components["schemas"] = schemas(rows, components["schemas"], strict=strict)
    components["securitySchemes"]["header"]["name"] = access_header
    names = ", ".join(f"`{name}`" for name in sorted(POSTED))
    hook["description"] = f"Of {names}; again until it is taken or given up."
    hook["parameters"][0]["name"] = SIGNATURE_HEADER
    hook["requestBody"]["content"][JSON]["examples"] = {"refused": {"value": EXAMPLES["webhook"]}}
    document["paths"] = paths = dict[str, dict[str, Any]]()
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row)
    return document


def _operation(operation: Operation) -> dict[str, Any]:
    summary, _, more = inspect.cleandoc(operation.handler.__doc__ or "").partition("\n\n")
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": summary.rstrip("."),
    }
    if more:
        described["description"] = " ".join(more.split())
    if operation.open:
        described["security"] = [{}, {"bearer": []}, {"header": []}] if operation.id in KEY_SHOWS_MORE else []
    if names := (*(("id",) if operation.is_about_one else ()), *operation.parameters):
        described["parameters"] = [{"$ref": f"#/components/parameters/{name}"} for name in names]
    if operation.body is not None:
        content: dict[str, Any] = {"schema": pointer(operation.body)}
        if operation.id == "postTask":
            content["examples"] = {"task": {"value": EXAMPLES["task"]}}
        described["requestBody"] = {"required": operation.body_required, "content": {JSON: content}}
    described["responses"] = _responses(operation)
    return described


def _responses(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status, kinds in operation.answers.items():
        found[str(status)] = _answer(operation, status, kinds)
    if operation.events:
        found["200"] = _stream(operation)
    if operation.text:
        found["200"] = {
            "description": "The text.",
            "content": {kind: {"schema": {"type": "string"}} for kind in operation.text},
        }
    of_path = _OF_A_RECORD if operation.is_about_one else ()
    errors = dict.fromkeys((*of_path, *operation.errors, *_ALWAYS, *(() if operation.open else _WITH_KEY)))
    statuses = {error: error.status for error in errors}
    if ErrorClass.STORAGE in errors and operation.id != "postTask":
        statuses[ErrorClass.STORAGE] = UNREADABLE_STATUS
    for status in sorted(set(statuses.values())):
        found[str(status)] = _errors(status, [error for error in errors if statuses[error] == status])
    return found


def _answer(operation: Operation, status: int, kinds: tuple[type, ...]) -> dict[str, Any]:
    schema = pointer(kinds[0]) if len(kinds) == 1 else {"anyOf": [pointer(kind) for kind in kinds]}
    content: dict[str, Any] = {"schema": schema}
    if examples := EXAMPLES["answers"].get(operation.id, {}).get(str(status)):
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    described: dict[str, Any] = {"description": HTTPStatus(status).phrase, "content": {JSON: content}}
    if operation.id == "postTask":
        names = ["Preference-Applied", *(["Location"] if status == HTTPStatus.ACCEPTED else [])]
        described["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    return described


def _stream(operation: Operation) -> dict[str, Any]:
    data = {name: {"type": "object"} if kind is None else pointer(kind) for name, kind in operation.events.items()}
    return {
        "description": "Server-sent events, up to one named `end`.",
        "content": {
            EVENT_STREAM: {
                "schema": {"$ref": "#/components/schemas/StreamedEvent"},
                "x-server-sent-events": data,
                "example": EXAMPLES["streams"][operation.id],
            }
        },
    }


def _errors(status: int, classes: list[ErrorClass]) -> dict[str, Any]:
    """Describe the answers with one error status: the error classes it may have, and an example of each."""
    narrowed = {
        "type": "object",
        "properties": {"status": {"const": status}, "error_class": {"enum": [str(error) for error in classes]}},
    }
    described: dict[str, Any] = {
        "description": "; ".join(error.heading for error in classes) + ".",
        "content": {
            MEDIA_TYPE: {
                "schema": {"allOf": [pointer(Problem), narrowed]},
                "examples": {
                    str(error): {"summary": error.heading, "value": _example(error, status)} for error in classes
                },
            }
        },
    }
    if status in _RETRYABLE:
        described["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return described


def _example(error: ErrorClass, status: int) -> Any:
    is_of_execution = error in (ErrorClass.AUTH, ErrorClass.RATE_LIMIT)
    example = problem(
        error,
        error.sentence,
        execution_id="fix-1" if is_of_execution else None,
        token_generation=1 if is_of_execution else None,
        token_stale=False if is_of_execution else None,
        resets_at=1_795_000_000.0 if error is ErrorClass.RATE_LIMIT else None,
        status=status,
    )
    return msgspec.json.decode(to_json(example))
