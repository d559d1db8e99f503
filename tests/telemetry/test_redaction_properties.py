"""Properties of redaction: no token comes out of any text in any form that is promised, and nothing else changes."""

from __future__ import annotations

import json
import string

from hypothesis import assume, example, given
from hypothesis import strategies as st

from agent_runtime.model.tokens import Token
from agent_runtime.telemetry.redaction import SHORTEST, Redactor

TOKEN_CHARACTERS = string.ascii_letters + string.digits + "-_"
FAMILIES = st.sampled_from(["sk-ant-oat01-", "sk-ant-api03-", "sk-ant-ort01-"])
FAMILY_TOKENS = st.builds(str.__add__, FAMILIES, st.text(TOKEN_CHARACTERS, min_size=8, max_size=60))
PLAIN = st.text(TOKEN_CHARACTERS + ".~+/=", min_size=SHORTEST, max_size=40)
SIMILAR = st.text("ab", min_size=SHORTEST, max_size=12)  # begin alike, overlap, and hold each other
SECRETS = st.lists(st.one_of(FAMILY_TOKENS, PLAIN, SIMILAR), min_size=1, max_size=5)
ANY_SECRET = st.text(st.characters(exclude_categories=["Cs"]), min_size=SHORTEST, max_size=30)
AROUND = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.text('\\"u0073nab{}[]:,/ sk-ant', max_size=20),
)


def redactor(secrets: list[str]) -> Redactor:
    return Redactor(map(Token, secrets))


@st.composite
def texts(draw: st.DrawFn, secrets: list[str]) -> str:
    """Draw a text that holds some of the secrets, also several in a row or one inside of another's neighbour."""
    pieces = draw(st.lists(st.one_of(AROUND, st.sampled_from(secrets)), max_size=6))
    return "".join((*pieces, draw(st.sampled_from(secrets)), draw(AROUND)))


@given(st.data(), SECRETS)
def test_no_token_survives_in_any_text_and_a_second_pass_changes_nothing(
    data: st.DataObject, secrets: list[str]
) -> None:
    text = data.draw(texts(secrets))

    clean = redactor(secrets).redact_text(text)

    assert not [secret for secret in secrets if secret in clean]
    assert redactor(secrets).redact_text(clean) is clean


@given(st.data(), SECRETS, st.integers(0, 3))
def test_no_token_survives_in_json_nor_in_json_inside_it_and_json_stays_json(
    data: st.DataObject, secrets: list[str], levels: int
) -> None:
    text = data.draw(texts(secrets))
    document: object = {text: [text, {"a": text}, 1, None]}
    for _ in range(levels):
        document = {"text": json.dumps(document, ensure_ascii=data.draw(st.booleans()))}
    line = json.dumps(document, ensure_ascii=data.draw(st.booleans())).encode()

    clean = redactor(secrets).redact(line)

    json.loads(clean)
    assert not [secret for secret in secrets if secret.encode() in clean]


@given(FAMILY_TOKENS, st.text("xyz", min_size=4, max_size=9), st.text(".+=", min_size=4, max_size=9))
def test_of_a_value_with_another_inside_nothing_stays(inner: str, before: str, after: str) -> None:
    outer = before + inner + after

    assert redactor([inner, outer]).redact_text(f"{outer} {inner}") == " ".join(
        f"[token:{Token(secret).fingerprint}]" for secret in (outer, inner)
    )


@given(ANY_SECRET, AROUND, AROUND)
def test_a_value_of_any_characters_is_found_as_json_writes_it(secret: str, before: str, after: str) -> None:
    one = redactor([secret])

    assert secret not in one.redact_text(before + secret + after)
    for ascii_only in (True, False):
        inside = json.dumps(secret, ensure_ascii=ascii_only)[1:-1]
        line = json.dumps({"text": before + secret + after}, ensure_ascii=ascii_only).encode()
        assert inside.encode() not in one.redact(line)


@st.composite
def bordered(draw: st.DrawFn) -> str:
    """Draw a secret that ends as it begins."""
    border = draw(st.text(TOKEN_CHARACTERS, min_size=4, max_size=8))
    return border + draw(st.text(TOKEN_CHARACTERS, min_size=10, max_size=20)) + border


@given(st.data(), st.lists(st.one_of(FAMILY_TOKENS, bordered()), min_size=1, max_size=3))
def test_of_a_cut_line_no_part_of_a_token_survives(data: st.DataObject, secrets: list[str]) -> None:
    cut = data.draw(st.sampled_from(secrets))
    torn = cut[: data.draw(st.integers(4, len(cut) - 1))]
    overlap = data.draw(st.integers(0, 8))  # the end of a whole one may be the beginning of that which is cut
    text = data.draw(texts(secrets))
    line = text + (torn[overlap:] if text.endswith(torn[:overlap]) else torn)

    clean = redactor(secrets).redact(line.encode(), truncated=True).decode()

    assert not clean.endswith(torn)
    assert not [secret for secret in secrets if secret[:10] in clean]


@given(st.data(), SECRETS)
def test_what_holds_no_token_comes_back_as_the_same_object(data: st.DataObject, secrets: list[str]) -> None:
    text = data.draw(st.one_of(AROUND, st.text(TOKEN_CHARACTERS, max_size=40)))
    assume(not any(secret in text for secret in secrets) and "sk-ant-" not in text)

    assert redactor(secrets).redact_text(text) is text
    assert redactor(secrets).redact(text.encode()) == text.encode()


@given(st.data(), SECRETS)
def test_lines_together_are_redacted_as_each_by_itself(data: st.DataObject, secrets: list[str]) -> None:
    lines = [data.draw(texts(secrets)).encode().replace(b"\n", b"") for _ in range(3)]
    one = redactor(secrets)

    assert one.redact_joined(b"".join(line + b"\n" for line in lines)) == b"".join(
        one.redact(line) + b"\n" for line in lines
    )


@given(FAMILY_TOKENS, AROUND)
@example("sk-ant-oat01-never-loaded-here_0123", "\\u00")
def test_a_key_of_the_api_that_was_never_loaded_does_not_survive(secret: str, before: str) -> None:
    clean = Redactor().redact_text(f"{before}{secret} {json.dumps(before + secret)}")

    assert secret not in clean
