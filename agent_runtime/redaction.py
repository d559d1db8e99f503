r"""
Take every token in use out of what leaves this process: transcripts, records, answers, log records.

Each token is replaced by ``[token:FINGERPRINT]``, which needs no escaping, so a JSON line stays one.

What is found: the exact value, and the value with any of its characters written as JSON escapes (``\u0073``, ``\/``,
hex digits of either case), also where JSON was put into JSON (``\\u0073``, ``\\\\u002d``, ``\u005cu0073``), up to
:data:`NESTING_LEVELS` deep. Backslashes before and inside a value count as escapes, however many there are: rather one
replaced too many than one too few.

What cannot be found, and is not promised: a value shorter than :data:`SHORTEST` characters, which cannot be told from
ordinary text; a value that was encoded (base64, hex, URL quoting), reversed, or spread over several lines or frames,
which an agent that can read its own environment can always do.

A line without a token costs one :meth:`bytes.find` over it for each beginning that tokens share, and one for escapes.
Regular expressions run only where an escaped token was found, and none backtracks: 16 MiB of anything take time in
proportion.
"""

from __future__ import annotations

import logging
import re
import threading
from array import array
from bisect import bisect_right
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_runtime.tokens import Token

SHORTEST = 8
"""Characters a value must have to be replaced."""

NESTING_LEVELS = 8
"""How often JSON may have been put into JSON before an escaped value is no longer found."""

_LONGEST_PREFIX = 32
_HEAD_BEYOND_PREFIX = 8
# Bytes that stand for one character: 133 where only it is escaped at each of 8 levels, 216 where all is at 3 levels.
_WIDEST_ESCAPE = 256
_WINDOW_BYTES = 64 << 10
# A run of backslashes is taken whole and given back never: linear.
_BACKSLASHES = re.compile(rb"\\++")
_ESCAPES = re.compile(rb"\\++(?:u([0-9a-fA-F]{4}))?+")
# Where the escape of a printable ASCII character can be seen, whatever stands before the "u".
_SIGNS_OF_ESCAPES = (b"u002", b"u003", b"u004", b"u005", b"u006", b"u007")


class _Needle(NamedTuple):
    """One token as it is looked for, and what it is replaced by."""

    value: bytes
    mark: bytes


class _Span(NamedTuple):
    """Where in a line a token was found."""

    start: int
    end: int
    mark: bytes


class _Group:
    """
    Needles that begin with the same bytes, found by one search for these.

    A false hit costs one slice and one look-up, however many needles there are: a line may repeat the beginning that
    all of them share a million times.
    """

    def __init__(self, needles: list[_Needle]) -> None:
        values = [needle.value for needle in needles]
        shortest = min(map(len, values))
        self.prefix = _common_prefix(min(values), max(values))[:_LONGEST_PREFIX]
        self._head_bytes = min(shortest, len(self.prefix) + _HEAD_BEYOND_PREFIX)
        self._by_head: dict[bytes, list[_Needle]] = {}
        for needle in sorted(needles, key=lambda needle: len(needle.value), reverse=True):
            self._by_head.setdefault(needle.value[: self._head_bytes], []).append(needle)

    def spans(self, data: bytes) -> Iterable[_Span]:
        """Yield where a needle stands in *data*; of two that begin at the same place, the longer one."""
        at = data.find(self.prefix)
        while at >= 0:
            step = 1
            for needle in self._by_head.get(data[at : at + self._head_bytes], ()):
                if data.startswith(needle.value, at):
                    step = len(needle.value)
                    yield _Span(at, at + step, needle.mark)
                    break
            at = data.find(self.prefix, at + step)


