"""
The answers of the stand-in of the Messages API: replies, and scripts of replies.

No I/O; the clock is read only for the end of a usage limit.

A *script* is a list of replies. The position of a conversation in its script follows from the conversation itself,
which every request carries whole. So parallel executions with one token do not disturb one another, and an execution
that is resumed with another token goes on where it was. The script goes on from a :class:`Tool` when its result comes
back; a :class:`Text` ends the turn; from any other reply, a *fault*, the script goes on as soon as the fault has been
served. A fault may also be given by its name in :data:`FAULTS`; in JSON any other reply is an object with its ``kind``.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import msgspec

UP_TO_CONTENT = 3
"""The number of events of a stream up to its first content: message_start, content_block_start and _delta."""


class _Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Anything a request can be answered with; in JSON an object with its ``kind``."""


class _Content(_Reply, frozen=True, kw_only=True):
    """
    An answer of the model.

    Attributes:
        stop_reason: Any string; None: the stop reason that fits the content.
        usage: Merged over the stand-in's own counts of tokens.
        gate: The name of a gate: nothing is sent before ``MessagesApi.open_gate`` was called with it.
    """

    stop_reason: str | None = None
    usage: dict[str, object] = {}
    gate: str | None = None


class Text(_Content, frozen=True, kw_only=True, tag="text"):
    """
    A text that ends the model's turn, in one piece or streamed over a time.

    Attributes:
        text: If empty, the answer has no content at all.
        over_seconds: How long the stream takes, with a piece every *piece_seconds*; 0: all at once.
    """

    text: str = "done"
    over_seconds: float = 0.0
    piece_seconds: float = 0.2
    natural_stop_reason = "end_turn"


class Tool(_Content, frozen=True, kw_only=True, tag="tool"):
    """
    A tool call; with *command* alone, a call of the CLI's Bash tool.

    Attributes:
        input: What the tool is given; if None, *command* as Bash takes it.
        text: What the model says before it calls the tool.
    """

    command: str = "true"
    name: str = "Bash"
    input: dict[str, object] | None = None
    text: str | None = None
    natural_stop_reason = "tool_use"

    @property
    def arguments(self) -> dict[str, object]:
        """The tool's input as it is sent."""
        if self.input is not None:
            return self.input
        return {"command": self.command, "description": "Run the command of the script"}


class Fail(_Reply, frozen=True, tag="fail"):
    """An error answer in the API's own form."""

    status: int
    type: str
    message: str
    headers: dict[str, str] = {}


class Raw(_Reply, frozen=True, tag="raw"):
    """
    Any HTTP answer: an error in a gateway's form, a proxy's page, a redirect, an event stream written by hand.

    Attributes:
        status: 200 to 599.
        body: Text and bytes are sent as they are, any other value as JSON.
        headers: All headers but the body's length; the content type is JSON unless it is among them.
    """

    status: int
    body: object = ""
    headers: dict[str, str] = {}

    def __post_init__(self) -> None:
        """
        Check the status.

        Raises:
            ValueError: No server can answer with this status.
        """
        if not 200 <= self.status <= 599:
            raise ValueError(f"status {self.status} is no final answer of HTTP: 200 to 599")

    @property
    def content(self) -> bytes:
        """The body as it is sent."""
        if isinstance(self.body, str):
            return self.body.encode()
        return self.body if isinstance(self.body, bytes) else msgspec.json.encode(self.body)


class UsageLimit(_Reply, frozen=True, kw_only=True, tag="usage_limit"):
    """
    The 429 of an account's usage limit, which says when it ends.

    Attributes:
        claim: Which limit: ``five_hour``, ``seven_day``, ``seven_day_opus``, ...
        resets_in_seconds: Seconds from the answer to the limit's end, unless *resets_at* (epoch seconds) is given.

    Source: headers that make Claude Code 2.1.30 and 2.1.330 speak of a limit instead of a throttle.
    """

    claim: str = "five_hour"
    resets_in_seconds: int = 3600
    resets_at: int | None = None
    status = 429
    type = "rate_limit_error"
    message = "This request would exceed your account's rate limit. Please try again later."

    @property
    def headers(self) -> dict[str, str]:
        """The headers of an answer that is sent now."""
        now = int(time.time())
        resets_at = now + self.resets_in_seconds if self.resets_at is None else self.resets_at
        return {
            "retry-after": str(max(0, resets_at - now)),
            "anthropic-ratelimit-unified-status": "rejected",
            "anthropic-ratelimit-unified-reset": str(resets_at),
            "anthropic-ratelimit-unified-representative-claim": self.claim,
            "anthropic-ratelimit-unified-fallback": "unavailable",
        }


