"""Who may call: the access key, and what a browser on the same machine must not do."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agent_runtime.errors import AccessDenied, InvalidRequest
from agent_runtime.tokens import Token

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request

    from agent_runtime.redaction import Redactor

log = logging.getLogger(__name__)

KEY_LIMIT_BYTES = 4096

_PRIVATE_DOMAINS = (".localhost", ".local", ".internal", ".svc")
"""
Below these nobody can register a name.

Source: RFC 6761 and 6762; https://www.icann.org on .internal, 2024; ``svc`` is what Kubernetes puts services under.
"""


class AccessKey:
    """
    Check the inbound key, re-read from its file at every request, so that a change needs no restart.

    Args:
        path: None: everybody may call.
    """

    def __init__(self, path: Path | None, header: str, redactor: Redactor) -> None:
        self._path = path
        self._header = header
        self._redactor = redactor

    @property
    def required(self) -> bool:
        """Whether callers need a key at all."""
        return self._path is not None

    def read(self) -> Token | None:
        """Read the key that is valid now; None: there is none that could be right."""
        if self._path is None:
            return None
        try:
            with self._path.open("rb") as file:
                text = file.read(KEY_LIMIT_BYTES).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            log.error("the access key file %s cannot be read, so nobody may call: %s", self._path, type(error).__name__)
            return None
        if not text:
            log.error("the access key file %s holds no key, so nobody may call", self._path)
            return None
        key = Token(text)
        self._redactor.add(key)
        return key

    def allows(self, request: Request) -> bool:
        """Whether *request* carries the key, or none is needed."""
        if self._path is None:
            return True
        key = self.read()
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        given = [bearer.strip()] if scheme.lower() == "bearer" else []
        given.append(request.headers.get(self._header, ""))
        return key is not None and any(hmac.compare_digest(key.secret.encode(), value.encode()) for value in given)

    def require(self, request: Request) -> None:
        """
        Let *request* pass or not.

        Raises:
            AccessDenied: It carries no key, or a wrong one.
            InvalidRequest: Without a key, a web page may have been made to send it.
        """
        if self._path is None:
            refuse_rebinding(request)
        elif not self.allows(request):
            raise AccessDenied("send the access key as a bearer token or in the access header")


def refuse_rebinding(request: Request) -> None:
    """
    Refuse what a web page could make a browser on this machine send, where no key tells callers apart.

    A page whose name was made to point here still sends its own name as ``Host``, and its own as ``Origin``. Addresses
    and ``localhost`` cannot be pointed elsewhere, and the machine's own name is for its container's neighbours. Who
    comes over a network, open to all then, may use a name that no public DNS has: a container's or a service's.

    Raises:
        InvalidRequest: The headers name somebody else.
    """
    host = _name_in(f"//{request.headers.get('host', '')}")
    if not (
        host in {"localhost", socket.gethostname().lower()}
        or _is_address(host)
        or (_is_private(host) and not _came_over_loopback(request))
    ):
        raise InvalidRequest("Host: must be an address or localhost where there is no access key")
    origin = request.headers.get("origin")
    if origin is not None and _name_in(origin) != host:
        raise InvalidRequest("Origin: requests of web pages are not taken where there is no access key")


def _name_in(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _is_private(host: str) -> bool:
    """Whether a name can only be one of a private network: a single word, or below a domain kept for them."""
    return bool(host) and ("." not in host or host.endswith(_PRIVATE_DOMAINS))


def _came_over_loopback(request: Request) -> bool:
    server = request.scope.get("server")
    if server is None or not _is_address(server[0]):
        return True
    address = ipaddress.ip_address(server[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # who listens on :: meets 127.0.0.1 in this form
    return address.is_loopback


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
