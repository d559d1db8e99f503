"""
Counters and histograms since the start. The present state is no counter: :mod:`agent_runtime.api.metrics` reads it.

One :class:`Counts` per supervisor is handed to its users, with a registry of its own; nothing is global. Names
are those of the exposition without ``agent_runtime_`` and ``_total``. No label ever holds an id, a fingerprint or a
generation: each value of a label costs memory for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

import msgspec

from agent_runtime.errors import AdmissionError, ErrorClass
from agent_runtime.evidence.rules import RULES
from agent_runtime.library_parts import left_out
from agent_runtime.model.state import Outcome, StopReason
from agent_runtime.model.usage import MOST_NAMES, OTHER, UsageByModel
from agent_runtime.secret.content import SecretFault
from agent_runtime.secret.generations import Generation
from agent_runtime.telemetry.events import TYPES

# The exposition has servers and clients of its own: importing it takes 5 ms and 0.8 MB. A scrape imports it.
with left_out("prometheus_client.exposition"):
    import prometheus_client

PREFIX = "agent_runtime_"

NONE = "none"
"""The value of a label that does not apply."""


class Counter(msgspec.Struct, frozen=True):
    """
    One counter.

    Attributes:
        known: Label values that are shown as 0 before they happen, so that the first time is seen as a rise.
    """

    text: str
    labels: tuple[str, ...] = ()
    known: tuple[tuple[str, ...], ...] = ((),)


class Histogram(msgspec.Struct, frozen=True):
    """
    One histogram.

    Attributes:
        bounds: Upper bounds of the buckets, in seconds, without infinity.
    """

    text: str
    bounds: tuple[float, ...]


def _each(values: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    return tuple((str(value),) for value in values)


_USERS = ("subscription", "model")
_TOKENS = ("input_tokens", "output_tokens", "cache_creation_tokens", "cache_read_tokens")

RELAY_OUTCOMES = (
    *("2xx", "3xx", "4xx", "5xx", "replayed", "held", "cut", "silent", "broken", "garbled", "unreachable"),
    *("hung_up", "left", "unknown", "not_passed", "malformed", "stranger", "other_process"),
)
"""
What can become of a request at the relay; a request can be counted under more than one.

