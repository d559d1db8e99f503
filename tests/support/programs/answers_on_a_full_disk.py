"""Run a supervisor whose data directory fills up, below the directory of the argument; it answers all the same."""

import sys
from pathlib import Path

from tests.support.supervised import supervised
from tests.system.test_executions import OK

home = Path(sys.argv[1])
with supervised(home) as running:
    before = running.post(OK, execution_id="before").json()
    filler = home / "data" / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    long = {"script": [{"do": "init"}, {"do": "flood", "bytes": 200_000}, {"do": "result", "text": "Done."}]}
    full = running.post(long, execution_id="full")
    answer = full.json()
    assert (full.status_code, answer["response"]) == (200, "Done."), answer
    assert answer["metadata"]["retained"] is False, answer["metadata"]
    metrics = running.client.get("/metrics").text
    assert "agent_runtime_store_available 0.0" in metrics
    assert "agent_runtime_records_unwritten_total 0.0" not in metrics
    assert "agent_runtime_transcript_lines_unwritten_total 0.0" not in metrics
    assert answer["truncated_log"] is True
    assert running.get("/health")["disk"]["error"], running.get("/health")
    assert running.get("/api/executions/before/result")["answer"] == before
    assert running.record("full")["outcome"] == "success"
    filler.unlink()
    assert running.post(OK, execution_id="after").json()["metadata"]["retained"] is True
print("held")
