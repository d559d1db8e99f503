"""
How this process itself makes HTTP requests: through the environment's proxies, trusting the environment's CAs.

Everything is taken from the environment that is passed in. Nothing is read from ``netrc``, no redirect is followed and
no cookie stored, so a credential goes where it is meant to go and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import httpx
from httpx import HTTPError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


__all__ = ["HTTPError", "checked_url", "client_for", "proxy_for", "tls_context"]


def checked_url(text: str) -> httpx.URL:
    """
    Parse a URL to which a request can be sent.

    Raises:
        ValueError: *text* is no such URL; the message does not repeat it, because it may hold a password.
    """
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL:
        raise ValueError("must be an http or https URL") from None
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 80) < 65536:
        raise ValueError("must be an http or https URL")
    return url


def proxy_for(url: httpx.URL, environ: Mapping[str, str]) -> str | None:
    """
    Find the proxy that a request to *url* goes through, by the rules of httpx and curl; None: it needs none.

    Raises:
        ValueError: The environment names a proxy of a kind that cannot be used.
    """
    if any(_covers(entry.strip(), url) for entry in _either_case(environ, "no_proxy").split(",")):
        return None
    proxy = _either_case(environ, f"{url.scheme}_proxy") or _either_case(environ, "all_proxy")
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        checked_url(proxy)
    except ValueError:
        raise ValueError("the proxy is none for HTTP") from None
    return proxy


@contextlib.asynccontextmanager
async def client_for(
    url: httpx.URL, environ: Mapping[str, str], *, timeout_seconds: float
) -> AsyncIterator[httpx.AsyncClient]:
    """
    Yield a client for requests to *url*, and close it after the block.

    Args:
        timeout_seconds: The limit for each step of a request; a whole request has no limit here.

    Raises:
        ValueError: The environment names a proxy that cannot be used.
        OSError: The environment names CAs that cannot be read.
    """
    proxy = proxy_for(url, environ)
    secure = url.scheme == "https" or (proxy is not None and proxy.startswith("https:"))
    # Reading some hundred certificates takes too long for the event loop.
    trust = await asyncio.to_thread(tls_context, environ) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with httpx.AsyncClient(
        proxy=None if proxy is None else httpx.Proxy(proxy, ssl_context=trust if proxy.startswith("https:") else None),
        verify=trust,
        timeout=timeout_seconds,
        trust_env=False,
        follow_redirects=False,
    ) as client:
        yield client


def tls_context(environ: Mapping[str, str]) -> ssl.SSLContext:
    """
    Build a TLS context that trusts the CAs of httpx and those that the CLI trusts besides.

    Source: ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` replace the bundled CAs (httpx 0.28, environment variables);
    ``NODE_EXTRA_CA_CERTS`` adds to them, and the CLI trusts the system's store as well (its network documentation).
    """
    file, directory = environ.get("SSL_CERT_FILE") or None, environ.get("SSL_CERT_DIR") or None
    if file or directory:
        context = ssl.create_default_context(cafile=file, capath=directory)
    else:
        context = httpx.create_ssl_context(trust_env=False)
        context.load_default_certs()
    if extra := environ.get("NODE_EXTRA_CA_CERTS"):
        with contextlib.suppress(OSError):  # Node, too, goes on without a file that it cannot read
            context.load_verify_locations(cafile=extra)
    return context


def _covers(entry: str, url: httpx.URL) -> bool:
    """Whether an entry of ``NO_PROXY`` (a host, a domain, either with a port, or ``*``) matches *url*."""
    if entry in ("*", url.host):
        return True
    name, colon, port = entry.lower().rpartition(":")
    if not colon or not port.isdigit():
        name, port = entry.lower(), ""
    name = name.strip("[]").removeprefix("*").removeprefix(".")
    ours = url.port or {"http": 80, "https": 443}[url.scheme]
    return bool(name) and (url.host == name or url.host.endswith("." + name)) and port in ("", str(ours))


def _either_case(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name) or environ.get(name.upper()) or ""
