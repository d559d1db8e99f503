"""
The client for backends: submit an execution by its id, survive every connection, get its one answer or a typed error.

    async with AgentClient("http://agent:8000", access_key_file=KEY) as agent:
        try:
            answer = await agent.run("Fix the tests.", execution_id="fix-1")
        except TokenFailed:
            await agent.write_token(SECRET_FILE, next_token())

:class:`SyncAgentClient` is the same with calls that block.
"""

from agent_runtime.client.asynchronous import AgentClient
from agent_runtime.client.failures import (
    FAILURES,
    AccessDenied,
    ApiFailed,
    AuthFailed,
    BillingExhausted,
    Busy,
    ClientError,
    Conflict,
    DeadlineExceeded,
    Draining,
    ExecutionFailed,
    Interrupted,
    InvalidRequest,
    Killed,
    LostResult,
    MethodNotAllowed,
    ModelUnusable,
    NetworkFailed,
    NotFound,
    NoToken,
    NotWritable,
    OutOfMemory,
    OutputTooLong,
    Overloaded,
    Problem,
    ProblemError,
    RateLimited,
    RequestRefused,
    ResultNotKept,
    SpawnFailed,
    Stalled,
    TimedOut,
    TokenFailed,
    TooLarge,
    TooManyTurns,
    TurnedAway,
    UnexpectedAnswer,
    Unreachable,
    UpstreamFailed,
)
from agent_runtime.client.following import StreamEvent
from agent_runtime.client.submission import Answer
from agent_runtime.client.synchronous import SyncAgentClient

__all__ = [
    "FAILURES",
    "AccessDenied",
    "AgentClient",
    "Answer",
    "ApiFailed",
    "AuthFailed",
    "BillingExhausted",
    "Busy",
    "ClientError",
    "Conflict",
    "DeadlineExceeded",
    "Draining",
    "ExecutionFailed",
    "Interrupted",
    "InvalidRequest",
    "Killed",
    "LostResult",
    "MethodNotAllowed",
    "ModelUnusable",
    "NetworkFailed",
    "NoToken",
    "NotFound",
    "NotWritable",
    "OutOfMemory",
    "OutputTooLong",
    "Overloaded",
    "Problem",
    "ProblemError",
    "RateLimited",
    "RequestRefused",
    "ResultNotKept",
    "SpawnFailed",
    "Stalled",
    "StreamEvent",
    "SyncAgentClient",
    "TimedOut",
    "TokenFailed",
    "TooLarge",
    "TooManyTurns",
    "TurnedAway",
    "UnexpectedAnswer",
    "Unreachable",
    "UpstreamFailed",
]
