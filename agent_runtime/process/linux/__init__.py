"""
Kernel interfaces: system calls, ``/proc``, cgroups.

It imports nothing of the package but the modules at the root.
"""
