"""What a process said before it ended: the line that tells why, and the class and the advice that follow from it."""

from __future__ import annotations

import pytest

from agent_runtime.claude.last_words import (
    LINE_BYTES,
    LINES_KEPT,
    LIVED_ON_LINES,
    LastWords,
    most_informative,
    presentable,
)
from agent_runtime.claude.log_entries import LogEntry
from agent_runtime.claude.run_answer import Result
from agent_runtime.errors import RESERVED_WORDS, ErrorClass
from agent_runtime.evidence.detector import Channel, Detection
from agent_runtime.evidence.matching import Rule
from agent_runtime.evidence.verdict import Ending, verdict, without_repeated_advice

DEBUG = b"2026-11-29T20:00:00.000Z [DEBUG] a line of its debug log"

NODE = """\
node:internal/fs/utils:356
    throw err;
    ^

Error: EACCES: permission denied, open '/home/agent/.claude.json'
    at Object.openSync (node:fs:596:3)
    at y (file:///usr/lib/node_modules/@anthropic-ai/claude-code/cli.js:12:3) {
  errno: -13,
  syscall: 'open',
  code: 'EACCES',
  path: '/home/agent/.claude.json'
}

Node.js v20.19.2
"""

NODE_CAUSE = """\
file:///usr/lib/node_modules/@anthropic-ai/claude-code/cli.js:12
throw new Error("outer")
^

Error: outer
    at x (file:///usr/lib/cli.js:1:9) {
  [cause]: Error: ENOSPC: no space left on device, write
      at y (file:///usr/lib/cli.js:1:34)
}

Node.js v22.11.0
"""

NODE_REJECTION = """\
node:internal/process/promises:389
      new UnhandledPromiseRejection(reason);
      ^

UnhandledPromiseRejection: This error originated either by throwing inside of an async function without a catch block, \
or by rejecting a promise which was not handled with .catch(). The promise rejected with the reason "the disk".
    at throwUnhandledRejectionsMode (node:internal/process/promises:389:7) {
  code: 'ERR_UNHANDLED_REJECTION'
}

Node.js v20.20.2
"""

NODE_PLAIN = """\
[eval]:1
throw "plain words"
^
plain words
(Use `node --trace-uncaught ...` to show where the exception was thrown)

Node.js v18.20.4
"""

V8_HEAP = """\

<--- Last few GCs --->

[17873:0xa5e6e20]      194 ms: Mark-Compact 17.7 (49.5) -> 17.2 (50.2) MB

<--- JS stacktrace --->

FATAL ERROR: {} Allocation failed - JavaScript heap out of memory
----- Native stack trace -----

""" + "\n".join(f"{number:2}: 0xb78db3 v8::internal::Heap::CollectGarbage [node]" for number in range(1, 90))

BUN_ERROR = """\
1 | require("fs").openSync("/nonexist/x")
                  ^
ENOENT: no such file or directory, open '/nonexist/x'
    path: "/nonexist/x",
 syscall: "open",
   errno: -2,
    code: "ENOENT"

      at /home/agent/cli.js:1:15

Bun v1.4.5 (Linux x64)
"""

BUN_PANIC = """\
============================================================
Bun v1.4.5 (a7733435c) Linux x64
Linux Kernel v6.18.44 | glibc v2.36
CPU: sse42 popcnt
Args: "claude" "-p" "--output-format=stream-json"
Features: jsc
Builtins: "bun:ffi" "bun:main"

Elapsed: 57ms | User: 0ms | Sys: 17ms
RSS: 24.98 MB | Peak: 24.98 MB | Commit: 34.87 MB | Faults: 12 | Machine: 25.28 GB

panic(main thread): {}
oh no: Bun has crashed. This indicates a bug in Bun, not your code.

To send a redacted crash report to Bun's team,
please file a GitHub issue using the link below:

 https://bun.report/1.4.5/la1a773343AggggC6g4w8C_gqtg1Bmsx30Bkgm93B6hk93
"""

