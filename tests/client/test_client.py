"""The client against real supervisors, behind a network that cuts, over restarts, and against servers that are none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import pytest

from agent_runtime.client import (
    AgentClient,
    Answer,
    ClientError,
    RequestRefused,
    StreamEvent,
    SyncAgentClient,
    TokenFailed,
)
from agent_runtime.client.exchange import no_answer
from agent_runtime.errors import SecretUnreadable
from agent_runtime.model.task import Task
from tests.support.broken_network import (
    Cut,
    gate,
    http,
    says,
    stranger,
    waits_for_the_client_to_go,
)
from tests.support.supervised import NEW, OLD, Supervised, eventually, fails, supervised
from tests.support.tls_api import own_certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


OK = json.dumps({"script": [{"do": "init"}, {"do": "assistant", "text": "Hello."}, {"do": "result", "text": "Hello."}]})
TALKATIVE = 40
CYCLE: dict[str, Any] = {}
CYCLE["a"] = CYCLE
PROGRAMS = Path(__file__).with_name("programs")
THERE = "there"


def holding(path: Path, *more: dict[str, Any]) -> str:
    """Say hello, tell so beside *path*, then wait until it exists, also when resumed."""
    here = {"do": "touch", "path": f"{path}-{THERE}"}
    steps = [{"do": "init"}, {"do": "assistant", "text": "Hello."}, *more, here]
    # Twice: a resumed session goes on with the first step that has not begun.
    waits = {"do": "wait_file", "path": str(path)}
    return json.dumps({"script": [*steps, waits, waits, {"do": "result", "text": "Done."}]})


class Flavour(Protocol):
    """One of the two clients, used the same way."""

    def __call__(self, url: str, call: str, *given: Any, options: dict[str, Any] | None = None, **fields: Any) -> Any:
        """Make a client, and make one call."""


def blocking(url: str, call: str, *given: Any, options: dict[str, Any] | None = None, **fields: Any) -> Any:
    with SyncAgentClient(url, **(options or {})) as client:
        if call == "stream":
            return list(client.stream(*given, **fields))
        return getattr(client, call)(*given, **fields)


def awaiting(url: str, call: str, *given: Any, options: dict[str, Any] | None = None, **fields: Any) -> Any:
    async def use() -> Any:
        async with AgentClient(url, **(options or {})) as client:
            if call == "stream":
                return [event async for event in client.stream(*given, **fields)]
            return await getattr(client, call)(*given, **fields)

    return asyncio.run(use())


@pytest.fixture(params=[blocking, awaiting])
def use(request: pytest.FixtureRequest) -> Flavour:
    flavour: Flavour = request.param
    return flavour


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("shared"), flags=("--slots", "2", "--queue", "1")) as running:
        yield running


class Call:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._outcome: Any = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._outcome = call()
        except BaseException as error:  # noqa: BLE001 - raised again below
            self._outcome = error

    def outcome(self) -> Any:
        self._thread.join(60)
        assert not self._thread.is_alive(), "no outcome in time"
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome


def is_running(running: Supervised, execution_id: str) -> bool:
    answer = running.client.get(f"/api/executions/{execution_id}")
    return answer.is_success and answer.json()["state"] == "running"


def lines_of(events: list[StreamEvent]) -> list[int | None]:
    return [event.id for event in events if event.name == "message"]


def test_a_task_is_run_and_answered_once(shared: Supervised, use: Flavour) -> None:
    answer: Answer = use(shared.url, "run", OK, max_turns=3)

    assert (answer.status, answer.response) == ("success", "Hello.")
    assert answer.metadata.attempts == 1
    assert answer.execution_log[-1]["type"] == "result"
    assert use(shared.url, "result", answer.execution_id) == answer
    assert use(shared.url, "status", answer.execution_id).outcome == "success"
    assert answer.execution_id in use(shared.url, "running").recently_completed_ids


@pytest.mark.parametrize(
    "cut",
    [Cut(request_bytes=1), Cut(reply_bytes=1), Cut(reply_bytes=500)],
    ids=["request begins", "answer begins", "answer half"],
)
def test_a_connection_that_is_cut_anywhere_costs_nothing(shared: Supervised, cut: Cut) -> None:
    with gate(shared.url, cut) as way:
        answer = blocking(way.url, "run", OK)

        assert answer.response == "Hello."
        assert way.connections >= 2
    assert len(shared.record(answer.execution_id)["attempts"]) == 1


@pytest.mark.slow
def test_a_request_that_is_cut_in_its_body_is_sent_again_and_is_no_fault_of_the_supervisor(tmp_path: Path) -> None:
    with supervised(tmp_path) as running, gate(running.url, Cut(request_bytes=250)) as way:
        answer = blocking(way.url, "run", OK)

        assert answer.response == "Hello."
        assert len(running.record(answer.execution_id)["attempts"]) == 1


def test_a_connection_that_is_cut_while_it_runs_is_no_failed_execution(
    shared: Supervised, use: Flavour, tmp_path: Path
) -> None:
    name = f"cut-{tmp_path.name}"
    with gate(shared.url) as way:
        call = Call(lambda: use(way.url, "run", holding(tmp_path / "go"), execution_id=name))
        eventually(lambda: is_running(shared, name))
        way.cut_all()
        (tmp_path / "go").touch()

        assert call.outcome().response == "Done."
    assert len(shared.record(name)["attempts"]) == 1


def test_a_failure_is_told_once_and_not_tried_again_because_its_answer_was_cut(
    shared: Supervised, tmp_path: Path
) -> None:
    name = f"failed-{tmp_path.name}"
    script = json.dumps({"script": [{"do": "init"}, {"do": "exit", "code": 0}]})
    with gate(shared.url, Cut(), Cut(reply_bytes=1)) as way, pytest.raises(ClientError, match="without a result"):
        awaiting(way.url, "run", script, execution_id=name)

    assert len(shared.record(name)["attempts"]) == 1


@pytest.mark.slow
def test_garbage_resets_and_half_answers_are_survived() -> None:
    success = b'{"execution_id": "x", "status": "success", "response": "Done."}'
    kept = b'{"execution_id": "x", "status_code": 200, "answer": %b, "retained_at": "now"}' % success
    with stranger(
        says(b"\x00\xff\x16\x03\x01 this is no HTTP\r\n\r\n"),
        says(http(200, success[:20], length=len(success)), then_resets=True),
        says(http(202, b"{}")),
        says(http(200, kept[:30], length=len(kept))),
        says(http(200, b"x" * 100, "content-encoding: gzip")),
        says(http(502, b"<html>")),
        says(http(202, b"{}")),
        says(b""),
        says(http(200, kept)),
    ) as server:
        answer = awaiting(server.url, "run", "Do it.")

        assert answer.response == "Done."
        assert [line.split()[0] for line in server.lines] == ["POST", *["GET"] * 8]


def test_a_server_that_never_answers_is_given_up_at_the_deadline(use: Flavour) -> None:
    with stranger(waits_for_the_client_to_go) as server:
        began = time.monotonic()
        with fails("deadline"):
            use(server.url, "run", "Do it.", deadline_seconds=0.3)

        assert 0.3 <= time.monotonic() - began < 3.0


def test_where_no_server_listens_the_call_gives_up_when_patience_is_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with fails("unreachable", match="nothing listens"):
        blocking(url, "run", "Do it.", options={"patience_seconds": 0.1})
    with fails("unreachable"):
        blocking(url, "health")
    with fails("unreachable"):
        blocking(url, "stream", "x", options={"patience_seconds": 0.1})


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        (socket.gaierror(-3, "private.example"), "its name cannot be resolved"),
        (ConnectionRefusedError(111, "private"), "nothing listens there"),
        (ExceptionGroup("private", [OSError(113, "private"), OSError(101, "private")]), "No route to host"),
        (OSError("private"), r"the connection broke \(ConnectError\)"),
        (None, r"the connection broke \(ConnectError\)"),
        (ssl.SSLEOFError(8, "private"), r"TLS cannot be begun there \(it ended\)"),
    ],
)
def test_what_kept_a_connection_from_being_made_is_told(cause: BaseException | None, says: str) -> None:
    error = httpx.ConnectError("private", request=httpx.Request("GET", "https://user:private@there.example/"))
    between = OSError("private")
    error.__cause__, between.__cause__ = between, cause
    told = no_answer(error)
    assert re.fullmatch(f"the supervisor at https://there.example cannot be reached: {says}", str(told))
    assert told.problem.code == "not_sent"


def test_a_server_whose_tls_is_not_trusted_or_none_is_told_so(tmp_path: Path) -> None:
    context, _ = own_certificate(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            with contextlib.suppress(OSError):
                for number in range(6):
                    accepted, _ = server.accept()
                    with accepted, contextlib.suppress(OSError):
                        if number < 3:
                            context.wrap_socket(accepted, server_side=True).close()
                        else:
                            accepted.sendall(b"HTTP/1.1 400 No\r\n\r\n")
                            accepted.recv(1000)

        threading.Thread(target=serve, daemon=True).start()
        for says in ("its TLS certificate is not accepted \\(self", "TLS cannot be begun there \\("):
            with fails("unreachable", match=says):  # after three tries
                blocking(url, "health")


def test_a_path_is_sent_as_text(shared: Supervised, use: Flavour, tmp_path: Path) -> None:
    where = Path("by") / tmp_path.name
    (shared.workspace / "by").mkdir(exist_ok=True)
    assert use(shared.url, "run", OK, cwd=where, create_cwd=True, add_dirs=[where.parent]).execution_id
    assert (shared.workspace / where).is_dir()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("cwd", object()), ("add_dirs", [Path("x"), object()]), ("labels", {"a": object()}), ("title", "\ud800")),
        *(("env", {"A": {3: object()}}), ("max_budget_usd", math.nan), ("agents", CYCLE), ("model", Task)),
    ],
)
def test_a_field_that_cannot_be_sent_is_named(use: Flavour, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        use("http://127.0.0.1:9", "run", "x", **{name: value})


def test_a_server_that_is_no_supervisor_is_told_apart(use: Flavour) -> None:
    with stranger(says(http(404, b"<html>not here</html>"))) as server:
        for call, given in (("run", "Do it."), ("token", None), ("stream", "x")):
            with fails("unexpected"):
                use(server.url, call, *([given] if given else []))
    with pytest.raises(ValueError, match="http"):
        use("ftp://nowhere", "health")


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        # The one that drains says when to come back, and so long it takes.
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_supervisor_that_restarts_in_the_middle_costs_no_execution(tmp_path: Path, number: int) -> None:
    message = holding(tmp_path / "go")
    flags = ("--drain-timeout", "0.5", "--stop-grace", "0.3")
    with contextlib.ExitStack() as stack:
        expected = 0 if number == signal.SIGTERM else -signal.SIGKILL
        with supervised(tmp_path, flags=flags, expect_exit=expected) as first:
            port = first.url.rpartition(":")[2]
            calls = [
                Call(lambda: blocking(first.url, "run", message, execution_id="blocking")),
                Call(lambda: awaiting(first.url, "run", message, execution_id="awaiting")),
            ]
            follower = Call(lambda: _stream_over_the_end(first.url, "blocking"))
            for name in ("blocking", "awaiting"):
                eventually(partial(is_running, first, name))
            there = tmp_path / f"go-{THERE}"
            eventually(lambda: there.exists() and len(there.read_text().splitlines()) == 2)
            first.stop(number)
        second = stack.enter_context(supervised(tmp_path, flags=("--port", port, *flags)))
        (tmp_path / "go").touch()

        assert [call.outcome().response for call in calls] == ["Done.", "Done."]
        for name in ("blocking", "awaiting"):
            record = second.record(name)
            assert (record["outcome"], len(record["attempts"])) == ("success", 2)
            assert second.get("/api/executions?limit=10")["next_cursor"] is None
        lines = follower.outcome()
        assert lines == list(range(1, len(lines) + 1))
        assert lines == lines_of(blocking(second.url, "stream", "blocking"))


def _stream_over_the_end(url: str, execution_id: str) -> list[int | None]:
    """Follow an execution to its success, over the end that an interruption gives its stream."""
    had: list[int | None] = []
    with SyncAgentClient(url) as client:
        while True:
            try:
                for event in client.stream(execution_id, after=int(had[-1] or 0) if had else 0):
                    had += lines_of([event])
                    if event.name == "end" and event.data["outcome"] == "success":
                        return had
            except RequestRefused:  # it has not been admitted yet
                continue


def test_a_stream_that_is_cut_again_and_again_brings_every_line_exactly_once(
    shared: Supervised, tmp_path: Path
) -> None:
    steps = [{"do": "assistant", "text": f"line {n}"} for n in range(TALKATIVE)]
    name = f"talkative-{tmp_path.name}"
    message = holding(tmp_path / "go", *steps)
    Call(lambda: shared.client.post("/api/task", json={"message": message, "execution_id": name, "async_result": True}))
    eventually(lambda: is_running(shared, name))
    with gate(shared.url, *[Cut(reply_bytes=700 + 900 * n) for n in range(5)]) as way:
        call = Call(lambda: awaiting(way.url, "stream", name))
        eventually(lambda: way.connections > 5)
        way.cut_all()
        (tmp_path / "go").touch()
        events = call.outcome()

    lines = lines_of(events)
    assert lines == list(range(1, len(lines) + 1))
    assert len(lines) > TALKATIVE
    assert (events[-1].name, events[-1].data["outcome"]) == ("end", "success")
    assert [event.name for event in events].count("end") == 1
    states = [event.data["state"] for event in events if event.name == "state"]
    assert states == ["running", "finished"]
    assert lines_of(awaiting(shared.url, "stream", name, after=lines[-3])) == lines[-2:]


def test_a_stream_that_ends_without_a_word_is_opened_again() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    first = b'event: message\nid: 1\ndata: {"n": 1}\n\nevent: message\nid: 2\nda'
    rest = b'event: message\nid: 2\ndata: {"n": 2}\n\nevent: end\ndata: {"type": "stream_end"}\n\n'
    with stranger(
        says(head + first),
        says(http(503, b"")),
        says(http(200, b"<html>", "content-type: text/html")),
        says(head + rest),
    ) as server:
        events = blocking(server.url, "stream", "x")

        assert [(event.name, event.id) for event in events] == [("message", 1), ("message", 2), ("end", None)]
        asked_after = [b"last-event-id: 1\r\n" in request.lower() for request in server.requests]
        assert asked_after == [False, True, True, True]


def test_a_refused_token_is_told_as_such_and_a_new_one_cures_it(tmp_path: Path) -> None:
    dead = json.dumps({"script": [{"do": "init"}, {"do": "api_error", "status": 401}, {"do": "hang"}]})
    with supervised(tmp_path, flags=("--probe", "off")) as running:
        with fails("auth") as error:
            blocking(running.url, "run", dead, execution_id="dead")
        assert error.value.problem.token_generation == 1
        assert (error.value.execution_id, error.value.status) == ("dead", 503)
        with fails("auth"):
            blocking(running.url, "run", OK)
        assert blocking(running.url, "token").state == "refused"
        with pytest.raises(SecretUnreadable):
            blocking(running.url, "write_token", running.token_file, "two\nlines")

        assert blocking(running.url, "write_token", str(running.token_file), NEW) == []

        eventually(lambda: blocking(running.url, "token").generation == 2)
        assert blocking(running.url, "run", OK).metadata.token_generation == 2
        assert blocking(running.url, "reload_token").reloaded is False
        assert blocking(running.url, "reload_token", OLD).generation == 3


def test_a_refused_token_is_told_once_also_by_those_that_waited_for_a_slot(tmp_path: Path) -> None:
    go = tmp_path / "go"
    waits = {"do": "wait_file", "path": str(go)}
    dead = json.dumps({"script": [{"do": "init"}, waits, {"do": "api_error", "status": 401}, {"do": "hang"}]})
    told: list[TokenFailed] = []
    with (
        supervised(tmp_path, flags=("--probe", "off", "--park", "0", "--slots", "1")) as running,
        SyncAgentClient(running.url, on_token_failed=told.append) as agent,
    ):
        for execution_id in ("first", "second", "third"):
            agent.submit(dead, execution_id=execution_id)
        go.touch()
        for execution_id in ("first", "second", "third"):
            with fails("auth") as error:
                agent.result(execution_id)
            assert error.value.generation == 1
            assert error.value.problem.token_stale is False
    assert [error.generation for error in told] == [1]


def test_a_usage_limit_is_told_with_its_end(shared: Supervised) -> None:
    resets_at = int(time.time()) + 3600
    limited = {"do": "rate_limit", "status": "rejected", "limit_type": "five_hour", "resets_at": resets_at}
    gives_up = {"do": "give_up", "text": "You've hit your 5-hour limit", "error": "rate_limit", "status": 429}
    try:
        for _ in range(2):  # the one that meets it, and the one that is turned away for it
            with fails("rate_limit") as error:
                blocking(shared.url, "run", json.dumps({"script": [{"do": "init"}, limited, gives_up]}))
            assert error.value.resets_at is not None
            assert error.value.resets_at.timestamp() == resets_at
            assert 3500 < (error.value.retry_after_seconds or 0) <= 3600
    finally:
        blocking(shared.url, "reload_token")  # which forgets the limit


def test_a_call_that_is_turned_away_until_the_deadline_says_why(shared: Supervised, tmp_path: Path) -> None:
    go = tmp_path / "go"
    held = [shared.start(holding(go), execution_id=f"held-{n}-{tmp_path.name}") for n in range(3)]
    eventually(lambda: len(shared.get("/api/executions/running")["pending_ids"]) == 1)
    try:
        # Retry-After is longer than the caller has time: it is told why it never got in.
        with fails("busy") as error:
            awaiting(shared.url, "run", OK, deadline_seconds=0.2)
        assert (error.value.retry_after_seconds or 0) > 0
    finally:
        go.touch()

    assert [one.answer().status_code for one in held] == [200, 200, 200]
    assert awaiting(shared.url, "run", OK).response == "Hello."


def test_ending_draining_and_looking(shared: Supervised, use: Flavour, tmp_path: Path) -> None:
    name = f"ended-{tmp_path.name}"
    call = Call(lambda: use(shared.url, "run", holding(tmp_path / "never"), execution_id=name))
    eventually(lambda: is_running(shared, name))
    assert [one.execution_id for one in use(shared.url, "running").executions] == [name]
    with fails("conflict"):
        use(shared.url, "submit", "Something else.", execution_id=name)

    assert use(shared.url, "terminate", name).status == "terminated"
    assert use(shared.url, "terminate", name).status == "already_finished"

    answer = call.outcome()
    assert (answer.status, answer.is_cancelled) == ("cancelled", True)
    assert use(shared.url, "drain").draining is True
    assert use(shared.url, "health").draining is True
    assert use(shared.url, "undrain").draining is False
    assert use(shared.url, "execution", name).outcome == "cancelled"
    assert use(shared.url, "executions", limit=1).executions[0].execution_id == name
    for call_name in ("result", "terminate", "status", "stream"):
        with fails("not_found"):
            use(shared.url, call_name, "never heard of")
    with fails("invalid_request", match="model"):
        use(shared.url, "run", OK, model=" ")


def test_a_submitted_task_is_not_waited_for(shared: Supervised, tmp_path: Path) -> None:
    execution_id = awaiting(shared.url, "submit", holding(tmp_path / "go"))
    eventually(lambda: is_running(shared, execution_id))
    with fails("deadline"):
        awaiting(shared.url, "result", execution_id, deadline_seconds=0.2)
    (tmp_path / "go").touch()

    assert awaiting(shared.url, "result", execution_id).response == "Done."


def test_cancelling_a_call_leaves_the_execution(shared: Supervised, tmp_path: Path) -> None:
    name = f"left-{tmp_path.name}"

    async def cancelled() -> None:
        async with AgentClient(shared.url) as client:
            call = asyncio.create_task(client.run(holding(tmp_path / "go"), execution_id=name))
            await asyncio.to_thread(eventually, lambda: is_running(shared, name))
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(cancelled())

    assert is_running(shared, name)
    (tmp_path / "go").touch()
    assert blocking(shared.url, "result", name).response == "Done."


def test_ctrl_c_ends_a_blocking_wait_at_once_and_leaves_the_execution(shared: Supervised, tmp_path: Path) -> None:
    name = f"ctrl-c-{tmp_path.name}"
    words = [
        sys.executable,
        "-W",
        "error",
        str(PROGRAMS / "interrupted.py"),
        shared.url,
        holding(tmp_path / "go"),
        name,
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        eventually(lambda: is_running(shared, name))
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "True\n"

    assert process.returncode == 0
    assert time.monotonic() - began < 5
    (tmp_path / "go").touch()
    assert blocking(shared.url, "result", name).response == "Done."


def test_ctrl_c_lets_the_connection_go_while_the_client_stays_open() -> None:
    gone = threading.Event()

    def until_the_client_goes(connection: socket.socket) -> None:
        waits_for_the_client_to_go(connection)
        gone.set()

    with stranger(until_the_client_goes) as server, SyncAgentClient(server.url) as client:

        def press() -> None:
            eventually(lambda: server.requests)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        pressed = Call(press)
        with pytest.raises(KeyboardInterrupt):
            client.run("Do it.")
        assert gone.wait(10)
        pressed.outcome()


def test_threads_share_a_blocking_client_also_inside_a_running_loop(shared: Supervised) -> None:
    async def beside_a_loop(client: SyncAgentClient) -> Answer:
        return client.run(OK)

    with SyncAgentClient(shared.url) as client:
        calls = [Call(lambda: client.run(OK)) for _ in range(2)]

        assert asyncio.run(beside_a_loop(client)).response == "Hello."
        assert [call.outcome().response for call in calls] == ["Hello."] * 2


def test_a_blocking_client_that_is_closed_ends_the_calls_of_other_threads_and_its_own_thread() -> None:
    before = threading.active_count()
    with stranger(waits_for_the_client_to_go) as server:
        client = SyncAgentClient(server.url)
        call = Call(lambda: client.run("Do it."))
        eventually(lambda: server.requests)
        client.close()
        with fails("closed"):
            call.outcome()
    with fails("closed"):
        client.health()
    client.close()
    SyncAgentClient(server.url)  # which nobody keeps, and nobody closes

    eventually(lambda: threading.active_count() == before)


def test_a_blocking_client_that_is_not_closed_keeps_no_process_from_ending(shared: Supervised) -> None:
    program = str(PROGRAMS / "forked.py")
    words = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", program, shared.url]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)

    assert (done.stdout, done.stderr, done.returncode) == ("ready\nclosed\nready\n", "", 0)


def test_a_stream_that_is_left_early_lets_its_connection_go(shared: Supervised, tmp_path: Path) -> None:
    name = f"left-early-{tmp_path.name}"
    with SyncAgentClient(shared.url) as client, gate(shared.url) as way, SyncAgentClient(way.url) as behind:
        client.submit(holding(tmp_path / "go"), execution_id=name)
        eventually(lambda: is_running(shared, name))
        with contextlib.closing(behind.stream(name)) as events:
            assert next(events).name in ("state", "message")
            assert way.open_connections == 1
        eventually(lambda: way.open_connections == 0)
        (tmp_path / "go").touch()
        assert client.result(name).response == "Done."


@pytest.mark.parametrize("family", [socket.AF_INET6, socket.AF_UNIX], ids=["IPv6", "unix"])
def test_another_kind_of_socket_is_reached(family: int, use: Flavour, tmp_path: Path) -> None:
    address: Any = str(tmp_path / "socket") if family == socket.AF_UNIX else ("::1", 0)
    with stranger(says(http(200, b'{"status": "ok"}')), family=family, address=address) as server:
        transport = httpx.AsyncHTTPTransport(uds=address) if family == socket.AF_UNIX else None

        assert use(server.url, "health", options={"transport": transport}).status == "ok"


def test_the_access_key_is_shown_and_read_again_when_it_changes(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("first-access-key\n")
    with supervised(tmp_path, flags=("--access-key-file", str(key))) as running:
        with fails("access"):
            awaiting(running.url, "run", OK)
        with fails("access"):
            awaiting(running.url, "stream", "x", options={"access_key": "wrong"})
        assert awaiting(running.url, "run", OK, options={"access_key": "first-access-key"}).response == "Hello."
        header = {"access_key": "first-access-key", "access_header": "X-Agent-Token"}
        assert awaiting(running.url, "token", options=header).state == "ready"
        with SyncAgentClient(running.url, access_key_file=key) as client:
            assert client.token().state == "ready"
            key.write_text("second-access-key\n")
            assert client.token().state == "ready"
            assert "access-key" not in repr(vars(client))
            key.unlink()
            with pytest.raises(ClientError, match="key file"):
                client.token()


def test_proxies_of_the_environment_are_not_asked(
    shared: Supervised, use: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert use(shared.url, "health").status == "ok"


HTTP_API = Path(__file__).parents[2] / "docs/http-api.md"
EXAMPLES = [
    piece.partition("```")[0] for piece in HTTP_API.read_text().partition("## From Python")[2].split("```python\n")[1:]
]


def run_example(example: str, running: Supervised, script: list[dict[str, Any]], typed: str = "") -> str:
    """Run an example of the page against this supervisor, and return what it prints."""
    for named, here in (
        ("http://127.0.0.1:8000", running.url),
        ("/run/secrets/claude/token", str(running.token_file)),
        ('"Fix the tests."', repr(json.dumps({"script": script}))),
    ):
        assert named in example
        example = example.replace(named, here)
    words = [sys.executable, "-c", example]
    done = subprocess.run(words, input=typed, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_of_the_page_run_as_written(tmp_path: Path) -> None:
    answers_by_token: list[dict[str, Any]] = [
        {"do": "api_error", "status": 401, "when": "first"},
        {"do": "hang", "when": "first"},
    ]
    # A session goes on where the model has said something in it.
    begins: list[dict[str, Any]] = [{"do": "init"}, {"do": "assistant", "text": "I look at the tests."}]
    with supervised(tmp_path, flags=("--probe", "off")) as running:
        script = [*begins, *answers_by_token, {"do": "result", "text": "Fixed."}]
        assert run_example(EXAMPLES[0], running, script, typed=f"{NEW}\n") == "another token: Fixed.\n"
        assert running.record("fix-1")["metadata"]["token_generation"] == 2

        printed = run_example(EXAMPLES[1], running, [*begins, {"do": "result", "text": "Fixed."}]).splitlines()
        assert printed[0].startswith("token.loaded ")
        assert printed[-2].startswith("execution.finished ")
        assert float(printed[-1]) >= 0
    assert len(EXAMPLES) == 2
