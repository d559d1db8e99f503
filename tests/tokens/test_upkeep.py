"""What follows a change of the secret file: events, counts, and that everybody looks at the token again."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.secret.file import SecretFile
from agent_runtime.secret.generations import GenerationLedger
from agent_runtime.secret.writer import put
from agent_runtime.settings import load
from agent_runtime.telemetry.counters import Counts
from agent_runtime.telemetry.events import EventLog
from agent_runtime.tokens.gate import TokenGate
from agent_runtime.tokens.status import TokenStatuses
from agent_runtime.tokens.upkeep import TokenUpkeep
from agent_runtime.tokens.verifier import RefusalVerifier

if TYPE_CHECKING:
    from pathlib import Path

A = "sk-ant-oat01-token-a-of-these-tests-0000000000000000"
B = "sk-ant-oat01-token-b-of-these-tests-0000000000000000"


class Upkeep:
    """The upkeep of a real file's token, and what it called."""

    def __init__(self, directory: Path) -> None:
        ledger, self.events, self.calls = GenerationLedger(None), EventLog(), list[str]()
        self.path = directory / "token"
        self.secret = SecretFile(self.path, ledger=ledger, withdraw_after_seconds=60)
        statuses = TokenStatuses(ledger)
        self.upkeep = TokenUpkeep(
            load({"AGENT_RUNTIME_PROBE": "off"}),
            TokenGate(self.secret, statuses, self.events, probes=False),
            RefusalVerifier(statuses, None, self.events),
            Counts(),
            self.events,
            grant_slots=lambda: self.calls.append("grant"),
            follow_secret=lambda: self.calls.append("follow"),
            spawn=lambda _work, name: self.calls.append(name),
        )

    def write(self, token: str, **fields: object) -> None:
        put(self.path, json.dumps({"token": token, **fields}).encode())
        self.upkeep.secret_changed(self.secret.poll())

    @property
    def published(self) -> list[tuple[str, dict[str, Any]]]:
        return [(event.type, event.data) for event in self.events.after(0)[0]]

    @property
    def types(self) -> list[str]:
        return [kind for kind, _ in self.published]


@pytest.fixture
def at(tmp_path: Path) -> Upkeep:
    return Upkeep(tmp_path)


def test_a_generation_is_published_once_and_followed_once(at: Upkeep) -> None:
    at.write(A, subscription="first")
    at.upkeep.secret_changed(at.secret.poll())
    at.write(B)

    assert at.types == ["token.loaded", "token.loaded"]
    assert [(data["generation"], data["subscription"]) for _, data in at.published] == [(1, "first"), (2, None)]
    assert at.calls == ["follow", "grant", "grant", "follow", "grant"]


def test_a_file_that_is_missing_is_published_once(at: Upkeep) -> None:
    at.upkeep.secret_changed(at.secret.poll())
    at.upkeep.secret_changed(at.secret.poll())

    assert at.published == [("token.invalid", {"state": "missing", "error": "the secret file is missing"})]


def test_a_content_that_is_not_used_is_published_and_the_token_in_use_is_not_announced_again(at: Upkeep) -> None:
    at.write(A)
    at.path.write_bytes(b'{"token": "two words"}')
    at.secret.settle()
    at.upkeep.secret_changed(at.secret.poll())

    assert at.types == ["token.loaded", "token.invalid"]
    assert at.published[1][1]["state"] == "ready"


def test_a_token_that_expires_soon_is_announced_once(at: Upkeep) -> None:
    at.write(A, expires_at=time.time() + 3600)
    at.upkeep.each_second()
    assert at.types == ["token.loaded"]

    at.write(B, expires_at=time.time() + 60)
    at.upkeep.each_second()

    assert at.types == ["token.loaded", "token.loaded", "token.expires_soon"]
