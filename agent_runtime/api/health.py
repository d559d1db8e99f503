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
from agent_runtime.supervisor.supervisor import Supervisor
from agent_runtime.web.access import AccessKey
from agent_runtime.web.uvicorn_protocol import OpenConnections


def reasons_of(supervisor: Supervisor, access: AccessKey) -> list[str]:
    """Return the reasons for the status ``degraded``, a sentence each; empty: the status is ``ok``."""
    unready, records, deliveries = supervisor.unready(), supervisor.archive.records, supervisor.deliveries
    found = {
        unready and unready.detail: unready is not None,
        f"records cannot be written: {records.trouble}": records.trouble is not None,
        f"no token can be delivered: {deliveries.state['reason']}": deliveries.cannot_deliver,
        f"the access key file {access.error}": access.error is not None,
    }
    return [reason for reason, is_so in found.items() if is_so and reason]


async def report(
    supervisor: Supervisor, reasons: list[str], connections: OpenConnections, streams: OpenStreams
) -> bodies.Health:
    """Build the body of ``GET /health``."""
    secret, slots, executions = supervisor.secret.status, supervisor.slots, supervisor.live
    generation, confinement = secret.generation, supervisor.containment.confinement
    return bodies.Health(
        status="degraded" if reasons else "ok",
        reasons=reasons,
        hostname=socket.gethostname(),
        version=__version__,
        unready=supervisor.unready(),
        token=bodies.HealthToken(
            state=supervisor.gate.state,
            generation=generation.number if generation else None,
            error=secret.error,
        ),
        slots=bodies.HealthSlots(total=slots.total, busy=slots.busy, unkillable=supervisor.unkillable.slots),
        queue=bodies.HealthQueue(limit=slots.queue_limit, length=slots.queue_length),
        task_fields=list(Task.__struct_fields__),
        active_tasks=len(executions.running),
        usage=executions.usage,
        last_task_at=instant(supervisor.admission.last_task_at),
        consecutive_failures=supervisor.admission.consecutive_failures,
        draining=supervisor.admission.draining,
        connections=bodies.HealthPlaces(open=len(connections), limit=connections.limit),
        streams=bodies.HealthPlaces(open=streams.count, limit=streams.limit),
        delivery=bodies.HealthDelivery(**supervisor.deliveries.state),
        containment=bodies.HealthContainment(**supervisor.containment.state),
        confinement=bodies.HealthConfinement(
            mode=confinement.mode.value,
            setting=confinement.asked,
            reached=confinement.reached,
            lacking=confinement.lacking,
        ),
        disk=supervisor.disk,
        loop_lag_seconds=round(await _loop_lag(), 6),
        uptime_seconds=round(supervisor.uptime_seconds, 3),
    )


async def _loop_lag() -> float:
    """Measure how long a ready task waits for its turn in the event loop, in seconds."""
    asked = time.perf_counter()
    await asyncio.sleep(0)
    return time.perf_counter() - asked
