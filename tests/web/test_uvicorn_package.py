"""A supervisor imports uvicorn without its command line, and whoever needs that can still import it."""

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
    ],
)
def test_the_command_line_of_uvicorn_is_left_out(then: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", f"{SERVICE}; {then}"], check=True)
