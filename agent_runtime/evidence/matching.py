"""What a rule about API errors can ask for, and what it looks at."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.errors import ErrorClass  # noqa: TC001 - msgspec looks at annotations
from agent_runtime.evidence.error_bodies import is_about_a_field
from agent_runtime.evidence.phrases import ABOUT_CONTENT, ADVERBS, TRAILERS, Phrases

if TYPE_CHECKING:
    from collections.abc import Collection

ALL_VERSIONS = "1.0.128 to 2.1.332"

_SAID_LENGTH = 1000
_QUOTED = re.compile(r'"[^"]*"|`[^`]*`|\u201c[^\u201d]*\u201d|(?<!\w)\'[^\']*\'(?!\w)')


class ApiError(msgspec.Struct, frozen=True):
    """
    One API error as the CLI reported it.

    Attributes:
        status: The HTTP status; None: there was no answer, or the report does not say.
        type: The error type in the body of the answer.
        code: A finer code in that body.
        word: The CLI's word for it (``error`` of a frame).
        detail: The CLI's finer word (``api_error`` of a frame).
        text: What the API or the CLI says about it.
        message: What the body of the answer says, where that is known.
        is_whole: The body was read to its end.
    """

    status: int | None = None
    type: str | None = None
    code: str | None = None
    word: str | None = None
    detail: str | None = None
    text: str = ""
    message: str | None = None
    is_whole: bool = False


class Reading:
    """
    The texts of an error, as rules look at them; all in lower case.

    What is *said* is said in the API's or the CLI's own words: without what they quote, because that may be anything
    the request holds, and without what a gateway adds.

    Attributes:
        text: Everything, by the API and by the CLI.
        sentences: The CLI's remarks in it.
        is_about_a_field: The message is about the request's form.
    """

    def __init__(self, error: ApiError) -> None:
        message = error.text if error.message is None else error.message
        self.text = error.text.lower()
        self.sentences = _sentences(self.text)
        self.is_about_a_field = is_about_a_field(message)
        self._message = message
        self._own_text = error.text
        self._found: dict[tuple[int, bool], bool] = {}

    @cached_property
    def _is_plain(self) -> bool:
        lowered = self._message.lower()
        return not self.is_about_a_field and not any(mark in lowered for mark in ABOUT_CONTENT)

    @cached_property
    def _api_said(self) -> str:
        """What the API says; nothing where it is about the request's form or content."""
        return _plainly(self._message) if self._is_plain else ""

    @cached_property
    def _said(self) -> str:
        """The same, and the CLI's words."""
        if not self._is_plain or self._own_text == self._message:
            return self._api_said
        return f"{self._api_said} \u00b7 {_plainly(self._own_text)}"

    def holds(self, phrases: Phrases, *, by_the_api: bool = False) -> bool:
        """Tell whether one of *phrases* is said; several rules ask for the same ones."""
        key = (id(phrases), by_the_api)
        if key not in self._found:
            self._found[key] = _holds(self._api_said if by_the_api else self._said, phrases)
        return self._found[key]


class Rule(msgspec.Struct, frozen=True):
    """
    One way to recognise what happened; everything it names must hold, an empty criterion always does.

    Attributes:
        statuses: HTTP statuses; an empty range stands for none in particular.
        without_status: Only where no status is known.
        types: The error types of the body; ``None`` in it stands for an unknown one.
        codes: The type or the code of the body is one of these.
        words: The CLI's words; ``None`` in it stands for a report without one.
        details: The CLI's finer words.
        of_a_field: Only where the message is about the request's form.
        with_message: Only where the body of the answer is known.
        phrases: One of these; each is a set of words that must all be in the text (lower case).
        said: One of these is said plainly, by the API or by the CLI: see :class:`Reading`.
        api_said: One of these is said by the API itself.
        unless: None of these is said.
        begins: One of the text's sentences begins with one of these (lower case).
        is_evidence: It is about the token or its account: the attempt is to be stopped now.
        condemns: It may count against the generation: it is the API's own word, not only the CLI's.
        blocks: It is not the credential that is refused but its account that is blocked.
        advice: What the caller is told instead of the sentence of the class.
    """

    id: str
    error_class: ErrorClass
    statuses: range | frozenset[int] = range(0)
    without_status: bool = False
    types: frozenset[str | None] = frozenset()
    codes: frozenset[str] = frozenset()
    words: frozenset[str | None] = frozenset()
    details: frozenset[str] = frozenset()
    of_a_field: bool = False
    with_message: bool = False
    phrases: Phrases = ()
    said: Phrases = ()
    api_said: Phrases = ()
    unless: Phrases = ()
    begins: tuple[str, ...] = ()
    is_evidence: bool = False
    condemns: bool = False
    blocks: bool = False
    advice: str | None = None
    seen_on: str = ALL_VERSIONS
    source: str = "tests/recorded"

    def fits(self, error: ApiError, reading: Reading) -> bool:
        """Tell whether everything this rule names holds."""
        return (
            (not self.statuses or error.status in self.statuses)
            and (not self.without_status or error.status is None)
            and (not self.types or error.type in self.types)
            and (not self.codes or error.type in self.codes or error.code in self.codes)
            and (not self.words or error.word in self.words)
            and (not self.details or error.detail in self.details)
            and (not self.of_a_field or reading.is_about_a_field)
            and (not self.with_message or error.message is not None)
            and (not self.phrases or _holds(reading.text, self.phrases))
            and (not self.said or reading.holds(self.said))
            and (not self.api_said or reading.holds(self.api_said, by_the_api=True))
            and (not self.unless or not reading.holds(self.unless))
            and (not self.begins or any(sentence.startswith(self.begins) for sentence in reading.sentences))
        )


