"""
Find among the last lines of a process the one that explains its end, and classify it.

A dying CLI explains itself on stderr, among many uninformative lines: a stack, the version of its runtime, a piece of
its own code. The lines here are those of Node.js 18 to 22, Bun, V8, the GNU C library, musl, shells, qemu, and of Go,
Rust and C++ for wrappers written in them.

Source: measured with Node.js 20, Bun 1.4, dash, bash and the GNU C library 2.36; the rest from the sources of V8
(``api.cc``, ``heap.cc``), Bun (``crash_handler.zig``), musl (``dynlink.c``), Go (``runtime/panic.go``), Rust
(``panicking.rs``) and qemu (``linux-user/signal.c``).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable

import msgspec

from agent_runtime.claude.frames import plain
from agent_runtime.claude.log_entries import LogEntry
from agent_runtime.errors import ErrorClass, plain_detail
from agent_runtime.model.task import CLI_FLAGS

LINES_KEPT = 60
LOG_LINES_KEPT = 8
LINE_BYTES = 1000
SHOWN_CHARACTERS = 300
LIVED_ON_LINES = 40
"""A CLI that logged this many lines after a message did not die of it."""


class Cause(msgspec.Struct, frozen=True):
    """
    The meaning of a line.

    Attributes:
        words: A regular expression, compiled at its first use.
        error_class: The class that follows from the words alone; None: the way the process ended decides.
        remedy: The advice, in place of the error class's own; empty: the class's own.
    """

    words: str
    error_class: ErrorClass | None = None
    remedy: str = ""


_OPTION = f"option '(?:{'|'.join(sorted(set(CLI_FLAGS.values())))})"
"""The beginning of a complaint about an option that a field of the task becomes."""

CAUSES = (
    Cause(
        "(?i)heap out of memory|(?:reached|near) heap limit|heap limit exceeded|WORKER_OUT_OF_MEM",
        ErrorClass.OOM,
        "its JavaScript heap is full: raise it with NODE_OPTIONS=--max-old-space-size=MEGABYTES, or divide the task",
    ),
    Cause(
        r"(?i)out of memory|\bOOM in\b|bad_alloc|\bENOMEM\b|(?:cannot|unable to|failed to) allocate memory|"
        r"memory exhausted|memory allocation of|\bMemoryError\b|array buffer allocation failed|"
        "ran out of executable mem",
        ErrorClass.OOM,
    ),
    Cause(
        r"(?i)\bENOSPC\b|no space left on device|\bEDQUOT\b|disk quota exceeded",
        remedy="the disk is full: free space on it, or mount a larger one",
    ),
    Cause(
        r"(?i)\bEROFS\b|read-only file system",
        remedy="a directory is read-only that it must write to: mount it writable",
    ),
    Cause(
        r"(?i)\bE[MN]FILE\b|too many open files|ran out of file descriptors",
        remedy="too many files are open: raise the limit (nofile), or run fewer at once",
    ),
    Cause(
        r"(?i)\bEAGAIN\b|resource temporarily unavailable",
        remedy="no more processes could be started: raise the limit (pids), or run fewer at once",
    ),
    Cause("(?i)invalid MCP configuration", ErrorClass.INVALID_REQUEST, "correct mcp_config"),
    Cause("(?i)--json-schema (?:is not a valid|must be)", ErrorClass.INVALID_REQUEST, "correct json_schema"),
    Cause("(?i)invalid --agents configuration", ErrorClass.INVALID_REQUEST, "correct agents"),
    Cause("(?i)--agent '.{0,200}' not found", ErrorClass.INVALID_REQUEST, "name another agent"),
    Cause(
        f"(?i)unknown {_OPTION}|{_OPTION}[^']{{0,60}}' argument .{{1,200}} is invalid|fallback model cannot be|"
        "--session-id (?:cannot|can only) be used",
        ErrorClass.INVALID_REQUEST,
        "leave out the field that becomes this option, or install a later version",
    ),
    Cause(
        "(?i)native binary not installed",
        ErrorClass.SPAWN,
        "npm's placeholder stands where it should be: run its install.cjs, or install it without --ignore-scripts and "
        "--omit=optional",
    ),
    Cause(
        r"(?i)error while loading shared libraries|error loading shared library|error relocating|version `GLIBC|"
        r"version `CXXABI|exec format error|bad interpreter|cannot execute|\benv: .{0,80}no such file|"
        r"qemu-[a-z0-9_]+: could not open|symbol lookup error",
        ErrorClass.SPAWN,
        "it does not run on this image: install it for this processor and C library, with what it needs",
    ),
    Cause(
        r"(?i)^panic(?:\([^)]{1,40}\))?: |panicked at|^fatal error: |^fatal: |# Fatal error|lacks AVX|"
        r"uncaught target signal|^terminate called|\bassertion\b.{0,200}failed|stack smashing detected|"
        r"^(?:free|malloc|realloc|munmap_chunk)\(\): |double free|stack overflow"
    ),
    Cause(r"\bE[A-Z0-9]{2,14}: "),
    Cause(
        r"^(?:Uncaught |\[cause\]: |\[)?(?:[A-Za-z_$][\w.$]{0,60}(?:Error|Exception|Rejection)|Error|error)"
        r"(?: \[\w{1,60}\])?: "
    ),
    Cause(
        r"(?i)illegal instruction|segmentation (?:fault|violation)|bus error|floating point exception|"
        r"trace/breakpoint trap|bad system call|\baborted\b|\bkilled\b|core dumped|\bSIG[A-Z]+: |"
        "bad option|: not found|command not found"
    ),
)
"""The most informative row first; of several lines that match the same row the last one counts."""

_SAYS_NOTHING = (
    r"Node\.js v\d|Bun v\d|node:|file://|\[eval\]|\d{1,6} \||\(Use `node|\(node:\d|Require stack|Warning: no stdin|"
    r"oh no: Bun|To send a redacted|please file|https?://|----|====|Linux Kernel|CPU: |Args: |Features: |Builtins: |"
    r"Elapsed: |RSS: |<---|goroutine \d|note: run with|stack backtrace|Traceback \("
)
_NESTED = b"[cause]: "
_STACK_LINE = rb"\s|\d{1,4}: 0x"
"""A line of a stack, or of the fields of an error. Such lines are not stored: there may be too many of them."""

_BOILERPLATE = r"(?i)This error originated either by throwing .{1,250} (?=the promise rejected)"


class LastWords:
    """The last lines of stderr, a bounded number of them; lines outside the debug log and log entries apart."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=LINES_KEPT)
        self._log: deque[bytes] = deque(maxlen=LOG_LINES_KEPT)
        self._lived_on = 0

    def add(self, entry: LogEntry) -> None:
        """Store one line."""
        line = entry.text
        if entry.level:
            self._lived_on += 1
            self._log.append(line[:LINE_BYTES])
            return
        if re.match(_STACK_LINE, line) and _NESTED not in line:
            return
        if self._lived_on > LIVED_ON_LINES:
            self._lines.clear()
        self._lived_on = 0
        self._lines.append(line[: LINE_BYTES + 1])

    @property
    def most_informative(self) -> str:
        """
        The most informative line, as a person would read it; empty: there is none.

        Without one, the end of the debug log may show a shortage of the machine: on a full disk 2.1.30 ends without a
        word and with exit code 0 (measured).
        """
        lived_on = self._lived_on > LIVED_ON_LINES
        if not lived_on and (line := most_informative([plain(line) for line in self._lines])):
            return line
        log = map(plain, reversed(self._log))
        return next((line for line in log if is_resource_shortage(line)), "")


