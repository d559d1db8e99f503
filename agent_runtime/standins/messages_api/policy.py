"""
The configured answers of the stand-in of the Messages API, and the requests it has seen.

No I/O: the server asks :class:`MessagesApi` about each request. Tokens are not stored, but distinguished by their
fingerprints.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from agent_runtime.model.tokens import Token
from agent_runtime.standins.messages_api.conversation import Conversation
from agent_runtime.standins.messages_api.script import Fail, Reply, Script, Text, Tool

REQUESTS_KEPT = 1000


@dataclass(slots=True)
class SeenRequest:
    """
    One request as it arrived, and what it was answered.

    Attributes:
        at: Seconds on :func:`time.monotonic`.
        bearer: Fingerprint of the token in ``Authorization``.
        api_key: Fingerprint of the token in ``x-api-key``.
        script: The name in the conversation's latest mark.
        aside: A side request: the CLI made it for itself, not for its prompt.
        reply: The kind of the reply: "text", "tool", "fail", ...
        status: The HTTP status of the answer; None: not answered yet, or never.
        usage: The model tokens that the answer, as far as it was sent, said it took; by the API's names.
        body: The body of a request for a message, if the stand-in keeps bodies; else empty.
    """

    at: float
    method: str
    path: str
    bearer: str | None
    api_key: str | None
    beta: str
    user_agent: str
    model: str | None = None
    script: str | None = None
    aside: bool = False
    reply: str | None = None
    status: int | None = None
    usage: Counter[str] = field(default_factory=Counter)
    body: bytes = field(default=b"", repr=False)

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the token that the API looks at: the API key, if both headers were sent."""
        return self.api_key or self.bearer

    def carries(self, token: str | Token) -> bool:
        """Whether the request came with this token, in either header."""
        return _fingerprint(token) in {self.bearer, self.api_key}


@dataclass(slots=True)
class TokenCounts:
    """
    Counts of the requests that came with one token.

    Attributes:
        requests: The conversations' own requests and those that count tokens; no side requests.
        by_status: How many requests of all kinds were answered, by HTTP status; not those that hang or were cut off.
    """

    requests: int = 0
    by_status: Counter[int] = field(default_factory=Counter)


