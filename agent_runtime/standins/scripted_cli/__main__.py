"""``python -m agent_runtime.standins.scripted_cli``."""

import os
import sys

from agent_runtime.standins.scripted_cli.main import main

code = main(sys.argv[1:])
sys.stdout.flush()
os._exit(code)  # tools that are left running are not waited for
