"""Imports point strictly down: the order is the table here, and every module has its place in it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import agent_runtime

PACKAGE = "agent_runtime"
ROOT = Path(agent_runtime.__file__).parent

ORDER: tuple[tuple[str, ...], ...] = (
    # settings in, exit code out
    ("__main__",),
    ("cli",),
    # the commands that ask a running supervisor, which they know only by HTTP
    ("console",),
    ("console.run", "console.status", "console.drain", "console.wait"),
    ("console.connection", "console.showing", "console.pages"),
    ("console.exit_codes",),
    # the demo: a supervisor and the stand-ins around it
    ("demo",),
    ("demo.scenario",),
    ("demo.execution",),
    ("demo.stage", "demo.report"),
    ("demo.choice", "demo.timeline"),
    # the client that backends, the commands and the demo use
    ("client",),
    ("client.sync",),
    ("client.aio",),
    ("client.submit", "client.sse"),
    ("client.exchange",),
    ("client.errors",),
    ("doctor",),
    ("doctor.config", "doctor.places", "doctor.program", "doctor.secret"),
    ("doctor.finding",),
    # the composition root
    ("service",),
    ("premises",),
    ("starting",),
    # HTTP: parse, call, serialise
    ("api.app",),
    ("api.openapi", "api.health", "api.token_body"),
    ("api.schemas", "api.examples"),
    ("api.operations",),
    ("api.bodies",),
    ("api.event_stream", "api.metrics", "api.access_log"),
    ("api.streams",),
    ("api.connections",),
    ("api.problems", "api.access", "api.page", "api.preferences"),
    ("api",),
    # policy: admission, slots, owners, switching, drain
    ("resumption",),
    ("supervisor",),
    ("course",),
    ("archive",),
    ("confirmation", "desk", "answers"),
    ("standing", "slots", "sessions"),
    # one execution and one CLI process
    ("execution",),
    ("proofs",),
    ("attempt", "proof"),
    ("child_output",),
    ("orders", "reports"),
    ("containment_choice", "unkillable", "cli_check"),
    ("holding",),
    # what goes out by itself: the question to the API, events to a backend
    ("webhook", "probe"),
    ("events", "outbound"),
    # what they stand on
    ("log", "counts", "binary", "deadlines", "tally", "delivery", "private_files"),
    ("command", "slash_commands", "credentials_file", "change"),
    ("store.retention", "store.tasks"),
    ("store.records", "store.transcripts"),
    ("store.line_files", "store.database"),
    ("store",),
    # the only place that spawns and signals
    ("process",),
    ("oom_kills",),
    ("usage",),
    ("containment_cgroup", "containment_scan"),
    ("containment", "leftovers"),
    ("grip", "living"),
    ("nursery",),
    ("cgroups",),
    ("cgroup_group", "cgroup_mount"),
    ("keeper", "proc_table"),
    ("linux",),
    # the only place that reads pipes
    ("pipes",),
    # the secret file: read, watch, generations
    ("secret_file", "secret_writer"),
    ("secret_reading", "secret_watch", "generations"),
    ("secret_mount", "secret_content"),
    ("token_forms",),
    # the stand-ins: processes of their own, which know nothing of a supervisor
    ("standins.scripted_cli", "standins.messages_api"),
    ("standins.scripted_steps", "standins.messages_policy", "standins.messages_body"),
    ("standins.scripted_printing", "standins.messages_script"),
    ("standins.messages_conversation",),
    ("standins.scripted_api", "standins.loopback_server"),
    ("standins.scripted_run",),
    ("standins.scripted_frames",),
    ("standins",),
    # pure: no I/O, no clock
    ("problem",),
    ("run_answer",),
    ("verdict", "model", "task", "ladder"),
    ("evidence",),
    ("evidence_text", "frame_repair", "evidence_rules", "evidence_models", "reset_times"),
    ("evidence_account_rules",),
    ("evidence_matching", "last_words", "framing", "redaction", "state", "settings", "credential_names"),
    ("frames", "evidence_phrases", "error_bodies", "error_codes", "session_faults", "trace_context", "setting_slips"),
    ("tokens", "mcp_config"),
    ("errors",),
    ("",),  # the package itself: its version
)
"""From top to bottom; a module may import what stands in a row further down, never beside or above it."""

RANK = {module: len(ORDER) - row for row, modules in enumerate(ORDER) for module in modules}

STAND_INS_MAY_IMPORT = {"tokens", ""}
"""Of the rest of the package; what they imitate must not come from what they test."""

MAY_USE_STAND_INS = {"demo", "doctor", "proof"}
"""They show or find out, on loopback, what the real API must not be asked for."""

PURE = set().union(*ORDER[ORDER.index(("verdict", "model", "task", "ladder")) :])
"""Modules without I/O and without a clock; every one of them can be tested by calling it."""

IMPURE_LIBRARIES = {
    "asyncio",
    "fcntl",
    "httpx",
    "psutil",
    "select",
    "selectors",
    "socket",
    "sqlite3",
    "starlette",
    "subprocess",
    "tempfile",
    "time",
    "uvicorn",
    "watchfiles",
}


def modules() -> dict[str, Path]:
    """Find all modules, named within the package: ``api.app``; a package is its ``__init__``."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str, known: set[str]) -> tuple[set[str], set[str]]:
    """
    List what a source imports, wherever it stands: at the top, in a function, under ``TYPE_CHECKING``.

    Returns:
        Modules of this package, named within it, and the top names of all others.

    Raises:
        ValueError: An import is relative; the house names modules in full.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"line {node.lineno}: relative import")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    own: set[str] = set()
    foreign: set[str] = set()
    for name in names:
        top, _, within = name.partition(".")
        if top != PACKAGE:
            foreign.add(top)
        elif within in known:
            own.add(within)
        else:  # a name inside a module
            own.add(within.rpartition(".")[0])
    return own, foreign


def wrong_directions(found: dict[str, set[str]]) -> list[str]:
    """Name every import that does not point down; modules without a place are another test's."""
    return sorted(
        f"{importer} imports {imported}"
        for importer, all_imported in found.items()
        for imported in all_imported - {importer}
        if importer in RANK and imported in RANK and RANK[imported] >= RANK[importer]
    )


