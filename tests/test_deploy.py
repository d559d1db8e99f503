"""
The files under ``deploy/`` agree with the code: settings, paths, ports, commands and times.

That they are what Kubernetes and Compose accept is checked against their schemas by ``tests/deploy/checks.py``.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent_runtime import __version__
from agent_runtime.api.app import ROUTES
from agent_runtime.cli.main import _parser
from agent_runtime.doctor.config import STOP_MARGIN_SECONDS
from agent_runtime.settings import PREFIX, SETTINGS, Settings, load
from tests.support.pages import BACKEND, OPERATIONS, README, blocks, section

DEPLOY = Path(__file__).parent.parent / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
DOCKERFILE = (DEPLOY.parent / "Dockerfile.agent").read_text()
PROGRAM = "/opt/agent-runtime/bin/agent-runtime"
USER = 1000


def kustomization(directory: Path) -> dict[str, Any]:
    """Read a directory's kustomization."""
    return dict(yaml.safe_load((directory / "kustomization.yaml").read_text()))


def documents(directory: Path) -> dict[str, dict[str, Any]]:
    """Read the files that the directory's kustomization lists, by kind."""
    paths = [directory / name for name in kustomization(directory)["resources"]]
    found = [yaml.safe_load(path.read_text()) for path in paths if path.is_file()]
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
        listed = [name for name in kustomization(directory)["resources"] if (directory / name).is_file()]
        assert sorted(listed) == sorted(path.name for path in directory.glob("*.yaml") if path.stem != "kustomization")


def env_file() -> dict[str, str]:
    """Read the page's file of settings as Docker does: comments are lines of their own, a value is all behind the =."""
    [text] = blocks(section(BACKEND, "What the container needs"), "ini")
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


@pytest.mark.parametrize(
    "environment", [ENVIRONMENT, SERVICE["environment"], env_file()], ids=["kubernetes", "compose", "page"]
)
def test_every_variable_is_a_setting_with_a_good_value(environment: dict[str, str]) -> None:
    assert set(environment) <= {setting.variable for setting in SETTINGS}
    assert all(isinstance(value, str) for value in environment.values()), "what is not quoted is no string"
    settings_of(environment)


def with_what_is_commented(file: Path) -> Any:
    """Read a file as if the comment signs before its settings were removed."""
    return yaml.safe_load(re.sub(r"(?m)^( *)# (?=(- \{name: )?AGENT_RUNTIME_\w+[:,])", r"\1", file.read_text()))


def test_a_setting_that_is_commented_out_is_good_as_it_stands_and_relay_and_confinement_are_everywhere() -> None:
    pod = with_what_is_commented(KUBERNETES / "statefulset.yaml")["spec"]["template"]["spec"]
    kubernetes = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    compose = with_what_is_commented(DEPLOY / "compose.yaml")["services"]["agent"]["environment"]
    image = dict(re.findall(r"(?m)^# .*\b(AGENT_RUNTIME_TOKEN_DELIVERY|AGENT_RUNTIME_CONFINE)=(\w+)", DOCKERFILE))
    for before, environment in ((ENVIRONMENT, kubernetes), (SERVICE["environment"], compose), ({}, image)):
        plain, chosen = settings_of(before), settings_of({**before, **environment})
        assert (plain.token_delivery, plain.confine) == ("auto", "off")
        assert (chosen.token_delivery, chosen.confine) == ("relay", "landlock")


def test_the_port_is_the_same_everywhere() -> None:
    [port] = CONTAINER["ports"]
    [served] = OBJECTS["Service"]["spec"]["ports"]
    [allowed] = OBJECTS["NetworkPolicy"]["spec"]["ingress"][0]["ports"]

    assert port["containerPort"] == settings_of(ENVIRONMENT).port == served["port"]
    assert port["name"] == served["targetPort"] == allowed["port"]
    assert f"EXPOSE {port['containerPort']}\n" in DOCKERFILE
    assert SERVICE["ports"] == [
        f"127.0.0.1:${{AGENT_PORT:-{port['containerPort']}}}:{settings_of(SERVICE['environment']).port}"
    ]


def test_probes_ask_open_routes_and_no_rollout_waits_for_a_token() -> None:
    paths = {name: CONTAINER[name]["httpGet"]["path"] for name in CONTAINER if name.endswith("Probe")}
    open_routes = {route.path for route in ROUTES if route.open}

    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz?ignore=token"}
    assert {path.partition("?")[0] for path in paths.values()} <= open_routes
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
        assert not {"subPath", "subPathExpr"} & set(mount)


