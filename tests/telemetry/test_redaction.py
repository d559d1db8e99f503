"""No token leaves this process in a line, however it is written there, and a healthy line costs next to nothing."""

from __future__ import annotations

import json
import threading
import time

import pytest

from agent_runtime.model.tokens import Token
from agent_runtime.telemetry import redaction
from agent_runtime.telemetry.redaction import SHORTEST, Redactor

OAUTH = Token("sk-ant-oat01-AbCdEfGh_IjKlMnOpQrStUvWx-Yz0123456789AA")
API_KEY = Token("sk-ant-api03-ZyXwVuTsRqPoNmLkJiHgFeDcBa-0123456789BB")
WITH_SLASH = Token("key/with/slashes+and=signs")
ACCESS_KEY = Token("an access key, with blanks")
HOSTILE_BYTES = 16 << 20


@pytest.fixture
def redactor() -> Redactor:
    return Redactor([OAUTH, API_KEY, WITH_SLASH, ACCESS_KEY])


def mark(token: Token) -> str:
    return f"[token:{token.fingerprint}]"


@pytest.mark.parametrize("token", [OAUTH, API_KEY, WITH_SLASH, ACCESS_KEY], ids=repr)
def test_a_token_is_replaced_by_its_fingerprint(redactor: Redactor, token: Token) -> None:
    line = f'{{"a":"before {token.secret} after","b":"{token.secret}"}}'.encode()

    assert redactor.redact(line).decode() == f'{{"a":"before {mark(token)} after","b":"{mark(token)}"}}'


def test_an_escaped_slash_does_not_hide_a_token(redactor: Redactor) -> None:
    line = b'{"t":"' + WITH_SLASH.secret.replace("/", "\\/").encode() + b'"}'

    assert json.loads(redactor.redact(line)) == {"t": mark(WITH_SLASH)}


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_json_in_json_does_not_hide_a_token(redactor: Redactor, levels: int) -> None:
    text = json.dumps(f'"{OAUTH.secret}" \\ é')
    for _ in range(levels):
        text = json.dumps(text)

    clean = redactor.redact(f'{{"t":{text}}}'.encode())

    assert OAUTH.secret.encode() not in clean
    assert clean.decode() == f'{{"t":{text}}}'.replace(OAUTH.secret, mark(OAUTH))


def test_what_stands_around_a_token_stays_as_it_was(redactor: Redactor) -> None:
    for before, after in (("\\n", "\\n"), ('\\"', '\\"'), ("a\\\\b ", "\\\\c"), ("\\u00e9", "\\u00e9"), ("é", "\\t")):
        line = f'{{"t":"{before}{OAUTH.secret}{after}"}}'.encode()
        assert redactor.redact(line).decode() == f'{{"t":"{before}{mark(OAUTH)}{after}"}}', before


@pytest.mark.parametrize("secret", ["nice-token-value", "u0073abcdefgh", "0073abcdef", "/slash-first", 'quo"ted-token'])
def test_a_line_stays_json_even_if_a_token_looks_like_part_of_an_escape(secret: str) -> None:
    redactor = Redactor([Token(secret)])
    hostile = [
        "\\" + secret,
        "\\u" + secret,
        "\\u00" + secret,
        "\\\\" + secret,
        secret + "\\n",
        secret[:-1] + "\\u0041",
    ]
    checked = 0
    for text in [*hostile, json.dumps(secret)[1:-1], json.dumps(json.dumps(secret))[1:-1]]:
        line = f'{{"t":"{text}"}}'
        if is_json(line):
            checked += 1
            assert is_json(redactor.redact(line.encode()).decode()), text
    assert checked >= 2


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("secret", ['to\\ken-"quoted"', "tökén-with-umlauts", "тайное-слово"])
def test_unusual_tokens_are_found_as_they_are_and_as_json_writes_them(secret: str) -> None:
    redactor, token = Redactor([Token(secret)]), Token(secret)

    for text in (json.dumps(secret), json.dumps(secret, ensure_ascii=False)):
        assert json.loads(redactor.redact(f'{{"t":{text}}}'.encode())) == {"t": mark(token)}, text
    assert secret not in redactor.redact_text(f"plain {secret} text")


