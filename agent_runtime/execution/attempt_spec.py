"""What an attempt is given: its own specification, and what all attempts share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agent_runtime.claude.invocation import Session
    from agent_runtime.delivery.delivery import Deliveries
    from agent_runtime.model.task import Task
    from agent_runtime.process.containment_choice import Containment
    from agent_runtime.process.unkillable import Unkillable
    from agent_runtime.secret.file import SecretFile
    from agent_runtime.secret.generations import Generation
    from agent_runtime.settings import Settings
    from agent_runtime.telemetry.redaction import Redactor


class AttemptContext(msgspec.Struct, frozen=True):
    """
    What all attempts of a supervisor share.

    Attributes:
        may_use: Raises :class:`AgentRuntimeError` where a generation must not be spawned with, for a model, by an
            execution.
        mark_suspect: Called at once with a generation that was refused, and the id of the execution.
        unkillable: Takes over the children whose processes cannot be ended.
        run_dir: Private files for children; each attempt has a directory of its own in it.
    """

    settings: Settings
    secret: SecretFile
    deliveries: Deliveries
    redactor: Redactor
    environ: Mapping[str, str]
    run_dir: Path
    containment: Containment
    unkillable: Unkillable
    may_use: Callable[[Generation, str | None, str], None]
    mark_suspect: Callable[[Generation, str], None]


class AttemptSpec(msgspec.Struct, frozen=True):
    """
    What one attempt is to do.

    Attributes:
        total_at: When the execution's time is over, monotonic seconds.
        mark: Unique per attempt; everything the child starts inherits it.
    """

    execution_id: str
    task: Task
    session: Session
    mark: str
    total_at: float
