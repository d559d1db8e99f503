"""Run a supervisor with other values of some constants: ``MODULE:NAME=VALUE…`` stand before its own arguments."""

import ast
import importlib
import sys

from agent_runtime.cli.main import main

if __name__ == "__main__":
    while "=" in sys.argv[1]:
        constant, _, value = sys.argv.pop(1).partition("=")
        module, _, name = constant.partition(":")
        owner = importlib.import_module(module)
        getattr(owner, name)  # an error where it has been renamed
        setattr(owner, name, ast.literal_eval(value))
    sys.exit(main())
