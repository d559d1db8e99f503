"""What the secret file may hold (contract, "The secret file"; fault S14; field case K5)."""

from __future__ import annotations

import base64
import json
import random
import string

import pytest

from agent_runtime.errors import RESERVED_WORDS
from agent_runtime.model.tokens import TokenKind
from agent_runtime.secret.content import LIMIT_BYTES, SecretContent, SecretFault, Unusable, parse
from tests.support.secret_mount import token

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
    unknown = parsed(b"something-else-by-far")
    assert unknown.token.kind is TokenKind.OAUTH
    assert unknown.warnings == ("the token has no known prefix: it will be taken as an OAuth token",)
    assert parsed(OAUTH.encode()).warnings == parsed(API_KEY.encode()).warnings == ()


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
    assert refused(raw) == Unusable("is empty", SecretFault.EMPTY)


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
    "json with two tokens": json.dumps({"token": OAUTH, "x": 0}).replace('"x": 0', f'"token": "{API_KEY}"').encode(),
    "json with a comma too many": json.dumps({"token": OAUTH}).replace("}", ",}").encode(),
    "json of Python": str({"token": OAUTH}).encode(),
    "json with a list of tokens": json.dumps({"token": [OAUTH]}).encode(),
    "a json array": json.dumps([OAUTH]).encode(),
    "a json string with json in it": json.dumps(json.dumps({"token": OAUTH})).encode(),
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
def test_a_bad_content_is_refused_with_a_reason_that_repeats_nothing_of_it(raw: bytes) -> None:
    found = refused(raw)
    assert found.fault is not SecretFault.EMPTY
    assert "sk-ant" not in found.reason
    assert "1234567" not in found.reason
    assert not any(word in found.reason.lower() for word in RESERVED_WORDS)


def test_the_longest_content_is_still_taken() -> None:
    assert len(parsed(b"a" * LIMIT_BYTES).token.secret) == LIMIT_BYTES


def test_nothing_that_was_parsed_shows_its_token() -> None:
    assert OAUTH not in repr(parse(OAUTH.encode()))


# -- K5: secret files of a near-miss form


def in_base64(text: str, *, line: int = 0, newline: str = "\n") -> str:
    encoded = base64.b64encode(text.encode()).decode()
    return newline.join(encoded[at : at + line] for at in range(0, len(encoded), line)) if line else encoded


LONG = "sk-ant-oat01-" + "Ab-9_zY" * 13 + "AA"
"""As long as a real one, with the characters that base64url has beside letters and digits."""

UNWRAPPED = {
    "K5 a line of an env file": f"CLAUDE_CODE_OAUTH_TOKEN={LONG}\n",
    "exported": f"export CLAUDE_CODE_OAUTH_TOKEN={LONG}\n",
    "exported as a shell line": f'export CLAUDE_CODE_OAUTH_TOKEN="{LONG}";\r\n',
    "another variable": f"ANTHROPIC_AUTH_TOKEN={LONG}",
    "an assignment of TOML": f'CLAUDE_CODE_OAUTH_TOKEN = "{LONG}"\n',
    "K5 in quotes": f'"{LONG}"\n',
    "in single quotes": f"'{LONG}'",
    "blanks inside the quotes": f'" {LONG}\n"\n',
    "an assignment in quotes": f"'CLAUDE_CODE_OAUTH_TOKEN={LONG}'\n",
    "K5 base64": in_base64(LONG),
    "base64 of a line": in_base64(f"{LONG}\n") + "\n",
    "base64 in lines of 76": in_base64(LONG, line=76) + "\n",
    "base64 in lines of 64 with CRLF": in_base64(LONG, line=64, newline="\r\n"),
    "base64 indented": in_base64(LONG, line=20, newline="\n    "),
    "base64 without padding": in_base64(f"{LONG}\n").rstrip("="),
    "base64url": base64.urlsafe_b64encode(LONG.encode()).decode(),
    "base64 in quotes": f'"{in_base64(LONG)}"',
    "base64 behind a name": f"CLAUDE_CODE_OAUTH_TOKEN={in_base64(LONG)}",
    "base64 of an assignment": in_base64(f"export CLAUDE_CODE_OAUTH_TOKEN={LONG}\n"),
    "base64 of quotes": in_base64(f'"{LONG}"'),
    "base64 with a byte order mark": in_base64(f"\ufeff{LONG}"),
    "in JSON": json.dumps({"token": f'CLAUDE_CODE_OAUTH_TOKEN="{LONG}"'}),
    "base64 in the CLI's JSON": json.dumps({"claudeAiOauth": {"accessToken": in_base64(LONG, line=76)}}),
}


