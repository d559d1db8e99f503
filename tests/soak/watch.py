"""What is watched while a soak runs, and what is checked when it is over."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from agent_runtime.client.sse import EventReader
from agent_runtime.model.state import Outcome
from tests.soak.bed import fields
from tests.soak.journal import DESCRIPTORS, RSS_MEBIBYTES, THREADS, Invariant

if TYPE_CHECKING:
    import random

    from tests.soak.bed import Bed
    from tests.soak.load import Load, Submission

QUIET_SECONDS = 75.0
MEBIBYTE = 1 << 20
SESSIONS = "config/projects"
"""The CLI's own, which hold the output of tools as it was: docs/guarantees.md says so."""


class Watch:
    """Threads that look on, and the checks."""

    def __init__(self, bed: Bed, load: Load, *, livez_seconds: float) -> None:
        self._bed, self._journal, self._load = bed, bed.journal, load
        self._livez: list[float] = []
        self._livez_seconds = livez_seconds
        self._peak = 0

    # -- while it runs

    def livez(self, _rng: random.Random) -> None:
        """Ask again and again whether the supervisor answers."""
        while not self._bed.stop.wait(0.2):
            lifetime, answers, begun = self._bed.lifetime, self._bed.answers, time.monotonic()
            problem = None
            try:
                with self._bed.client(self._livez_seconds) as client:
                    status = client.get("/livez").status_code
                problem = None if status == 200 else f"status {status}"
                if time.monotonic() - begun > self._livez_seconds:
                    problem = "too late"
            except httpx.HTTPError as error:
                problem = type(error).__name__
            if not answers or lifetime != self._bed.lifetime:
                continue
            self._livez.append(time.monotonic() - begun)
            self._journal.did("/livez")
            if problem is not None:
                self._journal.violated(Invariant.LIVEZ, f"{problem} after {self._livez[-1]:.1f} s")

    def machine(self, _rng: random.Random) -> None:
        """Look at every command line for a token, reap orphans, and note the supervisor's memory."""
        while not self._bed.stop.wait(0.5):
            self._bed.reap()
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    self._journal.see(f"{path.parent.name}/cmdline", path.read_bytes())
            with contextlib.suppress(psutil.Error, AssertionError):
                self._peak = max(self._peak, psutil.Process(self._bed.running.process.pid).memory_info().rss)

    # -- quiet points

    def measure(self, *, hold_against: tuple[int, int, float] | None = None) -> tuple[int, int, float]:
        """Wait until nothing runs, and return descriptors, threads and RSS (MiB) of the supervisor."""
        self._until_quiet()
        self._bed.nothing_is_left()
        process = psutil.Process(self._bed.running.process.pid)
        samples = []
        for _ in range(20):
            samples.append((process.num_fds(), process.num_threads(), process.memory_info().rss / MEBIBYTE))
            time.sleep(0.05)
        found = min(s[0] for s in samples), min(s[1] for s in samples), min(s[2] for s in samples)
        if hold_against is None:
            return found
        for invariant, unit, before, after, most in zip(
            (Invariant.DESCRIPTORS, Invariant.THREADS, Invariant.MEMORY),
            ("descriptors", "threads", "RSS, MiB"),
            hold_against,
            found,
            (DESCRIPTORS, THREADS, RSS_MEBIBYTES),
            strict=True,
        ):
            self._journal.facts[f"{unit}: at the baseline, at the end"] = f"{before:.0f}, {after:.0f}"
            if after - before > most:
                self._journal.violated(invariant, f"{before:.1f}, then {after:.1f}")
        return found

    def _until_quiet(self) -> None:
        until = time.monotonic() + QUIET_SECONDS
        alive: dict[str, Any] = {}
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError), self._bed.client(5) as client:
                are_posted = self._load.posts == 0  # first: one that is answered meanwhile may have let a task in
                alive = fields(client.get("/api/executions/running").content)
                if are_posted and alive and not alive["executions"] and not alive["pending_ids"]:
                    return
            time.sleep(0.1)
        self._journal.violated(Invariant.QUIET, str(alive)[:300])

    # -- at the end

    def accounts(self) -> None:
        """Hold every execution that was admitted against its record, its answer and its stream."""
        ran = _read(self._bed.home / "ran")
        ended = set(re.findall(r"^end (\S+) ", ran, re.MULTILINE))
        self._journal.did("CLI started", ran.count("begin "))
        for line in _read(self._bed.home / "twice").splitlines():
            self._journal.violated(Invariant.ONCE, line)
        with self._bed.client() as client:
            for submission in self._load.submissions.values():
                if submission.admitted_at is not None:
                    self._account(client, submission, ended)
        if self._livez:
            ordered = sorted(self._livez)
            p99 = ordered[math.ceil(len(ordered) * 0.99) - 1]
            self._journal.facts["/livez p99, longest, bound (s)"] = (
                f"{p99:.2f}, {ordered[-1]:.2f}, {self._livez_seconds:g}"
            )
        self._journal.facts["RSS of the supervisor, peak (MiB)"] = f"{self._peak / MEBIBYTE:.0f}"
        self._journal.facts["supervisors"] = str(len(self._bed.starts))
        self._journal.facts["longest start of one (s)"] = f"{max(b - a for a, b in self._bed.starts):.1f}"

    def _account(self, client: httpx.Client, submission: Submission, ended: set[str]) -> None:
        name, journal = submission.execution_id, self._journal
        recorded = client.get(f"/api/executions/{name}")
        journal.see("record", recorded.content)
        record = fields(recorded.content)
        if recorded.status_code == 404 and self._was_not_written(submission):
            journal.did("execution forgotten, as the disk was full when the supervisor was killed")
            return
        outcome = record.get("outcome")
        if recorded.status_code != 200 or record["state"] != "finished" or outcome not in set(Outcome):
            journal.violated(Invariant.ENDED, f"{name}: {recorded.status_code} {record.get('state')} {outcome}")
            return
        journal.did(f"outcome {outcome}")
        attempts = record["attempts"]
        times = [(one["started_at"], one["ended_at"]) for one in attempts]
        if any(end is None or end > start for (_, end), (start, _) in itertools.pairwise(times)):
            journal.violated(Invariant.RAN, f"{name}: {times}")
        if outcome == "success" and submission.kind != "plain" and name not in ended:
            journal.violated(Invariant.RAN, f"{name}: a success that never came to its last step")
        self._compare_answer(client, submission)
        self._compare_lines(client, submission)

    def _compare_answer(self, client: httpx.Client, submission: Submission) -> None:
        name = submission.execution_id
        response = client.get(f"/api/executions/{name}/result")
        self._journal.see("result", response.content)
        kept = fields(response.content)
        if response.status_code != 200:
            if not self._was_not_written(submission):
                self._journal.violated(Invariant.ENDED, f"{name}: no result: {response.status_code} {kept}")
            return
        if submission.answer is None or submission.answer[1].get("error_class") == "interrupted":
            return  # it goes on by itself after a restart
        status, answer = submission.answer
        self._journal.did("answer compared")
        if (status, _comparable(answer)) != (kept["status_code"], _comparable(kept["answer"])):
            differs = {key for key in {*answer, *kept["answer"]} if answer.get(key) != kept["answer"].get(key)}
            if not self._was_not_written(submission):
                self._journal.violated(Invariant.ANSWERS, f"{name}: {status}, kept {kept['status_code']}: {differs}")
            else:
                self._journal.did("answer not compared, as it was not retained when the supervisor was killed")

    def _compare_lines(self, client: httpx.Client, submission: Submission) -> None:
        if not submission.lines:
            return
        reader, shown, has_gap = EventReader(), {}, False
        with client.stream("GET", f"/api/executions/{submission.execution_id}/stream") as response:
            for chunk in response.iter_raw():
                for name, number, data in reader.feed(chunk):
                    has_gap |= name == "gap"
                    if name == "message" and number is not None:
                        shown[int(number)] = hashlib.sha256(data).hexdigest()
        self._journal.did("stream compared")
        if not has_gap and not self._was_not_written(submission):
            wrong = [number for number, digest in submission.lines.items() if shown.get(number) != digest]
            if wrong:
                text = f"{submission.execution_id}: lines {wrong[:9]} are not those kept ({len(shown)} kept)"
                self._journal.violated(Invariant.LINES, text)

    def _was_not_written(self, submission: Submission) -> bool:
        """Whether a supervisor ended after the execution was admitted, on a disk that had been full since then."""
        if submission.answer is not None and submission.answer[1].get("metadata", {}).get("retained") is not False:
            return False  # it said that it was written
        begun = submission.admitted_at or math.inf
        return any(end > begun and any(a < end and b > begun for a, b in self._bed.full) for end in self._bed.kills)

    def sinks(self) -> None:
        """Look for a token in everything that is left on disk."""
        home = self._bed.home
        for path in home.rglob("*"):
            where = path.relative_to(home)
            if path.is_file() and not where.is_relative_to(SESSIONS) and where.parts[0] != "secret":
                self._journal.see(str(where), path.read_bytes())


def _comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """Leave out what may be learnt after the answer: whether it could be written."""
    metadata = {key: value for key, value in answer.get("metadata", {}).items() if key != "retained"}
    return {**answer, "metadata": metadata}


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
