"""Fill the disk below the records, then make it read-only, and hold what is read before and after."""

import os
import subprocess
import sys
from pathlib import Path

from agent_runtime.errors import StoreUnavailable
from agent_runtime.model.records import Answer, ExecutionRecord
from agent_runtime.store.records import RecordStore


def save(store, n, answer=b"{}"):
    record = ExecutionRecord(execution_id=f"id-{n:04}", created_at=float(n), state="finished")
    trouble = None
    for write in (lambda: store.save(record), lambda: store.conclude(record, Answer(200, answer))):
        try:
            write()
        except StoreUnavailable as error:
            trouble = str(error)
    return trouble


def mount(*options):
    subprocess.run(["mount", *options, disk], check=True)


disk = Path(sys.argv[1])
mount("-t", "tmpfs", "-o", "size=512k", "none")
now = 0.0
store = RecordStore(disk / "records.sqlite", clock=lambda: now)
answer = b"x" * 20_000
told = [save(store, n, answer) for n in range(60)]
assert told[0] is None and "full" in told[-1], told[-1]
records, cursor = store.list(limit=1000)
assert [r.execution_id for r in records] == [f"id-{n:04}" for n in reversed(range(60))]
first, cursor = store.list(limit=7)
second, _ = store.list(limit=7, cursor=cursor)
assert [r.execution_id for r in (*first, *second)] == [f"id-{n:04}" for n in reversed(range(46, 60))]
assert all(store.answer(f"id-{n:04}").body == answer for n in range(60))

mount("-o", "remount,size=8m")
now += 5
assert save(store, 60) is None
assert store.trouble is None
store.close()
store = RecordStore(disk / "records.sqlite", clock=lambda: now)
assert len([*store.list(limit=1000)[0]]) == 61
assert all(store.answer(f"id-{n:04}").body == answer for n in range(60))

store.close()

mount("-o", "remount,ro")
store = RecordStore(disk / "records.sqlite", clock=lambda: now)
assert save(store, 61)
assert store.load("id-0061") and store.load("id-0000"), "what is there can be read"
assert len([*store.list(limit=1000)[0]]) == 62
mount("-o", "remount,rw")
now += 5
store.upkeep()
assert store.trouble is None, "it recovers without a task"
assert save(store, 62) is None, store.trouble
assert len([*store.list(limit=1000)[0]]) == 63
store.close()


def fill():
    try:
        with (disk / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass


for options in ("remount,rw", "remount,ro"):  # a log is there: the supervisor was killed
    now += 5
    if os.fork() == 0:
        assert save(RecordStore(disk / "records.sqlite", clock=lambda: now), 70) is None
        os._exit(0)
    os.wait()
    fill()
    mount("-o", options)
    for _ in range(2):  # restarts
        fill()
        store = RecordStore(disk / "records.sqlite")
        assert store.trouble
        assert store.load("id-0070") and store.load("id-0000") and store.load("unknown") is None
        assert save(store, 71)
        for _ in range(3):
            now += 1
            assert store.load("id-0070") and store.load("id-0071")
        store.close()
    mount("-o", "remount,rw")
    (disk / "filler").unlink()
print("all held")
