"""
The client for backends: submit a task under an id, survive broken connections, get its one answer or a typed error.

    async with AgentClient("http://agent:8000", access_key_file=KEY) as agent:
        try:
            answer = await agent.run("Fix the tests.", execution_id="fix-1")
        except TokenFailed:
            put_token(SECRET_FILE, next_token())

:class:`SyncAgentClient` is the same client with blocking calls.
"""

from agent_runtime.api.schema.bodies import (
    DrainState,
    ExecutionStatus,
    Health,
    Reloaded,
    RunningExecution,
    RunningExecutions,
    Termination,
    TokenReport,
    UsageReport,
)
from agent_runtime.client.aio import AgentClient, put_token
from agent_runtime.client.answers import Answer, Attempt, Event, Execution, ExecutionPage, TokenUse
from agent_runtime.client.errors import (
    ApiFailed,
    ClientError,
    ExecutionFailed,
    Problem,
    RequestRefused,
    TokenFailed,
    TurnedAway,
    Unreachable,
)
from agent_runtime.client.sse import StreamEvent
from agent_runtime.client.sync import SyncAgentClient
from agent_runtime.model.records import Metadata

__all__ = [
    "AgentClient",
    "Answer",
    "ApiFailed",
    "Attempt",
    "ClientError",
    "DrainState",
    "Event",
    "Execution",
    "ExecutionFailed",
    "ExecutionPage",
    "ExecutionStatus",
    "Health",
    "Metadata",
    "Problem",
    "Reloaded",
    "RequestRefused",
    "RunningExecution",
    "RunningExecutions",
    "StreamEvent",
    "SyncAgentClient",
    "Termination",
    "TokenFailed",
    "TokenReport",
    "TokenUse",
    "TurnedAway",
    "Unreachable",
    "UsageReport",
    "put_token",
]
