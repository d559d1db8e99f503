"""
How the secret file is mounted, as far as that decides whether updates can be seen.

A single file that is mounted shows its old inode after the writer has renamed a new file to its name, because a mount
follows the inode, not the name. The same holds for a mounted directory that was removed and made again.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
DELETED = b"//deleted"
"""
How the kernel ends the root of a mount whose file or directory has been unlinked.

Source: ``seq_dentry`` in Linux ``fs/d_path.c``, seen on 6.18.
"""


class SourceKind(StrEnum):
    """How the secret file is mounted."""

    DIRECTORY = "directory"
    FILE_MOUNT = "file_mount"
    DETACHED = "detached"


def source_of(path: Path) -> SourceKind:
    """Return how the file at *path* is mounted; ``directory`` where the kernel does not say."""
    real = Path(os.path.realpath(path))
    try:
        mountinfo = MOUNTINFO.read_bytes()
    except OSError:
        mountinfo = b""
    mount_point, root = mount_of(os.fsencode(real), mountinfo)
    is_file_mount = mount_point == os.fsencode(real)
    if root.endswith(DELETED) or _is_unlinked(real) or _is_unlinked(real.parent):
        return SourceKind.DETACHED
    return SourceKind.FILE_MOUNT if is_file_mount else SourceKind.DIRECTORY


def mount_of(path: bytes, mountinfo: bytes) -> tuple[bytes, bytes]:
    """
    Return the mount that *path* is in.

    Args:
        path: Absolute, without symbolic links.
        mountinfo: As :manpage:`proc_pid_mountinfo(5)`.

    Returns:
        Its mount point and its root within the file system; both empty when there is none.
    """
    found = (b"", b"")
    for line in mountinfo.splitlines():
        fields = line.split(b" ", 5)
        if len(fields) < 6:
            continue
        mount_point = _unescaped(fields[4])
        inside = path == mount_point or path.startswith(mount_point.rstrip(b"/") + b"/")
        # A later line of the same mount point lies on top of the earlier one.
        if inside and len(mount_point) >= len(found[0]):
            found = (mount_point, _unescaped(fields[3]))
    return found


def _unescaped(field: bytes) -> bytes:
    for escaped, plain in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(escaped, plain)
    return field


def _is_unlinked(path: Path) -> bool:
    try:
        first = path.stat()
        if first.st_nlink > 0:
            return False
        # A rename between look-up and stat gives a link count of 0 too; then the name has another inode now.
        second = path.stat()
    except OSError:
        return False
    return second.st_nlink == 0 and (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)
