"""
The bytes of the stand-in's answers: whole answers, streams of events, and the beginnings of either.

Pure: no I/O and no clock; a pause is a number of seconds that follows the bytes sent before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from agent_runtime.standins.messages_api.conversation import tool_use_id
from agent_runtime.standins.messages_api.script import Fail, Partial, StreamError, Text, Tool, UsageLimit

JSON = "application/json"
EVENT_STREAM = "text/event-stream"

INPUT_TOKENS = 10
OUTPUT_TOKENS = 5

Pieces: TypeAlias = Iterator[tuple[bytes, float]]
"""Parts of an answer: bytes that are sent at once (in a stream, one event), and the seconds to wait after them."""


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """
    An answer of the model, as it is sent.

    Attributes:
        unique: The part of the answer's ids that no other answer of this server has.
        position: How many tools of the script came before; None: the tool's result must not move the script on.
        on_usage: Called with each count of model tokens when that is sent.
    """

    reply: Text | Tool
    model: str
    unique: str
    position: int | None
    on_usage: Callable[[dict[str, object]], object]

    def whole(self) -> bytes:
        """Return the body of the answer to a request that does not ask for a stream."""
        message = self._head(OUTPUT_TOKENS) | {"content": self._content()} | self._ending()
        self.on_usage(self._usage(OUTPUT_TOKENS))
        return msgspec.json.encode(message)

    def stream(self) -> Pieces:
        """Yield the answer as a stream of events."""
        self.on_usage(self._usage(output_tokens=1))
        yield event("message_start", message=self._head(output_tokens=1)), 0.0
        for index, block in enumerate(self._content()):
            if block["type"] == "tool_use":
                yield event("content_block_start", index=index, content_block=block | {"input": {}}), 0.0
                arguments = {"type": "input_json_delta", "partial_json": msgspec.json.encode(block["input"]).decode()}
                yield event("content_block_delta", index=index, delta=arguments), 0.0
            else:
                yield event("content_block_start", index=index, content_block=block | {"text": ""}), 0.0
                yield from self._text(index, str(block["text"]))
            yield event("content_block_stop", index=index), 0.0
        usage = {"output_tokens": OUTPUT_TOKENS} | self.reply.usage
        self.on_usage(usage)
        yield event("message_delta", delta=self._ending(), usage=usage), 0.0
        yield event("message_stop"), 0.0

    def _text(self, index: int, text: str) -> Pieces:
        if not isinstance(self.reply, Text) or self.reply.over_seconds <= 0:
            yield event("content_block_delta", index=index, delta={"type": "text_delta", "text": text}), 0.0
            return
        count = max(1, round(self.reply.over_seconds / self.reply.piece_seconds))
        size = -(-len(text) // count)
        starts = range(0, len(text), size)
        for start in starts:
            delta = {"type": "text_delta", "text": text[start : start + size]}
            yield event("content_block_delta", index=index, delta=delta), self.reply.over_seconds / len(starts)

    def _head(self, output_tokens: int) -> dict[str, object]:
        return {
            "id": f"msg_standin{self.unique}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(output_tokens),
        }

    def _usage(self, output_tokens: int) -> dict[str, object]:
        return {"input_tokens": INPUT_TOKENS, "output_tokens": output_tokens} | self.reply.usage

    def _ending(self) -> dict[str, object]:
        return {"stop_reason": self.reply.stop_reason or self.reply.natural_stop_reason, "stop_sequence": None}

    def _content(self) -> list[dict[str, object]]:
        reply = self.reply
        content: list[dict[str, object]] = [{"type": "text", "text": reply.text}] if reply.text else []
        if isinstance(reply, Tool):
            partial = f"toolu_partial{self.unique}"
            identity = partial if self.position is None else tool_use_id(self.position, self.unique)
            content.append({"type": "tool_use", "id": identity, "name": reply.name, "input": reply.arguments})
        return content


def beginning(pieces: Pieces, partial: Partial) -> Pieces:
    """Yield the first of the *pieces*, up to where *partial* breaks off."""
    size = partial.after_bytes
    if size is None:
        yield from itertools.islice(pieces, partial.after_events)
        return
    for data, pause_seconds in pieces:
        yield data[:size], pause_seconds
        size -= len(data)
        if size <= 0:
            return


def quarters(body: bytes) -> Pieces:
    """Divide a body that is no stream into four pieces, so that it can break off after each."""
    ends = [len(body) * quarter // 4 for quarter in range(5)]
    return ((body[start:end], 0.0) for start, end in itertools.pairwise(ends))


def error_body(failure: Fail | UsageLimit | StreamError, request_id: str) -> bytes:
    """Encode an error as the API does."""
    error = {"type": failure.type, "message": failure.message}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def event(kind: str, **fields: object) -> bytes:
    """Encode one event of a stream."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode({"type": kind} | fields))
