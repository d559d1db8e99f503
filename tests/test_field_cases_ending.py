"""How a CLI's process ends, and places where nothing can run: kinds K7 and K12 of what people report."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.supervised import DEADLINE_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

# -- K12: no locks

NO_LOCKS = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

int flock(int descriptor, int operation) {
    char link[64], path[4096] = {0};
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    if (readlink(link, path, sizeof path - 1) > 0 && strstr(path, getenv("NO_LOCKS_BELOW"))) {
        errno = atoi(getenv("NO_LOCKS_ERRNO"));
        return -1;
    }
    return syscall(SYS_flock, descriptor, operation);
}
"""
"""Stands for a file system without locks, below one directory: the call fails as it does there."""


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile what is loaded before the C library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here, and flock must really fail")
    source = tmp_path_factory.mktemp("no-locks") / "no_locks.c"
    source.write_text(NO_LOCKS)
    library = source.with_suffix(".so")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True, timeout=60)
    return library


def started_without_locks(library: Path, home: Path, below: Path, code: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent_runtime", "serve", "--port", "0"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "AGENT_RUNTIME_DATA_DIR": str(home / "data"),
            "AGENT_RUNTIME_CONFIG_DIR": str(home / "config"),
            "LD_PRELOAD": str(library),
            "NO_LOCKS_BELOW": str(below),
            "NO_LOCKS_ERRNO": str(code),
        },
        cwd=home,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


CODES = [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO, errno.ENOSYS, errno.EACCES, errno.EINVAL]


@pytest.mark.parametrize(("place", "code"), [*(("data", code) for code in CODES), ("config", errno.EIO)])
def test_k12_a_directory_whose_files_cannot_be_locked_is_named(
    no_locks: Path, tmp_path: Path, place: str, code: int
) -> None:
    ended = started_without_locks(no_locks, tmp_path, tmp_path / place, code)

    assert (ended.returncode, ended.stdout) == (3, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"agent-runtime: AGENT_RUNTIME_{place.upper()}_DIR: files in {tmp_path / place} cannot be")
    assert f"({errno.errorcode[code]})" in line


def test_k12_a_lock_that_only_keepers_hold_is_told_like_the_others(no_locks: Path, tmp_path: Path) -> None:
    ended = started_without_locks(no_locks, tmp_path, tmp_path / "data/keepers.lock", errno.ENOLCK)

    assert (ended.returncode, ended.stderr.count("\n")) == (3, 1)
    assert str(tmp_path / "data") in ended.stderr