STUB = """\
Error: claude native binary not installed.

Either postinstall did not run (--ignore-scripts, some pnpm configs)
or the platform-native optional dependency was not downloaded
(--omit=optional).

Run the postinstall manually (adjust path for local vs global install):
  node node_modules/@anthropic-ai/claude-code/install.cjs

Or reinstall without --ignore-scripts / --omit=optional.
"""

GO_PANIC = """\
panic: runtime error: index out of range [3] with length 3

goroutine 1 [running]:
main.main()
	/src/main.go:5 +0x1d
"""

MISSING_LIBRARY = "error while loading shared libraries: libstdc++.so.6: cannot open shared object file"
MUSL = "Error loading shared library libstdc++.so.6: No such file or directory (needed by /usr/bin/claude)"

WORKER = "Error [ERR_WORKER_OUT_OF_MEMORY]: Worker terminated due to reaching memory limit: JS heap out of memory"
RUST_PANIC = "thread 'main' panicked at src/main.rs:4:5:\nthe length is 3\nnote: run with `RUST_BACKTRACE=1`"
NO_MODULE = "  throw err;\n  ^\n\nError: Cannot find module '/x.js'\n    at y\n\nNode.js v20.20.2"
OLD_LIBRARY = "/x/claude: /lib/libc.so.6: version `GLIBC_2.34' not found (required by /x/claude)"

OOM, SPAWN, SIGNAL, LOST = ErrorClass.OOM, ErrorClass.SPAWN, ErrorClass.SIGNAL, ErrorClass.LOST_RESULT
BEFORE, AFTER = False, True
"""The ``init`` frame."""

