"""
Recognise API errors and classify the end of an attempt; pure.

It may import ``claude``, ``model`` and the modules at the root.
"""
