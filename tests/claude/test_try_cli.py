"""What a version of the CLI holds is read off its code, and what nobody judged is told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from agent_runtime.claude.credential_env import BASE_URL_VARIABLE
from tests.support.cli_contents import Contents, Sentence, speaks_of_a_credential_or_server
from tests.support.cli_expressions import end_of, fields, texts
from tests.support.cli_variables import that_change_the_request
from tests.support.try_cli import Judged, accepted, class_of, found_in, load, report

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]

CODE = r"""
var Lx="No good \xB7 Please run /login",cu="API Error";
function Zq(e){if(e)return`Pay at ${e}`;return"Pay somewhere soon"}
var kinds=z.enum(["authentication_failed","billing_error","new_word"]);
var reasons=["completed","aborted_streaming","asleep"];
function f(e){let n=e?"a":"b";n="c c";n="d d";n="e e";n="g g";
if(e)return _i({content:Lx,error:"authentication_failed"});
if(n)return _i({content:`${cu}: ${n(e)} {said} by the "server"`,error:"server_error",apiError:"quite_new"});
return _i({error:"billing_error",content:e?Zq(e):n??"Nothing is left in this account"});}
t({type:"result",subtype:"error_max_turns",terminal_reason:"turned_off"});
process.env.ANTHROPIC_NEW_TOKEN;a.CLAUDE_CODE_OTHER_BASE_URL;a.CLAUDE_CODE_MAX_OUTPUT_TOKENS;XCLAUDE_CODE_MY_TOKEN;
"""


@pytest.fixture(params=["script", "native"])
def made_up(request: pytest.FixtureRequest, tmp_path: Path) -> Contents:
    """An executable with :data:`CODE` in it: by itself, or amid bytes that are no text."""
    around = b"" if request.param == "script" else os.urandom(70_000)
    executable = tmp_path / "cli"
    executable.write_bytes(around + CODE.encode() + around)
    link = tmp_path / "claude"
    link.symlink_to(executable)
    return Contents(link)


def test_the_values_of_failures_are_found_in_schemas_and_in_use(made_up: Contents) -> None:
    assert made_up.words == {"authentication_failed", "billing_error", "new_word", "server_error"}
    assert made_up.details == {"quite_new"}
    assert made_up.terminal_reasons == {"completed", "aborted_streaming", "asleep", "turned_off"}
    assert made_up.subtypes == {"error_max_turns"}


def test_sentences_are_put_together_as_far_as_the_code_tells(made_up: Contents) -> None:
    assert made_up.sentences == {
        Sentence("No good · Please run /login", "authentication_failed"),
        Sentence('API Error: … {said} by the "server"', "server_error", "quite_new"),
        Sentence("Pay somewhere soon", "billing_error"),
        Sentence("Nothing is left in this account", "billing_error"),
    }


def test_variables_are_found_by_the_words_in_their_names(made_up: Contents) -> None:
    assert made_up.variables == {"ANTHROPIC_NEW_TOKEN", "CLAUDE_CODE_OTHER_BASE_URL"}


@pytest.mark.parametrize(
    ("name", "speaks"),
    [
        ("CLAUDE_CODE_OAUTH_TOKEN", True),
        ("CLAUDE_CODE_GATEWAY_TOKEN_FILE_DESCRIPTOR", True),
        ("CLAUDE_CODE_USE_SOMETHING", True),
        ("ANTHROPIC_UNIX_SOCKET", True),
        ("CLAUDE_CODE_CLIENT_DATA_URL", True),
        ("CLAUDE_CODE_USER_DELEGATED_SESSION_DIRECT_API", True),
        ("CLAUDE_CODE_MAX_OUTPUT_TOKENS", False),
        ("CLAUDE_CODE_API_KEY_HELPER_TTL_MS", False),
        ("CLAUDE_CODE_DISABLE_THINKING", False),
    ],
)
def test_a_name_speaks_of_a_credential_or_a_server(name: str, speaks: bool) -> None:
    assert speaks_of_a_credential_or_server(name) is speaks


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ('"a \\xB7 b"', ["a · b"]),
        ("'it\\'s'", ["it's"]),
        ('"say \\"no\\""', ['say "no"']),
        ("`a ${x.y(`b`)} c`", ["a … c"]),
        ('`a ${q?`b ${z}`:"c"}`', ["a b …", "a c"]),
        ('a?.b?"x":c?"y":"z"', ["x", "y", "z"]),
        ('"a"+b+"c"', ["a…c"]),
        ('(n??"x")', ["known", "x"]),
        ('n||"x"', ["known", "x"]),
        ("g(1,(2))", ["one", "two"]),
        ("g(1).h", ["…"]),
        ("`never ended", ["…"]),
        ("", ["…"]),
        ("r", ["…"]),
    ],
)
def test_an_expression_becomes_the_texts_it_can_be(expression: str, wanted: list[str]) -> None:
    """Also one that stands for itself, which has no end."""
    constants = {"n": '"known"', "r": "r"}
    assert texts(expression, constants.get, lambda name: ['"one"', '"two"'] if name == "g" else []) == wanted


def test_brackets_in_strings_and_templates_end_nothing() -> None:
    code = "{a:`}${f({b:'}'})}`,c:\"{\",d:/x/}"
    assert end_of(code + ",more", 0) == len(code)
    assert fields(code) == {"a": "`}${f({b:'}'})}`", "c": '"{"', "d": "/x/"}
    assert end_of("{a:'", 0) == -1


def test_what_no_judged_version_had_is_new(made_up: Contents) -> None:
    found = found_in(made_up, "9.9.9")
    before = Judged(
        error={"authentication_failed": "auth", "billing_error": "billing", "server_error": "upstream"},
        terminal_reason=["completed", "aborted_streaming"],
        subtype=["error_max_turns"],
        sentences={"billing": [("billing_error", "", "Pay somewhere soon")]},
    )
    told = list(report(found, before, brief=False))
    assert "error: 4, 1 of them NEW" in told
    assert any(line.startswith("  NEW   ") and line.endswith(" new_word") for line in told)
    assert any(line.startswith("  known ") and line.endswith(" authentication_failed") for line in told)
    assert any("NEW" in line and "[server_error/quite_new] API Error: …" in line for line in told)
    assert any("known billing" in line and "Pay somewhere soon" in line for line in told)
    assert not any("known" in line for line in report(found, before, brief=True))
    assert not any("NEW  " in line for line in report(found, accepted(before, found), brief=True))


def test_what_is_judged_has_the_class_that_the_rules_give_it() -> None:
    judged = load()
    assert judged.error == {word: class_of(Sentence("", word)) for word in judged.error}
    assert judged.api_error == {detail: class_of(Sentence("", "", detail)) for detail in judged.api_error}
    wrong = [
        (error_class, class_of(Sentence(text, word, detail)), text)
        for error_class, sentences in judged.sentences.items()
        for word, detail, text in sentences
        if class_of(Sentence(text, word, detail)) != error_class
    ]
    assert wrong == [], "judge them anew: scripts/try-cli VERSION --accept"


def scripts(name: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / name, *words], env=environ, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("words", [(), ("--no-such",), ("2.1.1", "2.1.2")])
def test_trying_a_version_wants_one_version(words: tuple[str, ...]) -> None:
    ended = scripts("try-cli", *words, PATH=os.environ["PATH"])
    assert ended.returncode == 2
    assert "scripts/try-cli VERSION" in ended.stderr


@pytest.mark.parametrize("word", ["../2.1.1", "latest", "2.1.1/..", "-x", ""])
def test_only_a_version_becomes_a_path(word: str, tmp_path: Path) -> None:
    ended = scripts("real-cli", word, PATH=os.environ["PATH"], CLAUDE_CACHE=str(tmp_path))
    assert ended.returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def cache(tmp_path: Path) -> Callable[[str, str], Path]:
    """Make a cached version of a shell script."""

    def cached(version: str, said: str) -> Path:
        executable = tmp_path / "cache" / version / "node_modules" / ".bin" / "claude"
        executable.parent.mkdir(parents=True)
        executable.write_text(f"#!/bin/sh\necho '{said}'\n")
        executable.chmod(0o755)
        return executable

    return cached


def test_a_version_that_is_there_is_not_fetched(tmp_path: Path, cache: Callable[[str, str], Path]) -> None:
    executable = cache("2.1.1", "2.1.1 (Claude Code)")
    ended = scripts("real-cli", "2.1.1", PATH="/usr/bin:/bin", HOME=str(tmp_path), CLAUDE_CACHE=f"{tmp_path}/cache")
    assert (ended.returncode, ended.stdout) == (0, f"{executable}\n")


@pytest.mark.parametrize("npm", ["exit 1", None], ids=["no network", "no npm"])
def test_what_cannot_be_fetched_could_not_be_tried(
    npm: str | None, tmp_path: Path, cache: Callable[[str, str], Path]
) -> None:
    cache("2.1.1", "the stub of another version")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "env", "mkdir", "mktemp", "mv", "rm", "sed", "dirname"):
        found = next(path for path in (Path("/bin", name), Path("/usr/bin", name)) if path.exists())
        (programs / name).symlink_to(found)
    if npm is not None:
        (programs / "npm").write_text(f"#!/bin/sh\n{npm}\n")
        (programs / "npm").chmod(0o755)
    ended = scripts("real-cli", "2.1.1", PATH=str(programs), HOME=str(tmp_path), CLAUDE_CACHE=f"{tmp_path}/cache")
    assert ended.returncode == 75
    assert "npm is missing" in ended.stderr or "2.1.1 could not be fetched" in ended.stderr
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["2.1.1"]


@pytest.mark.slow
@pytest.mark.every_cli
@pytest.mark.real_cli
def test_the_tables_know_everything_that_the_real_cli_holds(claude: str) -> None:
    """After a new version: read what ``scripts/try-cli VERSION`` reports, change the rules, then ``--accept``."""
    contents = Contents(Path(claude))
    found = found_in(contents, "")
    new = [line for line in report(found, load(), brief=True) if line.startswith("  NEW")]
    assert new == []
    assert set(found.variables) <= set(load().variables)
    assert BASE_URL_VARIABLE in contents.variables, "it was searched"


@pytest.mark.slow
@pytest.mark.every_cli
@pytest.mark.real_cli
def test_a_variable_that_beats_the_delivered_token_is_found_among_others(claude: str) -> None:
    names = ["CLAUDE_CODE_SOME_TOKEN", "ANTHROPIC_AUTH_TOKEN"]
    assert that_change_the_request(Path(claude), names) == ["ANTHROPIC_AUTH_TOKEN"]


def test_what_is_judged_is_kept_in_order() -> None:
    judged = load()
    assert accepted(judged, Judged()) == judged
    assert msgspec.json.decode(msgspec.json.encode(judged), type=Judged) == judged
