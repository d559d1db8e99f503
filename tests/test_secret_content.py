"""What the secret file may hold (contract, "The secret file"; fault S14)."""

from __future__ import annotations

import json

import pytest

from agent_runtime.errors import RESERVED_WORDS
from agent_runtime.secret_content import LIMIT_BYTES, SecretContent, Unusable, parse
from agent_runtime.tokens import TokenKind
from tests.secret_mount import token

OAUTH = token(1)
API_KEY = "sk-ant-api03-made-up-for-tests"


def parsed(raw: bytes) -> SecretContent:
    found = parse(raw)
    assert isinstance(found, SecretContent), found
    return found


def refused(raw: bytes) -> Unusable:
    found = parse(raw)
    assert isinstance(found, Unusable), found
    return found


@pytest.mark.parametrize(
    "raw",
    [
        f"{OAUTH}",
        f"{OAUTH}\n",
        f"{OAUTH}\r\n",
        f"\ufeff{OAUTH}\r\n",
        f"  \t{OAUTH} \n\n",
        json.dumps({"token": OAUTH}),
        json.dumps(
            {"token": f"{OAUTH}\n", "expires_at": None, "subscription": None, "comment": [1, {"a": 2}]}, indent=2
        ),
        "\ufeff" + json.dumps({"claudeAiOauth": {"accessToken": OAUTH, "refreshToken": None, "scopes": []}}) + "\r\n",
    ],
)
def test_a_token_is_found_in_every_accepted_form(raw: str) -> None:
    assert parsed(raw.encode()).token.secret == OAUTH


@pytest.mark.parametrize(
    ("raw", "complete"),
    [
        (OAUTH.encode(), False),
        (OAUTH.encode() + b"\r", False),
        (OAUTH.encode() + b" ", False),
        (OAUTH.encode() + b"\n", True),
        (OAUTH.encode() + b"\r\n", True),
        (json.dumps({"token": OAUTH}).encode(), True),
    ],
)
def test_only_json_and_a_line_with_its_newline_are_complete_by_themselves(raw: bytes, complete: bool) -> None:
    assert parsed(raw).complete is complete


def test_no_prefix_of_a_json_document_or_of_a_line_counts_as_complete() -> None:
    for raw in (json.dumps({"token": OAUTH, "subscription": "max"}).encode(), OAUTH.encode() + b"\n"):
        for length in range(len(raw)):
            found = parse(raw[:length])
            assert isinstance(found, Unusable) or not found.complete


def test_the_kind_is_told_by_the_prefix() -> None:
    assert parsed(API_KEY.encode()).token.kind is TokenKind.API_KEY
    assert parsed(OAUTH.encode()).token.kind is TokenKind.OAUTH
    unknown = parsed(b"something-else").token
    assert unknown.kind is TokenKind.OAUTH
    assert not unknown.has_known_prefix


@pytest.mark.parametrize(
    ("expires_at", "seconds"),
    [
        ("2026-01-01T00:00:00Z", 1767225600.0),
        ("2026-01-01T01:00:00.500+01:00", 1767225600.5),
        (1767225600, 1767225600.0),
        (1767225600.25, 1767225600.25),
        (1767225600000, 1767225600.0),
        (None, None),
    ],
)
def test_an_expiry_is_rfc_3339_or_epoch(expires_at: str | float | None, seconds: float | None) -> None:
    assert parsed(json.dumps({"token": OAUTH, "expires_at": expires_at}).encode()).expires_at == seconds


def test_the_clis_own_form_counts_milliseconds_and_names_the_subscription() -> None:
    cli = {"accessToken": OAUTH, "expiresAt": 1767225600000, "subscriptionType": "max"}
    content = parsed(json.dumps({"claudeAiOauth": cli}).encode())
    assert (content.expires_at, content.subscription) == (1767225600.0, "max")
    long_ago = {"claudeAiOauth": {"accessToken": OAUTH, "expiresAt": 1000}}
    assert parsed(json.dumps(long_ago).encode()).expires_at == 1.0


