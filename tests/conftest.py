"""What all tests share: the real CLIs they are run with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from agent_runtime.process.containment.sweep import Kind
from agent_runtime.standins.messages_api import MessagesApi, serve
from tests.support import api_mode, families
from tests.support.api_mode import CLAUDES, claudes
from tests.support.supervised import API_KEY, NEW, OLD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from _pytest.mark import ParameterSet


REQUIRED = "AGENT_RUNTIME_TEST_REQUIRE_CLAUDE"


# The same examples at each run, so that no change fails for what it has not changed. To look for more than these:
# pytest --hypothesis-profile search -k properties
hypothesis.settings.register_profile("same", max_examples=50, derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("search", max_examples=1000, deadline=None, database=None)
hypothesis.settings.load_profile("same")

# A shell that starts pytest in the background has it ignore SIGINT, and so would every process the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _version_of(executable: str) -> str:
    """Tell a readable id: the directory above ``node_modules`` is named after the version."""
    parts = Path(executable).parts
    return parts[parts.index("node_modules") - 1] if "node_modules" in parts else executable


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "claude" in metafunc.fixturenames:
        is_marked = metafunc.definition.get_closest_marker
        found = claudes(os.environ, and_older=is_marked("every_cli") is not None) or [""]
        if is_marked("newest_cli") is not None:
            found = found[-1:]
        metafunc.parametrize("claude", found, ids=_version_of, indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Begin with the tests that have a timeout of their own, which take longest, and then with the largest modules.

    A worker runs a whole module: a large one that is begun last keeps it busy while the others have nothing left.
    """
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.get_closest_marker("timeout") is None, -sizes[item.path]))


def _in_turn(kinds: Iterable[Kind]) -> list[ParameterSet]:
    """Take the one that works everywhere by default, and the others with the slow tests."""
    return [pytest.param(kind, id=kind.value, marks=() if kind is Kind.SCAN else pytest.mark.slow) for kind in kinds]


@pytest.fixture(params=_in_turn(families.KINDS))
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """Each way of containment in its turn, with which the test starts its children; skipped where it is missing."""
    each: Kind = request.param
    if (reason := families.why_not(each)) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(families, "chosen", each)
    return each


@pytest.fixture(scope="session", autouse=True)
def _what_was_proved_is_shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    own = tmp_path_factory.getbasetemp()
    if not os.environ.get(api_mode.SHARED):
        api_mode.shared_directory = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def _no_fork_server_is_left() -> Iterator[None]:
    yield
    families.spawner.close()


@pytest.fixture
def claude(request: pytest.FixtureRequest) -> str:
    """The real CLI; without one the test is skipped, or fails where it is required (as in CI)."""
    executable: str = request.param
    if executable:
        return executable
    reason = f"no real CLI: set {CLAUDES} to its path (colon-separated for several)"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def clean_environment(tmp_path: Path) -> dict[str, str]:
    """
    What a CLI is started with so that nothing of this machine or its user reaches it: a home of its own, no credential.

    Both directories exist and are empty.
    """
    home, config_dir = tmp_path / "home", tmp_path / "home/.claude"
    config_dir.mkdir(parents=True)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "CLAUDE_CONFIG_DIR": str(config_dir)}


@pytest.fixture
def api() -> MessagesApi:
    """A stand-in API that knows the tokens of a supervised supervisor."""
    api = MessagesApi()
    for token in (OLD, NEW, API_KEY):
        api.accept(token)
    return api


@pytest.fixture
def url(api: MessagesApi) -> Iterator[str]:
    """Where :func:`api` answers, while the test runs."""
    with serve(api) as base_url:
        yield base_url


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Make a key and a certificate for localhost that no CA knows."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("no openssl to make a certificate with")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*command, "-keyout", str(key), "-out", str(cert), "-days", "2", *subject], check=True, capture_output=True
    )
    return key, cert
