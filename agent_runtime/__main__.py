"""Run the commands as ``python -m agent_runtime``."""

import sys

from agent_runtime.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
