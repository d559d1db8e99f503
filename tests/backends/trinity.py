"""
What one backend makes of answers, by the rules in ``trinity/rules.json``.

The rules are facts about the public source of Abilityai/trinity (2026); this code is written from them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

_DIRECTORY = Path(__file__).parent / "trinity"
_DEFAULT_CONTEXT_WINDOW = 200_000


def data(name: str) -> Any:
    """Read one file of the calls."""
    return json.loads((_DIRECTORY / f"{name}.json").read_text())


RULES: dict[str, Any] = data("rules")


@dataclass(frozen=True)
class Row:
    """What the backend writes down of one execution; a division by null, or the length of a number, raises here too."""

    status: str
    response: str
    error: str | None
    cost: float
    context_used: int | None
    context_max: int
    session_id: str | None
    log: list[dict[str, Any]]
    compact_count: int
    switch: str | None

    @property
    def context_percent(self) -> float:
        """How full the conversation is."""
        return 100 * (self.context_used or 0) / self.context_max


def text_of(response: httpx.Response) -> str:
    """Return the error text that is shown, and looked through."""
    detail = response.json().get("detail")
    return str(detail["message"] if isinstance(detail, dict) else detail)


def switch_for(response: httpx.Response) -> str | None:
    """Tell why the backend takes another subscription; None: it does not."""
    if response.status_code < 400:
        return None
    rules, text = RULES["switch"], text_of(response).lower()
    if any(words in text for words in rules["never_with"]):
        return None
    kind: str | None = rules["kind_by_status"].get(str(response.status_code))
    if kind is None and not any(words in text for words in rules["but_not_with"]):
        kind = "auth" if any(words in text for words in rules["words"]) else None
    return kind


def is_session_lost(text: str) -> bool:
    """Whether the conversation is begun anew."""
    return any(words in text.lower() for words in RULES["session_lost"])


def row_of(response: httpx.Response) -> Row:
    """Write down what a finished task was answered with."""
    body = response.json()
    failed = response.status_code >= 400
    source = body["detail"] if failed and isinstance(body["detail"], dict) else {} if failed else body
    return _row(
        source,
        status="failed" if failed else body["status"],
        error=text_of(response) if failed else None,
        switch=switch_for(response),
    )


def row_of_result(result: dict[str, Any]) -> Row:
    """Write down what the watchdog finds of an execution whose connection was lost."""
    return _row(result, status=result["status"], error=result["error"], switch=None)


def _row(source: dict[str, Any], *, status: str, error: str | None, switch: str | None) -> Row:
    metadata = source.get("metadata") or {}
    cached = metadata.get("cache_read_tokens", 0) + metadata.get("cache_creation_tokens", 0)
    return Row(
        status=status,
        response=source.get("response") or "",
        error=error,
        cost=float(metadata.get("cost_usd", 0)),
        context_used=cached or metadata.get("input_tokens") or None,
        context_max=metadata.get("context_window", _DEFAULT_CONTEXT_WINDOW),
        session_id=source.get("session_id") or metadata.get("session_id"),
        log=source.get("execution_log") or [],
        compact_count=len(metadata.get("compact_events") or []),
        switch=switch,
    )


def known_ids(running: dict[str, Any]) -> set[str]:
    """Return the ids of which the agent gives proof of life; any other of more than a minute is declared lost."""
    executions = {execution["execution_id"] for execution in running["executions"]}
    return executions | set(running["pending_ids"]) | set(running["recently_completed_ids"])


def resolve(path: str, body: dict[str, Any]) -> Any:
    """Read ``a.b`` from a body; absent is None."""
    found: Any = body
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found
