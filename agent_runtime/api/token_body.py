"""The body of ``POST /api/credentials/reload-token``: the token that a backend wants written, or nothing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec

from agent_runtime.api.schema.bodies import NewToken
from agent_runtime.errors import InvalidRequest
from agent_runtime.model.json_bounds import check_json_bounds
from agent_runtime.model.task_reading import unknown_names
from agent_runtime.secret import content as secret_content
from agent_runtime.secret.content import SecretContent

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_runtime.model.tokens import Token

log = logging.getLogger(__name__)


def token_in(body: bytes, *, strict: bool, redact: Callable[[str], str]) -> Token | None:
    """
    Read the token from a request's body; None: the body has none, so the secret file is only to be read again.

    Args:
        strict: Unknown fields are an error; otherwise they are logged and ignored.
        redact: Removes tokens from the names of unknown fields.

    Raises:
        InvalidRequest: The body is not usable. The message names the field, and never repeats its value.
    """
    if not body.strip():
        return None
    check_json_bounds(body)
    try:
        sent: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        sent = None
    if not isinstance(sent, dict) or not isinstance(sent.get("token", ""), str):
        raise InvalidRequest("token: must be a string in a JSON object; send it, or an empty body to read the file")
    if not isinstance(sent.get("remove_api_key"), bool | None):
        raise InvalidRequest("remove_api_key: must be true or false; leave it out, it changes nothing here")
    if "token" not in sent and not sent.keys() <= set(NewToken.__struct_fields__):
        raise InvalidRequest("token: is missing; send it, or an empty body to read the file again")
    if ignored := unknown_names(sent, NewToken.__struct_fields__, strict=strict, redact=redact):
        log.warning("unknown fields ignored: %s", ", ".join(ignored))
    return _usable(sent["token"]) if "token" in sent else None


def _usable(text: str) -> Token:
    content = secret_content.parse(text.encode(errors="replace"))
    if not isinstance(content, SecretContent):
        raise InvalidRequest(f"token: {content.reason}; send the token alone, as it was given out")
    for warning in content.warnings:
        log.warning("reload-token: %s", warning)
    return content.token