class _Partial(_Reply, frozen=True, kw_only=True):
    """
    An answer that does not come to its end.

    Attributes:
        of: The answer of which only the beginning is sent.
        after_events: How many events of its stream are sent: 0 is its head alone, 1 is ``message_start``, 2 begins the
            content, 3 is the first piece of it, ... A body that is no stream is sent in quarters.
        after_bytes: How many bytes of its body are sent instead. None of both: not even the head of the answer is sent.
    """

    of: Text | Tool | Fail | Raw = Text(text="The beginning of a text")
    after_events: int | None = None
    after_bytes: int | None = None

    @property
    def is_before_answer(self) -> bool:
        """Whether not even the status is sent."""
        return self.after_events is None and self.after_bytes is None


class Hang(_Partial, frozen=True, kw_only=True, tag="hang"):
    """Accept the request and fall silent until the client goes away or the server ends."""


class Cut(_Partial, frozen=True, kw_only=True, tag="cut"):
    """Close the connection without finishing the answer, or without beginning one."""


class StreamError(_Partial, frozen=True, kw_only=True, tag="stream_error"):
    """
    An ``error`` event in the middle of a stream, behind status 200; the stream ends with it.

    Attributes:
        status: The status of the error for a request that does not ask for a stream.

    Source: https://docs.claude.com/en/docs/build-with-claude/streaming (error events).
    """

    after_events: int | None = UP_TO_CONTENT
    status: int = 529
    type: str = "overloaded_error"
    message: str = "Overloaded"


Partial = Hang | Cut | StreamError
Reply = Text | Tool | Fail | Raw | UsageLimit | Partial

_unauthenticated = functools.partial(Fail, 401, "authentication_error")
_forbidden = functools.partial(Fail, 403, "permission_error")

FAULTS: dict[str, Reply] = {
    # refused: the token is at fault
    "expired": _unauthenticated("OAuth token has expired. Please obtain a new token or refresh your existing token."),
    "access_token_expired": _unauthenticated("OAuth access token has expired. Re-authenticate to continue."),
    "invalid": _unauthenticated("Invalid bearer token"),
    "invalid_credentials": _unauthenticated("Invalid authentication credentials"),
    "invalid_api_key": _unauthenticated("invalid x-api-key"),
    "no_credential": _unauthenticated("x-api-key header is required"),
    "oauth_not_supported": _unauthenticated("OAuth authentication is currently not supported."),
    "revoked": _unauthenticated("OAuth access token has been revoked."),
    "revoked_403": _forbidden("OAuth token has been revoked. Please obtain a new token or log in again."),
    "org_not_allowed": _forbidden("OAuth authentication is currently not allowed for this organization."),
    "not_a_member": _forbidden("Account is no longer a member of the organization."),
    "no_claude_code": _forbidden("Your account does not have access to Claude Code."),
    # 403, and yet the token is good
    "model_not_allowed": _forbidden("Your organization does not have access to model: claude-opus-4-1"),
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
    "hang_in_text": Hang(after_events=UP_TO_CONTENT),
    "cut": Cut(),
    "cut_in_text": Cut(after_events=UP_TO_CONTENT),
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
    A list of replies, for any number of conversations; the last one is repeated, or, for a tool, followed by a text.

    Raises:
        ValueError: The list is empty, or goes on after a :class:`Text`, which ends the turn.
    """

    def __init__(self, replies: Sequence[Reply | str]) -> None:
        self.replies = tuple(reply_named(reply) for reply in replies)
        if not self.replies:
            raise ValueError("a script needs at least one reply")
        if any(isinstance(reply, Text) for reply in self.replies[:-1]):
            raise ValueError("a text ends the turn: nothing can follow it in a script")
        self._steps: list[list[Reply]] = [[]]  # one ends with a tool or with the script's last reply
        for reply in self.replies:
            self._steps[-1].append(reply)
            if isinstance(reply, Tool):
                self._steps.append([])
        if not self._steps[-1]:
            self._steps[-1].append(Text())

    def reply(self, position: int, faults_served: int) -> Reply:
        """
        Return the next reply.

        Args:
            position: How many of the script's tools have had their result.
            faults_served: How many faults this conversation has met at this position.
        """
        step = self._steps[min(position, len(self._steps) - 1)]
        return step[min(faults_served, len(step) - 1)]

    @property
    def lasting_fault(self) -> Reply | None:
        """If all replies are faults, the first one: side requests of the CLI get it, too. Else None."""
        return None if isinstance(self._steps[0][-1], Text | Tool) else self._steps[0][0]

    def __repr__(self) -> str:
        return f"<Script {' '.join(type(reply).__name__ for reply in self.replies)}>"
