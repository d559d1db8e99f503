"""What Prometheus is told, by a real supervisor; and that alerts and dashboard ask for nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from agent_runtime.model.state import TokenState
from agent_runtime.model.tokens import Token
from agent_runtime.secret import content as secret_content
from agent_runtime.secret.content import SecretFault, Unusable
from agent_runtime.secret.file import DETACHED, UNSETTLED
from agent_runtime.secret.generations import Generation
from agent_runtime.secret.reader import read_secret
from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve
from agent_runtime.telemetry.counters import COUNTERS, HISTOGRAMS, Counts
from tests.support.supervised import NEW, OLD, Supervised, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus/alerts.yaml"
DASHBOARD = DEPLOY / "grafana/dashboard.json"
KEY = "the-access-key-of-the-metrics-tests-0123456789"
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples_of(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Scrape:
    """What one scrape told."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = samples_of(text)

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples[f"agent_runtime_{name}", tuple(sorted(labels.items()))]


def scrape(running: Supervised) -> Scrape:
    response = running.client.get("/metrics")
    response.raise_for_status()
    return Scrape(response.text)


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Let much happen to one supervisor, and keep what it told at each turn."""
    home = tmp_path_factory.mktemp("eventful")
    api = MessagesApi()
    api.accept(OLD)
    go = home / "go"
    api.script("work", Tool(command=f"touch {go}.began; until test -e {go}; do sleep 0.02; done"), Text(text="done"))
    told: dict[str, Any] = {}
    (home / "key").write_text(KEY)
    flags = (
        *("--token-delivery", "env", "--slots", "1", "--queue", "1", "--probe", "off"),
        *("--access-key-file", str(home / "key")),
    )
    with serve(api) as url, supervised(home, api_url=url, flags=flags) as running:
        told["without a key"] = running.client.get("/metrics")
        told["with a wrong one"] = running.client.get("/metrics", headers={"Authorization": "Bearer wrong"})
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        told["at the start"] = scrape(running)
        assert running.post("Say hello.").status_code == 200
        pending = running.start("[[script:work]] Do it.", execution_id="one", park_seconds=60)
        eventually((home / "go.began").exists)
        queued = running.start("Say hello.", execution_id="two", park_seconds=60)
        eventually(lambda: running.get("/api/executions/running")["pending_ids"])
        assert running.post("Say hello.").status_code == 409
        told["while it runs"] = scrape(running)
        api.on(OLD, "expired")
        go.touch()
        eventually(lambda: running.record("two")["state"] == running.record("one")["state"] == "parked")
        told["while parked"] = scrape(running)
        running.token_file.with_name("bad").write_text("<html>no token</html>\n")
        running.token_file.with_name("bad").replace(running.token_file)
        eventually(lambda: running.get("/api/token")["error"])
        told["a bad file"] = scrape(running)
        api.accept(NEW)
        running.write_token(NEW)
        assert [one.answer().status_code for one in (pending, queued)] == [200, 200]
        running.post("Say hello.", execution_id=NEW, model="no-such")
        told["at the end"] = scrape(running)
        told["openmetrics"] = running.client.get("/metrics", headers={"Accept": OPENMETRICS})
        told["records"] = [running.record(name) for name in ("one", "two")]
        told["health"] = running.get("/health")
    return told


def test_metrics_need_the_access_key(eventful: dict[str, Any]) -> None:
    assert [eventful[name].status_code for name in ("without a key", "with a wrong one")] == [401, 401]


def test_what_is_so_now_is_read_from_its_owner(eventful: dict[str, Any]) -> None:
    start, busy, parked, end = (eventful[n] for n in ("at the start", "while it runs", "while parked", "at the end"))

    assert [start("slots"), start("slots_taken"), start("slots_unkillable"), start("queue_limit")] == [1, 0, 0, 1]
    assert [busy("slots_taken"), busy("queue_length")] == [1, 1]
    assert [busy("executions", phase=phase) for phase in ("running", "queued", "parked")] == [1, 1, 0]
    assert [parked("executions", phase=phase) for phase in ("running", "queued", "parked")] == [0, 0, 2]
    assert parked("slots_taken") == 0
    assert [one("token_generation") for one in (start, parked, end)] == [1, 1, 2]
    assert [one("ready") for one in (start, parked, end)] == [1, 0, 1]
    for one, state in ((start, "ready"), (parked, "refused"), (end, "ready")):
        states = {
            dict(labels)["state"]: value for (name, labels), value in one.samples.items() if "token_state" in name
        }
        assert [known for known, value in states.items() if value == 1] == [state]
        assert set(states) == set(TokenState)
    assert eventful["a bad file"]("secret_file_bad") == 1
    assert end("secret_file_bad") == 0
    assert 0 <= end("token_age_seconds") < 60
    assert end("token_last_success_timestamp_seconds") > start("process_start_time_seconds")
    assert end("build_info", version=eventful["health"]["version"]) == 1
    assert end("process_resident_memory_bytes") > 1e6


def test_what_happened_is_counted_once(eventful: dict[str, Any]) -> None:
    end, records = eventful["at the end"], eventful["records"]
    stopped = [attempt for record in records for attempt in record["attempts"] if attempt["evidence"]]

    assert end("executions_admitted_total") == 4
    assert end("executions_finished_total", outcome="success", error_class="none") == 4
    assert end("admissions_refused_total", error_class="busy") == 1
    assert end("attempts_total") == 2 + sum(len(record["attempts"]) for record in records)
    assert end("attempt_stops_total", reason="refused") == len(stopped) > 0
    assert sum(end("evidence_total", rule=rule) for rule in {one["evidence"]["rule"] for one in stopped}) == len(
        stopped
    )
    assert end("executions_parked_total") == 2
    assert end("executions_resumed_total") == sum(record["metadata"]["resumes"] for record in records)
    assert end("token_refusals_total") == 1
    assert end("token_loads_total") == 2
    assert end("secret_read_errors_total", reason="wrong_content") == 1
    assert end("survivors_total") == end("records_unwritten_total") == end("log_lines_lost_total") == 0
    assert end("line_to_signal_seconds_count") == end("signal_to_gone_seconds_count") == len(stopped)
    assert end("line_to_signal_seconds_sum") == pytest.approx(
        sum(one["evidence"]["seconds_to_signal"] for one in stopped)
    )
    assert end("token_write_to_known_seconds_count") == 1, "not of the one that was there before the start"
    assert end("token_write_to_first_request_seconds_count") == 1
    assert end("token_write_to_known_seconds_sum") <= end("token_write_to_first_request_seconds_sum") < 30
    assert end("http_requests_total", method="GET", path="/metrics", status="401") == 2


def test_nothing_without_end_and_nothing_secret_is_a_label(eventful: dict[str, Any]) -> None:
    end = eventful["at the end"]
    allowed = {
        *("outcome", "error_class", "reason", "rule", "phase", "state", "version", "le", "slot"),
        *("method", "path", "status", "subscription", "model", "kind"),
    }

    assert {label for _, labels in end.samples for label, _ in labels} <= allowed
    for secret in (OLD, NEW, KEY, Token(OLD).fingerprint, Token(NEW).fingerprint, "one"):
        assert f'"{secret}' not in end.text
        assert secret == "one" or secret not in end.text


def test_names_follow_the_conventions(eventful: dict[str, Any]) -> None:
    families = list(text_string_to_metric_families(eventful["at the end"].text))

    assert all(family.name.startswith("agent_runtime_") for family in families)
    assert all(family.documentation for family in families)
    assert not any(re.search("_(ms|milliseconds|minutes|kb|mb|count|bucket)$", family.name) for family in families)
    for family in families:
        assert (family.type == "counter") == any(one.name.endswith("_total") for one in family.samples), family.name


def test_openmetrics_is_spoken_where_it_is_asked_for(eventful: dict[str, Any]) -> None:
    response = eventful["openmetrics"]

    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family.type for family in parse_openmetrics(response.text)}  # type: ignore[no-untyped-call] # its library says nothing
    assert families["agent_runtime_build"] == "info"
    assert families["agent_runtime_executions_admitted"] == "counter"


def test_what_can_be_counted_is_there_before_it_happens(eventful: dict[str, Any]) -> None:
    start = eventful["at the start"]

    for name, counter in COUNTERS.items():
        for labels in counter.known:
            expected = 1 if name == "token_loads" else 0  # the one that was there
            assert start(f"{name}_total", **dict(zip(counter.labels, map(str, labels), strict=True))) == expected
    for name in set(HISTOGRAMS) - {"event_loop_lag_seconds"}:
        assert start(f"{name}_count") == 0


@pytest.mark.slow
def test_the_loops_lag_is_looked_at_once_a_second(tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        eventually(lambda: scrape(running)("event_loop_lag_seconds_count") >= 1)


# -- counting


def generation(number: int, *, written_at: float | None, loaded_at: float) -> Generation:
    return Generation(number, Token(f"sk-ant-oat01-{number}"), loaded_at, written_at=written_at)


def sample(counts: Counts, name: str, **labels: str) -> float | None:
    return counts.registry.get_sample_value(f"agent_runtime_{name}", labels)


def test_of_a_token_that_was_there_before_the_start_nothing_is_measured() -> None:
    counts = Counts(since=100.0)
    for old in (generation(1, written_at=50.0, loaded_at=101.0), generation(2, written_at=None, loaded_at=101.0)):
        counts.observe_load(old)
        counts.observe_answer(old, 102.0)

    assert sample(counts, "token_write_to_known_seconds_count") == 0
    assert sample(counts, "token_write_to_first_request_seconds_count") == 0


def test_only_the_first_answer_on_a_generation_is_measured_and_none_on_an_older_one() -> None:
    counts = Counts(since=100.0)
    older, newer = (generation(n, written_at=110.0 + n, loaded_at=111.0 + n) for n in (1, 2))
    for one, now in ((newer, 113.5), (newer, 150.0), (older, 160.0)):
        counts.observe_answer(one, now)

    assert sample(counts, "token_write_to_first_request_seconds_sum") == 1.5
    assert counts.last_answered_at == 160.0


def test_a_time_below_zero_that_two_clocks_can_give_counts_as_zero() -> None:
    counts = Counts()
    counts.observe("line_to_signal_seconds", -1.0)

    assert sample(counts, "line_to_signal_seconds_bucket", le="0.0001") == 1
    assert sample(counts, "line_to_signal_seconds_sum") == 0


def test_a_label_too_many_or_an_unknown_name_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="label"):
        Counts().count("attempts", "one")
    with pytest.raises(KeyError):
        Counts().count("no_such_thing")


def test_every_reason_against_a_secret_file_has_a_kind(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    contents = (
        *(b"", b"a\0", b"a\nb", b"<html>", b"a b", b"a\x01", b"\xc3\xa9", b"{", b"{}", b'{"token": 1}'),
        *(b'{"token": ""}', b'{"token": "a b"}', b"x" * 70_000, b'{"token": "abc", "expires_at": -1}'),
    )
    found = [secret_content.parse(content) for content in contents]
    found += [read_secret(tmp_path / name).found for name in ("none", "directory")]
    faults = [one.fault for one in found if isinstance(one, Unusable)]

    assert len(faults) == len(found)
    assert {*faults, UNSETTLED.fault, DETACHED.fault} == set(SecretFault) - {SecretFault.OTHER, SecretFault.UNREADABLE}


# -- alerts and dashboard


def asked_for(text: str) -> set[str]:
    """Name every metric of ours in an expression."""
    return set(re.findall(r"\bagent_runtime_[a-z_]+", text))


def expressions(value: Any) -> Iterator[str]:
    """Find every expression and query of a dashboard."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name in ("expr", "query", "definition") and isinstance(item, str):
                yield item
            else:
                yield from expressions(item)
    elif isinstance(value, list):
        for item in value:
            yield from expressions(item)