def test_the_page_makes_the_secrets_that_the_pod_mounts() -> None:
    [commands, _] = blocks(section(OPERATIONS, "Kubernetes"), "sh")[:2]
    settings = settings_of(ENVIRONMENT)
    for path in (settings.token_file, settings.access_key_file):
        assert path is not None
        name = VOLUMES[MOUNTS[str(path.parent)]["name"]]["secret"]["secretName"]
        assert f"kubectl create secret generic {name} --from-file={path.name}=" in commands


def test_compose_binds_the_directories_of_the_secrets() -> None:
    settings = settings_of(SERVICE["environment"])
    bound = {volume["target"]: volume for volume in SERVICE["volumes"] if isinstance(volume, dict)}

    for path in (settings.token_file, settings.access_key_file):
        assert path is not None
        assert bound[str(path.parent)]["read_only"] is True
        assert not Path(bound[str(path.parent)]["source"]).suffix
    assert "secrets" not in COMPOSE
    assert "secrets" not in SERVICE


def stop_seconds(environment: dict[str, str]) -> float:
    """How long a container is given to stop with these settings: more than the drain and the grace after it take."""
    settings = settings_of(environment)
    assert settings.stop_grace + 5 <= STOP_MARGIN_SECONDS
    return settings.drain_timeout + STOP_MARGIN_SECONDS


def test_a_container_is_given_the_same_time_to_stop_everywhere() -> None:
    command = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    options = _parser().parse_args(command[1:])
    pages = [DOCKERFILE, *(page.read_text() for page in [README, *(DEPLOY.parent / "docs").glob("*.md")])]
    named = [float(number) for page in pages for number in re.findall(r"--stop-timeout[ =](\d+)", page)]

    assert command[0] == PROGRAM
    assert options.wait
    assert POD["spec"]["terminationGracePeriodSeconds"] == options.timeout + stop_seconds(ENVIRONMENT)
    assert seconds(SERVICE["stop_grace_period"]) == stop_seconds(SERVICE["environment"]) == stop_seconds({})
    assert len(named) >= 4
    assert set(named) == {stop_seconds({})}


def test_what_is_run_inside_has_a_path_that_exists_in_every_image() -> None:
    checks = [SERVICE["healthcheck"]["test"][1:], *re.findall(r'HEALTHCHECK .* CMD (\[".*"\])', DOCKERFILE)]
    [on_page] = [block for block in blocks(section(OPERATIONS, "Your own image"), "dockerfile") if "HEALTH" in block]
    checks += re.findall(r'CMD (\[".*"\])', on_page)

    assert len(checks) == 3
    assert all((yaml.safe_load(one) if isinstance(one, str) else one) == [PROGRAM, "healthcheck"] for one in checks)
    assert f"ln -s {PROGRAM} /usr/local/bin/agent-runtime" in DOCKERFILE


def test_both_images_are_started_alike_and_so_is_ones_own() -> None:
    runtime, whole = DOCKERFILE.partition("FROM scratch AS runtime")[2].partition("\nFROM ")[::2]
    [on_readme] = blocks(section(README, "In your image"), "dockerfile")
    in_operations = blocks(section(OPERATIONS, "Your own image"), "dockerfile")
    start = f'ENTRYPOINT ["/opt/agent-runtime/bin/tini", "--", "{PROGRAM}"]\nCMD ["serve"]\n'

    assert on_readme == in_operations[0]
    for text in (runtime, whole, on_readme):
        assert start in text
        assert text.count("ENTRYPOINT") == text.count("\nCMD") == 1
    assert f"COPY --from=agent-runtime {PROGRAM} /usr/local/bin/agent-runtime\n" in on_readme


def test_the_two_images_share_no_volume_container_or_directory() -> None:
    used = []
    for heading in ("The image", "Your own image"):
        text = "".join(blocks(section(OPERATIONS, heading), "sh"))
        used.append(set(re.findall(r'--name (\S+)|-v "?([^:"]+):|install -d [-\d\w ]*? -g \d+ (.*)', text)))

    assert all(len(names) >= 3 for names in used)
    assert used[0] & used[1] == set()


def test_no_image_is_named_without_a_version() -> None:
    images = {image["name"]: image for image in kustomization(KUBERNETES)["images"]}
    [own] = blocks(section(OPERATIONS, "Kubernetes"), "yaml")
    [on_page] = yaml.safe_load(own)["images"]

    assert CONTAINER["image"] == f"agent:{__version__}"
    assert images["agent"] == {"name": "agent", "newName": "agent", "newTag": __version__}
    assert (on_page["name"], on_page["newTag"]) == ("agent", __version__)


