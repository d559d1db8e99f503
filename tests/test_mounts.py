"""The mounts of this process, from text as the kernel writes it."""

from __future__ import annotations

import pytest

from agent_runtime.mounts import mount_of, read_mounts

MOUNTINFO = r"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 21 0:40 / /run rw - tmpfs tmpfs rw
31 30 8:1 /srv/with\040blank /run/secrets/claude rw - ext4 /dev/root rw
32 30 8:1 /srv/token /run/secrets/single rw - ext4 /dev/root rw
33 30 8:1 /srv/gone//deleted /run/secrets/gone rw - ext4 /dev/root rw
34 21 8:1 /srv/gone//deleted /over rw - ext4 /dev/root rw
35 34 8:1 /srv/now /over rw - ext4 /dev/root rw
a line that is cut
"""


@pytest.mark.parametrize(
    ("path", "point", "root"),
    [
        ("/etc/token", "/", "/"),
        ("/run/token", "/run", "/"),
        ("/run/secrets/claude/token", "/run/secrets/claude", "/srv/with blank"),
        ("/run/secrets/claudette/token", "/run", "/"),
        ("/run/secrets/single", "/run/secrets/single", "/srv/token"),
        ("/run/secrets/gone", "/run/secrets/gone", "/srv/gone//deleted"),
        ("/over", "/over", "/srv/now"),
    ],
)
def test_the_mount_that_a_path_lies_in_is_found(path: str, point: str, root: str) -> None:
    mount = mount_of(path, MOUNTINFO)

    assert mount is not None
    assert (mount.point, mount.root) == (point, root)


def test_the_type_and_the_options_of_a_mount_are_read() -> None:
    [mount] = read_mounts("30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 master:1 - cgroup cgroup rw,memory\n")

    assert mount.kind == "cgroup"
    assert mount.options == {"ro", "nosuid", "rw", "memory"}


@pytest.mark.parametrize(
    "text", ["", "\n", "a line that is cut", "21 1 8:1 / / rw", "21 1 8:1 / / rw -", "1 2 3 - ext4 a rw"]
)
def test_what_is_no_line_of_a_mount_is_none(text: str) -> None:
    assert mount_of("/run/token", text) is None
