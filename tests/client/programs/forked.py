"""Use a client that nobody closes, from the process that made it and from a child that it forks: URL."""

from __future__ import annotations

import os
import sys

from agent_runtime.client import ClientError, SyncAgentClient

agent = SyncAgentClient(sys.argv[1])
print(agent.token()["state"], flush=True)  # noqa: T201 - what the test reads
if os.fork() == 0:
    try:
        agent.token()
    except ClientError as error:
        print(error.error_class, flush=True)  # noqa: T201 - as above
else:
    os.wait()
    print(agent.token()["state"])  # noqa: T201 - as above
