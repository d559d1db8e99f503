"""
The contract's words as data: states, tasks, records, problems, tokens; no I/O and no clock.

It may import ``errors`` and ``settings`` only.
"""