@pytest.mark.parametrize("raw", UNWRAPPED.values(), ids=UNWRAPPED.keys())
def test_k5_what_stands_around_a_token_is_taken_off_and_warned_of(raw: str) -> None:
    content = parsed(raw.encode())

    assert content.token.secret == LONG
    assert content.warnings
    assert LONG not in "".join(content.warnings)


def test_k5_an_api_key_is_one_whatever_it_stood_in() -> None:
    for raw in (f"ANTHROPIC_API_KEY={API_KEY}", f"CLAUDE_API_KEY='{API_KEY}'", in_base64(API_KEY)):
        assert parsed(raw.encode()).token.kind is TokenKind.API_KEY


REFUSED = {
    # more than one wrapping of a kind, or none that is certain
    "two names": (f"CLAUDE_CODE_OAUTH_TOKEN=CLAUDE_CODE_OAUTH_TOKEN={LONG}", "an assignment"),
    "two quotes": (f"'\"{LONG}\"'", "characters"),
    "base64 of base64": (in_base64(in_base64(LONG)), "base64 inside base64"),
    "base64 of base64 of an assignment": (in_base64(in_base64(f"ANTHROPIC_API_KEY={LONG}")), "base64 inside base64"),
    "half of the quotes": (f'"{LONG}', "characters"),
    "the other half": (f"{LONG}'", "characters"),
    "quotes of a text processor": (f"\u201c{LONG}\u201d", "characters"),
    "an unknown variable": (f"TOKEN={LONG}", "an assignment"),
    "a comment behind it": (f"CLAUDE_CODE_OAUTH_TOKEN={LONG} # mine", "blanks"),
    "an env file": (f"# mine\nCLAUDE_CODE_OAUTH_TOKEN={LONG}\n", "several lines"),
    "a header": (f"Bearer {LONG}", "the prefix Bearer"),
    "YAML": (f"token: {LONG}", "a reference"),
    "an empty variable": ("CLAUDE_CODE_OAUTH_TOKEN=", "nothing in them"),
    "an empty quoted variable": ("export ANTHROPIC_API_KEY=''", "nothing in them"),
    "empty quotes": ('""', "nothing in them"),
    "base64 cut off": (in_base64(LONG)[:61], "cut off"),
    "base64 of the prefix alone": (in_base64("sk-ant-oat01-"), "the beginning of a token"),
    "base64 of UTF-16": (base64.b64encode(LONG.encode("utf-16")).decode(), "NUL"),
    "base64 of two lines": (in_base64(f"{LONG}\n{OAUTH}"), "several lines"),
    "two lines of base64": (f"{in_base64(LONG[:90])}\n{in_base64(LONG[:90])}", "more than one token"),
    "two lines of padded base64": (f"{in_base64(LONG[:91])}\n{in_base64(LONG[:91])}", "several lines"),
    "base64 of JSON": (in_base64(json.dumps({"token": LONG})), "JSON inside"),
    "JSON in quotes": ("'" + json.dumps({"token": LONG}) + "'", "JSON inside"),
    "two tokens in one line": (LONG + OAUTH, "more than one token"),
    "something before it": (f"key-{LONG}", "something around it"),
    "the end of a sentence": (f"{LONG}.", "something around it"),
    # other keys
    "K5 a refresh token": ("sk-ant-ort01-" + "a" * 90, "a refresh token"),
    "a refresh token behind its name": ("CLAUDE_CODE_OAUTH_REFRESH_TOKEN=sk-ant-ort01-" + "a" * 90, "a refresh token"),
    "base64 of a refresh token": (in_base64("sk-ant-ort01-" + "a" * 90), "a refresh token"),
    "an admin key": ("sk-ant-admin01-" + "a" * 90, "an admin key"),
    "a cookie": ("sk-ant-sid01-" + "a" * 90, "the cookie"),
    "a key of tomorrow": ("sk-ant-new01-" + "a" * 90, "a key of a kind"),
    "in capitals": (LONG.upper(), "a key of a kind"),
    # too short
    "the prefix": ("sk-ant-oat01-", "the beginning of a token"),
    "three characters": ("sk-ant-api03-abc", "the beginning of a token"),
    "fifteen": ("0123456789abcde", "fewer than 16"),
    # templates and references
    "K5 a shell variable": ("${CLAUDE_TOKEN}", "a template"),
    "a shell variable without braces": ("$CLAUDE_CODE_OAUTH_TOKEN", "a template"),
    "a variable behind its name": ('CLAUDE_CODE_OAUTH_TOKEN="${TOKEN:-}"', "a template"),
    "a part of a token": ("sk-ant-oat01-${REST_OF_THE_TOKEN}", "a template"),
    "a command": ("$(cat /run/secrets/token)", "a template"),
    "Helm": ("{{ .Values.claude.token }}", "a template"),
    "Jinja": ("{{claude_token}}", "a template"),
    "Windows": ("%CLAUDE_CODE_OAUTH_TOKEN%", "a template"),
    "ERB": ("<%= ENV['TOKEN'] %>", "markup"),
    "angle brackets": ("<your-token-here>", "markup"),
    "Vault": ("vault:secret/data/claude#token", "a reference"),
    "1Password": ("op://private/claude/credential", "a reference"),
    "Secret Manager": ("projects/agents/secrets/claude/versions/latest", "a reference"),
    "Secrets Manager": ("arn:aws:secretsmanager:eu-west-1:123456789012:secret:claude", "a reference"),
    "Key Vault": ("@Microsoft.KeyVault(SecretUri=https://x.vault.azure.net/secrets/y)", "a reference"),
    "an address": ("https://vault.example/v1/claude", "a reference"),
    "a path": ("/run/secrets/claude/token", "the name of a file"),
    "a path at home": ("~/.config/claude/token", "the name of a file"),
    "a path from here": ("./secrets/claude.token", "the name of a file"),
    "a path without its slash": ("run/secrets/claude/token", "a reference"),
    "a name to be replaced": ("__CLAUDE_CODE_OAUTH_TOKEN__", "the name of a variable"),
    "the name of the variable": ("CLAUDE_CODE_OAUTH_TOKEN", "the name of a variable"),
    "sops": ("ENC[AES256_GCM,data:p673w==,iv:YY=,tag:UQ==,type:str]", "an assignment"),
    "commas": ("first-token-00000001,second-token-0000001", "commas"),
    "a command line": ("claude setup-token", "blanks"),
    # placeholders
    "changeme": ("changeme", "a placeholder"),
    "changeme again": ("change-me-before-you-deploy", "a placeholder"),
    "your token": ("your-token-here", "a placeholder"),
    "your token in capitals": ("<YOUR_OAUTH_TOKEN_HERE>", "markup"),
    "your token in one word": ("InsertYourTokenHere2026", "a placeholder"),
    "behind the prefix": ("sk-ant-oat01-your-token-here", "a placeholder"),
    "behind the prefix in capitals": ("sk-ant-oat01-REPLACE_ME", "a placeholder"),
    "behind a name": ("ANTHROPIC_API_KEY=sk-ant-api03-xxxxxxxxxxxxxxxxxxxx", "a placeholder"),
    "x": ("xxxxxxxxxxxxxxxxxxxxxxxx", "a placeholder"),
    "stars": ("****************************", "a placeholder"),
    "dots": ("sk-ant-oat01-...............", "shortened for showing"),
    "masked": ("sk-ant-oat01-********************", "characters"),
    "shortened": ("sk-ant-oat01-AbCd...wXyZ", "shortened for showing"),
    "shortened with a character": ("sk-ant-oat01-AbCd\u2026wXyZ", "characters"),
    "to do": ("TODO-TODO-TODO-TODO", "a placeholder"),
    "an example": ("example_token_0001", "a placeholder"),
    "a dummy": ("dummy-oauth-token-1234567890", "a placeholder"),
    "redacted": ("[REDACTED]", "JSON inside"),
    "redacted by a log": ("REDACTED-BY-THE-PIPELINE", "a placeholder"),
    "undefined": ("undefined", "a placeholder"),
    "null": ("null", "a placeholder"),
}


