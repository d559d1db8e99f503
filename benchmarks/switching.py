"""Time from the replacement of the secret file until it is noticed, and until a request carries the new token."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import threading
import time
from typing import TYPE_CHECKING

from watchfiles import watch

from agent_runtime.secret.file import SecretFile
from agent_runtime.secret.generations import GenerationLedger
from agent_runtime.secret.writer import put
from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve
from benchmarks.bed import directory, nothing_cli, supervisor, token, until
from benchmarks.harness import Bench, Figure, Row, in_turn, p99_at_most
from benchmarks.machine import real_clis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from benchmarks.harness import Scale

IN_MOVED_TO = 0x80
CLI = "2.1.332"
NUMBERS = itertools.count(1)


class Known:
    """When each content of a file was first seen by its watcher."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._changed = threading.Condition()

    def tell(self, text: str) -> None:
        now = time.monotonic()
        with self._changed:
            self._seen.setdefault(text, now)
            self._changed.notify_all()

    def since(self, text: str, begun: float) -> float:
        """Return how many milliseconds after *begun* the content *text* was seen."""
        with self._changed:
            if not self._changed.wait_for(lambda: text in self._seen, 30):
                raise TimeoutError("a content was never noticed")
            return (self._seen[text] - begun) * 1000


@contextlib.contextmanager
def by_secret_file(path: Path) -> Iterator[Known]:
    known = Known()
    secret = SecretFile(
        path,
        ledger=GenerationLedger(path.parent.parent),
        on_change=lambda status: known.tell(status.generation.token.secret) if status.generation else None,
    )
    secret.start()
    try:
        yield known
    finally:
        secret.stop()


@contextlib.contextmanager
def by_inotify(path: Path) -> Iterator[Known]:
    libc = ctypes.CDLL(None, use_errno=True)
    notify = libc.inotify_init1(os.O_CLOEXEC)
    if libc.inotify_add_watch(notify, os.fsencode(path.parent), IN_MOVED_TO) < 0:
        raise OSError(ctypes.get_errno(), "inotify_add_watch")
    known, ended = Known(), threading.Event()

    def follow() -> None:
        while not ended.is_set():
            os.read(notify, 4096)
            known.tell(path.read_text().strip())

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield known
    finally:
        ended.set()
        put(path, b"the-last-one-which-ends-the-thread")
        thread.join()
        os.close(notify)


@contextlib.contextmanager
def by_watchfiles(path: Path) -> Iterator[Known]:
    known, ended, begun = Known(), threading.Event(), threading.Event()

    def follow() -> None:
        begun.set()
        for _ in watch(path.parent, stop_event=ended, raise_interrupt=False):
            known.tell(path.read_text().strip())

    thread = threading.Thread(target=follow)
    thread.start()
    begun.wait()
    time.sleep(0.2)  # watchfiles does not tell when it has begun to watch
    try:
        yield known
    finally:
        ended.set()
        thread.join()


def replaced(path: Path, known: Known) -> Callable[[], float]:
    """Return a function that replaces the file and returns how many milliseconds later that is seen."""

    def once() -> float:
        text = token(next(NUMBERS))
        fresh = path.with_name(".fresh")
        fresh.write_text(text + "\n")
        begun = time.monotonic()
        fresh.replace(path)
        return known.since(text, begun)

    return once


def run(scale: Scale) -> Iterable[Row]:
    rounds = scale.rounds(100, 5)
    with contextlib.ExitStack() as held:
        sides = []
        for watched in (by_secret_file, by_inotify, by_watchfiles):
            path = held.enter_context(directory()) / "secret" / "token"
            path.parent.mkdir()
            put(path, token(0).encode())
            sides.append(replaced(path, held.enter_context(watched(path))))
        ours, raw, default = in_turn(rounds, *sides)
    yield Row("switching", "file replaced → known", "ms", ours, "raw inotify", raw, p99_at_most(50))
    yield Row("switching", "file replaced → known", "ms", ours, "watchfiles, defaults", default, p99_at_most(50))
    yield spawn_after_switch(scale)
    if CLI not in real_clis():
        yield Row("switching", "→ first request", "ms", None, note=f"the real CLI {CLI} is not installed")
        return
    beside = "the same request without a switch"
    for delivery, what in (("file", "file, running child"), ("env", "env, resumed child")):
        switched, unswitched = first_requests(delivery, scale.rounds(8, 1))
        yield Row("switching", f"file replaced → first request, {what}", "ms", switched, beside, unswitched)


def spawn_after_switch(scale: Scale) -> Row:
    """Measure how soon a task sent right after a replacement is answered with the new token."""
    with directory() as home, supervisor(home, nothing_cli(home)) as running:

        def switched() -> float:
            put(running.token_file, token(next(NUMBERS)).encode())
            return unswitched()

        def unswitched() -> float:
            begun = time.monotonic()
            running.http.post()
            return (time.monotonic() - begun) * 1000

        ours, same = in_turn(scale.rounds(100, 5), switched, unswitched)
    return Row("switching", "file replaced, task at once → answer", "ms", ours, "the same without a switch", same)


def first_requests(delivery: str, times: int) -> tuple[Figure, Figure]:
    """
    Replace the token while a tool of the real CLI runs, let the tool end, and wait for the request with the new one.

    With ``env`` the old token is refused from then on: the child ends at its next request and is resumed.
    """
    switched: list[float] = []
    unswitched: list[float] = []
    for _ in range(times):
        for switches, samples in ((True, switched), (False, unswitched)):
            samples.append(_first_request(delivery, switches=switches))
    return Figure.of(switched), Figure.of(unswitched)


def _first_request(delivery: str, *, switches: bool) -> float:
    api, old, new = MessagesApi(), token(next(NUMBERS)), token(next(NUMBERS))
    for one in (old, new):
        api.accept(one)
    with directory() as home, serve(api) as url:
        go = home / "go"
        api.script(
            "long", Tool(command=f"touch {home}/began; while ! test -e {go}; do sleep 0.01; done"), Text(text="x")
        )
        claude = real_clis()[CLI]
        with supervisor(home, claude, api_url=url, TOKEN_DELIVERY=delivery, PARK="30") as running:
            put(running.token_file, old.encode())
            if delivery == "file":
                proved = "; this CLI takes a newer token"
                until(lambda: proved in running.http.get("/health")["delivery"]["reason"], "the proof", 60)
            running.http.post("[[script:long]] Go.", execution_id="one", async_result=True)
            until((home / "began").exists, "the tool", 60)
            asked = len(api.requests)
            begun = time.monotonic()
            if switches:
                put(running.token_file, new.encode())
                if delivery == "env":
                    api.on(old, "expired")
                else:  # the CLI's next request would come sooner than the new token is known

                    def tokens() -> int:
                        return len(running.http.get("/api/executions/one")["attempts"][0]["tokens"])

                    until(lambda: tokens() == 2, "the new token", 60)
            go.touch()
            wanted = new if switches else old
            api.wait_for(lambda api: any(one.carries(wanted) for one in api.requests[asked:]), 120)
            first = next(one for one in api.requests[asked:] if one.carries(wanted))
            running.http.ended("one")
    return (first.at - begun) * 1000


BENCH = Bench("switching", run)
