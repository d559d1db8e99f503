"""Statistics of a run, counted from its frames: turns, tools, tokens, cost, and open work."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import msgspec

from agent_runtime.claude.frames import Frame, MessageUsage, Partial, ReportedUsage
from agent_runtime.claude.run_answer import Result, RunAnswer, RunStage
from agent_runtime.model.records import COMPACT_EVENTS_KEPT, LONG_CONTEXT_MARK, LONG_CONTEXT_WINDOW, CompactEvent
from agent_runtime.model.usage import (
    MOST_NAMES,
    NOTHING,
    OTHER,
    AttemptUsage,
    ModelUsage,
    UsageByModel,
    added,
    amount,
    count,
    subtracted,
    total_of,
)

REPEATS_REFUSALS_UP_TO = (2, 1, 114)
"""
Up to this version the CLI repeats a request that was answered 401 for three minutes, with pauses of up to 38 s.

Source: measured with an OAuth token in the credentials file: 181 s on 2.1.30 and 2.1.114, 2 s on 2.1.197 and 2.1.332.
"""

_NUMBER = re.compile(r"[0-9]{1,9}")
_MOST_HOOKS = 100
_MOST_MESSAGES = 256
"""How many messages may be unfinished at once, the run's own and its sub-agents'."""
_LONGEST_NAME = 128
_UNKNOWN_MODEL = "unknown"


class SessionCost(msgspec.Struct, frozen=True):
    """
    The cost and usage that the CLI has counted for a session so far, over all its processes.

    Attributes:
        is_known: False: the CLI may have counted something, but its numbers could not be read.
    """

    cost_usd: float = 0.0
    by_model: UsageByModel = msgspec.field(default_factory=dict)
    is_known: bool = True


class _Message(msgspec.Struct, gc=False):
    """A message of a model, the generation it uses, and what is counted of it so far."""

    model: str
    generation: int
    counted: ModelUsage = NOTHING


class UsageCounter:
    """
    Count the usage of one attempt by model.

    The ``modelUsage`` of the last ``result`` lacks only the request by which old versions ask for their quota and, from
    1.0.128 to 2.1.197, messages whose stream broke off, which are counted from the frames. Everything after the last
    ``result`` is counted from the frames too, and so is an attempt without one. The ``usage`` of ``result`` has only
    the turn's own requests, without sub-agents and summaries, so it is used only without ``modelUsage``.

    The CLI prints a message as one frame for each block, all with the same id and a preliminary count of output tokens;
    the final count is in the message's last partial message.

    Since 2.1.330 a resumed process continues the session's counts, which the process before it has stored
    (``cost-state``); versions up to 2.1.197 begin at 0.

    Source: Claude Code 1.0.128, 2.0.76, 2.1.30, 2.1.114, 2.1.197, 2.1.330 and 2.1.332, measured against the stand-in.

    Attributes:
        generation: Number of the token generation that messages use which begin from now on.
        model_name: The model of the run's own conversation; None: not known yet.
        context_window: That model's, in tokens; None: not known yet.
    """

    def __init__(self, clean: Callable[[str], str]) -> None:
        self.generation = 0
        self.model_name: str | None = None
        self.context_window: int | None = None
        self._clean = clean
        self._seen: dict[int, UsageByModel] = {}
        self._turns: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._names: dict[str, str] = {}
        self._before = SessionCost()
        self._messages: dict[str, _Message] = {}
        self._last: _Message | None = None
        self._own_model: str | None = None
        self._all_at_result: UsageByModel = {}
        self._own = NOTHING
        self._own_reported = NOTHING
        self._reported: UsageByModel | None = None
        self._cost_usd = 0.0
        self._num_turns = 0
        self._own_messages = 0
        self._has_sub_agents = self._is_told = False
        self._duration_ms: float | None = None
        self._context_tokens = 0
        self._last_result: Frame | None = None
        self._so_far: AttemptUsage | None = None

    def go_on_from(self, before: SessionCost) -> None:
        """Set the cost and usage that the CLI had counted for the session before this attempt."""
        self._before = SessionCost(before.cost_usd, self._named(before.by_model), before.is_known)

    @property
    def so_far(self) -> AttemptUsage:
        """The usage up to now; the same object as long as nothing changes."""
        self._so_far = self._so_far or self._summary()
        return self._so_far

    def add_messages(self, frames: Iterable[Frame]) -> None:
        """Count messages of the model, and blocks of them, that follow each other."""
        names, messages, turns = self._names, self._messages, self._turns[self.generation]
        for frame in frames:
            message, is_own = frame.message, frame.parent_tool_use_id is None
            if message is None:
                continue
            name = message.model or self._own_model or _UNKNOWN_MODEL
            model = names.get(name) or self._name(name)
            known = messages.get(message.id) if message.id else None
            if known is not None:
                known.model = model
            else:
                known = _Message(model, self.generation)
                if message.id:
                    messages[message.id] = known
                    if len(messages) > _MOST_MESSAGES:
                        del messages[next(iter(messages))]
                if is_own:
                    self._own_messages += 1
                    turns[model] += 1
                    self._so_far = None
            if is_own:
                self._own_model, self._last = model, known
                if message.model and model != self.model_name:
                    self.model_name, self._so_far = model, None
            else:
                self._has_sub_agents = True
            if message.usage is not None:
                self._count(known, message.usage, is_own=is_own)

    def add_to_last(self, usage: MessageUsage) -> None:
        """Count the usage that the end of the run's last own message reports."""
        if self._last is not None:
            self._count(self._last, usage, is_own=True)

    def add_result(self, frame: Frame) -> None:
        """Count a ``result``; one that is printed twice counts once."""
        if frame == self._last_result:
            return
        self._last_result, self._so_far = frame, None
        entries = (frame.model_usage or {}).items()
        reported = self._named({name: one.usage for name, one in entries if one is not None})
        cost_usd = amount(frame.total_cost_usd) if self._before.is_known else 0.0
        if total_of(reported) and self._before.is_known:
            self._reported = self._without_earlier(reported)
            if self._reported is not reported:
                cost_usd -= self._before.cost_usd
            self._all_at_result, self._is_told = self._all(), True
        elif frame.usage is not None:
            # 1.0.128 and 2.0.76 report only the cost of a summary.
            self._is_told = self._before.is_known and (bool(frame.usage.counts) or not cost_usd)
            self._own_reported = self._own_reported.highest(frame.usage.counts)
        self._cost_usd = max(self._cost_usd, cost_usd)
        self._num_turns += self._own_messages if frame.num_turns is None else count(frame.num_turns)
        self._own_messages = 0
        self._duration_ms = (self._duration_ms or 0.0) + amount(frame.duration_ms)
        self.context_window = _window_of(frame.model_usage or {}, self.model_name) or self.context_window

    def begin_turn(self, model: str) -> None:
        """Set the conversation's model to the one that the CLI begins a turn with."""
        if (name := self._clean(model)[:_LONGEST_NAME]) != self.model_name:
            self.model_name, self._so_far = name, None
        if self.context_window is None and LONG_CONTEXT_MARK in model.lower():
            self.context_window, self._so_far = LONG_CONTEXT_WINDOW, None

    def _count(self, message: _Message, usage: MessageUsage, *, is_own: bool) -> None:
        now, counted = usage.counts, message.counted
        if now == counted:
            return
        if counted:
            now = now.highest(counted)
        more = now.minus(counted) if counted else now
        message.counted, self._so_far = now, None
        self._seen[message.generation] = added(self._seen.get(message.generation, {}), {message.model: more})
        if is_own:
            self._own = self._own.plus(more)
            self._context_tokens = now.context_tokens or self._context_tokens

    def _all(self) -> UsageByModel:
        """Return what the frames other than ``result`` show."""
        return reduce(added, self._seen.values(), {})

    def _without_earlier(self, reported: UsageByModel) -> UsageByModel:
        """
        Return *reported* without the usage from before this attempt, if the CLI has included that.

        A version that begins at 0 can resume the session of one that does not. Therefore the result is the one of the
        two, with and without the earlier usage, that is nearer to the count from the frames.
        """
        before = self._before.by_model
        if not all(reported.get(name, NOTHING).covers(usage) for name, usage in before.items()):
            return reported
        rest = subtracted(reported, before)
        seen, with_earlier, without = (total_of(one).context_tokens for one in (self._all(), reported, rest))
        return rest if abs(without - seen) <= abs(with_earlier - seen) else reported

    def _summary(self) -> AttemptUsage:
        own_model, reported, shown = self._own_model or "", self._reported or {}, self._all()
        if own_model not in reported:  # without an own message: the first model
            own_model = next((name for name in reported if name.startswith(own_model)), own_model) or _UNKNOWN_MODEL
        since_result = subtracted(shown, self._all_at_result)
        if self._reported is not None:
            by_model = added(self._reported, since_result)
            # Only for names in the result: a model may have another name in the frames.
            by_model |= {name: by_model[name].highest(shown.get(name, NOTHING)) for name in self._reported}
        else:
            by_model = added(shown, {own_model: self._own_reported.minus(self._own)})
        cost_usd = max(0.0, self._cost_usd - total_of(by_model).cost_usd)
        rest = ModelUsage(cost_usd=cost_usd, num_turns=self._num_turns + self._own_messages)
        from_frames = self._has_sub_agents if self._reported is None else bool(since_result)
        seen = dict(self._seen)
        for generation, turns in self._turns.items():
            for model, number in turns.items():
                seen[generation] = added(seen.get(generation, {}), {model: ModelUsage(num_turns=number)})
        return AttemptUsage(
            by_model={name: usage for name, usage in added(by_model, {own_model: rest}).items() if usage},
            context_tokens=self._context_tokens,
            duration_ms=self._duration_ms,
            is_estimated=from_frames or not self._is_told,
            seen=seen,
            model_name=self.model_name,
            context_window=self.context_window,
        )

    def _named(self, by_model: UsageByModel) -> UsageByModel:
        return reduce(added, ({self._name(name): usage} for name, usage in by_model.items()), {})

    def _name(self, model: str) -> str:
        if model not in self._names:
            if len(self._names) >= MOST_NAMES:
                return OTHER
            self._names[model] = self._clean(model)[:_LONGEST_NAME]
        return self._names[model]


