"""The model's text while it is generated, for readers connected at that moment: redacted, and stored nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections import deque
from collections.abc import Iterator

import msgspec

from agent_runtime.claude.frames import decode_partial
from agent_runtime.notifier import Notifier
from agent_runtime.telemetry.redaction import Redactor

WAITING_LIMIT = 64 << 10
"""How many characters are buffered for one reader; the oldest are dropped first."""

BLOCKS = 64
"""How many blocks of text can be unfinished at once: one of the run itself, and one of each sub-agent."""

ID_LENGTH = 128

_BLANK = re.compile(rb"\s")


class LiveText(msgspec.Struct, kw_only=True):
    """
    A piece of the model's text, sent while it is written; the whole message follows as a `message`.

    Attributes:
        message_id: The API's id of the message; null for a reader that connected in the middle of the message. A new id
            means that a new message begins, as where the CLI asks the API again.
        index: Which block of the message the text belongs to, from 0.
        parent_tool_use_id: The tool call of the sub-agent whose text it is; null: the run's own.
        dropped: How many characters before this piece were dropped, because the reader was too slow.
    """

    text: str
    message_id: str | None
    index: int
    parent_tool_use_id: str | None
    dropped: int = 0


class LiveReader:
    """The buffer of one reader; made by :meth:`LiveTexts.reader`."""

    def __init__(self) -> None:
        self.changed = Notifier()
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, LiveText]] = deque()
        self._waiting_length = self._dropped = 0
        self._is_scheduled = False

    def put(self, after: int, piece: LiveText) -> None:
        """Add a piece that was printed after line *after* of the transcript; from any thread, without blocking."""
        with self._lock:
            self._waiting.append((after, piece))
            self._waiting_length += len(piece.text)
            while self._waiting_length > WAITING_LIMIT:
                lost = len(self._waiting.popleft()[1].text)
                self._waiting_length -= lost
                self._dropped += lost
            was_scheduled, self._is_scheduled = self._is_scheduled, True
        if not was_scheduled:
            with contextlib.suppress(RuntimeError):  # the event loop has closed
                self._loop.call_soon_threadsafe(self._notify)

    def take(self, through: int) -> list[LiveText]:
        """Remove and return the pieces printed after line *through* or an earlier line; joins pieces of one block."""
        taken: list[LiveText] = []
        with self._lock:
            while self._waiting and self._waiting[0][0] <= through:
                piece = self._waiting.popleft()[1]
                self._waiting_length -= len(piece.text)
                dropped, self._dropped = self._dropped, 0
                if taken and _place(taken[-1]) == _place(piece):
                    taken[-1] = msgspec.structs.replace(taken[-1], text=taken[-1].text + piece.text)
                else:
                    taken.append(msgspec.structs.replace(piece, dropped=dropped))
        return taken

    def _notify(self) -> None:
        self._is_scheduled = False
        self.changed.notify()


class LiveTexts:
    """The readers of one execution's text; added and removed on the event loop, while a thread sends the text."""

    def __init__(self) -> None:
        self._readers: tuple[LiveReader, ...] = ()

    @property
    def is_read(self) -> bool:
        """Whether there is a reader."""
        return bool(self._readers)

    @contextlib.contextmanager
    def reader(self) -> Iterator[LiveReader]:
        """Yield a new reader, which gets the text that is sent while the block runs."""
        reader = LiveReader()
        self._readers = (*self._readers, reader)
        try:
            yield reader
        finally:
            self._readers = tuple(one for one in self._readers if one is not reader)

    def send(self, after: int, piece: LiveText) -> None:
        """Give a piece to all readers; a slow one delays nothing."""
        for reader in self._readers:
            reader.put(after, piece)


class _Block(msgspec.Struct, frozen=True):
    parent: str | None
    number: int


class LiveTextWriter:
    """
    Extract the text of one attempt's partial messages, and redact it, also a token split over several messages.

    The end of a piece that may be the first part of a token is held back until the next piece. Without a reader no
    message is decoded, to save time. A reader that comes in the middle of a block gets its text from the next blank on:
    what precedes that may be the second part of a token.
    """

    def __init__(self, texts: LiveTexts, redactor: Redactor) -> None:
        self._texts = texts
        self._redactor = redactor
        self._has_missed = False
        self._message_ids: dict[str | None, str | None] = {}
        self._held: dict[_Block, bytes] = {}

    @property
    def is_holding(self) -> bool:
        """Whether some text is held back."""
        return bool(self._held)

    def partial(self, line: bytes, after: int) -> None:
        """Process a partial message, printed after line *after* of the transcript."""
        if not self._texts.is_read:
            self._forget()
        elif (piece := self._read(line)) is not None:
            self._texts.send(after, piece)

    def message(self, parent: str | None, after: int) -> None:
        """Send the held-back text of *parent*, a sub-agent's tool call or None: its whole message is the next line."""
        for block in [block for block in self._held if block.parent == parent]:
            if (piece := self._piece(block, self._redactor.redact(self._held.pop(block)))) is not None:
                self._texts.send(after, piece)

    def _read(self, line: bytes) -> LiveText | None:
        """Return the text that can be sent after a partial message; None: there is none."""
        partial = decode_partial(line)
        if partial is None:
            return None
        event, block = partial.event, _Block(partial.parent_tool_use_id, partial.event.index)
        clean = b""
        if event.type == "message_start":
            self._message_ids[block.parent] = event.message.id if event.message is not None else None
            self._held = {held: text for held, text in self._held.items() if held.parent != block.parent}
        elif event.type == "content_block_start":
            self._held[block] = b""
        elif event.type == "content_block_stop":
            clean = self._redactor.redact(self._held.pop(block, b""))
        elif event.delta is not None and event.delta.type == "text_delta":
            clean = self._clean(block, event.delta.text.encode())
        if len(self._held) > BLOCKS or len(self._message_ids) > BLOCKS:
            self._forget()
        return self._piece(block, clean)

    def _clean(self, block: _Block, text: bytes) -> bytes:
        if block not in self._held and self._has_missed:
            blank = _BLANK.search(text)
            text = text[blank.start() :] if blank is not None else b""
            if not text:
                return b""
        clean, self._held[block] = self._redactor.redact_so_far(self._held.get(block, b"") + text)
        return clean

    def _piece(self, block: _Block, clean: bytes) -> LiveText | None:
        if not clean:
            return None
        shown = self._redactor.redact_text  # a tool may have printed the frame, with any text as ids
        parent, message_id = block.parent, self._message_ids.get(block.parent)
        return LiveText(
            text=clean.decode(),
            message_id=None if message_id is None else shown(message_id)[:ID_LENGTH],
            index=block.number,
            parent_tool_use_id=None if parent is None else shown(parent)[:ID_LENGTH],
        )

    def _forget(self) -> None:
        self._has_missed = True
        self._message_ids.clear()
        self._held.clear()


def _place(piece: LiveText) -> tuple[str | None, int, str | None]:
    return piece.message_id, piece.index, piece.parent_tool_use_id
