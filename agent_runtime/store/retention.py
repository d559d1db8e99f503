"""How long executions are kept: by age, by what they take on disk, and by what is free there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from agent_runtime.store.transcripts import name_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from agent_runtime.store.records import RecordStore
    from agent_runtime.store.transcripts import TranscriptStore

log = logging.getLogger(__name__)

RESERVE_BYTES = 128 << 20
RESERVE_SHARE = 20
"""What is kept free: so much, or on a small volume the share 1/20."""

SPARED_SECONDS = 15 * 60
"""For how long after its end the answer of an execution is kept, however little is free: its caller may ask again."""


def lacking_bytes(transcripts: TranscriptStore) -> int:
    """Return how much more should be free; 0: enough is, or it cannot be seen."""
    if (disk := transcripts.free_bytes()) is None:
        return 0
    free, total = disk
    return max(0, min(RESERVE_BYTES, total // RESERVE_SHARE) - free)


def prune(
    records: RecordStore,
    transcripts: TranscriptStore,
    *,
    max_age_seconds: float,
    max_bytes: int,
    now: float,
    in_use: Collection[str] = frozenset(),
) -> int:
    """
    Delete finished executions, with transcript and answer, that are too old, then the oldest until the rest fits.

    Where little is free on the volume, the lines of the oldest transcripts go before that, as many as it takes: that
    needs no record, and the answers stay. Only where there are none left, whole executions go.

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
    _make_room(transcripts, {name_of(execution_id) for execution_id in in_use})
    used = records.size_bytes() + transcripts.total_bytes()
    lacking = lacking_bytes(transcripts)
    deleted = 0
    for execution_id, ended_at in records.finished_ids():
        is_wanted = now - ended_at <= max_age_seconds and used <= max_bytes
        if is_wanted and (lacking <= 0 or now - ended_at <= SPARED_SECONDS):
            break
        if execution_id in in_use:
            continue
        size_bytes = records.size_bytes(execution_id) + transcripts.size_bytes(execution_id)
        used, lacking = used - size_bytes, lacking - size_bytes
        # The record last: what is cut short here is found again.
        transcripts.delete(execution_id)
        records.delete(execution_id)
        deleted += 1
    if deleted:
        records.give_back_space()
        log.info("executions deleted for age or space: count=%d", deleted)
    for name, written_at in without_record(records, transcripts, in_use).items():
        if now - written_at > max_age_seconds:
            transcripts.delete_named(name)
    return deleted


def without_record(
    records: RecordStore, transcripts: TranscriptStore, in_use: Collection[str] = frozenset()
) -> dict[str, float]:
    """Return the names of transcripts whose record is lost, and when they were written last, the oldest first."""
    found = transcripts.oldest_first()  # before the records, or one that is just being made would be among them
    known = {name_of(execution_id) for execution_id in (*records.ids(), *in_use)}
    return {name: written_at for name, written_at in found.items() if name not in known}


def _make_room(transcripts: TranscriptStore, names_in_use: set[str]) -> None:
    count = 0
    for name in transcripts.oldest_first() if lacking_bytes(transcripts) else ():
        if not lacking_bytes(transcripts):
            break
        if name not in names_in_use:
            count += transcripts.delete_lines(name)
    if count:
        log.warning("little is free: the lines of the oldest transcripts were deleted, count=%d", count)
