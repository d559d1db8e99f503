"""What the real CLI makes of the API's and gateways' answers: kinds K1, K4, K10, K11 and K12 of what people report."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from agent_runtime.standins.messages_api import MessagesApi, Raw, Text, Tool, UsageLimit
from tests.support.supervised import OLD, Supervised, supervised

if TYPE_CHECKING:
    from pathlib import Path

    from agent_runtime.standins.messages_api.script import Reply

# What older versions print of such answers is recorded (tests/recorded), and replayed for each of them.
pytestmark = [pytest.mark.real_cli, pytest.mark.slow, pytest.mark.newest_cli]

LEFT_ALONE_SECONDS = 60
"""Much less than the three minutes for which the CLI goes on by itself."""


def own(status: int, kind: str, message: str, **details: str) -> Raw:
    """Answer as the API itself does."""
    error = {"type": kind, "message": message} | ({"details": details} if details else {})
    return Raw(status, {"type": "error", "error": error, "request_id": "req_1"})


def gateway(status: int, message: str, kind: str | None = None, code: str | int | None = None) -> Raw:
    """Answer as gateways do."""
    return Raw(status, {"error": {"message": message, "type": kind, "param": None, "code": code}})


def case(reply: Reply, status: int, error_class: str, state: str, name: str) -> Any:
    return pytest.param(reply, (status, error_class, state), id=name)


EXTRA_USAGE = "You're out of extra usage. Add more at claude.ai/settings/usage and keep going."
TERMS = (
    "We've updated our Consumer Terms and Privacy Policy. You'll need to accept them in claude.ai with the email in "
    "/status to continue."
)
BUDGET = "Budget has been exceeded! Current cost: 111.29, Max budget: 100.0"


def ask(running: Supervised, message: str = "Say hello.", **fields: Any) -> tuple[int, str | None, str]:
    """Post a task; return what came of it and what is held of the token."""
    begun = time.monotonic()
    response = running.post(message, timeout_seconds=LEFT_ALONE_SECONDS, **fields)
    assert time.monotonic() - begun < LEFT_ALONE_SECONDS - 10, "ended by the deadline"
    return response.status_code, response.json().get("error_class"), running.get("/api/token")["state"]


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        case(
            own(400, "invalid_request_error", EXTRA_USAGE),
            503,
            "billing",
            "billing",
            "extra_usage__cc_45033",
        ),
        case(own(400, "invalid_request_error", TERMS), 503, "auth", "blocked", "terms__cc_65609"),
        case(
            own(403, "permission_error", "Your account is on hold. Please contact support."),
            503,
            "auth",
            "blocked",
            "on_hold",
        ),
        case(
            own(403, "permission_error", "Verify first.", error_code="verification_required"),
            503,
            "auth",
            "blocked",
            "verification",
        ),
        case(
            own(400, "invalid_request_error", "This organization has been disabled."),
            503,
            "auth",
            "blocked",
            "disabled",
        ),
        case(own(500, "api_error", "Your account has been suspended."), 503, "auth", "blocked", "suspended_with_500"),
        case(
            gateway(429, BUDGET, "budget_exceeded", "429"),
            503,
            "billing",
            "billing",
            "budget__litellm_40050",
        ),
        case(gateway(402, "Insufficient credits.", code=402), 503, "billing", "billing", "credits_of_openrouter"),
        case(
            gateway(429, "You exceeded your current quota.", "insufficient_quota", "insufficient_quota"),
            503,
            "billing",
            "billing",
            "quota_of_openai",
        ),
        case(
            gateway(403, "user quota is not enough", "one_api_error", "insufficient_user_quota"),
            503,
            "billing",
            "billing",
            "quota_of_one_api",
        ),
    ],
)
def test_k1_an_account_in_trouble_is_told_at_the_first_line(  # noqa: PLR0917 - fixtures and parameters
    tmp_path: Path, api: MessagesApi, url: str, claude: str, reply: Reply, wanted: tuple[int, str, str]
) -> None:
    api.on(OLD, reply)
    with supervised(tmp_path, api_url=url, claude=claude) as running:
        assert ask(running, execution_id="unpaid") == wanted
        [attempt] = running.record("unpaid")["attempts"]

    assert attempt["stop_reason"] == "refused"
    assert attempt["evidence"]["stream"] == "stderr"
    assert attempt["evidence"]["seconds_to_signal"] < 0.5


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        case(
            own(400, "invalid_request_error", "Output blocked by content filtering policy"),
            400,
            "invalid_request",
            "ready",
            "k1_content_filter",
        ),
        case(
            own(400, "invalid_request_error", "messages.0.content: credit balance is too low is not allowed"),
            400,
            "invalid_request",
            "ready",
            "k1_a_request_that_quotes_it",
        ),
        case(
            own(400, "invalid_request_error", 'messages.0.content: "your account is on hold" is not valid'),
            400,
            "invalid_request",
            "ready",
            "k1_a_request_that_quotes_a_block",
        ),
        case(
            gateway(
                403, "team not allowed to access model. Team can only access models=['x']", "team_model_access_denied"
            ),
            400,
            "model",
            "ready",
            "k4_team_of_litellm",
        ),
        case(gateway(403, "This token has no access to model claude-x"), 400, "model", "ready", "k4_token_of_new_api"),
        case(
            gateway(429, "Virtual Key exceeded budget for model=claude-x", "budget_exceeded", "400"),
            400,
            "model",
            "ready",
            "k4_budget_of_one_model",
        ),
        case(own(404, "not_found_error", "model: claude-x"), 400, "model", "ready", "k12_model"),
        case(Text(text="I", stop_reason="refusal"), 400, "invalid_request", "ready", "k11_refusal"),
        case(Text(text="I", stop_reason="max_tokens"), 422, "max_output", "ready", "k11_max_tokens"),
    ],
)
def test_what_is_the_tasks_own_leaves_the_token_alone(  # noqa: PLR0917 - fixtures and parameters
    tmp_path: Path, api: MessagesApi, url: str, claude: str, reply: Reply, wanted: tuple[int, str, str]
) -> None:
    if wanted[1] == "model" and getattr(reply, "status", 0) == 429 and "2.1.30" not in claude:
        pytest.skip("newer versions try a 429 for three minutes before they give up, whatever it says")
    api.on(OLD, reply)
    with supervised(tmp_path, api_url=url, claude=claude) as running:
        assert ask(running) == wanted


def test_k12_a_404_of_another_path_names_the_base_url(tmp_path: Path, api: MessagesApi, url: str, claude: str) -> None:
    api.on(OLD, Raw(404, {"detail": "Not Found"}))
    with supervised(tmp_path, api_url=url, claude=claude) as running:
        problem = running.post("Say hello.", timeout_seconds=LEFT_ALONE_SECONDS).json()

        assert (problem["status"], problem["error_class"]) == (502, "upstream")
        assert "ANTHROPIC_BASE_URL" in problem["detail"]
        assert running.get("/api/token")["state"] == "ready"


KEY_DENIED = "key not allowed to access model. This key can only access models=['the-other']. Tried to access {}"


def test_k4_a_401_for_the_tasks_model_is_the_models__litellm(
    tmp_path: Path, api: MessagesApi, url: str, claude: str
) -> None:
    if any(f"/{version}/" in claude for version in ("1.0.128", "2.0.76", "2.1.30", "2.1.114")):
        pytest.skip("these try a 401 for three minutes before they give up, whatever it says")
    model = "claude-sonnet-4-5"
    api.on(OLD, gateway(401, KEY_DENIED.format(model), "key_model_access_denied", "401"))
    with supervised(tmp_path, api_url=url, claude=claude) as running:
        assert ask(running, model=model) == (400, "model", "ready")


@pytest.mark.parametrize("status", [401, 403])
def test_k4_a_sub_agents_request_for_another_model_leaves_the_run_alone(
    tmp_path: Path, api: MessagesApi, url: str, claude: str, status: int
) -> None:
    if status == 401 and any(f"/{version}/" in claude for version in ("1.0.128", "2.0.76", "2.1.30", "2.1.114")):
        pytest.skip("these try a 401 for three minutes before they give up, whatever it says")
    task: dict[str, object] = {
        "description": "look",
        "prompt": "Look around.",
        "subagent_type": "general-purpose",
        "model": "haiku",
    }
    name = "Task" if any(f"/{version}/" in claude for version in ("1.0.128", "2.0.76", "2.1.30")) else "Agent"
    api.script("delegate", Tool(name=name, input=task), Text(text="finished"))
    api.on_model("haiku", gateway(status, KEY_DENIED.format("claude-haiku-4-5-20251001"), "key_model_access_denied"))
    with supervised(tmp_path, api_url=url, claude=claude) as running:
        response = running.post("[[script:delegate]] Do it.", execution_id="delegate")

        assert (response.status_code, response.json()["response"]) == (200, "finished")
        assert running.get("/api/token")["state"] == "ready"
        [attempt] = running.record("delegate")["attempts"]
        assert attempt["evidence"] is None
    assert any("haiku" in (request.model or "") and request.status == status for request in api.requests)


def test_k10_the_end_of_a_limit_is_told_also_where_only_a_sentence_has_it(
    tmp_path: Path, api: MessagesApi, url: str, claude: str
) -> None:
    resets_at = (int(time.time()) + 7200) // 60 * 60
    api.on(OLD, UsageLimit(resets_at=resets_at))
    with supervised(tmp_path, api_url=url, claude=claude, environment={"TZ": "Asia/Tokyo"}) as running:
        response = running.post("Say hello.", timeout_seconds=LEFT_ALONE_SECONDS)
        token = running.get("/api/token")

    assert (response.status_code, response.json()["error_class"]) == (429, "rate_limit")
    assert 7000 <= int(response.headers["Retry-After"]) <= 7260
    assert datetime.fromisoformat(token["limited_until"]).timestamp() == pytest.approx(resets_at, abs=60)
