"""The soak itself: half a minute of it holds, and each of its invariants can fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agent_runtime.standins.messages_api import MessagesApi
from tests.soak.journal import Invariant, Journal, Tokens
from tests.support.supervised import eventually

SOAK = Path(__file__).parents[2] / "scripts/soak"


def start(*arguments: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHON": sys.executable}
    return subprocess.Popen([str(SOAK), *arguments], env=environ, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_half_a_minute_of_a_soak_violates_nothing() -> None:
    with start("30", "--seed", "18", "--livez", "60") as soak:
        table, _ = soak.communicate(timeout=890)
    sys.stdout.write(table)

    assert soak.returncode == 0, table
    assert all(f"{invariant.value:<66}{0:>8}" in table for invariant in Invariant)


@pytest.mark.slow
def test_a_soak_that_is_interrupted_leaves_nothing() -> None:
    with start("60") as soak:
        family = eventually(lambda: len(found := psutil.Process(soak.pid).children(recursive=True)) > 3 and found)
        soak.send_signal(signal.SIGINT)
        assert soak.wait(60) == 130

    eventually(lambda: not any(process.is_running() for process in family))


def test_a_token_in_a_sink_is_found_and_not_repeated() -> None:
    journal = Journal()
    token = Tokens(journal, MessagesApi()).fresh()

    journal.see("log", b"the token is [token:0123456789ab]")
    assert journal
    journal.see("log", f"the token is {token}".encode())
    assert not journal
    assert f"{Invariant.TOKENS.value:<66}{1:>8}" in journal.table()
    assert token not in journal.table()
    assert journal.nonce not in journal.table()


def test_a_soak_that_did_too_little_is_told() -> None:
    journal = Journal()
    journal.did("kill -9 of a CLI", 3)

    assert journal.missing({"kill -9 of a CLI": 40, "restart by SIGTERM": 1}, seconds=60) == [
        "kill -9 of a CLI: 3 of 4",
        "restart by SIGTERM: 0 of 1",
    ]
