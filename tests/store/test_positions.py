"""L4: a stream goes on exactly after the position its reader names, or says what is missing; never twice."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import pytest

from tests.support.supervised import Supervised, eventually, supervised
from tests.system.test_executions import OK, events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINES = 8
SCRIPT = {
    "script": [
        {"do": "init"},
        *({"do": "assistant", "text": f"{number}"} for number in range(LINES - 2)),
        {"do": "result", "text": "Done."},
    ]
}


def lose(transcript: Path, number: int) -> None:
    """Make a transcript what a full disk leaves: without line *number*, which ends where the one before ends."""
    lines = transcript.read_bytes().splitlines(keepends=True)
    assert len(lines) == LINES
    lines[number - 1] = b""
    transcript.write_bytes(b"".join(lines))
    ends = [sum(map(len, lines[: count + 1])) for count in range(LINES)]
    transcript.with_suffix(".idx").write_bytes(b"".join(struct.pack("<Q", end) for end in ends))


@pytest.fixture(scope="module", params=["same supervisor", pytest.param("restarted", marks=pytest.mark.slow)])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    home = tmp_path_factory.mktemp("positions")
    with supervised(home) as running:
        running.post(SCRIPT, execution_id="whole")
        if request.param == "same supervisor":
            yield running
    if request.param == "restarted":
        with supervised(home) as running:
            yield running


def streamed(running: Supervised, execution_id: str, position: str | None, *, by: str = "header") -> list[str]:
    """Read a stream to its end and return what it says, shortly: ids of messages and the bounds of gaps."""
    headers = {"Last-Event-ID": position} if position is not None and by == "header" else {}
    query = {"last_event_id": position} if position is not None and by == "query" else {}
    told = []
    path = f"/api/executions/{execution_id}/stream"
    with running.client.stream("GET", path, headers=headers, params=query) as response:
        assert response.status_code == 200, response.read()
        for event in events(response):
            if event["event"] == "message":
                told.append(event["id"])
            elif event["event"] == "gap":
                gap = json.loads(event["data"])
                told.append(f"{gap['first']}-{gap['last']} {gap['reason']}")
            else:
                told.append(event["event"])
    return told


def numbers(first: int, last: int = LINES) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


@pytest.mark.parametrize("by", ["header", "query"])
@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (None, numbers(1)),
        ("", numbers(1)),
        ("0", numbers(1)),
        ("1", numbers(2)),
        ("5", numbers(6)),
        (str(LINES - 1), numbers(LINES)),
        (str(LINES), []),
        (str(LINES + 1), [f"{LINES + 1}-{LINES + 1} not written yet"]),
        ("999999999999999999", [f"{LINES + 1}-999999999999999999 not written yet"]),
    ],
)
def test_a_position_is_gone_on_from_exactly(
    finished: Supervised, position: str | None, expected: list[str], by: str
) -> None:
    told = streamed(finished, "whole", position, by=by)

    assert [one for one in told if one != "state"] == [*expected, "end"]


@pytest.mark.parametrize("position", ["x", "-1", "1.5", "1,2", "0x10", "٣", "9" * 19, "1e3", "NaN", "5 6", "☃", "\x01"])
@pytest.mark.parametrize("path", ["/api/executions/whole/stream", "/api/events"])
def test_a_position_that_is_none_is_refused_and_not_guessed_at(finished: Supervised, path: str, position: str) -> None:
    answers = [finished.client.get(path, params={"last_event_id": position})]
    if position.isprintable():
        answers.append(finished.client.get(path, headers={b"Last-Event-ID": position.encode()}))

    for answer in answers:
        assert (answer.status_code, answer.json()["error_class"]) == (400, "invalid_request")
        assert "Last-Event-ID" in answer.json()["detail"]


@pytest.mark.slow
def test_lines_that_were_not_kept_are_told_as_a_gap_also_at_the_end(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        for execution_id in ("middle-lost", "end-lost"):
            running.post(SCRIPT, execution_id=execution_id)
    for execution_id, number in (("middle-lost", 3), ("end-lost", LINES)):
        [transcript] = (tmp_path / "data/transcripts").glob(f"{execution_id}*.jsonl")
        lose(transcript, number)
    with supervised(tmp_path) as running:
        lost = f"{LINES}-{LINES} not kept"
        assert streamed(running, "middle-lost", None) == ["state", "1", "2", "3-3 not kept", *numbers(4), "end"]
        assert streamed(running, "middle-lost", "2") == ["state", "3-3 not kept", *numbers(4), "end"]
        assert streamed(running, "middle-lost", "3") == ["state", *numbers(4), "end"]
        assert streamed(running, "end-lost", None) == ["state", *numbers(1, LINES - 1), lost, "end"]
        assert streamed(running, "end-lost", str(LINES - 1)) == ["state", lost, "end"]
        assert streamed(running, "end-lost", str(LINES)) == ["state", "end"]


@pytest.mark.slow
def test_a_transcript_that_is_no_longer_kept_is_unknown_and_not_empty(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        running.post(OK, execution_id="old")
    with supervised(tmp_path, flags=("--retain-age", "0.001")) as running:
        path = "/api/executions/old/stream"
        answer = eventually(lambda: (found := running.client.get(path)).status_code == 404 and found)
        assert answer.json()["error_class"] == "not_found"
