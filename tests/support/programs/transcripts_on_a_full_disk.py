"""Fill the disk below a transcript, then make it read-only, and hold what is read before and after."""

import subprocess
import sys
from pathlib import Path

from agent_runtime.store.transcripts import TranscriptStore, TranscriptWriter
from tests.support.transcript_lines import append

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], check=True)
now = 0.0
store = TranscriptStore(disk / "transcripts")
paths = disk / "transcripts/x.jsonl", disk / "transcripts/x.idx"
writer = TranscriptWriter(*paths, clock=lambda: now)
line = b"x" * 999
for _ in range(400):
    append(writer, line)
assert writer.incomplete and writer._retry_at is not None and writer.last_line == 400, writer
kept = writer.read(0, limit_lines=1000)
assert 200 < len(kept) == 400 - writer.missing_lines, len(kept)
assert [number for number, _ in kept] == list(range(1, len(kept) + 1))
assert all(data == line for _, data in kept)
assert writer.answer_log(1 << 20)[1]

subprocess.run(["mount", "-o", "remount,size=512k", disk], check=True)
now += 5
append(writer, b"room again")
assert writer._retry_at is None and writer.read(len(kept)) == [(401, b"room again")], writer.read(len(kept))
writer.close()

subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
now += 5
assert append(writer, b"read-only") == 402
assert writer._retry_at is not None
assert append(store.writer("x"), b"and for one that is opened now") == 402
assert append(store.writer("new"), b"one") == 1
assert writer.read(400) == [(401, b"room again")]
subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
now += 5
assert append(writer, b"writable") == 403
writer.close()
assert writer.read(400) == [(401, b"room again"), (403, b"writable")]
print("all held")
