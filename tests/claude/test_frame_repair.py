"""Lines of stdout that are no clean frame: what is read of them, and that what is kept is JSON for every parser."""

from __future__ import annotations

import json
import time
from typing import Any, NoReturn

import msgspec
import pytest

from agent_runtime.claude.frame_repair import read_frame, split_line
from agent_runtime.claude.frames import MOST_LEVELS, bounds_message, decode, decode_partial, is_utf8

RESULT = b'{"type":"result","result":"x"}'


def strictly(data: bytes) -> Any:
    """Parse as a caller might who takes nothing but JSON."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    msgspec.json.decode(data)
    return json.loads(data.decode("utf-8"), parse_constant=refuse)


def shape(line: bytes) -> list[str]:
    """Tell frames by their type and text as it is, and see to it that every frame is JSON."""
    told = []
    for piece in split_line(line):
        if piece.frame is None:
            told.append(f"text {piece.data.decode(errors='replace')}")
        else:
            assert strictly(piece.data)["type"] == piece.frame.type
            told.append(piece.frame.type + (" quoted" if piece.follows_text else ""))
    return told


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (RESULT + b"\n", ["result"]),
        (b"\x1b[2K" + RESULT + b"\x1b[0m\r\n", ["result"]),
        (b"\x1b]0;a title\x07" + RESULT, ["result"]),
        (b"\xef\xbb\xbf" + RESULT, ["result"]),
        (b"\x00\x00" + RESULT, ["result"]),
        (b"\xff\xfe" + RESULT, ["result"]),
        (RESULT + b"\x00", ["result"]),
        (b'{"type":\x1b[2K"result"}', ["result"]),
        (b'{"type":"result","a":"\x1b[31m\x00\t\x7f"}', ["result"]),
        (b'{"type":"result","a":"\xff\xe2\x82"}', ["result"]),
        (b'{"type":"result","a":"\\ud800","b":"\\ud83d\\ude00"}', ["result"]),
        (b'{"type":"result","a":[NaN,Infinity,-Infinity,1e999,-1e999]}', ["result"]),
        (b'{"type":"result","a":' + b"9" * 5000 + b"}", ["result"]),
        (b'{"type":"result","a":"' + b"9" * 5000 + b'"}', ["result"]),
        (b'{"type":"result","a":' + b"[" * 900 + b"]" * 900 + b"}", ["result"]),
        (b'{"type":"result","a":' + b'{"a":[' * 300 + b"]}" * 300 + b"}", ["result"]),
        (b'{"type":"user","type":"result"}', ["result"]),
        (b'{"type":"result","num_turns":"three","is_error":[]}', ["result"]),
        (b'{"type":"user"}{"type":"result"}', ["user", "result"]),
        (b'{"type":"user"}\t {"type":"system"}\r{"type":"result"}', ["user", "system", "result"]),
        (b"no newline" + RESULT, ["text no newline", "result quoted"]),
        (RESULT + b" and more\n", ["result", "text  and more"]),
        (b'{"type":"user","a":"cut of' + RESULT, ['text {"type":"user","a":"cut of', "result quoted"]),
        (b'{"type":"user"}x' + RESULT, ["user", "text x", "result quoted"]),
        (b"", ["text "]),
        (b"[{}]", ["text [{}]"]),
        (b"{}{}", ["text {}{}"]),
        (b'it says {"a":1}', ['text it says {"a":1}']),
        (b"{" * 5000, ["text " + "{" * 5000]),
        (b'{"type":"result","a":01}', ['text {"type":"result","a":01}']),
    ],
)
def test_a_line_is_taken_apart_into_frames_and_text(line: bytes, expected: list[str]) -> None:
    assert shape(line) == expected


@pytest.mark.parametrize("levels", [MOST_LEVELS - 1, MOST_LEVELS, 800])
def test_levels_beyond_the_limit_are_left_out(levels: int) -> None:
    line = b'{"type":"result","result":"x","a":' + b"[" * levels + b"]" * levels + b"}"
    [piece] = split_line(line)

    assert (b"nested too deep" in piece.data) == (levels >= MOST_LEVELS)
    assert piece.data == line or levels >= MOST_LEVELS
    assert (decode(line) is None) == (levels >= MOST_LEVELS)
    assert read_frame(line) is not None


def test_only_what_is_clean_is_taken_the_quick_way() -> None:
    code = json.dumps({"type": "user", "text": "if (a[{}]) {" * 10_000}).encode()

    assert decode(code) is not None
    assert decode(b'{"type":"user","a":' + b"1" * 4000 + b"}") is not None
    assert decode(b'{"type":"user","a":' + b"1" * 5000 + b"}") is None
    assert not is_utf8(b'{"type":"user","a":"\xed\xa0\x80"}')
    assert is_utf8('{"type":"user","a":"…"}'.encode())


def test_a_line_that_is_no_frame_costs_no_more_than_a_few_looks_at_it() -> None:
    lines = [
        b'{"a":' * 2_000_000,
        b'{"type":"user","a":"' + b"x" * 8_000_000,
        b'{"a":"b"' * 1_000_000,
        b"{" * 8_000_000,
    ]
    begun = time.process_time()
    for line in lines:
        assert [piece.frame for piece in split_line(line)] == [None]
    assert time.process_time() - begun < 10


def test_the_partial_messages_that_begin_and_end_a_message_are_read() -> None:
    head = b'{"type":"stream_event","event":{"type":"message_delta","delta":{"stop_reason":"max_tokens"}},'
    own = decode_partial(head + b'"session_id":"s","parent_tool_use_id":null}')
    aside = decode_partial(head + b'"session_id":"s","parent_tool_use_id":"toolu_1"}')

    assert own is not None
    assert own.event.delta is not None
    assert (own.event.type, own.event.delta.stop_reason) == ("message_delta", "max_tokens")
    assert aside is not None
    assert aside.parent_tool_use_id == "toolu_1"
    assert bounds_message(head)
    assert not bounds_message(b'{"type":"stream_event","event":{"type":"content_block_stop","index":0}}')
    assert decode_partial(b'{"type":"stream_event","event":{"type":"message_delta","delta":7}}') is None