def test_of_two_tokens_the_longer_one_is_replaced_where_one_is_part_of_the_other() -> None:
    short, long = Token("sk-ant-oat01-short"), Token("sk-ant-oat01-short-and-longer")
    inner = Token("and-longer")
    redactor = Redactor([short, long, inner])

    assert redactor.redact_text(f"{long.secret} {short.secret}") == f"{mark(long)} {mark(short)}"


def test_overlapping_tokens_leave_nothing_behind() -> None:
    redactor = Redactor([Token("abcdefgh-1234"), Token("1234-ijklmnop")])

    assert "ijkl" not in redactor.redact_text("abcdefgh-1234-ijklmnop")

    outer, inner = Token("outer-and-inner-token-and-outer"), Token("inner-token")
    assert Redactor([outer, inner]).redact_text(outer.secret) == mark(outer)


def test_a_value_that_is_too_short_to_be_told_from_text_is_left_alone() -> None:
    assert Redactor([Token("x" * (SHORTEST - 1))]).redact(b"x" * 100) == b"x" * 100
    assert b"x" not in Redactor([Token("x" * SHORTEST)]).redact(b"x" * SHORTEST)


def test_a_healthy_line_comes_back_as_the_same_object(redactor: Redactor) -> None:
    for text in ('{"a":"b"}', '{"a":"sk-ant-oat01-another"}', '{"a":"\\u001b[1m\\u003cb\\u003e\\n\\\\"}'):
        line = text.encode()
        assert redactor.redact(line) is line
        assert redactor.redact_text(text) is text


def test_a_batch_is_redacted_like_its_lines(redactor: Redactor) -> None:
    healthy = b'{"a":1}\n\n{"b":"\\n"}\n'
    assert redactor.redact_joined(healthy) is healthy
    lines = [b'{"a":1}', OAUTH.secret.encode(), b"", b'{"b":"\\']
    joined = b"".join(line + b"\n" for line in lines)
    assert redactor.redact_joined(joined) == b"".join(redactor.redact(line) + b"\n" for line in lines)
    assert OAUTH.secret.encode() not in redactor.redact_joined(joined)


@pytest.mark.parametrize("token", [OAUTH, WITH_SLASH, ACCESS_KEY], ids=repr)
def test_of_a_line_that_was_cut_off_no_part_of_a_token_stays(redactor: Redactor, token: Token) -> None:
    start = b'{"t":"0123 '
    for text in {token.secret, token.secret.replace("/", "\\/")}:
        for kept in range(1, len(text)):
            clean = redactor.redact(start + text[:kept].encode(), truncated=True)
            assert clean == start + (text[:kept].encode() if kept < 4 else b"")


def test_of_a_whole_token_before_the_cut_nothing_stays_where_its_end_may_begin_another() -> None:
    redactor = Redactor([Token("abcd-and-more-abcd")])

    assert redactor.redact(b"x abcd-and-more-abcd-an", truncated=True) == b"x "
    assert redactor.redact(b"x abcd-and-more-abcd", truncated=True) == b"x "


def test_a_line_that_was_cut_off_elsewhere_stays_whole(redactor: Redactor) -> None:
    for line in (b"no space left on disk", b'{"t":"some tex', b'{"t":"\\u00', b'{"t":"\\', b"", b'{"t":"\xc3'):
        assert redactor.redact(line, truncated=True) == line


def test_tokens_can_be_added_while_others_redact() -> None:
    redactor = Redactor()
    tokens = [Token(f"sk-ant-oat01-{i:04}-{'x' * 40}") for i in range(200)]
    failed: list[bytes] = []
    added = 0

    def redact() -> None:
        while added < len(tokens):
            for token in tokens[:added]:
                clean = redactor.redact(token.secret.encode())
                if clean != mark(token).encode():
                    failed.append(clean)

    threads = [threading.Thread(target=redact) for _ in range(3)]
    for thread in threads:
        thread.start()
    for token in tokens:
        redactor.add(token)
        redactor.add(token)
        added += 1
    for thread in threads:
        thread.join()

    assert not failed
    assert OAUTH.secret not in repr(redactor)


