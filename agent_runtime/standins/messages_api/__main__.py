"""``python -m agent_runtime.standins.messages_api``."""

import sys

from agent_runtime.standins.messages_api.server import main

sys.exit(main())
