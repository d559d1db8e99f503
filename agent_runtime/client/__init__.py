"""
The client for backends: submit an execution by its id, survive every connection, get its one answer or a typed error.

    async with AgentClient("http://agent:8000", access_key_file=KEY) as agent:
        try:
            answer = await agent.run("Fix the tests.", execution_id="fix-1")
        except TokenFailed:
            await agent.write_token(SECRET_FILE, next_token())

:class:`SyncAgentClient` is the same with calls that block.
"""

from agent_runtime.client.aio import AgentClient
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
from agent_runtime.client.submit import Answer
from agent_runtime.client.sync import SyncAgentClient

__all__ = [
    "AgentClient",
    "Answer",
    "ApiFailed",
    "ClientError",
    "ExecutionFailed",
    "Problem",
    "RequestRefused",
    "StreamEvent",
    "SyncAgentClient",
    "TokenFailed",
    "TurnedAway",
    "Unreachable",
]
