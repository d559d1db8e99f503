"""Checks of the CLI, of its reload behaviour, containment and confinement, of open files, and of the way to the API."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent_runtime.claude.credential_env import API_URL, BASE_URL_VARIABLE
from agent_runtime.claude.executable import Binary, launch_fault
from agent_runtime.delivery.delivery import RELAY, choose
from agent_runtime.delivery.reload_check import RELOAD, SOCKET, CheckedCli, CliFacts
from agent_runtime.delivery.reload_results import FILE_NAME as RELOAD_RESULTS_FILE
from agent_runtime.delivery.reload_results import ReloadResults
from agent_runtime.doctor.finding import Finding, is_dir, may, ok, problem, warning
from agent_runtime.errors import AgentRuntimeError
from agent_runtime.http_client import checked_url, proxy_for
from agent_runtime.model.tokens import TokenKind
from agent_runtime.process import confinement_choice, containment_choice
from agent_runtime.process.linux import cgroup_setup as cgroups
from agent_runtime.process.linux import syscalls as linux
from agent_runtime.process.linux.cgroup import Limits
from agent_runtime.process.linux.landlock import Mode
from agent_runtime.process.spawn import Spawner
from agent_runtime.relay.relay import way_in
from agent_runtime.serve.bootstrap import DEFAULT_DATA_DIR
from agent_runtime.settings import FEWEST_PLACES, PREFIX, Settings

REACH_SECONDS = 3.0


def examine_program(
    settings: Settings, environ: Mapping[str, str], kind: str | None, in_the_way: str | None
) -> Iterator[Finding]:
    """Check the CLI and its reload behaviour, and report how a token of this *kind* will reach it."""
    facts = None
    try:
        binary = Binary.of(settings.claude, environ.get("PATH"))
        reason = launch_fault(settings.claude, environ.get("PATH"))
    except AgentRuntimeError:
        yield problem("cli", *_no_cli(settings.claude[0], environ))
    else:
        if reason is not None:
            advice = f"install it for this processor and C library, or set {PREFIX}CLAUDE to another"
            yield problem("cli", f"{binary.files[0]} cannot start: {reason}", advice)
        else:
            yield ok("cli", f"found: {binary.files[0]}")
            finding, facts = _reload_check(settings, environ, binary)
            yield finding
    if settings.token_delivery == RELAY:
        yield _relayed(environ, facts)
        return
    reload_behaviour = None if facts is None else facts.reload_behaviour
    choice = choose(settings.token_delivery, TokenKind(kind or TokenKind.OAUTH), reload_behaviour, in_the_way)
    yield ok("delivery", f"{choice.name}: {choice.reason}")


def _relayed(environ: Mapping[str, str], facts: CliFacts | None) -> Finding:
    """Report how children would reach the relay."""
    try:
        way = way_in(environ, takes_socket=None if facts is None else facts.takes_socket)
    except ValueError:
        return problem("delivery", "the relay cannot use this base URL", f"correct {BASE_URL_VARIABLE}")
    return ok("delivery", f"{RELAY}: {way}")


def _no_cli(word: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return why there is no CLI, and advice."""
    variable = f"{PREFIX}CLAUDE"
    candidate = shutil.which(word, mode=os.F_OK, path=environ.get("PATH"))
    if candidate is not None and Path(candidate).is_file():
        text = f"{candidate} cannot be executed by uid {os.geteuid()}"
        return text, f"chmod 755 {candidate}, and see that it is on no noexec mount; or set {variable} to another"
    if "/" in word:
        return f"there is no {word}", f"install Claude Code there, or correct {variable}"
    advice = f"install Claude Code (npm install -g @anthropic-ai/claude-code), or set {variable} to its whole path"
    return f"{word} is not on PATH ({environ.get('PATH')})", advice


def _reload_check(settings: Settings, environ: Mapping[str, str], binary: Binary) -> tuple[Finding, CliFacts | None]:
    """Find out whether a running CLI takes a newer token: from the stored result, or by the reload check now."""
    data_dir = settings.data_dir or DEFAULT_DATA_DIR
    keeps = is_dir(data_dir) and may(data_dir, os.W_OK | os.X_OK)
    stored = ReloadResults(data_dir if keeps else None)
    facts, origin = stored.known(binary), "known already"
    wanted = (RELOAD, SOCKET) if settings.token_delivery == RELAY else (RELOAD,)
    try:
        if facts.is_missing_any(wanted):
            with contextlib.closing(Spawner()) as spawner:
                facts = CheckedCli(spawner, settings.claude, environ, user=settings.child_user).find_out(*wanted)
            stored.store(binary, facts)
            where = f"kept in {data_dir / RELOAD_RESULTS_FILE}" if keeps else "not kept: no data directory yet"
            origin = f"made now, {where}"
    except AgentRuntimeError as error:
        advice = f"run it by hand in this container: {settings.claude[0]} --version; is it for this processor and libc?"
        return problem("reload check", str(error), advice), None
    text = f"version {facts.version}, a running one takes a newer token: {facts.reload_behaviour} ({origin})"
    return ok("reload check", text), facts


