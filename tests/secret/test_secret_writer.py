"""``token put`` and ``token show``."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.client import put_token
from agent_runtime.errors import RESERVED_WORDS, NotWritable, SecretUnreadable, is_reserved
from agent_runtime.files import UNFINISHED
from agent_runtime.model.tokens import Token
from agent_runtime.secret.file import SecretFile
from agent_runtime.secret.generations import GenerationLedger
from agent_runtime.secret.writer import describe, put, put_from_environment, put_if_different
from agent_runtime.setting_slips import masked
from agent_runtime.telemetry.redaction import Redactor
from tests.support.another_user import NOBODY, another_user, public_directory
from tests.support.secret_mount import SecretMount, token

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


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


@pytest.mark.parametrize(
    "data", [b"correct-horse-battery-staple", b'{"token": "0123456789abcdef"}', b"sk-live-0123456789abcdef"]
)
def test_what_does_not_look_like_a_token_is_written_only_by_force(mount: SecretMount, data: bytes) -> None:
    with pytest.raises(SecretUnreadable, match="--force") as refusal:
        put(mount.path, data, strict=True)
    assert (data.decode() in str(refusal.value), mount.path.exists()) == (False, False)
    assert "(sk-ant, then -oat or -api)" in Redactor().redact_text(masked(str(refusal.value)))

    assert "no known prefix" in put(mount.path, data, strict=True, force=True)[0]
    assert mount.path.read_bytes() == data + b"\n"
    assert put_token(mount.path, token(1)) == []


@pytest.mark.parametrize("data", ["two\nlines", "<html>", "${TOKEN}", "short", "sk-ant-ort01-0123456789abcdef"])
def test_force_writes_what_no_supervisor_takes_and_says_so(mount: SecretMount, data: str) -> None:
    with pytest.raises(SecretUnreadable):
        put_token(str(mount.path), data)
    [warning] = put_token(str(mount.path), data, force=True)

    assert (mount.path.read_text(), data in warning) == (f"{data}\n", False)
    with pytest.raises(SecretUnreadable):
        put(mount.path, b" \n", force=True)


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


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o277])
def test_a_new_file_in_a_setgid_directory_is_its_groups_to_read(mount: SecretMount, umask: int) -> None:
    group = 4321 if os.geteuid() == 0 else os.getegid()
    os.chown(mount.directory, -1, group)
    mount.directory.chmod(0o2770)
    before = os.umask(umask)
    try:
        assert put(mount.path, token(1).encode()) == []
    finally:
        os.umask(before)
    assert (mode_of(mount.path), mount.path.stat().st_gid) == (0o640, group)

    mount.path.chmod(0o600)
    assert put(mount.path, token(2).encode()) == []
    assert mode_of(mount.path) == 0o600


def test_mode_and_group_that_are_named_are_given(mount: SecretMount) -> None:
    group = 4321 if os.geteuid() == 0 else os.getegid()
    assert put(mount.path, token(1).encode(), group=group) == []
    assert (mode_of(mount.path), mount.path.stat().st_gid) == (0o640, group)
    assert put(mount.path, token(2).encode(), mode=0o440) == []
    assert (mode_of(mount.path), mount.path.stat().st_gid) == (0o440, group)
    assert put(mount.path, token(3).encode(), mode=0o400, group=group) == [
        "the file's mode does not let its group read it"
    ]


@pytest.fixture
def others() -> Iterator[SecretMount]:
    """Yield a directory that everybody may write to, with a token of root's group 1500."""
    with public_directory() as directory:
        mount = SecretMount(directory)
        mount.publish(f"{token(0)}\n")
        mount.path.chmod(0o640)
        os.chown(mount.path, 0, 1500)
        directory.chmod(0o777)
        yield mount


@as_root
def test_a_file_of_another_user_keeps_its_group(others: SecretMount) -> None:
    with another_user(1500):
        [warning] = put(others.path, token(1).encode())
    info = others.path.stat()
    assert (info.st_uid, info.st_gid, mode_of(others.path)) == (NOBODY, 1500, 0o640)
    assert "owner could not be kept" in warning


@as_root
def test_a_writer_outside_the_group_of_a_setgid_directory_serves_that_group_too(others: SecretMount) -> None:
    os.chown(others.directory, 0, 1500)
    others.directory.chmod(0o2777)
    for first in (True, False):
        if first:
            others.path.unlink()
        with another_user():
            assert put(others.path, token(1).encode()) == []
        assert (others.path.stat().st_gid, mode_of(others.path)) == (1500, 0o640)


