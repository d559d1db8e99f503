"""The model's text while it is written: whole, in order, without tokens however they are cut, and without a wait."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.model.tokens import Token
from agent_runtime.telemetry.live_text import WAITING_LIMIT, LiveText, LiveTexts, LiveTextWriter
from agent_runtime.telemetry.redaction import Redactor
from tests.support.supervised import NEW, OLD
from tests.telemetry.test_redaction_properties import SECRETS, redactor, texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OPAQUE = "opaque/token+of=a~gateway.0001"
MARKS = {f"[token:{Token(secret).fingerprint}]" for secret in (OLD, NEW, OPAQUE)}


def line(kind: str, *, parent: str | None = None, **event: Any) -> bytes:
    frame = {"type": "stream_event", "event": {"type": kind, **event}, "parent_tool_use_id": parent}
    return json.dumps(frame).encode() + b"\n"


def delta(text: str, index: int = 0, **more: Any) -> bytes:
    return line("content_block_delta", index=index, delta={"type": "text_delta", "text": text}, **more)


def stop(index: int = 0) -> bytes:
    return line("content_block_stop", index=index)


def read(lines: Iterable[bytes], known: Redactor, unread: Iterable[bytes] = ()) -> list[LiveText]:
    """Return what a reader gets of *lines* who came after *unread*."""

    async def reading() -> list[LiveText]:
        readers = LiveTexts()
        writer = LiveTextWriter(readers, known)
        for printed in unread:
            writer.partial(printed, 0)
        with readers.reader() as reader:
            for printed in lines:
                writer.partial(printed, 0)
            return reader.take(0)

    return asyncio.run(reading())


def joined(pieces: list[LiveText]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("secret", [OLD, NEW, OPAQUE])
def test_a_token_that_is_split_anywhere_over_two_pieces_is_replaced(secret: str) -> None:
    known = Redactor([Token(OLD), Token(OPAQUE)])
    text = f"It is {secret}, s\u00e9e."
    clean = known.redact_text(text)

    assert secret not in clean
    for at in range(len(text) + 1):
        assert joined(read([delta(text[:at]), delta(text[at:]), stop()], known)) == clean
    assert joined(read([*map(delta, text), stop()], known)) == clean


@pytest.mark.parametrize("secret", [OLD, NEW, OPAQUE])
def test_a_reader_that_comes_in_the_middle_of_a_token_gets_no_part_of_it(secret: str) -> None:
    known = Redactor([Token(OLD), Token(OPAQUE)])
    for before in ([], [delta("x ")], [line("content_block_start", index=0), delta("x")]):
        for at in range(1, len(secret)):
            seen = joined(read([delta(secret[at:]), delta(", so."), stop()], known, [*before, delta(secret[:at])]))
            assert seen.removesuffix(", so.") in MARKS | {""} or seen == " so.", seen


@given(st.data(), SECRETS)
def test_the_pieces_are_what_the_whole_would_be(data: st.DataObject, secrets: list[str]) -> None:
    text = data.draw(texts(secrets)).replace("\\", "")  # of an escape before a token the beginning may have left
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    assert joined(read([*map(delta, pieces), stop()], redactor(secrets))) == redactor(secrets).redact_text(text)


def test_pieces_say_whose_they_are_and_what_is_no_text_is_none() -> None:
    known = Redactor([Token(OLD)])
    lines = [
        line("message_start", message={"id": "msg_1"}),
        line("content_block_start", index=0, content_block={"type": "thinking"}),
        line("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Hm."}),
        line("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": "{}"}),
        delta("One", 2),
        delta("its", 0, parent=f"toolu_{OLD}"),
        delta(", two.", 2),
        b'{"type":"stream_event","event":7}\n',
        line("message_start", message={"id": "msg_2"}),
        delta("Three", 0),
    ]

    pieces = read(lines, known)

    own = [(piece.message_id, piece.index, piece.text) for piece in pieces if piece.parent_tool_use_id is None]
    (other,) = [piece for piece in pieces if piece.parent_tool_use_id is not None]
    assert own == [("msg_1", 2, "One"), ("msg_1", 2, ", two."), ("msg_2", 0, "Three")]
    assert (other.text, other.message_id, OLD in str(other)) == ("it", None, False)


@contextlib.contextmanager
def two_readers() -> Iterator[Any]:
    readers = LiveTexts()
    with readers.reader() as one, readers.reader() as other:
        yield readers, LiveTextWriter(readers, Redactor()), one, other


def test_a_reader_that_takes_nothing_costs_no_other_anything_and_is_told_what_it_lost() -> None:
    async def reading() -> None:
        with two_readers() as (readers, writer, one, stalled):
            seen = 0
            for _ in range(300):
                writer.partial(delta("x" * 1000), 1)
                seen += len(joined(one.take(1)))
            assert seen == 300_000
            left = stalled.take(1)
            assert left[0].dropped + len(joined(left)) == 300_000
            assert len(joined(left)) <= WAITING_LIMIT
            writer.partial(delta("y"), 1)
            assert [(piece.text, piece.dropped) for piece in stalled.take(1)] == [("y", 0)]
        assert not readers.is_read

    asyncio.run(reading())


def test_a_reader_is_woken_from_another_thread_and_gets_what_came_before_a_line_before_it() -> None:
    async def reading() -> None:
        with two_readers() as (_, writer, one, _other):
            coming = one.changed.next_change()
            await asyncio.to_thread(writer.partial, delta("Before s"), 1)
            await asyncio.wait_for(coming, 10)
            writer.message(None, 1)
            writer.partial(delta("after"), 2)
            assert [piece.text for piece in one.take(1)] == ["Before s"]
            assert [piece.text for piece in one.take(2)] == ["after"]

    asyncio.run(reading())


def test_a_token_in_whose_end_another_may_begin_is_replaced() -> None:
    known = Redactor([Token("abcdefgh-12"), Token("h-12-ijklmn")])

    assert joined(read([delta("abcdefgh-12"), delta(".")], known)) == known.redact_text("abcdefgh-12.")
