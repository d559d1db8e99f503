"""
How the scripted CLI uses the Messages API: which token it sends, what it prints on errors, when it gives up.

Source: Claude Code 2.1.330 against a stand-in of the Messages API.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from agent_runtime.model.tokens import OAUTH_BETA
from agent_runtime.standins.scripted_cli import frames
from agent_runtime.standins.scripted_cli.frames import Frame
from agent_runtime.standins.scripted_cli.runtime import Options, Run

if TYPE_CHECKING:
    import http.client

MAX_ATTEMPTS = 11
REQUEST_TIMEOUT_SECONDS = 600.0
BASH_TOOL = {
    "name": "Bash",
    "description": "Executes a given bash command and returns its output.",
    "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
}


class Credential(NamedTuple):
    """A credential and where the CLI found it."""

    source: str
    secret: str

    @property
    def is_oauth(self) -> bool:
        """Whether the credential is an OAuth token, which is sent with the OAuth beta header."""
        return self.source in {"CLAUDE_CODE_OAUTH_TOKEN", "file"}

    def headers(self) -> dict[str, str]:
        """The header that carries the credential."""
        is_key = self.source == "ANTHROPIC_API_KEY"
        return {"x-api-key": self.secret} if is_key else {"Authorization": f"Bearer {self.secret}"}

    def __repr__(self) -> str:
        return f"<Credential from {self.source}>"


class RequestFailed(Exception):
    """A request failed at the API or on the way to it; *status* is None if no answer came."""

    def __init__(self, status: int | None, body: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body
        self.headers = headers
        self.kind: str | None = None
        self.message = body
        try:
            parsed = json.loads(body)
            self.body = json.dumps(parsed, separators=(",", ":"))  # as the CLI quotes it
            error = parsed["error"]
            self.kind, self.message = str(error["type"]), str(error["message"])
        except (ValueError, KeyError, TypeError):
            return  # a gateway's own words

    @property
    def is_limit(self) -> bool:
        """Whether a usage limit of the account is reached."""
        return self.headers.get("anthropic-ratelimit-unified-status") == "rejected"


class GaveUp(Exception):
    """The CLI has printed its last words about an API error."""


class Api:
    """The Messages API as one run of the CLI uses it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._pinned: Credential | None = None
        self._pause_factor = float(run.environment.get("SCRIPTED_CLI_PAUSE_FACTOR", "1"))
        self._limit_status: str | None = None

    def credential(self) -> Credential | None:
        """The credential of the next request; the file is read anew each time from 2.1.30 on."""
        for name in ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"):
            if secret := self._run.environment.get(name):
                return Credential(name, secret)
        if self._pinned is None or self._run.options.version >= frames.SINCE_FILE_IS_READ_AGAIN:
            self._pinned = self._from_file()
        return self._pinned

    def _from_file(self) -> Credential | None:
        try:
            stored = json.loads((self._run.config_dir / ".credentials.json").read_bytes())["claudeAiOauth"]
            return Credential("file", stored["accessToken"]) if stored.get("scopes") else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # the real CLI says "Not logged in" to all of these

    @property
    def key_source(self) -> str:
        """The value of ``apiKeySource`` in ``system/init``."""
        return "ANTHROPIC_API_KEY" if self._run.environment.get("ANTHROPIC_API_KEY") else "none"

    def turn(self, content: str | list[Frame]) -> str:
        """
        Ask the model, run the tools it asks for, and return its last words.

        Raises:
            GaveUp: The API refused; what the real CLI prints then, up to the result frame, has been printed.
        """
        run = self._run
        run.add_message({"role": "user", "content": content})
        while True:
            message = self._request_with_retries()
            run.num_turns += 1
            run.add_message({"role": "assistant", "content": message["content"]})
            tools = [block for block in message["content"] if block["type"] == "tool_use"]
            if not tools:
                return "".join(block.get("text", "") for block in message["content"])
            run.add_message({"role": "user", "content": [self._run_tool(block) for block in tools]})
            if run.options.max_turns is not None and run.num_turns >= run.options.max_turns:
                text = f"Reached maximum number of turns ({run.options.max_turns})"
                run.result(None, is_error=True, subtype="error_max_turns", errors=[text])
                raise GaveUp

    def _run_tool(self, block: Frame) -> Frame:
        if block["name"] != "Bash":
            text, is_error = f"Error: No such tool available: {block['name']}", True
        else:
            timeout_seconds = float(block["input"].get("timeout", 120_000)) / 1000
            outcome = self._run.bash(str(block["input"].get("command", "")), timeout_seconds=timeout_seconds)
            text, is_error = outcome.text, outcome.exit_code != 0
        self._run.emit(frames.tool_result(block["id"], text, is_error=is_error))
        return frames.tool_result_block(block["id"], text, is_error=is_error)

    def _request_with_retries(self) -> Frame:
        run, attempt = self._run, 0
        while True:
            attempt += 1
            credential = self.credential()
            if credential is None:
                run.give_up("Not logged in · Please run /login", error="authentication_failed")
                raise GaveUp
            try:
                return self._request(credential)
            except RequestFailed as error:
                self._wait_or_give_up(error, attempt, credential)

    def _wait_or_give_up(self, error: RequestFailed, attempt: int, credential: Credential) -> None:
        """Print what the CLI prints on a refused request, then wait for the next attempt or give up."""
        run = self._run
        run.debug(frames.api_error_line(error.status, error.body, attempt=attempt))
        self._report_limit(error.headers)
        reaction = reaction_to(error, credential, run.options)
        if attempt < reaction.attempts:
            pause_seconds = min(0.5 * 2 ** (attempt - 1), 32.0) * 1.05
            word = reaction.retry_word or reaction.word
            run.emit(frames.api_retry(attempt, delay_seconds=pause_seconds, status=error.status, error=word))
            time.sleep(pause_seconds * self._pause_factor)
            return
        run.give_up(reaction.text, error=reaction.word, status=error.status, kind=error.kind)
        raise GaveUp

    def _report_limit(self, headers: Mapping[str, str]) -> None:
        """
        Print the state of the account's limits at the first answer and whenever it changes.

        Source: Claude Code 2.1.330 says ``allowed`` at the first answer and ``rejected`` later in the same run.
        """
        prefix = "anthropic-ratelimit-unified-"
        is_good = "text/event-stream" in headers.get("content-type", "")
        status = headers.get(prefix + "status") or ("allowed" if is_good else None)
        if status is None or status == self._limit_status:
            return
        self._limit_status = status
        limit_type, reset = headers.get(prefix + "representative-claim"), headers.get(prefix + "reset")
        resets_at = int(reset) if reset else None
        self._run.emit(frames.rate_limit_event(status, limit_type=limit_type, resets_at=resets_at))

    def _request(self, credential: Credential) -> Frame:
        import http.client  # noqa: PLC0415 (start-up time: most scripts make no request)

        run, options = self._run, self._run.options
        url = urlsplit(run.environment.get("ANTHROPIC_BASE_URL", ""))
        if url.scheme != "http" or url.hostname is None:
            raise RequestFailed(None, "Connection error.", {})  # a stand-in never talks to the real API
        betas = ["claude-code-20250219", *([OAUTH_BETA] if credential.is_oauth else [])]
        body: Frame = {
            "model": options.model_name,
            "max_tokens": 32_000,
            "system": [{"type": "text", "text": options.system_prompt or "You are Claude Code."}],
            "messages": run.messages,
            "tools": [BASH_TOOL],
            "metadata": {"user_id": json.dumps({"session_id": options.session_id})},
            "stream": True,
        }
        headers = credential.headers() | {
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": f"claude-cli/{options.version_text} (external, sdk-cli)",
            "X-Claude-Code-Session-Id": options.session_id,
            "X-Stainless-Retry-Count": "0",
            "anthropic-beta": ",".join(betas),
            "anthropic-version": "2023-06-01",
            "x-app": "cli",
        }
        path = url.path.rstrip("/") + "/v1/messages?beta=true"
        connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=REQUEST_TIMEOUT_SECONDS)
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            answer_headers = {name.lower(): value for name, value in response.getheaders()}
            if response.status != 200:
                text = response.read().decode(errors="replace")
                raise RequestFailed(response.status, text, answer_headers)
            message = self._read_stream(response)
        except (OSError, http.client.HTTPException) as broken:
            raise RequestFailed(None, "Connection error.", {}) from broken
        finally:
            connection.close()
        self._report_limit(answer_headers)
        return message

    def _read_stream(self, response: http.client.HTTPResponse) -> Frame:
        """Put a message together from its events; print each block when it is complete."""
        run = self._run
        message: Frame = {}
        partial_json = ""
        for event in server_sent_events(response):
            if run.options.partial_messages:
                run.emit({"type": "stream_event", "event": event, "parent_tool_use_id": None})
            match event["type"]:
                case "message_start":
                    message = event["message"] | {"content": []}
                case "content_block_start":
                    message["content"].append(dict(event["content_block"]))
                    partial_json = ""
                case "content_block_delta":
                    block, delta = message["content"][-1], event["delta"]
                    if delta["type"] == "text_delta":
                        block["text"] += delta["text"]
                    elif delta["type"] == "input_json_delta":
                        partial_json += delta["partial_json"]
                case "content_block_stop":
                    block = message["content"][-1]
                    if block["type"] == "tool_use" and partial_json:
                        block["input"] = json.loads(partial_json)
                    run.emit(
                        frames.assistant(
                            block, model=message["model"], message_id=message["id"], usage=message["usage"]
                        )
                    )
                case "message_delta":
                    message["stop_reason"] = event["delta"].get("stop_reason")
                    message["usage"] = message["usage"] | event.get("usage", {})
                case "error":
                    raise RequestFailed(None, json.dumps(event), {})
        if "stop_reason" not in message:
            raise RequestFailed(None, "Connection error.", {})
        run.count(message["usage"])
        return message