@as_root
@pytest.mark.parametrize(
    ("owner", "mode", "asked", "said"),
    [
        (0, 0o640, {}, "would lose its group 1500, .* as root or as a member of that group, or name another"),
        (0, 0o640, {"group": 1501}, "cannot be given to group 1501; write it as root or as a member"),
        (1234, 0o600, {}, "would lose its owner 1234, .* as root or as that user, or name a group"),
        (1234, 0o640, {"mode": 0o600}, "would lose its owner 1234"),
    ],
)
def test_a_token_that_its_reader_could_not_read_is_not_written(
    others: SecretMount, owner: int, mode: int, asked: dict[str, Any], said: str
) -> None:
    others.path.chmod(mode)
    os.chown(others.path, owner, -1)
    with another_user(), pytest.raises(NotWritable, match=said) as refusal:
        put(others.path, token(1).encode(), **asked)
    assert not any(word in str(refusal.value).lower() for word in RESERVED_WORDS)
    assert others.path.read_text() == f"{token(0)}\n"
    assert names_in(others.directory) == ["token"]


@as_root
def test_another_group_may_be_named_for_a_file_whose_own_cannot_be_kept(others: SecretMount) -> None:
    with another_user(1501):
        put(others.path, token(1).encode(), group=1501)
    assert (others.path.stat().st_gid, mode_of(others.path)) == (1501, 0o640)


@as_root
@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o1777, "its directory is sticky: .* the owner of the file"),
        (0o755, "as a user who may write"),
        (0o700, "as a"),
    ],
)
def test_a_directory_that_does_not_let_it_be_written_is_told_with_what_to_do(
    others: SecretMount, mode: int, said: str
) -> None:
    others.directory.chmod(mode)
    with another_user(1500), pytest.raises(NotWritable, match=said):
        put(others.path, token(1).encode())
    assert others.path.read_text() == f"{token(0)}\n"


def test_a_file_that_every_user_may_read_is_warned_of(mount: SecretMount) -> None:
    mount.publish(f"{token(0)}\n")
    mount.path.chmod(0o644)
    assert put(mount.path, token(1).encode()) == ["every user of this machine may read the file"]


def test_an_unknown_prefix_and_a_past_expiry_are_warned_of(mount: SecretMount) -> None:
    warnings = put(mount.path, b'{"token": "made-up-without-prefix", "expires_at": 1}')
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


def test_what_a_killed_writer_left_goes_with_a_later_write(mount: SecretMount) -> None:
    ages = {"0" * 16: 7200, "1" * 16: 60}
    for name, seconds in ages.items():
        left = mount.directory / f".{name}{UNFINISHED}"
        left.write_text(token(0))
        os.utime(left, (time.time() - seconds,) * 2)
    put(mount.path, token(1).encode())

    assert names_in(mount.directory) == [f".{'1' * 16}{UNFINISHED}", "token"]


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


# -- K5: what stands around a token


WRAPPED = [f'"{token(1)}"', f"export CLAUDE_CODE_OAUTH_TOKEN={token(1)}\n", base64.encodebytes(token(1).encode())]


@pytest.mark.parametrize("data", WRAPPED)
def test_k5_what_stands_around_a_token_is_not_written_with_it(mount: SecretMount, data: str | bytes) -> None:
    [warning] = put(mount.path, data if isinstance(data, bytes) else data.encode())
    assert "the token was written" in warning
    assert mount.path.read_text() == f"{token(1)}\n"
    assert put(mount.path, token(1).encode()) == []


@pytest.mark.parametrize("data", ["sk-ant-ort01-" + "a" * 90, "${CLAUDE_TOKEN}", "your-token-here", "too-short"])
def test_k5_what_is_no_token_is_not_written_over_a_good_one(mount: SecretMount, data: str) -> None:
    mount.publish(f"{token(0)}\n")
    with pytest.raises(SecretUnreadable, match="the input holds ") as refusal:
        put(mount.path, data.encode())
    assert data not in str(refusal.value)
    assert mount.path.read_text() == f"{token(0)}\n"


@pytest.mark.parametrize(
    ("before", "says"),
    [
        *((prefix, "holds the prefix Bearer before") for prefix in ("Bearer ", "bearer  ", "BEARER\t", '"Bearer ')),
        *((header, "holds a header, not") for header in ("Authorization: Bearer ", "x-api-key:", "X-Api-Key : ")),
        ("two words ", "holds blanks"),
    ],
)
def test_k5_what_stands_before_a_token_is_named(mount: SecretMount, before: str, says: str) -> None:
    quote = '"' if before.startswith('"') else ""
    with pytest.raises(SecretUnreadable, match=says) as refusal:
        put(mount.path, f"{before}{token(1)}{quote}\n".encode())
    assert not is_reserved(str(refusal.value))


