"""Find this process's own cgroup in the file system, from the files in ``/proc/self``."""

from __future__ import annotations

from pathlib import Path

from agent_runtime.files import Mount, read_mounts

_REMOVED = " (deleted)"


def own_cgroup(text: str, controller: str = "") -> str | None:
    """
    Return the path of our own cgroup (version 2), from the text of ``/proc/self/cgroup``; None: there is none.

    Args:
        controller: Use the hierarchy of version 1 with this controller instead.
    """
    for line in text.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(",") and path:
            return path
    return None


def mounts(text: str, controller: str = "") -> list[Mount]:
    """
    List the cgroup v2 mounts in the text of ``/proc/self/mountinfo``, those that hide others first.

    Args:
        controller: List the mounts of version 1 with this controller instead.
    """
    found = reversed(read_mounts(text))
    if controller:
        return [mount for mount in found if mount.kind == "cgroup" and controller in mount.options]
    return [mount for mount in found if mount.kind == "cgroup2"]


def locate(cgroup_text: str, mountinfo_text: str) -> list[Path | str]:
    """
    List for each cgroup v2 mount the directory of our own cgroup, or in a sentence why it shows none; never empty.

    Directories come first.

    On a hybrid machine version 2 is mounted beside the controllers of version 1, at ``/sys/fs/cgroup/unified``. A
    mount may show only a part of the tree. Both paths are relative to our cgroup namespace: a cgroup above its root is
    ``/..``, which is no directory.
    """
    own = own_cgroup(cgroup_text)
    all_mounts = mounts(mountinfo_text)
    if own is None or not all_mounts:
        return ["no cgroup v2 is mounted"]
    if own.endswith(_REMOVED):
        return ["the cgroup of this process has been removed"]
    return sorted((_in_mount(own, mount) for mount in all_mounts), key=lambda place: isinstance(place, str))


def oom_counter_file(cgroup_text: str, mountinfo_text: str) -> Path | None:
    """
    Return the file in which the kernel counts kills for lack of memory in our own cgroup; None: it is not visible.

    Only one of the two versions has the memory controller. The file can be read even on a read-only mount, as in most
    containers.

    Source: https://docs.kernel.org/admin-guide/cgroup-v1/memory.html, https://docs.kernel.org/admin-guide/cgroup-v2.html
    """
    for controller, name in (("memory", "memory.oom_control"), ("", "memory.events")):
        own = own_cgroup(cgroup_text, controller)
        if own is not None and not own.endswith(_REMOVED):
            places = [_directory(own, mount) for mount in mounts(mountinfo_text, controller)]
            return next((place / name for place in places if place is not None), None)
    return None


def _in_mount(own: str, mount: Mount) -> Path | str:
    directory = _directory(own, mount)
    if directory is None:
        return f"the cgroup v2 at {mount.point} does not show the cgroup of this process"
    if "ro" in mount.options:
        return f"the cgroup v2 at {mount.point} is mounted read-only"
    return directory


def _directory(own: str, mount: Mount) -> Path | None:
    root = "" if mount.root == "/" else mount.root
    if "/.." in own or "/.." in root or not f"{own}/".startswith(f"{root}/"):
        return None
    return Path(mount.point) / own[len(root) :].lstrip("/")
