"""Properties of framing: for any bytes in any chunks the lines are those of one split, within the limits."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from agent_runtime.process.framing import HEAD_BYTES, CutLine, LineFramer

PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\xc3", b"\0", b"{}\n"]),
    st.integers(HEAD_BYTES - 2, HEAD_BYTES + 200).map(lambda count: b"x" * count),
    st.integers(16_000, 40_000).map(lambda count: b"y" * count),  # more than the framer's room takes at once
)
STREAMS = st.lists(PIECES, max_size=12).map(b"".join)
LIMITS = st.one_of(st.integers(1, 20), st.integers(HEAD_BYTES - 2, HEAD_BYTES + 300), st.just(1 << 20))


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Draw a stream and the chunks in which it arrives."""
    stream = draw(STREAMS)
    cuts = sorted({0, len(stream), *draw(st.lists(st.integers(0, len(stream)), max_size=12))})
    return stream, [stream[begin:end] for begin, end in pairwise(cuts)]


def described(line: bytes) -> tuple[bytes, int]:
    """Return what is kept of a line, and how many of its bytes are not."""
    return (bytes(line), line.dropped_bytes) if isinstance(line, CutLine) else (line.removesuffix(b"\n"), 0)


def split(stream: bytes, limit: int) -> list[tuple[bytes, int]]:
    """Do the same with all of the stream at once."""
    lines = stream.split(b"\n")
    lines = lines if lines[-1] else lines[:-1]
    heads = [line if len(line) <= limit else line[: min(limit, HEAD_BYTES)] for line in lines]
    return [(head, len(line) - len(head)) for line, head in zip(lines, heads, strict=True)]


@given(chunked(), LIMITS)
@example((b"x" * 11, [b"x" * 10, b"x"]), 10)
@example((b"x" * 10 + b"\n\n", [b"x" * 10, b"\n", b"\n"]), 10)
def test_any_chunks_of_any_bytes_give_the_lines_of_one_split(arrival: tuple[bytes, list[bytes]], limit: int) -> None:
    stream, chunks = arrival
    framer = LineFramer(limit)
    lines: list[bytes] = []
    for chunk in chunks:
        rest = chunk
        while rest:
            room = framer.room()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            room.release()
            arrived = framer.feed(count)
            lines += arrived
            assert arrived.joined is None or arrived.joined == b"".join(arrived)
            assert framer.pending_bytes <= limit
            rest = rest[count:]
    lines += framer.close()

    assert [described(line) for line in lines] == split(stream, limit)
    assert list(framer.close()) == []
