"""No token leaves this process in a line, however it is written there, and a healthy line costs next to nothing."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from agent_runtime.redaction import NESTING_LEVELS, SHORTEST, RedactingFilter, Redactor, _Unescaped, _unescaped
from agent_runtime.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def escaped(text: str, *, upper: bool = False, every: int = 1) -> str:
    form = "\\u%04X" if upper else "\\u%04x"
    return "".join(form % ord(char) if i % every == 0 else char for i, char in enumerate(text))


@pytest.mark.parametrize("token", [OAUTH, API_KEY, WITH_SLASH, ACCESS_KEY], ids=repr)
def test_a_token_is_replaced_by_its_fingerprint(redactor: Redactor, token: Token) -> None:
    line = f'{{"a":"before {token.secret} after","b":"{token.secret}"}}'.encode()

    assert redactor.redact(line).decode() == f'{{"a":"before {mark(token)} after","b":"{mark(token)}"}}'


@pytest.mark.parametrize("token", [OAUTH, WITH_SLASH], ids=repr)
@pytest.mark.parametrize("every", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("upper", [False, True])
def test_a_token_written_with_unicode_escapes_is_replaced(
    redactor: Redactor, token: Token, every: int, *, upper: bool
) -> None:
    line = f'{{"text":"x {escaped(token.secret, upper=upper, every=every)} y"}}'.encode()
    assert json.loads(line)["text"] == f"x {token.secret} y"

    assert json.loads(redactor.redact(line)) == {"text": f"x {mark(token)} y"}


def test_one_escaped_character_anywhere_does_not_hide_a_token(redactor: Redactor) -> None:
    secret = OAUTH.secret
    for i, char in enumerate(secret):
        line = f'{{"t":"{secret[:i]}\\u{ord(char):04x}{secret[i + 1 :]}"}}'.encode()
        assert json.loads(redactor.redact(line)) == {"t": mark(OAUTH)}, i


def test_an_escaped_slash_does_not_hide_a_token(redactor: Redactor) -> None:
    line = b'{"t":"' + WITH_SLASH.secret.replace("/", "\\/").encode() + b'"}'

    assert json.loads(redactor.redact(line)) == {"t": mark(WITH_SLASH)}


@pytest.mark.parametrize("levels", range(1, NESTING_LEVELS))
def test_json_in_json_does_not_hide_a_token(redactor: Redactor, levels: int) -> None:
    text = f'"{escaped(OAUTH.secret, every=5)}"'
    for _ in range(levels):
        text = json.dumps(text)

    clean = redactor.redact(f'{{"t":{text}}}'.encode())

    assert OAUTH.secret not in fully_decoded(clean)
    assert mark(OAUTH).encode() in clean
    inner = json.loads(clean)["t"]
    for _ in range(levels):
        inner = json.loads(inner)
    assert inner == mark(OAUTH)


@pytest.mark.parametrize("levels", [1, 2])
def test_json_in_json_where_even_the_escapes_are_escaped_does_not_hide_a_token(redactor: Redactor, levels: int) -> None:
    text = escaped(OAUTH.secret)
    for _ in range(levels):
        text = escaped(text)

    assert json.loads(redactor.redact(f'{{"t":"{text}"}}'.encode())) == {"t": mark(OAUTH)}


def fully_decoded(line: bytes) -> str:
    return _unescaped(line).decode("latin-1")


def test_an_escape_that_json_does_not_know_swallows_no_part_of_a_token() -> None:
    redactor = Redactor([Token("abcdef01-token")])

    assert redactor.redact(rb"\Uabcdef01-toke\u006e") == rb"\U" + redactor.redact(b"abcdef01-token")


def test_what_stands_around_a_token_stays_as_it_was(redactor: Redactor) -> None:
    for before, after in (("\\n", "\\n"), ('\\"', '\\"'), ("a\\\\b ", "\\\\c"), ("\\u00e9", "\\u00e9"), ("é", "\\t")):
        for secret in (OAUTH.secret, escaped(OAUTH.secret)):
            line = f'{{"t":"{before}{secret}{after}"}}'.encode()
            assert redactor.redact(line).decode() == f'{{"t":"{before}{mark(OAUTH)}{after}"}}', (before, secret)


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


def test_a_token_that_ends_in_a_backslash_leaves_that_at_most() -> None:
    token = Token("backslash-last\\")

    clean = json.loads(Redactor([token]).redact(f'{{"t":{json.dumps(token.secret)}}}'.encode()))

    assert clean == {"t": mark(token) + "\\"}


def test_random_mixtures_of_escapes_never_hide_a_token_and_stay_json(redactor: Redactor) -> None:
    rng = random.Random(1)
    for _ in range(400):
        text = mixed(rng, rng.choice("ab \\n") + OAUTH.secret + rng.choice(["", "x", '"', "\\", "é"]))
        value = text
        for _ in range(rng.randrange(3)):
            value = json.dumps(value)[1:-1]
        line = f'{{"t":"{value}","n":[1,2]}}'.encode()
        clean = redactor.redact(line)
        assert OAUTH.secret not in fully_decoded(clean), line
        assert json.loads(clean)["n"] == [1, 2], line


def mixed(rng: random.Random, text: str) -> str:
    pieces = []
    for char in text:
        way = rng.randrange(4)
        if way == 0:
            pieces.append(f"\\u{ord(char):04x}")
        elif way == 1 and ord(char) < 128 and char not in '"\\':
            pieces.append(f"\\u{ord(char):04X}")
        else:
            pieces.append(json.dumps(char, ensure_ascii=False)[1:-1])
    return "".join(pieces)


def test_the_fast_look_and_the_one_that_knows_positions_see_the_same_text() -> None:
    rng = random.Random(2)
    alphabet = ["\\", "\\\\", "u", "\\u", "0", "0", "7", "3", "c", "5", "\\u0073", "\\u005c", "\\u0075", "é", '"', "x"]
    compared = 0
    for _ in range(5000):
        line = "".join(rng.choices(alphabet, k=rng.randrange(1, 24))).encode()
        slow = _Unescaped(line)
        if "�" in line.decode("raw_unicode_escape", "replace") or b"\\u" in slow.plain:
            continue
        fast = _unescaped(line)
        if b"?" not in fast:
            compared += 1
            assert slow.plain == fast, line
    assert compared > 1000


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
    lines = [b'{"a":1}', OAUTH.secret.encode(), b"", escaped(OAUTH.secret).encode(), b'{"b":"\\']
    joined = b"".join(line + b"\n" for line in lines)
    assert redactor.redact_joined(joined) == b"".join(redactor.redact(line) + b"\n" for line in lines)
    assert OAUTH.secret.encode() not in redactor.redact_joined(joined)


@pytest.mark.parametrize("form", ["plain", "escaped", "mixed", "nested", "nested escaped"])
def test_of_a_line_that_was_cut_off_no_part_of_a_token_stays(redactor: Redactor, form: str) -> None:
    secret = OAUTH.secret
    text = {
        "plain": secret,
        "escaped": escaped(secret),
        "mixed": escaped(secret, every=2),
        "nested": escaped(secret).replace("\\", "\\\\"),
        "nested escaped": escaped(secret).replace("\\", "\\u005c"),
    }[form]
    start = b'{"t":"0123 '
    for kept in range(1, len(text)):
        clean = redactor.redact(start + text[:kept].encode(), truncated=True)
        assert clean.startswith(start)
        # Of an escape that was torn before it said anything, a part may stay.
        assert len(clean) - len(start) < len("\\u005cu0073"), (kept, clean)


def test_a_line_that_was_cut_off_elsewhere_stays_whole(redactor: Redactor) -> None:
    for line in (b'{"t":"some tex', b'{"t":"\\u00', b'{"t":"\\', b"", b'{"t":"\xc3'):
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


HOSTILE = {
    "backslashes": b"\\",
    "escapes": b"\\u0073",
    "escapes of backslashes": b"\\u005c",
    "nested escapes": b"\\\\u0073",
    "escapes without digits": b"\\u",
    "torn escapes": b"\\u00",
    "the beginning of a token": b"sk-ant-oat01-",
    "the beginning of a token, escaped": b"\\u0073k-ant-oat01-",
    "most of a token": OAUTH.secret.encode()[:-1],
    "a token": OAUTH.secret.encode(),
    "an escaped token and backslashes": escaped(OAUTH.secret).encode() + b"\\" * 4096,
    "an escaped token and escapes": escaped(OAUTH.secret).encode() + b"\\u0041" * 4096,
    "quotes": b'\\"',
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*HOSTILE, "only escaped tokens"])
def test_hostile_lines_of_the_frame_limit_are_redacted_within_seconds(redactor: Redactor, kind: str) -> None:
    piece = HOSTILE.get(kind, escaped(OAUTH.secret).encode())
    line = piece * (HOSTILE_BYTES // len(piece))
    began = time.thread_time()

    redactor.redact(line, truncated=True)

    assert time.thread_time() - began < 30


@pytest.mark.parametrize("in_middle", [1, 65_300, 65_530, 65_536, 131_000, 200_000])
def test_an_escaped_token_is_found_wherever_it_stands_in_a_long_line(redactor: Redactor, in_middle: int) -> None:
    text = "x\\n" * (in_middle // 3) + "y" * (in_middle % 3) + escaped(OAUTH.secret) + "\\u0041" * 50_000
    line = f'{{"t":"{text}"}}'.encode()

    clean = json.loads(redactor.redact(line))["t"]

    assert clean == json.loads(line)["t"].replace(OAUTH.secret, mark(OAUTH))


# -- log records


class Kept(logging.Handler):
    """Keeps what it would have printed."""

    def __init__(self) -> None:
        super().__init__()
        self.printed: list[str] = []
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.printed.append(self.format(record))


@pytest.fixture
def kept(redactor: Redactor) -> Kept:
    handler = Kept()
    handler.addFilter(RedactingFilter(redactor))
    return handler


@pytest.fixture
def logger(kept: Kept) -> Iterator[logging.Logger]:
    logger = logging.getLogger(__name__)
    logger.propagate = False
    logger.addHandler(kept)
    yield logger
    logger.removeHandler(kept)


def test_messages_and_arguments_of_log_records_are_redacted(logger: logging.Logger, kept: Kept) -> None:
    logger.error("token %s and %r", OAUTH.secret, {"key": API_KEY.secret})
    logger.error("in the message: " + OAUTH.secret)  # noqa: G003 - what a careless caller does
    logger.error("healthy %d%%", 5)

    assert kept.printed[0] == f"token {mark(OAUTH)} and {{'key': '{mark(API_KEY)}'}}"
    assert kept.printed[1] == f"in the message: {mark(OAUTH)}"
    assert kept.printed[2] == "healthy 5%"
    assert OAUTH.secret not in str([vars(record) for record in kept.records])


def test_exceptions_stacks_and_extra_attributes_are_redacted(logger: logging.Logger, kept: Kept) -> None:
    try:
        raise ValueError(f"cannot use {OAUTH.secret}") from KeyError(API_KEY.secret)
    except ValueError:
        logger.exception("failed", stack_info=True, extra={"header": OAUTH.secret})

    assert f"ValueError: cannot use {mark(OAUTH)}" in kept.printed[0]
    assert mark(API_KEY) in kept.printed[0]
    assert OAUTH.secret not in kept.printed[0]
    assert vars(kept.records[0])["header"] == mark(OAUTH)
    assert kept.records[0].exc_info is None


def test_a_healthy_exception_is_left_to_the_formatter(logger: logging.Logger, kept: Kept) -> None:
    try:
        raise ValueError("nothing secret")
    except ValueError:
        logger.exception("failed")

    assert kept.records[0].exc_info is not None
    assert "ValueError: nothing secret" in kept.printed[0]


def test_arguments_that_do_not_fit_are_not_printed(
    logger: logging.Logger, kept: Kept, capfd: pytest.CaptureFixture[str]
) -> None:
    logger.error("%d processes", OAUTH.secret)

    assert kept.printed == ["%d processes (its arguments do not fit)"]
    assert capfd.readouterr().err == ""
