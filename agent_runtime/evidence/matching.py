"""The criteria of a rule about API errors, and the texts that they are compared with."""

from __future__ import annotations

import re
from collections.abc import Collection, Container
from collections.abc import Set as AbstractSet

import msgspec

from agent_runtime.errors import ErrorClass
from agent_runtime.evidence.api_errors import ApiError, is_about_a_field
from agent_runtime.evidence.phrases import ABOUT_CONTENT, ADVERBS, TRAILERS, Phrases
from agent_runtime.model.state import TROUBLE_BY_CLASS, TokenTrouble

_WORDS_LENGTH = 1000
_QUOTED = r'"[^"]*"|`[^`]*`|\u201c[^\u201d]*\u201d|(?<!\w)\'[^\']*\'(?!\w)'


class ErrorTexts:
    """
    The texts of an error as rules read them, in lower case and with straight apostrophes.

    Some criteria read only the *own words* of the API or the CLI. Quotations are left out, because they may hold
    anything from the request, and so are the additions of gateways.

    Attributes:
        text: The whole text of the API and the CLI.
        sentences: The CLI's remarks in the text.
        is_about_a_field: The message is about a field of the request.
        api_words: The API's own words; empty where they are about the request's form or content.
        own_words: The API's own words and the CLI's; empty where those of the API are.
    """

    def __init__(self, error: ApiError) -> None:
        message = error.text if error.message is None else error.message
        self.text = _straight(error.text)
        self.sentences = _sentences(self.text)
        self.is_about_a_field = is_about_a_field(message)
        is_about_content = self.is_about_a_field or any(mark in message.lower() for mark in ABOUT_CONTENT)
        self.api_words = self.own_words = "" if is_about_content else _plainly(message)
        if not is_about_content and message != error.text:
            self.own_words += f" \u00b7 {_plainly(error.text)}"


class Rule(msgspec.Struct, frozen=True):
    """
    One way to recognise an error: every criterion must hold, and an empty one always does.

    Attributes:
        statuses: HTTP statuses; ``None`` in it stands for an unknown one.
        types: The error types of the body; ``None`` in it stands for an unknown one.
        codes: The type or the code of the body is one of these.
        words: The CLI's word or its more specific word; ``None`` in it stands for a report without a word.
        of_a_field: Only if the message is about a field of the request.
        with_message: Only if the message of the answer's body is known.
        phrases: One of these; each is a set of words that must all be in the text (lower case).
        own_words: One of these is in the API's or the CLI's own words: see :class:`ErrorTexts`.
        from_api: One of these is in the API's own words.
        unless: None of these is in the API's or the CLI's own words.
        begins: One of the text's sentences begins with one of these (lower case).
        condemns: The error counts against the generation, because the API itself says it; else only the CLI does.
        blocks: The account is blocked; the credential itself is not refused.
        advice: The text for the caller, in place of the error class's sentence.
        source: Versions of Claude Code, public reports or documents; None: recorded runs show the rule, or its source
            stands at the table of phrases or codes that it names.
    """

    id: str
    error_class: ErrorClass
    statuses: Container[int | None] = ()
    types: AbstractSet[str | None] = frozenset()
    codes: AbstractSet[str] = frozenset()
    words: AbstractSet[str | None] = frozenset()
    of_a_field: bool = False
    with_message: bool = False
    phrases: Phrases = ()
    own_words: Phrases = ()
    from_api: Phrases = ()
    unless: Phrases = ()
    begins: tuple[str, ...] = ()
    condemns: bool = False
    blocks: bool = False
    advice: str | None = None
    source: str | None = None

    @property
    def trouble(self) -> TokenTrouble | None:
        """The trouble of the token or its account that the error shows; None: it shows none."""
        return TokenTrouble.BLOCKED if self.blocks else TROUBLE_BY_CLASS.get(self.error_class)

    @property
    def is_evidence(self) -> bool:
        """Whether the error is about the token or its account, and no limit that ends by itself."""
        return self.trouble not in {None, TokenTrouble.LIMITED}

    def matches(self, error: ApiError, texts: ErrorTexts) -> bool:
        """Whether every criterion of this rule holds."""
        return (
            (not self.statuses or error.status in self.statuses)
            and (not self.types or error.type in self.types)
            and (not self.codes or error.type in self.codes or error.code in self.codes)
            and (not self.words or not self.words.isdisjoint((error.word, error.detail or error.word)))
            and (not self.of_a_field or texts.is_about_a_field)
            and (not self.with_message or error.message is not None)
            and (not self.phrases or _contains_any(texts.text, self.phrases))
            and (not self.own_words or _contains_any(texts.own_words, self.own_words))
            and (not self.from_api or _contains_any(texts.api_words, self.from_api))
            and (not self.unless or not _contains_any(texts.own_words, self.unless))
            and (not self.begins or any(sentence.startswith(self.begins) for sentence in texts.sentences))
        )


