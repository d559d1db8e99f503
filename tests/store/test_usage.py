"""What stored executions have used, added up by subscription or by model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from agent_runtime.errors import StoreUnavailable
from agent_runtime.model.records import AttemptRecord, ExecutionRecord, TokenRecord, epoch_seconds, rfc3339
from agent_runtime.model.state import Outcome, Phase
from agent_runtime.model.usage import ModelUsage, total_of
from agent_runtime.store import records as records_module
from agent_runtime.store.records import RecordStore
from agent_runtime.store.usage import UsedBy, usage_since
from tests.store.test_records import CREATED_AT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ONE = ModelUsage(cost_usd=0.25, num_turns=1, input_tokens=10, output_tokens=5, cache_read_tokens=3)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    with RecordStore(tmp_path / "records.sqlite") as opened:
        yield opened


def used(
    execution_id: str, *, subscription: str | None = "a", model: str = "m", ended_at: float | None = CREATED_AT
) -> ExecutionRecord:
    usage = {model: ONE}
    token = TokenRecord(
        generation=1, fingerprint="f", delivered_at=1.0, subscription=subscription, usage_by_model=usage
    )
    return ExecutionRecord(
        execution_id=execution_id,
        created_at=CREATED_AT,
        state=Phase.RUNNING if ended_at is None else Phase.FINISHED,
        outcome=None if ended_at is None else Outcome.SUCCESS,
        ended_at=ended_at,
        attempts=[AttemptRecord(ended_at=ended_at, tokens=[token])],
    )


def test_it_is_added_up_by_subscription_and_by_model(store: RecordStore) -> None:
    for record in (
        used("1", subscription="a", model="m"),
        used("2", subscription="b", model="m"),
        used("3", subscription="b", model="n", ended_at=None),
        used("4", subscription=None, model="n"),
    ):
        store.save(record)

    by_subscription = usage_since(store, 0, UsedBy.SUBSCRIPTION)
    by_model = usage_since(store, 0, UsedBy.MODEL)

    assert by_subscription == {"b": ONE.plus(ONE), None: ONE, "a": ONE}
    assert by_model == {"m": ONE.plus(ONE), "n": ONE.plus(ONE)}
    assert next(iter(by_subscription)) == "b", "the highest cost first"


def test_attempts_that_ended_before_the_time_do_not_count(store: RecordStore) -> None:
    resumed = used("resumed", ended_at=CREATED_AT + 100)
    resumed.attempts.insert(0, used("x", ended_at=CREATED_AT - 100).attempts[0])
    for record in (resumed, used("old", ended_at=CREATED_AT - 1), used("at"), used("runs", ended_at=None)):
        store.save(record)

    def runs(since: float) -> int:
        return sum(usage.num_turns for usage in usage_since(store, since, UsedBy.MODEL).values())

    assert [runs(since) for since in (0, CREATED_AT, CREATED_AT + 1, CREATED_AT + 1000)] == [5, 3, 2, 1]


def test_of_many_names_those_that_cost_most_are_told(store: RecordStore) -> None:
    for number in range(100):
        record = used(str(number), subscription=f"s{number:03}")
        token = record.attempts[0].tokens[0]
        token.usage_by_model = {f"m{number}": msgspec.structs.replace(ONE, cost_usd=float(number))}
        store.save(record)

    found = usage_since(store, 0, UsedBy.SUBSCRIPTION)

    assert list(found) == [*(f"s{number:03}" for number in range(99, 35, -1)), "other"]
    assert found["other"].num_turns == 36
    assert sum(usage.cost_usd for usage in found.values()) == sum(range(100))


def test_records_that_do_not_have_it_and_those_that_cannot_be_read_count_as_nothing(store: RecordStore) -> None:
    store.save(used("fine"))
    for execution_id, change in (
        ("earlier", b'{"execution_id": "earlier", "created_at": 1.0, "attempts": [{"tokens": [{"generation": 1}]}]}'),
        ("none", b'{"execution_id": "none", "created_at": 1.0}'),
        ("torn", b'{"execution_id": "torn", "atte'),
        ("other", b'{"attempts": [{"tokens": [{"usage_by_model": {"m": {"input_tokens": "x"}}}]}]}'),
    ):
        store.save(used(execution_id))
        with store._database.transaction() as connection:
            connection.execute("UPDATE executions SET record = ? WHERE execution_id = ?", (change, execution_id))

    assert usage_since(store, 0, UsedBy.MODEL) == {"m": ONE}


def test_records_in_memory_count_once(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(used("saved"))

    def full(_store: RecordStore) -> None:
        raise StoreUnavailable("full")

    monkeypatch.setattr(records_module.RecordStore, "write_unsaved", full)
    for execution_id in ("saved", "held"):
        with pytest.raises(StoreUnavailable):
            store.save(used(execution_id))

    assert usage_since(store, 0, UsedBy.MODEL) == {"m": ONE.plus(ONE)}


def test_ten_thousand_records_take_no_longer_than_a_page_of_them_is_waited_for(store: RecordStore) -> None:
    with store._database.transaction() as connection:
        for number in range(10_000):
            record = used(str(number), subscription=f"s{number % 70}")
            encoded = msgspec.json.encode(record)
            connection.execute(
                "INSERT INTO executions (execution_id, created_at, ended_at, state, record) VALUES (?, ?, ?, ?, ?)",
                (record.execution_id, record.created_at, CREATED_AT + number, "finished", encoded),
            )
    begun = time.monotonic()
    found = usage_since(store, 0, UsedBy.SUBSCRIPTION)
    took = time.monotonic() - begun

    assert sum(usage.num_turns for usage in found.values()) == 10_000
    assert took < 5, "about 0.1 s on a machine with nothing else to do"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1790000000", 1_790_000_000.0),
        ("1790000000.5", 1_790_000_000.5),
        ("0", 0.0),
        ("2026-11-30T00:00:00Z", 1_795_996_800.0),
        ("2026-11-30t00:00:00.000z", 1_795_996_800.0),
        ("2026-11-30T02:00:00+02:00", 1_795_996_800.0),
        ("2026-11-30T02:00:00 02:00", 1_795_996_800.0),
        ("2026-11-29T19:00:00-05:00", 1_795_996_800.0),
        ("1969-01-01T00:00:00Z", 0.0),
        ("0001-01-01T00:00:00+23:59", 0.0),
        ("9999-12-31T23:59:59-23:59", 253_402_300_799.0),
        ("99999999999", 99_999_999_999.0),
        *((junk, None) for junk in ("", "now", "-5", "nan", "inf", "1e9", "179000000000000", "2026-11-30", "\uff12")),
        *((junk, None) for junk in ("2026-11-30T00:00:00", "2026-13-30T00:00:00Z", "2026-11-30T00:00:00+99:00")),
    ],
)
def test_a_time_is_rfc_3339_or_epoch_seconds(text: str, seconds: float | None) -> None:
    assert epoch_seconds(text) == seconds
    assert seconds is None or rfc3339(seconds)


def test_the_sum_of_nothing_is_nothing(store: RecordStore) -> None:
    assert usage_since(store, 0, UsedBy.MODEL) == {}
    assert not total_of({})
