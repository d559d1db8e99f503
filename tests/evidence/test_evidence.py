from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agent_runtime.claude.frame_repair import read_frame
from agent_runtime.claude.frames import Frame
from agent_runtime.errors import ErrorClass
from agent_runtime.evidence import detector
from agent_runtime.evidence.api_errors import ApiError
from agent_runtime.evidence.detector import Detector
from agent_runtime.evidence.rules import RULES, UNEXPLAINED, rule_for
from agent_runtime.model.state import TokenTrouble
from tests.support.told import NOW, STOPPED, TIME, Story, entry, failed_result, frame, retry, synthetic, tell

if TYPE_CHECKING:
    from agent_runtime.evidence.matching import Rule

HERE = Path(__file__).parents[1]
RECORDED = HERE / "recorded"
CORPUS = HERE.parent.parent / "shared" / "corpus" / "lines.jsonl"

BODY_401 = (
    '{"type":"error","error":{"type":"authentication_error","message":"Invalid bearer token"},"request_id":"req"}'
)
ENTRY_401 = f"{TIME} [ERROR] API error (attempt 1/11): 401 401 {BODY_401}"
OLD_ENTRY_401 = f"[ERROR] Error streaming, falling back to non-streaming mode: 401 {BODY_401}"
REGAIN = "regain access on 2026-10-02 at 00:00 UTC."
MCP_ENTRY = '2026-01-01T00:00:09.000Z [ERROR] MCP server "x" Server stderr: starting'


# -- what was recorded


VERSIONS = [path.stem for path in sorted(RECORDED.glob("*.jsonl"))]