@pytest.fixture(scope="module")
def own_imports() -> dict[str, set[str]]:
    known = modules()
    return {module: imports(path.read_text(), set(known))[0] for module, path in known.items()}


def test_every_module_has_one_place_in_the_order() -> None:
    placed = [module for row in ORDER for module in row]

    assert sorted(set(modules()) - set(placed)) == [], "new modules: give them a place in ORDER"
    assert sorted(set(placed) - set(modules())) == [], "no such modules: take them out of ORDER"
    assert len(placed) == len(set(placed))


def test_imports_point_strictly_down(own_imports: dict[str, set[str]]) -> None:
    assert wrong_directions(own_imports) == []


def test_an_import_that_points_up_or_sideways_is_found() -> None:
    known = set(modules())
    up = "def late() -> None:\n    from agent_runtime.supervisor import Supervisor\n"
    sideways = "if TYPE_CHECKING:\n    from agent_runtime import redaction\n"

    assert wrong_directions({"evidence": imports(up, known)[0]}) == ["evidence imports supervisor"]
    assert wrong_directions({"state": imports(sideways, known)[0]}) == ["state imports redaction"]
    assert wrong_directions({"supervisor": imports("import agent_runtime.errors", known)[0]}) == []
    with pytest.raises(ValueError, match="relative"):
        imports("from . import errors", known)


def test_pure_modules_do_no_io_and_read_no_clock() -> None:
    known = modules()
    found = {module: imports(known[module].read_text(), set(known))[1] & IMPURE_LIBRARIES for module in sorted(PURE)}

    assert {module: libraries for module, libraries in found.items() if libraries} == {}


def test_only_what_demonstrates_or_proves_on_loopback_knows_the_stand_ins(own_imports: dict[str, set[str]]) -> None:
    outside = {module: found for module, found in own_imports.items() if module.split(".")[0] != "standins"}
    users = {module for module, found in outside.items() if any(name.split(".")[0] == "standins" for name in found)}

    assert {module for module in users if module.split(".")[0] not in MAY_USE_STAND_INS} == set()


def test_the_stand_ins_know_nothing_of_what_they_test(own_imports: dict[str, set[str]]) -> None:
    inside = {module: found for module, found in own_imports.items() if module.split(".")[0] == "standins"}
    foreign = {name for found in inside.values() for name in found if name.split(".")[0] != "standins"}

    assert inside
    assert foreign <= STAND_INS_MAY_IMPORT
