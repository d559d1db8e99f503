"""Who may call: Host and Origin where there is no key; with one, any name may be used."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.supervised import Supervised, eventually, supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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
        {"Host": "localhost:8000", "Origin": "http://localhost:3000"},
        {"Host": "localhost:8000", "Origin": "https://localhost:8000"},
        {"Host": "localhost:8000", "Origin": "http://localhost"},
        {"Host": "localhost:8000", "Origin": "localhost:8000"},
        {"Host": "localhost:8000", "Origin": "http://localhost:99999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": ""},
        [("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")],
        [("Host", "localhost:8000"), ("Origin", "http://localhost:8000"), ("Origin", "https://attacker.example")],
    ],
)
def test_a_web_page_cannot_call_where_there_is_no_key(
    keyless: Supervised, path: str, headers: dict[str, str] | list[tuple[str, str]]
) -> None:
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
        {"Host": "localhost:8000", "Origin": "HTTP://LOCALHOST:8000", "Sec-Fetch-Site": "same-origin"},
        {"Host": "localhost", "Origin": "http://localhost:80"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_addresses_and_the_machines_own_name_are_fine(keyless: Supervised, headers: dict[str, str]) -> None:
    assert keyless.client.get("/api/token", headers=headers).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_page_may_send_nothing_but_json_and_curl_may(keyless: Supervised, kind: str) -> None:
    """What a page may send without a question beforehand has one of these types."""
    page = {"Origin": keyless.url, "Content-Type": kind}
    refused = keyless.client.post("/api/task", content=b'{"message": ""}', headers=page)
    from_curl = keyless.client.post("/api/task", content=b'{"message": ""}', headers={"Content-Type": kind})
    of_our_page = keyless.client.post("/api/drain", headers={"Origin": keyless.url})
    keyless.client.delete("/api/drain", headers={"Origin": keyless.url})

    assert (refused.status_code, "Content-Type" in refused.json()["detail"]) == (400, True)
    assert "message" in from_curl.json()["detail"]
    assert of_our_page.status_code == 200
    json_type = {"Origin": keyless.url, "Content-Type": "application/json; charset=utf-8"}
    assert "message" in keyless.client.post("/api/task", content=b'{"message": ""}', headers=json_type).json()["detail"]


def test_with_a_key_any_name_may_be_used_and_a_wrong_key_is_told_apart_from_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xef\xbb\xbf  the-access-key \r\n")
    with supervised(tmp_path, flags=("--access-key-file", str(tmp_path / "key"))) as running:
        headers = {"Host": "agent-7", "Authorization": "Bearer the-access-key"}
        assert running.client.get("/api/token", headers=headers).status_code == 200
        assert running.client.get("/api/token", headers={"X-Agent-Token": "the-access-key"}).status_code == 200
        for sent in ("Bearer the-access-ke", "Bearer", "Basic the-access-key", "Bearer th\u00e9-access-key"):
            denied = running.client.get("/api/token", headers={b"Authorization": sent.encode("latin-1")})
            assert denied.status_code == 401
            assert "the-access-key" not in denied.text
        missing = running.client.get("/api/token")
        wrong = running.client.get("/api/token", headers={"X-Agent-Token": "another"})

    assert [(one.status_code, one.json()["error_class"]) for one in (missing, wrong)] == [(401, "access")] * 2
    assert missing.json()["detail"].startswith("send the access key")
    assert wrong.json()["detail"].startswith("this is not the access key")


NO_KEYS: list[tuple[Callable[[Path], object], str]] = [
    (os.mkfifo, "cannot be read: it is not a file"),
    (Path.mkdir, "cannot be read: Is a directory"),
    (lambda path: path.symlink_to("/dev/zero"), "cannot be read: it is not a file"),
    (lambda path: path.write_bytes(b"one\ntwo"), "has several lines"),
    (lambda path: path.write_bytes(b"with\0nul"), "has characters that no header can carry"),
    (lambda path: path.write_bytes("schl\u00fcssel".encode()), "has characters that no header can carry"),
    (lambda path: path.write_bytes(b"x" * 4097), "is longer than 4096 bytes"),
    (lambda path: path.write_bytes(b" \n"), "holds no key"),
    (lambda _: None, "cannot be read: No such file"),
]


def test_what_cannot_be_a_key_is_refused_with_the_reason_and_holds_nobody_up(tmp_path: Path) -> None:
    key, log = tmp_path / "key", tmp_path / "supervisor.log"

    def is_said(text: str, times: int) -> bool:
        return log.read_text().count(text) == times

    with supervised(tmp_path, flags=("--access-key-file", str(key))) as running:
        for make, said in NO_KEYS:
            before = log.read_text().count(said)
            make(key)
            for sent in ("", "x" * 4096, "one"):
                assert running.client.get("/api/token", headers={"X-Agent-Token": sent}).status_code == 401
            assert running.client.get("/livez", timeout=5).status_code == 200
            assert running.client.get("/health").json() == {"status": "degraded"}
            eventually(partial(is_said, said, before + 1))

            if os.path.lexists(key):
                (os.rmdir if key.is_dir() else os.unlink)(key)
            key.write_text("the-access-key")
            assert running.client.get("/api/token", headers={"X-Agent-Token": "the-access-key"}).status_code == 200
            key.unlink()


def test_a_stream_ends_when_its_key_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("the-access-key")
    with supervised(tmp_path, flags=("--access-key-file", str(tmp_path / "key"))) as running:
        with running.client.stream("GET", "/api/events", headers={"X-Agent-Token": "the-access-key"}) as taken:
            lines = taken.iter_lines()
            assert next(lines).startswith(":")
            (tmp_path / "key").write_text("another-key")
            assert list(lines)[-1] == "", "it ends as a stream does, after its last whole event"
        new = {"X-Agent-Token": "another-key"}
        with running.client.stream("GET", "/api/events", headers=new) as anew:
            assert next(anew.iter_lines()).startswith(":")
        eventually(lambda: running.client.get("/health", headers=new).json()["streams"]["open"] == 0)


def test_a_key_file_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("")
    with supervised(tmp_path, flags=("--access-key-file", str(tmp_path / "key"))) as running:
        denied = running.client.get("/api/token", headers={"X-Agent-Token": ""})

        assert (denied.status_code, denied.headers["www-authenticate"]) == (401, "Bearer")
        assert "holds no key, so no caller is admitted" in (tmp_path / "supervisor.log").read_text()
        assert running.client.get("/livez").status_code == 200


@pytest.mark.slow
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
