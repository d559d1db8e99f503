"""Find out why the supervisor does not work here: one line for each check, with advice."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TextIO

import msgspec

from agent_runtime.doctor import config, places, program, secret
from agent_runtime.doctor.finding import Finding, Machine, Severity, is_dir
from agent_runtime.secret.writer import describe


def run_doctor(
    environ: Mapping[str, str], *, as_json: bool = False, out: TextIO | None = None, machine: Machine | None = None
) -> int:
    """
    Make all checks and print each as soon as it is made, or all as one JSON array.

    The only change: the result of the reload check is stored if the data directory exists.

    Returns:
        The exit code: 1 if a check found a problem, else 0.
    """
    out = out or sys.stdout
    findings = []
    for finding in examine(environ, machine or Machine()):
        findings.append(finding)
        if not as_json:
            out.write(finding.line() + "\n")
            out.flush()
    if as_json:
        out.write(msgspec.json.encode(findings).decode() + "\n")
    return int(any(finding.verdict is Severity.PROBLEM for finding in findings))


def examine(environ: Mapping[str, str], machine: Machine) -> Iterator[Finding]:
    """Yield the results of all checks, the quick ones first."""
    settings, findings = config.settings_in(environ)
    yield from findings
    described = describe(settings.token_file)
    yield secret.token(settings, described)
    for finding in (secret.mount(described), secret.watch(settings.token_file.parent)):
        if finding is not None:
            yield finding
    yield secret.other_credentials(environ)
    yield from secret.settings_files(settings, machine)
    yield from places.examine_places(settings, machine)
    in_the_way = secret.obstacle(settings)
    if is_dir(settings.config_dir):
        yield secret.login(settings, in_the_way)
    yield program.contained(settings)
    yield program.confined(settings)
    yield program.open_files(settings)
    yield config.stopping(settings)
    yield program.api(environ)
    kind = described["kind"]
    yield from program.examine_program(settings, environ, None if kind is None else str(kind), in_the_way)
