"""Run a supervisor that fails to build its answers."""

import sys

from agent_runtime.cli.main import main
from agent_runtime.supervisor import admission


def fails(*arguments, **more):
    raise ArithmeticError("a fault of ours")


admission.answer_to = fails
sys.exit(main())
