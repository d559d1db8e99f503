"""
How the secret file is mounted, as far as that decides whether updates can be seen.

A single file that is mounted shows its old inode after the writer has renamed a new file to its name, because a mount
follows the inode, not the name. The same holds for a mounted directory that was removed and created again.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

from agent_runtime.files import mount_of

MOUNTINFO = Path("/proc/self/mountinfo")
DELETED = "//deleted"
"""
What the kernel appends to the root of a mount whose file or directory has been unlinked.

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
        mount = mount_of(str(real), MOUNTINFO.read_text(errors="surrogateescape"))
    except OSError:
        mount = None
    if (mount and mount.root.endswith(DELETED)) or _is_unlinked(real) or _is_unlinked(real.parent):
        return SourceKind.DETACHED
    return SourceKind.FILE_MOUNT if mount and mount.point == str(real) else SourceKind.DIRECTORY


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
