"""Check real answers against the OpenAPI document."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with every type closed, so that a field that is not described is an error."""
    strict = copy.deepcopy(document)
    for schema in strict["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return strict


def events_in(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Yield the fields of each server-sent event; comments are left out."""
    event: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value
        elif not line and event:
            yield event
            event = {}


@dataclass
class Description:
    """
    The document, every type closed.

    Attributes:
        seen: Operations, statuses and error classes of the answers that were checked.
    """

    document: dict[str, Any]
    seen: set[tuple[str, int, str | None]] = field(default_factory=set)

    @functools.cached_property
    def strict(self) -> dict[str, Any]:
        return closed(self.document)

    def operation_of(self, method: str, path: str) -> dict[str, Any]:
        """Return the operation for a request; a literal path is preferred to one with a parameter."""
        wanted = path.split("/")
        for template in sorted(self.document["paths"], key=lambda template: "{" in template):
            parts = template.split("/")
            fits = len(parts) == len(wanted) and all(
                part.startswith("{") or part == word for part, word in zip(parts, wanted, strict=True)
            )
            if fits and method.lower() in self.document["paths"][template]:
                found: dict[str, Any] = self.document["paths"][template][method.lower()]
                return found
        raise AssertionError(f"not described: {method} {path}")

    def validate(self, value: Any, schema: dict[str, Any]) -> None:
        """
        Check a value against a schema of the document.

        Raises:
            ValidationError: The value does not fit.
        """
        # Imported here: with its extras it takes two seconds, in each worker that only collects the tests.
        from jsonschema import Draft202012Validator, FormatChecker

        root = {"components": self.strict["components"], **schema}
        Draft202012Validator(root, format_checker=FormatChecker()).validate(value)

    def check(self, response: httpx.Response) -> httpx.Response:
        """Check an answer against the description of its route, status and media type; return it."""
        request = response.request
        operation = self.operation_of(request.method, request.url.path)
        status = str(response.status_code)
        assert status in operation["responses"], f"{operation['operationId']} answers {status}: {response.text}"
        described = operation["responses"][status]
        media_type = response.headers["content-type"].partition(";")[0]
        body = response.json() if media_type.endswith("json") else {}
        if not body:
            assert media_type in described["content"]
            self.seen.add((operation["operationId"], response.status_code, None))
            return response
        self.validate(body, described["content"][media_type]["schema"])
        if "retry-after" in response.headers:
            assert "Retry-After" in described["headers"]
        self.seen.add((operation["operationId"], response.status_code, body.get("error_class")))
        return response

    def check_stream(self, response: httpx.Response) -> Iterator[dict[str, str]]:
        """Check each event of a stream against its description, and yield it."""
        operation = self.operation_of("GET", response.request.url.path)
        described = operation["responses"]["200"]["content"]["text/event-stream"]["x-server-sent-events"]
        assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
        for event in events_in(response.iter_lines()):
            name = event["event"]
            assert name in described or "*" in described, f"not described: {name}"
            self.validate(json.loads(event["data"]), described.get(name) or described["*"])
            self.seen.add((operation["operationId"], 200, name))
            yield event
