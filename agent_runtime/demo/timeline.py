"""The output for a person: one line for each event, with the seconds since the start."""

from __future__ import annotations

import os
import threading
import time
from typing import TextIO


class Timeline:
    """
    Print events as they happen, from any thread.

    If the reader of the output goes away (``demo | head``), the demo goes on, and its exit code is the same.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._began = time.monotonic()

    @property
    def elapsed_seconds(self) -> float:
        """The seconds since the start of the demo."""
        return time.monotonic() - self._began

    def say(self, source: str, text: str) -> None:
        """Print one event, and its source: an execution, the supervisor, the API, or the demo."""
        self.write(f"{self.elapsed_seconds:6.2f} s  {source:<10}  {' '.join(text.split())}")

    def write(self, text: str) -> None:
        """Print *text* and a newline."""
        encoding = self._out.encoding or "utf-8"
        text = text.encode(encoding, errors="replace").decode(encoding)
        with self._lock:
            try:
                self._out.write(f"{text}\n")
                self._out.flush()
            except BrokenPipeError:
                # Otherwise flushing the buffer would raise again when the interpreter ends.
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._out.fileno())
                os.close(nowhere)