def contained(settings: Settings) -> Finding:
    """Check how the processes of an attempt will be ended."""
    limits = Limits(settings.execution_memory, settings.execution_pids, settings.execution_cpus)
    try:
        cgroups.check(cgroups.find(), limits)
        with contextlib.closing(Spawner()) as spawner:
            containment = containment_choice.choose(spawner, settings.containment, _new_mark)
    except AgentRuntimeError as error:
        return problem("containment", str(error), "leave that variable out, or give it what it needs")
    lacking = "; ".join(f"no {name}: {reason}" for name, reason in containment.lacking.items())
    more = f" ({lacking})" if lacking else ""
    return ok("containment", containment.kind.value + more)


def _new_mark() -> str:
    """Return a new mark for a process, which tells it from those of a supervisor."""
    return f"doctor.{secrets.token_hex(6)}"


def confined(settings: Settings) -> Finding:
    """Check whether a child can reach the secret file and this process, which stands for the supervisor."""
    data_dir = settings.data_dir or DEFAULT_DATA_DIR
    try:
        with contextlib.closing(Spawner()) as spawner:
            args = (settings, data_dir, _new_mark)
            confinement = confinement_choice.choose(spawner, *args)
            reached = confinement.reached
            if confinement.mode is Mode.OFF:
                reached = confinement_choice.try_to_reach(spawner, confinement, *args)
    except AgentRuntimeError as error:
        if settings.confine == Mode.OFF:
            return ok("confinement", f"off; what an agent can reach is not known: {error}")
        return problem("confinement", str(error), f"leave {PREFIX}CONFINE out, or give it what it needs")
    found = {is_open: ", ".join(item for item in reached if reached[item] is is_open) for is_open in (True, False)}
    text = f"{confinement.mode}: an agent can reach: {found[True] or 'nothing'}; it cannot reach: {found[False] or '-'}"
    if confinement.warnings:
        advice = "give each of them a directory that agents need not, and that only the supervisor can write to"
        return warning("confinement", "; ".join((text, *confinement.warnings)), advice)
    if confinement.lacking and confinement.mode is Mode.OFF:
        reasons = "; ".join(confinement.lacking.values())
        return warning("confinement", f"{text} ({reasons})", f"leave {PREFIX}CONFINE out, or give it what it needs")
    return ok("confinement", text)


def open_files(settings: Settings, limit: int | None = None) -> Finding:
    """Check whether the limit on open files leaves room for all slots and connections."""
    if limit is None:
        linux.raise_file_limit()  # as serve does
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    left = settings.places_within(limit)
    advice = "raise it (docker run --ulimit nofile=65536:65536, LimitNOFILE=)"
    if left < FEWEST_PLACES:
        text = f"{limit} are too few for {settings.slots} slots: serve refuses to start"
        return problem("open files", text, f"{advice}, or lower {PREFIX}SLOTS")
    if left < settings.max_connections:
        text = f"{limit} leave room for {left} connections beside {settings.slots} slots"
        return warning("open files", text, f"{advice}, or lower {PREFIX}MAX_CONNECTIONS to {left}")
    return ok("open files", f"{limit} are enough for {settings.slots} slots and {settings.max_connections} connections")


def api(environ: Mapping[str, str]) -> Finding:
    """Check that the API, or the proxy before it, accepts a connection; nothing is sent."""
    given = environ.get(BASE_URL_VARIABLE) or API_URL
    where = BASE_URL_VARIABLE if environ.get(BASE_URL_VARIABLE) else "the API"
    try:
        url = checked_url(given)
    except ValueError as error:
        return problem("api", f"{BASE_URL_VARIABLE} {error}", "correct it, or leave it out for the API itself")
    try:
        proxy = proxy_for(url, environ)
        if proxy is not None:
            url, where = checked_url(proxy), "the proxy of the environment"
    except ValueError as error:
        return problem("api", str(error), "correct HTTPS_PROXY, or name the API in NO_PROXY")
    port = url.port or (443 if url.scheme == "https" else 80)
    text = f"{where}, {url.host} port {port}"
    reason = _unreachable(url.host, port)
    if reason is None:
        return ok("api", f"{text}: reached (a connection, nothing was sent)")
    advice = (
        f"let this container out to it (DNS, network policy, firewall), or correct {BASE_URL_VARIABLE} or the proxy"
    )
    return problem("api", f"{text}: {reason}", advice)


def _unreachable(host: str, port: int) -> str | None:
    """Return why no connection can be made; None: one can. A thread makes it, because a name's lookup has no limit."""
    result: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), REACH_SECONDS).close()
        except OSError as error:
            result.append(error.strerror or str(error) or type(error).__name__)
        else:
            result.append(None)

    thread = threading.Thread(target=connect, name="reach", daemon=True)
    thread.start()
    thread.join(2 * REACH_SECONDS)
    return result[0] if result else f"no answer within {2 * REACH_SECONDS:g} s"