@pytest.fixture(scope="module")
def exposed(eventful: dict[str, Any]) -> set[str]:
    families = list(text_string_to_metric_families(eventful["at the end"].text))
    # A time that is not known yet has no sample, and is there all the same.
    return {one.name for family in families for one in family.samples} | {
        family.name for family in families if not family.samples
    }


def test_alerts_ask_only_for_what_there_is(exposed: set[str]) -> None:
    asked = asked_for(ALERTS.read_text())

    assert len(asked) > 10
    assert asked - exposed == set()


def test_the_dashboard_asks_only_for_what_there_is_and_for_most_of_it(exposed: set[str]) -> None:
    asked = {name for expression in expressions(json.loads(DASHBOARD.read_text())) for name in asked_for(expression)}

    assert asked - exposed == set()
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in exposed}
    shown = {re.sub("_bucket$", "", name) for name in asked}
    assert families - shown - {f"agent_runtime_{name}" for name in NOT_SHOWN} == set()


NOT_SHOWN = {
    *("executions_held_total", "executions_held_now", "relay_requests_total", "relay_first_byte_seconds"),
    *("response_buffer_bytes", "response_buffer_limit_bytes", "readers_let_go_total"),
    *("draining", "consecutive_failures", "secret_file_bad"),
    *("process_virtual_memory_bytes", "process_max_fds", "process_start_time_seconds"),
}
"""For alerts, or for those who look for themselves."""


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not covered & cells, panel["title"]
        cells |= covered
    text = DASHBOARD.read_text()
    assert "://" not in text
    assert set(re.findall(r"\$\{?([a-z_]+)", text)) <= {
        variable["name"] for variable in dashboard["templating"]["list"]
    } | {
        "__rate_interval",
        "__all",
    }


