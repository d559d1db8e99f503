"""Help with mistakes in settings: misspelt names, values that must not be shown, variables that Kubernetes sets."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NOT_SHOWN = r"(?is)sk-|@|(?=\S*\d)(?=\S*[A-Za-z])[\w.~+/=-]{16}|.{60}"
"""Matches a token, an address with a password, a word of letters and digits as long as a key, a long text."""

_PROTOCOLS = ("tcp", "udp", "sctp")


def is_service_link(name: str, value: str) -> bool:
    """
    Whether Kubernetes has set this variable for a Service, for example one named ``agent-runtime``.

    For a Service NAME a pod is given NAME_SERVICE_HOST, NAME_SERVICE_PORT and NAME_PORT=tcp://ADDRESS:PORT, with
    NAME_PORT_8000_TCP and more for each of its ports.

    Source: https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
    """
    if name.endswith("_PORT") and "_SERVICE_" not in name:
        return value.startswith(tuple(f"{protocol}://" for protocol in _PROTOCOLS))
    if name.endswith("_SERVICE_HOST") or "_SERVICE_PORT" in name:
        return True
    words = name.partition("_PORT_")[2].lower().split("_")
    return len(words) > 1 and words[0].isdecimal() and words[1] in _PROTOCOLS


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean NAME?)"`` with the known name that is most similar; empty if none is."""
    from difflib import get_close_matches  # noqa: PLC0415 (memory and start-up time: most starts have no slip)

    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def not_this(value: str) -> str:
    """Return ``", not VALUE"``, the end of a sentence; empty for a value that is blank or may hold a secret."""
    return "" if not value.strip() or re.search(_NOT_SHOWN, value) else f", not {value!r}"


def masked(text: str) -> str:
    """Return *text* without tokens, which a person may have typed instead of something else, such as a file's name."""
    return re.sub(r"sk-ant-[\w-]+", "sk-ant-\N{HORIZONTAL ELLIPSIS}", text)