def _holds(text: str, phrases: Phrases) -> bool:
    for phrase in phrases:
        if isinstance(phrase, re.Pattern):
            if phrase.search(text) is not None:
                return True
        elif phrase[0] in text and all(word in text for word in phrase):
            return True
    return False


def _plainly(message: str) -> str:
    """Leave out what is quoted, what a gateway adds behind, and the words that may stand in the middle of a phrase."""
    said = message[:_SAID_LENGTH].lower().replace("\u2019", "'")
    for trailer in TRAILERS:
        said = said.partition(trailer)[0]
    said = " ".join(_QUOTED.sub(" ", said).split())
    for adverb in ADVERBS:
        said = said.replace(adverb, " ")
    return said


def _sentences(lowered: str) -> tuple[str, ...]:
    """Split the CLI's text where it puts a dot between two remarks; its own lead-in is no part of a sentence."""
    found = [piece.strip() for piece in lowered.replace(" \u2219 ", " \u00b7 ").split(" \u00b7 ")]
    found += [piece.removeprefix("failed to authenticate.").strip() for piece in found if piece.startswith("failed")]
    found += [piece.removeprefix("api error:").strip() for piece in found if piece.startswith("api error:")]
    return tuple(found)


_MODEL_MESSAGE_LENGTH = 1000
_MODEL_LIST = re.compile(r"\[[^\]]*\]")  # the models a key may use are not the one it was refused
_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._:/@-]*")
_MODEL_AFTER = re.compile(
    r"(?:to access|models?|\u6a21\u578b|endpoints found for)[ :=]*[`'\"]?([a-z0-9][a-z0-9._:/@-]*)"
)
_MODEL_FAMILIES = frozenset({"haiku", "sonnet", "opus", "fable", "mythos"})
_MODEL_SUFFIX = re.compile(r"(?:-\d{8}|@\d{8}|-latest|-v\d+(?::\d+)?|:[a-z]+)+$")


def names_another_model(message: str, models: Collection[str]) -> bool | None:
    """
    Tell whether *message* refuses another model than *models*, the run's own; None: it names none that can be told.

    A date, a variant and a provider are no part of a name. Where none is named, the family that is spoken of decides.
    """
    if not models:
        return None
    said = _MODEL_LIST.sub(" ", message[:_MODEL_MESSAGE_LENGTH].lower())
    words = _MODEL_NAME.findall(said)
    named = {word for word in words if word.rpartition("/")[2].rpartition("anthropic.")[2].startswith("claude-")}
    named |= {name for name in _MODEL_AFTER.findall(said) if any(character.isdigit() for character in name)}
    if named:
        return {_plain_model_name(name) for name in named}.isdisjoint(map(_plain_model_name, models))
    families = _MODEL_FAMILIES.intersection(words)
    return not any(family in model for family in families for model in models) if families else None


def _plain_model_name(name: str) -> str:
    name = name.lower().partition("[")[0].rpartition("/")[2].rpartition("anthropic.")[2].rstrip(".:")
    return _MODEL_SUFFIX.sub("", name)
