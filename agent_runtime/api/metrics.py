"""
``/metrics``: counts since the start, from ``telemetry.counters``, and the present state, from its owners.

Gauges are read from live state at the scrape; there is no copy that could disagree with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from starlette.responses import Response

from agent_runtime import __version__
from agent_runtime.model.records import Usage
from agent_runtime.model.state import Phase, TokenState
from agent_runtime.supervisor.supervisor import Supervisor, SupervisorState
from agent_runtime.telemetry.counters import PREFIX
from agent_runtime.web.response_buffer import ResponseBuffer


class Metrics:
    """
    Write the metrics for Prometheus, from a registry of this supervisor's own.

    Args:
        lost_lines: Returns how many lines of the log were lost.
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
        """Answer a scrape, in the format that the ``Accept`` header asks for."""
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        return Response(encode(self._registry), headers={"content-type": content_type, "cache-control": "no-store"})

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics of the present state, as prometheus-client requires of a collector."""
        state = self._supervisor.state
        phases = [execution.phase for execution in state.executions.values()]
        by_phase = {str(phase): phases.count(phase) for phase in Phase if phase is not Phase.FINISHED}
        yield _gauge("executions", "Executions that have not ended, by phase.", by_phase, "phase")
        states = {str(known): known == state.token for known in TokenState}
        yield _gauge("token_state", "1 for the state the token is in, 0 for the others.", states, "state")
        by_slot = {execution.slot: execution.usage for execution in state.executions.running}
        slots = {str(slot): by_slot.get(slot, Usage()) for slot in range(1, state.slots.total + 1)}
        memory = {slot: usage.memory_bytes for slot, usage in slots.items()}
        processes = {slot: usage.processes for slot, usage in slots.items()}
        yield _gauge("slot_memory_bytes", "Resident memory of the execution in a slot; 0: none runs.", memory, "slot")
        yield _gauge("slot_processes", "Processes of the execution in a slot; 0: none runs.", processes, "slot")
        for name, text, value in self._single_values(state):
            yield _gauge(name, text, {"": value})
        text = "Lines of the log that were dropped because its reader was too slow."
        yield CounterMetricFamily(PREFIX + "log_lines_lost", text, value=self._lost_lines())
        text = "Readers that were too slow while others waited."
        yield CounterMetricFamily(PREFIX + "readers_let_go", text, value=self._buffer.disconnected)
        yield InfoMetricFamily(PREFIX + "build", "The version that runs.", value={"version": __version__})

    def _single_values(self, state: SupervisorState) -> Iterator[tuple[str, str, float | None]]:
        """Yield name, help and value of each gauge without labels; None: the metric has no sample now."""
        generation, secret, usage = state.secret.generation, state.secret, state.executions.usage
        held = sum(execution.record.held for execution in state.executions.running)
        yield "slots", "How many executions may run at once.", state.slots.total
        yield "slots_taken", "Slots that are taken.", state.slots.busy
        yield "slots_unkillable", "Slots that are taken by processes that cannot be ended.", state.unkillable
        yield "queue_length", "New executions that wait for a slot.", state.slots.queue_length
        yield "queue_limit", "How many new executions may wait.", state.slots.queue_limit
        yield "executions_held_now", "Executions that are held: a request of theirs waits for a token.", held
        text = "Resident memory of running executions, sampled once a second."
        yield "executions_memory_bytes", text, usage.memory_bytes
        yield "executions_pss_bytes", "The same with shared pages divided, where that can be read.", usage.pss_bytes
        yield "executions_processes", "Processes of running executions.", usage.processes
        yield "executions_open_files", "Open descriptors of running executions.", usage.open_files
        yield "draining", "1 while admission is stopped by a drain.", state.draining
        yield "ready", "1 while a task sent now would be let in, as /readyz says.", state.unready is None
        text = "How many executions in a row have failed, up to now."
        yield "consecutive_failures", text, state.consecutive_failures
        number = generation.number if generation else 0
        yield "token_generation", "Number of the generation in use; 0: there is none.", number
        text = "1 while the secret file cannot be used, though an earlier token may be."
        yield "secret_file_bad", text, bool(secret.error)
        age = max(0.0, time.time() - generation.loaded_at) if generation else None
        yield "token_age_seconds", "How long ago the token in use was read.", age
        expires_at = generation.expires_at if generation else None
        yield "token_expiry_timestamp_seconds", "When the token in use expires.", expires_at
        text = "When the API last answered the first request of a child with a token."
        yield "token_last_success_timestamp_seconds", text, self._counts.last_answered_at
        text = "When a new token was last read from the secret file."
        yield "secret_last_success_timestamp_seconds", text, secret.last_loaded_at
        yield "response_buffer_bytes", "Bytes that are buffered for readers.", self._buffer.used_bytes
        yield "response_buffer_limit_bytes", "How much may be buffered for readers.", self._buffer.limit_bytes
        yield "store_available", "1 while records can be written to disk.", state.disk.error is None
        yield "disk_free_bytes", "Free bytes on the disk that holds the records.", state.disk.free_bytes


def _gauge(name: str, text: str, values: Mapping[str, float | None], *labels: str) -> GaugeMetricFamily:
    """Build a gauge from its values by label."""
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for label, value in values.items():
        if value is not None:
            family.add_metric((label,) if labels else (), float(value))
    return family