def most_informative(lines: Iterable[str]) -> str:
    """Choose the most informative line, with the next one if it ends in a colon; empty: there is none."""
    all_lines = [line.replace("\t", " ") for line in lines]
    best, best_rank = -1, len(CAUSES) + 1
    for number, line in enumerate(all_lines):
        rank = _rank(line)
        if rank is not None and rank <= best_rank:
            best, best_rank = number, rank
    if best < 0:
        return ""
    chosen = re.sub(_BOILERPLATE, "", all_lines[best].strip())
    if chosen.endswith(":"):
        chosen = f"{chosen} {next((line.strip() for line in all_lines[best + 1 :] if line.strip()), '')}".strip()
    return chosen


def cause(line: str) -> Cause | None:
    """Return the first row of :data:`CAUSES` that matches *line*; None: no row does."""
    rank = _rank(line)
    return CAUSES[rank] if rank is not None and rank < len(CAUSES) else None


def is_resource_shortage(line: str) -> bool:
    """Whether *line* says that the machine lacks disk space, a writable disk, open files or processes."""
    why = cause(line)
    return why is not None and why.error_class is None and bool(why.remedy)


def _rank(line: str) -> int | None:
    """Return the rank of a line, 0 for the most informative; None: it says nothing."""
    text = line.strip()
    if not text or re.match(_SAYS_NOTHING, text):
        return None
    is_code = len(line) > LINE_BYTES and not re.search(_BOILERPLATE, text)
    if is_code or (line[0].isspace() and _NESTED.decode() not in line):
        return None  # code, a stack, or the fields of an error
    found = next((rank for rank, row in enumerate(CAUSES) if re.search(row.words, text)), None)
    if found is not None:
        return found
    return len(CAUSES) if text[0].isalpha() else None


def presentable(text: str) -> str:
    """Return one line of *text* that an error may show: printable, short, without words that backends act on."""
    line = "".join(character if character.isprintable() else " " for character in text[:LINE_BYTES])
    line = plain_detail(ErrorClass.ERROR, line)
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"
