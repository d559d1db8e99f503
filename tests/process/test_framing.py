"""Lines come out whole however they were cut on the way, and no line takes more memory than its limit."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc

import pytest

from agent_runtime.process.framing import HEAD_BYTES, MOST_BYTES, CutLine, LineFramer

PIPE_BYTES = 64 << 10
REFUSAL = json.dumps(
    {
        "type": "system",
        "subtype": "api_retry",
        "error_status": 401,
        "error": "authentication_failed",
        "text": "…é\U0001f512",
    },
    ensure_ascii=False,
).encode()
LINES = [b'{"type":"system"}', b"", REFUSAL, b"\r", b"\xff\xfe broken \xc3", b"\x1b[31mred\x1b[0m\r", b"last"]
STREAM = b"\n".join(LINES) + b"\n"


def fed(framer: LineFramer, chunk: bytes) -> list[bytes]:
    """Put *chunk* into the framer's room, as often as it takes."""
    lines: list[bytes] = []
    while chunk:
        room = framer.room()
        piece, chunk = chunk[: len(room)], chunk[len(room) :]
        room[: len(piece)] = piece
        lines += framer.feed(len(piece))
    return lines


def framed(chunks: list[bytes], limit_bytes: int = 1 << 20) -> list[bytes]:
    framer = LineFramer(limit_bytes)
    return [line for chunk in chunks for line in fed(framer, chunk)] + list(framer.close())


def texts(lines: list[bytes]) -> list[bytes]:
    assert not any(isinstance(line, CutLine) for line in lines)
    assert all(line.endswith(b"\n") for line in lines)
    return [line[:-1] for line in lines]


def is_cut(line: bytes, head: bytes, dropped_bytes: int) -> bool:
    return isinstance(line, CutLine) and line == head and line.dropped_bytes == dropped_bytes


def test_a_cut_at_any_offset_changes_nothing() -> None:
    for offset in range(len(STREAM) + 1):
        assert texts(framed([STREAM[:offset], STREAM[offset:]])) == LINES, offset


@pytest.mark.parametrize("size_bytes", [1, 2, 3, 5, 7, 64])
def test_pieces_of_any_size_change_nothing(size_bytes: int) -> None:
    pieces = [STREAM[i : i + size_bytes] for i in range(0, len(STREAM), size_bytes)]

    assert texts(framed(pieces)) == LINES


def test_a_line_across_the_size_of_a_pipe_is_one_line() -> None:
    for before in range(PIPE_BYTES - len(REFUSAL) - 2, PIPE_BYTES + 2):
        stream = b"x" * (before - 1) + b"\n" + REFUSAL + b"\n"
        chunks = [stream[:PIPE_BYTES], stream[PIPE_BYTES:]]

        assert texts(framed(chunks))[1] == REFUSAL, before


def test_lines_come_out_of_a_real_pipe_as_they_went_in() -> None:
    lines = [b"%d " % n + b"x" * (n * 37 % 5000) for n in range(500)]
    read_end, write_end = os.pipe()

    def write() -> None:
        with os.fdopen(write_end, "wb", buffering=0) as pipe:
            for line in lines:
                pipe.write(line + b"\n")

    writer = threading.Thread(target=write)
    writer.start()
    chunks = []
    with os.fdopen(read_end, "rb", buffering=0) as pipe:
        while chunk := pipe.read(PIPE_BYTES):
            chunks.append(chunk)
    writer.join()

    assert texts(framed(chunks)) == lines


def test_a_line_of_400_kb_and_a_frame_of_a_megabyte_come_out_whole() -> None:
    lines = [b"a" * 400_000, b"b" * 1_000_000, b"c"]
    stream = b"\n".join(lines)
    chunks = [stream[i : i + PIPE_BYTES] for i in range(0, len(stream), PIPE_BYTES)]

    assert texts(framed(chunks)) == lines


def test_a_line_without_its_newline_can_be_looked_at_and_stays_unfinished() -> None:
    framer = LineFramer(1 << 20)
    assert fed(framer, b"one\ntw") == [b"one\n"]

    assert framer.peek() == b"tw"
    assert framer.pending_bytes == 2
    assert fed(framer, b"o\n") == [b"two\n"]
    assert framer.peek() == b""
    assert list(framer.close()) == []


def test_the_end_of_the_stream_ends_the_last_line() -> None:
    framer = LineFramer(1 << 20)
    assert fed(framer, b"no newline") == []

    assert list(framer.close()) == [b"no newline\n"]
    assert list(framer.close()) == []


@pytest.mark.parametrize("length", [9, 10, 11, 25, 1000])
@pytest.mark.parametrize("piece_bytes", [1, 4, 10, 11, 5000])
def test_of_a_line_over_the_limit_the_head_is_kept_and_the_rest_is_counted(length: int, piece_bytes: int) -> None:
    stream = b"before\n" + b"x" * length + b"\nafter\n"
    pieces = [stream[i : i + piece_bytes] for i in range(0, len(stream), piece_bytes)]

    lines = framed(pieces, limit_bytes=10)

    assert lines[0] == b"before\n"
    if length > 10:
        assert is_cut(lines[1], b"x" * 10, length - 10)
    else:
        assert texts(lines[1:2]) == [b"x" * length]
    assert texts(lines[2:]) == [b"after"]


def test_a_line_over_the_limit_at_the_end_of_the_stream_says_so() -> None:
    [line] = framed([b"x" * 7, b"x" * 7], limit_bytes=10)

    assert is_cut(line, b"x" * 10, 4)


def test_several_lines_over_the_limit_in_one_chunk_are_cut_each() -> None:
    lines = framed([b"a" * 12 + b"\nb\n" + b"c" * 15, b"c\n\n" + b"d" * 11 + b"\n"], limit_bytes=10)

    assert is_cut(lines[0], b"a" * 10, 2)
    assert lines[1] == b"b\n"
    assert is_cut(lines[2], b"c" * 10, 6)
    assert lines[3] == b"\n"
    assert is_cut(lines[4], b"d" * 10, 1)


def test_lines_that_came_whole_are_there_in_one_piece_too() -> None:
    framer = LineFramer(10)
    room = framer.room()
    room[:12] = b"one\ntwo\nthre"
    assert framer.feed(12).joined == b"one\ntwo\n"
    room = framer.room()
    room[:13] = b"e\n" + b"x" * 11
    assert framer.feed(13).joined == b"three\n"
    framer.room()[:1] = b"\n"
    assert framer.feed(1).joined is None, "what is not there whole must not pass for what came"


def test_memory_stays_within_the_limit_however_long_a_line_is() -> None:
    framer = LineFramer(100_000)
    chunk = b"x" * PIPE_BYTES
    tracemalloc.start()
    try:
        for _ in range(500):
            assert fed(framer, chunk) == []
            assert framer.pending_bytes <= 100_000
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    # The room for a chunk, the line before it, and both once more while the room grows.
    assert peak_bytes < 2 * (100_000 + MOST_BYTES)
    [line] = framer.close()
    assert is_cut(line, b"x" * HEAD_BYTES, 500 * PIPE_BYTES - HEAD_BYTES)


def test_what_a_long_line_took_is_given_back_and_a_quiet_stream_takes_little() -> None:
    framer = LineFramer(32 << 20)
    tracemalloc.start()
    try:
        fed(framer, b"short\n")
        assert tracemalloc.get_traced_memory()[0] < 32_000
        for _ in range(160):
            fed(framer, b"x" * PIPE_BYTES)
        assert tracemalloc.get_traced_memory()[0] > 160 * PIPE_BYTES
        assert len(fed(framer, b"\nnext\n")) == 2
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
