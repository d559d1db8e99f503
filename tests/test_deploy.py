"""
The files under ``deploy/`` agree with the code: settings, paths, ports, commands and times.

That they are what Kubernetes and Compose accept is checked against their schemas by ``tests/deploy/checks.py``.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent_runtime.api.app import ROUTES
from agent_runtime.cli.main import _parser
from agent_runtime.settings import PREFIX, SETTINGS, Settings, load

DEPLOY = Path(__file__).parent.parent / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
DOCKERFILE = (DEPLOY.parent / "Dockerfile.agent").read_text()
USER = 1000


def documents(directory: Path) -> dict[str, dict[str, Any]]:
    """Read what the directory's kustomization lists, by kind."""
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    found = [yaml.safe_load((directory / name).read_text()) for name in kustomization["resources"]]
    return {document["kind"]: document for document in found}


OBJECTS = documents(KUBERNETES)
STATEFUL_SET = OBJECTS["StatefulSet"]
POD = STATEFUL_SET["spec"]["template"]
[CONTAINER] = POD["spec"]["containers"]
ENVIRONMENT = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}
MOUNTS = {mount["mountPath"]: mount for mount in CONTAINER["volumeMounts"]}
VOLUMES = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
CLAIMS = {claim["metadata"]["name"] for claim in STATEFUL_SET["spec"]["volumeClaimTemplates"]}
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICE = COMPOSE["services"]["agent"]


def image_variables() -> dict[str, str]:
    """Read the ENV instruction of the image."""
    lines = DOCKERFILE[DOCKERFILE.rindex("\nENV ") + 5 :].split("\nVOLUME")[0]
    return dict(word.split("=", 1) for word in shlex.split(lines.replace("\\\n", " ")))


def settings_of(environment: dict[str, str]) -> Settings:
    """Read the settings as the supervisor does there, with what the image sets."""
    return load({**image_variables(), **environment})


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])


def writable_in_pod() -> set[str]:
    return {path for path, mount in MOUNTS.items() if mount["name"] in CLAIMS or "emptyDir" in VOLUMES[mount["name"]]}


def test_every_manifest_is_listed_in_a_kustomization() -> None:
    for directory in (KUBERNETES, KUBERNETES / "monitoring"):
        listed = yaml.safe_load((directory / "kustomization.yaml").read_text())["resources"]
        assert sorted(listed) == sorted(path.name for path in directory.glob("*.yaml") if path.stem != "kustomization")


@pytest.mark.parametrize("environment", [ENVIRONMENT, SERVICE["environment"]], ids=["kubernetes", "compose"])
def test_every_variable_is_a_setting_with_a_good_value(environment: dict[str, str]) -> None:
    assert set(environment) <= {setting.variable for setting in SETTINGS}
    assert all(isinstance(value, str) for value in environment.values()), "what is not quoted is no string"
    settings_of(environment)


def test_the_port_is_the_same_everywhere() -> None:
    [port] = CONTAINER["ports"]
    [served] = OBJECTS["Service"]["spec"]["ports"]
    [allowed] = OBJECTS["NetworkPolicy"]["spec"]["ingress"][0]["ports"]

    assert port["containerPort"] == settings_of(ENVIRONMENT).port == served["port"]
    assert port["name"] == served["targetPort"] == allowed["port"]
    assert f"EXPOSE {port['containerPort']}\n" in DOCKERFILE
    assert SERVICE["ports"] == [f"127.0.0.1:{port['containerPort']}:{settings_of(SERVICE['environment']).port}"]


def test_probes_ask_open_routes_and_only_readiness_asks_for_the_token() -> None:
    paths = {name: CONTAINER[name]["httpGet"]["path"] for name in CONTAINER if name.endswith("Probe")}
    open_routes = {route.path for route in ROUTES if route.open}

    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    assert set(paths.values()) <= open_routes
    assert {CONTAINER[name]["httpGet"]["port"] for name in paths} == {"http"}


def test_secrets_are_mounted_as_directories_where_the_settings_look() -> None:
    settings = settings_of(ENVIRONMENT)
    for path in (settings.token_file, settings.access_key_file):
        assert path is not None
        mount = MOUNTS[str(path.parent)]
        assert "secret" in VOLUMES[mount["name"]]
        assert "items" not in VOLUMES[mount["name"]]["secret"]
        assert VOLUMES[mount["name"]]["secret"]["defaultMode"] == 0o440
        assert mount["readOnly"] is True
    assert not any("subPath" in mount or "subPathExpr" in mount for mount in MOUNTS.values())


def test_the_page_makes_the_secrets_that_the_pod_mounts() -> None:
    page = (DEPLOY.parent / "docs/operations.md").read_text()
    settings = settings_of(ENVIRONMENT)
    for path in (settings.token_file, settings.access_key_file):
        assert path is not None
        name = VOLUMES[MOUNTS[str(path.parent)]["name"]]["secret"]["secretName"]
        assert f"kubectl create secret generic {name} --from-file={path.name}=FILE\n" in page