ENDS: dict[str, tuple[str, int | None, bool, ErrorClass, str]] = {
    "V8's heap": (V8_HEAP.format("Reached heap limit"), -6, AFTER, OOM, "JavaScript heap out of memory"),
    "V8's heap, by a wrapper": (
        V8_HEAP.format("Ineffective mark-compacts near heap limit"),
        134,
        AFTER,
        OOM,
        "heap is",
    ),
    "V8's heap, older": (V8_HEAP.format("CALL_AND_RETRY_LAST"), -6, BEFORE, OOM, "--max-old-space-size"),
    "V8's zone": ("#\n# Fatal process out of memory: Zone\n#", -5, AFTER, OOM, "process out of memory: Zone"),
    "a worker's heap": (WORKER, 1, AFTER, OOM, "heap is full"),
    "Bun's memory": ("RangeError: Out of memory\n      at /x.js:1:29\n\nBun v1.4.5", 1, AFTER, OOM, "Out of memory"),
    "Bun's memory, as a panic": (BUN_PANIC.format("Bun ran out of memory"), -5, AFTER, OOM, "Bun ran out of memory"),
    "C++": (
        "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc",
        -6,
        AFTER,
        OOM,
        "std::bad_alloc",
    ),
    "Rust": ("memory allocation of 4096 bytes failed\nAborted", 134, AFTER, OOM, "4096 bytes"),
    "Go's memory": ("fatal error: runtime: out of memory\n\nruntime stack:", 2, AFTER, OOM, "runtime: out of memory"),
    "a fork without memory": ("bash: fork: Cannot allocate memory", 1, BEFORE, OOM, "fork"),
    "a spawn without memory": ("Error: spawn /bin/bash ENOMEM\n    at x", 1, AFTER, OOM, "ENOMEM"),
    "SIGILL of Bun": (
        BUN_PANIC.format("Illegal instruction at address 0x4F6A0D"),
        -4,
        BEFORE,
        SPAWN,
        "SIGILL: panic(main thread): Illegal instruction at address 0x4F6A0D",
    ),
    "SIGILL of Bun, later": (
        BUN_PANIC.format("Illegal instruction at address 0x4F6A0D"),
        -4,
        AFTER,
        SIGNAL,
        "SIGILL: panic(main thread): Illegal instruction at address 0x4F6A0D",
    ),
    "SIGILL of qemu": (
        "qemu: uncaught target signal 4 (Illegal instruction) - core dumped",
        -4,
        BEFORE,
        SPAWN,
        "signal 4",
    ),
    "SIGILL, by bash": (
        'claude: line 3: 12 Illegal instruction     (core dumped) real "$@"',
        132,
        BEFORE,
        SPAWN,
        "line 3",
    ),
    "SIGILL, by dash": ("Illegal instruction (core dumped)", 132, BEFORE, SPAWN, "lacks an instruction"),
    "SIGSEGV without a word": ("", -11, BEFORE, SPAWN, "SIGSEGV"),
    "SIGSEGV without a word, later": ("", -11, AFTER, SIGNAL, "SIGSEGV"),
    "SIGSEGV of Bun": (BUN_PANIC.format("Segmentation fault at address 0x8"), 139, AFTER, SIGNAL, "address 0x8"),
    "SIGTRAP": ("", -5, BEFORE, SPAWN, "SIGTRAP"),
    "SIGSYS": ("Bad system call", 159, BEFORE, SPAWN, "SIGSYS"),
    "SIGFPE": ("", -8, BEFORE, SPAWN, "SIGFPE"),
    "SIGBUS": ("Bus error (core dumped)", 135, BEFORE, SPAWN, "Bus error"),
    "the C library gives up": ("free(): invalid pointer", -6, BEFORE, SPAWN, "free(): invalid pointer"),
    "a smashed stack": ("*** stack smashing detected ***: terminated\nAborted", 134, AFTER, SIGNAL, "smashing"),
    "V8 gives up": ("#\n# Fatal error in , line 0\n# Check failed: false.\n#", -5, AFTER, SIGNAL, "Fatal error in"),
    "killed before it began": ("", -9, BEFORE, SIGNAL, "SIGKILL"),
    "killed, by a wrapper": ("Killed", 137, AFTER, SIGNAL, "exit code 137 (SIGKILL)"),
    "ended politely from elsewhere": ("", 143, AFTER, SIGNAL, "exit code 143 (SIGTERM)"),
    "Go": (GO_PANIC, 2, AFTER, LOST, "panic: runtime error: index out of range"),
    "Rust panics": (RUST_PANIC, 101, AFTER, LOST, "src/main.rs:4:5: the length is 3"),
    "Node.js": (
        NODE,
        1,
        BEFORE,
        LOST,
        "exit code 1: Error: EACCES: permission denied, open '/home/agent/.claude.json'",
    ),
    "Node.js, with a cause": (NODE_CAUSE, 1, AFTER, LOST, "the disk is full"),
    "Node.js, a promise": (NODE_REJECTION, 1, AFTER, LOST, 'rejected with the reason "the disk".'),
    "Node.js, a text": (NODE_PLAIN, 1, AFTER, LOST, "exit code 1: plain words"),
    "Node.js, a module": (NO_MODULE, 1, BEFORE, LOST, "Cannot find module '/x.js'"),
    "Bun": (BUN_ERROR, 1, BEFORE, LOST, "ENOENT: no such file or directory, open '/nonexist/x'"),
    "the CLI's own words": (
        "error: unknown option '--nope'\n(Did you mean --name?)",
        1,
        BEFORE,
        LOST,
        "unknown option",
    ),
    "too many processes": ("bash: fork: Resource temporarily unavailable", 254, BEFORE, LOST, "raise the limit (pids)"),
    "npm's placeholder": (STUB, 1, BEFORE, SPAWN, "Error: claude native binary not installed."),
    "no Node.js": ("/usr/bin/env: \u2018node\u2019: No such file or directory", 127, BEFORE, SPAWN, "node"),
    "no Node.js, busybox": ("env: can't execute 'node': No such file or directory", 127, BEFORE, SPAWN, "node"),
    "no library": (f"claude: {MISSING_LIBRARY}", 127, BEFORE, SPAWN, "libstdc++.so.6"),
    "no library, musl": (MUSL, 127, BEFORE, SPAWN, "libstdc++.so.6"),
    "an old C library": (OLD_LIBRARY, 1, BEFORE, SPAWN, "GLIBC_2.34"),
    "another processor": ("/bin/sh: 1: /x/claude: Exec format error", 126, BEFORE, SPAWN, "Exec format error"),
    "no command": ("/bin/sh: 1: claude: not found", 127, BEFORE, SPAWN, "claude: not found"),
    "nothing said": (
        "",
        0,
        BEFORE,
        LOST,
        "before it had begun; run it by hand in this container to see why: exit code 0",
    ),
    "nothing said, later": ("", 0, AFTER, LOST, "send the same execution_id again to go on: exit code 0"),
    "not known": ("", None, AFTER, LOST, "exit code unknown"),
}


