"""The page in a real browser, before a real supervisor: what it shows, live; keys; keyboard, phone, and dark mode."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from agent_runtime.standins.messages_api import MessagesApi, Text, Tool, serve
from tests.support.browser import (
    DESKTOP,
    HOSTILE,
    KEY,
    PHONE,
    REQUIRED,
    Scene,
    chromium,
    looks,
    refuse_the_token,
    scene,
)
from tests.support.supervised import NEW, OLD, Supervised, eventually, supervised
from tests.system.test_executions import OK, holding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

AXE = "AGENT_RUNTIME_TEST_AXE"
"""Path of axe.min.js (npm: axe-core)."""

SCREENSHOTS = "AGENT_RUNTIME_TEST_SCREENSHOTS"
"""A directory to keep pictures of the page in."""

NARROW = (320, 640)


@pytest.fixture(scope="module")
def window() -> Iterator[Chrome]:
    with chromium() as it:
        yield it


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("busy")) as it:
        yield it


def find(window: Chrome, selector: str) -> WebElement:
    return window.find_element(By.CSS_SELECTOR, selector)


def text(window: Chrome, selector: str) -> str:
    """Tell what is written there, shown or not."""
    return str(window.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector))


def texts(window: Chrome, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(node => node.textContent)"
    found: list[str] = window.execute_script(script, selector)
    return found


def count(window: Chrome, selector: str) -> int:
    return len(texts(window, selector))


def show(window: Chrome, running: Supervised, fragment: str = "", **look: Any) -> None:
    """Open the page as if for the first time, with nothing left of what was open before."""
    looks(window, **look)
    window.get("about:blank")
    window.get_log("browser")  # type: ignore[no-untyped-call]
    window.get_log("performance")  # type: ignore[no-untyped-call]
    window.get(f"{running.url}/{fragment}")


def live(window: Chrome, running: Supervised, fragment: str = "", **look: Any) -> None:
    show(window, running, fragment, **look)
    eventually(lambda: text(window, "#link") == "Live" and text(window, "#slots-text") != "…")


def row(window: Chrome, name: str) -> WebElement:
    [found] = [one for one in window.find_elements(By.CSS_SELECTOR, "#rows button") if name in one.text]
    return found


def pieces(window: Chrome, name: str) -> list[str]:
    """Tell the kinds of what stands in one execution's lane, in order."""
    script = "return [...arguments[0].querySelectorAll('.piece')].map(piece => piece.className.replace('piece ', ''))"
    found: list[str] = window.execute_script(script, row(window, name))
    return found


def word(window: Chrome, name: str) -> str:
    return row(window, name).find_element(By.CSS_SELECTOR, "em").text


def asked_hosts(window: Chrome) -> set[str]:
    """Tell every origin the browser was made to ask."""
    found = set()
    for entry in window.get_log("performance"):  # type: ignore[no-untyped-call]
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if not url.startswith(("data:", "about:")):
                found.add("/".join(url.split("/")[:3]))
    return found


def complaints(window: Chrome) -> list[str]:
    """Tell what stands in the browser's console: errors, and what its policy forbade."""
    return [entry["message"] for entry in window.get_log("browser")]  # type: ignore[no-untyped-call]


def test_it_shows_token_slots_and_executions_and_asks_nobody_else(window: Chrome, busy: Scene) -> None:
    live(window, busy.running)

    assert text(window, "#token-state") == "Ready"
    assert text(window, "#token-name") == "generation 3"
    assert "team-b <b>bold</b>" in text(window, "#token-facts")
    assert text(window, "#slots-text") == f"{busy.running.get('/health')['slots']['busy']} of 4 busy"
    words = {name: word(window, name) for name in ("docs-build-118", "review-pr-2041", "nightly-report", "lint")}
    assert words == {
        "docs-build-118": "success",
        "review-pr-2041": "auth",
        "nightly-report": "cancelled",
        "lint": "signal",
    }
    assert word(window, "fix-rounding-bug") == "running"
    assert pieces(window, "fix-rounding-bug")[-1] == "busy live"
    kinds = [kind for kind in pieces(window, "migrate-schema") if kind != "queued"]
    assert kinds[0] == "warn stopped"
    assert kinds[-1] == "good"
    assert "parked" in kinds[1:-1] or len(kinds) == 2
    lane = find(window, "#token-lane").get_attribute("aria-label") or ""
    assert "generation 1, refused, replaced; generation 2, replaced; generation 3, ready" in lane
    assert asked_hosts(window) == {busy.running.url}
    assert complaints(window) == []


