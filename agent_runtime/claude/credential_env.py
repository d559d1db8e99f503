"""
The environment variables that choose the CLI's credential and server, and how all but the delivered ones are disabled.

A variable reaches the CLI in two ways. One is the child's environment, from which :func:`without_rivals` removes it.
The other is the ``env`` of a settings file, in the workspace (a cloned repository may contain one) or in the config
directory; the settings file that is given with ``--settings`` outranks both: see :func:`neutral_settings`. Variables
that tools need (``AWS_*``, ``GOOGLE_*``) stay: the CLI reads them only with one of its own switches, and the switches
are removed.

Source: the names are those that Claude Code 1.0.128, 2.0.76, 2.1.30, 2.1.114, 2.1.330 and 2.1.332 carry; 2.1.330 lists
them itself as names that a managing host may own. Measured on all of them with made-up tokens against a stand-in API on
loopback. ``scripts/try-cli VERSION`` lists further names of a new version, and whether they matter.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from agent_runtime.errors import InvalidRequest, is_reserved
from agent_runtime.model.tokens import API_KEY_VARIABLE, AUTH_TOKEN_VARIABLE, OAUTH_VARIABLE
from agent_runtime.settings import PREFIX

BASE_URL_VARIABLE = "ANTHROPIC_BASE_URL"
HEADERS_VARIABLE = "ANTHROPIC_CUSTOM_HEADERS"
CONFIG_DIR_VARIABLE = "CLAUDE_CONFIG_DIR"
SOCKET_VARIABLE = "ANTHROPIC_UNIX_SOCKET"
SHELL_PREFIX_VARIABLE = "CLAUDE_CODE_SHELL_PREFIX"
"""A program that gets every command of the Bash tool as its argument (2.1.114, 2.1.332)."""

API_HOST = "api.anthropic.com"
API_URL = f"https://{API_HOST}"
FIRST_PARTY_URL = f"http://{API_HOST}"
"""With this base URL and a Unix socket, the CLI speaks plain HTTP on the socket and treats it as the API's own host."""

STORAGE_DIR_VARIABLE = "CLAUDE_SECURESTORAGE_CONFIG_DIR"
"""
The directory of the credentials file.

A settings file could name another one (2.1.114, 2.1.197). An empty value does not count as unset, but means no
directory (2.1.197).
"""

CREDENTIALS: dict[str, str] = {
    AUTH_TOKEN_VARIABLE: "first in the CLI's precedence",
    API_KEY_VARIABLE: "second; silently beats an OAuth token",
    OAUTH_VARIABLE: "fourth; beats the credentials file",
    "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR": "an OAuth token, read from a descriptor",
    "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR": "an API key, read from a descriptor",
    "CLAUDE_CODE_WEBSOCKET_AUTH_FILE_DESCRIPTOR": "a session's token, read from a descriptor",
    "CLAUDE_CODE_GATEWAY_TOKEN_FILE_DESCRIPTOR": "a gateway's token, read from a descriptor (2.1.330)",
    "CCR_AGENT_PROXY_TOKEN_FILE_DESCRIPTOR": "a proxy's token, read from a descriptor (2.1.330)",
    "CLAUDE_CODE_OAUTH_REFRESH_TOKEN": "exchanged for another OAuth token (2.1.114)",
    "CLAUDE_CODE_OAUTH_SCOPES": "belongs to the refresh token; wrong scopes make a good token unusable",
    "CLAUDE_CODE_OAUTH_CLIENT_ID": "the owner of the refresh token",
    "CLAUDE_CODE_SESSIONS_OAUTH_TOKEN": "an OAuth token of a hosted session (2.1.330)",
    "CLAUDE_CODE_SESSION_ACCESS_TOKEN": "the token of a hosted session",
    "CLAUDE_CODE_GATEWAY_TOKEN": "goes with CLAUDE_CODE_USE_GATEWAY (2.1.330)",
    "CLAUDE_CODE_HFI_BEARER_TOKEN": "a bearer token (2.1.330)",
    "CLAUDE_CODE_HOST_AUTH_ENV_VAR": "names another variable that holds the credential (2.1.330)",
    "CLAUDE_CODE_HOST_CREDS_FILE": "a managing host's credentials (2.1.330)",
    "CLAUDE_BG_AUTH_SNAPSHOT_PATH": "credentials of background sessions (2.1.330)",
    "CLAUDE_BG_SOCKET_TOKENS_PATH": "credentials of background sessions (2.1.330)",
    "CLAUDE_BG_SESSION_CREDENTIAL": "credentials of background sessions (2.1.330)",
    "CLAUDE_BRIDGE_OAUTH_TOKEN": "an OAuth token of the remote bridge (2.1.330)",
    "CLAUDE_TRUSTED_DEVICE_TOKEN": "sent beside an OAuth token (2.1.114)",
    "CLAUDE_SESSION_INGRESS_TOKEN_FILE": "the token of a hosted session (2.1.114)",
    "CCR_OAUTH_TOKEN_FILE": "an OAuth token of a hosted session (2.1.114)",
    STORAGE_DIR_VARIABLE: "where the credentials file is (2.1.197)",
    "CLAUDE_API_KEY": "an older name for an API key",
    "ANTHROPIC_PROFILE": "a credentials profile of the SDK (2.1.330)",
    "ANTHROPIC_CONFIG_DIR": "where such profiles are (2.1.330)",
    "ANTHROPIC_FEDERATION_RULE_ID": "workload identity federation (2.1.330)",
    "ANTHROPIC_IDENTITY_TOKEN": "workload identity federation (2.1.330)",
    "ANTHROPIC_IDENTITY_TOKEN_FILE": "workload identity federation (2.1.330)",
    "ANTHROPIC_SERVICE_ACCOUNT_ID": "workload identity federation (2.1.330)",
    "AWS_BEARER_TOKEN_BEDROCK": "a key made for the CLI's Bedrock provider",
    "ANTHROPIC_BEDROCK_MANTLE_API_KEY": "a provider's key (2.1.114)",
    "ANTHROPIC_AWS_API_KEY": "a provider's key (2.1.114)",
    "ANTHROPIC_FOUNDRY_API_KEY": "a provider's key (2.0.76)",
    "ANTHROPIC_FOUNDRY_AUTH_TOKEN": "a provider's token (2.1.114)",
}
"""Variables that hold or locate a credential, each with its effect and the version it was first seen in."""

SERVERS: dict[str, str] = {
    SOCKET_VARIABLE: "requests go to a socket instead (2.1.114)",
    "CLAUDE_CODE_RUNNER_MODEL_SOCKET": "requests go to a socket instead (2.1.330)",
    "CLAUDE_CODE_API_BASE_URL": "where the account's own requests go",
    "CLAUDE_CODE_CUSTOM_OAUTH_URL": "where tokens are refreshed (2.1.114)",
    "USE_LOCAL_OAUTH": "a developer's switch for the same",
    "USE_STAGING_OAUTH": "a developer's switch for the same",
    "CLAUDE_CODE_CLIENT_DATA_URL": "where the CLI's own configuration is; it does not start without it (2.1.330)",
    "ANTHROPIC_BEDROCK_BASE_URL": "a provider's server",
    "ANTHROPIC_BEDROCK_MANTLE_BASE_URL": "a provider's server (2.1.114)",
    "ANTHROPIC_VERTEX_BASE_URL": "a provider's server",
    "ANTHROPIC_FOUNDRY_BASE_URL": "a provider's server (2.0.76)",
    "ANTHROPIC_FOUNDRY_RESOURCE": "a provider's server (2.0.76)",
    "ANTHROPIC_AWS_BASE_URL": "a provider's server (2.1.114)",
    "ANTHROPIC_GOOGLE_CLOUD_BASE_URL": "a provider's server (2.1.330)",
}
"""
Variables that send requests to another server than the supervisor's, each with its effect.

``ANTHROPIC_BASE_URL`` is not among them: the supervisor passes on its own value.
"""

PROVIDERS = (
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_USE_FOUNDRY",  # since 2.0.76
    "CLAUDE_CODE_USE_ANTHROPIC_AWS",  # since 2.1.114
    "CLAUDE_CODE_USE_MANTLE",  # since 2.1.114
    "CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD",  # since 2.1.330
    "CLAUDE_CODE_USE_GATEWAY",  # since 2.1.330
)
"""
Switches to another provider, with another credential.

From the environment all variables with the prefix ``CLAUDE_CODE_USE_`` are removed, known or not.
"""

MODES: dict[str, str] = {
    "CLAUDE_CODE_SIMPLE": "the bare mode ignores OAuth tokens: Not logged in (2.1.114, 2.1.330)",
    "CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST": "a managing host's credentials win over settings (2.1.114)",
    "CLAUDE_CODE_REMOTE": "a hosted session takes its credentials from elsewhere",
    "CLAUDE_CODE_USER_DELEGATED_SESSION_DIRECT_API": "allows no base URL: the CLI does not start (2.1.330)",
    "CLAUDE_CODE_SDK_HAS_OAUTH_REFRESH": "asks the parent process for a new token (2.1.114)",
    "CLAUDE_CODE_SDK_HAS_HOST_AUTH_REFRESH": "asks the parent process for a new token (2.1.330)",
    "CLAUDE_CODE_LAUNCHER_RUNS_API_KEY_HELPER": "takes another process's key (2.1.330)",
}
"""Switches of the CLI that make it take its credential from elsewhere."""

_PROXIES = (
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ws_proxy", "wss_proxy", "grpc_proxy", "no_grpc_proxy"),
    *(f"npm_config_{name}" for name in ("proxy", "http_proxy", "https_proxy", "ws_proxy", "wss_proxy", "no_proxy")),
)
PROXIES = (
    *_PROXIES,
    *(name.upper() for name in _PROXIES),
    *("CLAUDE_CODE_HTTP_PROXY", "CLAUDE_CODE_HTTPS_PROXY", "CLAUDE_CODE_PROXY_RESOLVES_HOSTS"),
)
"""
Proxy settings. The child gets only the supervisor's own values, because a proxy sees the token of a plain-HTTP request.
On 2.1.30 it also sees the token of the CLI's requests about the account, which reach a proxy as plain HTTP.

Source: ``proxy-from-env`` and ``grpc-js``, which the CLI has in it; ``npm_config_https_proxy`` measured on 2.1.30.
"""

TRANSPORT = (
    *(
        "NODE_TLS_REJECT_UNAUTHORIZED",
        "NODE_EXTRA_CA_CERTS",
        "NODE_USE_SYSTEM_CA",
        "NODE_USE_ENV_PROXY",
        "NODE_OPTIONS",
    ),
    *("CLAUDE_CODE_CERT_STORE", "BUN_TLS_REFUSE_DISTRUSTED_KEYS"),
    *("CLAUDE_CODE_CLIENT_CERT", "CLAUDE_CODE_CLIENT_KEY", "CLAUDE_CODE_CLIENT_KEY_PASSPHRASE"),
    *("BUN_OPTIONS", "BUN_INSPECT", "BUN_INSPECT_CONNECT_TO", "BUN_INSPECT_NOTIFY", "BUN_INSPECT_PRELOAD"),
    *("BUN_CONFIG_FILE", "BUN_CONFIG_VERBOSE_FETCH", "BUN_CRASH_REPORT_URL", "BUN_FFI_IMPORT"),
    "CLAUDE_CODE_ENABLE_PROXY_AUTH_HELPER",
)
"""
Variables for the certificates that the CLI trusts, the code that it loads, and its logging of requests.

The child gets only the supervisor's own values: a repository's settings file that turns off the check of certificates
would let anybody on the network path read the token. Source: the variables that 2.1.114, 2.1.330 and 2.1.332 know.

Not ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``: no version from 1.0.128 to 2.1.332 heeds those of a settings file, and empty
ones leave OpenSSL in the agent's tools without any CA (Python 3.11: 0 of 144).
"""

TELEMETRY = (
    *("CLAUDE_CODE_ENABLE_TELEMETRY", "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA", "ENABLE_ENHANCED_TELEMETRY_BETA"),
    "BETA_TRACING_ENDPOINT",
    *(f"OTEL_EXPORTER_OTLP_{part}" for part in ("ENDPOINT", "HEADERS")),
    *(
        f"OTEL_EXPORTER_OTLP_{signal}_{part}"
        for signal in ("LOGS", "METRICS", "TRACES")
        for part in ("ENDPOINT", "HEADERS")
    ),
)
"""
The destinations of the CLI's telemetry, which may include prompts.

The child gets only the supervisor's own values: on 2.1.114 a repository's settings file could send the telemetry to
any server.
"""

_RIVALS = frozenset(CREDENTIALS) | frozenset(SERVERS) | frozenset(MODES)
_RIVAL_PREFIXES = ("CLAUDE_CODE_USE_", "CLAUDE_LOCAL_OAUTH_")
_CREDENTIAL_HEADERS = frozenset({"authorization", "x-api-key", "proxy-authorization", "cookie"})

_BLANKED = (*(name for name in CREDENTIALS if name != STORAGE_DIR_VARIABLE), *SERVERS, *PROVIDERS, *MODES)

_OF_THE_CLI = "it decides who pays, where requests go, or how the CLI works"

_REFUSED_PREFIXES: dict[tuple[str, ...], str] = {
    (PREFIX,): "it is the supervisor's own",
    ("ANTHROPIC_", "CLAUDE_", "CCR_", "SELF_HOSTED_RUNNER_", "OTEL_"): _OF_THE_CLI,
    ("LD_", "DYLD_", "MALLOC_", "NODE_", "BUN_", "JSC_", "OPENSSL_", "BASH_FUNC_"): "it decides what code is loaded",
}
"""Beginnings of variables that a task may not set, in upper or lower case, each with the reason."""

_REFUSED_NAMES: dict[tuple[str, ...], str] = {
    (*PROXIES, *TELEMETRY, *TRANSPORT, "CLAUDECODE", "SESSION_INGRESS_URL"): _OF_THE_CLI,
    ("DEBUG", "DEBUG_AUTH", "DEBUG_SDK", "GRPC_TRACE", "GRPC_VERBOSITY"): "it decides what the CLI logs",
    ("IS_SANDBOX", "DISABLE_AUTOUPDATER"): "it is the supervisor's own",
    ("TRACEPARENT", "TRACESTATE"): "the fields traceparent and tracestate are for that",
    ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"): "it decides who is trusted",
    ("HOSTALIASES", "LOCALDOMAIN", "RESOLV_HOST_CONF", "RES_OPTIONS"): "it decides where requests go",
    ("PATH", "HOME", "SHELL", "PWD", "OLDPWD", "XDG_CONFIG_HOME"): "it decides what programs run and what they read",
    ("BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "PS4", "IFS", "ZDOTDIR"): "it decides what code is loaded",
    ("GCONV_PATH", "GETCONF_DIR", "GLIBC_TUNABLES", "LOCPATH", "NLSPATH", "NIS_PATH"): "it decides what code is loaded",
}
"""
Further variables that a task may not set, each with the reason.

With ``DEBUG=*`` 2.0.76 and 2.1.30 print the token on stderr (measured). The last rows are variables of shells, and
those that glibc ignores in a privileged program, except ``TMPDIR`` and ``TZDIR``.

Source: bash(1), and sysdeps/generic/unsecvars.h of https://sourceware.org/git/glibc.git, read 2026-11.
"""

_REFUSED = {name: reason for names, reason in _REFUSED_NAMES.items() for name in names}


def is_rival(name: str) -> bool:
    """Whether a variable could give the CLI a credential, provider or server other than the delivered one."""
    upper = name.upper()
    skips_auth = upper.startswith("CLAUDE_CODE_SKIP_") and upper.endswith("_AUTH")
    return skips_auth or upper in _RIVALS or upper.startswith(_RIVAL_PREFIXES)


def without_credentials(headers: str) -> str:
    """
    Return a value of ``ANTHROPIC_CUSTOM_HEADERS`` without the lines that carry a credential.

    Such a line replaces the CLI's own ``Authorization`` or ``x-api-key``; gateways need the other headers.

    Source: measured on 1.0.128, 2.0.76, 2.1.30, 2.1.114 and 2.1.330.
    """
    lines = headers.splitlines()
    return "\n".join(line for line in lines if line.partition(":")[0].strip().lower() not in _CREDENTIAL_HEADERS)


def without_rivals(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without variables that could override the delivered credential."""
    env = {name: value for name, value in inherited.items() if not is_rival(name)}
    if HEADERS_VARIABLE in env:
        env[HEADERS_VARIABLE] = without_credentials(env[HEADERS_VARIABLE])
    return env


def neutral_settings(
    base_url: str | None, *, delivered: Mapping[str, str], inherited: Mapping[str, str], key_file: Path | None = None
) -> dict[str, object]:
    """
    Build the settings that overrule the workspace's and the config directory's in everything about credentials.

    They must be given as a *file* of mode 0600, because they may hold the token, and in two words: ``--settings FILE``
    (1.0.128 accepts ``--settings=FILE``, but then the workspace's settings win). Each name is assigned to the CLI's
    environment after every other settings file; an empty value counts as unset on all versions.

    The CLI reads an API key from *key_file*, with ``apiKeyHelper``, and sends it in both headers. The key's variable is
    blanked: tools, hooks and MCP servers do not inherit the key, and ``${NAME}`` in their configuration does not expand
    to it. MCP servers inherit it all the same up to 2.1.30, which starts them before the settings take effect.
    ``CLAUDE_CODE_SUBPROCESS_ENV_SCRUB``, which also takes variables away, is not used: with it the CLI does not start
    unless there is bubblewrap (2.1.114, 2.1.332).

    These settings do not overrule:

    - a managed settings file (``/etc/claude-code``), which is the image owner's;
    - on 2.1.114 an ``env.ANTHROPIC_UNIX_SOCKET`` in the config directory's settings: the run fails;
    - ``permissions.disableBypassPermissionsMode``: the run is ended, and its error names the setting;
    - hooks and MCP servers of the workspace, which can read the child's memory anyway.

    Args:
        base_url: The server that requests go to; None: the API's own address.
        delivered: The variables that carry the token in the child's environment; empty: it is in the credentials file.
            From 2.1.114 on ``env.CLAUDE_CODE_OAUTH_TOKEN`` of a settings file beats the environment, so an OAuth token
            is repeated here.
        inherited: The child's environment: the config directory, and proxies, certificates and headers that pass
            through.
        key_file: The file with the API key and a newline; None: the token is an OAuth token.

    Source: measured on 1.0.128, 2.0.76, 2.1.30, 2.1.114, 2.1.197, 2.1.330 and 2.1.332 with all three settings files.
    """
    env = dict.fromkeys(_BLANKED, "") | {name: inherited.get(name, "") for name in (*PROXIES, *TRANSPORT, *TELEMETRY)}
    env[BASE_URL_VARIABLE] = base_url or ""
    env[HEADERS_VARIABLE] = without_credentials(inherited.get(HEADERS_VARIABLE, ""))
    if CONFIG_DIR_VARIABLE in inherited:
        env[CONFIG_DIR_VARIABLE] = env[STORAGE_DIR_VARIABLE] = inherited[CONFIG_DIR_VARIABLE]
    env |= {name: value for name, value in delivered.items() if name != API_KEY_VARIABLE}
    # Shell builtins only: the PATH of a settings file could name another `cat`.
    helper = "" if key_file is None else f'read -r key <{shlex.quote(str(key_file))} && printf %s "$key"'
    return {"apiKeyHelper": helper, "proxyAuthHelper": "", "env": env}


def check_task_names(names: Iterable[str]) -> None:
    """
    Refuse variables that a task may not set: those that affect the token, its server, the CLI or the CLI's confinement.

    Variables that affect only the tools are allowed (``GIT_*``, ``PYTHONPATH``, ``AWS_*``): a tool can set them itself.

    Raises:
        InvalidRequest: A name is not allowed. The message repeats the first such name, unless the name contains a word
            at which a backend switches the token.
    """
    for name in names:
        if (reason := _why_refused(name)) is not None:
            shown = "a name that is not shown" if is_reserved(name) else name[:64]
            raise InvalidRequest(f"env: a task may not set {shown}: {reason}")


def _why_refused(name: str) -> str | None:
    if is_rival(name):
        return _OF_THE_CLI
    upper = name.upper()
    by_prefix = next((reason for prefixes, reason in _REFUSED_PREFIXES.items() if upper.startswith(prefixes)), None)
    return by_prefix or _REFUSED.get(name)
