"""The OpenAPI document says what the server does: real answers of a real supervisor are held against it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.api.app import EXECUTION_ERRORS, ROUTES
from agent_runtime.api.schema.openapi import EXAMPLES, build
from agent_runtime.api.streams import Batches, follow
from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.rules import RULES
from agent_runtime.model.records import ExecutionRecord
from agent_runtime.model.state import Phase
from agent_runtime.model.task_reading import parse
from agent_runtime.notifier import Notifier
from agent_runtime.store.transcripts import TranscriptStore
from agent_runtime.supervisor.answers import View
from tests.support.described import Description, events_in
from tests.support.supervised import NEW, Supervised, eventually, supervised
from tests.system.test_executions import DEAD, OK, holding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INIT = {"do": "init"}
HANG = {"do": "hang"}
TEXT = {"type": "string"}


def give_up(error: str, status: int) -> list[dict[str, Any]]:
    return [INIT, {"do": "give_up", "text": f"It failed: {error}", "error": error, "status": status}]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    flags = ("--slots", "1", "--queue", "0", "--first-message-timeout", "0.3", "--probe", "off", "--park", "0")
    with supervised(tmp_path_factory.mktemp("described"), flags=flags) as it:
        yield it


@pytest.fixture(scope="module")
def description(running: Supervised) -> Description:
    response = running.client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    description = Description(response.json())
    description.check(response)
    return description


@pytest.fixture(scope="module")
def built() -> Description:
    return Description(build(ROUTES, access_header="X-Agent-Token", key_required=True))


# What it says by itself.


def test_it_is_valid_openapi_3_1(built: Description) -> None:
    assert built.document["openapi"].startswith("3.1.")
    from openapi_spec_validator import OpenAPIV31SpecValidator  # takes two seconds, in each worker that collects

    OpenAPIV31SpecValidator(built.document).validate()


def test_it_has_every_route_of_the_table_and_no_other(description: Description) -> None:
    described = {
        (method.upper(), path) for path, operations in description.document["paths"].items() for method in operations
    }

    assert described == {(entry.method, entry.path) for entry in ROUTES}
    assert len({route.id for route in ROUTES}) == len(ROUTES)


def test_every_error_class_is_somewhere_with_its_status_and_an_example(built: Description) -> None:
    found: dict[str, set[int]] = {}
    for operations in built.document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                for name in response["content"].get("application/problem+json", {}).get("examples", {}):
                    found.setdefault(name, set()).add(int(status))

    assert found.pop(ErrorClass.STORAGE) == {409, 500}, "a task is turned away, a record cannot be given"
    everywhere = {ErrorClass.STORAGE, ErrorClass.METHOD, ErrorClass.CANCELLED}  # said in the description; no error
    assert found == {str(error): {error.status} for error in ErrorClass if error not in everywhere}
    assert all(f"`{error}`" in built.document["info"]["description"] for error in ("method", "not_found"))


def test_every_example_fits_its_schema(built: Description) -> None:
    checked = 0
    for path, operations in built.document["paths"].items():
        for method, operation in operations.items():
            contents = [response["content"] for response in operation["responses"].values()]
            contents += [operation["requestBody"]["content"]] if "requestBody" in operation else []
            for described in (described for content in contents for described in content.values()):
                for example in described.get("examples", {}).values():
                    built.validate(example["value"], described["schema"])
                    checked += 1
                if "x-server-sent-events" in described:
                    data = described["x-server-sent-events"]
                    for event in events_in(iter(described["example"].splitlines())):
                        built.validate(json.loads(event["data"]), data.get(event["event"]) or data["*"])
                        checked += 1
            for status, response in operation["responses"].items():
                if status.startswith("2") and (method, path) != ("get", "/openapi.json"):
                    for kind, content in response["content"].items():
                        assert content.get("examples") or content.get("example") or content["schema"] == TEXT, kind
    assert checked > 60
    built.validate(EXAMPLES["webhook"], {"$ref": "#/components/schemas/Event"})
    assert EXAMPLES["webhook"]["data"]["rule"] in {rule.id for rule in RULES}


def test_every_reference_leads_somewhere_and_no_component_is_idle(built: Description) -> None:
    text = json.dumps(built.document)
    components = built.document["components"]
    kept = {f"#/components/{kind}/{name}" for kind, named in components.items() for name in named}
    referred = {part.partition('"')[0] for part in text.split('"$ref": "')[1:]}

    assert referred <= kept
    assert {name for name in kept - referred if "/securitySchemes/" not in name} == set()


def test_no_description_lists_attributes_as_a_docstring_does(built: Description) -> None:
    schemas = built.document["components"]["schemas"]

    assert [name for name, schema in schemas.items() if "Attributes:" in schema.get("description", "")] == []


def test_what_needs_the_key_says_so_and_the_header_is_the_one_that_is_set() -> None:
    document = build(ROUTES, access_header="X-Other", key_required=True)

    assert document["components"]["securitySchemes"]["header"]["name"] == "X-Other"
    assert document["security"] == [{"bearer": []}, {"header": []}]
    assert build(ROUTES, access_header="X-Other", key_required=False)["security"][0] == {}
    for entry in ROUTES:
        operation = document["paths"][entry.path][entry.method.lower()]
        assert ("security" in operation) == entry.open
        assert ("401" in operation["responses"]) != entry.open


def test_a_field_that_nobody_described_is_found(built: Description) -> None:
    from jsonschema import ValidationError

    with pytest.raises(ValidationError, match="surprise"):
        built.validate({"draining": True, "unfinished": 0, "surprise": 1}, {"$ref": "#/components/schemas/DrainState"})


def test_the_state_of_an_execution_that_is_held_is_sent_as_described(built: Description, tmp_path: Path) -> None:
    async def first_event(*, held: bool) -> dict[str, Any]:
        record = ExecutionRecord(execution_id="x", created_at=0.0, state=Phase.RUNNING, held=held)
        sent = await anext(follow(View(record, TranscriptStore(tmp_path).reader("x"), Notifier()), 0, Batches()))
        (event,) = events_in(iter(sent.decode().splitlines()))
        assert event["event"] == "state"
        found: dict[str, Any] = json.loads(event["data"])
        return found

    for is_held, shown in ((True, True), (False, None)):
        state = asyncio.run(first_event(held=is_held))
        built.validate(state, {"$ref": "#/components/schemas/StreamState"})
        assert state.get("held") is shown


# What the server does.


@pytest.mark.parametrize(
    ("error_class", "script"),
    [
        ("billing", [INIT, {"do": "give_up", "text": "Credit balance is too low", "error": "billing_error"}]),
        ("overloaded", [INIT, {"do": "api_error", "status": 529, "kind": "overloaded_error"}, HANG]),
        ("upstream", [INIT, {"do": "api_error", "status": 500, "kind": "api_error"}, HANG]),
        ("lost_result", [INIT, {"do": "exit"}]),
        ("stalled", [INIT, HANG]),
        ("max_turns", [INIT, {"do": "result", "is_error": True, "fields": {"subtype": "error_max_turns"}}]),
        ("max_budget", [INIT, {"do": "result", "fields": {"subtype": "error_max_budget_usd"}}]),
        ("schema", [INIT, {"do": "result", "fields": {"subtype": "error_max_structured_output_retries"}}]),
        ("max_output", [INIT, {"do": "give_up", "text": "The answer is too long", "error": "max_output_tokens"}]),
        ("model", [INIT, {"do": "give_up", "text": "The model x does not exist", "error": "model_not_found"}]),
        ("signal", [INIT, {"do": "kill"}]),
        ("error", [{"do": "init", "fields": {"permissionMode": "default"}}, HANG]),
        ("network", [INIT, {"do": "request"}]),
    ],
)
def test_how_an_execution_fails_is_described(
    running: Supervised, description: Description, error_class: str, script: list[Any]
) -> None:
    response = description.check(running.post({"script": script}, execution_id=f"fails-{error_class}"))

    assert response.json()["error_class"] == error_class
    for path in ("", "/status", "/result"):
        description.check(running.client.get(f"/api/executions/fails-{error_class}{path}"))


def test_every_answer_of_a_success_is_described(running: Supervised, description: Description) -> None:
    get, post = running.client.get, running.client.post
    accepted = post("/api/task", json={"message": json.dumps(OK), "execution_id": "fine", "async_result": True})
    assert description.check(accepted).status_code == 202
    assert accepted.headers["location"] == "/api/executions/fine"
    with running.client.stream("GET", "/api/executions/fine/stream") as response:
        names = {event["event"] for event in description.check_stream(response)}
    assert names == {"state", "message", "end"}
    with running.client.stream("GET", "/api/executions/fine/stream?last_event_id=1000") as response:
        assert "gap" in {event["event"] for event in description.check_stream(response)}

    for path in ("/fine", "/fine/status", "/fine/result", "/running", "", "?limit=1&state=finished&outcome=success"):
        description.check(get(f"/api/executions{path}"))
    assert description.check(running.post(OK, execution_id="fine")).json()["status"] == "success"
    for path in ("/", "/metrics", "/livez", "/readyz", "/health", "/api/health", "/api/token"):
        description.check(get(path))
    for position, last in (("", "execution.finished"), ("?last_event_id=1", "gap")):
        with running.client.stream("GET", f"/api/events{position}") as response:
            for event in description.check_stream(response):
                if event["event"] == last:
                    break


def test_what_runs_is_turned_away_or_is_cancelled_is_described(
    running: Supervised, description: Description, tmp_path: Path
) -> None:
    late = running.post({"script": [INIT, {"do": "assistant", "text": "Hm."}, HANG]}, timeout_seconds=0.3)
    assert description.check(late).json()["error_class"] == "timeout"
    pending = running.start(holding(tmp_path / "never"), execution_id="held")
    eventually(lambda: running.get("/api/executions/running")["executions"])

    description.check(running.client.get("/api/executions/running"))
    description.check(running.client.get("/api/executions/held"))
    description.check(running.client.get("/health"))
    assert description.check(running.client.get("/api/executions/held/result")).status_code == 202
    assert description.check(running.post(OK)).json()["error_class"] == "busy"
    assert description.check(running.post("x", execution_id="held")).json()["error_class"] == "conflict"
    assert description.check(running.client.post("/api/drain")).json()["draining"]
    assert description.check(running.post(OK)).json()["error_class"] == "draining"
    assert description.check(running.client.get("/readyz")).status_code == 503
    description.check(running.client.delete("/api/drain"))
    for _ in range(2):
        description.check(running.client.post("/api/executions/held/terminate"))
    assert description.check(pending.answer()).json()["status"] == "cancelled"


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/api/task", b"{"),
        ("POST", "/api/task", b'{"message": "' + b"x" * (16 * 1024 * 1024) + b'"}'),
        ("GET", "/api/executions?limit=0", b""),
        ("GET", "/api/executions?cursor=x", b""),
        ("GET", "/readyz?ignore=cli", b""),
        ("GET", "/api/executions/unknown", b""),
        ("GET", "/api/executions/unknown/status", b""),
        ("GET", "/api/executions/unknown/result", b""),
        ("GET", "/api/executions/unknown/stream", b""),
        ("GET", "/api/executions/unknown/stream?last_event_id=x", b""),
        ("GET", "/api/events?last_event_id=x", b""),
        ("POST", "/api/executions/unknown/terminate", b""),
        ("POST", "/api/credentials/reload-token", b"{"),
        ("POST", "/api/credentials/reload-token", b""),
    ],
)
def test_every_refusal_of_a_request_is_described(
    running: Supervised, description: Description, method: str, path: str, content: bytes
) -> None:
    description.check(running.client.request(method, path, content=content))


TOKEN_BODY = "/api/credentials/reload-token"
TASK_BODY = "/api/task"
MESSAGE = {"message": "x", "async_result": True}
UUID = "0af76519-16cd-43dd-8448-eb211c80319c"
TOGETHER: list[tuple[dict[str, Any], bool]] = [
    ({"create_cwd": True}, False),
    ({"create_cwd": False, "cwd": None}, True),
    ({"create_cwd": True, "cwd": "a", "fork_session": True}, False),
    ({"create_cwd": True, "cwd": "a", "fork_session": False}, True),
    ({"create_cwd": None, "fork_session": True, "resume_session_id": UUID}, True),
    ({"create_cwd": True, "fork_session": True, "resume_session_id": UUID}, False),
    ({"create_cwd": True, "cwd": "a", "fork_session": True, "resume_session_id": UUID}, True),
    *(({"fallback_model": names}, False) for names in ("", ",", "a,", ",a", "a,,b", "a, b")),
]


@pytest.mark.parametrize(
    ("path", "body", "is_valid"),
    [
        (TASK_BODY, {**MESSAGE, "max_turns": 3.0}, True),
        (TASK_BODY, {**MESSAGE, "max_turns": 1e2}, True),
        (TASK_BODY, {**MESSAGE, "max_turns": 3.5}, False),
        (TASK_BODY, {**MESSAGE, "max_turns": 0.0}, False),
        (TASK_BODY, {**MESSAGE, "max_turns": 1e300}, False),
        (TASK_BODY, {**MESSAGE, "timeout_seconds": 3}, True),
        (TASK_BODY, {"message": ""}, False),
        (TASK_BODY, {"message": " \n\u00a0\u3000\x1f"}, False),
        (TASK_BODY, {**MESSAGE, "message": "\ufeff"}, True),
        (TASK_BODY, {**MESSAGE, "mcp_config": {}}, False),
        (TASK_BODY, {**MESSAGE, "mcp_config": {"mcpServers": []}}, False),
        (TASK_BODY, {**MESSAGE, "mcp_config": {"mcpServers": {}, "other": 1}}, True),
        (TASK_BODY, {**MESSAGE, "mcp_config": None}, True),
        (TASK_BODY, {**MESSAGE, "fresh_session": True, "resume_session_id": UUID}, False),
        (TASK_BODY, {**MESSAGE, "fresh_session": False, "resume_session_id": UUID}, True),
        (TASK_BODY, {**MESSAGE, "fresh_session": True, "resume_session_id": None}, True),
        (TASK_BODY, {**MESSAGE, "unknown": 1}, False),
        *(
            (TASK_BODY, {**MESSAGE, "cwd": cwd, "create_cwd": True}, is_valid)
            for cwds, is_valid in (
                (("a/b", ".a", "..a/...", "~", "-x", "ü b", "x" * 255, "/".join(["x"] * 100)), True),
                (
                    (None, "", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "a/../b", "a\nb", "a\0", "x" * 256),
                    False,
                ),
                (("/".join(["x"] * 101), "/".join(["x" * 200] * 15)), False),
            )
            for cwd in cwds
        ),
        *((TASK_BODY, {**MESSAGE, **fields}, is_valid) for fields, is_valid in TOGETHER),
        *((TASK_BODY, {**MESSAGE, "add_dirs": dirs}, ok) for dirs, ok in (([], True), (["/"], False), (["."], False))),
        *(
            (TASK_BODY, {**MESSAGE, "env": env}, is_valid)
            for env, is_valid in (
                *(({}, True), ({"A": "", "_1": "x\n", "a" * 256: "="}, True), ({"": "x"}, False), ({"1": "x"}, False)),
                *(({"A-B": "x"}, False), ({"A": "\0"}, False), ({"A": 1}, False), ({"A": None}, False), ([], False)),
            )
        ),
        *(
            (TASK_BODY, {**MESSAGE, "images": [{"media_type": "image/png", "data": data}]}, is_valid)
            for data, is_valid in (("", True), ("AAAA", True), ("AA==", True), ("AAA", False), ("A===", False))
        ),
        (TOKEN_BODY, {}, True),
        (TOKEN_BODY, {"remove_api_key": None}, True),
        (TOKEN_BODY, {"remove_api_key": 1}, False),
        (TOKEN_BODY, {"unknown": "x"}, False),
        (TOKEN_BODY, [], False),
        (TOKEN_BODY, None, False),
        (TOKEN_BODY, {"token": None}, False),
        *(
            (TOKEN_BODY, {"token": token}, is_valid)
            for token, is_valid in (
                *((NEW, True), ("sk-ant-api03-0000", True), ("an.opaque~token+of/a-gateway==", True), ("", False)),
                *(("x" * 15, False), ("x" * 16, False), ("0" * 16, True), ("sk-ant-ort01-refresh-token", False)),
                *(
                    ("/run/secrets/claude/token", False),
                    ("secret/data/of-a-vault", False),
                    ("NAME_OF_A_VARIABLE", False),
                ),
                *(("name=a-value-of-sixteen", False), ("two words of sixteen", False), ("a-token-cut-off...", False)),
            )
        ),
    ],
)
def test_the_schema_of_a_body_and_the_route_accept_the_same(
    running: Supervised, description: Description, path: str, body: Any, is_valid: bool
) -> None:
    response = running.client.post(path, content=json.dumps(body))

    schema = description.operation_of("POST", path)["requestBody"]["content"]["application/json"]["schema"]
    if is_valid:
        description.validate(body, schema)
    else:
        from jsonschema import ValidationError

        with pytest.raises(ValidationError):
            description.validate(body, schema)
    assert (response.status_code != 400) == is_valid, response.text


def test_every_field_of_whole_numbers_takes_one_with_a_fraction_of_zero(built: Description) -> None:
    fields = built.document["components"]["schemas"]["Task"]["properties"]
    whole = [name for name, schema in fields.items() if '"integer"' in json.dumps(schema)]

    assert whole
    for name in whole:
        task, _ = parse(json.dumps({"message": "x", name: 2.0}).encode(), strict=True)
        same, _ = parse(json.dumps({"message": "x", name: 2}).encode(), strict=True)
        assert (task, task.digest) == (same, same.digest)


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("", "", 200),
        ("0", "x", 400),
        ("x", "0", 400),
        *(("", value, 400) for value in (" ", "-1", "1.0", "9" * 19, "\u0661")),
    ],
)
def test_a_position_is_nothing_or_a_number_in_header_and_query(
    running: Supervised, header: str, value: str, status: int
) -> None:
    eventually(lambda: running.post(OK, execution_id="there").status_code == 200)
    for path in ("/api/events", "/api/executions/there/stream"):
        words: dict[str, Any] = {"params": {"last_event_id": value}, "headers": {"Last-Event-ID": header}}
        with running.client.stream("GET", path, **words) as response:
            assert response.status_code == status


def test_unknown_fields_are_described_as_they_are_taken(built: Description, tmp_path: Path) -> None:
    lenient = build(ROUTES, access_header="X-Agent-Token", key_required=True, strict=False)
    for document, is_closed in ((built.document, True), (lenient, False)):
        schemas = document["components"]["schemas"]
        assert [("additionalProperties" in schemas[name]) for name in ("Task", "NewToken")] == [is_closed] * 2
    reference = {"$ref": "#/components/schemas/NewToken"}
    with supervised(tmp_path, environment={"AGENT_RUNTIME_STRICT": "false"}) as running:
        served = running.get("/openapi.json")
        assert served["components"]["schemas"]["NewToken"] == lenient["components"]["schemas"]["NewToken"]
        for body, is_valid in (({}, True), ({"token": NEW, "other": 1}, True), ({"tokn": NEW}, False)):
            from jsonschema import Draft202012Validator

            validator = Draft202012Validator({"components": served["components"], **reference})
            assert validator.is_valid(body) == is_valid
            assert (running.client.post("/api/credentials/reload-token", json=body).status_code == 200) == is_valid


def test_a_body_is_read_whatever_its_type_says(running: Supervised, description: Description) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/xml", ""):
        headers = {"Content-Type": kind}
        taken = running.client.post("/api/credentials/reload-token", content=b"{}", headers=headers)
        assert description.check(taken).status_code == 200
        refused = running.client.post("/api/credentials/reload-token", content=b"<a/>", headers=headers)
        assert description.check(refused).status_code == 400


def test_what_a_web_page_may_have_sent_is_refused_as_described(running: Supervised, description: Description) -> None:
    for entry in ROUTES:
        path = entry.path.replace("{id}", "fine")
        response = running.client.request(entry.method, path, headers={"Origin": "https://attacker.example"})
        if response.status_code != 200:
            assert description.check(response).json()["error_class"] == "invalid_request"
        else:
            assert entry.open


def test_a_limited_and_a_refused_token_are_described(tmp_path: Path, description: Description) -> None:
    limit = {"do": "rate_limit", "status": "rejected", "limit_type": "five_hour", "resets_at": int(time.time()) + 3600}
    flags = ("--probe", "off", "--park", "0", "--max-resumes", "0", "--drain-timeout", "0.2", "--stop-grace", "0.1")
    with supervised(tmp_path, flags=flags) as running:
        met = description.check(running.post({"script": [INIT, limit, *give_up("rate_limit", 429)[1:]]}))
        assert (met.json()["error_class"], met.status_code) == ("rate_limit", 429)
        description.check(running.client.get("/api/token"))
        assert description.check(running.post(OK)).json()["error_class"] == "rate_limit"

        description.check(running.client.post("/api/credentials/reload-token", json={"token": NEW}))
        assert description.check(running.post(DEAD)).json()["error_class"] == "auth"
        assert description.check(running.client.get("/api/token")).json()["state"] == "refused"
        description.check(running.client.get("/readyz"))
        pending = running.start({"script": OK["script"]}, park_seconds=60)
        eventually(lambda: running.get("/api/executions?state=parked")["executions"])
        description.check(running.client.get("/api/executions?state=parked"))
        description.check(running.client.get("/api/executions/running"))
        running.process.terminate()
        assert description.check(pending.answer()).json()["error_class"] == "interrupted"


def test_without_token_cli_or_key_it_is_as_described(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("the-access-key")
    environment = {"AGENT_RUNTIME_TOKEN_FILE": "/proc/version"}
    flags = ("--access-key-file", str(tmp_path / "key"), "--access-header", "X-Key")
    with supervised(tmp_path, claude="/nonexistent/claude", environment=environment, flags=flags) as running:
        ask = running.client.request
        described = Description(ask("GET", "/openapi.json", headers={"X-Key": "the-access-key"}).json())
        for entry in ROUTES:
            response = ask(entry.method, entry.path.replace("{id}", "unknown"))
            if not entry.open:
                assert described.check(response).json()["error_class"] == "access"
        assert described.check(ask("GET", "/health")).json() == {"status": "degraded"}

        key = {"X-Key": "the-access-key"}
        denied = described.check(ask("POST", "/api/credentials/reload-token", json={"token": NEW}, headers=key))
        assert denied.json()["error_class"] == "not_writable"
        described.check(ask("GET", "/health", headers=key))
        described.check(ask("GET", "/api/token", headers=key))
        assert described.check(ask("POST", "/api/task", json={"message": "x"}, headers=key)).status_code == 500


def test_enough_was_held_against_it(description: Description) -> None:
    """Look last at what the tests above have seen: every operation, and every class but what cannot be made here."""
    if len(description.seen) < 10:
        pytest.skip("the tests above were not run")
    reached = {error for _, _, error in description.seen}
    unreachable = {ErrorClass.OOM, ErrorClass.NO_TOKEN, ErrorClass.SPAWN, ErrorClass.INVALID_REQUEST}

    assert {operation for operation, _, _ in description.seen} == {operation.id for operation in ROUTES}
    assert set(map(str, set(EXECUTION_ERRORS) - unreachable)) - reached == set()
