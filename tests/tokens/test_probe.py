"""The probe: what the API's answer to it says about a token, and that nothing else says anything."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import time
from typing import TYPE_CHECKING

import pytest

from agent_runtime.model.tokens import Token
from agent_runtime.standins.messages_api import FAULTS, Fail, MessagesApi, UsageLimit, serve
from agent_runtime.tokens.probe import BODY_LIMIT_BYTES, DEFAULT_MODEL, TIMEOUT_SECONDS, Probe, ProbeVerdict, judge
from tests.support.loopback import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

VALID, REFUSED, UNKNOWN = ProbeVerdict.VALID, ProbeVerdict.REFUSED, ProbeVerdict.UNKNOWN
BLOCKED, BILLING = ProbeVerdict.BLOCKED, ProbeVerdict.BILLING

OAUTH = Token("sk-ant-oat01-the-oauth-token-of-these-tests")
API_KEY = Token("sk-ant-api03-the-api-key-of-these-tests")
UNUSUAL = Token("a-token-with-no-known-prefix")

SAID_OF_A_TOKEN = {
    "expired": REFUSED,
    "access_token_expired": REFUSED,
    "invalid": REFUSED,
    "invalid_credentials": REFUSED,
    "invalid_api_key": REFUSED,
    "revoked": REFUSED,
    "revoked_403": REFUSED,
    "org_not_allowed": REFUSED,
    "not_a_member": REFUSED,
    "no_claude_code": REFUSED,
    # something on the way dropped what was sent
    "no_credential": UNKNOWN,
    "oauth_not_supported": UNKNOWN,
    # 403, and no word about the credential
    "model_not_allowed": UNKNOWN,
    "gateway_quota": UNKNOWN,
    # the API knew whose request it was
    "usage_limit": VALID,
    "throttled": VALID,
    "unknown_model": VALID,
    # the account cannot pay
    "credit_balance": BILLING,
    # no answer
    "overloaded": UNKNOWN,
    "server_error": UNKNOWN,
    "hang": UNKNOWN,
    "hang_in_text": UNKNOWN,
    "cut": UNKNOWN,
    "cut_in_text": UNKNOWN,
}


def ask(
    url: str,
    token: Token = OAUTH,
    environ: dict[str, str] | None = None,
    *,
    seconds: float = TIMEOUT_SECONDS,
) -> ProbeVerdict:
    probe = Probe({"ANTHROPIC_BASE_URL": url} | (environ or {}), timeout_seconds=seconds)
    return asyncio.run(probe.ask(token))


@pytest.fixture
def api() -> MessagesApi:
    return MessagesApi()


@pytest.fixture
def url(api: MessagesApi) -> Iterator[str]:
    with serve(api) as base_url:
        yield base_url


# What the API says.


@pytest.mark.parametrize("token", [OAUTH, API_KEY, UNUSUAL], ids=["oauth", "api_key", "unusual"])
def test_a_good_token_is_valid_and_goes_where_its_kind_belongs(api: MessagesApi, url: str, token: Token) -> None:
    assert ask(url, token) is VALID

    (seen,) = api.requests
    assert (seen.method, seen.path) == ("POST", "/v1/messages/count_tokens")
    assert (seen.bearer, seen.api_key) == ((None, token.fingerprint) if token is API_KEY else (token.fingerprint, None))
    assert seen.beta == ("" if token is API_KEY else "oauth-2025-04-20")


def test_every_fault_of_the_stand_in_has_its_verdict() -> None:
    assert SAID_OF_A_TOKEN.keys() == FAULTS.keys()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("token", [OAUTH, API_KEY], ids=["oauth", "api_key"])
def test_a_fault_says_of_the_token_what_it_says(api: MessagesApi, url: str, fault: str, token: Token) -> None:
    api.on(token, fault)

    assert ask(url, token, seconds=0.2 if "hang" in fault else TIMEOUT_SECONDS) is SAID_OF_A_TOKEN[fault]
    assert api.seen(token).requests == 1


def test_an_api_key_sent_as_an_oauth_token_would_be_refused_but_never_is(api: MessagesApi, url: str) -> None:
    api.on_other_tokens("invalid")
    api.accept(API_KEY)

    assert ask(url, API_KEY) is VALID
    assert ask(url, OAUTH) is REFUSED


def test_an_organization_that_is_disabled_is_a_block_with_400(api: MessagesApi, url: str) -> None:
    api.on(OAUTH, Fail(400, "invalid_request_error", "This organization has been disabled."))

    assert ask(url) is BLOCKED


def own(kind: str, message: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, b'{"input_tokens": 8}', VALID),
        (200, b"<html>Please log in to the network</html>", UNKNOWN),
        (200, b"{}", UNKNOWN),
        (200, b"[]", UNKNOWN),
        (200, b'{"input_tokens": "8"}', UNKNOWN),
        (204, b"", UNKNOWN),
        (307, b"", UNKNOWN),
        (401, own("authentication_error", "Some sentence of next year"), REFUSED),
        (401, b'{"error": {"type": "auth_error", "message": "no such virtual key"}}', REFUSED),
        (401, b'{"error": "invalid_token"}', REFUSED),
        (401, b'{"message": "Unauthorized"}', REFUSED),
        (401, b'{"detail": "Unauthorized"}', REFUSED),
        (401, b'{"message": "fetch failed: ECONNREFUSED"}', UNKNOWN),
        (401, b"", UNKNOWN),
        (401, b"Unauthorized", UNKNOWN),
        (401, b"<html><title>401 Authorization Required</title></html>", UNKNOWN),
        (401, b"{}", UNKNOWN),
        (401, b'{"message": 401}', UNKNOWN),
        (401, b"\xff\xfe", UNKNOWN),
        (401, b"[" * 5000, UNKNOWN),
        (403, b'{"error": {"type": "forbidden", "message": "OAuth token has been revoked."}}', UNKNOWN),
        (403, own("forbidden", "OAuth token has been revoked."), UNKNOWN),
        (403, b"<html>OAuth token has been revoked</html>", UNKNOWN),
        (403, own("permission_error", "Your account has no right to this specified resource"), UNKNOWN),
        (403, own("authentication_error", "whatever it says"), REFUSED),
        (400, b'{"error": {"message": "This organization has been disabled."}}', UNKNOWN),
        (400, b'{"error": {"message": "unknown provider"}}', UNKNOWN),
        (400, own("invalid_request_error", "max_tokens: field required"), VALID),
        (402, own("billing_error", "Pay first"), BILLING),
        (404, own("not_found_error", "Not found"), UNKNOWN),
        (404, b"404 page not found", UNKNOWN),
        (407, own("authentication_error", "of the proxy"), UNKNOWN),
        (429, b"error code: 1015", UNKNOWN),
        (429, own("rate_limit_error", "slow down"), VALID),
        (500, own("authentication_error", "the API is down"), UNKNOWN),
        (502, b"Bad gateway", UNKNOWN),
        (529, own("overloaded_error", "Overloaded"), UNKNOWN),
    ],
)
def test_only_what_is_an_answer_about_the_credential_decides(status: int, body: bytes, verdict: ProbeVerdict) -> None:
    assert judge(status, body) is verdict


# What is no answer of the API.


async def _odd_answers(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer by the first part of the path: redirect, endless body, trickle."""
    kind = scope["path"].split("/")[1]
    status = 307 if kind == "redirect" else 401
    headers = [(b"location", b"/good/v1/messages/count_tokens"), (b"content-type", b"application/json")]
    if kind == "good":
        status, headers = 200, headers[1:]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if kind in ("endless", "trickle"):
        size = 3 * BODY_LIMIT_BYTES if kind == "endless" else 1
        await send({"type": "http.response.body", "body": b" " * size, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
    body = b'{"input_tokens": 1}' if kind == "good" else b'{"message": "no"}'
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def odd_url() -> Iterator[str]:
    with serving(_odd_answers) as base_url:
        yield base_url


def test_a_redirect_is_not_followed(odd_url: str) -> None:
    assert ask(f"{odd_url}/good") is VALID
    assert ask(f"{odd_url}/redirect") is UNKNOWN


def test_an_answer_that_never_ends_is_given_up_in_time_and_in_size(odd_url: str) -> None:
    started = time.monotonic()

    assert ask(f"{odd_url}/endless", seconds=60) is UNKNOWN
    assert ask(f"{odd_url}/trickle", seconds=0.2) is UNKNOWN
    assert time.monotonic() - started < 20


def test_a_refused_connection_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    assert ask(f"http://127.0.0.1:{port}") is UNKNOWN


@pytest.mark.parametrize(
    "base",
    [
        "unix:/run/api.sock",
        "unix:///run/api.sock",
        "http+unix://%2Frun%2Fapi.sock",
        "ftp://127.0.0.1",
        "127.0.0.1:80",
        "//127.0.0.1",
        "http://",
        "http://[::1",
        "http://127.0.0.1:99999",
        "http://name:password@127.0.0.1",
        "http://127.0.0.1/?tenant=1",
        "http://127.0.0.1/#part",
        "not a url \x00",
    ],
)
def test_a_base_url_of_which_nothing_is_known_says_nothing(base: str) -> None:
    assert ask(base) is UNKNOWN


@pytest.mark.parametrize(
    "secret", ["sk-ant-oat01-with\r\nx-injected: yes", "sk-ant-oat01-\u00fcber", "sk-ant-oat01-\ud800"]
)
def test_a_token_that_fits_in_no_header_says_nothing_and_shows_nowhere(
    url: str, api: MessagesApi, secret: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = Token(secret) if secret.isprintable() else _Unchecked(secret)

    assert ask(url, token) is UNKNOWN
    assert api.requests == ()
    assert secret[:17] not in caplog.text


class _Unchecked(Token, frozen=True):
    """One that the secret file would never let in; its fingerprint cannot always be had."""

    @property
    def fingerprint(self) -> str:
        return "unknown"


def test_what_is_logged_and_returned_never_holds_the_token(
    api: MessagesApi, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    api.on(API_KEY, "cut")

    assert ask(url, OAUTH) is VALID
    assert ask(url, API_KEY) is UNKNOWN
    assert OAUTH.fingerprint in caplog.text
    assert OAUTH.secret not in caplog.text
    assert API_KEY.secret not in caplog.text


# How it gets there.


class Proxy:
    """Answer everything oneself, and keep what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append((scope["path"], headers))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"input_tokens": 1}'})


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture
def proxy_url(proxy: Proxy) -> Iterator[str]:
    with serving(proxy) as base_url:
        yield base_url


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_used(proxy: Proxy, proxy_url: str, name: str) -> None:
    assert ask("http://api.invalid/base/", environ={name: proxy_url.replace("http://", "http://user:word@")}) is VALID

    ((_, headers),) = proxy.asked
    assert headers["host"] == "api.invalid"
    assert headers["authorization"] == f"Bearer {OAUTH.secret}"
    assert headers["proxy-authorization"].startswith("Basic ")


@pytest.mark.parametrize("exception", ["*", "127.0.0.1", "example.org, 127.0.0.1", ".0.0.1", "0.0.1:PORT"])
def test_an_exception_from_the_proxy_is_heeded(
    api: MessagesApi, url: str, proxy: Proxy, proxy_url: str, exception: str
) -> None:
    no_proxy = exception.replace("PORT", url.rpartition(":")[2])

    assert ask(url, environ={"HTTP_PROXY": proxy_url, "NO_PROXY": no_proxy}) is VALID
    assert (len(api.requests), len(proxy.asked)) == (1, 0)


@pytest.mark.parametrize("no_proxy", ["", ",", "7.0.0.1", "127.0.0.1:1", "example.org"])
def test_what_is_no_exception_goes_through_the_proxy(url: str, proxy: Proxy, proxy_url: str, no_proxy: str) -> None:
    assert ask(url, environ={"HTTP_PROXY": proxy_url, "NO_PROXY": no_proxy}) is VALID
    assert len(proxy.asked) == 1


def test_a_proxy_that_cannot_be_used_is_not_gone_around(api: MessagesApi, url: str) -> None:
    assert ask(url, environ={"ALL_PROXY": "socks5://127.0.0.1:1"}) is UNKNOWN
    assert api.requests == ()


def test_headers_for_a_gateway_pass_through_but_no_credential_and_nothing_of_ours(proxy: Proxy, proxy_url: str) -> None:
    custom = (
        "X-Team: blue\nAuthorization: Bearer other\nX-Api-Key: other\nHost: other\nanthropic-beta: x\nno colon\n: no"
    )

    assert ask(proxy_url, environ={"ANTHROPIC_CUSTOM_HEADERS": custom}) is VALID
    ((path, headers),) = proxy.asked
    assert path == "/v1/messages/count_tokens"
    assert headers["x-team"] == "blue"
    assert headers["authorization"] == f"Bearer {OAUTH.secret}"
    assert headers["host"] == proxy_url.removeprefix("http://")
    assert headers["anthropic-beta"] == "oauth-2025-04-20"
    assert "x-api-key" not in headers


def test_netrc_and_this_process_environment_have_no_say(
    api: MessagesApi, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    assert ask(url) is VALID
    assert api.requests[0].bearer == OAUTH.fingerprint


def test_certificates_are_checked_against_the_cas_of_the_environment(certificate: tuple[Path, Path]) -> None:
    key, cert = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"input_tokens": 1}'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async def all_verdicts() -> list[ProbeVerdict]:
        server = await asyncio.start_server(answer, "localhost", 0, ssl=context)
        base = {"ANTHROPIC_BASE_URL": f"https://localhost:{server.sockets[0].getsockname()[1]}"}
        trusted: list[dict[str, str]] = [
            {},
            {"SSL_CERT_FILE": str(cert)},
            {"NODE_EXTRA_CA_CERTS": str(cert)},
            {"NODE_EXTRA_CA_CERTS": "/nowhere"},
            {"SSL_CERT_FILE": "/nowhere"},
        ]
        async with server:
            return [await Probe(base | environ).ask(OAUTH) for environ in trusted]

    assert asyncio.run(all_verdicts()) == [UNKNOWN, VALID, VALID, UNKNOWN, UNKNOWN]


def test_a_caller_of_the_probe_that_stops_waiting_is_let_go_at_once(api: MessagesApi, url: str) -> None:
    api.on(OAUTH, "hang")

    async def leave() -> None:
        asking = asyncio.create_task(Probe({"ANTHROPIC_BASE_URL": url}).ask(OAUTH))
        await asyncio.to_thread(api.wait_for_requests, OAUTH)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    started = time.monotonic()
    asyncio.run(leave())
    assert time.monotonic() - started < TIMEOUT_SECONDS


def test_the_model_that_is_named_is_the_one_asked_for(url: str, api: MessagesApi) -> None:
    api.on(OAUTH, UsageLimit(claim="seven_day_opus"))

    assert asyncio.run(Probe({"ANTHROPIC_BASE_URL": url}).ask(OAUTH, model="claude-opus-4-1")) is VALID
    assert DEFAULT_MODEL.startswith("claude-")