``hung_up``, ``left``: the child closed the connection in the middle; ``unknown``: of no running attempt; ``stranger``:
of another user; ``other_process``: of a tool that shows the identity of its CLI.
"""

COUNTERS: dict[str, Counter] = {
    "executions_admitted": Counter("Executions that were admitted."),
    "executions_finished": Counter(
        "Executions that ended, by outcome and error class.",
        ("outcome", "error_class"),
        (
            (Outcome.SUCCESS, NONE),
            (Outcome.CANCELLED, ErrorClass.CANCELLED),
            *((Outcome.FAILED, kind) for kind in ErrorClass if kind.ends_execution),
        ),
    ),
    "executions_parked": Counter("Times that an execution began to wait for a newer token."),
    "executions_resumed": Counter("Times that an execution went on in a further attempt because of its token."),
    "admissions_refused": Counter(
        "Tasks that were turned away, by error class.",
        ("error_class",),
        _each(sorted(kind.error_class for kind in AdmissionError.__subclasses__())),
    ),
    "attempts": Counter("CLI processes that were started."),
    "executions_cpu_seconds": Counter("Processor time of ended CLI processes and their descendants."),
    "attempt_stops": Counter(
        "CLI processes that the supervisor ended, by the first reason.", ("reason",), _each(StopReason)
    ),
    "evidence": Counter(
        "CLI processes that were ended because a line said that the token is refused, by rule.",
        ("rule",),
        _each(rule.id for rule in RULES if rule.is_evidence),
    ),
    "usage_cost_usd": Counter("What ended attempts have cost, as the CLI has computed it.", _USERS, ()),
    "usage_tokens": Counter("Tokens that ended attempts have used, by kind.", (*_USERS, "kind"), ()),
    "usage_turns": Counter("Turns of ended attempts.", _USERS, ()),
    "survivors": Counter("Processes that outlived the end of their attempt."),
    "token_loads": Counter("Generations of the token that were loaded."),
    "token_refusals": Counter("Generations of the token that were found to be refused by the API."),
    "token_blocks": Counter("Times that the account of a token was found to be blocked."),
    "token_billings": Counter("Times that the account of a token was found to be unable to pay."),
    "token_limits": Counter("Usage limits that the token has met."),
    "secret_read_errors": Counter(
        "Times that the secret file was found to be unusable, by reason.", ("reason",), _each(SecretFault)
    ),
    "records_unwritten": Counter("Times that a record or an answer could not be written to disk."),
    "transcript_lines_unwritten": Counter("Lines of transcripts that could not be written to disk."),
    "executions_held": Counter("Times that an execution began to be held, as a request waits for a token."),
    "relay_requests": Counter(
        "What became of requests of children at the relay: answered (by class), sent again, held, cut, turned away.",
        ("outcome",),
        tuple((outcome,) for outcome in RELAY_OUTCOMES),
    ),
    "http_requests": Counter("Requests that were answered.", ("method", "path", "status"), ()),
}

_SWITCH = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
HISTOGRAMS: dict[str, Histogram] = {
    "line_to_signal_seconds": Histogram(
        "From reading the line that says that the token is refused to the signal.",
        (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
    ),
    "signal_to_gone_seconds": Histogram(
        "From the first signal to a CLI process until it and its descendants are gone.",
        (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    ),
    "token_write_to_known_seconds": Histogram("From the writing of the secret file until its token is known.", _SWITCH),
    "token_write_to_first_request_seconds": Histogram(
        "From the writing of the secret file until the API has answered a first request with its token.", _SWITCH
    ),
    "relay_first_byte_seconds": Histogram(
        "From a request that the relay has sent to the first byte of the API's answer.",
        (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0),
    ),
    "execution_duration_seconds": Histogram(
        "From admission to the end, waiting included.",
        (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0),
    ),
    "event_loop_lag_seconds": Histogram(
        "Lag of the event loop: how much later than asked it woke, measured once a second.",
        (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    ),
}


class Counts:
    """
    Count and measure; every method may be called from any thread and holds its lock only for a moment.

    Args:
        since: When the supervisor began, epoch seconds: the age of a file that was written before is not measured.
    """

    def __init__(self, since: float = 0.0) -> None:
        self._since = since
        self._lock = threading.Lock()
        # The library would add a series of creation times for each counter.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's
        self.registry = prometheus_client.CollectorRegistry()
        self._counters = {
            name: prometheus_client.Counter(PREFIX + name, kind.text, kind.labels, registry=self.registry)
            for name, kind in COUNTERS.items()
        }
        for name, kind in COUNTERS.items():
            for labels in kind.known if kind.labels else ():
                self._counters[name].labels(*labels)
        self._histograms = {
            name: prometheus_client.Histogram(PREFIX + name, kind.text, buckets=kind.bounds, registry=self.registry)
            for name, kind in HISTOGRAMS.items()
        }
        self._users: dict[str, set[str]] = {label: set() for label in _USERS}
        self._newest_answered = 0
        self.last_answered_at: float | None = None
        """When the API last answered a request of a child, epoch seconds."""

    def count(self, name: str, *labels: object, by: float = 1) -> None:
        """Add *by* to a counter; a label of None is shown as ``none``."""
        counter = self._counters[name]
        if COUNTERS[name].labels or labels:
            counter = counter.labels(*(NONE if label is None else str(label) for label in labels))
        counter.inc(by)

    def count_usage(self, subscription: str | None, by_model: UsageByModel) -> None:
        """Count what an attempt has used; of each label 64 values are distinguished, the rest is ``other``."""
        for model, usage in by_model.items():
            users = (self._user("subscription", subscription or NONE), self._user("model", model))
            self.count("usage_cost_usd", *users, by=usage.cost_usd)
            self.count("usage_turns", *users, by=usage.num_turns)
            for kind in _TOKENS:
                self.count("usage_tokens", *users, kind.removesuffix("_tokens"), by=getattr(usage, kind))

    def _user(self, label: str, name: str) -> str:
        with self._lock:
            known = self._users[label]
            if len(known) < MOST_NAMES:
                known.add(name)
            return name if name in known else OTHER

    def observe(self, name: str, seconds: float) -> None:
        """Record a measured time; a negative one, possible between two clocks, counts as 0."""
        self._histograms[name].observe(max(0.0, seconds))

    def count_event(self, event_type: str, data: Mapping[str, object]) -> None:
        """Count an event by its type."""
        if event_type == "execution.finished":
            self.count("executions_finished", data.get("outcome"), data.get("error_class"))
        elif name := TYPES[event_type].counter:
            self.count(name)

    def observe_load(self, generation: Generation) -> None:
        """Record how long after its writing a generation was loaded."""
        if generation.written_at is not None and generation.written_at >= self._since:
            self.observe("token_write_to_known_seconds", generation.loaded_at - generation.written_at)

    def observe_answer(self, generation: Generation, now: float) -> None:
        """Record that the API answered a request made with *generation* at *now*, epoch seconds."""
        self.last_answered_at = now
        with self._lock:
            is_first = generation.number > self._newest_answered
            self._newest_answered = max(self._newest_answered, generation.number)
        if is_first and generation.written_at is not None and generation.written_at >= self._since:
            self.observe("token_write_to_first_request_seconds", now - generation.written_at)
