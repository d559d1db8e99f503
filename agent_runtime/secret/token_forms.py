"""
Which text is a token: which wrappings are removed first, and which texts are refused.

Scripts and people write secret files, and some hold more than a token: a line of an ``.env`` file, quotes, base64, an
unfilled template. A wrapping is removed where a token is certainly inside. A text that was never a token is refused, so
that it cannot replace a good one. Neither reasons nor warnings repeat any of the text.

Sources: reports of people who run Claude Code headless, quoted in
``tests/secret/test_secret_content.py``. Claude Code 2.1.330
itself names ``sk-ant-oat``, ``-admin``, ``-sid`` and ``-ccsr``; ``sk-ant-ort`` is what a login's refresh token begins
with.
"""

from __future__ import annotations

import base64
import re

import msgspec

from agent_runtime.model.tokens import (
    API_KEY_PREFIX,
    API_KEY_VARIABLE,
    AUTH_TOKEN_VARIABLE,
    OAUTH_PREFIX,
    OAUTH_VARIABLE,
)

BLANKS = " \t\r\n"

SHORTEST_SECRET = 16
"""In characters; a shorter text is no token, and could be part of a name by chance."""

VARIABLES = (OAUTH_VARIABLE, API_KEY_VARIABLE, AUTH_TOKEN_VARIABLE, "CLAUDE_CODE_OAUTH_REFRESH_TOKEN", "CLAUDE_API_KEY")
"""Variables whose value may be the token; a refresh token is recognised and refused by its prefix."""

FAMILY = "sk-ant-"

_KNOWN = re.compile(rf"(?:{OAUTH_PREFIX}|{API_KEY_PREFIX})(?:\d{{2}}-)?")
_FEWEST_BEHIND_PREFIX = 4
_ABOUT_A_TOKEN = re.compile(rf"{FAMILY}|\Aexport |(?:CLAUDE|ANTHROPIC)_")
_ASSIGNMENT = re.compile(rf"(?:export[ \t]{{1,8}})?(?:{'|'.join(VARIABLES)})[ \t]{{0,8}}=")


PLAIN_TOKEN = (
    rf"^(?:(?:{OAUTH_PREFIX}|{API_KEY_PREFIX})[0-9]{{2}}-[A-Za-z0-9_-]{{4,}}|"
    r"(?!~/|\.\.?/|.*\.\.\.|.*[Ss][Kk]-[Aa][Nn][Tt]-|(?:.*/)?secrets?/|_*[A-Z]+(?:_+[A-Z]+)+[_=]*$)"
    r"(?![Xx._~+/=-]+$|[0-9._~+/=-]*[Xx][Xx0-9._~+/=-]*$)"
    r"[A-Za-z0-9._~+-][A-Za-z0-9._~+/-]{15,}={0,2})$"
)
"""A pattern for JSON Schema: texts that are accepted as they are. It does not exclude placeholders or base64."""


class NotAToken(ValueError):
    """The text is no token; the message is what follows "the secret file" in a sentence."""


class Found(msgspec.Struct, frozen=True):
    """
    A token in a text.

    Attributes:
        warnings: Sentences on what was removed and what is unusual; they repeat nothing of the text.
        was_base64: The token was decoded from base64, so the text may be the first part of a longer one.
    """

    value: str
    warnings: tuple[str, ...]
    was_base64: bool


def token_in(text: str) -> Found:
    """
    Return the token in *text*, without its wrappings.

    Raises:
        NotAToken: *text* holds no token, or it is not certain that it does.
    """
    warnings: list[str] = []
    wrappings = dict(_WRAPPINGS)  # each is removed at most once
    text = text.strip(BLANKS)
    while warning := next((one for one, unwrap in wrappings.items() if unwrap(text) is not None), None):
        text = (wrappings.pop(warning)(text) or "").strip(BLANKS)
        if not text:
            raise NotAToken("holds a name or quotes with nothing in them")
        warnings.append(warning)
    for pattern, reason in _REFUSED:
        if pattern.search(text):
            raise NotAToken(f"holds {reason}")
    if _from_base64(text) is not None:
        raise NotAToken("holds base64 inside base64")
    _refuse_placeholders(text)
    known = _KNOWN.match(text)
    if known is not None and len(text) - known.end() < _FEWEST_BEHIND_PREFIX:
        raise NotAToken("holds the beginning of a token and no more")
    if len(text) < SHORTEST_SECRET:
        raise NotAToken(f"holds fewer than {SHORTEST_SECRET} characters, which is no token")
    if known is None:
        warnings.append("the token has no known prefix: it will be taken as an OAuth token")
    return Found(text, tuple(warnings), _IN_BASE64 in warnings)


def _after_name(text: str) -> str | None:
    found = _ASSIGNMENT.match(text)
    return None if found is None else text[found.end() :].removesuffix(";")


def _unquoted(text: str) -> str | None:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else None