def test_k5_show_warns_of_what_was_odd(mount: SecretMount) -> None:
    mount.publish(json.dumps({"token": f"'{token(1)}'", "expires_at": "soon"}))
    shown = describe(mount.path)
    assert shown["error"] is None
    assert shown["fingerprint"] == Token(token(1)).fingerprint
    assert str(shown["warning"]).startswith("the token was written in quotes")
    assert str(shown["warning"]).endswith("the field expires_at cannot be used, and was left out")


def test_a_token_that_is_there_already_is_not_written_again(mount: SecretMount) -> None:
    for raw in (f"{token(1)}\n", f'"{token(1)}"', json.dumps({"token": token(1), "subscription": "max"})):
        mount.publish(raw)
        inode = mount.path.stat().st_ino
        put_if_different(mount.path, Token(token(1)))
        assert (mount.path.read_text(), mount.path.stat().st_ino) == (raw, inode)
    put_if_different(mount.path, Token(token(2)))
    assert mount.path.read_text() == f"{token(2)}\n"


# -- a token from the environment


def test_the_environments_token_is_written_where_there_is_no_file(
    mount: SecretMount, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    environ = {"ANTHROPIC_API_KEY": "sk-ant-api03-made-up-for-tests", "CLAUDE_CODE_OAUTH_TOKEN": f" '{token(1)}'"}
    put_from_environment(mount.path, environ)
    assert mount.path.read_text() == f"{token(1)}\n"
    assert mode_of(mount.path) == 0o600
    assert names_in(mount.directory) == ["token"]
    assert Token(token(1)).fingerprint in caplog.text
    assert token(1) not in caplog.text


def test_an_api_key_is_written_where_no_other_token_is_set(mount: SecretMount) -> None:
    put_from_environment(
        mount.path, {"CLAUDE_CODE_OAUTH_TOKEN": "", "ANTHROPIC_API_KEY": "sk-ant-api03-made-up-for-tests"}
    )
    assert mount.path.read_text() == "sk-ant-api03-made-up-for-tests\n"


@pytest.mark.parametrize("there", [f"{token(0)}\n", "", "${CLAUDE_TOKEN}"])
def test_a_file_that_is_there_is_never_overridden_by_the_environment(mount: SecretMount, there: str) -> None:
    mount.publish(there)
    put_from_environment(mount.path, {"CLAUDE_CODE_OAUTH_TOKEN": token(1)})
    assert mount.path.read_text() == there
    assert names_in(mount.directory) == ["token"]


def test_a_file_that_comes_at_the_same_moment_wins_over_the_environment(
    mount: SecretMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    reread = os.path.lexists

    def just_before(path: str) -> bool:
        found = reread(path)
        mount.publish(f"{token(0)}\n")
        return found

    monkeypatch.setattr("os.path.lexists", just_before)
    put_from_environment(mount.path, {"CLAUDE_CODE_OAUTH_TOKEN": token(1)})
    assert mount.path.read_text() == f"{token(0)}\n"
    assert names_in(mount.directory) == ["token"]


@pytest.mark.parametrize("held", ["${TOKEN}", "sk-ant-ort01-" + "a" * 90, "two\nlines", "\udcff" * 20])
def test_what_is_no_token_in_the_environment_is_warned_of(
    mount: SecretMount, caplog: pytest.LogCaptureFixture, held: str
) -> None:
    put_from_environment(mount.path, {"CLAUDE_CODE_OAUTH_TOKEN": held, "ANTHROPIC_API_KEY": token(1)})
    assert names_in(mount.directory) == []
    [record] = caplog.records
    assert record.getMessage().startswith("CLAUDE_CODE_OAUTH_TOKEN is not written to ")
    assert held not in record.getMessage()


def test_a_secret_file_that_cannot_be_written_from_the_environment_is_warned_of(
    mount: SecretMount, caplog: pytest.LogCaptureFixture
) -> None:
    put_from_environment(mount.directory / "none" / "token", {"CLAUDE_CODE_OAUTH_TOKEN": token(1)})
    [record] = caplog.records
    assert "make its directory first" in record.getMessage()
    assert token(1) not in record.getMessage()


def test_without_a_token_in_the_environment_nothing_is_written(mount: SecretMount) -> None:
    put_from_environment(mount.path, {"CLAUDE_CODE_OAUTH_TOKEN": "", "PATH": "/bin"})
    assert names_in(mount.directory) == []