class MessagesApi:
    """
    Decide what each request gets and count what was seen; every method may be called from any thread at any time.

    By default every token is good and every conversation gets the text "done".

    Args:
        keeps_bodies: Keep the body of each request for a message: the CLI's are 100 kB and more.
    """

    def __init__(self, *, keeps_bodies: bool = False) -> None:
        self.keeps_bodies = keeps_bodies
        self._changed = threading.Condition()
        self._tokens: dict[str | None, Script | None] = {}
        self._other_tokens: Script | None = None
        self._models: dict[str, Script | None] = {}
        self._count_tokens: Script | None = None
        self._scripts: dict[str, Script] = {}
        self._default = Script([Text()])
        self._gates: defaultdict[str, Future[None]] = defaultdict(Future)
        self._counts: defaultdict[str | None, TokenCounts] = defaultdict(TokenCounts)
        self._faults_served: Counter[tuple[str, Script, int]] = Counter()
        self._requests: deque[SeenRequest] = deque(maxlen=REQUESTS_KEPT)

    def on(self, token: str | Token, *replies: Reply | str) -> None:
        """
        Give each conversation with this token these replies from its next request on, whatever its prompt says.

        If all replies are faults, side requests of the CLI get the first one, too.
        """
        with self._changed:
            self._tokens[_fingerprint(token)] = Script(replies)

    def accept(self, token: str | Token) -> None:
        """Answer this token by the prompt's script or the default, even if other tokens are refused."""
        with self._changed:
            self._tokens[_fingerprint(token)] = None

    def on_other_tokens(self, *replies: Reply | str) -> None:
        """Give these replies to each token without :meth:`on` or :meth:`accept`; no replies: accept such tokens."""
        with self._changed:
            self._other_tokens = _script_of(replies)

    def on_model(self, model: str, *replies: Reply | str) -> None:
        """
        Give these replies to requests for a model with *model* in its name, whatever their token.

        Without replies, the rule is removed. If all replies are faults, side requests of the CLI and requests
        that count tokens get the first one, too.
        """
        with self._changed:
            self._models[model] = _script_of(replies)

    def on_count_tokens(self, *replies: Reply | str) -> None:
        """
        Give these replies to requests that count tokens, whatever :meth:`on` and :meth:`on_model` say.

        A :class:`Text` stands for the count. Without replies, the rule is removed.
        """
        with self._changed:
            self._count_tokens = _script_of(replies)

    def script(self, name: str, *replies: Reply | str) -> None:
        """Give these replies to conversations whose latest mark is ``[[script:NAME]]`` in what the user wrote."""
        with self._changed:
            self._scripts[name] = Script(replies)

    def default(self, *replies: Reply | str) -> None:
        """Set the replies to requests whose prompt names no script."""
        with self._changed:
            self._default = Script(replies)

    def open_gate(self, name: str) -> None:
        """Open a gate: answers that wait for it go on, later ones do not wait."""
        with self._changed:
            gate = self._gates[name]
            if not gate.done():
                gate.set_result(None)

    def gate(self, name: str) -> Future[None]:
        """Return a gate: done when it is open."""
        with self._changed:
            return self._gates[name]

    @property
    def requests(self) -> tuple[SeenRequest, ...]:
        """The latest requests, oldest first, at most :data:`REQUESTS_KEPT`."""
        with self._changed:
            return tuple(self._requests)

    def seen(self, token: str | Token) -> TokenCounts:
        """Return the counts of requests with this token so far."""
        with self._changed:
            counts = self._counts.get(_fingerprint(token), TokenCounts())
            return replace(counts, by_status=Counter(counts.by_status))

    def wait_for(self, happened: Callable[[MessagesApi], bool], timeout_seconds: float = 30.0) -> None:
        """
        Block until *happened* returns True; it is called at each request and each answer.

        In a coroutine: ``await asyncio.to_thread(api.wait_for, ...)``.

        Raises:
            TimeoutError: That did not happen in time; the message lists the latest requests.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: happened(self), timeout_seconds):
                raise TimeoutError(f"not seen within {timeout_seconds} s; {self!r}: {list(self._requests)[-5:]}")

    def wait_for_requests(self, token: str | Token, count: int = 1, timeout_seconds: float = 30.0) -> None:
        """
        Block until *count* requests have come with this token, without side requests of the CLI.

        Raises:
            TimeoutError: They did not come in time.
        """
        self.wait_for(lambda api: api.seen(token).requests >= count, timeout_seconds)

    def record_arrival(self, request: SeenRequest) -> None:
        """Record a request."""
        with self._changed:
            self._requests.append(request)
            self._counts[request.fingerprint].requests += not request.aside
            self._changed.notify_all()

    def record_answer(self, request: SeenRequest, status: int) -> None:
        """Record that a request is being answered."""
        with self._changed:
            request.status = status
            self._counts[request.fingerprint].by_status[status] += 1
            self._changed.notify_all()

    def record_usage(self, request: SeenRequest, usage: Mapping[str, object]) -> None:
        """Record the tokens that an answer, as far as it was sent, says it took."""
        with self._changed:
            request.usage |= {name: count for name, count in usage.items() if isinstance(count, int)}
            self._changed.notify_all()

    def decide(
        self, fingerprint: str | None, conversation: Conversation, model: str, *, counts_tokens: bool = False
    ) -> Reply:
        """
        Choose the reply to a request.

        Args:
            fingerprint: The fingerprint of the request's token.
            counts_tokens: The request counts tokens; if it has no rule of its own, it gets the faults of side requests.
        """
        with self._changed:
            by_model = next((script for name, script in self._models.items() if script and name in model), None)
            by_token = self._tokens.get(fingerprint, self._other_tokens)
            script = self._count_tokens if counts_tokens else by_model or by_token
            if conversation.aside or (counts_tokens and script is None):
                faults = [script.lasting_fault for script in (by_model, by_token) if script]
                return next((fault for fault in faults if fault is not None), Text())
            if script is None and conversation.script is not None:
                script = self._scripts.get(conversation.script)
                if script is None:
                    text = f"the stand-in has no script named {conversation.script!r}"
                    return Fail(400, "invalid_request_error", text)
            return self._next(script or self._default, conversation.key, conversation.position)

    def _next(self, script: Script, key: str, position: int) -> Reply:
        where = (key, script, position)
        reply = script.reply(position, self._faults_served[where])
        if not isinstance(reply, Text | Tool):
            self._faults_served[where] += 1
        return reply

    def __repr__(self) -> str:
        with self._changed:
            seen = {fingerprint: counts.requests for fingerprint, counts in self._counts.items()}
            return f"<MessagesApi scripts={sorted(self._scripts)} requests={seen}>"


def _fingerprint(token: str | Token) -> str:
    return token.fingerprint if isinstance(token, Token) else Token(token).fingerprint


def _script_of(replies: tuple[Reply | str, ...]) -> Script | None:
    return Script(replies) if replies else None