def test_the_table_says_what_the_bars_say(window: Chrome, busy: Scene) -> None:
    live(window, busy.running)
    window.execute_script("document.querySelector('input[value=table]').click()")

    rows = {cells[0]: cells for cells in (line.split("\t") for line in table(window, "#table"))}
    assert set(rows) == {button.split(" ")[0] for button in rows}
    assert rows["migrate-schema"][1] == "success"
    meta = busy.running.record("migrate-schema")["metadata"]
    used = [meta["model_name"], str(meta["num_turns"]), f"${meta['cost_usd']:.4f}"]
    assert rows["migrate-schema"][4:7] == used
    assert rows["migrate-schema"][7:11] == ["2", rows["migrate-schema"][8], "refused", "1, 2"]
    assert rows["migrate-schema"][11].startswith('{"script"')
    assert rows["review-pr-2041"][1] == "auth"
    assert [line.split("\t")[2] for line in table(window, "#generations")] == ["ready", "replaced", "refused, replaced"]


def table(window: Chrome, selector: str) -> list[str]:
    script = (
        "return [...document.querySelectorAll(arguments[0] + ' tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent).join('\\t'))"
    )
    found: list[str] = window.execute_script(script, selector)
    return found


def test_it_follows_what_happens_and_shows_output_as_text_only(window: Chrome, busy: Scene) -> None:
    busy.hold("live-one", {"do": "assistant", "text": f"It says {HOSTILE}"})
    live(window, busy.running, "#live-one")
    eventually(lambda: any(HOSTILE in line for line in texts(window, "#log pre")))
    assert word(window, "live-one") == "running"
    assert text(window, "#stream-state") == "live"

    busy.let_go("live-one")

    eventually(lambda: text(window, "#stream-state") == "ended")
    eventually(lambda: word(window, "live-one") == "success")
    assert texts(window, "#log .who")[-1] == "result"
    assert "live-one" in text(window, "#detail-title")
    find(window, "#raw").click()
    assert json.loads(texts(window, "#log pre")[0])["subtype"] == "init"
    assert window.title.endswith(" · agent_runtime")
    assert count(window, "#log img, #log script, #token-facts b") == 0
    assert complaints(window) == []


def test_an_execution_whose_request_is_held_says_so_until_it_goes_on(window: Chrome, tmp_path: Path) -> None:
    api = MessagesApi()
    api.on(OLD, "expired")
    api.script("work", Tool(command="true", gate="go"), Text(text="finished"))
    relay = {"AGENT_RUNTIME_TOKEN_DELIVERY": "relay"}
    with serve(api) as url, supervised(tmp_path, flags=("--park", "60"), api_url=url, environment=relay) as running:
        running.post("[[script:work]] Do it.", execution_id="waits", async_result=True)
        live(window, running, "#waits")
        eventually(lambda: word(window, "waits") == "held")
        eventually(lambda: "held" in pieces(window, "waits"))
        eventually(lambda: text(window, "#detail-state") == "held")
        assert "Held for a token1" in text(window, "#slots-facts")
        window.execute_script("document.querySelector('input[value=table]').click()")
        assert [line.split("\t")[1] for line in table(window, "#table")] == ["held"]
        window.execute_script("document.querySelector('input[value=bars]').click()")

        running.write_token(NEW)

        eventually(lambda: word(window, "waits") == "running")
        eventually(lambda: text(window, "#detail-state") == "running")
        assert "Held for a token" not in text(window, "#slots-facts")
        api.open_gate("go")
        eventually(lambda: word(window, "waits") == "success")
        assert pieces(window, "waits")[-2:] == ["good", "held"]
        assert "1 attempt, held" in text(window, "#rows .unseen")
        assert complaints(window) == []


LONG = "long-" + "x" * 123


