"""
Report what an executable of the CLI holds for failures and credentials, beside what was judged of other versions.

    python -m tests.support.try_cli EXECUTABLE VERSION [--brief] [--accept]

What no judged version had is marked NEW, with the class that the rules give it now; of a new variable it is tried
whether it changes the token or the server of the CLI's requests. The whole trial of a version is ``scripts/try-cli``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent_runtime.claude.credential_env import BASE_URL_VARIABLE, is_rival
from agent_runtime.evidence.api_errors import ApiError
from agent_runtime.evidence.rules import rule_for
from tests.support.cli_contents import Contents, Sentence
from tests.support.cli_variables import that_change_the_request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

JUDGED = Path(__file__).parents[1] / "data" / "judged_cli.json"


class Judged(msgspec.Struct):
    """
    The values, sentences and variables found in the versions that were judged, with their error classes.

    Attributes:
        error: Class by value of the field ``error``.
        api_error: Class by value of the field ``api_error``.
        terminal_reason: Values of that field, without a class: only ``subtype`` and ``is_error`` decide.
        subtype: Values of that field in failures.
        sentences: Text, ``error`` and ``api_error`` of each sentence, by class.
        variables: Names that change neither the token nor the server of a request, or are no variables.
    """

    versions: list[str] = []
    error: dict[str, str] = {}
    api_error: dict[str, str] = {}
    terminal_reason: list[str] = []
    subtype: list[str] = []
    sentences: dict[str, list[tuple[str, str, str]]] = {}
    variables: list[str] = []


def load() -> Judged:
    """Read the file with what was judged."""
    return msgspec.json.decode(JUDGED.read_bytes(), type=Judged)


def found_in(contents: Contents, version: str) -> Judged:
    """Put the contents of one version in the form of the file, with the classes that the rules give now."""
    sentences: dict[str, list[tuple[str, str, str]]] = {}
    for sentence in sorted(contents.sentences):
        sentences.setdefault(class_of(sentence), []).append((sentence.word, sentence.detail, sentence.text))
    return Judged(
        versions=[version],
        error={word: class_of(Sentence("", word)) for word in sorted(contents.words)},
        api_error={detail: class_of(Sentence("", "", detail)) for detail in sorted(contents.details)},
        terminal_reason=sorted(contents.terminal_reasons),
        subtype=sorted(contents.subtypes),
        sentences=sentences,
        variables=sorted(name for name in contents.variables if not is_known(name)),
    )


def class_of(sentence: Sentence) -> str:
    """Return the class that the rules give a sentence where no HTTP status is known."""
    error = ApiError(word=sentence.word or None, detail=sentence.detail or None, text=sentence.text)
    return rule_for(error).error_class.value


def is_known(variable: str) -> bool:
    """Whether a variable never is in a child's environment, or is set there by the supervisor."""
    return is_rival(variable) or variable == BASE_URL_VARIABLE


def report(found: Judged, judged: Judged, *, brief: bool) -> Iterator[str]:
    """
    Yield the lines of a report on what was found, beside what was judged.

    Args:
        brief: Leave out what was judged already.
    """
    for name, values, before in (
        ("error", found.error, judged.error),
        ("api_error", found.api_error, judged.api_error),
        ("terminal_reason", dict.fromkeys(found.terminal_reason, ""), judged.terminal_reason),
        ("subtype", dict.fromkeys(found.subtype, ""), judged.subtype),
    ):
        rows = [(value, f"{error_class:<16} {value}") for value, error_class in values.items()]
        yield from _section(name, rows, before, brief=brief)
    rows_of_sentences = [
        (f"{word}|{detail}|{text}", f"{error_class:<16} [{word or '-'}{'/' * bool(detail)}{detail}] {text}")
        for error_class, sentences in found.sentences.items()
        for word, detail, text in sentences
    ]
    yield from _section("sentences", rows_of_sentences, _keys(judged), brief=brief)


def _section(name: str, rows: list[tuple[str, str]], judged: Iterable[str], *, brief: bool) -> Iterator[str]:
    known = set(judged)
    new = sum(key not in known for key, _ in rows)
    yield f"{name}: {len(rows)}, {new} of them NEW"
    for key, row in rows:
        if key not in known or not brief:
            yield f"  {'known' if key in known else 'NEW  '} {row}"


def _keys(judged: Judged) -> set[str]:
    return {"|".join(sentence) for sentences in judged.sentences.values() for sentence in sentences}


def report_of_variables(found: Judged, judged: Judged, executable: Path) -> Iterator[str]:
    """Try each variable that is in no table; yield the lines of a report on them."""
    new = [name for name in found.variables if name not in judged.variables]
    yield f"variables that no table of rivals has: {len(found.variables)}, {len(new)} of them NEW"
    changing = set(that_change_the_request(executable, new))
    for name in new:
        verdict = "CHANGES THE TOKEN OR THE SERVER, or ends the CLI" if name in changing else "changes nothing"
        yield f"  NEW   {name}: {verdict}"


def accepted(judged: Judged, found: Judged) -> Judged:
    """Return what was judged together with what was found, with the classes that the rules give now."""
    sentences = {tuple(one) for each in (judged, found) for many in each.sentences.values() for one in many}
    by_class: dict[str, list[tuple[str, str, str]]] = {}
    for word, detail, text in sorted(sentences):
        by_class.setdefault(class_of(Sentence(text, word, detail)), []).append((word, detail, text))
    return Judged(
        versions=sorted({*judged.versions, *found.versions}),
        error={word: class_of(Sentence("", word)) for word in sorted({*judged.error, *found.error})},
        api_error={
            detail: class_of(Sentence("", "", detail)) for detail in sorted({*judged.api_error, *found.api_error})
        },
        terminal_reason=sorted({*judged.terminal_reason, *found.terminal_reason}),
        subtype=sorted({*judged.subtype, *found.subtype}),
        sentences=dict(sorted(by_class.items())),
        variables=sorted({*judged.variables, *found.variables}),
    )


def main() -> int:
    """Print the report; with ``--accept`` what is new counts as judged from now on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("executable", type=Path)
    parser.add_argument("version")
    parser.add_argument("--brief", action="store_true", help="only what is new")
    parser.add_argument("--accept", action="store_true", help=f"keep it in {JUDGED.name}: you have read the report")
    options = parser.parse_args()
    judged = load()
    found = found_in(Contents(options.executable), options.version)
    lines = list(report(found, judged, brief=options.brief))
    try:
        lines += report_of_variables(found, judged, options.executable)
    except OSError as error:
        lines.append(f"  the new variables could not be tried: {error}")
    sys.stdout.write("\n".join(lines) + "\n")
    if options.accept:
        text = msgspec.json.format(msgspec.json.encode(accepted(judged, found)), indent=1)
        JUDGED.write_bytes(text + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
