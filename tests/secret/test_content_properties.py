"""Properties of secret contents: no bytes raise an exception, and a token in any accepted form is found."""

from __future__ import annotations

import base64
import json
import string
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent_runtime.errors import RESERVED_WORDS, SecretUnreadable
from agent_runtime.secret.content import LIMIT_BYTES, SecretContent, Unusable, parse, secrets_in
from agent_runtime.secret.reader import read_secret
from agent_runtime.secret.writer import put

if TYPE_CHECKING:
    from pathlib import Path

BODIES = st.text(string.ascii_letters + string.digits + "-_", min_size=60, max_size=100)
TOKENS = st.builds(
    lambda prefix, body: f"{prefix}{body}AA", st.sampled_from(["sk-ant-oat01-", "sk-ant-api03-"]), BODIES
)
BLANKS = st.text(" \t\r\n", max_size=4)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), TOKENS)
NAMES = st.sampled_from(
    ["token", "accessToken", "access_token", "expires_at", "expiresAt", "subscription", "claudeAiOauth", "x"]
)
DOCUMENTS = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5))
SEEDS = [
    b'{"token": "sk-ant-oat01-' + b"a1" * 30 + b'", "expires_at": 1}',
    b"export CLAUDE_CODE_OAUTH_TOKEN='sk-ant-oat01-" + b"b2" * 30 + b"'\n",
    base64.encodebytes(b"sk-ant-oat01-" + b"c3" * 40),
    b"\xef\xbb\xbfsk-ant-api03-" + b"d4" * 30 + b"\r\n",
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a good content with some bytes changed, taken out or put in."""
    raw = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(raw)


CONTENTS = st.one_of(
    st.binary(max_size=200), damaged(), DOCUMENTS.map(json.dumps).map(str.encode), st.text(max_size=60).map(str.encode)
)


@given(CONTENTS)
@example(b'{"token":' * 7_000)
@example(b"\xef\xbb\xbf")
@example(b'{"token": "sk-ant-oat01-0123456789abcdef", "expires_at": 1e999}')
def test_any_bytes_are_a_token_or_a_reason_that_repeats_none_of_them(raw: bytes) -> None:
    found = parse(raw)

    secrets_in(raw, found)
    if isinstance(found, SecretContent):
        assert found.token.secret.isascii()
        assert 16 <= len(found.token.secret) <= LIMIT_BYTES
        assert not set(found.token.secret) - set(string.ascii_letters + string.digits + "._~+/=-")
        told = " ".join(found.warnings)
    else:
        told = found.sentence
        assert not [word for word in RESERVED_WORDS if word in told.lower()]
    assert "sk-ant-oat01-" not in told
    assert "sk-ant-api03-" not in told


@given(TOKENS, BLANKS, BLANKS, st.booleans(), st.data())
def test_a_token_is_found_in_every_form_that_is_accepted(
    token: str, before: str, after: str, has_mark: bool, data: st.DataObject
) -> None:
    form = data.draw(
        st.sampled_from(
            [
                token,
                f"'{token}'",
                f'export CLAUDE_CODE_OAUTH_TOKEN="{token}";',
                f"ANTHROPIC_API_KEY={token}",
                base64.b64encode(token.encode()).decode(),
                base64.encodebytes(token.encode()).decode(),
                json.dumps({"token": token, "expires_at": data.draw(LEAVES), "subscription": data.draw(LEAVES)}),
                json.dumps({"x": data.draw(DOCUMENTS), "accessToken": token}, indent=data.draw(st.integers(0, 3))),
                json.dumps({"claudeAiOauth": {"accessToken": token, "expiresAt": data.draw(LEAVES)}}),
            ]
        )
    )
    raw = ("\ufeff" * has_mark + before + form + after).encode()

    found = parse(raw)

    assert isinstance(found, SecretContent), found
    assert found.token.secret == token
    assert found.expires_at is None or 0 < found.expires_at < 1e11
    assert found.subscription is None or token not in found.subscription


def near_the_limit(count: int) -> bytes:
    """Fill a document up to about the longest content; of bytes that are no text each becomes three."""
    short = b'{"token": "sk-ant-oat01-' + b"a1" * 30 + b'", "x": ""}'
    filling = b"y" * (LIMIT_BYTES - len(short) - count) if count < 3 else b"\xff" * 30_000
    return short[:-2] + filling + short[-2:]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(CONTENTS, st.sampled_from(SEEDS), st.integers(-2, 3)))
@example(0)
@example(3)
def test_what_a_writer_writes_a_reader_reads_and_what_no_reader_takes_is_not_written(
    tmp_path: Path, given_content: bytes | int
) -> None:
    raw = near_the_limit(given_content) if isinstance(given_content, int) else given_content
    path = tmp_path / "token"
    path.write_bytes(b"before")
    found = parse(raw)
    try:
        put(path, raw)
    except SecretUnreadable:
        assert path.read_bytes() == b"before"
        assert isinstance(found, Unusable) or isinstance(given_content, int)
        return

    read = read_secret(path).found
    assert isinstance(found, SecretContent)
    assert isinstance(read, SecretContent)
    assert (read.token, read.expires_at, read.subscription) == (found.token, found.expires_at, found.subscription)
    assert read.complete