def server_sent_events(response: http.client.HTTPResponse) -> Iterator[Frame]:
    """The ``data`` of each event; every event of this API is one line of JSON."""
    for line in response:
        if line.startswith(b"data:"):
            yield json.loads(line[5:])


class Reaction(NamedTuple):
    """
    What the CLI makes of an API error.

    Attributes:
        attempts: How often it asks the API before it gives up.
        word: Its word for the error.
        text: The text of its last assistant frame and of its result.
        retry_word: Its word while it tries again, if that is another one.
    """

    attempts: int
    word: str
    text: str
    retry_word: str | None = None


def reaction_to(error: RequestFailed, credential: Credential, options: Options) -> Reaction:
    """
    Return what the CLI makes of an API error.

    Source: 2.1.330: OAuth 401 and revoked 403 after 3 requests; 2.1.30 and 2.1.114: a 401 after 11.
    """
    text = f"API Error: {error.status} {error.message}"
    is_of_organization = "not allowed for this organization" in error.message
    refused = "oauth_org_not_allowed" if is_of_organization else "authentication_failed"
    match error.status:
        case None:
            text = "API Error: Connection refused — a firewall or proxy may be blocking it (ECONNREFUSED)"
            return Reaction(MAX_ATTEMPTS, "server_error", text, "unknown")
        case 401:
            gives_up_soon = credential.is_oauth and options.version > frames.REPEATS_REFUSALS_UP_TO
            return Reaction(3 if gives_up_soon else MAX_ATTEMPTS, refused, f"Failed to authenticate. {text}")
        case 403 if "revoked" in error.message:
            text = "OAuth token revoked. Please log in again or contact your administrator."
            return Reaction(3, refused, f"Failed to authenticate: {text}")
        case 403:
            return Reaction(1, refused, f"Failed to authenticate. {text}")
        case 400 if "credit balance" in error.message:
            return Reaction(1, "billing_error", "Credit balance is too low")
        case 404:
            text = (
                f"There's an issue with the selected model ({options.model_name}). It may not exist or you may not "
                "have access to it. Run --model to pick a different model."
            )
            return Reaction(1, "model_not_found", text)
        case 429 if error.is_limit:
            reset = time.gmtime(int(error.headers.get("anthropic-ratelimit-unified-reset", "0")))
            return Reaction(1, "rate_limit", "You've hit your limit · resets " + time.strftime("%H:%M (UTC)", reset))
        case 429:
            return Reaction(MAX_ATTEMPTS, "rate_limit", text)
        case 408:
            return Reaction(MAX_ATTEMPTS, "unknown", text)
        case status if status >= 500:
            return Reaction(MAX_ATTEMPTS, "server_error", text, "overloaded" if status == 529 else None)
    return Reaction(1, "unknown", text)