def test_names_and_prompt_are_shown_as_text_only_and_an_execution_can_be_terminated(
    window: Chrome, tmp_path: Path
) -> None:
    allowed = {"do": "rate_limit", "status": "allowed"}
    with supervised(tmp_path) as running:
        script = holding(
            tmp_path / "go",
            allowed,
            {"do": "partial", "text": "Unseen."},
            {"do": "touch", "path": str(tmp_path / "on")},
        )
        running.post(script, execution_id=LONG, title=f"{HOSTILE}\u202e.", labels={"who": HOSTILE}, async_result=True)
        eventually((tmp_path / "on").exists)
        live(window, running, f"#{LONG}", size=PHONE)
        eventually(lambda: count(window, "#log li") > 1)
        host = running.get("/health")["hostname"]
        assert (text(window, "#host"), window.title) == (host, f"{host} · agent_runtime")
        assert text(window, "#rows b") == text(window, "#detail-what") == f"{HOSTILE}\ufffd."
        assert text(window, "#rows .of").startswith(f"{LONG} · ")
        assert text(window, "#detail-prompt") == running.record(LONG)["prompt"] + "…"
        assert HOSTILE in text(window, "#detail-facts")
        assert find(window, "#detail-title").get_attribute("title") == LONG
        assert "limit" not in texts(window, "#log .who")
        eventually(lambda: "Tokens in, out10, 5" in text(window, "#detail-facts"))
        assert count(window, "main img, main script") == 0
        wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert window.execute_script(wide) == 0
        assert complaints(window) == []

        find(window, "#terminate").click()
        find(window, "#drain-cancel").click()
        assert running.record(LONG)["state"] == "running"
        find(window, "#terminate").click()
        assert not find(window, "#drain-key").is_displayed()
        find(window, "#drain-yes").click()

        eventually(lambda: running.record(LONG)["outcome"] == "cancelled")
        eventually(lambda: not find(window, "#drain-dialog").is_displayed())
        eventually(lambda: not find(window, "#terminate").is_enabled())
        # The event of the end may come before the answer to the request, or after it.
        assert text(window, "#announce") in {f"Terminated: {LONG}", f"{LONG} failed: cancelled"}


def test_text_is_shown_while_it_is_written(window: Chrome, tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        script = {
            "script": [
                *({"do": "init"}, {"do": "wait_file", "path": str(tmp_path / "go")}),
                *({"do": "partial", "text": text} for text in (HOSTILE, " and more.")),
                *({"do": "wait_file", "path": str(tmp_path / "on")}, {"do": "assistant", "text": "It is done."}),
                *({"do": "wait_file", "path": str(tmp_path / "off")}, {"do": "result"}),
            ]
        }
        running.post(script, execution_id="written", async_result=True)
        live(window, running, "#written")
        eventually(lambda: count(window, "#log li") == 1)
        assert not find(window, "#writing").is_displayed()
        (tmp_path / "go").touch()
        eventually(lambda: text(window, "#writing") == f"{HOSTILE} and more.")
        assert count(window, "#log img") == 0
        (tmp_path / "on").touch()
        eventually(lambda: count(window, "#log li") == 2 and not find(window, "#writing").is_displayed())
        (tmp_path / "off").touch()


def test_it_says_why_it_is_degraded(window: Chrome, tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        running.client.post("/api/drain").raise_for_status()
        running.write_secret("")
        running.client.post("/api/credentials/reload-token")
        live(window, running)
        reasons = running.get("/health")["reasons"]
        assert reasons
        assert text(window, "#health-note") == "; ".join(reasons)


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [
        *((0, "under 1 ms"), (999.4, "999 ms"), (999.6, "1.0 s"), (9_949, "9.9 s"), (9_960, "10 s"), (59_499, "59 s")),
        *((59_600, "1 min 0 s"), (119_700, "2 min 0 s"), (3_599_400, "59 min 59 s"), (3_599_700, "1 h 0 min")),
        *((7_199_000, "2 h 0 min"), (86_399_000, "1 d 0 h"), (86_340_000, "23 h 59 min"), (172_799_000, "2 d 0 h")),
    ],
)
def test_a_time_is_rounded_before_its_units_are_told_apart(
    window: Chrome, busy: Scene, milliseconds: float, shown: str
) -> None:
    if not window.current_url.startswith(busy.running.url):
        live(window, busy.running)

    assert window.execute_script("return span(arguments[0])", milliseconds) == shown


def test_events_alone_bring_what_happens(window: Chrome, tmp_path: Path) -> None:
    no_polling = {"source": "window.setInterval = () => 0"}
    script = window.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", no_polling)
    try:
        with supervised(tmp_path) as running:
            live(window, running)
            assert find(window, "#empty").is_displayed()
            running.post(OK, execution_id="told")
            eventually(lambda: count(window, "#rows li") == 1 and word(window, "told") == "success")
            running.write_token(NEW)
            eventually(lambda: text(window, "#token-name") == "generation 2")
    finally:
        window.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_evidence_and_stops_are_told_of_each_attempt(window: Chrome, busy: Scene) -> None:
    live(window, busy.running, "#migrate-schema")
    eventually(lambda: count(window, "#attempts li") == 2)

    first, second = texts(window, "#attempts li")
    assert "Stopped by the supervisor: refused" in first
    assert "api-401" in first
    assert "generation 2" in second
    assert "Stopped" not in second


def test_it_can_be_used_with_the_keyboard_alone(window: Chrome, busy: Scene) -> None:
    live(window, busy.running)
    body = find(window, "body")
    body.send_keys(Keys.TAB)
    assert window.switch_to.active_element.text == "Skip to the executions"

    row(window, "lint").send_keys(Keys.ENTER)
    eventually(lambda: window.switch_to.active_element.text == "lint")
    assert row(window, "lint").get_attribute("aria-expanded") == "true"
    assert window.current_url.endswith("#lint")

    find(window, "#close").send_keys(Keys.ENTER)
    assert "lint" in window.switch_to.active_element.text
    assert not find(window, "#detail").is_displayed()
    find(window, "#drain").send_keys(Keys.ENTER)
    assert find(window, "#drain-dialog").is_displayed()
    window.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not find(window, "#drain-dialog").is_displayed()
    assert window.switch_to.active_element.get_attribute("id") == "drain"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE, NARROW], ids=["desktop", "phone", "narrow"])
