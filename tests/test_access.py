"""Who may call: Host and Origin where there is no key; with one, any name may be used."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.supervised import Supervised, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def keyless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("keyless")) as running:
        yield running


@pytest.mark.parametrize("path", ["/api/token", "/api/executions", "/health"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "attacker.example"},
        {"Host": "127.0.0.1.attacker.example:8000"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Origin": "https://attacker.example"},
        {"Origin": "null"},
        {"Host": "localhost", "Origin": "http://127.0.0.1"},
    ],
)
def test_a_web_page_cannot_call_where_there_is_no_key(keyless: Supervised, path: str, headers: dict[str, str]) -> None:
    response = keyless.client.get(path, headers=headers)

    assert response.status_code == 400
    assert "fingerprint" not in response.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost:8000"},
        {"Host": "127.0.0.1"},
        {"Host": "[::1]:8000"},
        {"Host": socket.gethostname()},
        {"Host": "localhost:8000", "Origin": "http://localhost:8000"},
    ],
)
def test_addresses_and_the_machines_own_name_are_fine(keyless: Supervised, headers: dict[str, str]) -> None:
    assert keyless.client.get("/api/token", headers=headers).status_code == 200


def test_with_a_key_any_name_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("the-access-key")
    with supervised(tmp_path, flags=("--access-key-file", str(tmp_path / "key"))) as running:
        headers = {"Host": "agent-7", "Authorization": "Bearer the-access-key"}

        assert running.client.get("/api/token", headers=headers).status_code == 200
        for wrong in ("Bearer the-access-ke", "Bearer", "Basic the-access-key", "Bearer thé-access-key"):
            denied = running.client.get("/api/token", headers={b"Authorization": wrong.encode("latin-1")})
            assert denied.status_code == 401
            assert "the-access-key" not in denied.text


def test_a_key_file_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("")
    with supervised(tmp_path, flags=("--access-key-file", str(tmp_path / "key"))) as running:
        assert running.client.get("/api/token", headers={"X-Agent-Token": ""}).status_code == 401
        assert running.client.get("/livez").status_code == 200


@pytest.mark.parametrize("flag", ["--host=0.0.0.0", "--host=::", "--host=agent-7"])
def test_no_listening_beyond_loopback_without_a_key(tmp_path: Path, flag: str) -> None:
    with (
        pytest.raises(pytest.fail.Exception, match=r"(?s)exit 2.*ACCESS_KEY_FILE"),
        supervised(tmp_path, flags=(flag,)),
    ):
        pass
