"""Lines come out whole however they were cut on the way, and no line takes more memory than its limit."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc

import pytest

from agent_runtime.framing import Line, LineFramer

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


def framed(chunks: list[bytes], limit_bytes: int = 1 << 20) -> list[Line]:
    framer = LineFramer(limit_bytes)
    lines = [line for chunk in chunks for line in framer.feed(chunk)]
    rest = framer.close()
    return lines if rest is None else [*lines, rest]


def texts(lines: list[Line]) -> list[bytes]:
    assert not any(line.truncated for line in lines)
    return [line.data for line in lines]


@pytest.mark.parametrize("offset", range(len(STREAM) + 1))
def test_a_cut_at_any_offset_changes_nothing(offset: int) -> None:
    assert texts(framed([STREAM[:offset], STREAM[offset:]])) == LINES


@pytest.mark.parametrize("size_bytes", [1, 2, 3, 5, 7, 64])
def test_pieces_of_any_size_change_nothing(size_bytes: int) -> None:
    pieces = [STREAM[i : i + size_bytes] for i in range(0, len(STREAM), size_bytes)]

    assert texts(framed(pieces)) == LINES


@pytest.mark.parametrize("before", range(PIPE_BYTES - len(REFUSAL) - 2, PIPE_BYTES + 2))
def test_a_line_across_the_size_of_a_pipe_is_one_line(before: int) -> None:
    stream = b"x" * (before - 1) + b"\n" + REFUSAL + b"\n"
    chunks = [stream[:PIPE_BYTES], stream[PIPE_BYTES:]]

    assert texts(framed(chunks))[1] == REFUSAL


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
    assert list(framer.feed(b"one\ntw")) == [Line(b"one")]

    assert framer.peek() == b"tw"
    assert framer.pending_bytes == 2
    assert list(framer.feed(b"o\n")) == [Line(b"two")]
    assert framer.peek() == b""
    assert framer.close() is None


def test_the_end_of_the_stream_ends_the_last_line() -> None:
    framer = LineFramer(1 << 20)
    assert not list(framer.feed(b"no newline"))

    assert framer.close() == Line(b"no newline")
    assert framer.close() is None


@pytest.mark.parametrize("length", [9, 10, 11, 25, 1000])
@pytest.mark.parametrize("piece_bytes", [1, 4, 10, 11, 5000])
def test_of_a_line_over_the_limit_the_head_is_kept_and_the_rest_is_counted(length: int, piece_bytes: int) -> None:
    stream = b"before\n" + b"x" * length + b"\nafter\n"
    pieces = [stream[i : i + piece_bytes] for i in range(0, len(stream), piece_bytes)]

    lines = framed(pieces, limit_bytes=10)

    assert lines[0] == Line(b"before")
    assert lines[1] == Line(b"x" * min(length, 10), dropped_bytes=max(0, length - 10))
    assert lines[1].truncated is (length > 10)
    assert lines[2:] == [Line(b"after")]


def test_a_line_over_the_limit_at_the_end_of_the_stream_says_so() -> None:
    assert framed([b"x" * 7, b"x" * 7], limit_bytes=10) == [Line(b"x" * 10, dropped_bytes=4)]


def test_memory_stays_within_the_limit_however_long_a_line_is() -> None:
    framer = LineFramer(100_000)
    chunk = b"x" * PIPE_BYTES
    tracemalloc.start()
    try:
        for _ in range(500):
            assert not list(framer.feed(chunk))
            assert framer.pending_bytes <= 100_000
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak_bytes < 4 * 100_000
    line = framer.close()
    assert line is not None
    assert len(line.data) + line.dropped_bytes == 500 * PIPE_BYTES