def test_compose_binds_the_directories_of_the_secrets() -> None:
    settings = settings_of(SERVICE["environment"])
    bound = {volume["target"]: volume for volume in SERVICE["volumes"] if isinstance(volume, dict)}

    for path in (settings.token_file, settings.access_key_file):
        assert path is not None
        assert bound[str(path.parent)]["read_only"] is True
        assert not Path(bound[str(path.parent)]["source"]).suffix
    assert "secrets" not in COMPOSE
    assert "secrets" not in SERVICE


def test_a_pod_is_given_the_time_that_its_end_may_take() -> None:
    settings = settings_of(ENVIRONMENT)
    command = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    options = _parser().parse_args(command[1:])

    assert command[0] == "agent-runtime"
    assert "ln -s /opt/agent-runtime/bin/agent-runtime /usr/local/bin/agent-runtime" in DOCKERFILE
    assert options.wait
    least = options.timeout + settings.drain_timeout + settings.stop_grace
    assert POD["spec"]["terminationGracePeriodSeconds"] >= least + 5


def test_compose_gives_it_the_time_too() -> None:
    settings = settings_of(SERVICE["environment"])

    assert seconds(SERVICE["stop_grace_period"]) >= settings.drain_timeout + settings.stop_grace + 5


def test_executions_park_longer_than_a_kubelet_takes_to_show_a_secret() -> None:
    kubelet_sync_and_cache_seconds = 60 + 60
    park_seconds = settings_of(ENVIRONMENT).park

    assert park_seconds is not None
    assert park_seconds > kubelet_sync_and_cache_seconds


def test_all_that_is_written_is_writable_and_nothing_else() -> None:
    settings = settings_of(ENVIRONMENT)
    in_compose = {volume.split(":")[1] for volume in SERVICE["volumes"] if isinstance(volume, str)}
    in_compose |= {mount.split(":")[0] for mount in SERVICE["tmpfs"]}
    written = {settings.data_dir, settings.workspace, Path(image_variables()["HOME"]), Path("/tmp")}

    for writable in (writable_in_pod(), in_compose):
        assert {str(path) for path in written} <= writable
        assert any(settings.config_dir.is_relative_to(path) for path in writable)
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert SERVICE["read_only"] is True


def test_what_must_outlive_a_pod_is_on_a_claim() -> None:
    settings = settings_of(ENVIRONMENT)

    for path in (settings.data_dir, settings.config_dir, settings.workspace):
        assert any(mount["name"] in CLAIMS and path.is_relative_to(at) for at, mount in MOUNTS.items() if path)


def test_it_runs_as_the_images_user_without_any_privilege() -> None:
    context = POD["spec"]["securityContext"]

    assert f"USER {USER}:{USER}\n" in DOCKERFILE
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (USER, USER, USER)
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert CONTAINER["securityContext"]["allowPrivilegeEscalation"] is False
    assert SERVICE["cap_drop"] == ["ALL"]
    assert SERVICE["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in SERVICE, "the image's own"


def test_no_service_link_can_be_taken_for_a_setting() -> None:
    prefix = OBJECTS["Service"]["metadata"]["name"].upper().replace("-", "_") + "_"

    assert POD["spec"]["enableServiceLinks"] is False
    assert not prefix.startswith(PREFIX)


def test_selectors_find_the_pods_and_an_agent_that_is_not_ready_can_be_heard() -> None:
    labels = POD["metadata"]["labels"]
    monitor = documents(KUBERNETES / "monitoring")["ServiceMonitor"]

    assert STATEFUL_SET["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert OBJECTS["Service"]["spec"]["selector"].items() <= labels.items()
    assert OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert monitor["spec"]["selector"]["matchLabels"].items() <= OBJECTS["Service"]["metadata"]["labels"].items()
    assert STATEFUL_SET["spec"]["serviceName"] == OBJECTS["Service"]["metadata"]["name"]
    assert OBJECTS["Service"]["spec"]["publishNotReadyAddresses"] is True


def test_prometheus_shows_the_access_key_and_asks_the_served_port() -> None:
    """The schema of a ServiceMonitor is not in the package of Kubernetes' own: its form is held here."""
    monitor = documents(KUBERNETES / "monitoring")["ServiceMonitor"]
    settings = settings_of(ENVIRONMENT)
    assert settings.access_key_file is not None
    volume = VOLUMES[MOUNTS[str(settings.access_key_file.parent)]["name"]]

    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "endpoints"}
    [endpoint] = monitor["spec"]["endpoints"]
    assert set(endpoint) == {"port", "path", "interval", "scrapeTimeout", "authorization"}
    assert endpoint["port"] == OBJECTS["Service"]["spec"]["ports"][0]["name"]
    assert endpoint["path"] == "/metrics"
    assert endpoint["authorization"] == {
        "type": "Bearer",
        "credentials": {"name": volume["secret"]["secretName"], "key": settings.access_key_file.name},
    }
