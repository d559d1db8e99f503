"""The mounts of this process, as ``/proc/self/mountinfo`` lists them; pure."""

from __future__ import annotations

import functools

import msgspec

_ESCAPES = ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\"))


class Mount(msgspec.Struct, frozen=True):
    """
    One mounted file system.

    Attributes:
        root: The directory of the file system that is mounted, for a cgroup as our cgroup namespace shows it.
        point: Where it is mounted.
        kind: The type of the file system.
        options: Of the mount and of the file system, such as ``ro``.
    """

    root: str
    point: str
    kind: str
    options: frozenset[str]


def read_mounts(text: str) -> list[Mount]:
    """
    Parse *text*, a ``mountinfo``; a later mount of the same mount point lies on top of the earlier one.

    Source: https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html
    """
    found = []
    for line in text.split("\n"):
        mounted, _, file_system = line.partition(" - ")
        fields, (kind, *more) = mounted.split(" "), file_system.split(" ")
        if kind and len(fields) >= 6:
            options = frozenset(f"{fields[5]},{more[-1] if more else ''}".split(","))
            found.append(Mount(_unescaped(fields[3]), _unescaped(fields[4]), kind, options))
    return found


@functools.lru_cache(maxsize=1)  # for the secret file it is asked twice a second, with the same text
def mount_of(path: str, text: str) -> Mount | None:
    """
    Return the mount that *path* is in; None: *text*, a ``mountinfo``, has none.

    Args:
        path: Absolute, without symbolic links.
    """
    over = [mount for mount in read_mounts(text) if f"{path}/".startswith(f"{mount.point.rstrip('/')}/")]
    return max(reversed(over), key=lambda mount: len(mount.point), default=None)


def _unescaped(field: str) -> str:
    for escape, character in _ESCAPES:
        field = field.replace(escape, character)
    return field
