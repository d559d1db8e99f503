"""Check the access key that callers send, and refuse requests that a web page made a browser send."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agent_runtime.errors import AccessDenied, InvalidRequest
from agent_runtime.files import read_file
from agent_runtime.model.tokens import Token

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request

    from agent_runtime.telemetry.redaction import Redactor

log = logging.getLogger(__name__)

KEY_LIMIT_BYTES = 4096

_PRIVATE_DOMAINS = (".localhost", ".local", ".internal", ".svc")
"""
No public name can be registered below these domains.

Source: RFC 6761 and 6762; https://www.icann.org on .internal, 2024; ``svc`` is what Kubernetes puts services under.
"""


class BadKey(Exception):
    """The access key file has no usable key; the message says why, and never repeats the content."""


def read_key(path: Path) -> Token:
    """
    Read a key from a regular file without blocking; a byte order mark and blanks around the key are removed.

    Raises:
        BadKey: The file has no usable key.
    """
    try:
        content = read_file(path)
    except OSError as error:
        raise BadKey(f"cannot be read: {error.strerror}") from None
    if len(content) > KEY_LIMIT_BYTES:
        raise BadKey(f"is longer than {KEY_LIMIT_BYTES} bytes")
    key = content.removeprefix(b"\xef\xbb\xbf").strip()
    if not key:
        raise BadKey("holds no key")
    if b"\n" in key or b"\r" in key:
        raise BadKey("has several lines")
    if not key.isascii() or not key.decode().isprintable():
        raise BadKey("has characters that no header can carry")
    return Token(key.decode())


class AccessKey:
    """
    Check the access key of requests; its file is read again at every request, so that a change needs no restart.

    Args:
        path: The key's file; None: no key is needed.
        header: The header that may carry the key, besides ``Authorization: Bearer``.
    """

    def __init__(self, path: Path | None, header: str, redactor: Redactor) -> None:
        self._path = path
        self._header = header
        self._redactor = redactor
        self.error: str | None = None
        """Why no caller is admitted, as of the last read of the key file; None: callers with the key are."""

    @property
    def required(self) -> bool:
        """Whether callers need a key at all."""
        return self._path is not None

    def read(self) -> Token | None:
        """Read the key that is valid now; None: no key is needed, or the file has no usable key."""
        if self._path is None:
            return None
        try:
            key = read_key(self._path)
        except BadKey as bad:
            if self.error != str(bad):
                log.error("the access key file %s %s, so no caller is admitted", self._path, bad)
            self.error = str(bad)
            return None
        self.error = None
        self._redactor.add(key)
        return key

    def allows(self, request: Request) -> bool:
        """Whether *request* carries the valid key, or no key is needed."""
        if self._path is None:
            return True
        key = self.read()
        return key is not None and any(
            hmac.compare_digest(key.secret.encode(), value.encode()) for value in self._given(request)
        )

    def require(self, request: Request) -> None:
        """
        Check that *request* may be served.

        Raises:
            AccessDenied: The request carries no key, or a wrong one.
            InvalidRequest: No key is needed, but a web page may have made a browser send the request.
        """
        if self._path is None:
            refuse_pages(request)
        elif not self.allows(request):
            if any(self._given(request)):
                raise AccessDenied("this is not the access key; send the one in the supervisor's access key file")
            raise AccessDenied("send the access key as a bearer token or in the access header")

    def _given(self, request: Request) -> list[str]:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        given = [bearer.strip()] if scheme.lower() == "bearer" else []
        return [*given, request.headers.get(self._header, "")]


def refuse_pages(request: Request) -> None:
    """
    Refuse requests that a web page could make a browser on this machine send; for use where no key is set.

    If a page's own domain name was made to resolve to this machine (DNS rebinding), the browser still sends that name
    as ``Host``, and the page's origin as ``Origin``. Therefore ``Host`` must be an IP address, ``localhost`` or this
    machine's own name, by which other containers call. A request over a network, which is open to everybody here, may
    also use a name that public DNS cannot have: that of a container or a service.

    Raises:
        InvalidRequest: ``Host`` or ``Origin`` names another host, or other headers show that a page made the request.
    """
    own = _origin_in(f"{request.url.scheme}://{request.headers.get('host', '')}")
    host = "" if own is None else own[1]
    if not (
        host in {"localhost", socket.gethostname().lower()}
        or _address(host) is not None
        or (_is_private(host) and not _came_over_loopback(request))
    ):
        raise InvalidRequest("Host: must be an address or localhost where there is no access key")
    if not set(request.headers.getlist("sec-fetch-site")) <= {"none", "same-origin"}:
        raise InvalidRequest("Sec-Fetch-Site: requests of other pages are not taken where there is no access key")
    origins = request.headers.getlist("origin")
    if not origins:
        return
    if any(_origin_in(origin) != own for origin in origins):
        raise InvalidRequest("Origin: requests of other pages are not taken where there is no access key")
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    if has_body and request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # Types that a page may send without a CORS preflight are others.
        raise InvalidRequest("Content-Type: must be application/json in a request of a page")


def _origin_in(url: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port of a URL; None: one of them is missing or cannot be read."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.scheme, parts.hostname.lower(), port) if parts.hostname else None


def _is_private(host: str) -> bool:
    """Whether *host* can only be a name of a private network: a single label, or below a domain reserved for these."""
    return bool(host) and ("." not in host or host.endswith(_PRIVATE_DOMAINS))


def _came_over_loopback(request: Request) -> bool:
    server = request.scope.get("server")
    address = None if server is None else _address(server[0])
    return address is None or address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an IP address, an IPv4 one also where it is mapped into IPv6 (a socket listens on ``::``), or None."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
