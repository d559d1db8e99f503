"""
Find what an executable of the CLI says in failures, and its variables for credentials, without running it.

Up to 2.1.30 the executable is minified JavaScript, later ones are native with the same JavaScript inside. Both are
searched as bytes. What can be enumerated comes from the CLI's own schemas of its output (``error``, ``api_error``, a
result's ``subtype`` and ``terminal_reason``); a sentence is the ``content`` beside such a value. Of a sentence that the
code puts together, names that stand for one constant are filled in, and everything else becomes "…".
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tests.support import cli_expressions
from tests.support.cli_expressions import end_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OBJECT_BYTES = 4000
"""The greatest length of an object, function or expression that is read."""

FAR_BYTES = 32_000_000
"""How far from its use a constant or a function is looked for."""

DEFINITIONS_OF_A_CONSTANT = 4
"""A name with more definitions belongs to inner scopes, and could be any of them."""

LETTERS_OF_INNER_NAMES = 2
BRACES_TRIED = 40

_VALUES = re.compile(rb'\[(?:"[a-z][a-z_0-9]{1,60}",){1,99}"[a-z][a-z_0-9]{1,60}"\]')
_BESIDE_A_SENTENCE = re.compile(rb'[{,](error|apiError|api_error):"([a-z][a-z_0-9]{2,60})"')
_SUBTYPE = re.compile(rb'subtype:"(error_[a-z_]{3,60})"')
_TERMINAL = re.compile(rb'(?:terminal_reason|terminalReason):"([a-z][a-z_]{2,60})"')
_VARIABLES = [
    re.compile(prefix + rb"(?:_[A-Z0-9]{1,40}){1,10}(?![\w$])") for prefix in (b"ANTHROPIC", b"CLAUDE", b"CCR")
]
_STRING_DEFINITION = re.compile(rb"=[\"'`]")
_FUNCTION = re.compile(rb"function ([A-Za-z_$][\w$]{0,11})\(")
_NAME_BEFORE = re.compile(rb"(?:^|[^\w$.])([A-Za-z_$][\w$]*)$")
_RETURN = re.compile(r"\breturn(?=[ (\"'`])")
_PLAIN = re.compile('"([a-z][a-z_0-9]{1,60})"$')
_WORDS = re.compile("[A-Za-z]{2,}")

_CREDENTIAL_WORDS = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSPHRASE|AUTH|CREDENTIALS?|CREDS?|OAUTH|BEARER|IDENTITY|PROFILE|KEY|CERT)(?:_|$)"
)
_SERVER_WORDS = re.compile(r"_(?:URL|URI|HOST|SOCKET|PROXY|ENDPOINT|GATEWAY|SERVER|API)$|_URL_|^CLAUDE_CODE_USE_")
_OF_SOMETHING_ELSE = re.compile(r"_(?:MS|THRESHOLD|ENABLED|DISABLED)$")


@dataclass(frozen=True, slots=True, order=True)
class Sentence:
    """
    A sentence that the CLI says when it gives up.

    Attributes:
        word: The value of ``error`` beside the sentence; "": there is none.
        detail: The value of ``api_error`` beside the sentence; "": there is none.
        text: The sentence; "…" stands for parts that are known only when the CLI runs.
    """

    text: str
    word: str = ""
    detail: str = ""


class Contents:
    """
    Search one executable.

    Args:
        executable: Path of the executable, or of a link to it.

    Raises:
        OSError: The executable cannot be read.
    """

    def __init__(self, executable: Path) -> None:
        with executable.resolve().open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def words(self) -> frozenset[str]:
        """All values of ``error`` in frames."""
        return self._listed_with("authentication_failed", "billing_error") | self._beside_sentences("error")

    @cached_property
    def details(self) -> frozenset[str]:
        """All values of ``api_error`` in frames."""
        listed = self._listed_with("max_output_tokens", "connection_failed")
        return listed | self._beside_sentences("apiError", "api_error")

    @cached_property
    def terminal_reasons(self) -> frozenset[str]:
        """All values of a result's ``terminal_reason``."""
        return self._listed_with("aborted_streaming", "completed") | self._named(_TERMINAL)

    @cached_property
    def subtypes(self) -> frozenset[str]:
        """All values of a result's ``subtype`` that are failures."""
        return self._listed_with("error_max_turns", "error_during_execution") | self._named(_SUBTYPE)

    @cached_property
    def variables(self) -> frozenset[str]:
        """The CLI's own names in capitals that speak of a credential or a server; not all are variables."""
        names = {
            found.group().decode()
            for pattern in _VARIABLES
            for found in pattern.finditer(self._bytes)
            if not re.match(rb"[\w$]", self._bytes[found.start() - 1 : found.start()])
        }
        return frozenset(filter(speaks_of_a_credential_or_server, names))

    @cached_property
    def sentences(self) -> frozenset[Sentence]:
        """The sentences that the CLI says beside an ``error`` or an ``api_error``."""
        return frozenset(sentence for found in self._objects.items() for sentence in self._sentences_of(*found))

    def _listed_with(self, *values: str) -> frozenset[str]:
        """Join the lists of values that have all of *values* in them."""
        wanted = {value.encode() for value in values}
        lists = (set(re.findall(rb'"([^"]+)"', found.group())) for found in _VALUES.finditer(self._bytes))
        return frozenset(value.decode() for listed in lists if wanted <= listed for value in listed)

    def _named(self, pattern: re.Pattern[bytes]) -> frozenset[str]:
        return frozenset(found[1].decode() for found in pattern.finditer(self._bytes))

    def _beside_sentences(self, *names: str) -> frozenset[str]:
        values = (_PLAIN.match(fields.get(name, "")) for fields in self._objects.values() for name in names)
        return frozenset(value.group(1) for value in values if value)

    @cached_property
    def _objects(self) -> dict[int, dict[str, str]]:
        """The fields of all objects with a ``content`` and an ``error`` or ``api_error``, by the object's position."""
        found: dict[int, dict[str, str]] = {}
        for match in _BESIDE_A_SENTENCE.finditer(self._bytes):
            start = max(0, match.start() - OBJECT_BYTES)
            before = _decoded(self._bytes[start : match.start()])
            code = before + _decoded(self._bytes[match.start() : match.start() + OBJECT_BYTES])
            opening = code.rfind("{", 0, len(before) + 1)
            for _ in range(BRACES_TRIED):
                if opening < 0:
                    break
                fields = cli_expressions.fields(code[opening:end]) if (end := end_of(code, opening)) > 0 else {}
                if match[1].decode() in fields:
                    if "content" in fields:
                        found[match.start() + opening - len(before)] = fields
                    break
                opening = code.rfind("{", 0, opening)
        return found

    @cached_property
    def _names(self) -> _Names:
        places = [match.start() for match in _BESIDE_A_SENTENCE.finditer(self._bytes)] or [0]
        return _Names(self._bytes, max(0, places[0] - FAR_BYTES), places[-1] + FAR_BYTES)

    def _sentences_of(self, position: int, fields: dict[str, str]) -> Iterator[Sentence]:
        word, detail = (
            next((found.group(1) for name in names if (found := _PLAIN.match(fields.get(name, "")))), "")
            for names in (("error",), ("apiError", "api_error"))
        )
        self._names.position = position
        for text in cli_expressions.texts(fields["content"], self._names.constant, self._names.returned):
            if len(_WORDS.findall(text.replace("API Error", ""))) >= 3:
                yield Sentence(" ".join("".join(filter(str.isprintable, text)).split()), word, detail)


