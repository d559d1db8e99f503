"""
Recover the frames in lines of stdout that are not exactly one clean frame, and rewrite them as JSON for every parser.

An unexpected detail must not make the output of a CLI version unreadable. A tool can also write anything between the
CLI's own frames (``/proc/PID/fd/1``): control sequences, half a line, another object. Answers and streams pass these
lines on, and must always be valid JSON.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

from agent_runtime.claude.frames import MOST_LEVELS, Frame, decode, is_utf8, plain

TOO_DEEP = "(nested too deep)"

_MOST_TRIES = 32
_MOST_READ = 20 << 20
"""Limits for the braces of one line that turn out to begin no object: their number, and the characters read there."""

_CLEANED_BYTES = 1 << 20
"""Up to this length, a line without a readable frame is read once more without its control sequences."""

_LONGEST_INTEGER = 300
"""The most digits of an integer: longer ones are beyond a double's range, and some parsers refuse them."""

_MOST_FAULTS = 64
"""
How many values of an unsuitable type are removed from a frame before nothing of it is used.

After the first half of them, the whole top-level field around the value is removed.
"""

_STEP = r"\.(\w+)|\[(\d+)\]"
"""A part of the path in an error of msgspec, such as ``$.message.content[1].id``; ``[...]`` is a value of a dict."""

_SURROGATES = "[\ud800-\udfff]"
_UNREADABLE = "\ufffd"


class Piece(msgspec.Struct, frozen=True):
    """
    A part of a line.

    Attributes:
        frame: None: the part is text.
        data: The frame as JSON, or the text, without a newline.
        follows_text: The line has text before the frame, so the frame may be a quotation.
    """

    frame: Frame | None
    data: bytes
    follows_text: bool = False


def split_line(line: bytes) -> list[Piece]:
    """Split a line into frames and the text around them. Never raises, whatever the bytes."""
    line = line.removesuffix(b"\n")
    text = line.decode("utf-8", "replace")
    found = _pieces(text)
    if not found and len(line) <= _CLEANED_BYTES and not text.isprintable():
        found = _pieces(plain(line))
    return found or [Piece(None, line)]


def read_frame(line: bytes) -> Frame | None:
    """Return the frame at the beginning of a line; None: there is none."""
    if is_utf8(line) and (frame := decode(line)) is not None:
        return frame
    return split_line(line)[0].frame


def _pieces(text: str) -> list[Piece]:
    """Split a line into frames and the text around them; empty: it has no frame."""
    found: list[Piece] = []
    begin = tries = read_in_vain = at = 0
    follows_text = False
    while tries < _MOST_TRIES and read_in_vain < _MOST_READ and (at := text.find("{", at)) >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            tries += 1
            read_in_vain += error.pos - at if isinstance(error, json.JSONDecodeError) else 0
            at += 1
            continue
        is_frame = isinstance(value.get("type"), str) or _is_noise(text[:at] + text[end:])
        if is_frame and (rewritten := _rewritten(value)):
            if not _is_noise(text[begin:at]):
                follows_text = True
                found.append(Piece(None, text[begin:at].encode()))
            found.append(Piece(*rewritten, follows_text))
            begin = end
        at = end
    if found and not _is_noise(text[begin:]):
        found.append(Piece(None, text[begin:].encode()))
    return found


def _is_noise(text: str) -> bool:
    """Whether the text is only blanks, control sequences and invalid bytes."""
    return not text or (len(text) <= _CLEANED_BYTES and not plain(text.encode()).replace(_UNREADABLE, "").strip())


def _rewritten(value: dict[str, Any]) -> tuple[Frame, bytes] | None:
    """Rewrite an object as a frame, decoded and as JSON; None if it is nested too deep."""
    try:
        data = _strict(value)
        frame = decode(data)
        if frame is None:
            value = _bounded(value, MOST_LEVELS - 1)
            data = _strict(value)
            frame = decode(data) or _fitting_frame(json.loads(data))
    except (ValueError, RecursionError):
        return None
    return frame, data


def _strict(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub(_SURROGATES, _UNREADABLE, text).encode()


def _bounded(value: Any, levels: int) -> Any:
    """Return a copy of *value* in which values nested deeper than *levels* are replaced."""
    if not isinstance(value, dict | list):
        return value
    if levels == 0:
        return TOO_DEEP
    if isinstance(value, dict):
        return {name: _bounded(one, levels - 1) for name, one in value.items()}
    return [_bounded(one, levels - 1) for one in value]


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else None


def _number(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


_DECODER = json.JSONDecoder(strict=False, parse_int=_integer, parse_float=_number, parse_constant=lambda _name: None)
"""Accepts control characters in strings; numbers that JSON or most parsers do not accept become null."""


def _fitting_frame(found: dict[str, Any]) -> Frame:
    """Decode an object without its values of an unsuitable type; strings can become numbers and booleans."""
    for number in range(_MOST_FAULTS):
        try:
            return msgspec.json.decode(json.dumps(found), type=Frame, strict=False)
        except msgspec.ValidationError as error:
            path = [int(index) if index else name for name, index in re.findall(_STEP, str(error).rpartition("`$")[2])]
            last = len(path) - 1 if number < _MOST_FAULTS // 2 else 0
            within: Any = found
            for step in path[:last]:
                within = within[step]
            del within[path[last]]
    return Frame()
