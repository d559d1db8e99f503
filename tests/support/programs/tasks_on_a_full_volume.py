"""Run supervisors on a volume that fills up, below the directory of the argument; each answers, and the next heals."""

import sys
from pathlib import Path

from tests.store.test_storage import counting, runs
from tests.support.supervised import eventually, supervised
from tests.system.test_executions import OK, holding

home = Path(sys.argv[1])
filler = home / "data" / "filler"
FLAGS = ("--answer-log-limit", "65536")


def fill():
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def killed(running):
    running.process.kill()
    running.process.wait()


tasks = {name: counting(home, name) for name in ("before", "full")}
with supervised(home, expect_exit=None, flags=FLAGS) as running:
    before = running.post(tasks["before"], execution_id="before").json()
    running.post(holding(home / "never"), execution_id="cut", async_result=True)
    eventually(lambda: running.record("cut")["state"] == "running")
    fill()
    killed(running)
fill()
for _ in range(2):
    with supervised(home, expect_exit=None, flags=FLAGS) as running:
        assert running.post(tasks["before"], execution_id="before").json() == before
        assert running.get("/api/executions/before/result")["answer"] == before
        assert running.record("cut")["error_class"] == "interrupted"
        assert running.client.get("/api/executions/unknown").status_code == 404
        assert running.post(OK).json()["metadata"]["retained"] is False
        assert running.get("/health")["status"] == "degraded"
        killed(running)
    fill()
with supervised(home, expect_exit=None, flags=FLAGS) as running:
    answer = running.post(tasks["full"], execution_id="full").json()
    assert (answer["status"], answer["metadata"]["retained"]) == ("success", False), answer
    filler.unlink()
    eventually(lambda: running.get("/health")["status"] == "ok")  # without a task
    killed(running)
with supervised(home, flags=FLAGS) as running:
    assert running.post(tasks["full"], execution_id="full").json()["response"] == answer["response"]
    assert running.record("full")["outcome"] == "success"
    flood = {"script": [{"do": "init"}, {"do": "flood", "bytes": 1_500_000}, {"do": "result", "text": "Done."}]}
    for n in range(8):
        assert running.post(flood, execution_id=f"flood-{n}").json()["response"] == "Done."
    eventually(lambda: running.get("/health")["status"] == "ok")
    eventually(lambda: running.post(OK).json()["metadata"]["retained"])
    assert running.record("flood-0")["outcome"] == "success"
    assert running.post(flood, execution_id="flood-0").json()["response"] == "Done."
    assert running.post(tasks["before"], execution_id="before").json() == before
assert [runs(home, name) for name in tasks] == [1, 1]
print("held")
