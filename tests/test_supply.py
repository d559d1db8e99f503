"""The SBOM is that of the lock files and the image, and the audit never takes "could not ask" for "clean"."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.test_packaging import DOCKERFILE, PYPROJECT, pins

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SBOM: dict[str, Any] = json.loads((ROOT / "sbom.cdx.json").read_text())
MAKE_ANOTHER = "run scripts/sbom with an interpreter that has the extra supply"


def components(**wanted: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in SBOM["components"] if wanted.items() <= one.items()}


@pytest.mark.parametrize(("lock", "scope"), [("requirements.lock", "required"), ("build.lock", "excluded")])
def test_the_sbom_has_the_packages_versions_and_digests_of_the_lock_files(lock: str, scope: str) -> None:
    listed = components(scope=scope)
    text = (ROOT / lock).read_text()

    assert {name: one["version"] for name, one in listed.items()} == {
        name: version for name, (version, _) in pins(lock).items()
    }, MAKE_ANOTHER
    digests = [hash_["content"] for one in listed.values() for hash_ in one["externalReferences"][0]["hashes"]]
    assert sorted(digests) == sorted(part[:64] for part in text.split("--hash=sha256:")[1:]), MAKE_ANOTHER
    assert [name for name, one in listed.items() if not one["licenses"]] == []


def test_the_sbom_names_the_base_image_the_cli_and_this_version() -> None:
    [base] = components(type="container").values()
    [cli] = components(type="application").values()

    assert f"ARG BASE_IMAGE={base['name']}:{base['version']}\n" in DOCKERFILE, MAKE_ANOTHER
    assert f"ARG CLAUDE_CODE_VERSION={cli['version']}\n" in DOCKERFILE, MAKE_ANOTHER
    assert SBOM["metadata"]["component"]["version"] == PYPROJECT["project"]["version"], MAKE_ANOTHER
    assert "://" not in (ROOT / "sbom.cdx.json").read_text().replace('"http://cyclonedx.org/', "")


def test_each_part_has_a_place_in_the_dependencies() -> None:
    needs = {one["ref"]: one.get("dependsOn", []) for one in SBOM["dependencies"]}
    reached = {"agent-runtime"}
    while more := {part for one in reached for part in needs.get(one, [])} - reached:
        reached |= more
    assert {one["bom-ref"] for one in SBOM["components"] if one.get("scope") != "excluded"} <= reached


def test_the_licences_are_printed_of_all_parts() -> None:
    ran = subprocess.run([ROOT / "scripts/sbom", "--licences"], capture_output=True, text=True, check=True)

    rows = [line.split("\t") for line in ran.stdout.splitlines()]
    assert len(rows) == len(SBOM["components"])
    assert [row for row in rows if len(row) != 3 or not row[2]] == []
    assert ["uvicorn", pins("requirements.lock")["uvicorn"][0], "BSD-3-Clause"] in rows


FAULT = {
    "id": "GHSA-made-up",
    "aliases": ["CVE-2026-00000"],
    "summary": "made up",
    "affected": [{"package": {"name": "h11", "ecosystem": "PyPI"}, "ranges": []}],
}


@pytest.fixture
def database() -> Iterator[HTTPServer]:
    """Answer as the OSV database does; *faulty* are the packages with a vulnerability."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"vulns": [FAULT]} if asked["package"]["name"] in server.faulty else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    class Server(HTTPServer):
        faulty: tuple[str, ...] = ()

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pip_audit") is None, reason="no pip-audit: install the extra supply")
@pytest.mark.parametrize(
    ("faulty", "code", "told"),
    [
        ((), 0, "no vulnerability is known of"),
        (("h11",), 1, "h11 0.16.0: CVE-2026-00000 GHSA-made-up; fixed in no version yet"),
        (None, 75, "could not ask"),
    ],
    ids=["clean", "vulnerable", "unreachable"],
)
def test_an_audit_tells_clean_vulnerable_and_not_asked_apart(
    database: HTTPServer, faulty: tuple[str, ...] | None, code: int, told: str
) -> None:
    vars(database)["faulty"] = faulty or ()
    port = database.server_port if faulty is not None else 1
    command = [sys.executable, str(ROOT / "scripts/audit"), "--osv-url", f"http://127.0.0.1:{port}/v1/query"]

    ran = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (ran.returncode, told in ran.stdout) == (code, True), ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr
