"""
How everything that an attempt has started is found and ended.

It may import ``process.forkserver`` and ``process.linux``.
"""