def version_in(text: str | None) -> tuple[int, ...] | None:
    """Parse the numbers of a version such as ``2.1.330``; None: *text* has another form."""
    numbers = (text or "").split("-")[0].split(".")
    return tuple(map(int, numbers)) if all(_NUMBER.fullmatch(number) for number in numbers) else None


class RunStats:
    """
    The statistics of one attempt, from its frames in order; their size does not grow with the number of frames.

    Args:
        clean: Applied to the names of models and to the version of the CLI.
    """

    def __init__(self, clean: Callable[[str], str] = str) -> None:
        self._clean = clean
        self.session_id: str | None = None
        self.cli_version: str | None = None
        self.permission_mode: str | None = None
        self.agents: list[object] | None = None
        self.usage = UsageCounter(clean)
        self.tool_count = 0
        self.tool_results = 0
        self.compact_events: list[CompactEvent] = []
        self.answer = RunAnswer()
        self.has_init = False
        self.model_frames = 0
        self._open_tools: set[str] = set()
        self._background_tasks: set[str] = set()
        self._hooks: dict[str, str] = {}

    @property
    def open_tools(self) -> int:
        """How many tool calls have no result yet, including background tasks."""
        return len(self._open_tools) + len(self._background_tasks)

    @property
    def background_tasks(self) -> int:
        """How many background tasks have not ended."""
        return len(self._background_tasks)

    @property
    def has_progress(self) -> bool:
        """Whether a later attempt can build on this one: there is a frame of the model, or a finished tool call."""
        return self.model_frames > 0 or self.tool_results > 0

    @property
    def repeats_refusals(self) -> bool:
        """Whether this version repeats a refused request for minutes before it gives up."""
        version = version_in(self.cli_version)
        return version is not None and version <= REPEATS_REFUSALS_UP_TO

    @property
    def result(self) -> Result | None:
        """The last result that answers the prompt; without one, the last result."""
        return self.answer.last_result

    @property
    def stage(self) -> RunStage:
        """The stage of the run."""
        return self.answer.stage(tasks_pending=bool(self._background_tasks))

    @property
    def has_more_to_come(self) -> bool:
        """Whether the run continues although it has a result."""
        return self.answer.has_result and self.stage is not RunStage.OVER

    @property
    def hook(self) -> str | None:
        """The name of the hook that began last and has not ended; None: no hook runs."""
        return next(reversed(self._hooks.values()), None)

    def add(self, frame: Frame) -> None:
        """Count one frame."""
        if frame.session_id:
            self.session_id = frame.session_id
        if frame.is_of_model:
            self.add_messages([frame])
        elif frame.type == "system":
            self._system(frame)
        elif frame.type == "user":
            self.answer.user(frame)
            for block in frame.blocks:
                if block.type == "tool_result" and block.tool_use_id:
                    self.tool_results += 1
                    self._open_tools.discard(block.tool_use_id)
        elif frame.type == "result":
            self.answer.add_result(frame)
            self._open_tools.clear()
            self.usage.add_result(frame)

    def add_partial(self, partial: Partial | None) -> None:
        """Count a partial message; None: one that neither begins nor ends a message."""
        self.answer.partial(partial)
        if partial is None or partial.parent_tool_use_id is not None:
            return
        event = partial.event
        if event.type == "message_start" and event.message is not None:
            self.usage.add_messages([Frame(message=event.message)])
        elif event.usage is not None:
            self.usage.add_to_last(event.usage)

    def _system(self, frame: Frame) -> None:
        if frame.subtype == "init":
            self.has_init = True
            if frame.claude_code_version:
                self.cli_version = self._clean(frame.claude_code_version)
            self.permission_mode = frame.permission_mode
            self.agents = frame.agents if isinstance(frame.agents, list) else None
            if frame.model:
                self.usage.begin_turn(frame.model)
            self.answer.begin_turn()
        elif frame.subtype == "compact_boundary":
            if len(self.compact_events) < COMPACT_EVENTS_KEPT:
                self.compact_events.append(event := frame.compact_metadata or CompactEvent())
                event.trigger = event.trigger if event.trigger in ("auto", "manual") else None
        elif frame.subtype == "background_tasks_changed":
            self._background_tasks = {task.task_id for task in frame.tasks or ()}
        elif frame.began_task_id is not None:
            self._background_tasks.add(frame.began_task_id)
            self.answer.asked_model = True  # a task before the model's first message is a sub-agent, which asks it
        elif frame.ended_task_id is not None:
            self._background_tasks.discard(frame.ended_task_id)
            if frame.subtype == "task_notification" and not frame.ambient:
                self.answer.expect_turn()
        elif frame.subtype == "hook_started" and len(self._hooks) < _MOST_HOOKS:
            self._hooks[frame.hook_id or ""] = frame.hook_name or "unknown"
        elif frame.subtype == "hook_response":
            self._hooks.pop(frame.hook_id or "", None)

    def add_messages(self, frames: Sequence[Frame]) -> None:
        """Count messages of the model, and blocks of them, that follow each other."""
        self.model_frames += len(frames)
        for frame in frames:
            if frame.session_id:
                self.session_id = frame.session_id
            message = frame.message
            if message is not None and type(message.content) is list:
                for block in message.content:
                    if block.type == "tool_use":
                        self.tool_count += 1
                        if block.id:
                            self._open_tools.add(block.id)
        self.answer.messages(frames)
        self.usage.add_messages(frames)


def _window_of(usage: dict[str, ReportedUsage | None], model: str | None) -> int | None:
    """Return the context window of *model* in tokens, else the largest; other models may have done side work."""
    windows = {name: window for name, one in usage.items() if one and (window := count(one.context_window))}
    own = [window for name, window in windows.items() if model is not None and name.startswith(model)]
    return max(own or windows.values(), default=None)
