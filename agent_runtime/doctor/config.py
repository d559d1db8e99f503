"""Checks of the settings, of the access to the HTTP interface, and of the time for a stop."""

from __future__ import annotations

import stat
from collections.abc import Mapping

from agent_runtime.doctor.finding import Finding, ok, problem, warning
from agent_runtime.errors import SettingsInvalid
from agent_runtime.setting_slips import did_you_mean
from agent_runtime.settings import PREFIX, SETTINGS, Settings, load, unknown_variables
from agent_runtime.web.access import BadKey, read_key

HERE = "127.0.0.1"
DOCKER_GRACE_SECONDS = 10
KUBERNETES_GRACE_SECONDS = 30
AFTER_THE_DRAIN_SECONDS = 2
"""The longest time that a stop takes beyond the drain timeout."""
STOP_MARGIN_SECONDS = 15
"""How much longer than the drain timeout a container may take to stop, in ``deploy/`` and in the docs."""


def settings_in(environ: Mapping[str, str]) -> tuple[Settings, list[Finding]]:
    """Return the settings, with defaults in place of bad values, and the findings about them."""
    given = {setting.variable: text for setting in SETTINGS if (text := environ.get(setting.variable))}
    usable, found = dict(given), []
    for name, text in given.items():
        try:
            load({f"{PREFIX}INSECURE_NO_ACCESS_KEY": "true", name: text})  # the access is checked below
        except SettingsInvalid as error:
            del usable[name]
            advice = f"correct {name}, or leave it out; serve exits with 2 until then (agent-runtime serve --help)"
            found.append(problem("settings", str(error), advice))
    found += [_unknown(name) for name in unknown_variables(environ)]
    if not found:
        found.append(ok("settings", f"{len(given)} set, all understood"))
    try:
        settings = load(usable)
    except SettingsInvalid as error:  # the host is not loopback and there is no key: the only fault of two settings
        settings = load(usable | {f"{PREFIX}HOST": HERE})
        advice = f"set {PREFIX}ACCESS_KEY_FILE to a file that holds a key, or leave {PREFIX}HOST out"
        return settings, [*found, problem("access", f"{error}; serve refuses to start", advice)]
    return settings, [*found, access(settings)]


def _unknown(name: str) -> Finding:
    near = did_you_mean(name, [setting.variable for setting in SETTINGS])
    advice = "correct it, or take it out; agent-runtime serve --help lists all settings"
    return warning("settings", f"{name} is no setting, so it does nothing{near}", advice)


def access(settings: Settings) -> Finding:
    """Check the address to listen on, and the access key, which an address other than loopback needs."""
    if settings.access_key_file is not None:
        return _key_file(settings)
    if settings.is_loopback:
        text = f"{settings.host}: what runs in this container may call without a key, the agent's tools too"
        return warning("access", text, f"set {PREFIX}ACCESS_KEY_FILE to a file that the agent cannot read")
    text = f"every caller that reaches {settings.host} may run anything: there is no access key"
    return warning("access", text, f"set {PREFIX}ACCESS_KEY_FILE")


def _key_file(settings: Settings) -> Finding:
    path = settings.access_key_file
    assert path is not None  # noqa: S101 - the caller has checked it
    try:
        read_key(path)
    except BadKey as bad:
        advice = "mount a file that the user this runs as may read, with one line: openssl rand -hex 32"
        return problem("access", f"{path} {bad}, so no caller is admitted", advice)
    mode = path.stat().st_mode
    if mode & stat.S_IROTH:
        advice = "give it mode 0440 (in Kubernetes defaultMode: 0440 with fsGroup)"
        return warning("access", f"{path} can be read by every user of this container, the agent's too", advice)
    if settings.child_user is None:
        advice = f"run the agent as another user ({PREFIX}CHILD_USER), where that matters"
        return warning("access", f"the agent can read {path}, as it runs as the same user, so it may call", advice)
    return ok("access", f"callers send the key in {path}")


def stopping(settings: Settings) -> Finding:
    """Check whether container engines give a stop as much time as the drain timeout needs."""
    seconds = settings.drain_timeout + AFTER_THE_DRAIN_SECONDS
    text = f"a stop may take {seconds:g} s"
    if seconds > KUBERNETES_GRACE_SECONDS:
        advice = f"give it that time (terminationGracePeriodSeconds, stop_grace_period), or lower {PREFIX}DRAIN_TIMEOUT"
        return warning("stop", f"{text}, more than Kubernetes' default {KUBERNETES_GRACE_SECONDS} s", advice)
    if seconds > DOCKER_GRACE_SECONDS:
        text += (
            f", more than Docker's default {DOCKER_GRACE_SECONDS} s: run it with --stop-timeout "
            f"{settings.drain_timeout + STOP_MARGIN_SECONDS:.0f}"
        )
    return ok("stop", text)
