"""
What the stand-in of the Messages API answers: replies, scripts of replies, and where a conversation stands in one.

Pure: no I/O and no clock. :mod:`agent_runtime.standins.messages_api` serves what is decided here.

A *script* is a list of replies. Where a conversation stands in it is read off the conversation itself, which every
request carries whole, so parallel executions with one token do not disturb one another, and one that is resumed with
another token goes on where it was. :class:`Tool` is left behind when its result comes back, a fault as soon as it has
been served, and :class:`Text` ends the turn. A fault may also be given by its name in :data:`FAULTS`; in JSON any other
reply is an object with its ``kind``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

OAUTH_BETA = "oauth-2025-04-20"
"""The ``anthropic-beta`` value without which the API does not take an OAuth token; every CLI version sends it."""


class Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="text"):
    """
    A text that ends the model's turn, in one piece or streamed over a time.

    Attributes:
        over_seconds: How long the stream takes, in one piece each *piece_seconds*; 0: all at once.
        pings: Send ``ping`` events, which are no content, between the pieces.
        gate: Nothing is sent before ``MessagesApi.open_gate`` has been called with this name.
    """

    text: str = "done"
    over_seconds: float = 0.0
    piece_seconds: float = 0.2
    pings: bool = False
    gate: str | None = None
    headers: dict[str, str] = {}


class Tool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="tool"):
    """
    A tool call; with *command* alone one of the CLI's Bash tool.

    Attributes:
        input: What the tool is given; if None, *command* as Bash takes it.
        text: What the model says before it calls the tool.
        gate: Nothing is sent before ``MessagesApi.open_gate`` has been called with this name.
    """

    command: str = "true"
    name: str = "Bash"
    input: dict[str, object] | None = None
    text: str | None = None
    gate: str | None = None
    headers: dict[str, str] = {}

    @property
    def arguments(self) -> dict[str, object]:
        """The tool's input as it is sent."""
        if self.input is not None:
            return self.input
        return {"command": self.command, "description": "Run the command of the script"}


class Fail(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="fail"):
    """An error answer in the API's own form."""

    status: int
    type: str
    message: str
    headers: dict[str, str] = {}

    def headers_at(self, _now: float) -> dict[str, str]:
        """What is sent besides the body."""
        return self.headers


class UsageLimit(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="usage_limit"
):
    """
    The 429 of an account's usage limit, which says when it ends.

    Attributes:
        claim: Which limit: ``five_hour``, ``seven_day``, ``seven_day_opus``, ...
        resets_in_seconds: From the moment of the answer, unless *resets_at* (epoch seconds) says when.

    Source: headers that make Claude Code 2.1.30 and 2.1.330 speak of a limit instead of a throttle.
    """

    claim: str = "five_hour"
    resets_in_seconds: int = 3600
    resets_at: int | None = None
    status = 429
    type = "rate_limit_error"
    message = "This request would exceed your account's rate limit. Please try again later."

    def headers_at(self, now: float) -> dict[str, str]:
        """
        What is sent besides the body.

        Args:
            now: Epoch seconds.
        """
        resets_at = int(now) + self.resets_in_seconds if self.resets_at is None else self.resets_at
        return {
            "retry-after": str(max(0, resets_at - int(now))),
            "anthropic-ratelimit-unified-status": "rejected",
            "anthropic-ratelimit-unified-reset": str(resets_at),
            "anthropic-ratelimit-unified-representative-claim": self.claim,
            "anthropic-ratelimit-unified-fallback": "unavailable",
        }


class Moment(StrEnum):
    """How far an answer got before it fell silent or its connection was closed."""

    BEFORE_ANSWER = "before_answer"
    AFTER_HEADERS = "after_headers"
    IN_TEXT = "in_text"


class Hang(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="hang"):
    """Accept the request and fall silent until the client goes away or the server ends."""

    moment: Moment = Moment.BEFORE_ANSWER


class Cut(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="cut"):
    """Close the connection without finishing the answer, or without beginning one."""

    moment: Moment = Moment.BEFORE_ANSWER


Reply = Text | Tool | Fail | UsageLimit | Hang | Cut
"""Anything a request can be answered with."""

FAULTS: dict[str, Reply] = {
    # refused: the token is at fault
    "expired": Fail(
        401,
        "authentication_error",
        "OAuth token has expired. Please obtain a new token or refresh your existing token.",
    ),
    "access_token_expired": Fail(
        401, "authentication_error", "OAuth access token has expired. Re-authenticate to continue."
    ),
    "invalid": Fail(401, "authentication_error", "Invalid bearer token"),
    "invalid_credentials": Fail(401, "authentication_error", "Invalid authentication credentials"),
    "invalid_api_key": Fail(401, "authentication_error", "invalid x-api-key"),
    "no_credential": Fail(401, "authentication_error", "x-api-key header is required"),
    "oauth_not_supported": Fail(401, "authentication_error", "OAuth authentication is currently not supported."),
    "revoked": Fail(401, "authentication_error", "OAuth access token has been revoked."),
    "revoked_403": Fail(
        403, "permission_error", "OAuth token has been revoked. Please obtain a new token or log in again."
    ),
    "org_not_allowed": Fail(
        403, "permission_error", "OAuth authentication is currently not allowed for this organization."
    ),
    "not_a_member": Fail(403, "permission_error", "Account is no longer a member of the organization."),
    "no_claude_code": Fail(403, "permission_error", "Your account does not have access to Claude Code."),
    # 403, and yet the token is good
    "model_not_allowed": Fail(
        403, "permission_error", "Your organization does not have access to model: claude-opus-4-1"
    ),
    "gateway_quota": Fail(403, "forbidden", "Quota exceeded for this gateway"),
    # the account, the request, the service
    "usage_limit": UsageLimit(),
    "throttled": Fail(429, "rate_limit_error", "Number of requests has exceeded your rate limit", {"retry-after": "1"}),
    "overloaded": Fail(529, "overloaded_error", "Overloaded"),
    "server_error": Fail(500, "api_error", "Internal server error"),
    "credit_balance": Fail(
        400,
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API. "
        "Please go to Plans & Billing to upgrade or purchase credits.",
    ),
    "unknown_model": Fail(404, "not_found_error", "model: no-such-model"),
    # no answer at all
    "hang": Hang(),
    "hang_in_text": Hang(Moment.IN_TEXT),
    "cut": Cut(),
    "cut_in_text": Cut(Moment.IN_TEXT),
}
"""
Faults by name.

Source: the API's own messages as they show in ``API error`` lines and reports of Claude Code 1.0.83 to 2.1.330;
``model_not_allowed``, ``not_a_member``, ``no_claude_code`` and ``gateway_quota`` are put together from described cases.
"""


