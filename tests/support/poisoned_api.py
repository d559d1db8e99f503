"""A stand-in of the Messages API that refuses the history of some sessions, whatever is said in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_runtime.standins.messages_api import Fail, MessagesApi

if TYPE_CHECKING:
    from agent_runtime.standins.messages_api.conversation import Conversation
    from agent_runtime.standins.messages_api.script import Reply


class PoisonedApi(MessagesApi):
    """Answer as its base does, but 400 in every session that was known when it was poisoned."""

    def __init__(self) -> None:
        super().__init__()
        self._sessions: set[str] = set()
        self._poisoned: dict[str, str] = {}

    def poison(self, message: str) -> None:
        """Refuse all sessions seen so far with *message*."""
        self._poisoned.update(dict.fromkeys(self._sessions, message))

    def decide(
        self, fingerprint: str | None, conversation: Conversation, model: str, *, counts_tokens: bool = False
    ) -> Reply:
        """Choose the reply to a request."""
        if not conversation.aside:
            self._sessions.add(conversation.key)
        if (message := self._poisoned.get(conversation.key)) is not None:
            return Fail(400, "invalid_request_error", message)
        return super().decide(fingerprint, conversation, model, counts_tokens=counts_tokens)