@pytest.mark.parametrize("fragment", ["", "#review-pr-2041"], ids=["all", "one"])
def test_it_fits_every_screen(window: Chrome, busy: Scene, size: tuple[int, int], dark: bool, fragment: str) -> None:
    live(window, busy.running, fragment, size=size, dark=dark)
    if fragment:
        eventually(lambda: count(window, "#attempts li") == 1 and count(window, "#log li") > 1)

    wide = (
        "const width = document.documentElement.clientWidth;"
        "return [document.documentElement.scrollWidth - width, [...document.querySelectorAll('button, .pill, .card')]"
        ".filter(node => node.offsetParent && node.getBoundingClientRect().right > width + 1).map(node => node.id)]"
    )
    assert window.execute_script(wide) == [0, []]
    colour = window.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(13, 17, 23)" if dark else "rgb(245, 246, 248)")
    if directory := os.environ.get(SCREENSHOTS):
        name = f"{size[0]}-{'dark' if dark else 'light'}-{'one' if fragment else 'all'}.png"
        window.save_screenshot(str(Path(directory) / name))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(window: Chrome, tmp_path: Path, dark: bool) -> None:
    path = os.environ.get(AXE)
    if not path:
        (pytest.fail if os.environ.get(REQUIRED) == "1" else pytest.skip)(f"no axe-core: set {AXE} to its axe.min.js")
    script = Path(path).read_text()
    look = "const done = arguments[0]; axe.run(document).then(done, error => done({violations: [{id: String(error)}]}))"
    window.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
    try:
        with scene(tmp_path) as it:
            refuse_the_token(it)
            for size in (DESKTOP, PHONE):
                live(window, it.running, "#review-pr-2041", size=size, dark=dark)
                eventually(lambda: count(window, "#attempts li") == 1 and count(window, "#log li") > 1)
                for part in ("bars", "table", "dialog"):
                    if part == "table":
                        window.execute_script("document.querySelector('input[value=table]').click()")
                    if part == "dialog":
                        find(window, "#drain").click()
                    window.execute_script(script)
                    found = window.execute_async_script(look)
                    wrong = [
                        (one["id"], [node["html"] for node in one.get("nodes", ())]) for one in found["violations"]
                    ]
                    assert wrong == [], f"{size} {part}"
    finally:
        window.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})