def test_every_alert_says_what_to_do() -> None:
    """By lines, since no YAML parser belongs to the tests; promtool reads it as YAML."""
    alerts = ALERTS.read_text().split("- alert: ")[1:]

    assert len(alerts) >= 15
    for alert in alerts:
        name = alert.splitlines()[0]
        assert name.startswith("AgentRuntime")
        for part in ("expr: ", "labels: {severity: ", "annotations:", "summary: ", "description: "):
            assert alert.count(part) == 1, (name, part)


PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool here (Debian package prometheus)")


def promtool(*arguments: str, stdin: str = "") -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_promtool
def test_promtool_takes_the_alerts_and_their_own_tests() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(ALERTS))
    promtool("test", "rules", str(ALERTS.with_name("alerts_test.yaml")))


@needs_promtool
def test_promtool_finds_nothing_against_the_metrics(eventful: dict[str, Any]) -> None:
    assert promtool("check", "metrics", stdin=eventful["at the end"].text) == ""


@needs_promtool
def test_promtool_takes_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    found = [one for one in expressions(json.loads(DASHBOARD.read_text())) if "label_values" not in one]
    rules = [
        f"  - record: r{number}\n    expr: {json.dumps(one)}"
        for number, one in enumerate(text.replace("$__rate_interval", "1m") for text in found if text != "prometheus")
    ]
    (tmp_path / "rules.yaml").write_text("groups:\n- name: dashboard\n  rules:\n" + "\n".join(rules) + "\n")

    assert f"{len(rules)} rules found" in promtool("check", "rules", str(tmp_path / "rules.yaml"))
