"""What one child prints: parsed into frames, written to the transcript, counted, and searched for API errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from io import BytesIO

import msgspec

from agent_runtime.claude.frame_repair import read_frame, split_line
from agent_runtime.claude.frames import PARTIAL_MESSAGE, Frame, bounds_message, decode_lines, decode_partial, is_utf8
from agent_runtime.claude.last_words import LastWords
from agent_runtime.claude.log_entries import LogEntry
from agent_runtime.claude.run_stats import RunStats
from agent_runtime.claude.session_faults import is_session_fault, says_unknown_session, says_unreadable_session
from agent_runtime.evidence.detector import Channel, Detection, Detector
from agent_runtime.execution.deadlines import Sign
from agent_runtime.process.framing import CutLine, Lines
from agent_runtime.store.transcripts import TranscriptWriter
from agent_runtime.telemetry.live_text import LiveTextWriter
from agent_runtime.telemetry.redaction import Redactor

EVIDENCE_LINE_BYTES = 2048
"""How much of a line is stored as evidence."""
TRUNCATED_HEAD_BYTES = 1024
"""How much the transcript gets of a line that is too long."""
_SIGNS_OF_SIGKILL = (b"Exit code 137", b"Killed", b"SIGKILL")
"""
Words in the result of a tool that was killed: those of the CLI and its shell (measured on 2.1.30, 2.1.197 and 2.1.332),
and those of other programs.
"""


class ChildOutput:
    """
    Read both streams of one child, in its attempt's thread.

    Every line of the transcript is valid JSON: a clean frame as it came, a damaged frame written anew, and any other
    text inside a frame of type ``agent_runtime``.

    Args:
        live_text: Gets every partial message, and is told of each whole one.
        brings_images: The request sends images, so that an error about images is the request's, not the session's.
        on_error: Called with each API error, its line, and when the line was read (monotonic seconds), before the next
            line counts; not after the child was interrupted, because its errors then come from the interrupt.
        on_sign: Called with each sign of life, and when it was read.

    Attributes:
        last_error: The last API error, unless the model has gone on since.
        result_line: Line number of the last ``result`` frame in the transcript; None: there is none.
        unknown_session: The CLI did not know the session it was told to resume.
        session_refused: The API refused the session's history, or the CLI cannot read it, and the model did not go on.
        lost_a_tool: The result of a tool looks as if a process of it had been killed by SIGKILL.
    """

    def __init__(
        self,
        transcript: TranscriptWriter,
        redactor: Redactor,
        *,
        keep_partial: bool,
        live_text: LiveTextWriter,
        brings_images: bool,
        on_error: Callable[[Detection, bytes, float], None],
        on_sign: Callable[[Sign, float], None],
    ) -> None:
        self.run_stats = RunStats(redactor.redact_text)
        self.last_error: Detection | None = None
        self.result_line: int | None = None
        self.unknown_session = False
        self.session_refused = False
        self.lost_a_tool = False
        self._transcript = transcript
        self._redactor = redactor
        self._keep_partial = keep_partial
        self._live_text = live_text
        self._brings_images = brings_images
        self._on_error = on_error
        self._on_sign = on_sign
        self._detector = Detector(time.time)
        self._last_words = LastWords()
        self._model_seen_at: float | None = None
        self._has_cut_frame = False

    @property
    def used_tool(self) -> bool:
        """Whether a tool has run, or may have run: a frame that was too long to be parsed may have called one."""
        return self._has_cut_frame or self.run_stats.tool_count > 0

    # -- stderr

    def stderr(self, lines: Lines, read_at: float) -> None:
        """Search lines of stderr for API errors, and note the last ones for people."""
        for line in lines:
            self._stderr_line(line.removesuffix(b"\n"), read_at)
        self._on_sign(Sign.LOG, read_at)

    def _stderr_line(self, data: bytes, read_at: float) -> None:
        entry = LogEntry.of(data)
        if detection := self._detector.stderr(entry):
            self._error(detection, data, read_at)
            self._on_sign(Sign.OTHER, read_at)
        elif says_unknown_session(data):
            self.unknown_session = True
        else:
            self._last_words.add(entry)

    @property
    def last_words(self) -> str | None:
        """The most informative of the last lines on stderr that are meant for people, redacted; None: there is none."""
        text = self._last_words.most_informative.encode()
        return self._redactor.redact(text, truncated=True).decode(errors="replace") or None

    # -- stdout

    def stdout(self, lines: Lines, read_at: float) -> bool:
        """Process lines of stdout; return whether the transcript has grown."""
        written: list[bytes] = []
        messages: list[Frame] = []
        whole = lines.joined
        for line, frame in zip(lines, decode_lines(lines, are_utf8=whole is not None and is_utf8(whole)), strict=True):
            if frame is not None and frame.is_of_model:
                messages.append(frame)
                written.append(line)
                continue
            if messages:
                self._messages(messages, read_at, written)
                messages = []
            if frame is not None:
                self._frame(frame, line, read_at, written)
            elif isinstance(line, CutLine):
                written.append(self._cut(line))
            else:
                self._repaired(line, read_at, written)
        if messages:
            self._messages(messages, read_at, written)
        if written:
            joined = whole if whole is not None and written == lines else b"".join(written)
            clean = self._redactor.redact_joined(joined)
            self._transcript.append(clean, map(len, written if clean is joined else BytesIO(clean)))
        return bool(written)

    def _repaired(self, line: bytes, read_at: float, written: list[bytes]) -> None:
        """Process the frames and the other text in a damaged line."""
        for piece in split_line(line):
            if piece.frame is None:
                written.append(self._text(piece.data))
            else:
                self._frame(piece.frame, piece.data + b"\n", read_at, written, is_quoted=piece.follows_text)

    def _messages(
        self, messages: list[Frame], read_at: float, written: list[bytes], *, are_quoted: bool = False
    ) -> None:
        """Process messages of the model that follow each other; they are the last lines *written*."""
        if self._live_text.is_holding:
            for lines_before, frame in enumerate(messages, len(written) - len(messages)):
                self._message_begins(frame, lines_before)
        if not are_quoted:
            for frame in messages:
                self._detector.stdout(frame)
        self.run_stats.add_messages(messages)
        self._model_seen(read_at, begins=True)

    def _message_begins(self, frame: Frame, lines_before: int) -> None:
        self._live_text.message(frame.parent_tool_use_id, self._transcript.last_line + lines_before)

    def _frame(
        self, frame: Frame, line: bytes, read_at: float, written: list[bytes], *, is_quoted: bool = False
    ) -> None:
        if frame.type == PARTIAL_MESSAGE:
            self._partial(line, read_at, self._transcript.last_line + len(written))
            if self._keep_partial:
                written.append(line)
            return
        # A frame that follows other text in its line counts, because the CLI may have printed it; it is no evidence.
        if frame.is_of_model:
            written.append(line)
            self._messages([frame], read_at, written, are_quoted=is_quoted)
            return
        if not is_quoted and (detection := self._detector.stdout(frame)):
            self._error(detection, line[:EVIDENCE_LINE_BYTES].removesuffix(b"\n"), read_at)
        if frame.type == "assistant":
            self._message_begins(frame, len(written))
        written.append(line)
        had_init = self.run_stats.has_init
        if frame.type == "result":
            self._result(frame, self._transcript.last_line + len(written))
        else:
            self.run_stats.add(frame)
        if frame.type == "user" and any(sign in line for sign in _SIGNS_OF_SIGKILL):
            self.lost_a_tool = True
        if self.run_stats.has_init and not had_init:
            self._on_sign(Sign.INIT, read_at)
        elif frame.began_task_id is not None:
            self._on_sign(Sign.TASK, read_at)
        else:
            self._on_sign(Sign.OTHER, read_at)

    def _result(self, frame: Frame, number: int) -> None:
        before = self.run_stats.result
        self.run_stats.add(frame)
        if self.run_stats.result is not before:
            self.result_line = number
        text = frame.result_text or ""
        self.unknown_session |= says_unknown_session(text)
        self.session_refused |= not self.run_stats.has_init and says_unreadable_session(text)

    def _partial(self, line: bytes, read_at: float, after: int) -> None:
        partial = decode_partial(line) if bounds_message(line) else None
        self.run_stats.add_partial(partial)
        self._model_seen(read_at, begins=partial is not None and partial.event.type == "message_start")
        self._live_text.partial(line, after)

    def _model_seen(self, read_at: float, *, begins: bool) -> None:
        if begins or (self.last_error is not None and not self.last_error.is_final):
            # The model goes on, so the error is over. A final error stays: the last events of the message that the CLI
            # has given up come after it.
            self.last_error, self.session_refused = None, False
        if read_at != self._model_seen_at:  # one sign is enough for all frames of one read
            self._model_seen_at = read_at
            self._on_sign(Sign.MODEL, read_at)

    def _error(self, detection: Detection, line: bytes, read_at: float) -> None:
        self._model_seen_at = None
        if self.run_stats.answer.is_stopping:
            return
        self.last_error = detection.merged_with(self.last_error)
        self.session_refused |= is_session_fault(line, brings_images=self._brings_images)
        self._on_error(detection, line, read_at)

    def _text(self, text: bytes) -> bytes:
        """Wrap text that is no frame in a frame of type ``agent_runtime``."""
        return _own_frame(subtype="text", text=self._redactor.redact(text).decode(errors="replace"))

    def _cut(self, line: CutLine) -> bytes:
        """Replace a line that was too long by a frame with its beginning."""
        self._has_cut_frame = True
        head = self._redactor.redact(line[:TRUNCATED_HEAD_BYTES], truncated=True).decode(errors="replace")
        return _own_frame(subtype="frame_too_long", bytes=len(line) + line.dropped_bytes, head=head)

    # -- both

    def unfinished(self, channel: Channel, data: bytes, read_at: float) -> None:
        """Search a line that the child has not finished, because evidence in it must not wait for a newline."""
        if channel is Channel.STDERR:
            detection = self._detector.stderr(LogEntry.of(data), finished=False)
        else:
            frame = read_frame(data) if data.rstrip().endswith(b"}") else None
            detection = self._detector.stdout(frame) if frame is not None else None
        if detection is not None and detection.rule.is_evidence:
            self._error(detection, data, read_at)


def _own_frame(**fields: object) -> bytes:
    return msgspec.json.encode({"type": "agent_runtime", **fields}) + b"\n"
