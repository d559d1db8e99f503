"""
The conversation that a request belongs to, and its position in its script.

Pure: no I/O and no clock.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import msgspec


class _Block(msgspec.Struct, gc=False):
    text: str | None = None
    tool_use_id: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Block] = ""

    def blocks(self) -> list[_Block]:
        return [_Block(self.content)] if isinstance(self.content, str) else self.content


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class MessagesRequest(msgspec.Struct):
    """The body of a request, as far as it is read here."""

    model: str
    messages: list[_Message]
    max_tokens: int | None = None
    stream: bool | None = None
    tools: list[msgspec.Raw] | None = None
    metadata: _Metadata | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """
    The conversation that a request belongs to, and how far it has come.

    Attributes:
        key: Equal for all requests of one conversation.
        script: The name in the latest ``[[script:NAME]]`` a user wrote, if any.
        position: How many tools, since that mark, have had their result.
        aside: A side request: the CLI makes it for itself, and no script answers it.
    """

    key: str
    script: str | None
    position: int
    aside: bool


_MARK = re.compile(r"\[\[script:([^]]{1,64})\]\]")
_TOOL_USE_ID = re.compile(r"toolu_step([0-9]{1,6})x")


def tool_use_id(position: int, unique: str) -> str:
    """Make an id for a tool call that has the script's position in it, so that the tool's result repeats it."""
    return f"toolu_step{position}x{unique}"


def conversation_of(request: MessagesRequest, user_agent: str) -> Conversation:
    """
    Return the conversation that a request belongs to, and its position in the script.

    Beside the conversation the CLI asks whether its quota holds (``max_tokens`` 1), warms up sub-agents ("Warmup") and
    has a small model extract file paths from a command's output; these carry no tools.

    Source: Claude Code 1.0.128, 2.0.76 and 2.1.30 ask for the quota and file paths, 2.0.76 warms up; 2.1.114 and
    2.1.330 make no such request with non-essential traffic off.
    """
    script, position = None, 0
    for message in request.messages:
        if message.role != "user":
            continue
        for block in message.blocks():
            if names := _MARK.findall(block.text or ""):
                script, position = names[-1], 0
        for block in message.blocks():
            if step := _TOOL_USE_ID.match(block.tool_use_id or ""):
                position = max(position, int(step[1]) + 1)
    first = [block.text for message in request.messages[:1] for block in message.blocks() if block.text is not None]
    session = request.metadata.user_id if request.metadata is not None else None
    key = hashlib.sha256((session or "\n".join(first)).encode(errors="replace")).hexdigest()[:16]
    from_cli = user_agent.startswith("claude-cli/")
    aside = request.max_tokens == 1 or (from_cli and (not request.tools or first[-1:] == ["Warmup"]))
    return Conversation(key, script, position, aside)
