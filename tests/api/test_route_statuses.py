"""The statuses of each route as the contract has them, held against the document and a live supervisor."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.api.app import OPEN_PATHS, ROUTES
from agent_runtime.api.schema.openapi import build
from tests.support.supervised import NEW, supervised
from tests.system.test_executions import holding

if TYPE_CHECKING:
    from pathlib import Path

ALWAYS = {400, 413, 500}
"""No HTTP, or not of this host; a header that is too long; a bug."""

WITH_KEY = {401, 409}
"""No or a wrong key; no connection to be had, and for some routes more."""

OF_A_ROUTE: dict[tuple[str, str], set[int]] = {
    ("POST", "/api/task"): {200, 202, 422, 429, 502, 503, 504},
    ("GET", "/api/executions"): {200},
    ("GET", "/api/usage"): {200},
    ("GET", "/api/executions/running"): {200},
    ("GET", "/api/executions/{id}"): {200, 404},
    ("GET", "/api/executions/{id}/status"): {200, 404},
    ("GET", "/api/executions/{id}/result"): {200, 202, 404},
    ("GET", "/api/executions/{id}/stream"): {200, 404},
    ("POST", "/api/executions/{id}/terminate"): {200, 404},
    ("GET", "/api/token"): {200},
    ("POST", "/api/credentials/reload-token"): {200},
    ("GET", "/api/events"): {200},
    ("POST", "/api/drain"): {200},
    ("DELETE", "/api/drain"): {200},
    ("GET", "/livez"): {200},
    ("GET", "/readyz"): {200, 503},
    ("GET", "/health"): {200},
    ("GET", "/api/health"): {200},
    ("GET", "/metrics"): {200},
    ("GET", "/openapi.json"): {200},
    ("GET", "/"): {200, 404},
}
OPEN = {"/", "/livez", "/readyz", "/health", "/api/health"}
STATUSES = {route: own | ALWAYS | (set() if route[1] in OPEN else WITH_KEY) for route, own in OF_A_ROUTE.items()}

NOT_MADE = {(route, status) for route in STATUSES for status in (409, 500)} | {(("GET", "/"), 404)}
"""What takes a bug, all connections or another setting; where a test makes it all the same, it counts."""

INIT = {"do": "init"}


def test_the_document_has_the_statuses_of_the_contract_and_no_others() -> None:
    paths = build(ROUTES, access_header="X-Agent-Token", key_required=True)["paths"]

    assert OPEN_PATHS == OPEN
    assert {
        (method.upper(), path): {int(status) for status in operation["responses"]}
        for path, operations in paths.items()
        for method, operation in operations.items()
    } == STATUSES


@pytest.mark.slow
def test_a_live_supervisor_gives_each_of_them_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("the-access-key")
    flags = (
        "--access-key-file",
        str(tmp_path / "key"),
        "--slots",
        "1",
        "--queue",
        "0",
        "--probe",
        "off",
        "--park",
        "0",
    )
    key = {"Authorization": "Bearer the-access-key"}
    seen: dict[tuple[str, str], set[int]] = defaultdict(set)
    with supervised(tmp_path, flags=(*flags, "--first-message-timeout", "0.5")) as running:

        def ask(method: str, path: str, execution_id: str = "fine", query: str = "", **words: Any) -> int:
            url = path.replace("{id}", execution_id) + query
            with running.client.stream(method, url, **{"headers": key, **words}) as response:
                status: int = response.status_code
                seen[method, path].add(status)
            return status

        def task(*steps: dict[str, Any], prefer: str = "", **fields: Any) -> int:
            body = {"message": json.dumps({"script": [INIT, *steps]}), **fields}
            return ask("POST", "/api/task", headers={**key, "Prefer": prefer}, json=body)

        assert task({"do": "result"}, execution_id="fine") == 200
        for method, path in STATUSES:
            ask(method, path)
            for headers in (
                {},
                {**key, "X-Long": "x" * 17_000},
                {**key, "Content-Length": "2", "Transfer-Encoding": "chunked"},
            ):
                ask(method, path, headers=headers, content=b"{}")
            if "{id}" in path:
                assert ask(method, path, execution_id="unknown") == 404
            other = running.client.request("PATCH", path.replace("{id}", "fine"), headers=key)
            assert other.status_code == 405
            assert method in other.headers["allow"].split(", ")

        assert ask("POST", "/api/drain") == 200
        assert (ask("GET", "/readyz"), task({"do": "result"})) == (503, 409)
        assert ask("DELETE", "/api/drain") == 200
        go = tmp_path / "go"
        held = json.dumps(holding(go))
        held_body = {"message": held, "execution_id": "held"}
        assert ask("POST", "/api/task", headers={**key, "Prefer": "wait=0"}, json=held_body) == 202
        assert ask("GET", "/api/executions/{id}/result", "held") == 202
        assert task({"do": "result"}) == 409
        go.touch()
        assert ask("POST", "/api/task", json=held_body) == 200
        assert task({"do": "result", "is_error": True, "fields": {"subtype": "error_max_turns"}}) == 422
        assert task({"do": "exit"}) == 502
        assert task({"do": "hang"}) == 504
        assert task({"do": "kill"}) == 500
        limit = {"do": "rate_limit", "status": "rejected", "limit_type": "five_hour", "resets_at": 4_000_000_000}
        assert task(limit, {"do": "give_up", "text": "Limited", "error": "rate_limit", "status": 429}) == 429
        assert ask("POST", "/api/credentials/reload-token", json={"token": NEW}) == 200
        assert task({"do": "give_up", "text": "Credit balance is too low", "error": "billing_error"}) == 503
    for route, statuses in STATUSES.items():
        assert seen[route] <= statuses, route
        assert {status for status in statuses - seen[route] if (route, status) not in NOT_MADE} == set(), route
