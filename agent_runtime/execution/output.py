"""What one child prints: read into frames, kept in the transcript, counted, and searched for API errors."""

from __future__ import annotations

import time
from enum import Enum
from io import BytesIO
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.claude import invocation as cli_command
from agent_runtime.claude.frame_repair import pieces, read
from agent_runtime.claude.frames import decode, decode_partial, is_partial, is_utf8, may_be_partial
from agent_runtime.claude.last_words import LastWords
from agent_runtime.claude.run_stats import RunStats
from agent_runtime.claude.session_faults import cannot_resume
from agent_runtime.evidence.detector import Channel, Detector
from agent_runtime.process.framing import CutLine

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.claude.frames import Frame
    from agent_runtime.evidence.detector import Detection
    from agent_runtime.process.framing import Lines
    from agent_runtime.store.transcripts import TranscriptWriter
    from agent_runtime.telemetry.redaction import Redactor

EVIDENCE_LINE_BYTES = 2048
TRUNCATED_HEAD_BYTES = 1024
_OPENING, _CLOSING = b"{}"
_SIGNS_OF_SIGKILL = (b"Exit code 137", b"Killed", b"SIGKILL")
"""In a tool's result: of the CLI and its shell (measured on 2.1.30, 2.1.197 and 2.1.332), and of other programs."""


class Sign(Enum):
    """A sign of life of the child."""

    MODEL = "model"
    """The model begins to answer, or has answered: what the API said before is over."""
    STREAM = "stream"
    """The model goes on with what it has begun."""
    INIT = "init"
    """The CLI has told its session, its version and its permission mode."""
    TASK = "task"
    """The CLI has begun a task, a sub-agent too, which it may do before it tells its session."""
    LOG = "log"
    """Lines of the CLI's debug log that say nothing else."""
    OTHER = "other"
    """Any other frame, or a line about an API error."""


