"""Imports point down: one row per package, no module outside a row, and no circle inside a package."""

from __future__ import annotations

import ast
import statistics
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import agent_runtime

PACKAGE = "agent_runtime"
ROOT = Path(agent_runtime.__file__).parent

ORDER: tuple[str, ...] = (
    "__main__",
    "cli",
    "demo",
    "doctor",
    "client",
    "serve",
    "api",
    "api.schema",
    "web",
    "supervisor",
    "execution",
    "tokens",
    "store",
    "telemetry",
    "relay",
    "delivery",
    "process",
    "process.containment",
    "process.forkserver",
    "process.linux",
    "evidence",
    "claude",
    "secret",
    "standins",
    "model",
    "http_client",
    "library_parts",
    "notifier",
    "files",
    "settings",
    "setting_slips",
    "errors",
    "",
)
"""From top to bottom: a package, or a module at the root, may import what stands further down; "" holds the version."""

RANK = {part: len(ORDER) - row for row, part in enumerate(ORDER)}

MAY_USE_STAND_INS = {"demo", "doctor", "delivery.reload_check"}
"""They show or find out, on loopback, what the real API must not be asked for."""

STAND_INS_MAY_IMPORT = {"model.tokens", ""}
"""Of the rest of the package; what they imitate must not come from what they test."""

PURE = {"model", "evidence", "claude", "errors"}
"""Packages without I/O and without a clock; what is in them can be tested by calling it."""

NOT_PURE = {"claude.executable"}
"""It looks at files: which binary the CLI is."""

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

MAY_SIGNAL = {"process", "demo", "standins"}
SIGNALLING = {("os", "fork"), ("os", "kill"), ("os", "killpg"), ("signal", "pidfd_send_signal")}

MOST_MODULES = 10
MOST_MODULES_AT_THE_ROOT = 7
MOST_LINES = 450
MEDIAN_LINES = 150


def modules() -> dict[str, Path]:
    """Find all modules, named within the package: ``api.app``; a package is its ``__init__``."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def row_of(module: str) -> str:
    """Return the row of a module: the longest name in the table that it is, or lies below."""
    while module not in RANK and module:
        module = module.rpartition(".")[0]
    return module


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
    """Name every import that points up; the few that may use the stand-ins, which stand beside all, are no fault."""
    return sorted(
        f"{importer} imports {imported}"
        for importer, all_imported in found.items()
        for imported in all_imported
        if row_of(importer) != row_of(imported) and RANK[row_of(imported)] > RANK[row_of(importer)]
    )


def circle(found: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, if there are any."""
    graph = {module: {name for name in names if name != module} for module, names in found.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def own_imports() -> dict[str, set[str]]:
    known = modules()
    return {module: imports(path.read_text(), set(known))[0] for module, path in known.items()}


def test_every_package_has_one_row() -> None:
    rows = [row_of(module) for module in modules()]

    assert [module for module in modules() if row_of(module) == "" and module] == [], "no row in ORDER"
    assert sorted(set(ORDER) - set(rows)) == [], "no such package: take it out of ORDER"
    assert len(ORDER) == len(set(ORDER))


def test_imports_point_down(own_imports: dict[str, set[str]]) -> None:
    assert wrong_directions(own_imports) == []


def test_no_modules_import_each_other_in_a_circle(own_imports: dict[str, set[str]]) -> None:
    assert circle(own_imports) == []


def test_an_import_that_points_up_and_a_circle_are_found() -> None:
    known = set(modules())
    up = "def late() -> None:\n    from agent_runtime.supervisor.supervisor import Supervisor\n"
    typed = "if TYPE_CHECKING:\n    from agent_runtime.telemetry import redaction\n"

    assert wrong_directions({"evidence.rules": imports(up, known)[0]}) == [
        "evidence.rules imports supervisor.supervisor"
    ]
    assert wrong_directions({"model.state": imports(typed, known)[0]}) == ["model.state imports telemetry.redaction"]
    assert wrong_directions({"supervisor.slots": imports("import agent_runtime.errors", known)[0]}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    with pytest.raises(ValueError, match="relative"):
        imports("from . import errors", known)


def test_pure_packages_do_no_io_and_read_no_clock() -> None:
    known = modules()
    pure = {module for module in known if module.split(".")[0] in PURE} - NOT_PURE
    found = {module: imports(known[module].read_text(), set(known))[1] & IMPURE_LIBRARIES for module in sorted(pure)}

    assert pure
    assert {module: libraries for module, libraries in found.items() if libraries} == {}


def test_only_what_demonstrates_or_proves_on_loopback_knows_the_stand_ins(own_imports: dict[str, set[str]]) -> None:
    users = {
        module
        for module, found in own_imports.items()
        if row_of(module) != "standins" and any(row_of(name) == "standins" for name in found)
    }

    assert {user for user in users if user not in MAY_USE_STAND_INS and row_of(user) not in MAY_USE_STAND_INS} == set()


def test_the_stand_ins_know_nothing_of_what_they_test(own_imports: dict[str, set[str]]) -> None:
    inside = {module: found for module, found in own_imports.items() if row_of(module) == "standins"}
    foreign = {name for found in inside.values() for name in found if row_of(name) != "standins"}

    assert inside
    assert foreign <= STAND_INS_MAY_IMPORT


def signals(source: str) -> set[str]:
    """List what in a source starts or signals a process by itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name == "subprocess")
        elif isinstance(node, ast.ImportFrom) and node.module == "subprocess":
            found.add("subprocess")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.update(
                f"{module}.{name}" for module, name in SIGNALLING if (node.value.id, node.attr) == (module, name)
            )
    return found


def test_only_the_process_package_starts_and_signals_processes() -> None:
    found = {
        module: signals(path.read_text())
        for module, path in modules().items()
        if module.split(".")[0] not in MAY_SIGNAL
    }

    assert {module: names for module, names in found.items() if names} == {}
    assert signals("import os\nos.kill(1, 9)") == {"os.kill"}
    assert signals("from subprocess import run") == {"subprocess"}


def test_packages_and_modules_stay_small() -> None:
    packages: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    for module, path in modules().items():
        lines[module] = len(path.read_text().splitlines())
        if path.name != "__init__.py" and module != "__main__":
            packages.setdefault(module.rpartition(".")[0], []).append(module)

    at_the_root = packages.pop("")
    assert len(at_the_root) <= MOST_MODULES_AT_THE_ROOT
    assert {package: found for package, found in packages.items() if len(found) > MOST_MODULES} == {}
    assert {module: count for module, count in lines.items() if count > MOST_LINES} == {}
    assert statistics.median(lines.values()) <= MEDIAN_LINES


def reached_parts(source: str) -> set[str]:
    """List what a source reads of the supervisor through more than one of the supervisor's parts."""
    chains = (ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    return {chain for chain in chains if chain.startswith("context.supervisor.") and chain.count(".") > 3}


def test_no_handler_reaches_through_the_parts_of_the_supervisor() -> None:
    assert reached_parts((ROOT / "api" / "handlers.py").read_text()) == set()
    assert reached_parts("context.supervisor.archive.records.list()") == {"context.supervisor.archive.records.list"}
    assert reached_parts("context.supervisor.admission.close()") == set()
