"""How long executions are kept: by age, and by what they take on disk."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

    from agent_runtime.store.records import RecordStore
    from agent_runtime.store.transcripts import TranscriptStore

log = logging.getLogger(__name__)


def prune(
    records: RecordStore,
    transcripts: TranscriptStore,
    *,
    max_age_seconds: float,
    max_bytes: int,
    now: float,
    in_use: Container[str] = frozenset(),
) -> int:
    """
    Delete finished executions, with transcript and answer, that are too old, then the oldest until the rest fits.

    Args:
        max_bytes: What all records, answers and transcripts may take together.
        now: Seconds since the epoch.
        in_use: Ids that are left alone: executions that are going on again, whatever their record says.

    Returns:
        How many were deleted.

    Raises:
        StoreUnavailable: The disk does not give or delete records.
        OSError: It does not delete a transcript.
    """
    used = records.size_bytes() + transcripts.total_bytes()
    deleted = 0
    for execution_id, ended_at in records.finished_ids():
        if now - ended_at <= max_age_seconds and used <= max_bytes:
            break
        if execution_id in in_use:
            continue
        used -= records.size_bytes(execution_id) + transcripts.size_bytes(execution_id)
        # The record last: what is cut short here is found again.
        transcripts.delete(execution_id)
        records.delete(execution_id)
        deleted += 1
    if deleted:
        records.give_back_space()
        log.info("executions deleted for age or space: count=%d", deleted)
    return deleted
