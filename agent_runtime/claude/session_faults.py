"""
Recognise that a session cannot be continued: its own history is at fault, or the CLI does not find or read it.

The API answers 400 to every request of a session whose history is at fault, whatever the prompt, because the CLI sends
the whole history each time. Versions of the CLI word it differently on stdout, but all of them print the API's own body
on stderr.
"""

from __future__ import annotations

import msgspec

_HEAD_BYTES = 16384


class SessionFault(msgspec.Struct, frozen=True):
    """
    A message by which a fault of the session's history is recognised.

    Attributes:
        words: All of these occur in the text, in lower case.
        source: Reports, documents or versions of the CLI that have the message.
        by_image: An image or document is at fault, which may be in the history or in the attempt's own prompt.
    """

    words: tuple[str, ...]
    source: str
    by_image: bool = False


SESSION_FAULTS: tuple[SessionFault, ...] = (
    # -- thinking blocks
    SessionFault(("invalid", "signature", "thinking"), "anthropics/claude-code#21726, #66204, #10627"),
    SessionFault(("thinking", "cannot be modified"), "anthropics/claude-code#63265"),
    SessionFault(("expected", "redacted_thinking", "but found"), "the API's documentation of extended thinking"),
    SessionFault(("thinking.signature: field required",), "the API's check of a block's fields"),
    SessionFault(("each thinking block must contain thinking",), "the API's check of a block's fields"),
    # -- tool calls and their results
    SessionFault(("tool_use", "without", "tool_result"), "anthropics/claude-code#9346, #1894, #473"),
    SessionFault(("unexpected", "tool_use_id", "tool_result"), "2.1.30 and 2.1.332 look for it"),
    SessionFault(("tool_use", "ids must be unique"), "2.1.332 looks for it"),
    SessionFault(("each tool_use must have a single result",), "the API's check of a conversation"),
    SessionFault(("expected toolresult blocks",), "Amazon Bedrock's wording of the same"),
    SessionFault(("due to tool use concurrency issues",), "2.1.30 to 2.1.332, in place of the API's text"),
    SessionFault(("orphaned tool_result in conversation history",), "2.1.332, in place of the API's text"),
    SessionFault(("duplicate tool_use id in conversation history",), "2.1.332, in place of the API's text"),
    SessionFault(("tool_history_mismatch",), "2.1.332: api_error of a frame"),
    SessionFault(("tool reference", "not found in available tools"), "the API's check of deferred tools"),
    # -- order and content of messages
    SessionFault(("roles must alternate",), "the API's check of a conversation"),
    SessionFault(("must end with a user message",), "the API, for models that take no prefill"),
    SessionFault(("final assistant content cannot end with",), "the API's check of a conversation"),
    SessionFault(("text content blocks must",), "anthropics/claude-code#60837, #23390"),
    SessionFault(("cannot be set for empty text blocks",), "anthropics/claude-code#58987, #59294"),
    SessionFault(("messages must have non-empty content",), "the API's check of a conversation"),
    SessionFault(("surrogate in string",), "the API's JSON parser: half a character in the history"),
    # -- images and documents
    SessionFault(("image exceeds", "maximum"), "anthropics/claude-code#2104, #11181", by_image=True),
    SessionFault(("image dimensions exceed",), "anthropics/claude-code#29551, #53547", by_image=True),
    SessionFault(("could not process image",), "anthropics/claude-code#55200", by_image=True),
    SessionFault(("image was specified using",), "the API: media type and content differ", by_image=True),
    SessionFault(("image in the conversation exceeds",), "2.1.332, in place of the API's text", by_image=True),
    SessionFault(("image was too large",), "2.1.30 to 2.1.332, in place of the API's text", by_image=True),
    SessionFault(("pdf specified was not valid",), "2.1.332 looks for it", by_image=True),
    SessionFault(("pdf pages",), "the API: a maximum of 100 PDF pages", by_image=True),
)
"""The words have no quotes or backticks, because gateways drop those."""


def is_session_fault(text: bytes, *, brings_images: bool) -> bool:
    """
    Whether a report of an API error says that the session's history is at fault.

    Args:
        text: A line of the CLI's stderr, or a frame; its first 16 KiB are read.
        brings_images: The attempt's own prompt has images, so an image that is at fault need not be the history's.
    """
    lowered = text[:_HEAD_BYTES].decode("utf-8", "replace").lower()
    return any(
        all(word in lowered for word in fault.words)
        for fault in SESSION_FAULTS
        if not (fault.by_image and brings_images)
    )


def says_unreadable_session(text: str) -> bool:
    """
    Whether the CLI's *text* says that it cannot read the session to resume.

    Source: 2.1.197 and 2.1.332, in the ``errors`` of the result frame; older versions report an unknown session.
    """
    return text.startswith("Failed to resume session")


def says_unknown_session(text: str | bytes) -> bool:
    """
    Whether the CLI says that it does not know the session to resume.

    Source: in the ``errors`` of the result frame from 2.1.30 on, on stderr on the other versions tried, with exit
    code 1.
    """
    if isinstance(text, bytes):
        return b"No conversation found with session ID" in text[:256]
    return text.startswith("No conversation found with session ID")
