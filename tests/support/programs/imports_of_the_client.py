"""Print the distributions that the client imports, and whether it imports SQLite."""

import importlib
import sys
from importlib.metadata import packages_distributions

before = set(sys.modules)
importlib.import_module("agent_runtime.client")
tops = {name.partition(".")[0] for name in set(sys.modules) - before}
owners = packages_distributions()
print(*sorted({owner.lower() for top in tops for owner in owners.get(top, ())} - {"agent-runtime"}))
print(*sorted(tops & {"sqlite3"}))
