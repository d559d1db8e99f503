r"""
Remove every token in use from everything that leaves this process: transcripts, records, answers, log records.

Each token is replaced by ``[token:FINGERPRINT]``, which needs no escaping, so a line of JSON stays valid.

Found are: the exact value, the value as a JSON encoder writes it, and any text that looks like a key of the API
(``sk-ant-KIND-…``), whether or not it was ever loaded here. No encoder escapes ``[A-Za-z0-9_-]``, so
a token of these characters looks the same at any depth of JSON inside JSON strings.

Not found, and not promised: a value shorter than :data:`SHORTEST` characters, which looks like
ordinary text; a value encoded on purpose (base64, hex, escapes that no encoder writes), reversed, or
spread over several lines or frames, which an agent that can read its own environment can always do.

Tokens are grouped by their first bytes: a line without a token costs one search for each group, in linear time.
"""

from __future__ import annotations

import json
import re
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from io import BytesIO

import msgspec

from agent_runtime.model.tokens import Token

SHORTEST = 8
"""How many characters a value must have to be replaced."""

MOST_VALUES = 1024
"""How many values are redacted, the latest first; a token in use is added again at each use."""

_FAMILY = b"sk-ant-"
_OF_THE_FAMILY = re.compile(rb"sk-ant-[a-z0-9]{1,16}-[A-Za-z0-9_-]{8,4096}")
"""Any text that looks like a key or token of the API, also one that was never loaded here."""

_TORN_FAMILY = re.compile(
    rb"(?:s(?:k(?:-(?:a(?:n(?:t)?)?)?)?)?|sk-ant-(?:[a-z0-9]{0,16}|[a-z0-9]{1,16}-[A-Za-z0-9_-]{0,4096}))\Z"
)
"""The first part of such a text, or a whole one that may go on, at the end of a line."""

_TORN_FAMILY_BYTES = 4128
_LEAST_TORN = 4
"""The fewest characters at the end of a cut line that count as the first part of a token; fewer may end any word."""

_BACKSLASH = 0x5C


class _Span(msgspec.Struct, frozen=True, order=True):
    """Where in a line a token was found."""

    start: int
    end: int
    mark: bytes


class _Group:
    """
    Values that begin with the same bytes, found by one search for these.

    A line may repeat that beginning a million times, so the values at a place are found by bisection. All values that
    a text begins with are found from the last value that is not behind it in order: if it does not begin the text
    itself, the longest value that begins it may, and so on.
    """

    def __init__(self, marks: dict[bytes, bytes]) -> None:
        self._marks = marks
        self._values = sorted(marks)
        self.beginning = self._values[0][:SHORTEST]
        self._longest = max(map(len, marks))
        self._beginning_each: dict[bytes, bytes] = {}
        chain = [b""]
        for value in self._values:
            while not value.startswith(chain[-1]):
                chain.pop()
            self._beginning_each[value] = chain[-1]
            chain.append(value)

    def spans(self, data: bytes) -> Iterable[_Span]:
        """Yield each place of a value in *data*; of values that begin at the same place, the longest."""
        at = data.find(self.beginning)
        while at >= 0:
            text = data[at : at + self._longest]
            before = bisect_right(self._values, text)
            value = self._values[before - 1] if before else b""
            while not text.startswith(value):
                value = self._beginning_each[value]
            if value:
                yield _Span(at, at + len(value), self._marks[value])
            at = data.find(self.beginning, at + (len(value) or 1))


class _Beginnings:
    """The redacted values, sorted, to find the first part of a value at the end of a line."""

    def __init__(self, values: Iterable[bytes]) -> None:
        self._values = sorted(values)
        self._longest = max(map(len, self._values), default=0)
        self._first_bytes = {value[0] for value in self._values}

    def start_of_torn(self, line: bytes, least: int) -> int:
        """Return where a value begins that may go on after the line, with *least* characters in it; else its end."""
        starts = range(max(0, len(line) - self._longest), len(line) - least + 1)
        return next((at for at in starts if line[at] in self._first_bytes and self._begins(line[at:])), len(line))

    def _begins(self, tail: bytes) -> bool:
        at = bisect_left(self._values, tail)
        return at < len(self._values) and self._values[at].startswith(tail)


def _forms(secret: str) -> set[bytes]:
    """Return a token as it is, and as JSON encoders write it: Python with and without ASCII escapes, PHP."""
    forms = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], secret.replace("/", "\\/")}
    return {form.encode("utf-8", "surrogatepass") for form in forms}