def test_it_asks_for_the_key_and_forgets_it(window: Chrome, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    with supervised(tmp_path, flags=("--access-key-file", str(tmp_path / "key"))) as running:
        running.client.headers["X-Agent-Token"] = KEY
        running.post(OK, execution_id="secret-work")
        show(window, running)
        eventually(lambda: find(window, "#key-dialog").is_displayed())
        assert "secret-work" not in window.page_source

        find(window, "#key").send_keys("a-wrong-key", Keys.ENTER)
        eventually(lambda: "not the right one" in text(window, "#key-error"))
        find(window, "#key").send_keys(KEY, Keys.ENTER)
        eventually(lambda: text(window, "#link") == "Live" and word(window, "secret-work") == "success")
        assert not find(window, "#key-dialog").is_displayed()
        kept = "return [JSON.stringify(localStorage), document.cookie, location.href, document.body.innerHTML].join()"
        assert KEY not in window.execute_script(kept)

        window.refresh()
        eventually(lambda: text(window, "#link") == "Live")

        find(window, "#drain").click()
        find(window, "#drain-key").send_keys("a-wrong-key", Keys.ENTER)
        eventually(lambda: "not the right one" in text(window, "#drain-error"))
        assert running.get("/health")["draining"] is False
        find(window, "#drain-key").send_keys(KEY, Keys.ENTER)
        eventually(lambda: text(window, "#health-state") == "Draining")
        assert running.get("/health")["draining"] is True
        assert "turned away" in text(window, "#banner")
        find(window, "#drain").click()
        find(window, "#drain-key").send_keys(KEY, Keys.ENTER)
        eventually(lambda: text(window, "#health-state") == "Healthy")

        find(window, "#lock").click()
        eventually(lambda: find(window, "#key-dialog").is_displayed())
        assert "secret-work" not in text(window, "main")
        assert window.execute_script("return JSON.stringify(sessionStorage)") == "{}"
        window.refresh()
        eventually(lambda: find(window, "#key-dialog").is_displayed())


def test_a_key_that_changes_is_asked_for_again(window: Chrome, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    with supervised(tmp_path, flags=("--access-key-file", str(tmp_path / "key"))) as running:
        show(window, running)
        eventually(lambda: find(window, "#key-dialog").is_displayed())
        find(window, "#keep").click()
        find(window, "#key").send_keys(KEY, Keys.ENTER)
        eventually(lambda: text(window, "#link") == "Live")
        assert window.execute_script("return sessionStorage.length") == 0

        (tmp_path / "key").write_text("another-access-key")

        eventually(lambda: find(window, "#key-dialog").is_displayed())
        assert text(window, "#link") == "Needs the key"


def test_it_outlives_a_restart_of_the_supervisor(window: Chrome, tmp_path: Path) -> None:
    with supervised(tmp_path) as running:
        running.post(OK, execution_id="before")
        live(window, running)
        eventually(lambda: word(window, "before") == "success")
        port = running.url.rpartition(":")[2]
    eventually(lambda: text(window, "#link") == "Reconnecting")

    with supervised(tmp_path, flags=("--port", port)) as running:
        running.post(OK, execution_id="after")
        eventually(lambda: text(window, "#link") == "Live")
        eventually(lambda: any("after" in name for name in texts(window, "#rows b")))
        assert word(window, "before") == "success"


def test_a_tab_that_nobody_looks_at_holds_no_stream(window: Chrome, busy: Scene) -> None:
    live(window, busy.running, "#upgrade-deps")
    eventually(lambda: text(window, "#stream-state") == "live")
    open_streams: dict[str, str] = {}
    eventually(lambda: len(connections(window, open_streams)) == 2)
    hide = (
        "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    window.execute_script(hide, True)
    assert text(window, "#link") == "Paused"
    eventually(lambda: not connections(window, open_streams))

    window.execute_script(hide, False)
    eventually(lambda: text(window, "#link") == "Live" and text(window, "#stream-state") == "live")
    eventually(lambda: len(connections(window, open_streams)) == 2)


def connections(window: Chrome, started: dict[str, str]) -> dict[str, str]:
    """Follow in the browser's log which streams have begun and not ended."""
    for entry in window.get_log("performance"):  # type: ignore[no-untyped-call]
        message = json.loads(entry["message"])["message"]
        request = message["params"].get("requestId", "")
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if url.endswith(("/api/events", "/stream?partial=true")):
                started[request] = url
        elif message["method"] in ("Network.loadingFinished", "Network.loadingFailed"):
            started.pop(request, None)
    return started


def test_what_the_supervisor_refuses_to_the_page_is_said(window: Chrome, busy: Scene) -> None:
    looks(window)
    window.get(busy.running.url.replace("127.0.0.1", "page.localhost") + "/")

    eventually(lambda: "Host: must be an address" in text(window, "#banner"))


def test_many_executions_and_much_output_are_cut(window: Chrome, tmp_path: Path) -> None:
    flood = {"do": "assistant", "text": "One more line.", "times": 1200}
    with supervised(tmp_path, flags=("--slots", "8", "--queue", "100")) as running:
        pending = [running.start(OK, execution_id=f"small-{n:02}") for n in range(70)]
        for one in pending:
            one.answer()
        script = holding(tmp_path / "go", flood, {"do": "assistant", "text": "x" * 100_000})
        talker = running.start(script, execution_id="talker", timeout_seconds=60)
        eventually(lambda: running.client.get("/api/executions/talker").is_success)
        live(window, running, "#talker")
        eventually(lambda: text(window, "#log li:last-child .no") == "1203")

        assert count(window, "#log li") == 501
        assert "703 earlier lines" in text(window, "#log li:first-child pre")
        assert len(text(window, "#log li:last-child pre")) < 5000
        assert count(window, "#rows li") == 60
        window.execute_script("document.querySelector('#older').click()")
        eventually(lambda: count(window, "#rows li") == 71)
        assert not find(window, "#older").is_displayed()
        (tmp_path / "go").touch()
        talker.answer()
        eventually(lambda: text(window, "#stream-state") == "ended")
        assert complaints(window) == []
