"""Run a command, with Ctrl-C when a module is imported: ``interrupted_import.py MODULE COMMAND …``."""

import os
import signal
import sys

from agent_runtime.__main__ import main


class Interrupting:
    def find_spec(self, name, *_):
        if name == sys.argv[0]:
            os.kill(os.getpid(), signal.SIGINT)


del sys.argv[0]
sys.meta_path.insert(0, Interrupting())
sys.exit(main())
