"""
The stand-in API under the name of the real one: a proxy for HTTPS_PROXY, with a CA of its own, whose tunnels end there.

No request leaves the machine, and the CLI and the supervisor behave as they do before the real API.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = "api.anthropic.com"


@dataclass
class TlsApi:
    """
    The running proxy.

    Attributes:
        received: The bytes that each tunnel carried to the API, decrypted.
        in_clear: Requests to the proxy that were not for a tunnel.
    """

    environ: dict[str, str]
    received: list[bytearray] = field(default_factory=list)
    in_clear: list[bytes] = field(default_factory=list)

    @property
    def messages(self) -> list[tuple[dict[str, str], bytes]]:
        """The headers, by lower-case name, and the body of each request for a message."""
        found = []
        for stream in self.received:
            rest = bytes(stream)
            while rest:
                head, _, rest = rest.partition(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
                length = int(headers.get("content-length", "0"))
                body, rest = rest[:length], rest[length:]
                if first.startswith("POST /v1/messages"):
                    found.append((headers, body))
        return found


@contextlib.contextmanager
def tls_api(directory: Path, api_url: str, *, host: str = HOST) -> Iterator[TlsApi]:
    """Lead tunnels for *host*, the API's name, to *api_url* while the block lasts."""
    directory.mkdir(exist_ok=True)
    context, certificate = own_certificate(directory, host)
    port = int(api_url.rsplit(":", 1)[1])
    running = TlsApi({})
    ready, loops = threading.Event(), []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None = None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if kept is not None:
                    kept += data
                writer.write(data)
                await writer.drain()
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await lead(reader, writer, writers)
        except asyncio.CancelledError:  # the block has ended
            for one in writers:
                one.transport.abort()
        finally:
            for one in writers:
                one.close()

    async def lead(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, writers: list[asyncio.StreamWriter]
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(f"CONNECT {host}:443 ".encode()):
            running.in_clear += [] if head.startswith(b"CONNECT ") else [head]
            writer.write(b"HTTP/1.1 502 Elsewhere\r\ncontent-length: 0\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await writer.start_tls(context)
        kept = bytearray()
        running.received.append(kept)
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(to_writer)
        await asyncio.gather(pump(reader, to_writer, kept), pump(to_reader, writer))

    async def serve() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        running.environ |= {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "NODE_EXTRA_CA_CERTS": str(certificate)}
        ending = asyncio.Event()
        loops.append((asyncio.get_running_loop(), ending))
        ready.set()
        async with server:
            await ending.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield running
    finally:
        loop, ending = loops[0]
        loop.call_soon_threadsafe(ending.set)
        thread.join(10)


def own_certificate(directory: Path, host: str = HOST) -> tuple[ssl.SSLContext, Path]:
    """Make a self-signed certificate; return a server's TLS context with it, and the certificate's file."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = directory / "key.pem", directory / "cert.pem"
    subject = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"]
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*command, "-keyout", str(key), "-out", str(certificate), "-days", "2", *subject],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate
