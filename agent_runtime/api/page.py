"""The page at ``/``: one file, served with a content security policy that allows nothing else."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path

FILE = "page.html"


@functools.cache
def load_page() -> tuple[bytes, dict[str, str]]:
    """
    Return the page and the headers it is sent with.

    The policy allows the page's one script and one style sheet by their digests, and nothing else.
    """
    body = Path(__file__).with_name(FILE).read_bytes()
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(body, b'script')}'",
            f"style-src '{_digest(body, b'style')}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    return body, {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-cache",
    }


def _digest(body: bytes, tag: bytes) -> str:
    """Return the digest of the content of the only element *tag*, in the form of a content security policy."""
    _, _, rest = body.partition(b"<" + tag + b">")
    content, _, _ = rest.partition(b"</" + tag + b">")
    return "sha256-" + base64.b64encode(hashlib.sha256(content).digest()).decode()
