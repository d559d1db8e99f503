"""Wait for an execution, and say after Ctrl-C whether it still runs: URL, message, execution id."""

from __future__ import annotations

import sys

from agent_runtime.client import SyncAgentClient

url, message, execution_id = sys.argv[1:]
with SyncAgentClient(url) as agent:
    try:
        agent.run(message, execution_id=execution_id)
    except KeyboardInterrupt:
        print(agent.status(execution_id)["running"])  # noqa: T201 - what the test reads
