"""The callers of a soak: tasks in every way there is, streams, and questions."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from agent_runtime.client.sse import EventReader
from tests.soak.bed import fields
from tests.soak.journal import Invariant

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from tests.soak.bed import Bed

EXPECTED = {
    (200, None): "success, or cancelled",
    (202, None): "it goes on",
    (409, "busy"): "more callers than slots and places",
    (409, "draining"): "a restart by SIGTERM",
    (429, "rate_limit"): "a usage limit",
    (500, "interrupted"): "a restart",
    (500, "signal"): "kill -9 of a CLI",
    (502, "lost_result"): "a CLI that ends without one",
    (502, "upstream"): "what a tool forged, each time",
    (503, "auth"): "a dead token",
    (503, "billing"): "an account without credit",
    (504, "timeout"): "a task's own time",
}
EXPECTED_ON_A_FULL_DISK = {
    (409, "storage"): "it is not known whether the task has run",
    (404, "not_found"): "nothing of it was written when the supervisor was killed",
}
NO_TOKEN = (500, "no_token")
STREAM_REFUSALS = {404, 409}
"""Of an execution that is not known yet, or where there are too many readers."""
WAYS = ("waited for", "asynchronous", "connection cut", "posted twice", "cancelled")
TIMEOUT_SECONDS = 45
TRIES = 6


@dataclass
class Submission:
    """
    One execution, as its caller knows it.

    Attributes:
        admitted_at: When an answer first said that it was let in (monotonic seconds).
        answer: The answer to the last POST, if it got one.
        lines: Digests of the lines that a stream showed, by their numbers.
    """

    execution_id: str
    kind: str
    message: str
    admitted_at: float | None = None
    answer: tuple[int, dict[str, Any]] | None = None
    lines: dict[int, str] = field(default_factory=dict, repr=False)


def task(kind: str, execution_id: str, home: Path, rng: random.Random) -> str:
    """Make up a task of a kind."""
    if kind == "plain":
        return f"[[script:build]] {execution_id}"
    talk = [
        {"do": "assistant", "text": f"{execution_id} {number} " + "x" * rng.choice((10, 1000, 30_000))}
        for number in range(rng.randrange(1, 6))
    ]
    pause: dict[str, Any] = {"do": "sleep", "seconds": round(rng.uniform(0.05, 0.8), 2)}
    request: dict[str, Any] = {"do": "request"}
    ways = ("plain", "setsid", "double_fork", "empty_env", "tree")
    spill = 'tr "\\\\0" "\\\\n" </proc/$PPID/environ; cat "$CLAUDE_CONFIG_DIR/.credentials.json"; true'
    middle: dict[str, list[dict[str, Any]]] = {
        "talk": [],
        "family": [{"do": "spawn", "kind": way, "seconds": 300, "hold_pipes": rng.random() < 0.3} for way in ways],
        "spill": [{"do": "tool", "command": spill}],
        "flood": [{"do": "flood", "bytes": rng.randrange(100_000, 2_000_000)}],
        "stubborn": [
            {"do": "stubborn"},
            {"do": "spawn", "kind": "setsid", "seconds": 300, "ignore_signals": True},
            {"do": "sleep", "seconds": 1.5},
        ],
        "crash": [{"do": "exit", "code": 1, "when": "first"}],
        "forge": [{"do": "forge", "when": "first"}, {"do": "sleep", "seconds": 1, "when": "first"}],
    }
    end = {"do": "touch", "path": str(home / "ran"), "text": f"end {execution_id} {{pid}}"}
    result = {"do": "result", "text": f"Done: {execution_id}."}
    steps = [{"do": "init"}, *talk, pause, *middle[kind], request, pause, request, end, result]
    return json.dumps({"script": steps})


KINDS = ("plain", "talk", "talk", "family", "spill", "flood", "stubborn", "crash", "forge")


class Load:
    """
    Callers, each a thread of its own.

    Attributes:
        posts: How many tasks are being posted; while :attr:`Bed.calm` is set there come no further ones.
    """

    def __init__(self, bed: Bed, *, full_disk: bool) -> None:
        self._bed, self._journal = bed, bed.journal
        self.submissions: dict[str, Submission] = {}
        self.posts = 0
        self._expected = EXPECTED | (EXPECTED_ON_A_FULL_DISK if full_disk else {})
        self._full_disk = full_disk
        self._numbers = iter(range(1, 1 << 30))
        self._lock = threading.Lock()

    # -- tasks

    def caller(self, rng: random.Random) -> None:
        """Submit one task after the other, until the soak is over."""
        while not self._bed.stop.is_set():
            if self._bed.calm.is_set():
                self._bed.stop.wait(0.1)
                continue
            with self._lock:
                name = f"soak-{next(self._numbers)}"
            kind, way = rng.choice(KINDS), rng.choice(WAYS)
            submission = Submission(name, kind, task(kind, name, self._bed.home, rng))
            self.submissions[name] = submission
            self._journal.did(f"task, {way}")
            with self._bed.client() as client:
                self._run(client, submission, way, rng)

    def _run(self, client: httpx.Client, submission: Submission, way: str, rng: random.Random) -> None:
        if way != "waited for":
            first = self._post(
                client,
                submission,
                **({"timeout": rng.uniform(0.02, 2)} if way == "connection cut" else {"wait": False}),
            )
            if first is not None and first[0] == 202:
                if way == "cancelled":
                    self._bed.stop.wait(rng.uniform(0, 2))
                    self._ask(client, "POST", f"/api/executions/{submission.execution_id}/terminate")
                elif way == "asynchronous":
                    self._follow(client, submission, rng)
        for _ in range(TRIES):
            if self._bed.stop.is_set():
                return
            answer = self._post(client, submission)
            if answer is not None and answer[0] == 200:
                return
            if answer is not None and "execution_id" in answer[1]:
                self._journal.did("task, posted again after a failure")
            self._bed.stop.wait(rng.uniform(0.2, 1.0))

    def _post(
        self, client: httpx.Client, submission: Submission, *, wait: bool = True, timeout: float | None = None
    ) -> tuple[int, dict[str, Any]] | None:
        body = {
            "message": submission.message,
            "execution_id": submission.execution_id,
            "timeout_seconds": TIMEOUT_SECONDS,
            "async_result": not wait,
        }
        with self._lock:
            if self._bed.calm.is_set():
                return None
            self.posts += 1
        try:
            answer = self._ask(client, "POST", "/api/task", body, timeout)
        finally:
            with self._lock:
                self.posts -= 1
        if answer is not None and "execution_id" not in answer[1]:
            return answer  # it was turned away
        submission.answer = answer if answer is not None and answer[0] != 202 else None
        if answer is not None and submission.admitted_at is None:
            submission.admitted_at = time.monotonic()
        return answer

    def _ask(
        self, client: httpx.Client, method: str, path: str, body: Any = None, timeout: float | None = None
    ) -> tuple[int, dict[str, Any]] | None:
        """Return status and body of an answer; None: there was none, as the supervisor or the caller went away."""
        asked_at = time.monotonic()
        try:
            extra = {} if timeout is None else {"timeout": timeout}
            response = client.request(method, path, json=body, **extra)  # type: ignore[arg-type] # a float
        except httpx.HTTPError:
            if timeout is not None:
                self._journal.did("connection cut by its caller")
            return None
        self._journal.see(f"{method} {path}", response.content)
        answer = fields(response.content)
        said = response.status_code, answer.get("error_class")
        if said not in self._expected and not (said == NO_TOKEN and self._bed.began_in_a_storm(asked_at)):
            text = f"{method} {path}: {response.status_code} {str(answer.get('detail', answer))[:200]}"
            self._journal.violated(Invariant.STATUS, text)
        self._journal.did(f"answer {response.status_code} {answer.get('error_class', '')}".strip())
        if answer.get("metadata", {}).get("retained") is False:
            self._journal.did("answer that says it is not retained")
        return response.status_code, answer

    # -- streams

    def _follow(self, client: httpx.Client, submission: Submission, rng: random.Random) -> None:
        """Read an execution's stream to its next end, cut now and then, and go on after the last line."""
        path, position, until = f"/api/executions/{submission.execution_id}/stream", 0, time.monotonic() + 60
        while time.monotonic() < until and not self._bed.stop.is_set():
            after = {"last-event-id": str(position)} if position else {}
            for name, number, data in self._events(client, path, after, rng.choice((3, 20, 1000))):
                if name == "message":
                    line = int(number or 0)
                    if line <= position or (line > position + 1 and position >= 0):
                        self._journal.violated(Invariant.LINES, f"{path}: line {line} after {position}")
                    position = line
                    submission.lines[line] = hashlib.sha256(data).hexdigest()
                elif name == "gap":
                    self._journal.did("gap in a stream")
                    if not self._full_disk:
                        self._journal.violated(Invariant.LINES, f"{path}: a gap after {position}: {data!r}")
                    position = -1 if number is None else int(number)
                elif name == "end":
                    self._journal.did("stream read to its end")
                    return
            self._journal.did("stream cut, and continued")
            self._bed.stop.wait(0.1)

    def _events(
        self, client: httpx.Client, path: str, headers: dict[str, str], most: int
    ) -> Iterator[tuple[str, str | None, bytes]]:
        """Yield the events of one connection, which is closed after *most* chunks at the latest."""
        reader = EventReader()
        try:
            with client.stream("GET", path, headers=headers, timeout=20) as response:
                if response.status_code != 200:
                    if response.status_code not in STREAM_REFUSALS:
                        self._journal.violated(Invariant.STATUS, f"GET {path}: {response.status_code}")
                    return
                for count, chunk in enumerate(response.iter_raw()):
                    for name, number, data in reader.feed(chunk):
                        self._journal.see(f"stream {path}", data)
                        yield name, number, data
                    if count >= most or self._bed.stop.is_set():
                        return
        except httpx.HTTPError:
            return

    def event_reader(self, rng: random.Random) -> None:
        """Read the event stream until the soak is over, cut now and then."""
        position = 0
        while not self._bed.stop.is_set():
            after = {"last-event-id": str(position)} if position else {}
            with self._bed.client() as client:
                for name, number, _ in self._events(client, "/api/events", after, rng.choice((5, 50, 200))):
                    if number is not None and name != "gap" and int(number) <= position:
                        self._journal.violated(Invariant.EVENTS, f"{name} {number} after {position}")
                    position = position if number is None else int(number)
                    self._journal.did(f"event {name}")
            self._journal.did("event stream cut, and continued")
            self._bed.stop.wait(0.2)

    def questioner(self, rng: random.Random) -> None:
        """Ask for everything else that anybody can see."""
        paths = (
            "/health",
            "/metrics",
            "/api/token",
            "/api/executions",
            "/api/executions/running",
            "/readyz",
            "/openapi.json",
        )
        while not self._bed.stop.wait(rng.uniform(0.2, 1.0)):
            lifetime, path = self._bed.lifetime, rng.choice(paths)
            try:
                with self._bed.client() as client:
                    response = client.get(path)
            except httpx.HTTPError as error:
                if lifetime == self._bed.lifetime and self._bed.answers:
                    self._journal.violated(Invariant.STATUS, f"GET {path}: {type(error).__name__}")
                continue
            self._journal.see(f"GET {path}", response.content)
            self._journal.did("question")
            if response.status_code != 200 and path != "/readyz":
                self._journal.violated(Invariant.STATUS, f"GET {path}: {response.status_code}")
