"""Who may call: Host and Origin where there is no key; with one, any name may be used."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import httpx
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
        {"Host": "agent"},
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
        denied = running.client.get("/api/token", headers={"X-Agent-Token": ""})

        assert (denied.status_code, denied.headers["www-authenticate"]) == (401, "Bearer")
        assert "holds no key, so nobody may call" in (tmp_path / "supervisor.log").read_text()
        assert running.client.get("/livez").status_code == 200


def test_over_a_network_that_is_open_to_all_a_service_may_be_called_by_its_name(tmp_path: Path) -> None:
    asked = _own_address()
    with supervised(tmp_path, flags=("--host=0.0.0.0", "--insecure-no-access-key")) as running:
        url = f"http://{asked}:{running.url.rpartition(':')[2]}/api/token"

        for name in ("agent:8000", "agent.default.svc.cluster.local", "agent.internal"):
            assert httpx.get(url, headers={"Host": name}).status_code == 200
        for name in ("attacker.example", "agent.svc.attacker.example"):
            assert httpx.get(url, headers={"Host": name}).status_code == 400


def test_loopback_stays_loopback_where_a_supervisor_listens_everywhere(tmp_path: Path) -> None:
    with supervised(tmp_path, flags=("--host=::", "--insecure-no-access-key")) as running:
        url = f"http://127.0.0.1:{running.url.rpartition(':')[2]}/api/token"

        assert httpx.get(url).status_code == 200
        assert httpx.get(url, headers={"Host": "agent"}).status_code == 400, "it came from ::ffff:127.0.0.1"


def _own_address() -> str:
    """Return an address of this machine that is not loopback; nothing is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        return str(asking.getsockname()[0])


@pytest.mark.parametrize("flag", ["--host=0.0.0.0", "--host=::", "--host=agent-7"])
def test_no_listening_beyond_loopback_without_a_key(tmp_path: Path, flag: str) -> None:
    with (
        pytest.raises(pytest.fail.Exception, match=r"(?s)exit 2.*ACCESS_KEY_FILE"),
        supervised(tmp_path, flags=(flag,)),
    ):
        pass
