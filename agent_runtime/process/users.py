"""Find the user that children run as."""

from __future__ import annotations

import os
import pwd
import stat

import msgspec


class UnknownUser(LookupError):
    """There is no user of this name."""


class User(msgspec.Struct, frozen=True):
    """A user with all groups, as the kernel needs them."""

    uid: int
    gid: int
    groups: list[int]

    def may(self, found: os.stat_result, wanted: int) -> bool:
        """Whether the mode of a file gives this user the permissions *wanted*: their bits for others (S_IWOTH)."""
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid in (self.gid, *self.groups) else 0
        return found.st_mode >> shift & wanted == wanted

    def may_replace_in(self, directory: os.stat_result) -> bool:
        """Whether this user may rename all entries of a directory, or may change its mode to allow that."""
        is_sticky = bool(directory.st_mode & stat.S_ISVTX)
        return directory.st_uid == self.uid or (not is_sticky and self.may(directory, stat.S_IWOTH))


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
