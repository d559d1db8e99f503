"""What the mode of a file or directory lets the children's user do, as the kernel decides it."""

from __future__ import annotations

import os
import stat

import pytest

from agent_runtime.process.users import User

USER = User(uid=1000, gid=100, groups=[200])


def found(mode: int, uid: int = 0, gid: int = 0) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 0, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "may"),
    [
        (0o200, 1000, 0, True),
        (0o022, 1000, 100, False),
        (0o020, 0, 100, True),
        (0o020, 0, 200, True),
        (0o002, 0, 200, False),
        (0o002, 0, 0, True),
        (0o220, 0, 0, False),
    ],
    ids=["owner", "only others than the owner", "group", "further group", "only others", "others", "a stranger"],
)
def test_the_first_class_of_the_mode_that_a_user_is_in_decides(mode: int, uid: int, gid: int, may: bool) -> None:
    assert USER.may(found(mode, uid, gid), stat.S_IWOTH) is may


@pytest.mark.parametrize(
    ("mode", "uid", "may"),
    [(0o777, 0, True), (0o1777, 0, False), (0o1777, 1000, True), (0o500, 1000, True), (0o755, 0, False)],
    ids=["open", "sticky", "own, sticky", "own, whose mode can be changed", "closed"],
)
def test_entries_can_be_replaced_by_the_owner_and_in_an_open_directory_that_is_not_sticky(
    mode: int, uid: int, may: bool
) -> None:
    assert USER.may_replace_in(found(mode, uid)) is may
