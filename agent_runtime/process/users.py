"""Find the user that children run as."""

from __future__ import annotations

import os
import pwd

import msgspec


class UnknownUser(LookupError):
    """There is no user of this name."""


class User(msgspec.Struct, frozen=True):
    """A user with all groups, as the kernel needs them."""

    uid: int
    gid: int
    groups: list[int]


def look_up(user: str) -> User:
    """
    Return the user of this name or number.

    Raises:
        UnknownUser: There is no user of this name.
    """
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        if not user.isdecimal():
            raise UnknownUser(user) from None
        return User(int(user), int(user), [])  # a number needs no entry; its group is never that of root
    return User(entry.pw_uid, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid))


def other_user(user: str | None) -> User | None:
    """
    Return the user of this name or number; None: none is given, or this process already runs as that user.

    Raises:
        UnknownUser: There is no user of this name.
    """
    found = None if user is None else look_up(user)
    return None if found is None or found.uid == os.geteuid() else found
