"""Variables with our prefix that are no settings: Kubernetes sets them."""

from __future__ import annotations

_PROTOCOLS = ("tcp", "udp", "sctp")


def link_of_service(name: str, value: str) -> bool:
    """
    Tell whether Kubernetes made this variable for a Service, one named ``agent-runtime`` for example.

    Beside a Service NAME a pod is given NAME_SERVICE_HOST, NAME_SERVICE_PORT and NAME_PORT=tcp://ADDRESS:PORT, with
    NAME_PORT_8000_TCP and more for each of its ports.

    Source: https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
    """
    if name.endswith("_PORT") and "_SERVICE_" not in name:
        return value.startswith(tuple(f"{protocol}://" for protocol in _PROTOCOLS))
    if name.endswith("_SERVICE_HOST") or "_SERVICE_PORT" in name:
        return True
    words = name.partition("_PORT_")[2].lower().split("_")
    return len(words) > 1 and words[0].isdecimal() and words[1] in _PROTOCOLS
