"""The ledger of generations (contract, "The secret file": the counter and the refused fingerprints)."""

from __future__ import annotations

import logging
import os
import stat
from typing import TYPE_CHECKING

import pytest

from agent_runtime.generations import FILE_NAME, MAX_REFUSED, Generation, GenerationLedger
from agent_runtime.tokens import Token
from tests.secret_mount import token

if TYPE_CHECKING:
    from pathlib import Path

A, B = Token(token("a")), Token(token("b"))


def test_the_first_generation_is_one_and_a_value_that_returns_gets_a_new_number() -> None:
    ledger = GenerationLedger(None)
    assert ledger.current == 0
    assert [ledger.number_of(value) for value in (A, A, B, B, A)] == [1, 1, 2, 2, 3]
    assert ledger.current == 3


def test_the_counter_goes_on_after_a_restart(tmp_path: Path) -> None:
    ledger = GenerationLedger(tmp_path)
    ledger.number_of(A)
    ledger.number_of(B)
    assert ledger.save()

    assert GenerationLedger(tmp_path).number_of(B) == 2
    assert GenerationLedger(tmp_path).number_of(A) == 3


def test_a_refusal_is_on_disk_at_once_and_belongs_to_the_token_under_any_number(tmp_path: Path) -> None:
    ledger = GenerationLedger(tmp_path)
    ledger.refuse(Generation(ledger.number_of(A), A, loaded_at=0.0))
    ledger.number_of(B)

    restarted = GenerationLedger(tmp_path)
    assert restarted.is_refused(A)
    assert not restarted.is_refused(B)
    assert restarted.last_refused_generation == 1


def test_a_failure_of_an_old_generation_does_not_refuse_the_new_one() -> None:
    """S17."""
    ledger = GenerationLedger(None)
    old = Generation(ledger.number_of(A), A, loaded_at=0.0)
    new = Generation(ledger.number_of(B), B, loaded_at=0.0)
    ledger.refuse(old)
    assert not ledger.is_refused(new.token)


def test_a_late_failure_of_an_old_number_does_not_lower_the_last_refused_one() -> None:
    ledger = GenerationLedger(None)
    for number in (3, 1):
        ledger.refuse(Generation(number, A, loaded_at=0.0))
    assert ledger.last_refused_generation == 3


def test_an_absolved_token_is_not_refused_after_a_restart_either(tmp_path: Path) -> None:
    ledger = GenerationLedger(tmp_path)
    ledger.refuse(Generation(1, A, loaded_at=0.0))
    ledger.absolve(A)
    ledger.absolve(B)
    assert not GenerationLedger(tmp_path).is_refused(A)
    assert ledger.last_refused_generation is None


def test_the_file_holds_fingerprints_only_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    ledger = GenerationLedger(tmp_path)
    ledger.refuse(Generation(ledger.number_of(A), A, loaded_at=0.0))
    kept = tmp_path / FILE_NAME
    assert A.fingerprint in kept.read_text()
    assert A.secret not in kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE_NAME]


def test_only_so_many_refusals_are_kept_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = GenerationLedger(None)
    for number in range(MAX_REFUSED + 1):
        ledger.refuse(Generation(number, Token(token(number)), loaded_at=0.0))
    assert not ledger.is_refused(Token(token(0)))
    assert ledger.is_refused(Token(token(1)))
    assert ledger.is_refused(Token(token(MAX_REFUSED)))


def test_a_directory_that_cannot_be_written_is_warned_of_once_and_taken_up_again_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "data"
    blocked.write_text("a file where the directory should be")
    ledger = GenerationLedger(blocked)
    for value in (A, B):
        ledger.number_of(value)
        assert not ledger.save()
    ledger.refuse(Generation(2, B, loaded_at=0.0))
    assert ledger.current == 2
    assert ledger.is_refused(B)
    assert [record.levelno for record in caplog.records if "cannot write" in record.message] == [logging.WARNING]

    blocked.unlink()
    assert ledger.save()
    assert GenerationLedger(blocked).current == 2

    (blocked / FILE_NAME).unlink()
    blocked.rmdir()
    blocked.write_text("in the way again")
    ledger.absolve(B)
    assert caplog.text.count("cannot write") == 2


@pytest.mark.parametrize("raw", [b"", b"{", b'{"generation": "one"}', b"\xff\xfe"])
def test_a_damaged_file_is_warned_of_and_counting_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, raw: bytes
) -> None:
    (tmp_path / FILE_NAME).write_bytes(raw)
    assert GenerationLedger(tmp_path).number_of(A) == 1
    assert "is damaged" in caplog.text


def test_a_leftover_of_a_killed_process_is_no_obstacle(tmp_path: Path) -> None:
    ledger = GenerationLedger(tmp_path)
    ledger.number_of(A)
    ledger.save()
    (tmp_path / "generations.tmp").write_bytes(b'{"gener')

    restarted = GenerationLedger(tmp_path)
    assert restarted.number_of(B) == 2
    assert restarted.save()
    assert os.listdir(tmp_path) == [FILE_NAME]  # noqa: PTH208 names are what is compared


def test_a_generation_does_not_show_its_token() -> None:
    assert A.secret not in repr(Generation(1, A, loaded_at=0.0))
