"""The pins of ``pyproject.toml`` and those of the image are the same."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile.agent").read_text()


def pins(lock: str) -> dict[str, int]:
    """Return each ``name==version`` of a lock file with the number of digests below it."""
    found: dict[str, int] = {}
    for line in (ROOT / lock).read_text().splitlines():
        if line.startswith("    --hash=sha256:"):
            found[list(found)[-1]] += 1
        elif not line.startswith("#"):
            found[line.split()[0]] = 0
    return found


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("requirements.lock", PYPROJECT["project"]["dependencies"]),
        ("build.lock", PYPROJECT["build-system"]["requires"]),
    ],
    ids=["requirements", "build"],
)
def test_the_lock_has_the_pins_of_pyproject_and_a_digest_for_each(lock: str, wanted: list[str]) -> None:
    assert set(wanted) <= set(pins(lock))
    assert [pin for pin, digests in pins(lock).items() if "==" not in pin or digests == 0] == []


def test_the_image_pins_the_newest_cli_that_ci_tests() -> None:
    [version] = [
        line.partition("=")[2] for line in DOCKERFILE.splitlines() if line.startswith("ARG CLAUDE_CODE_VERSION=")
    ]

    assert f"CLAUDE_VERSIONS=${{CLAUDE_VERSIONS:-2.1.30 {version}}}" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_the_two_lines_for_ones_own_image_are_those_that_are_tested(page: str) -> None:
    text = (ROOT / page).read_text()
    lines = text[text.index("```dockerfile\n") :].split("```")[1].splitlines()[1:]

    assert [line.split()[0] for line in lines] == ["COPY", "ENTRYPOINT"]
    assert (ROOT / "tests/image/Dockerfile.own").read_text().splitlines()[-2:] == lines
    assert lines[1] in DOCKERFILE


def test_no_file_of_the_image_names_a_host_or_a_frontend() -> None:
    for name in ("Dockerfile.agent", "build.lock", "requirements.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text, name
        assert "# syntax=" not in text, name
