"""How the tests lead the real CLI to the stand-in, and that one which goes its own way gets to nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import api_mode
from tests.support.supervised import OLD, supervised

if TYPE_CHECKING:
    from pathlib import Path

    from agent_runtime.standins.messages_api import MessagesApi

SETTINGS = "/api/claude_code/settings"
"""Asked of the API itself alone."""


def test_a_cli_that_ignores_the_proxy_fails_before_it_is_led_to_the_api(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = tmp_path / "claude"
    cli.write_text('#!/bin/sh\nprintf %s "$ANTHROPIC_BASE_URL" >"$0.asked"\n')
    cli.chmod(0o755)
    monkeypatch.setenv(api_mode.CLAUDES, str(cli))
    monkeypatch.setattr(api_mode, "asks_otherwise", lambda _: True)

    with (
        pytest.raises(pytest.fail.Exception, match="HTTPS_PROXY"),
        api_mode.leading_to("http://127.0.0.1:1", str(cli), tmp_path),
    ):
        pytest.fail("it was led there")

    assert (tmp_path / "claude.asked").read_text() == f"https://{api_mode.NOWHERE_BY_NAME}"


def test_a_mode_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(api_mode.MODE, "tcp")
    with (
        pytest.raises(pytest.fail.Exception, match="first_party, base_url"),
        api_mode.leading_to("http://x", "", tmp_path),
    ):
        pytest.fail("it was led there")


@pytest.mark.slow
@pytest.mark.real_cli
@pytest.mark.every_cli
@pytest.mark.parametrize("mode", api_mode.MODES)
def test_a_cli_that_takes_a_socket_asks_the_stand_in_as_the_api_itself(  # noqa: PLR0917 - fixtures
    tmp_path: Path, api: MessagesApi, url: str, claude: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(api_mode.MODE, mode)
    with api_mode.leading_to(url, claude, tmp_path / "way") as way:
        is_first_party = "ANTHROPIC_BASE_URL" not in way
    with supervised(tmp_path, api_url=url, claude=claude) as running:
        assert running.post("Say hello.").json()["status"] == "success"

    assert is_first_party == (mode == "first_party" and api_mode.asks_otherwise(claude))
    assert any(request.path == SETTINGS and request.carries(OLD) for request in api.requests) == is_first_party