def test_pods_are_spread_over_nodes_and_zones_and_none_waits_for_that() -> None:
    constraints = POD["spec"]["topologySpreadConstraints"]

    assert [one["topologyKey"] for one in constraints] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    for one in constraints:
        assert (one["maxSkew"], one["whenUnsatisfiable"]) == (1, "ScheduleAnyway")
        assert one["labelSelector"]["matchLabels"] == STATEFUL_SET["spec"]["selector"]["matchLabels"]


@pytest.mark.parametrize(
    ("address", "port", "is_let_out"),
    [
        ("160.79.104.10", 443, True),
        ("2607:6bc0::10", 443, True),
        ("64:ff9b::a04f:680a", 443, True),  # a public IPv4 address by NAT64, in a network of IPv6 alone
        ("160.79.104.10", 80, False),
        ("169.254.20.10", 53, True),
        ("169.254.20.10", 443, False),
        ("169.254.169.254", 443, False),
        ("169.254.169.254", 53, False),
        ("169.254.169.254", 80, False),
        ("fd00:ec2::254", 443, False),
        ("10.0.0.1", 443, False),
        ("172.16.0.1", 443, False),
        ("172.31.255.255", 443, False),
        ("172.32.0.1", 443, True),
        ("192.168.1.1", 443, False),
        ("100.64.0.1", 443, False),
        ("100.127.255.255", 443, False),
        ("100.128.0.1", 443, True),
        ("fe80::1", 443, False),
        ("fdff::1", 443, False),
    ],
)
def test_only_public_addresses_and_the_nodes_name_service_are_let_out_to(
    address: str, port: int, is_let_out: bool
) -> None:
    def holds(block: dict[str, Any]) -> bool:
        ip = ipaddress.ip_address(address)
        inside = [ip in ipaddress.ip_network(net) for net in (block["cidr"], *block.get("except", []))]
        return inside[0] and not any(inside[1:])

    assert is_let_out is any(
        holds(peer["ipBlock"]) and port in [allowed["port"] for allowed in rule["ports"]]
        for rule in OBJECTS["NetworkPolicy"]["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    )


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

    for path in (settings.data_dir, settings.config_dir, settings.workspace, Path(image_variables()["HOME"])):
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
    assert set(monitor["spec"]) == {"jobLabel", "selector", "endpoints"}
    [endpoint] = monitor["spec"]["endpoints"]
    assert set(endpoint) == {"port", "path", "interval", "scrapeTimeout", "authorization"}
    assert endpoint["port"] == OBJECTS["Service"]["spec"]["ports"][0]["name"]
    assert endpoint["path"] == "/metrics"
    assert endpoint["authorization"] == {
        "type": "Bearer",
        "credentials": {"name": volume["secret"]["secretName"], "key": settings.access_key_file.name},
    }


def test_every_alert_that_asks_for_a_job_finds_that_of_each_way_to_scrape() -> None:
    """The operator takes the Service's label that jobLabel names; without it, the Service's name is the job."""
    monitor, service = documents(KUBERNETES / "monitoring")["ServiceMonitor"], OBJECTS["Service"]["metadata"]
    job = service["labels"].get(monitor["spec"].get("jobLabel"), service["name"])
    rules = (DEPLOY / "prometheus/alerts.yaml").read_text()
    pages = [rules, "".join(blocks(section(OPERATIONS, "Metrics"), "yaml"))]

    assert set(re.findall(r'\bjob="([^"]*)"', rules)) == {job}
    assert [set(re.findall(r"job_name: (\S+)", page)) for page in pages] == [{job}, {job}]


def test_the_operator_is_given_the_same_rules_and_the_dashboard() -> None:
    monitoring, grafana = KUBERNETES / "monitoring", DEPLOY / "grafana"
    rule = documents(monitoring)["PrometheusRule"]
    [dashboard] = kustomization(grafana)["configMapGenerator"]

    assert rule["apiVersion"] == "monitoring.coreos.com/v1"
    assert rule["spec"] == yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text()), (
        "copy the groups of alerts.yaml into deploy/kubernetes/monitoring/prometheusrule.yaml, under spec"
    )
    assert (monitoring / "../../grafana").resolve() == grafana.resolve()
    assert "../../grafana" in kustomization(monitoring)["resources"]
    assert dashboard["files"] == ["agent-runtime.json=dashboard.json"]
    assert kustomization(grafana)["generatorOptions"]["labels"] == {"grafana_dashboard": "1"}
