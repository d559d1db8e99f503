"""
Which token may be used now: the gate, the status of each, and the verification of a refusal.

It may import ``telemetry`` and everything below it.
"""
