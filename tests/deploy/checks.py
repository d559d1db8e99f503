"""
What must hold of ``deploy/`` by the schemas of Kubernetes and Compose; needs the extra ``deploy``, and no network.

    pip install '.[test,deploy]' && python -m pytest -c pyproject.toml tests/deploy/checks.py
"""

from __future__ import annotations

import base64
import copy
import json
import os
import shutil
import subprocess
from importlib import resources
from typing import TYPE_CHECKING, Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from agent_runtime.secret.content import SecretContent, parse
from tests.support.pages import FLEET, OPERATIONS, ROOT, blocks, section

if TYPE_CHECKING:
    from pathlib import Path

DEPLOY = ROOT / "deploy"
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.stem != "kustomization")
TOKEN = "sk-ant-oat01-the-token-of-the-manifest-checks"
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


@pytest.mark.parametrize("name", ["compose.yaml", "compose.volume.yaml"])
def test_compose_accepts_its_file_and_would_find_a_slip_of_the_pen(name: str) -> None:
    schemas = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    validator = jsonschema.Draft202012Validator(json.loads((schemas / "compose-spec.json").read_text()))
    compose = manifest(DEPLOY / name)
    wrong = copy.deepcopy(compose)
    wrong["services"]["agent"]["read_onyl"] = True

    assert list(validator.iter_errors(compose)) == []
    assert list(validator.iter_errors(wrong)) != []


KUBECTL = """#!/bin/sh
# kubectl without a cluster: what would be sent to one is printed.
echo ---
case "$*" in
    *--dry-run=client*) exec "$REAL" "$@" ;;
    "create secret "*) exec "$REAL" "$@" --dry-run=client -o yaml ;;
    "apply -k "*) exec "$REAL" kustomize "$3" ;;
    "apply "*" -f -") exec cat ;;
    "annotate pod -l "*) shift 4; exec "$REAL" annotate --local -f "$POD" "$@" -o yaml ;;
    *) echo "not known here: $*" >&2; exit 1 ;;
esac
"""
"""Its selector is compared apart."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a checkout as a person has it, with a token to write."""
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    (tmp_path / "token.txt").write_text(TOKEN + "\n")
    return tmp_path


def typed(commands: str, directory: Path) -> list[dict[str, Any]]:
    """Type commands of a page with kubectl as above; return what would have been sent."""
    real = shutil.which("kubectl")
    if real is None:
        pytest.skip("there is no kubectl here")
    (directory / "bin").mkdir()
    kubectl, pod = directory / "bin" / "kubectl", directory / "bin" / "pod.yaml"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    pod.write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: claude-agent-0}\n")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=directory,
        env={**os.environ, "PATH": f"{kubectl.parent}:{os.environ['PATH']}", "REAL": real, "POD": str(pod)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document is not None]


def secret_of(document: dict[str, Any], key: str) -> bytes:
    assert document["kind"] == "Secret"
    return base64.b64decode(document["data"][key])


def test_the_page_of_kubernetes_can_be_typed_and_kubernetes_accepts_what_it_sends(checkout: Path) -> None:
    [commands, monitoring] = blocks(section(OPERATIONS, "Kubernetes"), "sh")[:2]
    [own] = blocks(section(OPERATIONS, "Kubernetes"), "yaml")
    (checkout / "kustomization.yaml").write_text(own)
    token, key, *objects = typed(f"{commands}\n{monitoring}", checkout)
    content = parse(secret_of(token, "token"))
    images = yaml.safe_load(own)["images"]
    [stateful_set] = [one for one in objects if one["kind"] == "StatefulSet"]

    assert isinstance(content, SecretContent)
    assert content.token.secret == TOKEN
    assert len(secret_of(key, "key").strip()) >= 32
    assert [container["image"] for container in stateful_set["spec"]["template"]["spec"]["containers"]] == [
        f"{images[0]['newName']}:{images[0]['newTag']}"
    ]
    for version in (OLDEST, NEWEST):
        for document in objects:
            if "coreos" not in document["apiVersion"]:
                kubernetes_validate.validate(document, version, strict=True)
    rules, dashboard = ([one for one in objects if one["kind"] == kind] for kind in ("PrometheusRule", "ConfigMap"))
    assert len(rules) == 1
    assert json.loads(dashboard[0]["data"]["agent-runtime.json"])["panels"]


def test_the_writer_of_a_kubernetes_secret_can_be_copied(checkout: Path) -> None:
    [commands] = [block for block in blocks(section(FLEET, "Writers to copy"), "sh") if "kubectl" in block]
    secret, pod = typed(commands, checkout)
    content = parse(secret_of(secret, "token"))
    pod_labels = manifest(DEPLOY / "kubernetes/statefulset.yaml")["spec"]["template"]["metadata"]["labels"]
    selector = commands.partition(" -l ")[2].split()[0].partition("=")[::2]

    assert isinstance(content, SecretContent)
    assert content.token.secret == TOKEN
    assert secret["metadata"]["name"] in (DEPLOY / "kubernetes/statefulset.yaml").read_text()
    assert selector in pod_labels.items()
    [annotation] = pod["metadata"]["annotations"].values()
    assert annotation.isdigit()


def test_the_rights_of_the_writer_are_a_role_that_kubernetes_accepts() -> None:
    [role] = [yaml.safe_load(block) for block in blocks(section(FLEET, "Writers to copy"), "yaml")]

    kubernetes_validate.validate(role, NEWEST, strict=True)
    assert role["rules"][0]["resourceNames"] == ["claude-token"]
