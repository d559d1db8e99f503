"""``python -m agent_runtime.standins.scripted_cli``."""

from agent_runtime.standins.scripted_cli.main import run

run()