def _from_base64(text: str) -> str | None:
    """Decode base64 or base64url, padded or not, in one line or several; None if the result has no sign of a token."""
    joined = "".join(line.strip(BLANKS) for line in text.split("\n"))
    digits = joined.rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    if len(digits) < SHORTEST_SECRET:
        return None
    is_cut = len(digits) % 4 == 1  # base64 of whole bytes never has such a length
    try:
        decoded = base64.b64decode(digits[:-1] if is_cut else digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        return None
    # PowerShell encodes UTF-16. Its NUL characters are left in the result, so that the text is refused.
    inner = decoded.decode("utf-8", "replace").removeprefix("\ufeff")
    plain = inner.replace("\0", "")
    if not _ABOUT_A_TOKEN.search(plain) and _from_base64(plain) is None:
        return None
    if is_cut:
        raise NotAToken("holds base64 that has been cut off")
    return inner


_IN_BASE64 = "the token was written as base64, which was decoded"
_WRAPPINGS = (
    ("the token was written behind the name of a variable, which was taken off", _after_name),
    ("the token was written in quotes, which were taken off", _unquoted),
    (_IN_BASE64, _from_base64),
)

_REFUSED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"\0", "NUL characters"),
        (r"[\r\n]", "several lines"),
        (r"\A<", "markup, not a token"),
        (r"[$#%]\{|\{\{|\$\(|<%|%\(|\$\w|%\w{1,64}%", "a template that nobody has filled in"),
        (r"\A\{|\A\[", "JSON inside quotes, base64 or a list"),
        (r"\A(?:/|~/|\.{1,2}/|[A-Za-z]:\\)", "the name of a file, not what is in it"),
        (r"(?i)\Abearer[ \t]", "the prefix Bearer before the token"),
        (r"(?i)\A(?:authorization|x-api-key)[ \t]*:", "a header, not the token alone"),
        (r"\A[A-Za-z][A-Za-z0-9+.-]{0,32}:|(?:\A|/)secrets?/", "a reference or an address, not the token itself"),
        (r"\A[*xX._~+/=-]+\Z", "a placeholder, not a token"),
        (r"\A_*[A-Z]+(?:_+[A-Z]+)+[_=]*\Z", "the name of a variable, not its value"),
        (r"=[^=]", "an assignment to a variable that is not known here"),
        (r",", "commas"),
        (r" ", "blanks inside its line"),
        (r"[\x01-\x1f\x7f]", "control characters"),
        (r"[^A-Za-z0-9._~+/=-]", "characters that no token has"),
        (r"\.\.\.", "a token that was shortened for showing"),
        # Tokens of the family end with a letter, a digit, "-" or "_": another end belongs to a surrounding sentence.
        (rf"(?i).{FAMILY}|\A{FAMILY}.*[.~+/=]\Z", "more than one token, or something around it"),
        (rf"(?i)\A{FAMILY}ort", "a refresh token, which no request can carry"),
        (rf"(?i)\A{FAMILY}admin", "an admin key, with which no model can be asked"),
        (rf"(?i)\A{FAMILY}sid", "the cookie of a browser's session, not a token"),
        (rf"\A(?!{OAUTH_PREFIX}|{API_KEY_PREFIX})(?i:{FAMILY})", "a key of a kind that has no use"),
    )
)
"""Patterns that no token matches, and what a match shows. The first match is reported; each takes linear time."""

_PLACEHOLDER_PHRASES = """
    apikeyhere changeme changethis enteryour insertyour inserttoken keygoeshere notconfigured pasteyour pastetoken
    placeholder redacted replaceme replacethis replacewith tobedefined tobereplaced tokengoeshere tokenhere undefined
    youranthropic yourapikey yourapitoken yourclaude yourkeyhere youroauth yoursecret yourtoken
"""
"""A text with one of these, without case and separators, is a placeholder; they are too long to occur by chance."""

_PLACEHOLDER_WORDS = """
    changeme dummy empty example fake fixme insert missing nil none notset null paste replace sample tbd todo unset xxx
    your yours
"""
_NEUTRAL_WORDS = """
    a an and anthropic api auth by claude code do for from go goes here in is it key keys me my new not of oauth only or
    please real secret set some test text the this to token tokens use value with
"""
"""Neutral words: a text of these and at least one placeholder word is a placeholder."""

_PHRASES = tuple(_PLACEHOLDER_PHRASES.split())
_PLACEHOLDERS = frozenset(_PLACEHOLDER_WORDS.split())
_KNOWN_WORDS = _PLACEHOLDERS.union(_NEUTRAL_WORDS.split())


def _refuse_placeholders(text: str) -> None:
    body = _KNOWN.sub("", text, count=1).lower()
    words = {word.strip("0123456789") for word in re.split(r"[^a-z0-9]+", body)} - {""}
    words = {"xxx" if set(word) == {"x"} else word for word in words}
    letters = re.sub(r"[^a-z]", "", body)
    if (words & _PLACEHOLDERS and words <= _KNOWN_WORDS) or any(phrase in letters for phrase in _PHRASES):
        raise NotAToken("holds a placeholder, not a token")
