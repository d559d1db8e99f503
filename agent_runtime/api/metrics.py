"""
``/metrics``: counts since the start, from ``telemetry.counters``, and the present state, from its owners.

Gauges are read from live state at the scrape; there is no copy that could disagree with it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from agent_runtime import __version__
from agent_runtime.model.records import Usage
from agent_runtime.model.state import Phase, TokenState
from agent_runtime.telemetry.counters import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric

    from agent_runtime.supervisor.live import SupervisorState
    from agent_runtime.supervisor.supervisor import Supervisor
    from agent_runtime.web.response_buffer import ResponseBuffer


class Metrics:
    """
    Write what Prometheus reads, from a registry of this supervisor's own.

    Args:
        lost_lines: How many lines of the log were lost.
    """

    def __init__(self, supervisor: Supervisor, buffer: ResponseBuffer, lost_lines: Callable[[], int]) -> None:
        self._supervisor = supervisor
        self._buffer = buffer
        self._lost_lines = lost_lines
        self._counts = supervisor.counts
        self._registry = self._counts.registry
        self._registry.register(self)
        ProcessCollector(namespace=PREFIX.rstrip("_"), registry=self._registry)

    def response(self, accept: str) -> Response:
        """Answer a scrape, in the form that *accept* asks for."""
        encode, content_type = choose_encoder(accept)
        return Response(encode(self._registry), headers={"content-type": content_type, "cache-control": "no-store"})

    def collect(self) -> Iterator[Metric]:
        """List all metrics, as prometheus-client wants them of a collector."""
        state = self._supervisor.state
        yield from _executions(state)
        yield from self._token(state)
        yield from self._process(state)

    def _token(self, state: SupervisorState) -> Iterator[Metric]:
        generation = state.secret.generation
        family = _gauge("token_state", "1 for the state the token is in, 0 for the others.", ("state",))
        for known in TokenState:
            family.add_metric((known,), known == state.token)
        yield family
        number = generation.number if generation is not None else 0
        yield _single("token_generation", "Number of the generation in use; 0: there is none.", number)
        yield _single(
            "secret_file_bad",
            "1 while the secret file cannot be used, though an earlier token may be.",
            bool(state.secret.error),
        )
        now = time.time()
        for name, text, value in (
            (
                "token_age_seconds",
                "How long ago the token in use was read.",
                max(0.0, now - generation.loaded_at) if generation is not None else None,
            ),
            (
                "token_expiry_timestamp_seconds",
                "When the token in use expires.",
                generation.expires_at if generation is not None else None,
            ),
            (
                "token_last_success_timestamp_seconds",
                "When the API last answered the first request of a child with a token.",
                self._counts.last_answered_at,
            ),
            (
                "secret_last_success_timestamp_seconds",
                "When a new token was last read from the secret file.",
                state.secret.last_loaded_at,
            ),
        ):
            yield _single(name, text, value)

    def _process(self, state: SupervisorState) -> Iterator[Metric]:
        yield InfoMetricFamily(PREFIX + "build", "What runs.", value={"version": __version__})
        lost = CounterMetricFamily(
            PREFIX + "log_lines_lost", "Lines of the log that were dropped because its reader was too slow."
        )
        lost.add_metric((), self._lost_lines())
        yield lost
        yield _single("response_buffer_bytes", "Bytes that are held for readers.", self._buffer.used_bytes)
        yield _single("response_buffer_limit_bytes", "How much may be held for readers.", self._buffer.limit_bytes)
        let_go = CounterMetricFamily(PREFIX + "readers_let_go", "Readers that were too slow while others waited.")
        let_go.add_metric((), self._buffer.let_go)
        yield let_go
        yield _single("store_available", "1 while records can be written to disk.", state.disk.error is None)
        yield _single("disk_free_bytes", "Free bytes on the disk that holds the records.", state.disk.free_bytes)


def _executions(state: SupervisorState) -> Iterator[Metric]:
    phases = [execution.phase for execution in state.executions]
    family = _gauge("executions", "Executions that have not ended, by phase.", ("phase",))
    for phase in Phase:
        if phase is not Phase.FINISHED:
            family.add_metric((phase,), phases.count(phase))
    yield family
    yield _single("slots", "How many executions may run at once.", state.slots)
    yield _single("slots_taken", "Slots that are held.", state.slots_taken)
    yield _single("slots_unkillable", "Slots that are held by processes that cannot be ended.", state.unkillable)
    yield from _usage(state)
    yield _single("queue_length", "New executions that wait for a slot.", state.queue_length)
    yield _single("queue_limit", "How many new executions may wait.", state.queue_limit)
    held = sum(execution.record.held for execution in state.running)
    yield _single("executions_held_now", "Executions that are held: a request of theirs waits for a token.", held)
    yield _single("draining", "1 while admission is stopped by a drain.", state.draining)
    yield _single("ready", "1 while a task sent now would be let in, as /readyz says.", state.unready is None)
    yield _single(
        "consecutive_failures",
        "How many executions in a row have failed, up to now.",
        state.consecutive_failures,
    )


def _usage(state: SupervisorState) -> Iterator[Metric]:
    for name, text in (
        ("memory_bytes", "Resident memory of running executions, sampled once a second."),
        ("pss_bytes", "The same with shared pages divided, where that can be read."),
        ("processes", "Processes of running executions."),
        ("open_files", "Open descriptors of running executions."),
    ):
        yield _single(f"executions_{name}", text, getattr(state.usage, name))
    memory = _gauge("slot_memory_bytes", "Resident memory of the execution in a slot; 0: none runs.", ("slot",))
    processes = _gauge("slot_processes", "Processes of the execution in a slot; 0: none runs.", ("slot",))
    by_slot = {execution.slot: execution.usage for execution in state.running}
    for slot in range(1, state.slots + 1):
        taken = by_slot.get(slot, Usage())
        memory.add_metric((str(slot),), taken.memory_bytes)
        processes.add_metric((str(slot),), taken.processes)
    yield from (memory, processes)


def _gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, labels=labels)


def _single(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    """Build a gauge of one value; the metric is there without a sample where there is no value."""
    family = _gauge(name, text)
    if value is not None:
        family.add_metric((), float(value))
    return family
