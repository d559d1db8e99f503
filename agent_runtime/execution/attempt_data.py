"""What an attempt is given, the events it publishes while it runs, and its report when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import msgspec

from agent_runtime.claude.invocation import Session
from agent_runtime.claude.run_stats import RunStats
from agent_runtime.delivery.cli_options import CliOptions
from agent_runtime.delivery.delivery import Deliveries, HeldRequest
from agent_runtime.errors import AgentRuntimeError
from agent_runtime.evidence.detector import Detection
from agent_runtime.evidence.verdict import Ending
from agent_runtime.model.records import EvidenceRecord
from agent_runtime.model.state import StopReason
from agent_runtime.model.task import Task
from agent_runtime.process.containment_choice import Containment
from agent_runtime.process.unkillable import Unkillable
from agent_runtime.secret.file import SecretFile
from agent_runtime.secret.generations import Generation
from agent_runtime.settings import Settings
from agent_runtime.store.workspaces import Workspaces
from agent_runtime.telemetry.live_text import LiveTexts
from agent_runtime.telemetry.redaction import Redactor


class AttemptContext(msgspec.Struct, frozen=True):
    """
    What all attempts of a supervisor share.

    Attributes:
        require_for_spawn: Called with a generation, a model and an execution id; raises :class:`AgentRuntimeError` if
            the execution must not start a child with that generation.
        mark_suspect: Called at once with a generation that was refused, and the id of the execution.
        is_known_by_others: Whether a generation is in trouble already, or an execution other than this one verifies it.
        unkillable: Takes over the children whose processes cannot be ended.
        workspaces: Opens the directories that children run in.
        known_options: Returns the options that the CLI in use knows; None: not found out yet.
        run_dir: Directory for the private files of children; each attempt has a directory of its own in it.
    """

    settings: Settings
    secret: SecretFile
    deliveries: Deliveries
    redactor: Redactor
    environ: Mapping[str, str]
    workspaces: Workspaces
    run_dir: Path
    containment: Containment
    unkillable: Unkillable
    require_for_spawn: Callable[[Generation, str | None, str], None]
    mark_suspect: Callable[[Generation, str], None]
    is_known_by_others: Callable[[Generation, str], bool]
    known_options: Callable[[], CliOptions | None] = lambda: None


class AttemptSpec(msgspec.Struct, frozen=True):
    """
    What one attempt is to do.

    Attributes:
        cwd: The directory that the child runs in, relative to the workspace; None: the workspace itself.
        total_at: When the execution's time is over, monotonic seconds.
        mark: Unique per attempt; every process that the child starts inherits it.
        live_texts: The readers of the model's text while it is written.
    """

    execution_id: str
    task: Task
    session: Session
    mark: str
    total_at: float
    live_texts: LiveTexts = msgspec.field(default_factory=LiveTexts)
    cwd: str | None = None


class Spawned(msgspec.Struct, frozen=True):
    """
    The child runs, with this generation.

    Attributes:
        shim_pid: The pid of the child's parent process; None: the parent was gone at once.
        started_at: Epoch seconds.
    """

    pid: int
    shim_pid: int | None
    started_at: float
    generation: Generation


class Progress(msgspec.Struct, frozen=True):
    """The transcript or the attempt's usage has grown."""


class Stopping(msgspec.Struct, frozen=True):
    """The child was told to end."""

    reason: StopReason


class Answered(msgspec.Struct, frozen=True):
    """
    The API answered a request that carried this generation.

    Attributes:
        since: When the child was given the generation, monotonic seconds.
    """

    generation: Generation
    since: float


class Reached(msgspec.Struct, frozen=True):
    """A newer generation has reached the running child, at *delivered_at* (epoch seconds)."""

    generation: Generation
    delivered_at: float


class Held(msgspec.Struct, frozen=True):
    """
    A request of the child is held, because its token is in trouble: at the relay, or the CLI repeats it by itself.

    Attributes:
        used_tool: Whether the model has, or may have, called a tool.
    """

    request: HeldRequest
    used_tool: bool


class Released(msgspec.Struct, frozen=True):
    """A request that was held is held no longer."""

    request: HeldRequest


AttemptEvent: TypeAlias = Spawned | Progress | Stopping | Answered | Reached | Held | Released


class AttemptReport(msgspec.Struct, frozen=True):
    """
    How an attempt went; built once, when it has ended.

    Attributes:
        error: Why no child was started; None: one was, or the attempt was stopped before.
        generation: The generation that the last API error is held against, else the one that the child was given.
        ending: The facts that the verdict is reached from; None where *error* says why there was no child.
        used_tool: Whether the model has, or may have, called a tool: from then on the output may be forged.
        background_ended: Background work still went on after the result, and was ended.
        unknown_session: The CLI did not know the session it was told to resume.
        session_refused: The API refused the session's history, or the CLI cannot read it, and the model did not go on.
        seconds_to_gone: From the first signal until the child and all it started were gone; None: never signalled.
        cpu_seconds: Processor time of the child and all it started; None: not known.
        waited_seconds: How long the child had been held when it ended, for another token or the end of a limit.
        survivors: How many processes that the child had started could not be ended.
        result_line: Line number of the last ``result`` frame in the transcript; None: there is none.
    """

    started_at: float
    ended_at: float = 0.0
    pid: int | None = None
    generation: Generation | None = None
    error: AgentRuntimeError | None = None
    ending: Ending | None = None
    evidence: EvidenceRecord | None = None
    run_stats: RunStats = msgspec.field(default_factory=RunStats)
    used_tool: bool = False
    background_ended: bool = False
    unknown_session: bool = False
    session_refused: bool = False
    seconds_to_gone: float | None = None
    cpu_seconds: float | None = None
    result_line: int | None = None
    waited_seconds: float = 0.0
    survivors: int = 0

    @property
    def detection(self) -> Detection | None:
        """The API error that ended the attempt, if one is known."""
        return None if self.ending is None else self.ending.evidence or self.ending.last_error
