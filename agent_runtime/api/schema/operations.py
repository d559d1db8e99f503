"""The type of a row in the routes' table, and the parameters of requests that rows refer to."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
from starlette.responses import Response

from agent_runtime.errors import ErrorClass
from agent_runtime.model.records import EPOCH_SECONDS_PATTERN
from agent_runtime.model.task import LABEL_VALUE_LENGTH, LABELS
from agent_runtime.store.records import CURSOR_PATTERN


class Operation(msgspec.Struct, frozen=True):
    """
    One route.

    Attributes:
        handler: Its name becomes the ``operationId``, its docstring the summary and the description, and its return
            type the type of a 200.
        bodies: Where the handler returns a ``Response``: the types of its JSON bodies by status.
        open: The route needs no access key.
        events: Of a stream: type of ``data`` by the event's name; ``dict``: any JSON object.
        text: Media types of a 200 that is neither JSON nor a stream.
        errors: The route's own errors, beside those of all routes, of routes with access key, and about an execution.
        parameters: Names of parameters in ``document.toml``, beside the execution's id.
        body: Type of the request's body; a union with None: the body may be left out.
    """

    method: str
    path: str
    handler: Callable[..., Awaitable[Any]]
    tag: str
    bodies: dict[int, type] = {}
    events: dict[str, type] = {}
    text: tuple[str, ...] = ()
    errors: tuple[ErrorClass, ...] = ()
    parameters: tuple[str, ...] = ()
    body: Any = None
    open: bool = False

    @property
    def id(self) -> str:
        """``operationId``: the handler's name in the form that generators of clients want."""
        first, *others = self.handler.__name__.split("_")
        return first + "".join(map(str.capitalize, others))

    @property
    def answers(self) -> dict[int, tuple[type, ...]]:
        """The types of the JSON body by status; several types are alternatives."""
        found = self.bodies or {200: get_type_hints(self.handler)["return"]}
        return {status: get_args(kind) or (kind,) for status, kind in found.items() if kind is not Response}


@functools.cache
def document() -> dict[str, Any]:
    """
    Return the parts of the OpenAPI document that do not come from routes, types and errors; for the caller to copy.

    They are read at the first request, not at the start.
    """
    fixed: dict[str, Any] = msgspec.toml.decode(Path(__file__).with_name("document.toml").read_bytes())
    parameters = fixed["components"]["parameters"]
    for name, parameter in parameters.items():
        parameter["name"] = name
    parameters["cursor"]["schema"]["pattern"] = f"^{CURSOR_PATTERN}$"
    parameters["since"]["schema"]["anyOf"][1]["pattern"] = f"^{EPOCH_SECONDS_PATTERN}$"
    label_value = {"type": "string", "maxLength": LABEL_VALUE_LENGTH}
    parameters["label.NAME"]["schema"] |= {"additionalProperties": label_value, "maxProperties": LABELS}
    return fixed


def parameter(name: str) -> dict[str, Any]:
    """Return a parameter of requests that :attr:`Operation.parameters` may list."""
    found: dict[str, Any] = document()["components"]["parameters"][name]
    return found
