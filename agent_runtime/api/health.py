"""The report of ``/health``: the whole state on one page, for callers with the access key."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING

from agent_runtime import __version__
from agent_runtime.api.schema import bodies
from agent_runtime.model.records import rfc3339
from agent_runtime.model.task import Task

if TYPE_CHECKING:
    from agent_runtime.api.streams import OpenStreams
    from agent_runtime.supervisor.supervisor import Supervisor
    from agent_runtime.web.access import AccessKey
    from agent_runtime.web.uvicorn_protocol import OpenConnections


def reasons_of(supervisor: Supervisor, access: AccessKey) -> list[str]:
    """Return why not all is well, a sentence each."""
    unready, trouble = supervisor.unready, supervisor.archive.records.trouble
    found = {
        unready and unready[1]: unready is not None,
        f"records cannot be written: {trouble}": trouble is not None,
        f"no token can be delivered: {supervisor.deliveries.state['reason']}": supervisor.deliveries.hinders,
        f"the access key file {access.error}": access.error is not None,
    }
    return [reason for reason, is_so in found.items() if is_so and reason]


async def report(
    supervisor: Supervisor, reasons: list[str], connections: OpenConnections, streams: OpenStreams
) -> bodies.Health:
    """Build the body of ``GET /health``."""
    unready, generation, slots = supervisor.unready, supervisor.secret.status.generation, supervisor.slots
    archive, disk = supervisor.archive, supervisor.archive.transcripts.free_bytes()
    last_task_at, confinement = supervisor.last_task_at, supervisor.containment.confinement
    return bodies.Health(
        status="degraded" if reasons else "ok",
        reasons=reasons,
        hostname=socket.gethostname(),
        version=__version__,
        unready=None if unready is None else bodies.HealthUnready(reason=unready[0], detail=unready[1]),
        token=bodies.HealthToken(
            state=supervisor.gate.state,
            generation=generation.number if generation else None,
            error=supervisor.secret.status.error,
        ),
        slots=bodies.HealthSlots(total=slots.total, busy=slots.busy, unkillable=supervisor.unkillable.slots),
        queue=bodies.HealthQueue(limit=slots.queue_limit, length=slots.queue_length),
        task_fields=list(Task.__struct_fields__),
        active_tasks=len(supervisor.running),
        usage=supervisor.usage,
        last_task_at=None if last_task_at is None else rfc3339(last_task_at),
        consecutive_failures=supervisor.consecutive_failures,
        draining=supervisor.draining,
        connections=bodies.HealthPlaces(open=len(connections), limit=connections.limit),
        streams=bodies.HealthPlaces(open=streams.count, limit=streams.limit),
        delivery=bodies.HealthDelivery(**supervisor.deliveries.state),
        containment=bodies.HealthContainment(
            layer=supervisor.containment.kind.value,
            setting=supervisor.containment.asked,
            lacking=dict(supervisor.containment.lacking),
        ),
        confinement=bodies.HealthConfinement(
            mode=confinement.mode.value,
            setting=confinement.asked,
            reached=confinement.reached,
            lacking=confinement.lacking,
        ),
        disk=bodies.HealthDisk(
            free_bytes=None if disk is None else disk[0],
            error=archive.records.trouble,
            damage=list(archive.records.damage),
            set_aside=archive.records.set_aside,
            transcripts_without_record=len(archive.unaccounted),
        ),
        loop_lag_seconds=round(await _loop_lag(), 6),
        uptime_seconds=round(time.monotonic() - supervisor.started_at, 3),
    )


async def _loop_lag() -> float:
    """Measure how long a ready task waits for its turn now."""
    asked = time.perf_counter()
    await asyncio.sleep(0)
    return time.perf_counter() - asked
