"""The command line: parse the arguments, run one command, and return its exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from agent_runtime import __version__
from agent_runtime.cli.arguments import (
    EXECUTION_ID_FLAG,
    PROGRAM,
    Parser,
    add_drain,
    add_file_access,
    add_run,
    add_status,
    add_token_wait,
    default_url,
)
from agent_runtime.cli.exit_codes import EXIT_BROKEN_PIPE, EXIT_FAILED
from agent_runtime.errors import AgentRuntimeError, CannotStart, NotWritable, SecretUnreadable, SettingsInvalid
from agent_runtime.serve.startup_signals import CalledOff, Start
from agent_runtime.setting_slips import masked
from agent_runtime.settings import GROUPS, SETTINGS, load

EXIT_CODES = {SettingsInvalid: 2, SecretUnreadable: 2, CannotStart: 3}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller has closed it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - until the process ends
    try:
        try:
            return _run(_with_id_in_one_word(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of stdout is gone; the rest of the buffer must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # as above
        print("agent-runtime: stdout cannot be written: its disk is full", file=sys.stderr)
        return EXIT_FAILED


def _run(words: Sequence[str]) -> int:
    try:
        options = _parser().parse_args(words)
        return int(options.run(options))
    except AgentRuntimeError as error:
        print(f"agent-runtime: {masked(str(error))}", file=sys.stderr)
        return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
    except KeyboardInterrupt:
        return 130


def _with_id_in_one_word(words: Sequence[str]) -> list[str]:
    """Join ``--execution-id`` and its value: an id may begin with a dash, which argparse takes for a flag."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == EXECUTION_ID_FLAG:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM)
    parser.add_argument("--version", action="version", version=f"agent-runtime {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the supervisor", usage="%(prog)s [-h] [--FLAG VALUE] ...")
    group: argparse._ActionsContainer = serve
    for setting in SETTINGS:
        if setting.name in GROUPS:
            group = serve.add_argument_group(GROUPS[setting.name])
        default = "" if setting.shown_default is None else f" [{setting.shown_default}]"
        group.add_argument(
            setting.flag,
            dest=f"setting_{setting.name}",
            metavar=setting.metavar,
            nargs="?" if setting.is_switch else None,
            const="true" if setting.is_switch else None,
            help=f"{setting.text}{default} ({setting.variable})".replace("%", "%%"),
        )
    serve.set_defaults(run=_serve)

    demo = commands.add_parser("demo", help="show the main job on loopback: no account, no network")
    which = demo.add_mutually_exclusive_group()
    which.add_argument("--claude", metavar="COMMAND", help="the CLI to use [claude on PATH, else the scripted one]")
    which.add_argument("--scripted", action="store_true", help="use the scripted CLI even where there is a real one")
    demo.add_argument("--delivery", choices=("env", "relay"), default="env", help="how the token reaches the CLI [env]")
    demo.set_defaults(run=_demo)

    add_run(commands)
    add_status(commands)

    doctor = commands.add_parser("doctor", help="find out why it does not work here")
    doctor.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    doctor.set_defaults(run=_doctor)

    token = commands.add_parser("token", help="write and look at a secret file; wait for its token to be in use")
    actions = token.add_subparsers(required=True, metavar="ACTION")
    put = actions.add_parser("put", help="write the token read on stdin so that a reader never sees half of it")
    put.add_argument("file", type=Path, metavar="FILE", help="the secret file; need not exist")
    add_file_access(put)
    put.add_argument("--force", action="store_true", help="write it although it does not look like a token")
    put.set_defaults(run=_token_put)
    show = actions.add_parser("show", help="print kind, fingerprint, age and expiry, never the token")
    show.add_argument("file", type=Path, metavar="FILE", help="the secret file")
    show.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    show.set_defaults(run=_token_show)
    add_token_wait(actions)

    add_drain(commands)

    health = commands.add_parser("healthcheck", help="ask a running supervisor for /livez; for an image's HEALTHCHECK")
    health.add_argument("--url", default=default_url(), help="where it listens [%(default)s] (AGENT_RUNTIME_URL)")
    health.set_defaults(run=_healthcheck)
    return parser


def _serve(options: argparse.Namespace) -> int:
    environ = dict(os.environ)  # a copy, because os.environ decodes a value each time it is read
    settings = load(environ, {setting.name: getattr(options, f"setting_{setting.name}") for setting in SETTINGS})
    start = Start()
    gc.disable()  # Nearly everything that a start makes stays: to search it for garbage would take a tenth of it.
    try:
        # Imported here: the other commands start without the web server.
        from agent_runtime.serve.bootstrap import occupied

        with occupied(settings, environ, start) as bootstrap:
            # Imported last: leftovers of an earlier supervisor are ended even if the start is called off meanwhile.
            from agent_runtime.serve.service import serve

            return serve(settings, environ, bootstrap, start)
    except CalledOff as ended:
        print(f"agent-runtime: {ended}", file=sys.stderr)
        return 0
    finally:
        gc.enable()
        start.close()


def _demo(options: argparse.Namespace) -> int:
    from agent_runtime.demo import run_demo

    return run_demo(options.claude, scripted=options.scripted, delivery=options.delivery)


def _doctor(options: argparse.Namespace) -> int:
    from agent_runtime.doctor import run_doctor

    return run_doctor(os.environ, as_json=options.json)


def _token_put(options: argparse.Namespace) -> int:
    from agent_runtime.secret.writer import put

    if sys.stdin.isatty():
        print("paste the token, then Enter and Ctrl-D", file=sys.stderr)
    given = sys.stdin.buffer.read()
    try:
        warnings = put(options.file, given, mode=options.mode, group=options.group, strict=True, force=options.force)
    except NotWritable as error:
        raise NotWritable(f"{options.file}: {error}") from None
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _token_show(options: argparse.Namespace) -> int:
    from agent_runtime.secret.writer import describe

    described = describe(options.file)
    if options.json:
        print(json.dumps(described))
    else:
        width = max(len(name) for name in described)
        for name, value in described.items():
            print(f"{name:<{width}}  {'-' if value is None else value}")
    return 1 if described.get("error") else 0


def _healthcheck(options: argparse.Namespace) -> int:
    # Without httpx: an image runs this every ten seconds, and its import takes 0.15 s of CPU time.
    from http import HTTPStatus
    from http.client import HTTPConnection, HTTPException, HTTPSConnection, InvalidURL
    from urllib.parse import urlsplit

    shown = re.sub("//.*@", "//", options.url)  # without a password
    try:
        url = urlsplit(options.url)
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise InvalidURL(options.url)
        kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
        with contextlib.closing(kind(url.hostname, url.port, timeout=5)) as connection:
            connection.request("GET", f"{url.path}/livez")
            status = connection.getresponse().status
    except (OSError, HTTPException, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        print(
            f"unhealthy: {shown} does not answer ({reason}): is serve running? (--url, AGENT_RUNTIME_URL)",
            file=sys.stderr,
        )
        return 1
    if status != HTTPStatus.OK:
        print(f"unhealthy: {shown} answers {status}", file=sys.stderr)
        return 1
    print("healthy")
    return 0
