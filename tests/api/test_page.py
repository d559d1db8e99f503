"""The page at ``/`` as it is served: what a browser is told that it may do, and who gets it."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING

import pytest

from agent_runtime.api.page import load_page
from tests.support.supervised import supervised

if TYPE_CHECKING:
    from pathlib import Path

BODY, HEADERS = load_page()
HTML = BODY.decode()
POLICY = dict(part.split(" ", 1) for part in HEADERS["content-security-policy"].split("; "))


@pytest.mark.parametrize("tag", ["script", "style"])
def test_only_the_pages_own_script_and_style_are_allowed(tag: str) -> None:
    [content] = re.findall(f"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()

    assert POLICY[f"{tag}-src"] == f"'sha256-{digest}'"
    assert len(re.findall(f"<{tag}\\b", HTML)) == 1


def test_the_policy_lets_nothing_in_and_nobody_frame_it() -> None:
    assert POLICY["default-src"] == POLICY["base-uri"] == POLICY["form-action"] == "'none'"
    assert POLICY["frame-ancestors"] == POLICY["trusted-types"] == "'none'"
    assert POLICY["connect-src"] == "'self'"
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_it_asks_nobody_else_and_makes_no_markup_of_text() -> None:
    assert set(re.findall(r"https?://[^'\"\s]+", HTML)) == {"http://www.w3.org/2000/svg"}, "a name, not an address"
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage", "cookie"):
        assert word not in HTML
    assert re.findall(r"<[a-z][^>]*\s(?:on[a-z]+|style)=", HTML.partition("<script>")[0]) == []


def test_it_is_served_without_the_key_and_holds_no_data(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("the-access-key")
    with supervised(tmp_path, flags=("--access-key-file", str(tmp_path / "key"))) as running:
        response = running.client.get("/")

        assert response.status_code == 200
        assert response.content == BODY, "the same for everybody"
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        for name, value in HEADERS.items():
            assert response.headers[name] == value
        assert running.client.head("/").status_code == 200
        assert running.client.get("/api/token").status_code == 401


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    with supervised(tmp_path, environment={"AGENT_RUNTIME_PAGE": "false"}) as running:
        response = running.client.get("/")

        assert (response.status_code, response.json()["error_class"]) == (404, "not_found")
