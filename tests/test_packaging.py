"""The ranges of ``pyproject.toml`` hold the pins of the image, and the image is what is tested."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile.agent").read_text()


def pins(lock: str) -> dict[str, tuple[str, int]]:
    """Return the pinned version of each package of a lock file, and the number of digests below it."""
    found: dict[str, tuple[str, int]] = {}
    name = ""
    for line in (ROOT / lock).read_text().splitlines():
        if line.startswith("    --hash=sha256:"):
            found[name] = (found[name][0], found[name][1] + 1)
        elif not line.startswith("#"):
            name, _, version = line.split()[0].partition("==")
            found[name] = (version, 0)
    return found


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("requirements.lock", PYPROJECT["project"]["dependencies"]),
        ("build.lock", PYPROJECT["build-system"]["requires"]),
    ],
    ids=["requirements", "build"],
)
def test_the_lock_pins_each_direct_dependency_within_its_range_with_a_digest(lock: str, wanted: list[str]) -> None:
    pinned = pins(lock)

    for requirement in map(Requirement, wanted):
        assert canonicalize_name(requirement.name) in pinned, f"{requirement.name} is not in {lock}"
        version, _ = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {lock} has {version}"
    assert [name for name, (version, digests) in pinned.items() if not version or digests == 0] == []


def test_every_dependency_is_a_range() -> None:
    """An exact version keeps everybody who installs the package beside another one from a security update."""
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    groups = (PYPROJECT["project"]["dependencies"], PYPROJECT["build-system"]["requires"], *extras)
    requirements = [text for group in groups for text in group]
    operators = {text: {one.operator for one in Requirement(text).specifier} for text in requirements}

    assert [text for text, used in operators.items() if ">=" not in used or used & {"==", "==="}] == []


def test_the_image_pins_the_newest_cli_that_ci_tests() -> None:
    [version] = [
        line.partition("=")[2] for line in DOCKERFILE.splitlines() if line.startswith("ARG CLAUDE_CODE_VERSION=")
    ]

    assert f"CLAUDE_VERSIONS=${{CLAUDE_VERSIONS:-2.1.30 {version}}}" in (ROOT / ".ci/run").read_text()
    assert f"npm install --prefix .venv/cli @anthropic-ai/claude-code@{version}\n" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_ones_own_image_starts_as_ours_does(page: str) -> None:
    text = (ROOT / page).read_text()
    lines = text[text.index("```dockerfile\n") :].split("```")[1].splitlines()[1:]

    assert [line.split()[0] for line in lines] == ["COPY", "COPY", "ENTRYPOINT", "CMD"]
    assert lines[2:] == DOCKERFILE.splitlines()[-2:]


def test_no_file_of_the_image_names_a_host_or_a_frontend() -> None:
    for name in ("Dockerfile.agent", "build.lock", "requirements.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text, name
        assert "# syntax=" not in text, name
