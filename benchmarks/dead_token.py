"""The real CLI with a token that the API refuses: how soon there is an answer, with the supervisor and without."""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from agent_runtime.secret.writer import put
from agent_runtime.standins.messages_api import MessagesApi, serve
from benchmarks.bed import directory, epoch, supervisor, token
from benchmarks.harness import Bench, Figure, Row, ratio_at_most
from benchmarks.machine import real_clis

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.harness import Goal, Scale

OAUTH = token(0)
API_KEY = "sk-ant-api03-the-api-key-of-these-benches-0000000000001"
ALONE_SECONDS = 240.0
SOONER = ratio_at_most(1 / 90, "≥ 90 × sooner")


class Case(NamedTuple):
    version: str
    kind: str
    goal: Goal

    @property
    def token(self) -> str:
        return API_KEY if self.kind == "API key" else OAUTH


CASES = (
    Case("2.1.30", "OAuth", SOONER),
    Case("2.1.332", "API key", SOONER),
    Case("2.1.332", "OAuth", ratio_at_most(1, "never later")),
)


def alone(case: Case, url: str) -> float:
    """Return how many seconds the CLI alone takes until it gives up, up to a bound."""
    variable = "ANTHROPIC_API_KEY" if case.kind == "API key" else "CLAUDE_CODE_OAUTH_TOKEN"
    with directory() as home:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "CLAUDE_CONFIG_DIR": str(home),
            "ANTHROPIC_BASE_URL": url,
            variable: case.token,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "IS_SANDBOX": "1",
        }
        begun = time.monotonic()
        try:
            subprocess.run(
                [real_clis()[case.version], "-p", "--output-format=stream-json", "--verbose", "Say hello."],
                env=environ,
                cwd=home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=ALONE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return ALONE_SECONDS
        return time.monotonic() - begun


def supervised(case: Case, url: str) -> float:
    """Return how many seconds lie between the spawn and the supervisor's answer."""
    with directory() as home, supervisor(home, real_clis()[case.version], api_url=url) as running:
        put(running.token_file, case.token.encode())
        running.http.ask("POST", "/api/credentials/reload-token")
        answer = running.http.post("Say hello.", execution_id="dead")
        answered = time.time()
        if answer["error_class"] != "auth":
            raise RuntimeError(f"not refused: {answer}")
        [attempt] = running.http.get("/api/executions/dead")["attempts"]
        return answered - epoch(attempt["started_at"])


def run(scale: Scale) -> Iterable[Row]:
    cases = [case for case in CASES if case.version in real_clis()]
    for case in set(CASES) - set(cases):
        yield Row("dead_token", f"{case.version}, {case.kind}", "s", None, note="this CLI is not installed")
    api = MessagesApi()
    api.on(OAUTH, "expired")
    api.on(API_KEY, "invalid_api_key")
    with serve(api) as url, ThreadPoolExecutor(len(CASES)) as pool:
        # CLIs that run alone wait most of the time, so they run while those under the supervisor are measured.
        waiting = [None if scale.quick else pool.submit(alone, case, url) for case in cases]
        measured = [Figure.of(supervised(case, url) for _ in range(scale.rounds(5, 1))) for case in cases]
        for case, figure, one in zip(cases, measured, waiting, strict=True):
            baseline = None if one is None else Figure.of([one.result()])
            note = "left out by --quick: the CLI alone takes minutes" if one is None else ""
            if baseline is not None and baseline.p50 >= ALONE_SECONDS:
                note = f"ended after {ALONE_SECONDS:g} s: it takes longer"
            what = f"{case.version}, {case.kind}: spawn → answer"
            yield Row("dead_token", what, "s", figure, "the CLI alone", baseline, case.goal, note)


BENCH = Bench("dead_token", run)
