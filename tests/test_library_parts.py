"""A supervisor imports two libraries without a part of each, and whoever needs that part can still import it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVICE = "import agent_runtime.serve.service, sys, uvicorn, uvicorn.server"


@pytest.mark.parametrize(
    "then",
    [
        "assert not {'click', 'uvicorn.main', 'uvicorn.supervisors'} & sys.modules.keys()",
        "assert uvicorn.Server is uvicorn.server.Server",
        "import uvicorn.main; assert callable(uvicorn.main.run)",
        "assert not {'prometheus_client.exposition', 'urllib.request', 'wsgiref'} & sys.modules.keys()",
        "import prometheus_client.exposition as it; assert callable(it.generate_latest)",
    ],
)
def test_a_part_that_is_not_needed_is_left_out(then: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", f"{SERVICE}; {then}"], check=True)


def test_a_part_that_is_imported_already_is_not_taken_away() -> None:
    first = "import uvicorn.main as before; from agent_runtime.web import uvicorn_package; import uvicorn.main as after"

    subprocess.run([sys.executable, "-W", "error", "-c", f"{first}; assert after is before"], check=True)
