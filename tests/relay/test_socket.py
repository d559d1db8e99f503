"""The relay's Unix socket, for a CLI that believes that it talks to the real API."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from agent_runtime.errors import CannotStart
from agent_runtime.relay.relay import Relay
from tests.relay.support import BETA, OK, OLD, RawApi, Secret, read_answer, tokens_in
from tests.support.tls_api import own_certificate, tls_api

if TYPE_CHECKING:
    from pathlib import Path


def test_requests_on_the_socket_reach_the_api_by_tls_through_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the length of a socket's path is limited
    api = RawApi(lambda talk, _request: talk.send(OK))
    with api.running() as url, tls_api(tmp_path / "tls", url) as tls:
        secret, notes = Secret(), Counter[str]()

        def count(outcome: str) -> None:
            notes[outcome] += 1

        environ = {"ANTHROPIC_BASE_URL": "http://api.anthropic.com", **tls.environ}
        relay = Relay(environ, secret, directory=tmp_path, takes_socket=lambda: True, count=count)  # type: ignore[arg-type]  # it stands in for the file
        relay.start()
        try:
            delivered = relay.deliver(secret.generation)
            variables = delivered.variables
            assert delivered.relayed is not None
            assert delivered.by_port is not None
            assert delivered.by_port["ANTHROPIC_BASE_URL"].startswith("http://127.0.0.1:")
            assert "ANTHROPIC_UNIX_SOCKET" not in delivered.by_port
            assert variables["ANTHROPIC_BASE_URL"] == "http://api.anthropic.com"
            head = f"Host: api.anthropic.com\r\nAuthorization: Bearer {variables['CLAUDE_CODE_OAUTH_TOKEN']}\r\n{BETA}"
            for place in ("", "http://api.anthropic.com", "http://api.anthropic.com:80"):
                with socket.socket(socket.AF_UNIX) as child:
                    child.connect("relay.sock")
                    child.sendall(f"POST {place}/v1/messages HTTP/1.1\r\n{head}Content-Length: 2\r\n\r\n{{}}".encode())
                    assert read_answer(child).endswith(b"ok")
                delivered.relayed.pid = os.getpid() if not place else os.getppid()
            with socket.socket(socket.AF_UNIX) as child:
                child.connect("relay.sock")
                child.sendall(f"POST http://elsewhere/v1/messages HTTP/1.1\r\n{head}\r\n".encode())
                assert read_answer(child).startswith(b"HTTP/1.1 400 ")
        finally:
            relay.close()

        assert [tokens_in(request) for request in api.requests] == [[OLD]] * 3
        assert all(b"\r\nHost: api.anthropic.com\r\n" in request for request in api.requests)
        assert len(tls.received) == 1, "one connection was kept"
        assert tls.in_clear == []
        assert notes["other_process"] == 1


def test_what_a_proxy_sends_behind_its_own_answer_is_not_taken_for_the_apis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forged = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged"
    context, certificate = own_certificate(tmp_path)

    def answer() -> None:
        while True:
            try:
                connection, _ = proxy.accept()
            except OSError:
                return
            with connection:
                while connection.recv(65536).find(b"\r\n\r\n") < 0:
                    pass
                connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n" + forged)
                with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as api:
                    api.recv(65536)  # then the real API would answer

    with socket.create_server(("127.0.0.1", 0)) as proxy:
        answering = threading.Thread(target=answer)
        answering.start()
        secret, outcomes = Secret(), list[str]()
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environ = {"HTTPS_PROXY": address, "NODE_EXTRA_CA_CERTS": str(certificate)}
        relay = Relay(environ, secret, directory=tmp_path, takes_socket=lambda: True, count=outcomes.append)  # type: ignore[arg-type]  # it stands in for the file
        relay.start()
        try:
            token = relay.deliver(secret.generation).variables["CLAUDE_CODE_OAUTH_TOKEN"]
            with socket.socket(socket.AF_UNIX) as child:
                child.connect("relay.sock")
                head = f"Host: api.anthropic.com\r\nAuthorization: Bearer {token}\r\n{BETA}"
                child.sendall(f"POST /v1/messages HTTP/1.1\r\n{head}Content-Length: 2\r\n\r\n{{}}".encode())
                answered = read_answer(child)
        finally:
            relay.close()
            proxy.shutdown(socket.SHUT_RDWR)
            answering.join()
    assert answered.startswith(b"HTTP/1.1 502 "), answered
    assert outcomes == ["unreachable"]


def test_the_socket_is_used_only_where_that_was_shown_and_nothing_stands_against_it(tmp_path: Path) -> None:
    def base_url(takes_socket: bool | None, **environ: str) -> str:
        relay = Relay(environ, Secret(), directory=tmp_path, takes_socket=lambda: takes_socket)  # type: ignore[arg-type]
        return relay.deliver(Secret().generation).variables["ANTHROPIC_BASE_URL"]

    assert base_url(takes_socket=True) == "http://api.anthropic.com"
    assert base_url(takes_socket=True, ANTHROPIC_BASE_URL=" https://api.anthropic.com ") == "http://api.anthropic.com"
    for others in (
        base_url(takes_socket=None),
        base_url(takes_socket=False),
        base_url(takes_socket=True, ANTHROPIC_BASE_URL="https://gateway.example"),
        base_url(takes_socket=True, ANTHROPIC_BASE_URL="https://api.anthropic.com.example"),
        base_url(takes_socket=True, CLAUDE_CODE_SHELL_PREFIX="/usr/bin/nice"),
    ):
        assert others.startswith("http://127.0.0.1:")


def test_a_socket_that_cannot_be_made_ends_the_start(tmp_path: Path) -> None:
    environ = {"ANTHROPIC_BASE_URL": "http://api.anthropic.com"}
    relay = Relay(environ, Secret(), directory=tmp_path / ("x" * 120))  # type: ignore[arg-type]  # it stands in for the file

    with pytest.raises(CannotStart, match="cannot listen: AF_UNIX path too long"):
        relay.start()
    relay.close()
