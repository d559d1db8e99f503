"""What ``--help`` says of each command beyond its options: what it is for, examples, exit codes."""

from __future__ import annotations

import argparse
import textwrap

import msgspec

from agent_runtime.cli.exit_codes import EXIT_CANCELLED, EXIT_FAILED, EXIT_REFUSED, EXIT_SUCCESS, EXIT_TRY_LATER

WIDTH = 78
TOKEN_FILE = "/run/secrets/claude/token"  # noqa: S105 - a path


class Page(msgspec.Struct, frozen=True):
    """
    What a stranger needs to know.

    Attributes:
        examples: A command line, and what it does.
        exits: What each exit code says.
        more: Paragraphs at the end.
    """

    text: str
    examples: dict[str, str]
    exits: dict[int, str] = msgspec.field(default_factory=dict)
    more: tuple[str, ...] = ()


_ASKED = {
    EXIT_SUCCESS: "it answered",
    EXIT_REFUSED: "the request is at fault (wrong access key, wrong address)",
    EXIT_TRY_LATER: "out of reach: try again later",
}

PAGES: dict[str, Page] = {
    "": Page(
        "Supervise Claude Code in an agent's container. The supervisor reads the Claude token from a mounted file, "
        "runs executions in parallel slots behind an HTTP API, and ends one early when its token is refused. A new "
        "token needs no restart: write the file.",
        {
            "agent-runtime demo": "see it work on loopback, without an account",
            f"agent-runtime token put {TOKEN_FILE} < token.txt": "give it a token",
            "agent-runtime serve --workspace /work": "run the supervisor on http://127.0.0.1:8000",
            "agent-runtime run 'Say hello.'": "submit a task and follow it",
            "agent-runtime doctor": "find out why it does not work",
        },
        more=("agent-runtime COMMAND --help says more of each command.",),
    ),
    "serve": Page(
        "Run the supervisor: print one line 'listening on http://HOST:PORT' on stdout when it answers, log to stderr. "
        "SIGTERM or Ctrl-C drains: nobody is let in, the running may finish; a second signal ends everything at once. "
        "Without a token it starts, answers 500 no_token, and takes the token when the file is written.",
        {
            "agent-runtime serve --workspace /work": "token from " + TOKEN_FILE,
            "agent-runtime serve --token-file ./secret/token --data-dir ./data --port 0": "as any user, on a free port",
            "agent-runtime serve --host 0.0.0.0 --access-key-file /run/secrets/agent-runtime/key": "for other machines",
        },
        {0: "drained", 2: "a setting is wrong: the message names it", 3: "it cannot start here: the message says why"},
        (
            (
                "Each flag is also an environment variable, named behind it; the flag wins. [In brackets: the "
                "default.] Durations are in seconds, sizes in bytes. With SLOTS slots and QUEUE places beside "
                "them taken, a task is answered 409 busy."
            ),
            "The child inherits this environment without credentials; ANTHROPIC_BASE_URL and proxies pass through.",
        ),
    ),
    "demo": Page(
        "Start a stand-in of the Messages API and a supervisor on loopback, run four executions in parallel, switch "
        "the token by writing the file, let one token die, and say what became of each. It needs no account and no "
        "network, and takes ten seconds or so.",
        {
            "agent-runtime demo": "with claude from PATH, else the scripted CLI of this package",
            "agent-runtime demo --claude /opt/claude/bin/claude": "with this CLI",
            "agent-runtime demo --scripted": "without any CLI",
        },
        {0: "every promise held", 1: "one did not: the report names it", 2: "the CLI given is none"},
    ),
    "run": Page(
        "Submit a task to a running supervisor, show what happens, and exit with its outcome. Ctrl-C ends the "
        "execution; a second one leaves it running, as does anything else that ends this command.",
        {
            "agent-runtime run 'Fix the tests.' --execution-id fix-1 --timeout 1800": "half an hour at most; "
            "the same again joins it, or gets its kept answer",
            "agent-runtime run --detach - < task.txt": "print the id and go; the task comes from a file",
        },
        {
            EXIT_SUCCESS: "success",
            EXIT_FAILED: "failed: the message begins with the error class (auth, timeout, ...)",
            EXIT_REFUSED: "the request is at fault",
            EXIT_TRY_LATER: "turned away (full, draining) or out of reach: try again later",
            EXIT_CANCELLED: "cancelled",
        },
    ),
    "status": Page(
        "Show slots, token and executions of a running supervisor.",
        {
            "agent-runtime status": "as a table",
            "agent-runtime status --json --limit 100": "for scripts",
            "agent-runtime status --url http://agent:8000 --key-file ./key": "of another container",
        },
        _ASKED,
    ),
    "doctor": Page(
        "Find out why it does not work here: look at settings, access key, token file and its mount, rival "
        "credentials, directories and volumes, limits, the way to the API and the CLI, and prove on loopback whether "
        "this CLI takes a newer token while it runs. One line a check: ok, warning or problem, and what to do. It "
        "disturbs no supervisor, and sends no token anywhere.",
        {
            "agent-runtime doctor": "with the settings of this environment",
            "docker exec AGENT agent-runtime doctor": "in the container where it does not work",
            "AGENT_RUNTIME_TOKEN_FILE=./secret/token agent-runtime doctor --json": "for scripts",
        },
        {0: "no problem", 1: "a problem: its line says what to do"},
        ("It reads the environment only: what serve is given as flags must be set as variables (serve --help).",),
    ),
    "token": Page(
        "Write and look at a secret file, the file that holds the Claude token, and wait until its token is in use.",
        {
            f"agent-runtime token put {TOKEN_FILE} < token.txt": "write it",
            f"agent-runtime token show {TOKEN_FILE}": "what is in it, without telling the token",
            "agent-runtime token wait --fingerprint 9c2e41d07ab8": "until the one before it is out of use",
        },
    ),
    "token put": Page(
        "Read a token on stdin and write it so that a reader never sees half of it: a new file, then a rename. Mode "
        "and owner of an existing file are kept; a new one gets 0600. A running supervisor takes it at once.",
        {
            f"agent-runtime token put {TOKEN_FILE} < token.txt": "from a file",
            f"claude setup-token && agent-runtime token put {TOKEN_FILE}": "make one, paste it, then Ctrl-D",
        },
        {0: "written", 1: "not written: the message says why"},
        (
            (
                "Taken are: a bare token on one line (sk-ant-oat...: OAuth, sk-ant-api...: API key); "
                '{"token": ..., "expires_at": TIME, "subscription": NAME}; or the CLI\'s own .credentials.json. '
                "NAME=, quotes and base64 around a bare token are taken off, with a warning; what is no token, as a "
                "template, a placeholder or a refresh token, is not written."
            ),
            (
                "Write on the side that is mounted, into a directory that is mounted as a whole: a file that is "
                "mounted by itself keeps showing the old one."
            ),
        ),
    ),
    "token show": Page(
        "Print kind, fingerprint, age in seconds and expiry (epoch seconds) of the token in a file, never the token. "
        "The fingerprint is the first 12 hex digits of its SHA-256, the same that the supervisor tells.",
        {
            f"agent-runtime token show {TOKEN_FILE}": "as lines",
            f"agent-runtime token show --json {TOKEN_FILE}": "for scripts",
        },
        {0: "it can be used; a line 'warning' says what is odd", 1: "it cannot: the line 'error' says why"},
    ),
    "token wait": Page(
        "Wait until a running supervisor has loaded the token with this fingerprint and no running execution holds an "
        "older one: then the old one may be revoked. Executions that wait for a slot or are parked take the new one "
        "when they start. Where a newer token does not reach running executions (delivery env), it takes until they "
        "have ended.",
        {
            "agent-runtime token wait --fingerprint 9c2e41d07ab8 --timeout 900": "a quarter of an hour at most",
            "agent-runtime token wait --fingerprint 9c2e41d07ab8 && echo revoke": "as long as it takes",
        },
        {
            EXIT_SUCCESS: "it is loaded, and no running execution holds an older one",
            EXIT_FAILED: "--timeout is over: the message says what still holds an older one",
            EXIT_REFUSED: "the request is at fault (wrong fingerprint, access key or address)",
            EXIT_TRY_LATER: "out of reach",
        },
    ),
    "drain": Page(
        "Let no execution in any more; the running go on. New tasks are answered 409 draining until the supervisor "
        "ends or --call-off. For preStop hooks and for taking an agent out of a fleet.",
        {
            "agent-runtime drain --wait --timeout 600": "until all have ended, ten minutes at most",
            "agent-runtime drain --call-off": "let executions in again",
        },
        {
            EXIT_SUCCESS: "done",
            EXIT_FAILED: "--timeout is over, executions still run",
            EXIT_REFUSED: "the request is at fault (wrong access key, wrong address)",
            EXIT_TRY_LATER: "out of reach",
        },
    ),
    "healthcheck": Page(
        "Ask a running supervisor for /livez, for an image's HEALTHCHECK; gives up after 5 s. It says that the process "
        "answers and nothing about the token, which no restart cures: ask /readyz for that.",
        {
            "agent-runtime healthcheck": "of this container",
            "agent-runtime healthcheck --url http://127.0.0.1:8001": "on another port",
        },
        {0: "it answers", 1: "it does not"},
    ),
}
"""By the words of the command as a person types it."""


def explain(parser: argparse.ArgumentParser, command: str = "") -> None:
    """Give a parser, and those of its commands, their pages."""
    page = PAGES[command]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = textwrap.fill(page.text, WIDTH)
    parser.epilog = _after(page)
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to its commands
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            for name, child in action.choices.items():
                explain(child, f"{command} {name}".strip())


def _after(page: Page) -> str:
    lines = ["examples:"]
    for command, does in page.examples.items():
        lines += [f"  {command}", f"      {does}"]
    if page.exits:
        lines += ["", "exit codes:", *(f"  {code:>3}  {says}" for code, says in page.exits.items())]
    for paragraph in page.more:
        lines += ["", textwrap.fill(paragraph, WIDTH)]
    return "\n".join(lines)
