"""
Measure time and memory, each beside the alternative that a user has, in the same run.

Run ``python -m benchmarks`` from a checkout with ``.[test]`` installed. CI runs it with ``--quick``, only to see that
each bench works; goals are not checked there.
"""
