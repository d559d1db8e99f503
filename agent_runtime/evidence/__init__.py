"""
What counts as an API error, and what an attempt's end means; pure.

It may import ``claude``, ``model`` and the modules at the root.
"""