class _Needles:
    """All tokens in use; never changed, replaced by a new one when a token is added."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        literal, plain = set(), set()
        for token in tokens:
            mark = f"[token:{token.fingerprint}]".encode()
            value = token.secret.encode("utf-8", "surrogatepass")
            # As JSON a backslash is two: of one at the end, half an escape would remain.
            literal.add(_Needle(value.rstrip(b"\\"), mark))
            # What is left of the value when all escapes are undone: non-ASCII as UTF-8, or as the escapes left it.
            plain.add(_Needle(value.replace(b"\\", b""), mark))
            plain.add(_Needle(token.secret.encode("latin-1", "replace").replace(b"\\", b""), mark))
        self.literal = _grouped(literal)
        self.plain = _grouped(plain)
        self.longest = max((len(needle.value) for needle in literal | plain), default=0)
        self.values = sorted({needle.value for needle in literal | plain}, key=len, reverse=True)
        secrets = "".join(token.secret for token in tokens)
        self._escapes = tuple(b"\\" + char.encode() for char in '/"\\' if char in secrets)
        if not secrets.isascii():
            self._escapes = (b"\\",)
        self._signs = (*(group.prefix for group in self.literal), *self._escapes, b"\\u00") if tokens else ()

    def may_be_in(self, line: bytes) -> bool:
        """Whether *line* needs a closer look; what nearly every line is asked, and nothing else."""
        for sign in self._signs:  # noqa: SIM110 - any() with a generator takes three times as long for a short line
            # From the end: bytes.find takes twice as long for what is not there (CPython 3.11, find and rfind measured
            # over 256 KB of frames: 134 and 60 microseconds for the escape, 52 and 11 for the beginning of a token).
            if line.rfind(sign) >= 0:
                return True
        return False

    def may_be_escaped_in(self, line: bytes) -> bool:
        """Whether *line* has an escape that one of the tokens could be written with."""
        return b"\\" in line and any(sign in line for sign in (*self._escapes, *_SIGNS_OF_ESCAPES))


def _common_prefix(one: bytes, other: bytes) -> bytes:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _grouped(needles: Iterable[_Needle]) -> tuple[_Group, ...]:
    by_beginning: dict[bytes, list[_Needle]] = {}
    for needle in needles:
        if len(needle.value) >= SHORTEST:
            by_beginning.setdefault(needle.value[:SHORTEST], []).append(needle)
    return tuple(_Group(group) for group in by_beginning.values())


class Redactor:
    """
    Replace every token in use by its fingerprint.

    Tokens may be added from any thread while others redact; a redaction that has begun goes on with the tokens it began
    with.
    """

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._tokens: dict[str, Token] = {}
        self._adding = threading.Lock()
        self._needles = _Needles(())
        for token in tokens:
            self.add(token)

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._tokens)} tokens>"

    def add(self, token: Token) -> None:
        """Redact *token* from now on; adding it again changes nothing."""
        with self._adding:
            if len(token.secret) < SHORTEST or token.secret in self._tokens:
                return
            self._tokens[token.secret] = token
            self._needles = _Needles(tuple(self._tokens.values()))

    def redact(self, line: bytes, *, truncated: bool = False) -> bytes:
        """
        Replace every token in a line; a line without any comes back as the same object.

        Args:
            line: One complete line: a token that goes on in the next chunk could not be found.
            truncated: The line's end was dropped: what may be the first part of a token there is cut off too.
        """
        needles = self._needles
        if needles.may_be_in(line):
            spans = [span for group in needles.literal for span in group.spans(line)]
            if spans:
                line = _replaced(line, spans)
            if needles.may_be_escaped_in(line) and _any_in(_unescaped(line), needles.plain):
                line = _replaced_escaped(line, needles)
        return _without_torn_token(line, needles) if truncated and needles.values else line

    def redact_joined(self, lines: bytes) -> bytes:
        """Do the same for several complete lines with their newlines, which cost no more than one long line."""
        if not self._needles.may_be_in(lines):
            return lines
        return b"".join(self.redact(line[:-1]) + b"\n" for line in BytesIO(lines))

    def redact_text(self, text: str) -> str:
        """Do the same for text; text without a token comes back as the same object."""
        before = text.encode("utf-8", "surrogatepass")
        after = self.redact(before)
        return text if after is before else after.decode("utf-8", "surrogatepass")


def _any_in(data: bytes, groups: tuple[_Group, ...]) -> bool:
    return any(True for group in groups for _ in group.spans(data))


def _replaced(line: bytes, spans: list[_Span]) -> bytes:
    """Replace *spans*, which may overlap, without leaving half of an escape before one of them."""
    pieces: list[bytes] = []
    done = 0
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if span.start >= done:
            pieces += (line[done : _start_of_escape(line, span.start, done)], span.mark)
        done = max(done, span.end)
    pieces.append(line[done:])
    return b"".join(pieces)


def _start_of_escape(line: bytes, at: int, floor: int) -> int:
    """Return where the escape begins in whose middle *at* is, or *at*; never before *floor*."""
    marker = line.rfind(b"\\u", max(floor, at - 5), at)
    start = marker + 1 if marker >= 0 and _is_hex(line[marker + 2 : at]) else at
    while start > floor and line[start - 1] == 0x5C:
        start -= 1
    return at if line[start:at] == b"u" else start


def _is_hex(digits: bytes) -> bool:
    return all(digit in b"0123456789abcdefABCDEF" for digit in digits)


def _unescaped(line: bytes) -> bytes:
    r"""
    Undo escapes of all levels and drop what backslashes remain; only to see whether a token comes out.

    Works in C throughout: the codec knows ``\uXXXX`` and nothing else, and a run of backslashes halves with each pass.
    """
    for _ in range(NESTING_LEVELS):
        while b"\\\\" in line:
            line = line.replace(b"\\\\", b"\\")
        if b"\\u" not in line:
            break
        # The codec's other escape is none of JSON's.
        line = line.replace(b"\\U", b"U").decode("raw_unicode_escape", "replace").encode("latin-1", "replace")
    return line.replace(b"\\", b"")


class _Pass:
    """
    One pass of undoing escapes, and where each byte of its result came from.

    A run of backslashes becomes one; the last pass drops the runs, and what follows one counts as beginning with it.
    """

    def __init__(self, line: bytes, *, last: bool) -> None:
        # From the byte of the result at _here[i] on, bytes come from the line at _there[i] on.
        self._here, self._there = array("Q", (0,)), array("Q", (0,))
        self.undid_an_escape = False
        pieces: list[bytes] = []
        done = length = 0
        for escape in (_BACKSLASHES if last else _ESCAPES).finditer(line):
            start, end = escape.span()
            pieces.append(line[done:start])
            length += start - done
            done = end
            if last:
                self._map(length + 1, end + 1)
                continue
            digits = escape[1]
            pieces.append(chr(int(digits, 16)).encode("latin-1", "replace") if digits else b"\\")
            self.undid_an_escape |= digits is not None
            length += 1
            self._map(length, end)
        pieces.append(line[done:])
        self.result = b"".join(pieces)

    def _map(self, here: int, there: int) -> None:
        self._here.append(here)
        self._there.append(there)

    def origin(self, at: int) -> int:
        """Return where in the line the byte of the result at *at* begins."""
        i = bisect_right(self._here, at) - 1
        return self._there[i] + at - self._here[i]


class _Unescaped:
    """What :func:`_unescaped` makes of a line, with the way back to the line."""

    def __init__(self, line: bytes) -> None:
        self._passes: list[_Pass] = []
        self.plain = line
        while len(self._passes) < NESTING_LEVELS and (undone := _Pass(self.plain, last=False)).undid_an_escape:
            self._add(undone)
        self._add(_Pass(self.plain, last=True))

    def _add(self, undone: _Pass) -> None:
        self._passes.append(undone)
        self.plain = undone.result

    def origin(self, at: int) -> int:
        """Return where in the line the byte of the plain text at *at* begins."""
        for undone in reversed(self._passes):
            at = undone.origin(at)
        return at


def _replaced_escaped(line: bytes, needles: _Needles) -> bytes:
    """Replace the tokens that show when escapes are undone; the way back is kept only where there are any."""
    spans: list[_Span] = []
    overlap = needles.longest * _WIDEST_ESCAPE
    step = max(_WINDOW_BYTES, overlap)
    for at in range(0, len(line), step):
        window = line[at : at + step + overlap]
        if _any_in(_unescaped(window), needles.plain):
            unescaped = _Unescaped(window)
            for group in needles.plain:
                for start, end, mark in group.spans(unescaped.plain):
                    spans.append(_Span(at + unescaped.origin(start), at + unescaped.origin(end), mark))
    return _replaced(line, spans)


def _without_torn_token(line: bytes, needles: _Needles) -> bytes:
    """Cut off what may be the first part of a token, with escapes or without, the last of which may be torn too."""
    tail_at = max(0, len(line) - needles.longest * _WIDEST_ESCAPE)
    unescaped = _Unescaped(line[tail_at:])
    plain = unescaped.plain
    cut = len(plain)
    for torn in range(min(len(plain), 5)):
        end = len(plain) - torn
        if torn and not (plain[end] == ord("u") and _is_hex(plain[end + 1 :])):
            continue
        for value in needles.values:
            start = next((at for at in range(max(0, end - len(value)), end) if value.startswith(plain[at:end])), end)
            cut = min(cut, start) if start < end else cut
    return line[: tail_at + unescaped.origin(cut)] if cut < len(plain) else line


class RedactingFilter(logging.Filter):
    """
    Take every token out of log records: message, arguments, exception, stack, and extra attributes.

    To be added to each handler, not to a logger: a logger's filters do not see what reaches it from its children.

    Source: https://docs.python.org/3/library/logging.html#filter-objects
    """

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact *record* in place; it is always let through."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):
            # logging would print the arguments to stderr, as they are.
            message = f"{record.msg} (its arguments do not fit)"
        record.msg, record.args = message, None
        if record.exc_info and not record.exc_text:
            record.exc_text = _EXCEPTIONS.formatException(record.exc_info)
        texts = {name: value for name, value in vars(record).items() if isinstance(value, str)}
        together = "\n".join(texts.values())
        if self._redactor.redact_text(together) is together:
            return True  # as of nearly every record, and looked through once instead of a dozen times
        for name, value in texts.items():
            if (clean := self._redactor.redact_text(value)) is not value:
                setattr(record, name, clean)
                if name == "exc_text":
                    record.exc_info = None
        return True


_EXCEPTIONS = logging.Formatter()
