"""``python -m agent_runtime.standins.scripted_cli``."""

import sys

from agent_runtime.standins.scripted_cli.main import main

sys.exit(main(sys.argv[1:]))