def said(text: str) -> str | None:
    words = LastWords()
    for line in (DEBUG, *text.encode().split(b"\n"), DEBUG):
        words.add(LogEntry.of(line))
    return words.most_informative or None


@pytest.mark.parametrize("name", ENDS)
def test_k7_the_end_of_a_process_has_its_class_and_the_line_that_tells_why(name: str) -> None:
    text, exit_code, began, error_class, shows = ENDS[name]

    reached = verdict(Ending(exit_code, began=began, last_words=said(text)))

    assert reached.error_class is error_class
    assert shows in (reached.detail or "")
    assert "Node.js v" not in (reached.detail or "")
    assert "Bun v" not in (reached.detail or "")


OVERLOADED = Detection(Rule("r", ErrorClass.OVERLOADED), Channel.STDOUT)


def test_k7_what_the_api_said_last_counts_unless_memory_ran_out() -> None:
    def reached(text: str, exit_code: int) -> ErrorClass | None:
        return verdict(Ending(exit_code, last_error=OVERLOADED, last_words=said(text))).error_class

    assert reached(NODE, 1) is ErrorClass.OVERLOADED
    assert reached(BUN_PANIC.format("Segmentation fault at address 0x8"), -11) is ErrorClass.OVERLOADED
    assert reached(V8_HEAP.format("Reached heap limit"), -6) is ErrorClass.OOM


@pytest.mark.parametrize(
    ("errors", "error_class", "shows"),
    [
        (["ENOENT: no such file, open '/x'", "Error: ENOSPC: no space left on device, write"], "error", "disk is full"),
        (["[ede_diagnostic] result_type=user", "Error: EDQUOT: disk quota exceeded\n    at x"], "error", "EDQUOT"),
        (["Error: EROFS: read-only file system, open '/x'"], "error", "mount it writable"),
        (["EMFILE: too many open files, open '/x'", "[ede_diagnostic] result_type=user"], "error", "nofile"),
        (["RangeError: Out of memory"], "oom", "Out of memory"),
        (["first", "second"], "error", "its stream says more"),
        (
            ["Error: EACCES: permission denied, open '/home/.claude/.credentials.json'"],
            "error",
            "denied, open '/home/.claude/.…",
        ),
    ],
)
def test_k7_errors_of_a_result_name_the_one_that_tells_most(errors: list[str], error_class: str, shows: str) -> None:
    failed = Result(is_error=True, subtype="error_during_execution", text="\n".join(errors))

    reached = verdict(Ending(1, result=failed))

    assert (reached.error_class, shows in (reached.detail or "")) == (error_class, True)


@pytest.mark.parametrize("subtype", ["success", None])
def test_an_answer_that_speaks_of_memory_or_disks_is_no_error_of_theirs(subtype: str | None) -> None:
    failed = Result(is_error=True, subtype=subtype or "success", text="No space left on device: that is what I found.")

    assert verdict(Ending(1, result=failed)).error_class is ErrorClass.ERROR


