"""No error text but those of auth, billing and rate_limit holds a word that makes a backend switch the token."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.claude.run_answer import Result
from agent_runtime.errors import RESERVED_WORDS, ErrorClass, is_reserved, plain_detail
from agent_runtime.evidence.verdict import Ending, limit_sentence, verdict
from agent_runtime.model.problem import problem
from tests.support.supervised import OLD, Supervised, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

OF_A_BACKEND = (
    *("credit balance", "unauthorized", "authentication", "credentials", "forbidden", "401", "403", "oauth"),
    *("token expired", "not authenticated"),
)
"""Abilityai/trinity, src/backend/services/failure_classifier.py, 2026: looked for in the lowered text."""

OTHER_CLASSES = sorted(error_class for error_class in ErrorClass if not error_class.cured_by_token)

FOREIGN = [
    "API Error: 401 {}",
    "API Error: 403 Forbidden",
    "OAuth token has expired. Please obtain a new token",
    "Your CREDIT BALANCE is too low",
    "connect ECONNREFUSED 127.0.0.1:14019",
    "request id req_011CS403kq",
    "EACCES: permission denied, open '/home/me/.claude/.credentials.json'",
    "MCP server forbidden-city: Not Authenticated",
    "UnAuthorized",
    "to\N{KELVIN SIGN}en expired",
    "\N{LATIN CAPITAL LETTER O WITH DIAERESIS}auth \N{LATIN SMALL LETTER LONG S}",
    "4\u200b01 but also 401",
    "token\u00a0expired, token expired",
    "4290 files changed in 40312 ms",
]
INIT: dict[str, Any] = {"do": "init"}


def switches(text: str) -> bool:
    return any(word in text.lower() for word in OF_A_BACKEND)


def test_every_word_of_a_backend_is_reserved() -> None:
    assert [word for word in OF_A_BACKEND if not any(reserved in word for reserved in RESERVED_WORDS)] == []


@pytest.mark.parametrize("error_class", OTHER_CLASSES)
def test_no_sentence_of_ours_has_one(error_class: ErrorClass) -> None:
    assert not switches(error_class.sentence)


@pytest.mark.parametrize("error_class", OTHER_CLASSES)
def test_a_text_of_another_program_loses_them(error_class: ErrorClass) -> None:
    in_a_sentence = [f"cannot start the CLI: {foreign}" for foreign in FOREIGN]
    for text in (*FOREIGN, *in_a_sentence, *(f"{foreign}\n{foreign.upper()}" for foreign in FOREIGN)):
        shown = plain_detail(error_class, text)

        assert not is_reserved(shown)
        assert not switches(shown)
        assert shown
        assert problem(error_class, text).detail == shown, text


def test_what_is_no_reserved_word_stays() -> None:
    assert plain_detail(ErrorClass.ERROR, "no space left on device") == "no space left on device"
    assert plain_detail(ErrorClass.NO_TOKEN, "holds CLAUDE_CODE_OAUTH_TOKEN=") == "holds CLAUDE_CODE_…_TOKEN="
    assert plain_detail(ErrorClass.AUTH, "the API refused the token (401)") == "the API refused the token (401)"


def noise(rng: random.Random) -> str:
    """Make a text with such words in it, in any case, whole or torn."""
    pieces = [rng.choice([*OF_A_BACKEND, *RESERVED_WORDS, " ", ": ", "x", "4", "1", "0", "3", "\n", "é", "İ"])]
    pieces += rng.choices([*OF_A_BACKEND, *RESERVED_WORDS, " ", "-", "4", "01", "o", "auth", "…"], k=rng.randint(0, 9))
    return "".join(rng.choice([piece, piece.upper(), piece.title()]) for piece in pieces)


def test_no_verdict_and_no_problem_has_one_whatever_was_said() -> None:
    rng = random.Random(12)
    others = OTHER_CLASSES
    for _ in range(5_000):
        text = noise(rng)
        said = Result(is_error=True, subtype=rng.choice([None, "error_during_execution"]), text=text)
        ending = Ending(exit_code=1, result=rng.choice([None, said]), last_words=text, oom=rng.random() < 0.2)
        for detail in (verdict(ending).detail, problem(rng.choice(others), text).detail):
            assert isinstance(detail, str)
            assert not switches(detail), text


# -- over HTTP


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("words")) as running:
        yield running


def plainly(response: httpx.Response, *error_classes: str) -> str:
    problem = response.json()
    assert response.status_code not in (429, 503), problem
    assert not error_classes or problem["error_class"] in error_classes, problem
    assert not switches(problem["detail"]), problem
    return str(problem["detail"])


def test_what_the_cli_says_last_is_told_where_it_is_plain(shared: Supervised) -> None:
    steps = [INIT, {"do": "write", "stream": "stderr", "text": "Error: no room here"}, {"do": "exit", "code": 1}]

    assert plainly(shared.post({"script": steps}), "lost_result").endswith("exit code 1: Error: no room here")


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_the_cli_says_last_makes_no_backend_switch(shared: Supervised, foreign: str) -> None:
    first_line = foreign.partition("\n")[0]
    for steps in (
        [INIT, {"do": "write", "stream": "stderr", "text": f"Error: {first_line}"}, {"do": "exit", "code": 1}],
        [{"do": "write", "stream": "stderr", "text": first_line}, {"do": "exit", "code": 1}],
    ):
        answer = shared.post({"script": steps})
        result = shared.get(f"/api/executions/{answer.json()['execution_id']}/result")
        detail = plainly(answer)
        assert detail == result["error"]
        assert "unknown step" not in detail
    assert shared.get("/api/token")["state"] == "ready"


@pytest.mark.parametrize(
    ("status", "kind", "message", "error_class"),
    [
        (400, "invalid_request_error", "messages.0: image of 40312 px; see docs/401", "invalid_request"),
        (404, "not_found_error", "model: claude-403-oauth", "model"),
        (529, "overloaded_error", "Overloaded (credentials service)", "overloaded"),
        (500, "api_error", "Internal server error: authentication backend", "upstream"),
    ],
)
def test_what_the_api_says_makes_no_backend_switch(
    shared: Supervised, status: int, kind: str, message: str, error_class: str
) -> None:
    error: dict[str, Any] = {"do": "api_error", "status": status, "kind": kind, "message": message}
    given_up = {"do": "give_up", "text": f"API Error: {status} {message}", "status": status, "error": "unknown"}

    plainly(shared.post({"script": [INIT, error, given_up]}), error_class, "error", "upstream")


@pytest.mark.slow
def test_names_of_files_and_commands_make_no_backend_switch(tmp_path: Path) -> None:
    home = tmp_path / "oauth-401-credentials"
    home.mkdir()
    not_a_program = home / "claude-403"
    not_a_program.write_text("unauthorized")
    not_a_program.chmod(0o755)
    for claude in (str(home / "forbidden" / "claude"), str(not_a_program)):
        with supervised(home, claude=claude) as running:
            plainly(running.post("x"), "spawn")
            plainly(running.client.post("/api/credentials/reload-token", json={"token": "forbidden 401"}))
    (home / "secret" / "token").unlink()
    with supervised(home, token=None) as running:
        detail = plainly(running.post("x"), "no_token")
        assert "no usable token" in detail
        (home / "secret" / "token").write_text("CLAUDE_CODE_OAUTH_TOKEN=${credentials.401}\n")
        plainly(running.post("x"), "no_token")


def test_what_a_caller_sends_is_not_said_back(shared: Supervised) -> None:
    ask = shared.client
    plainly(ask.post("/api/task", json={"message": "x", "oauth": 1, "max_turns": "401"}), "invalid_request")
    plainly(ask.post("/api/task", json={"message": "x", "images": [{"media_type": "401", "data": "403"}]}))
    plainly(ask.post("/api/task", json={"message": "x", "images": [{"media_type": "a", "data": "b", "oauth": 1}]}))
    plainly(ask.post("/api/task", json={"message": "x", "mcp_config": "credentials"}))
    plainly(ask.get("/api/executions/forbidden-401"), "not_found")
    plainly(ask.get("/api/executions?cursor=oauth"), "invalid_request")
    plainly(ask.get("/oauth/unauthorized"), "not_found")
    lost = shared.post({"script": [INIT, {"do": "exit"}]}, execution_id="id-401-oauth", model="forbidden-403")
    plainly(lost, "lost_result")


def test_a_session_id_with_such_digits_is_not_said(shared: Supervised) -> None:
    session = "40140340-1403-4014-8403-401403401403"
    steps = [
        {"do": "init", "fields": {"session_id": session}},
        {"do": "write", "stream": "stderr", "text": f"Lost the way in {session}"},
        {"do": "exit", "code": 1},
    ]
    plainly(shared.post({"script": steps}))


# -- the end of a limit


@pytest.mark.parametrize(
    ("resets_at", "words"),
    [
        (1_795_000_000.0, "until 2026-11-18 11:07 UTC"),
        (1_795_000_020.0, "until 2026-11-18 11:07 UTC"),
        (1_795_000_021.0, "until 2026-11-18 11:08 UTC"),
        (None, "is reached; write"),
        (1e18, "is reached; write"),
        (float("inf"), "is reached; write"),
        (float("nan"), "is reached; write"),
    ],
)
def test_the_sentence_of_a_limit_tells_a_person_until_when(resets_at: float | None, words: str) -> None:
    sentence = limit_sentence(resets_at)

    assert words in sentence
    assert sentence.endswith("write another account's token, or wait for the reset")


def test_a_caller_that_meets_a_limit_or_is_turned_away_for_it_is_told_until_when(tmp_path: Path) -> None:
    resets_at = 4_102_444_800  # 2100-01-01
    script = [
        INIT,
        {"do": "rate_limit", "status": "rejected", "limit_type": "five_hour", "resets_at": resets_at},
        {"do": "give_up", "text": "You've hit your 5-hour limit", "error": "rate_limit", "status": 429},
    ]
    with supervised(tmp_path, flags=("--park", "0")) as running:
        met = running.post({"script": script}, execution_id="met")
        turned_away = running.post("x")

        for response in (met, turned_away):
            assert response.status_code == 429
            assert "until 2100-01-01 00:00 UTC" in response.json()["detail"]
        assert running.record("met")["detail"] == met.json()["detail"]
        assert running.get("/api/executions/met/result")["error"] == met.json()["detail"]
    assert OLD not in json.dumps(met.json())