@pytest.mark.parametrize(
    "secret",
    [
        "sk-ant-ort01-a-refresh-token-0123456789",
        "sk-ant-admin01-AbCdEfGh",
        "sk-ant-oat01-never-loaded-here_0123",
        "sk-ant-api03-" + "A1b2" * 24,
        "sk-ant-sid01-abcdefgh",
    ],
)
def test_what_looks_like_a_key_of_the_api_is_replaced_though_it_was_never_loaded(secret: str) -> None:
    for redactor in (Redactor(), Redactor([OAUTH])):
        for before, after in (("", ""), ("x", "."), ('{"t":"', '"}'), ("\\n", "\\n"), ("é", "é")):
            assert redactor.redact_text(f"{before}{secret}{after}") == f"{before}{mark(Token(secret))}{after}"
        assert redactor.redact_joined(f"a\n{secret}\nb\n".encode()).decode() == f"a\n{mark(Token(secret))}\nb\n"


@pytest.mark.parametrize(
    "text", ["sk-ant-", "sk-ant-oat01-", "sk-ant-oat01-...", "sk-ant-api03-short", "sk-ant-oat01-X"]
)
def test_what_only_speaks_of_keys_stays(redactor: Redactor, text: str) -> None:
    assert redactor.redact_text(f"set it to {text} please") == f"set it to {text} please"


def test_the_last_so_many_values_are_redacted_and_those_that_are_used_again_count_as_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redaction, "MOST_VALUES", 20)
    redactor = Redactor([OAUTH])
    plain = [Token(f"a-value-{number:06}") for number in range(20)]
    for number, token in enumerate(plain):
        redactor.add(token)
        if number == 10:
            redactor.add(ACCESS_KEY)
            redactor.add(OAUTH)

    assert redactor.redact_text(plain[0].secret) == plain[0].secret, "the oldest has made room"
    assert redactor.redact_text(plain[-1].secret) == mark(plain[-1])
    assert redactor.redact_text(ACCESS_KEY.secret) == mark(ACCESS_KEY)


HOSTILE = {
    "keys of the family, too short": b"sk-ant-oat01-x ",
    "a key without an end": b"sk-ant-oat01-" + b"x" * 8192,
    "backslashes": b"\\",
    "escapes": b"\\u0073",
    "torn escapes": b"\\u00",
    "the beginning of a token": b"sk-ant-oat01-",
    "most of a token": OAUTH.secret.encode()[:-1],
    "a token": OAUTH.secret.encode(),
    "backslashes and a token": b"\\" * 4096 + OAUTH.secret.encode(),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_lines_take_time_in_proportion_to_their_length(redactor: Redactor, kind: str) -> None:
    def seconds(size_bytes: int) -> float:
        line = HOSTILE[kind] * (size_bytes // len(HOSTILE[kind]))
        began = time.thread_time()
        redactor.redact(line, truncated=True)
        return time.thread_time() - began

    # A sixteenth of the limit, so that the default suite stays quick; quadratic time would take minutes for it.
    assert seconds(HOSTILE_BYTES >> 4) < 2.5


def test_a_hostile_line_costs_about_the_same_for_tokens_of_one_length_and_of_sixty() -> None:
    line = b"sk-ant-oat01-" * (HOSTILE_BYTES // 16 // 13)

    def seconds(lengths: range) -> float:
        redactor = Redactor([Token(f"sk-ant-oat01-{number:03}{'x' * length}") for number, length in enumerate(lengths)])
        began = time.thread_time()
        redactor.redact(line)
        return time.thread_time() - began

    assert min(seconds(range(20, 80)) for _ in range(3)) < 6 * min(seconds(range(20, 21)) for _ in range(3))


def test_of_values_that_begin_one_another_the_longest_that_stands_there_is_replaced() -> None:
    tokens = [Token(f"abcdefgh{end}") for end in ("", "i", "ijk", "ijz", "im")]
    redactor = Redactor(tokens)
    longest = {"abcdefgh": 0, "abcdefghij": 1, "abcdefghijk": 2, "abcdefghijzz": 3, "abcdefghil": 1, "abcdefghim": 4}

    for text, number in longest.items():
        assert redactor.redact_text(text) == mark(tokens[number]) + text.removeprefix(tokens[number].secret)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_lines_of_the_frame_limit_are_redacted_within_seconds(redactor: Redactor, kind: str) -> None:
    piece = HOSTILE[kind]
    line = piece * (HOSTILE_BYTES // len(piece))
    began = time.thread_time()

    redactor.redact(line, truncated=True)

    assert time.thread_time() - began < 30