def recorded_runs(version: str) -> list[list[dict[str, Any]]]:
    """Return the rows of each recorded run of a version."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for line in (RECORDED / f"{version}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        cases.setdefault(row["case"], []).append(row)
    return list(cases.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_recorded_run_is_classed_by_what_the_api_answered(version: str) -> None:
    for rows in recorded_runs(version):
        case, expected = rows[0]["case"], rows[0]["expected"]
        story = tell(*((row["stream"], row["line"]) for row in rows))

        assert story.error_class == expected, case
        assert (story.evidence is not None) == (expected in STOPPED), case
        if story.evidence is not None and expected == "auth":
            assert story.evidence.condemns == rows[0]["condemns"], case


@pytest.mark.parametrize("version", VERSIONS)
def test_each_channel_alone_makes_no_refusal_of_what_is_none(version: str) -> None:
    for rows in (rows for rows in recorded_runs(version) if rows[0]["expected"] not in STOPPED):
        for channel in ("stderr", "stdout"):
            story = tell(*((row["stream"], row["line"]) for row in rows if row["stream"] == channel))
            assert story.evidence is None, (rows[0]["case"], channel)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_refusal_shows_at_the_first_refused_request_on_stderr(version: str) -> None:
    for rows in (rows for rows in recorded_runs(version) if rows[0]["condemns"]):
        first = next(row for row in rows if row["stream"] == "stderr")

        story = tell((first["stream"], first["line"]))

        assert story.evidence is not None, first["case"]
        assert story.evidence.condemns, first["case"]
        assert not story.evidence.is_final, first["case"]


def test_there_are_recordings_of_every_version_the_rules_name() -> None:
    assert {*VERSIONS} >= {"1.0.128", "2.0.76", "2.1.30", "2.1.114", "2.1.197", "2.1.330", "2.1.332"}


# -- the shared corpus, where it is there

CLASS_BY_LABEL = {
    "auth-failure": "auth",
    "billing": "billing",
    "network": "network",
    "server-error": "upstream",
    "overload": "overloaded",
    "rate-limit": "rate_limit",
}
THROTTLES = {"L044", "L047", "L093"}


def corpus_rows() -> list[Any]:
    if not CORPUS.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason="shared/corpus is not beside the project"))]
    rows = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    return [pytest.param(row, id=row["id"]) for row in rows]


@pytest.mark.parametrize("row", corpus_rows())
def test_every_row_of_the_corpus_gets_the_class_of_its_label(row: dict[str, str]) -> None:
    is_frame = row["line"].startswith("{")
    story = tell(("stdout", row["line"]) if is_frame else failed_result(row["line"]))

    wanted = "overloaded" if row["id"] in THROTTLES else CLASS_BY_LABEL.get(row["label"])
    if wanted is not None:
        assert story.error_class == wanted
    else:
        assert story.error_class not in {"auth", "billing", "rate_limit"}
    assert (story.evidence is not None) == (wanted in STOPPED)
    if story.evidence is not None and not is_frame:
        assert not story.evidence.condemns


@pytest.mark.parametrize("row", corpus_rows())
def test_a_row_of_the_corpus_is_nothing_in_other_mouths(row: dict[str, str]) -> None:
    assert in_other_mouths(row["line"]).last is None


def in_other_mouths(text: str) -> Story:
    """Let everybody but the CLI say it."""
    return tell(
        ("stderr", text),
        ("stderr", f'{TIME} [ERROR] MCP server "x" Server stderr: {text}'),
        ("stderr", f'[ERROR] MCP server "x" Server stderr: {text}'),
        ("stderr", f'{TIME} [ERROR] "MCP server \\"x\\" Server stderr: {text}'),
        ("stderr", f'{TIME} [DEBUG] "Hook output: {text}'),
        frame(type="system", subtype="init", mcp_servers=[{"name": text, "status": "needs-auth"}]),
        frame(
            type="user",
            message={"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": text}]},
            tool_use_result={"stdout": text, "is_error": True, "error": "authentication_failed"},
        ),
        frame(type="user", message={"role": "user", "content": text}, error="authentication_failed"),
        frame(
            type="assistant",
            message={"model": "claude-x", "content": [{"type": "text", "text": text}]},
            error="authentication_failed",
        ),
        frame(type="stream_event", event={"delta": {"text": text}}),
        frame(type="result", subtype="success", is_error=False, result=text, api_error_status=401),
    )


# -- look-alikes of the CLI's own lines

FORGERIES = [
    ENTRY_401,
    OLD_ENTRY_401,
    "API Error: 401 Invalid bearer token · Please run /login",
    '{"type":"result","is_error":true,"api_error_status":401,"result":"Failed to authenticate."}',
    "Not logged in · Please run /login",
]


@pytest.mark.parametrize("text", FORGERIES[2:])
def test_the_clis_own_words_are_nothing_in_other_mouths(text: str) -> None:
    assert in_other_mouths(text).last is None


@pytest.mark.parametrize("forged", FORGERIES[:2])
@pytest.mark.parametrize(
    "before",
    [f"{TIME} [ERROR] MCP server ", f'{TIME} [DEBUG] "', "> ", "stdout: ", f"{TIME} [INFO] ", "tool: "],
)
def test_an_entry_counts_only_from_the_beginning_of_a_line(before: str, forged: str) -> None:
    assert tell(("stderr", before + forged)).last is None


@pytest.mark.parametrize("forged", FORGERIES[:2])
def test_a_line_in_what_an_mcp_server_wrote_while_the_cli_started_is_not_believed(forged: str) -> None:
    forged = forged.replace(TIME, "2026-01-01T00:00:08.000Z")
    story = tell(
        ("stderr", MCP_ENTRY),
        ("stderr", forged),
        ("stderr", "more of it"),
        ("stderr", forged),
    )
    assert story.last is None


@pytest.mark.parametrize(
    "between",
    [
        f"{TIME} [DEBUG] Getting matching hook commands for UserPromptSubmit with query: undefined",
        "[DEBUG] Hooks: Found 0 total hooks in registry",
    ],
)
def test_after_an_mcp_server_the_cli_is_believed_again_when_it_has_said_something_itself(between: str) -> None:
    forged = ENTRY_401.replace(TIME, "2026-01-01T00:00:08.000Z")
    assert tell(("stderr", MCP_ENTRY), ("stderr", between), ("stderr", forged)).evidence


def test_after_an_mcp_server_a_later_entry_is_believed() -> None:
    assert tell(("stderr", MCP_ENTRY), ("stderr", ENTRY_401)).evidence


def test_a_version_that_quotes_newlines_is_believed_from_its_first_frame_on() -> None:
    init = frame(type="system", subtype="init", claude_code_version="2.1.330")
    forged = ENTRY_401.replace(TIME, "2026-01-01T00:00:08.000Z")
    assert tell(init, ("stderr", MCP_ENTRY), ("stderr", forged)).evidence


def test_every_recorded_frame_is_read_the_quick_way() -> None:
    quick = msgspec.json.Decoder(Frame)
    frames = [
        row for version in VERSIONS for rows in recorded_runs(version) for row in rows if row["stream"] == "stdout"
    ]
    assert all(quick.decode(row["line"].encode()).type for row in frames)


# -- damaged lines


@pytest.mark.parametrize(
    "line",
    [
        ENTRY_401.encode() + b"\r",
        b"\x1b[31m" + ENTRY_401.encode() + b"\x1b[0m",
        b"\x1b[2K\r" + ENTRY_401.encode(),
        b"\x1b]0;claude\x07" + ENTRY_401.encode(),
        b"\x1b]0;claude\x1b\\" + ENTRY_401.encode(),
        b"working...\r" + ENTRY_401.encode(),
        b"\xff\xfe" + ENTRY_401.encode(),
        b"\xef\xbb\xbf" + ENTRY_401.encode(),
        ENTRY_401.encode().replace(b"Invalid", b"Inv\xffal\xc3id"),
        ENTRY_401.encode().replace(b"[ERROR]", b"\x1b[1;31m[ERROR]\x1b[0m"),
        ENTRY_401.encode().replace(b'"message"', b'\x1b[0m"message"'),
        ENTRY_401.encode()[: ENTRY_401.index("Invalid")],
        ENTRY_401.encode()[: ENTRY_401.index("{")],
        ENTRY_401.encode().replace(b"Invalid", b"x" * 400_000 + b"Invalid"),
        OLD_ENTRY_401.encode() + b"\r",
        b"\x1b[31m" + OLD_ENTRY_401.encode(),
    ],
)
def test_a_damaged_entry_is_still_recognised(line: bytes) -> None:
    story = tell(("stderr", line))
    assert story.evidence is not None
    assert story.evidence.rule.id == "api-401"


@pytest.mark.parametrize("entry_of_401", [ENTRY_401, OLD_ENTRY_401])
def test_an_entry_that_grows_byte_by_byte_is_recognised_before_its_end_and_never_mistaken(entry_of_401: str) -> None:
    line = entry_of_401.encode()
    detector = Detector(lambda: NOW)
    stories = [tell(("stderr, unfinished", line[:end]), detector=detector) for end in range(len(line))]

    assert {story.error_class for story in stories} == {None, "auth"}
    assert stories[-1].evidence
    assert tell(("stderr", line), detector=detector).evidence


@pytest.mark.parametrize(
    "line",
    [
        f"{TIME} [ERROR] API error (attempt 1/11): 401 401 The socket connection was closed unexpectedly",
        f"{TIME} [ERROR] API error (attempt 1/11): 403 403 Quota exceeded, and no token has been revoked",
    ],
)
def test_an_unfinished_entry_is_no_evidence_before_the_api_has_spoken(line: str) -> None:
    detector = Detector(lambda: NOW)
    for end in range(len(line)):
        assert tell(("stderr, unfinished", line[:end]), detector=detector).evidence is None


def test_an_unfinished_line_of_an_mcp_server_is_not_taken_for_the_clis_own() -> None:
    forged = ENTRY_401.replace(TIME, "2026-01-01T00:00:08.000Z")
    story = tell(("stderr", MCP_ENTRY), ("stderr, unfinished", forged[:40]), ("stderr", forged))
    assert story.last is None


RETRY_401 = b'{"type":"system","subtype":"api_retry","attempt":1,"error_status":401,"error":"authentication_failed"}'


@pytest.mark.parametrize(
    "line",
    [
        RETRY_401 + b"\r",
        b"\x1b[2K" + RETRY_401 + b"\x1b[0m",
        b"\xff" + RETRY_401,
        b"\xef\xbb\xbf" + RETRY_401,
        RETRY_401.replace(b'"attempt":1', b'"attempt":"one","session_id":7,"note":"\xff\xfe"'),
        RETRY_401.replace(b'"error_status":401', b'"error_status":"401"'),
        RETRY_401.replace(b'"error_status":401', b'"error_status":401.0'),
        RETRY_401.replace(b'"attempt":1', b'"note":"\x1b[31m"'),
        RETRY_401.replace(b'"attempt":1', b'"rate_limit_info":[],"modelUsage":3,"message":"none","tasks":{}'),
        RETRY_401.replace(b'"attempt":1', b'"note":"' + b"x" * 1_000_000 + b'"'),
    ],
)
def test_a_damaged_frame_is_still_recognised(line: bytes) -> None:
    story = tell(("stdout", line))
    assert story.evidence is not None
    assert story.evidence.rule.id == "api-401"


def test_a_frame_with_a_message_of_unknown_form_is_still_read() -> None:
    content = [{"type": "text", "text": "API Error: 401 x"}, {"type": 7}, "odd", {"type": "text", "text": 9}]
    message = {"model": "<synthetic>", "content": content, "usage": "none", "id": 4}
    assert tell(frame(type="assistant", message=message, error="authentication_failed")).evidence


@pytest.mark.parametrize("line", [b"", b"{", b"}", b"[]", b"null", b"nonsense", b'x {"type":"result"}', b"{" * 5000])
def test_what_is_no_frame_is_none(line: bytes) -> None:
    assert read_frame(line) is None


def test_tasks_are_known_by_the_frames_of_each_version() -> None:
    changed = read_frame(
        b'{"type":"system","subtype":"background_tasks_changed","tasks":[{"task_id":"b1","run_id":"r"}]}'
    )
    began = read_frame(b'{"type":"system","subtype":"task_started","task_id":"b1","task_type":"local_bash"}')
    told = read_frame(b'{"type":"system","subtype":"task_notification","task_id":"b1","status":"completed"}')
    ended = read_frame(b'{"type":"system","subtype":"task_updated","task_id":"b1","patch":{"status":"killed"}}')
    goes_on = read_frame(b'{"type":"system","subtype":"task_updated","task_id":"b1","patch":{"is_backgrounded":true}}')

    assert changed is not None
    assert [task.task_id for task in changed.tasks or ()] == ["b1"]
    assert [frame and frame.began_task_id for frame in (changed, began, told, ended)] == [None, "b1", None, None]
    assert [frame and frame.ended_task_id for frame in (began, told, ended, goes_on)] == [None, "b1", "b1", None]


# -- refused credentials, in words nobody has recorded


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, "authentication_error", "A sentence nobody has seen yet."),
        (401, "unknown_type", "no"),
        (403, "permission_error", "OAuth token has been revoked. Please obtain a new token."),
        (403, "permission_error", "This API key has been revoked."),
        (403, "permission_error", "OAuth authentication is currently not allowed for this organization."),
        (403, "permission_error", "Account is no longer a member of the organization associated with this token."),
        (403, "permission_error", "Your account does not have access to Claude Code. Please run /login."),
        (403, "permission_error", "OAuth token application has been deactivated"),
        (403, "permission_error", "Token lacks associated organization"),
        (403, "permission_error", "API key authentication is disabled for this organization."),
        (403, "permission_error", "OAuth token does not meet scope requirement user:inference"),
        (403, "authentication_error", "whatever it says"),
        (400, "invalid_request_error", "This organization has been disabled."),
        (402, "billing_error", "no credit"),
    ],
)
def test_the_api_refuses_a_credential_in_many_words(status: int, kind: str, message: str) -> None:
    story = tell(entry(status, kind, message))
    assert story.evidence is not None
    assert story.evidence.condemns
    assert story.evidence.status == status


@pytest.mark.parametrize(
    ("status", "kind", "message", "error_class"),
    [
        (403, "forbidden", "Quota exceeded for this gateway", "upstream"),
        (403, "forbidden", "OAuth token has been revoked", "upstream"),
        (403, "forbidden", "Request not allowed", "upstream"),
        (403, "permission_error", "We are unable to serve your request", "upstream"),
        (403, "permission_error", "OAuth token does not meet scope requirement: user:profile", "upstream"),
        (403, "permission_error", "Your organization does not have access to model: claude-opus-4-1", "model"),
        (403, "permission_error", "Your API key does not have permission to use the specified resource", "model"),
        (403, "permission_error", "Your account does not have access to Claude Opus 4.1", "model"),
        (403, "permission_error", "The model claude-opus-4-8 is not allowed for this organization.", "model"),
        (403, "permission_error", "Model claude-opus-4-8 is disabled for this organization", "model"),
        (403, "permission_error", "Your IP address is not permitted for this organization", "upstream"),
        (
            400,
            "invalid_request_error",
            "This credential is only authorized for use with Claude Code",
            "invalid_request",
        ),
        (400, "invalid_request_error", "max_tokens: 401 > 400", "invalid_request"),
        (404, "not_found_error", "model: no-such-model", "model"),
        (404, "not_found", "no such route", "upstream"),
        (407, "proxy", "Proxy Authentication Required", "network"),
        (429, "rate_limit_error", "You have exceeded your weekly limit", "rate_limit"),
        (429, "rate_limit_error", "Temporarily limited (not your usage limit)", "overloaded"),
        (413, "request_too_large", "too large", "invalid_request"),
        (429, "rate_limit_error", "Number of requests has exceeded your rate limit", "overloaded"),
        (500, "api_error", "401 Unauthorized from an upstream", "upstream"),
        (500, "overloaded_error", "Overloaded", "overloaded"),
        (503, "unavailable", "OAuth service is down", "upstream"),
        (504, "timeout_error", "timed out", "upstream"),
        (520, "cloudflare", "Web server is returning an unknown error", "upstream"),
        (529, "overloaded_error", "Overloaded", "overloaded"),
    ],
)
def test_what_is_no_refused_credential_has_its_own_class(
    status: int, kind: str, message: str, error_class: str
) -> None:
    story = tell(entry(status, kind, message))
    assert story.error_class == error_class
    assert story.evidence is None


@pytest.mark.parametrize(
    "body",
    [
        "<html><head><title>403 Forbidden</title></head><body><h1>cloudflare</h1></body></html>",
        '"<html>\\n<head><title>Attention Required! | Cloudflare</title></head>\\n</html>"',
        "",
        "Forbidden",
        '{"error":"access denied for this token"}',
        '{"error":{"message":"quota","code":403}}',
        '{"message":"Forbidden"}',
        '{"error":',
    ],
)
def test_a_403_that_is_not_the_apis_is_no_refusal(body: str) -> None:
    story = tell(
        ("stderr", f"{TIME} [ERROR] API error (attempt 1/11): 403 403 {body}"),
        ("stderr", f'{TIME} [ERROR] "API error (attempt 1/11): 403 403 {body}"'),
        ("stderr", f"[ERROR] Error streaming, falling back to non-streaming mode: 403 {body}"),
        retry(403, "authentication_failed"),
        synthetic(f"Failed to authenticate. API Error: 403 {body}", "authentication_failed", api_error_status=403),
        failed_result(f"API Error: 403 {body} · Please run /login"),
    )
    assert story.error_class == "upstream"
    assert story.evidence is None


def test_a_403_in_several_lines_is_read_through_its_quotes() -> None:
    body = '{"type":"error",\n"error":{"type":"permission_error","message":"OAuth token has been revoked"}}'
    quoted = json.dumps(f"API error (attempt 1/2): 403 403 {body}\nand more")
    for line in (quoted, quoted[:-6]):
        story = tell(("stderr", f"{TIME} [ERROR] {line}"))
        assert story.evidence is not None
        assert story.evidence.rule.id == "api-403-credential"


def test_an_entry_of_several_lines_is_read_through_its_quotes() -> None:
    quoted = json.dumps(f"API error (attempt 1/2): 401 401 {BODY_401}\nand more")
    assert tell(("stderr", f"{TIME} [ERROR] {quoted}")).evidence


@pytest.mark.parametrize(
    ("kind", "error_class"),
    [("authentication_error", "auth"), ("overloaded_error", "overloaded"), ("api_error", "upstream")],
)
def test_an_error_in_the_middle_of_a_stream_is_known_by_its_type(kind: str, error_class: str) -> None:
    body = json.dumps({"type": "error", "error": {"type": kind, "message": "…"}})
    line = f"{TIME} [ERROR] Error streaming, falling back to non-streaming mode: {body}"
    assert tell(("stderr", line)).error_class == error_class


@pytest.mark.parametrize(
    "text",
    [
        "undefined Connection error.",
        "ECONNRESET: The socket connection was closed unexpectedly.",
        "undefined Request timed out.",
        "fetch failed",
        "getaddrinfo ENOTFOUND nowhere.invalid",
        "unable to get local issuer certificate",
        "terminated",
        "401 The socket connection was closed unexpectedly",
        "403 read ECONNRESET",
        "401 Request timed out.",
    ],
)
def test_no_answer_is_a_matter_of_the_network(text: str) -> None:
    story = tell(("stderr", f"{TIME} [ERROR] API error (attempt 1/11): {text}"))
    assert story.error_class in {"network", "error"}
    assert story.evidence is None


def test_every_error_entry_of_the_cli_is_seen_even_if_nothing_explains_it() -> None:
    story = tell(("stderr", f"{TIME} [ERROR] API error (attempt 1/11): something new"))
    assert story.last is not None
    assert story.last.rule.id == UNEXPLAINED.id


# -- one channel qualifies the other


def test_a_frame_of_a_403_takes_its_type_from_stderr() -> None:
    final = synthetic("Failed to authenticate. API Error: 403 …", "authentication_failed", api_error_status=403)

    quota = tell(entry(403, "forbidden", "quota"), retry(403, "authentication_failed"), final)
    assert quota.error_class == "upstream"
    assert quota.evidence is None

    revoked = tell(entry(403, "permission_error", "OAuth token has been revoked"), retry(403, "authentication_failed"))
    assert revoked.evidence


def test_a_retry_after_403_alone_is_no_evidence() -> None:
    assert tell(retry(403, "authentication_failed")).evidence is None


def test_a_401_whose_connection_was_lost_is_a_matter_of_the_network_in_frames_too() -> None:
    text = "401 The socket connection was closed unexpectedly"
    story = tell(
        ("stderr", f"{TIME} [ERROR] API error (attempt 1/11): 401 {text}"),
        retry(401, "authentication_failed"),
        synthetic(f"Failed to authenticate. API Error: {text}", "authentication_failed", api_error_status=401),
    )
    assert story.error_class == "network"
    assert story.evidence is None


def test_what_stderr_told_is_over_when_the_model_goes_on() -> None:
    answer = frame(type="assistant", message={"model": "claude-x", "content": []})
    story = tell(entry(403, "forbidden", "quota"), answer, synthetic("Not logged in", "authentication_failed"))
    assert story.evidence
    assert not story.evidence.condemns


def test_a_line_about_a_retry_that_is_read_late_does_not_blur_the_end() -> None:
    limit = frame(
        type="rate_limit_event",
        rate_limit_info={"status": "rejected", "resetsAt": 1_800_000_000, "rateLimitType": "seven_day_opus"},
    )
    final = synthetic("You've hit your Opus limit", "rate_limit", api_error_status=429)
    throttled = entry(429, "rate_limit_error", "This request would exceed your account's rate limit.")

    for order in ((throttled, limit, final), (limit, throttled, final), (limit, final, throttled)):
        story = tell(*order)
        assert story.last is not None
        assert story.last.rule.error_class is ErrorClass.RATE_LIMIT
        assert (story.last.limit_type, story.last.limit_model) == ("seven_day_opus", "opus")
        assert story.last.resets_at == 1_800_000_000


@pytest.mark.parametrize("error", ["authentication_failed", "rate_limit", "server_error"])
def test_a_sub_agents_error_is_not_the_runs(error: str) -> None:
    story = tell(
        retry(401, error, parent_tool_use_id="toolu_1"),
        synthetic("API Error: 401 …", error, parent_tool_use_id="toolu_1", api_error_status=401),
        failed_result("API Error: 401 …", parent_tool_use_id="toolu_1", api_error_status=401),
    )
    assert story.last is None


# -- limits


@pytest.mark.parametrize(
    ("info", "is_limit"),
    [
        ({"status": "allowed", "resetsAt": 1, "rateLimitType": "five_hour"}, False),
        ({"status": "allowed_warning", "resetsAt": 1, "rateLimitType": "five_hour"}, False),
        ({"status": "rejected", "isUsingOverage": False}, False),
        ({"status": "rejected", "resetsAt": 1, "rateLimitType": "five_hour", "isUsingOverage": True}, False),
        ({"status": "rejected", "rateLimitType": "five_hour"}, True),
        ({"status": "rejected", "resetsAt": 1_800_000_000}, True),
    ],
)
def test_only_a_rejected_limit_with_a_type_or_an_end_is_one(info: dict[str, Any], is_limit: bool) -> None:
    story = tell(frame(type="rate_limit_event", rate_limit_info=info))
    assert (story.error_class == "rate_limit") == is_limit
    assert story.evidence is None


def test_a_429_after_the_event_of_a_limit_is_of_that_limit() -> None:
    limit = {"status": "rejected", "resetsAt": 1_800_000_000, "rateLimitType": "seven_day"}
    detector = Detector(lambda: NOW)
    tell(frame(type="rate_limit_event", rate_limit_info=limit), detector=detector)
    told = tell(entry(429, "rate_limit_error", "This would exceed your account's rate limit."), detector=detector).last
    assert told is not None
    assert (told.rule.error_class, told.limit_type, told.resets_at) == (
        ErrorClass.RATE_LIMIT,
        "seven_day",
        1_800_000_000,
    )


def test_the_event_of_a_limit_names_it_better_than_a_sentence() -> None:
    detector = Detector(lambda: NOW)
    limit = {"status": "rejected", "resetsAt": 1_800_000_000, "rateLimitType": "seven_day"}
    tell(frame(type="rate_limit_event", rate_limit_info=limit), detector=detector)
    told = tell(failed_result("You've hit your Opus limit \u00b7 resets 8pm (UTC)"), detector=detector).last
    assert told is not None
    assert (told.limit_type, told.limit_model, told.resets_at) == ("seven_day", None, 1_800_000_000)


def test_a_throttle_after_a_limit_is_of_that_limit() -> None:
    last = tell(failed_result("You've hit your Opus limit"), failed_result("API Error: Rate limit reached")).last
    assert last is not None
    assert (last.rule.error_class, last.rule.trouble, last.limit_model) == (
        ErrorClass.RATE_LIMIT,
        TokenTrouble.LIMITED,
        "opus",
    )


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("API Error: Request rejected (429) \u00b7 this may pass", 429),
        ("API Error: Repeated 529 Overloaded errors", 529),
    ],
)
def test_a_status_that_the_cli_writes_in_words_is_one(text: str, status: int) -> None:
    last = tell(synthetic(text, "unknown")).last
    assert last is not None
    assert (last.rule.error_class, last.status) == (ErrorClass.OVERLOADED, status)


def test_the_clis_own_words_count_beside_the_apis_message() -> None:
    told = ApiError(status=400, text="Bad request \u00b7 Your credit balance is too low", message="Bad request")
    assert rule_for(told).id == "billing-said"


def test_the_end_of_a_run_is_not_blurred_by_a_line_that_is_read_late() -> None:
    final = synthetic("Credit balance is too low", "billing_error")
    assert tell(final, entry(529, "overloaded_error", "Overloaded")).error_class == "billing"


def test_a_throttle_stays_one_through_retries_and_the_end() -> None:
    story = tell(
        entry(429, "rate_limit_error", "Number of requests has exceeded your rate limit"),
        retry(429, "rate_limit", retry_delay_ms=2371.5),
        frame(type="rate_limit_event", rate_limit_info={"status": "rejected", "isUsingOverage": False}),
        synthetic("API Error: Rate limit reached", "rate_limit"),
        failed_result("API Error: Rate limit reached"),
    )
    assert story.error_class == "overloaded"


@pytest.mark.parametrize(
    ("text", "resets_at"),
    [
        ("Claude AI usage limit reached|1790800000", datetime(2026, 9, 30, 20, 26, 40, tzinfo=UTC)),
        (
            "API Error: 400 You have reached your specified API usage limits. You will " + REGAIN,
            datetime(2026, 10, 2, tzinfo=UTC),
        ),
        ("You've hit your weekly limit \u00b7 resets Oct 5 at 3pm (UTC)", datetime(2026, 10, 5, 15, tzinfo=UTC)),
        ("5-hour limit reached \u2219 resets 3pm (UTC)", datetime(2026, 9, 30, 15, tzinfo=UTC)),
        ("You've reached your Opus limit \u00b7 resets 8pm (Asia/Tokyo)", datetime(2026, 9, 30, 11, tzinfo=UTC)),
        ("You're out of extra usage \u00b7 resets 6pm (UTC)", datetime(2026, 9, 30, 18, tzinfo=UTC)),
        ("Spending cap reached resets 1:59am (UTC)", datetime(2026, 10, 1, 1, 59, tzinfo=UTC)),
        ("Session limit reached \u2219 resets 8pm (UTC)", datetime(2026, 9, 30, 20, tzinfo=UTC)),
        ("Session limit reached|0", None),
    ],
)
def test_a_limit_in_the_clis_words_has_an_end_where_they_name_one(text: str, resets_at: datetime | None) -> None:
    story = tell(failed_result(text))
    assert story.last is not None
    assert story.last.rule.error_class is ErrorClass.RATE_LIMIT
    assert story.last.resets_at == (resets_at.timestamp() if resets_at else None)


@pytest.mark.parametrize(
    "text",
    [
        "Approaching your session limit · resets 3pm (UTC)",
        "You're now using usage credits",
        "Claude AI usage limit reached|0",
        "the log says: You've hit your limit",
        "API Error: Server is temporarily limiting requests (not your usage limit) · Rate limited",
    ],
)
def test_what_only_speaks_of_limits_is_none(text: str) -> None:
    assert tell(failed_result(text)).error_class != "rate_limit"


# -- the end of a run in the CLI's words


@pytest.mark.parametrize(
    ("word", "text", "error_class"),
    [
        ("authentication_failed", "Not logged in · Please run /login", "auth"),
        ("authentication_failed", "Invalid API key · Fix external API key", "auth"),
        ("oauth_org_not_allowed", "Your organization has disabled Claude subscription access", "auth"),
        ("billing_error", "Credit balance is too low", "billing"),
        ("rate_limit", "API Error: Request rejected (429) · this may be a temporary capacity issue.", "overloaded"),
        ("rate_limit", "You've hit your limit · resets 1am (Europe/Berlin)", "rate_limit"),
        ("server_error", "API Error: Repeated 529 Overloaded errors", "overloaded"),
        ("server_error", "Request timed out", "network"),
        ("server_error", "API Error: Can't reach the API server — check your internet or DNS (ENOTFOUND)", "network"),
        ("server_error", "API Error: 500 Internal server error.", "upstream"),
        ("overloaded", "Overloaded", "overloaded"),
        ("invalid_request", "Prompt is too long", "invalid_request"),
        ("model_not_found", "There's an issue with the selected model (x).", "model"),
        ("max_output_tokens", "API Error: the response exceeded the maximum", "max_output"),
        ("a_word_of_tomorrow", "something new", "error"),
        ("unknown", "API Error: Connection error.", "network"),
    ],
)
def test_the_clis_word_decides_where_there_is_no_status(word: str, text: str, error_class: str) -> None:
    story = tell(synthetic(text, word))
    assert story.error_class == error_class
    assert story.last is not None
    assert story.last.is_final
    assert not story.last.condemns


def test_a_status_in_a_field_beats_every_word() -> None:
    text = "Failed to authenticate. API Error: 529 Overloaded"
    assert tell(synthetic(text, "authentication_failed", api_error_status=529)).error_class == "overloaded"


def test_a_synthetic_frame_that_reports_no_error_is_nothing() -> None:
    assert tell(synthetic("No response requested.", None)).last is None


def test_too_many_turns_are_no_error_of_the_api() -> None:
    assert tell(frame(type="result", subtype="error_max_turns", is_error=True)).last is None


@pytest.mark.parametrize("text", ["Error: Request failed with status code 401", f"API Error: 401 {BODY_401}"])
def test_what_the_cli_has_logged_besides_is_no_report_of_a_refusal(text: str) -> None:
    story = tell(frame(type="result", subtype="error_during_execution", is_error=True, errors=[text]))
    assert story.error_class == "error"
    assert story.evidence is None


def test_an_error_of_the_api_that_is_passed_on_is_known_by_its_type() -> None:
    assert tell(failed_result(f"Error: 401 {BODY_401}")).error_class == "auth"
    assert tell(failed_result("Error: 401 tests failed")).error_class == "error"


def test_an_unknown_session_is_no_error_of_the_token() -> None:
    errors = ["No conversation found with session ID: 0"]
    story = tell(frame(type="result", subtype="error_during_execution", is_error=True, errors=errors))
    assert story.error_class == "error"
    assert story.evidence is None


# -- the table itself


EXAMPLES = {
    "network-detail": ApiError(word="a_word_of_tomorrow", detail="connection_failed"),
    "network-dressed-as-refusal": ApiError(status=401, text="The socket connection was closed unexpectedly"),
    "proxy-407": ApiError(status=407),
    "address-403": ApiError(status=403, type="permission_error", text="Your IP address is not permitted"),
    "address-detail": ApiError(status=403, word="invalid_request", detail="network_edge_blocked"),
    "request-field": ApiError(status=400, text="messages.0.content: credit balance is no picture"),
    "request-content": ApiError(status=400, text="Output blocked by content filtering policy"),
    "model-code": ApiError(status=401, type="key_model_access_denied"),
    "model-budget": ApiError(status=429, type="budget_exceeded", text="Key exceeded budget for model=claude-x"),
    "model-refused-by-name": ApiError(status=403, type="permission_error", text="model: claude-opus-4-1"),
    "blocked-code": ApiError(status=403, type="permission_error", code="account_on_hold"),
    "billing-code": ApiError(status=429, type="budget_exceeded"),
    "limit-then-credits": ApiError(text="You're out of extra usage \u00b7 resets 6pm"),
    "limit-needs-credits-by-name": ApiError(status=429, text="Extra usage is required for long context requests."),
    "limit-of-a-model": ApiError(
        status=429, detail="model_requires_usage_credits", text="You've hit your Fable limit \u00b7 resets 8pm"
    ),
    "model-needs-credits": ApiError(status=429, word="rate_limit", detail="model_requires_usage_credits"),
    "model-needs-credits-by-name": ApiError(
        status=429, word="rate_limit", text="Fable 5 requires usage credits. Switch to another model to continue."
    ),
    "blocked-account": ApiError(status=400, text="This organization has been disabled."),
    "blocked-account-403": ApiError(status=403, type="permission_error", text="Your account is on hold."),
    "blocked-account-untyped": ApiError(status=403, text="Your account is on hold."),
    "blocked-account-5xx": ApiError(status=500, type="api_error", text="Your account has been suspended."),
    "blocked-word": ApiError(status=403, word="verification_required", text="API Error: See the web site."),
    "billing-said": ApiError(status=400, text="Your credit balance is too low"),
    "billing-budget": ApiError(status=429, text="Team=blue over budget. Spend=51, Budget=50"),
    "billing-5xx": ApiError(status=500, type="api_error", text="Insufficient credits"),
    "api-401": ApiError(status=401, type="authentication_error"),
    "api-403-authentication-type": ApiError(status=403, type="authentication_error"),
    "api-403-credential": ApiError(status=403, type="permission_error", text="OAuth token has been revoked"),
    "api-403-organization-word": ApiError(status=403, type="permission_error", word="oauth_org_not_allowed"),
    "cli-403-sentence": ApiError(status=403, text="Failed to authenticate: OAuth token revoked."),
    "cli-credential-detail": ApiError(word="invalid_request", detail="api_key_auth_disabled"),
    "billing-402": ApiError(status=402),
    "billing-word": ApiError(word="billing_error"),
    "limit-400": ApiError(status=400, text="your usage limits; you will regain access on"),
    "limit-needs-credits": ApiError(status=429, word="rate_limit", detail="long_context_credits_required"),
    "limit-detail": ApiError(status=429, detail="usage_limit_reached"),
    "throttle-without-time": ApiError(text="Claude AI usage limit reached|0"),
    "throttle-by-name": ApiError(status=429, text="limiting requests (not your usage limit)"),
    "limit-sentence": ApiError(status=429, text="You've hit your limit · resets 1am"),
    "limit-429-by-name": ApiError(status=429, text="over the weekly limit"),
    "throttle-429": ApiError(status=429),
    "output-limit-word": ApiError(word="max_output_tokens", text="…"),
    "output-limit-sentence": ApiError(text="API Error: Claude's response exceeded the 32000 output token maximum."),
    "model-declines": ApiError(text="API Error: Claude can't help with this. Start a new session to continue."),
    "no-whole-answer": ApiError(word="unknown", detail="empty_completion"),
    "not-the-task": ApiError(word="cloud_credential_error", text="API Error: Could not load AWS credentials"),
    "model-403": ApiError(status=403, type="permission_error", text="You may not use the specified resource"),
    "gateway-403": ApiError(status=403, type="forbidden"),
    "model-unsupported": ApiError(status=400, text="Claude Code 2 does not support this model"),
    "model-word": ApiError(word="model_not_found"),
    "path-404-by-name": ApiError(status=404, type="not_found_error", text="Not Found", message="Not Found"),
    "path-404": ApiError(status=404, text="{}", message=""),
    "model-404": ApiError(status=404, type="not_found_error"),
    "model-404-sentence": ApiError(status=404, text="There's an issue with the selected model (x)."),
    "request-refused": ApiError(status=413),
    "overloaded-type": ApiError(status=500, type="overloaded_error"),
    "overloaded-529": ApiError(status=529),
    "server-error": ApiError(status=503),
    "other-status": ApiError(status=418),
    "network-sentence": ApiError(word="unknown", text="API Error: Connection error."),
    "network-cut-off": ApiError(text="terminated"),
    "cli-no-credential": ApiError(text="Could not resolve authentication method. Expected either apiKey or …"),
    "cli-refusal-word": ApiError(word="authentication_failed", text="Not logged in · Please run /login"),
    "throttle-sentence": ApiError(text="API Error: Repeated 529 Overloaded errors"),
    "limit-sentence-alone": ApiError(word="rate_limit", text="You've hit your limit"),
    "throttle-word": ApiError(word="overloaded", text="…"),
    "server-word": ApiError(word="server_error", text="…"),
    "model-sentence": ApiError(word="invalid_request", text="Claude Opus is not available with the Claude Pro plan."),
    "request-word": ApiError(word="invalid_request", text="…"),
    "billing-sentence": ApiError(text="Credit balance too low · Add funds"),
    "blocked-sentence": ApiError(
        text="Your account is on hold and can't use Claude Code. View details or appeal: \u2026"
    ),
    "cli-refusal-sentence": ApiError(text="OAuth token revoked · Please run /login"),
    "request-sentence": ApiError(text="Prompt is too long"),
    "server-sentence": ApiError(text="API Error: API returned an empty or malformed response (HTTP 200)"),
}


def test_every_rule_has_an_example() -> None:
    assert {rule.id for rule in RULES} == set(EXAMPLES)


@pytest.mark.parametrize("rule", EXAMPLES)
def test_every_rule_decides_something(rule: str) -> None:
    assert rule_for(EXAMPLES[rule]).id == rule


def test_rule_ids_are_unique() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_a_rule_without_a_source_is_shown_by_a_recorded_run_or_names_a_table_that_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = set()

    def observed(error: ApiError) -> Rule:
        rule = rule_for(error)
        shown.add(rule.id)
        return rule

    monkeypatch.setattr(detector, "rule_for", observed)
    for version in VERSIONS:
        for rows in recorded_runs(version):
            tell(*((row["stream"], row["line"]) for row in rows))

    for rule in RULES:
        names_a_table = rule.phrases or rule.own_words or rule.from_api or rule.begins or rule.codes
        assert rule.source or rule.id in shown or names_a_table, rule.id


def test_only_what_is_about_the_account_is_evidence_and_only_evidence_condemns() -> None:
    for rule in RULES:
        assert rule.is_evidence == (rule.error_class.value in STOPPED)
        assert rule.is_evidence or not rule.condemns
        assert rule.is_evidence or not rule.blocks
        if rule.condemns:
            assert rule.statuses or rule.codes


@pytest.mark.parametrize(
    "sentence",
    [
        "You\u2019ve hit your weekly limit",
        "You\u2019re out of usage credits",
        "We\u2019ve updated our Consumer Terms: accept them",
    ],
)
def test_a_curved_apostrophe_reads_as_a_straight_one(sentence: str) -> None:
    curved, straight = ApiError(text=sentence), ApiError(text=sentence.replace("\u2019", "'"))

    assert rule_for(curved).id == rule_for(straight).id != UNEXPLAINED.id


@pytest.mark.parametrize("version", ["9" * 5000, "2.1.", "", "2.1.²", "-1", "2.1.114-beta"])
def test_a_version_of_any_form_is_no_fault(version: str) -> None:
    init = frame(type="system", subtype="init", claude_code_version=version)

    assert tell(init).evidence is None
