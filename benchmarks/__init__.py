"""
Speed and weight, each measured beside what a user would take instead, in the same run.

``python -m benchmarks`` from a checkout with ``.[test]`` installed; no part of the timed tests.
"""