def test_the_subscription_is_kept() -> None:
    assert parsed(json.dumps({"token": OAUTH, "subscription": "team b"}).encode()).subscription == "team b"


@pytest.mark.parametrize("raw", [b"", b"\n", b" \t\r\n ", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_a_file_without_a_word_counts_as_absent(raw: bytes) -> None:
    assert refused(raw) == Unusable("is empty", absent=True)


BAD = {
    "nul": OAUTH.encode() + b"\0\n",
    "utf-16": OAUTH.encode("utf-16"),
    "control characters": b"sk-ant-oat01-\x1b[0m\n",
    "delete": b"sk-ant-oat01-\x7f\n",
    "tab inside": b"sk-ant-oat01\tmade-up\n",
    "two lines": f"{OAUTH}\n{OAUTH}\n".encode(),
    "carriage return inside": f"{OAUTH}\r{OAUTH}\n".encode(),
    "html": b"<html><body>502 Bad Gateway</body></html>\n",
    "markup without blanks": b"<html></html>",
    "words": b"no such secret\n",
    "not ascii": "sk-ant-oat01-\u00fc\n".encode(),
    "not utf-8": b"sk-ant-oat01-\xff\xfe\n",
    "too long": b"a" * (LIMIT_BYTES + 1),
    "ten mebibytes": b"a" * (10 << 20),
    "torn json": b'{"token": "sk-ant-oat01-hal',
    "json and more": b'{"token": "sk-ant-oat01-a"}{"token": "sk-ant-oat01-b"}',
    "json without a token": b"{}",
    "json with an empty token": b'{"token": " "}',
    "json with a null token": b'{"token": null}',
    "json with a number": b'{"token": 12345678901}',
    "json with two lines": b'{"token": "sk-ant-oat01-a\\nsk-ant-oat01-b"}',
    "json with an escaped nul": b'{"token": "sk-ant-oat01-\\u0000"}',
    "json with a lone surrogate": b'{"token": "sk-ant-oat01-\\ud800"}',
    "json with a blank": b'{"token": "sk-ant-oat01 made"}',
    "json that is deep": b'{"other":' + b"[" * 60_000,
    "json that is not utf-8": b'{"token": "sk-ant-oat01-\xff"}',
    "the cli's form without a token": b'{"claudeAiOauth": {"expiresAt": 1767225600000}}',
    "the cli's form with a number": b'{"claudeAiOauth": {"accessToken": 12345678901}}',
    "expiry in words": b'{"token": "sk-ant-oat01-a", "expires_at": "sk-ant-tomorrow"}',
    "expiry without a zone": b'{"token": "sk-ant-oat01-a", "expires_at": "2026-01-01T00:00:00"}',
    "expiry before the epoch": b'{"token": "sk-ant-oat01-a", "expires_at": -1}',
    "expiry beyond all times": b'{"token": "sk-ant-oat01-a", "expires_at": 1e300}',
    "expiry true": b'{"token": "sk-ant-oat01-a", "expires_at": true}',
    "subscription with a newline": b'{"token": "sk-ant-oat01-a", "subscription": "a\\nb"}',
    "subscription with the token": json.dumps({"token": OAUTH, "subscription": f"of {OAUTH}"}).encode(),
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
def test_a_bad_content_is_refused_with_a_reason_that_repeats_nothing_of_it(raw: bytes) -> None:
    found = refused(raw)
    assert not found.absent
    assert "sk-ant" not in found.reason
    assert "1234567" not in found.reason
    assert not any(word in found.reason.lower() for word in RESERVED_WORDS)


def test_the_longest_content_is_still_taken() -> None:
    assert len(parsed(b"a" * LIMIT_BYTES).token.secret) == LIMIT_BYTES


def test_nothing_that_was_parsed_shows_its_token() -> None:
    assert OAUTH not in repr(parse(OAUTH.encode()))
