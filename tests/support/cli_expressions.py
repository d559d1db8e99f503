"""
List the texts that an expression of minified JavaScript can become, as far as that shows without running it.

Strings, templates, sums, alternatives (``a ? b : c``, ``a ?? b``), names and calls are understood; a part that is known
only when the code runs becomes "…". Depth, length and number of alternatives are bounded.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNKNOWN = "…"
DEPTH = 6
ALTERNATIVES = 12

_CALL = re.compile(r"([A-Za-z_$][\w$]*)\(")
_NAME = re.compile(r"[A-Za-z_$][\w$]*")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_HEX = re.compile(r"\\x([0-9A-Fa-f]{2})")
_LINE_OF_UNKNOWNS = re.compile(f"{UNKNOWN}(?:\\s*{UNKNOWN})+")


def texts(
    expression: str,
    constant: Callable[[str], str | None],
    returned: Callable[[str], list[str]],
    depth: int = DEPTH,
) -> list[str]:
    """
    List what *expression* can become.

    Args:
        constant: Looks up the expression that a name stands for; None: it is not known.
        returned: Looks up the expressions that a function of this name returns.
    """

    def inner(part: str) -> list[str]:
        return texts(part, constant, returned, depth - 1)

    expression = _without_parentheses(expression.strip())
    if depth <= 0 or not expression:
        return [UNKNOWN]
    if (branches := _branches(expression)) is not None:
        return _unique(text for branch in branches for text in inner(branch))
    if len(summands := list(_split(expression, "+"))) > 1:
        return _joined(map(inner, summands))
    if expression[0] in "\"'" and end_of(expression, 0) == len(expression):
        return [unescaped(expression[1:-1])]
    if expression[0] == "`" and end_of(expression, 0) == len(expression):
        return _joined([text] if is_text else inner(text) for is_text, text in _template(expression[1:-1]))
    if _NAME.fullmatch(expression):
        value = constant(expression)
        return [UNKNOWN] if value is None else inner(value)
    if (call := _CALL.match(expression)) and end_of(expression, call.end() - 1) == len(expression):
        return _unique(text for value in returned(call[1]) for text in inner(value)) or [UNKNOWN]
    return [UNKNOWN]


def end_of(code: str, start: int) -> int:
    """
    Find the end of the string, template or bracket that begins at *start*.

    Returns:
        The index behind it; -1: it does not end.
    """
    opening = code[start]
    if opening in "\"'":
        index = start + 1
        while index < len(code):
            if code[index] == "\\":
                index += 1
            elif code[index] == opening:
                return index + 1
            index += 1
        return -1
    closing = "`" if opening == "`" else _CLOSING[opening]
    index = start + 1
    while 0 < index < len(code):
        character = code[index]
        if character == closing:
            return index + 1
        if opening == "`":
            if character == "\\":
                index += 2
            elif code.startswith("${", index):
                index = end_of(code, index + 1)
            else:
                index += 1
        elif character in "\"'`([{":
            index = end_of(code, index)
        else:
            index += 1
    return -1


def fields(code: str) -> dict[str, str]:
    """Return the fields of the object ``{a:…,b:…}``, each with its expression; other members are left out."""
    found = {}
    for field in _split(code[1:-1], ","):
        name, colon, value = field.partition(":")
        if colon and _NAME.fullmatch(name):
            found[name] = value
    return found


def unescaped(text: str) -> str:
    """Replace the escapes in a string by the characters that they stand for."""
    text = _HEX.sub(lambda found: chr(int(found[1], 16)), text)
    try:
        return str(
            json.loads('"' + re.sub(r'\\([^"\\/bfnrtu])', r"\1", text).replace('\\"', '"').replace('"', '\\"') + '"')
        )
    except ValueError:
        return text


def _split(code: str, separator: str) -> Iterator[str]:
    """Split where *separator* stands outside of strings and brackets."""
    start = index = 0
    while index < len(code):
        if code[index] in "\"'`([{":
            index = end_of(code, index)
            if index < 0:
                break
        elif code.startswith(separator, index):
            yield code[start:index]
            index += len(separator)
            start = index
        else:
            index += 1
    yield code[start:]


def _branches(code: str) -> list[str] | None:
    """Return the alternatives of ``a ? b : c``, ``a ?? b`` or ``a || b``; None for any other expression."""
    asked = re.sub(r"\?\.(?=[A-Za-z_$\[(])", "\0.", code)
    _question, *rest = _split(asked.replace("??", "\1\1"), "?")
    if rest:
        depth, following = 0, "?".join(rest)
        for index, part in enumerate(pieces := list(_split(following, ":"))):
            depth += sum(1 for _ in _split(part, "?")) - 1
            if depth == index:
                ends = [":".join(pieces[: index + 1]), ":".join(pieces[index + 1 :])]
                return [end.replace("\1\1", "??").replace("\0.", "?.") for end in ends]
        return None
    for operator in ("??", "||"):
        if len(parts := list(_split(code, operator))) > 1:
            return parts
    return None


def _template(inside: str) -> Iterator[tuple[bool, str]]:
    start = index = 0
    while index < len(inside):
        if inside.startswith("${", index):
            yield True, unescaped(inside[start:index])
            end = end_of(inside, index + 1)
            if end < 0:
                return
            yield False, inside[index + 2 : end - 1]
            start = index = end
        else:
            index += 2 if inside[index] == "\\" else 1
    yield True, unescaped(inside[start:])


def _without_parentheses(code: str) -> str:
    while code.startswith("(") and end_of(code, 0) == len(code):
        code = code[1:-1].strip()
    return code


def _joined(parts: Iterator[list[str]]) -> list[str]:
    choices = [part if len(part) <= ALTERNATIVES else [UNKNOWN] for part in parts]
    combined = itertools.islice(itertools.product(*choices), ALTERNATIVES)
    return _unique(_LINE_OF_UNKNOWNS.sub(UNKNOWN, "".join(combination)) for combination in combined)


def _unique(found: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(found))[: 4 * ALTERNATIVES]
