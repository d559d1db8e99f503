"""
What must hold of ``deploy/`` by the schemas of Kubernetes and Compose; needs the extra ``deploy``, and no network.

    pip install '.[test,deploy]' && python -m pytest -c pyproject.toml tests/deploy/checks.py
"""

from __future__ import annotations

import copy
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.stem != "kustomization")
OLDEST, NEWEST = "1.29", "1.37"
"""The releases of Kubernetes that are looked at."""


def manifest(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_accepts_it_with_no_field_it_does_not_know(path: Path, version: str) -> None:
    kubernetes_validate.validate(manifest(path), version, strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_slip_of_the_pen_in_it_would_be_found(path: Path) -> None:
    wrong = copy.deepcopy(manifest(path))
    wrong["spec"]["selectro"] = {}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_compose_accepts_its_file_and_would_find_a_slip_of_the_pen() -> None:
    schemas = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    validator = jsonschema.Draft202012Validator(json.loads((schemas / "compose-spec.json").read_text()))
    compose = manifest(DEPLOY / "compose.yaml")
    wrong = copy.deepcopy(compose)
    wrong["services"]["agent"]["read_onyl"] = True

    assert list(validator.iter_errors(compose)) == []
    assert list(validator.iter_errors(wrong)) != []
