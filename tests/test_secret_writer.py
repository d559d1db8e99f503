"""``token put`` and ``token show``."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from agent_runtime.errors import RESERVED_WORDS, NotWritable, SecretUnreadable
from agent_runtime.generations import GenerationLedger
from agent_runtime.secret_file import SecretFile
from agent_runtime.secret_writer import describe, put
from agent_runtime.tokens import Token
from tests.secret_mount import SecretMount, token

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def mount(tmp_path: Path) -> SecretMount:
    (tmp_path / "mount").mkdir()
    return SecretMount(tmp_path / "mount")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.mark.parametrize("data", [token(1), f"{token(1)}\n", f"\ufeff {token(1)}\r\n\r\n"])
def test_a_bare_token_is_written_as_one_line_for_its_owner_alone(mount: SecretMount, data: str) -> None:
    assert put(mount.path, data.encode()) == []
    assert mount.path.read_text() == f"{token(1)}\n"
    assert mode_of(mount.path) == 0o600
    assert names_in(mount.directory) == ["token"]


def test_a_json_object_is_written_as_it_is(mount: SecretMount) -> None:
    raw = f'{{"token": "{token(1)}", "subscription": "max", "note": 1}}'
    assert put(mount.path, raw.encode()) == []
    assert mount.path.read_text() == f"{raw}\n"


@pytest.mark.parametrize("data", [b"", b"\n", b"<html></html>", b"{}", f"{token(1)}\n{token(2)}\n".encode()])
def test_what_a_reader_would_not_take_is_not_written(mount: SecretMount, data: bytes) -> None:
    mount.publish(f"{token(0)}\n")
    with pytest.raises(SecretUnreadable) as refusal:
        put(mount.path, data)
    assert "sk-ant" not in str(refusal.value)
    assert mount.path.read_text() == f"{token(0)}\n"
    assert names_in(mount.directory) == ["token"]


def test_the_mode_and_owner_of_an_existing_file_stay(mount: SecretMount) -> None:
    mount.publish(f"{token(0)}\n")
    mount.path.chmod(0o440)
    if os.geteuid() == 0:
        os.chown(mount.path, 1234, 4321)
    before = mount.path.stat()
    assert put(mount.path, token(1).encode()) == []
    after = mount.path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_file_that_every_user_may_read_is_warned_of(mount: SecretMount) -> None:
    mount.publish(f"{token(0)}\n")
    mount.path.chmod(0o644)
    assert put(mount.path, token(1).encode()) == ["every user of this machine may read the file"]


def test_an_unknown_prefix_and_a_past_expiry_are_warned_of(mount: SecretMount) -> None:
    warnings = put(mount.path, b'{"token": "made-up", "expires_at": 1}')
    assert len(warnings) == 2
    assert "made-up" not in "".join(warnings)


def test_a_link_is_followed_and_stays(mount: SecretMount) -> None:
    target = mount.directory / "real"
    target.write_text(f"{token(0)}\n")
    mount.path.symlink_to("real")
    put(mount.path, token(1).encode())
    assert mount.path.is_symlink()
    assert target.read_text() == f"{token(1)}\n"


def test_what_cannot_be_written_is_said_without_a_word_that_means_something_else(mount: SecretMount) -> None:
    loop = mount.directory / "loop"
    loop.symlink_to("loop")
    taken = mount.directory / "taken"
    taken.mkdir()
    for path in (mount.directory / "credentials" / "oauth", loop, taken):
        with pytest.raises(NotWritable, match="the secret file cannot be written") as refusal:
            put(path, token(1).encode())
        assert not any(word in str(refusal.value).lower() for word in RESERVED_WORDS)
    assert names_in(mount.directory) == ["loop", "taken"]


def test_no_reader_ever_finds_less_than_a_whole_token(mount: SecretMount) -> None:
    put(mount.path, token(0).encode())
    secret = SecretFile(mount.path, ledger=GenerationLedger(None))
    written = [f"{token(number)}\n" for number in range(100)]
    writer = threading.Thread(target=lambda: [put(mount.path, line.encode()) for line in written])
    writer.start()
    found = set()
    while writer.is_alive():
        found.add(mount.path.read_text())
        assert secret.poll().error is None
    writer.join()
    assert found <= set(written)
    assert secret.read().token.secret == token(99)


def test_show_tells_everything_but_the_token(mount: SecretMount) -> None:
    raw = f'{{"token": "{token(1)}", "expires_at": "2026-01-01T00:00:00Z", "subscription": "max"}}'
    put(mount.path, raw.encode())
    shown = describe(mount.path)
    age_seconds = shown.pop("age_seconds")
    assert isinstance(age_seconds, float)
    assert -1 < age_seconds < 60
    assert shown == {
        "kind": "oauth",
        "fingerprint": Token(token(1)).fingerprint,
        "expires_at": 1767225600.0,
        "subscription": "max",
        "source": "directory",
        "error": None,
    }
    assert token(1) not in repr(shown)


def test_show_says_what_is_wrong(mount: SecretMount) -> None:
    assert describe(mount.path)["error"] == "the secret file is missing"
    mount.publish("<html></html>\n")
    shown = describe(mount.path)
    assert shown["error"] == "the secret file holds markup, not a token"
    assert shown["fingerprint"] is None
    assert shown["age_seconds"] is not None
