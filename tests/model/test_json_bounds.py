"""Bodies that would hold the interpreter for long are refused before they are decoded, and no others."""

from __future__ import annotations

import json
import time

import pytest

from agent_runtime.errors import InvalidRequest
from agent_runtime.model.json_bounds import DEPTH_LIMIT, VALUES_LIMIT, check_json_bounds
from agent_runtime.model.task_reading import parse

MANY = VALUES_LIMIT + 1
WORDS = '[[[{{{,,,"\\\\"\\' * 100_000


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" + b"[]," * 2_500_000 + b"[]]", id="7.5 MB of lists"),
        pytest.param(b"[" + b",".join([b"[[]]"] * (MANY // 2)) + b"]", id="lists in lists"),
        pytest.param(b"[" + b",".join([b"{}"] * MANY) + b"]", id="objects"),
        pytest.param(b'["' + b'","' * MANY + b'"]', id="texts"),
        pytest.param(b"{" + b",".join(b'"%d":1' % n for n in range(MANY)) + b"}", id="fields"),
        pytest.param(b"[" + b"1," * MANY + b"1]", id="numbers"),
        pytest.param(b"[" + b" 1 ,\n" * MANY + b"1]", id="numbers with blanks"),
        pytest.param(b'{"message":' + json.dumps(WORDS).encode() + b',"a":[' + b"0," * MANY + b"0]}", id="behind text"),
        pytest.param(b'["' + b"\\\\" * 9 + b'",' + b'"",' * MANY + b'""]', id="behind backslashes"),
    ],
)
def test_too_many_values_are_refused_with_the_limit(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match=str(VALUES_LIMIT)):
        check_json_bounds(body)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":', b' [\n"]",{"[":'])
def test_too_deep_a_body_is_refused_with_the_limit(opening: bytes) -> None:
    with pytest.raises(InvalidRequest, match=f"deeper than {DEPTH_LIMIT}"):
        check_json_bounds(opening * (DEPTH_LIMIT + 1))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(WORDS, id="text full of brackets, commas, quotes and backslashes"),
        pytest.param("[" * 1_000_000, id="brackets in a text"),
        pytest.param([WORDS, {WORDS: WORDS}], id="in names and in lists"),
        pytest.param([[]] * (VALUES_LIMIT // 2 - 20), id="as many lists as may be"),
        pytest.param([0] * (VALUES_LIMIT - 20), id="as many numbers as may be"),
        pytest.param({str(n): "," for n in range(VALUES_LIMIT - 20)}, id="as many fields as may be"),
        pytest.param(json.loads("[" * (DEPTH_LIMIT - 2) + "]" * (DEPTH_LIMIT - 2)), id="as deep as may be"),
        pytest.param([json.loads("[" * 50 + "]" * 50)] * 100, id="often deep, never too deep"),
    ],
)
def test_all_else_is_let_through(value: object) -> None:
    for ascii_only in (True, False):
        check_json_bounds(json.dumps({"message": "x", "value": value}, ensure_ascii=ascii_only).encode())


@pytest.mark.parametrize(
    "body", [b"", b'"', b'"\\', b"\xff" * 1000, b"]" * 1_000_000, b"[]]" * 40_000, b'{"a":"[' * 40_000, b"[[" * 49_999]
)
def test_what_is_no_json_is_refused_and_nothing_else_happens(body: bytes) -> None:
    def read() -> None:
        check_json_bounds(body)
        parse(body, strict=True)

    with pytest.raises(InvalidRequest):
        read()


def test_a_bound_is_checked_in_time_in_proportion_to_the_length() -> None:
    bodies = [piece * (3_000_000 // len(piece)) for piece in (b"[", b"[]", b'"', b'\\"', b"\\", b'"[",', b"]", b"{,")]
    begun = time.process_time()
    for body in bodies:
        try:
            check_json_bounds(body)
        except InvalidRequest:
            continue
    assert time.process_time() - begun < 0.5 * len(bodies)
