"""
Lines of stderr, parsed once: entries of the CLI's debug log (``--debug-to-stderr``), and lines for a person.

An entry is ``TIME [LEVEL] TEXT``; 1.0.128 writes no time. Control sequences, other text with a carriage return, or
invalid bytes may come before each part.
"""

from __future__ import annotations

import re
from itertools import islice

import msgspec

from agent_runtime.claude.frames import plain

HEAD_BYTES = 256
"""The beginning of a line in which an entry's time and level must stand."""

_LEVEL = re.compile(rb"\[(VERBOSE|DEBUG|INFO|WARN|ERROR)\] ?")
"""Source: 2.1.114 and 2.1.332 have these five; recorded lines of earlier versions have two of them."""

_MOST_LEVELS = 4
"""How many words in brackets are tried as the level: text before a carriage return may contain such words."""

_TIME = re.compile(r"\d[\d:.,+TZ -]{7,31}")


class LogEntry(msgspec.Struct, frozen=True, gc=False):
    """
    One line of stderr.

    Attributes:
        time: As printed, in a form that sorts; empty: the line has no time.
        level: In capitals; empty: the line is no entry of the log.
        text: The text of the entry; of any other line the whole line.
    """

    time: str
    level: str
    text: bytes

    @classmethod
    def of(cls, line: bytes) -> LogEntry:
        """Parse a line without its newline. Never raises, whatever the bytes."""
        for found in islice(_LEVEL.finditer(line, 0, HEAD_BYTES), _MOST_LEVELS):
            time = plain(line[: found.start()].rpartition(b"\r")[2]).strip()
            if not time or _TIME.fullmatch(time):
                return cls(time, found[1].decode(), line[found.end() :])
        return cls("", "", line)

    @property
    def may_be_continued(self) -> bool:
        """Whether the next lines may continue this entry with an MCP server's text; a quoted entry never continues."""
        return self.text.startswith(b"MCP server ")

    @property
    def is_of_the_prompt(self) -> bool:
        """
        Whether this entry shows that the CLI has read the prompt; in later entries every version quotes newlines.

        Source: 1.0.128, 2.0.76 and 2.1.30 look for hooks of that name then; later versions quote from the start.
        """
        return self.text.find(b"UserPromptSubmit", 0, HEAD_BYTES) >= 0
