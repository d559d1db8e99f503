"""Write lines to a transcript, as an attempt does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_runtime.store.transcripts import TranscriptWriter


def append(writer: TranscriptWriter, *lines: bytes) -> int:
    """Append lines, given without their newlines; return the number of the last one."""
    return writer.append(b"".join(line + b"\n" for line in lines), [len(line) + 1 for line in lines])