def _contains_any(text: str, phrases: Phrases) -> bool:
    for phrase in phrases:
        if isinstance(phrase, str):
            if re.search(phrase, text) is not None:
                return True
        elif phrase[0] in text and all(word in text for word in phrase):
            return True
    return False


def _straight(text: str) -> str:
    return text.lower().replace("\u2019", "'")


def _plainly(message: str) -> str:
    """Remove quotations, additions of gateways, and adverbs that may interrupt a phrase; in lower case."""
    text = _straight(message[:_WORDS_LENGTH])
    for trailer in TRAILERS:
        text = text.partition(trailer)[0]
    text = " ".join(re.sub(_QUOTED, " ", text).split())
    for adverb in ADVERBS:
        text = text.replace(adverb, " ")
    return text


def _sentences(lowered: str) -> tuple[str, ...]:
    """Split the CLI's text at the dots between remarks; its lead-ins are not part of a sentence."""
    found = [piece.strip() for piece in lowered.replace(" \u2219 ", " \u00b7 ").split(" \u00b7 ")]
    found += [piece.removeprefix("failed to authenticate.").strip() for piece in found if piece.startswith("failed")]
    found += [piece.removeprefix("api error:").strip() for piece in found if piece.startswith("api error:")]
    return tuple(found)


_MODEL_MESSAGE_LENGTH = 1000
_MODEL_LIST = r"\[[^\]]*\]"  # the models that a key may use, not the refused one
_MODEL_NAME = r"[a-z0-9][a-z0-9._:/@-]*"
_MODEL_AFTER = r"(?:to access|models?|\u6a21\u578b|endpoints found for)[ :=]*[`'\"]?([a-z0-9][a-z0-9._:/@-]*)"
_MODEL_FAMILIES = frozenset({"haiku", "sonnet", "opus", "fable", "mythos"})
_MODEL_SUFFIX = r"(?:-\d{8}|@\d{8}|-latest|-v\d+(?::\d+)?|:[a-z]+)+$"


def names_another_model(message: str, models: Collection[str]) -> bool | None:
    """
    Whether *message* refuses a model that is not among *models*, the run's own; None: no model can be recognised.

    Names are compared without date, variant and provider. Without a name, the model family decides.
    """
    if not models:
        return None
    text = re.sub(_MODEL_LIST, " ", message[:_MODEL_MESSAGE_LENGTH].lower())
    words = re.findall(_MODEL_NAME, text)
    named = {word for word in words if word.rpartition("/")[2].rpartition("anthropic.")[2].startswith("claude-")}
    named |= {name for name in re.findall(_MODEL_AFTER, text) if any(character.isdigit() for character in name)}
    if named:
        return {_plain_model_name(name) for name in named}.isdisjoint(map(_plain_model_name, models))
    families = _MODEL_FAMILIES.intersection(words)
    return not any(family in model for family in families for model in models) if families else None


def _plain_model_name(name: str) -> str:
    name = name.lower().partition("[")[0].rpartition("/")[2].rpartition("anthropic.")[2].rstrip(".:")
    return re.sub(_MODEL_SUFFIX, "", name)
