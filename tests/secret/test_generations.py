"""The ledger of generations (contract, "The secret file": the counter and the refused fingerprints)."""

from __future__ import annotations

import json
import logging
import stat
from typing import TYPE_CHECKING

import pytest

from agent_runtime.model.state import TokenTrouble
from agent_runtime.model.tokens import Token
from agent_runtime.secret.generations import FILE_NAME, MAX_REFUSED, Generation, GenerationLedger
from tests.support.secret_mount import token

if TYPE_CHECKING:
    from pathlib import Path

A, B = Token(token("a")), Token(token("b"))
REFUSED, BLOCKED, BILLING = TokenTrouble.REFUSED, TokenTrouble.BLOCKED, TokenTrouble.BILLING


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
    ledger.mark(Generation(ledger.number_of(A), A, loaded_at=0.0), REFUSED)
    ledger.number_of(B)

    restarted = GenerationLedger(tmp_path)
    assert restarted.trouble_of(A) is REFUSED
    assert restarted.trouble_of(B) is None
    assert restarted.last_refused_generation == 1


def test_a_failure_of_an_old_generation_does_not_refuse_the_new_one() -> None:
    """S17."""
    ledger = GenerationLedger(None)
    old = Generation(ledger.number_of(A), A, loaded_at=0.0)
    new = Generation(ledger.number_of(B), B, loaded_at=0.0)
    ledger.mark(old, REFUSED)
    assert ledger.trouble_of(new.token) is None


def test_a_late_failure_of_an_old_number_does_not_lower_the_last_refused_one() -> None:
    ledger = GenerationLedger(None)
    for number in (3, 1):
        ledger.mark(Generation(number, A, loaded_at=0.0), REFUSED)
    assert ledger.last_refused_generation == 3


def test_an_absolved_token_is_not_refused_after_a_restart_either(tmp_path: Path) -> None:
    ledger = GenerationLedger(tmp_path)
    ledger.mark(Generation(1, A, loaded_at=0.0), REFUSED)
    ledger.clear(A)
    ledger.clear(B)
    assert GenerationLedger(tmp_path).trouble_of(A) is None
    assert ledger.last_refused_generation is None


@pytest.mark.parametrize("trouble", [BLOCKED, BILLING])
def test_a_block_and_an_unpaid_account_outlive_the_process_and_are_no_refusal(
    tmp_path: Path, trouble: TokenTrouble
) -> None:
    GenerationLedger(tmp_path).mark(Generation(1, A, loaded_at=0.0), trouble)
    restarted = GenerationLedger(tmp_path)

    assert (restarted.trouble_of(A), restarted.last_refused_generation) == (trouble, None)

    restarted.mark(Generation(2, A, loaded_at=0.0), REFUSED)
    assert GenerationLedger(tmp_path).trouble_of(A) is REFUSED, "what was found last"
    assert GenerationLedger(tmp_path).last_refused_generation == 2

    restarted.mark(Generation(2, A, loaded_at=0.0), trouble)
    restarted.clear(A)
    assert GenerationLedger(tmp_path).trouble_of(A) is None
    restarted.mark(Generation(3, A, loaded_at=0.0), REFUSED)
    assert GenerationLedger(tmp_path).trouble_of(A) is REFUSED, "nothing is left of the earlier trouble"


def test_a_file_of_an_earlier_version_is_read_and_one_of_this_version_is_safe_for_it(tmp_path: Path) -> None:
    """0.1.0 knew generation, fingerprint and refused; a token it must not use has to be among the refused."""
    kept = tmp_path / FILE_NAME
    kept.write_text(json.dumps({"generation": 7, "fingerprint": A.fingerprint, "refused": {B.fingerprint: 5}}))
    ledger = GenerationLedger(tmp_path)
    assert (ledger.current, ledger.trouble_of(B), ledger.last_refused_generation) == (7, REFUSED, 5)

    ledger.mark(Generation(7, A, loaded_at=0.0), BILLING)

    assert json.loads(kept.read_text())["refused"] == {B.fingerprint: 5, A.fingerprint: 7}


def test_a_trouble_that_only_a_later_version_knows_counts_as_refused(tmp_path: Path) -> None:
    raw = {"generation": 1, "refused": {A.fingerprint: 1}, "trouble": {A.fingerprint: "sanctioned"}}
    (tmp_path / FILE_NAME).write_text(json.dumps(raw))

    assert GenerationLedger(tmp_path).trouble_of(A) is REFUSED


def test_the_file_holds_fingerprints_only_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    ledger = GenerationLedger(tmp_path)
    ledger.mark(Generation(ledger.number_of(A), A, loaded_at=0.0), REFUSED)
    kept = tmp_path / FILE_NAME
    assert A.fingerprint in kept.read_text()
    assert A.secret not in kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE_NAME]


def test_only_so_many_troubles_are_kept_and_the_oldest_goes_first() -> None:
    ledger = GenerationLedger(None)
    for number in range(MAX_REFUSED + 1):
        ledger.mark(Generation(number, Token(token(number)), loaded_at=0.0), REFUSED if number else BLOCKED)
    assert ledger.trouble_of(Token(token(0))) is None
    assert ledger.trouble_of(Token(token(1))) is REFUSED
    assert ledger.trouble_of(Token(token(MAX_REFUSED))) is REFUSED


def test_a_directory_that_cannot_be_written_is_warned_of_once_and_taken_up_again_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "data"
    blocked.write_text("a file where the directory should be")
    ledger = GenerationLedger(blocked)
    for value in (A, B):
        ledger.number_of(value)
        assert not ledger.save()
    ledger.mark(Generation(2, B, loaded_at=0.0), REFUSED)
    assert ledger.current == 2
    assert ledger.trouble_of(B) is REFUSED
    assert [record.levelno for record in caplog.records if "cannot write" in record.message] == [logging.WARNING]

    blocked.unlink()
    assert ledger.save()
    assert GenerationLedger(blocked).current == 2

    (blocked / FILE_NAME).unlink()
    blocked.rmdir()
    blocked.write_text("in the way again")
    ledger.clear(B)
    assert caplog.text.count("cannot write") == 2


@pytest.mark.parametrize("raw", [b"", b"{", b'{"generation": "one"}', b"\xff\xfe"])
def test_a_damaged_file_is_warned_of_and_counting_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, raw: bytes
) -> None:
    (tmp_path / FILE_NAME).write_bytes(raw)
    assert GenerationLedger(tmp_path).number_of(A) == 1
    assert "is damaged" in caplog.text


def test_a_generation_does_not_show_its_token() -> None:
    assert A.secret not in repr(Generation(1, A, loaded_at=0.0))