def test_what_is_said_before_the_cli_has_lived_on_is_not_what_it_died_of() -> None:
    words = LastWords()
    words.add(LogEntry.of(b"Error: ENOSPC: no space left on device, write"))
    for _ in range(LIVED_ON_LINES + 1):
        words.add(LogEntry.of(DEBUG))
    assert words.most_informative == ""

    words.add(LogEntry.of(b"[DEBUG] as 1.0.128 writes its log"))
    words.add(LogEntry.of(b"Something else."))
    assert words.most_informative == "Something else."


def test_k7_a_full_disk_shows_at_the_end_of_the_debug_log_of_a_cli_that_ends_in_silence() -> None:
    words = LastWords()
    log = b"2026-11-29T21:03:19.614Z [DEBUG] "
    words.add(LogEntry.of(log + b"Non-atomic write also failed: Error: ENOSPC: no space left on device, write"))
    words.add(LogEntry.of(log + b"API error (attempt 1/11): out of memory"))
    words.add(LogEntry.of(log + b"Error: something"))
    assert words.most_informative == "Non-atomic write also failed: Error: ENOSPC: no space left on device, write"
    reached = verdict(Ending(0, began=False, last_words=words.most_informative))
    assert (reached.error_class, "the disk is full" in (reached.detail or "")) == (ErrorClass.LOST_RESULT, True)

    words.add(LogEntry.of(b"But it has a word to say."))
    assert words.most_informative == "But it has a word to say."
    for _ in range(LIVED_ON_LINES + 1):
        words.add(LogEntry.of(log))
    assert words.most_informative == ""


def test_what_is_kept_is_bounded() -> None:
    words = LastWords()
    words.add(LogEntry.of(b"Error: the first"))
    for number in range(LINES_KEPT):
        words.add(LogEntry.of(b"Filler %d" % number))

    assert words.most_informative == f"Filler {LINES_KEPT - 1}"
    words.add(LogEntry.of(b"x" * 10_000_000))
    assert words.most_informative == f"Filler {LINES_KEPT - 1}", "a line of code is as long, and tells nothing"
    assert sum(map(len, words._lines)) < LINES_KEPT * (LINE_BYTES + 2)


def test_an_announcement_is_shown_with_what_follows() -> None:
    assert most_informative(["Error: Invalid MCP configuration:", "", "mcpServers: expected record"]) == (
        "Error: Invalid MCP configuration: mcpServers: expected record"
    )
    assert most_informative(["Error: nothing follows:"]) == "Error: nothing follows:"


@pytest.mark.parametrize("word", RESERVED_WORDS)
def test_no_error_text_shows_a_word_that_backends_act_on(word: str) -> None:
    for text in (f"Error: /x/{word}s/y is gone", word.upper(), f"a{word}b{word} {word}", f"{'x' * 400}{word}"):
        shown = presentable(text)
        assert not any(reserved in shown.lower() for reserved in RESERVED_WORDS)


def test_what_is_shown_is_one_short_printable_line() -> None:
    shown = presentable("a\x00b\nc\u202e" + "d" * 5000)

    assert shown.isprintable()
    assert len(shown) <= 300


def test_k7_going_on_is_not_advised_again_where_it_ended_in_the_same_way() -> None:
    first = verdict(Ending(1, last_words="Error: the same")).detail
    assert first is not None
    assert "send the same execution_id again" in first

    second = without_repeated_advice(first, ErrorClass.LOST_RESULT, first)
    assert second is not None
    assert "send the same execution_id again" not in second
    assert without_repeated_advice(first, ErrorClass.LOST_RESULT, second) == second
    assert without_repeated_advice(first, ErrorClass.LOST_RESULT, "another") == first
    assert without_repeated_advice(first, ErrorClass.LOST_RESULT, None) == first

    shutdown = "the supervisor was shut down; send the same execution_id again to go on with the session"
    assert without_repeated_advice(shutdown, ErrorClass.INTERRUPTED, shutdown) == shutdown
