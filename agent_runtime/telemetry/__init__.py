"""
Output of the process beside answers, redacted: logs, events, metrics, webhook calls.

It may import ``model``, ``secret`` and the modules at the root.
"""