def reply_named(reply: Reply | str) -> Reply:
    """
    Look up a reply that may be given by its name.

    Raises:
        ValueError: No fault has this name.
    """
    if not isinstance(reply, str):
        return reply
    if reply not in FAULTS:
        raise ValueError(f"no fault for a script is named {reply!r}; there are {', '.join(FAULTS)}")
    return FAULTS[reply]


class Script:
    """
    A list of replies for each conversation that is given it; the last one lasts.

    Raises:
        ValueError: It is empty, or goes on after a :class:`Text`, which ends the turn.
    """

    def __init__(self, replies: Sequence[Reply | str]) -> None:
        self.replies = tuple(reply_named(reply) for reply in replies)
        if not self.replies:
            raise ValueError("a script needs at least one reply")
        if any(isinstance(reply, Text) for reply in self.replies[:-1]):
            raise ValueError("a text ends the turn: nothing can follow it in a script")
        self._steps: list[tuple[list[Reply], Reply | None]] = []
        faults: list[Reply] = []
        for reply in self.replies:
            if isinstance(reply, Text | Tool):
                self._steps.append((faults, reply))
                faults = []
            else:
                faults.append(reply)
        if faults:
            self._steps.append((faults, None))
        elif isinstance(self.replies[-1], Tool):
            self._steps.append(([], Text()))

    def reply(self, position: int, faults_served: int) -> Reply:
        """
        Say what comes next.

        Args:
            position: How many of the script's tools have had their result.
            faults_served: How many faults this conversation has met at this position.
        """
        faults, content = self._steps[min(position, len(self._steps) - 1)]
        if faults_served < len(faults):
            return faults[faults_served]
        return faults[-1] if content is None else content

    @property
    def lasting_fault(self) -> Reply | None:
        """The fault that any request meets, also one that is no part of a conversation."""
        faults, content = self._steps[0]
        return faults[0] if content is None else None

    def __repr__(self) -> str:
        return f"<Script {' '.join(type(reply).__name__ for reply in self.replies)}>"


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    tool_use_id: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Block] = ""

    def texts(self) -> list[str]:
        if isinstance(self.content, str):
            return [self.content]
        return [block.text for block in self.content if block.text is not None]


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
    Which conversation a request belongs to and how far that has come.

    Attributes:
        key: Equal for all requests of one conversation.
        script: The name in the latest ``[[script:NAME]]`` a user wrote, if any.
        position: How many tools, since that mark, have had their result.
        aside: A small request that the CLI makes for itself beside the conversation; no script knows of it.
    """

    key: str
    script: str | None
    position: int
    aside: bool


_MARK = "[[script:"
_LONGEST_NAME = 64
_TOOL_USE_ID = "toolu_step"


def tool_use_id(position: int, unique: str) -> str:
    """Make the id by which the tool's result tells how far its script has come."""
    return f"{_TOOL_USE_ID}{position}x{unique}"


def conversation_of(request: MessagesRequest, user_agent: str) -> Conversation:
    """
    Read off a request where its conversation stands.

    Beside the conversation the CLI asks whether its quota holds (``max_tokens`` 1), warms up sub-agents ("Warmup") and
    has a small model extract file paths from a command's output; these carry no tools.

    Source: Claude Code 1.0.128, 2.0.76 and 2.1.30 ask for the quota and file paths, 2.0.76 warms up; 2.1.114 and
    2.1.330 make no such request with non-essential traffic off.
    """
    script, position = None, 0
    for message in request.messages:
        if message.role != "user":
            continue
        for text in message.texts():
            name = _script_name(text)
            if name is not None:
                script, position = name, 0
        if not isinstance(message.content, str):
            for block in message.content:
                if block.type == "tool_result":
                    position = max(position, _position_after(block.tool_use_id or ""))
    first = request.messages[0].texts() if request.messages else []
    session = request.metadata.user_id if request.metadata is not None else None
    key = hashlib.sha256((session or "\n".join(first)).encode(errors="replace")).hexdigest()[:16]
    from_cli = user_agent.startswith("claude-cli/")
    aside = request.max_tokens == 1 or (from_cli and (not request.tools or first[-1:] == ["Warmup"]))
    return Conversation(key, script, position, aside)


def _script_name(text: str) -> str | None:
    start = text.rfind(_MARK)
    if start < 0:
        return None
    start += len(_MARK)
    end = text.find("]]", start, start + _LONGEST_NAME + 2)
    return text[start:end] if end > start else None


def _position_after(identity: str) -> int:
    if not identity.startswith(_TOOL_USE_ID):
        return 0
    digits = identity[len(_TOOL_USE_ID) : len(_TOOL_USE_ID) + 6].partition("x")[0]
    return int(digits) + 1 if digits.isdecimal() else 0