@pytest.mark.parametrize(("raw", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_k5_what_is_no_token_is_refused_with_what_it_is(raw: str, says: str) -> None:
    found = refused(raw.encode())

    assert found.reason.startswith("holds ")
    assert says in found.reason
    assert found.fault is SecretFault.WRONG_CONTENT
    assert raw not in found.reason
    assert "sk-ant" not in found.reason
    assert not any(word in found.reason.lower() for word in RESERVED_WORDS)
    in_json = refused(json.dumps({"token": raw}).encode())
    assert in_json.reason == f"is a JSON object whose token {found.reason}"


@pytest.mark.parametrize(
    "raw",
    [
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZ2VudCJ9.dGhlIHNpZ25hdHVyZQ",
        "gw_live_0123456789abcdef",
        "dXNlcjpwYXNzd29yZC1vZi1hLWdhdGV3YXk=",
        "sk-or-v1-0123456789abcdef0123456789abcdef",
        "a-token.of~a+gateway/0==",
        "sixteen-letters-",
        "3f9e2c1a-77b0-4d11-9a6c-0f2d5b7c8e90",
    ],
)
def test_k5_a_token_of_an_unknown_kind_is_accepted_with_a_warning(raw: str) -> None:
    content = parsed(f"{raw}\n".encode())

    assert (content.token.secret, content.token.kind) == (raw, TokenKind.OAUTH)
    assert len(content.warnings) == 1


def test_k5_base64_is_never_complete_by_itself() -> None:
    """The first line of a longer one looks like a whole one with its newline."""
    whole = in_base64(LONG, line=76) + "\n"
    assert not parsed(whole.encode()).complete
    assert not parsed((whole.splitlines()[0] + "\n").encode()).complete
    assert parsed(f'"{LONG}"\n'.encode()).complete


def test_k5_no_part_of_a_wrapped_token_is_taken_for_a_complete_one() -> None:
    for whole in UNWRAPPED.values():
        for length in range(len(whole)):
            found = parse(whole[:length].encode())
            if isinstance(found, SecretContent):
                assert found.token.secret == LONG or not found.complete
                assert found.token.secret in LONG, "nothing but what is written may come of it"


TOKENS_TRIED = 1000


def test_k5_no_real_token_is_refused_by_chance() -> None:
    """Seeded: tokens as they are handed out, of both kinds, bare and wrapped."""
    chance = random.Random(5)
    for _ in range(TOKENS_TRIED):
        body = "".join(chance.choices(string.ascii_letters + string.digits + "-_", k=93)) + "AA"
        secret = chance.choice(("sk-ant-oat01-", "sk-ant-api03-")) + body
        for raw in (secret, f"export CLAUDE_CODE_OAUTH_TOKEN='{secret}'\n", in_base64(secret, line=76)):
            assert parsed(raw.encode()).token.secret == secret


# -- K5: the fields of JSON


@pytest.mark.parametrize(
    "document",
    [
        {"accessToken": OAUTH},
        {"access_token": OAUTH, "token_type": "Bearer"},
        {"claudeAiOauth": {"access_token": OAUTH}},
        {"token": None, "accessToken": OAUTH},
        {"token": "", "claudeAiOauth": {"accessToken": OAUTH}},
        {"token": OAUTH, "claudeAiOauth": None},
        {"token": OAUTH, "claudeAiOauth": "gone"},
    ],
)
def test_k5_the_token_is_found_under_the_names_that_others_give_it(document: dict[str, object]) -> None:
    content = parsed(json.dumps(document).encode())

    assert content.token.secret == OAUTH
    assert content.warnings == ()


SECONDS = 1767225600.0
TIMES = {
    "text": "2026-01-01T00:00:00Z",
    "text in small letters": "2026-01-01t00:00:00z",
    "text with nanoseconds": "2026-01-01T00:00:00.000000000+00:00",
    "text with a blank": "2026-01-01 01:00:00+01:00",
    "seconds": 1767225600,
    "seconds with a fraction": 1767225600.0,
    "seconds as text": "1767225600",
    "milliseconds": 1767225600000,
    "milliseconds as text": "1767225600000",
}


@pytest.mark.parametrize("value", TIMES.values(), ids=TIMES.keys())
@pytest.mark.parametrize("name", ["expires_at", "expiresAt"])
def test_k5_an_expiry_is_read_in_every_form_and_place(name: str, value: object) -> None:
    for document in ({"token": OAUTH, name: value}, {"claudeAiOauth": {"accessToken": OAUTH, name: value}}):
        content = parsed(json.dumps(document).encode())

        assert (content.expires_at, content.warnings) == (SECONDS, ())


ODD_TIMES = {
    "in words": '"tomorrow"',
    "without a zone": '"2026-01-01T00:00:00"',
    "a day": '"2026-01-01"',
    "beyond the calendar": '"10000-01-01T00:00:00Z"',
    "the end of the calendar": '"9999-12-31T23:59:59Z"',
    "a day that is none": '"2026-02-30T00:00:00Z"',
    "not a number": "NaN",
    "not a number as text": '"nan"',
    "endless": "Infinity",
    "too large": "1e300",
    "more digits than a number has": "9" * 5000,
    "microseconds": "1767225600000000",
    "the year 10000 in seconds": "253402300800",
    "negative": "-1",
    "negative as text": '"-1767225600"',
    "zero": "0",
    "true": "true",
    "a list": "[1767225600]",
    "an object": '{"seconds": 1767225600}',
    "a token": f'"{OAUTH}"',
    "long": '"' + "2" * 10_000 + '"',
}


@pytest.mark.parametrize("value", ODD_TIMES.values(), ids=ODD_TIMES.keys())
@pytest.mark.parametrize("name", ["expires_at", "expiresAt"])
def test_k5_an_odd_expiry_is_left_out_with_a_warning(name: str, value: str) -> None:
    for document in (f'{{"token": "{OAUTH}", "{name}": {value}}}', f'{{"{name}": {value}, "accessToken": "{OAUTH}"}}'):
        content = parsed(document.encode())

        assert (content.token.secret, content.expires_at) == (OAUTH, None)
        assert content.warnings == (f"the field {name} cannot be used, and was left out",)


ODD_NAMES = {
    "a newline": "a\nb",
    "long": "a" * 201,
    "a number": 5,
    "a list": ["max"],
    "true": True,
    "the token": f"of {OAUTH}",
    "another token": "sk-ant-ort01-of-somebody",
}


@pytest.mark.parametrize("value", ODD_NAMES.values(), ids=ODD_NAMES.keys())
def test_k5_an_odd_subscription_is_left_out_with_a_warning(value: object) -> None:
    for document in (
        {"token": OAUTH, "subscription": value},
        {"claudeAiOauth": {"accessToken": OAUTH, "subscriptionType": value}},
    ):
        content = parsed(json.dumps(document).encode())

        assert (content.token.secret, content.subscription) == (OAUTH, None)
        assert len(content.warnings) == 1
        assert OAUTH not in content.warnings[0]


def test_k5_an_odd_field_takes_nothing_from_the_others() -> None:
    odd = {"token": OAUTH, "expires_at": [], "subscription": "max", "scopes": 5, "": None}
    assert parsed(json.dumps(odd).encode()).subscription == "max"
    odd = {"token": OAUTH, "expires_at": SECONDS, "subscription": {}}
    assert parsed(json.dumps(odd).encode()).expires_at == SECONDS


def test_k5_a_token_that_is_there_twice_and_the_same_is_one() -> None:
    assert parsed(f'{{"token": "{OAUTH}", "token": "{OAUTH}"}}'.encode()).token.secret == OAUTH