class ChildOutput:
    """
    Read both streams of one child, in its attempt's thread.

    What is kept in the transcript is always valid JSON: a clean frame as it came, a damaged one written anew, and what
    is no frame in one of ours.

    Args:
        on_error: Called with each API error, its line, and when that was read (monotonic seconds), before the next line
            is looked at.
        on_sign: Called with each sign of life, likewise.

    Attributes:
        result_line: Number of the last ``result`` frame in the transcript.
        unknown_session: The CLI did not know the session it was told to resume.
        lost_a_tool: The result of a tool looks as if a process of it had been killed by SIGKILL.
        unreadable_session: It could not read that session.
    """

    def __init__(
        self,
        transcript: TranscriptWriter,
        redactor: Redactor,
        *,
        keep_partial: bool,
        on_error: Callable[[Detection, bytes, float], None],
        on_sign: Callable[[Sign, float], None],
    ) -> None:
        self.run_stats = RunStats()
        self.result_line: int | None = None
        self.unknown_session = False
        self.lost_a_tool = False
        self.unreadable_session = False
        self._transcript = transcript
        self._redactor = redactor
        self._keep_partial = keep_partial
        self._on_error = on_error
        self._on_sign = on_sign
        self._detector = Detector(time.time)
        self._last_words = LastWords()
        self._result_is_new = False
        self._model_told: tuple[Sign, float] | None = None
        self._has_cut_frame = False

    @property
    def used_tool(self) -> bool:
        """Whether a tool has run, or may have: what was in a frame that is too long to be read is not known."""
        return self._has_cut_frame or self.run_stats.tool_count > 0

    # -- stderr

    def stderr(self, lines: Lines, read_at: float) -> None:
        """Look through lines of stderr."""
        for line in lines:
            self._stderr_line(line.removesuffix(b"\n"), read_at)
        self._on_sign(Sign.LOG, read_at)

    def _stderr_line(self, data: bytes, read_at: float) -> None:
        if detection := self._detector.stderr(data):
            self._tell_error(detection, data, read_at)
            self._on_sign(Sign.OTHER, read_at)
        elif cli_command.missing_session(data):
            self.unknown_session = True
        else:
            self._last_words.add(data)

    @property
    def last_words(self) -> str | None:
        """What tells most of the last things that the CLI told a person on stderr, without a token."""
        said = self._last_words.most_informative.encode()
        return self._redactor.redact(said, truncated=True).decode(errors="replace") or None

    # -- stdout

    def stdout(self, lines: Lines, read_at: float) -> bool:
        """Take lines of stdout; return whether the transcript has grown."""
        kept: list[bytes] = []
        whole = lines.joined
        some_are_partial = whole is None or may_be_partial(whole)
        all_are_utf8 = whole is not None and is_utf8(whole)
        is_as_it_came = True
        for line in lines:
            if some_are_partial and is_partial(line):
                self._partial(line, read_at)
                if not self._keep_partial:
                    is_as_it_came = False
                    continue
            if whole is None and isinstance(line, CutLine):
                kept.append(self._cut(line))
                is_as_it_came = False
                continue
            frame = decode(line) if all_are_utf8 or is_utf8(line) else None
            if frame is None:
                self._repaired(line, kept, read_at)
                is_as_it_came = False
                continue
            self._frame(frame, line, read_at)
            if line[0] == _OPENING and line[-2] == _CLOSING:
                kept.append(line)
            else:
                kept.append(line.strip() + b"\n")
                is_as_it_came = False
            if self._result_is_new:
                self._note_result_line(len(kept))
        if kept:
            joined = whole if whole is not None and is_as_it_came else b"".join(kept)
            clean = self._redactor.redact_joined(joined)
            self._transcript.append_joined(clean, map(len, kept if clean is joined else BytesIO(clean)))
            self._transcript.flush()
        return bool(kept)

    def _repaired(self, line: bytes, kept: list[bytes], read_at: float) -> None:
        """Take what can be read of a line that is no clean frame."""
        for piece in pieces(line):
            if piece.frame is None:
                kept.append(self._text(piece.data))
                continue
            self._frame(piece.frame, piece.data, read_at, is_quoted=piece.follows_text)
            kept.append(piece.data + b"\n")
            if self._result_is_new:
                self._note_result_line(len(kept))

    def _note_result_line(self, kept: int) -> None:
        self._result_is_new = False
        self.result_line = self._transcript.last_line + kept

    def _frame(self, frame: Frame, line: bytes, read_at: float, *, is_quoted: bool = False) -> None:
        # What stands behind other text counts, because the CLI may have printed it there; but it stops nobody.
        if not is_quoted and (detection := self._detector.stdout(frame)):
            self._tell_error(detection, line[:EVIDENCE_LINE_BYTES].removesuffix(b"\n"), read_at)
        run_stats = self.run_stats
        had_init, model_frames, result = run_stats.has_init, run_stats.model_frames, run_stats.result
        run_stats.add(frame)
        if frame.type == "user" and any(sign in line for sign in _SIGNS_OF_SIGKILL):
            self.lost_a_tool = True
        if frame.type == "result":
            self._result_is_new = run_stats.result is not result
            text = frame.result_text or ""
            self.unknown_session |= cli_command.missing_session(text)
            self.unreadable_session |= not run_stats.has_init and cannot_resume(text)
        if run_stats.model_frames > model_frames:
            self._model_seen(Sign.MODEL, read_at)
        elif run_stats.has_init and not had_init:
            self._on_sign(Sign.INIT, read_at)
        elif frame.began_task_id is not None:
            self._on_sign(Sign.TASK, read_at)
        else:
            self._on_sign(Sign.OTHER, read_at)

    def _partial(self, line: bytes, read_at: float) -> None:
        partial = decode_partial(line)
        self.run_stats.answer.partial(partial)
        begins = partial is not None and partial.event.type == "message_start"
        self._model_seen(Sign.MODEL if begins else Sign.STREAM, read_at)

    def _model_seen(self, sign: Sign, read_at: float) -> None:
        if (sign, read_at) != self._model_told:  # else it is one of many frames that came together
            self._model_told = sign, read_at
            self._on_sign(sign, read_at)

    def _tell_error(self, detection: Detection, line: bytes, read_at: float) -> None:
        self._model_told = None  # what the model says after it is news
        self._on_error(detection, line, read_at)

    def _text(self, text: bytes) -> bytes:
        """Put what is no frame into one."""
        return _own_frame(subtype="text", text=self._redactor.redact(text).decode(errors="replace"))

    def _cut(self, line: CutLine) -> bytes:
        """Tell of a line that was too long."""
        self._has_cut_frame = True
        head = self._redactor.redact(line[:TRUNCATED_HEAD_BYTES], truncated=True).decode(errors="replace")
        return _own_frame(subtype="frame_too_long", bytes=len(line) + line.dropped_bytes, head=head)

    # -- both

    def unfinished(self, channel: Channel, data: bytes, read_at: float) -> None:
        """Look at a line that the child has left unfinished: what it says must not wait for a newline."""
        if channel is Channel.STDERR:
            detection = self._detector.stderr(data, finished=False)
        else:
            frame = read(data) if data.rstrip().endswith(b"}") else None
            detection = self._detector.stdout(frame) if frame is not None else None
        if detection is not None and detection.is_evidence:
            self._tell_error(detection, data, read_at)


def _own_frame(**fields: object) -> bytes:
    return msgspec.json.encode({"type": "agent_runtime", **fields}) + b"\n"
