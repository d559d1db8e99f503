"""Supervise Claude Code executions inside an agent container. See :mod:`agent_runtime.cli.main` for the commands."""

__version__ = "0.1.0"
