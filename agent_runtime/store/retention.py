"""Which executions are deleted: by age, by disk usage, and by free space."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from agent_runtime.store.records import RecordStore
from agent_runtime.store.transcripts import TranscriptStore, name_of

log = logging.getLogger(__name__)

RESERVE_BYTES = 128 << 20
RESERVE_SHARE = 20
"""``RESERVE_BYTES`` of the volume stay free; of a small volume only the ``RESERVE_SHARE``-th part."""

SPARED_SECONDS = 15 * 60
"""How long after its end an answer stays, however little space is free: its caller may ask again."""


def lacking_bytes(transcripts: TranscriptStore) -> int:
    """Return how many bytes must be freed to have the reserve; 0 if none, or if the free space cannot be read."""
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
    release: Callable[[str], bool] | None = None,
) -> int:
    """
    Delete finished executions with transcript and answer: those too old, then the oldest until the rest fits.

    When free space is low, the lines of the oldest transcripts are deleted first, as many as needed; records and
    answers stay. Whole executions are deleted for space only when no lines are left.

    Args:
        max_bytes: Upper bound of all records, answers and transcripts together.
        now: Seconds since the epoch.
        in_use: Ids of executions that run again and must stay, whatever their record says.
        release: Called with the id of an execution before its deletion, to retire its directory in the workspace. False
            means that another execution uses that directory: the execution is not deleted.

    Returns:
        How many executions were deleted.

    Raises:
        StoreUnavailable: Records cannot be read or deleted.
        OSError: A transcript cannot be deleted.
    """
    _make_room(transcripts, {name_of(execution_id) for execution_id in in_use})
    used = records.size_bytes() + transcripts.total_bytes()
    lacking = lacking_bytes(transcripts)
    deleted = 0
    for execution_id, ended_at in records.finished_ids():
        is_wanted = now - ended_at <= max_age_seconds and used <= max_bytes
        if is_wanted and (lacking <= 0 or now - ended_at <= SPARED_SECONDS):
            break
        if execution_id in in_use or not (release is None or release(execution_id)):
            continue
        size_bytes = records.size_bytes(execution_id) + transcripts.size_bytes(execution_id)
        used, lacking = used - size_bytes, lacking - size_bytes
        # The record goes last: after a crash here the execution is found again.
        transcripts.delete(execution_id)
        records.delete(execution_id)
        deleted += 1
    if deleted:
        records.shrink()
        log.info("executions deleted for age or space: count=%d", deleted)
    for name, written_at in without_record(records, transcripts, in_use).items():
        if now - written_at > max_age_seconds:
            transcripts.delete_named(name)
    return deleted


def without_record(
    records: RecordStore, transcripts: TranscriptStore, in_use: Collection[str] = frozenset()
) -> dict[str, float]:
    """Return the names of transcripts without a record and the time of their last write, oldest first."""
    found = transcripts.oldest_first()  # read before the records, else a new transcript would be found
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