class Redactor:
    """
    Replace every token in use by its fingerprint.

    Tokens may be added from any thread while other threads redact; a redaction that has begun does not see them.
    """

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._tokens: OrderedDict[str, Token] = OrderedDict()
        self._adding = threading.Lock()
        self._groups: tuple[_Group, ...] = ()
        self._beginnings = _Beginnings([])
        for token in tokens:
            self.add(token)

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._tokens)} tokens>"

    def add(self, token: Token) -> None:
        """Redact *token* from now on, until :data:`MOST_VALUES` others are added; its value may be any string."""
        with self._adding:
            if len(token.secret) < SHORTEST:
                return
            if token.secret in self._tokens:
                self._tokens.move_to_end(token.secret)
                return
            self._tokens[token.secret] = token
            if len(self._tokens) > MOST_VALUES:
                self._tokens.popitem(last=False)
            marks = {
                form: f"[token:{known.fingerprint}]".encode()
                for known in self._tokens.values()
                for form in _forms(known.secret)
            }
            by_beginning: defaultdict[bytes, dict[bytes, bytes]] = defaultdict(dict)
            for value, mark in marks.items():
                by_beginning[value[:SHORTEST]][value] = mark
            self._groups = tuple(map(_Group, by_beginning.values()))
            self._beginnings = _Beginnings(marks)

    def redact(self, line: bytes, *, truncated: bool = False) -> bytes:
        """
        Replace every token in a line; a line without any comes back as the same object.

        Args:
            line: One complete line: a token that goes on in the next chunk could not be found.
            truncated: The line's end was dropped: what may be the first part of a token at the cut is dropped, too.
        """
        spans = _spans(line, self._groups)
        if truncated:
            end = _whole_until(self._beginnings.start_of_torn(line, _LEAST_TORN), spans)
            line, spans = line[:end], [span for span in spans if span.end <= end]
        return _replaced(line, spans) if spans else line

    def redact_so_far(self, text: bytes) -> tuple[bytes, bytes]:
        """
        Redact the beginning of a text that goes on; return the redacted part, and the rest, not redacted.

        The rest may be the first part of a token: the caller puts it in front of the text that follows.
        """
        spans = _spans(text, self._groups)
        torn = _TORN_FAMILY.search(text, max(0, len(text) - _TORN_FAMILY_BYTES))
        end = min(self._beginnings.start_of_torn(text, 1), torn.start() if torn else len(text))
        end = _whole_until(end, spans)
        return _replaced(text[:end], [span for span in spans if span.end <= end]), text[end:]

    def redact_joined(self, lines: bytes) -> bytes:
        """Redact several complete lines with their newlines, at the cost of one long line."""
        if not _may_be_in(lines, self._groups):
            return lines
        return b"".join(self.redact(line[:-1]) + b"\n" for line in BytesIO(lines))

    def redact_text(self, text: str) -> str:
        """Redact text; text without a token comes back as the same object."""
        before = text.encode("utf-8", "surrogatepass")
        after = self.redact(before)
        return text if after is before else after.decode("utf-8", "surrogatepass")


def _may_be_in(line: bytes, groups: tuple[_Group, ...]) -> bool:
    """Whether *line* may hold a token; the only check that nearly every line needs."""
    # From the end: bytes.find takes several times as long for what is not there (CPython 3.11, over 256 KB of frames).
    return line.rfind(_FAMILY) >= 0 or any(
        line.rfind(group.beginning) >= 0 for group in groups if not group.beginning.startswith(_FAMILY)
    )


def _spans(line: bytes, groups: tuple[_Group, ...]) -> list[_Span]:
    """Return where tokens stand in *line*; some may overlap."""
    if not _may_be_in(line, groups):
        return []
    spans = [span for group in groups for span in group.spans(line)]
    return spans + [
        _Span(found.start(), found.end(), f"[token:{Token(found[0].decode()).fingerprint}]".encode())
        for found in _OF_THE_FAMILY.finditer(line)
    ]


def _whole_until(end: int, spans: list[_Span]) -> int:
    """Return *end*, or, if that is inside a token, the token's start: else its first part would stay."""
    for span in sorted(spans, reverse=True):
        end = span.start if span.start < end < span.end else end
    return end


def _replaced(line: bytes, spans: list[_Span]) -> bytes:
    """Replace *spans*, which may overlap, with their marks; leave no half of a JSON escape before a mark."""
    pieces: list[bytes] = []
    done = 0
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if span.start >= done:
            pieces += (line[done : _start_of_escape(line, span.start, done)], span.mark)
        done = max(done, span.end)
    pieces.append(line[done:])
    return b"".join(pieces)


def _start_of_escape(line: bytes, at: int, floor: int) -> int:
    """Return where the JSON escape begins that *at* is inside of, else *at*; never less than *floor*."""
    marker = line.rfind(b"\\u", max(floor, at - 5), at)
    start = marker + 1 if marker >= 0 and all(c in b"0123456789abcdefABCDEF" for c in line[marker + 2 : at]) else at
    while start > floor and line[start - 1] == _BACKSLASH:
        start -= 1
    return at if line[start:at] == b"u" else start
