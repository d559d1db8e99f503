"""The kernel's own watch of a directory, which the standard library lacks."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MODIFY, _ATTRIB, _CLOSE_WRITE = 0x2, 0x4, 0x8
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _ONLYDIR = 0x400, 0x800, 0x1000000
# Neither opening nor reading: who waits here reads.
_CHANGES = _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_IGNORED = 0x8000
_HEADER = struct.Struct("iIII")
_READ_BYTES = 64 << 10

_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """
    Watch one directory, as it is now, for changes of it and of what is in it.

    Source: https://man7.org/linux/man-pages/man7/inotify.7.html

    Raises:
        OSError: There is no such directory, or no instance, watch or descriptor is left.
    """

    def __init__(self, directory: Path) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        try:
            _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), _CHANGES | _ONLYDIR))
        except OSError:
            self.close()
            raise

    def wait(self, other: int, timeout_seconds: float) -> bool:
        """Return at an event, when the descriptor *other* can be read, or after the timeout; True: it was an event."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(other, select.POLLIN)
        return any(fd == self._fd for fd, _ in poll.poll(max(1, round(timeout_seconds * 1000))))

    def clear(self) -> bool:
        """Take all events there are, and tell whether one says that the directory is no longer watched."""
        ended = False
        with contextlib.suppress(BlockingIOError):
            while events := os.read(self._fd, _READ_BYTES):
                at = 0
                while at < len(events):
                    _, mask, _, name_bytes = _HEADER.unpack_from(events, at)
                    ended |= bool(mask & (_IGNORED | _MOVE_SELF))
                    at += _HEADER.size + name_bytes
        return ended

    def close(self) -> None:
        """Give the watch up."""
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
