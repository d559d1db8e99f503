"""
The configured answers of the stand-in of the Messages API, and the requests it has seen.

No I/O: :mod:`agent_runtime.standins.messages_api` asks it about each request. Tokens are not stored: it distinguishes
them by their fingerprints.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agent_runtime.model.tokens import Token
from agent_runtime.standins.messages_api.script import FAULTS, Fail, Reply, Script, Text, Tool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_runtime.standins.messages_api.conversation import Conversation

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
        aside: The CLI made it for itself, beside the conversation.
        reply: The kind of the reply: "text", "tool", "fail", ...
        status: None: not answered yet, or never.
        usage: Tokens that the answer said it took, as far as it was sent; by the API's names.
        body: Of a request for a message, where the stand-in keeps them.
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
        """Of the token that counts: the API key where both headers are there."""
        return self.api_key or self.bearer

    def carries(self, token: str | Token) -> bool:
        """Whether it came with this token, in whichever header."""
        return _fingerprint(token) in {self.bearer, self.api_key}


@dataclass(slots=True)
class TokenCounts:
    """
    What came with one token.

    Attributes:
        requests: The conversations' own requests and those that count tokens.
        asides: Requests that the CLI made for itself, beside a conversation.
        by_status: How many of both were answered with which HTTP status; one that hangs or was cut off is not there.
    """

    requests: int = 0
    asides: int = 0
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
        self._tokens: dict[str, Script | None] = {}
        self._other_tokens: Script | None = None
        self._models: dict[str, Script] = {}
        self._count_tokens: dict[str | None, Script] = {}
        self._scripts: dict[str, Script] = {}
        self._default = Script([Text()])
        self._open_gates: set[str] = set()
        self._at_gates: dict[str, list[Callable[[], None]]] = {}
        self._counts: defaultdict[str | None, TokenCounts] = defaultdict(TokenCounts)
        self._faults_served: Counter[tuple[str, Script, int]] = Counter()
        self._requests: deque[SeenRequest] = deque(maxlen=REQUESTS_KEPT)

    def on(self, token: str | Token, *replies: Reply | str) -> None:
        """
        Give each conversation with this token these replies from its next request on, whatever its prompt says.

        Where a fault is all there is, requests beside a conversation get it too.
        """
        with self._changed:
            self._tokens[_fingerprint(token)] = Script(replies)

    def accept(self, token: str | Token) -> None:
        """Answer this token by the prompt's script or the default, also where other tokens are refused."""
        with self._changed:
            self._tokens[_fingerprint(token)] = None

    def on_other_tokens(self, *replies: Reply | str) -> None:
        """Give these replies to each token that neither :meth:`on` nor :meth:`accept` has named; none: accept them."""
        with self._changed:
            self._other_tokens = Script(replies) if replies else None

    def on_model(self, model: str, *replies: Reply | str) -> None:
        """
        Give these replies to requests for a model with *model* in its name, whatever their token; none: no longer.

        Where a fault is all there is, requests beside a conversation and those that count tokens get it too.
        """
        with self._changed:
            self._models.pop(model, None)
            if replies:
                self._models[model] = Script(replies)

    def on_count_tokens(self, *replies: Reply | str, token: str | Token | None = None) -> None:
        """
        Give these replies to requests that count tokens, whatever :meth:`on` and :meth:`on_model` say; none: no longer.

        A :class:`Text` stands for the count.

        Args:
            token: None: those with any token for which no others were given.
        """
        with self._changed:
            key = None if token is None else _fingerprint(token)
            self._count_tokens.pop(key, None)
            if replies:
                self._count_tokens[key] = Script(replies)

    def script(self, name: str, *replies: Reply | str) -> None:
        """Give these replies to conversations whose latest mark is ``[[script:NAME]]`` in what the user wrote."""
        with self._changed:
            self._scripts[name] = Script(replies)

    def default(self, *replies: Reply | str) -> None:
        """Give these replies to conversations without a mark."""
        with self._changed:
            self._default = Script(replies)

    def open_gate(self, name: str) -> None:
        """Open a gate: answers that wait for it go on, later ones do not wait."""
        with self._changed:
            self._open_gates.add(name)
            waiting = self._at_gates.pop(name, [])
        for proceed in waiting:
            proceed()

    @property
    def requests(self) -> tuple[SeenRequest, ...]:
        """The latest requests, oldest first, at most :data:`REQUESTS_KEPT`."""
        with self._changed:
            return tuple(self._requests)

    def seen(self, token: str | Token) -> TokenCounts:
        """Count what came with this token so far; all zero if nothing did."""
        with self._changed:
            counts = self._counts.get(_fingerprint(token), TokenCounts())
            return replace(counts, by_status=Counter(counts.by_status))

    def handed_out(self) -> dict[str, Counter[str]]:
        """Return the tokens by model that the answers to the latest requests said they took, by the API's names."""
        with self._changed:
            handed_out: defaultdict[str, Counter[str]] = defaultdict(Counter)
            for request in self._requests:
                if request.usage:
                    handed_out[request.model or ""].update(request.usage)
            return dict(handed_out)

    def wait_for(self, happened: Callable[[MessagesApi], bool], timeout_seconds: float = 30.0) -> None:
        """
        Block until *happened* is true; it is asked at each request and each answer.

        In a coroutine: ``await asyncio.to_thread(api.wait_for, ...)``.

        Raises:
            TimeoutError: It did not become true in time; the message tells what was seen.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: happened(self), timeout_seconds):
                raise TimeoutError(f"not seen within {timeout_seconds} s; {self!r}: {list(self._requests)[-5:]}")

    def wait_for_requests(self, token: str | Token, count: int = 1, timeout_seconds: float = 30.0) -> None:
        """
        Block until *count* requests have come with this token, those beside a conversation not counted.

        Raises:
            TimeoutError: They did not come in time.
        """
        self.wait_for(lambda api: api.seen(token).requests >= count, timeout_seconds)

    def record_arrival(self, request: SeenRequest) -> None:
        """Record a request."""
        with self._changed:
            self._requests.append(request)
            counts = self._counts[request.fingerprint]
            counts.requests += not request.aside
            counts.asides += request.aside
            self._changed.notify_all()

    def record_answer(self, request: SeenRequest, status: int) -> None:
        """Record that a request is being answered."""
        with self._changed:
            request.status = status
            self._counts[request.fingerprint].by_status[status] += 1
            self._changed.notify_all()

    def record_usage(self, request: SeenRequest, usage: Mapping[str, object]) -> None:
        """Record what an answer says that it has taken up to now."""
        with self._changed:
            request.usage |= {name: count for name, count in usage.items() if isinstance(count, int)}
            self._changed.notify_all()

    def decide(self, fingerprint: str | None, conversation: Conversation, model: str | None = None) -> Reply:
        """
        Choose the reply to a request.

        Args:
            fingerprint: Of the token it came with.
        """
        with self._changed:
            if fingerprint is None:
                return FAULTS["no_credential"]
            if conversation.aside:
                return self._fault_of(fingerprint, model) or Text()
            name = self._rule_for(model)
            if name is not None:
                return self._next(self._models[name], conversation.key, conversation.position)
            script = self._tokens.get(fingerprint, self._other_tokens)
            if script is None and conversation.script is not None:
                script = self._scripts.get(conversation.script)
                if script is None:
                    text = f"the stand-in has no script named {conversation.script!r}"
                    return Fail(400, "invalid_request_error", text)
            return self._next((script or self._default), conversation.key, conversation.position)

    def decide_count(self, fingerprint: str | None, model: str | None = None) -> Reply:
        """
        Choose the reply to a request that counts tokens.

        Args:
            fingerprint: Of the token it came with.
        """
        with self._changed:
            if fingerprint is None:
                return FAULTS["no_credential"]
            script = self._count_tokens.get(fingerprint, self._count_tokens.get(None))
            if script is None:
                return self._fault_of(fingerprint, model) or Text()
            return self._next(script, fingerprint, 0)

    def _fault_of(self, fingerprint: str, model: str | None) -> Reply | None:
        """Return the fault that also requests outside of conversations meet."""
        name = self._rule_for(model)
        scripts = [self._models[name]] if name is not None else []
        scripts += filter(None, [self._tokens.get(fingerprint, self._other_tokens)])
        return next((script.lasting_fault for script in scripts if script.lasting_fault is not None), None)

    def _rule_for(self, model: str | None) -> str | None:
        return next((name for name in self._models if model is not None and name in model), None)

    def _next(self, script: Script, key: str, position: int) -> Reply:
        where = (key, script, position)
        reply = script.reply(position, self._faults_served[where])
        if not isinstance(reply, Text | Tool):
            self._faults_served[where] += 1
        return reply

    def when_open(self, gate: str, proceed: Callable[[], None]) -> None:
        """Call *proceed* once when the gate is open; at once if it is, else in the thread that opens it."""
        with self._changed:
            if gate not in self._open_gates:
                self._at_gates.setdefault(gate, []).append(proceed)
                return
        proceed()

    def __repr__(self) -> str:
        with self._changed:
            seen = {fingerprint: counts.requests for fingerprint, counts in self._counts.items()}
            return f"<MessagesApi scripts={sorted(self._scripts)} requests={seen}>"


def _fingerprint(token: str | Token) -> str:
    return token.fingerprint if isinstance(token, Token) else Token(token).fingerprint
