"""The report of ``/health``: the whole state on one page, for callers with the access key."""

from __future__ import annotations

import asyncio
import socket
import time

from agent_runtime import __version__
from agent_runtime.api.schema import bodies
from agent_runtime.api.streams import OpenStreams
from agent_runtime.model.records import instant
from agent_runtime.model.task import Task
from agent_runtime.supervisor.supervisor import SupervisorState
from agent_runtime.web.access import AccessKey
from agent_runtime.web.uvicorn_protocol import OpenConnections


def reasons_of(state: SupervisorState, access: AccessKey) -> list[str]:
    """Return the reasons for the status ``degraded``, a sentence each; empty: the status is ``ok``."""
    found = {
        state.unready and state.unready.detail: state.unready is not None,
        f"records cannot be written: {state.disk.error}": state.disk.error is not None,
        f"no token can be delivered: {state.deliveries.state['reason']}": state.deliveries.cannot_deliver,
        f"the access key file {access.error}": access.error is not None,
    }
    return [reason for reason, is_so in found.items() if is_so and reason]


async def report(
    state: SupervisorState, reasons: list[str], connections: OpenConnections, streams: OpenStreams
) -> bodies.Health:
    """Build the body of ``GET /health``."""
    generation, confinement = state.secret.generation, state.containment.confinement
    return bodies.Health(
        status="degraded" if reasons else "ok",
        reasons=reasons,
        hostname=socket.gethostname(),
        version=__version__,
        unready=state.unready,
        token=bodies.HealthToken(
            state=state.token,
            generation=generation.number if generation else None,
            error=state.secret.error,
        ),
        slots=bodies.HealthSlots(total=state.slots.total, busy=state.slots.busy, unkillable=state.unkillable),
        queue=bodies.HealthQueue(limit=state.slots.queue_limit, length=state.slots.queue_length),
        task_fields=list(Task.__struct_fields__),
        active_tasks=len(state.executions.running),
        usage=state.executions.usage,
        last_task_at=instant(state.last_task_at),
        consecutive_failures=state.consecutive_failures,
        draining=state.draining,
        connections=bodies.HealthPlaces(open=len(connections), limit=connections.limit),
        streams=bodies.HealthPlaces(open=streams.count, limit=streams.limit),
        delivery=bodies.HealthDelivery(**state.deliveries.state),
        containment=bodies.HealthContainment(**state.containment.state),
        confinement=bodies.HealthConfinement(
            mode=confinement.mode.value,
            setting=confinement.asked,
            reached=confinement.reached,
            lacking=confinement.lacking,
        ),
        disk=state.disk,
        loop_lag_seconds=round(await _loop_lag(), 6),
        uptime_seconds=round(state.uptime_seconds, 3),
    )


async def _loop_lag() -> float:
    """Measure how long a ready task waits for its turn in the event loop, in seconds."""
    asked = time.perf_counter()
    await asyncio.sleep(0)
    return time.perf_counter() - asked
