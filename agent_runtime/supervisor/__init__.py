"""
Policy: admission, slots, retries, switching, drain.

It may import ``execution``, ``tokens``, ``store`` and everything below them.
"""
