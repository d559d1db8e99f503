"""What the real CLI used, by its own frames, against what the stand-in handed out, to the token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.standins.messages_api import Hang, MessagesApi, Text, Tool
from tests.support.supervised import NEW, OLD, Supervised, eventually, supervised

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.real_cli, pytest.mark.slow, pytest.mark.timeout(300)]

NAMES = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_creation_tokens": "cache_creation_input_tokens",
    "cache_read_tokens": "cache_read_input_tokens",
}


def of(*counts: int) -> dict[str, object]:
    return dict(zip(NAMES.values(), counts, strict=False))


class Ledger:
    """What the stand-in has handed out since the last look."""

    def __init__(self, api: MessagesApi) -> None:
        self._api = api
        self._seen = 0

    def handed_out(self, *, asides: bool) -> dict[str, dict[str, int]]:
        """Add up by model; *asides*: with the requests beside a conversation, that only old versions make."""
        found: dict[str, dict[str, int]] = {}
        for request in self._api.requests[self._seen :]:
            if request.usage and (asides or not request.aside):
                counts = found.setdefault(request.model or "", dict.fromkeys(NAMES, 0))
                for name, api_name in NAMES.items():
                    counts[name] += request.usage[api_name]
        return found

    def check(
        self, metadata: dict[str, Any], counted_before: dict[str, Any] | None = None, *, is_cut: bool = False
    ) -> None:
        """
        Hold a record's metadata, which was that before, against what was handed out since.

        Args:
            is_cut: The CLI was ended at a moment of its own: it may not have told of what it just got.
        """
        told = metadata["usage_by_model"]
        before = {} if counted_before is None else counted_before["usage_by_model"]
        at_least, at_most = {} if is_cut else self.handed_out(asides=False), self.handed_out(asides=True)
        self._seen = len(self._api.requests)
        for model in {*told, *at_most}:
            for name in NAMES:
                count, low, high = (
                    one.get(model, {}).get(name, 0) - earlier
                    for one, earlier in ((told, before.get(model, {}).get(name, 0)), (at_least, 0), (at_most, 0))
                )
                assert low <= count <= high, (model, name, told, at_most)
        for name in (*NAMES, "cost_usd", "num_turns"):
            assert metadata[name] == pytest.approx(sum(used[name] for used in told.values()))


def test_every_end_of_an_execution(tmp_path: Path, api: MessagesApi, url: str, claude: str) -> None:
    ledger = Ledger(api)
    four = (Tool(text="So.", usage=of(10, 20, 3, 1)), Tool(usage=of(11, 21, 0, 7)), Tool(), Text(usage=of(13, 23)))
    api.script("four", *four)
    api.script("sub", Tool(), Text(text="found", usage=of(101, 201)))
    asks = {"description": "look", "prompt": "[[script:sub]] Look.", "subagent_type": "general-purpose"}
    agent = Tool(name="Task", input={**asks, "model": "haiku"}, usage=of(11, 21))
    api.script("agent", Tool(usage=of(10, 20)), agent, Text(usage=of(13, 23)))
    api.script("retried", Tool(), "overloaded", Text(usage=of(13, 23, 5, 6)))
    api.script("hangs", Tool(usage=of(10, 20)), Hang(of=Text(text="a b", usage=of(50, 1)), after_events=3))
    api.script("killed", Tool(usage=of(10, 20)), Tool(command="kill -9 $PPID", usage=of(5, 6)), Text(usage=of(7, 8)))
    flags = ("--token-delivery", "env", "--slots", "1")
    with supervised(tmp_path, api_url=url, claude=claude, flags=flags) as running:

        def metadata_of(message: str, **fields: Any) -> dict[str, Any]:
            answer: dict[str, Any] = running.post(message, **fields).json()
            found: dict[str, Any] = answer["metadata"]
            return found

        one = metadata_of("Say hello.")
        ledger.check(one)
        assert (one["context_tokens"], one["num_turns"], one["estimated"]) == (10, 1, False)

        turns = metadata_of("[[script:four]] Do it.", execution_id="four")
        ledger.check(turns)
        assert (turns["context_tokens"], turns["estimated"]) == (13, False)
        assert turns["num_turns"] in (4, 8), "1.0.128 also counts the results of tools"

        session = running.record("four")["session_id"]
        resumed = metadata_of("[[script:four]] Again.", resume_session_id=session)
        ledger.check(resumed)
        assert not resumed["estimated"]
        assert resumed["cost_usd"] == pytest.approx(turns["cost_usd"], rel=0.02), "not the session's"

        ledger.check(metadata_of("[[script:agent]] Ask.", execution_id="agent"))
        ledger.check(metadata_of("[[script:retried]] Try."))
        limited = metadata_of("[[script:four]] Stop.", max_turns=2)
        ledger.check(limited)
        assert not limited["estimated"]

        pending = running.start("[[script:hangs]] Wait.", execution_id="hangs")
        executions = "/api/executions/running"
        eventually(lambda: [one["metadata"]["input_tokens"] for one in running.get(executions)["executions"]] == [60])
        running.client.post("/api/executions/hangs/terminate")
        ledger.check(pending.answer().json()["metadata"])
        ledger.check(metadata_of("[[script:hangs]] Wait.", timeout_seconds=3), is_cut=True)

        killed = metadata_of("[[script:killed]] End.", execution_id="killed")
        ledger.check(killed)
        assert (killed["estimated"], killed["cost_usd"]) == (True, 0)
        api.script("killed", Tool(usage=of(10, 20)), Text(usage=of(1, 2)))
        again = metadata_of("[[script:killed]] End.", execution_id="killed")
        ledger.check(again, killed)
        assert again["estimated"], "of the record's attempts one was"

        report = running.get("/api/usage?by=model")
        records = running.get("/api/executions")["executions"]
        for name in NAMES:
            assert report["total"][name] == sum(record["metadata"][name] for record in records)


def switched(running: Supervised, api: MessagesApi, home: Path, token: str, gone: str, *, parks: bool) -> None:
    """Write a new token while a tool waits; *gone*: the one that is refused from now on."""
    eventually((home / f"began-{gone[-1]}").exists)
    api.on(gone, "expired")
    if parks:
        (home / f"go-{gone[-1]}").touch()
        eventually(lambda: running.record("work")["state"] == "parked")
    running.write_token(token)
    if not parks:
        eventually(lambda: len(running.record("work")["attempts"][0]["tokens"]) > 1)
        (home / f"go-{gone[-1]}").touch()


@pytest.mark.newest_cli
@pytest.mark.parametrize("delivery", ["env", "file"])
def test_a_switch(tmp_path: Path, api: MessagesApi, url: str, claude: str, delivery: str) -> None:
    if delivery == "file" and any(f"/{version}/" in claude for version in ("1.0.128", "2.0.76", "2.1.30")):
        pytest.skip("it does not read its file again, or only after a refusal")
    third = f"{OLD}-3"
    api.accept(third)

    def waits(token: str, usage: dict[str, object]) -> Tool:
        wait = f"for i in $(seq 600); do test -e {tmp_path}/go-{token[-1]} && exit 0; sleep 0.05; done"
        return Tool(command=f"touch {tmp_path}/began-{token[-1]}; {wait}", usage=usage)

    ledger = Ledger(api)
    api.script("work", waits(OLD, of(10, 20)), waits(NEW, of(50, 60, 7)), Text(usage=of(13, 23)))
    with supervised(tmp_path, api_url=url, claude=claude, flags=("--token-delivery", delivery)) as running:
        pending = running.start("[[script:work]] Do it.", execution_id="work", park_seconds=60)
        switched(running, api, tmp_path, NEW, OLD, parks=delivery == "env")
        switched(running, api, tmp_path, third, NEW, parks=delivery == "env")
        metadata = pending.answer().json()["metadata"]
        record = running.record("work")

    ledger.check(metadata)
    assert metadata["attempts"] == (3 if delivery == "env" else 1)
    tokens = [token for attempt in record["attempts"] for token in attempt["tokens"]]
    assert [token["generation"] for token in tokens] == [1, 2, 3]
    used = [sum(one["output_tokens"] for one in token["usage_by_model"].values()) for token in tokens]
    assert sum(used) == metadata["output_tokens"]
    assert all(used)