class _Names:
    """
    Look up the definitions of names of the outermost scope.

    Such a name means the same in all of the bundle, and is defined once or a few times; a name of inner scopes is
    defined in many places. Of a few definitions the nearest counts.

    Attributes:
        position: Where the names are used.

    Args:
        first: Where the part of *code* begins that is searched for definitions.
        last: Where that part ends.
    """

    def __init__(self, code: mmap.mmap, first: int, last: int) -> None:
        self._code = code
        self._strings = _index(_STRING_DEFINITION, code, first, last)
        self._functions = _index(_FUNCTION, code, first, last)
        self.position = first

    def constant(self, name: str) -> str | None:
        """Look up the sentence that *name* is defined as."""
        places = self._nearest_first(self._strings, name)
        if len(places) > DEFINITIONS_OF_A_CONSTANT:
            return None
        values = (_expression(self._text(place), 0) for place in places)
        return next((value for value in values if value is not None and " " in value), None)

    def returned(self, name: str) -> list[str]:
        """Look up the expressions that the function *name* returns."""
        places = self._nearest_first(self._functions, name)
        is_plain = len(places) == 1 or len(name) > LETTERS_OF_INNER_NAMES
        return list(self._returned_at(places[0])) if places and is_plain else []

    def _nearest_first(self, index: dict[bytes, list[int]], name: str) -> list[int]:
        return sorted(index.get(name.encode(), []), key=lambda place: abs(place - self.position))

    def _returned_at(self, place: int) -> Iterator[str]:
        code = self._text(place)
        body_start = end_of(code, 0)
        if body_start >= 0 and code.startswith("{", body_start):
            body = code[body_start : end_of(code, body_start)]
            for found in _RETURN.finditer(body):
                if value := _expression(body, found.end()):
                    yield value

    def _text(self, place: int) -> str:
        return _decoded(self._code[place : place + OBJECT_BYTES])


def _index(pattern: re.Pattern[bytes], code: mmap.mmap, first: int, last: int) -> dict[bytes, list[int]]:
    """Find the positions at which the definitions of each name begin."""
    places: dict[bytes, list[int]] = {}
    for found in pattern.finditer(code, first, last):
        if name := _NAME_BEFORE.search(
            code[max(0, found.start() - 12) : found.start()] if not found.groups() else found[1]
        ):
            places.setdefault(name[1], []).append(found.end() - 1)
    return places


def _decoded(code: bytes) -> str:
    return code.decode(errors="replace")


def _expression(code: str, start: int) -> str | None:
    """Read the expression that begins at *start*."""
    index, last = start, start + OBJECT_BYTES
    while 0 <= index < min(last, len(code)):
        if code[index] in ",;})]":
            return code[start:index].strip() or None
        index = end_of(code[:last], index) if code[index] in "\"'`([{" else index + 1
    return None


def speaks_of_a_credential_or_server(name: str) -> bool:
    """Whether the words of a variable's name speak of a credential or a server."""
    speaks = _CREDENTIAL_WORDS.search(name) or _SERVER_WORDS.search(name)
    return bool(speaks) and not _OF_SOMETHING_ELSE.search(name)
