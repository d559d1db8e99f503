"""
One execution and its attempts.

It may import ``store``, ``telemetry``, ``delivery``, ``process`` and what is below them, never
``supervisor``, ``tokens`` or ``api``.
"""
