"""
Play the CLI in a bench: a JSON object on stdin says what to do.

Imports little of the standard library and nothing else, so that it starts in a few milliseconds. Times are stamped with
a clock that all processes share.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

TYPE_CHECKING = False  # typing itself would cost as much as all the rest
if TYPE_CHECKING:
    from typing import Any

INIT = b'{"type":"system","subtype":"init","session_id":"%s","permissionMode":"bypassPermissions"}\n'
RESULT = b'{"type":"result","subtype":"success","is_error":false,"result":"x","num_turns":1}\n'
REFUSED = (
    b'2026-11-22T00:00:00.000Z [ERROR] API error (attempt 1/11): 401 401 {"type":"error","error":'
    b'{"type":"authentication_error","message":"OAuth token has expired. Please obtain a new token or refresh your '
    b'existing token."},"request_id":"req_011CSHoEeqs5C35K2UUqR7Fy"}\n'
)
"""The line by which Claude Code 2.1.30 reports a refused token."""

WORDS = 'It reads the file, runs the tests and finds that \\"this\\" one fails:\\n    assert left == right\\n'


def write(data: bytes, descriptor: int = 1) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def frame(length: int) -> bytes:
    """Return a frame with a model's text that is *length* bytes long, its newline included."""
    head = b'{"type":"assistant","message":{"model":"m","content":[{"type":"text","text":"'
    tail = b'"}]},"parent_tool_use_id":null}\n'
    room = length - len(head) - len(tail)
    text = (WORDS.encode() * (room // len(WORDS) + 1))[:room]
    return head + text.rstrip(b'\\"').ljust(room, b".") + tail


def stamp(path: str, **values: float) -> None:
    with open(path + ".new", "w") as file:
        json.dump(values, file)
    os.rename(path + ".new", path)


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.005)


def flood(told: dict[str, Any], seconds: float) -> int:
    """Print frames for *seconds*, as many bytes a second as *told* says, in pieces of a hundredth of a second."""
    rate, one = told["bytes_a_second"], frame(told["frame"])
    piece = one * max(1, int(rate / 100 / len(one)))
    begun = time.monotonic()
    sent = 0
    while (passed := time.monotonic() - begun) < seconds:
        if sent > rate * passed:
            time.sleep(sent / rate - passed)
        write(piece)
        sent += len(piece)
    return sent


def main() -> None:
    told = json.loads(sys.stdin.buffer.read())
    do = told["do"]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    write(INIT % b"00000000-0000-4000-8000-000000000000")
    if do == "fail":
        if told.get("bytes_a_second"):
            flood(told, told["seconds"])
        else:
            time.sleep(told["seconds"])
        written = time.monotonic()
        write(REFUSED, 2)
        signal.sigwait({signal.SIGINT})
        stamp(told["stamp"], written=written, signalled=time.monotonic())
        sys.exit(1)
    if do == "flood":
        stamp(told["stamp"], sent=flood(told, told["seconds"]))
    if do == "print":
        one = frame(told["frame"])
        many = one * max(1, (1 << 20) // len(one))
        if "go" in told:
            wait_for(told["go"])
        begun = time.time()
        for _ in range(told["bytes"] // len(many)):
            write(many)
        stamp(told["stamp"], begun=begun, sent=told["bytes"] // len(many) * len(many))
    if do == "tree":
        for _ in range(told["processes"] - 1):
            if os.fork() == 0:
                while True:
                    signal.pause()
        stamp(told["stamp"] + ".ready")
        signal.sigwait({signal.SIGINT})
        stamp(told["stamp"], signalled=time.monotonic())
        os._exit(1)
    if do == "hold":
        one = frame(1000)
        while not os.path.exists(told["until"]):
            write(one)
            time.sleep(0.5)
    write(RESULT)


main()
