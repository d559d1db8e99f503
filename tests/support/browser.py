"""A real headless Chromium, and a supervisor in a state worth looking at."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from selenium import webdriver

from tests.support.supervised import NEW, Supervised, eventually, supervised
from tests.system.test_executions import OK, holding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REQUIRED = "AGENT_RUNTIME_TEST_REQUIRE_BROWSER"
KEY = "the-access-key-of-the-page"
THIRD = "sk-ant-oat01-the-third-token-of-these-tests-00000000003"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
DESKTOP, PHONE = (1440, 1000), (390, 844)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)


@contextlib.contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Start Chromium with a profile of its own, until the block ends."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        reason = "no Chromium: install the Debian packages chromium and chromium-driver"
        (pytest.fail if os.environ.get(REQUIRED) == "1" else pytest.skip)(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(prefix="agent-runtime-browser.", ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield window
        finally:
            window.quit()


def looks(window: webdriver.Chrome, *, size: tuple[int, int] = DESKTOP, dark: bool = False, still: bool = True) -> None:
    """Set the window's size, and whether the person's system prefers a dark scheme and no motion."""
    width, height = size
    mobile = size == PHONE
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
        {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
    ]
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@dataclass
class Scene:
    """A supervisor with executions, some of which wait for a file in *home*."""

    running: Supervised
    home: Path

    def hold(self, name: str, *more: dict[str, Any], then: list[dict[str, Any]] | None = None, **fields: Any) -> None:
        """Start an execution that waits until :meth:`let_go` is called with its name."""
        script = holding(self.home / name, *more)
        if then is not None:
            script["script"][-1:] = then
        self.submit(script, execution_id=name, **fields)

    def submit(self, script: dict[str, Any], **fields: Any) -> None:
        """Post a task without waiting for its answer."""
        self.running.post(script, async_result=True, **fields).raise_for_status()

    def let_go(self, name: str) -> None:
        (self.home / name).touch()

    def state_of(self, name: str) -> str:
        return str(self.running.record(name)["state"])

    def until(self, name: str, state: str) -> None:
        eventually(lambda: self.state_of(name) == state)


REFUSED: list[dict[str, Any]] = [
    {"do": "api_error", "status": 401, "when": "first"},
    {"do": "hang", "when": "first"},
    {"do": "assistant", "text": "Back on the new token; the migration is written."},
    {"do": "result", "text": "Migration 0042 is written and applied."},
]


@contextlib.contextmanager
def scene(home: Path, *flags: str, pace: Callable[[], object] = lambda: None) -> Iterator[Scene]:
    """
    Run a supervisor with three generations, executions that ended in every way, two that run and one that is parked.

    Output and names of subscriptions hold text that would be markup if it were not escaped.

    Args:
        pace: Called between steps; a pause gives the bars in pictures some length.
    """
    own = ("--slots", "4", "--probe", "off", "--drain-timeout", "0.5", "--stop-grace", "0.3", *flags)
    with supervised(home, flags=own) as running:
        it = Scene(running, home)
        running.post(OK, execution_id="docs-build-118")
        it.hold("migrate-schema", then=REFUSED)
        it.hold("review-pr-2041", then=REFUSED)
        it.hold("nightly-report")
        it.until("nightly-report", "running")
        pace()
        running.client.post("/api/executions/nightly-report/terminate")
        running.post(
            {"script": [{"do": "init"}, {"do": "assistant", "text": "Hm."}, {"do": "kill"}]}, execution_id="lint"
        )
        pace()
        it.let_go("review-pr-2041")
        it.until("review-pr-2041", "finished")
        pace()
        it.let_go("migrate-schema")
        it.until("migrate-schema", "parked")
        pace()
        running.write_token(NEW)
        it.until("migrate-schema", "finished")
        pace()
        running.write_token(json.dumps({"token": THIRD, "subscription": "team-b <b>bold</b>"}))
        eventually(lambda: running.get("/api/token")["generation"] == 3)
        output: list[dict[str, Any]] = [
            {"do": "tool_use", "command": "npm test -- --watch=false", "id": "t1"},
            {"do": "tool_result", "content": "12 passed, 1 failed\n  ✕ rounds to even (4 ms)", "id": "t1"},
            {"do": "assistant", "text": f"One test is red. It prints {HOSTILE} and I am looking at why."},
            {"do": "retry", "status": 529, "error": "overloaded"},
            {"do": "tool_use", "command": "sed -n 1,80p src/round.ts", "id": "t2"},
        ]
        it.hold("fix-rounding-bug", *output)
        it.hold("upgrade-deps", {"do": "assistant", "text": "Reading the lock file."})
        yield it


def refuse_the_token(it: Scene) -> None:
    """Make the API refuse the third generation: one execution ends, and one is parked."""
    it.hold("sync-translations", then=REFUSED)
    it.until("sync-translations", "running")
    it.let_go("sync-translations")
    it.until("sync-translations", "finished")
    it.submit(OK, execution_id="write-changelog", park_seconds=600)
    it.until("write-changelog", "parked")
