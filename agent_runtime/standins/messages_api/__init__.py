"""A stand-in for the Messages API on loopback, which answers as its script says."""

from agent_runtime.standins.messages_api.policy import MessagesApi, SeenRequest
from agent_runtime.standins.messages_api.script import (
    FAULTS,
    Cut,
    Fail,
    Hang,
    Raw,
    StreamError,
    Text,
    Tool,
    UsageLimit,
)
from agent_runtime.standins.messages_api.server import serve

__all__ = [
    "FAULTS",
    "Cut",
    "Fail",
    "Hang",
    "MessagesApi",
    "Raw",
    "SeenRequest",
    "StreamError",
    "Text",
    "Tool",
    "UsageLimit",
    "serve",
]
